"""proxy/dialects/ollama.py: Ollama behind the hub, and Ollama's own clients in front of it."""

from __future__ import annotations

import base64
import copy
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ollama as sdk
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from ollama._types import ChatRequest, EmbedRequest, GenerateRequest

from proxy import wire
from proxy.dialects import load, mapper, ollama, route_of
from proxy.dialects.ollama import (
    chatAnsOllamatoOpenAI,
    chatAnsOpenAItoOllama,
    chatReqOllamatoOpenAI,
    chatReqOpenAItoOllama,
    chatStreamOllamatoOpenAI,
    chatStreamOpenAItoOllama,
    embedAnsOllamatoOpenAI,
    embedAnsOpenAItoOllama,
    embedReqOllamatoOpenAI,
    embedReqOpenAItoOllama,
    modelsAnsOllamatoOpenAI,
    modelsAnsOpenAItoOllama,
    showAnsOllama,
    textAnsOllamatoOpenAI,
    textAnsOpenAItoOllama,
    textReqOllamatoOpenAI,
    textReqOpenAItoOllama,
    textStreamOllamatoOpenAI,
    textStreamOpenAItoOllama,
)
from proxy.dialects.openai import canonical, chat_answer, fold, unfold, usage
from proxy.errors import BackendError, BadRequest, MapperError, ProxyError
from tests.backends.proxy import KEY, Proxy
from tests.doubles.ollama import OllamaDouble, Refusal, check
from tests.laws import CFG as LAWS
from tests.laws import fragments, hub_answers, mutations, unchanged

steady = settings(deadline=None)  # the machine may be busy

CFG = {"id": "x" * 28, "now": 1700000000}
STAMP = "2023-11-14T22:13:20Z"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
OTHER = {"type": "function", "function": {"name": "time"}}
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "say hello"}]}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}


def up(**given: Any) -> dict[str, Any]:
    made = chatReqOpenAItoOllama({**HELLO, **given})
    check(json.loads(json.dumps(made)), ChatRequest)
    return made


# --- requests to Ollama


def test_a_chat_says_whether_it_streams() -> None:
    assert up() == {"model": "tiny", "messages": [{"role": "user", "content": "say hello"}], "stream": False}
    assert up(stream=True)["stream"] is True


def test_parameters_become_options() -> None:
    made = up(
        temperature=0,
        top_p=1,
        top_k=5,
        min_p=0.1,
        typical_p=0.9,
        seed=-3,
        stop="x",
        presence_penalty=0.5,
        frequency_penalty=0,
        repetition_penalty=1.1,
        max_tokens=9,
        logit_bias={"5": 1},
    )
    assert made["options"] == {
        "temperature": 0,
        "top_p": 1,
        "top_k": 5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "seed": -3,
        "stop": ["x"],
        "presence_penalty": 0.5,
        "frequency_penalty": 0,
        "repeat_penalty": 1.1,
        "num_predict": 9,
    }
    assert "options" not in up(temperature=None, stop=[])


def test_structured_output_is_the_format() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert up(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})["format"] == schema
    assert up(response_format={"type": "json_object"})["format"] == "json"
    assert "format" not in up(response_format={"type": "text"})


@pytest.mark.parametrize(
    ("given", "think"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_effort": "xhigh"}, "high"),
        ({"reasoning_effort": "max"}, "high"),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, True),
        ({"thinking": {"type": "adaptive"}}, None),
        ({}, None),
    ],
)
def test_reasoning_is_think(given: dict[str, Any], think: Any) -> None:
    assert up(**given).get("think") == think


def test_a_conversation_with_tools_and_images() -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PNG}"}}
    made = up(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "look "}, image, {"type": "text", "text": "here"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}, image], "is_error": True},
        ],
        tools=[TOOL],
    )
    assert made["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "look here", "images": [PNG]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"id": "c1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "content": "Error: rain", "images": [PNG], "tool_call_id": "c1", "tool_name": "weather"},
    ]


def test_thinking_blocks_are_thinking() -> None:
    blocks = [{"type": "thinking", "thinking": "so ", "signature": "s"}, {"type": "redacted_thinking", "data": "d"}]
    said = [*HELLO["messages"], {"role": "assistant", "content": "a", "thinking_blocks": blocks}]
    assert up(messages=said)["messages"][1]["thinking"] == "so "


def test_tools_are_offered_as_the_choice_says() -> None:
    lost: list[str] = []
    cfg = {"lost": lambda path, why: lost.append(path)}

    def offered(choice: Any) -> list[str]:
        made = chatReqOpenAItoOllama({**HELLO, "tools": [TOOL, OTHER], "tool_choice": choice}, cfg)
        check(made, ChatRequest)
        return [tool["function"]["name"] for tool in made.get("tools", [])]

    assert offered("auto") == ["weather", "time"]
    assert offered("none") == []
    assert lost == []
    assert offered("required") == ["weather", "time"]
    assert offered({"type": "function", "function": {"name": "time"}}) == ["time"]
    assert lost == ["tool_choice", "tool_choice"]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 2}, "n"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/a.png"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_ollama_cannot_do_is_refused_by_name(given: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        up(**given)
    assert refused.value.param == param


def test_a_completion_is_raw_unless_it_has_a_suffix() -> None:
    made = textReqOpenAItoOllama(
        {"model": "tiny", "prompt": ["def f("], "max_tokens": 5, "stop": "x", "logprobs": 2, "echo": True}
    )
    check(made, GenerateRequest)
    assert made == {
        "model": "tiny",
        "prompt": "def f(",
        "raw": True,
        "stream": False,
        "logprobs": True,
        "top_logprobs": 2,
        "options": {"num_predict": 5, "stop": ["x"]},
    }
    filled = textReqOpenAItoOllama({"model": "tiny", "prompt": "a", "suffix": "z", "stream": True})
    check(filled, GenerateRequest)
    assert (filled["suffix"], filled["stream"], "raw" in filled) == ("z", True, False)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": "a", "n": 2}, "n"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "stop": [1]}, "stop[0]"),
    ],
)
def test_completions_that_ollama_cannot_do_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        textReqOpenAItoOllama(body)
    assert refused.value.param == param


# --- requests of Ollama's clients


def test_a_clients_chat_becomes_the_hubs() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "System", "content": "be brief"},
            {"role": "user", "content": "look", "images": [PNG]},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [{"function": {"index": 0, "name": "weather", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "tool_name": "weather", "content": "rain"},
        ],
        "tools": [TOOL],
        "format": {"type": "object"},
        "options": {"temperature": 0.5, "num_predict": 7, "stop": "x", "num_ctx": 4096, "repeat_penalty": 1.2, "seed": None},
        "keep_alive": "5m",
        "think": "high",
        "stream": False,
    }
    before = copy.deepcopy(body)
    assert chatReqOllamatoOpenAI(body) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "hm",
                "tool_calls": [{"id": "call_2_0", "type": "function", "function": {"name": "weather", "arguments": '{"a":1}'}}],
            },
            {"role": "tool", "tool_call_id": "call_2_0", "content": "rain"},
        ],
        "tools": [TOOL],
        "response_format": {"type": "json_schema", "json_schema": {"name": "format", "schema": {"type": "object"}}},
        "temperature": 0.5,
        "max_completion_tokens": 7,
        "stop": ["x"],
        "repetition_penalty": 1.2,
        "reasoning_effort": "high",
    }
    assert body == before


def test_a_chat_streams_unless_told_otherwise() -> None:
    assert chatReqOllamatoOpenAI(HELLO)["stream"] is True
    assert chatReqOllamatoOpenAI(HELLO)["stream_options"] == {"include_usage": True}
    assert "stream" not in chatReqOllamatoOpenAI({**HELLO, "stream": False})
    assert "stream" not in chatReqOllamatoOpenAI(HELLO, {"stream": False})


@pytest.mark.parametrize(
    "given",
    [
        {"tools": []},
        {"options": {"temperature": None, "stop": None, "num_predict": -1}},
        {"options": None, "format": "", "think": None, "keep_alive": 0},
        {"options": {"num_predict": -2, "stop": []}, "logprobs": False},
    ],
)
def test_what_langchain_and_llamaindex_send_is_nothing(given: dict[str, Any]) -> None:
    assert set(chatReqOllamatoOpenAI({**HELLO, **given}, {"stream": False})) == {"model", "messages"}


@pytest.mark.parametrize(
    ("think", "sent"),
    [(True, {"reasoning_effort": "medium"}), (False, {"thinking": {"type": "disabled"}}), ("low", {"reasoning_effort": "low"})],
)
def test_think_is_reasoning(think: Any, sent: dict[str, Any]) -> None:
    made = chatReqOllamatoOpenAI({**HELLO, "think": think}, {"stream": False})
    assert {name: made[name] for name in made if name not in HELLO} == sent


@pytest.mark.parametrize("stream", [False, True])
def test_loading_a_model_is_answered_without_a_backend(tmp_path: Path, stream: bool) -> None:
    config = '{"targets": {"default": "gone", "gone": {"url": "http://127.0.0.1:9", "dialect": "anthropic"}}}'
    with Proxy(tmp_path, config) as proxy:
        client = sdk.Client(host=proxy.url, headers={"Authorization": f"Bearer {KEY}"})
        calls: list[Any] = [
            client.chat(model="m", stream=stream),
            client.chat(model="m", messages=[], keep_alive=0, stream=stream),
            client.generate(model="m", keep_alive="5m", stream=stream),
        ]
        told = [next(iter(call)) if stream else call for call in calls]
    assert [(answer.model, answer.done, answer.done_reason) for answer in told] == [
        ("m", True, "load"),
        ("m", True, "unload"),
        ("m", True, "load"),
    ]
    assert [told[0].message.content, told[2].response] == ["", ""]
    assert all(answer.created_at for answer in told)


@pytest.mark.parametrize(
    ("kind", "body"), [("chat", HELLO), ("text", {"prompt": "hi"}), ("embed", {}), ("chat", None), ("chat", {"messages": 5})]
)
def test_what_asks_for_an_answer_loads_nothing(kind: str, body: Any) -> None:
    assert ollama.loadAnsOllama(body, {"kind": kind}) is None


def test_results_find_their_calls_by_name_and_place() -> None:
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("a", "b", "b")]
    results = [
        {"role": "tool", "tool_name": "b", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": "3"},
    ]
    said = [*HELLO["messages"], {"role": "assistant", "content": "", "tool_calls": calls}, *results]
    made = chatReqOllamatoOpenAI({"messages": said})["messages"]
    assert [message.get("tool_call_id") for message in made[2:]] == ["call_1_1", "call_1_0", "call_1_2"]
    assert all(set(message) == {"role", "content", "tool_call_id"} for message in made[2:])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": ["a"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a", "images": [5]}]}, "messages[0].images[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "messages[0].tool_calls[0]"),
        ({**HELLO, "options": {"temperature": "hot"}}, "options.temperature"),
        ({**HELLO, "options": {"stop": 5}}, "options.stop"),
        ({**HELLO, "options": []}, "options"),
        ({**HELLO, "format": "xml"}, "format"),
        ({**HELLO, "think": "hard"}, "think"),
        ({**HELLO, "tools": {}}, "tools"),
        ({}, "messages"),
    ],
)
def test_a_faulty_chat_is_refused_by_the_fields_name(body: Any, param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        chatReqOllamatoOpenAI(body)
    assert refused.value.param == param


def test_a_clients_prompt_becomes_a_completion() -> None:
    body = {
        "model": "m",
        "prompt": "Once",
        "system": "Tell tales.",
        "suffix": "end",
        "raw": True,
        "context": [],
        "images": [],
        "options": {"num_predict": 3, "temperature": 0},
        "format": "json",
        "logprobs": True,
        "stream": False,
        "template": "",
    }
    assert textReqOllamatoOpenAI(body) == {
        "model": "m",
        "prompt": "Tell tales.\n\nOnce",
        "suffix": "end",
        "max_tokens": 3,
        "temperature": 0,
        "logprobs": 0,
        "response_format": {"type": "json_object"},
    }


@pytest.mark.parametrize("name", ["images", "template", "context"])
def test_a_prompt_with_what_would_be_lost_is_refused(name: str) -> None:
    with pytest.raises(BadRequest) as refused:
        textReqOllamatoOpenAI({"prompt": "a", name: "x" if name == "template" else [1]})
    assert refused.value.param == name


# --- there and back

TEXTS = st.text(min_size=1, max_size=8)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXTS, lambda item: st.lists(item, max_size=2), max_leaves=3
)
ARGUMENTS = st.dictionaries(TEXTS, JSONS, max_size=2)
IMAGES = st.just({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}})


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 3))):
        parts = [{"type": "text", "text": draw(TEXTS)}, *draw(st.lists(IMAGES, max_size=2))]
        said.append({"role": "user", "content": parts if len(parts) > 1 else parts[0]["text"]})
        arguments = draw(st.lists(ARGUMENTS, max_size=2))
        calls = [
            {"id": f"id_{turn}_{i}", "type": "function", "function": {"name": f"f{i}", "arguments": wire.dumps(one).decode()}}
            for i, one in enumerate(arguments)
        ]
        answer: dict[str, Any] = {"role": "assistant", "content": draw(st.none() | TEXTS) if calls else draw(TEXTS)}
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(TEXTS)
        said.append({**answer, "tool_calls": calls} if calls else answer)
        said += [{"role": "tool", "tool_call_id": call["id"], "content": draw(TEXTS)} for call in calls]
    return said


@steady
@given(
    conversations(),
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.floats(0, 2),
            "top_p": st.floats(0, 1),
            "seed": st.integers(),
            "max_completion_tokens": st.integers(0, 99),
            "stop": st.lists(TEXTS, min_size=1, max_size=3),
            "tools": st.just([TOOL]),
            "reasoning_effort": st.sampled_from(["low", "medium", "high"]),
            "response_format": st.just({"type": "json_object"}),
            "repetition_penalty": st.floats(0.5, 2),
        },
    ),
)
def test_a_chat_comes_back_from_ollamas_shape(said: list[dict[str, Any]], given: dict[str, Any]) -> None:
    body = {"model": "m", "messages": said, **given}
    before = copy.deepcopy(body)
    made = chatReqOpenAItoOllama(body)
    check(json.loads(json.dumps(made)), ChatRequest)
    assert chatReqOllamatoOpenAI(made) == canonical(body)
    assert body == before


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    calls = [
        {"id": f"id{i}", "type": "function", "function": {"name": f"f{i}", "arguments": wire.dumps(one).decode()}}
        for i, one in enumerate(draw(st.lists(ARGUMENTS, max_size=3)))
    ]
    message: dict[str, Any] = {"role": "assistant", "content": draw(TEXTS) if not calls else draw(st.none() | TEXTS)}
    if draw(st.booleans()):
        message["reasoning_content"] = draw(TEXTS)
    if calls:
        message["tool_calls"] = calls
    finish = draw(st.sampled_from(["stop", "length", "content_filter"]))
    return chat_answer(CFG, message, finish, usage(draw(st.integers(0, 99)), draw(st.integers(0, 99))), model="m")


@steady
@given(answers())
def test_an_answer_comes_back_from_ollamas_shape(answer: dict[str, Any]) -> None:
    before = copy.deepcopy(answer)
    made = chatAnsOpenAItoOllama(answer, CFG)
    assert chatAnsOllamatoOpenAI(made, CFG) == answer == before


@steady
@given(answers())
def test_a_stream_comes_back_from_ollamas_lines(answer: dict[str, Any]) -> None:
    made = list(ollama.grammar(chatStreamOpenAItoOllama(unfold(answer), CFG), {"kind": "chat"}))
    back = list(chatStreamOllamatoOpenAI(made, CFG))
    assert fold(back) == answer
    assert fold(back) == chatAnsOllamatoOpenAI(chatAnsOpenAItoOllama(answer, CFG), CFG)


# --- answers of Ollama


def answered(message: dict[str, Any], **more: Any) -> dict[str, Any]:
    told = {"done": True, "done_reason": "stop", "prompt_eval_count": 6, "eval_count": 2}
    return {"model": "tiny", "created_at": STAMP, "message": {"role": "assistant", **message}, **told, **more}


def test_an_answer_is_a_chat_completion() -> None:
    made = chatAnsOllamatoOpenAI(answered({"content": "Hi", "thinking": "hm"}), {**CFG, "request": {"model": "alias"}})
    assert (made["id"], made["model"], made["created"]) == ("chatcmpl-" + "x" * 28, "alias", 1700000000)
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "hm"}
    assert made["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
    assert (made["usage"]["prompt_tokens"], made["usage"]["completion_tokens"]) == (6, 2)


def test_tool_calls_without_ids_get_some_and_override_the_reason() -> None:
    calls = [
        {"function": {"name": "f", "arguments": {"a": "\u00e9"}}},
        {"id": "real", "function": {"name": "g", "arguments": None}},
    ]
    choice = chatAnsOllamatoOpenAI(answered({"content": "", "tool_calls": calls}), CFG)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["call_" + "x" * 28 + "0", "real"]
    assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == ['{"a":"\u00e9"}', "{}"]


def test_an_unknown_reason_is_a_stop_and_missing_counts_are_zero() -> None:
    made = chatAnsOllamatoOpenAI({"message": {"content": "a"}, "done_reason": "new", "new": 1}, CFG)
    assert made["choices"][0]["finish_reason"] == "stop"
    assert made["usage"]["total_tokens"] == 0


@pytest.mark.parametrize("ip", [None, [], {}, {"message": "x"}, {"error": "model 'tiny' not found"}, "text"])
def test_what_is_no_answer_is_a_backend_error(ip: Any) -> None:
    with pytest.raises(BackendError):
        chatAnsOllamatoOpenAI(ip, CFG)
    with pytest.raises(BackendError):
        textAnsOllamatoOpenAI(ip, CFG)


def test_arguments_that_are_no_object_are_an_error() -> None:
    with pytest.raises(BackendError):
        chatAnsOllamatoOpenAI(answered({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}), CFG)


def test_logprobs_pass_both_ways() -> None:
    item = {"token": "Hi", "logprob": -0.5, "top_logprobs": [{"token": "Hi", "logprob": -0.5}]}
    made = chatAnsOllamatoOpenAI(answered({"content": "Hi"}, logprobs=[item]), CFG)
    assert made["choices"][0]["logprobs"] == {"content": [{**item, "bytes": None}]}
    assert chatAnsOpenAItoOllama(made, CFG)["logprobs"] == [{**item, "bytes": None}]


def test_a_generated_text_is_a_completion() -> None:
    said = {"model": "tiny", "response": " upon", "done": True, "done_reason": "length", "eval_count": 1}
    made = textAnsOllamatoOpenAI(said, {**CFG, "request": {"prompt": "Once", "echo": True}})
    assert (made["id"], made["object"], made["model"]) == ("cmpl-" + "x" * 28, "text_completion", "tiny")
    assert (made["choices"][0]["text"], made["choices"][0]["finish_reason"]) == ("Once upon", "length")


def test_a_stream_of_lines_becomes_chunks() -> None:
    lines = [
        {"model": "tiny", "message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        {"model": "tiny", "message": {"role": "assistant", "content": "Hi"}, "done": False},
        {
            "model": "tiny",
            "message": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            "done": False,
        },
        {"model": "tiny", "message": {"tool_calls": [{"function": {"name": "g", "arguments": {"a": 1}}}]}, "done": False},
        {"model": "tiny", "message": {"content": ""}, "done": True, "done_reason": "stop", "eval_count": 4},
        {"never": "read"},
    ]
    events = list(chatStreamOllamatoOpenAI(lines, CFG))
    choice = fold(events)["choices"][0]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"], choice["finish_reason"]) == (
        "hm",
        "Hi",
        "tool_calls",
    )
    assert [call["id"][-1] for call in choice["message"]["tool_calls"]] == ["0", "1"]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["f", "g"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 4


def test_a_stream_speaks_with_its_first_line() -> None:
    def backend() -> Iterator[dict[str, Any]]:
        yield {"message": {"content": "a"}, "done": False}
        raise AssertionError("read ahead")

    stream = chatStreamOllamatoOpenAI(backend(), CFG)
    assert next(stream)["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert next(stream)["choices"][0]["delta"] == {"content": "a"}


def test_a_stream_that_is_cut_has_no_finish() -> None:
    assert (
        fold(chatStreamOllamatoOpenAI([{"message": {"content": "a"}, "done": False}], CFG))["choices"][0]["finish_reason"]
        is None
    )
    assert list(chatStreamOllamatoOpenAI([], CFG)) == []


def test_an_error_line_is_raised() -> None:
    with pytest.raises(BackendError, match="out of memory"):
        list(chatStreamOllamatoOpenAI([{"message": {"content": "a"}}, {"error": "out of memory"}], CFG))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda item: st.lists(item, max_size=2) | st.dictionaries(TEXTS, item, max_size=2),
    max_leaves=4,
)
FIELDS = st.sampled_from(["content", "thinking", "tool_calls", "images", "role", "new"])


@steady
@given(
    st.dictionaries(FIELDS, JUNK),
    st.dictionaries(st.sampled_from(["done_reason", "eval_count", "logprobs", "model", "new"]), JUNK),
)
def test_unknown_fields_of_a_backend_never_crash(message: dict[str, Any], more: dict[str, Any]) -> None:
    said = {"message": message, "done": True, **more}
    assert chatAnsOllamatoOpenAI(said, CFG)["choices"]
    assert fold(chatStreamOllamatoOpenAI([said, "junk"], CFG))["choices"]  # type: ignore[list-item]
    assert textAnsOllamatoOpenAI({"response": "a", **more}, CFG)["choices"]


# --- answers to Ollama's clients


def test_an_answer_has_every_field_of_ollamas() -> None:
    made = chatAnsOpenAItoOllama(chat_answer(CFG, {"role": "assistant", "content": "Hi"}, "stop", usage(3, 4), model="m"), CFG)
    assert made == {
        "model": "m",
        "created_at": STAMP,
        "message": {"role": "assistant", "content": "Hi"},
        "done": True,
        "done_reason": "stop",
        "total_duration": 0,
        "load_duration": 0,
        "prompt_eval_duration": 0,
        "eval_duration": 0,
        "prompt_eval_count": 3,
        "eval_count": 4,
    }


def test_tool_arguments_are_objects_and_fragments_are_put_together() -> None:
    answer = chat_answer(CFG, {"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool_calls")
    calls = [{"id": "c1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}}]
    assert chatAnsOpenAItoOllama(answer, CFG)["message"]["tool_calls"] == calls
    fragments = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}},
        {"index": 1, "id": "c2", "type": "function", "function": {"name": "time", "arguments": "{"}},
        {"index": 0, "function": {"arguments": '{"city":'}},
        {"index": 1, "function": {"arguments": "}"}},
        {"index": 0, "function": {"arguments": '"Paris"}'}},
    ]
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [fragment]}}]} for fragment in fragments]
    lines = list(
        chatStreamOpenAItoOllama([*chunks, {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}], CFG)
    )
    assert lines[0]["message"]["tool_calls"] == [
        *calls,
        {"id": "c2", "function": {"index": 1, "name": "time", "arguments": {}}},
    ]
    assert (lines[1]["done"], lines[1]["done_reason"]) == (True, "stop")


def test_arguments_that_cannot_be_read_are_an_error_not_nothing() -> None:
    broken = {**CALL, "function": {"name": "f", "arguments": '{"a":'}}
    with pytest.raises(BackendError):
        chatAnsOpenAItoOllama(
            chat_answer(CFG, {"role": "assistant", "content": None, "tool_calls": [broken]}, "tool_calls"), CFG
        )


def test_a_refusal_is_text() -> None:
    answer = chat_answer(CFG, {"role": "assistant", "content": None, "refusal": "No."}, "stop")
    assert chatAnsOpenAItoOllama(answer, CFG)["message"]["content"] == "No."
    assert next(iter(chatStreamOpenAItoOllama(unfold(answer), CFG)))["message"]["content"] == "No."


def test_a_stream_without_a_finish_has_no_last_line() -> None:
    lines = list(chatStreamOpenAItoOllama([{"choices": [{"index": 0, "delta": {"content": "a"}}]}], CFG))
    assert [line["done"] for line in lines] == [False]


def completion(text: str, finish: str | None = "stop", **choice: Any) -> dict[str, Any]:
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    return {**head, "choices": [{"index": 0, "text": text, "finish_reason": finish, **choice}]}


def test_a_completion_becomes_a_response() -> None:
    made = textAnsOpenAItoOllama({**completion(" upon", "length"), "usage": usage(1, 2)}, CFG)
    assert (made["response"], made["done"], made["done_reason"], made["eval_count"]) == (" upon", True, "length", 2)
    told = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0], "top_logprobs": [{"a": -1.0}]}
    assert textAnsOpenAItoOllama(completion("ab", logprobs=told), CFG)["logprobs"] == [
        {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "a", "logprob": -1.0}]},
        {"token": "b", "logprob": -2.0, "top_logprobs": []},
    ]


@steady
@given(st.lists(TEXTS, max_size=4), st.sampled_from(["stop", "length"]))
def test_a_streamed_completion_comes_back_from_ollamas_lines(pieces: list[str], finish: str) -> None:
    chunks = [
        *(completion(piece, None) for piece in pieces),
        completion("", finish),
        {**completion(""), "choices": [], "usage": usage(3, 4)},
    ]
    lines = list(ollama.grammar(textStreamOpenAItoOllama(chunks, CFG), {"kind": "text"}))
    back = list(textStreamOllamatoOpenAI(lines, CFG))
    assert "".join(choice["text"] for event in back for choice in event["choices"]) == "".join(pieces)
    assert back[-2]["choices"][0]["finish_reason"] == finish
    assert back[-1]["usage"]["total_tokens"] == 7


# --- embeddings, models, and what is answered here


def test_embeddings_go_up_and_come_back() -> None:
    made = embedReqOpenAItoOllama(
        {"model": "e", "input": ["a", "b"], "dimensions": 2, "encoding_format": "base64", "user": "u"}
    )
    check(made, EmbedRequest)
    assert made == {"model": "e", "input": ["a", "b"], "dimensions": 2}
    with pytest.raises(BadRequest) as refused:
        embedReqOpenAItoOllama({"model": "e", "input": [[1, 2]]})
    assert refused.value.param == "input[0]"
    answer = {"model": "e", "embeddings": [[0.5, 1.0], [2.0, -1.0]], "prompt_eval_count": 2}
    hub = embedAnsOllamatoOpenAI(answer, {"request": {"encoding_format": "base64"}})
    assert [isinstance(item["embedding"], str) for item in hub["data"]] == [True, True]
    assert hub["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    assert embedAnsOpenAItoOllama(hub, {"request": {"input": ["a", "b"]}})["embeddings"] == answer["embeddings"]
    assert embedAnsOpenAItoOllama(hub, {"request": {"prompt": "a"}}) == {"embedding": [0.5, 1.0]}
    with pytest.raises(BackendError):
        embedAnsOllamatoOpenAI({"embeddings": None})


def test_both_shapes_of_a_clients_embeddings_are_read() -> None:
    wanted = {"model": "e", "input": "a", "encoding_format": "float"}
    assert embedReqOllamatoOpenAI({"model": "e", "input": "a", "truncate": True, "options": {}}) == wanted
    assert embedReqOllamatoOpenAI({"model": "e", "prompt": "a"}) == wanted
    for body, param in (({"input": 5}, "input"), ({}, "prompt"), ({"prompt": ""}, "prompt")):
        with pytest.raises(BadRequest) as refused:
            embedReqOllamatoOpenAI(body)
        assert refused.value.param == param


def test_models_are_listed_both_ways() -> None:
    tags = {
        "models": [
            {"name": "tiny:latest", "model": "tiny:latest", "modified_at": "2026-11-01T10:00:00.123456789+02:00"},
            {"x": 1},
        ]
    }
    hub = modelsAnsOllamatoOpenAI(tags)
    assert hub["data"] == [{"id": "tiny:latest", "object": "model", "created": 1793520000, "owned_by": "ollama"}]
    back = modelsAnsOpenAItoOllama(hub, CFG)["models"]
    assert [(model["name"], model["modified_at"], len(model["digest"])) for model in back] == [
        ("tiny:latest", "2026-11-01T08:00:00Z", 64)
    ]
    assert modelsAnsOpenAItoOllama({"data": [{"id": "a", "created": 10**14}]})["models"][0]["modified_at"].startswith("9999")
    with pytest.raises(BackendError):
        modelsAnsOllamatoOpenAI({"models": None})
    assert modelsAnsOllamatoOpenAI({"models": [{"name": "a", "modified_at": "yesterday"}]})["data"][0]["created"] == 0


@pytest.mark.parametrize("body", [{"model": "m"}, {"name": "m", "verbose": True}])
def test_a_model_can_be_shown_by_either_name(body: dict[str, Any]) -> None:
    shown = showAnsOllama(body, CFG)
    assert "tools" in shown["capabilities"]
    assert shown["model_info"]["general.basename"] == "m"
    assert sdk.ShowResponse(**shown).modelinfo


def test_showing_no_model_is_refused() -> None:
    with pytest.raises(BadRequest) as refused:
        showAnsOllama({}, CFG)
    assert refused.value.param == "model"


def test_every_function_and_path_is_found_by_name() -> None:
    for name in ("chatReqOllamatoOpenAI", "textStreamOllamatoOpenAI", "embedAnsOpenAItoOllama", "modelsAnsOpenAItoOllama"):
        assert mapper(name) is not None, name
    own = load("ollama")
    for route in own.routes:
        if route.answer:
            answer = mapper(route.answer)
            assert answer is not None
            assert isinstance(answer({"model": "m"}, CFG), dict)
    assert own.framing("") == "ndjson"
    assert own.stream_default
    kinds = {("POST", "/api/chat"): "chat", ("POST", "/api/pull"): "manage", ("DELETE", "/api/delete"): "manage"}
    for (method, path), kind in kinds.items():
        route = route_of("ollama", method, path)
        assert route is not None
        assert route.kind == kind


# --- errors and the grammar


def test_errors_are_one_string() -> None:
    assert ollama.error_body(BadRequest("no"), "id") == {"error": "no"}
    fault = load("ollama").parse_error(404, {"error": "model 'tiny' not found"})
    assert (fault.status, fault.message, fault.kind) == (404, "model 'tiny' not found", "not_found_error")
    assert load("ollama").parse_error(502, None).message


def run(events: Any, kind: str = "chat") -> tuple[list[Any], ProxyError | None]:
    """What the grammar lets out, and what it raises after that."""
    checked = ollama.grammar(events, {"chain": "mine", "kind": kind})
    out: list[Any] = []
    try:
        while (event := next(checked, None)) is not None:
            out.append(event)
    except ProxyError as error:
        return out, error
    return out, None


def lines_of(**message: Any) -> list[dict[str, Any]]:
    answer = chat_answer(CFG, {"role": "assistant", "content": "Hi", **message}, "stop", usage(1, 2), model="m")
    return list(chatStreamOpenAItoOllama(unfold(answer), CFG))


def test_the_grammar_passes_whole_streams() -> None:
    whole = lines_of(reasoning_content="hm", tool_calls=[CALL])
    assert run(whole) == (whole, None)
    text = list(textStreamOpenAItoOllama([completion("a")], CFG))
    assert run(text, "text") == (text, None)


def test_an_early_end_is_said_once() -> None:
    out, error = run(lines_of()[:-1])
    assert isinstance(error, BackendError)
    assert out[-1] == {"error": error.message}


def test_an_illegal_line_is_held_back_and_names_the_chain() -> None:
    line = lines_of()[0]
    wrong: list[Any] = ["text", None, {}, {**line, "done": "no"}, {**line, "message": "Hi"}, {**line, "model": None}]
    wrong += [{**line, "message": {**line["message"], "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]
    wrong += [{**line, "message": {**line["message"], "tool_calls": "x"}}, {**line, "done": True}]
    for bad in wrong:
        out, error = run([bad])
        assert isinstance(error, MapperError), bad
        assert error.message.startswith("mine: ")
        assert [set(event) for event in out] == [{"error"}]
    assert isinstance(run([line], "text")[1], MapperError)
    assert isinstance(run([*lines_of(), line])[1], MapperError)


def test_a_fault_of_the_input_is_said_and_raised_again() -> None:
    fault = BackendError("gone", status=504)

    def broken() -> Iterator[Any]:
        yield lines_of()[0]
        raise fault

    out, error = run(broken())
    assert error is fault
    assert out[-1] == {"error": "gone"}


def test_a_mutated_stream_ends_in_a_proxy_error_or_harmlessly() -> None:
    for kind, whole in (
        ("chat", lines_of(reasoning_content="hm", tool_calls=[CALL])),
        ("text", list(textStreamOpenAItoOllama([completion("a")], CFG))),
    ):
        for events in mutations(whole):
            out, error = run(events, kind)
            last = [event for event in out if event.get("done") is True]
            assert len(last) <= 1
            assert (error is None) == (len(last) == 1 and out[-1] is last[0])


@steady
@given(hub_answers(), st.integers(1, 5))
def test_a_stream_of_fragments_folds_to_the_answer(answer: dict[str, Any], size: int) -> None:
    message = {name: value for name, value in answer["choices"][0]["message"].items() if name != "thinking_blocks"}
    if message.get("refusal"):
        message["content"] = message["refusal"]
    made = ollama.grammar(chatStreamOpenAItoOllama(fragments(answer, size, unfold), LAWS), {"kind": "chat"})
    back = fold(chatStreamOllamatoOpenAI(made, LAWS))
    assert back == chatAnsOllamatoOpenAI(unchanged(chatAnsOpenAItoOllama, answer), LAWS)
    told = back["choices"][0]["message"]
    arguments = [json.loads(call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    assert [json.loads(call["function"]["arguments"]) for call in told.get("tool_calls", [])] == arguments
    for name in ("content", "reasoning_content"):
        assert told.get(name) == message.get(name)
    assert back["usage"]["total_tokens"] == answer["usage"]["total_tokens"]


# --- Ollama's own client in front


class Front:
    """A server that is nothing but the mappers, in front of one answer: what Ollama's clients must be able to read."""

    def __init__(self, answer: dict[str, Any] | ProxyError) -> None:
        self.asked: list[dict[str, Any]] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Quiet."""

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                cfg = {**CFG, "request": body}
                chat = self.path == "/api/chat"
                hub = (chatReqOllamatoOpenAI if chat else textReqOllamatoOpenAI)(body)
                asked.append(hub)
                if isinstance(answer, ProxyError):
                    made, status = wire.dumps(ollama.error_body(answer, "")), answer.status
                elif hub.get("stream"):
                    events = chatStreamOpenAItoOllama(unfold(answer), cfg) if chat else textStreamOpenAItoOllama([answer], cfg)
                    made, status = (
                        b"".join(wire.write("ndjson", ollama.grammar(events, {"kind": "chat" if chat else "text"}))),
                        200,
                    )
                else:
                    made, status = wire.dumps((chatAnsOpenAItoOllama if chat else textAnsOpenAItoOllama)(answer, cfg)), 200
                self.send_response(status)
                self.end_headers()
                self.wfile.write(made)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.client = sdk.Client(f"http://127.0.0.1:{self.server.server_port}")

    def __enter__(self) -> Front:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_the_ollama_client_reads_every_chat() -> None:
    message = {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "tool_calls": [CALL]}
    with Front(chat_answer(CFG, message, "tool_calls", usage(3, 4), model="m")) as front:
        said: Any = {
            "model": "m",
            "messages": [{"role": "user", "content": "x", "images": [PNG]}],
            "tools": [TOOL],
            "think": True,
        }
        whole = front.client.chat(**said)
        assert (whole.message.content, whole.message.thinking, whole.done_reason, whole.eval_count) == ("Hi", "hm", "stop", 4)
        assert whole.message.tool_calls is not None
        assert whole.message.tool_calls[0].function.arguments == {"city": "Paris"}
        streamed = list(front.client.chat(**said, stream=True))
        assert "".join(part.message.content or "" for part in streamed) == "Hi"
        assert [part.done for part in streamed].count(True) == 1
        assert streamed[-1].prompt_eval_count == 3
        assert front.asked[0]["messages"][0]["content"][1]["image_url"]["url"].endswith(PNG)
        assert front.asked[1]["stream"] is True


def test_the_ollama_client_reads_every_completion_and_error() -> None:
    with Front({**completion(" upon"), "usage": usage(1, 2)}) as front:
        assert front.client.generate("m", "Once").response == " upon"
        assert "".join(part.response or "" for part in front.client.generate("m", "Once", stream=True)) == " upon"
    with Front(BackendError("busy", status=429)) as front, pytest.raises(sdk.ResponseError, match="busy") as fault:
        front.client.chat("m", [{"role": "user", "content": "x"}])
    assert fault.value.status_code == 429


# --- against the double: a real socket, the real bytes


@pytest.fixture(scope="module")
def double() -> Iterator[OllamaDouble]:
    with OllamaDouble() as served:
        yield served


def ask(double: OllamaDouble, said: str, **given: Any) -> dict[str, Any]:
    body = {**HELLO, "messages": [{"role": "user", "content": said}], **given}
    cfg = {**CFG, "request": body}
    reply = requests.post(double.url + "/api/chat", json=chatReqOpenAItoOllama(body, cfg), stream=True, timeout=10)
    if reply.status_code != 200:
        raise load("ollama").parse_error(reply.status_code, reply.json())
    if given.get("stream"):
        events = wire.reader(reply.headers["Content-Type"])(reply.iter_content(None))
        return fold(chatStreamOllamatoOpenAI(events, cfg))
    return chatAnsOllamatoOpenAI(reply.json(), cfg)


@pytest.mark.parametrize(
    "given",
    [
        {"said": "say hello", "temperature": 0, "stop": "x"},
        {"said": "count up", "max_tokens": 2},
        {"said": "think hard", "reasoning_effort": "high"},
        {"said": "call two tools", "tools": [TOOL, OTHER]},
        {"said": "say hello", "logprobs": True, "top_logprobs": 2},
    ],
)
def test_a_folded_stream_is_the_answer(double: OllamaDouble, given: dict[str, Any]) -> None:
    whole, streamed = ask(double, **given), ask(double, **given, stream=True)
    assert whole == streamed
    assert whole["usage"]["completion_tokens"] > 0


def test_a_conversation_with_a_tool(double: OllamaDouble) -> None:
    called = ask(double, "call tool", tools=[TOOL])["choices"][0]
    assert (called["finish_reason"], called["message"]["tool_calls"][0]["id"]) == ("tool_calls", "call_real")
    result = {"role": "tool", "tool_call_id": "call_real", "content": "rain"}
    said = [{"role": "user", "content": "call tool"}, called["message"], result]
    assert ask(double, "", messages=said, tools=[TOOL])["choices"][0]["message"]["content"] == "The tool said rain"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_a_refusal_of_the_server_keeps_its_status(double: OllamaDouble, stream: bool, status: int) -> None:
    with pytest.raises(BackendError) as fault:
        ask(double, f"fail {status}", stream=stream)
    assert fault.value.status == status


def test_broken_streams(double: OllamaDouble) -> None:
    with pytest.raises(BackendError, match="while running the model"):
        ask(double, "error stream", stream=True)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        ask(double, "cut stream", stream=True)


def test_a_stream_cut_into_bytes_anywhere_is_the_same() -> None:
    body = b"".join(wire.frame("ndjson", line) for line in lines_of(content="h\u00e9 \u2028", tool_calls=[CALL]))
    want = list(chatStreamOllamatoOpenAI(wire.read_ndjson([body]), CFG))
    for at in range(len(body)):
        assert list(chatStreamOllamatoOpenAI(wire.read_ndjson([body[:at], body[at:]]), CFG)) == want


def test_the_double_is_what_ollamas_client_expects(double: OllamaDouble) -> None:
    client = sdk.Client(double.url)
    assert client.chat("tiny", [{"role": "user", "content": "say hello"}]).message.content == "Hello there, friend!"
    assert client.generate("tiny", "count up", options={"num_predict": 2}).response == "one two"
    assert client.list().models[0].model == "tiny:latest"
    assert client.embed("tiny", ["a", "bb"]).embeddings[1][0] == 2.0


@pytest.mark.parametrize(
    "given",
    [
        {"unknown": 1},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": "a", "images": ["data:image/png;base64,AAAA"]}]},
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
        {"options": {"stop": "x"}},
        {"tools": [{**TOOL, "function": {**TOOL["function"], "strict": True}}]},
        {"format": "xml"},
    ],
)
def test_the_double_refuses_what_ollama_does_not_know(given: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        check({**HELLO, **given}, ChatRequest)


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_an_image_where_other_apis_have_no_place_for_one_is_refused(role):
    body = {"model": "m", "messages": [{"role": role, "content": "x", "images": ["aGk="]}]}
    with pytest.raises(BadRequest, match=r"messages\[0\]\.images"):
        mapper("chatReqOllamatoOpenAI")(body, {})
