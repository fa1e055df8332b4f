"""One answer per request, whole or told to be broken; a connection serves again as long as nothing is odd about it."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

from proxy.adapters.exchange import IDLE_CONNECTIONS, Exchange
from proxy.call import Waiting
from proxy.errors import BackendError, BackendTimeout, ClientGone, ProxyError, Unreachable
from tests.backends.literal import TOOK_LONG_S, Literal, Peer, tcp_pair

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BIG = bytes(range(256)) * (8 * 4096)  # 8 MB
RELEASED_S = 2.0  # a client that left has ended its backend's connection by then


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    with contextlib.closing(Exchange(connect_s=5.0)) as adapter:
        yield adapter


def request(
    url: str,
    method: str = "GET",
    body: Any = None,
    headers: Mapping[str, str] = {},
    waiting: Waiting | None = None,
    first_byte_s: float | None = None,
) -> requests.PreparedRequest:
    prepared = requests.PreparedRequest()
    prepared.method, prepared.url, prepared.body = method, url, body
    prepared.headers = {"host": "backend.test", **headers}  # type: ignore[assignment]
    prepared.waiting = waiting  # type: ignore[attr-defined]
    if first_byte_s is not None:
        prepared.first_byte_s = first_byte_s  # type: ignore[attr-defined]
    return prepared


def get(exchange: Exchange, url: str, **more: Any) -> bytes:
    """A request's whole answer."""
    return exchange.send(request(url, **more), stream=True, timeout=10.0).content


# --- what is sent


def test_a_request_is_sent_as_it_is_meant(exchange: Exchange) -> None:
    with Literal(OK) as backend:
        get(exchange, backend.url + "/v1/a%20b?c=d&e", headers={"x-one": "é"})
        get(exchange, backend.url)
        get(exchange, backend.url + "?q")
        assert [asked.head.split(b"\r\n")[0] for asked in backend.asked] == [
            b"GET /v1/a%20b?c=d&e HTTP/1.1",
            b"GET / HTTP/1.1",
            b"GET /?q HTTP/1.1",
        ]
        assert backend.asked[0].fields == [("host", "backend.test"), ("x-one", "é")]


@pytest.mark.parametrize(
    ("method", "body", "wanted"),
    [
        ("POST", b"abc", ("content-length", "3")),
        ("POST", b"", ("content-length", "0")),
        ("POST", None, ("content-length", "0")),
        ("PUT", None, ("content-length", "0")),
        ("GET", b"abc", ("content-length", "3")),
        ("GET", None, None),
        ("DELETE", None, None),
    ],
)
def test_a_body_has_its_length(exchange: Exchange, method: str, body: bytes | None, wanted: tuple[str, str] | None) -> None:
    with Literal(OK) as backend:
        get(exchange, backend.url, method=method, body=body)
        asked = backend.asked[0]
    assert asked.body == (body or b"")
    assert asked.fields[1:] == ([wanted] if wanted else [])


def test_a_streaming_body_goes_chunked_or_with_the_length_it_has(exchange: Exchange) -> None:
    with Literal(OK) as backend:
        get(exchange, backend.url, method="POST", body=iter([b"ab", b"", b"cde"]))
        get(exchange, backend.url, method="POST", body=iter([b"ab", b"cde"]), headers={"content-length": "5"})
        chunked, counted = backend.asked
    assert chunked.body == counted.body == b"abcde"
    assert chunked.fields[1:] == [("transfer-encoding", "chunked")]
    assert counted.fields[1:] == [("content-length", "5")]


def test_a_streaming_body_that_breaks_is_not_ended_and_not_the_backend_s_fault(exchange: Exchange) -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        while b"first" not in peer.sock.recv(65536):
            pass
        seen = b"".join(iter(lambda: peer.sock.recv(65536), b""))
        assert b"0\r\n\r\n" not in seen
        over.set()

    def body() -> Iterator[bytes]:
        yield b"first"
        raise ConnectionResetError("the client's")

    with Literal(script) as backend:
        with pytest.raises(ClientGone):
            get(exchange, backend.url, method="POST", body=body())
        assert over.wait(TOOK_LONG_S)


def test_large_bodies_go_both_ways(exchange: Exchange) -> None:
    def echo(peer: Peer) -> None:
        while asked := peer.request():
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(asked.body) + asked.body)

    with Literal(echo) as backend:
        parts = [BIG[start : start + 100_000] for start in range(0, len(BIG), 100_000)]
        for body in (BIG, iter(parts)):
            assert get(exchange, backend.url, method="POST", body=body) == BIG
        assert backend.connections == 1


# --- what comes back

PAYLOAD = b'{"a": "\xc3\xa9"}'
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n"
    + PAYLOAD[:5]
    + b"\r\n6;x\r\n"
    + PAYLOAD[5:]
    + b"\r\n0\r\nT: 1\r\n\r\n"
)
COUNTED = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\nx: y\r\n\r\n" + PAYLOAD
CLOSED = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n" + PAYLOAD
INTERIM = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
HEADED = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n"
WHOLE: dict[str, tuple[str, bytes, bytes]] = {
    "length": ("GET", COUNTED, PAYLOAD),
    "chunked": ("GET", CHUNKED, PAYLOAD),
    "interim": ("GET", INTERIM + COUNTED, PAYLOAD),
    "length 0": ("POST", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
    "no reason": ("GET", b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", b"ok"),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "204 with a length": ("GET", b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", b""),
    "304": ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b""),
    "304 chunked": ("GET", b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n", b""),
    "HEAD": ("HEAD", HEADED, b""),
    "HEAD chunked": ("HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b""),
    "an error": ("GET", b"HTTP/1.1 500 Oh no\r\ncontent-length: 2\r\n\r\nno", b"no"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_an_answer_is_read_to_its_end_and_its_connection_used_again(exchange: Exchange, name: str) -> None:
    method, answer, payload = WHOLE[name]
    with Literal(answer) as backend:
        for _ in range(3):
            assert get(exchange, backend.url, method=method) == payload
        assert backend.connections == 1


@pytest.mark.parametrize("name", WHOLE)
def test_an_answer_in_single_bytes_is_the_same(exchange: Exchange, name: str) -> None:
    method, answer, payload = WHOLE[name]

    def script(peer: Peer) -> None:
        while peer.request():
            for byte in answer:
                peer.send(bytes([byte]))

    with Literal(script) as backend:
        for _ in range(2):
            assert get(exchange, backend.url, method=method) == payload
        assert backend.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        CLOSED,
        b"HTTP/1.0 200 OK\r\n\r\n" + PAYLOAD,
        b"HTTP/1.0 200 OK\r\ncontent-length: 11\r\n\r\n" + PAYLOAD,
        COUNTED.replace(b"x: y", b"Connection: close"),
        COUNTED.replace(b"x: y", b"connection: x-y, Close"),
        COUNTED.replace(b"x: y", b"connection: x-y\r\nconnection: close"),
        CHUNKED.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1),
        COUNTED + b"junk",
        COUNTED + OK,
        CHUNKED + b"\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n" + PAYLOAD,
    ],
)
def test_an_answer_that_ends_its_connection_or_has_junk_behind_it_is_the_last_one_there(
    exchange: Exchange, answer: bytes
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(answer)
        if answer in (CLOSED, b"HTTP/1.0 200 OK\r\n\r\n" + PAYLOAD):
            return
        assert peer.left()

    with Literal(script) as backend:
        for number in range(1, 4):
            assert get(exchange, backend.url) in (PAYLOAD, b"")
            assert backend.connections == number


def test_junk_on_an_idle_connection_is_never_an_answer(exchange: Exchange) -> None:
    say, said, over = threading.Event(), threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(COUNTED)
        if peer.number == 0:
            assert say.wait(TOOK_LONG_S)
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            said.set()
            assert peer.left()
            over.set()

    with Literal(script) as backend:
        assert get(exchange, backend.url) == PAYLOAD
        say.set()
        assert said.wait(TOOK_LONG_S)
        assert get(exchange, backend.url) == PAYLOAD
        assert over.wait(TOOK_LONG_S)
        assert backend.connections == 2


def test_interim_answers_without_end_are_given_up(exchange: Exchange) -> None:
    with Literal(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000) as backend, pytest.raises(BackendError, match="final status"):
        get(exchange, backend.url)


def test_an_answer_s_end_is_known_at_its_last_byte(exchange: Exchange) -> None:
    with Literal(CHUNKED) as backend:
        answer = exchange.send(request(backend.url), stream=True, timeout=10.0)
        pieces = list(iter(answer.raw.read1, b""))
        assert b"".join(pieces) == PAYLOAD
        assert answer.raw.ended
        assert answer.raw.read1() == b""


# --- what is no answer


@pytest.mark.parametrize("answer", [COUNTED, CHUNKED, INTERIM + COUNTED], ids=["length", "chunked", "interim"])
@pytest.mark.parametrize("crash", [False, True], ids=["end", "reset"])
def test_an_answer_cut_at_any_place_is_a_fault(exchange: Exchange, answer: bytes, crash: bool) -> None:
    def script(peer: Peer) -> None:
        asked = peer.request()
        assert asked is not None
        peer.send(answer[: int(asked.path[1:])])
        if crash:
            peer.reset()

    with Literal(script) as backend:
        for end in range(len(answer)):
            with pytest.raises(BackendError) as caught:
                get(exchange, f"{backend.url}/{end}")
            assert caught.value.status == 502
            assert caught.value.source == "backend"
        assert get(exchange, f"{backend.url}/{len(answer)}") == PAYLOAD or crash


def test_an_answer_that_its_end_ends_is_cut_by_a_reset(exchange: Exchange) -> None:
    read = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(CLOSED)
        assert read.wait(TOOK_LONG_S)
        peer.reset()

    with Literal(script) as backend:
        answer = exchange.send(request(backend.url), stream=True, timeout=10.0)
        assert answer.raw.read1() == PAYLOAD
        read.set()
        with pytest.raises(BackendError, match="broke off"):
            answer.raw.read1()


NO_ANSWER = [
    b"nonsense\r\n\r\n",
    b"HTTP/2 200 OK\r\n\r\n",
    b"HTTP/1.2 200 OK\r\n\r\n",
    b"http/1.1 200 OK\r\n\r\n",
    b"ICY 200 OK\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 099 OK\r\n\r\n",
    b"HTTP/1.1  200 OK\r\n\r\n",
    b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n folded: c\r\n\r\n",
    b"HTTP/1.1 200 OK\r\na: b\nc: d\r\n\r\n",
    b"HTTP/1.1 200 OK\r\na: b\0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nokay\r\n",
    b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101 + b"\r\n",
    b"a" * 100_000,
]


@pytest.mark.parametrize("answer", NO_ANSWER, ids=lambda answer: repr(answer[:40]))
def test_what_is_no_answer_is_a_fault_that_ends_the_connection(exchange: Exchange, answer: bytes) -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        with contextlib.suppress(OSError):
            peer.send(answer)
        assert peer.left()
        over.set()

    with Literal(script) as backend:
        with pytest.raises(BackendError) as caught:
            get(exchange, backend.url)
        assert caught.value.status == 502
        assert over.wait(TOOK_LONG_S)
        assert backend.connections == 1


# --- connections that have gone stale


def stale_after_one(peer: Peer) -> None:
    """Answers one request; the next one on the same connection is taken, and the connection ended."""
    peer.request()
    peer.send(COUNTED)
    peer.request()


def both_idle(exchange: Exchange, url: str) -> None:
    """Two connections come to rest in the pool."""
    answers = [exchange.send(request(url), stream=True, timeout=10.0) for _ in range(2)]
    assert [answer.content for answer in answers] == [PAYLOAD, PAYLOAD]


@pytest.mark.parametrize("body", [None, b"abc"])
def test_a_stale_connection_costs_one_more_try_on_a_new_one(exchange: Exchange, body: bytes | None) -> None:
    with Literal(stale_after_one) as backend:
        both_idle(exchange, backend.url)
        assert get(exchange, backend.url, method="POST", body=body) == PAYLOAD
        assert [asked.connection for asked in backend.asked] == [0, 1, 1, 2] or [
            asked.connection for asked in backend.asked
        ] == [0, 1, 0, 2]


def test_a_new_connection_gets_no_second_try(exchange: Exchange) -> None:
    def script(peer: Peer) -> None:
        peer.request()

    with Literal(script) as backend:
        with pytest.raises(BackendError):
            get(exchange, backend.url)
        assert (backend.connections, len(backend.asked)) == (1, 1)


@pytest.mark.parametrize("beginning", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", COUNTED[:-1]])
def test_an_answer_that_has_begun_is_not_asked_for_again(exchange: Exchange, beginning: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(COUNTED)
        peer.request()
        peer.send(beginning)

    with Literal(script) as backend:
        get(exchange, backend.url)
        with pytest.raises(BackendError):
            get(exchange, backend.url, method="POST", body=b"abc")
        assert (backend.connections, len(backend.asked)) == (1, 2)


def test_a_streaming_body_is_sent_once(exchange: Exchange) -> None:
    with Literal(stale_after_one) as backend:
        get(exchange, backend.url)
        with pytest.raises(BackendError, match="closed the connection"):
            get(exchange, backend.url, method="POST", body=iter([b"abc"]))
        assert (backend.connections, len(backend.asked)) == (1, 2)


@pytest.mark.parametrize("crash", [False, True], ids=["end", "reset"])
def test_a_connection_that_ended_while_idle_is_not_used(exchange: Exchange, crash: bool) -> None:
    ended = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(COUNTED)
        if crash:
            peer.reset()
        peer.sock.close()
        ended.set()

    with Literal(script) as backend:
        for _ in range(3):  # a body that streams: there is no second try
            ended.clear()
            assert get(exchange, backend.url, method="POST", body=iter([b"abc"])) == PAYLOAD
            assert ended.wait(TOOK_LONG_S)
        assert len(backend.asked) == backend.connections == 3


def test_an_answer_before_the_whole_request_was_read_still_counts(exchange: Exchange) -> None:
    """A backend that refuses a large body ends the connection while it is still being sent."""

    def script(peer: Peer) -> None:
        peer.sock.recv(1000)
        peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        peer.sock.shutdown(socket.SHUT_RD)

    with Literal(script) as backend:
        answer = exchange.send(request(backend.url, "POST", BIG * 2), stream=True, timeout=10.0)
        assert (answer.status_code, answer.content) == (413, b"big")


# --- deadlines


def test_a_backend_that_says_nothing_is_a_504(exchange: Exchange) -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        assert peer.left()
        over.set()

    with Literal(script) as backend:
        for more, timeout in (({}, 0.1), ({"first_byte_s": 0.1}, 10.0)):
            over.clear()
            with pytest.raises(BackendTimeout) as caught:
                exchange.send(request(backend.url, **more), timeout=timeout)
            assert caught.value.status == 504
            assert over.wait(TOOK_LONG_S)
        assert len(backend.asked) == 2


def trickling(data: Iterable[bytes]) -> Any:
    """A script that says those pieces a hundredth of a second apart, until the other side has enough."""

    def script(peer: Peer) -> None:
        peer.request()
        for piece in data:
            if peer.left(0.01):
                return
            peer.send(piece)

    return script


def test_a_header_that_trickles_has_a_deadline_as_a_whole() -> None:
    endless = itertools.chain([b"HTTP/1.1 200 OK\r\na: "], itertools.repeat(b"b"))
    with contextlib.closing(Exchange(header_s=0.2)) as exchange, Literal(trickling(endless)) as backend:
        began = time.monotonic()
        with pytest.raises(BackendTimeout):
            get(exchange, backend.url)
        assert 0.15 < time.monotonic() - began < 5.0


def test_the_wait_for_an_answer_is_bounded_whatever_comes_before_it(exchange: Exchange) -> None:
    interim = itertools.repeat(b"HTTP/1.1 102 Processing\r\n\r\n", 15)

    def script(peer: Peer) -> None:
        trickling(interim)(peer)
        assert peer.left()

    began = time.monotonic()
    with Literal(script) as backend, pytest.raises(BackendTimeout):
        exchange.send(request(backend.url, first_byte_s=0.5), timeout=10.0)
    assert time.monotonic() - began < 5.0


def test_a_request_that_is_not_taken_has_a_deadline(exchange: Exchange) -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        assert over.wait(TOOK_LONG_S)

    with Literal(script) as backend:
        for more, timeout in (({}, 0.2), ({"first_byte_s": 0.2}, 10.0)):
            began = time.monotonic()
            with pytest.raises(BackendTimeout):
                exchange.send(request(backend.url, "POST", BIG * 4, **more), timeout=timeout)
            assert time.monotonic() - began < 5.0
        over.set()


def test_a_body_may_take_long_but_not_fall_silent(exchange: Exchange) -> None:
    over = threading.Event()
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

    def script(peer: Peer) -> None:
        trickling([head, *[b"1\r\nx\r\n"] * 30])(peer)
        assert peer.left()
        over.set()

    with Literal(script) as backend:
        answer = exchange.send(request(backend.url), stream=True, timeout=0.25)
        pieces: list[bytes] = []
        with pytest.raises(BackendTimeout):
            pieces.extend(iter(answer.raw.read1, b""))
        assert over.wait(TOOK_LONG_S)


def test_a_backend_that_cannot_be_reached_is_a_fault_in_words_for_a_client(exchange: Exchange) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    for host in (f"127.0.0.1:{port}", "no-such-host.invalid", "a..b", "x" * 70 + ".test"):
        with pytest.raises(BackendError) as caught:
            get(exchange, f"http://{host}/")
        assert caught.value.status == 502
        assert "rrno" not in caught.value.message
        assert "Error" not in caught.value.message
        assert host not in caught.value.message


# --- the client leaves


class Client:
    """A client's connection to the proxy, and the `Waiting` that watches it."""

    def __init__(self, encrypted: bool = False) -> None:
        self.far, self.near = tcp_pair()
        self.waiting = Waiting(self.near, encrypted=encrypted)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.far.close()
        self.near.close()


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(request.param) as made:
        yield made


def test_a_client_that_leaves_before_the_answer_releases_the_backend(exchange: Exchange, client: Client) -> None:
    asked, released = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        asked.set()
        assert peer.left()
        released.set()

    def leave() -> None:
        assert asked.wait(TOOK_LONG_S)
        client.far.close()

    with Literal(script) as backend:
        leaving = threading.Thread(target=leave)
        leaving.start()
        with pytest.raises(ClientGone):
            get(exchange, backend.url, method="POST", body=b"{}", waiting=client.waiting)
        leaving.join()
        assert released.wait(RELEASED_S)


def test_a_client_that_leaves_mid_answer_releases_the_backend(exchange: Exchange, client: Client) -> None:
    released = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(CHUNKED[:-10])
        assert peer.left()
        released.set()

    with Literal(script) as backend:
        answer = exchange.send(request(backend.url, waiting=client.waiting), stream=True, timeout=10.0)
        assert b"".join(itertools.islice(answer.raw, 1))
        client.far.close()
        with pytest.raises(ClientGone):
            list(answer.raw)
        assert released.wait(RELEASED_S)


def test_a_client_that_leaves_while_its_request_is_sent_releases_the_backend(exchange: Exchange, client: Client) -> None:
    released, full = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.sock.recv(1000)
        assert full.wait(TOOK_LONG_S)
        client.far.close()
        assert peer.left()
        released.set()

    client.waiting.tick, client.waiting.tick_s = full.set, 0.05
    with Literal(script) as backend:
        with pytest.raises(ClientGone):
            get(exchange, backend.url, method="POST", body=BIG * 4, waiting=client.waiting)
        assert released.wait(TOOK_LONG_S)


def test_closing_an_answer_early_ends_its_connection(exchange: Exchange) -> None:
    released = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(CHUNKED[:-10])
        assert peer.left()
        released.set()

    with Literal(script) as backend:
        with exchange.send(request(backend.url), stream=True, timeout=10.0) as answer:
            assert answer.raw.read1()
        assert released.wait(RELEASED_S)


def test_a_client_that_sends_its_next_request_has_not_left(exchange: Exchange, client: Client) -> None:
    waited = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        assert waited.wait(TOOK_LONG_S)
        peer.send(COUNTED)

    client.far.sendall(b"GET /next HTTP/1.1\r\n\r\n")
    client.waiting.tick, client.waiting.tick_s = waited.set, 0.05
    with Literal(script) as backend:
        assert get(exchange, backend.url, waiting=client.waiting) == PAYLOAD
    assert client.near.recv(100) == b"GET /next HTTP/1.1\r\n\r\n"


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def serving(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("localhost",))).configure_cert(context)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_connections_are_used_again(authority: trustme.CA, ca_file: str, version: ssl.TLSVersion) -> None:
    context = serving(authority)
    context.minimum_version = context.maximum_version = version
    context.num_tickets = 4
    with contextlib.closing(Exchange(verify=ca_file)) as exchange, Literal(CHUNKED, context) as backend:
        for _ in range(5):
            assert get(exchange, backend.url, method="POST", body=b"abc") == PAYLOAD
        assert (backend.connections, len(backend.asked)) == (1, 5)


def test_an_unwatched_and_a_watched_tls_answer_in_single_bytes_are_the_same(authority: trustme.CA, ca_file: str) -> None:
    def script(peer: Peer) -> None:
        while peer.request():
            for byte in INTERIM + CHUNKED:
                peer.send(bytes([byte]))

    with contextlib.closing(Exchange(verify=ca_file)) as exchange, Literal(script, serving(authority)) as backend:
        assert get(exchange, backend.url) == PAYLOAD
        with Client() as client:
            assert get(exchange, backend.url, waiting=client.waiting) == PAYLOAD
        assert backend.connections == 1


def test_many_answers_in_one_tls_record_are_not_waited_for(authority: trustme.CA, ca_file: str) -> None:
    """What TLS has decrypted already, no poll sees."""
    big = b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000
    with contextlib.closing(Exchange(verify=ca_file)) as exchange, Literal(big, serving(authority)) as backend:
        for _ in range(3):
            assert len(get(exchange, backend.url)) == 200_000
        assert backend.connections == 1


def test_large_bodies_go_both_ways_over_tls(authority: trustme.CA, ca_file: str) -> None:
    def echo(peer: Peer) -> None:
        while asked := peer.request():
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(asked.body) + asked.body)

    with contextlib.closing(Exchange(verify=ca_file)) as exchange, Literal(echo, serving(authority)) as backend:
        assert get(exchange, backend.url, method="POST", body=BIG) == BIG


@pytest.mark.parametrize("polite", [False, True], ids=["end", "close_notify"])
def test_a_tls_connection_that_ended_while_idle_is_not_used(authority: trustme.CA, ca_file: str, polite: bool) -> None:
    ended = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(COUNTED)
        if polite:
            peer.sock.setblocking(False)
            with contextlib.suppress(OSError):
                peer.sock.unwrap()  # type: ignore[attr-defined]  # does not wait for the other side's
        peer.sock.close()
        ended.set()

    with contextlib.closing(Exchange(verify=ca_file)) as exchange, Literal(script, serving(authority)) as backend:
        for _ in range(3):
            ended.clear()
            assert get(exchange, backend.url, method="POST", body=iter([b"abc"])) == PAYLOAD
            assert ended.wait(TOOK_LONG_S)
        assert len(backend.asked) == 3


def test_a_stale_tls_connection_costs_one_more_try(authority: trustme.CA, ca_file: str) -> None:
    with contextlib.closing(Exchange(verify=ca_file)) as exchange, Literal(stale_after_one, serving(authority)) as backend:
        both_idle(exchange, backend.url)
        assert get(exchange, backend.url, method="POST", body=b"abc") == PAYLOAD
        assert len(backend.asked) == 4


@pytest.mark.parametrize("end", range(0, len(CHUNKED), 9))
def test_a_cut_tls_answer_is_a_fault(authority: trustme.CA, ca_file: str, end: int) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(CHUNKED[:end])

    with Literal(script, serving(authority)) as backend, contextlib.closing(Exchange(verify=ca_file)) as exchange:
        url = backend.url
        with pytest.raises(BackendError):
            get(exchange, url)


def test_a_client_that_leaves_releases_a_tls_backend(authority: trustme.CA, ca_file: str, client: Client) -> None:
    released = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(CHUNKED[:-10])
        with contextlib.suppress(OSError):
            peer.sock.recv(1)
        released.set()

    with contextlib.closing(Exchange(verify=ca_file)) as exchange, Literal(script, serving(authority)) as backend:
        answer = exchange.send(request(backend.url, waiting=client.waiting), stream=True, timeout=10.0)
        assert answer.raw.read1()
        client.far.close()
        with pytest.raises(ClientGone):
            list(answer.raw)
        assert released.wait(RELEASED_S)


def test_a_certificate_is_checked_unless_that_is_switched_off(authority: trustme.CA, ca_file: str) -> None:
    other = trustme.CA()
    cases = [
        (serving(authority), True, False),  # nobody that everybody trusts
        (serving(other), ca_file, False),
        (serving(authority, "elsewhere.test"), ca_file, False),
        (serving(authority), ca_file, True),
        (serving(other, "elsewhere.test"), False, True),
    ]
    for context, verify, works in cases:
        with contextlib.closing(Exchange(verify=verify)) as exchange, Literal(OK, context) as backend:
            if works:
                assert get(exchange, backend.url) == b"ok"
            else:
                with pytest.raises(BackendError, match="not trusted"):
                    get(exchange, backend.url)
                assert backend.asked == []


def test_a_backend_can_ask_for_a_certificate(authority: trustme.CA, ca_file: str, tmp_path: Path) -> None:
    mine = authority.issue_cert("proxy.test")
    files = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    mine.cert_chain_pems[0].write_to_path(files[0])
    mine.private_key_pem.write_to_path(files[1])
    context = serving(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    with Literal(OK, context) as backend:
        with contextlib.closing(Exchange(verify=ca_file, cert=files)) as exchange:
            assert get(exchange, backend.url) == get(exchange, backend.url) == b"ok"
            assert backend.connections == 1
        with contextlib.closing(Exchange(verify=ca_file)) as exchange, pytest.raises(BackendError):
            get(exchange, backend.url)
        assert len(backend.asked) == 2


def test_a_backend_that_speaks_no_tls_is_a_fault_and_a_silent_one_a_504(ca_file: str) -> None:
    def silent(peer: Peer) -> None:
        assert peer.left()

    def plain(peer: Peer) -> None:
        peer.sock.recv(1000)
        peer.send(OK)

    for script, fault in ((silent, BackendTimeout), (plain, Unreachable)):
        with contextlib.closing(Exchange(connect_s=0.3, verify=ca_file)) as exchange, Literal(script) as backend:
            with pytest.raises(BackendError) as caught:
                get(exchange, backend.url.replace("http:", "https:"))
            assert type(caught.value) is fault


# --- the pool


def test_connections_are_kept_per_origin(exchange: Exchange) -> None:
    with Literal(OK) as one, Literal(OK.replace(b"ok", b"no")) as two:
        for _ in range(3):
            assert get(exchange, one.url) == b"ok"
            assert get(exchange, two.url) == b"no"
        assert (one.connections, two.connections) == (1, 1)


def test_calls_at_once_get_their_own_answers() -> None:
    def echo(peer: Peer) -> None:
        while asked := peer.request():
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(asked.body) + asked.body)

    with contextlib.closing(Exchange()) as exchange, Literal(echo) as backend:
        wrong: list[bytes] = []

        def calls(name: int) -> None:
            for number in range(25):
                body = b"%d-%d" % (name, number) * 50
                got = get(exchange, backend.url, method="POST", body=body)
                wrong.extend([got] if got != body else [])

        threads = [threading.Thread(target=calls, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TOOK_LONG_S)
        assert wrong == []
        assert len(backend.asked) == 200
        assert backend.connections <= 8


def test_the_pool_is_bounded_and_the_rest_is_closed(exchange: Exchange) -> None:
    count, lock, over = IDLE_CONNECTIONS + 3, threading.Lock(), threading.Event()
    left: list[int] = []

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(COUNTED)
        assert peer.left()
        with lock:
            left.append(peer.number)
            if len(left) == 3:
                over.set()

    with Literal(script) as backend:
        answers = [exchange.send(request(backend.url), stream=True, timeout=10.0) for _ in range(count)]
        assert all(answer.content == PAYLOAD for answer in answers)
        assert over.wait(TOOK_LONG_S)
        assert backend.connections == count
        assert sorted(left) == [count - 3, count - 2, count - 1]


def test_closing_ends_idle_connections_and_those_in_use_when_their_answer_ends(exchange: Exchange) -> None:
    left: list[int] = []
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(COUNTED)
        assert peer.left()
        left.append(peer.number)
        if len(left) == 2:
            over.set()

    with Literal(script) as backend:
        idle, used = (exchange.send(request(backend.url), stream=True, timeout=10.0) for _ in range(2))
        assert idle.content == PAYLOAD
        exchange.close()
        assert used.content == PAYLOAD
        assert over.wait(TOOK_LONG_S)
        assert get(exchange, backend.url) == PAYLOAD  # a call that was under way when the configuration changed


# --- requests' own interface


def test_an_answer_is_a_response_of_requests(exchange: Exchange) -> None:
    head = b"HTTP/1.1 201 Made It\r\nContent-Type: application/json\r\nX-A: 1\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\n"
    with Literal(head + b"Content-Length: 11\r\n\r\n" + PAYLOAD) as backend:
        answer = exchange.send(request(backend.url + "/x", "POST", b"{}"), stream=True, timeout=10.0)
        assert isinstance(answer, requests.Response)
        assert (answer.status_code, answer.reason, answer.ok, bool(answer)) == (201, "Made It", True, True)
        assert answer.headers["CONTENT-type"] == "application/json"
        assert answer.headers.get("x-b") is None
        assert [value for name, value in answer.raw.fields if name == "set-cookie"] == ["a=1", "b=2"]
        assert answer.json() == json.loads(PAYLOAD)
        assert answer.text == PAYLOAD.decode()
        assert answer.content == answer.content == PAYLOAD
        assert answer.url == backend.url + "/x"
        assert answer.request.method == "POST"
        assert not answer.is_redirect
        answer.raise_for_status()
        assert "201" in repr(answer)
        with pytest.raises(AttributeError):
            _ = answer.nonsense  # type: ignore[attr-defined]


def test_an_answer_s_text_has_the_encoding_that_its_header_names(exchange: Exchange) -> None:
    with Literal(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=latin-1\r\nContent-Length: 1\r\n\r\n\xe9") as backend:
        assert exchange.send(request(backend.url), timeout=10.0).text == "é"


def test_an_error_can_be_raised(exchange: Exchange) -> None:
    with Literal(b"HTTP/1.1 429 Slow\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n") as backend:
        answer = exchange.send(request(backend.url), timeout=10.0)
        assert not answer.ok
        with pytest.raises(requests.HTTPError, match="429"):
            answer.raise_for_status()


@pytest.mark.parametrize("answer", [COUNTED, CHUNKED, CLOSED])
def test_a_body_can_be_read_in_every_way(exchange: Exchange, answer: bytes) -> None:
    def script(peer: Peer) -> None:
        if peer.request():
            peer.send(answer)
            if answer is not CLOSED:
                assert peer.left()

    with Literal(script) as backend:

        def fresh() -> requests.Response:
            return exchange.send(request(backend.url), stream=True, timeout=10.0)

        ways = [
            lambda: b"".join(fresh().iter_content(4)),
            lambda: b"".join(fresh().iter_content(None)),
            lambda: b"\n".join(fresh().iter_lines()),
            lambda: fresh().raw.read(),
            lambda: b"".join(fresh().raw.stream()),
            lambda: b"".join(iter(partial(fresh().raw.read, 3), b"")),
            lambda: (raw := fresh().raw).read(3) + raw.read(0) + b"".join(raw),
            lambda: (raw := fresh().raw).read(3) + raw.read(),
        ]
        for number, way in enumerate(ways):
            assert way() == PAYLOAD, number
            exchange.close()


def test_a_fault_in_the_body_is_ours_through_requests_too(exchange: Exchange) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(COUNTED[:-1])

    with Literal(script) as backend:
        for read in (lambda a: a.content, lambda a: list(a.iter_content(5)), lambda a: a.raw.read()):
            answer = exchange.send(request(backend.url), stream=True, timeout=10.0)
            with pytest.raises(ProxyError, match="broke off"):
                read(answer)
