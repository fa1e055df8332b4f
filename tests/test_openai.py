"""proxy/dialects/openai.py: the hub's forms, the text bridge, and OpenAI's API in front and behind."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import wire
from proxy.dialects import load, mapper, openai, route_of
from proxy.dialects._seal import signed
from proxy.dialects.openai import (
    canonical,
    canonical_answer,
    canonical_chunks,
    chat_answer,
    chatAnsOpenAItoOpenAI,
    chatReqOpenAItoOpenAI,
    chatStreamOpenAItoOpenAI,
    chunk,
    countEstimate,
    data_uri,
    embed_answer,
    embed_inputs,
    embedAnsOpenAItoOpenAI,
    embedReqOpenAItoOpenAI,
    fold,
    grammar,
    modelAnsOpenAItoOpenAI,
    modelsAnsAliases,
    nine_id,
    parse_arguments,
    parse_error,
    sniff,
    text_of,
    textAnsChattoOpenAI,
    textReqOpenAItoChat,
    textReqOpenAItoOpenAI,
    textStreamChattoOpenAI,
    to_base64,
    tool_call,
    tool_delta,
    tool_id,
    unfold,
    usage,
    usage_chunk,
    vectors_of,
)
from proxy.errors import BackendError, BadRequest, ClientGone, MapperError, ProxyError
from tests.doubles.openai import HELLO, OpenAIDouble, check_chat
from tests.laws import CFG, PNG, fragments, hub_answers, hub_requests, mutations, unchanged

Json = dict[str, Any]
HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.fixture(scope="module")
def double() -> Iterator[OpenAIDouble]:
    with OpenAIDouble() as running:
        yield running


def ask(double: OpenAIDouble, path: str, body: Json) -> Any:
    """A decoded answer, or the events of a stream. Raises what parse_error makes of a refusal."""
    headers = {"Authorization": "Bearer k"}
    with requests.post(double.url + path, json=body, headers=headers, stream=bool(body.get("stream")), timeout=10) as reply:
        if reply.status_code != 200:
            raise parse_error(reply.status_code, reply.json())
        return list(wire.read_sse(reply.iter_content(None))) if body.get("stream") else reply.json()


# --- canonical requests


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ({"max_tokens": 5}, {"max_completion_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"max_completion_tokens": 7}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"stop": None, "temperature": None, "user": None}, {}),
        ({"stop": []}, {}),
        ({"stop": [""]}, {}),
        ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"functions": [TOOL["function"]], "function_call": "auto"}, {"tools": [TOOL], "tool_choice": "auto"}),
        (
            {"functions": [TOOL["function"]], "function_call": {"name": "look"}},
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
        ),
        ({"tools": [{"type": "function", **TOOL["function"]}]}, {"tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "any"}, {"tools": [TOOL], "tool_choice": "required"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "look"}},
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
        ),
        ({"response_format": {"type": "text"}}, {}),
        ({"service_tier": "flex"}, {"service_tier": "flex"}),
    ],
)
def test_variants_of_a_field_become_one(given_: Json, wanted: Json) -> None:
    assert canonical({"messages": HI, **given_}) == {"messages": HI, **wanted}


def test_allowed_tools_leave_only_those_that_are_allowed() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    choice = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "other"}}]},
    }
    req = canonical({"messages": HI, "tools": [TOOL, other], "tool_choice": choice})
    assert (req["tools"], req["tool_choice"]) == ([other], "required")


def test_custom_tools_become_functions_with_one_string() -> None:
    grammar_ = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /a+/"}}
    custom = {"type": "custom", "custom": {"name": "run", "description": "Runs.", "format": grammar_}}
    history = [
        *HI,
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "run", "input": "aa"}}]},
    ]
    history.append({"role": "tool", "tool_call_id": "c", "content": "ok"})
    req = canonical({"messages": history, "tools": [custom], "tool_choice": {"type": "custom", "custom": {"name": "run"}}})
    function = req["tools"][0]["function"]
    assert function["parameters"]["required"] == ["input"]
    assert "start: /a+/" in function["description"]
    assert req["tool_choice"] == {"type": "function", "function": {"name": "run"}}
    assert req["messages"][1]["tool_calls"][0]["function"] == {"name": "run", "arguments": '{"input":"aa"}'}
    kept = canonical({"messages": history, "tools": [custom]}, own=True)
    assert kept["tools"] == [custom]
    assert kept["messages"][1]["tool_calls"][0]["type"] == "custom"
    history[1]["tool_calls"][0]["id"] = 5
    with pytest.raises(BadRequest, match=r"messages\[1\].tool_calls\[0\].id"):
        canonical({"messages": history, "tools": [custom]}, own=True)


def test_legacy_function_turns_become_tool_turns_with_one_id() -> None:
    history = [
        *HI,
        {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
        {"role": "function", "name": "look", "content": "seen"},
    ]
    messages = canonical({"messages": history})["messages"]
    assert messages[1]["tool_calls"] == [
        {"id": "call_1_0", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    ]
    assert messages[2] == {"role": "tool", "tool_call_id": "call_1_0", "content": "seen"}


def test_missing_ids_are_made_up_alike_on_calls_and_results() -> None:
    pair = [{"function": {"name": "a", "arguments": {"x": 1}}}, {"function": {"name": "b"}}]
    history = [
        *HI,
        {"role": "assistant", "tool_calls": pair},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": None},
    ]
    messages = canonical({"messages": history})["messages"]
    assert [call["id"] for call in messages[1]["tool_calls"]] == [m["tool_call_id"] for m in messages[2:]]
    assert [call["function"]["arguments"] for call in messages[1]["tool_calls"]] == ['{"x":1}', ""]
    assert messages[3]["content"] == ""


def test_what_an_sdk_dumps_with_nulls_loses_them() -> None:
    dumped = {"role": "assistant", "content": "hi", "refusal": None, "audio": None, "function_call": None, "tool_calls": None}
    assert canonical({"messages": [*HI, dumped]})["messages"][1] == {"role": "assistant", "content": "hi"}


def test_parts_of_other_shapes_become_canonical() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"}]
    content = canonical({"messages": [{"role": "user", "content": parts}]})["messages"][0]["content"]
    assert content == [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
    ]


def test_a_responses_body_sent_to_chat_is_understood() -> None:
    body = {"model": "m", "input": [{"role": "user", "content": "hi"}], "tools": [{"type": "function", **TOOL["function"]}]}
    assert canonical(body) == {"model": "m", "messages": HI, "tools": [TOOL]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": 3}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]}, "messages[0].tool_calls[0].function"),
        ({"messages": HI, "temperature": "hot"}, "temperature"),
        ({"messages": HI, "temperature": True}, "temperature"),
        ({"messages": HI, "n": 1.5}, "n"),
        ({"messages": HI, "stream": "yes"}, "stream"),
        ({"messages": HI, "stop": 5}, "stop"),
        ({"messages": HI, "stop": ["a", 5]}, "stop"),
        ({"messages": HI, "model": 5}, "model"),
        ({"messages": HI, "tools": {}}, "tools"),
        ({"messages": HI, "tools": ["look"]}, "tools[0]"),
        ({"messages": HI, "tools": [{"type": ["function"]}]}, "tools[0].type"),
        ({"messages": HI, "tools": [{"type": "function"}]}, "tools[0].function"),
        ({"messages": HI, "tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        (
            {"messages": HI, "tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"messages": HI, "tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice"),
        ({"messages": HI, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"messages": HI, "response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": HI, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_what_is_wrong_is_named(body: Json, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        canonical(body)
    assert caught.value.param == param
    assert caught.value.status == 400


@given(hub_requests())
def test_canonical_is_idempotent_and_leaves_its_input(request_: Json) -> None:
    once = unchanged(lambda ip, cfg: canonical(ip), request_)
    assert once == request_
    assert canonical(once) == once


WORDS = ("role", "content", "type", "text", "function", "name", "tool_calls", "id", "image_url", "url", "custom", "arguments")
SCALARS = st.none() | st.booleans() | st.integers() | st.sampled_from((0.5, "", "x", "text", "function", "tool"))
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(("role", "content", "tool_calls", "tool_call_id", "function_call", "name"))
MESSAGE = st.dictionaries(FIELDS, JUNK | st.sampled_from(("user", "assistant", "tool", "function")), max_size=4)
CHOICES = ("tools", "tool_choice", "stop", "response_format", "functions", "function_call")


@given(st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3)}, optional=dict.fromkeys(CHOICES, JUNK)))
def test_no_client_body_crashes_a_request_mapper(body: Json) -> None:
    try:
        req = chatReqOpenAItoOpenAI(body)
    except BadRequest:
        return
    assert isinstance(req["messages"], list)


# --- content


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"%PDF-1.7", "application/pdf"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "audio/wav"),
        (b"hello, world", None),
    ],
)
def test_magic_bytes_tell_the_media_type(head: bytes, kind: str | None) -> None:
    padded = head.ljust(24, b"\0")
    assert sniff(padded) == kind
    assert sniff(base64.b64encode(padded).decode()) == kind
    assert data_uri(f"data:image/xyz;base64,{base64.b64encode(padded).decode()}") == (
        kind or "image/xyz",
        base64.b64encode(padded).decode(),
    )


def test_data_uris_of_all_shapes() -> None:
    assert data_uri("https://x/y.png") is None
    assert data_uri("data:,a%20b") == ("text/plain", base64.b64encode(b"a b").decode())
    assert data_uri(f"DATA:image/jpeg;charset=x;BASE64,{PNG[:40]}\n {PNG[40:]}") == ("image/png", PNG)
    for broken in ("data:image/png;base64", "data:image/png;base64,", "data:image/png;base64,@@@"):
        with pytest.raises(BadRequest):
            data_uri(broken, "x")


def test_text_of_reads_strings_and_parts() -> None:
    assert text_of("a") == "a"
    assert text_of([{"type": "text", "text": "a"}, {"type": "image_url"}, None, {"type": "text", "text": "b"}]) == "ab"
    assert text_of(None) == text_of(5) == ""


def test_arguments_are_an_object_or_an_error() -> None:
    assert parse_arguments("") == parse_arguments(None) == {}
    assert parse_arguments('{"a": 1}') == parse_arguments({"a": 1}) == {"a": 1}
    for wrong in ("{", "[]", "5", "null", "[" * 100000):
        with pytest.raises(BackendError):
            parse_arguments(wrong)
    with pytest.raises(BadRequest) as caught:
        parse_arguments("{", BadRequest, "messages[1].tool_calls[0]")
    assert caught.value.param == "messages[1].tool_calls[0]"


@given(st.text(), st.text())
def test_tool_ids_are_legal_deterministic_and_never_merge(one: str, other: str) -> None:
    for made in (tool_id(one), tool_id(one, 40)):
        assert made
        assert all(c.isascii() and (c.isalnum() or c in "_-") for c in made)
    assert len(tool_id(one)) <= 64
    assert len(tool_id(one, 40)) <= 40
    assert len(nine_id(one)) == 9
    assert nine_id(one).isalnum()
    if one != other:
        assert tool_id(one) != tool_id(other)
    assert tool_id(tool_id(one)) == tool_id(one)
    assert nine_id(nine_id(one)) == nine_id(one)


# --- answers and streams


@given(hub_answers(), st.integers(1, 5))
def test_folding_the_stream_of_an_answer_gives_the_answer(answer: Json, size: int) -> None:
    assert fold(unfold(answer)) == answer
    assert fold(fragments(answer, size, unfold)) == answer
    assert canonical_answer(answer) == answer
    assert fold(canonical_chunks(unfold(answer))) == answer
    assert list(grammar(unfold(answer))) == list(unfold(answer))


@given(hub_answers(), hub_answers())
def test_several_choices_fold_apart(one: Json, two: Json) -> None:
    both = {**one, "choices": [one["choices"][0], {**two["choices"][0], "index": 1}]}
    events = list(unfold(both))
    ours, theirs = ([e for e in events if e["choices"] and e["choices"][0]["index"] == i] for i in (0, 1))
    mixed = [event for pair in zip_longest(ours, theirs) for event in pair if event]
    assert fold([*mixed, events[-1]]) == both


def _delta(*calls: Json) -> Json:
    return chunk(CFG, {"tool_calls": list(calls)})


def _named(index: int | None, call_id: str, name: str, arguments: str | None = "") -> Json:
    return {"index": index, "id": call_id, "type": None, "function": {"name": name, "arguments": arguments}}


def _more(arguments: str, **fields: Any) -> Json:
    return {**fields, "function": {"arguments": arguments}}


@pytest.mark.parametrize(
    "calls",
    [
        [_named(None, "a", "f"), _more("{}"), _named(None, "b", "g"), _more("[1]")],
        [_named(None, "a", "f"), _named(None, "b", "g", "["), _more("{}", id="a"), _more("1]", id="b")],
        [_named(0, "a", "f", "{}"), _named(0, "b", "g", "[1]")],
        [_named(3, "a", "f", "{}"), _named(7, "b", "g"), _more("[1]", index=7)],
        [_named(0, "a", "f", "{"), _more("}", index=0, id=""), _named(1, "b", "g", None), _more("[1]", index=1)],
    ],
)
def test_tool_deltas_find_their_call(calls: list[Json]) -> None:
    wanted = [("a", "f", "{}"), ("b", "g", "[1]")]
    for events in ([_delta(call) for call in calls], [_delta(*calls)]):
        for folded in (fold(events), fold(canonical_chunks(events))):
            made = folded["choices"][0]["message"]["tool_calls"]
            assert [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in made] == wanted
        seen = [call for event in canonical_chunks(events) for call in event["choices"][0]["delta"]["tool_calls"]]
        assert [call["index"] for call in seen if "id" in call] == [0, 1]


def test_a_strange_servers_chunks_become_canonical() -> None:
    parts = [{"type": "text", "text": "a"}]
    spent = {"prompt_tokens": 1, "completion_tokens": 2}
    events = [
        {"id": "x", "choices": None},
        {"id": "x", "model": "m", "choices": [{"delta": {"role": "assistant", "content": None, "reasoning": "hm"}}]},
        {"id": "x", "choices": [{"index": 0, "delta": {"content": parts}, "finish_reason": ""}], "usage": None},
        {"id": "x", "choices": [{"index": 0, "delta": None, "finish_reason": "eos"}], "usage": spent},
        {"id": "x", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop"}]},
        "noise",
    ]
    out = list(canonical_chunks(events))
    deltas = [choice["delta"] for event in out for choice in event["choices"]]
    assert deltas == [{"role": "assistant", "reasoning_content": "hm"}, {"content": "a"}, {}, {"content": ""}]
    assert [c["finish_reason"] for event in out for c in event["choices"]] == [None, None, "stop", None]
    assert out[-1] == {"id": "x", "choices": [], "usage": usage(1, 2)}
    assert not any("usage" in event for event in out[:-1])


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ({"error": {"message": "m", "code": 429}}, 429),
        ({"error": {"message": "m", "code": "rate_limit_exceeded"}}, 429),
        ({"error": {"message": "m", "type": "overloaded_error"}}, 503),
        ({"error": {"message": "m", "type": "request_too_large"}}, 413),
        ({"error": {"message": "m", "code": "context_length_exceeded"}}, 400),
        ({"error": {"message": "m", "code": "server_is_overloaded"}}, 503),
        ({"error": {"message": "m", "code": "500", "type": "server_error"}}, 500),
        ({"error": "m"}, 502),
        ({"error": {"message": "m", "code": 77}}, 502),
    ],
)
def test_an_error_in_disguise_is_raised(event: Json, status: int) -> None:
    for call in (lambda: list(canonical_chunks([event])), lambda: canonical_answer(event)):
        with pytest.raises(BackendError) as caught:
            call()
        assert (caught.value.status, caught.value.message) == (status, "m")


def test_a_strange_servers_answer_becomes_canonical() -> None:
    message = {
        "content": None,
        "reasoning": "hm",
        "tool_calls": [{"index": 0, "function": {"name": "f", "arguments": {"a": 1}}}],
        "function_call": None,
    }
    spent = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 2}}
    answer = canonical_answer({"choices": [{"message": message, "finish_reason": "stop"}], "usage": spent})
    choice = answer["choices"][0]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
    }
    assert choice["finish_reason"] == "tool_calls"
    assert answer["usage"] == usage(3, 4, 1, 2)


def test_a_custom_tools_call_is_told_alike_whole_and_streamed() -> None:
    said = ['say "', 'hi"\n', "\u2028ü\\"]
    whole = {"id": "c1", "type": "custom", "custom": {"name": "run", "input": "".join(said)}}
    other = tool_call("c2", "look", {"a": 1})
    answer = canonical_answer({"choices": [{"index": 0, "message": {"tool_calls": [whole, other]}, "finish_reason": "stop"}]})
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"input": "".join(said)}
    deltas: list[Any] = [[{"index": 0, "id": "c1", "type": "custom", "custom": {"name": "run", "input": ""}}]]
    deltas += [[{"index": 0, "custom": {"input": piece}}] for piece in said]
    deltas += [[{"index": 1, **other}]]
    events = [chunk(CFG, {"tool_calls": delta}) for delta in deltas]
    streamed = list(canonical_chunks([*events, chunk(CFG, {}, "tool_calls")]))
    assert fold(streamed)["choices"][0]["message"]["tool_calls"] == calls
    assert list(grammar(streamed)) == streamed
    silent = chunk(CFG, {"tool_calls": deltas[0]}), chunk(CFG, {}, "tool_calls")
    assert fold(canonical_chunks(silent))["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"input":""}'
    assert fold(events)["choices"][0]["message"]["tool_calls"][0] == whole


REFUSALS: list[tuple[str, Any]] = [
    ("Anthropic", lambda answer: "".join(block.get("text", "") for block in answer["content"])),
    ("Gemini", lambda answer: "".join(part.get("text", "") for part in answer["candidates"][0]["content"]["parts"])),
    ("Ollama", lambda answer: answer["message"]["content"]),
    ("Responses", lambda answer: "".join(p.get("text", p.get("refusal")) for p in answer["output"][0]["content"])),
]


@pytest.mark.parametrize(("tag", "words"), REFUSALS)
def test_a_refusal_beside_text_is_told_alike_whole_and_streamed(tag: str, words: Any) -> None:
    answer = chat_answer(CFG, {"role": "assistant", "content": "Well. ", "refusal": "No."}, "stop", usage(1, 2))
    whole = mapper(f"chatAnsOpenAIto{tag}")(answer, CFG)
    assert words(whole) == "Well. No."
    events = list(mapper(f"chatStreamOpenAIto{tag}")(unfold(answer), CFG))
    told = {
        "Anthropic": lambda: "".join(event.get("delta", {}).get("text", "") for event in events),
        "Gemini": lambda: "".join(map(words, events)),
        "Ollama": lambda: "".join(map(words, events)),
        "Responses": lambda: words(events[-1]["response"]),
    }
    assert told[tag]() == "Well. No."


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("tag", "told"),
    [
        ("Gemini", lambda a: (a["candidates"][0]["content"]["parts"], a["candidates"][0].get("finishReason"))),
        ("Ollama", lambda a: ([a["message"]["content"], *a["message"].get("tool_calls", ())], a.get("done_reason"))),
        ("Anthropic", lambda a: (a["content"], a["stop_reason"])),
    ],
)
def test_a_call_that_the_limit_cut_is_no_call_and_no_error(tag: str, told: Any, streamed: bool) -> None:
    """What was said before is an answer, and that it is not whole stands in its end."""
    message = {"role": "assistant", "content": "Well.", "tool_calls": [CALL, {**CALL, "id": "c2"}]}
    message["tool_calls"][1] = {"id": "c2", "type": "function", "function": {"name": "look", "arguments": '{"a":'}}
    answer = chat_answer(CFG, message, "length", usage(1, 2))
    if not streamed:
        found = [told(mapper(f"chatAnsOpenAIto{tag}")(answer, CFG))]
    elif tag == "Anthropic":  # what a stream has said it cannot take back, and the end says that it was cut
        *_, end, _ = mapper("chatStreamOpenAItoAnthropic")(unfold(answer), CFG)
        assert end["delta"]["stop_reason"] == "max_tokens"
        return
    else:
        found = [told(event) for event in mapper(f"chatStreamOpenAIto{tag}")(unfold(answer), CFG)]
    shown = json.dumps(found)
    assert (shown.count("Well."), shown.count('"look"')) == (1, 1)
    assert found[-1][1] in ("MAX_TOKENS", "length", "max_tokens")
    broken = chat_answer(CFG, message, "tool_calls", usage(1, 2))
    with pytest.raises(BackendError):
        list(mapper(f"chatStreamOpenAIto{tag}")(unfold(broken), CFG)) if streamed else mapper(f"chatAnsOpenAIto{tag}")(
            broken, CFG
        )


def test_a_refusal_is_text_of_a_completion() -> None:
    answer = chat_answer(CFG, {"role": "assistant", "content": None, "refusal": "No."}, "stop")
    assert textAnsChattoOpenAI(answer, CFG)["choices"][0]["text"] == "No."
    assert "".join(c["text"] for e in textStreamChattoOpenAI(unfold(answer), CFG) for c in e["choices"]) == "No."


@pytest.mark.parametrize(("content", "wanted"), [(None, "No."), ("Well. ", "Well. No.")])
def test_a_refusal_in_the_history_is_what_the_assistant_said(content: Any, wanted: str) -> None:
    turn = {"role": "assistant", "content": content, "refusal": "No."}
    req = {"messages": [{"role": "user", "content": "hi"}, turn, {"role": "user", "content": "why?"}]}
    assert canonical(req)["messages"][1] == {"role": "assistant", "content": wanted}
    parts = {**turn, "content": [{"type": "text", "text": "Well. "}]}
    assert text_of(canonical({"messages": [req["messages"][0], parts]})["messages"][1]["content"]) == "Well. No."
    assert canonical(req, own=True)["messages"][1]["refusal"] == "No."


@pytest.mark.parametrize("broken", [None, [], "x", {}, {"choices": []}, {"choices": {}}])
def test_what_is_no_answer_is_the_backends_fault(broken: Any) -> None:
    with pytest.raises(BackendError):
        canonical_answer(broken)


KEYS = ("choices", "message", "delta", "usage", "index", "tool_calls", "finish_reason", "logprobs", "reasoning", "content")
CHOICE = st.dictionaries(st.sampled_from(KEYS), JUNK | st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=3), max_size=4)


@given(JUNK | st.fixed_dictionaries({"choices": st.lists(CHOICE, max_size=2) | JUNK}, optional={"usage": JUNK, "data": JUNK}))
def test_no_backend_answer_crashes_a_mapper(answer: Any) -> None:
    for call in (
        lambda: canonical_answer(answer),
        lambda: list(canonical_chunks([answer])),
        lambda: textAnsChattoOpenAI(answer),
        lambda: list(textStreamChattoOpenAI([answer])),
        lambda: embedAnsOpenAItoOpenAI(answer),
        lambda: modelsAnsAliases(answer, CFG),
        lambda: list(grammar([answer])),
    ):
        with suppress(ProxyError):
            call()


def test_builders_echo_the_model_that_was_asked_for() -> None:
    cfg = {**CFG, "request": {"model": "alias"}}
    answer = chat_answer(cfg, {"role": "assistant", "content": "a"}, "stop", usage(1, 2), model="real", stop_sequence=None)
    assert answer == {
        "id": "chatcmpl-" + "i" * 28,
        "object": "chat.completion",
        "created": 1790000000,
        "model": "alias",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}],
        "usage": usage(1, 2),
    }
    assert chunk(CFG, {}, model="real")["model"] == "real"
    assert chunk({**CFG, "params": {"model": "routed"}}, {}, model="real")["model"] == "routed"
    assert chunk({}, {})["model"] == ""
    assert usage(None, "x", -3, 2.0) == usage(0, 0, 0, 2)
    called = chat_answer(CFG, {"role": "assistant", "content": None, "tool_calls": [tool_call("a", "f", {"x": 1})]}, "stop")
    assert called["choices"][0]["finish_reason"] == "tool_calls"
    assert called["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"x":1}'


@given(hub_answers(), st.integers(1, 7))
def test_any_split_of_the_bytes_gives_the_same_events(answer: Json, size: int) -> None:
    body = b"".join(wire.write("sse", unfold(answer), b"data: [DONE]\n\n"))
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    assert list(wire.read_sse(pieces)) == list(unfold(answer))


# --- an OpenAI backend


@given(hub_requests())
@settings(max_examples=40)
def test_what_goes_up_is_what_openai_takes(request_: Json) -> None:
    check_chat(unchanged(chatReqOpenAItoOpenAI, request_))


def test_ids_are_no_longer_than_openai_takes_and_alike_on_call_and_result() -> None:
    long = "run_shell_command-1731231231231-8f3a2b1c9d0e"  # as Gemini CLI writes them
    calls = [{**CALL, "id": long}, {**CALL, "id": "toolu_1.2"}]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in calls]
    turn = {"role": "assistant", "content": None, "tool_calls": calls}
    sent = chatReqOpenAItoOpenAI({"model": "gpt-4.1", "messages": [*HI, turn, *results]})
    ids = [call["id"] for call in sent["messages"][1]["tool_calls"]]
    assert ids == [message["tool_call_id"] for message in sent["messages"][2:]]
    assert len(ids[0]) == 40
    assert ids[1] == "toolu_1.2"
    check_chat(sent)


def test_a_tool_without_properties_gets_some() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    sent = chatReqOpenAItoOpenAI({"model": "gpt-4.1", "messages": HI, "tools": [tool]})
    assert sent["tools"] == [TOOL]
    responses = mapper("chatReqOpenAItoResponses")({"model": "gpt-4.1", "messages": HI, "tools": [tool]})
    assert responses["tools"][0]["parameters"] == {"type": "object", "properties": {}}
    assert tool["function"] == {"name": "look", "parameters": {"type": "object"}}
    check_chat(sent)


def test_extensions_are_taken_off() -> None:
    block = {"type": "thinking", "thinking": "t", "signature": "s"}
    request_ = {
        "model": "gpt-4.1",
        "stream": True,
        "top_k": 5,
        "min_p": 0.1,
        "thinking": {"type": "adaptive"},
        "tools": [{**TOOL, "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "call tool", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": None,
                "thinking_blocks": [block],
                "reasoning_content": "t",
                **signed("g"),
                "tool_calls": [{**CALL, **signed("g")}],
            },
            {
                "role": "tool",
                "tool_call_id": "c1",
                "is_error": True,
                "content": [
                    {"type": "text", "text": "broken"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                ],
            },
            {"role": "assistant", "content": "so"},
            *HI,
        ],
    }
    req = unchanged(chatReqOpenAItoOpenAI, request_)
    check_chat(req)
    assert req["messages"][2] == {"role": "tool", "tool_call_id": "c1", "content": "Error: broken"}
    assert req["messages"][3]["role"] == "user"
    assert req["messages"][3]["content"][0]["type"] == "image_url"
    assert req["stream_options"] == {"include_usage": True}
    assert not {"top_k", "min_p", "thinking"} & req.keys()
    assert chatReqOpenAItoOpenAI(req) == req


def test_images_of_several_results_follow_the_last_one() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
    second = {**CALL, "id": "c2"}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [CALL, second]},
        {"role": "tool", "tool_call_id": "c1", "content": [image]},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
    ]
    out = chatReqOpenAItoOpenAI({"model": "m", "messages": messages})["messages"]
    assert [message["role"] for message in out] == ["user", "assistant", "tool", "tool", "user"]
    assert out[2]["content"] == ""
    assert out[4]["content"] == [image]


def test_google_s_own_endpoint_gets_its_signatures_back() -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [{**CALL, **signed("g")}], **signed("h")}
    messages = [*HI, turn, {"role": "tool", "tool_call_id": "c1", "content": "x"}]
    google = {"url": "https://generativelanguage.googleapis.com/v1beta/openai"}
    assert chatReqOpenAItoOpenAI({"model": "m", "messages": messages}, google)["messages"] == messages
    for url in ("https://api.openai.com/v1", "https://googleapis.com.evil.example/v1", "http://127.0.0.1:8080", None):
        sent = chatReqOpenAItoOpenAI({"model": "m", "messages": messages}, {"url": url})["messages"]
        assert "extra_content" not in json.dumps(sent)


def test_servers_beside_openai_get_the_older_names() -> None:
    body = {"messages": [{"role": "developer", "content": "d"}, *HI], "max_completion_tokens": 9, "verbosity": "low"}
    for url in ("https://api.openai.com/v1", "https://me.openai.azure.com/openai"):
        assert chatReqOpenAItoOpenAI(body, {"url": url}) == body
    for url in ("http://127.0.0.1:8080", "https://api.openai.com.evil.example/v1"):
        req = chatReqOpenAItoOpenAI(body, {"url": url})
        assert req == {"messages": [{"role": "system", "content": "d"}, *HI], "max_tokens": 9}


def test_mistral_gets_ids_of_nine_characters() -> None:
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
    ]
    out = chatReqOpenAItoOpenAI({"model": "mistral-large", "messages": messages})["messages"]
    assert out[1]["tool_calls"][0]["id"] == out[2]["tool_call_id"] == nine_id("c1")
    assert chatReqOpenAItoOpenAI({"model": "gpt-4.1", "messages": messages})["messages"][2]["tool_call_id"] == "c1"


@pytest.mark.parametrize("said", ["say hello", "call tool", "call two tools", "run long", "refuse this", "filter this"])
def test_the_answer_and_the_folded_stream_of_a_real_shape_are_one(double: OpenAIDouble, said: str) -> None:
    request_ = {"model": "gpt-4.1", "messages": [{"role": "user", "content": said}], "tools": [TOOL]}
    cfg = {**CFG, "request": {"model": "alias"}}
    answer = chatAnsOpenAItoOpenAI(ask(double, "/v1/chat/completions", chatReqOpenAItoOpenAI(request_)), cfg)
    events = ask(double, "/v1/chat/completions", chatReqOpenAItoOpenAI({**request_, "stream": True}))
    folded = fold(grammar(chatStreamOpenAItoOpenAI(events, cfg)))
    answer["choices"][0]["message"].pop("annotations")
    assert folded == answer
    assert folded["model"] == "alias"


def test_a_broken_stream_ends_with_an_error_event(double: OpenAIDouble) -> None:
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "error stream"}], "stream": True}
    out, fault = _run(chatStreamOpenAItoOpenAI(ask(double, "/v1/chat/completions", body), CFG), {})
    assert isinstance(fault, BackendError)
    assert "".join(choice["delta"].get("content", "") for event in out[:-1] for choice in event["choices"]) == "about to fail"
    assert out[-1]["error"]["message"] == fault.message == "the model broke"


@pytest.mark.parametrize(("status", "code"), [(400, None), (401, "invalid_api_key"), (429, "rate_limit_exceeded"), (500, None)])
def test_errors_keep_their_facts(double: OpenAIDouble, status: int, code: str | None) -> None:
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": f"fail {status}"}]}
    with pytest.raises(BackendError) as caught:
        ask(double, "/v1/chat/completions", body)
    assert (caught.value.status, caught.value.code) == (status, code)
    shape = openai.error_body(caught.value, "r")["error"]
    assert shape["message"] == f"failed with {status} as asked"
    assert shape["code"] == code


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        ({"error": {"message": "m", "type": "t", "code": 5, "param": "p"}}, "m", "5"),
        ({"error": "m"}, "m", None),
        ({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}, "m", "400"),
        ({"detail": "m"}, "m", None),
        ({"detail": [{"loc": ["body"], "msg": "x"}]}, '[{"loc":["body"],"msg":"x"}]', None),
        ("m", "m", None),
        ("", "the backend answered 418", None),
        (None, "the backend answered 418", None),
        ([1], "the backend answered 418", None),
        ({}, "the backend answered 418", None),
    ],
)
def test_error_bodies_of_all_servers_are_read(body: Any, message: str, code: str | None) -> None:
    fault = parse_error(418, body)
    assert (fault.status, fault.message, fault.code, fault.source) == (418, message, code, "backend")


# --- the text bridge


def test_a_prompt_goes_through_a_chat_and_back(double: OpenAIDouble) -> None:
    body = {
        "model": "gpt-4.1",
        "prompt": ["say hello"],
        "max_tokens": 20,
        "stop": "X",
        "logprobs": None,
        "suffix": None,
        "echo": False,
    }
    req = unchanged(textReqOpenAItoChat, body)
    assert req == {
        "model": "gpt-4.1",
        "max_completion_tokens": 20,
        "stop": "X",
        "messages": [{"role": "user", "content": "say hello"}],
    }
    cfg = {**CFG, "request": body}
    answer = unchanged(textAnsChattoOpenAI, ask(double, "/v1/chat/completions", chatReqOpenAItoOpenAI(req)), cfg)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [{"text": HELLO, "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["total_tokens"] == 26
    events = ask(double, "/v1/chat/completions", chatReqOpenAItoOpenAI({**req, "stream": True}))
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    out = list(
        grammar(unchanged(textStreamChattoOpenAI, events, {**cfg, "request": asked}), {"kind": "text", "request": asked})
    )
    assert "".join(choice["text"] for event in out for choice in event["choices"]) == HELLO
    assert [choice["finish_reason"] for event in out for choice in event["choices"]].count("stop") == 1
    assert out[-1]["usage"]["total_tokens"] == 26


def test_an_echo_comes_once_and_first() -> None:
    cfg = {**CFG, "request": {"prompt": "Q: ", "echo": True}}
    answer = chat_answer(CFG, {"role": "assistant", "content": "A"}, "stop")
    assert textAnsChattoOpenAI(answer, cfg)["choices"][0]["text"] == "Q: A"
    pieces = [c["text"] for event in textStreamChattoOpenAI(fragments(answer, 1, unfold), cfg) for c in event["choices"]]
    assert "".join(pieces) == "Q: A"


def test_logprobs_become_four_lists(double: OpenAIDouble) -> None:
    body = {"model": "gpt-4.1", "prompt": "log tokens", "logprobs": 2}
    req = textReqOpenAItoChat(body)
    assert (req["logprobs"], req["top_logprobs"]) == (True, 2)
    wanted = {"tokens": ["Hi", " you"], "token_logprobs": [-0.25, -0.25], "top_logprobs": [{}, {}], "text_offset": [10, 12]}
    cfg = {**CFG, "request": body}
    answer = textAnsChattoOpenAI(ask(double, "/v1/chat/completions", chatReqOpenAItoOpenAI(req)), cfg)
    assert answer["choices"][0]["logprobs"] == wanted
    events = ask(double, "/v1/chat/completions", chatReqOpenAItoOpenAI({**req, "stream": True}))
    parts = [c["logprobs"] for e in textStreamChattoOpenAI(events, cfg) for c in e["choices"] if c["logprobs"]]
    assert {name: [item for part in parts for item in part[name]] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a", "suffix": "z"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": "a", "max_tokens": "9"}, "max_tokens"),
    ],
)
def test_what_a_chat_cannot_do_is_refused_by_name(fields: Json, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        textReqOpenAItoChat({"model": "m", **fields})
    assert caught.value.param == param


def test_completions_go_up_without_nulls(double: OpenAIDouble) -> None:
    body = {"model": "gpt-3.5-turbo-instruct", "prompt": "say hello", "suffix": None, "top_k": 4, "stream": True}
    req = unchanged(textReqOpenAItoOpenAI, body)
    events = ask(double, "/v1/completions", req)
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == HELLO
    assert list(grammar(events, {"kind": "text", "request": body})) == [event for event in events if event["choices"]]


# --- embeddings, models, counting


def test_floats_and_base64_are_the_same_vector(double: OpenAIDouble) -> None:
    body = {"model": "text-embedding-3-small", "input": ["a", "b"], "user": None}
    plain = ask(double, "/v1/embeddings", unchanged(embedReqOpenAItoOpenAI, body))
    coded = ask(double, "/v1/embeddings", {**embedReqOpenAItoOpenAI(body), "encoding_format": "base64"})
    assert vectors_of(coded) == vectors_of(plain)
    as_base64 = unchanged(embedAnsOpenAItoOpenAI, plain, {**CFG, "request": {**body, "encoding_format": "base64"}})
    assert as_base64["data"] == coded["data"]
    as_floats = embedAnsOpenAItoOpenAI(coded, {**CFG, "request": body})
    assert as_floats["data"] == plain["data"]
    assert as_floats["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_base64_is_little_endian_float32() -> None:
    assert to_base64([1.0, -2.5]) == base64.b64encode(struct.pack("<ff", 1.0, -2.5)).decode()
    answer = embed_answer({**CFG, "request": {"encoding_format": "base64", "model": "m"}}, [[1.0]], 3)
    assert answer["data"] == [{"object": "embedding", "index": 0, "embedding": to_base64([1.0])}]
    for wrong in ([None], ["x"], [10**999], 5):
        with pytest.raises(BackendError):
            to_base64(wrong)
    for wrong_answer in ({}, {"data": 5}, {"data": [{"embedding": "@"}]}, {"data": [{"embedding": 5}]}):
        with pytest.raises(BackendError):
            vectors_of(wrong_answer)


def test_vectors_come_in_the_order_of_the_inputs() -> None:
    assert vectors_of({"data": [{"index": 1, "embedding": [2]}, {"index": 0, "embedding": [1]}]}) == [[1], [2]]


@pytest.mark.parametrize("wrong", [None, [], "", 5, [1, 2], [[1]], ["a", None]])
def test_only_texts_can_be_embedded_elsewhere(wrong: Any) -> None:
    if wrong == "":
        assert embed_inputs({"input": wrong}) == [""]
        return
    with pytest.raises(BadRequest):
        embed_inputs({"input": wrong})


def test_aliases_come_first_and_hide_their_namesakes(double: OpenAIDouble) -> None:
    listed = requests.get(double.url + "/v1/models", headers={"Authorization": "Bearer k"}, timeout=10).json()
    merged = unchanged(modelsAnsAliases, listed, {**CFG, "aliases": ["fast", "gpt-4.1", "claude-*"]})
    assert [model["id"] for model in merged["data"]][:3] == ["fast", "gpt-4.1", "gpt-5.2"]
    assert len(merged["data"]) == len(listed["data"]) + 1
    assert modelsAnsAliases(None, {})["data"] == []
    one = modelAnsOpenAItoOpenAI(merged, {"params": {"model": "fast"}})
    assert one == {"id": "fast", "object": "model", "created": CFG["now"], "owned_by": "mooltiproxy"}
    with pytest.raises(BadRequest) as caught:
        modelAnsOpenAItoOpenAI(merged, {"params": {"model": "slow"}})
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def test_an_estimate_grows_with_the_prompt_and_ignores_base64() -> None:
    def count_of(content: Any) -> int:
        return int(countEstimate({"messages": [{"role": "user", "content": content}]})["input_tokens"])

    assert 1 < count_of("hi") < count_of("hello, my friend, how are you today?") < 30
    assert 900 < count_of("word " * 1000) < 1600
    assert 500 < count_of("字" * 1000) < 1500
    big = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG * 5000}"}}
    assert count_of([big]) < 2000


# --- the grammar


def _stream() -> list[Json]:
    return [
        chunk(CFG, {"role": "assistant", "content": ""}),
        chunk(CFG, {"reasoning_content": "hm"}),
        chunk(CFG, {"content": "a"}),
        chunk(CFG, tool_delta(0, "c1", "look")),
        chunk(CFG, tool_delta(0, arguments="{}")),
        chunk(CFG, {}, "tool_calls"),
        usage_chunk(CFG, usage(1, 2)),
    ]


def _run(events: Any, cfg: Json) -> tuple[list[Any], ProxyError | None]:
    out: list[Any] = []
    try:
        for event in grammar(events, cfg):
            out.append(event)  # noqa: PERF402 (what came before the exception counts)
    except ProxyError as fault:
        return out, fault
    return out, None


def test_every_wrong_stream_is_an_error_or_harmless() -> None:
    good, errors = _stream(), 0
    assert _run(good, {}) == (good, None)
    for wrong in mutations(good):
        out, fault = _run(wrong, {"chain": "a > b"})
        if fault is None:
            assert [event for event in out if event["choices"]] != []
            continue
        errors += 1
        assert out[-1]["error"]["message"] == fault.message
        assert not any("error" in event for event in out[:-1])
        assert isinstance(fault, BackendError) or fault.message.startswith("a > b: ")
    assert errors > 60


@pytest.mark.parametrize(
    "events",
    [
        [chunk(CFG, {"content": "a"}, "stop"), chunk(CFG, {"content": "b"})],
        [chunk(CFG, {"content": "a"}, "stop"), chunk(CFG, {}, "stop")],
        [chunk(CFG, {"content": 5})],
        [chunk(CFG, {}, "done")],
        [chunk(CFG, {}, "tool_calls")],
        [chunk(CFG, tool_delta(1, "c", "f"))],
        [chunk(CFG, tool_delta(0, "c"))],
        [chunk(CFG, tool_delta(0, arguments="{}"))],
        [chunk(CFG, tool_delta(0, "c", "f")), chunk(CFG, tool_delta(0, "d", "g"))],
        [chunk(CFG, {}, index=-1)],
        [{**chunk(CFG, {}), "choices": None}],
        [{**chunk(CFG, {}), "id": None}],
        [None],
        [[]],
    ],
)
def test_the_api_does_not_allow(events: list[Any]) -> None:
    out, fault = _run(events, {})
    assert isinstance(fault, MapperError)
    assert out[-1]["error"]["type"] == "api_error"
    assert len(out) == len(events)


@pytest.mark.parametrize("upto", range(6))
def test_an_early_end_is_told(upto: int) -> None:
    out, fault = _run(_stream()[:upto], {})
    assert isinstance(fault, BackendError)
    assert out[:-1] == _stream()[:upto]
    assert "error" in out[-1]


def test_what_the_input_raises_is_told_and_raised_again() -> None:
    def failing() -> Iterator[Json]:
        yield _stream()[0]
        raise ClientGone("gone")

    out, fault = _run(failing(), {})
    assert isinstance(fault, ClientGone)
    assert out[1] == {"error": {"message": "gone", "type": fault.kind, "param": None, "code": None}}


def test_usage_is_shown_to_those_who_asked() -> None:
    asked = {"request": {"stream": True, "stream_options": {"include_usage": True}}}
    assert _run(_stream(), asked)[0] == _stream()
    assert _run(_stream(), {"request": {"stream": True}})[0] == _stream()[:-1]
    assert _run(_stream(), {"request": {"stream": True, "stream_options": None}})[0] == _stream()[:-1]


# --- the dialect


def test_every_path_of_the_api_has_its_route() -> None:
    wanted = {
        ("POST", "/v1/chat/completions"): "chat",
        ("POST", "/chat/completions"): "chat",
        ("POST", "/v1/completions"): "text",
        ("POST", "/v1/embeddings"): "embed",
        ("GET", "/v1/models"): "models",
        ("GET", "/v1/models/gpt-4.1"): "model",
    }
    for (method, path), kind in wanted.items():
        route = route_of("openai", method, path)
        assert route is not None
        assert route.kind == kind
    assert route_of("openai", "GET", "/v1/chat/completions") is None
    assert load("openai").statuses == {529: 503}
    for name in ("chatReqOpenAItoOpenAI", "textReqOpenAItoChat", "textAnsChattoOpenAI", "textStreamChattoOpenAI"):
        assert mapper(name) is getattr(openai, name)


def test_a_keepalive_is_no_event() -> None:
    body = load("openai").keepalive + wire.frame("sse", {"a": 1}) + load("openai").done
    assert list(wire.read_sse([body])) == [{"a": 1}]


def test_an_agents_request_is_canonical_already() -> None:
    tools = [
        {"type": "function", "function": {"name": f"t{i}", "parameters": json.loads('{"type":"object"}')}} for i in range(24)
    ]
    body = {"model": "m", "messages": [{"role": "system", "content": "s" * 50000}, *HI], "tools": tools}
    req = canonical(body)
    assert all(new is old for new, old in zip(req["tools"], tools, strict=True))
    assert all(new is old for new, old in zip(req["messages"], body["messages"], strict=True))


def test_a_turn_that_was_all_reasoning_is_an_empty_text():
    turn = {"role": "assistant", "content": None, "reasoning_content": "hm"}
    made = mapper("chatReqOpenAItoOpenAI")({"messages": [{"role": "user", "content": "hi"}, turn]}, {})
    assert made["messages"][1] == {"role": "assistant", "content": ""}
