"""docs/writing-a-mapper.md and docs/workbench.md, line by line: files are written, commands run, their output compared.

A block with a file's name is that file; several of one Python file on a page are put together, another one takes the old one's
place. In a console block `$ ` begins a command, and what follows is its output; a line `...` stands for any lines. A command
that ends in & goes on until the page's end. One that fails has `(exit status 1)` as its last line.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.proxy import CHECKOUT

pytestmark = pytest.mark.long

FENCE = re.compile(r"^```(\w*)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
PORTS = ("8000", "9000")  # of the page; the test takes free ones
PATIENCE_S = 30.0
CHANGES = (  # what differs from run to run, and what stands for it
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{28}(?![0-9a-f])"), "0123456789abcdef0123456789ab"),
    (re.compile(r"\b1[0-9]{9}\b"), "1790000000"),
    (re.compile(r"\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "2026-11-21T12:00:00Z"),
    (re.compile(r"^(proxy|python|requests|system): .*", re.MULTILINE), r"\1: …"),
    (re.compile(r"in \d+\.\d+s"), "in 0.10s"),
)


def free_ports(count: int) -> list[str]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(sock.getsockname()[1]) for sock in socks]
    for sock in socks:
        sock.close()
    return ports


class Page:
    """A page that is carried out in a folder."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.text, self.folder = page.read_text(), folder
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.running: list[subprocess.Popen[bytes]] = []
        self.calls = 0  # that the proxy has recorded
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # `python` is this one
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("MOOLTIPROXY", "PYTEST"))}
        self.environ = {**keep, "PATH": path, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "100"}

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(PATIENCE_S)

    def steps(self) -> Iterator[tuple[str, str, str]]:
        """(command, the output that the page shows, the output that there is), the files written as they come."""
        seen: set[str] = set()
        for language, file, text in FENCE.findall(self.text):
            if file:
                path = self.folder / file
                before = path.read_text() if file in seen and language == "python" else ""
                path.write_text(before + self._here(text))
                seen.add(file)
            for command, shown in COMMAND.findall(text) if language == "console" else ():
                yield command, shown, self.run(command)

    def _here(self, text: str) -> str:
        for port, own in self.ports.items():
            text = text.replace(port, own)
        return text

    def run(self, command: str) -> str:
        """What a command prints, as a page would show it."""
        if command.endswith("&"):
            return self._start(command.removesuffix("&"))
        program = ["bash", "-c", self._here(command)]
        done = subprocess.run(program, cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=60)
        if "127.0.0.1:8000" in command:
            self._recorded()
        told = done.stdout + done.stderr
        told += f"(exit status {done.returncode})\n" if done.returncode else ""
        for port, own in self.ports.items():
            told = told.replace(own, port)
        for pattern, instead in CHANGES:
            told = pattern.sub(instead, told)
        return told

    def _recorded(self) -> None:
        """Waits for the cassette of a call, which is written after its end."""
        self.calls += 1
        until = time.monotonic() + PATIENCE_S
        while len(list((self.folder / "cassettes").glob("*.json"))) < self.calls:
            assert time.monotonic() < until, "the call was not recorded"
            time.sleep(0.02)

    def _start(self, command: str) -> str:
        """Starts a server, and returns when its port can be connected."""
        port = next(own for page, own in self.ports.items() if page in command)
        program = ["bash", "-c", f"exec {self._here(command)}"]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            program, cwd=self.folder, env=self.environ, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
        )
        self.running.append(process)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", int(port)), 1).close()
                return ""
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"{command} does not listen")


def fits(shown: str, told: str) -> bool:
    """Whether an output is what the page shows, where a line `...` stands for any lines."""
    parts = re.split(r"^\.\.\.\n", shown, flags=re.MULTILINE)
    return re.fullmatch("(?:.*\n)*?".join(map(re.escape, parts)), told) is not None


@pytest.mark.parametrize("name", ["writing-a-mapper.md", "workbench.md"])
def test_what_the_page_shows_is_what_happens(name: str, tmp_path: Path) -> None:
    with Page(CHECKOUT / "docs" / name, tmp_path) as page:
        count = 0
        for command, shown, told in page.steps():
            assert fits(shown, told), f"$ {command}\n{told}"
            count += 1
    assert count > 5
