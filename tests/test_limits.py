"""Requests, tokens, money and calls at once are limited exactly, by one process and by several; what was used is charged."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proxy.config import Price
from proxy.gates.limits import period, span
from tests.backends.engines import ENGINES, Machines
from tests.backends.proxy import Proxy
from tests.backends.sockets import Backend, Client, Exchange, Reply, ask
from tests.configs import Load, fault
from tests.configs import load as load

THREADS = 64
USED = {"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 50}}
COST_USD = (50 * 2 + 50 * 1 + 20 * 10) / 1e6  # of one such answer at the prices below
PRICES = 'prices: {"m*": {input: 2, cached: 1, output: 10}, dear: {input: 100, output: 1000}}\n'


def key(name: str) -> str:
    return f"{name}-key-0123456789"


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key(name)}"}


def chat(model: str = "m", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, **more}


def whole(exchange: Exchange) -> None:
    message = {"role": "assistant", "content": "hi"}
    exchange.reply(200, {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": USED, "choices": [
        {"index": 0, "message": message, "finish_reason": "stop"}]})  # fmt: skip


def event(text: str) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


def answer(exchange: Exchange) -> None:
    """Whole, or a stream that tells its usage when it is asked to; `n` events of it, `max_tokens` of them."""
    asked = exchange.asked.json()
    if not asked.get("stream"):
        whole(exchange)
        return
    exchange.start()
    for _ in range(asked.get("max_tokens", 5)):
        exchange.event(event(" word"))
    if asked.get("stream_options", {}).get("include_usage"):
        exchange.event({"id": "c", "choices": [], "usage": USED})
    exchange.event(b"[DONE]")
    exchange.end()


def targets(backend: Backend, target: str = "") -> str:
    return (
        f'targets: {{default: main, main: {{url: "{backend.url}", dialect: openai{target}}}, demo: {{url: "demo://"}}, '
        f'claude: {{url: "{backend.url}/claude", dialect: anthropic}}}}\n'
    )


def configured(backend: Backend, more: str, workers: int = 1, target: str = "") -> str:
    return f"system: {{workers: {workers}, log: {{format: json}}}}\n" + targets(backend, target) + more


def keys(**limits: str) -> str:
    return "keys:\n" + "".join(f"  {name}: {{key: {key(name)}, {rest}}}\n" for name, rest in limits.items())


Start = Callable[..., Proxy]


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as found:
        found.on("/v1/chat/completions", answer)
        yield found


def calls(proxy: Proxy | Machines, times: int = 1) -> list[dict[str, Any]]:
    """The log's lines of calls, once there are so many."""
    proxy.wait_for_log('"key_name"', times)
    return [json.loads(line) for line in proxy.log.splitlines() if '"key_name"' in line]


def left(reply: Reply, what: str) -> int:
    return int(reply[f"x-ratelimit-remaining-{what}"] or -1)


def crowd(work: Callable[[], Any], times: int) -> list[Any]:
    """What so many calls in THREADS threads at once give."""
    start = threading.Barrier(THREADS)

    def one(number: int) -> list[Any]:
        start.wait()
        return [work() for _ in range(number, times, THREADS)]

    with ThreadPoolExecutor(THREADS) as pool:
        return [found for each in pool.map(one, range(THREADS)) for found in each]


# --- requests


WHERE = {
    "everyone": ("limits: {global: 100/minute}\n", ""),
    "fixed": ("limits: {global: 100/minute, strategy: fixed-window}\n", ""),
    "target": ("", ", limits: 100/minute"),
}


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("where", WHERE)
def test_a_hundred_a_minute_are_exactly_a_hundred(tmp_path: Path, backend: Backend, engine: str, where: str) -> None:
    more, target = WHERE[where]
    while where == "fixed" and time.time() % 60 > 45:
        time.sleep(1)  # a window that ends within the test would let in more, rightly
    with Machines(tmp_path, engine, targets(backend, target) + more, workers=4) as machines:
        machines.another()
        turns = itertools.cycle(machines.urls)
        replies = crowd(lambda: ask(next(turns), "POST", "/v1/chat/completions", chat(), machines.proxies[0].headers), 256)
    assert sorted(reply.status for reply in replies) == [200] * 100 + [429] * 156
    assert len(backend.asked) == 100
    assert sorted({left(reply, "requests") for reply in replies if reply.status == 200}) == list(range(100))


def test_a_path_has_a_limit_of_its_own_however_it_is_written(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, configured(backend, "limits: {paths: {/v1/embeddings: 2/minute}}\n")) as proxy:
        paths = ["/v1/embeddings", "/embeddings", "/v1/embeddings", "/embeddings"]
        statuses = [ask(proxy.url, "POST", path, {"model": "m", "input": "x"}, proxy.headers).status for path in paths]
        assert statuses == [200, 200, 429, 429]
        assert ask(proxy.url, "POST", "/v1/chat/completions", chat(), proxy.headers).status == 200


@pytest.mark.parametrize("path", ["/v1/embeddings/", "/v1//embeddings", "/v1/./embeddings", "/v1/embed%64ings"])
def test_a_limit_of_a_path_is_not_passed_by_writing_it_otherwise(tmp_path: Path, backend: Backend, path: str) -> None:
    config = configured(backend, "limits: {paths: {/v1/embeddings: 1/minute}}\n", target=", route: /all").replace(
        ", dialect: openai", "", 1
    )
    with Proxy(tmp_path, config) as proxy:
        first = ask(proxy.url, "POST", "/all/v1/embeddings", {"model": "m", "input": "x"}, proxy.headers)
        assert first.status != 429
        assert ask(proxy.url, "POST", "/all" + path, {"model": "m", "input": "x"}, proxy.headers).status in (400, 429)


def test_each_key_has_its_own_count_and_the_master_key_none(tmp_path: Path, backend: Backend) -> None:
    config = configured(backend, keys(alice="limits: 2/minute", bob="limits: 1/minute;100/day"))
    with Proxy(tmp_path, config) as proxy:

        def statuses(headers: dict[str, str]) -> list[int]:
            return [ask(proxy.url, "POST", "/v1/chat/completions", chat(), headers).status for _ in range(3)]

        assert statuses(bearer("alice")) == [200, 200, 429]
        assert statuses(bearer("bob")) == [200, 429, 429]
        assert statuses(proxy.headers) == [200, 200, 200]


FRONTS = [
    ("/v1/chat/completions", lambda body: body["error"]["code"] == "rate_limit_exceeded"),
    ("/v1/responses", lambda body: body["error"]["code"] == "rate_limit_exceeded"),
    ("/v1/messages", lambda body: body["error"]["type"] == "rate_limit_error"),
    ("/v1beta/models/m:generateContent", lambda body: body["error"]["status"] == "RESOURCE_EXHAUSTED"),
    ("/api/chat", lambda body: isinstance(body["error"], str)),
    ("/generate", lambda body: isinstance(body["error"], str)),
    ("/completion", lambda body: body["error"]["code"] == 429),
]


def test_a_refusal_says_when_and_how_much_in_every_api(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, configured(backend, "limits: {global: 1/2minutes}\n")) as proxy:
        first = ask(proxy.url, "POST", "/v1/chat/completions", chat(), proxy.headers)
        assert first["x-ratelimit-limit-requests"] == "1"
        assert first["x-ratelimit-remaining-requests"] == "0"
        assert first["x-ratelimit-reset-requests"] in ("2m0s", "1m59s")
        for path, is_right in FRONTS:
            reply = ask(proxy.url, "POST", path, chat(), proxy.headers)
            assert reply.status == 429
            assert is_right(reply.json()), reply.body
            assert 100 <= int(reply["retry-after"] or 0) <= 120
            assert "1 requests per 2 minutes (limits.global)" in reply.body.decode()
            family = "anthropic-ratelimit-requests-remaining" if path == "/v1/messages" else "x-ratelimit-remaining-requests"
            assert reply[family] == "0"
        reset = ask(proxy.url, "POST", "/v1/messages", chat(), proxy.headers)["anthropic-ratelimit-requests-reset"] or ""
        assert time.strptime(reset, "%Y-%m-%dT%H:%M:%SZ")


def test_the_backends_own_limits_do_not_stand_beside_ours(tmp_path: Path, backend: Backend) -> None:
    fields = [("x-ratelimit-limit-requests", "9999"), ("x-ratelimit-limit-tokens", "8888"), ("x-kept", "1")]
    backend.on("/v1/models", lambda exchange: exchange.reply(200, {"data": []}, fields))
    backend.on("/claude/v1/messages", lambda exchange: exchange.reply(200, {"content": [{"type": "text", "text": "x"}],
        "usage": {"input_tokens": 1, "output_tokens": 1}, "stop_reason": "end_turn"}, fields))  # fmt: skip
    with Proxy(tmp_path, configured(backend, "limits: {global: 5/minute}\n")) as proxy:
        for reply in (
            ask(proxy.url, "GET", "/v1/models", headers=proxy.headers),
            ask(proxy.url, "POST", "/v1/chat/completions", chat(), {**proxy.headers, "target": "claude"}),
        ):
            assert reply.status == 200
            found = [value for name, value in reply.fields if name == "x-ratelimit-limit-requests"]
            assert found == ["5"]
            assert reply["x-ratelimit-limit-tokens"] is None


# --- calls at once


@pytest.mark.parametrize("workers", [1, 2])
def test_calls_at_once_are_bounded_and_slots_come_back(tmp_path: Path, backend: Backend, workers: int) -> None:
    hold, seen = threading.Event(), threading.Semaphore(0)

    def slow(exchange: Exchange) -> None:
        seen.release()
        assert hold.wait(20)
        whole(exchange)

    backend.on("/v1/chat/completions", slow)
    with Proxy(tmp_path, configured(backend, keys(alice="concurrency: 2"), workers)) as proxy, ThreadPoolExecutor(2) as pool:
        running = [pool.submit(ask, proxy.url, "POST", "/v1/chat/completions", chat(), bearer("alice")) for _ in range(2)]
        for _ in running:
            assert seen.acquire(timeout=20)
        refused = ask(proxy.url, "POST", "/v1/chat/completions", chat(), bearer("alice"))
        assert (refused.status, refused["retry-after"]) == (429, "1")
        assert "2 calls at once is the most (keys.alice.concurrency)" in refused.body.decode()
        hold.set()
        assert [each.result().status for each in running] == [200, 200]
        for _ in range(20):  # one after the other, each on a connection of its own
            assert ask(proxy.url, "POST", "/v1/chat/completions", chat(), bearer("alice")).status == 200


# --- tokens


def test_tokens_are_reserved_and_then_what_was_used_is_counted(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, configured(backend, keys(alice="tokens: 10000/hour"))) as proxy:
        body = chat(max_tokens=4000)
        first = ask(proxy.url, "POST", "/v1/chat/completions", body, bearer("alice"))
        assert first["x-ratelimit-limit-tokens"] == "10000"
        assert 5900 < left(first, "tokens") < 6000
        calls(proxy)
        second = ask(proxy.url, "POST", "/v1/chat/completions", chat(max_tokens=1000), bearer("alice"))
        assert 8800 < left(second, "tokens") < 8880  # 10000 - 120 - 1000 - the prompt's estimate
        refused = ask(proxy.url, "POST", "/v1/chat/completions", chat(max_tokens=10_000), bearer("alice"))
        told = "more than is left of the limit of 10000 tokens per hour (keys.alice.tokens): ask for less (max_tokens), or try"
        assert (refused.status, told in refused.body.decode()) == (429, True)
        listed = ask(proxy.url, "GET", "/v1/models", headers=bearer("alice"))
        assert left(listed, "tokens") == 10_000 - 240


STREAMED = {"stream": True}


@pytest.mark.parametrize("asks", [None, False, True])
def test_usage_is_asked_for_and_hidden_from_who_did_not_ask(tmp_path: Path, backend: Backend, asks: bool | None) -> None:
    more = {} if asks is None else {"stream_options": {"include_usage": asks}}
    with Proxy(tmp_path, configured(backend, keys(alice="tokens: 10000/hour"))) as proxy:
        reply = ask(proxy.url, "POST", "/v1/chat/completions", chat(**STREAMED, **more), bearer("alice"))
        assert backend.asked[-1].json()["stream_options"]["include_usage"] is True
        assert [found for found in reply.events if found != "[DONE]" and found["choices"]] == [event(" word")] * 20
        assert [found["usage"] for found in reply.events if found != "[DONE]" and not found["choices"]] == [USED] * bool(asks)
        assert (reply.whole, reply.events[-1]) == (True, "[DONE]")
        line = calls(proxy)[-1]
        assert (line["tokens_in"], line["tokens_out"], line["tokens_cached"]) == (100, 20, 50)


def test_a_backend_is_not_asked_for_usage_where_nothing_is_charged(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, configured(backend, PRICES + keys(alice="limits: 5/minute"))) as proxy:
        ask(proxy.url, "POST", "/v1/chat/completions", chat(**STREAMED), bearer("alice"))
        assert "stream_options" not in backend.asked[-1].json()


def test_a_stream_through_mappers_is_counted(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, configured(backend, PRICES + keys(alice="tokens: 10000/hour"))) as proxy:
        reply = ask(proxy.url, "POST", "/v1/messages", chat(**STREAMED), bearer("alice"))
        assert reply.status == 200
        line = calls(proxy)[-1]
        assert (line["tokens_in"], line["tokens_out"], line["cost_usd"]) == (100, 20, pytest.approx(COST_USD))


# --- money


def spent(proxy: Proxy | Machines, name: str) -> float:
    """US dollars, of all of that key's calls in the log."""
    return float(sum(line.get("cost_usd") or 0 for line in calls(proxy) if line["key_name"] == name))


@pytest.mark.long
@pytest.mark.parametrize("engine", ENGINES)
def test_a_budget_is_kept_under_parallel_streams(tmp_path: Path, backend: Backend, engine: str) -> None:
    """Each call costs 350 millionths, and reserves more: the budget is never overspent."""
    budget = 0.02
    config = targets(backend) + PRICES + keys(alice=f"budget: {{usd: {budget}, per: total}}")
    with Machines(tmp_path, engine, config, workers=4) as machines:
        machines.another()
        turns, body = itertools.cycle(machines.urls), chat(**STREAMED, max_tokens=40)

        def one() -> Reply:
            return ask(next(turns), "POST", "/v1/chat/completions", body, bearer("alice"))

        replies = crowd(one, 192)
        good = [reply for reply in replies if reply.status == 200]
        refused = next(reply for reply in replies if reply.status == 429)
        assert refused.json()["error"]["code"] == "insufficient_quota"
        assert refused["retry-after"] is None
        assert refused["x-should-retry"] == "false"
        assert len(calls(machines, 192)) == 192
        assert spent(machines, "alice") == pytest.approx(len(good) * COST_USD)
        assert len(good) * COST_USD <= budget
        while one().status == 200:
            pass  # what was reserved in vain came back
    assert len(backend.asked) * COST_USD > budget - 0.001


def test_what_an_estimate_missed_is_the_only_overshoot(tmp_path: Path, backend: Backend) -> None:
    """The backend says 350 millionths where 20 tokens and a short prompt were reserved: a call is missed by less than that."""
    budget = 0.002
    with Proxy(tmp_path, configured(backend, PRICES + keys(alice=f"budget: {{usd: {budget}, per: total}}"))) as proxy:
        replies = crowd(lambda: ask(proxy.url, "POST", "/v1/chat/completions", chat(max_tokens=1), bearer("alice")), 128)
        good = sum(reply.status == 200 for reply in replies)
        assert good * COST_USD <= budget + THREADS * COST_USD
        assert ask(proxy.url, "POST", "/v1/chat/completions", chat(), bearer("alice")).status == 429


def test_a_restart_forgets_nothing_that_was_spent(tmp_path: Path, backend: Backend) -> None:
    config = configured(backend, PRICES + keys(alice="budget: {usd: 0.0008, per: total}"))
    statuses = []
    for _ in range(4):
        with Proxy(tmp_path, config) as proxy:
            statuses.append(ask(proxy.url, "POST", "/v1/chat/completions", chat(), bearer("alice")).status)
            calls(proxy)
    assert statuses == [200, 200, 429, 429]


def test_a_stream_that_the_client_leaves_is_charged(tmp_path: Path, backend: Backend) -> None:
    gone = threading.Event()

    def endless(exchange: Exchange) -> None:
        exchange.start()
        for _ in range(300):
            exchange.event(event(" word"))
        exchange.wait_until_gone()
        gone.set()

    backend.on("/v1/chat/completions", endless)
    with Proxy(tmp_path, configured(backend, PRICES + keys(alice="budget: {usd: 1, per: day}, tokens: 10000/hour"))) as proxy:
        with Client(proxy.url, headers=bearer("alice")) as client:
            client.request("POST", "/v1/chat/completions", chat(**STREAMED, max_tokens=5000))
            chunks = client.reply_head() and client.chunks()
            came = b""
            while came.count(b" word") < 300:
                came += next(chunks)
        assert gone.wait(20)
        line = calls(proxy)[-1]
        assert 280 <= line["tokens_out"] <= 400
        assert line["tokens_in"] == len(json.dumps(chat(**STREAMED, max_tokens=5000))) // 4 + 1
        assert line["cost_usd"] == pytest.approx((line["tokens_in"] * 2 + line["tokens_out"] * 10) / 1e6)
        after = left(ask(proxy.url, "GET", "/v1/models", headers=bearer("alice")), "tokens")
        assert after == 10_000 - line["tokens_in"] - line["tokens_out"]


def test_who_leaves_before_the_answer_is_charged_for_the_prompt(tmp_path: Path, backend: Backend) -> None:
    backend.on("/v1/chat/completions", lambda exchange: exchange.wait_until_gone() and None)
    with Proxy(tmp_path, configured(backend, PRICES + keys(alice="tokens: 10000/hour"))) as proxy:
        with Client(proxy.url, headers=bearer("alice")) as client:
            client.request("POST", "/v1/chat/completions", chat())
            while not backend.asked:
                time.sleep(0.01)
        assert (calls(proxy)[-1]["tokens_in"], calls(proxy)[-1]["tokens_out"]) == (len(backend.asked[0].body) // 4 + 1, 0)


@pytest.mark.parametrize("how", ["error", "cut", "refused"])
def test_what_was_never_answered_costs_nothing(tmp_path: Path, backend: Backend, how: str) -> None:
    answers = {
        "error": lambda exchange: exchange.reply(500, {"error": {"message": "x"}}),
        "cut": lambda exchange: exchange.cut(),
    }
    config = configured(backend, PRICES + keys(alice="budget: {usd: 1, per: day}, tokens: 1000/hour"))
    if how == "refused":
        config += "guard: {deny: [hi]}\n"
    backend.on("/v1/chat/completions", answers.get(how, whole))
    with Proxy(tmp_path, config) as proxy:
        assert ask(proxy.url, "POST", "/v1/chat/completions", chat(), bearer("alice")).status in (403, 500, 502)
        assert not calls(proxy)[-1].get("cost_usd")
        assert left(ask(proxy.url, "GET", "/v1/models", headers=bearer("alice")), "tokens") == 1000


def test_a_stream_that_breaks_is_charged_for_what_came(tmp_path: Path, backend: Backend) -> None:
    def broken(exchange: Exchange) -> None:
        exchange.start()
        for _ in range(50):
            exchange.event(event(" word"))
        exchange.cut()

    backend.on("/v1/chat/completions", broken)
    for path in ("/v1/chat/completions", "/v1/messages"):
        with Proxy(tmp_path, configured(backend, PRICES + keys(alice="tokens: 10000/hour"))) as proxy:
            ask(proxy.url, "POST", path, chat(**STREAMED), bearer("alice"))
            assert 45 <= calls(proxy)[-1]["tokens_out"] <= 80, path


def test_a_model_without_a_price_is_not_for_a_key_with_a_budget(tmp_path: Path, backend: Backend) -> None:
    config = configured(backend, PRICES + keys(alice="budget: {usd: 1, per: day}", bob="limits: 9/minute"))
    with Proxy(tmp_path, config) as proxy:
        for body in (chat("unknown"), {**chat(), "model": None}):
            refused = ask(proxy.url, "POST", "/v1/chat/completions", body, bearer("alice"))
            assert (refused.status, refused.json()["error"]["code"]) == (403, "model_not_priced")
        assert not backend.asked
        assert ask(proxy.url, "POST", "/v1/chat/completions", chat("unknown"), bearer("bob")).status == 200
        assert ask(proxy.url, "POST", "/v1/chat/completions", chat("any"), {**bearer("alice"), "target": "demo"}).status == 200
        assert calls(proxy, 4)[-1]["cost_usd"] == 0


def test_the_model_that_was_served_is_charged(tmp_path: Path, backend: Backend) -> None:
    config = configured(
        backend, PRICES + "models: {cheap: {target: main, model: dear}}\n" + keys(alice="budget: {usd: 1, per: day}")
    )
    with Proxy(tmp_path, config) as proxy:
        assert ask(proxy.url, "POST", "/v1/chat/completions", chat("cheap"), bearer("alice")).status == 200
        assert calls(proxy)[-1]["cost_usd"] == pytest.approx((100 * 100 + 20 * 1000) / 1e6)


@pytest.mark.parametrize("renamed", ["", "models: {main-model: {target: main, model: m}}\n"])
@pytest.mark.parametrize("beside", [{"Model": "dear"}, {"models": ["m", "dear"]}])
def test_of_several_named_models_the_dearest_is_charged(
    tmp_path: Path, backend: Backend, beside: dict[str, Any], renamed: str
) -> None:
    config = configured(backend, PRICES + renamed + keys(alice="budget: {usd: 1, per: day}"))
    with Proxy(tmp_path, config) as proxy:
        body = {**chat("main-model" if renamed else "m"), **beside}
        assert ask(proxy.url, "POST", "/v1/chat/completions", body, bearer("alice")).status == 200
        assert calls(proxy)[-1]["cost_usd"] == pytest.approx((100 * 100 + 20 * 1000) / 1e6)


def test_what_bedrock_says_was_used_is_charged(tmp_path: Path, backend: Backend) -> None:
    said = {"output": {"message": {"role": "assistant", "content": [{"text": "hi"}]}}, "stopReason": "end_turn"}
    used = {"inputTokens": 5000, "outputTokens": 3000, "totalTokens": 8000}  # thoughts, mostly, that nobody sees
    backend.on("/model/m/converse", lambda exchange: exchange.reply(200, {**said, "usage": used}))
    config = configured(backend, PRICES + keys(alice="tokens: 10000/hour"), target=", route: /bedrock").replace(
        ", dialect: openai", "", 1
    )
    with Proxy(tmp_path, config) as proxy:
        body = {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}
        assert ask(proxy.url, "POST", "/bedrock/model/m/converse", body, bearer("alice")).status == 200
        assert (calls(proxy)[-1]["tokens_in"], calls(proxy)[-1]["tokens_out"]) == (5000, 3000)


# --- small parts


def test_a_price_is_of_what_was_not_cached_and_is_rounded_up() -> None:
    assert Price(2.5, 1.25, 10).cost(100, 40, 7) == 60 * 2.5 + 40 * 1.25 + 70
    assert Price(0.1, 0.1, 0.1).cost(1, 0, 0) == 1
    assert Price(0.1, 0.1, 0.1).cost(30, 0, 0) == 3
    assert Price(1, 0, 0).cost(10, 99, 0) == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.017, "17ms"), (0, "0ms"), (1, "1s"), (12.34, "12.4s"), (360, "6m0s"), (7500, "2h5m0s")]
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_periods_are_written_as_people_say_them() -> None:
    assert [period(s) for s in (60.0, 120.0, 86400.0, 604800.0, 90.0)] == ["minute", "2 minutes", "day", "7 days", "90 seconds"]


FAULTS = [
    ("limits: {global: 5/minuet}", "'minuet' is no period: there is second, minute, hour, day, week; did you mean 'minute'?"),
    ("limits: {global: 0/minute}", "limits.global: must be a rate such as 100/2minutes"),
    ("limits: {global: 5}", "limits.global: must be a rate such as 100/2minutes"),
    ("limits: {global: 5/minute;6/60seconds}", "has two limits for the same period"),
    ("limits: {paths: {v1: 5/minute}}", "limits.paths.v1: must be a path"),
    ("limits: {strategy: moving}", "must be moving-window or fixed-window, not 'moving'; did you mean 'moving-window'?"),
    ("prices: {m: {input: 1}}", "prices.m.output: is missing"),
    ("prices: {m: {input: -1, output: 1}}", "must be at least 0"),
]


@pytest.mark.parametrize(("text", "said"), FAULTS)
def test_a_fault_in_limits_and_prices_is_told(load: Load, text: str, said: str) -> None:
    found = fault(load, f'targets:\n  default: a\n  a: {{url: "demo://"}}\n{text}\n')
    assert found.startswith("config.yaml:4: ")
    assert said in found


def test_rates_are_read_as_people_write_them(load: Load) -> None:
    text = (
        'targets: {default: a, a: {url: "demo://", limits: "60/minute; 600/hour;1 / 2days"}}\nlimits: {global: 100/2minutes}\n'
    )
    config = load(text)
    assert config.targets["a"].limits == ((60, 60.0), (600, 3600.0), (1, 172800.0))
    assert config.limits is not None
    assert config.limits.everyone == ((100, 120.0),)
    assert config.traffic


def test_a_member_of_a_pool_at_its_limit_is_passed_over(tmp_path: Path, backend: Backend) -> None:
    config = (
        f'targets: {{default: best, a: {{url: "{backend.url}", dialect: openai, limits: 2/minute}}, '
        f'b: {{url: "{backend.url}", dialect: openai, limits: 3/minute}}, best: {{pool: [a, b]}}}}\n'
    )
    with Proxy(tmp_path, config) as proxy:
        replies = [ask(proxy.url, "POST", "/v1/chat/completions", chat(), proxy.headers) for _ in range(7)]
        assert [reply.status for reply in replies] == [200] * 5 + [429] * 2
        assert sorted(str(reply["x-mooltiproxy-target"]) for reply in replies[:5]) == ["a", "a", "b", "b", "b"]
        assert len(backend.asked) == 5


@pytest.mark.parametrize("path", ["/all/api/v1/chat/completions", "/all/v1/chat/completions/", "/all/anything"])
def test_a_path_that_nobody_knows_is_charged_all_the_same(tmp_path: Path, backend: Backend, path: str) -> None:
    backend.on(path.removeprefix("/all"), whole)
    config = configured(backend, PRICES + keys(alice="tokens: 10000/hour"), target="").replace(
        "demo: {", f'all: {{url: "{backend.url}", route: /all}}, demo: {{', 1
    )
    with Proxy(tmp_path, config) as proxy:
        assert ask(proxy.url, "POST", path, chat(), bearer("alice")).status == 200
        assert (calls(proxy)[-1]["tokens_in"], calls(proxy)[-1]["tokens_out"]) == (100, 20)


def test_a_prompt_of_words_as_long_as_can_be_is_counted_at_once(tmp_path: Path, backend: Backend) -> None:
    words = ("a" * 1000 + " ") * 4000
    with Proxy(tmp_path, configured(backend, keys(alice="tokens: 10000000/hour"))) as proxy:
        began = time.monotonic()
        body = {**chat(), "messages": [{"role": "user", "content": words}]}
        assert ask(proxy.url, "POST", "/v1/chat/completions", body, bearer("alice")).status == 200
        assert time.monotonic() - began < 3  # 4 MB; in quadratic time it took ten seconds, for everybody


def test_an_answer_that_is_made_in_the_background_is_charged_as_reserved(tmp_path: Path, backend: Backend) -> None:
    backend.on("/v1/responses", lambda exchange: exchange.reply(200, {"id": "r", "status": "queued", "usage": None}))
    config = configured(backend, keys(alice="tokens: 10000/hour")).replace("dialect: openai", "dialect: responses", 1)
    with Proxy(tmp_path, config) as proxy:
        body = {"model": "m", "input": "hi", "background": True, "max_output_tokens": 3000}
        assert ask(proxy.url, "POST", "/v1/responses", body, bearer("alice")).status == 200
        assert calls(proxy)[-1]["tokens_out"] == 3000


# --- a Redis that goes and comes


@pytest.mark.long
@pytest.mark.parametrize("on_loss", ["allow", "refuse"])
def test_without_its_redis_a_proxy_does_as_it_is_told_and_heals(tmp_path: Path, backend: Backend, on_loss: str) -> None:
    more = f"limits: {{global: 3/hour}}\non_state_loss: {on_loss}\n" + keys(alice="concurrency: 2")
    with Machines(tmp_path, "redis", targets(backend, ", concurrency: 4") + more) as machines:
        (proxy,), redis = machines.proxies, machines.redis
        assert redis is not None

        def one() -> Reply:
            return ask(proxy.url, "POST", "/v1/chat/completions", chat(), bearer("alice"))

        assert [one().status for _ in range(4)] == [200, 200, 200, 429]
        redis.stop()
        away = [one() for _ in range(5)]
        if on_loss == "allow":
            assert {(reply.status, reply["x-ratelimit-limit-requests"]) for reply in away} == {(200, None)}
        else:
            assert {(reply.status, reply.json()["error"]["code"], reply["retry-after"]) for reply in away} == {
                (503, "state_lost", "2")
            }
        redis.start()  # empty: it keeps nothing on disk
        until = time.monotonic() + 20
        while (back := one()) and back["x-ratelimit-limit-requests"] is None:
            assert time.monotonic() < until
        assert [back.status, one().status, one().status, one().status] == [200, 200, 200, 429]
        assert proxy.log.count("the shared state is lost") == 1
        proxy.wait_for_log("the shared state is back: calls are counted again")


# --- where stations meet


def test_a_fallback_is_charged_for_the_model_that_it_served_and_once(tmp_path: Path, backend: Backend) -> None:
    backend.on("/dear/chat/completions", lambda exchange: exchange.reply(500, {"error": {"message": "x"}, "usage": USED}))
    config = (
        f'system: {{log: {{format: json}}}}\ntargets: {{default: first, first: {{url: "{backend.url}/dear", dialect: openai, '
        f"model: dear, retries: {{on: [500], backoff_s: 0.01}}, fallback: second}}, "
        f'second: {{url: "{backend.url}", dialect: openai}}}}\n'
    )
    config += PRICES + keys(alice="budget: {usd: 1, per: total}, tokens: 1000000/day, concurrency: 1")
    with Proxy(tmp_path, config) as proxy:
        for times in (3, 2):  # the fifth failure in a row is one too many: it rests, and is not tried again
            reply = ask(proxy.url, "POST", "/v1/chat/completions", chat(), bearer("alice"))
            assert (reply.status, reply["x-mooltiproxy-attempts"]) == (200, ", ".join(["first 500"] * times))
            assert reply["x-mooltiproxy-target"] == "second"
        for line in calls(proxy, 2):
            assert (line["cost_usd"], line["tokens_in"], line["tokens_out"]) == (pytest.approx(COST_USD), 100, 20)
        looked = ask(proxy.url, "GET", "/v1/models", headers=bearer("alice"))
        assert left(looked, "tokens") == 1_000_000 - 2 * 120


def test_a_hit_of_the_cache_counts_as_a_request_and_costs_nothing(tmp_path: Path, backend: Backend) -> None:
    more = PRICES + keys(alice="limits: 3/minute, tokens: 10000/hour, budget: {usd: 1, per: day}, concurrency: 1")
    with Proxy(tmp_path, configured(backend, more, target=", cache: {default: true}")) as proxy:
        replies = [ask(proxy.url, "POST", "/v1/chat/completions", chat(), bearer("alice")) for _ in range(4)]
        assert [reply.status for reply in replies] == [200, 200, 200, 429]
        assert [reply["x-mooltiproxy-cache"] for reply in replies] == ["miss", "hit", "hit", None]
        assert [left(reply, "requests") for reply in replies] == [2, 1, 0, 0]
        assert [line.get("cost_usd") or 0 for line in calls(proxy, 4)] == [pytest.approx(COST_USD), 0, 0, 0]
        assert left(replies[3], "tokens") == 10_000 - 120
        assert len(backend.asked) == 1


@pytest.mark.parametrize("more", ["guard: {deny: [hi]}\n", "models: {other: demo}\n", ""])
def test_who_is_refused_behind_the_limits_gives_the_slot_back(tmp_path: Path, backend: Backend, more: str) -> None:
    backend.on("/v1/chat/completions", lambda exchange: exchange.reply(404, {"error": {"message": "x"}}))
    config = configured(backend, more + keys(alice="concurrency: 1, tokens: 100/hour"))
    with Proxy(tmp_path, config) as proxy, Client(proxy.url, headers=bearer("alice")) as client:
        for _ in range(5):
            assert client.ask("POST", "/v1/chat/completions", chat()).status in (403, 404)
        looked = client.ask("GET", "/v1/models")
        assert left(looked, "tokens") == 100


def test_a_place_that_came_with_the_admission_is_given_back_before_another_attempt(tmp_path: Path, backend: Backend) -> None:
    """A target with one slot: a second attempt, and the next call, find it free."""
    failures = iter([503, 503])

    def fail_twice(exchange: Exchange) -> None:
        status = next(failures, None)
        whole(exchange) if status is None else exchange.reply(status, {"error": {"message": "busy"}})

    backend.on("/v1/chat/completions", fail_twice)
    target = ", concurrency: 1, queue: {size: 1, timeout_s: 20}, retries: {attempts: 3, backoff_s: 0.01}"
    text = configured(backend, keys(alice="limits: 1000/minute, concurrency: 5"), target=target)
    with Proxy(tmp_path, text) as proxy:
        began = time.monotonic()
        replies = [ask(proxy.url, "POST", "/v1/chat/completions", chat(), bearer("alice")) for _ in range(3)]
        assert [reply.status for reply in replies] == [200] * 3
        assert time.monotonic() - began < 15
    assert len(backend.asked) == 5


def test_a_key_that_may_use_a_pool_may_use_its_members_through_it_alone(tmp_path: Path, backend: Backend) -> None:
    backend.on("/claude/v1/messages", lambda exchange: exchange.reply(200, {"id": "m", "type": "message", "role": "assistant",
        "model": "claude", "content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 1, "output_tokens": 1}}))  # fmt: skip
    config = targets(backend).replace("demo: {", "best: {pool: [main, claude]}, demo: {", 1)
    config += keys(alice="targets: [best], models: [m]")
    with Proxy(tmp_path, config) as proxy:

        def at(target: str, model: str = "m") -> Reply:
            return ask(proxy.url, "POST", "/v1/chat/completions", chat(model), {**bearer("alice"), "target": target})

        served = [at("best") for _ in range(4)]
        assert {(reply.status, reply["x-mooltiproxy-target"]) for reply in served} == {(200, "main"), (200, "claude")}
        assert [at(target).status for target in ("main", "claude", "demo")] == [403, 403, 403]
        assert at("best", "other").status == 403
