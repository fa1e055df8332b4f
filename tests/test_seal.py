"""proxy/dialects/_seal.py: Gemini's signatures come back through clients of every API, and reach no other backend."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import load, mapper
from proxy.dialects._seal import SEAL, seal, seal_signature, signature_of, signed, unseal, unseal_signature
from proxy.dialects.gemini import UNSIGNED
from proxy.dialects.openai import chatReqOpenAItoOpenAI, unfold
from tests.backends.proxy import KEY, Proxy
from tests.doubles import gemini
from tests.doubles.anthropic import AnthropicDouble
from tests.doubles.gemini import SIGNATURE, GeminiDouble
from tests.doubles.openai import OpenAIDouble
from tests.laws import CFG, fragments, hub_answers, unchanged, words

Json = dict[str, Any]
SEALING = ("Anthropic", "Responses")  # the APIs whose clients bring signatures back in opaque fields
signatures = st.just("") | st.binary(min_size=1, max_size=40).map(lambda data: base64.b64encode(data).decode())


@st.composite
def signed_answers(draw: Any) -> Json:
    """A hub answer in which calls, and perhaps the text, have Gemini's signatures."""
    answer: Json = draw(hub_answers(refusals=False))
    message = answer["choices"][0]["message"]
    for call in message.get("tool_calls", ()):
        call |= signed(draw(signatures))
    message |= signed(draw(signatures))
    return answer


def called(tag: str, part: str, there: bool) -> Callable[..., Any]:
    found = mapper(f"chat{part}OpenAIto{tag}" if there else f"chat{part}{tag}toOpenAI")
    assert found
    return found


def history(tag: str, answer: Json) -> Json:
    """The client's next request: what it was answered, and results for all calls."""
    if tag == "Anthropic":
        calls = [block["id"] for block in answer["content"] if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": call, "content": "r"} for call in calls]
        said = [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": results or "go on"}]
        return {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}, *said]}
    calls = [item["call_id"] for item in answer["output"] if item["type"] == "function_call"]
    results = [{"type": "function_call_output", "call_id": call, "output": "r"} for call in calls]
    more = results or [{"role": "user", "content": "go on"}]
    return {"model": "m", "input": [{"role": "user", "content": "hi"}, *answer["output"], *more]}


def told_signatures(message: Json) -> dict[str, str]:
    return {call["function"]["name"]: signature_of(call) for call in message.get("tool_calls", ())}


@pytest.mark.parametrize("tag", SEALING)
@settings(deadline=None, max_examples=60)
@given(whole=signed_answers())
def test_signatures_come_back_as_they_were(tag: str, whole: Json) -> None:
    answer = unchanged(called(tag, "Ans", True), whole)
    request = unchanged(called(tag, "Req", False), history(tag, answer))
    message = whole["choices"][0]["message"]
    back = [turn for turn in request["messages"] if turn["role"] == "assistant"]
    merged: Json = {"tool_calls": [call for turn in back for call in turn.get("tool_calls", ())]}
    assert told_signatures(merged) == told_signatures(message)
    assert sorted(call["id"] for call in merged["tool_calls"]) == sorted(call["id"] for call in message.get("tool_calls", ()))
    wanted = signature_of(message) if message.get("tool_calls") else ""  # with nothing behind it, a text's stays here
    assert "".join(signature_of(turn) for turn in back) == wanted
    blocks = [block for turn in back for block in turn.get("thinking_blocks", ())]
    assert blocks == message.get("thinking_blocks", [])


@pytest.mark.parametrize("tag", SEALING)
@settings(deadline=None, max_examples=60)
@given(whole=signed_answers(), size=st.integers(1, 5))
def test_a_stream_tells_what_the_whole_answer_tells(tag: str, whole: Json, size: int) -> None:
    cfg = {**CFG, "request": {}}
    front = load(tag.lower())
    events = list(front.grammar(called(tag, "Stream", True)(fragments(whole, size, unfold), cfg), cfg))
    answer = called(tag, "Ans", True)(whole, cfg)
    if tag == "Responses":
        assert events[-1]["response"]["output"] == answer["output"]
        return
    sealed = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    expected = [(block["type"], block.get("data"), block.get("id")) for block in answer["content"]]
    reasoned = not whole["choices"][0]["message"].get("thinking_blocks")
    told = [(block["type"], block.get("data"), block.get("id")) for block in sealed]
    assert [item for item in told if reasoned or item[0] != "thinking"] == [
        item for item in expected if reasoned or item[0] != "thinking"
    ]


@pytest.mark.parametrize("tag", SEALING)
@settings(deadline=None, max_examples=40)
@given(whole=signed_answers())
def test_nothing_sealed_reaches_another_api_s_backend(tag: str, whole: Json) -> None:
    body = history(tag, called(tag, "Ans", True)(whole))
    hub = called(tag, "Req", False)(body)
    others = [chatReqOpenAItoOpenAI(hub), *(called(other, "Req", True)(hub) for other in (*SEALING, "Ollama", "LlamaCpp"))]
    unsealed = load(tag.lower()).unsealed
    assert unsealed
    others.append(unchanged(lambda ip, cfg: unsealed(ip), body))
    for sent in others:
        assert SEAL not in json.dumps(sent)
        assert "thought_signature" not in json.dumps(sent)


@given(words, words | st.just(""))
def test_a_sealed_signature_is_opaque_and_opened_alone(signature: str, of: str) -> None:
    sealed = seal_signature(signature, of)
    assert sealed.startswith(SEAL)
    assert set(sealed) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=.")
    assert unseal_signature(sealed) == {of: signature}


@pytest.mark.parametrize("value", [{}, {"type": "thinking"}, {"type": "thought_signature", "of": 1, "signature": "s"}])
def test_what_is_no_signature_is_none(value: Json) -> None:
    assert unseal_signature(seal(value)) == {}
    assert unseal(seal(value)) == value


def test_a_signature_of_a_call_that_is_gone_goes_nowhere() -> None:
    blocks = [{"type": "redacted_thinking", "data": seal_signature("c2ln", "gone")}, {"type": "text", "text": "so"}]
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": blocks}]}
    assert called("Anthropic", "Req", False)(body)["messages"][1] == {"role": "assistant", "content": "so"}


# --- real clients, a proxy, and doubles that refuse what is missing and what is not theirs

ASK = "please call tool"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ANSWER = 'the tool said {"output": "rain"}'


class World:
    """A proxy whose models are on a Gemini 3, on Anthropic and on OpenAI."""

    def __init__(self, folder: Path, google: GeminiDouble, claude: AnthropicDouble, gpt: OpenAIDouble) -> None:
        self.google, self.claude, self.gpt = google, claude, gpt
        targets = {
            "google": {"url": google.url, "dialect": "gemini", "key": gemini.KEY},
            "claude": {"url": claude.url, "dialect": "anthropic", "key": "k"},
            "gpt": {"url": gpt.url, "dialect": "openai", "key": "k"},
            "responses": {"url": gpt.url, "dialect": "responses", "key": "k"},
        }
        models = {
            "any-gemini": {"target": "google", "model": "gemini-3.5-flash"},
            "any-claude": {"target": "claude", "model": "claude-opus-4-8"},
            "any-gpt": {"target": "gpt", "model": "gpt-4.1"},
            "any-responses": {"target": "responses", "model": "gpt-5.2"},
        }
        self.proxy = Proxy(folder, json.dumps({"targets": {"default": "google", **targets}, "models": models}))

    def anthropic(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.proxy.url, api_key=KEY, max_retries=0, timeout=20)

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.proxy.url}/v1", api_key=KEY, max_retries=0, timeout=20)

    def signature_sent(self) -> str:
        """What the Gemini double got in the call of the second turn."""
        contents = self.google.requests[-1][3]["contents"]
        (signature,) = [part["thoughtSignature"] for part in contents[1]["parts"] if "functionCall" in part]
        assert isinstance(signature, str)
        return signature


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with GeminiDouble() as google, AnthropicDouble() as claude, OpenAIDouble() as gpt:
        world = World(tmp_path_factory.mktemp("seal"), google, claude, gpt)
        with world.proxy:
            yield world


def message_of(sdk: anthropic.Anthropic, stream: bool, **body: Any) -> Any:
    tools: Any = [{"name": "look", "description": "Looks.", "input_schema": CITY}]
    if not stream:
        return sdk.messages.create(max_tokens=64, tools=tools, **body)
    with sdk.messages.stream(max_tokens=64, tools=tools, **body) as events:
        return events.get_final_message()


@pytest.mark.parametrize("stream", [False, True])
def test_an_anthropic_client_has_a_conversation_with_tools(world: World, stream: bool) -> None:
    sdk = world.anthropic()
    messages: list[Any] = [{"role": "user", "content": ASK}]
    first = message_of(sdk, stream, model="any-gemini", messages=messages)
    assert [block.type for block in first.content] == ["redacted_thinking", "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": first.content[1].id, "content": "rain"}]
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = message_of(sdk, stream, model="any-gemini", messages=messages)
    assert [(block.type, block.text) for block in second.content] == [("text", ANSWER)]
    assert world.signature_sent() == SIGNATURE
    for model, double in (("any-claude", world.claude), ("any-gpt", world.gpt), ("any-responses", world.gpt)):
        message_of(sdk, stream, model=model, messages=messages)  # the doubles refuse what is not theirs
        assert SEAL not in json.dumps(double.requests[-1][3])
    without = [messages[0], {"role": "assistant", "content": first.content[1:]}, messages[2]]
    again = message_of(sdk, stream, model="any-gemini", messages=without)
    assert [block.text for block in again.content] == [ANSWER]
    assert world.signature_sent() == UNSIGNED  # a lost signature has Google's mark, which the model takes


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_client_has_a_conversation_with_tools(world: World, stream: bool) -> None:
    sdk = world.openai()
    tools: Any = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": CITY}}]

    def turn(messages: Any) -> Any:
        if not stream:
            return sdk.chat.completions.create(model="any-gemini", messages=messages, tools=tools).choices[0].message
        with sdk.chat.completions.stream(model="any-gemini", messages=messages, tools=tools) as events:
            return events.get_final_completion().choices[0].message

    messages: list[Any] = [{"role": "user", "content": ASK}]
    first = turn(messages)
    call = first.tool_calls[0]
    assert call.extra_content == {"google": {"thought_signature": SIGNATURE}}
    messages += [first, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert turn(messages).content == ANSWER
    assert world.signature_sent() == SIGNATURE
    stripped = {**call.model_dump(), "extra_content": None}
    messages[1] = {"role": "assistant", "content": None, "tool_calls": [stripped]}
    assert turn(messages).content == ANSWER
    assert world.signature_sent() == UNSIGNED


@pytest.mark.parametrize("stream", [False, True])
def test_a_responses_client_has_a_conversation_with_tools(world: World, stream: bool) -> None:
    sdk = world.openai()
    tools: Any = [{"type": "function", "name": "look", "description": "Looks.", "parameters": CITY, "strict": False}]

    def turn(given: Any, model: str = "any-gemini") -> Any:
        if not stream:
            return sdk.responses.create(model=model, input=given, tools=tools, store=False)
        with sdk.responses.stream(model=model, input=given, tools=tools, store=False) as events:
            return events.get_final_response()

    given: list[Any] = [{"role": "user", "content": ASK}]
    first = turn(given)
    assert [item.type for item in first.output] == ["reasoning", "function_call"]
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "rain"}
    given += [*[item.model_dump(exclude_unset=True, exclude={"parsed_arguments"}) for item in first.output], result]
    assert turn(given).output_text == ANSWER
    assert world.signature_sent() == SIGNATURE
    for model in ("any-responses", "any-gpt"):
        turn(given, model)
        assert SEAL not in json.dumps(world.gpt.requests[-1][3])
    assert turn([item for item in given if item.get("type") != "reasoning"]).output_text == ANSWER
    assert world.signature_sent() == UNSIGNED
