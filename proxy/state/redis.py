"""The engine for several machines: Redis keeps everything, and one script per verb changes it at once (redis.lua).

Keys, all below `mooltiproxy:` — `rate:` and `budget:` counters, `slot:` holders, `queue:` places, `fails:` records of what has
failed or rests with `names` of them all, `cache:` entries. Slots and places are leases of LEASE_S, which one thread per process
renews: those of a killed machine come back. The same thread hears which names have a record now, so that a name that has none
costs no round trip: `fail` is exact, and the other machines know of its rest as soon as Redis has told them.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.errors import ConfigError
from proxy.state import Budget, Claim, Rate, Slot, Standing, StateLost, Verdict
from proxy.state.memory import TICKS, TRACKED
from proxy.state.money import Money, window_of
from proxy.state.scripts import FOREVER_US, script

try:
    from redis import exceptions
    from redis.backoff import NoBackoff
    from redis.connection import parse_url
    from redis.retry import Retry
except ImportError:
    raise ConfigError(["state: redis:// needs the package redis: pip install redis"]) from None

logger = logging.getLogger(__name__)

PREFIX = "mooltiproxy:"
NAMES, NEWS, TO = PREFIX + "names", PREFIX + "news", PREFIX + "to:"
LEASE_S = 10.0
RENEWALS = 3  # in a lease
CONNECT_S, READ_S = 1.0, 2.0
FRESH_S = 1.0  # a connection that was used so recently is not looked at before it is used again
BACK_OFF_S = 0.5  # while Redis is away, one call in this time tries it
BATCH = 500  # leases renewed by one script
LOST = (exceptions.RedisError, OSError)


@dataclass
class Held:
    """Something that a holder took: the claim, its key, how much in all, and where."""

    claim: Claim
    key: str
    amount: int
    place: int


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
        self.engine.leave(self)


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
        self._shas: dict[str, str] = {}
        self._idle: list[tuple[Any, float]] = []  # connections, and since when (monotonic)
        self._offset_s = 0.0  # Redis's clock is so far ahead
        self._lock = threading.Lock()  # guards what follows
        self._away_until = 0.0  # monotonic; 0.0: it is there
        self._held: dict[str, dict[str, Held]] = {}  # holder → key
        self._places: dict[str, Place] = {}
        self._known: set[str] | None = None  # names that have a record; None: to be asked for
        self._process = ""
        self._thread: threading.Thread | None = None
        self._tickets = itertools.count()
        self._in_step, self._ending = threading.Event(), threading.Event()

    # --- round trips
    def _run(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        """Runs a script. Raises StateLost."""
        with self._connection() as connection:
            sha = self._shas.get(name)
            if sha is None:
                sha = self._shas[name] = self._ask(connection, "SCRIPT", "LOAD", script(name))
            try:
                return self._ask(connection, "EVALSHA", sha, len(keys), *keys, *arguments)
            except exceptions.NoScriptError:  # Redis has been started again
                return self._ask(connection, "EVAL", script(name), len(keys), *keys, *arguments)

    @staticmethod
    def _ask(connection: Any, *command: Any) -> Any:
        connection.send_packed_command([_packed(command)], check_health=False)
        return connection.read_response()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection for one exchange. Raises StateLost, at once while Redis is known to be away."""
        self._look_out()
        connection = None
        try:
            connection = self._pooled()
            yield connection
        except LOST as fault:
            if connection is not None:
                connection.disconnect()
            self._lost()
            raise StateLost(f"Redis: {fault}") from fault
        self._idle.append((connection, time.monotonic()))
        self._away_until = 0.0

    def _pooled(self) -> Any:
        with contextlib.suppress(IndexError):
            while True:
                connection, since = self._idle.pop()
                if time.monotonic() - since < FRESH_S or not connection.can_read(0):  # else Redis has closed it meanwhile
                    return connection
                connection.disconnect()
        connection = self._class(**self._options)
        connection.connect()
        return connection

    def _look_out(self) -> None:
        if self._away_until:
            with self._lock:
                now = time.monotonic()
                if now < self._away_until:
                    raise StateLost("Redis is away")
                self._away_until = now + CONNECT_S + READ_S  # this call tries it, others do not

    def _lost(self) -> None:
        with self._lock:
            self._away_until = time.monotonic() + BACK_OFF_S
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.disconnect()

    # --- claims
    def admit(self, holder: str, claims: Sequence[Claim]) -> Verdict:
        """See State."""
        keys = [_key(claim) for claim in claims]
        refused, wait, *told = self._in_window(
            "ADMIT", keys, lambda unix: [holder, self._lease_us, _words(self._asked(claim, unix) for claim in claims)]
        )
        standings = [Standing(claim, told[at * 3], _seconds(told[at * 3 + 1])) for at, claim in enumerate(claims)]
        if refused:
            return Verdict(claims[refused - 1], _seconds(wait), standings)
        with self._lock:
            held = self._held.setdefault(holder, {})
            for at, (key, claim) in enumerate(zip(keys, claims, strict=True)):
                before = held[key].amount if key in held else 0
                amount = 0 if isinstance(claim, Slot) else claim.amount
                held[key] = Held(claim, key, before + amount, told[at * 3 + 2])
        if any(isinstance(claim, Slot) for claim in claims):
            self._start()
        return Verdict(None, 0.0, standings)

    def settle(self, holder: str, actual: Mapping[str, int]) -> None:
        """See State. No round trip where nothing changes."""
        with self._lock:
            taken = self._held.pop(holder, {}).values()
        changed = [each for each in taken if _changes(each, actual)]
        if not changed:
            return
        _, *spent = self._in_window(
            "SETTLE",
            [each.key for each in changed],
            lambda unix: [holder, _words(self._used(each, actual, unix) for each in changed)],
        )
        if self._money is not None and spent:
            for each, amount in zip([each for each in changed if isinstance(each.claim, Budget)], spent, strict=True):
                assert isinstance(each.claim, Budget)
                self._money.note(each.claim.name, window_of(each.claim.period, self._unix())[0], amount)

    def _unix(self) -> float:
        return time.time() + self._offset_s

    def _in_window(self, name: str, keys: Sequence[str], arguments: Callable[[float], list[Any]]) -> list[Any]:
        """Runs a script that needs to know calendar windows: again when Redis's clock says another one."""
        for _ in range(3):
            answer = [int(word) for word in self._run(name, keys, *arguments(self._unix())).split()]
            if answer[0] >= 0:
                return answer
            self._offset_s = answer[1] / 1e6 - time.time()
        raise StateLost("Redis: its clock jumps")

    def _asked(self, claim: Claim, unix: float) -> list[Any]:
        """A claim's six arguments of ADMIT."""
        if isinstance(claim, Slot):
            return ["s", claim.limit, 0, 0, 0, 0]
        if isinstance(claim, Rate):
            return ["m" if claim.moving else "f", claim.limit, claim.amount, *_period(claim), 0]
        return ["b", claim.limit, claim.amount, *self._window(claim, unix)]

    def _used(self, held: Held, actual: Mapping[str, int], unix: float) -> list[Any]:
        """The seven arguments of SETTLE of something that was taken."""
        claim = held.claim
        used = actual.get(claim.name, held.amount)
        if isinstance(claim, Slot):
            return ["s", 0, 0, 0, 0, 0, 0]
        if isinstance(claim, Rate):
            return ["m" if claim.moving else "f", held.amount, used, held.place, *_period(claim), 0]
        return ["b", held.amount, used, held.place, *self._window(claim, unix)]

    def _window(self, claim: Budget, unix: float) -> tuple[int, int, int]:
        """A budget's window in microseconds (0: no end), and what is known to be spent in it, should Redis have lost that."""
        start, end = window_of(claim.period, unix)
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
            granted = self._run("JOIN", _queue_keys(name), self._lease_us, limit, TO, size, place.ticket)
        except StateLost:
            self._places.pop(place.ticket, None)
            raise
        if granted < 0:
            self._places.pop(place.ticket, None)
            return None
        if granted:
            place.turn.set()
        return place

    def leave(self, place: Place) -> None:
        """See Ticket."""
        if self._places.pop(place.ticket, None) is not None:
            self._run("LEAVE", _queue_keys(place.name), self._lease_us, place.limit, TO, place.ticket)

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
            with self._connection() as other:
                names = self._ask(other, "ZRANGE", NAMES, 0, -1)
            self._known = {name.decode("utf-8", "surrogatepass") for name in names}
            due = time.monotonic()
            while not self._ending.is_set():
                if time.monotonic() >= due:
                    self._renew()
                    self._in_step.set()
                    due = time.monotonic() + self._lease_us / 1e6 / RENEWALS
                if connection.can_read(max(0.0, due - time.monotonic())):
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

    def _renew(self) -> None:
        with self._lock:
            slots = [
                (each.key, holder)
                for holder, held in self._held.items()
                for each in held.values()
                if isinstance(each.claim, Slot)
            ]
            places = list(self._places.values())
        for at in range(0, len(slots), BATCH):
            keys, holders = zip(*slots[at : at + BATCH], strict=True)
            self._run("RENEW", keys, self._lease_us, *holders)
        for (name, limit), group in _grouped(places).items():
            for at in range(0, len(group), BATCH):
                self._stay(name, limit, group[at : at + BATCH])

    def _stay(self, name: str, limit: int, places: Sequence[Place]) -> None:
        told = _flat((place.ticket, int(place.turn.is_set())) for place in places)
        granted = self._run("STAY", _queue_keys(name), self._lease_us, limit, TO, *told)
        for place, has in zip(places, granted, strict=True):
            if place.ticket not in self._places:  # it left meanwhile, and was put back
                self._run("LEAVE", _queue_keys(name), self._lease_us, limit, TO, place.ticket)
            elif has:
                place.turn.set()

    def close(self) -> None:
        """See State."""
        self._ending.set()
        if self._thread is not None:
            with contextlib.suppress(StateLost), self._connection() as connection:
                self._ask(connection, "PUBLISH", TO + self._process, "end")  # wakes it
            self._thread.join(READ_S)
        while self._idle:
            self._idle.pop()[0].disconnect()
        if self._money is not None:
            self._money.close()


def _plain_connection() -> Any:
    from redis.connection import Connection

    return Connection


def _packed(command: Sequence[Any]) -> bytes:
    """A command as Redis reads it; the package's own way takes ten times as long."""
    words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
    return b"".join([b"*%d\r\n" % len(words), *[b"$%d\r\n%b\r\n" % (len(word), word) for word in words]])


def _key(claim: Claim) -> str:
    if isinstance(claim, Slot):
        return f"{PREFIX}slot:{claim.name}"
    if isinstance(claim, Budget):
        return f"{PREFIX}budget:{claim.period}:{claim.name}"
    return f"{PREFIX}rate:{'m' if claim.moving else 'f'}{claim.period_s:g}:{claim.name}"


def _period(rate: Rate) -> tuple[int, int]:
    """A rate's period and tick in microseconds: 1 is exact; see memory.py."""
    period_us = int(rate.period_s * 1e6)
    return period_us, 1 if rate.limit <= TICKS else max(1, period_us // TICKS)


def _changes(held: Held, actual: Mapping[str, int]) -> bool:
    claim = held.claim
    return not isinstance(claim, Rate) or actual.get(claim.name, held.amount) != held.amount


def _seconds(microseconds: int) -> float:
    return math.inf if microseconds < 0 else microseconds / 1e6


def _rest_s(microseconds: int) -> float:
    return math.inf if microseconds >= FOREVER_US else microseconds / 1e6


def _words(groups: Iterable[Iterable[Any]]) -> str:
    return " ".join(map(str, itertools.chain.from_iterable(groups)))


def _flat(groups: Iterable[Iterable[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(groups))


def _grouped(places: Sequence[Place]) -> dict[tuple[str, int], list[Place]]:
    found: dict[tuple[str, int], list[Place]] = {}
    for place in places:
        found.setdefault((place.name, place.limit), []).append(place)
    return found


def _queue_keys(name: str) -> list[str]:
    return [f"{PREFIX}queue:{part}:{name}" for part in ("held", "waiting", "alive")]


def _record_keys(name: str) -> list[str]:
    return [f"{PREFIX}fails:{name}", NAMES]


def _cache_keys(name: str) -> list[str]:
    return [f"{PREFIX}cache:={name}", PREFIX + "cache:used", PREFIX + "cache:sizes"]
