"""The proxy's own paths: what is asked of the proxy itself and of no backend.

A page is a function `(Visit) -> None` that answers the request; it says who may see it. `Generation.own_paths` has the prefixes
that are served; a room that brings a page adds a line to PAGES.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.call import Call
from proxy.errors import Refused

if TYPE_CHECKING:
    from proxy.generation import Generation
    from proxy.handler import Handler, Reply, Request

PAGES: Mapping[str, str] = {"/mooltiproxy/reload": "proxy.pages:reload"}  # path, and all below it → the page's place


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
    if place is None:
        visit.key()
        raise Refused(f"there is no page {path}", status=404, code="page_not_found")
    module, _, name = place.partition(":")
    getattr(importlib.import_module(module), name)(visit)


def reload(visit: Visit) -> None:
    """POST /mooltiproxy/reload: loads everything anew, in all workers; 422 with the faults when the old goes on."""
    visit.master_only("POST")
    server = visit.handler.server
    faults = server.reload()
    if faults:
        visit.reply.json(422, {"reloaded": False, "faults": list(faults)})
        return
    if visit.generation.config.system.workers > 1 and hasattr(signal, "SIGHUP"):
        os.kill(os.getppid(), signal.SIGHUP)  # the supervisor tells the others
    visit.reply.json(200, {"reloaded": True})
