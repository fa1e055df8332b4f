"""A strict stand-in for OpenAI's API: refuses what the service refuses, answers what the last user message asks for.

Shapes come from the openai SDK's own types, with unknown fields forbidden; the rest from the published rules of the API.
The scenario named last in the last user text wins: say hello, call tool, call two tools, think first (Responses: a reasoning
item), run long, use stop, refuse this, filter this, log tokens, fail 400|401|404|429|500|503, error stream, cut stream.
After a tool result the answer repeats it.
Serves chat completions, completions, embeddings, models, responses, their token count, and
echoes multipart uploads to /v1/files and /v1/audio/*.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Union

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as text_params
import openai.types.responses.response_create_params as response_params
from openai.types.chat import ChatCompletionMessageParam
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses import ResponseInputItemParam
from openai.types.responses.input_token_count_params import InputTokenCountParams
from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

Json = dict[str, Any]

CREATED = 1790000000
MODELS = ("gpt-4.1", "gpt-5.2", "text-embedding-3-small", "gpt-3.5-turbo-instruct")
KINDS = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
    500: ("server_error", None),
    503: ("server_error", None),
}


class Refusal(Exception):
    """What the service answers instead."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        kind, code = KINDS[status]
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


# --- what is legal


def _forbid_extras() -> None:
    """pydantic ignores unknown keys of a TypedDict unless told otherwise; schemas stay open."""
    for module in list(sys.modules.values()):
        if not (module.__name__ or "").startswith("openai.types.") or ".beta" in module.__name__:
            continue
        for kind in vars(module).values():
            if is_typeddict(kind) and not hasattr(kind, "__pydantic_config__"):
                kind.__pydantic_config__ = {"extra": "forbid"}


_forbid_extras()
CHAT: TypeAdapter[Any] = TypeAdapter(
    Union[chat_params.CompletionCreateParamsStreaming, chat_params.CompletionCreateParamsNonStreaming]  # noqa: UP007
)
MESSAGES: TypeAdapter[Any] = TypeAdapter(list[ChatCompletionMessageParam])
TEXT: TypeAdapter[Any] = TypeAdapter(
    Union[text_params.CompletionCreateParamsStreaming, text_params.CompletionCreateParamsNonStreaming]  # noqa: UP007
)
EMBED: TypeAdapter[Any] = TypeAdapter(EmbeddingCreateParams)
RESPONSE: TypeAdapter[Any] = TypeAdapter(
    Union[response_params.ResponseCreateParamsStreaming, response_params.ResponseCreateParamsNonStreaming]  # noqa: UP007
)
ITEMS: TypeAdapter[Any] = TypeAdapter(list[ResponseInputItemParam])
COUNT: TypeAdapter[Any] = TypeAdapter(InputTokenCountParams)


def _drained(value: Any) -> None:
    """pydantic checks an Iterable only when it is walked."""
    if isinstance(value, dict):
        for item in value.values():
            _drained(item)
    elif not isinstance(value, (str, bytes)) and hasattr(value, "__iter__"):
        for item in value:
            _drained(item)


def _valid(adapter: TypeAdapter[Any], value: Any, at: str = "") -> None:
    try:
        _drained(adapter.validate_python(value))
    except ValidationError as fault:
        first = fault.errors()[0]
        param = at + ".".join(str(part) for part in first["loc"])
        raise Refusal(400, f"Invalid value for '{param}': {first['msg']}", param) from None


def _model(body: Json) -> None:
    if body.get("model") not in MODELS:
        raise Refusal(404, f"The model `{body.get('model')}` does not exist or you do not have access to it.")


NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def _ranges(body: Json) -> None:
    for name, low, high in (("temperature", 0, 2), ("top_p", 0, 1), ("presence_penalty", -2, 2), ("frequency_penalty", -2, 2)):
        if body.get(name) is not None and not low <= body[name] <= high:
            raise Refusal(400, f"{name} is out of range", name)
    if isinstance(body.get("stop"), list) and not 1 <= len(body["stop"]) <= 4:
        raise Refusal(400, "stop must have 1 to 4 entries", "stop")
    if "stream_options" in body and body["stream_options"] is not None and not body.get("stream"):
        raise Refusal(400, "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")


def _tools(body: Json, names: list[Any]) -> None:
    if "tools" in body and not names:
        raise Refusal(400, "[] is too short - 'tools'", "tools")
    for field in ("tool_choice", "parallel_tool_calls"):
        if body.get(field) is not None and not names and body[field] not in ("none", "auto"):
            raise Refusal(400, f"'{field}' is only allowed when 'tools' are specified.", field)
    for name in names:
        if name is not None and not NAME.fullmatch(name):
            raise Refusal(400, f"Invalid tool name {name!r}", "tools")
    if len(set(names)) < len(names):
        raise Refusal(400, "tool names must be unique", "tools")
    for tool in body.get("tools", ()):
        schema = tool.get("function", tool).get("parameters") or {}
        if schema.get("type") == "object" and "properties" not in schema:
            raise Refusal(400, "Invalid schema for function: In context=(), object schema missing properties.", "tools")
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        named = choice.get(choice["type"], choice)
        if choice["type"] in ("function", "custom") and named["name"] not in names:
            raise Refusal(400, "Tool choice names a tool that is not in 'tools'.", "tool_choice")


def check_chat(body: Json) -> None:
    """A legal chat request. Raises Refusal."""
    _valid(CHAT, {**body, "messages": []})
    _model(body)
    _ranges(body)
    _valid(MESSAGES, body.get("messages"), "messages.")
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        raise Refusal(400, "max_tokens and max_completion_tokens cannot both be set", "max_tokens")
    if body.get("metadata") and not body.get("store"):
        raise Refusal(400, "The 'metadata' parameter is only allowed when 'store' is enabled.", "metadata")
    _tools(body, [tool[tool["type"]]["name"] for tool in body.get("tools", ())])
    if not body["messages"]:
        raise Refusal(400, "[] is too short - 'messages'", "messages")
    owed: set[str] = set()
    for i, message in enumerate(body["messages"]):
        owed = _check_message(message, owed, f"messages.[{i}]")
    if owed:
        raise Refusal(400, f"tool_call_ids did not have response messages: {sorted(owed)}", "messages")


def _check_message(message: Json, owed: set[str], at: str) -> set[str]:
    role, content = message["role"], message.get("content")
    if role == "tool":
        if message["tool_call_id"] not in owed:
            raise Refusal(400, "messages with role 'tool' must be a response to a preceding message with 'tool_calls'", at)
        return owed - {message["tool_call_id"]}
    if owed:
        raise Refusal(400, f"tool_call_ids did not have response messages: {sorted(owed)}", at)
    if content is None and not message.get("tool_calls") and not message.get("function_call"):
        raise Refusal(400, f"Invalid value for 'content' of {at}: expected a string, got null.", f"{at}.content")
    for part in content if isinstance(content, list) else ():
        url = part["image_url"]["url"] if part["type"] == "image_url" else "https:"
        if not re.match(r"https?:|data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+=*$", url):
            raise Refusal(400, "Failed to read an image", f"{at}.content")
    ids = [call["id"] for call in message.get("tool_calls", ())]
    if any(len(call_id) > 40 for call_id in ids):
        raise Refusal(400, f"Invalid '{at}.tool_calls[0].id': string too long. Expected a string with maximum length 40.", at)
    return set(ids)


def check_response(body: Json) -> None:
    """A legal Responses request. Raises Refusal."""
    known = {name: value for name, value in body.items() if name != "client_metadata"}
    if isinstance(known.get("tools"), list):  # the types demand `strict`, the service does not
        known["tools"] = [{"strict": None, **tool} if tool.get("type") == "function" else tool for tool in known["tools"]]
    _valid(RESPONSE, {**known, "input": []})
    _model(body)
    _ranges({name: value for name, value in body.items() if name != "stream_options"})
    if body.get("max_output_tokens") is not None and body["max_output_tokens"] < 16:
        raise Refusal(400, "Invalid 'max_output_tokens': expected a value >= 16.", "max_output_tokens")
    _tools(body, [tool.get("name") for tool in body.get("tools", ())])
    if isinstance(body.get("input"), str):
        return
    _valid(ITEMS, [_with_id(item) for item in body["input"]] if isinstance(body.get("input"), list) else None, "input.")
    calls: set[str] = set()
    for i, item in enumerate(body["input"]):
        kind = item.get("type", "message")
        if "call_id" in item and not 1 <= len(item["call_id"]) <= 64:
            raise Refusal(400, f"Invalid 'input[{i}].call_id': string too long.", f"input[{i}].call_id")
        if kind in ("function_call", "custom_tool_call"):
            calls.add(item["call_id"])
        if kind.endswith("_call_output") and item.get("call_id") not in calls:
            raise Refusal(400, f"No tool call found for function call output with call_id {item.get('call_id')}.", "input")
        if kind == "reasoning" and item.get("encrypted_content") != encrypted(item["id"]):
            raise Refusal(400, "The encrypted content could not be verified.", f"input[{i}]")


def _with_id(item: Any) -> Any:
    """The types demand an id and a status of an assistant's turn with parts, the service does not."""
    parts = isinstance(item, dict) and item.get("role") == "assistant" and isinstance(item.get("content"), list)
    return {"id": "msg_x", "status": "completed", **item} if parts else item


def encrypted(item_id: str) -> str:
    return "gAAAA" + hashlib.sha256(item_id.encode()).hexdigest()


# --- what is answered

USAGE = {
    "prompt_tokens": 17,
    "completion_tokens": 9,
    "total_tokens": 26,
    "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 0, "cache_write_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0},
}
HELLO = "Hello there, friend! ✨"
SCENARIOS: dict[str, Json] = {  # → what the model says, calls, and how it ends
    "say hello": {"text": HELLO},
    "call tool": {"text": "Let me look.", "cities": ["Paris"]},
    "call two tools": {"text": "", "cities": ["Paris", "Rome"]},
    "think first": {"text": "So.", "thought": "First this."},
    "run long": {"text": "and so on and", "finish": "length"},
    "use stop": {"text": "before STOP after"},
    "refuse this": {"refusal": "I cannot do that.", "text": ""},
    "filter this": {"text": "No", "finish": "content_filter"},
    "log tokens": {"text": "Hi you", "logprobs": True},
    "error stream": {"text": "about to fail", "breaks": "error"},
    "cut stream": {"text": "about to be cut", "breaks": "cut"},
}
FAILURE = re.compile(r"fail (400|401|404|429|500|503)")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or ())


def scenario(asked: str) -> Json:
    failure = FAILURE.search(asked)
    if failure:
        raise Refusal(int(failure[1]), f"failed with {failure[1]} as asked")
    found = sorted((asked.rfind(name), len(name), name) for name in SCENARIOS if name in asked)
    return SCENARIOS[found[-1][2]] if found else {"text": HELLO}


def _plan(turns: list[Json], names: list[str]) -> Json:
    """turns: {"user": text} and {"tool": text}; a result that came last is repeated."""
    last = turns[-1] if turns else {}
    if "tool" in last:
        return {"text": f"The tool said: {last['tool']}", "calls": [], "finish": "stop"}
    plan = scenario(next((turn["user"] for turn in reversed(turns) if "user" in turn), ""))
    cities = plan.get("cities", []) if names else []
    calls = [(f"call_{i}{'x' * 20}", names[min(i, len(names) - 1)], {"city": city}) for i, city in enumerate(cities)]
    return {"finish": "tool_calls" if calls else "stop", **plan, "calls": calls}


def _pieces(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+$", text)


def _logprob(token: str) -> Json:
    return {"token": token, "logprob": -0.25, "bytes": list(token.encode()), "top_logprobs": []}


def _chat_plan(body: Json) -> Json:
    turns = [
        {"tool" if message["role"] == "tool" else "user": _text(message.get("content"))}
        for message in body["messages"]
        if message["role"] in ("user", "tool")
    ]
    return _stopped(_plan(turns, [tool[tool["type"]]["name"] for tool in body.get("tools", ())]), body)


def _stopped(plan: Json, body: Json) -> Json:
    """What is left before the first stop; a stop is not part of the answer."""
    stops = body.get("stop") or ()
    cut = [at for at in (plan["text"].find(stop) for stop in ([stops] if isinstance(stops, str) else stops)) if at >= 0]
    return {**plan, "text": plan["text"][: min(cut)]} if cut else plan


def _head(kind: str, body: Json) -> Json:
    return {"id": "chatcmpl-double", "object": kind, "created": CREATED, "model": body["model"], "service_tier": "default"}


def chat_answer(body: Json) -> Json:
    plan = _chat_plan(body)
    calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for call_id, name, arguments in plan["calls"]
    ]
    message = {"role": "assistant", "content": plan["text"] or None, "refusal": plan.get("refusal"), "annotations": []}
    if calls:
        message["tool_calls"] = calls
    listed = [_logprob(piece) for piece in _pieces(plan["text"])]
    choice = {
        "message": message,
        "logprobs": {"content": listed, "refusal": None} if body.get("logprobs") else None,
        "finish_reason": plan["finish"],
    }
    choices = [{"index": i, **choice} for i in range(body.get("n") or 1)]
    return {**_head("chat.completion", body), "choices": choices, "usage": USAGE, "system_fingerprint": "fp_double"}


def chat_events(body: Json) -> Iterator[Json]:
    plan = _chat_plan(body)
    counted = (body.get("stream_options") or {}).get("include_usage")
    head = {**_head("chat.completion.chunk", body), "system_fingerprint": "fp_double", **({"usage": None} if counted else {})}

    def chunk(index: int, delta: Json, finish: str | None = None, **extra: Any) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **extra}
        return {**head, "choices": [choice], "obfuscation": "xyz"}

    for index in range(body.get("n") or 1):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        for piece in _pieces(plan["text"]):
            listed = {"logprobs": {"content": [_logprob(piece)], "refusal": None}} if body.get("logprobs") else {}
            yield chunk(index, {"content": piece}, **listed)
        if plan.get("refusal"):
            yield chunk(index, {"refusal": plan["refusal"]})
        for slot, (call_id, name, arguments) in enumerate(plan["calls"]):
            function = {"name": name, "arguments": ""}
            yield chunk(index, {"tool_calls": [{"index": slot, "id": call_id, "type": "function", "function": function}]})
            for piece in _pieces(json.dumps(arguments)):
                yield chunk(index, {"tool_calls": [{"index": slot, "function": {"arguments": piece}}]})
        if plan.get("breaks") == "error":
            yield {"error": {"message": "the model broke", "type": "server_error", "param": None, "code": None}}
        if plan.get("breaks"):
            return
        yield chunk(index, {}, plan["finish"])
    if counted:
        yield {**head, "choices": [], "usage": USAGE}


def text_answer(body: Json) -> Json:
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    choices = []
    for i, prompt in enumerate(prompts):
        plan = _stopped(scenario(prompt if isinstance(prompt, str) else ""), body)
        said = (prompt if body.get("echo") else "") + plan["text"]
        listed = _text_logprobs(plan["text"]) if body.get("logprobs") is not None else None
        choices.append({"index": i, "text": said, "logprobs": listed, "finish_reason": plan.get("finish", "stop")})
    head = {"id": "cmpl-double", "object": "text_completion", "created": CREATED, "model": body["model"]}
    return {**head, "choices": choices, "usage": USAGE}


def _text_logprobs(text: str) -> Json:
    tokens = _pieces(text)
    offsets = [len("".join(tokens[:i])) for i in range(len(tokens))]
    tops = [{token: -0.25} for token in tokens]
    return {"tokens": tokens, "token_logprobs": [-0.25] * len(tokens), "top_logprobs": tops, "text_offset": offsets}


def text_events(body: Json) -> Iterator[Json]:
    whole = text_answer(body)
    head = {name: whole[name] for name in ("id", "object", "created", "model")}
    plan = scenario(body["prompt"] if isinstance(body["prompt"], str) else "")
    for choice in whole["choices"]:
        for piece in _pieces(choice["text"]):
            listed = _text_logprobs(piece) if choice["logprobs"] else None
            yield {**head, "choices": [{"index": choice["index"], "text": piece, "logprobs": listed, "finish_reason": None}]}
        if plan.get("breaks"):
            return
        yield {**head, "choices": [{**choice, "text": "", "logprobs": None}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": USAGE}


def vector(text: str, size: int) -> list[float]:
    digest = hashlib.sha256(text.encode()).digest()
    return [digest[i % 32] / 256 for i in range(size)]


def embed_answer(body: Json) -> Json:
    given = body["input"]
    texts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    if not texts or not all(texts):
        raise Refusal(400, "'input' must not be empty", "input")
    vectors = [vector(str(text), body.get("dimensions", 8)) for text in texts]
    if body.get("encoding_format") == "base64":
        shown: list[Any] = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in vectors]
    else:
        shown = vectors
    data = [{"object": "embedding", "index": i, "embedding": found} for i, found in enumerate(shown)]
    return {"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 4, "total_tokens": 4}}


# --- responses


def _response_plan(body: Json) -> Json:
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    turns: list[Json] = []
    for item in items:
        if item.get("type", "").endswith("_call_output"):
            turns.append({"tool": _text(item["output"])})
        elif item.get("role") == "user":
            turns.append({"user": _text(item["content"])})
    plan = _plan(turns, [tool["name"] for tool in body.get("tools", ()) if tool["type"] in ("function", "custom")])
    return {**plan, "customs": {tool["name"] for tool in body.get("tools", ()) if tool["type"] == "custom"}}


def _output(body: Json, plan: Json) -> list[Json]:
    cut = plan["finish"] in ("length", "content_filter")
    status = "incomplete" if cut else "completed"
    output: list[Json] = []
    if plan.get("thought"):
        item = {"id": "rs_double", "type": "reasoning", "summary": [{"type": "summary_text", "text": plan["thought"]}]}
        wanted = "reasoning.encrypted_content" in (body.get("include") or ())
        output.append({**item, **({"encrypted_content": encrypted("rs_double")} if wanted else {})})
    parts = [{"type": "output_text", "text": plan["text"], "annotations": [], "logprobs": []}] if plan["text"] else []
    if "message.output_text.logprobs" in (body.get("include") or ()):
        parts = [{**part, "logprobs": [_logprob(piece) for piece in _pieces(part["text"])]} for part in parts]
    parts += [{"type": "refusal", "refusal": plan["refusal"]}] if plan.get("refusal") else []
    if parts:
        output.append({"id": "msg_double", "type": "message", "role": "assistant", "status": status, "content": parts})
    for i, (call_id, name, arguments) in enumerate(plan["calls"]):
        head = {"id": f"fc_double{i}", "call_id": call_id, "name": name, "status": status}
        if name in plan["customs"]:
            output.append({**head, "type": "custom_tool_call", "input": arguments["city"]})
        else:
            output.append({**head, "type": "function_call", "arguments": json.dumps(arguments)})
    return output


RESPONSE_USAGE = {
    "input_tokens": 17,
    "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 26,
}
REASONS = {"length": "max_output_tokens", "content_filter": "content_filter"}


def _response(body: Json, status: str, output: list[Json], **fields: Any) -> Json:
    echoed = {name: body.get(name) for name in ("instructions", "max_output_tokens", "temperature", "top_p", "user")}
    return {
        "id": "resp_double",
        "object": "response",
        "created_at": CREATED,
        "model": body["model"],
        "status": status,
        "error": None,
        "incomplete_details": None,
        "output": output,
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "usage": None,
        **echoed,
        **fields,
    }


def _finished(body: Json, plan: Json) -> Json:
    output = _output(body, plan)
    if plan["finish"] in REASONS:
        why = {"reason": REASONS[plan["finish"]]}
        return _response(body, "incomplete", output, usage=RESPONSE_USAGE, incomplete_details=why)
    return _response(body, "completed", output, usage=RESPONSE_USAGE)


def response_answer(body: Json) -> Json:
    return _finished(body, _response_plan(body))


def response_events(body: Json) -> Iterator[Json]:
    plan = _response_plan(body)
    whole = _finished(body, plan)
    events = list(_item_events(whole["output"]))
    started = _response(body, "in_progress", [])
    before = [{"type": "response.created", "response": started}, {"type": "response.in_progress", "response": started}]
    after = [{"type": f"response.{whole['status']}", "response": whole}]
    if plan.get("breaks"):
        events = events[: len(events) // 2]
        fault = {"code": "server_error", "message": "the model broke"}
        broken = {"type": "response.failed", "response": _response(body, "failed", [], error=fault)}
        after = [broken] if plan["breaks"] == "error" else []
    for number, event in enumerate([*before, *events, *after]):
        yield {**event, "sequence_number": number}


TEXTS = {"output_text": ("text", "output_text"), "refusal": ("refusal", "refusal")}


def _item_events(output: list[Json]) -> Iterator[Json]:
    for index, item in enumerate(output):
        begun = {name: [] if isinstance(value, list) else value for name, value in item.items() if name != "encrypted_content"}
        begun |= {name: "" for name in ("arguments", "input") if name in item}
        begun |= {"status": "in_progress"} if "status" in item else {}
        yield {"type": "response.output_item.added", "output_index": index, "item": begun}
        where = {"item_id": item["id"], "output_index": index}
        for i, part in enumerate(item.get("content", ())):
            field, stem = TEXTS[part["type"]]
            yield from _part_events("content_part", stem, {**where, "content_index": i}, part, field)
        for i, part in enumerate(item.get("summary", ())):
            at = {**where, "summary_index": i}
            yield from _part_events("reasoning_summary_part", "reasoning_summary_text", at, part, "text")
        for field, stem in (("arguments", "function_call_arguments"), ("input", "custom_tool_call_input")):
            if field in item:
                for piece in _pieces(item[field]):
                    yield {"type": f"response.{stem}.delta", **where, "delta": piece}
                yield {"type": f"response.{stem}.done", **where, field: item[field]}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _part_events(outer: str, stem: str, at: Json, part: Json, field: str) -> Iterator[Json]:
    listed = {"logprobs": []} if stem == "output_text" else {}
    yield {"type": f"response.{outer}.added", **at, "part": {**part, field: "", **listed}}
    for piece in _pieces(part[field]):
        found = {"logprobs": [_logprob(piece)]} if part.get("logprobs") else listed
        yield {"type": f"response.{stem}.delta", **at, "delta": piece, **found, "obfuscation": "xyz"}
    yield {"type": f"response.{stem}.done", **at, field: part[field], **({"logprobs": part["logprobs"]} if listed else {})}
    yield {"type": f"response.{outer}.done", **at, "part": part}


# --- the server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: Any) -> None:
        pass

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("x-request-id", "req_double")
        if status == 429:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: Iterator[Json], named: bool, broken: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("x-request-id", "req_double")
        self.end_headers()
        for event in events:
            line = f"event: {event['type']}\n" if named else ""
            self._piece(f"{line}data: {json.dumps(event)}\n\n".encode())
        if broken:  # the connection goes without the last chunk
            self.close_connection = True
            return
        if not named:
            self._piece(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _handle(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        is_json = headers.get("content-type", "").startswith("application/json")
        path = self.path.partition("?")[0]
        body = json.loads(data) if is_json and data else None
        with self.server.lock:
            self.server.requests.append((self.command, self.path, headers, body if is_json else data))
        try:
            if not re.fullmatch(r"Bearer \S+", headers.get("authorization", "")):
                raise Refusal(401, "You didn't provide an API key.")
            if self.command == "GET":
                self._send(200, _found(path))
            elif path == "/v1/files" or path.startswith("/v1/audio/"):
                self._send(200, _upload(path, headers, data))
            else:
                self._post(path, body)
        except Refusal as refusal:
            self._send(refusal.status, refusal.body)

    def _post(self, path: str, body: Any) -> None:
        if path not in OPERATIONS:
            raise Refusal(404, f"Invalid URL (POST {path})")
        if not isinstance(body, dict):
            raise Refusal(400, "We could not parse the JSON body of your request.")
        check, answer, events = OPERATIONS[path]
        check(body)
        if events is None or not body.get("stream"):
            self._send(200, answer(body))
            return
        listed = list(events(body))
        last = listed[-1]
        named = path == "/v1/responses"
        whole = last["type"] in ENDS if named else "error" in last or not last.get("choices") or _ended(last)
        self._stream(iter(listed), named, not whole)

    do_GET = do_POST = do_DELETE = _handle


ENDS = ("response.completed", "response.incomplete", "response.failed")


def _ended(event: Json) -> bool:
    return bool(event.get("choices")) and event["choices"][-1]["finish_reason"] is not None


def _check_text(body: Json) -> None:
    _valid(TEXT, body)
    _model(body)
    _ranges(body)


def _check_embed(body: Json) -> None:
    _valid(EMBED, body)
    _model(body)


OPERATIONS: dict[str, tuple[Any, Any, Any]] = {  # path → (check, answer, events)
    "/v1/chat/completions": (check_chat, chat_answer, chat_events),
    "/v1/completions": (_check_text, text_answer, text_events),
    "/v1/embeddings": (_check_embed, embed_answer, None),
    "/v1/responses": (check_response, response_answer, response_events),
    "/v1/responses/input_tokens": (
        lambda body: _valid(COUNT, body),
        lambda body: {"object": "response.input_tokens", "input_tokens": 17},
        None,
    ),
}


def _found(path: str) -> Json:
    listed = [{"id": name, "object": "model", "created": CREATED, "owned_by": "openai"} for name in MODELS]
    if path == "/v1/models":
        return {"object": "list", "data": listed}
    for model in listed:
        if path == f"/v1/models/{model['id']}":
            return model
    raise Refusal(404, f"Invalid URL (GET {path})")


def _upload(path: str, headers: Json, data: bytes) -> Json:
    boundary = re.search(r'boundary="?([^";]+)', headers.get("content-type", ""))
    if not headers.get("content-type", "").startswith("multipart/form-data") or not boundary:
        raise Refusal(400, "expected multipart/form-data")
    parts = data.split(b"--" + boundary[1].encode())[1:-1]
    fields = {}
    for part in parts:
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        if name:
            fields[name[1].decode()] = content[:-2]
    size = len(fields.get("file", b""))
    if path == "/v1/files":
        purpose = fields.get("purpose", b"").decode()
        head = {"id": "file-double", "object": "file", "bytes": size, "created_at": CREATED, "status": "processed"}
        return {**head, "filename": "upload", "purpose": purpose}
    return {"text": f"{size} bytes of {path.rpartition('/')[2]}: {hashlib.sha256(fields.get('file', b'')).hexdigest()}"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()  # guards requests
        self.requests: list[tuple[str, str, Json, Any]] = []


class OpenAIDouble:
    """`with OpenAIDouble() as double:` serves until the block ends; `requests` holds (method, path, headers, decoded body)."""

    def __init__(self) -> None:
        self._server = _Server()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def requests(self) -> list[tuple[str, str, Json, Any]]:
        return self._server.requests

    def __enter__(self) -> OpenAIDouble:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
