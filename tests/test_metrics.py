"""`/metrics`: what is counted, all workers together, in a form that Prometheus' own parser reads."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.call import Call
from proxy.config import Cerbere, Config, System, Target
from proxy.records.metrics import CELLS, FAMILIES, PREFIX, SLAB, Metrics, Slab
from tests.backends.proxy import Proxy
from tests.backends.sockets import Backend, Exchange, Reply, ask

CONFIG = """
system: {workers: WORKERS}
records: {metrics: true}
cerbere: {max_tries: 2, whitelist: []}
models: {known: demo}
targets:
  default: demo
  demo: {url: "demo://"}
MORE
"""
ALICE = "alice-has-a-long-key"
CHAT = {"model": "known", "messages": [{"role": "user", "content": "Hello"}]}
Found = dict[tuple[str, ...], float]


def config(workers: int = 1, more: str = "") -> str:
    return CONFIG.replace("WORKERS", str(workers)).replace("MORE", more)


def scraped(proxy: Proxy) -> Found:
    """Every sample: (its name, the values of its labels in the order of their names) → its value."""
    reply = ask(proxy.url, "GET", "/metrics", None, proxy.headers)
    assert reply.status == 200, reply
    assert reply["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(reply.body.decode()))
    assert all(family.documentation and family.type != "unknown" for family in families)
    samples = [sample for family in families for sample in family.samples]
    found = {(s.name.removeprefix(PREFIX), *(s.labels[name] for name in sorted(s.labels))): s.value for s in samples}
    assert len(found) == len(samples)
    return found


def until(proxy: Proxy, fits: Callable[[Found], bool], timeout_s: float = 10) -> Found:
    """The first scrape that fits."""
    end = time.monotonic() + timeout_s
    while not fits(found := scraped(proxy)):
        assert time.monotonic() < end, found
    return found


def chat(proxy: Proxy, **more: object) -> Reply:
    return ask(proxy.url, "POST", "/v1/chat/completions", {**CHAT, **more}, proxy.headers)


def total(found: Found, name: str) -> float:
    return sum(value for key, value in found.items() if key[0] == name)


class TestCounting:
    def test_calls_tokens_times_and_who_asked(self, tmp_path: Path) -> None:
        more = f"keys: {{alice: {{key: {ALICE}}}}}\nprices: {{known: {{input: 1000000, output: 1000000}}}}\n"
        with Proxy(tmp_path, config(more=more)) as proxy:
            answer = chat(proxy).json()["usage"]
            ask(proxy.url, "POST", "/v1/chat/completions", CHAT, {"authorization": f"Bearer {ALICE}"})
            chat(proxy, stream=True, model="made-up-by-a-client")
            assert chat(proxy, messages=[]).status == 400
            found = until(proxy, lambda found: total(found, "requests_total") == 4)
        assert found["requests_total", "", "openai", "2xx", "demo"] == 3
        assert found["key_requests_total", "alice", "2xx"] == 1
        assert found["key_requests_total", "master", "4xx"] == 1
        assert found["tokens_total", "alice", "input", "known", "demo"] == answer["prompt_tokens"]
        assert found["tokens_total", "alice", "output", "known", "demo"] == answer["completion_tokens"]
        assert found["request_seconds_count", "demo"] == found["request_seconds_bucket", "+Inf", "demo"] == 4
        assert 0 < found["first_byte_seconds_sum", "demo"] <= found["request_seconds_sum", "demo"]
        assert found["in_flight",] == 0
        assert not any("made-up-by-a-client" in key for key in found)
        assert any(key[0] == "tokens_total" and "other" in key for key in found)

    def test_buckets_are_cumulative_and_bounds_belong_to_them(self, tmp_path: Path) -> None:
        slab = Slab(memoryview(bytearray(SLAB)))
        for seconds in (0.01, 0.011, 700.0):
            slab.observe("request_seconds", "t", seconds)
        start = slab.place("request_seconds", "t")
        cells = list(slab.cells[start : start + FAMILIES["request_seconds"].width])
        assert cells[:2] == [1.0, 1.0]
        assert cells[-2:] == [1.0, 700.021]

    def test_health_checks_pages_and_preflights_are_no_calls(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config()) as proxy:
            ask(proxy.url, "GET", "/healthz")
            ask(proxy.url, "OPTIONS", "/v1/chat/completions")
            scraped(proxy)
            assert total(scraped(proxy), "requests_total") == 0

    def test_failed_attempts_rests_and_the_cache(self, tmp_path: Path) -> None:
        more = """
  broken: {url: "http://127.0.0.1:9", dialect: openai, breaker: {failures: 1, cool_s: 100}, fallback: demo}
  cached: {url: "demo://", cache: {default: true}}
"""
        with Proxy(tmp_path, config(more=more)) as proxy:
            reply = ask(proxy.url, "POST", "/v1/chat/completions", CHAT, {**proxy.headers, "target": "broken"})
            assert reply.status == 200
            for _ in range(3):
                ask(proxy.url, "POST", "/v1/chat/completions", CHAT, {**proxy.headers, "target": "cached"})
            found = until(proxy, lambda found: total(found, "requests_total") == 4)
            assert found["failed_attempts_total", "connect", "broken"] == 1
            assert found["target_resting", "broken"] == 1
            assert (found["cache_total", "hit", "cached"], found["cache_total", "miss", "cached"]) == (2, 1)

    def test_bans(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config().replace("whitelist: []", "ban_s: 0.2")) as proxy:
            for _ in range(2):
                ask(proxy.url, "GET", "/v1/models", None, {"authorization": "Bearer wrong"})
            end = time.monotonic() + 10
            while ask(proxy.url, "GET", "/metrics", None, proxy.headers).status != 200:
                assert time.monotonic() < end
            assert scraped(proxy)["bans_total",] == 1

    def test_calls_in_flight_and_in_a_queue(self, tmp_path: Path) -> None:
        goes_on = threading.Event()

        def slow(exchange: Exchange) -> None:
            goes_on.wait(10)
            exchange.reply(200, {"choices": []})

        with Backend() as backend:
            backend.on("/v1/chat/completions", slow)
            target = f"  slow: {{url: {backend.url}, dialect: openai, concurrency: 1}}\n"
            with Proxy(tmp_path, config(more=target)) as proxy, ThreadPoolExecutor(3) as pool:
                headers = {**proxy.headers, "target": "slow"}
                calls = [pool.submit(ask, proxy.url, "POST", "/v1/chat/completions", CHAT, headers) for _ in range(3)]
                until(proxy, lambda found: found["in_flight",] == 3 and found.get(("queued", "slow")) == 2)
                goes_on.set()
                assert [call.result().status for call in calls] == [200] * 3
                until(proxy, lambda found: found["in_flight",] == 0 and found["queued", "slow"] == 0)


class TestWorkers:
    def test_a_reload_that_names_other_workers_goes_on_counting(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config()) as proxy:
            chat(proxy)
            (tmp_path / "config.yaml").write_text(config(2))
            assert ask(proxy.url, "POST", "/mooltiproxy/reload", b"", proxy.headers).status == 200
            chat(proxy)
            until(proxy, lambda found: total(found, "requests_total") == 2)

    def test_all_workers_are_added_up_whoever_is_asked(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config(3)) as proxy, ThreadPoolExecutor(8) as pool:
            assert all(reply.status == 200 for reply in pool.map(lambda _: chat(proxy), range(60)))
            until(proxy, lambda found: total(found, "requests_total") == 60)
            assert {total(scraped(proxy), "requests_total") for _ in range(12)} == {60}

    def test_no_counter_goes_backwards_when_a_worker_is_killed(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config(2)) as proxy, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: chat(proxy), range(30)))
            before = until(proxy, lambda found: total(found, "requests_total") == 30)
            for pid in workers(proxy):
                os.kill(pid, signal.SIGKILL)
            proxy.wait_for_log("another one takes its place", 2)
            after = scraped(proxy)
            assert all(after[key] >= value for key, value in before.items())
            chat(proxy)
            until(proxy, lambda found: total(found, "requests_total") == 31)

    def test_a_reload_keeps_the_counts(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config(2)) as proxy:
            chat(proxy)
            until(proxy, lambda found: total(found, "requests_total") == 1)
            assert ask(proxy.url, "POST", "/mooltiproxy/reload", b"", proxy.headers).status == 200
            proxy.wait_for_log("reloaded", 2)
            chat(proxy)
            until(proxy, lambda found: total(found, "requests_total") == 2)

    def test_switching_it_on_with_several_workers_takes_a_restart(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config(2).replace("metrics: true", "metrics: false")) as proxy:
            (tmp_path / "config.yaml").write_text(config(2))
            reply = ask(proxy.url, "POST", "/mooltiproxy/reload", b"", proxy.headers)
            assert reply.status == 422
            assert "takes a restart" in reply.json()["faults"][0]


def workers(proxy: Proxy) -> list[int]:
    """The process ids of a proxy's workers."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(proxy.process.pid)], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listed.stdout.split()]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    keys = f"keys: {{alice: {{key: {ALICE}}}, carol: {{key: carol-has-a-long-key, console: true}}}}\n"
    text = config(more=keys).replace("system: {", "system: {open_to: [127.0.0.1], ")
    with Proxy(tmp_path_factory.mktemp("look"), text) as found:
        yield found


class TestWhoMayLook:
    def test_a_persons_key_sees_no_other_keys_series(self, proxy: Proxy) -> None:
        for key in (ALICE, "carol-has-a-long-key"):
            ask(proxy.url, "POST", "/v1/chat/completions", CHAT, {"authorization": f"Bearer {key}"})
        until(proxy, lambda found: {("key_requests_total", name, "2xx") for name in ("alice", "carol")} <= set(found))
        told = ask(proxy.url, "GET", "/metrics", None, {"authorization": "Bearer carol-has-a-long-key"}).body.decode()
        assert 'key="carol"' in told
        assert "alice" not in told
        assert "mooltiproxy_request_seconds_count" in told  # what is everybody's

    @pytest.mark.parametrize(
        ("key", "status"), [(None, 403), (ALICE, 403), ("carol-has-a-long-key", 200), ("test-master-key", 200)]
    )
    def test_the_master_key_and_keys_of_the_console(self, proxy: Proxy, key: str | None, status: int) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        assert ask(proxy.url, "GET", "/metrics", None, headers).status == status

    def test_other_methods_are_refused(self, proxy: Proxy) -> None:
        assert ask(proxy.url, "POST", "/metrics", b"", proxy.headers).status == 405

    def test_without_a_key_it_is_401(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config()) as proxy:
            assert ask(proxy.url, "GET", "/metrics").status == 401

    def test_without_the_configuration_there_is_no_such_page(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, "targets: {default: demo, demo: {url: 'demo://'}}") as proxy:
            assert ask(proxy.url, "GET", "/metrics", None, proxy.headers).status == 404


def test_a_full_sheet_drops_series_and_counts_them() -> None:
    slab = Slab(memoryview(bytearray(SLAB)))
    for number in range(CELLS + 10):
        slab.cells[slab.place("key_requests_total", str(number), "2xx")] += 1
    assert slab.cells[1] == 12
    assert len(list(slab.series())) == CELLS - 2


def test_a_call_costs_a_few_microseconds() -> None:
    target = Target("t", "demo://")
    metrics = Metrics(Config(System(), Cerbere(), {"t": target}, "t"))

    def once() -> None:
        call = Call("POST", "/v1/chat/completions", "", "127.0.0.1", target="t", status=200, error="x", tokens_in=3)
        metrics.end(call)

    once()
    began = time.process_time()
    for _ in range(2000):
        once()
    assert (time.process_time() - began) / 2000 < 50e-6  # about 5 on an idle machine
