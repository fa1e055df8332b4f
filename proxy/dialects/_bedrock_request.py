"""The hub's chat requests → Converse; see bedrock.py for what is decided and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from proxy.dialects._anthropic_claude import closed, fitted
from proxy.dialects._seal import is_sealed
from proxy.dialects.openai import Json, calls_of, canonical, compact, data_uri, objects, text, tool_id
from proxy.errors import BadRequest

Lost = Callable[[str, str], None]

TIERS = ("default", "flex", "priority")
EFFORTS = {"minimal": "low", **{effort: effort for effort in ("low", "medium", "high", "xhigh", "max")}}
NOVA_EFFORTS = {**EFFORTS, "xhigh": "high", "max": "high"}
METADATA = re.compile(r"[a-zA-Z0-9\s:_@$#=/+,.-]{1,256}")
# Family of models → what it takes beyond Converse's own fields: the hub's field → its additionalModelRequestFields. A family's
# name stands in the model's; the first that fits counts. A model refuses fields of another family.
EXTRA: dict[str, dict[str, Callable[[Any], Json]]] = {
    "anthropic.": {"top_k": lambda k: {"top_k": k}, "thinking": lambda thinking: {"thinking": thinking}},
    "amazon.nova-2": {
        "top_k": lambda k: {"inferenceConfig": {"topK": k}},
        "reasoning_effort": lambda effort: _nova_thinks(NOVA_EFFORTS.get(effort)),
    },
    "amazon.nova": {"top_k": lambda k: {"inferenceConfig": {"topK": k}}},
    "cohere.": {"top_k": lambda k: {"k": k}},
    "mistral.": {"top_k": lambda k: {"top_k": k}},
    "openai.": {"reasoning_effort": lambda effort: {"reasoning_effort": effort}},
}
CLAUDE = "anthropic."


def _nova_thinks(effort: str | None) -> Json:
    return {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": effort}} if effort else {}


def _unheard(path: str, why: str) -> None:
    """Nobody keeps account of what is lost."""


def family(model: str) -> str:
    """The family of EXTRA that a model is of, or "". A name that hides its maker (a profile's ARN) is taken for Claude's."""
    found = next((name for name in EXTRA if name in model), "")
    return found or ("" if "." in model.rpartition("/")[2] else CLAUDE)


def model_name(req: Mapping[str, Any], cfg: Mapping[str, Any]) -> str:
    """What the model is called at the backend."""
    return text(cfg.get("model")) or text(req.get("model"))


def chatReqOpenAItoBedrock(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """The hub's chat request → a body of Converse and ConverseStream; the model stands in the path.

    In: any Chat body. Out: a new dict; seed, penalties, logprobs, json_object, parallel_tool_calls and what else Converse lacks
    are left out. Raises: BadRequest for n > 1, messages without any text or that do not begin with the user, urls of images,
    media that Converse has no format for, arguments that are no JSON object. Source: botocore 1.44, bedrock-runtime 2023-09-30,
    ConverseRequest.
    """
    req, lost = canonical(ip), cfg.get("lost") or _unheard
    if req.get("n", 1) > 1:
        raise BadRequest("this backend gives one answer a request: n must be 1", param="n")
    model = model_name(req, cfg)
    kind, req = family(model), fitted(req, model, lost)
    system, messages = _turns(req["messages"], lost)
    fields = {
        "messages": messages,
        "system": system,
        "inferenceConfig": _inference(req, lost),
        "toolConfig": _tools(req, lost),
        "additionalModelRequestFields": _extra(req, kind),
        "additionalModelResponseFieldPaths": ["/stop_sequence"] if req.get("stop") else [],  # ignored where a model has none
        "outputConfig": _output(req, kind),
        "requestMetadata": _metadata(req.get("metadata", {}), lost),
        "serviceTier": {"type": req["service_tier"]} if req.get("service_tier") in TIERS else {},
    }
    return {name: value for name, value in fields.items() if value}


def _inference(req: Json, lost: Lost) -> Json:
    names = {"max_completion_tokens": "maxTokens", "temperature": "temperature", "top_p": "topP", "stop": "stopSequences"}
    config = {theirs: req[ours] for ours, theirs in names.items() if ours in req}
    if config.get("temperature", 0) > 1:
        config["temperature"] = 1
        lost("temperature", "Converse ends at 1")
    return config


def _extra(req: Json, kind: str) -> Json:
    out: Json = {}
    for name, written in EXTRA.get(kind, {}).items():
        if name in req:
            out |= written(req[name])
    return out


def _output(req: Json, kind: str) -> Json:
    out: Json = {}
    wanted = req.get("response_format", {}).get("json_schema", {})
    if wanted.get("schema") is not None:
        named = {name: wanted[name] for name in ("name", "description") if text(wanted.get(name))}
        schema = closed(wanted["schema"]) if kind == CLAUDE else wanted["schema"]
        written = {"jsonSchema": {"schema": compact(schema), **named}}
        out["textFormat"] = {"type": "json_schema", "structure": written}
    if kind == CLAUDE and req.get("reasoning_effort") in EFFORTS:
        out["effort"] = EFFORTS[req["reasoning_effort"]]
    return out


def _metadata(given: Json, lost: Lost) -> Json:
    kept = {
        name: value
        for name, value in given.items()
        if isinstance(value, str) and METADATA.fullmatch(name) and (not value or METADATA.fullmatch(value))
    }
    if len(kept) < len(given):
        lost("metadata", "Converse takes short values of letters, digits and few signs")
    return kept


# --- tools

CHOICES: dict[str, Json] = {"auto": {"auto": {}}, "required": {"any": {}}}


def _tools(req: Json, lost: Lost) -> Json:
    """toolConfig. Converse wants one wherever the conversation has calls or results, and has no choice of none."""
    calls = [call for message in req["messages"] for call in message.get("tool_calls", ())]
    used = list(dict.fromkeys(call["function"]["name"] for call in calls))
    tools, choice = req.get("tools", []), req.get("tool_choice")
    if choice == "none" and not used:
        return {}
    specs = [block for tool in tools for block in (_spec(tool["function"]), *_cache(tool))]
    if not specs:
        return {"tools": [_spec({"name": name}) for name in used]} if used else {}
    if choice == "none":
        lost("tool_choice", "Converse cannot forbid the tools of a conversation that has used some")
    config: Json = {"tools": specs}
    if isinstance(choice, dict):
        config["toolChoice"] = {"tool": {"name": choice["function"]["name"]}}
    elif choice in CHOICES:
        config["toolChoice"] = CHOICES[choice]
    return config


def _spec(function: Json) -> Json:
    schema = function.get("parameters") or {"properties": {}}
    spec: Json = {"name": function["name"]}
    if function.get("description"):
        spec["description"] = function["description"]
    spec["inputSchema"] = {"json": schema if schema.get("type") == "object" else {**schema, "type": "object"}}
    return {"toolSpec": {**spec, "strict": True} if function.get("strict") else spec}


def _cache(marked: Json) -> list[Json]:
    """The cache point behind what the hub marks with cache_control, none without that."""
    mark = marked.get("cache_control")
    if not isinstance(mark, dict):
        return []
    ttl = {"ttl": mark["ttl"]} if mark.get("ttl") in ("5m", "1h") else {}
    return [{"cachePoint": {"type": "default", **ttl}}]


# --- messages


def _turns(messages: list[Json], lost: Lost) -> tuple[list[Json], list[Json]]:
    """Messages → (system blocks, turns that alternate)."""
    system: list[Json] = []
    turns: list[Json] = []
    for i, message in enumerate(messages):
        role, path = message["role"], f"messages[{i}]"
        if role in ("system", "developer"):
            blocks = _blocks(message["content"], path)
            if not turns:
                system += blocks
                continue
            lost(f"{path}.role", "a later system message goes as a user's text")
            _add(turns, "user", blocks)
        elif role == "assistant":
            _add(turns, "assistant", _assistant(message, path))
        else:
            _add(turns, "user", _result(message, path) if role == "tool" else _blocks(message["content"], path))
    if not turns:
        raise BadRequest("messages hold nothing that can be sent", param="messages")
    if turns[0]["role"] != "user":
        raise BadRequest("this backend wants a conversation to begin with a user's message", param="messages[0].role")
    for turn in turns:
        turn["content"].sort(key=_not_a_result)
        if any("document" in block for block in turn["content"]) and not any("text" in block for block in turn["content"]):
            raise BadRequest("this backend wants a text beside a document", param="messages")
    _name_apart(turn["content"] for turn in turns)
    return system, turns


def _not_a_result(block: Json) -> bool:
    return "toolResult" not in block


def _add(turns: list[Json], role: str, blocks: list[Json]) -> None:
    """One turn more, or more of the last one: Converse wants them to alternate and none empty."""
    if blocks and turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    elif blocks:
        turns.append({"role": role, "content": blocks})


def _blocks(content: Any, path: str) -> list[Json]:
    """A string or parts → blocks. Text that is only whitespace is left out: Converse refuses it."""
    if isinstance(content, str):
        return [{"text": content}] if content.strip() else []
    out: list[Json] = []
    for j, part in enumerate(content or ()):
        if part["type"] != "text" or part["text"].strip():
            out += [PARTS[part["type"]](part, f"{path}.content[{j}]"), *_cache(part)]
    return out


def _assistant(message: Json, path: str) -> list[Json]:
    """Thinking comes first and verbatim; reasoning that nobody signed stays here, a signature is never made up."""
    out = [_thought(block) for block in objects(message.get("thinking_blocks")) if not is_sealed(block)]
    out += _blocks(message["content"], path)
    for call, given in calls_of(message, error=BadRequest, at=path):
        out.append({"toolUse": {"toolUseId": tool_id(call["id"]), "name": call["function"]["name"], "input": given}})
    return out


def _thought(block: Json) -> Json:
    if block.get("type") == "redacted_thinking":
        return {"reasoningContent": {"redactedContent": text(block.get("data"))}}
    told = {"text": text(block.get("thinking")), "signature": text(block.get("signature"))}
    return {"reasoningContent": {"reasoningText": told}}


def _result(message: Json, path: str) -> list[Json]:
    blocks = _blocks(message["content"], path)
    points = [block for block in blocks if "cachePoint" in block]  # they stand behind a result, not in it
    content = [block for block in blocks if "cachePoint" not in block]
    if any("audio" in block for block in content):
        raise BadRequest(f"{path}: this backend takes no audio in a tool's result", param=f"{path}.content")
    result: Json = {"toolUseId": tool_id(message["tool_call_id"]), "content": content}
    if message.get("is_error"):  # which must not be empty
        result |= {"status": "error", "content": content or [{"text": "Error"}]}
    return [{"toolResult": result}, *points]


# --- media

IMAGES = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
DOCUMENTS = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
}
EXTENSIONS = {**{name: name for name in (*IMAGES.values(), *DOCUMENTS.values())}, "jpg": "jpeg", "htm": "html"}
AUDIO = ("mp3", "opus", "wav", "aac", "flac", "mp4", "ogg", "mkv", "mka", "x-aac", "m4a", "mpeg", "mpga", "pcm", "webm")


def _bytes(data: str) -> Json:
    return {"bytes": data + "=" * (-len(data) % 4)}


def _image(part: Json, at: str) -> Json:
    url = part["image_url"]["url"]
    if url.startswith("s3://"):
        kind = EXTENSIONS.get(url.rpartition(".")[2].lower(), "")
        return {"image": {"format": _known(kind, IMAGES.values(), url, at), "source": {"s3Location": {"uri": url}}}}
    found = data_uri(url, at)
    if found is None:
        raise BadRequest(f"{at}: this backend takes images as data URIs or from s3://, not from other urls", param=at)
    media, data = found
    return {"image": {"format": _known(IMAGES.get(media, ""), IMAGES.values(), media, at), "source": _bytes(data)}}


def _known(kind: str, kinds: Iterable[str], media: str, at: str) -> str:
    if kind not in kinds:
        raise BadRequest(f"{at}: this backend takes no {media[:100]}", param=at)
    return kind


def _file(part: Json, at: str) -> Json:
    """A file as a document, an image file as an image. What the media type leaves open, the name's extension says."""
    file = part["file"]
    found = data_uri(text(file.get("file_data")), at)
    if found is None:
        raise BadRequest(f"{at}: this backend takes files as data URIs", param=at)
    media, data = found
    name, dot, extension = text(file.get("filename")).rpartition(".")
    if media in IMAGES:
        return {"image": {"format": IMAGES[media], "source": _bytes(data)}}
    named = EXTENSIONS.get(extension.lower(), "") if media not in DOCUMENTS or media == "text/plain" else ""
    kind = _known(named or DOCUMENTS.get(media, ""), DOCUMENTS.values(), media, at)
    return {"document": {"format": kind, "name": _plain(name if dot else extension), "source": _bytes(data)}}


def _plain(name: str) -> str:
    """A document's name in the signs that Converse takes."""
    return " ".join(re.sub(r"[^a-zA-Z0-9\s()\[\]-]", " ", name).split())[:190] or "document"


def _name_apart(contents: Iterable[list[Json]]) -> None:
    """Two documents of one name are refused: the later ones get a number."""
    taken: set[str] = set()
    inner = (block.get("toolResult", {}).get("content", [block]) for content in contents for block in content)
    for block in (each for blocks in inner for each in blocks if "document" in each):
        name, n = block["document"]["name"], 1
        while block["document"]["name"] in taken:
            n += 1
            block["document"]["name"] = f"{name} {n}"
        taken.add(block["document"]["name"])


def _audio(part: Json, at: str) -> Json:
    kind = _known(text(part["input_audio"].get("format")), AUDIO, "audio of that format", at)
    return {"audio": {"format": kind, "source": _bytes(text(part["input_audio"].get("data")))}}


PARTS: dict[str, Callable[[Json, str], Json]] = {
    "text": lambda part, at: {"text": part["text"]},
    "image_url": _image,
    "file": _file,
    "input_audio": _audio,
}
