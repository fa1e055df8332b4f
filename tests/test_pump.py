"""proxy/pump.py: streams between real sockets, moved by one thread."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from proxy.adapters.exchange import Body, Connection, Exchange
from proxy.call import Waiting
from proxy.errors import BackendError, BackendTimeout, ClientGone
from proxy.http1 import LAST_CHUNK, enchunk
from proxy.pump import TAIL, Pump, suits


class Stream:
    """One stream: `backend` and `client` are the far ends of what the pump is between."""

    def __init__(self, length: int | None = None, chunked: bool = False, timeout_s: float = 20, ahead: bytes = b"") -> None:
        near, self.backend = socket.socketpair()
        self.near_client, self.client = socket.socketpair()
        near.setblocking(False)
        self.exchange = Exchange()
        conn = Connection(near, ("http", "h", 80))
        conn.buffer = ahead
        self.body = Body(self.exchange, conn, [], length, chunked, True, Waiting(None), timeout_s)
        self.client.settimeout(20)

    def heard(self, size: int) -> bytes:
        """That many bytes, as the client gets them."""
        out = b""
        while len(out) < size:
            piece = self.client.recv(65536)
            assert piece, f"the end, behind {out!r}"
            out += piece
        return out

    def close(self) -> None:
        self.body.close()
        self.exchange.close()
        for sock in (self.backend, self.near_client, self.client):
            sock.close()


class Running:
    """A pump, and the handlers' threads."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.pump = Pump()
        self._stack = stack
        self._threads = stack.enter_context(ThreadPoolExecutor(50))

    def stream(self, *, to_chunks: bool = False, **body: Any) -> tuple[Stream, Future[bytes]]:
        stream = Stream(**body)
        self._stack.callback(stream.close)
        return stream, self._threads.submit(self.pump.run, stream.body, stream.near_client, to_chunks)


@pytest.fixture
def running() -> Iterator[Running]:
    with contextlib.ExitStack() as stack:
        yield Running(stack)


def test_bytes_go_on_as_they_come_until_the_length_is_reached(running: Running) -> None:
    stream, result = running.stream(length=6)
    stream.backend.sendall(b"abc")
    assert stream.heard(3) == b"abc"
    assert not result.done()
    stream.backend.sendall(b"def")
    assert stream.heard(3) == b"def"
    assert result.result(20) == b"abcdef"


def test_what_was_read_ahead_goes_first_and_may_be_all(running: Running) -> None:
    stream, result = running.stream(length=6, ahead=b"abcdef")
    assert (result.result(20), stream.heard(6)) == (b"abcdef", b"abcdef")
    stream, result = running.stream(length=6, ahead=b"abc")
    stream.backend.sendall(b"def")
    assert (result.result(20), stream.heard(6)) == (b"abcdef", b"abcdef")


def test_chunks_are_taken_off_and_put_on_anew(running: Running) -> None:
    stream, result = running.stream(chunked=True, to_chunks=True)
    stream.backend.sendall(b"3;x=y\r\nab")
    assert stream.heard(len(enchunk(b"ab"))) == enchunk(b"ab")
    stream.backend.sendall(b"c\r\n0\r\n\r\n")
    end = enchunk(b"c") + LAST_CHUNK
    assert stream.heard(len(end)) == end
    assert result.result(20) == b"abc"


def test_an_answer_that_ends_with_its_connection_ends_there(running: Running) -> None:
    stream, result = running.stream(to_chunks=True)
    stream.backend.sendall(b"abc")
    stream.backend.close()
    whole = enchunk(b"abc") + LAST_CHUNK
    assert stream.heard(len(whole)) == whole
    assert result.result(20) == b"abc"


def test_the_connection_serves_again_behind_a_whole_answer_and_the_pump_has_let_go_of_it(running: Running) -> None:
    stream, result = running.stream(length=3)
    conn = stream.body.conn
    assert conn is not None
    stream.backend.sendall(b"abc")
    assert result.result(20) == b"abc"
    again = Body(stream.exchange, conn, [], 3, False, True, Waiting(None), 20)
    result = running._threads.submit(running.pump.run, again, stream.near_client, False)
    stream.backend.sendall(b"def")
    assert result.result(20) == b"def"
    assert stream.heard(6) == b"abcdef"


def test_only_the_end_of_a_long_stream_is_kept(running: Running) -> None:
    data = bytes(range(256)) * 400
    stream, result = running.stream(length=len(data))
    sending = threading.Thread(target=stream.backend.sendall, args=(data,))
    sending.start()
    assert stream.heard(len(data)) == data
    sending.join(20)
    assert result.result(20) == data[-TAIL:]


def test_a_client_that_reads_slowly_slows_its_backend_down_and_loses_nothing(running: Running) -> None:
    data = bytes(range(256)) * 20_000
    stream, result = running.stream(length=len(data))
    stream.backend.settimeout(0.3)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < len(data):
            sent += stream.backend.send(data[sent:])
    assert 0 < sent < len(data), "nobody has read a byte, so the pump must not take all of it"
    stream.backend.settimeout(20)
    sending = threading.Thread(target=stream.backend.sendall, args=(data[sent:],))
    sending.start()
    assert stream.heard(len(data)) == data
    sending.join(20)
    assert result.result(20) == data[-TAIL:]


def test_a_client_that_leaves_ends_its_stream_and_no_other(running: Running) -> None:
    leaving, left = running.stream(length=6)
    staying, stayed = running.stream(length=6)
    for stream in (leaving, staying):
        stream.backend.sendall(b"abc")
        assert stream.heard(3) == b"abc"
    leaving.client.close()
    with pytest.raises(ClientGone):
        left.result(20)
    assert leaving.backend.recv(1) == b"", "the backend sees that nobody wants the rest"
    staying.backend.sendall(b"def")
    assert stayed.result(20) == b"abcdef"


def test_a_backend_that_breaks_off_is_an_error_behind_what_it_said(running: Running) -> None:
    short, result = running.stream(length=6)
    short.backend.sendall(b"abc")
    short.backend.close()
    with pytest.raises(BackendError, match="broke off"):
        result.result(20)
    assert short.heard(3) == b"abc"
    garbled, result = running.stream(chunked=True, to_chunks=True)
    garbled.backend.sendall(b"3\r\nabc\r\nno size\r\n")
    with pytest.raises(BackendError, match="broke off"):
        result.result(20)


def test_a_backend_that_falls_silent_is_told_of(running: Running) -> None:
    stream, result = running.stream(length=6, timeout_s=0.05)
    stream.backend.sendall(b"abc")
    with pytest.raises(BackendTimeout, match="silent"):
        result.result(20)


def test_fifty_streams_at_once_are_one_thread_and_each_gets_its_own(running: Running) -> None:
    before = [thread for thread in threading.enumerate() if thread.name == "pump"]
    streams = [running.stream(length=9) for _ in range(50)]
    for part in (b"ab", b"cd", b"ef"):
        for number, (stream, _) in enumerate(streams):
            stream.backend.sendall(part + b"%c" % (number + 33))
    for number, (stream, result) in enumerate(streams):
        own = b"%c" % (number + 33)
        assert result.result(20) == stream.heard(9) == b"ab" + own + b"cd" + own + b"ef" + own
    now = [thread for thread in threading.enumerate() if thread.name == "pump"]
    assert len(now) == len(before) + 1


def test_it_takes_plain_sockets_at_both_ends_alone() -> None:
    with contextlib.closing(Stream(length=3)) as stream:
        assert suits(stream.body, stream.near_client)
        with ssl.create_default_context().wrap_socket(
            stream.near_client, do_handshake_on_connect=False, server_hostname="h"
        ) as encrypted:
            assert not suits(stream.body, encrypted)
        assert stream.body.conn is not None
        stream.body.conn.encrypted = True
        assert not suits(stream.body, stream.client)
    with contextlib.closing(Stream(length=0)) as stream:
        assert not suits(stream.body, stream.near_client), "nothing is left to be moved"
