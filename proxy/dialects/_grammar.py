"""OpenAI's error shape, and the grammar of its streams: what chunks may follow what, and how a broken stream ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Event
from proxy.dialects._answer import FINISHES, stream_error
from proxy.dialects._hub import Json
from proxy.errors import BackendError, MapperError, ProxyError


def error_body(error: ProxyError, request_id: str) -> Json:
    """{"error": {message, type, param, code}}; also the shape of the event that ends a broken stream."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


# A choice is open from its first chunk to its finish_reason, which comes once; after it nothing of that choice may come. Its
# tool calls are counted from 0: the first fragment of a call has id and name, later ones must not contradict them. The stream
# is whole when at least one choice was seen and none is open. A chunk without choices (usage, a server's notice) is legal
# anywhere, and usage is shown only to a client that asked for it.
HEAD = (("id", str), ("object", str), ("created", int), ("model", str), ("choices", list))
STRINGS = frozenset(("role", "content", "refusal", "reasoning_content", "reasoning_signature", "redacted_thinking"))


class _Open:
    """What is known of one choice of a stream."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []  # id and name
        self.finished = False


FaultOf = Callable[[Json, _Open], "str | None"]


def grammar(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """The last station of every stream to an OpenAI client; cfg["kind"] tells chat chunks from text ones.

    Raises, after one error event: MapperError for an event that the API does not allow, BackendError for an early end, or
    the ProxyError that the input raised.
    """
    fault_of = _text_fault if cfg.get("kind") == "text" else _chat_fault
    request = cfg.get("request")
    options = request.get("stream_options") if isinstance(request, Mapping) else {"include_usage": True}
    shows_usage = isinstance(options, Mapping) and options.get("include_usage") is True
    choices: dict[int, _Open] = {}
    try:
        for event in events:
            if isinstance(event, dict) and event.get("error"):
                raise stream_error(event)
            fault = _event_fault(event, choices, fault_of)
            if fault:
                raise MapperError(f"{cfg.get('chain', 'stream mapper')}: {fault}")
            if shows_usage or not event.get("usage"):
                yield event
            elif event["choices"]:
                yield {name: value for name, value in event.items() if name != "usage"}
        if not choices or not all(choice.finished for choice in choices.values()):
            raise BackendError("the backend's stream ended before its answer did")
    except ProxyError as error:
        yield error_body(error, cfg.get("id", ""))
        raise


def _event_fault(event: Any, choices: dict[int, _Open], fault_of: FaultOf) -> str | None:
    if not isinstance(event, dict):
        return "an event is not an object"
    for name, kind in HEAD:
        if not isinstance(event.get(name), kind):
            return f"an event's {name!r} is missing or of the wrong type"
    if event.get("usage") is not None and not isinstance(event["usage"], dict):
        return "an event's usage is not an object"
    for choice in event["choices"]:
        index = choice.get("index") if isinstance(choice, dict) else None
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            return "a choice has no index"
        state = choices.get(index) or choices.setdefault(index, _Open())
        fault = fault_of(choice, state)
        if fault:
            return f"choice {index}: {fault}"
    return None


def _finish_fault(choice: Json, says_something: bool, state: _Open) -> str | None:
    finish = choice.get("finish_reason")
    if finish is not None and (not isinstance(finish, str) or finish not in FINISHES):
        return "finish_reason is none that the API has"
    if state.finished and (finish or says_something):
        return "something follows its finish_reason"
    state.finished = state.finished or finish is not None
    return None


def _text_fault(choice: Json, state: _Open) -> str | None:
    if not isinstance(choice.get("text"), str):
        return "text is not a string"
    return _finish_fault(choice, bool(choice["text"]), state)


def _chat_fault(choice: Json, state: _Open) -> str | None:
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return "delta is not an object"
    for name, value in delta.items():
        if name in STRINGS and value is not None and not isinstance(value, str):
            return f"delta.{name} is not a string"
    calls = delta.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            return "delta.tool_calls is not an array"
        for call in calls:
            fault = _call_fault(call, state)
            if fault:
                return fault
    says_something = state.finished and any(value for name, value in delta.items() if name != "role")
    fault = _finish_fault(choice, says_something, state)
    if not fault and choice.get("finish_reason") == "tool_calls" and not state.calls:
        return "it finished for tool calls, and there are none"
    return fault


def _call_fault(call: Any, state: _Open) -> str | None:
    if not isinstance(call, dict):
        return "a tool call is not an object"
    index, told = call.get("index"), call.get("custom") if call.get("type") == "custom" else call.get("function")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= len(state.calls):
        return "a tool call's index is missing or skips one"
    if not isinstance(told, (dict, type(None))):
        return "a tool call's function is not an object"
    told = told or {}
    if not all(isinstance(told.get(name), (str, type(None))) for name in ("name", "arguments", "input")):
        return "a tool call's name or arguments are not strings"
    if index == len(state.calls):
        if not isinstance(call.get("id"), str) or not call["id"] or not told.get("name"):
            return "a tool call begins without its id or name"
        state.calls.append((call["id"], told["name"]))
        return None
    call_id, name = state.calls[index]
    if call.get("id") not in (None, "", call_id) or told.get("name") not in (None, "", name):
        return "a tool call changes its id or name"
    return None
