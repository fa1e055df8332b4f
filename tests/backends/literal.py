"""A backend that says literally what a test tells it to, and remembers what it was asked.

with Literal(b"HTTP/1.1 200 OK\\r\\n\\r\\n") as backend: ...     the same bytes to every request, on kept connections
with Literal(script) as backend: ...                          `script(peer)` for every connection, in its thread
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

TOOK_LONG_S = 20.0  # a test that waits so long has failed


@dataclass(frozen=True)
class Asked:
    """One request as it came: its header block, its body without chunked coding, the number of its connection from 0."""

    head: bytes
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    @property
    def fields(self) -> list[tuple[str, str]]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]


class Peer:
    """One connection, as its script sees it."""

    def __init__(self, sock: socket.socket, number: int, backend: Literal) -> None:
        self.sock, self.number, self._backend = sock, number, backend
        self._buffer = b""

    def request(self) -> Asked | None:
        """The next request, None when the connection ends before it; it is remembered in the backend's `asked`."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        asked = Asked(head, self._body(head.lower()), self.number)
        self._backend.asked.append(asked)
        return asked

    def _body(self, head: bytes) -> bytes:
        if b"\r\ntransfer-encoding: chunked" in head:
            return b"".join(iter(self._chunk, b""))
        _, named, rest = head.partition(b"\r\ncontent-length:")
        return self._take(int(rest.partition(b"\r\n")[0])) if named else b""

    def _chunk(self) -> bytes:
        while b"\r\n" not in self._buffer:
            assert self._more(), "the request ended inside its chunked coding"
        size, _, self._buffer = self._buffer.partition(b"\r\n")
        data = self._take(int(size, 16) + 2)
        assert data.endswith(b"\r\n")
        return data[:-2]

    def _take(self, count: int) -> bytes:
        parts, have = [self._buffer], len(self._buffer)
        while have < count:
            data = self.sock.recv(65536)
            assert data, "the request ended inside its body"
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        self._buffer = whole[count:]
        return whole[:count]

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self._buffer += data
        return bool(data)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def left(self, within_s: float = TOOK_LONG_S) -> bool:
        """Whether the other side ends the connection in that time; bytes that it sends are thrown away."""
        while select.select([self.sock], [], [], within_s)[0]:
            try:
                if not self.sock.recv(65536):
                    return True
            except OSError:
                return True
        return False

    def reset(self) -> None:
        """Ends the connection as a crash does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Script = Callable[[Peer], None]


class Literal:
    """See the module. A script that fails fails the test when the backend closes."""

    def __init__(self, answer: bytes | Script, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        self.connections = 0
        self._script = answer if callable(answer) else _always(answer)
        self._context = context
        self._faults: list[BaseException] = []
        self._over = False
        self._open: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.url = f"{'https' if context else 'http'}://{'localhost' if context else '127.0.0.1'}:{self.port}"

    def __enter__(self) -> Literal:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self._over = True
        for sock in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        if self._faults and kind is None:
            raise self._faults[0]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                self._open.append(sock)
                self.connections += 1
                threading.Thread(target=self._serve, args=(sock, self.connections - 1), daemon=True).start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(TOOK_LONG_S)
            if self._context:
                sock = self._context.wrap_socket(sock, server_side=True)
                self._open.append(sock)
            self._script(Peer(sock, number, self))
        except OSError:
            pass  # the other side left, or the test is over
        except BaseException as fault:
            if not self._over:  # sockets close under a script that still waits
                self._faults.append(fault)
        finally:
            sock.close()


def _always(answer: bytes) -> Script:
    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(answer)

    return script


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets: a client's own, and the one that its server holds."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        far = socket.create_connection(listening.getsockname())
        near, _ = listening.accept()
    return far, near
