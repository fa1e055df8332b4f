"""A key for each person: what it opens, what it does not, and that it never leaves for a backend."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.config import Cerbere, Key
from proxy.errors import Refused
from proxy.gates.cerbere import Gate
from proxy.gates.keys import ALL_HEADERS, KEY_HEADERS
from proxy.gates.people import People
from tests.backends.proxy import CHECKOUT, KEY, Proxy
from tests.backends.sockets import Backend, Exchange, ask
from tests.configs import Load, fault
from tests.configs import load as load

ALICE, BOB, OLD = "alice-key-0123456789", "bob-key-0123456789", "old-key-0123456789"
MODELS = {"object": "list", "data": [{"id": "gpt-4o"}, {"id": "gpt-4o-mini"}, {"id": "other"}]}
CONFIG = """
system: {{open_to: []}}
cerbere: {{max_tries: 1000}}
targets:
  default: main
  main: {{url: "{url}", dialect: openai, envkey: SECRET}}
  own: {{url: "{url}/own", route: /own, auth: passthrough}}
  gemini: {{url: "{url}/gemini", dialect: gemini}}
  azure: {{url: "{url}", route: /azure}}
keys:
  alice: {{sha256: "{alice}", targets: [main, azure, gemini], models: ["gpt-4o*", g-*]}}
  bob: {{envkey: BOB_KEY, tags: [blue]}}
  old: {{key: {old}, expires: 2020-01-01}}
"""


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Backend]]:
    with Backend() as backend:
        backend.on("/v1/models", lambda exchange: exchange.reply(200, MODELS))
        config = CONFIG.format(url=backend.url, alice=sha(ALICE), old=OLD)
        folder = tmp_path_factory.mktemp("people")
        with Proxy(folder, config, env={"SECRET": "s" * 20, "BOB_KEY": BOB}) as proxy:
            yield proxy, backend


def chat(model: Any = "gpt-4o", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **more}


def asked_of(running: tuple[Proxy, Backend], path: str, body: Any, headers: dict[str, str]) -> tuple[int, Any]:
    """Status and body; a refusal reached no backend."""
    proxy, backend = running
    sent = len(backend.asked)
    reply = ask(proxy.url, "GET" if body is None else "POST", path, body, headers)
    assert (len(backend.asked) > sent) == (reply.status == 200)
    return reply.status, reply.json()


# --- who it is


@pytest.mark.parametrize("name", [*KEY_HEADERS, "x-mooltiproxy-key"])
def test_a_persons_key_opens_in_every_header(running: tuple[Proxy, Backend], name: str) -> None:
    status, _ = asked_of(running, "/v1/chat/completions", chat(), {name: ALICE})
    assert status == 200


def test_the_log_has_the_name_and_never_the_key(running: tuple[Proxy, Backend]) -> None:
    proxy, _ = running
    for key in (ALICE, BOB, OLD, KEY):
        ask(proxy.url, "POST", "/v1/chat/completions", chat(), bearer(key))
    for name in ("alice → main", "bob → main", "master → main"):
        proxy.wait_for_log(name)
    assert not [key for key in (ALICE, BOB, OLD, KEY, sha(ALICE)) if key in proxy.log + proxy.banner]


def test_several_headers_must_all_hold_the_same_right_key(running: tuple[Proxy, Backend]) -> None:
    for second, wanted in ((ALICE, 200), (BOB, 401), (KEY, 401), ("x", 401)):
        status, _ = asked_of(running, "/v1/chat/completions", chat(), bearer(ALICE, **{"x-api-key": second}))
        assert status == wanted, second


def test_an_expired_key_says_so(running: tuple[Proxy, Backend]) -> None:
    status, body = asked_of(running, "/v1/messages", chat(), {"x-api-key": OLD})
    assert (status, body["error"]["type"]) == (401, "authentication_error")
    assert "the key 'old' expired on 2020-01-01 00:00 UTC" in body["error"]["message"]


def test_an_expired_key_is_no_reason_for_a_ban_and_a_wrong_one_is() -> None:
    keys = {"old": Key("old", hashlib.sha256(OLD.encode()).digest(), expires=100.0)}
    gate = Gate(Cerbere(max_tries=2))
    people = People(KEY, (), gate, keys, clock=lambda: 100.0)
    for _ in range(5):
        with pytest.raises(Refused) as caught:
            people.admit({"x-api-key": OLD}, "9.9.9.9")
        assert (caught.value.status, caught.value.code) == (401, "key_expired")
    gate.admit("9.9.9.9")
    for _ in range(2):
        with pytest.raises(Refused):
            people.admit({"x-api-key": "wrong"}, "9.9.9.9")
    with pytest.raises(Refused, match="banned"):
        gate.admit("9.9.9.9")
    assert People(KEY, (), gate, keys, clock=lambda: 99.9).admit({"x-api-key": OLD}, "8.8.8.8") == "old"


# --- what it may use


REFUSED = [
    ("/v1/chat/completions", chat("gpt-5"), {}, "the model 'gpt-5'"),
    ("/v1/chat/completions", b'{"model":"\\u0067pt-5"}', {}, "the model 'gpt-5'"),
    ("/v1/chat/completions", chat(models=["gpt-4o", "gpt-5"]), {}, "the model 'gpt-5'"),
    ("/v1/chat/completions", {**chat(), "Model": "gpt-5"}, {}, "the model 'gpt-5'"),  # what is written in Go takes either
    ("/v1/chat/completions", chat(7), {}, "names no model"),
    ("/v1/chat/completions", chat({}), {}, "names no model"),
    ("/v1/chat/completions", [], {}, "names no model"),
    ("/v1/chat/completions", chat(), {"content-type": "text/plain"}, "names no model"),
    ("/v1/files", b"x", {"content-type": "multipart/form-data; boundary=x"}, "names no model"),
    ("/v1/files", None, {}, "names no model"),
    ("/v1/models/gpt-5", None, {}, "the model 'gpt-5'"),
    ("/v1/messages/batches", {"model": "gpt-4o", "requests": [{"params": {"model": "gpt-5"}}]}, {}, "the model 'gpt-5'"),
    ("/v1beta/models/x:generateContent", {"model": "g-1", "contents": []}, {}, "the model 'x'"),
    ("/v1beta/models/g-1:generateContent", {"model": "models/x", "contents": []}, {}, "the model 'x'"),
    ("/v1beta/models/g-1:batchEmbedContents", {"requests": [{"model": "models/g-1"}, {"model": "x"}]}, {}, "the model 'x'"),
    ("/azure/openai/deployments/gpt-5/chat/completions", chat(), {}, "the model 'gpt-5'"),
    ("/azure/openai/deployments/gpt%2D5/chat/completions", chat(), {}, "the model 'gpt-5'"),
    ("/azure/openai/%64eployments/gpt-5/chat/completions", chat(), {}, "the model 'gpt-5'"),
    ("/azure/openai/%2564eployments/gpt-5/chat/completions", chat(), {}, "the model 'gpt-5'"),
    ("/azure/openai%2Fdeployments%2Fgpt-5/chat/completions", chat(), {}, "the model 'gpt-5'"),
    ("/azure/openai/Deployments/gpt-5/chat/completions", chat(), {}, "the model 'gpt-5'"),
    ("/azure/model/gpt-5/converse", chat(), {}, "the model 'gpt-5'"),
    ("/v1/chat/completions", chat(), {"target": "own"}, "the target 'own'"),
    ("/own/v1/chat/completions", chat(), {}, "the target 'own'"),
]


@pytest.mark.parametrize(("path", "body", "headers", "said"), REFUSED)
def test_what_a_key_may_not_use_is_a_403_that_names_it(
    running: tuple[Proxy, Backend], path: str, body: Any, headers: dict[str, str], said: str
) -> None:
    status, answer = asked_of(running, path, body, bearer(ALICE, **headers))
    assert status == 403
    assert f"the key 'alice' may not use {said}" in json.dumps(answer) or f"may not use what {said}" in json.dumps(answer)


SHAPES = [
    ("/v1/chat/completions", lambda body: body["error"]["code"] == "model_not_allowed"),
    ("/v1/responses", lambda body: body["error"]["code"] == "model_not_allowed"),
    ("/v1/messages", lambda body: (body["type"], body["error"]["type"]) == ("error", "permission_error")),
    ("/v1beta/models/x:generateContent", lambda body: body["error"]["status"] == "PERMISSION_DENIED"),
    ("/api/chat", lambda body: isinstance(body["error"], str)),
    ("/generate", lambda body: isinstance(body["error"], str)),
]


@pytest.mark.parametrize(("path", "is_right"), SHAPES)
def test_a_refusal_has_the_shape_of_the_clients_api(running: tuple[Proxy, Backend], path: str, is_right: Any) -> None:
    status, body = asked_of(running, path, {"model": "x", "inputs": "x"}, bearer(ALICE))
    assert status == 403
    assert is_right(body), body


def test_what_it_may_use_passes(running: tuple[Proxy, Backend]) -> None:
    for path, body in (
        ("/v1/chat/completions", chat("gpt-4o-mini")),
        ("/azure/openai/deployments/gpt-4o/chat/completions", chat()),
        ("/v1/models/gpt-4o", None),
    ):
        assert asked_of(running, path, body, bearer(ALICE))[0] == 200, path
    assert asked_of(running, "/own/v1/files", None, bearer(BOB))[0] == 200


def test_a_list_of_models_shows_those_that_the_key_may_use(running: tuple[Proxy, Backend]) -> None:
    proxy, _ = running
    for path, headers in (("/v1/models", bearer(ALICE)), ("/v1/models", {"x-api-key": ALICE})):
        reply = ask(proxy.url, "GET", path, headers=headers)
        assert [item["id"] for item in reply.json()["data"]] == ["gpt-4o", "gpt-4o-mini"], reply.body
    assert len(ask(proxy.url, "GET", "/v1/models", headers=bearer(BOB)).json()["data"]) == 3


def test_a_long_list_of_models_is_shortened_too(running: tuple[Proxy, Backend]) -> None:
    proxy, backend = running

    def pieces(exchange: Exchange) -> None:
        exchange.start("application/json")
        for piece in (b'{"data":[{"id":"gpt-', b'4o"},{"id":"oth', b'er"}]}'):
            exchange.chunk(piece)
        exchange.end()

    backend.on("/azure-list/v1/models", pieces)
    backend.on("/v1/models", pieces)
    try:
        assert ask(proxy.url, "GET", "/v1/models", headers=bearer(ALICE)).json() == {"data": [{"id": "gpt-4o"}]}
    finally:
        backend.on("/v1/models", lambda exchange: exchange.reply(200, MODELS))


# --- it stays here


def test_no_key_of_a_person_leaves_for_a_backend(running: tuple[Proxy, Backend]) -> None:
    proxy, backend = running
    headers = dict.fromkeys(ALL_HEADERS - {"authorization"}, BOB) | bearer(BOB)
    headers |= {"x-other": f"key={BOB}", "x-quoted": "".join(f"%{ord(c):02x}" for c in BOB), "x-kept": "1"}
    for path in (f"/v1/chat/completions?key={BOB}&a=1", f"/own/x?key={BOB}&a=1", f"/azure/x?a=1&k=b%6Fb{BOB[3:]}"):
        assert ask(proxy.url, "POST", path, chat(), headers).status == 200
        asked = backend.asked[-1]
        assert BOB not in asked.path + json.dumps(asked.fields)
        assert "a=1" in asked.path
        assert asked["x-kept"] == "1"
        assert asked["x-quoted"] is None


def test_passthrough_sends_the_clients_own_key_and_nobody_elses(running: tuple[Proxy, Backend]) -> None:
    proxy, backend = running
    headers = {"x-mooltiproxy-key": BOB, "authorization": "Bearer sk-own"}
    assert ask(proxy.url, "POST", "/own/x", b"", headers).status == 200
    assert backend.asked[-1]["authorization"] == "Bearer sk-own"
    for other in (ALICE, OLD, KEY):
        ask(proxy.url, "POST", "/own/x", b"", {**headers, "authorization": f"Bearer {other}"})
        assert backend.asked[-1]["authorization"] is None


# --- python -m main key new


def made(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "main", "key", "new", *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=60
    )


def test_a_new_key_is_printed_once_with_the_line_to_paste() -> None:
    done = made("alice", "--models", "gpt-4o", "claude-*")
    assert done.returncode == 0
    key = re.search(r"^mp-[\w-]{43}$", done.stdout, re.M)
    assert key
    section = yaml.safe_load(done.stdout[done.stdout.index('  "alice"') :])
    assert section == {"alice": {"sha256": sha(key[0]), "models": ["gpt-4o", "claude-*"]}}


@pytest.mark.parametrize("name", ["", "a b", "a/b", "master", "open", "é", "x" * 65, "-"])
def test_a_bad_name_makes_no_key(name: str) -> None:
    done = made(*([name] if name else []))
    assert done.returncode != 0
    assert not done.stdout
    assert "key new" in done.stderr


# --- the configuration

PLAIN = 'targets:\n  default: a\n  a: {url: "demo://"}\nprices: {x: {input: 1, output: 1}}\n'
FAULTS = [
    ("keys: {bob: {}}", "keys.bob: needs its key: one of sha256, envkey and key"),
    (f"keys: {{bob: {{key: {ALICE}, sha256: '{'0' * 64}'}}}}", "keys.bob: has its key more than once"),
    ("keys: {bob: {sha256: abc}}", "keys.bob.sha256: must be the SHA-256 of a key"),
    ("keys: {bob: {key: short}}", "keys.bob.key: is shorter than 16 characters"),
    ("keys: {bob: {envkey: NOT_SET}}", "the environment variable NOT_SET is not set"),
    (f"keys: {{master: {{key: {ALICE}}}}}", "keys.master: is what logs call the master key"),
    (f"keys: {{'b b': {{key: {ALICE}}}}}", "must be a name: letters, digits"),
    (f"keys: {{bob: {{key: {ALICE}, targets: [aa]}}}}", "there is no target 'aa'; did you mean 'a'?"),
    (f"keys: {{bob: {{key: {ALICE}, expires: soon}}}}", "keys.bob.expires: must be a date such as"),
    (f"keys: {{bob: {{key: {ALICE}, budget: {{usd: 1, per: moth}}}}}}", "must be hour, day, week, month, year or total"),
    (f"keys: {{bob: {{key: {ALICE}, budjet: 1}}}}", "keys.bob.budjet: is not known here; did you mean 'budget'?"),
    (f"keys: {{bob: {{key: {ALICE}}}, eve: {{key: {ALICE}}}}}", "keys.eve: is the same key as that of 'bob'"),
    (f"keys: {{bob: {{key: {'k' * 32}}}}}", "keys.bob: is the same key as the master key"),
]


@pytest.mark.parametrize(("text", "said"), FAULTS)
def test_a_fault_in_keys_is_told(load: Load, text: str, said: str) -> None:
    found = fault(load, PLAIN + text)
    assert found.startswith("config.yaml:5: ")
    assert said in found
    assert ALICE not in found


def test_a_budget_needs_prices(load: Load, tmp_path: Path) -> None:
    text = PLAIN.replace("prices: {x: {input: 1, output: 1}}\n", "")
    assert "needs `prices`" in fault(load, text + f"keys: {{bob: {{key: {ALICE}, budget: {{usd: 1, per: day}}}}}}")
