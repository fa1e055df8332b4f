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
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from posixpath import normpath
from types import TracebackType
from urllib.parse import unquote

from proxy.call import Call
from proxy.config import Config, Entry, Key, Price, Rates
from proxy.errors import ClientGone, Refused
from proxy.gates.asked import Asked
from proxy.gates.include_usage import asked_too
from proxy.gates.names import ByName
from proxy.gates.usage import Meter, Usage
from proxy.http1 import Fields
from proxy.routing import Paths
from proxy.state import Budget, Claim, Rate, Slot, Standing, State, Verdict
from proxy.state.open import Guarded

UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
FREE = ("demo://", "command://")  # targets that cost nothing
NOTHING = Price(0, 0, 0)
AT_ONCE: AbstractContextManager[None] = nullcontext()
KINDS = ("requests", "tokens")
RATE_FIELDS = frozenset(f"x-ratelimit-{what}-{kind}" for kind in KINDS for what in ("limit", "remaining", "reset")) | {
    f"anthropic-ratelimit-{kind}-{what}"
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
    for what in ("limit", "remaining", "reset")
}
CODE = "rate_limit_exceeded"
SLOT_PATIENCE_S = 0.05  # a call's slot comes back a moment after its client has got its end


class Limits:
    """The claims of every call, made of the configuration once."""

    def __init__(self, config: Config, state: State, clock: Callable[[], float] = time.time) -> None:
        self.state, self.clock = state, clock
        self._asks_others = isinstance(state, Guarded)  # a round trip
        limits = config.limits
        self._moving = limits is None or limits.strategy == "moving-window"
        self._everyone = self._rates("limits.global", limits.everyone if limits else ())
        self._paths: Paths[tuple[Rate, ...]] = Paths.of(
            [
                (Entry(path), self._rates(f"limits.paths.{path}", rates))
                for path, rates in (limits.paths if limits else {}).items()
            ]
        )
        self._targets = {name: self._rates(f"targets.{name}.limits", each.limits) for name, each in config.targets.items()}
        self.by_attempt = {} if not (config.pools or any(each.fallback for each in config.targets.values())) else self._targets
        self._keys = {name: self._rates(f"keys.{name}.limits", key.limits) for name, key in config.keys.items()}
        self._charged = {name: tuple(self._charges(key)) for name, key in config.keys.items()}
        self._slots = {
            name: (Slot(f"keys.{name}.concurrency", key.concurrency),) if key.concurrency else ()
            for name, key in config.keys.items()
        }
        self._always = lru_cache(4096)(self._of_key_and_target)
        self._prices = ByName(config.prices)
        self._free = {name for name, target in config.targets.items() if target.url.startswith(FREE)}
        self.prices_all = bool(config.prices)

    def elsewhere(self, call: Call) -> AbstractContextManager[None]:
        """Around what asks the state: where another process keeps it, others may compute meanwhile."""
        return call.waits.pausing() if self._asks_others and call.waits else AT_ONCE

    def _rates(self, where: str, rates: Rates) -> tuple[Rate, ...]:
        return tuple(Rate(f"{where} {period_s:g}", limit, period_s, self._moving) for limit, period_s in rates)

    def admit(self, asked: Asked) -> Admission:
        """Takes what the call needs, or raises Refused: 429 with what is left and when; 403 for a model without a price."""
        call, key = asked.call, asked.key
        rates = self._always(key.name if key else None, asked.choice.target)
        if self._paths.exact or self._paths.patterns:
            path = unquote(call.path)
            found = self._paths.find(call.method, path) or self._paths.find(call.method, "/" + normpath(path).lstrip("/"))
            rates += found[0] if found else ()
        charged = bool(key and self._charged[key.name])
        price = self._price(asked) if self.prices_all or (key and key.budget) else NOTHING
        claims: list[Claim] = [*rates]
        if key is not None:
            if charged:
                tokens_in, most_out = asked.prompt_tokens, asked.most_out
                claims += self._reserved(key, tokens_in + most_out, price.cost(tokens_in, 0, most_out))
            claims += self._slots[key.name]
        admission = Admission(self, asked, price, len(rates), claims)
        if self.by_attempt:
            admission.count_attempts()
        if self.prices_all or charged:
            admission.listen()
        if claims:
            admission.take()
        return admission

    def _of_key_and_target(self, key: str | None, target: str) -> tuple[Rate, ...]:
        own = self._keys[key] if key else ()
        return self._everyone + own + (() if self.by_attempt else self._targets[target])

    def standings(self, key: Key) -> Sequence[Standing]:
        """How the limits and the budget of a key stand now; nothing is taken."""
        claims = [*(rate._replace(amount=0) for rate in self._keys[key.name]), *self._reserved(key, 0, 0)]
        holder = f"look {os.urandom(8).hex()}"
        standings = self.state.admit(holder, claims).standings if claims else ()
        self.state.settle(holder, {})
        return standings

    def _charges(self, key: Key) -> Iterator[Rate | Budget]:
        yield from (rate._replace(amount=0) for rate in self._rates(f"keys.{key.name}.tokens", key.tokens))
        if key.budget:
            limit, period = key.budget
            yield Budget(f"keys.{key.name}.budget {period}", limit, period)

    def _reserved(self, key: Key, tokens: int, cost: int) -> list[Claim]:
        """Nobody reserves more than the limit: what is that large fits when nothing else is running."""
        return [
            claim._replace(amount=min(claim.limit, cost if isinstance(claim, Budget) else tokens))
            for claim in self._charged[key.name]
        ]

    def _price(self, asked: Asked) -> Price:
        """What the call's model costs; of several the dearest. A key with a budget may not use what has no price."""
        if not asked.costs or asked.choice.target in self._free:
            return NOTHING
        models = [asked.choice.model] if asked.choice.model else asked.models or [""]
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

    def price_of(self, call: Call, reserved: Price) -> Price:
        """What was served costs, which may be another target's model than the one that was asked for."""
        if call.target in self._free:
            return NOTHING
        return self._prices.get(call.model_served or call.model_asked or "") or reserved


class Admission:
    """One call's claims, from `take` to the end of the `with`, which settles them: once, whatever happens."""

    def __init__(self, limits: Limits, asked: Asked, price: Price, requests: int, claims: list[Claim]) -> None:
        self._limits, self._asked, self._price = limits, asked, price
        self._requests, self._claims = requests, claims
        self._meter: Meter | None = None
        self._sent = False
        self._counts = bool(claims)  # the state knows of this call

    def take(self) -> None:
        """Raises Refused (429)."""
        state, call = self._limits.state, self._asked.call
        with self._limits.elsewhere(call):
            verdict = state.admit(call.id, self._claims)
        until = time.monotonic() + SLOT_PATIENCE_S
        while isinstance(verdict.refused, Slot) and call.waits and time.monotonic() < until:
            with call.waits.pausing():
                time.sleep(0.01)
                verdict = state.admit(call.id, self._claims)
        self._tell(verdict)
        if verdict.refused is not None:
            raise self._refusal(verdict.refused, verdict.retry_after_s)

    def count_attempts(self) -> None:
        """A target's own limits, where others can stand in for it: asked when its turn comes, once."""
        relay, limits, inner, seen = self._asked.relay, self._limits, self._asked.relay.leaves, set()

        def leaves(body: object) -> object:
            target = self._asked.call.target or ""
            rates = limits.by_attempt.get(target, ()) if target not in seen else ()
            seen.add(target)
            if rates:
                self._counts = True
                with limits.elsewhere(self._asked.call):
                    verdict = limits.state.admit(self._asked.call.id, rates)
                if verdict.refused is not None:
                    raise self._refusal(verdict.refused, verdict.retry_after_s)
            return inner(body) if inner else body

        relay.leaves = leaves

    def listen(self) -> None:
        """What the backend answers is counted; where the call is charged, a stream is asked to tell its usage."""
        relay, key = self._asked.relay, self._asked.key
        meter = self._meter = Meter()
        relay.hears = (*relay.hears, meter.hear)
        relay.request.headers["accept-encoding"] = "identity"
        inner = relay.leaves

        def leaves(body: object) -> object:
            self._sent = True
            meter.forget()  # what another attempt was answered is not what is served
            return inner(body) if inner else body

        relay.leaves = leaves
        if key and (key.tokens or key.budget):
            asked_too(self._asked)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        actual: dict[str, int] = {}
        if self._meter is not None:
            call, used = self._asked.call, self._used(self._meter, error)
            tokens_in, tokens_out = used.tokens_in or 0, used.tokens_out or 0
            cost = self._limits.price_of(call, self._price).cost(tokens_in, used.cached or 0, tokens_out)
            call.tokens_in, call.tokens_out, call.tokens_cached = used.tokens_in, used.tokens_out, used.cached
            call.cost = cost / 1e6 if self._limits.prices_all else None
            for claim in self._claims[self._requests :]:
                actual[claim.name] = cost if isinstance(claim, Budget) else tokens_in + tokens_out
        if self._counts:
            with self._limits.elsewhere(self._asked.call):
                self._limits.state.settle(self._asked.call.id, actual)

    def _used(self, meter: Meter, error: BaseException | None) -> Usage:
        """What the backend told; where it did not, or not yet, what was sent and what has come until then."""
        asked, reply = self._asked, self._asked.relay.reply
        if not asked.costs:
            return Usage()
        used = meter.usage() if meter.size else Usage()
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
        relay = self._asked.relay
        standings = verdict.standings
        requests = standings[: self._requests]
        tokens = [each for each in standings[self._requests :] if isinstance(each.claim, Rate)]
        own: Fields = []
        for kind, found in zip(KINDS, (requests, tokens), strict=True):
            if found:
                tight = found[0] if len(found) == 1 else min(found, key=lambda each: each.left / each.claim.limit)
                own += self._fields(kind, tight)
        if own:
            relay.reply.extra = [*relay.reply.extra, *own]
            relay.not_down = _and_rates(relay.not_down)

    def _fields(self, kind: str, tight: Standing) -> Fields:
        limit, left, reset_s = str(tight.claim.limit), str(tight.left), tight.reset_s
        if self._asked.call.front == "anthropic":
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(math.ceil(self._limits.clock() + reset_s)))
            name = f"anthropic-ratelimit-{kind}"
            return [(f"{name}-limit", limit), (f"{name}-remaining", left), (f"{name}-reset", when)]
        return [
            (f"x-ratelimit-limit-{kind}", limit),
            (f"x-ratelimit-remaining-{kind}", left),
            (f"x-ratelimit-reset-{kind}", span(reset_s)),
        ]

    def _refusal(self, claim: Claim, wait_s: float) -> Refused:
        where = claim.name.rpartition(" ")[0] or claim.name
        headers: Fields = [("retry-after", str(max(1, math.ceil(wait_s))))] if math.isfinite(wait_s) else []
        again = f"try again in {span(wait_s)}" if headers else "it does not come back"
        if isinstance(claim, Slot):
            return Refused(f"{claim.limit} calls at once is the most ({where})", status=429, code=CODE, headers=headers)
        if isinstance(claim, Budget):
            spent = f"the budget of {claim.limit / 1e6:g} USD per {claim.period} ({where}) is used up: {again}"
            headers.append(("x-should-retry", "false"))  # the SDKs' own: a budget is not back in a moment
            return Refused(spent, status=429, code="insufficient_quota", headers=headers)
        kind = "tokens" if where.endswith(".tokens") else "requests"
        limit = f"{claim.limit} {kind} per {period(claim.period_s)}"
        return Refused(f"the limit of {limit} ({where}) is reached: {again}", status=429, code=CODE, headers=headers)


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
