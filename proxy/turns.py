"""Taking turns at computing, so that many connections do not crowd the interpreter lock.

Threads that wait for a socket cost nothing; hundreds that are awake at once wait for each other in no order, and the unlucky
ones for seconds. Here one computes at a time and the others queue, first come first served. A turn is given back around
everything that may block, and for good by a call that may compute long.
"""

from __future__ import annotations

import threading
from collections import deque

AT_ONCE = 1  # two would hand the interpreter lock to each other at every system call, which costs more than it gains


class Turns:
    """A fair semaphore. Thread-safe: its lock guards the count and the queue, and is never held while waiting."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._lock = threading.Lock()
        self._free = at_once
        self._queue: deque[threading.Lock] = deque()

    def take(self, mine: threading.Lock) -> None:
        """Waits for a turn; `mine` is the taker's own lock, held by it."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            self._queue.append(mine)
        mine.acquire()  # the giver releases it

    def give(self) -> None:
        """To whom waits longest."""
        with self._lock:
            if self._queue:
                self._queue.popleft().release()
            else:
                self._free += 1


class Turn:
    """One connection's turn: taken or not, whoever asks. As a context manager it is given back meanwhile, if it was taken."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._mine = threading.Lock()
        self._mine.acquire()
        self.taken = False
        self._was = False

    def take(self) -> None:
        """Waits for the turn, unless it is taken already."""
        if not self.taken:
            self._turns.take(self._mine)
            self.taken = True

    def give(self) -> None:
        """Gives it back, if it is taken."""
        if self.taken:
            self.taken = False
            self._turns.give()

    def __enter__(self) -> None:
        """Something that may block begins. Not nested."""
        self._was = self.taken
        self.give()

    def __exit__(self, *_: object) -> None:
        if self._was:
            self.take()
