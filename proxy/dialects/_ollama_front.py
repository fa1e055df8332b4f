"""Ollama as a front: what its clients send and read, its errors, and the grammar of its streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from proxy.dialects import Event
from proxy.dialects import openai as hub
from proxy.dialects.openai import Json, count, expect, text
from proxy.errors import BackendError, BadRequest, MapperError, ProxyError

# --- requests

OPTIONS = {  # what is carried of `options`: Ollama's name → (the hub's, type)
    **{name: (name, "number") for name in ("temperature", "top_p", "min_p", "typical_p")},
    **{name: (name, "number") for name in ("presence_penalty", "frequency_penalty")},
    "repeat_penalty": ("repetition_penalty", "number"),
    "top_k": ("top_k", "int"),
    "seed": ("seed", "int"),
}
COMMON = {"model": "str", "stream": "bool", "options": "dict", "logprobs": "bool", "top_logprobs": "int"}
THINK: dict[bool | str, Json] = {  # false is said as an extension, which a backend whose models cannot think never sees
    True: {"reasoning_effort": "medium"},
    False: {"thinking": {"type": "disabled"}},
    **{level: {"reasoning_effort": level} for level in ("low", "medium", "high")},
    "max": {"reasoning_effort": "xhigh"},
}


def chatReqOllamatoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """/api/chat → chat request. Ids are made up where Ollama's clients give none, alike on call and result.

    Not carried: keep_alive, truncate, shift, and options that load a model (num_ctx, num_gpu, …).
    Raises: BadRequest with the field's name. Source: Ollama's openapi.yaml and api/types.go (0.13), POST /api/chat.
    """
    body = hub.checked(ip, {**COMMON, "messages": "list", "tools": "list"})
    req = _request(body, cfg, "max_completion_tokens")
    if body.get("logprobs"):
        req |= {"logprobs": True, **({"top_logprobs": body["top_logprobs"]} if "top_logprobs" in body else {})}
    if body.get("tools"):
        req["tools"] = body["tools"]
    req |= _think(body.get("think"))
    return hub.canonical({**req, "messages": [_message(m, f"messages[{i}]") for i, m in enumerate(body.get("messages", ()))]})


def textReqOllamatoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """/api/generate → Completions request; a system text comes before the prompt.

    Not carried: think, raw (a prompt is always completed as it is), keep_alive, and what chatReqOllamatoOpenAI leaves out.
    Raises: BadRequest with the field's name; for images, template and context too, without which the answer is another one.
    """
    body = hub.checked(ip, {**COMMON, "prompt": "str", "suffix": "str", "system": "str", "template": "str"})
    for name in ("images", "template", "context"):
        if body.get(name):
            raise BadRequest(f"{name} cannot be served here: use /api/chat", param=name)
    req = _request(body, cfg, "max_tokens")
    req["prompt"] = "\n\n".join(part for part in (body.get("system"), body.get("prompt")) if part)
    if body.get("suffix"):
        req["suffix"] = body["suffix"]
    if body.get("logprobs"):
        req["logprobs"] = body.get("top_logprobs", 0)
    return req


def _request(body: Json, cfg: Mapping[str, Any], limit: str) -> Json:
    req: Json = {"model": body["model"]} if "model" in body else {}
    if cfg.get("stream", body.get("stream", True)):
        req |= {"stream": True, "stream_options": {"include_usage": True}}
    options = {name: value for name, value in body.get("options", {}).items() if value is not None}
    for name, (ours, kind) in OPTIONS.items():
        if name in options:
            req[ours] = expect(options[name], kind, f"options.{name}")
    if expect(options.get("num_predict", -1), "int", "options.num_predict") >= 0:  # -1: no limit, -2: what the context holds
        req[limit] = options["num_predict"]
    if options.get("stop"):
        stop = [options["stop"]] if isinstance(options["stop"], str) else options["stop"]
        req["stop"] = [expect(item, "str", "options.stop") for item in expect(stop, "list", "options.stop")]
    if body.get("format"):
        req["response_format"] = _response_format(body["format"])
    return req


def _response_format(form: Any) -> Json:
    if form == "json":
        return {"type": "json_object"}
    schema = expect(form, "dict", "format")
    return {"type": "json_schema", "json_schema": {"name": "format", "schema": schema}}


def _think(value: Any) -> Json:
    if value is None or value == "":
        return {}
    if not isinstance(value, (bool, str)) or value not in THINK:
        raise BadRequest("think must be true, false, low, medium, high or max", param="think")
    return THINK[value]


def _message(message: Any, where: str) -> Json:
    given = {name: value for name, value in expect(message, "dict", where).items() if value is not None}
    role = expect(given.get("role"), "str", f"{where}.role").lower()
    content: Any = expect(given.get("content", ""), "str", f"{where}.content")
    if given.get("images"):
        if role in ("system", "assistant"):
            raise BadRequest(
                f"{where}.images: only a user's message and a tool's can have images here", param=f"{where}.images"
            )
        images = expect(given["images"], "list", f"{where}.images")
        urls = [_image(expect(image, "str", f"{where}.images[{i}]")) for i, image in enumerate(images)]
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        content = [*([{"type": "text", "text": content}] if content else []), *parts]
    if role == "tool":
        return _result(given, content)
    out: Json = {"role": role, "content": content}
    if role == "assistant":
        if thinking := expect(given.get("thinking", ""), "str", f"{where}.thinking"):
            out["reasoning_content"] = thinking
        if calls := expect(given.get("tool_calls", []), "list", f"{where}.tool_calls"):
            out |= {"tool_calls": [_given_call(call) for call in calls], "content": content or None}
    return out


def _given_call(call: Any) -> Any:
    """A client's tool call with what the hub knows; what is no call is for `canonical` to refuse."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    return {"id": call.get("id"), "function": {name: function.get(name) for name in ("name", "arguments")}}


def _result(given: Json, content: Any) -> Json:
    """A result finds its call by id, else by the tool's name, else by its place; `canonical` does it."""
    if given.get("tool_call_id"):
        return {"role": "tool", "tool_call_id": given["tool_call_id"], "content": content}
    return {"role": "function", "content": content, **({"name": given["tool_name"]} if given.get("tool_name") else {})}


def _image(data: str) -> str:
    return data if data.startswith("data:") else f"data:{hub.sniff(data) or 'image/png'};base64,{data}"


# --- answers


def chatAnsOpenAItoOllama(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """chat.completion → /api/chat answer. Durations are 0: a mapper has no clock. Raises: BackendError."""
    answer = hub.canonical_answer(ip)
    choice = answer["choices"][0]
    message = choice["message"]
    said: Json = {"role": "assistant", "content": text(message["content"]) + text(message.get("refusal"))}
    if message.get("reasoning_content"):
        said["thinking"] = message["reasoning_content"]
    told = {"message": {**said, **_calls(message, choice["finish_reason"])}, **_logprobs(choice)}
    return {**_line(cfg, answer.get("model"), told), **_last(choice["finish_reason"], answer.get("usage", {}))}


def textAnsOpenAItoOllama(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """text_completion → /api/generate answer; there is no `context`. Raises: BackendError."""
    answer = hub.canonical_answer(ip)
    choice = answer["choices"][0]
    told = {"response": text(choice.get("text")), **_logprobs(choice)}
    return {**_line(cfg, answer.get("model"), told), **_last(choice["finish_reason"], answer.get("usage", {}))}


def _line(cfg: Mapping[str, Any], model: Any, told: Json) -> Json:
    return {"model": hub.model_of(cfg, model), "created_at": _stamp(cfg), **told, "done": False}


LAST_SECOND = 253402300799  # of the year 9999


def _stamp(cfg: Mapping[str, Any], unix: Any = None) -> str:
    seconds = min(count(unix) or count(cfg.get("now")), LAST_SECOND)
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _last(finish: str | None, spent: Json) -> Json:
    return {
        "done": True,
        "done_reason": "stop" if finish in (None, "tool_calls") else finish,
        "total_duration": 0,
        "load_duration": 0,
        "prompt_eval_count": count(spent.get("prompt_tokens")),
        "prompt_eval_duration": 0,
        "eval_count": count(spent.get("completion_tokens")),
        "eval_duration": 0,
    }


def _calls(message: Json, finish: str | None) -> Json:
    """The field with a message's calls, none without any."""
    told = [
        {"id": call["id"], "function": {"index": i, "name": call["function"]["name"], "arguments": given}}
        for i, (call, given) in enumerate(hub.calls_of(message, finish))
    ]
    return {"tool_calls": told} if told else {}


def _logprobs(choice: Json) -> Json:
    """The hub's logprobs, of a chat or of a text, as Ollama's one list."""
    told = choice.get("logprobs")
    if not isinstance(told, dict):
        return {}
    items = told.get("content")
    if not isinstance(items, list):
        given = (told.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
        tokens, values, tops = (value if isinstance(value, list) else [] for value in given)
        rows = zip(tokens, values, [*tops, *[None] * len(tokens)], strict=False)
        items = [{"token": token, "logprob": value, "top_logprobs": _top(top)} for token, value, top in rows]
    return {"logprobs": items} if items else {}


def _top(top: Any) -> list[Json]:
    return [{"token": token, "logprob": value} for token, value in top.items()] if isinstance(top, dict) else []


def chatStreamOpenAItoOllama(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """Chunks → /api/chat lines; tool calls are put together and told whole, just before the last line. Raises: BackendError."""
    calls: dict[int, Json] = {}
    model, finish = None, None
    spent: Json = {}
    for event in hub.canonical_chunks(events):
        model, spent = event.get("model") or model, event.get("usage") or spent
        for choice in event["choices"]:
            if choice["index"] != 0:
                continue
            delta = choice["delta"]
            for fragment in delta.get("tool_calls", ()):
                _collect(calls, fragment)
            said = {"role": "assistant", "content": text(delta.get("content")) + text(delta.get("refusal"))}
            thinking, logprobs = text(delta.get("reasoning_content")), _logprobs(choice)
            if said["content"] or thinking or logprobs:
                told = {"message": {**said, **({"thinking": thinking} if thinking else {})}, **logprobs}
                yield _line(cfg, model, told)
            finish = choice["finish_reason"] or finish
    if finish:
        silent: Json = {"role": "assistant", "content": ""}
        whole = [hub.tool_call(call["id"], call["name"], "".join(call["arguments"])) for _, call in sorted(calls.items())]
        if told := _calls({"tool_calls": whole}, finish):
            yield _line(cfg, model, {"message": {**silent, **told}})
        yield {**_line(cfg, model, {"message": silent}), **_last(finish, spent)}


def _collect(calls: dict[int, Json], fragment: Json) -> None:
    call = calls.setdefault(fragment["index"], {"id": fragment.get("id", ""), "name": "", "arguments": []})
    call["name"] = call["name"] or text(fragment["function"].get("name"))
    call["arguments"].append(fragment["function"]["arguments"])


def textStreamOpenAItoOllama(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """text_completion chunks → /api/generate lines. Raises: BackendError on an error event."""
    model, finish = None, None
    spent: Json = {}
    for event in hub.canonical_chunks(events):
        model, spent = event.get("model") or model, event.get("usage") or spent
        for choice in event["choices"]:
            if choice["index"] == 0:
                if text(choice.get("text")):
                    yield _line(cfg, model, {"response": choice["text"], **_logprobs(choice)})
                finish = choice["finish_reason"] or finish
    if finish:
        yield {**_line(cfg, model, {"response": ""}), **_last(finish, spent)}


def loadAnsOllama(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """A chat without messages or a completion without prompt, which only (un)loads a model → what Ollama answers, else None."""
    field = {"chat": "messages", "text": "prompt"}.get(cfg.get("kind", ""))
    if field is None or not isinstance(ip, dict) or ip.get(field) not in (None, [], ""):
        return None
    told: Json = {"message": {"role": "assistant", "content": ""}} if field == "messages" else {"response": ""}
    reason = "unload" if ip.get("keep_alive") in (0, "0", "0s") else "load"
    return {**_line({**cfg, "request": ip}, None, told), "done": True, "done_reason": reason}


# --- embeddings


def embedReqOllamatoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """/api/embed (`input`) or the older /api/embeddings (`prompt`) → embeddings request."""
    body = hub.checked(ip, {"model": "str", "dimensions": "int", "prompt": "str"})
    req = {name: body[name] for name in ("model", "dimensions") if name in body}
    given = body.get("input", body.get("prompt"))
    if not isinstance(given, (str, list)) or not given:
        raise BadRequest("input must be a string or an array of strings", param="input" if "input" in body else "prompt")
    return {**req, "input": given, "encoding_format": "float"}


def embedAnsOpenAItoOllama(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """Embeddings → /api/embed answer, or the one vector that /api/embeddings gives. Raises: BackendError."""
    if isinstance(ip, dict) and ip.get("error"):
        raise hub.stream_error(ip)
    vectors, request = hub.vectors_of(ip), cfg.get("request")
    if isinstance(request, Mapping) and "input" not in request:
        return {"embedding": vectors[0] if vectors else []}
    spent = ip["usage"] if isinstance(ip.get("usage"), dict) else {}
    counted = {"total_duration": 0, "load_duration": 0, "prompt_eval_count": count(spent.get("prompt_tokens"))}
    return {"model": hub.model_of(cfg, ip.get("model")), "embeddings": vectors, **counted}


# --- models, and what is answered without a backend

DETAILS = {"parent_model": "", "format": "", "family": "", "families": [], "parameter_size": "", "quantization_level": ""}
VERSION = "0.13.5"  # clients compare it: VS Code wants 0.6.4 or newer


def modelsAnsOpenAItoOllama(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """The hub's list → /api/tags. The digest is that of the name: clients cut it, so it must be there."""
    listed = ip.get("data") if isinstance(ip, dict) else None
    found = [model for model in listed or () if isinstance(model, dict) and isinstance(model.get("id"), str)]
    return {
        "models": [
            {
                "name": model["id"],
                "model": model["id"],
                "modified_at": _stamp(cfg, model.get("created")),
                "size": 0,
                "digest": hashlib.sha256(model["id"].encode("utf-8", "replace")).hexdigest(),
                "details": {**DETAILS, "family": text(model.get("owned_by"))},
            }
            for model in found
        ]
    }


def showAnsOllama(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """POST /api/show: what VS Code looks at before it offers a model to its agent. Raises: BadRequest without a name."""
    body = ip if isinstance(ip, dict) else {}
    name = expect(body.get("model") or body.get("name"), "str", "model")
    return {
        **dict.fromkeys(("modelfile", "parameters", "license"), ""),
        "template": "{{ .Prompt }}",
        "details": DETAILS,
        "model_info": {"general.architecture": "proxy", "general.basename": name},
        "capabilities": ["completion", "tools"],
        "modified_at": _stamp(cfg),
    }


def versionAnsOllama(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """GET /api/version."""
    return {"version": VERSION}


def psAnsOllama(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """GET /api/ps: nothing is loaded here."""
    return {"models": []}


# --- errors and the grammar of streams


def error_body(error: ProxyError, request_id: str) -> Any:
    """{"error": str}; also the line that ends a broken stream."""
    return {"error": error.message}


# A stream is lines with `done`, false on every one but the last. A chat's line has a message, a completion's a response. So
# there is one state, whether the last line was seen; an error line ends the stream too.
def grammar(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """The last station of every stream to an Ollama client; cfg["kind"] tells chat from text. Raises, after one error line:
    MapperError for a line that the API does not allow, BackendError for an early end, or what the input raised."""
    fault_of = _text_fault if cfg.get("kind") == "text" else _chat_fault
    ended = False
    try:
        for event in events:
            if isinstance(event, dict) and event.get("error"):
                raise hub.stream_error(event)
            fault = "a line comes after the last one" if ended else _line_fault(event) or fault_of(event)
            if fault:
                raise MapperError(f"{cfg.get('chain', 'stream mapper')}: {fault}")
            ended = event["done"]
            yield event
        if not ended:
            raise BackendError("the backend's stream ended before its last line")
    except ProxyError as error:
        yield error_body(error, cfg.get("id", ""))
        raise


def _line_fault(event: Any) -> str | None:
    if not isinstance(event, dict) or not isinstance(event.get("done"), bool):
        return "a line does not say whether it is done"
    if not isinstance(event.get("model"), str) or not isinstance(event.get("created_at"), str):
        return "a line has no model or no created_at"
    if event["done"] and not isinstance(event.get("done_reason"), str):
        return "the last line has no done_reason"
    if not all(event.get(name) is None or type(event[name]) is int for name in COUNTED):
        return "a count or a duration is not an integer"
    return None


COUNTED = ("prompt_eval_count", "eval_count", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


def _text_fault(event: Json) -> str | None:
    return None if isinstance(event.get("response"), str) else "a line has no response"


def _chat_fault(event: Json) -> str | None:
    message = event.get("message")
    if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in ("role", "content")):
        return "a line has no message with role and content"
    if not isinstance(message.get("thinking", ""), str):
        return "a message's thinking is not a string"
    calls = message.get("tool_calls", [])
    functions = (
        [call.get("function") if isinstance(call, dict) else None for call in calls] if isinstance(calls, list) else [None]
    )
    for function in functions:
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict) or not text(function.get("name")):
            return "a tool call has no name, or its arguments are not an object"
    return None
