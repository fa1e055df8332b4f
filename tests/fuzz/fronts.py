"""The clients' APIs: random requests that are valid there, of the vendors' own types and the doubles' rules.

A type does not say that a tool's result needs its call: `mend` makes a random body consistent, and what the API's strict double
refuses all the same is thrown away.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import TextGenerationInputGenerateParameters
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tests.doubles import anthropic, aws, gemini, llamacpp, ollama, openai, tgi
from tests.fuzz.values import LEAVES, WORDS, Hints, Json, values
from tests.laws import PNG

REFUSALS = (openai.Refusal, anthropic.Refusal, gemini.Refusal, ollama.Refusal, tgi.Refusal, llamacpp.Refusal, aws.Refusal)
MODELS = {"openai": "gpt-4.1", "responses": "gpt-4.1", "anthropic": "claude-opus-4-8", "gemini": "gemini-2.5-flash"}
NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_-]{0,9}", fullmatch=True)
SCHEMAS = st.sampled_from(
    (
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False},
        {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "b": {"enum": ["x", "y"]}}},
        {
            "type": "object",
            "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"c": {"type": "number"}}}}},
        },
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": ["string", "null"]}}},
    )
)
DATA_URI = f"data:image/png;base64,{PNG}"
ARGUMENTS = st.dictionaries(NAMES, LEAVES, max_size=2)
STOPS = st.lists(WORDS.filter(str.strip), min_size=1, max_size=4)
OFTEN = ("tools", "tool_choice", "tool_calls", "stream", "parameters", "options", "generationConfig", "response_format")
LIMIT = st.integers(16, 4096)


@dataclass(frozen=True)
class Front:
    """One operation of one API. `check` raises what its strict double raises for a body that is not valid."""

    dialect: str
    method: str
    path: str
    schema: Json
    hints: Hints
    mend: Callable[[Json], Json]
    check: Callable[[Json], None]

    def requests(self) -> st.SearchStrategy[Json]:
        """Valid requests."""
        return values(self.schema, self.hints, OFTEN).map(lambda body: self.mend(copy.deepcopy(body))).filter(self._is_valid)

    def _is_valid(self, body: Json) -> bool:
        try:
            self.check(copy.deepcopy(body))
        except REFUSALS:
            return False
        return True


def _alternating(turns: list[Json], role: str = "role") -> Iterator[Json]:
    """Without a second turn of one role in a row."""
    last = None
    for turn in turns:
        if turn.get(role) != last:
            yield turn
            last = turn.get(role)


# --- openai


def _mend_chat(body: Json) -> Json:
    messages: list[Json] = []
    for i, message in enumerate(body["messages"]):
        message = {name: value for name, value in message.items() if name != "audio"}
        if message["role"] in ("tool", "function"):
            continue
        if message.get("content") in ([], None):
            message["content"] = "well"
        calls = message.pop("tool_calls", None) or []
        if message.get("function_call"):
            calls = []
        messages.append(message)
        if calls:
            message["tool_calls"] = [{**call, "id": f"call_{i}_{j}"} for j, call in enumerate(calls)]
            messages += [{"role": "tool", "tool_call_id": f"call_{i}_{j}", "content": "done"} for j in range(len(calls))]
        if message.get("function_call"):
            messages.append({"role": "function", "name": message["function_call"]["name"], "content": "done"})
        elif "function_call" in message:
            del message["function_call"]
    if not any(message["role"] == "user" for message in messages):
        messages.append({"role": "user", "content": "hi"})
    body["messages"] = messages
    body["model"] = MODELS["openai"]
    for pair in (("max_tokens", "max_completion_tokens"), ("functions", "tools")):
        if pair[0] in body and pair[1] in body:
            del body[pair[0]]
    _openai_extras(body)
    return body


def _openai_extras(body: Json) -> None:
    if not body.get("stream"):
        body.pop("stream_options", None)
    if not body.get("store"):
        body.pop("metadata", None)
    for i, tool in enumerate(body.get("tools") or ()):
        named = tool.get(tool["type"]) if isinstance(tool.get(tool["type"]), dict) else tool
        if "name" in named:
            named["name"] = f"{named['name']}_{i}"
    for i, function in enumerate(body.get("functions") or ()):
        function["name"] = f"{function['name']}_{i}"
    if isinstance(body.get("function_call"), dict) and body.get("functions"):
        body["function_call"] = {"name": body["functions"][0]["name"]}
    if not body.get("tools"):
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            body.pop(name, None)
    choice = body.get("tool_choice")
    if isinstance(choice, dict):
        _choose(choice, body["tools"], body)


def _choose(choice: Json, tools: list[Json], body: Json) -> None:
    first = tools[0]
    kind = first["type"]
    inner = first.get(kind) if isinstance(first.get(kind), dict) else None
    if choice["type"] in ("function", "custom"):
        named = {"name": (inner or first).get("name")}
        body["tool_choice"] = {"type": kind, kind: named} if inner else {"type": kind, **named}
    elif choice["type"] == "allowed_tools" and isinstance(choice.get("allowed_tools"), dict):
        choice["allowed_tools"]["tools"] = [{"type": kind, kind: {"name": (inner or first).get("name")}}]


def _mend_text(body: Json) -> Json:
    body["model"] = "gpt-3.5-turbo-instruct"
    if body.get("stream"):
        body.pop("best_of", None)  # "Results cannot be streamed"
    if not body.get("stream"):
        body.pop("stream_options", None)
    return body


def _check_text(body: Json) -> None:
    openai._valid(openai.TEXT, body)
    openai._ranges(body)


OPENAI_HINTS: Hints = {
    "model": st.just(MODELS["openai"]),
    "name": NAMES,
    "parameters": SCHEMAS,
    "schema": SCHEMAS,
    "arguments": ARGUMENTS.map(json.dumps),
    "image_url": st.fixed_dictionaries(
        {"url": st.just(DATA_URI)}, optional={"detail": st.sampled_from(("auto", "low", "high"))}
    ),
    "input_audio": st.just({"data": PNG, "format": "wav"}),
    "file": st.sampled_from(
        ({"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}, {"file_id": "file-1"})
    ),
    "stop": STOPS | WORDS,
    "temperature": st.sampled_from((0, 0.5, 2)),
    "presence_penalty": st.sampled_from((-2, 0, 0.5)),
    "frequency_penalty": st.sampled_from((-2, 0, 0.5)),
    "n": st.integers(1, 3),
    "best_of": st.integers(1, 3),
    "max_tokens": LIMIT,
    "max_completion_tokens": LIMIT,
    "top_logprobs": st.integers(0, 5),
    "logit_bias": st.dictionaries(st.integers(0, 9999).map(str), st.integers(-100, 100), max_size=2),
    "metadata": st.dictionaries(WORDS, WORDS, max_size=2),
    "prediction": st.none(),
    "moderation": st.none(),
}
CHAT_SCHEMA = openai.CHAT.json_schema()
OPENAI = Front("openai", "POST", "/v1/chat/completions", CHAT_SCHEMA, OPENAI_HINTS, _mend_chat, openai.check_chat)
TEXT_HINTS: Hints = {**OPENAI_HINTS, "prompt": WORDS | st.lists(WORDS, min_size=1, max_size=1), "logprobs": st.integers(0, 5)}
TEXT = Front("openai", "POST", "/v1/completions", openai.TEXT.json_schema(), TEXT_HINTS, _mend_text, _check_text)

# --- responses


def _mend_response(body: Json) -> Json:
    body["model"] = MODELS["responses"]
    if isinstance(body.get("input"), list):
        body["input"] = list(_mended_items(body["input"])) or "hi"
    elif not body.get("input"):
        body["input"] = "hi"
    for name in ("previous_response_id", "conversation", "prompt"):  # what is stored elsewhere
        body.pop(name, None)
    _openai_extras({**body})
    if not body.get("stream"):
        body.pop("stream_options", None)
    if not body.get("tools"):
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            body.pop(name, None)
    elif isinstance(body.get("tool_choice"), dict) and body["tool_choice"]["type"] in ("function", "custom"):
        named = next((tool for tool in body["tools"] if tool["type"] in ("function", "custom")), None)
        body["tool_choice"] = {"type": named["type"], "name": named["name"]} if named else "auto"
    return body


ITEMS = ("message", "function_call", "custom_tool_call", "reasoning")


def _mended_items(items: list[Json]) -> Iterator[Json]:
    """Each call is followed by its result; items of the vendor's own tools are left out."""
    for i, item in enumerate(items):
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        if kind not in ITEMS or (kind == "message" and item.get("content") == []):
            continue
        if kind == "reasoning":
            yield {**item, "id": f"rs_{i}", "encrypted_content": openai.encrypted(f"rs_{i}")}
        elif kind.endswith("_call"):
            yield {**item, "call_id": f"call_{i}"}
            yield {"type": f"{kind}_output", "call_id": f"call_{i}", "output": "done"}
        else:
            yield item


RESPONSE_HINTS: Hints = {
    **OPENAI_HINTS,
    "image_url": st.just(DATA_URI),
    "max_output_tokens": LIMIT,
    "file_data": st.just("data:application/pdf;base64,JVBERi0="),
    "context_management": st.none(),
    "detail": st.sampled_from(("auto", "low", "high")),
}
RESPONSES = Front(
    "responses", "POST", "/v1/responses", openai.RESPONSE.json_schema(), RESPONSE_HINTS, _mend_response, openai.check_response
)

# --- anthropic


def _mend_messages(body: Json) -> Json:
    body["model"] = MODELS["anthropic"]
    messages: list[Json] = []
    for i, message in enumerate(_alternating(body.get("messages") or [])):
        if message["role"] not in ("user", "assistant"):
            continue
        content = message["content"]
        if isinstance(content, list):
            content = [block for block in content if block["type"] in OF_ROLE[message["role"]]]
            for j, block in enumerate(content):
                _mend_block(block, f"toolu_{i}_{j}")
        elif not content.strip():
            content = "hi"
        owed = [block["id"] for block in messages[-1]["content"] if block["type"] == "tool_use"] if _blocks(messages) else []
        results = [{"type": "tool_result", "tool_use_id": name, "content": "done"} for name in owed]
        if results:
            content = results + (content if isinstance(content, list) else [{"type": "text", "text": content}])
        messages.append({"role": message["role"], "content": content or "hi"})
    messages = list(_alternating(messages))
    if _blocks(messages) and any(block["type"] == "tool_use" for block in messages[-1]["content"]):
        messages.pop()
    body["messages"] = messages or [{"role": "user", "content": "hi"}]
    for i, tool in enumerate(body.get("tools") or ()):
        if tool.get("type") in (None, "custom"):
            tool["name"] = f"{tool['name']}_{i}"
    if not body.get("tools"):
        for name in ("tools", "tool_choice"):
            body.pop(name, None)
    elif (body.get("tool_choice") or {}).get("type") == "tool":
        body["tool_choice"]["name"] = body["tools"][0].get("name", "x")
    return body


def _blocks(messages: list[Json]) -> bool:
    return bool(messages) and messages[-1]["role"] == "assistant" and isinstance(messages[-1]["content"], list)


OF_ROLE = {"user": ("text", "image", "document"), "assistant": ("text", "thinking", "redacted_thinking", "tool_use")}


def _mend_block(block: Json, call_id: str) -> None:
    if block["type"] == "text" and not block["text"].strip():
        block["text"] = "hi"
    if block["type"] == "thinking":
        block["signature"] = anthropic.signature(block["thinking"])
    if block["type"] == "tool_use":
        block["id"] = call_id


def _check_messages(body: Json) -> None:
    anthropic.check(body, {"anthropic-version": "2023-06-01"}, anthropic.CREATE)


def _with_messages(schema: Json) -> Json:
    """The messages that the double takes: what the type calls a message's content are blocks."""
    blocks = anthropic.BLOCKS.json_schema(ref_template="#/$defs/{model}")
    defs = {**schema["$defs"], **blocks["$defs"]}
    content = {"anyOf": [{"type": "string"}, {key: value for key, value in blocks.items() if key != "$defs"}]}
    message = {
        "type": "object",
        "properties": {"role": {"enum": ["user", "assistant"]}, "content": content},
        "required": ["role", "content"],
        "additionalProperties": False,
    }
    return {**schema, "$defs": {**defs, "MessageParam": message}}


ANTHROPIC_HINTS: Hints = {
    **{name: OPENAI_HINTS[name] for name in ("name", "metadata")},
    "metadata": st.just({"user_id": "u"}),
    "input_schema": SCHEMAS,
    "schema": SCHEMAS,
    "input": ARGUMENTS,
    "source": st.sampled_from(
        ({"type": "base64", "media_type": "image/png", "data": PNG}, {"type": "url", "url": "https://h.example/x.png"})
    ),
    "stop_sequences": STOPS,
    "max_tokens": st.integers(1500, 4096),
    "budget_tokens": st.integers(1024, 1400),
    "temperature": st.sampled_from((0, 0.5, 1)),
    "data": st.just("aGk="),
    "cache_control": st.just({"type": "ephemeral"}),
    "container": st.none(),
    "context_management": st.none(),
}
ANTHROPIC = Front(
    "anthropic",
    "POST",
    "/v1/messages",
    _with_messages(anthropic.CREATE.json_schema()),
    ANTHROPIC_HINTS,
    _mend_messages,
    _check_messages,
)

# --- gemini


def _mend_gemini(body: Json) -> Json:
    body.pop("model", None)
    body.pop("cachedContent", None)
    contents: list[Json] = []
    owed: list[Json] = []
    for content in _alternating([{**content, "role": content.get("role") or "user"} for content in body.get("contents") or ()]):
        parts = [part for part in content.get("parts") or () if len(part.keys() & set(gemini.DATA)) == 1]
        wanted = "functionCall" if content["role"] == "model" else "functionResponse"
        parts = [
            part
            for part in parts
            if "functionResponse" not in part and ("functionCall" not in part or wanted == "functionCall")
        ]
        if owed:
            answers = [{"functionResponse": {"name": call["name"], "response": {"output": "done"}}} for call in owed]
            parts = answers + parts
        contents.append({"role": content["role"], "parts": parts or [{"text": "hi"}]})
        owed = [part["functionCall"] for part in parts if "functionCall" in part] if content["role"] == "model" else []
    if owed:
        contents.pop()
    body["contents"] = contents or [{"role": "user", "parts": [{"text": "hi"}]}]
    if (body.get("systemInstruction") or {}).get("parts"):
        body["systemInstruction"] = {"parts": [{"text": "be brief"}]}
    else:
        body.pop("systemInstruction", None)
    declared = 0
    for tool in body.get("tools") or ():
        for item in tool.get("functionDeclarations") or ():
            item["name"] = f"{item.get('name') or 'f'}_{declared}"
            declared += 1
    if not declared:
        body.pop("toolConfig", None)
    config = body.get("generationConfig") or {}
    if {"responseSchema", "responseJsonSchema"} & config.keys():
        config["responseMimeType"] = "application/json"
    return {name: value for name, value in body.items() if value is not None}


PARTS = st.one_of(
    st.fixed_dictionaries({"text": WORDS}),
    st.just({"inlineData": {"mimeType": "image/png", "data": PNG}}),
    st.just({"fileData": {"mimeType": "image/png", "fileUri": "https://h.example/x.png"}}),
    st.builds(lambda name, given: {"functionCall": {"name": name, "args": given}}, NAMES, ARGUMENTS),
    st.fixed_dictionaries({"text": WORDS, "thought": st.just(True)}),
)
GEMINI_SCHEMAS = st.sampled_from(
    (
        {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}, "required": ["a"]},
        {
            "type": "OBJECT",
            "properties": {"a": {"type": "ARRAY", "items": {"type": "INTEGER"}}, "b": {"type": "STRING", "nullable": True}},
        },
    )
)
GEMINI_HINTS: Hints = {
    "contents": st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(("user", "model")), "parts": st.lists(PARTS, min_size=1, max_size=3)}),
        min_size=1,
        max_size=4,
    ),
    "functionDeclarations": st.lists(
        st.builds(
            lambda name, more: {"name": name, **more},
            NAMES,
            st.sampled_from(({}, {"description": "d"}))
            | GEMINI_SCHEMAS.map(lambda schema: {"parameters": schema})
            | SCHEMAS.map(lambda schema: {"parametersJsonSchema": schema}),
        ),
        max_size=3,
    ),
    "responseSchema": GEMINI_SCHEMAS,
    "responseJsonSchema": SCHEMAS,
    "stopSequences": STOPS,
    "temperature": st.sampled_from((0, 0.5, 2)),
    "maxOutputTokens": LIMIT,
    "candidateCount": st.integers(1, 3),
    "systemInstruction": st.just({"parts": [{"text": "be brief"}]}),
    "toolConfig": st.sampled_from([{"functionCallingConfig": {"mode": mode}} for mode in ("AUTO", "ANY", "NONE")]),
    "labels": st.none(),
    "cachedContent": st.none(),
}


def _without_nulls(value: Any) -> Any:
    """As Google reads it: a null is an absent field."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _check_gemini(body: Json) -> None:
    body = _without_nulls(body)
    gemini.check_shape("generateContent", body)
    gemini.check_generate(body, MODELS["gemini"])


GEMINI = Front(
    "gemini",
    "POST",
    f"/v1beta/models/{MODELS['gemini']}:generateContent",
    gemini.ADAPTERS["generateContent"].json_schema(by_alias=True),
    GEMINI_HINTS,
    _mend_gemini,
    _check_gemini,
)

# --- ollama, tgi, llama.cpp


def _mend_ollama(body: Json) -> Json:
    body["model"] = "tiny"
    messages: list[Json] = []
    for message in [message for message in body.get("messages") or () if "role" in message]:
        message["role"] = message["role"] if message["role"] in ("system", "user", "assistant") else "user"
        message.setdefault("content", "")
        if message["role"] != "assistant":
            message.pop("tool_calls", None)
        messages.append(message)
        messages += [
            {"role": "tool", "tool_name": call["function"]["name"], "content": "done"}
            for call in message.get("tool_calls") or ()
        ]
    for i, tool in enumerate(body.get("tools") or ()):
        tool["function"] = {**tool["function"], "name": f"{tool['function']['name']}_{i}"}
    if "messages" in body or "prompt" not in body:
        body["messages"] = messages or [{"role": "user", "content": "hi"}]
    return {name: value for name, value in body.items() if value is not None}


OLLAMA_HINTS: Hints = {
    "model": st.just("tiny"),
    "role": st.sampled_from(("system", "user", "assistant")),
    "images": st.just([PNG]),
    "format": st.sampled_from(("", "json")) | SCHEMAS,
    "tools": st.lists(
        st.builds(lambda name, schema: {"type": "function", "function": {"name": name, "parameters": schema}}, NAMES, SCHEMAS),
        max_size=2,
    ),
    "tool_calls": st.lists(
        st.builds(lambda name, given: {"function": {"name": name, "arguments": given}}, NAMES, ARGUMENTS), max_size=2
    ),
    "stop": STOPS,
    "num_predict": LIMIT,
    "context": st.none(),
    "raw": st.none(),
    "think": st.none() | st.booleans() | st.sampled_from(("low", "high")),
    "top_logprobs": st.integers(0, 5),
    "width": st.none(),
    "height": st.none(),
    "steps": st.none(),
}
OLLAMA = Front(
    "ollama",
    "POST",
    "/api/chat",
    ollama.ChatRequest.model_json_schema(),
    OLLAMA_HINTS,
    _mend_ollama,
    lambda body: ollama.check(body, ollama.ChatRequest),
)
OLLAMA_TEXT = Front(
    "ollama",
    "POST",
    "/api/generate",
    ollama.GenerateRequest.model_json_schema(),
    {**OLLAMA_HINTS, "prompt": WORDS},
    lambda body: {
        name: value
        for name, value in {**body, "model": "tiny", "prompt": body.get("prompt") or "hi"}.items()
        if value is not None
    },
    lambda body: ollama.check(body, ollama.GenerateRequest),
)
_PARAMETERS = TypeAdapter(TextGenerationInputGenerateParameters).json_schema()
TGI_SCHEMA: Json = {
    "type": "object",
    "$defs": _PARAMETERS.get("$defs", {}),
    "properties": {
        "inputs": {"type": "string"},
        "parameters": {key: value for key, value in _PARAMETERS.items() if key != "$defs"},
    },
    "required": ["inputs"],
}
FRACTION = st.sampled_from((0.1, 0.9))
TGI_HINTS: Hints = {
    "inputs": WORDS,
    "grammar": SCHEMAS.map(lambda schema: {"type": "json", "value": schema}),
    "stop": STOPS,
    "temperature": st.sampled_from((0.5, 2.0)),
    "repetition_penalty": st.sampled_from((0.5, 1.1)),
    "frequency_penalty": st.sampled_from((-2.0, 0.5)),
    "top_p": FRACTION,
    "typical_p": FRACTION,
    "top_k": st.integers(1, 50),
    "max_new_tokens": LIMIT,
    "seed": st.integers(0, 2**40),
    "best_of": st.sampled_from((1, 2)),
    "top_n_tokens": st.integers(1, 5),
    "adapter_id": st.none(),
    "truncate": st.none() | LIMIT,
}
TGI = Front(
    "tgi",
    "POST",
    "/generate",
    TGI_SCHEMA,
    TGI_HINTS,
    lambda body: body,
    lambda body: tgi.check(body, stream=False, root=False) and None,
)
_TYPES = {int: "integer", bool: "boolean", str: "string", list: "array", dict: "object", llamacpp.NUMBER: "number"}
LLAMACPP_SCHEMA: Json = {
    "type": "object",
    "properties": {name: {"type": _TYPES[kind]} for name, kind in llamacpp.COMPLETION.items() if kind in _TYPES}
    | {"prompt": {"type": "string"}, "stop": {"type": "array"}},
    "required": ["prompt"],
}
LLAMACPP_HINTS: Hints = {
    "prompt": WORDS | st.builds(lambda text: [text], WORDS) | st.builds(lambda text: {"prompt_string": text}, WORDS),
    "stop": STOPS,
    "json_schema": SCHEMAS,
    "grammar": st.just('root ::= "a"'),
    "n_predict": st.integers(-1, 4096),
    "n_cmpl": st.integers(1, 3),
    "samplers": st.just(["top_k", "temperature"]),
    "lora": st.just([]),
    "response_fields": st.just(["content"]),
    "logit_bias": st.just([[15043, 1.0]]),
    "model": st.just("double"),
}
LLAMACPP = Front(
    "llamacpp",
    "POST",
    "/completion",
    LLAMACPP_SCHEMA,
    LLAMACPP_HINTS,
    lambda body: body,
    lambda body: llamacpp.check(body, llamacpp.COMPLETION) and None,
)
FRONTS: Mapping[str, Front] = {
    "openai": OPENAI,
    "openai-text": TEXT,
    "responses": RESPONSES,
    "anthropic": ANTHROPIC,
    "gemini": GEMINI,
    "ollama": OLLAMA,
    "ollama-text": OLLAMA_TEXT,
    "tgi": TGI,
    "llamacpp": LLAMACPP,
}
