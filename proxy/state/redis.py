"""The engine for several machines: Redis keeps everything, and one script per verb changes it at once (redis.lua).

Keys, all below `mooltiproxy:` — `rate:` and `budget:` counters, `slot:` holders, `queue:` places, `fails:` records of what has
failed or rests with `names` of them all, `cache:` entries. Slots and places are leases of LEASE_S, which one thread per process
renews: those of a killed machine come back. The same thread hears which names have a record now, so that a name that has none
costs no round trip: `fail` is exact, and the other machines know of its rest as soon as Redis has told them.

Nobody waits for the answer to a settlement. One that is lost with its connection is told again when Redis is back: `call:` keys
say which calls are not settled yet, so that it counts once.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.errors import ConfigError
from proxy.state import Budget, Plan, StateLost, Verdict
from proxy.state.memory import TRACKED
from proxy.state.money import Money, window_of
from proxy.state.resp import Fault, Link, command, packed
from proxy.state.scripts import FOREVER_US, script
from proxy.state.words import PREFIX, TO, Taken, head, key_of, made_of, numbers, queue_keys

try:
    from redis import exceptions
    from redis.backoff import NoBackoff
    from redis.connection import parse_url
    from redis.retry import Retry
except ImportError:
    raise ConfigError(["state: redis:// needs the package redis: pip install redis"]) from None

logger = logging.getLogger(__name__)

NAMES, NEWS = PREFIX + "names", PREFIX + "news"
LEASE_S = 10.0
RENEWALS = 3  # in a lease
CONNECT_S, READ_S = 1.0, 2.0
FRESH_S = 1.0  # a connection that was used so recently is not looked at before it is used again
BACK_OFF_S = 0.5  # while Redis is away, one call in this time tries it
BATCH = 500  # leases renewed by one script
TIDY_S = 1.0  # how often somebody looks whether answers are still to be read, and settlements to be told again
OWED = 50  # answers that a connection may still have to read
UNTOLD = 10_000  # settlements that are kept while Redis is away
LOST = (exceptions.RedisError, OSError)


@dataclass(eq=False)
class Place:
    """A ticket."""

    engine: Redis
    name: str
    limit: int
    ticket: str
    turn: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout_s: float) -> bool:
        """See Ticket."""
        return self.turn.wait(timeout_s)

    def leave(self) -> None:
        """See Ticket."""
        self.engine.give_up(self)


class Redis:
    """See State. Made before the fork; it connects, and starts its thread, when that is first needed."""

    def __init__(self, url: str, money: Money | None = None, lease_s: float = LEASE_S) -> None:
        try:
            options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
        except ValueError as fault:
            raise ConfigError([f"state: {fault}"]) from None
        self._class: Any = options.pop("connection_class", None) or _plain_connection()
        self._options = {
            **options,
            "protocol": 2,
            "socket_connect_timeout": CONNECT_S,
            "socket_timeout": READ_S,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
        }
        self._money, self._lease_us = money, int(lease_s * 1e6)
        self._idle: list[Link] = []
        self._offset_s = 0.0  # Redis's clock is so far ahead
        self._lock = threading.Lock()  # guards what follows
        self._away_until = 0.0  # monotonic; 0.0: it is there
        self._held: dict[str, Taken] = {}  # holder → what it took
        self._untold: deque[Taken] = deque()  # settlements that were lost
        self._dropped = 0  # more of them than are kept
        self._places: dict[str, Place] = {}
        self._known: set[str] | None = None  # names that have a record; None: to be asked for
        self._process = ""
        self._thread: threading.Thread | None = None
        self._tickets = itertools.count()
        self._in_step, self._ending = threading.Event(), threading.Event()

    # --- round trips
    def _run(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        """Runs a script. Raises StateLost."""
        return self._evaluated(name, len(keys) + len(arguments) + 3, packed((len(keys), *keys, *arguments)))

    def _evaluated(self, name: str, parts: int, rest: bytes) -> Any:
        with self._linked() as link:
            try:
                return link.ask(head("EVALSHA", name, parts) + rest)
            except Fault as fault:
                if not str(fault).startswith("NOSCRIPT"):
                    raise
                if name == "ADMIT":  # Redis has been started, and should know what nobody waits for
                    link.ask(command("SCRIPT", "LOAD", script("SETTLE")))
                return link.ask(head("EVAL", name, parts) + rest)

    @contextlib.contextmanager
    def _linked(self) -> Iterator[Link]:
        """A connection for one exchange. Raises StateLost, at once while Redis is known to be away."""
        self._look_out()
        link = None
        try:
            link = self._pooled()
            yield link
        except (Fault, *LOST) as fault:
            self._lost(link)
            raise StateLost(f"Redis: {fault}") from fault
        link.since = time.monotonic()
        self._idle.append(link)
        self._away_until = 0.0

    def _pooled(self) -> Link:
        with contextlib.suppress(IndexError):
            while True:
                link = self._idle.pop()
                if time.monotonic() - link.since < FRESH_S or not link.is_over():
                    return link
                link.close()
        return Link(self._class(**self._options), READ_S, self._heard)

    def _look_out(self) -> None:
        if self._away_until:
            with self._lock:
                now = time.monotonic()
                if now < self._away_until:
                    raise StateLost("Redis is away")
                self._away_until = now + CONNECT_S + READ_S  # this call tries it, others do not

    def _lost(self, link: Link | None) -> None:
        with self._lock:
            self._away_until = time.monotonic() + BACK_OFF_S
            idle, self._idle = self._idle, []
        for each in [link, *idle] if link else idle:
            for taken in each.owed:
                taken.unsure = True
                self._keep(taken)
            each.close()

    # --- claims
    def admit(self, holder: str, plan: Plan, amounts: Sequence[int] = ()) -> Verdict:
        """See State."""
        made = plan.made = plan.made or made_of(plan, self._lease_us)
        if plan.settles:
            self._start()
        ticket = f"{self._process} {holder} {next(self._tickets)}" if plan.line else ""
        for _ in range(3):
            said = made.asked % numbers(plan, [(amount,) for amount in amounts], self._window)
            was_there = not self._away_until
            try:
                reply = self._evaluated("ADMIT", made.admits[0], made.admits[1] + packed((holder, ticket, said)))
            except StateLost:
                if was_there and plan.settles:  # it may have been taken: nobody will use it
                    self._keep(self._unused(holder, plan, amounts, ticket))
                raise
            refused, wait, *told = map(int, reply.split())
            if refused >= 0:
                break
            self._offset_s = wait / 1e6 - time.time()  # by Redis's clock it is another window
        else:
            raise StateLost("Redis: its clock jumps")
        left, reset_s = told[1::3], [_seconds(each) for each in told[2::3]]
        if refused:
            return Verdict(refused - 1, _seconds(wait), left, reset_s)
        if plan.settles:
            self._hold(Taken(holder, plan, amounts, told[3 + 3 * plan.first :: 3], ticket if told[0] else ""))
        return Verdict(-1, 0.0, left, reset_s, bool(told[0]))

    def _unused(self, holder: str, plan: Plan, amounts: Sequence[int], ticket: str) -> Taken:
        """The end of a call that was let in, perhaps."""
        places = [self._window(claim)[0] if isinstance(claim, Budget) else 0 for claim in plan.charged]
        return Taken(holder, plan, amounts, places, ticket, used=(0,) * len(amounts), unsure=True)

    def _hold(self, taken: Taken) -> None:
        self._held[taken.holder] = taken
        line = taken.plan.line
        if taken.ticket and line:
            place = self._places[taken.ticket] = Place(self, line.name, line.limit, taken.ticket)
            place.turn.set()

    def leave(self, holder: str) -> None:
        """See State."""
        taken = self._held.get(holder)
        if taken is not None and taken.ticket:
            ticket, taken.ticket = taken.ticket, ""
            self._places[ticket].leave()

    def settle(self, holder: str, used: Sequence[int] = ()) -> None:
        """See State."""
        taken = self._held.pop(holder, None)
        if taken is None:
            return
        self._places.pop(taken.ticket, None)
        taken.used = used or taken.amounts
        if self._away_until:
            self._keep(taken)
            raise StateLost("Redis is away")
        link = None
        try:
            link = self._pooled()
            parts, rest = self._settlement(taken)
            link.send(head("EVALSHA", "SETTLE", parts) + rest, taken)
            if len(link.owed) >= OWED:
                link.catch_up()
        except LOST as fault:
            if link is None:
                self._keep(taken)
            self._lost(link)
            raise StateLost(f"Redis: {fault}") from fault
        link.since = time.monotonic()
        self._idle.append(link)

    def _settlement(self, taken: Taken) -> tuple[int, bytes]:
        """How many parts its command has, and those behind the script."""
        made = taken.plan.made
        said = made.used % numbers(taken.plan, zip(taken.amounts, taken.used, taken.places, strict=False), self._window)
        return made.settles[0], made.settles[1] + packed((taken.holder, taken.ticket, int(taken.unsure), said))

    def _heard(self, taken: Taken, reply: Any) -> None:
        """What Redis says of a settlement. One that it could not do is told again."""
        first, *spent = [-1] if isinstance(reply, Fault) else map(int, reply.split())
        if first < 0:
            if spent:
                self._offset_s = spent[0] / 1e6 - time.time()
            self._keep(taken)
        elif self._money is not None:
            budgets = [claim for claim in taken.plan.charged if isinstance(claim, Budget)]
            for claim, amount in zip(budgets, spent, strict=False):
                self._money.note(claim.name, window_of(claim.period, self._unix())[0], amount)

    def _keep(self, taken: Taken) -> None:
        if len(self._untold) < UNTOLD:
            self._untold.append(taken)
        else:
            self._dropped += 1

    def _tell_again(self) -> None:
        """What was lost. Raises StateLost."""
        told = len(self._untold)
        for _ in range(told):
            taken = self._untold.popleft()
            try:
                self._heard(taken, self._evaluated("SETTLE", *self._settlement(taken)))
            except StateLost:
                taken.unsure = True
                self._keep(taken)
                raise
        if told:
            dropped, self._dropped = self._dropped, 0
            logger.warning("Redis: the ends of %d calls were told late, those of %d not at all", told, dropped)

    def _unix(self) -> float:
        return time.time() + self._offset_s

    def _window(self, claim: Budget) -> tuple[int, int, int]:
        """A budget's window in microseconds (0: no end), and what is known to be spent in it, should Redis have lost that."""
        start, end = window_of(claim.period, self._unix())
        known = self._money.known(claim.name, start) if self._money else 0
        return int(start * 1e6), 0 if end == math.inf else int(end * 1e6), known

    # --- the queue
    def queue(self, name: str, limit: int, size: int, holder: str) -> Place | None:
        """See State."""
        self._start()
        if not self._in_step.wait(READ_S):  # its turn could not be told
            raise StateLost("Redis is away")
        place = Place(self, name, limit, f"{self._process} {holder} {next(self._tickets)}")
        with self._lock:
            self._places[place.ticket] = place
        try:
            granted = self._run("JOIN", queue_keys(name), self._lease_us, limit, TO, size, place.ticket)
        except StateLost:
            self._places.pop(place.ticket, None)
            raise
        if granted < 0:
            self._places.pop(place.ticket, None)
            return None
        if granted:
            place.turn.set()
        return place

    def give_up(self, place: Place) -> None:
        """See Ticket."""
        if self._places.pop(place.ticket, None) is not None:
            self._run("LEAVE", queue_keys(place.name), self._lease_us, place.limit, TO, place.ticket)

    # --- failures and rests
    def fail(self, name: str, limit: int, rest_s: float | None) -> float:
        """See State. Without an end is 30 days here: every key expires."""
        rest_us = -1 if rest_s is None else int(rest_s * 1e6)
        rests = self._run("FAIL", _record_keys(name), name, NEWS, limit, rest_us)
        self._has_failed(name)
        return _rest_s(rests)

    def rest(self, name: str, rest_s: float) -> None:
        """See State."""
        self._run("REST", _record_keys(name), name, NEWS, int(rest_s * 1e6))
        self._has_failed(name)

    def resting(self, names: Sequence[str]) -> Mapping[str, float]:
        """See State."""
        asked = [name for name in names if self._may_have_failed(name)]
        if not asked:
            return {}
        left = self._run("RESTING", [_record_keys(name)[0] for name in asked])
        return {name: _rest_s(rests) for name, rests in zip(asked, left, strict=True) if rests}

    def trial(self, name: str, within_s: float) -> bool:
        """See State."""
        if not self._may_have_failed(name):
            return True
        return bool(self._run("TRIAL", _record_keys(name), name, NEWS, int(within_s * 1e6)))

    def forgive(self, name: str) -> None:
        """See State."""
        if self._may_have_failed(name):
            self._run("FORGIVE", _record_keys(name), name, NEWS)

    def _has_failed(self, name: str) -> None:
        """This process knows at once; the others are told."""
        known = self._known
        if known is not None:
            known.add(name)

    def _may_have_failed(self, name: str) -> bool:
        known = self._known
        if known is None:
            self._start()
            return True
        return name in known

    # --- a cache's entries
    def get(self, name: str) -> bytes | None:
        """See State."""
        data: bytes | None = self._run("GET", _cache_keys(name), name)
        return data

    def put(self, name: str, data: bytes, ttl_s: float, max_bytes: int) -> None:
        """See State."""
        ttl_ms = max(1, int(ttl_s * 1000))
        self._run("PUT", _cache_keys(name), name, data, ttl_ms, max_bytes, PREFIX + "cache:=")

    # --- the thread: leases, and news
    def _start(self) -> None:
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._ending.is_set():
                self._process = secrets.token_hex(8)
                self._thread = threading.Thread(target=self._attend, name="redis", daemon=True)
                self._thread.start()

    def _attend(self) -> None:
        while not self._ending.is_set():
            try:
                self._listen()
            except (StateLost, *LOST) as fault:
                logger.debug("the news from Redis broke off: %s", fault)
            self._in_step.clear()
            self._known = None
            self._ending.wait(BACK_OFF_S)

    def _listen(self) -> None:
        """Hears the news, and renews leases in between, until the connection breaks."""
        connection = self._class(**self._options)
        try:
            connection.connect()
            connection.send_command("SUBSCRIBE", NEWS, TO + self._process)
            for _ in range(2):
                connection.read_response()
            with self._linked() as other:
                names = other.ask(command("ZRANGE", NAMES, 0, -1))
            self._known = {name.decode("utf-8", "surrogatepass") for name in names}
            due = time.monotonic()
            while not self._ending.is_set():
                if time.monotonic() >= due:
                    self._renew()
                    self._in_step.set()
                    due = time.monotonic() + self._lease_us / 1e6 / RENEWALS
                self._tell_again()
                self._catch_up()
                if connection.can_read(min(TIDY_S, max(0.0, due - time.monotonic()))):
                    self._hear(*connection.read_response()[1:])
        finally:
            connection.disconnect()

    def _hear(self, channel: bytes, message: bytes) -> None:
        text = message.decode("utf-8", "surrogatepass")
        if channel.decode() != NEWS:
            place = self._places.get(text)
            if place is not None:
                place.turn.set()
        elif self._known is not None:
            (self._known.add if text[0] == "+" else self._known.discard)(text[1:])
            if len(self._known) > 2 * TRACKED:
                raise StateLost("names have piled up: they are read anew")

    def _catch_up(self) -> None:
        """Reads the answers that nobody has come by to read. Raises StateLost."""
        for link in [each for each in self._idle if each.owed]:
            try:
                self._idle.remove(link)
                link.catch_up()
                self._idle.insert(0, link)
            except LOST as fault:
                self._lost(link)
                raise StateLost(f"Redis: {fault}") from fault
            except ValueError:  # somebody uses it
                continue

    def _renew(self) -> None:
        slots = [(key_of(slot), holder) for holder, taken in list(self._held.items()) for slot in taken.plan.slots]
        with self._lock:
            places = list(self._places.values())
        for at in range(0, len(slots), BATCH):
            keys, holders = zip(*slots[at : at + BATCH], strict=True)
            self._run("RENEW", keys, self._lease_us, *holders)
        for (name, limit), group in _grouped(places).items():
            for at in range(0, len(group), BATCH):
                self._stay(name, limit, group[at : at + BATCH])

    def _stay(self, name: str, limit: int, places: Sequence[Place]) -> None:
        told = _flat((place.ticket, int(place.turn.is_set())) for place in places)
        granted = self._run("STAY", queue_keys(name), self._lease_us, limit, TO, *told)
        for place, has in zip(places, granted, strict=True):
            if place.ticket not in self._places:  # it left meanwhile, and was put back
                self._run("LEAVE", queue_keys(name), self._lease_us, limit, TO, place.ticket)
            elif has:
                place.turn.set()

    def close(self) -> None:
        """See State."""
        self._ending.set()
        if self._thread is not None:
            with contextlib.suppress(StateLost), self._linked() as link:
                link.ask(command("PUBLISH", TO + self._process, "end"))  # wakes it
            self._thread.join(READ_S)
        with contextlib.suppress(StateLost):
            self._catch_up()
            self._tell_again()
        while self._idle:
            self._idle.pop().close()
        if self._money is not None:
            self._money.close()


def _plain_connection() -> Any:
    from redis.connection import Connection

    return Connection


def _seconds(microseconds: int) -> float:
    return math.inf if microseconds < 0 else microseconds / 1e6


def _rest_s(microseconds: int) -> float:
    return math.inf if microseconds >= FOREVER_US else microseconds / 1e6


def _flat(groups: Iterable[Iterable[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(groups))


def _grouped(places: Sequence[Place]) -> dict[tuple[str, int], list[Place]]:
    found: dict[tuple[str, int], list[Place]] = {}
    for place in places:
        found.setdefault((place.name, place.limit), []).append(place)
    return found


def _record_keys(name: str) -> list[str]:
    return [f"{PREFIX}fails:{name}", NAMES]


def _cache_keys(name: str) -> list[str]:
    return [f"{PREFIX}cache:={name}", PREFIX + "cache:used", PREFIX + "cache:sizes"]
