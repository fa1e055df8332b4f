"""Secrets out of what is kept: keys of the configuration and of the client, what looks like a key, what a pattern matches."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from proxy import wire
from proxy.config import Config
from proxy.errors import BackendError
from proxy.gates.keys import ALL_HEADERS

SHORTEST = 16  # characters of what is taken for a secret because of its header's name alone
MASK = "***"
SECRET_NAME = re.compile(r"auth|key|token|secret|cookie|password|signature|credential", re.I)
SECRET_QUERY = re.compile(r"([?&][\w-]*(?:key|token|sig|secret)[\w-]*=)[^&#]*", re.I)
SHAPES = (  # what looks like a key, whoever's it is
    r"\bsk-[A-Za-z0-9_-]{16,}",
    r"\bAIza[A-Za-z0-9_-]{35}",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    r"\bhf_[A-Za-z0-9]{30,}",
    r"\bgh[pousr]_[A-Za-z0-9]{36}",
    r"\bBearer [A-Za-z0-9._~+/-]{16,}=*",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:(?!-----BEGIN)[\s\S])*?-----END [A-Z ]*PRIVATE KEY-----",  # in linear time
)


HINTS = (
    "sk-",
    "AIza",
    "AKIA",
    "ASIA",
    "hf_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "Bearer ",
    "PRIVATE KEY-----",
)  # in those


class Unfit(Exception):
    """A call that cannot be kept, and why."""


def cut_at(body: bytes, cuts: list[int]) -> list[bytes]:
    """A body in pieces that end at those places, and at its own end."""
    places = [0, *cuts, len(body)]
    return [body[start:end] for start, end in itertools.pairwise(places)]


@dataclass(frozen=True)
class Sought:
    """What to look for in one client's calls. `patterns`: all of it; `known`: without what the user wants redacted."""

    forms: tuple[str, ...]
    known: tuple[re.Pattern[str], ...]
    patterns: tuple[re.Pattern[str], ...]

    def in_text(self, text: str) -> bool:
        """Whether anything but the user's patterns is there; most texts are looked through at the speed of memchr."""
        for form in self.forms:  # a loop: `any` makes a generator, which costs more than it looks at
            if form in text:
                return True
        for hint in HINTS:
            if hint in text:
                return any(pattern.search(text) for pattern in self.known)
        return False

    def redacts(self, text: str) -> bool:
        """Whether one of the user's patterns matches."""
        return any(pattern.search(text) for pattern in self.patterns[len(self.known) :])

    def masked(self, value: Any, patterns: Iterable[re.Pattern[str]]) -> Any:
        """A decoded body with what those patterns match taken out of each of its texts."""
        if isinstance(value, str):
            for pattern in patterns:
                value = pattern.sub(MASK, value)
            return value
        if isinstance(value, dict):
            return {self.masked(name, patterns): self.masked(member, patterns) for name, member in value.items()}
        return [self.masked(member, patterns) for member in value] if isinstance(value, list) else value


class Cleaner:
    """Takes secrets out: the configuration's keys, what looks like a key, and what the given patterns match."""

    def __init__(self, config: Config, redact: Iterable[str] = ()) -> None:
        self._config = config
        self._patterns = [re.compile(pattern) for pattern in (*SHAPES, *redact)]
        self._sought = lru_cache(256)(self._made)

    def patterns(self, headers: Mapping[str, str]) -> list[re.Pattern[str]]:
        """What to look for in a call whose client sent those headers."""
        return list(self.sought(headers).patterns)

    def sought(self, headers: Mapping[str, str]) -> Sought:
        """The same, to ask first whether anything of it is there. A target's keys may change: they are asked for anew."""
        config = self._config
        secrets = {config.master_key, *(key for target in config.targets.values() for key in tuple(target.secrets))}
        told = {name: value.rpartition(" ")[2] for name, value in headers.items() if _is_secret(name)}
        # a header of the client's own making must not take common words out of its records
        secrets |= {word for name, word in told.items() if name in ALL_HEADERS or len(word) >= SHORTEST}
        return self._sought(frozenset(secrets))

    def _made(self, secrets: frozenset[str]) -> Sought:
        forms = {form for key in secrets if len(key) >= 4 for form in (key, json.dumps(key)[1:-1], quote(key, safe=""))}
        ordered = tuple(sorted(forms, key=len, reverse=True))
        literal = [re.compile("|".join(map(re.escape, ordered)))] if forms else []
        known = (*literal, *self._patterns[: len(SHAPES)])
        return Sought(ordered, known, (*literal, *self._patterns))

    def body(self, pieces: list[bytes], kind: str, patterns: list[re.Pattern[str]]) -> list[bytes]:
        """A body without secrets, its cuts moved along. Raises Unfit where one is left, or the body is broken by it.

        `kind`: its media type, "" for JSON.
        """
        raw = b"".join(pieces)
        text = raw.decode("utf-8", "surrogateescape")
        spans = _spans(text, patterns)
        clean = _masked(text, spans)
        if spans and _readable(raw, kind) and not _readable(clean, kind):
            raise Unfit("a body is not JSON any more once its secrets are out")
        for joined in _strings(clean, kind):
            if any(pattern.search(joined) for pattern in patterns):
                raise Unfit("a secret is spread over the pieces of a body, or written in escapes")
        if not spans:
            return pieces
        cuts = {_moved(cut, text, spans) for cut in itertools.accumulate(map(len, pieces[:-1]))}
        return cut_at(clean, sorted(cuts - {0, len(clean)}))

    def line(self, text: str, patterns: list[re.Pattern[str]]) -> str:
        """A header's value or a url."""
        for pattern in patterns:
            text = pattern.sub(MASK, text)
        return SECRET_QUERY.sub(rf"\1{MASK}", text)

    def headers(self, given: Iterable[tuple[str, str]], patterns: list[re.Pattern[str]]) -> dict[str, str]:
        """Headers, with the values masked of those that carry a secret by their name."""
        return {name: MASK if SECRET_NAME.search(name) else self.line(value, patterns) for name, value in given}


@lru_cache(1024)
def _is_secret(name: str) -> bool:
    return SECRET_NAME.search(name) is not None


def _spans(text: str, patterns: list[re.Pattern[str]]) -> list[tuple[int, int]]:
    """What the patterns match, in order, what overlaps as one."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(match.span() for pattern in patterns for match in pattern.finditer(text)):
        if start == end:
            continue
        if out and start < out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def _masked(text: str, spans: list[tuple[int, int]]) -> bytes:
    parts, at = [], 0
    for start, end in spans:
        parts += [text[at:start], MASK]
        at = end
    return "".join([*parts, text[at:]]).encode("utf-8", "surrogateescape")


def _moved(cut: int, text: str, spans: list[tuple[int, int]]) -> int:
    """Where a cut at that byte lies once the spans are masked; one within a span comes behind it."""
    moved = cut
    for start, end in spans:
        first = len(text[:start].encode("utf-8", "surrogateescape"))
        size = len(text[start:end].encode("utf-8", "surrogateescape"))
        if first >= cut:
            break
        moved += len(MASK) - min(size, cut - first) if cut < first + size else len(MASK) - size
    return moved


def events_of(body: bytes, kind: str) -> list[Any]:
    """The events of a stream, or the one value of a JSON body. Raises ValueError, BackendError."""
    if kind == "application/json" or not kind:
        return [wire.loads(body)] if body else []
    return list(wire.reader(kind)([body]))


def _readable(body: bytes, kind: str) -> bool:
    try:
        events_of(body, kind)
    except (ValueError, BackendError):
        return False
    return True


def joined(value: Any) -> str:
    """All texts of a decoded body, one after the other."""
    return "\0".join([text for _, text in _texts(value, "")])


def _strings(body: bytes, kind: str) -> Iterator[str]:
    """The texts in a body as a reader sees them: unescaped, a stream's put together place by place."""
    try:
        events = events_of(body, kind)
    except (ValueError, BackendError):
        return
    found: dict[str, str] = {}
    for event in events:
        for path, text in _texts(event, ""):
            found[path] = found.get(path, "") + text
    yield from found.values()


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        yield from _texts(member, f"{path}/{name}")
    if isinstance(value, str):
        yield path, value
