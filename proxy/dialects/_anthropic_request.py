"""Messages requests ⇄ the hub's chat requests; see anthropic.py for what is decided and why."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from proxy.dialects._anthropic_claude import closed
from proxy.dialects._seal import is_sealed, unseal_signature, with_signatures
from proxy.dialects.openai import (
    Json,
    calls_of,
    checked,
    count,
    data_uri,
    expect,
    sniff,
    text,
    tool_call,
    tool_id,
)
from proxy.errors import BadRequest

Lost = Callable[[str, str], None]

MAX_TOKENS = 32000  # every Claude on offer takes it, most of them 64K or 128K: a client without a limit wants none
ANSWER_TOKENS = 8000  # that a thinking budget leaves for the answer
USER_LENGTH = 64  # what OpenAI takes as `user`; Claude Code sends about 150 characters


def _no_ledger(path: str, why: str) -> None:
    """Nobody keeps account of what is lost."""


def ledger(cfg: Mapping[str, Any]) -> Lost:
    return cfg.get("lost") or _no_ledger


# --- Messages → hub

FIELDS = {
    **dict.fromkeys(("model",), "str"),
    **dict.fromkeys(("max_tokens", "top_k"), "int"),
    **dict.fromkeys(("temperature", "top_p"), "number"),
    **dict.fromkeys(("messages", "tools", "stop_sequences"), "list"),
    **dict.fromkeys(("thinking", "tool_choice", "output_config", "metadata"), "dict"),
    "stream": "bool",
}
SAME = {  # field → the hub's name of it
    "model": "model",
    "max_tokens": "max_completion_tokens",
    "stream": "stream",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
}
THINKING = ("enabled", "adaptive", "disabled")
EFFORTS = ("low", "medium", "high", "xhigh", "max")


def chatReqAnthropictoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """Messages request → the hub's chat request.

    In: a body of POST /v1/messages, of either version, with or without `max_tokens`. Out: a new dict; usage is always asked
    for in a stream. Raises: BadRequest that names the field. Source: anthropic SDK 2.12, MessageCreateParams.
    """
    body, lost = checked(ip, FIELDS), ledger(cfg)
    if not body.get("messages"):
        raise BadRequest("messages must be an array with at least one message", param="messages")
    req = {new: body[name] for name, new in SAME.items() if name in body}
    if body.get("stream"):
        req["stream_options"] = {"include_usage": True}
    if body.get("stop_sequences"):
        req["stop"] = [expect(stop, "str", f"stop_sequences[{i}]") for i, stop in enumerate(body["stop_sequences"])]
    _config_in(body, req, lost)
    _tools_in(body, req, lost)
    req["messages"] = [*_system_in(body.get("system"), "system"), *_turns_in(body["messages"], lost)]
    return req


def _config_in(body: Json, req: Json, lost: Lost) -> None:
    """thinking, output_config and metadata."""
    thinking, config = body.get("thinking"), body.get("output_config", {})
    if thinking and thinking.get("type") in THINKING:
        req["thinking"] = thinking
    elif thinking:
        lost("thinking", "no other API has this kind of thinking")
    if config.get("effort") in EFFORTS:
        req["reasoning_effort"] = config["effort"]
    wanted = config.get("format") or body.get("output_format")  # output_format: what betas called it
    if wanted:
        schema = expect(expect(wanted, "dict", "output_config.format").get("schema"), "dict", "output_config.format.schema")
        named = {"name": "answer", "schema": schema, "strict": _is_strict(schema)}
        req["response_format"] = {"type": "json_schema", "json_schema": named}
    user = body.get("metadata", {}).get("user_id")
    if user:
        opaque = expect(user, "str", "metadata.user_id")
        req["user"] = (
            opaque if len(opaque) <= USER_LENGTH else hashlib.sha256(opaque.encode("utf-8", "surrogatepass")).hexdigest()
        )


def _tools_in(body: Json, req: Json, lost: Lost) -> None:
    tools = []
    for i, tool in enumerate(body.get("tools", ())):
        at = f"tools[{i}]"
        kind = expect(tool, "dict", at).get("type")
        if kind not in (None, "custom"):
            lost(at, f"{kind} is a tool of Anthropic's own")
            continue
        function = {"name": expect(tool.get("name"), "str", f"{at}.name")}
        if tool.get("description"):
            function["description"] = expect(tool["description"], "str", f"{at}.description")
        function["parameters"] = expect(tool.get("input_schema"), "dict", f"{at}.input_schema")
        if tool.get("strict") and _is_strict(function["parameters"]):
            function["strict"] = True
        tools.append(_cached({"type": "function", "function": function}, tool))
    if not tools:
        return
    req["tools"] = tools
    choice = body.get("tool_choice", {})
    if choice:
        req["tool_choice"] = _choice_in(choice)
    if choice.get("disable_parallel_tool_use"):
        req["parallel_tool_calls"] = False


def _is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes a schema: all properties of every object are required. Claude knows optional ones."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, dict):
        return True
    named, needed = schema.get("properties", {}), schema.get("required", [])
    if isinstance(named, dict) and not (isinstance(needed, list) and all(name in needed for name in named)):
        return False
    return all(map(_is_strict, schema.values()))


CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def _choice_in(choice: Json) -> Any:
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": expect(choice.get("name"), "str", "tool_choice.name")}}
    if not isinstance(kind, str) or kind not in CHOICES:
        raise BadRequest("tool_choice.type must be auto, any, none or tool", param="tool_choice.type")
    return CHOICES[kind]


def _cached(new: Json, old: Json) -> Json:
    """`new` with the cache breakpoint of `old`, if it has one."""
    mark = old.get("cache_control")
    if isinstance(mark, dict):
        new["cache_control"] = mark
    return new


def _system_in(system: Any, path: str) -> list[Json]:
    """A system prompt, a string or text blocks → no message or one."""
    if not system:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    parts = [_text_in(block, at) for at, block in _blocks(system, path)]
    return [{"role": "system", "content": _slim(parts)}] if parts else []


def _turns_in(messages: Iterable[Any], lost: Lost) -> list[Json]:
    out: list[Json] = []
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        role = expect(message, "dict", path).get("role")
        if role not in ("user", "assistant", "system"):
            raise BadRequest(f"{path}.role must be user, assistant or system", param=f"{path}.role")
        content = message.get("content")
        if isinstance(content, str):
            out.append({"role": role, "content": content})
        elif role == "user":
            out += _user_in(content, f"{path}.content", lost)
        elif role == "assistant":
            out.append(_assistant_in(content, f"{path}.content", lost))
        else:
            out += _system_in(content, f"{path}.content")
    return out


def _blocks(content: Any, path: str) -> Iterable[tuple[str, Json]]:
    """Content blocks, each with its path, and with a type."""
    if not isinstance(content, list):
        raise BadRequest(f"{path} must be a string or an array of blocks", param=path)
    for j, block in enumerate(content):
        at = f"{path}[{j}]"
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            expect(expect(block, "dict", at).get("type"), "str", f"{at}.type")
        yield at, block


def _slim(parts: list[Json]) -> Any:
    """Parts, or a string where one bare text is all: what every server of the hub's API reads."""
    return parts[0]["text"] if len(parts) == 1 and parts[0].keys() == {"type", "text"} else parts


def _user_in(content: Any, path: str, lost: Lost) -> list[Json]:
    results, parts = [], []
    for at, block in _blocks(content, path):
        if block["type"] == "tool_result":
            results.append(_result_in(block, at, lost))
        else:
            parts += _parts_in(block, at, lost)
    return [*results, {"role": "user", "content": _slim(parts)}] if parts else results


def _parts_in(block: Json, at: str, lost: Lost) -> list[Json]:
    """One block → the parts that it is in the hub; none for what only Anthropic knows."""
    read = PARTS.get(block["type"])
    if read is None:
        lost(at, f"a {block['type']} block has no place in other APIs")
        return []
    parts = read(block, at)
    if parts:
        parts[-1] = _cached(parts[-1], block)
    return parts


def _text_in(block: Json, at: str) -> Json:
    return _cached({"type": "text", "text": expect(block.get("text"), "str", f"{at}.text")}, block)


def _image_in(block: Json, at: str) -> list[Json]:
    at = f"{at}.source"
    source = expect(block.get("source"), "dict", at)
    if source.get("type") == "file":
        return [{"type": "file", "file": {"file_id": expect(source.get("file_id"), "str", f"{at}.file_id")}}]
    if source.get("type") == "url":
        url = expect(source.get("url"), "str", f"{at}.url")
    else:
        url = _data_in(source, at)
    return [{"type": "image_url", "image_url": {"url": url}}]


def _data_in(source: Json, at: str) -> str:
    """A base64 source → a data URI; what the bytes say beats a wrong media type."""
    data = expect(source.get("data"), "str", f"{at}.data")
    return f"data:{sniff(data) or expect(source.get('media_type'), 'str', f'{at}.media_type')};base64,{data}"


def _document_in(block: Json, at: str) -> list[Json]:
    source = expect(block.get("source"), "dict", f"{at}.source")
    kind, content = source.get("type"), source.get("content")
    if kind == "file":
        return _image_in(block, at)
    if kind == "base64":
        file = {"file_data": _data_in(source, f"{at}.source"), "filename": text(block.get("title")) or "document.pdf"}
        return [{"type": "file", "file": file}]
    if kind == "url":  # no API of the hub fetches documents
        raise BadRequest(f"{at}.source must hold the document itself, not its url", param=f"{at}.source")
    if kind == "content" and isinstance(content, list):
        return [part for path, inner in _blocks(content, f"{at}.source.content") for part in _parts_in(inner, path, _no_ledger)]
    data = content if kind == "content" else source.get("data")
    written = expect(data, "str", f"{at}.source.{'content' if kind == 'content' else 'data'}")
    told = [text(block.get("title")), text(block.get("context")), written]
    return [{"type": "text", "text": "\n".join(item for item in told if item)}]


def _search_in(block: Json, at: str) -> list[Json]:
    found = [_text_in(inner, path)["text"] for path, inner in _blocks(block.get("content"), f"{at}.content")]
    told = [text(block.get("title")), text(block.get("source")), *found]
    return [{"type": "text", "text": "\n".join(item for item in told if item)}]


PARTS: dict[str, Callable[[Json, str], list[Json]]] = {
    "text": lambda block, at: [_text_in(block, at)],
    "image": _image_in,
    "document": _document_in,
    "search_result": _search_in,
}


def _result_in(block: Json, at: str, lost: Lost) -> Json:
    """A tool_result → a tool message; its own cache breakpoint goes to its last part."""
    content, parts = block.get("content"), []
    if isinstance(content, str):
        parts = [{"type": "text", "text": content}] if content else []
    elif content is not None:
        parts = [part for path, inner in _blocks(content, f"{at}.content") for part in _parts_in(inner, path, lost)]
    if parts:
        parts[-1] = _cached(parts[-1], block)
    call_id = expect(block.get("tool_use_id"), "str", f"{at}.tool_use_id")
    message = {"role": "tool", "tool_call_id": call_id, "content": _slim(parts) if parts else ""}
    return {**message, "is_error": True} if block.get("is_error") else message


def _assistant_in(content: Any, path: str, lost: Lost) -> Json:
    """Blocks of an assistant's turn → one message; a thinking block without a signature is only reasoning_content.

    What `_seal.py` put into redacted blocks goes back to where it was.
    """
    parts: list[Json] = []
    calls: list[Json] = []
    thinking: list[Json] = []
    signatures: dict[str, str] = {}
    reasoning = ""
    for at, block in _blocks(content, path):
        kind = block["type"]
        if kind == "text":
            parts.append(_text_in(block, at))
        elif kind == "tool_use":
            given = expect(block.get("input", {}), "dict", f"{at}.input")
            calls.append(
                tool_call(expect(block.get("id"), "str", f"{at}.id"), expect(block.get("name"), "str", f"{at}.name"), given)
            )
        elif kind == "redacted_thinking" and (found := unseal_signature(block.get("data"))):
            signatures |= found
        elif kind == "redacted_thinking" or (kind == "thinking" and block.get("signature")):
            thinking.append(block)
        elif kind == "thinking":
            reasoning += expect(block.get("thinking"), "str", f"{at}.thinking")
        else:
            lost(at, f"a {kind} block has no place in other APIs")
    plain = not any("cache_control" in part for part in parts)
    message: Json = {"role": "assistant", "content": "".join(part["text"] for part in parts) if plain else parts}
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    if thinking:
        message["thinking_blocks"] = thinking
    if reasoning:
        message["reasoning_content"] = reasoning
    return with_signatures(message, signatures) if signatures else message


# --- hub → Messages

LEAST_BUDGET = 1024  # tokens of thinking
EFFORTS_OUT = {"minimal": "low", **{effort: effort for effort in EFFORTS}}


def messages_request(req: Json, cfg: Mapping[str, Any] = {}) -> Json:
    """A canonical request → a Messages request, whatever the model. Raises BadRequest."""
    lost = ledger(cfg)
    if req.get("n", 1) > 1:
        raise BadRequest("this backend gives one answer a request: n must be 1", param="n")
    body: Json = {name: req[name] for name in ("model", "stream", "top_p", "top_k", "thinking") if name in req}
    system, body["messages"] = _turns_out(req["messages"], cfg.get("system_policy", "inline"), lost)
    if not body["messages"]:
        raise BadRequest("messages hold nothing that can be sent", param="messages")
    if system:
        body["system"] = system[0]["text"] if len(system) == 1 and "cache_control" not in system[0] else system
    budget = count(req.get("thinking", {}).get("budget_tokens"))
    body["max_tokens"] = req.get("max_completion_tokens", max(MAX_TOKENS, budget + ANSWER_TOKENS))
    _thinking_out(body, lost)
    if "temperature" in req:
        body["temperature"] = min(req["temperature"], 1)
        if req["temperature"] > 1:
            lost("temperature", "Messages ends at 1")
    if "stop" in req:
        _stops_out(req["stop"], body, lost)
    if user := req.get("user") or text(req.get("safety_identifier")):  # OpenAI's newer name of it
        body["metadata"] = {"user_id": user}
    _config_out(req, body)
    _tools_out(req, body)
    return body


def _thinking_out(body: Json, lost: Lost) -> None:
    """A budget as Messages takes it: at least 1024 tokens, and fewer than the answer may have in all."""
    if body.get("thinking", {}).get("type") != "enabled":
        return
    room = body["max_tokens"] - 1
    if room < LEAST_BUDGET:
        lost("thinking", "max_tokens leaves no room for it")
        del body["thinking"]
        return
    budget = count(body["thinking"].get("budget_tokens"))
    body["thinking"] = {**body["thinking"], "budget_tokens": min(max(budget, LEAST_BUDGET), room)}


def _stops_out(stops: list[str], body: Json, lost: Lost) -> None:
    kept = [stop for stop in stops if stop.strip()]
    if kept:
        body["stop_sequences"] = kept
    if len(kept) < len(stops):
        lost("stop", "Messages takes no stop that is only whitespace")


def _config_out(req: Json, body: Json) -> None:
    effort = req.get("reasoning_effort")
    config: Json = {}
    if effort == "none":
        body.setdefault("thinking", {"type": "disabled"})
    elif effort in EFFORTS_OUT:
        config["effort"] = EFFORTS_OUT[effort]
    schema = req.get("response_format", {}).get("json_schema", {}).get("schema")
    if schema is not None:
        config["format"] = {"type": "json_schema", "schema": closed(schema)}
    if config:
        body["output_config"] = config


CHOICES_OUT = {"auto": "auto", "required": "any", "none": "none"}


def _tools_out(req: Json, body: Json) -> None:
    if not req.get("tools"):
        return
    body["tools"] = [_tool_out(tool) for tool in req["tools"]]
    choice, serial = req.get("tool_choice"), req.get("parallel_tool_calls") is False
    if isinstance(choice, dict):
        body["tool_choice"] = {"type": "tool", "name": choice["function"]["name"]}
    elif choice or serial:  # auto is what no choice means: parallel calls alone must not force a tool
        body["tool_choice"] = {"type": CHOICES_OUT[choice or "auto"]}
    if serial and choice != "none":
        body["tool_choice"]["disable_parallel_tool_use"] = True


def _tool_out(tool: Json) -> Json:
    function = tool["function"]
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    out = {"name": function["name"], "input_schema": schema if schema.get("type") == "object" else {**schema, "type": "object"}}
    if function.get("description"):
        out["description"] = function["description"]
    if function.get("strict"):
        out["strict"] = True
    return _cached(out, tool)


def _turns_out(messages: list[Json], policy: str, lost: Lost) -> tuple[list[Json], list[Json]]:
    """Messages → (system blocks, turns that alternate). A system message must follow a user's turn and end it, so
    one that stands elsewhere waits for the end of the user's turn; where there is none it is said as the user's."""
    system: list[Json] = []
    turns: list[Json] = []
    waiting: list[Json] = []
    for i, message in enumerate([*messages, {"role": "end"}]):
        role, path = message["role"], f"messages[{i}]"
        if role in ("system", "developer"):
            blocks = _blocks_out(message["content"], path)
            if policy == "hoist" or not turns:
                system += blocks
            elif policy == "user":
                _add(turns, "user", blocks)
            else:
                waiting += blocks
            continue
        if role in ("assistant", "end") and waiting:
            follows = turns[-1]["role"] == "user"
            if not follows:
                lost(path, "a system message that follows no user's turn goes as a user's text")
            _add(turns, "system" if follows else "user", waiting)
            waiting = []
        if role == "assistant":
            _add(turns, "assistant", _assistant_out(message, path))
        elif role != "end":
            _add(turns, "user", _result_out(message, path) if role == "tool" else _blocks_out(message["content"], path))
    for turn in turns:
        turn["content"].sort(key=_not_a_result)
    return system, turns


def _not_a_result(block: Json) -> bool:
    return bool(block["type"] != "tool_result")


def _add(turns: list[Json], role: str, blocks: list[Json]) -> None:
    """One turn more, or more of the last one: Messages wants them to alternate and none empty."""
    if blocks and turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    elif blocks:
        turns.append({"role": role, "content": list(blocks)})


def _blocks_out(content: Any, path: str) -> list[Json]:
    """A string or parts → blocks. Text that is only whitespace is left out: Messages refuses it."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    parts = [(part, f"{path}.content[{j}]") for j, part in enumerate(content or ())]
    return [_cached(_block_out(part, at), part) for part, at in parts if part["type"] != "text" or part["text"].strip()]


def _block_out(part: Json, at: str) -> Json:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] == "image_url":
        url = part["image_url"]["url"]
        return _media_out(url, at) or {"type": "image", "source": {"type": "url", "url": url}}
    file = part["file"] if part["type"] == "file" else {}
    if isinstance(file.get("file_id"), str):
        return {"type": "document", "source": {"type": "file", "file_id": file["file_id"]}}
    block = _media_out(text(file.get("file_data")), at)
    if block is None:
        raise BadRequest(f"{at}: this backend takes text, images, and files as data URIs", param=at)
    if block["type"] == "document" and text(file.get("filename")):
        block["title"] = file["filename"]
    return block


def _media_out(url: str, at: str) -> Json | None:
    """A data URI → an image or a document block; None for another url. Raises BadRequest for other media."""
    found = data_uri(url, at)
    if found is None:
        return None
    media, data = found
    source = {"type": "base64", "media_type": media, "data": data}
    if media.startswith("image/"):
        return {"type": "image", "source": source}
    if media == "application/pdf":
        return {"type": "document", "source": source}
    if not media.startswith("text/"):
        raise BadRequest(f"{at}: this backend takes no {media}", param=at)
    try:
        plain = base64.b64decode(data + "=" * (-len(data) % 4)).decode("utf-8", "replace")
    except binascii.Error:
        raise BadRequest(f"{at}: a data URI does not hold base64", param=at) from None
    return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": plain}}


def _result_out(message: Json, path: str) -> list[Json]:
    block: Json = {"type": "tool_result", "tool_use_id": tool_id(message["tool_call_id"])}
    content = _blocks_out(message["content"], path)
    for inner in content:  # a breakpoint belongs to the result, not inside it
        block |= {"cache_control": inner.pop("cache_control")} if "cache_control" in inner else {}
    if content:
        block["content"] = content[0]["text"] if len(content) == 1 and content[0]["type"] == "text" else content
    return [{**block, "is_error": True} if message.get("is_error") else block]


def _assistant_out(message: Json, path: str) -> list[Json]:
    """Thinking comes first and verbatim; reasoning that nobody signed stays here, a signature is never made up."""
    blocks = [block for block in thinking_of(message) if not is_sealed(block)]
    blocks += _blocks_out(message["content"], path)
    for call, given in calls_of(message, error=BadRequest, at=path):
        blocks.append({"type": "tool_use", "id": tool_id(call["id"]), "name": call["function"]["name"], "input": given})
    return blocks


def thinking_of(message: Json) -> list[Json]:
    """The hub message's thinking blocks, verbatim."""
    blocks = message.get("thinking_blocks")
    listed = blocks if isinstance(blocks, list) else []
    return [block for block in listed if isinstance(block, dict) and block.get("type") in ("thinking", "redacted_thinking")]
