"""One HTTP/1.1 request and its answer over pooled sockets, as a requests transport adapter.

It brings what urllib3 cannot: a deadline for the whole header, the client watched while the backend thinks, answers that are
cut off told from whole ones, and a quarter of the time. Behind an outbound proxy `outbound.py` does the work.

Life of a connection: idle in the pool → request sent → header read → body read to its end → idle again. Whatever goes wrong in
between closes it. A pooled connection that the backend has closed is noticed before use, or when nothing of an answer comes:
then, and only then, the request is sent once more on a new one.
"""

from __future__ import annotations

import errno
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import certifi
import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers

from proxy.call import Waiting
from proxy.errors import BackendError, BackendTimeout, ClientGone, Unreachable
from proxy.http1 import HEAD_LIMIT, LAST_CHUNK, Dechunker, Fields, ProtocolError, body_length, enchunk, listed, parse_head

logger = logging.getLogger(__name__)

STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (.*))?")
PIECE = 64 * 1024  # bytes read at once
IDLE_CONNECTIONS = 256  # kept per target
IDLE_S = 90.0  # a connection that nobody has needed for so long is closed
FOREVER_S = 10.0**9
INTERIM_LIMIT = 20  # 1xx answers before the final one


Home = tuple[str, str, int]  # scheme, host, port


class Stale(Exception):
    """A pooled connection turned out to be closed before anything of an answer came."""


class Connection:
    """A socket to a backend, never blocking; every wait goes through a `Waiting`."""

    def __init__(self, sock: socket.socket, home: Home) -> None:
        self.sock = sock
        self.home = home
        self.used = False
        self.idle_since = 0.0  # monotonic
        self.buffer = b""  # read, but not yet understood
        self.encrypted = isinstance(sock, ssl.SSLSocket)

    def recv(self, waiting: Waiting, until: float) -> bytes:
        """The next bytes, b"" at the end. Raises BackendTimeout, ClientGone, OSError."""
        if not self.encrypted:  # nothing can be pending: ask the kernel once
            waiting.wait(self.sock, False, until)
        while True:
            try:
                return self.sock.recv(PIECE)
            except (BlockingIOError, ssl.SSLWantReadError):
                waiting.wait(self.sock, False, until)
            except ssl.SSLWantWriteError:
                waiting.wait(self.sock, True, until)

    def send(self, data: bytes, waiting: Waiting, timeout_s: float, by: float) -> None:
        """All of the data: `timeout_s` for each part that the backend takes, `by` (monotonic) for all. Raises like `recv`."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                waiting.wait(self.sock, True, min(by, time.monotonic() + timeout_s))
            except ssl.SSLWantReadError:
                waiting.wait(self.sock, False, min(by, time.monotonic() + timeout_s))

    def quiet(self) -> bool:
        """An idle connection on which nothing has come: neither an end nor bytes that nobody asked for."""
        try:
            if self.encrypted:
                self.sock.recv(1)  # takes in session tickets, which are no answer
            else:
                self.sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        self.sock.close()


class Body:
    """The payload of an answer, as it comes; `requests.Response.raw`.

    `fields` are the answer's header fields in order. At its end the connection goes back to the pool; `close` before that
    ends the connection, which is how a call is cancelled.
    """

    def __init__(
        self,
        adapter: Exchange,
        conn: Connection,
        fields: Fields,
        length: int | None,
        chunked: bool,
        keep: bool,
        waiting: Waiting,
        timeout_s: float,
    ) -> None:
        self.fields = fields
        self._adapter = adapter
        self.conn: Connection | None = conn
        self.left = length  # bytes to come; None: chunked, or until the connection ends
        self.dechunker = Dechunker() if chunked else None
        self.keep = keep  # the connection may serve again
        self.waiting = waiting
        self.timeout_s = timeout_s
        self.at_end: Callable[[], None] | None = None  # told before the connection goes back to the pool
        self.when_closed: Callable[[], None] | None = None  # told once, when the answer is done with
        self._ahead = b""
        if length == 0 and not chunked:
            self._finish(conn.buffer)

    @property
    def ended(self) -> bool:
        """Whether all of it has come off the connection."""
        return self.conn is None

    def read1(self) -> bytes:
        """The next piece, b"" at the end. Raises BackendError when the answer is cut off, BackendTimeout, ClientGone."""
        while self.conn is not None:
            conn = self.conn
            data, conn.buffer = conn.buffer, b""
            try:
                if not data:
                    data = conn.recv(self.waiting, time.monotonic() + self.timeout_s)
                piece = self.take(data)
            except (OSError, ProtocolError) as fault:
                self.close()
                raise BackendError("the backend broke off its answer") from fault
            except BaseException:
                self.close()
                raise
            if piece:
                return piece
        return b""

    def take(self, data: bytes) -> bytes:
        """What bytes from the wire (b"": its end) mean to the payload. Raises ProtocolError when the payload is cut off."""
        if not data:
            if self.left is None and self.dechunker is None:
                self.keep = False
                self._finish()
                return b""
            raise ProtocolError("the connection ended inside the body")
        if self.dechunker is not None:
            piece = self.dechunker.feed(data)
            if self.dechunker.done:
                self._finish(self.dechunker.rest)
            return piece
        if self.left is None:
            return data
        piece = data[: self.left]
        self.left -= len(piece)
        if not self.left:
            self._finish(data[len(piece) :])
        return piece

    def _finish(self, rest: bytes = b"") -> None:
        conn, self.conn = self.conn, None
        if conn is None:
            return
        if self.at_end is not None:
            self.at_end()
        if self.keep and not rest and self._adapter.give_back(conn):
            return
        conn.close()

    def close(self) -> None:
        """Ends the exchange now; the backend sees its connection closed."""
        told, self.when_closed = self.when_closed, None
        if told is not None:
            told()
        conn, self.conn = self.conn, None
        if conn is not None:
            conn.close()

    def __iter__(self) -> Iterator[bytes]:
        if self._ahead:
            piece, self._ahead = self._ahead, b""
            yield piece
        while piece := self.read1():
            yield piece

    def stream(self, amt: int = PIECE, decode_content: bool | None = None) -> Iterator[bytes]:
        """For `requests.Response.iter_content`: pieces as they come, whatever `amt` says."""
        yield from self

    def read(self, amt: int | None = None, decode_content: bool | None = None) -> bytes:
        """`amt` bytes, or fewer at the end; all of it without `amt`."""
        parts, have = [self._ahead], len(self._ahead)
        while (amt is None or have < amt) and (piece := self.read1()):
            parts.append(piece)
            have += len(piece)
        whole = b"".join(parts)
        cut = len(whole) if amt is None else amt
        self._ahead = whole[cut:]
        return whole[:cut]


class Answer(requests.Response):
    """A `requests.Response` that costs little to make: its header dictionary is built when it is first asked for."""

    raw: Body

    def __init__(self, status: int, reason: str, raw: Any, request: requests.PreparedRequest) -> None:
        self.status_code = status
        self.reason = reason
        self.raw = raw
        self.request = request
        self.url = request.url or ""
        self.history = []
        self._content = False  # type: ignore[assignment]  # requests' own mark for "not read yet"
        self._content_consumed = False
        self._next = None

    def __getattr__(self, name: str) -> Any:
        if name == "headers":
            self.headers = CaseInsensitiveDict(self.raw.fields)
            return self.headers
        if name == "encoding":
            self.encoding = get_encoding_from_headers(self.headers)
            return self.encoding
        if name in ("cookies", "elapsed", "connection"):
            return None
        raise AttributeError(name)


def waiting_of(request: requests.PreparedRequest) -> Waiting:
    """What watches the client while an adapter is at a request; it is the request's `waiting`."""
    waiting: Waiting | None = getattr(request, "waiting", None)
    return waiting or Waiting(None)


class Exchange(HTTPAdapter):
    """The adapter of one target. Thread-safe: its lock guards the pool of idle connections alone.

    connect_s, header_s: deadlines for a connection and for an answer's header once it began, in seconds. verify: True, or a
    CA file; cert: a client certificate and its key.
    """

    def __init__(
        self, connect_s: float = 3.05, header_s: float = 10.0, verify: bool | str = True, cert: tuple[str, str] | None = None
    ) -> None:
        super().__init__()
        self._connect_s, self._header_s = connect_s, header_s
        self._verify, self._cert = verify, cert
        self._lock = threading.Lock()
        self._idle: dict[Home, list[Connection]] = {}
        self._places: dict[str, tuple[Home, str]] = {}
        self._context: ssl.SSLContext | None = None
        self._closed = False

    # requests calls this; `timeout` is the read timeout per piece, in seconds.
    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, *_: Any, **__: Any
    ) -> requests.Response:
        """The answer, its body unread. Raises BackendError, BackendTimeout, ClientGone.

        `request.waiting` (a `Waiting`) watches the client; `request.first_byte_s` bounds the wait for the answer to begin.
        """
        waiting = waiting_of(request)
        read_s = float(timeout[1] if isinstance(timeout, tuple) else timeout or 30.0)
        home, path = self._place(request.url or "")
        again = not hasattr(request.body, "__next__")  # a body that streams can be sent once
        conn = self._take(home, waiting)
        while True:
            try:
                return self._exchange(conn, request, path, waiting, read_s)
            except Stale:
                conn.close()
                if not again:
                    raise Unreachable("the backend closed the connection") from None
                conn = self._new(home, waiting)  # another idle one could be as stale
            except (OSError, ProtocolError) as fault:
                conn.close()
                kind = Unreachable if isinstance(fault, OSError) else BackendError
                raise kind(f"the backend's answer could not be read: {_reason(fault)}") from fault
            except BaseException:
                conn.close()
                raise

    def _exchange(
        self, conn: Connection, request: requests.PreparedRequest, path: str, waiting: Waiting, read_s: float
    ) -> requests.Response:
        reused, conn.used = conn.used, True
        by = time.monotonic() + getattr(request, "first_byte_s", FOREVER_S)
        broken = OSError(errno.ECONNRESET, "it is empty")
        try:
            self._send_request(conn, request, path, waiting, read_s, by)
        except OSError as fault:  # what it answered before it stopped reading may still be there
            broken = fault
        try:
            conn.buffer = conn.recv(waiting, min(by, time.monotonic() + read_s))
        except OSError as fault:
            broken = fault
        if conn.buffer:
            return self._read_answer(conn, request, waiting, read_s, by)
        if reused:
            raise Stale
        raise broken

    def _send_request(
        self, conn: Connection, request: requests.PreparedRequest, path: str, waiting: Waiting, timeout_s: float, by: float
    ) -> None:
        body: Any = request.body
        lines = [f"{request.method} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        whole = isinstance(body, bytes) or body is None
        chunked = not whole and "content-length" not in request.headers
        if chunked:
            lines.append("transfer-encoding: chunked")
        elif body is not None and whole:
            lines.append(f"content-length: {len(body)}")
        elif request.method in ("POST", "PUT", "PATCH") and body is None:
            lines.append("content-length: 0")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if whole:
            conn.send(head + body if body else head, waiting, timeout_s, by)
            return
        conn.send(head, waiting, timeout_s, by)
        for piece in _of_client(body):
            if piece:
                conn.send(enchunk(piece) if chunked else piece, waiting, timeout_s, by)
        if chunked:
            conn.send(LAST_CHUNK, waiting, timeout_s, by)

    def _read_answer(
        self, conn: Connection, request: requests.PreparedRequest, waiting: Waiting, read_s: float, by: float
    ) -> requests.Response:
        header_ends = time.monotonic() + self._header_s
        for _ in range(INTERIM_LIMIT):
            block = self._read_head(conn, waiting, header_ends)
            line, fields = parse_head(block)
            match = STATUS_LINE.fullmatch(line)
            if not match:
                raise ProtocolError("it does not begin with an HTTP/1 status line")
            status = int(match[2])
            if status >= 200:
                return self._answer(conn, request, match, fields, waiting, read_s)
            if status == 101:
                raise ProtocolError("it switches protocols unasked")
            if not conn.buffer:  # the final answer may take its time
                conn.buffer = conn.recv(waiting, min(by, time.monotonic() + read_s))
            header_ends = time.monotonic() + self._header_s
        raise ProtocolError("it does not come to a final status")

    def _read_head(self, conn: Connection, waiting: Waiting, until: float) -> bytes:
        while (end := conn.buffer.find(b"\r\n\r\n")) < 0:
            if len(conn.buffer) > HEAD_LIMIT:
                raise ProtocolError("its header is too long")
            data = conn.recv(waiting, until)
            if not data:
                raise ProtocolError("it ends inside its header")
            conn.buffer += data
        if end > HEAD_LIMIT:
            raise ProtocolError("its header is too long")
        block, conn.buffer = conn.buffer[:end], conn.buffer[end + 4 :]
        return block

    def _answer(
        self,
        conn: Connection,
        request: requests.PreparedRequest,
        line: re.Match[str],
        fields: Fields,
        waiting: Waiting,
        read_s: float,
    ) -> requests.Response:
        status = int(line[2])
        named: dict[str, str] = {}
        for name, value in fields:  # a field that stands there twice is a list, which no framing field may be
            named[name] = f"{named[name]}, {value}" if name in named else value
        length = body_length(named.get("content-length"), named.get("transfer-encoding"))
        bodiless = request.method == "HEAD" or status in (204, 304)
        keep = line[1] == "1" and ("connection" not in named or "close" not in listed(named["connection"]))
        left = 0 if bodiless else length if "content-length" in named else None
        body = Body(self, conn, fields, left, length is None and not bodiless, keep, waiting, read_s)
        return Answer(status, line[3] or "", body, request)

    # --- connections
    def _place(self, url: str) -> tuple[Home, str]:
        """A URL → ((scheme, host, port), path with query); remembered, URLs being few."""
        found = self._places.get(url)
        if found is None:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            found = ((parts.scheme, parts.hostname or "", port), path)
            if len(self._places) < 1000 and len(url) <= 1000:
                self._places[url] = found
        return found

    def _take(self, home: Home, waiting: Waiting) -> Connection:
        while True:
            with self._lock:
                idle = self._idle.get(home)
                conn = idle.pop() if idle else None
            if conn is None:
                return self._new(home, waiting)
            if conn.quiet():
                return conn
            conn.close()

    def _new(self, home: Home, waiting: Waiting) -> Connection:
        with waiting.pausing():
            return self._connect(home)

    def _connect(self, home: Home) -> Connection:
        scheme, host, port = home
        try:
            sock = socket.create_connection((host, port), self._connect_s)
        except TimeoutError as fault:
            raise BackendTimeout("the backend could not be connected in time") from fault
        except (OSError, UnicodeError) as fault:  # UnicodeError: the host is no name that DNS can hold
            logger.warning("cannot connect to %s:%d: %s", host, port, _reason(fault))  # the log may say where
            raise Unreachable(f"the backend could not be connected: {_reason(fault)}") from fault
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if scheme == "https":
                sock = self._tls().wrap_socket(sock, server_hostname=host)
        except TimeoutError as fault:
            sock.close()
            raise BackendTimeout("the backend's TLS handshake did not end in time") from fault
        except OSError as fault:
            sock.close()
            raise Unreachable(f"no TLS connection to the backend: {_reason(fault)}") from fault
        sock.setblocking(False)
        return Connection(sock, home)

    def _tls(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                cafile = self._verify if isinstance(self._verify, str) else certifi.where()
                context = ssl.create_default_context(cafile=cafile)
                if self._verify is False:
                    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                if self._cert:
                    context.load_cert_chain(*self._cert)
                self._context = context
            return self._context

    def give_back(self, conn: Connection) -> bool:
        """Into the pool; False when it is full or closed."""
        with self._lock:
            idle = self._idle.setdefault(conn.home, [])
            conn.idle_since = time.monotonic()
            while idle and conn.idle_since - idle[0].idle_since > IDLE_S:  # the oldest is first: who is needed is taken last
                idle.pop(0).close()
            if self._closed or len(idle) >= IDLE_CONNECTIONS:
                return False
            idle.append(conn)
            return True

    def close(self) -> None:
        """Closes the idle connections; those in use close when their answer ends."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, {}, True
        for conns in idle.values():
            for conn in conns:
                conn.close()
        super().close()


def _of_client(body: Iterable[bytes]) -> Iterator[bytes]:
    """A request body that streams; where it breaks, that is not the backend's fault."""
    try:
        yield from body
    except OSError as fault:
        raise ClientGone("the client broke off its request") from fault


def _reason(fault: BaseException) -> str:
    """A fault in words fit for a client: no addresses of ours, no Python."""
    if isinstance(fault, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({fault.verify_message})"
    if isinstance(fault, (socket.gaierror, UnicodeError)):
        return "its host name is not known"
    if isinstance(fault, OSError):
        return fault.strerror or type(fault).__name__
    return str(fault)
