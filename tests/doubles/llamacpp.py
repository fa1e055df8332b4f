"""A strict stand-in for llama.cpp's server, where the real one (tests/backends/llama_server.py) cannot be told what to say.

Fields and types are those of tools/server/README.md (2026-11); an unknown field is refused, which the real one ignores, so
that no mapper's slip goes unseen. The last scenario named in the prompt decides: say hello, count up, run long,
use stop, say é (tokens that are halves of it), fail 401|404|429|500|503, too long, fail stream, cut stream; else
"Hello world!".
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NUMBER, ANY = (int, float), object
COMPLETION: dict[str, Any] = {
    **dict.fromkeys(("temperature", "dynatemp_range", "dynatemp_exponent", "top_p", "min_p", "typical_p"), NUMBER),
    **dict.fromkeys(("repeat_penalty", "presence_penalty", "frequency_penalty", "top_n_sigma"), NUMBER),
    **dict.fromkeys(("dry_multiplier", "dry_base", "xtc_probability", "xtc_threshold", "mirostat_tau", "mirostat_eta"), NUMBER),
    **dict.fromkeys(("top_k", "n_predict", "n_indent", "n_keep", "n_cmpl", "n_cache_reuse", "repeat_last_n", "seed"), int),
    **dict.fromkeys(("dry_allowed_length", "dry_penalty_last_n", "mirostat", "n_probs", "min_keep", "id_slot"), int),
    **dict.fromkeys(("t_max_predict_ms", "sse_ping_interval"), int),
    **dict.fromkeys(("stream", "ignore_eos", "cache_prompt", "return_tokens", "timings_per_token", "return_progress"), bool),
    **dict.fromkeys(("dry_sequence_breakers", "samplers", "response_fields", "lora"), list),
    "prompt": ANY,
    "stop": (str, list),
    "grammar": str,
    "json_schema": dict,
    "logit_bias": (list, dict),
    "model": str,
}
EMBEDDING = {"content": ANY, "input": ANY, "model": str, "embd_normalize": int, "encoding_format": str}
TOKENIZE = {"content": str, "add_special": bool, "parse_special": bool, "with_pieces": bool, "model": str}
DETOKENIZE = {"tokens": list, "model": str}
TEMPLATE = {"messages": list, "tools": list, "chat_template_kwargs": dict, "reasoning_effort": str, "model": str}
MESSAGE = {"role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content"}
MARKER = "<__media_double__>"
SCENARIOS = {
    "say hello": ["Hel", "lo", " wor", "ld", "!"],
    "count up": [" one", " two", " three", " four", " five", " six"],
    "run long": [" on"] * 40,
    "use stop": ["before", " ST", "OP", " after"],
    "say é": [b"\xc3", b"\xa9", b"\xc3", b"\xa9", "!"],
    "fail stream": ["half", " a", " thought"],
    "cut stream": ["half", " a", " thought"],
}
FAILURES = {
    "fail 401": (401, "authentication_error", "Invalid API Key"),
    "fail 404": (404, "not_found_error", "File Not Found"),
    "fail 429": (429, "unavailable_error", "Too many requests"),
    "fail 500": (500, "server_error", "Something went wrong"),
    "fail 503": (503, "unavailable_error", "Loading model"),
    "too long": (400, "exceed_context_size_error", "the request exceeds the available context size"),
}
CONTEXT = 4096


class Refusal(Exception):
    """What the server answers instead of a result."""

    def __init__(self, status: int, kind: str, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": {"code": status, "message": message, "type": kind, **extra}}


def wrong(message: str) -> Refusal:
    return Refusal(400, "invalid_request_error", message)


def check(body: Any, fields: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise wrong("the body is no object")
    for name, value in body.items():
        if name not in fields:
            raise wrong(f"unknown field {name!r}")
        if (isinstance(value, bool) and fields[name] not in (bool, ANY)) or not isinstance(value, fields[name]):
            raise wrong(f"Field '{name}': wrong type")
    return body


def prompts_in(prompt: Any) -> list[str]:
    """The texts of `prompt` in any of its shapes; a token is its number."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return [text for item in prompt for text in prompts_in(item)]
    if isinstance(prompt, list):
        return [" ".join(map(str, prompt))]
    if isinstance(prompt, dict) and set(prompt) <= {"prompt_string", "multimodal_data"}:
        media = prompt.get("multimodal_data", [])
        if prompt["prompt_string"].count(MARKER) != len(media):
            raise wrong("as many media as markers are needed")
        for item in media:
            try:
                base64.b64decode(item, validate=True)
            except binascii.Error:
                raise wrong("multimodal_data is not base64") from None
        return [prompt["prompt_string"]]
    if not isinstance(prompt, str):
        raise wrong('"prompt" elements must be a string, a list of tokens, or an object with a prompt_string')
    return [prompt]


def tokens_of(text: str) -> list[int]:
    return list(text.encode("utf-8", "surrogatepass"))


class Result:
    """One completion: its tokens, where a stop or the limit cuts them."""

    def __init__(self, index: int, prompt: str, body: dict[str, Any]) -> None:
        self.index, self.prompt, self.body = index, prompt, body
        scenario = max((name for name in SCENARIOS if name in prompt), key=prompt.rfind, default="say hello")
        tokens = [piece if isinstance(piece, bytes) else piece.encode() for piece in SCENARIOS[scenario]]
        limit = body.get("n_predict", -1)
        self.kind = "eos" if limit < 0 or limit > len(tokens) else "limit"
        self.tokens = tokens if limit < 0 else tokens[:limit]
        self.word = ""
        stops = body.get("stop", [])
        whole = b"".join(self.tokens)
        hits = [
            (whole.index(stop.encode()), stop)
            for stop in ([stops] if isinstance(stops, str) else stops)
            if stop.encode() in whole
        ]
        if hits:
            at, self.word = min(hits)
            self.kind, whole = "word", whole[:at]
        self.bytes = whole

    def partials(self) -> Iterator[dict[str, Any]]:
        """An event a token, but for a token that ends inside a code point: that one waits for the next."""
        sent, held = 0, b""
        for n, token in enumerate(self.tokens, 1):
            held += token[: max(len(self.bytes) - sent, 0)]
            sent += len(token)
            try:
                text = held.decode()
            except UnicodeDecodeError:
                continue
            probabilities = {"completion_probabilities": [self._probability(held)]} if self.body.get("n_probs") else {}
            counts = {"tokens_predicted": n, "tokens_evaluated": len(tokens_of(self.prompt))}
            yield {"index": self.index, "content": text, "tokens": [n], "stop": False, "id_slot": -1, **counts, **probabilities}
            held = b""

    def final(self, streams: bool) -> dict[str, Any]:
        predicted, evaluated = len(self.tokens) + (self.kind == "eos"), len(tokens_of(self.prompt))
        partials = list(self.partials())
        probabilities = [item for partial in partials for item in partial.get("completion_probabilities", [])]
        return {
            "index": self.index,
            "content": "" if streams else self.bytes.decode("utf-8", "replace"),
            "tokens": [],
            "id_slot": 0,
            "stop": True,
            "model": "double",
            "tokens_predicted": predicted,
            "tokens_evaluated": evaluated,
            "generation_settings": {name: value for name, value in self.body.items() if name != "prompt"},
            "prompt": self.prompt,
            "has_new_line": b"\n" in self.bytes,
            "truncated": False,
            "stop_type": self.kind,
            "stopping_word": self.word,
            "tokens_cached": evaluated + predicted - 1,
            "timings": {"cache_n": evaluated // 2, "prompt_n": evaluated - evaluated // 2, "predicted_n": predicted},
            **({"completion_probabilities": probabilities} if probabilities and not streams else {}),
        }

    def _probability(self, token: bytes) -> dict[str, Any]:
        chosen = {
            "id": token[0] if token else 0,
            "token": token.decode("utf-8", "replace"),
            "bytes": list(token),
            "logprob": -0.25,
        }
        others = [{"id": 7, "token": "?", "bytes": [63], "logprob": -1.5}]
        return {**chosen, "top_logprobs": [chosen, *others][: self.body["n_probs"]]}


def template(messages: list[Any]) -> str:
    """ChatML; a last assistant turn stays open, and each image or sound is a marker."""
    if not messages:
        raise wrong("no messages")
    out = ""
    for message in messages:
        if extra := set(message) - MESSAGE:
            raise wrong(f"unknown message fields {sorted(extra)}")
        if message["role"] not in ("system", "user", "assistant", "tool"):
            raise wrong(f"unknown role {message['role']}")
        out += f"<|im_start|>{message['role']}\n{content(message['content'])}<|im_end|>\n"
    return out.removesuffix("<|im_end|>\n") if messages[-1]["role"] == "assistant" else out + "<|im_start|>assistant\n"


def content(given: Any) -> str:
    if given is None or isinstance(given, str):
        return given or ""
    return "".join(part["text"] if part["type"] == "text" else medium(part) for part in given)


def medium(part: dict[str, Any]) -> str:
    if (part["type"] == "image_url" and part["image_url"]["url"].startswith("data:")) or part["type"] == "input_audio":
        return MARKER
    raise wrong("invalid content part")


def complete(body: Any) -> list[Result]:
    body = check(body, COMPLETION)
    if "prompt" not in body:
        raise wrong("key 'prompt' not found")
    prompts = prompts_in(body["prompt"])
    for prompt in prompts:
        failure = next((name for name in FAILURES if name in prompt), None)
        if failure:
            raise Refusal(*FAILURES[failure], **({"n_prompt_tokens": 9999, "n_ctx": CONTEXT} if failure == "too long" else {}))
    copies = body.get("n_cmpl", 1)
    return [Result(i, prompt, body) for i, prompt in enumerate(text for text in prompts for _ in range(copies))]


def embed(body: Any) -> list[dict[str, Any]]:
    body = check(body, EMBEDDING)
    given = body.get("input", body.get("content"))
    if not given:
        raise wrong('"input" or "content" must be provided')
    return [{"index": i, "embedding": [[len(text), 0.5, -1.0, float(i)]]} for i, text in enumerate(prompts_in(given))]


def tokenize(body: Any) -> dict[str, Any]:
    body = check(body, TOKENIZE)
    tokens = ([1] if body.get("add_special") else []) + tokens_of(body.get("content", ""))
    if body.get("with_pieces"):
        return {"tokens": [{"id": token, "piece": chr(token) if token < 128 else [token]} for token in tokens]}
    return {"tokens": tokens}


def detokenize(body: Any) -> dict[str, Any]:
    return {"content": bytes(check(body, DETOKENIZE)["tokens"]).decode("utf-8", "replace")}


def apply_template(body: Any) -> dict[str, Any]:
    return {"prompt": template(check(body, TEMPLATE)["messages"])}


ENTRY = {"id": "double", "aliases": ["double"], "tags": [], "object": "model", "created": 1, "owned_by": "llamacpp", "meta": {}}
GET = {
    "/health": {"status": "ok"},
    "/props": {"default_generation_settings": {"params": {}, "n_ctx": CONTEXT}, "total_slots": 1, "media_marker": MARKER},
    "/v1/models": {"models": [], "object": "list", "data": [ENTRY]},
}
POST = {
    "/tokenize": tokenize,
    "/detokenize": detokenize,
    "/apply-template": apply_template,
    "/embedding": embed,
    "/embeddings": embed,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self.server.double.requests.append((self.command, self.path, dict(self.headers), None))
        known = self.path in GET
        self._answer(200 if known else 404, GET.get(self.path) or Refusal(*FAILURES["fail 404"]).body)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            try:
                body = json.loads(raw)
            except ValueError:
                raise wrong("parse error at line 1") from None
            self.server.double.requests.append((self.command, self.path, dict(self.headers), body))
            if self.path == "/completion":
                self._complete(body)
            elif self.path in POST:
                self._answer(200, POST[self.path](body))
            else:
                raise Refusal(*FAILURES["fail 404"])
        except Refusal as refusal:
            self._answer(refusal.status, refusal.body)

    def _complete(self, body: Any) -> None:
        results = complete(body)
        if body.get("stream"):
            self._stream(results)
            return
        answers = [result.final(streams=False) for result in results]
        cut = 40 if "cut stream" in results[0].prompt else 0
        self._answer(200, answers if len(answers) > 1 or isinstance(body["prompt"], list) else answers[0], cut)

    def _stream(self, results: list[Result]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for i, result in enumerate(results):
            if i:
                self.wfile.write(b"data: null\n\n")  # as the real one does between two prompts
            for partial in result.partials():
                self._event(partial)
                if "cut stream" in result.prompt:
                    return
                if "fail stream" in result.prompt:
                    self._event(Refusal(500, "server_error", "the model broke").body)
                    return
            self._event(result.final(streams=True))

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: %s\n\n" % json.dumps(event, ensure_ascii=False).encode())

    def _answer(self, status: int, body: Any, cut: int = 0) -> None:
        data = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        if status == 429 or status == 503:
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(data[: len(data) - cut])
        self.close_connection = self.close_connection or bool(cut)


class LlamaCppDouble:
    """`with LlamaCppDouble() as double:` serves at `double.url`; `double.requests` holds (method, path, headers, body)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []

    def __enter__(self) -> LlamaCppDouble:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.double = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
