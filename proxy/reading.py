"""One reading of config.yaml: what the schema cannot know, names above all, and the frozen dataclasses that come out."""

from __future__ import annotations

import importlib
import inspect
import os.path
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from voluptuous import Invalid

from proxy import dialects
from proxy.config import (
    CERTIFICATE,
    PRIVATE_KEY,
    Cerbere,
    Config,
    Deadlines,
    Entry,
    Functions,
    Log,
    ModelRule,
    System,
    Target,
    find_mapper,
    find_prompter,
)
from proxy.errors import ConfigError
from proxy.kinds import SECRET, listed, meant
from proxy.schema import PLACEHOLDER, TAGS, endpoint, validate
from proxy.source import Path, Source, read_yaml

MAKE_A_KEY = (
    "there is no master key: put `MOOLTIPROXY_KEY=…` into .env or export it; "
    """this makes a good one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"""
)
PROMPTS = "proxy.prompts"  # imported when a prompter is named
OWN_PATHS = ("/healthz", "/mooltiproxy", "/mooltiproxy/reload")
NOT_SETTABLE = frozenset(
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"]
)  # headers that frame a message
OPERATION = re.compile(
    r"/(?:(?:(?:chat/)?completions|messages|responses|embeddings)/?|models/[^/]+:(?:g|streamG)enerateContent)\Z"
)  # at the end of a url that should be an API's base
TAKE_MESSAGES = frozenset(["openai", "responses", "anthropic", "gemini", "ollama"])  # dialects that need no prompt


def _built_in_mappers() -> Iterable[str]:
    """For a "did you mean" only: it imports every dialect."""
    modules = (importlib.import_module(f"{dialects.__name__}.{name}") for name in dialects.names())
    return {name for module in modules for name in vars(module) if dialects.MAPPER_NAME.fullmatch(name)}


Given = Mapping[str, Any]


def _is_demo(target: Given) -> bool:
    return str(target.get("url")).startswith("demo:")


KEY_HEADERS = {"bearer": "authorization"}  # the others are called as their header
# Where to say it, what must be sound to say it at all, when it is wrong, and what to say.
RULES: tuple[tuple[str, tuple[str, ...], Callable[[Given], bool], str], ...] = (
    (
        "",
        ("url", "mapping", "dialect", "route"),
        lambda t: not (t.get("mapping") or t.get("dialect") or t.get("route") or _is_demo(t)),
        "needs a `mapping` (path by path), a `dialect` (a whole API) or a `route` (all below it, passed through)",
    ),
    (
        "dialect",
        ("url", "dialect"),
        lambda t: _is_demo(t) and t.get("dialect", "openai") != "openai",
        "a demo:// target speaks openai",
    ),
    (
        "cert",
        ("url", "cert"),
        lambda t: "cert" in t and not t.get("url", "").startswith("https:"),
        "a client certificate needs an https:// url",
    ),
    (
        "azure",
        ("azure", "dialect"),
        lambda t: "azure" in t and t.get("dialect") != "openai",
        "goes with `dialect: openai` only",
    ),
    (
        "auth",
        ("auth", "key", "envkey"),
        lambda t: t.get("auth") in ("none", "passthrough") and ("key" in t or "envkey" in t),
        "sends no key of ours: remove `key` and `envkey`, or send it as bearer, x-api-key, api-key or x-goog-api-key",
    ),
)


def read(path: str, environ: Mapping[str, str], mappers: Functions, prompters: Functions) -> Config:
    """See `proxy.config.load`."""
    reading = _Reading(read_yaml(path), environ, mappers, prompters)
    config = reading.config()
    if reading.faults:
        raise ConfigError(reading.listed())
    return config


class _Reading:
    """One load: what is sound of a file, and the faults found so far."""

    def __init__(self, source: Source, environ: Mapping[str, str], mappers: Functions, prompters: Functions) -> None:
        self.source, self.environ, self.mappers, self.prompters = source, environ, mappers, prompters
        self.sound, faults = validate(source.data)
        self.faults = [*source.faults, *faults]
        self.warnings: list[str] = []
        self.templates = {name: {**dict.fromkeys(TAGS, ""), **tags} for name, tags in self._section("templates").items()}
        self.target_names = [name for name in self._written("targets") if name != "default"]

    def config(self) -> Config:
        """The configuration, which is worth something when there are no faults now."""
        targets = {
            name: self._target(("targets", name), name, target)
            for name, target in self._section("targets").items()
            if name != "default"
        }
        self._routes(targets)
        system = self._system()
        return Config(
            system=system,
            cerbere=Cerbere(**self._section("cerbere")),
            targets=targets,
            default=self._default(),
            models=tuple(self._rule(pattern, rule) for pattern, rule in self._section("models").items()),
            templates=self.templates,
            file=self.source.file,
            master_key=self._master_key(system),
            warnings=tuple(self.warnings),
        )

    def listed(self) -> list[str]:
        """The faults as lines, in the order of the file."""
        return [self.source.fault(*fault) for fault in sorted(self.faults, key=lambda fault: self.source.line(fault[0]))]

    def _section(self, name: str) -> dict[str, Any]:
        section: dict[str, Any] = self.sound.get(name, {})
        return section

    def _written(self, name: str) -> list[str]:
        """The names in a section as they stand in the file, also of what is faulty."""
        section = self.source.data.get(name) if isinstance(self.source.data, dict) else None
        return list(section) if isinstance(section, dict) else []

    def _fault(self, path: Path, message: str) -> None:
        self.faults.append((path, message))

    def _warn(self, path: Path, message: str) -> None:
        self.warnings.append(self.source.fault(path, message))

    def _is_faulty(self, path: Path) -> bool:
        """Whether what stands there is faulty, or another name was written that probably meant it."""
        guess = f"is not known here; did you mean {path[-1]!r}?"
        return any(fault[: len(path)] == path or (fault[:-1], said) == (path[:-1], guess) for fault, said in self.faults)

    # --- system
    def _system(self) -> System:
        given = dict(self._section("system"))
        limits = given.pop("limits", {})
        names = {"body": "body_limit", "connections": "connections"}
        system = System(
            **{
                **given,
                "deadlines": Deadlines(**given.get("deadlines", {})),
                "log": Log(**given.get("log", {})),
                **{names[name]: limit for name, limit in limits.items()},
            }
        )
        if system.ssl:
            for file in (CERTIFICATE, PRIVATE_KEY):
                self._file(("system", "ssl"), file)
        if system.client_ca:
            self._file(("system", "client_ca"), system.client_ca)
            if not system.ssl and not self._is_faulty(("system", "ssl")):
                self._fault(("system", "client_ca"), "needs `ssl: true`")
        if any(network.prefixlen == 0 for network in system.open_to):
            self._warn(("system", "open_to"), "everybody can use this proxy without a key")
        return system

    def _master_key(self, system: System) -> str:
        path, given = ("system", "masterkey"), self.environ.get("MOOLTIPROXY_KEY")
        if system.masterkey:
            beats = " It beats MOOLTIPROXY_KEY, which is set too." if given is not None else ""
            self._warn(path, f"security: a key in a file is read by whoever reads the file; MOOLTIPROXY_KEY is better.{beats}")
            return system.masterkey
        if self._is_faulty(path):
            return ""
        if given is None:
            self._fault(path, MAKE_A_KEY)
            return ""
        return self._variable(path, "MOOLTIPROXY_KEY")

    def _variable(self, path: Path, name: str) -> str:
        """A key that is in the environment; its value stays out of the faults."""
        value = self.environ.get(name)
        try:
            if value is None:
                raise Invalid("is not set: export it, or put it into .env")
            return str(SECRET.check(value))
        except Invalid as fault:
            self._fault(path, f"the environment variable {name} {fault.msg}")
            return ""

    def _file(self, path: Path, file: str) -> None:
        if not os.path.isfile(file):
            self._fault(path, f"there is no file {file!r}")

    # --- targets
    def _default(self) -> str:
        name: str | None = self._section("targets").get("default")
        if name is not None and name not in self.target_names:
            self._no_target(("targets", "default"), name)
        return name or ""

    def _no_target(self, path: Path, name: str) -> None:
        names = [repr(name) for name in self.target_names]
        there = f"; there is {listed(names, 'and')}" if names else "; there is none at all"
        self._fault(path, f"there is no target {name!r}{meant(name, self.target_names) or there}")

    def _rule(self, pattern: str, given: Given) -> ModelRule:
        path = ("models", pattern)
        target = given.get("target", "default")
        if target == "default":
            target = self._section("targets").get("default", "")
        elif target not in self.target_names:
            place = (*path, "target")
            self._no_target(place if place in self.source.lines else path, target)
        return ModelRule(pattern, target, given.get("model"), self.source.line(path))

    def _target(self, path: Path, name: str, given: Given) -> Target:
        for where, needed, is_wrong, message in RULES:
            if not any(self._is_faulty((*path, key)) for key in needed) and is_wrong(given):
                self._fault((*path, where) if where else path, message)
        key, key_name = self._key(path, given)
        dialect = "openai" if _is_demo(given) else given.get("dialect")
        azure = given.get("azure", {})
        auth = given.get("auth") or ("api-key" if azure else dialects.load(dialect).auth if dialect else "bearer")
        self._functions(path, given)
        if dialect:
            self._template_for(path, given, {})
            self._without_effect(path, given, dialect)
        self._headers((*path, "headers"), given.get("headers", {}), KEY_HEADERS.get(auth, auth) if key else None)
        self._files(path, given)
        plain = ("headers", "model", "route", "prompter", "template", "timeout", "verify", "cert", "proxy")
        plain_too = ("on_loss", "system_policy")
        return Target(
            name=name,
            url=given.get("url", ""),
            key=key,
            key_name=key_name,
            auth=auth,
            dialect=dialect,
            mapping=tuple(self._entry(path, key, entry, given) for key, entry in given.get("mapping", {}).items()),
            preserve_method=given.get("preserveMethod", False),
            azure_api_version=azure.get("api_version"),
            azure_deployment=azure.get("deployment"),
            line=self.source.line(path),
            dialect_line=self.source.line((*path, "dialect")) if "dialect" in given else 0,
            **{name: given[name] for name in (*plain, *plain_too) if name in given},
        )

    def _without_effect(self, path: Path, given: Given, dialect: str) -> None:
        """Warn of what a target with a dialect says in vain."""
        url = given.get("url", "")
        operation = OPERATION.search(url)
        if operation:
            self._warn((*path, "url"), f"ends in an operation: the base is {url[: operation.start()]}")
        entries = given.get("mapping", {}).values()
        is_mapped = any(isinstance(entry, dict) and entry.get("in") for entry in entries)  # by what may ask for a prompt
        for name in ("prompter", "template"):
            if name in given and dialect in TAKE_MESSAGES and not is_mapped:
                self._warn((*path, name), f"has no effect: {dialect} takes messages, not a prompt")

    def _key(self, path: Path, given: Given) -> tuple[str | None, str | None]:
        name = given.get("envkey")
        if "key" in given:
            beats = f" It beats envkey: {name}." if name else ""
            self._warn((*path, "key"), f"security: a key in a file is read by whoever reads the file; envkey is better.{beats}")
            return given["key"], "key"
        return (self._variable((*path, "envkey"), name), name) if name else (None, None)

    def _headers(self, path: Path, headers: Mapping[str, str], of_key: str | None) -> None:
        seen = set()
        for name in headers:
            lower = name.lower()
            if lower in NOT_SETTABLE:
                self._fault((*path, name), "is set by the proxy itself")
            if lower == of_key:
                self._fault((*path, name), "carries this target's key already: with `auth: none` and no key it is yours")
            if lower in seen:
                self._fault((*path, name), "stands twice, in capitals and small letters")
            seen.add(lower)

    def _files(self, path: Path, given: Given) -> None:
        if given.get("verify") is False:
            self._warn((*path, "verify"), "security: any certificate is taken for the backend's")
        elif isinstance(given.get("verify"), str):
            self._file((*path, "verify"), given["verify"])
        for index, file in enumerate(given.get("cert", ())):
            self._file((*path, "cert", index), file)

    def _routes(self, targets: Mapping[str, Target]) -> None:
        taken = dict.fromkeys(OWN_PATHS, "the proxy itself")
        for name, target in targets.items():
            if target.route and target.route in taken:
                self._fault(("targets", name, "route"), f"{target.route} belongs to {taken[target.route]} already")
            elif target.route:
                taken[target.route] = f"the target {name!r}"

    # --- endpoints
    def _entry(self, target: Path, key: str, given: Any, of: Given) -> Entry:
        path = (*target, "mapping", key)
        given = {"path": given} if isinstance(given, str) else given or {}
        method, own = endpoint(key)
        if own in OWN_PATHS:
            self._fault(path, "is answered by the proxy itself")
        for name in ("path", "stream_path"):
            self._upstream_path((*path, name), own, given.get(name), of.get("url", ""))
        for name in ("in", "out", "stream"):
            for index, mapper in enumerate(given.get(name, ())):
                place: Path = (*path, name, index)
                self._mapper(place if place in self.source.lines else place[:-1], mapper)
        self._functions(path, given)
        if given.get("in"):
            self._template_for(path, given, of)
        return Entry(
            key=own,
            method=method,
            path=_rooted(given.get("path")),
            in_=given.get("in", ()),
            out=given.get("out", ()),
            stream=given.get("stream", ()),
            stream_path=_rooted(given.get("stream_path")),
            prompter=given.get("prompter"),
            template=given.get("template"),
            line=self.source.line(path),
        )

    def _upstream_path(self, path: Path, key: str, upstream: str | None, url: str) -> None:
        """The url and the path are joined as they are: what comes out must still be below the url."""
        if upstream is None:
            return
        path = path if path in self.source.lines else path[:-1]  # `/models: /v1/models` has no `path:`
        if url and upstream and upstream[0] not in "/?:" and not url.endswith("/"):
            self._fault(path, f"must begin with /, as it is appended to the url{meant(upstream, ['/' + upstream])}")
        if key.endswith("/*") and not upstream.endswith("/*"):
            self._fault(path, "must end in /* as its key does, for what the * matched")
        elif "*" in upstream.removesuffix("/*") or (upstream.endswith("/*") and not key.endswith("/*")):
            self._fault(path, "may hold a * only as /* at its end, and only when its key ends so")
        unknown = set(PLACEHOLDER.findall(upstream)) - {"model", *PLACEHOLDER.findall(key)}
        if unknown:
            self._fault(path, f"{{{min(unknown)}}} is not in its key; only {{model}}, the request's model, need not be")

    def _mapper(self, path: Path, name: str) -> None:
        mapper = find_mapper(name, self.mappers)
        if mapper:
            if not _takes_two(mapper):
                self._fault(path, f"{name!r} in mappers.py must take two arguments: (ip, cfg)")
        elif name in self.mappers:
            self._fault(path, f"{name!r} in mappers.py is no function")
        else:
            guess = _guess(name, self.mappers, _built_in_mappers()) or "; write one in mappers.py"
            self._fault(path, f"no mapper is called {name!r}{guess}")

    def _functions(self, path: Path, given: Given) -> None:
        """The prompter and the template that a target or an endpoint names."""
        template, prompter = given.get("template"), given.get("prompter")
        templates = self._written("templates")
        if template is not None and template not in templates:
            self._fault((*path, "template"), f"there is no template {template!r}{meant(template, templates)}")
        if prompter is not None:
            self._prompter(path, prompter)

    def _prompter(self, path: Path, prompter: str) -> None:
        function = find_prompter(prompter, self.prompters)
        if function:
            if not _takes_two(function):
                self._fault((*path, "prompter"), f"{prompter!r} in prompters.py must take two arguments: (messages, cfg)")
        elif prompter in self.prompters:
            self._fault((*path, "prompter"), f"{prompter!r} in prompters.py is no function")
        else:
            built_in = importlib.import_module(PROMPTS).PROMPTERS
            guess = _guess(prompter, self.prompters, built_in) or "; write one in prompters.py"
            self._fault((*path, "prompter"), f"no prompter is called {prompter!r}{guess}")

    def _template_for(self, path: Path, given: Given, above: Given) -> None:
        """An endpoint takes over its target's prompter and template; fromTemplate cannot do without one."""
        prompter = given.get("prompter") or above.get("prompter")
        if not prompter or given.get("template") or above.get("template") or self._is_faulty((*path, "template")):
            return
        if find_prompter(prompter, self.prompters) is importlib.import_module(PROMPTS).fromTemplate:
            self._fault((*path, "prompter"), "fromTemplate needs a `template`, one of `templates`")


def _guess(name: str, own: Functions, built_in: Iterable[str]) -> str:
    functions = {known for known, function in own.items() if inspect.isfunction(function)}
    return meant(name, functions.union(built_in))


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def _rooted(path: str | None) -> str | None:
    """A path that relied on the / at the end of its url, as one that does not."""
    return f"/{path}" if path and path[0] not in "/?:" else path
