"""Another gateway's configuration → ours, with a line said of everything in it: where it went, or that it has no counterpart.

Nothing is dropped in silence: what nobody read is told, and so is what our schema would not take. Secrets stay out of what is
written: a variable's name stands there, and the value goes into .env only when that is asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from proxy.errors import ConfigError
from proxy.project import ENV_FILE, Project
from proxy.settings.env import read_text
from proxy.settings.schema import validate
from proxy.settings.source import Path, dotted, source_of
from proxy.workbench import insertion

Json = dict[str, Any]
NAMED = re.compile(r"os\.environ/(\w+)")  # how LiteLLM names a variable
ENV_LINE = re.compile(r"^[ \t]*(?:export[ \t]+)?([A-Za-z_]\w*)[ \t]*=[ \t]*('[^']*'|\"(?:[^\"\\]|\\.)*\"|[^\n#]*)", re.M)


class Takeover:
    """One file on its way. `out`: our configuration so far; `secrets`: variable → value, for .env."""

    def __init__(self, given: Any, line: Callable[[Path], int]) -> None:
        self._given, self._line = given, line
        self._read: set[Path] = set()
        self._from: dict[Path, Path] = {}  # path of ours → of theirs
        self.out: Json = {"targets": {}}
        self.secrets: dict[str, str] = {}
        self._variables = set(NAMED.findall(repr(given)))  # that it names itself
        self.left: list[tuple[int, str]] = []

    def get(self, *path: str | int) -> Any:
        """What stands there, None when nothing does. All of it counts as read."""
        value = self.peek(*path)
        self._read.add(path)
        return value

    def peek(self, *path: str | int) -> Any:
        """The same, without its being read."""
        value = self._given
        for step in path:
            if isinstance(value, Mapping):
                value = value.get(step)
            else:
                value = value[step] if isinstance(value, list) and isinstance(step, int) and step < len(value) else None
        return value

    def put(self, ours: Path, value: Any, *theirs: str | int) -> None:
        """Into our configuration, from there."""
        at = self.out
        for step in ours[:-1]:
            at = at.setdefault(str(step), {})
        at[str(ours[-1])] = value
        self._from[ours] = theirs

    def move(self, ours: Path, *theirs: str | int, turn: Callable[[Any], Any] = lambda value: value) -> None:
        """What stands there, if anything does, through `turn`, to there in ours."""
        value = self.get(*theirs)
        if value not in (None, "", [], {}):
            self.put(ours, turn(value), *theirs)

    def note(self, path: Path, why: str) -> None:
        """Something that cannot be taken over, or not as it was."""
        self.left.append((self._line(path), f"{dotted(path)}: {why}"))

    def variable(self, value: Any, name: str) -> str:
        """The environment variable for a secret: the one that it names already, else `name`, whose value is kept for .env."""
        text = str(value)
        if text.startswith("os.environ/"):
            return text.removeprefix("os.environ/")
        name = re.sub(r"\W+", "_", name).upper()
        while self.secrets.get(name, text) != text or name in self._variables:
            name += "_2"
        self.secrets[name] = text
        return name

    def finish(self) -> list[tuple[int, str]]:
        """Leaves out what our schema does not take; the lines of what came over, by line of theirs."""
        while faults := validate(self.out)[1]:
            path, why = faults[0]
            path = self._drop(self.out, path)
            near = [theirs for ours, theirs in self._from.items() if path[: len(ours)] == ours[: len(path)]]
            origin = near[0] if near else path
            self._from = {ours: theirs for ours, theirs in self._from.items() if path != ours[: len(path)]}
            self.note(origin, f"has no counterpart here ({dotted(path)}: {why})")
        self.out = {name: section for name, section in self.out.items() if section}
        self._leftover(self._given, ())
        return [(self._line(theirs), f"{dotted(theirs)} → {dotted(ours)}") for ours, theirs in self._from.items()]

    def _drop(self, at: Json, path: Path) -> Path:
        """Takes a part out, or what it is missing from; what was taken out."""
        head, *rest = map(str, path)
        inner = at[head]
        if rest and isinstance(inner, dict) and rest[0] in inner:
            return (head, *self._drop(inner, tuple(rest)))
        del at[head]
        return (head,)

    def _leftover(self, value: Any, path: Path) -> None:
        if path in self._read or value in (None, "", [], {}):
            return
        below = any(path == read[: len(path)] for read in self._read)
        if below and isinstance(value, Mapping):
            for name, inner in value.items():
                self._leftover(inner, (*path, name))
        elif below and isinstance(value, list):
            for index, inner in enumerate(value):
                self._leftover(inner, (*path, index))
        else:
            self.note(path, "has no counterpart here")


def hashed(key: str) -> str:
    """What of a client's key may stand in a configuration."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_env(path: str) -> tuple[dict[str, str], dict[str, int]]:
    """The variables of an .env, whose values may go over several lines within quotes, and their lines."""
    try:
        text = read_text(path, "name another file with --from").decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8"]) from None
    text = re.sub(r"(?m)^[ \t]*#.*$", "", text)
    found = list(ENV_LINE.finditer(text))
    lines = {match[1]: text.count("\n", 0, match.start(1)) + 1 for match in found}
    return {match[1]: match[2].strip().strip("'\"") for match in found}, lines


def _opened(path: str) -> tuple[Takeover, Callable[[Takeover], None], str]:
    from proxy.workbench.from_litellm import litellm
    from proxy.workbench.from_openai_forward import as_yaml, openai_forward

    if path.lower().endswith((".yaml", ".yml")):
        source = source_of(path, read_text(path, "name another file with --from"))
        if isinstance(source.data, dict) and "model_list" in source.data:
            return Takeover(source.data, source.line), litellm, "LiteLLM"
        if isinstance(source.data, dict) and source.data.keys() & {"forward", "api_key", "rate_limit"}:
            return Takeover(source.data, source.line), openai_forward, "openai-forward"
        raise ConfigError([f"{path}: is neither LiteLLM's (no model_list) nor openai-forward's (no forward)"])
    values, lines = read_env(path)
    given, places = as_yaml(values)
    return (
        Takeover(given, lambda found: lines.get(places.get(found[:2]) or places.get(found[:1], ""), 1)),
        openai_forward,
        "openai-forward",
    )


def take_over(project: Project) -> None:
    """Writes the configuration that another one stands for, and prints a line for each part. Raises ConfigError."""
    arguments = project.arguments
    taken, read, whose = _opened(arguments.source)
    if not arguments.force and insertion.exists(arguments.config):
        raise ConfigError([f"{arguments.config} is there already: --config names another file, --force replaces it"])
    read(taken)
    if not any(name != "default" for name in taken.out["targets"]):
        told = [f"{arguments.source}:{line}: {said}" for line, said in taken.left]
        raise ConfigError([*told, f"{arguments.source}: there is no backend in it that could be taken over"])
    came = taken.finish()
    text = "\n".join(
        [
            f"# taken over from {whose}'s {arguments.source}; `check --schema` and config.template.yaml say what else there is",
            *(line for name, section in taken.out.items() for line in insertion.block(name, section)),
            "",
        ]
    )
    environ = {**project.environment(), **taken.secrets}
    try:
        insertion.checked(project, text, environ)
    except ConfigError as fault:
        raise ConfigError([f"nothing is written yet: {arguments.config} would be refused", *fault.faults]) from None
    for name, secret in taken.secrets.items() if arguments.save_key else ():
        insertion.save_key(ENV_FILE, name, secret)
    insertion.write(arguments.config, text)
    _print(arguments, whose, came, taken)


def _print(arguments: Any, whose: str, came: list[tuple[int, str]], taken: Takeover) -> None:
    print(f"taken over from {whose}'s {arguments.source}:")
    for line, said in sorted(came):
        print(f"  {arguments.source}:{line}: {said}")
    print("left behind:" if taken.left else "nothing is left behind")
    for line, said in sorted(taken.left):
        print(f"  {arguments.source}:{line}: {said}")
    names = ", ".join(taken.secrets)
    if taken.secrets and arguments.save_key:
        print(f"put into {ENV_FILE}: {names}")
    elif taken.secrets:
        print(
            f"still to do: {names} must be exported or stand in {ENV_FILE}; --save-key puts what {arguments.source} has there"
        )
    print(f"wrote {arguments.config}; next: python -m main check --show --config {arguments.config}")
