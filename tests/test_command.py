"""Executables as a backend: what they are called with, what becomes of what they write, and that none of them stays behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from proxy.adapters.engine import Said, arguments
from tests.backends import engine
from tests.backends.llama_server import write_model
from tests.backends.processes import running, wait_until, zombies_of
from tests.backends.proxy import KEY, Proxy

pytestmark = pytest.mark.long

EVIL = "say hello; $(touch owned) `touch owned` | touch owned & '\"\n\\n %s {model} {stop} --model x"


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine.install(tmp_path_factory.mktemp("programs"))


class Engines:
    """A proxy whose one command is as the test says; `model` is a word that only its processes have."""

    def __init__(
        self, folder: Path, programs: Path, *, real: bool = False, env: Any = None, target: Any = None, **command: Any
    ) -> None:
        self.model = str(folder / "model.gguf")
        command = {"preset": "llama.cpp", "count_tokens": True, "model": self.model, **command}
        command = {name: value for name, value in command.items() if value is not None}
        config = {"targets": {"default": "a", "a": {"url": "command://tiny", **(target or {})}}, "commands": {"tiny": command}}
        path = os.environ["PATH"] if real else f"{programs}:{os.environ['PATH']}"
        self.proxy = Proxy(folder, json.dumps(config), env={"PATH": path, **(env or {})})

    def __enter__(self) -> Engines:
        self.proxy.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self.proxy.__exit__(None, None, None)
        assert running(self.model) == []

    def post(self, path: str, body: Any, **more: Any) -> requests.Response:
        return requests.post(self.proxy.url + path, json=body, headers=self.proxy.headers, timeout=30, **more)

    def text(self, prompt: Any = "say hello", **more: Any) -> requests.Response:
        return self.post("/v1/completions", {"model": "m", "prompt": prompt, **more})

    def said(self, prompt: Any = "say hello", **more: Any) -> str:
        answer = self.text(prompt, **more)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def left(self) -> bool:
        """Whether no process of it is left, not even one to be reaped."""
        return not running(self.model) and not zombies_of(self.proxy.process.pid)


def request_for(body: bytes) -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Engines]:
    with Engines(tmp_path_factory.mktemp("engines"), programs) as made:
        yield made


@pytest.fixture
def engines(shared: Engines) -> Iterator[Engines]:
    """One proxy for all that need no other: each finds no process, and leaves none."""
    assert shared.left()
    yield shared
    wait_until(shared.left)


# --- what they are called with


def test_a_list_in_the_list_stands_there_once_a_value() -> None:
    command = ("x", "-n", "{max_tokens}", ("-r", "{stop}"), ("--temp", "{temperature}"), ("--grammar", "{grammar}"))
    values = {"max_tokens": 5, "stop": ["a", "{prompt}"], "temperature": 0, "prompt": "secret"}
    assert arguments(command, values) == ["x", "-n", "5", "-r", "a", "-r", "{prompt}", "--temp", "0"]


def test_what_a_request_does_not_say_has_the_flows_defaults() -> None:
    assert arguments(("{temperature}", "{top_p}", "{repeat_penalty}={seed}"), {}) == ["1", "1", "1=-1"]


def shown(folder: Path, programs: Path, prompt: str, *command: Any, **more: Any) -> Any:
    """Arguments and standard input of a program that is called so, told in letters that no stop is made of."""
    program = folder / "show"
    told = "import json, sys; print(json.dumps([sys.argv[1:], sys.stdin.read()]).encode().hex())"
    program.write_text(f"#!{sys.executable} -IS\n{told}\n")
    program.chmod(0o755)
    own = {"preset": None, "model": None, "count_tokens": False, "complete": [str(program), *command]}
    with Engines(folder, programs, **own) as engines:
        return json.loads(bytes.fromhex(engines.said(prompt, **more)))


def test_metacharacters_are_text(tmp_path: Path, programs: Path) -> None:
    assert shown(tmp_path, programs, EVIL, "{prompt}", ["-r", "{stop}"], stop=["$(x)"]) == [[EVIL, "-r", "$(x)"], ""]
    assert not (tmp_path / "owned").exists()


def test_a_prompt_that_no_argument_asks_for_is_standard_input(tmp_path: Path, programs: Path) -> None:
    assert shown(tmp_path, programs, EVIL, "-") == [["-"], EVIL]


def test_a_prompt_too_long_for_an_argument_and_one_with_a_nul_are_refused_by_name(tmp_path: Path, programs: Path) -> None:
    with Engines(tmp_path, programs, preset="llama-2023") as engines:
        long = engines.text("x" * 1_000_000)
        assert (long.status_code, long.json()["error"]["type"]) == (413, "request_too_large")
        nul = engines.text("a\0b")
        assert nul.status_code == 400
        assert "NUL" in nul.json()["error"]["message"]


def test_a_file_takes_a_megabyte_and_a_nul(engines: Engines) -> None:
    answer = engines.text("x" * 1_000_000 + "\0say hello")
    assert answer.json()["choices"][0]["text"] == "Hello world!"
    assert answer.json()["usage"]["prompt_tokens"] == 1_000_010


def test_programs_do_not_get_the_keys(tmp_path: Path, programs: Path) -> None:
    with Engines(tmp_path, programs, preset=None, complete=["env"], count_tokens=False, env={"SEEN": "yes"}) as engines:
        said = engines.said("x")
    assert "SEEN=yes" in said
    assert KEY not in said


# --- what they say


@given(
    prompt=st.sampled_from(["", "say é", " padded \n"]),
    text=st.text(alphabet="aés✨ \n#", max_size=30),
    cuts=st.lists(st.integers(1, 4), max_size=60),
    echoes=st.booleans(),
)
def test_echo_stop_and_characters_are_found_however_the_bytes_are_cut(
    prompt: str, text: str, cuts: Sequence[int], echoes: bool
) -> None:
    data = ((prompt if echoes else "") + text).encode()
    said, out = Said(prompt if echoes else "", ["##", "s #"]), ""
    for size in (*cuts, len(data) + 1):
        out += said.feed(data[:size])
        data = data[size:]
    out += said.feed(b"", final=True)
    ends = [at for stop in ("##", "s #") if (at := text.lstrip().find(stop)) >= 0]
    assert out == text.lstrip()[: min(ends, default=None)].strip()
    assert bool(said.word) == bool(ends)


def test_text_is_told_as_soon_as_it_is_certain() -> None:
    said = Said("", ["STOP"])
    assert [said.feed(piece) for piece in (b"a ", b"ST", b"ART ", b"b", b"\xe2\x9c", b"\xa8 [end", b" of", b" me")] == [
        "a", "", " START", " b", "", "✨", "", " [end of me"
    ]  # fmt: skip


def test_the_engines_own_last_words_are_not_the_models() -> None:
    said = Said("", [])
    assert said.feed(b"Hi [end of") + said.feed(b" text]\n") + said.feed(b"\n\n") + said.feed(b"", final=True) == "Hi"
    assert (said.ended, said.spoken()) == (True, "Hi")


def test_an_echo_that_is_none_is_text() -> None:
    said = Said("Say it", [])
    assert said.feed(b"Say") + said.feed(b"ing so") + said.feed(b"", final=True) == "Saying so"
    said = Said("Say it", [])
    assert said.feed(b"Say") + said.feed(b"", final=True) == "Say"


@pytest.mark.parametrize("preset", ["llama.cpp", "llama-cli", "llama-2023"])
def test_the_programs_of_today_and_of_2023(tmp_path: Path, programs: Path, preset: str) -> None:
    with Engines(tmp_path, programs, preset=preset) as engines:
        body = {"model": "m", "messages": [{"role": "user", "content": "say hello"}]}
        answer = engines.post("/v1/chat/completions", body).json()
        assert answer["choices"][0]["message"]["content"] == "Hello world!"
        assert answer["choices"][0]["finish_reason"] == "stop"
        prompt = "### Instruction: say hello\n### Response:"
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        assert answer["usage"]["completion_tokens"] == 12
        cut = engines.text("run long", max_tokens=16).json()
        assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 16)
        assert engines.said("use stop", stop=["nothing", "STOP"]) == "before"
        assert [choice["text"] for choice in engines.text(["say hello", "count up"]).json()["choices"]] == [
            "Hello world!",
            "one two three four five six",
        ]
        vectors = engines.post("/v1/embeddings", {"model": "m", "input": ["ab", "abcd"]}).json()["data"]
        assert len(vectors) == 2
        found = engines.post("/embedding", {"content": ["ab", "abcd"]}).json()
        assert found == [{"index": i, "embedding": [[size / 1000, 0.5, -0.25]]} for i, size in enumerate((2, 4))]
        assert engines.post("/tokenize", {"content": "é"}).json() == {"tokens": [0xC3, 0xA9]}


def test_what_a_program_says_around_the_answer_is_none_of_it() -> None:
    frame = {"begins": "> MARK\n", "ends": "\n\nBye...\n", "fault": "\x1b[31mError: "}
    data = b"banner\n> MARK\nBye... \xc3\xa9\n Bye...\n\n\nBye...\n"
    for size in range(1, len(data) + 1):
        said = Said("", ["STOP"], **frame)
        out = "".join(said.feed(data[at : at + size]) for at in range(0, len(data), size)) + said.feed(b"", final=True)
        assert (out, said.spoken(), said.is_cut()) == ("Bye... é\n Bye...", "Bye... é\n Bye...", False)
    said = Said("", [], **frame)
    assert said.feed(b"banner > MARK\n\n\nBye...\n") + said.feed(b"", final=True) == said.spoken() == ""
    assert not said.is_cut()
    said = Said("", [], **frame)
    assert said.feed(b"> MARK\nhalf") + said.feed(b"", final=True) == "half"
    assert said.is_cut()
    said = Said("", [], **frame)
    assert said.feed(b"> MARK\nhalf\x1b[31mErr") + said.feed(b"or: no room\n") + said.feed(b"more", final=True) == "half"
    assert (said.failed, said.failure()) == (True, "no room")


def test_llama_cli_is_given_no_prompt_that_it_would_take_for_a_command_or_write_into_a_chat(
    tmp_path: Path, programs: Path
) -> None:
    with Engines(tmp_path, programs, preset="llama-cli") as engines:
        for prompt in ("/read /etc/passwd", "/exit", "say hello\n", "a\0b\n\n" + "x" * 1_000_000):
            answer = engines.text(prompt).json()
            assert answer["choices"][0]["text"] == "Hello world!"
            assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (len(prompt), 12)
        refused = engines.text("refuse")
        assert refused.status_code == 502
        assert refused.json()["error"]["message"].endswith("failed: request (3000 tokens) exceeds the context")
        stream = engines.post("/v1/completions", {"model": "m", "prompt": "refuse", "stream": True})
        assert "exceeds the context" in stream.text
        assert "[DONE]" not in stream.text


def test_bytes_that_are_no_text_are_replaced(engines: Engines) -> None:
    assert engines.said("say nonsense") == "��ok�"
    assert engines.said("say é") == "éé!"


def test_a_stream_says_the_same_and_tells_how_it_ended(engines: Engines) -> None:
    body = {"prompt": "say é", "stream": True, "n_predict": 100}
    with engines.post("/completion", body, stream=True) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    assert "".join(event["content"] for event in events) == "éé!"
    last = events[-1]
    assert (last["stop"], last["stop_type"], last["tokens_predicted"], last["tokens_evaluated"]) == (True, "eos", 5, 6)


@pytest.mark.parametrize("preset", ["llama.cpp", "llama-cli"])
def test_a_schema_reaches_a_program_that_takes_one_and_is_refused_by_one_that_does_not(
    tmp_path: Path, programs: Path, preset: str
) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Ulm"]}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": form}
    with Engines(tmp_path / "a", programs, preset=preset) as engines:
        answer = engines.post("/v1/chat/completions", body).json()
        assert json.loads(answer["choices"][0]["message"]["content"]) == {"city": "Ulm"}
    with Engines(tmp_path / "b", programs, preset="llama-2023") as engines:
        answer = engines.post("/v1/chat/completions", body)
        assert answer.status_code == 400
        assert "json_schema" in answer.json()["error"]["message"]


# --- the flows' validation


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -2),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("top_p", 1.1),
        ("frequency_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", "x" * 1001),
        ("model", ""),
        ("prompt", [1, 2]),
        ("n", 17),
        ("prompt", ["x"] * 129),
    ],
)
def test_what_the_flows_refused_is_refused(engines: Engines, field: str, value: Any) -> None:
    answer = engines.text(**{"prompt": "x", "model": "m", field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert field in answer.json()["error"]["message"]


def test_a_refusal_has_the_shape_of_the_clients_api(engines: Engines) -> None:
    body = {"model": "m", "max_tokens": 5, "temperature": 3, "messages": [{"role": "user", "content": "x"}]}
    answer = engines.post("/v1/messages", body)
    assert (answer.status_code, answer.json()["type"]) == (400, "error")
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        {"top_k": [1, 2]},
        {"seed": "--help"},
        {"n_predict": "5"},
        {"grammar": 5},
        {"json_schema": "{}"},
        [],
    ],
    ids=str,
)
def test_what_is_no_number_never_becomes_an_argument(engines: Engines, body: Any) -> None:
    asked = {"prompt": "say hello", **body} if isinstance(body, dict) else body
    assert engines.post("/completion", asked).status_code == 400


def test_the_edges_are_taken(engines: Engines) -> None:
    for more in ({"max_tokens": -1}, {"max_tokens": 10**6}, {"temperature": 0, "top_p": 0}, {"temperature": 2, "top_p": 1}):
        assert engines.said(**more) == "Hello world!"
    assert engines.said("use stop", stop=["a1", "b2", "c3", "STOP"]) == "before"


def test_what_a_command_lacks_is_501(tmp_path: Path, programs: Path) -> None:
    with Engines(tmp_path, programs, preset=None, embed=["llama-embeddings"], count_tokens=False, model=None) as engines:
        answer = engines.text()
        assert (answer.status_code, "`complete`" in answer.text) == (501, True)


# --- what goes wrong, and that nothing stays behind


def test_a_program_that_fails_is_a_502_with_its_last_words_and_no_control_bytes(engines: Engines) -> None:
    answer = engines.text("fail")
    assert answer.status_code == 502
    message = answer.json()["error"]["message"]
    assert message.endswith("ended with status 3: loading | cannot allocate the KV cache")
    assert engines.left()


def test_a_program_that_is_not_there(tmp_path: Path, programs: Path) -> None:
    with Engines(tmp_path, programs, preset=None, complete=["no-such-program"], count_tokens=False) as engines:
        answer = engines.text()
        assert answer.status_code == 502
        assert "cannot be started: No such file or directory: no-such-program" in answer.text


def test_a_program_that_dies_by_a_signal(engines: Engines) -> None:
    answer = engines.text("die")
    assert (answer.status_code, "SIGSEGV" in answer.text) == (502, True)
    with engines.post("/v1/completions", {"model": "m", "prompt": "die", "stream": True}, stream=True) as stream:
        assert stream.status_code == 200
        assert "SIGSEGV" in stream.text
        assert "[DONE]" not in stream.text
    assert engines.left()


def test_a_program_that_hangs_is_a_504_and_ends_though_it_will_not(tmp_path: Path, programs: Path) -> None:
    with Engines(tmp_path, programs, timeout_s=0.5) as engines:
        answer = engines.text("hang")
        assert (answer.status_code, "did not end within 0.5 s" in answer.text) == (504, True)
        assert engines.left()


def test_what_a_program_leaves_running_ends_with_it(engines: Engines) -> None:
    assert engines.said("fork, then say hello") == "Hello world!"
    assert engines.left()
    assert engines.text("fork, then fail").status_code == 502
    assert engines.left()


def test_a_flood_on_stderr_hinders_nobody(engines: Engines) -> None:
    assert engines.said("fill stderr, then say hello") == "Hello world!"
    answer = engines.text("fill stderr, then fail")
    assert answer.status_code == 502
    assert len(answer.text) < 1000


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_the_processes_with_it(engines: Engines, stream: bool) -> None:
    place, left = urlsplit(engines.proxy.url), engines.proxy.log.count("the client left")
    body = json.dumps({"model": "m", "prompt": "hang, fork", "stream": stream}).encode()
    with socket.create_connection((place.hostname or "", place.port or 0), 20) as client:
        client.sendall(request_for(body))
        if stream:
            heard = b""
            while b"thinking" not in heard:
                piece = client.recv(65536)
                assert piece, heard
                heard += piece
        wait_until(lambda: running(engines.model))
    wait_until(engines.left)
    engines.proxy.wait_for_log("the client left", left + 1)


def test_programs_end_with_a_proxy_that_is_killed(tmp_path: Path, programs: Path) -> None:
    engines = Engines(tmp_path, programs)
    with engines.proxy, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(engines.text, "hang")
        wait_until(lambda: running(engines.model))
        engines.proxy.process.kill()
        with pytest.raises(requests.ConnectionError):
            answer.result(20)
        wait_until(lambda: not running(engines.model))


# --- clients, and the real programs where they are on the PATH


def test_a_conversation_from_the_anthropic_sdk(engines: Engines) -> None:
    assert engines.left()
    client = anthropic.Anthropic(base_url=engines.proxy.url, api_key=KEY, max_retries=0)
    with client.messages.stream(
        model="m", max_tokens=100, system="Be kind.", messages=[{"role": "user", "content": "say hello"}]
    ) as stream:
        pieces = list(stream.text_stream)
    final = stream.get_final_message()
    assert ("".join(pieces), final.stop_reason, final.usage.output_tokens) == ("Hello world!", "end_turn", 12)
    assert engines.left()


REAL = [name for name in ("llama-completion", "llama-cli") if shutil.which(name)]


@pytest.mark.parametrize("program", REAL)
def test_the_real_programs(tmp_path: Path, programs: Path, program: str) -> None:
    write_model(tmp_path / "model.gguf")
    preset = "llama.cpp" if program == "llama-completion" else program
    more = {"context": 512, "threads": 1, "pooling": "mean"}
    with Engines(tmp_path, programs, real=True, preset=preset, **more) as engines:
        answer = engines.text("\\n $(x) hé\n", temperature=0).json()
        assert answer["choices"][0]["text"] == "OK, fine!"
        assert (answer["choices"][0]["finish_reason"], answer["usage"]["prompt_tokens"]) == ("stop", 12)
        cut = engines.text("~", temperature=0, max_tokens=6).json()
        assert (cut["choices"][0]["text"], cut["choices"][0]["finish_reason"]) == ("ééé", "length")
        assert cut["usage"]["completion_tokens"] == 6
        assert engines.said("\n", stop="fi") == "OK,"
        assert engines.said("/exit\0{{ 1 }}\n", temperature=0) == "OK, fine!"
        assert engines.text("x" * 3000).status_code == 502
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["Ulm"]}}}
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "response_format": form, "temperature": 0}
        assert engines.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] == '"Ulm"'
        (vector,) = engines.post("/v1/embeddings", {"model": "m", "input": "one\ntext"}).json()["data"]
        assert vector["embedding"]
        client = anthropic.Anthropic(base_url=engines.proxy.url, api_key=KEY, max_retries=0)
        ask = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(20):  # llama.cpp may lose the end of what so small a model says: the stream tells that
            with suppress(anthropic.APIStatusError), client.messages.stream(**ask) as stream:
                final = stream.get_final_message()
                break
        assert final.usage.input_tokens == len("### Instruction: hi\n### Response:")
        assert engines.left()


def test_fifty_calls_at_two_at_once_are_never_three_and_one_that_leaves_makes_room(tmp_path: Path, programs: Path) -> None:
    with Engines(tmp_path, programs, count_tokens=False, target={"concurrency": 2, "queue": {"size": 60}}) as engines:
        place = urlsplit(engines.proxy.url)
        seen: list[int] = []
        with ThreadPoolExecutor(50) as pool:
            calls = [pool.submit(engines.said, "say hello") for _ in range(49)]
            with socket.create_connection((place.hostname or "", place.port or 0)) as leaving:
                leaving.sendall(request_for(b'{"model": "m", "prompt": "hang"}'))
            while wait(calls, 0.02).not_done:
                seen.append(len(running(engines.model)))
            assert {call.result() for call in calls} == {"Hello world!"}
        assert 1 <= max(seen) <= 2
        engines.proxy.wait_for_log("the client left")
        wait_until(engines.left)
