"""What a call used is read right in every API's words, streamed or not, however its bytes are cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.gates.include_usage import Unasked, with_usage
from proxy.gates.usage import TAIL, WHOLE, Meter, Usage


def sse(*events: Any, named: bool = False) -> bytes:
    lines = []
    for event in events:
        name = f"event: {event['type']}\n" if named else ""
        lines.append(f"{name}data: {event if isinstance(event, str) else json.dumps(event)}\n\n")
    return "".join(lines).encode()


def chunk(text: str, **more: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}], **more}


OPENAI = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107, "prompt_tokens_details": {"cached_tokens": 64}}
ANTHROPIC_START = {"input_tokens": 30, "cache_creation_input_tokens": 6, "cache_read_input_tokens": 64, "output_tokens": 1}
RESPONSES = {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 64}, "output_tokens": 7, "total_tokens": 107}
GEMINI = {"promptTokenCount": 100, "candidatesTokenCount": 5, "thoughtsTokenCount": 2, "cachedContentTokenCount": 64}
BEDROCK = {"inputTokens": 30, "outputTokens": 7, "cacheReadInputTokens": 64, "cacheWriteInputTokens": 6, "totalTokens": 107}
SPOOF = {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 0, "output_tokens": 0}}
TOOL = {"type": "tool_use", "id": "t", "name": "f", "input": SPOOF}

EXACT = [
    pytest.param(json.dumps({"choices": [{"message": {"content": "hi"}}], "usage": OPENAI}).encode(), id="openai"),
    pytest.param(json.dumps({"usage": OPENAI, "choices": [{"message": {"content": "x" * 50_000}}]}).encode(), id="usage first"),
    pytest.param(
        sse(chunk("a", usage=None), chunk("b", usage=None), {"choices": [], "usage": OPENAI}, "[DONE]"), id="openai sse"
    ),
    pytest.param(sse(chunk("a"), {"choices": [{"delta": {}}], "x_groq": {"usage": OPENAI}}, "[DONE]"), id="groq sse"),
    pytest.param(
        json.dumps({"type": "message", "content": [TOOL], "usage": {**ANTHROPIC_START, "output_tokens": 7}}).encode(),
        id="anthropic",
    ),
    pytest.param(
        json.dumps({"usage": {**ANTHROPIC_START, "output_tokens": 7}, "content": [TOOL]}, indent=2).encode(),
        id="anthropic, usage before a tool's input that looks like one",
    ),
    pytest.param(
        sse(
            {"type": "message_start", "message": {"id": "m", "usage": ANTHROPIC_START}},
            *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x" * 90}},) * 2000,
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
            {"type": "message_stop"},
            named=True,
        ),
        id="anthropic sse, longer than what is kept",
    ),
    pytest.param(
        sse(
            {"type": "message_start", "message": {"id": "m", "usage": {**ANTHROPIC_START, "input_tokens": 29}}},
            {"type": "message_delta", "delta": {}, "usage": {**ANTHROPIC_START, "output_tokens": 7}},
            named=True,
        ),
        id="anthropic sse, its last word on all",
    ),
    pytest.param(json.dumps({"object": "response", "output": [], "usage": RESPONSES, "metadata": {}}).encode(), id="responses"),
    pytest.param(
        sse(
            {"type": "response.created", "response": {"usage": None}},
            {"type": "response.output_text.delta", "delta": "hi"},
            {"type": "response.completed", "response": {"output": [{"text": '"usage": {'}], "usage": RESPONSES, "user": None}},
            named=True,
        ),
        id="responses sse",
    ),
    pytest.param(json.dumps({"candidates": [{}], "usageMetadata": GEMINI}, indent=2).encode(), id="gemini"),
    pytest.param(
        sse({"usageMetadata": {"promptTokenCount": 100}}, {"candidates": [{}], "usageMetadata": GEMINI}), id="gemini sse"
    ),
    pytest.param(
        json.dumps([{"usageMetadata": {"promptTokenCount": 100}}, {"usageMetadata": GEMINI}], indent=2).encode(),
        id="gemini array",
    ),
    pytest.param(json.dumps({"output": {}, "usage": BEDROCK, "metrics": {"latencyMs": 7}}).encode(), id="bedrock"),
    pytest.param(
        b"".join(
            json.dumps(event).encode() + b"\n"
            for event in (
                {"messageStart": {}},
                {"contentBlockDelta": {"delta": {"text": "hi"}}},
                {"metadata": {"usage": BEDROCK}},
            )
        ),
        id="bedrock's events",
    ),
]
UNCACHED = [
    pytest.param(json.dumps({"message": {}, "done": True, "prompt_eval_count": 100, "eval_count": 7}).encode(), id="ollama"),
    pytest.param(
        b'{"message":{"content":"a"},"done":false}\n{"message":{"content":""},"done":true,"prompt_eval_count":100,"eval_count":7}\n',
        id="ollama ndjson",
    ),
    pytest.param(json.dumps({"content": "a", "tokens_evaluated": 100, "tokens_predicted": 7}).encode(), id="llama.cpp"),
    pytest.param(
        sse({"content": "a", "stop": False}, {"content": "", "stop": True, "tokens_evaluated": 100, "tokens_predicted": 7}),
        id="llama.cpp sse",
    ),
    pytest.param(
        sse({"token": {"text": "a"}}, {"token": {"text": "b"}, "details": {"generated_tokens": 7, "input_length": 100}}),
        id="tgi",
    ),
]


def heard(data: bytes, size: int) -> Meter:
    meter = Meter()
    for at in range(0, len(data), size):
        meter.hear(data[at : at + size])
    return meter


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 30])
@pytest.mark.parametrize("data", EXACT)
def test_usage_is_what_the_backend_says_with_what_was_cached(data: bytes, size: int, whole: bool) -> None:
    assert heard(data, size).usage(whole) == Usage(100, 7, 64)


@pytest.mark.parametrize(
    "answer",
    [
        {"content": [TOOL]},
        {"type": "message", "input": SPOOF},
        {"content": [TOOL], "usage": None},
        {"choices": [], "metadata": {"usage": {"inputTokens": 0, "outputTokens": 0}}},  # the client's own, given back
        {"content": [{"text": '"usage": {"prompt_tokens": 1, "completion_tokens": 1}}'}]},
    ],
)
def test_what_only_looks_like_usage_is_none(answer: dict[str, Any]) -> None:
    assert heard(json.dumps(answer).encode(), 1 << 30).usage(True) == Usage()


def test_usage_is_read_where_more_follows_it_and_where_its_texts_have_braces() -> None:
    usage = {**OPENAI, "note": "} {"}
    for more in ({"service_tier": "default"}, {"more": [{"deep": [1]}]}, {"text": "a } brace"}):
        for counts in (OPENAI, usage):
            data = json.dumps({"choices": [{"message": {"content": "hi"}}], "usage": counts, **more}, indent=1).encode()
            assert heard(data, 1 << 30).usage(True) == Usage(100, 7, 64)


@pytest.mark.parametrize("size", [1, 5, 1 << 30])
@pytest.mark.parametrize("data", UNCACHED)
def test_local_servers_usage_is_read_too(data: bytes, size: int) -> None:
    assert heard(data, size).usage() == Usage(100, 7, None)


def test_embeddings_use_what_goes_in() -> None:
    data = json.dumps({"data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}).encode()
    assert heard(data, 100).usage() == Usage(8, None, None)


def test_an_answer_too_long_to_be_kept_is_read_at_its_end() -> None:
    vectors = [0.123456789] * (WHOLE // 8)
    data = json.dumps({"data": [{"embedding": vectors}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}).encode()
    assert len(data) > WHOLE
    assert heard(data, 65536).usage().tokens_in == 8


@pytest.mark.parametrize("wrong", [True, -1, 1.5, "7", None, 1 << 60])
def test_a_count_that_is_none_is_not_taken(wrong: Any) -> None:
    data = json.dumps({"usage": {"prompt_tokens": wrong, "completion_tokens": wrong}}).encode()
    meter = heard(data, 100)
    assert meter.usage() == Usage()


def test_what_is_no_answer_tells_nothing() -> None:
    for data in (b"\xff\xfe", b"[", b"<html>", b"{}", b"[]", b"1", b"data: x\n\n"):
        assert not heard(data, 1).usage().known


def test_a_stream_of_any_length_is_held_in_bounds() -> None:
    meter = Meter()
    for _ in range(10_000):
        meter.hear(sse(chunk("word")))
    assert sum(map(len, meter._parts)) <= 2 * TAIL


@pytest.mark.parametrize("named", [False, True])
def test_a_stream_without_usage_counts_its_events(named: bool) -> None:
    events = [{"type": "delta", **chunk(" a")}] * 200
    came = heard(sse(*events, named=named), 1000).streamed
    assert 190 <= came <= 260


def test_a_stream_whose_events_are_long_counts_its_text() -> None:
    came = heard(sse(chunk(""), *[chunk("word " * 100)] * 10), 1000).streamed
    assert 1000 <= came <= 1500


# --- usage that the proxy asked for


def kept(data: bytes, cuts: list[int]) -> bytes:
    unasked = Unasked()
    unasked.is_on = True
    places = [0, *cuts, len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(places) if end > start]
    return b"".join(unasked.hear(piece) for piece in pieces)


USAGE_EVENT = {"id": "c", "choices": [], "usage": OPENAI}


def every_cut(length: int) -> Iterator[list[int]]:
    yield from ([at] for at in range(length + 1))
    yield list(range(1, length))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_usage_that_nobody_asked_for_is_taken_out_wherever_it_is_cut(end: str) -> None:
    before, after = sse(chunk("a", usage=None)), sse("[DONE]")
    whole = (before + sse(USAGE_EVENT) + after).replace(b"\n", end.encode())
    wanted = (before + after).replace(b"\n", end.encode())
    for cuts in every_cut(len(whole)):
        assert kept(whole, cuts) == wanted, cuts


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [{"delta": {"content": "x"}}], "usage": OPENAI},
        {"choices": [], "prompt_filter_results": [], "usage": None},
        {"error": {"message": "x"}, "usage": {}},
        chunk('{"choices": [], "usage": {"a": 1}}'),
    ],
)
def test_events_that_say_more_than_usage_stay(event: Any) -> None:
    whole = sse(chunk("a"), event, "[DONE]")
    for cuts in every_cut(len(whole)):
        assert kept(whole, cuts) == whole, cuts


def test_a_last_line_whose_end_was_forgotten_is_not_lost() -> None:
    for last in (b"data: [DONE]", b"data: " + json.dumps(chunk("z")).encode(), b": comment"):
        whole = sse(chunk("a")) + last
        assert kept(whole, [10]) == whole


def test_asking_for_usage_changes_nothing_else() -> None:
    body = b'{"model":"m", "messages" : [{"role":"user","content":"\\u00e9 {"}],"stream":true}'
    assert with_usage(b'{"a":1}') == b'{"stream_options":{"include_usage":true},"a":1}'
    assert json.loads(with_usage(body)) == {**json.loads(body), "stream_options": {"include_usage": True}}
    for options in (None, {"include_usage": False, "other": 1}):
        asked = json.loads(with_usage(json.dumps({"stream": True, "stream_options": options}).encode()))
        assert asked["stream_options"] == {**(options or {}), "include_usage": True}
    hidden = b'{"stream\\u005foptions": {"include_usage": false}, "stream": true}'
    assert json.loads(with_usage(hidden)) == {"stream": True, "stream_options": {"include_usage": True}}
