"""One call: target → endpoint → the backend → the client.

Two ways lead out: where no mapper stands in between, bytes are relayed as they come, here; where one does, in `mapped.py`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from proxy import wire
from proxy.answers import (
    ANSWER_LIMIT,
    CODINGS,
    ERROR_LIMIT,
    STREAMS,
    decoded,
    field_of,
    kind_of,
    overhear,
    read_all,
    scrubbed,
)
from proxy.call import Call
from proxy.config import Target
from proxy.dialects import load, path_params, told
from proxy.dialects._seal import SEALED, unsealed
from proxy.errors import BackendError, ProxyError, Refused
from proxy.gates.keys import ALL_HEADERS
from proxy.generation import Generation, Place
from proxy.http1 import HOP_BY_HOP, Fields, header_safe, listed
from proxy.mapped import Mapped
from proxy.routing import Choice, fill, model_in
from proxy.translate import Endpoint, facts_of

if TYPE_CHECKING:
    import requests

    from proxy.attempts import Course
    from proxy.handler import Request
    from proxy.reply import Reply

# who asks is not the backend's to know, and it shall do what was judged here: not another method on another path
WHO_ASKS = {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "origin", "referer"}
DISGUISES = {"x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"}
NOT_UP = HOP_BY_HOP | ALL_HEADERS | WHO_ASKS | DISGUISES | {"host", "content-length", "cookie", "target", "expect"}
NOT_DOWN = HOP_BY_HOP | {"content-length", "server", "date", "x-request-id", "alt-svc", "strict-transport-security"}
READABLE = ("gzip", "deflate", "identity")
HELD = 256 * 1024  # bytes of a request body that is held whatever it is, so that it can be sent again
HOPS = 5  # redirects followed
METHOD_CHANGES = {301: ("POST",), 302: ("POST",), 303: ("POST", "PUT", "PATCH", "DELETE")}
Meets = Callable[[Endpoint, "requests.PreparedRequest", "requests.Response"], None]
ASKS_STREAM = re.compile(rb'"stream"\s*:\s*true')


class Relay:
    """The relaying of one call. `reply`, `request`: the handler's; `routed`: the target whose `route` the path began with."""

    def __init__(self, generation: Generation, call: Call, request: Request, reply: Reply, routed: str | None) -> None:
        self.generation, self.call = generation, call
        self.request, self.reply = request, reply
        self._routed = routed
        self.raw: bytes | None = None  # the request's body, once read whole
        self._decoded: Any = None
        # what traffic (see `proxy/traffic.py`) sets where it has a say; a plain call leaves them alone
        self.leaves: Callable[[Any], Any] | None = None  # has a look at each body that leaves for a backend
        self.hears: tuple[Callable[[bytes], bytes | None], ...] = ()  # hear what the backend answers, and may change it
        self.not_down = NOT_DOWN  # fields of its answer that the client does not get
        self.meets: tuple[Meets, ...] = ()  # see what was sent to a backend, and its answer before it is read
        self.attempts: Course | None = None  # is asked before a request leaves, and about each answer
        self.key_fields: Mapping[str, str] = {}  # the upstream key that is this call's, where the target has several

    def run(self) -> None:
        """Answers the request. Raises ProxyError while a status can still be sent; later faults end the reply visibly."""
        try:
            self._run()
        except ProxyError as error:
            if not self.reply.streaming or error.status == 499:
                raise
            self._break_off(error)

    def _run(self) -> None:
        call, request = self.call, self.request
        if self.generation.records is not None:
            self.generation.records.begin(self)
        body: Any = None
        router = self.generation.router
        header = request.headers.get("target")
        if router.needs_model and header is None and self._routed is None and self._is_json():
            body = self.read_json()
        choice = router.choose(header, self._routed, self.asked(body, path_params(call.front, request.method, call.path)))
        if self.generation.traffic is not None:
            self.generation.traffic.run(self, choice)
        else:
            self.once(choice)

    def once(self, choice: Choice) -> None:
        """One attempt: the chosen target's endpoint, its backend, the reply. Raises ProxyError."""
        call, request = self.call, self.request
        self._sent_model: str | None = None
        self._renamed = False
        call.model_served, call.lost = None, ()  # another attempt's
        place = self.generation.places[choice.target]
        call.target = choice.target
        found = self.generation.find(place, call.front, request.method, call.path)
        if found is None:
            raise Refused(f"target {choice.target!r} maps no {request.method} {call.path}", status=404, code="path_not_mapped")
        endpoint, params = found
        if endpoint.target.capabilities and request.method == "POST" and self._is_json():
            from proxy.capabilities import require

            require(endpoint.target, call, self.read_json())
        if endpoint.entry.unsupported:
            raise Refused(f"target {choice.target!r} has no such operation in its API", status=501, code="not_supported")
        if endpoint.mapped:
            Mapped(self, place, endpoint, choice).run(params)
        else:
            self._bytes(place, endpoint, choice, params)

    @property
    def changes(self) -> bool:
        """Whether the client gets other bytes than an unmapped backend sends."""
        return self._renamed or bool(self.hears)

    # --- the request
    def _is_json(self) -> bool:
        kind = self.request.headers.get("content-type", "application/json")
        return "json" in kind.partition(";")[0].lower()

    def read(self) -> bytes:
        if self.raw is None:
            self.raw = self.request.body.read()
        return self.raw

    def use_body(self, raw: bytes) -> None:
        """Another body in the place of the client's: what was meant for the proxy has been taken out."""
        self.raw, self._decoded = raw, None

    def read_json(self) -> Any:
        """The request's body, decoded once: nobody may change it. None: there is none. Raises BadRequest."""
        if self._decoded is None:
            data = self.read()
            self._decoded = wire.loads_request(data) if data else None
        return self._decoded

    def asked(self, body: Any, params: Mapping[str, str] = {}) -> str | None:
        model = model_in(body, params)
        self.call.model_asked = model or self.call.model_asked
        return model

    def send(
        self, place: Place, endpoint: Endpoint, method: str, url: str, headers: Mapping[str, str], body: Any
    ) -> requests.Response:
        """The backend's answer, redirects followed within its own origin."""
        adapter, target, config = place.adapter, endpoint.target, self.generation.config
        import requests  # now that an adapter is there, it is

        if self.leaves is not None:
            body = self.leaves(body)
        if self.attempts is not None:
            self.attempts.leaves(body)
        first_byte_s = config.system.deadlines.first_byte
        for _ in range(HOPS + 1):
            prepared = requests.PreparedRequest()
            prepared.method, prepared.url, prepared.body = method, url, body
            prepared.headers = headers  # type: ignore[assignment]
            prepared.waiting = self.call.waits  # type: ignore[attr-defined]
            prepared.mapped = endpoint.mapped  # type: ignore[attr-defined]
            prepared.first_byte_s = first_byte_s  # type: ignore[attr-defined]
            answer = adapter.send(prepared, stream=True, timeout=target.timeout or config.system.timeout)
            raw: Any = answer.raw
            status = answer.status_code
            location = field_of(raw.fields, "location") if 300 <= status < 400 and status != 304 else None
            if location is None:
                if self.attempts is not None:
                    self.attempts.answered(answer, endpoint)
                for hear in self.hears:
                    overhear(raw, hear)
                for meet in self.meets:
                    meet(endpoint, prepared, answer)
                return answer
            answer.raw.close()
            url = _redirected(url, location)
            if not target.preserve_method and method in METHOD_CHANGES.get(status, ()):
                method, body = "GET", None
                headers = {name: value for name, value in headers.items() if name not in ("content-type", "content-length")}
            elif hasattr(body, "__next__"):
                raise BackendError("the backend redirects a body that cannot be sent again")
        raise BackendError(f"the backend redirects more than {HOPS} times")

    def url(self, endpoint: Endpoint, url: str, params: Mapping[str, str], model: str | None) -> str:
        if endpoint.entry.origin != "route":  # that one ends in the client's own path, whose braces are no placeholders
            url = fill(url, params, model)
        query = self.call.query
        if endpoint.mapped and endpoint.entry.origin == "dialect":
            query = ""  # it belongs to the client's API
        elif query and self.generation.keys.stands_in(query):
            query = "&".join(part for part in query.split("&") if not self.generation.keys.stands_in(part))
        return f"{url}{'&' if '?' in url else '?'}{query}" if query else url

    def headers_up(self, place: Place, endpoint: Endpoint) -> dict[str, str]:
        """The client's headers that go on: all but a deny-list to the same API, an allow-list to another one."""
        given, keys = self.request.headers, self.generation.keys
        if endpoint.mapped:
            allowed = load(place.target.dialect).forward if place.target.dialect else frozenset()
            headers = {name: given[name] for name in allowed if name in given}
            headers["accept-encoding"] = "identity"
            if endpoint.entry.upstream_method != "GET" and self.request.method != "GET":
                headers["content-type"] = "application/json"
        else:
            dropped = listed(given.get("connection"))
            headers = {
                name: value
                for name, value in given.items()
                if name not in NOT_UP
                and name not in dropped
                and not name.startswith("x-mooltiproxy")
                and not keys.stands_in(value)
            }
            if headers.get("accept-encoding", "identity") != "identity":  # an error may quote the key: it must be readable here
                known = [coding for coding in listed(headers["accept-encoding"]) if coding.partition(";")[0] in READABLE]
                headers["accept-encoding"] = ", ".join(known) or "identity"
        if place.target.auth == "passthrough":
            headers.update(keys.passed_through(given))
        headers.update(place.static_headers)
        headers.update(self.key_fields)
        return headers

    # --- bytes for bytes
    def _bytes(self, place: Place, endpoint: Endpoint, choice: Choice, params: Mapping[str, str]) -> None:
        request, call = self.request, self.call
        body: Any = None
        if self.raw is not None or self._is_json() or (request.body.length is not None and request.body.length <= HELD):
            body = self.read() or (b"" if request.body.length != 0 or "content-length" in request.headers else None)
            if body and SEALED in body and endpoint.target.dialect == call.front:
                body = unsealed(call.front, body)
            call.streams = bool(body) and _asks_stream(body)
            if choice.model and (self._is_json() or (body or b"").lstrip()[:1] == b"{"):
                body = self._with_model(body, choice.model)
                if body and "model" in params:  # Gemini's batches name the path's model in each request once more
                    body = body.replace(*(wire.dumps(f"models/{name}") for name in (params["model"], choice.model)))
            elif endpoint.entry.origin != "route" and "{model}" in endpoint.url and "model" not in params:
                self._sent_model = self.asked(self.read_json())
        else:
            body = request.body.pieces()
        headers = self.headers_up(place, endpoint)
        if self._renamed or call.streams:  # the name has to be found in the answer, and a fault told in the stream
            headers["accept-encoding"] = "identity"
        if hasattr(body, "__next__") and request.body.length is not None:
            headers["content-length"] = str(request.body.length)
        model = choice.model or params.get("model") or self._sent_model
        if call.streams:
            self.keep_alive()
        answer = self.send(place, endpoint, request.method, self.url(endpoint, endpoint.url, params, model), headers, body)
        try:
            self._relay_bytes(answer, endpoint)
        finally:
            answer.raw.close()

    def _with_model(self, raw: bytes, model: str) -> bytes:
        from proxy.renaming import with_model

        body: Any = wire.loads_request(raw) if raw else None
        asked = self.asked(body)
        if asked is None or asked == model:
            return raw
        self._renamed, self._sent_model, self.call.model_served = True, model, model
        return with_model(raw, body, model)

    def _relay_bytes(self, answer: requests.Response, endpoint: Endpoint) -> None:
        status, reply = answer.status_code, self.reply
        raw: Any = answer.raw
        fields = self._fields_down(raw.fields)
        if status >= 400:
            self._relay_error(status, raw, fields, endpoint.target)
            return
        stream = kind_of(raw.fields) in STREAMS
        if reply.started and not stream:
            raise BackendError("the backend did not answer with a stream")
        if (
            self._renamed
            and (stream or kind_of(raw.fields) == "application/json")
            and not field_of(raw.fields, "content-encoding")
        ):
            self._relay_renamed(status, raw, fields, stream)
            return
        first = raw.read1()
        if raw.ended and not stream and not reply.started:  # the common case: it is whole
            rest = b"".join(raw)
            self._whole(status, fields, first + rest if rest else first, raw)
            return
        length = field_of(raw.fields, "content-length")
        if stream and not reply.started:
            reply.start(status, fields, None)  # without the length, which an error event would break
            reply.streaming = not field_of(raw.fields, "content-encoding")
        if stream:
            self._quiet()
            reply.piece(first)
            if not raw.ended and reply.pump(raw):
                return
            first = b""
        self._pieces(status, fields, itertools.chain([first], raw), int(length) if length else None, stream)

    def _relay_error(self, status: int, raw: Any, fields: Fields, target: Target) -> None:
        """A backend's error as it is, with the key taken out that it may quote."""
        self.call.error, self.call.error_source = f"the backend answered {status}", "backend"
        coding = (field_of(fields, "content-encoding") or "").lower()
        if coding and coding not in CODINGS:  # nobody here can look into it
            self._pieces(status, fields, raw, None, False)
            return
        body = read_all(raw, ERROR_LIMIT)
        if self.reply.started:
            raise scrubbed(facts_of(status, decoded(body), self.call.front), target)
        fields = [(name, value) for name, value in fields if name != "content-encoding"]
        for key in tuple(target.secrets):  # another call may bring a new one
            body = body.replace(key.encode(), b"***")
            fields = [(name, value.replace(key, "***")) for name, value in fields]
        self._whole(status, fields, body, raw)

    def _whole(self, status: int, fields: Fields, body: bytes, raw: Any) -> None:
        """A reply at once; one to HEAD has no body, but the length that the backend tells of it, if any."""
        if self.request.method != "HEAD":
            self.reply.whole(status, fields, body)
            return
        length = field_of(raw.fields, "content-length")
        self.reply.start(status, fields, int(length) if length else None)
        self.reply.end()

    def _relay_renamed(self, status: int, raw: Any, fields: Fields, stream: bool) -> None:
        """The answer says the name that the client asked for; the real one stands in a header."""
        from proxy.renaming import named, named_lines

        fields = [*fields, ("x-mooltiproxy-model", header_safe(self._sent_model or ""))]
        asked = self.call.model_asked or ""
        if not stream:
            self.reply.whole(status, fields, named(read_all(raw, ANSWER_LIMIT), asked))
            return
        self._pieces(status, fields, named_lines(raw, asked), None, True)

    def _pieces(self, status: int, fields: Fields, pieces: Iterable[bytes], length: int | None, stream: bool) -> None:
        """A body as it comes. A break is visible: an error event in a stream, else a reply that does not end."""
        reply = self.reply
        if not reply.started:
            reply.start(status, fields, length)
            reply.streaming = stream
        for piece in pieces:
            self._quiet()
            reply.piece(piece)
        reply.end()

    def _quiet(self) -> None:
        """No keep-alive from now on: it could fall into the middle of an event."""
        if self.call.waits is not None:
            self.call.waits.tick = None

    def _break_off(self, error: ProxyError) -> None:
        """One error event in the client's dialect, then the end."""
        call, front = self.call, load(self.call.front)
        call.error, call.error_source = error.message, error.source
        cfg = {"id": call.id, "now": call.now, "request": {}, "kind": "chat"}
        self.reply.handler.close_connection = True
        if front.framing(call.query) in ("sse", "named-sse"):
            self.reply.piece(b"\n\n")  # whatever event was cut ends here
        for event in told(front, error, cfg):
            self.reply.piece(wire.frame(front.framing(call.query), event))
        self.reply.end()

    # --- what goes down
    def keep_alive(self) -> None:
        """A client that waits for a stream hears from us after 10 s, and then every 10 s, until something comes."""
        front, reply, call = load(self.call.front), self.reply, self.call
        waits, framing = call.waits, front.framing(call.query)
        if not front.keepalive or waits is None:
            return

        def tick() -> None:
            if not reply.started:
                reply.start_stream(wire.stream_fields(framing))
            reply.comment(front.keepalive)

        waits.tick = tick

    def _fields_down(self, fields: Fields) -> Fields:
        dropped = {part for name, value in fields if name == "connection" for part in listed(value)}
        upstream_id = field_of(fields, "x-request-id")
        kept = [
            (name, value)
            for name, value in fields
            if name not in self.not_down and name not in dropped and not name.startswith("access-control-")
        ]
        return [*kept, ("x-upstream-request-id", upstream_id)] if upstream_id else kept


def _asks_stream(body: bytes) -> bool:
    """Whether a JSON body's own `stream` is true; one further down, in a tool's input, says nothing."""
    if not ASKS_STREAM.search(body):
        return False
    try:
        value = wire.loads(body)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("stream") is True


def _redirected(url: str, location: str) -> str:
    """Where a redirect leads. Raises BackendError unless it stays on its origin."""
    try:
        new = urljoin(url, location)
        old_parts, new_parts = urlsplit(url), urlsplit(new)
        same = (old_parts.scheme, old_parts.netloc) == (new_parts.scheme, new_parts.netloc)
    except ValueError:
        same = False
    if not same or not new.isascii() or re.search(r"[\x00-\x20\x7f]", new):
        raise BackendError("the backend redirects to another host; that is not followed")
    return new.partition("#")[0]
