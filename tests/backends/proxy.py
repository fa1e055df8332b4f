"""The proxy as people run it: `python -m main` in a folder of its own, on a free port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

CHECKOUT = Path(__file__).resolve().parents[2]
KEY = "test-master-key"
ANNOUNCED = re.compile(r"mooltiproxy\s+(https?://\S+)")


class Proxy:
    """Starts on entry, when its banner says so; ends on exit. `url` is its address, `log` what it wrote to stderr."""

    def __init__(
        self,
        folder: Path,
        config: str | None,
        *arguments: str,
        files: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        key: str | None = KEY,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if config is not None:
            (folder / "config.yaml").write_text(config)
        for name, text in (files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        self._arguments = arguments or ()
        keep = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and name != "MOOLTIPROXY_KEY"
        }
        self.env = {**keep, **({"MOOLTIPROXY_KEY": key} if key else {}), **(env or {}), "PYTHONPATH": str(CHECKOUT)}
        self.url = ""
        self.log = ""
        self.banner = ""
        self._logged = threading.Condition()  # guards `log`, tells of a new line
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}

    def __enter__(self) -> Proxy:
        port = [] if "--port" in self._arguments else ["--port", "0"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "main", *port, *self._arguments],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        for line in self.process.stdout:
            self.banner += line
            if match := ANNOUNCED.search(line):
                self.url = match[1]
            if "a first request" in line:
                self.banner += self.process.stdout.readline()
                return self
        self.process.wait(10)
        self._reader.join(10)
        raise RuntimeError(f"the proxy did not start ({self.process.returncode}): {self.log}")

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._logged:
                self.log += line
                self._logged.notify_all()

    def wait_for_log(self, text: str, times: int = 1, timeout_s: float = 20) -> None:
        """Returns when the log holds that text so often. Raises AssertionError when it does not come."""
        with self._logged:
            assert self._logged.wait_for(lambda: self.log.count(text) >= times, timeout_s), f"{text!r} is not in {self.log}"

    def signal(self, number: signal.Signals) -> None:
        """Sends the proxy a signal."""
        self.process.send_signal(number)

    def stop(self, timeout_s: float = 20) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        self._reader.join(10)
        return status

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
