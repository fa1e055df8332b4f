"""Streams that nothing reads or changes: one thread moves the bytes of all of them, waiting on both ends at once.

A handler's thread hands over the backend's body and the client's socket and sleeps until the end. A thousand streams then
wake one thread, not a thousand. Linux only (epoll), and plain sockets only: elsewhere the handler's thread relays by itself.

Of a job: the backend is read only while nothing waits to be sent, so a client that reads slowly slows its backend down, and
nothing piles up here.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from proxy.errors import BackendError, BackendTimeout, ClientGone, ProxyError
from proxy.http1 import LAST_CHUNK, ProtocolError, enchunk

if TYPE_CHECKING:
    from proxy.adapters.exchange import Body

logger = logging.getLogger(__name__)

AVAILABLE = hasattr(select, "epoll")
PIECE = 64 * 1024
TAIL = 2048  # bytes of a stream's end that are kept for the log
STALL_S = 60.0  # a client that takes nothing for so long has gone
LOOK_S = 1.0  # how often silence is looked for


def suits(body: Body, client: socket.socket) -> bool:
    """Whether the pump can take a stream over: both ends plain sockets, and an epoll."""
    conn = body.conn
    return AVAILABLE and conn is not None and not conn.encrypted and not isinstance(client, ssl.SSLSocket)


class Job:
    """One stream: where it comes from, where it goes, what still has to be sent."""

    def __init__(self, body: Body, client: socket.socket, chunked: bool) -> None:
        assert body.conn is not None
        self.body, self.client, self.chunked = body, client, chunked
        self.backend = body.conn.sock
        self.source, self.sink = self.backend.fileno(), client.fileno()
        self.tail = b""
        self.waiting = b""  # what the client has not taken yet
        self.last = time.monotonic()  # when something moved
        self.fault: ProxyError | None = None
        self.over = False
        self.leave: Callable[[int], None] | None = None  # takes a file descriptor out of the epoll
        self.ended = threading.Lock()
        self.ended.acquire()

    def take(self, data: bytes) -> None:
        """Bytes of the backend's (b"": its end) → bytes for the client, sent as far as it takes them."""
        self.last = time.monotonic()
        piece = self.body.take(data)
        self.tail = (self.tail + piece)[-TAIL:]
        out = enchunk(piece) if piece and self.chunked else piece
        if self.chunked and self.body.conn is None:
            out += LAST_CHUNK
        self.waiting += out
        self.flush()

    def flush(self) -> None:
        """Sends what waits, as far as the client takes it. Raises ClientGone."""
        if not self.waiting:
            return
        try:
            sent = self.client.send(self.waiting, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as fault:
            raise ClientGone("the client closed the connection") from fault
        self.last = time.monotonic()
        self.waiting = self.waiting[sent:]

    @property
    def done(self) -> bool:
        """All of the body has come, and all of it has gone."""
        return self.body.conn is None and not self.waiting


class Pump:
    """One per worker; its thread starts with the first stream. A job is its handler's until it has arrived, then the pump's
    thread's, which alone touches the epoll, until it has ended. The lock guards the start of the thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_w.setblocking(False)
        self._started = False
        self._arrived: deque[Job] = deque()
        self._jobs: dict[int, Job] = {}  # by both file descriptors

    def run(self, body: Body, client: socket.socket, chunked: bool) -> bytes:
        """Relays the rest of a body to its end, and the last chunk; the body's last bytes. Raises BackendError, ClientGone."""
        job = Job(body, client, chunked)
        conn = body.conn
        assert conn is not None
        data, conn.buffer = conn.buffer, b""
        if data:  # read already, together with what went before
            self._step(job, data)
        if not job.over:
            self._hand_over(job)
            job.ended.acquire()
        if job.fault is not None:
            body.close()
            if job.waiting and not isinstance(job.fault, ClientGone):  # what is told next must not stand inside a chunk
                try:
                    client.sendall(job.waiting)
                except OSError:
                    raise ClientGone("the client does not read its answer") from None
            raise job.fault
        return job.tail

    def _hand_over(self, job: Job) -> None:
        with self._lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._loop, args=(select.epoll(),), name="pump", daemon=True).start()
        self._arrived.append(job)
        with contextlib.suppress(BlockingIOError):  # full: the pump is awake already
            self._wake_w.send(b".")

    def _loop(self, epoll: select.epoll) -> None:
        epoll.register(self._wake_r, select.EPOLLIN)
        looked = time.monotonic()
        while True:
            for fd, events in epoll.poll(LOOK_S, 256):
                try:
                    self._serve(fd, events, epoll)
                except Exception:  # the other streams go on
                    logger.exception("an error of the proxy itself in a stream")
            now = time.monotonic()
            if now - looked >= LOOK_S:
                looked = now
                for job in list(self._jobs.values()):
                    self._check_time(job, now)

    def _serve(self, fd: int, events: int, epoll: select.epoll) -> None:
        job = self._jobs.get(fd)
        if fd == self._wake_r.fileno():
            self._welcome(epoll)
        elif job is None or job.over:
            return
        elif fd == job.source:
            self._read(job, epoll)
        elif events & (select.EPOLLHUP | select.EPOLLRDHUP | select.EPOLLERR):
            self._end(job, ClientGone("the client closed the connection"))
        else:
            self._write(job, epoll)

    def _welcome(self, epoll: select.epoll) -> None:
        self._wake_r.recv(4096)
        while self._arrived:
            job = self._arrived.popleft()
            job.leave = partial(self._leave, epoll=epoll)
            self._jobs[job.sink] = job
            epoll.register(job.sink, select.EPOLLRDHUP | (select.EPOLLOUT if job.waiting else 0))
            if job.body.conn is not None:
                self._jobs[job.source] = job
                job.body.at_end = partial(self._leave, job.source, epoll)
                epoll.register(job.source, 0 if job.waiting else select.EPOLLIN)

    def _read(self, job: Job, epoll: select.epoll) -> None:
        try:
            data = job.backend.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:  # a reset is no end
            self._end(job, BackendError("the backend broke off its answer"))
            return
        self._step(job, data)
        if job.waiting and not job.over:  # the client is slow: no more until it has taken this
            if job.body.conn is not None:
                epoll.modify(job.source, 0)
            epoll.modify(job.sink, select.EPOLLOUT | select.EPOLLRDHUP)

    def _write(self, job: Job, epoll: select.epoll) -> None:
        self._step(job, None)
        if not job.waiting and not job.over:
            epoll.modify(job.sink, select.EPOLLRDHUP)
            epoll.modify(job.source, select.EPOLLIN)

    def _step(self, job: Job, data: bytes | None) -> None:
        """Takes bytes of the backend's, or only sends on. A fault of one stream ends that stream alone."""
        try:
            if data is None:
                job.flush()
            else:
                job.take(data)
            if job.done:
                self._end(job, None)
        except ProxyError as fault:
            self._end(job, fault)
        except ProtocolError:
            self._end(job, BackendError("the backend broke off its answer"))
        except Exception:
            logger.exception("an error of the proxy itself in a stream")
            self._end(job, BackendError("the proxy failed in the middle of the stream", status=500))

    def _check_time(self, job: Job, now: float) -> None:
        silent_s = now - job.last
        if job.over:
            return
        if job.waiting and silent_s > STALL_S:
            self._end(job, ClientGone("the client does not read its answer"))
        elif not job.waiting and silent_s > job.body.timeout_s:
            self._end(job, BackendTimeout("the backend fell silent"))

    def _end(self, job: Job, fault: ProxyError | None) -> None:
        job.over, job.fault = True, fault
        job.body.at_end = None
        if job.leave is not None:
            job.leave(job.sink)
            if job.body.conn is not None:
                job.leave(job.source)
        job.ended.release()

    def _leave(self, fd: int, epoll: select.epoll) -> None:
        """A file descriptor is no longer ours: it may serve another stream from now on."""
        if self._jobs.pop(fd, None) is not None:
            epoll.unregister(fd)
