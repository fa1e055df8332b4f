"""Servers that the proxy starts: ready before they are asked, one for all workers, swapped in a group, never left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import pytest
import requests

from tests.backends.llama_server import CONTEXT, write_model
from tests.backends.processes import running, wait_until
from tests.backends.proxy import KEY, Proxy

pytestmark = pytest.mark.long

BACKENDS = Path(__file__).with_name("backends")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Managed:
    """A proxy with targets whose servers it starts; their command lines have a word that only they have."""

    def __init__(self, folder: Path, workers: int = 1, **targets: Any) -> None:
        self.folder, self.workers = folder, workers
        self.word = str(folder)
        self.ports = {name: free_port() for name in targets}
        runtime = folder / "run"
        runtime.mkdir(parents=True)
        self.proxy = Proxy(folder, self.config(**targets), env={"XDG_RUNTIME_DIR": str(runtime)})

    def config(self, **targets: Any) -> str:
        written: dict[str, Any] = {"default": next(iter(targets))}
        for name, start in targets.items():
            how = start.pop("how", [])
            command = [sys.executable, str(BACKENDS / "stand_in_server.py"), str(self.ports[name]), name, *how, self.word]
            url = f"http://127.0.0.1:{self.ports[name]}"
            written[name] = {"url": url, "dialect": "openai", "start": {"command": command, "ready": "/health", **start}}
        return json.dumps({"system": {"workers": self.workers}, "targets": written})

    def __enter__(self) -> Managed:
        self.proxy.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self.proxy.__exit__(None, None, None)
        wait_until(lambda: not self.left())

    def left(self) -> list[int]:
        """Ids of the servers that run."""
        return running(self.word)

    def ask(self, said: str = "hi", target: str | None = None) -> requests.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": said}]}
        headers = {**self.proxy.headers, **({"target": target} if target else {})}
        return requests.post(self.proxy.url + "/v1/chat/completions", json=body, headers=headers, timeout=30)

    def said(self, said: str = "hi", target: str | None = None) -> list[str]:
        """The server's name, its process id, and what of the environment it tells."""
        answer = self.ask(said, target)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"]).split()


def test_the_first_call_starts_it_and_the_end_ends_it(tmp_path: Path) -> None:
    with Managed(tmp_path, a={"env": {"OWN": "mine"}}) as managed:
        assert managed.left() == []
        name, pid, own = managed.said()
        assert (name, own) == ("a", "mine")  # and no key of the proxy's
        assert managed.left() == [int(pid)]
        assert managed.said() == [name, pid, own]
        managed.proxy.wait_for_log("target a: a is loading")
        managed.proxy.wait_for_log("target a: its server is ready")


def test_calls_that_come_together_wait_for_one_start(tmp_path: Path) -> None:
    with Managed(tmp_path, a={"how": ["SLOWLY"]}) as managed, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: tuple(managed.said()), range(8)))
        assert len(set(answers)) == 1
        assert managed.proxy.log.count("its server is starting") == 1


def test_without_a_path_it_is_ready_when_its_port_is(tmp_path: Path) -> None:
    with Managed(tmp_path, a={"ready": None}) as managed:
        assert managed.said()[0] == "a"


def test_a_server_that_does_not_come_up_is_a_502_with_its_last_lines_and_is_not_tried_at_once_again(tmp_path: Path) -> None:
    with Managed(tmp_path, a={"how": ["NEVER"]}) as managed:
        first, second = managed.ask(), managed.ask()
        for answer in (first, second):
            assert answer.status_code == 502
            assert "ended before it was ready: a is loading | out of memory" in answer.json()["error"]["message"]
        assert int(second.headers["retry-after"]) >= 1
        assert managed.proxy.log.count("its server is starting") == 1
        assert managed.left() == []


def test_a_program_that_is_not_there_is_a_502(tmp_path: Path) -> None:
    with Managed(tmp_path, a={"command": ["no-such-server"]}) as managed:
        answer = managed.ask()
        assert (answer.status_code, "No such file or directory: no-such-server" in answer.text) == (502, True)


def test_somebody_elses_server_at_the_url_is_not_taken_for_ours(tmp_path: Path) -> None:
    with Managed(tmp_path, a={}) as managed, socket.create_server(("127.0.0.1", managed.ports["a"])):
        answer = managed.ask()
        assert (answer.status_code, "something else listens" in answer.text) == (502, True)


def test_one_that_dies_is_started_anew_after_a_pause(tmp_path: Path) -> None:
    with Managed(tmp_path, a={}) as managed:
        before = managed.said()
        assert managed.ask("die").status_code == 502
        managed.proxy.wait_for_log("WARNING target a: its server ended with status 7")
        wait_until(lambda: managed.ask().status_code == 200)
        assert managed.said()[1] != before[1]


def test_an_idle_one_is_stopped_with_what_it_has_forked_and_started_anew_when_it_is_needed(tmp_path: Path) -> None:
    with Managed(tmp_path, a={"idle_stop_s": 0.5, "how": ["FORKS"]}) as managed:
        before = managed.said("slow")
        managed.proxy.wait_for_log("its server is stopped: it is idle")
        wait_until(lambda: not managed.left())
        assert managed.said()[1] != before[1]


def test_a_group_holds_one_at_a_time_and_a_call_at_work_is_waited_for(tmp_path: Path) -> None:
    with Managed(tmp_path, a={"exclusive": "gpu"}, b={"exclusive": "gpu"}) as managed, ThreadPoolExecutor(1) as pool:
        first = managed.said()
        slow = pool.submit(managed.said, "slow")
        managed.proxy.wait_for_log("a slow call begins")
        second = managed.said(target="b")
        assert (slow.result(), second[0]) == (first, "b")
        assert managed.left() == [int(second[1])]
        assert managed.said()[0] == "a"
        assert len(managed.left()) == 1


def test_swaps_are_fair_and_every_call_is_answered_by_its_own(tmp_path: Path) -> None:
    with Managed(tmp_path, workers=2, a={"exclusive": "gpu"}, b={"exclusive": "gpu"}) as managed, ThreadPoolExecutor(4) as pool:
        names = ["a", "b"] * 3
        assert [said[0] for said in pool.map(lambda name: managed.said(target=name), names)] == names
        assert len(managed.left()) == 1


def test_workers_share_one(tmp_path: Path) -> None:
    with Managed(tmp_path, workers=3, a={}) as managed, ThreadPoolExecutor(6) as pool:
        answers = {tuple(said) for said in pool.map(lambda _: managed.said(), range(24))}
        assert len(answers) == 1
        assert len(managed.left()) == 1


def test_one_that_no_configuration_has_any_more_ends_and_an_unchanged_one_stays(tmp_path: Path) -> None:
    with Managed(tmp_path, a={}, b={}) as managed:
        kept, gone = managed.said(), managed.said(target="b")
        (tmp_path / "config.yaml").write_text(managed.config(a={}))
        managed.proxy.signal(signal.SIGHUP)
        managed.proxy.wait_for_log("its server is stopped: it is not wanted any more")
        wait_until(lambda: managed.left() == [int(kept[1])])
        assert managed.said() == kept
        assert kept != gone


def test_a_changed_one_takes_the_place_of_the_old(tmp_path: Path) -> None:
    with Managed(tmp_path, a={}) as managed:
        before = managed.said()
        (tmp_path / "config.yaml").write_text(managed.config(a={"env": {"OWN": "new"}}))
        managed.proxy.signal(signal.SIGHUP)
        managed.proxy.wait_for_log("reloaded")
        after = managed.said()
        assert (after[0], after[2]) == ("a", "new")
        assert managed.left() == [int(after[1])] != [int(before[1])]


@pytest.mark.parametrize("workers", [1, 2])
def test_it_ends_with_a_proxy_that_is_killed(tmp_path: Path, workers: int) -> None:
    with Managed(tmp_path, workers=workers, a={"how": ["DEAF"]}) as managed:
        managed.said()
        managed.proxy.process.kill()
        wait_until(lambda: not managed.left())


def test_a_client_that_leaves_does_not_disturb_the_start(tmp_path: Path) -> None:
    with Managed(tmp_path, a={"how": ["SLOWLY"]}) as managed:
        place = urlsplit(managed.proxy.url)
        body = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'
        with socket.create_connection((place.hostname or "", place.port or 0), 20) as client:
            client.sendall(request("/v1/chat/completions", body))
            managed.proxy.wait_for_log("its server is starting")
        managed.proxy.wait_for_log("the client left")
        assert managed.said()[0] == "a"
        assert managed.proxy.log.count("its server is starting") == 1


# --- the real llama.cpp server


def test_two_real_models_that_swap(tmp_path: Path) -> None:
    word, targets = str(tmp_path), {}
    for name in ("one", "two"):
        write_model(tmp_path / f"{name}.gguf")
        port = free_port()
        command = [sys.executable, str(BACKENDS / "llama_child.py"), str(tmp_path / f"{name}.gguf"), str(CONTEXT), str(port)]
        start = {"command": command, "ready": "/health", "exclusive": "memory"}
        targets[name] = {"url": f"http://127.0.0.1:{port}", "dialect": "llamacpp", "start": start}
    (tmp_path / "run").mkdir()
    config = json.dumps({"targets": {"default": "one", **targets}})
    with Proxy(tmp_path, config, env={"XDG_RUNTIME_DIR": str(tmp_path / "run")}) as proxy:
        assert running(word) == []
        seen = []
        for name in ("one", "two", "one"):
            client = anthropic.Anthropic(base_url=proxy.url, api_key=KEY, max_retries=0, default_headers={"target": name})
            with client.messages.stream(model="m", max_tokens=50, messages=[{"role": "user", "content": "hi"}]) as stream:
                assert "".join(stream.text_stream) == "OK, fine!"
            assert len(running(f"{name}.gguf")) == len(running(word)) == 1
            seen += running(word)
        assert len(set(seen)) == 3
    wait_until(lambda: not running(word))


def test_a_streaming_client_hears_from_us_while_the_server_starts(tmp_path: Path) -> None:
    with Managed(tmp_path, a={"how": ["HELD"]}) as managed:
        gate = tmp_path / "gate"
        os.mkfifo(gate)
        place = urlsplit(managed.proxy.url)
        body = b'{"model": "m", "max_tokens": 5, "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
        with socket.create_connection((place.hostname or "", place.port or 0), 30) as client:
            client.sendall(request("/v1/messages", body))
            heard = b""
            while b"ping" not in heard:
                piece = client.recv(65536)
                assert piece, heard
                heard += piece
            assert heard.startswith(b"HTTP/1.1 200")
            gate.write_text("go")
            while b"message_stop" not in heard:
                piece = client.recv(65536)
                assert piece, heard
                heard += piece
        assert b"text_delta" in heard
