"""`cache: {store: sqlite:FILE}`: a cache that outlives the process, and that several workers share."""

from __future__ import annotations

import os
import sqlite3
import threading
import time

from proxy.errors import ConfigError

TABLES = (
    "CREATE TABLE IF NOT EXISTS entries (name TEXT PRIMARY KEY, data BLOB NOT NULL, size INTEGER NOT NULL, "
    "ends REAL NOT NULL, used REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS by_use ON entries (used)",
)
FRESH_S = 60.0  # an entry that was read is noted as used once in so long
LOCKED_S = 2.0  # how long another worker's write is waited for


class CacheFile:
    """Thread-safe: a connection for each thread would cost more than the lock around one. Times are those of the wall clock,
    which is the same after a restart. Its methods raise sqlite3.Error."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._conn: sqlite3.Connection | None = None
        self._open().close()  # a file that cannot be had is a fault of the start; the connection is made after the fork

    def _open(self) -> sqlite3.Connection:
        try:
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600))  # it holds people's answers
            conn = sqlite3.connect(self._file, timeout=LOCKED_S, check_same_thread=False, isolation_level=None)
            conn.execute("PRAGMA journal_mode=WAL")
            conn.execute("PRAGMA synchronous=NORMAL")
            for statement in TABLES:
                conn.execute(statement)
        except (sqlite3.Error, OSError) as fault:
            raise ConfigError([f"cache.store: cannot use {self._file}: {fault}"]) from None
        return conn

    def _ready(self) -> sqlite3.Connection:
        if self._conn is None:
            self._conn = self._open()
        return self._conn

    def close(self) -> None:
        """Ends the connection; the last one takes the files beside the database with it."""
        with self._lock:
            if self._conn is not None:
                self._conn.close()
                self._conn = None

    def get(self, name: str) -> bytes | None:
        """The entry, unless it is gone."""
        now = time.time()
        with self._lock:
            conn = self._ready()
            found = conn.execute("SELECT data, used FROM entries WHERE name = ? AND ends > ?", (name, now)).fetchone()
            if found is None:
                return None
            if now - found[1] > FRESH_S:
                conn.execute("UPDATE entries SET used = ? WHERE name = ?", (now, name))
            return bytes(found[0])

    def put(self, name: str, data: bytes, ttl_s: float, max_bytes: int) -> None:
        """Keeps an entry; what has been used least recently goes until all of them fit."""
        if len(data) > max_bytes:
            return
        now = time.time()
        with self._lock:
            conn = self._ready()
            conn.execute("BEGIN IMMEDIATE")
            try:
                conn.execute("DELETE FROM entries WHERE ends <= ?", (now,))
                conn.execute("REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", (name, data, len(data), now + ttl_s, now))
                self._make_room(conn, max_bytes)
                conn.execute("COMMIT")
            except BaseException:
                conn.execute("ROLLBACK")
                raise

    def _make_room(self, conn: sqlite3.Connection, max_bytes: int) -> None:
        too_much = conn.execute("SELECT coalesce(sum(size), 0) FROM entries").fetchone()[0] - max_bytes
        if too_much <= 0:
            return
        for name, size in conn.execute("SELECT name, size FROM entries ORDER BY used").fetchall():
            conn.execute("DELETE FROM entries WHERE name = ?", (name,))
            too_much -= size
            if too_much <= 0:
                return
