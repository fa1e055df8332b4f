"""What a call passes between the choice of its target and the backend: keys' rights, limits, guard, cache, attempts.

It exists only where the configuration names one of them (`Config.traffic`); a plain call goes straight to `Relay.once`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.attempts import Attempts
from proxy.gates.asked import Asked

if TYPE_CHECKING:
    from proxy.gates.cache import Cache
    from proxy.gates.guard import Guard
    from proxy.gates.limits import Limits
    from proxy.gates.people import People
    from proxy.generation import Generation
    from proxy.relay import Relay
    from proxy.routing import Choice
    from proxy.state import Ticket


class Traffic:
    """The stations, in the order in which a call passes them. One per generation."""

    def __init__(self, generation: Generation, before: Traffic | None = None) -> None:
        self._generation = generation
        config = generation.config
        self._people, self.limits, self._guard = _people(generation), _limits(generation), _guard(generation)
        self._keys = config.keys
        self._cache = _cache(generation, before)
        self._attempts = Attempts(generation)

    def end(self) -> None:
        """The process ends."""
        if self._cache:
            self._cache.end()

    def run(self, relay: Relay, choice: Choice) -> None:
        """Answers the request. Raises ProxyError while a status can still be sent."""
        relay.call.target = choice.target
        asked = Asked(relay, choice, self._keys.get(relay.call.key_name or ""))
        if self._people and asked.key:
            self._people.check(asked.key, asked)
        admission = self.limits.admit(asked) if self.limits else None
        if admission is None:
            self._run(asked, None)
            return
        try:
            self._run(asked, admission.ticket)
        except BaseException as error:
            admission.end(error)
            raise
        admission.end(None)

    def _run(self, asked: Asked, ticket: Ticket | None) -> None:
        relay, choice = asked.relay, asked.choice
        if self._guard:
            self._guard.watch(relay)
        if self._cache:
            self._cache.run(asked, lambda: self._attempts.run(relay, choice, ticket))
        else:
            self._attempts.run(relay, choice, ticket)


def _people(generation: Generation) -> People | None:
    """People's keys, which take the place of the master key's gate: it is one of them."""
    config = generation.config
    if not config.keys:
        return None
    from proxy.gates.people import People

    generation.keys = people = People(config.master_key, config.system.open_to, generation.cerbere, config.keys)
    return people


def _limits(generation: Generation) -> Limits | None:
    if not generation.config.counts:
        return None
    from proxy.gates.limits import Limits

    return Limits(generation.config, generation.state)


def _guard(generation: Generation) -> Guard | None:
    rules = generation.config.guard
    if rules is None:
        return None
    from proxy.config import find_mapper
    from proxy.gates.guard import Guard

    return Guard(rules.deny, rules.redact, lambda name: find_mapper(name, generation.mappers))


def _cache(generation: Generation, before: Traffic | None) -> Cache | None:
    config = generation.config
    if not any(target.cache for target in config.targets.values()):
        return None
    from proxy.gates.cache import Cache, open_store

    if before is not None and before._cache is not None and before._generation.config.cache == config.cache:
        return Cache(config, before._cache.store)
    return Cache(config, open_store(config.cache.store, lambda: generation.state))
