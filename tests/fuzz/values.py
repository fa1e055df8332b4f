"""JSON Schema → hypothesis: random values of a vendor's own types.

A subset of JSON Schema, the one that pydantic writes. `hints` overrule it by the name of a field, where a type says less than
its API means: a `url` is no random text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]
Hints = Mapping[str, st.SearchStrategy[Any]]
DEEP = 9  # from here on the plainest choice is taken
WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
LEAVES = st.none() | st.booleans() | st.integers(-(2**31), 2**31) | WORDS
SCALARS: Mapping[str, st.SearchStrategy[Any]] = {
    "string": WORDS | st.sampled_from(("", " ", "a", "\n", "\u2028", "é😀")),
    "integer": st.integers(0, 9),
    "number": st.sampled_from((0, 0.5, 1)),
    "boolean": st.booleans(),
    "null": st.none(),
}


@st.composite
def values(draw: Callable[..., Any], schema: Json, hints: Hints, often: tuple[str, ...] = ()) -> Any:
    """A value of that schema. often: optional fields that every second one has, wherever they stand."""
    return _Drawing(draw, schema.get("$defs", {}), hints, often).value(schema)


class _Drawing:
    def __init__(self, draw: Callable[..., Any], defs: Json, hints: Hints, often: tuple[str, ...]) -> None:
        self._draw, self._defs, self._hints, self._often = draw, defs, hints, often

    def value(self, schema: Json, depth: int = 0) -> Any:
        if "$ref" in schema:
            return self.value(self._defs[schema["$ref"].rpartition("/")[2]], depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._draw(st.sampled_from(schema["enum"]))
        options = schema.get("anyOf") or schema.get("oneOf")
        if options:
            plain = [option for option in options if "$ref" not in option and option.get("type") not in ("array", "object")]
            return self.value(self._draw(st.sampled_from(plain if depth > DEEP and plain else options)), depth + 1)
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            most = 0 if depth > DEEP else 3
            size = self._draw(st.integers(schema.get("minItems", 0), max(most, schema.get("minItems", 0))))
            return [self.value(schema.get("items", {}), depth + 1) for _ in range(size)]
        return self._draw(SCALARS.get(kind or "", LEAVES))

    def _object(self, schema: Json, depth: int) -> Json:
        fields, required = schema.get("properties", {}), schema.get("required", ())
        optional = sorted(name for name in fields if name not in required)
        rare = max(2, len(optional) // (4 if depth < 2 else 2))  # so that about so many are there, and each shrinks by itself
        chosen = {
            name
            for name in (optional if depth <= DEEP else ())
            if (self._draw(st.booleans()) if name in self._often else self._draw(st.integers(0, rare)) == rare)
        }
        out = {name: self._field(name, fields[name], depth) for name in fields if name in required or name in chosen}
        if not fields and schema.get("additionalProperties") is not False:
            out |= self._draw(st.dictionaries(WORDS, LEAVES, max_size=2))
        return out

    def _field(self, name: str, schema: Json, depth: int) -> Any:
        return self._draw(self._hints[name]) if name in self._hints else self.value(schema, depth + 1)
