"""The process that makes rows of calls and writes them; `calls.py` starts it, one for each worker that keeps a call log.

Frames come in on standard input: what is kept, then, in any order, a configuration with the secrets of now, and lists of calls.
Each list is answered with "done" when it is written, in a line of JSON; other lines tell of trouble. It ends with its input.
"""

from __future__ import annotations

import json
import logging
import marshal
import os
import pickle
import signal
import sys
import time
from typing import Any

from proxy.call import Call
from proxy.config import Calls, Config
from proxy.errors import ConfigError
from proxy.records.rows import CALL, Rows, Taken
from proxy.records.store import Row, RowRefused, Store, StoreLost, open_store

logger = logging.getLogger(__name__)

BACKOFF_S = (0.25, 15.0)  # between two tries to reach a database that is away: the first pause, and the longest
ORPHANED_S = 30.0  # how long it is tried once nobody waits for it
WAITS_S = 0.2  # a row that is made is written after this time
FORGET_S = 60.0  # how often what is too old is looked for
PICKLED = b"\x80"  # how a pickle begins; calls come marshalled, which takes half as long
SIZE = 4  # bytes that tell a frame's length


class Writer:
    """Rows and the database they go to. `tell` is called with what the proxy should know."""

    def __init__(self, kept: Calls) -> None:
        self._kept = kept
        self._rows: Rows | None = None
        self._store: Store | None = None
        self._next_forget = 0.0  # monotonic
        self._parent = os.getppid()
        self._is_lost = False

    def use(self, config: Config) -> None:
        """The secrets to take out from now on."""
        self._rows = Rows(config, self._kept)

    def write(self, batch: list[Taken]) -> None:
        """Makes rows of calls, and writes them; those that are made first do not wait long for the others."""
        rows: list[Row] = []
        until = time.monotonic() + WAITS_S
        for taken in batch:
            row = self._row(taken)
            rows += [row] if row else []
            if time.monotonic() > until:
                self._put(rows)
                rows, until = [], time.monotonic() + WAITS_S
        self._put(rows)
        if time.monotonic() >= self._next_forget:
            self._forget()

    def _row(self, taken: Taken) -> Row | None:
        assert self._rows
        try:
            return self._rows.of(taken)
        except Exception:
            logger.exception("%s: no row", taken.call.id)  # on the proxy's standard error
            tell({"dropped": "it could not be read"})
            return None

    def _put(self, rows: list[Row]) -> None:
        """However long the database is away."""
        if not rows:
            return
        pause_s, began = BACKOFF_S[0], time.monotonic()
        while True:
            try:
                self._opened().write(rows)
                if self._is_lost:
                    self._is_lost = False
                    tell({"back": True})
                return
            except (StoreLost, ConfigError) as fault:
                if not self._is_lost:
                    self._is_lost = True
                    tell({"lost": str(fault)})
            except RowRefused as fault:
                if len(rows) == 1:
                    tell({"dropped": f"the database refuses {rows[0].id}: {fault}"})
                    return
                for row in rows:  # one of them is at fault: the others are kept
                    self._put([row])
                return
            if os.getppid() != self._parent and time.monotonic() - began > ORPHANED_S:
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, BACKOFF_S[1])

    def _forget(self) -> None:
        """What is too old goes, some of it at a time."""
        gone = 0
        try:
            gone = self._opened().forget(self._kept.keep_days, self._kept.keep_bytes)
        except (StoreLost, ConfigError) as fault:
            tell({"warning": f"what is too old stays in the call log for now: {fault}"})
        self._next_forget = time.monotonic() + (0 if gone else FORGET_S)

    def _opened(self) -> Store:
        if self._store is None:
            self._store = open_store(self._kept.database)
        return self._store


def tell(what: Any) -> None:
    """A line for the proxy, if it is still there."""
    try:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is left is written all the same


def main() -> None:
    """Until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    frames = sys.stdin.buffer
    writer: Writer | None = None
    while len(size := frames.read(SIZE)) == SIZE:
        data = frames.read(int.from_bytes(size, "big"))
        if len(data) < int.from_bytes(size, "big"):
            return  # half a frame of a proxy that was killed
        value = marshal.loads(data) if data[:1] != PICKLED else pickle.loads(data)
        if writer is None:
            writer = Writer(value)
        elif isinstance(value, Config):
            writer.use(value)
        else:
            writer.write([Taken(Call(**dict(zip(CALL, call, strict=True))), *taken) for call, taken in value])
            tell("done")
