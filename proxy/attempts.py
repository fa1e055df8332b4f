"""The attempts of one call: at which target, with which key, once more or not, and what the client hears when all have failed.

A call has candidates: the chosen target or a pool's members, then what their `fallback` names. An attempt at one of them fails
with a cause: the status that the backend answered, or a word (`connect`, `timeout`, `garbage`, `busy`, …). Then one of these is
next, the first that may be:

    the next key, or a new one      the key was refused; at once
    the same target                 `retries` say so; after a wait
    the next candidate              the cause is not the request's own fault; at once
    nothing                         the client gets this error

Nothing is tried once something of an answer has gone to the client, or when the request's body was streamed and is gone.
What is next is known before an error answer's body is read: the last one can be relayed as the backend wrote it.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from proxy.answers import field_of, raise_for_error
from proxy.dialects import load
from proxy.errors import BackendError, MapperError, ProxyError
from proxy.gates.queue import join, pause
from proxy.http1 import Fields, header_safe
from proxy.pace import Pace
from proxy.pools import Busy, Members
from proxy.routing import Choice
from proxy.upstream import key_field
from proxy.upstream_keys import REFUSALS, Printed, Ring

if TYPE_CHECKING:
    from proxy.generation import Generation
    from proxy.relay import Relay
    from proxy.state import Ticket
    from proxy.translate import Endpoint

logger = logging.getLogger(__name__)

LONGEST_WAIT_S = 10.0  # a backend that wants to be left alone for longer is not tried again for this call
LONGEST_REST_S = 86400.0
COOL_S = 30.0  # of a key, where the target has no `breaker`
ELSEWHERE = REFUSALS | {403, 404, 408, 409}  # and 5xx: where another target may do better
CANNOT = frozenset(("path_not_mapped", "not_supported", "lossy_translation", "capability_missing"))  # this target, that is
NOT_NOW = frozenset(("rate_limit_exceeded", "busy", "keys_rest", "key_command_failed", "rate_limit_exceeded"))
EVENTS = ("sse", "named-sse")
MARKS = ("x-mooltiproxy-target", "x-mooltiproxy-attempts")  # fields of the reply's head


class Attempts:
    """What the calls of one generation share."""

    def __init__(self, generation: Generation) -> None:
        config = generation.config
        self.targets, self._pools = config.targets, config.pools
        self.state = generation.state
        self.by_s = config.system.deadlines.first_byte
        self.busy = Busy()
        self._members = {name: Members(pool, self.busy) for name, pool in config.pools.items()}
        self.counted = {name for pool in config.pools.values() for name in pool.members if pool.strategy == "least-busy"}
        self.rings = {name: Ring(target, self.state) for name, target in self.targets.items() if target.keys}
        self._plain = {name for name, target in self.targets.items() if not target.tries} - self.counted
        hidden = config.secret_names()
        self.printed = {name: Printed(target, hidden) for name, target in self.targets.items() if target.key_command}

    def run(self, relay: Relay, choice: Choice, ticket: Ticket | None = None) -> None:
        """Answers the request. ticket: of the chosen target's queue, where its turn has come already. Raises ProxyError like
        `Relay.once`."""
        if choice.target in self._plain:
            relay.once(choice)
        else:
            Course(self, relay, choice, ticket).run()

    def has_others(self, name: str) -> bool:
        """Whether somebody can stand in."""
        return name in self._pools or bool(self.targets[name].fallback)

    def candidates(self, choice: Choice, in_order: bool) -> Iterator[Choice]:
        """Where a call can go, each target once. in_order: a pool's members as they are written, whoever's turn it is."""
        members = self._pools[choice.target].members if choice.target in self._pools else ()
        names, seen = deque([choice.target]), set()
        while names:
            name = names.popleft()
            if name in seen:
                continue
            seen.add(name)
            if name in self._pools:
                pool = self._pools[name]
                names.extendleft(reversed(list(pool.members) if in_order else self._members[name].order()))
                names.extend(pool.fallback)
                continue
            target = self.targets[name]
            names.extend(target.fallback)
            renamed = choice.model if name in members else None  # `models` has renamed it for the whole pool
            yield choice if name == choice.target else Choice(name, target.model or renamed)


class Course:
    """One call's attempts."""

    def __init__(self, shared: Attempts, relay: Relay, choice: Choice, came: Ticket | None) -> None:
        self._shared, self._relay, self._call = shared, relay, relay.call
        self._has_others = shared.has_others(choice.target)
        in_order = relay.request.method in ("GET", "HEAD")
        self._candidates = shared.candidates(choice, in_order) if self._has_others else iter((choice,))
        self._failed: list[str] = []
        self._resting: list[str] = []  # targets that were passed over
        self._ticket: Ticket | None = None
        self._came = came  # a ticket that need not be joined for, and goes by itself when the call ends well
        self._pace: Pace | None = None
        self._target: Any = None  # a Target, once one has been chosen
        self._cause: str | None = None  # of this attempt's failure
        self._wait_s: float | None = None  # until the next attempt; None: there is none
        self._streamed = False  # the request's body is gone
        self._rests = False  # the target does, from this failure on
        relay.attempts = self

    def run(self) -> None:
        """See Attempts."""
        if not self._move():
            raise self._all_rest()
        while True:
            try:
                self._attempt()
                return
            except ProxyError as error:
                if not self._goes_on(error):
                    raise
            if self._wait_s and self._call.waits:
                pause(self._call.waits, self._wait_s)

    # --- one attempt
    def _move(self) -> bool:
        """On to the next candidate that does not rest, or whose rest is over and who is not being tried by another call."""
        for choice in self._candidates:
            target = self._shared.targets[choice.target]
            if target.breaker is None or self._shared.state.trial(_state_name(target.name), target.breaker.cool_s):
                if self._came is not None and self._failed:
                    self._came.leave()
                    self._came = None
                self._choice, self._target, self._tries, self._rests = choice, target, 1, False
                self._keys: deque[str] = deque()
                self._key = self._refused = ""
                self._renews = bool(target.key_command)  # once
                return True
            self._failed.append(f"{target.name} rests")
            self._resting.append(target.name)
        return False

    def _attempt(self) -> None:
        self._cause = None
        self._mark("")
        target = self._target
        try:
            self._relay.key_fields = self._key_fields()
            if target.name in self._shared.counted:
                with self._shared.busy.one(target.name):
                    self._relay.once(self._choice)
            else:
                self._relay.once(self._choice)
        except BaseException:
            if self._ticket is not None:  # it goes now, whatever comes next
                self._came = None
            raise
        finally:
            ticket, self._ticket = self._ticket, None
            if ticket is not None and ticket is not self._came:
                ticket.leave()
        if target.breaker and self._cause is None:
            self._shared.state.forgive(_state_name(target.name))

    def _key_fields(self) -> dict[str, str]:
        target = self._target
        if target.keys:
            self._keys = self._keys or deque(self._shared.rings[target.name].awake())
            self._key = self._keys.popleft()
            return key_field(target.auth, target.keys[self._key])
        if target.key_command and self._call.waits:
            self._key = self._shared.printed[target.name].key(self._call.waits, self._refused)
            return key_field(target.auth, self._key)
        return {}

    def leaves(self, body: Any) -> None:
        """Before a request leaves. Raises like `join`."""
        if self._target.queue and self._ticket is None:
            self._ticket = self._came or join(self._shared.state, self._target.name, self._target.queue, self._call)
        self._streamed = hasattr(body, "__next__")

    def answered(self, answer: Any, endpoint: Endpoint) -> None:
        """When an answer has begun. Raises it as BackendError when something else is tried instead."""
        if answer.status_code < 400:
            self._mark(self._target.name)
            self._keep_pace()
            return
        self._fail(str(answer.status_code), answer.raw.fields)
        if self._wait_s is not None:
            with closing(answer.raw):
                raise_for_error(answer.status_code, answer.raw, endpoint)
        self._mark(self._target.name)

    def _keep_pace(self) -> None:
        waits, call = self._call.waits, self._call
        if self._target.pace_s and self._pace is None and waits:
            lines = load(call.front).framing(call.query) not in EVENTS
            self._pace = Pace(self._relay.reply, partial(pause, waits), lines)
        if self._pace is not None:
            self._pace.every_s = self._target.pace_s

    # --- what is next
    def _goes_on(self, error: ProxyError) -> bool:
        if self._cause is None:
            cause = _cause_of(error)
            if cause is None:
                return False
            self._fail(cause, list(error.headers))
        if self._wait_s is None:
            self._mark(self._target.name if _status(self._cause or "") else "")
            if len(self._failed) > 1:
                error.message += f" (tried: {', '.join(self._failed)})"
            return False
        self._relay.reply.withdraw()
        return True

    def _fail(self, cause: str, fields: Fields) -> None:
        """This attempt has failed: who is to rest does, and `_wait_s` says what is next."""
        target, after_s = self._target, retry_after_s(fields)
        self._cause = cause
        self._failed.append(f"{target.name} {cause}")
        self._call.attempts = tuple(self._failed)
        self._rest(cause, after_s)
        self._wait_s = self._next(cause, after_s, field_of(fields, "x-should-retry") != "false")
        then = "given up" if self._wait_s is None else f"on to {self._target.name} in {self._wait_s:.2g} s"
        logger.warning("%s: target %s failed: %s; %s", self._call.id, target.name, cause, then)

    def _rest(self, cause: str, after_s: float | None) -> None:
        target, status = self._target, _status(cause)
        cool_s = target.breaker.cool_s if target.breaker else COOL_S
        if target.keys and status in REFUSALS and self._key:
            rest_s = cool_s if after_s is None else min(after_s, LONGEST_REST_S)
            self._shared.rings[target.name].rests(self._key, status, rest_s)
        elif target.breaker and (cause in ("connect", "timeout", "garbage") or status >= 500 or self._is_refused(status)):
            rest_s = max(cool_s, min(after_s or 0.0, LONGEST_REST_S))
            rests_s = self._shared.state.fail(_state_name(target.name), target.breaker.failures, rest_s)
            if rests_s:
                self._rests = True
                logger.warning("target %s rests for %.3g s: it has failed again and again", target.name, rests_s)
        elif target.breaker and status:  # it answers, if not what was hoped for
            self._shared.state.forgive(_state_name(target.name))

    def _is_refused(self, status: int) -> bool:
        """Whether the fault is with our key; with `passthrough` it is the client's own, which is no reason to rest."""
        return status in REFUSALS and self._target.auth != "passthrough"

    def _next(self, cause: str, after_s: float | None, may_repeat: bool) -> float | None:
        if self._relay.reply.content or self._streamed:
            return None
        wait_s = self._once_more(cause, after_s, may_repeat)
        if wait_s is not None:
            return wait_s
        status = _status(cause)
        goes = not status or status in ELSEWHERE or status >= 500
        return 0.0 if goes and self._move() else None

    def _once_more(self, cause: str, after_s: float | None, may_repeat: bool) -> float | None:
        """Seconds until the same target is tried again; None: it is not."""
        target = self._target
        if target.keys and _status(cause) in REFUSALS:
            if self._keys:
                return 0.0
            may_repeat = may_repeat and after_s is not None  # else all keys rest for longer than a retry waits
        if cause == "401" and self._renews and self._shared.printed[target.name].is_renewable(self._key):
            self._renews, self._refused = False, self._key
            return 0.0
        retries = target.retries
        if not may_repeat or self._rests or retries is None or cause not in retries.on or self._tries >= retries.attempts:
            return None
        wait_s = random.uniform(0.0, min(LONGEST_WAIT_S, retries.backoff_s * 2 ** (self._tries - 1)))
        wait_s += after_s or 0.0
        if (after_s or 0.0) > LONGEST_WAIT_S or self._call.elapsed_s() + wait_s > self._shared.by_s:
            return None
        self._tries += 1
        return wait_s

    # --- what the client hears
    def _mark(self, answers: str) -> None:
        """Says in the reply's head who answers, where that was open, and who has failed before."""
        if not self._has_others and not self._failed:
            return
        others = [pair for pair in self._relay.reply.extra if pair[0] not in MARKS]
        values = (answers if self._has_others else "", ", ".join(self._failed))
        marks = [(name, header_safe(value)) for name, value in zip(MARKS, values, strict=True) if value]
        self._relay.reply.extra = [*others, *marks]

    def _all_rest(self) -> ProxyError:
        self._mark("")
        rests = self._shared.state.resting([_state_name(name) for name in self._resting])
        back_s, first = min((rests.get(_state_name(name), 1.0), name) for name in self._resting)
        self._call.target = first
        return ProxyError(
            f"every target that could serve this rests after failures; {first!r} comes back first, in {math.ceil(back_s)} s",
            status=503,
            code="targets_rest",
            headers=(("retry-after", str(math.ceil(back_s))),),
        )


def _state_name(target: str) -> str:
    return f"target {target}"


def _status(cause: str) -> int:
    """The status of a cause that is one, else 0."""
    return int(cause) if cause.isdigit() else 0


def _cause_of(error: ProxyError) -> str | None:
    """Why an attempt failed whose answer was not looked at; None: it is the request's own fault, or nobody waits any more."""
    if isinstance(error, BackendError):
        return error.cause or ("garbage" if error.status == 502 else str(error.status))
    if error.code in CANNOT or error.code in NOT_NOW:
        return error.code
    return "mapper" if isinstance(error, MapperError) and error.status >= 500 else None


def retry_after_s(fields: Fields) -> float | None:
    """For how many seconds a backend wants to be left alone: of `retry-after-ms`, else `retry-after`, a number or a date."""
    told = field_of(fields, "retry-after-ms"), field_of(fields, "retry-after")
    try:
        if told[0]:
            seconds = float(told[0]) / 1000
        elif told[1] and not told[1][:1].isalpha():
            seconds = float(told[1])
        elif told[1]:
            seconds = max(0.0, parsedate_to_datetime(told[1]).timestamp() - time.time())
        else:
            return None
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if 0 <= seconds < math.inf else None
