"""A backend's answer, read: its fields, its body whole and unpacked within a limit, its errors as facts without the key."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

from proxy import wire
from proxy.config import Target
from proxy.errors import BackendError
from proxy.http1 import Fields
from proxy.translate import Endpoint, facts_of

ERROR_LIMIT = 1024 * 1024  # bytes of a backend's error body that are read
ANSWER_LIMIT = 64 * 1024 * 1024  # bytes of an answer that is held
RETRY_INFO = ("retry-after", "x-should-retry")
CODINGS = ("gzip", "x-gzip", "deflate")
STREAMS = ("text/event-stream", "application/x-ndjson", "application/jsonl", "application/x-jsonlines")


def overhear(raw: Any, hear: Callable[[bytes], bytes | None]) -> None:
    """Lets `hear` have every piece of a body's payload as it comes, whoever reads it: a mapper, a relay or the pump.
    What it gives back, unless None, is read in the place of the piece."""
    name = "take" if raw.conn is not None else "read1"  # where pieces come off a socket, and where they are made
    inner = getattr(raw, name)

    def overheard(*wire: bytes) -> bytes:
        piece: bytes = inner(*wire)
        changed = hear(piece) if piece else None
        if changed == b"" and name == "read1":  # which would be the end
            return overheard()
        return piece if changed is None else changed

    setattr(raw, name, overheard)


def field_of(fields: Fields, name: str) -> str | None:
    for key, value in fields:
        if key == name:
            return value
    return None


def kind_of(fields: Fields) -> str:
    return (field_of(fields, "content-type") or "").partition(";")[0].strip().lower()


def read_all(raw: Any, limit: int) -> bytes:
    """A whole body, its content coding taken off. Raises BackendError past `limit` bytes, coded or not."""
    parts, size = [], 0
    for piece in raw:
        size += len(piece)
        if size > limit:
            raise BackendError(f"the backend's answer is larger than {limit} bytes")
        parts.append(piece)
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    coding = field_of(raw.fields, "content-encoding")
    return _inflated(body, coding.lower(), limit) if coding and coding.lower() != "identity" else body


def _inflated(body: bytes, coding: str, limit: int) -> bytes:
    if coding not in CODINGS:
        raise BackendError(f"the backend's answer has the content coding {coding!r}, which nobody asked for")
    inflate = zlib.decompressobj(47 if coding != "deflate" else zlib.MAX_WBITS)
    try:
        out = inflate.decompress(body, limit)
    except zlib.error as fault:
        raise BackendError("the backend's compressed answer is broken") from fault
    if not inflate.eof:
        raise BackendError("the backend's compressed answer is cut off or too large")
    return out


def decoded(body: bytes) -> Any:
    """An error body for `parse_error`: decoded JSON, or its text."""
    try:
        return wire.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def json_answer(body: bytes) -> Any:
    """A backend's JSON answer. Raises BackendError when it is none."""
    try:
        return wire.loads(body)
    except ValueError as fault:
        raise BackendError(f"the backend's answer is not JSON: {fault}") from None


def scrubbed(error: BackendError, target: Target) -> BackendError:
    for key in tuple(target.secrets):  # another call may bring a new one
        error.message = error.message.replace(key, "***")
        error.headers = tuple((name, value.replace(key, "***")) for name, value in error.headers)
    return error


def scrubbing(events: Iterator[Any], target: Target) -> Iterator[Any]:
    """The events; an error that a mapper found among them is told without the key."""
    try:
        yield from events
    except BackendError as error:
        raise scrubbed(error, target) from error


def unless_error(event: Any, endpoint: Endpoint) -> Any:
    """The first event of a stream, unless it is an error told with status 200: that becomes a status again."""
    if isinstance(event, dict) and event.get("error") and "choices" not in event:
        error = facts_of(502, event, endpoint.api)
        raise scrubbed(error, endpoint.target)
    return event


def raise_for_error(status: int, raw: Any, endpoint: Endpoint) -> None:
    """A status of 400 and more as BackendError, with what its dialect says of it, and what helps to try again."""
    if status < 400:
        return
    error = facts_of(status, decoded(read_all(raw, ERROR_LIMIT)), endpoint.api)
    kept = [(name, value) for name, value in raw.fields if name in RETRY_INFO or name.startswith("x-ratelimit-")]
    error.headers = (*error.headers, *kept)
    raise scrubbed(error, endpoint.target)
