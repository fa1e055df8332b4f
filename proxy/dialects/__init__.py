"""One API a file: its mappers both ways, its paths, its error shape, its stream grammar.

This module holds what the dialect files have in common, finds them, and tells which API a request speaks. A dialect is
imported when a request or the configuration first needs it. Adding one means adding a file with a `DIALECT` in it.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from proxy.errors import BackendError, ProxyError

Event = dict[str, Any]
Mapper = Callable[..., Any]
NOTHING: Mapping[Any, Any] = MappingProxyType({})  # a default that nobody can change


class Headers(Protocol):
    """Request headers by lower-case name."""

    def get(self, name: str, /) -> str | None: ...


class Route(NamedTuple):
    """One path of an API as its clients call it.

    `path` may hold `{placeholders}`. `kind` is the operation: chat, text (a bare prompt), embed, models, model (one of
    them), count (tokens of a chat), or a name of the dialect's own. `stream`: True or False when the path says so, None
    when the body's `stream` does. `answer` names a function that answers without a backend that has this operation.
    """

    method: str
    path: str
    kind: str
    stream: bool | None = None
    answer: str | None = None


class Upstream(NamedTuple):
    """Where a backend of this dialect does one kind of operation; `path` comes after the version and may hold {model}.

    `before` names a kind that the backend is asked first, where the endpoint has no prompter: what the request mappers gave
    goes through <before>Req<tag>, that kind's answer through <before>Ans<tag>, which gives the body to send (cfg["request"]
    is the body of the request mappers).
    """

    path: str
    stream_path: str | None = None
    method: str = "POST"
    before: str | None = None


class Dialect(NamedTuple):
    """What the proxy must know of one API beside its mappers."""

    name: str  # the file's name, as in `dialect: name`
    tag: str  # as in mapper names: chatReq<tag>toOpenAI
    routes: tuple[Route, ...]
    backend: Mapping[str, Upstream]  # kind → where
    version: str  # the version segment that follows a backend's url, "/v1"
    error_body: Callable[[ProxyError, str], Any]  # (error, request id) → JSON body
    parse_error: Callable[[int, Any], BackendError]  # (status, decoded body, or its text) → the facts
    grammar: Callable[[Iterable[Event], Mapping[str, Any]], Iterator[Event]]
    statuses: Mapping[int, int] = NOTHING  # a status that this API's clients know by another number
    based: bool = False  # a backend url with a path is the base already: the version goes to a bare host only
    auth: str = "bearer"  # how a key goes to such a backend
    headers: Mapping[str, str] = NOTHING  # what such a backend always wants
    forward: frozenset[str] = frozenset()  # client headers that a translated call to such a backend may carry on
    prefixes: tuple[str, ...] = ()  # everything below goes through untouched when both ends speak this dialect
    framing: Callable[[str], str] = lambda query: "sse"  # query of the request → sse, named-sse, ndjson or array
    done: bytes = b""  # what follows a whole stream, "data: [DONE]\n\n"
    keepalive: bytes = b""  # what may be sent to a waiting streaming client
    at_once: Callable[[Any, Mapping[str, Any]], Any] | None = None  # the answer to a body that asks no backend for anything
    unsealed: Callable[[Any], Any] | None = None  # a client's body without what `_seal.py` put in, for a backend of this API
    id_header: str | None = None  # where its clients look for the request id, beside x-request-id
    stream_default: bool = False  # what an absent `stream` means
    tuning: frozenset[str] = frozenset()  # top-level request fields whose loss changes no meaning
    aws: str | None = None  # the service that requests to such a backend are signed for; see `adapters/aws.py`


def names() -> list[str]:
    """Every dialect's name; openai, the hub, first."""
    found = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    return ["openai", *(name for name in found if name != "openai")]


@lru_cache(maxsize=None)
def load(name: str) -> Dialect:
    """The dialect of that name. Raises KeyError when there is none."""
    if name not in names():
        raise KeyError(name)
    dialect: Dialect = importlib.import_module(f"{__name__}.{name}").DIALECT
    return dialect


MAPPER_NAME = re.compile(r"[a-z]+(?:(?:Req|Ans|Stream)(?:(\w+?)to)?(\w+)|Estimate)")


@lru_cache(maxsize=1024)
def mapper(name: str) -> Mapper | None:
    """The built-in mapper of that name, or None. `chatReqOpenAItoTGI` lives in `tgi.py`: the side that is not the hub."""
    parts = MAPPER_NAME.fullmatch(name)
    if not parts:
        return None
    sides = [side.lower() for side in parts.groups() if side]
    home = next((side for side in sides if side != "openai" and side in names()), "openai")
    found = getattr(importlib.import_module(f"{__name__}.{home}"), name, None)
    return found if callable(found) else None


@lru_cache(maxsize=None)  # the paths of routes and of the configuration, never a client's
def compile_path(path: str) -> re.Pattern[str]:
    """`/v1/models/{model}:go` and `/files/*` as patterns.

    A placeholder spans one segment, {model} any number (names hold slashes), the final `*` the rest.
    """
    parts = re.split(r"(\{\w+\}|/\*$)", path)
    out = ""
    for part in parts:
        if part == "{model}":
            out += "(?P<model>.+?)"
        elif part.startswith("{"):
            out += f"(?P<{part[1:-1]}>[^/]+?)"
        elif part == "/*":
            out += "/(?P<rest>.*)"
        else:
            out += re.escape(part)
    return re.compile(out)


BY_HEADER = (("anthropic-version", "anthropic"), ("x-api-key", "anthropic"), ("x-goog-api-key", "gemini"))
SHARED = re.compile(r"(/v1)?/models(/.*)?")


def front(method: str, path: str, headers: Headers) -> str:
    """The API that a request speaks, from its path, and from its headers where APIs share a path; else openai."""
    if method in ("GET", "HEAD", "DELETE") and SHARED.fullmatch(path):
        return next((name for header, name in BY_HEADER if headers.get(header) is not None), "openai")
    return _front(method, path)


@lru_cache(maxsize=512)
def _front(method: str, path: str) -> str:
    for name in names():
        if route_of(name, method, path):
            return name
    return "openai"


@lru_cache(maxsize=1024)
def route_of(name: str, method: str, path: str) -> Route | None:
    """The dialect's route that a path is, with or without its leading version; None if it is not one of its paths."""
    for route in load(name).routes:
        if route.method == method and (
            compile_path(route.path).fullmatch(path)
            or (route.path.startswith("/v1/") and compile_path(route.path[3:]).fullmatch(path))
        ):
            return route
    return None


def path_params(name: str, method: str, path: str) -> Mapping[str, str]:
    """What the placeholders of the dialect's route stand for in a path: Gemini's clients name their model there."""
    route = route_of(name, method, path)
    if route is None or "{" not in route.path:
        return {}
    forms = (route.path, route.path.removeprefix("/v1"))
    found = next((match for form in forms if (match := compile_path(form).fullmatch(path))), None)
    return {key: unquote(value) for key, value in found.groupdict().items()} if found else {}


def told(dialect: Dialect, error: ProxyError, cfg: Mapping[str, Any]) -> list[Event]:
    """The events that an API's streams tell an error with, when nothing of a stream is known."""

    def failing() -> Iterator[Event]:
        raise error
        yield {}  # a generator: it fails when it is asked for its first event

    events: list[Event] = []
    try:
        events.extend(dialect.grammar(failing(), cfg))
    except ProxyError:  # that error, raised again behind its events
        return events
    return events
