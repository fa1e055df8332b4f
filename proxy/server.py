"""The process: listening socket, threads, workers, signals. It puts the parts together and knows nothing of a request."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from proxy.config import CERTIFICATE, PRIVATE_KEY, Config
from proxy.errors import ConfigError
from proxy.generation import Generation
from proxy.handler import Handler
from proxy.process import file_limit, settle_memory
from proxy.pump import Pump
from proxy.reload import Reloader
from proxy.turns import Turns

if TYPE_CHECKING:
    from proxy.console.live import Board

logger = logging.getLogger(__name__)

BACKLOG = 4096
HEAD_START_S = 0.1  # for those who wait for the start, before what comes after it takes the interpreter
DRAIN_S = 30.0  # what calls in flight may still take after SIGTERM
FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Loader = Callable[[Generation | None], Generation]


class Server(ThreadingHTTPServer):
    """One worker: a thread per connection, bounded. `generation` is replaced as a whole; calls in flight keep theirs."""

    def __init__(self, listening: socket.socket, generation: Generation, tls: ssl.SSLContext | None) -> None:
        super().__init__(listening.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.socket.setblocking(False)
        self.generation = generation
        self.draining = False
        self.turns = Turns()
        self.pump = Pump()
        self._tls = tls
        self._lock = threading.Lock()  # guards _count and _open
        self._count = 0  # connections accepted and not ended: before the thread of one begins, it counts
        self._open: set[Handler] = set()
        self._limit = min(generation.config.system.connections, file_limit())
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_w.setblocking(False)
        self._asked: list[str] = []
        self.board: Board | None = None  # of calls in flight, once the console asks
        self.reload: Callable[[], Sequence[str]] = tuple  # a Reloader, once the worker is whole

    # --- the accept loop, in the main thread
    def serve(self) -> None:
        """Until `ask("stop")`; "reload" asks for a new generation in between."""
        while True:
            if "stop" in self._asked:
                break
            if "reload" in self._asked:
                self._asked.remove("reload")
                self.reload()
                continue
            listening = [self.socket] if self._count < self._limit else []
            ready = select.select([*listening, self._wake_r], [], [], 1.0 if not listening else None)[0]
            if self._wake_r in ready:
                self._wake_r.recv(4096)
            if self.socket in ready:
                self._accept()
        self._drain()

    def ask(self, what: str) -> None:
        """From a signal handler or another thread."""
        self._asked.append(what)
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_w.send(b".")
        except BlockingIOError:
            logger.debug("the wake-up pipe is full: the loop is awake already")

    @property
    def wake_fd(self) -> int:
        """Whatever is written to it wakes the accept loop."""
        return self._wake_w.fileno()

    def _accept(self) -> None:
        try:
            conn, address = self.socket.accept()
            conn.setblocking(True)
        except OSError as fault:
            if fault.errno in FULL:  # pause instead of spinning: the connection stays in the queue
                logger.warning("cannot accept: %s", fault.strerror)
                time.sleep(0.1)
            return
        with self._lock:
            self._count += 1
        try:
            self.process_request(conn, address)
        except RuntimeError as fault:  # no more threads
            logger.warning("cannot serve a connection: %s", fault)
            conn.close()
            self._ended()
            time.sleep(0.1)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, in its thread. The TLS handshake happens here, not in the accept loop."""
        try:
            if self._tls is not None:
                request = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
            Handler(request, client_address, self)
        except OSError as fault:  # it ended before it began
            logger.debug("connection of %s ended: %s", client_address[0], fault)
        except Exception:
            logger.exception("an error of the proxy itself in a connection")
        finally:
            self.shutdown_request(request)
            self._ended()

    def opened(self, handler: Handler) -> None:
        """A connection begins."""
        with self._lock:
            self._open.add(handler)

    def closed(self, handler: Handler) -> None:
        """A connection has ended."""
        with self._lock:
            self._open.discard(handler)

    def _ended(self) -> None:
        with self._lock:
            self._count -= 1
            full = self._count == self._limit - 1
        if full:
            self._wake()

    # --- the end
    def _drain(self) -> None:
        """Nobody new; idle connections end; calls in flight may finish."""
        self.draining = True
        self.socket.close()
        with self._lock:
            in_flight = sum(handler.busy for handler in self._open)
        logger.info("stopping: %d calls in flight, up to %.0f s for them; told again, at once", in_flight, DRAIN_S)
        until = time.monotonic() + DRAIN_S
        while time.monotonic() < until:
            with self._lock:
                handlers = list(self._open)
            if not self._count or self._asked.count("stop") > 1:
                break
            for handler in handlers:
                if not handler.busy:
                    _end_reading(handler.request)
            time.sleep(0.02)
        else:
            logger.warning("calls were still in flight after %.0f s", DRAIN_S)
        self.generation.close()


def _end_reading(sock: socket.socket) -> None:
    """Wakes the thread that waits for a next request."""
    try:
        socket.socket.shutdown(sock, socket.SHUT_RD)  # an SSLSocket's own drops its TLS: a reply would go out in the clear
    except OSError:
        logger.debug("a connection had ended already")


def listen(config: Config) -> socket.socket:
    """The listening socket. Raises ConfigError when the address cannot be had."""
    system = config.system
    family = socket.AF_INET6 if ":" in system.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((system.host, system.port))
        sock.listen(BACKLOG)
    except OSError as fault:
        sock.close()
        place = f"{system.host}:{system.port}"
        raise ConfigError([f"cannot listen on {place}: {fault.strerror}; choose another with --port or system.port"]) from None
    return sock


def tls_context(config: Config) -> ssl.SSLContext | None:
    """TLS 1.2 or later, from certificates/; with `client_ca` a client must show a certificate. Raises ConfigError."""
    if not config.system.ssl:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(CERTIFICATE, PRIVATE_KEY)
        if config.system.client_ca:
            context.load_verify_locations(config.system.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as fault:
        files = f"{CERTIFICATE}, {PRIVATE_KEY}" + (f", {config.system.client_ca}" if config.system.client_ca else "")
        raise ConfigError([f"system.ssl: cannot use {files}: {fault.strerror or fault}; see certificates/README.md"]) from None
    return context


def run(load: Loader, announce: Callable[[Generation, socket.socket], None]) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status. `load` makes a generation, given the one before it."""
    generation = load(None)
    tls = tls_context(generation.config)
    listening = listen(generation.config)
    _hold_signals()  # who reads the banner may send one before there is a handler for it
    announce(generation, listening)
    workers = generation.config.system.workers
    if workers > 1 and hasattr(os, "fork"):
        from proxy.state.open import service_of
        from proxy.workers import supervise

        get_ready(generation)
        service = service_of(generation.state)
        return supervise(workers, lambda changed: work(load, generation, listening, tls, changed), listening.close, service)
    if workers > 1:
        logger.warning("system.workers needs fork, which this system lacks: one worker serves")
    getting_ready = threading.Timer(HEAD_START_S, get_ready, args=(generation,))
    getting_ready.daemon = True
    getting_ready.start()
    return work(load, generation, listening, tls)


def get_ready(generation: Generation) -> None:
    """What the start need not wait for: /healthz is answered meanwhile, and a first call waits for its part."""
    for name, place in generation.places.items():
        logger.debug("target %s is answered by its %s", name, type(place.adapter).__name__)
    settle_memory()


def _hold_signals(hold: bool = True) -> None:
    """Keeps the signals that are handled here waiting, or lets them through."""
    if hasattr(signal, "pthread_sigmask"):
        how = signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def work(
    load: Loader, generation: Generation, listening: socket.socket, tls: ssl.SSLContext | None, changed: bool = False
) -> int:
    """One worker's life. `changed`: what `generation` was loaded from has been loaded anew by others."""
    server = Server(listening, generation, tls)

    server.reload = reloader = Reloader(server, load, tls, tls_context)
    signal.set_wakeup_fd(server.wake_fd, warn_on_full_buffer=False)  # a signal may reach another thread than this one
    signal.signal(signal.SIGTERM, lambda *_: server.ask("stop"))
    signal.signal(signal.SIGINT, lambda *_: server.ask("stop"))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: server.ask("reload"))
    _hold_signals(False)
    if changed:
        server.reload()
    server.serve()
    reloader.finish()
    server.generation.end()
    sys.stderr.flush()
    return 0
