"""`records.calls`: the call log. While a call runs this is a list of the pieces that pass; all else happens after its end.

What has ended waits in a bounded queue. One thread sends it, some together, to a process of its own (`writer.py`), which makes
rows and writes them: reading bodies takes as long as relaying them, and would take turns with the calls in here. The thread and
the process end when nothing comes any more. While the database is away calls wait here; what finds no room is dropped, counted
and told in the log. With `required` calls are refused then.
"""

from __future__ import annotations

import json
import logging
import marshal
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import requests

from proxy.answers import field_of, kind_of, overhear
from proxy.call import Call
from proxy.config import Cerbere, Config, System, Target
from proxy.errors import ConfigError, ProxyError
from proxy.records.rows import OF_CALL, OF_TAKEN, Taken
from proxy.records.store import StoreLost, open_store
from proxy.translate import Endpoint

if TYPE_CHECKING:
    from proxy.relay import Relay

logger = logging.getLogger(__name__)

WAITING = 10_000  # calls that have ended and are not written yet, at most
WAITING_BYTES = 128 * 1024 * 1024  # of their bodies, at most
FOLDED = 16  # a body is held up to so many times body_limit: of a stream most is framing
GATHER_S = 0.2  # calls that end within this time are written together
GROUP = 400  # at most so many at once
IDLE_S = 300.0  # without a call, until the thread and its process end
CLOSING_S = 20.0  # the longest wait for what is not written yet, unless the database is away
SIZE = 4  # bytes that tell a frame's length
OWN = ("/mooltiproxy/", "/console", "/metrics")  # the proxy's own pages: looking at them is no call


class Tape:
    """What passes in one call; `limit` bytes of each body, else nothing of it."""

    def __init__(self, relay: Relay, limit: int) -> None:
        self.relay, self._limit = relay, limit
        self._told: list[bytes] = []
        self._times: list[float] = []  # monotonic, when each of them went
        self._got: list[bytes] | None = None  # None: what the client gets
        self._sizes = [0, 0]
        self._sent: bytes | None = None
        self._coding = self._got_kind = ""
        self._reached = False
        relay.reply.heard = (*relay.reply.heard, self._hear)
        relay.meets = (*relay.meets, self._meet)

    def _hear(self, piece: bytes) -> None:
        self._sizes[0] += len(piece)
        if self._sizes[0] <= self._limit:
            self._told.append(bytes(piece))
            self._times.append(monotonic())

    def _overhear(self, piece: bytes) -> None:
        self._sizes[1] += len(piece)
        if self._got is not None and self._sizes[1] <= self._limit:
            self._got.append(bytes(piece))

    def _meet(self, endpoint: Endpoint, asked: requests.PreparedRequest, answer: requests.Response) -> None:
        """A backend answers. What an earlier attempt met is forgotten."""
        raw = cast(Any, answer.raw)
        body = asked.body
        self._reached, self._got, self._sizes[1] = True, None, 0
        self._sent = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else None
        self._coding = (field_of(raw.fields, "content-encoding") or "").lower()
        if endpoint.mapped or self.relay.changes:
            self._got, self._got_kind = [], kind_of(raw.fields)
            overhear(raw, self._overhear)

    def taken(self, call: Call, at: float, total_ms: float) -> Taken:
        """All of it, once the call has ended."""
        asked = self.relay.raw if self.relay.raw is not None or self.relay.request.body.length != 0 else b""
        asked = asked if asked is None or len(asked) <= self._limit else None
        told = b"".join(self._told) if self._sizes[0] <= self._limit else None
        got = told if self._got is None else b"".join(self._got) if self._sizes[1] <= self._limit else None
        sent = asked if self._sent == asked else self._sent if len(self._sent or b"") <= self._limit else None
        coding = self._coding if self._got is None and call.status < 400 else ""
        headers = self.relay.request.headers
        made = Taken(call, at, total_ms, headers, asked, sent, got, told, coding, self._got_kind, self._reached)
        made.tokens = (call.tokens_in, call.tokens_out)
        if told and call.streams:
            made.pieces = self._times, list(map(len, self._told))
        return made

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        return min(self._sizes[0], self._limit) + min(self._sizes[1], self._limit) + len(self._sent or b"") + 2048


class Child:
    """The process that writes. Its standard input gets frames: whose calls they are, then calls; a line answers each."""

    def __init__(self, config: Config) -> None:
        here = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from proxy.records.writer import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is for us: the process ends when we do, after it has written the rest
        )
        assert config.records
        self._config = config
        self._secrets: dict[str, frozenset[str]] = {}
        self._send(config.records.calls)

    def write(self, batch: Sequence[Taken], tell: Any) -> bool:
        """Has calls written, however long it takes; False when the process has died of them. `tell` gets what it says."""
        try:
            secrets = {name: frozenset(target.secrets) for name, target in self._config.targets.items()}
            if secrets != self._secrets:  # a target may have a new key
                self._secrets = secrets
                targets = {name: Target(name, "", secrets=set(known)) for name, known in secrets.items()}
                self._send(Config(System(), Cerbere(), targets, "", master_key=self._config.master_key))
            self._send([(OF_CALL(taken.call), OF_TAKEN(taken)) for taken in batch])
            assert self._process.stdout
            for line in self._process.stdout:
                told = json.loads(line)
                if told == "done":
                    return True
                tell(told)
        except (OSError, ValueError) as fault:
            logger.debug("the call log's process does not answer: %s", fault)
        return False

    def _send(self, value: Any) -> None:
        assert self._process.stdin
        try:
            data = marshal.dumps(value)  # in half of the time
        except ValueError:  # a configuration, or a call with something that is more than a plain value
            data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.write(len(data).to_bytes(SIZE, "big") + data)
        self._process.stdin.flush()

    def close(self) -> None:
        """Ends it: everything that it got is written."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError as fault:
                    logger.debug("the call log's process had ended already: %s", fault)
        self._process.wait()


class CallLog:
    """The record; see the module. The lock guards the queue, the counts, and who works. `dropped`: calls that are in no log."""

    def __init__(self, config: Config) -> None:
        assert config.records
        assert config.records.calls
        self._config, self._kept = config, config.records.calls
        self._limit = FOLDED * self._kept.body_limit
        self._running: dict[str, Tape] = {}  # by call; each is put in and taken out by its own thread
        self._queue: deque[tuple[Taken, int]] = deque()
        self._held = self._held_bytes = 0  # of calls that have ended and are not written
        self._works = self._idles = self._hurries = False
        self._changed = threading.Condition()
        self._child: Child | None = None  # the thread's
        self._is_lost = False
        self.dropped = 0
        self._try_out()

    def _try_out(self) -> None:
        """A database that cannot be had is a fault of the start if it is a file, or `required`; connections are made later."""
        try:
            open_store(self._kept.database).close()
        except ConfigError as fault:
            raise ConfigError([f"records.calls.database: {line}" for line in fault.faults]) from None
        except StoreLost as fault:
            if self._kept.required or self._kept.database.startswith("sqlite:"):
                raise ConfigError([f"records.calls.database: {fault}"]) from None
            logger.warning("the call log cannot be written now, and waits: %s", fault)

    # --- while calls run
    def begin(self, relay: Relay) -> None:
        """Listens to a call. Raises ProxyError (503) when it must be kept and could not be."""
        full = self._held + len(self._running) >= WAITING or self._held_bytes >= WAITING_BYTES
        if self._kept.required and (self._is_lost or full):
            message = "calls cannot be recorded at the moment, and here they must be: try again later"
            raise ProxyError(message, status=503, code="not_recorded", headers=[("retry-after", "5")])
        self._running[relay.call.id] = Tape(relay, self._limit)

    def end(self, call: Call) -> None:
        """Has a call written, a refused one too."""
        tape = self._running.pop(call.id, None)
        if tape is None and (call.error is None or call.path.startswith(OWN)):
            return
        elapsed_s = call.elapsed_s()
        at = time.time() - elapsed_s
        taken = tape.taken(call, at, elapsed_s * 1000) if tape else Taken(call, at, elapsed_s * 1000, {}, b"", told=b"")
        size = tape.size if tape else 1024
        with self._changed:
            room = WAITING if tape else WAITING // 2  # whoever is refused at the door cannot take the place of others
            if self._held >= room or self._held_bytes + size > WAITING_BYTES:
                self.dropped += 1
                return
            self._queue.append((taken, size))
            self._held += 1
            self._held_bytes += size
            if self._idles:
                self._changed.notify_all()
            if self._works:
                return
            self._works = True
        threading.Thread(target=self._work, name="calls", daemon=True).start()

    def close(self) -> None:
        """Waits until what has ended is written, not forever: the thread goes on as long as the process."""
        with self._changed:
            self._hurries = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._works or self._is_lost, CLOSING_S)
            if self._works:
                logger.warning("%d calls still wait to be written into the call log", self._held)
            self._hurries = False

    # --- the thread
    def _work(self) -> None:
        while batch := self._next():
            try:
                self._write([taken for taken, _ in batch])
            except Exception:
                self._drop(len(batch), "an error of the proxy itself")
                logger.exception("the call log failed")
            with self._changed:
                self._held -= len(batch)
                self._held_bytes -= sum(size for _, size in batch)

    def _next(self) -> list[tuple[Taken, int]]:
        """What is to be written together; nothing when the thread is to end."""
        with self._changed:
            self._idles = True
            self._changed.wait_for(lambda: self._queue or self._hurries, IDLE_S)
            self._idles = False
            if self._queue:
                self._changed.wait_for(lambda: self._hurries, GATHER_S)
            batch = [self._queue.popleft() for _ in range(min(GROUP, len(self._queue)))]
            if batch:
                return batch
        if self._child is not None:
            self._child.close()
            self._child = None
        with self._changed:
            self._works = bool(self._queue)  # something came in between
            self._changed.notify_all()
        return self._next() if self._works else []

    def _write(self, batch: list[Taken]) -> None:
        """A process that dies is started anew, once: what it had written is not written twice."""
        for _ in range(2):
            self._child = self._child or Child(self._config)
            if self._child.write(batch, self._told):
                return
            self._child.close()
            self._child = None
        self._drop(len(batch), "the process that writes them died twice")

    def _told(self, said: dict[str, Any]) -> None:
        """What the process says: that the database is away, or back, or that a call was dropped."""
        if "lost" in said:
            with self._changed:
                self._is_lost = True
                self._changed.notify_all()
            logger.error("the call log cannot be written, calls wait: %s", said["lost"])
        elif "back" in said:
            self._is_lost = False
            logger.warning("the call log is written again; %d calls were dropped", self.dropped)
        elif "dropped" in said:
            self._drop(1, said["dropped"])
        else:
            logger.warning("%s", said.get("warning"))

    def _drop(self, count: int, why: str) -> None:
        with self._changed:
            self.dropped += count
        logger.warning("%d calls are not in the call log: %s", count, why)
