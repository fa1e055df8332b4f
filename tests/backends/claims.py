"""Claims as the tests of the state write them: each with its amount, settled by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from proxy import state
from proxy.state import Line, Plan, State


class Rate(NamedTuple):
    """`amount` None: one unit for good, as of a request."""

    name: str
    limit: int
    period_s: float
    moving: bool = True
    amount: int | None = None


class Budget(NamedTuple):
    name: str
    limit: int
    period: str
    amount: int = 0


class Slot(NamedTuple):
    name: str
    limit: int


Claim = Rate | Budget | Slot


class Standing(NamedTuple):
    claim: Claim
    left: int
    reset_s: float


class Answer(NamedTuple):
    refused: Claim | None
    retry_after_s: float
    standings: list[Standing]
    place: bool


class Asking:
    """A state that is asked for such claims: those for good first, slots last."""

    def __init__(self, asked: State) -> None:
        self.state = asked
        self._charged: dict[str, list[Rate | Budget]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.state, name)

    def admit(self, holder: str, claims: Sequence[Claim], line: Line | None = None) -> Answer:
        rates = [each for each in claims if isinstance(each, Rate) and each.amount is None]
        charged = [each for each in claims if isinstance(each, Budget) or (isinstance(each, Rate) and each.amount is not None)]
        slots = [each for each in claims if isinstance(each, Slot)]
        taken = [state.Slot(*each) for each in slots]
        plan = Plan([_rate(each) for each in rates], [_charge(each) for each in charged], taken, line)
        verdict = self.state.admit(holder, plan, [each.amount or 0 for each in charged])
        asked: list[Claim] = [*rates, *charged, *slots]
        if verdict.refused < 0:
            self._charged[holder] = charged
        standings = [Standing(*each) for each in zip(asked, verdict.left, verdict.reset_s, strict=False)]
        refused = asked[verdict.refused] if verdict.refused >= 0 else None
        return Answer(refused, verdict.retry_after_s, standings, verdict.place)

    def settle(self, holder: str, used: Mapping[str, int] = {}) -> None:
        """What is not named stays as taken."""
        charged = self._charged.pop(holder, [])
        self.state.settle(holder, [used.get(each.name, each.amount or 0) for each in charged] if used else ())


def _rate(rate: Rate) -> state.Rate:
    return state.Rate(*rate[:4])


def _charge(claim: Rate | Budget) -> state.Rate | state.Budget:
    return _rate(claim) if isinstance(claim, Rate) else state.Budget(*claim[:3])
