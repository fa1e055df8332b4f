"""HTTP/1.1 as bytes, strictly: header blocks, body framing, chunked coding. Both ends of the proxy use it.

Nothing is repaired: what two parsers could read in two ways is a ProtocolError, which the handler makes a 400 and the
exchange a 502.
"""

from __future__ import annotations

import re

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
LENGTH = re.compile(r"[0-9]{1,15}")
CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[^\r\n\x00-\x08\x0a-\x1f\x7f]*)?")
PLAIN_SIZE = re.compile(rb"[0-9a-fA-F]{1,15}")
TEXT = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])  # what may stand in a line: no control byte but the tab
LINE_LIMIT = 8 * 1024  # bytes of a request or status line, and of a chunk's size line
HEAD_LIMIT = 64 * 1024  # bytes of a header block
FIELD_LIMIT = 100  # header fields
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
    | {"te", "trailer", "transfer-encoding", "upgrade"}
)
Fields = list[tuple[str, str]]  # header fields in order, names in lower case


class ProtocolError(Exception):
    """The peer does not speak HTTP/1.1 as the proxy reads it. `status`: what a client is answered."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


_good_names: dict[str, str] = {}  # field names seen and found right, as they came → in lower case; bounded


def _field_name(raw: str) -> str:
    if not TOKEN.fullmatch(raw):
        raise ProtocolError("a header field's name is not a token")
    name = raw.lower()
    if len(_good_names) < 1000 and len(raw) <= 64:
        _good_names[raw] = name
    return name


def parse_head(block: bytes) -> tuple[str, Fields]:
    """A header block without its final empty line → (first line, fields).

    Raises ProtocolError for control bytes, line ends that are not CRLF, bad names, folded lines, too many fields.
    """
    lines = block.decode("latin-1").split("\r\n")
    if block.translate(None, TEXT) != b"\r\n" * (len(lines) - 1):
        raise ProtocolError("a control byte or a bare CR or LF in the header")
    if len(lines[0]) > LINE_LIMIT:
        raise ProtocolError("the first line is too long", 414)
    if len(lines) > FIELD_LIMIT + 1:
        raise ProtocolError(f"more than {FIELD_LIMIT} header fields", 431)
    fields: Fields = []
    for line in lines[1:]:
        raw, colon, value = line.partition(":")
        if not colon:
            raise ProtocolError("a header line without a colon")
        fields.append((_good_names.get(raw) or _field_name(raw), value.strip(" \t")))
    return lines[0], fields


UNSAFE = re.compile(r"[^\x20-\x7e\x80-\xff]")


def header_safe(value: str) -> str:
    """Text that may stand in a header value, whatever it came from."""
    return UNSAFE.sub("?", value)


def listed(value: str | None) -> list[str]:
    """The members of a comma-separated header value, in lower case."""
    return [part.strip(" \t").lower() for part in value.split(",")] if value else []


def body_length(length: str | None, coding: str | None) -> int | None:
    """Bytes of the body by its two header fields; None when it is chunked, 0 when neither stands there.

    Raises ProtocolError for both fields, a length that is no plain number, a coding that is not chunked.
    """
    if coding is not None:
        if length is not None:
            raise ProtocolError("both Content-Length and Transfer-Encoding")
        if coding.lower() != "chunked":
            raise ProtocolError("a Transfer-Encoding other than chunked", 501)
        return None
    if length is None:
        return 0
    if not LENGTH.fullmatch(length):
        raise ProtocolError("Content-Length is not one plain number")
    return int(length)


class Dechunker:
    """Chunked coding, taken off piece by piece. Extensions and trailers are read and thrown away.

    `feed(data)` gives the payload bytes in `data`; when `done`, `rest` holds what came behind the body.
    States: size line → data → CRLF behind the data → …, and after the 0 chunk trailer lines up to an empty one.
    """

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self._held = b""
        self._left = 0
        self._state = "size"
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Payload bytes of the next piece of the wire. Raises ProtocolError when the coding is broken."""
        if self._held:
            data = self._held + data
            self._held = b""
        elif self._state == "size":
            piece = self._one_chunk(data)
            if piece:
                return piece
        out: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._state == "data":
                piece = data[at : at + self._left]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = "crlf"
            elif self._state == "crlf":
                if len(data) - at < 2 and data[at:] == b"\r":
                    break
                if data[at : at + 2] != b"\r\n":
                    raise ProtocolError("no CRLF behind a chunk")
                at, self._state = at + 2, "size"
            else:
                end = data.find(b"\n", at)
                if end < 0:
                    if len(data) - at > LINE_LIMIT:
                        raise ProtocolError("a chunk's size line is too long")
                    break
                self._line(data[at : end + 1])
                at = end + 1
        if self.done:
            self.rest = data[at:]
        else:
            self._held = data[at:]
        return out[0] if len(out) == 1 else b"".join(out)

    def _one_chunk(self, data: bytes) -> bytes | None:
        """The payload, when the piece of the wire is one plain chunk, as a server writes an event; else None."""
        end = data.find(b"\r\n", 0, 18)
        if end < 1 or not data.endswith(b"\r\n") or not PLAIN_SIZE.fullmatch(data, 0, end):
            return None
        return data[end + 2 : -2] if int(data[:end], 16) == len(data) - end - 4 else None

    def _line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n") or len(line) > LINE_LIMIT:
            raise ProtocolError("a line of the chunked coding that is too long or does not end in CRLF")
        if self._state == "trailer":
            self._trailer_bytes += len(line)
            if self._trailer_bytes > HEAD_LIMIT:
                raise ProtocolError("the trailers are too long")
            self.done = line == b"\r\n"
            return
        match = CHUNK_SIZE.fullmatch(line[:-2])
        if not match:
            raise ProtocolError("a chunk's size is not a plain hexadecimal number")
        self._left = int(match[1], 16)
        self._state = "data" if self._left else "trailer"


def enchunk(data: bytes) -> bytes:
    """One chunk of the chunked coding."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
