"""Requests' own transport adapter, for targets that are reached through an outbound HTTP proxy (`proxy: http://…`).

It answers as `exchange.py` does: header fields in order, the body undecoded and as it comes, a body that is cut off told from a
whole one. What it cannot do: notice that the client left before the backend answers, send again on a stale connection, tell a
header that is cut off from a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.util import SKIP_HEADER

from proxy.adapters.exchange import IDLE_CONNECTIONS, PIECE, Answer, Body, waiting_of
from proxy.call import Waiting
from proxy.errors import BackendError, BackendTimeout, map_errors

Faults = tuple[tuple[type[BaseException], type[BackendError], str], ...]  # the first that fits counts

SENDING: Faults = (
    (requests.ConnectTimeout, BackendTimeout, "the backend could not be connected in time"),
    (requests.Timeout, BackendTimeout, "the backend did not answer in time"),
    (requests.exceptions.ProxyError, BackendError, "the backend could not be reached through the outbound proxy"),
    (requests.exceptions.SSLError, BackendError, "no TLS connection to the backend through the outbound proxy"),
    (requests.ConnectionError, BackendError, "the backend, or the outbound proxy, closed the connection"),
    (requests.RequestException, BackendError, "the request could not be sent through the outbound proxy"),
    (urllib3.exceptions.HTTPError, BackendError, "the backend's answer could not be read"),
    (OSError, BackendError, "the request could not be sent through the outbound proxy"),
)
READING: Faults = (
    (urllib3.exceptions.ReadTimeoutError, BackendTimeout, "the backend did not go on with its answer in time"),
    (urllib3.exceptions.HTTPError, BackendError, "the backend broke off its answer"),
    (OSError, BackendError, "the backend broke off its answer"),
)


@contextmanager
def mapped(faults: Faults) -> Iterator[None]:
    """Foreign exceptions become ours, each with its message; theirs name addresses and Python's classes."""
    with ExitStack() as stack:
        for foreign, own, message in reversed(faults):
            stack.enter_context(map_errors({foreign: own}, message))
        yield


class Received(Body):
    """The payload of an answer that urllib3 reads."""

    def __init__(self, received: urllib3.BaseHTTPResponse) -> None:
        self.fields = [(name.lower(), value) for name, value in received.headers.items()]  # several of a name stay several
        self.conn, self._ahead = None, b""
        self._received = received
        self.waiting = Waiting(None)

    @property
    def ended(self) -> bool:
        """Whether all of it has come; before that nobody may wait for the whole."""
        return self._received.closed

    def patience(self, read_s: float) -> None:
        """How long a piece may take from now on; a connection that ends with the answer keeps what it had."""
        sock = getattr(self._received.connection, "sock", None)
        if sock is not None:
            sock.settimeout(read_s)

    def read1(self) -> bytes:
        """The next piece, b"" at the end. Raises BackendError when the answer is cut off, BackendTimeout."""
        try:
            with mapped(READING), self.waiting.pausing():
                return self._received.read1(PIECE, decode_content=False) or b""
        except BackendError:
            self.close()
            raise

    def close(self) -> None:
        """Ends the exchange; before the answer's end that closes the connection."""
        self._received.close()
        self._received.release_conn()


class Outbound(HTTPAdapter):
    """The adapter of one target's session. connect_s: deadline for a connection; verify: True, False or a CA file."""

    def __init__(
        self, proxy_url: str, connect_s: float = 3.05, verify: bool | str = True, cert: tuple[str, str] | None = None
    ) -> None:
        super().__init__(pool_maxsize=IDLE_CONNECTIONS, max_retries=0)
        self._proxies = {"http": proxy_url, "https": proxy_url}
        self._connect_s, self._verify, self._cert = connect_s, verify, cert

    # requests calls this; `timeout` is the read timeout per piece, in seconds.
    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, *_: Any, **__: Any
    ) -> requests.Response:
        """The answer, its body unread; redirects are not followed. Raises BackendError, BackendTimeout.

        `request.first_byte_s` bounds the wait for the answer to begin. How to reach the backend is this adapter's own.
        """
        read_s = float(timeout[1] if isinstance(timeout, tuple) else timeout or 30.0)
        first_s = min(read_s, getattr(request, "first_byte_s", read_s))
        waiting = waiting_of(request)
        with mapped(SENDING), waiting.pausing():
            answer = super().send(_framed(request), True, (self._connect_s, first_s), self._verify, self._cert, self._proxies)
        answer.request = request
        assert isinstance(answer.raw, Received)
        answer.raw.waiting = waiting
        answer.raw.patience(read_s)
        if answer.status_code == 407:
            answer.close()
            raise BackendError("the outbound proxy wants a user and a password that it knows")
        return answer

    def build_response(self, req: requests.PreparedRequest, resp: urllib3.BaseHTTPResponse) -> requests.Response:
        """What `send` of requests returns, in the shape that all adapters here answer with."""
        return Answer(resp.status, resp.reason or "", Received(resp), req)


def _framed(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """The request with the headers that requests expects: the body's length, and a word on what must not be added."""
    headers = CaseInsensitiveDict(request.headers)
    for name in ("user-agent", "accept-encoding"):
        headers.setdefault(name, SKIP_HEADER)
    if isinstance(request.body, bytes):
        headers["content-length"] = str(len(request.body))
    framed = requests.PreparedRequest()
    framed.method, framed.url, framed.headers, framed.body = request.method, request.url, headers, request.body
    return framed
