"""Messages ⇄ chat completions, whole and streamed; see anthropic.py for what is decided and why."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Event
from proxy.dialects._anthropic_request import chatReqAnthropictoOpenAI, thinking_of
from proxy.dialects._seal import signature_of, signatures_before
from proxy.dialects.openai import (
    Json,
    assistant,
    calls_of,
    canonical_answer,
    canonical_chunks,
    chat_answer,
    chunk,
    compact,
    count,
    estimate_tokens,
    made_id,
    model_of,
    stream_error,
    text,
    tool_call,
    tool_delta,
    tool_id,
    usage,
    usage_chunk,
)
from proxy.errors import BackendError

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",  # a server tool's loop took a break: nothing failed, and only Messages can say "go on"
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
STOP_REASON = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def _usage_in(value: Json) -> Json:
    """Anthropic's three input counts are disjoint; the hub's prompt_tokens is their sum."""
    cached, created = count(value.get("cache_read_input_tokens")), count(value.get("cache_creation_input_tokens"))
    thought = _object(value, "output_tokens_details").get("thinking_tokens")
    return usage(count(value.get("input_tokens")) + cached + created, value.get("output_tokens"), cached, created, thought)


def _usage_out(value: Json | None, estimate: int = 1) -> Json:
    """The hub's usage → Anthropic's. Where a backend tells none, clients still need about how full their context is."""
    if value is None:
        return {"input_tokens": estimate, "output_tokens": 0}
    details, done = value["prompt_tokens_details"], value["completion_tokens_details"]
    cached, created = details["cached_tokens"], details.get("cache_creation_tokens", 0)
    out = {
        "input_tokens": max(value["prompt_tokens"] - cached - created, 0),
        "cache_creation_input_tokens": created,
        "cache_read_input_tokens": cached,
        "output_tokens": value["completion_tokens"],
    }
    return {**out, "output_tokens_details": {"thinking_tokens": done["reasoning_tokens"]}} if done["reasoning_tokens"] else out


def _message(cfg: Mapping[str, Any], model: Any, content: list[Json], usage: Json) -> Json:
    head = {"id": f"msg_{cfg.get('id', '')}", "type": "message", "role": "assistant", "model": model_of(cfg, model)}
    return {**head, "content": content, "stop_reason": None, "stop_sequence": None, "usage": usage}


def _stop(finish: str | None, matched: Any, refused: bool) -> Json:
    if isinstance(matched, str) and finish == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": matched}
    reason = "refusal" if refused and finish == "stop" else STOP_REASON.get(finish or "stop", "end_turn")
    return {"stop_reason": reason, "stop_sequence": None}


def estimate_of(cfg: Mapping[str, Any]) -> int:
    """About how many tokens the prompt has that an answer belongs to; never zero."""
    made, request = cfg.get("made"), cfg.get("request")
    if not (isinstance(made, dict) and made.get("messages")):
        made = chatReqAnthropictoOpenAI(request) if isinstance(request, dict) and request.get("messages") else None
    return estimate_tokens(made) if made else 1


# --- whole answers


def chatAnsAnthropictoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """A Message → a chat.completion.

    In: a body of POST /v1/messages. Out: text joined, tool calls, all thinking as reasoning_content and what is signed or
    redacted as thinking_blocks; other blocks are left out. Raises: BackendError when there is no content.
    Source: anthropic SDK 2.12, Message.
    """
    content = ip.get("content") if isinstance(ip, dict) else None
    if not isinstance(content, list):
        raise (
            stream_error(ip)
            if isinstance(ip, dict) and ip.get("error")
            else BackendError("the backend's answer has no content")
        )
    told: list[str] = []
    reasoning: list[str] = []
    thinking: list[Json] = []
    calls: list[Json] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            told.append(text(block.get("text")))
        elif kind == "thinking":
            reasoning.append(text(block.get("thinking")))
            if text(block.get("signature")):
                thinking.append({"type": "thinking", "thinking": reasoning[-1], "signature": block["signature"]})
        elif kind == "redacted_thinking":
            thinking.append({"type": kind, "data": text(block.get("data"))})
        elif kind == "tool_use":
            call_id = text(block.get("id")) or made_id(cfg, len(calls))
            calls.append(tool_call(call_id, text(block.get("name")), block.get("input")))
    message = assistant("".join(told), calls, "".join(reasoning), thinking)
    finish, matched = FINISH.get(text(ip.get("stop_reason")), "stop"), text(ip.get("stop_sequence")) or None
    spent = _usage_in(ip["usage"]) if isinstance(ip.get("usage"), dict) else None
    return chat_answer(cfg, message, finish, spent, model=ip.get("model"), stop_sequence=matched)


def chatAnsOpenAItoAnthropic(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """A chat.completion → a Message.

    In: an answer of any OpenAI-like backend. Out: thinking (unsigned reasoning with an empty signature), text, tool calls that
    the limit did not cut, each behind its sealed signature if it has one; of several choices the first.
    Raises: BackendError for an error, no choice, or arguments that are no JSON object.
    """
    answer = canonical_answer(ip)
    if not answer["choices"]:
        raise BackendError("the backend's answer has no choices")
    choice = answer["choices"][0]
    message = choice["message"]
    content = thinking_of(message)
    if not content and message.get("reasoning_content"):
        content = [{"type": "thinking", "thinking": message["reasoning_content"], "signature": ""}]
    said = (message["content"] or "") + text(message.get("refusal"))
    if said:
        content.append({"type": "text", "text": said})
    held = signature_of(message)
    for call, given in calls_of(message, choice["finish_reason"]):
        named = {"id": tool_id(call["id"]), "name": call["function"]["name"]}
        content += [{"type": "redacted_thinking", "data": data} for data in signatures_before(call, named["id"], held)]
        content.append({"type": "tool_use", **named, "input": given})
        held = ""
    spent = _usage_out(answer["usage"]) if "usage" in answer else _usage_out(None, estimate_of(cfg))
    stop = _stop(choice["finish_reason"], choice.get("stop_sequence"), bool(message.get("refusal")))
    return _message(cfg, answer.get("model"), content, spent) | stop


# --- streams


def chatStreamAnthropictoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """A Messages stream → chunks.

    In: events from message_start to message_stop; pings and events of unknown type are passed over. Out: chunks; usage, the
    newest of each count, comes last. Raises: BackendError on an error event. Source: anthropic SDK 2.12, RawMessageStreamEvent.
    """
    reader = _Reader(cfg)
    for event in events:
        kind = event.get("type") if isinstance(event, dict) else None
        read = READ.get(kind) if isinstance(kind, str) else None
        delta = read(reader, event) if read else None
        if delta is not None:
            yield chunk(cfg, delta, model=reader.model)
        elif reader.news:
            reader.news = False
            yield chunk(cfg, {}, reader.finish, model=reader.model, stop_sequence=reader.matched)
    if reader.finish and reader.usage:
        yield usage_chunk(cfg, _usage_in(reader.usage), model=reader.model)


SAYS = {  # type of a block or of a delta → (its field, the hub's name of that)
    "text": ("text", "content"),
    "text_delta": ("text", "content"),
    "thinking": ("thinking", "reasoning_content"),
    "thinking_delta": ("thinking", "reasoning_content"),
}


class _Reader:
    """What a Messages stream has told so far. A block that other APIs do not have is open like any other, and says nothing."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self.cfg = cfg
        self.model: Any = None
        self.usage: Json = {}
        self.kind = ""  # of the open block
        self.signature = ""  # of the open thinking block, in the pieces that came
        self.calls = 0
        self.written = False  # whether the open tool call has arguments
        self.finish: str | None = None
        self.matched: str | None = None
        self.news = False  # the finish was just told

    def message_start(self, event: Event) -> Json:
        message = _object(event, "message")
        self.model = message.get("model")
        self._spend(message)
        return {"role": "assistant", "content": ""}

    def block_start(self, event: Event) -> Json | None:
        block = _object(event, "content_block")
        self.kind, self.signature = text(block.get("type")), text(block.get("signature"))
        if self.kind == "redacted_thinking":
            return {"redacted_thinking": text(block.get("data"))}
        if self.kind != "tool_use":
            return _said(block)
        given = block.get("input")
        self.written = bool(given)
        self.calls += 1
        call_id = text(block.get("id")) or made_id(self.cfg, self.calls - 1)
        return tool_delta(self.calls - 1, call_id, text(block.get("name")), compact(given) if given else "")

    def block_delta(self, event: Event) -> Json | None:
        delta = _object(event, "delta")
        kind = delta.get("type")
        if kind == "input_json_delta" and self.kind == "tool_use" and text(delta.get("partial_json")):
            self.written = True
            return tool_delta(self.calls - 1, arguments=delta["partial_json"])
        if kind == "signature_delta":
            self.signature += text(delta.get("signature"))
        return _said(delta)

    def block_stop(self, event: Event) -> Json | None:
        kind, self.kind = self.kind, ""
        if kind == "thinking" and self.signature:
            return {"reasoning_signature": self.signature}
        return tool_delta(self.calls - 1, arguments="{}") if kind == "tool_use" and not self.written else None

    def message_delta(self, event: Event) -> None:
        self._spend(event)
        delta = _object(event, "delta")
        reason = text(delta.get("stop_reason"))
        if reason and self.finish is None:
            known = FINISH.get(reason, "stop")
            self.finish = "tool_calls" if known == "stop" and self.calls else known
            self.matched = text(delta.get("stop_sequence")) or None
            self.news = True

    def error(self, event: Event) -> None:
        raise stream_error(event)

    def _spend(self, event: Json) -> None:
        """Counts are cumulative, and a later event may leave out what an earlier one told."""
        spent = _object(event, "usage")
        self.usage = {**self.usage, **{name: value for name, value in spent.items() if value is not None}}


def _object(event: Json, name: str) -> Json:
    value = event.get(name)
    return value if isinstance(value, dict) else {}


def _said(piece: Json) -> Json | None:
    """The text or thinking in a block or a delta, if there is any."""
    kind = piece.get("type")
    field, name = SAYS.get(kind, ("", "")) if isinstance(kind, str) else ("", "")
    said = text(piece.get(field))
    return {name: said} if said else None


READ: dict[str, Callable[[_Reader, Event], Json | None]] = {
    "message_start": _Reader.message_start,
    "content_block_start": _Reader.block_start,
    "content_block_delta": _Reader.block_delta,
    "content_block_stop": _Reader.block_stop,
    "message_delta": _Reader.message_delta,
    "error": _Reader.error,
}


def chatStreamOpenAItoAnthropic(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """Chunks → a Messages stream.

    In: the stream of any OpenAI-like backend; of several choices the first. Out: events from message_start, whose input_tokens
    are an estimate, to message_delta with the exact usage and message_stop; without a finish in the input it ends before them.
    Raises: BackendError on an error event. Source: platform.claude.com/docs, Streaming messages.
    """
    writer = _Writer()
    estimate, finish, matched, spent, refused = 0, None, None, None, False
    for event in canonical_chunks(events):
        if not estimate:
            estimate = estimate_of(cfg)
            start = _message(cfg, event.get("model"), [], _usage_out(None, estimate))
            yield {"type": "message_start", "message": start}
        spent = event.get("usage", spent)
        for choice in event["choices"]:
            if choice["index"] == 0:
                yield from writer.take(choice["delta"])
                refused = refused or bool(choice["delta"].get("refusal"))
                finish = choice["finish_reason"] or finish
                matched = choice.get("stop_sequence", matched)
    if finish is None:
        return
    yield from writer.end(cut=finish == "length")
    yield {"type": "message_delta", "delta": _stop(finish, matched, refused), "usage": _usage_out(spent, estimate)}
    yield {"type": "message_stop"}


# Messages has one block open at a time, while chunks may weave the fragments of parallel calls. So blocks stand in a queue, in
# the order in which they began. The first is open, and what comes for it goes out at once; what comes for another one
# waits there. The first is closed when something else has begun and it is whole: text and thinking are whole then, a tool
# call is when its arguments are a JSON object, to which nothing can be added. At the end all are whole.


class _Block:
    def __init__(self, start: Json, call: int | None = None) -> None:
        self.start = start
        self.call = call  # slot of a tool call
        self.waiting: list[Json] = []
        self.arguments: list[str] = []
        self.ended = False

    def whole(self) -> bool:
        if self.call is None or self.ended:
            return True
        if self.arguments and self.arguments[-1].rstrip().endswith("}"):  # else there is nothing to parse yet
            try:
                self.ended = isinstance(json.loads("".join(self.arguments)), dict)
            except (ValueError, RecursionError):
                return False
        return self.ended


class _Writer:
    def __init__(self) -> None:
        self.index = 0
        self.queue: deque[_Block] = deque()
        self.calls: dict[int, _Block] = {}
        self.held = ""  # the signature of the text

    def take(self, delta: Json) -> Iterator[Event]:
        """A chunk's delta → events."""
        if text(delta.get("reasoning_content")):
            yield from self._say("thinking", "thinking", delta["reasoning_content"])
        if isinstance(delta.get("reasoning_signature"), str):
            yield from self._say("thinking", "signature", delta["reasoning_signature"])
            self.queue[-1].ended = True
        if isinstance(delta.get("redacted_thinking"), str):
            yield from self._begin(_Block({"type": "redacted_thinking", "data": delta["redacted_thinking"]}))
        said = text(delta.get("content")) + text(delta.get("refusal"))
        if said:
            yield from self._say("text", "text", said)
        self.held = signature_of(delta) or self.held
        for call in delta.get("tool_calls", ()):
            yield from self._call(call)

    def end(self, cut: bool) -> Iterator[Event]:
        """Everything that waits, and the last close. `cut`: the limit ended the answer, perhaps inside a call's arguments."""
        while self.queue:
            block = self.queue[0]
            if block.arguments and not cut and not block.whole():
                raise BackendError("the arguments of a tool call are not a JSON object")
            block.ended = True
            yield from self._close()

    def _say(self, kind: str, field: str, piece: str) -> Iterator[Event]:
        last = self.queue[-1] if self.queue else None
        if last is None or last.start["type"] != kind or last.ended:
            last = _Block(dict(STARTS[kind]))
            yield from self._begin(last)
        yield from self._send(last, {"type": f"{field}_delta", field: piece})

    def _call(self, call: Json) -> Iterator[Event]:
        slot, written = call["index"], call["function"]["arguments"]
        block = self.calls.get(slot)
        if block is None:
            start = {"type": "tool_use", "id": tool_id(call["id"]), "name": call["function"]["name"], "input": {}}
            for data in signatures_before(call, start["id"], self.held):
                yield from self._begin(_Block({"type": "redacted_thinking", "data": data}))
            self.held = ""
            block = self.calls[slot] = _Block(start, slot)
            yield from self._begin(block)
        if not written or (block.ended and not written.strip()):
            return
        if block.ended:
            raise BackendError("the backend added arguments to a tool call that was whole")
        block.arguments.append(written)
        yield from self._send(block, {"type": "input_json_delta", "partial_json": written})
        if len(self.queue) > 1:
            yield from self._advance()

    def _begin(self, block: _Block) -> Iterator[Event]:
        self.queue.append(block)
        if len(self.queue) == 1:
            yield {"type": "content_block_start", "index": self.index, "content_block": block.start}
        else:
            yield from self._advance()

    def _send(self, block: _Block, delta: Json) -> Iterator[Event]:
        if block is self.queue[0]:
            yield {"type": "content_block_delta", "index": self.index, "delta": delta}
        else:
            block.waiting.append(delta)

    def _advance(self) -> Iterator[Event]:
        while len(self.queue) > 1 and self.queue[0].whole():
            yield from self._close()

    def _close(self) -> Iterator[Event]:
        """The first block ends, and the next one opens with what waits there."""
        self.queue.popleft()
        yield {"type": "content_block_stop", "index": self.index}
        self.index += 1
        if self.queue:
            following = self.queue[0]
            yield {"type": "content_block_start", "index": self.index, "content_block": following.start}
            for delta in following.waiting:
                yield {"type": "content_block_delta", "index": self.index, "delta": delta}


STARTS = {"text": {"type": "text", "text": ""}, "thinking": {"type": "thinking", "thinking": "", "signature": ""}}
