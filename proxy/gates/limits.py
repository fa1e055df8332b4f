"""Requests, tokens, money and calls at once: one claim on the shared state before a call, one settlement after it.

A call reserves what it may use at most: its prompt by its length, its answer by the limit that it sets itself (1,024 tokens
when it sets none). What it really used replaces that at its end, also when the client left or the backend broke off: then what
had come until there is counted. What a backend never answered costs nothing.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from posixpath import normpath
from typing import NamedTuple
from urllib.parse import unquote

from proxy.config import Config, Entry, Key, Price, Rates
from proxy.errors import ClientGone, Refused
from proxy.gates.asked import Asked
from proxy.gates.include_usage import asked_too
from proxy.gates.names import ByName
from proxy.gates.queue import line_name
from proxy.gates.usage import Meter, Usage
from proxy.http1 import Fields
from proxy.routing import Paths
from proxy.state import UNCOUNTED, Budget, Claim, Line, Plan, Rate, Slot, State, Ticket, Verdict
from proxy.state.open import Guarded

UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
FREE = ("demo://", "command://")  # targets that cost nothing
NOTHING = Price(0, 0, 0)
KINDS = ("requests", "tokens")
RATE_FIELDS = frozenset(f"x-ratelimit-{what}-{kind}" for kind in KINDS for what in ("limit", "remaining", "reset")) | {
    f"anthropic-ratelimit-{kind}-{what}"
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
    for what in ("limit", "remaining", "reset")
}
CODE = "rate_limit_exceeded"
LITTLE, LESS = "this call may use more than is left of", "ask for less (max_tokens)"
SLOT_PATIENCE_S = 0.05  # a call's slot comes back a moment after its client has got its end


class Terms(NamedTuple):
    """What the calls of a key to a target on a path are held against, and what they are told of it."""

    plan: Plan
    charged: tuple[tuple[bool, int], ...]  # of each charge: whether it is money, its limit
    told: tuple[tuple[str, tuple[int, ...]], ...]  # kind → the places of its rates in the plan, of which the tightest is told

    @classmethod
    def of(
        cls, rates: tuple[Rate, ...], charged: tuple[Rate | Budget, ...], slots: tuple[Slot, ...], line: Line | None
    ) -> Terms:
        """For these claims."""
        tokens = tuple(at for at, claim in enumerate(charged, len(rates)) if isinstance(claim, Rate))
        told = (("requests", tuple(range(len(rates)))), ("tokens", tokens))
        kinds = tuple((isinstance(claim, Budget), claim.limit) for claim in charged)
        return cls(Plan(rates, charged, slots, line), kinds, tuple(pair for pair in told if pair[1]))

    def reserved(self, tokens: int, cost: int) -> list[int]:
        """Nobody reserves more than the limit: what is that large fits when nothing else is running."""
        return [min(limit, cost if is_money else tokens) for is_money, limit in self.charged]

    def used(self, tokens: int, cost: int) -> list[int]:
        """What it was in the end."""
        return [cost if is_money else tokens for is_money, _ in self.charged]


class Limits:
    """The claims of every call, made of the configuration once."""

    def __init__(self, config: Config, state: State, clock: Callable[[], float] = time.time) -> None:
        self.state, self.clock = state, clock
        self.asks_others = isinstance(state, Guarded)  # a round trip: others may compute meanwhile
        limits = config.limits
        self._moving = limits is None or limits.strategy == "moving-window"
        self._everyone = self._rates("limits.global", limits.everyone if limits else ())
        self._paths: Paths[tuple[Rate, ...]] = Paths.of(
            [
                (Entry(path), self._rates(f"limits.paths.{path}", rates))
                for path, rates in (limits.paths if limits else {}).items()
            ]
        )
        self._has_paths = bool(limits and limits.paths)
        self._targets = {name: self._rates(f"targets.{name}.limits", each.limits) for name, each in config.targets.items()}
        joint = bool(config.pools or any(each.fallback for each in config.targets.values()))
        self.by_attempt = {name: Plan(rates) for name, rates in self._targets.items() if joint and rates}
        self._keys = {name: self._rates(f"keys.{name}.limits", key.limits) for name, key in config.keys.items()}
        self._charged = {name: tuple(self._charges(key)) for name, key in config.keys.items()}
        self._slots = {
            name: (Slot(f"keys.{name}.concurrency", key.concurrency),) if key.concurrency else ()
            for name, key in config.keys.items()
        }
        self._lines = {
            name: Line(line_name(name), each.queue.concurrency) for name, each in config.targets.items() if each.queue
        }
        self._known: dict[tuple[Claim | Line | None, ...], Terms] = {}  # of all paths, those that differ
        self._terms = lru_cache(4096)(self._terms_of)
        self._prices = ByName(config.prices)
        self._free = {name for name, target in config.targets.items() if target.url.startswith(FREE)}
        self.prices_all = bool(config.prices)

    def _rates(self, where: str, rates: Rates) -> tuple[Rate, ...]:
        return tuple(Rate(f"{where} {period_s:g}", limit, period_s, self._moving) for limit, period_s in rates)

    def admit(self, asked: Asked) -> Admission | None:
        """Takes what the call needs, or raises Refused: 429 with what is left and when; 403 for a model without a price.
        None: there is nothing to count. Whoever gets an Admission ends it."""
        call, key = asked.call, asked.key
        terms = self._terms(key.name if key else None, asked.choice.target, call.method, call.path if self._has_paths else "")
        charges = bool(terms.charged)
        price = self._price(asked) if self.prices_all or (key and key.budget) else NOTHING
        admission = Admission(self, asked, price, terms)
        if self.by_attempt:
            admission.count_attempts()
        if self.prices_all or charges:
            admission.listen()
        if terms.plan.claims:
            tokens_in, most_out = (asked.prompt_tokens, asked.most_out) if charges else (0, 0)
            cost = 0 if price is NOTHING else price.cost(tokens_in, 0, most_out)
            admission.take(terms.reserved(tokens_in + most_out, cost) if charges else ())
        return admission

    def _terms_of(self, key: str | None, target: str, method: str, path: str) -> Terms:
        rates = self._everyone + (self._keys[key] if key else ())
        if not self.by_attempt:
            rates += self._targets.get(target, ())
        if self._has_paths:
            path = unquote(path)
            found = self._paths.find(method, path) or self._paths.find(method, "/" + normpath(path).lstrip("/"))
            rates += found[0] if found else ()
        charged, slots = (self._charged[key], self._slots[key]) if key else ((), ())
        line = self._lines.get(target) if rates or charged or slots else None  # else it is asked for when it is needed
        claims = (*rates, *charged, *slots, line)
        return self._known.get(claims) or self._known.setdefault(claims, Terms.of(rates, charged, slots, line))

    def standings(self, key: Key) -> Sequence[tuple[Claim, int, float]]:
        """How the limits and the budget of a key stand now: of each what is left, and in how many seconds all of it is back.
        Nothing is taken."""
        claims = (*self._keys[key.name], *self._charged[key.name])
        holder = f"look {os.urandom(8).hex()}"
        verdict = self.state.admit(holder, Plan((), claims), (0,) * len(claims)) if claims else UNCOUNTED
        self.state.settle(holder)
        return list(zip(claims, verdict.left, verdict.reset_s, strict=False))

    def _charges(self, key: Key) -> Iterator[Rate | Budget]:
        yield from self._rates(f"keys.{key.name}.tokens", key.tokens)
        if key.budget:
            limit, period = key.budget
            yield Budget(f"keys.{key.name}.budget {period}", limit, period)

    def _price(self, asked: Asked) -> Price:
        """What the call's model costs; of several the dearest. A key with a budget may not use what has no price."""
        if not asked.costs or asked.choice.target in self._free:
            return NOTHING
        models = asked.kept_beside(asked.choice.model) or [""]
        prices = []
        for model in models:
            price = self._prices.get(model)
            if price is None and asked.key and asked.key.budget:
                what = f"the model {model[:200]!r} has no price" if model else "no model can be read"
                raise Refused(
                    f"{what}, which the budget of the key {asked.key.name!r} needs", code="model_not_priced", param="model"
                )
            prices.append(price or NOTHING)
        return prices[0] if len(prices) == 1 else max(prices, key=lambda price: price.input + price.output)

    def price_of(self, asked: Asked, reserved: Price) -> Price:
        """What was served costs, which may be another target's model than the one that was asked for. Of a request that names
        several models nobody knows which it was: it costs what the dearest does."""
        call = asked.call
        if call.target in self._free:
            return NOTHING
        if asked.names_several and reserved is not NOTHING:
            return reserved
        return self._prices.get(call.model_served or call.model_asked or "") or reserved


class Came:
    """The ticket of a slot that came with an admission, and goes with its settlement at the latest."""

    def __init__(self, state: State, holder: str) -> None:
        self._state, self._holder = state, holder

    def wait(self, timeout_s: float) -> bool:
        """See Ticket."""
        return True

    def leave(self) -> None:
        """See Ticket."""
        self._state.leave(self._holder)


class Admission:
    """One call's claims, from `take` to `end`, which settles them: once, whatever happens."""

    def __init__(self, limits: Limits, asked: Asked, price: Price, terms: Terms) -> None:
        self._limits, self._asked, self._price, self._terms = limits, asked, price, terms
        self._meter: Meter | None = None
        self._sent = False
        self._taken = False  # the state waits to be told of this call's end
        self.ticket: Ticket | None = None  # of the slot in its target's queue that came with the admission

    def _admit(self, plan: Plan, amounts: Sequence[int] = ()) -> Verdict:
        limits, call = self._limits, self._asked.call
        if not limits.asks_others or call.waits is None:
            return limits.state.admit(call.id, plan, amounts)
        with call.waits.pausing():
            return limits.state.admit(call.id, plan, amounts)

    def take(self, amounts: Sequence[int]) -> None:
        """Raises Refused (429)."""
        plan = self._terms.plan
        verdict = self._admit(plan, amounts)
        if verdict.refused >= 0:
            verdict = self._after_a_moment(verdict, amounts)
        if verdict.left:
            self._tell(verdict)
        if verdict.refused >= 0:
            raise self._refusal(plan, verdict)
        self._taken = plan.settles
        if verdict.place:
            self.ticket = Came(self._limits.state, self._asked.call.id)

    def _after_a_moment(self, verdict: Verdict, amounts: Sequence[int]) -> Verdict:
        """Where only a slot was missing: once more, until it is back."""
        plan, waits = self._terms.plan, self._asked.call.waits
        until = time.monotonic() + SLOT_PATIENCE_S
        while waits and verdict.refused >= 0 and isinstance(plan.claims[verdict.refused], Slot) and time.monotonic() < until:
            with waits.pausing():
                time.sleep(0.01)
            verdict = self._admit(plan, amounts)
        return verdict

    def count_attempts(self) -> None:
        """A target's own limits, where others can stand in for it: asked when its turn comes, once."""
        relay, limits, inner, seen = self._asked.relay, self._limits, self._asked.relay.leaves, set()

        def leaves(body: object) -> object:
            target = self._asked.call.target or ""
            plan = limits.by_attempt.get(target) if target not in seen else None
            seen.add(target)
            if plan is not None:
                verdict = self._admit(plan)
                if verdict.refused >= 0:
                    raise self._refusal(plan, verdict)
            return inner(body) if inner else body

        relay.leaves = leaves

    def listen(self) -> None:
        """What the backend answers is counted; where the call is charged, a stream is asked to tell its usage."""
        relay = self._asked.relay
        meter = self._meter = Meter()
        relay.hears = (*relay.hears, meter.hear)
        relay.request.headers["accept-encoding"] = "identity"
        inner = relay.leaves

        def leaves(body: object) -> object:
            self._sent = True
            if meter.size:
                meter.forget()  # what another attempt was answered is not what is served
            return inner(body) if inner else body

        relay.leaves = leaves
        if self._terms.charged:
            asked_too(self._asked)

    def end(self, error: BaseException | None) -> None:
        """The call has ended, with that fault."""
        used: Sequence[int] = ()
        if self._meter is not None:
            call, seen = self._asked.call, self._used(self._meter, error)
            tokens_in, tokens_out = seen.tokens_in or 0, seen.tokens_out or 0
            price = self._limits.price_of(self._asked, self._price) if self._limits.prices_all else NOTHING
            cost = 0 if price is NOTHING else price.cost(tokens_in, seen.cached or 0, tokens_out)
            call.tokens_in, call.tokens_out, call.tokens_cached = seen.tokens_in, seen.tokens_out, seen.cached
            call.cost = cost / 1e6 if self._limits.prices_all else None
            used = self._terms.used(tokens_in + tokens_out, cost)
        if self._taken:
            self._settle(used)

    def _settle(self, used: Sequence[int]) -> None:
        limits, call = self._limits, self._asked.call
        if not limits.asks_others or call.waits is None:
            limits.state.settle(call.id, used)
        else:
            with call.waits.pausing():
                limits.state.settle(call.id, used)

    def _used(self, meter: Meter, error: BaseException | None) -> Usage:
        """What the backend told; where it did not, or not yet, what was sent and what has come until then."""
        asked, reply = self._asked, self._asked.relay.reply
        if not asked.costs:
            return Usage()
        used = meter.usage(error is None) if meter.size else Usage()
        left = isinstance(error, (ClientGone, OSError))
        failed = asked.call.status >= 400 if error is None else not (left or reply.content)
        told = used.tokens_in is not None and used.tokens_out is not None
        if not told and (used.known or (meter.size and not failed) or (left and self._sent)):
            unheard = asked.body.get("background") is True  # a Responses call that goes on after its answer
            used.fill(Usage(asked.prompt_tokens, asked.most_out if unheard else meter.streamed if asked.most_out else 0))
        return used

    # --- what the client is told
    def _tell(self, verdict: Verdict) -> None:
        """The tightest limit of requests and of tokens, as the client's API names such fields."""
        relay, claims, left = self._asked.relay, self._terms.plan.claims, verdict.left
        own: Fields = []
        for kind, places in self._terms.told:
            tight = places[0]
            if len(places) > 1:
                shares = [left[at] / claims[at].limit for at in places]
                tight = places[shares.index(min(shares))]
            own += self._fields(kind, claims[tight].limit, left[tight], verdict.reset_s[tight])
        if own:
            relay.reply.extra = [*relay.reply.extra, *own]
            relay.not_down = _and_rates(relay.not_down)

    def _fields(self, kind: str, limit: int, left: int, reset_s: float) -> Fields:
        if self._asked.call.front == "anthropic":
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(math.ceil(self._limits.clock() + reset_s)))
            name = f"anthropic-ratelimit-{kind}"
            return [(f"{name}-limit", str(limit)), (f"{name}-remaining", str(left)), (f"{name}-reset", when)]
        return [
            (f"x-ratelimit-limit-{kind}", str(limit)),
            (f"x-ratelimit-remaining-{kind}", str(left)),
            (f"x-ratelimit-reset-{kind}", span(reset_s)),
        ]

    def _refusal(self, plan: Plan, verdict: Verdict) -> Refused:
        claim, wait_s = plan.claims[verdict.refused], verdict.retry_after_s
        left = verdict.left[verdict.refused] if verdict.left else 0
        where = claim.name.rpartition(" ")[0] or claim.name
        headers: Fields = [("retry-after", str(max(1, math.ceil(wait_s))))] if math.isfinite(wait_s) else []
        again = f"try again in {span(wait_s)}" if headers else "it does not come back"
        if isinstance(claim, Slot):
            return Refused(f"{claim.limit} calls at once is the most ({where})", status=429, code=CODE, headers=headers)
        if isinstance(claim, Budget):
            budget = f"the budget of {claim.limit / 1e6:g} USD per {claim.period} ({where})"
            spent = f"{LITTLE} {budget}: {LESS}, or {again}" if left > 0 else f"{budget} is used up: {again}"
            headers.append(("x-should-retry", "false"))  # the SDKs' own: a budget is not back in a moment
            return Refused(spent, status=429, code="insufficient_quota", headers=headers)
        kind = "tokens" if where.endswith(".tokens") else "requests"
        limit = f"the limit of {claim.limit} {kind} per {period(claim.period_s)} ({where})"
        reached = f"{LITTLE} {limit}: {LESS}, or {again}" if left > 0 and kind == "tokens" else f"{limit} is reached: {again}"
        return Refused(reached, status=429, code=CODE, headers=headers)


@lru_cache(8)
def _and_rates(fields: frozenset[str]) -> frozenset[str]:
    return fields | RATE_FIELDS


def span(seconds: float) -> str:
    """A time as OpenAI's fields have it: 17ms, 12.4s, 6m0s, 2h5m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 10) / 10:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


def period(seconds: float) -> str:
    """`minute`, `2 minutes`"""
    size, name = next(unit for unit in UNITS if seconds % unit[0] == 0)
    count = int(seconds // size)
    return name if count == 1 else f"{count} {name}s"
