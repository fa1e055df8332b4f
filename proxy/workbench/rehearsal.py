"""One request through the relay that serves, without a client's socket, and without a backend unless one is asked for.

`explain` and `replay` are made of this: the handler's own reply and refusals, the relay, its headers, urls and mappers. Only
the two ends are played: the client is a body in memory, the backend an adapter that answers from one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import BaseAdapter

from proxy import dialects
from proxy.adapters.exchange import Answer
from proxy.adapters.made import Pieces
from proxy.call import Call, Waiting
from proxy.config import Cerbere, Config, System, Target
from proxy.endpoints import Functions
from proxy.errors import BackendError, ProxyError
from proxy.generation import Generation
from proxy.handler import Handler, Request
from proxy.http1 import Fields, parse_head
from proxy.losses import Ledger, lost_paths
from proxy.prompts import chatml
from proxy.records.cassettes import Json, Tape, unpacked
from proxy.records.secrets import MASK
from proxy.relay import Relay
from proxy.reply import Reply
from proxy.routing import Choice
from proxy.translate import Endpoint
from proxy.upstream import key_field
from proxy.wire import dumps, loads

NOW = 1_700_000_000  # what mappers get as the time where no call says another
ID = "0" * 28
ANY_SIZE = 1 << 40  # bytes: nothing is too large to be looked at


@dataclass(frozen=True)
class Asked:
    """A client's request. `target`: where it goes, None: where the configuration sends it."""

    method: str
    path: str
    body: bytes = b""
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    front: str | None = None
    id: str = ID
    now: int = NOW


@dataclass
class Played:
    """What became of it: `tape` is what a cassette is made of, `head` the reply's first line and fields."""

    call: Call
    tape: Tape
    head: tuple[str, Fields]
    pieces: list[bytes]
    pool: str | None = None  # of which the target is the first member

    @property
    def body(self) -> bytes:
        """All that the client got."""
        return b"".join(self.pieces)


class Knowing(Ledger):
    """What translations lose, told with the first request already. `looks`: the mappers run for that, not for a call."""

    looks = False

    def lost(self, endpoint: object, name: str, body: Any, mapped: Callable[[Any], Any], now: bool = False) -> tuple[str, ...]:
        self.looks = True
        try:
            return tuple(lost_paths(body, mapped))
        finally:
            self.looks = False


@dataclass(frozen=True)
class Alone(Config):
    """A configuration of which nothing is counted, shared, limited or kept."""

    @property
    def traffic(self) -> bool:
        """Nothing stands between the choice of a target and its backend."""
        return False


class Stage(Generation):
    """A generation for one rehearsed call at a time. `watch` makes of each endpoint the one that is run."""

    def __init__(self, config: Config, mappers: Functions, prompters: Functions) -> None:
        kept = {each.name: getattr(config, each.name) for each in fields(config)}
        once: Json = {"retries": None, "fallback": (), "breaker": None, "queue": None, "pace_s": 0.0}
        alone: Json = {"system": System(), "cerbere": Cerbere(), "state": "memory", "records": None, "console": None}
        alone |= {"keys": {}, "targets": {name: replace(target, **once) for name, target in config.targets.items()}}
        super().__init__(Alone(**(kept | alone)), mappers, prompters)
        self.watch: Callable[[Endpoint], Endpoint] | None = None
        self._ledger = self.losses = Knowing()

    def find(self, *wanted: Any) -> tuple[Endpoint, Mapping[str, str]] | None:
        found = super().find(*wanted)
        return (self.watch(found[0]), found[1]) if found and self.watch else found


class Desk(Handler):
    """The handler of a connection that is none: a request's bytes are there already, the reply's head is kept."""

    def __init__(self, generation: Generation, body: bytes) -> None:
        self.server = SimpleNamespace(generation=generation, draining=False)  # type: ignore[assignment]
        self.buffer, self.head = body, b""
        self.close_connection = False

    def send_bytes(self, data: bytes) -> None:
        self.head = self.head or data.partition(b"\r\n\r\n")[0]


class Sheet(Reply):
    def pump(self, body: Any) -> bool:
        """There is no socket to pump into."""
        return False


class Rehearsed(Relay):
    """Goes to the given target whatever it is called for, past limits, retries and fallbacks. `pool`: whose member that is."""

    sent_to: str | None = None
    pool: str | None = None
    asks = False  # the backend, for real: with the key that a call would bring

    def _run(self) -> None:
        choice = self._chosen()
        target = self.generation.config.targets[choice.target]
        if self.asks and (target.keys or target.key_command):
            from proxy.attempts import Attempts

            Attempts(self.generation).run(self, choice)
            return
        several = target.keys or target.key_command
        self.key_fields = key_field(target.auth, MASK if several else None)
        self.once(choice)

    def _chosen(self) -> Choice:
        router, params = self.generation.router, dialects.path_params(self.call.front, self.request.method, self.call.path)
        body = self.read_json() if router.needs_model and self._is_json() else None
        chosen = router.choose(self.request.headers.get("target"), None, self.asked(body, params))
        if self.sent_to not in (None, chosen.target):
            chosen = router.choose(self.sent_to, None, None)
        config = self.generation.config
        if chosen.target not in config.pools:
            return chosen
        self.pool, first = chosen.target, config.members(chosen.target)[0]
        return Choice(first, config.targets[first].model or chosen.model)


Scripted = tuple[int, Fields, Iterable[bytes]]


class Script(BaseAdapter):
    """A backend that gives its answers one after the other: (status, fields, pieces) each. Then it breaks, with status 0."""

    def __init__(self, answers: Iterable[Scripted], missing: str = "the backend was not asked this before") -> None:
        self._answers, self._missing = iter(answers), missing

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """The next one; reading it raises BackendError when all are given."""
        status, fields, pieces = next(self._answers, (0, [], self._none()))
        return Answer(status, "Status", Pieces(fields, pieces), request)

    def _none(self) -> Iterator[bytes]:
        raise BackendError(self._missing)
        yield b""  # a generator: it fails when it is read

    def close(self) -> None:
        """Nothing is open."""


def rehearse(generation: Generation, asked: Asked, backend: BaseAdapter | None = None) -> Played:
    """Runs the request; `backend` stands in for the target's, which is asked for real when it is None."""
    desk = Desk(generation, asked.body)
    fields = [(name, value) for name, value in asked.headers.items() if name not in ("host", "content-length")]
    fields += [("host", "localhost"), ("content-length", str(len(asked.body)))]
    whole = f"{asked.path}?{asked.query}" if asked.query else asked.path
    request = Request(desk, f"{asked.method} {whole} HTTP/1.1", fields)
    front = asked.front or dialects.front(asked.method, asked.path, request.headers)
    call = Call(asked.method, asked.path, asked.query, "127.0.0.1", front, asked.id, now=asked.now)
    call.waits = Waiting(None)
    desk.reply = Sheet(desk, asked.method, True)
    desk.reply.call = call
    pieces: list[bytes] = []
    desk.reply.heard = (pieces.append,)
    relay = Rehearsed(generation, call, request, desk.reply, None)
    relay.sent_to, relay.asks = asked.target, backend is None
    tape = Tape(relay, limit=ANY_SIZE)
    with_backend = {name: place.adapter for name, place in generation.places.items()}
    try:
        for place in generation.places.values() if backend else ():
            place.adapter = backend  # type: ignore[assignment]
        relay.run()
    except ProxyError as error:
        desk._refuse(call, error)
    finally:
        for name, adapter in with_backend.items():
            generation.places[name].adapter = adapter
    return Played(call, tape, parse_head(desk.head) if desk.head else ("", []), pieces, relay.pool)


def asked_of(cassette: Json) -> Asked:
    """The request that a cassette holds."""
    client = cassette["client"]
    known = {name: cassette[name] for name in ("target", "front", "id", "now")}
    body = b"".join(unpacked(client["body"]))
    return Asked(client["method"], client["path"], body, client["query"], client["headers"], **known)


def answers_of(cassette: Json) -> list[Scripted]:
    """What the backend answered, in the pieces in which it came."""
    met = cassette["backend"]
    return [(each["status"], list(each["fields"].items()), unpacked(each["answer"])) for each in met]


class Demo(BaseAdapter):
    """A backend of any API that this program can answer for: the demo, behind the front of that API."""

    def __init__(self, api: str) -> None:
        target = Target("demo", "demo://", dialect="openai", on_loss="allow")
        self._stage = Stage(Config(System(), Cerbere(), {"demo": target}, "demo"), {}, {})
        self._api = api

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """Its answer. Raises BackendError for a path that no client of that API calls."""
        parts, body = urlsplit(request.url or ""), request.body or b""
        sent = body.encode() if isinstance(body, str) else body
        if parts.path.endswith("/apply-template"):
            return self._prompted(request, sent)
        front, path = self._route(request.method or "", unquote(parts.path))
        played = rehearse(self._stage, Asked(request.method or "", path, sent, parts.query, front=front))
        return Answer(played.call.status, "Status", Pieces(_kept(played.head[1]), played.pieces), request)

    def _route(self, method: str, path: str) -> tuple[str, str]:
        """The front, and what of the path is its own: a url may have a base before it."""
        places = [at for at, letter in enumerate(path) if letter == "/"]
        for name in (self._api, "openai"):
            for at in places:
                if dialects.route_of(name, method, path[at:]):
                    return name, path[at:]
        raise BackendError(f"there is no example answer to {method} {path}")

    def _prompted(self, request: requests.PreparedRequest, sent: bytes) -> requests.Response:
        """llama.cpp writes prompts itself, with the model's template; here it is ChatML's."""
        prompt, _ = chatml(loads(sent)["messages"], {})
        return Answer(200, "OK", Pieces([("content-type", "application/json")], [dumps({"prompt": prompt})]), request)

    def close(self) -> None:
        """Nothing is open."""


def _kept(fields: Fields) -> Fields:
    return [(name, value) for name, value in fields if name == "content-type"]
