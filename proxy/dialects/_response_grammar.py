"""The grammar of the Responses API's event stream: what may follow what, and how a broken stream ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Event
from proxy.dialects._hub import Json
from proxy.dialects._response_events import response_body
from proxy.errors import BackendError, MapperError, ProxyError

# A stream begins with response.created and is numbered without gaps. Items are added in the order of output_index, and stay
# open until their output_item.done; parts (of content, of a summary) are opened and closed inside an open item; a delta goes
# to what is open. One terminal event comes last, when no item is open. Events of kinds that are not listed here need only
# their number.
TERMINAL = {"response.completed", "response.incomplete", "response.failed"}
PART_EVENTS = {"content_part": "content_index", "reasoning_summary_part": "summary_index"}
TEXT_EVENTS = {  # stem of delta and done → (index field, field of the part with the text)
    "output_text": ("content_index", "text"),
    "refusal": ("content_index", "refusal"),
    "reasoning_text": ("content_index", "text"),
    "reasoning_summary_text": ("summary_index", "text"),
}
CALL_EVENTS = {"function_call_arguments": "arguments", "custom_tool_call_input": "input"}
RESPONSE = {"id": str, "object": str, "model": str, "output": list, "status": str}


class _Item:
    """An open item: what it was when it was added, and what came since."""

    def __init__(self, item: Json) -> None:
        self.item = item
        self.parts: list[Json] = []
        self.open: tuple[str, int] | None = None  # index field and index of the open part
        self.pieces: list[str] = []


class _Grammar:
    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self.cfg = cfg
        self.number = 0
        self.response: Json | None = None
        self.items: list[Json] = []  # by output_index: as added, then as done
        self.open: dict[int, _Item] = {}
        self.ended = False

    def fault(self, event: Any) -> str | None:
        """Why the event is not allowed here; what is allowed is taken note of."""
        found = self._fault(event)
        self.number += 0 if found else 1
        return found

    def _fault(self, event: Any) -> str | None:
        kind = event.get("type") if isinstance(event, dict) else None
        if not isinstance(kind, str):
            return "an event has no type"
        if self.ended:
            return f"{kind} follows the terminal event"
        if event.get("sequence_number") != self.number or isinstance(event["sequence_number"], bool):
            return f"{kind} has a sequence_number that is not the next"
        if (self.response is None) != (kind == "response.created"):
            return "response.created is not the first event, or not the only one"
        if isinstance(event.get("response"), dict) or kind in TERMINAL or self.response is None:
            return self._response(kind, event.get("response"))
        stem, _, step = kind.removeprefix("response.").rpartition(".")
        if stem == "output_item" and step == "added":
            return self._added(event)
        if stem == "output_item" or stem in PART_EVENTS or stem in TEXT_EVENTS or stem in CALL_EVENTS:
            return self._inside(stem, step, event)
        return None

    def _response(self, kind: str, body: Any) -> str | None:
        if not isinstance(body, dict) or not all(isinstance(body.get(name), wanted) for name, wanted in RESPONSE.items()):
            return f"{kind} has no whole response"
        if kind in TERMINAL and self.open:
            return f"{kind} comes while an item is open"
        self.response = body
        self.ended = kind in TERMINAL
        return None

    def _added(self, event: Event) -> str | None:
        item = event.get("item")
        if event.get("output_index") != len(self.items):
            return "an item's output_index is missing or skips one"
        if not isinstance(item, dict) or not isinstance(item.get("type"), str) or not isinstance(item.get("id"), str):
            return "an item has no type or id"
        self.open[len(self.items)] = _Item(item)
        self.items.append(item)
        return None

    def _inside(self, stem: str, step: str, event: Event) -> str | None:
        index = event.get("output_index")
        state = self.open.get(index) if isinstance(index, int) else None
        if state is None:
            return f"response.{stem}.{step} belongs to no open item"
        if stem == "output_item":
            return self._item_done(index, state, event.get("item"))
        if event.get("item_id") != state.item["id"]:
            return f"response.{stem}.{step} names another item"
        if stem in PART_EVENTS:
            return self._part(stem, step, state, event)
        if stem in TEXT_EVENTS:
            field, whole = TEXT_EVENTS[stem]
            if state.open != (field, event.get(field)):
                return f"response.{stem}.{step} belongs to no open part"
        else:
            whole = CALL_EVENTS[stem]
        said = event.get("delta" if step == "delta" else whole)
        if not isinstance(said, str):
            return f"response.{stem}.{step} has no text"
        if step == "delta":
            state.pieces.append(said)
        return None

    def _item_done(self, index: Any, state: _Item, item: Any) -> str | None:
        if not isinstance(item, dict) or item.get("id") != state.item["id"] or item.get("type") != state.item["type"]:
            return "an item that is done is not the one that was added"
        if state.open is not None:
            return "an item is done while its part is open"
        self.items[index] = item
        del self.open[index]
        return None

    def _part(self, stem: str, step: str, state: _Item, event: Event) -> str | None:
        field, part = PART_EVENTS[stem], event.get("part")
        here = (field, event.get(field))
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            return f"response.{stem}.{step} has no part"
        if step == "added":
            if state.open is not None or here[1] != len(state.parts):
                return "a part is added out of order"
            state.open, state.pieces = (field, len(state.parts)), []
            state.parts.append(part)
        elif state.open != here:
            return "a part that is done is not open"
        else:
            state.parts[-1], state.open = part, None
        return None

    def event(self, kind: str, **fields: Any) -> Event:
        self.number += 1
        return {"type": f"response.{kind}", "sequence_number": self.number - 1, **fields}

    def close(self, error: ProxyError) -> Iterator[Event]:
        """Whatever is open, as far as it came, then response.failed; the SDK wants response.created before that."""
        if self.response is None:
            self.response = response_body(self.cfg, "in_progress", [])
            yield self.event("created", response=self.response)
        for index, state in list(self.open.items()):
            where = {"item_id": state.item["id"], "output_index": index}
            if state.open is not None:
                yield from self._close_part(state, where)
            yield self.event("output_item.done", output_index=index, item=self._cut(index, state))
        code = error.code or ERROR_CODES.get(error.status, "server_error")
        failed = {"status": "failed", "error": {"code": code, "message": error.message}, "output": self.items}
        yield self.event("failed", response={**self.response, **failed})

    def _close_part(self, state: _Item, where: Json) -> Iterator[Event]:
        field, index = state.open or ("", 0)
        stem = next((name for name in TEXT_EVENTS if name == state.parts[-1]["type"]), "reasoning_summary_text")
        said, name = "".join(state.pieces), TEXT_EVENTS[stem][1]
        state.parts[-1] = {**state.parts[-1], name: said}
        extra: Json = {"logprobs": []} if stem == "output_text" else {}
        yield self.event(f"{stem}.done", **where, **{field: index, name: said}, **extra)
        outer = next(name for name, inner in PART_EVENTS.items() if inner == field)
        yield self.event(f"{outer}.done", **where, **{field: index}, part=state.parts[-1])

    def _cut(self, index: int, state: _Item) -> Json:
        item = dict(state.item)
        for name in ("content", "summary"):
            if isinstance(item.get(name), list):
                item[name] = [part for part in state.parts if (part["type"] == "summary_text") == (name == "summary")]
        for name in CALL_EVENTS.values():
            if name in item:
                item[name] = "".join(state.pieces)
        if "status" in item:
            item["status"] = "incomplete"
        self.items[index] = item
        return item


ERROR_CODES = {429: "rate_limit_exceeded", 400: "invalid_prompt", 503: "server_is_overloaded", 529: "server_is_overloaded"}


def grammar(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """The last station of every stream to a Responses client; see the theory above `TERMINAL`.

    Raises, after it has closed what is open and sent response.failed: MapperError for an event that the API does not allow,
    BackendError for an early end, or the ProxyError that the input raised.
    """
    state = _Grammar(cfg)
    try:
        for event in events:
            fault = state.fault(event)
            if fault:
                raise MapperError(f"{cfg.get('chain', 'stream mapper')}: {fault}")
            yield event
        if not state.ended:
            raise BackendError("the backend's stream ended before its answer did")
    except ProxyError as error:
        if not state.ended:
            yield from state.close(error)
        raise
