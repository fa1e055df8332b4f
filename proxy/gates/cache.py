"""Answers that were given before, and are given again: exact, per key, per target.

An entry's name is a digest of all that the answer depends on: the key's name (and the client's own credentials, where they are
passed through), the target, the path and query, the headers that go on to a backend, and the body but for what only says how it
is to be sent. It holds what the client got: a whole answer or a stream, which is replayed as it was, or turned into the other
form. Only answers that are whole are kept. A cache that fails is a cache that has nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from proxy import wire
from proxy.config import CacheRule, Config
from proxy.dialects import Dialect, load, path_params, route_of
from proxy.errors import ProxyError
from proxy.folding import folded, hub_of_stream, unfolded
from proxy.gates.asked import Asked
from proxy.http1 import header_safe
from proxy.state import State, StateLost

logger = logging.getLogger(__name__)

KINDS = ("chat", "text", "embed")
HOW_SENT = frozenset(("stream", "stream_options", "caching"))  # fields that change the form of an answer alone
LARGEST = 8 * 1024 * 1024  # bytes of one entry
LOOK_S = 0.1  # how often a call that waits for another one's answer looks at its client
WHOLE, STREAM = b"W", b"S"


class Store(Protocol):
    """Where entries are: the memory of this process, the shared state, or a file."""

    def get(self, name: str) -> bytes | None: ...
    def put(self, name: str, data: bytes, ttl_s: float, max_bytes: int) -> None: ...
    def close(self) -> None: ...


def open_store(where: str, state: Callable[[], State]) -> Store:
    """`cache.store`: memory, state, or sqlite:FILE. Raises ConfigError when the file cannot be used."""
    if where == "state":
        return state()
    if where.startswith("sqlite:"):
        from proxy.gates.cache_file import CacheFile

        return CacheFile(where.removeprefix("sqlite:"))
    from proxy.state.memory import Memory

    return Memory()


class Flight:
    """A call on its way whose answer others wait for, because they asked the same."""

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.entry: bytes | None = None


class Cache:
    """One per generation; its entries outlive it where the store does. The lock guards the flights."""

    def __init__(self, config: Config, store: Store) -> None:
        rules = {name: target.cache for name, target in config.targets.items() if target.cache}
        of_pools = {name: rules[member] for name in config.pools for member in config.members(name) if member in rules}
        self._rules = {**of_pools, **rules}
        self._most = config.cache.max_bytes
        self.store = store
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}

    def end(self) -> None:
        """The process ends."""
        self.store.close()

    def run(self, asked: Asked, go_on: Callable[[], None]) -> None:
        """Answers from the cache, or lets `go_on` answer and keeps that. Raises what `go_on` raises."""
        rule = self._rules.get(asked.choice.target)
        if rule is None or asked.kind not in KINDS or asked.call.method != "POST":
            go_on()
            return
        wanted = self._wanted(asked, rule)
        if not wanted:
            _say(asked, "off")
            go_on()
            return
        asked.relay.request.headers["accept-encoding"] = "identity"  # what is kept is read here
        name = name_of(asked)
        with _pausing(asked):
            entry = self._get(name)
        if self._replay(asked, entry):
            return
        if asked.call.streams:
            self._ask(asked, name, rule, go_on)
        else:
            self._share(asked, name, rule, go_on)

    def _wanted(self, asked: Asked, rule: CacheRule) -> bool:
        """Whether this call wants the cache; what it says of that is not the backend's to see."""
        front, body = load(asked.call.front), asked.body
        asked.call.streams = _streams(front, asked)
        if "caching" not in body:
            return rule.default and bool(body)
        given = body["caching"]
        asked.relay.use_body(wire.dumps({name: value for name, value in body.items() if name != "caching"}))
        return given if isinstance(given, bool) else rule.default

    def _share(self, asked: Asked, name: str, rule: CacheRule, go_on: Callable[[], None]) -> None:
        """The first of several that ask the same at once asks the backend; the others take its answer, or go on alone."""
        with self._lock:
            flight = self._flights.get(name)
            first = flight is None
            if flight is None:
                flight = self._flights[name] = Flight()
        if not first:
            _wait(asked, flight)
            if not self._replay(asked, flight.entry):
                self._ask(asked, name, rule, go_on)
            return
        try:
            flight.entry = self._ask(asked, name, rule, go_on)
        finally:
            with self._lock:
                del self._flights[name]
            flight.landed.set()

    def _ask(self, asked: Asked, name: str, rule: CacheRule, go_on: Callable[[], None]) -> bytes | None:
        """Lets the backend answer; the entry that was kept, if any."""
        reply, size = asked.relay.reply, 0
        pieces: list[bytes] = []

        def hear(piece: bytes) -> None:
            nonlocal size
            size += len(piece)
            if size <= LARGEST:
                pieces.append(bytes(piece))

        reply.heard = (*reply.heard, hear)
        _say(asked, "miss")
        go_on()
        entry = entry_of(asked, b"".join(pieces)) if size <= LARGEST else None
        if entry is not None:
            try:
                with _pausing(asked):
                    self.store.put(name, entry, rule.ttl_s, self._most)
            except (StateLost, ProxyError, sqlite3.Error, OSError) as fault:
                logger.warning("%s: the answer was not kept: %s", asked.call.id, fault)
        return entry

    def _get(self, name: str) -> bytes | None:
        try:
            return self.store.get(name)
        except (StateLost, ProxyError, sqlite3.Error, OSError) as fault:
            logger.warning("the cache cannot be read: %s", fault)
            return None

    def _replay(self, asked: Asked, entry: bytes | None) -> bool:
        """Sends an entry in the form that is asked for. False when there is none."""
        if entry is None:
            return False
        call, reply, front = asked.call, asked.relay.reply, load(asked.call.front)
        head, _, body = entry[1:].partition(b"\n")
        call.model_served = json.loads(head)
        as_stream = call.streams
        if as_stream != entry.startswith(STREAM):
            body = _as_stream(front, asked, body) if as_stream else _as_whole(front, asked, body)
        _say(asked, "hit")
        fields = [(front.id_header, call.id)] if front.id_header else []
        if call.model_served and call.model_served != call.model_asked:
            fields.append(("x-mooltiproxy-model", header_safe(call.model_served)))
        if not as_stream:
            reply.whole(200, [("content-type", "application/json"), *fields], body)
            return True
        reply.start_stream([*wire.stream_fields(front.framing(call.query)), *fields])
        reply.piece(body)
        reply.end()
        return True


def name_of(asked: Asked) -> str:
    """The name of the entry for a call: a digest of all that its answer depends on."""
    relay, call = asked.relay, asked.call
    given = relay.request.headers
    headers = {name: given[name] for name in sorted(load(call.front).forward) if name in given}
    config = relay.generation.config
    passing = any(config.targets[name].auth == "passthrough" for name in config.members(asked.choice.target))
    own = relay.generation.keys.passed_through(given) if passing else {}
    body = {name: value for name, value in asked.body.items() if name not in HOW_SENT}
    parts = [call.key_name, own, asked.choice.target, asked.choice.model, call.front, _form_free(call.path), call.query]
    text = json.dumps([*parts, headers, body], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "cache " + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _form_free(path: str) -> str:
    """Gemini's two paths of one operation."""
    return path.replace(":streamGenerateContent", ":generateContent")


def entry_of(asked: Asked, body: bytes) -> bytes | None:
    """What is kept of an answer; None of one that is an error, or not whole."""
    call = asked.call
    if call.status != 200 or call.error is not None or not _is_whole(asked, body):
        return None
    return (STREAM if call.streams else WHOLE) + wire.dumps(call.model_served) + b"\n" + body


def _is_whole(asked: Asked, body: bytes) -> bool:
    try:
        if not asked.call.streams:
            answer = wire.loads(body)
            return isinstance(answer, dict | list) and not (isinstance(answer, dict) and answer.get("error"))
        front = load(asked.call.front)
        choices = hub_of_stream(front, asked.kind, _events(front, asked, body), _cfg(asked)).get("choices")
        return bool(choices) and all(choice.get("finish_reason") for choice in choices or ())
    except (ProxyError, ValueError, TypeError, LookupError, AttributeError):
        return False


def _as_stream(front: Dialect, asked: Asked, body: bytes) -> bytes:
    events = unfolded(front, asked.kind, wire.loads(body), _cfg(asked))
    return b"".join(wire.write(front.framing(asked.call.query), events, front.done))


def _as_whole(front: Dialect, asked: Asked, body: bytes) -> bytes:
    return wire.dumps(folded(front, asked.kind, _events(front, asked, body), _cfg(asked)))


def _events(front: Dialect, asked: Asked, body: bytes) -> Any:
    return wire.reader(wire.CONTENT_TYPES[front.framing(asked.call.query)])([body])


def _cfg(asked: Asked) -> Mapping[str, Any]:
    call = asked.call
    params = path_params(call.front, call.method, call.path)
    return {"id": call.id, "now": call.now, "kind": asked.kind, "params": params, "query": call.query, "request": asked.body}


def _streams(front: Dialect, asked: Asked) -> bool:
    route = route_of(asked.call.front, asked.call.method, asked.call.path)
    if asked.kind == "embed":
        return False
    if route is not None and route.stream is not None:
        return route.stream
    given = asked.body.get("stream")
    return front.stream_default if given is None else given is True


def _say(asked: Asked, what: str) -> None:
    asked.call.cache = what
    reply = asked.relay.reply
    reply.extra = [*(pair for pair in reply.extra if pair[0] != "x-mooltiproxy-cache"), ("x-mooltiproxy-cache", what)]


def _pausing(asked: Asked) -> AbstractContextManager[None]:
    """Around what reads a file or asks another process: others may compute meanwhile."""
    return asked.call.waits.pausing() if asked.call.waits else nullcontext()


def _wait(asked: Asked, flight: Flight) -> None:
    """Until the other call has its answer, or has failed. Raises ClientGone."""
    waits = asked.call.waits
    assert waits is not None
    landed = False
    while not landed:
        with waits.pausing():
            landed = flight.landed.wait(LOOK_S)
        waits.look()
