#!/usr/bin/env python3
"""`python benchmarks/reload.py`: a proxy is reloaded all the while it streams and answers, then a thousand times more.

Half of the streams pass through as bytes, half through mappers. Each reload takes a configuration that differs from the one
before. Every answer and every token is held against what the backend sent. Then files, threads and memory are counted after
50, 500 and 1000 reloads. Everything is on 127.0.0.1, in processes that end with this one. Exits 1 when an answer was wrong, a
stream cut, a reload refused, or anything was left behind. Linux; about a minute.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from subjects import ROWS, TESTS, Proxy, Upstream, configurations, driven, job_of, rss_mib, with_traffic

ROW = {row.name: row for row in ROWS}
TEST = {test.name: test for test in TESTS}
DELAY_MS = 100  # between two tokens
PAUSE_S = 0.1  # between two reloads
LEFT_FILES, LEFT_THREADS, LEFT_MIB = 2, 1, 4.0  # more than that between two counts is a leak
SETTLE_S = 0.5  # old generations end in threads of their own


class Reloads:
    """Reloads a proxy, over one connection. `done`, `refused`: how often."""

    def __init__(self, proxy: Proxy, folder: Path, config: dict[str, Any]) -> None:
        self._proxy, self._file, self._config = proxy, folder / "config.yaml", config
        self._connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
        self.done = self.refused = 0

    def once(self) -> None:
        """One reload, of a configuration that is another one than before. Raises OSError."""
        system = {**self._config["system"], "timeout": 30 + self.done % 7}
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps({**self._config, "system": system}))
        os.replace(part, self._file)
        headers = {"authorization": f"Bearer {self._proxy.key}"}
        self._connection.request("POST", "/mooltiproxy/reload", headers=headers)
        answer = self._connection.getresponse()
        answer.read()
        self.done += 1
        self.refused += answer.status != 200

    def until(self, over: threading.Event) -> None:
        """Again and again."""
        while not over.wait(PAUSE_S):
            self.once()


def under_load(folder: Path, upstream: Upstream, workers: int, arguments: argparse.Namespace) -> int:
    """How much went wrong; prints what was seen."""
    config = configurations(upstream.ports, None)["one"]
    config = {**config, "system": {**config["system"], "workers": workers}}
    with Proxy(folder, config) as proxy, ThreadPoolExecutor() as pool:
        halves = [arguments.streams // 2, arguments.streams - arguments.streams // 2]
        jobs = [
            {**job_of(ROW[row], TEST["streams-500"], proxy.port, proxy.key), "streams": count, "tokens": arguments.tokens}
            for row, count in zip(("pass-through", "anthropic-to-openai"), halves, strict=True)
        ]
        asked = {"clients": 16, "per_s": arguments.per_second, "seconds": arguments.tokens * DELAY_MS / 1000}
        jobs.append({**job_of(ROW["pass-through"], TEST["c1"], proxy.port, proxy.key), **asked})
        reloads, over = Reloads(proxy, folder, config), threading.Event()
        running = pool.submit(reloads.until, over)
        seen = list(pool.map(driven, jobs))
        over.set()
        running.result()
    faults: dict[str, int] = {}
    for each in seen:
        for what, count in each["failures"].items():
            faults[what] = faults.get(what, 0) + count
    whole, rate = seen[0]["right"] + seen[1]["right"], seen[2]["right"] / asked["seconds"]
    print(
        f"{workers} worker{'s' * (workers > 1)}: {reloads.done} reloads, {reloads.refused} refused; {whole} streams whole; "
        f"{seen[2]['right']} answers, {rate:.0f} a second; failed or cut: {faults or 0}",
        flush=True,
    )
    return sum(faults.values()) + reloads.refused + (arguments.streams - whole)


def leaks(folder: Path, upstream: Upstream, name: str, config: dict[str, Any], count: int) -> int:
    """1 when something was left behind; prints what was held after so many reloads."""
    found: list[tuple[int, int, float]] = []
    counted = sorted({max(1, count // 20), count // 2, count})
    with Proxy(folder, config) as proxy:
        reloads = Reloads(proxy, folder, config)
        job = {**job_of(ROW["pass-through"], TEST["c1"], proxy.port, proxy.key), "clients": 1, "seconds": 0.05}
        for number in range(1, count + 1):
            reloads.once()
            if number in counted:
                driven(job)  # what is made with the first call is there
                time.sleep(SETTLE_S)
                place = Path(f"/proc/{proxy.process.pid}")
                held = len(os.listdir(place / "fd")), len(os.listdir(place / "task")), rss_mib(proxy.process.pid)
                found.append(held)
                print(f"{name}: after {number} reloads {held[0]} files, {held[1]} threads, {held[2]:.1f} MiB", flush=True)
    (*_, half, whole) = found
    left = tuple(after - before for before, after in zip(half, whole, strict=True))
    leak = left[0] > LEFT_FILES or left[1] > LEFT_THREADS or left[2] > LEFT_MIB
    return int(leak) + reloads.refused


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        description="Reloads the proxy under load, and counts what a thousand reloads leave behind."
    )
    parser.add_argument("--streams", type=int, default=200, help="at once (default: 200)")
    parser.add_argument("--per-second", type=int, default=500, help="requests beside them (default: 500)")
    parser.add_argument("--tokens", type=int, default=100, help="of each stream, ten a second (default: 100)")
    parser.add_argument("--reloads", type=int, default=1000, help="after which is counted (default: 1000)")
    arguments = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ports = {"fast": {}, "slow": {}, "paced": {"delay_ms": DELAY_MS}}
        with Upstream({"ports": ports, "tokens": arguments.tokens}) as upstream:
            for workers in (1, 2):
                wrong += under_load(folder / f"load-{workers}", upstream, workers, arguments)
            plain = configurations(upstream.ports, None)["plain"]
            records = {"records": {"calls": {}, "metrics": True}, "console": {"enabled": True}}
            everything = with_traffic(plain["targets"], system=plain["system"], **records)
            for what, config in (("plain", plain), ("everything", everything)):
                wrong += leaks(folder / what, upstream, what, config, arguments.reloads)
    print("right" if not wrong else f"wrong: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
