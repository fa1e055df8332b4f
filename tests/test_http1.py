"""What two parsers could read in two ways is refused; chunked coding is the same however it is cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.http1 import (
    FIELD_LIMIT,
    HEAD_LIMIT,
    LAST_CHUNK,
    LINE_LIMIT,
    Dechunker,
    ProtocolError,
    body_length,
    enchunk,
    header_safe,
    listed,
    parse_head,
)

BLOCK = b"POST /v1/chat HTTP/1.1\r\nHost: a\r\nX-One:\t b c \t\r\nAccept:\r\ncookie: \xe9\x80"
FIELDS = [("host", "a"), ("x-one", "b c"), ("accept", ""), ("cookie", "\xe9\x80")]
CONTROL = [byte for byte in range(256) if (byte < 0x20 and byte != 9) or byte == 0x7F]
NAME_CHARS = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


# --- header blocks


def test_a_block_is_its_first_line_and_its_fields_in_order() -> None:
    assert parse_head(BLOCK) == ("POST /v1/chat HTTP/1.1", FIELDS)
    assert parse_head(b"GET / HTTP/1.1") == ("GET / HTTP/1.1", [])


def test_fields_of_one_name_stay_several() -> None:
    assert parse_head(b"x\r\nSet-Cookie: a=1\r\nset-cookie: b=2")[1] == [("set-cookie", "a=1"), ("set-cookie", "b=2")]


@pytest.mark.parametrize("control", CONTROL)
def test_a_control_byte_is_refused_wherever_it_stands(control: int) -> None:
    for at in range(len(BLOCK) + 1):
        with pytest.raises(ProtocolError):
            parse_head(BLOCK[:at] + bytes([control]) + BLOCK[at:])


def test_a_line_end_that_is_not_whole_is_refused() -> None:
    for at in (at for at in range(len(BLOCK)) if BLOCK[at : at + 2] == b"\r\n"):
        for end in (b"\r", b"\n", b"\n\r", b"\r\r\n", b"\r\n\n", b"\r\n\r\n"):
            with pytest.raises(ProtocolError):
                parse_head(BLOCK[:at] + end + BLOCK[at + 2 :])


@given(st.binary(max_size=40))
@settings(max_examples=300)
def test_no_bytes_make_a_field_that_is_not_a_line_of_its_own(noise: bytes) -> None:
    block = b"x\r\na: " + noise
    try:
        line, fields = parse_head(block)
    except ProtocolError:
        return
    assert line == "x"
    assert len(fields) == block.count(b"\r\n")
    assert all(c not in value for _, value in fields for c in "\r\n\0")


@pytest.mark.parametrize("byte", [byte for byte in range(256) if byte not in NAME_CHARS and byte not in b":"])
def test_a_name_that_is_no_token_is_refused(byte: int) -> None:
    for name in (bytes([byte]), b"a" + bytes([byte]), bytes([byte]) + b"a", b"a" + bytes([byte]) + b"b"):
        with pytest.raises(ProtocolError):
            parse_head(b"x\r\n" + name + b": 1")


@pytest.mark.parametrize("line", [b"", b": 1", b" folded", b"\tfolded: 1", b"a : 1", b"a\t: 1", b"no colon", b"\xe9: 1"])
def test_a_bad_field_line_is_refused_first_or_last(line: bytes) -> None:
    for block in (b"x\r\n" + line, b"x\r\na: 1\r\n" + line, b"x\r\n" + line + b"\r\na: 1"):
        with pytest.raises(ProtocolError):
            parse_head(block)


def test_a_name_seen_before_is_read_the_same_again() -> None:
    for _ in range(2):
        assert parse_head(b"x\r\nX-Seen-TWICE: 1")[1] == [("x-seen-twice", "1")]
        with pytest.raises(ProtocolError):
            parse_head(b"x\r\nX-Seen TWICE: 1")
    many = [b"x-many-%d: 1" % number for number in range(1500)]
    for start in range(0, 1500, 100):
        block = b"x\r\n" + b"\r\n".join(many[start : start + 100])
        assert parse_head(block)[1] == [(f"x-many-{number}", "1") for number in range(start, start + 100)]


def test_limits_have_their_own_statuses() -> None:
    fields = b"\r\na: 1" * FIELD_LIMIT
    assert len(parse_head(b"x" * LINE_LIMIT + fields)[1]) == FIELD_LIMIT
    for block, status in ((b"x" * (LINE_LIMIT + 1), 414), (b"x\r\na: 1" + fields, 431)):
        with pytest.raises(ProtocolError) as caught:
            parse_head(block)
        assert caught.value.status == status


@given(st.text(max_size=20))
def test_header_safe_text_can_stand_in_a_header(text: str) -> None:
    value = header_safe(text)
    block = b"x\r\na: " + value.encode("latin-1")
    assert parse_head(block)[1] == [("a", value.strip(" \t"))]


def test_a_list_is_read_without_its_spaces_in_lower_case() -> None:
    assert listed("Close,\t keep-ALIVE ,x") == ["close", "keep-alive", "x"]
    assert listed(None) == listed("") == []


# --- framing


@pytest.mark.parametrize(
    ("length", "coding", "wanted"),
    [(None, None, 0), ("0", None, 0), ("12", None, 12), ("007", None, 7), (None, "chunked", None), (None, "Chunked", None)],
)
def test_a_body_s_length(length: str | None, coding: str | None, wanted: int | None) -> None:
    assert body_length(length, coding) == wanted


BAD_LENGTHS = ["", "+5", "-1", "5_0", "0x5", "5 5", "5, 5", "1e3", "٣", "²", "5.0", "9" * 16, " 5", "5\n"]


@pytest.mark.parametrize("length", BAD_LENGTHS)
def test_a_length_that_is_no_plain_number_is_refused(length: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        body_length(length, None)
    assert caught.value.status == 400


@pytest.mark.parametrize("coding", ["", "gzip", "gzip, chunked", "chunked, chunked", "identity", "xchunked", "chunked;q=1"])
def test_a_coding_other_than_chunked_is_refused(coding: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        body_length(None, coding)
    assert caught.value.status == 501


def test_both_framings_at_once_are_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        body_length("5", "chunked")
    assert caught.value.status == 400


# --- chunked coding

CODED = (
    b"5\r\nhello\r\n1;a=b\r\n!\r\n00a ; x='\xe9'\r\n0123456789\r\n"
    b"A\r\n\r\n\r\n\r\n\r\n\r\n\r\n0;last\r\nTrailer: 1\r\nB: 2\r\n\r\n"
)
PAYLOAD = b"hello!0123456789\r\n\r\n\r\n\r\n\r\n"


def decoded(pieces: list[bytes]) -> tuple[bytes, bool, bytes]:
    """(payload, done, rest); what comes behind the end is not fed, as a reader stops there."""
    dechunker, out, rest = Dechunker(), b"", b""
    for piece in pieces:
        if dechunker.done:
            rest += piece
        else:
            out += dechunker.feed(piece)
            rest += dechunker.rest
    return out, dechunker.done, rest


def test_a_cut_at_any_two_places_changes_nothing() -> None:
    whole = CODED + b"HTTP/1.1"
    for one, two in itertools.combinations_with_replacement(range(len(whole) + 1), 2):
        assert decoded([whole[:one], whole[one:two], whole[two:]]) == (PAYLOAD, True, b"HTTP/1.1"), (one, two)


def test_single_bytes_give_the_same_payload() -> None:
    assert decoded([CODED[i : i + 1] for i in range(len(CODED))]) == (PAYLOAD, True, b"")


def test_payload_comes_as_soon_as_it_is_there() -> None:
    dechunker = Dechunker()
    assert dechunker.feed(b"5\r\nhe") == b"he"
    assert dechunker.feed(b"l") == b"l"
    assert dechunker.feed(b"lo") == b"lo"
    assert not dechunker.done


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=5), st.data())
@settings(max_examples=50)
def test_what_was_enchunked_comes_out_of_any_cuts(pieces: list[bytes], data: st.DataObject) -> None:
    coded = b"".join(map(enchunk, pieces)) + LAST_CHUNK
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(coded)), max_size=6))), len(coded)]
    assert decoded([coded[start:end] for start, end in itertools.pairwise(cuts)]) == (b"".join(pieces), True, b"")


def test_cut_coding_is_never_done() -> None:
    for end in range(len(CODED)):
        assert not decoded([CODED[:end]])[1], end


BROKEN = [
    *(
        b"-1\r\n",
        b"+5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5_0\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"\r\n",
        b";a\r\n",
    ),
    *(
        b"g\r\n",
        b"5\nhello\r\n",
        b"5\r\nhello\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhello\r\r",
        b"5;\0\r\nhello\r\n",
        b"5;a\rb\r\nhello\r\n",
    ),
    *(b"1" * 16 + b"\r\n", b"0\r\n\n", b"0\r\na: 1\n\r\n", b"0\n\r\n", "٣\r\n".encode(), b"5,5\r\nhello\r\n"),
]


@pytest.mark.parametrize("coded", BROKEN)
def test_a_broken_coding_is_refused_however_it_is_cut(coded: bytes) -> None:
    for cut in range(len(coded) + 1):
        with pytest.raises(ProtocolError):
            decoded([coded[:cut], coded[cut:]])
    with pytest.raises(ProtocolError):
        decoded([coded[i : i + 1] for i in range(len(coded))])


@pytest.mark.parametrize(
    ("start", "endless", "limit"),
    [(b"5;", b"a", LINE_LIMIT), (b"", b"0", LINE_LIMIT), (b"0\r\na: ", b"a", LINE_LIMIT), (b"0\r\n", b"a: 1\r\n", HEAD_LIMIT)],
)
def test_lines_and_trailers_without_end_are_refused(start: bytes, endless: bytes, limit: int) -> None:
    for pieces in ([start + endless * (2 * limit)], [start, *[endless * 1000] * (2 * limit // 1000)]):
        with pytest.raises(ProtocolError):
            decoded(pieces)
