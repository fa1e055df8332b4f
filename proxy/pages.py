"""The proxy's own paths: what is asked of the proxy itself and of no backend.

A page is a function `(Visit) -> None` that answers the request; it says who may see it. `Generation.own_paths` has the prefixes
that are served; a room that brings a page adds a line to PAGES.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.call import Call
from proxy.errors import Refused

if TYPE_CHECKING:
    from proxy.generation import Generation
    from proxy.handler import Handler, Request
    from proxy.reply import Reply

PAGES: Mapping[str, str] = {
    "/mooltiproxy/reload": "proxy.pages:reload",
    "/console": "proxy.console:serve",
    "/metrics": "proxy.records.metrics:page",
}  # path, and all below it → the page's place

GATEWAY = "proxy.records.gateway:serve"  # of the exact paths of `records.gateway_api`


@dataclass(frozen=True)
class Visit:
    """One request for a page."""

    handler: Handler
    request: Request
    reply: Reply
    call: Call
    generation: Generation

    def key(self) -> str:
        """The name of the key that was sent. Raises Refused (401)."""
        self.call.key_name = self.generation.keys.admit(self.request.headers, self.call.client)
        return self.call.key_name

    def viewers_only(self, *methods: str) -> None:
        """Raises Refused unless the master key asks, or a key with `console: true`, by one of those methods."""
        name, keys = self.key(), self.generation.config.keys
        if name != "master" and not (name in keys and keys[name].console):
            raise Refused(f"{self.request.path} needs the master key, or a key with `console: true`")
        self.takes(*methods)

    def takes(self, *methods: str) -> None:
        """Raises Refused (405) for other methods."""
        if self.request.method not in methods:
            allowed = ", ".join(methods)
            raise Refused(f"{self.request.path} takes {allowed} alone", status=405, headers=(("allow", allowed),))

    def master_only(self, method: str) -> None:
        """Raises Refused unless the master key asks, by that method."""
        if self.key() != "master":
            raise Refused(f"{self.request.path} needs the master key")
        if self.request.method != method:
            raise Refused(f"{self.request.path} takes {method} alone", status=405, headers=(("allow", method),))


def answer(visit: Visit) -> None:
    """Answers a request whose path begins with one of `Generation.own_paths`. Raises ProxyError."""
    path = visit.request.path
    place = next((place for prefix, place in PAGES.items() if path == prefix or path.startswith(prefix + "/")), None)
    if place is None and path in visit.generation.own_pages:
        place = GATEWAY
    if place is None:
        visit.key()
        raise Refused(f"there is no page {path}", status=404, code="page_not_found")
    module, _, name = place.partition(":")
    getattr(importlib.import_module(module), name)(visit)


def reload(visit: Visit) -> None:
    """POST /mooltiproxy/reload: loads everything anew, in all workers; 422 with the faults when the old goes on."""
    visit.master_only("POST")
    faults = reloaded(visit)
    visit.reply.json(422 if faults else 200, {"reloaded": False, "faults": list(faults)} if faults else {"reloaded": True})


def reloaded(visit: Visit) -> Sequence[str]:
    """Loads everything anew, in all workers; the faults for which the old goes on."""
    faults = visit.handler.server.reload()
    if not faults and visit.generation.workers > 1 and hasattr(signal, "SIGHUP"):
        os.kill(os.getppid(), signal.SIGHUP)  # the supervisor tells the others
    return faults
