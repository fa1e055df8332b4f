"""A paced stream: whole events, each a while after the one before, whatever pieces the backend sends."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests import configs
from tests.backends.literal import Literal, Peer
from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Client
from tests.configs import Load, fault, with_target
from tests.test_attempts import event, http, serve

load = configs.load  # the fixture
RIGHT = {"authorization": f"Bearer {KEY}"}
EVENTS = [event({"content": f"w{number} "}) for number in range(8)] + [event({}, "stop"), b"data: [DONE]\n\n"]
GAP_S = 0.05
STREAMED = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def config(url: str, dialect: str = "openai") -> str:
    return f'targets: {{default: a, a: {{url: "{url}", dialect: {dialect}, pace: 20/second}}}}'


def split(*sizes: int) -> bytes:
    """The stream as HTTP chunks of those sizes, the rest as one."""
    data, out = b"".join(EVENTS), b""
    for size in (*sizes, len(data)):
        piece, data = data[:size], data[size:]
        out += b"%x\r\n%s\r\n" % (len(piece), piece) if piece else b""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + out + b"0\r\n\r\n"


@pytest.mark.parametrize("sizes", [(), (1, 5, 300, 1), (10,) * 50], ids=["one piece", "odd pieces", "small pieces"])
def test_events_go_one_by_one_at_the_pace(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    with (
        Literal(split(*sizes)) as backend,
        Proxy(tmp_path, config(backend.url)) as proxy,
        Client(proxy.url, headers=RIGHT) as client,
    ):
        began = time.monotonic()
        client.request("POST", "/v1/chat/completions", STREAMED)
        assert client.reply_head().status == 200
        assert list(client.chunks()) == EVENTS
        assert GAP_S * (len(EVENTS) - 1) <= time.monotonic() - began < 5


def test_a_mapped_stream_is_paced_too(tmp_path: Path) -> None:
    with (
        Literal(split()) as backend,
        Proxy(tmp_path, config(backend.url)) as proxy,
        Client(proxy.url, headers=RIGHT) as client,
    ):
        began = time.monotonic()
        client.request("POST", "/v1/messages", {**STREAMED, "max_tokens": 9})
        assert client.reply_head().status == 200
        chunks = list(client.chunks())
        assert all(chunk.startswith(b"event: ") and chunk.endswith(b"\n\n") for chunk in chunks)
        assert GAP_S * (len(chunks) - 1) <= time.monotonic() - began < 5


def test_a_stream_of_lines_is_paced_by_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"model": "m", "message": {"role": "assistant", "content": "x"}, "done": n == 4}) for n in range(5)]
    data = "".join(line + "\n" for line in lines).encode()
    with (
        Literal(http(200, data, kind="application/x-ndjson")) as backend,
        Proxy(tmp_path, config(backend.url, "ollama")) as proxy,
        Client(proxy.url, headers=RIGHT) as client,
    ):
        began = time.monotonic()
        client.request("POST", "/api/chat", STREAMED)
        assert client.reply_head().status == 200
        assert list(client.chunks()) == [line.encode() + b"\n" for line in lines]
        assert GAP_S * 4 <= time.monotonic() - began < 5


def test_a_whole_answer_is_not_paced_and_a_stream_without_an_empty_last_line_is_whole(tmp_path: Path) -> None:
    tail = b": the end has no empty line"

    def script(peer: Peer) -> None:
        while asked := peer.request():
            if b'"stream": true' in asked.body:
                peer.send(http(200, EVENTS[0] + tail, kind="text/event-stream"))
            else:
                serve(peer, asked)

    with (
        Literal(script) as backend,
        Proxy(tmp_path, config(backend.url)) as proxy,
        Client(proxy.url, headers=RIGHT) as client,
    ):
        assert client.ask("POST", "/v1/chat/completions", {**STREAMED, "stream": False}).status == 200
        assert client.ask("POST", "/v1/chat/completions", STREAMED).body == EVENTS[0] + tail


def test_a_client_that_leaves_a_paced_stream_frees_the_backend(tmp_path: Path) -> None:
    left: list[bool] = []

    def endless(peer: Peer) -> None:
        assert peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b"".join(EVENTS[:8]) * 10)
        left.append(peer.left(10))

    with Literal(endless) as backend, Proxy(tmp_path, config(backend.url)) as proxy:
        with Client(proxy.url, headers=RIGHT) as client:
            client.request("POST", "/v1/chat/completions", STREAMED)
            assert client.reply_head().status == 200
            assert next(client.chunks()) == EVENTS[0]
            ended = time.monotonic()
        proxy.wait_for_log("the client left", timeout_s=5)
        assert time.monotonic() - ended < 2
        while not left:
            assert time.monotonic() - ended < 5
        assert left == [True]


@pytest.mark.parametrize("pace", ["60", "60/fortnight", "0/second", "60 / second", "[]"])
def test_a_pace_is_a_rate(load: Load, pace: str) -> None:
    told = fault(load, with_target(f"url: http://h\nroute: /x\npace: {pace}"))
    assert "targets.a.pace: must be a rate such as 60/second" in told


def test_a_pace_may_be_slow(load: Load) -> None:
    for text, seconds in (("60/second", 1 / 60), ("30/minute", 2.0), ("1/2hours", 7200.0)):
        assert load(with_target(f"url: http://h\nroute: /x\npace: {text}")).targets["a"].pace_s == pytest.approx(seconds)
