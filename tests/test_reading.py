"""Every fault of a config: its file, line and path, what is wrong and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy import config as configuration
from proxy.errors import ConfigError
from tests import configs
from tests.configs import (
    KEYED,
    PLAIN,
    Load,
    fault,
    faults,
    with_target,
)

load = configs.load  # the fixture

TARGET_FAULTS = [
    ("url: http://h", "", "needs a `mapping` (path by path), a `dialect` (a whole API) or a `route`"),
    ("url: http://h\nmapping: {}", "", "needs a `mapping`"),
    ("dialect: openai", ".url", "is missing"),
    (
        "url: localhost:8080\ndialect: openai",
        ".url",
        "must begin with http:// or https://; did you mean 'http://localhost:8080'?",
    ),
    ("url: ftp://h\ndialect: openai", ".url", "must begin with http:// or https://"),
    ("url: command://", ".url", "must begin with http:// or https://"),
    ("url: command://x", ".url", "there is no command 'x': write it below `commands`"),
    ("url: demo://\nstart: {command: [x]}", ".start", "needs an http:// url, which the server listens at"),
    ("url: http://h\nstart: {command: [x]}\nroute: /x\nproxy: http://p", ".start", "which no outbound proxy leads to"),
    ("url: http://h\nstart: {ready: /}\nroute: /x", ".start", "needs a `command`"),
    ("url: http://h\nstart: {command: [x, 80]}\nroute: /x", ".start.command[1]", "must be text: put it in quotes"),
    ("url: http://h\nstart: {command: [x], ready: health}\nroute: /x", ".start.ready", "must be a path such as /health"),
    ("url: https://u:p@h\ndialect: openai", ".url", "must hold no user and password: a key belongs into `envkey`"),
    ("url: http://h/?a=b\ndialect: openai", ".url", "must hold no query and no fragment"),
    ("url: http://h/#a\ndialect: openai", ".url", "must hold no query and no fragment"),
    ("url: http://\ndialect: openai", ".url", "has no host"),
    ("url: http://:80/\ndialect: openai", ".url", "has no host"),
    ("url: 'http://a b/'\ndialect: openai", ".url", "must be plain ASCII without spaces"),
    ("url: http://[::g]/\ndialect: openai", ".url", "'[::g]' is no host"),
    ("url: http://-h/\ndialect: openai", ".url", "'-h' is no host"),
    ("url: http://h:0/\ndialect: openai", ".url", "the port must be a number from 1 to 65535"),
    ("url: http://h:65536\ndialect: openai", ".url", "the port must be"),
    ("url: http://h:x\ndialect: openai", ".url", "the port must be"),
    ("url: 5\ndialect: openai", ".url", "must be a url, such as http://127.0.0.1:8080, not 5"),
    ("url: http://h\ndialect: opnai", ".dialect", "did you mean 'openai'?"),
    ("url: http://h\ndialect: vLLM", ".dialect", "did you mean 'openai'?"),
    ("url: http://h\ndialect: claude", ".dialect", "did you mean 'anthropic'?"),
    ("url: http://h\ndialect: google", ".dialect", "did you mean 'gemini'?"),
    ("url: http://h\ndialect: huggingface", ".dialect", "did you mean 'tgi'?"),
    ("url: http://h\ndialect: llama.cpp", ".dialect", "did you mean 'llamacpp'?"),
    ("url: http://h\ndialct: openai", ".dialct", "is not known here; did you mean 'dialect'?"),
    ("url: demo://\nauth: Bearer", ".auth", "did you mean 'bearer'?"),
    ("url: demo://\nauth: none\nkey: x", ".auth", "sends no key of ours"),
    ("url: demo://\nenvkey: NOPE", ".envkey", "the environment variable NOPE is not set: export it, or put it into .env"),
    ("url: demo://\nenvkey: sk-secret", ".envkey", "must be the name of an environment variable: letters, digits and _"),
    ("url: demo://\nenvkey: EMPTY", ".envkey", "the environment variable EMPTY must not be empty"),
    ("url: demo://\nkey: ''", ".key", "must not be empty"),
    ("url: demo://\nheaders: {content-length: '1'}", ".headers.content-length", "is set by the proxy itself"),
    ("url: demo://\nheaders: {'a b': x}", ".headers.a b", "must be a header's name"),
    ('url: demo://\nheaders: {a: "x\\r\\ny: z"}', ".headers.a", "must be text without control bytes"),
    ("url: demo://\nheaders: {A: x, a: y}", ".headers.a", "stands twice"),
    ("url: demo://\nenvkey: SET\nheaders: {Authorization: x}", ".headers.Authorization", "carries this target's key already"),
    ("url: demo://\nroute: a", ".route", "must be a path such as /llama"),
    ("url: demo://\nroute: /", ".route", "must be a path such as /llama"),
    ("url: demo://\nroute: /a/", ".route", "must be a path such as /llama, without a / at its end"),
    ("url: demo://\nroute: /healthz", ".route", "/healthz belongs to the proxy itself already"),
    ("url: demo://\ntimeout: 0", ".timeout", "must be more than 0"),
    ("url: demo://\ntimeout: 30s", ".timeout", "must be a number of seconds, such as 30, not '30s'"),
    ("url: demo://\ntimeout: .nan", ".timeout", "must be more than 0"),
    ("url: demo://\npreserveMethod: maybe", ".preserveMethod", "must be true or false, not 'maybe'"),
    ("url: demo://\npreservemethod: true", ".preservemethod", "is not known here; did you mean 'preserveMethod'?"),
    ("url: http://h\nroute: /a\ncert: [here, here]", ".cert", "a client certificate needs an https:// url"),
    ("url: https://h\nroute: /a\ncert: [here, gone]", ".cert[1]", "there is no file 'gone'"),
    ("url: https://h\nroute: /a\ncert: [here]", ".cert", "must be two files: certificate and key, not a list"),
    ("url: https://h\nroute: /a\nverify: gone", ".verify", "there is no file 'gone'"),
    ("url: https://h\nroute: /a\nverify: 1", ".verify", "must be true, false or a file, not 1"),
    ("url: https://h\nroute: /a\nproxy: socks5://h", ".proxy", "must begin with http:// or https://"),
    ("url: demo://\non_loss: refuse", ".on_loss", "must be allow, warn or reject, not 'refuse'"),
    ("url: http://h\nroute: /a\nazure: {api_version: 2024-10-21}", ".azure", "goes with `dialect: openai` only"),
    ("url: http://h\ndialect: openai\nazure: {deployment: x}", ".azure.api_version", "is missing"),
    ("url: http://h\ndialect: openai\nazure: {api_version: new}", ".azure.api_version", "must be a version such as 2024-10-21"),
    ("url: demo://\naws: {region: us-east-1}", ".aws", "goes with `dialect: bedrock` and `dialect: sagemaker` only"),
    ("url: demo://\nprompter: llama2chat", ".prompter", "no prompter is called 'llama2chat'; did you mean 'llama2_chat'?"),
    ("url: demo://\nprompter: myPromptr", ".prompter", "no prompter is called 'myPromptr'; did you mean 'myPrompter'?"),
    ("url: demo://\nprompter: lone", ".prompter", "'lone' in prompters.py must take two arguments: (messages, cfg)"),
    ("url: demo://\nprompter: yaml", ".prompter", "'yaml' in prompters.py is no function"),
    ("url: demo://\nprompter: fromTemplate", ".prompter", "fromTemplate needs a `template`"),
    ("url: demo://\ntemplate: HumnResponse", ".template", "there is no template 'HumnResponse'; did you mean 'HumanResponse'?"),
    ("- url", "", "must be a section"),
]


@pytest.mark.parametrize(("lines", "path", "said"), TARGET_FAULTS)
def test_a_targets_fault(load: Load, lines: str, path: str, said: str) -> None:
    Path("here").touch()
    found = fault(load, with_target(lines, "templates: {HumanResponse: {}}"), {**KEYED, "EMPTY": "", "SET": "x"})
    assert re.match(rf"config\.yaml:[3-6]: targets\.a{re.escape(path)}: ", found), found
    assert said in found


ENTRY_FAULTS = [
    ("x: /y", "x", "must begin with /; did you mean '/x'?"),
    ("PSOT /x:", "PSOT /x", "'PSOT' is no method; did you mean 'POST'?"),
    ("OPTIONS /x:", "OPTIONS /x", "'OPTIONS' is no method"),
    ("/x?y:", "/x?y", "must be a path alone"),
    ("/a*:", "/a*", "may hold a * only as /* at its end"),
    ("/*/a:", "/*/a", "may hold a * only as /* at its end"),
    ("/{a:", "/{a", "has a { or } that is no {name}"),
    ("/{a}/{a}:", "/{a}/{a}", "has the same {name} twice"),
    ("/{rest}/*:", "/{rest}/*", "must not call a {name} rest"),
    ("/healthz:", "/healthz", "is answered by the proxy itself"),
    ("/x: y", "/x", "must begin with /, as it is appended to the url; did you mean '/y'?"),
    ("/x: '@evil.example'", "/x", "must begin with /"),
    ("/x: '/y z'", "/x", "must be a path in plain ASCII"),
    ("/x/*: /y", "/x/*", "must end in /* as its key does"),
    ("/x: /y/*", "/x", "may hold a * only as /* at its end, and only when its key ends so"),
    ("/x/{a}: /y/{b}", "/x/{a}", "{b} is not in its key; only {model}"),
    ("/x: 5", "/x", "must be empty, a path, or a section with path, in, out, …, not 5"),
    ("/x: {pth: /y}", "/x.pth", "is not known here; did you mean 'path'?"),
    ("/x: {in: 5}", "/x.in", "must be a mapper's name or a list of names, not 5"),
    (
        "/x: {in: chatReqOpenAItoTG1}",
        "/x.in",
        "no mapper is called 'chatReqOpenAItoTG1'; did you mean 'chatReqOpenAItoTGI'? Else write it in mappers.py",
    ),
    ("/x: {out: [identity, idntity]}", "/x.out[1]", "no mapper is called 'idntity'; did you mean 'identity'?"),
    ("/x: {stream: zzz}", "/x.stream", "no mapper is called 'zzz'; write one in mappers.py"),
    ("/x: {in: Mapping}", "/x.in", "'Mapping' in mappers.py is no function"),
    ("/x: {in: lone}", "/x.in", "'lone' in mappers.py must take two arguments: (ip, cfg)"),
    ("/x: {in: re}", "/x.in", "'re' in mappers.py is no function"),
    ("/x: {in: object_}", "/x.in", "'object_' in mappers.py is no function"),
    ("/x: {prompter: nobody}", "/x.prompter", "no prompter is called 'nobody'; write one in prompters.py"),
    ("/x: {in: identity, prompter: fromTemplate}", "/x.prompter", "fromTemplate needs a `template`"),
    ("/x: {template: T}", "/x.template", "there is no template 'T'"),
]


@pytest.mark.parametrize(("line", "path", "said"), ENTRY_FAULTS)
def test_a_mapping_entrys_fault(load: Load, line: str, path: str, said: str) -> None:
    found = fault(load, with_target(f"url: http://h:1\nmapping:\n  {line}"))
    assert found.startswith(f"config.yaml:6: targets.a.mapping.{path}: "), found
    assert said in found


@pytest.mark.parametrize(
    "line",
    [
        "/x/*:",
        "DELETE /files/{id}: /f/{id}",
        "/engines/{engine}/completions: /v1/completions",
        "/chat/completions: /model/{model}:invoke",
        "/x: /y?api-version=1",
        "/x: ''",
        "/x: {in: [], prompter: fromTemplate}",
        "/: /generate",
    ],
)
def test_a_mapping_entry_that_is_right(load: Load, line: str) -> None:
    assert len(load(with_target(f"url: http://h:1\nmapping:\n  {line}")).targets["a"].mapping) == 1


OTHER_FAULTS = [
    (
        "targets:\n  default: a\n  a: {url: 'command://x'}\ncommands:\n  x: {}",
        5,
        "commands.x",
        "needs a `preset`, or `complete`, `embed` or `tokenize`",
    ),
    (
        "targets:\n  default: a\n  a: {url: 'command://x'}\ncommands:\n  x: {preset: llama.cpp}",
        5,
        "commands.x",
        "needs a `model`",
    ),
    (
        "targets:\n  default: a\n  a: {url: 'command://x'}\ncommands:\n  x: {complete: [x], count_tokens: true}",
        5,
        "commands.x",
        "cannot count tokens without `tokenize`",
    ),
    (
        "targets:\n  default: a\n  a: {url: 'command://x'}\ncommands:\n  x: {preset: llama}",
        5,
        "commands.x.preset",
        "must be llama.cpp, llama-cli or llama-2023",
    ),
    (
        "targets:\n  default: a\n  a: {url: 'command://x'}\ncommands:\n  x: {complete: [x, '{promt}']}",
        5,
        "commands.x.complete[1]",
        "has {promt}, which is not known; did you mean 'prompt'?",
    ),
    (
        "targets:\n  default: a\n  a: {url: 'command://x'}\ncommands:\n  x: {complete: [x, -r, '{stop}']}",
        5,
        "commands.x.complete[2]",
        "put it into a list of its own",
    ),
    (
        "targets:\n  default: a\n  a: {url: 'command://x'}\ncommands:\n  x: {complete: [x, [-r, y]]}",
        5,
        "commands.x.complete[1]",
        "must hold one placeholder of a request",
    ),
    (
        "targets:\n  default: a\n  a: {url: 'command://x'}\ncommands:\n  x: {complete: x}",
        5,
        "commands.x.complete",
        "must be a list: the program, then its arguments",
    ),
    (
        "targets:\n  default: a\n  a: {url: 'command://x'}\ncommands:\n  x: {complete: [x], comlete: [y]}",
        5,
        "commands.x.comlete",
        "did you mean 'complete'?",
    ),
    (
        "targets:\n  default: a\n  a:\n    url: command://x\n    dialect: tgi\ncommands: {x: {complete: [x]}}",
        5,
        "targets.a.dialect",
        "a command:// target speaks llamacpp",
    ),
    (
        "targets:\n  default: a\n  a: {url: 'command://y'}\ncommands: {xy: {complete: [x]}}",
        3,
        "targets.a.url",
        "did you mean 'xy'?",
    ),
    ("targets:\n  default: b\n  a: {url: 'demo://'}", 2, "targets.default", "there is no target 'b'; there is 'a'"),
    ("targets:\n  default: lama\n  llama: {url: 'demo://'}", 2, "targets.default", "did you mean 'llama'?"),
    ("targets:\n  default: default\n  a: {url: 'demo://'}", 2, "targets.default", "there is no target 'default'; there is 'a'"),
    (
        "targets:\n  default: {url: 'demo://'}",
        2,
        "targets.default",
        "must be the name of a target (and none can",
    ),
    ("targets:\n  a: {url: 'demo://'}", 1, "targets.default", "is missing"),
    ("targets:\n  default: x\n  a: {url: 'demo://'}\n  b: {url: 'demo://'}", 2, "targets.default", "there is 'a' and 'b'"),
    ("targets:\n  default: a", 2, "targets.default", "there is no target 'a'; there is none at all"),
    ("system: {}", 1, "targets", "is missing"),
    (PLAIN + "models: {gpt: b}", 6, "models.gpt", "there is no target 'b'; there is 'a'"),
    (PLAIN + "models: {gpt: {target: b}}", 6, "models.gpt.target", "there is no target 'b'; there is 'a'"),
    (PLAIN + "models: {gpt: {model: b}}", 6, "models.gpt.target", "is missing"),
    (PLAIN + "models: {gpt: [a]}", 6, "models.gpt", "must be a target's name or {target, model}, not a list"),
    (PLAIN + "templates: {T: {user: 5}}", 6, "templates.T.user", "must be text: put it in quotes"),
    (PLAIN + "sytem: {}", 6, "sytem", "is not known here; did you mean 'system'?"),
    (PLAIN + "system: {port: 65536}", 6, "system.port", "must be at least 0 and at most 65535, not 65536"),
    (PLAIN + "system: {port: '80'}", 6, "system.port", "must be a number, without quotes"),
    (PLAIN + "system: {port: http}", 6, "system.port", "must be a port, not 'http'"),
    (PLAIN + "system: {port: true}", 6, "system.port", "must be a port, not true"),
    (PLAIN + "system: {host: ''}", 6, "system.host", "must not be empty"),
    (PLAIN + "system: {host: 'h:80'}", 6, "system.host", "must be an address or a host name without a port"),
    (PLAIN + "system: {timeout: .inf}", 6, "system.timeout", "must be more than 0"),
    (PLAIN + "system: {ssl: 1}", 6, "system.ssl", "must be true or false, not 1"),
    (PLAIN + "system: {client_ca: here}", 6, "system.client_ca", "needs `ssl: true`"),
    (PLAIN + "system: {open_to: [999.1.1.1]}", 6, "system.open_to[0]", "must be an address or a network"),
    (
        PLAIN + "system: {open_to: ['::1', 10.0.0.1/8]}",
        6,
        "system.open_to[1]",
        "did you mean '10.0.0.0/8', or",
    ),
    (PLAIN + "system: {open_to: 127.0.0.1}", 6, "system.open_to", "must be a list of networks, not '127.0.0.1'"),
    (PLAIN + "system: {log: {level: warn}}", 6, "system.log.level", "did you mean 'warning'?"),
    (PLAIN + "system: {workers: 0}", 6, "system.workers", "must be at least 1"),
    (PLAIN + "system: [1]", 6, "system", "must be a section (lines of `name: value` below it), not a list"),
    (PLAIN + "cerbere: {max_tries: 0}", 6, "cerbere.max_tries", "must be at least 1"),
    (PLAIN + "cerbere: {whitelist: [1]}", 6, "cerbere.whitelist[0]", "must be an address or a network"),
    (PLAIN + "cerbere: {blacklist: ['fe80::1%eth0']}", 6, "cerbere.blacklist[0]", "must be an address or a network"),
]


@pytest.mark.parametrize(("text", "line", "path", "said"), OTHER_FAULTS)
def test_another_fault(load: Load, text: str, line: int, path: str, said: str) -> None:
    Path("here").touch()
    found = fault(load, text)
    assert found.startswith(f"config.yaml:{line}: {path}: "), found
    assert said in found


def test_two_targets_cannot_have_one_route(load: Load) -> None:
    text = "targets:\n  default: a\n  a: {url: 'demo://', route: /x}\n  b: {url: 'demo://', route: /x}\n"
    assert fault(load, text) == "config.yaml:4: targets.b.route: /x belongs to the target 'a' already"


def test_tls_needs_its_files(load: Load) -> None:
    assert [line.split(": ", 2)[2] for line in faults(load, PLAIN + "system: {ssl: true, client_ca: gone}")] == [
        "there is no file 'certificates/cert.pem'",
        "there is no file 'certificates/key.pem'",
        "there is no file 'gone'",
    ]


def test_all_faults_come_at_once_in_the_order_of_the_file(load: Load) -> None:
    text = """system:
  port: 99999
  prot: 1
cerbere: {max_tries: many}
targets:
  default: lama
  llama:
    envkey: NOPE
    mapping:
      /a: {in: nobody}
      /b: 5
      /b: /c
  other: {url: 'http://h', dialect: nope, timeout: x}
models: {m: nope}
"""
    found = faults(load, text, {})
    assert [line.split(": ")[0] + " " + line.split(": ")[1] for line in found] == [
        "config.yaml:1 system.masterkey",
        "config.yaml:2 system.port",
        "config.yaml:3 system.prot",
        "config.yaml:4 cerbere.max_tries",
        "config.yaml:6 targets.default",
        "config.yaml:7 targets.llama.url",
        "config.yaml:8 targets.llama.envkey",
        "config.yaml:10 targets.llama.mapping./a.in",
        "config.yaml:12 targets.llama.mapping./b",
        "config.yaml:13 targets.other.dialect",
        "config.yaml:13 targets.other.timeout",
        "config.yaml:14 models.m",
    ]
    assert "stands twice, here and in line 11: remove one of them" in found[8]


def bomb(shape: str) -> str:
    """A short file that would be 9 ** 19 parts long without aliases. `shape`: of a section, by its number and those in it."""
    below = [", ".join([f"*n{number}"] * 9) for number in range(20)]
    return "\n".join(["n0: &n0 {x: 1}", *(f"n{n}: " + shape.format(f"n{n}", below[n - 1]) for n in range(1, 20))])


@pytest.mark.parametrize(
    ("text", "begin", "said"),
    [
        ("targets:\n\tdefault: a", "config.yaml:2:1: this is not YAML: ", "a tab: YAML wants spaces here"),
        ("a:\n  b: 1\n\tc: 2", "config.yaml:3:1: this is not YAML: ", "a tab: YAML wants spaces here"),
        ("models:\n  *: x", "config.yaml:2:4: this is not YAML: ", 'put it in quotes: "*"'),
        ("models:\n  a: b\n  *-mini: x", "config.yaml:3:3: this is not YAML: ", 'put it in quotes: "*-mini"'),
        ("a: b: c", "config.yaml:1:5: this is not YAML: ", "or quotes?"),
        ("a:\n  b: 1\n c: 2", "config.yaml:3:2: this is not YAML: ", "lines of one section begin in the same column"),
        ("a:\n  url:http://h\n  b: 1", "config.yaml:3:4: this is not YAML: ", "a space missing behind the `:` above"),
        ("a: @b", "config.yaml:1:4: this is not YAML: ", "put the text in quotes"),
        ("a: [1", "config.yaml:", "this is not YAML"),
        ("a: 1\n---\nb: 2", "config.yaml:2:1: ", "this is not YAML"),
        ("a: !python/object:os.system x", "config.yaml:1:4: ", "this is not YAML"),
        ("[1, 2]: x", "config.yaml:1:1: ", "a name must be plain text"),
        (b"a: 1\nb: \xff\xfe", "config.yaml:2: ", "is not UTF-8"),
        (b"a: \x00", "config.yaml", "this is not YAML"),
        ("", "config.yaml:1: ", "is empty"),
        ("# nothing\n", "config.yaml:1: ", "is empty"),
        ("- a", "config.yaml:1: ", "must be sections such as `targets:`, not a list"),
        ("targets: &a\n  default: *a", "config.yaml:2: ", "refers to itself"),
        ("a: " + "1" * 5000, "config.yaml", "this is not YAML"),
        (bomb("&{0} [{1}]"), "config.yaml:1:1: ", "more than 250,000 parts"),
        (bomb("&{0} {{<<: [{1}]}}"), "config.yaml:1:1: ", "more than 250,000 parts"),
        ("[" * 3000, "config.yaml", ""),
    ],
)
def test_a_file_that_is_no_configuration(load: Load, text: str | bytes, begin: str, said: str) -> None:
    found = faults(load, text)
    assert found[0].startswith(begin), found
    assert said in found[0]
    assert not any("\n" in line for line in found)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for name, said in (("gone.yaml", "there is no such file; copy config.template.yaml to it"), (".", "cannot be read")):
        with pytest.raises(ConfigError) as caught:
            configuration.load(str(tmp_path / name), KEYED, {}, {})
        assert said in caught.value.faults[0]


def test_programs_and_models_that_are_not_there_are_warned_of(load: Load) -> None:
    Path("here.gguf").touch()
    text = "targets:\n  default: a\n  a: {url: 'command://x'}\ncommands:\n"
    config = load(
        text + "  x: {complete: [no-such-program], embed: [sh], model: no.gguf}\n  y: {embed: [sh], model: here.gguf}"
    )
    assert config.warnings == (
        "config.yaml:5: commands.x: there is no program 'no-such-program' on the PATH: calls that need it will fail",
        "config.yaml:5: commands.x: there is no file 'no.gguf': calls that need it will fail",
    )


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        ('[cat, "{prompt}"]', True),
        ('[cat, word, "{prompt} and on"]', True),
        ('[cat, --prompt, "{prompt}"]', False),
        ('[cat, "--prompt={prompt}"]', False),
        ('[cat, --, "{prompt}"]', False),
        ('[cat, "{prompt_file}"]', False),
        ("[cat]", False),
    ],
)
def test_a_prompt_that_could_be_taken_for_an_option_is_warned_of(load: Load, arguments: str, warned: bool) -> None:
    config = load(f"targets: {{default: a, a: {{url: 'command://x'}}}}\ncommands:\n  x:\n    embed: {arguments}\n")
    assert [warning.split(": ")[1] for warning in config.warnings] == ["commands.x.embed"] * warned
