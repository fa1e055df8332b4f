"""The reply to one request, as bytes: whole, or begun and sent piece by piece."""

from __future__ import annotations

import http
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from proxy import pump
from proxy.answers import overhear
from proxy.call import Call
from proxy.http1 import LAST_CHUNK, Fields, enchunk
from proxy.wire import dumps

if TYPE_CHECKING:
    from proxy.handler import Handler

REASONS = {status.value: status.phrase for status in http.HTTPStatus}
TAIL = 2048  # bytes of a stream's end that are kept for the log


class Reply:
    """The reply to one request: whole, or started and sent piece by piece."""

    def __init__(self, handler: Handler, method: str, chunks: bool) -> None:
        self.handler = handler
        self.call: Call | None = None
        self.extra: Fields = []  # CORS
        self.started = False
        self.content = False  # something that is more than a keep-alive has gone: nothing else may be tried instead
        self.heard: tuple[Callable[[bytes], None], ...] = ()  # who hears the body as it goes
        self.tail = b""  # the last bytes of the body, which tell the usage
        self.streaming = False  # events are being sent: a fault can still be told
        self.personal = False  # it holds what its own key may see: another's would hold something else
        self.chunked = False
        self._bodiless = method == "HEAD"
        self._may_chunk = chunks
        self._head = b""

    def json(self, status: int, value: Any, fields: Fields | None = None) -> None:
        """A whole JSON reply."""
        self.whole(status, [("content-type", "application/json"), *(fields or [])], dumps(value))

    def whole(self, status: int, fields: Fields, body: bytes) -> None:
        """Head and body in one write."""
        bare = status in (204, 304) or status < 200
        length = [] if bare else [("content-length", str(len(body)))]
        head = self._head_bytes(status, [*fields, *length])
        self.started = self.content = True
        self.tail = body
        for hear in self.heard:
            hear(body)
        self.handler.send_bytes(head if self._bodiless or bare else head + body)

    def start(self, status: int, fields: Fields, length: int | None) -> None:
        """The head of a reply whose body follows in pieces; it is sent with the first of them."""
        bare = status in (204, 304) or self._bodiless
        if length is not None:
            fields = [*fields, ("content-length", str(length))]
        elif not bare and self._may_chunk:
            self.chunked = True
            fields = [*fields, ("transfer-encoding", "chunked")]
        elif not bare:
            self.handler.close_connection = True
        self._head = self._head_bytes(status, fields)
        self.started = True

    def start_stream(self, fields: Fields) -> None:
        """The head of a stream of events: from now on a fault is told as an event."""
        self.start(200, fields, None)
        self.streaming = True

    def withdraw(self) -> None:
        """Forgets a head that has not gone: another reply takes its place."""
        if self._head:
            self._head, self.started, self.streaming, self.chunked = b"", False, False, False

    def flush(self) -> None:
        """Sends the head when nothing has gone yet."""
        if self._head:
            head, self._head = self._head, b""
            self.handler.send_bytes(head)

    def piece(self, data: bytes) -> None:
        """The next bytes of the body."""
        if not data or self._bodiless:
            return
        self.content = True
        self.tail = data if len(data) > TAIL else self.tail[-TAIL:] + data
        for hear in self.heard:
            hear(data)
        self.comment(data)

    def comment(self, data: bytes) -> None:
        """Bytes that are not of the answer: a keep-alive."""
        head, self._head = self._head, b""
        self.handler.send_bytes(head + (enchunk(data) if self.chunked else data))

    def pump(self, body: Any) -> bool:
        """Lets the pump relay the rest of an unchanged stream, and end the reply; False where it cannot."""
        handler = self.handler
        if self._bodiless or not pump.suits(body, handler.request):
            return False
        self.flush()
        for hear in self.heard:
            overhear(body, hear)
        with handler.turn:
            self.tail += handler.server.pump.run(body, handler.request, self.chunked)
        self.streaming = False
        return True

    def end(self) -> None:
        """The body is whole."""
        self.streaming = False
        head, self._head = self._head, b""
        if self.chunked and not self._bodiless:
            self.handler.send_bytes(head + LAST_CHUNK)
        elif head:
            self.handler.send_bytes(head)

    def _head_bytes(self, status: int, fields: Fields) -> bytes:
        call, handler = self.call, self.handler
        if handler.server.draining:
            handler.close_connection = True
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in fields]
        if call is not None:
            call.status = status
            call.first_byte_s = call.elapsed_s()
            lines.append(f"x-request-id: {call.id}")
        lines += [f"{name}: {value}" for name, value in self.extra]
        if handler.close_connection:
            lines.append("connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
