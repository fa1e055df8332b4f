"""Which processes run, by a word of their command line that only they have."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def running(word: str) -> list[int]:
    """Ids of the processes whose command line has that word; a zombie has none."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = place.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if word.encode() in line:
            found.append(int(place.parent.name))
    return sorted(found)


def zombies_of(parent: int) -> list[str]:
    """Ended children that a process has not reaped, by name."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = place.read_text().rpartition(")")
        except OSError:
            continue
        state, of = tail.split()[:2]
        if state == "Z" and int(of) == parent:
            found.append(head)
    return found


def wait_until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Returns when it holds. Raises AssertionError when it does not come."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it does not come"
        time.sleep(0.01)
