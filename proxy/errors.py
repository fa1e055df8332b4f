"""What can go wrong, as facts: a status, a source (client, proxy or backend) and what the client may know.

A dialect turns these facts into its API's error body (`Dialect.error_body`); nothing here knows a body's shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

TYPES = {  # HTTP status → OpenAI's error type, which the dialects translate
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    501: "not_implemented_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def type_of(status: int) -> str:
    """The error type that goes with an HTTP status."""
    return TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")


class ProxyError(Exception):
    """Base of all: `status` for the client, `source` says whose fault it was."""

    status = 500
    source = "proxy"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        close: bool = False,
    ) -> None:
        """`kind` overrides the type that goes with the status; `close` ends the client's connection after the reply."""
        super().__init__(message)
        self.message = message
        self.status = status or type(self).status
        self.param = param
        self.code = code
        self.kind = kind or type_of(self.status)
        self.headers = tuple(headers)
        self.close = close


class BadRequest(ProxyError):
    """The client's request cannot be served as it is (400, or the 4xx that is given)."""

    status = 400
    source = "client"


class Refused(ProxyError):
    """A gate said no: 401, 403, 404 or 429."""

    status = 403
    source = "client"


class ConfigError(ProxyError):
    """The configuration is at fault; `faults` are lines for a person, each with file, line and path."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class MapperError(ProxyError):
    """A mapper or prompter raised, or produced what its API does not allow; the message names it."""

    status = 502


class BackendError(ProxyError):
    """The backend answered with an error, or with something that is no answer."""

    status = 502
    source = "backend"
    cause = ""  # what `retries.on` calls it, where it is not the status that the backend answered


class Unreachable(BackendError):
    """No connection, or one that ended before anything of an answer came."""

    cause = "connect"


class BackendTimeout(BackendError):
    """The backend did not answer in time."""

    status = 504
    cause = "timeout"


class ClientGone(ProxyError):
    """The client left: there is nobody to answer."""

    status = 499
    source = "client"


@contextmanager
def map_errors(table: Mapping[type[BaseException], type[ProxyError]], message: str = "") -> Iterator[None]:
    """Foreign exceptions become ours at the place where they come in."""
    try:
        yield
    except tuple(table) as fault:
        for foreign, own in table.items():
            if isinstance(fault, foreign):
                raise own(message or str(fault)) from fault
        raise
