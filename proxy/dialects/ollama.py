"""Ollama's native API: NDJSON, streamed unless told otherwise, tool arguments as objects, images as bare base64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Dialect, Event, Route, Upstream
from proxy.dialects import openai as hub
from proxy.dialects._answer import parse_error, unix_of
from proxy.dialects._hub import tool_name
from proxy.dialects._ollama_front import (
    chatAnsOpenAItoOllama,
    chatReqOllamatoOpenAI,
    chatStreamOpenAItoOllama,
    embedAnsOpenAItoOllama,
    embedReqOllamatoOpenAI,
    error_body,
    grammar,
    loadAnsOllama,
    modelsAnsOpenAItoOllama,
    psAnsOllama,
    showAnsOllama,
    textAnsOpenAItoOllama,
    textReqOllamatoOpenAI,
    textStreamOpenAItoOllama,
    versionAnsOllama,
)
from proxy.dialects.openai import Json, expect, text
from proxy.errors import BackendError, BadRequest

__all__ = ["chatAnsOpenAItoOllama", "chatReqOllamatoOpenAI", "chatStreamOpenAItoOllama", "embedAnsOpenAItoOllama"]
__all__ += ["embedReqOllamatoOpenAI", "modelsAnsOpenAItoOllama", "psAnsOllama", "showAnsOllama", "textAnsOpenAItoOllama"]
__all__ += ["textReqOllamatoOpenAI", "textStreamOpenAItoOllama", "versionAnsOllama"]

# --- requests to Ollama

OPTIONS = {  # the hub's name → Ollama's, in `options`
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop")},
    **{name: name for name in ("presence_penalty", "frequency_penalty")},
    "repetition_penalty": "repeat_penalty",
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
}
THINK = {"none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high"} | dict.fromkeys(
    ("xhigh", "max"), "high"
)
THINKING = {"disabled": False, "enabled": True}  # adaptive: the model's default, which is to think if it can


def chatReqOpenAItoOllama(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """Chat request → /api/chat.

    Out: `stream` always said, for its default is true there. A tool_choice other than auto and none cannot be forced: the
    named tool is the only one offered, and the loss is told. Not carried: logit_bias, parallel_tool_calls, strict.
    Raises: BadRequest for n > 1, image URLs (Ollama does not fetch), audio, files, arguments that are no JSON object.
    Source: Ollama's openapi.yaml and api/types.go (0.13), POST /api/chat.
    """
    req = hub.canonical(ip)
    _one_answer(req)
    body = _body(req, cfg)
    names = {call["id"]: call["function"]["name"] for m in req["messages"] for call in m.get("tool_calls", ())}
    body["messages"] = [_message(message, f"messages[{i}]", names) for i, message in enumerate(req["messages"])]
    if tools := _tools(req, cfg):
        body["tools"] = tools
    if req.get("logprobs"):
        body |= {"logprobs": True, **({"top_logprobs": req["top_logprobs"]} if "top_logprobs" in req else {})}
    think = THINK.get(req.get("reasoning_effort", ""), THINKING.get(req.get("thinking", {}).get("type")))
    return body if think is None else {**body, "think": think}


def textReqOpenAItoOllama(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """Completions request → /api/generate, raw, so that the prompt is completed as it is; with a suffix the model's own
    template for filling in is needed. `echo` is answered from the request.

    Raises: BadRequest for n or best_of > 1, several prompts, token arrays. Source: as chatReqOpenAItoOllama.
    """
    req = hub.checked(ip, {**hub.TEXT_FIELDS, "response_format": "dict"})
    _one_answer(req)
    body = {**_body(req, cfg), "prompt": hub.one_prompt(req)}
    body |= {"suffix": req["suffix"]} if req.get("suffix") else {"raw": True}
    if "logprobs" in req:
        body |= {"logprobs": True, **({"top_logprobs": req["logprobs"]} if req["logprobs"] else {})}
    return body


def _one_answer(req: Json) -> None:
    for name in ("n", "best_of"):
        if req.get(name, 1) > 1:
            raise BadRequest("this backend gives one answer a call", param=name)


def _body(req: Json, cfg: Mapping[str, Any]) -> Json:
    options = {theirs: req[ours] for ours, theirs in OPTIONS.items() if ours in req}
    if "stop" in options:
        stops = [options["stop"]] if isinstance(options["stop"], str) else expect(options["stop"], "list", "stop")
        options["stop"] = [expect(stop, "str", f"stop[{i}]") for i, stop in enumerate(stops)]
    body: Json = {"model": req["model"]} if "model" in req else {}
    body["stream"] = bool(req.get("stream", cfg.get("stream", False)))
    if options:
        body["options"] = options
    if "response_format" in req:
        body["format"] = (req["response_format"].get("json_schema") or {}).get("schema") or "json"
    return body


def _message(message: Json, where: str, names: Mapping[str, str]) -> Json:
    said, images = _content(message["content"], where)
    if message.get("is_error") is True:
        said = f"Error: {said}"
    role = message["role"]
    out: Json = {"role": "system" if role == "developer" else role, "content": said}
    if images:
        out["images"] = images
    if role == "tool":
        out |= {"tool_call_id": message["tool_call_id"], "tool_name": names.get(message["tool_call_id"], "")}
    if thinking := _thinking(message):
        out["thinking"] = thinking
    if calls := message.get("tool_calls"):
        out["tool_calls"] = [_call(call, i, f"{where}.tool_calls[{i}].function.arguments") for i, call in enumerate(calls)]
    return out


def _content(content: Any, where: str) -> tuple[str, list[str]]:
    if not isinstance(content, list):
        return content or "", []
    texts, images = [], []
    for i, part in enumerate(content):
        param = f"{where}.content[{i}]"
        if part["type"] == "text":
            texts.append(part["text"])
        elif part["type"] != "image_url":
            raise BadRequest(f"this backend takes no {part['type']} parts", param=param)
        elif found := hub.data_uri(part["image_url"]["url"], param):
            images.append(found[1])
        else:
            raise BadRequest("this backend does not fetch images: send a data URI", param=param)
    return "".join(texts), images


def _thinking(message: Json) -> str:
    blocks = message.get("thinking_blocks") or ()
    told = message.get("reasoning_content") or "".join(
        text(block.get("thinking")) for block in blocks if isinstance(block, dict)
    )
    return told if isinstance(told, str) else ""


def _call(call: Json, index: int, param: str) -> Json:
    function = call["function"]
    arguments = hub.parse_arguments(function["arguments"], BadRequest, param)
    return {"id": call["id"], "function": {"index": index, "name": function["name"], "arguments": arguments}}


def _tools(req: Json, cfg: Mapping[str, Any]) -> list[Json]:
    choice = req.get("tool_choice", "auto")
    if choice == "none":
        return []
    tools = [{"type": "function", "function": _function(tool["function"])} for tool in req.get("tools", ())]
    if choice == "auto":
        return tools
    if callable(cfg.get("lost")):
        cfg["lost"]("tool_choice", "Ollama cannot be made to call a tool")
    wanted = tool_name(choice) if isinstance(choice, dict) else None
    return [tool for tool in tools if wanted in (None, tool_name(tool))]


def _function(function: Json) -> Json:
    kept: Json = {name: function[name] for name in ("name", "description") if name in function}
    return {**kept, "parameters": function.get("parameters") or {"type": "object", "properties": {}}}


# --- answers of Ollama

FINISH = {"stop": "stop", "length": "length", "load": "stop", "unload": "stop", "content_filter": "content_filter"}


def chatAnsOllamatoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """/api/chat answer → chat.completion. Raises: BackendError for an error body, or when there is no message."""
    answer = _checked_answer(ip, "message", dict)
    message = answer["message"]
    calls = [hub.tool_call(call_id, *named) for call_id, named in _calls(message, cfg, 0)]
    made = hub.assistant(text(message.get("content")), calls, text(message.get("thinking")))
    finish = FINISH.get(text(answer.get("done_reason")), "stop")
    return hub.chat_answer(cfg, made, finish, _usage(answer), model=answer.get("model"), logprobs=_logprobs(answer))


def textAnsOllamatoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """/api/generate answer → text_completion. Raises: BackendError for an error body, or when there is no response."""
    return hub.textAnsChattoOpenAI(chatAnsOllamatoOpenAI(_as_chat(_checked_answer(ip, "response", str)), cfg), cfg)


def _as_chat(event: Any) -> Any:
    """A line of /api/generate as one of /api/chat."""
    if not isinstance(event, dict) or not isinstance(event.get("response"), str):
        return event
    return {**event, "message": {"role": "assistant", "content": event["response"]}}


def _checked_answer(ip: Any, name: str, kind: type) -> Json:
    if isinstance(ip, dict) and ip.get("error"):
        raise hub.stream_error(ip)
    if not isinstance(ip, dict) or not isinstance(ip.get(name), kind):
        raise BackendError(f"the backend's answer has no {name}")
    return ip


def _calls(message: Json, cfg: Mapping[str, Any], known: int) -> Iterator[tuple[str, tuple[str, Any]]]:
    """(id, (name, arguments)) of a message's calls; the id is made up where the server gives none."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            arguments = function.get("arguments")
            yield text(call.get("id")) or hub.made_id(cfg, known), (text(function.get("name")), hub.parse_arguments(arguments))
            known += 1


def _usage(answer: Json) -> Json:
    return hub.usage(answer.get("prompt_eval_count"), answer.get("eval_count"))


def _logprobs(answer: Json) -> Json | None:
    """Ollama's list has the hub's items, some fields left out."""
    told = answer.get("logprobs")
    items = [item for item in told if isinstance(item, dict)] if isinstance(told, list) else []
    whole = [{**item, "bytes": item.get("bytes"), "top_logprobs": item.get("top_logprobs") or []} for item in items]
    return {"content": whole} if whole else None


def chatStreamOllamatoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """/api/chat lines → chunks; tool calls come whole there. Raises: BackendError on an error line."""
    lead: list[Json] = [{"role": "assistant", "content": ""}]
    slot = 0  # of the next tool call
    for event in events:
        if not isinstance(event, dict):
            continue
        if event.get("error"):
            raise hub.stream_error(event)
        model, message, logprobs = event.get("model"), event.get("message"), _logprobs(event)
        deltas = [*lead, *_deltas(message if isinstance(message, dict) else {}, cfg, slot)]
        slot, lead = slot + sum("tool_calls" in delta for delta in deltas), []
        if logprobs and not deltas:
            deltas = [{}]
        for i, delta in enumerate(deltas, 1):
            yield hub.chunk(cfg, delta, model=model, logprobs=logprobs if i == len(deltas) else None)
        if event.get("done") is True:
            finish = FINISH.get(text(event.get("done_reason")), "stop")
            yield hub.chunk(cfg, {}, "tool_calls" if slot and finish == "stop" else finish, model=model)
            yield hub.usage_chunk(cfg, _usage(event), model=model)
            return


def _deltas(message: Json, cfg: Mapping[str, Any], slot: int) -> Iterator[Json]:
    if text(message.get("thinking")):
        yield {"reasoning_content": message["thinking"]}
    if text(message.get("content")):
        yield {"content": message["content"]}
    for i, (call_id, (name, arguments)) in enumerate(_calls(message, cfg, slot), slot):
        yield hub.tool_delta(i, call_id, name, hub.compact(arguments))


def textStreamOllamatoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """/api/generate lines → text_completion chunks. Raises: BackendError on an error line."""
    return hub.textStreamChattoOpenAI(chatStreamOllamatoOpenAI(map(_as_chat, events), cfg), cfg)


# --- embeddings and models


def embedReqOpenAItoOllama(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """Embeddings request → /api/embed. Raises: BadRequest for token arrays."""
    req = hub.checked(ip, {"model": "str", "dimensions": "int"})
    hub.embed_inputs(req)
    return {name: req[name] for name in ("model", "input", "dimensions") if name in req}


def embedAnsOllamatoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """/api/embed answer → embeddings. Raises: BackendError for an error body, or when there are none."""
    answer = _checked_answer(ip, "embeddings", list)
    return hub.embed_answer(cfg, answer["embeddings"], answer.get("prompt_eval_count"), answer.get("model"))


def modelsAnsOllamatoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """/api/tags → the hub's list."""
    listed = _checked_answer(ip, "models", list)["models"]
    found = [(text(m.get("model")) or text(m.get("name")), m.get("modified_at")) for m in listed if isinstance(m, dict)]
    data = [{"id": name, "object": "model", "created": unix_of(at), "owned_by": "ollama"} for name, at in found if name]
    return {"object": "list", "data": data}


DIALECT = Dialect(
    name="ollama",
    tag="Ollama",
    routes=(
        Route("POST", "/api/chat", "chat"),
        Route("POST", "/api/generate", "text"),
        Route("POST", "/api/embed", "embed"),
        Route("POST", "/api/embeddings", "embed"),
        Route("GET", "/api/tags", "models"),
        Route("POST", "/api/show", "show", answer="showAnsOllama"),
        Route("GET", "/api/version", "version", answer="versionAnsOllama"),
        Route("GET", "/api/ps", "ps", answer="psAnsOllama"),
        *(Route(method, "/api/*", "manage") for method in ("POST", "DELETE", "HEAD")),  # pull, create, blobs, …: Ollama's alone
    ),
    backend={
        "chat": Upstream("/chat"),
        "text": Upstream("/generate"),
        "embed": Upstream("/embed"),
        "models": Upstream("/tags", method="GET"),
    },
    version="/api",
    error_body=error_body,
    parse_error=parse_error,
    grammar=grammar,
    statuses={529: 503},
    framing=lambda query: "ndjson",
    stream_default=True,
    at_once=loadAnsOllama,
    tuning=frozenset(("keep_alive", "truncate", "shift")),
)
