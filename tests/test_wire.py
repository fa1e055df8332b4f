"""Any split of a body gives the same events; what is not an event never becomes one."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import BackendError, BadRequest
from proxy.wire import EVENT_LIMIT, dumps, frame, loads, loads_request, read_array, read_ndjson, read_sse, reader, write

Reader = Callable[[Iterable[bytes]], Iterator[Any]]
EVENTS = [{"a": "é😀\u2028\u2029x\x85y"}, {"b": [1, {"c": None}]}, {"text": "data: \\n [DONE] ,]}"}, {}, {"n": 1.5}]
TEXTS = [json.dumps(event, ensure_ascii=False).encode() for event in EVENTS]

TEXT = st.text(st.sampled_from('ab"\\/ é😀\u2028\u2029\x85\n\r\t:,[]{}') | st.characters(exclude_categories=["Cs"]), max_size=5)
LEAVES = st.sampled_from([None, True, False, 0, -1, 10**20, 0.1, -1e300, 5e-324, "[DONE]", "data: x"]) | TEXT
JSON = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(TEXT, LEAVES | st.lists(LEAVES, max_size=2), max_size=3)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=3)
FRAMINGS: dict[str, Reader] = {"sse": read_sse, "named-sse": read_sse, "ndjson": read_ndjson, "array": read_array}


def sse(end: str) -> bytes:
    lines = [": comment", "event: x", f"data: {TEXTS[0].decode()}", "", "id: 7", f"data:{TEXTS[1].decode()}", "", ":", ""]
    lines += [f"data: {TEXTS[2].decode()}", "retry: 5", "", "", f"data:{TEXTS[3].decode()}", "", "event: ping", ""]
    lines += ['data: {"n":', "data:1.5}", "", "data: [DONE]", "", ""]
    return end.join(lines).encode()


BODIES: dict[str, tuple[Reader, bytes]] = {
    "sse with LF": (read_sse, sse("\n")),
    "sse with CRLF": (read_sse, sse("\r\n")),
    "sse with CR": (read_sse, sse("\r")),
    "ndjson": (read_ndjson, b"\n".join(TEXTS) + b"\n\n"),
    "ndjson with CRLF, without a last end": (read_ndjson, b"\r\n".join(TEXTS)),
    "array": (read_array, b"[" + b",\r\n".join(TEXTS) + b"]\r\n"),
    "array with space": (read_array, b" \n[ " + b" , ".join(TEXTS) + b" ] "),
}


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The data cut at those places; empty pieces may be among them."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


# --- any split


@pytest.mark.parametrize("name", BODIES)
def test_a_cut_at_any_place_changes_nothing(name: str) -> None:
    read, body = BODIES[name]
    for cut in range(len(body) + 1):
        assert list(read(pieces(body, [cut]))) == EVENTS, cut


@pytest.mark.parametrize("name", BODIES)
def test_single_bytes_give_the_same_events(name: str) -> None:
    read, body = BODIES[name]
    assert list(read(body[i : i + 1] for i in range(len(body)))) == EVENTS


@settings(max_examples=50)
@given(st.data(), st.lists(JSON, max_size=5), st.sampled_from(["sse", "ndjson", "array"]))
def test_any_values_survive_any_framing_and_any_cuts(data: st.DataObject, values: list[Any], framing: str) -> None:
    body = b"".join(write(framing, values))
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=6))
    assert list(FRAMINGS[framing](pieces(body, cuts))) == values


@settings(max_examples=50)
@given(st.lists(OBJECTS, max_size=4))
def test_an_event_comes_with_its_last_byte(values: list[dict[str, Any]]) -> None:
    for framing in ("sse", "ndjson"):
        came: list[Any] = []
        sent: list[Any] = []

        def body(framing: str = framing, sent: list[Any] = sent, came: list[Any] = came) -> Iterator[bytes]:
            for value in values:
                assert came == sent
                sent.append(value)
                yield frame(framing, value)
            assert came == sent

        for event in FRAMINGS[framing](body()):
            came += [event]
        assert came == values


def test_an_array_s_member_comes_before_the_array_ends() -> None:
    def body() -> Iterator[bytes]:
        yield b'[{"a": 1}'
        raise AssertionError("more was asked for")

    assert next(read_array(body())) == {"a": 1}


@pytest.mark.parametrize("number", ["12", "-1.5", "1e3", "0.25", "1E+2", "true", "null"])
def test_a_bare_number_is_not_taken_for_its_beginning(number: str) -> None:
    body = f"[{number},{number}]".encode()
    for cut in range(len(body) + 1):
        assert list(read_array(pieces(body, [cut]))) == [json.loads(number)] * 2, cut


# --- what is an event


def test_a_line_separator_within_text_ends_no_line() -> None:
    text = "a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg"
    escaped = text.replace("\x0c", "\\f").replace("\x0b", "\\u000b").replace("\x1c", "\\u001c")
    assert list(read_sse([b'data: {"t": "' + escaped.encode() + b'"}\n\n'])) == [{"t": text}]


def test_done_in_the_middle_ends_nothing_and_is_no_event() -> None:
    assert list(read_sse([b"data: [DONE]\n\ndata: 1\n\ndata:[DONE] \n\ndata: 2\n\n"])) == [1, 2]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\r\n", b"\r"])
def test_the_end_of_the_body_ends_the_last_event(end: bytes) -> None:
    assert list(read_sse([b"data: 1\n\ndata: {}", end])) == [1, {}]
    assert list(read_sse([b"data: 1\n\ndata: [DONE]", end])) == [1]


@pytest.mark.parametrize(
    "empty", [b"", b"\n\n", b": hi\n\n", b"event: x\n\n", b"data:\n\n", b"data: \n\n", b"data\n\n", b"dat: 1\n\n"]
)
def test_framing_alone_is_no_event(empty: bytes) -> None:
    assert list(read_sse([empty])) == []
    assert list(read_sse([empty + b"data: 1\n\n"])) == [1]


def test_a_byte_order_mark_at_the_beginning_is_skipped() -> None:
    mark = "\ufeff".encode()
    for cut in range(4):
        assert list(read_sse(pieces(mark + b"data: 1\n\n", [cut]))) == [1]
        assert list(read_ndjson(pieces(mark + b"1\n2\n", [cut]))) == [1, 2]
        assert list(read_array(pieces(mark + b"[1,2]", [cut]))) == [1, 2]


# --- what is not


@pytest.mark.parametrize(
    "body",
    [b'data: {"a": \n\n', b'data: {"a": "x', b"data: nonsense\n\n", b"data: [DON", b"data: \xff\n\n", b"data: NaN\n\n"],
)
def test_a_broken_or_cut_event_is_the_backend_s_fault(body: bytes) -> None:
    with pytest.raises(BackendError):
        list(read_sse([b"data: 1\n\n", body]))


@pytest.mark.parametrize("body", [b'{"a": 1', b"\xff\n", b"1 2\n", b"Infinity\n", b'{"a": 1}{"b": 2}\n'])
def test_a_broken_line_is_the_backend_s_fault(body: bytes) -> None:
    with pytest.raises(BackendError):
        list(read_ndjson([body]))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"[1",
        b"[1,",
        b"[1,]",
        b"[,1]",
        b"[1 2]",
        b"[1}",
        b"{}",
        b"1",
        b'["\xff"]',
        b'["\xe2\x82',
        b"[NaN]",
        b"[x]",
        b"[1e999]",
        b"[" * 100_000,
    ],
)
def test_a_broken_or_cut_array_is_the_backend_s_fault(body: bytes) -> None:
    with pytest.raises(BackendError):
        list(read_array([body]))


@settings(max_examples=50)
@given(st.lists(OBJECTS, min_size=1, max_size=3), st.data())
def test_an_array_cut_anywhere_is_a_fault(values: list[Any], data: st.DataObject) -> None:
    body = b"".join(write("array", values))
    with pytest.raises(BackendError):
        list(read_array([body[: data.draw(st.integers(0, len(body) - 1))]]))


@pytest.mark.parametrize(("read", "start"), [(read_sse, b"data: "), (read_ndjson, b""), (read_array, b"[")])
def test_an_event_without_end_is_given_up(read: Reader, start: bytes) -> None:
    def body() -> Iterator[bytes]:
        yield start + b'"'
        for _ in range(2 * EVENT_LIMIT // 2**22):
            yield b"x" * 2**22
        raise AssertionError("it went on reading")

    with pytest.raises(BackendError, match="more than"):
        list(read(body()))


def test_an_event_of_endless_lines_is_given_up() -> None:
    lines = b"data: " + b"x" * 1_000_000 + b"\n"

    def body() -> Iterator[bytes]:
        for _ in range(2 * EVENT_LIMIT // len(lines)):
            yield lines
        raise AssertionError("it went on reading")

    with pytest.raises(BackendError, match="more than"):
        list(read_sse(body()))


# --- which reader


@pytest.mark.parametrize(
    ("content_type", "read"),
    [
        ("text/event-stream", read_sse),
        ("Text/Event-Stream ; charset=utf-8", read_sse),
        ("application/json", read_array),
        ("application/json; charset=UTF-8", read_array),
        ("application/x-ndjson", read_ndjson),
        ("application/jsonl", read_ndjson),
    ],
)
def test_the_content_type_names_the_reader(content_type: str, read: Reader) -> None:
    assert reader(content_type) is read


# --- writing


def test_each_framing_is_written_as_its_clients_read_it() -> None:
    events = [{"type": "a", "t": "é"}, {"n": 1}]
    assert b"".join(write("sse", events, b"data: [DONE]\n\n")) == (
        'data: {"type":"a","t":"é"}\n\ndata: {"n":1}\n\ndata: [DONE]\n\n'.encode()
    )
    assert b"".join(write("named-sse", events)) == (
        'event: a\ndata: {"type":"a","t":"é"}\n\nevent: message\ndata: {"n":1}\n\n'.encode()
    )
    assert b"".join(write("ndjson", events)) == '{"type":"a","t":"é"}\n{"n":1}\n'.encode()
    assert json.loads(b"".join(write("array", events))) == events
    assert b"".join(write("array", [])) == b"[]"


def test_nothing_says_done_behind_a_stream_that_fails() -> None:
    def events() -> Iterator[Any]:
        yield {"a": 1}
        raise BackendError("broken")

    for framing in FRAMINGS:
        written = write(framing, events(), b"data: [DONE]\n\n")
        assert b'{"a":1}' in next(written)
        with pytest.raises(BackendError):
            next(written)
        assert list(written) == []


@settings(max_examples=50)
@given(OBJECTS)
def test_what_is_written_is_one_line_for_every_way_of_splitting_lines(value: dict[str, Any]) -> None:
    text = dumps(value).decode()
    assert "\u2028" not in text
    assert "\u2029" not in text
    assert "\n" not in text
    assert "\r" not in text
    assert json.loads(text) == value


@pytest.mark.parametrize("value", [{"a": "\ud800"}, {"\udfff": 1}, "é\udc80"])
def test_a_lone_surrogate_is_written_escaped(value: Any) -> None:
    assert loads(dumps(value)) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [math.nan]])
def test_what_json_has_not_is_not_written(value: Any) -> None:
    with pytest.raises(ValueError):
        dumps(value)


# --- strict JSON

NOT_JSON = [
    b"",
    b"{",
    b"{'a': 1}",
    b"[1,]",
    b"NaN",
    b"[Infinity]",
    b"-Infinity",
    b"1e999",
    b"[-1e400]",
    b"9" * 6000,
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"\xff",
    b'"\xed\xa0\x80"',
    b'"a\nb"',
    "\ufeff\ufeff1".encode(),
    "1".encode("utf-16"),
    b"1 2",
]


@pytest.mark.parametrize("data", NOT_JSON, ids=lambda data: repr(data[:12]))
def test_whatever_is_no_json_is_a_value_error_without_python_in_it(data: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        loads(data)
    assert "sys." not in str(caught.value)
    assert "codec" not in str(caught.value)


@pytest.mark.parametrize("data", NOT_JSON, ids=lambda data: repr(data[:12]))
def test_a_client_s_bad_json_is_a_bad_request(data: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        loads_request(data)
    assert caught.value.status == 400


@settings(max_examples=50)
@given(st.binary(max_size=20))
def test_any_bytes_are_json_or_a_value_error(data: bytes) -> None:
    try:
        value = loads(data)
    except ValueError:
        return
    dumps(value)


@settings(max_examples=50)
@given(JSON)
def test_what_was_read_can_be_written_again(value: Any) -> None:
    assert loads(dumps(value)) == value
    assert loads(json.dumps(value).encode()) == value


def test_a_nesting_that_is_read_is_read_whatever_is_looked_for() -> None:
    """Near the limit of the parser, too: a value or a BadRequest, never a RecursionError."""
    for depth in range(900, 1000):
        data = b'{"\\u0061":' + b"[" * depth + b"]" * depth + b"}"
        with contextlib.suppress(BadRequest):
            assert "a" in loads_request(data)


# --- names that stand twice


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model": "a", "model": "b"}', "model"),
        (b'{"model": "a", "x": {}, "\\u006dodel": "b"}', "model"),
        (b'{"\\u006Dodel": "a", "mo\\u0064el": "b"}', "model"),
        (b'{"a/b": 1, "a\\/b": 2}', "a/b"),
        (b'{"a\\"b": 1, "a\\"b": 2}', 'a"b'),
        (b'{"a\\nb": 1, "a\\u000Ab": 2}', "a\nb"),
        ('{"é": 1, "\\u00e9": 2}'.encode(), "é"),
        (b'{"\\\\": 1, "\\u005c": 2}', "\\"),
        (b'{"\\ud83d\\ude00": 1, "\xf0\x9f\x98\x80": 2}', "😀"),
        (b'{"": 1, "": 2}', ""),
    ],
)
def test_a_name_twice_at_the_top_is_refused_however_it_is_written(body: bytes, name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        loads_request(body)
    assert caught.value.param == name


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "model", "messages": [{"model": 1}, {"model": 2}]}',
        b'{"a": {"b": 1}, "c": {"b": 1, "b": 2}}',
        b'{"a": "\\u0061", "b": "\\"a\\":"}',
        b'[{"a": 1}, {"a": 2}]',
        b'{"a/b": 1, "ab": "\\/"}',
    ],
)
def test_names_elsewhere_may_repeat(body: bytes) -> None:
    assert loads_request(body) == json.loads(body)


@settings(max_examples=50)
@given(OBJECTS, st.data())
def test_any_object_s_repeated_name_is_found(value: dict[str, Any], data: st.DataObject) -> None:
    def written(name: str) -> str:
        return "".join(
            f"\\u{ord(c):04x}" if data.draw(st.booleans()) and ord(c) < 0x10000 else json.dumps(c)[1:-1] for c in name
        )

    pairs = [(written(name), json.dumps(each)) for name, each in value.items()]
    body = "{" + ", ".join(f'"{name}": {each}' for name, each in pairs) + "}"
    assert loads_request(body.encode()) == value
    if value:
        name = data.draw(st.sampled_from(sorted(value)))
        twice = body[:-1] + f', "{written(name)}": null}}'
        with pytest.raises(BadRequest) as caught:
            loads_request(twice.encode())
        assert caught.value.param == name
