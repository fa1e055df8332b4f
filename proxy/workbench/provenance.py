"""Where an output field comes from: change one leaf of the input, and see which leaves of the output change. Mappers are pure,
so no mapper has to say anything for it.
"""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

Path = tuple[str | int, ...]
Leaves = dict[Path, Any]
Made = Callable[[Any], Any]  # an input → its output as JSON, None where the input is refused
LOOKED_S = 30.0  # of computing; an input with more leaves than can be tried in that time is tried as far as that goes
PEERS = (  # words that a field holds instead of each other: a made-up word would be refused
    ("user", "assistant", "system", "model"),
    ("auto", "none", "required", "any"),
    ("image/png", "image/jpeg"),
    ("stop", "length", "tool_calls"),
    ("end_turn", "max_tokens", "tool_use"),
    ("STOP", "MAX_TOKENS"),
    ("completed", "incomplete"),
    ("eos_token", "eos", "length", "limit"),
    ("low", "medium", "high"),
)


def provenance(given: Any, made: Made, skip: Callable[[Path], bool] = lambda path: False) -> dict[Path, list[Path]]:
    """Output leaf → the input leaves that it came from, each of which changes it; empty where none does.

    A leaf that only moves others about (a role, a type) is named where nothing else explains the output's leaf. `skip`: input
    leaves that are not tried, as they decide what kind of output there is.
    """
    whole = leaves(made(given))
    values: dict[Path, list[Path]] = {path: [] for path in whole}
    shapes: dict[Path, list[Path]] = {path: [] for path in whole}
    until = time.thread_time() + LOOKED_S
    for path, value in leaves(given).items():
        if skip(path) or time.thread_time() > until:
            continue
        changed, moved = _changed(given, path, value, made, whole)
        for place in changed:
            (shapes if moved else values)[place].append(path)
    return {path: values[path] or shapes[path] for path in whole}


def _changed(given: Any, path: Path, value: Any, made: Made, whole: Leaves) -> tuple[set[Path], bool]:
    """The output leaves that another value of one input leaf changes, and whether there are other leaves then.

    Its absence counts where no other value does anything.
    """
    changed: set[Path] = set()
    moved, several = False, _is_json(value)  # each leaf of JSON in a text is one to be changed
    attempts = [replaced(given, path, other) for other in others(value)]
    if isinstance(path[-1], str):
        attempts.append(replaced(given, path))
    for attempt in attempts:
        out = made(attempt)
        if out is None or (several and changed and attempt is attempts[-1]):
            continue
        now = leaves(out)
        moves = now.keys() != whole.keys()
        changed |= _gone(whole, now) if moves else {place for place, was in whole.items() if repr(now[place]) != repr(was)}
        moved |= moves
        if changed and not several:
            break
    return changed, moved


def _gone(whole: Leaves, now: Leaves) -> set[Path]:
    """The leaves without a counterpart in an output of another shape: what stands elsewhere in its list is still there."""
    old, new = ([(_anywhere(path), repr(value)) for path, value in each.items()] for each in (whole, now))
    steps = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    places = list(whole)
    return {place for what, start, end, _, _ in steps if what != "equal" for place in places[start:end]}


def _anywhere(path: Path) -> Path:
    return tuple("*" if isinstance(step, int) else step for step in path)


def leaves(value: Any, path: Path = ()) -> Leaves:
    """Every value without members by its path; an empty object or array is one too."""
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: Leaves = {}
    for name, member in members:
        found |= leaves(member, (*path, name))
    return found or {path: value}


def replaced(value: Any, path: Path, *new: Any) -> Any:
    """A copy with another value at a path, or with none there."""
    if not path:
        return new[0]
    name, rest = path[0], path[1:]
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if rest or new:
        copy[name] = replaced(value[name], rest, *new)
    else:
        del copy[name]
    return copy


def others(value: Any) -> Iterator[Any]:
    """Other values for a leaf, the likeliest to be taken first. Of a text that is JSON, one for each of its own leaves."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, max(0, value - 1))
    elif isinstance(value, float):
        yield value / 2
    elif isinstance(value, str):
        if _is_json(value):
            inner = json.loads(value)
            for path, member in leaves(inner).items():
                yield from (json.dumps(replaced(inner, path, other)) for other in list(others(member))[:1])
        yield value + "x"
        yield from _one_letter(value)
        groups = [peers for peers in PEERS if value in peers] or (PEERS if value.isidentifier() and len(value) <= 16 else ())
        yield from (peer for peers in groups for peer in peers if peer != value)


def _one_letter(value: str) -> Iterator[str]:
    """The same length, one letter another: base64 and urls stay what they are."""
    middle = len(value) // 2
    for at in range(middle, len(value)):
        if value[at].isalpha() and value[at].isascii():
            yield value[:at] + ("b" if value[at] == "a" else "a") + value[at + 1 :]
            return


def _is_json(value: Any) -> bool:
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return False
    try:
        json.loads(value)
    except ValueError:
        return False
    return True


def shown(path: Path) -> str:
    """`$.messages[0].content`."""
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
