"""The floor plan of docs/architecture.md, held against the imports, and the line counts that it promises.

Run by `make check`: prints both, and exits 1 when a file reaches up a floor or a count is past its limit.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (  # a file imports from lower floors, and from its own where a folder or a pair belongs together
    ("proxy/errors.py", "proxy/http1.py", "proxy/turns.py", "proxy/wire.py", "proxy/call.py"),
    ("proxy/dialects/", "proxy/prompts.py"),
    (
        "proxy/env.py",
        "proxy/source.py",
        "proxy/kinds.py",
        "proxy/schema.py",
        "proxy/reading.py",
        "proxy/config.py",
        "proxy/logs.py",
    ),
    ("proxy/routing.py", "proxy/expand.py", "proxy/translate.py", "proxy/losses.py"),
    ("proxy/gates/", "proxy/adapters/", "proxy/pump.py"),
    ("proxy/generation.py", "proxy/relay.py", "proxy/mapped.py", "proxy/answers.py", "proxy/show.py", "proxy/connect.py"),
    ("proxy/handler.py",),
    ("proxy/server.py", "proxy/workers.py"),
    ("main.py",),
)
USERS = ("mappers.py", "prompters.py")  # may import from the dialects; nothing in proxy/ imports them
PLAIN_WAY = (
    ("main.py", "proxy/server.py", "proxy/handler.py", "proxy/relay.py", "proxy/generation.py", "proxy/routing.py")
    + ("proxy/translate.py", "proxy/gates/cerbere.py", "proxy/gates/keys.py", "proxy/adapters/exchange.py", "proxy/http1.py")
    + ("proxy/wire.py", "proxy/call.py", "proxy/turns.py", "proxy/errors.py")
)
PLAIN_LIMIT, ALL_LIMIT = 2500, 9000


def floor_of(file: str) -> int | None:
    """The floor that a file stands on, None when it stands on none."""
    return next(
        (
            number
            for number, files in enumerate(FLOORS)
            for place in files
            if file == place or (place[-1] == "/" and file.startswith(place))
        ),
        None,
    )


def imported(file: Path) -> set[str]:
    """The project's files that a file imports at run time, wherever in it; imports for types alone do not count."""
    found: set[str] = set()
    tree = ast.parse(file.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = Path(*name.split("."))
            for candidate in (path.with_suffix(".py"), path / "__init__.py"):
                if (ROOT / candidate).is_file():
                    found.add(candidate.as_posix())
    return found


def faults() -> list[str]:
    """What breaks the floor plan."""
    told = []
    for file in sorted([*ROOT.glob("proxy/**/*.py"), ROOT / "main.py"]):
        name = file.relative_to(ROOT).as_posix()
        if name.endswith("__init__.py") and name.count("/") == 1:
            continue
        floor = floor_of(name)
        if floor is None:
            told.append(f"{name} stands on no floor: give it one in tests/floors.py")
            continue
        for other in sorted(imported(file)):
            above = floor_of(other)
            if other in USERS or (above is not None and above > floor):
                told.append(f"{name} (floor {floor}) imports {other} (floor {above})")
    return told


def lines(files: list[Path]) -> int:
    """Lines of all files together."""
    return sum(len(file.read_text().splitlines()) for file in files)


def counts() -> dict[str, tuple[int, int]]:
    """What is counted → (lines, limit)."""
    return {
        "the plain way from main to wire": (lines([ROOT / name for name in PLAIN_WAY]), PLAIN_LIMIT),
        "proxy/ in all": (lines(list(ROOT.glob("proxy/**/*.py"))), ALL_LIMIT),
    }


def main() -> int:
    """Prints faults and counts; the exit status."""
    told = faults()
    for fault in told:
        print(fault)
    for what, (count, limit) in counts().items():
        print(f"{what}: {count} lines (at most {limit})")
        if count > limit:
            told.append(what)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
