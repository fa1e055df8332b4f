"""The engine for one process, with a clock of the test's: exact windows, held against a naive model; bounded memory."""

from __future__ import annotations

import calendar
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ConfigError
from proxy.state import memory as engine
from proxy.state.memory import Memory
from proxy.state.money import Money, window_of
from tests.backends.claims import Asking, Budget, Rate, Slot


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def made(now: float = 1_000_000.0) -> tuple[Asking, Clock]:
    clock = Clock(now)
    return Asking(Memory(clock=clock, wall=clock)), clock


def let(memory: Asking, *claims: Rate | Budget | Slot, holder: str = "h") -> bool:
    return memory.admit(holder, claims).refused is None


# --- windows


def test_a_moving_window_moves_and_a_fixed_one_jumps() -> None:
    memory, clock = made(1_000_000.0 // 60 * 60 + 59)
    moving, fixed = Rate("m", 2, 60), Rate("f", 2, 60, False)
    assert [let(memory, moving, fixed) for _ in range(3)] == [True, True, False]
    clock.now += 1
    assert [let(memory, fixed) for _ in range(3)] == [True, True, False]
    assert not let(memory, moving)
    clock.now += 58.9
    verdict = memory.admit("h", [moving])
    assert verdict.retry_after_s == pytest.approx(0.1)
    clock.now += 0.1
    assert let(memory, moving)


def test_what_comes_back_in_parts_says_when_enough_of_it_is_there() -> None:
    memory, clock = made()
    for _ in range(4):
        assert let(memory, Rate("r", 8, 60, amount=2))
        clock.now += 10
    verdict = memory.admit("h", [Rate("r", 8, 60, amount=3)])
    assert verdict.retry_after_s == pytest.approx(30)
    assert (verdict.standings[0].left, verdict.standings[0].reset_s) == (0, pytest.approx(50))


def test_a_million_a_day_needs_no_million_entries() -> None:
    memory, clock = made()
    claim = Rate("r", 1_000_000, 86_400, amount=50)
    admitted = 0
    for _ in range(25_000):
        admitted += let(memory, claim, holder="same")
        clock.now += 1
    assert admitted == 20_000
    (window,) = memory._counters.values()
    assert len(window._log) <= engine.TICKS + 1
    clock.now += 86_400 + 86_400 / engine.TICKS
    assert memory.admit("late", [Rate("r", 1_000_000, 86_400, amount=1_000_000)]).refused is None


def test_a_saving_after_its_window_is_nothing_and_an_excess_counts_from_then_on() -> None:
    memory, clock = made()
    memory.admit("long", [Rate("r", 10, 60, amount=5)])
    memory.admit("longer", [Rate("r", 10, 60, amount=5)])
    clock.now += 61
    memory.settle("long", {"r": 1})
    memory.settle("longer", {"r": 9})
    assert memory.admit("h", [Rate("r", 10, 60, amount=1)]).standings[0].left == 5


@pytest.mark.parametrize(
    ("period", "at", "start", "end"),
    [
        ("hour", (2026, 11, 21, 17, 59, 59), (2026, 11, 21, 17), (2026, 11, 21, 18)),
        ("day", (2026, 2, 28, 23, 59, 59), (2026, 2, 28), (2026, 3, 1)),
        ("week", (2026, 11, 22, 23, 59, 59), (2026, 11, 16), (2026, 11, 23)),
        ("month", (2028, 2, 29, 12), (2028, 2, 1), (2028, 3, 1)),
        ("month", (2026, 12, 31, 23), (2026, 12, 1), (2027, 1, 1)),
        ("year", (2026, 12, 31, 23), (2026, 1, 1), (2027, 1, 1)),
    ],
)
def test_a_budget_s_window_is_the_calendar_s_in_utc(
    period: str, at: tuple[int, ...], start: tuple[int, ...], end: tuple[int, ...]
) -> None:
    def unix(parts: tuple[int, ...]) -> float:
        return float(calendar.timegm((*parts, *(0,) * (6 - len(parts)))))

    assert window_of(period, unix(at)) == (unix(start), unix(end))


def test_a_budget_begins_anew_with_its_window() -> None:
    memory, clock = made(calendar.timegm((2026, 11, 30, 23, 59, 0)))
    assert let(memory, Budget("b", 100, "month", 100))
    assert memory.admit("h", [Budget("b", 100, "month", 1)]).retry_after_s == pytest.approx(60)
    clock.now += 60
    assert let(memory, Budget("b", 100, "month", 100), holder="next")
    assert not let(memory, Budget("b", 100, "total", 101))


# --- against a naive model


@dataclass
class Model:
    """Everything that was ever taken, looked through each time."""

    moving: bool
    limit: int
    period_s: int
    taken: list[list[int]] = field(default_factory=list)  # when, how much
    holders: dict[int, list[int]] = field(default_factory=dict)

    def used(self, now: int) -> int:
        begin = now - self.period_s + 1 if self.moving else now // self.period_s * self.period_s
        return sum(amount for at, amount in self.taken if at >= begin)

    def admit(self, now: int, holder: int, amount: int) -> bool:
        if self.used(now) + max(amount, 1) > self.limit:
            return False
        self.taken.append([now, amount])
        self.holders[holder] = self.taken[-1]
        return True

    def settle(self, now: int, holder: int, actual: int) -> None:
        entry = self.holders.pop(holder, None)
        if entry is not None and actual > entry[1]:
            self.taken.append([now, actual - entry[1]])
        elif entry is not None:
            entry[1] = actual


STEP = st.tuples(st.sampled_from(["admit", "settle", "wait"]), st.integers(0, 12), st.integers(0, 9))


@given(st.booleans(), st.integers(1, 20), st.integers(1, 12), st.lists(STEP, max_size=60))
def test_the_engine_says_what_a_naive_model_says(
    moving: bool, limit: int, period_s: int, steps: list[tuple[str, int, int]]
) -> None:
    memory, clock = made(0.0)
    model = Model(moving, limit, period_s)
    for number, (what, amount, other) in enumerate(steps):
        now = int(clock.now)
        if what == "wait":
            clock.now += other
        elif what == "admit":
            verdict = memory.admit(str(number), [Rate("r", limit, period_s, moving, amount)])
            assert (verdict.refused is None) == model.admit(now, number, amount)
            assert verdict.standings[0].left == max(0, limit - model.used(now))
        elif model.holders:
            holder = list(model.holders)[other % len(model.holders)]
            memory.settle(str(holder), {"r": amount})
            model.settle(now, holder, amount)


@given(st.integers(1_100, 5_000), st.lists(st.tuples(st.integers(1, 900), st.floats(0, 400)), min_size=1, max_size=60))
def test_a_coarse_window_never_lets_more_through_than_its_limit(limit: int, calls: list[tuple[int, float]]) -> None:
    memory, clock = made(0.0)
    taken: list[tuple[float, int]] = []
    for amount, pause_s in calls:
        if let(memory, Rate("r", limit, 1000.0, amount=amount)):
            taken.append((clock.now, amount))
            assert sum(each for at, each in taken if at > clock.now - 1000.0) <= limit
        clock.now += pause_s


# --- bounded


def test_names_whose_window_is_over_are_forgotten() -> None:
    memory, clock = made()
    for number in range(20_000):
        claims = [Rate(f"m{number}", 5, 10), Rate(f"f{number}", 5, 10, False), Slot(f"s{number}", 1)]
        memory.admit(str(number), claims)
        memory.settle(str(number), {})
        clock.now += 0.1
    assert len(memory._counters) < 1500
    assert not memory._taken


def test_a_name_in_use_is_never_forgotten() -> None:
    memory, _ = made()
    assert let(memory, Slot("held", 1), Rate("r", 1, 60), Budget("b", 1, "year", 1))
    for number in range(1000):
        memory.admit("other", [Rate(f"other {number}", 1, 60)])
    again = [
        memory.admit("x", [claim]).refused is None for claim in (Slot("held", 1), Rate("r", 1, 60), Budget("b", 1, "year", 1))
    ]
    assert again == [False] * 3


def test_what_has_failed_is_bounded_and_the_oldest_is_forgotten() -> None:
    memory, _ = made()
    for number in range(engine.TRACKED + 2):
        memory.fail(str(number), 1, None)
    names = ["0", "1", "2", str(engine.TRACKED + 1)]
    assert list(memory.resting(names)) == names[2:]


def test_a_queue_that_nobody_uses_is_forgotten() -> None:
    memory, _ = made()
    for number in range(100):
        ticket = memory.queue(str(number), 1, 1, "h")
        assert ticket is not None
        ticket.leave()
    assert not memory._lines


# --- threads


def test_a_waiting_thread_is_woken_when_its_turn_comes() -> None:
    memory = Memory()
    order: list[int] = []
    first = memory.queue("q", 1, 64, "first")
    assert first is not None
    tickets = [memory.queue("q", 1, 64, str(number)) for number in range(32)]

    def wait(number: int) -> None:
        ticket = tickets[number]
        assert ticket is not None
        assert ticket.wait(30)
        order.append(number)
        ticket.leave()

    threads = [threading.Thread(target=wait, args=(number,)) for number in reversed(range(32))]
    for thread in threads:
        thread.start()
    first.leave()
    for thread in threads:
        thread.join(30)
    assert order == list(range(32))


# --- money


def test_what_two_mirrors_write_the_most_of_wins(tmp_path: Path) -> None:
    file = str(tmp_path / "money.db")
    one, other = Money(file, mirror=True, behind=False), Money(file, mirror=True, behind=False)
    for money, amount in ((one, 500), (other, 300)):
        money.note("b", 100, amount)
        money.flush()
    again = Money(file)
    assert (again.known("b", 100), again.known("b", 200), again.known("c", 100)) == (500, 0, 0)
    other.note("b", 200, 1)
    other.close()
    assert Money(file).known("b", 200) == 1


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="budgets are kept there"):
        Money(str(tmp_path / "no folder" / "money.db")).open()


def test_what_cannot_be_written_is_written_with_the_next_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "later"
    money = Money(str(folder / "money.db"), behind=False)
    assert money.known("b", 0) == 0
    money.note("b", 0, 7)
    money.flush()
    assert "cannot write what was spent" in caplog.text
    folder.mkdir()
    money.flush()
    assert Money(str(folder / "money.db")).known("b", 0) == 7


def test_the_engine_in_a_process_of_its_own_writes_within_a_moment(tmp_path: Path) -> None:
    memory = Asking(Memory(Money(str(tmp_path / "money.db"))))
    memory.admit("h", [Budget("b", 10, "total", 5)])
    until = time.monotonic() + 20
    while Money(str(tmp_path / "money.db")).known("b", 0) != 5:
        assert time.monotonic() < until
    memory.close()
