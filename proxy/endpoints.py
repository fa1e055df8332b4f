"""Endpoints, built: the names of an entry looked up among the user's functions and the built-in ones, its URLs put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proxy.config import Config, Entry, Target, find_mapper, find_prompter
from proxy.expand import expand
from proxy.routing import Paths, joined, with_version
from proxy.translate import Endpoint, Step

Functions = Mapping[str, Any]
PASSED = Entry(key="/*", origin="route")


class Endpoints:
    """Builds the endpoints of one configuration. `mappers` and `prompters` are the user's modules' names."""

    def __init__(self, config: Config, mappers: Functions, prompters: Functions) -> None:
        self._config, self._mappers, self._prompters = config, mappers, prompters

    def of_mapping(self, target: Target, aliases: list[str]) -> Paths[Endpoint]:
        """What the target's `mapping` says."""
        return Paths.of([(entry, self._of_entry(target, entry, aliases)) for entry in target.mapping])

    def of_dialect(self, target: Target, front: str, aliases: list[str]) -> Paths[Endpoint]:
        """What the target's `dialect` is shorthand for, to the clients of one API."""
        entries = expand(target, front, self.has_mapper, bool(aliases))
        return Paths.of([(entry, self._of_expanded(target, entry, aliases)) for entry in entries])

    def passed(self, target: Target, path: str) -> Endpoint:
        """Whatever lies below the target's url."""
        return self._endpoint(target, PASSED, joined(target.url, path), "", [])

    def has_mapper(self, name: str) -> bool:
        """Whether a mapper of that name can be called: the user's or a built-in one."""
        return find_mapper(name, self._mappers) is not None

    def _of_entry(self, target: Target, entry: Entry, aliases: list[str]) -> Endpoint:
        url = target.url.rstrip("/")
        path = entry.path if entry.path is not None else entry.key
        stream_path = entry.stream_path if entry.stream_path is not None else path
        return self._endpoint(target, entry, url + path, url + stream_path, aliases)

    def _of_expanded(self, target: Target, entry: Entry, aliases: list[str]) -> Endpoint:
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
            cfg["template"] = dict(self._config.templates[template])
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
            function = find_mapper(name, self._mappers)
            if function is None:
                raise KeyError(name)  # the configuration's check knows every name a person can write
            steps.append(Step(name, function))
        return tuple(steps)

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
