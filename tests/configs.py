"""What the tests of the configuration share: functions that a config can name, and texts to load."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import config as configuration
from proxy.config import Config
from proxy.errors import ConfigError

HERE = Path(__file__).parent
TEMPLATE = HERE.parent / "config.template.yaml"
KEYED = {"MOOLTIPROXY_KEY": "k" * 32}


def identity(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    return ip


def myAnswer(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    return ip


def myPrompter(messages: Any, cfg: Mapping[str, Any]) -> tuple[str, list[str]]:
    return "", []


def lone(ip: Any) -> Any:
    return ip


class Called:
    def __call__(self, ip: Any, cfg: Any = None) -> Any:
        return ip


MAPPERS: dict[str, object] = {
    "identity": identity,
    "myAnswer": myAnswer,
    "Mapping": dict,
    "re": re,
    "object_": Called(),
    "lone": lone,
}
PROMPTERS: dict[str, object] = {"myPrompter": myPrompter, "yaml": yaml, "lone": lone}

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """A function that loads a text as config.yaml, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def load_text(text: str | bytes, environ: Mapping[str, str] = KEYED) -> Config:
        Path("config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return configuration.load("config.yaml", environ, MAPPERS, PROMPTERS)

    return load_text


def faults(load: Load, text: str | bytes, environ: Mapping[str, str] = KEYED) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, environ)
    return list(caught.value.faults)


def fault(load: Load, text: str, environ: Mapping[str, str] = KEYED) -> str:
    found = faults(load, text, environ)
    assert len(found) == 1, found
    return found[0]


def with_target(lines: str, more: str = "") -> str:
    """A config whose only target has those lines."""
    return "targets:\n  default: a\n  a:\n" + "".join(f"    {line}\n" for line in lines.splitlines()) + more


PLAIN = with_target("url: http://h:1\nmapping: {/x: }")
