"""`python -m main key`: the key that the proxy asks for."""

from __future__ import annotations

from proxy.project import Project


def run(project: Project) -> int:
    """Prints the master key, from wherever the proxy reads it."""
    print(project.config().master_key)
    return 0
