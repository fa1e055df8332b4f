"""One call: who asked what of whom, when what happened, and the client that waits for it."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from proxy.errors import BackendTimeout, ClientGone
from proxy.turns import Turn

HAS_POLL = hasattr(select, "poll")
WAITED_READ, WAITED_WRITE = (select.POLLIN, select.POLLOUT) if HAS_POLL else (1, 4)
DONT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)
GONE = getattr(select, "POLLRDHUP", 0)  # Linux: the peer has ended its side, whatever is still unread


@dataclass
class Call:
    """The facts of one call, filled in as it goes; gates decide on them, records write them."""

    method: str
    path: str  # without the query
    query: str
    client: str  # the address that counts for bans and limits
    front: str = "openai"
    id: str = field(default_factory=lambda: os.urandom(14).hex())
    started: float = field(default_factory=time.monotonic)
    now: int = field(default_factory=lambda: int(time.time()))  # Unix seconds
    key_name: str | None = None
    target: str | None = None
    model_asked: str | None = None
    model_served: str | None = None
    streams: bool = False
    status: int = 0
    error_source: str | None = None
    error: str | None = None
    first_byte_s: float | None = None  # after `started`
    tokens_in: int | None = None
    tokens_out: int | None = None
    cache: str | None = None  # hit miss off, where the target has one
    tokens_cached: int | None = None  # of tokens_in
    cost: float | None = None  # US dollars, where there are prices
    tags: tuple[str, ...] = ()  # of the key
    lost: tuple[str, ...] = ()
    attempts: tuple[str, ...] = ()  # that failed: "target cause"
    waits: Waiting | None = None
    conversation: str | None = None  # that it belongs to, where somebody said so
    title: str | None = None  # of that conversation
    about: str | None = None  # the conversation that it sums up, without being part of it

    def elapsed_s(self) -> float:
        """Seconds since the request's header was read."""
        return time.monotonic() - self.started


class Waiting:
    """Waits on a backend's socket and the client's at once, so that a client that leaves ends the wait.

    `tick`, when set, is called after every `tick_s` seconds of waiting and may speak to the client.
    """

    def __init__(self, client: socket.socket | None, turn: Turn | None = None, encrypted: bool = False) -> None:
        self._client = client
        self._turn = turn
        self._encrypted = encrypted
        self.tick: Callable[[], None] | None = None
        self.tick_s = 10.0
        self.queued: Callable[[str, int], None] = lambda target, by: None  # hears +1 when it joins a target's queue, then -1

    def wait(self, backend: socket.socket, write: bool, until: float) -> None:
        """Returns when the backend's socket is ready. Raises ClientGone, or BackendTimeout at `until` (monotonic)."""
        ready = self._poll if HAS_POLL else self._select
        next_tick = time.monotonic() + self.tick_s if self.tick else until
        while True:
            now = time.monotonic()
            if now >= until:
                raise BackendTimeout("the backend did not answer in time")
            if self.tick and now >= next_tick:
                self.tick()
                next_tick = now + self.tick_s
            with self.pausing():
                found = ready(backend, write, min(until, next_tick) - now)
            if found:
                return

    def step_aside(self) -> None:
        """From here on the call computes without a turn: something in it may take long, and others must not wait for it."""
        if self._turn:
            self._turn.give()

    def pausing(self) -> AbstractContextManager[None]:
        """Around what may block: the call's turn at computing is somebody else's meanwhile."""
        return self._turn or nullcontext()

    def look(self) -> None:
        """Raises ClientGone when the client has left, where the system can tell at once."""
        if hasattr(select, "poll") and self._poller().poll(0):
            self._look_at_client()

    def _poller(self) -> select.poll:
        poller = select.poll()
        if self._client is not None:
            poller.register(self._client, GONE if self._encrypted and GONE else WAITED_READ | GONE)
        return poller

    def _poll(self, backend: socket.socket, write: bool, timeout_s: float) -> bool:
        poller, fd = self._poller(), backend.fileno()
        poller.register(fd, WAITED_WRITE if write else WAITED_READ)
        ready = poller.poll(timeout_s * 1000 + 1)
        for found, _ in ready:
            if found == fd:
                return True
        if ready:
            self._look_at_client()
        return False

    def _select(self, backend: socket.socket, write: bool, timeout_s: float) -> bool:
        reading = [self._client] if self._client is not None else []
        writing = [backend] if write else []
        readable, writable, _ = select.select(reading if write else [*reading, backend], writing, [], timeout_s)
        if backend in readable or backend in writable:
            return True
        if readable:
            self._look_at_client()
        return False

    def _look_at_client(self) -> None:
        """Nothing to read means that the client has gone; bytes are a pipelined request: stop watching."""
        assert self._client is not None
        if self._encrypted and GONE:
            raise ClientGone("the client closed the connection")
        try:
            waiting = socket.socket.recv(self._client, 1, socket.MSG_PEEK | DONT_WAIT)
        except BlockingIOError:
            return
        except OSError:
            waiting = b""
        if not waiting:
            raise ClientGone("the client closed the connection")
        if GONE:
            self._encrypted = True  # only its end counts from now on
        else:
            self._client = None
