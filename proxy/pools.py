"""Whose turn it is among the members of a pool. Each process decides for itself; who rests is in the shared state."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from proxy.config import Pool


class Busy:
    """How many calls each target has of this process. The lock guards the counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        """While one more call is at that target."""
        self._add(name, 1)
        try:
            yield
        finally:
            self._add(name, -1)

    def _add(self, name: str, count: int) -> None:
        with self._lock:
            self.calls[name] += count


class Members:
    """A pool at work. Thread-safe: the lock guards the credits.

    Each turn every member gains its weight, and whoever has most goes first and pays what all have gained: with equal weights
    one after the other, else in proportion and well mixed (1 of 4 calls, never 1 of 4 in a row of its own).
    """

    def __init__(self, pool: Pool, busy: Busy) -> None:
        self._pool, self._busy = pool, busy
        self._lock = threading.Lock()
        self._credits = dict.fromkeys(pool.members, 0)
        self._gained = sum(pool.members.values())

    def order(self) -> list[str]:
        """The members, whose turn it is first."""
        weights = self._pool.members
        with self._lock:
            for name, weight in weights.items():
                self._credits[name] += weight
            order = sorted(weights, key=self._credits.__getitem__, reverse=True)
            self._credits[order[0]] -= self._gained
        if self._pool.strategy == "least-busy":
            order.sort(key=lambda name: self._busy.calls[name] / weights[name])
        return order
