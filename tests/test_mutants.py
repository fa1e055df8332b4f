"""A mapper with a mistake cannot hang or crash a client: mutants of the stream mappers, through the proxy, to real SDKs.

A mutant is a user's stream mapper in `mappers.py` that takes the built-in one's events and breaks one thing about them. What
the SDK makes of the reply is the whole answer, or an error of its API; never an exception of its parser, never a hang.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types

from tests.backends import mutants
from tests.backends.proxy import KEY, Proxy
from tests.doubles.openai import OpenAIDouble

pytestmark = pytest.mark.long

SAID = "Let me look."
SOURCE = Path(mutants.__file__).read_text()
NAMES = mutants.NAMES


@dataclass(frozen=True)
class Front:
    """A real SDK of an API: `ask` gives the text and the number of calls of a streamed answer, `errors` are the SDK's own."""

    tag: str
    path: str
    upstream: tuple[str, ...]  # the mapper that the mutant takes the place of
    ask: Callable[[str], tuple[str, int]]
    errors: tuple[type[Exception], ...]


CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "get_weather", "description": "Tells it.", "parameters": CITY}


def _chat(url: str) -> tuple[str, int]:
    with openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0, timeout=15) as sdk:
        body: dict[str, Any] = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "call tool"}]}
        text, calls = "", 0
        with sdk.chat.completions.stream(**body, tools=[{"type": "function", "function": FUNCTION}]) as stream:
            for event in stream:
                text += event.delta if event.type == "content.delta" else ""
                calls += event.type == "tool_calls.function.arguments.done"
        return text, calls


def _responses(url: str) -> tuple[str, int]:
    with openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0, timeout=15) as sdk:
        body: dict[str, Any] = {
            "model": "gpt-4.1",
            "input": "call tool",
            "tools": [{"type": "function", **FUNCTION, "strict": False}],
        }
        with sdk.responses.stream(**body) as stream:
            for event in stream:
                if event.type == "response.failed":
                    raise openai.APIError(str(event.response.error), request=None, body=None)  # type: ignore[arg-type]
            answer = stream.get_final_response()
        return answer.output_text, sum(item.type == "function_call" for item in answer.output)


def _messages(url: str) -> tuple[str, int]:
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0, timeout=15) as sdk:
        tools: Any = [{"name": "get_weather", "input_schema": CITY}]
        messages: Any = [{"role": "user", "content": "call tool"}]
        with sdk.messages.stream(model="gpt-4.1", max_tokens=99, messages=messages, tools=tools) as stream:
            answer = stream.get_final_message()
        text = "".join(block.text for block in answer.content if block.type == "text")
        return text, sum(block.type == "tool_use" for block in answer.content)


def _generate(url: str) -> tuple[str, int]:
    sdk = genai.Client(api_key=KEY, vertexai=False, http_options=genai_types.HttpOptions(base_url=url, timeout=15_000))
    tool = genai_types.Tool(
        function_declarations=[genai_types.FunctionDeclaration(name="get_weather", parameters_json_schema=CITY)]
    )
    automatic = genai_types.AutomaticFunctionCallingConfig(disable=True)
    config = genai_types.GenerateContentConfig(tools=[tool], automatic_function_calling=automatic)
    text, calls = "", 0
    for chunk in sdk.models.generate_content_stream(model="gpt-4.1", contents="call tool", config=config):
        for candidate in chunk.candidates or ():
            for part in (candidate.content and candidate.content.parts) or ():
                text, calls = text + (part.text or ""), calls + bool(part.function_call)
    return text, calls


def _ollama(url: str) -> tuple[str, int]:
    sdk = ollama.Client(host=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=15)
    text, calls = "", 0
    messages = [{"role": "user", "content": "call tool"}]
    for chunk in sdk.chat("gpt-4.1", messages, tools=[{"type": "function", "function": FUNCTION}], stream=True):
        text, calls = text + (chunk.message.content or ""), calls + len(chunk.message.tool_calls or ())
    return text, calls


FRONTS = {
    front.tag: front
    for front in (
        Front("OpenAI", "/v1/chat/completions", ("chatReqOpenAItoOpenAI",), _chat, (openai.APIError,)),
        Front(
            "Responses", "/v1/responses", ("chatReqResponsestoOpenAI", "chatReqOpenAItoOpenAI"), _responses, (openai.APIError,)
        ),
        Front(
            "Anthropic", "/v1/messages", ("chatReqAnthropictoOpenAI", "chatReqOpenAItoOpenAI"), _messages, (anthropic.APIError,)
        ),
        Front(
            "Gemini",
            "POST /v1beta/models/{model}:streamGenerateContent",
            ("chatReqGeminitoOpenAI", "chatReqOpenAItoOpenAI"),
            _generate,
            (genai_errors.APIError,),
        ),
        Front("Ollama", "/api/chat", ("chatReqOllamatoOpenAI", "chatReqOpenAItoOpenAI"), _ollama, (ollama.ResponseError,)),
    )
}


def _config(url: str) -> str:
    """A target a mutant, reached by its route: its name is the mapper's."""
    targets: dict[str, Any] = {"default": "plain", "plain": {"url": url, "dialect": "openai", "key": "sk-x"}}
    for (tag, _), name in NAMES.items():
        entry = {
            "path": "/v1/chat/completions",
            "in": list(FRONTS[tag].upstream),
            "out": "chatAnsOpenAItoOpenAI" if tag == "OpenAI" else f"chatAnsOpenAIto{tag}",
            "stream": name,
        }
        targets[name] = {"url": url, "key": "sk-x", "route": f"/{name}", "mapping": {FRONTS[tag].path: entry}}
    return json.dumps({"targets": targets})


@pytest.fixture(scope="session")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with (
        OpenAIDouble() as backend,
        Proxy(tmp_path_factory.mktemp("mutants"), _config(backend.url), files={"mappers.py": SOURCE}) as running,
    ):
        yield running


@pytest.mark.parametrize("tag", FRONTS)
def test_without_a_mutation_the_sdk_gets_the_answer(proxy: Proxy, tag: str) -> None:
    assert FRONTS[tag].ask(proxy.url) == (SAID, 1)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("tag", "name"), NAMES, ids=[f"{tag}: {name}" for tag, name in NAMES])
def test_a_mutant_is_harmless_or_an_error_of_the_api(proxy: Proxy, tag: str, name: str) -> None:
    front = FRONTS[tag]
    try:
        text, calls = front.ask(f"{proxy.url}/{NAMES[tag, name]}")
    except front.errors:
        return
    assert calls <= 2
    assert len(text) <= 2 * len(SAID)


def test_there_are_enough_mutants() -> None:
    assert len(NAMES) >= 30 * len(FRONTS) // 2
