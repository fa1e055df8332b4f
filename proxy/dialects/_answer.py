"""The hub's answers: building them, and reading the variants that OpenAI-like backends send."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from proxy.dialects import Event
from proxy.dialects._hub import Json, compact, expect, objects
from proxy.errors import BackendError, BadRequest

FINISHES = frozenset(("stop", "length", "tool_calls", "content_filter", "function_call"))
FINISH = {  # what servers with an OpenAI-like API also say; what is in neither table is a stop
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "tool_call": "tool_calls",
    "max_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "safety": "content_filter",
}


def count(value: Any) -> int:
    """A token count of a backend; anything that is none is 0."""
    return int(value) if isinstance(value, (int, float)) and value is not True and 0 <= value < 1e15 else 0


def text(value: Any) -> str:
    """A string of a backend; anything that is none is empty."""
    return value if isinstance(value, str) else ""


def object_of(value: Any) -> Json:
    """An object of a backend; anything that is none is empty."""
    return value if isinstance(value, dict) else {}


def unix_of(stamp: Any) -> int:
    """An RFC 3339 time as unix seconds, 0 when it is none; Go writes more digits than Python reads."""
    whole, _, rest = text(stamp).upper().replace("Z", "+00:00").partition(".")
    try:
        at = datetime.fromisoformat(whole + rest.lstrip("0123456789"))
    except ValueError:
        return 0
    return int(at.timestamp()) if at.tzinfo else 0


# --- building


def model_of(cfg: Mapping[str, Any], backend: Any = None) -> str:
    """The model that an answer names: what the client asked for, else what the backend says."""
    request, params = cfg.get("request"), cfg.get("params")
    asked = request.get("model") if isinstance(request, dict) else None
    routed = params.get("model") if isinstance(params, dict) else None
    for name in (asked, routed, backend):
        if isinstance(name, str) and name:
            return name
    return ""


def usage(prompt: Any, completion: Any, cached: Any = 0, cache_creation: Any = 0, reasoning: Any = 0) -> Json:
    """Token counts → the hub's usage. `prompt` includes cached and cache_creation, `completion` includes reasoning."""
    asked, answered, created = count(prompt), count(completion), count(cache_creation)
    details = {"cached_tokens": count(cached)}
    if created:
        details["cache_creation_tokens"] = created
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": count(reasoning)},
    }


def assistant(
    content: str = "", tool_calls: Sequence[Json] = (), reasoning: str = "", thinking: Sequence[Json] = (), refusal: str = ""
) -> Json:
    """An answer's message in its one canonical form, the form that `fold` gives too."""
    message: Json = {"role": "assistant", "content": content or (None if tool_calls or refusal else "")}
    extensions = {"reasoning_content": reasoning, "thinking_blocks": list(thinking)}
    fields = {**extensions, "refusal": refusal, "tool_calls": list(tool_calls)}
    return message | {name: value for name, value in fields.items() if value}


def tool_call(call_id: str, name: str, arguments: Any, **extra: Any) -> Json:
    """One whole tool call; arguments may be an object. `extra`: fields beside `function` (extra_content)."""
    written = arguments if isinstance(arguments, str) else compact(arguments or {})
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": written}, **given(extra)}


def tool_delta(index: int, call_id: str | None = None, name: str | None = None, arguments: str = "", **extra: Any) -> Json:
    """A delta with one tool call: its first fragment with id and name, or a later one with arguments only."""
    head = {} if call_id is None else {"id": call_id, "type": "function"}
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": index, **head, "function": function, **given(extra)}]}


def given(extra: Mapping[str, Any]) -> Json:
    return {name: value for name, value in extra.items() if value is not None}


def completion(cfg: Mapping[str, Any], model: Any, choices: Sequence[Json], usage: Json | None = None) -> Json:
    """A chat.completion of several choices; `model` is the backend's name for itself, used when the client named none."""
    answer = {
        "id": f"chatcmpl-{cfg.get('id', '')}",
        "object": "chat.completion",
        "created": cfg.get("now", 0),
        "model": model_of(cfg, model),
        "choices": list(choices),
    }
    return answer if usage is None else {**answer, "usage": usage}


def chat_answer(
    cfg: Mapping[str, Any], message: Json, finish: str | None, usage: Json | None = None, *, model: Any = None, **extra: Any
) -> Json:
    """A chat.completion of one choice. `extra`: fields of the choice (stop_sequence, logprobs), None left out.

    Tool calls override a finish of "stop".
    """
    finish = "tool_calls" if finish == "stop" and message.get("tool_calls") else finish
    return completion(cfg, model, [{"index": 0, "message": message, "finish_reason": finish, **given(extra)}], usage)


def chunk(
    cfg: Mapping[str, Any], delta: Json, finish: str | None = None, index: int = 0, *, model: Any = None, **extra: Any
) -> Event:
    """A chat.completion.chunk of one choice. `extra`: fields of the choice, None left out."""
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {
        "id": f"chatcmpl-{cfg.get('id', '')}",
        "object": "chat.completion.chunk",
        "created": cfg.get("now", 0),
        "model": model_of(cfg, model),
        "choices": [{**choice, **given(extra)} if extra else choice],
    }


def usage_chunk(cfg: Mapping[str, Any], usage: Json, *, model: Any = None) -> Event:
    """The last chunk of a stream: no choices, only usage."""
    return {**chunk(cfg, {}, model=model), "choices": [], "usage": usage}


# --- reading what OpenAI-like backends send

ERRORS = {  # status → OpenAI's and Anthropic's types and codes of it, where an error comes without one (in a stream, in a 200)
    400: (
        *("invalid_request_error", "invalid_prompt", "context_length_exceeded", "invalid_image", "invalid_image_format"),
        *("invalid_base64_image", "invalid_image_url", "image_too_large", "image_file_too_large", "image_parse_error"),
    ),
    401: ("authentication_error",),
    402: ("billing_error",),
    403: ("permission_error",),
    404: ("not_found_error",),
    413: ("request_too_large",),
    429: ("rate_limit_error", "rate_limit_exceeded", "insufficient_quota"),
    500: ("server_error",),
    503: ("overloaded_error", "server_is_overloaded"),
    504: ("timeout_error",),
}
STATUS = {name: status for status, names in ERRORS.items() for name in names}


def parse_error(status: int, body: Any) -> BackendError:
    """An error body of OpenAI or of a server like it → its facts; never raises."""
    fault = body.get("error") or body if isinstance(body, dict) else body
    if not isinstance(fault, dict):
        message = fault if isinstance(fault, str) else ""
        return BackendError(message.strip()[:2000] or f"the backend answered {status}", status=status)
    said = fault.get("message") or fault.get("detail") or fault.get("error")
    message = said if isinstance(said, str) and said else compact(said) if said else f"the backend answered {status}"
    kind, code, param = (fault.get(name) for name in ("type", "code", "param"))
    return BackendError(
        message,
        status=status,
        kind=text(kind) or None,
        code=str(code) if isinstance(code, (str, int)) and code != "" else None,
        param=text(param) or None,
    )


def stream_error(event: Json) -> BackendError:
    """An error that came as an event or inside a 200; the status is its own, else its type's, else 502."""
    fault = event.get("error")
    facts = fault if isinstance(fault, dict) else {}
    marks = [facts.get(name) for name in ("status", "code", "type")]
    numbers = [int(str(mark)) for mark in marks if str(mark).isdecimal() and len(str(mark)) == 3]
    known = [STATUS[mark] for mark in marks if isinstance(mark, str) and mark in STATUS]
    return parse_error(next((status for status in numbers + known if 400 <= status < 600), 502), event)


def status_of(event: Json) -> int:
    """The status that an error event tells as its `code`, else 502."""
    code = object_of(event.get("error")).get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 502


def canonical_usage(value: Any) -> Json | None:
    """A backend's usage with every count an int, and OpenAI's cache_write_tokens under the hub's name."""
    if not isinstance(value, dict):
        return None
    prompt, done = (value.get(f"{side}_tokens_details") for side in ("prompt", "completion"))
    prompt, done = (details if isinstance(details, dict) else {} for details in (prompt, done))
    return usage(
        value.get("prompt_tokens"),
        value.get("completion_tokens"),
        prompt.get("cached_tokens") or value.get("prompt_cache_hit_tokens"),
        prompt.get("cache_creation_tokens") or prompt.get("cache_write_tokens"),
        done.get("reasoning_tokens"),
    )


def canonical_finish(value: Any, has_tools: bool) -> str | None:
    """A finish reason as the hub knows it; tool calls turn a stop into tool_calls, and tool_calls without any is a stop."""
    if not isinstance(value, str) or not value:
        return None
    if value == "error":
        raise BackendError("the backend ended its answer with an error")
    known = FINISH.get(value) or (value if value in FINISHES else "stop")
    if known in ("stop", "tool_calls"):
        return "tool_calls" if has_tools else "stop"
    return known


def canonical_answer(ip: Any) -> Json:
    """An answer of any OpenAI-like backend → a canonical chat.completion; every `chatAnsOpenAItoX` starts with it.

    In: a chat.completion with nulls, `reasoning`, function_call, argument objects, no ids. Out: a new dict, see openai.py.
    Raises: BackendError for an error body, or when there are no choices.
    """
    if not isinstance(ip, dict):
        raise BackendError("the backend's answer is not a JSON object")
    if ip.get("error"):
        raise stream_error(ip)
    choices = objects(ip.get("choices"))
    if not choices:
        raise BackendError("the backend's answer has no choices")
    answer = {name: value for name, value in ip.items() if value is not None and name != "usage"}
    answer["choices"] = [_canonical_choice(choice, i) for i, choice in enumerate(choices)]
    found = canonical_usage(ip.get("usage"))
    return answer if found is None else {**answer, "usage": found}


def _canonical_choice(choice: Json, i: int) -> Json:
    given = choice.get("message")
    message = {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else {}
    rename_reasoning(message)
    calls, legacy = message.pop("tool_calls", None), message.pop("function_call", None)
    if not calls and isinstance(legacy, dict):
        calls = [{"function": legacy}]
    whole = [_whole_call(call, n) for n, call in enumerate(objects(calls))]
    if whole:
        message["tool_calls"] = whole
    content = joined(message.get("content"))
    message |= {"role": "assistant", "content": content or (None if whole or message.get("refusal") else "")}
    kept = {name: value for name, value in choice.items() if value is not None}
    index = choice.get("index")
    return {
        **kept,
        "index": index if isinstance(index, int) else i,
        "message": message,
        "finish_reason": canonical_finish(choice.get("finish_reason"), bool(whole)),
    }


def _whole_call(call: Json, n: int) -> Json:
    custom = call.get("custom")
    function = object_of(call.get("function"))
    if isinstance(custom, dict):
        function = {"name": custom.get("name"), "arguments": compact({"input": text(custom.get("input"))})}
    kept = {name: value for name, value in call.items() if name not in ("custom", "index") and value is not None}
    arguments = function.get("arguments")
    written = arguments if isinstance(arguments, str) else compact(arguments or {})
    named = {"name": text(function.get("name")), "arguments": written}
    return {**kept, "id": text(call.get("id")) or f"call_{n}", "type": "function", "function": named}


def rename_reasoning(message: Json) -> None:
    """`reasoning`, as some servers call it, under its one name, in place; without a text there is neither."""
    reasoning, told = (text(message.pop(name, None)) for name in ("reasoning", "reasoning_content"))
    if told or reasoning:
        message["reasoning_content"] = told or reasoning


def joined(content: Any) -> str:
    """Answers of some servers hold a list of parts."""
    if isinstance(content, list):
        return "".join(text(part.get("text")) for part in content if isinstance(part, dict))
    return text(content)


# --- embeddings


def embed_inputs(ip: Any) -> list[str]:
    """The texts of a canonical embeddings request. Raises BadRequest for token arrays: only their tokenizer can read them."""
    given = ip.get("input") if isinstance(ip, dict) else None
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise BadRequest("input must be a string or an array of strings", param="input")
    for i, item in enumerate(texts):
        expect(item, "str", f"input[{i}]")
    return texts


def embed_answer(cfg: Mapping[str, Any], vectors: Sequence[Any], prompt_tokens: Any = 0, model: Any = None) -> Json:
    """Vectors (of floats, or base64) → the hub's embeddings answer, in the encoding that cfg["request"] asked for."""
    request = cfg.get("request")
    as_base64 = isinstance(request, Mapping) and request.get("encoding_format") == "base64"
    encode = to_base64 if as_base64 else to_floats
    data = [{"object": "embedding", "index": i, "embedding": encode(vector)} for i, vector in enumerate(vectors)]
    spent = {"prompt_tokens": count(prompt_tokens), "total_tokens": count(prompt_tokens)}
    return {"object": "list", "data": data, "model": model_of(cfg, model), "usage": spent}


def to_base64(vector: Any) -> str:
    """Floats → base64 of little-endian float32, what OpenAI's SDKs ask for by default."""
    if isinstance(vector, str):
        return vector
    try:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except (struct.error, OverflowError, TypeError):
        raise BackendError("the backend's embedding is not an array of numbers") from None


def to_floats(vector: Any) -> list[float]:
    """Base64 of little-endian float32 → floats; a list stays as it is. Raises BackendError."""
    if isinstance(vector, list):
        return vector
    try:
        data = base64.b64decode(vector, validate=True)
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    except (struct.error, binascii.Error, ValueError, TypeError):
        raise BackendError("the backend's embedding is neither an array nor base64 of float32") from None


def vectors_of(answer: Any) -> list[list[float]]:
    """The vectors of an embeddings answer of any OpenAI-like backend, in the order of the inputs, as floats."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise BackendError("the backend's answer has no embeddings")
    items = [item for item in data if isinstance(item, dict)]
    items.sort(key=lambda item: count(item.get("index")))
    return [to_floats(item.get("embedding")) for item in items]
