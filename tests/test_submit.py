"""Submissions: each call posted to a url, whatever that server does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Backend, Exchange, ask

Json = dict[str, Any]
ALICE = "alice-has-a-long-key"
FIELDS = {
    *("raw_request", "raw_response", "associated_users", "devices", "software", "time_submitted", "time_logged"),
    *("response_timestamp", "llm_model", "llm_provider", "api_token_id", "associated_devices", "associated_software"),
}
CONFIG = """
system: {workers: WORKERS}
records: {submit: {url: URL, timeout_s: 0.5}, metrics: true}
keys: {alice: {key: alice-has-a-long-key}}
targets: {default: demo, demo: {url: "demo://"}}
"""


@pytest.fixture
def server() -> Iterator[Backend]:
    with Backend() as found:
        found.on("/submit", lambda exchange: exchange.reply(200, {}))
        yield found


def started(folder: Path, url: str, workers: int = 1) -> Proxy:
    return Proxy(folder, CONFIG.replace("URL", url).replace("WORKERS", str(workers)))


def chat(proxy: Proxy, text: str, key: str = KEY, **more: Any) -> Any:
    body = {"model": "demo", "messages": [{"role": "user", "content": text}], **more}
    return ask(proxy.url, "POST", "/v1/chat/completions", body, {"authorization": f"Bearer {key}"})


def until(fits: Callable[[], bool], timeout_s: float = 15) -> None:
    end = time.monotonic() + timeout_s
    while not fits():
        assert time.monotonic() < end
        time.sleep(0.02)


def texts(server: Backend) -> list[str]:
    return [asked.json()["raw_request"]["messages"][0]["content"] for asked in server.asked_for("/submit")]


def test_each_call_arrives_with_the_old_fields(tmp_path: Path, server: Backend) -> None:
    with started(tmp_path, server.url + "/submit") as proxy:
        answer = chat(proxy, "Hello", ALICE, user="ann").json()
        until(lambda: len(server.asked) == 1)
        chat(proxy, f"secret {KEY}", stream=True)
        until(lambda: len(server.asked) == 2)
    plain, streamed = (asked.json() for asked in server.asked)
    assert set(plain) == FIELDS
    assert (plain["llm_model"], plain["llm_provider"], plain["api_token_id"]) == ("demo", "openai", "alice")
    assert plain["associated_users"] == ["ann"]
    assert plain["raw_response"] == answer
    for name in ("time_submitted", "time_logged", "response_timestamp"):
        time.strptime(plain[name], "%Y-%m-%dT%H:%M:%S")
    assert plain["time_submitted"] <= plain["response_timestamp"] <= plain["time_logged"]
    assert streamed["api_token_id"] == "master"
    assert streamed["raw_response"]["choices"][0]["message"]["content"]
    assert KEY not in json.dumps(streamed)
    assert not any(asked["authorization"] for asked in server.asked)


def test_failed_calls_arrive_with_their_error(tmp_path: Path, server: Backend) -> None:
    with started(tmp_path, server.url + "/submit") as proxy:
        body = {"model": "demo", "messages": "none"}
        assert ask(proxy.url, "POST", "/v1/chat/completions", body, proxy.headers).status == 400
        until(lambda: len(server.asked) == 1)
    assert server.asked[0].json()["raw_response"]["status"] == 400


@pytest.mark.parametrize("workers", [1, 3])
def test_all_of_many_calls_arrive_once(tmp_path: Path, server: Backend, workers: int) -> None:
    with started(tmp_path, server.url + "/submit", workers) as proxy, ThreadPoolExecutor(8) as pool:
        assert all(reply.status == 200 for reply in pool.map(lambda number: chat(proxy, f"Hello {number}"), range(100)))
        until(lambda: len(server.asked) >= 100)
    assert sorted(texts(server)) == sorted(f"Hello {number}" for number in range(100))


def test_a_server_that_fails_at_first_is_asked_again(tmp_path: Path, server: Backend) -> None:
    statuses = iter((500, 429))
    server.on("/submit", lambda exchange: exchange.reply(next(statuses, 200), {}))
    with started(tmp_path, server.url + "/submit") as proxy:
        chat(proxy, "Hello")
        until(lambda: len(server.asked) == 3)
        chat(proxy, "Next")
        until(lambda: len(server.asked) == 4)
    assert texts(server) == ["Hello"] * 3 + ["Next"]


def test_what_the_server_refuses_is_not_sent_again(tmp_path: Path, server: Backend) -> None:
    server.on("/submit", lambda exchange: exchange.reply(400 if b"Bad" in exchange.asked.body else 200, {}))
    with started(tmp_path, server.url + "/submit") as proxy:
        for text in ("Bad", "Good"):
            chat(proxy, text)
        until(lambda: "Good" in texts(server))
        proxy.wait_for_log("1 calls were not kept (1 in all): the server answers 400")
        chat(proxy, "Another")
        dropped = 'mooltiproxy_records_dropped_total{record="submit"} 1'
        until(lambda: dropped in ask(proxy.url, "GET", "/metrics", None, proxy.headers).body.decode())
    assert texts(server).count("Bad") == 1


@pytest.mark.long
@pytest.mark.parametrize("how", ["down", "slow", "500", "redirect"])
def test_no_call_is_disturbed_whatever_the_server_does(tmp_path: Path, server: Backend, how: str) -> None:
    over = threading.Event()

    def hangs(exchange: Exchange) -> None:
        over.wait(10)

    server.on("/slow", hangs)
    server.on("/500", lambda exchange: exchange.reply(500, {}))
    server.on("/redirect", lambda exchange: exchange.reply(307, {}, [("location", server.url + "/submit")]))
    url = "http://127.0.0.1:9/" if how == "down" else f"{server.url}/{how}"
    with started(tmp_path, url) as proxy:
        began = time.monotonic()
        assert all(chat(proxy, f"Hello {number}").status == 200 for number in range(20))
        assert time.monotonic() - began < 10
        if how in ("down", "slow", "500"):
            began = time.monotonic()
            assert proxy.stop() == 0
            assert time.monotonic() - began < 15
            assert "calls still wait" in proxy.log or "were not kept" in proxy.log
    over.set()
    assert not server.asked_for("/submit")


@pytest.mark.parametrize("url", ["", "submit", "ftp://x", "http://user:word@x/"])
def test_what_is_no_url_is_a_fault(tmp_path: Path, url: str) -> None:
    with pytest.raises(RuntimeError, match=r"records\.submit\.url"), started(tmp_path, json.dumps(url)):
        pass
