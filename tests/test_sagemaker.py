"""SageMaker's endpoints: TGI's mappers behind AWS's signature and framing, errors of both, containers of another kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
import requests
from google import genai
from google.genai import types as genai_types
from huggingface_hub import InferenceClient

from proxy.dialects import load, mapper, tgi
from proxy.dialects import openai as hub
from proxy.dialects.sagemaker import chatReqOpenAItoSageMaker, parse_error, textReqOpenAItoSageMaker
from tests.backends.proxy import KEY as PROXY_KEY
from tests.backends.proxy import Proxy
from tests.configs import Load, fault, with_target
from tests.configs import load as load_config
from tests.doubles.aws import KEY, SECRET
from tests.doubles.sagemaker import SageMakerDouble
from tests.laws import unchanged

__all__ = ["load_config"]

Json = dict[str, Any]
HELLO = "Hello there, friend!"
ASKED = {"model": "tgi", "messages": [{"role": "user", "content": "say hello"}]}
OWN_MAPPERS = """
def chatReqOpenAItoLines(ip, cfg={}):
    return {"question": ip["messages"][-1]["content"]}


def chatAnsLinestoOpenAI(ip, cfg={}):
    message = {"role": "assistant", "content": ip["said"]}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def chatStreamLinestoOpenAI(events, cfg={}):
    head = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    for event in events:
        yield {**head, "choices": [{"index": 0, "delta": {"content": event["said"]}, "finish_reason": None}]}
    yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
"""


def test_a_request_is_tgis_and_says_whether_it_streams() -> None:
    body = unchanged(chatReqOpenAItoSageMaker, ASKED)
    assert body == tgi.chatReqOpenAItoTGI(ASKED)
    assert chatReqOpenAItoSageMaker({**ASKED, "stream": True})["stream"] is True
    assert textReqOpenAItoSageMaker({"prompt": "x", "stream": True})["stream"] is True
    assert "stream" not in textReqOpenAItoSageMaker({"prompt": "x"})


def test_every_function_of_the_dialect_can_be_found_by_name() -> None:
    for kind in ("chat", "text"):
        assert callable(mapper(f"{kind}ReqOpenAItoSageMaker"))
        for part in ("Ans", "Stream"):
            assert mapper(f"{kind}{part}SageMakertoOpenAI") is getattr(tgi, f"{kind}{part}TGItoOpenAI")
    assert load("sagemaker").aws == "sagemaker"


TOO_LONG = {"error": "Input validation error: too long", "error_type": "validation"}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (424, {"Message": "m", "OriginalStatusCode": 422, "OriginalMessage": json.dumps(TOO_LONG)}, (422, TOO_LONG["error"])),
        (424, {"Message": "m", "OriginalStatusCode": 500, "OriginalMessage": "Traceback"}, (500, "Traceback")),
        (424, {"Message": "m", "OriginalStatusCode": 200, "OriginalMessage": "x"}, (502, "m")),
        (424, {"Message": "m", "OriginalStatusCode": "x"}, (502, "m")),
        (400, {"Message": "Endpoint x not found."}, (400, "Endpoint x not found.")),
        (429, {"Message": "not ready"}, (429, "not ready")),
        (530, {"Message": "dependency"}, (530, "dependency")),
        (502, {"__type": "InternalStreamFailure", "Message": "failed"}, (502, "failed")),
        (502, {"Message": "slow", "ErrorCode": "ModelInvocationTimeExceeded"}, (504, "slow")),
        (502, {"Message": "broken", "ErrorCode": "StreamBroken"}, (502, "broken")),
        (500, None, (500, "the backend answered 500")),
        (500, "text", (500, "text")),
    ],
)
def test_errors_of_the_container_and_of_awss_are_read(status: int, body: Any, expected: tuple[int, str]) -> None:
    error = parse_error(status, body)
    assert (error.status, error.message) == expected


def test_a_key_has_no_use_there(load_config: Load) -> None:
    lines = "url: https://runtime.sagemaker.us-east-1.amazonaws.com\ndialect: sagemaker\nkey: abcdefghij"
    assert "SageMaker takes signed requests alone: remove the key" in fault(load_config, with_target(lines))


# --- real clients, a real proxy, the double


@pytest.fixture(scope="module")
def double() -> Iterator[SageMakerDouble]:
    with SageMakerDouble() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(double: SageMakerDouble, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    plain = {"url": double.url, "dialect": "sagemaker", "aws": {"region": "us-east-1"}}
    own = {
        "path": "/endpoints/lines/invocations",
        "stream_path": "/endpoints/lines/invocations-response-stream",
        "in": "chatReqOpenAItoLines",
        "out": "chatAnsLinestoOpenAI",
        "stream": "chatStreamLinestoOpenAI",
    }
    targets = {
        "default": "tgi",
        "tgi": {**plain, "model": "tgi"},
        "nameless": {**plain, "route": "/nameless"},
        "lines": {**plain, "route": "/lines", "mapping": {"/chat/completions": own}},
    }
    env = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    folder = tmp_path_factory.mktemp("sagemaker")
    with Proxy(folder, json.dumps({"targets": targets}), env=env, files={"mappers.py": OWN_MAPPERS}) as running:
        yield running


def openai_client(proxy: Proxy, below: str = "/v1") -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.url + below, api_key=PROXY_KEY, max_retries=0)


def chat(proxy: Proxy, words: str, below: str = "/v1", **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": words}]
    return openai_client(proxy, below).chat.completions.create(model="gpt-x", messages=messages, **more)


def said_in(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_openais_client_gets_text_and_usage(proxy: Proxy, double: SageMakerDouble) -> None:
    whole = chat(proxy, "say hello")
    assert whole.choices[0].message.content.strip() == HELLO
    assert whole.usage.prompt_tokens > 0
    assert double.requests[-1][1] == "/endpoints/tgi/invocations"
    assert said_in(chat(proxy, "say hello", stream=True)).strip() == HELLO
    assert double.requests[-1][1] == "/endpoints/tgi/invocations-response-stream"
    assert double.signers[-2:] == [KEY, KEY]
    completion = openai_client(proxy).completions.create(model="x", prompt="say hello")
    assert completion.choices[0].text.strip() == HELLO


def test_other_apis_clients_get_text_too(proxy: Proxy) -> None:
    messages: Any = [{"role": "user", "content": "say hello"}]
    claude = anthropic.Anthropic(base_url=proxy.url, api_key=PROXY_KEY, max_retries=0)
    with claude.messages.stream(model="x", max_tokens=50, messages=messages) as stream:
        assert stream.get_final_text().strip() == HELLO
    gemini = genai.Client(api_key=PROXY_KEY, http_options=genai_types.HttpOptions(base_url=proxy.url))
    assert (gemini.models.generate_content(model="x", contents="say hello").text or "").strip() == HELLO
    face = InferenceClient(model=proxy.url, token=PROXY_KEY)
    assert face.text_generation("say hello").strip() == HELLO
    assert "".join(face.text_generation("say hello", stream=True)).strip() == HELLO


def test_the_containers_errors_reach_the_client_as_its_own(proxy: Proxy) -> None:
    with pytest.raises(openai.RateLimitError, match="Model is overloaded"):
        chat(proxy, "fail 429")
    with pytest.raises(openai.UnprocessableEntityError, match="less than 8 tokens"):
        chat(proxy, "fail 422")
    with pytest.raises(openai.BadRequestError, match="takes no tools"):
        chat(proxy, "x", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])


@pytest.mark.parametrize(("words", "status"), [("fail stream", 502), ("time out", None), ("cut stream", None)])
def test_a_stream_that_fails_is_a_status_before_its_first_event_and_an_error_behind_it(
    proxy: Proxy, words: str, status: int | None
) -> None:
    with pytest.raises(openai.APIError) as caught:
        list(chat(proxy, words, stream=True))
    assert getattr(caught.value, "status_code", None) == status


def test_a_request_that_names_no_endpoint_says_so(proxy: Proxy) -> None:
    reply = requests.post(proxy.url + "/nameless/generate", json={"inputs": "hi"}, headers=proxy.headers, timeout=20)
    assert (reply.status_code, "names no model" in reply.text) == (422, True)


def test_a_container_of_another_kind_has_mappers_of_ones_own(proxy: Proxy) -> None:
    assert chat(proxy, "count", "/lines/v1").choices[0].message.content == "one two three"
    chunks = list(chat(proxy, "count", "/lines/v1", stream=True))
    assert [said_in([chunk]) for chunk in chunks] == ["one ", "two ", "three", ""]
    assert hub.fold(chunk.model_dump() for chunk in chunks)["choices"][0]["finish_reason"] == "stop"
