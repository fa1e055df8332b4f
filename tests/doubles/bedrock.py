"""A strict stand-in for Bedrock's runtime: Converse, ConverseStream, and InvokeModel for embeddings.

It refuses a request whose signature is wrong, a body that botocore's model of the service does not know, and what the service
refuses beyond that. The scenario named last in the last user turn wins: say hello, call tool, call two tools, think first, use
stop, run long, guard this, malformed tool, fail 400|403|404|408|424|429|500|503, error stream, fail stream, cut stream, bend
stream, hang stream.
A signed reasoning block that comes back must be the one that was given.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from tests.doubles.aws import AwsDouble, Handler, Json, Refusal, check, event, fault, frame, invalid, shape_of

PATH = re.compile(r"/model/([^/]+)/(converse|converse-stream|invoke)")
CONVERSE = shape_of("bedrock-runtime", "Converse")
FAILURES = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
USAGE = {"inputTokens": 12, "outputTokens": 9, "totalTokens": 29, "cacheReadInputTokens": 5, "cacheWriteInputTokens": 3}
HELLO = "Hello there, friend! ✨"


def signature(text: str) -> str:
    return "sig" + hashlib.sha256(text.encode()).hexdigest()[:24]


def _thought(text: str) -> Json:
    return {"reasoningContent": {"reasoningText": {"text": text, "signature": signature(text)}}}


def _use(n: int, city: str) -> Json:
    return {"toolUse": {"toolUseId": f"tooluse_{n}", "name": "", "input": {"city": city} if city else {}}}


SCENARIOS: dict[str, tuple[list[Json], str]] = {  # → (content, stopReason)
    "say hello": ([{"text": HELLO}], "end_turn"),
    "call tool": ([{"text": "Let me look."}, _use(0, "Paris")], "tool_use"),
    "call two tools": ([_use(0, "Paris"), _use(1, "Rome")], "tool_use"),
    "call empty": ([_use(0, "")], "tool_use"),
    "think first": (
        [_thought("First this."), {"reasoningContent": {"redactedContent": "aGk="}}, {"text": "So."}],
        "end_turn",
    ),
    "use stop": ([{"text": "before STOP after"}], "end_turn"),
    "run long": ([{"text": "and so on and"}], "max_tokens"),
    "guard this": ([{"text": "Sorry, no."}], "guardrail_intervened"),
    "malformed tool": ([{"text": "<tool"}], "malformed_tool_use"),
    **dict.fromkeys(("error stream", "cut stream", "bend stream", "hang stream"), ([{"text": "about to fail"}], "end_turn")),
    "fail stream": ([{"text": "never said"}], "end_turn"),
}
FAILURE = re.compile(r"fail (4\d\d|500|503)")


# --- what is legal beyond the model


def legal(body: Any) -> Json:
    """A legal body of Converse. Raises Refusal."""
    check(body, CONVERSE, but=("modelId",))
    messages = body.get("messages", [])
    if not messages or messages[0]["role"] != "user":
        raise invalid("A conversation must start with a user message.")
    owed: list[str] = []
    for i, message in enumerate(messages):
        content = message["content"]
        if (i and message["role"] == messages[i - 1]["role"]) or message["role"] == "system":
            raise invalid("A conversation must alternate between user and assistant roles.")
        if not content:
            raise invalid(f"The content field in the Message object at messages.{i} is empty.")
        for block in content:
            _legal_block(block, message["role"], i)
        uses = [block["toolUse"]["toolUseId"] for block in content if "toolUse" in block]
        results = [block["toolResult"]["toolUseId"] for block in content if "toolResult" in block]
        if sorted(results) != sorted(owed):
            raise invalid(f"Expected toolResult blocks at messages.{i}.content for the following Ids: {owed}")
        owed = uses
    _legal_tools(body, any("toolUse" in block or "toolResult" in block for m in messages for block in m["content"]))
    _legal_documents(messages)
    for block in body.get("system", ()):
        _legal_text(block)
    return dict(body)


def _legal_text(block: Json) -> None:
    if "text" in block and not block["text"].strip():
        raise invalid("The text field in the ContentBlock object is blank.")


def _legal_block(block: Json, role: str, i: int) -> None:
    if len(block) != 1:
        raise invalid(f"messages.{i}: a content block has one field")
    _legal_text(block)
    kind = next(iter(block))
    if kind in ("toolUse", "reasoningContent") and role != "assistant":
        raise invalid(f"messages.{i}: {kind} belongs to the assistant")
    if kind in ("image", "document", "audio", "toolResult") and role != "user":
        raise invalid(f"messages.{i}: {kind} belongs to the user")
    result = block.get("toolResult", {})
    if result.get("status") == "error" and not result["content"]:
        raise invalid(f"messages.{i}: toolResult cannot be empty when status value is error.")
    for inner in result.get("content", ()):
        _legal_text(inner)
    thought = block.get("reasoningContent", {}).get("reasoningText")
    if thought and thought.get("signature") != signature(thought["text"]):
        raise invalid(f"messages.{i}: Invalid `signature` in `thinking` block")


def _legal_tools(body: Json, used: bool) -> None:
    tools = [tool["toolSpec"]["name"] for tool in body.get("toolConfig", {}).get("tools", ()) if "toolSpec" in tool]
    if used and not tools:
        raise invalid("The toolConfig field must be defined when using toolUse and toolResult content blocks.")
    if len(set(tools)) < len(tools):
        raise invalid("toolConfig: names must be unique")
    chosen = body.get("toolConfig", {}).get("toolChoice", {}).get("tool", {}).get("name")
    if chosen is not None and chosen not in tools:
        raise invalid("toolChoice names no tool")


def _legal_documents(messages: list[Json]) -> None:
    names = []
    for message in messages:
        documents = [block["document"] for block in message["content"] if "document" in block]
        if documents and not any("text" in block for block in message["content"]):
            raise invalid("a text block must stand beside a document")
        names += [document["name"] for document in documents]
    if any(re.search(r"[^a-zA-Z0-9\s()\[\]-]|\s\s", name) for name in names) or len(set(names)) < len(names):
        raise invalid("The document file name can only contain alphanumeric characters, …, and must be unique")


# --- what is answered


def scenario(body: Json) -> str:
    """What the texts of the last user turn ask for."""
    said = " ".join(block["text"] for block in body["messages"][-1]["content"] if "text" in block)
    if failure := FAILURE.search(said):
        status = int(failure[1])
        raise Refusal(status, FAILURES[status], f"failed with {status} as asked")
    found = sorted((said.rfind(name), len(name), name) for name in SCENARIOS if name in said)
    return found[-1][2] if found else "say hello"


def answered(body: Json) -> Json:
    """A Converse answer. Raises Refusal."""
    results = [block["toolResult"] for block in body["messages"][-1]["content"] if "toolResult" in block]
    if results:
        told = " ".join(block.get("text", "?") for result in results for block in result["content"])
        return _whole([{"text": f"The tool says: {told}"}], "end_turn")
    content, reason = SCENARIOS[scenario(body)]
    tools = [tool["toolSpec"]["name"] for tool in body.get("toolConfig", {}).get("tools", ()) if "toolSpec" in tool]
    blocks = [
        {"toolUse": {**block["toolUse"], "name": (tools or ["get_weather"])[0]}} if "toolUse" in block else block
        for block in content
    ]
    if "toolConfig" not in body and reason == "tool_use":
        return _whole([{"text": "I have no tools."}], "end_turn")
    answer = _whole(blocks, reason)
    said = blocks[0].get("text", "") if len(blocks) == 1 else ""
    stops = sorted((said.index(s), s) for s in body.get("inferenceConfig", {}).get("stopSequences", ()) if s in said)
    if stops:
        answer = _whole([{"text": said[: stops[0][0]]}], "stop_sequence")
        if "/stop_sequence" in body.get("additionalModelResponseFieldPaths", ()):
            answer["additionalModelResponseFields"] = {"stop_sequence": stops[0][1]}
    return answer


def _whole(content: list[Json], reason: str) -> Json:
    message = {"role": "assistant", "content": content}
    return {"output": {"message": message}, "stopReason": reason, "usage": USAGE, "metrics": {"latencyMs": 7}}


def events(answer: Json) -> Iterator[tuple[str, Json]]:
    """The stream of an answer, as the service cuts it."""
    yield "messageStart", {"role": "assistant"}
    for index, block in enumerate(answer["output"]["message"]["content"]):
        at = {"contentBlockIndex": index}
        if "toolUse" in block:
            use = block["toolUse"]
            yield "contentBlockStart", {**at, "start": {"toolUse": {name: use[name] for name in ("toolUseId", "name")}}}
        for delta in _deltas(block):
            yield "contentBlockDelta", {**at, "delta": delta}
        yield "contentBlockStop", at
    stop = {name: answer[name] for name in ("stopReason", "additionalModelResponseFields") if name in answer}
    yield "messageStop", stop
    yield "metadata", {"usage": answer["usage"], "metrics": {"latencyMs": 7}}


def _deltas(block: Json) -> Iterator[Json]:
    thought = block.get("reasoningContent", {})
    if "redactedContent" in thought:
        yield {"reasoningContent": thought}
    told = thought.get("reasoningText", {})
    for piece in _cut(told.get("text", "")):
        yield {"reasoningContent": {"text": piece}}
    if told.get("signature"):
        yield {"reasoningContent": {"signature": told["signature"]}}
    for piece in _cut(block.get("text", "")):
        yield {"text": piece}
    if block.get("toolUse", {}).get("input"):
        for piece in _cut(json.dumps(block["toolUse"]["input"])):
            yield {"toolUse": {"input": piece}}


def _cut(text: str) -> list[str]:
    return [text[i : i + 5] for i in range(0, len(text), 5)]


class BedrockDouble(AwsDouble):
    """See the module and `AwsDouble`. left: set when a client has left a stream that hangs."""

    service = "bedrock"

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.left = threading.Event()

    def answer(self, handler: Handler, path: str, headers: Json, data: bytes) -> None:
        found = PATH.fullmatch(path)
        if not found or headers.get("content-type") != "application/json":
            raise Refusal(404, "UnknownOperationException", f"no operation at {path}")
        model, operation, body = unquote(found[1]), found[2], self.decoded(data)
        check(model, CONVERSE.members["modelId"], "modelId")
        if operation == "invoke":
            handler.reply(200, embedded(model, body))
            return
        body = legal(body)
        if operation == "converse":
            handler.reply(200, answered(body))
        else:
            answer = answered(body)
            handler.stream(self._frames(answer, scenario(body), handler))

    def _frames(self, answer: Json, name: str, handler: Handler) -> Iterator[bytes | None]:
        if name == "fail stream":
            yield fault("throttlingException", {"message": "Too many tokens, please wait before trying again."})
            return
        for i, (kind, payload) in enumerate(events(answer)):
            sent = event(kind, {**payload, "p": "abcdefgh"})
            if i == 3 and name == "error stream":
                yield fault("modelStreamErrorException", {"message": "the model failed", "originalStatusCode": 500})
                return
            if i == 3 and name == "cut stream":
                yield sent[:20]
                yield None
                return
            if i == 3 and name == "hang stream":
                self._hang(handler)
                return
            yield sent[:-1] + bytes([sent[-1] ^ 1]) if i == 3 and name == "bend stream" else sent

    def _hang(self, handler: Handler) -> None:
        """Waits until the client has gone."""
        handler.close_connection = True
        handler.connection.settimeout(20)
        try:
            gone = not handler.connection.recv(1)
        except ConnectionError:  # it left what was sent unread
            gone = True
        if gone:
            self.left.set()


def embedded(model: str, body: Any) -> Json:
    """The answer of an embedding model. Raises Refusal for a body that it does not know."""
    if "titan-embed" in model:
        if not isinstance(body, dict) or set(body) - {"inputText", "dimensions", "normalize"} or not body.get("inputText"):
            raise invalid("Malformed input request, please reformat your input and try again.")
        if body.get("dimensions", 256) not in (256, 512, 1024):
            raise invalid("dimensions must be 256, 512 or 1024")
        return {"embedding": [len(body["inputText"]) + 0.5, 1.0], "inputTextTokenCount": 4}
    if not isinstance(body, dict) or set(body) - {"texts", "input_type", "truncate"} or "input_type" not in body:
        raise invalid("Malformed input request, please reformat your input and try again.")
    vectors = [[len(text) + 0.5, 1.0] for text in body["texts"]]
    return {"id": "e", "embeddings": vectors, "response_type": "embeddings_floats", "texts": body["texts"]}


ERROR_FRAME = frame(b"", message_type="error", error_code="InternalFailure", error_message="an internal error")
