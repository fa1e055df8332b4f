"""Kinds of values in the configuration: what voluptuous checks and coerces, and the same as JSON Schema."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from voluptuous import Invalid, Optional, Required, Schema

from proxy.config import HOST, Network, url_fault

Json = dict[str, Any]


class Kind(NamedTuple):
    """One kind of value. `check` gives it in its right type, or raises Invalid; `json` is what an editor is told."""

    check: Callable[[Any], Any]
    json: Callable[[], Json]


Field = tuple[Kind, str]  # and what it means, in a line


def meant(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` when one of the names is close, else nothing."""
    import difflib  # here and not above: a sound file needs none of it

    known = {known.lower(): known for known in names}
    close = [known[found] for found in difflib.get_close_matches(name.lower(), known, 1)]
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str], last: str = "or") -> str:
    """`a, b or c`"""
    *first, final = names
    return f"{', '.join(first)} {last} {final}" if first else final


WORDS = {"None": "empty", "True": "true", "False": "false"}


def shown(value: Any) -> str:
    """A value within a fault: short, as YAML writes it, never a whole structure."""
    if isinstance(value, (dict, list)):
        return "a list" if isinstance(value, list) else "a section"
    text = WORDS.get(repr(value), repr(value))
    return text if len(text) <= 60 else text[:59] + "…"


def must_be(what: str, value: Any) -> Invalid:
    """The usual fault."""
    return Invalid(f"must be {what}, not {shown(value)}")


# Single values


def text(pattern: str = r"[^\x00-\x1f\x7f]+", what: str = "text on one line", secret: bool = False) -> Kind:
    """Text of that pattern; `secret` keeps the value out of the fault."""

    def check(value: Any) -> str:
        if isinstance(value, (int, float)):
            raise Invalid(f"must be {what}: put it in quotes")
        if value is None:
            raise Invalid("is empty: give it a value or remove it")
        if value == "" and not re.fullmatch(pattern, ""):
            raise Invalid("must not be empty")
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise Invalid(f"must be {what}") if secret else must_be(what, value)
        return value

    return Kind(check, lambda: {"type": "string", "pattern": f"^(?:{pattern})$"})


NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")  # what would be one without quotes


def number(what: str, low: float, high: float, whole: bool = False, above: bool = False) -> Kind:
    """A number from `low` (or only `above` it) to `high`."""

    def check(value: Any) -> float:
        if isinstance(value, str) and NUMBER.fullmatch(value):
            raise Invalid("must be a number, without quotes")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise must_be(what, value)
        if not low <= value <= high or (above and value == low):
            raise Invalid(f"must be {'more than' if above else 'at least'} {low} and at most {high}, not {shown(value)}")
        return value

    lowest = "exclusiveMinimum" if above else "minimum"
    return Kind(check, lambda: {"type": "integer" if whole else "number", lowest: low, "maximum": high})


def one_of(names: Callable[[], list[str]], others: Mapping[str, str] = {}) -> Kind:
    """One of some words, which are asked for when they are needed; `others` says what is meant by what is none of them."""

    def check(value: Any) -> str:
        if value not in names():
            known = others.get(str(value).lower())
            guess = f"; did you mean {known!r}?" if known else meant(str(value), names())
            raise Invalid(f"must be {listed(names())}, not {shown(value)}{guess}")
        return str(value)

    return Kind(check, lambda: {"enum": names()})


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise must_be("true or false", value)
    return value


SIZE = r"([1-9][0-9]{0,11}) ?([KMGkmg]i?[Bb]|[Bb])?"
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _size(value: Any) -> int:
    parts = re.fullmatch(SIZE, str(value))
    if not parts or not isinstance(value, (int, str)):
        raise must_be("a size in bytes above 0, such as 10MiB or 65536", value)
    return int(parts[1]) * UNITS[(parts[2] or "").lower()]


ADDRESSES = "an address or a network, such as 127.0.0.1, 10.0.0.0/8 or ::1"


def _network(value: Any) -> Network:
    """What an IPv4 client is called when it comes in over IPv6, is written as IPv4."""
    try:
        if not isinstance(value, str) or "%" in value:  # an int is an address to ipaddress; zones are of one machine
            raise ValueError
        interface = ipaddress.ip_interface(value)
    except ValueError:
        raise must_be(ADDRESSES, value) from None
    network = interface.network
    if network.network_address != interface.ip:
        raise Invalid(f"{value!r} has bits behind its prefix; did you mean '{network}', or '{interface.ip}' alone?")
    mapped = network.network_address.ipv4_mapped if network.version == 6 else None
    return ipaddress.IPv4Network((mapped, network.prefixlen - 96)) if mapped and network.prefixlen >= 96 else network


def web_address(also: tuple[str, ...] = (), credentials: bool = False) -> Kind:
    """An http(s) url, or one of some others, given as patterns."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise must_be("a url, such as http://127.0.0.1:8080", value)
        fault = None if any(re.fullmatch(other, value) for other in also) else url_fault(value, credentials)
        if fault:
            raise Invalid(fault)
        return value

    others = "".join(f"|{other}" for other in also)
    return Kind(check, lambda: {"type": "string", "pattern": f"^(?:https?://[!-~]+{others})$"})


BIND = rf"{HOST}|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*"  # IPv6 without brackets
FLAG = Kind(_flag, lambda: {"type": "boolean"})
BYTES = Kind(_size, lambda: {"type": ["integer", "string"], "minimum": 1, "pattern": f"^{SIZE}$"})
NETWORK = Kind(_network, lambda: {"type": "string", "pattern": "^[0-9A-Fa-f:.]+(?:/[0-9.]+)?$"})
SECONDS = number("a number of seconds, such as 30", 0, 10_000_000, above=True)
NOTHING = Kind(lambda value: None, lambda: {"type": "null"})
TEXT = text()
FILE = text(what="the name of a file")
ANY_TEXT = text(r"[\s\S]*", "text")
TRIMMED = r"[!-~\x80-\xff](?:[ -~\x80-\xff]*[!-~\x80-\xff])?"  # what a header's value can be without being trimmed
SECRET = text(TRIMMED, "a key: no line breaks, no white space at its ends", secret=True)
HEADER = text(r"[\t -~\x80-\xff]*", "text without control bytes", secret=True)
VARIABLE = text(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable: letters, digits and _", secret=True)


# Values made of values


def nullable(kind: Kind) -> Kind:
    """That kind, or null."""
    return by_type({type(None): NOTHING, object: kind})


def by_type(kinds: Mapping[type, Kind], what: str = "") -> Kind:
    """The kind that goes with the value's type."""

    def check(value: Any) -> Any:
        for type_, kind in kinds.items():
            if isinstance(value, type_):
                return kind.check(value)
        raise must_be(what, value)

    return Kind(check, lambda: {"anyOf": [kind.json() for kind in kinds.values()]})


def list_of(kind: Kind, what: str, length: int | None = None) -> Kind:
    """A list, of a certain length if one is given; null is an empty one."""
    items = Schema([kind.check])

    def check(value: Any) -> tuple[Any, ...]:
        value = [] if value is None else value
        if not isinstance(value, list) or (length is not None and len(value) != length):
            raise must_be(what, value)
        return tuple(items(value))

    fixed = {} if length is None else {"minItems": length, "maxItems": length}
    return Kind(check, lambda: {"type": ["array", "null"] if length is None else "array", "items": kind.json(), **fixed})


def one_or_list(kind: Kind, what: str) -> Kind:
    """One, or a list of them; a list either way."""
    one = Kind(lambda value: (kind.check(value),), kind.json)
    return by_type({str: one, list: list_of(kind, what)}, what)


MISSING = object()  # stands in for a required value while what is around it is checked


def section(fields: Mapping[str, Field], required: tuple[str, ...] = (), rest: Kind | None = None, name: Kind = TEXT) -> Kind:
    """A mapping with those keys, and with `rest` any others that are called as `name` says; null is an empty one."""

    def other(key: str) -> str:
        if rest is None:
            raise Invalid(f"is not known here{meant(key, fields) or ': there is ' + listed(fields, 'and')}")
        return str(name.check(key))

    table: dict[Any, Any] = {Optional(key): kind.check for key, (kind, _) in fields.items() if key not in required}
    table |= {Required(key, msg="is missing"): _or_missing(fields[key][0].check) for key in required}
    schema = Schema({**table, other: rest.check if rest else object})

    def check(value: Any) -> Any:
        value = {} if value is None else value
        if not isinstance(value, dict):
            raise must_be("a section (lines of `name: value` below it)", value)
        return schema(value)

    def json() -> Json:
        out: Json = {"type": "object" if required else ["object", "null"]}
        if fields:
            out["properties"] = {key: {**kind.json(), "description": doc} for key, (kind, doc) in fields.items()}
        if required:
            out["required"] = list(required)
        if name is not TEXT:
            out["propertyNames"] = name.json()
        return {**out, "additionalProperties": rest.json() if rest else False}

    return Kind(check, json)


def _or_missing(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: value if value is MISSING else check(value)
