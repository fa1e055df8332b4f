"""What both databases answer: pages of calls and of conversations, one call, sums. Statements are written with `?`."""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from proxy.records import search
from proxy.records.store import Page, Query, Row
from proxy.records.tables import BY, FACTS, LISTS, OF_CALLS, SUMS

GROUP = 200  # rows, or values of an IN, at once
WIDTH = math.log(1.1)  # of a bucket of the histogram
WILD = re.compile("[!%_]")  # of LIKE
LAST = "g"  # after any id
NEVER = 1e12  # seconds since the epoch, after all calls
TALKS = "JOIN conversations v ON v.id = c.conversation AND v.key_name = coalesce(c.key_name, '')"
TITLED = "lower(v.title) LIKE ? ESCAPE '!'"

Values = Sequence[Any]
Before = tuple[float, str]  # at and id: what comes after it
Found = tuple[float, str, int]  # at, id and number of a call


class SqlReader:
    """The half of a Store that reads. The lock lets one thread work at a time. What is left to a database: `_begin`, `_run`,
    `_match`, and what a search reads from."""

    searched = ""  # calls c, joined to their terms w (and {} more), and the condition on those, which takes what `_match` gives

    def __init__(self) -> None:
        self._lock = threading.RLock()

    # --- what a database does its own way
    def _begin(self, writes: bool = True) -> AbstractContextManager[None]:
        """A transaction, the lock held; two that write do not run at once in SQLite.

        Raises RowRefused for a fault of a value, StoreLost for any other."""
        raise NotImplementedError

    def _run(self, sql: str, values: Values = ()) -> Any:
        """A statement's cursor."""
        raise NotImplementedError

    def _match(self, terms: Sequence[str]) -> str:
        """What asks for calls with all of the terms; one that ends in * is a beginning."""
        raise NotImplementedError

    # --- pages
    def calls(self, query: Query, within_s: float = math.inf) -> Page:
        """See Store."""
        until = time.monotonic() + within_s
        with self._begin(writes=False):
            found, before = self._searched(query, until) if _is_searched(query) else (self._listed(query), None)
            return self._page(query, found, before)

    def _listed(self, query: Query) -> list[Found]:
        where, values = _where(query)
        sql = f'SELECT c."at", c.id, c.n FROM calls c WHERE {where} ORDER BY c."at" DESC, c.id DESC LIMIT ?'
        found: list[Found] = self._run(sql, (*values, query.limit)).fetchall()
        return found

    def _searched(self, query: Query, until: float) -> tuple[list[Found], Before | None]:
        """The newest that fit; where to go on, when the time is over (monotonic) before there are enough."""
        where, values = _where(query)
        calls = self.searched.format("")
        sql = f'SELECT c."at", c.id, c.n FROM {calls} AND {where} ORDER BY c."at" DESC, c.id DESC LIMIT ?'
        found: list[Found] = []
        began = query.before[0] if query.before else NEVER  # slices overlap: a page must go on from there
        for match, after, _ in self._slices(query):
            found += self._run(sql, (match, *values, query.limit)).fetchall() if match else []
            found = sorted(found, reverse=True)[: query.limit]
            if len(found) == query.limit and found[-1][0] > after:
                break
            if time.monotonic() > until and 0 < after < began:
                return [each for each in found if each[0] > after], (after, LAST)
        return found, None

    def _slices(self, query: Query) -> Iterator[tuple[str | None, float, float]]:
        """What asks each slice that may hold what is sought, the newest slice first; with the time after which nothing is in
        the slices that follow, and that of the one before."""
        terms = search.sought(query)
        if terms is None:
            return
        until = min(query.before[0] if query.before else math.inf, query.until or math.inf)
        sql = "SELECT slice, latest FROM slices WHERE latest >= ? AND first <= ? ORDER BY latest DESC, slice DESC"
        found = self._run(sql, (query.since or 0.0, min(until, NEVER))).fetchall()
        before = NEVER
        for (number, _), (_, after) in zip(found, [*found[1:], (0, 0.0)], strict=False):
            yield self._asked(number, terms), after, before
            before = after

    def _asked(self, number: int, terms: Sequence[str]) -> str | None:
        """What asks a slice. None where it has no call with the exact terms: beginnings cost more, and are not looked for."""
        exact = [f"{number}{term}" for term in terms if not term.endswith("*")]
        beginnings = [f"{number}{term}" for term in terms if term.endswith("*")]
        sql = f"SELECT 1 FROM {self.searched.format('')} LIMIT 1"
        if exact and beginnings and not self._run(sql, (self._match(exact),)).fetchone():
            return None
        return self._match([*exact, *beginnings])

    def _page(self, query: Query, found: Sequence[Found], before: Before | None) -> Page:
        """The rows of what was found."""
        sql = f"""SELECT {", ".join(OF_CALLS)}, v.title FROM calls c LEFT JOIN conversations v
            ON v.id = c.conversation AND v.key_name = coalesce(c.key_name, '') WHERE c.n IN"""
        rows = {row.id: row for row in map(_row, self._among(sql, [number for *_, number in found]))}
        page = Page(rows[each[1]] for each in found)
        page.before = found[-1][:2] if before is None and len(found) == query.limit else before
        return page

    def call(self, id: str, key_name: str | None = None) -> Row | None:
        """See Store."""
        with self._begin(writes=False):
            found = self._kept("c.id = ? AND (CAST(? AS TEXT) IS NULL OR c.key_name = ?)", (id, key_name, key_name))
        return found[0][1] if found else None

    def conversation(self, id: str, key_name: str | None = None) -> Sequence[Row]:
        """See Store."""
        where = "c.conversation = ? AND (CAST(? AS TEXT) IS NULL OR c.key_name = ?)"
        with self._begin(writes=False):
            return [row for _, row in self._kept(where, (id, key_name, key_name))]

    def conversations(self, query: Query, within_s: float = math.inf) -> Page:
        """See Store."""
        until = time.monotonic() + within_s
        with self._begin(writes=False):
            found, before = self._talks_searched(query, until) if query.text else (self._talks(query), None)
            return self._page(query, found, before)

    def _talks(self, query: Query, more: str = "", given: Values = ()) -> list[Found]:
        """The latest calls of conversations."""
        since: list[tuple[str, Any]] = [("v.key_name = ?", query.key_name), ('v."at" >= ?', query.since)]
        terms, values = _narrowed([*since, ('v."at" < ?', query.until)])
        if query.before:
            terms.append(
                'v."at" <= ? AND (v."at" < ? OR v.latest < coalesce((SELECT n FROM calls WHERE id = ?), v.latest + 1))'
            )
            values += [query.before[0], *query.before]
        where = " AND ".join(("v.hidden = 0", *terms))
        sql = f"""SELECT v."at", c.id, v.latest FROM (SELECT v."at", v.latest FROM conversations v WHERE {where} {more}
            ORDER BY v."at" DESC, v.latest DESC LIMIT ?) v JOIN calls c ON c.n = v.latest ORDER BY v."at" DESC, v.latest DESC"""
        found: list[Found] = self._run(sql, (*values, *given, query.limit)).fetchall()
        return found

    def _talks_searched(self, query: Query, until: float) -> tuple[list[Found], Before | None]:
        """As `_searched`, for conversations: the newest call of each that fits; of one whose title fits, the latest call."""
        query = replace(query, target=None, model=None, status=None, front=None, conversation=None)
        title = "%" + WILD.sub(r"!\g<0>", (query.text or "").lower()) + "%"
        where, values = _where(query)
        sql = f"""SELECT c."at", c.id, c.n, v.id, v.key_name FROM {self.searched.format(TALKS)} AND {where} AND v.hidden = 0
            AND NOT coalesce({TITLED}, false) ORDER BY c."at" DESC, c.id DESC"""
        talks: dict[Values, Found] = {}
        found: list[Found] = []
        began = query.before[0] if query.before else NEVER
        for match, after, before in self._slices(query):
            titled = f'AND v."at" > ? AND v."at" <= ? AND {TITLED}'
            talks |= {(each[1],): each for each in self._talks(query, titled, (after, before, title))}
            new: dict[Values, Found] = {}
            for *call, name, key_name in self._run(sql, (match, *values, title)) if match else ():
                talk = (name, key_name)
                if talk not in new and not self._was_shown(query, talk):
                    new[talk] = max(tuple(call), talks.get(talk, (0.0, "", 0)))
                    if len(new) == query.limit:
                        break
            talks |= new
            found = sorted(talks.values(), reverse=True)[: query.limit]
            if len(found) == query.limit and found[-1][0] > after:
                break
            if time.monotonic() > until and 0 < after < began:
                return [each for each in found if each[0] > after], (after, LAST)
        return found, None

    def _was_shown(self, query: Query, whose: Values) -> bool:
        """Whether a conversation was on a page before this one: a later call of it fits, too."""
        if query.before is None:
            return False
        sql = """SELECT n FROM calls WHERE conversation = ? AND coalesce(key_name, '') = ?
            AND "at" >= ? AND ("at" > ? OR id >= ?)"""
        later = [number for (number,) in self._run(sql, (*whose, query.before[0], *query.before)).fetchall()]
        terms, calls = search.sought(query) or (), self.searched.format("")
        for number, group in itertools.groupby(sorted(later), lambda number: number // search.SPAN):
            match = self._asked(number, terms)
            if match and any(self._among(f"SELECT 1 FROM {calls} AND w.rowid IN", list(group), (match,))):
                return True
        return False

    def usage(self, query: Query, by: str) -> Sequence[Mapping[str, Any]]:
        """See Store. Raises ValueError for another `by`."""
        if by not in BY:
            raise ValueError(f"by must be one of {', '.join(BY)}, not {by!r}")
        if by == "conversation":
            return self._by_conversation(query)
        where, values = _of_days(query)
        sums = ", ".join(f"CAST(sum({name}) AS {'DOUBLE PRECISION' if name == 'cost' else 'BIGINT'})" for name in SUMS)
        sql = f'SELECT day, "{by}", {sums} FROM daily WHERE {where} GROUP BY day, "{by}" ORDER BY day, "{by}"'
        return [dict(zip(("day", by, *SUMS), found, strict=True)) for found in self._all(sql, values)]

    def _by_conversation(self, query: Query) -> Sequence[Mapping[str, Any]]:
        terms, values = _narrowed([("key_name = ?", query.key_name), ('"at" >= ?', query.since), ('"at" < ?', query.until)])
        sql = f"""SELECT "at", id, key_name, title, {", ".join(SUMS)} FROM conversations
            WHERE {" AND ".join(terms or ["1 = 1"])} ORDER BY tokens DESC LIMIT ?"""
        names = ("day", "conversation", "key_name", "title", *SUMS)
        found = self._all(sql, (*values, query.limit))
        return [dict(zip(names, (day_of(at), *others), strict=True)) for at, *others in found]

    def latency(self, query: Query) -> Mapping[str, float]:
        """See Store."""
        where, values = _of_days(query)
        sql = (
            f"SELECT what, bucket, CAST(sum(calls) AS BIGINT) FROM latency WHERE {where} GROUP BY what, bucket ORDER BY bucket"
        )
        found = self._all(sql, values)
        out: dict[str, float] = {}
        for what, prefix in (("total", "p"), ("first", "first_p")):
            counts = [(bucket, count) for name, bucket, count in found if name == what]
            out |= {f"{prefix}{share}": _percentile(counts, share) for share in (50, 90, 99) if counts}
        return out

    def _kept(self, where: str, values: Values) -> list[tuple[int, Row]]:
        """Calls with their bodies, the oldest first, and their numbers."""
        sql = f"""SELECT {", ".join(OF_CALLS)}, v.title, b.request, b.response, b.bodies, b.times, c.n FROM calls c
            LEFT JOIN bodies b ON b.n = c.n LEFT JOIN conversations v
            ON v.id = c.conversation AND v.key_name = coalesce(c.key_name, '') WHERE {where} ORDER BY c."at", c.id"""
        return [(found[-1], _with_bodies(_row(found), *found[-5:-1])) for found in self._run(sql, values).fetchall()]

    def _all(self, sql: str, values: Values) -> list[Any]:
        with self._begin(writes=False):
            found: list[Any] = self._run(sql, values).fetchall()
        return found

    def _among(self, sql: str, values: Sequence[Any], given: Values = ()) -> Iterator[Any]:
        for at in range(0, len(values), GROUP):
            group = values[at : at + GROUP]
            yield from self._run(f"{sql} ({', '.join('?' * len(group))})", (*given, *group)).fetchall()


def day_of(at: float) -> str:
    """YYYY-MM-DD, UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def _is_searched(query: Query) -> bool:
    """Whether terms are looked for. A key's calls, and a conversation's, have an order of their own."""
    return bool(query.text or query.model) or any(value is not None for value in (query.target, query.status, query.front))


def _where(query: Query) -> tuple[str, Values]:
    """A condition on calls c: all of a query but its text."""
    number = int(query.status) if query.status and query.status.isdigit() else None
    status = {"ok": ("c.status < ?", 400), "error": ("c.status >= ?", 400)}.get(query.status or "", ("c.status = ?", number))
    terms, values = _narrowed(
        [
            ("c.key_name = ?", query.key_name),
            ("c.target = ?", query.target),
            ("c.front = ?", query.front),
            ("c.conversation = ?", query.conversation),
            ('c."at" >= ?', query.since),
            ('c."at" < ?', query.until),
            status,
        ]
    )
    if query.model:
        terms.append("(c.model_served = ? OR c.model_asked = ?)")
        values += [query.model, query.model]
    if query.before:
        terms.append('c."at" <= ? AND (c."at" < ? OR c.id < ?)')
        values += [query.before[0], *query.before]
    return " AND ".join(terms or ["1 = 1"]), values


def _narrowed(given: Iterable[tuple[str, Any]]) -> tuple[list[str], list[Any]]:
    kept = [(term, value) for term, value in given if value is not None]
    return [term for term, _ in kept], [value for _, value in kept]


def _of_days(query: Query) -> tuple[str, Values]:
    terms, values = _narrowed(
        [
            ("key_name = ?", query.key_name),
            ("target = ?", query.target),
            ("model_served = ?", query.model),
            ("day >= ?", None if query.since is None else day_of(query.since)),
            ("day <= ?", None if query.until is None else day_of(query.until)),
        ]
    )
    return " AND ".join(terms or ["1 = 1"]), values


def _percentile(counts: Sequence[tuple[int, int]], share: int) -> float:
    """Of buckets in ascending order: the middle of the one that it falls into, in ms."""
    sums = itertools.accumulate(count for _, count in counts)
    wanted = sum(count for _, count in counts) * share / 100
    bucket = next(bucket for (bucket, _), so_far in zip(counts, sums, strict=True) if so_far >= wanted)
    return round(math.exp(bucket * WIDTH), 2)


def _row(found: Sequence[Any]) -> Row:
    facts = dict(zip(FACTS, found, strict=False))
    for name in LISTS:
        facts[name] = tuple(json.loads(facts[name])) if facts[name] else ()
    facts["images"] = json.loads(facts["images"]) if facts["images"] else None
    facts["stream"] = bool(facts["stream"])
    return Row(**facts, title=found[len(FACTS)])


def _with_bodies(row: Row, request: str | None, response: str | None, bodies: str | None, times: str | None) -> Row:
    """With all four bodies: those that are the same as others were kept once."""
    row.times = json.loads(times) if times else ()
    row.request, row.response = (None if text is None else json.loads(text) for text in (request, response))
    given = json.loads(bodies) if bodies else {}
    asked, told = given.get("asked", request), given.get("told", response)
    full = {"asked": asked, "sent": given.get("sent", asked), "got": given.get("got", told), "told": told}
    row.bodies = {name: text for name, text in full.items() if text is not None}
    return row
