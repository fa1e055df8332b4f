"""What a target says its backend can do: which needs a request has, in every API, and what is refused because of them."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest

from proxy.call import Call
from proxy.capabilities import NAMES, missing, needs, require
from proxy.config import Target
from proxy.errors import BadRequest
from proxy.settings import schema
from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Backend, ask
from tests.configs import fault, with_target
from tests.configs import load as load
from tests.laws import PNG

RIGHT = {"authorization": f"Bearer {KEY}"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}
DATA = f"data:image/png;base64,{PNG}"
INLINE = {"inlineData": {"mimeType": "image/png", "data": PNG}}
SOURCE = {"type": "base64", "media_type": "image/png", "data": PNG}
TOOL = {"type": "function", "function": FUNCTION}
HI = [{"role": "user", "content": "hi"}]
# need → (front, kind, body, the field that asks for it)
ASKED: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("tools", "openai", "chat", {"messages": HI, "tools": [TOOL]}, "tools"),
    ("tools", "responses", "chat", {"input": "hi", "tools": [{"type": "function", **FUNCTION}]}, "tools"),
    ("tools", "anthropic", "chat", {"messages": HI, "tools": [{"name": "f", "input_schema": SCHEMA}]}, "tools"),
    (
        "tools",
        "gemini",
        "chat",
        {"contents": [{"parts": [{"text": "hi"}]}], "tools": [{"functionDeclarations": [FUNCTION]}]},
        "tools",
    ),
    ("tools", "ollama", "chat", {"messages": HI, "tools": [TOOL]}, "tools"),
    ("tool_choice", "openai", "chat", {"messages": HI, "tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    (
        "tool_choice",
        "anthropic",
        "chat",
        {"messages": HI, "tools": [{"name": "f", "input_schema": SCHEMA}], "tool_choice": {"type": "any"}},
        "tool_choice",
    ),
    (
        "images",
        "openai",
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA}}]}]},
        "messages",
    ),
    (
        "images",
        "responses",
        "chat",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": DATA}]}]},
        "input",
    ),
    (
        "images",
        "anthropic",
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "image", "source": SOURCE}]}]},
        "messages",
    ),
    ("images", "gemini", "chat", {"contents": [{"parts": [INLINE]}]}, "contents"),
    ("images", "ollama", "chat", {"messages": [{"role": "user", "content": "hi", "images": [PNG]}]}, "messages"),
    (
        "json_schema",
        "openai",
        "chat",
        {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
        "response_format",
    ),
    (
        "json_schema",
        "responses",
        "chat",
        {"input": "hi", "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}},
        "text",
    ),
    (
        "json_schema",
        "gemini",
        "chat",
        {
            "contents": [{"parts": [{"text": "hi"}]}],
            "generationConfig": {"topP": 0.5, "responseMimeType": "application/json", "responseJsonSchema": SCHEMA},
        },
        "generationConfig.",
    ),
    ("json_schema", "ollama", "chat", {"messages": HI, "format": SCHEMA}, "format"),
    (
        "json_schema",
        "tgi",
        "text",
        {"inputs": "hi", "parameters": {"grammar": {"type": "json", "value": SCHEMA}}},
        "parameters.grammar",
    ),
    ("json_schema", "llamacpp", "text", {"prompt": "hi", "json_schema": SCHEMA}, "json_schema"),
    ("stop", "openai", "chat", {"messages": HI, "stop": "x"}, "stop"),
    ("stop", "openai", "text", {"prompt": "hi", "stop": ["x"]}, "stop"),
    ("stop", "anthropic", "chat", {"messages": HI, "max_tokens": 5, "stop_sequences": ["x"]}, "stop_sequences"),
    ("stop", "ollama", "chat", {"messages": HI, "options": {"stop": ["x"], "seed": 5}}, "options.stop"),
    ("stop", "tgi", "text", {"inputs": "hi", "parameters": {"stop": ["x"]}}, "parameters.stop"),
    ("stop", "llamacpp", "text", {"prompt": "hi", "stop": ["x"]}, "stop"),
    ("n", "openai", "chat", {"messages": HI, "n": 2}, "n"),
    (
        "n",
        "gemini",
        "chat",
        {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"candidateCount": 2}},
        "generationConfig.",
    ),
    ("n", "llamacpp", "text", {"prompt": "hi", "n_cmpl": 2}, "n_cmpl"),
    ("logprobs", "openai", "chat", {"messages": HI, "logprobs": True}, "logprobs"),
    ("logprobs", "openai", "text", {"prompt": "hi", "logprobs": 0}, ""),
    ("logprobs", "ollama", "chat", {"messages": HI, "logprobs": True}, "logprobs"),
    ("stream", "openai", "chat", {"messages": HI, "stream": True}, "stream"),
    ("stream", "anthropic", "chat", {"messages": HI, "max_tokens": 5, "stream": True}, "stream"),
    ("embeddings", "openai", "embed", {"input": "hi"}, "input"),
    ("embeddings", "ollama", "embed", {"input": "hi"}, "input"),
]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PATHS = {
    ("openai", "chat"): "/v1/chat/completions",
    ("openai", "text"): "/v1/completions",
    ("openai", "embed"): "/v1/embeddings",
    ("responses", "chat"): "/v1/responses",
    ("anthropic", "chat"): "/v1/messages",
    ("gemini", "chat"): "/v1beta/models/m:generateContent",
    ("ollama", "chat"): "/api/chat",
    ("ollama", "embed"): "/api/embed",
    ("tgi", "text"): "/generate",
    ("llamacpp", "text"): "/completion",
}


def target(**capabilities: int) -> Target:
    return Target(name="t", url="http://h", capabilities=capabilities)


@pytest.mark.parametrize(("need", "front", "kind", "body", "field"), ASKED)
class TestNeeds:
    def test_it_is_read_in_every_api_and_the_body_stays_as_it_is(self, need, front, kind, body, field):
        kept = copy.deepcopy(body)
        assert needs(body, front, kind, False if need != "stream" else None)[need] == 1
        assert body == kept

    def test_only_what_a_target_says_it_cannot_is_missing(self, need, front, kind, body, field):
        needed = needs(body, front, kind)
        assert missing(target(**{need: 0}), needed) == [need]
        assert not missing(target(**{need: 1}), needed)
        assert not missing(target(), needed)


class TestOtherNeeds:
    def test_a_plain_request_needs_nothing_but_its_length(self):
        assert set(needs({"messages": HI}, "openai")) == {"context"}
        assert "stream" in needs({"messages": HI}, "ollama")  # which streams unless told otherwise

    def test_a_path_says_that_it_streams(self):
        assert "stream" in needs({"contents": [{"parts": [{"text": "hi"}]}]}, "gemini", stream=True)
        assert "stream" not in needs({"messages": HI}, "ollama", stream=False)

    def test_a_context_is_lacked_by_what_is_twice_as_long(self):
        long = needs({"messages": [{"role": "user", "content": "word " * 4000}]}, "openai")
        assert missing(target(context=1000), long) == ["context"]
        assert not missing(target(context=4000), long)

    def test_several_calls_in_a_turn(self):
        turn = {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2"}]}
        results = [{"role": "tool", "tool_call_id": name, "content": "x"} for name in ("c1", "c2")]
        assert "parallel_tools" in needs({"messages": [*HI, turn, *results], "tools": [TOOL]}, "openai")
        one = {**turn, "tool_calls": [CALL]}
        assert "parallel_tools" not in needs({"messages": [*HI, one, results[0]], "tools": [TOOL]}, "openai")

    @pytest.mark.parametrize("body", [None, [], "x", {}, {"messages": 5}, {"messages": HI, "n": "x"}])
    def test_what_is_not_legal_is_for_others_to_say(self, body):
        assert needs(body, "openai") == {}
        assert needs(body, "anthropic", "count") == {}

    def test_the_configuration_knows_the_same_names(self):
        assert set(schema.CAPABILITIES.json()["properties"]) == set(NAMES)


class TestConfiguration:
    def test_it_is_read(self, load):
        config = load(with_target("url: http://h\ndialect: openai\ncapabilities: {tools: false, images: true, context: 8192}"))
        assert config.targets["a"].capabilities == {"tools": False, "images": True, "context": 8192}

    def test_faults_name_their_line(self, load):
        said = fault(load, with_target("url: http://h\ndialect: openai\ncapabilities:\n  tolls: true"))
        assert said.startswith("config.yaml:7: targets.a.capabilities.tolls")
        assert "'tools'" in said
        assert "true or false" in fault(load, with_target("url: http://h\ndialect: openai\ncapabilities: {tools: 1}"))


@pytest.fixture(scope="module")
def backend():
    with Backend() as backend:
        yield backend


@pytest.fixture(scope="module")
def proxy(backend, tmp_path_factory):
    false = ", ".join(f"{name}: {'1000' if name == 'context' else 'false'}" for name in NAMES)
    config = f"""targets:
  default: less
  less: {{url: "{backend.url}", dialect: openai, model: m, capabilities: {{{false}}}}}
  some: {{url: "{backend.url}", dialect: openai, capabilities: {{tools: false, embeddings: true}}}}
"""
    with Proxy(tmp_path_factory.mktemp("capabilities"), config) as proxy:
        yield proxy


class TestRefusals:
    @pytest.mark.parametrize(("need", "front", "kind", "body", "field"), ASKED)
    def test_a_request_is_refused_in_its_own_shape_and_told_why(self, proxy, backend, need, front, kind, body, field):
        body = {"model": "m", **({"stream": False} if front == "ollama" else {}), **body}
        before = len(backend.asked)
        reply = ask(proxy.url, "POST", PATHS[front, kind], body, RIGHT)
        assert reply.status == (422 if front == "tgi" else 400), reply.body  # as TGI does
        said = reply.body.decode()
        assert "target 'less'" in said
        assert ("tools" if need == "tool_choice" else field) in said  # the first of what is lacking
        assert {"openai": '"param"', "anthropic": '"invalid_request_error"', "gemini": '"INVALID_ARGUMENT"'}.get(
            front, ""
        ) in said
        assert len(backend.asked) == before

    def test_what_it_can_or_does_not_say_goes_on(self, proxy, backend):
        for path, body in (
            ("/v1/chat/completions", {"messages": HI, "n": 2, "stop": "x"}),
            ("/v1/embeddings", {"input": "x"}),
            ("/v1/other", {"tools": [TOOL]}),
        ):
            reply = ask(proxy.url, "POST", path, body, {**RIGHT, "target": "some"})
            assert "target 'some'" not in reply.body.decode()
        assert ask(proxy.url, "POST", "/v1/chat/completions", ASKED[0][3], {**RIGHT, "target": "some"}).status == 400

    def test_an_upload_is_none_of_its_business(self, proxy, backend):
        headers = {**RIGHT, "target": "some", "content-type": "multipart/form-data; boundary=x"}
        assert ask(proxy.url, "POST", "/v1/files", b"--x--", headers).status == 200


def test_which_of_very_many_fields_asks_for_it_is_not_looked_for():
    """Each would be a reading of the whole body: seconds, then minutes."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    said = [{"role": "user", "content": "hi"}]
    body = {"model": "m", **{f"x{n}": 1 for n in range(20_000)}, "messages": said, "tools": tools}
    began = time.monotonic()
    with pytest.raises(BadRequest, match=r"tools is false\)$"):
        require(target(tools=0), Call("POST", "/v1/chat/completions", "", "127.0.0.1"), body)
    assert time.monotonic() - began < 2


def test_a_pool_takes_a_member_that_can(backend, tmp_path):
    config = f"""targets:
  default: all
  all: {{pool: [less, more]}}
  less: {{url: "{backend.url}", dialect: openai, model: less, capabilities: {{tools: false}}}}
  more: {{url: "{backend.url}", dialect: openai, model: more, capabilities: {{tools: true}}}}
"""
    with Proxy(tmp_path, config) as proxy:
        served = {
            need: {
                ask(proxy.url, "POST", "/v1/chat/completions", {"model": "any", "messages": HI, **more}, RIGHT)[
                    "x-mooltiproxy-target"
                ]
                for _ in range(4)
            }
            for need, more in {"nothing": {}, "tools": {"tools": [TOOL]}}.items()
        }
    assert served == {"nothing": {"less", "more"}, "tools": {"more"}}
