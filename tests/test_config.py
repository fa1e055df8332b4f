"""config.yaml: what loads, and as what; whose key counts."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest

from proxy import config as configuration
from proxy import dialects
from proxy.config import Cerbere, Deadlines, Entry, Log, ModelRule, System, Target
from proxy.errors import ConfigError
from proxy.workbench.show import shown
from tests import configs
from tests.configs import (
    HERE,
    KEYED,
    MAPPERS,
    PLAIN,
    PROMPTERS,
    Load,
    fault,
    faults,
    identity,
    myPrompter,
    with_target,
)

load = configs.load  # the fixture


@pytest.mark.parametrize("name", ["passthrough", "tgi", "llama2", "functions"])
def test_an_ancestors_config_loads_unchanged(name: str) -> None:
    environ = {**KEYED, "OPENAI_KEY": "sk-1", "TGI_KEY": "t"}
    config = configuration.load(str(HERE / f"data/ancestor/{name}.yaml"), environ, MAPPERS, PROMPTERS)
    assert config.default in config.targets
    assert all(target.mapping and target.dialect is None for target in config.targets.values())


def test_the_ancestors_three_kinds_of_entry() -> None:
    config = configuration.load(str(HERE / "data/ancestor/tgi.yaml"), {**KEYED, "TGI_KEY": "t"}, MAPPERS, PROMPTERS)
    falcon, hr = config.targets["falcon"], config.targets["hr"]
    assert falcon.mapping[0] == Entry(key="/info", line=19)
    assert falcon.mapping[2] == Entry(
        key="/v1/chat/completions",
        path="/generate",
        in_=("chatReqOpenAItoTGI",),
        out=("chatAnsTGItoOpenAI",),
        prompter="fromTemplate",
        template="FalconInstruct",
        line=24,
    )
    assert (falcon.key, falcon.key_name, falcon.preserve_method, falcon.auth) == ("t", "TGI_KEY", True, "bearer")
    assert (hr.key, hr.key_name) == ("an-old-key", "key")
    assert hr.mapping[0].path == "/generate", "the url ends in /, the path does not begin with one"
    assert config.templates["FalconInstruct"]["mine"] == "extra text for a prompter"
    assert config.templates["HumanResponse"] == {
        "preprompt": "",
        "start": "",
        "system": "",
        "user": "\n### HUMAN:\n",
        "assistant": "\n### RESPONSE:\n",
    }
    passed = configuration.load(str(HERE / "data/ancestor/passthrough.yaml"), {"OPENAI_KEY": "sk-1"}, MAPPERS, PROMPTERS)
    assert [entry.path for entry in passed.targets["openai"].mapping] == [None, None, "/v1/models"]


def test_defaults_are_the_dataclasses(load: Load) -> None:
    config = load(PLAIN)
    assert config.system == System()
    assert config.cerbere == Cerbere()
    assert config.targets == {"a": Target("a", "http://h:1", mapping=(Entry("/x", line=5),), line=3)}
    assert (config.default, config.models, config.templates, config.warnings) == ("a", (), {}, ())
    assert (config.file, config.master_key) == ("config.yaml", "k" * 32)


def test_every_value_comes_out_in_its_type(load: Load) -> None:
    config = load(
        PLAIN
        + """
system:
  host: "::"
  port: 0
  timeout: 2
  deadlines: {connect: 1, idle: 0.5}
  debug: yes
  open_to: [127.0.0.1, 10.0.0.0/8, "::1", "fd00::/8", "::ffff:192.0.2.1"]
  limits: {body: 10MiB, connections: 7}
  log: {format: json, level: debug, file: a.log}
cerbere: {ban_s: 60, only: }
models: {"gpt-*": a, b: {target: default, model: c}}
"""
    )
    networks = ("127.0.0.1/32", "10.0.0.0/8", "::1/128", "fd00::/8", "192.0.2.1/32")
    assert config.system == System(
        host="::",
        port=0,
        timeout=2,
        deadlines=Deadlines(connect=1, idle=0.5),
        debug=True,
        open_to=tuple(ipaddress.ip_network(network) for network in networks),
        body_limit=10 * 2**20,
        connections=7,
        log=Log("json", "debug", "a.log"),
    )
    assert config.cerbere == Cerbere(ban_s=60)
    assert config.models == (ModelRule("gpt-*", "a", line=17), ModelRule("b", "a", "c", line=17))


@pytest.mark.parametrize(
    ("written", "size"),
    [("1", 1), ("65536", 65536), ("64KiB", 65536), ("1 GiB", 2**30), ("5MB", 5_000_000), ("2kb", 2000), ("9B", 9)],
)
def test_sizes(load: Load, written: str, size: int) -> None:
    assert load(PLAIN + f"system: {{limits: {{body: {written}}}}}").system.body_limit == size


@pytest.mark.parametrize("written", ["0", "-1", "1.5", "1e3", "10 XiB", "10Ki", "true", "[]", "MiB", "''"])
def test_what_is_no_size_is_refused(load: Load, written: str) -> None:
    assert "system.limits.body: must be a size" in fault(load, PLAIN + f"system: {{limits: {{body: {written}}}}}")


def test_names_and_dates_are_read_as_they_are_written(load: Load) -> None:
    config = load(
        with_target("url: http://h\ndialect: openai\nazure: {api_version: 2024-10-21}\nheaders: {on: 'x'}", "models: {4: a}\n")
    )
    assert config.targets["a"].azure_api_version == "2024-10-21"
    assert config.targets["a"].headers == {"on": "x"}
    assert config.models[0].pattern == "4"


def test_every_option_of_a_target(load: Load) -> None:
    for name in ("ca.pem", "c.pem", "k.pem"):
        Path(name).touch()
    lines = """url: https://h:8443/base
envkey: A_KEY
auth: x-api-key
headers: {x-a: b}
model: m
route: /a/b
prompter: myPrompter
template: T
preserveMethod: true
timeout: 1.5
verify: ca.pem
cert: [c.pem, k.pem]
proxy: http://user:password@127.0.0.1:3128
dialect: openai
on_loss: reject
azure: {api_version: 2024-10-21-preview, deployment: d}
mapping: {POST /f/*: {path: /g/*, in: [identity, myAnswer], stream: identity, stream_path: "/s/*"}}"""
    target = load(with_target(lines, "templates: {T: }\n"), {**KEYED, "A_KEY": "secret"}).targets["a"]
    assert target == Target(
        name="a",
        url="https://h:8443/base",
        key="secret",
        key_name="A_KEY",
        auth="x-api-key",
        headers={"x-a": "b"},
        dialect="openai",
        model="m",
        route="/a/b",
        prompter="myPrompter",
        template="T",
        mapping=(Entry("/f/*", "POST", "/g/*", ("identity", "myAnswer"), (), ("identity",), "/s/*", line=20),),
        preserve_method=True,
        timeout=1.5,
        verify="ca.pem",
        cert=("c.pem", "k.pem"),
        proxy="http://user:password@127.0.0.1:3128",
        on_loss="reject",
        azure_api_version="2024-10-21-preview",
        azure_deployment="d",
        line=3,
        dialect_line=17,
    )
    assert "secret" not in repr(target)


def test_auth_follows_the_dialect(load: Load) -> None:
    def auth_of(lines: str) -> str:
        return load(with_target(lines)).targets["a"].auth

    for name in dialects.names():
        region = "\naws: {region: us-east-1}" if dialects.load(name).aws else ""
        assert auth_of(f"url: http://h\ndialect: {name}{region}") == dialects.load(name).auth
    assert auth_of("url: http://h\ndialect: openai\nauth: none") == "none"
    assert auth_of("url: http://h\ndialect: openai\nazure: {api_version: 2024-10-21}") == "api-key"
    assert auth_of("url: http://h\nroute: /a") == "bearer"


def test_a_demo_speaks_openai_without_being_told(load: Load) -> None:
    assert load(with_target("url: demo://")).targets["a"].dialect == "openai"
    assert "targets.a.dialect: a demo:// target speaks openai" in fault(load, with_target("url: demo://\ndialect: tgi"))


def test_a_users_function_beats_a_built_in_one() -> None:
    own = {"chatReqOpenAItoTGI": identity, "llama2_chat": myPrompter}
    assert configuration.find_mapper("chatReqOpenAItoTGI", own) is identity
    assert configuration.find_prompter("llama2_chat", own) is myPrompter
    assert configuration.find_mapper("chatReqOpenAItoTGI", {}).__name__ == "chatReqOpenAItoTGI"  # type: ignore[union-attr]
    assert configuration.find_prompter("llama2_chat", {}).__name__ == "llama2_chat"  # type: ignore[union-attr]
    assert configuration.find_mapper("nothing", {}) is None
    assert configuration.find_prompter("Prompter", {}) is None, "a name of the module that is no prompter"


def test_merged_keys_are_found_at_their_line(load: Load) -> None:
    text = "targets:\n  default: a\n  a: &a\n    url: http://h\n    model: 5\n  b:\n    <<: *a\n    dialect: openai\n"
    assert faults(load, text)[:2] == [
        "config.yaml:3: targets.a: needs a `mapping` (path by path), a `dialect` (a whole API)"
        " or a `route` (all below it, passed through)",
        "config.yaml:5: targets.a.model: must be text on one line: put it in quotes",
    ]
    assert len(faults(load, text)) == 3, "and targets.b.model, once more in line 5"


# --- keys


def test_a_masterkey_in_the_file_beats_the_environment_and_is_warned_of(load: Load) -> None:
    config = load(PLAIN + "system: {masterkey: from-the-file}")
    assert config.master_key == config.system.masterkey == "from-the-file"
    (warning,) = config.warnings
    assert warning.startswith("config.yaml:6: system.masterkey: security: ")
    assert "beats MOOLTIPROXY_KEY" in warning
    assert "from-the-file" not in warning + repr(config)


@pytest.mark.parametrize(
    ("environ", "more", "said"),
    [
        ({}, "", "there is no master key: put `MOOLTIPROXY_KEY=…` into .env or export it; this makes a good one: python3"),
        ({"MOOLTIPROXY_KEY": ""}, "", "the environment variable MOOLTIPROXY_KEY must not be empty"),
        ({"MOOLTIPROXY_KEY": "secret\n"}, "", "the environment variable MOOLTIPROXY_KEY must be a key: no line breaks"),
        (KEYED, "system: {masterkey: ''}", "must not be empty"),
        (KEYED, "system: {masterkey: }", "is empty"),
        (KEYED, "system: {masterkey: 12345}", "must be a key: no line breaks, no white space at its ends: put it in quotes"),
        (KEYED, "system: {masterkey: ' secret'}", "must be a key"),
    ],
)
def test_no_start_without_a_good_master_key(load: Load, environ: Mapping[str, str], more: str, said: str) -> None:
    found = fault(load, PLAIN + more, environ)
    assert f"system.masterkey: {said}" in found
    assert "secret" not in found.replace("import secrets", "").replace("secrets.token", "")
    assert "12345" not in found


def test_a_key_in_the_file_beats_envkey_and_is_warned_of(load: Load) -> None:
    config = load(with_target("url: demo://\nkey: abc\nenvkey: NOT_SET"))
    assert config.targets["a"].key == "abc"
    assert config.warnings == (
        "config.yaml:5: targets.a.key: security: a key in a file is read by whoever reads the file; envkey is better."
        " It beats envkey: NOT_SET.",
    )


def test_what_weakens_security_is_warned_of(load: Load) -> None:
    config = load(with_target("url: https://h\ndialect: openai\nverify: false", "system: {open_to: [0.0.0.0/0]}"))
    assert [warning.split(": ")[1] for warning in config.warnings] == ["targets.a.verify", "system.open_to"]


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://h/v1/chat/completions/", "http://h/v1"),
        ("http://h/completions", "http://h"),
        ("http://h/v1/messages", "http://h/v1"),
        ("http://h/v1/responses", "http://h/v1"),
        ("http://h/v1/embeddings", "http://h/v1"),
        ("http://h/v1beta/models/m:generateContent", "http://h/v1beta"),
        ("http://h/v1beta/models/m:streamGenerateContent", "http://h/v1beta"),
    ],
)
def test_a_url_that_ends_in_an_operation_is_warned_of(load: Load, url: str, base: str) -> None:
    (warning,) = load(with_target(f"url: {url}\ndialect: openai")).warnings
    assert warning == f"config.yaml:4: targets.a.url: ends in an operation: the base is {base}"
    assert load(with_target(f"url: {url}\nmapping: {{/x: ''}}")).warnings == (), "joined as it is"
    assert load(with_target(f"url: {base}\ndialect: openai")).warnings == ()


def test_a_prompter_that_nobody_asks_is_warned_of(load: Load) -> None:
    lines, more = "url: http://h\nprompter: chatml\ntemplate: T\ndialect: ", "templates: {T: }"
    for dialect in ("openai", "responses", "anthropic", "gemini", "ollama"):
        warnings = load(with_target(lines + dialect, more)).warnings
        assert [warning.split(": ", 1)[1] for warning in warnings] == [
            f"targets.a.{name}: has no effect: {dialect} takes messages, not a prompt" for name in ("prompter", "template")
        ]
    for dialect in ("tgi", "llamacpp"):
        assert load(with_target(lines + dialect, more)).warnings == ()
    own = lines + "openai\nmapping: {/x: {in: identity}}"
    assert load(with_target(own, more)).warnings == (), "the user's mapper may ask it"


def test_no_secret_stands_in_a_fault(load: Load) -> None:
    lines = 'url: https://user:hunter2@h\nkey: "hunter2\\n"\nheaders: {x: "hunter2\\n"}\nenvkey: K\nroute: /a'
    found = faults(load, with_target(lines, 'system: {masterkey: "hunter2 "}'), {"K": "hunter2\n"})
    assert len(found) == 5
    assert not any("hunter2" in line for line in found)


# --- without a file


def test_a_target_url_alone_is_a_pass_through_for_this_machine() -> None:
    config = configuration.for_target_url("http://127.0.0.1:8080/v1", {})
    assert config.targets[config.default] == Target("target", "http://127.0.0.1:8080/v1", auth="passthrough")
    assert [str(network) for network in config.system.open_to] == ["127.0.0.0/8", "::1/128"]
    assert (config.master_key, config.file, config.system.local_only) == ("", None, True)
    assert configuration.for_target_url("http://h", KEYED).master_key == KEYED["MOOLTIPROXY_KEY"]


def test_a_target_url_that_is_none() -> None:
    with pytest.raises(ConfigError) as caught:
        configuration.for_target_url("127.0.0.1:8080", {})
    (found,) = caught.value.faults
    assert found == "--target: must begin with http:// or https://; did you mean 'http://127.0.0.1:8080'?"


def test_only_what_is_needed_is_imported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("targets: {default: a, a: {url: 'demo://'}}")
    program = """
import sys
from proxy import config
config.for_target_url("http://h", {})
assert not {"yaml", "voluptuous", "proxy.settings.schema"} & set(sys.modules), "for --target"
config.load(sys.argv[1], {"MOOLTIPROXY_KEY": "k"}, {}, {})
assert not {"proxy.dialects.tgi", "proxy.dialects.anthropic", "jsonschema", "requests"} & set(sys.modules), "for a plain file"
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "config.yaml")], cwd=HERE.parent, check=True)


# --- for people


def test_what_show_prints_has_no_blanks_at_the_ends_of_its_lines(load: Load) -> None:
    for dialect in dialects.names():
        region = "\naws: {region: us-east-1}" if dialects.load(dialect).aws else ""
        lines = shown(load(with_target(f"url: http://h\ndialect: {dialect}{region}")), {}, {}).splitlines()
        assert lines == [line.rstrip() for line in lines]
        assert dialect != "openai" or "    POST /v1/messages/count_tokens:" in lines, "answered by the proxy: it has no url"


# --- for editors


def test_the_schema_is_one_and_goes_through_json() -> None:
    schema = configuration.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
