"""A call through mappers: an answer is read whole and mapped, a stream event by event.

A stream's first event is awaited before a status is sent, so that a backend's early failure still is a status and not a broken
stream.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from proxy import wire
from proxy.answers import (
    ANSWER_LIMIT,
    STREAMS,
    field_of,
    json_answer,
    kind_of,
    raise_for_error,
    read_all,
    scrubbing,
    unless_error,
)
from proxy.dialects import load
from proxy.errors import BackendError, BadRequest, ProxyError
from proxy.generation import Place
from proxy.http1 import Fields, header_safe
from proxy.routing import Choice
from proxy.translate import Endpoint, Step, Translation

if TYPE_CHECKING:
    from proxy.relay import Relay

logger = logging.getLogger(__name__)

UNWRITABLE = (TypeError, ValueError, RecursionError)  # what writing JSON raises
LARGE = 256 * 1024  # bytes of a body whose mapping may take long: other calls need not wait for it
LOOKED_THROUGH = 1024 * 1024  # bytes of a body that waits to be looked through for losses
DEBUG_SHOWN = 16 * 1024  # characters of a body in the debug log


class Mapped:
    """The mapped half of one call's relaying; see `Relay`."""

    def __init__(self, relay: Relay, place: Place, endpoint: Endpoint, choice: Choice) -> None:
        self._relay, self._call, self._reply = relay, relay.call, relay.reply
        self._place, self._endpoint, self._choice = place, endpoint, choice
        self._debugs = logger.isEnabledFor(logging.DEBUG)
        call, method = relay.call, relay.request.method
        self._translation = Translation(endpoint, call.id, call.front, method, call.path, call.now)

    def run(self, params: Mapping[str, str]) -> None:
        """Answers the request. Raises like `Relay.run`."""
        relay, call, endpoint = self._relay, self._call, self._endpoint
        data, rejects = relay.read(), endpoint.target.on_loss == "reject"
        if call.waits and (endpoint.own or rejects or len(data) > LARGE):
            call.waits.step_aside()
        own = wire.loads_request(data) if data and endpoint.own else None  # which a mapper of the user's may change
        body = own if endpoint.own else relay.read_json()
        if body is None and endpoint.inward and not data:
            raise BadRequest("the body is empty, where JSON is wanted")
        self._debug("the client's request", data)
        asked = relay.asked(body, params)
        at_once = self._translation.at_once(body)
        if at_once is not None:
            self._reply.json(200, at_once)
            return
        model = self._choice.model or asked
        call.streams = stream = self._translation.wants_stream(body)
        mapped = self._translation.request(body, stream, params, call.query, model)
        if endpoint.inward and (rejects or (endpoint.target.on_loss != "allow" and len(data) <= LOOKED_THROUGH)):
            self._look_at_losses(body)
        if endpoint.answer:
            self._reply.json(200, self._translation.own_answer(mapped))
            return
        call.model_served = model
        if self._choice.model and isinstance(mapped, dict) and "model" in mapped:
            mapped = {**mapped, "model": self._choice.model}
        if stream:
            relay.keep_alive()
        headers = relay.headers_up(self._place, endpoint)
        if endpoint.before:
            mapped = self._asked_before(mapped, headers)
        self._exchange(mapped, headers, params, stream)

    def _exchange(self, mapped: Any, headers: Mapping[str, str], params: Mapping[str, str], stream: bool) -> None:
        relay, endpoint = self._relay, self._endpoint
        method = endpoint.entry.upstream_method or relay.request.method
        template = endpoint.stream_url if stream and endpoint.stream else endpoint.url
        url = relay.url(endpoint, template, params, self._call.model_served)
        payload = (
            None
            if method in ("GET", "HEAD")
            else self._written(mapped, endpoint.inward, asked=True)
            if endpoint.inward
            else relay.read()
        )
        self._debug("sent to the backend", payload or b"")
        answer = relay.send(self._place, endpoint, method, url, headers, payload)
        try:
            self._answer(answer.status_code, answer.raw, stream)
        finally:
            answer.raw.close()

    def _look_at_losses(self, body: Any) -> None:
        """What the translation loses, as far as it is known. Raises BadRequest where the target rejects losses of meaning."""
        endpoint, translation = self._endpoint, self._translation
        rejects = endpoint.target.on_loss == "reject"
        name = f"{self._call.front} → target {endpoint.target.name!r}"
        known = self._relay.generation.ledger.lost(endpoint, name, body, translation.pure, now=rejects)
        if not known and not translation.told:
            return
        told = tuple(dict.fromkeys((*known, *translation.told)))
        lost = tuple(path for path in told if not any(path.startswith((f"{other}.", f"{other}[")) for other in told))
        self._call.lost = lost
        meant = [path for path in lost if re.split(r"[.\[]", path)[1] not in translation.front.tuning]
        if rejects and meant:
            message = f"target {endpoint.target.name!r} cannot express {', '.join(meant)}"
            raise BadRequest(message, param=meant[0].removeprefix("$."), code="lossy_translation")

    def _asked_before(self, body: Any, headers: Mapping[str, str]) -> Any:
        """The body as a first call to the backend makes it, where the backend writes the prompt itself."""
        asked = wire.dumps(self._translation.before(body))
        answer = self._relay.send(self._place, self._endpoint, "POST", self._endpoint.before_url, headers, asked)
        try:
            raise_for_error(answer.status_code, answer.raw, self._endpoint)
            return self._translation.after(body, json_answer(read_all(answer.raw, ANSWER_LIMIT)))
        finally:
            answer.raw.close()

    def _answer(self, status: int, raw: Any, stream: bool) -> None:
        raise_for_error(status, raw, self._endpoint)
        fields = self._own_fields(raw.fields)
        if stream and self._endpoint.stream and kind_of(raw.fields) in STREAMS:
            self._stream(raw, fields)
            return
        body = read_all(raw, ANSWER_LIMIT)
        if self._call.waits and len(body) > LARGE:
            self._call.waits.step_aside()
        self._debug("the backend's answer", body)
        mapped = self._translation.answer(json_answer(body))
        if stream:
            self._events(self._translation.checked(self._translation.unfolded(mapped)), fields)
            return
        written = self._written(mapped, self._endpoint.outward, asked=False)
        self._debug("answered to the client", written)
        self._reply.whole(status, [("content-type", "application/json"), *fields], written)

    def _stream(self, raw: Any, fields: Fields) -> None:
        events = wire.reader(kind_of(raw.fields))(raw)
        first = list(itertools.islice(events, 1))  # prime the backend: a mapper may speak before it listens
        if not first:
            raise BackendError("the backend's stream is empty")
        if not self._reply.started:
            first = [unless_error(first[0], self._endpoint)]
        events = self._watched("event of the backend", itertools.chain(first, events))
        mapped = scrubbing(self._translation.events(events), self._endpoint.target)
        self._events(self._watched("event to the client", self._translation.checked(mapped)), fields)

    def _watched(self, what: str, events: Iterator[Any]) -> Iterator[Any]:
        """The events; with `debug` each is logged as it passes."""
        if not self._debugs:
            return events
        return self._shown(what, events)

    def _shown(self, what: str, events: Iterator[Any]) -> Iterator[Any]:
        for event in events:
            self._debug(what, event)
            yield event

    def _events(self, events: Iterator[Any], fields: Fields) -> None:
        """Events → the client's stream. Its grammar has told a break that raises here; without one `Relay.run` tells it."""
        reply, front, call = self._reply, load(self._call.front), self._call
        framing = front.framing(call.query)
        if not reply.started:
            reply.start_stream([*wire.stream_fields(framing), *fields])
        try:
            for piece in wire.write(framing, events, front.done):
                reply.piece(piece)
        except UNWRITABLE as fault:  # not told yet: `Relay.run` does
            raise self._translation.fault(self._endpoint.stream, fault, asked=False) from fault
        except ProxyError as error:
            call.error, call.error_source = error.message, error.source
            reply.handler.close_connection = True
            if error.status == 499 or not self._translation.has_grammar:
                raise
        reply.end()

    def _written(self, value: Any, steps: Sequence[Step], asked: bool) -> bytes:
        """A mapped body as JSON. Raises what a fault of its last mapper raises: it gave what is no JSON."""
        try:
            return wire.dumps(value)
        except UNWRITABLE as fault:
            raise self._translation.fault(steps, fault, asked) from fault

    def _debug(self, what: str, body: Any) -> None:
        """With `debug`: a body before or after mapping, its keys taken out."""
        if not self._debugs:
            return
        text = (body if isinstance(body, bytes) else wire.dumps(body)).decode("utf-8", "replace")
        for secret in (self._relay.generation.config.master_key, *self._endpoint.target.secrets):
            text = text.replace(secret, "***") if secret else text
        logger.debug("%s %s: %s", self._call.id, what, text[:DEBUG_SHOWN])

    def _own_fields(self, fields: Fields) -> Fields:
        """Headers of a mapped answer: the backend's request id and limits, the model that really answered, what was lost."""
        call = self._call
        own = [(name, value) for name, value in fields if name.startswith("x-ratelimit-") and name not in self._relay.not_down]
        if self._translation.front.id_header:
            own.append((self._translation.front.id_header, call.id))
        upstream_id = field_of(fields, "x-request-id") or field_of(fields, "request-id")
        if upstream_id:
            own.append(("x-upstream-request-id", upstream_id))
        if call.model_served and call.model_served != call.model_asked:
            own.append(("x-mooltiproxy-model", header_safe(call.model_served)))
        if call.lost:
            own.append(
                (
                    "x-mooltiproxy-lost",
                    header_safe(", ".join([path[:100] for path in call.lost[:30]] + ["..."] * (len(call.lost) > 30))),
                )
            )
        return own
