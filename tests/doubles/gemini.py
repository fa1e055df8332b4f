"""A strict stand-in for generativelanguage.googleapis.com: refuses what Google refuses, answers what the last user turn wants.

Bodies are held against google-genai's own types with unknown fields forbidden, then against the rules that the
service applies beyond the shapes. Scenarios: say hello, think, call tool, call two tools, two parts, long, use stop, block,
malformed, fail 400|403|404|429|500|503, error stream, cut stream; anything else is echoed.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from google.genai import types
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

KEY = "gemini-key"
MODELS = ("gemini-2.5-flash", "gemini-3.5-flash", "gemini-embedding-001")
SIGNED = re.compile(r"gemini-(?:[3-9]|\d\d)")
UNSIGNED = "skip/thought/signature/validator"  # what stands for a signature where there never was one or it is lost
SIGNATURE = base64.b64encode(b"what the model really thought \xff\xfe\xfb").decode()  # with + and / in it
SAFE_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}")
LEVELS = ("MINIMAL", "LOW", "MEDIUM", "HIGH", "XHIGH")
DATA = ("text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode", "codeExecutionResult")
STATUS = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Generate(Strict):
    model: str | None = None
    contents: list[types.Content]
    system_instruction: types.Content | None = None
    tools: list[types.Tool] | None = None
    tool_config: types.ToolConfig | None = None
    generation_config: types.GenerationConfig | None = None
    safety_settings: list[types.SafetySetting] | None = None
    cached_content: str | None = None
    labels: dict[str, str] | None = None


class Count(Strict):
    contents: list[types.Content] | None = None
    generate_content_request: Generate | None = None


class Embed(Strict):
    model: str | None = None
    content: types.Content
    task_type: str | None = None
    title: str | None = None
    output_dimensionality: int | None = None


class Batch(Strict):
    requests: list[Embed]


ADAPTERS = {
    "generateContent": TypeAdapter(Generate),
    "streamGenerateContent": TypeAdapter(Generate),
    "countTokens": TypeAdapter(Count),
    "embedContent": TypeAdapter(Embed),
    "batchEmbedContents": TypeAdapter(Batch),
}


class Refusal(Exception):
    """What the service answers instead."""

    def __init__(self, code: int, message: str, details: list[Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        fault: dict[str, Any] = {"code": code, "message": message, "status": STATUS[code]}
        self.body = {"error": {**fault, "details": details} if details else fault}


def check_shape(operation: str, body: Any, by_name: bool = True) -> None:
    """Google reads snake_case too, and its own SDK sends some; `by_name=False` allows camelCase only."""
    try:
        ADAPTERS[operation].validate_json(json.dumps(body), by_alias=True, by_name=by_name)
    except ValidationError as fault:
        first = fault.errors()[0]
        where = ".".join(map(str, first["loc"]))
        violation = {"field": where, "description": first["msg"]}
        detail = {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}
        raise Refusal(400, f"Invalid JSON payload received. {where}: {first['msg']}", [detail]) from None


def need(fits: object, message: str) -> None:
    if not fits:
        raise Refusal(400, message)


def check_generate(body: dict[str, Any], model: str) -> None:
    check_contents(body["contents"], model)
    for part in body.get("systemInstruction", {}).get("parts", [{"text": ""}]):
        need("text" in part, "systemInstruction takes text only")
    declared = [item for tool in body.get("tools", ()) for item in tool.get("functionDeclarations", ())]
    for item in declared:
        need(SAFE_NAME.fullmatch(item.get("name", "")), "Invalid function name.")
        need(
            not {"parameters", "parametersJsonSchema"} <= item.keys(), "parameters and parametersJsonSchema exclude each other"
        )
        if "parameters" in item:
            need(item["parameters"].get("properties"), "parameters.properties: should be non-empty for OBJECT type")
            check_schema(item["parameters"])
    calling = body.get("toolConfig", {}).get("functionCallingConfig")
    need(not calling or declared, "Function calling config is set without function_declarations.")
    allowed = (calling or {}).get("allowedFunctionNames")
    need(not allowed or calling["mode"] == "ANY", "allowed_function_names needs mode ANY")
    need(set(allowed or ()) <= {item["name"] for item in declared}, "allowed_function_names must be declared")
    check_config(body.get("generationConfig", {}), model)


def check_contents(contents: list[dict[str, Any]], model: str) -> None:
    need(contents, "contents is not specified")
    before = 0  # function calls in the content before
    for i, content in enumerate(contents):
        need(content.get("role") in (None, "user", "model"), "Please use a valid role: user, model.")
        parts = content.get("parts") or []
        need(parts, f"contents[{i}].parts must not be empty.")
        for part in parts:
            need(
                len(part.keys() & set(DATA)) == 1,
                f"contents[{i}].parts: required oneof field 'data' must have one initialized field",
            )
        results = sum("functionResponse" in part for part in parts)
        need(
            before == results,
            "Please ensure that the number of function response parts is equal to the number of function call parts.",
        )
        before = sum("functionCall" in part for part in parts)
        if i:
            need(
                content.get("role") != contents[i - 1].get("role"),
                "Please ensure that multiturn requests alternate between user and model.",
            )
    if "gemini-3" in model:
        check_signatures(contents)


def check_signatures(contents: list[dict[str, Any]]) -> None:
    """Since the user last said something, every step's first call must have kept its signature."""
    for content in reversed(contents):
        parts = content["parts"]
        if content.get("role") != "model" and not any("functionResponse" in part for part in parts):
            return
        first = next((part for part in parts if "functionCall" in part), None)
        if first is not None:
            kept = first.get("thoughtSignature", "").replace("-", "+").replace("_", "/")  # the SDK writes the other alphabet
            need(kept in (SIGNATURE, UNSIGNED), "Function call is missing a thought_signature in functionCall parts.")


def check_schema(schema: dict[str, Any]) -> None:
    need(schema.get("type") or schema.get("anyOf"), "schema: type is missing")
    if str(schema.get("type")).upper() == "ARRAY":
        need(schema.get("items"), "items: missing field.")
    for inner in (
        *schema.get("properties", {}).values(),
        *schema.get("anyOf", ()),
        *([schema["items"]] if "items" in schema else ()),
    ):
        check_schema(inner)
    need(not schema.keys() & {"additionalProperties", "defs", "ref"}, "schema: unknown name")


def check_config(config: dict[str, Any], model: str) -> None:
    thinking = config.get("thinkingConfig", {})
    need(len(config.get("stopSequences", ())) <= 5, "stop_sequences: at most 5")
    need(config.get("maxOutputTokens", 1) >= 1, "max_output_tokens must be positive.")
    need(1 <= config.get("candidateCount", 1) <= 8, "candidate_count must be in the range 1 to 8.")
    need(0 <= config.get("temperature", 1) <= 2, "temperature must be in the range [0.0, 2.0].")
    need("logprobs" not in config or config.get("responseLogprobs"), "logprobs needs response_logprobs")
    need(
        not {"thinkingBudget", "thinkingLevel"} <= thinking.keys(),
        "You can only set only one of thinking budget and thinking level.",
    )
    need(thinking.get("thinkingLevel", "LOW") in LEVELS, "Invalid value at thinking_level")
    least, most = (128, 32768) if "pro" in model else (0, 24576)
    budget = thinking.get("thinkingBudget", -1)
    need("gemini-2" not in model or budget == -1 or least <= budget <= most, f"The thinking budget ({budget}) is invalid.")
    need(budget != 0 or not SIGNED.search(model), "Budget 0 is invalid. This model only works in thinking mode.")
    need("thinkingLevel" not in thinking or "gemini-2" not in model, "Thinking level is not supported for this model.")
    schema = config.keys() & {"responseSchema", "responseJsonSchema"}
    need(len(schema) < 2, "response_schema and response_json_schema exclude each other")
    need(
        not schema or config.get("responseMimeType") == "application/json",
        "response_mime_type must be application/json with a schema",
    )
    if "responseSchema" in config:
        check_schema(config["responseSchema"])


FAILURES = {
    "fail 400": Refusal(400, "The request is bad."),
    "fail 403": Refusal(403, "Your key lacks the permission."),
    "fail 404": Refusal(404, "models/nope is not found."),
    "fail 429": Refusal(
        429, "You exceeded your quota.", [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17.5s"}]
    ),
    "fail 500": Refusal(500, "An internal error has occurred."),
    "fail 503": Refusal(503, "The model is overloaded."),
}


def last_said(body: dict[str, Any]) -> str:
    return " ".join(part["text"] for part in body["contents"][-1]["parts"] if "text" in part)


def turn(body: dict[str, Any], model: str) -> tuple[list[dict[str, Any]], str]:
    """The parts of the answer, and its finishReason."""
    parts, said = body["contents"][-1]["parts"], last_said(body)
    responses = [part["functionResponse"] for part in parts if "functionResponse" in part]
    if responses:
        return [{"text": f"the tool said {json.dumps(responses[0]['response'])}"}], "STOP"
    names = [item["name"] for tool in body.get("tools", ()) for item in tool.get("functionDeclarations", ())]
    if names and "call t" in said:
        calls = [{"functionCall": {"name": name, "args": {"city": "Paris"}, "id": f"fc{n}"}} for n, name in enumerate(names)]
        calls = calls[: 2 if "call two" in said else 1]
        return [{**calls[0], "thoughtSignature": SIGNATURE}, *calls[1:]], "STOP"
    if "malformed" in said:
        return [], "MALFORMED_FUNCTION_CALL"
    if "use stop" in said:
        cuts = ["before STOP after".partition(stop)[0] for stop in body.get("generationConfig", {}).get("stopSequences", ())]
        return [{"text": min(cuts, key=len, default="before STOP after")}], "STOP"
    if "long" in said:
        return [{"text": "so much to"}], "MAX_TOKENS"
    hello = (
        [{"text": "Hello "}, {"text": "there!"}]
        if "two parts" in said
        else [{"text": f"Hello from {model}!" if "hello" in said else said}]
    )
    thoughts = body.get("generationConfig", {}).get("thinkingConfig", {}).get("includeThoughts") and "think" in said
    return [
        *([{"text": "Let me think.", "thought": True}] if thoughts else []),
        *hello,
        {"text": "", "thoughtSignature": SIGNATURE},
    ], "STOP"


def events(body: dict[str, Any], model: str) -> Iterator[dict[str, Any]]:
    """The answer as a stream tells it: a part an event, usage so far in each, the finish in the last."""
    head = {"modelVersion": model, "responseId": "resp-1"}
    prompt = {"promptTokenCount": 7}
    if "block" in last_said(body):
        yield {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": prompt, **head}
        return
    parts, finish = turn(body, model)
    for candidate in range(body.get("generationConfig", {}).get("candidateCount", 1)):
        for part in parts:
            yield {
                "candidates": [{"content": {"role": "model", "parts": [part]}, "index": candidate}],
                "usageMetadata": prompt,
                **head,
            }
        usage = {
            **prompt,
            "candidatesTokenCount": 5,
            "thoughtsTokenCount": 3,
            "cachedContentTokenCount": 2,
            "totalTokenCount": 15,
        }
        end = {"finishReason": finish, "index": candidate}
        if body.get("generationConfig", {}).get("responseLogprobs"):
            chosen = [{"token": part["text"], "tokenId": 7, "logProbability": -0.25} for part in parts if part.get("text")]
            end["logprobsResult"] = {"chosenCandidates": chosen}
        yield {"candidates": [end], "usageMetadata": usage, **head}


def whole(body: dict[str, Any], model: str) -> dict[str, Any]:
    merged: dict[int, dict[str, Any]] = {}
    answer: dict[str, Any] = {}
    for event in events(body, model):
        answer |= {name: value for name, value in event.items() if name != "candidates"}
        for candidate in event.get("candidates", ()):
            kept = merged.setdefault(candidate["index"], {"content": {"role": "model", "parts": []}})
            kept["content"]["parts"] += candidate.pop("content", {"parts": []})["parts"]
            kept |= candidate
    return {"candidates": list(merged.values()), **answer} if merged else answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serve(None)

    def do_POST(self) -> None:
        self.serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def serve(self, body: Any) -> None:
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        try:
            self.route(body)
        except Refusal as refusal:
            self.answer(refusal.body, refusal.code)

    def route(self, body: Any) -> None:
        path, _, query = self.path.partition("?")
        key = self.headers.get("x-goog-api-key") or parse_qs(query).get("key", [None])[0]
        if key is None:
            raise Refusal(403, "Method doesn't allow unregistered callers (callers without established identity).")
        if key != KEY:
            reason = {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
            }
            raise Refusal(400, "API key not valid. Please pass a valid API key.", [reason])
        found = re.fullmatch(r"/(?:v1|v1beta|v1alpha)/models(?:/([^/:]+))?(?::(\w+))?", urlsplit(path).path)
        if not found:
            raise Refusal(404, "Requested entity was not found.")
        model, operation = found.groups()
        if model and model not in MODELS:
            raise Refusal(404, f"models/{model} is not found for API version v1beta.")
        if body is None:
            listed = [{"name": f"models/{name}", "version": "001", "displayName": name} for name in MODELS]
            self.answer(next(item for item in listed if item["name"].endswith(model)) if model else {"models": listed})
            return
        check_shape(operation, body)
        getattr(self, f"op_{operation}")(camel(body), model, query)

    def op_generateContent(self, body: Any, model: str, query: str) -> None:
        self.prepare(body, model)
        self.answer(whole(body, model))

    def op_streamGenerateContent(self, body: Any, model: str, query: str) -> None:
        self.prepare(body, model)
        sse = parse_qs(query).get("alt") == ["sse"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if sse else "application/json; charset=UTF-8")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        said, listed = last_said(body), list(events(body, model))
        if "cut stream" in said:
            listed = listed[:1]
        if "error stream" in said:
            listed = [*listed[:1], Refusal(503, "The model is overloaded.").body]
        for i, event in enumerate(listed):
            data = json.dumps(event).encode()
            self.wfile.write(b"data: " + data + b"\r\n\r\n" if sse else (b"," if i else b"[") + data + b"\r\n")
        if not sse:
            self.wfile.write(b"]")

    def prepare(self, body: Any, model: str) -> None:
        check_generate(body, model)
        failure = FAILURES.get(next((name for name in FAILURES if name in last_said(body)), ""))
        if failure:
            raise failure

    def op_countTokens(self, body: Any, model: str, query: str) -> None:
        inner = body.get("generateContentRequest")
        need(
            (inner is None) != ("contents" not in body) or inner is None,
            "contents and generate_content_request exclude each other",
        )
        if inner is not None:
            need(inner.get("model") == f"models/{model}", "generate_content_request.model: unexpected model name format")
            check_generate(inner, model)
        told = json.dumps(inner or body["contents"])
        self.answer({"totalTokens": len(told) // 4 + 1})

    def op_embedContent(self, body: Any, model: str, query: str) -> None:
        self.answer({"embedding": {"values": vector(body)}})

    def op_batchEmbedContents(self, body: Any, model: str, query: str) -> None:
        for item in body["requests"]:
            need(
                item.get("model") == f"models/{model}",
                "BatchEmbedContentsRequest.requests[0].model: unexpected model name format",
            )
        self.answer({"embeddings": [{"values": vector(item)} for item in body["requests"]]})

    def answer(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=UTF-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


FREE = ("args", "response", "parameters", "parametersJsonSchema", "responseSchema", "responseJsonSchema", "labels")


def camel(value: Any) -> Any:
    """The body in camelCase, which the rules are written in; names that are the user's own stay."""
    if isinstance(value, list):
        return [camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    named = {(to_camel(name) if "_" in name else name): inner for name, inner in value.items()}
    return {name: inner if name in FREE else camel(inner) for name, inner in named.items()}


def vector(item: dict[str, Any]) -> list[float]:
    said = "".join(part["text"] for part in item["content"]["parts"])
    return [len(said) / 8, *[0.25] * (item.get("outputDimensionality", 4) - 1)]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    requests: list[tuple[str, str, dict[str, str], Any]]


class GeminiDouble:
    """`with GeminiDouble() as google:` serves on a free port of loopback until the block ends."""

    def __enter__(self) -> GeminiDouble:
        self.server = Server(("127.0.0.1", 0), Handler)
        self.requests = self.server.requests = []
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
