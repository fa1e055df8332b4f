"""A YAML file → data, with the line of every part; what it means is not known here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import yaml

from proxy.errors import ConfigError
from proxy.settings.env import read_text

Path = tuple[str | int, ...]  # ("targets", "llama", "url"); an int is a place in a list

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times quicker
STRING = "tag:yaml.org,2002:str"
MERGE = "tag:yaml.org,2002:merge"
TIMESTAMP = "tag:yaml.org,2002:timestamp"
HINTS = {  # in the parser's words, libyaml's or Python's → what people did
    "did not find expected key": "lines of one section begin in the same column",
    "<block end>": "lines of one section begin in the same column",
    "mapping values are not allowed": "is this line indented too far, or is a space missing behind the `:` above, or quotes?",
    "cannot start any token": "put the text in quotes",
    "unexpected end of stream": "a quote is not closed",
}
MOST_PARTS = 250_000  # values and names of a file, with what its aliases stand for written out
ALIAS = re.compile(r"\*[^\s:,\]}]*")  # or a name that was meant to begin with *


class Source(NamedTuple):
    """One YAML file as data, the line of each of its paths, and the faults that reading it has shown."""

    file: str
    data: Any
    lines: Mapping[Path, int]
    faults: tuple[tuple[Path, str], ...] = ()

    def line(self, path: Path) -> int:
        """The line where `path` stands, or, when it is missing, the part that it is missing from."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def fault(self, path: Path, message: str) -> str:
        """One line for a person: file, line, path, what is wrong."""
        where = f"{self.file}:{self.line(path)}: "
        return where + (f"{dotted(path)}: {message}" if path else message)


def dotted(path: Path) -> str:
    """`targets.llama.cert[0]`"""
    out = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return out.removeprefix(".")


def read_yaml(path: str) -> Source:
    """A YAML file with its lines. Raises ConfigError when it cannot be read at all; lesser faults are in the result."""
    return source_of(path, read_text(path, "copy config.template.yaml to it, or name another one with --config"))


def source_of(path: str, raw: bytes) -> Source:
    """The same of bytes that may become that file."""
    lines: dict[Path, int] = {}
    faults: list[tuple[Path, str]] = []
    try:
        data = _parse(raw, lines, faults)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError([f"{path}{place}: this is not YAML: {_what(fault, mark, raw)}"]) from None
    except (yaml.YAMLError, ValueError) as fault:  # no place: bytes that are no text, a number that is none
        raise ConfigError([_unplaced(path, fault, raw)]) from None
    except RecursionError:
        raise ConfigError([f"{path}: is nested too deeply"]) from None
    return Source(path, data, lines, tuple(faults))


def _what(fault: Any, mark: Any, raw: bytes) -> str:
    """The parser's own words, and what to do about the faults that people make most."""
    what = " ".join(part for part in (fault.context, fault.problem) if part)
    line = "".join(raw.decode(errors="replace").splitlines()[mark.line : mark.line + 1]) if mark else ""
    if not mark or not line:
        return what
    if "\t" in line[: mark.column + 1] and not line[: mark.column].strip():
        return "a tab: YAML wants spaces here"
    names = [found[0] for found in ALIAS.finditer(line) if found.start() <= mark.column <= found.end()]
    if names and "alias" in what:
        return f'{what}; put it in quotes: "{names[0]}"'
    return "; ".join([what, *(hint for words, hint in HINTS.items() if words in what)])


def _unplaced(path: str, fault: Exception, raw: bytes) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as wrong:
        line = raw.count(b"\n", 0, wrong.start) + 1
        return f"{path}:{line}: is not UTF-8"
    return f"{path}: this is not YAML: {' '.join(str(fault).split())}"


def _parse(raw: bytes, lines: dict[Path, int], faults: list[tuple[Path, str]]) -> Any:
    loader = LOADER(raw)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if size_of(root, {}) > MOST_PARTS:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_PARTS:,} parts with aliases", problem_mark=root.start_mark)
        _walk(root, (), lines, lambda path, message: faults.append((path, message)), ())
        return loader.construct_document(root)
    finally:
        loader.dispose()


def size_of(node: Any, known: dict[int, int]) -> int:
    """How many parts a YAML tree has once its aliases are written out: a short text can stand for billions. `known`: by node.
    Raises RecursionError."""
    if id(node) not in known:
        known[id(node)] = 1  # what refers to itself is told by `_walk`
        groups = {yaml.MappingNode: node.value, yaml.SequenceNode: [node.value]}.get(type(node), ())
        known[id(node)] += sum(size_of(each, known) for group in groups for each in group)
    return known[id(node)]


def _walk(node: Any, path: Path, lines: dict[Path, int], fault: Callable[[Path, str], None], above: tuple[int, ...]) -> None:
    """Note the lines of all that is below a node, find names that stand twice, and let names and dates be text."""
    if id(node) in above:
        return fault(path, "refers to itself")
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in sorted(node.value, key=lambda pair: pair[0].tag != MERGE):  # what is merged is overridden
            if key.tag == MERGE:
                for base in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                    _walk(base, path, lines, fault, above)
                continue
            name, line = _name(key), key.start_mark.line + 1
            below = (*path, name)
            lines[below] = line
            if name in seen:
                fault(below, f"stands twice, here and in line {seen[name]}: remove one of them")
            seen[name] = line
            _walk(value, below, lines, fault, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines.setdefault((*path, index), value.start_mark.line + 1)
            _walk(value, (*path, index), lines, fault, above)
    elif node.tag == TIMESTAMP:
        node.tag = STRING  # an api_version looks like a date
    return None


def _name(key: Any) -> str:
    """A key as it is written: `on`, `no` and `404` are names here, not truths and numbers."""
    if isinstance(key, yaml.ScalarNode):
        key.tag = STRING
        return str(key.value)
    raise yaml.MarkedYAMLError(problem="a name must be plain text", problem_mark=key.start_mark)
