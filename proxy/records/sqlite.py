"""The call log in an SQLite file: write-ahead log, so that readers and other workers' writers get along, and FTS5 to search."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Any

from proxy.errors import ConfigError
from proxy.records.reader import Values
from proxy.records.sql import SqlStore
from proxy.records.store import RowRefused, StoreLost
from proxy.records.tables import FROM_1, TABLES, VERSION

LOCKED_S = 10.0  # how long another worker's write is waited for
UPGRADE_S = 3600.0  # how long another worker's upgrade of the tables is
MARK = 0x6D6F6F6C  # application_id of our files
CACHE_KIB = 16 * 1024  # of pages, per connection
WORDS = """CREATE VIRTUAL TABLE words USING fts5(said, content='', detail=none, columnsize=0,
tokenize="ascii tokenchars '_:'")"""  # terms without their order, and without a copy of the texts

OF_A_VALUE = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    OverflowError,
    UnicodeEncodeError,
)


VALUES = re.compile(r"VALUES (\([?0, ]+\))")
MOST_VALUES = 32_000  # in one statement; SQLite allows 32,766


class SqliteStore(SqlStore):
    """See `store.Store`. A file that was moved away is made anew."""

    searched = "words w CROSS JOIN calls c ON c.n = w.rowid {} WHERE words MATCH ?"  # CROSS: in this order

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = file
        self._inode = 0  # of the file that the connection has open
        with self._begin(writes=False):
            pass

    @contextlib.contextmanager
    def _begin(self, writes: bool = True) -> Iterator[None]:
        with self._lock:
            try:
                conn = self._ready()
                conn.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                try:
                    yield
                    conn.execute("COMMIT")
                except BaseException:
                    if conn.in_transaction:
                        conn.execute("ROLLBACK")
                    raise
            except OF_A_VALUE as fault:
                raise RowRefused(type(fault).__name__) from fault
            except (sqlite3.Error, OSError) as fault:
                raise StoreLost(f"{self._file}: {fault}") from fault

    # --- what SqlStore wants
    def _connect(self) -> sqlite3.Connection:
        file = os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600)  # it holds what people wrote
        self._inode = os.fstat(file).st_ino
        os.close(file)
        return sqlite3.connect(self._file, timeout=UPGRADE_S, check_same_thread=False, isolation_level=None)

    def _is_there(self) -> bool:
        try:
            return os.stat(self._file).st_ino == self._inode
        except OSError:
            return False

    def _prepare(self) -> None:
        self._run("PRAGMA auto_vacuum = INCREMENTAL")
        for _ in range(1000):  # others may be at the same switch, for which SQLite does not wait
            with contextlib.suppress(sqlite3.OperationalError):
                self._run("PRAGMA journal_mode = WAL")
                break
            time.sleep(0.01)
        else:
            raise sqlite3.OperationalError("it cannot be brought to write ahead")
        self._run("PRAGMA synchronous = NORMAL")
        self._run(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._run("BEGIN IMMEDIATE")
        self._check()
        self._run("COMMIT")
        self._run(f"PRAGMA busy_timeout = {LOCKED_S * 1000:.0f}")

    def _check(self) -> None:
        """See `_prepare`."""
        (version,) = self._run("PRAGMA user_version").fetchone()
        (mark,) = self._run("PRAGMA application_id").fetchone()
        if version > VERSION and mark == MARK:
            raise ConfigError(
                [f"{self._file}: a later version wrote it (tables {version}, here {VERSION}): use that, or another file"]
            )
        if mark == MARK and version == VERSION:
            return
        if mark != MARK and self._run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise ConfigError([f"{self._file}: is a database of another program: choose another file"])
        if mark == MARK:
            self._tell_of_upgrade()
        for statement in (*(FROM_1 if mark == MARK else TABLES), WORDS):
            self._run(statement.replace("{number}", "INTEGER").replace("{clustered}", "WITHOUT ROWID"))
        if mark == MARK:
            self._upgrade()
        self._run(f"PRAGMA user_version = {VERSION}")
        self._run(f"PRAGMA application_id = {MARK}")

    def _run(self, sql: str, values: Values = ()) -> Any:
        return self._conn.execute(sql, values)

    def _many(self, sql: str, rows: Sequence[Values]) -> None:
        """As few statements as there can be: after each the thread waits for its turn among all the others."""
        group = VALUES.search(sql)
        assert group
        size = MOST_VALUES // max(1, group[1].count("?"))
        for at in range(0, len(rows), size):
            some = rows[at : at + size]
            groups = ", ".join([group[1]] * len(some))
            self._run(f"{sql[: group.start(1)]}{groups}{sql[group.end(1) :]}", [value for row in some for value in row])

    def _numbers(self, count: int) -> Sequence[int]:
        (last,) = self._run("SELECT coalesce(max(n), 0) FROM calls").fetchone()
        return range(last + 1, last + 1 + count)

    def _index(self, numbered: Sequence[tuple[int, str]]) -> None:
        self._many("INSERT INTO words (rowid, said) VALUES (?, ?)", numbered)

    def _unindex(self, numbered: Sequence[tuple[int, str]]) -> None:
        """A table without a copy of the texts is told what it has to forget."""
        self._many("INSERT INTO words (words, rowid, said) VALUES (?, ?, ?)", [("delete", *each) for each in numbered])

    def _match(self, terms: Sequence[str]) -> str:
        return " AND ".join(f'"{term[:-1]}"*' if term.endswith("*") else f'"{term}"' for term in terms)
