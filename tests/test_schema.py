"""The template, the schema and the dataclasses say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import config as configuration
from proxy.config import (
    Aws,
    Breaker,
    CacheRule,
    CacheStore,
    Calls,
    Cassettes,
    Cerbere,
    Command,
    Config,
    Console,
    Dataset,
    Deadlines,
    Entry,
    Gateway,
    GuardRules,
    Key,
    Limits,
    Line,
    Log,
    ModelRule,
    Pool,
    RecordsConfig,
    Retries,
    Start,
    Submit,
    System,
    Target,
)
from proxy.settings.schema import ROOT, json_schema, validate
from tests import configs
from tests.configs import (
    KEYED,
    TEMPLATE,
    Load,
)

load = configs.load  # the fixture

# --- template, schema and dataclasses


OPTION = re.compile(r"^( *)(#?)([^\s#][^#]*?|\"[^\"]*\"):(?: +([^\s#].*?))?(?:\s+# (.*))?$")


def uncommented(text: str) -> str:
    """The template with every option on: `#option` is one, `# text` is prose."""
    return re.sub(r"(?m)^( *)#(?=[^\s#])", r"\1", text)


def template_lines() -> Iterator[tuple[tuple[str, ...], bool, Any, str]]:
    """(path, whether it is off, value, comment) of each option of the template, in order."""
    stack: list[tuple[int, str]] = []
    for line in TEMPLATE.read_text().splitlines():
        match = OPTION.match(line)
        if not match or re.match(r" *# ", line):
            continue
        indent, off, name, value, comment = match.groups()
        stack = [(depth, above) for depth, above in stack if depth < len(indent)]
        stack.append((len(indent), name.strip('"')))
        yield tuple(above for _, above in stack), bool(off), yaml.safe_load(value or ""), comment or ""


def in_schema(path: tuple[str, ...], node: Mapping[str, Any]) -> tuple[str, ...] | None:
    """A path of a config as one of the schema: free names become *."""
    if not path:
        return ()
    for option in node.get("anyOf", [node]):
        properties = option.get("properties", {})
        free = option.get("additionalProperties")
        inner, name = (properties[path[0]], path[0]) if path[0] in properties else (free, "*")
        rest = in_schema(path[1:], inner) if inner else None
        if rest is not None:
            return (name, *rest)
    return None


def schema_paths(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for option in node.get("anyOf", [node]):
        for name, inner in option.get("properties", {}).items():
            yield (*path, name)
            yield from schema_paths(inner, (*path, name))
        if option.get("additionalProperties"):
            yield from schema_paths(option["additionalProperties"], (*path, "*"))


def test_the_template_loads_as_it_is() -> None:
    config = configuration.load(str(TEMPLATE), KEYED, {}, {})
    (demo,) = config.targets.values()
    assert replace(demo, line=0, dialect_line=0) == Target("demo", "demo://", dialect="openai")
    assert (config.default, config.system, config.cerbere, config.warnings) == ("demo", System(), Cerbere(), ())


def test_the_template_loads_with_every_option_on(load: Load) -> None:
    Path("certificates").mkdir()
    for name in ("client.pem", "client-key.pem"):
        Path("certificates", name).touch()
    keys = {"OPENAI_API_KEY": "x", "AZURE_API_KEY": "y", "BOB_KEY": "sixteen characters"}
    config = load(uncommented(TEMPLATE.read_text()), {**KEYED, **keys})
    assert config.system == System(masterkey="a-long-secret")
    assert config.cerbere == Cerbere()
    assert set(config.targets) == {"demo", "hosted", "azure", "bedrock", "tgi", "careful", "rotating", "local", "engine"}
    assert set(config.pools) == {"best"}
    assert set(config.templates) == {"HumanResponse", "FalconInstruct", "Instruction", "NodeRed"}
    assert set(config.commands) == {"tiny"}
    assert [rule.pattern for rule in config.models] == ["gpt-4o", "claude-*", "llama-3"]


def test_each_option_of_the_template_can_be_turned_on_alone(load: Load) -> None:
    lines = TEMPLATE.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("#system:"))
    tried = 0
    for number in range(start, len(lines)):
        if not re.match(r" +#\S", lines[number]):
            continue
        on = {number}
        for above in range(number, start - 1, -1):  # with the sections that it stands in
            depth = min(len(lines[i]) - len(lines[i].lstrip()) for i in on)
            if re.match(r" *#\S", lines[above]) and len(lines[above]) - len(lines[above].lstrip()) < depth:
                on.add(above)
        text = "\n".join(uncommented(line) if i in on else line for i, line in enumerate(lines))
        load(text)
        tried += 1
    assert tried > 20


def test_the_template_has_every_option_of_the_schema_and_no_other() -> None:
    schema = json_schema()
    written = {in_schema(path, schema) for path, *_ in template_lines()}
    assert None not in written
    assert set(schema_paths(schema)) <= written


RENAMED = {
    "body": "body_limit",
    "in": "in_",
    "preserveMethod": "preserve_method",
    "envkey": "key_name",
    "envkeys": "keys",
    "concurrency": "queue",
    "pace": "pace_s",
}


def default_of(path: tuple[str, ...]) -> Any:
    """The dataclasses' default for a path of the schema."""
    if path[:2] == ("system", "deadlines"):
        return getattr(Deadlines(), path[-1])
    if path[:2] == ("system", "log"):
        return getattr(Log(), path[-1])
    if path[0] == "templates":
        return ""
    if path[0] in ("state", "on_state_loss"):
        return next(field.default for field in fields(Config) if field.name == path[0])
    if path[0] in ("keys", "limits", "guard", "prices"):
        return getattr({"keys": Key("", b""), "limits": Limits(), "guard": GuardRules()}.get(path[0]), path[-1], None)
    for name, room in (("retries", Retries()), ("breaker", Breaker()), ("queue", Line(1))):
        if name in path[:-1]:
            return getattr(room, path[-1])
    if path[-1] in ("pool", "strategy"):
        return {"pool": None, "strategy": Pool("", {}).strategy}[path[-1]]
    if path[0] == "console":
        return False if path[-1] == "enabled" else getattr(Console(), path[-1], None)
    if "capabilities" in path[:-1]:
        return None
    if "cache" in path[:-1]:
        return getattr(CacheStore() if path[0] == "cache" else CacheRule(), path[-1])
    if path[:2] == ("records", "cassettes"):
        return getattr(Cassettes(), path[-1], None)
    if path[:2] == ("records", "calls"):
        return getattr(Calls(), path[-1], None)
    if path[:2] == ("records", "metrics"):
        return bool(RecordsConfig().metrics)
    for name, room in (("dataset", Dataset()), ("submit", Submit()), ("gateway_api", Gateway())):
        if path[:2] == ("records", name):
            return getattr(room, path[-1], None)
    if path[0] == "records":
        return None
    if "start" in path:
        return getattr(Start(()), path[-1], None)
    if "aws" in path[:-1]:
        return getattr(Aws(""), path[-1])
    owner = {
        "system": System(),
        "cerbere": Cerbere(),
        "commands": Command(""),
        "targets": Entry("") if "mapping" in path[:-1] else Target("", ""),
        "models": ModelRule("", ""),
    }[path[0]]
    name = "azure_" + path[-1] if "azure" in path else RENAMED.get(path[-1], path[-1])
    return getattr(owner, name)


def checked(path: tuple[str, ...], value: Any) -> Any:
    """A value as the schema gives it out."""
    data: Any = value
    for name in reversed(path):
        data = {name: data}
    sound, found = validate(data)
    assert {message for _, message in found} <= {"is missing"}, found
    for name in path:
        sound = sound[name]
    return sound


SECTIONS = {
    ("system",),
    ("cerbere",),
    ("targets",),
    ("system", "deadlines"),
    ("system", "limits"),
    ("system", "log"),
    ("console",),
    ("cache",),
    ("targets", "*", "queue"),
}


def test_every_default_in_the_template_is_the_dataclasses() -> None:
    schema, seen = json_schema(), set()
    for path, off, value, comment in template_lines():
        known = in_schema(path, schema)
        if known is None or known in seen or known in SECTIONS or known[-1] in ("*", "start", "azure") or not off:
            continue
        seen.add(known)
        said = re.match(r"default (\S+):", comment)
        if known in {("models",), ("templates",), ("commands",)} or "no default" in comment:
            assert "no default" in comment, path
            assert (
                known[0] in ("models", "templates")
                or known[-1] in ("url", "target", "preset", "commands")
                or not default_of(known)
            ), path
        else:
            assert checked(path, yaml.safe_load(said[1]) if said else value) == default_of(known), path
    assert len(seen) > 50


# --- the two faces of the schema


BAD = [
    {},
    {"targets": {}},
    {"targets": {"default": "a", "a": {}}},
    {"targets": {"default": "a"}, "nope": 1},
    {"targets": {"default": "a"}, "system": {"port": 70000}},
    {"targets": {"default": "a"}, "system": {"port": "80"}},
    {"targets": {"default": "a"}, "system": {"limits": {"body": "10XB"}}},
    {"targets": {"default": "a"}, "system": {"timeout": 0}},
    {"targets": {"default": "a", "a": {"url": "localhost"}}},
    {"targets": {"default": "a", "a": {"url": "http://h", "dialect": "nope"}}},
    {"targets": {"default": "a", "a": {"url": "http://h", "mapping": {"x": None}}}},
    {"targets": {"default": "a", "a": {"url": "http://h", "mapping": {"/x": {"inn": "y"}}}}},
    {"targets": {"default": "a", "a": {"url": "http://h", "headers": {"a b": "c"}}}},
    {"targets": {"default": "a", "a": {"url": "http://h", "cert": ["a"]}}},
    {"targets": {"default": "a"}, "models": {"m": {"model": "x"}}},
    {"targets": {"default": "a"}, "cerbere": {"whitelist": "10.0.0.1"}},
]


@pytest.mark.parametrize("data", BAD)
def test_both_refuse_what_is_wrong(data: Any) -> None:
    assert validate(data)[1]
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(data)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for name in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from places(data[name], (*path, name))


TEXT = uncommented(TEMPLATE.read_text()).replace("2024-10-21", '"2024-10-21"').replace("      on: [", '      "on": [')
WHOLE = yaml.safe_load(TEXT)  # quoted is what this loader takes for a date and a truth
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 70000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.sampled_from(["/x", "10MiB", "a", "http://h:1/p", "::1", "10.0.0.0/8", "openai", "GET /x/*", "true"]),
    st.lists(st.sampled_from(["a", "::1", 1, None]), max_size=2),
    st.dictionaries(st.sampled_from(["target", "path", "url", "x", "/x"]), st.sampled_from(["a", "/x", None, 1]), max_size=2),
)


@pytest.mark.long
@settings(max_examples=300)
@given(place=st.sampled_from([place for place in places(WHOLE) if place]), value=ODD, name=st.none() | st.text(max_size=4))
def test_what_the_proxy_takes_an_editor_takes_too(place: tuple[Any, ...], value: Any, name: str | None) -> None:
    data = deepcopy(WHOLE)
    inner = data
    for part in place[:-1]:
        inner = inner[part]
    if name is not None and isinstance(inner, dict):
        inner[name] = inner.pop(place[-1])
    else:
        inner[place[-1]] = value
    sound, found = validate(data)
    assert validate(data) == (sound, found), "the same again"
    assert isinstance(sound, dict)
    if not found:
        jsonschema.Draft202012Validator(json_schema()).validate(data)


def test_the_schema_tells_the_meaning_of_everything() -> None:
    def fields(node: Any) -> Iterator[Mapping[str, Any]]:
        if isinstance(node, dict):
            yield from node.get("properties", {}).values()
            for inner in node.values():
                yield from fields(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from fields(inner)

    found = list(fields(ROOT.json()))
    assert len(found) > 60
    assert all(field["description"] for field in found)
