"""What is sound of a configuration, and the faults found so far: what every part's reading shares."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from voluptuous import Invalid

from proxy.settings.kinds import SECRET, listed, meant
from proxy.settings.source import Path, Source

Given = Mapping[str, Any]
Fault = tuple[Path, str]
# Where to say it, what must be sound to say it at all, when it is wrong, and what to say.
Rule = tuple[str, tuple[str, ...], Callable[[Given], bool], str]


class Findings:
    """One load. sound: what the schema passed; faults: what it did not."""

    def __init__(self, source: Source, environ: Mapping[str, str], sound: Given, faults: Iterable[Fault]) -> None:
        self.source, self.environ, self.sound = source, environ, sound
        self.faults: list[Fault] = [*source.faults, *faults]
        self.warnings: list[str] = []
        self.target_names = [name for name in self.written("targets") if name != "default"]

    def listed(self) -> list[str]:
        """The faults as lines, in the order of the file."""
        return [self.source.fault(*fault) for fault in sorted(self.faults, key=lambda fault: self.source.line(fault[0]))]

    def section(self, name: str) -> dict[str, Any]:
        """A section of config.yaml, {} without it."""
        section: dict[str, Any] = self.sound.get(name, {})
        return section

    def raw(self, name: str) -> Given:
        """A section as it stands in the file, sound or not; empty when it is none."""
        section = self.source.data.get(name) if isinstance(self.source.data, dict) else None
        return section if isinstance(section, dict) else {}

    def written(self, name: str) -> list[str]:
        """The names in a section as they stand in the file, also of what is faulty."""
        return list(self.raw(name))

    def fault(self, path: Path, message: str) -> None:
        """Notes what is wrong, and where: the configuration is refused."""
        self.faults.append((path, message))

    def warn(self, path: Path, message: str) -> None:
        """Notes what should not stand so, and where."""
        self.warnings.append(self.source.fault(path, message))

    def is_faulty(self, path: Path) -> bool:
        """Whether what stands there is faulty, or another name was written that probably meant it."""
        guess = f"is not known here; did you mean {path[-1]!r}?"
        return any(fault[: len(path)] == path or (fault[:-1], said) == (path[:-1], guess) for fault, said in self.faults)

    def check(self, path: Path, given: Given, rules: Iterable[Rule]) -> None:
        """Tells of every rule that what stands at `path` breaks."""
        for where, needed, is_wrong, message in rules:
            if not any(self.is_faulty((*path, key)) for key in needed) and is_wrong(given):
                self.fault((*path, where) if where else path, message)

    def variable(self, path: Path, name: str) -> str:
        """A key that is in the environment; its value stays out of the faults."""
        value = self.environ.get(name)
        try:
            if value is None:
                raise Invalid("is not set: export it, or put it into .env")
            return str(SECRET.check(value))
        except Invalid as fault:
            self.fault(path, f"the environment variable {name} {fault.msg}")
            return ""

    def file(self, path: Path, file: str) -> None:
        """Notes a fault when there is no such file."""
        if not os.path.isfile(file):
            self.fault(path, f"there is no file {file!r}")

    def no_target(self, path: Path, name: str) -> None:
        """Notes that no target is called so, and which there are."""
        names = [repr(name) for name in self.target_names]
        there = f"; there is {listed(names, 'and')}" if names else "; there is none at all"
        self.fault(path, f"there is no target {name!r}{meant(name, self.target_names) or there}")
