"""proxy/dialects/tgi.py: prompts to text-generation-inference and back, and HF's own clients in front."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from huggingface_hub import InferenceClient
from huggingface_hub.errors import OverloadedError
from hypothesis import given, settings
from hypothesis import strategies as st
from text_generation import Client
from text_generation.errors import ValidationError as HFValidationError

from proxy import wire
from proxy.dialects import load, mapper, route_of, tgi
from proxy.dialects.openai import fold
from proxy.dialects.tgi import (
    chatAnsTGItoOpenAI,
    chatReqOpenAItoTGI,
    chatStreamTGItoOpenAI,
    countAnsTGItoOpenAI,
    countReqOpenAItoTGI,
    modelsAnsTGItoOpenAI,
    textAnsOpenAItoTGI,
    textAnsTGItoOpenAI,
    textReqOpenAItoTGI,
    textReqTGItoOpenAI,
    textStreamOpenAItoTGI,
    textStreamTGItoOpenAI,
)
from proxy.errors import BackendError, BadRequest, MapperError, ProxyError
from proxy.prompts import fromTemplate, llama2_chat
from tests.doubles.tgi import Refusal, TGIDouble, check
from tests.laws import mutations

pytestmark = pytest.mark.filterwarnings("ignore:The `dict` method is deprecated")
steady = settings(deadline=None)  # the machine may be busy

ID = "x" * 28
HUMAN = {"user": "\n### HUMAN:\n", "assistant": "\n### RESPONSE:\n"}
CFG = {"id": ID, "now": 1700000000, "prompter": fromTemplate, "template": HUMAN}
HELLO = {"model": "m", "messages": [{"role": "user", "content": "say hello"}]}


def parameters(body: dict[str, Any], cfg: dict[str, Any] = CFG) -> dict[str, Any]:
    return chatReqOpenAItoTGI({**HELLO, **body}, cfg)["parameters"]


def answer(text: str, reason: str = "eos_token", made: int = 3, **details: Any) -> dict[str, Any]:
    return {"generated_text": text, "details": {"finish_reason": reason, "generated_tokens": made, "prefill": [], **details}}


def frames(pieces: list[str], reason: str = "eos_token", input_length: int = 5) -> list[dict[str, Any]]:
    """What /generate_stream sends for these tokens; an end-of-text is a special token."""
    tokens = [tgi_token(piece) for piece in pieces]
    tokens += [tgi_token("</s>", special=True)] if reason == "eos_token" else []
    out: list[dict[str, Any]] = [
        {"index": i, "token": token, "generated_text": None, "details": None} for i, token in enumerate(tokens, 1)
    ]
    told = {"finish_reason": reason, "generated_tokens": len(tokens), "seed": None, "input_length": input_length}
    return [*out[:-1], {**out[-1], "generated_text": "".join(pieces), "details": told}]


def tgi_token(text: str, special: bool = False) -> dict[str, Any]:
    return {"id": 9, "text": text, "logprob": -0.5, "special": special}


# --- requests


def test_a_chat_becomes_a_prompt_with_its_parameters() -> None:
    body = chatReqOpenAItoTGI({**HELLO, "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3}, CFG)
    assert body == {
        "inputs": "You are a helpful assistant.\n### HUMAN:\nsay hello\n### RESPONSE:\n",
        "parameters": {
            "details": True,
            "decoder_input_details": True,
            "do_sample": True,
            "temperature": 0.5,
            "top_p": 0.9,
            "max_new_tokens": 7,
            "stop": ["\n### HUMAN:\n"],
            "seed": 3,
        },
    }


def test_without_a_prompter_the_prompt_is_chatml() -> None:
    body = chatReqOpenAItoTGI(HELLO)
    assert body["inputs"] == "<|im_start|>user\nsay hello<|im_end|>\n<|im_start|>assistant\n"
    assert body["parameters"]["stop"] == ["<|im_end|>"]


def test_a_prompter_may_give_one_stop_as_a_string() -> None:
    assert parameters({}, {"prompter": lambda messages, cfg: ("p", "END")})["stop"] == ["END"]


def test_text_parts_reach_a_prompter_as_a_string() -> None:
    seen: list[Any] = []

    def prompter(messages: list[dict[str, Any]], cfg: Any) -> tuple[str, list[str]]:
        seen.extend(message["content"] for message in messages)
        return "p", []

    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "result"},
    ]
    chatReqOpenAItoTGI({"messages": said}, {"prompter": prompter})
    assert seen == ["ab", "", "result"]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 3, "typical_p": 0.5}, {"do_sample": False}),
        ({"top_p": 0}, {"do_sample": False}),
        ({}, {"do_sample": True}),
        ({"temperature": 1, "top_p": 1, "typical_p": 1, "top_k": 0}, {"do_sample": True, "temperature": 1}),
        ({"temperature": None, "top_p": None, "seed": None, "stop": None}, {"do_sample": True}),
        ({"frequency_penalty": 0, "repetition_penalty": 0}, {"do_sample": True}),
        (
            {"frequency_penalty": -1.5, "repetition_penalty": 1.2},
            {"do_sample": True, "frequency_penalty": -1.5, "repetition_penalty": 1.2},
        ),
        ({"top_k": 5, "typical_p": 0.5}, {"do_sample": True, "top_k": 5, "typical_p": 0.5}),
        ({"seed": -1}, {"do_sample": True, "seed": 2**64 - 1}),
        ({"max_completion_tokens": 9, "max_tokens": 4}, {"do_sample": True, "max_new_tokens": 9}),
        ({"max_tokens": -1}, {"do_sample": True}),
        ({"logprobs": True}, {"do_sample": True, "top_n_tokens": 1}),
        ({"logprobs": True, "top_logprobs": 4}, {"do_sample": True, "top_n_tokens": 4}),
    ],
)
def test_parameters_are_within_what_tgi_takes(given: dict[str, Any], sent: dict[str, Any]) -> None:
    made = parameters(given)
    del made["details"], made["decoder_input_details"], made["stop"]
    assert made == sent


def test_only_four_stops_are_sent_and_the_prompters_first_is_among_them() -> None:
    many = lambda messages, cfg: ("p", ["P1", "P2"])  # noqa: E731
    assert parameters({"stop": "A"}, {"prompter": many})["stop"] == ["P1", "A", "P2"]
    assert parameters({"stop": ["A", "B", "C", "D"]}, {"prompter": many})["stop"] == ["P1", "A", "B", "C"]
    assert parameters({"stop": ["P1", "P1"]}, {"prompter": many})["stop"] == ["P1", "P2"]
    assert "stop" not in parameters({"stop": []}, {"prompter": lambda messages, cfg: ("p", [])})


def test_a_stream_does_not_ask_for_the_prompts_tokens() -> None:
    assert "decoder_input_details" not in parameters({"stream": True})
    assert "decoder_input_details" not in parameters({}, {**CFG, "stream": True})
    assert parameters({"stream": True})["details"] is True


def test_only_a_body_for_the_root_path_says_whether_to_stream() -> None:
    streamed = {**HELLO, "stream": True}
    assert set(chatReqOpenAItoTGI(streamed, CFG)) == {"inputs", "parameters"}
    assert chatReqOpenAItoTGI(streamed, {**CFG, "path": "/"})["stream"] is True


def test_a_json_schema_is_a_grammar() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    assert parameters({"response_format": form})["grammar"] == {"type": "json", "value": schema}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tools"),
        ({"n": 2}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_would_lose_its_meaning_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parameters(body)
    assert refused.value.param == param
    assert refused.value.status == 400


def test_tools_that_must_not_be_called_are_no_fault() -> None:
    assert "stop" in parameters({"tools": [TOOL], "tool_choice": "none"})


def test_a_completion_keeps_its_prompt_as_it_is() -> None:
    body = textReqOpenAItoTGI({"prompt": ["once"], "temperature": 0, "echo": True, "stop": "x", "logprobs": 0, "best_of": None})
    assert body["inputs"] == "once"
    assert body["parameters"] == {
        "details": True,
        "decoder_input_details": True,
        "do_sample": False,
        "stop": ["x"],
        "top_n_tokens": 1,
        "return_full_text": True,
    }
    assert textReqOpenAItoTGI({"prompt": "p", "best_of": 2})["parameters"]["best_of"] == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": "a", "suffix": "z"}, "suffix"),
        ({"prompt": "a", "n": 3}, "n"),
        ({"prompt": "a", "stop": [1]}, "stop[0]"),
        ({"prompt": "a", "stop": 1}, "stop"),
    ],
)
def test_completions_that_tgi_cannot_do_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        textReqOpenAItoTGI(body)
    assert refused.value.param == param


NUMBERS = st.one_of(st.none(), st.floats(0, 2), st.integers(0, 2))
CHATS = st.fixed_dictionaries(
    {"messages": st.just(HELLO["messages"])},
    optional={
        "temperature": NUMBERS,
        "top_p": st.one_of(st.none(), st.floats(0, 1)),
        "typical_p": st.one_of(st.none(), st.floats(0, 1)),
        "top_k": st.one_of(st.none(), st.integers(-1, 100)),
        "seed": st.one_of(st.none(), st.integers(-(2**63), 2**63)),
        "max_tokens": st.one_of(st.none(), st.integers(-1, 100).filter(bool)),
        "frequency_penalty": st.one_of(st.none(), st.floats(-2, 2)),
        "repetition_penalty": st.one_of(st.none(), st.floats(0, 2)),
        "stop": st.one_of(st.none(), st.text(), st.lists(st.text(), max_size=6)),
        "stream": st.one_of(st.none(), st.booleans()),
        "logprobs": st.one_of(st.none(), st.booleans()),
        "user": st.text(),
        "presence_penalty": st.floats(-2, 2),
    },
)


@steady
@given(CHATS)
def test_whatever_a_client_sends_tgi_takes_it(body: dict[str, Any]) -> None:
    before = copy.deepcopy(body)
    made = chatReqOpenAItoTGI(body, CFG)
    assert body == before
    check(json.loads(json.dumps(made)), stream=bool(body.get("stream")), root=False)


# --- answers


def test_an_answer_is_a_chat_completion_with_usage_and_the_clients_model() -> None:
    said = answer(" Hello", "length", 2, prefill=[{"id": 1}] * 6)
    made = chatAnsTGItoOpenAI(said, {**CFG, "request": HELLO})
    assert made["id"] == f"chatcmpl-{ID}"
    assert made["created"] == 1700000000
    assert made["model"] == "m"
    assert made["choices"] == [{"index": 0, "message": {"role": "assistant", "content": " Hello"}, "finish_reason": "length"}]
    assert (made["usage"]["prompt_tokens"], made["usage"]["completion_tokens"]) == (6, 2)


def test_an_answer_in_a_list_is_read_too() -> None:
    assert chatAnsTGItoOpenAI([answer("a")], CFG)["choices"][0]["message"]["content"] == "a"


def test_the_prompt_is_estimated_where_the_server_does_not_count_it() -> None:
    assert chatAnsTGItoOpenAI(answer("a"), {**CFG, "request": HELLO})["usage"]["prompt_tokens"] > 0


def test_an_answer_without_details_is_an_answer() -> None:
    made = chatAnsTGItoOpenAI({"generated_text": "a", "details": None}, CFG)
    assert made["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in made


@pytest.mark.parametrize(
    ("reason", "finish"), [("stop_sequence", "stop"), ("eos_token", "stop"), ("length", "length"), ("new", "stop")]
)
def test_finish_reasons(reason: str, finish: str) -> None:
    assert chatAnsTGItoOpenAI(answer("a", reason), CFG)["choices"][0]["finish_reason"] == finish


def test_the_prompters_stop_is_cut_off_and_not_told() -> None:
    choice = chatAnsTGItoOpenAI(answer("Hi\n### HUMAN:\n", "stop_sequence"), {**CFG, "request": HELLO})["choices"][0]
    assert choice["message"]["content"] == "Hi"
    assert "stop_sequence" not in choice


def test_the_prompters_stop_is_cut_off_without_the_request_too() -> None:
    """As the ancestor did; llama2_chat needs no template for it."""
    for cfg in (CFG, {"prompter": llama2_chat}):
        stop = "\n### HUMAN:\n" if cfg is CFG else "[INST]"
        assert chatAnsTGItoOpenAI(answer(f"Hi{stop}", "stop_sequence"), cfg)["choices"][0]["message"]["content"] == "Hi"


def test_a_fifth_stop_of_the_client_is_applied_here() -> None:
    cfg = {**CFG, "request": {**HELLO, "stop": ["A", "B", "C", "D", "five"]}}
    choice = chatAnsTGItoOpenAI(answer("one two five six", "length"), cfg)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_sequence"]) == ("one two ", "stop", "five")


def test_the_stop_that_is_complete_first_cuts() -> None:
    cfg = {**CFG, "request": {**HELLO, "stop": ["bcd", "b", "abc"]}}
    assert chatAnsTGItoOpenAI(answer("xabcde"), cfg)["choices"][0]["message"]["content"] == "xa"


def test_logprobs_are_those_of_the_text_that_is_left() -> None:
    tokens = [tgi_token("He"), tgi_token("llo"), tgi_token("STOP"), tgi_token("</s>", special=True)]
    said = answer("HelloSTOP", "stop_sequence", 4, tokens=tokens, top_tokens=[[tgi_token("He")], [], [], []])
    request = {**HELLO, "logprobs": True, "stop": "STOP"}
    told = chatAnsTGItoOpenAI(said, {**CFG, "request": request})["choices"][0]["logprobs"]["content"]
    assert [(item["token"], item["logprob"], bytes(item["bytes"])) for item in told] == [
        ("He", -0.5, b"He"),
        ("llo", -0.5, b"llo"),
    ]
    assert [top["token"] for top in told[0]["top_logprobs"]] == ["He"]


def test_a_completion_has_the_completions_shape() -> None:
    request = {"prompt": "Once", "echo": True, "stop": ["."], "logprobs": 1, "model": "m"}
    said = answer("Once upon.", "stop_sequence", 2, tokens=[tgi_token(" upon"), tgi_token(".")])
    made = textAnsTGItoOpenAI(said, {"id": ID, "request": request})
    assert (made["id"], made["object"], made["model"]) == (f"cmpl-{ID}", "text_completion", "m")
    choice = made["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]["tokens"]) == ("Once upon", "stop", [" upon"])
    assert textAnsTGItoOpenAI(answer(" upon.", "stop_sequence"), {"request": request})["choices"][0]["text"] == "Once upon"


@pytest.mark.parametrize("ip", [None, [], {}, {"generated_text": 5}, "text", [{"details": {}}]])
def test_what_is_no_answer_is_a_backend_error(ip: Any) -> None:
    with pytest.raises(BackendError):
        chatAnsTGItoOpenAI(ip, CFG)


def test_an_error_inside_a_200_is_that_error() -> None:
    with pytest.raises(BackendError) as fault:
        chatAnsTGItoOpenAI({"error": "Model is overloaded", "error_type": "overloaded"}, CFG)
    assert fault.value.status == 429


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda item: st.lists(item, max_size=3), max_leaves=4
)


@steady
@given(st.dictionaries(st.sampled_from(["finish_reason", "generated_tokens", "prefill", "tokens", "top_tokens", "new"]), JUNK))
def test_unknown_details_never_crash(details: dict[str, Any]) -> None:
    said = {"generated_text": "abc", "details": details, "new": 1}
    chat = chatAnsTGItoOpenAI(said, {**CFG, "request": {**HELLO, "logprobs": True}})
    completed = textAnsTGItoOpenAI(said, {**CFG, "request": {"prompt": "p", "logprobs": 1}})
    assert chat["choices"][0]["finish_reason"] == completed["choices"][0]["finish_reason"]


# --- streams


def test_a_stream_speaks_as_soon_as_a_token_is_there() -> None:
    read: list[int] = []

    def backend() -> Iterator[dict[str, Any]]:
        for i, frame in enumerate(frames(["a", "b"])):
            read.append(i)
            yield frame

    first = next(iter(chatStreamTGItoOpenAI(backend(), CFG)))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "a"}
    assert read == [0]


def test_special_tokens_are_not_text() -> None:
    events = list(chatStreamTGItoOpenAI(frames(["Hi"]), CFG))
    assert fold(events)["choices"][0]["message"]["content"] == "Hi"
    assert events[-1]["usage"]["prompt_tokens"] == 5
    assert events[-1]["choices"] == []


def test_a_stop_that_tgi_was_not_told_ends_the_stream() -> None:
    read: list[str] = []

    def backend() -> Iterator[dict[str, Any]]:
        for frame in frames(["one", " fi", "ve", " six", " seven"]):
            read.append(frame["token"]["text"])
            yield frame

    whole = fold(chatStreamTGItoOpenAI(backend(), {**CFG, "request": {**HELLO, "stop": ["A", "B", "C", "D", "five"]}}))
    choice = whole["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"], choice["stop_sequence"]) == ("one ", "stop", "five")
    assert whole["usage"]["completion_tokens"] == 3
    assert read == ["one", " fi", "ve"]


ERRORS = [("overloaded", 429), ("validation", 422), ("generation", 424), ("incomplete_generation", 500)]


@pytest.mark.parametrize(("kind", "status"), [*ERRORS, ("new", 502)])
def test_an_error_event_is_raised_with_its_status(kind: str, status: int) -> None:
    with pytest.raises(BackendError, match="no luck") as fault:
        list(chatStreamTGItoOpenAI([*frames(["a", "b"])[:1], {"error": "no luck", "error_type": kind}], CFG))
    assert fault.value.status == status
    assert fault.value.source == "backend"


def test_a_stream_that_is_cut_has_no_finish() -> None:
    events = list(chatStreamTGItoOpenAI(frames(["a", "b"])[:2], CFG))
    assert fold(events)["choices"][0]["finish_reason"] is None
    assert list(textStreamTGItoOpenAI([], {})) == []


def test_a_streamed_completion_echoes_its_prompt_first() -> None:
    events = list(textStreamTGItoOpenAI(frames([" upon", " a"]), {"id": ID, "request": {"prompt": "Once", "echo": True}}))
    texts = [choice["text"] for event in events for choice in event["choices"]]
    assert "".join(texts) == "Once upon a"
    assert texts[0] == "Once upon"
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["usage"]["completion_tokens"] == 3


WORDS = st.lists(st.text(alphabet="abc\u00e9STOP \n", min_size=1, max_size=5), max_size=8)


STOPS = st.lists(st.sampled_from(["ab", "bc", "STOP", "S", "c a"]), max_size=3)


@steady
@given(WORDS, st.sampled_from(["eos_token", "length"]), STOPS, st.booleans())
def test_a_folded_stream_is_the_answer(pieces: list[str], reason: str, stops: list[str], logprobs: bool) -> None:
    if reason == "length" and not pieces:
        pieces = ["x"]
    sent = frames(pieces, reason)
    cfg = {**CFG, "request": {**HELLO, "stop": stops, "logprobs": logprobs}}
    tokens = [frame["token"] for frame in sent]
    said = answer("".join(pieces), reason, len(tokens), tokens=tokens, prefill=[{}] * 5)
    folded, whole = fold(chatStreamTGItoOpenAI(sent, cfg)), chatAnsTGItoOpenAI(said, cfg)
    one, other = folded["choices"][0], whole["choices"][0]
    if not pieces or not one.get("logprobs"):  # no token, no logprobs: a stream has no place to say so
        one.pop("logprobs", None), other.pop("logprobs", None)
    assert one == other
    if "stop_sequence" not in one:
        assert folded["usage"] == whole["usage"]


def test_a_stream_cut_into_bytes_anywhere_is_the_same() -> None:
    body = b"".join(b"data:%s\n\n" % json.dumps(frame, ensure_ascii=False).encode() for frame in frames(["h\u00e9", "llo"]))
    want = list(chatStreamTGItoOpenAI(wire.read_sse([body]), CFG))
    for at in range(len(body)):
        assert list(chatStreamTGItoOpenAI(wire.read_sse([body[:at], body[at:]]), CFG)) == want


# --- as a front


def test_hfs_parameters_become_the_hubs() -> None:
    schema = {"properties": {"a": {"type": "string"}}}
    given = {
        "max_new_tokens": 5,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.9,
        "typical_p": 0.8,
        "seed": 7,
        "best_of": None,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "stop": ["x"],
        "top_n_tokens": 2,
        "details": True,
        "truncate": 5,
        "watermark": True,
        "grammar": {"type": "json", "value": schema},
    }
    body = {"inputs": "Once", "parameters": given, "stream": True}
    before = copy.deepcopy(body)
    assert textReqTGItoOpenAI(body) == {
        "prompt": "Once",
        "model": "tgi",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.9,
        "typical_p": 0.8,
        "seed": 7,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "stop": ["x"],
        "logprobs": 2,
        "response_format": {"type": "json_schema", "json_schema": {"name": "grammar", "schema": schema}},
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert body == before


@pytest.mark.parametrize(
    ("body", "temperature"),
    [
        ({"inputs": "a"}, None),  # TGI samples where there are no parameters at all
        ({"inputs": "a", "parameters": {}}, 0),
        ({"inputs": "a", "parameters": {"do_sample": False}}, 0),
        ({"inputs": "a", "parameters": {"do_sample": True}}, None),
        ({"inputs": "a", "parameters": {"top_p": 0.5}}, None),
        ({"inputs": "a", "parameters": {"temperature": 0.7}}, 0.7),
    ],
)
def test_greedy_is_temperature_zero(body: dict[str, Any], temperature: Any) -> None:
    assert textReqTGItoOpenAI(body).get("temperature") == temperature


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "inputs"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": "a", "parameters": []}, "parameters"),
        ({"inputs": "a", "parameters": {"stop": "x"}}, "parameters.stop"),
        ({"inputs": "a", "parameters": {"stop": [1]}}, "parameters.stop[0]"),
        ({"inputs": "a", "parameters": {"temperature": "hot"}}, "parameters.temperature"),
        ({"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "a+"}}}, "parameters.grammar.type"),
        ({"inputs": "a", "parameters": {"grammar": {"type": "json", "value": "{"}}}, "parameters.grammar.value"),
        ({"inputs": "a", "parameters": {"grammar": {"type": "json_schema", "value": {}}}}, "parameters.grammar.value.schema"),
        ([], None),
    ],
)
def test_a_faulty_request_is_refused_by_the_fields_name(body: Any, param: str | None) -> None:
    with pytest.raises(BadRequest) as refused:
        textReqTGItoOpenAI(body)
    assert refused.value.param == param


@steady
@given(
    st.fixed_dictionaries(
        {"prompt": st.text(min_size=1)},
        optional={
            "max_tokens": st.integers(1, 9),
            "temperature": st.floats(0, 2),
            "top_p": st.floats(0.01, 0.99),
            "top_k": st.integers(1, 9),
            "seed": st.integers(0, 2**63),
            "stop": st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True),
            "logprobs": st.integers(1, 5),
            "frequency_penalty": st.floats(0.1, 2),
        },
    )
)
def test_a_completion_comes_back_from_tgis_shape(body: dict[str, Any]) -> None:
    back = textReqTGItoOpenAI(textReqOpenAItoTGI(body))
    if body.get("temperature") == 0:
        body = {name: value for name, value in body.items() if name not in ("top_p", "top_k")}
    assert back == {"model": "tgi", **body}


def completion(text: str, finish: str = "stop", **choice: Any) -> dict[str, Any]:
    spent = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    one = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None, **choice}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [one], "usage": spent}


def asked(**given: Any) -> dict[str, Any]:
    return {"request": {"inputs": "Once", "parameters": given}}


def test_a_completion_becomes_generated_text() -> None:
    assert textAnsOpenAItoTGI(completion(" upon"), asked()) == {"generated_text": " upon"}
    assert textAnsOpenAItoTGI(completion(" upon"), asked(return_full_text=True)) == {"generated_text": "Once upon"}
    assert textAnsOpenAItoTGI(completion(" upon", "length"), asked(details=True, seed=8))["details"] == {
        "finish_reason": "length",
        "generated_tokens": 4,
        "seed": 8,
        "prefill": [],
        "tokens": [],
    }


def test_the_stop_string_stays_in_tgis_text() -> None:
    made = textAnsOpenAItoTGI(completion(" upon", stop_sequence="."), asked(details=True))
    assert (made["generated_text"], made["details"]["finish_reason"]) == (" upon.", "stop_sequence")


def test_logprobs_become_tokens() -> None:
    told = {
        "tokens": [" up", "on"],
        "token_logprobs": [-1.0, None],
        "top_logprobs": [{" up": -1.0}, None],
        "text_offset": [0, 3],
    }
    details = textAnsOpenAItoTGI(completion(" upon", logprobs=told), asked(details=True))["details"]
    assert [(token["text"], token["logprob"]) for token in details["tokens"]] == [(" up", -1.0), ("on", 0.0)]
    assert [[token["text"] for token in tops] for tops in details["top_tokens"]] == [[" up"], []]


def test_an_answer_for_the_root_path_is_a_list() -> None:
    assert textAnsOpenAItoTGI(completion("a"), {**asked(), "key": "/"}) == [{"generated_text": "a"}]
    assert textAnsOpenAItoTGI(completion("a"), {**asked(), "key": "/generate"}) == {"generated_text": "a"}
    assert textAnsOpenAItoTGI(completion("a"), {"request": {"inputs": "p", "stream": False}}) == [{"generated_text": "a"}]


def chunks(pieces: list[str], finish: str | None = "stop", **last: Any) -> list[dict[str, Any]]:
    whole = completion("")
    head = {name: whole[name] for name in ("id", "object", "created", "model")}
    out = [{**head, "choices": [{"index": 0, "text": piece, "finish_reason": None}]} for piece in pieces]
    if finish:
        out += [
            {**head, "choices": [{"index": 0, "text": "", "finish_reason": finish, **last}]},
            {**head, "choices": [], "usage": whole["usage"]},
        ]
    return out


def test_a_stream_of_completions_becomes_frames() -> None:
    made = list(textStreamOpenAItoTGI(chunks([" up", "on"]), asked(details=True, seed=1, return_full_text=True)))
    assert [(frame["index"], frame["token"]["text"], frame["token"]["special"]) for frame in made] == [
        (1, " up", False),
        (2, "on", False),
        (3, "", True),
    ]
    assert made[-1]["generated_text"] == "Once upon"
    assert made[-1]["details"] == {"finish_reason": "eos_token", "generated_tokens": 4, "seed": 1, "input_length": 3}
    assert all(frame["generated_text"] is None for frame in made[:-1])


def test_a_stream_without_a_finish_has_no_last_frame() -> None:
    assert [frame["generated_text"] for frame in textStreamOpenAItoTGI(chunks(["a"], None), asked())] == [None]


@steady
@given(st.lists(st.text(min_size=1), max_size=5), st.sampled_from(["stop", "length"]), st.sampled_from(["", "."]))
def test_a_stream_comes_back_from_tgis_frames(pieces: list[str], finish: str, stop: str) -> None:
    last = {"stop_sequence": stop} if stop and finish == "stop" else {}
    made = list(tgi.grammar(textStreamOpenAItoTGI(chunks(pieces, finish, **last), asked(details=True))))
    back = list(textStreamTGItoOpenAI(made, {"request": {"prompt": "p", "stop": [stop]}}))
    texts = "".join(choice["text"] for event in back for choice in event["choices"])
    said = "".join(pieces)
    assert texts == (said[: said.index(stop)] if stop and stop in said else said)
    assert [choice["finish_reason"] for event in back for choice in event["choices"]][-1] == (
        finish if texts == said else "stop"
    )


class Front:
    """A server that is nothing but the mappers, in front of one answer: what HF's clients must be able to read."""

    def __init__(self, hub: dict[str, Any] | ProxyError, stream: list[dict[str, Any]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Quiet."""

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                streams = bool(body.get("stream"))
                cfg = {"request": body, "key": "/", "stream": streams}
                textReqTGItoOpenAI(body, cfg)
                if isinstance(hub, ProxyError):
                    made, status = wire.dumps(tgi.error_body(hub, "")), hub.status
                elif streams:
                    made, status = b"".join(wire.write("sse", tgi.grammar(textStreamOpenAItoTGI(stream, cfg)))), 200
                else:
                    made, status = wire.dumps(textAnsOpenAItoTGI(hub, cfg)), 200
                self.send_response(status)
                self.send_header("Content-Type", "text/event-stream" if streams else "application/json")
                self.end_headers()
                self.wfile.write(made)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self.url

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_inference_client_reads_every_answer() -> None:
    with Front(completion(" upon"), chunks([" up", "on"])) as url:
        client = InferenceClient(url)
        assert client.text_generation("Once") == " upon"
        details = client.text_generation("Once", details=True, seed=3, stop=["x"]).details
        assert details is not None
        assert (details.finish_reason, details.generated_tokens, details.seed) == ("eos_token", 4, 3)
        assert "".join(client.text_generation("Once", stream=True)) == " upon"
        last = list(client.text_generation("Once", stream=True, details=True))[-1]
        assert (last.generated_text, last.details.finish_reason, last.details.input_length) == (" upon", "eos_token", 3)


def test_the_text_generation_package_reads_every_answer() -> None:
    with Front(completion(" upon", "length"), chunks([" up", "on"], "length")) as url:
        client = Client(url)
        whole = client.generate("Once", max_new_tokens=4)
        assert (whole.generated_text, whole.details.finish_reason.value, whole.details.generated_tokens) == (
            " upon",
            "length",
            4,
        )
        streamed = list(client.generate_stream("Once"))
        assert "".join(frame.token.text for frame in streamed if not frame.token.special) == " upon"
        assert streamed[-1].details is not None


def test_hfs_clients_know_our_errors() -> None:
    with Front(BackendError("busy", status=429), []) as url, pytest.raises(OverloadedError, match="busy"):
        InferenceClient(url).text_generation("Once")
    with Front(BadRequest("no", status=422), []) as url, pytest.raises(HFValidationError, match="no"):
        Client(url).generate("Once")


# --- errors and the grammar


@pytest.mark.parametrize(
    ("status", "body", "message", "code"),
    [
        (429, {"error": "Model is overloaded", "error_type": "overloaded"}, "Model is overloaded", "overloaded"),
        (422, "Failed to deserialize the JSON body", "Failed to deserialize the JSON body", None),
        (500, {"error": {"message": "deep"}}, "deep", None),
        (503, None, "the backend answered 503", None),
        (500, ["x"], "the backend answered 500", None),
        (500, {"error": None, "error_type": 5}, "the backend answered 500", None),
        (502, {"error": "busy", "error_type": "overloaded"}, "busy", "overloaded"),
    ],
)
def test_error_bodies_are_read(status: int, body: Any, message: str, code: str | None) -> None:
    fault = tgi.parse_error(status, body)
    assert (fault.status, fault.code) == (429 if code else status, code)
    assert message in fault.message


def test_a_generation_error_is_the_servers_fault() -> None:
    assert tgi.parse_error(424, {"error": "out of memory", "error_type": "generation"}).kind == "api_error"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("x"), "validation"),
        (BackendError("x", status=429), "overloaded"),
        (BackendError("x"), "generation"),
        (BackendError("x", status=500, code="incomplete_generation"), "incomplete_generation"),
        (BadRequest("x", status=401), "authentication_error"),
    ],
)
def test_errors_have_a_type_that_hfs_clients_know(error: ProxyError, kind: str) -> None:
    assert tgi.error_body(error, "id") == {"error": "x", "error_type": kind}


def test_errors_round_trip() -> None:
    for kind, status in ERRORS:
        body = {"error": "m", "error_type": kind}
        assert tgi.error_body(tgi.parse_error(status, body), "") == body


def run(events: Any) -> tuple[list[Any], ProxyError | None]:
    """What the grammar lets out, and what it raises after that."""
    checked = tgi.grammar(events, {"chain": "mine"})
    out: list[Any] = []
    try:
        while (event := next(checked, None)) is not None:
            out.append(event)
    except ProxyError as error:
        return out, error
    return out, None


def test_the_grammar_passes_a_whole_stream() -> None:
    assert run(frames(["a", "b"])) == (frames(["a", "b"]), None)


def test_an_early_end_is_said_once() -> None:
    out, error = run(frames(["a", "b"])[:1])
    assert isinstance(error, BackendError)
    assert out[1:] == [{"error": error.message, "error_type": "generation"}]


def test_an_error_event_ends_the_stream_and_is_raised() -> None:
    event = {"error": "Model is overloaded", "error_type": "overloaded"}
    out, error = run([*frames(["a", "b"])[:1], event, {"never": "read"}])
    assert out[1:] == [event]
    assert error is not None
    assert error.status == 429


def test_an_illegal_frame_is_held_back_and_names_the_chain() -> None:
    first = frames(["a", "b"])[0]
    for bad in ("text", None, {}, {"token": {"id": "1"}}, {**first, "generated_text": 5}, {**first, "details": {}}):
        out, error = run([bad])
        assert isinstance(error, MapperError), bad
        assert error.message.startswith("mine: ")
        assert [set(event) for event in out] == [{"error", "error_type"}]


def test_a_fault_of_the_input_is_said_and_raised_again() -> None:
    fault = BackendError("gone", status=504)

    def broken() -> Iterator[Any]:
        yield frames(["a", "b"])[0]
        raise fault

    out, error = run(broken())
    assert error is fault
    assert out[-1]["error"] == "gone"


def test_a_mutated_stream_ends_in_a_proxy_error_or_harmlessly() -> None:
    for events in mutations(frames(["a", "b", "c"])):
        out, error = run(events)
        last = [event for event in out if event.get("generated_text") is not None]
        assert len(last) <= 1
        assert (error is None) == (len(last) == 1 and out[-1] is last[0])


@steady
@given(st.lists(st.dictionaries(st.sampled_from(["token", "generated_text", "details", "top_tokens", "new"]), JUNK)))
def test_unknown_frames_never_crash(events: list[Any]) -> None:
    for function, request in ((chatStreamTGItoOpenAI, {**HELLO, "logprobs": True}), (textStreamTGItoOpenAI, {"prompt": "p"})):
        assert isinstance(list(function([5, None, *events], {**CFG, "request": request})), list)


# --- counting, models, the table of paths


def test_tokens_are_counted_by_the_server() -> None:
    assert countReqOpenAItoTGI(HELLO, CFG) == {"inputs": chatReqOpenAItoTGI(HELLO, CFG)["inputs"]}
    assert countAnsTGItoOpenAI([{"id": 1, "text": "a", "start": 0, "stop": 1}] * 3) == {"input_tokens": 3}
    with pytest.raises(BackendError):
        countAnsTGItoOpenAI({"tokens": []})


def test_the_one_model_is_listed() -> None:
    made = modelsAnsTGItoOpenAI({"model_id": "org/model"}, {"now": 5})
    assert made["data"] == [{"id": "org/model", "object": "model", "created": 5, "owned_by": "tgi"}]
    assert modelsAnsTGItoOpenAI(None)["data"] == []


def test_every_function_and_path_is_found_by_name() -> None:
    for name in ("chatReqOpenAItoTGI", "textReqTGItoOpenAI", "textStreamOpenAItoTGI", "infoAnsTGI", "healthAnsTGI"):
        assert mapper(name) is not None, name
    routes = [route_of("tgi", "POST", path) for path in ("/generate", "/generate_stream", "/")]
    assert [route.stream for route in routes if route] == [False, True, None]
    assert load("tgi").error_body is tgi.error_body
    assert tgi.infoAnsTGI({}, {"aliases": ["gpt-*", "mine"]})["model_id"] == "mine"


# --- against the double: a real socket, the real bytes


@pytest.fixture(scope="module")
def double() -> Iterator[TGIDouble]:
    with TGIDouble() as served:
        yield served


def ask(double: TGIDouble, said: str, **given: Any) -> dict[str, Any]:
    body = {**HELLO, "messages": [{"role": "user", "content": said}], **given}
    cfg = {**CFG, "request": body}
    path = "/generate_stream" if given.get("stream") else "/generate"
    reply = requests.post(double.url + path, json=chatReqOpenAItoTGI(body, cfg), stream=True, timeout=10)
    if reply.status_code != 200:
        raise tgi.parse_error(reply.status_code, reply.json())
    if given.get("stream"):
        return fold(chatStreamTGItoOpenAI(wire.read_sse(reply.iter_content(None)), cfg))
    return chatAnsTGItoOpenAI(reply.json(), cfg)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_goes_there_and_back(double: TGIDouble, stream: bool) -> None:
    whole = ask(double, "say hello", stream=stream, temperature=0, top_p=1.0, seed=1, logprobs=True)
    choice = whole["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (" Hello there, friend!", "stop")
    assert [item["token"] for item in choice["logprobs"]["content"]] == [" Hello", " there,", " friend!"]
    assert whole["usage"]["completion_tokens"] == 4
    assert whole["usage"]["prompt_tokens"] == 11
    assert ask(double, "count up", stream=stream, max_tokens=2)["choices"][0]["finish_reason"] == "length"
    stopped = ask(double, "use stop", stream=stream, stop=["a", "x", "y", "z", "STOP"])["choices"][0]
    assert (stopped["message"]["content"], stopped["stop_sequence"]) == (" before ", "STOP")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [422, 424, 429, 500])
def test_a_refusal_of_the_server_keeps_its_status(double: TGIDouble, stream: bool, status: int) -> None:
    with pytest.raises(BackendError) as fault:
        ask(double, f"fail {status}", stream=stream)
    assert fault.value.status == status


def test_broken_streams(double: TGIDouble) -> None:
    with pytest.raises(BackendError) as fault:
        ask(double, "error stream", stream=True)
    assert fault.value.status == 424
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        ask(double, "cut stream", stream=True)


def test_the_double_is_what_hfs_clients_expect(double: TGIDouble) -> None:
    client = InferenceClient(double.url, provider="hf-inference")
    assert client.text_generation("say hello", stop=["there,"]) == " Hello there,"
    assert client.get_endpoint_info()["model_id"] == "tiny/tgi-double"
    assert client.health_check()
    assert "".join(client.text_generation("count up", stream=True, max_new_tokens=2)) == " one two"
    assert Client(double.url).generate("say hello", decoder_input_details=True).details.prefill[0].text == "say"


@pytest.mark.parametrize("given", [{"stop": None}, {"temperature": 0}, {"top_p": 1.0}, {"stop": list("abcde")}, {"unknown": 1}])
def test_the_double_refuses_what_tgi_refuses(given: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        check({"inputs": "a", "parameters": given}, stream=False, root=False)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"best_of": 2, "seed": 7}, {"best_of": 2, "do_sample": True}),  # TGI refuses a seed beside it
        ({"best_of": 2, "temperature": 0}, {"do_sample": False}),  # and it without sampling
        ({"logprobs": 9}, {"top_n_tokens": 5, "do_sample": True}),
        ({"logprobs": 3, "seed": 7}, {"top_n_tokens": 3, "seed": 7, "do_sample": True}),
    ],
)
def test_what_tgi_refuses_in_company_or_past_its_limit_is_left_out(given: dict[str, Any], sent: dict[str, Any]) -> None:
    made = mapper("textReqOpenAItoTGI")({"prompt": "hi", **given}, {})["parameters"]
    assert {name: value for name, value in made.items() if name not in ("details", "decoder_input_details")} == sent
    check({"inputs": "hi", "parameters": made}, stream=False, root=False)
