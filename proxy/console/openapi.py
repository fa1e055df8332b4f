"""An OpenAPI 3.1 document of what the proxy itself answers, made of the tables that serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy import dialects
from proxy.console import PREFIX, RELAYED, ROUTES, Route
from proxy.console.sessions import PROOF, Visitor

if TYPE_CHECKING:
    from proxy.pages import Visit

OWN = (  # method, path, summary, who needs no key
    ("get", "/healthz", "Whether the proxy serves", True),
    ("post", "/mooltiproxy/reload", "Load the configuration anew, in all workers; the master key alone", False),
)
READ = ("/metrics", "/history")  # of the pages that records bring; the others are posted to
KEY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "x-goog-api-key": {"type": "apiKey", "in": "header", "name": "x-goog-api-key"},
}


def document(visit: Visit, visitor: Visitor) -> None:
    """GET /console/api/openapi.json"""
    paths: dict[str, Any] = {}
    for method, path, summary, is_open in OWN:
        paths[path] = {method: _operation("proxy", summary, is_open)}
    for path in sorted(visit.generation.own_pages):
        paths[path] = {"get" if path.startswith(READ) else "post": _operation("proxy", "See docs/records.md")}
    for route in ROUTES:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _of_route(route)
    relayed = {**_operation("console", "A call to a target with the visitor's rights"), "parameters": [_token()]}
    relayed["parameters"] += [{"name": "path", "in": "path", "required": True, "schema": {"type": "string"}}]
    paths[f"{PREFIX}{RELAYED}/{{path}}"] = {"post": relayed}
    for name in dialects.names():
        for route_of_api in dialects.load(name).routes:
            operation = _operation(name, f"{route_of_api.kind}, in the API of {name}")
            paths.setdefault(route_of_api.path, {}).setdefault(route_of_api.method.lower(), operation)
    visit.reply.json(
        200,
        {
            "openapi": "3.1.0",
            "info": {
                "title": "mooltiproxy",
                "version": "1",
                "description": "What the proxy answers itself, and the paths that it maps.",
            },
            "security": [{name: []} for name in KEY],
            "components": {"securitySchemes": KEY},
            "paths": paths,
        },
    )


def _operation(tag: str, summary: str, is_open: bool = False) -> dict[str, Any]:
    told: dict[str, Any] = {"tags": [tag], "summary": summary, "responses": {"200": {"description": "The answer"}}}
    if is_open:
        told["security"] = []
    else:
        told["responses"]["401"] = {"description": "The key is missing or wrong"}
    return told


def _token() -> dict[str, Any]:
    text = "Of /console/api/session; needed with its cookie, not with a key"
    return {"name": PROOF, "in": "header", "description": text, "schema": {"type": "string"}}


def _of_route(route: Route) -> dict[str, Any]:
    told = _operation("console", route.summary, route.who == "anyone")
    told["responses"]["200"]["content"] = {route.kind: {}}
    if route.method == "GET":
        told["parameters"] = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in route.given]
        return told
    told["parameters"] = [_token()] if route.who != "anyone" else []
    properties = {name: {"type": "string"} for name in route.given}
    told["requestBody"] = {"content": {"application/json": {"schema": {"type": "object", "properties": properties}}}}
    return told
