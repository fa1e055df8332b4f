"""One reading of config.yaml: what the schema cannot know, names above all, and the frozen dataclasses that come out."""

from __future__ import annotations

import importlib
import importlib.util
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
    Aws,
    Cassettes,
    Cerbere,
    Command,
    Config,
    Deadlines,
    Entry,
    Functions,
    Log,
    ModelRule,
    Pool,
    RecordsConfig,
    System,
    Target,
    find_mapper,
    find_prompter,
)
from proxy.errors import ConfigError
from proxy.settings.allowances import Allowances
from proxy.settings.caching import rule_of, store_of
from proxy.settings.engines import command_of, start_of, without
from proxy.settings.kinds import SECRET, listed, meant
from proxy.settings.presets import NODE_RED, TEMPLATES
from proxy.settings.recording import calls_of
from proxy.settings.reporting import faults as report_faults
from proxy.settings.reporting import reports_of
from proxy.settings.schema import PLACEHOLDER, TAGS, endpoint, validate
from proxy.settings.source import Path, Source, read_yaml
from proxy.settings.tries import OF_A_KEY, faults, is_pool, pool_of, tries_of
from proxy.settings.tries import RULES as TRIES_RULES
from proxy.settings.viewing import console_of, mapped_too, watched

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
AWS_HOST = re.compile(r"[/.](?:bedrock-runtime|sagemaker)[a-z-]*\.([a-z]{2}(?:-[a-z]+)+-\d)\.")  # → the region
TAKE_MESSAGES = frozenset(["openai", "responses", "anthropic", "gemini", "ollama", "bedrock"])  # dialects that need no prompt


def _built_in_mappers() -> Iterable[str]:
    """For a "did you mean" only: it imports every dialect."""
    modules = (importlib.import_module(f"{dialects.__name__}.{name}") for name in dialects.names())
    return {name for module in modules for name in vars(module) if dialects.MAPPER_NAME.fullmatch(name)}


Given = Mapping[str, Any]


def _is_demo(target: Given) -> bool:
    return str(target.get("url")).startswith("demo:")


def _is_command(target: Given) -> bool:
    return str(target.get("url")).startswith("command:")


KEY_HEADERS = {"bearer": "authorization"}  # the others are called as their header
# Where to say it, what must be sound to say it at all, when it is wrong, and what to say.
RULES: tuple[tuple[str, tuple[str, ...], Callable[[Given], bool], str], ...] = (
    (
        "",
        ("url", "mapping", "dialect", "route"),
        lambda t: not (t.get("mapping") or t.get("dialect") or t.get("route") or _is_demo(t) or _is_command(t)),
        "needs a `mapping` (path by path), a `dialect` (a whole API) or a `route` (all below it, passed through)",
    ),
    (
        "dialect",
        ("url", "dialect"),
        lambda t: _is_demo(t) and t.get("dialect", "openai") != "openai",
        "a demo:// target speaks openai",
    ),
    (
        "dialect",
        ("url", "dialect"),
        lambda t: _is_command(t) and t.get("dialect", "llamacpp") != "llamacpp",
        "a command:// target speaks llamacpp",
    ),
    (
        "start",
        ("url", "start"),
        lambda t: "start" in t and not str(t.get("url")).startswith("http"),
        "needs an http:// url, which the server listens at",
    ),
    (
        "start",
        ("start",),
        lambda t: "start" in t and not t["start"].get("command"),
        "needs a `command`: a list, the program and its arguments",
    ),
    (
        "start",
        ("start", "proxy"),
        lambda t: "start" in t and "proxy" in t,
        "is a server on this machine, which no outbound proxy leads to: remove `proxy`",
    ),
    (
        "",
        (),
        lambda t: ("start" in t or _is_command(t)) and os.name != "posix",
        "starts programs as process groups, which Windows does not have",
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
        "aws",
        ("aws", "dialect"),
        lambda t: "aws" in t and t.get("dialect") not in ("bedrock", "sagemaker"),
        "goes with `dialect: bedrock` and `dialect: sagemaker` only",
    ),
    (
        "aws",
        ("aws", "key", "envkey", "auth"),
        lambda t: "aws" in t and ("key" in t or "envkey" in t or t.get("auth") in ("none", "passthrough")),
        "has no effect where nothing is signed: remove it, or `key`, `envkey` and `auth`",
    ),
    (
        "dialect",
        ("dialect", "key", "envkey", "auth"),
        lambda t: t.get("dialect") == "sagemaker" and ("key" in t or "envkey" in t or t.get("auth") == "passthrough"),
        "SageMaker takes signed requests alone: remove the key and `auth`",
    ),
    (
        "auth",
        ("auth", *OF_A_KEY),
        lambda t: t.get("auth") in ("none", "passthrough") and any(name in t for name in OF_A_KEY),
        "sends no key of ours: remove `key` and `envkey`, or send it as bearer, x-api-key, api-key or x-goog-api-key",
    ),
    *TRIES_RULES,
)


def read(path: str, environ: Mapping[str, str], mappers: Functions, prompters: Functions) -> Config:
    """See `proxy.config.load`."""
    return read_source(read_yaml(path), environ, mappers, prompters)


def read_source(source: Source, environ: Mapping[str, str], mappers: Functions, prompters: Functions) -> Config:
    """The configuration in a text. Raises ConfigError with all of its faults."""
    reading = _Reading(source, environ, mappers, prompters)
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
        commands = {name: self._command(name, given) for name, given in self._section("commands").items()}
        if any(_is_command(target) for target in self._section("targets").values() if isinstance(target, dict)):
            self.templates = {**TEMPLATES, **self.templates}
        given = {name: target for name, target in self._section("targets").items() if name != "default"}
        written = self._raw("targets")
        shared = {name for name in given if is_pool(written.get(name))}
        pools = {name: self._pool(name, given[name]) for name in shared if "pool" in given[name]}
        self._members = {member for pool in pools.values() for member in pool.members}
        targets = {name: self._target(("targets", name), name, target) for name, target in given.items() if name not in shared}
        self._fallback({**targets, **pools})
        self._routes({**targets, **pools})
        system = self._system()
        console = console_of(self._section("console"))
        if console:
            mapped_too(targets, self._fault)
        records = self._records()
        for path, message in report_faults(records, targets, self.target_names):
            self._fault(path, message)
        return Config(
            system=system,
            cerbere=Cerbere(**self._section("cerbere")),
            targets=targets,
            default=self._default(),
            models=tuple(self._rule(pattern, rule) for pattern, rule in self._section("models").items()),
            templates=self.templates,
            pools=pools,
            file=self.source.file,
            commands=commands,
            master_key=self._master_key(system),
            state=self._state(),
            on_state_loss=self.sound.get("on_state_loss", "allow"),
            **Allowances(self).read(),
            cache=store_of(self._section("cache")),
            records=watched(records, console),
            console=console,
            warnings=tuple(self.warnings),
        )

    def _records(self) -> RecordsConfig | None:
        given = self._section("records")
        kept = Cassettes(**given["cassettes"]) if "cassettes" in given else None
        for index, name in enumerate(kept.targets if kept else ()):
            if name not in self.target_names:
                self._no_target(("records", "cassettes", "targets", index), name)
        records = RecordsConfig(kept, calls_of(given), **reports_of(given))
        return records if records != RecordsConfig() else None

    def _state(self) -> str:
        state: str = self.sound.get("state", "memory")
        if state != "memory" and importlib.util.find_spec("redis") is None:
            self._fault(("state",), "needs the package redis: pip install redis")
        return state

    def listed(self) -> list[str]:
        """The faults as lines, in the order of the file."""
        return [self.source.fault(*fault) for fault in sorted(self.faults, key=lambda fault: self.source.line(fault[0]))]

    def _section(self, name: str) -> dict[str, Any]:
        section: dict[str, Any] = self.sound.get(name, {})
        return section

    def _raw(self, name: str) -> Given:
        """A section as it stands in the file, sound or not; empty when it is none."""
        section = self.source.data.get(name) if isinstance(self.source.data, dict) else None
        return section if isinstance(section, dict) else {}

    def _written(self, name: str) -> list[str]:
        """The names in a section as they stand in the file, also of what is faulty."""
        return list(self._raw(name))

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
        if _is_command(given):
            given = self._with_prompter(path, given)
        dialect = "openai" if _is_demo(given) else given.get("dialect")
        azure = given.get("azure", {})
        auth = given.get("auth") or ("api-key" if azure else dialects.load(dialect).auth if dialect else "bearer")
        self._functions(path, given)
        if dialect:
            self._template_for(path, given, {})
            self._without_effect(path, given, dialect)
        keyed = key or "envkeys" in given or "key_command" in given
        self._headers((*path, "headers"), given.get("headers", {}), KEY_HEADERS.get(auth, auth) if keyed else None)
        names = given.get("envkeys", ()) if key is None else ()
        keys = {name: self._variable((*path, "envkeys"), name) for name in names}
        self._files(path, given)
        plain = ("headers", "model", "route", "prompter", "template", "timeout", "verify", "cert", "proxy")
        plain_too = ("on_loss", "system_policy", "capabilities", "limits")
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
            aws=self._aws(path, given, auth) if dialect and dialects.load(dialect).aws else None,
            start=start_of(given["start"]) if "start" in given else None,
            line=self.source.line(path),
            dialect_line=self.source.line((*path, "dialect")) if "dialect" in given else 0,
            **tries_of(given, keys, name in self._members),
            cache=rule_of(given),
            **{name: given[name] for name in (*plain, *plain_too) if name in given},
        )

    def _command(self, name: str, given: Given) -> Command:
        try:
            command = command_of(name, given)
            for what in without(command):
                self._warn(("commands", name), f"there is no {what}: calls that need it will fail")
            return command
        except Invalid as fault:
            if not self._is_faulty(("commands", name)):
                self._fault(("commands", name), fault.msg)
            return Command(name)

    def _with_prompter(self, path: Path, given: Given) -> Given:
        """What a command:// target says without being told: its API, and the flows' template where it names no prompter."""
        name, written = given["url"].removeprefix("command://"), self._written("commands")
        if name not in written and not self._is_faulty((*path, "url")):
            self._fault((*path, "url"), f"there is no command {name!r}{meant(name, written) or ': write it below `commands`'}")
        ready = {"dialect": "llamacpp", "prompter": "fromTemplate", **given}
        return {"template": NODE_RED, **ready} if ready["prompter"] == "fromTemplate" else ready

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

    def _aws(self, path: Path, given: Given, auth: str) -> Aws | None:
        """How requests to AWS are signed; None where they carry a key, or the client's."""
        try:
            importlib.import_module("botocore")
        except ImportError:
            self._fault((*path, "dialect"), "needs the package botocore: pip install botocore")
        if any(name in given for name in OF_A_KEY) or auth in ("none", "passthrough"):
            return None
        told, found = given.get("aws", {}), AWS_HOST.search(given.get("url", ""))
        region = told.get("region") or (found[1] if found else "")
        if not region and not any(self._is_faulty((*path, name)) for name in ("url", "aws")):
            self._fault(path, "needs `aws: {region: …}`: the url does not tell the region")
        environ = {name: value for name, value in self.environ.items() if name.startswith("AWS_")}
        return Aws(region, told.get("assume_role"), environ)

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

    def _pool(self, name: str, given: Given) -> Pool:
        path: Path = ("targets", name, "pool")
        try:
            pool = pool_of(name, given, self.source.line(path[:2]))
        except Invalid as fault:
            self._fault(path, fault.msg)
            return Pool(name, {})
        for index, member in enumerate(pool.members):
            if member not in self.target_names:
                place: Path = next((each for each in ((*path, index), (*path, member)) if each in self.source.lines), path)
                self._no_target(place, member)
        return pool

    def _fallback(self, targets: Mapping[str, Target | Pool]) -> None:
        for name, target in targets.items():
            for other in target.fallback:
                if other not in self.target_names:
                    self._no_target(("targets", name, "fallback"), other)
        pools = {name: target for name, target in targets.items() if isinstance(target, Pool)}
        for path, message in faults(pools, {name: target.fallback for name, target in targets.items()}):
            self._fault(("targets", *path), message)

    def _routes(self, targets: Mapping[str, Target | Pool]) -> None:
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
        templates = list(dict.fromkeys([*self._written("templates"), *self.templates]))
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
