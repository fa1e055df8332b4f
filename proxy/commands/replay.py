"""`python -m main replay`: today's mappers over recorded calls, and what has changed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from proxy.cassettes import exported, files, stage_of
from proxy.errors import ConfigError
from proxy.project import Project
from proxy.records import cassettes
from proxy.workbench.replaying import replayed

GREEN, RED, RESET = "\x1b[32m", "\x1b[31m", "\x1b[0m"


def run(project: Project) -> int:
    """Prints each cassette that has changed; the exit status is 1 if there is one that was not accepted."""
    arguments = project.arguments
    if arguments.export:
        return _export(project)
    found = files(arguments.folder)
    stage = stage_of(project)
    changed: dict[str, list[str]] = {}
    try:
        for path in found:
            lines, now = replayed(stage, cassettes.load(path))
            if lines:
                changed[str(path)] = lines
            if lines and arguments.accept:
                cassettes.write(path, now)
    finally:
        stage.close()
    if arguments.json:
        print(
            json.dumps(
                {"cassettes": len(found), "changed": changed, "accepted": arguments.accept}, indent=2, ensure_ascii=False
            )
        )
    else:
        _tell(changed, len(found), arguments.accept)
    return 1 if changed and not arguments.accept else 0


def _tell(changed: dict[str, list[str]], count: int, accepted: bool) -> None:
    colours = {"+": GREEN, "-": RED} if sys.stdout.isatty() else {}
    for name, lines in changed.items():
        print(f"{name}: {'accepted' if accepted else 'changed'}")
        for line in lines:
            colour = colours.get(line[:1])
            print(f"  {colour}{line}{RESET}" if colour else f"  {line}")
    what = "cassette" if count == 1 else "cassettes"
    print(f"{count} {what}: {count - len(changed)} as recorded, {len(changed)} {'accepted' if accepted else 'changed'}")


def _export(project: Project) -> int:
    arguments = project.arguments
    path = next((path for path in files(arguments.folder) if path.stem == arguments.export), None)
    path = path or next((path for path in files(arguments.folder) if cassettes.load(path)["id"] == arguments.export), None)
    if path is None:
        raise ConfigError([f"--export: no cassette in {arguments.folder} is of call {arguments.export!r}"])
    out = Path(arguments.out or f"report_{arguments.export}.py")
    text = exported(cassettes.load(path), project)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise ConfigError([f"--out: cannot write {out}: {fault.strerror}"]) from None
    print(f"wrote {out}: look through it before you send it; it runs with `python -m pytest {out}`")
    return 0
