"""What the pages ask for: calls, conversations, usage, limits, calls in flight. A person's key sees its own rows alone."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from proxy import dialects, wire
from proxy.call import Waiting
from proxy.console import NARROWS
from proxy.console.live import board_of
from proxy.console.sessions import Visitor, body_of, settings
from proxy.console.sessions import visitor as who_asks
from proxy.errors import BadRequest, ProxyError, Refused
from proxy.records.store import Page, Query, Row, RowRefused, Store, StoreLost
from proxy.relay import Relay

if TYPE_CHECKING:
    from proxy.pages import Visit

LOOK_S = 0.5  # between two looks at the calls in flight
BEAT = 20  # looks after which a page that nothing changes for hears from us
MOST_ROWS = 500  # of one list
TABLE_ROWS = 100_000  # of one CSV file
YEAR_10000 = 253_402_300_800  # seconds since the epoch: no calendar goes further
WITHIN_S = 0.2  # of looking for rows: then a page ends, and says where to go on
LARGEST = 10  # conversations
BY = ("key_name", "model_served", "target", "user")
HEAVY = ("request", "response", "bodies", "times", "follows", "leaves")
FORMULA = re.compile(r"[=+\-@\t\r]")  # what a spreadsheet takes for a formula at the beginning of a cell
CALL_COLUMNS = (
    *("id", "at", "key_name", "user", "client", "front", "path", "target", "model_asked", "model_served", "status", "error"),
    *("total_ms", "first_ms", "tokens_in", "tokens_cached", "tokens_out", "cost", "stream", "cache", "conversation", "title"),
)


# --- what a request says


def asked(visit: Visit) -> dict[str, str]:
    """The query, each name once."""
    return dict(parse_qsl(visit.request.query))


def _query(visit: Visit, visitor: Visitor) -> Query:
    """Which rows. Raises BadRequest."""
    given = asked(visit)
    told: dict[str, Any] = {name: given[name] for name in NARROWS if given.get(name)}
    try:
        told.update({name: _time(told[name]) for name in ("since", "until") if name in told})
        if "before" in given:
            at, _, last = given["before"].partition(" ")
            told["before"] = (_time(at), last)
        limit = max(1, min(MOST_ROWS, int(given.get("limit", "50"))))
    except ValueError as fault:
        raise BadRequest(f"the query cannot be read: {fault}") from None
    if not re.fullmatch("ok|error|[1-5][0-9]{2}", told.get("status", "ok")):
        raise BadRequest("`status` must be ok, error or a number", param="status")
    return Query(**{**told, "key_name": visitor.viewer or told.get("key_name"), "limit": limit})


def _time(text: str) -> float:
    """Seconds since the epoch. Raises ValueError."""
    number = float(text)
    if not 0 <= number < YEAR_10000:
        raise ValueError(f"{text} is no time")
    return number


def _text(body: Mapping[str, Any], name: str, most: int = 200) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value.strip()) <= most:
        raise BadRequest(f"`{name}` must be a text of at most {most} characters", param=name)
    return value.strip()


def _store(visit: Visit) -> Store:
    """The call log, opened once a process. Raises Refused without one."""
    calls = visit.generation.config.records and visit.generation.config.records.calls
    if not calls:
        raise Refused("there is no call log: configure `records: {calls: …}`", status=404, code="no_call_log")
    return board_of(visit.handler.server).store(calls.database)


def _from_store(visit: Visit, ask: Callable[[Store], Any]) -> Any:
    try:
        return ask(_store(visit))
    except StoreLost as fault:
        raise ProxyError(f"the call log cannot be read now: {fault}", status=503, code="no_call_log") from fault
    except RowRefused:
        raise BadRequest("the call log can hold no such value") from None


# --- calls in flight


def session(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/session"""
    config, key = visit.generation.config, visit.generation.config.keys.get(visitor.name)
    console, names = settings(visit), [*config.targets, *config.pools]
    told = {
        "name": visitor.name,
        "master": visitor.is_master,
        "csrf": visitor.csrf,
        "expires": visitor.expires,
        "edit": console.edit and visitor.is_master,
        "presets": dict(console.presets),
        "targets": [name for name in names if key is None or not key.targets or name in key.targets],
        "default": config.default,
        "records": bool(config.records and config.records.calls),
        "bodies": bool(config.records and config.records.calls and config.records.calls.bodies),
    }
    visit.reply.json(200, told)


def live(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/live: the calls as events, whenever they have changed; the text of the one that is asked for."""
    handler, reply = visit.handler, visit.reply
    board, chosen = board_of(handler.server), asked(visit).get("id")
    reply.start_stream(wire.stream_fields("sse"))
    before, silent = b"", 0
    while not handler.server.draining and not _is_over(visit, visitor):
        found = board.calls(visitor.viewer)
        for facts in found:
            if facts["id"] != chosen:
                facts["text"] = facts["text"][-160:]
        now = wire.frame("sse", {"calls": found})
        silent = 0 if now != before else silent + 1
        if now != before:
            reply.piece(now)
        elif silent % BEAT == 0:
            reply.comment(b": still here\n\n")
        before = now
        with handler.turn:
            board.pause(LOOK_S)
    reply.end()


def _is_over(visit: Visit, visitor: Visitor) -> bool:
    """Whether the session of a page that stays open has ended."""
    generation = visit.handler.server.generation
    try:
        return generation.config.console is None or who_asks(replace(visit, generation=generation)).name != visitor.name
    except ProxyError:
        return True


def stop(visit: Visit, visitor: Visitor) -> None:
    """POST /console/api/stop {id}"""
    if not board_of(visit.handler.server).stop(_text(body_of(visit), "id"), visitor.viewer):
        raise Refused("no such call is running", status=404, code="no_such_call")
    visit.reply.json(200, {})


def relay(visit: Visit, visitor: Visitor, path: str) -> None:
    """A call to a target with the visitor's rights, as if their client had sent it: the same gates, limits and records."""
    request, call, handler = visit.request, visit.call, visit.handler
    call.path, call.front = path, dialects.front(request.method, path, request.headers)
    call.key_name = visitor.name
    call.waits = Waiting(handler.request, handler.turn, handler.encrypted)
    Relay(visit.generation, call, request, visit.reply, None).run()


# --- the call log


def _light(row: Row) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name not in HEAVY}


def _calls(store: Store, query: Query) -> Any:
    return store.calls(query)


def _told(visit: Visit, name: str, page: Page) -> None:
    """A page of rows. It may hold fewer than asked for, or none, and yet there are `more`, behind `before`."""
    before = page.before and f"{page.before[0]!r} {page.before[1]}"
    visit.reply.json(200, {name: [_light(row) for row in page], "more": before is not None, "before": before})


def calls(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/calls"""
    query = _query(visit, visitor)
    _told(visit, "calls", _from_store(visit, lambda store: store.calls(query, WITHIN_S)))


def call(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/call"""
    row = recorded(visit, visitor, asked(visit).get("id", ""))
    visit.reply.json(200, {name: value for name, value in asdict(row).items() if name not in HEAVY[4:]})


def recorded(visit: Visit, visitor: Visitor, id: str) -> Row:
    """A call in the log that the visitor may see. Raises Refused (404)."""
    row: Row | None = _from_store(visit, lambda store: store.call(id, visitor.viewer))
    if row is None:
        raise Refused("no such call is kept", status=404, code="no_such_call")
    return row


def conversations(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/conversations"""
    query = _query(visit, visitor)
    _told(visit, "conversations", _from_store(visit, lambda store: store.conversations(query, WITHIN_S)))


def conversation(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/conversation"""
    rows = _from_store(visit, lambda store: store.conversation(asked(visit).get("id", ""), visitor.viewer))
    if not rows:
        raise Refused("no such conversation is kept", status=404, code="no_such_conversation")
    visit.reply.json(200, {"calls": [{**asdict(row), "bodies": {}} for row in rows]})


def rename(visit: Visit, visitor: Visitor) -> None:
    """POST /console/api/rename {id, title}"""
    body = body_of(visit)
    which, title = _text(body, "id"), _text(body, "title")
    _changed(visit, lambda store: store.rename(which, title, visitor.viewer))


def hide(visit: Visit, visitor: Visitor) -> None:
    """POST /console/api/hide {id}"""
    which = _text(body_of(visit), "id")
    _changed(visit, lambda store: store.hide(which, visitor.viewer))


def _changed(visit: Visit, ask: Callable[[Store], bool]) -> None:
    if not _from_store(visit, ask):
        raise Refused("no such conversation is kept", status=404, code="no_such_conversation")
    visit.reply.json(200, {})


# --- usage


def _by(visit: Visit) -> str:
    by = asked(visit).get("by", "model_served")
    if by not in BY:
        raise BadRequest(f"`by` must be one of {', '.join(BY)}", param="by")
    return by


def usage(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/usage"""
    query, by = _query(visit, visitor), _by(visit)
    largest = replace(query, limit=LARGEST)

    def ask(store: Store) -> dict[str, Any]:
        return {"days": list(store.usage(query, by)), "conversations": list(store.usage(largest, "conversation"))}

    visit.reply.json(200, _from_store(visit, ask))


def latency(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/latency"""
    query = _query(visit, visitor)
    visit.reply.json(200, dict(_from_store(visit, lambda store: store.latency(query))))


def limits(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/limits: of every key that the visitor may see; nothing is taken by looking."""
    generation = visit.generation
    names = [name for name in generation.config.keys if visitor.viewer in (None, name)]
    counted = generation.traffic.limits if generation.traffic else None
    told = [
        {"key_name": name, **vars_of(*standing)}
        for name in names
        for standing in (counted.standings(generation.config.keys[name]) if counted else ())
    ]
    visit.reply.json(200, {"limits": told})


def vars_of(claim: Any, left: int, reset_s: float) -> dict[str, Any]:
    """How a claim stands, as a page is told it: money in US dollars."""
    money = hasattr(claim, "period")
    scale = 1e6 if money else 1
    what = "budget" if money else "tokens" if ".tokens " in claim.name else "requests"
    per = claim.period if money else claim.period_s
    back_s = reset_s if math.isfinite(reset_s) else None
    return {"what": what, "limit": claim.limit / scale, "left": max(0, left) / scale, "per": per, "reset_s": back_s}


# --- tables


def calls_csv(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/calls.csv"""
    query = _query(visit, visitor)

    def rows() -> Iterator[list[Any]]:
        narrowed = replace(query, limit=1000)
        for _ in range(TABLE_ROWS // narrowed.limit):
            page = _from_store(visit, partial(_calls, query=narrowed))
            yield from ([getattr(row, name) for name in CALL_COLUMNS] for row in page)
            if page.before is None:
                return
            narrowed = replace(narrowed, before=page.before)

    _table(visit, "calls", CALL_COLUMNS, rows())


def usage_csv(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/usage.csv"""
    query, by = _query(visit, visitor), _by(visit)
    columns = ("day", by, "calls", "errors", "tokens_in", "tokens_cached", "tokens_out", "cost")
    days = _from_store(visit, lambda store: store.usage(query, by))
    _table(visit, "usage", columns, ([day[name] for name in columns] for day in days))


def _table(visit: Visit, name: str, columns: Iterable[str], rows: Iterable[list[Any]]) -> None:
    reply = visit.reply
    named = ("content-disposition", f'attachment; filename="{name}.csv"')
    reply.start(200, [("content-type", "text/csv; charset=utf-8"), named], None)
    written = io.StringIO()
    table = csv.writer(written)
    table.writerow(columns)
    for row in rows:
        table.writerow([_cell(value) for value in row])
        if written.tell() > 60_000:
            reply.piece(written.getvalue().encode("utf-8", "replace"))
            written.seek(0)
            written.truncate()
    reply.piece(written.getvalue().encode("utf-8", "replace"))
    reply.end()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is made one that it shows."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value
