"""What was found: the smallest body of each fault, one file each in found/, held ever after by tests/test_fuzz.py.

A body is a request, or in `answers/` below it a backend's answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("found")


def keep(front: str, backend: str, body: Any, fault: str, within: str = ".") -> Path:
    """Writes a body down. within: a folder in FOLDER. Returns its file."""
    text = json.dumps({"front": front, "backend": backend, "fault": fault, "body": body}, indent=1, sort_keys=True)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:8]
    path = FOLDER / within / f"{front}-{backend}-{digest}.json"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text + "\n")
    return path


def kept(within: str = ".") -> Iterator[tuple[str, str, str, Any]]:
    """(file name, front, backend, body) of each."""
    for path in sorted((FOLDER / within).glob("*.json")):
        found = json.loads(path.read_text())
        yield path.name, found["front"], found["backend"], found["body"]
