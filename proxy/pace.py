"""A stream that goes to the client at a pace: event after event, each a while after the one before."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxy.reply import Reply

ENDS = {True: re.compile(rb"\n"), False: re.compile(rb"(?:\r\n|\n|\r){2}")}  # of an event: by `lines`


class Pace:
    """Takes the place of a reply's `piece`, `end` and `pump`: a stream is sent in whole events, at most one in `every_s`
    seconds (0.0: as it comes).

    pause: waits that many seconds, or raises when the client leaves. lines: an event is a line (NDJSON), not what ends in an
    empty one (SSE). The backend is read no faster than its events go, so nothing piles up here.
    """

    def __init__(self, reply: Reply, pause: Callable[[float], None], lines: bool) -> None:
        self._reply, self._pause, self._event_end = reply, pause, ENDS[lines]
        self.every_s = 0.0
        self._rest = b""
        self._next = 0.0  # monotonic
        self._piece, self._end = reply.piece, reply.end
        for name in ("piece", "end", "pump"):
            setattr(reply, name, getattr(self, name))

    def pump(self, body: Any) -> bool:
        """See Reply: the pump keeps no pace."""
        return False

    def piece(self, data: bytes) -> None:
        """See Reply."""
        if not self._reply.streaming or not self.every_s:
            self._piece(data)
            return
        data, at = self._rest + data, 0
        for end in self._event_end.finditer(data):
            self._event(data[at : end.end()])
            at = end.end()
        self._rest = data[at:]

    def end(self) -> None:
        """See Reply."""
        self._piece(self._rest)
        self._rest = b""
        self._end()

    def _event(self, data: bytes) -> None:
        now = time.monotonic()
        if self._next > now:
            self._pause(self._next - now)
        self._next = max(self._next, now) + self.every_s
        self._piece(data)
