"""Today's mappers over a recorded call, without any network: what would go up and down now, held against what did.

Three things are compared: what goes upstream, what the client gets, and, for streams, that it gets the same however the
backend's bytes are cut: byte by byte, and in two pieces at each of up to CUTS places, evenly spread.
"""

from __future__ import annotations

import difflib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from proxy import wire
from proxy.answers import STREAMS, kind_of
from proxy.errors import BackendError, ConfigError
from proxy.generation import Generation
from proxy.records.cassettes import Json, Met, load, packed, unpacked
from proxy.records.secrets import MASK, events_of
from proxy.workbench.provenance import Path, leaves, shown
from proxy.workbench.rehearsal import Asked, Played, Script, Stage, answers_of, asked_of, rehearse

CUTS = 500  # places at which a stream is cut in two
SINGLE = 64 * 1024  # bytes of a stream that are given one by one; a longer one comes in as many pieces
PROVED = 100  # cassettes that a reload is held against at most
TOLD = 20  # paths of one body that are named
CONTEXT = 2  # lines around a change


def replayed(generation: Generation, cassette: Json) -> tuple[list[str], Json]:
    """(what has changed, as lines for a person; the cassette as it would be recorded now)."""
    asked, answers = asked_of(cassette), answers_of(cassette)
    played = rehearse(generation, asked, Script(answers))
    now = _now(cassette, played)
    lines = [line for each in _compared(cassette, now) for line in each]
    if not lines and answers and kind_of(answers[-1][1]) in STREAMS:
        lines = list(_recut(generation, asked, cassette, played))
    return lines, now


def prove(generation: Generation, folder: str) -> None:
    """Holds a generation that is to serve against the newest recorded calls. Raises ConfigError with what has changed."""
    files = sorted(pathlib.Path(folder).glob("*.json"), key=lambda path: path.stat().st_mtime)[-PROVED:]
    stage = Stage(generation.config, generation.mappers, generation.prompters)
    faults = []
    try:
        for path in files:
            lines, _ = replayed(stage, load(path))
            faults += [f"{path}: {lines[0]}"] if lines else []
    finally:
        stage.close()
    if faults:
        raise ConfigError(
            [*faults, f"recorded calls would go another way: `python -m main replay {folder} --accept` takes that"]
        )


def _now(cassette: Json, played: Played) -> Json:
    met = played.tape.met
    sent = [_sent(now, old) for now, old in zip(met, cassette["backend"], strict=False)]
    unsent = [{**old, "method": "-", "url": "-", "body": packed([])} for old in cassette["backend"][len(met) :]]
    return {**cassette, "backend": [*sent, *unsent], "reply": {"status": played.call.status, "body": packed(played.pieces)}}


def _sent(now: Met, old: Json) -> Json:
    """What goes up now in an exchange; headers that are masked in the cassette stay so, whether a key is configured or not."""
    headers = {name: MASK if old["headers"].get(name) == MASK else value for name, value in sorted(now.headers.items())}
    masked = {name: value for name, value in old["headers"].items() if value == MASK}
    return {**old, "method": now.method, "url": now.url, "headers": {**headers, **masked}, "body": packed([now.body])}


def _compared(old: Json, now: Json) -> Iterator[list[str]]:
    for before, after in zip(old["backend"], now["backend"], strict=True):
        for name in ("method", "url"):
            if before[name] != after[name]:
                yield [f"upstream {name}: {before[name]} → {after[name]}"]
        yield list(_fields("upstream header", before["headers"], after["headers"]))
        yield list(_bodies("upstream", before["body"], after["body"], ""))
    if old["reply"]["status"] != now["reply"]["status"]:
        yield [f"reply status: {old['reply']['status']} → {now['reply']['status']}"]
    yield list(_bodies("reply", old["reply"]["body"], now["reply"]["body"], _kind(old["reply"]["body"])))


def _fields(what: str, old: Json, now: Json) -> Iterator[str]:
    for name in sorted({*old, *now}):
        if old.get(name) != now.get(name):
            yield f"{what} {name}: {old.get(name, 'none')} → {now.get(name, 'none')}"


def _kind(body: Json) -> str:
    """What the client's body is, by its first bytes: JSON, or which kind of stream."""
    text = body.get("text", "")
    if text.startswith(("data:", "event:", ":")):
        return "text/event-stream"
    return "application/x-ndjson" if "}\n{" in text else ""


def _bodies(what: str, old: Json, now: Json, kind: str) -> Iterator[str]:
    """The paths that differ, and a diff of both as indented JSON; of what is no JSON that it differs."""
    before, after = (b"".join(unpacked(body)) for body in (old, now))
    if before == after:
        return
    try:
        was, now_is = _value(before, kind), _value(after, kind)
    except (ValueError, BackendError):
        yield f"{what} body: {len(before)} bytes → {len(after)} bytes, and not readable as JSON"
        return
    places = list(_differing(was, now_is))
    for path, first, second in places[:TOLD]:
        yield f"{what} {shown(path)}: {first} → {second}"
    if len(places) > TOLD:
        yield f"{what}: {len(places) - TOLD} more paths"
    if not places:
        yield f"{what} body: the same JSON, written in other bytes"
    yield from difflib.unified_diff(_lines(was), _lines(now_is), "recorded", "now", n=CONTEXT, lineterm="")


def _lines(value: Any) -> list[str]:
    return json.dumps(value, indent=2, ensure_ascii=False).splitlines()


def _value(body: bytes, kind: str) -> Any:
    """The events of a stream, else the one value."""
    events = events_of(body, kind)
    return events if kind else next(iter(events), None)


def _differing(old: Any, now: Any) -> Iterator[tuple[Path, str, str]]:
    before, after = leaves(old), leaves(now)
    for path in dict.fromkeys([*before, *after]):
        first, second = (_short(each[path]) if path in each else "nothing" for each in (before, after))
        if first != second:
            yield path, first, second


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _recut(generation: Generation, asked: Asked, cassette: Json, played: Played) -> Iterator[str]:
    """Whether a stream becomes the same however it is cut."""
    *first, (status, fields, pieces) = answers_of(cassette)
    whole = b"".join(pieces)
    step = max(1, len(whole) // SINGLE)
    single = [whole[at : at + step] for at in range(0, len(whole), step)]
    again = rehearse(generation, asked, Script([*first, (status, fields, single)]))
    if again.body != played.body:
        yield "reply: another one when the backend's bytes come one by one"
        yield from _bodies("reply", packed(played.pieces), packed(again.pieces), _kind(packed(played.pieces)))
    read = wire.reader(kind_of(fields))
    events = list(read([whole]))
    for at in range(1, len(whole), max(1, len(whole) // CUTS)):
        if list(read([whole[:at], whole[at:]])) != events:
            yield f"the backend's stream has other events when it is cut at byte {at}"
            return
