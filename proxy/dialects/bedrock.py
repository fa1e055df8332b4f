"""Amazon Bedrock's Converse API, as a backend: one form of conversation for the models of many makers.

The request's model is Bedrock's: a model id, an inference profile or an ARN. Decisions:
- Nobody is a client of this API here: boto3 signs its requests for AWS's own hosts. So `routes` is empty.
- `temperature` ends at 1: what is above is sent as 1 and reported. What a model takes beyond Converse's own fields (top_k,
  thinking) goes to additionalModelRequestFields, as the model's maker calls it; see EXTRA in `_bedrock_request.py`.
- Converse has no `tool_choice: none`: the tools are left out. Where the conversation has used tools they may not be, and the
  choice is reported as lost.
- A later system message is a user's text, as few models here take another; `system_policy: hoist` moves it to the front.
- Embeddings go to InvokeModel, in the form of Titan (one text a call) or Cohere. Tokens are estimated: CountTokens knows few
  models and no inference profiles. Models are those of the configuration: their list is on another host.
- The transport (`adapters/aws.py`) signs, takes the frames off a stream and raises its exceptions; an event is {name: payload}.
Source: botocore 1.44, bedrock-runtime 2023-09-30; docs.aws.amazon.com/bedrock (2026-11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Dialect, Event, Upstream
from proxy.dialects._answer import object_of
from proxy.dialects._bedrock_request import chatReqOpenAItoBedrock, family, model_name
from proxy.dialects.openai import (
    Json,
    assistant,
    chat_answer,
    chunk,
    count,
    embed_answer,
    embed_inputs,
    embedReqOpenAItoOpenAI,
    error_body,
    grammar,
    made_id,
    objects,
    text,
    tool_call,
    tool_delta,
    usage,
    usage_chunk,
)
from proxy.errors import BackendError, BadRequest

__all__ = ["DIALECT", "chatReqOpenAItoBedrock"]

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}  # any other is a stop
FAILED = {  # the model failed, and what it said is no answer
    "malformed_model_output": "the model's answer cannot be parsed",
    "malformed_tool_use": "the model's tool call cannot be parsed",
}


def _finish(reason: Any, calls: int) -> str:
    if text(reason) in FAILED:
        raise BackendError(FAILED[reason], code=reason)
    known = FINISH.get(text(reason), "stop")
    if known in ("stop", "tool_calls"):
        return "tool_calls" if calls else "stop"
    return known


def _matched(told: Json) -> str | None:
    """The stop that ended the answer, which the request asks for as a field of the model's own."""
    found = text(object_of(told.get("additionalModelResponseFields")).get("stop_sequence"))
    return found or None if told.get("stopReason") == "stop_sequence" else None


def _usage(told: Json) -> Json:
    """Converse's three input counts are disjoint; the hub's prompt_tokens is their sum."""
    read, written = count(told.get("cacheReadInputTokens")), count(told.get("cacheWriteInputTokens"))
    return usage(count(told.get("inputTokens")) + read + written, told.get("outputTokens"), read, written)


# --- whole answers


def chatAnsBedrocktoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """A Converse answer → a chat.completion.

    In: {"output": {"message"}, "stopReason", "usage", …}. Out: text joined, that of citations too, tool calls, all reasoning as
    reasoning_content and what is signed or redacted as thinking_blocks; other blocks are left out.
    Raises: BackendError when there is no message, or when the model failed. Source: ConverseResponse.
    """
    message = object_of(object_of(ip).get("output")).get("message")
    if not isinstance(message, dict):
        raise BackendError("the backend's answer has no message")
    told: list[str] = []
    reasoning: list[str] = []
    thinking: list[Json] = []
    calls: list[Json] = []
    for block in objects(message.get("content")):
        thought = object_of(block.get("reasoningContent"))
        told += [text(block.get("text"))]
        told += [text(piece.get("text")) for piece in objects(object_of(block.get("citationsContent")).get("content"))]
        if thought:
            said, marked = _thought(thought)
            reasoning.append(said)
            thinking += [marked] if marked else []
        use = block.get("toolUse")
        if isinstance(use, dict) and not use.get("type"):  # one with a type ran at the backend
            call_id = text(use.get("toolUseId")) or made_id(cfg, len(calls))
            calls.append(tool_call(call_id, text(use.get("name")), use.get("input")))
    whole = assistant("".join(told), calls, "".join(reasoning), thinking)
    spent = _usage(ip["usage"]) if isinstance(ip.get("usage"), dict) else None
    return chat_answer(cfg, whole, _finish(ip.get("stopReason"), len(calls)), spent, stop_sequence=_matched(ip))


def _thought(thought: Json) -> tuple[str, Json | None]:
    """A reasoning block's text, and the block as the hub keeps it where it is signed or redacted."""
    if "redactedContent" in thought:
        return "", {"type": "redacted_thinking", "data": text(thought["redactedContent"])}
    told = object_of(thought.get("reasoningText"))
    said, signature = text(told.get("text")), text(told.get("signature"))
    return said, {"type": "thinking", "thinking": said, "signature": signature} if signature else None


# --- streams


def chatStreamBedrocktoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """A ConverseStream → chunks.

    In: {"messageStart": …} to {"messageStop": …} and {"metadata": …}; events of unknown name are passed over. Out: chunks, the
    usage last. Raises: BackendError when the model failed. Source: ConverseStreamOutput.
    """
    reader = _Reader(cfg)
    for event in events:
        for name, told in event.items() if isinstance(event, dict) else ():
            read = READ.get(name)
            yield from read(reader, object_of(told)) if read else ()


class _Reader:
    """What a stream has told so far. Blocks have no start but those of tool calls, and are told apart by their index."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self.cfg = cfg
        self.slots: dict[int, int] = {}  # index of a tool call's block → its number among the calls
        self.written: set[int] = set()  # blocks of calls that have arguments
        self.signatures: dict[int, str] = {}  # of blocks of reasoning, in the pieces that came

    def start(self, told: Json) -> Iterator[Event]:
        yield chunk(self.cfg, {"role": "assistant", "content": ""})

    def block_start(self, told: Json) -> Iterator[Event]:
        use = object_of(told.get("start")).get("toolUse")
        if isinstance(use, dict) and not use.get("type"):
            slot = self.slots.setdefault(count(told.get("contentBlockIndex")), len(self.slots))
            call_id = text(use.get("toolUseId")) or made_id(self.cfg, slot)
            yield chunk(self.cfg, tool_delta(slot, call_id, text(use.get("name"))))

    def block_delta(self, told: Json) -> Iterator[Event]:
        index, delta = count(told.get("contentBlockIndex")), object_of(told.get("delta"))
        thought, use = object_of(delta.get("reasoningContent")), object_of(delta.get("toolUse"))
        self.signatures[index] = self.signatures.get(index, "") + text(thought.get("signature"))
        for name, said in (
            ("content", delta.get("text")),
            ("reasoning_content", thought.get("text")),
            ("redacted_thinking", thought.get("redactedContent")),
        ):
            if text(said):
                yield chunk(self.cfg, {name: said})
        if text(use.get("input")) and index in self.slots:
            self.written.add(index)
            yield chunk(self.cfg, tool_delta(self.slots[index], arguments=use["input"]))

    def block_stop(self, told: Json) -> Iterator[Event]:
        index = count(told.get("contentBlockIndex"))
        if self.signatures.get(index):
            yield chunk(self.cfg, {"reasoning_signature": self.signatures[index]})
        if index in self.slots and index not in self.written:
            self.written.add(index)
            yield chunk(self.cfg, tool_delta(self.slots[index], arguments="{}"))

    def stop(self, told: Json) -> Iterator[Event]:
        yield chunk(self.cfg, {}, _finish(told.get("stopReason"), len(self.slots)), stop_sequence=_matched(told))

    def metadata(self, told: Json) -> Iterator[Event]:
        if isinstance(told.get("usage"), dict):
            yield usage_chunk(self.cfg, _usage(told["usage"]))


READ: dict[str, Callable[[_Reader, Json], Iterator[Event]]] = {
    "messageStart": _Reader.start,
    "contentBlockStart": _Reader.block_start,
    "contentBlockDelta": _Reader.block_delta,
    "contentBlockStop": _Reader.block_stop,
    "messageStop": _Reader.stop,
    "metadata": _Reader.metadata,
}

# --- embeddings: InvokeModel, whose body is the model's own


def embedReqOpenAItoBedrock(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """An embeddings request → the body of InvokeModel for Titan or Cohere.

    Raises: BadRequest for token arrays, for several texts to Titan and for models of others. Source: Bedrock user guide,
    model parameters of Titan Text Embeddings and of Cohere Embed.
    """
    req = embedReqOpenAItoOpenAI(ip)
    texts, model = embed_inputs(req), model_name(req, cfg)
    if family(model) == "cohere.":
        return {"texts": texts, "input_type": "search_document"}
    if "titan-embed" not in model:
        raise BadRequest("this backend embeds with Titan and Cohere only", param="model")
    if len(texts) > 1:
        raise BadRequest("Titan embeds one text a call: send one string in input", param="input")
    return {"inputText": texts[0], **({"dimensions": req["dimensions"]} if "dimensions" in req else {})}


def embedAnsBedrocktoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """Titan's or Cohere's answer → the hub's embeddings. Raises: BackendError when there are none."""
    answer = object_of(ip)
    vectors = [answer["embedding"]] if "embedding" in answer else answer.get("embeddings")
    if isinstance(vectors, dict):  # Cohere's form by type
        vectors = vectors.get("float")
    if not isinstance(vectors, list) or not all(isinstance(vector, list) for vector in vectors):
        raise BackendError("the backend's answer has no embeddings")
    return embed_answer(cfg, vectors, answer.get("inputTextTokenCount"))


# --- errors

STATUS = {  # exception → status, where one comes within a stream
    "validation": 400,
    "throttling": 429,
    "modelnotready": 429,
    "internalserver": 500,
    "modelstreamerror": 502,
    "serviceunavailable": 503,
    "modeltimeout": 504,
}
MEANT = {408: 504, 424: 502}  # the model's timeout and failure are not the client's


def parse_error(status: int, body: Any) -> BackendError:
    """{"message"}, or a stream's exception with its name as "__type" → the facts; never raises."""
    told = object_of(body)
    name = text(told.get("__type")).rpartition("#")[2]
    known = STATUS.get(name.lower().removesuffix("exception"), status)
    said = [text(told.get(field)) for field in ("message", "Message", "originalMessage")]
    message = ": ".join(filter(None, [*said, text(body)])).strip()[:2000] or name or f"the backend answered {status}"
    return BackendError(message, status=MEANT.get(known, known), code=name or None)


DIALECT = Dialect(
    name="bedrock",
    tag="Bedrock",
    routes=(),
    backend={
        "chat": Upstream("/model/{model}/converse", "/model/{model}/converse-stream"),
        "embed": Upstream("/model/{model}/invoke"),
    },
    version="",
    error_body=error_body,  # the hub's, as its grammar: nobody reads them
    parse_error=parse_error,
    grammar=grammar,
    aws="bedrock",
)
