"""The engine for one process: dictionaries behind one lock.

A moving window is a log of what was taken and when each of it comes back. Up to TICKS units per period it is exact to the
clock. Above, units of the same 1/TICKS of the period share an entry and come back together, at the end of their share's time:
never more than the limit within any period, up to 1/TICKS of it late (a million a day: 84 s), with TICKS entries at most.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from proxy.state import Budget, Claim, Rate, Slot, Standing, Verdict
from proxy.state.money import Money, window_of

TICKS = 1024
TRACKED = 50_000  # names whose failures and rests are remembered; the one longest without a failure is forgotten first
SLOT_RETRY_S = 1.0

Clock = Callable[[], float]
Entry = list[Any]  # when it comes back, amount


class Moving:
    """A Rate's moving window."""

    __slots__ = ("_clock", "_log", "_period_s", "_tick_s", "total")

    def __init__(self, period_s: float, fine: bool, clock: Clock) -> None:
        self._period_s, self._clock = period_s, clock
        self._tick_s = 0.0 if fine else period_s / TICKS
        self._log: deque[Entry] = deque()
        self.total = 0

    def wait_s(self, limit: int, amount: int) -> float:
        """0.0 when that amount fits now, else in how many seconds it will."""
        now, log = self._clock(), self._log
        while log and log[0][0] <= now:
            self.total -= log.popleft()[1]
        over = self.total + max(amount, 1) - limit
        if over <= 0:
            return 0.0
        for back, taken in log:
            over -= taken
            if over <= 0:
                return float(back - now)
        return math.inf

    def take(self, amount: int) -> Entry | None:
        """Takes that amount; what comes back can be handed to `give_back`."""
        if not amount:
            return None
        now, log = self._clock(), self._log
        back = ((now // self._tick_s + 1) * self._tick_s if self._tick_s else now) + self._period_s
        if not log or log[-1][0] < back:
            log.append([back, 0])
        entry = log[-1]
        entry[1] += amount
        self.total += amount
        return entry

    def give_back(self, entry: Entry | None, amount: int) -> None:
        """That much of what was taken, unless it has come back by itself."""
        if entry is not None and entry[0] > self._clock():
            amount = min(amount, entry[1])
            entry[1] -= amount
            self.total -= amount

    def standing(self, limit: int) -> tuple[int, float]:
        """What is left, and when all of it is back."""
        return max(0, limit - self.total), max(0.0, self._log[-1][0] - self._clock()) if self._log else 0.0

    def is_empty(self) -> bool:
        """Whether it may be forgotten."""
        return not self._log or self._log[-1][0] <= self._clock()


class Fixed:
    """A fixed window, of a Rate or of a Budget: `bounds` says when the one of a time begins and ends."""

    __slots__ = ("_bounds", "_clock", "_end", "start", "total")

    def __init__(self, bounds: Callable[[float], tuple[float, float]], clock: Clock) -> None:
        self._bounds, self._clock = bounds, clock
        self.start, self._end = bounds(clock())
        self.total = 0

    def _now(self) -> float:
        now = self._clock()
        if now >= self._end:
            self.start, self._end = self._bounds(now)
            self.total = 0
        return now

    def wait_s(self, limit: int, amount: int) -> float:
        """See Moving."""
        now = self._now()
        if self.total + max(amount, 1) <= limit:
            return 0.0
        return self._end - now if max(amount, 1) <= limit else math.inf

    def take(self, amount: int) -> float:
        """See Moving."""
        self._now()
        self.total += amount
        return self.start

    def give_back(self, start: float, amount: int) -> None:
        """See Moving."""
        self._now()
        if start == self.start:
            self.total -= min(amount, self.total)

    def standing(self, limit: int) -> tuple[int, float]:
        """See Moving."""
        return max(0, limit - self.total), max(0.0, self._end - self._clock()) if self.total else 0.0

    def is_empty(self) -> bool:
        """See Moving."""
        return not self.total or self._clock() >= self._end


class Taken:
    """Who has a slot."""

    __slots__ = ("holders",)

    def __init__(self) -> None:
        self.holders: set[str] = set()

    def wait_s(self, limit: int, holder: str) -> float:
        """See Moving; for a slot that is a guess."""
        return 0.0 if holder in self.holders or len(self.holders) < limit else SLOT_RETRY_S

    def standing(self, limit: int) -> tuple[int, float]:
        """See Moving."""
        return max(0, limit - len(self.holders)), 0.0

    def is_empty(self) -> bool:
        """See Moving."""
        return not self.holders


class Record:
    """Failures in a row of one name, until when it rests (0.0: it has not), until when somebody tries it."""

    __slots__ = ("failures", "rests_until", "tried_until")

    def __init__(self) -> None:
        self.failures, self.rests_until, self.tried_until = 0, 0.0, 0.0


class Line:
    """A queue: how many have a slot, and who waits, in their order."""

    __slots__ = ("held", "limit", "waiting")

    def __init__(self) -> None:
        self.limit, self.held = 1, 0
        self.waiting: OrderedDict[Place, None] = OrderedDict()


class Place:
    """A ticket. `wake` is called, without the lock, when its turn has come."""

    __slots__ = ("_event", "_memory", "granted", "left", "name", "wake")

    def __init__(self, memory: Memory, name: str, granted: bool, wake: Callable[[], None] | None) -> None:
        self._memory, self.name, self.granted, self.left = memory, name, granted, False
        self._event = None if granted or wake else threading.Event()
        self.wake = wake or (self._event.set if self._event else None)

    def wait(self, timeout_s: float) -> bool:
        """See Ticket."""
        return self.granted or (self._event is not None and self._event.wait(timeout_s))

    def leave(self) -> None:
        """See Ticket."""
        self._memory.leave(self)


def _standings(claims: Sequence[Claim], counters: Sequence[Any]) -> list[Standing]:
    return [Standing(claim, *counter.standing(claim.limit)) for claim, counter in zip(claims, counters, strict=True)]


class Memory:
    """See State. `marked(name, exists)` is told, under the lock, when a name's first failure or rest is kept, or forgotten."""

    def __init__(
        self,
        money: Money | None = None,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
        marked: Callable[[str, bool], None] = lambda name, exists: None,
    ) -> None:
        self._money, self._clock, self._wall, self._marked = money, clock, wall, marked
        self._lock = threading.Lock()  # guards all of the below
        self._counters: OrderedDict[tuple[object, ...], Any] = OrderedDict()
        self._unlooked = 0  # counters that are still to be looked at, for those made
        self._taken: dict[str, dict[Any, tuple[Claim, int, Any]]] = {}  # holder → counter → claim, what it took, and where
        self._lines: dict[str, Line] = {}
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # → data, when it ends
        self._bytes = 0

    # --- claims
    def admit(self, holder: str, claims: Sequence[Claim]) -> Verdict:
        """See State."""
        with self._lock:
            if self._unlooked:
                self._forget()
            found = [self._counter(claim) for claim in claims]
            for claim, counter in zip(claims, found, strict=True):
                wait_s = counter.wait_s(claim.limit, holder if isinstance(claim, Slot) else claim.amount)
                if wait_s:
                    return Verdict(claim, wait_s, _standings(claims, found))
            taken = self._taken.setdefault(holder, {})
            for claim, counter in zip(claims, found, strict=True):
                if isinstance(claim, Slot):
                    counter.holders.add(holder)
                    taken[counter] = (claim, 1, None)
                else:
                    before = taken[counter][1] if counter in taken else 0
                    taken[counter] = (claim, before + claim.amount, counter.take(claim.amount))
                    if isinstance(claim, Budget):
                        self._note(claim, counter)
            return Verdict(None, 0.0, _standings(claims, found))

    def settle(self, holder: str, actual: Mapping[str, int]) -> None:
        """See State."""
        with self._lock:
            for counter, (claim, amount, place) in self._taken.pop(holder, {}).items():
                if isinstance(claim, Slot):
                    counter.holders.discard(holder)
                    continue
                more = actual.get(claim.name, amount) - amount
                if not more:
                    continue
                now = self._counter(claim)  # the one that it took from may be forgotten by now
                if more > 0:
                    now.take(more)
                else:
                    counter.give_back(place, -more)
                if isinstance(claim, Budget):
                    self._note(claim, now)

    def _counter(self, claim: Claim) -> Any:
        key: tuple[object, ...] = (claim.name,)
        if isinstance(claim, Rate):
            key = (claim.name, claim.period_s, claim.moving, claim.limit <= TICKS)
        elif isinstance(claim, Budget):
            key = (claim.name, claim.period)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._new(claim)
            self._unlooked += 2  # two are looked at for each new one: those whose window is empty do not pile up
        return counter

    def _new(self, claim: Claim) -> Any:
        if isinstance(claim, Slot):
            return Taken()
        if isinstance(claim, Budget):
            counter = Fixed(partial(window_of, claim.period), self._wall)
            counter.total = self._money.known(claim.name, counter.start) if self._money else 0
            return counter
        if claim.moving:
            return Moving(claim.period_s, claim.limit <= TICKS, self._clock)
        period_s = claim.period_s
        return Fixed(lambda now: (now // period_s * period_s, now // period_s * period_s + period_s), self._wall)

    def _forget(self) -> None:
        for _ in range(min(self._unlooked, len(self._counters))):
            key = next(iter(self._counters))
            if self._counters[key].is_empty():
                del self._counters[key]
            else:
                self._counters.move_to_end(key)
        self._unlooked = 0

    def _note(self, claim: Budget, counter: Any) -> None:
        if self._money is not None:
            self._money.note(claim.name, counter.start, counter.total)

    # --- the queue
    def queue(self, name: str, limit: int, size: int, holder: str, wake: Callable[[], None] | None = None) -> Place | None:
        """See State. `wake`: what to do, instead of waking `wait`, when a slot is the holder's that was not so at once."""
        with self._lock:
            line = self._lines.setdefault(name, Line())
            line.limit = limit
            granted = line.held < limit and not line.waiting
            if not granted and len(line.waiting) >= size:
                return None
            place = Place(self, name, granted, wake)
            if granted:
                line.held += 1
            else:
                line.waiting[place] = None
            return place

    def leave(self, place: Place) -> None:
        """See Ticket."""
        with self._lock:
            line = self._lines.get(place.name)
            if place.left or line is None:
                return
            place.left = True
            if place.granted:
                line.held -= 1
            else:
                del line.waiting[place]
            woken = []
            while line.waiting and line.held < line.limit:
                woken.append(line.waiting.popitem(last=False)[0])
                woken[-1].granted = True
                line.held += 1
            if not line.held and not line.waiting:
                del self._lines[place.name]
        for each in woken:
            assert each.wake is not None  # whoever waits has one
            each.wake()

    # --- failures and rests
    def fail(self, name: str, limit: int, rest_s: float | None) -> float:
        """See State."""
        with self._lock:
            now, record = self._clock(), self._record(name)
            tried = record.tried_until > now
            if 0.0 < record.rests_until <= now and not tried:
                record.failures, record.rests_until = 0, 0.0
            record.failures += 1
            record.tried_until = 0.0
            if tried or record.failures >= limit:
                record.rests_until = now + (math.inf if rest_s is None else rest_s)
            return max(0.0, record.rests_until - now)

    def rest(self, name: str, rest_s: float) -> None:
        """See State."""
        with self._lock:
            self._record(name).rests_until = self._clock() + rest_s

    def resting(self, names: Sequence[str]) -> Mapping[str, float]:
        """See State."""
        if not self._records:  # the common case costs no lock
            return {}
        with self._lock:
            now, records = self._clock(), self._records
            left = {name: records[name].rests_until - now for name in names if name in records}
            return {name: left_s for name, left_s in left.items() if left_s > 0}

    def trial(self, name: str, within_s: float) -> bool:
        """See State."""
        with self._lock:
            now, record = self._clock(), self._records.get(name)
            if record is None or not record.rests_until:
                return True
            if record.rests_until > now or record.tried_until > now:
                return False
            record.tried_until = now + within_s
            return True

    def forgive(self, name: str) -> None:
        """See State."""
        if name in self._records:
            with self._lock:
                if self._records.pop(name, None):
                    self._marked(name, False)

    def _record(self, name: str) -> Record:
        record = self._records.get(name)
        if record is None:
            record = self._records[name] = Record()
            self._marked(name, True)
            if len(self._records) > TRACKED:
                self._marked(self._records.popitem(last=False)[0], False)
        else:
            self._records.move_to_end(name)
        return record

    # --- a cache's entries
    def get(self, name: str) -> bytes | None:
        """See State."""
        with self._lock:
            data, ends = self._entries.get(name, (None, 0.0))
            if data is not None and ends <= self._clock():
                self._drop(name)
                return None
            if data is not None:
                self._entries.move_to_end(name)
            return data

    def put(self, name: str, data: bytes, ttl_s: float, max_bytes: int) -> None:
        """See State."""
        with self._lock:
            self._drop(name)
            if len(data) > max_bytes:
                return
            self._entries[name] = (data, self._clock() + ttl_s)
            self._bytes += len(data)
            while self._bytes > max_bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, name: str) -> None:
        data, _ = self._entries.pop(name, (b"", 0.0))
        self._bytes -= len(data)

    def close(self) -> None:
        """See State."""
        if self._money is not None:
            self._money.close()
