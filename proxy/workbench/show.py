"""`check --show`: every target's endpoints as they will be served, with final URLs and the line that each part came from."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.config import Config, Target
from proxy.dialects import load, names
from proxy.endpoints import Functions
from proxy.generation import Generation, Place
from proxy.translate import Endpoint


def shown(config: Config, mappers: Functions, prompters: Functions) -> str:
    """The whole of it, as text; mappings in the form in which a person would write them."""
    generation = Generation(config, mappers, prompters)
    try:
        return "\n".join(lines_of(generation))
    finally:
        generation.close()


def lines_of(generation: Generation) -> list[str]:
    """The same of what is loaded already."""
    lines = [line for place in generation.places.values() for line in _target(generation, place)]
    return [*lines, *_pools(generation.config), *_models(generation.config)]


def _pools(config: Config) -> Iterator[str]:
    for pool in config.pools.values():
        default = "  (default)" if pool.name == config.default else ""
        yield f"{pool.name}:{default}  # {config.file}:{pool.line}"
        weights = pool.strategy != "round-robin"
        members = ", ".join(f"{name} ({weight})" if weights else name for name, weight in pool.members.items())
        yield f"  pool: {members}, {pool.strategy}"
        yield from _when_it_fails(pool.fallback)
        if pool.route:
            yield f"  route: {pool.route}"


def _when_it_fails(fallback: tuple[str, ...]) -> list[str]:
    return [f"  fallback: {', '.join(fallback)}"] if fallback else []


def _tries(target: Target) -> Iterator[str]:
    """How often a target is tried, and what comes after it."""
    if target.keys:
        yield f"  keys in turn: {', '.join(target.keys)}, sent as {target.auth}"
    if target.key_command:
        yield f"  key: what {target.key_command[0]} prints, sent as {target.auth}"
    if target.retries:
        yield f"  attempts: {target.retries.attempts}, after {', '.join(target.retries.on)}"
    if target.breaker:
        yield f"  rests: {target.breaker.cool_s:g} s after {target.breaker.failures} failures in a row"
    if target.queue:
        yield f"  at once: {target.queue.concurrency}, {target.queue.size} more may wait {target.queue.timeout_s:g} s"
    if target.pace_s:
        yield f"  pace: a chunk every {target.pace_s:g} s"
    yield from _when_it_fails(target.fallback)


def _target(generation: Generation, place: Place) -> Iterator[str]:
    target, file = place.target, generation.config.file or "config"
    default = "  (default)" if target.name == generation.config.default else ""
    yield f"{target.name}:{default}  # {file}:{target.line}"
    yield f"  url: {target.url}"
    if target.key_name:
        yield f"  key: {target.key_name}, sent as {target.auth}"
    yield from _tries(target)
    if target.aws:
        yield f"  signed: for {target.aws.region}" + (f", as {target.aws.assume_role}" if target.aws.assume_role else "")
    if target.route:
        yield f"  route: {target.route}"
    if place.passes:
        yield f"  everything else: {target.url} + the client's path"
    if place.mapping.exact or place.mapping.patterns:
        yield f"  mapping:  # {file}"
        yield from _entries([endpoint for _, endpoint in place.mapping.entries()], file)
    for front in (name for name in names() if load(name).routes) if target.dialect else ():
        expanded = [endpoint for _, endpoint in generation.expansion(place, front).entries()]
        yield f"  clients of {front}:  # from `dialect: {target.dialect}`, {file}:{target.dialect_line}"
        yield from _entries([endpoint for endpoint in expanded if _concerns(endpoint, front)], file)


def _concerns(endpoint: Endpoint, front: str) -> bool:
    """Own paths of the backend's API are shown once, with its own clients."""
    key = endpoint.entry.key
    routes = {route.path for route in load(front).routes}
    return key in routes or endpoint.target.dialect == front


def _entries(endpoints: list[Endpoint], file: str) -> Iterator[str]:
    for endpoint in endpoints:
        entry = endpoint.entry
        key = f"{entry.method} {entry.key}" if entry.method else entry.key
        parts = [f"in: {_chain(entry.in_)}"] if entry.in_ else []
        parts += [f"out: {_chain(entry.out)}"] if entry.out else []
        parts += [f"stream: {_chain(entry.stream)}"] if entry.stream else []
        parts += [f"answer: {entry.answer}"] if entry.answer else []
        parts += [f"before: {entry.before_in} → {endpoint.before_url} → {entry.before_out}"] if entry.before else []
        prompter = entry.prompter or endpoint.target.prompter
        template = entry.template or endpoint.target.template
        parts += [f"prompter: {prompter}"] if prompter and entry.in_ else []
        parts += [f"template: {template}"] if template and entry.in_ else []
        where = f"  # {file}:{entry.line}" if entry.origin == "mapping" else ""
        if entry.unsupported:
            yield f"    {key}: 501, this backend's API has no such operation"
            continue
        yield f"    {key}:{'' if entry.answer else ' ' + endpoint.url}{where}"
        if entry.stream and endpoint.stream_url != endpoint.url:
            parts.append(f"stream url: {endpoint.stream_url}")
        yield from (f"      {part}" for part in parts)


def _chain(steps: tuple[str, ...]) -> str:
    return steps[0] if len(steps) == 1 else f"[{', '.join(steps)}]"


def _models(config: Config) -> Iterator[str]:
    if config.models:
        yield "models:"
    for rule in config.models:
        renamed = f", sent as {rule.model}" if rule.model else ""
        yield f"  {rule.pattern} → {rule.target}{renamed}  # {config.file}:{rule.line}"
