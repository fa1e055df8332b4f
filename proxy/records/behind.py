"""A record that works behind calls: what has ended waits in a bounded queue, and one thread makes rows of it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxy.call import Call
from proxy.config import Calls, Config
from proxy.records.calls import Tape
from proxy.records.rows import Rows, Taken
from proxy.records.store import Row

if TYPE_CHECKING:
    from proxy.relay import Relay

logger = logging.getLogger(__name__)

WAITING = 5000  # calls that have ended and are not worked on yet, at most
WAITING_BYTES = 128 * 1024 * 1024  # of their bodies, at most
BODY = 8 * 1024 * 1024  # bytes of one body; of a call with a larger one only its facts are there
GATHER_S = 0.2  # calls that end within this time are worked on together
GROUP = 250  # at most so many at once
CLOSING_S = 5.0  # the longest wait for what has not been worked on


class Behind:
    """The verbs of a record; a subclass says what is done with rows. The lock guards the queue, the counts, and who works.

    The thread ends when nothing waits, so that a generation of before a reload leaves none behind. `dropped`: calls that
    nothing was done with.
    """

    def __init__(self, config: Config, name: str) -> None:
        self._rows = Rows(config, Calls(body_limit=BODY))
        self._name = name
        self._running: dict[str, Tape] = {}  # by call; each is put in and taken out by its own thread
        self._queue: deque[tuple[Taken, int]] = deque()
        self._held = self._held_bytes = 0  # of calls that have ended and are not worked on
        self._works = False
        self.hurries = False  # the generation ends
        self._changed = threading.Condition()
        self.dropped = 0

    def keep(self, rows: Sequence[Row]) -> None:
        """Works on rows; on none, when the time of `wait_s` is over. Only the one thread calls it."""
        raise NotImplementedError

    def wants(self, call: Call) -> bool:
        """Whether anything is done with a call that has ended."""
        raise NotImplementedError

    def wait_s(self) -> float:
        """Seconds until there is something to do even if no call ends; 0.0: there will be nothing."""
        return 0.0

    def begin(self, relay: Relay) -> None:
        """Listens to a call."""
        self._running[relay.call.id] = Tape(relay, BODY)

    def end(self, call: Call) -> None:
        """A call has ended; one that never began is none of ours."""
        tape = self._running.pop(call.id, None)
        if tape is None or not self.wants(call):
            return
        elapsed_s = call.elapsed_s()
        taken = tape.taken(call, time.time() - elapsed_s, elapsed_s * 1000)
        with self._changed:
            if self._held >= WAITING or self._held_bytes + tape.size > WAITING_BYTES:
                self.dropped += 1
                return
            self._queue.append((taken, tape.size))
            self._held += 1
            self._held_bytes += tape.size
            if self._works:
                return
            self._works = True
        threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def close(self) -> None:
        """Waits until all is done, not forever: the thread goes on as long as the process."""
        with self._changed:
            self.hurries = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._works, CLOSING_S):
                logger.warning("%s: %d calls still wait", self._name, self._held)

    def drop(self, count: int, why: object) -> None:
        """So many calls are not kept."""
        with self._changed:
            self.dropped += count
        logger.warning("%s: %d calls were not kept (%d in all): %s", self._name, count, self.dropped, why)

    # --- the thread
    def _work(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self.keep([row for row in (self._row(taken) for taken, _ in batch) if row])
            except Exception:
                self.drop(len(batch), "an error of the proxy itself")
                logger.exception("%s failed", self._name)
            with self._changed:
                self._held -= len(batch)
                self._held_bytes -= sum(size for _, size in batch)

    def _next(self) -> list[tuple[Taken, int]] | None:
        """What is to be worked on together, nothing when it is time for `keep([])`; None: the thread ends."""
        with self._changed:
            if not self._queue:
                self._changed.wait_for(lambda: self._queue or self.hurries, self.wait_s())
            if self._queue:
                self._changed.wait_for(lambda: self.hurries, GATHER_S)
            batch = [self._queue.popleft() for _ in range(min(GROUP, len(self._queue)))]
            if not batch and not self.wait_s():
                self._works = False
                self._changed.notify_all()
                return None
            return batch

    def _row(self, taken: Taken) -> Row | None:
        time.sleep(0)  # calls go first: a batch is not worked through in one turn
        try:
            return self._rows.of(taken)
        except Exception:
            self.drop(1, "it could not be read")
            logger.exception("%s: no row", taken.call.id)
            return None
