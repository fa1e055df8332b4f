"""A target's own server (`start`): started by the first call, ready before it is used, stopped when idle, swapped in a group.

All workers know through `server_group.py` which server of a group runs. The worker that starts a server attends to it: its
output goes to the log, and the keeper of `process_group.py` ends it with the worker. The next call starts one that died anew,
whichever worker it comes in at.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import selectors
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import requests

from proxy.adapters import process_group
from proxy.adapters.exchange import Exchange, waiting_of
from proxy.adapters.server_group import POLL_S, STOP_S, Group, Lock
from proxy.call import Waiting
from proxy.config import Config, Start, Target
from proxy.errors import BackendError, BackendTimeout, ProxyError, map_errors

logger = logging.getLogger(__name__)

READY_S = 600.0  # until a server must be ready, at most
STEADY_S = 60.0  # one that lived for so long has not failed
BACK_OFF_S, BACK_OFF_LIMIT_S = 0.5, 30.0  # after the first failure, doubled with each, and at most
LINES = 20  # of its output that are kept for an error
LINE_LIMIT = 1000  # characters of a line in the log


class Server:
    """One target's server. `wanted` counts the generations that have the target; at 0 it is stopped."""

    def __init__(self, config: Config, target: Target, start: Start) -> None:
        self.name, self.wanted = target.name, 0
        self._config, self._target, self._start = config, target, start
        self._key = f"group {start.exclusive}" if start.exclusive else f"target {target.name}"
        self.digest = hashlib.sha256(repr((start, target.url)).encode()).hexdigest()
        self._lines: deque[str] = deque(maxlen=LINES)
        self._ended = threading.Event()

    def enter(self, waiting: Waiting, by: float) -> Lock:
        """A place at the server, which is ready then; closing it gives it back. by: monotonic, when the wait ends.

        Raises BackendError, BackendTimeout, ClientGone.
        """
        with map_errors({OSError: BackendError}, "the files that servers are shared by cannot be used"):
            place = self._at_once(Group(self._config.file, self._key))
        if place is not None:
            return place
        entry = Entry(lambda entry: self._wait(Group(self._config.file, self._key), entry))
        with waiting.pausing():
            entry.start()
        with closing(entry):
            try:
                waiting.wait(entry.told, False, by)
            except BackendTimeout:
                raise BackendTimeout(f"the server of target {self.name!r} was not ready in time") from None
            return entry.place()

    def _at_once(self, group: Group) -> Lock | None:
        with closing(group.lock("gate")) as gate:
            return self._place(group) if gate.taken() and self._runs(group) else None

    def _runs(self, group: Group) -> bool:
        return group.running().get("digest") == self.digest and group.is_alive()

    def _place(self, group: Group) -> Lock:
        """For who holds `gate`: nobody has `use` alone then."""
        use = group.lock("use")
        use.take(fcntl.LOCK_SH)
        os.utime(use.fd)
        return use

    def _wait(self, group: Group, entry: Entry) -> Lock | None:
        """In a thread of its own: what may take long."""
        with closing(group.lock("gate")) as gate:
            gate.take()
            if entry.left:
                return None
            if not self._runs(group):
                with closing(group.lock("use")) as use:
                    use.take()  # the calls in flight, of any server of the group, end first
                    self._begin(group)
            return self._place(group)

    def _begin(self, group: Group) -> None:
        before = group.running()
        died = "started" in before and not group.is_alive()
        failures = before.get("failures", 0) + 1 if died and time.time() - before["started"] < STEADY_S else 0
        again = before.get("failed", before.get("started", 0)) + min(BACK_OFF_S * 2**failures, BACK_OFF_LIMIT_S) - time.time()
        if died and before.get("digest") == self.digest and failures and again > 0:
            retry = [("retry-after", str(int(again) + 1))]
            raise BackendError(before.get("why") or f"the server of target {self.name!r} has just died", headers=retry)
        group.stop()
        running = {"target": self.name, "digest": self.digest, "started": time.time(), "failures": failures}
        try:
            self._launch(group, running)
        except ProxyError as fault:
            group.tell({**running, "failed": time.time(), "why": fault.message})
            raise

    def _launch(self, group: Group, running: dict[str, Any]) -> None:
        if self._connects():
            raise BackendError(f"something else listens at the url of target {self.name!r}, where its server should")
        env = {name: value for name, value in os.environ.items() if name not in self._config.secret_names()}
        alive = group.lock("alive")
        with ExitStack() as stack:
            stack.callback(alive.close)
            alive.take()
            process = process_group.start(
                self._start.command,
                {**env, **self._start.env},
                f"the server of target {self.name!r}",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(alive.fd,),
            )
            group.tell({**running, "group": process.pid})
            stack.pop_all()
        logger.info("target %s: its server is starting: process %d", self.name, process.pid)
        self._lines.clear()
        self._ended = threading.Event()
        threading.Thread(target=self._attend, args=(group, process, alive, self._ended), daemon=True).start()
        self._until_ready(group)

    def _until_ready(self, group: Group) -> None:
        until = time.monotonic() + READY_S
        while not self._is_ready():
            if self._ended.wait(POLL_S):
                said = process_group.last_lines("\n".join(self._lines).encode())
                raise BackendError(f"the server of target {self.name!r} ended before it was ready: {said or 'it said nothing'}")
            if time.monotonic() > until:
                group.stop()
                raise BackendTimeout(f"the server of target {self.name!r} was not ready within {READY_S:g} s")
        logger.info("target %s: its server is ready", self.name)

    def _is_ready(self) -> bool:
        if self._ended.is_set() or self._start.ready is None:
            return not self._ended.is_set() and self._connects()
        parts = urlsplit(self._target.url)
        with requests.Session() as session, suppress(requests.RequestException):
            session.trust_env = False
            url = f"{parts.scheme}://{parts.netloc}{self._start.ready}"
            return session.get(url, timeout=2, verify=self._target.verify).status_code == 200
        return False

    def _connects(self) -> bool:
        parts = urlsplit(self._target.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with suppress(OSError), socket.create_connection((parts.hostname or "", port), 2):
            return True
        return False

    # --- attending to it
    def _attend(self, group: Group, process: subprocess.Popen[bytes], alive: Lock, ended: threading.Event) -> None:
        """One server's life, in a thread of its own: its output, and its end."""
        assert process.stdout is not None
        with closing(alive), process.stdout as output, _watch(process, output) as ready:
            rest, tick_s, at_end = b"", min(1.0, (self._start.idle_stop_s or 4) / 4), False
            while not process_group.has_ended(process):
                if at_end:
                    time.sleep(tick_s)
                elif output in ready(tick_s):
                    data = _read(output)
                    rest, at_end = self._log(rest + data), not data
                if self._is_idle(group):
                    self._stop_idle(group, process)
            status = process_group.end(process)
            self._log(rest + _read(output) + b"\n")
        stopped = group.running().get("group") != process.pid
        level = logging.INFO if stopped else logging.WARNING
        logger.log(level, "target %s: its server %s", self.name, process_group.outcome(status))
        ended.set()

    def _log(self, data: bytes) -> bytes:
        """Logs the whole lines; what is left is the beginning of one."""
        *lines, rest = data.replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            text = process_group.SPEECHLESS.sub("", line.decode("utf-8", "replace")).rstrip()[:LINE_LIMIT]
            if text:
                self._lines.append(text)
                logger.info("target %s: %s", self.name, text)
        return rest[-LINE_LIMIT:]

    def _is_idle(self, group: Group) -> bool:
        if not self.wanted:
            return True
        with closing(group.lock("use")) as use:
            idle_s = time.time() - os.fstat(use.fd).st_mtime
        return self._start.idle_stop_s is not None and idle_s >= self._start.idle_stop_s

    def _stop_idle(self, group: Group, process: subprocess.Popen[bytes]) -> None:
        """Unless somebody is at it, or about to be."""
        with closing(group.lock("gate")) as gate, closing(group.lock("use")) as use:
            if gate.taken() and use.taken() and self._is_idle(group):
                why = "it is idle" if self.wanted else "it is not wanted any more"
                logger.info("target %s: its server is stopped: %s", self.name, why)
                group.tell({})
                process_group.end(process, STOP_S)


class Entry:
    """One call's wait for a server, in a thread, which goes on when the call has left. Its lock guards the handover."""

    def __init__(self, wait: Callable[[Entry], Lock | None]) -> None:
        self.told, self._teller = socket.socketpair()
        self.left = False
        self._wait = wait
        self._place: Lock | None = None
        self._fault = ProxyError("the proxy failed; its log says why", code="internal_error")
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        place: Lock | None = None
        try:
            place = self._wait(self)
        except ProxyError as fault:
            self._fault = fault
        except Exception:
            logger.exception("a server could not be started")
        with self._lock:
            self._place = place
            if self.left:
                self._give_back()
        self._teller.close()

    def place(self) -> Lock:
        """What came of it, when `told` can be read. Raises what stood in the way."""
        with self._lock:
            place, self._place = self._place, None
        if place is None:
            raise self._fault
        return place

    def close(self) -> None:
        """The call goes on, or has left."""
        with self._lock:
            self.left = True
            self._give_back()
        self.told.close()

    def _give_back(self) -> None:
        if self._place is not None:
            self._place.close()
            self._place = None


@contextmanager
def _watch(process: subprocess.Popen[bytes], output: Any) -> Iterator[Callable[[float], set[Any]]]:
    """What is ready within some seconds: the output, or the end of the process."""
    os.set_blocking(output.fileno(), False)
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        selector.register(output, selectors.EVENT_READ)
        with suppress(AttributeError, OSError):
            pidfd = os.pidfd_open(process.pid)
            stack.callback(os.close, pidfd)
            selector.register(pidfd, selectors.EVENT_READ)
        yield lambda timeout_s: {key.fileobj for key, _ in selector.select(timeout_s)}


def _read(output: Any) -> bytes:
    with suppress(BlockingIOError):
        return os.read(output.fileno(), 65536)
    return b""


_servers: dict[tuple[str | None, str, str], Server] = {}  # of this process: a reload that changes nothing keeps its server
_lock = threading.Lock()  # guards `_servers` and their `wanted`


class Managed(Exchange):
    """The adapter of a target with `start`: the exchange with a server that is there when it is needed."""

    def __init__(self, config: Config, target: Target, start: Start) -> None:
        deadlines = config.system.deadlines
        super().__init__(deadlines.connect, deadlines.header, target.verify, target.cert)
        server = Server(config, target, start)
        with _lock:
            self._server = _servers.setdefault((config.file, server.name, server.digest), server)
            self._server.wanted += 1

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """As an exchange's; the server cannot be stopped until the answer is closed."""
        waiting = waiting_of(request)
        place = self._server.enter(waiting, time.monotonic() + getattr(request, "first_byte_s", READY_S))
        try:
            answer = super().send(request, *args, **kwargs)
        except BaseException:
            _leave(place)
            raise
        raw: Any = answer.raw
        raw.when_closed = lambda: _leave(place)
        return answer

    def close(self) -> None:
        """The server is stopped when no generation wants it any more, and no call is at it."""
        with _lock:
            self._server.wanted -= 1
        super().close()


def _leave(place: Lock) -> None:
    os.utime(place.fd)
    place.close()
