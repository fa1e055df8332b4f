"""What the doubles of AWS's services share: a server that checks signatures, bodies held against botocore's model, frames."""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
import sys
import threading
import zlib
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from botocore.session import get_session

from tests.doubles.sigv4 import Identity, Unsigned, verify

Json = dict[str, Any]
REGION = "us-east-1"
KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
FRAMES = "application/vnd.amazon.eventstream"
ABSOLUTE = re.compile(r"^http://[^/]+")
PIECE = 50  # bytes of a stream that are sent at once: frames come in pieces


class Refusal(Exception):
    """What the service answers instead: a status, the exception's name, its fields."""

    def __init__(self, status: int, name: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status, self.name, self.body = status, name, {"message": message, **more}


def invalid(message: str) -> Refusal:
    return Refusal(400, "ValidationException", message)


# --- what is legal

TYPES = {"string": str, "integer": int, "long": int, "boolean": bool, "float": (int, float), "double": (int, float)}


def shape_of(service: str, operation: str) -> Any:
    """The input of an operation, as botocore knows it."""
    return get_session().get_service_model(service).operation_model(operation).input_shape


def check(value: Any, shape: Any, at: str = "", but: Iterable[str] = ()) -> None:
    """A decoded JSON value against a shape: its types, bounds, enums, patterns; no unknown member. Raises Refusal (400).

    `but`: members that stand elsewhere than in the body.
    """
    if getattr(shape, "is_document_type", False):
        return
    kind, facts = shape.type_name, shape.metadata
    if kind == "structure":
        _check_structure(value, shape, at, set(but))
    elif kind == "list":
        _is(isinstance(value, list), at, "an array")
        _bounded(len(value), facts, at)
        for i, item in enumerate(value):
            check(item, shape.member, f"{at}[{i}]")
    elif kind == "map":
        _is(isinstance(value, dict), at, "an object")
        _bounded(len(value), facts, at)
        for name, item in value.items():
            check(name, shape.key, f"{at} key")
            check(item, shape.value, f"{at}.{name}")
    elif kind == "blob":
        _is(isinstance(value, str), at, "base64")
        try:
            _bounded(len(base64.b64decode(value, validate=True)), facts, at)
        except binascii.Error:
            raise Refusal(400, "SerializationException", f"{at} is not base64") from None
    else:
        _check_scalar(value, kind, shape, at)


def _check_structure(value: Any, shape: Any, at: str, but: set[str]) -> None:
    _is(isinstance(value, dict), at, "an object")
    unknown = set(value) - set(shape.members) | set(value) & but
    if unknown:
        raise invalid(f"{at}: unknown field {sorted(unknown)[0]}")
    missing = set(shape.required_members) - set(value) - but
    if missing:
        raise invalid(f"{at}: {sorted(missing)[0]} is missing")
    _is(not getattr(shape, "is_tagged_union", False) or len(value) == 1, at, "exactly one of its members")
    for name, item in value.items():
        check(item, shape.members[name], f"{at}.{name}")


def _check_scalar(value: Any, kind: str, shape: Any, at: str) -> None:
    facts = shape.metadata
    _is(isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)), at, kind)  # type: ignore[arg-type]
    if kind == "string":
        _bounded(len(value), facts, at)
        _is(value in facts.get("enum", [value]), at, f"one of {facts.get('enum')}")
        _is("pattern" not in facts or bool(re.fullmatch(facts["pattern"], value)), at, f"like {facts.get('pattern')}")
    elif kind != "boolean":
        _bounded(value, facts, at)


def _is(right: bool, at: str, what: str) -> None:
    if not right:
        raise invalid(f"{at} must be {what}")


def _bounded(size: float, facts: Json, at: str) -> None:
    _is(facts.get("min", size) <= size <= facts.get("max", size), at, f"from {facts.get('min')} to {facts.get('max')}")


# --- frames


def frame(payload: bytes, **headers: str) -> bytes:
    """One message of an event stream. headers: their names without the colon, _ for -."""
    head = b""
    for name, value in headers.items():
        named, said = f":{name.replace('_', '-')}".encode(), value.encode()
        head += struct.pack("!B", len(named)) + named + b"\x07" + struct.pack("!H", len(said)) + said
    prelude = struct.pack("!II", 16 + len(head) + len(payload), len(head))
    prelude += struct.pack("!I", zlib.crc32(prelude))
    message = prelude + head + payload
    return message + struct.pack("!I", zlib.crc32(message))


def event(name: str, payload: Json) -> bytes:
    """An event with a JSON payload."""
    return frame(json.dumps(payload).encode(), event_type=name, content_type="application/json", message_type="event")


def fault(name: str, payload: Json) -> bytes:
    """An exception within a stream."""
    return frame(json.dumps(payload).encode(), exception_type=name, content_type="application/json", message_type="exception")


# --- the server


class Handler(BaseHTTPRequestHandler):
    """Checks a POST's signature, then asks the service's `answer`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        double = self.server.double
        self.path = ABSOLUTE.sub("", self.path)  # as an outbound proxy is asked: then it stands for the host that is named
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        double.requests.append(("POST", self.path, headers, double.decoded(data)))
        try:
            if not (double.api_key and headers.get("authorization") == f"Bearer {double.api_key}"):
                double.signers.append(
                    verify("POST", self.path, headers, data, double.identities, double.service, double.region)
                )
            double.answer(self, self.path, headers, data)
        except Unsigned as refused:
            self.reply(403, {"message": refused.message}, refused.name)
        except Refusal as refused:
            self.reply(refused.status, refused.body, refused.name)

    def do_GET(self) -> None:
        """No operation of these services is one."""
        self.server.double.requests.append(("GET", self.path, {}, None))
        self.reply(404, {"message": "not found"}, "UnknownOperationException")

    def reply(self, status: int, body: Any, name: str = "", kind: str = "application/json") -> None:
        """A whole reply."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("x-amzn-requestid", "aws-request-1")
        if name:
            self.send_header("x-amzn-errortype", f"{name}:http://internal.amazon.com/coral/")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, frames: Iterable[bytes | None], **headers: str) -> None:
        """Frames, cut into pieces where it does not suit; None: the connection breaks there."""
        self.send_response(200)
        for name, value in {"content-type": FRAMES, "transfer-encoding": "chunked", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("x-amzn-requestid", "aws-request-1")
        self.end_headers()
        for data in frames:
            if data is None:
                self.close_connection = True
                return
            for at in range(0, len(data), PIECE):
                piece = data[at : at + PIECE]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    double: AwsDouble

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that leaves is no fault
            super().handle_error(request, client_address)


class AwsDouble:
    """`with` it: serves on `url`. requests: (method, path, headers, decoded body); signers: the access keys that signed.

    identities: whom it knows, by access key; a test may change them. api_key: a bearer token that is as good as a signature.
    """

    service = ""

    def __init__(self, identities: dict[str, Identity] | None = None, region: str = REGION) -> None:
        self.requests: list[tuple[str, str, Json, Any]] = []
        self.signers: list[str] = []
        self.identities = {KEY: Identity(SECRET)} if identities is None else identities
        self.api_key: str | None = None
        self.region = region
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.double = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def decoded(self, data: bytes) -> Any:
        """A body as `requests` has it: None when it is no JSON."""
        try:
            return json.loads(data)
        except ValueError:
            return None

    def answer(self, handler: Handler, path: str, headers: Json, data: bytes) -> None:
        """Answers a signed request. Raises Refusal."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
