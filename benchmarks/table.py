"""A run's results as Markdown. Medians over the rounds with min..max; ratios are made within a round, then the median is taken.

A run is {"machine": {…}, "settings": {…}, "seen": [{"row", "test", "round", …what the driver saw, "cpu_us"}], "start": {…},
"mapping": [{"what", "unit", "values"}]}; parts that were not asked for are not there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

Seen = dict[str, Any]
Cell = Callable[["Run", str], str]


class Run:
    """A run's results, by row and test."""

    def __init__(self, run: dict[str, Any]) -> None:
        self._seen: dict[tuple[str, str], dict[int, Seen]] = {}
        for seen in run.get("seen", ()):
            self._seen.setdefault((seen["row"], seen["test"]), {})[seen["round"]] = seen
        self.rows = list(dict.fromkeys(row for row, _ in self._seen))

    def has(self, row: str, test: str) -> bool:
        return (row, test) in self._seen

    def values(self, row: str, test: str, name: str) -> list[float]:
        """One value of every round that has it."""
        found = (seen.get(name) for seen in self._seen.get((row, test), {}).values())
        return [value for value in found if value is not None]

    def ratios(self, row: str, other: str, test: str, name: str) -> list[float]:
        """A row's value through another row's of the same round."""
        mine, theirs = self._seen.get((row, test), {}), self._seen.get((other, test), {})
        pairs = ((mine[number].get(name), theirs[number].get(name)) for number in mine if number in theirs)
        return [one / two for one, two in pairs if one is not None and two]

    def added(self, row: str, test: str, name: str) -> list[float]:
        """What a row's value is above the direct one's of the same round."""
        mine, theirs = self._seen.get((row, test), {}), self._seen.get(("direct", test), {})
        pairs = ((mine[number].get(name), theirs[number].get(name)) for number in mine if number in theirs)
        return [one - two for one, two in pairs if one is not None and two is not None]

    def over(self, row: str, other: str, test: str, name: str) -> list[float]:
        """What a row's value is above another row's of the same round."""
        mine, theirs = self._seen.get((row, test), {}), self._seen.get((other, test), {})
        return [mine[number][name] - theirs[number][name] for number in mine if number in theirs]

    def failures(self, row: str, tests: Iterable[str]) -> int:
        """Answers and streams that were not right."""
        every = (seen for test in tests for seen in self._seen.get((row, test), {}).values())
        return sum(count for seen in every for count in seen["failures"].values())

    def reasons(self) -> list[str]:
        """What went wrong where."""
        return [
            f"{row}, {test}, round {number + 1}: {count} × {reason}"
            for (row, test), rounds in self._seen.items()
            for number, seen in rounds.items()
            for reason, count in seen["failures"].items()
        ]


def number(value: float) -> str:
    """Three digits that count, thousands with commas."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def median(values: list[float], spread: bool = False) -> str:
    """A dash when there are none; `spread` adds min..max."""
    if not values:
        return "–"
    middle = number(statistics.median(values))
    return f"{middle} ({number(min(values))}..{number(max(values))})" if spread and len(values) > 1 else middle


def _value(test: str, name: str, spread: bool = False) -> Cell:
    return lambda run, row: median(run.values(row, test, name), spread)


def _ratio(other: str, test: str, name: str) -> Cell:
    return lambda run, row: median(run.ratios(row, other, test, name))


def _added(test: str, name: str) -> Cell:
    return lambda run, row: median(run.added(row, test, name)) if row != "direct" else "–"


def _failures(*tests: str) -> Cell:
    return lambda run, row: str(run.failures(row, tests))


REQUESTS: dict[str, Cell] = {
    "c1 r/s": _value("c1", "per_s"),
    "c32 r/s": _value("c32", "per_s", spread=True),
    "of direct": _ratio("direct", "c32", "per_s"),
    "of pass-through": _ratio("pass-through", "c32", "per_s"),
    "c200 r/s": _value("c200", "per_s"),
    "c200 p99 ms": _value("c200", "p99_ms"),
    "+ p50 c1 ms": _added("c1", "p50_ms"),
    "+ p99 c1 ms": _added("c1", "p99_ms"),
    "CPU µs c32": _value("c32", "cpu_us", spread=True),
    "CPU of pass-through": _ratio("pass-through", "c32", "cpu_us"),
    "failures": _failures("c1", "c32", "c200"),
}
BASES = {"all-on-4": "pass-through-4"}  # what a row is held against, where it is not pass-through


def _of_base(run: Run, row: str) -> str:
    return median(run.ratios(row, BASES.get(row, "pass-through"), "traffic", "per_s"), spread=True)


def _over_base(run: Run, row: str) -> str:
    return median(run.over(row, BASES.get(row, "pass-through"), "traffic", "cpu_us"), spread=True)


def _least(run: Run, row: str) -> float | None:
    """The round that other work on the machine disturbed least."""
    return min(run.values(row, "traffic", "cpu_us"), default=None)


def _least_over(run: Run, row: str) -> str:
    mine, base = _least(run, row), _least(run, BASES.get(row, "pass-through"))
    return "–" if mine is None or base is None else number(mine - base)


def _least_of(run: Run, row: str) -> str:
    mine, base = _least(run, row), _least(run, BASES.get(row, "pass-through"))
    return "–" if mine is None or base is None else number(mine / base)


TRAFFIC: dict[str, Cell] = {
    "r/s": _value("traffic", "per_s", spread=True),
    "of the same without": _of_base,
    "CPU µs": _value("traffic", "cpu_us", spread=True),
    "+ CPU µs": _over_base,
    "+ CPU µs, best rounds": _least_over,
    "CPU of the same without, best rounds": _least_of,
    "failures": _failures("traffic"),
}
SLOW: dict[str, Cell] = {
    "r/s": _value("slow", "per_s", spread=True),
    "of direct": _ratio("direct", "slow", "per_s"),
    "p50 ms": _value("slow", "p50_ms"),
    "p99 ms": _value("slow", "p99_ms"),
    "CPU µs": _value("slow", "cpu_us"),
    "failures": _failures("slow"),
}


def _streams(test: str) -> dict[str, Cell]:
    return {
        "right": _value(test, "right"),
        "wall s": _value(test, "wall_s", spread=True),
        "of direct": _ratio("direct", test, "wall_s"),
        "first token p50 ms": _value(test, "first_p50_ms"),
        "p99": _value(test, "first_p99_ms"),
        "delay p50 ms": _value(test, "delay_p50_ms"),
        "delay p99": _value(test, "delay_p99_ms", spread=True),
        "CPU µs/token": _value(test, "cpu_us"),
        "failures": _failures(test),
    }


TABLES: tuple[tuple[str, tuple[str, ...], dict[str, Cell]], ...] = (
    ("What traffic costs, one client", ("traffic",), TRAFFIC),
    ("Requests", ("c1", "c32", "c200"), REQUESTS),
    ("A backend that takes 50 ms, 200 clients (at most 4,000/s)", ("slow",), SLOW),
    ("{streams} streams", ("streams-500",), _streams("streams-500")),
    ("{streams} streams", ("streams-1000",), _streams("streams-1000")),
)


def markdown(run: dict[str, Any]) -> str:
    """All tables of a run, then what went wrong."""
    seen = Run(run)
    parts = [_machine(run)]
    for title, tests, columns in TABLES:
        rows = [row for row in seen.rows if any(seen.has(row, test) for test in tests)]
        if rows:
            cells = [[row, *(cell(seen, row) for cell in columns.values())] for row in rows]
            streams = median(seen.values(rows[0], tests[0], "asked"))
            parts.append(f"## {title.format(streams=streams)}\n\n{_table(['row', *columns], cells)}")
    if "start" in run:
        cells = [[what, median(values, spread=True)] for what, values in run["start"].items()]
        parts.append(f"## Start and memory\n\n{_table(['what', 'value'], cells)}")
    if "mapping" in run:
        cells = [[item["what"], median(item["values"], spread=True), item["unit"]] for item in run["mapping"]]
        parts.append(f"## Mapping alone\n\n{_table(['what', 'time', 'unit'], cells)}")
    reasons = [*run.get("notes", ()), *seen.reasons()]
    if reasons:
        parts.append("## What went wrong\n\n" + "\n".join(f"- {reason}" for reason in reasons))
    return "\n\n".join(parts) + "\n"


def failed(run: dict[str, Any]) -> bool:
    """Whether anything was not right."""
    return bool(Run(run).reasons())


def _machine(run: dict[str, Any]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in {**run["machine"], **run["settings"]}.items())
    return f"# Benchmarks\n\n{facts}"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
