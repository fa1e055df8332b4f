"""OpenAI's Responses API, as Codex speaks it: input and output items instead of messages, named events instead of chunks.

Reasoning survives the client's round trip in `encrypted_content`. To a client, each thinking block of the hub (text, signature
or redacted data) is sealed into it as it is (`_seal.py`), and taken out again when the client sends the item back; Gemini's
signature of a call is sealed into an item of its own, before the call. From a backend, a reasoning item's id and
encrypted_content are sealed the same way into the hub block's signature. What others encrypted cannot be read here; then only
the summary is kept, as reasoning_content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from proxy.dialects import Dialect, Route, Upstream
from proxy.dialects._response_answer import (
    MIN_OUTPUT_TOKENS,
    chatAnsResponsestoOpenAI,
    chatStreamResponsestoOpenAI,
    reasoning_text,
)
from proxy.dialects._response_events import chatStreamOpenAItoResponses
from proxy.dialects._response_grammar import grammar
from proxy.dialects._response_tools import CALL_TYPES, OUTPUT_TYPES, hub_call, hub_choice, hub_tools
from proxy.dialects._seal import is_sealed, unseal, unseal_signature, with_signatures
from proxy.dialects.openai import (
    Json,
    canonical,
    canonical_answer,
    checked,
    compact,
    data_uri,
    embedAnsOpenAItoOpenAI,
    embedReqOpenAItoOpenAI,
    error_body,
    expect,
    modelAnsOpenAItoOpenAI,
    objects,
    parse_error,
    sniff,
    text,
    text_of,
    tool_id,
    unfold,
)
from proxy.errors import BackendError, BadRequest

__all__ = ["chatAnsResponsestoOpenAI", "chatStreamOpenAItoResponses", "chatStreamResponsestoOpenAI", "grammar"]

# --- requests: Responses → hub

FIELDS = {
    **dict.fromkeys(("model", "instructions", "user"), "str"),
    **dict.fromkeys(("stream", "parallel_tool_calls"), "bool"),
    **dict.fromkeys(("max_output_tokens", "top_logprobs"), "int"),
    **dict.fromkeys(("temperature", "top_p"), "number"),
    **dict.fromkeys(("text", "reasoning"), "dict"),
    **dict.fromkeys(("tools", "include"), "list"),
}
SAME = ("model", "stream", "temperature", "top_p", "top_logprobs", "user", "parallel_tool_calls")
OPENAI_ONLY = ("prompt_cache_key", "safety_identifier", "service_tier")  # the same field in both of OpenAI's APIs
STORED = ("previous_response_id", "conversation", "prompt", "background")  # need what only OpenAI keeps
LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"


def chatReqResponsestoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Responses request → canonical hub request.

    In: `input` a string or items. Out: instructions first, as a system message; the calls, text and reasoning of one turn in
    one assistant message; tools that OpenAI runs left out. Raises: BadRequest for what needs stored state
    (previous_response_id, conversation, item_reference, …), a demanded tool that is left out, or an ill-typed field.
    Source: OpenAI API reference, Create a model response (2026-11).
    """
    body = checked(ip, FIELDS)
    for name in STORED:
        if body.get(name):
            raise BadRequest(f"{name} needs OpenAI's stored state, which this backend does not have", param=name)
    req = {name: body[name] for name in (*SAME, *OPENAI_ONLY) if name in body}
    if "max_output_tokens" in body:
        req["max_completion_tokens"] = body["max_output_tokens"]
    if LOGPROBS in body.get("include", ()) or body.get("top_logprobs"):
        req["logprobs"] = True
    if isinstance(body.get("reasoning", {}).get("effort"), str):
        req["reasoning_effort"] = body["reasoning"]["effort"]
    req |= _hub_text(body.get("text", {}))
    tools = hub_tools(body, cfg.get("lost"))
    choice = body.get("tool_choice")
    if choice is not None and (tools or choice not in ("auto", "none")):
        req["tool_choice"] = hub_choice(choice, tools)
    head = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    return canonical({**req, "tools": tools, "messages": head + _messages(body.get("input"), cfg.get("lost"))})


def _hub_text(config: Json) -> Json:
    """`text` → response_format and verbosity."""
    out = {"verbosity": config["verbosity"]} if isinstance(config.get("verbosity"), str) else {}
    form = config.get("format")
    if form is None:
        return out
    kind = expect(form, "dict", "text.format").get("type")
    if kind == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type" and value is not None}
        expect(schema.get("schema"), "dict", "text.format.schema")
        return {**out, "response_format": {"type": "json_schema", "json_schema": schema}}
    if kind == "json_object":
        return {**out, "response_format": {"type": "json_object"}}
    if kind != "text":
        raise BadRequest("text.format.type must be text, json_object or json_schema", param="text.format.type")
    return out


class _Turns:
    """Items → messages; the items of one assistant turn are gathered until something else comes."""

    def __init__(self, lost: Callable[[str, str], Any] | None) -> None:
        self.lost = lost or (lambda path, why: None)
        self.messages: list[Json] = []
        self.turn: Json | None = None
        self.signatures: dict[str, str] = {}  # of the turn's calls and text

    def assistant(self) -> Json:
        if self.turn is None:
            self.turn = {"role": "assistant", "content": None}
        return self.turn

    def flush(self) -> None:
        if self.turn is not None:
            self.messages.append(with_signatures(self.turn, self.signatures) if self.signatures else self.turn)
        self.turn, self.signatures = None, {}

    def message(self, item: Json, param: str) -> None:
        role = item.get("role")
        content = _hub_content(item.get("content"), f"{param}.content")
        if role != "assistant":
            if role not in ("user", "system", "developer"):
                raise BadRequest(f"{param}.role must be user, system, developer or assistant", param=f"{param}.role")
            self.flush()
            self.messages.append({"role": role, "content": content})
            return
        if self.turn is not None and self.turn["content"] is not None and "tool_calls" not in self.turn:
            self.flush()  # two messages in a row; but no message may stand between a call and its result
        turn = self.assistant()
        plain = text_of(content)
        turn["content"] = plain if turn["content"] is None else turn["content"] + plain

    def call(self, item: Json, param: str) -> None:
        self.assistant().setdefault("tool_calls", []).append(hub_call(item, param))

    def output(self, item: Json, param: str) -> None:
        # a local shell's output names its call in `id`
        call_id = item.get("id") if item["type"] == "local_shell_call_output" else item.get("call_id")
        expect(call_id, "str", f"{param}.call_id")
        self.flush()
        output = item.get("output")
        if item["type"] == "shell_call_output":
            output = compact(output)
        elif item["type"] == "apply_patch_call_output":
            output = output or item.get("status")
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": _hub_content(output, f"{param}.output")})

    def reasoning(self, item: Json, param: str) -> None:
        self.signatures |= (found := unseal_signature(item.get("encrypted_content")))
        if found:
            return
        block = unseal(item.get("encrypted_content"))
        if block is not None and block.get("type") in ("thinking", "redacted_thinking"):
            self.assistant().setdefault("thinking_blocks", []).append(block)
            return
        if item.get("encrypted_content"):
            self.lost(f"{param}.encrypted_content", "only OpenAI can read it")
        said = reasoning_text(item)
        if said:
            turn = self.assistant()
            turn["reasoning_content"] = turn.get("reasoning_content", "") + said


REFUSED = {  # items whose loss would change the conversation without a word
    "item_reference": "an item_reference needs OpenAI's stored state",
    "compaction": "a compacted conversation can be read by OpenAI only",
    "compaction_trigger": "a conversation can be compacted by OpenAI only",
    "computer_call_output": "computer use is not served by this backend",
    "mcp_approval_response": "MCP tools are run by OpenAI",
}
LEFT_OUT = frozenset(  # what OpenAI's own tools left in the history, and settings
    (
        *("web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "computer_call"),
        *("mcp_list_tools", "mcp_call", "mcp_approval_request", "tool_search_call", "tool_search_output"),
        *("program", "program_output", "configuration_update"),
    )
)


def _messages(given: Any, lost: Callable[[str, str], Any] | None) -> list[Json]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    turns = _Turns(lost)
    for i, item in enumerate(expect(given, "list", "input")):
        param = f"input[{i}]"
        kind = expect(item, "dict", param).get("type") or ("message" if "role" in item else "item_reference")
        expect(kind, "str", f"{param}.type")
        if kind == "message":
            turns.message(item, param)
        elif kind in CALL_TYPES:
            turns.call(item, param)
        elif kind in OUTPUT_TYPES:
            turns.output(item, param)
        elif kind == "reasoning":
            turns.reasoning(item, param)
        elif kind in LEFT_OUT:
            turns.lost(param, f"{kind} belongs to a tool that OpenAI runs")
        elif kind != "additional_tools":  # those are read with the tools
            raise BadRequest(REFUSED.get(kind, f"{param}.type is not an input item's"), param=param)
    turns.flush()
    if not turns.messages:
        raise BadRequest("input must have at least one message", param="input")
    return turns.messages


def _hub_content(content: Any, param: str) -> Any:
    if isinstance(content, str):
        return content
    return [_hub_part(part, f"{param}[{i}]") for i, part in enumerate(expect(content, "list", param))]


def _hub_part(part: Any, param: str) -> Json:
    kind = expect(part, "dict", param).get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": expect(part.get("text"), "str", f"{param}.text")}
    if kind == "refusal":
        return {"type": "text", "text": expect(part.get("refusal"), "str", f"{param}.refusal")}
    if kind == "input_image" and part.get("image_url"):
        url = expect(part["image_url"], "str", f"{param}.image_url")
        return {"type": "image_url", "image_url": {"url": url, **({"detail": part["detail"]} if part.get("detail") else {})}}
    if kind == "input_file" and part.get("file_data"):
        data = expect(part["file_data"], "str", f"{param}.file_data")
        url = data if data.startswith("data:") else f"data:{sniff(data) or 'application/octet-stream'};base64,{data}"
        named = {"filename": part["filename"]} if isinstance(part.get("filename"), str) else {}
        return {"type": "file", "file": {"file_data": url, **named}}
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    if kind in ("input_image", "input_file"):
        raise BadRequest(f"{param} must hold its data: this backend cannot fetch a file by id or url", param=param)
    raise BadRequest(f"{param}.type is not a content part's", param=f"{param}.type")


def without_sealed(ip: Any) -> Any:
    """A Responses body as OpenAI may get it: without reasoning that this proxy sealed for another API's backend."""
    given = ip.get("input") if isinstance(ip, dict) else None
    if not isinstance(given, list):
        return ip
    return {**ip, "input": [item for item in given if not isinstance(item, dict) or not is_sealed(item)]}


# --- requests: hub → Responses


def chatReqOpenAItoResponses(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Hub request → Responses request, stateless (`store: false`).

    Out: a leading system message as instructions, everything else as items; what the API has no field for (stop, seed,
    penalties) is left out. Raises: BadRequest for n > 1, audio, or an ill-typed field. Source: as above.
    """
    req = canonical(ip)
    if req.get("n", 1) != 1:
        raise BadRequest("n must be 1: this backend gives one answer a call", param="n")
    body = {name: req[name] for name in (*SAME, *OPENAI_ONLY, "metadata") if name in req}
    head, *rest = req["messages"]
    if head["role"] in ("system", "developer") and isinstance(head["content"], str) and rest:
        body["instructions"] = head["content"]
    else:
        rest = req["messages"]
    body["input"] = [item for i, message in enumerate(rest) for item in _items(message, f"messages[{i}]")]
    if "max_completion_tokens" in req:
        body["max_output_tokens"] = max(MIN_OUTPUT_TOKENS, req["max_completion_tokens"])
    if "reasoning_effort" in req:
        body["reasoning"] = {"effort": req["reasoning_effort"]}
    if "tools" in req:
        body["tools"] = [_flat_tool(tool["function"]) for tool in req["tools"]]
    if "tool_choice" in req:
        choice = req["tool_choice"]
        body["tool_choice"] = choice if isinstance(choice, str) else {"type": "function", "name": choice["function"]["name"]}
    form = _text_config(req)
    reasons = req.get("reasoning_effort", "none") != "none" or any(item.get("type") == "reasoning" for item in body["input"])
    include = [*([ENCRYPTED] if reasons else []), *([LOGPROBS] if req.get("logprobs") else [])]
    return {**body, **({"text": form} if form else {}), **({"include": include} if include else {}), "store": False}


def _flat_tool(function: Json) -> Json:
    # an absent `strict` means true here and false in the hub
    kept: Json = {name: function[name] for name in ("name", "description") if name in function}
    schema = {"type": "object", "properties": {}, **(function.get("parameters") or {})}  # an object without any is refused
    return {"type": "function", **kept, "parameters": schema, "strict": function.get("strict", False)}


def _text_config(req: Json) -> Json:
    out = {"verbosity": req["verbosity"]} if "verbosity" in req else {}
    form = req.get("response_format")
    if form is None:
        return out
    schema = form.get("json_schema")
    if not schema:
        return {**out, "format": {"type": form["type"]}}
    named = {"name": schema.get("name") or "response", "schema": schema.get("schema") or {}}
    kept = {name: schema[name] for name in ("description", "strict") if schema.get(name) is not None}
    return {**out, "format": {"type": "json_schema", **named, **kept}}


def _items(message: Json, param: str) -> Iterator[Json]:
    role, content = message["role"], message["content"]
    if role == "tool":
        call_id = tool_id(message["tool_call_id"])
        output = (
            content if isinstance(content, str) else [_part(part, f"{param}.content[{i}]") for i, part in enumerate(content)]
        )
        if message.get("is_error") is True:
            output = f"Error: {text_of(content)}"
        yield {"type": "function_call_output", "call_id": call_id, "output": output}
        return
    if role == "assistant":
        for block in objects(message.get("thinking_blocks")):
            item = _reasoning_item(block)
            if item is not None:
                yield item
        content = text_of(content)
    elif isinstance(content, list):
        content = [_part(part, f"{param}.content[{i}]") for i, part in enumerate(content)]
    if content or role != "assistant":
        yield {"type": "message", "role": role, "content": content}
    for call in message.get("tool_calls") or ():
        function = call["function"]
        named = {"name": function["name"], "arguments": function["arguments"] or "{}"}
        yield {"type": "function_call", "call_id": tool_id(call["id"]), **named}


def _part(part: Json, param: str) -> Json:
    kind = part["type"]
    if kind == "text":
        return {"type": "input_text", "text": part["text"]}
    if kind == "image_url":
        url = part["image_url"]["url"]
        data = data_uri(url, param)
        return {
            "type": "input_image",
            "detail": part["image_url"].get("detail") or "auto",
            "image_url": f"data:{data[0]};base64,{data[1]}" if data else url,
        }
    if kind == "file":
        file = part["file"]
        return {"type": "input_file", **{name: file[name] for name in ("file_data", "file_id", "filename") if file.get(name)}}
    raise BadRequest(f"{param}: the Responses API takes no {kind}", param=param)


def _reasoning_item(block: Json) -> Json | None:
    """A hub block that came from this API → the item that it was; signatures of others mean nothing to it."""
    sealed = unseal(block.get("signature"))
    if sealed is None or "encrypted_content" not in sealed:
        return None
    said = text(block.get("thinking"))
    summary = [{"type": "summary_text", "text": said}] if said else []
    return {
        "type": "reasoning",
        "id": text(sealed.get("id")),
        "summary": summary,
        "encrypted_content": sealed["encrypted_content"],
    }


# --- answers


def chatAnsOpenAItoResponses(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """chat.completion → a response object: what the stream of the same answer ends with.

    Raises: BackendError when the answer is an error, has no choices, or calls a custom tool with arguments that are no object.
    """
    answer = canonical_answer(ip)
    first = answer["choices"][0]
    whole = {**answer, "choices": [{**first, "index": 0, "finish_reason": first["finish_reason"] or "stop"}]}
    *_, last = chatStreamOpenAItoResponses(unfold(whole), cfg)
    body: Json = last["response"]
    return body


# --- counting, models, embeddings


def countReqResponsestoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """POST /responses/input_tokens → the hub request whose prompt is counted. Raises: BadRequest."""
    return chatReqResponsestoOpenAI(ip, cfg)


def countAnsOpenAItoResponses(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """{"input_tokens": n} → the same as a response.input_tokens object."""
    return {"object": "response.input_tokens", "input_tokens": ip["input_tokens"]}


COUNTED = ("model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "reasoning", "text")


def countReqOpenAItoResponses(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Hub request → POST /responses/input_tokens. Raises: BadRequest. Source: openai SDK 3.54, InputTokenCountParams."""
    body = chatReqOpenAItoResponses(ip, cfg)
    return {name: body[name] for name in COUNTED if name in body}


def countAnsResponsestoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """A response.input_tokens object → {"input_tokens": n}. Raises: BackendError."""
    found = ip.get("input_tokens") if isinstance(ip, dict) else None
    if not isinstance(found, int):
        raise BackendError("the backend's answer has no input_tokens")
    return {"input_tokens": found}


def modelsAnsResponsestoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """The model list is OpenAI's already. Raises: BackendError when it is none."""
    if not isinstance(ip, dict) or not isinstance(ip.get("data"), list):
        raise BackendError("the backend's answer is no model list")
    return ip


embedReqOpenAItoResponses = embedReqOpenAItoOpenAI  # the same server, the same operation
embedAnsResponsestoOpenAI = embedAnsOpenAItoOpenAI
modelAnsOpenAItoResponses = modelAnsOpenAItoOpenAI


DIALECT = Dialect(
    name="responses",
    tag="Responses",
    routes=(
        Route("POST", "/v1/responses", "chat"),
        Route("POST", "/v1/responses/input_tokens", "count"),
        # stored responses: for backends of the same API only
        Route("POST", "/v1/responses/compact", "compact"),
        Route("GET", "/v1/responses/{id}", "stored"),
        Route("DELETE", "/v1/responses/{id}", "stored"),
        Route("POST", "/v1/responses/{id}/cancel", "stored"),
        Route("GET", "/v1/responses/{id}/input_items", "stored"),
    ),
    backend={
        "chat": Upstream("/responses"),
        "count": Upstream("/responses/input_tokens"),
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
    prefixes=("/v1/responses", "/v1/conversations"),
    framing=lambda query: "named-sse",
    keepalive=b": keep-alive\n\n",
    unsealed=without_sealed,
    tuning=frozenset(
        (
            *("temperature", "top_p", "metadata", "client_metadata", "user", "store", "include", "truncation", *OPENAI_ONLY),
            *("prompt_cache_options", "prompt_cache_retention", "stream_options", "reasoning", "max_tool_calls"),
        )
    ),
)
