"""A model under another name where bytes are relayed: the backend is asked for the real one, the client reads its own.

Bytes are spliced, not written anew: whatever else stands in a body stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from proxy import wire
from proxy.errors import BackendError

# bounded: each turn of a repeated group costs 150 bytes
MODEL = re.compile(rb'("model"\s*:\s*)"(?:[^"\\]|\\.){0,2000}"')


def with_model(raw: bytes, body: dict[str, Any], model: str) -> bytes:
    """A request body with another `model`: spliced where that is safe, else written anew. `body`: it, decoded."""
    spliced, times = MODEL.subn(lambda match: match[1] + wire.dumps(model), raw)
    # an escaped name would hide the one that counts
    safe = times == 1 and len(str(body["model"])) <= 128 and b"\\u00" not in raw
    return spliced if safe else wire.dumps({**body, "model": model})


def named(data: bytes, asked: str) -> bytes:
    """An answer, or one line of a stream, that says the name that was asked for."""
    name = wire.dumps(asked)
    return MODEL.sub(lambda match: match[1] + name, data, count=1)


def named_lines(pieces: Iterable[bytes], asked: str) -> Iterator[bytes]:
    """A stream's lines as they become whole, each with that name. Raises BackendError for a line without end."""
    return (named(line, asked) for line in _whole_lines(pieces))


def _whole_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        end = piece.rfind(b"\n") + 1
        if end:
            yield from b"".join((*held, piece[:end])).splitlines(keepends=True)
            held, size, piece = [], 0, piece[end:]
        held.append(piece)
        size += len(piece)
        if size > wire.EVENT_LIMIT:
            raise BackendError(f"the backend sent a line of more than {wire.EVENT_LIMIT} bytes")
    if size:
        yield b"".join(held)
