"""The configuration of one endpoint: its paths, and the mappers, prompter and template that it names."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from proxy import dialects
from proxy.config import Entry, Functions, find_mapper, find_prompter
from proxy.settings.findings import Findings, Given
from proxy.settings.kinds import meant
from proxy.settings.schema import PLACEHOLDER, endpoint
from proxy.settings.source import Path

PROMPTS = "proxy.prompts"  # imported when a prompter is named
OWN_PATHS = ("/healthz", "/mooltiproxy", "/mooltiproxy/reload")


class Endpoints:
    """The reading of `mapping`, and of the functions that a target names too. templates: the configuration's own."""

    def __init__(self, found: Findings, mappers: Functions, prompters: Functions, templates: Given) -> None:
        self._found, self._mappers, self._prompters, self._templates = found, mappers, prompters, templates

    def entry(self, target: Path, key: str, given: Any, of: Given) -> Entry:
        """An endpoint of a target. target: its path; of: what is said of it."""
        path = (*target, "mapping", key)
        given = {"path": given} if isinstance(given, str) else given or {}
        method, own = endpoint(key)
        if own in OWN_PATHS:
            self._found.fault(path, "is answered by the proxy itself")
        for name in ("path", "stream_path"):
            self._upstream_path((*path, name), own, given.get(name), of.get("url", ""))
        for name in ("in", "out", "stream"):
            for index, mapper in enumerate(given.get(name, ())):
                place: Path = (*path, name, index)
                self._mapper(place if place in self._found.source.lines else place[:-1], mapper)
        self.functions(path, given)
        if given.get("in"):
            self.template_for(path, given, of)
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
            line=self._found.source.line(path),
        )

    def _upstream_path(self, path: Path, key: str, upstream: str | None, url: str) -> None:
        """The url and the path are joined as they are: what comes out must still be below the url."""
        if upstream is None:
            return
        path = path if path in self._found.source.lines else path[:-1]  # `/models: /v1/models` has no `path:`
        if url and upstream and upstream[0] not in "/?:" and not url.endswith("/"):
            self._found.fault(path, f"must begin with /, as it is appended to the url{meant(upstream, ['/' + upstream])}")
        if key.endswith("/*") and not upstream.endswith("/*"):
            self._found.fault(path, "must end in /* as its key does, for what the * matched")
        elif "*" in upstream.removesuffix("/*") or (upstream.endswith("/*") and not key.endswith("/*")):
            self._found.fault(path, "may hold a * only as /* at its end, and only when its key ends so")
        unknown = set(PLACEHOLDER.findall(upstream)) - {"model", *PLACEHOLDER.findall(key)}
        if unknown:
            self._found.fault(path, f"{{{min(unknown)}}} is not in its key; only {{model}}, the request's model, need not be")

    def _mapper(self, path: Path, name: str) -> None:
        mapper = find_mapper(name, self._mappers)
        if mapper:
            if not _takes_two(mapper):
                self._found.fault(path, f"{name!r} in mappers.py must take two arguments: (ip, cfg)")
        elif name in self._mappers:
            self._found.fault(path, f"{name!r} in mappers.py is no function")
        else:
            guess = _guess(name, self._mappers, _built_in_mappers(), "mappers.py")
            self._found.fault(path, f"no mapper is called {name!r}{guess}")

    def functions(self, path: Path, given: Given) -> None:
        """The prompter and the template that a target or an endpoint names."""
        template, prompter = given.get("template"), given.get("prompter")
        templates = list(dict.fromkeys([*self._found.written("templates"), *self._templates]))
        if template is not None and template not in templates:
            guess = meant(template, templates) or " in `templates`"
            self._found.fault((*path, "template"), f"there is no template {template!r}{guess}")
        if prompter is not None:
            self._prompter(path, prompter)

    def _prompter(self, path: Path, prompter: str) -> None:
        function = find_prompter(prompter, self._prompters)
        if function:
            if not _takes_two(function):
                self._found.fault((*path, "prompter"), f"{prompter!r} in prompters.py must take two arguments: (messages, cfg)")
        elif prompter in self._prompters:
            self._found.fault((*path, "prompter"), f"{prompter!r} in prompters.py is no function")
        else:
            built_in = importlib.import_module(PROMPTS).PROMPTERS
            guess = _guess(prompter, self._prompters, built_in, "prompters.py")
            self._found.fault((*path, "prompter"), f"no prompter is called {prompter!r}{guess}")

    def template_for(self, path: Path, given: Given, above: Given) -> None:
        """An endpoint takes over its target's prompter and template; fromTemplate cannot do without one."""
        prompter = given.get("prompter") or above.get("prompter")
        if not prompter or given.get("template") or above.get("template") or self._found.is_faulty((*path, "template")):
            return
        if find_prompter(prompter, self._prompters) is importlib.import_module(PROMPTS).fromTemplate:
            self._found.fault((*path, "prompter"), "fromTemplate needs a `template`, one of `templates`")


def _built_in_mappers() -> Iterable[str]:
    """For a "did you mean" only: it imports every dialect."""
    modules = (importlib.import_module(f"{dialects.__name__}.{name}") for name in dialects.names())
    return {name for module in modules for name in vars(module) if dialects.MAPPER_NAME.fullmatch(name)}


def _guess(name: str, own: Functions, built_in: Iterable[str], file: str) -> str:
    functions = {known for known, function in own.items() if inspect.isfunction(function)}
    guess = meant(name, functions.union(built_in))
    return f"{guess} Else write it in {file}" if guess else f"; write one in {file}"


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def _rooted(path: str | None) -> str | None:
    """A path that relied on the / at the end of its url, as one that does not."""
    return f"/{path}" if path and path[0] not in "/?:" else path
