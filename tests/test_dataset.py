"""Datasets: conversations as they happen, in files that are valid at every moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proxy.records.dataset import Session, record_of
from proxy.records.store import Row
from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Backend, Client, Exchange, ask
from tests.configs import PLAIN, Load, fault, load

__all__ = ["load"]  # a fixture
Json = dict[str, Any]
CONFIG = """
system: {workers: WORKERS}
records: {dataset: {session: lab}}
keys: {ann: {key: ann-key-0123456789}, bob: {key: bob-key-0123456789}}
targets:
  default: back
  back: {url: URL, dialect: openai}
"""


ANN, BOB = "ann-key-0123456789", "bob-key-0123456789"


def say(text: str) -> Json:
    return {"role": "user", "content": text}


def answered(text: str) -> Json:
    return {"role": "assistant", "content": text}


def completion(text: str | None, **more: Any) -> Json:
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **more}, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def parrot(exchange: Exchange) -> None:
    """Says "re: " and the last message; streams by the letter where it is asked to."""
    body = exchange.asked.json()
    text = "re: " + str(body["messages"][-1]["content"])
    if body.get("extra") == "fail":
        exchange.reply(500, {"error": {"message": "no"}})
    elif body.get("extra") == "again":
        exchange.reply(200, completion(text + "!"))
    elif not body.get("stream"):
        exchange.reply(200, completion(text))
    else:
        exchange.start()
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        for letter in text:
            exchange.event({**head, "choices": [{"index": 0, "delta": {"content": letter}, "finish_reason": None}]})
            if body.get("extra") == "cut" and letter == ":":
                exchange.cut()
                return
        exchange.event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        exchange.event(b"[DONE]")
        exchange.end()


@pytest.fixture
def backend() -> Any:
    with Backend() as found:
        found.on("/v1/chat/completions", parrot)
        text = {"object": "text_completion", "id": "c", "created": 1, "model": "m"}
        found.on(
            "/v1/completions", lambda exchange: exchange.reply(200, {**text, "choices": [{"index": 0, "text": " a time"}]})
        )
        yield found


def started(folder: Path, backend: Backend, workers: int = 1) -> Proxy:
    return Proxy(folder, CONFIG.replace("URL", backend.url).replace("WORKERS", str(workers)))


def chat(proxy: Proxy, *messages: Json, **more: Any) -> Any:
    return ask(proxy.url, "POST", "/v1/chat/completions", {"model": "m", "messages": [*messages], **more}, proxy.headers)


def read(folder: Path, session: str = "lab") -> list[list[tuple[str, str]]]:
    """The conversations in a session's file, each turn as (from, value)."""
    data = json.loads((folder / "datasets" / f"{session}.json").read_bytes())
    return [[(turn["from"], turn["value"]) for turn in record["conversations"]] for record in data]


def until(fits: Callable[[], bool], timeout_s: float = 15) -> None:
    end = time.monotonic() + timeout_s
    while not fits():
        assert time.monotonic() < end
        time.sleep(0.02)


HELLO = [("human", "Hello"), ("gpt", "re: Hello")]


class TestConversations:
    def test_a_conversation_is_one_record_however_long_it_gets(self, tmp_path: Path, backend: Backend) -> None:
        with started(tmp_path, backend) as proxy:
            system = {"role": "system", "content": "Be brief."}
            chat(proxy, system, say("Hello"))
            chat(proxy, say("Other"), stream=True)
            chat(proxy, system, say("Hello"), answered("re: Hello"), say("More"), stream=True)
        assert read(tmp_path) == [
            [("system", "Be brief."), *HELLO, ("human", "More"), ("gpt", "re: More")],
            [("human", "Other"), ("gpt", "re: Other")],
        ]

    def test_an_answer_that_is_asked_for_again_replaces_the_first(self, tmp_path: Path, backend: Backend) -> None:
        with started(tmp_path, backend) as proxy:
            chat(proxy, say("Hello"))
            chat(proxy, say("Hello"), extra="again")
            chat(proxy, say("Hello"), answered("re: Hello!"), say("More"))
            chat(proxy, say("Hello"), answered("re: Hello!"), say("More"), extra="again")
        assert read(tmp_path) == [[("human", "Hello"), ("gpt", "re: Hello!"), ("human", "More"), ("gpt", "re: More!")]]

    def test_two_people_who_say_the_same_have_a_conversation_each(self, tmp_path: Path, backend: Backend) -> None:
        turns = [say("Hello"), answered("re: Hello"), say("More")]
        with started(tmp_path, backend) as proxy:
            for messages in (turns[:1], turns):
                for key in (ANN, BOB):
                    body, headers = {"model": "m", "messages": messages}, {"authorization": f"Bearer {key}"}
                    assert ask(proxy.url, "POST", "/v1/chat/completions", body, headers).status == 200
        told = json.loads((tmp_path / "datasets" / "lab.json").read_bytes())
        assert sorted(record["key"] for record in told) == ["ann", "bob"]
        assert [turns[-1] for turns in read(tmp_path)] == [("gpt", "re: More")] * 2

    def test_a_branch_is_a_conversation_of_its_own(self, tmp_path: Path, backend: Backend) -> None:
        with started(tmp_path, backend) as proxy:
            chat(proxy, say("Hello"))
            for more in ("left", "right"):
                chat(proxy, say("Hello"), answered("re: Hello"), say(more))
        assert [turns[-1][1] for turns in read(tmp_path)] == ["re: left", "re: right"]

    def test_failures_and_halves_are_not_kept(self, tmp_path: Path, backend: Backend) -> None:
        with started(tmp_path, backend) as proxy:
            assert chat(proxy, say("Hello"), extra="fail").status == 500
            chat(proxy, say("Hello"), extra="cut", stream=True)
            with Client(proxy.url, headers=proxy.headers) as client:
                client.request("POST", "/v1/chat/completions", {"model": "m", "messages": [say("gone")]})
            chat(proxy, say("Whole"))
        assert [("human", "Whole"), ("gpt", "re: Whole")] in read(tmp_path)
        assert not any("Hello" in turns[0][1] for turns in read(tmp_path))

    def test_completions_and_other_apis_too(self, tmp_path: Path, backend: Backend) -> None:
        with started(tmp_path, backend) as proxy:
            ask(proxy.url, "POST", "/v1/completions", {"model": "m", "prompt": "Once upon"}, proxy.headers)
            body = {"model": "m", "max_tokens": 9, "system": "Be brief.", "messages": [say("Hello")]}
            assert ask(proxy.url, "POST", "/v1/messages", {**body, "stream": True}, proxy.headers).status == 200
        assert read(tmp_path) == [[("human", "Once upon"), ("gpt", " a time")], [("system", "Be brief."), *HELLO]]

    def test_calls_of_tools_and_what_tools_say_are_turns(self) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
        tools = [{"type": "function", "function": {"name": "weather"}}]
        asked = [say("Rain?"), {"role": "assistant", "content": None, "tool_calls": [call]}]
        asked += [{"role": "tool", "tool_call_id": "1", "content": "yes"}]
        row = Row("1", 0.0, request={"messages": asked, "tools": tools}, response=completion("It rains."))
        record = record_of(row)
        assert record is not None
        assert json.loads(record["tools"]) == tools
        assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt", "tool", "gpt"]
        told = json.loads(record["conversations"][1]["value"])
        assert "weather" in json.dumps(told)
        assert "Köln" in json.dumps(told, ensure_ascii=False)

    def test_embeddings_are_no_conversation(self) -> None:
        row = Row("1", 0.0, request={"input": "x"}, response={"object": "list", "data": []})
        assert record_of(row) is None

    def test_keys_of_the_configuration_are_not_in_it(self, tmp_path: Path, backend: Backend) -> None:
        with started(tmp_path, backend) as proxy:
            chat(proxy, say(f"my key is {KEY}"))
        assert read(tmp_path) == [[("human", "my key is ***"), ("gpt", "re: my key is ***")]]


class TestSessions:
    def test_a_session_that_is_used_again_goes_on(self, tmp_path: Path, backend: Backend) -> None:
        with started(tmp_path, backend) as proxy:
            chat(proxy, say("Hello"))
        with started(tmp_path, backend) as proxy:
            chat(proxy, say("Other"))
            chat(proxy, say("Hello"), answered("re: Hello"), say("More"))
        assert [len(turns) for turns in read(tmp_path)] == [4, 2]

    def test_the_one_object_of_the_old_form_is_taken_over(self, tmp_path: Path, backend: Backend) -> None:
        (tmp_path / "datasets").mkdir()
        old = {"conversations": [{"from": "human", "value": "Old"}, {"from": "gpt", "value": "times"}]}
        (tmp_path / "datasets" / "lab.json").write_text(json.dumps(old, indent=2))
        with started(tmp_path, backend) as proxy:
            chat(proxy, say("Old"), answered("times"), say("New"))
        assert read(tmp_path) == [[("human", "Old"), ("gpt", "times"), ("human", "New"), ("gpt", "re: New")]]

    @pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", ".hidden", "", "a\x00b", "a\nb", "x" * 101, "ü"])
    def test_a_session_cannot_leave_its_folder(self, load: Load, name: str) -> None:
        text = f"records: {{dataset: {{session: {json.dumps(name)}}}}}\n"
        assert "records.dataset.session: must be" in fault(load, PLAIN + text)

    def test_nor_does_a_proxy_start_that_is_told_to(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text(
            'records: {dataset: {session: "../out"}}\ntargets: {default: demo, demo: {url: "demo://"}}\n'
        )
        with pytest.raises(RuntimeError, match=r"records\.dataset\.session"), Proxy(tmp_path, None):
            pass
        for name in ("../out", "ü"):
            with (
                pytest.raises(RuntimeError, match="--session"),
                Proxy(tmp_path, None, "--target", "http://127.0.0.1:9", "--session", name),
            ):
                pass
        assert {path.name for path in tmp_path.iterdir()} == {"config.yaml"}

    def test_a_symbolic_link_is_not_followed(self, tmp_path: Path, backend: Backend) -> None:
        folder, outside = tmp_path / "datasets", tmp_path / "outside"
        folder.mkdir()
        outside.write_text("[]")
        (folder / "lab.json").symlink_to(outside)
        with pytest.raises(RuntimeError, match="symbolic link"), started(tmp_path, backend):
            pass
        (folder / "lab.json").unlink()
        (folder / ".lab.journal-0").symlink_to(outside)
        with pytest.raises(RuntimeError, match="journal-0"), started(tmp_path, backend):
            pass
        assert outside.read_text() == "[]"

    def test_a_file_of_something_else_is_not_written_over(self, tmp_path: Path, backend: Backend) -> None:
        (tmp_path / "datasets").mkdir()
        (tmp_path / "datasets" / "lab.json").write_text("precious, but no JSON")
        with started(tmp_path, backend) as proxy:
            chat(proxy, say("Hello"))
            proxy.wait_for_log("stays in the journal")
        assert (tmp_path / "datasets" / "lab.json").read_text() == "precious, but no JSON"

    def test_no_configuration_at_all(self, tmp_path: Path, backend: Backend) -> None:
        with Proxy(tmp_path, None, "--target", backend.url, "--session", "mine", key=None) as proxy:
            chat(proxy, say("Hello"))
        assert read(tmp_path, "mine") == [HELLO]

    def test_without_a_name_it_is_the_time(self, tmp_path: Path, backend: Backend) -> None:
        with Proxy(tmp_path, None, "--target", backend.url, "--session", key=None) as proxy:
            chat(proxy, say("Hello"))
        (file,) = (tmp_path / "datasets").glob("*.json")
        time.strptime(file.stem, "%Y-%m-%d_%H-%M-%S")

    def test_a_reload_keeps_the_session_and_loses_nothing(self, tmp_path: Path, backend: Backend) -> None:
        config = CONFIG.replace("session: lab", "").replace("URL", backend.url).replace("WORKERS", "1")
        with Proxy(tmp_path, config) as proxy:
            for text in ("One", "Two"):
                chat(proxy, say(text))
                assert ask(proxy.url, "POST", "/mooltiproxy/reload", b"", proxy.headers).status == 200
        (file,) = (tmp_path / "datasets").glob("*.json")
        assert [turns[0][1] for turns in read(tmp_path, file.stem)] == ["One", "Two"]

    def test_workers_cannot_begin_one_without_a_name_later(self, tmp_path: Path, backend: Backend) -> None:
        config = CONFIG.replace("URL", backend.url).replace("WORKERS", "2")
        with Proxy(tmp_path, config.replace("records: {dataset: {session: lab}}", "")) as proxy:
            (tmp_path / "config.yaml").write_text(config.replace("session: lab", ""))
            reply = ask(proxy.url, "POST", "/mooltiproxy/reload", b"", proxy.headers)
            assert (reply.status, "takes a restart" in reply.json()["faults"][0]) == (422, True)


@pytest.mark.long
class TestSoundness:
    @pytest.mark.parametrize(("count", "workers"), [(100, 1), (500, 3)])
    def test_many_conversations_at_once(self, tmp_path: Path, backend: Backend, count: int, workers: int) -> None:
        def talk(number: int) -> None:
            first = say(f"Hello {number}")
            with Client(proxy.url, headers=proxy.headers) as client:
                for messages in ([first], [first, answered(f"re: Hello {number}"), say("More")]):
                    body = {"model": "m", "messages": messages, "stream": number % 2 == 0}
                    assert client.ask("POST", "/v1/chat/completions", body).status == 200

        with started(tmp_path, backend, workers) as proxy, ThreadPoolExecutor(32) as pool:
            list(pool.map(talk, range(count)))
        found = read(tmp_path)
        assert {turns[0][1] for turns in found if len(turns) == 4} == {f"Hello {number}" for number in range(count)}
        assert all(turns[1][1] == "re: " + turns[0][1] for turns in found)
        assert len(found) == count

    @pytest.mark.parametrize("workers", [1, 3])
    def test_killed_at_any_moment_the_file_is_valid_and_goes_on(self, tmp_path: Path, backend: Backend, workers: int) -> None:
        file = tmp_path / "datasets" / "lab.json"
        before = 0
        for round_ in range(2):
            with started(tmp_path, backend, workers) as proxy, ThreadPoolExecutor(4) as pool:
                over = threading.Event()
                talks = [pool.submit(talk_on, proxy, f"{round_}.{number}", over) for number in range(4)]
                wait_for_records(tmp_path, before + 20)
                kill_all(proxy)
                over.set()
                for each in talks:
                    each.result(20)
            before = len(read(tmp_path))
        with started(tmp_path, backend, workers) as proxy:
            assert len(read(tmp_path)) >= before
            chat(proxy, say("At last"))
        found = [turns[0][1] for turns in read(tmp_path)]
        assert found[-1] == "At last"
        assert len(found) == len(set(found))
        assert not [path for path in file.parent.iterdir() if "journal" in path.name]

    def test_it_is_valid_json_whenever_it_is_looked_at(self, tmp_path: Path, backend: Backend) -> None:
        sizes: set[int] = set()
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                if (tmp_path / "datasets" / "lab.json").exists():
                    sizes.add(len(read(tmp_path)))

        with started(tmp_path, backend) as proxy:
            looker = threading.Thread(target=look)
            looker.start()
            number = 0
            end = time.monotonic() + 30
            while len(sizes) < 4 and time.monotonic() < end:
                chat(proxy, say(f"Hello {(number := number + 1)}"))
            over.set()
            looker.join()
        assert len(sizes) >= 4

    def test_half_a_line_and_a_fold_that_was_cut_off_do_no_harm(self, tmp_path: Path) -> None:
        def conversation(*said: str) -> Json:
            return {"conversations": [{"from": ("human", "gpt")[at % 2], "value": text} for at, text in enumerate(said)]}

        session = Session(tmp_path, "s")
        session.fold()
        session.append([(2.0, conversation("a", "b"))])
        journal = tmp_path / ".s.journal-1"
        journal.write_bytes(journal.read_bytes() + b'\n0000000000003.000000 {"conversations": [{"fr')
        session.append([(4.0, conversation("a", "b", "c", "d")), (1.0, conversation("first", "of all"))])
        kept = journal.read_bytes()
        session.fold()
        assert not journal.exists()
        journal.write_bytes(kept)  # as if it had been killed before it removed what it had folded in
        session.append([(5.0, conversation("e", "f"))])
        Session(tmp_path, "s").fold()
        kept_whole = [conversation("first", "of all"), conversation("a", "b", "c", "d"), conversation("e", "f")]
        assert json.loads((tmp_path / "s.json").read_bytes()) == kept_whole

    def test_a_full_disk_costs_no_call(self, tmp_path: Path, backend: Backend) -> None:
        with started(tmp_path, backend) as proxy:
            folder = tmp_path / "datasets"
            until(lambda: (folder / "lab.json").exists())
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
            folder.write_text("no folder any more")
            assert chat(proxy, say("Hello")).status == 200
            proxy.wait_for_log("1 calls were not kept")


def talk_on(proxy: Proxy, name: str, over: threading.Event) -> None:
    """One conversation after the other, until the proxy is gone."""
    number = 0
    while not over.is_set():
        try:
            chat(proxy, say(f"{name}/{(number := number + 1)}"))
        except OSError:
            return


def wait_for_records(folder: Path, count: int) -> None:
    """Until the session's file is there with more than so many."""
    until(lambda: (folder / "datasets" / "lab.json").exists() and len(read(folder)) > count)


def kill_all(proxy: Proxy) -> None:
    """SIGKILL for a proxy and its workers."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(proxy.process.pid)], capture_output=True, text=True, check=False)
    for pid in (proxy.process.pid, *map(int, listed.stdout.split())):
        os.kill(pid, signal.SIGKILL)
