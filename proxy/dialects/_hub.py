"""The hub's request: any variant of an OpenAI Chat body → the one canonical form that every dialect maps from.

Nothing here changes what it is given: what is canonical already is passed on as it is, what is not is copied one level deep.
Whatever a client got wrong is a BadRequest that names the field.
"""

from __future__ import annotations

import base64
import binascii
import json
import operator
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from proxy import wire
from proxy.errors import BackendError, BadRequest, ProxyError

Json = dict[str, Any]


TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "str": (str, "a string"),
    "bool": (bool, "true or false"),
    "int": (int, "an integer"),
    "number": ((int, float), "a number"),
    "dict": (dict, "an object"),
    "list": (list, "an array"),
}
FIELDS = {  # top-level field → its type; what is not listed is not looked at
    **dict.fromkeys(("model", "user", "reasoning_effort"), "str"),
    **dict.fromkeys(("stream", "logprobs", "parallel_tool_calls"), "bool"),
    **dict.fromkeys(("n", "seed", "max_tokens", "max_completion_tokens", "top_logprobs", "top_k"), "int"),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "repetition_penalty"), "number"),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), "number"),
    **dict.fromkeys(("logit_bias", "metadata", "response_format", "stream_options", "thinking"), "dict"),
    **dict.fromkeys(("tools", "functions", "messages"), "list"),
}
ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))


def expect(value: Any, kind: str, param: str) -> Any:
    """The value, if it is a `kind` (str, bool, int, number, dict, list). Raises BadRequest that names `param`."""
    types, name = TYPES[kind]
    if not isinstance(value, types) or ((value is True or value is False) and kind != "bool"):  # Python's True is an int
        raise BadRequest(f"{param} must be {name}", param=param)
    return value


def checked(ip: Any, fields: Mapping[str, str]) -> Json:
    """A client's JSON object without its null fields, known fields held against their types. Raises BadRequest."""
    if not isinstance(ip, dict):
        raise BadRequest("the body must be a JSON object")
    body = {name: value for name, value in ip.items() if value is not None}
    for name, value in body.items():
        if name in fields:
            expect(value, fields[name], name)
    return body


def canonical(ip: Any, own: bool = False) -> Json:
    """Any variant of a chat request → the canonical one (see openai.py); idempotent, and `ip` is never changed.

    In: a Chat body, also with legacy functions, or a Responses body that was sent to /chat/completions. Out: a new dict
    that shares what it did not have to change. `own`: for a backend of OpenAI's own API, so custom tools stay custom
    and content parts of unknown type stay; else a custom tool is a function with one string `input`, and an unknown
    part is refused. Raises: BadRequest with the field's path. Source: openai SDK 3.54, CompletionCreateParams.
    """
    if isinstance(ip, dict) and "messages" not in ip and "input" in ip:
        from proxy.dialects.responses import chatReqResponsestoOpenAI  # Cursor posts such bodies to /chat/completions

        ip = chatReqResponsestoOpenAI(ip)
    req = checked(ip, FIELDS)
    if "max_tokens" in req:
        req.setdefault("max_completion_tokens", req.pop("max_tokens"))
    if "stop" in req:
        _canonical_stop(req)
    if "response_format" in req:
        _canonical_format(req)
    if not TOOL_FIELDS.isdisjoint(req):
        _canonical_tools(req, own)
    if not req.get("messages"):
        raise BadRequest("messages must be an array with at least one message", param="messages")
    req["messages"] = canonical_messages(req["messages"], own)
    return req


def _canonical_stop(req: Json) -> None:
    stop = req.pop("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise BadRequest("stop must be a string or an array of strings", param="stop")
    if any(stops):
        req["stop"] = [item for item in stops if item]


def _canonical_format(req: Json) -> None:
    kind = req["response_format"].get("type")
    if kind == "text":
        del req["response_format"]
    elif kind == "json_schema":
        schema = expect(req["response_format"].get("json_schema"), "dict", "response_format.json_schema")
        if schema.get("schema") is not None:
            expect(schema["schema"], "dict", "response_format.json_schema.schema")
    elif kind != "json_object":
        raise BadRequest("response_format.type must be text, json_object or json_schema", param="response_format.type")


# --- tools

CUSTOM_INPUT = {  # what a custom tool takes, said as a function's parameters
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


TOOL_FIELDS = frozenset(("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"))


def _canonical_tools(req: Json, own: bool) -> None:
    functions, call = req.pop("functions", ()), req.pop("function_call", None)
    tools = [_tool(tool, f"tools[{i}]", own) for i, tool in enumerate(req.pop("tools", ()))]
    for i, function in enumerate(functions):
        tools.append(canonical_tool({"type": "function", "function": function}, f"functions[{i}]"))
    choice = req.pop("tool_choice", None)
    if choice is None and call is not None:
        choice = {"type": "function", "function": call} if isinstance(call, dict) else call
    if not tools:
        req.pop("parallel_tool_calls", None)  # OpenAI refuses it, and tool_choice, where there are no tools
        return
    if choice is not None:
        choice, tools = _canonical_choice(choice, tools, own)
        req["tool_choice"] = choice
    req["tools"] = tools


def _tool(tool: Any, param: str, own: bool) -> Json:
    if own and isinstance(tool, dict) and tool.get("type") not in (None, "function"):
        return tool
    return canonical_tool(tool, param)


def canonical_tool(tool: Any, param: str) -> Json:
    """A tool, also in the Responses API's flat shape, also a custom one → {"type": "function", "function": {…}}."""
    kind = expect(tool, "dict", param).get("type", "function")
    if kind not in ("function", "custom"):
        raise BadRequest(f"{param}.type must be function or custom", param=f"{param}.type")
    given = tool.get(kind)
    if given is None and "name" in tool:
        given = {name: value for name, value in tool.items() if name not in ("type", "cache_control")}
    function: Json = expect(given, "dict", f"{param}.{kind}")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRequest(f"{param}.{kind}.name must be a string that is not empty", param=f"{param}.{kind}.name")
    for field, wanted in (("parameters", "dict"), ("description", "str"), ("strict", "bool")):
        if function.get(field) is not None:
            expect(function[field], wanted, f"{param}.{kind}.{field}")
    if kind == "custom":
        function = _custom_as_function(function)
    elif None in function.values():
        function = {field: value for field, value in function.items() if value is not None}
    if tool.get("type") == "function" and tool.get("function") is function:
        return tool  # type: ignore[no-any-return]  # the common case: canonical already
    kept = {"cache_control": tool["cache_control"]} if tool.get("cache_control") else {}
    return {"type": "function", "function": function, **kept}


def _custom_as_function(custom: Json) -> Json:
    """The grammar of a custom tool's input cannot be enforced as a schema: it is told to the model in words."""
    description = custom.get("description") or ""
    form = custom.get("format")
    grammar = form.get("grammar", form) if isinstance(form, dict) and form.get("type") == "grammar" else None
    if isinstance(grammar, dict) and grammar.get("definition"):
        told = f"`input` must match this {grammar.get('syntax', '')} grammar:\n{grammar['definition']}"
        description = f"{description}\n\n{told}" if description else told
    function = {"name": custom["name"], "parameters": CUSTOM_INPUT}
    return {**function, "description": description} if description else function


CHOICES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}


def _canonical_choice(choice: Any, tools: list[Json], own: bool) -> tuple[Any, list[Json]]:
    """tool_choice in any of its shapes → the canonical one, and the tools that it leaves."""
    if isinstance(choice, str) and choice in CHOICES:
        return CHOICES[choice], tools
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind in ("function", "custom"):
        named = choice.get(kind) if isinstance(choice.get(kind), dict) else choice
        name = expect(named.get("name"), "str", f"tool_choice.{kind}.name")
        if name not in [tool_name(tool) for tool in tools]:
            raise BadRequest(f"tool_choice names {name!r}, which is not among the tools", param="tool_choice")
        kind = kind if own else "function"
        return {"type": kind, kind: {"name": name}}, tools
    if kind == "allowed_tools":
        allowed = choice.get("allowed_tools") if isinstance(choice.get("allowed_tools"), dict) else choice
        listed = expect(allowed.get("tools"), "list", "tool_choice.allowed_tools.tools")
        names = {tool_name(item) for item in listed if isinstance(item, dict)}
        kept = [tool for tool in tools if tool_name(tool) in names]
        if not kept:
            raise BadRequest("tool_choice.allowed_tools names none of the tools", param="tool_choice")
        return ("required" if allowed.get("mode") == "required" else "auto"), kept
    raise BadRequest("tool_choice must be auto, none, required or name a function", param="tool_choice")


def tool_name(tool: Json) -> str | None:
    """The name in a tool, tool choice or tool call of any shape."""
    named = next((tool[kind] for kind in ("function", "custom") if isinstance(tool.get(kind), dict)), tool)
    name = named.get("name")
    return name if isinstance(name, str) else None


# --- messages


def canonical_messages(messages: Any, own: bool = False) -> list[Json]:
    """Messages → canonical ones: legacy function turns become tool turns, ids that are missing are made up (alike on both)."""
    out: list[Json] = []
    pending: dict[str, Json] = {}  # by id, the calls without a result so far
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise BadRequest(f"messages[{i}] must be an object", param=f"messages[{i}]")
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise BadRequest(f"messages[{i}].role must be one of {', '.join(sorted(ROLES))}", param=f"messages[{i}].role")
        if role == "assistant":
            message = _assistant_message(message, i, own)
            for call in message.get("tool_calls") or ():
                pending[call["id"]] = call
        elif role in ("tool", "function"):
            message = _tool_message(message, i, pending)
        content = message.get("content")
        if not isinstance(content, str):
            content = _canonical_content(message, i, own)
        if content is not message.get("content") or None in message.values() or "content" not in message:
            message = {name: value for name, value in message.items() if value is not None}
            message["content"] = content
        out.append(message)
    return out


def _canonical_content(message: Json, i: int, own: bool) -> Any:
    content = message.get("content")
    if isinstance(content, list):
        parts = [_canonical_part(part, f"messages[{i}].content[{j}]", own) for j, part in enumerate(content)]
        return content if all(map(operator.is_, parts, content)) else parts
    if content is None and message["role"] == "assistant":
        return None
    if content is None and message["role"] == "tool":
        return ""  # a tool that had nothing to say
    raise BadRequest(f"messages[{i}].content must be a string or an array of parts", param=f"messages[{i}].content")


PARTS = {  # part type → the field that it must have, and its type
    "text": ("text", "str"),
    "image_url": ("image_url", "dict"),
    "input_audio": ("input_audio", "dict"),
    "file": ("file", "dict"),
}
TEXT_PARTS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}  # variants → the field with their text


def _canonical_part(part: Any, param: str, own: bool) -> Json:
    kind = expect(expect(part, "dict", param).get("type"), "str", f"{param}.type")
    if kind in TEXT_PARTS:
        return {"type": "text", "text": expect(part.get(TEXT_PARTS[kind]), "str", f"{param}.{TEXT_PARTS[kind]}")}
    if kind == "input_image" or (kind == "image_url" and isinstance(part.get("image_url"), str)):
        url = expect(part.get("image_url"), "str", f"{param}.image_url")
        return {"type": "image_url", "image_url": {"url": url, **({"detail": part["detail"]} if part.get("detail") else {})}}
    if kind not in PARTS:
        if own:
            return part  # type: ignore[no-any-return]
        raise BadRequest(f"{param}.type must be one of {', '.join(PARTS)}", param=f"{param}.type")
    field, wanted = PARTS[kind]
    expect(part.get(field), wanted, f"{param}.{field}")
    if kind == "image_url":
        expect(part["image_url"].get("url"), "str", f"{param}.image_url.url")
    return part  # type: ignore[no-any-return]


def _assistant_message(message: Json, i: int, own: bool) -> Json:
    if isinstance(message.get("refusal"), str) and not own:
        message = _with_refusal(message)
    calls, legacy = message.get("tool_calls"), message.get("function_call")
    reasoning = message.get("reasoning")
    if calls is None and legacy is None and not isinstance(reasoning, str):
        return message
    changed = dict(message)
    if isinstance(reasoning, str):
        del changed["reasoning"]
        changed["reasoning_content"] = message.get("reasoning_content") or reasoning
    changed.pop("function_call", None)
    if calls is None and legacy is not None:
        calls = [{"function": legacy}]
    if calls is not None:
        listed = expect(calls, "list", f"messages[{i}].tool_calls")
        changed["tool_calls"] = [_canonical_call(call, i, j, own) for j, call in enumerate(listed)]
        if not changed["tool_calls"]:
            del changed["tool_calls"]
    return changed


def _with_refusal(message: Json) -> Json:
    """What the assistant refused with is what it said: no API but OpenAI's has another place for it."""
    said, refusal = message.get("content"), message["refusal"]
    kept = {name: value for name, value in message.items() if name != "refusal"}
    if isinstance(said, list):
        return {**kept, "content": [*said, {"type": "text", "text": refusal}]}
    return {**kept, "content": f"{said or ''}{refusal}" if isinstance(said, (str, type(None))) else said}


def _canonical_call(call: Any, i: int, j: int, own: bool) -> Json:
    param = f"messages[{i}].tool_calls[{j}]"
    kind, call_id = expect(call, "dict", param).get("type") or "function", call.get("id")
    if call_id is not None and not isinstance(call_id, str):
        expect(call_id, "str", f"{param}.id")
    if kind == "custom" and isinstance(call.get("custom"), dict):
        if own:
            return call if call_id else {**call, "id": f"call_{i}_{j}"}
        custom = call["custom"]
        function: Any = {"name": custom.get("name"), "arguments": compact({"input": custom.get("input") or ""})}
    else:
        function = expect(call.get("function"), "dict", f"{param}.function")
    if not isinstance(function.get("name"), str):
        expect(function.get("name"), "str", f"{param}.function.name")
    arguments = function.get("arguments")
    if isinstance(arguments, dict) or arguments is None:
        function = {**function, "arguments": "" if arguments is None else compact(arguments)}
    elif not isinstance(arguments, str):
        expect(arguments, "str", f"{param}.function.arguments")
    is_plain = "index" not in call and None not in call.values()
    if call_id and is_plain and call.get("type") == "function" and call.get("function") is function:
        return call  # type: ignore[no-any-return]
    kept = {name: value for name, value in call.items() if name not in ("custom", "index") and value is not None}
    return {**kept, "id": call_id or f"call_{i}_{j}", "type": "function", "function": function}


def _tool_message(message: Json, i: int, pending: dict[str, Json]) -> Json:
    """A result finds its call by id; without one, by name (legacy functions), else it belongs to the oldest open call."""
    call_id = message.get("tool_call_id")
    if call_id is not None and not isinstance(call_id, str):
        expect(call_id, "str", f"messages[{i}].tool_call_id")
    if not call_id:
        wanted = message.get("name")
        named = next((known for known, call in pending.items() if wanted and tool_name(call) == wanted), None)
        call_id = named or next(iter(pending), None)
        if call_id is None:
            raise BadRequest(f"messages[{i}].tool_call_id is missing", param=f"messages[{i}].tool_call_id")
        message = {**message, "tool_call_id": call_id}
    pending.pop(call_id, None)
    if message["role"] == "function":
        message = {name: value for name, value in message.items() if name != "name"}
        message["role"] = "tool"
    return message


# --- content


def objects(value: Any) -> list[Json]:
    """The objects of a list; anything that is no list has none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def compact(value: Any) -> str:
    """Compact JSON text, as tool arguments are written."""
    return _compact.encode(value)


def text_of(content: Any) -> str:
    """A str, or the text of a list of parts, joined; anything else has none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))


def parse_arguments(text: Any, error: type[ProxyError] = BackendError, param: str | None = None) -> Json:
    """Tool arguments as text → the object; empty is {}. Raises `error` when they are no JSON object."""
    if isinstance(text, dict):
        return text
    try:
        value = wire.STRICT.decode(text) if text else {}
    except (ValueError, TypeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise error("the arguments of a tool call are not a JSON object", param=param)
    return value


def calls_of(
    message: Json, finish: Any = None, error: type[ProxyError] = BackendError, at: str = "message"
) -> list[tuple[Json, Json]]:
    """The calls of an assistant's message, each with its arguments as an object. One whose arguments the limit cut (`finish` is
    length) is none: nobody can carry it out. Raises `error`, with the path below `at`, for arguments that are no object."""
    found: list[tuple[Json, Json]] = []
    for j, call in enumerate(message.get("tool_calls") or ()):
        try:
            found.append(
                (call, parse_arguments(call["function"]["arguments"], error, f"{at}.tool_calls[{j}].function.arguments"))
            )
        except ProxyError:
            if finish != "length":
                raise
    return found


MAGIC = (  # how the bytes begin → media type; enough of it that no text in words begins so
    (rb"\x89PNG\r\n\x1a\n", "image/png"),
    (rb"\xff\xd8\xff", "image/jpeg"),
    (rb"GIF8[79]a", "image/gif"),
    (rb"RIFF.{4}WEBP", "image/webp"),
    (rb"BM.{4}\0{4}", "image/bmp"),
    (rb"II\*\0|MM\0\*", "image/tiff"),
    (rb".{4}ftypavif", "image/avif"),
    (rb".{4}ftyphei", "image/heic"),
    (rb"%PDF-", "application/pdf"),
    (rb"RIFF.{4}WAVE", "audio/wav"),
    (rb"ID3[\2-\4]", "audio/mpeg"),
    (rb"fLaC", "audio/flac"),
    (rb"OggS\0", "audio/ogg"),
)


def sniff(data: str | bytes) -> str | None:
    """The media type that the first bytes (or their base64) tell, or None."""
    if isinstance(data, str):
        try:
            data = base64.b64decode(data[:32], validate=True)
        except (binascii.Error, ValueError):
            return None
    return next((kind for magic, kind in MAGIC if re.match(magic, data, re.DOTALL)), None)


def data_uri(url: str, param: str | None = None) -> tuple[str, str] | None:
    """A data URI → (media type, base64); None for any other url. The bytes beat a wrong declared type.

    Raises: BadRequest when it is cut short or not base64.
    """
    if url[:5].lower() != "data:":
        return None
    head, comma, data = url[5:].partition(",")
    if not comma:
        raise BadRequest("a data URI has no comma", param=param)
    declared, *options = head.split(";")
    if "base64" in [option.strip().lower() for option in options]:
        data = "".join(data.split()) if re.search(r"\s", data) else data
        if len(data) % 4:  # as browsers read it: the padding may be missing
            data = data.rstrip("=")
            data += "=" * (-len(data) % 4)
        if not data or not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", data):
            raise BadRequest("a data URI does not hold base64", param=param)
    else:
        data = base64.b64encode(unquote_to_bytes(data.encode("utf-8", "replace"))).decode()
    return sniff(data) or declared.strip().lower() or "text/plain", data


def tool_id(call_id: str, limit: int = 64) -> str:
    """A tool call's id as Anthropic and Responses take it: ^[a-zA-Z0-9_-]+$, at most `limit`; two ids never become one."""
    if call_id and len(call_id) <= limit and re.fullmatch(r"[a-zA-Z0-9_-]+", call_id):
        return call_id
    return f"{re.sub(r'[^a-zA-Z0-9_-]', '_', call_id)[: limit - 13]}_{_digest(call_id)[:12]}"


def nine_id(call_id: str) -> str:
    """A tool call's id as Mistral takes it: exactly nine letters and digits."""
    if re.fullmatch(r"[a-zA-Z0-9]{9}", call_id):
        return call_id
    return _digest(call_id)[:9]


def _digest(name: str) -> str:
    import hashlib  # here and not above: the start needs none of it

    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def made_id(cfg: Mapping[str, Any], n: int) -> str:
    """The id of an answer's n-th tool call, where the backend gives none: unique per call, the same for stream and answer."""
    return f"call_{cfg.get('id', '')}{n}"


def estimate_tokens(req: Mapping[str, Any]) -> int:
    """About how many tokens a canonical request's prompt has; never zero. Images count flat, base64 is not text."""
    total = 3
    for message in req.get("messages") or ():
        total += 4 + _weigh(message)
    return total + sum(8 + _weigh(tool) for tool in req.get("tools") or ())


IMAGE_TOKENS = 1000
SIGNATURES = frozenset(("signature", "thought_signature"))


def _weigh(value: Any) -> int:
    if isinstance(value, str):  # English has about four characters a token, other scripts three bytes
        return (len(value) + 3) // 4 if value.isascii() else len(value.encode("utf-8", "replace")) // 3 + 1
    if isinstance(value, list):
        return sum([_weigh(item) for item in value])
    if isinstance(value, dict):
        if value.get("type") in ("image_url", "input_audio", "file"):
            return IMAGE_TOKENS
        return sum([1 + len(str(name)) // 4 + _weigh(item) for name, item in value.items() if name not in SIGNATURES])
    return 1
