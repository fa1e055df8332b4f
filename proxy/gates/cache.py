"""Answers that were given before, and are given again: exact, per key, per target.

An entry's name is a digest of all that the answer depends on: the key's name (and the client's own credentials, where they are
passed through), the target, the path and query, the headers that go on to a backend, and the body but for what only says how it
is to be sent. It holds what the client got: a whole answer or a stream, which is replayed as it was, or turned into the other
form. Only answers that are whole are kept, before their last byte goes: who asks once more gets a hit. A cache that fails is a
cache that has nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from proxy import wire
from proxy.config import CacheRule, Config
from proxy.dialects import Dialect, load, path_params, route_of
from proxy.errors import ProxyError
from proxy.folding import folded, hub_of_stream, unfolded
from proxy.gates.asked import Asked
from proxy.http1 import Fields, header_safe
from proxy.state import State, StateLost

logger = logging.getLogger(__name__)

KINDS = ("chat", "text", "embed")
HOW_SENT = frozenset(("stream", "stream_options", "caching"))  # fields that change the form of an answer alone
LARGEST = 8 * 1024 * 1024  # bytes of one entry
LOOK_S = 0.1  # how often a call that waits for another one's answer looks at its client
REMEMBERED = 1024  # bodies
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


class Said(NamedTuple):
    """What a body says that a call for the cache must know; the body itself need not be read again."""

    digest: str  # of all but how its answer is to be sent
    stream: Any
    is_empty: bool


class Cache:
    """One per generation; its entries outlive it where the store does. The lock guards the flights."""

    def __init__(self, config: Config, store: Store) -> None:
        rules = {name: target.cache for name, target in config.targets.items() if target.cache}
        ruled = {name: [rules[member] for member in config.members(name) if member in rules] for name in config.pools}
        of_pools = {name: found[0] for name, found in ruled.items() if found}
        self._rules = {**of_pools, **rules}
        self._most = config.cache.max_bytes
        # whichever target that is: a fallback of a fallback may answer
        self._passes = any(target.auth == "passthrough" for target in config.targets.values())
        self.store = store
        self._asks_others = config.cache.store != "memory"
        self._said: OrderedDict[tuple[bytes, str | None], Said] = OrderedDict()  # digest of a body, its type → what it says
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
        said = self._wanted(asked, rule)
        if said is None:
            _say(asked, "off")
            go_on()
            return
        name = self._name(asked, said)
        if self._asks_others:
            with _pausing(asked):
                entry = self._get(name)
        else:
            entry = self._get(name)
        if self._replay(asked, entry):
            return
        asked.relay.request.headers["accept-encoding"] = "identity"  # what is kept is read here
        if asked.call.streams:
            self._ask(asked, name, rule, go_on)
        else:
            self._share(asked, name, rule, go_on)

    def _wanted(self, asked: Asked, rule: CacheRule) -> Said | None:
        """What this call's body says, if it wants the cache; what it says of that is not the backend's to see."""
        kind = asked.relay.request.headers.get("content-type")
        seen = (hashlib.sha256(asked.relay.read()).digest(), kind)
        said = self._said.get(seen)
        if said is None:
            body = asked.body
            said = Said(_digest(body), body.get("stream"), not body)
            if "caching" in body:
                asked.relay.use_body(wire.dumps({name: value for name, value in body.items() if name != "caching"}))
                given = body["caching"]
                asked.call.streams = _streams(asked, said)
                return said if (given if isinstance(given, bool) else rule.default) else None
            self._said[seen] = said
            if len(self._said) > REMEMBERED:
                self._said.popitem(last=False)
        asked.call.streams = _streams(asked, said)
        return said if rule.default and not said.is_empty else None

    def _name(self, asked: Asked, said: Said) -> str:
        """The name of the entry for a call: a digest of all that its answer depends on."""
        call, given = asked.call, asked.relay.request.headers
        headers = [(name, given[name]) for name in _forwarded(call.front) if name in given]
        own = asked.relay.generation.keys.passed_through(given) if self._passes else {}
        choice = (asked.choice.target, asked.choice.model)
        parts = (
            call.key_name,
            sorted(own.items()),
            choice,
            call.front,
            _form_free(call.path),
            call.query,
            headers,
            said.digest,
        )
        return "cache " + hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()

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
        _say(asked, "miss")
        keeping = Keeping(asked, lambda entry: self._put(asked, name, entry, rule.ttl_s))
        go_on()
        return keeping.entry

    def _put(self, asked: Asked, name: str, entry: bytes, ttl_s: float) -> None:
        try:
            with _pausing(asked) if self._asks_others else nullcontext():
                self.store.put(name, entry, ttl_s, self._most)
        except (StateLost, ProxyError, sqlite3.Error, OSError) as fault:
            logger.warning("%s: the answer was not kept: %s", asked.call.id, fault)

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
        call.model_served = None if head == b"null" else json.loads(head)
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


class Keeping:
    """Hears the reply to one call, and keeps it when it is whole: before its last bytes go to the client, and without holding
    anything else back. It takes the place of the reply's `whole`, `end` and `pump`."""

    def __init__(self, asked: Asked, keep: Callable[[bytes], None]) -> None:
        self._asked, self._keep_entry = asked, keep
        self.entry: bytes | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._over = False
        reply = asked.relay.reply
        self._whole, self._end = reply.whole, reply.end
        reply.heard = (*reply.heard, self._hear)
        for name in ("whole", "end", "pump"):
            setattr(reply, name, getattr(self, name))

    def _hear(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= LARGEST:
            self._pieces.append(bytes(piece))

    def _keep(self, status: int) -> None:
        if not self._over and self._size <= LARGEST:
            self._over = True
            self.entry = entry_of(self._asked, status, b"".join(self._pieces))
            if self.entry is not None:
                self._keep_entry(self.entry)

    def whole(self, status: int, fields: Fields, body: bytes) -> None:
        """See Reply."""
        self._hear(body)
        self._keep(status)
        self._whole(status, fields, body)

    def end(self) -> None:
        """See Reply."""
        self._keep(self._asked.call.status)
        self._end()

    def pump(self, body: Any) -> bool:
        """See Reply: the pump's one thread must not wait for a store, with all other streams behind it."""
        return False


def _digest(body: Mapping[str, Any]) -> str:
    told = {name: value for name, value in body.items() if name not in HOW_SENT}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@lru_cache(None)
def _forwarded(front: str) -> list[str]:
    """The headers that may go on to a backend of that API."""
    return sorted(load(front).forward)


def _form_free(path: str) -> str:
    """Gemini's two paths of one operation."""
    return path.replace(":streamGenerateContent", ":generateContent")


def entry_of(asked: Asked, status: int, body: bytes) -> bytes | None:
    """What is kept of an answer; None of one that is an error, or not whole."""
    call = asked.call
    if status != 200 or call.error is not None or not _is_whole(asked, body):
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


def _streams(asked: Asked, said: Said) -> bool:
    if asked.kind == "embed":
        return False
    route = route_of(asked.call.front, asked.call.method, asked.call.path)
    if route is not None and route.stream is not None:
        return route.stream
    return load(asked.call.front).stream_default if said.stream is None else said.stream is True


def _say(asked: Asked, what: str) -> None:
    reply = asked.relay.reply
    others = [pair for pair in reply.extra if pair[0] != "x-mooltiproxy-cache"] if asked.call.cache else reply.extra
    reply.extra = [*others, ("x-mooltiproxy-cache", what)]
    asked.call.cache = what


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
