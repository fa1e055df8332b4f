"""Messages ⇄ the hub: requests, answers, streams, grammar; laws over generated conversations, and a strict double."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
import requests
from anthropic._types import not_given
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from proxy import wire
from proxy.dialects import anthropic, front, load, mapper, openai
from proxy.dialects.anthropic import (
    DIALECT,
    chatAnsAnthropictoOpenAI,
    chatAnsOpenAItoAnthropic,
    chatReqAnthropictoOpenAI,
    chatReqOpenAItoAnthropic,
    chatStreamAnthropictoOpenAI,
    chatStreamOpenAItoAnthropic,
    grammar,
)
from proxy.errors import BackendError, BadRequest, MapperError, ProxyError
from tests.doubles.anthropic import CREATE, SCENARIOS, AnthropicDouble, Refusal, check, events

Json = dict[str, Any]

CFG = {"id": "x" * 28, "now": 1700000000}
HEADERS = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
EPHEMERAL = {"type": "ephemeral"}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PDF = "JVBERi0xLjQKJcOkw7zDtsOf"
TOOL = {"name": "get_weather", "description": "Weather", "input_schema": {"type": "object", "properties": {}}}
HUB_TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def ask(*content: Any, **more: Any) -> Json:
    """A Messages request with one user turn."""
    return {"model": "claude-x", "max_tokens": 64, "messages": [{"role": "user", "content": list(content) or "hi"}], **more}


def hub(*messages: Json, **more: Any) -> Json:
    return {"model": "gpt-x", "messages": list(messages) or [{"role": "user", "content": "hi"}], **more}


def said(role: str, content: Any, **more: Any) -> Json:
    return {"role": role, "content": content, **more}


def calls(*pairs: tuple[str, str]) -> Json:
    return said("assistant", None, tool_calls=[openai.tool_call(call_id, "get_weather", args) for call_id, args in pairs])


class Ledger:
    """A `lost` that remembers what it is told."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, path: str, why: str) -> None:
        assert why
        self.paths.append(path)


# --- requests: Messages → hub


def claude_code() -> Json:
    """The shape of what Claude Code sends."""
    return {
        "model": "claude-opus-4-8",
        "max_tokens": 64000,
        "stream": True,
        "system": [
            {"type": "text", "text": "billing"},
            {"type": "text", "text": "You are Claude Code.", "cache_control": EPHEMERAL},
            {"type": "text", "text": "Do good work.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        ],
        "messages": [
            said("user", [{"type": "text", "text": "Fix the bug.", "cache_control": EPHEMERAL}]),
            said("system", "Available agents: none."),
            said(
                "assistant",
                [
                    {"type": "thinking", "thinking": "", "signature": "abc"},
                    {"type": "redacted_thinking", "data": "aGk="},
                    {"type": "text", "text": "Looking."},
                    {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a.py"}},
                    {"type": "tool_use", "id": "toolu_2", "name": "Bash", "input": {}},
                ],
            ),
            said(
                "user",
                [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "print(1)"}]},
                    {
                        "type": "tool_result",
                        "tool_use_id": "toolu_2",
                        "content": "no",
                        "is_error": True,
                        "cache_control": EPHEMERAL,
                    },
                    {"type": "text", "text": "Go on."},
                ],
            ),
        ],
        "tools": [
            {
                "name": f"Tool{i}",
                "description": "x",
                "input_schema": {"type": "object", "properties": {}},
                "cache_control": EPHEMERAL,
            }
            for i in range(24)
        ],
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {
            "effort": "max",
            "format": {"type": "json_schema", "schema": {"type": "object", "additionalProperties": False}},
        },
        "metadata": {"user_id": "user_" + "a" * 150},
    }


def test_claude_codes_request_becomes_a_canonical_chat_request() -> None:
    body = claude_code()
    before = copy.deepcopy(body)
    req = chatReqAnthropictoOpenAI(body)
    assert body == before
    assert openai.canonical(req) == req
    assert req["max_completion_tokens"] == 64000
    assert req["stream_options"] == {"include_usage": True}
    assert req["reasoning_effort"] == "max"
    assert req["thinking"] == {"type": "adaptive"}
    assert req["response_format"]["json_schema"]["schema"] == {"type": "object", "additionalProperties": False}
    assert len(req["user"]) == 64
    assert [message["role"] for message in req["messages"]] == ["system", "user", "system", "assistant", "tool", "tool", "user"]
    system, _, inline, assistant, result, failed, last = req["messages"]
    assert [part["text"] for part in system["content"]] == ["billing", "You are Claude Code.", "Do good work."]
    assert system["content"][2]["cache_control"]["ttl"] == "1h"
    assert inline["content"] == "Available agents: none."
    assert assistant["content"] == "Looking."
    assert assistant["thinking_blocks"] == body["messages"][2]["content"][:2]
    assert [call["function"]["arguments"] for call in assistant["tool_calls"]] == ['{"path":"a.py"}', "{}"]
    assert result == said("tool", "print(1)", tool_call_id="toolu_1")
    assert failed["is_error"] is True
    assert failed["content"] == [{"type": "text", "text": "no", "cache_control": EPHEMERAL}]
    assert last == said("user", "Go on.")
    assert len(req["tools"]) == 24
    assert req["tools"][0]["cache_control"] == EPHEMERAL


def test_claude_codes_request_survives_the_way_through_the_hub_and_back() -> None:
    body = claude_code()
    back = chatReqOpenAItoAnthropic(chatReqAnthropictoOpenAI(body))
    for name in ("model", "max_tokens", "stream", "system", "tools", "thinking", "output_config"):
        assert back[name] == body[name]
    assert back["messages"][2] == body["messages"][2]
    assert back["messages"][1] == said("system", [{"type": "text", "text": "Available agents: none."}])
    results = back["messages"][3]["content"]
    assert results[0] == {"type": "tool_result", "tool_use_id": "toolu_1", "content": "print(1)"}
    assert results[1] == body["messages"][3]["content"][1]


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        ),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": PNG}},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        ),
        (
            {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
            {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        ),
        (
            {"type": "document", "title": "a.pdf", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}},
            {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}},
        ),
        ({"type": "document", "source": {"type": "file", "file_id": "f1"}}, {"type": "file", "file": {"file_id": "f1"}}),
        (
            {
                "type": "document",
                "title": "T",
                "context": "C",
                "source": {"type": "text", "media_type": "text/plain", "data": "D"},
            },
            {"type": "text", "text": "T\nC\nD"},
        ),
        (
            {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "D"}]}},
            {"type": "text", "text": "D"},
        ),
        (
            {"type": "search_result", "title": "T", "source": "S", "content": [{"type": "text", "text": "R"}]},
            {"type": "text", "text": "T\nS\nR"},
        ),
    ],
)
def test_images_and_documents_become_parts_in_turns_and_in_results(block: Json, part: Json) -> None:
    other = {"type": "text", "text": "look"}
    assert chatReqAnthropictoOpenAI(ask(other, block))["messages"][0]["content"] == [other, part]
    result = {"type": "tool_result", "tool_use_id": "t", "content": [other, block]}
    assert chatReqAnthropictoOpenAI(ask(result))["messages"][0]["content"] == [other, part]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "get_weather"}, {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"tool_choice": "auto", "parallel_tool_calls": False}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
    ],
)
def test_tool_choice_is_the_same_in_both_apis(choice: Json, expected: Json) -> None:
    req = chatReqAnthropictoOpenAI(ask(tools=[TOOL], tool_choice=choice))
    assert {name: req[name] for name in ("tool_choice", "parallel_tool_calls") if name in req} == expected
    assert chatReqOpenAItoAnthropic(req)["tool_choice"] == choice


def test_no_tool_choice_without_tools() -> None:
    assert "tool_choice" not in chatReqAnthropictoOpenAI(ask(tools=[], tool_choice={"type": "any"}))
    assert "tool_choice" not in chatReqOpenAItoAnthropic(hub(tools=[], tool_choice="required", parallel_tool_calls=False))


def test_what_only_anthropic_has_is_dropped_and_told() -> None:
    ledger = Ledger()
    body = ask(
        {"type": "container_upload", "file_id": "f"},
        {"type": "text", "text": "go"},
        tools=[{"type": "web_search_20250305", "name": "web_search"}, TOOL],
        thinking={"type": "between_tools"},
    )
    server = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    body["messages"].append(said("assistant", [server, {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}]))
    req = chatReqAnthropictoOpenAI(body, {"lost": ledger})
    assert [tool["function"]["name"] for tool in req["tools"]] == ["get_weather"]
    assert req["messages"] == [said("user", "go"), said("assistant", "")]
    assert sorted(ledger.paths) == [
        "messages[0].content[0]",
        "messages[1].content[0]",
        "messages[1].content[1]",
        "thinking",
        "tools[0]",
    ]


@pytest.mark.parametrize(
    ("broken", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [7]}, "messages[0]"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "u"}}]}]},
            "messages[0].content[0].source",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "i", "name": "n", "input": "x"}]}]},
            "messages[0].content[0].input",
        ),
        ({"system": 7}, "system"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop_sequences": [7]}, "stop_sequences[0]"),
        ({"tools": [7]}, "tools[0]"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "all"}}, "tool_choice.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"metadata": {"user_id": 7}}, "metadata.user_id"),
    ],
)
def test_a_clients_mistake_is_a_bad_request_that_names_the_field(broken: Json, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chatReqAnthropictoOpenAI({**ask(), **broken})
    assert caught.value.param == param


# --- requests: hub → Messages


def test_leading_system_and_developer_messages_are_the_system_prompt() -> None:
    body = chatReqOpenAItoAnthropic(hub(said("system", "A"), said("developer", "B"), said("user", "hi")))
    assert body["system"] == [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    assert chatReqOpenAItoAnthropic(hub(said("system", "A"), said("user", "hi")))["system"] == "A"


MIDDLE = hub(said("user", "a"), said("assistant", "b"), said("system", "S"), said("user", "c"), said("assistant", "d"))


@pytest.mark.parametrize(
    ("policy", "system", "roles", "third"),
    [
        ("inline", None, ["user", "assistant", "user", "system", "assistant"], ["c"]),
        ("hoist", "S", ["user", "assistant", "user", "assistant"], ["c"]),
        ("user", None, ["user", "assistant", "user", "assistant"], ["S", "c"]),
    ],
)
def test_system_messages_in_mid_conversation_follow_the_policy(
    policy: str, system: Any, roles: list[str], third: list[str]
) -> None:
    body = chatReqOpenAItoAnthropic(MIDDLE, {"system_policy": policy})
    assert body.get("system") == system
    assert [turn["role"] for turn in body["messages"]] == roles
    assert [block["text"] for block in body["messages"][2]["content"]] == third
    check(body, HEADERS, CREATE)


def test_a_system_message_that_no_user_turn_precedes_goes_as_the_users_and_is_told() -> None:
    ledger = Ledger()
    body = chatReqOpenAItoAnthropic(hub(said("user", "a"), said("assistant", "b"), said("system", "S")), {"lost": ledger})
    assert body["messages"][-1] == said("user", [{"type": "text", "text": "S"}])
    assert len(ledger.paths) == 1
    check(body, HEADERS, CREATE)


def test_results_come_first_in_one_turn_right_after_the_calls() -> None:
    body = chatReqOpenAItoAnthropic(
        hub(
            said("user", "go"),
            calls(("a|1", "{}"), ("b", '{"x":1}')),
            said("system", "S"),
            said("tool", "one", tool_call_id="a|1"),
            said("user", "and?"),
            said(
                "tool",
                [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}],
                tool_call_id="b",
                is_error=True,
            ),
            tools=[HUB_TOOL],
        )
    )
    assistant, turn, system = body["messages"][1:]
    assert [block["type"] for block in assistant["content"]] == ["tool_use", "tool_use"]
    assert [block["type"] for block in turn["content"]] == ["tool_result", "tool_result", "text"]
    assert assistant["content"][0]["id"] == turn["content"][0]["tool_use_id"]
    assert turn["content"][1]["content"][0]["source"]["media_type"] == "image/png"
    assert turn["content"][1]["is_error"] is True
    assert system["role"] == "system"
    check(body, HEADERS, CREATE)


def test_empty_texts_and_turns_are_left_out_and_equal_roles_merged() -> None:
    body = chatReqOpenAItoAnthropic(hub(said("user", "a"), said("assistant", ""), said("user", "  "), said("user", "b")))
    assert body["messages"] == [said("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])]


def test_parameters_keep_their_meaning() -> None:
    ledger = Ledger()
    req = hub(
        max_tokens=7,
        temperature=1.7,
        top_p=0.5,
        top_k=3,
        stop=["END", "\n"],
        user="u",
        reasoning_effort="minimal",
        seed=1,
        stream=True,
    )
    body = chatReqOpenAItoAnthropic(req, {"lost": ledger})
    assert body["max_tokens"] == 7
    assert body["temperature"] == 1
    assert (body["top_p"], body["top_k"], body["stream"]) == (0.5, 3, True)
    assert body["stop_sequences"] == ["END"]
    assert body["metadata"] == {"user_id": "u"}
    assert body["output_config"] == {"effort": "low"}
    assert "seed" not in body
    assert sorted(ledger.paths) == ["stop", "temperature"]
    check(body, HEADERS, CREATE)


def test_a_limit_is_always_sent_and_leaves_room_for_thinking() -> None:
    assert chatReqOpenAItoAnthropic(hub())["max_tokens"] == 32000
    thinking = {"type": "enabled", "budget_tokens": 40000}
    body = chatReqOpenAItoAnthropic(hub(thinking=thinking))
    assert body["max_tokens"] > 40000
    assert chatReqOpenAItoAnthropic(hub(reasoning_effort="none"))["thinking"] == {"type": "disabled"}


def test_structured_output_is_carried_and_plain_json_mode_is_not() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = chatReqOpenAItoAnthropic(hub(response_format=form))
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    assert chatReqAnthropictoOpenAI(body)["response_format"]["json_schema"]["schema"] == schema
    assert "output_config" not in chatReqOpenAItoAnthropic(hub(response_format={"type": "json_object"}))


@pytest.mark.parametrize(
    ("broken", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": [said("user", [{"type": "input_audio", "input_audio": {"data": "x"}}])]}, "messages[0].content[0]"),
        ({"messages": [said("user", "x"), calls(("i", "{not json"))]}, "messages[1].tool_calls[0].function.arguments"),
        ({"messages": [said("user", "x"), calls(("i", "[1]"))]}, "messages[1].tool_calls[0].function.arguments"),
    ],
)
def test_what_messages_cannot_do_is_refused_by_name(broken: Json, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chatReqOpenAItoAnthropic(
            hub(**{"messages": [said("user", "x")], **broken}) if "messages" not in broken else {**hub(), **broken}
        )
    assert caught.value.param == param


def test_files_become_documents() -> None:
    text = "data:text/plain;base64,aGk="
    parts = [{"type": "file", "file": {"file_data": url}} for url in (f"data:application/pdf;base64,{PDF}", text)]
    body = chatReqOpenAItoAnthropic(hub(said("user", [*parts, {"type": "file", "file": {"file_id": "f", "filename": "n"}}])))
    pdf, plain, stored = body["messages"][0]["content"]
    assert pdf["source"] == {"type": "base64", "media_type": "application/pdf", "data": PDF}
    assert plain["source"] == {"type": "text", "media_type": "text/plain", "data": "hi"}
    assert stored["source"] == {"type": "file", "file_id": "f"}
    check(body, HEADERS, CREATE)


def test_reasoning_without_a_signature_is_not_sent_to_claude() -> None:
    body = chatReqOpenAItoAnthropic(hub(said("user", "a"), said("assistant", "b", reasoning_content="hm"), said("user", "c")))
    assert body["messages"][1]["content"] == [{"type": "text", "text": "b"}]


# --- answers


def message(*content: Json, **more: Any) -> Json:
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": list(content)}
    return {**head, "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 2}, **more}


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("a new reason", "stop"),
        (None, "stop"),
    ],
)
def test_every_stop_reason_has_a_finish(reason: str | None, finish: str) -> None:
    answer = chatAnsAnthropictoOpenAI(message({"type": "text", "text": "x"}, stop_reason=reason), CFG)
    assert answer["choices"][0]["finish_reason"] == finish


def test_tool_calls_override_a_stop() -> None:
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    assert chatAnsAnthropictoOpenAI(message(use), CFG)["choices"][0]["finish_reason"] == "tool_calls"
    back = openai.chat_answer(CFG, calls(("t", "{}")), "stop")
    assert chatAnsOpenAItoAnthropic(back, CFG)["stop_reason"] == "tool_use"


def test_usage_adds_up_in_both_directions() -> None:
    spent = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 30,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 4},
    }
    answer = chatAnsAnthropictoOpenAI(message(usage=spent), CFG)
    assert answer["usage"]["prompt_tokens"] == 60
    assert answer["usage"]["total_tokens"] == 67
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 30, "cache_creation_tokens": 20}
    assert chatAnsOpenAItoAnthropic(answer, CFG)["usage"] == spent


def test_an_answer_without_usage_gets_an_estimate_of_its_prompt() -> None:
    answer = openai.chat_answer(CFG, openai.assistant("x"), "stop")
    usage = chatAnsOpenAItoAnthropic(answer, {**CFG, "request": ask({"type": "text", "text": "word " * 100})})["usage"]
    assert usage["input_tokens"] > 50


def test_the_asked_model_is_echoed_and_the_matched_stop_kept() -> None:
    cfg = {**CFG, "request": {"model": "my-alias"}}
    answer = chatAnsAnthropictoOpenAI(message(stop_reason="stop_sequence", stop_sequence="END"), cfg)
    assert answer["model"] == "my-alias"
    assert answer["choices"][0]["stop_sequence"] == "END"
    back = chatAnsOpenAItoAnthropic(answer, cfg)
    assert (back["model"], back["stop_reason"], back["stop_sequence"]) == ("my-alias", "stop_sequence", "END")
    assert back["id"] == f"msg_{CFG['id']}"


def test_a_refusal_of_openais_is_text_and_a_refusal() -> None:
    answer = openai.chat_answer(CFG, openai.assistant(refusal="I cannot."), "stop")
    back = chatAnsOpenAItoAnthropic(answer, CFG)
    assert back["content"] == [{"type": "text", "text": "I cannot."}]
    assert back["stop_reason"] == "refusal"


@pytest.mark.parametrize(
    "broken", [None, [], {}, {"content": "x"}, {"type": "error", "error": {"type": "api_error", "message": "m"}}]
)
def test_no_message_is_a_backend_error(broken: Any) -> None:
    with pytest.raises(BackendError):
        chatAnsAnthropictoOpenAI(broken, CFG)


@pytest.mark.parametrize("broken", [{}, {"choices": []}, {"choices": [7]}, {"error": {"message": "m"}}])
def test_no_completion_is_a_backend_error(broken: Any) -> None:
    with pytest.raises(BackendError):
        chatAnsOpenAItoAnthropic(broken, CFG)


def test_arguments_that_are_no_object_are_an_error() -> None:
    with pytest.raises(BackendError):
        chatAnsOpenAItoAnthropic(openai.chat_answer(CFG, calls(("t", '{"a":')), "tool_calls"), CFG)


# --- streams


def accumulated(stream: Any) -> Json:
    """What the anthropic SDK makes of a stream."""
    snapshot, buffers = None, {}
    for event in stream:
        typed = EVENT.validate_python(event)
        snapshot = accumulate_event(event=typed, current_snapshot=snapshot, json_bufs=buffers, output_format=not_given)
    assert snapshot is not None
    return snapshot.model_dump(exclude_unset=True)


def kinds(stream: list[Json]) -> list[str]:
    """Event types, deltas and starts with their own type."""
    return [
        (event.get("delta") or event.get("content_block") or {}).get("type") or event["type"].removeprefix("content_block_")
        for event in stream
    ]


def chunks(*deltas: Json, finish: str | None = "stop") -> list[Json]:
    listed = [openai.chunk(CFG, {"role": "assistant", "content": ""}), *(openai.chunk(CFG, delta) for delta in deltas)]
    return [*listed, openai.chunk(CFG, {}, finish), openai.usage_chunk(CFG, openai.usage(10, 5))] if finish else listed


def to_messages(*deltas: Json, finish: str | None = "stop", cfg: Json = CFG) -> list[Json]:
    return list(grammar(chatStreamOpenAItoAnthropic(chunks(*deltas, finish=finish), cfg), cfg))


def test_a_text_stream_has_the_events_that_the_api_documents() -> None:
    stream = to_messages(
        {"content": "Hel"}, {"content": "lo"}, cfg={**CFG, "request": ask({"type": "text", "text": "word " * 100})}
    )
    assert kinds(stream) == ["message_start", "text", "text_delta", "text_delta", "stop", "message_delta", "message_stop"]
    assert stream[0]["message"]["usage"]["input_tokens"] > 50
    assert stream[0]["message"]["model"] == "claude-x"
    assert stream[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert stream[-2]["usage"]["input_tokens"] == 10
    assert stream[-2]["usage"]["output_tokens"] == 5


def test_fragments_flow_as_they_come() -> None:
    source = iter(chunks({"content": "one"}, openai.tool_delta(0, "t", "f", '{"a"'), openai.tool_delta(0, arguments=":1}")))
    pulled: list[Json] = []

    def counting() -> Any:
        for item in source:
            pulled.append(item)
            yield item

    seen = {}
    for event in chatStreamOpenAItoAnthropic(counting(), CFG):
        seen.setdefault(kinds([event])[0], len(pulled))
    assert (seen["message_start"], seen["text_delta"], seen["tool_use"], seen["input_json_delta"]) == (1, 2, 3, 3)


def test_calls_one_after_the_other_flow_and_woven_ones_wait() -> None:
    parallel = to_messages(
        openai.tool_delta(0, "a", "f", '{"x":'),
        openai.tool_delta(1, "b", "g", '{"y":'),
        openai.tool_delta(0, arguments="1}"),
        openai.tool_delta(1, arguments="2}"),
        finish="tool_calls",
    )
    starts = [event["content_block"]["id"] for event in parallel if event["type"] == "content_block_start"]
    assert starts == ["a", "b"]
    assert [block["input"] for block in accumulated(parallel)["content"]] == [{"x": 1}, {"y": 2}]
    source = chunks(openai.tool_delta(0, "a", "f", "{}"), openai.tool_delta(1, "b", "g", "{"), finish="tool_calls")
    early = list(itertools.takewhile(lambda e: e["type"] != "message_delta", chatStreamOpenAItoAnthropic(source[:3], CFG)))
    assert kinds(early)[-2:] == ["tool_use", "input_json_delta"]


def test_a_tool_block_is_closed_before_new_text() -> None:
    stream = to_messages(openai.tool_delta(0, "a", "f", "{}"), {"content": "done"}, finish="tool_calls")
    assert kinds(stream)[1:6] == ["tool_use", "input_json_delta", "stop", "text", "text_delta"]


def test_thinking_keeps_its_signature_even_without_text() -> None:
    stream = to_messages(
        {"reasoning_content": "a"},
        {"reasoning_signature": "s1"},
        {"reasoning_signature": "s2"},
        {"redacted_thinking": "aGk="},
        {"reasoning": "unsigned"},
        {"content": "x"},
    )
    assert accumulated(stream)["content"] == [
        {"type": "thinking", "thinking": "a", "signature": "s1"},
        {"type": "thinking", "thinking": "", "signature": "s2"},
        {"type": "redacted_thinking", "data": "aGk="},
        {"type": "thinking", "thinking": "unsigned", "signature": ""},
        {"type": "text", "text": "x"},
    ]


def test_arguments_for_a_call_that_was_whole_are_the_backends_fault() -> None:
    with pytest.raises(BackendError):
        to_messages(openai.tool_delta(0, "a", "f", "{}"), {"content": "x"}, openai.tool_delta(0, arguments="more"))


def test_arguments_that_never_become_an_object_are_an_error_unless_the_limit_cut_them() -> None:
    half = (openai.tool_delta(0, "a", "f", '{"x":'), openai.tool_delta(1, "b", "g", "7"))
    with pytest.raises(BackendError, match="not a JSON object"):
        to_messages(*half, finish="tool_calls")
    with pytest.raises(MapperError, match="malformed"):  # the SDK would fall over the fragment itself
        to_messages(*half[1:], finish="tool_calls")
    stream = to_messages(half[0], finish="length")
    assert stream[-2]["delta"]["stop_reason"] == "max_tokens"
    assert accumulated(to_messages(openai.tool_delta(0, "a", "f"), finish="tool_calls"))["content"][0]["input"] == {}


def test_a_broken_stream_ends_with_an_error_and_no_stop() -> None:
    seen, error = run_grammar(chatStreamOpenAItoAnthropic(chunks({"content": "x"}, finish=None), CFG))
    assert isinstance(error, BackendError)
    assert seen[-1]["type"] == "error"
    assert seen[-1]["error"]["type"] == "api_error"
    assert "message_stop" not in kinds(seen)


def test_an_error_chunk_is_raised() -> None:
    with pytest.raises(BackendError, match="overloaded"):
        list(chatStreamOpenAItoAnthropic([{"error": {"message": "overloaded", "type": "server_error"}}], CFG))


def test_an_error_event_of_anthropics_is_raised_with_its_status() -> None:
    event = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    with pytest.raises(BackendError) as caught:
        list(chatStreamAnthropictoOpenAI([event], CFG))
    assert (caught.value.status, caught.value.message) == (503, "Overloaded")


def test_an_error_event_of_a_mapper_ends_the_stream_with_its_own_words() -> None:
    seen, error = run_grammar(
        [*LEGAL[:2], {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, LEGAL[2]]
    )
    assert seen[2:] == [
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": CFG["id"]}
    ]
    assert isinstance(error, BackendError)


def test_signatures_in_pieces_and_servers_tools_are_read() -> None:
    stream = [
        {"type": "message_start", "message": message(stop_reason=None)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "ab"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "cd"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "server_tool_use", "id": "s", "input": {}}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"q":1}'}},
        {"type": "content_block_stop", "index": 1},
        {"type": "brand_new_event"},
        {"type": "message_delta", "delta": {"stop_reason": "pause_turn"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    choice = openai.fold(chatStreamAnthropictoOpenAI(stream, CFG))["choices"][0]
    assert choice["message"]["thinking_blocks"] == [{"type": "thinking", "thinking": "", "signature": "abcd"}]
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


# --- grammar

LEGAL = to_messages(
    {"reasoning_content": "a"},
    {"reasoning_signature": "s"},
    {"content": "x"},
    openai.tool_delta(0, "a", "f", '{"x":1}'),
    openai.tool_delta(1, "b", "g", "{}"),
    finish="tool_calls",
)


def run_grammar(stream: Any) -> tuple[list[Json], ProxyError | None]:
    seen: list[Json] = []
    try:
        for event in grammar(stream, CFG):
            seen.append(event)  # noqa: PERF402
    except ProxyError as error:
        return seen, error
    return seen, None


def test_the_service_s_own_streams_are_legal() -> None:
    for content, more in SCENARIOS.values():
        blocks = [{**block, "id": "t", "name": "f"} if block["type"] == "tool_use" else block for block in content]
        stream = list(events(message(*blocks, **more)))
        assert run_grammar(stream) == (stream, None)


@pytest.mark.parametrize("cut", range(len(LEGAL)))
def test_every_early_end_is_an_error_event(cut: int) -> None:
    seen, error = run_grammar(LEGAL[:cut])
    assert isinstance(error, BackendError)
    assert seen[:-1] == LEGAL[:cut]
    assert seen[-1]["type"] == "error"


@pytest.mark.parametrize("at", range(len(LEGAL) - 1))
def test_every_dropped_event_is_noticed_or_harmless(at: int) -> None:
    stream = LEGAL[:at] + LEGAL[at + 1 :]
    seen, error = run_grammar(stream)
    if error is None:
        assert LEGAL[at]["type"] == "content_block_delta"
    else:
        assert isinstance(error, MapperError)
        assert seen[-1]["type"] == "error"


def test_a_stream_begins_without_content() -> None:
    start = {"type": "message_start", "message": {**LEGAL[0]["message"], "content": [{}]}}
    seen, error = run_grammar([start, *LEGAL[1:]])
    assert isinstance(error, MapperError)
    assert [event["type"] for event in seen] == ["error"]


JUNK = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.just([]), st.just({}), st.just([{}]))


@st.composite
def mutated(draw: st.DrawFn, stream: list[Json]) -> list[Any]:
    """A stream with one event dropped, doubled, swapped, or one value in it replaced."""
    out: list[Any] = copy.deepcopy(stream)
    at = draw(st.integers(0, len(out) - 1))
    how = draw(st.sampled_from(("drop", "double", "swap", "replace", "mistype")))
    if how == "drop":
        del out[at]
    elif how == "double":
        out.insert(at, out[at])
    elif how == "swap":
        other = draw(st.integers(0, len(out) - 1))
        out[at], out[other] = out[other], out[at]
    elif how == "replace":
        out[at] = draw(JUNK)
    else:
        inner = out[at]
        while isinstance(inner, dict) and inner:
            name = draw(st.sampled_from(sorted(inner)))
            if isinstance(inner[name], dict) and draw(st.booleans()):
                inner = inner[name]
                continue
            inner[name] = draw(JUNK)
            break
    return out


@given(mutated(LEGAL))
@settings(max_examples=100)
def test_a_mutated_stream_is_an_error_event_or_something_an_sdk_can_read(stream: list[Any]) -> None:
    seen, error = run_grammar(stream)
    if error is None:
        typed = [EVENT.validate_python(event) for event in seen if event["type"] != "ping"]
        accumulated(
            event for event in seen if kinds([event])[0] not in ("ping", "input_json_delta")
        )  # what a model writes is its own
        assert typed[-1].type == "message_stop"
    else:
        assert seen[-1]["type"] in ("error", "message_stop")
    assert sum(event["type"] == "error" for event in seen) <= 1


@given(mutated(LEGAL), mutated(chunks({"content": "x"}, openai.tool_delta(0, "a", "f", '{"x":1}'), finish="tool_calls")))
@settings(max_examples=100)
def test_odd_events_of_a_backend_never_crash_a_mapper(theirs: list[Any], ours: list[Any]) -> None:
    for mapped in (chatStreamAnthropictoOpenAI(theirs, CFG), chatStreamOpenAItoAnthropic(ours, CFG)):
        try:
            list(mapped)
        except ProxyError:
            continue


# --- laws

WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)
NAMES = st.sampled_from(("get_weather", "Read", "mcp__x-y"))
ARGUMENTS = st.dictionaries(
    WORDS, st.one_of(WORDS, st.integers(-9, 9), st.none(), st.lists(st.booleans(), max_size=2)), max_size=2
)
IMAGES = st.just({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}})
PARTS = st.lists(st.one_of(WORDS.map(lambda text: {"type": "text", "text": text}), IMAGES), min_size=2, max_size=3)
SIGNED = st.builds(lambda text, sign: {"type": "thinking", "thinking": text, "signature": sign}, st.text(max_size=5), WORDS)
REDACTED = WORDS.map(lambda data: {"type": "redacted_thinking", "data": data})


@st.composite
def conversations(draw: st.DrawFn) -> Json:
    """A hub request in which every turn is in its simplest form, so that the way there and back must give it again."""
    messages = [said("system", draw(WORDS))] if draw(st.booleans()) else []
    ids = (f"call_{n}" for n in itertools.count())
    for _ in range(draw(st.integers(1, 3))):
        messages.append(said("user", draw(st.one_of(WORDS, PARTS))))
        assistant = said("assistant", draw(WORDS))
        if thinking := draw(st.lists(st.one_of(SIGNED, REDACTED), max_size=2)):
            assistant["thinking_blocks"] = thinking
        messages.append(assistant)
        if made := [openai.tool_call(next(ids), draw(NAMES), draw(ARGUMENTS)) for _ in range(draw(st.integers(0, 2)))]:
            assistant |= {"content": draw(st.one_of(st.none(), WORDS)), "tool_calls": made}
            for call in made:
                result = said("tool", draw(st.one_of(WORDS, PARTS, st.just(""))), tool_call_id=call["id"])
                messages.append(result | ({"is_error": True} if draw(st.booleans()) else {}))
    req = {**hub(*messages), "max_completion_tokens": draw(st.integers(1, 99))}
    if draw(st.booleans()):
        tools = [{"type": "function", "function": {"name": "Read", "parameters": {"type": "object"}}}]
        choice = st.sampled_from(("auto", "none", "required", {"type": "function", "function": {"name": "Read"}}))
        req |= {"tools": tools, "tool_choice": draw(choice)}
    if draw(st.booleans()):
        req |= {
            "stop": draw(st.lists(WORDS, min_size=1, max_size=3)),
            "temperature": draw(st.floats(0, 1)),
            "top_k": 5,
            "user": "u",
        }
    return req


@given(conversations())
@settings(max_examples=100)
def test_a_conversation_comes_back_from_messages_as_it_was(req: Json) -> None:
    before = copy.deepcopy(req)
    body = chatReqOpenAItoAnthropic(req, CFG)
    kept = copy.deepcopy(body)
    assert chatReqAnthropictoOpenAI(body, CFG) == req == before
    assert body == kept


@given(conversations())
@settings(max_examples=100)
def test_what_is_sent_is_what_the_service_takes_and_comes_back_from_the_hub(req: Json) -> None:
    req["messages"] = [{name: value for name, value in m.items() if name != "thinking_blocks"} for m in req["messages"]]
    body = chatReqOpenAItoAnthropic(req, CFG)
    if req["messages"][-1]["role"] == "assistant" and "tool_calls" in req["messages"][-1]:
        return
    check(body, HEADERS, CREATE)
    assert chatReqOpenAItoAnthropic(chatReqAnthropictoOpenAI(body), CFG) == body


@st.composite
def answers(draw: st.DrawFn) -> Json:
    thinking = draw(st.lists(st.one_of(SIGNED, REDACTED), max_size=2))
    reasoning = "".join(block.get("thinking", "") for block in thinking)
    made = [openai.tool_call(f"call_{n}", draw(NAMES), draw(ARGUMENTS)) for n in range(draw(st.integers(0, 2)))]
    content = draw(WORDS) if draw(st.booleans()) else ""
    finish = "tool_calls" if made else draw(st.sampled_from(("stop", "length", "content_filter")))
    stop = draw(st.one_of(st.none(), WORDS)) if finish == "stop" else None
    n = st.integers(0, 99)
    spent = openai.usage(draw(st.integers(200, 999)), draw(n), draw(n), draw(n), draw(n))
    whole = openai.assistant(content, made, reasoning, thinking)
    return openai.chat_answer(CFG, whole, finish, spent, model="m", stop_sequence=stop)


@given(answers())
@settings(max_examples=100)
def test_an_answer_comes_back_from_messages_as_it_was(answer: Json) -> None:
    before = copy.deepcopy(answer)
    there = chatAnsOpenAItoAnthropic(answer, CFG)
    kept = copy.deepcopy(there)
    assert chatAnsAnthropictoOpenAI(there, CFG) == answer == before
    assert there == kept


def parsed(answer: Json) -> Json:
    """An answer with its tool arguments as objects, as JSON text has no one form."""
    for choice in answer["choices"]:
        for call in choice["message"].get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return answer


@given(answers())
@settings(max_examples=100)
def test_folding_the_stream_of_a_message_equals_its_answer(answer: Json) -> None:
    there = chatAnsOpenAItoAnthropic(answer, CFG)
    folded = openai.fold(openai.DIALECT.grammar(chatStreamAnthropictoOpenAI(events(there), CFG), CFG))
    assert parsed(folded) == parsed(answer)


@given(answers())
@settings(max_examples=100)
def test_what_the_sdk_makes_of_the_stream_equals_the_answer(answer: Json) -> None:
    stream = grammar(chatStreamOpenAItoAnthropic(openai.unfold(answer), CFG), CFG)
    assert accumulated(stream) == {**chatAnsOpenAItoAnthropic(answer, CFG), "stop_details": None}


@given(st.lists(ARGUMENTS, min_size=1, max_size=3), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_woven_fragments_of_calls_give_whole_blocks(inputs: list[Json], random: Any) -> None:
    written = [json.dumps(given) for given in inputs]
    fragments = [(n, text[i : i + 3]) for n, text in enumerate(written) for i in range(0, len(text), 3)]
    order = sorted(range(len(fragments)), key=lambda _: random.random())
    queues = [[text for slot, text in fragments if slot == n] for n in range(len(inputs))]
    heads = [openai.tool_delta(n, f"id_{n}", "f") for n in range(len(inputs))]
    woven = [openai.tool_delta(fragments[i][0], arguments=queues[fragments[i][0]].pop(0)) for i in order]
    content = accumulated(to_messages(*heads, *woven, finish="tool_calls"))["content"]
    assert [block["input"] for block in content] == inputs


@given(st.integers(1, 40))
def test_bytes_cut_anywhere_give_the_same_events(size: int) -> None:
    body = b"".join(wire.write("named-sse", LEGAL))
    assert list(wire.read_sse(body[i : i + size] for i in range(0, len(body), size))) == LEGAL


@st.composite
def spoilt(draw: st.DrawFn, body: Json) -> Json:
    """A body in which one value, however deep, is junk."""
    out: Any = copy.deepcopy(body)
    inner, inside = out, True
    while inside:
        at = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
        inside = bool(inner[at]) and isinstance(inner[at], (dict, list)) and draw(st.integers(0, 3)) > 0
        if inside:
            inner = inner[at]
    inner[at] = draw(JUNK)
    return out  # type: ignore[no-any-return]


def refused(function: Any, body: Json) -> BadRequest | None:
    try:
        function(body, CFG)
    except BadRequest as fault:
        return fault
    return None


HUB_BODY = chatReqAnthropictoOpenAI(claude_code())


@given(spoilt(claude_code()), spoilt(HUB_BODY))
@settings(max_examples=200)
def test_odd_values_of_a_client_are_bad_requests_or_harmless(theirs: Json, ours: Json) -> None:
    for fault in (refused(chatReqAnthropictoOpenAI, theirs), refused(chatReqOpenAItoAnthropic, ours)):
        assert fault is None or fault.param


@given(
    st.dictionaries(st.sampled_from(tuple(message())), JUNK),
    st.dictionaries(st.sampled_from(("choices", "usage", "model", "id")), JUNK),
)
@settings(max_examples=200)
def test_odd_fields_of_a_backend_never_crash(theirs: Json, ours: Json) -> None:
    good = openai.chat_answer(CFG, calls(("t", "{}")), "stop", openai.usage(1, 2))
    use = {"type": "tool_use", "id": 7, "name": None, "input": None, "new": 1}
    for function, answer in (
        (chatAnsAnthropictoOpenAI, {**message(use, 7), **theirs}),
        (chatAnsOpenAItoAnthropic, {**good, **ours}),
    ):  # type: ignore[arg-type]
        try:
            function(answer, CFG)
        except BackendError:
            continue


# --- errors, models, count_tokens, the record


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_errors_have_anthropics_shape(status: int, kind: str) -> None:
    body = DIALECT.error_body(BackendError("m", status=status, kind="insufficient_quota"), "req_1")
    assert body == {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "req_1"}


@pytest.mark.parametrize(
    "body", [None, "Overloaded", 7, [], {}, {"error": 7}, {"type": "error", "error": {"message": "Overloaded"}}]
)
def test_an_error_of_anthropics_is_read_whatever_it_holds(body: Any) -> None:
    error = DIALECT.parse_error(529, body)
    assert error.status == 503
    assert error.message


def test_a_long_list_of_models_comes_whole() -> None:
    made = [{"type": "model", "id": f"claude-{n}", "display_name": "", "created_at": "2026-01-01T00:00:00Z"} for n in range(30)]
    with AnthropicDouble() as double:
        double.models = made
        page = requests.get(f"{double.url}/v1{DIALECT.backend['models'].path}", headers=HEADERS, timeout=10).json()
    assert [model["id"] for model in anthropic.modelsAnsAnthropictoOpenAI(page)["data"]] == [model["id"] for model in made]


def test_models_are_listed_in_both_shapes() -> None:
    page = {
        "data": [{"type": "model", "id": "claude-x", "created_at": "2025-10-01T00:00:00Z"}, {"id": "y", "created_at": "?"}, 7]
    }
    listed = anthropic.modelsAnsAnthropictoOpenAI(page)
    assert [model["created"] for model in listed["data"]] == [1759276800, 0]
    back = anthropic.modelsAnsOpenAItoAnthropic(listed)
    assert back["data"][0]["created_at"] == "2025-10-01T00:00:00Z"
    assert (back["first_id"], back["last_id"], back["has_more"]) == ("claude-x", "y", False)
    assert anthropic.modelAnsOpenAItoAnthropic(listed, {"params": {"model": "y"}})["type"] == "model"
    with pytest.raises(BadRequest) as caught:
        anthropic.modelAnsOpenAItoAnthropic(listed, {"params": {"model": "z"}})
    assert caught.value.status == 404
    assert anthropic.modelsAnsOpenAItoAnthropic({"data": []})["first_id"] is None


def test_every_function_of_the_dialect_can_be_found_by_name() -> None:
    for name in ("chatReq", "chatAns", "chatStream", "countReq", "countAns", "modelsAns"):
        assert callable(mapper(f"{name}AnthropictoOpenAI"))
        assert callable(mapper(f"{name}OpenAItoAnthropic"))
    assert front("POST", "/v1/messages", {}) == "anthropic"
    assert load("anthropic").keepalive == b'event: ping\ndata: {"type":"ping"}\n\n'


# --- against the double


@pytest.fixture(scope="module")
def double() -> Any:
    with AnthropicDouble() as running:
        yield running


def call(double: AnthropicDouble, req: Json, path: str = "/v1/messages") -> requests.Response:
    return requests.post(double.url + path, json=req, headers=HEADERS, stream=bool(req.get("stream")), timeout=10)


@pytest.mark.parametrize("asked", sorted(set(SCENARIOS) - {"cut stream", "error stream"}))
def test_streamed_and_whole_answers_of_the_service_tell_the_same(double: AnthropicDouble, asked: str) -> None:
    req = hub(said("user", asked), tools=[HUB_TOOL], max_tokens=50)
    whole = chatAnsAnthropictoOpenAI(call(double, chatReqOpenAItoAnthropic(req)).json(), CFG)
    reply = call(double, chatReqOpenAItoAnthropic({**req, "stream": True}))
    streamed = openai.fold(chatStreamAnthropictoOpenAI(wire.read_sse(reply.iter_content(7)), CFG))
    assert parsed(streamed) == parsed(whole)
    assert whole["usage"]["prompt_tokens"] == 20


def test_thinking_goes_back_verbatim_with_a_tool_result(double: AnthropicDouble) -> None:
    req = hub(said("user", "think first"), tools=[HUB_TOOL])
    answer = chatAnsAnthropictoOpenAI(call(double, chatReqOpenAItoAnthropic(req)).json(), CFG)
    told = answer["choices"][0]["message"]
    assert [block.get("thinking") for block in told["thinking_blocks"]] == ["First this.", "", None]
    more = hub(*req["messages"], told, said("user", "call tool"), tools=[HUB_TOOL])
    reply = call(double, chatReqOpenAItoAnthropic(more))
    assert reply.status_code == 200, reply.text
    told["thinking_blocks"][0]["thinking"] = "changed"
    assert call(double, chatReqOpenAItoAnthropic(more)).status_code == 400


def test_a_cut_stream_of_the_service_stays_unfinished(double: AnthropicDouble) -> None:
    reply = call(double, chatReqOpenAItoAnthropic(hub(said("user", "cut stream"), stream=True)))
    assert (
        openai.fold(chatStreamAnthropictoOpenAI(wire.read_sse(reply.iter_content(64)), CFG))["choices"][0]["finish_reason"]
        is None
    )


def test_an_error_in_the_services_stream_is_raised(double: AnthropicDouble) -> None:
    reply = call(double, chatReqOpenAItoAnthropic(hub(said("user", "error stream"), stream=True)))
    with pytest.raises(BackendError) as caught:
        list(chatStreamAnthropictoOpenAI(wire.read_sse(reply.iter_content(64)), CFG))
    assert caught.value.status == 503


def test_failures_and_counts_of_the_service_are_read(double: AnthropicDouble) -> None:
    reply = call(double, chatReqOpenAItoAnthropic(hub(said("user", "fail 429"))))
    error = DIALECT.parse_error(reply.status_code, reply.json())
    assert (error.status, error.kind, reply.headers["retry-after"]) == (429, "rate_limit_error", "7")
    counted = call(double, anthropic.countReqOpenAItoAnthropic(hub(temperature=1, max_tokens=3)), "/v1/messages/count_tokens")
    assert anthropic.countAnsAnthropictoOpenAI(counted.json())["input_tokens"] > 0


@pytest.mark.parametrize(
    "broken", [{"max_tokens": None}, {"extra": 1}, {"temperature": 2}, {"messages": [said("system", "x")]}]
)
def test_the_double_refuses_what_the_service_refuses(broken: Json) -> None:
    with pytest.raises(Refusal):
        check({**ask(), **broken}, HEADERS, CREATE)
    assert check(ask(), HEADERS, CREATE)


@pytest.mark.parametrize("messages", [[{"role": "system", "content": "be brief"}], [{"role": "user", "content": " "}]])
def test_a_conversation_that_holds_nothing_is_refused(messages: list[Json]) -> None:
    with pytest.raises(BadRequest, match="nothing that can be sent"):
        mapper("chatReqOpenAItoAnthropic")({"messages": messages})


@pytest.mark.parametrize(
    ("limit", "asked", "sent"), [(None, 1, 1024), (None, 5000, 5000), (2000, 5000, 1999), (2000, 128, 1024), (500, 2000, None)]
)
def test_a_thinking_budget_is_one_that_messages_takes(limit: int | None, asked: int, sent: int | None) -> None:
    req: Json = {"messages": [{"role": "user", "content": "hi"}], "thinking": {"type": "enabled", "budget_tokens": asked}}
    lost: list[str] = []
    cfg = {"lost": lambda path, why="": lost.append(path)}
    made = mapper("chatReqOpenAItoAnthropic")({**req, **({"max_completion_tokens": limit} if limit else {})}, cfg)
    assert made.get("thinking", {}).get("budget_tokens") == sent
    assert lost == ([] if sent else ["thinking"])


CLAUDES = {  # model → what of (temperature, top_p, top_k) it is sent, thinking and not
    "claude-opus-5": ((), ()),
    "claude-opus-4-8": ((), ()),
    "claude-sonnet-5-20260630": ((), ()),
    "claude-haiku-4-5-20251001": ((), ("temperature", "top_k")),
    "claude-opus-4-20250514": ((), ("temperature", "top_p", "top_k")),
    "claude-3-5-sonnet-20241022": ((), ("temperature", "top_p", "top_k")),
    "MiniMax-M2": (("temperature", "top_p", "top_k"), ("temperature", "top_p", "top_k")),
}


@pytest.mark.parametrize("model", CLAUDES)
@pytest.mark.parametrize("thinks", [True, False])
def test_a_claude_is_sent_the_sampling_that_its_generation_takes(model: str, thinks: bool) -> None:
    ledger = Ledger()
    asked = {"temperature": 0.5, "top_p": 0.9, "top_k": 40}
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 2048}} if thinks else {}
    body = chatReqOpenAItoAnthropic(hub(**asked, **thinking), {"lost": ledger, "model": model})
    sent = CLAUDES[model][0 if thinks else 1]
    assert {name: body[name] for name in asked if name in body} == {name: asked[name] for name in sent}
    assert sorted(ledger.paths) == sorted(asked.keys() - set(sent))
    check({**body, "model": model}, HEADERS, CREATE)


@pytest.mark.parametrize(("model", "kind"), [("claude-sonnet-4-6", "enabled"), ("claude-opus-4-7", "adaptive")])
def test_a_claude_that_takes_no_budget_thinks_as_much_as_it_likes(model: str, kind: str) -> None:
    thinking = {"type": "enabled", "budget_tokens": 2048, "display": "omitted"}
    body = chatReqOpenAItoAnthropic(hub(thinking=thinking), {"model": model})
    assert (body["thinking"]["type"], body["thinking"]["display"]) == (kind, "omitted")
    check({**body, "model": model}, HEADERS, CREATE)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_claude_that_must_call_a_tool_does_not_think(choice: Any) -> None:
    ledger = Ledger()
    tools = [{"type": "function", "function": {"name": "f"}}]
    asked = hub(tools=tools, tool_choice=choice, thinking={"type": "enabled", "budget_tokens": 2048}, temperature=0.5)
    body = chatReqOpenAItoAnthropic(asked, {"lost": ledger, "model": "claude-sonnet-4-6"})
    assert "thinking" not in body
    assert body["temperature"] == 0.5
    assert ledger.paths == ["thinking"]
    check({**body, "model": "claude-sonnet-4-6"}, HEADERS, CREATE)


@pytest.mark.parametrize(
    ("model", "effort", "sent"),
    [
        ("claude-haiku-4-5", "high", None),
        ("claude-opus-4-5", "max", "high"),
        ("claude-sonnet-4-6", "xhigh", "high"),
        ("claude-opus-4-7", "xhigh", "xhigh"),
        ("claude-opus-5", "minimal", "low"),
    ],
)
def test_effort_is_what_a_claude_knows(model: str, effort: str, sent: str | None) -> None:
    body = chatReqOpenAItoAnthropic(hub(reasoning_effort=effort), {"model": model})
    assert body.get("output_config", {}).get("effort") == sent


def test_a_schema_is_closed_and_what_claude_cannot_enforce_is_told_in_words() -> None:
    wanted = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "age": {"type": "integer", "minimum": 0, "description": "in years"},
            "minimum": {"type": "string", "default": "x"},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 2},
            "by": {"oneOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "null"}]},
        },
        "required": ["age"],
        "$defs": {"tag": {"type": "object", "properties": {"name": {"type": "string"}}, "additionalProperties": True}},
    }
    before = copy.deepcopy(wanted)
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": wanted}}
    body = chatReqOpenAItoAnthropic(hub(response_format=form))
    assert body["output_config"]["format"]["schema"] == {
        "type": "object",
        "properties": {
            "age": {"type": "integer", "description": 'in years {"minimum":0}'},
            "minimum": {"type": "string", "default": "x"},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "description": '{"minItems":2}'},
            "by": {
                "anyOf": [
                    {
                        "type": "object",
                        "additionalProperties": False,
                        "description": '{"additionalProperties":{"type":"string"}}',
                    },
                    {"type": "null"},
                ]
            },
        },
        "required": ["age"],
        "additionalProperties": False,
        "$defs": {"tag": {"type": "object", "properties": {"name": {"type": "string"}}, "additionalProperties": False}},
    }
    assert wanted == before
    check(body, HEADERS, CREATE)


@pytest.mark.parametrize(
    "broken",
    [
        {"model": "claude-opus-5", "temperature": 0.5},
        {"model": "claude-sonnet-4-6", "temperature": 0.5, "top_p": 0.5},
        {
            "model": "claude-sonnet-4-6",
            "temperature": 0.5,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "max_tokens": 2000,
        },
        {"model": "claude-opus-5", "thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object", "properties": {}}}}},
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "integer", "minimum": 1}}}},
    ],
)
def test_the_double_refuses_what_a_claude_refuses(broken: Json) -> None:
    with pytest.raises(Refusal):
        check({**ask(), **broken}, HEADERS, CREATE)


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "required": [], "additionalProperties": False}, False),
        ({"type": "array", "items": {"type": "object", "properties": {"a": {}}, "additionalProperties": False}}, False),
        ({"type": "object", "properties": {}, "additionalProperties": False}, True),
    ],
)
def test_strict_is_asked_for_where_openais_strict_mode_takes_the_schema(schema: Json, strict: bool) -> None:
    """Claude's takes optional properties, and OpenAI refuses them: the schema without the promise beats no answer."""
    tool = {"name": "f", "input_schema": {"type": "object", "properties": {"x": schema}, "required": ["x"]}, "strict": True}
    asked = ask(tools=[tool], output_config={"format": {"type": "json_schema", "schema": schema}})
    req = chatReqAnthropictoOpenAI(asked)
    assert req["response_format"]["json_schema"] == {"name": "answer", "schema": schema, "strict": strict}
    assert req["tools"][0]["function"].get("strict", False) is strict


def test_openais_safety_identifier_is_the_user() -> None:
    assert chatReqOpenAItoAnthropic(hub(safety_identifier="abc"))["metadata"] == {"user_id": "abc"}
    assert chatReqOpenAItoAnthropic(hub(safety_identifier="abc", user="u"))["metadata"] == {"user_id": "u"}
