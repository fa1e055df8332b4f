"""The command line: how it starts, why it does not, `check`, and `make run` on a machine that has nothing yet."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jsonschema
import pytest
import yaml

from proxy.errors import ConfigError
from proxy.project import Project
from tests.backends.proxy import CHECKOUT, KEY, Proxy
from tests.backends.sockets import Backend, Client, ask, value_of

DEMO = 'targets: {default: demo, demo: {url: "demo://", dialect: openai}}\n'
RIGHT = {"authorization": f"Bearer {KEY}"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
BARE = {name: value for name, value in os.environ.items() if name != "MOOLTIPROXY_KEY"} | {"PYTHONPATH": str(CHECKOUT)}


def run(folder: Path, *arguments: str, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    """`python -m main …` to its end."""
    command = [sys.executable, "-m", "main", *arguments]
    return subprocess.run(command, cwd=folder, env={**BARE, **env}, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(DEMO)
    return tmp_path


# --- starting
class TestTheKey:
    @pytest.mark.parametrize("env", [{}, {"MOOLTIPROXY_KEY": ""}], ids=["unset", "empty"])
    def test_without_one_it_refuses_and_says_why(self, folder, env):
        done = run(folder, env=env)
        assert done.returncode == 1
        assert "MOOLTIPROXY_KEY" in done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr

    def test_it_is_read_from_a_env_file(self, folder):
        with Proxy(folder, DEMO, key=None, files={".env": "# ours\nexport MOOLTIPROXY_KEY='from the file'\n"}) as proxy:
            assert ask(proxy.url, "GET", "/v1/models", headers={"authorization": "Bearer from the file"}).status == 200
            assert "from the file" not in proxy.banner + proxy.log

    def test_the_environment_beats_the_file(self, folder):
        with Proxy(folder, DEMO, files={".env": "MOOLTIPROXY_KEY=other\n"}) as proxy:
            assert ask(proxy.url, "GET", "/v1/models", headers=RIGHT).status == 200

    def test_one_in_the_config_is_used_with_a_warning(self, folder):
        with Proxy(folder, "system: {masterkey: in-the-file}\n" + DEMO) as proxy:
            assert ask(proxy.url, "GET", "/v1/models", headers={"authorization": "Bearer in-the-file"}).status == 200
            proxy.wait_for_log("masterkey")
            assert "in-the-file" not in proxy.banner + proxy.log


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ("sys.version_info = (3, 9, 18); sys.version = '3.9.18 (main)'", "Python 3.10 or later is needed, and this is 3.9.18"),
        (
            "sys.modules['voluptuous'] = None",
            "the package voluptuous is missing: pip install -r requirements.txt, or `make run`",
        ),
    ],
    ids=["an older Python", "no packages"],
)
def test_a_machine_that_lacks_something_is_told_what(folder: Path, machine: str, said: str) -> None:
    program = f"import sys; {machine}; import main; sys.exit(main.main(['check']))"
    environ = {**BARE, "MOOLTIPROXY_KEY": KEY}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr


class TestOptions:
    def test_config_host_and_port(self, tmp_path):
        (tmp_path / "team.yaml").write_text("system: {port: 1, host: 192.0.2.1}\n" + DEMO)
        with Proxy(tmp_path, None, "--config", "team.yaml", "--host", "127.0.0.2", "--port", "0") as proxy:
            assert proxy.url.startswith("http://127.0.0.2:")
            assert ask(proxy.url, "GET", "/v1/models", headers=RIGHT).status == 200

    def test_debug_shows_bodies_and_no_keys(self, folder):
        with Backend() as backend:
            mapping = "{/x: {in: identity, out: identity}}"
            config = f"targets: {{default: up, up: {{url: '{backend.url}', envkey: UP, mapping: {mapping}}}}}\n"
            with Proxy(folder, config, "--debug", "--port", "0", env={"UP": "upstream-secret"}) as proxy:
                assert ask(proxy.url, "POST", "/x", {"marker": "seen"}, RIGHT).status == 200
        assert "marker" in proxy.log
        assert KEY not in proxy.log
        assert "upstream-secret" not in proxy.log

    @pytest.mark.parametrize("argument", ["--config=nowhere.yaml", "--port=x", "--unheard-of"])
    def test_a_wrong_one_is_said_in_a_line(self, folder, argument):
        done = run(folder, argument, env={"MOOLTIPROXY_KEY": KEY})
        assert done.returncode in (1, 2)
        assert argument.partition("=")[2] in done.stderr
        assert "Traceback" not in done.stderr

    def test_the_banner_tells_where_what_and_a_first_request(self, folder):
        with Proxy(folder, "cerbere: {blacklist: [192.0.2.1]}\n" + DEMO) as proxy:
            assert all(
                text in proxy.banner for text in (proxy.url, "demo://", "default", "blacklist", "curl ", "$MOOLTIPROXY_KEY")
            )
            assert KEY not in proxy.banner


class TestTargetUrl:
    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        with Backend() as backend:
            yield backend

    @pytest.fixture
    def proxy(self, backend: Backend, tmp_path: Path) -> Iterator[Proxy]:
        with Proxy(tmp_path, None, "--target", backend.url + "/base/v1", "--port", "0", key=None) as proxy:
            yield proxy

    def test_everything_passes_through_with_the_clients_own_key(self, proxy, backend):
        own = {"authorization": "Bearer sk-own", "x-stainless-os": "Linux"}
        seen = ask(proxy.url, "POST", "/v1/chat/completions?x=1", CHAT, own).json()
        assert (seen["method"], seen["path"], json.loads(seen["body"])) == ("POST", "/base/v1/chat/completions?x=1", CHAT)
        assert value_of(seen["fields"], "authorization") == "Bearer sk-own"
        assert value_of(seen["fields"], "host") == f"127.0.0.1:{backend.port}"

    def test_only_a_local_host_is_served_and_no_page_of_another_origin(self, proxy):
        port = proxy.url.rpartition(":")[2]
        local = (f"localhost:{port}", "127.0.0.1", "[::1]")
        for host in (*local, "evil.example", "127.0.0.1.evil.example"):
            with Client(proxy.url) as client:
                client.send(f"GET /x HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
                assert client.reply().status == (200 if host in local else 403), host
        for method in ("GET", "OPTIONS"):
            reply = ask(proxy.url, method, "/x", headers={"origin": "https://page.example"})
            assert reply["access-control-allow-origin"] is None

    @pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:80", "http://", "http://u:p@x", "demo:"])
    def test_a_url_that_is_none_is_said(self, tmp_path, url):
        done = run(tmp_path, "--target", url)
        assert done.returncode == 1
        assert "--target" in done.stderr


# --- check
FAULTY = """system:
  prot: 80
targets:
  default: none
  one:
    url: http://h
    mapping:
      /a: {in: noSuchMapper}
      /b: {prompter: noSuchPrompter, template: noSuchTemplate}
    envkey: NOT_SET
"""


class TestCheck:
    def test_a_sound_one_is_told_so(self, folder):
        done = run(folder, "check", env={"MOOLTIPROXY_KEY": KEY})
        assert (done.returncode, done.stderr) == (0, "")
        assert "config.yaml is sound" in done.stdout

    def test_all_faults_at_once_each_with_file_and_line(self, folder):
        (folder / "team.yaml").write_text(FAULTY)
        done = run(folder, "check", "--config", "team.yaml", env={"MOOLTIPROXY_KEY": KEY})
        assert done.returncode == 1
        for line, words in (
            (2, "port"),
            (4, "none"),
            (8, "noSuchMapper"),
            (9, "noSuchPrompter"),
            (9, "noSuchTemplate"),
            (10, "NOT_SET"),
        ):
            assert re.search(rf"(?m)^team\.yaml:{line}\b.*{words}", done.stderr), (line, words, done.stderr)
        assert "Traceback" not in done.stderr

    def test_the_template_is_sound(self, tmp_path):
        shutil.copy(CHECKOUT / "config.template.yaml", tmp_path / "config.yaml")
        assert run(tmp_path, "check", env={"MOOLTIPROXY_KEY": KEY}).returncode == 0

    def test_schema_prints_a_json_schema_that_takes_the_template(self, tmp_path):
        schema = json.loads(run(tmp_path, "check", "--schema").stdout)
        jsonschema.validators.validator_for(schema).check_schema(schema)
        jsonschema.validate(yaml.safe_load((CHECKOUT / "config.template.yaml").read_text()), schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"sistem": {}}, schema)

    def test_show_prints_final_urls_and_the_lines_they_come_from(self, tmp_path):
        (tmp_path / "config.yaml").write_text("""targets:
  default: tgi
  tgi:
    url: http://127.0.0.1:8080
    dialect: tgi
    prompter: chatml
  plain:
    url: http://127.0.0.1:9000/base
    mapping:
      /models: /v1/models
models: {gpt-4o: {target: tgi, model: llama}}
""")
        done = run(tmp_path, "check", "--show", env={"MOOLTIPROXY_KEY": KEY})
        assert (done.returncode, done.stderr) == (0, "")
        for shown in (
            "http://127.0.0.1:8080/generate_stream",
            "chatReqOpenAItoTGI",
            "http://127.0.0.1:9000/base/v1/models",
            "config.yaml:10",
            "config.yaml:5",
            "gpt-4o",
        ):
            assert shown in done.stdout, shown

    @pytest.mark.parametrize("name", ["mappers.py", "prompters.py"])
    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ("def f(:\n", "1"),
            ("import nothing_of_that_name\n", "1"),
            ("\n\n1 / 0\n", "3"),
            ("def f():\n    raise ValueError('x')\n\nf()\n", "2"),
        ],
        ids=["syntax", "import", "at the top", "in a function"],
    )
    def test_a_broken_module_is_told_with_file_and_line(self, folder, name, text, where):
        (folder / name).write_text(text)
        done = run(folder, "check", env={"MOOLTIPROXY_KEY": KEY})
        assert done.returncode == 1
        assert f"{name}:{where}" in done.stderr
        assert "Traceback" not in done.stderr


def test_whoever_reads_the_output_may_stop(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(DEMO)
    command = f"'{sys.executable}' -m main check --show | true"
    environ = {**BARE, "MOOLTIPROXY_KEY": KEY}
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.stderr == ""


# --- the user's functions
def functions(name: str) -> Mapping[str, object]:
    return Project(argparse.Namespace(), CHECKOUT).functions(name)


class TestFunctions:
    def test_they_load_anew_each_time_under_a_fresh_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("mappers.py").write_text("def one(ip, cfg={}):\n    return 1\n")
        first = functions("mappers")
        Path("mappers.py").write_text("def two(ip, cfg={}):\n    return 22\n")
        second = functions("mappers")
        assert ("one" in first, "two" in first, "one" in second, "two" in second) == (True, False, False, True)
        assert first["__name__"] != second["__name__"]
        assert first["__name__"] not in sys.modules
        assert first["one"](None) == 1

    def test_without_a_file_here_the_proxys_own_are_used(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert "chatReqOpenAItoTGI" in functions("mappers")
        assert "fromTemplate" in functions("prompters")

    def test_a_broken_one_is_a_config_error(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("prompters.py").write_text("x = [\n")
        with pytest.raises(ConfigError, match=r"prompters\.py:1"):
            functions("prompters")


# --- make run
IGNORED = shutil.ignore_patterns(
    ".git", ".venv", ".env", "config.yaml", "__pycache__", ".*_cache", ".hypothesis", ".sdks", "benchmarks"
)


class Made:
    """`make run` in a folder, in a process group of its own."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        command = ["make", "run", f"PYTHON={sys.executable}", "ARGS=--port 0"]
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.output = ""
        self.curl = ""

    def __enter__(self) -> Made:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if line.strip().startswith("curl "):
                self.curl = line.strip()
                return self
        raise AssertionError(self.output)

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.communicate(timeout=30)


@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("make") or not shutil.which("curl"), reason="needs make and curl")
def test_make_run_in_a_fresh_copy_answers_the_pasted_curl_line_and_starts_fast_the_second_time(tmp_path, capsys):
    copy = tmp_path / "checkout"
    shutil.copytree(CHECKOUT, copy, ignore=IGNORED)
    env = {
        name: value
        for name, value in BARE.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV") and not name.startswith("PYTEST")
    }
    with Made(copy, env) as made:
        key_file = copy / ".env"
        assert key_file.stat().st_mode & 0o777 == 0o600
        key = re.fullmatch(r"MOOLTIPROXY_KEY=(\S{32,})\n", key_file.read_text())
        assert key is not None
        assert key[1] not in made.output
        whole = subprocess.run(["bash", "-c", made.curl], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
        assert "demo" in json.loads(whole.stdout)["choices"][0]["message"]["content"], whole
        streamed = made.curl.replace('{"model"', '{"stream": true, "model"') + " -sN"
        events = subprocess.run(["bash", "-c", streamed], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
        assert events.stdout.count("data: ") > 2
        assert events.stdout.rstrip().endswith("data: [DONE]")
    assert (copy / "config.yaml").read_text() == (copy / "config.template.yaml").read_text()
    (copy / "config.yaml").write_text(DEMO)
    began = time.monotonic()
    with Made(copy, env) as made:
        second_s = time.monotonic() - began
        assert (copy / "config.yaml").read_text() == DEMO  # what is there is kept
        assert key_file.read_text() == f"MOOLTIPROXY_KEY={key[1]}\n"
    with capsys.disabled():
        print(f"\nsecond make run: {second_s:.2f} s")
