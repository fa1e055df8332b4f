"""The console: web pages of the proxy itself, at /console. Files of this folder, JSON for them, and who may ask for it.

A route is one line of ROUTES. Its function gets the visit and the visitor, and answers. What a page shows is data, never
markup; nothing is loaded from elsewhere, and no script stands in a page.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from proxy.errors import Refused

if TYPE_CHECKING:
    from proxy.pages import Visit

PREFIX = "/console"
FENCE = (  # goes with every reply
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
)
KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


@dataclass(frozen=True)
class Route:
    """One thing that the console answers. `who`: anyone, viewer (whoever is logged in) or master; `given`: names of its
    query for GET, of its JSON body for POST."""

    method: str
    path: str
    place: str
    summary: str
    given: tuple[str, ...] = ()
    who: str = "viewer"
    kind: str = "application/json"


NARROWS = ("target", "model", "status", "front", "key_name", "conversation", "since", "until", "text")
ROUTES = (
    Route(
        "POST", "/api/login", "sessions:login", "Log in with the master key, or a key with `console: true`", ("key",), "anyone"
    ),
    Route("POST", "/api/logout", "sessions:logout", "End this session"),
    Route("GET", "/api/session", "api:session", "Who is logged in, and what the pages need to know"),
    Route("GET", "/api/live", "api:live", "Calls in flight and just ended, twice a second", ("id",), kind="text/event-stream"),
    Route("POST", "/api/stop", "api:stop", "Stop a call in flight", ("id",)),
    Route("GET", "/api/calls", "api:calls", "Recorded calls, newest first", (*NARROWS, "before", "limit")),
    Route("GET", "/api/calls.csv", "api:calls_csv", "The same as a table, up to 100,000 calls", NARROWS, kind="text/csv"),
    Route("GET", "/api/call", "api:call", "All that is kept of one call", ("id",)),
    Route("POST", "/api/keep", "keep:keep", "Write a recorded call as a cassette", ("id",)),
    Route(
        "GET", "/api/conversations", "api:conversations", "The latest call of each conversation", (*NARROWS, "before", "limit")
    ),
    Route("GET", "/api/conversation", "api:conversation", "All calls of a conversation, oldest first", ("id",)),
    Route("POST", "/api/rename", "api:rename", "Give a conversation a title", ("id", "title")),
    Route("POST", "/api/hide", "api:hide", "Take a conversation out of the lists", ("id",)),
    Route("GET", "/api/usage", "api:usage", "Calls, tokens and cost per day, and the largest conversations", (*NARROWS, "by")),
    Route("GET", "/api/latency", "api:latency", "How long calls took, in milliseconds", NARROWS),
    Route("GET", "/api/usage.csv", "api:usage_csv", "The same days as a table", (*NARROWS, "by"), kind="text/csv"),
    Route("GET", "/api/limits", "api:limits", "What is left of each key's limits and budget"),
    Route("GET", "/api/openapi.json", "openapi:document", "This document"),
    Route("GET", "/api/config", "config:effective", "The effective configuration, secrets masked", (), "master"),
    Route("POST", "/api/config/check", "config:check", "The faults of a text as configuration", ("text",), "master"),
    Route("POST", "/api/config/apply", "config:apply", "Write the configuration and load it", ("text", "base"), "master"),
    Route("POST", "/api/config/undo", "config:undo", "Bring back what the last change replaced", (), "master"),
)
RELAYED = "/api/relay"  # what stands behind it is a call like any client's, with the visitor's rights


def serve(visit: Visit) -> None:
    """Answers a request below /console. Raises ProxyError."""
    from proxy.console import sessions

    visit.reply.extra = [*FENCE]  # in the place of what lets other origins read replies
    method, path = visit.request.method, visit.request.path.removeprefix(PREFIX)
    if path.startswith(RELAYED + "/"):
        from proxy.console.api import relay

        relay(visit, sessions.visitor(visit), path.removeprefix(RELAYED))
        return
    if not path.startswith("/api/"):
        _file(visit, path)
        return
    route = next((route for route in ROUTES if (route.method, route.path) == (method, path)), None)
    if route is None:
        raise Refused(f"the console has no {method} {path}", status=404, code="page_not_found")
    visitor = sessions.visitor(visit) if route.who != "anyone" else sessions.NOBODY
    if route.who == "master" and not visitor.is_master:
        raise Refused("this is for the master key alone", code="master_only")
    module, _, name = route.place.partition(":")
    getattr(importlib.import_module(f"{__name__}.{module}"), name)(visit, visitor)


def _file(visit: Visit, path: str) -> None:
    if path == "":
        visit.reply.whole(308, [("location", PREFIX + "/")], b"")
        return
    name = path[1:] or "index.html"
    known = {each.name: each for each in files(__package__).iterdir() if each.name.endswith(tuple(KINDS))}
    if visit.request.method not in ("GET", "HEAD") or name not in known:
        raise Refused(f"the console has no page {path}", status=404, code="page_not_found")
    kind = KINDS[name[name.rindex(".") :]]
    visit.reply.whole(200, [("content-type", kind)], known[name].read_bytes())
