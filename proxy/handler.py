"""HTTP in and out: one connection's requests, read strictly, and the replies to them, framed.

Every refusal is an error in the shape of the client's API. This is the one place that catches `Exception`.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from proxy import dialects
from proxy.call import DONT_WAIT, Call, Waiting
from proxy.errors import BadRequest, ClientGone, ProxyError, Refused
from proxy.gates.keys import ALL_HEADERS, LOCAL
from proxy.http1 import (
    HEAD_LIMIT,
    LINE_LIMIT,
    TOKEN,
    Dechunker,
    Fields,
    ProtocolError,
    body_length,
    listed,
    parse_head,
)
from proxy.logs import CallRecord, usage_in
from proxy.relay import Relay
from proxy.reply import Reply
from proxy.routing import split_target
from proxy.turns import Turn
from proxy.wire import dumps

if TYPE_CHECKING:
    from proxy.generation import Generation
    from proxy.server import Server

logger = logging.getLogger("proxy.call")

REQUEST_LINE = re.compile(rf"({TOKEN.pattern}) (/[\x21\x22\x24-\x7e]*|https?://[\x21\x22\x24-\x7e]+|\*) HTTP/1\.([01])")
OTHER_VERSION = re.compile(r"\S+ \S+ HTTP/[0-9]+\.[0-9]+")
ONCE = ALL_HEADERS | {"target", "content-type", "host", "content-length", "transfer-encoding"}
BARE_LF = re.compile(rb"(?<!\r)\n")
PIECE = 64 * 1024  # bytes read at once
DRAINED = 64 * 1024  # bytes of an unread body that are read and thrown away to keep a connection
BODY_SILENCE_S = 15.0  # a body of which nothing comes for so long will not come
HELLO = {"name": "mooltiproxy", "status": "ok"}


class Request:
    """One request as it was read: its line, its fields, and a body that is still to come."""

    def __init__(self, handler: Handler, line: str, fields: Fields) -> None:
        match = REQUEST_LINE.fullmatch(line)
        if not match:
            if OTHER_VERSION.fullmatch(line) and not line.endswith(("HTTP/1.0", "HTTP/1.1")):
                raise ProtocolError("only HTTP/1.0 and HTTP/1.1 are spoken here", 505)
            raise ProtocolError("this is not an HTTP/1 request line with a method and a path")
        self.method, raw_target, minor = match.groups()
        if self.method in ("TRACE", "TRACK", "CONNECT"):  # a backend's echo of its request would hold its key
            raise ProtocolError("this method is not served", 501)
        self.headers = headers = _by_name(fields)
        self.chunks = minor == "1"  # the reply may be chunked
        self.keeps = self.chunks and ("connection" not in headers or "close" not in listed(headers["connection"]))
        if self.chunks and "host" not in headers:
            raise ProtocolError("a Host header is missing")
        if not self.chunks and "transfer-encoding" in headers:
            raise ProtocolError("HTTP/1.0 has no Transfer-Encoding")
        length = body_length(headers.get("content-length"), headers.get("transfer-encoding"))
        self.body = RequestBody(handler, length, headers.get("expect") if self.chunks else None)
        self.path, self.query = split_target(raw_target)


def _by_name(fields: Fields) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in fields:
        if name in headers:
            if name in ONCE:
                raise ProtocolError(f"the header {name} stands there twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


class RequestBody:
    """A request's body as it comes. `length`: its bytes, None when chunked."""

    def __init__(self, handler: Handler, length: int | None, expect: str | None) -> None:
        self.length = length
        self._handler = handler
        self._left = length
        self._dechunker = Dechunker() if length is None else None
        self._expects = expect is not None and expect.lower() == "100-continue"
        self._until = 0.0
        if expect is not None and not self._expects:
            raise ProtocolError("only 100-continue may be expected", 417)

    @property
    def unread(self) -> bool:
        """Whether bytes of it are still to come."""
        return not self._dechunker.done if self._dechunker else bool(self._left)

    def pieces(self) -> Iterator[bytes]:
        """The payload. Raises BadRequest: 413 past the cap, 408 when it comes too slowly, 400 when it comes short."""
        handler = self._handler
        limit, seen = handler.server.generation.config.system.body_limit, 0
        if (self.length or 0) > limit:
            raise BadRequest(f"the body is larger than {limit} bytes", status=413, close=True)
        self._until = time.monotonic() + handler.server.generation.config.system.deadlines.body
        if self._expects and self.unread:
            self._expects = False
            handler.send_bytes(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self.unread:
            piece = self._next()
            seen += len(piece)
            if seen > limit:
                raise BadRequest(f"the body is larger than {limit} bytes", status=413, close=True)
            if piece:
                yield piece

    def read(self) -> bytes:
        """All of it. Raises like `pieces`."""
        parts = list(self.pieces())
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _next(self) -> bytes:
        handler = self._handler
        data, handler.buffer = handler.buffer, b""
        if not data:
            data = handler.receive(min(self._until, time.monotonic() + BODY_SILENCE_S))
            if not data:
                raise BadRequest("the body came short", close=True)
        if self._dechunker is None:
            piece, handler.buffer = data[: self._left], data[self._left :]
            self._left = (self._left or 0) - len(piece)
            return piece
        try:
            piece = self._dechunker.feed(data)
        except ProtocolError as fault:
            raise BadRequest(str(fault), close=True) from None
        if self._dechunker.done:
            handler.buffer = self._dechunker.rest
        return piece

    def drain(self) -> bool:
        """Reads an unread rest away when that is cheap; False when the connection has to close instead."""
        if not self.unread:
            return True
        if self._expects or self._dechunker or (self._left or 0) > len(self._handler.buffer) + DRAINED:
            return False
        try:
            self._until = time.monotonic() + 1.0
            while self.unread:
                self._next()
        except (BadRequest, OSError):
            return False
        return True


class Handler(BaseHTTPRequestHandler):
    """One client's connection. Its socket blocks, but every wait has an end."""

    server: Server
    request: socket.socket
    client_address: tuple[str, int]

    def setup(self) -> None:
        """Nothing is opened here: no files around the socket, as the standard handler makes them."""
        self.buffer = b""  # read, but not yet understood
        self.busy = False  # between a request's first byte and its reply's last
        self.encrypted = isinstance(self.request, ssl.SSLSocket)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        deadlines = self.server.generation.config.system.deadlines
        _set_timeout(self.request, socket.SO_SNDTIMEO, deadlines.body)
        self._patience_s = 0.0
        self.turn = Turn(self.server.turns)

    def finish(self) -> None:
        """The server closes the socket."""

    def handle(self) -> None:
        """Requests one after the other, until one side wants to end."""
        self.close_connection = False
        self.server.opened(self)
        try:
            if self.encrypted:
                self._handshake()
            self._first = True
            while not self.close_connection and not self.server.draining:
                self.handle_one_request()
                self._first = False
        except (ClientGone, OSError, ValueError) as fault:  # the client left, or its TLS is broken: nobody to answer
            logger.debug("connection of %s ended: %s", self.client_address[0], fault)
        finally:
            self.turn.give()
            self.server.closed(self)

    def handle_one_request(self) -> None:
        """Reads one request, answers it, and leaves the connection at the next one's first byte."""
        self.reply = Reply(self, "GET", False)
        try:
            block = self._read_head()
            if block is None:
                self.close_connection = True
                return
            self.turn.take()
            line, fields = parse_head(block)
            request = Request(self, line, fields)
        except ProtocolError as fault:
            self._refuse_unread(fault)
            return
        self.reply = Reply(self, request.method, request.chunks)
        self.close_connection = not request.keeps
        self._serve(request)
        if self.close_connection or not request.body.drain():
            self.close_connection = True
        self.busy = bool(self.buffer)

    # --- one request
    def _serve(self, request: Request) -> None:
        generation = self.server.generation
        client = generation.cerbere.client_of(self.client_address[0], request.headers.get("x-forwarded-for"))
        routed, path = generation.router.by_route(request.path)
        call = Call(request.method, path, request.query, client)
        self.reply.call = call
        self.reply.extra = self._cors(request, generation)
        try:
            call.front = dialects.front(request.method, path, request.headers)
            if self._answered_here(request, call, generation):
                return
            call.key_name = generation.keys.admit(request.headers, client)
            if call.key_name == "open" and _is_foreign(request.headers.get("origin")):
                raise Refused("a web page needs a key here: this address is open to programs only", code="origin_refused")
            call.waits = Waiting(self.request, self.turn, self.encrypted)
            Relay(generation, call, request, self.reply, routed).run()
        except ClientGone:
            call.status, self.close_connection = call.status or 499, True
            call.error, call.error_source = "the client left", "client"
        except ProxyError as error:
            self._refuse(call, error)
        except OSError as fault:
            call.status, self.close_connection = call.status or 499, True
            call.error, call.error_source = "the client left", "client"
            logger.debug("%s: the client's connection broke: %s", call.id, fault)
        except Exception:
            logger.exception("%s: an error of the proxy itself", call.id)
            self._refuse(call, ProxyError("the proxy failed; its log says why", code="internal_error"))
        finally:
            self.turn.give()
            if generation.records is not None:
                generation.records.end(call)
            self._log(call)

    def _answered_here(self, request: Request, call: Call, generation: Generation) -> bool:
        """What needs no key: refused addresses and hosts, CORS preflights, /healthz, and a bare look at /."""
        generation.cerbere.admit(call.client)
        if generation.config.system.local_only and not LOCAL.fullmatch(request.headers.get("host", "")):
            raise Refused("only a local Host is served here", code="host_refused")
        if request.method == "OPTIONS":
            self.reply.whole(200, _preflight(request.headers), b"")
            return True
        if request.path == "/healthz" and request.method in ("GET", "HEAD"):
            self.reply.json(200, {"status": "ok"})
            return True
        if f"{request.path}/".startswith(generation.own_paths) or request.path in generation.own_pages:
            from proxy.pages import Visit, answer

            answer(Visit(self, request, self.reply, call, generation))
            return True
        if call.path == "/" and request.method in ("GET", "HEAD") and not generation.serves_root(request.method):
            self.reply.json(200, HELLO)
            return True
        return False

    def _cors(self, request: Request, generation: Generation) -> Fields:
        origin = request.headers.get("origin")
        if origin is None or generation.config.system.local_only:
            return []
        return [("access-control-allow-origin", origin), ("access-control-expose-headers", "*"), ("vary", "Origin")]

    def _refuse(self, call: Call, error: ProxyError) -> None:
        call.error, call.error_source = error.message, error.source
        self.close_connection = self.close_connection or error.close or self.reply.started
        if self.reply.started:  # too late for a status: the break shows by the missing end
            return
        front = dialects.load(call.front)
        fields = [("content-type", "application/json"), *error.headers]
        if front.id_header:
            fields.append((front.id_header, call.id))
        self.reply.whole(front.statuses.get(error.status, error.status), fields, dumps(front.error_body(error, call.id)))

    def _refuse_unread(self, fault: ProtocolError) -> None:
        """A request that could not be read: what follows on the connection cannot be told apart from it."""
        self.close_connection = True
        call = self.reply.call = Call("-", "-", "", self.client_address[0])
        error = BadRequest(f"bad request: {fault}", status=fault.status)
        body = dialects.load("openai").error_body(error, call.id)
        self.reply.whole(fault.status, [("content-type", "application/json")], dumps(body))
        call.error, call.error_source = error.message, "client"
        self._log(call)
        self._linger()

    def _log(self, call: Call) -> None:
        level = logging.WARNING if call.status >= 500 else logging.INFO
        if logger.isEnabledFor(level):
            if call.target and call.tokens_in is None and call.tokens_out is None:  # the proxy's own pages use none
                call.tokens_in, call.tokens_out = usage_in(self.reply.tail)
            logger.handle(CallRecord(level, call))

    # --- bytes
    def receive(self, until: float) -> bytes:
        """The next bytes, b"" at the end. Raises BadRequest (408) at `until` (monotonic), OSError.

        The kernel keeps the time: one system call a piece, where a poll before each would be two.
        """
        left = until - time.monotonic()
        if left > 0:
            if self.encrypted:
                self.request.settimeout(left)
            elif not self._patience_s * 0.98 <= left <= self._patience_s:
                self._patience_s = left
                _set_timeout(self.request, socket.SO_RCVTIMEO, left)
            with self.turn:
                try:
                    return self.request.recv(PIECE)
                except (BlockingIOError, ssl.SSLWantReadError, TimeoutError):
                    pass
        raise BadRequest("the request did not come in time", status=408, close=True)

    def send_bytes(self, data: bytes) -> None:
        """All of the data. Raises ClientGone when the client does not take it in time, OSError."""
        try:
            if self.turn.taken and not self.encrypted:  # what fits into the kernel's buffer does not block
                data = data[self.request.send(data, DONT_WAIT) :]
                if not data:
                    return
        except BlockingIOError:
            pass
        with self.turn:
            try:
                if self.encrypted:
                    self.request.settimeout(self.server.generation.config.system.deadlines.body)
                for at in range(0, len(data), PIECE) if self.encrypted else ():
                    self.request.sendall(data[at : at + PIECE])
                if not self.encrypted:
                    self.request.sendall(data)
            except (BlockingIOError, ssl.SSLWantWriteError, TimeoutError):
                raise ClientGone("the client does not read its answer") from None

    def _read_head(self) -> bytes | None:
        """A header block without its end; None when the connection ends between two requests."""
        deadlines = self.server.generation.config.system.deadlines
        until = time.monotonic() + (deadlines.header if self._first or self.buffer else deadlines.idle)
        begun, seen = bool(self.buffer), 0  # what has been looked through is not looked through again
        while (end := self.buffer.find(b"\r\n\r\n", max(0, seen - 3))) < 0:
            if len(self.buffer) > HEAD_LIMIT:
                raise ProtocolError("the header is too long", 431)
            if len(self.buffer) > LINE_LIMIT and b"\r\n" not in self.buffer[: LINE_LIMIT + 2]:
                raise ProtocolError("the request line is too long", 414)
            if BARE_LF.search(self.buffer, max(0, seen - 1)):
                raise ProtocolError("a line that does not end in CRLF")
            seen = len(self.buffer)
            try:
                data = self.receive(until)
            except BadRequest:
                if not self.buffer:
                    return None
                raise ProtocolError("the header did not come in time", 408) from None
            if not data:
                if self.buffer.strip(b"\r\n"):
                    raise ProtocolError("the connection ended inside the header")
                return None
            if not begun:
                begun = True
                until = min(until, time.monotonic() + deadlines.header) if self._first else time.monotonic() + deadlines.header
                data = data.removeprefix(b"\r\n")  # an empty line before a request is tolerated, once
                self.busy = True
            self.buffer += data
        if end > HEAD_LIMIT:
            raise ProtocolError("the header is too long", 431)
        block, self.buffer = self.buffer[:end], self.buffer[end + 4 :]
        return block

    def _handshake(self) -> None:
        assert isinstance(self.request, ssl.SSLSocket)
        self.request.settimeout(self.server.generation.config.system.deadlines.header)  # of all of it, not of each read
        self.request.do_handshake()

    def _linger(self) -> None:
        """Lets the client read a refusal before the unread rest of its request makes the kernel reset the connection."""
        try:
            self.request.shutdown(socket.SHUT_WR)
            until = time.monotonic() + 0.5
            for _ in range(64):
                if not self.receive(until):
                    return
        except (OSError, BadRequest):
            return


def _set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """SO_RCVTIMEO or SO_SNDTIMEO: a blocking call gives up with EAGAIN."""
    if os.name == "nt":
        value = struct.pack("@L", max(1, int(seconds * 1000)))
    else:
        value = struct.pack("@ll", *divmod(int(seconds * 1e6) + 1, 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, option, value)


def _preflight(headers: Mapping[str, str]) -> Fields:
    return [
        ("access-control-allow-methods", headers.get("access-control-request-method", "*")),
        ("access-control-allow-headers", headers.get("access-control-request-headers", "*")),
        ("access-control-max-age", "600"),
        *([] if "origin" in headers else [("access-control-allow-origin", "*")]),
    ]


def _is_foreign(origin: str | None) -> bool:
    """Whether a web page of another machine asks; extensions and desktop apps have schemes of their own."""
    scheme, _, host = (origin or "").partition("://")
    return origin == "null" or (scheme in ("http", "https") and not LOCAL.fullmatch(host))
