"""The memory engine for several workers: the supervisor runs it, and the workers (`client.py`) ask over a Unix socket.

A question is `[verb, arguments…]`; its answer is one JSON value; the verbs that only give back (SILENT) have none.
`queue` answers a second time, `true`, when the turn has come. What cannot be read as such ends the connection, and nothing
else. What a worker holds is given back when its last connection has gone.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import selectors
import shutil
import socket
import struct
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from proxy.process import file_limit
from proxy.state import Plan
from proxy.state.frames import DATA_LIMIT, MALFORMED, READ, Marks, frame, unframe, unpacked
from proxy.state.memory import Memory, Place
from proxy.state.money import GROUP_S, Money

logger = logging.getLogger(__name__)

BACKLOG = 1024
PLANS = 10_000  # that are remembered as they were read
PEER = struct.Struct("3i")  # pid, uid, gid: Linux's struct ucred


class Owner:
    """A worker, as the service sees it: its connections and what it holds."""

    def __init__(self) -> None:
        self.connections = 0
        self.holders: set[str] = set()
        self.places: dict[str, tuple[Place, Connection]] = {}  # and where its holder waits


class Connection:
    """One connection of a worker."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.read = bytearray()
        self.unsent = bytearray()
        self.owner: Owner | None = None


class Service:
    """Single-threaded: `turn` waits for what workers ask, and answers it. Made before the fork, `listen` too."""

    def __init__(self, money: Money | None = None) -> None:
        self.marks = Marks()
        self.address = ""
        self._money = money
        self._memory = Memory(money, marked=self.marks.marked)
        self._folder: str | None = None
        self._selector: selectors.BaseSelector | None = None
        self._flush_at = math.inf
        self._owners: dict[str, Owner] = {}
        self._plans: dict[bytes, Plan] = {}  # as they are sent → as they are

    def listen(self) -> None:
        """Opens the socket: of this user alone, without a file where the system can do that (Linux)."""
        if sys.platform == "linux":
            self.address = f"\0mooltiproxy-{secrets.token_hex(16)}"
        else:
            self._folder = tempfile.mkdtemp(prefix="mooltiproxy-")  # 0700
            self.address = os.path.join(self._folder, "state")
        file_limit()  # raises it: who waits in a queue has a connection
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(self.address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ)

    def also(self, wakes: socket.socket) -> None:
        """`turn` ends, too, when that socket has something to read, which is thrown away."""
        assert self._selector is not None
        self._selector.register(wakes, selectors.EVENT_READ, wakes)

    def turn(self, timeout_s: float | None = None) -> bool:
        """Waits for the next questions, up to `timeout_s`, and answers them; writes what was spent. Whether what was told to
        `also` had something to read."""
        assert self._selector is not None
        woken = False
        left_s = min(math.inf if timeout_s is None else timeout_s, self._flush_at - time.monotonic())
        for key, events in self._selector.select(None if left_s == math.inf else max(0.0, left_s)):
            if isinstance(key.data, Connection):
                self._serve(key.data, events)
            elif key.data is not None:
                woken = bool(key.data.recv(READ))
            else:
                self._accept(key.fileobj)
        if self._money is not None and self._money.is_dirty:
            now = time.monotonic()
            if now >= self._flush_at:
                self._money.flush()
            self._flush_at = math.inf if now >= self._flush_at else min(self._flush_at, now + GROUP_S)
        return woken

    def abandon(self) -> None:
        """In a worker, after the fork: what was inherited is closed, without touching what the supervisor waits for."""
        if self._selector is not None:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()
            self._selector.close()
            self._selector = None

    def close(self) -> None:
        """What was spent is on disk, the socket is gone."""
        self.abandon()
        self._memory.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    # --- connections
    def _accept(self, listening: Any) -> None:
        assert self._selector is not None
        try:
            sock, _ = listening.accept()
        except OSError as fault:
            logger.warning("cannot accept a worker's connection: %s", fault)
            return
        if not _is_ours(sock):
            logger.warning("another user's process asked for the shared state: refused")
            sock.close()
            return
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, Connection(sock))

    def _serve(self, connection: Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                data = connection.sock.recv(READ)
                if not data:
                    self._end(connection)
                    return
                connection.read += data
                self._answer(connection)
            if events & selectors.EVENT_WRITE:
                self._send(connection, b"")
        except BlockingIOError:
            return
        except OSError as fault:
            logger.debug("a worker's connection broke: %s", fault)
            self._end(connection)
        except (*MALFORMED, RecursionError) as fault:
            logger.warning("a malformed question for the shared state: %s", fault)
            self._end(connection)

    def _answer(self, connection: Connection) -> None:
        while (found := unframe(connection.read)) is not None:
            (verb, *arguments), data, length = found
            del connection.read[:length]
            if connection.owner is None and verb != "hello":
                raise ValueError("a connection begins with hello")
            answer, more = VERBS[verb](self, connection, data, *arguments)
            if verb not in SILENT:
                self._send(connection, frame(answer, more))

    def _send(self, connection: Connection, data: bytes) -> None:
        """What the socket does not take now is sent when it can be."""
        assert self._selector is not None
        waited = bool(connection.unsent)
        connection.unsent += data
        with contextlib.suppress(BlockingIOError):
            sent = connection.sock.send(connection.unsent)
            del connection.unsent[:sent]
        if len(connection.unsent) > 2 * DATA_LIMIT:
            raise ValueError("answers are not read")
        if bool(connection.unsent) != waited:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
            self._selector.modify(connection.sock, events, connection)

    def _end(self, connection: Connection) -> None:
        assert self._selector is not None
        self._selector.unregister(connection.sock)
        connection.sock.close()
        owner = connection.owner
        if owner is None:
            return
        owner.connections -= 1
        gone = not owner.connections
        for ticket, (place, waits) in list(owner.places.items()):
            if gone or (waits is connection and not place.granted):
                del owner.places[ticket]
                place.leave()
        if gone:
            self._owners = {name: other for name, other in self._owners.items() if other is not owner}
            for holder in owner.holders:
                self._memory.settle(holder)

    # --- verbs: (connection, data, arguments) → the answer and its data
    def _hello(self, connection: Connection, data: bytes, owner: str) -> Answer:
        if connection.owner is None:
            connection.owner = self._owners.setdefault(owner, Owner())
            connection.owner.connections += 1
        return None, b""

    def _admit(self, connection: Connection, data: bytes, holder: str, amounts: list[int]) -> Answer:
        plan = self._plans.get(data) or self._planned(data)
        if not isinstance(holder, str) or len(amounts) != len(plan.charged):
            raise ValueError("a name is wanted, and an amount for each charge")
        refused, retry_after_s, left, reset_s, place = self._memory.admit(holder, plan, amounts)
        if refused < 0 and plan.settles:
            _owner(connection).holders.add(holder)
        return place, array("d", (refused, retry_after_s, *left, *reset_s)).tobytes()

    def _planned(self, data: bytes) -> Plan:
        if len(self._plans) >= PLANS:
            self._plans.clear()
        plan = self._plans[data] = unpacked(data)
        return plan

    def _settle(self, connection: Connection, data: bytes, holder: str, used: list[int]) -> Answer:
        self._memory.settle(holder, used)
        _owner(connection).holders.discard(holder)
        return None, b""

    def _queue(self, connection: Connection, data: bytes, name: str, limit: int, size: int, ticket: str) -> Answer:
        def wake() -> None:
            with contextlib.suppress(OSError, ValueError):  # a broken connection ends where it is read
                self._send(connection, frame(True))

        place = self._memory.queue(name, int(limit), int(size), ticket, wake)
        if place is None:
            return None, b""
        _owner(connection).places[ticket] = (place, connection)
        return place.granted, b""

    def _leave(self, connection: Connection, data: bytes, holder: str) -> Answer:
        self._memory.leave(holder)
        return None, b""

    def _give_up(self, connection: Connection, data: bytes, ticket: str) -> Answer:
        place, _ = _owner(connection).places.pop(ticket, (None, None))
        if place is not None:
            place.leave()
        return None, b""

    def _get(self, connection: Connection, data: bytes, name: str) -> Answer:
        found = self._memory.get(name)
        return found is not None, found or b""

    def _put(self, connection: Connection, data: bytes, name: str, ttl_s: float, max_bytes: int) -> Answer:
        self._memory.put(name, data, ttl_s, max_bytes)
        return None, b""

    def _plain(self, verb: str, *arguments: Any) -> Answer:
        return getattr(self._memory, verb)(*arguments), b""


Answer = tuple[Any, bytes]
PLAIN = ("fail", "rest", "resting", "trial", "forgive")
SILENT = ("settle", "leave", "give_up")  # nobody waits for these: what is asked later, wherever, is answered later
VERBS: Mapping[str, Callable[..., Answer]] = {
    **{name: getattr(Service, f"_{name}") for name in ("hello", "admit", "settle", "leave", "queue", "give_up", "get", "put")},
    "quit": Service._give_up,  # the same, answered: for who still waits
    **{name: (lambda service, connection, data, *rest, name=name: service._plain(name, *rest)) for name in PLAIN},
}


def _owner(connection: Connection) -> Owner:
    assert connection.owner is not None
    return connection.owner


def _is_ours(sock: socket.socket) -> bool:
    """Whether this user's process is at the other end, where the system says who is."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the folder is this user's alone
    uid = PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))[1]
    return bool(uid == os.getuid())
