"""Clients of other ages, each in a folder of its own below tests/.sdks, installed once per checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / ".sdks" / f"py{sys.version_info[0]}.{sys.version_info[1]}"
REQUIREMENTS = {
    "openai-1": ["openai<2"],
    "openai-0.28": ["openai==0.28.1"],
    "anthropic-0": ["anthropic<1"],
    "langchain": ["langchain-openai", "langchain-anthropic", "langchain-ollama"],
    "litellm": ["litellm", "mcp"],  # it imports mcp without requiring it
}
INSTALL_S = 120


def installed(name: str, *requirements: str) -> Path:
    """The folder of a client, `openai-0.28`. It is made under another name and renamed: what is there is whole."""
    import fcntl

    folder = FOLDER / name
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of pytest ask at once
        if not folder.exists():
            made = Path(tempfile.mkdtemp(prefix=name + ".", dir=FOLDER))
            command = [
                sys.executable,
                "-m",
                "uv",
                "pip",
                "install",
                "--quiet",
                "--python",
                sys.executable,
                "--target",
                str(made),
            ]
            env = {**os.environ, "UV_LINK_MODE": "copy"}
            done = subprocess.run(
                [*command, *requirements], env=env, capture_output=True, text=True, timeout=INSTALL_S, check=False
            )
            if done.returncode:
                shutil.rmtree(made)
                pytest.fail(f"{name} could not be installed: {done.stderr}")
            made.rename(folder)
    return folder


def run(sdk: Path, script: str, env: Mapping[str, str]) -> str:
    """What a script prints that imports that client."""
    given = {**os.environ, **env, "PYTHONPATH": str(sdk)}
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Child:
    """A script in a process of its own with a client's folder on its path; jobs and answers are lines of JSON."""

    def __init__(self, name: str, script: Path, *arguments: str) -> None:
        env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), *arguments],
            env={**env, "PYTHONPATH": str(installed(name, *REQUIREMENTS[name]))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """The answer to one job. Raises RuntimeError when the child is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the client's process ended with {self._process.wait(10)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process: its input ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
