"""Everything that was loaded, as one object that never changes: a call takes it once, a reload makes another.

Built from the configuration and the user's functions: gates, sessions, endpoints. What `dialect` expands to is built when the
first client of an API asks, so that nothing is imported that nobody uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter

from proxy import dialects
from proxy.config import Config, Entry, Target, find_mapper, find_prompter
from proxy.expand import expand
from proxy.gates import cerbere, keys
from proxy.routing import Paths, Router, is_safe, joined, with_version
from proxy.translate import Endpoint, Step

if TYPE_CHECKING:
    from proxy.losses import Ledger
    from proxy.traffic import Traffic

Functions = Mapping[str, Any]
PASSED = Entry(key="/*", origin="route")


@dataclass
class Place:
    """A target at work: its session, and its endpoints by path."""

    target: Target
    session: requests.Session
    adapter: BaseAdapter
    aliases: list[str]
    mapping: Paths[Endpoint]
    passes: bool  # whatever the mapping does not name is passed through below the url
    expanded: dict[str, Paths[Endpoint]] = field(default_factory=dict)
    static_headers: Mapping[str, str] = field(default_factory=dict)


class Generation:
    """See the module. `mappers` and `prompters` are the user's modules' names; built-in ones are found by name."""

    def __init__(self, config: Config, mappers: Functions, prompters: Functions, before: Generation | None = None) -> None:
        self.config = config
        self._mappers, self._prompters = mappers, prompters
        kept = before.cerbere if before is not None and before.config.cerbere == config.cerbere else None
        self.cerbere: cerbere.Gate = kept or cerbere.Gate(config.cerbere)  # bans outlive a reload
        self.keys = keys.Keys(config.master_key, config.system.open_to, self.cerbere)
        self.router = Router(config)
        self._ledger: Ledger | None = None
        self.traffic: Traffic | None = None
        self.own_paths: tuple[str, ...] = ("/mooltiproxy/",)  # prefixes that pages.py answers
        self.stamps: Mapping[str, tuple[int, int] | None] = {}  # of the files that it was read from, before they were
        self.places = {name: self._place(target) for name, target in config.targets.items()}

    def find(self, place: Place, front: str, method: str, path: str) -> tuple[Endpoint, Mapping[str, str]] | None:
        """The endpoint of a request at a target, and its placeholders. `mapping` wins over `dialect`, that over `route`."""
        found = place.mapping.find(method, path)
        if found is None and place.target.dialect:
            paths = place.expanded.get(front)
            if paths is None:  # two calls at once build the same, and both take what is kept: the ledger knows endpoints by id
                paths = place.expanded.setdefault(front, self.expansion(place, front))
            found = paths.find(method, path)
        if found is None and place.passes and is_safe(path):
            return self._endpoint(place.target, PASSED, joined(place.target.url, path), "", []), {}
        return found

    def expansion(self, place: Place, front: str) -> Paths[Endpoint]:
        """What the target's `dialect` is shorthand for, to the clients of one API."""
        target = place.target
        entries = expand(target, front, self.has_mapper, bool(place.aliases))
        return Paths.of([(entry, self._dialect_endpoint(target, entry, place.aliases)) for entry in entries])

    def serves_root(self, method: str) -> bool:
        """Whether `/` of the default target is mapped: if not, a bare look at it is answered without a key."""
        place = self.places[self.config.default]
        return place.passes or place.mapping.find(method, "/") is not None

    def has_mapper(self, name: str) -> bool:
        """Whether a mapper of that name can be called: the user's or a built-in one."""
        return self._mapper(name) is not None

    @property
    def ledger(self) -> Ledger:
        """What translations lose; made when the first one asks."""
        if self._ledger is None:
            from proxy.losses import Ledger

            self._ledger = Ledger()
        return self._ledger

    def close(self) -> None:
        """Ends the idle connections to the backends."""
        for place in self.places.values():
            place.session.close()

    # --- building
    def _place(self, target: Target) -> Place:
        aliases = self.router.aliases(target.name)
        session = _session(target, self.config)
        pairs = [(entry, self._mapping_endpoint(target, entry, aliases)) for entry in target.mapping]
        passes = not target.mapping and not target.dialect
        adapter = session.get_adapter(target.url)
        return Place(target, session, adapter, aliases, Paths.of(pairs), passes, static_headers=_static_headers(target))

    def _mapping_endpoint(self, target: Target, entry: Entry, aliases: list[str]) -> Endpoint:
        url = target.url.rstrip("/")
        path = entry.path if entry.path is not None else entry.key
        stream_path = entry.stream_path if entry.stream_path is not None else path
        return self._endpoint(target, entry, url + path, url + stream_path, aliases)

    def _dialect_endpoint(self, target: Target, entry: Entry, aliases: list[str]) -> Endpoint:
        base = with_version(target.url, target.dialect or "openai")
        path = entry.path or ""
        stream_path = entry.stream_path or path
        if target.azure_api_version:
            return self._endpoint(target, entry, _azure(target, path), _azure(target, stream_path), aliases)
        return self._endpoint(target, entry, base + path, base + stream_path, aliases, base + (entry.before or ""))

    def _endpoint(
        self, target: Target, entry: Entry, url: str, stream_url: str, aliases: list[str], before_url: str = ""
    ) -> Endpoint:
        prompter = entry.prompter or target.prompter
        template = entry.template or target.template
        given = {"path": entry.path, "in": list(entry.in_), "out": list(entry.out), "stream_path": entry.stream_path}
        cfg: dict[str, Any] = {name: value for name, value in given.items() if value}
        cfg.update(key=entry.key, aliases=aliases, url=target.url)
        if template:
            cfg["template"] = dict(self.config.templates[template])
        if prompter:
            cfg["prompter"] = self._prompter(prompter)
        inward, outward, stream = (self._chain(names) for names in (entry.in_, entry.out, entry.stream))
        functions = [step.function for step in (*inward, *outward, *stream)] + ([cfg["prompter"]] if prompter else [])
        return Endpoint(
            target=target,
            entry=entry,
            url=url,
            stream_url=stream_url,
            inward=inward,
            outward=outward,
            stream=stream,
            own=not all(function.__module__.startswith("proxy.") for function in functions),
            answer=self._chain((entry.answer,))[0] if entry.answer else None,
            before_url=before_url,
            before=self._chain((entry.before_in or "", entry.before_out or "")) if entry.before else (),
            cfg=cfg,
        )

    def _chain(self, names: tuple[str, ...]) -> tuple[Step, ...]:
        steps = []
        for name in names:
            function = self._mapper(name)
            if function is None:
                raise KeyError(name)  # the configuration's check knows every name a person can write
            steps.append(Step(name, function))
        return tuple(steps)

    def _mapper(self, name: str) -> Callable[..., Any] | None:
        return find_mapper(name, self._mappers)

    def _prompter(self, name: str) -> Callable[..., Any]:
        prompter = find_prompter(name, self._prompters)
        if prompter is None:
            raise KeyError(name)
        return prompter


def _azure(target: Target, path: str) -> str:
    """Azure OpenAI's URL of an operation: below the deployment where it has a model, else below /openai."""
    deployment = target.azure_deployment or "{model}"
    below = "" if path.startswith(("/models", "/files", "/batches", "/*")) else f"/deployments/{deployment}"
    base = target.url.rstrip("/")
    base = base if base.endswith("/openai") else base + "/openai"
    return f"{base}{below}{path}?api-version={target.azure_api_version}"


def _session(target: Target, config: Config) -> requests.Session:
    """A session of its own per target: cookies off, the environment not asked, the adapter that the url's scheme wants."""
    session = requests.Session()
    session.trust_env = False
    session.adapters.clear()
    scheme = urlsplit(target.url).scheme
    if scheme == "demo":
        from proxy.adapters.demo import Demo

        session.mount("demo://", Demo())
    elif target.proxy:
        from proxy.adapters.outbound import Outbound

        connect_s = config.system.deadlines.connect
        session.mount(scheme + "://", Outbound(target.proxy, connect_s, target.verify, target.cert))
    else:
        from proxy.adapters.exchange import Exchange

        deadlines = config.system.deadlines
        session.mount(scheme + "://", Exchange(deadlines.connect, deadlines.header, target.verify, target.cert))
    return session


def _static_headers(target: Target) -> dict[str, str]:
    """What every request to the target carries: its host, its key in the style it wants, what its API and its entry add."""
    headers = {"host": urlsplit(target.url).netloc.rpartition("@")[2]}
    if target.dialect:
        headers.update(dialects.load(target.dialect).headers)
    if target.key and target.auth == "bearer":
        headers["authorization"] = f"Bearer {target.key}"
    elif target.key and target.auth not in ("none", "passthrough"):
        headers[target.auth] = target.key
    headers.update({name.lower(): value for name, value in target.headers.items()})
    return headers
