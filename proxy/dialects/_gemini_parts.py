"""Gemini's contents and parts ⇄ the hub's messages.

Names are written in camelCase and read in snake_case too, as Google's own servers read them (litellm mixes both). What a
client got wrong is a BadRequest that names the field.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from proxy.dialects._seal import signature_of, signed
from proxy.dialects.openai import (
    Json,
    calls_of,
    chunk,
    compact,
    data_uri,
    expect,
    fold,
    objects,
    sniff,
    text,
    text_of,
    tool_delta,
)
from proxy.errors import BadRequest, ProxyError

Shape = Mapping[str, Any]  # field → the name of its type, or the shape of the object that it holds


@lru_cache(maxsize=256)
def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda capital: f"_{capital[0].lower()}", name)


def get(obj: Mapping[str, Any], name: str) -> Any:
    """A field by its name in camelCase, or the same in snake_case."""
    value = obj.get(name)
    return obj.get(_snake(name)) if value is None else value


def read(obj: Any, shape: Shape, at: str = "") -> Json:
    """The fields of a client's object that `shape` names, under their camelCase names, nulls left out. Raises BadRequest."""
    if not isinstance(obj, dict):
        raise BadRequest(f"{at or 'the body'} must be an object", param=at or None)
    out: Json = {}
    for name, kind in shape.items():
        value = get(obj, name)
        if value is None:
            continue
        where = f"{at}.{name}" if at else name
        if not isinstance(kind, str):
            out[name] = read(value, kind, where)
            continue
        if kind == "int" and isinstance(value, float) and value.is_integer():
            value = int(value)  # the Python SDK writes topK as 40.0
        out[name] = value if kind == "any" else expect(value, kind, where)
    return out


# --- contents → messages

BLOB = {"mimeType": "str", "data": "str"}
FILE = {"mimeType": "str", "fileUri": "str"}
PART: Shape = {
    "text": "str",
    "thought": "bool",
    "thoughtSignature": "str",
    "functionCall": {"id": "str", "name": "str", "args": "dict"},
    "functionResponse": {"id": "str", "name": "str", "response": "dict", "parts": "list"},
    "inlineData": BLOB,
    "fileData": FILE,
}
Pending = list[tuple[str, str]]  # (id, function name) of the calls that no result has answered yet


def parts_of(content: Any, at: str) -> list[Json]:
    """The checked parts of a Content."""
    given = get(read(content, {"parts": "any"}, at), "parts")
    listed = [] if given is None else given if isinstance(given, list) else [given]
    parts = [read(part, PART, f"{at}.parts[{j}]") for j, part in enumerate(listed)]
    for j, part in enumerate(parts):
        for name in ("functionCall", "functionResponse"):
            if name in part and not part[name].get("name"):
                raise BadRequest(f"{at}.parts[{j}].{name}.name is missing", param=f"{at}.parts[{j}].{name}.name")
    return parts


def messages_of(contents: Any) -> list[Json]:
    """Gemini's contents → the hub's messages. Calls without an id get one, results find their call by id, else by name.

    Contents of the model that follow each other are one turn: the SDK's history has one for every event of a stream.
    """
    if not isinstance(contents, list) or not contents:
        raise BadRequest("contents must be an array with at least one item", param="contents")
    messages: list[Json] = []
    pending: Pending = []
    turn: list[Json] = []  # what the model has said since the user
    for i, content in enumerate(contents):
        at = f"contents[{i}]"
        parts = parts_of(content, at)
        role = content.get("role") or "user"
        if role == "model":
            turn += parts
        elif role in ("user", "function"):
            messages += _model_turn(turn, i, pending)
            messages += _user_turn(parts, at, pending)
            turn = []
        else:
            raise BadRequest(f"{at}.role must be user or model", param=f"{at}.role")
    messages += _model_turn(turn, len(contents), pending)
    if not messages:
        raise BadRequest("contents hold nothing that this target can be sent", param="contents")
    return messages


def _model_turn(parts: list[Json], i: int, pending: Pending) -> list[Json]:
    deltas = list(deltas_of(parts, lambda n: f"call_{i}_{n}", unwrap=unseal))
    if not deltas:
        return []
    message: Json = fold([chunk({}, delta) for delta in deltas])["choices"][0]["message"]
    if "thinking_blocks" in message:
        message["thinking_blocks"] = [_redacted(block) for block in message["thinking_blocks"]]
    pending += [(call["id"], call["function"]["name"]) for call in message.get("tool_calls", ())]
    return [message]


def deltas_of(
    parts: Iterable[Json], name_call: Callable[[int], str], calls: int = 0, unwrap: Callable[[str], str] = str
) -> Iterator[Json]:
    """The parts of a model's turn → the hub's deltas. `calls`: how many calls came before; `name_call(n)`: an id for the n-th.

    A part that the hub has no place for (media, executable code) gives none.
    """
    for part in parts:
        said, call = text(part.get("text")), get(part, "functionCall")
        signature = unwrap(text(get(part, "thoughtSignature")))
        if isinstance(call, dict):
            call_id, args = text(call.get("id")) or name_call(calls), call.get("args")
            written = compact(args if isinstance(args, dict) else {})
            yield tool_delta(calls, call_id, text(call.get("name")), written, **signed(signature))
            calls += 1
            continue
        thought = part.get("thought") is True
        if said:
            yield {"reasoning_content" if thought else "content": said}
        if signature:
            yield {"reasoning_signature": signature} if thought else signed(signature)


def _user_turn(parts: list[Json], at: str, pending: Pending) -> list[Json]:
    """Results come first: they belong right behind the calls that they answer."""
    told: list[Json] = []
    content: list[Json] = []
    for j, part in enumerate(parts):
        where = f"{at}.parts[{j}]"
        if "functionResponse" in part:
            told.append(_result(part["functionResponse"], f"{where}.functionResponse", pending))
        elif "text" in part:
            content.append({"type": "text", "text": part["text"]})
        else:
            content += _media(part, where)
    if not content:
        return told
    plain = content[0]["text"] if len(content) == 1 and content[0]["type"] == "text" else content
    return [*told, {"role": "user", "content": plain}]


def _result(response: Json, at: str, pending: Pending) -> Json:
    call_id = response.get("id")
    if call_id not in [known for known, _ in pending]:
        call_id = next((known for known, name in pending if name == response["name"]), call_id)
    if not call_id:
        raise BadRequest(f"{at} answers no function call", param=at)
    pending[:] = [entry for entry in pending if entry[0] != call_id]
    given = response.get("response", {})
    key, value = next(iter(given.items())) if len(given) == 1 else ("", None)
    plain = key in ("output", "result", "error") and isinstance(value, str)
    content: Any = value if plain else compact(given)
    shown = [read(part, PART, f"{at}.parts[{j}]") for j, part in enumerate(response.get("parts", ()))]
    media = [item for j, part in enumerate(shown) for item in _media(part, f"{at}.parts[{j}]")]
    if media:
        content = [{"type": "text", "text": content}, *media]
    message = {"role": "tool", "tool_call_id": call_id, "content": content}
    failed = given.get("error") or (plain and key == "error")
    return {**message, "is_error": True} if failed else message


AUDIO = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "x-aiff": "aiff", "x-flac": "flac"}
SUFFIXES = {name: f"image/{name}" for name in ("png", "jpeg", "webp", "gif", "heic", "heif")}
SUFFIXES |= {"jpg": "image/jpeg", "pdf": "application/pdf", "mp3": "audio/mp3", "wav": "audio/wav", "mp4": "video/mp4"}


def _media(part: Json, at: str) -> list[Json]:
    """inlineData or fileData → the hub's part; bytes are checked against their media type. Another part gives none."""
    if "inlineData" in part:
        data = standard(part["inlineData"].get("data", ""))
        kind = sniff(data) or part["inlineData"].get("mimeType", "").lower()
        if not kind:
            raise BadRequest(f"{at}.inlineData.mimeType is missing", param=f"{at}.inlineData.mimeType")
        family, _, name = kind.partition("/")
        if family == "audio":
            return [{"type": "input_audio", "input_audio": {"data": data, "format": AUDIO.get(name, name)}}]
        uri, field = f"data:{kind};base64,{data}", "file_data"
    elif "fileData" in part:
        uri, field = part["fileData"].get("fileUri", ""), "file_id"
        family = (part["fileData"].get("mimeType") or _suffix_type(uri) or "").partition("/")[0]
    else:
        return []
    return [{"type": "image_url", "image_url": {"url": uri}} if family == "image" else {"type": "file", "file": {field: uri}}]


def _suffix_type(uri: str) -> str | None:
    return SUFFIXES.get(re.split(r"[?#]", uri, maxsplit=1)[0].rpartition(".")[2].lower())


def standard(data: str) -> str:
    """Base64 in either alphabet (Google's SDKs write the URL-safe one) → the standard one, padded."""
    plain = data.replace("-", "+").replace("_", "/").rstrip("=")
    return plain + "=" * (-len(plain) % 4)


# --- signatures on their way through a Gemini client

# Gemini's SDKs keep a thoughtSignature as bytes: one that is not base64 is an exception there, and one that is comes back in
# the URL-safe alphabet. So what another API signed goes to a Gemini client as it is if it survives that, else wrapped.
SEAL = b"mooltiproxy:"
REDACTED = "redacted_thinking:"


def _decoded(signature: str) -> bytes | None:
    try:
        return base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return None


def _is_base64(signature: str) -> bool:
    data = _decoded(signature)
    return data is not None and base64.b64encode(data).decode() == signature


def seal(signature: str) -> str:
    """A signature as a Gemini client can hold it; `unseal` gives the very same string back."""
    if _is_base64(signature) and not (_decoded(signature) or b"").startswith(SEAL):
        return signature
    return base64.b64encode(SEAL + signature.encode("utf-8", "surrogatepass")).decode()


def unseal(signature: str) -> str:
    """What `seal` was given; any other base64 in the standard alphabet, and what is no base64 as it is."""
    data = _decoded(standard(signature))
    if data is None:
        return signature
    return data[len(SEAL) :].decode("utf-8", "surrogatepass") if data.startswith(SEAL) else standard(signature)


def _redacted(block: Json) -> Json:
    signature = text(block.get("signature"))
    if not signature.startswith(REDACTED):
        return block
    return {"type": "redacted_thinking", "data": signature.removeprefix(REDACTED)}


# --- messages → contents


def contents_of(messages: list[Json]) -> tuple[list[Json], list[Json]]:
    """Canonical messages → (parts of the leading system messages, contents whose roles alternate).

    A later system message keeps its place, as the user's: Gemini has no other role for it. Raises: BadRequest.
    """
    system: list[Json] = []
    contents: list[Json] = []
    names: dict[str, str] = {}
    for i, message in enumerate(messages):
        at, role = f"messages[{i}]", message["role"]
        if role == "assistant":
            names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
            parts = turn_parts(message, BadRequest, at)
        elif role == "tool":
            parts = [_response_part(message, names, at)]
        else:
            parts = parts_out(message["content"], f"{at}.content")
        if role in ("system", "developer") and not contents:
            system += parts
        elif parts and contents and contents[-1]["role"] == ("model" if role == "assistant" else "user"):
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": "model" if role == "assistant" else "user", "parts": parts})
    return system, contents


def turn_parts(
    message: Json,
    error: type[ProxyError],
    at: str = "message",
    wrap: Callable[[str], str] = str,
    thoughts: bool = True,
    finish: Any = None,
) -> list[Json]:
    """A hub message or delta of an assistant → parts: thoughts, text, calls. `wrap` is applied to signatures.

    Raises `error` where arguments are no JSON object, unless the limit cut them (`finish`).
    """
    parts = list(_thought_parts(message, wrap)) if thoughts else []
    said = parts_out(message.get("content"), f"{at}.content") + parts_out(text(message.get("refusal")), at)
    if signature_of(message):
        said = said or [{"text": ""}]  # Gemini itself sends a signature that has no text of its own so
        said[-1] = {**said[-1], "thoughtSignature": wrap(signature_of(message))}
    parts += said
    for call, args in calls_of(message, finish, error, at):
        part: Json = {"functionCall": {"id": call["id"], "name": call["function"]["name"], "args": args}}
        signature = signature_of(call)
        parts.append({**part, "thoughtSignature": wrap(signature)} if signature else part)
    return parts


def _thought_parts(message: Json, wrap: Callable[[str], str]) -> Iterator[Json]:
    blocks = objects(message.get("thinking_blocks"))
    for block in blocks:
        signature = text(block.get("signature"))
        if block.get("type") == "thinking":
            part = {"text": text(block.get("thinking")), "thought": True}
            fits = wrap is seal or _is_base64(signature)  # else another API wrote it, and Gemini refuses it
            yield {**part, "thoughtSignature": wrap(signature)} if signature and fits else part
        elif wrap is seal:  # only a client brings it back to the API that it belongs to
            yield {"text": "", "thought": True, "thoughtSignature": seal(REDACTED + text(block.get("data")))}
    if not blocks and text(message.get("reasoning_content")):
        yield {"text": message["reasoning_content"], "thought": True}


def _response_part(message: Json, names: Mapping[str, str], at: str) -> Json:
    call_id, content = message["tool_call_id"], message["content"]
    name = names.get(call_id) or text(message.get("name"))
    if not name:
        raise BadRequest(f"{at}.tool_call_id answers no tool call", param=f"{at}.tool_call_id")
    told = {"error" if message.get("is_error") is True else "output": text_of(content)}
    media = [part for part in parts_out(content, f"{at}.content") if "text" not in part]
    response = {"id": call_id, "name": name, "response": told}
    return {"functionResponse": {**response, "parts": media} if media else response}


def parts_out(content: Any, at: str) -> list[Json]:
    """A message's content → parts; empty text gives none."""
    if isinstance(content, str):
        return [{"text": content}] if content else []
    out = [_part_out(part, f"{at}[{j}]") for j, part in enumerate(content or ())]
    return [part for part in out if part.get("text") != ""]


def _part_out(part: Json, at: str) -> Json:
    kind = part["type"]
    if kind == "text":
        return {"text": part["text"]}
    if kind == "input_audio":
        audio = read(part["input_audio"], {"data": "str", "format": "str"}, f"{at}.input_audio")
        form = audio.get("format", "wav")
        return {"inlineData": {"mimeType": f"audio/{form}", "data": audio.get("data", "")}}
    if kind == "image_url":
        return _link(part["image_url"]["url"], f"{at}.image_url.url")
    file = read(part["file"], {"file_data": "str", "file_id": "str", "file_url": "str"}, f"{at}.file")
    link = file.get("file_data") or file.get("file_url") or file.get("file_id") or ""
    if ":" not in link:
        raise BadRequest(
            f"{at}.file must hold a data URI or a URI: Gemini cannot read another API's file id", param=f"{at}.file"
        )
    return _link(link, f"{at}.file")


def _link(url: str, at: str) -> Json:
    inline = data_uri(url, at)
    if inline:
        return {"inlineData": {"mimeType": inline[0], "data": inline[1]}}
    kind = _suffix_type(url)
    return {"fileData": {"mimeType": kind, "fileUri": url} if kind else {"fileUri": url}}
