"""proxy/dialects/_hub.py: any chat body becomes canonical, or is refused by the name of its wrong field."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects._hub import (
    IMAGE_TOKENS,
    canonical,
    canonical_messages,
    canonical_tool,
    checked,
    compact,
    data_uri,
    estimate_tokens,
    expect,
    made_id,
    objects,
    parse_arguments,
    sniff,
    text_of,
    tool_id,
    tool_name,
)
from proxy.errors import BackendError, BadRequest
from tests.laws import CFG, PNG, Json, hub_requests, junk, unchanged, words

HI = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "look"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
SEARCH = {"type": "web_search", "user_location": {"type": "approximate"}}  # a tool that only OpenAI itself knows


def own(ip: Any, cfg: Any) -> Json:
    return canonical(ip, own=True)


def foreign(ip: Any, cfg: Any) -> Json:
    return canonical(ip)


def tried(make: Callable[..., Json], body: Json) -> tuple[Json | None, str]:
    """What is made of a body, or the field for which it is refused."""
    try:
        return unchanged(make, body), ""
    except BadRequest as fault:
        return None, fault.param or ""


def refused(body: Json, **more: Any) -> str | None:
    with pytest.raises(BadRequest) as caught:
        canonical(body, **more)
    return caught.value.param


# --- what is expected


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("str", ["", "a"], [0, [], {}, False]),
        ("bool", [True, False], [0, 1, "true", [], {}]),
        ("int", [0, -1, 10**30], [True, False, 1.0, "1", [], {}]),
        ("number", [0, -1, 1.5], [True, False, "1", [], {}]),
        ("dict", [{}, {"a": 1}], [[], "{}", 1, True]),
        ("list", [[], [1]], [{}, "[]", 1, True]),
    ],
)
def test_a_value_is_of_its_kind_or_its_field_is_named(kind: str, right: list[Any], wrong: list[Any]) -> None:
    for value in right:
        assert expect(value, kind, "a.b") is value
    for value in (None, *wrong):
        with pytest.raises(BadRequest, match=r"^a\.b must be ") as caught:
            expect(value, kind, "a.b")
        assert caught.value.param == "a.b"


def test_a_null_is_an_absent_field_whatever_its_type() -> None:
    fields = {"n": "int", "model": "str", "tools": "list"}
    assert unchanged(lambda ip, cfg: checked(ip, fields), {"n": None, "model": "m", "other": None}) == {"model": "m"}
    for body in (None, [], "x", 5, True):
        with pytest.raises(BadRequest, match="must be a JSON object"):
            checked(body, fields)


# --- requests


def _variant(message: Json, kind: int) -> Json:
    """One of the ways in which clients write the same message."""
    if isinstance(message.get("tool_calls"), list) and kind % 3 == 1:
        bare = [
            {"function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
        return {**message, "tool_calls": bare, "refusal": None, "function_call": None}
    if message["role"] == "tool" and kind % 3 == 2:
        return {**message, "name": None, "content": [{"type": "output_text", "text": message["content"]}]}
    return {**message, "audio": None, "name": None}


@settings(max_examples=40)
@given(hub_requests(), st.lists(st.integers(0, 5), min_size=30, max_size=30), st.booleans())
def test_what_is_canonical_stays_as_it_is_and_no_variant_has_nulls(request: Json, kinds: list[int], for_openai: bool) -> None:
    make = own if for_openai else foreign
    told = [_variant(message, kind) for message, kind in zip(request["messages"], kinds, strict=False)]
    once = unchanged(make, {**request, "messages": told, "user": None, "max_tokens": 5})
    assert make(once, {}) == once
    assert None not in once.values()
    for message in once["messages"]:
        assert None not in [value for name, value in message.items() if name != "content"]
        assert all(isinstance(call["function"]["arguments"], str) for call in message.get("tool_calls", ()))


FIELDS = ("role", "content", "type", "text", "function", "name", "tool_calls", "id", "image_url", "url", "custom", "arguments")
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(("user", "assistant", "tool", "function", "robot"))},
    optional=dict.fromkeys(("content", "tool_calls", "tool_call_id", "function_call", "name", "reasoning"), junk(*FIELDS)),
)
TOP = ("tools", "tool_choice", "stop", "response_format", "functions", "function_call", "max_tokens", "n")


@given(st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3)}, optional=dict.fromkeys(TOP, junk(*FIELDS))))
def test_junk_is_accepted_for_good_or_refused_by_the_name_of_a_field(body: Json) -> None:
    for make in (own, foreign):
        once, param = tried(make, body)
        if once is None:
            assert re.split(r"[.\[]", param)[0] in (*TOP, "messages")
        else:
            assert make(once, {}) == once


@pytest.mark.parametrize("stop", [5, {}, True, ["a", None], [["a"]]])
def test_stops_that_are_no_texts_are_refused_and_empty_ones_go(stop: Any) -> None:
    assert refused({"messages": [HI], "stop": stop}) == "stop"
    assert foreign({"messages": [HI], "stop": ["", "a"]}, {})["stop"] == ["a"]


@pytest.mark.parametrize("reasoning", [{}, {"reasoning_content": None}, {"reasoning_content": ""}])
def test_reasoning_is_kept_beside_an_empty_field_of_its_other_name(reasoning: Json) -> None:
    turn = {"role": "assistant", "content": "a", "reasoning": "hm", **reasoning}
    (made,) = unchanged(lambda ip, cfg: {"messages": canonical_messages(ip)}, [turn])["messages"]
    assert made == {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    (both,) = canonical_messages([{**turn, "reasoning_content": "first"}])
    assert both["reasoning_content"] == "first"


@pytest.mark.parametrize("more", [{"index": 0}, {"extra_content": None}, {"custom": None}, {"type": None}])
def test_a_call_of_the_history_has_no_index_and_no_nulls(more: Json) -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [{**CALL, **more}]}
    (made,) = canonical_messages([turn])
    assert made == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert canonical_messages([made])[0]["tool_calls"][0] is made["tool_calls"][0]


def test_results_without_ids_find_their_calls_by_name_then_by_age() -> None:
    asked = [{"function": {"name": name}} for name in ("a", "b", "c")]
    results = [
        {"role": "function", "name": "c", "content": "C"},
        {"role": "tool", "content": "A"},
        {"role": "tool", "content": "B"},
    ]
    turn, *found = canonical_messages([{"role": "assistant", "tool_calls": asked}, *results])
    ids = {call["id"]: call["function"]["name"] for call in turn["tool_calls"]}
    assert [(ids[message["tool_call_id"]], message["content"]) for message in found] == [("c", "C"), ("a", "A"), ("b", "B")]
    assert refused({"messages": [turn, *found, {"role": "tool", "content": "D"}]}) == "messages[4].tool_call_id"


def test_a_later_turns_made_up_ids_are_other_ones() -> None:
    pair = [{"role": "assistant", "function_call": {"name": "a"}}, {"role": "function", "name": "a", "content": "1"}]
    made = canonical_messages([*pair, *pair])
    first, second = (made[at]["tool_calls"][0]["id"] for at in (0, 2))
    assert first != second
    assert (made[1]["tool_call_id"], made[3]["tool_call_id"]) == (first, second)


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"type": "custom", "custom": {"name": "a", "description": 5}}, "tools[0].custom.description"),
        ({"type": "custom", "name": ""}, "tools[0].custom.name"),
        ({"type": "custom", "custom": None}, "tools[0].custom"),
        ({"type": "function", "name": "a", "strict": "yes"}, "tools[0].function.strict"),
        ({"type": "function", "function": {"name": "a", "description": []}}, "tools[0].function.description"),
        (SEARCH, "tools[0].type"),
    ],
)
def test_what_is_wrong_in_a_tool_is_named(tool: Json, param: str) -> None:
    assert refused({"messages": [HI], "tools": [tool]}) == param


def test_a_tool_keeps_its_cache_mark_in_every_shape() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    for tool in ({**TOOL, **mark}, {"type": "function", "name": "look", **mark}, {"name": "look", "parameters": None, **mark}):
        assert unchanged(lambda ip, cfg: canonical_tool(ip, "t"), tool) == {**TOOL, **mark}
    assert canonical_tool(TOOL, "t") is TOOL


@pytest.mark.parametrize(
    "form", [None, {"type": "text"}, {"type": "grammar"}, {"type": "grammar", "syntax": "regex", "definition": "a+"}]
)
def test_a_custom_tool_is_told_its_grammar_in_words(form: Any) -> None:
    function = canonical_tool({"type": "custom", "custom": {"name": "run", "format": form}}, "t")["function"]
    told = "`input` must match this regex grammar:\na+" if form and "definition" in form else None
    assert function.get("description") == told
    assert function["parameters"]["required"] == ["input"]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "b"}]}, ("auto", ["b"])),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"name": "b"}, {"name": "a"}, 5]}},
            ("required", ["a", "b"]),
        ),
        ({"type": "custom", "name": "a"}, ({"type": "function", "function": {"name": "a"}}, ["a", "b"])),
        ("any", ("required", ["a", "b"])),
        ("none", ("none", ["a", "b"])),
    ],
)
def test_a_choice_of_any_shape_is_canonical_and_leaves_its_tools(choice: Any, wanted: Any) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
    made = unchanged(foreign, {"messages": [HI], "tools": tools, "tool_choice": choice})
    assert (made["tool_choice"], [tool_name(tool) for tool in made["tools"]]) == wanted


@pytest.mark.parametrize(
    "choice", [5, [], {}, {"type": "file_search"}, "look", {"type": "allowed_tools", "tools": [{"name": "x"}]}]
)
def test_a_choice_that_says_nothing_is_refused(choice: Any) -> None:
    assert refused({"messages": [HI], "tools": [TOOL], "tool_choice": choice}) == "tool_choice"


def test_openai_gets_what_only_openai_knows() -> None:
    custom = {"type": "custom", "custom": {"name": "run"}}
    parts = [{"type": "smell", "smell": "coffee"}]
    body = {
        "messages": [{"role": "user", "content": parts}],
        "tools": [SEARCH, custom],
        "tool_choice": {"type": "custom", "name": "run"},
    }
    made = unchanged(own, body)
    assert (made["tools"], made["messages"][0]["content"]) == ([SEARCH, custom], parts)
    assert made["tool_choice"] == {"type": "custom", "custom": {"name": "run"}}
    assert refused({"messages": body["messages"]}) == "messages[0].content[0].type"


@pytest.mark.parametrize(
    ("named", "name"),
    [
        (TOOL, "look"),
        (CALL, "look"),
        ({"type": "custom", "custom": {"name": "run"}}, "run"),
        ({"type": "function", "name": "flat"}, "flat"),
        ({"function": None, "name": "flat"}, "flat"),
        ({"function": {"name": 5}}, None),
        ({}, None),
    ],
)
def test_a_name_is_found_in_every_shape(named: Json, name: str | None) -> None:
    assert tool_name(named) == name


# --- content


@given(junk("type", "text", "name"))
def test_texts_and_objects_of_anything_are_texts_and_objects(value: Any) -> None:
    assert isinstance(text_of(value), str)
    assert all(isinstance(item, dict) for item in objects(value))
    assert isinstance(value, list) or objects(value) == []


SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words
VALUE = SCALAR | st.lists(SCALAR, max_size=2) | st.dictionaries(words, SCALAR, max_size=2)


@given(st.dictionaries(words, VALUE, max_size=3))
def test_arguments_come_back_from_their_text(arguments: Json) -> None:
    assert parse_arguments(compact(arguments)) == arguments
    assert parse_arguments(json.dumps(arguments, indent=1)) == arguments


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": 1} {', "\ufeff{}", '"a"', 5, ["{}"]])
def test_arguments_that_are_no_json_are_refused(text: Any) -> None:
    with pytest.raises(BackendError, match="not a JSON object"):
        parse_arguments(text)


# --- media

HEADS = {
    "image/png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "image/jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "image/gif": b"GIF87a\1\0\1\0",
    "image/webp": b"RIFF\n\0\0\0WEBPVP8L",  # a length may have the byte of a line's end
    "image/bmp": b"BM" + struct.pack("<IHHI", 10, 0, 0, 54),
    "image/tiff": b"MM\0*\0\0\0\x08",
    "image/avif": b"\0\0\0 ftypavif",
    "image/heic": b"\0\0\0\x18ftypheic",
    "application/pdf": b"%PDF-1.7\n",
    "audio/wav": b"RIFF$\0\0\0WAVEfmt ",
    "audio/mpeg": b"ID3\4\0\0\0\0\0\0",
    "audio/flac": b"fLaC\0\0\0\x22",
    "audio/ogg": b"OggS\0\2\0\0",
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_bytes_tell_their_type_whatever_was_declared(kind: str) -> None:
    written = base64.b64encode(HEADS[kind]).decode()
    assert sniff(HEADS[kind]) == sniff(written) == kind
    assert data_uri(f"data:application/octet-stream;base64,{written}") == (kind, written)


@pytest.mark.parametrize(
    "text", ["BMW is a make of cars", "ID3 tags are text", "GIF8 is no format", "OggSquad", "RIFF and WEBP, they said"]
)
def test_a_text_is_not_taken_for_what_its_first_letters_are_the_mark_of(text: str) -> None:
    kind, written = data_uri(f"data:text/plain,{quote(text)}") or ("", "")
    assert (kind, base64.b64decode(written).decode()) == ("text/plain", text)


@given(st.binary(max_size=40) | st.sampled_from(list(HEADS.values())))
def test_bytes_and_their_base64_tell_the_same(data: bytes) -> None:
    assert sniff(data) == sniff(base64.b64encode(data).decode())


@given(st.binary(min_size=1, max_size=40), st.booleans(), st.sampled_from(("", "\n", " \r\n")))
def test_a_data_uri_gives_its_bytes_with_or_without_padding_and_breaks(data: bytes, padded: bool, gap: str) -> None:
    written = base64.b64encode(data).decode()
    sent = gap.join(re.findall(r".{1,8}", written if padded else written.rstrip("=")))
    assert data_uri(f"data:a/b;base64,{sent}") == (sniff(data) or "a/b", written)
    assert data_uri(f"data:a/b,{quote(data)}") == (sniff(data) or "a/b", written)


@pytest.mark.parametrize("data", ["", "=", "====", "A", "QUJDR", "A===", "QQ=Q", "QQ==QQ==", "Q-_Q", "é==="])
def test_base64_that_was_cut_or_is_none_is_refused(data: str) -> None:
    with pytest.raises(BadRequest, match="base64") as caught:
        data_uri(f"data:image/png;base64,{data}", "messages[0]")
    assert caught.value.param == "messages[0]"


@given(
    st.text(st.characters() | st.sampled_from("data:;,=+/%\ud800"), max_size=30),
    st.sampled_from(("", "data:", "DATA:a/b;Base64,")),
)
def test_no_url_crashes(rest: str, head: str) -> None:
    try:
        found = data_uri(head + rest)
    except BadRequest:
        return
    if found is None:
        assert not head
        return
    assert found[0]
    base64.b64decode(found[1], validate=True)


# --- ids and estimates


@given(st.text(), st.integers(14, 64))
def test_a_tools_id_fits_its_limit_and_a_legal_one_is_kept(call_id: str, limit: int) -> None:
    made = tool_id(call_id, limit)
    assert re.fullmatch(rf"[a-zA-Z0-9_-]{{1,{limit}}}", made)
    assert tool_id(made, limit) == made
    assert tool_id(call_id, 64) == tool_id(call_id)
    if re.fullmatch(rf"[a-zA-Z0-9_-]{{1,{limit}}}", call_id):
        assert made == call_id


def test_made_ids_differ_between_calls_and_answers() -> None:
    made = [made_id({"id": answer}, n) for answer in ("a", "b") for n in range(3)]
    assert len(set(made)) == len(made)
    assert made_id(CFG, 1) == made_id(dict(CFG), 1)
    assert made_id({}, 0) == "call_0"


@settings(max_examples=40)
@given(hub_requests())
def test_an_estimate_is_never_zero_and_grows_with_each_message(request: Json) -> None:
    sizes = [
        estimate_tokens({**request, "messages": request["messages"][:upto]}) for upto in range(len(request["messages"]) + 1)
    ]
    assert 0 < estimate_tokens({}) <= sizes[0]
    assert sizes == sorted(set(sizes))


def test_media_and_signatures_are_not_counted_as_text() -> None:
    def of(content: Any, **more: Any) -> int:
        return estimate_tokens({"messages": [{"role": "user", "content": content, **more}]})

    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG * 1000}"}}
    assert of([image, image]) - of([image]) == IMAGE_TOKENS
    sealed = [{"type": "thinking", "thinking": "hm", "signature": PNG * 1000}]
    google = {"google": {"thought_signature": PNG * 1000}}
    assert of("hi", thinking_blocks=sealed, extra_content=google) < 50
