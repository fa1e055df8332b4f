"""Where a call goes: the target, the endpoint, the backend's URL. Decided from tables that are built once per generation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

from proxy.config import Config, Entry, ModelRule, Pool, Target
from proxy.dialects import compile_path, load
from proxy.errors import BadRequest, Refused

BEHIND_HOST = re.compile(r"[/?].*", re.DOTALL)  # urlsplit raises on odd hosts
NAME_LIMIT = 512  # characters of what a placeholder stands for; a body can hold a model of any length
VERSION = re.compile(r"/v[0-9]+(?:alpha|beta)?[0-9]*(?=/|$)")


def is_safe(path: str) -> bool:
    """Whether a path may be matched by a pattern: no way of writing `..`, `//`, `;` or `\\` in it, however often encoded."""
    if not path.startswith("/"):
        return False
    for _ in range(3):
        if any(part in (".", "..") for part in path.split("/")) or "//" in path or ";" in path or "\\" in path or "\0" in path:
            return False
        decoded = unquote(path)
        if decoded == path:
            return True
        path = decoded
    return False


def split_target(raw: str) -> tuple[str, str]:
    """A request line's target → (path, query). Absolute URLs keep their path: the host that a client names is never used."""
    if "://" in raw and not raw.startswith("/"):
        found = BEHIND_HOST.search(raw, raw.index("://") + 3)
        raw = found[0] if found else "/"
        raw = raw if raw.startswith("/") else "/" + raw
    path, _, query = raw.partition("?")
    return path, query


def with_version(url: str, dialect: str) -> str:
    """A target's url as the base of its dialect's paths: with the version segment, not twice."""
    api = load(dialect)
    url = url.rstrip("/")
    path = urlsplit(url).path
    if url.endswith(api.version) or (api.based and path):
        return url
    return url + api.version


def joined(url: str, path: str) -> str:
    """url + path, for a path that the client wrote: a version segment that both have is not doubled."""
    url = url.rstrip("/")
    version = VERSION.match(path)
    if version and urlsplit(url).path.endswith(version[0]):
        path = path[version.end() :]
    return url + path


def fill(path: str, params: Mapping[str, str], model: str | None) -> str:
    """An upstream path with its {placeholders} and its `*` filled in; {model} is the name that goes up."""
    if "{" not in path and "*" not in path:
        return path
    values = {**params, **({"model": model} if model else {})}
    for name, value in values.items():
        if f"{{{name}}}" in path:
            if len(value) > NAME_LIMIT or not is_safe("/" + value) or not value.isprintable():
                raise BadRequest(f"{name} is no name that a path can hold", param=name)
            path = path.replace(f"{{{name}}}", quote(value, safe="/:@-._~"))
    path, mark, query = path.partition("?")  # Azure's urls have one
    if path.endswith("/*"):
        path = path[:-1] + params.get("rest", "")
    return path + mark + query


E = TypeVar("E")


@dataclass
class Paths(Generic[E]):
    """A target's endpoints by path. Exact keys first, then patterns, the longer literal beginning first."""

    exact: dict[str, list[tuple[Entry, E]]] = field(default_factory=dict)
    patterns: list[tuple[re.Pattern[str], Entry, E]] = field(default_factory=list)

    @classmethod
    def of(cls, found: list[tuple[Entry, E]]) -> Paths[E]:
        """A key serves with and without a leading /v1, unless the other form is a key too."""
        paths = cls()
        keys = {(entry.method, entry.key) for entry, _ in found}
        for entry, endpoint in found:
            other = entry.key[3:] if entry.key.startswith("/v1/") else "/v1" + entry.key
            alone = (entry.method, other) in keys or entry.key in ("/", "/*")
            for form in [entry.key] if alone else [entry.key, other]:
                if "{" in form or form.endswith("/*"):
                    paths.patterns.append((compile_path(form), entry, endpoint))
                else:
                    paths.exact.setdefault(form, []).append((entry, endpoint))
        paths.patterns.sort(key=lambda item: -len(item[0].pattern.partition("(?P")[0]))
        for form, methods in paths.exact.items():  # a key as it is written beats its other form
            methods.sort(key=lambda item: (item[0].key != form, item[0].method is None))
        return paths

    def entries(self) -> list[tuple[Entry, E]]:
        """Every entry once, whatever the forms of its key."""
        found = [pair for pairs in self.exact.values() for pair in pairs] + [(entry, each) for _, entry, each in self.patterns]
        return list({id(endpoint): (entry, endpoint) for entry, endpoint in found}.values())

    def find(self, method: str, path: str) -> tuple[E, Mapping[str, str]] | None:
        """The endpoint of a request and what its placeholders stand for."""
        for entry, endpoint in self.exact.get(path, ()):
            if entry.method is None or entry.method == method:
                return endpoint, {}
        if self.patterns and is_safe(path):
            for pattern, entry, endpoint in self.patterns:
                if (entry.method is None or entry.method == method) and (match := pattern.fullmatch(path)):
                    return endpoint, {k: v if k == "rest" else unquote(v) for k, v in match.groupdict().items()}
        return None


class Choice(NamedTuple):
    """A target or a pool, and what the model is called there."""

    target: str
    model: str | None = None  # sent instead of the client's


class Router:
    """Names → targets: the `target` header, else `route`, else `models`, else `default`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._known: Mapping[str, Target | Pool] = {**config.targets, **config.pools}
        self._routes = sorted(
            ((target.route.rstrip("/"), name) for name, target in self._known.items() if target.route),
            key=lambda pair: -len(pair[0]),
        )
        self._exact = {rule.pattern: rule for rule in config.models if "*" not in rule.pattern}
        self._wild = [(rule.pattern.split("*"), rule) for rule in config.models if "*" in rule.pattern]
        self.needs_model = bool(config.models)

    def by_route(self, path: str) -> tuple[str | None, str]:
        """The target whose `route` a path begins with, and the path behind it."""
        for route, name in self._routes:
            if path == route or path.startswith(route + "/"):
                return name, path[len(route) :] or "/"
        return None, path

    def named(self, name: str) -> Target | Pool:
        """A target or a pool. Raises Refused (404) when there is none of that name."""
        if name == "default":
            name = self._config.default
        target = self._known.get(name)
        if target is None:
            raise Refused(f"there is no target {name!r}", status=404, code="target_not_found", param="target")
        return target

    def rule(self, model: str) -> ModelRule | None:
        """The `models` entry for a requested name: exact, else the first pattern that fits."""
        return self._exact.get(model) or next((rule for parts, rule in self._wild if fits(parts, model)), None)

    def choose(self, header: str | None, routed: str | None, model: str | None) -> Choice:
        """Raises Refused (404) for a target that is not there."""
        if header is not None:
            target = self.named(header)
            return Choice(target.name, target.model)
        if routed is not None:
            return Choice(routed, self._known[routed].model)
        rule = self.rule(model) if model and self.needs_model else None
        if rule:
            target = self.named(rule.target)
            return Choice(target.name, rule.model or target.model)
        target = self.named(self._config.default)
        return Choice(target.name, target.model)

    def aliases(self, target: str) -> list[str]:
        """The names without `*` that `models` sends to a target, or to a pool that it is in."""
        names = {target, *(pool.name for pool in self._config.pools.values() if target in pool.members)}
        return [rule.pattern for rule in self._exact.values() if self.named(rule.target).name in names]


def fits(parts: list[str], name: str) -> bool:
    """Whether a name is those parts with anything in between: in linear time, names being the client's to choose."""
    first, *middle, last = parts
    at, end = len(first), len(name) - len(last)
    if at > end or not name.startswith(first) or not name.endswith(last):
        return False
    for part in middle:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def model_in(body: Any, params: Mapping[str, str]) -> str | None:
    """The model that a request asks for: in its path, else in its body."""
    if "model" in params:
        return params["model"]
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None
