"""HTTP/1.1 by hand, for tests that look at single bytes: a client, and a backend whose answers a test writes.

Both read what the other end sends as it is and repair nothing. Whoever waits here waits with a deadline, `PATIENCE_S`.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

PATIENCE_S = 10.0  # a test that waits so long has failed
Fields = list[tuple[str, str]]


class Wire:
    """A socket and what was read from it but not yet understood."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE_S)
        self.sock = sock
        self.buffer = b""

    def more(self) -> bool:
        """Reads on; False at the end."""
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def until(self, mark: bytes) -> bytes:
        """What comes before `mark`, which is taken too; b"" when the connection ends first."""
        while mark not in self.buffer:
            if not self.more():
                return b""
        found, _, self.buffer = self.buffer.partition(mark)
        return found

    def exactly(self, size: int) -> bytes:
        """So many bytes, fewer when the connection ends first."""
        while len(self.buffer) < size and self.more():
            pass
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return found

    def head(self) -> tuple[str, Fields]:
        """First line and fields, names in lower case; ("", []) when nothing comes."""
        first, *lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return first, [(name.lower(), value.strip()) for name, _, value in pairs]

    def chunks(self) -> Iterator[bytes]:
        """The chunks of a chunked body. Raises EOFError when the last one never comes."""
        while True:
            size = self.until(b"\r\n")
            if not size:
                raise EOFError("the body was cut off")
            data = self.exactly(int(size, 16))
            self.exactly(2)
            if not data:
                return
            yield data


def value_of(fields: Fields, name: str) -> str | None:
    return next((value for key, value in fields if key == name), None)


@dataclass
class Reply:
    """A reply as it came. `whole`: its body has the end that its framing announced."""

    status: int
    fields: Fields
    body: bytes = b""
    whole: bool = True

    def __getitem__(self, name: str) -> str | None:
        return value_of(self.fields, name)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of an SSE body; `[DONE]` stays a str."""
        lines = [line[5:].strip() for line in self.body.decode().split("\n") if line.startswith("data:")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


class Client(Wire):
    """One connection to the proxy."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None, headers: Mapping[str, str] = {}) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        sock = socket.create_connection((parts.hostname, parts.port), PATIENCE_S)
        super().__init__(context.wrap_socket(sock, server_hostname=parts.hostname) if context else sock)
        self.host = parts.netloc
        self.headers = dict(headers)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> None:
        """Sends a request; a dict becomes JSON."""
        given = [*self.headers.items(), *(headers.items() if isinstance(headers, Mapping) else headers)]
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            names = {name.lower() for name, _ in given}
            given += [("content-type", "application/json")] if "content-type" not in names else []
            given += [("content-length", str(len(body)))] if "content-length" not in names else []
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.host}", *(f"{name}: {value}" for name, value in given)]
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b""))

    def reply(self, bodiless: bool = False) -> Reply:
        """The next reply, all of it. Status 0: the connection ended instead."""
        reply = self.reply_head()
        if reply.status == 0 or bodiless or reply.status < 200 or reply.status in (204, 304):
            return reply
        length = reply["content-length"]
        if reply["transfer-encoding"] == "chunked":
            try:
                for chunk in self.chunks():
                    reply.body += chunk
            except (EOFError, ConnectionError):
                reply.whole = False
        elif length is not None:
            reply.body = self.exactly(int(length))
            reply.whole = len(reply.body) == int(length)
        else:
            while self.more():
                pass
            reply.body, self.buffer = self.buffer, b""
        return reply

    def reply_head(self) -> Reply:
        """A reply's head; its body is still to come."""
        line, fields = self.head()
        return Reply(int(line.split(" ")[1]) if line else 0, fields)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> Reply:
        """A request and its reply."""
        self.request(method, path, body, headers)
        return self.reply(method == "HEAD")

    def ended(self) -> bool:
        """Whether the proxy ends the connection now, with nothing more to say."""
        try:
            return not self.more() and not self.buffer
        except ConnectionResetError:
            return True


def ask(
    url: str,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
) -> Reply:
    """One request on a connection of its own."""
    with Client(url) as client:
        return client.ask(method, path, body, headers)


@dataclass
class Asked:
    """A request as a backend got it."""

    method: str
    path: str  # with the query
    fields: Fields = field(default_factory=list)
    body: bytes = b""

    def __getitem__(self, name: str) -> str | None:
        return value_of(self.fields, name)

    def json(self) -> Any:
        return json.loads(self.body)


class Exchange(Wire):
    """One connection of the proxy's to the backend; `asked` is the request that is to be answered."""

    asked: Asked

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reply(self, status: int = 200, body: Any = b"", fields: Fields | None = None, kind: str = "application/json") -> None:
        """A whole answer; what is not bytes becomes JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = [("content-type", kind), ("content-length", str(len(data))), *(fields or [])]
        head = "".join(f"{name}: {value}\r\n" for name, value in given)
        self.send(f"HTTP/1.1 {status} Status\r\n{head}\r\n".encode("latin-1") + (b"" if self.asked.method == "HEAD" else data))

    def start(self, kind: str = "text/event-stream") -> None:
        """The head of a chunked answer."""
        self.send(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, value: Any) -> None:
        """One SSE event as a chunk of its own."""
        self.chunk(b"data: %s\n\n" % (value if isinstance(value, bytes) else json.dumps(value).encode()))

    def end(self) -> None:
        self.send(b"0\r\n\r\n")

    def cut(self) -> None:
        """Ends the connection as it is."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def wait_until_gone(self) -> float:
        """Waits until the proxy has closed the connection; the monotonic time of it."""
        assert select.select([self.sock], [], [], PATIENCE_S)[0], "the proxy keeps the connection"
        with contextlib.suppress(ConnectionError):
            assert not self.sock.recv(1), "the proxy sent something instead of leaving"
        return time.monotonic()


Answer = Callable[[Exchange], None]


def echo(exchange: Exchange) -> None:
    """What was asked, as JSON."""
    asked = exchange.asked
    body = asked.body.decode("latin-1")
    exchange.reply(200, {"method": asked.method, "path": asked.path, "fields": asked.fields, "body": body})


class Backend:
    """`with Backend() as backend:` answers by path, without the query: `backend.on(path, function)`; else `echo`."""

    def __init__(self, context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self._context = context
        self._answers: dict[str, Answer] = {}
        self._reads: dict[str, bool] = {}
        self._socket = socket.create_server((host, 0), backlog=256)
        self._open: list[socket.socket] = []
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http{'s' if context else ''}://{host}:{self.port}"
        self.asked: list[Asked] = []

    def on(self, path: str, answer: Answer, reads: bool = True) -> None:
        """`reads` False: the function reads the request's body itself."""
        self._answers[path] = answer
        self._reads[path] = reads

    def asked_for(self, path: str) -> list[Asked]:
        """The requests for a path, whatever their query."""
        return [asked for asked in self.asked if asked.path.partition("?")[0] == path]

    @property
    def connections(self) -> int:
        """How many connections the proxy keeps."""
        return sum(sock.fileno() >= 0 for sock in self._open)

    def __enter__(self) -> Backend:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for sock in (self._socket, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            if self._context:
                sock = self._context.wrap_socket(sock, server_side=True)
                self._open.append(sock)
            with sock:
                exchange = Exchange(sock)
                sock.settimeout(None)  # the proxy may keep a connection as long as the test runs
                while self._one(exchange):
                    pass

    def _one(self, exchange: Exchange) -> bool:
        line, fields = exchange.head()
        if not line:
            return False
        method, path, _ = line.split(" ")
        asked, plain = Asked(method, path, fields), path.partition("?")[0]
        if not self._reads.get(plain, True):
            pass
        elif value_of(fields, "transfer-encoding") == "chunked":
            asked.body = b"".join(exchange.chunks())
        else:
            asked.body = exchange.exactly(int(value_of(fields, "content-length") or 0))
        self.asked.append(asked)
        exchange.asked = asked
        self._answers.get(plain, echo)(exchange)
        return True
