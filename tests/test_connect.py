"""proxy/workbench/connect.py: what is printed is what a client needs, held against real clients where they are at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from proxy import config as configuration
from proxy.config import Config
from proxy.errors import ConfigError
from proxy.workbench.connect import clients, lines, listing
from tests.backends.proxy import CHECKOUT, KEY, Proxy

NAMES = sorted(clients())
CONFIG = """
targets:
  default: here
  here: {url: 'demo://', dialect: openai}
  there: {url: 'http://127.0.0.1:9/v1', dialect: openai}
  below: {url: 'http://127.0.0.1:9/v1', dialect: openai, route: /below}
  named: {url: 'http://127.0.0.1:9/v1', dialect: openai}
models: {"gpt-*": there, tiny: named}
"""
PYTHON = ("openai-sdk", "anthropic-sdk", "google-genai", "huggingface")
SHELL = ("curl", "ollama")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return configuration.load(str(path), {"MOOLTIPROXY_KEY": "the-secret-key"}, {}, {})


def shown(config: Config, name: str, **more: str) -> str:
    return lines(name, config, "http://127.0.0.1:8000", "$MOOLTIPROXY_KEY", **more)


@pytest.mark.parametrize("name", NAMES)
def test_every_client_gets_the_address_and_never_the_key(config: Config, name: str) -> None:
    text = shown(config, name)
    assert "http://127.0.0.1:8000" in text
    assert "the-secret-key" not in text
    assert "%(" not in text
    assert "target:" not in text.partition("\n")[2], "the default target needs no header"


@pytest.mark.parametrize("name", NAMES)
def test_another_target_is_named_by_header_or_the_reason_is_given(config: Config, name: str) -> None:
    if "%(target)s" in clients()[name]["lines"]:
        assert "there" in shown(config, name, wanted="there").partition("\n")[2]
    else:
        with pytest.raises(ConfigError, match="route"):
            shown(config, name, wanted="there")


@pytest.mark.parametrize("name", NAMES)
def test_a_route_or_a_named_model_needs_no_header(config: Config, name: str) -> None:
    assert "http://127.0.0.1:8000/below" in shown(config, name, wanted="below")
    by_model = shown(config, name, wanted="named").partition("\n")[2]
    assert "named" not in by_model
    assert "tiny" in by_model or "%(model)s" not in clients()[name]["lines"]  # some list the models by themselves


def test_the_model_is_the_one_asked_for_or_says_that_it_is_unknown(config: Config) -> None:
    assert '"model": "gpt-9"' in shown(config, "curl", model="gpt-9")
    assert '"model": "demo"' in shown(config, "curl")
    assert "--model puts it in" in shown(config, "curl", wanted="below")


def test_a_key_that_is_not_in_the_environment_is_read_from_where_it_stands(config: Config) -> None:
    text = lines("claude-code", config, "http://127.0.0.1:8000", "$(sed -n 1p /x/.env)")
    assert 'export MOOLTIPROXY_KEY="$(sed -n 1p /x/.env)"' in text
    assert "MOOLTIPROXY_KEY" not in lines("vscode-copilot", config, "http://127.0.0.1:8000", "$(sed -n 1p /x/.env)")


def test_what_goes_into_a_file_is_a_file_of_that_kind(config: Config) -> None:
    settings = pytest.importorskip("tomllib").loads(shown(config, "codex", wanted="there"))
    assert settings["model_providers"]["mooltiproxy"]["http_headers"] == {"target": "there"}
    text = shown(config, "continue", wanted="there")
    model = yaml.safe_load(text[text.index("name:") :])["models"][0]
    assert model["apiBase"] == "http://127.0.0.1:8000/v1"
    assert model["requestOptions"] == {"headers": {"target": "there"}}


def test_clients_without_a_key_are_told_to_open_the_network_only_while_none_is_open(tmp_path: Path, config: Config) -> None:
    assert "open_to" in shown(config, "vscode-copilot")
    path = tmp_path / "open.yaml"
    path.write_text(CONFIG + "system: {open_to: [127.0.0.1]}\n")
    opened = configuration.load(str(path), {"MOOLTIPROXY_KEY": "the-secret-key"}, {}, {})
    assert "open_to" not in shown(opened, "vscode-copilot")


def test_with_https_clients_learn_which_certificate_to_trust(config: Config) -> None:
    secure = replace(config, system=replace(config.system, ssl=True))
    text = lines("claude-code", secure, "https://127.0.0.1:8000", "$MOOLTIPROXY_KEY")
    assert "export NODE_EXTRA_CA_CERTS=" in text


# --- as a command


def connect(
    folder: Path, *arguments: str, key: str | None = KEY, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "MOOLTIPROXY_KEY"}
    env |= {"PYTHONPATH": str(CHECKOUT), **({"MOOLTIPROXY_KEY": key} if key else {})}
    command = [sys.executable, "-m", "main", *before, "connect", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def test_without_a_name_the_command_lists_all_clients(tmp_path: Path) -> None:
    found = connect(tmp_path)
    assert (found.returncode, found.stdout.strip()) == (0, listing())
    assert all(name in found.stdout for name in NAMES)


def test_a_name_that_is_nearly_right_is_understood_enough_to_say_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    found = connect(tmp_path, "claude")
    assert (found.returncode, found.stdout) == (1, "")
    assert "did you mean 'claude-code'?" in found.stderr
    assert "did you mean 'there'?" in connect(tmp_path, "curl", "--target", "ther").stderr


def test_what_the_proxy_is_started_with_counts_here_too(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert "http://127.0.0.1:9000" in connect(tmp_path, "curl", before=("--port", "9000")).stdout


def test_the_command_reads_the_key_of_the_env_file_only_when_its_lines_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / ".env").write_text("MOOLTIPROXY_KEY=from-the-file\n")
    found = connect(tmp_path, "claude-code", key=None)
    assert "from-the-file" not in found.stdout
    exports = "\n".join(line for line in found.stdout.splitlines() if line.startswith("export "))
    told = subprocess.run(
        ["bash", "-c", exports + '\necho "$ANTHROPIC_AUTH_TOKEN"'], capture_output=True, text=True, timeout=60
    )
    assert told.stdout == "from-the-file\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy whose configuration file says the port that it listens on."""
    with Proxy(tmp_path_factory.mktemp("connect"), CONFIG) as proxy:
        (proxy.folder / "config.yaml").write_text(f"{CONFIG}system: {{port: {proxy.url.rpartition(':')[2]}}}\n")
        yield proxy


@pytest.mark.long
@pytest.mark.parametrize("name", [*PYTHON, *SHELL])
def test_printed_lines_run_as_they_are(running: Proxy, tmp_path: Path, name: str) -> None:
    printed = connect(running.folder, name).stdout
    command = [sys.executable, "-c", printed] if name in PYTHON else ["bash", "-c", printed]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**running.env, "PATH": path, "HOME": str(tmp_path)}
    answered = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert "This is mooltiproxy's demo" in answered.stdout.replace("’", "'"), answered.stderr
