"""What a backend of the Responses API answers, read as the hub's answers and chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Event
from proxy.dialects._answer import (
    assistant,
    chat_answer,
    chunk,
    count,
    stream_error,
    text,
    tool_call,
    tool_delta,
    usage,
    usage_chunk,
)
from proxy.dialects._hub import Json, compact, objects
from proxy.dialects._seal import seal
from proxy.errors import BackendError


def chatAnsResponsestoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """A response object → chat.completion.

    Out: output texts joined; reasoning as reasoning_content, and as a sealed block where it came encrypted; calls as
    functions. Raises: BackendError for a response that failed or is not there. Source: openai SDK 3.54, Response.
    """
    _refuse_failed(ip)
    if not isinstance(ip.get("output"), list):
        raise BackendError("the backend's response has no output")
    parts: dict[str, list[str]] = {"text": [], "refusal": []}
    calls: list[Json] = []
    reasoning: list[str] = []
    blocks: list[Json] = []
    logprobs: list[Any] = []
    for item in objects(ip["output"]):
        kind = item.get("type")
        if kind == "message":
            for part in objects(item.get("content")):
                for name, pieces in parts.items():
                    pieces.append(text(part.get(name)))
                logprobs += objects(part.get("logprobs"))
        elif kind == "reasoning":
            reasoning.append(reasoning_text(item))
            blocks += _sealed(item, reasoning[-1])
        elif kind in ("function_call", "custom_tool_call"):
            calls.append(tool_call(_call_id(item), text(item.get("name")), _arguments(item)))
    message = assistant("".join(parts["text"]), calls, "".join(reasoning), blocks, "".join(parts["refusal"]))
    extra = {"logprobs": {"content": logprobs} if logprobs else None}
    return chat_answer(cfg, message, _finish(ip, cfg), _usage(ip), model=ip.get("model"), **extra)


def _refuse_failed(response: Any) -> None:
    if not isinstance(response, dict):
        raise BackendError("the backend's answer is not a response object")
    status = response.get("status")
    if response.get("error") or status in ("failed", "cancelled", "queued", "in_progress"):
        raise stream_error(response if response.get("error") else {"error": f"the backend's response is {status}"})


MIN_OUTPUT_TOKENS = 16  # OpenAI refuses a lower limit, so none is sent
REASONS = {"max_output_tokens": "length", "content_filter": "content_filter"}


def _finish(response: Json, cfg: Mapping[str, Any]) -> str:
    if response.get("status") != "incomplete":
        return "length" if _cut_unsaid(response, cfg) else "stop"
    details = response.get("incomplete_details")
    return REASONS.get(text(details.get("reason")) if isinstance(details, dict) else "", "length")


def _cut_unsaid(response: Json, cfg: Mapping[str, Any]) -> bool:
    """Whether the limit ended an answer of a server that cannot say so (llama.cpp): it has no incomplete_details at all."""
    request, spent = cfg.get("request"), response.get("usage")
    if "incomplete_details" in response or not isinstance(request, Mapping) or not isinstance(spent, dict):
        return False
    limit = count(request.get("max_completion_tokens") or request.get("max_tokens"))
    return limit > 0 and count(spent.get("output_tokens")) >= max(limit, MIN_OUTPUT_TOKENS)


def _usage(response: Json) -> Json | None:
    spent = response.get("usage")
    if not isinstance(spent, dict):
        return None
    details = [spent.get(f"{side}_tokens_details") for side in ("input", "output")]
    given, done = (found if isinstance(found, dict) else {} for found in details)
    cached, written = given.get("cached_tokens"), given.get("cache_write_tokens")
    return usage(spent.get("input_tokens"), spent.get("output_tokens"), cached, written, done.get("reasoning_tokens"))


def reasoning_text(item: Json) -> str:
    """The reasoning itself where it is given, else its summary."""
    for field, joint in (("content", ""), ("summary", "\n\n")):
        parts = item.get(field)
        said = [text(part.get("text")) for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        if any(said):
            return joint.join(said)
    return ""


def _sealed(item: Json, said: str) -> list[Json]:
    encrypted = item.get("encrypted_content")
    if not isinstance(encrypted, str) or not encrypted:
        return []
    signature = seal({"id": text(item.get("id")), "encrypted_content": encrypted})
    return [{"type": "thinking", "thinking": said, "signature": signature}]


def _call_id(item: Json) -> str:
    return text(item.get("call_id")) or text(item.get("id"))


def _arguments(item: Json) -> str:
    if item["type"] == "custom_tool_call":
        return compact({"input": text(item.get("input"))})
    return text(item.get("arguments"))


# --- streams: Responses → hub

DELTAS = {"response.output_text.delta": "content", "response.refusal.delta": "refusal"}
REASONING = {"response.reasoning_text.delta": "content", "response.reasoning_summary_text.delta": "summary"}


class _Reader:
    """What a stream of events has told so far, by item."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self.cfg = cfg
        self.model: Any = None
        self.said: dict[Any, str] = {}  # item → what of it was passed on
        self.source: dict[Any, tuple[str, Any]] = {}  # reasoning item → (content or summary, the part's index)
        self.slots: dict[Any, int] = {}
        self.finished = False

    def chunk(self, delta: Json, **fields: Any) -> Event:
        return chunk(self.cfg, delta, model=self.model, **fields)

    def key(self, event: Event) -> Any:
        """What names the item of an event; some servers leave one or the other out."""
        item = event.get("item")
        named = (item.get("id"), item.get("call_id")) if isinstance(item, dict) else (event.get("item_id"),)
        index = event.get("output_index")
        return next((name for name in named if isinstance(name, str) and name), index if isinstance(index, int) else None)

    def read(self, event: Event) -> Iterator[Event]:
        kind, delta, key = text(event.get("type")), text(event.get("delta")), self.key(event)
        if kind in DELTAS:
            self.said[key] = self.said.get(key, "") + delta
            found = event.get("logprobs")
            yield self.chunk({DELTAS[kind]: delta}, **({"logprobs": {"content": found}} if found else {}))
        elif kind in REASONING:
            yield from self.reasoning(key, REASONING[kind], event, delta)
        elif kind == "response.function_call_arguments.delta" and key in self.slots:
            self.said[key] += delta
            yield self.chunk(tool_delta(self.slots[key], arguments=delta))
        elif kind in ("response.output_item.added", "response.output_item.done") and isinstance(event.get("item"), dict):
            yield from self.item(key, event["item"], kind.endswith("done"))
        elif kind in ("response.completed", "response.incomplete"):
            yield from self.end(event.get("response"))

    def reasoning(self, key: Any, source: str, event: Event, delta: str) -> Iterator[Event]:
        part = event.get("summary_index" if source == "summary" else "content_index")
        told, last = self.source.setdefault(key, (source, part))
        if told != source:  # the reasoning itself came already: its summary would say it twice
            return
        joint = "\n\n" if source == "summary" and part != last else ""
        self.source[key] = (source, part)
        self.said[key] = self.said.get(key, "") + joint + delta
        yield self.chunk({"reasoning_content": joint + delta})

    def item(self, key: Any, item: Json, done: bool) -> Iterator[Event]:
        kind = item.get("type")
        if kind == "function_call" or (kind == "custom_tool_call" and done):
            yield from self.call(key, item, done)
        elif done and kind == "message" and key not in self.said:  # a server that sends no deltas
            for part in objects(item.get("content")):
                for field, name in (("text", "content"), ("refusal", "refusal")):
                    if text(part.get(field)):
                        yield self.chunk({name: part[field]})
        elif done and kind == "reasoning":
            said = reasoning_text(item)
            if said and key not in self.said:
                yield self.chunk({"reasoning_content": said})
            for block in _sealed(item, said):
                yield self.chunk({"reasoning_signature": block["signature"]})

    def call(self, key: Any, item: Json, done: bool) -> Iterator[Event]:
        if key not in self.slots:
            self.slots[key], self.said[key] = len(self.slots), ""
            yield self.chunk(tool_delta(self.slots[key], _call_id(item), text(item.get("name"))))
        whole = _arguments(item)
        if done and not self.said[key] and whole:
            yield self.chunk(tool_delta(self.slots[key], arguments=whole))

    def end(self, response: Any) -> Iterator[Event]:
        _refuse_failed(response)
        finish = _finish(response, self.cfg)
        yield self.chunk({}, finish="tool_calls" if finish == "stop" and self.slots else finish)
        spent = _usage(response)
        if spent is not None:
            yield usage_chunk(self.cfg, spent, model=self.model)


def chatStreamResponsestoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """The events of a streamed response → hub chunks. Raises: BackendError on `error` and response.failed.

    Events without sequence_number, output_index or deltas are read too (llama.cpp). Source: as chatStreamOpenAItoResponses.
    """
    reader = _Reader(cfg)
    for event in events:
        if not isinstance(event, dict):
            continue
        kind, response = text(event.get("type")), event.get("response")
        if kind == "error":
            raise stream_error({"error": event.get("error") or event})
        if kind == "response.failed":
            _refuse_failed(response if isinstance(response, dict) else {"status": "failed"})
        if kind == "response.created":
            reader.model = response.get("model") if isinstance(response, dict) else None
            yield reader.chunk({"role": "assistant", "content": ""})
            continue
        yield from reader.read(event)
