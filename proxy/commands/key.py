"""`python -m main key`: the key that the proxy asks for, and new ones for people."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import sys

from proxy.project import Project


def run(project: Project) -> int:
    """Prints the master key, from wherever the proxy reads it; with `new NAME` a key for a person."""
    arguments = project.arguments
    if arguments.action == "new":
        return _new(arguments.name or "", arguments.models)
    print(project.config().master_key)
    return 0


def _new(name: str, models: list[str]) -> int:
    """A key is shown once: the configuration holds its digest alone."""
    from proxy.settings.allowances import KEY_NAME, TAKEN

    if not re.fullmatch(KEY_NAME, name) or name in TAKEN:
        print(
            f"key new: {name!r} is no name for a key: 1 to 64 letters, digits, . _ @ and -, not {' or '.join(TAKEN)}; "
            "example: python -m main key new alice",
            file=sys.stderr,
        )
        return 2
    key = "mp-" + secrets.token_urlsafe(32)
    allowed = f", models: {json.dumps(models, ensure_ascii=False)}" if models else ""
    print(f"The key of {name}, which is not shown again:\n\n{key}\n\nThe line for it, below `keys:` in the configuration:\n")
    print(f"  {json.dumps(name)}: {{sha256: {hashlib.sha256(key.encode()).hexdigest()}{allowed}}}")
    return 0
