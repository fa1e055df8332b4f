"""One suite over the three engines: one process alone, four workers of a supervisor, four processes on a Redis."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.state import StateLost
from proxy.state.frames import frame, unframe
from tests.backends.claims import Asking, Budget, Rate, Slot
from tests.backends.fleet import ROOT, Fleet, Told, until
from tests.backends.redis_server import RedisServer, TlsFront

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers need fork")

ENGINES = ("memory", "service", "redis")
HOUR_S = 3600.0
FAST_S = 0.4


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def fleets(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[dict[str, Fleet]]:
    made: dict[str, Fleet] = {}
    yield made
    for fleet in made.values():
        fleet.close()


@pytest.fixture(params=ENGINES)
def workers(
    request: pytest.FixtureRequest,
    fleets: dict[str, Fleet],
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: RedisServer,
) -> list[Told]:
    """Four that share a state, or one that need not share; they are kept for the whole file: names must be fresh."""
    engine = request.param
    if engine not in fleets:
        fleets[engine] = fleet_of(engine, tmp_path_factory.mktemp(engine), redis_server)
    return fleets[engine].workers


def fleet_of(engine: str, folder: Path, redis_server: RedisServer) -> Fleet:
    return Fleet(folder, redis_server.url if engine == "redis" else "memory", 1 if engine == "memory" else 4)


@pytest.fixture
def name() -> str:
    return f"name {uuid.uuid4()}"


def others(workers: list[Told]) -> Iterator[Told]:
    """The workers in turn, without an end."""
    while True:
        yield from workers


def refused(answer: list[Any]) -> int | None:
    return answer[0]


def left(answer: list[Any]) -> list[int]:
    return [each[0] for each in answer[2]]


def early(period_s: float, needs_s: float = 5.0) -> None:
    """Returns when a fixed window of that length has so much time left: at once, but for a test at a window's end."""
    until(lambda: period_s - time.time() % period_s > needs_s)


# --- rates


@pytest.mark.parametrize("moving", [True, False])
def test_64_threads_against_a_limit_of_100_let_exactly_100_through(workers: list[Told], name: str, moving: bool) -> None:
    early(60)
    claim = Rate(name, 100, 60.0, moving)
    storms = [worker.start("storm", 64 // len(workers), 12, [claim]) for worker in workers]
    assert sum(storm.result(60) for storm in storms) == 100
    refusal, retry_after_s, ((remaining, reset_s),) = workers[0].call("admit", "late", [claim])
    assert (refusal, remaining) == (0, 0)
    assert 0 < retry_after_s <= reset_s + 0.1
    assert reset_s <= 60


def test_a_refusal_takes_nothing_of_any_claim(workers: list[Told], name: str) -> None:
    there = others(workers)
    first, second = Rate(name + " a", 5, HOUR_S), Rate(name + " b", 1, HOUR_S)
    assert left(next(there).call("admit", "1", [first, second])) == [4, 0]
    answer = next(there).call("admit", "2", [first, second])
    assert (refused(answer), left(answer)) == (1, [4, 0])
    assert left(next(there).call("admit", "3", [first])) == [3]


def test_what_was_taken_comes_back_after_the_period(workers: list[Told], name: str) -> None:
    claim = Rate(name, 2, FAST_S, amount=2)
    began = time.monotonic()
    assert refused(workers[0].call("admit", "1", [claim])) is None
    late = until(lambda: refused(workers[-1].call("admit", "2", [claim])) is None)
    assert late
    assert time.monotonic() - began >= FAST_S


def test_what_a_call_used_replaces_its_estimate(workers: list[Told], name: str) -> None:
    def claim(amount: int) -> Rate:
        return Rate(name, 1000, HOUR_S, amount=amount)

    worker, other = workers[0], workers[-1]
    worker.call("admit", "1", [claim(600)])
    assert refused(other.call("admit", "2", [claim(600)])) == 0
    worker.call("settle", "1", {name: 100})
    assert left(other.call("admit", "2", [claim(600)])) == [300]
    other.call("settle", "2", {name: 950})
    answer = worker.call("admit", "3", [claim(0)])
    assert (refused(answer), left(answer)) == (0, [0])


@pytest.mark.long
@pytest.mark.parametrize("moving", [True, False])
def test_what_was_given_back_whole_is_nothing_when_its_time_has_come(workers: list[Told], name: str, moving: bool) -> None:
    early(1, 0.8)
    claim = Rate(name, 10, 1.0, moving, 4)
    workers[0].call("admit", "1", [claim])
    workers[0].call("settle", "1", {name: 0})
    time.sleep(1.1)  # until its entry, which holds nothing now, has come back
    assert left(workers[-1].call("admit", "2", [claim])) == [6]


def test_what_is_not_named_stays_as_taken_and_an_unknown_holder_is_no_error(workers: list[Told], name: str) -> None:
    workers[0].call("admit", "1", [Rate(name, 10, HOUR_S, amount=4)])
    workers[0].call("settle", "1", {})
    workers[0].call("settle", "nobody", {name: 0})
    assert left(workers[-1].call("admit", "2", [Rate(name, 10, HOUR_S, amount=0)])) == [6]


def test_a_fixed_window_ends_with_its_period(workers: list[Told], name: str) -> None:
    early(HOUR_S)
    claim = Rate(name, 3, HOUR_S, False)
    assert left(workers[0].call("admit", "1", [claim])) == [2]
    assert workers[0].call("admit", "2", [claim])[2][0][1] == pytest.approx(HOUR_S - time.time() % HOUR_S, abs=5)


def test_more_than_the_limit_at_once_never_fits(workers: list[Told], name: str) -> None:
    for claim in (Rate(name, 5, 60, True, 6), Rate(name, 5, 60, False, 6), Budget(name, 5, "day", 6)):
        assert workers[0].call("admit", "1", [claim])[:2] == [0, math.inf]


def test_many_units_in_a_long_period_are_counted_to_the_last(workers: list[Told], name: str) -> None:
    claim = Rate(name, 1_000_000, 86_400.0, amount=99_999)
    there = others(workers)
    let = [refused(next(there).call("admit", str(at), [claim])) is None for at in range(12)]
    assert let == [True] * 10 + [False] * 2
    assert left(next(there).call("admit", "rest", [Rate(name, 1_000_000, 86_400.0, amount=10)])) == [0]


# --- budgets


def test_a_budget_is_reserved_and_settled(workers: list[Told], name: str) -> None:
    def claim(amount: int) -> Budget:
        return Budget(name, 1_000_000, "total", amount)

    assert left(workers[0].call("admit", "1", [claim(700_000)])) == [300_000]
    answer = workers[-1].call("admit", "2", [claim(400_000)])
    assert (refused(answer), answer[1]) == (0, math.inf)
    workers[0].call("settle", "1", {name: 500_000})
    assert left(workers[-1].call("admit", "2", [claim(400_000)])) == [100_000]
    workers[-1].call("settle", "2", {name: 600_000})
    assert refused(workers[0].call("admit", "3", [claim(0)])) == 0


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_money_survives_the_end_of_all_that_counted_it(
    engine: str, number: signal.Signals, tmp_path: Path, redis_server: RedisServer, name: str
) -> None:
    """With Redis: although that has forgotten everything."""
    claim = Budget(name, 1000, "month", 300)
    with fleet_of(engine, tmp_path, redis_server) as fleet:
        worker = fleet.workers[0]
        worker.call("admit", "1", [claim])
        worker.call("settle", "1", {name: 250})
        if engine != "redis":
            worker.call("admit", "in flight", [Budget(name, 1000, "month", 100)])
        until(lambda: kept(tmp_path, name) == (250 if engine == "redis" else 350))
        fleet.close(number)
    if engine == "redis":
        redis_server.client().flushall()
    with fleet_of(engine, tmp_path, redis_server) as fleet:
        assert left(fleet.workers[-1].call("admit", "2", [Budget(name, 1000, "month", 0)])) == [
            750 if engine == "redis" else 650
        ]


def kept(folder: Path, name: str, file: str = "mooltiproxy.db") -> int | None:
    import sqlite3

    if not (folder / file).exists():
        return None
    connection = sqlite3.connect(folder / file)
    try:
        row = connection.execute("SELECT amount FROM spent WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None
    except sqlite3.OperationalError:  # not made yet
        return None
    finally:
        connection.close()


def test_without_a_budget_no_file_is_made(tmp_path: Path) -> None:
    with Fleet(tmp_path, "memory", 2) as fleet:
        fleet.workers[0].call("admit", "1", [Rate("r", 1, 1.0), Slot("s", 1)])
    assert list(tmp_path.iterdir()) == []


# --- slots


def test_a_slot_is_refused_when_taken_and_comes_back(workers: list[Told], name: str) -> None:
    claim = Slot(name, 2)
    there = others(workers)
    assert [refused(next(there).call("admit", f"{name} {at}", [claim])) for at in range(3)] == [None, None, 0]
    workers[0].call("settle", f"{name} 0", {})
    assert refused(workers[-1].call("admit", f"{name} 3", [claim])) is None


@pytest.mark.parametrize("engine", ["service", "redis"])
def test_what_a_killed_worker_held_comes_back(engine: str, tmp_path: Path, redis_server: RedisServer, name: str) -> None:
    lease_s = 1.5 if engine == "redis" else 0
    with Fleet(tmp_path, redis_server.url if lease_s else "memory", 4, lease_s) as fleet:
        victim, survivor = fleet.workers[0], fleet.workers[1]
        assert refused(victim.call("admit", "1", [Slot(name, 1)])) is None
        assert victim.call("queue", name, 1, 4, "1")
        assert victim.call("queue", name, 1, 4, "2")
        assert survivor.call("queue", name, 1, 4, "3")
        assert refused(survivor.call("admit", "3", [Slot(name, 1)])) == 0
        assert not survivor.call("wait", "3", 0.05)
        victim.kill()
        until(lambda: refused(survivor.call("admit", "4", [Slot(name, 1)])) is None)
        assert survivor.call("wait", "3", 25)
        if engine == "service":  # a worker takes its place, and connects anew
            assert refused(fleet.accept().call("admit", "5", [Slot(name, 1)])) == 0


# --- the queue


def test_the_queue_is_first_come_first_served_over_all_workers(workers: list[Told], name: str) -> None:
    there = others(workers)
    holders = [(next(there), f"{name} {at}") for at in range(7)]
    for worker, holder in holders:
        assert worker.call("queue", name, 2, 5, holder)
    assert not workers[0].call("queue", name, 2, 5, "one too many")
    waits = [worker.start("wait", holder, 20) for worker, holder in holders]
    assert [wait.result(20) for wait in waits[:2]] == [True, True]
    for at, (worker, holder) in enumerate(holders[:5]):
        assert not any(wait.done() for wait in waits[at + 2 :])
        worker.call("leave", holder)
        assert waits[at + 2].result(20)
    for worker, holder in holders[5:]:
        worker.call("leave", holder)


def test_a_slot_of_a_queue_comes_with_an_admission_when_one_is_free_and_nobody_waits(workers: list[Told], name: str) -> None:
    there = others(workers)
    a, b, c, d = (next(there) for _ in range(4))
    assert a.call("admit_to", name, 2, name + "a")
    assert b.call("admit_to", name, 2, name + "b")
    assert not c.call("admit_to", name, 2, name + "c")
    assert d.call("queue", name, 2, 5, name + "d")
    assert not d.call("wait", name + "d", 0.01)
    a.call("settle", name + "a", {})
    assert d.call("wait", name + "d", 20)
    assert a.call("queue", name, 2, 5, name + "e")
    b.call("give_back", name + "b")
    b.call("give_back", name + "b")
    assert a.call("wait", name + "e", 20)
    b.call("settle", name + "b", {})
    c.call("settle", name + "c", {})
    assert not b.call("admit_to", name, 2, name + "f")
    for worker, holder in ((d, "d"), (a, "e")):
        worker.call("leave", name + holder)
    until(lambda: c.call("admit_to", name, 2, name + f"g{time.monotonic()}"))


def test_who_leaves_the_queue_is_passed_over(workers: list[Told], name: str) -> None:
    there = others(workers)
    a, b, c = next(there), next(there), next(there)
    for worker, holder in ((a, "a"), (b, "b"), (c, "c")):
        assert worker.call("queue", name, 1, 5, name + holder)
    assert not b.call("wait", name + "b", 0.01)
    b.call("leave", name + "b")
    b.call("leave", name + "b")
    a.call("leave", name + "a")
    assert c.call("wait", name + "c", 20)
    c.call("leave", name + "c")
    assert a.call("queue", name, 1, 0, name + "again")
    assert a.call("wait", name + "again", 20)
    a.call("leave", name + "again")


# --- failures and rests


def known(workers: list[Told], name: str, wanted: bool) -> None:
    """Every worker has heard of it: at once, or with Redis as soon as it was told."""
    for worker in workers:
        until(lambda worker=worker: (name in worker.call("resting", [name])) == wanted)


def test_the_last_failure_makes_it_rest_for_all_until_it_is_forgiven(workers: list[Told], name: str) -> None:
    there = others(workers)
    assert [next(there).call("fail", name, 3, 60.0) for _ in range(2)] == [0.0, 0.0]
    assert next(there).call("resting", [name, "nobody"]) == {}
    assert next(there).call("fail", name, 3, 60.0) == pytest.approx(60, abs=2)
    known(workers, name, True)
    assert not next(there).call("trial", name, 1.0)
    workers[0].call("forgive", name)
    known(workers, name, False)
    assert workers[-1].call("fail", name, 3, 60.0) == 0.0


def test_a_success_in_between_makes_the_failures_no_row(workers: list[Told], name: str) -> None:
    for worker in workers * 2:
        assert worker.call("fail", name, 2, 60.0) == 0.0
        worker.call("forgive", name)


def test_a_rest_without_an_end_has_none(workers: list[Told], name: str) -> None:
    assert workers[0].call("fail", name, 1, None) == math.inf
    until(lambda: workers[-1].call("resting", [name]) == {name: math.inf})


def test_a_rest_of_its_own_ends_by_itself(workers: list[Told], name: str) -> None:
    workers[0].call("rest", name, 60.0)
    known(workers, name, True)
    workers[0].call("rest", name, 0.05)
    until(lambda: workers[-1].call("resting", [name]) == {})


def test_after_a_rest_one_may_try_and_its_failure_rests_again(workers: list[Told], name: str) -> None:
    assert workers[0].call("trial", name, 60.0)
    assert workers[0].call("fail", name, 1, 1.0) > 0
    known(workers, name, True)
    until(lambda: workers[-1].call("resting", [name]) == {})
    asked = [worker.start("trial", name, 60.0) for worker in workers * 3]
    assert sum(each.result(20) for each in asked) == 1
    assert workers[0].call("fail", name, 5, 60.0) == pytest.approx(60, abs=2)
    workers[0].call("forgive", name)
    known(workers, name, False)
    assert workers[-1].call("trial", name, 60.0)


def test_a_trial_that_nobody_ends_is_another_s_in_time(workers: list[Told], name: str) -> None:
    workers[0].call("fail", name, 1, 0.02)
    until(lambda: workers[0].call("trial", name, 0.05))
    until(lambda: workers[0].call("trial", name, 60.0))
    assert not workers[-1].call("trial", name, 60.0)


def test_after_a_rest_the_count_begins_anew(workers: list[Told], name: str) -> None:
    assert [workers[0].call("fail", name, 2, 0.02) > 0 for _ in range(2)] == [False, True]
    until(lambda: workers[0].call("resting", [name]) == {})
    assert workers[0].call("fail", name, 2, 60.0) == 0.0
    assert workers[0].call("fail", name, 2, 60.0) > 0


# --- a cache's entries


def test_an_entry_is_there_for_all_until_its_time_is_over(workers: list[Told], name: str) -> None:
    data = "".join(map(chr, range(256))) * 1000
    workers[0].call("put", name, data, 60.0, 10_000_000)
    assert workers[-1].call("get", name) == data
    workers[-1].call("put", name, "other", 0.05, 10_000_000)
    until(lambda: workers[0].call("get", name) is None)


def test_the_entry_that_was_used_longest_ago_goes_first(workers: list[Told], name: str) -> None:
    there = others(workers)
    workers[0].call("put", name + "all", "", 60.0, 0)  # whatever other tests left goes
    for each in "abc":
        next(there).call("put", name + each, each * 100, 60.0, 300)
    assert next(there).call("get", name + "a") == "a" * 100
    next(there).call("put", name + "d", "d" * 100, 60.0, 300)
    assert [next(there).call("get", name + each) is None for each in "abcd"] == [False, True, False, False]
    next(there).call("put", name + "e", "e" * 301, 60.0, 300)
    assert [next(there).call("get", name + each) is None for each in "acde"] == [False, False, False, True]


# --- the service's socket


MALFORMED: list[bytes] = [
    b"",
    b"\xff" * 64,
    b"GET / HTTP/1.1\r\n\r\n",
    frame(None),
    frame([]),
    frame(["admit", "h", []]),
    frame(["nothing"]),
    frame(["hello"]),
    frame(["hello", "me"]) + frame(["admit", "h", []], b'[[["r", "n", "x", 1, true]], [], [], null]'),
    frame(["hello", "me"]) + frame(["admit", "h", []], b'[[["f", "n", 1, 0, false]], [], [], null]'),
    frame(["hello", "me"]) + frame(["admit", "h", []], b'[[["r", "n", 1, 0.0, false]], [], [], null]'),
    frame(["hello", "me"]) + frame(["admit", "h", []], b'[[], [["b", "n", 1, "day"]], [], null]'),
    frame(["hello", "me"]) + frame(["admit", "h", ["x"]], b'[[], [["b", "n", 1, "day"]], [], null]'),
    frame(["hello", "me"]) + frame(["admit", {}, []], b'[[], [], [["s", "n", 1]], null]'),
    frame(["hello", "me"]) + frame(["admit", "h", []], b'[[], [], [], ["n"]]'),
    frame(["hello", "me"]) + frame(["admit", "h", []]),
    frame(["hello", "me"]) + frame(["settle", "h", 3]),
    frame(["hello", "me"]) + frame(["fail", [], 1, 1]),
    frame(["hello", "me"]) + frame(["queue", "n", None, 1, "t"]),
    frame(["hello", "me"]) + frame(["__class__"]),
    frame(["hello", []]),
    (100_000).to_bytes(4, "big") + (0).to_bytes(4, "big") + b"[" * 100_000,
    (8).to_bytes(4, "big") + (0).to_bytes(4, "big") + b"\xff\xfe\x00\x01[]]]",
]


def test_what_is_no_question_ends_its_connection_and_nothing_else() -> None:
    from proxy.state.client import Client
    from proxy.state.service import Service

    service = Service()
    service.listen()
    child = os.fork()
    if child == 0:
        while True:
            service.turn()
    try:
        service.abandon()
        good = Asking(Client(service))
        good.admit("1", [Slot("n", 2)])
        for data in MALFORMED:
            with socket.socket(socket.AF_UNIX) as bad:
                bad.settimeout(20)
                bad.connect(service.address)
                bad.sendall(data)
                bad.shutdown(socket.SHUT_WR)
                answer = b""
                while piece := bad.recv(65536):
                    answer += piece
                assert len(answer) <= len(frame(None)), data
            assert good.admit("2", [Rate("other", 10**9, 1.0)]).refused is None
        assert good.admit("3", [Slot("n", 2)]).standings[0].left == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_frame_is_read_however_it_is_split() -> None:
    message = frame(["put", "ä", 1.5], b"\x00data")
    assert all(unframe(message[:at]) is None for at in range(len(message)))
    assert unframe(message + b"more") == (["put", "ä", 1.5], b"\x00data", len(message))


# --- Redis goes and comes


@pytest.mark.parametrize("on_loss", ["allow", "refuse"])
def test_while_redis_is_away_calls_go_as_the_configuration_says_and_it_heals(
    on_loss: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from proxy.errors import ProxyError
    from proxy.state.open import open_state

    server = RedisServer(tmp_path)
    state = Asking(open_state(server.url, 1, on_loss))
    claim = Rate("r", 3, HOUR_S)
    try:
        assert state.admit("1", [claim]).standings[0].left == 2
        ticket = state.queue("q", 1, 1, "1")
        assert ticket is not None
        server.stop()
        for _ in range(5):
            if on_loss == "allow":
                verdict = state.admit("2", [claim])
                assert (verdict.refused, list(verdict.standings)) == (None, [])
            else:
                with pytest.raises(ProxyError) as refusal:
                    state.admit("2", [claim])
                assert (refusal.value.status, refusal.value.code) == (503, "state_lost")
                assert dict(refusal.value.headers)["retry-after"] == "2"
            state.settle("2", {})
            assert state.get("entry") is None
        server.start()

        def counted() -> bool:
            try:
                return bool(state.admit("3", [Rate("again", 10**6, HOUR_S)]).standings)
            except ProxyError:
                return False

        until(counted)
        assert state.admit("4", [claim]).standings[0].left == 2  # it was started empty
        until(lambda: state.fail("n", 1, 60.0) and state.resting(["n"]))
        ticket.leave()
        again = until(lambda: state.queue("q2", 1, 1, "2"))
        assert again.wait(20)
        again.leave()
    finally:
        state.close()
        server.stop()
    told = [record.getMessage() for record in caplog.records if record.name == "proxy.state.open"]
    assert sum("the shared state is lost" in line for line in told) == sum("state is back" in line for line in told) == 1


@pytest.mark.long
@pytest.mark.parametrize("restarts", [True, False])
def test_what_calls_used_while_redis_is_away_is_told_when_it_is_back_and_counts_once(tmp_path: Path, restarts: bool) -> None:
    """Money, and slots. Redis is killed, and comes back empty; or it only does not answer for a while."""
    from proxy.state.money import Money
    from proxy.state.redis import Redis

    server = RedisServer(tmp_path)
    engine = Asking(Redis(server.url, Money(str(tmp_path / "money.db"), mirror=True)))
    try:
        claims = [Budget("b", 1000, "total", 100), Slot("s", 3)]
        for holder in ("1", "2", "3"):
            assert engine.admit(holder, claims).refused is None
        engine.settle("1", {"b": 60})
        until(lambda: kept(tmp_path, "b", "money.db") == 60)
        server.stop() if restarts else server.freeze()
        # what was told into the connection that broke may have been counted, and a Redis that comes back empty cannot say so
        steps = [lambda: engine.settle("2", {"b": 50}), lambda: engine.settle("3", {"b": 50})]
        steps.insert(0 if restarts else 2, lambda: engine.admit("4", claims))
        lost = []
        for step in steps:
            try:
                step()
            except StateLost:
                lost.append(step)
        assert steps[0 if restarts else 2] in lost
        server.start() if restarts else server.thaw()

        def settled() -> bool:
            try:
                return engine.admit("look", [Budget("b", 1000, "total", 0), Slot("s", 3)]).standings[0].left == 840
            except StateLost:
                return False
            finally:
                with contextlib.suppress(StateLost):
                    engine.settle("look")

        until(settled)
        answers = [engine.admit(f"late {at}", [Slot("s", 3)]).refused for at in range(4)]
        assert [answer is None for answer in answers] == [True, True, True, False]
    finally:
        engine.close()
        server.stop()


def test_more_lost_ends_than_are_kept_are_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from proxy.state.redis import UNTOLD, Redis

    server = RedisServer(tmp_path)
    engine = Asking(Redis(server.url))
    try:
        for at in range(UNTOLD + 7):
            engine.admit(str(at), [Slot("s", 10**6)])
        server.stop()
        for at in range(UNTOLD + 7):
            with contextlib.suppress(StateLost):
                engine.settle(str(at))
        server.start()
        until(lambda: "told late" in caplog.text)
        assert re.search(r"the ends of \d+ calls were told late, those of \d+ not at all", caplog.text)
        late, never = map(int, re.findall(r"\d+", caplog.text.partition("the ends of ")[2])[:2])
        assert (late, never) == (UNTOLD, 7)
    finally:
        engine.close()
        server.stop()


def test_a_redis_over_tls_counts_like_any_other(tmp_path: Path, name: str, redis_server: RedisServer) -> None:
    front = TlsFront(redis_server, tmp_path)
    try:
        with Fleet(tmp_path, front.url, 2) as fleet:
            one, other = fleet.workers
            storms = [worker.start("storm", 8, 16, [Rate(name, 100, 60.0)]) for worker in fleet.workers]
            assert sum(storm.result(60) for storm in storms) == 100
            one.call("admit", "1", [Budget(name, 100, "total", 60), Slot(name, 1)])
            assert refused(other.call("admit", "2", [Budget(name, 100, "total", 30), Slot(name, 1)])) == 1
            one.call("settle", "1", {name: 50})
            until(lambda: left(other.call("admit", "3", [Budget(name, 100, "total", 0)])) == [50])
            assert one.call("queue", name, 1, 1, "a")
            assert other.call("queue", name, 1, 1, "b")
            one.call("leave", "a")
            assert other.call("wait", "b", 20)
            other.call("put", name, "data", 60.0, 1000)
            assert one.call("get", name) == "data"
    finally:
        front.close()


def test_a_redis_whose_certificate_nobody_trusts_is_away(tmp_path: Path, redis_server: RedisServer) -> None:
    from proxy.state.redis import Redis

    front = TlsFront(redis_server, tmp_path)
    engine = Asking(Redis(front.stranger))
    try:
        with pytest.raises(StateLost, match="certificate verify failed"):
            engine.admit("1", [Rate("r", 1, 1.0)])
    finally:
        engine.close()
        front.close()


def test_a_redis_that_is_not_there_costs_no_call_a_timeout(tmp_path: Path) -> None:
    from proxy.state.open import open_state

    server = RedisServer(tmp_path)
    server.stop()
    state = Asking(open_state(server.url))
    began = time.monotonic()
    for at in range(200):
        assert state.admit(str(at), [Rate("r", 1, 60.0)]).refused is None
    assert time.monotonic() - began < 10
    state.close()


def test_every_key_in_redis_expires(redis_server: RedisServer, name: str) -> None:
    from proxy.state.redis import Redis

    engine = Asking(Redis(redis_server.url))
    try:
        engine.admit("1", [Rate(name, 5, 60.0), Rate(name, 5, 60.0, False), Budget(name, 9, "total", 1), Slot(name, 1)])
        engine.settle("other")
        tickets = [engine.queue(name, 1, 5, "1"), engine.queue(name, 1, 5, "2")]
        engine.fail(name, 1, None)
        engine.put(name, b"data", 60.0, 1000)
        client = redis_server.client()
        keys = list(client.scan_iter("*"))
        assert all(key.startswith(b"mooltiproxy:") for key in keys)
        assert [key for key in keys if client.ttl(key) == -1] == []
        assert len([key for key in keys if name.encode() in key]) >= 8
        for ticket in tickets:
            assert ticket is not None
            ticket.leave()
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("prepare", "url", "said"),
    [
        ("sys.modules['redis'] = None", "redis://127.0.0.1:1", "needs the package redis: pip install redis"),
        ("pass", "redis://127.0.0.1:1/?db=x", "state: Invalid value for 'db'"),
    ],
)
def test_a_redis_that_cannot_be_used_is_told_at_the_start(prepare: str, url: str, said: str) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
{prepare}
from proxy.errors import ConfigError
from proxy.state.open import open_state
try:
    open_state({url!r})
except ConfigError as fault:
    print(fault.faults[0])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said in run.stdout
