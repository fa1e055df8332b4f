"""A cassette of one call, from the console: its bodies as they went, what is refused, and that `replay` takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Backend, Reply, ask
from tests.test_cassettes import MAPPERS, answer, chat, run, stream
from tests.test_console import ANN, BOB, bearer, eventually

pytestmark = pytest.mark.long

Json = dict[str, Any]
CONFIG = """
targets:
  default: ask
  ask:
    url: {url}
    key: upstream-secret
    mapping:
      /chat/completions:
        {{path: /ask, in: chatReqOpenAItoAsk, out: chatAnsAsktoOpenAI, stream: chatStreamAsktoOpenAI, stream_path: /stream}}
      /plain:
  toy: {{url: "demo://"}}
  other: {{url: "demo://"}}
  llama: {{url: "{url}", dialect: llamacpp}}
keys:
  ann: {{key: {ann}, console: true}}
  bob: {{key: {bob}, console: true}}
records:
  calls: {{body_limit: 64KiB, bodies: {bodies}}}
  cassettes: {{targets: [other], folder: kept, redact: ['[a-z]+@example\\.org']}}
console: {{enabled: true}}
"""


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend() as found:
        found.on("/ask", answer)
        found.on("/stream", stream)
        found.on("/plain", lambda exchange: exchange.reply(200, {"plain": True}))
        found.on("/apply-template", lambda exchange: exchange.reply(200, {"prompt": "hi"}))
        found.on("/completion", lambda exchange: exchange.reply(200, {"content": "Because.", "stop": True}))
        yield found


def serve(folder: Path, backend: Backend, bodies: str = "true") -> Proxy:
    config = CONFIG.format(url=backend.url, ann=ANN, bob=BOB, bodies=bodies)
    return Proxy(folder, config, files={"mappers.py": MAPPERS})


@pytest.fixture
def proxy(tmp_path: Path, backend: Backend) -> Iterator[Proxy]:
    with serve(tmp_path, backend) as running:
        yield running


def call(proxy: Proxy, body: Json, path: str = "/v1/chat/completions", key: str = ANN, **headers: str) -> Reply:
    """A call that is in the log by now."""
    reply = ask(proxy.url, "POST", path, body, {**bearer(key), **headers})
    page = f"/console/api/call?id={reply['x-request-id']}"
    eventually(lambda: ask(proxy.url, "GET", page, headers=bearer(KEY)).status == 200)
    return reply


def keep(proxy: Proxy, id: str | None, key: str = ANN) -> Reply:
    return ask(proxy.url, "POST", "/console/api/keep", {"id": id}, bearer(key))


def why_not(proxy: Proxy, id: str | None, key: str = ANN) -> str:
    reply = keep(proxy, id, key)
    assert reply.status == 409, reply.body
    assert reply.json()["error"]["code"] == "no_cassette"
    return str(reply.json()["error"]["message"])


def text_of(body: Json) -> bytes:
    return str(body["text"]).encode()


@pytest.mark.parametrize(
    ("body", "status"),
    [(chat("Why?"), 200), (chat("Why?", stream=True), 200), (chat("Fail?"), 429)],
    ids=["whole", "stream", "error"],
)
def test_the_four_bodies_are_kept_byte_for_byte_and_replay_takes_them(
    proxy: Proxy, backend: Backend, body: Json, status: int
) -> None:
    reply = call(proxy, body)
    asked, before = backend.asked[-1], len(backend.asked)
    kept = keep(proxy, reply["x-request-id"])
    file = f"kept/{reply['x-request-id']}.json"
    assert (kept.status, kept.json()) == (200, {"file": file, "changed": []})
    assert len(backend.asked) == before  # nobody is asked once more
    cassette = json.loads((proxy.folder / file).read_text())
    (met,) = cassette["backend"]
    assert json.loads(text_of(cassette["client"]["body"])) == body
    assert (text_of(met["body"]), met["url"]) == (asked.body, f"{backend.url}{asked.path}")
    assert (met["headers"]["authorization"], met["status"]) == ("***", status)
    assert (cassette["reply"]["status"], text_of(cassette["reply"]["body"])) == (status, reply.body)
    assert (proxy.folder / file).stat().st_mode & 0o077 == 0
    assert "1 cassette: 1 as recorded" in run(proxy.folder, "replay", "kept")
    assert keep(proxy, reply["x-request-id"]).json() == kept.json()  # once more is the same file


def test_calls_of_another_api_are_kept_too(proxy: Proxy) -> None:
    """Streams of each framing: of Gemini's two, the log does not say which was asked for."""
    gemini: Json = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
    path = "/v1beta/models/demo:streamGenerateContent"
    anthropic = {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    ollama = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
    calls = [(path, gemini), (f"{path}?alt=sse", gemini), ("/v1/messages", anthropic), ("/api/chat", ollama)]
    for where, body in calls:
        reply = call(proxy, body, where, target="toy")
        kept = keep(proxy, reply["x-request-id"])
        assert (kept.status, kept.json().get("changed")) == (200, []), kept.body
    assert "4 as recorded" in run(proxy.folder, "replay", "kept")


def test_secrets_and_patterns_are_taken_out(proxy: Proxy) -> None:
    reply = call(proxy, chat("I am ann@example.org, my key is upstream-secret"))
    file = keep(proxy, reply["x-request-id"]).json()["file"]
    text = (proxy.folder / file).read_text()
    assert "I am ***, my key is ***" in text
    assert not [secret for secret in ("ann@", "upstream-secret", ANN) if secret in text]
    assert "1 as recorded" in run(proxy.folder, "replay", "kept")


def test_what_the_log_does_not_hold_is_told(proxy: Proxy) -> None:
    long = call(proxy, chat("x" * 70_000))["x-request-id"]
    assert "what the client sent is not whole in the call log: " in why_not(proxy, long)
    plain = call(proxy, {"a": 1}, "/plain")["x-request-id"]
    assert "no mapper stands between" in why_not(proxy, plain)
    unanswered = call(proxy, {"model": "m"}, target="ask")["x-request-id"]  # its mapper fails
    assert "no backend answered it" in why_not(proxy, unanswered)
    twice = call(proxy, chat("Why?"), target="llama")["x-request-id"]
    assert "asked twice" in why_not(proxy, twice)
    assert keep(proxy, "0" * 28).status == 404
    assert keep(proxy, None).status == 404
    assert not list(proxy.folder.glob("kept/*"))


def test_without_bodies_there_is_none(tmp_path: Path, backend: Backend) -> None:
    with serve(tmp_path, backend, "false") as proxy:
        assert "its bodies were not kept" in why_not(proxy, call(proxy, chat("Why?"))["x-request-id"])


def test_a_person_keeps_own_calls_and_none_that_would_hinder_a_reload(proxy: Proxy) -> None:
    reply = call(proxy, chat("Why?"))
    assert keep(proxy, reply["x-request-id"], BOB).status == 404
    (proxy.folder / "mappers.py").write_text(MAPPERS.replace('"question": ', '"query": '))
    assert ask(proxy.url, "POST", "/mooltiproxy/reload", headers=bearer(KEY)).status == 200
    assert '$.question: "Why?" → nothing' in why_not(proxy, reply["x-request-id"])
    kept = keep(proxy, reply["x-request-id"], KEY)
    assert (kept.status, kept.json()["changed"][0]) == (200, 'upstream $.question: "Why?" → nothing')
    assert "1 changed" in run(proxy.folder, "replay", "kept", status=1)
