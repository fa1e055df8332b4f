"""A strict stand-in for text-generation-inference 3: refuses what its router refuses, answers what the prompt asks for.

Field names come from huggingface_hub's types, which are generated from TGI's OpenAPI; bounds from its published reference.
The last scenario named anywhere in the prompt wins: say hello, count up, run long, use stop, write json, fail 422|424|429|500,
error stream, cut stream.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from huggingface_hub import TextGenerationInputGenerateParameters

PARAMETERS = {field.name for field in fields(TextGenerationInputGenerateParameters)}
BOOLEANS = ("do_sample", "details", "decoder_input_details", "watermark")  # not nullable, unlike the rest
SCENARIOS = {
    "say hello": " Hello there, friend!",
    "count up": " one two three four five six seven eight",
    "run long": " on" * 40,
    "use stop": " before STOP after",
    "write json": '{"city": "Paris"}',
    "error stream": " about to",
    "cut stream": " cut off",
}
FAILURES = {
    "fail 422": (422, "Input validation error: `inputs` must have less than 8 tokens", "validation"),
    "fail 424": (424, "Request failed during generation: out of memory", "generation"),
    "fail 429": (429, "Model is overloaded", "overloaded"),
    "fail 500": (500, "Incomplete generation", "incomplete_generation"),
}
INFO = {"model_id": "tiny/tgi-double", "model_sha": None, "max_stop_sequences": 4, "max_best_of": 2, "version": "3.3.4"}
VALIDATION = "Input validation error: "


class Refusal(Exception):
    """What the router answers instead of text."""

    def __init__(self, status: int, message: str, kind: str) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, "error_type": kind}


def invalid(message: str) -> Refusal:
    return Refusal(422, VALIDATION + message, "validation")


def check(body: Any, stream: bool, root: bool) -> dict[str, Any]:
    """The parameters of a legal request. Raises Refusal."""
    if not isinstance(body, dict) or not isinstance(body.get("inputs"), str):
        raise invalid("missing field `inputs`")
    if extra := set(body) - {"inputs", "parameters"} - ({"stream"} if root else set()):
        raise invalid(f"unknown fields {sorted(extra)}")
    given = body.get("parameters", {})
    if not isinstance(given, dict) or (extra := set(given) - PARAMETERS):
        raise invalid(f"unknown parameters {given}")
    for name in BOOLEANS:
        if name in given and not isinstance(given[name], bool):
            raise invalid(f"`{name}`: expected a boolean")
    if "stop" in given and not (isinstance(given["stop"], list) and all(isinstance(stop, str) for stop in given["stop"])):
        raise invalid("`stop`: expected a sequence")
    bounds(given)
    if not body["inputs"]:
        raise invalid("`inputs` cannot be empty")
    if stream and (given.get("best_of") or 1) != 1:
        raise invalid("`best_of` != 1 is not supported when streaming tokens")
    if stream and given.get("decoder_input_details"):
        raise invalid("`decoder_input_details` == true is not supported when streaming tokens")
    return {name: value for name, value in given.items() if value is not None}


def bounds(given: dict[str, Any]) -> None:
    def bad(name: str, low: float, high: float = float("inf"), closed: bool = False) -> bool:
        value = given.get(name)
        if value is None:
            return False
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return not (low <= value <= high if closed else low < value < high)

    for name, low, high, closed in (
        ("temperature", 0, float("inf"), False),
        ("repetition_penalty", 0, float("inf"), False),
        ("frequency_penalty", -2, 2, True),
        ("top_p", 0, 1, False),
        ("typical_p", 0, 1, False),
        ("top_k", 0, float("inf"), False),
        ("max_new_tokens", 0, float("inf"), False),
        ("seed", 0, 2**64 - 1, True),
        ("top_n_tokens", 0, 5, True),
    ):
        if bad(name, low, high, closed):
            raise invalid(f"`{name}` is out of bounds")
    for name in ("top_k", "max_new_tokens", "seed", "top_n_tokens", "best_of"):
        if given.get(name) is not None and not isinstance(given[name], int):
            raise invalid(f"`{name}`: expected an integer")
    if len(given.get("stop", [])) > 4:
        raise invalid("`stop` supports up to 4 stop sequences")
    best_of, sampling = (
        given.get("best_of") or 1,
        any(given.get(name) for name in ("do_sample", "temperature", "top_k", "top_p")),
    )
    if best_of > 1 and not sampling:
        raise invalid("you must use sampling when `best_of` is > 1")
    if best_of > 1 and given.get("seed") is not None:
        raise invalid("`seed` must not be set when `best_of` > 1")
    check_grammar(given.get("grammar"))


def check_grammar(grammar: Any) -> None:
    if grammar is None:
        return
    if not isinstance(grammar, dict) or grammar.get("type") not in ("json", "regex") or set(grammar) != {"type", "value"}:
        raise invalid("grammar is not valid")
    if grammar["type"] == "json" and "properties" not in grammar["value"]:
        raise invalid("Grammar must have a 'properties' field")


def token(text: str, special: bool = False) -> dict[str, Any]:
    return {"id": 2 if special else 100 + len(text), "text": text, "logprob": -0.25, "special": special}


def generate(body: dict[str, Any], given: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Tokens and details of what the prompt asks for; the text keeps the stop string, as TGI's does."""
    prompt = body["inputs"]
    named = [name for name in (*FAILURES, *SCENARIOS) if name in prompt]
    wanted = max(named, key=prompt.rfind, default="say hello")
    if wanted in FAILURES:
        raise Refusal(*FAILURES[wanted])
    tokens, text, finish = [], "", "eos_token"
    for piece in re.findall(r"\s?\S+", SCENARIOS[wanted]):
        tokens.append(token(piece))
        text += piece
        if any(text.endswith(stop) for stop in given.get("stop", [])):
            finish = "stop_sequence"
            break
        if len(tokens) == given.get("max_new_tokens"):
            finish = "length"
            break
    if finish == "eos_token":
        tokens.append(token("</s>", special=True))
    details = {"finish_reason": finish, "generated_tokens": len(tokens), "seed": given.get("seed")}
    return tokens, {"text": text, "wanted": wanted, "input_length": len(prompt.split()), **details}


def whole(body: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    tokens, facts = generate(body, given)
    if facts["wanted"] in ("error stream", "cut stream"):
        raise Refusal(*FAILURES["fail 500"])
    text = (body["inputs"] if given.get("return_full_text") else "") + facts["text"]
    if not given.get("details") and not given.get("decoder_input_details"):
        return {"generated_text": text}
    asked = given.get("decoder_input_details")
    prefill = [{"id": 7, "text": word, "logprob": None} for word in body["inputs"].split()] if asked else []
    details = {name: facts[name] for name in ("finish_reason", "generated_tokens", "seed")}
    details |= {"prefill": prefill, "tokens": tokens}
    if given.get("top_n_tokens"):
        details["top_tokens"] = [[one] * given["top_n_tokens"] for one in tokens]
    return {"generated_text": text, "details": details}


def frames(body: dict[str, Any], given: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Events of a stream; None stands for a connection that breaks. Refusals come as an event, with status 200."""
    try:
        tokens, facts = generate(body, given)
    except Refusal as refusal:
        yield refusal.body
        return
    for index, one in enumerate(tokens, 1):
        last = index == len(tokens)
        frame = {"index": index, "token": one, "generated_text": None, "details": None}
        if given.get("top_n_tokens"):
            frame["top_tokens"] = [one] * given["top_n_tokens"]
        if last and facts["wanted"] == "error stream":
            yield FAILURES_EVENT
            return
        if last and facts["wanted"] == "cut stream":
            yield None
            return
        if last:
            frame["generated_text"] = (body["inputs"] if given.get("return_full_text") else "") + facts["text"]
            names = ("finish_reason", "generated_tokens", "seed", "input_length")
            frame["details"] = {name: facts[name] for name in names} if given.get("details") else None
        yield frame


FAILURES_EVENT = {"error": FAILURES["fail 424"][1], "error_type": FAILURES["fail 424"][2]}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that leaves is no fault
            super().handle_error(request, client_address)


class TGIDouble:
    """`with TGIDouble() as tgi:` serves on tgi.url; tgi.requests holds (method, path, headers, decoded body)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.server = Server(("127.0.0.1", 0), type("Handler", (Handler,), {"double": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> TGIDouble:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    double: TGIDouble
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.double.requests.append(("GET", self.path, dict(self.headers), None))
        if self.path == "/info":
            self.reply(200, INFO)
        elif self.path in ("/health", "/ping"):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.reply(404, {"error": "not found", "error_type": "not_found"})

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
        root = self.path == "/"
        if self.path == "/tokenize":
            check(body, stream=False, root=False)
            words = body["inputs"].split()
            self.reply(200, [{"id": 7, "text": word, "start": 0, "stop": len(word)} for word in words])
        elif self.path == "/generate_stream" or (root and isinstance(body, dict) and body.get("stream")):
            self.stream(body, root)
        elif self.path == "/generate" or root:
            answer = whole(body, check(body, stream=False, root=root))
            self.reply(200, [answer] if root else answer)
        else:
            self.reply(404, {"error": "not found", "error_type": "not_found"})

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, body: Any, root: bool) -> None:
        try:
            events: Iterator[Any] = frames(body, check(body, stream=True, root=root))
        except Refusal as refusal:
            events = iter([refusal.body])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            if event is None:
                self.close_connection = True
                return
            data = b"data:%s\n\n" % json.dumps(event).encode()  # no space, as axum writes it
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.write(b"0\r\n\r\n")
