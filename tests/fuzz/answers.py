"""The way back: random answers of each backend's API, of its vendor's own types, whole and as streams, through every front.

A stream is the same answer, cut as the vendor cuts it. What a client gets must be of its own API's types and grammar, the same
however the backend's bytes are cut, and say the same whether it was streamed or not.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ollama
from anthropic.types import Message, RawMessageStreamEvent
from botocore.session import get_session
from google.genai.types import GenerateContentResponse
from huggingface_hub import TextGenerationOutput, TextGenerationStreamOutput
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError

from proxy import wire
from proxy.dialects import load, path_params
from proxy.dialects._gemini_answer import FAILED
from proxy.errors import ProxyError
from proxy.folding import hub_of_answer, hub_of_stream
from proxy.translate import Endpoint, Translation
from tests.doubles import anthropic as anthropic_double
from tests.doubles import bedrock as bedrock_double
from tests.doubles import openai as openai_double
from tests.fuzz.fronts import ARGUMENTS, FRONTS, NAMES, PARTS
from tests.fuzz.hold import BACKENDS, Broken, at
from tests.fuzz.values import WORDS, Hints, Json, values

NOW = 1790000000
TOKENS = st.integers(0, 9)
CUT = 7  # bytes of a stream's pieces


@dataclass(frozen=True)
class Answers:
    """One backend's answers to a chat. `stream`: the events that say the same."""

    schema: Json
    hints: Hints
    mend: Callable[[Json], Json]
    stream: Callable[[Json], Iterator[Any]]
    framing: str = "sse"
    often: tuple[str, ...] = ("tool_calls", "content", "usage", "finish_reason")

    def whole(self) -> st.SearchStrategy[Json]:
        """Valid answers."""
        return values(self.schema, self.hints, self.often).map(lambda answer: self.mend(json.loads(json.dumps(answer))))


def _pieces(text: str) -> list[str]:
    return [text[i : i + 5] for i in range(0, len(text), 5)]


# --- openai


def _mend_completion(answer: Json) -> Json:
    choice = (answer["choices"] or [{"message": {"role": "assistant", "content": "hi"}}])[0]
    told = choice["message"]
    asked = [call for call in told.get("tool_calls") or () if call["type"] == "function"]  # others are in no stream's types
    calls = [{**call, "id": f"call_{i}"} for i, call in enumerate(asked)]
    message = {"role": "assistant", "content": told.get("content"), **({"tool_calls": calls} if calls else {})}
    if told.get("refusal") and not told.get("content"):
        message["refusal"] = told["refusal"]
    finish = "tool_calls" if calls else "stop" if choice.get("finish_reason") in ("tool_calls", "function_call") else None
    finish = finish or choice.get("finish_reason") or "stop"
    return {**answer, "choices": [{"index": 0, "message": message, "finish_reason": finish}]}


def _mend_text(answer: Json) -> Json:
    choice = (answer["choices"] or [{"text": "hi"}])[0]
    finish = choice.get("finish_reason") or "stop"
    return {**answer, "choices": [{"index": 0, "text": choice["text"], "logprobs": None, "finish_reason": finish}]}


def _text_chunks(answer: Json) -> Iterator[Json]:
    (choice,) = answer["choices"]
    for piece in _pieces(choice["text"]):
        yield {**answer, "choices": [{**choice, "text": piece, "finish_reason": None}], "usage": None}
    yield {**answer, "choices": [{**choice, "text": ""}]}


def _chunks(answer: Json) -> Iterator[Json]:
    head = {name: answer[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    message, finish = answer["choices"][0]["message"], answer["choices"][0]["finish_reason"]

    def chunk(delta: Json, finish: str | None = None) -> Json:
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "content": ""})
    for name in ("content", "refusal"):
        yield from (chunk({name: piece}) for piece in _pieces(message.get(name) or ""))
    for index, call in enumerate(message.get("tool_calls", ())):
        begun = {**call, "index": index, "function": {**call["function"], "arguments": ""}}
        yield chunk({"tool_calls": [begun]})
        for piece in _pieces(call["function"]["arguments"]):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, finish)
    if answer.get("usage"):
        yield {**head, "choices": [], "usage": answer["usage"]}


OPENAI_HINTS: Hints = {
    "arguments": ARGUMENTS.map(json.dumps),
    "name": NAMES,
    "created": st.just(NOW),
    "logprobs": st.none(),
    "moderation": st.none(),
    "usage": st.none()
    | st.builds(lambda a, b: {"prompt_tokens": a, "completion_tokens": b, "total_tokens": a + b}, TOKENS, TOKENS),
}
OPENAI = Answers(ChatCompletion.model_json_schema(), OPENAI_HINTS, _mend_completion, _chunks)
OPENAI_TEXT = Answers(Completion.model_json_schema(), OPENAI_HINTS, _mend_text, _text_chunks)

# --- responses

ITEMS = ("ResponseOutputMessage", "ResponseFunctionToolCall", "ResponseReasoningItem", "ResponseCustomToolCall")


def _response_schema() -> Json:
    """Its output: the items that are no tools of the vendor's own."""
    schema = Response.model_json_schema()
    output = {"type": "array", "items": {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in ITEMS]}}
    return {**schema, "properties": {**schema["properties"], "output": output}}


UNSAID = ("caller", "phase", "namespace")  # of what only the vendor's own tools bring


def _mend_response(answer: Json) -> Json:
    output: list[Json] = []
    said = any(part["type"] == "output_text" for item in answer["output"] for part in item.get("content") or ())
    for i, item in enumerate(answer["output"]):
        item = {name: value for name, value in item.items() if value is not None and name not in UNSAID}
        if item["type"] == "reasoning":
            item.pop("content", None)
        if said and "content" in item:  # a model that refuses says nothing else
            item["content"] = [part for part in item["content"] if part["type"] != "refusal"]
        for part in item.get("content", ()):
            if part["type"] == "output_text":
                part |= {"annotations": [], "logprobs": []}
        item |= {"id": f"item_{i}", "status": "completed"}
        output.append({**item, "call_id": f"call_{i}"} if "call_id" in item else item)
    status = answer.get("status") if answer.get("status") in ("completed", "incomplete") else "completed"
    why = {"reason": "max_output_tokens"} if status == "incomplete" else None
    plain = {"tools": [], "tool_choice": "auto", "metadata": {}, "error": None, "created_at": NOW, "object": "response"}
    needed = {name: answer[name] for name in ("id", "model", "parallel_tool_calls", "usage") if name in answer}
    return {**plain, **needed, "status": status, "incomplete_details": why, "output": output}


def _response_events(answer: Json) -> Iterator[Json]:
    begun = {**answer, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    events = [{"type": f"response.{name}", "response": begun} for name in ("created", "in_progress")]
    events += openai_double._item_events(answer["output"])
    events.append({"type": f"response.{answer['status']}", "response": answer})
    yield from ({**event, "sequence_number": number} for number, event in enumerate(events))


RESPONSE_USAGE = st.none() | st.builds(
    lambda a, b: {
        "input_tokens": a,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": b,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": a + b,
    },
    TOKENS,
    TOKENS,
)
RESPONSES = Answers(
    _response_schema(),
    {"arguments": ARGUMENTS.map(json.dumps), "name": NAMES, "usage": RESPONSE_USAGE},
    _mend_response,
    _response_events,
    "named-sse",
)

# --- anthropic


def _mend_message(answer: Json) -> Json:
    content = [{**block, "id": f"toolu_{i}"} if "id" in block else block for i, block in enumerate(answer["content"])]
    uses = any(block["type"] == "tool_use" for block in content)
    reason = "tool_use" if uses else answer.get("stop_reason")
    reason = reason if uses or reason not in (None, "tool_use") else "end_turn"
    return {**answer, "content": content, "stop_reason": reason, "stop_sequence": answer.get("stop_sequence")}


ANTHROPIC = Answers(
    Message.model_json_schema(),
    {"input": ARGUMENTS, "name": NAMES, "container": st.none(), "citations": st.none(), "caller": st.just({"type": "direct"})},
    _mend_message,
    anthropic_double.events,
    "named-sse",
)

# --- gemini


def _mend_gemini(answer: Json) -> Json:
    candidate = (answer.get("candidates") or [{}])[0]
    known = {name: candidate[name] for name in ("content", "finishReason", "safetyRatings", "index") if name in candidate}
    if known.get("finishReason") in FAILED:  # which is told as an error
        del known["finishReason"]
    known = {"finishReason": "STOP", **{name: value for name, value in known.items() if value is not None}}
    parts = [part for part in (known.get("content") or {}).get("parts") or () if part]
    known["content"] = {"role": "model", "parts": parts}
    kept = {name: answer[name] for name in ("responseId", "modelVersion", "usageMetadata") if answer.get(name)}
    return {**kept, "candidates": [{**known, "index": 0}]}


def _gemini_events(answer: Json) -> Iterator[Json]:
    (candidate,) = answer["candidates"]
    head = {name: answer[name] for name in ("responseId", "modelVersion") if name in answer}
    for part in candidate["content"]["parts"]:
        cut = [{**part, "text": piece} for piece in _pieces(part["text"])] if "text" in part else [part]
        yield from ({**head, "candidates": [{"content": {"role": "model", "parts": [piece]}, "index": 0}]} for piece in cut)
    yield {**answer, "candidates": [{**candidate, "content": {"role": "model", "parts": []}}]}


GEMINI = Answers(
    GenerateContentResponse.model_json_schema(by_alias=True),
    {
        "parts": st.lists(PARTS, max_size=3),
        "usageMetadata": st.none()
        | st.builds(lambda a, b: {"promptTokenCount": a, "candidatesTokenCount": b, "totalTokenCount": a + b}, TOKENS, TOKENS),
        "sdkHttpResponse": st.none(),
        "automaticFunctionCallingHistory": st.none(),
        "parsed": st.none(),
    },
    _mend_gemini,
    _gemini_events,
    often=("candidates", "content", "parts", "finishReason", "usageMetadata"),
)

# --- ollama


def _ended(answer: Json) -> Json:
    """What an answer of Ollama's says at its end."""
    counts = {name: answer.get(name) or 0 for name in ("prompt_eval_count", "eval_count")}
    reason = answer.get("done_reason") if answer.get("done_reason") in ("stop", "length") else "stop"
    head = {"model": answer.get("model") or "tiny", "created_at": "2026-11-21T12:00:00Z", "done": True, "done_reason": reason}
    return {**head, **counts}


def _mend_ollama(answer: Json) -> Json:
    message = {name: value for name, value in answer["message"].items() if value is not None and name != "images"}
    calls = [{"function": call["function"]} for call in message.pop("tool_calls", ())]
    message |= {"role": "assistant", "content": message.get("content", ""), **({"tool_calls": calls} if calls else {})}
    return {**_ended(answer), "message": {name: value for name, value in message.items() if name != "tool_name"}}


def _ollama_events(answer: Json) -> Iterator[Json]:
    head = {name: answer[name] for name in ("model", "created_at")}
    message = answer["message"]
    for name in ("thinking", "content"):
        for piece in _pieces(message.get(name) or ""):
            yield {**head, "message": {"role": "assistant", "content": "", name: piece}, "done": False}
    for call in message.get("tool_calls", ()):
        yield {**head, "message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": False}
    yield {**answer, "message": {"role": "assistant", "content": ""}}


def _mend_generated(answer: Json) -> Json:
    thought = {"thinking": answer["thinking"]} if answer.get("thinking") else {}
    return {**_ended(answer), "response": answer.get("response") or "", **thought}


def _generated_events(answer: Json) -> Iterator[Json]:
    head = {name: answer[name] for name in ("model", "created_at")}
    for name in ("thinking", "response"):
        yield from ({**head, "response": "", name: piece, "done": False} for piece in _pieces(answer.get(name, "")))
    yield {**{name: value for name, value in answer.items() if name != "thinking"}, "response": ""}


OLLAMA = Answers(
    ollama.ChatResponse.model_json_schema(),
    {"arguments": ARGUMENTS, "name": NAMES, "logprobs": st.none()},
    _mend_ollama,
    _ollama_events,
    "ndjson",
    ("tool_calls", "thinking", "content"),
)
OLLAMA_TEXT = Answers(
    ollama.GenerateResponse.model_json_schema(),
    {"logprobs": st.none(), "image": st.none()},
    _mend_generated,
    _generated_events,
    "ndjson",
    ("thinking",),
)

# --- text-generation-inference


def _mend_tgi(answer: Json) -> Json:
    details = {**(answer.get("details") or {}), "prefill": [], "best_of_sequences": None, "top_tokens": None}
    words = _pieces(answer["generated_text"])
    tokens = [{"id": i, "logprob": -1.0, "special": False, "text": word} for i, word in enumerate(words)]
    reason = details.get("finish_reason") or "length"
    return {**answer, "details": {**details, "finish_reason": reason, "generated_tokens": len(tokens), "tokens": tokens}}


def _tgi_events(answer: Json) -> Iterator[Json]:
    details = {name: answer["details"].get(name) for name in ("finish_reason", "generated_tokens", "seed")}
    tokens = answer["details"]["tokens"]
    for i, token in enumerate(tokens):
        whole = {"generated_text": answer["generated_text"], "details": {**details, "input_length": 3}}
        yield {"index": i + 1, "token": token, **(whole if token is tokens[-1] else {"generated_text": None, "details": None})}


TGI = Answers(
    TypeAdapter(TextGenerationOutput).json_schema(), {"generated_text": WORDS}, _mend_tgi, _tgi_events, often=("details",)
)

# --- bedrock


def _of_shape(shape: Any) -> Json:
    """botocore's shape as JSON Schema."""
    kind, facts = shape.type_name, shape.metadata
    if getattr(shape, "is_document_type", False):
        return {"type": "object"}
    if kind == "structure":
        fields = {name: _of_shape(member) for name, member in shape.members.items()}
        if getattr(shape, "is_tagged_union", False):
            alone = [{"type": "object", "properties": {name: each}, "required": [name]} for name, each in fields.items()]
            return {"anyOf": alone}
        return {"type": "object", "properties": fields, "required": list(shape.required_members)}
    if kind == "list":
        return {"type": "array", "items": _of_shape(shape.member)}
    if kind == "map":
        return {"type": "object"}
    scalar = {"string": "string", "blob": "string", "boolean": "boolean", "float": "number", "double": "number"}.get(kind)
    return {"type": scalar or "integer", **({"enum": facts["enum"]} if "enum" in facts else {})}


SAID = ("text", "toolUse", "reasoningContent")  # what models say in ConverseStream


def _bedrock_schema() -> Json:
    shape = get_session().get_service_model("bedrock-runtime").operation_model("Converse").output_shape
    schema = {name: _of_shape(shape.members[name]) for name in ("stopReason", "usage", "metrics")}
    blocks = shape.members["output"].members["message"].members["content"].member.members
    alone = [{"type": "object", "properties": {name: _of_shape(blocks[name])}, "required": [name]} for name in SAID]
    message = {"content": {"type": "array", "items": {"anyOf": alone}}}
    output = {"message": {"type": "object", "properties": message, "required": ["content"]}}
    schema["output"] = {"type": "object", "properties": output, "required": ["message"]}
    return {"type": "object", "properties": schema, "required": list(schema)}


def _mend_bedrock(answer: Json) -> Json:
    content = answer["output"]["message"]["content"]
    for i, block in enumerate(content):
        if "toolUse" in block:
            use = block["toolUse"]
            block["toolUse"] = {"toolUseId": f"tooluse_{i}", "name": use["name"], "input": use["input"]}
    uses = any("toolUse" in block for block in content)
    said = answer["stopReason"]
    reason = "tool_use" if uses else "end_turn" if said.startswith(("tool", "malformed")) else said  # those are refused
    output = {"message": {"role": "assistant", "content": content}}
    return {"output": output, "stopReason": reason, "usage": answer["usage"], "metrics": {"latencyMs": 7}}


def _bedrock_events(answer: Json) -> Iterator[Json]:
    return ({name: event} for name, event in bedrock_double.events(answer))


BEDROCK = Answers(
    _bedrock_schema(),
    {"input": ARGUMENTS, "name": NAMES, "redactedContent": st.just("aGk="), "signature": WORDS},
    _mend_bedrock,
    _bedrock_events,
    "ndjson",
)
ANSWERS: Mapping[str, Answers] = {  # backend, or what it completes a text with where that is another operation
    "openai": OPENAI,
    "openai-text": OPENAI_TEXT,
    "responses": RESPONSES,
    "anthropic": ANTHROPIC,
    "gemini": GEMINI,
    "ollama": OLLAMA,
    "ollama-text": OLLAMA_TEXT,
    "tgi": TGI,
    "bedrock": BEDROCK,
}

# --- what a client gets

SAY = [{"role": "user", "content": "hi"}]
ASKED: Mapping[str, tuple[Json, str]] = {  # front → its plainest request, and the path of its streams
    "openai": ({"model": "m", "messages": SAY}, ""),
    "openai-text": ({"model": "m", "prompt": "hi"}, ""),
    "responses": ({"model": "m", "input": "hi"}, ""),
    "anthropic": ({"model": "m", "max_tokens": 2000, "messages": SAY}, ""),
    "gemini": ({"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}, "/v1beta/models/m:streamGenerateContent"),
    "ollama": ({"model": "m", "messages": SAY}, ""),
    "ollama-text": ({"model": "m", "prompt": "hi"}, ""),
    "tgi": ({"inputs": "hi", "parameters": {"details": True}}, "/generate_stream"),
    "llamacpp": ({"prompt": "hi"}, ""),
}
TYPES: Mapping[str, tuple[TypeAdapter[Any], TypeAdapter[Any]]] = {  # front → of a whole answer, of an event
    "openai": (TypeAdapter(ChatCompletion), TypeAdapter(ChatCompletionChunk)),
    "openai-text": (TypeAdapter(Completion), TypeAdapter(Completion)),
    "responses": (TypeAdapter(Response), TypeAdapter(ResponseStreamEvent)),
    "anthropic": (TypeAdapter(Message), TypeAdapter(RawMessageStreamEvent)),
    "gemini": (TypeAdapter(GenerateContentResponse), TypeAdapter(GenerateContentResponse)),
    "ollama": (TypeAdapter(ollama.ChatResponse), TypeAdapter(ollama.ChatResponse)),
    "ollama-text": (TypeAdapter(ollama.GenerateResponse), TypeAdapter(ollama.GenerateResponse)),
    "tgi": (TypeAdapter(TextGenerationOutput), TypeAdapter(TextGenerationStreamOutput)),
    "llamacpp": (TypeAdapter(dict), TypeAdapter(dict)),
}
PINGS = ("ping",)  # events of Anthropic's that its types leave out


def hold_answer(front: str, name: str, answer: Json) -> None:
    """An answer's way to a client, whole and as a stream. front, name: of `each`. Raises Broken."""
    whole = _way(front, name)
    assert whole is not None
    try:
        got = whole.answer(json.loads(json.dumps(answer)))
        _typed(front, got, event=False)
        events = _streamed(front, name, answer)
        for event in events:
            _typed(front, event, event=True)
        _same(front, whole, got, events)
    except ProxyError as fault:
        raise Broken(f"{name}'s answer is refused: {fault.message}") from fault


def _translation(front: str, backend: str, stream: bool) -> Translation | None:
    """A call in which the plainest request has gone up; None where that API has no way there, or bytes go through."""
    asked, (body, path) = FRONTS[front], ASKED[front]
    path = path if stream and path else asked.path
    generation, place = at(backend)
    found = generation.find(place, asked.dialect, asked.method, path)
    endpoint: Endpoint | None = found[0] if found else None
    if endpoint is None or endpoint.entry.unsupported or not endpoint.mapped:
        return None
    made = Translation(endpoint, "f" * 28, asked.dialect, asked.method, path, NOW)
    body = body if ASKED[front][1] else {**body, "stream": stream}
    made.request(body, stream, path_params(asked.dialect, asked.method, path), "", BACKENDS[backend][0])
    return made


def _streamed(front: str, name: str, answer: Json) -> list[Any]:
    """The client's events. Raises Broken when other ones come of the same bytes in small pieces."""
    given, backend = ANSWERS[name], name.removesuffix("-text")
    data = b"".join(wire.write(given.framing, given.stream(answer), load(backend).done))
    read = wire.reader(wire.CONTENT_TYPES[given.framing].partition(";")[0])
    pieces = [data[i : i + CUT] for i in range(0, len(data), CUT)]
    first, second = (_events(front, backend, read(cut)) for cut in ([data], pieces))
    if first != second:
        raise Broken(f"{backend}: another stream when its bytes come in pieces")
    return first


def _events(front: str, backend: str, events: Iterator[Any]) -> list[Any]:
    call = _translation(front, backend, stream=True)
    assert call is not None
    return list(call.checked(call.events(events)))


def _typed(front: str, value: Any, event: bool) -> None:
    if event and isinstance(value, dict) and value.get("type") in PINGS:
        return
    plain = json.loads(json.dumps(value))
    if event and front == "openai-text":  # whose type is that of the whole answer, where a reason is never null
        plain["choices"] = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in plain["choices"]]
    try:
        TYPES[front][event].validate_python(plain)
    except ValidationError as fault:
        what = "an event" if event else "an answer"
        raise Broken(f"{front} gets {what} that is none of its API: {str(fault)[:300]}; {json.dumps(value)[:600]}") from None


def _same(front: str, call: Translation, got: Json, events: list[Any]) -> None:
    """Whether an answer and its stream say the same: its text, its calls, why it ended."""
    asked = FRONTS[front]
    cfg = {"id": "f" * 28, "now": NOW, "request": ASKED[front][0], "kind": call.kind}
    dialect = load(asked.dialect)
    first = _said(hub_of_answer(dialect, call.kind, got, cfg))
    second = _said(hub_of_stream(dialect, call.kind, events, cfg))
    if first != second:
        raise Broken(f"{front} gets {first} whole, and {second} as a stream")


def _said(answer: Json) -> Json:
    (choice,) = answer["choices"]
    message = choice.get("message") or {"content": choice.get("text")}
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"] or "{}"))
        for call in message.get("tool_calls") or ()
        if "function" in call
    ]
    return {"text": message.get("content") or "", "calls": calls, "finish": choice.get("finish_reason")}


def each() -> Iterator[tuple[str, str]]:
    """(front, name of ANSWERS) of every way back that there is."""
    return ((front, name) for front, name in itertools.product(ASKED, ANSWERS) if _way(front, name))


def _way(front: str, name: str) -> Translation | None:
    """A call of that front that the backend answers so."""
    backend = name.removesuffix("-text")
    call = _translation(front, backend, stream=False)
    other = call is not None and f"{backend}-text" in ANSWERS and (call.kind == "text") != name.endswith("-text")
    return None if other else call
