"""What the supervisor and its workers have between them: the frames of a Unix socket, and a page of memory.

A message is a frame: the lengths of its two parts (two 32-bit numbers, network order), JSON, and the bytes of a plan, a verdict
or a cache's entry.

A page shared since before the fork has one byte per hash of a name: 0 means that no such name has failed or rests, so that a
worker need not ask.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from proxy.state import Budget, Claim, Line, Plan, Rate, Slot

HEAD = struct.Struct("!II")
JSON_LIMIT, DATA_LIMIT = 1 << 20, 1 << 28  # bytes of a frame's parts
READ = 1 << 16  # bytes that either side reads at once
MARKS = 1 << 20  # bytes of the shared page
KINDS: Mapping[str, tuple[type[Claim], tuple[Callable[[Any], Any], ...]]] = {
    "r": (Rate, (str, int, float, bool)),
    "b": (Budget, (str, int, str)),
    "s": (Slot, (str, int)),
}
NAMES = {kind: name for name, (kind, _) in KINDS.items()}
ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
MALFORMED = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)  # by what is no question


def packed(plan: Plan) -> bytes:
    """A plan as JSON: its rates, what is charged, its slots, its line."""
    parts = (plan.rates, plan.charged, plan.slots)
    return ENCODE([*[[[NAMES[type(claim)], *claim] for claim in claims] for claims in parts], plan.line]).encode()


def unpacked(data: bytes) -> Plan:
    """The plan again. Raises one of MALFORMED."""
    *parts, line = json.loads(data)
    rates, charged, slots = ([_claim(*each) for each in claims] for claims in parts)
    return Plan(rates, charged, slots, line and Line(str(line[0]), int(line[1])))


def _claim(name: str, *values: Any) -> Any:
    kind, types = KINDS[name]
    return kind(*[of(value) for of, value in zip(types, values, strict=True)])


def frame(value: Any, data: bytes = b"") -> bytes:
    """A message."""
    text = ENCODE(value).encode()
    return HEAD.pack(len(text), len(data)) + text + data


def unframe(buffer: bytes | bytearray) -> tuple[Any, bytes, int] | None:
    """The first message in a buffer, its data and its length in all; None until it is whole. Raises ValueError."""
    if len(buffer) < HEAD.size:
        return None
    text_bytes, data_bytes = HEAD.unpack_from(buffer)
    if text_bytes > JSON_LIMIT or data_bytes > DATA_LIMIT:
        raise ValueError("a frame is too long")
    middle = HEAD.size + text_bytes
    end = middle + data_bytes
    if len(buffer) < end:
        return None
    return json.loads(buffer[HEAD.size : middle]), bytes(buffer[middle:end]), end


def mark_of(name: str) -> int:
    """The place of a name in the shared page."""
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) % MARKS


class Marks:
    """The shared page, written by the service alone."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, MARKS)
        self._counts: dict[int, int] = {}

    def marked(self, name: str, exists: bool) -> None:
        """See Memory."""
        place = mark_of(name)
        count = self._counts.pop(place, 0) + (1 if exists else -1)
        if count:
            self._counts[place] = count
        self.page[place] = 1 if count else 0
