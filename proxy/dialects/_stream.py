"""The hub's streams: chunks of any OpenAI-like backend made canonical, and a stream ⇄ the answer that it tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from proxy.dialects import Event
from proxy.dialects._answer import (
    assistant,
    canonical_finish,
    canonical_usage,
    given,
    joined,
    object_of,
    rename_reasoning,
    stream_error,
    text,
)
from proxy.dialects._hub import Json, compact, objects
from proxy.dialects._seal import signature_of, signed


class Slots:
    """Which call a tool delta belongs to. Without `index`: a new id is a new slot, otherwise the last slot.

    A known index with another id and a name is a new call too: some servers count every call 0.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.named: list[bool] = []
        self.by_index: dict[int, int] = {}
        self.custom: list[int] = []  # slots whose arguments are the input of a custom tool, as an object that is still open

    def of(self, call: Json) -> int:
        """The slot, from 0, of this delta's call."""
        index, call_id = call.get("index"), text(call.get("id"))
        name = text(object_of(call.get("custom") or call.get("function")).get("name"))
        last = len(self.ids) - 1
        if isinstance(index, int):
            slot = self.by_index.get(index, -1)
            fresh = slot < 0 or bool(name and call_id and self.ids[slot] and call_id != self.ids[slot])
        elif call_id:
            slot = self.ids.index(call_id) if call_id in self.ids else -1
            fresh = slot < 0
        else:
            slot = last
            fresh = slot < 0 or bool(name and self.named[slot])
        if fresh:
            slot = last + 1
            self.ids.append("")
            self.named.append(False)
        if isinstance(index, int):
            self.by_index[index] = slot
        self.ids[slot] = self.ids[slot] or call_id
        self.named[slot] = self.named[slot] or bool(name)
        return slot


def canonical_chunks(events: Iterable[Any]) -> Iterator[Event]:
    """A stream of any OpenAI-like backend → canonical chunks; every `chatStreamOpenAItoX` starts with it.

    Tool deltas get their index, `reasoning` its one name, a finish comes once per choice, and usage, wherever the backend
    puts it, comes last in a chunk with `choices: []`. Raises: BackendError on an error event.
    """
    slots: dict[int, Slots] = {}
    finished: set[int] = set()
    last: Event | None = None  # the newest chunk that had usage
    for event in events:
        if not isinstance(event, dict):
            continue
        if event.get("error"):
            raise stream_error(event)
        if isinstance(event.get("usage"), dict):
            last = event
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices:
            continue
        settled = [_settled(choice, slots, finished) for choice in choices if isinstance(choice, dict)]
        yield {name: value for name, value in event.items() if value is not None and name != "usage"} | {"choices": settled}
    if last is not None:
        kept = {name: value for name, value in last.items() if value is not None}
        yield kept | {"choices": [], "usage": canonical_usage(last["usage"])}


def _settled(choice: Json, slots: dict[int, Slots], finished: set[int]) -> Json:
    told, index = choice.get("delta"), choice.get("index")
    index = index if isinstance(index, int) else 0
    delta = {name: value for name, value in told.items() if value is not None} if isinstance(told, dict) else {}
    if "reasoning" in delta or "reasoning_content" in delta:
        rename_reasoning(delta)
    if isinstance(delta.get("content"), list):
        delta["content"] = joined(delta["content"])
    calls, legacy = delta.pop("tool_calls", None), delta.pop("function_call", None)
    if not calls and isinstance(legacy, dict):
        calls = [{"index": 0, "function": legacy}]
    if isinstance(calls, list) and calls:
        mine = slots.setdefault(index, Slots())
        delta["tool_calls"] = [_tool_fragment(call, mine) for call in calls if isinstance(call, dict)]
    finish = canonical_finish(choice.get("finish_reason"), index in slots)
    if finish and index in finished:
        finish = None
    elif finish:
        finished.add(index)
        if ends := [
            {"index": slot, "function": {"arguments": '"}'}} for slot in (slots[index].custom if index in slots else ())
        ]:
            delta["tool_calls"] = [*delta.get("tool_calls", ()), *ends]
    kept = {name: value for name, value in choice.items() if value is not None}
    return {**kept, "index": index, "delta": delta, "finish_reason": finish}


def _tool_fragment(call: Json, slots: Slots) -> Json:
    known = len(slots.ids)
    slot = slots.of(call)
    function = object_of(call.get("custom") or call.get("function"))
    if isinstance(call.get("custom"), dict):
        written = compact(text(function.get("input")))[1:-1]
        if slot == known:
            written = '{"input":"' + written
            slots.custom.append(slot)
    else:
        arguments = function.get("arguments")
        written = arguments if isinstance(arguments, str) else compact(arguments) if isinstance(arguments, dict) else ""
    kept = {name: value for name, value in call.items() if value is not None and name not in ("id", "type", "custom")}
    if slot < known:  # a later fragment: id and name were told by the first one
        return {**kept, "index": slot, "function": {"arguments": written}}
    named = {"name": text(function.get("name")), "arguments": written}
    return {**kept, "index": slot, "id": text(call.get("id")) or f"call_{slot}", "type": "function", "function": named}


# --- a stream ⇄ an answer


class _Choice:
    """One choice while its chunks are put together."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.finish: str | None = None
        self.stop_sequence: Any = None
        self.strings: dict[str, list[str]] = {"content": [], "reasoning_content": [], "refusal": []}
        self.open_reasoning: list[str] = []  # since the last signature
        self.thinking: list[Json] = []
        self.slots = Slots()
        self.calls: list[Json] = []
        self.legacy: Json | None = None
        self.annotations: list[Any] = []
        self.signature = ""  # Gemini's, of the text
        self.logprobs: dict[str, list[Any]] = {}

    def add(self, choice: Json) -> None:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._add_delta(delta)
        logprobs = choice.get("logprobs")
        for name, items in logprobs.items() if isinstance(logprobs, dict) else ():
            if isinstance(items, list):
                self.logprobs.setdefault(name, []).extend(items)
        self.finish = choice.get("finish_reason") or self.finish
        if choice.get("stop_sequence") is not None:
            self.stop_sequence = choice["stop_sequence"]

    def _add_delta(self, delta: Json) -> None:
        if len(delta) == 1 and isinstance(delta.get("content"), str):  # nearly all of them
            self.strings["content"].append(delta["content"])
            return
        if "reasoning" in delta:
            delta = dict(delta)
            rename_reasoning(delta)
        for name, pieces in self.strings.items():
            piece = joined(delta.get(name))
            if piece:
                pieces.append(piece)
                if name == "reasoning_content":
                    self.open_reasoning.append(piece)
        if isinstance(delta.get("reasoning_signature"), str):
            self.thinking.append(
                {"type": "thinking", "thinking": "".join(self.open_reasoning), "signature": delta["reasoning_signature"]}
            )
            self.open_reasoning = []
        if isinstance(delta.get("redacted_thinking"), str):
            self.thinking.append({"type": "redacted_thinking", "data": delta["redacted_thinking"]})
            self.open_reasoning = []
        self.signature = signature_of(delta) or self.signature
        for call in objects(delta.get("tool_calls")):
            self._add_call(call)
        if isinstance(delta.get("function_call"), dict):
            self._add_legacy(delta["function_call"])
        self.annotations += delta["annotations"] if isinstance(delta.get("annotations"), list) else []

    def _add_call(self, fragment: Json) -> None:
        slot = self.slots.of(fragment)
        if slot == len(self.calls):
            self.calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": []}})
        call = self.calls[slot]
        function = object_of(fragment.get("custom") or fragment.get("function"))
        if isinstance(fragment.get("custom"), dict):
            call["type"], function = "custom", {"name": function.get("name"), "arguments": function.get("input")}
        call["id"] = call["id"] or text(fragment.get("id"))
        call["function"]["name"] = call["function"]["name"] or text(function.get("name"))
        arguments = function.get("arguments")
        call["function"]["arguments"].append(compact(arguments) if isinstance(arguments, dict) else text(arguments))
        call |= {name: value for name, value in fragment.items() if name not in ("index", "id", "type", "function", "custom")}

    def _add_legacy(self, fragment: Json) -> None:
        legacy = self.legacy or {"name": "", "arguments": ""}
        self.legacy = {name: legacy[name] + text(fragment.get(name)) for name in legacy}

    def whole(self) -> Json:
        for call in self.calls:
            call["function"]["arguments"] = "".join(call["function"]["arguments"])
            if call["type"] == "custom":
                told = call.pop("function")
                call["custom"] = {"name": told["name"], "input": told["arguments"]}
        content, reasoning, refusal = ("".join(pieces) for pieces in self.strings.values())
        message = assistant(content, self.calls, reasoning, self.thinking, refusal)
        if self.legacy:
            message |= {"content": content or None, "function_call": self.legacy}
        if self.annotations:
            message["annotations"] = self.annotations
        message |= signed(self.signature)
        extra = given({"stop_sequence": self.stop_sequence, "logprobs": self.logprobs or None})
        return {"index": self.index, "message": message, "finish_reason": self.finish, **extra}


def fold(chunks: Iterable[Any]) -> Json:
    """The chunks of a stream → the chat.completion that the same call would have answered, extensions included.

    A stream that was cut gives what came, with `finish_reason: None`.
    """
    head: Json = {}
    choices: dict[int, _Choice] = {}
    found: Any = None
    for event in chunks:
        if not isinstance(event, dict):
            continue
        head = head or {name: event.get(name) for name in ("id", "object", "created", "model")}
        for name in ("system_fingerprint", "service_tier"):
            if event.get(name) is not None:
                head[name] = event[name]
        found = event["usage"] if isinstance(event.get("usage"), dict) else found
        for choice in objects(event.get("choices")):
            given_index = choice.get("index")
            index = given_index if isinstance(given_index, int) else 0
            if index not in choices:
                choices[index] = _Choice(index)
            choices[index].add(choice)
    head["object"] = "chat.completion"
    head["choices"] = [choices[index].whole() for index in sorted(choices)]
    return head if found is None else {**head, "usage": found}


def unfold(answer: Json) -> Iterator[Event]:
    """A chat.completion → the chunks of a stream that folds to it."""
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage", "object")}
    head["object"] = "chat.completion.chunk"
    for choice in objects(answer.get("choices")):
        index, message = choice.get("index", 0), choice.get("message") or {}
        for delta in _deltas(message):
            yield {**head, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}
        last = {name: value for name, value in choice.items() if name != "message"}
        yield {**head, "choices": [{**last, "index": index, "delta": {}, "finish_reason": choice.get("finish_reason")}]}
    if isinstance(answer.get("usage"), dict):
        yield {**head, "choices": [], "usage": answer["usage"]}


def _deltas(message: Json) -> Iterator[Json]:
    yield {"role": "assistant", "content": ""}
    told = text(message.get("reasoning_content") or message.get("reasoning"))
    for block in objects(message.get("thinking_blocks")):
        if block.get("type") == "redacted_thinking":
            yield {"redacted_thinking": block.get("data", "")}
            continue
        if block.get("thinking"):
            yield {"reasoning_content": block["thinking"]}
            told = told.removeprefix(block["thinking"])
        yield {"reasoning_signature": block.get("signature", "")}
    if told:
        yield {"reasoning_content": told}
    if joined(message.get("content")):
        yield {"content": joined(message["content"])}
    for name in ("refusal", "annotations", "function_call", "extra_content"):
        if message.get(name):
            yield {name: message[name]}
    for slot, call in enumerate(objects(message.get("tool_calls"))):
        yield {"tool_calls": [{"index": slot, **call}]}
