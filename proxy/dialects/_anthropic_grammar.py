"""Anthropic's errors, and what a Messages stream may look like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Event
from proxy.dialects._anthropic_answer import FINISH
from proxy.dialects.openai import Json, stream_error
from proxy.errors import BackendError, MapperError, ProxyError

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(error: ProxyError, request_id: str) -> Json:
    """Anthropic's error; the status alone decides its type, as it decides the class that an SDK raises."""
    kind = ERROR_TYPES.get(error.status) or ("invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}


# The states: before message_start · between blocks · in a block · after a message_delta · after message_stop. A block's index
# is the number of blocks before it, and its deltas are of its kind; blocks that only servers fill may have any.
# message_delta tells the stop reason, once or several times, when no block is open; a ping may come anywhere. An error event
# ends a stream from any state: nothing is closed before it, as the stop of a half-written tool call would call it whole.
# After message_stop the client has everything, so nothing follows there, not even an error.

DELTAS = {  # (kind of the block, type of the delta) → the field that holds a string
    ("text", "text_delta"): "text",
    ("thinking", "thinking_delta"): "thinking",
    ("thinking", "signature_delta"): "signature",
    ("tool_use", "input_json_delta"): "partial_json",
    ("server_tool_use", "input_json_delta"): "partial_json",
}
BLOCKS: dict[str, dict[str, type]] = {  # kind of a block → what its start must have
    "text": {"text": str},
    "thinking": {"thinking": str, "signature": str},
    "redacted_thinking": {"data": str},
    "tool_use": {"id": str, "name": str, "input": dict},
    "server_tool_use": {"id": str, "name": str, "input": dict},
}
OTHER_BLOCKS = (  # how the other kinds end
    *("_tool_result", "container_upload", "mcp_tool_use", "mcp_tool_listing", "compaction", "fallback"),
)
MESSAGE: dict[str, type] = {"id": str, "model": str}
BEGINNING: Json = {"type": "message", "role": "assistant", "content": [], "stop_reason": None, "stop_sequence": None}
COUNTS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def grammar(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """A Messages stream → itself, as far as it is legal, then an error event.

    Raises: MapperError for an illegal event, BackendError when the stream ends before message_stop, and what `events` raises.
    """
    state = _Grammar()
    try:
        for event in events:
            if isinstance(event, dict) and event.get("type") == "error":
                raise stream_error(event)
            fault = state.fault(event)
            if fault:
                raise MapperError(f"{cfg.get('chain', 'stream mapper')}: {fault}")
            yield event
        if state.at != "end":
            raise BackendError("the backend's stream broke off")
    except ProxyError as error:
        if state.at != "end":
            yield error_body(error, str(cfg.get("id", "")))
        raise


def _has(value: Any, fields: Mapping[str, type]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in fields.items())


def _counts(usage: Any, needed: tuple[str, ...]) -> bool:
    """Whether this is usage: what is needed is there, and every count is one."""
    if not isinstance(usage, dict) or not all(name in usage for name in needed):
        return False
    return all(isinstance(usage[name], int) or (usage[name] is None and name not in needed) for name in COUNTS if name in usage)


class _Grammar:
    def __init__(self) -> None:
        self.at = "start"  # start, between, block, told, end
        self.index = 0
        self.kind = ""
        self.argued = False  # whether a tool's input has begun

    def fault(self, event: Any) -> str | None:
        """Why this event may not come now, or None."""
        kind = event.get("type") if isinstance(event, dict) else None
        rule = RULES.get(kind) if isinstance(kind, str) else None
        if rule is None:
            return f"{kind!r} is no event of a Messages stream"
        states, legal = rule
        if self.at not in states:
            return f"{kind} may not come {PLACES[self.at]}"
        return None if legal(self, event) else f"{kind} is malformed"

    def start(self, event: Event) -> bool:
        self.at = "between"
        message = event.get("message")
        if not isinstance(message, dict) or not _has(message, MESSAGE) or not _counts(message.get("usage"), COUNTS[:2]):
            return False
        return all(message.get(name) == value for name, value in BEGINNING.items())

    def block_start(self, event: Event) -> bool:
        block = event.get("content_block")
        if type(event.get("index")) is not int or event["index"] != self.index or not _has(block, {"type": str}):
            return False
        self.at, self.kind, self.argued = "block", block["type"], False  # type: ignore[index]
        return _has(block, BLOCKS.get(self.kind, {})) and (self.kind in BLOCKS or self.kind.endswith(OTHER_BLOCKS))

    def delta(self, event: Event) -> bool:
        delta = event.get("delta")
        if type(event.get("index")) is not int or event["index"] != self.index or not isinstance(delta, dict):
            return False
        kind = delta.get("type")
        field = DELTAS.get((self.kind, kind)) if isinstance(kind, str) else None
        if field is not None:
            return isinstance(delta.get(field), str) and (field != "partial_json" or self._argues(delta[field]))
        return isinstance(kind, str) and (self.kind not in BLOCKS or (self.kind, kind) == ("text", "citations_delta"))

    def _argues(self, piece: str) -> bool:
        """Whether a tool's input is an object so far: the SDK parses each fragment, and falls over any other."""
        legal = self.argued or piece.lstrip()[:1] in ("", "{")
        self.argued = self.argued or bool(piece.strip())
        return legal

    def block_stop(self, event: Event) -> bool:
        legal = type(event.get("index")) is int and event["index"] == self.index
        self.at, self.index = "between", self.index + 1
        return legal

    def told(self, event: Event) -> bool:
        delta = event.get("delta")
        reason = delta.get("stop_reason") if isinstance(delta, dict) else False
        self.at = "told" if reason else self.at
        known = reason is None or (isinstance(reason, str) and reason in FINISH)
        matched = isinstance(delta, dict) and isinstance(delta.get("stop_sequence"), (str, type(None)))
        return known and matched and _counts(event.get("usage"), COUNTS[1:2])

    def stop(self, event: Event) -> bool:
        self.at = "end"
        return True

    def ping(self, event: Event) -> bool:
        return True


PLACES = {
    "start": "before message_start",
    "between": "between blocks",
    "block": "inside a block",
    "told": "after message_delta",
    "end": "after message_stop",
}
RULES: dict[str, tuple[frozenset[str], Callable[[_Grammar, Event], bool]]] = {  # event → where it may come, and its check
    "message_start": (frozenset(("start",)), _Grammar.start),
    "content_block_start": (frozenset(("between",)), _Grammar.block_start),
    "content_block_delta": (frozenset(("block",)), _Grammar.delta),
    "content_block_stop": (frozenset(("block",)), _Grammar.block_stop),
    "message_delta": (frozenset(("between", "told")), _Grammar.told),
    "message_stop": (frozenset(("told",)), _Grammar.stop),
    "ping": (frozenset(("start", "between", "block", "told")), _Grammar.ping),
}
