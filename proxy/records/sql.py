"""What SQLite and PostgreSQL do alike with calls. Statements are written with `?`; values are parameters, always.

A write is one transaction: the calls, their bodies, the words that are searched, the conversations, and two roll-ups, so that a
million rows need not be looked at to say what a month cost (`daily`) or how long calls took (`latency`: a histogram whose
buckets are 10 % wide).
"""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from proxy import wire
from proxy.records.store import Query, Row

VERSION = 1  # of the tables; a database of a later one is refused
FACTS = (  # of a row, as they stand in `calls`
    *("id", "at", "key_name", "user", "client", "front", "method", "path", "target", "model_asked", "model_served", "status"),
    *("error_source", "error", "total_ms", "first_ms", "tokens_in", "tokens_cached", "tokens_out", "cost", "stream", "cache"),
    *("attempts", "losses", "conversation", "about", "tags", "images"),
)
LISTS = ("attempts", "losses", "tags")
AS_JSON = frozenset((*LISTS, "images"))
OF_CALLS = [f'c."{name}"' for name in FACTS]
TABLES = (
    """CREATE TABLE calls (n {number} PRIMARY KEY, id TEXT NOT NULL UNIQUE, "at" DOUBLE PRECISION NOT NULL, key_name TEXT,
    "user" TEXT, client TEXT, front TEXT, method TEXT, path TEXT, target TEXT, model_asked TEXT, model_served TEXT,
    status INTEGER NOT NULL, error_source TEXT, error TEXT, total_ms DOUBLE PRECISION, first_ms DOUBLE PRECISION,
    tokens_in BIGINT, tokens_cached BIGINT, tokens_out BIGINT, cost DOUBLE PRECISION, stream SMALLINT, cache TEXT,
    attempts TEXT, losses TEXT, conversation TEXT, about TEXT, tags TEXT, images TEXT, size BIGINT NOT NULL)""",
    # whatever narrows a list is in here: the others' rows are passed over without being read
    'CREATE INDEX calls_by_time ON calls ("at", id, key_name, target, model_served, model_asked, status, front)',
    'CREATE INDEX calls_by_key ON calls (key_name, "at", id, target, model_served, model_asked, status, front)',
    'CREATE INDEX calls_by_conversation ON calls (conversation, "at")',
    "CREATE TABLE bodies (n {number} PRIMARY KEY, request TEXT, response TEXT, bodies TEXT)",
    """CREATE TABLE conversations (id TEXT NOT NULL, key_name TEXT NOT NULL, title TEXT, hidden SMALLINT NOT NULL,
    latest BIGINT NOT NULL, "at" DOUBLE PRECISION NOT NULL, PRIMARY KEY (id, key_name)) {clustered}""",
    'CREATE INDEX conversations_by_time ON conversations ("at", hidden, key_name, id, latest, title)',
    'CREATE TABLE turns (mark TEXT PRIMARY KEY, conversation TEXT NOT NULL, "at" DOUBLE PRECISION NOT NULL) {clustered}',
    'CREATE INDEX turns_by_time ON turns ("at")',
    """CREATE TABLE daily (day TEXT NOT NULL, key_name TEXT NOT NULL, target TEXT NOT NULL, model_served TEXT NOT NULL,
    "user" TEXT NOT NULL, calls BIGINT NOT NULL, errors BIGINT NOT NULL, tokens_in BIGINT NOT NULL,
    tokens_cached BIGINT NOT NULL, tokens_out BIGINT NOT NULL, cost DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (day, key_name, target, model_served, "user")) {clustered}""",
    """CREATE TABLE latency (day TEXT NOT NULL, key_name TEXT NOT NULL, target TEXT NOT NULL, model_served TEXT NOT NULL,
    what TEXT NOT NULL, bucket INTEGER NOT NULL, calls BIGINT NOT NULL,
    PRIMARY KEY (day, key_name, target, model_served, what, bucket)) {clustered}""",
)
SUMS = ("calls", "errors", "tokens_in", "tokens_cached", "tokens_out", "cost")
BY = ("key_name", "model_served", "target", "user")
NAMES = ", ".join(f'"{name}"' for name in FACTS)
WRITE_CALLS = f"INSERT INTO calls (n, {NAMES}, size) VALUES (?{', ?' * (len(FACTS) + 1)})"
WRITE_BODIES = "INSERT INTO bodies (n, request, response, bodies) VALUES (?, ?, ?, ?)"
WRITE_CONVERSATIONS = """INSERT INTO conversations VALUES (?, ?, ?, 0, ?, ?) ON CONFLICT (id, key_name) DO UPDATE
SET hidden = 0, latest = excluded.latest, "at" = excluded."at", title = coalesce(conversations.title, excluded.title)
WHERE excluded."at" >= conversations."at" """
WRITE_TURNS = """INSERT INTO turns VALUES (?, ?, ?) ON CONFLICT (mark) DO UPDATE
SET conversation = excluded.conversation, "at" = excluded."at" """
WRITE_DAILY = f"""INSERT INTO daily VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (day, key_name, target, model_served, "user")
DO UPDATE SET {", ".join(f"{name} = daily.{name} + excluded.{name}" for name in SUMS)}"""
WRITE_LATENCY = """INSERT INTO latency VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (day, key_name, target, model_served, what, bucket)
DO UPDATE SET calls = latency.calls + excluded.calls"""
GROUP = 200  # rows, or values of an IN, at once
AT_ONCE = 5000  # calls that one `forget` removes at most
MATCHES = 20_000  # that are looked through, the newest first
AGAIN_S = 3600.0  # the same request within this time is the same conversation, told again
WIDTH = math.log(1.1)  # of a bucket of the histogram
WORD = re.compile(r"[^\W_]+\*?")
WILD = re.compile("[!%_]")  # of LIKE
SEARCHED = 8000  # characters of what was asked, and of what was answered
AGAIN = "again "  # begins the mark of a request, which holds for AGAIN_S only

Values = Sequence[Any]


class SqlStore:
    """See `store.Store`. The lock lets one thread work at a time. What is left to a database: `_begin`, `_run`, `_many`,
    `_numbers`, `_index`, `_unindex` and `_matching`."""

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

    def _many(self, sql: str, rows: Sequence[Values]) -> None:
        raise NotImplementedError

    def _numbers(self, count: int) -> Sequence[int]:
        """So many new values of `n`, in ascending order."""
        raise NotImplementedError

    def _index(self, numbered: Sequence[tuple[int, str]]) -> None:
        """Makes words be found."""
        raise NotImplementedError

    def _unindex(self, numbers: Sequence[int]) -> None:
        """Before their bodies go."""
        raise NotImplementedError

    def _matching(self, words: Sequence[str]) -> tuple[str, Values]:
        """A condition on c.n, for words that may end in *."""
        raise NotImplementedError

    # --- writing
    def write(self, rows: Sequence[Row]) -> None:
        """See Store."""
        with self._begin():
            known = {found[0] for found in self._among("SELECT id FROM calls WHERE id IN", [row.id for row in rows])}
            new = list({row.id: row for row in rows if row.id not in known}.values())
            for row in new:
                _make_plain(row)
            self._link(new)
            numbered = list(zip(self._numbers(len(new)), new, strict=True))
            texts = {number: _texts(row) for number, row in numbered}
            self._many(WRITE_CALLS, [(number, *_facts(row), _size(texts[number])) for number, row in numbered])
            self._many(WRITE_BODIES, [(number, *text) for number, text in texts.items() if any(text)])
            words = [(number, words_of(row.request, row.response)) for number, row in numbered]
            self._index([(number, text) for number, text in words if text])
            self._write_conversations(numbered)
            self._roll_up(new)

    def _link(self, rows: Sequence[Row]) -> None:
        """Finds the conversations that rows go on with, among those of the same batch too."""
        wanted = [mark for row in rows if row.conversation is None for mark in row.follows]
        sql = 'SELECT mark, conversation, "at" FROM turns WHERE mark IN'
        turns = {mark: (conversation, at) for mark, conversation, at in self._among(sql, wanted)}
        fresh: dict[str, tuple[str, float]] = {}
        for row in rows:
            for mark in row.follows if row.conversation is None else ():
                found = turns.get(mark)
                if found and (not mark.startswith(AGAIN) or abs(row.at - found[1]) < AGAIN_S):
                    row.conversation = found[0]
                    break
            if row.conversation is None and row.leaves:
                row.conversation = row.id
            if row.conversation is not None:
                fresh |= dict.fromkeys(row.leaves, (row.conversation, row.at))
                turns |= dict.fromkeys(row.leaves, (row.conversation, row.at))
        self._many(WRITE_TURNS, [(mark, *found) for mark, found in sorted(fresh.items())])

    def _write_conversations(self, numbered: Iterable[tuple[int, Row]]) -> None:
        rows = [(row.conversation, row.key_name or "", row.title, n, row.at) for n, row in numbered if row.conversation]
        self._many(WRITE_CONVERSATIONS, sorted(rows, key=lambda row: (row[0], row[1], row[4])))

    def _roll_up(self, rows: Iterable[Row]) -> None:
        """In the order of their names, so that two workers do not wait for each other."""
        days: defaultdict[Values, list[float]] = defaultdict(lambda: [0] * len(SUMS))
        buckets: Counter[Values] = Counter()
        for row in rows:
            whose = (day_of(row.at), row.key_name or "", row.target or "", row.model_served or row.model_asked or "")
            adds = (1, row.status >= 400, row.tokens_in, row.tokens_cached, row.tokens_out, row.cost)
            key = (*whose, row.user or "")
            days[key] = [total + (more or 0) for total, more in zip(days[key], adds, strict=True)]
            for what, ms in (("total", row.total_ms), ("first", row.first_ms)) if row.status < 400 else ():
                if ms is not None:
                    place = (*whose, what, round(math.log(max(ms, 0.01)) / WIDTH))
                    buckets[place] += 1
        self._many(WRITE_DAILY, [(*key, *sums) for key, sums in sorted(days.items())])
        self._many(WRITE_LATENCY, [(*key, count) for key, count in sorted(buckets.items())])

    def _among(self, sql: str, values: Sequence[Any]) -> Iterator[Any]:
        for at in range(0, len(values), GROUP):
            group = values[at : at + GROUP]
            yield from self._run(f"{sql} ({', '.join('?' * len(group))})", group).fetchall()

    # --- reading
    def calls(self, query: Query) -> Sequence[Row]:
        """See Store."""
        where, values = self._where(query)
        sql = f"""SELECT {", ".join(OF_CALLS)}, v.title FROM
            (SELECT c.* FROM calls c WHERE {where} ORDER BY c."at" DESC, c.id DESC LIMIT ?) c LEFT JOIN conversations v
            ON v.id = c.conversation AND v.key_name = coalesce(c.key_name, '') ORDER BY c."at" DESC, c.id DESC"""
        return [_row(found) for found in self._all(sql, (*values, query.limit))]

    def call(self, id: str, key_name: str | None = None) -> Row | None:
        """See Store."""
        found = self._whole("c.id = ? AND (CAST(? AS TEXT) IS NULL OR c.key_name = ?)", (id, key_name, key_name), "c.n")
        return found[0] if found else None

    def conversation(self, id: str, key_name: str | None = None) -> Sequence[Row]:
        """See Store."""
        return self._whole(
            "c.conversation = ? AND (CAST(? AS TEXT) IS NULL OR c.key_name = ?)", (id, key_name, key_name), 'c."at", c.id'
        )

    def conversations(self, query: Query) -> Sequence[Row]:
        """See Store."""
        given: list[tuple[str, Any]] = [
            ("v.key_name = ?", query.key_name),
            ('v."at" >= ?', query.since),
            ('v."at" < ?', query.until),
            ('v."at" < ?', query.before and query.before[0]),
        ]
        terms, values = _narrowed(given)
        if query.text:
            found, more = self._found(query.text)
            terms.append(f"(lower(v.title) LIKE ? ESCAPE '!' OR v.id IN (SELECT c.conversation FROM calls c WHERE {found}))")
            values += ["%" + WILD.sub(r"!\g<0>", query.text.lower()) + "%", *more]
        sql = f"""SELECT {", ".join(OF_CALLS)}, v.title FROM
            (SELECT v.* FROM conversations v WHERE {" AND ".join(["v.hidden = 0", *terms])} ORDER BY v."at" DESC LIMIT ?) v
            JOIN calls c ON c.n = v.latest ORDER BY v."at" DESC"""
        return [_row(found) for found in self._all(sql, (*values, query.limit))]

    def each(self, query: Query) -> Iterator[Row]:
        """See Store."""
        where, values = self._where(query)
        after: tuple[float, str] = (-1.0, "")
        while True:
            more = f'{where} AND c."at" >= ? AND (c."at" > ? OR c.id > ?)'
            page = self._whole(more, (*values, after[0], *after), 'c."at", c.id LIMIT ' + str(GROUP))
            yield from page
            if len(page) < GROUP:
                return
            after = (page[-1].at, page[-1].id)

    def usage(self, query: Query, by: str) -> Sequence[Mapping[str, Any]]:
        """See Store. Raises ValueError for another `by`."""
        if by not in BY:
            raise ValueError(f"by must be one of {', '.join(BY)}, not {by!r}")
        where, values = _of_days(query)
        sums = ", ".join(f"CAST(sum({name}) AS {'DOUBLE PRECISION' if name == 'cost' else 'BIGINT'})" for name in SUMS)
        sql = f'SELECT day, "{by}", {sums} FROM daily WHERE {where} GROUP BY day, "{by}" ORDER BY day, "{by}"'
        return [dict(zip(("day", by, *SUMS), found, strict=True)) for found in self._all(sql, values)]

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

    def _where(self, query: Query) -> tuple[str, Values]:
        status: list[tuple[str, Any]] = {
            "ok": [("c.status < ?", 400)],
            "error": [("c.status >= ?", 400)],
        }.get(query.status or "", [("c.status = ?", int(query.status) if query.status and query.status.isdigit() else None)])
        terms, values = _narrowed(
            [
                ("c.key_name = ?", query.key_name),
                ("c.target = ?", query.target),
                ("c.front = ?", query.front),
                ("c.conversation = ?", query.conversation),
                ('c."at" >= ?', query.since),
                ('c."at" < ?', query.until),
                *status,
            ]
        )
        if query.model:
            terms.append("(c.model_served = ? OR c.model_asked = ?)")
            values += [query.model, query.model]
        if query.before:
            terms.append('c."at" <= ? AND (c."at" < ? OR c.id < ?)')
            values += [query.before[0], *query.before]
        if query.text:
            found, more = self._found(query.text)
            terms.append(found)
            values += more
        return " AND ".join(terms or ["1 = 1"]), values

    def _found(self, text: str) -> tuple[str, Values]:
        words = WORD.findall(text.lower())
        return self._matching(words) if words else ("1 = 0", ())

    def _whole(self, where: str, values: Values, order: str) -> list[Row]:
        sql = f"""SELECT {", ".join(OF_CALLS)}, v.title, b.request, b.response, b.bodies FROM calls c
            LEFT JOIN bodies b ON b.n = c.n LEFT JOIN conversations v
            ON v.id = c.conversation AND v.key_name = coalesce(c.key_name, '') WHERE {where} ORDER BY {order}"""
        return [_with_bodies(_row(found), *found[-3:]) for found in self._all(sql, values)]

    def _all(self, sql: str, values: Values) -> list[Any]:
        with self._begin(writes=False):
            found: list[Any] = self._run(sql, values).fetchall()
        return found

    # --- changing
    def rename(self, conversation: str, title: str, key_name: str | None = None) -> bool:
        """See Store."""
        return self._changed("title = ?", title, conversation, key_name)

    def hide(self, conversation: str, key_name: str | None = None) -> bool:
        """See Store."""
        return self._changed("hidden = ?", 1, conversation, key_name)

    def _changed(self, what: str, value: Any, conversation: str, key_name: str | None) -> bool:
        sql = f"UPDATE conversations SET {what} WHERE id = ? AND (CAST(? AS TEXT) IS NULL OR key_name = ?)"
        with self._begin():
            return bool(self._run(sql, (value, conversation, key_name, key_name)).rowcount > 0)

    def forget(self, keep_days: float | None, keep_bytes: int | None) -> int:
        """See Store."""
        gone = 0
        if keep_days is not None:
            before = time.time() - keep_days * 86400
            gone = self._forget('WHERE "at" < ?', (before,), AT_ONCE)
            with self._begin():
                self._run('DELETE FROM turns WHERE "at" < ?', (before,))
                for table in ("daily", "latency"):
                    self._run(f"DELETE FROM {table} WHERE day < ?", (day_of(before),))
        if keep_bytes is not None:
            excess = self._all("SELECT CAST(coalesce(sum(size), 0) AS BIGINT) FROM calls", ())[0][0] - keep_bytes
            gone += self._forget("", (), AT_ONCE, excess)
        return gone

    def _forget(self, where: str, values: Values, most: int, excess: float = math.inf) -> int:
        """Removes the oldest, so many at most, until `excess` bytes are gone."""
        gone = 0
        while gone < most and excess > 0:
            with self._begin():  # a few at a time: others write in between
                oldest = self._run(f'SELECT n, size FROM calls {where} ORDER BY "at", id LIMIT {GROUP}', values).fetchall()
                numbers = []
                for number, size in oldest:
                    if excess > 0:
                        numbers.append(number)
                        excess -= size
                if not numbers:
                    break
                self._unindex(numbers)
                marks = ", ".join("?" * len(numbers))
                self._run(f"DELETE FROM conversations WHERE latest IN ({marks})", numbers)
                for table in ("bodies", "calls"):
                    self._run(f"DELETE FROM {table} WHERE n IN ({marks})", numbers)
            gone += len(numbers)
        return gone


def day_of(at: float) -> str:
    """YYYY-MM-DD, UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def words_of(request: Any, response: Any) -> str:
    """What a call added to its conversation, as text: what was asked since the last answer, and the answer."""
    messages = request.get("messages") if isinstance(request, dict) else None
    new: Any = messages if isinstance(messages, list) else request
    if isinstance(messages, list):
        answered = [
            at for at, message in enumerate(messages) if isinstance(message, dict) and message.get("role") == "assistant"
        ]
        new = messages[answered[-1] + 1 :] if answered else messages
    return _plain(f"{_said(new)[:SEARCHED]}\n{_said(response)[:SEARCHED]}".strip())


def _said(value: Any) -> str:
    parts: list[str] = []
    _collect(value, "", parts)
    return "\n".join(parts)


SAID = ("content", "text", "input", "prompt", "output", "arguments", "reasoning_content", "message", "query")


def _collect(value: Any, name: str, parts: list[str]) -> None:
    if isinstance(value, str):
        if name in SAID:
            parts.append(value[:SEARCHED])
    elif isinstance(value, dict):
        for key, member in value.items():
            if key not in ("embedding", "logprobs"):
                _collect(member, key, parts)
    elif isinstance(value, list):
        for member in value:
            _collect(member, name, parts)


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


def _plain(text: str) -> str:
    """Text that any database takes."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return text.replace("\0", "\ufffd")


def _make_plain(row: Row) -> None:
    for name, value in vars(row).items():
        if isinstance(value, str):
            setattr(row, name, _plain(value))


def _facts(row: Row) -> Iterator[Any]:
    facts = vars(row)
    for name in FACTS:
        value = facts[name]
        if name in AS_JSON:
            value = json.dumps(value) if value else None
        yield int(value) if value is True or value is False else value


def _texts(row: Row) -> tuple[str | None, str | None, str | None]:
    """request, response and bodies, as they are kept."""
    request, response = (None if value is None else wire.dumps(value).decode() for value in (row.request, row.response))
    return request, response, wire.dumps(row.bodies).decode() if row.bodies else None


def _size(texts: Iterable[str | None]) -> int:
    """About how many bytes a row takes."""
    return 500 + sum(len(text) for text in texts if text)


def _row(found: Sequence[Any]) -> Row:
    facts = dict(zip(FACTS, found, strict=False))
    for name in LISTS:
        facts[name] = tuple(json.loads(facts[name])) if facts[name] else ()
    facts["images"] = json.loads(facts["images"]) if facts["images"] else None
    facts["stream"] = bool(facts["stream"])
    return Row(**facts, title=found[len(FACTS)])


def _with_bodies(row: Row, request: str | None, response: str | None, bodies: str | None) -> Row:
    """With all four bodies: those that are the same as others were kept once."""
    row.request, row.response = (None if text is None else json.loads(text) for text in (request, response))
    given = json.loads(bodies) if bodies else {}
    asked, told = given.get("asked", request), given.get("told", response)
    full = {"asked": asked, "sent": given.get("sent", asked), "got": given.get("got", told), "told": told}
    row.bodies = {name: text for name, text in full.items() if text is not None}
    return row
