"""Everything that was loaded, as one object that never changes: a call takes it once, a reload makes another.

Built from the configuration and the user's functions: gates, adapters, endpoints. What `dialect` expands to is built when the
first client of an API asks, so that nothing is imported that nobody uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from proxy.config import Config, Target
from proxy.endpoints import Endpoints, Functions
from proxy.gates import cerbere, keys
from proxy.routing import Paths, Router, is_safe
from proxy.translate import Endpoint
from proxy.upstream import adapter_of, is_plain, static_headers

if TYPE_CHECKING:
    from requests.adapters import BaseAdapter

    from proxy.losses import Ledger
    from proxy.records import Records
    from proxy.state import State
    from proxy.traffic import Traffic


@dataclass
class Place:
    """A target at work: its adapter, and its endpoints by path."""

    target: Target
    config: Config
    aliases: list[str]
    mapping: Paths[Endpoint]
    passes: bool  # whatever the mapping does not name is passed through below the url
    expanded: dict[str, Paths[Endpoint]] = field(default_factory=dict)
    static_headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def adapter(self) -> BaseAdapter:
        """Answers the target's url. Made when it is first asked for, as requests, which it takes, is a third of the start."""
        return adapter_of(self.target, self.config)


class Generation:
    """See the module. `mappers` and `prompters` are the user's modules' names; built-in ones are found by name."""

    def __init__(self, config: Config, mappers: Functions, prompters: Functions, before: Generation | None = None) -> None:
        self.config = config
        self.mappers, self.prompters = mappers, prompters
        kept = before.cerbere if before is not None and before.config.cerbere == config.cerbere else None
        self._began: Config = before._began if before is not None else config  # where the state is takes a restart to change
        self._state: State | None = before._state if before is not None else None
        self.cerbere: cerbere.Gate = kept or self._gate()  # bans outlive a reload
        self.keys = keys.Keys(config.master_key, config.system.open_to, self.cerbere)
        self.router = Router(config)
        self._ledger: Ledger | None = None
        self.traffic: Traffic | None = None
        self.records = self._records()
        self.own_paths = ("/mooltiproxy/", *(["/console/"] if config.console else []))  # prefixes that pages.py answers
        self.own_pages = config.records.pages if config.records else frozenset()  # paths that it answers, too
        self.stamps: Mapping[str, tuple[int, int] | None] = {}  # of the files that it was read from, before they were
        self._endpoints = Endpoints(config, mappers, prompters)
        self.places = {name: self._place(target) for name, target in config.targets.items()}
        if config.traffic:
            from proxy.traffic import Traffic

            self.traffic = Traffic(self, before.traffic if before else None)

    def find(self, place: Place, front: str, method: str, path: str) -> tuple[Endpoint, Mapping[str, str]] | None:
        """The endpoint of a request at a target, and its placeholders. `mapping` wins over `dialect`, that over `route`."""
        found = place.mapping.find(method, path)
        if found is None and place.target.dialect:
            paths = place.expanded.get(front)
            if paths is None:  # two calls at once build the same, and both take what is kept: the ledger knows endpoints by id
                paths = place.expanded.setdefault(front, self.expansion(place, front))
            found = paths.find(method, path)
        if found is None and place.passes and is_safe(path):
            return self._endpoints.passed(place.target, path), {}
        return found

    def expansion(self, place: Place, front: str) -> Paths[Endpoint]:
        """What the target's `dialect` is shorthand for, to the clients of one API."""
        return self._endpoints.of_dialect(place.target, front, place.aliases)

    def serves_root(self, method: str) -> bool:
        """Whether `/` of the default target is mapped: if not, a bare look at it is answered without a key."""
        places = [self.places[name] for name in self.config.members(self.config.default)]
        return any(place.passes or place.mapping.find(method, "/") is not None for place in places)

    @property
    def ledger(self) -> Ledger:
        """What translations lose; made when the first one asks."""
        if self._ledger is None:
            from proxy.losses import Ledger

            self._ledger = Ledger()
        return self._ledger

    @property
    def state(self) -> State:
        """What workers and machines share: opened when a generation that needs it is built; it outlives reloads."""
        if self._state is None:
            from proxy.state.open import open_state

            began, budgets = self._began, any(key.budget for key in self.config.keys.values())
            self._state = open_state(began.state, began.system.workers, began.on_state_loss, budgets)
        return self._state

    def end(self) -> None:
        """The process ends: what was spent is kept, slots come back."""
        if self.traffic is not None:
            self.traffic.end()
        if self._state is not None:
            self._state.close()

    def close(self) -> None:
        """Ends the idle connections to the backends, and has the records written."""
        if self.records is not None:
            self.records.close()
        for place in self.places.values():
            if "adapter" in vars(place):
                place.adapter.close()

    @property
    def workers(self) -> int:
        """How many processes there are: as many as were wanted at the start, whatever a reload has read since."""
        return self._began.system.workers

    # --- building
    def _gate(self) -> cerbere.Gate:
        if self._began.state == "memory" and self._began.system.workers == 1:
            return cerbere.Gate(self.config.cerbere)
        from proxy.gates.bans import gate

        return gate(self.config, self.state)

    def _records(self) -> Records | None:
        if not self.config.records:
            return None
        from proxy.records import Records

        return Records(self.config, self._began)

    def _place(self, target: Target) -> Place:
        aliases = self.router.aliases(target.name)
        mapping = self._endpoints.of_mapping(target, aliases)
        passes = not target.mapping and not target.dialect
        place = Place(target, self.config, aliases, mapping, passes, static_headers=static_headers(target))
        if not is_plain(target):
            place.adapter = adapter_of(target, self.config)  # which tells of what is wrong
        return place
