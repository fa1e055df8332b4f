"""What leaves for a backend is held against patterns: `deny` refuses the call, `redact` takes the matches out.

A JSON body is searched string by string, names and values, as its reader will understand them: `\\u0041` hides nothing, nor
does JSON in a string. What does not match stays as it is, byte for byte. Anything else is searched as text. A body is held
until it is whole.

A pattern sees at most WINDOW characters at a time, the windows overlapping by OVERLAP: a match longer than that can be missed,
and a slow pattern takes no longer than WINDOW characters can cost it, for each window. `proxy/settings/patterns.py` refuses the
exponential ones.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed has it not
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from proxy.errors import ProxyError, Refused
from proxy.routing import NAME_LIMIT

if TYPE_CHECKING:
    from proxy.relay import Relay

WINDOW, OVERLAP = 16 * 1024, 2 * 1024  # characters
GROUP = 1024  # strings of a body that are taken apart at once
LARGE = 256 * 1024  # bytes of a body that may take long: other calls need not wait for it
INSTEAD = "[redacted]"
STRUCTURE = " \t\r\n{}[]:,"
BOUNDARY = re.compile(r'\bboundary\s*=\s*"?([^";\\\s]+)', re.I)  # as far as it is plain: what begins so splits as well
WORD = re.compile(r"[^ \t\r\n{}\[\]:,]+")
LITERAL = re.compile(r"-?[0-9][0-9.eE+-]*|true|false|null")
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
BLANK = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"  # what may stand before JSON, in any of its encodings
JSON = (b"{", b"[", b'"')  # how it begins
IMAGE = re.compile(r"(?:data:[^,]{0,200},)?[A-Za-z0-9+/_=-]{4096,}\Z")  # base64: nothing in it is somebody's text
LOOKS_AROUND = re.compile(
    r"(?<!\[)\^|\$|\\[AZ]|\(\?(?!:|[aiLmsux]+\))|[+*?}]\+"
)  # may match in a string and not in its context
Pattern = re.Pattern[str]
Function = Callable[..., Any]


def spans(pattern: Pattern, text: str) -> Iterator[tuple[int, int]]:
    """Where a pattern matches, from left to right, looked for window by window."""
    at = 0
    while at < len(text):
        match = pattern.search(text, at, at + WINDOW)
        if match and match.end() > at:
            yield match.span()
            at = match.end()
        elif at + WINDOW >= len(text):
            return
        else:
            at += WINDOW - OVERLAP


def matches(pattern: Pattern, text: str) -> bool:
    """Whether a pattern matches anywhere."""
    if len(text) <= WINDOW:  # the common case, without a generator; an empty match takes nothing, and is none
        match = pattern.search(text)
        if match is None or match.end() > match.start():
            return match is not None
    return any(spans(pattern, text))


def redacted(patterns: Sequence[Pattern], text: str) -> str:
    """A text without what any of them matches."""
    for pattern in patterns:
        parts, at = [], 0
        for start, end in spans(pattern, text):
            parts += [text[at:start], INSTEAD]
            at = end
        text = "".join((*parts, text[at:])) if parts else text
    return text


def tokens(text: str) -> Iterator[tuple[int, int, str, bool]]:
    """The strings and the numbers of a JSON text: where each stands, what it says, whether it is a string. Raises ValueError
    where it is no JSON, as far as that shows."""
    at = 0
    while True:
        quote = text.find('"', at)
        gap = text[at : quote if quote >= 0 else None]
        if gap.strip(STRUCTURE):
            for match in WORD.finditer(gap):
                if not LITERAL.fullmatch(match[0]):
                    raise ValueError("it is no JSON")
                yield at + match.start(), at + match.end(), match[0], False
        if quote < 0:
            return
        said, at = scanstring(text, quote + 1, False)
        yield quote, at, said, True


class Guard:
    """The rules of `guard:`. Thread-safe: it holds nothing else."""

    def __init__(self, deny: Sequence[str], redact: Sequence[str], function: Callable[[str], Function | None]) -> None:
        self._functions = [(f"guard.deny: {name}", found) for name in deny if (found := _named(name, function))]
        self._deny = [(f"guard.deny[{n}]", re.compile(text)) for n, text in enumerate(deny) if not _named(text, function)]
        self._redact = [re.compile(text) for text in redact]
        self._patterns = [pattern for _, pattern in self._deny] + self._redact
        self._all_plain = not any(LOOKS_AROUND.search(pattern.pattern) for pattern in self._patterns)
        self._address = lru_cache(1024)(self._must_pass_decoded)  # an address that is refused is not remembered

    def watch(self, relay: Relay) -> None:
        """Looks at the call's path and query now, and at each body that leaves. Raises Refused (403; 415 for coded bodies)."""
        request, call = relay.request, relay.call
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused("the guard cannot look into a compressed body", status=415, code="guard_cannot_look")
        for text in (call.path, call.query):
            if text not in ("/", ""):
                self._address(text)
        size = len(relay.read())
        kind, has_functions = request.headers.get("content-type", ""), bool(self._functions)
        if call.waits and (self._functions or size > LARGE):
            call.waits.step_aside()
        inner = relay.leaves

        def leaves(body: Any) -> Any:
            if call.model_served:  # of a mapped call it may stand in the backend's path alone
                self._address(call.model_served[:NAME_LIMIT])
            if body:
                facts = {"key_name": call.key_name, "path": call.path, "target": call.target} if has_functions else {}
                body = self.passed(body, kind, facts)
            return inner(body) if inner else body

        relay.leaves = leaves

    def _must_pass_decoded(self, text: str) -> None:
        """Nothing can be taken out of a path or a query: there `redact` denies, too."""
        for _ in range(3):
            self._must_pass(text)
            for n, pattern in enumerate(self._redact):
                if matches(pattern, text):
                    raise _denied(f"guard.redact[{n}]")
            text, before = unquote_plus(text), text
            if text == before:
                return

    def passed(self, body: bytes, kind: str, facts: Mapping[str, Any] = {}) -> bytes:
        """A body as it may leave. `kind`: the content type of the client's. Raises Refused."""
        if body[:1] in JSON or body.lstrip(BLANK)[:1] in JSON:
            try:
                return self._json(body, facts)
            except ValueError:  # it only begins so
                return self._text(body, "", facts)
        main = kind.partition(";")[0].strip().lower()
        boundary = BOUNDARY.search(kind) if main.startswith("multipart/") else None
        mark = b"--" + boundary[1].encode("latin-1", "replace") if boundary else b""
        parts = body.split(mark) if mark else [body]
        return mark.join([self._text(part, main, facts) for part in parts])

    def _json(self, body: bytes, facts: Mapping[str, Any]) -> bytes:
        coding = "utf-8" if body[:1] == b"{" and body[1:2] != b"\0" else json.detect_encoding(body)  # mostly
        text = body.decode(coding, "surrogateescape" if coding.startswith("utf-8") else "replace")
        for name, function in self._functions:
            self._ask(name, function, _value(text), facts)
        changed = self._searched(text)
        if changed is None:
            return body
        return changed.encode(coding, "surrogateescape" if coding.startswith("utf-8") else "replace")

    def _searched(self, text: str) -> str | None:
        """The same JSON without what is to be redacted, None when it may leave as it is. Raises ValueError, Refused."""
        if "\\" not in text and not self._may_match(text):
            return None
        found, parts, at = tokens(text), [], 0
        while group := list(islice(found, GROUP)):
            joined = "\0".join([said for _, _, said, _ in group])
            if "\\" not in joined and not self._may_match(joined):
                continue
            for start, end, said, is_string in group:
                kept = self._kept(said)
                if kept != said:
                    parts += [text[at:start], json.dumps(kept if is_string else INSTEAD)]
                    at = end
        return "".join((*parts, text[at:])) if parts else None

    def _kept(self, said: str) -> str:
        """A string without what is to be redacted. JSON in it, such as a tool's arguments, is taken apart as well. Raises
        Refused."""
        self._must_pass(said)
        if "\\" in said and said.lstrip()[:1] in ("{", "[", '"'):
            with contextlib.suppress(ValueError):  # it only begins so
                said = self._searched(said) or said
        if not self._redact or (len(said) > 4096 and IMAGE.match(said)):
            return said
        return redacted(self._redact, said)

    def _may_match(self, text: str) -> bool:
        """False when none of the patterns can match in any part of a text."""
        if not self._all_plain or len(text) > WINDOW:
            return not self._all_plain or any(matches(pattern, text) for pattern in self._patterns)
        for pattern in self._patterns:  # noqa: SIM110 - twice as fast as `any`; one pattern of them all would be slower still:
            if pattern.search(text):  # `re` looks fast for a literal beginning, and not for one of several
                return True
        return False

    def _text(self, part: bytes, kind: str, facts: Mapping[str, Any]) -> bytes:
        """A body that is no JSON, or a part of it; redacted where it is text."""
        text = part.decode("utf-8", "surrogateescape")
        for name, function in self._functions:
            self._ask(name, function, text, facts)
        self._must_pass(text)
        if "\0" in text:  # UTF-16, maybe
            self._must_pass(text.replace("\0", ""))
        if kind == "application/x-www-form-urlencoded":
            self._must_pass_decoded(text)
        if "\\" in text:  # a file of JSON that is uploaded, or lines of it
            return self._lines(part, text)
        return redacted(self._redact, text).encode("utf-8", "surrogateescape") if self._redact and _is_text(part) else part

    def _lines(self, part: bytes, text: str) -> bytes:
        kept = []
        for line in text.split("\n"):
            try:
                kept.append(self._searched(line) or line)
            except ValueError:
                self._must_pass(ESCAPE.sub(lambda match: chr(int(match[1], 16)), line))
                kept.append(redacted(self._redact, line))
        return "\n".join(kept).encode("utf-8", "surrogateescape") if self._redact and _is_text(part) else part

    def _must_pass(self, text: str) -> None:
        for name, pattern in self._deny:
            if matches(pattern, text):
                raise _denied(name)

    def _ask(self, name: str, function: Function, value: Any, facts: Mapping[str, Any]) -> None:
        """A function of the user's says True, or anything that counts as true, to deny. One that fails denies, too."""
        try:
            denies = function(value, dict(facts))
        except Exception as fault:
            raise ProxyError(f"the rule {name} failed: {type(fault).__name__}", code="guard_failed") from fault
        if denies:
            raise _denied(name)


def _denied(rule: str) -> Refused:
    return Refused(f"the guard refuses this request: rule {rule}", code="guard_denied")


def _named(text: str, function: Callable[[str], Function | None]) -> Function | None:
    return function(text) if text.isidentifier() else None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_text(part: bytes) -> bool:
    if b"\0" in part:
        return False
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True
