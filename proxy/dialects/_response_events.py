"""The event stream of the Responses API, written from the hub's chunks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Event
from proxy.dialects._answer import count, model_of, text
from proxy.dialects._hub import Json, tool_id
from proxy.dialects._response_tools import Tool, call_item, registry
from proxy.dialects._seal import seal, signature_of, signatures_before
from proxy.dialects._stream import canonical_chunks

ECHOED: Json = {  # request fields that every response repeats, and what they are when absent
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "auto",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def response_body(cfg: Mapping[str, Any], status: str, output: list[Json], model: Any = None, **fields: Any) -> Json:
    """A response object; `fields` override what it echoes of the request."""
    request = cfg.get("request")
    asked: Mapping[str, Any] = request if isinstance(request, Mapping) else {}
    echoed = {name: default if asked.get(name) is None else asked[name] for name, default in ECHOED.items()}
    return {
        "id": f"resp_{cfg.get('id', '')}",
        "object": "response",
        "created_at": cfg.get("now", 0),
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model_of(cfg, model),
        "output": output,
        "previous_response_id": None,
        "usage": None,
        **echoed,
        **fields,
    }


def usage_of(hub: Json | None) -> Json | None:
    """The hub's usage → the Responses API's."""
    if hub is None:
        return None
    prompt, done = hub.get("prompt_tokens_details") or {}, hub.get("completion_tokens_details") or {}
    cached, written = count(prompt.get("cached_tokens")), count(prompt.get("cache_creation_tokens"))
    return {
        "input_tokens": count(hub.get("prompt_tokens")),
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "output_tokens": count(hub.get("completion_tokens")),
        "output_tokens_details": {"reasoning_tokens": count(done.get("reasoning_tokens"))},
        "total_tokens": count(hub.get("prompt_tokens")) + count(hub.get("completion_tokens")),
    }


INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
TEXTS = {"content": "output_text", "refusal": "refusal"}  # delta field → type of the message's part


class _Call:
    """One tool call while its fragments come; `index` is None for a call that is shown only whole."""

    def __init__(self, tool: Tool, call_id: str) -> None:
        self.tool = tool
        self.call_id = call_id
        self.pieces: list[str] = []
        self.index: int | None = None


class _Writer:
    """Items are opened in the order in which the chunks begin them. A message or reasoning item is closed when something
    else begins, function calls when the answer ends, because their fragments may interleave. Calls of other tools are
    shown whole at the end: their arguments must be taken apart first.
    """

    def __init__(self, cfg: Mapping[str, Any], model: Any) -> None:
        self.cfg = cfg
        self.model = model
        self.tools = registry(cfg.get("request"))
        self.number = -1
        self.output: list[Json] = []
        self.kind = ""  # of the open item: message, reasoning or none
        self.part = ""  # of the open message: output_text or refusal
        self.parts: list[Json] = []
        self.pieces: list[str] = []
        self.logprobs: list[Any] = []
        self.calls: dict[int, _Call] = {}
        self.held = ""  # the signature of the text
        self.finish: str | None = None

    def event(self, kind: str, **fields: Any) -> Event:
        self.number += 1
        return {"type": f"response.{kind}", "sequence_number": self.number, **fields}

    def _item_id(self, prefix: str, index: int) -> str:
        return f"{prefix}_{self.cfg.get('id', '')}{index}"

    def _here(self, prefix: str) -> Json:
        """Where an event of the open item belongs; message and reasoning items are the last of the output while open."""
        index = self.index
        return {"item_id": self._item_id(prefix, index), "output_index": index}

    def _added(self, item: Json) -> Event:
        self.output.append(item)
        self.index = len(self.output) - 1
        return self.event("output_item.added", output_index=self.index, item=item)

    def _done(self, index: int, item: Json) -> Event:
        self.output[index] = item
        return self.event("output_item.done", output_index=index, item=item)

    def start(self) -> Iterator[Event]:
        for kind in ("created", "in_progress"):
            yield self.event(kind, response=response_body(self.cfg, "in_progress", [], self.model))

    def add(self, choice: Json) -> Iterator[Event]:
        delta = choice["delta"]
        if delta.get("reasoning_content"):
            yield from self._reasoning(delta["reasoning_content"])
        if isinstance(delta.get("reasoning_signature"), str):
            if self.kind != "reasoning":
                yield from self._open_reasoning()
            block = {"type": "thinking", "thinking": "".join(self.pieces), "signature": delta["reasoning_signature"]}
            yield from self._close(sealed=seal(block))
        if isinstance(delta.get("redacted_thinking"), str):
            yield from self._opaque(seal({"type": "redacted_thinking", "data": delta["redacted_thinking"]}))
        for field, part in TEXTS.items():
            if delta.get(field):
                yield from self._text(part, delta[field], choice.get("logprobs"))
        self.held = signature_of(delta) or self.held
        for call in delta.get("tool_calls", ()):
            yield from self._call(call)
        if choice["finish_reason"]:
            self.finish = choice["finish_reason"]
            if not delta.get("content"):  # a whole answer's come with its end
                self.logprobs += listed_logprobs(choice.get("logprobs"))
            yield from self._close("incomplete" if self.finish in INCOMPLETE else "completed")
            yield from self._close_calls()

    # reasoning

    def _open_reasoning(self) -> Iterator[Event]:
        yield from self._close()
        self.kind = "reasoning"
        yield self._added({"id": self._item_id("rs", len(self.output)), "type": "reasoning", "summary": []})

    def _reasoning(self, piece: str) -> Iterator[Event]:
        if self.kind != "reasoning":
            yield from self._open_reasoning()
        here = {**self._here("rs"), "summary_index": 0}
        if not self.pieces:
            yield self.event("reasoning_summary_part.added", **here, part={"type": "summary_text", "text": ""})
        self.pieces.append(piece)
        yield self.event("reasoning_summary_text.delta", **here, delta=piece)

    def _opaque(self, sealed: str) -> Iterator[Event]:
        yield from self._open_reasoning()
        yield from self._close(sealed=sealed)

    def _close_reasoning(self, sealed: str | None) -> Iterator[Event]:
        whole, here = "".join(self.pieces), {**self._here("rs"), "summary_index": 0}
        part = {"type": "summary_text", "text": whole}
        if self.pieces:
            yield self.event("reasoning_summary_text.done", **here, text=whole)
            yield self.event("reasoning_summary_part.done", **here, part=part)
        item = {"id": here["item_id"], "type": "reasoning", "summary": [part] if self.pieces else []}
        if sealed is not None:
            item["encrypted_content"] = sealed
        yield self._done(self.index, item)

    # messages

    def _text(self, part: str, piece: str, logprobs: Any) -> Iterator[Event]:
        if self.kind != "message":
            yield from self._close()
            self.kind = "message"
            head = {"id": self._item_id("msg", len(self.output)), "type": "message", "status": "in_progress"}
            yield self._added({**head, "role": "assistant", "content": []})
        here = self._here("msg")
        if self.part != part:
            yield from self._close_part()
            self.part = part
            yield self.event("content_part.added", **here, content_index=len(self.parts), part=self._whole_part())
        self.pieces.append(piece)
        where = {**here, "content_index": len(self.parts)}
        if part == "refusal":
            yield self.event("refusal.delta", **where, delta=piece)
        else:
            listed = listed_logprobs(logprobs)
            self.logprobs += listed
            yield self.event("output_text.delta", **where, delta=piece, logprobs=listed)

    def _whole_part(self) -> Json:
        whole = "".join(self.pieces)
        if self.part == "refusal":
            return {"type": "refusal", "refusal": whole}
        return {"type": "output_text", "annotations": [], "logprobs": self.logprobs, "text": whole}

    def _close_part(self) -> Iterator[Event]:
        if not self.part:
            return
        part, where = self._whole_part(), {**self._here("msg"), "content_index": len(self.parts)}
        if self.part == "refusal":
            yield self.event("refusal.done", **where, refusal=part["refusal"])
        else:
            yield self.event("output_text.done", **where, text=part["text"], logprobs=part["logprobs"])
        yield self.event("content_part.done", **where, part=part)
        self.parts.append(part)
        self.part, self.pieces, self.logprobs = "", [], []

    def _close(self, status: str = "completed", sealed: str | None = None) -> Iterator[Event]:
        """The open message or reasoning item, if there is one."""
        if self.kind == "reasoning":
            yield from self._close_reasoning(sealed)
        elif self.kind == "message":
            yield from self._close_part()
            head = {"id": self._here("msg")["item_id"], "type": "message", "status": status}
            yield self._done(self.index, {**head, "role": "assistant", "content": self.parts})
        self.kind, self.parts, self.pieces = "", [], []

    # tool calls

    def _call(self, fragment: Json) -> Iterator[Event]:
        function, slot = fragment["function"], fragment["index"]
        call = self.calls.get(slot)
        if call is None:
            yield from self._close()
            name, call_id = text(function.get("name")), tool_id(text(fragment.get("id")))
            for sealed in signatures_before(fragment, call_id, self.held):
                yield from self._opaque(sealed)
            self.held = ""
            call = self.calls[slot] = _Call(self.tools.get(name) or Tool("function", name), call_id)
            if call.tool.kind == "function":
                call.index = len(self.output)
                yield self._added(call_item(call.tool, self._item_id("fc", call.index), call.call_id, "", "in_progress"))
        piece = function.get("arguments")
        if piece:
            call.pieces.append(piece)
            if call.index is not None:
                where = {"item_id": self._item_id("fc", call.index), "output_index": call.index}
                yield self.event("function_call_arguments.delta", **where, delta=piece)

    def _close_calls(self) -> Iterator[Event]:
        status = "incomplete" if self.finish in INCOMPLETE else "completed"
        for call in self.calls.values():
            arguments = "".join(call.pieces)
            if call.index is not None:
                item_id = self._item_id("fc", call.index)
                arguments = arguments or ("{}" if status == "completed" else "")
                where = {"item_id": item_id, "output_index": call.index}
                yield self.event("function_call_arguments.done", **where, arguments=arguments)
                yield self._done(call.index, call_item(call.tool, item_id, call.call_id, arguments, status))
            elif status == "completed":  # half a call cannot be taken apart, and is no call
                yield from self._whole_call(call, arguments)

    def _whole_call(self, call: _Call, arguments: str) -> Iterator[Event]:
        index = len(self.output)
        item = call_item(call.tool, self._item_id("ctc", index), call.call_id, arguments)
        begun = {**item, "status": "in_progress", **({"input": ""} if "input" in item else {})}
        yield self._added(begun)
        if "input" in item:
            where = {"item_id": item["id"], "output_index": index}
            yield self.event("custom_tool_call_input.delta", **where, delta=item["input"])
            yield self.event("custom_tool_call_input.done", **where, input=item["input"])
        yield self._done(index, item)

    def end(self, usage: Json | None) -> Event:
        status = "incomplete" if self.finish in INCOMPLETE else "completed"
        why = {"incomplete_details": {"reason": INCOMPLETE[self.finish]}} if self.finish in INCOMPLETE else {}
        body = response_body(self.cfg, status, list(self.output), self.model, usage=usage_of(usage), **why)
        return self.event(status, response=body)


def chatStreamOpenAItoResponses(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """Hub chunks → the events of a streamed response; without a finish_reason there is no terminal event.

    Raises: BackendError on an error event, or for arguments of a custom tool that are no JSON object. Source: openai SDK
    3.54, ResponseStreamEvent.
    """
    writer: _Writer | None = None
    spent: Json | None = None
    for event in canonical_chunks(events):
        if writer is None:
            writer = _Writer(cfg, event.get("model"))
            yield from writer.start()
        spent = event.get("usage", spent)
        for choice in event["choices"]:
            if choice["index"] == 0:
                yield from writer.add(choice)
    if writer is not None and writer.finish:
        yield writer.end(spent)


def listed_logprobs(logprobs: Any) -> list[Any]:
    """A chat choice's log-probabilities, where it has some."""
    found = logprobs.get("content") if isinstance(logprobs, dict) else None
    return found if isinstance(found, list) else []
