"""What workers and machines share, exactly: limits, tokens, money, slots, bans, rests, and a cache's entries.

Three engines keep it: `memory` (one process), `service` (a Unix socket to the supervisor, which runs the memory engine for all
workers), `redis` (Lua scripts, for several machines). A call speaks to it twice: `admit` before it goes out, `settle` after it
has ended. Both are atomic and one round trip each; nothing is asked that the configuration does not name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class Rate(NamedTuple):
    """At most `limit` units in any `period_s` seconds (`moving`), or in each period since the epoch (fixed window)."""

    name: str  # of the counter, such as "keys.alice.limits 60"
    limit: int
    period_s: float
    moving: bool = True


class Budget(NamedTuple):
    """At most `limit` millionths of a US dollar per `period`."""

    name: str
    limit: int
    period: str  # hour day week month year total, in UTC


class Slot(NamedTuple):
    """One of `limit` things at a time, such as a key's calls in flight; refused at once when none is free."""

    name: str
    limit: int


Claim = Rate | Budget | Slot


class Line(NamedTuple):
    """A fair queue for one of `limit` slots: a call that finds one free, and nobody waiting, has it with its admission."""

    name: str
    limit: int


class Plan:
    """What every call of one kind claims: made of a configuration once, and then only pointed at.

    `rates` take one unit of each for good. Of `charged` each call says what it reserves, and in the end what it was: an amount
    of 0 fits while anything is left, what was too much counts from then on, and what was too little is given back where it was
    taken. `slots` come back.
    """

    __slots__ = (
        "after",
        "before",
        "budgets",
        "charged",
        "claims",
        "first",
        "line",
        "made",
        "none",
        "rates",
        "settles",
        "slots",
    )

    def __init__(
        self,
        rates: Sequence[Rate] = (),
        charged: Sequence[Rate | Budget] = (),
        slots: Sequence[Slot] = (),
        line: Line | None = None,
    ) -> None:
        self.line = line
        self.rates, self.charged, self.slots = tuple(rates), tuple(charged), tuple(slots)
        self.claims: tuple[Claim, ...] = (*rates, *charged, *slots)
        self.first = len(self.rates)  # the place of the first that is settled
        self.before, self.after = (1,) * self.first, (1,) * len(self.slots)  # amounts that are the same for each call
        self.none = (0,) * len(self.slots)  # what is used of them in the end
        self.budgets = tuple(at for at, claim in enumerate(self.claims) if isinstance(claim, Budget))
        self.settles = len(self.claims) > self.first or line is not None
        self.made: Any = None  # what its engine has made of it


class Verdict(NamedTuple):
    """`refused`: the place of the first claim that does not fit, -1 when all do; else nothing has been taken of any.

    `retry_after_s`: when the refused one will fit again, if nobody else takes it; infinite when it never will (a `total`, more
    than the limit at once); 1.0 for a Slot, of which nobody can know. `left` and `reset_s`, one of each per claim: what is left
    of its limit, and in how many seconds all of it is back (0.0 for a Slot, infinite for a `total`); both are empty when nobody
    counts.
    """

    refused: int
    retry_after_s: float
    left: Sequence[int]
    reset_s: Sequence[float]
    place: bool = False  # the holder has a slot of the plan's line, until `leave` or `settle`


UNCOUNTED = Verdict(-1, 0.0, (), ())


class Ticket(Protocol):
    """A place in a fair queue for one of a queue's slots. First come, first served, over all workers and machines."""

    def wait(self, timeout_s: float) -> bool:
        """Waits up to `timeout_s` seconds; True once the slot is the holder's. May be called again after False."""

    def leave(self) -> None:
        """Gives the slot back, or the place in the queue up. Safe to call twice."""


class StateLost(Exception):
    """The shared state cannot be reached: `on_state_loss` says what that means to a call."""


class State(Protocol):
    """What an engine does. Thread-safe. Raises StateLost where it cannot; the memory engine never does."""

    def admit(self, holder: str, plan: Plan, amounts: Sequence[int] = ()) -> Verdict:
        """Takes all that the plan claims, or nothing. `amounts`: one for each of `plan.charged`. A holder (a call's id) has at
        most one plan that is to be settled."""

    def settle(self, holder: str, used: Sequence[int] = ()) -> None:
        """The holder's call has ended: slots come back, and what it really used, one number for each of `plan.charged`,
        replaces what it took; without numbers that stays as taken. An unknown holder is no error."""

    def leave(self, holder: str) -> None:
        """The slot of a line that came with the holder's admission comes back before its call ends."""

    def queue(self, name: str, limit: int, size: int, holder: str) -> Ticket | None:
        """Joins the queue for one of `limit` slots; None when `size` others are waiting already."""

    def fail(self, name: str, limit: int, rest_s: float | None) -> float:
        """One more failure in a row of `name` (an address, a target); at `limit` it rests for `rest_s` seconds (None: until it
        is forgiven). The seconds that it rests from now on, 0.0 while it does not; infinite without an end. After a rest
        the count begins anew, unless `trial` has been asked: then this was the trial's failure, and it rests again at once."""

    def rest(self, name: str, rest_s: float) -> None:
        """`name` (an upstream key) rests for `rest_s` seconds."""

    def resting(self, names: Sequence[str]) -> Mapping[str, float]:
        """Those of the names that rest, and for how many seconds still. Costs no round trip while nothing rests, where
        the engine can know that."""

    def trial(self, name: str, within_s: float) -> bool:
        """Whether the caller may try what has just rested (half-open): one caller at a time, until `forgive`, `fail` or
        `within_s` seconds have gone by. False while it rests, True for what has not rested."""

    def forgive(self, name: str) -> None:
        """A success: failures and rest of `name` are forgotten."""

    def get(self, name: str) -> bytes | None:
        """A cache's entry, unless it is gone."""

    def put(self, name: str, data: bytes, ttl_s: float, max_bytes: int) -> None:
        """Keeps a cache's entry for `ttl_s` seconds at most; all of them together stay within `max_bytes`, the least recently
        used go first."""

    def close(self) -> None:
        """Ends connections and threads; what was spent is on disk."""
