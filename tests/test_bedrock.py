"""The hub ⇄ Converse: requests, answers, streams, errors, embeddings; laws over conversations; real SDKs through a proxy."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
import requests
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxy.dialects import bedrock, load, mapper
from proxy.dialects import openai as hub
from proxy.dialects.bedrock import (
    DIALECT,
    chatAnsBedrocktoOpenAI,
    chatReqOpenAItoBedrock,
    chatStreamBedrocktoOpenAI,
    embedAnsBedrocktoOpenAI,
    embedReqOpenAItoBedrock,
    parse_error,
)
from proxy.errors import BackendError, BadRequest, ProxyError
from tests.backends.proxy import KEY as PROXY_KEY
from tests.backends.proxy import Proxy
from tests.doubles.aws import KEY, SECRET, Refusal
from tests.doubles.bedrock import HELLO, SCENARIOS, BedrockDouble, answered, events, legal, scenario
from tests.laws import CFG, PNG, hub_answers, hub_requests, mutations, unchanged

Json = dict[str, Any]
CLAUDE, NOVA = "us.anthropic.claude-opus-4-8-v1:0", "amazon.nova-2-lite-v1:0"
OLDER = "us.anthropic.claude-sonnet-4-20250514-v1:0"  # which takes sampling, and budgets of thinking
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3"
EPHEMERAL = {"type": "ephemeral"}
POINT = {"cachePoint": {"type": "default"}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
PDF = "JVBERi0xLjQKJcOkw7zDtsOf"


def ask(*messages: Json, **more: Any) -> Json:
    return {"model": CLAUDE, "messages": list(messages) or [said("user", "hi")], **more}


def said(role: str, content: Any, **more: Any) -> Json:
    return {"role": role, "content": content, **more}


def text(words: str, **more: Any) -> Json:
    return {"type": "text", "text": words, **more}


def sent(req: Json, **cfg: Any) -> Json:
    """What goes up, which the service takes."""
    body = unchanged(chatReqOpenAItoBedrock, req, CFG | cfg) if "lost" not in cfg else chatReqOpenAItoBedrock(req, CFG | cfg)
    assert legal(body) == body
    return dict(body)


class Ledger:
    """A `lost` that remembers what it is told."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, path: str, why: str) -> None:
        assert why
        self.paths.append(path)


# --- requests


def test_a_whole_request_of_every_kind() -> None:
    called = said("assistant", "Looking.", tool_calls=[hub.tool_call("call_1", "get_weather", {"city": "Paris"})])
    body = sent(
        ask(
            said("system", "Be kind."),
            said("user", [text("look"), {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}]),
            called,
            said("tool", "sunny", tool_call_id="call_1"),
            said("user", "and now?"),
            max_tokens=100,
            temperature=0.5,
            top_p=0.9,
            stop=["END"],
            tools=[TOOL],
            tool_choice="required",
            metadata={"team": "red", "bad": "ü"},
            service_tier="flex",
        ),
        model=OLDER,
    )
    use = {"toolUseId": "call_1", "name": "get_weather", "input": {"city": "Paris"}}
    assert body == {
        "system": [{"text": "Be kind."}],
        "messages": [
            said("user", [{"text": "look"}, {"image": {"format": "png", "source": {"bytes": PNG}}}]),
            said("assistant", [{"text": "Looking."}, {"toolUse": use}]),
            said("user", [{"toolResult": {"toolUseId": "call_1", "content": [{"text": "sunny"}]}}, {"text": "and now?"}]),
        ],
        "inferenceConfig": {"maxTokens": 100, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"]},
        "toolConfig": {
            "tools": [{"toolSpec": {"name": "get_weather", "inputSchema": {"json": TOOL["function"]["parameters"]}}}],  # type: ignore[index]
            "toolChoice": {"any": {}},
        },
        "additionalModelResponseFieldPaths": ["/stop_sequence"],
        "requestMetadata": {"team": "red"},
        "serviceTier": {"type": "flex"},
    }


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", {"auto": {}}),
        ("required", {"any": {}}),
        ({"type": "function", "function": {"name": "get_weather"}}, {"tool": {"name": "get_weather"}}),
        (None, None),
    ],
)
def test_tool_choice(choice: Any, expected: Any) -> None:
    req = ask(tools=[TOOL], **({"tool_choice": choice} if choice else {}))
    assert sent(req)["toolConfig"].get("toolChoice") == expected


def test_a_choice_of_none_leaves_the_tools_out_unless_they_were_used() -> None:
    assert "toolConfig" not in sent(ask(tools=[TOOL], tool_choice="none"))
    called = said("assistant", None, tool_calls=[hub.tool_call("c", "get_weather", "{}")])
    ledger = Ledger()
    used = ask(said("user", "x"), called, said("tool", "", tool_call_id="c"), tools=[TOOL], tool_choice="none")
    assert [tool["toolSpec"]["name"] for tool in sent(used, lost=ledger)["toolConfig"]["tools"]] == ["get_weather"]
    assert ledger.paths == ["tool_choice"]


def test_tools_that_a_conversation_used_are_declared_where_the_request_no_longer_does() -> None:
    called = said("assistant", None, tool_calls=[hub.tool_call("c", "old_tool", "{}")])
    body = sent(ask(said("user", "x"), called, said("tool", "done", tool_call_id="c")))
    spec = {"name": "old_tool", "inputSchema": {"json": {"type": "object", "properties": {}}}}
    assert body["toolConfig"] == {"tools": [{"toolSpec": spec}]}


def test_a_tool_keeps_what_it_says_of_itself() -> None:
    function = {"name": "f", "description": "does it", "parameters": {"properties": {}}, "strict": True}
    spec = sent(ask(tools=[{"type": "function", "function": function}]))["toolConfig"]["tools"][0]["toolSpec"]
    assert (spec["description"], spec["strict"], spec["inputSchema"]["json"]["type"]) == ("does it", True, "object")


def test_cache_marks_become_cache_points_behind_what_they_mark() -> None:
    hour = {"type": "ephemeral", "ttl": "1h"}
    called = said("assistant", None, tool_calls=[hub.tool_call("c", "get_weather", "{}")])
    body = sent(
        ask(
            said("system", [text("long", cache_control=hour)]),
            said("user", [text("x", cache_control=EPHEMERAL)]),
            called,
            said("tool", [text("result", cache_control=EPHEMERAL)], tool_call_id="c"),
            tools=[{**TOOL, "cache_control": EPHEMERAL}],
        )
    )
    assert body["system"] == [{"text": "long"}, {"cachePoint": {"type": "default", "ttl": "1h"}}]
    assert body["messages"][0]["content"] == [{"text": "x"}, POINT]
    assert body["messages"][2]["content"][1] == POINT
    assert body["toolConfig"]["tools"][1] == POINT


def test_thinking_goes_back_verbatim_and_nothing_that_nobody_signed() -> None:
    whole = chatAnsBedrocktoOpenAI(answered(sent(ask(said("user", "think first")))), CFG)
    told = whole["choices"][0]["message"]
    assert told["reasoning_content"] == "First this."
    body = sent(ask(said("user", "think first"), told, said("user", "go on")))
    assert body["messages"][1]["content"] == SCENARIOS["think first"][0]
    unsigned = said("assistant", "So.", reasoning_content="unsigned")
    assert sent(ask(said("user", "x"), unsigned, said("user", "y")))["messages"][1]["content"] == [{"text": "So."}]
    foreign = {"type": "redacted_thinking", "data": "mooltiproxy-1.abc"}
    sealed = said("assistant", "So.", thinking_blocks=[foreign])
    assert sent(ask(said("user", "x"), sealed, said("user", "y")))["messages"][1]["content"] == [{"text": "So."}]


@pytest.mark.parametrize(
    ("model", "asked", "extra", "effort"),
    [
        (OLDER, {"top_k": 5}, {"top_k": 5}, None),
        (CLAUDE, {"top_k": 5}, None, None),
        (
            OLDER,
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            None,
        ),
        (CLAUDE, {"thinking": {"type": "enabled", "budget_tokens": 2000}}, {"thinking": {"type": "adaptive"}}, None),
        (CLAUDE, {"reasoning_effort": "minimal"}, None, "low"),
        (OLDER, {"reasoning_effort": "minimal"}, None, None),
        (CLAUDE, {"reasoning_effort": "none"}, None, None),
        (PROFILE, {"top_k": 5, "reasoning_effort": "max"}, {"top_k": 5}, "max"),
        (NOVA, {"top_k": 5}, {"inferenceConfig": {"topK": 5}}, None),
        (NOVA, {"reasoning_effort": "max"}, {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "high"}}, None),
        (NOVA, {"reasoning_effort": "none"}, None, None),
        ("amazon.nova-lite-v1:0", {"top_k": 5, "reasoning_effort": "high"}, {"inferenceConfig": {"topK": 5}}, None),
        ("cohere.command-r-v1:0", {"top_k": 5}, {"k": 5}, None),
        ("openai.gpt-oss-120b-1:0", {"reasoning_effort": "low"}, {"reasoning_effort": "low"}, None),
        ("meta.llama4-maverick-17b-instruct-v1:0", {"top_k": 5, "reasoning_effort": "low"}, None, None),
    ],
)
def test_what_a_model_takes_beyond_converse_depends_on_its_maker(model: str, asked: Json, extra: Any, effort: Any) -> None:
    body = sent({**ask(), **asked, "model": "alias"}, model=model)
    assert (body.get("additionalModelRequestFields"), body.get("outputConfig", {}).get("effort")) == (extra, effort)
    assert sent({**ask(), **asked, "model": model}) == body


def test_a_schema_of_the_answer_is_one_of_converses_too() -> None:
    wanted = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    body = sent(ask(response_format={"type": "json_schema", "json_schema": wanted}))
    named = {"schema": '{"type":"object","additionalProperties":false}', "name": "answer"}  # Claude wants it closed
    assert body["outputConfig"]["textFormat"] == {"type": "json_schema", "structure": {"jsonSchema": named}}
    other = sent(ask(response_format={"type": "json_schema", "json_schema": wanted}), model=NOVA)
    assert other["outputConfig"]["textFormat"]["structure"]["jsonSchema"]["schema"] == '{"type":"object"}'


def test_documents_have_a_format_and_a_name_of_their_own() -> None:
    def file(data: str, name: str | None, kind: str = "application/octet-stream") -> Json:
        return {"type": "file", "file": {"file_data": f"data:{kind};base64,{data}", **({"filename": name} if name else {})}}

    parts = [
        text("read"),
        file(PDF, "My  résumé_v1.final.pdf"),
        file("aGk=", "notes.md", "text/plain"),
        file("aGk=", "notes.md", "text/plain"),
        file("aGk", None, "text/csv"),
        file("aGk=", "table.xlsx"),
        file(PNG, "picture.png"),
    ]
    content = sent(ask(said("user", parts)))["messages"][0]["content"]
    documents = [(block["document"]["format"], block["document"]["name"]) for block in content if "document" in block]
    assert documents == [
        ("pdf", "My r sum v1 final"),
        ("md", "notes"),
        ("md", "notes 2"),
        ("csv", "document"),
        ("xlsx", "table"),
    ]
    assert content[4]["document"]["source"] == {"bytes": "aGk="}
    assert content[6]["image"]["format"] == "png"


def test_media_from_s3_and_sounds() -> None:
    parts = [
        text("see"),
        {"type": "image_url", "image_url": {"url": "s3://bucket-name/a/b.JPG"}},
        {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
    ]
    content = sent(ask(said("user", parts)))["messages"][0]["content"]
    assert content[1] == {"image": {"format": "jpeg", "source": {"s3Location": {"uri": "s3://bucket-name/a/b.JPG"}}}}
    assert content[2] == {"audio": {"format": "wav", "source": {"bytes": "aGk="}}}


def _image(url: str) -> list[Json]:
    return [{"type": "image_url", "image_url": {"url": url}}]


@pytest.mark.parametrize(
    ("broken", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": [said("system", "s"), said("user", " ")]}, "messages"),
        ({"messages": [said("assistant", "hello"), said("user", "hi")]}, "messages[0].role"),
        (
            {"messages": [said("user", [{"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0="}}])]},
            "messages",
        ),
        ({"messages": [said("user", _image("https://x/y.png"))]}, "messages[0].content[0]"),
        ({"messages": [said("user", _image("s3://bucket/y"))]}, "messages[0].content[0]"),
        ({"messages": [said("user", _image("data:image/bmp;base64,Qk0="))]}, "messages[0].content[0]"),
        ({"messages": [said("user", [{"type": "file", "file": {"file_id": "f"}}])]}, "messages[0].content[0]"),
        (
            {"messages": [said("user", [{"type": "file", "file": {"file_data": "data:application/zip;base64,aGk="}}])]},
            "messages[0].content[0]",
        ),
        ({"messages": [said("user", [{"type": "input_audio", "input_audio": {"format": "midi"}}])]}, "messages[0].content[0]"),
        (
            {"messages": [said("user", "x"), said("assistant", None, tool_calls=[hub.tool_call("c", "f", "[1]")])]},
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_a_clients_mistake_is_a_bad_request_that_names_the_field(broken: Json, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chatReqOpenAItoBedrock({**ask(), **broken})
    assert caught.value.param == param


def test_turns_alternate_and_none_is_empty() -> None:
    body = sent(
        ask(
            said("user", "a"),
            said("user", " "),
            said("user", "b"),
            said("assistant", "\n"),
            said("assistant", "c"),
            said("user", "d"),
        )
    )
    assert [(turn["role"], [block["text"] for block in turn["content"]]) for turn in body["messages"]] == [
        ("user", ["a", "b"]),
        ("assistant", ["c"]),
        ("user", ["d"]),
    ]


def test_a_later_system_message_is_a_users_text_behind_the_results_and_told() -> None:
    ledger = Ledger()
    called = said("assistant", None, tool_calls=[hub.tool_call("c", "f", "{}")])
    body = sent(ask(said("user", "a"), called, said("system", "S"), said("tool", "r", tool_call_id="c")), lost=ledger)
    assert [next(iter(block)) for block in body["messages"][2]["content"]] == ["toolResult", "text"]
    assert ledger.paths == ["messages[2].role"]


def test_a_temperature_beyond_converses_is_its_highest_and_told() -> None:
    ledger = Ledger()
    assert sent(ask(temperature=1.5), lost=ledger, model=OLDER)["inferenceConfig"] == {"temperature": 1}
    assert ledger.paths == ["temperature"]


@pytest.mark.parametrize("content", ["no such city", "", [text("no such city")]])
def test_a_failed_tool_is_marked(content: Any) -> None:
    called = said("assistant", None, tool_calls=[hub.tool_call("c", "f", "{}")])
    failed = said("tool", content, tool_call_id="c", is_error=True)
    result = sent(ask(said("user", "a"), called, failed))["messages"][2]["content"][0]["toolResult"]
    assert result == {"toolUseId": "c", "content": [{"text": "no such city" if content else "Error"}], "status": "error"}


# --- answers


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("tool_use", "stop"),
        ("something_new", "stop"),
        (None, "stop"),
    ],
)
def test_how_an_answer_ended(reason: Any, finish: str) -> None:
    answer = {**answered({"messages": [said("user", [{"text": "say hello"}])]}), "stopReason": reason}
    assert chatAnsBedrocktoOpenAI(answer)["choices"][0]["finish_reason"] == finish
    called = {
        "output": {"message": {"content": [{"toolUse": {"toolUseId": "t", "name": "f", "input": {}}}]}},
        "stopReason": reason,
    }
    assert chatAnsBedrocktoOpenAI(called)["choices"][0]["finish_reason"] == ("tool_calls" if finish == "stop" else finish)


@pytest.mark.parametrize("reason", ["malformed_model_output", "malformed_tool_use"])
def test_an_answer_that_the_model_failed_at_is_an_error(reason: str) -> None:
    message = {"output": {"message": {"role": "assistant", "content": [{"text": "<tool"}]}}, "stopReason": reason}
    with pytest.raises(BackendError) as caught:
        chatAnsBedrocktoOpenAI(message)
    assert caught.value.code == reason
    with pytest.raises(BackendError):
        list(chatStreamBedrocktoOpenAI([{"messageStart": {}}, {"messageStop": {"stopReason": reason}}]))


def test_the_stop_that_matched_is_told() -> None:
    answer = answered(sent(ask(said("user", "use stop"), stop=["STOP"])))
    choice = chatAnsBedrocktoOpenAI(answer)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_sequence"]) == ("before ", "stop", "STOP")
    streamed = hub.fold(chatStreamBedrocktoOpenAI(told(answer)))["choices"][0]
    assert streamed["stop_sequence"] == "STOP"


def test_usage_counts_what_was_cached() -> None:
    spent = chatAnsBedrocktoOpenAI(answered({"messages": [said("user", [{"text": "say hello"}])]}))["usage"]
    assert spent == hub.usage(20, 9, 5, 3)


def test_citations_are_text_and_what_ran_at_the_backend_is_no_call() -> None:
    cited = {"citationsContent": {"content": [{"text": "cited"}], "citations": []}}
    server = {"toolUse": {"toolUseId": "t", "name": "search", "input": {}, "type": "server_tool_use"}}
    content = [cited, server, {"searchResult": {}}, {"text": " words"}]
    answer = chatAnsBedrocktoOpenAI({"output": {"message": {"content": content}}, "stopReason": "end_turn"})
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "cited words"}
    start = {"contentBlockStart": {"contentBlockIndex": 0, "start": server}}
    assert list(chatStreamBedrocktoOpenAI([start, {"contentBlockStop": {"contentBlockIndex": 0}}])) == []


@pytest.mark.parametrize("answer", [None, [], {}, {"output": {}}, {"output": {"message": 7}}, {"message": "no"}])
def test_what_is_no_answer_is_an_error(answer: Any) -> None:
    with pytest.raises(BackendError):
        chatAnsBedrocktoOpenAI(answer)


# --- laws


def flat(messages: list[Json]) -> list[tuple[Any, ...]]:
    """A hub conversation as a list of what is said, by whom; what is blank says nothing."""
    out: list[tuple[Any, ...]] = []
    for message in messages:
        parts = message["content"] if isinstance(message["content"], list) else [text(message["content"] or "")]
        if message["role"] == "tool":
            out.append(("result", hub.tool_id(message["tool_call_id"]), hub.text_of(parts).strip() and hub.text_of(parts)))
            continue
        for part in parts:
            if part["type"] == "image_url":
                out.append((message["role"], "image", part["image_url"]["url"]))
            elif part["text"].strip():
                out.append((message["role"], part["text"]))
        for call in message.get("tool_calls", ()):
            arguments = json.loads(call["function"]["arguments"])
            out.append(("call", hub.tool_id(call["id"]), call["function"]["name"], arguments))
    return out


def read_back(body: Json) -> list[tuple[Any, ...]]:
    """The same of a Converse body."""
    out: list[tuple[Any, ...]] = [("system", block["text"]) for block in body.get("system", ())]
    for turn in body["messages"]:
        for block in turn["content"]:
            if "toolResult" in block:
                result = block["toolResult"]
                out.append(("result", result["toolUseId"], "".join(piece["text"] for piece in result["content"])))
            elif "toolUse" in block:
                use = block["toolUse"]
                out.append(("call", use["toolUseId"], use["name"], use["input"]))
            elif "image" in block:
                kind, data = block["image"]["format"], block["image"]["source"]["bytes"]
                out.append((turn["role"], "image", f"data:image/{kind};base64,{data}"))
            else:
                out.append((turn["role"], block["text"]))
    return out


@given(hub_requests())
@settings(max_examples=150)
def test_a_conversation_arrives_as_it_was(req: Json) -> None:
    contents = [message["content"] or "none" for message in req["messages"]]
    parts = [part for content in contents for part in ([text(content)] if isinstance(content, str) else content)]
    assume(all(part.get("text", "media").strip() for part in parts))  # Converse takes no text that is only whitespace
    body = unchanged(chatReqOpenAItoBedrock, req)
    assert read_back(body) == flat(req["messages"])
    assert body.get("inferenceConfig", {}).get("maxTokens") == req.get("max_completion_tokens")
    if body["messages"] and body["messages"][0]["role"] == "user":
        legal(body)


def converse(answer: Json) -> Json:
    """A hub answer as Converse tells it."""
    choice, spent = answer["choices"][0], answer["usage"]
    message, content = choice["message"], []
    rest = message.get("reasoning_content", "")
    for block in message.get("thinking_blocks", ()):
        if block["type"] == "redacted_thinking":
            content.append({"reasoningContent": {"redactedContent": block["data"]}})
        else:
            rest = rest.removeprefix(block["thinking"])
            content.append({"reasoningContent": {"reasoningText": {name: block[x] for name, x in THOUGHT}}})
    if rest:
        content.append({"reasoningContent": {"reasoningText": {"text": rest}}})
    content += [{"text": message["content"]}] if message["content"] else []
    for call in message.get("tool_calls", ()):
        use = {"toolUseId": call["id"], "name": call["function"]["name"], "input": json.loads(call["function"]["arguments"])}
        content.append({"toolUse": use})
    cached = spent["prompt_tokens_details"]["cached_tokens"]
    counts = {"inputTokens": spent["prompt_tokens"] - cached, "cacheReadInputTokens": cached}
    reason = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "content_filtered"}
    usage = {**counts, "outputTokens": spent["completion_tokens"], "totalTokens": spent["total_tokens"]}
    told_by = {"output": {"message": {"role": "assistant", "content": content}}, "usage": usage}
    return {**told_by, "stopReason": reason[choice["finish_reason"]]}


THOUGHT = (("text", "thinking"), ("signature", "signature"))


def parsed(answer: Json) -> Json:
    """An answer with its tool arguments as objects, as JSON text has no one form, and without counts that Converse has not."""
    answer = copy.deepcopy(answer)
    for choice in answer["choices"]:
        for call in choice["message"].get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    answer["usage"]["completion_tokens_details"]["reasoning_tokens"] = 0
    return answer


def told(answer: Json) -> list[Json]:
    return [{name: {**payload, "p": "pad"}} for name, payload in events(answer)]


@given(hub_answers(refusals=False))
@settings(max_examples=150)
def test_an_answer_comes_back_as_it_was_whole_and_streamed(answer: Json) -> None:
    cfg = {**CFG, "request": {"model": answer["model"], "stream_options": {"include_usage": True}}}
    there = converse(answer)
    assert parsed(unchanged(chatAnsBedrocktoOpenAI, there, cfg)) == parsed(answer)
    streamed = hub.fold(hub.DIALECT.grammar(chatStreamBedrocktoOpenAI(told(there), cfg), cfg))
    assert parsed(streamed) == parsed(answer)
    assert unchanged(chatStreamBedrocktoOpenAI, told(there), cfg)


@pytest.mark.parametrize("name", ["say hello", "call tool", "call empty", "think first"])
def test_odd_events_are_errors_or_harmless(name: str) -> None:
    good = told(answered({"messages": [said("user", [{"text": name}])], "toolConfig": {"tools": []}}))
    for stream in mutations(good):
        try:
            for chunk in hub.DIALECT.grammar(chatStreamBedrocktoOpenAI(stream, CFG), CFG):
                assert isinstance(chunk, dict)
        except ProxyError:
            continue


JUNK = st.sampled_from((None, 7, "x", [], {}, [7], {"a": 7}, True))
ANSWER = answered({"messages": [said("user", [{"text": "think first"}])]})


@given(st.dictionaries(st.sampled_from(("output", "stopReason", "usage", "additionalModelResponseFields", "new")), JUNK), JUNK)
@settings(max_examples=200)
def test_odd_fields_of_an_answer_never_crash(odd: Json, block: Any) -> None:
    content = [block, {"toolUse": block}, {"reasoningContent": block}, {"citationsContent": block}, {"text": block}]
    for answer in ({**ANSWER, **odd}, {**ANSWER, "output": {"message": {"content": content}}}):
        try:
            chatAnsBedrocktoOpenAI(answer, CFG)
        except BackendError:
            continue


# --- the double is as strict as the service


@pytest.mark.parametrize(
    "broken",
    [
        {"messages": []},
        {"model": "x"},
        {"messages": [said("assistant", [{"text": "x"}])]},
        {"messages": [said("user", [{"text": "x"}]), said("user", [{"text": "y"}])]},
        {"messages": [said("user", [{"text": " "}])]},
        {"messages": [said("user", [{"text": "x", "image": {}}])]},
        {"messages": [said("user", [{"type": "text", "text": "x"}])]},
        {"messages": [said("user", [{"image": {"format": "bmp", "source": {"bytes": "aGk="}}}])]},
        {"messages": [said("user", [{"image": {"format": "png", "source": {"bytes": "?"}}}])]},
        {"messages": [said("user", [{"document": {"format": "pdf", "name": "a", "source": {"bytes": "aGk="}}}])]},
        {"messages": [said("user", [{"toolResult": {"toolUseId": "t", "content": []}}])]},
        {
            "messages": [
                said("user", [{"text": "x"}]),
                said("assistant", [{"toolUse": {"toolUseId": "?", "name": "f", "input": {}}}]),
            ]
        },
        {"inferenceConfig": {"temperature": 1.5}},
        {"inferenceConfig": {"maxTokens": "7"}},
        {"inferenceConfig": {"topK": 5}},
        {"toolConfig": {"tools": []}},
        {"toolConfig": {"tools": [{"toolSpec": {"name": "f"}}]}},
        {"toolConfig": {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": {}}}}], "toolChoice": {"none": {}}}},
        {"additionalModelResponseFieldPaths": ["/x"] * 11},
        {"serviceTier": {"type": "auto"}},
        {"requestMetadata": {"a": "ü"}},
    ],
)
def test_the_double_refuses_what_the_service_refuses(broken: Json) -> None:
    good = {"messages": [said("user", [{"text": "x"}])]}
    assert legal(good) == good
    with pytest.raises(Refusal):
        legal({**good, **broken})


# --- errors, embeddings, the record


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (429, {"message": "Too many requests"}, (429, "Too many requests", "rate_limit_error")),
        (400, {"message": "Malformed input"}, (400, "Malformed input", "invalid_request_error")),
        (403, {"message": "no access"}, (403, "no access", "permission_error")),
        (404, {"Message": "no model"}, (404, "no model", "not_found_error")),
        (408, {"message": "too slow"}, (504, "too slow", "timeout_error")),
        (424, {"message": "failed", "originalMessage": "why"}, (502, "failed: why", "api_error")),
        (503, {}, (503, "the backend answered 503", "overloaded_error")),
        (500, "an html page", (500, "an html page", "api_error")),
        (400, {"__type": "com.amazon#ThrottlingException"}, (429, "ThrottlingException", "rate_limit_error")),
        (502, None, (502, "the backend answered 502", "api_error")),
        (502, {"message": 7, "__type": 7}, (502, "the backend answered 502", "api_error")),
    ],
)
def test_errors_are_read_whatever_they_hold(status: int, body: Any, expected: tuple[int, str, str]) -> None:
    error = parse_error(status, body)
    assert (error.status, error.message, error.kind) == expected


def test_titan_embeds_one_text_and_cohere_several() -> None:
    titan, cohere = "amazon.titan-embed-text-v2:0", "cohere.embed-english-v3"
    body = embedReqOpenAItoBedrock({"model": "alias", "input": ["hi"], "dimensions": 256}, {"model": titan})
    assert body == {"inputText": "hi", "dimensions": 256}
    answer = embedAnsBedrocktoOpenAI({"embedding": [1.0], "inputTextTokenCount": 3}, {"request": {"model": "alias"}})
    assert (answer["data"][0]["embedding"], answer["usage"]["prompt_tokens"], answer["model"]) == ([1.0], 3, "alias")
    assert embedReqOpenAItoBedrock({"model": cohere, "input": ["a", "b"]})["texts"] == ["a", "b"]
    for vectors in ([[1.0], [2.0]], {"float": [[1.0], [2.0]]}):
        told_by = embedAnsBedrocktoOpenAI({"embeddings": vectors})
        assert [item["embedding"] for item in told_by["data"]] == [[1.0], [2.0]]
    for wrong in ({"model": titan, "input": ["a", "b"]}, {"model": CLAUDE, "input": "a"}, {"model": titan, "input": [[1, 2]]}):
        with pytest.raises(BadRequest):
            embedReqOpenAItoBedrock(wrong)
    for odd in (None, {}, {"embeddings": 7}, {"embedding": "x"}):
        with pytest.raises(BackendError):
            embedAnsBedrocktoOpenAI(odd)


def test_every_function_of_the_dialect_can_be_found_by_name() -> None:
    names = ("chatReqOpenAItoBedrock", "chatAnsBedrocktoOpenAI", "chatStreamBedrocktoOpenAI", "embedReqOpenAItoBedrock")
    assert all(mapper(name) is getattr(bedrock, name) for name in names)
    assert load("bedrock") is DIALECT
    assert scenario({"messages": [said("user", [{"text": "call tool"}])]}) == "call tool"


# --- real clients, a real proxy, the double


@pytest.fixture(scope="module")
def double() -> Iterator[BedrockDouble]:
    with BedrockDouble() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(double: BedrockDouble, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    target = {"url": double.url, "dialect": "bedrock", "aws": {"region": "us-east-1"}, "model": PROFILE}
    models = {"titan": {"target": "a", "model": "amazon.titan-embed-text-v2:0"}}
    guarded = {
        "path": "/model/{model}/converse",
        "stream_path": "/model/{model}/converse-stream",
        "in": ["chatReqOpenAItoBedrock", "withGuardrail"],
        "out": "chatAnsBedrocktoOpenAI",
        "stream": "chatStreamBedrocktoOpenAI",
    }
    own = {**target, "route": "/guarded", "mapping": {"/chat/completions": guarded}}
    config = json.dumps({"targets": {"default": "a", "a": target, "guarded": own}, "models": models})
    env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    files = {"mappers.py": GUARDRAIL}
    with Proxy(tmp_path_factory.mktemp("bedrock"), config, env=env, files=files) as running:
        yield running


GUARDRAIL = """
def withGuardrail(ip, cfg={}):
    return {**ip, "guardrailConfig": {"guardrailIdentifier": "abc123", "guardrailVersion": "1"}}
"""


def test_a_mapper_of_ones_own_adds_what_no_client_can_say(proxy: Proxy, double: BedrockDouble) -> None:
    client = openai.OpenAI(base_url=proxy.url + "/guarded/v1", api_key=PROXY_KEY, max_retries=0)
    messages: Any = [said("user", "guard this")]
    for stream in (False, True):
        answer: Any = client.chat.completions.create(model="x", messages=messages, stream=stream)
        chunks = list(answer) if stream else []
        choice = next(each.choices[0] for each in reversed(chunks) if each.choices) if stream else answer.choices[0]
        assert choice.finish_reason == "content_filter"
        assert double.requests[-1][3]["guardrailConfig"]["guardrailIdentifier"] == "abc123"


def ask_openai(proxy: Proxy, words: str, **more: Any) -> Any:
    client = openai.OpenAI(base_url=proxy.url + "/v1", api_key=PROXY_KEY, max_retries=0)
    return client.chat.completions.create(model="gpt-x", messages=[{"role": "user", "content": words}], **more)


def ask_anthropic(proxy: Proxy, words: str, stream: bool = False, **more: Any) -> list[Json]:
    """The content of the message, as the SDK tells it or puts it together."""
    client = anthropic.Anthropic(base_url=proxy.url, api_key=PROXY_KEY, max_retries=0)
    asked: Json = {"model": "claude-x", "max_tokens": 99, "messages": [{"role": "user", "content": words}], **more}
    if not stream:
        return [block.model_dump() for block in client.messages.create(**asked).content]
    with client.messages.stream(**asked) as told_by:
        return [block.model_dump() for block in told_by.get_final_message().content]


def ask_gemini(proxy: Proxy, words: str, stream: bool = False, **config: Any) -> Any:
    client = genai.Client(api_key=PROXY_KEY, http_options=genai_types.HttpOptions(base_url=proxy.url))
    KEPT.append(client)
    call = client.models.generate_content_stream if stream else client.models.generate_content
    return call(model="gemini-x", contents=words, config=config or None)


KEPT: list[Any] = []  # clients of Gemini's that still stream: one that nobody holds closes its connection
SCHEMA: Json = {"type": "object", "properties": {"city": {"type": "string"}}}


def test_openais_client_gets_text_tools_and_usage(proxy: Proxy, double: BedrockDouble) -> None:
    whole = ask_openai(proxy, "say hello")
    assert (whole.choices[0].message.content, whole.model, whole.usage.prompt_tokens) == (HELLO, "gpt-x", 20)
    assert double.requests[-1][1] == f"/model/{PROFILE.replace(':', '%3A').replace('/', '%2F')}/converse"
    chunks = list(ask_openai(proxy, "say hello", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == HELLO
    assert len(chunks) > 4
    assert (chunks[-1].usage.completion_tokens, double.requests[-1][1][-16:]) == (9, "/converse-stream")
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]
    calls = ask_openai(proxy, "call two tools", tools=tools).choices[0].message.tool_calls
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Rome"]
    chunks = list(ask_openai(proxy, "call two tools", tools=tools, stream=True))
    folded = hub.fold(chunk.model_dump(exclude_none=True) for chunk in chunks)["choices"][0]
    assert [json.loads(call["function"]["arguments"])["city"] for call in folded["message"]["tool_calls"]] == ["Paris", "Rome"]
    assert folded["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_client_gets_text_tools_and_thinking(proxy: Proxy, stream: bool) -> None:
    content = ask_anthropic(proxy, "think first", stream)
    assert [block["type"] for block in content] == ["thinking", "redacted_thinking", "text"]
    assert content[0]["signature"].startswith("sig")
    content = ask_anthropic(proxy, "call tool", stream, tools=[{"name": "get_weather", "input_schema": SCHEMA}])
    assert (content[0]["text"], content[1]["input"]) == ("Let me look.", {"city": "Paris"})


def test_geminis_client_gets_text_and_tools(proxy: Proxy) -> None:
    assert ask_gemini(proxy, "say hello").text == HELLO
    assert "".join(piece.text or "" for piece in ask_gemini(proxy, "say hello", stream=True)) == HELLO
    declared = {"function_declarations": [{"name": "get_weather", "parameters_json_schema": SCHEMA}]}
    call = ask_gemini(proxy, "call tool", tools=[declared]).function_calls[0]
    assert (call.name, call.args) == ("get_weather", {"city": "Paris"})
    pieces = list(ask_gemini(proxy, "call tool", tools=[declared], stream=True))
    assert [call.args for piece in pieces for call in piece.function_calls or ()] == [{"city": "Paris"}]


def test_throttling_is_each_apis_own_429(proxy: Proxy) -> None:
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError, match="failed with 429 as asked"):
            ask_openai(proxy, "fail 429", stream=stream)
        with pytest.raises(anthropic.RateLimitError, match="failed with 429 as asked"):
            ask_anthropic(proxy, "fail 429", stream)
        with pytest.raises(genai_errors.ClientError, match="failed with 429 as asked") as caught:
            list(ask_gemini(proxy, "fail 429", stream=stream))
        assert caught.value.code == 429


def test_an_exception_that_comes_first_in_a_stream_still_is_a_status(proxy: Proxy) -> None:
    with pytest.raises(openai.RateLimitError, match="please wait"):
        ask_openai(proxy, "fail stream", stream=True)


@pytest.mark.parametrize("broken", ["error stream", "cut stream", "bend stream"])
def test_a_stream_that_breaks_ends_in_each_apis_own_error(proxy: Proxy, broken: str) -> None:
    with pytest.raises(openai.APIError):
        list(ask_openai(proxy, broken, stream=True))
    with pytest.raises(anthropic.APIStatusError):
        ask_anthropic(proxy, broken, stream=True)
    pieces = requests.post(
        f"{proxy.url}/v1beta/models/x:streamGenerateContent?alt=sse",
        json={"contents": [{"role": "user", "parts": [{"text": broken}]}]},
        headers={"x-goog-api-key": PROXY_KEY},
        timeout=20,
    ).text.split("\n\n")
    assert json.loads([piece for piece in pieces if piece.strip()][-1].strip().removeprefix("data:"))["error"]["code"] == 502


def test_a_failed_tool_call_of_the_model_is_an_error(proxy: Proxy) -> None:
    with pytest.raises(openai.APIStatusError, match="tool call cannot be parsed"):
        ask_openai(proxy, "malformed tool")


def test_a_client_that_leaves_ends_the_stream_upstream(proxy: Proxy, double: BedrockDouble) -> None:
    body = {"model": "x", "stream": True, "messages": [said("user", "hang stream")]}
    url = proxy.url + "/v1/chat/completions"
    with requests.post(url, json=body, headers=proxy.headers, stream=True, timeout=20) as reply:
        pieces = reply.iter_content(1)
        assert next(pieces)
        assert not double.left.is_set()
    assert double.left.wait(10)


def test_embeddings_completions_counts_and_models(proxy: Proxy) -> None:
    client = openai.OpenAI(base_url=proxy.url + "/v1", api_key=PROXY_KEY, max_retries=0)
    assert client.embeddings.create(model="titan", input="hi").data[0].embedding == [2.5, 1.0]
    assert client.completions.create(model="x", prompt="say hello").choices[0].text == HELLO
    assert [model.id for model in client.models.list()] == ["titan"]
    counted = anthropic.Anthropic(base_url=proxy.url, api_key=PROXY_KEY).messages.count_tokens(
        model="x", messages=[{"role": "user", "content": "how many?"}]
    )
    assert counted.input_tokens > 3
