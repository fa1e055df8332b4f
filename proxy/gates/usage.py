"""What a call really used: prompt, cached and output tokens, read out of what the backend answered, in whatever API's words.

`tokens_in` is everything that went in, what came from a cache included, as OpenAI counts. Anthropic counts what was cached
beside `input_tokens`, in a stream's first event; Gemini its thoughts beside its candidates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy import wire
from proxy.logs import usage_in

HEAD = 8 * 1024  # bytes of an answer's beginning that are kept
TAIL = 32 * 1024  # of its end
WHOLE = 1024 * 1024  # an answer up to this length is kept whole, unless it is a stream
TELLS = re.compile(rb'"(?:usage|usageMetadata|prompt_eval_count|tokens_predicted|generated_tokens)"\s*:\s*[{0-9]')
LAST = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})[^{}\[\]]*\}\s*\Z')  # the outermost object's
STARTED = ("message", "usage")  # Anthropic's message_start
METADATA = ("metadata", "usage")  # a whole event of Bedrock's; elsewhere metadata is the client's own
PLACES = (  # of an event or an answer, where the counts stand
    ("usage",),
    STARTED,
    ("response", "usage"),  # Responses' response.completed
    ("x_groq", "usage"),
    ("usageMetadata",),
    ("response", "usageMetadata"),
    METADATA,
    ("details",),  # text-generation-inference
    (),  # Ollama, llama.cpp
)
IN = (
    *(("prompt_tokens",), ("input_tokens",), ("promptTokenCount",)),
    *(("prompt_eval_count",), ("tokens_evaluated",), ("input_length",)),  # Ollama, llama.cpp, text-generation-inference
    *(("inputTokens",), ("inputTextTokenCount",)),  # Bedrock
)
OUT = (
    *(("completion_tokens",), ("output_tokens",), ("candidatesTokenCount",)),
    *(("eval_count",), ("tokens_predicted",), ("generated_tokens",), ("outputTokens",)),
)
CACHED = (
    ("prompt_tokens_details", "cached_tokens"),
    ("input_tokens_details", "cached_tokens"),
    ("cache_read_input_tokens",),
    ("cachedContentTokenCount",),
    ("cacheReadInputTokens",),
    ("prompt_cache_hit_tokens",),  # DeepSeek
)
BESIDE_IN = (
    *(("cache_read_input_tokens",), ("cache_creation_input_tokens",), ("toolUsePromptTokenCount",)),
    *(("cacheReadInputTokens",), ("cacheWriteInputTokens",)),
)
BESIDE_OUT = (("thoughtsTokenCount",),)


@dataclass
class Usage:
    """Tokens; None: not told."""

    tokens_in: int | None = None
    tokens_out: int | None = None
    cached: int | None = None

    def fill(self, other: Usage) -> None:
        """Takes over what is not known here."""
        self.tokens_in = other.tokens_in if self.tokens_in is None else self.tokens_in
        self.tokens_out = other.tokens_out if self.tokens_out is None else self.tokens_out
        self.cached = other.cached if self.cached is None else self.cached

    @property
    def known(self) -> bool:
        """Whether anything was told."""
        return self.tokens_in is not None or self.tokens_out is not None


def _at(value: Any, path: Iterable[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _count(counts: Mapping[str, Any], path: tuple[str, ...]) -> int | None:
    value = counts.get(path[0]) if len(path) == 1 else _at(counts, path)
    return value if type(value) is int and 0 <= value < 1 << 48 else None  # no bool


def _first(counts: Mapping[str, Any], paths: Iterable[tuple[str, ...]]) -> int | None:
    for path in paths:
        if path[0] in counts and (found := _count(counts, path)) is not None:
            return found
    return None


def _sum(counts: Mapping[str, Any], paths: Iterable[tuple[str, ...]]) -> int:
    total = 0
    for path in paths:
        if path[0] in counts:
            total += _count(counts, path) or 0
    return total


def told(event: Any) -> Usage:
    """What an answer, or one event of a stream, tells."""
    for place in PLACES if isinstance(event, dict) else ():
        counts = event.get(place[0]) if len(place) == 1 else _at(event, place)
        if isinstance(counts, dict) and not (place is METADATA and len(event) > 1):
            found = of_counts(counts, place == STARTED)
            if found.known:
                return found
    return Usage()


def of_counts(counts: Mapping[str, Any], started: bool = False) -> Usage:
    """What counts tell. started: what comes out is told at the end."""
    tokens_in, tokens_out = _first(counts, IN), None if started else _first(counts, OUT)
    if tokens_in is not None:
        tokens_in += _sum(counts, BESIDE_IN)
    if not started and (beside := _sum(counts, BESIDE_OUT)):
        tokens_out = (tokens_out or 0) + beside
    return Usage(tokens_in, tokens_out, _first(counts, CACHED))


class Meter:
    """Hears a backend's answer as it comes, and keeps its beginning and its end."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Another answer is coming."""
        self.size = self._lines = self._kept = 0
        self._head = b""
        self._parts: list[bytes] = []
        self._streams: bool | None = None

    def hear(self, piece: bytes) -> None:
        """The next bytes."""
        self.size += len(piece)
        if len(self._head) < HEAD:
            self._head = head = self._head + piece[: HEAD - len(self._head)]
            self._streams = head[:1] != b"{" and head.lstrip()[:1] not in (b"{", b"[", b"")
        self._lines += piece.count(b"\n")
        self._parts.append(piece)
        self._kept += len(piece)
        if self._kept > (2 * TAIL if self._streams else WHOLE):
            self._parts = [b"".join(self._parts)[-TAIL:]]
            self._kept = len(self._parts[0])

    def usage(self, whole: bool = False) -> Usage:
        """What the answer tells, as far as it has come. whole: to its end."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if not self._streams and self._kept == self.size:
            at = data.rfind(b'"usage"') if whole else -1  # no text can hold that: its quotes would be escaped
            if at >= 0 and (last := LAST.match(data, at)):  # the common case: the rest need not be read
                found = self._of_counts(last[1])
                if found.tokens_in is not None and found.tokens_out is not None:
                    return found
            try:
                value = wire.loads(data)
            except ValueError:  # lines of JSON, or cut off
                return self._of_lines(data)
            if not isinstance(value, list):
                return told(value)
            found = Usage()
            for each in reversed(value):  # Gemini's array of events
                found.fill(told(each))
            return found
        return self._of_lines(data)

    def _of_counts(self, data: bytes) -> Usage:
        try:
            return of_counts(wire.loads(data))
        except ValueError:  # a text in it has a brace
            return Usage()

    def _of_lines(self, data: bytes) -> Usage:
        found = Usage()
        head = () if self._kept == self.size else self._head.splitlines()
        for line in (*reversed(data.splitlines()), *reversed(head)):
            if TELLS.search(line):
                try:
                    found.fill(told(wire.loads(line.removeprefix(b"data:"))))
                except ValueError:  # cut, or no line of its own
                    continue
        if not found.known:
            found.tokens_in, found.tokens_out = usage_in(data)
        return found

    @property
    def streamed(self) -> int:
        """About how many tokens have come, where nobody told: an event is at least one, four bytes of text are one."""
        if not self._streams:
            events = self._lines if self._head.count(b"}\n") > 1 else 0  # NDJSON
            first = self._head.find(b"\n") + 1 if events else 0
        else:
            named = self._head.startswith(b"event:")
            events = self._lines // (3 if named else 2)
            first = max(self._head.find(mark) + len(mark) for mark in (b"\n\n", b"\r\n\r\n"))
        framing = events * max(first, 0) if events else 0
        return max(events, (self.size - framing) // 4)
