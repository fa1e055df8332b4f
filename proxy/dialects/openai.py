"""OpenAI's API (Chat Completions, Completions, Embeddings, Models), and the hub that all other APIs are mapped to and from.

Canonical chat request (what every `chatReqXtoOpenAI` gives, and what `canonical(ip)` makes of any variant):
  model, messages, stream, n, seed, temperature, top_p, presence_penalty, frequency_penalty, logit_bias, logprobs,
  top_logprobs, user, metadata as OpenAI documents them;
  max_completion_tokens   the limit, whatever the client called it (max_tokens)
  stop                    list of str (a lone str becomes a list; null and [] are absent)
  tools                   [{"type": "function", "function": {"name", "description"?, "parameters"?, "strict"?}}]; legacy
                          `functions` become tools, custom tools functions with one string `input` (`canonical(ip, own=True)`
                          leaves them, for OpenAI itself); an `allowed_tools` choice is applied
  tool_choice             "auto" | "none" | "required" | {"type": "function", "function": {"name"}}; absent without tools
  parallel_tool_calls     bool
  response_format         {"type": "json_object"} | {"type": "json_schema", "json_schema": {"name", "schema", "strict"?}}
  reasoning_effort        "none" | "minimal" | "low" | "medium" | "high" | "xhigh" | "max"
  stream_options          {"include_usage": bool}
  Null fields are absent. Messages: role system | developer | user | assistant | tool; `content` is a str, a list of parts
  {"type": "text", "text"} | {"type": "image_url", "image_url": {"url", "detail"?}} | {"type": "input_audio", …} |
  {"type": "file", "file": {"file_data" (a data URI) | "file_id", "filename"?}}, or None for a tool-only assistant turn.
  Assistant: tool_calls [{"id", "type": "function", "function": {"name", "arguments": str}}]. Tool: tool_call_id, content.
What a dialect needs to read and write these is here, importable from this module: `canonical(ip)` first in every
`chatReqOpenAItoX`, `canonical_answer(ip)` first in every `chatAnsOpenAItoX` and `canonical_chunks(events)` first in every
`chatStreamOpenAItoX` (they raise BackendError for an error in disguise), and the builders below.
Extensions of the hub's request, which OpenAI's API does not know (`chatReqOpenAItoOpenAI` takes them off again):
  top_k, min_p, typical_p, repetition_penalty   sampling, as local servers name them
  thinking                {"type": "enabled", "budget_tokens": int} | {"type": "adaptive"} | {"type": "disabled"}
  cache_control           {"type": "ephemeral", …} on a content part or a tool
  messages[].thinking_blocks   [{"type": "thinking", "thinking", "signature"} | {"type": "redacted_thinking", "data"}], verbatim
  messages[].reasoning_content str, reasoning without a signature
  messages[].is_error     true on a tool message that reports a failure
  image_url and file parts in a tool message's content
  tool_calls[].extra_content   {"google": {"thought_signature": str}} (Gemini), verbatim, as Google's own OpenAI endpoint has it
  messages[].extra_content     the same: the one that stands on the last text part of a model's turn
Canonical chat answer: a chat.completion; its extensions:
  choices[].message.reasoning_content  str, all reasoning text, also that of thinking_blocks
  choices[].message.thinking_blocks  as above, the signed and redacted blocks only; whoever reads them skips reasoning_content
  choices[].stop_sequence str, the stop that matched
  choices[].message.tool_calls[].extra_content, choices[].message.extra_content  as above; see `signature_of` in _seal.py
  usage.prompt_tokens includes cached ones; usage.prompt_tokens_details {"cached_tokens", "cache_creation_tokens" (extension)};
  usage.completion_tokens_details {"reasoning_tokens"}
Canonical stream: chat.completion.chunk; `delta` has role, content, tool_calls [{"index", "id"?, "type"?, "function": {"name"?,
  "arguments"?}, "extra_content"?}], and as extensions reasoning_content (a fragment), reasoning_signature (the signature
  that ends the reasoning block), redacted_thinking (a whole block's data), extra_content. finish_reason (and stop_sequence
  beside it) comes once per choice, then, when it is known, one chunk with `choices: []` and `usage`. A stream that ends without
  a finish_reason is broken: a mapper ends there without inventing one, and the front's grammar says so to the client.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Dialect, Event, Route, Upstream
from proxy.dialects._answer import (
    assistant,
    canonical_answer,
    chat_answer,
    chunk,
    completion,
    count,
    embed_answer,
    embed_inputs,
    model_of,
    object_of,
    parse_error,
    stream_error,
    text,
    to_base64,
    to_floats,
    tool_call,
    tool_delta,
    usage,
    usage_chunk,
    vectors_of,
)
from proxy.dialects._grammar import error_body, grammar
from proxy.dialects._hub import (
    Json,
    calls_of,
    canonical,
    checked,
    compact,
    data_uri,
    estimate_tokens,
    expect,
    made_id,
    nine_id,
    objects,
    parse_arguments,
    sniff,
    text_of,
    tool_id,
)
from proxy.dialects._stream import Slots, canonical_chunks, fold, unfold
from proxy.errors import BadRequest

# the hub's tools, which the other dialects take from here
__all__ = ["Json", "Slots", "assistant", "canonical", "canonical_answer", "canonical_chunks", "chat_answer", "checked", "chunk"]
__all__ += [
    "calls_of",
    "compact",
    "completion",
    "count",
    "data_uri",
    "embed_answer",
    "embed_inputs",
    "error_body",
    "estimate_tokens",
]
__all__ += ["expect", "fold", "grammar", "made_id", "model_of", "nine_id", "objects", "parse_arguments", "parse_error", "sniff"]
__all__ += ["stream_error", "text", "text_of", "to_base64", "to_floats", "tool_call", "tool_delta", "tool_id", "unfold"]
__all__ += ["usage", "usage_chunk", "vectors_of"]

# --- chat

SAMPLING = ("top_k", "min_p", "typical_p", "repetition_penalty")
NOT_OF_TEXT = frozenset(("response_format", *SAMPLING))
MESSAGE_EXTENSIONS = frozenset(("thinking_blocks", "reasoning_content", "is_error"))
EXTRA, CACHE = frozenset(("extra_content",)), frozenset(("cache_control",))
OPENAI_ONLY = ("verbosity", "prompt_cache_key", "safety_identifier", "service_tier")
OPENAI_HOST = re.compile(r"//([\w.-]+\.)?(openai\.com|azure\.com)([:/]|$)")
GOOGLE_HOST = re.compile(r"//([\w.-]+\.)?googleapis\.com([:/]|$)")
MISTRAL = re.compile(r"mi[sx]tral|codestral|devstral|pixtral", re.I)


def chatReqOpenAItoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Canonical request → what a backend of OpenAI's API takes: no extensions, usage asked for in streams.

    Out: tool results as text, their images in a user message behind them; `developer` is `system` and the limit `max_tokens`
    where cfg["url"] is not OpenAI's; thought signatures where it is Google's; tool ids of at most forty characters, of nine for
    Mistral; `properties` in the schema of every tool.
    Raises: BadRequest (see `canonical`).
    Source: OpenAI API reference, Create chat completion (2026-11).
    """
    req = canonical(ip, own=True)
    for name in (*SAMPLING, "thinking"):
        req.pop(name, None)
    url = cfg.get("url")
    google = isinstance(url, str) and GOOGLE_HOST.search(url) is not None
    req["messages"] = list(_plain_messages(req["messages"], frozenset() if google else EXTRA))
    if "tools" in req:
        req["tools"] = [_plain_tool(tool) for tool in req["tools"]]
    if req.get("stream"):
        req["stream_options"] = {**req.get("stream_options", {}), "include_usage": True}
    if isinstance(url, str) and not OPENAI_HOST.search(url):
        _for_others(req)
    mistral = any(MISTRAL.search(str(cfg.get(name) or req.get(name) or "")) for name in ("model", "url"))
    req["messages"] = [_named(message, nine_id if mistral else _forty_id) for message in req["messages"]]
    return req


def _without(item: Json, names: frozenset[str]) -> Json:
    return item if names.isdisjoint(item) else {name: value for name, value in item.items() if name not in names}


def _plain_tool(tool: Json) -> Json:
    """A tool without extensions, and with `properties`: OpenAI refuses an object's schema that has none."""
    schema = object_of(object_of(tool.get("function")).get("parameters"))
    if schema.get("type") == "object" and not isinstance(schema.get("properties"), dict):
        tool = {**tool, "function": {**tool["function"], "parameters": {**schema, "properties": {}}}}
    return _without(tool, CACHE)


def _plain_messages(messages: list[Json], extra: frozenset[str]) -> Iterator[Json]:
    """Messages without extensions, and without `extra`, which their calls may have too.

    What a tool result cannot hold follows the last result of the turn.
    """
    held: list[Json] = []
    extensions = MESSAGE_EXTENSIONS | extra
    for message in messages:
        if held and message["role"] != "tool":
            yield {"role": "user", "content": held}
            held = []
        plain = _without(message, extensions)
        if isinstance(plain["content"], list):
            parts = [_without(part, CACHE) for part in plain["content"]]
            if message["role"] == "tool":
                held += [part for part in parts if part["type"] != "text"]
                parts = [part for part in parts if part["type"] == "text"]
            plain = {**plain, "content": parts if parts else ""}
        if message.get("is_error") is True:
            plain = {**plain, "content": f"Error: {text_of(plain['content'])}"}
        if plain["content"] is None and not plain.get("tool_calls"):
            plain = {**plain, "content": ""}  # all that it said was reasoning
        if plain.get("tool_calls"):
            plain = {**plain, "tool_calls": [_without(call, extra) for call in plain["tool_calls"]]}
        yield plain
    if held:
        yield {"role": "user", "content": held}


def _for_others(req: Json) -> None:
    """Servers beside OpenAI know neither its newer name of the limit nor its newer role, and some refuse its own fields."""
    if "max_completion_tokens" in req:
        req["max_tokens"] = req.pop("max_completion_tokens")
    for name in OPENAI_ONLY:
        req.pop(name, None)
    req["messages"] = [{**m, "role": "system"} if m["role"] == "developer" else m for m in req["messages"]]


def _forty_id(call_id: str) -> str:
    """A tool call's id as OpenAI's Chat API takes it: any characters, at most forty."""
    return tool_id(call_id, 40) if len(call_id) > 40 else call_id


def _named(message: Json, name: Callable[[str], str]) -> Json:
    """A message with the ids of its calls, or of the call that it answers, as `name` writes them."""
    if "tool_call_id" in message:
        return {**message, "tool_call_id": name(message["tool_call_id"])}
    if "tool_calls" in message:
        return {**message, "tool_calls": [{**call, "id": name(call["id"])} for call in message["tool_calls"]]}
    return message


def chatAnsOpenAItoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """An OpenAI-like backend's answer → a canonical one under the model's name that the client asked for.

    Raises: BackendError when it is an error or has no choices.
    """
    answer = canonical_answer(ip)
    return {**answer, "model": model_of(cfg, answer.get("model"))}


def chatStreamOpenAItoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """The same for a stream of chunks. Raises: BackendError on an error event."""
    for event in canonical_chunks(events):
        yield {**event, "model": model_of(cfg, event.get("model"))}


def countEstimate(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Hub chat request → {"input_tokens": n}, an estimate from its characters; never zero. Raises: BadRequest."""
    return {"input_tokens": estimate_tokens(canonical(ip))}


# --- text (Completions), and its bridge to chat

TEXT_FIELDS = {
    **dict.fromkeys(("model", "user", "suffix"), "str"),
    **dict.fromkeys(("stream", "echo"), "bool"),
    **dict.fromkeys(("n", "best_of", "max_tokens", "logprobs", "seed", "top_k"), "int"),
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty"), "number"),
    **dict.fromkeys(("min_p", "typical_p", "repetition_penalty"), "number"),
    **dict.fromkeys(("logit_bias", "stream_options"), "dict"),
}
TEXT_AS_CHAT = (
    *("model", "stream", "stream_options", "n", "stop", "seed", "temperature", "top_p", "presence_penalty"),
    *("frequency_penalty", "logit_bias", "user", "response_format", *SAMPLING),
)


def textReqOpenAItoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """A Completions request for a backend of OpenAI's API: no nulls, no sampling extensions, usage asked for in streams."""
    req = _without(checked(ip, TEXT_FIELDS), NOT_OF_TEXT)
    if req.get("stream"):
        req = {**req, "stream_options": {**req.get("stream_options", {}), "include_usage": True}}
    return req


def one_prompt(ip: Any) -> str:
    """The prompt of a Completions request that must have exactly one, as text. Raises BadRequest."""
    prompt = ip.get("prompt") if isinstance(ip, dict) else None
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) for item in prompt):
        raise BadRequest("this backend takes one prompt a call: send one string in prompt", param="prompt")
    if not isinstance(prompt, str):
        raise BadRequest("prompt must be a string (token arrays cannot be translated)", param="prompt")
    return prompt


def textReqOpenAItoChat(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Completions request → chat request with the prompt as the one user message.

    Raises: BadRequest for what a chat cannot do: several prompts, suffix, best_of beyond n, echo together with logprobs.
    """
    body = checked(ip, TEXT_FIELDS)
    prompt = one_prompt(body)
    logprobs = body.get("logprobs")
    for name, impossible in (
        ("suffix", bool(body.get("suffix"))),
        ("best_of", body.get("best_of", 1) > body.get("n", 1)),
        ("echo", bool(body.get("echo")) and logprobs is not None),
    ):
        if impossible:
            raise BadRequest(f"{name} cannot be served: this target only has chat completions", param=name)
    req = {name: body[name] for name in TEXT_AS_CHAT if name in body}
    if "max_tokens" in body:
        req["max_completion_tokens"] = body["max_tokens"]
    if logprobs is not None:
        req |= {"logprobs": True, **({"top_logprobs": logprobs} if logprobs else {})}
    return {**req, "messages": [{"role": "user", "content": prompt}]}


def _prompt(cfg: Mapping[str, Any]) -> tuple[str, bool]:
    """The prompt that an answer belongs to, and whether it is to be echoed."""
    request = cfg.get("request")
    if not isinstance(request, Mapping):
        return "", False
    prompt = request.get("prompt")
    prompt = prompt[0] if isinstance(prompt, list) and prompt else prompt
    return text(prompt), request.get("echo") is True


def _text_choice(choice: Json, said: str, offset: int) -> Json:
    finish = choice.get("finish_reason")
    logprobs = choice.get("logprobs")
    return {
        "text": said,
        "index": choice.get("index", 0),
        "logprobs": _text_logprobs(logprobs, offset) if isinstance(logprobs, dict) else None,
        "finish_reason": "stop" if finish == "tool_calls" else finish,
        **({"stop_sequence": choice["stop_sequence"]} if choice.get("stop_sequence") else {}),
    }


def _text_logprobs(logprobs: Json, offset: int) -> Json:
    """Chat's logprobs → the four parallel lists of Completions."""
    items = objects(logprobs.get("content"))
    tokens = [text(item.get("token")) for item in items]
    tops = [objects(item.get("top_logprobs")) for item in items]
    return {
        "tokens": tokens,
        "token_logprobs": [item.get("logprob") for item in items],
        "top_logprobs": [{text(top.get("token")): top.get("logprob") for top in listed} for listed in tops],
        "text_offset": [offset + sum(map(len, tokens[:i])) for i in range(len(tokens))],
    }


def textAnsChattoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """chat.completion → text_completion; the prompt comes first where the request said `echo`. Raises: BackendError."""
    answer = canonical_answer(ip)
    prompt, echo = _prompt(cfg)
    said = [
        (choice, text_of(choice["message"]["content"]) + text(choice["message"].get("refusal"))) for choice in answer["choices"]
    ]
    return {
        "id": text(answer.get("id")).replace("chatcmpl-", "cmpl-", 1),
        "object": "text_completion",
        "created": answer.get("created", 0),
        "model": model_of(cfg, answer.get("model")),
        "choices": [_text_choice(choice, prompt + words if echo else words, len(prompt)) for choice, words in said],
        **({"usage": answer["usage"]} if "usage" in answer else {}),
    }


def textStreamChattoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """Chat chunks → text_completion chunks. Raises: BackendError on an error event."""
    prompt, echo = _prompt(cfg)
    told: dict[int, int] = {}  # choice → characters so far, the prompt's included
    for event in canonical_chunks(events):
        choices = []
        for choice in event["choices"]:
            delta, index = choice["delta"], choice["index"]
            words = text(delta.get("content")) + text(delta.get("refusal"))
            first = index not in told
            offset = told.setdefault(index, len(prompt))
            told[index] += len(words)
            shown = prompt + words if echo and first else words
            if shown or choice["finish_reason"] or choice.get("logprobs"):
                choices.append(_text_choice(choice, shown, offset))
        if choices or "usage" in event:
            name = text(event.get("id")).replace("chatcmpl-", "cmpl-", 1)
            head = {"id": name, "object": "text_completion", "created": event.get("created", 0)}
            spent = {"usage": event["usage"]} if "usage" in event else {}
            yield {**head, "model": model_of(cfg, event.get("model")), "choices": choices, **spent}


# --- embeddings and models


def embedReqOpenAItoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """An embeddings request without nulls. Raises: BadRequest."""
    fields = {"model": "str", "user": "str", "encoding_format": "str", "dimensions": "int"}
    req = checked(ip, fields)
    if not isinstance(req.get("input"), (str, list)) or not req["input"]:
        raise BadRequest("input must be a string or an array that is not empty", param="input")
    return req


def embedAnsOpenAItoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """An embeddings answer in the encoding that the client asked for, whatever the backend gave. Raises: BackendError."""
    if isinstance(ip, dict) and ip.get("error"):
        raise stream_error(ip)
    vectors = vectors_of(ip)
    spent = ip["usage"] if isinstance(ip.get("usage"), dict) else {}
    return embed_answer(cfg, vectors, spent.get("prompt_tokens"), ip.get("model"))


def modelsAnsAliases(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """The hub's model list (or nothing, where the backend has none) with cfg["aliases"] before it; patterns are no models."""
    listed = objects(ip.get("data") if isinstance(ip, dict) else None)
    found = {item["id"]: item for item in listed if isinstance(item.get("id"), str)}
    names = [name for name in cfg.get("aliases") or () if isinstance(name, str) and "*" not in name]
    own = {name: {"id": name, "object": "model", "created": cfg.get("now", 0), "owned_by": "mooltiproxy"} for name in names}
    return {"object": "list", "data": list({**own, **found}.values())}


def pick_model(ip: Any, cfg: Mapping[str, Any]) -> Json:
    """The entry of cfg["params"]["model"] in the hub's model list. Raises: BadRequest 404."""
    name = (cfg.get("params") or {}).get("model")
    for item in objects(ip.get("data") if isinstance(ip, dict) else None):
        if item.get("id") == name:
            return item
    raise BadRequest(f"the model {name!r} does not exist", status=404, param="model", code="model_not_found")


def modelAnsOpenAItoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """The hub's model list → the one that the path names. Raises: BadRequest 404."""
    return pick_model(ip, cfg)


DIALECT = Dialect(
    name="openai",
    tag="OpenAI",
    routes=(
        Route("POST", "/v1/chat/completions", "chat"),
        Route("POST", "/v1/completions", "text"),
        Route("POST", "/v1/embeddings", "embed"),
        Route("GET", "/v1/models", "models"),
        Route("GET", "/v1/models/{model}", "model"),
    ),
    backend={
        "chat": Upstream("/chat/completions"),
        "text": Upstream("/completions"),
        "embed": Upstream("/embeddings"),
        "models": Upstream("/models", method="GET"),
    },
    version="/v1",
    error_body=error_body,
    parse_error=parse_error,
    grammar=grammar,
    statuses={529: 503},
    based=True,
    forward=frozenset(("idempotency-key", "x-client-request-id")),
    prefixes=("/v1",),
    done=b"data: [DONE]\n\n",
    keepalive=b": keep-alive\n\n",
    tuning=frozenset(
        (
            *("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "user", "metadata", "store"),
            *("service_tier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"),
            *("stream_options", "verbosity", "reasoning_effort", *SAMPLING),
        )
    ),
)
