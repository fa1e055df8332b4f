"""The `mappers.py` of a user who makes mistakes: the built-in stream mappers with one thing broken about what they tell.

NAMES says what each mutant is called here: {(tag of the API, what is wrong): name}.
"""

from __future__ import annotations

from proxy.dialects import mapper


def _edit(i, change):
    def run(events):
        events = list(events)
        at = i if i >= 0 else len(events) + i
        for n, event in enumerate(events):
            yield from change(event) if n == at else [event]

    return run


def _where(test, change):
    def run(events):
        done = False
        for event in events:
            if not done and test(event):
                done = True
                yield from change(event)
            else:
                yield event

    return run


def _swap(i):
    def run(events):
        events = list(events)
        i_ = i if i >= 0 else len(events) + i
        events[i_], events[i_ + 1] = events[i_ + 1], events[i_]
        yield from events

    return run


def _set(event, path, value):
    if not path:
        return value
    step, *rest = path
    if isinstance(event, list):
        step = int(step)
        return [_set(item, rest, value) if n == step else item for n, item in enumerate(event)]
    return {**event, step: _set(event.get(step), rest, value)}


def _every(path, value):
    def run(events):
        for event in events:
            try:
                yield _set(event, path, value)
            except (AttributeError, IndexError, TypeError, KeyError):
                yield event

    return run


def _boom(events):
    for n, event in enumerate(events):
        if n == 3:
            raise ValueError("a slip")
        yield event


def _ends_in_the_middle(events):
    events = list(events)
    yield from events[: len(events) // 2]


def _twice(events):
    events = list(events)
    yield from [*events, *events]


NAN = float("nan")
GENERAL = {
    "the first is missing": _edit(0, lambda e: []),
    "the second is missing": _edit(1, lambda e: []),
    "the third is missing": _edit(2, lambda e: []),
    "the last is missing": _edit(-1, lambda e: []),
    "the one before the last is missing": _edit(-2, lambda e: []),
    "the first comes twice": _edit(0, lambda e: [e, e]),
    "the third comes twice": _edit(2, lambda e: [e, e]),
    "the last comes twice": _edit(-1, lambda e: [e, e]),
    "the first two are swapped": _swap(0),
    "the third and fourth are swapped": _swap(2),
    "the last two are swapped": _swap(-2),
    "one is text": _edit(2, lambda e: ["words"]),
    "one is null": _edit(2, lambda e: [None]),
    "one is a list": _edit(2, lambda e: [[e]]),
    "one is empty": _edit(2, lambda e: [{}]),
    "a number is not one": _edit(2, lambda e: [{**e, "usage": {"output_tokens": NAN}, "logprob": NAN}]),
    "it ends in the middle": _ends_in_the_middle,
    "it says nothing": lambda events: iter(()),
    "it falls over": _boom,
    "it goes on after the end": _twice,
}
OWN = {
    "OpenAI": {
        "choices is an object": _every(["choices"], {}),
        "an index is text": _every(["choices", "0", "index"], "zero"),
        "content is a number": _edit(2, lambda e: [_set(e, ["choices", "0", "delta", "content"], 7)]),
        "delta is missing": _edit(2, lambda e: [{**e, "choices": [{"index": 0}]}]),
        "a tool delta before its start": _where(
            lambda e: e.get("choices") and e["choices"][0]["delta"].get("tool_calls"), lambda e: []
        ),
        "a tool index is text": _where(
            lambda e: e.get("choices") and e["choices"][0]["delta"].get("tool_calls"),
            lambda e: [_set(e, ["choices", "0", "delta", "tool_calls", "0", "index"], "first")],
        ),
        "tool arguments are an object": _where(
            lambda e: e.get("choices") and e["choices"][0]["delta"].get("tool_calls"),
            lambda e: [_set(e, ["choices", "0", "delta", "tool_calls", "0", "function", "arguments"], {})],
        ),
    },
    "Responses": {
        "an unknown type": _edit(3, lambda e: [{**e, "type": "response.surprise"}]),
        "no type": _edit(3, lambda e: [{k: v for k, v in e.items() if k != "type"}]),
        "the wrong output_index": _every(["output_index"], 9),
        "an item that was not added": _where(lambda e: e["type"] == "response.output_item.added", lambda e: []),
        "delta is a number": _where(lambda e: e["type"].endswith(".delta"), lambda e: [{**e, "delta": 7}]),
        "no sequence_number": _every(["sequence_number"], None),
        "a response without output": _where(
            lambda e: e["type"] == "response.completed",
            lambda e: [{**e, "response": {k: v for k, v in e["response"].items() if k != "output"}}],
        ),
    },
    "Anthropic": {
        "an unknown type": _edit(2, lambda e: [{**e, "type": "content_block_surprise"}]),
        "no type": _edit(2, lambda e: [{k: v for k, v in e.items() if k != "type"}]),
        "the wrong index": _where(lambda e: e["type"] == "content_block_delta", lambda e: [{**e, "index": 5}]),
        "a block without a stop": _where(lambda e: e["type"] == "content_block_stop", lambda e: []),
        "a block without a start": _where(lambda e: e["type"] == "content_block_start", lambda e: []),
        "an unknown delta": _where(
            lambda e: e["type"] == "content_block_delta", lambda e: [{**e, "delta": {"type": "shout_delta", "shout": "!"}}]
        ),
        "arguments that are no JSON": _where(
            lambda e: e.get("delta", {}).get("type") == "input_json_delta", lambda e: [_set(e, ["delta", "partial_json"], "}{")]
        ),
        "a message without content": _where(
            lambda e: e["type"] == "message_start",
            lambda e: [{**e, "message": {k: v for k, v in e["message"].items() if k != "content"}}],
        ),
        "usage is text": _where(lambda e: e["type"] == "message_delta", lambda e: [{**e, "usage": "much"}]),
    },
    "Gemini": {
        "candidates is an object": _edit(0, lambda e: [{**e, "candidates": {}}]),
        "parts is text": _edit(0, lambda e: [_set(e, ["candidates", "0", "content", "parts"], "words")]),
        "text is a number": _edit(0, lambda e: [_set(e, ["candidates", "0", "content", "parts"], [{"text": 7}])]),
        "args is text": _edit(
            0, lambda e: [_set(e, ["candidates", "0", "content", "parts"], [{"functionCall": {"name": "f", "args": "x"}}])]
        ),
        "an unknown field": _edit(0, lambda e: [{**e, "surprise": True}]),
        "a count is text": _every(["usageMetadata"], {"promptTokenCount": "many"}),
    },
    "Ollama": {
        "message is text": _edit(0, lambda e: [{**e, "message": "words"}]),
        "content is a number": _edit(0, lambda e: [_set(e, ["message", "content"], 7)]),
        "arguments are text": _edit(
            0, lambda e: [_set(e, ["message", "tool_calls"], [{"function": {"name": "f", "arguments": "x"}}])]
        ),
        "done is text": _edit(0, lambda e: [{**e, "done": "no"}]),
        "a count is text": _edit(-1, lambda e: [{**e, "eval_count": "many"}]),
        "it is done twice": _edit(0, lambda e: [{**e, "done": True, "done_reason": "stop"}]),
    },
}


def _mutant(tag, change):
    built_in = mapper("chatStreamOpenAIto" + tag)

    def stream(events, cfg=None):
        yield from change(built_in(events, cfg or {}))

    return stream


NAMES = {}
for tag, own in OWN.items():
    for number, (name, change) in enumerate([*GENERAL.items(), *own.items()]):
        NAMES[tag, name] = f"mutant{number}of{tag}"
        globals()[NAMES[tag, name]] = _mutant(tag, change)
