"""Several worker processes behind one listening socket. The supervisor forks, waits, and passes signals on: one thread, which
also serves what the workers share."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from proxy.process import start_secret

if TYPE_CHECKING:
    from proxy.state.service import Service

logger = logging.getLogger(__name__)

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RESTART_PAUSE_S = 1.0  # before a worker that died at once is started anew


def supervise(count: int, work: Callable[[bool], int], stopped: Callable[[], None], service: Service | None = None) -> int:
    """Keeps `count` workers alive until SIGTERM or SIGINT; returns the exit status. SIGHUP reaches every worker.

    `work(reload)` is a worker's life; `reload`: the configuration has changed since this process read it. It handles the
    signals, and then lets SIGHUP through. `stopped` is called when the end begins. `service`: what the workers share, if it is
    this process that keeps it.
    """
    return Supervisor(work, stopped, service).run(count)


class Supervisor:
    """What it holds: its children's process ids and when they were started (monotonic)."""

    def __init__(self, work: Callable[[bool], int], stopped: Callable[[], None], service: Service | None = None) -> None:
        self._work, self._stopped, self._service = work, stopped, service
        self._reloaded = False
        self._children: dict[int, float] = {}
        self._stopping = False

    def run(self, count: int) -> int:
        """See `supervise`."""
        start_secret()
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, self._reload)
        if self._service is not None:
            self._serve_too(self._service)
        for _ in range(count):
            self._start()
        while self._children:
            try:
                pid, status = self._ended()
            except ChildProcessError:
                break
            born = self._children.pop(pid, None)
            if born is None or self._stopping:  # None: an orphan that a container's first process inherits
                continue
            logger.error("worker %d ended with %d: another one takes its place", pid, os.waitstatus_to_exitcode(status))
            if time.monotonic() - born < RESTART_PAUSE_S:
                self._pause()
            self._start()
        if self._service is not None:
            self._service.close()
        return 0

    def _serve_too(self, service: Service) -> None:
        """A signal, a child's end among them, wakes the service's loop."""
        wakes, waker = socket.socketpair()
        for end in (wakes, waker):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # so that it is not ignored
        signal.set_wakeup_fd(waker.detach(), warn_on_full_buffer=False)
        service.listen()
        service.also(wakes)

    def _ended(self) -> tuple[int, int]:
        """The next child that has ended, and how. Raises ChildProcessError when there is none left."""
        if self._service is None:
            return os.wait()
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                return pid, status
            while not self._service.turn():
                pass  # until a signal has come, a child's end perhaps

    def _pause(self) -> None:
        until = time.monotonic() + RESTART_PAUSE_S
        while (left_s := until - time.monotonic()) > 0:
            if self._service is None:
                time.sleep(left_s)
            else:
                self._service.turn(left_s)

    def _start(self) -> None:
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # until the child has handlers of its own, and the parent knows it
        pid = os.fork()
        if pid == 0:
            self._be_worker(parent)
        self._children[pid] = time.monotonic()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        if self._stopping:  # it was told before the fork
            self._tell(signal.SIGTERM)

    def _be_worker(self, parent: int) -> NoReturn:
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until `work` handles them
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))  # SIGHUP waits until `work` can reload
            _die_with(parent)
            if self._service is not None:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                self._service.abandon()
            status = self._work(self._reloaded)
        except BaseException:
            logger.exception("a worker failed")
        finally:
            os._exit(status)

    def _reload(self, *_: object) -> None:
        self._reloaded = True
        self._tell(signal.SIGHUP)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        self._stopped()
        self._tell(signal.SIGTERM)

    def _tell(self, number: signal.Signals) -> None:
        for pid in list(self._children):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                logger.debug("worker %d has ended already", pid)


def _die_with(parent: int) -> None:
    """A worker whose supervisor was killed ends too (Linux; elsewhere it goes on until it is told to stop)."""
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    except (ImportError, OSError, AttributeError):
        return
    if os.getppid() != parent:  # it died before the line above
        os.kill(os.getpid(), signal.SIGTERM)
