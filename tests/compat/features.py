"""What a client asks for and must get: a function a feature. It raises AssertionError, or Told when the client got an error."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from tests.compat.matrix import Backend, Client

Json = dict[str, Any]


def _png() -> str:
    """One red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\x08\2\0\0\0")
    return base64.b64encode(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")
    ).decode()


PNG = _png()
SCHEMA = {
    "type": "object",
    "properties": {"birthplace": {"type": "string", "enum": ["Ulm"]}},
    "required": ["birthplace"],
    "additionalProperties": False,
}
WEATHER, CLOCK = "get_weather", "get_time"


class Refused(Exception):
    """The client got an error from its SDK: its status, its words, and when to try again."""

    def __init__(self, status: int, message: str, retry: str | None) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message, self.retry = status, message, retry


class Cell(Protocol):
    """A client at work before a backend."""

    client: Client
    backend: Backend

    def run(self, **ask: Any) -> Json:
        """What the client told. Raises Refused."""

    def sent(self) -> list[Json]:
        """The bodies that the backend got in this test."""


Feature = Callable[[Cell], None]
FEATURES: dict[str, Feature] = {}


def feature(function: Feature) -> Feature:
    FEATURES[function.__name__.replace("_", "-")] = function
    return function


def user(text: str, **more: Any) -> Json:
    return {"role": "user", "text": text, **more}


def say(cell: Cell, text: str, **ask: Any) -> Json:
    """One message, or one prompt where the client's API has no messages."""
    if cell.client.prompts:
        return cell.run(op="text", prompt=text + "\n", **ask)
    return cell.run(op="chat", turns=[user(text)], **ask)


def arrived(cell: Cell, *marks: Any) -> None:
    """Each mark stands somewhere in what the backend got: as a value, or within a text."""
    if cell.backend.real:
        return
    bodies = cell.sent()
    values = list(_values(bodies))
    written = json.dumps(bodies, ensure_ascii=False)
    for mark in marks:
        assert mark in values or (isinstance(mark, str) and mark in written), f"{mark!r} did not arrive: {written[:1500]}"


def _values(value: Any) -> Any:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _values(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner)
    else:
        yield value


# --- text


def _is_hello(cell: Cell, told: Json) -> None:
    assert (told["text"].strip(), told.get("finish", "stop")) == (cell.backend.hello, "stop")


@feature
def text(cell: Cell) -> None:
    told = say(cell, "say hello")
    _is_hello(cell, told)
    if cell.client.front != "gemini":  # that API names the version that answered, not the model that was asked
        assert told.get("model") in (None, f"any-{cell.backend.name.replace(' ', '-')}")


@feature
def stream(cell: Cell) -> None:
    told = say(cell, "say hello", stream=True)
    _is_hello(cell, told)
    assert told["pieces"] > (0 if cell.backend.dialect == "gemini" else 1)  # the double there says it in one piece


@feature
def turns(cell: Cell) -> None:
    history = [user("ask-one"), {"role": "assistant", "text": "answer-one"}, user("ask-two: say hello")]
    _is_hello(cell, cell.run(op="chat", turns=history))
    _in_order(cell, "ask-one", "answer-one", "ask-two")


@feature
def system(cell: Cell) -> None:
    _is_hello(cell, cell.run(op="chat", system="system-words", turns=[user("say hello")]))
    arrived(cell, "system-words")


@feature
def developer(cell: Cell) -> None:
    _is_hello(cell, cell.run(op="chat", developer="developer-words", turns=[user("say hello")]))
    arrived(cell, "developer-words")


def _in_order(cell: Cell, *marks: str) -> None:
    arrived(cell, *marks)
    if not cell.backend.real:
        written = json.dumps(cell.sent()[-1])
        places = [written.index(mark) for mark in marks]
        assert places == sorted(places)


@feature
def completion(cell: Cell) -> None:
    _is_hello(cell, cell.run(op="text", prompt="say hello\n"))


@feature
def completion_stream(cell: Cell) -> None:
    _is_hello(cell, cell.run(op="text", prompt="say hello\n", stream=True))


# --- how much, and how


@feature
def usage(cell: Cell) -> None:
    _used(cell, say(cell, "say hello"))


@feature
def usage_stream(cell: Cell) -> None:
    _used(cell, say(cell, "say hello", stream=True))


def _used(cell: Cell, told: Json) -> None:
    prompt, made = told["usage"]
    assert made > 0
    assert prompt is None or prompt > 0  # TGI's clients are not told
    expected = cell.backend.usage
    if expected and cell.client.front != "llamacpp":
        assert (expected[0] if prompt is None else prompt, made) == expected


@feature
def limit(cell: Cell) -> None:
    told = say(cell, "run long", limit=cell.backend.limit)
    assert told["finish"] == "length"
    arrived(cell, cell.backend.limit)


@feature
def stop(cell: Cell) -> None:
    told = say(cell, "use stop", stop=[cell.backend.stop])
    if cell.client.front == "tgi":  # TGI's text keeps the stop that matched
        told["text"] = told["text"].removesuffix(cell.backend.stop)
    assert told["text"].strip() == cell.backend.stopped.strip()
    assert told["finish"] == "stop"
    arrived(cell, cell.backend.stop)


@feature
def sampling(cell: Cell) -> None:
    _is_hello(cell, say(cell, "say hello", temperature=0.625, top_p=0.375))
    arrived(cell, 0.625, 0.375)


@feature
def schema(cell: Cell) -> None:
    told = say(cell, "say hello", schema=SCHEMA)
    arrived(cell, "birthplace")
    if cell.backend.real:
        assert told["text"].lstrip().startswith("{")  # as much of it as the context holds


@feature
def n(cell: Cell) -> None:
    told = cell.run(op="chat", turns=[user("say hello")], n=2, temperature=0.5)
    assert [said.strip() for said in told["texts"]] == [cell.backend.hello] * 2


@feature
def logprobs(cell: Cell) -> None:
    told = say(cell, "say hello", logprobs=True)
    _is_hello(cell, told)
    assert told["logprobs"]
    assert all(value <= 0 for value in told["logprobs"])


# --- tools


def _calls(told: Json, *names: str) -> None:
    assert [call["name"] for call in told["calls"]] == list(names)
    assert all(call["args"]["city"] in ("Paris", "Rome") for call in told["calls"])
    assert told["finish"] == "tool_calls" or told["finish"] == "function_call"


@feature
def tools(cell: Cell) -> None:
    _calls(cell.run(op="chat", turns=[user("call tool")], tools=[WEATHER]), WEATHER)


@feature
def tools_stream(cell: Cell) -> None:
    _calls(cell.run(op="chat", turns=[user("call tool")], tools=[WEATHER], stream=True), WEATHER)


@feature
def tools_parallel(cell: Cell) -> None:
    for streamed in ({}, {"stream": True}):
        told = cell.run(op="chat", turns=[user("call two tools")], tools=[WEATHER, CLOCK], **streamed)
        assert len(told["calls"]) == 2
        assert {call["name"] for call in told["calls"]} <= {WEATHER, CLOCK}
        ids = [call["id"] for call in told["calls"] if call["id"]]
        assert len(set(ids)) == len(ids)


@feature
def tools_result(cell: Cell) -> None:
    asked = user("call tool")
    told = cell.run(op="chat", turns=[asked], tools=[WEATHER])
    turn = {"role": "assistant", "text": told["text"], "calls": told["calls"]}
    results = [{"id": call["id"], "name": call["name"], "text": "sunny-result"} for call in told["calls"]]
    told = cell.run(op="chat", turns=[asked, turn, {"role": "tool", "results": results}], tools=[WEATHER])
    arrived(cell, "sunny-result")
    assert "sunny-result" in told["text"] or cell.backend.name == "anthropic"  # its double does not repeat it
    assert not told["calls"] or cell.backend.name == "anthropic"


def _choose(cell: Cell, choice: str, *marks: Any) -> None:
    cell.run(op="chat", turns=[user("call tool")], tools=[WEATHER, CLOCK], choice=choice)
    if cell.backend.real:
        return
    path, said = CHOICES.get(cell.backend.dialect, ("tool_choice", []))
    found = _at(cell.sent()[-1], path)
    if choice == "none" and found is None:
        assert WEATHER not in json.dumps(cell.sent()[-1])  # whoever cannot forbid it is not told of tools
    else:
        assert found is not None, "tool_choice did not arrive"
        assert found == said[("required", "none", CLOCK).index(choice)]


CHOICES: dict[str, tuple[str, list[Any]]] = {  # dialect → (where it stands, what required, none and a name are there)
    "openai": ("tool_choice", ["required", "none", {"type": "function", "function": {"name": CLOCK}}]),
    "responses": ("tool_choice", ["required", "none", {"type": "function", "name": CLOCK}]),
    "anthropic": ("tool_choice", [{"type": "any"}, {"type": "none"}, {"type": "tool", "name": CLOCK}]),
    "bedrock": ("toolConfig.toolChoice", [{"any": {}}, None, {"tool": {"name": CLOCK}}]),
    "gemini": (
        "toolConfig.functionCallingConfig",
        [{"mode": "ANY"}, {"mode": "NONE"}, {"mode": "ANY", "allowedFunctionNames": [CLOCK]}],
    ),
}


def _at(body: Any, path: str) -> Any:
    for name in path.split("."):
        body = body.get(name) if isinstance(body, dict) else None
    return body


@feature
def choice_required(cell: Cell) -> None:
    _choose(cell, "required")


@feature
def choice_none(cell: Cell) -> None:
    _choose(cell, "none")


@feature
def choice_named(cell: Cell) -> None:
    _choose(cell, CLOCK)


# --- what else goes in and comes out


@feature
def image(cell: Cell) -> None:
    told = cell.run(op="chat", turns=[user("say hello", image=PNG)])
    _is_hello(cell, told)
    if (cell.client.front, cell.backend.dialect) == ("gemini", "gemini"):  # bytes are relayed, in the SDK's own alphabet
        arrived(cell, PNG.replace("+", "-").replace("/", "_"))
    else:
        arrived(cell, PNG)


@feature
def reasoning(cell: Cell) -> None:
    _reasons(cell, cell.run(op="chat", turns=[user("think first, think hard")], effort="high"))


@feature
def reasoning_stream(cell: Cell) -> None:
    _reasons(cell, cell.run(op="chat", turns=[user("think first, think hard")], effort="high", stream=True))


THOUGHTS = {
    "responses": "First this.",
    "anthropic": "First this.",
    "bedrock": "First this.",
    "gemini": "Let me think.",
    "ollama": "Let me see.",
}


def _reasons(cell: Cell, told: Json) -> None:
    assert told["text"].strip()
    if cell.backend.dialect not in THOUGHTS:  # OpenAI's Chat Completions keeps its thoughts to itself, others have none
        arrived(cell, "reasoning_effort")
        return
    assert told["thinking"] == THOUGHTS[cell.backend.dialect]


@feature
def errors(cell: Cell) -> None:
    bad = {"tgi": "fail 422", "llamacpp": "too long"}.get(cell.backend.name, "fail 400")
    for said, status in () if cell.backend.real else ((bad, 400), ("fail 429", 429)):
        fault = _fault(cell, said, {})
        unprocessable = status == 400 and "tgi" in (cell.client.front, cell.backend.dialect)
        assert fault.status == (422 if unprocessable else status)
        if status == 429 and cell.backend.name in ("openai", "responses", "anthropic", "llamacpp"):
            assert fault.retry in ("7", None if cell.client.sdk in UNTOLD else "7")
    fault = _fault(cell, "say hello", {"key": "wrong"})
    assert fault.status == 401


UNTOLD = ("litellm", "openai-0.28")  # clients whose exceptions have no headers


def _fault(cell: Cell, said: str, ask: Json) -> Refused:
    try:
        say(cell, said, **ask)
    except Refused as fault:
        return fault
    raise AssertionError(f"{said} {ask}: there was no error")


# --- the other operations


@feature
def embed(cell: Cell) -> None:
    told = cell.run(op="embed", input=["one text", "another, longer text"])
    assert len(told["vectors"]) == 2
    assert all(vector and all(isinstance(number, float | int) for number in vector) for vector in told["vectors"])
    assert told["vectors"][0] != told["vectors"][1]


@feature
def count(cell: Cell) -> None:
    assert cell.run(op="count", turns=[user("how many tokens are these words?")])["count"] > 3


@feature
def models(cell: Cell) -> None:
    assert f"any-{cell.backend.name.replace(' ', '-')}" in cell.run(op="models")["models"]
