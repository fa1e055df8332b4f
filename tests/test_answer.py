"""proxy/dialects/_answer.py: answers as the hub builds them, and what any OpenAI-like backend may send in their place."""

from __future__ import annotations

import base64
import math
import struct
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects._answer import (
    FINISHES,
    assistant,
    canonical_answer,
    canonical_finish,
    canonical_usage,
    chat_answer,
    chunk,
    completion,
    count,
    embed_answer,
    embed_inputs,
    joined,
    model_of,
    object_of,
    parse_error,
    rename_reasoning,
    status_of,
    stream_error,
    text,
    to_base64,
    to_floats,
    tool_call,
    tool_delta,
    unix_of,
    usage,
    usage_chunk,
    vectors_of,
)
from proxy.errors import BackendError, BadRequest, ProxyError
from tests.laws import CFG, Json, counts, junk, unchanged

MESSAGE = {"role": "assistant", "content": "a"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
FIELDS = ("error", "message", "detail", "type", "code", "param", "status", "choices", "usage", "text")


def canonical(ip: Any, cfg: Any) -> Json:
    return canonical_answer(ip)


def answer_of(message: Json, **choice: Any) -> Json:
    return {"choices": [{"message": message, "finish_reason": "stop", **choice}]}


# --- what a backend says, whatever it says


@given(junk("a") | st.floats())
def test_what_is_none_of_its_kind_is_nothing(value: Any) -> None:
    assert isinstance(text(value), str)
    assert isinstance(object_of(value), dict)
    assert isinstance(joined(value), str)
    assert type(count(value)) is int
    assert count(value) >= 0


@pytest.mark.parametrize("none", [None, True, False, "5", -1, -0.5, math.nan, math.inf, 10**400, [5], {}])
def test_what_is_no_count_is_zero(none: Any) -> None:
    assert count(none) == 0
    assert (count(5), count(5.9)) == (5, 5)


ZONES = st.just(timezone.utc) | st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(
    st.datetimes(datetime(1970, 1, 3), datetime(2100, 1, 1), timezones=ZONES),
    st.text("0123456789", max_size=12),
    st.booleans(),
)
def test_a_time_is_read_to_the_second_in_any_zone_with_any_digits(at: datetime, digits: str, small: bool) -> None:
    at = at.replace(microsecond=0)
    whole, zone = at.isoformat()[:19], at.isoformat()[19:]
    fraction = f".{digits}" if digits else ""
    written = [f"{whole}{fraction}{zone}"]
    if at.utcoffset() == timedelta(0):
        written.append(f"{whole}{fraction}Z")
    for stamp in written:
        assert unix_of(stamp.lower() if small else stamp) == at.timestamp()


@pytest.mark.parametrize("none", [None, 5, "", "now", "2026-11-22", "2026-11-22T10:00:00", "2026-13-01T00:00:00Z", ".5Z", {}])
def test_what_tells_no_moment_is_zero_on_every_machine(none: Any) -> None:
    assert unix_of(none) == 0
    assert unix_of("2026-11-22T10:00:00Z") == unix_of("2026-11-22t11:00:00.123456789+01:00") == 1795341600


# --- building


@pytest.mark.parametrize(
    ("cfg", "name"),
    [
        ({"request": {"model": "asked"}, "params": {"model": "routed"}}, "asked"),
        ({"request": {"model": ""}, "params": {"model": "routed"}}, "routed"),
        ({"request": {"model": 5}, "params": None}, "backend"),
        ({"request": None}, "backend"),
        ({}, "backend"),
    ],
)
def test_an_answer_names_the_model_that_was_asked_for(cfg: Json, name: str) -> None:
    assert model_of(cfg, "backend") == name
    for made in (completion(cfg, "backend", []), chunk(cfg, {}, model="backend"), usage_chunk(cfg, {}, model="backend")):
        assert made["model"] == name
    assert model_of({}, None) == model_of({}, ["backend"]) == ""


@given(counts, counts, st.integers(0, 9))
def test_a_total_is_the_sum_and_a_cache_is_told_when_it_was_made(prompt: int, done: int, created: int) -> None:
    made = usage(prompt, done, 1, created, 2)
    assert made["total_tokens"] == prompt + done
    details = {"cached_tokens": 1, **({"cache_creation_tokens": created} if created else {})}
    assert made["prompt_tokens_details"] == details
    assert made["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert canonical_usage(made) == made
    assert usage(prompt, done) == usage(prompt, done, 0, 0, 0)


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ({}, {"content": ""}),
        ({"content": "a"}, {"content": "a"}),
        ({"tool_calls": [CALL]}, {"content": None, "tool_calls": [CALL]}),
        ({"refusal": "no"}, {"content": None, "refusal": "no"}),
        ({"content": "a", "tool_calls": (CALL,)}, {"content": "a", "tool_calls": [CALL]}),
        ({"reasoning": "hm", "thinking": []}, {"content": "", "reasoning_content": "hm"}),
    ],
)
def test_a_message_has_no_empty_fields_but_its_content(given_: Json, wanted: Json) -> None:
    assert assistant(**given_) == {"role": "assistant", **wanted}


@pytest.mark.parametrize(
    ("arguments", "written"), [("", ""), ("{", "{"), ({}, "{}"), (None, "{}"), ({"ä": [1, None]}, '{"ä":[1,null]}')]
)
def test_a_calls_arguments_are_text(arguments: Any, written: str) -> None:
    assert tool_call("c", "f", arguments, extra_content=None) == {**CALL, "function": {"name": "f", "arguments": written}}
    assert tool_call("c", "f", {}, extra_content={"a": 1})["extra_content"] == {"a": 1}


def test_only_a_calls_first_fragment_has_its_id_and_name() -> None:
    first = {"index": 2, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert tool_delta(2, "c", "f") == {"tool_calls": [first]}
    assert tool_delta(2, arguments="{") == {"tool_calls": [{"index": 2, "function": {"arguments": "{"}}]}


@pytest.mark.parametrize(
    ("finish", "calls", "told"),
    [("stop", [CALL], "tool_calls"), ("stop", [], "stop"), ("length", [CALL], "length"), (None, [CALL], None)],
)
def test_calls_turn_a_stop_and_nothing_else(finish: str | None, calls: list[Json], told: str | None) -> None:
    answer = unchanged(lambda ip, cfg: chat_answer(cfg, ip, finish), assistant("a", calls))
    assert answer["choices"][0]["finish_reason"] == told
    assert "usage" not in answer


def test_the_last_chunk_has_usage_and_no_choices() -> None:
    spent = usage(1, 2)
    assert usage_chunk(CFG, spent) == {**chunk(CFG, {}), "choices": [], "usage": spent}
    assert (chunk({}, {})["created"], chunk({}, {})["id"]) == (0, "chatcmpl-")
    assert chunk(CFG, {}, "stop", 3, stop_sequence="END", logprobs=None)["choices"] == [
        {"index": 3, "delta": {}, "finish_reason": "stop", "stop_sequence": "END"}
    ]


# --- errors


@given(junk(*FIELDS), st.integers(400, 599))
def test_no_error_body_crashes_its_reader(body: Any, status: int) -> None:
    fault = parse_error(status, body)
    assert (fault.status, fault.source) == (status, "backend")
    assert fault.message
    assert all(isinstance(fact, (str, type(None))) for fact in (fault.kind, fault.code, fault.param))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "m"}}, "m"),
        ({"error": "m"}, "m"),
        ({"error": None, "message": "m"}, "m"),
        ({"error": {}, "detail": "m"}, "m"),
        ({"detail": [{"loc": ["body"]}]}, '[{"loc":["body"]}]'),
        ({"error": {"error": "m"}}, "m"),
        (" m\n", "m"),
        ("m" * 9999, "m" * 2000),
        ("  ", "the backend answered 418"),
        ({"error": {"message": ""}}, "the backend answered 418"),
        (None, "the backend answered 418"),
        ([], "the backend answered 418"),
    ],
)
def test_an_errors_message_is_found_in_every_servers_shape(body: Any, message: str) -> None:
    assert parse_error(418, body).message == message


@pytest.mark.parametrize(("code", "told"), [("c", "c"), (0, "0"), (1301, "1301"), ("", None), (None, None), ({}, None)])
def test_a_code_is_text(code: Any, told: str | None) -> None:
    assert parse_error(400, {"error": {"message": "m", "code": code}}).code == told


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({"code": 429, "type": "server_error"}, 429),
        ({"status": "503", "code": "429"}, 503),
        ({"type": "invalid_request_error"}, 400),
        ({"code": "insufficient_quota", "type": "server_error"}, 429),
        ({"code": 200, "type": "timeout_error"}, 504),
        ({"code": "1301"}, 502),
        ({"code": 600}, 502),
        ({"code": 599}, 599),
        ({"code": ["429"], "type": {}}, 502),
        ({}, 502),
    ],
)
def test_an_error_in_a_stream_has_its_own_status_else_its_types(facts: Json, status: int) -> None:
    assert stream_error({"error": {"message": "m", **facts}}).status == status


@given(junk(*FIELDS))
def test_an_error_in_a_stream_always_has_an_errors_status(fault: Any) -> None:
    assert 400 <= stream_error({"error": fault}).status < 600
    assert 400 <= status_of({"error": fault}) < 600
    assert [status_of({"error": {"code": code}}) for code in (399, 400, 599, 600, "429")] == [502, 400, 599, 502, 502]


# --- answers of other servers


@pytest.mark.parametrize("value", ["", None, 5, [], True])
def test_no_finish_reason_is_none(value: Any) -> None:
    assert canonical_finish(value, True) is None


@given(st.text() | st.sampled_from(sorted(FINISHES)), st.booleans())
def test_every_finish_reason_becomes_one_that_the_hub_has(value: str, has_tools: bool) -> None:
    if value == "error":
        return
    made = canonical_finish(value, has_tools)
    assert made is None if value == "" else made in FINISHES - {"function_call"}
    assert canonical_finish(made, has_tools) == made
    assert made != ("stop" if has_tools else "tool_calls")


def test_a_finish_of_error_is_the_backends_fault() -> None:
    with pytest.raises(BackendError):
        canonical_finish("error", False)


@pytest.mark.parametrize(
    ("spent", "details"),
    [
        ({"prompt_cache_hit_tokens": 3}, {"cached_tokens": 3}),  # DeepSeek
        (
            {"prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1}},
            {"cached_tokens": 2, "cache_creation_tokens": 1},
        ),
        ({"prompt_tokens_details": None, "completion_tokens_details": []}, {"cached_tokens": 0}),
    ],
)
def test_cached_tokens_are_found_under_each_servers_name(spent: Json, details: Json) -> None:
    made = canonical_usage({"prompt_tokens": 5, "completion_tokens": "many", "total_tokens": 99, **spent})
    assert made == {**usage(5, 0), "prompt_tokens_details": details}


@given(
    junk(*FIELDS)
    | st.lists(junk("message", "content", "tool_calls", "function", "index"), min_size=1).map(lambda c: {"choices": c})
)
def test_an_answer_is_canonical_for_good_or_the_backends_fault(answer: Any) -> None:
    try:
        once = canonical_answer(answer)
    except BackendError:
        return
    assert canonical_answer(once) == once
    for choice in once["choices"]:
        assert choice["message"]["role"] == "assistant"
        assert isinstance(choice["message"]["content"], (str, type(None)))


@pytest.mark.parametrize("choices", [["x"], [None, 5], [[]], "choices", {"message": MESSAGE}])
def test_choices_that_are_none_are_the_backends_fault(choices: Any) -> None:
    with pytest.raises(BackendError, match="no choices"):
        canonical_answer({"choices": choices})


def test_an_answers_other_fields_stay_and_nulls_and_no_usage_go() -> None:
    head = {"id": "x", "system_fingerprint": "fp", "service_tier": None, "usage": "none"}
    made = unchanged(canonical, {**head, **answer_of({**MESSAGE, "audio": None}, logprobs=None, stop_sequence="END")})
    choice = {"message": MESSAGE, "finish_reason": "stop", "index": 0, "stop_sequence": "END"}
    assert made == {"id": "x", "system_fingerprint": "fp", "choices": [choice]}
    assert canonical_answer({**answer_of(MESSAGE), "usage": {}})["usage"] == usage(0, 0)


def test_old_and_custom_calls_become_tool_calls() -> None:
    old = unchanged(canonical, answer_of({"content": "", "function_call": {"name": "f", "arguments": None}}))["choices"][0]
    assert old["message"] == {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "call_0"}]}
    assert old["finish_reason"] == "tool_calls"
    custom = {"id": "c", "type": "custom", "index": 0, "custom": {"name": "f", "input": 'say "a"'}}
    made = unchanged(canonical, answer_of({"content": None, "tool_calls": [custom]}))["choices"][0]["message"]["tool_calls"]
    assert made == [{**CALL, "function": {"name": "f", "arguments": '{"input":"say \\"a\\""}'}}]


def test_calls_without_ids_get_ids_of_their_own() -> None:
    calls = [{"function": {"name": name}} for name in "abc"]
    made = canonical_answer(answer_of({"tool_calls": calls}))["choices"][0]["message"]["tool_calls"]
    assert len({call["id"] for call in made}) == 3


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ({"reasoning": "hm"}, {"reasoning_content": "hm"}),
        ({"reasoning": "hm", "reasoning_content": None}, {"reasoning_content": "hm"}),
        ({"reasoning": "other", "reasoning_content": "hm"}, {"reasoning_content": "hm"}),
        ({"reasoning": {"effort": "low"}, "reasoning_content": ""}, {}),
        ({"reasoning": "", "content": "a"}, {"content": "a"}),
        ({}, {}),
    ],
)
def test_reasoning_has_one_name_and_is_never_empty(message: Json, wanted: Json) -> None:
    rename_reasoning(message)
    assert message == wanted


# --- embeddings

FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=5)


@given(FLOATS)
def test_a_vector_comes_back_from_base64(vector: list[float]) -> None:
    coded = to_base64(vector)
    assert to_floats(coded) == vector
    assert (to_floats(vector), to_base64(coded)) == (vector, coded)
    assert base64.b64decode(coded) == struct.pack(f"<{len(vector)}f", *vector)


@pytest.mark.parametrize("wrong", ["AAA", "AAAAAAA=", "@@@@", "é", 5, None, {}, True])
def test_what_is_no_float32_is_the_backends_fault(wrong: Any) -> None:
    with pytest.raises(BackendError, match="embedding"):
        to_floats(wrong)


@given(st.lists(FLOATS, max_size=4), st.randoms(use_true_random=False), st.booleans())
def test_vectors_are_in_the_order_of_the_inputs_in_either_encoding(vectors: Any, random: Any, as_base64: bool) -> None:
    cfg = {"request": {"encoding_format": "base64" if as_base64 else "float"}}
    answer = unchanged(lambda ip, cfg: embed_answer(cfg, ip["vectors"], 3, "m"), {"vectors": vectors}, cfg)
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert {type(item["embedding"]) for item in answer["data"]} <= {str if as_base64 else list}
    random.shuffle(answer["data"])
    assert vectors_of(answer) == vectors


@pytest.mark.parametrize(
    ("given_", "param"),
    [([], "input"), ({}, "input"), (5, "input"), ([1, 2], "input[0]"), (["a", None], "input[1]"), (["a", ["b"]], "input[1]")],
)
def test_what_cannot_be_embedded_is_named(given_: Any, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        embed_inputs({"input": given_})
    assert caught.value.param == param
    assert (embed_inputs({"input": ""}), embed_inputs({"input": ["a", ""]})) == ([""], ["a", ""])


@given(junk("data", "index", "embedding"))
def test_no_embeddings_answer_crashes_its_reader(answer: Any) -> None:
    try:
        vectors = vectors_of(answer)
    except ProxyError:
        return
    assert all(isinstance(vector, list) for vector in vectors)
