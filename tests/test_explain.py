"""`explain`: what becomes of a request, hop by hop, and where each field comes from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from proxy import config as configuration
from proxy import wire
from proxy.records.cassettes import load
from proxy.workbench.examples import example, offered
from proxy.workbench.explained import explained
from proxy.workbench.provenance import leaves, others, provenance, replaced, shown
from proxy.workbench.rehearsal import Asked, Demo, Played, Script, Stage, answers_of, asked_of, rehearse
from tests.backends.proxy import CHECKOUT, KEY
from tests.backends.sockets import Backend, Exchange
from tests.recording import FOLDER, FRONTS, MODELS, PAIRS, config

Json = dict[str, Any]


@lru_cache(maxsize=1)
def stage() -> Stage:
    """A target for each backend, as the cassettes were recorded."""
    return Stage(configuration.load(str(FOLDER / "config.yaml"), {"MOOLTIPROXY_KEY": KEY}, {}, {}), {}, {})


# --- where it comes from


def outputs(asked: Asked, answers: list[Any]) -> tuple[Json, Json]:
    """What goes up and down, by the paths that `explain` calls them."""
    stage().watch = None
    played: Played = rehearse(stage(), asked, Script(answers))
    *first, last = played.tape.met or [None]
    up: Json = {}
    if last:
        up = {"url": last.url} | {shown(path): value for path, value in leaves(wire.loads(last.body)).items()}
    for met in first:
        up |= {"before: url": met.url}
        up |= {f"before: {shown(path)}": value for path, value in leaves(wire.loads(met.body)).items()}
    kind = next((value for name, value in played.head[1] if name == "content-type"), "").partition(";")[0]
    if played.call.error and answers:  # Gemini's array is left open then
        return up, {"error": played.call.error}
    body = list(wire.reader(kind)([played.body])) if kind != "application/json" else wire.loads(played.body)
    return up, {shown(path): value for path, value in leaves(body).items()}


def changed(asked: Asked, answers: list[Any], source: str) -> Iterator[tuple[Json, Json]]:
    """What goes up and down once the named input is another: by each other value, and without it."""
    body = wire.loads(asked.body)
    if source.startswith("path."):
        model = asked.path.rpartition("/")[2].partition(":")[0]
        yield outputs(replace(asked, path=asked.path.replace(model, f"{model}-other")), answers)
    elif source.startswith("$"):
        (path,) = (path for path in leaves(body) if shown(path) == source)
        for value in [replaced(body, path, other) for other in others(leaves(body)[path])] + [replaced(body, path)]:
            yield outputs(replace(asked, body=wire.dumps(value)), answers)
    else:
        status, fields, pieces = answers[-1]
        kind = dict(fields)["content-type"].partition(";")[0]
        streams = kind != "application/json"
        answer = list(wire.reader(kind)([b"".join(pieces)])) if streams else wire.loads(b"".join(pieces))
        (path,) = (path for path in leaves(answer) if f"answer{shown(path)[1:]}" == source)
        framing = "ndjson" if "ndjson" in kind else "sse"
        for value in [replaced(answer, path, other) for other in others(leaves(answer)[path])] + [replaced(answer, path)]:
            data = b"".join(wire.write(framing, value)) if streams else wire.dumps(value)
            yield outputs(asked, [*answers[:-1], (status, fields, [data])])


def differs(part: int, name: str, before: Json, after: tuple[Json, Json]) -> bool:
    """Whether a field is another one, is gone, or stands in an output of another shape."""
    return after[part].get(name) != before[name] or after[part].keys() != before.keys()


HUB = [(front, backend) for front, backend in PAIRS if "openai" in (front, backend)]  # of which all streams are made
KINDS = [*((*pair, "plain") for pair in PAIRS), *((*pair, "stream") for pair in HUB)]


@pytest.mark.long
@pytest.mark.parametrize(("front", "backend", "kind"), KINDS)
def test_each_field_changes_with_the_inputs_that_it_comes_from(front: str, backend: str, kind: str) -> None:
    cassette = load(FOLDER / f"{front}-to-{backend}-{kind}.json")
    asked, answers = asked_of(cassette), answers_of(cassette)
    told = explained(stage(), asked, Script(answers))
    assert told["error"] is None
    before = outputs(asked, answers)
    inputs = {shown(path): value for path, value in leaves(told["client"]["body"]).items()}
    answer = {f"answer{shown(path)[1:]}": value for path, value in leaves(told["upstream"][-1]["answer"]).items()}
    tried: dict[str, tuple[list[tuple[Json, Json]], Iterator[tuple[Json, Json]]]] = {}
    for part, hop in enumerate(("upstream", "reply")):
        found = told["provenance"][hop]
        inputs |= answer if hop == "reply" else {}
        assert list(found) == list(before[part]), "every field of the output is explained"
        for name, sources in found.items():
            for source in sources[:2]:
                known, more = tried.setdefault(source, ([], changed(asked, answers, source)))
                afters = chain(tuple(known), (known.append(after) or after for after in more))  # made as far as it takes
                assert any(differs(part, name, before[part], after) for after in afters), (name, source)
            said = before[part][name]
            if isinstance(said, str) and " " in said and said in inputs.values():
                words = [inputs.get(source) for source in sources]
                assert said in words or said in "".join(map(str, words)), f"{name} has the words of an input"


def test_what_only_moves_others_about_is_no_source_of_what_still_is_there() -> None:
    def mapper(value: Json) -> Json:
        return {"list": [item["text"] for item in value["items"] if item["kind"] == "text"], "fixed": 1}

    given = {"items": [{"kind": "text", "text": "a"}, {"kind": "text", "text": "b"}], "unused": 5}
    assert provenance(given, mapper) == {
        ("list", 0): [("items", 0, "text")],
        ("list", 1): [("items", 1, "text")],
        ("fixed",): [],
    }


# --- the four hops


@pytest.mark.long
@pytest.mark.parametrize(("front", "name"), [(front, name) for front in FRONTS for name in offered(front)])
def test_examples_of_every_front_go_through_to_the_demo_behind_openai_s_api(front: str, name: str) -> None:
    path, body = example(front, name)
    told = explained(stage(), Asked("POST", path, body, target="openai", headers={}), Demo("openai"))
    assert (told["error"], told["reply"]["status"], told["front"]) == (None, 200, front)
    assert bool(told["events"]) == (name.endswith("stream") and front != "openai")


def test_a_first_call_that_writes_the_prompt_is_told_too() -> None:
    path, body = example("anthropic", "chat")
    told = explained(stage(), Asked("POST", path, body, target="llamacpp"), Demo("llamacpp"))
    assert [exchange["url"].rpartition("/")[2] for exchange in told["upstream"]] == ["apply-template", "completion"]
    assert "$.system" in told["provenance"]["upstream"]["$.prompt"]


def test_the_steps_of_a_stream_are_told_in_the_order_in_which_they_happen() -> None:
    path, body = example("anthropic", "tools-stream")
    told = explained(stage(), Asked("POST", path, body, target="gemini"), Demo("gemini"))
    assert [step["step"] for step in told["inward"]] == ["chatReqAnthropictoOpenAI", "chatReqOpenAItoGemini"]
    order = list(dict.fromkeys(event["from"] for event in told["events"]))
    assert order == ["backend", "chatStreamGeminitoOpenAI", "chatStreamOpenAItoAnthropic"]
    last = [event["event"] for event in told["events"] if event["from"] == "chatStreamOpenAItoAnthropic"]
    assert told["reply"]["body"] == last


# --- the command


CONFIG = """
targets:
  default: claude
  claude: {url: URL, dialect: anthropic, envkey: CLAUDE_KEY}
  own: {url: URL, mapping: {/chat/completions: {path: /ask, in: asked, out: answered}}}
"""
MAPPERS = """
def asked(ip, cfg={}):
    return {"q": ip["messages"][-1]["content"]}


def answered(ip, cfg={}):
    return ip
"""


def run(folder: Path, *words: str, status: int = 0, url: str = "http://127.0.0.1:9", given: str = "", key: str = "") -> str:
    """What `explain` prints; without a key nothing is in its environment."""
    (folder / "config.yaml").write_text(CONFIG.replace("URL", url))
    (folder / "mappers.py").write_text(MAPPERS)
    keep = {name: value for name, value in os.environ.items() if name != "MOOLTIPROXY_KEY"}
    environ = {**keep, "PYTHONPATH": str(CHECKOUT), **({"MOOLTIPROXY_KEY": KEY, "CLAUDE_KEY": key} if key else {})}
    program = [sys.executable, "-m", "main", "explain", *words]
    done = subprocess.run(program, cwd=folder, env=environ, capture_output=True, text=True, input=given, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_reads_well_without_a_terminal_and_needs_no_key(tmp_path: Path) -> None:
    told = run(tmp_path, "--example", "tools")
    assert "\x1b" not in told
    for line in ("1. The client sends (openai, to target claude)", "chatReqOpenAItoAnthropic makes", "x-api-key: ***"):
        assert line in told
    assert "  $.messages[0].content[0].text ← $.messages[0].content" in told
    assert "  $.choices[0].finish_reason ← answer.stop_reason" in told


def test_a_body_of_ones_own_and_what_is_lost_of_it(tmp_path: Path) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 7}
    told = json.loads(run(tmp_path, "--body", "-", "--json", given=json.dumps(body)))
    assert told["lost"] == ["$.seed"]
    assert told["upstream"][0]["body"]["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def test_an_error_is_told_as_the_client_gets_it_and_is_the_exit_status(tmp_path: Path) -> None:
    told = run(tmp_path, "--body", "-", given='{"model": "m", "messages": []}', status=1)
    assert "4. The client gets 400" in told
    assert "Error: messages must be an array with at least one message" in told


def test_where_no_answer_is_known_it_says_so_after_what_it_knows(tmp_path: Path) -> None:
    told = run(tmp_path, "--target", "own", status=1)
    assert "Why is the sky blue?" in told
    assert "asked makes" in told
    assert "no answer of the backend is known: --live asks it, --cassette has one" in told


def test_live_asks_the_backend_once_and_shows_no_key(tmp_path: Path) -> None:
    def answer(exchange: Exchange) -> None:
        key = exchange.asked["x-api-key"]
        said = {"type": "text", "text": f"your key is {key}"}
        message = {"id": "m", "type": "message", "role": "assistant", "model": "c", "content": [said]}
        exchange.reply(200, {**message, "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 2}})

    with Backend() as backend:
        backend.on("/v1/messages", answer)
        told = run(tmp_path, "--live", url=backend.url, key="sk-ant-live-secret")
        assert len(backend.asked) == 1
    assert "your key is ***" in told
    assert "sk-ant" not in told


KEYED = """
targets:
  default: best
  two:
    {url: "URL", dialect: anthropic, envkeys: [FIRST_KEY, SECOND_KEY], model: sent-instead, retries: {}, fallback: [three]}
  three: {url: "URL", dialect: anthropic, key_command: [cat, key.txt]}
  best: {pool: [two, three]}
"""


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[tuple[Path, Backend]]:
    """Knows one key alone, and quotes it."""

    def answer(exchange: Exchange) -> None:
        key = exchange.asked["x-api-key"]
        if key not in ("key-of-two-0002", "key-of-three-0003"):
            exchange.reply(401, {"type": "error", "error": {"type": "authentication_error", "message": f"not {key}"}})
            return
        message = {"id": "m", "type": "message", "role": "assistant", "model": "c", "content": [{"type": "text", "text": key}]}
        exchange.reply(200, {**message, "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 2}})

    with Backend() as backend:
        backend.on("/v1/messages", answer)
        (tmp_path / "config.yaml").write_text(KEYED.replace("URL", backend.url))
        yield tmp_path, backend


def explain(folder: Path, *words: str, status: int = 0) -> str:
    keys = {"MOOLTIPROXY_KEY": KEY, "FIRST_KEY": "key-of-two-0001", "SECOND_KEY": "key-of-two-0002"}
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT), **keys}
    program = [sys.executable, "-m", "main", "explain", *words]
    done = subprocess.run(program, cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stdout + done.stderr
    assert not re.search(r"key-of-\w+-\d+", done.stdout + done.stderr)
    return done.stdout + done.stderr


def test_live_brings_the_keys_that_a_call_would_bring(keyed: tuple[Path, Backend]) -> None:
    folder, backend = keyed
    told = explain(folder, "--live", "--target", "two")
    assert [asked["x-api-key"] for asked in backend.asked] == ["key-of-two-0001", "key-of-two-0002"]  # what is refused rests
    assert "Tried before: two 401" in told
    assert "x-api-key: ***" in told
    (folder / "key.txt").write_text("key-of-three-0003\n")
    assert "4. The client gets 200" in explain(folder, "--live", "--target", "three")
    assert backend.asked[-1]["x-api-key"] == "key-of-three-0003"


def test_live_says_why_there_is_no_key(keyed: tuple[Path, Backend]) -> None:
    folder, backend = keyed
    told = explain(folder, "--live", "--target", "three", status=1)
    assert "key_command cat: it ended with status 1" in told
    assert not backend.asked


def test_live_tells_a_failure_and_goes_nowhere_else(keyed: tuple[Path, Backend]) -> None:
    folder, backend = keyed
    backend.on("/v1/messages", lambda exchange: exchange.reply(503, {"error": {"message": "later"}}))
    assert "4. The client gets 503" in explain(folder, "--live", "--target", "two", status=1)
    assert len(backend.asked) == 1


def test_of_a_pool_it_says_which_member_it_explains(keyed: tuple[Path, Backend]) -> None:
    folder, backend = keyed
    for words in ((), ("--target", "best")):
        told = explain(folder, *words)
        assert "to target two, the first member of pool best; a call goes to the one whose turn it is" in told
        assert "x-api-key: ***" in told  # which is to come, though no key is asked for
        assert '"model": "sent-instead"' in told
    assert "to target three, " not in explain(folder, "--target", "three")
    assert json.loads(explain(folder, "--json"))["pool"] == "best"
    assert "there is no target or pool 'worst'; there is two, three, best" in explain(folder, "--target", "worst", status=1)
    assert not backend.asked


def test_a_wrong_word_is_told_with_what_there_is(tmp_path: Path) -> None:
    assert "there is claude, own" in run(tmp_path, "--target", "nobody", status=1)
    assert "clients of anthropic send no such request; there is chat," in run(
        tmp_path, "--path", "/v1/messages", "--example", "embeddings", status=1
    )
    assert "--path: no API known here has /v1/nope: --body" in run(tmp_path, "--path", "/v1/nope", status=1)
    assert "cannot read nowhere.json" in run(tmp_path, "--body", "nowhere.json", status=1)


def test_a_cassette_is_explained_as_it_was(tmp_path: Path) -> None:
    file = FOLDER / "openai-to-anthropic-stream.json"
    told = json.loads(run(tmp_path, "--cassette", str(file), "--json", url="http://anthropic.test", status=1))
    assert "there is no target 'anthropic'" in told["error"]
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "config.yaml").write_text(json.dumps(config({"anthropic": "http://x"}, keys=False)))
    program = [sys.executable, "-m", "main", "explain", "--cassette", str(file), "--json"]
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(program, cwd=tmp_path / "here", env=environ, capture_output=True, text=True, timeout=60)
    told = json.loads(done.stdout)
    assert told["upstream"][0]["body"]["model"] == MODELS["anthropic"]
    assert told["reply"]["body"][-1]["choices"][0]["finish_reason"] == "tool_calls"


POOLED = """
targets:
  default: best
  best: {pool: [claude]}
  claude: {url: "https://api.anthropic.com", dialect: anthropic}
limits: {global: 1/hour}
records: {cassettes: {}}
state: redis://127.0.0.1:9
"""


def test_nothing_that_serving_needs_is_opened_or_counted(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(POOLED)
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    program = [sys.executable, "-m", "main", "explain"]
    for _ in range(2):
        done = subprocess.run(program, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "to target claude" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
