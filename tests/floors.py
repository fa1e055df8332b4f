"""The floor plan of docs/architecture.md, held against the imports, and the line counts that it promises.

Run by `make check`: prints both, and exits 1 when a file reaches up a floor or a count is past its limit.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (  # a file imports from lower floors, and from its own where a folder or a pair belongs together
    ("proxy/errors.py", "proxy/http1.py", "proxy/turns.py", "proxy/wire.py", "proxy/call.py", "proxy/process.py"),
    ("proxy/dialects/", "proxy/prompts.py", "proxy/state/"),
    ("proxy/config.py", "proxy/settings/", "proxy/logs.py"),
    (
        *("proxy/routing.py", "proxy/expand.py", "proxy/translate.py", "proxy/endpoints.py", "proxy/folding.py"),
        *("proxy/losses.py", "proxy/capabilities.py"),
    ),
    ("proxy/gates/", "proxy/adapters/", "proxy/upstream.py", "proxy/pump.py"),
    (
        *("proxy/generation.py", "proxy/relay.py", "proxy/mapped.py", "proxy/answers.py", "proxy/renaming.py"),
        *("proxy/traffic.py", "proxy/attempts.py", "proxy/pools.py", "proxy/upstream_keys.py", "proxy/pace.py"),
        "proxy/records/",
    ),
    (
        "proxy/handler.py",
        "proxy/reply.py",
        "proxy/pages.py",
        "proxy/banner.py",
        "proxy/console/",
        "proxy/project.py",
        "proxy/workbench/",
    ),
    ("proxy/server.py", "proxy/workers.py", "proxy/reload.py", "proxy/arguments.py"),
    ("proxy/commands/", "proxy/cassettes.py"),
    ("main.py",),
)
USERS = ("mappers.py", "prompters.py")  # may import from the dialects; nothing in proxy/ imports them
PLAIN_WAY = (  # what a request without a mapper runs through
    *(
        "main.py",
        "proxy/server.py",
        "proxy/handler.py",
        "proxy/reply.py",
        "proxy/relay.py",
        "proxy/answers.py",
        "proxy/generation.py",
    ),
    *("proxy/routing.py", "proxy/gates/cerbere.py", "proxy/gates/keys.py", "proxy/adapters/exchange.py"),
    *("proxy/http1.py", "proxy/wire.py", "proxy/call.py", "proxy/turns.py", "proxy/errors.py"),
)
PLAIN_LIMIT, DIALECT_LIMIT = 2500, 1200  # docs/decisions/0008
ROOMS = {  # what stands beside the way → the most lines of code
    "settings": 2000,
    "traffic": 2000,
    "state": 1650,
    "adapters": 1500,
    "records": 3000,
    "console": 1100,
    "workbench": 2500,
}
TRAFFIC = ("traffic.py", "attempts.py", "pools.py", "upstream_keys.py", "pace.py", "capabilities.py")


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


def code_lines(file: Path) -> int:
    """Lines that hold code: not blank, not only a comment, not a docstring."""
    source = file.read_text()
    prose = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            held.update(range(token.start[0], token.end[0] + 1))
    return len(held - prose)


def counts() -> dict[str, tuple[int, int]]:
    """What is counted → (lines of code, limit)."""
    plain = {ROOT / name for name in PLAIN_WAY}
    told = {"the plain way from main to wire": (sum(map(code_lines, plain)), PLAIN_LIMIT)}
    for room, limit in ROOMS.items():
        told[f"the room {room}"] = (sum(code_lines(file) for file in _of_room(room) - plain), limit)
    dialects = set(ROOT.glob("proxy/dialects/*.py"))
    for name, files in sorted(_by_dialect(dialects).items()):
        told[name] = (sum(map(code_lines, files)), DIALECT_LIMIT)
    return told


def _of_room(room: str) -> set[Path]:
    """A folder's files; the gates are of the traffic, the commands of the workbench."""
    found = set(ROOT.glob(f"proxy/{room}/**/*.py"))
    if room == "traffic":
        found |= {*ROOT.glob("proxy/gates/*.py"), *(ROOT / "proxy" / name for name in TRAFFIC)}
    if room == "workbench":
        found |= {*ROOT.glob("proxy/commands/*.py"), ROOT / "proxy/cassettes.py"}
    return found


def _by_dialect(files: set[Path]) -> dict[str, set[Path]]:
    """A dialect's file and the ones with a leading underscore that no other dialect imports; the others are the hub's."""
    homes = {f"dialect {file.stem}": {file} for file in files if not file.stem.startswith("_")}
    users = {home: imported(next(iter(own))) for home, own in homes.items()}
    hub: set[Path] = set()
    for file in files - {own for owned in homes.values() for own in owned}:
        name = file.relative_to(ROOT).as_posix()
        found = [home for home, names in users.items() if name in names]
        (homes[found[0]] if len(found) == 1 and found[0] != "dialect openai" else hub).add(file)
    return {**homes, "the hub": hub}


def main() -> int:
    """Prints faults and counts; the exit status."""
    told = faults()
    for fault in told:
        print(fault)
    for what, (count, limit) in counts().items():
        print(f"{what}: {count} lines of code (at most {limit})")
        if count > limit:
            told.append(what)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
