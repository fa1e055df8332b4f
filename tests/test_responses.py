"""proxy/dialects/responses.py: Codex and other Responses clients in front, OpenAI's Responses API behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import openai as sdk
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from proxy import wire
from proxy.dialects import load, mapper, responses, route_of
from proxy.dialects._seal import seal, unseal
from proxy.dialects.openai import (
    canonical_answer,
    chat_answer,
    chatReqOpenAItoOpenAI,
    chunk,
    fold,
    parse_error,
    tool_delta,
    unfold,
    usage,
)
from proxy.dialects.responses import (
    chatAnsOpenAItoResponses,
    chatAnsResponsestoOpenAI,
    chatReqOpenAItoResponses,
    chatReqResponsestoOpenAI,
    chatStreamOpenAItoResponses,
    chatStreamResponsestoOpenAI,
    countAnsOpenAItoResponses,
    countAnsResponsestoOpenAI,
    countReqOpenAItoResponses,
    countReqResponsestoOpenAI,
    grammar,
    modelsAnsResponsestoOpenAI,
)
from proxy.errors import BackendError, BadRequest, ClientGone, MapperError, ProxyError
from tests.doubles.openai import HELLO, OpenAIDouble, check_chat, check_response, encrypted
from tests.laws import CFG, PNG, fragments, hub_answers, hub_requests, mutations, unchanged

Json = dict[str, Any]
STREAM_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
RESPONSE: TypeAdapter[Any] = TypeAdapter(Response)
LOOK = {
    "type": "function",
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}
SEEN = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}, "strict": False},
}
HI = [{"role": "user", "content": "hi"}]


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


def asked(request: Json) -> Json:
    return {**CFG, "request": request}


def run(events: Any, cfg: Json | None = None) -> tuple[list[Any], ProxyError | None]:
    """What the grammar lets out, and what it raises then."""
    out: list[Any] = []
    try:
        for event in grammar(events, cfg or {}):
            out.append(event)  # noqa: PERF402 (what came before the exception counts)
    except ProxyError as fault:
        return out, fault
    return out, None


# --- requests: Responses → hub


def test_what_codex_sends_is_understood() -> None:
    lost: list[tuple[str, str]] = []
    body = {
        "model": "gpt-5.2",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "You are Codex."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAforeign"},
            {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin", "id": "ctc_1"},
            {"type": "function_call", "call_id": "c2", "name": "status", "namespace": "mcp__burp__", "arguments": "{}"},
            {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "fine"}]},
        ],
        "tools": [
            LOOK,
            {"type": "custom", "name": "apply_patch", "description": "Patches.",
             "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}},
            {"type": "namespace", "name": "mcp__burp__", "description": "d", "tools": [{**LOOK, "name": "status"}]},
            {"type": "web_search", "external_web_access": True},
            {"type": "local_shell"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "high", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k",
        "text": {"verbosity": "low"},
        "client_metadata": {"x": "y"},
    }  # fmt: skip
    req = unchanged(chatReqResponsestoOpenAI, body, {**CFG, "lost": lambda path, why: lost.append((path, why))})
    names = [tool["function"]["name"] for tool in req.pop("tools")]
    assert names == ["look", "apply_patch", "mcp__burp__status", "local_shell"]
    assert req["messages"] == [
        {"role": "developer", "content": [{"type": "text", "text": "You are Codex."}]},
        {"role": "user", "content": [{"type": "text", "text": "go"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "apply_patch", "arguments": '{"input":"*** Begin"}'}},
                {"id": "c2", "type": "function", "function": {"name": "mcp__burp__status", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "fine"}]},
    ]
    assert {name: req[name] for name in ("reasoning_effort", "verbosity", "prompt_cache_key", "stream", "tool_choice")} == {
        "reasoning_effort": "high",
        "verbosity": "low",
        "prompt_cache_key": "k",
        "stream": True,
        "tool_choice": "auto",
    }
    assert "client_metadata" not in req
    assert [path for path, _ in lost] == ["tools[3]", "input[2].encrypted_content"]
    check_chat(chatReqOpenAItoOpenAI({**req, "model": "gpt-4.1", "tools": [SEEN]}))


def test_instructions_come_first_and_plain_input_is_a_user_message() -> None:
    req = chatReqResponsestoOpenAI({"model": "m", "instructions": "Be kind.", "input": "hi", "max_output_tokens": 9})
    assert req == {"model": "m", "max_completion_tokens": 9, "messages": [{"role": "system", "content": "Be kind."}, *HI]}


def test_content_parts_are_carried() -> None:
    parts = [
        {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}", "detail": "high"},
        {"type": "input_file", "file_data": "JVBERi0xLjcKAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "filename": "a.pdf"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    content = chatReqResponsestoOpenAI({"input": [{"role": "user", "content": parts}]})["messages"][0]["content"]
    assert content[0] == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "high"}}
    assert content[1]["file"]["file_data"].startswith("data:application/pdf;base64,JVBER")
    assert content[2]["input_audio"]["format"] == "wav"


def test_one_turn_is_one_message() -> None:
    def said(text: str) -> Json:
        return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]}

    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "r"}
    messages = chatReqResponsestoOpenAI({"input": [*HI, said("a"), said("b"), call, said("c"), result, said("d")]})["messages"]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("user", "hi"),
        ("assistant", "a"),
        ("assistant", "bc"),
        ("tool", "r"),
        ("assistant", "d"),
    ]
    assert len(messages[2]["tool_calls"]) == 1


@pytest.mark.parametrize(
    ("format_", "wanted"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
        ),
    ],
)
def test_structured_output_goes_both_ways(format_: Json, wanted: Json | None) -> None:
    req = chatReqResponsestoOpenAI({"input": "hi", "text": {"format": format_}})
    assert req.get("response_format") == wanted
    assert chatReqOpenAItoResponses(req).get("text", {"format": {"type": "text"}}) == {"format": format_}


@pytest.mark.parametrize(
    ("choice", "hub"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "look"}, {"type": "function", "function": {"name": "look"}}),
    ],
)
def test_tool_choice_goes_both_ways(choice: Any, hub: Any) -> None:
    req = chatReqResponsestoOpenAI({"input": "hi", "tools": [LOOK], "tool_choice": choice, "parallel_tool_calls": False})
    assert (req["tool_choice"], req["parallel_tool_calls"]) == (hub, False)
    back = chatReqOpenAItoResponses(req)
    assert (back["tool_choice"], back["parallel_tool_calls"], back["tools"]) == (choice, False, [LOOK])


def test_choices_of_other_tools() -> None:
    custom = {"type": "custom", "name": "run"}
    space = {"type": "namespace", "name": "s", "description": "d", "tools": [{**LOOK, "name": "x"}]}
    tools = [LOOK, custom, space, {"type": "shell"}, {"type": "web_search"}]

    def chosen(choice: Any) -> Any:
        return chatReqResponsestoOpenAI({"input": "hi", "tools": tools, "tool_choice": choice})["tool_choice"]

    assert chosen({"type": "custom", "name": "run"})["function"]["name"] == "run"
    assert chosen({"type": "shell"})["function"]["name"] == "shell"
    assert chosen({"type": "function", "name": "x", "namespace": "s"})["function"]["name"] == "s__x"
    listed = [{"type": "custom", "name": "run"}, {"type": "web_search"}]
    req = chatReqResponsestoOpenAI(
        {"input": "hi", "tools": tools, "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": listed}}
    )
    assert ([tool["function"]["name"] for tool in req["tools"]], req["tool_choice"]) == (["run"], "required")


MESSAGE = {"type": "message", "role": "user"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "a", "conversation": "conv_1"}, "conversation"),
        ({"input": "a", "background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input[0]"),
        ({"input": [{"type": "dance"}]}, "input[0]"),
        ({"input": [{"type": ["message"]}]}, "input[0].type"),
        ({"input": [{**MESSAGE, "content": 5}]}, "input[0].content"),
        ({"input": [{**MESSAGE, "role": "robot", "content": "a"}]}, "input[0].role"),
        ({"input": [{**MESSAGE, "role": ["user"], "content": "a"}]}, "input[0].role"),
        ({"input": [{**MESSAGE, "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{**MESSAGE, "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{**MESSAGE, "content": [{"type": "input_file", "file_url": "https://x"}]}]}, "input[0].content[0]"),
        ({"input": [{**MESSAGE, "content": [{"type": "smell"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": {}}]}, "input[0].arguments"),
        ({"input": [{"type": "custom_tool_call", "call_id": "c", "name": "f"}]}, "input[0].input"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": 5}]}, "input[0].output"),
        ({"input": "a", "tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"input": "a", "tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "a", "tools": [LOOK], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"input": "a", "tools": [LOOK], "tool_choice": 5}, "tool_choice"),
        ({"input": "a", "tools": [5]}, "tools[0]"),
        ({"input": "a", "tools": [{"type": "function"}]}, "tools[0].function"),
        ({"input": "a", "tools": [{"type": 5}]}, "tools[0].type"),
        ({"input": "a", "temperature": "hot"}, "temperature"),
        ({"input": "a", "instructions": ["x"]}, "instructions"),
        ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "a", "text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ("a", None),
    ],
)
def test_what_is_wrong_or_impossible_is_named(body: Any, param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        chatReqResponsestoOpenAI(body)
    assert (caught.value.param, caught.value.status) == (param, 400)


def test_traces_of_hosted_tools_are_left_out_and_reported() -> None:
    lost: list[str] = []
    items = [*HI, {"type": "web_search_call", "id": "ws_1", "status": "completed"}, {"role": "assistant", "content": "found"}]
    req = chatReqResponsestoOpenAI({"input": items}, {"lost": lambda path, why: lost.append(path)})
    assert [message["role"] for message in req["messages"]] == ["user", "assistant"]
    assert lost == ["input[1]"]


def test_tools_inside_the_input_are_tools() -> None:
    items = [*HI, {"type": "additional_tools", "role": "developer", "tools": [LOOK]}]
    assert chatReqResponsestoOpenAI({"input": items})["tools"] == [SEEN]


# --- requests: hub → Responses


@given(hub_requests())
@settings(max_examples=50)
def test_a_request_goes_to_responses_and_back(request_: Json) -> None:
    body = unchanged(chatReqOpenAItoResponses, request_)
    check_response(body)
    back = unchanged(chatReqResponsestoOpenAI, body)
    assert {**back, "messages": []} == {**request_, "messages": []}
    assert len(back["messages"]) == len(request_["messages"])
    for new, old in zip(back["messages"], request_["messages"], strict=True):
        assert new["role"] == old["role"]
        assert new["content"] == old["content"]
        assert new.get("tool_calls") == old.get("tool_calls")
        assert new.get("tool_call_id") == old.get("tool_call_id")


def test_what_responses_has_no_field_for_is_left_out() -> None:
    body = chatReqOpenAItoResponses(
        {
            "model": "gpt-4.1",
            "messages": HI,
            "stop": "x",
            "seed": 1,
            "n": 1,
            "presence_penalty": 1,
            "max_tokens": 3,
            "stream": True,
        }
    )
    assert body == {
        "model": "gpt-4.1",
        "stream": True,
        "input": [{"type": "message", "role": "user", "content": "hi"}],
        "max_output_tokens": 16,
        "store": False,
    }
    check_response(body)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "messages[0].content[0]"),
        ({"messages": 5}, "messages"),
    ],
)
def test_what_responses_cannot_do_is_refused(fields: Json, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chatReqOpenAItoResponses({"model": "m", "messages": HI, **fields})
    assert caught.value.param == param


def test_images_stand_in_tool_results_and_failures_are_marked() -> None:
    call = {"id": "x" * 80, "type": "function", "function": {"name": "look", "arguments": ""}}
    image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PNG}"}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "c2"}]},
        {"role": "tool", "tool_call_id": "x" * 80, "content": [image]},
        {"role": "tool", "tool_call_id": "c2", "content": "no", "is_error": True},
    ]
    body = chatReqOpenAItoResponses({"model": "gpt-4.1", "messages": messages, "tools": [SEEN]})
    check_response(body)
    items = body["input"]
    assert items[3]["output"] == [{"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PNG}"}]
    assert items[1]["call_id"] == items[3]["call_id"]
    assert items[1]["arguments"] == "{}"
    assert items[4]["output"] == "Error: no"


def test_logprobs_and_reasoning_are_asked_for() -> None:
    body = chatReqOpenAItoResponses({"messages": HI, "logprobs": True, "top_logprobs": 2, "reasoning_effort": "low"})
    assert body["include"] == ["reasoning.encrypted_content", "message.output_text.logprobs"]
    assert (body["top_logprobs"], body["reasoning"]) == (2, {"effort": "low"})


# --- answers and streams to a client


def _events(answer: Json, cfg: Json, size: int = 3) -> list[Json]:
    return list(chatStreamOpenAItoResponses(fragments(answer, size, unfold), cfg))


@given(hub_answers(), st.integers(1, 6))
@settings(max_examples=60)
def test_the_stream_is_whole_and_ends_with_the_answer(answer: Json, size: int) -> None:
    events = _events(answer, CFG, size)
    assert run(events) == (events, None)
    for event in events:
        STREAM_EVENT.validate_python(event)
    whole = unchanged(chatAnsOpenAItoResponses, answer)
    RESPONSE.validate_python(whole)
    assert events[-1]["response"] == whole
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == _by_done(events, whole)


def _by_done(events: list[Json], whole: Json) -> list[Json]:
    order = [event["output_index"] for event in events if event["type"] == "response.output_item.done"]
    assert sorted(order) == list(range(len(whole["output"])))
    return [whole["output"][index] for index in order]


@given(hub_answers())
@settings(max_examples=60)
def test_an_answer_goes_to_responses_and_back(answer: Json) -> None:
    body = unchanged(chatAnsOpenAItoResponses, answer)
    back = unchanged(chatAnsResponsestoOpenAI, body)
    for name in ("content", "refusal"):
        assert back["choices"][0]["message"].get(name) == answer["choices"][0]["message"].get(name)
    ours, theirs = (
        [(c["id"], c["function"]) for c in a["choices"][0]["message"].get("tool_calls", ())] for a in (back, answer)
    )
    assert ours == theirs
    assert back["choices"][0]["finish_reason"] == answer["choices"][0]["finish_reason"]
    assert back["usage"] == answer["usage"]


@given(hub_answers())
@settings(max_examples=60)
def test_thinking_survives_the_clients_round_trip(answer: Json) -> None:
    output = json.loads(wire.dumps(chatAnsOpenAItoResponses(answer)["output"]))
    turn = chatReqResponsestoOpenAI({"input": [*HI, *output]})["messages"][1:]
    message = answer["choices"][0]["message"]
    found = [block for part in turn for block in part.get("thinking_blocks", ())]
    assert found == message.get("thinking_blocks", [])
    signed = "".join(block.get("thinking", "") for block in found)
    rest = "".join(part.get("reasoning_content", "") for part in turn)
    assert signed + rest == message.get("reasoning_content", "")


def test_the_sequence_of_a_text_and_two_calls() -> None:
    calls = [{"id": f"c{i}", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}} for i in range(2)]
    message = {"role": "assistant", "content": "Hi", "tool_calls": calls}
    events = _events(chat_answer(CFG, message, "stop", usage(1, 2, 1)), CFG, 9)
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    body = events[-1]["response"]
    assert body["usage"]["input_tokens_details"] == {"cached_tokens": 1, "cache_write_tokens": 0}
    assert [item["type"] for item in body["output"]] == ["message", "function_call", "function_call"]


def test_fragments_that_interleave_reach_their_call() -> None:
    events = [
        chunk(CFG, tool_delta(0, "a", "f")),
        chunk(CFG, tool_delta(1, "b", "g")),
        chunk(CFG, tool_delta(0, arguments="{}")),
        chunk(CFG, tool_delta(1, arguments="[1]")),
        chunk(CFG, {}, "tool_calls"),
    ]
    out, fault = run(chatStreamOpenAItoResponses(events, CFG))
    assert fault is None
    assert [(item["call_id"], item["arguments"]) for item in out[-1]["response"]["output"]] == [("a", "{}"), ("b", "[1]")]


def test_a_cut_answer_is_incomplete() -> None:
    for finish, reason in (("length", "max_output_tokens"), ("content_filter", "content_filter")):
        body = chatAnsOpenAItoResponses(chat_answer(CFG, {"role": "assistant", "content": "a"}, finish), CFG)
        assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": reason})
        assert body["output"][0]["status"] == "incomplete"
        assert body["usage"] is None


def test_a_response_repeats_its_request() -> None:
    request = {
        "model": "alias",
        "input": "hi",
        "instructions": "x",
        "tools": [LOOK],
        "temperature": None,
        "metadata": {"a": "b"},
    }
    body = chatAnsOpenAItoResponses(
        chat_answer(CFG, {"role": "assistant", "content": "a"}, "stop", model="real"), asked(request)
    )
    assert (body["model"], body["instructions"], body["tools"], body["temperature"], body["metadata"]) == (
        *("alias", "x", [LOOK], 1.0),
        {"a": "b"},
    )
    assert body["id"] == "resp_" + CFG["id"]


SPACE = {
    "type": "namespace",
    "name": "mcp__burp__",
    "description": "d",
    "tools": [{**LOOK, "name": "status"}, {"type": "custom", "name": "do.it"}],
}
TOOLS = [LOOK, {"type": "custom", "name": "patch"}, SPACE, {"type": "local_shell"}, {"type": "shell"}, {"type": "apply_patch"}]


@pytest.mark.parametrize(
    ("arguments", "item"),
    [
        ('{"a":1}', {"type": "function_call", "name": "look", "arguments": '{"a":1}'}),
        ('{"input":"*** \\"x\\""}', {"type": "custom_tool_call", "name": "patch", "input": '*** "x"'}),
        ("{}", {"type": "function_call", "name": "status", "namespace": "mcp__burp__", "arguments": "{}"}),
        ('{"input":"x"}', {"type": "custom_tool_call", "name": "do.it", "namespace": "mcp__burp__", "input": "x"}),
        ('{"command":["ls"]}', {"type": "local_shell_call", "action": {"type": "exec", "env": {}, "command": ["ls"]}}),
        ('{"commands":["ls"]}', {"type": "shell_call", "action": {"commands": ["ls"]}}),
        ('{"type":"delete_file","path":"a"}', {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "a"}}),
    ],
)
def test_every_kind_of_tool_is_called_as_its_client_knows_it(arguments: str, item: Json) -> None:
    request = {"model": "m", "input": "hi", "tools": TOOLS}
    names = [tool["function"]["name"] for tool in chatReqResponsestoOpenAI(request)["tools"]]
    kinds = [
        ("function_call", "look"),
        ("custom_tool_call", "patch"),
        ("function_call", "status"),
        ("custom_tool_call", "do.it"),
    ]
    kinds += [("local_shell_call", None), ("shell_call", None), ("apply_patch_call", None)]  # type: ignore[list-item]
    name = names[kinds.index((item["type"], item.get("name")))]
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    answer = chat_answer(CFG, {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls")
    events = _events(answer, asked(request), 4)
    assert run(events) == (events, None)
    for event in events:
        STREAM_EVENT.validate_python(event)
    made = events[-1]["response"]["output"][0]
    assert made["call_id"] == "c1"
    assert {name: made[name] for name in item} == item
    assert made == chatAnsOpenAItoResponses(answer, asked(request))["output"][0]
    output = {"type": f"{item['type']}_output", "call_id": "c1", "id": "c1", "output": "ok"}
    history = chatReqResponsestoOpenAI({**request, "input": [*HI, made, output]})["messages"]
    again = history[1]["tool_calls"][0]
    assert (again["id"], again["function"]["name"]) == ("c1", name)
    assert json.loads(again["function"]["arguments"]).items() >= json.loads(arguments).items()
    assert history[2]["tool_call_id"] == "c1"


def test_a_bare_name_finds_its_namespace_where_only_one_has_it() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "status", "arguments": "{}"}}
    answer = chat_answer(CFG, {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls")
    one = chatAnsOpenAItoResponses(answer, asked({"tools": [SPACE]}))["output"][0]
    assert (one["name"], one["namespace"]) == ("status", "mcp__burp__")
    two = chatAnsOpenAItoResponses(answer, asked({"tools": [SPACE, {**SPACE, "name": "other"}]}))["output"][0]
    assert "namespace" not in two


def test_a_custom_tools_broken_arguments_are_an_error_and_cut_ones_no_call() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "patch", "arguments": '{"input":"a'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    with pytest.raises(BackendError):
        chatAnsOpenAItoResponses(chat_answer(CFG, message, "tool_calls"), asked({"tools": TOOLS}))
    cut = chatAnsOpenAItoResponses(chat_answer(CFG, message, "length"), asked({"tools": TOOLS}))
    assert (cut["output"], cut["status"]) == ([], "incomplete")


# --- a Responses backend


@pytest.mark.parametrize(
    "said", ["say hello", "call tool", "call two tools", "think first", "run long", "refuse this", "filter this", "log tokens"]
)
def test_the_answer_and_the_folded_stream_are_one(double: OpenAIDouble, said: str) -> None:
    hub = {"model": "gpt-5.2", "messages": [{"role": "user", "content": said}], "tools": [SEEN], "reasoning_effort": "low"}
    hub |= {"logprobs": True} if said == "log tokens" else {}
    answer = unchanged(chatAnsResponsestoOpenAI, ask(double, "/v1/responses", chatReqOpenAItoResponses(hub)), asked(hub))
    events = ask(double, "/v1/responses", chatReqOpenAItoResponses({**hub, "stream": True}))
    assert run(events) == (events, None)
    assert fold(unchanged(chatStreamResponsestoOpenAI, events, asked(hub))) == answer
    assert canonical_answer(answer) == answer
    message = answer["choices"][0]["message"]
    assert answer["usage"] == usage(17, 9, 5, 0, 2)
    if said == "say hello":
        assert message["content"] == HELLO
    if said == "call tool":
        assert (message["tool_calls"][0]["function"]["name"], answer["choices"][0]["finish_reason"]) == ("look", "tool_calls")
    if said == "run long":
        assert answer["choices"][0]["finish_reason"] == "length"
    if said == "log tokens":
        assert [item["token"] for item in answer["choices"][0]["logprobs"]["content"]] == ["Hi", " you"]


@pytest.mark.parametrize(
    ("told", "asked", "finish"),
    [
        ({}, {"max_completion_tokens": 20}, "length"),
        ({}, {"max_tokens": 20}, "length"),
        ({}, {"max_tokens": 21}, "stop"),
        ({}, {}, "stop"),
        ({"incomplete_details": None}, {"max_tokens": 20}, "stop"),  # it could have said so
        ({"usage": {"output_tokens": 16}}, {"max_tokens": 3}, "length"),  # no less than 16 is asked for
        ({"usage": {"output_tokens": 15}}, {"max_tokens": 3}, "stop"),
        ({"usage": None}, {"max_tokens": 20}, "stop"),
    ],
)
def test_a_server_that_cannot_say_incomplete_is_seen_through(told: Json, asked: Json, finish: str) -> None:
    said = {"type": "message", "content": [{"type": "output_text", "text": "and so"}]}
    response = {"status": "completed", "output": [said], "usage": {"output_tokens": 20}, **told}
    cfg = {**CFG, "request": {"messages": HI, **asked}}
    assert chatAnsResponsestoOpenAI(response, cfg)["choices"][0]["finish_reason"] == finish
    events = [{"type": "response.created"}, {"type": "response.completed", "response": response}]
    assert fold(chatStreamResponsestoOpenAI(events, cfg))["choices"][0]["finish_reason"] == finish


def test_encrypted_reasoning_goes_back_to_its_backend(double: OpenAIDouble) -> None:
    hub = {"model": "gpt-5.2", "messages": [{"role": "user", "content": "think first"}], "reasoning_effort": "low"}
    message = chatAnsResponsestoOpenAI(ask(double, "/v1/responses", chatReqOpenAItoResponses(hub)))["choices"][0]["message"]
    assert message["thinking_blocks"][0]["thinking"] == message["reasoning_content"] == "First this."
    again = chatReqOpenAItoResponses({**hub, "messages": [*hub["messages"], message, *HI]})
    check_response(again)
    reasoning = next(item for item in again["input"] if item["type"] == "reasoning")
    assert (reasoning["id"], reasoning["encrypted_content"]) == ("rs_double", encrypted("rs_double"))
    foreign = {"type": "thinking", "thinking": "t", "signature": "anthropics"}
    messages = [
        *HI,
        {"role": "assistant", "content": "a", "thinking_blocks": [foreign, {"type": "redacted_thinking", "data": "d"}]},
    ]
    assert not any(item["type"] == "reasoning" for item in chatReqOpenAItoResponses({"messages": messages})["input"])


@given(st.dictionaries(st.text(max_size=4), st.text(), max_size=2))
def test_what_is_sealed_is_unsealed(value: Json) -> None:
    assert unseal(seal(value)) == value


@pytest.mark.parametrize("foreign", ["", "gAAAA", None, 5, "mooltiproxy-1.", "mooltiproxy-1.!!", "mooltiproxy-1.WzFd"])
def test_what_others_encrypted_stays_closed(foreign: Any) -> None:
    assert unseal(foreign) is None


@pytest.mark.parametrize(
    ("said", "kind"), [("error stream", BackendError), ("cut stream", requests.exceptions.ChunkedEncodingError)]
)
def test_a_broken_backend_is_no_finish(double: OpenAIDouble, said: str, kind: type[Exception]) -> None:
    body = chatReqOpenAItoResponses({"model": "gpt-5.2", "messages": [{"role": "user", "content": said}], "stream": True})
    with pytest.raises(kind):
        list(chatStreamResponsestoOpenAI(ask(double, "/v1/responses", body)))


@pytest.mark.parametrize(
    ("event", "status", "message"),
    [
        ({"type": "error", "code": "rate_limit_exceeded", "message": "m", "param": None, "sequence_number": 1}, 429, "m"),
        ({"type": "error", "error": {"message": "m", "type": "server_error"}}, 500, "m"),
        (
            {"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error", "message": "m"}}},
            500,
            "m",
        ),
        ({"type": "response.failed", "response": None}, 502, "the backend's response is failed"),
        ({"type": "response.completed", "response": None}, 502, "the backend's answer is not a response object"),
    ],
)
def test_an_error_event_is_raised_with_its_facts(event: Json, status: int, message: str) -> None:
    with pytest.raises(BackendError) as caught:
        list(chatStreamResponsestoOpenAI([event]))
    assert (caught.value.status, caught.value.message) == (status, message)


def test_a_server_that_sends_no_deltas_or_numbers_is_read() -> None:
    items = [
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    ]
    events = [{"type": "response.output_item.done", "item": item} for item in items]
    body = {"status": "completed", "output": items, "usage": None, "model": "m"}
    out = fold(chatStreamResponsestoOpenAI([*events, {"type": "response.completed", "response": body}], CFG))
    answer = chatAnsResponsestoOpenAI(body, CFG)
    assert out["choices"] == answer["choices"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


def test_a_stream_that_ends_early_gets_no_finish() -> None:
    events = _events(chat_answer(CFG, {"role": "assistant", "content": "abc"}, "stop", usage(1, 1)), CFG, 1)
    for upto in range(len(events)):
        assert all(
            choice["finish_reason"] is None
            for event in chatStreamResponsestoOpenAI(events[:upto])
            for choice in event["choices"]
        )
    chunks = fragments(chat_answer(CFG, {"role": "assistant", "content": "abc"}, "stop"), 1, unfold)[:-1]
    out = list(chatStreamOpenAItoResponses(chunks, CFG))
    assert not any(event["type"] in ("response.completed", "response.incomplete", "response.failed") for event in out)


KEYS = ("type", "item", "response", "output", "content", "id", "delta", "output_index", "usage", "status", "error", "summary")
STEPS = ("output_text.delta", "output_item.done", "output_item.added", "completed", "created", "reasoning_text.delta")
KINDS = (*(f"response.{step}" for step in STEPS), "function_call", "message", "reasoning", "custom_tool_call")
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(KINDS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=5) | JUNK, max_size=4))
def test_no_backends_events_crash_the_mapper(events: list[Any]) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: list(chatStreamResponsestoOpenAI(events)),
        lambda: [chatAnsResponsestoOpenAI(event) for event in events],
        lambda: chatAnsResponsestoOpenAI({"output": events}),
        lambda: list(grammar(events)),
    ]
    for call in calls:
        with suppress(ProxyError):
            call()


ITEM = st.dictionaries(st.sampled_from((*KEYS, "role", "call_id", "name", "tools")), JUNK, max_size=5) | JUNK
OTHERS = ("tools", "tool_choice", "text", "reasoning", "include")


@given(st.fixed_dictionaries({"input": st.lists(ITEM, max_size=3)}, optional=dict.fromkeys(OTHERS, JUNK)))
def test_no_clients_request_crashes_the_mapper(body: Json) -> None:
    with suppress(BadRequest):
        assert chatReqResponsestoOpenAI(body)["messages"]


@given(hub_answers(), st.integers(1, 9))
@settings(max_examples=20)
def test_any_split_of_the_bytes_gives_the_same_events(answer: Json, size: int) -> None:
    events = list(chatStreamOpenAItoResponses(unfold(answer), CFG))
    body = b"".join(wire.write(load("responses").framing(""), events, load("responses").done))
    assert list(wire.read_sse(body[i : i + size] for i in range(0, len(body), size))) == events


# --- the grammar


def _good() -> list[Json]:
    message = {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "t",
        "thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": "s"}],
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            {"id": "c2", "type": "function", "function": {"name": "patch", "arguments": '{"input":"x"}'}},
        ],
    }
    cfg = asked({"tools": [LOOK, {"type": "custom", "name": "patch"}], "model": "m"})
    return list(chatStreamOpenAItoResponses(unfold(chat_answer(cfg, message, "stop", usage(1, 1))), cfg))


def test_every_wrong_stream_fails_cleanly_or_is_harmless() -> None:
    good, errors = _good(), 0
    assert run(good) == (good, None)
    for wrong in mutations(good):
        out, fault = run(wrong, {"chain": "a > b"})
        numbers = [event["sequence_number"] for event in out]
        assert numbers == list(range(len(out)))
        if fault is None:
            continue
        errors += 1
        assert isinstance(fault, BackendError) or fault.message.startswith("a > b: ")
        if not any(event["type"] == "response.completed" for event in out):
            assert out[-1]["type"] == "response.failed"
            assert out[-1]["response"]["error"]["message"] == fault.message
            assert out[-1]["response"]["status"] == "failed"
        opened = [event["output_index"] for event in out if event["type"] == "response.output_item.added"]
        closed = [event["output_index"] for event in out if event["type"] == "response.output_item.done"]
        assert sorted(opened) == sorted(closed)
    assert errors > 200


def test_what_was_open_is_closed_as_far_as_it_came() -> None:
    events = _events(chat_answer(CFG, {"role": "assistant", "content": "abcdef"}, "stop"), CFG, 3)
    out, fault = run(events[:5])
    assert isinstance(fault, BackendError)
    assert [event["type"].removeprefix("response.") for event in out[5:]] == [
        *("output_text.done", "content_part.done", "output_item.done", "failed"),
    ]
    assert out[5]["text"] == out[6]["part"]["text"] == "abc"
    assert out[7]["item"]["status"] == "incomplete"
    assert out[8]["response"]["output"] == [out[7]["item"]]
    for event in out:
        STREAM_EVENT.validate_python(event)


def test_a_half_told_call_is_closed_with_what_came() -> None:
    message = {"role": "assistant", "content": None}
    message |= {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}abc"}}]}
    events = _events(chat_answer(CFG, message, "stop"), CFG, 2)
    out, fault = run(events[:4])
    assert isinstance(fault, BackendError)
    assert out[4]["item"] == {**events[2]["item"], "arguments": "{}", "status": "incomplete"}


def test_what_the_input_raises_is_told_and_raised_again() -> None:
    def failing() -> Iterator[Json]:
        yield from _good()[:2]
        raise BackendError("slow down", status=429)

    out, fault = run(failing())
    assert isinstance(fault, BackendError)
    assert out[-1]["response"]["error"] == {"code": "rate_limit_exceeded", "message": "slow down"}

    def gone() -> Iterator[Json]:
        raise ClientGone("gone")
        yield {}

    out, fault = run(gone())
    assert isinstance(fault, ClientGone)
    assert [event["type"] for event in out] == ["response.created", "response.failed"]


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_foreign_event_is_a_mappers_fault(at: int) -> None:
    good = _good()
    out, fault = run([*good[:at], {"choices": []}, *good[at:]])
    assert isinstance(fault, MapperError)
    assert out[:at] == good[:at]


# --- the rest


def test_a_real_client_reads_what_is_written() -> None:
    """The openai SDK accumulates our stream into our answer."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    good = _good()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for piece in wire.write("named-sse", good):
                self.wfile.write(piece)

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = sdk.OpenAI(api_key="k", base_url=f"http://127.0.0.1:{server.server_address[1]}/v1", max_retries=0)
        with client.responses.stream(model="m", input="hi") as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        server.shutdown()
    assert kinds == [event["type"] for event in good]
    assert final.output_text == "a"
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "custom_tool_call"]


def test_counting_goes_both_ways(double: OpenAIDouble) -> None:
    body = {"model": "gpt-5.2", "input": "hi", "instructions": "x"}
    hub = unchanged(countReqResponsestoOpenAI, body)
    counted = countAnsResponsestoOpenAI(ask(double, "/v1/responses/input_tokens", unchanged(countReqOpenAItoResponses, hub)))
    assert counted == {"input_tokens": 17}
    assert countAnsOpenAItoResponses(counted) == {"object": "response.input_tokens", "input_tokens": 17}
    with pytest.raises(BackendError):
        countAnsResponsestoOpenAI({"input_tokens": None})


def test_model_lists_pass() -> None:
    listed = {"object": "list", "data": []}
    assert modelsAnsResponsestoOpenAI(listed) == listed
    with pytest.raises(BackendError):
        modelsAnsResponsestoOpenAI({"data": None})


def test_routes_of_the_api() -> None:
    wanted = {
        ("POST", "/v1/responses"): "chat",
        ("POST", "/responses"): "chat",
        ("POST", "/v1/responses/input_tokens"): "count",
        ("GET", "/v1/responses/resp_1"): "stored",
        ("POST", "/v1/responses/resp_1/cancel"): "stored",
    }
    for (method, path), kind in wanted.items():
        route = route_of("responses", method, path)
        assert route is not None
        assert route.kind == kind
    assert route_of("responses", "GET", "/v1/responses") is None  # Codex's WebSocket must find nothing
    for name in (
        "chatStreamResponsestoOpenAI",
        "chatAnsResponsestoOpenAI",
        "embedReqOpenAItoResponses",
        "modelAnsOpenAItoResponses",
    ):
        assert mapper(name) is getattr(responses, name)


def test_yielded_events_do_not_change_later() -> None:
    answer = chat_answer(CFG, {"role": "assistant", "content": "abc"}, "stop", usage(1, 1))
    kept = [(event, copy.deepcopy(event)) for event in chatStreamOpenAItoResponses(fragments(answer, 1, unfold), CFG)]
    assert all(event == copied for event, copied in kept)
