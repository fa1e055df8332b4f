"""Cassettes: recorded while a proxy serves, replayed by today's mappers; what is kept, and what never is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.cassettes import suite
from proxy.config import Cerbere, Config, System, Target
from proxy.records.cassettes import packed, unpacked
from proxy.records.secrets import Cleaner, Unfit
from tests.backends.proxy import CHECKOUT, KEY, Proxy
from tests.backends.sockets import Backend, Exchange, ask
from tests.recording import PAIRS

test_the_dialects_map_as_they_were_recorded = suite("tests/cassettes", "tests/cassettes/config.yaml")

Json = dict[str, Any]
MAPPERS = """
def chatReqOpenAItoAsk(ip, cfg={}):
    return {"question": ip["messages"][-1]["content"]}


def chatAnsAsktoOpenAI(ip, cfg={}):
    choice = {"index": 0, "message": {"role": "assistant", "content": ip["reply"]}, "finish_reason": "stop"}
    return {"id": cfg["id"], "object": "chat.completion", "created": cfg["now"], "model": "ask", "choices": [choice]}


def chatStreamAsktoOpenAI(events, cfg={}):
    head = {"id": cfg["id"], "object": "chat.completion.chunk", "created": cfg["now"], "model": "ask"}
    for event in events:
        delta = {"role": "assistant", "content": event["piece"]}
        yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
"""
CONFIG = """
records: {cassettes: {redact: ['[a-z]+@example\\.org']}}
targets:
  default: ask
  ask:
    url: URL
    key: upstream-secret
    headers: {x-team-token: header-secret}
    mapping:
      /chat/completions:
        {path: /ask, in: chatReqOpenAItoAsk, out: chatAnsAsktoOpenAI, stream: chatStreamAsktoOpenAI, stream_path: /stream}
      /plain:
"""


def answer(exchange: Exchange) -> None:
    question = exchange.asked.json()["question"]
    if question == "Fail?":
        exchange.reply(429, {"error": {"message": "too much"}})
    else:
        exchange.reply(200, {"reply": f"{question} Because."})


def stream(exchange: Exchange) -> None:
    exchange.start()
    pieces = ["ann@exam", "ple.org"] if exchange.asked.json()["question"] == "Spread?" else ["Bé", "cause."]
    data = b"".join(b"data: %s\n\n" % json.dumps({"piece": piece}, ensure_ascii=False).encode() for piece in pieces)
    for at in range(0, len(data), 11):
        exchange.chunk(data[at : at + 11])
    exchange.end()


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as found:
        found.on("/ask", answer)
        found.on("/stream", stream)
        found.on("/plain", lambda exchange: exchange.reply(200, {"plain": True}))
        yield found


def chat(question: str, **more: Any) -> Json:
    return {"model": "m", "messages": [{"role": "user", "content": question}], **more}


def recorded(folder: Path, backend: Backend, *asked: Json, config: str = CONFIG) -> list[Json]:
    """The cassettes of those calls, in their order, where they were kept."""
    with Proxy(folder, config.replace("URL", backend.url), files={"mappers.py": MAPPERS}) as proxy:
        ids = [ask(proxy.url, "POST", "/v1/chat/completions", body, proxy.headers)["x-request-id"] for body in asked]
        assert proxy.stop() == 0
    files = [folder / "cassettes" / f"{call}.json" for call in ids]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def run(folder: Path, *words: str, status: int = 0) -> str:
    """What the command prints: no keys in its environment, no network that could be asked."""
    keep = {name: value for name, value in os.environ.items() if name != "MOOLTIPROXY_KEY"}
    environ = {**keep, "PYTHONPATH": str(CHECKOUT)}
    program = [sys.executable, "-m", "main", *words]
    done = subprocess.run(program, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


class TestRecording:
    def test_a_call_is_kept_whole_byte_for_byte(self, tmp_path: Path, backend: Backend) -> None:
        body = chat("Why?")
        (cassette,) = recorded(tmp_path, backend, body)
        (met,) = cassette["backend"]
        assert json.loads(cassette["client"]["body"]["text"]) == body
        assert met["body"] == {"text": '{"question":"Why?"}'}
        assert met["answer"] == {"text": '{"reply": "Why? Because."}'}
        assert json.loads(cassette["reply"]["body"]["text"])["created"] == cassette["now"]
        assert (cassette["target"], cassette["front"], met["url"]) == ("ask", "openai", f"{backend.url}/ask")
        assert cassette["config"]["targets"]["ask"]["url"] == backend.url
        assert set(cassette["versions"]) == {"proxy", "python", "requests", "system"}

    def test_a_stream_is_kept_with_the_cuts_at_which_it_came(self, tmp_path: Path, backend: Backend) -> None:
        (cassette,) = recorded(tmp_path, backend, chat("Why?", stream=True))
        pieces = unpacked(cassette["backend"][0]["answer"])
        assert b"".join(pieces).decode().count("piece") == 2
        assert len(unpacked(cassette["reply"]["body"])) == 4  # three events and [DONE]

    def test_an_error_of_the_backend_is_kept_too(self, tmp_path: Path, backend: Backend) -> None:
        (cassette,) = recorded(tmp_path, backend, chat("Fail?"))
        assert (cassette["backend"][0]["status"], cassette["reply"]["status"]) == (429, 429)

    def test_secrets_are_nowhere_in_the_file(self, tmp_path: Path, backend: Backend) -> None:
        said = f"My key is {KEY}, yours upstream-secret, theirs sk-abcdefghijklmnopqrstuvwx; write to ann@example.org."
        recorded(tmp_path, backend, chat(said), chat(said, stream=True))
        files = list((tmp_path / "cassettes").iterdir())
        assert len(files) == 2
        for file in files:
            text = file.read_text()
            assert not [secret for secret in (KEY, "upstream-secret", "header-secret", "sk-abc", "ann@") if secret in text]
            assert "My key is ***, yours ***, theirs ***; write to ***." in text
            assert file.stat().st_mode & 0o077 == 0
        assert "2 as recorded, 0 changed" in run(tmp_path, "replay")

    def test_what_cannot_be_cleaned_is_not_kept(self, tmp_path: Path, backend: Backend) -> None:
        escaped = json.dumps(chat("x")).replace('"x"', '"ann\\u0040example.org"').encode()
        with Proxy(tmp_path, CONFIG.replace("URL", backend.url), files={"mappers.py": MAPPERS}) as proxy:
            for body in (escaped, chat("Spread?", stream=True)):
                assert ask(proxy.url, "POST", "/v1/chat/completions", body, proxy.headers).status == 200
            proxy.wait_for_log("a secret is spread", times=2)
        assert not (tmp_path / "cassettes").exists()

    def test_only_mapped_calls_to_the_chosen_targets_are_kept(self, tmp_path: Path, backend: Backend) -> None:
        other = CONFIG.replace("redact: ", "targets: [other], redact: ").replace(
            "  ask:", "  other: {url: 'demo://'}\n  ask:", 1
        )
        assert recorded(tmp_path / "a", backend, chat("Why?"), config=other) == []
        with Proxy(tmp_path / "b", CONFIG.replace("URL", backend.url), files={"mappers.py": MAPPERS}) as proxy:
            assert ask(proxy.url, "POST", "/plain", {}, proxy.headers).status == 200
            assert ask(proxy.url, "POST", "/v1/chat/completions", chat("Why?")).status == 401
        assert not (tmp_path / "b" / "cassettes").exists()

    def test_a_list_of_models_that_is_short_for_a_key_is_not_kept(self, tmp_path: Path) -> None:
        ann = "sk-ann-0123456789"
        text = f"records: {{cassettes: {{}}}}\nkeys: {{ann: {{key: {ann}, models: [x*]}}}}\n"
        listed = []
        with Proxy(tmp_path, text + "targets: {default: t, t: {url: 'demo://', dialect: openai}}") as proxy:
            for key in (ann, KEY):
                reply = ask(proxy.url, "GET", "/v1/models", None, {"x-api-key": key, "anthropic-version": "2023-06-01"})
                listed.append(reply.json()["data"])
            assert listed[0] == []
            assert listed[1]
        (kept,) = (tmp_path / "cassettes").glob("*.json")
        assert json.loads(json.loads(kept.read_text())["reply"]["body"]["text"])["data"] == listed[1]
        run(tmp_path, "replay", "cassettes", "--config", "config.yaml")

    def test_calls_at_once_are_kept_each_with_its_own_bodies(self, tmp_path: Path, backend: Backend) -> None:
        with Proxy(tmp_path, CONFIG.replace("URL", backend.url), files={"mappers.py": MAPPERS}) as proxy:

            def one(number: int) -> None:
                body = chat(f"Number {number}?", stream=number % 2 == 0)
                ask(proxy.url, "POST", "/v1/chat/completions", body, proxy.headers)

            threads = [threading.Thread(target=one, args=(number,)) for number in range(24)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        questions = set()
        for file in (tmp_path / "cassettes").iterdir():
            cassette = json.loads(file.read_text())
            (asked,) = json.loads(cassette["client"]["body"]["text"])["messages"]
            assert json.loads(cassette["backend"][0]["body"]["text"]) == {"question": asked["content"]}
            questions.add(asked["content"])
        assert questions == {f"Number {number}?" for number in range(24)}
        assert "24 as recorded, 0 changed" in run(tmp_path, "replay")

    def test_a_folder_that_cannot_be_written_does_no_harm(self, tmp_path: Path, backend: Backend) -> None:
        (tmp_path / "cassettes").write_text("a file where the folder should be")
        with Proxy(tmp_path, CONFIG.replace("URL", backend.url), files={"mappers.py": MAPPERS}) as proxy:
            for _ in range(3):
                assert ask(proxy.url, "POST", "/v1/chat/completions", chat("Why?"), proxy.headers).status == 200
            proxy.wait_for_log("no cassette", times=3)

    def test_a_full_disk_does_no_harm(self, tmp_path: Path, backend: Backend) -> None:
        config = CONFIG.replace("redact: ", "folder: /dev/full/x, redact: ").replace("URL", backend.url)
        with Proxy(tmp_path, config, files={"mappers.py": MAPPERS}) as proxy:
            assert ask(proxy.url, "POST", "/v1/chat/completions", chat("Why?"), proxy.headers).status == 200
            proxy.wait_for_log("no cassette")

    def test_a_large_call_is_served_and_not_kept(self, tmp_path: Path, backend: Backend) -> None:
        with Proxy(tmp_path, CONFIG.replace("URL", backend.url), files={"mappers.py": MAPPERS}) as proxy:
            reply = ask(proxy.url, "POST", "/v1/chat/completions", chat("x" * 2_000_000), proxy.headers)
            assert reply.status == 200
            assert len(reply.body) > 2_000_000
            proxy.wait_for_log("larger than")
        assert not (tmp_path / "cassettes").exists()


class TestReplay:
    def test_a_changed_mapper_is_found_and_can_be_accepted(self, tmp_path: Path, backend: Backend) -> None:
        recorded(tmp_path, backend, chat("Why?"), chat("Why?", stream=True))
        assert "2 as recorded, 0 changed" in run(tmp_path, "replay")
        louder = MAPPERS.replace('ip["reply"]', 'ip["reply"].upper()').replace('"question": ', '"query": ')
        (tmp_path / "mappers.py").write_text(louder)
        told = run(tmp_path, "replay", "cassettes", status=1)
        assert 'upstream $.question: "Why?" → nothing' in told
        assert 'upstream $.query: nothing → "Why?"' in told
        assert 'reply $.choices[0].message.content: "Why? Because." → "WHY? BECAUSE."' in told
        assert '-        "content": "Why? Because."' in told
        assert json.loads(run(tmp_path, "replay", "--json", status=1))["cassettes"] == 2
        assert "2 accepted" in run(tmp_path, "replay", "--accept")
        assert "2 as recorded, 0 changed" in run(tmp_path, "replay")

    def test_a_stream_that_depends_on_its_cuts_is_found(self, tmp_path: Path, backend: Backend) -> None:
        (cassette,) = recorded(tmp_path, backend, chat("Why?", stream=True))
        (tmp_path / "mappers.py").write_text(MAPPERS.replace('event["piece"]}', 'event["piece"] * 2}'))
        told = run(tmp_path, "replay", f"cassettes/{cassette['id']}.json", status=1)
        assert 'reply $[0].choices[0].delta.content: "Bé" → "BéBé"' in told

    def test_a_mapper_that_fails_is_a_change(self, tmp_path: Path, backend: Backend) -> None:
        recorded(tmp_path, backend, chat("Why?"))
        (tmp_path / "mappers.py").write_text(MAPPERS.replace('ip["messages"][-1]', 'ip["message"]'))
        told = run(tmp_path, "replay", status=1)
        assert "upstream url: " in told
        assert "reply status: 200 → 400" in told

    def test_it_says_what_is_no_cassette(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text('targets: {default: d, d: {url: "demo://"}}')
        assert "there is no cassette in cassettes" in run(tmp_path, "replay", status=1)
        (tmp_path / "x.json").write_text("{}")
        assert "x.json is no cassette of form 1" in run(tmp_path, "replay", "x.json", status=1)

    @pytest.mark.long
    def test_an_export_is_a_test_that_runs_anywhere(self, tmp_path: Path, backend: Backend) -> None:
        (cassette,) = recorded(tmp_path, backend, chat("Why's \\ that?"))
        told = run(tmp_path, "replay", "--export", cassette["id"], "--out", "report.py")
        assert "look through it before you send it" in told
        report = tmp_path / "elsewhere" / "report.py"
        report.parent.mkdir()
        (tmp_path / "report.py").rename(report)
        environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        program = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "report.py"]
        done = subprocess.run(program, cwd=report.parent, env=environ, capture_output=True, text=True, timeout=60)
        assert "1 passed" in done.stdout, done.stdout + done.stderr
        text = report.read_text()
        assert "curl -X POST http://127.0.0.1:8000/v1/chat/completions" in text
        report.write_text(text.replace("Because.", "Perhaps.", 1))
        done = subprocess.run(program, cwd=report.parent, env=environ, capture_output=True, text=True, timeout=60)
        assert "1 failed" in done.stdout, done.stdout + done.stderr

    def test_one_line_makes_a_folder_pytest_s(self, tmp_path: Path, backend: Backend) -> None:
        (cassette,) = recorded(tmp_path, backend, chat("Why?"))
        (tmp_path / "test_mine.py").write_text('from proxy.cassettes import suite\n\ntest_cassettes = suite("cassettes")\n')
        environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        program = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
        done = subprocess.run(program, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
        assert re.search(rf"test_cassettes\[{cassette['id']}\] PASSED", done.stdout), done.stdout + done.stderr

    def test_replay_needs_no_pytest(self) -> None:
        program = "import sys; sys.modules['pytest'] = None; import proxy.cassettes, proxy.commands.replay"
        subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=True, timeout=60)


def test_each_front_and_backend_has_a_plain_call_and_a_stream() -> None:
    names = {path.stem for path in (CHECKOUT / "tests" / "cassettes").glob("*.json")}
    assert names == {f"{front}-to-{backend}-{kind}" for front, backend in PAIRS for kind in ("plain", "stream")}


class TestCleaning:
    cleaner = Cleaner(Config(System(), Cerbere(), {"t": Target("t", "http://h", key="secret")}, "t"), ["[0-9]{4}"])

    def clean(self, pieces: list[bytes], kind: str = "") -> list[bytes]:
        return self.cleaner.body(pieces, kind, self.cleaner.patterns({}))

    def test_cuts_move_with_what_is_masked(self) -> None:
        pieces = ['data: {"a":"é'.encode(), b'secret"}\n', b'\ndata: {"b":"sec', b'ret!"}\n\n']
        expected = ['data: {"a":"é'.encode(), b'***"}\n', b'\ndata: {"b":"***', b'!"}\n\n']
        assert self.clean(pieces, "text/event-stream") == expected

    def test_private_keys_that_never_end_are_looked_for_in_linear_time(self) -> None:
        begin, end = "-----BEGIN RSA PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----"
        text = begin * 20_000 + f"\nDEK-Info: AES-256-CBC,00\n\nMIIE+/=\n{end} and on"
        began = time.monotonic()
        clean = self.cleaner.line(text, self.cleaner.patterns({}))
        assert time.monotonic() - began < 2
        assert clean == begin * 19_999 + "*** and on"

    def test_what_holds_no_secret_stays_byte_for_byte(self) -> None:
        pieces = [b'{"a": "\xc3', b'\xa9"}']
        assert self.clean(pieces) == pieces
        assert self.clean([b"\xff\x00", b"\x01"]) == [b"\xff\x00", b"\x01"]

    def test_a_body_that_masking_would_break_is_unfit(self) -> None:
        with pytest.raises(Unfit):
            self.clean([b'{"year": 2026}'])
        assert self.clean([b'{"year": "2026"}']) == [b'{"year": "***"}']

    @pytest.mark.parametrize("pieces", [[b""], [b"text"], [b"\xff", b"\x00"], ["é".encode()[:1], "é".encode()[1:]]])
    def test_packing_keeps_every_byte_and_every_cut(self, pieces: list[bytes]) -> None:
        assert unpacked(json.loads(json.dumps(packed(pieces)))) == pieces
