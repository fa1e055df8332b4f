"""Answers that are made in this process, in the shape of a backend's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import requests

from proxy.adapters.exchange import Answer, Body
from proxy.http1 import Fields
from proxy.wire import dumps


class Pieces(Body):
    """An answer's payload that is made here, piece by piece."""

    def __init__(self, fields: Fields, pieces: Iterable[bytes]) -> None:
        self.fields, self.conn = fields, None
        self._pieces, self._ahead = iter(pieces), b""

    def read1(self) -> bytes:
        """The next piece, b"" at the end."""
        return next(self._pieces, b"")

    def close(self) -> None:
        """There is nothing to give back; no further piece comes."""
        self._pieces = iter(())


def whole(
    request: requests.PreparedRequest, given: Any, status: int = 200, reason: str = "OK", more: Iterable[tuple[str, str]] = ()
) -> Answer:
    """A JSON answer, of which HEAD gets the head alone. more: further header fields."""
    data = dumps(given)
    fields = [("content-type", "application/json"), ("content-length", str(len(data))), *more]
    return Answer(status, reason, Pieces(fields, () if request.method == "HEAD" else (data,)), request)
