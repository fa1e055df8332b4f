"""`make dist`: the program and its three packages as one file, dist/mooltiproxy.pyz, that any Python ≥ 3.10 runs.

    python deploy/dist.py [--out dist] [--packages FOLDER]

Same bytes from the same sources, packages and Python: names are sorted, times fixed, nothing is compressed (zlib's output is
not the same everywhere). Bytecode of the Python that builds is in it, without times and paths, as a start would take five times
as long without; another Python compiles the sources, which are there too. Packages are taken as they are installed, but for
what was compiled from C: PyYAML and charset_normalizer have the same in Python. MANIFEST.sha256 inside has the hash of each
file; mooltiproxy.pyz.sha256 beside it that of the whole.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import marshal
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "mooltiproxy.pyz"
TOP = ("main.py", "mappers.py", "prompters.py", "config.template.yaml", "LICENSE")
LEFT_OUT = re.compile(r"\.(?:so|pyd|pyc|pyi|pxd|pyx|c|h)$|(?:^|/)(?:__pycache__|tests?)/|\.dist-info/(?!METADATA|licenses/)")
START = b"import sys\n\nfrom main import main\n\nsys.exit(main())\n"
SHEBANG = b"#!/usr/bin/env python3\n"
UNCHECKED = (1).to_bytes(4, "little")  # PEP 552: a hash stands in the place of a time, and is not checked
TIME = (1980, 1, 1, 0, 0, 0)


def sources() -> Iterator[tuple[str, bytes]]:
    """The project's own files, as (name in the archive, bytes)."""
    for path in (*(ROOT / name for name in TOP), *(ROOT / "proxy").rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and not LEFT_OUT.search(name):
            yield name, path.read_bytes()


def packages(folder: str | None) -> Iterator[tuple[str, bytes]]:
    """The files of requirements.txt's packages, and of what these need. Raises SystemExit for one that is not installed."""
    found = {_plain(each.name): each for each in importlib.metadata.distributions(path=[folder] if folder else sys.path)}
    wanted = [_plain(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line.strip()]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in found:
            sys.exit(f"{name} is not installed: python -m pip install -r requirements.txt")
        wanted += [_plain(need) for need in found[name].requires or () if "extra ==" not in need]
        for path in found[name].files or ():
            inside = path.as_posix()
            if not inside.startswith("..") and not LEFT_OUT.search(inside):
                yield inside, Path(str(found[name].locate_file(path))).read_bytes()


def _plain(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def compiled(name: str, source: bytes) -> bytes:
    """The bytecode of a module, in the form of a .pyc that is not held against its source."""
    code = compile(source, name, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + UNCHECKED + importlib.util.source_hash(source) + marshal.dumps(code)


def build(out: Path, folder: str | None) -> Path:
    """Writes the archive and its hash. Returns the archive."""
    files = {"__main__.py": START, **dict(sources()), **dict(packages(folder))}
    files |= {f"{name}c": compiled(name, data) for name, data in sorted(files.items()) if name.endswith(".py")}
    files["MANIFEST.sha256"] = "".join(f"{_hash(data)}  {name}\n" for name, data in sorted(files.items())).encode()
    out.mkdir(parents=True, exist_ok=True)
    path = out / NAME
    with path.open("wb") as file:
        file.write(SHEBANG)
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in sorted(files.items()):
                entry = zipfile.ZipInfo(name, TIME)
                entry.create_system, entry.external_attr = 3, 0o100644 << 16  # as on Unix, wherever it is built
                archive.writestr(entry, data)
    path.chmod(0o755)
    (out / f"{NAME}.sha256").write_text(f"{_hash(path.read_bytes())}  {NAME}\n")
    return path


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """Builds, and says what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder to write into (default: dist)")
    parser.add_argument("--packages", metavar="FOLDER", help="where the packages are; else those of this Python")
    arguments = parser.parse_args()
    path = build(arguments.out, arguments.packages)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {_hash(path.read_bytes())}")


if __name__ == "__main__":
    main()
