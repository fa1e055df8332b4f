"""A call that has ended → its row: bodies decoded, streams folded, all in the hub's shape, secrets taken out, texts bounded.

Secrets of the configuration, of the client and what looks like one are looked for in everything. The user's `redact` patterns
see at most `body_limit` of a body, as nobody knows how slow they are. What cannot be decoded is kept as the text that it is.
"""

from __future__ import annotations

import itertools
import logging
import re
import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from proxy import wire
from proxy.call import Call
from proxy.config import Calls, Config
from proxy.dialects import Dialect, load, path_params, route_of
from proxy.errors import ProxyError
from proxy.folding import hub_of_answer, hub_of_request, hub_of_stream
from proxy.gates.usage import told as usage_told
from proxy.records.marks import marks, title_of
from proxy.records.secrets import Cleaner, Sought, Unfit, joined
from proxy.records.store import Row

logger = logging.getLogger(__name__)

Json = dict[str, Any]
FACTS = (  # of a call that its row takes over
    *("id", "key_name", "client", "front", "method", "path", "target", "model_asked", "model_served", "status"),
    *("error_source", "error", "tokens_in", "tokens_cached", "tokens_out", "cost", "cache", "attempts", "tags"),
)
FAULTS = (
    ProxyError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)  # of a body that is not as it should be
CUTS = (16_384, 2048, 256, 64)  # characters to which a body's texts are cut until it fits
WRITTEN = 256  # characters of a name that a client chose
EVENTS = 4096  # of a stream, whose times are kept
ENDS = {  # media type of a stream → an event of it, to its end
    "text/event-stream": re.compile(rb"(?m)^data:[^\n]*(?:\n[^\r\n][^\n]*)*(?:\n\r?\n|\r?\n?\Z)"),
    "application/x-ndjson": re.compile(rb"[^\n]*[^\s][^\n]*(?:\n|\Z)"),
}
CODED = ("gzip", "x-gzip", "deflate")


@dataclass
class Taken:
    """What passed in a call, as it ended. A body is None when it was not kept: its size says how much it was."""

    call: Call
    at: float  # seconds since the epoch, when it began
    total_ms: float
    headers: Mapping[str, str]
    asked: bytes | None = None
    sent: bytes | None = None
    got: bytes | None = None
    told: bytes | None = None
    coding: str = ""  # of `told`, and of `got` where it is the same
    got_kind: str = ""  # its media type
    reached: bool = False  # a backend
    tokens: tuple[int | None, int | None] = (None, None)  # as counted while it went
    pieces: tuple[Sequence[float], Sequence[int]] = ((), ())  # of `told`: when each went (as call.started), and its bytes


CALL = tuple(each.name for each in fields(Call) if each.name != "waits")
OF_CALL = attrgetter(*CALL)  # what the process that makes rows is given
OF_TAKEN = attrgetter(*(each.name for each in fields(Taken) if each.name != "call"))


class Rows:
    """Makes the rows of one configuration."""

    def __init__(self, config: Config, kept: Calls) -> None:
        self._kept = kept
        self._cleaner = Cleaner(config, kept.redact)

    def of(self, taken: Taken) -> Row:
        """The row of a call."""
        call, sought = taken.call, self._cleaner.sought(taken.headers)
        reading = Reading(taken, self._kept)
        row = Row(at=taken.at, total_ms=taken.total_ms, **{name: getattr(call, name) for name in FACTS})
        row.first_ms = None if call.first_byte_s is None else call.first_byte_s * 1000
        row.losses, row.stream = call.lost, reading.streams
        self._count(row, reading, taken)
        given = taken.headers.get((self._kept.user_header or "").lower()) or reading.user
        row.user = None if given is None else given[:WRITTEN]
        row.images = reading.images
        row.conversation, row.about = call.conversation or reading.root, call.about
        if reading.kind == "chat" and call.about is None:
            row.follows, row.leaves = marks(row.key_name, reading.request, reading.response)
        for name in ("user", "path", "error", "model_asked", "model_served", "conversation"):
            text = getattr(row, name)
            if text:
                setattr(row, name, self._line(text[: 8 * WRITTEN], sought))
        if self._kept.bodies:
            try:
                self._fill(row, reading, taken, sought)
            except RecursionError:  # costs the bodies, not the row: nobody hides a call by how deep its body is
                row.request = row.response = None
                row.bodies = dict.fromkeys(("asked", "sent", "got", "told"), "(withheld: nested too deeply)")
        return row

    def _line(self, text: str, sought: Sought) -> str:
        clean = sought.masked(text, sought.patterns) if sought.in_text(text) or sought.redacts(text) else text
        return str(clean)

    def _count(self, row: Row, reading: Reading, taken: Taken) -> None:
        row.tokens_in, row.tokens_out = taken.tokens
        if taken.tokens == (None, None):
            usage = usage_told(reading.response)
            row.tokens_in, row.tokens_out, row.tokens_cached = usage.tokens_in, usage.tokens_out, usage.cached
        answered = reading.response.get("model") if isinstance(reading.response, dict) else None
        row.model_served = row.model_served or (answered[:WRITTEN] if isinstance(answered, str) else None) or None
        row.model_asked = row.model_asked or reading.model

    # --- bodies
    def _fill(self, row: Row, reading: Reading, taken: Taken, sought: Sought) -> None:
        """Request, response, and the four bodies but for what is the same as others."""
        row.request, asked_clean = self._value(reading.request, taken.asked, sought)
        row.response, told_clean = self._value(reading.response, reading.told, sought, reading.streams)
        title = self._line(taken.call.title, sought) if taken.call.title else title_of(row.request)
        row.title = title if row.leaves else None
        bodies: dict[str, str | None] = {}
        mapped = taken.reached and taken.sent is not taken.asked  # then byte for byte: a cassette may be made of it
        if mapped or not (asked_clean and reading.request is reading.body is not None):
            bodies["asked"] = self._text(taken.asked, "", sought, not asked_clean)
        if mapped or not (told_clean and reading.is_plain):
            bodies["told"] = self._text(reading.told, reading.told_kind, sought, not told_clean)
        if not taken.reached:
            bodies |= {"sent": "", "got": ""}
        if mapped:
            bodies["sent"] = self._text(taken.sent, "", sought, not asked_clean)
        if taken.reached and taken.got is not taken.told:
            bodies["got"] = self._text(taken.got, taken.got_kind, sought, not told_clean)
        row.bodies = {name: text for name, text in bodies.items() if text is not None}
        row.times = _times(taken, reading)

    def _value(self, value: Any, raw: bytes | None, sought: Sought, folded: bool = False) -> tuple[Any, bool]:
        """A decoded body without secrets and within the limit, and whether that is the body as it was."""
        if value is None or raw is None:
            return None, False
        limit, is_clean = self._kept.body_limit, True
        hides = folded or b"\\" in raw  # what is spread over a stream's events, or escaped, is seen in the value alone
        if sought.in_text(raw.decode("utf-8", "replace")) or (hides and sought.in_text(joined(value))):
            value, is_clean = sought.masked(value, sought.known), False
        short = value if len(raw) <= limit // 2 else _bounded(value, limit)
        if self._kept.redact and sought.redacts(joined(short)):
            short, is_clean = sought.masked(short, sought.patterns), False
        return short, is_clean and short is value

    def _text(self, raw: bytes | None, kind: str, sought: Sought, suspect: bool) -> str | None:
        """A body as text, without secrets and within the limit."""
        if raw is None:
            return "(not kept: it was too large, or went through in pieces)"
        limit = self._kept.body_limit
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return f"({len(raw)} bytes that are no text)"
        if suspect or sought.in_text(text) or sought.redacts(text[:limit]):
            if len(raw) > limit:
                return f"(withheld: {len(raw)} bytes with a secret in them, or that could not be looked through)"
            try:
                text = b"".join(self._cleaner.body([raw], kind, list(sought.patterns))).decode()
            except Unfit as why:
                return f"(withheld: {why})"
        return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


class Reading:
    """A call's bodies, decoded. `request`, `response`: in the hub's shape, None where that cannot be told."""

    def __init__(self, taken: Taken, kept: Calls) -> None:
        self._taken, call = taken, taken.call
        front, route = load(call.front), route_of(call.front, call.method, call.path)
        self.kind = route.kind if route else None
        self.told = _unpacked(taken.told, taken.coding)
        self.body = _decoded(taken.asked)
        body: Json = self.body if isinstance(self.body, dict) else {}
        params = path_params(call.front, call.method, call.path)
        cfg = {"id": call.id, "now": call.now, "kind": self.kind, "params": params, "query": call.query, "request": body}
        self.request = self._request(front, cfg)
        self.streams = self._is_stream(front, route.stream if route else None, body)
        self.told_kind = wire.CONTENT_TYPES[front.framing(call.query)].partition(";")[0] if self.streams else ""
        self.is_plain = False  # `response` is `told`, decoded
        self.response = self._response(front, cfg) if self.told and call.status < 400 else None
        found = [
            body.get("user"),
            (body.get("metadata") or {}).get("user_id") if isinstance(body.get("metadata"), dict) else None,
        ]
        self.user = next((str(name) for name in found if isinstance(name, (str, int)) and name != ""), None)
        self.model = next((name for name in (body.get("model"), params.get("model")) if isinstance(name, str)), None)
        root = body.get("root_id")
        self.root = root if isinstance(root, str) and 0 < len(root) <= 64 else None
        self.images = _images(body) if call.path.endswith("/images/generations") else None

    def _request(self, front: Dialect, cfg: Mapping[str, Any]) -> Any:
        if self.body is None:
            return None
        try:
            return hub_of_request(front, self.kind, self.body, cfg)
        except FAULTS:
            return self.body  # what is refused is kept as it was asked

    def _is_stream(self, front: Dialect, by_path: bool | None, body: Json) -> bool:
        """Whether the reply was a stream: asked for, and not answered with one JSON value."""
        given = body.get("stream", front.stream_default) if by_path is None and self.kind != "embed" else by_path
        framed = front.framing(self._taken.call.query) in ("sse", "named-sse")
        return given is True and not (framed and (self.told or b"").lstrip()[:1] == b"{")

    def _response(self, front: Dialect, cfg: Mapping[str, Any]) -> Any:
        assert self.told is not None
        try:
            if self.streams:
                events = wire.reader(self.told_kind)([self.told])
                return hub_of_stream(front, self.kind, events, cfg)
            answer = wire.loads(self.told)
            response = hub_of_answer(front, self.kind, answer, cfg)
            self.is_plain = response is answer
            return response
        except FAULTS as fault:
            logger.debug("%s: the answer is kept as text: %s", self._taken.call.id, fault)
            return None


def _decoded(raw: bytes | None) -> Any:
    if not raw or raw.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return wire.loads(raw)
    except ValueError:
        return None


def _unpacked(raw: bytes | None, coding: str) -> bytes | None:
    """A body without its content coding; None when that cannot be taken off."""
    if not raw or coding not in CODED:
        return raw if coding in ("", "identity") or not raw else None
    try:
        return zlib.decompressobj(47 if coding != "deflate" else zlib.MAX_WBITS).decompress(raw, 64 * len(raw))
    except zlib.error:
        return None


def _times(taken: Taken, reading: Reading) -> Sequence[int]:
    """When each event of a stream had gone whole, in ms after the call's beginning: with the piece that it ends in."""
    ends_of = ENDS.get(reading.told_kind)
    if ends_of is None or taken.told is None or taken.coding not in ("", "identity"):
        return ()
    went, sizes = taken.pieces
    ends = itertools.islice((found.end() for found in ends_of.finditer(taken.told)), EVENTS)
    after = list(itertools.accumulate(sizes))
    started = taken.call.started
    return [round((went[at] - started) * 1000) for end in ends if (at := bisect_left(after, end)) < len(went)]


def _images(body: Json) -> Json:
    size, count = body.get("size"), body.get("n")
    return {"n": count if isinstance(count, int) else 1, "size": size if isinstance(size, str) else None}


def _bounded(value: Any, limit: int) -> Any:
    """A value whose JSON is no longer than that: the longest of its texts are cut."""
    size = len(wire.dumps(value))
    if size <= limit:
        return value
    for length in CUTS:
        short = _cut(value, length)
        if len(wire.dumps(short)) <= limit:
            return short
    return {"omitted": f"{size} bytes"}


def _cut(value: Any, length: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= length else f"{value[:length]}… ({len(value)} characters)"
    if isinstance(value, dict):
        return {name: _cut(member, length) for name, member in value.items()}
    return [_cut(member, length) for member in value] if isinstance(value, list) else value
