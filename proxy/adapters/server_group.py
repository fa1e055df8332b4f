"""Which server of a group runs, known to all workers through three files in a private folder and the kernel's file locks.

  gate    exclusive, briefly: whoever enters or swaps, first come first served, so that nobody starves
  use     shared by every call at work; exclusive for who stops or starts a server: there are no calls in flight then
  alive   held by the server itself, which inherits it: free when all of its processes have ended. It says what runs
A server without `exclusive` is a group of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any

from proxy.adapters import process_group
from proxy.errors import BackendError

STOP_S = 10.0  # between SIGTERM and SIGKILL
POLL_S = 0.05


class Lock:
    """An open file and a lock on it, which ends when it is closed."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self, how: int = fcntl.LOCK_EX) -> None:
        """Waits for it: LOCK_EX or LOCK_SH."""
        fcntl.flock(self.fd, how)

    def taken(self, how: int = fcntl.LOCK_EX) -> bool:
        """Takes it when that is possible at once."""
        try:
            fcntl.flock(self.fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self.fd)


class Group:
    """The three files of a group of servers. `name`: its name, within the configuration in `file`."""

    def __init__(self, file: str | None, name: str) -> None:
        key = f"{os.path.abspath(file or '')}\0{name}"
        self.place = os.path.join(_folder(), hashlib.sha256(key.encode()).hexdigest()[:24])

    def lock(self, name: str) -> Lock:
        """`gate`, `use` or `alive`."""
        return Lock(f"{self.place}.{name}")

    def running(self) -> dict[str, Any]:
        """What the last one to start a server has said of it, {} after one that was stopped."""
        with closing(self.lock("alive")) as alive:
            said = os.pread(alive.fd, 65536, 0)
        with suppress(ValueError):
            found = json.loads(said)
            return found if isinstance(found, dict) else {}
        return {}

    def tell(self, running: Mapping[str, Any]) -> None:
        """For who holds `gate` and `use`."""
        with closing(self.lock("alive")) as alive:
            data = json.dumps(running).encode()
            os.ftruncate(alive.fd, 0)
            os.pwrite(alive.fd, data, 0)

    def is_alive(self) -> bool:
        """Whether a process of a server is left."""
        with closing(self.lock("alive")) as alive:
            return not alive.taken(fcntl.LOCK_SH)

    def stop(self) -> None:
        """Ends the server that runs, if one does; for who holds `gate` and `use`."""
        group = self.running().get("group")
        for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            if self.is_alive() and group:
                process_group.tell(group, number)
            until = time.monotonic() + patience_s
            while self.is_alive() and time.monotonic() < until:
                time.sleep(POLL_S)
        if self.is_alive():
            raise BackendError("the server that ran before does not end")
        self.tell({})


def _folder() -> str:
    """A folder that only this user can look into."""
    folder = os.path.join(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(), f"mooltiproxy-{os.getuid()}")
    os.makedirs(folder, 0o700, exist_ok=True)
    found = os.stat(folder, follow_symlinks=False)
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise BackendError(f"{folder} belongs to somebody else, or others may look into it: remove it")
    return folder
