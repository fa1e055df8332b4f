"""The supervisor keeps its workers alive, tells them what it is told, and ends when they have ended."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers need fork")

TOOK_LONG_S = 20.0
ROOT = Path(__file__).parent.parent
BEGINNING = """
import os, signal, sys, time
from proxy.workers import supervise

def say(text):
    os.write(1, f"{text} {os.getpid()}\\n".encode())
"""
POLITE = """
def work():
    told, tells = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(tells, b"."))
    signal.signal(signal.SIGHUP, lambda *_: say("reloads"))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    say("began")
    os.read(told, 1)
    say("drained")
    return 0
"""
UNREADY = """
def work():
    say("began")
    while True:
        time.sleep(60)
"""


class Supervised:
    """A program that supervises; its workers' lines come through a pipe, which ends with the last of them."""

    def __init__(self, work: str, count: int = 2, before: str = "") -> None:
        program = f"{BEGINNING}{work}\n{before}\nsys.exit(supervise({count}, lambda changed: work(), lambda: None))\n"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdout is not None
        self._fd = self.process.stdout.fileno()
        self._rest = b""

    def line(self) -> tuple[str, int]:
        """What a worker says next, and its pid; ("", 0) when all have ended."""
        until = time.monotonic() + TOOK_LONG_S
        while b"\n" not in self._rest:
            assert select.select([self._fd], [], [], until - time.monotonic())[0], "nothing was said"
            data = os.read(self._fd, 4096)
            if not data:
                return "", 0
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        word, pid = line.decode().split(" ")
        return word, int(pid)

    def lines(self, count: int, word: str) -> set[int]:
        """The pids of so many workers that all say the same."""
        said = [self.line() for _ in range(count)]
        assert {each for each, _ in said} == {word}
        return {pid for _, pid in said}

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        return self.process.wait(TOOK_LONG_S)

    def close(self) -> str:
        """Ends what is left, and gives what was said on stderr."""
        if self.process.poll() is None:
            self.process.kill()
        _, errors = self.process.communicate(timeout=TOOK_LONG_S)
        return errors.decode()


Start = Callable[..., Supervised]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[Supervised] = []

    def started(*given: str | int, **more: str | int) -> Supervised:
        made.append(Supervised(*given, **more))  # type: ignore[arg-type]
        return made[-1]

    yield started
    for each in made:
        each.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_told_supervisor_lets_its_workers_finish_and_ends_with_0(start: Start, number: signal.Signals) -> None:
    supervised = start(POLITE, 3)
    pids = supervised.lines(3, "began")
    assert len(pids) == 3
    supervised.tell(number)
    assert supervised.lines(3, "drained") == pids
    assert supervised.line() == ("", 0)
    assert supervised.ends() == 0
    assert supervised.close() == ""


def test_sighup_reaches_every_worker_and_ends_none(start: Start) -> None:
    supervised = start(POLITE)
    pids = supervised.lines(2, "began")
    for _ in range(2):
        supervised.tell(signal.SIGHUP)
        assert supervised.lines(2, "reloads") == pids
    supervised.tell(signal.SIGTERM)
    assert supervised.lines(2, "drained") == pids


def test_a_worker_that_dies_is_replaced_and_the_others_are_not(start: Start) -> None:
    supervised = start(POLITE)
    first, second = supervised.lines(2, "began")
    os.kill(first, signal.SIGKILL)
    ((word, third),) = [supervised.line()]
    assert word == "began"
    supervised.tell(signal.SIGTERM)
    assert supervised.lines(2, "drained") == {second, third}
    assert supervised.ends() == 0
    assert f"worker {first} ended with -9" in supervised.close()


def test_a_worker_that_fails_is_told_of_and_replaced(start: Start, tmp_path: Path) -> None:
    mark = tmp_path / "failed"
    fails_once = f"""
polite = work
def work():
    try:
        os.close(os.open({str(mark)!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return polite()
    raise RuntimeError("out of luck")
"""
    supervised = start(POLITE + fails_once, 1)
    pids = supervised.lines(1, "began")
    supervised.tell(signal.SIGTERM)
    assert supervised.lines(1, "drained") == pids
    assert supervised.ends() == 0
    errors = supervised.close()
    assert "out of luck" in errors
    assert "ended with 1" in errors


def test_a_worker_that_is_still_loading_ends_when_it_is_told(start: Start) -> None:
    supervised = start(UNREADY, 3)
    supervised.lines(3, "began")
    supervised.tell(signal.SIGTERM)
    assert supervised.line() == ("", 0)
    assert supervised.ends() == 0


def test_a_worker_that_is_still_loading_is_not_ended_by_a_reload(start: Start) -> None:
    supervised = start(UNREADY)
    pids = supervised.lines(2, "began")
    supervised.tell(signal.SIGHUP)
    supervised.tell(signal.SIGTERM)
    assert supervised.line() == ("", 0)
    assert supervised.ends() == 0
    assert len(pids) == 2
    assert "another one" not in supervised.close()


def test_a_reload_waits_for_a_worker_that_is_still_loading(start: Start) -> None:
    loads = """
polite = work
def work():
    say("loads")
    while signal.SIGHUP not in signal.sigpending():
        time.sleep(0.01)
    return polite()
"""
    supervised = start(POLITE + loads, 1)
    pids = supervised.lines(1, "loads")
    supervised.tell(signal.SIGHUP)
    assert supervised.lines(1, "reloads") == pids


def test_a_signal_that_comes_while_workers_are_started_is_not_lost(start: Start) -> None:
    """It is sent from within the first worker's beginning, whatever the supervisor is at."""
    tells = """
unready = work
def work():
    os.kill(os.getppid(), signal.SIGTERM)
    unready()
"""
    for _ in range(3):
        supervised = start(UNREADY + tells, 8)
        while supervised.line() != ("", 0):
            pass
        assert supervised.ends() == 0


def test_somebody_else_s_child_is_no_worker(start: Start) -> None:
    """As the first process of a container, the supervisor inherits orphans."""
    before = "if os.fork() == 0:\n    os._exit(3)"
    supervised = start(POLITE, 2, before)
    pids = supervised.lines(2, "began")
    supervised.tell(signal.SIGHUP)
    assert supervised.lines(2, "reloads") == pids
    supervised.tell(signal.SIGTERM)
    assert supervised.lines(2, "drained") == pids
    assert supervised.line() == ("", 0)
    assert supervised.close() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_workers_end_with_a_supervisor_that_was_killed(start: Start) -> None:
    supervised = start(POLITE)
    pids = supervised.lines(2, "began")
    supervised.tell(signal.SIGKILL)
    assert supervised.lines(2, "drained") == pids
    assert supervised.line() == ("", 0)
