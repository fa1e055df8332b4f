"""`make dist`: one file with everything in it, the same bytes from the same sources, beside a folder's own files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.backends.proxy import CHECKOUT, KEY
from tests.backends.sockets import ask

COPIED = ("deploy", "proxy", "main.py", "mappers.py", "prompters.py", "config.template.yaml", "requirements.txt", "LICENSE")
BARE = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"MOOLTIPROXY_KEY": KEY}
ALONE = (sys.executable, "-I", "-S")  # a Python without any package
CONFIG = """targets:
  default: demo
  demo:
    url: demo://
    mapping:
      /chat/completions: {path: /v1/chat/completions, in: shouted, out: chatAnsOpenAItoOpenAI}
"""
MAPPERS = "def shouted(ip, cfg={}):\n    return {**ip, 'messages': [{'role': 'user', 'content': 'OWN MAPPER'}]}\n"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as they are now, so that nobody changes them between two builds."""
    copy = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    return copy


def build(root: Path, out: Path, seed: str = "0") -> Path:
    command = [sys.executable, str(root / "deploy" / "dist.py"), "--out", str(out)]
    done = subprocess.run(
        command, env={**BARE, "PYTHONHASHSEED": seed}, cwd="/", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / "mooltiproxy.pyz"


@pytest.fixture(scope="module")
def packed(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy, tmp_path_factory.mktemp("dist"))


def run(packed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*ALONE, str(packed), *arguments]
    return subprocess.run(
        command, cwd=folder, env=BARE, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )


class TestTheFile:
    def test_another_folder_and_another_order_give_the_same_bytes(self, packed, copy, tmp_path):
        other = tmp_path / "elsewhere" / "deeper"
        shutil.copytree(copy, other)
        for path in other.rglob("*"):
            os.utime(path, (1, 1))
        assert build(other, tmp_path / "out", seed="4711").read_bytes() == packed.read_bytes()

    def test_every_file_has_its_hash(self, packed):
        whole = (packed.parent / "mooltiproxy.pyz.sha256").read_text().split()
        assert whole == [hashlib.sha256(packed.read_bytes()).hexdigest(), "mooltiproxy.pyz"]
        with zipfile.ZipFile(packed) as archive:
            names = archive.namelist()
            listed = dict(reversed(line.split("  ", 1)) for line in archive.read("MANIFEST.sha256").decode().splitlines())
            assert sorted(listed) == sorted(set(names) - {"MANIFEST.sha256"})
            assert all(hashlib.sha256(archive.read(name)).hexdigest() == digest for name, digest in listed.items())
        assert names == sorted(names)

    def test_nothing_in_it_is_of_one_machine(self, packed, copy):
        with zipfile.ZipFile(packed) as archive:
            assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]
            assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
            assert str(copy).encode() not in b"".join(map(archive.read, archive.namelist()))

    def test_another_python_takes_the_sources(self, packed, tmp_path):
        """Bytecode with another magic number is passed over."""
        with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(tmp_path / "other.pyz", "w") as other:
            for name in archive.namelist():
                data = archive.read(name)
                other.writestr(name, b"\0\0\r\n" + data[4:] if name.endswith(".pyc") else data)
        done = run(tmp_path / "other.pyz", tmp_path, "connect")
        assert (done.returncode, "claude-code" in done.stdout) == (0, True), done.stderr


class TestItsCommands:
    def test_init_has_the_template(self, packed, tmp_path):
        done = run(packed, tmp_path, "init", "--url", "demo://", "--name", "mine", "--yes")
        assert (done.returncode, done.stderr) == (0, "")
        assert yaml.safe_load((tmp_path / "config.yaml").read_text())["targets"]["mine"]["url"] == "demo://"

    def test_connect_has_its_clients_and_names_the_one_file(self, packed, tmp_path):
        (tmp_path / "config.yaml").write_text('targets: {default: demo, demo: {url: "demo://", dialect: openai}}\n')
        (tmp_path / ".env").write_text("MOOLTIPROXY_KEY=from-dotenv\n")
        command = [*ALONE, str(packed), "connect", "openai-sdk"]
        env = {name: value for name, value in BARE.items() if name != "MOOLTIPROXY_KEY"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert f"'{packed}' key" in done.stdout, done
        key = re.search(r"\$\((.*key .*)\)", done.stdout)
        assert key is not None
        shown = subprocess.run(["sh", "-c", key[1]], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert shown.stdout == "from-dotenv\n", shown

    def test_its_own_mappers_serve_where_a_folder_has_none(self, packed, tmp_path):
        with zipfile.ZipFile(packed) as archive:
            own = re.findall(r"(?m)^def (\w+)", archive.read("mappers.py").decode())
        (tmp_path / "config.yaml").write_text(CONFIG.replace("shouted", own[0]))
        done = run(packed, tmp_path, "check")
        assert done.returncode == 0, done.stderr

    def test_public_authorities_are_in_it(self, packed, tmp_path):
        program = f"import sys; sys.path.insert(0, {str(packed)!r}); from proxy.adapters.exchange import Exchange; "
        program += "print(Exchange()._tls().cert_store_stats()['x509_ca'])"
        done = subprocess.run([*ALONE, "-c", program], env=BARE, capture_output=True, text=True, timeout=60, check=False)
        assert int(done.stdout) > 100, done.stderr


@pytest.fixture
def served(packed: Path, tmp_path: Path) -> Iterator[str]:
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "mappers.py").write_text(MAPPERS)
    command = [*ALONE, str(packed), "--port", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, env=BARE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = next((line for line in process.stdout if "mooltiproxy  http" in line), "")
        assert line, process.stderr and process.stderr.read()
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@pytest.mark.parametrize("streamed", [False, True])
def test_it_serves_with_the_folders_own_files(served, streamed):
    chat: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": streamed}
    reply = ask(served, "POST", "/v1/chat/completions", chat, {"authorization": f"Bearer {KEY}"})
    assert reply.status == 200
    said = (
        reply.body.decode()
        if not streamed
        else "".join(
            choice["delta"].get("content") or "" for event in reply.events if event != "[DONE]" for choice in event["choices"]
        )
    )
    assert "OWN MAPPER" in said or "OWN MAPPER" in json.dumps(said)
