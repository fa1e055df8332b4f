"""Pools: whose turn it is, who rests, and every way to name one."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from proxy.config import Pool
from proxy.pools import Busy, Members
from tests import configs
from tests.backends.engines import Machines
from tests.backends.literal import Literal, Peer
from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Client, Reply, ask
from tests.configs import Load, faults
from tests.test_attempts import CHAT, good, http, says, serve, told

load = configs.load  # the fixture
RIGHT = {"authorization": f"Bearer {KEY}"}


def members(strategy: str, busy: Busy | None = None, **weights: int) -> Members:
    return Members(Pool("p", weights, strategy), busy or Busy())


def chat(proxy: Proxy, **headers: str) -> Reply:
    return ask(proxy.url, "POST", "/v1/chat/completions", CHAT, {**RIGHT, **headers})


# --- whose turn it is


def test_members_of_equal_weight_take_turns_and_the_next_ones_stand_behind() -> None:
    pool = members("round-robin", a=1, b=1, c=1)
    assert [pool.order() for _ in range(4)] == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_weights_are_kept_exactly_and_well_mixed() -> None:
    pool = members("weighted", a=3, b=1)
    firsts = [pool.order()[0] for _ in range(40)]
    assert Counter(firsts) == {"a": 30, "b": 10}
    assert all("b" in firsts[at : at + 4] for at in range(0, 40, 4))


def test_least_busy_is_who_has_fewest_calls_for_its_weight() -> None:
    busy = Busy()
    pool = members("least-busy", busy, a=1, b=2)
    with busy.one("b"):
        assert pool.order()[0] == "a"
        with busy.one("a"):
            assert pool.order()[0] == "b"
    assert busy.calls == Counter()


def test_each_call_goes_to_the_next_member(tmp_path: Path) -> None:
    with Literal(good) as one, Literal(good) as two:
        config = f"""
targets:
  default: both
  one: {{url: "{one.url}", dialect: openai, model: first-model}}
  two: {{url: "{two.url}", dialect: openai}}
  both: {{pool: [one, two]}}
"""
        with Proxy(tmp_path, config) as proxy:
            assert "pool    both         round-robin over one, two  default" in proxy.banner
            assert [chat(proxy)["x-mooltiproxy-target"] for _ in range(4)] == ["one", "two", "one", "two"]
            assert {json.loads(asked.body)["model"] for asked in one.asked} == {"first-model"}
            assert {json.loads(asked.body)["model"] for asked in two.asked} == {"m"}


def test_a_busy_member_is_spared(tmp_path: Path) -> None:
    held, release = threading.Event(), threading.Event()

    def slow(peer: Peer) -> None:
        while asked := peer.request():
            held.set()
            assert release.wait(10)
            serve(peer, asked)

    with Literal(slow) as one, Literal(good) as two:
        config = f"""
targets:
  default: both
  one: {{url: "{one.url}", dialect: openai}}
  two: {{url: "{two.url}", dialect: openai}}
  both: {{pool: [one, two], strategy: least-busy}}
"""
        with Proxy(tmp_path, config) as proxy, Client(proxy.url, headers=RIGHT) as client:
            client.request("POST", "/v1/chat/completions", CHAT)
            assert held.wait(10)
            assert [chat(proxy)["x-mooltiproxy-target"] for _ in range(3)] == ["two"] * 3
            release.set()
            assert client.reply().status == 200


def test_members_of_different_apis_serve_one_client(tmp_path: Path) -> None:
    answer = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [{"type": "text", "text": "from the other API"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    with Literal(told(503)) as one, Literal(http(200, json.dumps(answer).encode())) as two:
        config = f"""
targets:
  default: both
  one: {{url: "{one.url}", dialect: openai, model: gpt}}
  two: {{url: "{two.url}", dialect: anthropic, model: claude}}
  both: {{pool: [one, two]}}
"""
        with Proxy(tmp_path, config) as proxy:
            reply = chat(proxy)
            assert reply.json()["choices"][0]["message"]["content"] == "from the other API"
            assert (reply["x-mooltiproxy-target"], reply["x-mooltiproxy-attempts"]) == ("two", "one 503")
            assert [(asked.path, json.loads(asked.body)["model"]) for asked in (*one.asked, *two.asked)] == [
                ("/v1/chat/completions", "gpt"),
                ("/v1/messages", "claude"),
            ]


# --- naming one


def test_a_pool_is_named_like_a_target(tmp_path: Path) -> None:
    with Literal(good) as one, Literal(good) as other:
        config = f"""
targets:
  default: other
  one: {{url: "{one.url}", dialect: openai}}
  other: {{url: "{other.url}", dialect: openai}}
  best: {{pool: [one], route: /best}}
models:
  smart: {{target: best, model: really}}
"""
        with Proxy(tmp_path, config) as proxy:
            assert chat(proxy, target="best")["x-mooltiproxy-target"] == "one"
            routed = ask(proxy.url, "POST", "/best/v1/chat/completions", CHAT, RIGHT)
            assert (routed.status, routed["x-mooltiproxy-target"]) == (200, "one")
            smart = ask(proxy.url, "POST", "/v1/chat/completions", {**CHAT, "model": "smart"}, RIGHT)
            assert (smart.status, smart.json()["model"]) == (200, "smart")
            assert json.loads(one.asked[-1].body)["model"] == "really"
            assert chat(proxy)["x-mooltiproxy-target"] is None
            assert chat(proxy, target="worst").status == 404


def test_the_models_of_a_pool_are_its_first_members_and_the_names_for_it(tmp_path: Path) -> None:
    def listing(name: str) -> bytes:
        models = [{"id": name, "object": "model", "created": 1, "owned_by": "x"}]
        return http(200, json.dumps({"object": "list", "data": models}).encode())

    with Literal(listing("first")) as one, Literal(listing("second")) as two:
        config = f"""
targets:
  default: both
  one: {{url: "{one.url}", dialect: openai}}
  two: {{url: "{two.url}", dialect: openai}}
  both: {{pool: [one, two]}}
models: {{smart: both}}
"""
        with Proxy(tmp_path, config) as proxy:
            for _ in range(3):
                reply = ask(proxy.url, "GET", "/v1/models", None, RIGHT)
                assert [model["id"] for model in reply.json()["data"]] == ["smart", "first"]
            assert two.asked == []


def test_targets_that_stand_in_for_each_other_are_tried_once_each(tmp_path: Path) -> None:
    with Literal(told(500)) as one, Literal(told(502)) as two:
        config = f"""
targets:
  default: one
  one: {{url: "{one.url}", dialect: openai, fallback: two}}
  two: {{url: "{two.url}", dialect: openai, fallback: [one, both]}}
  both: {{pool: [one, two]}}
"""
        with Proxy(tmp_path, config) as proxy:
            reply = chat(proxy)
            assert (reply.status, reply["x-mooltiproxy-attempts"]) == (502, "one 500, two 502")
            assert (len(one.asked), len(two.asked)) == (1, 1)


def test_a_member_at_its_limit_is_passed_over(tmp_path: Path) -> None:
    with Literal(good) as one, Literal(good) as two:
        config = f"""
targets:
  default: both
  one: {{url: "{one.url}", dialect: openai, limits: 2/hour}}
  two: {{url: "{two.url}", dialect: openai}}
  both: {{pool: {{one: 1000, two: 1}}}}
"""
        with Proxy(tmp_path, config) as proxy:
            replies = [chat(proxy) for _ in range(4)]
            assert [reply["x-mooltiproxy-target"] for reply in replies] == ["one", "one", "two", "two"]
            assert replies[3]["x-mooltiproxy-attempts"] == "one rate_limit_exceeded"


def test_check_shows_pools(load: Load) -> None:
    from proxy.workbench.show import shown

    text = shown(load(CONFIG), {}, {})
    assert "best:  (default)  # config.yaml:5\n  pool: a (3), b (1), weighted\n  fallback: a\n  route: /best\n" in text + "\n"
    assert "  attempts: 3, after connect, timeout, 429, 502, 503, 504, 529\n" in text
    assert "  rests: 30 s after 5 failures in a row\n" in text


CONFIG = """targets:
  default: best
  a: {url: http://h:1, dialect: openai, retries: {}}
  b: {url: http://h:2, dialect: openai}
  best: {pool: {a: 3, b: 1}, fallback: a, route: /best}
"""


@pytest.mark.parametrize(
    ("pool", "fault"),
    [
        ("pool: []", "5: targets.p.pool: must not be empty"),
        ("pool: {}", "5: targets.p.pool: has no member"),
        ("pool: [a, a]", "5: targets.p.pool: has a member twice: give it a weight instead, such as {llama: 2, gpt: 1}"),
        ("pool: [a, bb]", "5: targets.p.pool[1]: there is no target 'bb'; did you mean 'b'?"),
        ("pool: {a: 1, bb: 1}", "5: targets.p.pool.bb: there is no target 'bb'; did you mean 'b'?"),
        ("pool: {a: 0}", "5: targets.p.pool: must be at least 1 and at most 1000000, not 0"),
        ("pool: [a, p]", "5: targets.p.pool: 'p' is a pool: name its members instead"),
        ("pool: [a, b], strategy: random", "5: targets.p.strategy: must be round-robin, weighted or least-busy, not 'random'"),
        ("pool: [a, b], fallback: p", "5: targets.p.fallback: names itself: `retries` tries the same target again"),
        ("pool: [a, b], fallback: [x]", "5: targets.p.fallback: there is no target 'x'; there is 'a', 'b' and 'p'"),
        ("pool: {a: 2, b: 1}, strategy: round-robin", "5: targets.p.pool: has weights, which `strategy: round-robin` does not"),
        ("pool: [a, b], url: http://x", "5: targets.p.url: is not known here"),
    ],
)
def test_what_can_be_wrong_with_a_pool(load: Load, pool: str, fault: str) -> None:
    text = CONFIG.replace("default: best", "default: a").replace("best: {pool: {a: 3, b: 1}, fallback: a, route: /best}", "")
    (found,) = faults(load, text.rstrip() + "\n  p: {" + pool + "}\n")
    assert found.startswith(f"config.yaml:{fault}"), found


# --- who rests


def test_a_member_that_fails_rests_and_one_call_tries_it_when_it_is_back(tmp_path: Path) -> None:
    broken = threading.Event()
    broken.set()
    tried, release = threading.Event(), threading.Event()

    def weak(peer: Peer) -> None:
        while asked := peer.request():
            if broken.is_set():
                says(503)(peer, asked)
            else:
                tried.set()
                assert release.wait(10)
                serve(peer, asked)

    with Literal(weak) as one, Literal(good) as two:
        config = f"""
targets:
  default: both
  one: {{url: "{one.url}", dialect: openai, breaker: {{failures: 2, cool_s: 1}}}}
  two: {{url: "{two.url}", dialect: openai}}
  both: {{pool: {{one: 1000, two: 1}}}}
"""
        with Proxy(tmp_path, config) as proxy:
            began = time.monotonic()
            assert [chat(proxy)["x-mooltiproxy-attempts"] for _ in range(2)] == ["one 503"] * 2
            proxy.wait_for_log("target one rests for 1 s")
            while time.monotonic() < began + 0.5:
                assert chat(proxy)["x-mooltiproxy-attempts"] == "one rests"
            assert len(one.asked) == 2
            broken.clear()
            trial = threading.Thread(target=until_tried, args=(proxy, tried))
            trial.start()
            assert tried.wait(10)
            assert {chat(proxy)["x-mooltiproxy-target"] for _ in range(5)} == {"two"}  # half open: one at a time
            assert len(one.asked) == 3
            release.set()
            trial.join(10)
            assert chat(proxy)["x-mooltiproxy-target"] == "one"


def until_tried(proxy: Proxy, tried: threading.Event) -> None:
    """Calls until one of the calls has reached the member that rested."""
    until = time.monotonic() + 10
    while not tried.is_set() and time.monotonic() < until:
        chat(proxy)


@pytest.mark.parametrize("engine", ["workers", "redis"])
def test_failures_are_counted_and_rests_kept_over_all_processes(tmp_path: Path, engine: str) -> None:
    with Literal(told(503)) as one, Literal(good) as two:
        config = f"""
targets:
  default: one
  one: {{url: "{one.url}", dialect: openai, fallback: two, breaker: {{failures: 4, cool_s: 600}}}}
  two: {{url: "{two.url}", dialect: openai}}
"""
        with Machines(tmp_path, engine, config) as machines:
            for _ in range(2):
                machines.another()
            for proxy in machines.proxies * (4 // len(machines.proxies) + 1):
                if len(one.asked) < 4:
                    assert chat(proxy)["x-mooltiproxy-attempts"] == "one 503"
            late = machines.another()
            assert {chat(late)["x-mooltiproxy-attempts"] for _ in range(16)} == {"one rests"}
            assert len(one.asked) == 4


def test_when_all_rest_the_one_that_comes_back_first_is_named(tmp_path: Path) -> None:
    with Literal(told(500)) as one, Literal(told(429, "retry-after: 40")) as two:
        config = f"""
targets:
  default: both
  one: {{url: "{one.url}", dialect: openai, breaker: {{failures: 1, cool_s: 90}}}}
  two: {{url: "{two.url}", dialect: openai, breaker: {{failures: 1, cool_s: 20}}}}
  both: {{pool: [one, two]}}
"""
        with Proxy(tmp_path, config) as proxy:
            assert chat(proxy).status == 429
            reply = chat(proxy)
            assert (reply.status, reply["retry-after"]) == (503, "40")
            assert "'two' comes back first, in 40 s" in reply.json()["error"]["message"]
            assert reply["x-mooltiproxy-attempts"] == "two rests, one rests"
            assert (len(one.asked), len(two.asked)) == (1, 1)


@pytest.mark.parametrize("between", [200, 400, 404])
def test_any_sound_answer_in_between_forgives(tmp_path: Path, between: int) -> None:
    answers = iter([500, 500, between] * 2)

    def moody(peer: Peer) -> None:
        while asked := peer.request():
            status = next(answers)
            serve(peer, asked) if status == 200 else says(status)(peer, asked)

    with Literal(moody) as one:
        config = f'targets: {{default: a, a: {{url: "{one.url}", dialect: openai, breaker: {{failures: 3, cool_s: 90}}}}}}'
        with Proxy(tmp_path, config) as proxy:
            assert [chat(proxy).status for _ in range(6)] == [500, 500, between] * 2


def test_the_keys_of_clients_cannot_make_a_target_rest(tmp_path: Path) -> None:
    with Literal(told(401)) as one:
        config = f"""
system: {{open_to: [127.0.0.1]}}
targets:
  default: a
  a: {{url: "{one.url}", dialect: openai, auth: passthrough, breaker: {{failures: 1, cool_s: 90}}}}
"""
        with Proxy(tmp_path, config) as proxy:
            wrong: dict[str, Any] = {"authorization": "Bearer of-the-client"}
            assert [ask(proxy.url, "POST", "/v1/chat/completions", CHAT, wrong).status for _ in range(3)] == [401] * 3
