"""llama.cpp server's native API: /completion, /tokenize, /detokenize, /embedding, /apply-template, /props, /health.

A backend completes bare prompts. A chat's prompt is written by the endpoint's prompter or, where none is named, by the
server itself: then the body that `chatReqOpenAItoLlamaCpp` and `countReqOpenAItoLlamaCpp` give has `messages` in the prompt's
place, and `Upstream.before` has the relay ask /apply-template first: `templateReqLlamaCpp(body)` is what is asked, and
`templateAnsLlamaCpp(answer, cfg)`, with that body as cfg["request"], is the body that is sent at last.
The server finds stops itself and leaves them out of the text. It holds a token back that is half of a code point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from proxy.dialects import Dialect, Event, Route, Upstream
from proxy.dialects._llamacpp_front import (
    FINISH,
    SAME,
    embedAnsOpenAItoLlamaCpp,
    embedReqLlamaCpptoOpenAI,
    error_body,
    fault_of,
    grammar,
    healthAnsLlamaCpp,
    listed,
    parse_error,
    prompts_of,
    propsAnsLlamaCpp,
    textAnsOpenAItoLlamaCpp,
    textReqLlamaCpptoOpenAI,
    textStreamOpenAItoLlamaCpp,
    told_events,
)
from proxy.dialects._llamacpp_limits import limitsReqLlamaCpp
from proxy.dialects.openai import (
    TEXT_FIELDS,
    Json,
    canonical,
    checked,
    chunk,
    compact,
    completion,
    count,
    data_uri,
    embed_answer,
    text,
    text_of,
    textAnsChattoOpenAI,
    textStreamChattoOpenAI,
    usage,
    usage_chunk,
)
from proxy.errors import BackendError, BadRequest
from proxy.prompts import prompt_of

# the clients' half, and the limits of command:// targets, which stand in their own files
__all__ = ["embedAnsOpenAItoLlamaCpp", "embedReqLlamaCpptoOpenAI", "healthAnsLlamaCpp", "limitsReqLlamaCpp", "propsAnsLlamaCpp"]
__all__ += ["textAnsOpenAItoLlamaCpp", "textReqLlamaCpptoOpenAI", "textStreamOpenAItoLlamaCpp"]

# --- requests to llama.cpp

FIELDS = {  # hub → /completion
    **{name: name for name in (*SAME, "seed", "logit_bias", "stop")},
    "max_completion_tokens": "n_predict",
    "max_tokens": "n_predict",
    "repetition_penalty": "repeat_penalty",
}
OWN = (  # options of /completion that clients of an OpenAI API add for llama.cpp; they beat what the hub's fields say
    *("grammar", "json_schema", "cache_prompt", "id_slot", "n_keep", "n_indent", "n_cache_reuse", "min_keep", "ignore_eos"),
    *("repeat_penalty", "repeat_last_n", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
    *("dry_sequence_breakers", "xtc_probability", "xtc_threshold", "top_n_sigma", "dynatemp_range", "dynatemp_exponent"),
    *("mirostat", "mirostat_tau", "mirostat_eta", "samplers", "t_max_predict_ms", "lora"),
)


def chatReqOpenAItoLlamaCpp(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Chat request → /completion body: with the prompter's prompt, or with `messages` for /apply-template.

    Raises: BadRequest for tools that may be called, and for images that the prompter or /completion cannot take.
    Source: llama.cpp, tools/server/README.md, POST /completion (2026-11).
    """
    req = canonical(ip)
    if req.get("tools") and req.get("tool_choice") != "none":
        raise BadRequest("/completion takes no tools (`dialect: openai` reaches the server's /v1, which does)", param="tools")
    body = _completion_body(req)
    if req.get("logprobs"):
        body["n_probs"] = max(req.get("top_logprobs", 0), 1)
    if not cfg.get("prompter"):
        return {"messages": _template_messages(req["messages"]), **_template_options(req), **body}
    prompt, stops = prompt_of(req["messages"], cfg)
    wanted = list(dict.fromkeys([*req.get("stop", ()), *stops]))
    return {"prompt": prompt, **body, **({"stop": wanted} if wanted else {})}


def textReqOpenAItoLlamaCpp(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Completions request → /completion body; several prompts and token arrays are as good there as one string.

    Raises: BadRequest without a prompt, and for a suffix, best_of, or echo of more than one text.
    Source: as chatReqOpenAItoLlamaCpp.
    """
    req = checked(ip, TEXT_FIELDS)
    prompts = prompts_of(req)
    stop, echo = req.get("stop", []), req.get("echo")
    for name, wrong, why in (
        ("prompt", not prompts, "must be a string or an array that is not empty"),
        ("stop", not all(isinstance(item, str) for item in listed(stop)), "must be a string or an array of strings"),
        ("suffix", req.get("suffix"), "cannot be served: /completion only continues a text"),
        ("best_of", req.get("best_of", 1) > req.get("n", 1), "cannot be served: this backend does not rank its answers"),
        ("echo", echo and "logprobs" in req, "cannot be served together with logprobs"),
        ("echo", echo and not (len(prompts) == 1 and isinstance(prompts[0], str)), "needs one prompt that is a string"),
    ):
        if wrong:
            raise BadRequest(f"{name} {why}", param=name)
    body = _completion_body(req)
    if "logprobs" in req:
        body["n_probs"] = max(req["logprobs"], 1)
    return {"prompt": req["prompt"], **body}


def _completion_body(req: Json) -> Json:
    body = {theirs: req[ours] for ours, theirs in FIELDS.items() if ours in req}
    if req.get("n", 1) != 1:
        body["n_cmpl"] = req["n"]
    form = req.get("response_format")
    if isinstance(form, dict) and form.get("type") == "json_object":
        body["json_schema"] = {"type": "object"}
    elif isinstance(form, dict) and isinstance(form.get("json_schema"), dict):
        body["json_schema"] = form["json_schema"].get("schema") or {}
    return {**body, **{name: req[name] for name in OWN if name in req}}


# --- the server's own chat template

ROLES = {"developer": "system", "function": "tool"}
TEMPLATE_OPTIONS = ("chat_template_kwargs", "reasoning_effort")
MESSAGE_FIELDS = ("name", "tool_call_id", "reasoning_content")


def _template_messages(messages: Sequence[Json]) -> list[Json]:
    """Messages for /apply-template: text as one str, images where they stand, nothing that only the hub knows."""
    out = []
    for i, message in enumerate(messages):
        content = message["content"]
        if isinstance(content, list):
            parts = [_template_part(part, f"messages[{i}].content[{j}]") for j, part in enumerate(content)]
            content = parts if any(part["type"] != "text" for part in parts) else text_of(parts)
        if message.get("is_error") is True:
            content = [{"type": "text", "text": "Error: "}, *content] if isinstance(content, list) else f"Error: {content}"
        plain = {"role": ROLES.get(message["role"], message["role"]), "content": content}
        plain |= {name: message[name] for name in MESSAGE_FIELDS if name in message}
        if message.get("tool_calls"):
            plain["tool_calls"] = [{name: call[name] for name in ("id", "type", "function")} for call in message["tool_calls"]]
        out.append(plain)
    return out


def _template_part(part: Json, param: str) -> Json:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] == "image_url" and data_uri(part["image_url"]["url"], f"{param}.image_url.url"):
        return {"type": "image_url", "image_url": {"url": part["image_url"]["url"]}}
    if part["type"] == "input_audio" and isinstance(part["input_audio"].get("data"), str):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise BadRequest(f"{param}: this backend takes images as data URIs and audio as base64, nothing else", param=param)


def _template_options(req: Json) -> Json:
    return {name: req[name] for name in TEMPLATE_OPTIONS if name in req}


def templateReqLlamaCpp(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """A body with `messages` → what /apply-template is asked. Source: README, POST /apply-template."""
    return {name: ip[name] for name in ("model", "messages", "tools", *TEMPLATE_OPTIONS) if name in ip}


def templateAnsLlamaCpp(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """/apply-template answer → the body cfg["request"] with its prompt (`content`, for /tokenize) in place of `messages`.

    The template leaves a marker for each image; the images follow in the order of their markers.
    Raises: BackendError when there is no prompt.
    """
    prompt = ip.get("prompt") if isinstance(ip, dict) else None
    if not isinstance(prompt, str):
        raise BackendError("the backend's /apply-template gave no prompt")
    request = cfg.get("request") or {}
    rest = {name: value for name, value in request.items() if name not in ("messages", "tools", *TEMPLATE_OPTIONS)}
    if "add_special" in rest:
        return {"content": prompt, **rest}
    media = list(_media(request.get("messages", ())))
    return {"prompt": {"prompt_string": prompt, "multimodal_data": media} if media else prompt, **rest}


def _media(messages: Sequence[Json]) -> Iterator[str]:
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "input_audio":
                yield part["input_audio"]["data"]
            elif part["type"] == "image_url":
                found = data_uri(part["image_url"]["url"])
                yield found[1] if found else ""


# --- answers of llama.cpp

STOPPED = {"stopped_limit": "limit", "stopped_word": "word"}  # how servers of before 2025 said it


def chatAnsLlamaCpptoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """/completion answer, or the list of them that n > 1 gives → chat.completion.

    A stop of the prompter's is the natural end; one of the client's is told as stop_sequence.
    Raises: BackendError when there is no content. Source: README, POST /completion, response format.
    """
    results = _results(ip)
    choices = []
    for i, result in enumerate(results):
        logprobs = [_logprob(item) for item in _tokens(result)]
        extra = {**_ending(result, cfg), **({"logprobs": {"content": logprobs}} if logprobs else {})}
        message = {"role": "assistant", "content": text(result["content"])}
        choices.append({"index": i, "message": message, **extra})
    return completion(cfg, results[0].get("model"), choices, _usage(results, cfg))


def textAnsLlamaCpptoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """/completion answer, or a list of them → text_completion. Raises: BackendError when there is no content."""
    return textAnsChattoOpenAI(chatAnsLlamaCpptoOpenAI(ip, cfg), cfg)


def chatStreamLlamaCpptoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """/completion events → chunks. Raises: BackendError on an error event."""
    begun: set[int] = set()
    ended: list[Json] = []
    for event in told_events(events):
        index, model = count(event.get("index")), event.get("model")
        if index not in begun:
            begun.add(index)
            yield chunk(cfg, {"role": "assistant", "content": ""}, None, index, model=model)
        logprobs = [_logprob(item) for item in _tokens(event)]
        if text(event.get("content")) or logprobs:
            told = {"content": logprobs} if logprobs else None
            yield chunk(cfg, {"content": text(event.get("content"))}, None, index, model=model, logprobs=told)
        if event.get("stop") is True:
            ended.append(event)
            ending = _ending(event, cfg)
            yield chunk(cfg, {}, ending.pop("finish_reason"), index, model=model, **ending)
    if ended:
        yield usage_chunk(cfg, _usage(ended, cfg), model=ended[-1].get("model"))


def textStreamLlamaCpptoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """/completion events → text_completion chunks. Raises: BackendError on an error event."""
    return textStreamChattoOpenAI(chatStreamLlamaCpptoOpenAI(events, cfg), cfg)


def _results(ip: Any) -> list[Json]:
    found = ip if isinstance(ip, list) else [ip]
    results = [result for result in found if isinstance(result, dict)]
    if results and results[0].get("error"):
        raise fault_of(results[0])
    if not results or not all("content" in result for result in results):
        raise BackendError("the backend's answer has no content")
    return sorted(results, key=lambda result: count(result.get("index")))


def _ending(result: Json, cfg: Mapping[str, Any]) -> Json:
    kind = result.get("stop_type") or next((kind for name, kind in STOPPED.items() if result.get(name) is True), "eos")
    word = text(result.get("stopping_word"))
    request = cfg.get("request")
    wanted = listed(request.get("stop") if isinstance(request, Mapping) else word)
    told = {"stop_sequence": word} if word and kind == "word" and word in wanted else {}
    return {"finish_reason": FINISH.get(kind, "stop") if isinstance(kind, str) else "stop", **told}


def _usage(results: Sequence[Json], cfg: Mapping[str, Any]) -> Json:
    """tokens_evaluated is the whole prompt, timings.cache_n of it came from the cache; n answers share one prompt."""
    request = cfg.get("request")
    n = count(request.get("n")) if isinstance(request, Mapping) else 1
    timings = [result["timings"] for result in results if isinstance(result.get("timings"), dict)]
    cached = sum(count(timing.get("cache_n")) for timing in timings)
    prompt, made = (sum(count(result.get(name)) for result in results) for name in ("tokens_evaluated", "tokens_predicted"))
    return usage(prompt // max(n, 1), made, cached // max(n, 1))


def _tokens(result: Json) -> list[Json]:
    """Tokens with their log-probabilities; the one that ends the answer has no text."""
    items = [item for item in listed(result.get("completion_probabilities")) if isinstance(item, dict)]
    return [item for item in items if text(item.get("token"))]


def _logprob(item: Json) -> Json:
    return {**_one(item), "top_logprobs": [_one(top) for top in listed(item.get("top_logprobs")) if isinstance(top, dict)]}


def _one(item: Json) -> Json:
    return {"token": text(item.get("token")), "logprob": item.get("logprob"), "bytes": item.get("bytes")}


# --- embeddings, counting, models


def embedReqOpenAItoLlamaCpp(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Embeddings request → /embedding body. Raises: BadRequest without input. Source: README, POST /embedding."""
    req = checked(ip, {"model": "str", "encoding_format": "str", "dimensions": "int"})
    if not isinstance(req.get("input"), (str, list)) or not req["input"]:
        raise BadRequest("input must be a string or an array that is not empty", param="input")
    return {"content": req["input"], **{name: req[name] for name in ("model", "embd_normalize") if name in req}}


def embedAnsLlamaCpptoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """/embedding answer, [{"index", "embedding": [[…]]}] → embeddings; /embedding tells no tokens, so usage is 0.

    Raises: BackendError when there is no vector, or one per token: a server that was started without pooling.
    """
    items = [item for item in listed(ip) if isinstance(item, dict)]
    if items and items[0].get("error"):
        raise fault_of(items[0])
    vectors = [item.get("embedding") for item in sorted(items, key=lambda item: count(item.get("index")))]
    return embed_answer(cfg, [_vector(vector) for vector in vectors] or _vector(None))


def _vector(found: Any) -> list[float]:
    nested = isinstance(found, list) and bool(found) and isinstance(found[0], list)
    if nested and len(found) > 1:
        raise BackendError("the backend gives a vector for every token: start it with --pooling mean, cls or last")
    vector = found[0] if nested else found
    if not isinstance(vector, list) or not vector:
        raise BackendError("the backend's answer has no embedding")
    return vector


def countReqOpenAItoLlamaCpp(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Chat request → /tokenize body: with the prompter's prompt and the tools, or with `messages` for /apply-template.

    Raises: BadRequest as chatReqOpenAItoLlamaCpp does. Source: README, POST /tokenize.
    """
    req = canonical(ip)
    tools = req.get("tools", [])
    body = {**{name: req[name] for name in ("model",) if name in req}, "add_special": True, "parse_special": True}
    if not cfg.get("prompter"):
        messages = {"messages": _template_messages(req["messages"]), **({"tools": tools} if tools else {})}
        return {**messages, **_template_options(req), **body}
    prompt, _ = prompt_of(req["messages"], cfg)
    return {"content": prompt + (compact(tools) if tools else ""), **body}


def countAnsLlamaCpptoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """/tokenize answer → {"input_tokens": n}. Raises: BackendError when there are no tokens."""
    tokens = ip.get("tokens") if isinstance(ip, dict) else None
    if not isinstance(tokens, list):
        raise BackendError("the backend's answer has no tokens")
    return {"input_tokens": len(tokens)}


def modelsAnsLlamaCpptoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """/v1/models answer → the hub's list, without what the server tells of the model's insides. Raises: BackendError."""
    data = ip.get("data") if isinstance(ip, dict) else None
    if not isinstance(data, list):
        raise BackendError("the backend's answer has no models")
    known = [item for item in data if isinstance(item, dict) and text(item.get("id"))]
    fields = [{"id": item["id"], "object": "model", "created": count(item.get("created"))} for item in known]
    return {"object": "list", "data": [{**model, "owned_by": "llamacpp"} for model in fields]}


DIALECT = Dialect(
    name="llamacpp",
    tag="LlamaCpp",
    routes=(
        Route("POST", "/completion", "text"),
        Route("POST", "/embedding", "embed"),
        Route("POST", "/embeddings", "embed"),
        Route("POST", "/tokenize", "tokenize"),
        Route("POST", "/detokenize", "detokenize"),
        Route("GET", "/props", "props", answer="propsAnsLlamaCpp"),
        Route("GET", "/health", "health", answer="healthAnsLlamaCpp"),
    ),
    backend={
        "chat": Upstream("/completion", before="template"),
        "text": Upstream("/completion"),
        "embed": Upstream("/embedding"),
        "count": Upstream("/tokenize", before="template"),
        "template": Upstream("/apply-template"),
        "models": Upstream("/v1/models", method="GET"),
    },
    version="",
    error_body=error_body,
    parse_error=parse_error,
    grammar=grammar,
    statuses={529: 503},
    prefixes=("/slots", "/lora-adapters", "/infill", "/apply-template", "/rerank", "/reranking", "/metrics"),
    keepalive=b":\n\n",
    tuning=frozenset(
        (
            *("temperature", "top_p", "top_k", "min_p", "typical_p", "presence_penalty", "frequency_penalty", "seed"),
            *(name for name in OWN if name not in ("grammar", "json_schema", "ignore_eos", "lora")),
            *("samplers", "timings_per_token", "return_progress", "return_tokens", "response_fields", "sse_ping_interval"),
        )
    ),
)
