"""Usage of OpenAI's streams: asked for where a call is charged, and taken out of what a client gets that did not ask for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from proxy import wire

if TYPE_CHECKING:
    from proxy.gates.asked import Asked

ASK = b'"stream_options":{"include_usage":true},'
USAGE = re.compile(rb'"usage"\s*:\s*\{')
HELD = 1024 * 1024  # bytes of a line that are held to look into it


def asked_too(asked: Asked) -> None:
    """Sets that up for a call. Mapped calls need it not: the hub asks, and its grammar takes the usage out."""
    if asked.call.front != "openai" or asked.kind not in ("chat", "text") or asked.body.get("stream") is not True:
        return
    options = asked.body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage") is True:
        return
    relay, inner = asked.relay, asked.relay.leaves
    unasked = Unasked()

    def leaves(body: Any) -> Any:
        place = relay.generation.places[asked.call.target or ""]
        found = relay.generation.find(place, asked.call.front, asked.call.method, asked.call.path)
        unasked.is_on = found is not None and not found[0].mapped
        body = with_usage(body) if unasked.is_on else body
        return inner(body) if inner else body

    relay.leaves = leaves
    relay.hears = (*relay.hears, unasked.hear)


def with_usage(body: bytes) -> bytes:
    """A request for a stream that asks for its usage: spliced, unless it says something of the kind already."""
    if b'"stream_options"' not in body and b"\\u00" not in body:  # an escaped name would hide it
        return body.replace(b"{", b"{" + ASK, 1)
    value = wire.loads(body)
    options = value.get("stream_options")
    return wire.dumps({**value, "stream_options": {**(options if isinstance(options, dict) else {}), "include_usage": True}})


class Unasked:
    """Takes the event out that holds nothing but usage. A line that is cut is held until its rest has come."""

    def __init__(self) -> None:
        self.is_on = False
        self._held = b""
        self._skips = False  # the empty line behind what was taken out

    def hear(self, piece: bytes) -> bytes:
        """The next bytes → what of them the client gets."""
        if not self.is_on:
            return piece
        data, self._held = self._held + piece, b""
        lines = data.splitlines(keepends=True)
        if not lines[-1].endswith(b"\n") and self._may_be(lines[-1]):
            self._held = lines.pop()
        return b"".join([line for line in lines if not self._takes(line)])

    def _may_be(self, line: bytes) -> bool:
        """Whether a line without an end may become such an event; a whole one whose end was forgotten may not."""
        if line == b"\r":  # of an empty line, which may have to go too
            return True
        if not b"data:".startswith(line[:5]) or len(line) > HELD or line.rstrip() == b"data: [DONE]":
            return False
        return not line.endswith(b"}") or _event(line) is None or _is_usage(line)

    def _takes(self, line: bytes) -> bool:
        skips, self._skips = self._skips, False
        if skips and not line.strip():
            return True
        self._skips = _is_usage(line)
        return self._skips


def _event(line: bytes) -> Any:
    try:
        return wire.loads(line.removeprefix(b"data:"))
    except ValueError:
        return None


def _is_usage(line: bytes) -> bool:
    event = _event(line) if USAGE.search(line) else None
    return isinstance(event, dict) and event.get("choices") == [] and isinstance(event.get("usage"), dict)
