"""Processes that share a state as the proxy's do, told from a test what to do: workers below a supervisor for `memory`,
processes of their own for a Redis.

Run as a program it is the first of those processes; its workers connect back to the test, and get lines of JSON: number, verb,
arguments. The answer to each is a line too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from proxy.state import Line, State, StateLost
from tests.backends.claims import Asking, Budget, Claim, Rate, Slot

ROOT = Path(__file__).resolve().parents[2]
TOOK_LONG_S = 30.0


# --- in a worker
def claims(given: list[list[Any]]) -> list[Claim]:
    kinds = {"Rate": Rate, "Budget": Budget, "Slot": Slot}
    return [kinds[kind](**fields) for kind, fields in given]


class Worker:
    """A worker's side: does what it is told, each in a thread of its own."""

    def __init__(self, state: State, control: socket.socket) -> None:
        self._state, self._control = state, control
        self._asking = Asking(state)
        self._tickets: dict[str, Any] = {}
        self._lock = threading.Lock()

    def run(self) -> int:
        with self._control, self._control.makefile("r") as lines:
            for line in lines:
                number, verb, arguments = json.loads(line)
                threading.Thread(target=self._do, args=(number, verb, arguments), daemon=True).start()
        return 0

    def _do(self, number: int, verb: str, arguments: list[Any]) -> None:
        try:
            answer = {"is": getattr(self, verb, None) or getattr(self._state, verb)}["is"](*arguments)
        except StateLost as fault:
            answer = {"lost": str(fault)}
        except Exception as fault:
            answer = {"failed": f"{type(fault).__name__}: {fault}"}
        with self._lock:
            self._control.sendall(json.dumps([number, answer]).encode() + b"\n")

    def admit(self, holder: str, given: list[list[Any]]) -> list[Any]:
        asked = claims(given)
        verdict = self._asking.admit(holder, asked)
        refused = None if verdict.refused is None else asked.index(verdict.refused)
        return [refused, verdict.retry_after_s, [[each.left, each.reset_s] for each in verdict.standings]]

    def admit_to(self, line: str, limit: int, holder: str) -> bool:
        """Whether a slot of that line came with the admission."""
        return self._asking.admit(holder, [], Line(line, limit)).place

    def give_back(self, holder: str) -> None:
        self._state.leave(holder)

    def settle(self, holder: str, used: dict[str, int]) -> None:
        self._asking.settle(holder, used)

    def storm(self, threads: int, each: int, given: list[list[Any]]) -> int:
        """How many of all those admissions at once are let through."""
        asked, let, start = claims(given), [], threading.Barrier(threads)

        def attack(name: int) -> None:
            start.wait()
            let.append(sum(self._asking.admit(f"{os.getpid()} {name} {at}", asked).refused is None for at in range(each)))

        crowd = [threading.Thread(target=attack, args=(name,)) for name in range(threads)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        assert len(let) == threads
        return sum(let)

    def queue(self, name: str, limit: int, size: int, holder: str) -> bool:
        ticket = self._state.queue(name, limit, size, holder)
        if ticket is not None:
            self._tickets[holder] = ticket
        return ticket is not None

    def wait(self, holder: str, timeout_s: float) -> bool:
        return bool(self._tickets[holder].wait(timeout_s))

    def leave(self, holder: str) -> None:
        self._tickets[holder].leave()

    def get(self, name: str) -> str | None:
        data = self._state.get(name)
        return None if data is None else data.decode("latin-1")

    def put(self, name: str, data: str, ttl_s: float, max_bytes: int) -> None:
        self._state.put(name, data.encode("latin-1"), ttl_s, max_bytes)

    def pid(self) -> int:
        return os.getpid()


def main(url: str, count: int, port: int, lease_s: float) -> int:
    from proxy.state.open import Guarded, open_state, service_of
    from proxy.workers import supervise

    state: State = open_state(url, count)
    if isinstance(state, Guarded):
        state = state.engine
    if lease_s:
        from proxy.state.redis import Redis

        state = Redis(url, lease_s=lease_s)
    shared = state

    def work(changed: bool = False) -> int:
        return Worker(shared, socket.create_connection(("127.0.0.1", port))).run()

    if count == 1:
        signal.signal(signal.SIGTERM, lambda *_: (shared.close(), os._exit(0)))
        return work()
    return supervise(count, work, lambda: None, service_of(state))


# --- in the test
class Told:
    """A worker, as a test sees it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._waiting: dict[int, Future[Any]] = {}
        self._numbers = 0
        threading.Thread(target=self._read, daemon=True).start()
        self.pid: int = self.call("pid")

    def _read(self) -> None:
        with self._sock.makefile("r") as lines:
            try:
                for line in lines:
                    number, answer = json.loads(line)
                    self._waiting.pop(number).set_result(answer)
            except OSError:
                return

    def start(self, verb: str, *arguments: Any) -> Future[Any]:
        """Tells it, and does not wait."""
        self._numbers += 1
        future = self._waiting[self._numbers] = Future()
        given = [_plain(argument) for argument in arguments]
        self._sock.sendall(json.dumps([self._numbers, verb, given]).encode() + b"\n")
        return future

    def call(self, verb: str, *arguments: Any) -> Any:
        """Tells it, and gives its answer. A settlement, which no engine waits for, has arrived when this returns."""
        answer = self.start(verb, *arguments).result(TOOK_LONG_S)
        if verb == "settle":
            self.start("get", "nothing").result(TOOK_LONG_S)  # on the same connection, so it is answered after that
        return answer

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def _plain(argument: Any) -> Any:
    if isinstance(argument, list):
        return [[type(each).__name__, each._asdict()] if isinstance(each, (Rate, Budget, Slot)) else each for each in argument]
    return argument


class Fleet:
    """So many workers that share a state. `folder` is where they run, and where their money is kept; `lease_s` is of a Redis's
    slots, if not the usual."""

    def __init__(self, folder: Path, url: str, count: int, lease_s: float = 0) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(TOOK_LONG_S)
        self._arguments = [url, str(count), str(self._listening.getsockname()[1]), str(lease_s)]
        self._folder, self._single = folder, url != "memory" and count > 1
        self.workers: list[Told] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        starts = count if self._single else 1
        if self._single:
            self._arguments[1] = "1"
        for _ in range(starts):
            self._start()
        for _ in range(count):
            self.accept()

    def _start(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "tests.backends.fleet", *self._arguments]
        self.processes.append(subprocess.Popen(command, cwd=self._folder, env=env, stderr=subprocess.PIPE))

    def accept(self) -> Told:
        """The next worker that begins."""
        self.workers.append(Told(self._listening.accept()[0]))
        return self.workers[-1]

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Ends it; what it wrote to stderr."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)
        for told in self.workers:
            try:
                told.close()
            except OSError:
                continue
        self._listening.close()
        return "".join(process.communicate(timeout=TOOK_LONG_S)[1].decode() for process in self.processes)


def until(true: Any, timeout_s: float = TOOK_LONG_S) -> Any:
    """Looks again and again until that is so; what it was."""
    ends = time.monotonic() + timeout_s
    while True:
        found = true()
        if found:
            return found
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
