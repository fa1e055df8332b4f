"""How SQLite and PostgreSQL alike write calls; `reader.py` is the half that reads. Values are parameters, always.

A write is one transaction: the calls, their bodies, the terms that they are found by (`search.py`), the conversations, and two
roll-ups, so that a million rows need not be looked at to say what a month cost (`daily`) or how long calls took (`latency`: a
histogram whose buckets are 10 % wide).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from proxy import wire
from proxy.records import search
from proxy.records.reader import GROUP, WIDTH, SqlReader, Values, day_of
from proxy.records.store import Row
from proxy.records.tables import AS_JSON, FACTS, SUMS

logger = logging.getLogger(__name__)
NAMES = ", ".join(f'"{name}"' for name in FACTS)
WRITE_CALLS = f"INSERT INTO calls (n, {NAMES}, size) VALUES (?{', ?' * (len(FACTS) + 1)})"
WRITE_BODIES = "INSERT INTO bodies VALUES (?, ?, ?, ?, ?)"
NEWER = 'excluded."at" >= conversations."at"'
WRITE_CONVERSATIONS = f"""INSERT INTO conversations VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id, key_name) DO UPDATE SET hidden = CASE WHEN {NEWER} THEN 0 ELSE conversations.hidden END,
latest = CASE WHEN {NEWER} THEN excluded.latest ELSE conversations.latest END,
"at" = CASE WHEN {NEWER} THEN excluded."at" ELSE conversations."at" END,
title = coalesce(conversations.title, excluded.title),
{", ".join(f"{name} = conversations.{name} + excluded.{name}" for name in ("tokens", *SUMS))}"""
WRITE_SLICES = """INSERT INTO slices VALUES (?, ?, ?) ON CONFLICT (slice) DO UPDATE SET
first = CASE WHEN excluded.first < slices.first THEN excluded.first ELSE slices.first END,
latest = CASE WHEN excluded.latest > slices.latest THEN excluded.latest ELSE slices.latest END"""
WRITE_TURNS = """INSERT INTO turns VALUES (?, ?, ?) ON CONFLICT (mark) DO UPDATE
SET conversation = excluded.conversation, "at" = excluded."at" """
WRITE_DAILY = f"""INSERT INTO daily VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (day, key_name, target, model_served, "user")
DO UPDATE SET {", ".join(f"{name} = daily.{name} + excluded.{name}" for name in SUMS)}"""
WRITE_LATENCY = """INSERT INTO latency VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (what, bucket, day, key_name, target, model_served)
DO UPDATE SET calls = latency.calls + excluded.calls"""
AT_ONCE = 5000  # calls that one `forget` removes at most
AGAIN_S = 3600.0  # the same request within this time is the same conversation, told again
AGAIN = "again "  # begins the mark of a request, which holds for AGAIN_S only


class SqlStore(SqlReader):
    """See `store.Store`. What is left to a database, beside what reading needs: `_connect`, `_prepare`, `_is_there` of a
    connection, `_many`, `_numbers`, `_index`, `_unindex` of its statements."""

    def __init__(self) -> None:
        super().__init__()
        self._conn: Any = None

    # --- what a database does its own way
    def _connect(self) -> Any:
        """A new connection."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Makes a new connection ready, and the tables where there are none, or of those of an earlier version. Raises
        ConfigError for a database that is not ours, or of a later version."""
        raise NotImplementedError

    def _is_there(self) -> bool:
        """Whether the connection still leads to the database."""
        raise NotImplementedError

    def _many(self, sql: str, rows: Sequence[Values]) -> None:
        raise NotImplementedError

    def _numbers(self, count: int) -> Sequence[int]:
        """So many new values of `n`, in ascending order."""
        raise NotImplementedError

    def _index(self, numbered: Sequence[tuple[int, str]]) -> None:
        """Makes calls be found by terms."""
        raise NotImplementedError

    def _unindex(self, numbered: Sequence[tuple[int, str]]) -> None:
        """Takes back what `_index` was given."""
        raise NotImplementedError

    # --- the connection
    def close(self) -> None:
        """See Store."""
        with self._lock:
            if self._conn is not None:
                self._conn.close()
                self._conn = None

    def _ready(self) -> Any:
        """The connection, for who has the lock: a new one where there is none, or one that leads nowhere."""
        if self._conn is not None and not self._is_there():
            self.close()
        if self._conn is None:
            self._conn = self._connect()
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise
        return self._conn

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
            self._index(_terms(numbered))
            self._write_slices(numbered)
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

    def _write_slices(self, numbered: Iterable[tuple[int, Row]]) -> None:
        times: defaultdict[int, list[float]] = defaultdict(list)
        for number, row in numbered:
            times[number // search.SPAN].append(row.at)
        self._many(WRITE_SLICES, [(number, min(found), max(found)) for number, found in times.items()])

    def _write_conversations(self, numbered: Iterable[tuple[int, Row]]) -> None:
        """Each once, with the latest of its calls."""
        found: dict[tuple[str, str], tuple[Values, list[float]]] = {}
        for number, row in sorted(numbered, key=lambda each: each[1].at):
            if row.conversation:
                whose = (row.conversation, row.key_name or "")
                (title, *_), sums = found.get(whose, ((None,), [0] * len(SUMS)))
                latest = (row.title if title is None else title, number, row.at)
                found[whose] = latest, _added(sums, row)
        rows = [(*whose, *latest, sums[2] + sums[4], *sums) for whose, (latest, sums) in sorted(found.items())]
        self._many(WRITE_CONVERSATIONS, rows)

    def _roll_up(self, rows: Iterable[Row]) -> None:
        """In the order of their names, so that two workers do not wait for each other."""
        days: defaultdict[Values, list[float]] = defaultdict(lambda: [0] * len(SUMS))
        buckets: Counter[Values] = Counter()
        for row in rows:
            whose = (day_of(row.at), row.key_name or "", row.target or "", row.model_served or row.model_asked or "")
            key = (*whose, row.user or "")
            days[key] = _added(days[key], row)
            for what, ms in (("total", row.total_ms), ("first", row.first_ms)) if row.status < 400 else ():
                if ms is not None:
                    place = (what, round(math.log(max(ms, 0.01)) / WIDTH), *whose)
                    buckets[place] += 1
        self._many(WRITE_DAILY, [(*key, *sums) for key, sums in sorted(days.items())])
        self._many(WRITE_LATENCY, [(*key, count) for key, count in sorted(buckets.items())])

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
                marks = ", ".join("?" * len(numbers))
                self._unindex(_terms(self._kept(f"c.n IN ({marks})", numbers)))
                self._run(f"DELETE FROM conversations WHERE latest IN ({marks})", numbers)
                for table in ("bodies", "calls"):
                    self._run(f"DELETE FROM {table} WHERE n IN ({marks})", numbers)
            gone += len(numbers)
        with self._begin():
            self._run('DELETE FROM slices WHERE latest < (SELECT coalesce(min("at"), 0) FROM calls)')
        return gone

    def _tell_of_upgrade(self) -> None:
        (last,) = self._run("SELECT coalesce(max(n), 0) FROM calls").fetchone()
        logger.warning(
            "the call log is of an earlier version: %d calls are brought up to date; a million take some minutes", last
        )

    def _upgrade(self) -> None:
        """After FROM_1, in its transaction: each call is given its terms."""
        (last,) = self._run("SELECT coalesce(max(n), 0) FROM calls").fetchone()
        for begin in range(0, last + 1, GROUP):
            self._index(_terms(self._kept("c.n BETWEEN ? AND ?", (begin, begin + GROUP - 1))))


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


def _added(sums: Sequence[float], row: Row) -> list[float]:
    adds = (1, row.status >= 400, row.tokens_in, row.tokens_cached, row.tokens_out, row.cost)
    return [total + (more or 0) for total, more in zip(sums, adds, strict=True)]


def _terms(numbered: Iterable[tuple[int, Row]]) -> list[tuple[int, str]]:
    return [(number, " ".join(search.terms_of(row, number))) for number, row in numbered]


def _texts(row: Row) -> tuple[str | None, str | None, str | None, str | None]:
    """request, response, bodies and times, as they are kept."""
    request, response = (None if value is None else wire.dumps(value).decode() for value in (row.request, row.response))
    bodies, times = (wire.dumps(value).decode() if value else None for value in (row.bodies, row.times))
    return request, response, bodies, times


def _size(texts: Iterable[str | None]) -> int:
    """About how many bytes a row takes."""
    return 500 + sum(len(text) for text in texts if text)
