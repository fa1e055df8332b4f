"""A wait for a backend ends with the backend, with the time, or with the client; nothing else ends it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from proxy.call import Call, Waiting
from proxy.errors import BackendTimeout, ClientGone
from proxy.turns import Turn, Turns
from tests.backends.literal import TOOK_LONG_S, tcp_pair

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def backend() -> Iterator[Pair]:
    """(what the backend holds, what the proxy waits on)"""
    far, near = tcp_pair()
    near.setblocking(False)
    with far, near:
        yield far, near


@pytest.fixture
def client() -> Iterator[Pair]:
    """(what the client holds, what the proxy watches)"""
    far, near = tcp_pair()
    with far, near:
        yield far, near


def soon(seconds: float = TOOK_LONG_S) -> float:
    return time.monotonic() + seconds


def elapsed(began: float) -> float:
    return time.monotonic() - began


def fill(sock: socket.socket) -> None:
    """Sends until nothing more is taken."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"x" * 65536)


# --- the facts


def test_every_call_has_an_id_of_its_own_that_can_stand_in_a_header() -> None:
    ids = {Call("GET", "/", "", "::1").id for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{28}", each) for each in ids)


def test_time_runs_from_the_call_s_beginning() -> None:
    call = Call("GET", "/", "", "::1", started=time.monotonic() - 5)
    assert 5 <= call.elapsed_s() < 5 + TOOK_LONG_S


# --- the backend and the time


def test_a_backend_s_bytes_end_the_wait(backend: Pair) -> None:
    far, near = backend
    far.sendall(b"x")
    Waiting(None).wait(near, False, soon())
    assert near.recv(10) == b"x"


def test_a_backend_s_end_ends_the_wait(backend: Pair) -> None:
    far, near = backend
    far.close()
    Waiting(None).wait(near, False, soon())
    assert near.recv(10) == b""


def test_bytes_that_come_later_end_the_wait(backend: Pair, client: Pair) -> None:
    far, near = backend
    waiting = Waiting(client[1])
    waiting.tick, waiting.tick_s = lambda: far.sendall(b"x"), 0.02
    waiting.wait(near, False, soon())
    assert near.recv(10) == b"x"


def test_a_silent_backend_is_waited_for_as_long_as_was_said(backend: Pair, client: Pair) -> None:
    for watched in (None, client[1]):
        began = time.monotonic()
        with pytest.raises(BackendTimeout) as caught:
            Waiting(watched).wait(backend[1], False, began + 0.1)
        assert caught.value.status == 504
        assert 0.1 <= elapsed(began) < 5.0


def test_a_time_that_is_over_is_not_waited_for(backend: Pair) -> None:
    with pytest.raises(BackendTimeout):
        Waiting(None).wait(backend[1], False, time.monotonic() - 1)


def test_a_wait_for_writing_ends_when_the_backend_takes_more(backend: Pair) -> None:
    far, near = backend
    Waiting(None).wait(near, True, soon())
    fill(near)
    with pytest.raises(BackendTimeout):
        Waiting(None).wait(near, True, soon(0.05))
    far.sendall(b"answer")  # not what is waited for
    with pytest.raises(BackendTimeout):
        Waiting(None).wait(near, True, soon(0.05))
    far.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while far.recv(1 << 20):
            pass
    Waiting(None).wait(near, True, soon())


# --- the client


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("write", [False, True])
def test_a_client_that_has_left_ends_the_wait(backend: Pair, client: Pair, encrypted: bool, write: bool) -> None:
    fill(backend[1])
    client[0].close()
    with pytest.raises(ClientGone):
        Waiting(client[1], encrypted=encrypted).wait(backend[1], write, soon())


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_client_that_leaves_ends_the_wait(backend: Pair, client: Pair, encrypted: bool) -> None:
    waiting = Waiting(client[1], encrypted=encrypted)
    waiting.tick, waiting.tick_s = client[0].close, 0.02
    with pytest.raises(ClientGone):
        waiting.wait(backend[1], False, soon())


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_client_that_resets_its_connection_ends_the_wait(backend: Pair, client: Pair, encrypted: bool) -> None:
    client[1].sendall(b"unread")  # which makes closing a reset
    client[0].close()
    with pytest.raises(ClientGone):
        Waiting(client[1], encrypted=encrypted).wait(backend[1], False, soon())


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_client_s_next_request_ends_nothing_and_stays_unread(backend: Pair, client: Pair, encrypted: bool) -> None:
    client[0].sendall(b"GET /")
    waiting = Waiting(client[1], encrypted=encrypted)
    for _ in range(2):
        began, spent = time.monotonic(), time.process_time()
        with pytest.raises(BackendTimeout):
            waiting.wait(backend[1], False, began + 0.2)
        assert time.process_time() - spent < 0.15  # it does not spin
    assert client[1].recv(10) == b"GET /"


def test_an_answer_that_is_there_counts_more_than_a_client_that_is_not(backend: Pair, client: Pair) -> None:
    backend[0].sendall(b"x")
    client[0].close()
    Waiting(client[1]).wait(backend[1], False, soon())


# --- ticks


def test_a_tick_comes_after_every_so_many_seconds_of_waiting(backend: Pair, client: Pair) -> None:
    ticks: list[float] = []
    waiting = Waiting(client[1])
    waiting.tick, waiting.tick_s = lambda: ticks.append(time.monotonic()), 0.05
    began = time.monotonic()
    with pytest.raises(BackendTimeout):
        waiting.wait(backend[1], False, began + 0.28)
    assert 1 <= len(ticks) <= 5
    gaps = [later - earlier for earlier, later in zip([began, *ticks], ticks, strict=False)]
    assert min(gaps) >= 0.045


def test_a_short_wait_has_no_tick(backend: Pair) -> None:
    ticks: list[int] = []
    waiting = Waiting(None)
    waiting.tick = lambda: ticks.append(1)
    with pytest.raises(BackendTimeout):
        waiting.wait(backend[1], False, soon(0.05))
    assert ticks == []


def test_a_tick_that_finds_the_client_gone_ends_the_wait(backend: Pair) -> None:
    def tick() -> None:
        raise ClientGone("it does not take the keep-alive")

    waiting = Waiting(None)
    waiting.tick, waiting.tick_s = tick, 0.02
    with pytest.raises(ClientGone):
        waiting.wait(backend[1], False, soon())


# --- turns


def test_who_waits_gives_the_turn_to_somebody_else_meanwhile(backend: Pair) -> None:
    far, near = backend
    turns = Turns(1)
    mine, other = Turn(turns), Turn(turns)
    mine.take()

    def compute() -> None:
        other.take()
        far.sendall(b"x")
        other.give()

    thread = threading.Thread(target=compute)
    thread.start()
    Waiting(None, mine).wait(near, False, soon())
    thread.join(TOOK_LONG_S)
    assert mine.taken
    mine.give()
    other.take()  # nothing was lost
    other.give()


def test_a_wait_that_fails_has_its_turn_again(backend: Pair, client: Pair) -> None:
    turn = Turn(Turns(1))
    turn.take()
    client[0].close()
    with pytest.raises(ClientGone):
        Waiting(client[1], turn).wait(backend[1], False, soon())
    assert turn.taken


def test_a_call_that_steps_aside_leaves_its_turn_to_others_for_good(backend: Pair) -> None:
    turns = Turns()
    mine, other = Turn(turns), Turn(turns)
    mine.take()
    waits = Waiting(None, mine)
    waits.step_aside()
    other.take()  # the only one that there is
    backend[0].sendall(b"x")
    waits.wait(backend[1], False, soon())
    assert not mine.taken
