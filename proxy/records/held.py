"""A model is asked for a page, as any client's call would ask it: the same gates, limits, fallback and records."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from proxy import wire
from proxy.answers import ANSWER_LIMIT, RETRY_INFO
from proxy.call import Waiting
from proxy.errors import BackendError
from proxy.http1 import Fields
from proxy.relay import Relay

if TYPE_CHECKING:
    from proxy.pages import Visit
    from proxy.reply import Reply

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
TAIL = 2048  # bytes of an answer's end that tell the usage


class Held:
    """A reply that is kept instead of sent, for a page that makes another one of it. Its verbs are the Reply's."""

    def __init__(self, visit: Visit) -> None:
        self.handler, self.call = visit.handler, visit.call
        self.extra: Fields = []
        self.heard: tuple[Callable[[bytes], None], ...] = ()
        self.started = self.content = self.streaming = self.chunked = False
        self.status, self.fields, self.tail = 0, cast(Fields, []), b""
        self._parts: list[bytes] = []
        self._size = 0

    def json(self, status: int, value: Any, fields: Fields | None = None) -> None:
        """See Reply."""
        self.whole(status, [("content-type", "application/json"), *(fields or [])], wire.dumps(value))

    def whole(self, status: int, fields: Fields, body: bytes) -> None:
        """See Reply."""
        self.start(status, fields, len(body))
        self.piece(body)

    def start(self, status: int, fields: Fields, length: int | None) -> None:
        """See Reply."""
        self.status, self.fields, self.started = status, fields, True
        self.call.status, self.call.first_byte_s = status, self.call.elapsed_s()

    def withdraw(self) -> None:
        """See Reply."""
        self.started = self.streaming = False

    def piece(self, data: bytes) -> None:
        """See Reply. Raises BackendError past ANSWER_LIMIT bytes."""
        self.content = True
        self._parts.append(bytes(data))
        self._size += len(data)
        if self._size > ANSWER_LIMIT:
            raise BackendError(f"the backend's answer is larger than {ANSWER_LIMIT} bytes")
        self.tail = (self.tail + data)[-TAIL:]
        for hear in self.heard:
            hear(data)

    def pump(self, body: Any) -> bool:
        """See Reply."""
        return False

    def end(self) -> None:
        """See Reply."""

    @property
    def body(self) -> bytes:
        """All that was said."""
        return b"".join(self._parts)


def ask(visit: Visit, path: str, body: Json, target: str | None = None) -> Json:
    """A model's answer to a body in OpenAI's shape. Raises ProxyError, for an error that a backend answered, too."""
    call, handler = visit.call, visit.handler
    request = copy.copy(visit.request)
    request.method, request.path = "POST", path
    request.headers = {**request.headers, "content-type": "application/json", "accept-encoding": "identity"}
    if target:
        request.headers["target"] = target
    call.method, call.path, call.front = "POST", path, "openai"
    call.waits = Waiting(handler.request, handler.turn, handler.encrypted)
    held = Held(visit)
    relay = Relay(visit.generation, call, request, cast("Reply", held), None)
    relay.use_body(wire.dumps(body))
    relay.run()
    visit.reply.extra = [*visit.reply.extra, *held.extra]
    try:
        answer = wire.loads(held.body)
    except ValueError:
        answer = None
    if held.status >= 400 or not isinstance(answer, dict):
        told = answer.get("error") if isinstance(answer, dict) else None
        message = told.get("message") if isinstance(told, dict) else None
        again = [field for field in held.fields if field[0] in RETRY_INFO]
        status = held.status if held.status >= 400 else 502
        raise BackendError(str(message or f"the backend answered {held.status}"), status=status, headers=again)
    return answer
