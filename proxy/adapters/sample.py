"""A JSON schema → a small value that fits it, for the demo's tool calls and structured answers.

Strings are harmless words, never the client's own: an agent may act on what it is told. `pattern`, `not`, `if` and `multipleOf`
are not looked at; a schema that is none still gives some value.
"""

from __future__ import annotations

import math
from typing import Any

NODES = 500  # of one value
DEEP, DEEPEST = 4, 30  # levels with optional properties; levels at all, since a schema may refer to itself
LONGEST = 1000  # characters of a string that a schema wants long
FORMATS = {
    "date-time": "2026-01-01T12:00:00Z",
    "date": "2026-01-01",
    "time": "12:00:00Z",
    "email": "demo@example.com",
    "uri": "https://example.com/demo",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def sample(schema: Any) -> Any:
    """A value for a schema, the same each time. Never raises."""
    return _Sampler(schema).value(schema, 0)


class _Sampler:
    """One walk: `left` bounds the nodes of the value, so that no schema costs more than that."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.left = NODES

    def value(self, schema: Any, depth: int) -> Any:
        self.left -= 1
        if not isinstance(schema, dict) or self.left < 0 or depth > DEEPEST:
            return None
        if "const" in schema or "default" in schema:
            return schema["const"] if "const" in schema else schema["default"]
        if _listed(schema, "enum"):
            return schema["enum"][0]
        if isinstance(schema.get("$ref"), str):
            return self.value(self._referred(schema["$ref"]), depth + 1)
        for name in ("anyOf", "oneOf", "allOf"):  # the first of them, with what stands beside them
            alternatives = _listed(schema, name)
            if alternatives and isinstance(alternatives[0], dict):
                return self.value({**{key: part for key, part in schema.items() if key != name}, **alternatives[0]}, depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        kind = kind[0] if isinstance(kind, list) and kind else kind
        if kind in ("object", "array"):
            return self._object(schema, depth) if kind == "object" else self._array(schema, depth)
        return {"null": None, "boolean": True}[kind] if kind in ("null", "boolean") else _scalar(schema, kind)

    def _referred(self, ref: str) -> Any:
        found = self.root
        for name in ref.removeprefix("#").strip("/").split("/") if ref != "#" else ():
            found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        return found

    def _object(self, schema: Any, depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties"), _listed(schema, "required")
        known = properties.items() if isinstance(properties, dict) else ()
        return {name: self.value(part, depth + 1) for name, part in known if depth < DEEP or name in required}

    def _array(self, schema: Any, depth: int) -> list[Any]:
        parts = _listed(schema, "prefixItems")
        wanted = max(_number(schema, "minItems", 0), 1 if depth < DEEP else 0)
        wanted = min(wanted, _number(schema, "maxItems", NODES), NODES)
        parts = parts + [schema.get("items", {})] * int(wanted - len(parts))
        return [self.value(part, depth + 1) for part in parts]


def _listed(schema: Any, name: str) -> list[Any]:
    value = schema.get(name)
    return value if isinstance(value, list) else []


def _number(schema: Any, name: str, otherwise: float) -> float:
    value = schema.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15 else otherwise


def _scalar(schema: Any, kind: Any) -> Any:
    if kind in ("integer", "number"):
        least = _number(schema, "minimum", _number(schema, "exclusiveMinimum", 0) + 1)
        most = _number(schema, "maximum", _number(schema, "exclusiveMaximum", 1e15) - 1)
        return min(math.ceil(least), math.floor(most)) if kind == "integer" else min(least, most)
    form = schema.get("format")
    word = FORMATS.get(form, "demo") if isinstance(form, str) else "demo"
    word = word.ljust(int(min(_number(schema, "minLength", 0), LONGEST)), ".")
    return word[: int(max(_number(schema, "maxLength", LONGEST), 0))]
