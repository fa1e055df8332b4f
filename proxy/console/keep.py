"""A cassette of a call that the call log holds, written when somebody looks at that call and wants to keep it.

No backend is asked. The four bodies are those of the log; what it does not hold (the url and the headers upstream) is what
today's configuration makes of the request, and `replayed` tells whether its mappers still make those bodies.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.config import Cassettes
from proxy.console.api import recorded
from proxy.console.sessions import Visitor, body_of
from proxy.dialects import load
from proxy.errors import ProxyError, Refused
from proxy.records import cassettes
from proxy.records.secrets import Cleaner, Unfit
from proxy.records.store import Row
from proxy.translate import Endpoint
from proxy.workbench.rehearsal import Asked, Script, Stage, rehearse
from proxy.workbench.replaying import replayed

if TYPE_CHECKING:
    from proxy.pages import Visit

Json = dict[str, Any]
INCOMPLETE = re.compile(r"\(withheld: |\(not kept: |\(\d+ bytes that are no text\)|(?s:.*)… \(\d+ characters\)\Z")  # see `Rows`
BODIES = {  # of a row → what it is, for a person
    "asked": "what the client sent",
    "sent": "what the backend got",
    "got": "what the backend answered",
    "told": "what the client got",
}


def keep(visit: Visit, visitor: Visitor) -> None:
    """POST /console/api/keep {id}: where the cassette is, and what today's mappers would change in it. A person keeps only what
    changes nothing: a reload is held against the folder."""
    generation, row = visit.generation, recorded(visit, visitor, str(body_of(visit).get("id", "")))
    kept = (generation.config.records and generation.config.records.cassettes) or Cassettes()
    path = Path(kept.folder, f"{row.id}.json")
    visit.handler.turn.give()  # a long stream is cut in hundreds of ways
    stage = Stage(generation.config, generation.mappers, generation.prompters)
    try:
        cassette = cassettes.load(path) if path.exists() else _made(row, stage, Cleaner(generation.config, kept.redact))
        changed, _ = replayed(stage, cassette)
        if changed and not visitor.is_master:
            raise Unfit(f"today's mappers make something else of it ({changed[0]}): the master key can keep it all the same")
        cassettes.keep(path, cassette)
    except Unfit as why:
        raise Refused(f"there is no cassette of this call: {why}", status=409, code="no_cassette") from None
    except OSError as fault:
        raise ProxyError(f"cannot write {path}: {fault.strerror}", code="no_cassette") from fault
    finally:
        stage.close()
    visit.reply.json(200, {"file": str(path), "changed": changed})


def _made(row: Row, stage: Stage, cleaner: Cleaner) -> Json:
    """The cassette of a recorded call. Raises Unfit."""
    asked, sent, got, told = (_body(row, name) for name in BODIES)
    if row.error_source == "client":
        raise Unfit(f"it did not come to its end: {row.error}")
    endpoint = _endpoint(row, stage)
    status = row.status if row.error_source == "backend" and row.status >= 400 else 200
    query = "alt=sse" if told.startswith(b"data:") and load(row.front).framing("") == "array" else ""
    kind = {"content-type": "application/json"}
    request = Asked(row.method, row.path, asked, query, kind, row.target, row.front, row.id, int(row.at))
    answer = (status, [("content-type", _kind(row, got, endpoint))], [got])
    played = rehearse(stage, request, Script([answer]))
    tape, call = played.tape, played.call
    if not tape.met:
        raise Unfit(f"today's configuration sends nothing of it: {call.error}")
    tape.met[-1].body, tape.met[-1].pieces, tape.told, call.status = sent, [got], [told], row.status
    return cassettes.made(tape, call, cleaner, cassettes.slices(stage.config)[row.target or ""])


def _body(row: Row, name: str) -> bytes:
    """Raises Unfit where the log does not hold it whole."""
    text = row.bodies.get(name)
    if not row.bodies:
        raise Unfit("its bodies were not kept")
    if not text:
        raise Unfit("no backend answered it" if name in ("sent", "got") else f"{BODIES[name]} was not kept")
    if INCOMPLETE.match(text):
        why = text[1:-1] if text.startswith("(") else "it is longer than `records.calls.body_limit`"
        raise Unfit(f"{BODIES[name]} is not whole in the call log: {why}")
    return text.encode()


def _endpoint(row: Row, stage: Stage) -> Endpoint:
    """Where today's configuration takes the call to. Raises Unfit where there is nothing to replay, or the log knows too
    little."""
    place = stage.places.get(row.target or "")
    if place is None:
        raise Unfit(f"there is no target {row.target!r} any more")
    found = stage.find(place, row.front, row.method, row.path)
    if found is None or not found[0].mapped:
        raise Unfit("no mapper stands between its client and its backend, so there is nothing to replay")
    if found[0].before:
        raise Unfit("its backend is asked twice, and the log has one of the answers; `records.cassettes` keeps such calls")
    return found[0]


def _kind(row: Row, got: bytes, endpoint: Endpoint) -> str:
    """The media type of what the backend answered, which is not in the log."""
    if re.match(rb"\s*(data|event|id|retry)?:", got):
        return "text/event-stream"
    lines = row.stream and bool(endpoint.stream) and row.error is None and got.endswith(b"\n")
    return "application/x-ndjson" if lines else "application/json"
