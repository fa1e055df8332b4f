"""A worker's way to the memory engine that its supervisor runs (`service.py`): the same State, a round trip away."""

from __future__ import annotations

import contextlib
import itertools
import math
import secrets
import select
import socket
import struct
import threading
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from proxy.state import Plan, StateLost, Verdict
from proxy.state.frames import DATA_LIMIT, READ, frame, mark_of, packed, unframe

if TYPE_CHECKING:
    from proxy.state.service import Service

PATIENCE_S = 2.0  # for the service's answer


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


class RemotePlace:
    """A worker's ticket: its place in a queue at the supervisor. While it waits, its connection is its own; `link` is None once
    it need not wait."""

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

    def queue(self, name: str, limit: int, size: int, holder: str) -> RemotePlace | None:
        """See State."""
        ticket = f"{holder} {next(self._tickets)}"
        with self.used() as link:
            granted, _ = link.ask(["queue", name, limit, size, ticket])
            link.waits = granted is False
        return None if granted is None else RemotePlace(self, link if link.waits else None, ticket)

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
