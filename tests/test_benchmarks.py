"""benchmarks/: what the load driver takes for right, what it reports as failures, and that `make bench` works as a whole.

Nothing here measures: a test machine's figures say nothing.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import subjects, table
from benchmarks.subjects import ROWS, TESTS, Upstream, driven, job_of

pytestmark = pytest.mark.long

ROW = {row.name: row for row in ROWS}
TEST = {test.name: test for test in TESTS}
BENCH = Path(subjects.__file__).with_name("bench.py")
TOKENS = 10


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    ports = {"fast": {}, "slow": {"latency_ms": 20}, "paced": {"delay_ms": 5}}
    with Upstream({"ports": ports, "tokens": TOKENS}) as running:
        yield running


def wrong(kind: str, every: int = 3) -> Upstream:
    return Upstream({"ports": {"fast": {}, "paced": {"delay_ms": 2}}, "tokens": TOKENS, "wrong": kind, "every": every})


def asked(port: int, row: str = "direct", **more: Any) -> dict[str, Any]:
    """What the driver says of a short closed loop."""
    return driven({**job_of(ROW[row], TEST["c32"], port, ""), "clients": 4, "seconds": 0.2, **more}, patience_s=5)


def streamed(port: int, row: str = "direct", **more: Any) -> dict[str, Any]:
    """What the driver says of a few streams at once."""
    return driven({**job_of(ROW[row], TEST["streams-500"], port, ""), "streams": 6, "tokens": TOKENS, **more}, patience_s=5)


@pytest.mark.parametrize("row", ["direct", "anthropic-to-openai"])
def test_right_answers_are_counted_and_nothing_fails(upstream: Upstream, row: str) -> None:
    seen = asked(upstream.ports["fast"], row)
    assert seen["failures"] == {}
    assert seen["right"] > 0
    assert seen["per_s"] > 0
    assert 0 < seen["p50_ms"] <= seen["p99_ms"]


def test_latency_is_what_the_backend_takes(upstream: Upstream) -> None:
    seen = asked(upstream.ports["slow"])
    assert seen["failures"] == {}
    assert seen["p50_ms"] >= 20


@pytest.mark.parametrize("row", ["direct", "anthropic-to-openai"])
def test_right_streams_are_counted_token_by_token(upstream: Upstream, row: str) -> None:
    seen = streamed(upstream.ports["paced"], row)
    assert seen["failures"] == {}
    assert (seen["right"], seen["tokens"]) == (6, 6 * TOKENS)
    assert seen["wall_s"] >= 0.005 * (TOKENS - 1)
    assert 0 <= seen["delay_p50_ms"] <= seen["delay_p99_ms"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "the content is not what the backend sent"),
        ("status", "status 500"),
        ("cut", "the connection was cut off"),
    ],
)
def test_wrong_answers_are_failures_and_not_answers(kind: str, reason: str) -> None:
    with wrong(kind) as broken:
        some = asked(broken.ports["fast"])
    assert set(some["failures"]) == {reason}
    assert some["failures"][reason] > 0
    assert some["right"] > 0
    with wrong(kind, every=1) as broken:
        none = asked(broken.ports["fast"])
    assert set(none["failures"]) == {reason}
    assert (none["right"], none["per_s"], none["p50_ms"]) == (0, 0, None)


@pytest.mark.parametrize("row", ["direct", "anthropic-to-openai"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "a token of another stream"),
        ("status", "status 500"),
        ("cut", "the stream was cut off"),
        ("order", "a token is missing, doubled or out of order"),
        ("end", "the stream has no end mark"),
    ],
)
def test_wrong_streams_are_failures(kind: str, reason: str, row: str) -> None:
    with wrong(kind) as broken:
        seen = streamed(broken.ports["paced"], row)
    assert seen["failures"] == {reason: 2}
    assert (seen["right"], seen["tokens"]) == (4, 4 * TOKENS)


def test_an_answer_in_another_apis_shape_is_a_failure(upstream: Upstream) -> None:
    seen = asked(upstream.ports["fast"], path="/generate")
    assert seen["right"] == 0
    assert set(seen["failures"]) == {"the content is not what the backend sent"}


def test_fewer_tokens_than_sent_are_a_failure(upstream: Upstream) -> None:
    assert streamed(upstream.ports["paced"], tokens=TOKENS + 1)["failures"] == {"tokens are missing": 6}


def test_a_backend_that_never_answers_ends_the_run() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        begun = time.monotonic()
        assert asked(port, patience_s=0.2)["failures"] == {"no answer in time": 4}
        assert streamed(port, patience_s=0.2)["failures"] == {"no answer": 6}
    assert time.monotonic() - begun < 20


def test_nobody_listening_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    seen = asked(port)
    assert seen["right"] == 0
    assert sum(seen["failures"].values()) > 0


def test_ratios_are_made_within_a_round_and_their_median_is_told() -> None:
    def seen(row: str, number: int, per_s: float) -> dict[str, Any]:
        return {"row": row, "test": "c32", "round": number, "per_s": per_s, "failures": {}}

    rounds = [seen("direct", 0, 100), seen("pass-through", 0, 50), seen("direct", 1, 10), seen("pass-through", 1, 1)]
    run = table.Run({"seen": rounds})
    assert run.ratios("pass-through", "direct", "c32", "per_s") == [0.5, 0.1]
    assert table.median([0.5, 0.1]) == "0.30"
    assert table.median([3000.0, 1000.0, 2000.0], spread=True) == "2,000 (1,000..3,000)"
    assert table.median([]) == "–"


def test_failures_are_told_below_the_tables() -> None:
    told = {"row": "tls", "test": "c1", "round": 0, "per_s": 0, "failures": {"status 502": 7}}
    run = {"machine": {}, "settings": {}, "seen": [told]}
    assert "tls, c1, round 1: 7 × status 502" in table.markdown(run)
    assert table.failed(run)
    assert not table.failed({**run, "seen": [{**told, "failures": {}}]})


class Ran:
    """A quick run of the benchmarks, in a session of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, str(BENCH), "--quick", *arguments]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
            self.stdout, self.stderr = process.communicate(timeout=100)
        self.status, self.session = process.returncode, process.pid

    def left(self) -> list[str]:
        """Names of the processes of its session that are still there."""
        found = []
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has just ended
                name, _, rest = file.read_text().rpartition(")")
                found += [name] if int(rest.split()[3]) == self.session else []
        return found


def test_the_whole_bench_runs_through_the_real_proxy_and_leaves_no_process(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    rows = "pass-through,tls,identity,openai-to-tgi,anthropic-to-openai,openai-to-anthropic"
    ran = Ran("--only", f"{rows},requests,streams", "--json", str(file))
    assert (ran.status, ran.left()) == (0, []), ran.stderr
    run = json.loads(file.read_text())
    right = {(seen["row"], seen["test"]): seen["right"] for seen in run["seen"]}
    for row in ("direct", *rows.split(",")):
        assert right[row, "c32"] > 0
        assert f"| {row} |" in ran.stdout
    assert right["anthropic-to-openai", "streams-500"] == right["pass-through", "streams-500"] == 60
    assert all(seen["cpu_us"] is not None for seen in run["seen"] if seen["row"] != "direct")


def test_a_run_that_is_ended_ends_what_it_started() -> None:
    process = subprocess.Popen(
        [sys.executable, str(BENCH), "--only", "pass-through,requests"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process, process.stderr as told:
        assert "c1" in told.readline()  # the proxy is up, and the first row was measured
        below = subjects.tree(process.pid)[1:]
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert len(below) >= 2
    assert not [pid for pid in below if Path(f"/proc/{pid}/stat").exists()]


def test_what_mapping_costs_is_measured_without_a_proxy(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    ran = Ran("--only", "mapping", "--json", str(file))
    assert ran.status == 0, ran.stderr
    values = {item["what"]: item["values"] for item in json.loads(file.read_text())["mapping"]}
    assert len(values) == 8
    assert all(value > 0 for found in values.values() for value in found)


def test_a_name_that_is_none_is_refused() -> None:
    ran = Ran("--only", "fastest")
    assert ran.status == 1
    assert "fastest" in ran.stderr
