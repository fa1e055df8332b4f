"""proxy/answers.py: a backend's answer read within limits, and its errors told without the key."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy.adapters.made import Pieces
from proxy.answers import (
    decoded,
    field_of,
    json_answer,
    kind_of,
    overhear,
    raise_for_error,
    read_all,
    scrubbed,
    scrubbing,
    unless_error,
)
from proxy.config import Entry, Target
from proxy.errors import BackendError
from proxy.translate import Endpoint

KEY = "sk-very-secret"
PACKED = gzip.compress(b"text", mtime=0)
TARGET = Target("t", "http://h", key=KEY, dialect="openai")
ENDPOINT = Endpoint(TARGET, Entry("/x"), "", "")


def answer(*pieces: bytes, **fields: str) -> Pieces:
    return Pieces([(name.replace("_", "-"), value) for name, value in fields.items()], pieces)


def fault(act: Callable[..., Any], *given: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        act(*given)
    return caught.value


def test_a_field_is_found_by_its_name_and_a_kind_has_no_parameters() -> None:
    fields = [("x", "1"), ("content-type", "Text/Event-Stream ; charset=utf-8"), ("x", "2")]
    assert (field_of(fields, "x"), field_of(fields, "y")) == ("1", None)
    assert (kind_of(fields), kind_of([])) == ("text/event-stream", "")


def test_a_body_is_read_whole_up_to_its_limit() -> None:
    assert read_all(answer(b"ab", b"cd"), 4) == b"abcd"
    assert read_all(answer(), 4) == b""
    assert "larger than 3 bytes" in fault(read_all, answer(b"ab", b"cd"), 3).message


@pytest.mark.parametrize(
    ("coding", "packed"),
    [("gzip", PACKED), ("X-GZIP", PACKED), ("deflate", zlib.compress(b"text")), ("identity", b"text")],
    ids=["gzip", "x-gzip", "deflate", "identity"],
)
def test_a_coding_is_taken_off(coding: str, packed: bytes) -> None:
    assert read_all(answer(packed[:3], packed[3:], content_encoding=coding), 100) == b"text"


@pytest.mark.parametrize(
    ("coding", "packed", "said"),
    [
        ("br", b"text", "which nobody asked for"),
        ("gzip", b"no gzip at all", "is broken"),
        ("gzip", PACKED[:-3], "cut off"),
        ("gzip", gzip.compress(b"x" * 100_000, mtime=0), "too large"),
        ("deflate", zlib.compress(b"x" * 100_000), "too large"),
    ],
    ids=["unknown", "broken", "cut", "gzip bomb", "deflate bomb"],
)
def test_a_coding_that_cannot_be_taken_off_is_an_error_and_no_bomb_is_unpacked(coding: str, packed: bytes, said: str) -> None:
    assert said in fault(read_all, answer(packed, content_encoding=coding), 1000).message


def test_what_is_no_json_is_a_text_in_an_error_and_an_error_as_an_answer() -> None:
    assert decoded(b'{"a": 1}') == {"a": 1}
    assert decoded(b"<html>\xff") == "<html>�"
    assert json_answer(b"[1]") == [1]
    assert "is not JSON" in fault(json_answer, b"<html>").message


def test_every_piece_is_overheard_and_may_be_changed() -> None:
    heard: list[bytes] = []

    def hear(piece: bytes) -> bytes | None:
        heard.append(piece)
        return {b"b": b"B", b"c": b""}.get(piece)

    body = answer(b"a", b"b", b"c", b"d")
    overhear(body, hear)
    assert list(body) == [b"a", b"B", b"d"], "what is swallowed is no end"
    assert heard == [b"a", b"b", b"c", b"d"]


def test_a_backends_error_is_told_without_the_key_and_with_what_helps_to_try_again() -> None:
    body = json.dumps({"error": {"message": f"wrong key {KEY}", "type": "x"}}).encode()
    fields = {"retry_after": "7", "x_ratelimit_remaining": KEY, "set_cookie": "a=b", "x_should_retry": "true"}
    error = fault(raise_for_error, 429, answer(body, **fields), ENDPOINT)
    assert (error.status, error.message) == (429, "wrong key ***")
    assert set(error.headers) >= {("retry-after", "7"), ("x-should-retry", "true"), ("x-ratelimit-remaining", "***")}
    assert "set-cookie" not in dict(error.headers)
    raise_for_error(399, answer(body), ENDPOINT)


def test_every_key_that_a_target_has_is_scrubbed() -> None:
    target = Target("t", "http://h", keys={"A": "one-secret", "B": "other-secret"})
    error = BackendError("one-secret, other-secret")
    error.headers = (("x", "a one-secret"),)
    assert scrubbed(error, target) is error
    assert (error.message, error.headers) == ("***, ***", (("x", "a ***"),))


def test_an_error_among_events_is_scrubbed_where_it_comes() -> None:
    def events() -> Iterator[int]:
        yield 1
        raise BackendError(f"no {KEY}")

    told = scrubbing(events(), TARGET)
    assert next(told) == 1
    assert fault(next, told).message == "no ***"


def test_a_stream_that_begins_with_an_error_is_no_stream() -> None:
    event = {"choices": [], "error": None}
    assert unless_error(event, ENDPOINT) is event
    partial = {"choices": [{}], "error": {"message": "late"}}
    assert unless_error(partial, ENDPOINT) is partial
    error = fault(unless_error, {"error": {"message": f"no {KEY}", "code": 503}}, ENDPOINT)
    assert "no ***" in error.message
