"""The configuration of who may do how much: people's keys, limits, prices, the guard."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from voluptuous import Invalid

from proxy.config import Functions, GuardRules, Key, Limits, Price, Rates
from proxy.settings.findings import Findings
from proxy.settings.kinds import (
    FLAG,
    SECRET,
    TEXT,
    VARIABLE,
    Field,
    Kind,
    list_of,
    meant,
    must_be,
    number,
    one_of,
    section,
    text,
)
from proxy.settings.patterns import fault_of
from proxy.settings.source import Path

PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}  # seconds
PLURAL = [f"{name}s" for name in PERIODS]
RATE = re.compile(r"([1-9][0-9]{0,11})\s*/\s*([1-9][0-9]{0,5})?\s*([a-z]+)")
RATES = "a rate such as 100/2minutes, or several: 60/minute;600/hour"
KEY_NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
MOMENT = r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+(Z|[+-][0-9]{2}:[0-9]{2})?)?"
TAKEN = {"master": "the master key", "open": "calls that need no key"}
SHORTEST_KEY = 16  # characters; `python -m main key new` makes one


def _rates(value: Any) -> Rates:
    if not isinstance(value, str):
        raise must_be(RATES, value)
    found: dict[float, int] = {}
    for part in value.split(";"):
        match = RATE.fullmatch(part.strip())
        if not match:
            raise must_be(RATES, value)
        count, times, unit = match.groups()
        seconds = PERIODS.get(unit.removesuffix("s"))
        if seconds is None:
            raise Invalid(f"{unit!r} is no period: there is {', '.join(PERIODS)}{meant(unit, [*PERIODS, *PLURAL])}")
        period_s = float(seconds * int(times or 1))
        if period_s in found:
            raise Invalid(f"has two limits for the same period: {value!r}")
        found[period_s] = int(count)
    return tuple((count, period_s) for period_s, count in found.items())


def _expires(value: Any) -> float:
    """Unix time; a date is its first moment in UTC, a time without a zone is in UTC."""
    try:
        if not re.fullmatch(MOMENT, str(value)):
            raise ValueError
        moment = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        raise must_be("a date such as 2027-01-31, or a time such as 2027-01-31T18:00:00+01:00", value) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


RATES_KIND = Kind(_rates, lambda: {"type": "string", "pattern": "/"})
OF_TARGET: dict[str, Field] = {"limits": (RATES_KIND, "Most requests in a time, of everybody: 60/minute;600/hour")}
NAMES = list_of(TEXT, "a list of names")
DOLLARS = number("a number of US dollars", 0, 1_000_000_000)
PERIOD = one_of(lambda: ["hour", "day", "week", "month", "year", "total"])
WHOLE = number("a whole number", 1, 1_000_000, whole=True)
KEY = section(
    {
        "sha256": (text("[0-9a-fA-F]{64}", "the SHA-256 of a key: 64 hexadecimal digits", secret=True), "Digest of the key"),
        "envkey": (VARIABLE, "Environment variable that holds the key"),
        "key": (SECRET, "The key itself; better its sha256"),
        "targets": (NAMES, "Targets that it may use; without it: all"),
        "models": (NAMES, "Models, or patterns with *, that it may use; without it: all"),
        "limits": (RATES_KIND, "Most requests in a time"),
        "tokens": (RATES_KIND, "Most tokens in a time, prompts and answers together"),
        "budget": (
            section(
                {
                    "usd": (number("a number of US dollars", 0, 1_000_000, above=True), "US dollars"),
                    "per": (PERIOD, "The time that they are for, in UTC"),
                },
                required=("usd", "per"),
            ),
            "Most money in a time, by `prices`",
        ),
        "concurrency": (WHOLE, "Most calls at once"),
        "expires": (
            Kind(_expires, lambda: {"type": "string", "pattern": f"^{MOMENT}$"}),
            "Refused from this date or time on",
        ),
        "console": (FLAG, "Whether it opens the console"),
        "tags": (NAMES, "Words that its calls' log lines and records carry"),
    }
)
SECTIONS: dict[str, Field] = {
    "keys": (
        section({}, rest=KEY, name=text(KEY_NAME, "a name: letters, digits, . _ @ and -")),
        "A key for each person or app, beside the master key",
    ),
    "limits": (
        section(
            {
                "global": (RATES_KIND, "Most requests in a time, of everybody together"),
                "paths": (
                    section({}, rest=RATES_KIND, name=text("/[!-~]*", "a path, such as /v1/embeddings")),
                    "Path, and most requests in a time there",
                ),
                "strategy": (
                    one_of(lambda: ["moving-window", "fixed-window"]),
                    "Within any such time, or within each that the clock begins",
                ),
            }
        ),
        "Most requests in a time",
    ),
    "guard": (
        section(
            {
                "deny": (NAMES, "Regular expressions, or functions of mappers.py: what matches is refused"),
                "redact": (NAMES, "Regular expressions: what matches is taken out"),
            }
        ),
        "What may leave for a backend",
    ),
    "prices": (
        section(
            {},
            rest=section(
                {
                    "input": (DOLLARS, "US dollars for a million tokens of prompts"),
                    "cached": (DOLLARS, "The same for tokens out of the backend's cache; without it: as input"),
                    "output": (DOLLARS, "The same for tokens of answers"),
                },
                required=("input", "output"),
            ),
        ),
        "Model, or a pattern with *, and what its tokens cost",
    ),
}


class Allowances:
    """The reading of these sections: what comes out, and the faults that the schema cannot know."""

    def __init__(self, found: Findings, mappers: Functions) -> None:
        self._found, self._mappers = found, mappers

    def read(self) -> dict[str, Any]:
        """The fields of Config that are these sections."""
        found = self._found
        limits = found.section("limits")
        keys = {name: self._key(("keys", name), name, given) for name, given in found.section("keys").items()}
        self._differ(keys)
        return {
            "keys": keys,
            "limits": Limits(limits.get("global", ()), limits.get("paths", {}), limits.get("strategy", "moving-window"))
            if limits
            else None,
            "guard": self._guard(found.section("guard")),
            "prices": {
                name: Price(given["input"], given.get("cached", given["input"]), given["output"])
                for name, given in found.section("prices").items()
                if {"input", "output"} <= given.keys()
            },
        }

    def _key(self, path: Path, name: str, given: Mapping[str, Any]) -> Key:
        found = self._found
        if name in TAKEN:
            found.fault(path, f"is what logs call {TAKEN[name]}: rename it")
        for target in given.get("targets", ()):
            if target not in found.target_names:
                found.no_target((*path, "targets"), target)
        budget = given.get("budget")
        if budget and not found.section("prices") and not found.is_faulty(("prices",)):
            found.fault((*path, "budget"), "needs `prices`, by which it is counted")
        return Key(
            name=name,
            digest=self._digest(path, given),
            variable=given.get("envkey"),
            budget=(max(1, round(budget["usd"] * 1e6)), budget["per"]) if budget and {"usd", "per"} <= budget.keys() else None,
            **{
                key: given[key]
                for key in ("targets", "models", "limits", "tokens", "concurrency", "expires", "console", "tags")
                if key in given
            },
        )

    def _digest(self, path: Path, given: Mapping[str, Any]) -> bytes:
        found = self._found
        written = [name for name in ("sha256", "envkey", "key") if name in given or found.is_faulty((*path, name))]
        if len(written) != 1:
            what = "needs its key" if not written else "has its key more than once"
            found.fault(path, f"{what}: one of sha256, envkey and key; `python -m main key new {path[-1]}` makes one")
            return b""
        if "sha256" in given:
            return bytes.fromhex(given["sha256"])
        if "key" in given:
            found.warn((*path, "key"), "security: a key in a file is read by whoever reads the file; sha256 is better.")
        secret = given.get("key") or (found.variable((*path, "envkey"), given["envkey"]) if "envkey" in given else "")
        if secret and len(secret) < SHORTEST_KEY:
            found.fault((*path, written[0]), f"is shorter than {SHORTEST_KEY} characters: such a key can be guessed")
        return _digest(secret) if secret else b""

    def _differ(self, keys: Mapping[str, Key]) -> None:
        system = self._found.section("system")
        master = system.get("masterkey") or self._found.environ.get("MOOLTIPROXY_KEY", "")
        seen = {_digest(master): "the master key"} if master else {}
        for name, key in keys.items():
            if key.digest and key.digest in seen:
                self._found.fault(("keys", name), f"is the same key as {seen[key.digest]}")
            seen[key.digest] = f"that of {name!r}"

    def _guard(self, given: Mapping[str, Any]) -> GuardRules | None:
        for where, rules in given.items():
            for index, rule in enumerate(rules):
                path = ("guard", where, index)
                fault = None if where == "deny" and self._is_function(path, rule) else fault_of(rule)
                if fault:
                    self._found.fault(path, fault)
        return GuardRules(given.get("deny", ()), given.get("redact", ())) if given else None

    def _is_function(self, path: Path, name: str) -> bool:
        """Whether a rule names a function of mappers.py. Notes a fault for what is nearly the name of one."""
        own: Mapping[str, Callable[..., Any]] = {
            key: value for key, value in self._mappers.items() if callable(value) and hasattr(value, "__code__")
        }
        if name in own:
            return True
        guess = meant(name, [key for key in own if not key.startswith("_")]) if name.isidentifier() else ""
        if guess:
            self._found.fault(path, f"is no function of mappers.py{guess} As a mere word it is (?:{name})")
        return bool(guess)


def _digest(secret: str) -> bytes:
    import hashlib  # here and not above: most files have no keys

    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
