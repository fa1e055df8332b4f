"""What was spent survives a restart: one small SQLite file per machine, written in groups, whatever engine counts.

What a call had reserved when the process was killed counts as spent: nobody can say what its backend charged.
"""

from __future__ import annotations

import calendar
import contextlib
import logging
import math
import os
import sqlite3
import threading
import time
from functools import lru_cache

from proxy.errors import ConfigError

logger = logging.getLogger(__name__)

FILE = "mooltiproxy.db"  # in the working directory
GROUP_S = 0.1  # what is spent within this time is written at once
PLAIN = {"hour": (3600, 0), "day": (86400, 0), "week": (604800, 345600)}  # seconds; weeks begin on Mondays
TABLE = "CREATE TABLE IF NOT EXISTS spent (name TEXT PRIMARY KEY, start INTEGER NOT NULL, amount INTEGER NOT NULL)"
UPSERT = "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET start = excluded.start, amount = "
OWNED = UPSERT + "excluded.amount"
MIRRORED = UPSERT + "max(excluded.amount, amount * (start = excluded.start)) WHERE excluded.start >= start"


def window_of(period: str, unix: float) -> tuple[float, float]:
    """A budget's window (its beginning and its end, seconds since the epoch, UTC) at that time."""
    if period == "total":
        return 0.0, math.inf
    if period in PLAIN:
        length, offset = PLAIN[period]
        start = (unix - offset) // length * length + offset
        return start, start + length
    year, month = time.gmtime(unix)[:2]
    first, after = ((year, month), (year, month + 1)) if period == "month" else ((year, 1), (year + 1, 1))
    return float(_begin(*first)), float(_begin(*after))


@lru_cache(8)
def _begin(year: int, month: int) -> int:
    return calendar.timegm((year + (month - 1) // 12, (month - 1) % 12 + 1, 1, 0, 0, 0))


class Money:
    """The file and what is still to be written. `mirror`: several processes write what a shared engine says; the most wins.
    `behind`: a thread writes, else whoever calls `flush`.

    `open` reads it; before that, the first budget that is asked for does. The lock guards `_spent`, `_dirty` and `_thread`.
    """

    def __init__(self, file: str = FILE, mirror: bool = False, behind: bool = True) -> None:
        self._file, self._mirror, self._behind = file, mirror, behind
        self._lock = threading.Lock()
        self._spent: dict[str, tuple[int, int]] | None = None  # name → beginning of its window, amount; None: not read yet
        self._dirty: set[str] = set()
        self._writes: sqlite3.Connection | None = None  # of `flush`; a worker that is forked later leaves it alone
        self._more = threading.Event()
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    def open(self) -> None:
        """Reads the file, or makes it. Raises ConfigError when that cannot be done."""
        try:
            with contextlib.closing(self._connect()) as connection:
                rows = connection.execute("SELECT name, start, amount FROM spent").fetchall()
        except sqlite3.Error as fault:
            raise ConfigError([f"{self._file}: budgets are kept there, but: {fault}; is the folder writable?"]) from fault
        with self._lock:
            self._spent = {name: (start, amount) for name, start, amount in rows} | (self._spent or {})

    def known(self, name: str, start: float) -> int:
        """What was spent of a budget in the window that begins then, as far as the file or `note` said."""
        if self._spent is None:
            try:
                self.open()
            except ConfigError as fault:
                logger.error("%s: what is spent will not survive a restart", fault.message)
                self._spent = {}
        assert self._spent is not None
        of, amount = self._spent.get(name, (0, 0))
        return amount if of == int(start) else 0

    def note(self, name: str, start: float, amount: int) -> None:
        """So much is spent in that window."""
        now = (int(start), amount)
        with self._lock:
            spent = self._spent
            if spent is None:
                spent = self._spent = {}
            spent[name] = max(now, spent.get(name, now)) if self._mirror else now
            self._dirty.add(name)
            if self._behind and self._thread is None:
                self._thread = threading.Thread(target=self._write, name="money", daemon=True)
                self._thread.start()
        if not self._more.is_set():
            self._more.set()

    @property
    def is_dirty(self) -> bool:
        """Whether something is to be written."""
        return bool(self._dirty)

    def flush(self) -> None:
        """Writes what is to be written. A fault is logged, and it is tried again with the next group."""
        with self._lock:
            self._more.clear()
            names, self._dirty = self._dirty, set()
            rows = [(name, *(self._spent or {})[name]) for name in names]
        if not rows:
            return
        try:
            self._writes = self._writes or self._connect()
            with self._writes:
                self._writes.executemany(MIRRORED if self._mirror else OWNED, rows)
        except sqlite3.Error as fault:
            logger.error("%s: cannot write what was spent: %s", self._file, fault)
            with self._lock:
                self._dirty |= names

    def _connect(self) -> sqlite3.Connection:
        with contextlib.suppress(OSError):  # what is wrong with it, SQLite says in its own words
            os.close(os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self._file, timeout=2.0, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # no wait for the disk: a killed process loses nothing by that
        with connection:
            connection.execute(TABLE)
        return connection

    def _write(self) -> None:
        while not self._ending.is_set():
            self._more.wait()
            self._ending.wait(GROUP_S)
            self.flush()

    def close(self) -> None:
        """What was spent is on disk."""
        self._ending.set()
        self._more.set()
        if self._thread is not None:
            self._thread.join(5.0)
        self.flush()
        if self._writes is not None:
            self._writes.close()
            self._writes = None
