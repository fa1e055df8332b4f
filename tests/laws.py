"""What the dialects' tests share: random hub requests and answers, and every way in which one event can be wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]
CFG: Json = {"id": "i" * 28, "now": 1790000000}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_-]{0,20}", fullmatch=True)
counts = st.integers(0, 10**6)
arguments = st.dictionaries(names, words | counts | st.none(), max_size=3)
text_parts = st.builds(lambda text: {"type": "text", "text": text}, words)
image_parts = st.just({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "auto"}})
thinking_blocks = st.lists(
    st.builds(lambda text, mark: {"type": "thinking", "thinking": text, "signature": mark}, words | st.just(""), words)
    | st.builds(lambda data: {"type": "redacted_thinking", "data": data}, words),
    max_size=2,
)


def _calls(pairs: list[tuple[str, Json]], mark: str) -> list[Json]:
    return [
        {"id": f"call_{mark}_{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        for i, (name, given) in enumerate(pairs)
    ]


calls = st.builds(_calls, st.lists(st.tuples(names, arguments), min_size=1, max_size=3), names)


@st.composite
def turns(draw: Any) -> list[Json]:
    """One exchange: a user message, perhaps calls with their results, perhaps an answer."""
    content = draw(words | st.lists(text_parts | image_parts, min_size=1, max_size=3))
    out: list[Json] = [{"role": "user", "content": content}]
    if draw(st.booleans()):
        made = draw(calls)
        mark = len(draw(st.text("ab", max_size=6)))
        made = [{**call, "id": f"{call['id']}{mark}"} for call in made]
        out.append({"role": "assistant", "content": draw(st.none() | words), "tool_calls": made})
        out += [{"role": "tool", "tool_call_id": call["id"], "content": draw(words)} for call in made]
    if draw(st.booleans()):
        out.append({"role": "assistant", "content": draw(words)})
    return out


@st.composite
def hub_requests(draw: Any) -> Json:
    """A canonical request with what every API can express."""
    head = [{"role": "system", "content": draw(words)}] if draw(st.booleans()) else []
    messages = head + [message for turn in draw(st.lists(turns(), min_size=1, max_size=3)) for message in turn]
    request: Json = {"model": "gpt-4.1", "messages": messages}
    if draw(st.booleans()):
        request["max_completion_tokens"] = draw(st.integers(16, 4096))
    if draw(st.booleans()):
        request["temperature"] = draw(st.sampled_from((0, 0.5, 1.0)))
    declared = draw(st.lists(names, unique=True, max_size=3))
    if declared:
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        request["tools"] = [
            {"type": "function", "function": {"name": name, "description": "does it", "parameters": schema, "strict": False}}
            for name in declared
        ]
        request["tool_choice"] = draw(
            st.sampled_from(("auto", "none", "required", {"type": "function", "function": {"name": declared[0]}}))
        )
    return request


@st.composite
def hub_answers(draw: Any, refusals: bool = True) -> Json:
    """A canonical chat.completion of one choice, extensions included."""
    blocks = draw(thinking_blocks)
    reasoning = "".join(block.get("thinking", "") for block in blocks) + draw(st.just("") | words)
    made = draw(st.just([]) | calls)
    content = draw(st.just("") | words)
    refusal = draw(words) if refusals and not content and not made and draw(st.booleans()) else ""
    message: Json = {"role": "assistant", "content": content or (None if made or refusal else "")}
    fields = {"reasoning_content": reasoning, "thinking_blocks": blocks, "refusal": refusal, "tool_calls": made}
    message |= {name: value for name, value in fields.items() if value}
    finish = draw(st.sampled_from(("length", "content_filter", "tool_calls" if made else "stop")))
    spent = {
        "prompt_tokens": (prompt := draw(counts)),
        "completion_tokens": (done := draw(counts)),
        "total_tokens": prompt + done,
        "prompt_tokens_details": {"cached_tokens": draw(st.integers(0, prompt))},
        "completion_tokens_details": {"reasoning_tokens": draw(st.integers(0, done))},
    }
    head = {"id": f"chatcmpl-{CFG['id']}", "object": "chat.completion", "created": CFG["now"], "model": "gpt-4.1"}
    return {**head, "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": spent}


def junk(*fields: str) -> st.SearchStrategy[Any]:
    """JSON that nobody meant: its objects have some of these fields, and nothing in them is of the type that it should be."""
    scalars = st.none() | st.booleans() | st.integers() | st.sampled_from((0.5, "", "x", *fields))
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(fields), inner, max_size=3),
        max_leaves=5,
    )


def fragments(answer: Json, size: int, unfold: Callable[[Json], Iterator[Json]]) -> list[Json]:
    """The chunks of an answer with every text and every argument cut into pieces of `size`."""
    out: list[Json] = []
    for event in unfold(answer):
        delta = event["choices"][0]["delta"] if event["choices"] else {}
        cut = next((name for name in ("content", "reasoning_content", "refusal") if delta.get(name)), None)
        if cut:
            pieces = [{cut: delta[cut][i : i + size]} for i in range(0, len(delta[cut]), size)]
        elif delta.get("tool_calls"):
            call = delta["tool_calls"][0]
            written = call["function"]["arguments"]
            pieces = [{"tool_calls": [{**call, "function": {**call["function"], "arguments": ""}}]}]
            pieces += [
                {"tool_calls": [{"index": call["index"], "function": {"arguments": written[i : i + size]}}]}
                for i in range(0, len(written), size)
            ]
        else:
            out.append(event)
            continue
        out += [{**event, "choices": [{**event["choices"][0], "delta": piece}]} for piece in pieces]
    return out


def _mistyped(value: Any) -> Iterator[Any]:
    """The value with one of its members, at any depth, of another type."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield {**value, name: 5 if not isinstance(member, int) or isinstance(member, bool) else "5"}
            for inner in _mistyped(member):
                yield {**value, name: inner}
    elif isinstance(value, list):
        for i, member in enumerate(value):
            for inner in _mistyped(member):
                yield [*value[:i], inner, *value[i + 1 :]]


def mutations(events: list[Json]) -> Iterator[list[Any]]:
    """Every stream that one dropped, doubled, swapped, foreign or mistyped event makes of a good one."""
    for i, event in enumerate(events):
        yield events[:i] + events[i + 1 :]
        yield [*events[:i], event, event, *events[i + 1 :]]
        yield [*events[:i], None, *events[i:]]
        yield [*events[:i], "text", *events[i:]]
        if i + 1 < len(events):
            yield [*events[:i], events[i + 1], event, *events[i + 2 :]]
        for wrong in _mistyped(event):
            yield [*events[:i], wrong, *events[i + 1 :]]
        yield events[:i]


def unchanged(mapper: Callable[..., Any], given: Any, cfg: Json | None = None) -> Any:
    """What the mapper gives, after a look whether it left its input as it was."""
    kept, config = copy.deepcopy(given), copy.deepcopy(CFG if cfg is None else cfg)
    result = mapper(given, CFG if cfg is None else cfg)
    result = result if isinstance(result, dict) else list(result)
    assert given == kept
    assert (CFG if cfg is None else cfg) == config
    return result
