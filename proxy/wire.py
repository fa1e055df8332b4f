"""Bytes ⇄ events. `event:` lines, comments, `[DONE]`, NDJSON lines and array commas are framing, never an event.

An event is one decoded JSON value. A reader takes the pieces of a body as they come, cut anywhere, and gives every event as
soon as its last byte is there; only CR, LF and CRLF end a line (U+2028 does not).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from proxy.errors import BackendError, BadRequest

Event = dict[str, Any]

BOM = b"\xef\xbb\xbf"
EVENT_LIMIT = 16 * 1024 * 1024  # bytes of one event; a backend that sends more is at fault
LINE_END = re.compile(rb"\r\n|\n|\r")
ESCAPED = {"\u2028": "\\u2028", "\u2029": "\\u2029"}  # clients that split lines with splitlines() break on them

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_make = getattr(json.encoder, "c_make_encoder", None)  # CPython's own, made once: `encode` makes one for each call
_parts = _make and _make(None, _encoder.default, json.encoder.encode_basestring, None, ":", ",", False, False, False)


def _encode(value: Any) -> str:
    if _parts is None or isinstance(value, str):
        return _encoder.encode(value)
    parts: Iterable[str] = _parts(value, 0)
    return "".join(parts)


def dumps(value: Any) -> bytes:
    """Compact JSON as UTF-8. Raises ValueError on NaN; lone surrogates are escaped, U+2028 and U+2029 too."""
    text = _encode(value)
    if not text.isascii():
        for raw, escaped in ESCAPED.items():
            if raw in text:
                text = text.replace(raw, escaped)
        try:
            return text.encode()
        except UnicodeEncodeError:
            return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return text.encode()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value - value:  # 1e999 is infinite, and could not be written again
        raise ValueError("a number is too large")
    return value


STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def loads(data: bytes, decoder: json.JSONDecoder = STRICT) -> Any:
    """Strict JSON. Raises ValueError whatever is wrong with it: syntax, encoding, depth, digits, NaN."""
    try:
        return decoder.decode(data.removeprefix(BOM).decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as fault:
        raise ValueError(f"{fault.msg.lower()} at character {fault.pos}") from None
    except UnicodeDecodeError as fault:
        raise ValueError(f"byte {fault.start} is not UTF-8") from None
    except ValueError as fault:
        raise ValueError("a number has too many digits" if "int_max_str" in str(fault) else str(fault)) from None


class _Twice(dict[str, Any]):
    """An object in which a name stands twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        seen: set[str] = set()
        self.name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else _Twice(pairs)


class _Outermost(json.JSONDecoder):
    """Looks for a name that stands twice in the outermost object alone; the inner ones are read at full speed."""

    def __init__(self) -> None:
        super().__init__(parse_constant=_no_constant, parse_float=_finite)
        inner: Callable[[str, int], tuple[Any, int]] = vars(self)["scan_once"]
        read_object: Callable[..., tuple[Any, int]] = vars(json.decoder)["JSONObject"]

        def outermost(text: str, at: int) -> tuple[Any, int]:
            if text[at : at + 1] != "{":
                return inner(text, at)
            return read_object((text, at + 1), self.strict, inner, None, _object)

        vars(self)["scan_once"] = outermost


_of_many = _Outermost()
_of_few = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_object)
FEW = 24  # objects in a body: to look at each is faster then than to read the outermost one in Python


def loads_request(data: bytes) -> Any:
    """A client's JSON body. Raises BadRequest; a name that stands twice at the top is refused too."""
    try:
        value = loads(data, _of_few if data.count(b"{") <= FEW else _of_many)
    except ValueError as fault:
        raise BadRequest(f"the body is not valid JSON: {fault}") from None
    if isinstance(value, _Twice):
        raise BadRequest(f"the body has the field {value.name[:100]!r} twice", param=value.name[:100])
    return value


def _decode(data: bytes) -> Any:
    try:
        return loads(data)
    except ValueError as fault:
        raise BackendError(f"the backend's stream holds an event that is not JSON: {fault}") from None


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends, as they become whole; a CR at the very end waits for a possible LF."""
    parts: list[bytes] = []  # of a line that has not ended
    rest, size = b"", 0
    for chunk in chunks:
        if b"\n" not in chunk and b"\r" not in chunk and not rest.endswith(b"\r"):  # joined once, not with every piece
            parts.append(chunk)
            size += len(chunk)
            if len(rest) + size > EVENT_LIMIT:
                raise BackendError(f"the backend sent a line of more than {EVENT_LIMIT} bytes")
            continue
        rest = b"".join((rest, *parts, chunk))
        parts, size = [], 0
        if b"\r" not in rest:  # the common case, without a regular expression
            *whole, rest = rest.split(b"\n")
        else:
            held = rest.endswith(b"\r")
            *whole, rest = LINE_END.split(rest[:-1] if held else rest)
            rest += b"\r" if held else b""
        yield from whole
        if len(rest) > EVENT_LIMIT:
            raise BackendError(f"the backend sent a line of more than {EVENT_LIMIT} bytes")
    rest = b"".join((rest, *parts))
    if rest:
        yield rest.rstrip(b"\r")


def read_sse(chunks: Iterable[bytes]) -> Iterator[Any]:
    """Server-sent events → their decoded data. An empty one, or `[DONE]`, is none.

    The end of the body ends the last event, as many servers leave its blank line out; cut JSON is a fault, not an event.
    """
    data: list[bytes] = []
    size = 0
    for line in itertools.chain(_lines(chunks), (b"",)):
        if not line:
            if data:
                joined = (b"\n".join(data) if len(data) > 1 else data[0]).strip()
                data, size = [], 0
                if joined and joined != b"[DONE]":
                    yield _decode(joined)
        elif line.startswith((b"data:", BOM + b"data:")):
            data.append(line.partition(b":")[2])
            size += len(line)
            if size > EVENT_LIMIT:
                raise BackendError(f"the backend sent an event of more than {EVENT_LIMIT} bytes")


def read_ndjson(chunks: Iterable[bytes]) -> Iterator[Any]:
    """A JSON value a line."""
    for line in _lines(chunks):
        if line.strip():
            yield _decode(line)


AFTER_NUMBER = frozenset(", \t\r\n]")


def read_array(chunks: Iterable[bytes]) -> Iterator[Any]:
    """The members of one JSON array, as they come. Raises BackendError when the array is not closed."""
    text, state = "", "start"
    for piece in _decoded(chunks):
        text = (text + piece).lstrip()
        while text and state != "end":
            if state == "start":
                if text[0] != "[":
                    raise BackendError("the backend's stream is not a JSON array")
                text, state = text[1:].lstrip(), "first"
            elif text[0] == "]" and state in ("first", "after"):
                text, state = text[1:], "end"
            elif state == "after":
                if text[0] != ",":
                    raise BackendError("the backend's stream is not a JSON array")
                text, state = text[1:].lstrip(), "value"
            else:
                try:
                    value, end = STRICT.raw_decode(text)
                except ValueError:  # not whole yet
                    break
                except RecursionError:
                    raise BackendError("the backend's stream holds an event that is nested too deeply") from None
                if not isinstance(value, (dict, list, str)) and text[end : end + 1] not in AFTER_NUMBER:
                    break  # 12 may be the beginning of 12.5
                yield value
                text, state = text[end:].lstrip(), "after"
        if len(text) > EVENT_LIMIT:
            raise BackendError(f"the backend sent an event of more than {EVENT_LIMIT} bytes")
    if state != "end":
        raise BackendError("the backend's stream ended inside its JSON array")


def _decoded(chunks: Iterable[bytes]) -> Iterator[str]:
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        for chunk in chunks:
            yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as fault:
        raise BackendError(f"the backend's stream is not UTF-8: {fault}") from None


def reader(content_type: str) -> Callable[[Iterable[bytes]], Iterator[Any]]:
    """The reader for a streamed answer's Content-Type."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return read_sse
    if kind == "application/json":
        return read_array
    return read_ndjson


CONTENT_TYPES = {
    "sse": "text/event-stream; charset=utf-8",
    "named-sse": "text/event-stream; charset=utf-8",
    "ndjson": "application/x-ndjson",
    "array": "application/json",
}


def stream_fields(framing: str) -> list[tuple[str, str]]:
    """The header fields of a stream that nobody on the way may hold back."""
    return [("content-type", CONTENT_TYPES[framing]), ("cache-control", "no-cache"), ("x-accel-buffering", "no")]


def write(framing: str, events: Iterable[Any], done: bytes = b"") -> Iterator[bytes]:
    """Events → the bytes of a body, one piece an event; `done` follows the last one of a whole SSE stream."""
    if framing == "array":
        yield from _write_array(events)
        return
    for event in events:
        yield frame(framing, event)
    if done:
        yield done


def _write_array(events: Iterable[Any]) -> Iterator[bytes]:
    opening = b"["
    for event in events:
        yield opening + dumps(event)
        opening = b",\r\n"
    yield b"]" if opening != b"[" else b"[]"


def frame(framing: str, event: Any) -> bytes:
    """One event's bytes; named-sse takes the `event:` line from the event's own `type`."""
    if framing == "sse":
        return b"data: %s\n\n" % dumps(event)
    if framing == "named-sse":
        return b"event: %s\ndata: %s\n\n" % (str(event.get("type", "message")).encode(), dumps(event))
    return dumps(event) + b"\n"
