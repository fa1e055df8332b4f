"""The demo answers like an OpenAI server, the same each time, and refuses what such a server refuses."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import jsonschema
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from proxy.adapters.demo import Demo
from proxy.adapters.sample import sample
from proxy.dialects.openai import fold, grammar
from proxy.wire import read_sse

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}, "days": {"type": "integer", "minimum": 3}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*"abc", "type", "$ref", "items"]), inner, max_size=3)
    ),
    max_leaves=12,
)


def session() -> requests.Session:
    own = requests.Session()
    own.trust_env = False
    own.mount("demo://", Demo())
    return own


def ask(path: str, body: Any = None, method: str = "POST") -> requests.Response:
    data = json.dumps(body).encode() if body is not None else None
    return session().request(method, f"demo://here/v1{path}", data=data)


def chat(said: str = "Hello there", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": said}], **fields}


def whole(said: str = "Hello there", **fields: Any) -> dict[str, Any]:
    answer = ask("/chat/completions", chat(said, **fields))
    assert answer.status_code == 200, answer.text
    ChatCompletion.model_validate(answer.json())
    return dict(answer.json())


def pieces(path: str, body: Any) -> list[bytes]:
    """The pieces as the relay reads them."""
    request = requests.PreparedRequest()
    request.method, request.url, request.headers = "POST", f"demo://here/v1{path}", {}  # type: ignore[assignment]
    request.body = json.dumps(body).encode()
    raw = Demo().send(request).raw
    return list(iter(raw.read1, b""))


def text_of(answer: dict[str, Any], index: int = 0) -> str:
    return str(answer["choices"][index]["message"]["content"])


def error_of(answer: requests.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return dict(answer.json()["error"])


# --- chat


def test_a_newcomer_is_told_who_answers_and_what_they_said() -> None:
    said = text_of(whole("  Is anybody\nthere?  "))
    assert "mooltiproxy's demo" in said
    assert "“Is anybody there?”" in said
    assert "config.yaml" in said


def test_only_a_short_part_of_a_long_message_comes_back() -> None:
    said = text_of(whole("long " * 1000))
    assert len(said) < 600
    assert "…”" in said


def test_the_last_user_message_is_the_one_that_is_answered() -> None:
    messages = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "ok"}]
    messages.append({"role": "user", "content": [{"type": "text", "text": "second"}]})  # type: ignore[dict-item]
    said = text_of(ask("/chat/completions", {"messages": messages}).json())
    assert "“second”" in said
    assert "first" not in said


@pytest.mark.parametrize(
    "fields", [{}, {"n": 3}, {"max_tokens": 5}, {"stop": "demo"}, {"tools": [WEATHER], "tool_choice": "required"}]
)
def test_the_same_request_gets_the_same_answer_and_a_stream_tells_it_too(fields: dict[str, Any]) -> None:
    answer = whole(**fields)
    assert whole(**fields) == answer
    body = chat(stream=True, stream_options={"include_usage": True}, **fields)
    sent = pieces("/chat/completions", body)
    assert sent == pieces("/chat/completions", body)
    events = list(grammar(read_sse(sent), {"request": body}))
    for event in events:
        ChatCompletionChunk.model_validate(event)
    assert fold(events) == answer


def test_different_requests_have_different_ids() -> None:
    assert whole("one")["id"] != whole("two")["id"]


def test_a_stream_comes_a_word_at_a_time_and_ends_with_done() -> None:
    sent = pieces("/chat/completions", chat(stream=True))
    assert len(sent) > 50
    assert all(piece.startswith(b"data: ") and piece.endswith(b"\n\n") and piece.count(b"\n\n") == 1 for piece in sent)
    assert sent[-1] == b"data: [DONE]\n\n"


def test_a_stream_has_usage_only_when_it_was_asked_for() -> None:
    assert b'"usage"' not in b"".join(pieces("/chat/completions", chat(stream=True)))
    *_, last, done = pieces("/chat/completions", chat(stream=True, stream_options={"include_usage": True}))
    assert json.loads(last[6:])["choices"] == []
    assert json.loads(last[6:])["usage"]["completion_tokens"] > 0
    assert done == b"data: [DONE]\n\n"


def test_max_tokens_cuts_the_answer_and_says_length() -> None:
    full, cut = whole(), whole(max_tokens=7)
    assert text_of(full).startswith(text_of(cut))
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 7
    assert full["choices"][0]["finish_reason"] == "stop"
    exact = whole(max_completion_tokens=full["usage"]["completion_tokens"])
    assert exact["choices"] == full["choices"]


@pytest.mark.parametrize("stop", ["model", ["nowhere to be found", "request", "model"]])
def test_a_stop_ends_the_text_before_it(stop: Any) -> None:
    answer = whole(stop=stop)
    assert text_of(answer) == text_of(whole()).partition("model")[0]
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_n_choices_differ_and_are_all_paid_for() -> None:
    answer = whole(n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({text_of(answer, i) for i in range(3)}) == 3
    assert answer["usage"]["completion_tokens"] > 2 * whole()["usage"]["completion_tokens"]
    assert answer["usage"]["prompt_tokens"] == whole()["usage"]["prompt_tokens"]


def test_the_answer_names_the_model_that_was_asked_for() -> None:
    assert whole(model="gpt-4o")["model"] == "gpt-4o"
    assert whole()["model"] == "demo"


# --- tools and JSON


@pytest.mark.parametrize(
    ("said", "fields", "called"),
    [
        ("please use get_weather for Paris", {}, "get_weather"),
        ("what does the CLOCK say", {}, "clock"),
        ("use a tool", {}, "get_weather"),
        ("hello", {"tool_choice": "required"}, "get_weather"),
        ("hello", {"tool_choice": {"type": "function", "function": {"name": "clock"}}}, "clock"),
        ("hello", {}, None),
        ("a toolbox", {}, None),
        ("use a tool", {"tool_choice": "none"}, None),
    ],
)
def test_a_tool_is_called_when_the_message_asks_for_it(said: str, fields: dict[str, Any], called: str | None) -> None:
    choice = whole(said, tools=[WEATHER, CLOCK], **fields)["choices"][0]
    if called is None:
        assert choice["finish_reason"] == "stop"
        assert "tool_calls" not in choice["message"]
        return
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == [called]


def test_the_arguments_fit_the_parameters_and_hold_nothing_that_the_client_said() -> None:
    call = whole("get_weather rm -rf /", tools=[WEATHER])["choices"][0]["message"]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"city": "demo", "unit": "C", "days": 3}


def test_a_tool_result_is_answered_with_words_that_use_it() -> None:
    message = whole("use a tool", tools=[WEATHER])["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "18 degrees, use a tool"}
    body = chat("use a tool", tools=[WEATHER], tool_choice="required")
    body["messages"] += [message, result]
    answer = ask("/chat/completions", body).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "“18 degrees, use a tool”" in text_of(answer)


def test_json_is_answered_where_json_is_wanted() -> None:
    assert json.loads(text_of(whole('say "hi"', response_format={"type": "json_object"})))["you_said"] == 'say "hi"'


SCHEMAS = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 2},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 3},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "Node": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}},
            "Kind": {"enum": ["a", "b"]},
        },
        "type": "object",
        "properties": {
            "root": {"$ref": "#/$defs/Node"},
            "kind": {"$ref": "#/$defs/Kind"},
            "at": {"type": "string", "format": "date"},
        },
        "required": ["root", "kind"],
    },
    {
        "type": "object",
        "properties": {"p": {"type": "number", "minimum": 0, "maximum": 0.5}, "ok": {"type": ["boolean", "null"]}},
    },
    {"allOf": [{"type": "object", "properties": {"x": {"type": "integer", "exclusiveMinimum": 6.5}}, "required": ["x"]}]},
    {
        "type": "array",
        "prefixItems": [{"const": 1}, {"type": "null"}],
        "items": {"type": "string", "minLength": 9},
        "minItems": 4,
    },
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_structured_answers_fit_their_schema(schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    jsonschema.validate(json.loads(text_of(whole(response_format=form))), schema)


@given(JSON_VALUES)
def test_no_schema_breaks_the_demo(schema: Any) -> None:
    assert sample(schema) == sample(schema)


def test_a_schema_that_grows_without_end_gives_a_small_value() -> None:
    node = {"type": "object", "properties": {name: {"$ref": "#"} for name in "abcdefgh"}, "required": list("abcdefgh")}
    assert len(json.dumps(sample(node))) < 10_000


# --- completions, embeddings, models


def test_completions_are_answered_and_echoed_whole_and_streamed() -> None:
    body = {"prompt": ["Once upon a time"], "max_tokens": 6, "echo": True, "model": "m"}
    answer = Completion.model_validate(ask("/completions", body).json())
    assert answer.choices[0].text.startswith("Once upon a time")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    events = list(grammar(read_sse(pieces("/completions", {**body, "stream": True})), {"request": body, "kind": "text"}))
    assert "".join(event["choices"][0]["text"] for event in events) == answer.choices[0].text
    assert {event["id"] for event in events} == {answer.id}


@pytest.mark.parametrize("dimensions", [None, 1, 8, 1536])
def test_embeddings_are_unit_vectors_of_the_wanted_size(dimensions: int | None) -> None:
    fields = {} if dimensions is None else {"dimensions": dimensions}
    answer = CreateEmbeddingResponse.model_validate(ask("/embeddings", {"input": ["one", "two", "one"], **fields}).json())
    one, two, again = (item.embedding for item in answer.data)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert len(one) == len(two) == (dimensions or 8)
    assert all(math.isclose(math.hypot(*vector), 1) for vector in (one, two))
    assert one == again
    assert dimensions == 1 or one != two
    assert answer.usage.prompt_tokens == 3


def test_base64_embeddings_hold_the_same_numbers() -> None:
    floats = ask("/embeddings", {"input": "one"}).json()["data"][0]["embedding"]
    packed = ask("/embeddings", {"input": "one", "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert struct.unpack("<8f", base64.b64decode(packed)) == pytest.approx(floats, abs=1e-6)


@pytest.mark.parametrize(("tokens", "count"), [([1, 2, 3], 1), ([[1, 2], [3]], 2)])
def test_token_arrays_can_be_embedded(tokens: Any, count: int) -> None:
    answer = ask("/embeddings", {"input": tokens}).json()
    assert len(answer["data"]) == count
    assert answer["usage"]["total_tokens"] == 3


def test_the_one_model_is_listed_and_found() -> None:
    listed = ask("/models", method="GET").json()["data"]
    assert [Model.model_validate(item).id for item in listed] == ["demo"]
    assert ask("/models/demo", method="GET").json() == listed[0]
    fault = error_of(ask("/models/no/such%20model", method="GET"), 404)
    assert (fault["param"], fault["code"]) == ("model", "model_not_found")
    assert "no/such model" in fault["message"]


# --- what is refused, and HTTP


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/chat/completions", {}, "messages"),
        ("/chat/completions", {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ("/chat/completions", chat(max_tokens=0), "max_tokens"),
        ("/chat/completions", chat(max_completion_tokens=-1), "max_completion_tokens"),
        ("/chat/completions", chat(n=0), "n"),
        ("/chat/completions", chat(n=10_000), "n"),
        ("/chat/completions", chat(temperature=3), "temperature"),
        ("/chat/completions", chat(stop=3), "stop"),
        ("/chat/completions", chat(stream="yes"), "stream"),
        (
            "/chat/completions",
            chat(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "x"}}),
            "tool_choice",
        ),
        ("/completions", {}, "prompt"),
        ("/completions", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("/embeddings", {}, "input"),
        ("/embeddings", {"input": ["x", ""]}, "input[1]"),
        ("/embeddings", {"input": [True]}, "input[0]"),
        ("/embeddings", {"input": "x", "dimensions": 0}, "dimensions"),
        ("/embeddings", {"input": "x", "encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_a_bad_body_is_a_400_that_names_the_field(path: str, body: Any, param: str) -> None:
    assert error_of(ask(path, body), 400)["param"] == param


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"messages": [], "messages": []}'])
@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings"])
def test_what_is_no_json_object_is_a_400(path: str, data: bytes) -> None:
    error_of(session().post(f"demo://here/v1{path}", data=data), 400)


def test_unknown_paths_are_404_and_wrong_methods_405() -> None:
    assert "/v1/nowhere" in error_of(ask("/nowhere", {}), 404)["message"]
    refused = ask("/chat/completions", method="DELETE")
    error_of(refused, 405)
    assert refused.headers["allow"] == "POST"
    assert ask("/models", method="OPTIONS").headers["allow"] == "GET"


@pytest.mark.parametrize("base", ["demo://", "demo://x", "demo:///v1", "demo://x/y/v1"])
def test_any_base_url_does_with_or_without_a_version(base: str) -> None:
    assert session().post(base + "/chat/completions?api-version=1", data=json.dumps(chat())).status_code == 200


def test_a_head_has_the_headers_of_its_get_and_no_body() -> None:
    got, head = ask("/models", method="GET"), ask("/models", method="HEAD")
    assert head.headers == got.headers
    assert int(got.headers["content-length"]) == len(got.content)
    assert (head.status_code, head.content) == (200, b"")


def test_a_body_may_come_in_pieces() -> None:
    data = json.dumps(chat()).encode()
    answer = session().post("demo://here/v1/chat/completions", data=iter([data[:9], data[9:]]))
    assert answer.json() == whole()


@pytest.mark.parametrize("odd", ["日本語", "half \ud83d an emoji", "a\u0000b", "{braces} %s"])
def test_odd_text_survives(odd: str) -> None:
    assert f"“{odd}”" in text_of(whole(odd))


def test_nothing_comes_after_a_stream_was_closed() -> None:
    answer = session().post("demo://here/v1/chat/completions", data=json.dumps(chat(stream=True)), stream=True)
    assert answer.raw.read1()
    answer.close()
    assert answer.raw.read1() == b""
