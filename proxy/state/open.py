"""Which engine a configuration wants, and what a call does while it cannot be reached."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from proxy.errors import ProxyError
from proxy.state import UNCOUNTED, Plan, State, StateLost, Ticket, Verdict
from proxy.state.money import Money

if TYPE_CHECKING:
    from proxy.state.service import Service

logger = logging.getLogger(__name__)

RETRY_S = 2  # what a refused client is told
Answer = TypeVar("Answer")
Otherwise = TypeVar("Otherwise")


def open_state(url: str = "memory", workers: int = 1, on_loss: str = "allow", budgets: bool = False) -> State:
    """The engine for `state: url`: nothing is connected yet. `budgets`: what was spent is read at once, so that a fault is told
    at the start; without it, when the first budget is asked for. Raises ConfigError."""
    served = url == "memory" and workers > 1 and hasattr(os, "fork")
    money = Money(mirror=url != "memory", behind=not served)  # the supervisor has one thread
    if budgets:
        money.open()
    if url != "memory":
        from proxy.state.redis import Redis

        return Guarded(Redis(url, money), on_loss)
    if served:
        from proxy.state.client import Client
        from proxy.state.service import Service

        return Guarded(Client(Service(money)), on_loss)
    from proxy.state.memory import Memory

    return Memory(money)


def service_of(state: State) -> Service | None:
    """What the supervisor must serve, if anything."""
    engine = state.engine if isinstance(state, Guarded) else state
    return getattr(engine, "service", None)


class Free:
    """The ticket of a call that is let through uncounted."""

    def wait(self, timeout_s: float) -> bool:
        """See Ticket."""
        return True

    def leave(self) -> None:
        """See Ticket."""


class Held:
    """A ticket that can be lost with the engine: then its holder goes on, or is refused."""

    def __init__(self, guarded: Guarded, ticket: Ticket) -> None:
        self._guarded, self._ticket = guarded, ticket

    def wait(self, timeout_s: float) -> bool:
        """See Ticket."""
        return self._guarded.tried(lambda: self._ticket.wait(timeout_s), True)

    def leave(self) -> None:
        """See Ticket."""
        self._guarded.tried(self._ticket.leave, None, refuse=False)


class Guarded:
    """An engine that never raises StateLost. While it is away, `allow` lets calls through uncounted; `refuse` refuses what
    would have to be counted, with 503. What only gives back or remembers is dropped either way, and a cache's entry is a miss.
    One line in the log says so for each loss, and one when it is over."""

    def __init__(self, engine: State, on_loss: str) -> None:
        self.engine = engine
        self._refuses = on_loss == "refuse"
        self._lock = threading.Lock()  # guards _away
        self._away = False

    def tried(
        self, ask: Callable[[], Answer], otherwise: Otherwise, refuse: bool = True, asks: bool = False
    ) -> Answer | Otherwise:
        """What the engine answers, or `otherwise`. `asks`: always with a round trip, so that an answer says that it is back.
        Raises ProxyError (503) while it is away and calls are refused then."""
        try:
            answer = ask()
        except StateLost as fault:
            self._told(True, fault)
            if refuse and self._refuses:
                raise ProxyError(
                    "the limits cannot be counted now: the shared state is away",
                    status=503,
                    code="state_lost",
                    headers=(("retry-after", str(RETRY_S)),),
                ) from fault
            return otherwise
        if asks and self._away:
            self._told(False)
        return answer

    def _told(self, away: bool, fault: StateLost | None = None) -> None:
        with self._lock:
            changed, self._away = self._away != away, away
        if changed and away:
            what = "refused" if self._refuses else "let through uncounted"
            logger.error("the shared state is lost: %s; until it is back calls are %s (on_state_loss)", fault, what)
        elif changed:
            logger.warning("the shared state is back: calls are counted again")

    def admit(self, holder: str, plan: Plan, amounts: Sequence[int] = ()) -> Verdict:
        """See State."""
        return self.tried(lambda: self.engine.admit(holder, plan, amounts), UNCOUNTED, asks=True)

    def settle(self, holder: str, used: Sequence[int] = ()) -> None:
        """See State."""
        self.tried(lambda: self.engine.settle(holder, used), None, refuse=False)

    def leave(self, holder: str) -> None:
        """See State."""
        self.tried(lambda: self.engine.leave(holder), None, refuse=False)

    def queue(self, name: str, limit: int, size: int, holder: str) -> Ticket | None:
        """See State."""

        def joined() -> Ticket | None:
            ticket = self.engine.queue(name, limit, size, holder)
            return Held(self, ticket) if ticket is not None else None

        free: Ticket = Free()
        return self.tried(joined, free, asks=True)

    def fail(self, name: str, limit: int, rest_s: float | None) -> float:
        """See State."""
        return self.tried(lambda: self.engine.fail(name, limit, rest_s), 0.0, asks=True)

    def rest(self, name: str, rest_s: float) -> None:
        """See State."""
        self.tried(lambda: self.engine.rest(name, rest_s), None, refuse=False)

    def resting(self, names: Sequence[str]) -> Mapping[str, float]:
        """See State."""
        return self.tried(lambda: self.engine.resting(names), {})

    def trial(self, name: str, within_s: float) -> bool:
        """See State."""
        return self.tried(lambda: self.engine.trial(name, within_s), True)

    def forgive(self, name: str) -> None:
        """See State."""
        self.tried(lambda: self.engine.forgive(name), None, refuse=False)

    def get(self, name: str) -> bytes | None:
        """See State."""
        return self.tried(lambda: self.engine.get(name), None, refuse=False, asks=True)

    def put(self, name: str, data: bytes, ttl_s: float, max_bytes: int) -> None:
        """See State."""
        self.tried(lambda: self.engine.put(name, data, ttl_s, max_bytes), None, refuse=False)

    def close(self) -> None:
        """See State."""
        self.engine.close()
