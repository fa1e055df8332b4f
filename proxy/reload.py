"""A new generation in the place of the old one, while calls go on: loaded aside, checked, then swapped in one assignment."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from proxy.config import CERTIFICATE, PRIVATE_KEY
from proxy.errors import ConfigError
from proxy.generation import Generation
from proxy.process import stamps

if TYPE_CHECKING:
    from proxy.server import Server

logger = logging.getLogger(__name__)

FIXED = ("host", "port", "ssl", "client_ca", "workers")  # of `system`: what a running process cannot change
LOOK_S = 0.5  # how often a watched file is looked at


class Reloader:
    """Reloads one worker. Thread-safe: the lock lets one reload happen at a time."""

    def __init__(
        self,
        server: Server,
        load: Callable[[Generation | None], Generation],
        tls: ssl.SSLContext | None,
        tls_context: Callable[..., ssl.SSLContext | None],
    ) -> None:
        self._server, self._load = server, load
        self._tls, self._tls_context = tls, tls_context
        self._lock = threading.Lock()
        self._watches = False
        self._closing: list[threading.Thread] = []  # old generations on their way out
        self._follow()

    def __call__(self) -> Sequence[str]:
        """The faults for which the old generation goes on; empty when the new one serves."""
        with self._lock:
            try:
                self._swap()
            except ConfigError as fault:
                faults = fault.faults
            except Exception as fault:
                logger.exception("an error of the proxy itself while reloading")
                faults = (f"the proxy failed to reload: {type(fault).__name__}",)
            else:
                logger.info("reloaded")
                return ()
        for line in ("not reloaded, the old configuration goes on", *faults):
            logger.error("%s", line)
        return faults

    def finish(self) -> None:
        """At the end: waits until the old generations have written what they had."""
        for closing in self._closing:
            closing.join()

    def _swap(self) -> None:
        server = self._server
        old = server.generation
        new = self._load(old)
        if self._tls is not None and self._tls_context(new.config):  # renewed certificates serve the next handshakes
            self._tls.load_cert_chain(CERTIFICATE, PRIVATE_KEY)
        for name in FIXED:
            if getattr(new.config.system, name) != getattr(old.config.system, name):
                logger.warning("system.%s has changed: that takes a restart", name)
        if (new.config.state, new.config.on_state_loss) != (old.config.state, old.config.on_state_loss):
            logger.warning("state or on_state_loss has changed: that takes a restart")
        _hold_against_cassettes(new)
        server.generation = new
        closing = threading.Thread(target=old.close, name="closing", daemon=True)  # its records may have much to write yet
        closing.start()
        self._closing = [*filter(threading.Thread.is_alive, self._closing), closing]
        self._follow()

    def _follow(self) -> None:
        """Starts the thread that looks at the files, once a configuration wants it."""
        if self._server.generation.config.system.watch and not self._watches:
            self._watches = True
            threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def _watch(self) -> None:
        """Asks for a reload when a file that a generation is made of has changed, as long as the configuration wants that."""
        server = self._server
        tried = server.generation.stamps
        while not server.draining:
            time.sleep(LOOK_S)
            now = stamps(server.generation.stamps)
            if now not in (tried, server.generation.stamps) and server.generation.config.system.watch:
                server.ask("reload")
                tried = now


def _hold_against_cassettes(new: Generation) -> None:
    """Raises ConfigError when a recorded call would go another way from now on."""
    records = new.config.records
    if records is None or records.cassettes is None:
        return
    from proxy.workbench.replaying import prove

    try:
        prove(new, records.cassettes.folder)
    except ConfigError:
        new.close()
        raise
