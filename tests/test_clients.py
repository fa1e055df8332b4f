"""Real clients through the proxy: openai's SDK, new and old, and curl; in front of the demo, of doubles and of llama.cpp."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.backends import sdks
from tests.backends.llama_server import LlamaServer, llama_server  # noqa: F401 (a fixture)
from tests.backends.parts import needs
from tests.backends.proxy import CHECKOUT, KEY, Proxy
from tests.backends.sockets import Backend, Exchange, ask
from tests.doubles.openai import OpenAIDouble
from tests.doubles.tgi import TGIDouble

HELLO = [{"role": "user", "content": "say hello"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
# As the ancestor's users have it: its mapping, its names of mappers, prompters and templates.
CONFIG = """
system:
  timeout: 30
cerbere:
  whitelist: [127.0.0.1]
targets:
  default: demo
  demo:
    url: demo://
    dialect: openai
  openai:
    url: {openai}
    envkey: OPENAI_KEY
    dialect: openai
  llama:
    url: {llama}
    dialect: openai
  llama-native:
    url: {llama}
    dialect: llamacpp
  falcon:
    url: {tgi}
    envkey: TGI_KEY
    mapping:
      /info:
      /v1/models: /info
      /v1/completions:
        path: /generate
        in: textReqOpenAItoTGI
        out: textAnsTGItoOpenAI
      /v1/chat/completions:
        path: /generate
        in: chatReqOpenAItoTGI
        out: chatAnsTGItoOpenAI
        prompter: fromTemplate
        template: FalconInstruct
  llama2:
    url: {tgi}
    mapping:
      /chat/completions:
        path: /generate
        in: chatReqOpenAItoTGI
        out: chatAnsTGItoOpenAI
        stream: chatStreamTGItoOpenAI
        stream_path: /generate_stream
        prompter: llama2_chat
      /completions:
        path: /generate
        in: textReqOpenAItoTGI
        out: textAnsTGItoOpenAI
        stream: textStreamTGItoOpenAI
        stream_path: /generate_stream
templates:
  FalconInstruct:
    user: ">>>QUESTION<<<"
    assistant: ">>>ANSWER<<<"
"""


@pytest.fixture(scope="module")
def double() -> Iterator[OpenAIDouble]:
    with OpenAIDouble() as double:
        yield double


@pytest.fixture(scope="module")
def tgi() -> Iterator[TGIDouble]:
    with TGIDouble() as tgi:
        yield tgi


@pytest.fixture(scope="module")
def proxy(
    double: OpenAIDouble,
    tgi: TGIDouble,
    llama_server: LlamaServer,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    config = CONFIG.format(openai=double.url, tgi=tgi.url, llama=llama_server.url)
    env = {"OPENAI_KEY": "sk-upstream", "TGI_KEY": "tgi-key"}
    with Proxy(tmp_path_factory.mktemp("clients"), config, env=env) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def sdk(proxy: Proxy) -> Iterator[Any]:
    """Makes a client of a target, as people do it: `default_headers`."""
    made: list[openai.OpenAI] = []

    def client(target: str) -> openai.OpenAI:
        made.append(
            openai.OpenAI(
                api_key=KEY, base_url=proxy.url + "/v1", default_headers={"target": target}, max_retries=0, timeout=20
            )
        )
        return made[-1]

    yield client
    for each in made:
        each.close()


BACKENDS = {"demo": "demo", "openai": "gpt-4.1", "llama": "tiny", "llama-native": "tiny"}  # target → model


@pytest.fixture(params=BACKENDS)
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestNewestOpenAI:
    def test_chat(self, sdk, target):
        answer = sdk(target).chat.completions.create(model=BACKENDS[target], messages=HELLO, max_tokens=20)
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
        assert answer.model == BACKENDS[target]

    def test_a_stream_says_what_the_whole_answer_says(self, sdk, target):
        asked = {"model": BACKENDS[target], "messages": HELLO, "max_tokens": 20, "temperature": 0}
        client = sdk(target)
        whole = client.chat.completions.create(**asked).choices[0]
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        choices = [choice for chunk in chunks for choice in chunk.choices]
        assert "".join(choice.delta.content or "" for choice in choices) == whole.message.content
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == [whole.finish_reason]
        assert chunks[-1].usage.total_tokens > 0

    def test_models(self, sdk, target):
        listed = [model.id for model in sdk(target).models.list()]
        assert BACKENDS[target] in listed
        if target != "llama":  # llama.cpp has no page for one model
            assert sdk(target).models.retrieve(BACKENDS[target]).id == BACKENDS[target]

    @pytest.mark.parametrize("target", ["demo", "openai"])
    @pytest.mark.parametrize("stream", [False, True])
    def test_tools(self, sdk, target, stream):
        messages = [{"role": "user", "content": "call tool get_weather"}]
        asked = {"model": BACKENDS[target], "messages": messages, "tools": TOOLS}
        if stream:
            with sdk(target).chat.completions.stream(**asked) as events:
                choice = events.get_final_completion().choices[0]
        else:
            choice = sdk(target).chat.completions.create(**asked).choices[0]
        assert choice.finish_reason == "tool_calls"
        call = choice.message.tool_calls[0]
        assert call.function.name == "get_weather"
        assert isinstance(json.loads(call.function.arguments), dict)

    @pytest.mark.parametrize("more", [{}, {"encoding_format": "float"}], ids=["base64 by default", "float"])
    def test_embeddings(self, sdk, target, more):
        model = "text-embedding-3-small" if target == "openai" else BACKENDS[target]
        answer = sdk(target).embeddings.create(model=model, input=["hello", "world"], **more)
        assert [item.index for item in answer.data] == [0, 1]
        assert all(isinstance(value, float) for item in answer.data for value in item.embedding)
        assert len(answer.data[0].embedding) == len(answer.data[1].embedding) > 1

    def test_text(self, sdk, target):
        model = "gpt-3.5-turbo-instruct" if target == "openai" else BACKENDS[target]
        asked = {"model": model, "prompt": "say hello", "max_tokens": 8, "temperature": 0}
        whole = sdk(target).completions.create(**asked).choices[0].text
        assert (
            "".join(chunk.choices[0].text for chunk in sdk(target).completions.create(**asked, stream=True) if chunk.choices)
            == whole
        )

    def test_uploads_of_files_and_audio_arrive_byte_by_byte(self, sdk, double):
        data = os.urandom(3_000_000)
        client = sdk("openai")
        assert client.files.create(file=("data.jsonl", data), purpose="batch").bytes == len(data)
        heard = client.audio.transcriptions.create(file=("a.wav", data), model="whisper-1")
        assert heard.text.endswith(hashlib.sha256(data).hexdigest())
        assert double.requests[-1][2]["authorization"] == "Bearer sk-upstream"

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, openai.BadRequestError),
            (404, openai.NotFoundError),
            (429, openai.RateLimitError),
            (500, openai.InternalServerError),
        ],
    )
    def test_errors_of_the_backend_are_the_sdks_own(self, sdk, status, kind):
        with pytest.raises(kind) as caught:
            sdk("openai").chat.completions.create(model="gpt-4.1", messages=[{"role": "user", "content": f"fail {status}"}])
        assert caught.value.request_id
        assert caught.value.response.headers.get("retry-after") == ("7" if status == 429 else None)

    def test_a_wrong_key_is_the_sdks_own_error(self, proxy):
        with (
            openai.OpenAI(api_key="wrong", base_url=proxy.url + "/v1", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()

    @pytest.mark.parametrize("how", ["error", "cut"])
    def test_a_stream_that_breaks_is_an_error_and_no_end(self, sdk, how):
        messages = [{"role": "user", "content": f"{how} stream"}]
        with pytest.raises(openai.APIError):
            list(sdk("openai").chat.completions.create(model="gpt-4.1", messages=messages, stream=True))


class TestTheAncestorsMapping:
    """text-generation-inference behind the ancestor's config and names."""

    @pytest.mark.parametrize("target", ["falcon", "llama2"])
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_chat(self, sdk, tgi, target, stream):
        asked = {"model": "any-name", "messages": [{"role": "system", "content": "SYS"}, *HELLO], "temperature": 0, "top_p": 1}
        if stream:
            chunks = list(sdk(target).chat.completions.create(**asked, stream=True))
            said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
            finish = [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1]
            model = chunks[0].model
        else:
            answer = sdk(target).chat.completions.create(**asked)
            said, finish, model = answer.choices[0].message.content, answer.choices[0].finish_reason, answer.model
        assert (said.strip(), finish, model) == ("Hello there, friend!", "stop", "any-name")
        method, path, _, body = tgi.requests[-1]
        assert (method, path) == ("POST", "/generate_stream" if stream and target == "llama2" else "/generate")
        written = {
            "falcon": "SYS>>>QUESTION<<<say hello>>>ANSWER<<<",
            "llama2": "<s>[INST] <<SYS>>\nSYS\n<</SYS>>\n\nsay hello [/INST]",
        }
        assert body["inputs"] == written[target]

    @pytest.mark.parametrize("target", ["falcon", "llama2"])
    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
    def test_text(self, sdk, tgi, target, stream):
        asked = {"model": "any-name", "prompt": "count up", "max_tokens": 3, "temperature": 0, "stop": "x"}
        if stream:
            chunks = list(sdk(target).completions.create(**asked, stream=True))
            said = "".join(choice.text for chunk in chunks for choice in chunk.choices)
            finish = [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1]
        else:
            choice = sdk(target).completions.create(**asked).choices[0]
            said, finish = choice.text, choice.finish_reason
        assert (said, finish) == (" one two three", "length")

    def test_a_path_that_is_passed_through(self, sdk, tgi):
        assert sdk("falcon").get("/info", cast_to=object)["model_id"] == "tiny/tgi-double"
        assert {name.lower(): value for name, value in tgi.requests[-1][2].items()}["authorization"] == "Bearer tgi-key"

    def test_its_refusals_keep_their_status(self, sdk):
        with pytest.raises(openai.UnprocessableEntityError, match="8 tokens"):
            sdk("falcon").chat.completions.create(model="m", messages=[{"role": "user", "content": "fail 422"}])
        with pytest.raises(openai.RateLimitError, match="overloaded"):
            sdk("llama2").chat.completions.create(model="m", messages=[{"role": "user", "content": "fail 429"}], stream=True)


OLD = """
import json, os, openai
openai.api_key = os.environ["KEY"]
openai.api_base = os.environ["BASE"]
messages = [{"role": "user", "content": "say hello"}]
out = {"version": openai.version.VERSION}
for target, model in (("demo", "demo"), ("openai", "gpt-4.1"), ("falcon", "any"), ("llama2", "any"), ("llama", "tiny")):
    headers = {"target": target}
    answer = openai.ChatCompletion.create(model=model, messages=messages, headers=headers)
    chunks = openai.ChatCompletion.create(model=model, messages=messages, headers=headers, stream=True)
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    out[target] = [answer["choices"][0]["message"]["content"], said]
out["text"] = openai.Completion.create(model="any", prompt="say hello", headers={"target": "falcon"})["choices"][0]["text"]
out["embedding"] = len(openai.Embedding.create(model="demo", input="hi", headers={"target": "demo"})["data"][0]["embedding"])
out["models"] = [model["id"] for model in openai.Model.list()["data"]]  # this one takes no headers
for headers in ({"target": "nowhere"}, {"target": "openai"}):
    try:
        openai.ChatCompletion.create(model="gpt-4.1", messages=[{"role": "user", "content": "fail 429"}], headers=headers)
    except openai.error.OpenAIError as error:
        out[headers["target"] + " fails"] = type(error).__name__
print(json.dumps(out))
"""


@pytest.mark.timeout(240)
def test_openai_0_28_as_users_of_the_ancestor_call_it(proxy):
    folder = sdks.installed("openai-0.28", "openai==0.28.1")
    out = json.loads(sdks.run(folder, OLD, {"KEY": KEY, "BASE": proxy.url + "/v1"}))
    assert out["version"].startswith("0.28")
    for target in ("demo", "openai", "falcon", "llama2", "llama"):
        whole, streamed = out[target]
        assert whole == streamed != ""
    assert (out["text"].strip(), out["embedding"]) == ("Hello there, friend!", 8)
    assert "demo" in out["models"]
    assert (out["nowhere fails"], out["openai fails"]) == ("InvalidRequestError", "RateLimitError")


@needs("curl")
class TestCurl:
    def curl(self, proxy: Proxy, *arguments: str) -> str:
        command = ["curl", "-sS", "--max-time", "20", "-H", f"Authorization: Bearer {KEY}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout

    @pytest.mark.parametrize("version", ["--http1.1", "--http1.0"])
    def test_chat(self, proxy, version):
        body = json.dumps({"model": "m", "messages": HELLO})
        out = self.curl(proxy, version, proxy.url + "/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body)
        assert json.loads(out)["choices"][0]["message"]["content"]

    def test_a_stream_of_a_large_body_with_expect(self, proxy):
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x" * 2_000_000}]})
        arguments = ["-N", "-H", "Expect: 100-continue", "-H", "Content-Type: application/json", "-d", "@-"]
        command = [
            "curl",
            "-sS",
            "--max-time",
            "20",
            "-H",
            f"Authorization: Bearer {KEY}",
            *arguments,
            proxy.url + "/v1/chat/completions",
        ]
        done = subprocess.run(command, input=body, capture_output=True, text=True, timeout=30, check=True)
        assert done.stdout.rstrip().endswith("data: [DONE]")

    def test_its_default_content_type_is_mapped_to_a_clear_answer(self, proxy):
        """`curl -d` without -H says application/x-www-form-urlencoded."""
        out = self.curl(
            proxy,
            proxy.url + "/v1/chat/completions",
            "-H",
            "target: falcon",
            "-d",
            json.dumps({"model": "m", "messages": HELLO}),
        )
        assert json.loads(out)["choices"][0]["message"]["content"].strip() == "Hello there, friend!"

    def test_a_file_upload(self, proxy, tmp_path):
        (tmp_path / "up.bin").write_bytes(os.urandom(100_000))
        out = self.curl(
            proxy, proxy.url + "/v1/files", "-H", "target: openai", "-F", "purpose=batch", "-F", f"file=@{tmp_path}/up.bin"
        )
        assert json.loads(out)["bytes"] == 100_000


MY_API = '''

def chatReqOpenAItoEcho(ip, cfg={}):
    """Chat → {"lines": [...]}."""
    return {"lines": [message["content"] for message in ip["messages"]], "as": cfg["path"]}


def chatAnsEchotoOpenAI(ip, cfg={}):
    """{"shout": str} → chat.completion."""
    message = {"role": "assistant", "content": ip["shout"]}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": cfg["id"], "object": "chat.completion", "created": cfg["now"], "model": cfg["request"]["model"]}
    return {**head, "choices": [choice]}


def chatStreamEchotoOpenAI(events, cfg={}):
    """{"letter": str}… → chunks."""
    head = {"id": cfg["id"], "object": "chat.completion.chunk", "created": cfg["now"], "model": cfg["request"]["model"]}
    for event in events:
        yield {**head, "choices": [{"index": 0, "delta": {"content": event["letter"]}, "finish_reason": None}]}
    yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
'''


def test_a_mapper_added_to_mappers_py_reaches_a_made_up_api(tmp_path: Path) -> None:
    def shout(exchange: Exchange) -> None:
        exchange.reply(200, {"shout": " ".join(exchange.asked.json()["lines"]).upper()})

    def spell(exchange: Exchange) -> None:
        exchange.start("application/x-ndjson")
        for letter in "".join(exchange.asked.json()["lines"]).upper():
            exchange.chunk(json.dumps({"letter": letter}).encode() + b"\n")
        exchange.end()

    with Backend() as backend:
        backend.on("/shout", shout)
        backend.on("/spell", spell)
        config = f"""
targets:
  default: mine
  mine:
    url: {backend.url}
    mapping:
      /chat/completions:
        path: /shout
        in: chatReqOpenAItoEcho
        out: [chatAnsEchotoOpenAI]
        stream: chatStreamEchotoOpenAI
        stream_path: /spell
      /v1/messages:
        path: /shout
        in: [chatReqAnthropictoOpenAI, chatReqOpenAItoEcho]
        out: [chatAnsEchotoOpenAI, chatAnsOpenAItoAnthropic]
"""
        files = {"mappers.py": (CHECKOUT / "mappers.py").read_text() + MY_API}
        with Proxy(tmp_path, config, files=files) as proxy, openai.OpenAI(api_key=KEY, base_url=proxy.url + "/v1") as client:
            asked: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": "hello"}]}
            answer = client.chat.completions.create(**asked)
            chunks = list(client.chat.completions.create(**asked, stream=True))
            claude = {**asked, "max_tokens": 9}
            message = ask(proxy.url, "POST", "/v1/messages", claude, {"x-api-key": KEY})
            unfolded = ask(proxy.url, "POST", "/v1/messages", {**claude, "stream": True}, {"x-api-key": KEY})
    assert (answer.choices[0].message.content, answer.model) == ("HELLO", "any")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "HELLO"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert message.json()["content"] == [{"type": "text", "text": "HELLO"}]
    assert "".join(event["delta"].get("text", "") for event in unfolded.events if "delta" in event) == "HELLO"
    assert backend.asked_for("/shout")[0].json() == {"lines": ["hello"], "as": "/shout"}
