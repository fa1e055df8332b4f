"""What Claude takes of a request depends on the model's generation, wherever it is served: Bedrock's dialect asks here too.

A model whose name tells no generation is taken to be able to do everything. Source: platform.claude.com/docs, Migration guide,
Extended thinking, Effort, Structured outputs (2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from proxy.dialects._hub import Json, compact

GENERATION = re.compile(r"claude-(?:[a-z]+-)?(\d+)(?:[-.](\d{1,2})(?!\d))?")
EITHER = (4, 1)  # from here on temperature or top_p, not both
EFFORT = (4, 6)  # from here on every Claude knows effort; Opus one before
FIXED = (4, 7)  # from here on the model has its own sampling, and no budget of thinking
LEAST_TOP_P = 0.95  # beside thinking


def fitted(req: Json, model: str, lost: Callable[[str, str], Any]) -> Json:
    """A canonical request → the same without what this Claude refuses; `lost` is told of it."""
    found = GENERATION.search(model)
    if found is None:
        return req
    number, out = (int(found[1]), int(found[2] or 0)), dict(req)
    thinking = req.get("thinking", {})
    thinks = thinking.get("type") in ("enabled", "adaptive")
    if thinks and (req.get("tool_choice") == "required" or isinstance(req.get("tool_choice"), dict)):
        del out["thinking"]
        lost("thinking", "Claude does not think where a tool must be called")
        thinks = False
    elif thinking.get("type") == "enabled" and number >= FIXED:
        out["thinking"] = {name: value for name, value in thinking.items() if name != "budget_tokens"} | {"type": "adaptive"}
    effort = req.get("reasoning_effort", "none")
    if effort != "none" and number < EFFORT and not (number == (4, 5) and "opus" in model):
        del out["reasoning_effort"]
        lost("reasoning_effort", "this Claude knows no effort")
    elif (effort == "xhigh" and number < FIXED) or (effort == "max" and number < EFFORT):
        out["reasoning_effort"] = "high"
    for name, why in _refused(req, number, thinks):
        del out[name]
        lost(name, why)
    return out


def _refused(req: Json, number: tuple[int, int], thinks: bool) -> Iterator[tuple[str, str]]:
    """The sampling that this Claude refuses, and why."""
    both = number >= EITHER and not thinks and "temperature" in req
    rules = {
        "temperature": (thinks, "Claude samples at temperature 1 when it thinks"),
        "top_k": (thinks, "Claude takes no top_k when it thinks"),
        "top_p": (
            both or (thinks and req.get("top_p", 1) < LEAST_TOP_P),
            "Claude takes no top_p beside temperature or thinking",
        ),
    }
    for name, (refused, why) in rules.items():
        if name in req and (refused or number >= FIXED):
            yield name, why if number < FIXED else "this Claude has its own sampling"


# --- schemas of structured output

UNENFORCED = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "maxItems"),
    *("uniqueItems", "minProperties", "maxProperties", "patternProperties", "propertyNames"),
)
NAMED = ("properties", "$defs", "definitions")  # hold schemas by name
NESTED = ("items", "anyOf", "allOf", "oneOf")  # hold one or a list


def closed(schema: Any) -> Any:
    """A JSON Schema as Claude can keep to it: objects are closed, oneOf is anyOf, and what it cannot enforce stands in the
    description, in words."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {name: closed(value) if name in NESTED else value for name, value in schema.items() if name != "$schema"}
    out |= {name: {key: closed(value) for key, value in out[name].items()} for name in NAMED if isinstance(out.get(name), dict)}
    told = {name: out.pop(name) for name in UNENFORCED if name in out}
    if isinstance(out.get("minItems"), int) and out["minItems"] > 1:
        told["minItems"] = out.pop("minItems")
    if "oneOf" in out:
        out.setdefault("anyOf", out.pop("oneOf"))
    if "properties" in out or "object" in (out["type"] if isinstance(out.get("type"), list) else [out.get("type")]):
        if isinstance(out.get("additionalProperties"), dict):
            told["additionalProperties"] = out["additionalProperties"]
        out["additionalProperties"] = False
    if told:
        out["description"] = " ".join(filter(None, (out.get("description"), compact(told))))
    return out
