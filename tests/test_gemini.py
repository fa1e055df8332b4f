"""proxy/dialects/gemini.py: Gemini's API as a backend and in front, against Google's own types and Google's own SDK."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import requests
from google import genai
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import wire
from proxy.dialects import front, gemini, load, mapper, route_of
from proxy.dialects._gemini_parts import seal, unseal
from proxy.dialects._gemini_schema import schema_in, schema_out
from proxy.dialects._seal import signature_of, signed
from proxy.dialects.gemini import (
    chatAnsGeminitoOpenAI,
    chatAnsOpenAItoGemini,
    chatReqGeminitoOpenAI,
    chatReqOpenAItoGemini,
    chatStreamGeminitoOpenAI,
    chatStreamOpenAItoGemini,
    countAnsGeminitoOpenAI,
    countAnsOpenAItoGemini,
    countReqGeminitoOpenAI,
    countReqOpenAItoGemini,
    embedAnsGeminitoOpenAI,
    embedAnsOpenAItoGemini,
    embedReqGeminitoOpenAI,
    embedReqOpenAItoGemini,
    modelAnsOpenAItoGemini,
    modelsAnsGeminitoOpenAI,
    modelsAnsOpenAItoGemini,
)
from proxy.dialects.openai import canonical, fold, unfold
from proxy.errors import BackendError, BadRequest, MapperError, ProxyError, Refused
from tests.doubles.gemini import KEY, SIGNATURE, GeminiDouble, Refusal, check_generate, check_shape

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(24)).decode()
PDF = base64.b64encode(b"%PDF-1.7 and more than thirty-two bytes").decode()
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "looks outside",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CFG = {"id": "i" * 28, "now": 1700000000, "params": {"model": "gemini-3.5-flash"}}


def hub(*messages: Any, **fields: Any) -> dict[str, Any]:
    listed = [{"role": "user", "content": item} if isinstance(item, str) else item for item in messages]
    return {"model": "gemini-3.5-flash", "messages": listed, **fields}


def sent(req: Any, **cfg: Any) -> dict[str, Any]:
    """What a Gemini backend gets, held against Google's types and rules."""
    before = copy.deepcopy(req)
    body = chatReqOpenAItoGemini(req, {**CFG, **cfg})
    assert req == before
    check_shape("generateContent", body, by_name=False)
    check_generate(body, "gemini-0" if "gemini-3" in req["model"] else req["model"])
    return body


def asked(*parts: Any, **fields: Any) -> dict[str, Any]:
    """A client's body with one user turn."""
    return {
        "contents": [{"role": "user", "parts": [{"text": part} if isinstance(part, str) else part for part in parts]}],
        **fields,
    }


def read(body: Any, **cfg: Any) -> dict[str, Any]:
    before = copy.deepcopy(body)
    req = chatReqGeminitoOpenAI(body, {**CFG, **cfg})
    assert body == before
    assert canonical(req) == req
    return req


def response(event: Any) -> types.GenerateContentResponse:
    """An answer or event as Google's types read it, unknown fields forbidden."""
    return types.GenerateContentResponse.model_validate_json(json.dumps(event), by_alias=True, by_name=False)


def answer(message: dict[str, Any], finish: str | None = "stop", **choice: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
    return {**head, "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **choice}]}


def calls(**named: str) -> list[dict[str, Any]]:
    return [
        {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": args}}
        for name, args in named.items()
    ]


@pytest.fixture(scope="module")
def google() -> Iterator[GeminiDouble]:
    with GeminiDouble() as double:
        yield double


def post(google: GeminiDouble, operation: str, body: Any, model: str = "gemini-3.5-flash") -> Any:
    url = f"{google.url}/v1beta/models/{model}:{operation}"
    return requests.post(url, json=body, headers={"x-goog-api-key": KEY}, timeout=10)


def call(google: GeminiDouble, req: dict[str, Any]) -> dict[str, Any]:
    """A hub request, answered by the double."""
    reply = post(google, "generateContent", chatReqOpenAItoGemini(req, CFG), req["model"])
    if reply.status_code != 200:
        raise gemini.parse_error(reply.status_code, reply.json())
    return chatAnsGeminitoOpenAI(reply.json(), {**CFG, "request": req})


def stream(google: GeminiDouble, req: dict[str, Any], query: str = "?alt=sse") -> Iterator[Any]:
    reply = post(google, f"streamGenerateContent{query}", chatReqOpenAItoGemini(req, CFG), req["model"])
    events = wire.reader(reply.headers["content-type"])([reply.content])
    return chatStreamGeminitoOpenAI(events, {**CFG, "request": req})


# --- routes


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha"])
def test_every_version_that_sdks_call_is_routed(version: str) -> None:
    path = f"/{version}/models/meta/llama:8b"
    found = {
        name: route_of("gemini", "POST", f"{path}:{name}")
        for name in ("generateContent", "streamGenerateContent", "countTokens")
    }
    assert [(route.kind, route.stream) for route in found.values() if route] == [
        ("chat", False),
        ("chat", True),
        ("count", False),
    ]
    assert {
        route.kind for name in ("embedContent", "batchEmbedContents") if (route := route_of("gemini", "POST", f"{path}:{name}"))
    } == {"embed"}
    assert front("POST", f"{path}:generateContent", {"x-goog-api-key": "k"}) == "gemini"


def test_framing_is_an_array_unless_sse_is_asked_for() -> None:
    framing = load("gemini").framing
    assert [framing(query) for query in ("", "alt=json", "alt=sse", "key=k&alt=sse")] == ["array", "array", "sse", "sse"]


def test_every_mapper_of_the_backend_and_the_front_is_found() -> None:
    for kind in ("chat", "count", "embed"):
        for name in (
            f"{kind}ReqGeminitoOpenAI",
            f"{kind}ReqOpenAItoGemini",
            f"{kind}AnsGeminitoOpenAI",
            f"{kind}AnsOpenAItoGemini",
        ):
            assert mapper(name), name
    for name in ("chatStreamGeminitoOpenAI", "chatStreamOpenAItoGemini", "modelsAnsGeminitoOpenAI", "modelAnsOpenAItoGemini"):
        assert mapper(name), name


# --- requests from Gemini clients


def test_camel_and_snake_case_are_read_alike() -> None:
    camel = {"maxOutputTokens": 9, "topP": 0.5, "topK": 40.0, "stopSequences": ["a", ""], "candidateCount": 2, "seed": 3}
    snake = {"max_output_tokens": 9, "top_p": 0.5, "top_k": 40, "stop_sequences": ["a"], "candidate_count": 2, "seed": 3}
    wanted = {"max_completion_tokens": 9, "top_p": 0.5, "top_k": 40, "stop": ["a"], "n": 2, "seed": 3}
    for body in (asked("x", generationConfig=camel), asked("x", generation_config=snake)):
        assert wanted.items() <= read(body).items()
    told = asked("x", system_instruction={"parts": [{"text": "be"}, {"text": "kind"}]})
    assert read(told)["messages"][0] == {
        "role": "system",
        "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "kind"}],
    }


def test_a_stream_asks_for_usage() -> None:
    assert {"stream": True, "stream_options": {"include_usage": True}}.items() <= read(asked("x"), stream=True).items()
    assert "stream" not in read(asked("x"))


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"thinkingBudget": 0}, {"thinking": {"type": "disabled"}}),
        ({"thinkingBudget": -1, "includeThoughts": True}, {"thinking": {"type": "adaptive"}}),
        ({"thinkingBudget": 512, "includeThoughts": True}, {"thinking": {"type": "enabled", "budget_tokens": 512}}),
        ({"thinkingLevel": "HIGH", "includeThoughts": True}, {"reasoning_effort": "high"}),
        ({"include_thoughts": True}, {"thinking": {"type": "adaptive"}}),
        ({"includeThoughts": False}, {}),
    ],
)
def test_thinking_is_read(config: dict[str, Any], wanted: dict[str, Any]) -> None:
    req = read(asked("x", generationConfig={"thinkingConfig": config}))
    assert {name: req[name] for name in ("thinking", "reasoning_effort") if name in req} == wanted


def test_thinking_is_read_back_as_it_was_written() -> None:
    for config in (
        {"thinkingBudget": 0},
        {"thinkingBudget": -1, "includeThoughts": True},
        {"thinkingLevel": "LOW", "includeThoughts": True},
    ):
        req = read(asked("x", generationConfig={"thinkingConfig": config}))
        model = "gemini-2.5-flash" if "thinkingBudget" in config else "gemini-3.5-flash"
        assert sent({**req, "model": model})["generationConfig"]["thinkingConfig"] == config


def test_calls_without_ids_get_one_that_their_results_find() -> None:
    turns = [
        {"role": "user", "parts": [{"text": "go"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "a", "args": {"x": 1}}}, {"functionCall": {"name": "b"}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "b", "response": {"output": "B"}}}, {"text": "next"}]},
        {"role": "function", "parts": [{"functionResponse": {"name": "a", "response": {"x": 1}}}]},
    ]
    said = read({"contents": turns})["messages"]
    assert [(item["id"], item["function"]["arguments"]) for item in said[1]["tool_calls"]] == [
        ("call_2_0", '{"x":1}'),
        ("call_2_1", "{}"),
    ]
    assert said[1]["content"] is None
    assert said[2:] == [
        {"role": "tool", "tool_call_id": "call_2_1", "content": "B"},
        {"role": "user", "content": "next"},
        {"role": "tool", "tool_call_id": "call_2_0", "content": '{"x":1}'},
    ]
    assert read({"contents": turns[:2]})["messages"] == said[:2]  # the same ids, however long the conversation gets


def test_the_events_of_a_stream_in_an_sdks_history_are_one_turn() -> None:
    parts = [
        {"text": "h", "thought": True},
        {"text": "m", "thought": True},
        {"text": "", "thought": True, "thoughtSignature": "c2ln"},
    ]
    parts += [{"text": "a"}, {"text": "b"}, {"functionCall": {"name": "f", "id": "1"}}, {"text": ""}]
    said, _ = read({"contents": [*({"role": "model", "parts": [part]} for part in parts), *asked("go")["contents"]]})[
        "messages"
    ]
    assert (said["content"], said["reasoning_content"]) == ("ab", "hm")
    assert said["thinking_blocks"] == [{"type": "thinking", "thinking": "hm", "signature": "c2ln"}]
    assert [call["id"] for call in said["tool_calls"]] == ["1"]


def test_an_error_result_is_marked_and_a_result_can_hold_images() -> None:
    image = {"inlineData": {"mimeType": "image/png", "data": PNG}}
    turns = [
        {"role": "model", "parts": [{"functionCall": {"name": "a", "id": call_id, "args": {}}} for call_id in "12"]},
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "a", "id": "2", "response": {"error": "broke"}}},
                {"functionResponse": {"name": "a", "id": "1", "response": {"output": "see"}, "parts": [image]}},
            ],
        },
    ]
    _, failed, shown = read({"contents": turns})["messages"]
    assert failed == {"role": "tool", "tool_call_id": "2", "content": "broke", "is_error": True}
    assert shown["content"][1] == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    assert sent(read({"contents": turns}), model="gemini-2.5-pro")["contents"] == turns


def test_media_come_as_hub_parts_with_their_true_type() -> None:
    urlsafe = base64.urlsafe_b64encode(b"\xff\xd8\xff\xfb\xef\xbe").decode()  # as the Python SDK writes bytes
    body = asked(
        {"inlineData": {"mimeType": "image/png", "data": urlsafe}},
        {"inline_data": {"mime_type": "application/pdf", "data": PDF}},
        {"inlineData": {"mimeType": "audio/mpeg", "data": "AAAA"}},
        {"fileData": {"mimeType": "image/webp", "fileUri": "https://x/y"}},
        {"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/a"}},
    )
    assert read(body)["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/++++"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
        {"type": "image_url", "image_url": {"url": "https://x/y"}},
        {"type": "file", "file": {"file_id": "https://generativelanguage.googleapis.com/v1beta/files/a"}},
    ]


def test_function_calling_modes() -> None:
    declared = [
        {"functionDeclarations": [{"name": "a"}, {"name": "b"}, {"name": "c"}]},
        {"googleSearch": {}},
        {"codeExecution": {}},
    ]

    def under(**config: Any) -> tuple[Any, list[str]]:
        req = read(asked("x", tools=declared, toolConfig={"functionCallingConfig": config}))
        return req.get("tool_choice"), [tool["function"]["name"] for tool in req["tools"]]

    every = ["a", "b", "c"]
    assert [under(mode=mode) for mode in ("AUTO", "any", "NONE")] == [("auto", every), ("required", every), ("none", every)]
    assert under(mode="ANY", allowedFunctionNames=["b"]) == ({"type": "function", "function": {"name": "b"}}, every)
    assert under(mode="ANY", allowedFunctionNames=["b", "c"]) == ("required", ["b", "c"])
    assert under() == (None, every)
    assert "tools" not in read(asked("x", tools=declared[1:], toolConfig={"functionCallingConfig": {"mode": "ANY"}}))


def test_structured_output_is_read_from_either_schema() -> None:
    schema = {
        "type": "OBJECT",
        "properties": {"n": {"type": "INTEGER", "nullable": True, "minItems": "2"}},
        "propertyOrdering": ["n"],
    }
    wanted = {"type": "object", "properties": {"n": {"type": ["integer", "null"], "minItems": 2}}}
    config = {"responseMimeType": "application/json"}
    assert read(asked("x", generationConfig=config))["response_format"] == {"type": "json_object"}
    for fields in ({"responseSchema": schema}, {"responseJsonSchema": wanted}):
        form = read(asked("x", generationConfig={**config, **fields}))["response_format"]
        assert form == {"type": "json_schema", "json_schema": {"name": "response", "schema": wanted}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], None),
        ({}, "contents"),
        ({"contents": "hi"}, "contents"),
        ({"contents": ["hi"]}, "contents[0]"),
        (asked({"text": 1}), "contents[0].parts[0].text"),
        (asked({"inlineData": {"data": "AAAA"}}), "contents[0].parts[0].inlineData.mimeType"),
        (asked({"functionResponse": {"name": "f"}}), "contents[0].parts[0].functionResponse"),
        (
            {"contents": [{"role": "model", "parts": [{"functionCall": {"args": {}}}]}]},
            "contents[0].parts[0].functionCall.name",
        ),
        ({"contents": [{"role": "system", "parts": []}]}, "contents[0].role"),
        (asked("x", generationConfig={"topK": "40"}), "generationConfig.topK"),
        (asked("x", generationConfig={"stopSequences": [1]}), "generationConfig.stopSequences[0]"),
        (
            asked("x", generationConfig={"thinkingConfig": {"thinkingLevel": "VERY"}}),
            "generationConfig.thinkingConfig.thinkingLevel",
        ),
        (asked("x", tools=[{"functionDeclarations": [{}]}]), "tools[0].functionDeclarations[0].name"),
        (asked("x", cachedContent="cachedContents/1"), "cachedContent"),
    ],
)
def test_a_wrong_request_is_refused_by_the_fields_name(body: Any, param: str | None) -> None:
    with pytest.raises(BadRequest) as refused:
        chatReqGeminitoOpenAI(body, CFG)
    assert refused.value.param == param


def test_what_googles_sdk_sends_is_understood(google: GeminiDouble) -> None:
    client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=google.url))
    tool = types.Tool(
        function_declarations=[
            types.FunctionDeclaration.model_validate(
                {"name": "weather", "parameters_json_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
            )
        ]
    )
    config = types.GenerateContentConfig(
        system_instruction="be brief", tools=[tool], temperature=0.5, top_k=40, stop_sequences=["END"], max_output_tokens=99
    )
    chat = client.chats.create(model="gemini-3.5-flash", config=config)
    chat.send_message([types.Part.from_bytes(data=base64.b64decode(PNG), mime_type="image/png"), "call tool"])
    chat.send_message(types.Part.from_function_response(name="weather", response={"output": "rain"}))
    method, path, _, body = google.requests[-1]
    req = read(body)
    assert (method, path) == ("POST", "/v1/models/gemini-3.5-flash:generateContent")
    assert {"temperature": 0.5, "top_k": 40, "stop": ["END"], "max_completion_tokens": 99}.items() <= req.items()
    system, user, model, tool_message = req["messages"]
    assert system == {"role": "system", "content": "be brief"}
    assert user["content"][0]["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert signature_of(model["tool_calls"][0]) == SIGNATURE  # the SDK turned it into the other alphabet
    assert tool_message["content"] == "rain"


# --- requests to Gemini backends


def test_system_messages_lead_or_keep_their_place() -> None:
    req = hub(
        {"role": "system", "content": "S"}, {"role": "developer", "content": "D"}, "a", {"role": "system", "content": "M"}, "b"
    )
    body = sent(req)
    assert body["systemInstruction"] == {"parts": [{"text": "S"}, {"text": "D"}]}
    assert body["contents"] == [{"role": "user", "parts": [{"text": "a"}, {"text": "M"}, {"text": "b"}]}]
    assert sent(hub({"role": "system", "content": "alone"}))["contents"] == [{"role": "user", "parts": [{"text": "alone"}]}]


def test_roles_alternate_and_nothing_is_made_up() -> None:
    tools = [{"role": "tool", "tool_call_id": f"call_{name}", "content": name} for name in ("a", "b")]
    turn = {"role": "assistant", "content": None, "tool_calls": calls(a='{"x":1}', b="")}
    body = sent({**hub("x", turn, *tools, "y"), "model": "gemini-2.5-pro"})
    assert [content["role"] for content in body["contents"]] == ["user", "model", "user"]
    assert body["contents"][1]["parts"] == [
        {"functionCall": {"id": f"call_{n}", "name": n, "args": a}} for n, a in (("a", {"x": 1}), ("b", {}))
    ]
    results = [{"functionResponse": {"id": f"call_{name}", "name": name, "response": {"output": name}}} for name in ("a", "b")]
    assert body["contents"][2]["parts"] == [*results, {"text": "y"}]


def test_signatures_stay_on_their_parts() -> None:
    two = [
        {**calls(a="{}")[0], **signed("c2ln")},
        {**calls(b="{}")[0], "extra_content": {"google": {"thought_signature": "b3Ro"}}},
    ]
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "dGhp"}, {"type": "redacted_thinking", "data": "Claude's"}]
    turn = {
        "role": "assistant",
        "content": "so",
        **signed("dGV4"),
        "thinking_blocks": blocks,
        "reasoning_content": "hm",
        "tool_calls": two,
    }
    tools = [{"role": "tool", "tool_call_id": f"call_{name}", "content": "r"} for name in ("a", "b")]
    parts = sent(hub("x", turn, *tools))["contents"][1]["parts"]
    assert [(part.get("thought"), part.get("text"), part.get("thoughtSignature")) for part in parts] == [
        (True, "hm", "dGhp"),
        (None, "so", "dGV4"),
        (None, None, "c2ln"),
        (None, None, "b3Ro"),
    ]
    bare = sent(hub("x", {"role": "assistant", "content": None, **signed("dGV4")}, "y"))
    assert bare["contents"][1]["parts"] == [{"text": "", "thoughtSignature": "dGV4"}]


@pytest.mark.parametrize(
    ("model", "marked"),
    [
        ("gemini-3-pro-preview", True),
        ("models/gemini-4-argon", True),
        ("gemini-2.5-flash", False),
        ("gemini-flash-latest", False),
    ],
)
def test_a_call_whose_signature_is_lost_is_marked_where_the_model_insists_on_one(model: str, marked: bool) -> None:
    """Most clients of other APIs hand back only what their own API documents: without the mark each second step fails."""
    turn = {"role": "assistant", "content": "so", "tool_calls": calls(a="{}", b="{}")}
    tools = [{"role": "tool", "tool_call_id": f"call_{name}", "content": "r"} for name in ("a", "b")]
    kept = {"role": "assistant", "content": None, "tool_calls": [{**calls(c="{}")[0], **signed("c2ln")}]}
    body = sent({**hub("x", turn, *tools, kept, {"role": "tool", "tool_call_id": "call_c", "content": "r"}), "model": model})
    found = [part.get("thoughtSignature") for part in body["contents"][1]["parts"]]
    assert found == [None, "skip_thought_signature_validator" if marked else None, None]
    assert body["contents"][3]["parts"][0]["thoughtSignature"] == "c2ln"


def test_media_go_inline_or_by_uri() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.PNG?z"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}"}},
    ]
    assert sent(hub({"role": "user", "content": parts}))["contents"][0]["parts"] == [
        {"inlineData": {"mimeType": "image/png", "data": PNG}},
        {"fileData": {"mimeType": "image/png", "fileUri": "https://x/y.PNG?z"}},
        {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
        {"inlineData": {"mimeType": "application/pdf", "data": PDF}},
    ]
    with pytest.raises(BadRequest) as refused:
        sent(hub({"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}))
    assert refused.value.param == "messages[0].content[0].file"


@pytest.mark.parametrize(
    ("fields", "config"),
    [
        (
            {"max_tokens": 5, "stop": "a", "n": 2, "seed": 1},
            {"maxOutputTokens": 5, "stopSequences": ["a"], "candidateCount": 2, "seed": 1},
        ),
        ({"logprobs": True, "top_logprobs": 3}, {"responseLogprobs": True, "logprobs": 3}),
        ({"top_logprobs": 3}, None),
        (
            {"presence_penalty": 1, "frequency_penalty": 0.5, "top_k": 3},
            {"presencePenalty": 1, "frequencyPenalty": 0.5, "topK": 3},
        ),
        ({"reasoning_effort": "low"}, {"thinkingConfig": {"includeThoughts": True, "thinkingLevel": "LOW"}}),
        (
            {"reasoning_effort": "high", "model": "gemini-2.5-pro"},
            {"thinkingConfig": {"includeThoughts": True, "thinkingBudget": 24576}},
        ),
        ({"reasoning_effort": "none"}, {"thinkingConfig": {"thinkingLevel": "MINIMAL"}}),
        ({"reasoning_effort": "none", "model": "gemini-3.1-pro-preview"}, {"thinkingConfig": {"thinkingLevel": "LOW"}}),
        ({"reasoning_effort": "none", "model": "gemini-2.5-flash"}, {"thinkingConfig": {"thinkingBudget": 0}}),
        ({"reasoning_effort": "none", "model": "gemini-2.5-pro"}, {"thinkingConfig": {"thinkingBudget": 128}}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 31999}, "model": "gemini-2.5-flash"},
            {"thinkingConfig": {"includeThoughts": True, "thinkingBudget": 24576}},
        ),
        (
            {"reasoning_effort": "max", "model": "gemini-2.5-flash"},
            {"thinkingConfig": {"includeThoughts": True, "thinkingBudget": 24576}},
        ),
        (
            {"thinking": {"type": "adaptive"}, "reasoning_effort": "max"},
            {"thinkingConfig": {"includeThoughts": True, "thinkingLevel": "XHIGH"}},
        ),
        ({"response_format": {"type": "json_object"}}, {"responseMimeType": "application/json"}),
        ({"user": "u", "metadata": {}, "logit_bias": {}, "parallel_tool_calls": False, "unknown": 1}, None),
    ],
)
def test_parameters_reach_the_generation_config(fields: dict[str, Any], config: dict[str, Any] | None) -> None:
    assert sent(hub("x", **fields)).get("generationConfig") == config


def test_tools_and_choices() -> None:
    empty = {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "properties": {}}, "strict": True},
    }
    custom = {"type": "custom", "custom": {"name": "patch", "description": "raw"}}
    body = sent(hub("x", tools=[WEATHER, empty, custom], tool_choice={"type": "function", "function": {"name": "now"}}))
    first, second, third = body["tools"][0]["functionDeclarations"]
    assert first == WEATHER["function"]
    assert second == {"name": "now"}
    assert third["parameters"]["properties"] == {"input": {"type": "string"}}
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["now"]}}
    modes = [
        sent(hub("x", tools=[WEATHER], tool_choice=choice))["toolConfig"]["functionCallingConfig"]["mode"]
        for choice in ("auto", "none", "required")
    ]
    assert modes == ["AUTO", "NONE", "ANY"]
    assert "toolConfig" not in sent(hub("x", tool_choice="auto"))


def test_schemas_lose_what_gemini_refuses_and_keep_the_rest() -> None:
    schema = {
        "$schema": "s",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "uniqueItems": {"type": "array", "uniqueItems": True},
            "map": {"type": "object", "propertyNames": {"pattern": "x"}, "additionalProperties": {"type": "string"}},
            "maybe": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "default": None},
            "either": {"type": ["string", "integer", "null"]},
            "one": {"const": "only"},
            "ref": {"allOf": [{"type": "string"}], "description": "d"},
        },
    }
    found = schema_out(schema, "plain", "full")["plain"]["properties"]
    assert found == {
        "uniqueItems": {"type": "array", "items": {"type": "string"}},
        "map": {"type": "object"},
        "maybe": {"type": "string", "maxLength": 3, "nullable": True, "default": None},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}], "nullable": True},
        "one": {"type": "string", "enum": ["only"]},
        "ref": {"type": "string", "description": "d"},
    }


@pytest.mark.parametrize(
    "inner",
    [{"$ref": "#/$defs/x"}, {"oneOf": [{"type": "string"}]}, {"enum": [1, 2]}, {"const": True}, {"description": "anything"}],
)
def test_what_the_subset_cannot_say_goes_as_json_schema(inner: dict[str, Any]) -> None:
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": inner}, "$schema": "s"}},
    }
    declared = sent(hub("x", tools=[tool]))["tools"][0]["functionDeclarations"][0]
    assert declared["parametersJsonSchema"]["properties"]["x"].keys() <= {"$ref", "oneOf", "enum", "description"}
    assert "$schema" not in declared["parametersJsonSchema"]
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": tool["function"]["parameters"]}}
    assert "responseJsonSchema" in sent(hub("x", response_format=form))["generationConfig"]


# --- answers of Gemini backends


def test_a_whole_turn_with_tools_against_the_double(google: GeminiDouble) -> None:
    req = hub("please call tool", tools=[WEATHER])
    told = call(google, req)
    choice = told["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == [
        {
            "id": "fc0",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city":"Paris"}'},
            **signed(SIGNATURE),
        }
    ]
    req["messages"] += [choice["message"], {"role": "tool", "tool_call_id": "fc0", "content": "rain"}]
    assert call(google, req)["choices"][0]["message"]["content"] == 'the tool said {"output": "rain"}'
    del choice["message"]["tool_calls"][0]["extra_content"]  # as most clients do
    assert call(google, req)["choices"][0]["message"]["content"] == 'the tool said {"output": "rain"}'
    choice["message"]["tool_calls"][0] |= signed("d3Jvbmc=")
    with pytest.raises(BackendError, match="thought_signature"):
        call(google, req)


def test_thoughts_signatures_and_usage_of_an_answer(google: GeminiDouble) -> None:
    told = call(google, hub("think and say hello", reasoning_effort="low"))
    message = told["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Let me think.", "Hello from gemini-3.5-flash!")
    assert signature_of(message) == SIGNATURE
    assert told["usage"]["completion_tokens"] == 8
    assert told["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert told["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert told["usage"]["total_tokens"] == 15
    assert told["model"] == "gemini-3.5-flash"
    assert told["id"] == "chatcmpl-" + "i" * 28


@pytest.mark.parametrize("query", ["?alt=sse", ""])
@pytest.mark.parametrize("said", ["say hello in two parts", "call two tools", "think", "long", "block", "say"])
def test_a_stream_folds_to_the_answer(google: GeminiDouble, said: str, query: str) -> None:
    second = {"type": "function", "function": {"name": "other"}}
    req = hub(said, tools=[WEATHER, second], n=2, thinking={"type": "adaptive"})
    assert fold(stream(google, req, query)) == call(google, req)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("NEW_ONE", "stop"),
    ],
)
def test_finish_reasons(reason: str, finish: str) -> None:
    told = chatAnsGeminitoOpenAI({"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": reason}]}, CFG)
    assert told["choices"][0]["finish_reason"] == finish


def test_a_failed_model_is_an_error_and_a_blocked_prompt_a_filter(google: GeminiDouble) -> None:
    with pytest.raises(BackendError) as failed:
        call(google, hub("make a malformed call"))
    assert failed.value.code == "MALFORMED_FUNCTION_CALL"
    blocked = call(google, hub("block this"))["choices"]
    assert [(choice["finish_reason"], choice["message"]["content"]) for choice in blocked] == [("content_filter", "")]
    for body in ({}, {"candidates": []}, [], None, "x", {"candidates": 3}):
        with pytest.raises(BackendError):
            chatAnsGeminitoOpenAI(body, CFG)


def test_stop_in_every_event_finishes_once() -> None:
    events = [{"candidates": [{"content": {"parts": [{"text": word}]}, "finishReason": "STOP"}]} for word in ("a", "b")]
    chunks = list(chatStreamGeminitoOpenAI(events, CFG))
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]


def test_broken_streams(google: GeminiDouble) -> None:
    cut = list(stream(google, hub("say hello and cut stream in two parts")))
    assert all(choice["finish_reason"] is None for chunk in cut for choice in chunk["choices"])
    with pytest.raises(BackendError) as broken:
        list(stream(google, hub("error stream")))
    assert (broken.value.status, broken.value.message) == (503, "The model is overloaded.")


def test_logprobs_both_ways() -> None:
    item = {
        "token": "é",
        "logprob": -0.5,
        "bytes": [195, 169],
        "top_logprobs": [{"token": "e", "logprob": -1.5, "bytes": [101]}],
    }
    whole = answer({"content": "é"}, logprobs={"content": [item]})
    told = chatAnsOpenAItoGemini(whole, CFG)
    assert response(told).candidates[0].logprobs_result.chosen_candidates[0].log_probability == -0.5  # type: ignore[index,union-attr]
    assert chatAnsGeminitoOpenAI(told, CFG)["choices"][0]["logprobs"] == {"content": [item]}
    assert fold(chatStreamGeminitoOpenAI(chatStreamOpenAItoGemini(unfold(whole), CFG), CFG))["choices"][0]["logprobs"] == {
        "content": [item]
    }


# --- answers to Gemini clients


def test_an_answer_is_one_that_googles_types_know() -> None:
    spent = {
        "prompt_tokens": 9,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    message = {"content": "hi", "reasoning_content": "hm", "tool_calls": calls(weather='{"city":"Paris"}')}
    told = response(chatAnsOpenAItoGemini({**answer(message, "tool_calls"), "usage": spent}, CFG))
    assert told.candidates
    assert told.usage_metadata
    parts = told.candidates[0].content.parts  # type: ignore[union-attr]
    assert [(part.text, part.thought) for part in parts or ()] == [("hm", True), ("hi", None), (None, None)]
    assert told.function_calls
    assert told.function_calls[0].args == {"city": "Paris"}
    assert told.candidates[0].finish_reason == types.FinishReason.STOP
    counts = told.usage_metadata
    assert (counts.prompt_token_count, counts.candidates_token_count, counts.thoughts_token_count) == (9, 2, 5)
    assert (counts.cached_content_token_count, counts.total_token_count, told.model_version) == (4, 16, "gemini-3.5-flash")


def test_thoughts_are_shown_to_who_asked() -> None:
    whole = answer({"content": "hi", "reasoning_content": "hm"})
    for asks in (False, True):
        cfg = {**CFG, "request": asked("x", generationConfig={"thinkingConfig": {"includeThoughts": asks}})}
        shown = [
            part
            for event in chatStreamOpenAItoGemini(unfold(whole), cfg)
            for part in event["candidates"][0]["content"]["parts"]
        ]
        assert any(part.get("thought") for part in shown) is asks
        assert (
            any(part.get("thought") for part in chatAnsOpenAItoGemini(whole, cfg)["candidates"][0]["content"]["parts"]) is asks
        )


def test_tool_arguments_that_are_no_object_are_an_error() -> None:
    whole = answer({"content": None, "tool_calls": calls(f="{oops")}, "tool_calls")
    with pytest.raises(BackendError):
        chatAnsOpenAItoGemini(whole, CFG)
    with pytest.raises(BackendError):
        list(chatStreamOpenAItoGemini(unfold(whole), CFG))


def test_text_flows_at_once_and_the_last_event_has_the_rest() -> None:
    seen: list[str] = []

    def backend() -> Iterator[Any]:
        for chunk in unfold(
            {
                **answer({"content": "hi", "tool_calls": calls(f="{}")}, "tool_calls"),
                "usage": {"prompt_tokens": 1, "completion_tokens": 2},
            }
        ):
            seen.append("chunk")
            yield chunk

    events = chatStreamOpenAItoGemini(backend(), CFG)
    assert next(events)["candidates"][0]["content"]["parts"] == [{"text": "hi"}]
    assert len(seen) == 2
    (last,) = events
    assert last["candidates"][0]["content"]["parts"] == [{"functionCall": {"id": "call_f", "name": "f", "args": {}}}]
    assert (last["candidates"][0]["finishReason"], last["usageMetadata"]["totalTokenCount"]) == ("STOP", 3)


def test_every_event_has_a_part_for_the_sdks_that_insist() -> None:
    events = list(chatStreamOpenAItoGemini(unfold(answer({"content": "hi"})), CFG))
    assert [event["candidates"][0]["content"]["parts"] for event in events] == [[{"text": "hi"}], [{"text": ""}]]


@settings(deadline=None, max_examples=60)
@given(st.text())
def test_any_signature_survives_a_gemini_client(signature: str) -> None:
    kept = types.Part.model_validate_json(json.dumps({"text": "", "thoughtSignature": seal(signature)}))
    assert kept.thought_signature is not None
    again = json.loads(kept.model_dump_json(by_alias=True))["thoughtSignature"]  # in the URL-safe alphabet
    assert unseal(again) == signature
    assert seal(SIGNATURE) == SIGNATURE


def test_redacted_thinking_of_another_api_survives_a_gemini_client() -> None:
    blocks = [
        {"type": "redacted_thinking", "data": "Claude's"},
        {"type": "thinking", "thinking": "", "signature": "not base64!"},
    ]
    told = chatAnsOpenAItoGemini(answer({"content": "hi", "thinking_blocks": blocks}), CFG)
    assert read({"contents": [told["candidates"][0]["content"]]})["messages"][0]["thinking_blocks"] == blocks
    flowed = [
        event["candidates"][0]["content"]["parts"]
        for event in chatStreamOpenAItoGemini(unfold(answer({"content": "hi", "thinking_blocks": blocks})), CFG)
    ]
    parts = [part for event in flowed for part in event]
    assert read({"contents": [{"role": "model", "parts": parts}]})["messages"][0]["thinking_blocks"] == blocks


# --- counting, embeddings, models


def test_tokens_are_counted_with_system_and_tools(google: GeminiDouble) -> None:
    req = hub({"role": "system", "content": "S"}, "x", tools=[WEATHER])
    reply = post(google, "countTokens", countReqOpenAItoGemini(req, CFG))
    assert countAnsGeminitoOpenAI(reply.json())["input_tokens"] > 10
    inner = {"generateContentRequest": {"model": "models/m", **asked("x", systemInstruction={"parts": [{"text": "S"}]})}}
    assert len(countReqGeminitoOpenAI(inner, {})["messages"]) == 2
    assert countReqGeminitoOpenAI(asked("x"), CFG)["messages"] == [{"role": "user", "content": "x"}]
    with pytest.raises(BackendError):
        countAnsGeminitoOpenAI({})


def test_a_model_inside_a_body_has_the_backends_name() -> None:
    cfg = {**CFG, "model": "gemini-2.5-flash"}
    assert countReqOpenAItoGemini(hub("x"), cfg)["generateContentRequest"]["model"] == "models/gemini-2.5-flash"
    assert embedReqOpenAItoGemini({"model": "alias", "input": "x"}, cfg)["requests"][0]["model"] == "models/gemini-2.5-flash"
    thinking = chatReqOpenAItoGemini(hub("x", model="alias", reasoning_effort="low"), cfg)["generationConfig"]["thinkingConfig"]
    assert thinking == {"includeThoughts": True, "thinkingBudget": 1024}


def test_embeddings_of_a_gemini_backend(google: GeminiDouble) -> None:
    req = {"model": "gemini-embedding-001", "input": ["12345678", "x"], "dimensions": 3, "encoding_format": "base64"}
    reply = post(google, "batchEmbedContents", embedReqOpenAItoGemini(req), "gemini-embedding-001").json()
    told = embedAnsGeminitoOpenAI(reply, {"request": {**req, "encoding_format": "float"}})
    assert [item["embedding"] for item in told["data"]] == [[1.0, 0.25, 0.25], [0.125, 0.25, 0.25]]
    assert isinstance(embedAnsGeminitoOpenAI(reply, {"request": req})["data"][0]["embedding"], str)
    with pytest.raises(BadRequest):
        embedReqOpenAItoGemini({"model": "m", "input": [[1, 2]]})


def test_the_shape_of_the_request_tells_single_from_batch_embeddings() -> None:
    content = {"parts": [{"text": "a"}, {"text": "b"}]}
    single, batch = {"content": content, "outputDimensionality": 2}, {"requests": [{"model": "models/m", "content": content}]}
    assert embedReqGeminitoOpenAI(single, CFG) == {
        "model": "gemini-3.5-flash",
        "input": "ab",
        "encoding_format": "float",
        "dimensions": 2,
    }
    assert embedReqGeminitoOpenAI(batch, CFG)["input"] == ["ab"]
    told = {"data": [{"index": 0, "embedding": base64.b64encode(b"\x00\x00\x80?").decode()}]}
    assert embedAnsOpenAItoGemini(told, {"request": single}) == {"embedding": {"values": [1.0]}}
    assert embedAnsOpenAItoGemini(told, {"request": batch}) == {"embeddings": [{"values": [1.0]}]}
    for body in ({"requests": []}, {}, {"content": {"parts": []}}, {"requests": [single, batch["requests"][0]]}):
        with pytest.raises(BadRequest):
            embedReqGeminitoOpenAI(body, CFG)


def test_models(google: GeminiDouble) -> None:
    reply = requests.get(f"{google.url}/v1beta/models?pageSize=1000", headers={"x-goog-api-key": KEY}, timeout=10).json()
    listed = modelsAnsGeminitoOpenAI(reply, CFG)
    assert listed["data"][0] == {"id": "gemini-2.5-flash", "object": "model", "created": 1700000000, "owned_by": "google"}
    assert [model["name"] for model in modelsAnsOpenAItoGemini(listed)["models"]] == [
        model["name"] for model in reply["models"]
    ]
    assert modelAnsOpenAItoGemini(listed, CFG)["name"] == "models/gemini-3.5-flash"
    with pytest.raises(BadRequest) as missing:
        modelAnsOpenAItoGemini(listed, {"params": {"model": "nope"}})
    assert missing.value.status == 404


# --- errors


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
def test_errors_keep_their_facts(google: GeminiDouble, status: int) -> None:
    with pytest.raises(BackendError) as failed:
        call(google, hub(f"fail {status}"))
    assert failed.value.status == status
    assert failed.value.message
    assert failed.value.headers == ((("retry-after", "18"),) if status == 429 else ())


def test_an_error_has_googles_shape_and_reads_back() -> None:
    error = Refused("slow down", status=429, code="quota", param="contents", headers=[("Retry-After", "7")])
    body = gemini.error_body(error, "call-1")
    assert body["error"].items() >= {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED"}.items()
    again = gemini.parse_error(429, [body])
    assert (again.message, again.code, again.param, again.headers) == (
        "slow down",
        "quota",
        "contents",
        (("retry-after", "7"),),
    )
    assert gemini.error_body(ProxyError("x", status=529), "")["error"] == {"code": 503, "message": "x", "status": "UNAVAILABLE"}
    for odd in ("", "<html>", None, [], {"error": "x"}, {"error": {"details": [1], "message": 3}}, {"error": {"details": "x"}}):
        assert gemini.parse_error(502, odd).message


def test_an_api_key_in_the_wrong_place_is_told_by_the_double(google: GeminiDouble) -> None:
    body = requests.post(f"{google.url}/v1beta/models/gemini-3.5-flash:generateContent", json={}, timeout=10)
    assert body.status_code == 403
    with pytest.raises(Refusal):
        check_shape("generateContent", {"contents": [], "max_tokens": 1})


# --- laws

words = st.text(min_size=1, max_size=8)
json_values = st.dictionaries(words, st.none() | st.booleans() | st.integers(-5, 5) | words, max_size=3)
signatures = st.none() | st.binary(min_size=1, max_size=9).map(lambda data: base64.b64encode(data).decode())


@st.composite
def hub_messages(draw: st.DrawFn) -> dict[str, Any]:
    """An assistant's message in its canonical form."""
    content, reasoning = draw(st.just("") | words), draw(st.none() | words)
    names = draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=3))
    listed = []
    for n, name in enumerate(names):
        signature = draw(signatures)
        written = json.dumps(draw(json_values), ensure_ascii=False, separators=(",", ":"))
        item = {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": written}}
        listed.append({**item, **signed(signature or "")})
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if listed else "")}
    signature, of_thoughts = draw(signatures), draw(signatures)
    extra = {"reasoning_content": reasoning, "tool_calls": listed or None, **signed(signature or "")}
    if reasoning and of_thoughts:
        extra["thinking_blocks"] = [{"type": "thinking", "thinking": reasoning, "signature": of_thoughts}]
    return message | {name: value for name, value in extra.items() if value}


@settings(deadline=None, max_examples=60)
@given(hub_messages(), st.sampled_from(["stop", "length", "content_filter"]))
def test_hub_to_gemini_and_back_keeps_an_answer(message: dict[str, Any], finish: str) -> None:
    finish = "tool_calls" if message.get("tool_calls") and finish == "stop" else finish
    whole = answer(message, finish)
    before = copy.deepcopy(whole)
    there = chatAnsOpenAItoGemini(whole, CFG)
    events = list(gemini.grammar(chatStreamOpenAItoGemini(unfold(whole), CFG)))
    assert whole == before
    for event in (there, *events):
        response(event)
    back = [chatAnsGeminitoOpenAI(there, CFG), fold(chatStreamGeminitoOpenAI(events, CFG))]
    assert back[0] == back[1]
    assert back[0]["choices"] == whole["choices"]


@settings(deadline=None, max_examples=60)
@given(hub_messages(), words, words)
def test_hub_to_gemini_and_back_keeps_a_conversation(message: dict[str, Any], first: str, result: str) -> None:
    results = [{"role": "tool", "tool_call_id": item["id"], "content": result} for item in message.get("tool_calls", ())]
    said = [
        {"role": "system", "content": first},
        {"role": "user", "content": first},
        message,
        *results,
        *([] if results else [{"role": "user", "content": result}]),
    ]
    silent = message.keys() == {"role", "content"} and not message["content"]
    body = sent({**hub(*said), "model": "gemini-2.5-pro"})  # which takes calls without a signature
    back = read(body)["messages"]
    if not silent:
        assert back == said
    assert chatReqOpenAItoGemini({**read(body), "model": "gemini-2.5-pro"}) == body


shapes = st.recursive(
    st.sampled_from(["string", "integer", "boolean"]).map(lambda kind: {"type": kind}),
    lambda inner: (
        st.builds(lambda item: {"type": "array", "items": item}, inner)
        | st.builds(
            lambda props: {"type": "object", "properties": props, "required": sorted(props)},
            st.dictionaries(words, inner, min_size=1, max_size=3),
        )
        | inner.map(lambda item: {**item, "type": [item["type"], "null"]} if isinstance(item["type"], str) else item)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=60)
@given(shapes)
def test_a_schema_of_the_subset_goes_there_and_back(schema: dict[str, Any]) -> None:
    there = schema_out({"type": "object", "properties": {"x": schema}}, "plain", "full")["plain"]
    types.Schema.model_validate(there, by_alias=True, by_name=False)
    assert schema_in(there)["properties"]["x"] == schema


@settings(deadline=None, max_examples=60)
@given(hub_messages(), st.lists(st.integers(0, 400), max_size=12), st.sampled_from(["sse", "array"]))
def test_bytes_split_anywhere_give_the_same_events(message: dict[str, Any], cuts: list[int], framing: str) -> None:
    events = list(chatStreamOpenAItoGemini(unfold(answer(message)), CFG))
    data = b"".join(wire.write(framing, events))
    edges = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    assert list(wire.reader(wire.CONTENT_TYPES[framing])(pieces)) == events


FIELDS = re.findall(
    r"\w+",
    """candidates content parts text functionCall args name error usageMetadata finishReason index promptFeedback thought
    blockReason logprobsResult chosenCandidates topCandidates thoughtSignature models embeddings values inlineData choices
    promptTokenCount message delta tool_calls function contents messages generationConfig thinkingConfig tools parameters
    functionDeclarations systemInstruction role toolConfig functionResponse response requests thinking_blocks signature""",
)
junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.text(max_size=3)
    | st.sampled_from(["user", "model", "assistant", "STOP"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=20,
)
WHOLE = answer(
    {"content": "x", "thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": "s"}], "tool_calls": calls(f="{}")},
    logprobs={"content": [{"token": "x", "logprob": 0, "top_logprobs": [{"token": "y", "logprob": -1}]}]},
)
FULL = {**chatAnsOpenAItoGemini({**WHOLE, "usage": {"prompt_tokens": 1}}, CFG), "promptFeedback": {"blockReason": "SAFETY"}}
BODY = {
    "contents": [
        {
            "role": "user",
            "parts": [{"text": "x"}, {"inlineData": {"mimeType": "image/png", "data": PNG}}, {"fileData": {"fileUri": "u"}}],
        },
        {"role": "model", "parts": FULL["candidates"][0]["content"]["parts"]},
        {
            "role": "user",
            "parts": [{"functionResponse": {"name": "f", "id": "call_f", "response": {"output": "r"}, "parts": []}}],
        },
    ],
    "systemInstruction": {"parts": [{"text": "s"}]},
    "generationConfig": {"stopSequences": ["e"], "responseSchema": {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}}},
    "tools": [
        {"functionDeclarations": [{"name": "f", "parameters": {"type": "OBJECT", "properties": {"a": {"type": "ARRAY"}}}}]}
    ],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
}
REQUEST = {
    **hub(*chatReqGeminitoOpenAI(BODY)["messages"], tools=[WEATHER], tool_choice="auto"),
    "thinking": {"type": "adaptive"},
}
VECTORS = {"embeddings": [{"values": [1.0]}], "usageMetadata": {"promptTokenCount": 1}}
FUZZED: list[tuple[Any, Callable[..., Any]]] = [
    (BODY, chatReqGeminitoOpenAI),
    ({"generateContentRequest": BODY}, countReqGeminitoOpenAI),
    ({"requests": [{"content": {"parts": [{"text": "x"}]}, "outputDimensionality": 2}]}, embedReqGeminitoOpenAI),
    (REQUEST, chatReqOpenAItoGemini),
    (FULL, chatAnsGeminitoOpenAI),
    (WHOLE, chatAnsOpenAItoGemini),
    ([FULL, FULL], lambda ip, cfg: list(chatStreamGeminitoOpenAI(ip if isinstance(ip, list) else [ip], cfg))),
    (list(unfold(WHOLE)), lambda ip, cfg: list(chatStreamOpenAItoGemini(ip if isinstance(ip, list) else [ip], cfg))),
    ([FULL], lambda ip, cfg: list(gemini.grammar(ip if isinstance(ip, list) else [ip], cfg))),
    (VECTORS, embedAnsGeminitoOpenAI),
    ({"data": [{"index": 0, "embedding": [1.0]}]}, embedAnsOpenAItoGemini),
    ({"models": [{"name": "models/a"}]}, modelsAnsGeminitoOpenAI),
    ({"data": [{"id": "a"}]}, modelsAnsOpenAItoGemini),
    ({"input_tokens": 3}, countAnsOpenAItoGemini),
    (
        {"error": {"message": "m", "details": [{"reason": "R", "retryDelay": "1s"}]}},
        lambda ip, cfg: gemini.parse_error(500, ip),
    ),
]


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a value."""
    inside = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [spot for key, item in inside for spot in ((value, key), *spots(item))]


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(range(len(FUZZED))))
def test_nothing_odd_ever_crashes_a_mapper(data: st.DataObject, which: int) -> None:
    ip, function = copy.deepcopy(FUZZED[which])
    for _ in range(data.draw(st.integers(1, 2))):
        container, key = data.draw(st.sampled_from(spots([ip])))
        odd = data.draw(junk)
        if container == [ip]:
            ip = odd
        else:
            container[key] = odd
    before, cfg = copy.deepcopy(ip), {"request": data.draw(st.sampled_from([None, ip]))}
    with suppress(ProxyError):
        function(ip, cfg)
    assert ip == before


# --- the grammar


def told(events: Any) -> tuple[list[Any], ProxyError | None]:
    out: list[Any] = []
    try:
        for event in gemini.grammar(events, {"chain": "mine"}):
            out.append(event)  # noqa: PERF402 (what came before an exception is kept)
    except ProxyError as error:
        return out, error
    return out, None


def fine() -> list[Any]:
    return list(chatStreamOpenAItoGemini(unfold(answer({"content": "hi", "tool_calls": calls(f="{}")}, "tool_calls")), CFG))


@pytest.mark.parametrize(
    "broken",
    [
        lambda events: [*events, events[0]],
        lambda events: events[::-1],
        lambda events: [None, *events],
        lambda events: [{}, *events],
        lambda events: [{"candidates": [{"content": {"parts": "x"}}]}],
        lambda events: [{"candidates": [{"content": {"parts": [{"text": 1}]}}]}],
        lambda events: [{"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": "{}"}}]}}]}],
        lambda events: [{"candidates": [{"index": "0"}]}],
        lambda events: [{"candidates": [{"finishReason": 1}]}],
        lambda events: [{"usageMetadata": []}],
    ],
)
def test_an_illegal_event_is_held_back_and_blamed_on_the_mapper(broken: Callable[[list[Any]], list[Any]]) -> None:
    out, error = told(broken(fine()))
    assert isinstance(error, MapperError)
    assert error.message.startswith("mine: ")
    assert out[-1]["error"]["code"] == 502


def test_an_early_end_is_the_backends_fault() -> None:
    for events in ([], fine()[:-1], [{"usageMetadata": {}}]):
        out, error = told(events)
        assert isinstance(error, BackendError)
        assert out == [*events, gemini.error_body(error, "")]


def test_an_error_of_the_input_is_told_once_and_raised_again() -> None:
    def failing() -> Iterator[Any]:
        yield fine()[0]
        raise BackendError("gone", status=504)

    out, error = told(failing())
    assert isinstance(error, BackendError)
    assert [event.get("error", {}).get("status") for event in out] == [None, "DEADLINE_EXCEEDED"]
    disguised, error = told([{"error": {"code": 429, "message": "slow"}}])
    assert error is not None
    assert (error.status, len(disguised)) == (429, 1)


def test_a_blocked_prompt_is_a_whole_stream() -> None:
    events = [{"promptFeedback": {"blockReason": "SAFETY"}}]
    assert told(events) == (events, None)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_mutated_stream_is_an_error_or_harmless(data: st.DataObject) -> None:
    events = copy.deepcopy(fine())
    at = data.draw(st.integers(0, len(events) - 1))
    event = events[at]
    kind = data.draw(st.sampled_from(["drop", "double", "swap", "retype", "unname"]))
    if kind == "drop":
        del events[at]
    elif kind == "double":
        events.insert(at, copy.deepcopy(event))
    elif kind == "swap":
        events.reverse()
    else:
        holder = data.draw(
            st.sampled_from(
                [
                    event,
                    event["candidates"][0],
                    event["candidates"][0]["content"],
                    event["candidates"][0]["content"]["parts"][0],
                ]
            )
        )
        name = data.draw(st.sampled_from(sorted(holder)))
        if kind == "unname":
            del holder[name]
        else:
            holder[name] = data.draw(junk)
    out, error = told(events)
    assert error is None or "error" in out[-1]


@pytest.mark.parametrize(
    ("signature", "goes"), [("c2lnbmVk", True), ("not base64!", False), ("sig9af15b336e6a9619928537df", False)]
)
def test_a_signature_that_cannot_be_geminis_stays_behind(signature, goes):
    block = {"type": "thinking", "thinking": "so", "signature": signature}
    turn = {"role": "assistant", "content": "well", "thinking_blocks": [block]}
    made = chatReqOpenAItoGemini({"messages": [{"role": "user", "content": "hi"}, turn]}, {})
    thought = made["contents"][1]["parts"][0]
    assert (thought["text"], "thoughtSignature" in thought) == ("so", goes)
