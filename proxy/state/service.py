"""The memory engine for several workers: the supervisor runs it, and the workers ask over a Unix socket.

A message is a frame: the lengths of its two parts (two 32-bit numbers, network order), JSON, and the bytes of a cache's entry.
A question is `[verb, arguments…]`; its answer is one JSON value; the verbs that only give back (SILENT) have none.
`queue` answers a second time, `true`, when the turn has come. What cannot be read as such ends the connection, and nothing
else. What a worker holds is given back when its last connection has gone.

A page shared since before the fork has one byte per hash of a name: 0 means that no such name has failed or rests, so that a
worker need not ask.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import mmap
import os
import secrets
import select
import selectors
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from proxy.process import file_limit
from proxy.state import Budget, Claim, Line, Plan, Rate, Slot, StateLost, Verdict
from proxy.state.memory import Memory, Place
from proxy.state.money import GROUP_S, Money

logger = logging.getLogger(__name__)

HEAD = struct.Struct("!II")
JSON_LIMIT, DATA_LIMIT = 1 << 20, 1 << 28  # bytes of a frame's parts
BACKLOG = 1024
READ = 1 << 16
PATIENCE_S = 2.0  # for the service's answer
MARKS = 1 << 20  # bytes of the shared page
PLANS = 10_000  # that are remembered as they were read
PEER = struct.Struct("3i")  # pid, uid, gid: Linux's struct ucred
KINDS: Mapping[str, tuple[type[Claim], tuple[Callable[[Any], Any], ...]]] = {
    "r": (Rate, (str, int, float, bool)),
    "b": (Budget, (str, int, str)),
    "s": (Slot, (str, int)),
}
NAMES = {kind: name for name, (kind, _) in KINDS.items()}
ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
MALFORMED = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


def packed(plan: Plan) -> bytes:
    """A plan as JSON: its rates, what is charged, its slots, its line."""
    parts = (plan.rates, plan.charged, plan.slots)
    return ENCODE([*[[[NAMES[type(claim)], *claim] for claim in claims] for claims in parts], plan.line]).encode()


def unpacked(data: bytes) -> Plan:
    """The plan again. Raises one of MALFORMED."""
    *parts, line = json.loads(data)
    rates, charged, slots = ([_claim(*each) for each in claims] for claims in parts)
    return Plan(rates, charged, slots, line and Line(str(line[0]), int(line[1])))


def _claim(name: str, *values: Any) -> Any:
    kind, types = KINDS[name]
    return kind(*[of(value) for of, value in zip(types, values, strict=True)])


def frame(value: Any, data: bytes = b"") -> bytes:
    """A message."""
    text = ENCODE(value).encode()
    return HEAD.pack(len(text), len(data)) + text + data


def unframe(buffer: bytes | bytearray) -> tuple[Any, bytes, int] | None:
    """The first message in a buffer, its data and its length in all; None until it is whole. Raises ValueError."""
    if len(buffer) < HEAD.size:
        return None
    text_bytes, data_bytes = HEAD.unpack_from(buffer)
    if text_bytes > JSON_LIMIT or data_bytes > DATA_LIMIT:
        raise ValueError("a frame is too long")
    middle = HEAD.size + text_bytes
    end = middle + data_bytes
    if len(buffer) < end:
        return None
    return json.loads(buffer[HEAD.size : middle]), bytes(buffer[middle:end]), end


def mark_of(name: str) -> int:
    """The place of a name in the shared page."""
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) % MARKS


class Marks:
    """The shared page, written by the service alone."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, MARKS)
        self._counts: dict[int, int] = {}

    def marked(self, name: str, exists: bool) -> None:
        """See Memory."""
        place = mark_of(name)
        count = self._counts.pop(place, 0) + (1 if exists else -1)
        if count:
            self._counts[place] = count
        self.page[place] = 1 if count else 0


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
SILENT = (
    "settle",
    "leave",
    "give_up",
)  # nobody waits for these: what is asked later, on whatever connection, is answered later
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


class Link:
    """A worker's connection, for one thread at a time."""

    def __init__(self, address: str, owner: str) -> None:
        self._read = bytearray()
        self.waits = False  # a ticket's
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # the kernel keeps the time: no poll before each call
                self.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(PATIENCE_S), 0))
            self.sock.connect(address)
            self.ask(["hello", owner])
        except OSError:
            self.sock.close()
            raise

    def ask(self, question: Sequence[Any], data: bytes = b"") -> tuple[Any, bytes]:
        """One round trip: the answer and its data. Raises OSError, ValueError."""
        self.sock.sendall(frame(question, data))
        return self.receive()

    def receive(self) -> tuple[Any, bytes]:
        """The next answer and its data. Raises OSError, ValueError."""
        while (found := unframe(self._read)) is None:
            data = self.sock.recv(READ)
            if not data:
                raise ConnectionError("the supervisor has closed the connection")
            self._read += data
        del self._read[: found[2]]
        return found[:2]

    def is_readable(self, timeout_s: float) -> bool:
        """Whether an answer, or the end, comes in time."""
        if self._read:
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(math.ceil(timeout_s * 1000)))


class Turn:
    """A worker's ticket. While it waits, its connection is its own; `link` is None once it need not wait."""

    def __init__(self, client: Client, link: Link | None, ticket: str) -> None:
        self._client, self._link, self._ticket = client, link, ticket
        self._left = False

    def wait(self, timeout_s: float) -> bool:
        """See Ticket."""
        link = self._link
        if link is None:
            return True
        if not link.is_readable(timeout_s):
            return False
        self._link, link.waits = None, False
        with self._client.used(link):
            link.receive()
        return True

    def leave(self) -> None:
        """See Ticket."""
        if self._left:
            return
        self._left = True
        link, self._link = self._link, None
        if link is None:
            self._client.tell("give_up", self._ticket)
            return
        with self._client.used(link) as used:
            used.waits = False
            if used.ask(["quit", self._ticket])[0] is True:  # its turn came at this very moment
                used.receive()


def _lost(link: Link | None, fault: Exception) -> StateLost:
    if link is not None:
        link.sock.close()
    return StateLost(f"the supervisor does not answer: {fault}")


class Client:
    """A worker's way to the service. Made before the fork; it connects when it is first asked, a connection per thread that
    asks at the same time."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._page = service.marks.page
        self._idle: list[Link] = []
        self._lock = threading.Lock()  # guards _owner
        self._owner = ""
        self._tickets = itertools.count()

    @contextlib.contextmanager
    def used(self, link: Link | None = None) -> Iterator[Link]:
        """A connection for one exchange, kept for the next one unless a ticket waits on it. Raises StateLost."""
        try:
            link = link or self._pooled() or self._connect()
            yield link
        except (OSError, ValueError) as fault:
            raise _lost(link, fault) from fault
        if not link.waits:
            self._idle.append(link)

    def _pooled(self) -> Link | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _connect(self) -> Link:
        with self._lock:
            self._owner = self._owner or secrets.token_hex(16)
        return Link(self.service.address, self._owner)

    def _ask(self, *question: Any, data: bytes = b"") -> tuple[Any, bytes]:
        link = None
        try:
            link = self._pooled() or self._connect()
            answer = link.ask(question, data)
        except (OSError, ValueError) as fault:
            raise _lost(link, fault) from fault
        self._idle.append(link)
        return answer

    def tell(self, *question: Any) -> None:
        """A question that has no answer. Raises StateLost."""
        with self.used() as link:
            link.sock.sendall(frame(question))

    def admit(self, holder: str, plan: Plan, amounts: Sequence[int] = ()) -> Verdict:
        """See State."""
        plan.made = plan.made or packed(plan)
        place, data = self._ask("admit", holder, amounts, data=plan.made)
        told, size = array("d", data), len(plan.claims) + 2
        return Verdict(int(told[0]), told[1], [int(left) for left in told[2:size]], told[size:], place)

    def settle(self, holder: str, used: Sequence[int] = ()) -> None:
        """See State."""
        self.tell("settle", holder, used)

    def leave(self, holder: str) -> None:
        """See State."""
        self.tell("leave", holder)

    def queue(self, name: str, limit: int, size: int, holder: str) -> Turn | None:
        """See State."""
        ticket = f"{holder} {next(self._tickets)}"
        with self.used() as link:
            granted, _ = link.ask(["queue", name, limit, size, ticket])
            link.waits = granted is False
        return None if granted is None else Turn(self, link if link.waits else None, ticket)

    def fail(self, name: str, limit: int, rest_s: float | None) -> float:
        """See State."""
        return float(self._ask("fail", name, limit, rest_s)[0])

    def rest(self, name: str, rest_s: float) -> None:
        """See State."""
        self._ask("rest", name, rest_s)

    def resting(self, names: Sequence[str]) -> Mapping[str, float]:
        """See State."""
        asked = [name for name in names if self._page[mark_of(name)]]
        return self._ask("resting", asked)[0] if asked else {}

    def trial(self, name: str, within_s: float) -> bool:
        """See State."""
        return not self._page[mark_of(name)] or bool(self._ask("trial", name, within_s)[0])

    def forgive(self, name: str) -> None:
        """See State."""
        if self._page[mark_of(name)]:
            self._ask("forgive", name)

    def get(self, name: str) -> bytes | None:
        """See State."""
        found, data = self._ask("get", name)
        return data if found else None

    def put(self, name: str, data: bytes, ttl_s: float, max_bytes: int) -> None:
        """See State."""
        if len(data) <= DATA_LIMIT:
            self._ask("put", name, ttl_s, max_bytes, data=data)

    def close(self) -> None:
        """See State; what was spent is the supervisor's to keep."""
        while self._idle:
            self._idle.pop().sock.close()
