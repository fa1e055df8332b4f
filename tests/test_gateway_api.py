"""LLM-Gateway's endpoints: their shapes, one conversation from the first call to its removal, and who sees what."""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Backend, Exchange, Reply, ask
from tests.configs import Load, fault, load
from tests.doubles import aws
from tests.doubles.bedrock import BedrockDouble
from tests.doubles.sagemaker import SageMakerDouble

__all__ = ["load"]  # a fixture
Json = dict[str, Any]
ALICE, BOB = "alice-has-a-long-key", "bobby-has-a-long-key"
CONFIG = """
system: {workers: WORKERS}
records: {calls: {}, gateway_api: GATEWAY}
keys:
  alice: {key: alice-has-a-long-key, tags: [analyst], targets: [llm, sg, br]}
  bob: {key: bobby-has-a-long-key, limits: 60/minute}
targets:
  default: llm
  llm: {url: URL, dialect: openai}
  sg: {url: "URL/sg", dialect: openai}
  br: {url: "URL/br", dialect: openai}
"""
NAMED = "{chat_sg: sg, chat_br: br}"
WORKERS = [1, 3]
IDS = itertools.count()


def llm(exchange: Exchange) -> None:
    """Answers by what its system message asks for."""
    body = exchange.asked.json()
    system = next((each["content"] for each in body["messages"] if each["role"] == "system"), "")
    said = "re: " + str(body["messages"][-1]["content"])
    if "title" in system:
        said = '"A title that is far too long for what the column of the old database can hold"'
    elif "JSON" in system:
        said = 'Here it is: {"chat_summary": "greeting", "satisfaction_score": 0.9, "work_related": false, "else": 1}'
    if "fail" in str(body["messages"][-1]["content"]):
        exchange.reply(429, {"error": {"message": "too many", "type": "t"}}, [("retry-after", "7")])
        return
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    answer = {"id": f"chatcmpl-{next(IDS)}", "object": "chat.completion", "created": 1, "model": body["model"]}
    exchange.reply(200, {**answer, "choices": [choice], "usage": usage})


@pytest.fixture(scope="module")
def one_backend() -> Iterator[Backend]:
    with Backend() as found:
        for prefix in ("/v1", "/sg", "/br"):
            found.on(f"{prefix}/chat/completions", llm)
        images = {"created": 1, "data": [{"url": "https://example.org/otter.png"}]}
        found.on("/v1/images/generations", lambda exchange: exchange.reply(200, images))
        yield found


@pytest.fixture
def backend(one_backend: Backend) -> Backend:
    """It has been asked nothing yet."""
    one_backend.asked.clear()
    one_backend.on("/sg/chat/completions", llm)  # which a test has fail
    return one_backend


@pytest.fixture(scope="module")
def plain(one_backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """One for all whose calls leave nothing."""
    with started(tmp_path_factory.mktemp("plain"), one_backend) as running:
        yield running


def started(folder: Path, backend: Backend, workers: int = 1, gateway: str = "true") -> Proxy:
    text = CONFIG.replace("URL", backend.url).replace("WORKERS", str(workers)).replace("GATEWAY", gateway)
    return Proxy(folder, text)


def call(proxy: Proxy, path: str, body: Json | None = None, key: str | None = ALICE) -> Reply:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return ask(proxy.url, "GET" if body is None else "POST", path, body, headers)


def chat(proxy: Proxy, text: str, key: str = ALICE, **more: Any) -> Json:
    reply = call(proxy, "/chat", {"model": "m", "messages": [{"role": "user", "content": text}], **more}, key)
    assert reply.status == 200, reply
    answer: Json = reply.json()
    return answer


def conversations(proxy: Proxy, count: int, key: str = ALICE) -> list[Json]:
    """What /history_v2 lists, once it is so many."""
    until = time.monotonic() + 10
    while len(found := call(proxy, "/history_v2", key=key).json()["Historical_Conversations"]) != count:
        assert time.monotonic() < until, found
        time.sleep(0.05)
    listed: list[Json] = found
    return listed


@pytest.mark.parametrize("workers", WORKERS)
def test_a_conversation_from_its_first_call_to_its_removal(tmp_path: Path, backend: Backend, workers: int) -> None:
    with started(tmp_path, backend, workers) as proxy:
        first = chat(proxy, "Hello", temperature=0.3)
        assert first["choices"][0]["message"]["content"] == "re: Hello"
        assert uuid.UUID(first["uuid"])
        root = first["id"]
        conversations(proxy, 1)  # it is in the log: each worker writes its own calls, and the first one written gives the title
        chat(proxy, "More", root_id=root, convo_title="ignored, it has one")
        chat(proxy, "Other", convo_title="Named")
        listed = conversations(proxy, 2)
        assert {row["root_gpt_id"] for row in listed} >= {root}
        assert {row["convo_title"] for row in listed} == {"Hello", "Named"}

        assert call(proxy, "/update_title", {"root_id": root, "convo_title": "Mine"}).json() == {
            "message": "Successfully updated the titles!",
            "new_title": "Mine",
        }
        titled = call(proxy, "/update_title_openai", {"root_id": root}).json()
        assert titled["new title"] == titled["new_title"] == "A title that is far too long for what the column"
        assert len(titled["new_title"]) <= 49
        told = call(proxy, "/metadata_check", {"root_id": root}).json()
        assert told["metadata"]["chat_summary"] == "greeting"
        assert told["metadata"]["work_related"] is False
        assert "else" not in told["metadata"]
        listed = conversations(proxy, 2)  # what summed it up is no conversation
        (row,) = [row for row in listed if row["root_gpt_id"] == root]
        assert row["convo_title"] == titled["new_title"]
        assert row["request"]["messages"] == [{"role": "user", "content": "More"}]
        assert row["response"]["choices"][0]["message"]["content"] == "re: More"
        assert row["usage_info"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        assert (row["user_name"], row["title"]) == ("alice", "analyst")
        assert len(call(proxy, "/history").json()["Historical_list"]) == 3

        assert "message" in call(proxy, "/remove_convo", {"root_id": root}).json()
        assert [row["convo_title"] for row in conversations(proxy, 1)] == ["Named"]
        assert len(call(proxy, "/history").json()["Historical_list"]) == 3
    sent = [asked.json() for asked in backend.asked_for("/v1/chat/completions")]
    assert sent[0]["temperature"] == 0.3
    assert not any({"root_id", "convo_title"} & set(body) for body in sent)


@pytest.mark.long
@pytest.mark.parametrize("workers", WORKERS)
def test_checkchat_gives_the_logged_answer(tmp_path: Path, backend: Backend, workers: int) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    with started(tmp_path, backend, workers) as proxy:
        answer = chat(proxy, "Hello")
        for _ in range(3):
            assert call(proxy, "/checkchat", body).json() == answer
        assert call(proxy, "/checkchat", {**body, "temperature": 1}).status == 404
        assert call(proxy, "/checkchat", body, BOB).status == 404
        assert call(proxy, "/checkchat", body, KEY).json() == answer
        assert len(backend.asked_for("/v1/chat/completions")) == 1


def test_a_person_sees_and_changes_only_their_own_key_s_rows(tmp_path: Path, backend: Backend) -> None:
    with started(tmp_path, backend) as proxy:
        root = chat(proxy, "Hello")["id"]
        chat(proxy, "Mine", BOB)
        conversations(proxy, 1)
        assert [row["user_name"] for row in conversations(proxy, 1, BOB)] == ["bob"]
        for path, more in (
            ("/update_title", {"convo_title": "stolen"}),
            ("/update_title_openai", {}),
            ("/metadata_check", {}),
            ("/remove_convo", {}),
        ):
            assert call(proxy, path, {"root_id": root, **more}, BOB).status == 404, path
        chat(proxy, "Intruder", BOB, root_id=root)
        assert [row["convo_title"] for row in conversations(proxy, 1)] == ["Hello"]
        assert len(call(proxy, "/history").json()["Historical_list"]) == 1
        assert len(call(proxy, "/history", key=KEY).json()["Historical_list"]) == 3
        assert call(proxy, "/update_title", {"root_id": root, "convo_title": "By the master"}, KEY).status == 200
        assert conversations(proxy, 1)[0]["convo_title"] == "By the master"


def test_keys_and_limits_hold(tmp_path: Path, backend: Backend) -> None:
    with started(tmp_path, backend) as proxy:
        assert call(proxy, "/history", key=None).status == 401
        assert call(proxy, "/chat", {"model": "m", "messages": []}, None).status == 401
        reply = call(proxy, "/chat", {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}, BOB)
        assert reply["x-ratelimit-remaining-requests"] == "59"
        assert ask(proxy.url, "GET", "/chat", None, proxy.headers).status == 405
        assert ask(proxy.url, "POST", "/history", {}, proxy.headers).status == 405
        assert call(proxy, "/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}).status == 200


def test_another_target_stands_in(tmp_path: Path, backend: Backend) -> None:
    fallback = 'url: "URL/sg", dialect: openai, fallback: br, retries: {attempts: 2, backoff_s: 0.01, "on": [503]}'
    text = CONFIG.replace('url: "URL/sg", dialect: openai', fallback).replace("WORKERS", "1").replace("GATEWAY", NAMED)
    backend.on("/sg/chat/completions", lambda exchange: exchange.reply(503, {"error": {"message": "away"}}))
    with Proxy(tmp_path, text.replace("URL", backend.url)) as proxy:
        reply = call(proxy, "/chat_sg", {"inputs": [{"role": "user", "content": "Hello"}], "parameters": {}})
        assert reply.json()["choices"][0]["message"]["content"] == "re: Hello"
        assert reply["x-mooltiproxy-target"] == "br"
    assert len(backend.asked_for("/sg/chat/completions")) == 2


def test_a_backend_s_error_is_the_client_s(plain: Proxy, backend: Backend) -> None:
    reply = call(plain, "/chat", {"model": "m", "messages": [{"role": "user", "content": "fail"}]})
    assert (reply.status, reply["retry-after"], reply.json()["error"]["message"]) == (429, "7", "too many")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat", {"model": "m"}),
        ("/chat", {"model": "m", "messages": [{"role": "user", "content": "x"}], "root_id": 5}),
        ("/chat", []),
        ("/update_title", {"root_id": "x"}),
        ("/update_title", {"root_id": "x", "convo_title": "x" * 201}),
        ("/remove_convo", {}),
        ("/image_gen", {"prompt": "x", "n": 1, "size": "9x9"}),
        ("/image_gen", {"prompt": "x", "n": 0, "size": "256x256"}),
        ("/image_gen", {"n": 1, "size": "256x256"}),
        ("/image_gen", {"prompt": "x", "n": 1, "size": ["256x256"]}),
        ("/chat_sg", {"inputs": [{"role": "user", "content": "x"}], "parameters": "x"}),
        ("/checkchat", {"model": ["m"], "messages": []}),
        ("/checkchat", {"model": "\ud800", "messages": []}),
        ("/remove_convo", {"root_id": "\ud800"}),
    ],
)
def test_what_cannot_be_is_400(plain: Proxy, backend: Backend, path: str, body: Any) -> None:
    reply = ask(plain.url, "POST", path, json.dumps(body).encode(), {**plain.headers, "content-type": "application/json"})
    assert reply.status == 400, reply
    assert reply.json()["error"]["message"]
    assert not backend.asked


def test_conversations_that_there_are_not_are_404(plain: Proxy, backend: Backend) -> None:
    for path in ("/update_title_openai", "/metadata_check", "/remove_convo"):
        assert call(plain, path, {"root_id": "none"}).status == 404


def test_images_cost_by_their_size(tmp_path: Path, backend: Backend) -> None:
    costs = {"1024x1024": 0.04, "512x512": 0.036, "256x256": 0.032}
    asked = [{"prompt": "An otter", "n": 2, "size": size} for size in costs]
    with started(tmp_path, backend) as proxy:
        for body in asked:
            assert call(proxy, "/image_gen", body).json()["data"][0]["url"].endswith("otter.png")
    assert [sent.json() for sent in backend.asked_for("/v1/images/generations")] == asked
    with sqlite3.connect(tmp_path / "calls.db") as log:
        found = {json.loads(images)["size"]: (cost, json.loads(images)["n"]) for cost, images in log.execute(
            "SELECT cost, images FROM calls"
        )}  # fmt: skip
    assert found == {size: (cost, 2) for size, cost in costs.items()}


def test_the_other_chats_take_their_own_form_and_that_of_chat(tmp_path: Path, backend: Backend) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    with started(tmp_path, backend, gateway=NAMED) as proxy:
        sg = {"inputs": messages, "parameters": {"max_new_tokens": 5, "top_p": 0.9}, "convo_title": "T"}
        br = {"modelId": "ai21.j2", "prompt": "Hello", "maxTokens": 6}
        for path, body in (("/chat_sg", sg), ("/chat_br", br), ("/chat_br", {"model": "x", "messages": messages})):
            answer = call(proxy, path, body).json()
            assert answer["choices"][0]["message"]["content"] == "re: Hello"
            assert uuid.UUID(answer["uuid"])
        assert len({row["root_gpt_id"] for row in call(proxy, "/history").json()["Historical_list"]}) >= 1
    (to_sg,) = [asked.json() for asked in backend.asked_for("/sg/chat/completions")]
    assert to_sg == {"max_tokens": 5, "top_p": 0.9, "model": "sagemaker", "messages": messages}
    to_br = [asked.json() for asked in backend.asked_for("/br/chat/completions")]
    assert to_br[0] == {"max_tokens": 6, "model": "ai21.j2", "messages": messages}


def test_without_a_bedrock_target_there_is_no_chat_br(plain: Proxy) -> None:
    reply = call(plain, "/chat_br", {"modelId": "x", "prompt": "Hello"})
    assert reply.status == 404
    assert "dialect: bedrock" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ("{gateway_api: true}", "records.gateway_api: needs the call log"),
        ("{gateway_api: true, calls: {bodies: false}}", "records.gateway_api: needs the call log"),
        ("{gateway_api: {chat_sg: dmeo}, calls: {}}", "there is no target 'dmeo'; did you mean 'demo'?"),
        ("{gateway_api: maybe}", "records.gateway_api: must be true, false, or a section"),
    ],
)
def test_faults_are_told_at_the_start(load: Load, records: str, message: str) -> None:
    assert message in fault(load, f"records: {records}\ntargets: {{default: demo, demo: {{url: 'demo://'}}}}\n")


def test_a_path_that_is_mapped_too_is_a_fault(load: Load) -> None:
    text = "records: {gateway_api: true, calls: {}}\ntargets: {default: t, t: {url: 'http://x', mapping: {/history: }}}\n"
    assert "is answered by the proxy itself" in fault(load, text)


def test_a_web_page_cannot_use_an_address_that_is_open(tmp_path: Path, backend: Backend) -> None:
    text = CONFIG.replace("URL", backend.url).replace("system: {workers: WORKERS}", "system: {open_to: [127.0.0.1]}")
    with Proxy(tmp_path, text.replace("GATEWAY", "true")) as proxy:
        assert call(proxy, "/history", key=None).status == 200
        assert ask(proxy.url, "GET", "/history", None, {"origin": "https://evil.example"}).status == 403


def test_it_is_off_unless_configured(tmp_path: Path) -> None:
    with Proxy(tmp_path, "targets: {default: demo, demo: {url: 'demo://'}}") as proxy:
        assert call(proxy, "/history", key=KEY).status == 404


def test_the_other_chats_reach_real_dialects(tmp_path: Path) -> None:
    with BedrockDouble() as bedrock, SageMakerDouble() as sagemaker:
        targets = {
            "default": "demo",
            "demo": {"url": "demo://"},
            "b": {"url": bedrock.url, "dialect": "bedrock", "aws": {"region": aws.REGION}},
            "s": {"url": sagemaker.url, "dialect": "sagemaker", "aws": {"region": aws.REGION}, "prompter": "chatml"},
        }
        text = json.dumps({"records": {"calls": {}, "gateway_api": True}, "targets": targets})
        keys = {"AWS_ACCESS_KEY_ID": aws.KEY, "AWS_SECRET_ACCESS_KEY": aws.SECRET}
        with Proxy(tmp_path, text, env=keys) as proxy:
            said = {"modelId": "amazon.nova-lite-v1:0", "prompt": "say hello", "maxTokens": 50}
            answer = call(proxy, "/chat_br", said, KEY).json()
            assert "Hello there" in answer["choices"][0]["message"]["content"]
            said = {"inputs": [{"role": "user", "content": "say hello"}], "parameters": {"max_new_tokens": 50}}
            answer = call(proxy, "/chat_sg", {**said, "model": "tgi"}, KEY).json()
            assert "Hello there" in answer["choices"][0]["message"]["content"]
            assert len(call(proxy, "/history", key=KEY).json()["Historical_list"]) == 2
