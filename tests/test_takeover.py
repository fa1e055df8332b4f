"""`init --from`: LiteLLM's and openai-forward's configurations become ours, and nothing in them is dropped in silence."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.backends.proxy import CHECKOUT

BARE = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY") and name != "MOOLTIPROXY_KEY"}
BARE["PYTHONPATH"] = str(CHECKOUT)

LITELLM = """model_list:
  - model_name: gpt-4o
    litellm_params:
      model: azure/gpt-4o-eu
      api_base: https://eu.openai.azure.com
      api_key: os.environ/AZURE_API_KEY
      api_version: "2024-02-01"
      tpm: 100000
  - model_name: gpt-4o
    litellm_params:
      model: azure/gpt-4o-ca
      api_base: https://ca.openai.azure.com
      api_key: sk-literal
      api_version: "2024-02-01"
  - model_name: claude
    litellm_params: {model: anthropic/claude-opus-4-8, api_key: os.environ/ANTHROPIC_API_KEY, timeout: 300, max_retries: 2}
    model_info: {supports_vision: true, max_input_tokens: 200000}
  - model_name: haiku
    litellm_params: {model: claude-haiku-4-5, api_key: os.environ/ANTHROPIC_API_KEY}
  - model_name: sonnet
    litellm_params: {model: anthropic/claude-sonnet-4-5, api_key: os.environ/ANTHROPIC_API_KEY}
  - model_name: local
    litellm_params: {model: ollama_chat/llama3, api_base: "http://localhost:11434"}
  - model_name: quick
    litellm_params: {model: groq/llama-3.1-8b-instant, api_key: os.environ/GROQ_API_KEY}
    model_info: {input_cost_per_token: 0.00000005, output_cost_per_token: 0.00000008}
  - model_name: far
    litellm_params: {model: vertex_ai/gemini-pro, vertex_project: p}
litellm_settings:
  drop_params: false
  success_callback: [langfuse]
  cache: true
  cache_params: {type: redis, ttl: 600}
  request_timeout: 600
  fallbacks: [{claude: [gpt-4o]}, {claude: [gone]}]
router_settings:
  routing_strategy: least-busy
  num_retries: 3
  allowed_fails: 3
  cooldown_time: 30
  redis_host: localhost
  redis_password: sk-redis
  model_group_alias: {gpt-4: gpt-4o}
general_settings:
  master_key: sk-1234
  allowed_ips: [192.0.2.1]
  alerting: [slack]
  completion_model: local
"""
FORWARD = """log: {general: true}
forward:
  - {base_url: "https://api.openai.com", route: /openai, type: openai}
  - {base_url: "https://generativelanguage.googleapis.com", route: /gemini, type: general}
  - base_url: http://localhost:11434
    route: /
    type: custom
    backend: ollama
    model_map: {gpt-4o-mini: qwen2}
api_key:
  level: {1: [gpt-4]}
  openai_key: {sk-xxx1: [0], sk-xxx2: [1]}
  forward_key: {0: [fk-0], 1: [fk-1]}
rate_limit:
  global_rate_limit: 200/minute
  req_rate_limit:
    - route: /v1/chat/completions
      value: [{level: 0, limit: 100/2minutes}, {level: 1, limit: 1/minute}]
  token_rate_limit:
    - {route: /v1/chat/completions, value: [{level: 0, limit: 100/second}]}
  iter_chunk: one-by-one
timeout: 6
ip_blacklist: [192.0.2.1]
proxy: http://localhost:7890
benchmark_mode: true
tz: Asia/Shanghai
"""
DOTENV = """LOG_CHAT=true
CACHE_CHAT_COMPLETION=true
OPENAI_BASE_URL='https://api.openai.com, http://localhost:8080'
OPENAI_ROUTE_PREFIX='/, /localai'
# several
OPENAI_API_KEY='sk-xxx1'
FORWARD_KEY=fk-0, fk-1
EXTRA_BASE_URL='http://localhost:8882'
EXTRA_ROUTE_PREFIX=/tts
REQ_RATE_LIMIT='{
"/localai/v1/chat/completions": "1/10seconds"
}'
GLOBAL_RATE_LIMIT=2/5seconds
TOKEN_RATE_LIMIT={"/v1/chat/completions":"20/second"}
IP_BLACKLIST=192.0.2.1, 192.0.2.2
TIMEOUT=300
TZ=Asia/Shanghai
"""
SECRETS = ("sk-literal", "sk-1234", "sk-redis", "sk-xxx1", "sk-xxx2", "fk-0", "fk-1")


def line_of(text: str, what: str) -> int:
    return text.count("\n", 0, text.index(what)) + 1


def run(folder: Path, *arguments: str, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "main", *arguments]
    how: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "check": False}
    return subprocess.run(command, cwd=folder, env={**BARE, **env}, stdin=subprocess.DEVNULL, **how)


def taken(folder: Path, name: str, text: str, *more: str) -> tuple[dict[str, Any], str]:
    """The configuration that comes out, and what is said."""
    (folder / name).write_text(text)
    done = run(folder, "init", "--from", name, *more)
    assert (done.returncode, done.stderr) == (0, ""), done
    written = (folder / "config.yaml").read_text()
    assert not any(secret in written + done.stdout for secret in SECRETS)
    config: dict[str, Any] = yaml.safe_load(written)
    return config, done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What becomes of LiteLLM's, which no test changes."""
    return taken(tmp_path_factory.mktemp("taken"), "litellm.yaml", LITELLM)


class TestLiteLLM:
    def test_backends_become_targets_and_pools(self, found):
        targets = found[0]["targets"]
        assert targets["gpt-4o"]["azure"] == {"api_version": "2024-02-01"}
        assert (targets["gpt-4o"]["model"], targets["gpt-4o-2"]["model"]) == ("gpt-4o-eu", "gpt-4o-ca")
        assert targets["gpt-4o"]["envkey"] == "AZURE_API_KEY"
        assert targets["gpt-4o-2"]["envkey"] not in ("AZURE_API_KEY", "sk-literal")
        assert targets["gpt-4o-pool"] == {"pool": ["gpt-4o", "gpt-4o-2"], "strategy": "least-busy"}
        claude = targets["claude"]
        assert (claude["dialect"], claude["timeout"], claude["retries"]) == ("anthropic", 300, {"attempts": 3})
        assert (claude["fallback"], claude["breaker"]) == (["gpt-4o-pool"], {"failures": 4, "cool_s": 30})
        assert claude["capabilities"] == {"images": True, "context": 200000}
        assert claude["on_loss"] == "reject"
        assert targets["ollama"]["retries"] == {"attempts": 4}
        assert targets["groq"]["url"] == "https://api.groq.com/openai/v1"
        assert targets["default"] == "ollama"

    def test_models_that_share_a_backend_share_its_target(self, found):
        models = found[0]["models"]
        assert models["haiku"] == {"target": "anthropic", "model": "claude-haiku-4-5"}
        assert models["sonnet"] == {"target": "anthropic", "model": "claude-sonnet-4-5"}
        assert models["gpt-4"] == models["gpt-4o"] == "gpt-4o-pool"

    def test_the_settings_of_all(self, found):
        assert found[0]["system"] == {"timeout": 600}
        assert found[0]["cerbere"] == {"only": ["192.0.2.1"]}
        assert found[0]["state"] == "redis://localhost:6379"

    def test_its_cache_is_each_target_s(self, found):
        backends = [target for name, target in found[0]["targets"].items() if name != "default" and "pool" not in target]
        assert len(backends) == 6
        assert all(target["cache"] == {"default": True, "ttl_s": 600} for target in backends)
        assert found[0]["cache"] == {"store": "state"}

    def test_prices_go_by_the_model_that_is_sent(self, found):
        assert found[0]["models"]["quick"] == {"target": "groq", "model": "llama-3.1-8b-instant"}
        assert found[0]["prices"] == {"llama-3.1-8b-instant": {"input": 0.05, "output": 0.08}}

    @pytest.mark.parametrize("what", ["tpm", "vertex_ai/gemini-pro", "success_callback", "gone", "redis_password", "alerting"])
    def test_what_has_no_counterpart_is_told_with_its_line(self, found, what):
        left = found[1].partition("left behind:")[2]
        assert re.search(rf"litellm\.yaml:{line_of(LITELLM, what)}: .*{re.escape(what)}", left), left

    def test_what_is_written_passes_check(self, tmp_path):
        taken(tmp_path, "litellm.yaml", LITELLM, "--save-key")
        assert 'MOOLTIPROXY_KEY="sk-1234"' in (tmp_path / ".env").read_text()
        done = run(tmp_path, "check", env={"AZURE_API_KEY": "a", "ANTHROPIC_API_KEY": "b", "GROQ_API_KEY": "c"})
        assert done.returncode == 0, done.stderr


class TestOpenAIForward:
    def test_its_yaml(self, tmp_path):
        config, said = taken(tmp_path, "forward.yaml", FORWARD)
        targets = config["targets"]
        assert targets["default"] == "localhost"
        assert (targets["openai"]["route"], targets["openai"]["dialect"]) == ("/openai", "openai")
        assert targets["openai"]["envkeys"] == ["OPENAI_API_KEY_1", "OPENAI_API_KEY_2"]
        assert targets["openai"]["pace"] == "100/second"
        assert "dialect" not in targets["gemini"]
        assert targets["localhost"]["proxy"] == "http://localhost:7890"
        assert targets["benchmark"] == {"url": "demo://", "dialect": "openai", "route": "/benchmark"}
        assert config["models"] == {"gpt-4o-mini": {"target": "localhost", "model": "qwen2"}}
        assert config["limits"]["global"] == "200/minute"
        assert config["limits"]["paths"] == {"/v1/chat/completions": "100/2minutes"}
        assert config["cerbere"] == {"blacklist": ["192.0.2.1"]}
        entries = list(config["keys"].values())
        assert [entry["sha256"] for entry in entries] == [hashlib.sha256(key).hexdigest() for key in (b"fk-0", b"fk-1")]
        assert [entry.get("models") for entry in entries] == [None, ["gpt-4"]]
        left = said.partition("left behind:")[2]
        places = {
            "log.general": "log:",
            "openai_key: levels": "openai_key",
            "limits by level": "req_rate",
            "iter_chunk": "iter_ch",
        }
        for what, place in {**places, "tz": "tz"}.items():
            assert re.search(rf"forward\.yaml:{line_of(FORWARD, place)}: .*{what}", left), (what, left)

    def test_its_env_file(self, tmp_path):
        config, said = taken(tmp_path, "forward.env", DOTENV, "--save-key")
        targets = config["targets"]
        assert targets["default"] == "api-openai-com"
        assert targets["localai"]["route"] == "/localai"
        assert targets["tts"] == {"url": "http://localhost:8882", "route": "/tts", "pace": "20/second"}
        assert targets["localai"]["cache"] == {"default": False}
        assert targets["localai"]["envkey"] == "OPENAI_API_KEY"
        assert (tmp_path / ".env").read_text() == 'OPENAI_API_KEY="sk-xxx1"\n'
        assert len(config["keys"]) == 2
        assert config["limits"] == {"global": "2/5seconds", "paths": {"/localai/v1/chat/completions": "1/10seconds"}}
        assert config["cerbere"] == {"blacklist": ["192.0.2.1", "192.0.2.2"]}
        assert config["system"] == {"timeout": 300}
        assert f"forward.env:{line_of(DOTENV, 'TZ')}: tz" in said
        assert run(tmp_path, "check", env={"MOOLTIPROXY_KEY": "k"}).returncode == 0

    def test_without_keys_clients_send_their_own(self, tmp_path):
        config, said = taken(tmp_path, "x.yaml", "forward: [{base_url: 'https://api.openai.com', route: /, type: openai}]\n")
        assert config["targets"]["api-openai-com"]["auth"] == "passthrough"
        assert "x-mooltiproxy-key" in said
        assert run(tmp_path, "check", env={"MOOLTIPROXY_KEY": "k"}).returncode == 0


class TestFaults:
    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("x.yaml", "a: 1\n", "neither LiteLLM's"),
            ("x.yaml", "- 1\n", "neither LiteLLM's"),
            ("x.yaml", "model_list: [\n", "x.yaml:2"),
            ("x.yaml", "model_list: []\n", "no backend"),
            ("x.env", "\xff", "not UTF-8"),
        ],
    )
    def test_a_file_that_is_neither(self, tmp_path, name, text, said):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        done = run(tmp_path, "init", "--from", name)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "config.yaml").exists()

    def test_a_file_that_is_not_there(self, tmp_path):
        done = run(tmp_path, "init", "--from", "gone.yaml")
        assert (done.returncode, done.stderr) == (1, "gone.yaml: there is no such file; name another file with --from\n")

    def test_a_configuration_that_is_there_is_replaced_only_when_forced(self, tmp_path):
        (tmp_path / "config.yaml").write_text("mine\n")
        (tmp_path / "x.yaml").write_text(LITELLM)
        done = run(tmp_path, "init", "--from", "x.yaml")
        assert done.returncode == 1
        assert "--force" in done.stderr
        assert (tmp_path / "config.yaml").read_text() == "mine\n"
        assert run(tmp_path, "init", "--from", "x.yaml", "--config", "new.yaml").returncode == 0
        assert run(tmp_path, "init", "--from", "x.yaml", "--force").returncode == 0
        assert (tmp_path / "config.yaml").read_text() == (tmp_path / "new.yaml").read_text()
