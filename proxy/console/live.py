"""Calls in flight, and those that have just ended, as the page Now shows them.

A worker knows its own calls. With several workers each has a Unix socket in a folder that only this user can enter; the
worker that a page talks to asks the others there. Nothing is asked, and no call is folded, while nobody looks.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import wire
from proxy.call import Call
from proxy.config import Config
from proxy.dialects import load, mapper, route_of
from proxy.errors import ProxyError
from proxy.mapped import LOOKED_THROUGH
from proxy.records.store import Store, open_store
from proxy.routing import model_in

if TYPE_CHECKING:
    from proxy.relay import Relay
    from proxy.server import Server

logger = logging.getLogger(__name__)

Facts = dict[str, Any]
KEPT = 64 * 1024  # bytes of a running answer that can be looked at
ENDED = 40  # calls that are shown after their end
SHOWN = 100  # calls shown at once
PATIENCE_S = 2.0  # for another worker's answer
_birth = threading.Lock()  # guards the making of a board


def board_of(server: Server) -> Board:
    """The server's board, which outlives generations."""
    with _birth:
        if server.board is None:
            server.board = Board(server.generation.workers > 1)
        return server.board


class Live:
    """The record that shows calls while they run; see `proxy/records/`."""

    def __init__(self, config: Config) -> None:
        self._server: Server | None = None

    def begin(self, relay: Relay) -> None:
        """See Record."""
        self._server = relay.reply.handler.server
        board_of(self._server).begin(relay)

    def end(self, call: Call) -> None:
        """See Record."""
        if self._server is not None:
            board_of(self._server).end(call)

    def close(self) -> None:
        """See Record. A reload closes generations, too: the board ends with the process only."""
        if self._server is not None and self._server.draining:
            board_of(self._server).close()


class Running:
    """One call, and what its client got so far."""

    def __init__(self, relay: Relay) -> None:
        self.call, self.relay, self.at = relay.call, relay, time.time()
        self.handler = relay.reply.handler
        self.pieces: list[bytes] = []
        self.size = self.events = 0
        self._told: tuple[int, str] = (0, "")
        self._asked: str | None = None
        relay.reply.heard = (*relay.reply.heard, self._hear)

    def _hear(self, piece: bytes) -> None:
        if self.size < KEPT:
            self.pieces.append(bytes(piece))
        self.size += len(piece)
        self.events += piece.count(b"data:") or piece.count(b"\n")

    def facts(self, ended: bool = False) -> Facts:
        """What a page is told."""
        call, now_s = self.call, self.call.elapsed_s()
        streaming_s = now_s - call.first_byte_s if call.first_byte_s is not None else 0.0
        tokens = call.tokens_out or (self.events if call.streams else None)
        return {
            **{
                name: getattr(call, name) for name in ("id", "key_name", "client", "front", "method", "path", "target", "error")
            },
            "model": call.model_served or call.model_asked or self._model(),
            "at": self.at,
            "status": call.status or None,
            "stream": call.streams,
            "ms": round(now_s * 1000),
            "first_ms": round(call.first_byte_s * 1000) if call.first_byte_s is not None else None,
            "tokens": tokens,
            "rate": round(tokens / streaming_s, 1) if tokens and streaming_s > 0.05 else None,
            "attempts": list(call.attempts),
            "state": "ended" if ended else "streaming" if self.size else "waiting",
            "text": self._text() if call.streams else "",
        }

    def _model(self) -> str | None:
        """What the body asks for, where nobody else had to know."""
        raw = self.relay.raw
        if self._asked is None and raw is not None:
            try:
                self._asked = model_in(wire.loads(raw), {}) or "" if len(raw) <= LOOKED_THROUGH else ""
            except ValueError:
                self._asked = ""  # not JSON
        return self._asked or None

    def _text(self) -> str:
        size = self.size
        if self._told[0] != size:
            self._told = size, _text_of(self.call, b"".join(self.pieces)[:KEPT])
        return self._told[1]


def _text_of(call: Call, raw: bytes) -> str:
    """The text in the part of a stream that has come."""
    front, route = load(call.front), route_of(call.front, call.method, call.path)
    verb = "text" if route is not None and route.kind == "text" else "chat"
    events: Any = wire.reader(wire.CONTENT_TYPES[front.framing(call.query)])([raw[: raw.rfind(b"\n") + 1]])
    to_hub = mapper(f"{verb}Stream{front.tag}toOpenAI") if front.tag != "OpenAI" else None
    told: list[str] = []
    try:
        for chunk in to_hub(events, {"id": call.id, "now": call.now, "request": {}}) if to_hub else events:
            told += [(each.get("delta") or {}).get("content") or each.get("text") or "" for each in chunk.get("choices") or ()]
    except (ProxyError, ValueError, TypeError, AttributeError) as fault:  # it is not whole yet, or no stream of text
        logger.debug("%s: shown as far as it can be read: %s", call.id, fault)
    return "".join(part for part in told if isinstance(part, str))


class Board:
    """The calls of one worker. The lock guards both collections; `peers`: the other workers, where there are any."""

    def __init__(self, several: bool) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, Running] = {}
        self._ended: deque[Facts] = deque(maxlen=ENDED)
        self.forgotten: dict[str, float] = {}  # sessions that were logged out → when they would have ended (Unix time)
        self._peers = Peers(self._asked) if several else None
        self._store: tuple[str, Store] | None = None
        self._over = threading.Event()

    def begin(self, relay: Relay) -> None:
        """A call begins."""
        with self._lock:
            self._running[relay.call.id] = Running(relay)
        if self._peers:
            self._peers.open()

    def end(self, call: Call) -> None:
        """A call has ended; those that no target was looked for were never begun."""
        with self._lock:
            running = self._running.pop(call.id, None)
        if running is not None:
            facts = running.facts(ended=True)
            with self._lock:
                self._ended.append(facts)

    def close(self) -> None:
        """The process ends."""
        self._over.set()
        if self._peers:
            self._peers.close()
        if self._store:
            self._store[1].close()

    def pause(self, seconds: float) -> None:
        """Waits; the process's end wakes."""
        self._over.wait(seconds)

    def store(self, database: str) -> Store:
        """The call log, opened when it is first looked at. Raises StoreLost."""
        with self._lock:
            if self._store is None or self._store[0] != database:
                self._store = database, open_store(database)
            return self._store[1]

    def calls(self, viewer: str | None) -> list[Facts]:
        """All workers' calls, newest first; `viewer`: a key's name, None for all."""
        answers = self._everywhere({"do": "calls", "viewer": viewer})
        return sorted((facts for answer in answers for facts in answer), key=lambda facts: -float(facts["at"]))[:SHOWN]

    def stop(self, id: str, viewer: str | None) -> bool:
        """Ends a call's connection to its client, and so the call; False when there is none of that key."""
        return any(self._everywhere({"do": "stop", "id": id, "viewer": viewer}))

    def forget(self, session: str, until: float) -> None:
        """A session that was logged out is refused from now on, by all workers."""
        self._everywhere({"do": "forget", "id": session, "until": until})

    def listen(self) -> None:
        """Other workers can reach this one from now on."""
        if self._peers:
            self._peers.open()

    def _everywhere(self, question: Facts) -> list[Any]:
        return [self._asked(question), *(self._peers.ask(question) if self._peers else ())]

    def _asked(self, question: Mapping[str, Any]) -> Any:
        verbs: Mapping[str, Callable[[Mapping[str, Any]], Any]]
        verbs = {"calls": self._own, "stop": self._stop, "forget": self._forget}
        return verbs[question["do"]](question)

    def _own(self, question: Mapping[str, Any]) -> list[Facts]:
        viewer = question["viewer"]
        with self._lock:
            running, ended = list(self._running.values()), list(self._ended)
        found = [*(each.facts() for each in running[-SHOWN:]), *ended]
        return [facts for facts in found if viewer in (None, facts["key_name"])]

    def _stop(self, question: Mapping[str, Any]) -> bool:
        with self._lock:  # a call that ends now waits: its connection may be another call's a moment later
            running = self._running.get(question["id"])
            if running is None or question["viewer"] not in (None, running.call.key_name):
                return False
            try:
                socket.socket.shutdown(running.handler.request, socket.SHUT_RDWR)
            except OSError:
                return False  # its client has gone already
            return True

    def _forget(self, question: Mapping[str, Any]) -> None:
        now = time.time()
        with self._lock:
            self.forgotten = {name: until for name, until in self.forgotten.items() if until > now}
            self.forgotten[question["id"]] = question["until"]


class Peers:
    """The other workers of this proxy, by their sockets: one question and one answer a connection, in JSON."""

    def __init__(self, asked: Callable[[Mapping[str, Any]], Any]) -> None:
        self._asked = asked
        self._lock = threading.Lock()  # guards the opening
        self._listening: socket.socket | None = None
        self._broken = False  # there is no folder: this worker shows its own calls alone
        self._folder = Path(tempfile.gettempdir()) / f"mooltiproxy-{os.getuid()}-{os.getppid()}"
        self._own = self._folder / str(os.getpid())

    def open(self) -> None:
        """Listens, once."""
        if self._listening is not None or self._broken:
            return
        with self._lock:
            if self._listening is not None or self._broken:
                return
            try:
                self._listening = self._opened()
            except OSError as fault:
                self._broken = True
                logger.error("the console shows the calls of one worker at a time: %s", fault)
                return
        threading.Thread(target=self._serve, args=(self._listening,), name="console", daemon=True).start()

    def _opened(self) -> socket.socket:
        self._private_folder()
        made = self._folder / f".{self._own.name}"
        for path in (made, self._own):
            path.unlink(missing_ok=True)  # of a process that had this id before
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(made))
        listening.listen(16)
        made.rename(self._own)  # it has its name once it answers: who cannot be connected is taken for gone
        return listening

    def _private_folder(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(f"{self._folder} is not a folder of this user alone")

    def _serve(self, listening: socket.socket) -> None:
        while True:
            try:
                with listening.accept()[0] as conn:
                    conn.settimeout(PATIENCE_S)
                    conn.sendall(json.dumps(self._asked(json.loads(_read(conn)))).encode())
            except (OSError, ValueError, KeyError) as fault:
                if self._listening is None:
                    return
                logger.debug("another worker's question: %s", fault)

    def ask(self, question: Facts) -> list[Any]:
        """The answers of all others that do answer."""
        answers = []
        for other in self._folder.glob("[0-9]*") if self._listening is not None else ():
            if other == self._own:
                continue
            try:
                with socket.socket(socket.AF_UNIX) as conn:
                    conn.settimeout(PATIENCE_S)
                    conn.connect(str(other))
                    conn.sendall(json.dumps(question).encode())
                    conn.shutdown(socket.SHUT_WR)
                    answers.append(json.loads(_read(conn)))
            except ConnectionRefusedError:
                other.unlink(missing_ok=True)  # that worker has ended
            except (OSError, ValueError) as fault:
                logger.warning("worker %s does not tell its calls: %s", other.name, fault)
        return answers

    def close(self) -> None:
        """Takes the socket away; the last one takes the folder."""
        listening, self._listening = self._listening, None
        if listening is None:
            return
        listening.close()
        self._own.unlink(missing_ok=True)
        try:
            self._folder.rmdir()
        except OSError:
            logger.debug("other workers are still in %s", self._folder)


def _read(conn: socket.socket) -> bytes:
    parts = []
    while part := conn.recv(64 * 1024):
        parts.append(part)
    return b"".join(parts)
