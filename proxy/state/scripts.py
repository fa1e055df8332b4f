"""The parts of redis.lua as whole scripts, by name."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

FOREVER_US = 9_000_000_000_000_000  # a rest without an end, as redis.lua has it
PART = re.compile(r"^--- (\w+)(?: after (\w+))?\n", re.MULTILINE)


@cache
def script(name: str) -> str:
    """A script, with the parts that it stands after."""
    _, *found = PART.split(files("proxy.state").joinpath("redis.lua").read_text(encoding="utf-8"))
    parts = {part: (after, text) for part, after, text in zip(found[::3], found[1::3], found[2::3], strict=True)}
    whole, at = "", name
    while at:
        at, text = parts[at]
        whole = text + whole
    return whole
