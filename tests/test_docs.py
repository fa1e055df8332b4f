"""The documentation: what its pages show is run, and what they name is there.

A fenced block says its language, and behind it the file that it belongs into: "```python mappers.py". Blocks of one file on one
page are put together in their order. A block without a file stands for itself.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given, settings

import mappers
import prompters
from proxy import config as configuration
from proxy.arguments import parser
from proxy.config import Deadlines
from proxy.dialects.openai import canonical, fold, unfold
from proxy.errors import ProxyError
from proxy.records.store import Row, open_store
from tests.backends.proxy import CHECKOUT, KEY, Proxy
from tests.backends.sockets import Backend, Exchange, ask
from tests.floors import FLOORS
from tests.laws import CFG, Json, fragments, hub_answers, hub_requests, mutations, unchanged

PAGES = sorted([CHECKOUT / "README.md", CHECKOUT / "CHANGELOG.md", *CHECKOUT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCE = re.compile(r"`((?:proxy|tests)/[\w/]+(?:\.py|/))`")
PLACED = re.compile(r"`([\w.]+)` in `((?:proxy|tests)/[\w/]+\.py)`")
ADDRESS = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, its language, the file that it belongs into, its text."""

    page: Path
    language: str
    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}: {self.file or self.text.strip().splitlines()[0]}"


def blocks_of(page: Path) -> list[Block]:
    return [Block(page, *found) for found in FENCE.findall(page.read_text())]


def joined(page: Path, file: str) -> str:
    """All blocks of a page that belong into a file."""
    found = [block.text for block in blocks_of(page) if block.file == file]
    assert found, f"{page.name} has no block for {file}"
    return "".join(found)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
README, MAPPERS, DIALECT = CHECKOUT / "README.md", CHECKOUT / "docs/mappers.md", CHECKOUT / "docs/adding-a-dialect.md"


def blocks(language: str) -> Any:
    """A parameter for each block of that language, but for the one that needs the dialect which its page adds."""
    shown = [block for block in BLOCKS if block.language == language and block.file != "cohere"]
    return pytest.mark.parametrize("block", shown, ids=str)


def anchors(page: Path) -> set[str]:
    """The names that a page's headings can be linked by."""
    titles = HEADING.findall(FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# --- what the pages name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
class TestPages:
    def test_links_lead_somewhere(self, page: Path) -> None:
        for link in LINK.findall(FENCE.sub("", page.read_text())):
            if "://" in link:
                continue
            file, _, anchor = link.partition("#")
            there = (page.parent / file).resolve() if file else page
            assert there.exists(), link
            assert not anchor or anchor in anchors(there), link

    def test_files_that_it_names_are_there(self, page: Path) -> None:
        for file in SOURCE.findall(page.read_text()):
            known = [CHECKOUT / file, CHECKOUT / file.replace("proxy/dialects/cohere.py", "proxy/dialects/openai.py")]
            assert any(path.exists() for path in known), file

    def test_names_stand_in_the_files_that_it_says(self, page: Path) -> None:
        for name, file in PLACED.findall(page.read_text()):
            assert re.search(rf"\b{name.rpartition('.')[2]}\b", (CHECKOUT / file).read_text()), f"{name} in {file}"


def test_the_floors_are_those_that_are_checked() -> None:
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", (CHECKOUT / "docs/architecture.md").read_text(), re.MULTILINE)
    told = [tuple(re.findall("`([^`]+)`", files)) for _, files in rows]
    assert [set(files) for files in told] == [set(files) for files in FLOORS]


def test_the_deadlines_are_the_defaults() -> None:
    rows = re.findall(r"`deadlines\.(\w+)` \| ([0-9.]+) s", (CHECKOUT / "docs/security.md").read_text())
    assert {name: float(seconds) for name, seconds in rows} == {name: float(s) for name, s in Deadlines()._asdict().items()}


def test_the_fields_of_a_json_log_line_are_listed(tmp_path: Path) -> None:
    listed = re.search(r"^\| field \|.*?\n\n", (CHECKOUT / "docs/deployment.md").read_text(), re.MULTILINE | re.DOTALL)
    assert listed
    config = 'system: {log: {format: json}}\ntargets: {default: demo, demo: {url: "demo://"}}'
    with Proxy(tmp_path, config) as proxy:
        assert ask(proxy.url, "GET", "/nowhere", headers=proxy.headers).status == 404
        assert proxy.stop() == 0
    (line,) = (found for found in map(json.loads, proxy.log.splitlines()) if "status" in found)
    cells = "".join(re.findall(r"^\| ([^|]*)", listed[0], re.MULTILINE))
    assert set(line) == set(re.findall(r"`(\w+)`", cells))


# --- what the pages show


@blocks("python")
def test_python_is_python(block: Block) -> None:
    ast.parse(block.text)


@blocks("yaml")
def test_yaml_is_a_sound_configuration(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = block.text if "targets:" in block.text else block.text + 'targets: {default: demo, demo: {url: "demo://"}}\n'
    for file in (*re.findall(r"certificates/[\w-]+\.pem", text), "certificates/cert.pem", "certificates/key.pem"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "config.yaml").write_text(text)
    environ = {"MOOLTIPROXY_KEY": KEY, **dict.fromkeys(re.findall(r"envkey: (\w+)", text), "secret")}
    environ |= {name: "secret" for names in re.findall(r"envkeys: \[(.*)\]", text) for name in names.split(", ")}
    own = [
        each.text for each in blocks_of(block.page) if each.language == "python" and each.file in ("mappers.py", "prompters.py")
    ]
    names: dict[str, Any] = {}
    exec("".join(own), names)
    config = configuration.load("config.yaml", environ, {**vars(mappers), **names}, {**vars(prompters), **names})
    assert config.targets


COMMANDS = sorted({line for block in BLOCKS if block.language == "sh" for line in block.text.replace("\\\n", "").splitlines()})


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make ")])
def test_make_knows_its_targets(command: str) -> None:
    assert re.search(rf"^{command.split()[1]}:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [line for line in COMMANDS if re.match(r"python -m main\b", line)])
def test_commands_of_the_program_work(command: str, tmp_path: Path) -> None:
    arguments = shlex.split(command.partition(" > ")[0])[3:]
    parsed = parser().parse_args(arguments)
    template = (CHECKOUT / "config.template.yaml").read_text()
    (tmp_path / parsed.config).write_text(template)
    if parsed.command == "serve":
        given = [each for each in arguments if each != "--port" and not each.isdigit()]
        with Proxy(tmp_path, template, *given) as proxy:
            assert ask(proxy.url, "GET", "/healthz").status == 200
        return
    if parsed.command == "export":
        (tmp_path / parsed.config).write_text(f"{template}\nrecords: {{calls: {{}}}}\n")
        chat: dict[str, Any] = {"request": {"messages": []}, "response": {"choices": [{"message": {"content": "x"}}]}}
        store = open_store(f"sqlite:///{tmp_path}/calls.db")
        store.write([Row("a" * 28, time.time(), parsed.key, target=parsed.of, model_asked=parsed.model, status=200, **chat)])
        store.close()
    environ = {**os.environ, "MOOLTIPROXY_KEY": KEY, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-m", "main", *arguments], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_readme_shows_both_commands() -> None:
    assert {"make run", "make test"} <= set(COMMANDS)


# --- README.md


def run(program: list[str], folder: Path, proxy: Proxy) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # `python` is this one
    environ = {**proxy.env, "MOOLTIPROXY_KEY": KEY, "PATH": path}
    done = subprocess.run(program, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class TestReadme:
    def test_the_request_and_the_client_reach_the_demo(self, tmp_path: Path) -> None:
        curl = next(block.text for block in blocks_of(README) if "curl " in block.text)
        with Proxy(tmp_path, (CHECKOUT / "config.template.yaml").read_text()) as proxy:
            pasted = curl.replace(ADDRESS, proxy.url).replace(". .venv/bin/activate\n", "")
            answer = json.loads(run(["bash", "-ec", pasted], tmp_path, proxy))
            assert "demo" in answer["choices"][0]["message"]["content"]
            (tmp_path / "client.py").write_text(joined(README, "client.py").replace(ADDRESS, proxy.url))
            whole, streamed = run([sys.executable, "client.py"], tmp_path, proxy).splitlines()
            assert whole == streamed == answer["choices"][0]["message"]["content"]

    def test_the_first_target_serves_clients_of_another_api(self, tmp_path: Path) -> None:
        with Backend() as backend:
            choice = {"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}
            answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            backend.on("/v1/chat/completions", lambda exchange: exchange.reply(200, answer))
            config = joined(README, "config.yaml").replace("http://127.0.0.1:8080", backend.url)
            with Proxy(tmp_path, config) as proxy:
                asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello!"}]}
                reply = ask(proxy.url, "POST", "/v1/messages", asked, proxy.headers)
                assert reply.json()["content"] == [{"type": "text", "text": "Hi."}]

    def test_the_first_mapper_makes_a_chat_backend(self, tmp_path: Path) -> None:
        with Backend() as backend:
            backend.on("/ask", lambda exchange: exchange.reply(200, {"reply": exchange.asked.json()["question"].upper()}))
            config = joined(README, "config.yaml mapper").replace("http://127.0.0.1:9000", backend.url)
            with Proxy(tmp_path, config, files={"mappers.py": own_mappers(README)}) as proxy:
                assert chatted(proxy, "why?") == "WHY?"
                parts: Any = [{"role": "user", "content": [{"type": "text", "text": "why?"}]}]
                asked = client_of(proxy).chat.completions.create(model="m", messages=parts)
                assert asked.choices[0].message.content == "WHY?"
                assert "".join(streamed(proxy, "why?")) == "WHY?"

    def test_the_first_prompter_writes_the_prompt(self, tmp_path: Path) -> None:
        assert prompted(README, tmp_path) == ("USER: why?\nASSISTANT:", ["\nUSER:"])


def own_mappers(page: Path) -> str:
    return (CHECKOUT / "mappers.py").read_text() + joined(page, "mappers.py")


def client_of(proxy: Proxy) -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.url + "/v1", api_key=KEY, max_retries=0)


def chatted(proxy: Proxy, *said: str, **more: Any) -> str | None:
    messages: Any = [{"role": "user", "content": text} for text in said]
    found: Any = client_of(proxy).chat.completions.create(model="m", messages=messages, **more)
    content: str | None = found.choices[0].message.content
    return content


def streamed(proxy: Proxy, said: str) -> Iterator[str]:
    for chunk in client_of(proxy).chat.completions.create(model="m", messages=[{"role": "user", "content": said}], stream=True):
        yield chunk.choices[0].delta.content or ""


def prompted(page: Path, folder: Path) -> tuple[str, list[str]]:
    """The prompt and the stops that TGI gets through the page's prompter."""
    with Backend() as backend:
        told = {"finish_reason": "eos_token", "generated_tokens": 1, "prefill": [], "tokens": []}
        backend.on("/generate", lambda exchange: exchange.reply(200, {"generated_text": "Because.", "details": told}))
        config = joined(page, "config.yaml prompter").replace("http://127.0.0.1:8080", backend.url)
        written = (CHECKOUT / "prompters.py").read_text() + joined(page, "prompters.py")
        with Proxy(folder, config, files={"prompters.py": written}) as proxy:
            assert chatted(proxy, "why?") == "Because."
        body = backend.asked[-1].json()
        return body["inputs"], body["parameters"]["stop"]


# --- docs/deployment.md


def test_a_folder_of_ones_own_is_used_before_the_checkout(tmp_path: Path) -> None:
    page = (CHECKOUT / "docs/deployment.md").read_text()
    commands = re.findall(r"^/opt/mooltiproxy/\.venv/bin/python (/opt/mooltiproxy/main\.py check)$", page, re.MULTILINE)
    assert commands
    (tmp_path / "mappers.py").write_text("def mine(ip, cfg={}):\n    return ip\n")
    (tmp_path / ".env").write_text(f"MOOLTIPROXY_KEY={KEY}\n")
    mapping = "{/a: {in: mine}, /b: {in: chatReqOpenAItoTGI, prompter: interview}}"
    (tmp_path / "config.yaml").write_text(f"targets: {{default: a, a: {{url: 'http://h', mapping: {mapping}}}}}")
    program = [sys.executable, *commands[0].replace("/opt/mooltiproxy", str(CHECKOUT)).split()]
    environ = {name: value for name, value in os.environ.items() if name not in ("MOOLTIPROXY_KEY", "PYTHONPATH")}
    done = subprocess.run(program, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# --- docs/mappers.md


def sibyl(backend: Backend) -> None:
    """The page's imaginary API."""

    def answer(exchange: Exchange) -> None:
        question = exchange.asked.json()["question"]
        if question == "Too much?":
            exchange.reply(429, {"error": "too many questions"}, [("retry-after", "7")])
        elif question == "Nothing?":
            exchange.reply(200, {"fault": "I am asleep"})
        else:
            cut = "most_words" in exchange.asked.json()
            exchange.reply(200, {"reply": "Because.", "why": "cut" if cut else "end", "words": 1})

    def stream(exchange: Exchange) -> None:
        exchange.start()
        for event in ({"piece": "Be"}, {"piece": "cause."}):
            exchange.event(event)
        broken = exchange.asked.json()["question"] == "Broken?"
        exchange.event({"fault": "I fell asleep"} if broken else {"end": "end", "words": 2})
        exchange.end()

    backend.on("/ask", answer)
    backend.on("/ask/stream", stream)


@pytest.fixture
def sibyls(tmp_path: Path) -> Iterator[Callable[[str], Proxy]]:
    """Proxies in front of Sibyl, by the file of their configuration on the page."""
    with Backend() as backend:
        sibyl(backend)
        written = own_mappers(MAPPERS)

        def before(file: str) -> Proxy:
            config = joined(MAPPERS, file).replace("http://127.0.0.1:9000", backend.url)
            return Proxy(tmp_path, config, files={"mappers.py": written})

        yield before


class TestMappers:
    def test_an_openai_client_reaches_the_imaginary_api(self, sibyls: Callable[[str], Proxy]) -> None:
        with sibyls("config.yaml") as proxy:
            assert chatted(proxy, "Why?") == "Because."
            assert list(streamed(proxy, "Why?")) == ["", "Be", "cause.", ""]
            asked: Any = [{"role": "user", "content": "Why?"}]
            cut = client_of(proxy).chat.completions.create(model="m", messages=asked, max_tokens=1)
            assert cut.choices[0].finish_reason == "length"
            assert cut.usage
            assert cut.usage.completion_tokens == 1

    def test_errors_are_what_its_table_says(self, sibyls: Callable[[str], Proxy]) -> None:
        tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        with sibyls("config.yaml") as proxy:
            with pytest.raises(openai.BadRequestError, match="takes no tools"):
                chatted(proxy, "Why?", tools=[tool])
            with pytest.raises(openai.RateLimitError, match="too many questions") as caught:
                chatted(proxy, "Too much?")
            assert caught.value.response.headers["retry-after"] == "7"
            with pytest.raises(openai.InternalServerError, match="I am asleep") as asleep:
                chatted(proxy, "Nothing?")
            assert asleep.value.status_code == 502
            with pytest.raises(openai.APIError, match="I fell asleep"):
                list(streamed(proxy, "Broken?"))

    def test_what_it_reports_as_lost_is_told(self, sibyls: Callable[[str], Proxy]) -> None:
        with sibyls("config.yaml") as proxy:
            body = {"messages": [{"role": "user", "content": "What?"}, {"role": "user", "content": "Why?"}]}
            reply = ask(proxy.url, "POST", "/v1/chat/completions", body, proxy.headers)
            assert "$.messages" in (reply["x-mooltiproxy-lost"] or "")

    def test_its_chain_serves_anthropics_client(self, sibyls: Callable[[str], Proxy]) -> None:
        with sibyls("config.yaml chain") as proxy:
            client = anthropic.Anthropic(base_url=proxy.url, api_key=KEY, max_retries=0)
            asked: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Why?"}]}
            assert client.messages.create(**asked).content[0].text == "Because."  # type: ignore[union-attr]
            with client.messages.stream(**asked) as stream:
                assert stream.get_final_text() == "Because."

    def test_its_prompter_writes_the_prompt(self, tmp_path: Path) -> None:
        assert prompted(MAPPERS, tmp_path) == ("USER: why?, out.\nASSISTANT:", ["\nUSER:"])

    def test_its_tests_pass(self, tmp_path: Path) -> None:
        (tmp_path / "mappers.py").write_text(own_mappers(MAPPERS))
        (tmp_path / "test_mappers.py").write_text(joined(MAPPERS, "test_mappers.py"))
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-q", "test_mappers.py"]
        environ = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTEST_ADDOPTS": ""}
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
        assert "2 passed" in done.stdout, done.stdout + done.stderr


# --- docs/adding-a-dialect.md

ANSWER = {
    "id": "c1",
    "finish_reason": "COMPLETE",
    "message": {"role": "assistant", "content": [{"type": "text", "text": "Hi."}]},
    "usage": {"tokens": {"input_tokens": 3, "output_tokens": 2}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
EVENTS: list[dict[str, Any]] = [
    {"type": "message-start", "id": "c1", "delta": {"message": {"role": "assistant"}}},
    {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": "I look."}}},
    {"type": "tool-call-start", "index": 0, "delta": {"message": {"tool_calls": CALL}}},
    {"type": "tool-call-delta", "index": 0, "delta": {"message": {"tool_calls": {"function": {"arguments": '{"at":'}}}}},
    {"type": "tool-call-delta", "index": 0, "delta": {"message": {"tool_calls": {"function": {"arguments": '"it"}'}}}}},
    {"type": "tool-call-end", "index": 0},
    {"type": "message-end", "delta": {"finish_reason": "TOOL_CALL", "usage": ANSWER["usage"]}},
]
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
SAID = [{"role": "user", "content": "Hello!"}]
OF = {**CFG, "request": {"model": "gpt-4.1"}}
steady = settings(deadline=None)  # the machine may be busy


@pytest.fixture
def with_cohere(tmp_path: Path) -> Path:
    """A folder with a copy of the program, to which the page's file was added: that file and nothing else."""
    for name in ("main.py", "mappers.py", "prompters.py"):
        shutil.copy(CHECKOUT / name, tmp_path)
    shutil.copytree(CHECKOUT / "proxy", tmp_path / "proxy", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "proxy/dialects/cohere.py").write_text(joined(DIALECT, "cohere.py"))
    return tmp_path


def events_of(body: bytes) -> list[Any]:
    """The events of a body of named SSE, whose names must be their types."""
    found = re.findall(rb"event: (\S+)\ndata: (.*)\n\n", body)
    events = [json.loads(data) for _, data in found]
    assert [event["type"] for event in events] == [name.decode() for name, _ in found]
    return events


@pytest.fixture(scope="module")
def cohere(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The page's file, without a package around it."""
    path = tmp_path_factory.mktemp("cohere") / "cohere.py"
    path.write_text(joined(DIALECT, "cohere.py"))
    spec = importlib.util.spec_from_file_location("cohere_of_the_page", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestADialectHoldsTheLaws:
    @steady
    @given(request_of_hub=hub_requests())
    def test_a_request_comes_back(self, cohere: ModuleType, request_of_hub: Json) -> None:
        there = unchanged(cohere.chatReqOpenAItoCohere, request_of_hub)
        back = unchanged(cohere.chatReqCoheretoOpenAI, there)
        assert back["messages"] == canonical(request_of_hub)["messages"]
        assert back.get("max_completion_tokens") == request_of_hub.get("max_completion_tokens")

    @steady
    @given(answer=hub_answers(refusals=False))
    def test_an_answer_comes_back_and_its_stream_says_the_same(self, cohere: ModuleType, answer: Json) -> None:
        answer["choices"][0]["message"].pop("thinking_blocks", None)  # Cohere signs no thoughts
        whole = cohere.chatAnsCoheretoOpenAI(unchanged(cohere.chatAnsOpenAItoCohere, answer), OF)
        assert whole["choices"][0]["message"] == answer["choices"][0]["message"]
        events = list(cohere.chatStreamOpenAItoCohere(fragments(answer, 3, unfold), OF))
        assert list(cohere.grammar(events)) == events
        assert fold(cohere.chatStreamCoheretoOpenAI(events, OF)) == whole

    def test_a_wrong_event_ends_in_an_error_or_does_no_harm(self, cohere: ModuleType) -> None:
        broken = 0
        for events in mutations(EVENTS):
            seen: list[Any] = []
            try:
                for event in cohere.grammar(events):
                    seen.append(event)  # noqa: PERF402 (what came before the fault is looked at)
            except ProxyError:
                broken += 1
                assert seen[-1]["delta"]["finish_reason"] == "ERROR"
            try:
                list(cohere.chatStreamCoheretoOpenAI(events, OF))
            except ProxyError:
                continue
        assert broken > 20


class TestADialectIsOneFile:
    def test_it_is_a_backend_for_other_apis(self, with_cohere: Path) -> None:
        def answer(exchange: Exchange) -> None:
            if not exchange.asked.json().get("stream"):
                return exchange.reply(200, ANSWER)
            exchange.start()
            for event in EVENTS:
                exchange.chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            return exchange.end()

        config = joined(DIALECT, "cohere")
        with Backend() as backend:
            backend.on("/v2/chat", answer)
            config = config.replace("https://api.cohere.com", backend.url)
            with Proxy(with_cohere, config, env={"COHERE_API_KEY": "co-secret"}) as proxy:
                assert chatted(proxy, "Hello!", max_tokens=5, stop="x", tools=[TOOL], tool_choice="required") == "Hi."
                got = backend.asked[-1]
                assert got["authorization"] == "Bearer co-secret"
                assert got.json() == {
                    "model": "m",
                    "max_tokens": 5,
                    "stop_sequences": ["x"],
                    "messages": SAID,
                    "tools": [TOOL],
                    "tool_choice": "REQUIRED",
                }
                client = anthropic.Anthropic(base_url=proxy.url, api_key=KEY, max_retries=0)
                tool: Any = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
                with client.messages.stream(model="m", max_tokens=9, messages=SAID, tools=[tool]) as stream:  # type: ignore[arg-type]
                    message: Any = stream.get_final_message()
                assert message.stop_reason == "tool_use"
                assert [block.input for block in message.content if block.type == "tool_use"] == [{"at": "it"}]

    def test_it_is_a_front_to_other_backends(self, with_cohere: Path) -> None:
        with Proxy(with_cohere, 'targets: {default: demo, demo: {url: "demo://"}}') as proxy:
            whole = ask(proxy.url, "POST", "/v2/chat", {"model": "demo", "messages": SAID}, proxy.headers).json()
            assert (whole["finish_reason"], whole["message"]["role"]) == ("COMPLETE", "assistant")
            text = whole["message"]["content"][0]["text"]
            assert "demo" in text
            reply = ask(proxy.url, "POST", "/v2/chat", {"model": "demo", "messages": SAID, "stream": True}, proxy.headers)
            events = events_of(reply.body)
            assert reply.body.endswith(b"data: [DONE]\n\n")
            said = [event["delta"]["message"]["content"]["text"] for event in events if event["type"] == "content-delta"]
            assert "".join(said) == text
            assert (events[0]["type"], events[-1]["delta"]["finish_reason"]) == ("message-start", "COMPLETE")
            asked = {"model": "demo", "messages": [{"role": "user", "content": "call look"}], "tools": [TOOL], "stream": True}
            called = events_of(ask(proxy.url, "POST", "/v2/chat", asked, proxy.headers).body)
            assert called[-1]["delta"]["finish_reason"] == "TOOL_CALL"
            assert "tool-call-start" in [event["type"] for event in called]

    def test_its_errors_have_its_own_shape(self, with_cohere: Path) -> None:
        with Proxy(with_cohere, 'targets: {default: demo, demo: {url: "demo://"}}') as proxy:
            refused = ask(proxy.url, "POST", "/v2/chat", {"messages": SAID})
            assert (refused.status, set(refused.json())) == (401, {"id", "message"})
            odd = ask(proxy.url, "POST", "/v2/chat", {"model": "demo", "messages": SAID, "k": "many"}, proxy.headers)
            assert (odd.status, odd.json()["message"]) == (400, "k must be an integer")

    def test_a_stream_that_breaks_off_ends_as_its_api_ends_one(self, with_cohere: Path) -> None:
        def cut(exchange: Exchange) -> None:
            exchange.start()
            head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
            exchange.event({**head, "choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": None}]})
            exchange.cut()

        with Backend() as backend:
            backend.on("/v1/chat/completions", cut)
            with Proxy(with_cohere, f"targets: {{default: a, a: {{url: '{backend.url}', dialect: openai}}}}") as proxy:
                reply = ask(proxy.url, "POST", "/v2/chat", {"model": "m", "messages": SAID, "stream": True}, proxy.headers)
        kinds = [event["type"] for event in events_of(reply.body)]
        assert kinds == ["message-start", "content-start", "content-delta", "content-end", "message-end"]
        assert events_of(reply.body)[-1]["delta"]["finish_reason"] == "ERROR"
