"""A strict stand-in for Ollama 0.13: refuses what its server refuses, answers what the last user message (or prompt) asks for.

Fields and types come from the ollama SDK's own models, plus what only api/types.go has (tool_call_id, a call's id, min_p).
After a tool result the answer repeats it. Scenarios: say hello, call tool, call two tools, think hard, use stop, count up,
run long, write json, fail 400|404|429|500, error stream, cut stream.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any

from ollama._types import ChatRequest, EmbeddingsRequest, EmbedRequest, GenerateRequest, Message, Options
from pydantic import BaseModel, ValidationError

SAYS = {
    "say hello": "Hello there, friend!",
    "count up": "one two three four five six seven eight",
    "run long": "on" + " on" * 39,
    "use stop": "before STOP after",
    "write json": '{"city": "Paris"}',
    "think hard": "Forty-two.",
    "call tool": "",
    "call two tools": "",
    "error stream": "about to fail",
    "cut stream": "cut off here",
}
FAILURES = {
    "fail 400": (400, '"tiny" does not support thinking'),
    "fail 404": (404, "model 'tiny' not found"),
    "fail 429": (429, "too many requests"),
    "fail 500": (500, "llama runner process has terminated"),
}
STAMP = "2026-11-01T10:00:00.123456789Z"
DETAILS = {"parent_model": "", "format": "gguf", "family": "tiny", "families": ["tiny"], "parameter_size": "1M"}
MODEL = {"name": "tiny:latest", "model": "tiny:latest", "modified_at": STAMP, "size": 1, "digest": "a" * 64, "details": DETAILS}
TIMES = dict.fromkeys(("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"), 1000)


class Refusal(Exception):
    """What the server answers instead of text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message}


def known(body: Any, model: type[BaseModel], *more: str) -> None:
    """The fields are those of the SDK's model, of its types. Raises Refusal."""
    if not isinstance(body, dict):
        raise Refusal(400, "missing request body")
    if extra := set(body) - set(model.model_fields) - set(more):
        raise Refusal(400, f"unknown fields {sorted(extra)}")
    try:
        model.model_validate({name: value for name, value in body.items() if name != "images"})  # a path there, base64 here
    except (ValidationError, ValueError) as fault:
        raise Refusal(400, str(fault)) from None


def check(body: Any, model: type[BaseModel]) -> None:
    """A legal request. Raises Refusal."""
    known(body, model)
    options = body.get("options")
    if options is not None:
        known(options, Options, "min_p")
        if isinstance(options.get("stop"), str):
            raise Refusal(400, 'option "stop" must be of type array')
    form = body.get("format")
    if form not in (None, "", "json") and not isinstance(form, dict):
        raise Refusal(400, f'invalid format: "{form}"')
    for image in body.get("images") or ():
        check_image(image)
    if model is GenerateRequest and body.get("raw") and (body.get("system") or body.get("template") or body.get("context")):
        raise Refusal(400, "raw mode does not support template, system, or context")
    for message in body.get("messages") or ():
        check_message(message)
    for tool in body.get("tools") or ():
        function = tool.get("function", {})
        if set(tool) != {"type", "function"} or set(function) - {"name", "description", "parameters"} or "name" not in function:
            raise Refusal(400, f"not a tool: {tool}")


def check_message(message: Any) -> None:
    known(message, Message, "tool_call_id")
    if message["role"] not in ("system", "user", "assistant", "tool") or not isinstance(message.get("content", ""), str):
        raise Refusal(400, f"not a message: {message}")
    for image in message.get("images") or ():
        check_image(image)
    for call in message.get("tool_calls") or ():
        if set(call) - {"id", "function"} or set(call["function"]) - {"index", "name", "arguments"}:
            raise Refusal(400, f"not a tool call: {call}")


def check_image(image: Any) -> None:
    try:
        base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise Refusal(400, "illegal base64 data at input byte 4") from None


def asked_for(said: str) -> str:
    named = [name for name in (*FAILURES, *SAYS) if name in said]
    wanted = max(named, key=said.rfind, default="say hello")
    if wanted in FAILURES:
        raise Refusal(*FAILURES[wanted])
    return wanted


def last_said(body: dict[str, Any]) -> tuple[str, str | None]:
    """The last user message, and the tool result that came after it."""
    messages = body.get("messages") or []
    said = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    return said, messages[-1]["content"] if messages and messages[-1]["role"] == "tool" else None


def pieces(text: str, options: dict[str, Any]) -> tuple[list[str], str]:
    """The text in tokens, and why it ended; a stop string is not part of it."""
    reason = "stop"
    for stop in options.get("stop") or ():
        text = text.partition(stop)[0]
    words = re.findall(r"\s?\S+|\s+$", text)
    limit = options.get("num_predict", -1)
    if 0 <= limit < len(words):
        words, reason = words[:limit], "length"
    return words, reason


def logprobs(word: str, body: dict[str, Any]) -> dict[str, Any]:
    if not body.get("logprobs"):
        return {}
    one = {"token": word, "logprob": -0.25}
    return {"logprobs": [{**one, "bytes": list(word.encode()), "top_logprobs": [one] * (body.get("top_logprobs") or 0)}]}


def lines(body: dict[str, Any], chat: bool) -> Iterator[dict[str, Any] | None]:
    """The lines of a stream; None stands for a connection that breaks."""
    said, result = last_said(body) if chat else (body.get("prompt", ""), None)
    wanted, options = "tool result" if result is not None else asked_for(said), body.get("options") or {}
    head = {"model": body["model"], "created_at": STAMP}

    def line(text: str, **more: Any) -> dict[str, Any]:
        told = {"message": {"role": "assistant", "content": text, **more}} if chat else {"response": text, **more}
        return {**head, **told, "done": False}

    words, reason = pieces(SAYS.get(wanted, f"The tool said {result}"), options)
    if wanted == "think hard" and body.get("think") is not False:
        yield line("", thinking="Let me ")
        yield line("", thinking="see.")
    for i, word in enumerate(words):
        yield {**line(word), **logprobs(word, body)}
        if wanted in ("cut stream", "error stream") and i == 0:
            yield None if wanted == "cut stream" else {"error": "an error was encountered while running the model"}
            return
    if wanted in ("call tool", "call two tools") and body.get("tools"):
        for i in range(1 if wanted == "call tool" else 2):
            function = body["tools"][min(i, len(body["tools"]) - 1)]["function"]
            call = {"function": {"index": i, "name": function["name"], "arguments": {"n": i, "city": "Paris"}}}
            yield line("", tool_calls=[call if i else {"id": "call_real", **call}])
    counted = {"prompt_eval_count": len(said.split()) + 5, "eval_count": len(words) or 1}
    yield {**line(""), "done": True, "done_reason": reason, **TIMES, **counted}


def whole(body: dict[str, Any], chat: bool) -> dict[str, Any]:
    """The same as one answer."""
    events = list(lines(body, chat))
    if events[-1] is None or "error" in events[-1]:
        raise Refusal(*FAILURES["fail 500"])
    told = [event for event in events if event]
    out = {**told[-1]}
    if listed := [item for event in told for item in event.get("logprobs", [])]:
        out["logprobs"] = listed
    if not chat:
        return {**out, "response": "".join(event["response"] for event in told)}
    message = {"role": "assistant", "content": "".join(event["message"]["content"] for event in told)}
    if thinking := "".join(event["message"].get("thinking", "") for event in told):
        message["thinking"] = thinking
    if calls := [call for event in told for call in event["message"].get("tool_calls", [])]:
        message["tool_calls"] = calls
    return {**out, "message": message}


def embed(body: dict[str, Any]) -> dict[str, Any]:
    inputs = [body["input"]] if isinstance(body["input"], str) else body["input"]
    vectors = [[float(len(text)), 0.5, -0.25, 1.0][: body.get("dimensions")] for text in inputs]
    counted = {"total_duration": 1, "load_duration": 1, "prompt_eval_count": sum(len(text.split()) for text in inputs)}
    return {"model": body["model"], "embeddings": vectors, **counted}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that leaves is no fault
            super().handle_error(request, client_address)


class OllamaDouble:
    """`with OllamaDouble() as ollama:` serves on ollama.url; ollama.requests holds (method, path, headers, decoded body)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"double": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> OllamaDouble:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    double: OllamaDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.double.requests.append(("GET", self.path, dict(self.headers), None))
        answers = {"/api/tags": {"models": [MODEL]}, "/api/version": {"version": "0.13.5"}, "/api/ps": {"models": []}}
        self.reply(200 if self.path in answers else 404, answers.get(self.path, {"error": "not found"}))

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        self.double.requests.append(("POST", self.path, dict(self.headers), body))
        try:
            self.route(body)
        except Refusal as refusal:
            self.reply(refusal.status, refusal.body)

    def route(self, body: Any) -> None:
        chat = self.path == "/api/chat"
        if chat or self.path == "/api/generate":
            check(body, ChatRequest if chat else GenerateRequest)
            if body.get("stream", True):
                self.stream(lines(body, chat))
            else:
                self.reply(200, whole(body, chat))
        elif self.path == "/api/embed":
            check(body, EmbedRequest)
            self.reply(200, embed(body))
        elif self.path == "/api/embeddings":
            check(body, EmbeddingsRequest)
            self.reply(200, {"embedding": embed({**body, "input": body["prompt"]})["embeddings"][0]})
        elif self.path == "/api/show":
            self.reply(
                200, {"details": DETAILS, "model_info": {"general.architecture": "tiny"}, "capabilities": ["completion"]}
            )
        else:
            self.reply(404, {"error": "not found"})

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, events: Iterator[Any]) -> None:
        first = next(events)  # a refusal still has a status of its own
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in chain([first], events):
            if event is None:
                self.close_connection = True
                return
            data = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")
