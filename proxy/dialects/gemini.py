"""Gemini's API: generateContent and streamGenerateContent, countTokens, embedContent and batchEmbedContents, models.

What Gemini has and no other API has a place for is dropped on the way to the hub: Google's own tools (googleSearch,
codeExecution, …) with their parts, safetySettings, media in answers; cachedContent is refused. Decisions:
- Of thinkingBudget and a level only one may be sent: a budget wins, and Gemini 2, which has no levels, gets a budget.
- A system message in mid-conversation keeps its place, as the user's text: Gemini has no other role for it.
- The signature of a call, or of a turn's text, is the hub's extension extra_content of the call, the message, the delta. Where
  a client did not hand it back, a call goes up with the mark that Google documents for such calls: Gemini 3 refuses it bare.
Contents and parts are in `_gemini_parts.py`, schemas in `_gemini_schema.py`, answers and streams in `_gemini_answer.py`.
Source: ai.google.dev/api (2026-11), google-genai 3.4, Gemini CLI 0.61.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from proxy.dialects import Dialect, Route, Upstream
from proxy.dialects._gemini_answer import (
    STATUSES,
    chatAnsGeminitoOpenAI,
    chatAnsOpenAItoGemini,
    chatStreamGeminitoOpenAI,
    chatStreamOpenAItoGemini,
    error_body,
    grammar,
    parse_error,
    usage_in,
)
from proxy.dialects._gemini_parts import contents_of, get, messages_of, parts_of, read
from proxy.dialects._gemini_schema import schema_in, schema_out
from proxy.dialects.openai import (
    Json,
    canonical,
    checked,
    count,
    embed_answer,
    embed_inputs,
    expect,
    objects,
    pick_model,
    text,
    vectors_of,
)
from proxy.errors import BackendError, BadRequest

__all__ = [
    "DIALECT",
    "chatAnsGeminitoOpenAI",
    "chatAnsOpenAItoGemini",
    "chatStreamGeminitoOpenAI",
    "chatStreamOpenAItoGemini",
    "error_body",
    "grammar",
    "parse_error",
]

# --- requests

CONFIG = (  # generationConfig's name, its type, the hub's name
    ("temperature", "number", "temperature"),
    ("topP", "number", "top_p"),
    ("topK", "int", "top_k"),
    ("maxOutputTokens", "int", "max_completion_tokens"),
    ("candidateCount", "int", "n"),
    ("seed", "int", "seed"),
    ("presencePenalty", "number", "presence_penalty"),
    ("frequencyPenalty", "number", "frequency_penalty"),
    ("responseLogprobs", "bool", "logprobs"),
    ("logprobs", "int", "top_logprobs"),
)
CONFIG_SHAPE = {name: kind for name, kind, _ in CONFIG} | {
    "stopSequences": "list",
    "responseMimeType": "str",
    "responseSchema": "dict",
    "responseJsonSchema": "dict",
    "thinkingConfig": {"includeThoughts": "bool", "thinkingBudget": "int", "thinkingLevel": "str"},
}
BODY_SHAPE = {
    "contents": "list",
    "systemInstruction": "any",
    "generationConfig": CONFIG_SHAPE,
    "tools": "list",
    "toolConfig": {"functionCallingConfig": {"mode": "str", "allowedFunctionNames": "list"}},
    "cachedContent": "str",
}
DECLARATION = {"name": "str", "description": "str", "parameters": "dict", "parametersJsonSchema": "dict"}
MODES = {"AUTO": "auto", "ANY": "required", "NONE": "none", "VALIDATED": "auto", "MODE_UNSPECIFIED": None}
SIGNING = re.compile(r"gemini-(?:[3-9]|\d\d)")  # the models that want the first call of every step signed
UNSIGNED = "skip_thought_signature_validator"  # Google's word in place of a signature that there never was, or that is lost
LEVELS = frozenset(("minimal", "low", "medium", "high", "xhigh"))
# a level → a budget, for Gemini 2
BUDGETS = {
    "minimal": 1024,
    "low": 1024,
    "medium": 8192,
    "high": 24576,
    "xhigh": 32768,
    "max": 32768,
}


def chatReqGeminitoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """generateContent → canonical chat request.

    In: {"contents", "systemInstruction", "generationConfig", "tools", "toolConfig"} in camelCase or snake_case; the model is
    cfg["params"]["model"]. Out: see openai.py; Google's own tools (googleSearch, codeExecution, …) and safetySettings are not
    carried. Raises: BadRequest, also for cachedContent, which only Google has. Source: ai.google.dev/api/generate-content.
    """
    body = read(ip, BODY_SHAPE)
    if body.get("cachedContent"):
        told = "cachedContent is stored at Google and this request goes to another API: send the content itself"
        raise BadRequest(told, param="cachedContent")
    messages = _system_in(body.get("systemInstruction")) + messages_of(body.get("contents"))
    req: Json = {"model": _model_in(ip, cfg), "messages": messages}
    req |= _config_in(body.get("generationConfig", {})) | _tools_in(body)
    if cfg.get("stream"):
        req |= {"stream": True, "stream_options": {"include_usage": True}}
    return req


def _model_in(body: Json, cfg: Mapping[str, Any]) -> str:
    named = (cfg.get("params") or {}).get("model") or body.get("model")
    return text(named).removeprefix("models/")


def _system_in(given: Any) -> list[Json]:
    if given is None or given == "":
        return []
    parts = [{"text": given}] if isinstance(given, str) else parts_of(given, "systemInstruction")
    texts = [{"type": "text", "text": part["text"]} for part in parts if part.get("text")]
    return [{"role": "system", "content": texts[0]["text"] if len(texts) == 1 else texts}] if texts else []


def _config_in(config: Json) -> Json:
    out = {name: config[theirs] for theirs, _, name in CONFIG if theirs in config}
    stops = config.get("stopSequences", [])
    for i, stop in enumerate(stops):
        expect(stop, "str", f"generationConfig.stopSequences[{i}]")
    if any(stops):
        out["stop"] = [stop for stop in stops if stop]
    schema = config.get("responseJsonSchema") or schema_in(config.get("responseSchema", {}))
    if schema:
        out["response_format"] = {"type": "json_schema", "json_schema": {"name": "response", "schema": schema}}
    elif config.get("responseMimeType") == "application/json":
        out["response_format"] = {"type": "json_object"}
    return out | _thinking_in(config.get("thinkingConfig", {}))


def _thinking_in(config: Json) -> Json:
    level, budget = config.get("thinkingLevel", "").lower(), config.get("thinkingBudget")
    if level and level != "thinking_level_unspecified":
        if level not in LEVELS:
            param = "generationConfig.thinkingConfig.thinkingLevel"
            raise BadRequest(f"{param} must be one of {', '.join(sorted(LEVELS)).upper()}", param=param)
        return {"reasoning_effort": level}
    if budget == 0:
        return {"thinking": {"type": "disabled"}}
    if budget is not None and budget > 0:
        return {"thinking": {"type": "enabled", "budget_tokens": budget}}
    return {"thinking": {"type": "adaptive"}} if budget is not None or config.get("includeThoughts") else {}


def _tools_in(body: Json) -> Json:
    tools = []
    for i, tool in enumerate(body.get("tools", ())):
        declared = read(tool, {"functionDeclarations": "list"}, f"tools[{i}]").get("functionDeclarations", ())
        tools += [_tool_in(item, f"tools[{i}].functionDeclarations[{j}]") for j, item in enumerate(declared)]
    if not tools:
        return {}
    config = body.get("toolConfig", {}).get("functionCallingConfig", {})
    mode, allowed = str(config.get("mode", "MODE_UNSPECIFIED")).upper(), config.get("allowedFunctionNames")
    if mode not in MODES:
        param = "toolConfig.functionCallingConfig.mode"
        raise BadRequest(f"{param} must be one of {', '.join(MODES)}", param=param)
    choice: Any = MODES[mode]
    if allowed and mode in ("ANY", "VALIDATED"):
        kept = [tool for tool in tools if tool["function"]["name"] in allowed]
        if not kept:
            param = "toolConfig.functionCallingConfig.allowedFunctionNames"
            raise BadRequest(f"{param} names none of the functions", param=param)
        if mode == "ANY" and len(kept) == 1:
            choice = {"type": "function", "function": {"name": kept[0]["function"]["name"]}}
        else:
            tools = kept
    return {"tools": tools, "tool_choice": choice} if choice else {"tools": tools}


def _tool_in(declaration: Any, at: str) -> Json:
    given = read(declaration, DECLARATION, at)
    if not given.get("name"):
        raise BadRequest(f"{at}.name is missing", param=f"{at}.name")
    schema = given.pop("parameters", None)
    schema = given.pop("parametersJsonSchema", None) or (schema and schema_in(schema))
    return {"type": "function", "function": {**given, "parameters": schema} if schema else given}


def chatReqOpenAItoGemini(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Chat request → generateContent; the model goes into the path. Raises: BadRequest. Source: ai.google.dev/api."""
    req = canonical(ip)
    system, contents = contents_of(req["messages"])
    if not system and not contents:
        raise BadRequest("messages hold nothing that can be sent", param="messages")
    if SIGNING.search(text(cfg.get("model")) or text(req.get("model"))):
        for content in contents:
            content["parts"] = _marked(content["parts"])
    out: Json = {"contents": contents or [{"role": "user", "parts": system}]}  # it wants at least one content
    if system and contents:
        out["systemInstruction"] = {"parts": system}
    config = _config_out(req, cfg)
    if config:
        out["generationConfig"] = config
    if "tools" in req:
        out["tools"] = [{"functionDeclarations": [_tool_out(tool["function"]) for tool in req["tools"]]}]
    if "tool_choice" in req:
        out["toolConfig"] = {"functionCallingConfig": _choice_out(req["tool_choice"])}
    return out


def _marked(parts: list[Json]) -> list[Json]:
    """A turn's parts, with the mark on their first call if it has no signature; the calls beside it never have one."""
    first = next((i for i, part in enumerate(parts) if "functionCall" in part), -1)
    return [{"thoughtSignature": UNSIGNED, **part} if i == first else part for i, part in enumerate(parts)]


def _config_out(req: Json, cfg: Mapping[str, Any]) -> Json:
    out = {theirs: req[name] for theirs, _, name in CONFIG if name in req}
    if not out.get("responseLogprobs"):
        out.pop("logprobs", None)
    if "stop" in req:
        out["stopSequences"] = req["stop"]
    form = req.get("response_format")
    if form:
        schema = form.get("json_schema", {}).get("schema")
        out["responseMimeType"] = "application/json"
        out |= schema_out(schema, "responseSchema", "responseJsonSchema") if schema else {}
    thinking = _thinking_out(req, cfg)
    return {**out, "thinkingConfig": thinking} if thinking else out


def _thinking_out(req: Json, cfg: Mapping[str, Any]) -> Json:
    thinking, effort = req.get("thinking", {}), req.get("reasoning_effort")
    budget, model = thinking.get("budget_tokens"), text(cfg.get("model")) or text(req.get("model"))
    if thinking.get("type") == "disabled" or effort == "none":
        return _thinking_least(model, "thinking" if thinking else "reasoning_effort", cfg.get("lost"))
    if thinking.get("type") == "enabled" and isinstance(budget, int):
        return {"includeThoughts": True, "thinkingBudget": _budget(budget, model)}
    if effort:
        if "gemini-2" in model:
            return {"includeThoughts": True, "thinkingBudget": _budget(BUDGETS.get(effort, -1), model)}
        return {"includeThoughts": True, "thinkingLevel": {"max": "XHIGH"}.get(effort, effort.upper())}
    return {"includeThoughts": True, "thinkingBudget": -1} if thinking else {}


def _thinking_least(model: str, asked: str, lost: Any) -> Json:
    """As little thinking as the model can be brought to: Gemini 3, and Pro before it, cannot be kept from it altogether."""
    pro = "pro" in model
    if callable(lost) and (pro or SIGNING.search(model)):
        lost(asked, "this model cannot be kept from thinking: it thinks as little as it can")
    if SIGNING.search(model):
        return {"thinkingLevel": "LOW" if pro else "MINIMAL"}
    return {"thinkingBudget": _budget(1, model) if pro else 0}


def _budget(asked: int, model: str) -> int:
    """A budget within what Gemini 2 takes, which refuses any other; -1 leaves it to the model."""
    if "gemini-2" not in model or asked < 0:
        return asked
    least, most = (128, 32768) if "pro" in model else (512 if "lite" in model else 1, 24576)
    return min(max(asked, least), most)


def _tool_out(function: Json) -> Json:
    out = {name: function[name] for name in ("name", "description") if name in function}
    return out | schema_out(function.get("parameters") or {}, "parameters", "parametersJsonSchema")


def _choice_out(choice: Any) -> Json:
    if isinstance(choice, dict):
        return {"mode": "ANY", "allowedFunctionNames": [choice["function"]["name"]]}
    return {"mode": {"auto": "AUTO", "required": "ANY", "none": "NONE"}[choice]}


# --- counting, embeddings, models


def countReqGeminitoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """countTokens, of contents or of a whole generateContentRequest → canonical chat request. Raises: BadRequest."""
    body = read(ip, {"generateContentRequest": "dict"})
    return chatReqGeminitoOpenAI(body.get("generateContentRequest", ip), {**cfg, "stream": False})


def countAnsOpenAItoGemini(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """{"input_tokens"} → {"totalTokens"}."""
    return {"totalTokens": count(ip.get("input_tokens")) if isinstance(ip, dict) else 0}


def countReqOpenAItoGemini(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Chat request → countTokens. Only a whole request counts system and tools, and it must name its model."""
    body = chatReqOpenAItoGemini(ip, cfg)
    return {"generateContentRequest": {"model": _resource(ip, cfg), **body}}


def _resource(req: Json, cfg: Mapping[str, Any]) -> str:
    """The model inside a body, by the backend's own name for it: it must be the one in the path."""
    return f"models/{text(cfg.get('model')) or text(req.get('model'))}"


def countAnsGeminitoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """{"totalTokens"} → {"input_tokens"}. Raises: BackendError."""
    if not isinstance(ip, dict) or not isinstance(ip.get("totalTokens"), int):
        raise BackendError("the backend's answer has no totalTokens")
    return {"input_tokens": count(ip["totalTokens"])}


def embedReqGeminitoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """embedContent, or batchEmbedContents if it has `requests` → embeddings request. Raises: BadRequest."""
    batch = read(ip, {"requests": "list"}).get("requests")
    items = [(ip, "")] if batch is None else [(item, f"requests[{i}].") for i, item in enumerate(batch)]
    wanted = [read(item, {"outputDimensionality": "int"}, at[:-1]).get("outputDimensionality") for item, at in items]
    if not items or len(set(wanted)) > 1:
        raise BadRequest("requests must be an array that is not empty, with one outputDimensionality for all", param="requests")
    inputs = []
    for item, at in items:
        said = "".join(part.get("text", "") for part in parts_of(get(item, "content"), f"{at}content"))
        if not said:
            raise BadRequest(f"{at}content holds no text", param=f"{at}content")
        inputs.append(said)
    req = {"model": _model_in(ip, cfg), "input": inputs[0] if batch is None else inputs, "encoding_format": "float"}
    return {**req, "dimensions": wanted[0]} if wanted[0] is not None else req


def embedAnsOpenAItoGemini(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Embeddings answer → {"embedding"}, or {"embeddings"} where the request was a batch. Raises: BackendError."""
    values = [{"values": vector} for vector in vectors_of(ip)]
    request = cfg.get("request")
    batch = "requests" in request if isinstance(request, Mapping) else len(values) != 1
    if not batch and not values:
        raise BackendError("the backend's answer has no embeddings")
    return {"embeddings": values} if batch else {"embedding": values[0]}


def embedReqOpenAItoGemini(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Embeddings request → batchEmbedContents. Raises: BadRequest, also for token arrays."""
    req = checked(ip, {"model": "str", "dimensions": "int"})
    size = {"outputDimensionality": req["dimensions"]} if "dimensions" in req else {}
    model = _resource(req, cfg)
    return {"requests": [{"model": model, "content": {"parts": [{"text": said}]}, **size} for said in embed_inputs(req)]}


def embedAnsGeminitoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """{"embeddings"} → embeddings answer in the encoding that was asked for. Raises: BackendError."""
    given = ip.get("embeddings") or [ip.get("embedding")] if isinstance(ip, dict) else None
    if not isinstance(given, list) or not all(
        isinstance(item, dict) and isinstance(item.get("values"), list) for item in given
    ):
        raise BackendError("the backend's answer has no embeddings")
    spent = usage_in(ip) or {}
    return embed_answer(cfg, [item["values"] for item in given], spent.get("prompt_tokens"))


def modelsAnsGeminitoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """{"models": [{"name": "models/x"}]} → the hub's list. Raises: BackendError."""
    given = ip.get("models", []) if isinstance(ip, dict) else None
    if not isinstance(given, list):
        raise BackendError("the backend's answer has no models")
    names = [text(item.get("name")).removeprefix("models/") for item in objects(given)]
    about = {"object": "model", "created": cfg.get("now", 0), "owned_by": "google"}
    return {"object": "list", "data": [{"id": name, **about} for name in names if name]}


METHODS = ("generateContent", "countTokens", "embedContent", "batchEmbedContents")


def _model_out(entry: Json) -> Json:
    name = text(entry.get("id"))
    about = {"name": f"models/{name}", "baseModelId": name, "version": "001", "displayName": name}
    return {**about, "supportedGenerationMethods": list(METHODS)}


def modelsAnsOpenAItoGemini(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """The hub's list → {"models"}."""
    return {"models": [_model_out(entry) for entry in objects(ip.get("data") if isinstance(ip, dict) else None)]}


def modelAnsOpenAItoGemini(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """The hub's list → the model that the path names. Raises: BadRequest 404."""
    return _model_out(pick_model(ip, cfg))


def _framing(query: str) -> str:
    return "sse" if parse_qs(query).get("alt") == ["sse"] else "array"


# SDKs call v1 since late 2026 and called v1beta before; Gemini CLI still does
VERSIONS = ("/v1beta", "/v1", "/v1alpha")
OPERATIONS: tuple[tuple[str, str, bool | None], ...] = (
    ("generateContent", "chat", False),
    ("streamGenerateContent", "chat", True),
    ("countTokens", "count", False),
    ("embedContent", "embed", False),
    ("batchEmbedContents", "embed", False),
)

DIALECT = Dialect(
    name="gemini",
    tag="Gemini",
    routes=(
        *(Route("POST", f"{v}/models/{{model}}:{name}", kind, stream) for v in VERSIONS for name, kind, stream in OPERATIONS),
        *(Route("GET", f"{v}/models", "models") for v in VERSIONS),
        *(Route("GET", f"{v}/models/{{model}}", "model") for v in VERSIONS),
    ),
    backend={
        "chat": Upstream("/models/{model}:generateContent", "/models/{model}:streamGenerateContent?alt=sse"),
        "count": Upstream("/models/{model}:countTokens"),
        "embed": Upstream("/models/{model}:batchEmbedContents"),
        "models": Upstream("/models?pageSize=1000", method="GET"),
    },
    version="/v1beta",
    error_body=error_body,
    parse_error=parse_error,
    grammar=grammar,
    statuses=STATUSES,
    auth="x-goog-api-key",
    prefixes=("/v1beta", "/v1alpha", "/upload"),
    framing=_framing,
    keepalive=b"\n",  # the Python SDK takes a comment for JSON; an empty line is nothing in SSE and in an array
    tuning=frozenset(("safetySettings", "safety_settings", "labels", "serviceTier", "service_tier", "store")),
)
