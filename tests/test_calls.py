"""The call log of a proxy at work: every call is in it once, as it was served; whatever becomes of the log, calls go on."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import re
import resource
import signal
import sqlite3
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy.records.store import Query, Row, open_store
from tests import configs
from tests.backends import postgres_server
from tests.backends.postgres_server import PostgresServer
from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Backend, Client, Exchange, ask
from tests.configs import PLAIN, Load, fault

load = configs.load  # the fixture
Json = dict[str, Any]
CHAT = "/v1/chat/completions"
CONFIG = """
records: {calls: {CALLS}}
SYSTEM
targets:
  default: demo
  demo: {url: demo://}
  raw: {url: BACKEND, dialect: openai, key: upstream-secret}
"""


def config(calls: str = "", backend: str = "demo://", system: str = "") -> str:
    return CONFIG.replace("CALLS", calls).replace("BACKEND", backend).replace("SYSTEM", system)


def chat(said: str, **more: Any) -> Json:
    return {"model": "m", "messages": [{"role": "user", "content": said}], **more}


def logged(url: str, query: Query | None = None) -> list[Row]:
    """All rows, the oldest first."""
    store = open_store(url)
    try:
        return [row for light in reversed(store.calls(query or Query(limit=10_000))) if (row := store.call(light.id))]
    finally:
        store.close()


def in_file(folder: Path) -> list[Row]:
    return logged(f"sqlite:///{folder}/calls.db")


def said(row: Row) -> str:
    """The answer's text."""
    choice = row.response["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def wait_for(ready: Callable[[], bool], timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < until, "it did not come"
        threading.Event().wait(0.02)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/calls.db" if request.param == "sqlite" else postgres_server.shared().database()


FRONTS: dict[str, tuple[str, str, Json]] = {
    "openai": (CHAT, CHAT, chat("Why?")),
    "anthropic": ("/v1/messages", "/v1/messages", chat("Why?", max_tokens=500)),
    "responses": ("/v1/responses", "/v1/responses", {"model": "m", "input": "Why?"}),
    "ollama": ("/api/chat", "/api/chat", chat("Why?")),
    "gemini": (
        "/v1beta/models/m:generateContent",
        "/v1beta/models/m:streamGenerateContent?alt=sse",
        {"contents": [{"role": "user", "parts": [{"text": "Why?"}]}]},
    ),
    "text": ("/v1/completions", "/v1/completions", {"model": "m", "prompt": "Why?"}),
    "tgi": ("/generate", "/generate_stream", {"inputs": "Why?"}),
    "llamacpp": ("/completion", "/completion", {"prompt": "Why?"}),
}


class TestRows:
    def test_the_same_text_from_every_front_streamed_or_not(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config()) as proxy:
            for whole, streamed, body in FRONTS.values():
                assert (
                    ask(proxy.url, "POST", whole, {**body, "stream": False} if "model" in body else body, proxy.headers).status
                    == 200
                )
                reply = ask(proxy.url, "POST", streamed, body if streamed != whole else {**body, "stream": True}, proxy.headers)
                assert reply.status == 200
        rows = in_file(tmp_path)
        assert len(rows) == 2 * len(FRONTS)
        assert {said(row) for row in rows} == {said(rows[0])}
        assert "You said: “Why?”" in said(rows[0])
        assert [row.stream for row in rows] == [False, True] * len(FRONTS)
        for row in rows:
            asked = row.request["messages"][0]["content"] if "messages" in row.request else row.request["prompt"]
            assert asked == "Why?", row.front
            assert (row.target, row.key_name, row.status, row.error) == ("demo", "master", 200, None)
            assert row.total_ms >= (row.first_ms or 0) > 0

    def test_nobody_hides_a_call_by_how_deep_its_body_is(self, tmp_path: Path) -> None:
        deep = json.loads("[" * 700 + f'"sk-{"x" * 20}"' + "]" * 700)
        calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}]
        told = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": calls}, {"role": "tool", "content": "x"}]
        with Proxy(tmp_path, config()) as proxy:
            ids = [
                ask(proxy.url, "POST", CHAT, body, proxy.headers)["x-request-id"]
                for body in (chat("Hi", metadata={"deep": deep}), {"model": "m", "messages": told}, chat("Hi"))
            ]
        rows = in_file(tmp_path)
        assert [row.id for row in rows] == ids
        assert rows[0].bodies["asked"] == "(withheld: nested too deeply)"
        assert "sk-xxxx" not in str(rows)

    def test_a_row_holds_the_facts_of_its_call(self, tmp_path: Path) -> None:
        body = chat("Hi", user="ann")
        with Proxy(tmp_path, config("user_header: X-User")) as proxy:
            reply = ask(proxy.url, "POST", CHAT, body, proxy.headers)
            ask(proxy.url, "POST", CHAT, chat("Hi", metadata={"user_id": "bob"}), {**proxy.headers, "x-user": "carol"})
        first, second = in_file(tmp_path)
        counts = reply.json()["usage"]
        assert first.id == reply["x-request-id"]
        assert (first.user, second.user, first.front, first.method, first.path) == ("ann", "carol", "openai", "POST", CHAT)
        assert (first.tokens_in, first.tokens_out) == (counts["prompt_tokens"], counts["completion_tokens"])
        assert (first.model_asked, first.client, first.title) == ("m", "127.0.0.1", "Hi")
        assert (first.request, first.response) == (body, reply.json())
        assert json.loads(first.bodies["asked"]) == json.loads(first.bodies["sent"]) == body
        assert first.bodies["told"] == first.bodies["got"] == reply.body.decode()
        assert abs(first.at - time.time()) < 60

    def test_mapped_calls_hold_all_four_bodies(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config()) as proxy:
            reply = ask(proxy.url, "POST", "/v1/messages", chat("Hi", max_tokens=9, stream=True), proxy.headers)
        (row,) = in_file(tmp_path)
        assert json.loads(row.bodies["asked"])["max_tokens"] == 9
        assert json.loads(row.bodies["sent"])["stream_options"] == {"include_usage": True}
        assert "chat.completion.chunk" in row.bodies["got"]
        assert row.bodies["told"] == reply.body.decode()

    def test_refused_calls_are_rows_and_looks_at_the_proxy_are_none(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config()) as proxy:
            assert ask(proxy.url, "POST", CHAT, chat("x")).status == 401
            assert ask(proxy.url, "POST", CHAT, chat("x"), {"authorization": "Bearer wrong"}).status in (401, 403)
            assert ask(proxy.url, "POST", CHAT, chat("x"), {**proxy.headers, "target": "none"}).status == 404
            assert ask(proxy.url, "POST", CHAT, b"{", proxy.headers).status == 400
            assert ask(proxy.url, "GET", "/healthz").status == 200
            assert ask(proxy.url, "OPTIONS", CHAT).status == 200
        rows = in_file(tmp_path)
        assert [row.status for row in rows][2:] == [404, 400]
        assert [row.error_source for row in rows] == ["client", "client", "client", "backend"]
        assert "none" in (rows[2].error or "")
        assert rows[3].bodies["asked"] == "{"
        assert [row.conversation for row in rows[:2]] == [None, None]

    def test_what_cannot_be_read_is_kept_as_what_it_is(self, tmp_path: Path) -> None:
        def cut(exchange: Exchange) -> None:
            exchange.start()
            exchange.event({"choices": [{"index": 0, "delta": {"content": "half"}}]})
            exchange.event(b"{broken")
            exchange.end()

        with Backend() as backend:
            backend.on("/v1" + CHAT[3:], cut)
            backend.on("/v1/audio/speech", lambda exchange: exchange.reply(200, b"\xff\xfe\x00", kind="audio/mpeg"))
            zipped = gzip.compress(json.dumps({"choices": [{"message": {"content": "unzipped"}}]}).encode())
            backend.on("/v1/completions", lambda exchange: exchange.reply(200, zipped, [("content-encoding", "gzip")]))
            with Proxy(tmp_path, config(backend=backend.url)) as proxy:
                to = {**proxy.headers, "target": "raw", "accept-encoding": "gzip"}
                ask(proxy.url, "POST", CHAT, chat("x", stream=True), to)
                ask(proxy.url, "POST", "/v1/audio/speech", {"input": "x"}, to)
                ask(proxy.url, "POST", "/v1/completions", {"prompt": "x"}, to)
                ask(proxy.url, "POST", "/v1/files", b"\xff" * 100, {**to, "content-type": "application/octet-stream"})
        stream, audio, packed, binary = in_file(tmp_path)
        assert "{broken" in stream.bodies["told"]
        assert stream.response is None
        assert audio.bodies["told"] == "(3 bytes that are no text)"
        assert said(packed) == "unzipped"
        assert binary.bodies["asked"] == "(100 bytes that are no text)"

    def test_a_client_that_leaves_is_a_row_with_what_had_come(self, tmp_path: Path) -> None:
        gone = threading.Event()

        def slow(exchange: Exchange) -> None:
            exchange.start()
            exchange.event({"choices": [{"index": 0, "delta": {"content": "half"}, "finish_reason": None}]})
            exchange.wait_until_gone()
            gone.set()

        with Backend() as backend:
            backend.on("/v1" + CHAT[3:], slow)
            with Proxy(tmp_path, config(backend=backend.url)) as proxy:
                with Client(proxy.url, headers={**proxy.headers, "target": "raw"}) as client:
                    client.request("POST", CHAT, chat("x", stream=True))
                    assert client.until(b"half")
                assert gone.wait(10)
        (row,) = in_file(tmp_path)
        assert (row.error_source, said(row)) == ("client", "half")

    def test_large_bodies_are_cut_and_stay_json(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config("body_limit: 4KiB")) as proxy:
            for size in (3000, 30_000, 300_000):
                assert ask(proxy.url, "POST", CHAT, chat("word " * (size // 5)), proxy.headers).status == 200
        small, middle, large = in_file(tmp_path)
        assert small.request == chat("word " * 600)
        assert middle.request["messages"][0]["content"].endswith("(30000 characters)")
        assert len(middle.bodies["asked"]) < 4200
        assert middle.title == ("word " * 10).strip()
        assert large.request is None
        assert large.bodies["asked"].startswith("(not kept")
        assert "You said" in said(large)

    def test_without_bodies_there_are_facts_alone(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config("bodies: false")) as proxy:
            first = ask(proxy.url, "POST", CHAT, chat("secret words"), proxy.headers).json()
            messages = [*chat("secret words")["messages"], first["choices"][0]["message"], {"role": "user", "content": "more"}]
            ask(proxy.url, "POST", CHAT, {"model": "m", "messages": messages}, proxy.headers)
        rows = in_file(tmp_path)
        assert [(row.request, row.response, row.title, dict(row.bodies)) for row in rows] == [(None, None, None, {})] * 2
        assert rows[0].conversation == rows[1].conversation == rows[0].id
        assert (rows[0].tokens_out or 0) > 0
        assert b"secret words" not in b"".join(file.read_bytes() for file in tmp_path.glob("calls.db*"))

    def test_images_are_counted(self, tmp_path: Path) -> None:
        with Backend() as backend:
            backend.on("/v1/images/generations", lambda exchange: exchange.reply(200, {"data": []}))
            with Proxy(tmp_path, config(backend=backend.url)) as proxy:
                body = {"model": "i", "prompt": "a cat", "n": 2, "size": "512x512"}
                ask(proxy.url, "POST", "/v1/images/generations", body, {**proxy.headers, "target": "raw"})
        (row,) = in_file(tmp_path)
        assert row.images == {"n": 2, "size": "512x512"}


class TestConversations:
    def test_turns_are_linked_across_fronts_and_regenerations(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config()) as proxy:

            def turn(messages: list[Json], path: str = CHAT, **more: Any) -> str:
                body = {"model": "m", "messages": messages, **more}
                reply = ask(proxy.url, "POST", path, body, proxy.headers)
                assert reply.status == 200
                answer = reply.json()
                return str(answer["choices"][0]["message"]["content"] if path == CHAT else answer["content"][0]["text"])

            first = turn([{"role": "system", "content": "It is 9:00"}, {"role": "user", "content": "First   question"}])
            more = [{"role": "user", "content": "First   question"}, {"role": "assistant", "content": first}]
            second = turn([{"role": "system", "content": "It is 9:01"}, *more, {"role": "user", "content": "Second"}])
            turn([{"role": "system", "content": "It is 9:01"}, *more, {"role": "user", "content": "Second"}], temperature=1)
            parts = [{"role": "assistant", "content": [{"type": "text", "text": second}]}]
            longer = [*more, {"role": "user", "content": "Second"}, *parts, {"role": "user", "content": "Third"}]
            turn(longer, "/v1/messages", max_tokens=99)
            turn([{"role": "user", "content": "Something else"}])
            turn([{"role": "user", "content": "By id"}], root_id="chosen")
        rows = in_file(tmp_path)
        assert [row.conversation for row in rows] == [rows[0].id] * 4 + [rows[4].id, "chosen"]
        assert [row.title for row in rows] == ["First question"] * 4 + ["Something else", "By id"]

    def test_keys_do_not_share_conversations(self, tmp_path: Path) -> None:
        keys = "keys: {a: {key: key-of-a-0123456789}, b: {key: key-of-b-0123456789}}\n"
        with Proxy(tmp_path, keys + config()) as proxy:
            for name in "ab":
                assert (
                    ask(proxy.url, "POST", CHAT, chat("Same"), {"authorization": f"Bearer key-of-{name}-0123456789"}).status
                    == 200
                )
        first, second = in_file(tmp_path)
        assert first.conversation != second.conversation
        assert (first.key_name, second.key_name) == ("a", "b")


class TestTimes:
    def test_a_streams_events_have_their_times(self, tmp_path: Path) -> None:
        def answer(exchange: Exchange) -> None:
            exchange.start()
            for at, text in enumerate(("Hel", "lo", "!")):
                exchange.event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
                if at == 1:
                    threading.Event().wait(0.3)
            exchange.event(b"[DONE]")
            exchange.end()

        with Backend() as backend:
            backend.on("/v1" + CHAT[3:], answer)
            with Proxy(tmp_path, config(backend=backend.url)) as proxy:
                to = {**proxy.headers, "target": "raw"}
                assert ask(proxy.url, "POST", CHAT, chat("Hi", stream=True), to).status == 200
                anthropic = {**chat("Hi", stream=True, max_tokens=5)}
                assert ask(proxy.url, "POST", "/v1/messages", anthropic, to).status == 200
                assert ask(proxy.url, "POST", CHAT, chat("Hi"), proxy.headers).status == 200
        same, mapped, whole = in_file(tmp_path)
        assert len(same.times) == 4
        assert same.times[2] - same.times[1] >= 290
        assert (same.first_ms or 0) - 1 <= same.times[0] <= same.times[1] <= same.times[3] <= same.total_ms + 1
        assert len(mapped.times) == mapped.bodies["told"].count("data:")
        assert max(mapped.times) - min(mapped.times) >= 290
        assert not whole.times


class TestSecrets:
    def test_none_is_in_the_file(self, tmp_path: Path) -> None:
        user_key = "key-of-ann-0123456789"
        words = f"{KEY} upstream-secret {user_key} sk-abcdefghijklmnopqrstuvwx ann@example.org"

        def answer(exchange: Exchange) -> None:
            if not exchange.asked.json().get("stream"):
                exchange.reply(200, {"choices": [{"message": {"role": "assistant", "content": f"You said {words}"}}]})
                return
            exchange.start()
            for at in range(0, len(words), 5):  # no event holds a whole one
                exchange.event({"choices": [{"index": 0, "delta": {"content": words[at : at + 5]}}]})
            exchange.event(b"[DONE]")
            exchange.end()

        with Backend() as backend:
            backend.on("/v1" + CHAT[3:], answer)
            text = f"keys: {{ann: {{key: {user_key}}}}}\n" + config("redact: ['[a-z]+@example\\.org']", backend.url)
            with Proxy(tmp_path, text) as proxy:
                to = {"authorization": f"Bearer {user_key}", "target": "raw"}
                for stream in (False, True):
                    body = (
                        json.dumps(chat(f"My words: {words}", stream=stream, user=words)).replace("ann@", "ann\\u0040").encode()
                    )
                    assert ask(proxy.url, "POST", CHAT, body, to).status == 200
        held = b"".join(file.read_bytes() for file in tmp_path.glob("calls.db*"))
        for secret in (KEY, "upstream-secret", user_key, "sk-abc", "ann@", "ann\\u0040"):
            assert secret.encode() not in held, secret
        whole, stream = in_file(tmp_path)
        assert said(whole) == "You said *** *** *** *** ***"
        assert said(stream) == "*** *** *** *** ***"
        assert whole.request["messages"][0]["content"] == "My words: *** *** *** *** ***"
        assert "withheld" in stream.bodies["told"]
        assert (tmp_path / "calls.db").stat().st_mode & 0o077 == 0


def storm(proxy: Proxy, streams: int, calls: int, at_once: int = 20) -> set[str]:
    """So many streams at once, then so many calls; the numbers that were answered right."""
    right: set[str] = set()

    def one(name: str, client: Client, stream: bool) -> None:
        reply = client.ask("POST", CHAT, chat(f"Number {name}?", stream=stream))
        assert reply.status == 200
        text = "".join(re.findall(r'"content":"((?:[^"\\]|\\.)*)"', reply.body.decode())) if stream else reply.body.decode()
        if f"Number {name}?" in text:
            right.add(name)

    def several(names: Sequence[str], stream: bool) -> None:
        with Client(proxy.url, headers=proxy.headers) as client:
            client.sock.settimeout(60)
            for name in names:
                one(name, client, stream)

    for jobs, stream in (
        ([[f"s{number}"] for number in range(streams)], True),
        ([[f"c{number}" for number in range(start, calls, at_once)] for start in range(at_once)], False),
    ):
        threads = [threading.Thread(target=several, args=(names, stream)) for names in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return right


def endless(
    proxy: Proxy, clients: int, streams: int, stopped: threading.Event | None = None, pace_s: float = 0.1
) -> dict[str, float]:
    """Calls, and some streams, that go on until the proxy is gone; what was answered right, and when (monotonic)."""
    answered: dict[str, float] = {}
    never = threading.Event()

    def one(client: Client, name: str, stream: bool) -> None:
        reply = client.ask("POST", CHAT, chat(f"Number {name}?", stream=stream))
        told = "".join(re.findall(r'"content":"((?:[^"\\]|\\.)*)"', reply.body.decode()))
        if f"Number {name}?" in told and (reply.whole or not stream):
            answered[name] = time.monotonic()

    def work(name: str, stream: bool) -> None:
        with contextlib.suppress(OSError, ValueError, AssertionError), Client(proxy.url, headers=proxy.headers) as client:
            for number in range(10_000):
                if (stopped or never).wait(pace_s):
                    return
                one(client, f"{name}x{number}", stream)

    jobs = [(f"c{number}", False) for number in range(clients)] + [(f"s{number}", True) for number in range(streams)]
    for name, stream in jobs:
        threading.Thread(target=work, args=(name, stream), daemon=True).start()
    return answered


def turns_right(turns: list[Json]) -> bool:
    """Whether what was said last is answered."""
    return turns[-1]["from"] == "gpt" and turns[-2]["value"] in turns[-1]["value"]


def sound(database: str) -> set[str]:
    """The names of the calls in the log: each is there once, with its own text, and the file is whole."""
    if database.startswith("sqlite:"):
        with sqlite3.connect(database.removeprefix("sqlite:///")) as conn:
            assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            conn.execute("INSERT INTO words (words) VALUES ('integrity-check')")
    rows = [row for row in logged(database) if "Number" in row.request["messages"][0]["content"]]
    for row in rows:
        if row.status == 200 and row.error is None:
            assert row.request["messages"][0]["content"] in said(row)
    names = [row.request["messages"][0]["content"][len("Number ") : -1] for row in rows]
    assert len(names) == len(set(names))
    return set(names)


@pytest.mark.long
class TestLoad:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_every_call_is_there_once_with_its_own_text(self, tmp_path: Path, database: str, workers: int) -> None:
        with Proxy(tmp_path, config(f"database: '{database}'", system=f"system: {{workers: {workers}}}\n")) as proxy:
            right = storm(proxy, 100, 400)
            assert proxy.stop() == 0
            assert "not in the call log" not in proxy.log
        rows = logged(database)
        names = [re.search(r"Number (\w+)\?", row.request["messages"][0]["content"])[1] for row in rows]  # type: ignore[index]
        assert len(right) == len(rows) == 500
        assert set(names) == right
        for name, row in zip(names, rows, strict=True):
            assert f"Number {name}?" in said(row)
            assert row.stream is name.startswith("s")

    def test_a_kill_loses_the_last_second_at_most_and_leaves_all_files_sound(self, tmp_path: Path, database: str) -> None:
        text = config(f"database: '{database}'").replace("records: {", "records: {dataset: {session: lab}, ")
        with Proxy(tmp_path, text) as proxy:
            calls_go_on(proxy, 1)
            wait_for(lambda: len(logged(database)) == 1)
            answered = endless(proxy, 2, 6, pace_s=0.15)
            wait_for(lambda: len(answered) > 150)
            for process in (proxy.process.pid, *children(proxy)):
                os.kill(process, signal.SIGKILL)
            killed = time.monotonic()
        due = {name for name, at in list(answered.items()) if at < killed - 1.0}
        assert len(due) > 50
        assert due <= sound(database)
        told = json.loads((tmp_path / "datasets" / "lab.json").read_bytes())
        assert all(turns_right(record["conversations"]) for record in told)
        with Proxy(tmp_path, text) as proxy:  # what the killed one left is taken up
            calls_go_on(proxy, 2)
        records = json.loads((tmp_path / "datasets" / "lab.json").read_bytes())
        asked = [record["conversations"][0]["value"] for record in records]
        assert len(asked) == len(set(asked))
        assert {f"Number {name}?" for name in due} | {"0", "1"} <= set(asked)

    def test_a_database_that_is_killed_and_comes_back_has_every_call_once(self, tmp_path: Path) -> None:
        server = PostgresServer()
        try:
            with Proxy(tmp_path, config(f"database: '{server.url}'")) as proxy:
                calls_go_on(proxy, 1)
                wait_for(lambda: len(logged(server.url)) == 1)
                stopped = threading.Event()
                answered = endless(proxy, 4, 20, stopped)
                wait_for(lambda: len(answered) > 200)
                server.kill()
                before = len(answered)
                wait_for(lambda: len(answered) > before + 100)  # no call waits for it
                server.start()
                wait_for(lambda: len(answered) > before + 200)
                proxy.wait_for_log("the call log is written again")
                stopped.set()
                assert proxy.stop() == 0
            assert set(answered) <= sound(server.url)
        finally:
            server.close()

    def test_what_a_killed_proxy_had_handed_over_is_written(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config()) as proxy:
            calls_go_on(proxy, 1)
            wait_for(lambda: (tmp_path / "calls.db").exists() and len(in_file(tmp_path)) == 1)
            (writer,) = children(proxy)
            os.kill(writer, signal.SIGSTOP)
            calls_go_on(proxy, 1)
            given = os.open(f"/proc/{writer}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
            wait_for(lambda: fcntl.ioctl(given, termios.FIONREAD, bytes(4)) != bytes(4))
            os.close(given)
            proxy.signal(signal.SIGKILL)
            os.kill(writer, signal.SIGCONT)
        wait_for(lambda: len(in_file(tmp_path)) == 2)

    def test_a_writer_that_dies_is_replaced_and_nothing_is_there_twice(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config()) as proxy:
            for total in (10, 20, 30):
                calls_go_on(proxy, 10)
                wait_for(lambda total=total: len(in_file(tmp_path)) == total)  # type: ignore[misc]
                for process in children(proxy):
                    os.kill(process, signal.SIGKILL)

    def test_a_reload_writes_what_the_old_generation_holds(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config()) as proxy:
            for number in range(3):
                ask(proxy.url, "POST", CHAT, chat(f"{number}"), proxy.headers)
                assert ask(proxy.url, "POST", "/mooltiproxy/reload", b"", proxy.headers).status == 200
            ask(proxy.url, "POST", CHAT, chat("3"), proxy.headers)
        assert [row.request["messages"][0]["content"] for row in in_file(tmp_path)] == ["0", "1", "2", "3"]

    def test_what_is_too_old_goes_while_it_serves(self, tmp_path: Path) -> None:
        store = open_store(f"sqlite:///{tmp_path}/calls.db")
        store.write([Row(id=f"{number:028x}", at=time.time() - 8 * 86400) for number in range(10)])
        store.close()
        with Proxy(tmp_path, config("keep_days: 7")) as proxy:
            ask(proxy.url, "POST", CHAT, chat("x"), proxy.headers)
        assert len(in_file(tmp_path)) == 1


def children(proxy: Proxy) -> list[int]:
    """The processes that the proxy has started: who writes its log."""
    return [int(pid) for path in Path(f"/proc/{proxy.process.pid}/task").glob("*/children") for pid in path.read_text().split()]


def no_larger_than(proxy: Proxy, size: int) -> None:
    """No file that the proxy or its children write grows past that, as on a disk that is full."""
    for process in (proxy.process.pid, *children(proxy)):
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def calls_go_on(proxy: Proxy, count: int) -> None:
    for number in range(count):
        assert ask(proxy.url, "POST", CHAT, chat(f"{number}"), proxy.headers).status == 200


class TestTrouble:
    def test_a_full_disk_fails_no_call_and_is_caught_up_with(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config()) as proxy:
            calls_go_on(proxy, 1)
            wait_for(lambda: len(in_file(tmp_path)) == 1)
            no_larger_than(proxy, 4096)
            calls_go_on(proxy, 20)
            proxy.wait_for_log("cannot be written, calls wait")
            calls_go_on(proxy, 20)
            no_larger_than(proxy, resource.RLIM_INFINITY)
            proxy.wait_for_log("the call log is written again; 0 calls were dropped")
            wait_for(lambda: len(in_file(tmp_path)) == 41)
            assert proxy.log.count("cannot be written") == 1

    def test_a_database_that_is_away_fails_no_call_and_is_caught_up_with(self, tmp_path: Path) -> None:
        server = PostgresServer()
        try:
            server.stop()
            with Proxy(tmp_path, config(f"database: '{server.url}'")) as proxy:
                proxy.wait_for_log("cannot be written now, and waits")
                calls_go_on(proxy, 10)
                proxy.wait_for_log("cannot be written, calls wait")
                server.start()
                proxy.wait_for_log("the call log is written again")
                wait_for(lambda: len(logged(server.url)) == 10)
                server.stop()
                calls_go_on(proxy, 10)
                server.start()
                wait_for(lambda: len(logged(server.url)) == 20)
        finally:
            server.close()

    def test_with_required_calls_are_refused_while_they_cannot_be_kept(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, config("required: true")) as proxy:
            calls_go_on(proxy, 1)
            wait_for(lambda: len(in_file(tmp_path)) == 1)
            no_larger_than(proxy, 4096)
            calls_go_on(proxy, 1)
            proxy.wait_for_log("cannot be written, calls wait")
            reply = ask(proxy.url, "POST", CHAT, chat("x"), proxy.headers)
            assert (reply.status, reply.json()["error"]["code"], reply["retry-after"]) == (503, "not_recorded", "5")
            no_larger_than(proxy, resource.RLIM_INFINITY)
            wait_for(lambda: ask(proxy.url, "POST", CHAT, chat("y"), proxy.headers).status == 200)
        assert sum(row.status == 200 for row in in_file(tmp_path)) == 3

    @pytest.mark.parametrize(
        ("calls", "told"),
        [
            ("database: 'sqlite:////nowhere/calls.db'", "records.calls.database: /nowhere/calls.db: "),
            ("required: true, database: 'postgresql://x@127.0.0.1:1/x'", "records.calls.database: PostgreSQL: "),
        ],
    )
    def test_a_log_that_cannot_be_had_is_a_fault_of_the_start(self, tmp_path: Path, calls: str, told: str) -> None:
        with pytest.raises(RuntimeError, match=re.escape(told)), Proxy(tmp_path, config(calls)):
            pass


class TestConfiguration:
    @pytest.mark.parametrize(
        ("calls", "path", "told"),
        [
            ("{database: calls.db}", "database", "must be sqlite:///FILE or postgresql://USER@HOST/DATABASE"),
            ("{database: 'mysql://root:hush@h/d'}", "database", "must be sqlite:///FILE or postgresql"),
            ("{databse: x}", "databse", "is not known here; did you mean 'database'?"),
            ("{redact: ['(']}", "redact[0]", "is no regular expression"),
            ("{redact: ['(a+)+b']}", "redact[0]", "takes exponentially long"),
            ("{body_limit: much}", "body_limit", "must be a size in bytes"),
            ("{keep_days: 0}", "keep_days", "must be more than 0"),
            ("{required: maybe}", "required", "must be true or false"),
            ("{user_header: 'a b'}", "user_header", "must be a header's name"),
        ],
    )
    def test_faults_are_told_with_their_place(self, load: Load, calls: str, path: str, told: str) -> None:
        found = fault(load, f"{PLAIN}records: {{calls: {calls}}}")
        assert found.startswith(f"config.yaml:6: records.calls.{path}: ")
        assert told in found
        assert "hush" not in found

    def test_nothing_said_means_a_file_for_ninety_days(self, load: Load) -> None:
        records = load(PLAIN + "records: {calls: {}}").records
        assert records is not None
        assert records.calls is not None
        assert (records.calls.database, records.calls.keep_days, records.calls.body_limit) == ("sqlite:///calls.db", 90, 65536)
