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

from proxy.state import Budget, Claim, Plan, Rate, Slot, Verdict
from proxy.state.money import Money, window_of

TICKS = 1024
TRACKED = 50_000  # names whose failures and rests are remembered; the one longest without a failure is forgotten first
SLOT_RETRY_S = 1.0

Clock = Callable[[], float]
Entry = list[Any]  # when it comes back, amount
NOTHING: Entry = [0.0, 0]


class Moving:
    """A Rate's moving window. `total` is taken of it, and at `ends` all of that is back."""

    __slots__ = ("_due", "_log", "_period_s", "_tick_s", "ends", "total")

    def __init__(self, period_s: float, fine: bool) -> None:
        self._period_s = period_s
        self._tick_s = 0.0 if fine else period_s / TICKS
        self._log: deque[Entry] = deque()
        self.total, self.ends = 0, 0.0
        self._due = math.inf  # when the first of them comes back

    def take(self, amount: int, limit: float, now: float) -> Entry | None:
        """Takes that amount, if it fits: what comes back can be handed to `give_back`. None: it does not."""
        if now >= self._due:
            self._forget(now)
        if self.total + (amount or 1) > limit:
            return None
        if not amount:
            return NOTHING
        self.total += amount
        log, tick_s = self._log, self._tick_s
        if tick_s and log and now < self.ends - self._period_s:  # within the tick of the last one
            entry = log[-1]
            entry[1] += amount
            return entry
        back = ((now // tick_s + 1) * tick_s if tick_s else now) + self._period_s
        if not log:
            self._due = back
        entry = [back, amount]
        log.append(entry)
        self.ends = back
        return entry

    def _forget(self, now: float) -> None:
        log = self._log
        while log and log[0][0] <= now:
            self.total -= log.popleft()[1]
        self._due = log[0][0] if log else math.inf

    def wait_s(self, amount: int, limit: float, now: float) -> float:
        """In how many seconds that amount will fit, which does not now."""
        over = self.total + (amount or 1) - limit
        for back, taken in self._log:
            over -= taken
            if over <= 0:
                return float(back - now)
        return math.inf

    def give_back(self, entry: Entry, amount: int, now: float) -> None:
        """That much of what was taken, unless it has come back by itself."""
        if entry[0] > now:
            amount = min(amount, entry[1])
            entry[1] -= amount
            self.total -= amount
            while self._log and not self._log[-1][1]:  # whoever is refused, and tries on, leaves nothing behind
                self._log.pop()
                self.ends = self._log[-1][0] if self._log else 0.0


class Fixed:
    """A fixed window, of a Rate or of a Budget: `bounds` says when the one of a time begins and ends."""

    __slots__ = ("_bounds", "_end", "ends", "start", "total")

    def __init__(self, bounds: Callable[[float], tuple[float, float]], now: float) -> None:
        self._bounds = bounds
        self.start, self._end = bounds(now)
        self.total, self.ends = 0, 0.0

    def take(self, amount: int, limit: float, now: float) -> float | None:
        """See Moving."""
        if now >= self._end:
            self.start, self._end = self._bounds(now)
            self.total, self.ends = 0, 0.0
        if self.total + (amount or 1) > limit:
            return None
        self.total += amount
        self.ends = self._end if self.total else 0.0
        return self.start

    def wait_s(self, amount: int, limit: float, now: float) -> float:
        """See Moving."""
        return self._end - now if (amount or 1) <= limit else math.inf

    def give_back(self, start: float, amount: int, now: float) -> None:
        """See Moving."""
        if start == self.start and now < self._end:
            self.total -= min(amount, self.total)
            self.ends = self._end if self.total else 0.0


class Taken:
    """How many have a slot."""

    __slots__ = ("ends", "total")

    def __init__(self) -> None:
        self.total, self.ends = 0, 0.0

    def take(self, amount: int, limit: float, now: float) -> float | None:
        """See Moving."""
        if self.total >= limit:
            return None
        self.total += 1
        return 0.0

    def wait_s(self, amount: int, limit: float, now: float) -> float:
        """See Moving; for a slot that is a guess."""
        return SLOT_RETRY_S

    def give_back(self, place: float, amount: int, now: float) -> None:
        """See Moving."""
        self.total -= 1


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
        self.waiting: dict[Place, None] = {}  # in their order


class Place:
    """A ticket. `wake` is called, without the lock, when its turn has come."""

    __slots__ = ("_event", "_memory", "granted", "left", "name", "wake")

    def __init__(self, memory: Memory, name: str, granted: bool, wake: Callable[[], None] | None) -> None:
        self._memory, self.name, self.granted, self.left = memory, name, granted, False
        self._event = None if granted or wake else threading.Event()
        self.wake: Callable[[], None] = wake or (self._event.set if self._event else _nobody)

    def wait(self, timeout_s: float) -> bool:
        """See Ticket."""
        return self.granted or (self._event is not None and self._event.wait(timeout_s))

    def leave(self) -> None:
        """See Ticket."""
        self._memory.give_up(self)


def _nobody() -> None:
    """Who has a slot already need not be woken."""


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
        self._age = object()  # another one when a counter was forgotten: plans that point to it are made anew
        self._unlooked = 0  # counters that are still to be looked at, for those made
        self._taken: dict[str, tuple[Plan, Sequence[int], list[Any]]] = {}  # holder → what it took, and where
        self._lines: dict[str, Line] = {}
        self._placed: dict[str, str] = {}  # holder → the line of which a slot came with its admission
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # → data, when it ends
        self._bytes = 0

    # --- claims
    def admit(self, holder: str, plan: Plan, amounts: Sequence[int] = ()) -> Verdict:
        """See State."""
        with self._lock:
            now, wall = self._clock(), self._wall()
            counters = plan.made[1] if plan.made is not None and plan.made[0] is self._age else self._found(plan)
            places: list[Any] = []
            left: list[int] = []
            reset_s: list[float] = []
            for (counter, limit, by_wall), amount in zip(counters, (*plan.before, *amounts, *plan.after), strict=True):
                at = wall if by_wall else now
                place = counter.take(amount, limit, at)
                if place is None:
                    return self._refused(plan, counters, amounts, places, now, wall)
                places.append(place)
                left.append(limit - counter.total)
                reset_s.append(counter.ends - at if counter.ends > at else 0.0)
            line = plan.line
            has_place = line is not None and self._steps_in(line.name, line.limit)
            if plan.settles:
                self._taken[holder] = (plan, amounts, places)
                if line is not None and has_place:
                    self._placed[holder] = line.name
                if self._money is not None:
                    self._note(plan, counters)
            return Verdict(-1, 0.0, left, reset_s, has_place)

    def _refused(
        self, plan: Plan, counters: list[Any], amounts: Sequence[int], places: list[Any], now: float, wall: float
    ) -> Verdict:
        """What was taken already goes back; how all of them stand then."""
        given = (*plan.before, *amounts, *plan.after)
        refused = len(places)
        for (counter, _, by_wall), amount, place in zip(counters, given, places, strict=False):
            counter.give_back(place, amount, wall if by_wall else now)
        counter, limit, by_wall = counters[refused]
        wait_s = counter.wait_s(given[refused], limit, wall if by_wall else now)
        for counter, _, by_wall in counters[refused + 1 :]:  # what has come back of these is forgotten
            counter.take(0, 0, wall if by_wall else now)
        left = [max(0, limit - counter.total) for counter, limit, _ in counters]
        reset_s = [max(0.0, counter.ends - (wall if by_wall else now)) for counter, _, by_wall in counters]
        return Verdict(refused, wait_s, left, reset_s)

    def settle(self, holder: str, used: Sequence[int] = ()) -> None:
        """See State."""
        with self._lock:
            taken = self._taken.pop(holder, None)
            if taken is None:
                return
            plan, amounts, places = taken
            counters, now, wall = self._found(plan), self._clock(), self._wall()
            given, first = (*amounts, *plan.after), plan.first
            kept = (*(used or amounts), *plan.none)
            for (counter, _, by_wall), amount, place, was in zip(counters[first:], given, places[first:], kept, strict=True):
                at = wall if by_wall else now
                if was > amount:
                    counter.take(was - amount, math.inf, at)
                elif was < amount:
                    counter.give_back(place, amount - was, at)
            if self._money is not None:
                self._note(plan, counters)
            line = self._placed.pop(holder, None) if plan.line is not None else None
            woken = self._steps_out(line) if line is not None else ()
        for each in woken:
            each.wake()

    def _found(self, plan: Plan) -> list[Any]:
        """A plan's counters, each with its limit, and whether it goes by the wall clock."""
        age, counters = plan.made or (None, [])
        if age is not self._age:
            if self._unlooked:
                self._forget()
            counters = [
                (self._counter(claim), claim.limit, isinstance(claim, Budget) or (isinstance(claim, Rate) and not claim.moving))
                for claim in plan.claims
            ]
            plan.made = (self._age, counters)
        return counters

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
            counter = Fixed(partial(window_of, claim.period), self._wall())
            counter.take(self._money.known(claim.name, counter.start) if self._money else 0, math.inf, self._wall())
            return counter
        if claim.moving:
            return Moving(claim.period_s, claim.limit <= TICKS)
        period_s = claim.period_s
        return Fixed(lambda now: (now // period_s * period_s, now // period_s * period_s + period_s), self._wall())

    def _forget(self) -> None:
        now, wall = self._clock(), self._wall()
        for _ in range(min(self._unlooked, len(self._counters))):
            key = next(iter(self._counters))
            counter = self._counters[key]
            if counter.total and not 0.0 < counter.ends <= (wall if isinstance(counter, Fixed) else now):
                self._counters.move_to_end(key)
            else:
                del self._counters[key]
                self._age = object()
        self._unlooked = 0

    def _note(self, plan: Plan, counters: list[Any]) -> None:
        assert self._money is not None
        for at in plan.budgets:
            counter = counters[at][0]
            self._money.note(plan.claims[at].name, counter.start, counter.total)

    # --- the queue
    def queue(self, name: str, limit: int, size: int, holder: str, wake: Callable[[], None] | None = None) -> Place | None:
        """See State. `wake`: what to do, instead of waking `wait`, when a slot is the holder's that was not so at once."""
        with self._lock:
            granted = self._steps_in(name, limit)
            line = self._lines[name]
            if not granted and len(line.waiting) >= size:
                return None
            place = Place(self, name, granted, wake)
            if not granted:
                line.waiting[place] = None
            return place

    def _steps_in(self, name: str, limit: int) -> bool:
        """Takes a slot, if one is free and nobody waits."""
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = Line()
        line.limit = limit
        if line.held >= limit or line.waiting:
            return False
        line.held += 1
        return True

    def leave(self, holder: str) -> None:
        """See State."""
        with self._lock:
            name = self._placed.pop(holder, None)
            woken = self._steps_out(name) if name is not None else ()
        for each in woken:
            each.wake()

    def give_up(self, place: Place) -> None:
        """See Ticket."""
        with self._lock:
            line = self._lines.get(place.name)
            if place.left or line is None:
                return
            place.left = True
            if not place.granted:
                del line.waiting[place]
            woken = self._steps_out(place.name, int(place.granted))
        for each in woken:
            each.wake()

    def _steps_out(self, name: str, held: int = 1) -> list[Place]:
        """So many slots come back; who is to be woken, without the lock."""
        line, woken = self._lines[name], []
        line.held -= held
        while line.waiting and line.held < line.limit:
            woken.append(next(iter(line.waiting)))
            del line.waiting[woken[-1]]
            woken[-1].granted = True
            line.held += 1
        if not line.held and not line.waiting:
            del self._lines[name]
        return woken

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
        if name not in self._records:  # the common case costs no lock
            return True
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
