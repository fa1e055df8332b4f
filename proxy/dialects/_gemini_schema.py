"""JSON Schema ⇄ the subset of OpenAPI's Schema that Gemini takes.

What the subset cannot say (references, oneOf, tuples, enums of numbers, values of any type) goes whole into
parametersJsonSchema or responseJsonSchema instead. Source: ai.google.dev/api/caching#Schema (2026-11).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.dialects.openai import Json

REFUSED = frozenset(("$schema", "additionalProperties", "uniqueItems", "propertyNames"))
SUBSET = frozenset(
    (
        *("type", "format", "title", "description", "nullable", "enum", "items", "properties", "required", "anyOf", "pattern"),
        *("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "minimum", "maximum"),
        *("example", "default", "propertyOrdering"),
    )
)
BEYOND = frozenset(("$ref", "oneOf", "allOf", "prefixItems", "not", "if", "patternProperties"))
NESTED = {"items": "one", "not": "one", "if": "one", "then": "one", "else": "one", "contains": "one"}
NESTED |= dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), "list")
NESTED |= dict.fromkeys(("properties", "$defs", "definitions", "patternProperties"), "dict")


def _walk(schema: Any, change: Callable[[Json], Json]) -> Any:
    """A schema with `change` applied to itself and to every schema inside it, innermost first."""
    if isinstance(schema, list):
        return [_walk(item, change) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out: Json = {}
    for name, value in schema.items():
        nested = NESTED.get(name)
        if nested == "dict" and isinstance(value, dict):
            value = {key: _walk(item, change) for key, item in value.items()}
        elif nested:
            value = _walk(value, change)
        out[name] = value
    return change(out)


def _clean(schema: Json) -> Json:
    out = {name: value for name, value in schema.items() if name not in REFUSED}
    if "const" in out:
        out["enum"] = [out.pop("const")]
    if "type" not in out and isinstance(out.get("properties"), dict):
        out["type"] = "object"
    if (
        "type" not in out
        and isinstance(out.get("enum"), list)
        and all(isinstance(word, (str, type(None))) for word in out["enum"])
    ):
        out["type"] = "string"  # an enum with anything else in it is beyond the subset
    if isinstance(out.get("allOf"), list) and len(out["allOf"]) == 1 and isinstance(out["allOf"][0], dict):
        out = {**out.pop("allOf")[0], **out}
    kinds = out.get("type")
    untyped = not isinstance(out.get("items"), (dict, list)) or not out["items"]
    if untyped and "prefixItems" not in out and "array" in (kinds if isinstance(kinds, list) else [kinds]):
        out["items"] = {"type": "string"}  # it must have a type, and this one holds anything that can be written down
    return out


def _subset(schema: Json) -> Json:
    """One cleaned schema in the words of the subset: null is `nullable`, several types are `anyOf`."""
    out = {name: value for name, value in schema.items() if name in SUBSET}
    kinds = out.get("type")
    if isinstance(kinds, list):
        del out["type"]
        out["anyOf"] = [{"type": kind} for kind in kinds]
    options = out.get("anyOf")
    if isinstance(options, list):
        out["anyOf"] = [option for option in options if option != {"type": "null"}]
        if len(out["anyOf"]) < len(options):
            out["nullable"] = True
        if len(out["anyOf"]) == 1 and isinstance(out["anyOf"][0], dict):
            out = {**out.pop("anyOf")[0], **out}
    if isinstance(out.get("enum"), list) and None in out["enum"]:
        out |= {"nullable": True, "enum": [value for value in out["enum"] if value is not None]}
    return out


def schema_out(schema: Json, plain: str, full: str) -> Json:
    """A JSON Schema → {plain: the subset}, or {full: JSON Schema} where the subset cannot say it; {} if it says nothing."""
    cleaned = _walk(schema, _clean)
    beyond: list[Any] = []
    untyped: list[Json] = []

    def look(inner: Json) -> Json:
        words = inner.get("enum")
        untyped.extend([] if inner.keys() & {"type", "anyOf"} else [inner])
        beyond.extend(BEYOND & inner.keys())
        beyond.extend(word for word in (words if isinstance(words, list) else ()) if not isinstance(word, (str, type(None))))
        return inner

    _walk(cleaned, look)
    if beyond:
        return {full: cleaned}
    if cleaned.get("type", "object") == "object" and not cleaned.get("properties") and "anyOf" not in cleaned:
        return {}  # an object without properties is refused: a function without parameters has no schema
    if untyped:
        return {full: cleaned}
    return {plain: _walk(cleaned, _subset)}


def schema_in(schema: Json) -> Json:
    """Gemini's Schema → JSON Schema: types in lower case, `nullable` as a type, counts as numbers."""
    found: Json = _walk(schema, _from_subset)
    return found


def _from_subset(schema: Json) -> Json:
    out = {name: value for name, value in schema.items() if name not in ("nullable", "propertyOrdering") and value is not None}
    for name in ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"):
        if isinstance(out.get(name), str) and out[name].isdecimal():
            out[name] = int(out[name])  # int64 is a string in Google's JSON
    kind = out.get("type")
    if isinstance(kind, str):
        out["type"] = [kind.lower(), "null"] if schema.get("nullable") is True else kind.lower()
    elif schema.get("nullable") is True and isinstance(out.get("anyOf"), list):
        out["anyOf"] = [*out["anyOf"], {"type": "null"}]
    return out
