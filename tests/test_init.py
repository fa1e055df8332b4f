"""`init`: what a backend is asked, what is written of it, and that everything else in the file stays as it was."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import Target
from proxy.errors import ConfigError
from proxy.workbench import insertion, probe
from proxy.workbench.probe import Answer, Backend
from tests.backends.llama_server import LlamaServer
from tests.backends.llama_server import llama_server as llama_server
from tests.backends.proxy import CHECKOUT, Proxy
from tests.backends.sockets import Backend as Server
from tests.backends.sockets import Exchange, ask
from tests.compat.world import DOUBLES, KEYS

pytestmark = pytest.mark.long

BARE = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY") and name != "MOOLTIPROXY_KEY"}
BARE["PYTHONPATH"] = str(CHECKOUT)
FLAGS = ("stream", "tools", "parallel_tools", "tool_choice", "images", "json_schema", "stop", "n", "logprobs", "embeddings")


def run(
    folder: Path, *arguments: str, env: Mapping[str, str] = {}, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m main init …` without a terminal, to its end."""
    command = [sys.executable, "-m", "main", "init", *arguments]
    how: dict[str, Any] = {"input": given} if given is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(
        command, cwd=folder, env={**BARE, **env}, capture_output=True, text=True, timeout=60, check=False, **how
    )


def written(folder: Path, name: str) -> dict[str, Any]:
    target: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())["targets"][name]
    return target


# --- a backend of OpenAI's API that honours everything, or nothing


def _says(body: dict[str, Any]) -> dict[str, Any]:
    """What a backend that honours everything makes of a question."""
    asked = body["messages"][-1]["content"]
    message: dict[str, Any] = {"role": "assistant", "content": "Hello to you, my friend!"}
    if isinstance(asked, list):
        message["content"] = "Red."
    if "response_format" in body:
        message["content"] = '{"city": "Paris"}'
    if "tools" in body and body["messages"][-1]["role"] == "user":
        name = body.get("tool_choice", {"function": {"name": "get_weather"}})["function"]["name"]
        call = {"id": "c", "type": "function", "function": {"name": name, "arguments": "{}"}}
        message |= {"content": None, "tool_calls": [call]}
    for stop in body.get("stop", ()):
        message["content"] = message["content"].partition(stop)[0]
    return message


def everything(exchange: Exchange) -> None:
    body = exchange.asked.json()
    message = _says(body)
    logprobs = {"content": [{"token": "x", "logprob": -1.0}]} if body.get("logprobs") else None
    choices = [{"index": i, "message": message, "finish_reason": "stop", "logprobs": logprobs} for i in range(body.get("n", 1))]
    if not body.get("stream"):
        exchange.reply(200, {"object": "chat.completion", "choices": choices})
        return
    exchange.start()
    exchange.event({"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]})
    exchange.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    exchange.event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    exchange.event(b"[DONE]")
    exchange.end()


def plain(exchange: Exchange) -> None:
    """Takes whatever comes and does none of it."""
    exchange.reply(
        200, {"choices": [{"index": 0, "message": {"content": "Hello to you, my friend!"}, "finish_reason": "stop"}]}
    )


def refusing(exchange: Exchange) -> None:
    """Refuses every field that it does not know."""
    unknown = exchange.asked.json().keys() - {"model", "messages", "temperature", "max_tokens"}
    if unknown:
        exchange.reply(400, {"error": {"message": f"unknown field {min(unknown)}"}})
    else:
        plain(exchange)


def thinking(exchange: Exchange) -> None:
    """Wants the new name of the limit and no temperature, as OpenAI's models that think do."""
    if exchange.asked.json().keys() & {"max_tokens", "temperature"}:
        exchange.reply(400, {"error": {"message": "use 'max_completion_tokens'"}})
    else:
        everything(exchange)


def models(exchange: Exchange) -> None:
    listed = [{"id": name, "object": "model", "max_model_len": 4096} for name in ("text-embedding-x", "chat-x")]
    exchange.reply(200, {"object": "list", "data": listed})


def vectors(exchange: Exchange) -> None:
    exchange.reply(200, {"data": [{"embedding": [0.5]}]})


def nothing(exchange: Exchange) -> None:
    exchange.reply(404, {"error": {"message": "not here"}})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        for path in ("/api/version", "/props", "/info"):
            server.on(path, nothing)
        server.on("/v1/models", models)
        server.on("/v1/chat/completions", everything)
        server.on("/v1/embeddings", vectors)
        yield server


class TestWhatItSpeaks:
    @pytest.mark.parametrize("name", ["openai", "anthropic", "gemini", "ollama", "tgi", "llamacpp"])
    def test_it_is_told_by_what_it_answers(self, name):
        with DOUBLES[name]() as double:
            assert probe.dialect_of(double.url, KEYS.get(name))[0] == name

    def test_a_real_server(self, llama_server):
        assert probe.dialect_of(llama_server.url, None) == ("llamacpp", "/props")
        assert probe.dialect_of(llama_server.url + "/v1", None) == ("openai", "/v1/models")

    @pytest.mark.parametrize(
        ("url", "dialect"),
        [
            ("https://api.anthropic.com", "anthropic"),
            ("https://generativelanguage.googleapis.com", "gemini"),
            ("https://api.openai.com/v1", "openai"),
            ("https://x.openai.azure.com", "openai"),
            ("http://192.0.2.1:11434/api", "ollama"),
            ("demo://", "openai"),
        ],
    )
    def test_a_known_place_is_not_asked(self, url, dialect):
        assert probe.dialect_of(url, None) == (dialect, "its url")

    def test_a_wrong_key_still_tells(self):
        with DOUBLES["anthropic"]() as double:
            assert probe.dialect_of(double.url, None)[0] == "anthropic"
        with DOUBLES["gemini"]() as double:
            assert probe.dialect_of(double.url, "wrong")[0] == "gemini"


class TestWhatItHonours:
    def found(self, server: Server, answer: Callable[[Exchange], None]) -> tuple[dict[str, Any], int]:
        server.on("/v1/chat/completions", answer)
        backend = Backend(Target("t", server.url, dialect="openai"))
        found = {finding.name: finding.honoured for finding in probe.findings(backend, "chat-x", "text-embedding-x")}
        backend.close()
        return found, backend.asked

    @pytest.mark.parametrize("answer", [everything, thinking])
    def test_everything(self, server, answer):
        found, asked = self.found(server, answer)
        assert found == dict.fromkeys(("chat", "usage", *FLAGS), True)
        assert asked <= probe.QUESTIONS

    @pytest.mark.parametrize("answer", [plain, refusing])
    def test_nothing(self, server, answer):
        server.on("/v1/embeddings", nothing)
        found, asked = self.found(server, answer)
        assert found.pop("chat") is True
        assert found.pop("images") is None
        assert set(found.values()) == {False}
        assert asked <= probe.QUESTIONS

    def test_every_question_is_small(self, server):
        self.found(server, everything)
        for asked in server.asked_for("/v1/chat/completions"):
            assert len(asked.body) < 2000
            assert asked.json()["max_tokens"] == 64

    @pytest.mark.parametrize("name", ["openai", "responses", "anthropic", "gemini", "ollama", "tgi", "llamacpp"])
    def test_every_dialect_is_asked_through_its_translation(self, name):
        auth = {"anthropic": "x-api-key", "gemini": "x-goog-api-key"}.get(name, "bearer")
        with DOUBLES[name]() as double:
            backend = Backend(Target("t", double.url, dialect=name, key=KEYS.get(name), auth=auth))
            names, listing = probe.models_of(backend)
            assert listing.ok
            found = list(probe.findings(backend, probe.model_among(names) or "", probe.model_among(names, True)))
            backend.close()
        by_name = {finding.name: finding for finding in found}
        assert all(by_name[sure].honoured for sure in ("chat", "stream", "usage"))
        assert by_name["tools"].honoured is (name not in ("tgi", "llamacpp"))
        assert by_name["n"].honoured is (name in ("openai", "gemini", "llamacpp"))
        assert by_name["embeddings"].honoured is (name not in ("anthropic", "tgi"))
        assert all(finding.honoured or finding.why for finding in found)

    def test_a_context_is_found_where_the_backend_tells_it(self, llama_server):
        told = probe.context_of(Target("t", llama_server.url, dialect="llamacpp"), "tiny", Answer(200))
        assert told == 512
        listing = Answer(200, {"data": [{"id": "a", "max_model_len": 7}, {"id": "b", "meta": {"context_length": 9}}]})
        assert probe.context_of(Target("t", "http://h", dialect="openai"), "b", listing) == 9
        assert probe.context_of(Target("t", "http://h", dialect="openai"), "c", listing) is None


class TestInit:
    def test_a_real_server_becomes_a_target_that_serves(self, llama_server: LlamaServer, tmp_path):
        done = run(tmp_path, "--url", llama_server.url)
        assert (done.returncode, done.stderr) == (0, ""), done
        assert "short questions" in done.stdout.partition("chat ")[0]  # told before it is asked
        assert "next: python -m main" in done.stdout
        target = written(tmp_path, "llamacpp")
        assert (target["url"], target["dialect"]) == (llama_server.url, "llamacpp")
        assert target["capabilities"]["context"] == 512
        assert (target["capabilities"]["tools"], target["capabilities"]["stream"]) == (False, True)
        with Proxy(tmp_path, None) as proxy:
            chat = {"model": "any", "messages": [{"role": "user", "content": "hi"}]}
            assert ask(proxy.url, "POST", "/v1/chat/completions", chat, proxy.headers).json()["choices"][0]["message"][
                "content"
            ]
            tool = {"type": "function", "function": {"name": "f"}}
            refused = ask(proxy.url, "POST", "/v1/chat/completions", {**chat, "tools": [tool]}, proxy.headers)
            assert refused.status == 400
            assert refused.json()["error"]["param"] == "tools"

    def test_the_template_is_kept_but_for_the_target_and_the_default(self, server, tmp_path):
        template = (CHECKOUT / "config.template.yaml").read_text()
        assert run(tmp_path, "--url", server.url, "--name", "mine").returncode == 0
        text = (tmp_path / "config.yaml").read_text()
        inserted = re.search(r"(?m)^  mine:\n(?:    .*\n|      .*\n)+", text)
        assert inserted is not None
        assert text.replace(inserted[0], "").replace("default: mine", "default: demo") == template
        assert set(written(tmp_path, "mine")["capabilities"]) == {*FLAGS, "context"}
        assert "# as chat-x answered" in inserted[0]

    def test_an_existing_file_keeps_its_default_unless_told(self, server, tmp_path):
        before = "# mine\ntargets:\n  default: a   # why\n  a: {url: 'demo://', dialect: openai}\n\n# the end\n"
        (tmp_path / "config.yaml").write_text(before)
        done = run(tmp_path, "--url", server.url, "--name", "b", "--no-probe")
        assert done.returncode == 0
        assert "target: b" in done.stdout
        text = (tmp_path / "config.yaml").read_text()
        added = f"  b:\n    url: {server.url}\n    dialect: openai\n"
        assert text == before.replace("\n\n# the", f"\n{added}\n# the")
        assert run(tmp_path, "--url", server.url, "--name", "c", "--no-probe", "--default").returncode == 0
        assert "default: c   # why" in (tmp_path / "config.yaml").read_text()

    def test_a_target_of_that_name_is_replaced_only_when_forced(self, server, tmp_path):
        assert run(tmp_path, "--url", server.url, "--name", "x", "--no-probe").returncode == 0
        before = (tmp_path / "config.yaml").read_text()
        refused = run(tmp_path, "--url", server.url, "--name", "x")
        assert refused.returncode == 1
        assert "--force" in refused.stderr
        assert (tmp_path / "config.yaml").read_text() == before
        assert run(tmp_path, "--url", server.url, "--name", "x", "--model", "chat-x", "--force", "--no-probe").returncode == 0
        assert written(tmp_path, "x")["model"] == "chat-x"

    def test_no_secret_is_written_but_into_dotenv_when_asked(self, server, tmp_path):
        secret = "sk-secret-1"
        done = run(tmp_path, "--url", server.url, "--name", "x", "--envkey", "X_KEY", "--save-key", given=secret + "\n")
        assert done.returncode == 0, done.stderr
        assert secret not in (tmp_path / "config.yaml").read_text() + done.stdout + done.stderr
        assert written(tmp_path, "x")["envkey"] == "X_KEY"
        assert (tmp_path / ".env").read_text() == f'X_KEY="{secret}"\n'
        assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
        assert all(asked["authorization"] == f"Bearer {secret}" for asked in server.asked)

    def test_a_key_that_is_not_at_hand(self, server, tmp_path):
        done = run(tmp_path, "--url", server.url, "--envkey", "X_KEY", "--name", "x")
        assert done.returncode == 1
        assert "X_KEY is not set" in done.stderr
        done = run(tmp_path, "--url", server.url, "--envkey", "X_KEY", "--name", "x", "--no-probe", "--dialect", "openai")
        assert done.returncode == 0
        assert "X_KEY must be exported" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "--url"),
            (["--yes"], "--url"),
            (["--url", "nowhere"], "--url: must begin with"),
            (["--dialect", "olama"], "did you mean 'ollama'"),
            (["--url", "http://127.0.0.1:1"], "is it running"),
            (["--url", "http://h", "--envkey", "sk-123-456"], "not the key itself"),
            (["--from", "nothing.yaml"], "nothing.yaml: there is no such file"),
        ],
    )
    def test_what_is_wrong_is_said_and_nothing_written(self, tmp_path, arguments, said):
        done = run(tmp_path, *arguments)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_backend_that_does_not_answer_is_not_written(self, server, tmp_path):
        for path in ("/v1/chat/completions", "/v1/embeddings"):
            server.on(path, nothing)
        done = run(tmp_path, "--url", server.url)
        assert done.returncode == 1
        assert "not here" in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_faulty_configuration_is_left_alone(self, server, tmp_path):
        for text in ("targets: [\n", "targets:\n  default: a\n  a: {url: 'demo://', dialekt: openai}\n", "- a list\n"):
            (tmp_path / "config.yaml").write_text(text)
            done = run(tmp_path, "--url", server.url, "--name", "x", "--no-probe")
            assert done.returncode == 1
            assert "config.yaml" in done.stderr
            assert "Traceback" not in done.stderr
            assert (tmp_path / "config.yaml").read_text() == text
            assert len(list(tmp_path.iterdir())) == 1

    def test_help_has_an_example(self, tmp_path):
        done = run(tmp_path, "--help")
        assert done.returncode == 0
        assert "python -m main init --url" in done.stdout


class Terminal:
    """`init` in a terminal: what it says so far, and what is typed."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "main", "init", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=BARE,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )
        os.close(slave)
        self.said = ""

    def type(self, after: str, text: str) -> None:
        """Types it once the terminal has said `after`."""
        until = time.monotonic() + 20
        while after not in self.said:
            assert time.monotonic() < until, self.said
            self._read()
        self.said = self.said.partition(after)[2]
        os.write(self._master, text.encode())

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 1)
        try:
            data = os.read(self._master, 4096) if ready else b" "
        except OSError:
            return False
        self.said += data.decode(errors="replace").strip(" " if not ready else "")
        return bool(data)

    def end(self) -> int:
        while self.process.poll() is None or select.select([self._master], [], [], 0)[0]:
            if not self._read():
                break
        os.close(self._master)
        return self.process.wait(20)


class TestInATerminal:
    def test_three_questions_and_their_usual_answers(self, server, tmp_path):
        terminal = Terminal(tmp_path, "--name", "x")
        terminal.type("What is behind?", "vllm\n")
        terminal.type("[http://127.0.0.1:8000/v1]", server.url + "/v1\n")
        terminal.type("[-]", "\n")
        terminal.type("[y]", "\n")
        assert terminal.end() == 0, terminal.said
        assert written(tmp_path, "x")["url"] == server.url + "/v1"
        assert written(tmp_path, "x")["capabilities"]["tools"] is True

    def test_a_key_is_asked_for_without_showing_it(self, server, tmp_path):
        terminal = Terminal(tmp_path, "--url", server.url, "--name", "x", "--yes", "--envkey", "X_KEY")
        terminal.type("X_KEY is not set", "sk-typed\n")
        assert terminal.end() == 0, terminal.said
        assert "sk-typed" not in terminal.said
        assert (tmp_path / ".env").read_text() == 'X_KEY="sk-typed"\n'

    @pytest.mark.parametrize(("interrupted", "status"), [(True, 130), (False, 1)], ids=["Ctrl-C", "the end"])
    def test_leaving_changes_nothing(self, tmp_path, interrupted, status):
        terminal = Terminal(tmp_path)
        terminal.type("What is behind?", "" if interrupted else "\x04")
        while interrupted and terminal.process.poll() is None:  # one that comes before input() waits is seen after it
            terminal.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                terminal.process.wait(3)
        assert terminal.end() == status
        assert "nothing was changed" in terminal.said
        assert "Traceback" not in terminal.said
        assert list(tmp_path.iterdir()) == []


# --- the text
TARGET = {"url": "http://h", "dialect": "openai", "capabilities": {"n": True, "context": 5}}
TEXTS = {
    "block": "a: 1  # x\ntargets:\n    default: o # d\n    o:\n        url: u\n\n    # after\nmodels: {}\n",
    "flow": "targets: {default: o, o: {url: u}}  # end\n",
    "flow with a comma": "targets: {default: o, o: {url: u}, }\n",
    "all of it flow": "{targets: {default: o, o: {url: u}}}\n",
    "no section": "system: {port: 1}\n",
    "flow without the section": "{system: {port: 1}}\n",
    "empty section": "targets:  # none\nmodels: {}\n",
    "empty": "",
    "comments": "# nothing\n# yet",
    "no newline at the end": "targets:\n  default: o\n  o: {url: u}",
    "CRLF": "targets:\r\n  default: o\r\n  o:\r\n    url: u # x\r\nmodels: {}\r\n",
    "a text at the end": "targets:\n  default: o\n  o:\n    url: |\n      two\n      lines\n\n# c\nmodels: {}\n",
    "a list at the end": "targets:\n  default: o\n  o:\n    cert:\n    - a\n    - b # c\n# d\n",
    "nothing at the end": "targets:\n  default: o\n  o:\n# d\n",
    "quotes": '"targets":\n  \'default\': "o"\n  o: {}\n',
}


ADDED = [line for indent in ("  ", "    ") for line in insertion.block("new", TARGET, {"capabilities": "why"}, indent, indent)]
ADDED.append("  default: new")


class TestInsertion:
    @pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
    def test_what_was_there_stays_as_it_was(self, text):
        after = insertion.with_target(text, "new", TARGET, comments={"capabilities": "why"})
        before = yaml.safe_load(text) or {}
        targets = {"default": "new", **(before.get("targets") or {}), "new": TARGET}
        assert yaml.safe_load(after) == {**before, "targets": targets}
        if "{d" not in text and "{t" not in text and "{s" not in text:
            left = [line for line in after.splitlines() if line not in ADDED]
            assert left == [*text.splitlines(), *(["targets:"] if "targets" not in text else [])]
        assert ("\r\n" in text) == ("\r\n" in after)
        assert "\n" not in after.replace("\r\n", "") or "\r\n" not in after

    @pytest.mark.parametrize("text", [text for text in TEXTS.values() if "o:" in text and "o:\n#" not in text])
    def test_one_is_replaced_in_its_place(self, text):
        with pytest.raises(ConfigError, match="--force"):
            insertion.with_target(text, "o", TARGET)
        after = insertion.with_target(text, "o", TARGET, force=True)
        assert yaml.safe_load(after)["targets"] == {"default": "o", "o": TARGET}
        assert insertion.with_target(after, "o", TARGET, force=True) == after
        assert ("# after" in text) == ("# after" in after)

    def test_what_cannot_be_done_is_told_with_the_lines_to_write(self):
        with pytest.raises(ConfigError, match=r"by hand:\nnew:\n  url: http://h"):
            insertion.with_target("t: &x {default: o}\ntargets: *x\n", "new", TARGET)

    @given(
        st.recursive(
            st.text() | st.booleans() | st.integers() | st.none(),
            lambda inner: st.dictionaries(st.text(min_size=1), inner, max_size=2),
            max_leaves=4,
        )
    )
    def test_every_value_is_read_back(self, value):
        written = "\n".join(insertion.block("x", value))
        assert yaml.safe_load(written) == {"x": value if value != {} else {}}
        assert json.dumps(yaml.safe_load(insertion.scalar(value))) == json.dumps(value)

    def test_a_link_stays_one_and_permissions_stay(self, tmp_path):
        real = tmp_path / "real.yaml"
        real.write_text("a")
        real.chmod(0o640)
        (tmp_path / "link.yaml").symlink_to(real)
        insertion.write(str(tmp_path / "link.yaml"), "b")
        assert (tmp_path / "link.yaml").is_symlink()
        assert (real.read_text(), real.stat().st_mode & 0o777) == ("b", 0o640)
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_folder_that_cannot_be_written_is_said(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot be written"):
            insertion.write(str(tmp_path / "none" / "x.yaml"), "b")
