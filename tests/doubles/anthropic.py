"""A strict stand-in for Anthropic's API: refuses what the service refuses, answers what the last user message asks for.

Shapes come from the anthropic SDK's own types, with unknown fields forbidden; the rest from the published rules of the API.
The scenario named last in the conversation's last user text wins: say hello, call tool, call two tools, think first,
search web, stop here, use stop, run long, refuse this, pause turn, fail 400|401|429|500|529, error stream, cut stream.
A thinking block that comes back must be the one that was given: its signature belongs to its text.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Union
from urllib.parse import parse_qs

import anthropic.types
from anthropic.types import message_create_params
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.system_message_param import SystemMessageParam
from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

Json = dict[str, Any]

VERSIONS = ("2023-06-01", "2026-10-21")
OLD_FIELDS = {"temperature": (0, 1), "top_p": (0, 1), "top_k": (0, 10**9)}  # only version 2023-06-01 has them
BETA_FIELDS = ("context_management", "mcp_servers", "output_format")
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
MODELS = [
    {"type": "model", "id": "claude-opus-4-8", "display_name": "Claude Opus 4.8", "created_at": "2026-05-28T00:00:00Z"},
    {"type": "model", "id": "claude-haiku-4-5", "display_name": "Claude Haiku 4.5", "created_at": "2025-10-01T00:00:00Z"},
]


class Refusal(Exception):
    """What the service answers instead of a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.body = {"type": "error", "error": {"type": ERRORS[status], "message": message}, "request_id": "req_double"}


# --- what is legal


def _forbid_extras() -> None:
    """pydantic ignores unknown keys of a TypedDict unless told otherwise; the SDK's own exceptions (schemas) stay open."""
    for module in list(sys.modules.values()):
        if not (module.__name__ or "").startswith("anthropic.types.") or ".beta" in module.__name__:
            continue
        for kind in vars(module).values():
            if is_typeddict(kind) and not hasattr(kind, "__pydantic_config__"):
                kind.__pydantic_config__ = {"extra": "forbid"}


_forbid_extras()
BLOCKS: TypeAdapter[Any] = TypeAdapter(list[anthropic.types.ContentBlockParam])
SYSTEM: TypeAdapter[Any] = TypeAdapter(SystemMessageParam)
CREATE: TypeAdapter[Any] = TypeAdapter(
    Union[message_create_params.MessageCreateParamsStreaming, message_create_params.MessageCreateParamsNonStreaming]  # noqa: UP007
)
COUNT: TypeAdapter[Any] = TypeAdapter(MessageCountTokensParams)


def _drained(value: Any) -> None:
    """pydantic checks an Iterable only when it is walked."""
    if isinstance(value, dict):
        for item in value.values():
            _drained(item)
    elif not isinstance(value, (str, bytes)) and hasattr(value, "__iter__"):
        for item in value:
            _drained(item)


def _valid(adapter: TypeAdapter[Any], value: Any, at: str) -> None:
    try:
        _drained(adapter.validate_python(value, strict=False))
    except ValidationError as fault:
        first = fault.errors()[0]
        raise Refusal(400, f"{at}{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from None


def check(body: Any, headers: Json, adapter: TypeAdapter[Any]) -> Json:
    """A legal request. Raises Refusal."""
    if not isinstance(body, dict):
        raise Refusal(400, "the body must be an object")
    old = headers["anthropic-version"] == "2023-06-01"
    for name, (low, high) in OLD_FIELDS.items():
        if name in body and not (old and isinstance(body[name], (int, float)) and low <= body[name] <= high):
            raise Refusal(400, f"{name}: not permitted, or out of range")
    hidden = (*OLD_FIELDS, *(BETA_FIELDS if "anthropic-beta" in headers else ()))
    plain = {name: value for name, value in body.items() if name not in hidden}
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "messages: at least one message is required")
    _valid(adapter, {**plain, "messages": []}, "")
    _check_messages(messages)
    _check_tools(body)
    if body.get("max_tokens", 1) < 0 or not all(stop.strip() for stop in body.get("stop_sequences", ())):
        raise Refusal(400, "max_tokens must not be negative, stop_sequences must contain non-whitespace")
    thinking = body.get("thinking", {})
    if thinking.get("type") == "enabled" and not 1024 <= thinking["budget_tokens"] < body.get("max_tokens", 10**9):
        raise Refusal(400, "thinking.budget_tokens must be at least 1024 and less than max_tokens")
    _check_model(body, thinking)
    _check_schema(body.get("output_config", {}).get("format", {}).get("schema"))
    return body


CLAUDE = re.compile(r"claude-[a-z]+-(\d+)(?:-(\d)(?!\d))?")
UNENFORCED = ("minimum", "maximum", "multipleOf", "minLength", "maxLength", "maxItems", "oneOf", "patternProperties")


def _check_model(body: Json, thinking: Json) -> None:
    """What depends on the generation: sampling, budgets of thinking."""
    found = CLAUDE.match(body["model"])
    number = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
    thinks = thinking.get("type") in ("enabled", "adaptive")
    if number >= (4, 7) and (body.keys() & OLD_FIELDS.keys() or thinking.get("type") == "enabled"):
        raise Refusal(400, "`temperature` is deprecated for this model; thinking.type.enabled is not supported")
    if number >= (4, 1) and {"temperature", "top_p"} <= body.keys():
        raise Refusal(400, "`temperature` and `top_p` cannot both be specified for this model.")
    if found and thinks and (body.get("temperature", 1) != 1 or "top_k" in body or body.get("top_p", 1) < 0.95):
        raise Refusal(400, "`temperature` may only be set to 1 when thinking is enabled.")
    if found and thinks and body.get("tool_choice", {}).get("type") in ("any", "tool"):
        raise Refusal(400, "Thinking may not be enabled when tool_choice forces tool use.")


def _check_schema(schema: Any) -> None:
    """Of structured output: objects are closed, and no constraint that a grammar cannot enforce."""
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        raise Refusal(
            400, "output_config.format.schema: For 'object' type, 'additionalProperties' must be explicitly set to false"
        )
    if schema.keys() & set(UNENFORCED) or schema.get("minItems", 0) > 1:
        raise Refusal(400, "output_config.format.schema: a property is not supported")
    for name in ("properties", "$defs", "definitions"):
        for inner in schema.get(name, {}).values():
            _check_schema(inner)
    for inner in (schema.get("items"), *schema.get("anyOf", ()), *schema.get("allOf", ())):
        _check_schema(inner)


def _check_tools(body: Json) -> None:
    names = [tool.get("name") for tool in body.get("tools", ())]
    if "tool_choice" in body and not names:
        raise Refusal(400, "tool_choice may only be specified while providing tools")
    if body.get("tool_choice", {}).get("type") == "tool" and body["tool_choice"]["name"] not in names:
        raise Refusal(400, "tool_choice names a tool that is not provided")
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", name) for name in names if name):
        raise Refusal(400, "tools: names must be unique and of letters, digits, _ and -")


def _check_messages(messages: list[Any]) -> None:
    owed: list[str] = []  # ids of calls whose results must come now
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant", "system") or message.keys() != {"role", "content"}:
            raise Refusal(400, f"messages.{i}: must have role and content")
        if role == "system":
            _valid(SYSTEM, message, f"messages.{i}.")
            _check_place(messages, i)
            continue
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        _valid(BLOCKS, blocks, f"messages.{i}.content.")
        _check_blocks(blocks, role, i)
        if role == "user":
            results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
            if sorted(results) != sorted(owed) or any(block["type"] != "tool_result" for block in blocks[: len(results)]):
                raise Refusal(
                    400, f"messages.{i}: tool_result blocks must come first, one for each tool_use of the turn before"
                )
            owed = []
        elif owed:
            raise Refusal(400, f"messages.{i}: tool_use blocks without tool_result")
        else:
            owed = [block["id"] for block in blocks if block["type"] == "tool_use"]


def _check_place(messages: list[Any], i: int) -> None:
    if i == 0 or messages[i - 1]["role"] != "user":
        raise Refusal(400, f"messages.{i}: role 'system' must follow a 'user' message")
    if i + 1 < len(messages) and messages[i + 1]["role"] != "assistant":
        raise Refusal(400, f"messages.{i}: role 'system' must precede an 'assistant' message or end the array")


def _check_blocks(blocks: list[Json], role: str, i: int) -> None:
    if not blocks:
        raise Refusal(400, f"messages.{i}: content must not be empty")
    for block in blocks:
        kind = block["type"]
        if kind == "text" and not block["text"].strip():
            raise Refusal(400, f"messages.{i}: text content blocks must contain non-whitespace text")
        if kind == "tool_use" and not re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"]):
            raise Refusal(400, f"messages.{i}: tool_use.id must match ^[a-zA-Z0-9_-]+$")
        if kind == "thinking" and block["signature"] != signature(block["thinking"]):
            raise Refusal(400, f"messages.{i}: invalid signature in thinking block")
        if kind == "redacted_thinking" and "mooltiproxy" in block["data"]:
            raise Refusal(400, f"messages.{i}: invalid data in redacted_thinking block")
        if kind in ("thinking", "redacted_thinking", "tool_use") and role != "assistant":
            raise Refusal(400, f"messages.{i}: {kind} blocks belong to the assistant")
        if kind in ("image", "document", "tool_result") and role != "user":
            raise Refusal(400, f"messages.{i}: {kind} blocks belong to the user")


def signature(thinking: str) -> str:
    return "sig" + hashlib.sha256(thinking.encode()).hexdigest()[:24]


# --- what is answered

USAGE = {"input_tokens": 12, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 5, "output_tokens": 9}


def _said(text: str) -> Json:
    return {"type": "text", "text": text}


def _thought(text: str) -> Json:
    return {"type": "thinking", "thinking": text, "signature": signature(text)}


SEARCH = [
    {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "weather"}},
    {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []},
    _said("It is sunny."),
]
SCENARIOS: dict[str, tuple[list[Json], Json]] = {  # → (content, what else the message says)
    "say hello": ([_said("Hello there, friend! ✨")], {}),
    "call tool": ([_said("Let me look."), {"type": "tool_use", "name": "", "input": {"city": "Paris"}}], {}),
    "call two tools": ([{"type": "tool_use", "name": "", "input": {"city": c}} for c in ("Paris", "Rome")], {}),
    "think first": ([_thought("First this."), _thought(""), {"type": "redacted_thinking", "data": "aGk="}, _said("So.")], {}),
    "search web": (SEARCH, {}),
    "stop here": ([_said("before ")], {"stop_reason": "stop_sequence", "stop_sequence": "STOP"}),
    "use stop": ([_said("before STOP after")], {}),
    "run long": ([_said("and so on and")], {"stop_reason": "max_tokens"}),
    "refuse this": ([_said("No.")], {"stop_reason": "refusal"}),
    "pause turn": (SEARCH[:2], {"stop_reason": "pause_turn"}),
    "error stream": ([_said("about to fail")], {}),
    "cut stream": ([_said("about to be cut")], {}),
}
FAILURE = re.compile(r"fail (400|401|429|500|529)")


def scenario(body: Json) -> str:
    """The scenario that the last text of the last user turn names."""
    content = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
    texts = [content] if isinstance(content, str) else [b["text"] for b in content if b["type"] == "text"]
    asked = texts[-1] if texts else "say hello"
    failure = FAILURE.search(asked)
    if failure:
        raise Refusal(int(failure[1]), f"failed with {failure[1]} as asked")
    found = sorted((asked.rfind(name), len(name), name) for name in SCENARIOS if name in asked)
    return found[-1][2] if found else "say hello"


def answer(body: Json) -> Json:
    """The message that the scenario gives. Raises Refusal."""
    content, said = SCENARIOS[scenario(body)]
    tools = [tool["name"] for tool in body.get("tools", ())] or ["get_weather"]
    blocks = [
        {**block, "id": f"toolu_{n}", "name": tools[0]} if block["type"] == "tool_use" else block
        for n, block in enumerate(content)
    ]
    reason = "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn"
    head = {"id": "msg_double", "type": "message", "role": "assistant", "model": body["model"], "content": blocks}
    return _stopped({**head, "stop_reason": reason, "stop_sequence": None, "usage": USAGE, **said}, body)


def _stopped(message: Json, body: Json) -> Json:
    """The message as far as the first stop sequence in its one text."""
    text = message["content"][0].get("text", "") if len(message["content"]) == 1 else ""
    found = sorted((text.index(stop), stop) for stop in body.get("stop_sequences", ()) if stop in text)
    if not found:
        return message
    at, stop = found[0]
    return {**message, "content": [_said(text[:at])], "stop_reason": "stop_sequence", "stop_sequence": stop}


STREAMED = {"text": ("text", "text_delta"), "thinking": ("thinking", "thinking_delta")}


def events(message: Json) -> Iterator[Json]:
    """The stream of a message, as the service cuts it."""
    spent = {**message["usage"], "output_tokens": 1}
    yield {
        "type": "message_start",
        "message": {**message, "content": [], "stop_reason": None, "stop_sequence": None, "usage": spent},
    }
    yield {"type": "ping"}
    for index, block in enumerate(message["content"]):
        start, deltas = _pieces(block)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {name: message[name] for name in ("stop_reason", "stop_sequence")}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": message["usage"]["output_tokens"]}}
    yield {"type": "message_stop"}


def _pieces(block: Json) -> tuple[Json, list[Json]]:
    kind = block["type"]
    if kind in ("tool_use", "server_tool_use"):
        written = json.dumps(block["input"])
        cuts = ["", *(written[i : i + 7] for i in range(0, len(written), 7))] if block["input"] else []
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": cut} for cut in cuts]
    if kind not in STREAMED:
        return block, []
    field, delta = STREAMED[kind]
    cuts = [block[field][i : i + 5] for i in range(0, len(block[field]), 5)]
    deltas: list[Json] = [{"type": delta, field: cut} for cut in cuts]
    if "signature" in block:
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    return {**block, field: "", **({"signature": ""} if "signature" in block else {})}, deltas


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("content-length", 0))))

    def _serve(self, data: bytes | None) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = None
        try:
            body = json.loads(data) if data is not None else None
            self.server.double.requests.append((self.command, self.path, headers, body))
            self._route(self.path.partition("?")[0], headers, body)
        except Refusal as refusal:
            self._json(refusal.status, refusal.body)
        except ValueError:
            self._json(400, Refusal(400, "the body is not JSON").body)

    def _route(self, path: str, headers: Json, body: Any) -> None:
        if "x-api-key" not in headers and not headers.get("authorization", "").startswith("Bearer "):
            raise Refusal(401, "x-api-key header is required")
        if headers.get("anthropic-version") not in VERSIONS:
            raise Refusal(400, "anthropic-version: header is required")
        if (self.command, path) == ("POST", "/v1/messages"):
            self._message(check(body, headers, CREATE))
        elif (self.command, path) == ("POST", "/v1/messages/count_tokens"):
            self._json(200, {"input_tokens": len(json.dumps(check(body, headers, COUNT))) // 4})
        elif (self.command, path) == ("GET", "/v1/models"):
            self._models(parse_qs(self.path.partition("?")[2]))
        else:
            raise Refusal(404, "Not found")

    def _models(self, query: dict[str, list[str]]) -> None:
        limit, known = int(query.get("limit", ["20"])[0]), self.server.double.models
        if not 1 <= limit <= 1000:
            raise Refusal(400, "limit: must be between 1 and 1000")
        page = known[:limit]
        more = len(page) < len(known)
        self._json(200, {"data": page, "has_more": more, "first_id": page[0]["id"], "last_id": page[-1]["id"]})

    def _message(self, body: Json) -> None:
        message = answer(body)
        if not body.get("stream"):
            self._json(200, message)
            return
        self.close_connection = True
        self.send_response(200)
        for name, value in (("content-type", "text/event-stream; charset=utf-8"), ("connection", "close")):
            self.send_header(name, value)
        self.end_headers()
        name = scenario(body)
        for i, event in enumerate(events(message)):
            if i == 4 and name == "cut stream":
                return
            if i == 4 and name == "error stream":
                event = Refusal(529, "Overloaded").body
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            if event["type"] == "error":
                return

    def _json(self, status: int, body: Json) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("request-id", "req_double")
        if status == 429:
            self.send_header("retry-after", "7")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    double: AnthropicDouble


class AnthropicDouble:
    """`with AnthropicDouble() as double:` serves on `double.url`; `double.requests` has (method, path, headers, body)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Json, Any]] = []
        self.models = MODELS
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.double = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> AnthropicDouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
