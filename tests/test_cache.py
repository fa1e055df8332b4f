"""Answers that are given again: the same ones, to the same key, whole or streamed, from each of the stores."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.backends.proxy import KEY, Proxy
from tests.backends.redis_server import RedisServer
from tests.backends.sockets import Backend, Client, Exchange, Reply, ask

RIGHT = {"authorization": f"Bearer {KEY}"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5}
CLAUDE = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
CONFIG = """
{system}
targets:
  default: up
  up: {{url: "{url}", dialect: openai, cache: {{default: true, ttl_s: {ttl}}}}}
cache: {{{cache}}}
{extra}
"""


def config(backend: Backend, system: str = "", cache: str = "store: memory", ttl: str = "60", extra: str = "") -> str:
    return CONFIG.format(system=system, url=backend.url, ttl=ttl, cache=cache, extra=extra)


def answer(exchange: Exchange) -> None:
    """OpenAI's chat: text and a tool call, streamed as asked, a count in it that tells one answer from the next."""
    asked = json.loads(exchange.asked.body)
    number = len(exchange_count)
    exchange_count.append(asked)
    head = {"id": f"chatcmpl-{number}", "created": 1, "model": asked["model"]}
    if not asked.get("stream"):
        message = {"role": "assistant", "content": f"answer {number}", "tool_calls": [CALL]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        exchange.reply(200, {**head, "object": "chat.completion", "choices": [choice], "usage": USAGE})
        return
    exchange.start()
    deltas: list[Mapping[str, Any]] = [
        {"role": "assistant", "content": ""},
        {"content": f"answer {number}"},
        {"tool_calls": [{"index": 0, **CALL}]},
    ]
    for delta in deltas:
        exchange.event(
            {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        )
    last = {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
    exchange.event({**head, "object": "chat.completion.chunk", "choices": [last]})
    exchange.event({**head, "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
    exchange.event(b"[DONE]")
    exchange.end()


exchange_count: list[Any] = []


@pytest.fixture(scope="module")
def one_backend() -> Iterator[Backend]:
    with Backend() as running:
        yield running


@pytest.fixture
def backend(one_backend: Backend) -> Backend:
    """It has been asked nothing yet, and answers."""
    exchange_count.clear()
    one_backend.asked.clear()
    one_backend.on("/v1/chat/completions", answer)
    return one_backend


@pytest.fixture(scope="module")
def one_proxy(one_backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("cache"), config(one_backend)) as running:
        yield running


@pytest.fixture
def proxy(one_proxy: Proxy, backend: Backend) -> Proxy:
    """One for all that need no other. What a test asks for, no other has: see `own`."""
    return one_proxy


def own(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """A body that no other test sends."""
    return {**body, "x-test": os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]}


def post(proxy: Proxy, path: str, body: Mapping[str, Any], headers: Mapping[str, str] = RIGHT) -> Reply:
    return ask(proxy.url, "POST", path, own(body), headers)


def chat(proxy: Proxy, body: Mapping[str, Any] = CHAT, headers: Mapping[str, str] = RIGHT) -> Reply:
    return post(proxy, "/v1/chat/completions", body, headers)


class TestHits:
    def test_the_same_request_gets_the_same_answer_and_the_backend_is_asked_once(self, backend: Backend, proxy: Proxy) -> None:
        first, second = chat(proxy), chat(proxy, dict(reversed(CHAT.items())))
        assert (first["x-mooltiproxy-cache"], second["x-mooltiproxy-cache"]) == ("miss", "hit")
        assert (first.status, second.status) == (200, 200)
        assert first.json() == second.json()
        assert len(backend.asked) == 1

    def test_a_stream_is_replayed_event_by_event(self, backend: Backend, proxy: Proxy) -> None:
        asked = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        first, second = chat(proxy, asked), chat(proxy, asked)
        assert (first["x-mooltiproxy-cache"], second["x-mooltiproxy-cache"]) == ("miss", "hit")
        assert second["content-type"] == "text/event-stream; charset=utf-8"
        assert first.events == second.events
        assert [event["choices"] for event in second.events[:2]] == [
            [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
            [{"index": 0, "delta": {"content": f"answer {len(backend.asked) - 1}"}, "finish_reason": None}],
        ]
        assert second.events[-1] == "[DONE]"

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
    def test_a_stream_comes_back_whole_and_a_whole_answer_as_a_stream(self, backend: Backend, proxy: Proxy, path: str) -> None:
        body = CLAUDE if path == "/v1/messages" else CHAT
        whole = post(proxy, path, body)
        streamed = post(proxy, path, {**body, "stream": True})
        other = {**body, "temperature": 0.25}
        first = post(proxy, path, {**other, "stream": True})
        back = post(proxy, path, other)
        assert [reply["x-mooltiproxy-cache"] for reply in (whole, streamed, first, back)] == ["miss", "hit", "miss", "hit"]
        text = b"".join(reply.body for reply in (streamed, first))
        assert b"answer 0" in text
        assert b"answer 1" in text
        assert b"look" in streamed.body
        assert b"answer " in back.body
        told = back.json()
        if path == "/v1/messages":
            assert [block["type"] for block in told["content"]] == ["text", "tool_use"]
            assert (told["usage"]["input_tokens"], told["usage"]["output_tokens"]) == (7, 3)
            assert streamed.events[-1] == {"type": "message_stop"}
        else:
            assert told["choices"][0]["message"]["tool_calls"] == [CALL]
            assert told["usage"] == USAGE
            assert streamed.events[-1] == "[DONE]"

    @pytest.mark.parametrize(
        "change", [{"temperature": 0.6}, {"n": 2}, {"seed": 1}, {"user": "u"}, {"model": "other"}, {"x-unknown": 1}]
    )
    def test_every_field_that_may_change_the_answer_counts(
        self, backend: Backend, proxy: Proxy, change: dict[str, Any]
    ) -> None:
        assert chat(proxy)["x-mooltiproxy-cache"] == "miss"
        assert chat(proxy, {**CHAT, **change})["x-mooltiproxy-cache"] == "miss"

    def test_embeddings_are_kept_too(self, backend: Backend, proxy: Proxy) -> None:
        made = {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
            "model": "e",
            "usage": USAGE,
        }
        backend.on("/v1/embeddings", lambda exchange: exchange.reply(200, made))
        replies = [post(proxy, "/v1/embeddings", {"model": "e", "input": "x"}) for _ in range(2)]
        assert [reply["x-mooltiproxy-cache"] for reply in replies] == ["miss", "hit"]
        assert len(backend.asked) == 1

    def test_other_paths_are_left_alone(self, backend: Backend, proxy: Proxy) -> None:
        backend.on("/v1/models", lambda exchange: exchange.reply(200, {"object": "list", "data": []}))
        assert ask(proxy.url, "GET", "/v1/models", headers=RIGHT)["x-mooltiproxy-cache"] is None


class TestWhoAndWhether:
    def test_no_hit_crosses_the_names_of_keys(self, backend: Backend, tmp_path: Path) -> None:
        keys = "keys: {alice: {key: alices-key-0123456789}, bob: {key: bobs-key-0123456789ab}}"
        alice, bob = ({"x-api-key": key} for key in ("alices-key-0123456789", "bobs-key-0123456789ab"))
        with Proxy(tmp_path, config(backend, extra=keys)) as proxy:
            told = [chat(proxy, CHAT, who)["x-mooltiproxy-cache"] for who in (alice, bob, RIGHT, alice, bob, RIGHT)]
        assert told == ["miss"] * 3 + ["hit"] * 3

    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
    def test_a_request_says_whether_and_the_backend_does_not_see_it(self, backend: Backend, proxy: Proxy, path: str) -> None:
        body = CLAUDE if path == "/v1/messages" else CHAT
        told = [
            post(proxy, path, {**body, "caching": caching})["x-mooltiproxy-cache"] for caching in (False, True, True, False)
        ]
        assert told == ["off", "miss", "hit", "off"]
        assert not any(b"caching" in asked.body for asked in backend.asked)

    def test_off_by_default_where_the_target_says_so(self, backend: Backend, tmp_path: Path) -> None:
        text = config(backend).replace("default: true", "default: false")
        with Proxy(tmp_path, text) as proxy:
            assert [chat(proxy)["x-mooltiproxy-cache"] for _ in range(2)] == ["off", "off"]
            asked = {**CHAT, "caching": True}
            assert [chat(proxy, asked)["x-mooltiproxy-cache"] for _ in range(2)] == ["miss", "hit"]

    def test_passed_through_credentials_are_part_of_who_asks(self, backend: Backend, tmp_path: Path) -> None:
        text = config(backend).replace("dialect: openai,", "dialect: openai, auth: passthrough,")
        own = {"x-mooltiproxy-key": KEY}
        with Proxy(tmp_path, text) as proxy:
            told = [
                chat(proxy, CHAT, {**own, "authorization": f"Bearer {who}"})["x-mooltiproxy-cache"]
                for who in ("one", "two", "one")
            ]
        assert told == ["miss", "miss", "hit"]

    def test_so_are_those_that_a_fallback_passes_through(self, backend: Backend, tmp_path: Path) -> None:
        own = {"x-mooltiproxy-key": KEY}
        backend.on("/away/v1/chat/completions", lambda exchange: exchange.reply(503))
        text = f"""targets:
  default: first
  first: {{url: "{backend.url}/away/v1", dialect: openai, cache: {{default: true}}, fallback: [second]}}
  second: {{url: "{backend.url}", dialect: openai, fallback: [third]}}
  third: {{url: "{backend.url}", dialect: openai, auth: passthrough}}
"""
        with Proxy(tmp_path, text) as proxy:
            told = [
                chat(proxy, CHAT, {**own, "authorization": f"Bearer {who}"})["x-mooltiproxy-cache"]
                for who in ("one", "two", "one")
            ]
        assert told == ["miss", "miss", "hit"]


class TestWhatIsKept:
    @pytest.mark.parametrize("status", [400, 429, 500])
    def test_errors_are_not(self, backend: Backend, proxy: Proxy, status: int) -> None:
        backend.on("/v1/chat/completions", lambda exchange: exchange.reply(status, {"error": {"message": "no"}}))
        assert [(reply.status, reply["x-mooltiproxy-cache"]) for reply in (chat(proxy), chat(proxy))] == [(status, "miss")] * 2

    @pytest.mark.parametrize("ending", ["cut", "unfinished", "error"])
    def test_broken_streams_are_not(self, backend: Backend, proxy: Proxy, ending: str) -> None:
        def broken(exchange: Exchange) -> None:
            exchange.start()
            choice = {"index": 0, "delta": {"content": "half"}, "finish_reason": None}
            exchange.event({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})
            if ending == "cut":
                exchange.cut()
                return
            exchange.event({"error": {"message": "overloaded"}} if ending == "error" else b"[DONE]")
            exchange.end()

        backend.on("/v1/chat/completions", broken)
        told = [chat(proxy, {**CHAT, "stream": True})["x-mooltiproxy-cache"] for _ in range(2)]
        assert told == ["miss", "miss"]

    def test_an_answer_is_forgotten_after_its_time(self, backend: Backend, tmp_path: Path) -> None:
        with Proxy(tmp_path, config(backend, ttl="0.000001")) as proxy:
            assert [chat(proxy)["x-mooltiproxy-cache"] for _ in range(2)] == ["miss", "miss"]

    @pytest.mark.parametrize("store", ["memory", "sqlite:answers.db"])
    def test_the_least_recently_used_goes_first(self, backend: Backend, tmp_path: Path, store: str) -> None:
        one, two, three = ({**CHAT, "messages": [{"role": "user", "content": name * 30}]} for name in "123")
        with Proxy(tmp_path, config(backend, cache=f'store: "{store}", max_bytes: 900')) as proxy:
            told = [chat(proxy, body)["x-mooltiproxy-cache"] for body in (one, two, three, three, one)]
        assert told == ["miss", "miss", "miss", "hit", "miss"]


class TestStores:
    def test_a_file_outlives_the_process(self, backend: Backend, tmp_path: Path) -> None:
        for expected in ("miss", "hit"):
            with Proxy(tmp_path, config(backend, cache='store: "sqlite:answers.db"')) as proxy:
                assert chat(proxy)["x-mooltiproxy-cache"] == expected

    def test_a_file_is_for_its_owner_alone_and_is_left_whole(self, backend: Backend, tmp_path: Path) -> None:
        with Proxy(tmp_path, config(backend, cache='store: "sqlite:answers.db"')) as proxy:
            chat(proxy)
            assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("answers.db*")} == {0o600}
        assert [file.name for file in tmp_path.glob("answers.db*")] == ["answers.db"]

    def test_memory_outlives_a_reload(self, backend: Backend, proxy: Proxy) -> None:
        chat(proxy)
        assert ask(proxy.url, "POST", "/mooltiproxy/reload", headers=RIGHT).status == 200
        assert chat(proxy)["x-mooltiproxy-cache"] == "hit"

    def test_workers_share_the_state(self, backend: Backend, tmp_path: Path) -> None:
        with Proxy(tmp_path, config(backend, system="system: {workers: 3}", cache="store: state")) as proxy:
            told = {chat(proxy)["x-mooltiproxy-cache"] for _ in range(12)}
        assert told == {"miss", "hit"}
        assert len(backend.asked) == 1

    def test_machines_share_a_redis(self, backend: Backend, tmp_path: Path) -> None:
        redis = RedisServer(tmp_path)
        try:
            text = config(backend, cache="store: state", extra=f"state: {redis.url}")
            with Proxy(tmp_path / "one", text) as one, Proxy(tmp_path / "two", text) as two:
                assert [chat(proxy)["x-mooltiproxy-cache"] for proxy in (one, two)] == ["miss", "hit"]
                redis.stop()
                assert chat(one).status == 200  # what cannot be looked up is asked for
        finally:
            redis.stop()

    def test_a_file_that_cannot_be_had_is_told_at_the_start(self, backend: Backend, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match=r"cache\.store: cannot use /nowhere/x\.db"):
            Proxy(tmp_path, config(backend, cache='store: "sqlite:/nowhere/x.db"')).__enter__()


class TestFlights:
    def test_those_who_ask_the_same_at_once_share_one_call(self, backend: Backend, tmp_path: Path) -> None:
        replies = self._ask_at_once(backend, tmp_path, answer)
        assert len(backend.asked) == 1
        assert {reply.status for reply in replies} == {200}
        assert len({reply.body for reply in replies}) == 1

    def test_when_the_first_one_fails_the_others_go_on_alone(self, backend: Backend, tmp_path: Path) -> None:
        lock, failed = threading.Lock(), []

        def fail_once(exchange: Exchange) -> None:
            with lock:
                first = not failed
                failed.append(1)
            if first:
                exchange.reply(500, {"error": {"message": "no"}})
            else:
                answer(exchange)

        replies = self._ask_at_once(backend, tmp_path, fail_once)
        assert sorted(reply.status for reply in replies) == [200] * 7 + [500]

    def _ask_at_once(self, backend: Backend, tmp_path: Path, how: Any) -> list[Reply]:
        """Eight clients; the first one's call is answered when the others have sent theirs."""
        sent, replies = threading.Event(), []

        def hold(exchange: Exchange) -> None:
            assert sent.wait(30)
            how(exchange)

        backend.on("/v1/chat/completions", hold)
        with Proxy(tmp_path, config(backend)) as proxy:
            clients = [Client(proxy.url, headers=RIGHT) for _ in range(8)]
            for client in clients:
                client.request("POST", "/v1/chat/completions", CHAT)
            sent.set()
            replies = [client.reply() for client in clients]
            for client in clients:
                client.sock.close()
        return replies
