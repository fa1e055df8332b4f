"""A table by the names of models, in which a name may hold a `*`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from proxy.routing import fits

V = TypeVar("V")


class ByName(Generic[V]):
    """Exact names first, then the patterns in their order."""

    def __init__(self, table: Mapping[str, V]) -> None:
        self._exact = {name: value for name, value in table.items() if "*" not in name}
        self._wild = [(name.split("*"), value) for name, value in table.items() if "*" in name]

    def get(self, name: str) -> V | None:
        """What stands there for a name, None when nothing does."""
        found = self._exact.get(name)
        return found if found is not None else next((value for parts, value in self._wild if fits(parts, name)), None)

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None
