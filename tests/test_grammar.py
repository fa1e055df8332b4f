"""proxy/dialects/_grammar.py: what an OpenAI client is shown of a stream, and how one that is wrong ends."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects._answer import chunk, tool_delta, usage, usage_chunk
from proxy.dialects._grammar import error_body, grammar
from proxy.errors import BackendError, BadRequest, ClientGone, MapperError, ProxyError
from tests.laws import CFG, Json, junk

ASKED = {"request": {"stream_options": {"include_usage": True}}}
SPENT = usage(1, 2)
TEXT = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
STARTS, ENDS = chunk(CFG, {"role": "assistant", "content": ""}), chunk(CFG, {}, "stop")


def shown(events: Iterable[Any], cfg: Json = ASKED) -> tuple[list[Any], ProxyError | None]:
    """What the client gets, and what the stream ended with."""
    out: list[Any] = []
    try:
        for event in grammar(events, cfg):
            out.append(event)  # noqa: PERF402 (what came before the fault counts)
    except ProxyError as fault:
        return out, fault
    return out, None


def said(text: str, finish: str | None = None, index: int = 0) -> Json:
    return {**TEXT, "choices": [{"index": index, "text": text, "finish_reason": finish}]}


# --- legal streams


@st.composite
def choices(draw: Any, index: int) -> list[Json]:
    """One choice's chunks, from its first to its finish."""
    names = ("content", "reasoning_content", "refusal", "reasoning_signature", "redacted_thinking")
    pieces = draw(st.lists(st.tuples(st.sampled_from(names), st.text(max_size=3)), max_size=4))
    out = [chunk(CFG, {"role": "assistant", name: piece}, index=index) for name, piece in pieces]
    calls = draw(st.integers(0, 3))
    for slot in range(calls):
        out.append(chunk(CFG, tool_delta(slot, f"c{slot}", f"f{slot}"), index=index))
        repeats = {} if draw(st.booleans()) else {"call_id": f"c{slot}", "name": f"f{slot}"}
        out += [chunk(CFG, tool_delta(slot, arguments="{}", **repeats), index=index)] * draw(st.integers(0, 2))
    finishes = ("stop", "length", "content_filter", *(("tool_calls",) if calls else ()))
    return [*out, chunk(CFG, {}, draw(st.sampled_from(finishes)), index=index)]


@st.composite
def streams(draw: Any) -> list[Json]:
    """One to three choices, each in its own order, mixed; a notice without choices, and usage at the end."""
    rest = [draw(choices(index)) for index in range(draw(st.integers(1, 3)))]
    out = [chunk(CFG, {}) | {"choices": []}] if draw(st.booleans()) else []
    while rest := [each for each in rest if each]:
        out.append(draw(st.sampled_from(rest)).pop(0))
    return [*out, usage_chunk(CFG, SPENT)] if draw(st.booleans()) else out


@given(streams())
def test_a_legal_stream_passes_unchanged(events: list[Json]) -> None:
    kept = copy.deepcopy(events)
    assert shown(events) == (kept, None)
    assert events == kept


@given(streams(), st.data())
def test_a_stream_that_lost_a_finish_is_told_at_its_end(events: list[Json], data: Any) -> None:
    finishes = [at for at, event in enumerate(events) if any(choice["finish_reason"] for choice in event["choices"])]
    at = data.draw(st.sampled_from(finishes))
    left = [*events[:at], *events[at + 1 :]]
    out, fault = shown(left)
    if at == 0 or not any(
        choice["index"] == events[at]["choices"][0]["index"] for event in left for choice in event["choices"]
    ):
        assert fault is None or not any(event["choices"] for event in left)  # a choice that nobody has heard of is not missed
        return
    assert isinstance(fault, BackendError)
    assert out == [*left, error_body(fault, "")]


@given(streams(), st.data())
def test_nothing_follows_a_finish(events: list[Json], data: Any) -> None:
    index = data.draw(st.sampled_from([choice["index"] for event in events for choice in event["choices"]]))
    more = data.draw(st.sampled_from((({"content": "a"}, None), (tool_delta(0, arguments="{"), None), ({}, "stop"))))
    out, fault = shown([*events, chunk(CFG, *more, index=index)])
    assert isinstance(fault, MapperError)
    assert f"choice {index}: " in fault.message
    assert out == [*events, error_body(fault, "")]


def test_what_says_nothing_may_follow_a_finish() -> None:
    events = [STARTS, ENDS, STARTS, chunk(CFG, {"role": "assistant"}), {**ENDS, "choices": []}]
    assert shown(events) == (events, None)


# --- what is none


@given(
    st.lists(junk("id", "object", "choices", "delta", "index", "usage", "error") | st.sampled_from((STARTS, ENDS)), max_size=4)
)
def test_junk_ends_with_one_error_event(events: list[Any]) -> None:
    out, fault = shown(events)
    if fault is None:
        assert ENDS in events
        assert out == events
        return
    assert out[-1] == error_body(fault, "")
    assert out[:-1] == events[: len(out) - 1]


WRONG: list[tuple[Json, str]] = [
    ({**STARTS, "created": "1"}, "'created'"),
    ({**STARTS, "model": None}, "'model'"),
    ({**STARTS, "usage": [1]}, "usage"),
    ({**STARTS, "choices": [5]}, "index"),
    ({**STARTS, "choices": [{"delta": {}}]}, "index"),
    ({**STARTS, "choices": [{"index": True, "delta": {}}]}, "index"),
    ({**STARTS, "choices": [{"index": 0, "text": "a"}]}, "delta"),
    (chunk(CFG, {"reasoning_content": ["a"]}), "reasoning_content"),
    (chunk(CFG, {"role": 5}), "role"),
    (chunk(CFG, {"tool_calls": {}}), "tool_calls"),
    (chunk(CFG, {"tool_calls": [None]}), "tool call"),
    (chunk(CFG, {"tool_calls": [{"index": True, "id": "c", "function": {"name": "f"}}]}), "index"),
    (chunk(CFG, {"tool_calls": [{"index": -1, "id": "c", "function": {"name": "f"}}]}), "index"),
    (chunk(CFG, {"tool_calls": [{"index": 0, "id": "c", "function": "f"}]}), "function"),
    (chunk(CFG, {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": {}}}]}), "strings"),
    (chunk(CFG, tool_delta(0, "", "f")), "id or name"),
    (chunk(CFG, {}, "eos"), "finish_reason"),
    (chunk(CFG, {}, ["stop"]), "finish_reason"),  # type: ignore[arg-type]
    (chunk(CFG, {}, ""), "finish_reason"),
]


@pytest.mark.parametrize(("event", "what"), WRONG)
def test_what_the_api_does_not_allow_is_named_with_its_mapper(event: Json, what: str) -> None:
    for cfg, whose in (({**ASKED, "chain": "a > b"}, "a > b: "), (ASKED, "stream mapper: ")):
        out, fault = shown([STARTS, event, ENDS], cfg)
        assert isinstance(fault, MapperError)
        assert fault.message.startswith(whose)
        assert what in fault.message
        assert out == [STARTS, error_body(fault, "")]


@pytest.mark.parametrize("later", [tool_delta(0, "other"), tool_delta(0, name="other"), tool_delta(0, "other", "f")])
def test_a_later_fragment_does_not_contradict_its_calls_first_one(later: Json) -> None:
    first = chunk(CFG, tool_delta(0, "c", "f"))
    same = chunk(CFG, tool_delta(0, "c", "f", "{"))
    out, fault = shown([first, same, chunk(CFG, later)])
    assert isinstance(fault, MapperError)
    assert "changes its id or name" in fault.message
    assert out[:-1] == [first, same]


def test_a_custom_tools_call_begins_with_its_name_and_goes_on_with_input() -> None:
    begin = {"index": 0, "id": "c", "type": "custom", "custom": {"name": "run", "input": ""}}
    more = {"index": 0, "type": "custom", "custom": {"input": "a"}}
    events = [chunk(CFG, {"tool_calls": [call]}) for call in (begin, more)] + [chunk(CFG, {}, "tool_calls")]
    assert shown(events) == (events, None)
    for wrong in ({**begin, "custom": {"name": "run", "input": 5}}, {**begin, "custom": {}}):
        assert isinstance(shown([chunk(CFG, {"tool_calls": [wrong]})])[1], MapperError)


# --- how it ends


@pytest.mark.parametrize(
    "events",
    [[], [{**STARTS, "choices": []}], [usage_chunk(CFG, SPENT)], [STARTS], [chunk(CFG, {}, "stop"), chunk(CFG, {}, index=1)]],
)
def test_a_stream_without_its_end_is_the_backends_fault(events: list[Json]) -> None:
    out, fault = shown(events)
    assert isinstance(fault, BackendError)
    assert out == [*events, error_body(fault, "")]


@pytest.mark.parametrize("fault", [ClientGone("gone"), BadRequest("no", param="n", code="c"), MapperError("wrong")])
def test_what_the_stream_raises_is_told_in_the_apis_shape_and_raised_on(fault: ProxyError) -> None:
    def failing() -> Iterator[Json]:
        yield STARTS
        raise fault

    out, raised = shown(failing())
    assert raised is fault
    body = {"message": fault.message, "type": fault.kind, "param": fault.param, "code": fault.code}
    assert out == [STARTS, {"error": body}]


def test_an_error_event_of_the_backend_keeps_its_facts() -> None:
    event = {"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}
    out, fault = shown([STARTS, event, ENDS])
    assert isinstance(fault, BackendError)
    assert (fault.status, out[-1]["error"]["code"], out[-1]["error"]["message"]) == (429, "rate_limit_exceeded", "slow down")


def test_an_event_is_shown_before_the_next_one_is_asked_for() -> None:
    asked = []

    def slow() -> Iterator[Json]:
        for event in (STARTS, ENDS):
            asked.append(event)
            yield event

    out = grammar(slow(), ASKED)
    assert (next(out), len(asked)) == (STARTS, 1)
    assert (next(out), len(asked)) == (ENDS, 2)


# --- usage


@pytest.mark.parametrize(
    "request_", [{}, {"stream_options": None}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}]
)
def test_usage_is_hidden_from_who_did_not_ask_wherever_it_stands(request_: Json) -> None:
    beside = {**ENDS, "usage": SPENT}
    assert shown([{**STARTS, "usage": None}, beside, usage_chunk(CFG, SPENT)], {"request": request_}) == (
        [{**STARTS, "usage": None}, ENDS],
        None,
    )
    assert beside["usage"] == SPENT


@pytest.mark.parametrize("cfg", [ASKED, {}])
def test_usage_is_shown_to_who_asked_and_where_nobody_can_say(cfg: Json) -> None:
    events = [STARTS, {**ENDS, "usage": SPENT}, usage_chunk(CFG, SPENT)]
    assert shown(events, cfg) == (events, None)


# --- text completions


def test_a_text_stream_has_texts_and_the_same_end() -> None:
    cfg = {**ASKED, "kind": "text"}
    events = [said("a"), said("b", index=1), said("", "stop"), said("c", "length", 1), said("")]
    assert shown(events, cfg) == (events, None)
    for wrong in (said(5), said("a", "eos"), STARTS):  # type: ignore[arg-type]
        assert isinstance(shown([wrong], cfg)[1], MapperError)
    assert isinstance(shown([said("a", "stop"), said("b")], cfg)[1], MapperError)
    assert isinstance(shown([said("a")], cfg)[1], BackendError)
    assert isinstance(shown([said("a", "stop")], ASKED)[1], MapperError)
