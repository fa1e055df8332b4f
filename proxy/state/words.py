"""Plans, and what was taken of them, in the words of redis.lua."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from proxy.state import Budget, Claim, Plan, Rate, Slot
from proxy.state.memory import TICKS
from proxy.state.resp import packed
from proxy.state.scripts import script

PREFIX = "mooltiproxy:"
TO, CALLS = PREFIX + "to:", PREFIX + "call:"


class Made(NamedTuple):
    """A plan as Redis is asked for it: the beginnings of both commands, and how the numbers of a call are written."""

    admits: tuple[int, bytes]  # how many parts the command has, the first of them behind the script
    asked: str
    settles: tuple[int, bytes]
    used: str


@dataclass
class Taken:
    """What a holder took, and where; its end, once it has one."""

    holder: str
    plan: Plan
    amounts: Sequence[int]
    places: Sequence[int]
    ticket: str  # of its slot in the plan's line; empty: it has none
    used: Sequence[int] = ()
    unsure: bool = False  # it was told before, and nobody knows whether Redis heard it


def made_of(plan: Plan, lease_us: int) -> Made:
    """A plan in these words."""
    keys, line = [key_of(claim) for claim in plan.claims], queue_keys(plan.line.name) if plan.line else []
    limit, settled = plan.line.limit if plan.line else 0, keys[plan.first :]
    admits = (len(keys + line), *keys, *line, lease_us, CALLS if plan.settles else "", limit)
    settles = (len(settled + line), *settled, *line, lease_us, CALLS, limit, TO)
    asked = [_words(claim, f"{claim.limit} 1") for claim in plan.rates]
    asked += [_words(claim, f"{claim.limit} %d") for claim in plan.charged]
    asked += [f"s {slot.limit} 0 0 0 0" for slot in plan.slots]
    used = [*[_words(claim, "%d %d %d") for claim in plan.charged], *["s 0 0 0 0 0 0" for _ in plan.slots]]
    return Made((len(admits) + 5, packed(admits)), " ".join(asked), (len(settles) + 6, packed(settles)), " ".join(used))


def numbers(
    plan: Plan, amounts: Iterable[tuple[int, ...]], window: Callable[[Budget], tuple[int, int, int]]
) -> tuple[int, ...]:
    """What stands for the `%d` of a plan's words: a call's amounts, and the windows of its budgets."""
    found: list[int] = []
    for claim, of_claim in zip(plan.charged, amounts, strict=True):
        found += of_claim
        if isinstance(claim, Budget):
            found += window(claim)
    return tuple(found)


def key_of(claim: Claim) -> str:
    """Where a claim is counted."""
    if isinstance(claim, Slot):
        return f"{PREFIX}slot:{claim.name}"
    if isinstance(claim, Budget):
        return f"{PREFIX}budget:{claim.period}:{claim.name}"
    return f"{PREFIX}rate:{'m' if claim.moving else 'f'}{claim.period_s:g}:{claim.name}"


def queue_keys(name: str) -> list[str]:
    """Who has a slot of a line, who waits, and who of them is alive."""
    return [f"{PREFIX}queue:{part}:{name}" for part in ("held", "waiting", "alive")]


def _words(claim: Rate | Budget, numbers: str) -> str:
    """What a script is told of a claim: its kind, what it takes, and three more."""
    if isinstance(claim, Budget):
        return f"b {numbers} %d %d %d"
    period_us, tick_us = _period(claim)
    return f"{'m' if claim.moving else 'f'} {numbers} {period_us} {tick_us} 0"


def _period(rate: Rate) -> tuple[int, int]:
    """A rate's period and tick in microseconds: 1 is exact; see memory.py."""
    period_us = int(rate.period_s * 1e6)
    return period_us, 1 if rate.limit <= TICKS else max(1, period_us // TICKS)


def head(verb: str, name: str, parts: int) -> bytes:
    """A command's beginning: its number of parts, EVAL or EVALSHA, the script."""
    return _heads(verb, name).replace(b"*", b"*%d" % parts, 1)


@lru_cache
def _heads(verb: str, name: str) -> bytes:
    text = script(name)
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()  # which is Redis's choice
    return b"*\r\n" + packed((verb, sha if verb == "EVALSHA" else text))
