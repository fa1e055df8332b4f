"""A connection to Redis: commands as bytes, and replies that are read when somebody wants one.

The package redis makes the connection (address, TLS, password, database); what runs for every call is here, as its own way
takes ten times as long. Redis answers in the order in which it was asked, so that a command whose reply nobody waits for is
sent and remembered (`owed`), and its reply read before the next one's.
"""

from __future__ import annotations

import os
import selectors
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

READ = 1 << 16


class Fault(Exception):
    """Redis answered with an error."""


class Link:
    """One connection, for one thread at a time. `hear` gets what was sent with each command that nobody waits for, and its
    reply, which may be a Fault. Raises OSError, ValueError for what is no reply."""

    def __init__(self, connection: Any, patience_s: float, hear: Callable[[Any, Any], None]) -> None:
        connection.connect()
        self._connection, self._hear = connection, hear
        self._sock: socket.socket = connection._sock
        if not isinstance(self._sock, ssl.SSLSocket) and os.name == "posix":  # the kernel keeps the time: no poll before each
            self._sock.settimeout(None)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(patience_s), 0))
        self._file = self._sock.makefile("rb", READ)
        self.owed: deque[Any] = deque()  # commands whose replies are still to be read
        self.since = 0.0  # it was last used; monotonic

    def ask(self, command: bytes) -> Any:
        """One round trip. Raises Fault, too."""
        self._sock.sendall(command)
        self.catch_up()
        reply = self._reply()
        if isinstance(reply, Fault):
            raise reply
        return reply

    def send(self, command: bytes, what: Any) -> None:
        """Waits for no reply."""
        self.owed.append(what)
        self._sock.sendall(command)

    def catch_up(self) -> None:
        """Reads what is owed."""
        while self.owed:
            reply = self._reply()
            self._hear(self.owed.popleft(), reply)

    def is_over(self) -> bool:
        """Whether Redis has closed it, as far as that shows: nothing else is to be read where nothing is owed."""
        if self.owed:
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(self._sock, selectors.EVENT_READ)
            return bool(selector.select(0))

    def close(self) -> None:
        """Whatever is owed will not come."""
        self._file.close()
        self._connection.disconnect()

    def _reply(self) -> Any:
        line = self._file.readline()
        kind, text = line[:1], line[1:-2]
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection was closed")
        if kind == b"$":
            size = int(text)
            data = self._file.read(size + 2) if size >= 0 else None
            if data is not None and len(data) < size + 2:
                raise ConnectionError("the connection was closed")
            return None if data is None else data[:-2]
        if kind == b":":
            return int(text)
        if kind == b"*":
            return [self._reply() for _ in range(int(text))]
        return Fault(text.decode("utf-8", "replace")) if kind == b"-" else text


def packed(words: Sequence[Any]) -> bytes:
    """Parts of a command as Redis reads them; `*` and their number stand before all of them."""
    data = [word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogatepass") for word in words]
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in data])


def command(*words: Any) -> bytes:
    """A whole command."""
    return b"*%d\r\n%b" % (len(words), packed(words))
