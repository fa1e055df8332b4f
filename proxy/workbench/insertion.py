"""A target into the text of a config.yaml: everything else keeps its bytes, comments and all.

The file is parsed for where its parts stand, text goes in there, and what comes out is parsed again and held against what went
in. What cannot be done so (an alias for a section, for one) is refused.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from proxy import config as configuration
from proxy.config import Config
from proxy.errors import ConfigError
from proxy.settings.env import read_text

if TYPE_CHECKING:
    from proxy.project import Project

PLAIN = re.compile(r"[A-Za-z](?:[A-Za-z0-9_./:-]*[A-Za-z0-9_./-])?")  # needs no quotes
WORDS = ("true", "false", "yes", "no", "on", "off", "null")
Json = dict[str, Any]


def scalar(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in WORDS
        return value if plain else '"' + "".join(map(_escaped, value)) + '"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {scalar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(scalar, value)) + "]"
    return json.dumps(value)


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    return char if char.isprintable() else f"\\U{ord(char):08x}"


def block(
    name: str, value: Any, comments: Mapping[str, str] = {}, indent: str = "", step: str = "  ", path: str = ""
) -> list[str]:
    """`name: value` as lines of block YAML. comments: dotted path below `name` → what stands behind the line."""
    behind = f"  # {comments[path]}" if path in comments else ""
    if not isinstance(value, Mapping) or not value:
        return [f"{indent}{scalar(name)}: {scalar(value)}{behind}"]
    lines = [f"{indent}{scalar(name)}:{behind}"]
    for key, inner in value.items():
        lines += block(key, inner, comments, indent + step, step, f"{path}.{key}".removeprefix("."))
    return lines


def with_target(
    text: str, name: str, target: Json, *, default: bool = False, force: bool = False, comments: Mapping[str, str] = {}
) -> str:
    """The text with that target in it. default: it becomes the default one. force: it may replace the one of that name.

    Raises ConfigError when it may not, or when the text is such that nothing can be put into it.
    """
    before = yaml.safe_load(text) or {}
    targets = before.get("targets") or {}
    if name in targets and not force:
        raise ConfigError([f"there is a target {name!r} already: --name gives the new one another name, --force replaces it"])
    after = _inserted(text, name, target, comments, "default" not in targets)
    if default and "default" in targets:
        after = _with_default(after, name)
    kept = name if default or "default" not in targets else targets["default"]
    wanted = {**before, "targets": {**targets, "default": kept, name: target}}
    if _parsed(after) != wanted:
        raise ConfigError(["cannot be put into this file without changing more of it; write it by hand:", *block(name, target)])
    return after


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _inserted(text: str, name: str, target: Json, comments: Mapping[str, str], first: bool) -> str:
    """`first`: the section says no default yet."""
    newline = "\r\n" if "\r\n" in text else "\n"
    fresh = [*(block("default", name, indent="  ") if first else []), *block(name, target, comments, "  ")]
    root = yaml.compose(text)
    section = _member(root, "targets")
    if section is None:
        if isinstance(root, yaml.MappingNode) and root.flow_style:
            return _into_flow(text, root, "targets", {"default": name, name: target})
        return _behind(text, len(text), ["targets:", *fresh], newline)
    key, value = section
    if not isinstance(value, yaml.MappingNode):  # `targets:` with nothing below it
        return _behind(text, key.end_mark.index + 1, fresh, newline)
    old = _member(value, name)
    if value.flow_style:
        if old:
            return text[: old[0].start_mark.index] + f"{scalar(name)}: {scalar(target)}" + text[old[1].end_mark.index :]
        return _into_flow(text, value, name, target)
    indent = " " * value.start_mark.column
    lines = [*(block("default", name, indent=indent) if first else []), *block(name, target, comments, indent, indent or "  ")]
    if old:
        begin = text.rfind("\n", 0, old[0].start_mark.index) + 1
        end = _line_end(text, _last(text, old[1], old[0]))
        return text[:begin] + newline.join(lines) + text[end:]
    return _behind(text, _last(text, value.value[-1][1], value.value[-1][0]), lines, newline)


def _with_default(text: str, name: str) -> str:
    section = _member(yaml.compose(text), "targets")
    entry = _member(section[1], "default") if section else None
    assert entry is not None  # the caller has seen it
    return text[: entry[1].start_mark.index] + scalar(name) + text[entry[1].end_mark.index :]


def _member(node: Any, name: str) -> tuple[Any, Any] | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((key, value) for key, value in pairs if key.value == name), None)


def _into_flow(text: str, node: Any, name: str, value: Any) -> str:
    """Into `{…}`, before its closing brace."""
    at = node.end_mark.index - 1
    comma = ", " if node.value else ""
    before = text[:at].rstrip(" ")
    return before.removesuffix(",") + f"{comma}{scalar(name)}: {scalar(value)}" + text[len(before) : at] + text[at:]


def _last(text: str, value: Any, key: Any) -> int:
    """Where the last character of a part is; what follows it may be comments of the next one."""
    if isinstance(value, yaml.CollectionNode) and not value.flow_style and value.value:
        inner = value.value[-1]
        return _last(text, inner[1], inner[0]) if isinstance(value, yaml.MappingNode) else _last(text, inner, key)
    end: int = key.end_mark.index
    return max(len(text[: value.end_mark.index].rstrip()), end)


def _line_end(text: str, at: int) -> int:
    found = text.find("\n", at)
    end = len(text) if found < 0 else found
    return end - 1 if text[end - 1 : end] == "\r" else end


def _behind(text: str, at: int, lines: list[str], newline: str) -> str:
    """Lines of their own behind the line that `at` is in."""
    end = _line_end(text, at)
    head = text[:end] + (newline if text[:end] and not text[:end].endswith("\n") else "")
    return head + newline.join(lines) + (text[end:] or newline)


class Filled(dict[str, str]):
    """An environment in which every variable is set: a file is checked here, not whether its keys are at hand."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name, "unset")


def checked(project: Project, text: str, environ: Mapping[str, str]) -> Config:
    """The configuration that the text is. Raises ConfigError with its faults."""
    path = project.arguments.config
    mappers, prompters = project.functions("mappers"), project.functions("prompters")
    try:
        folder = os.path.dirname(os.path.realpath(path))
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".init-", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            try:
                return configuration.load(file.name, Filled(environ), mappers, prompters)
            except ConfigError as fault:
                raise ConfigError([line.replace(file.name, path) for line in fault.faults]) from None
    except OSError as fault:
        raise ConfigError([f"{path}: cannot be written: {fault.strerror}"]) from None


def save_key(path: str, name: str, secret: str) -> None:
    """Adds a variable to .env, or replaces it there; a new file is its owner's alone. Raises ConfigError."""
    before = read_text(path, "").decode() if exists(path) else ""
    lines = [line for line in before.splitlines() if not re.match(rf"\s*(export\s+)?{name}\s*=", line)]
    escaped = secret.replace("\\", "\\\\").replace('"', '\\"')
    write(path, "\n".join([*lines, f'{name}="{escaped}"']) + "\n", mode=0o600)


def exists(path: str) -> bool:
    """Whether there is such a file."""
    return os.path.exists(path)


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Replaces a file at once, with what a link points to in its place; its permissions stay. Raises ConfigError."""
    path = os.path.realpath(path)
    try:
        kept = os.stat(path).st_mode & 0o7777 if os.path.exists(path) else mode
        fd, beside = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".init-")
        try:
            with os.fdopen(fd, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, kept)
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as fault:
        raise ConfigError([f"{path}: cannot be written: {fault.strerror}"]) from None
