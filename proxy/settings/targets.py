"""The configuration of `targets`: what the schema cannot know of them, and the records that come out."""

from __future__ import annotations

import re
from collections.abc import Mapping

from voluptuous import Invalid

from proxy import dialects
from proxy.config import Functions, ModelRule, Pool, Target
from proxy.settings import clouds, engines, tries
from proxy.settings.caching import rule_of
from proxy.settings.endpoints import OWN_PATHS, Endpoints
from proxy.settings.findings import Findings, Given, Rule
from proxy.settings.source import Path

NOT_SETTABLE = frozenset(
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"]
)  # headers that frame a message
OPERATION = re.compile(
    r"/(?:(?:(?:chat/)?completions|messages|responses|embeddings)/?|models/[^/]+:(?:g|streamG)enerateContent)\Z"
)  # at the end of a url that should be an API's base
TAKE_MESSAGES = frozenset(["openai", "responses", "anthropic", "gemini", "ollama", "bedrock"])  # dialects that need no prompt
KEY_HEADERS = {"bearer": "authorization"}  # the others are called as their header


def _is_demo(target: Given) -> bool:
    return str(target.get("url")).startswith("demo:")


RULES: tuple[Rule, ...] = (
    (
        "",
        ("url", "mapping", "dialect", "route"),
        lambda t: not (t.get("mapping") or t.get("dialect") or t.get("route") or _is_demo(t) or engines.is_command(t)),
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
        "auth",
        ("auth", *tries.OF_A_KEY),
        lambda t: t.get("auth") in ("none", "passthrough") and any(name in t for name in tries.OF_A_KEY),
        "sends no key of ours: remove `key` and `envkey`, or send it as bearer, x-api-key, api-key or x-goog-api-key",
    ),
    *engines.RULES,
    *clouds.RULES,
    *tries.RULES,
)


class Targets:
    """The reading of `targets` and `models`."""

    def __init__(self, found: Findings, mappers: Functions, prompters: Functions, templates: Given) -> None:
        self._found, self._endpoints = found, Endpoints(found, mappers, prompters, templates)

    def read(self) -> tuple[dict[str, Target], dict[str, Pool]]:
        """What calls can go to, by name."""
        given = {name: target for name, target in self._found.section("targets").items() if name != "default"}
        written = self._found.raw("targets")
        shared = {name for name in given if tries.is_pool(written.get(name))}
        pools = {name: self._pool(name, given[name]) for name in shared if "pool" in given[name]}
        members = {member for pool in pools.values() for member in pool.members}
        targets = {name: self._target(name, target, name in members) for name, target in given.items() if name not in shared}
        self._fallback({**targets, **pools})
        self._routes({**targets, **pools})
        return targets, pools

    def default(self) -> str:
        """The target of calls that name none, "" without one."""
        name: str | None = self._found.section("targets").get("default")
        if name is not None and name not in self._found.target_names:
            self._found.no_target(("targets", "default"), name)
        return name or ""

    def rules(self) -> tuple[ModelRule, ...]:
        """`models`: which target a model's calls go to."""
        return tuple(self._rule(pattern, rule) for pattern, rule in self._found.section("models").items())

    def _rule(self, pattern: str, given: Given) -> ModelRule:
        path = ("models", pattern)
        target = given.get("target", "default")
        if target == "default":
            target = self._found.section("targets").get("default", "")
        elif target not in self._found.target_names:
            place = (*path, "target")
            self._found.no_target(place if place in self._found.source.lines else path, target)
        return ModelRule(pattern, target, given.get("model"), self._found.source.line(path))

    def _target(self, name: str, given: Given, in_pool: bool) -> Target:
        path: Path = ("targets", name)
        self._found.check(path, given, RULES)
        key, key_name = self._key(path, given)
        if engines.is_command(given):
            given = engines.with_prompter(self._found, path, given)
        dialect = "openai" if _is_demo(given) else given.get("dialect")
        azure = given.get("azure", {})
        auth = given.get("auth") or ("api-key" if azure else dialects.load(dialect).auth if dialect else "bearer")
        self._endpoints.functions(path, given)
        if dialect:
            self._endpoints.template_for(path, given, {})
            self._without_effect(path, given, dialect)
        keyed = key or "envkeys" in given or "key_command" in given
        self._headers((*path, "headers"), given.get("headers", {}), KEY_HEADERS.get(auth, auth) if keyed else None)
        names = given.get("envkeys", ()) if key is None else ()
        keys = {name: self._found.variable((*path, "envkeys"), name) for name in names}
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
            mapping=tuple(self._endpoints.entry(path, key, entry, given) for key, entry in given.get("mapping", {}).items()),
            preserve_method=given.get("preserveMethod", False),
            azure_api_version=azure.get("api_version"),
            azure_deployment=azure.get("deployment"),
            aws=clouds.aws_of(self._found, path, given, auth) if dialect and dialects.load(dialect).aws else None,
            start=engines.start_of(given["start"]) if "start" in given else None,
            line=self._found.source.line(path),
            dialect_line=self._found.source.line((*path, "dialect")) if "dialect" in given else 0,
            **tries.tries_of(given, keys, in_pool),
            cache=rule_of(given),
            **{name: given[name] for name in (*plain, *plain_too) if name in given},
        )

    def _without_effect(self, path: Path, given: Given, dialect: str) -> None:
        """Warn of what a target with a dialect says in vain."""
        url = given.get("url", "")
        operation = OPERATION.search(url)
        if operation:
            self._found.warn((*path, "url"), f"ends in an operation: the base is {url[: operation.start()]}")
        entries = given.get("mapping", {}).values()
        is_mapped = any(isinstance(entry, dict) and entry.get("in") for entry in entries)  # by what may ask for a prompt
        for name in ("prompter", "template"):
            if name in given and dialect in TAKE_MESSAGES and not is_mapped:
                self._found.warn((*path, name), f"has no effect: {dialect} takes messages, not a prompt")

    def _key(self, path: Path, given: Given) -> tuple[str | None, str | None]:
        name = given.get("envkey")
        if "key" in given:
            beats = f" It beats envkey: {name}." if name else ""
            self._found.warn(
                (*path, "key"), f"security: a key in a file is read by whoever reads the file; envkey is better.{beats}"
            )
            return given["key"], "key"
        return (self._found.variable((*path, "envkey"), name), name) if name else (None, None)

    def _headers(self, path: Path, headers: Mapping[str, str], of_key: str | None) -> None:
        seen = set()
        for name in headers:
            lower = name.lower()
            if lower in NOT_SETTABLE:
                self._found.fault((*path, name), "is set by the proxy itself")
            if lower == of_key:
                self._found.fault((*path, name), "carries this target's key already: with `auth: none` and no key it is yours")
            if lower in seen:
                self._found.fault((*path, name), "stands twice, in capitals and small letters")
            seen.add(lower)

    def _files(self, path: Path, given: Given) -> None:
        if given.get("verify") is False:
            self._found.warn((*path, "verify"), "security: any certificate is taken for the backend's")
        elif isinstance(given.get("verify"), str):
            self._found.file((*path, "verify"), given["verify"])
        for index, file in enumerate(given.get("cert", ())):
            self._found.file((*path, "cert", index), file)

    def _pool(self, name: str, given: Given) -> Pool:
        path: Path = ("targets", name, "pool")
        try:
            pool = tries.pool_of(name, given, self._found.source.line(path[:2]))
        except Invalid as fault:
            self._found.fault(path, fault.msg)
            return Pool(name, {})
        for index, member in enumerate(pool.members):
            if member not in self._found.target_names:
                place: Path = next(
                    (each for each in ((*path, index), (*path, member)) if each in self._found.source.lines), path
                )
                self._found.no_target(place, member)
        return pool

    def _fallback(self, targets: Mapping[str, Target | Pool]) -> None:
        for name, target in targets.items():
            for other in target.fallback:
                if other not in self._found.target_names:
                    self._found.no_target(("targets", name, "fallback"), other)
        pools = {name: target for name, target in targets.items() if isinstance(target, Pool)}
        for path, message in tries.faults(pools, {name: target.fallback for name, target in targets.items()}):
            self._found.fault(("targets", *path), message)

    def _routes(self, targets: Mapping[str, Target | Pool]) -> None:
        taken = dict.fromkeys(OWN_PATHS, "the proxy itself")
        for name, target in targets.items():
            if target.route and target.route in taken:
                self._found.fault(("targets", name, "route"), f"{target.route} belongs to {taken[target.route]} already")
            elif target.route:
                taken[target.route] = f"the target {name!r}"
