"""A real nginx on a free port, with the configuration of deploy/nginx.conf: only addresses and folders are other ones."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy/nginx.conf"
TOOK_LONG_S = 20.0


class Nginx:
    """`with Nginx(folder, urls) as front:` has a `url`."""

    def __init__(self, folder: Path, backends: Sequence[str]) -> None:
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        text = CONFIGURATION.read_text()
        for number, url in enumerate(backends, 1):
            assert f"proxy{number}:8000" in text
            text = text.replace(f"proxy{number}:8000", url.removeprefix("http://"))
        text = text.replace("listen 8080", f"listen 127.0.0.1:{self.port}").replace("/tmp/", f"{folder}/")
        assert not re.search(r"proxy\d:8000", text)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "nginx.conf").write_text(f"user {_user()};\n{text}")
        log = str(folder / "error.log")
        self._command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", log, "-g", "daemon off;"]

    def __enter__(self) -> Nginx:
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        until = time.monotonic() + TOOK_LONG_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return self
            except OSError:
                assert self._process.poll() is None, "nginx did not start"
                assert time.monotonic() < until, "nginx does not listen"
                time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(TOOK_LONG_S)


def _user() -> str:
    import getpass

    return getpass.getuser()
