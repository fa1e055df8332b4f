"""The configuration of how often and where a call is tried: pools, fallback, retries, breakers, several keys, queues, pace."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from voluptuous import Invalid

from proxy.config import Breaker, Line, Pool, Retries
from proxy.settings.findings import Rule
from proxy.settings.kinds import (
    SECONDS,
    TEXT,
    VARIABLE,
    Field,
    Kind,
    by_type,
    list_of,
    must_be,
    number,
    one_of,
    one_or_list,
    section,
    text,
)

STRATEGIES = ["round-robin", "weighted", "least-busy"]
COUNT = number("a whole number", 1, 1_000_000, whole=True)
WORDS = one_of(lambda: ["connect", "timeout", "garbage"])
STATUS = number("a status", 401, 599, whole=True)
CAUSE = by_type(
    {int: Kind(lambda value: str(STATUS.check(value)), STATUS.json), str: WORDS},
    "connect, timeout, garbage, or a status such as 503",
)
PACE = r"([1-9][0-9]{0,5})/([1-9][0-9]{0,3})?(second|minute|hour)s?"
UNITS_S = {"second": 1, "minute": 60, "hour": 3600}
FALLBACK: Field = (one_or_list(TEXT, "a target's name or a list of names"), "Targets that are tried when this one fails")


def _pace_s(value: Any) -> float:
    parts = re.fullmatch(PACE, value) if isinstance(value, str) else None
    if not parts:
        raise must_be("a rate such as 60/second", value)
    return int(parts[2] or 1) * UNITS_S[parts[3]] / int(parts[1])


def _some(kind: Kind, what: str) -> Kind:
    """A list of at least one."""
    several = list_of(kind, what)

    def check(value: Any) -> Any:
        found = several.check(value)
        if not found:
            raise Invalid("must not be empty")
        return found

    return Kind(check, lambda: {"type": "array", "items": kind.json(), "minItems": 1})


OF_TARGET: Mapping[str, Field] = {
    "envkeys": (_some(VARIABLE, "a list of environment variables"), "Environment variables that hold keys, used in turn"),
    "key_command": (_some(text(r"[^\x00]+", "an argument"), "a program and its arguments"), "Program that prints the key"),
    "key_ttl_s": (SECONDS, "Seconds that the program's key is used"),
    "retries": (
        section(
            {
                "attempts": (number("a whole number", 1, 20, whole=True), "Attempts in all"),
                "backoff_s": (number("a number of seconds", 0, 60, above=True), "Longest wait before the second, doubled then"),
                "on": (list_of(CAUSE, "a list"), "Causes: connect, timeout, garbage, and statuses"),
            }
        ),
        "Trying again",
    ),
    "fallback": FALLBACK,
    "breaker": (
        section(
            {
                "failures": (COUNT, "Failures in a row until it rests"),
                "cool_s": (SECONDS, "Seconds that it rests, and a key of `envkeys` that was refused"),
            }
        ),
        "Rest for a backend that fails",
    ),
    "concurrency": (COUNT, "Calls at once"),
    "queue": (
        section(
            {
                "size": (number("a whole number", 0, 1_000_000, whole=True), "Calls that may wait"),
                "timeout_s": (SECONDS, "Seconds that a call waits"),
            }
        ),
        "Who waits for `concurrency`",
    ),
    "pace": (Kind(_pace_s, lambda: {"type": "string", "pattern": f"^(?:{PACE})$"}), "Chunks of a stream, such as 60/second"),
}
A_POOL = "a list of targets, or targets with weights such as {llama: 3, gpt: 1}"
MEMBERS = by_type(
    {list: _some(TEXT, "a list of targets"), dict: section({}, rest=number("a weight", 1, 1_000_000, whole=True))}, A_POOL
)


def _members(value: Any) -> Any:
    if not isinstance(value, list | dict):
        raise must_be(A_POOL, value)
    return value


def is_pool(value: Any) -> bool:
    """Whether what stands below a name in `targets` is meant to be a pool, sound or not."""
    return isinstance(value, dict) and ("pool" in value or "strategy" in value)


def with_pools(target: Kind, route: Field) -> Kind:
    """What may stand below a name in `targets`: a target, or a pool, which has `pool`."""
    pool = section(
        {
            "pool": (Kind(_members, lambda: {"type": ["array", "object"]}), "Its members, with their weights or without"),
            "strategy": (one_of(lambda: STRATEGIES), "Whose turn it is"),
            "route": route,
            "fallback": FALLBACK,
        },
        required=("pool",),
    )

    def check(value: Any) -> Any:
        return (pool if is_pool(value) else target).check(value)

    return Kind(check, lambda: {"anyOf": [target.json(), pool.json()]})


def tries_of(given: Mapping[str, Any], keys: Mapping[str, str], in_pool: bool) -> dict[str, Any]:
    """A target's fields. keys: what its `envkeys` hold. A target that others can stand in for rests when it fails."""
    rests = "breaker" in given or in_pool or given.get("fallback")
    return {
        "retries": Retries(**given["retries"]) if "retries" in given else None,
        "fallback": given.get("fallback", ()),
        "breaker": Breaker(**given.get("breaker", {})) if rests else None,
        "keys": keys,
        "key_command": given.get("key_command", ()),
        "queue": Line(given["concurrency"], **given.get("queue", {})) if "concurrency" in given else None,
        "pace_s": given.get("pace", 0.0),
        **({"key_ttl_s": given["key_ttl_s"]} if "key_ttl_s" in given else {}),
    }


def pool_of(name: str, given: Mapping[str, Any], line: int) -> Pool:
    """A pool. Raises Invalid for members that cannot be: not before, as what lacks a sound `pool` passes for a target."""
    members = MEMBERS.check(given["pool"])
    weights = members if isinstance(members, dict) else dict.fromkeys(members, 1)
    strategy = given.get("strategy") or ("weighted" if isinstance(members, dict) else "round-robin")
    if not weights:
        raise Invalid("has no member")
    if len(weights) < len(members):
        raise Invalid("has a member twice: give it a weight instead, such as {llama: 2, gpt: 1}")
    if strategy == "round-robin" and len(set(weights.values())) > 1:
        raise Invalid("has weights, which `strategy: round-robin` does not look at: remove it")
    return Pool(name, weights, strategy, given.get("route"), given.get("fallback", ()), line)


OF_A_KEY = ("key", "envkey", "envkeys", "key_command")
RULES: tuple[Rule, ...] = (
    (
        "",
        OF_A_KEY,
        lambda t: len([name for name in OF_A_KEY[1:] if name in t]) > 1,
        "has several of `envkey`, `envkeys` and `key_command`: keep one",
    ),
    (
        "key_ttl_s",
        ("key_ttl_s", "key_command"),
        lambda t: "key_ttl_s" in t and "key_command" not in t,
        "needs a `key_command`",
    ),
    ("queue", ("queue", "concurrency"), lambda t: "queue" in t and "concurrency" not in t, "needs a `concurrency`"),
)


def faults(pools: Mapping[str, Pool], fallback: Mapping[str, Iterable[str]]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Names that cannot stand where they do, with their place below `targets`. fallback: of each target and pool."""
    for pool in pools.values():
        for member in pool.members:
            if member in pools:
                yield (pool.name, "pool"), f"{member!r} is a pool: name its members instead"
    for name, others in fallback.items():
        if name in others:
            yield (name, "fallback"), "names itself: `retries` tries the same target again"
