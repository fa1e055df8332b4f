"""AWS around a transport: signs what is sent (Signature Version 4) and takes the event-stream framing off what comes.

`Aws` stands around the adapter that the target has anyway; connections, deadlines and cancelling stay that one's. It is the one
file that needs the package botocore: credentials come from its usual chain and are refreshed as it does that.
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import requests
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    Credentials,
    DeferredRefreshableCredentials,
    ReadOnlyCredentials,
    RefreshableCredentials,
)
from botocore.eventstream import EventStreamBuffer, EventStreamMessage, ParserError
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session
from requests.adapters import BaseAdapter

from proxy import wire
from proxy.adapters.exchange import Answer, Body, waiting_of
from proxy.config import Aws as Settings
from proxy.dialects import Dialect
from proxy.errors import BackendError, BadRequest, ClientGone, ProxyError, map_errors
from proxy.http1 import Fields

logger = logging.getLogger(__name__)

NAMED = re.compile(r"(.*?/(?:model|endpoints)/)(.+)(/[a-z-]+)")  # a path with a model or an endpoint in it
SIGNED = ("host", "content-type")  # beside AWS's own: what nobody on the way may change
REPLACED = ("authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256")  # a client's own signature
FRAMES = "application/vnd.amazon.eventstream"
FRAME_LEAST = 16  # bytes of a frame without headers and payload
UNREADABLE = (ParserError, KeyError, ValueError, struct.error)  # what botocore raises for a broken frame
NO_CREDENTIALS = (BotoCoreError, ClientError, RuntimeError)  # what it raises when it gets none


class Keyring:
    """The credentials of one target. Those that botocore refreshes stay; others are read anew when AWS refuses them.

    Two threads may look for them at once: both find the same, and one of the two is kept.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._found: Credentials | None = None

    def current(self) -> ReadOnlyCredentials:
        """What to sign with now; may wait for the network. Raises ProxyError when there is nothing."""
        try:
            found = self._found or self._find()
            self._found = found
            if found is not None:
                return found.get_frozen_credentials()
            fault: Exception | str = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or give this machine a role"
        except NO_CREDENTIALS as failed:
            self._found, fault = None, failed
        logger.error("no AWS credentials: %s", fault)
        raise ProxyError(
            "the proxy has no AWS credentials for this target; its log says why", status=502, code="no_credentials"
        )

    def renewed(self, refused: ReadOnlyCredentials) -> bool:
        """Whether there are others by now than those that AWS refused."""
        if isinstance(self._found, RefreshableCredentials):
            return False
        self._found = None
        try:
            return bool(self.current() != refused)
        except ProxyError:  # the log has it; the client hears what AWS said
            return False

    def _find(self) -> Credentials | None:
        settings, given = self._settings, self._settings.environ
        session = Session(profile=given.get("AWS_PROFILE"))
        if given.get("AWS_ACCESS_KEY_ID") and given.get("AWS_SECRET_ACCESS_KEY"):
            session.set_credentials(
                given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"], given.get("AWS_SESSION_TOKEN") or None
            )
        found: Credentials | None = session.get_credentials()
        if found is None or settings.assume_role is None:
            return found
        fetcher = AssumeRoleCredentialFetcher(
            partial(session.create_client, region_name=settings.region),
            found,
            settings.assume_role,
            extra_args={"RoleSessionName": "mooltiproxy"},
        )
        return DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")


class Aws(BaseAdapter):
    """The adapter of a target whose dialect is one of AWS's. `settings`: None where requests carry a key and no signature."""

    def __init__(self, inner: BaseAdapter, dialect: Dialect, settings: Settings | None) -> None:
        super().__init__()
        self._inner, self._dialect = inner, dialect
        self._settings = settings
        self._keyring = Keyring(settings) if settings else None

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, *_: Any, **__: Any
    ) -> requests.Response:
        """The answer, its body unread. Raises what the inner adapter raises, BadRequest when no model is named, ProxyError.

        `request.mapped` False: nobody here reads the answer, so a stream keeps its framing.
        """
        send = partial(self._inner.send, stream=stream, timeout=timeout)
        ready = _copy(request)
        if self._keyring is None:
            answer = send(ready)
        else:
            answer = self._sign_and_send(ready, self._keyring, send)
        raw: Any = answer.raw
        named = {name: value for name, value in raw.fields if name in ("content-type", "x-amzn-requestid")}
        if "x-amzn-requestid" in named:
            raw.fields.append(("x-request-id", named["x-amzn-requestid"]))
        if answer.status_code >= 400 or named.get("content-type") != FRAMES or not getattr(request, "mapped", True):
            return answer
        return Answer(answer.status_code, answer.reason, Unframed(raw, self._dialect), request)

    def _sign_and_send(
        self, request: requests.PreparedRequest, keyring: Keyring, send: Callable[[requests.PreparedRequest], requests.Response]
    ) -> requests.Response:
        waiting = waiting_of(request)
        with waiting.pausing():  # a refresh asks the network
            credentials = keyring.current()
        answer = send(self._signed(request, credentials))
        if answer.status_code == 403:  # perhaps only what was read of a file that has changed since
            with waiting.pausing():
                renewed = keyring.renewed(credentials)
            if renewed:
                answer.raw.close()
                return send(self._signed(request, keyring.current()))
        return answer

    def _signed(self, request: requests.PreparedRequest, credentials: ReadOnlyCredentials) -> requests.PreparedRequest:
        assert self._settings is not None
        kept = {name: value for name, value in request.headers.items() if name.lower() not in REPLACED}
        covered = {name: value for name, value in kept.items() if name in SIGNED}
        asked = AWSRequest(method=request.method, url=request.url, data=request.body or b"", headers=covered)
        SigV4Auth(credentials, self._dialect.aws, self._settings.region).add_auth(asked)
        signed = _copy(request)
        signed.headers = {**kept, **{name.lower(): value for name, value in asked.headers.items()}}  # type: ignore[assignment]
        return signed

    def close(self) -> None:
        """Ends the idle connections."""
        self._inner.close()


def _copy(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """The request with its name in the path as AWS's SDKs write it, and its body at hand: both are signed as they are sent."""
    if "{model}" in (request.url or ""):
        raise BadRequest("the request names no model, and the target has none either", param="model")
    copy = requests.PreparedRequest()
    vars(copy).update(vars(request))
    copy.url = _encoded(request.url or "")
    if hasattr(request.body, "__next__"):
        with map_errors({OSError: ClientGone}, "the client broke off its request"):
            copy.body = b"".join(request.body)  # type: ignore[arg-type]
        copy.headers = {name: value for name, value in request.headers.items() if name != "content-length"}  # type: ignore[assignment]
    return copy


def _encoded(url: str) -> str:
    """A model's name is one segment whatever is in it: the colons and slashes of an ARN are written as %3A and %2F."""
    parts = urlsplit(url)
    found = NAMED.fullmatch(parts.path)
    if found is None:
        return url
    path = found[1] + quote(unquote(found[2]), safe="-._~") + found[3]
    return urlunsplit(parts._replace(path=path))


class Unframed(Body):
    """The payload of an event stream without its frames: JSON as lines {name: payload}, a container's bytes as they are.

    Both lengths and both checksums of every frame are held against what came. An exception in the stream is raised as the
    dialect reads it.
    """

    def __init__(self, inner: Any, dialect: Dialect) -> None:
        self._inner, self._dialect = inner, dialect
        self.conn, self._ahead = None, b""
        container = next((value for name, value in inner.fields if name == "x-amzn-sagemaker-content-type"), None)
        self._as_lines = dialect.aws != "sagemaker"
        sse = not self._as_lines and (container is None or container.startswith("text/event-stream"))
        kind = "text/event-stream" if sse else "application/x-ndjson"
        kept = [(name, value) for name, value in inner.fields if name not in ("content-type", "content-length")]
        self.fields: Fields = [*kept, ("content-type", kind)]
        self._pieces = self._read()

    @property
    def ended(self) -> bool:
        """Whether all of it has come off the connection."""
        return bool(self._inner.ended)

    def read1(self) -> bytes:
        """The next frame's payload, b"" at the end. Raises BackendError for an exception, a broken or a cut frame."""
        try:
            return next(self._pieces, b"")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the exchange; before the stream's end that closes the connection."""
        self._inner.close()

    def _read(self) -> Iterator[bytes]:
        frames, held = EventStreamBuffer(), 0
        while data := self._inner.read1():
            held += len(data)
            frames.add_data(data)
            for frame in _whole(frames):
                held -= frame.prelude.total_length
                piece = self._payload(frame)
                if piece:
                    yield piece
        if held:
            raise BackendError("the backend broke off its answer inside a frame")

    def _payload(self, frame: EventStreamMessage) -> bytes:
        headers, payload = frame.headers, frame.payload
        kind = headers.get(":message-type")
        if kind == "error":
            told = {"__type": headers.get(":error-code"), "message": headers.get(":error-message")}
            raise self._dialect.parse_error(502, told)
        if kind == "exception":
            raise self._dialect.parse_error(502, {**_object(payload), "__type": headers.get(":exception-type")})
        if not self._as_lines:
            return bytes(payload)
        name = wire.dumps(headers.get(":event-type"))
        return b"{%s:%s}\n" % (name, re.sub(rb"[\r\n]", b" ", payload) or b"{}")


def _whole(frames: EventStreamBuffer) -> Iterator[EventStreamMessage]:
    try:
        for frame in frames:
            if frame.prelude.total_length < FRAME_LEAST:
                raise ValueError("a frame says that it is shorter than a frame can be")
            yield frame
    except UNREADABLE as fault:
        raise BackendError(f"the backend's event stream is broken: {fault}") from fault


def _object(payload: bytes) -> dict[str, Any]:
    try:
        value = wire.loads(payload)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"message": payload.decode("utf-8", "replace")}
