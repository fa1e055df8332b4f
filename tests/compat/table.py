"""docs/compatibility.md from the cells of a run: nothing in it is written by hand."""

from __future__ import annotations

from collections.abc import Iterable

from tests.compat import losses, maximal
from tests.compat.matrix import BACKENDS, CLIENTS, cells

Cell = tuple[str, str, str, str, str]  # client, front, backend, feature, what became of it
HEAD = """# Any client, any backend

Written by `make compat` from the tests of `tests/test_compatibility.py`: each real client sends each backend what its API can
say, through one running proxy. The backends are doubles that refuse what the vendor's service refuses, a program
with the arguments of llama.cpp's that is run as `command://`, and a real llama.cpp server, which is reached in its own API and
in OpenAI's. A test run fails when this file says anything else than it saw.

| sign | it means |
|---|---|
| a name | the feature works |
| **refused:** a name | the backend has nothing like it: the client gets its API's error, which names the field |
| **lost:** a name | the answer comes without it, and `x-mooltiproxy-lost` names the field |

"""


def page(found: Iterable[Cell]) -> str:
    """The whole file."""
    known = {(client, backend, feature): outcome for client, _, backend, feature, outcome in found}
    fronts = list(dict.fromkeys(client.front for client in CLIENTS))
    text = HEAD + overview(known, fronts)
    for front in fronts:
        text += f"\n## Clients of {front}\n\n" + features(known, front) + "\n" + lost(front)
    return text


def overview(known: dict[tuple[str, str, str], str], fronts: list[str]) -> str:
    """How many features of how many clients, a cell each pair of APIs."""
    rows = [["front", *(backend.name for backend in BACKENDS)]]
    for front in fronts:
        row = [front]
        for backend in BACKENDS:
            outcomes = [
                known[client.name, where.name, feature]
                for client, where, feature in cells()
                if client.front == front and where is backend
            ]
            told = [f"{outcomes.count(kind)} {kind}" for kind in ("ok", "refused", "lost") if kind in outcomes]
            row.append(", ".join(told))
        rows.append(row)
    return "## Features that were tried\n\n" + grid(rows)


def features(known: dict[tuple[str, str, str], str], front: str) -> str:
    """A row a backend and client."""
    rows = [["backend", "client", "features"]]
    for backend in BACKENDS:
        for client in CLIENTS:
            if client.front != front:
                continue
            outcomes = {
                feature: known[client.name, backend.name, feature]
                for who, where, feature in cells()
                if who is client and where is backend
            }
            told = [f"{', '.join(sorted(name for name in outcomes if outcomes[name] == 'ok'))}"]
            for kind in ("refused", "lost"):
                names = sorted(name for name in outcomes if outcomes[name] == kind)
                told += [f"**{kind}:** {', '.join(names)}"] if names else []
            rows.append([backend.name, client.name, "; ".join(told)])
    return grid(rows)


def lost(front: str) -> str:
    """What a request loses that uses every documented field of the front's API."""
    rows = [["backend", "lost", "refused"]]
    for backend in BACKENDS:
        paths, refused = losses.told(front, backend.name)
        shown = [", ".join(f"`{name}`" for name in names) or "nothing" for names in (paths, refused)]
        rows.append([backend.name, *shown])
    path = maximal.PATHS[front].replace("any-openai", "{model}")
    return f"### What a request to `{path}` with every documented field loses\n\n{grid(rows)}"


def grid(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"
