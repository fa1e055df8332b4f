"""`python -m main explain`: the four hops of one request, what each mapper made of it, and where each field comes from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from requests.adapters import BaseAdapter

from proxy import dialects
from proxy.errors import ConfigError
from proxy.http1 import header_safe
from proxy.project import Project
from proxy.records import cassettes
from proxy.workbench.examples import EXAMPLES, example, offered
from proxy.workbench.explained import api_of, explained
from proxy.workbench.rehearsal import Asked, Demo, Script, Stage, answers_of, asked_of

Json = dict[str, Any]
SHOWN = 2000  # characters of a body on a terminal
WIDTH = 200  # characters of an event
UNKNOWN = "no answer of the backend is known: --live asks it, --cassette has one"
BOLD, DIM, RED, RESET = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[0m"


def run(project: Project) -> int:
    """Prints it; the exit status is 1 when the client would get an error."""
    arguments = project.arguments
    mappers, prompters = project.functions("mappers"), project.functions("prompters")
    config = project.config() if arguments.live else project.config_without_keys()
    if arguments.to and arguments.to not in (*config.targets, *config.pools):
        there = ", ".join((*config.targets, *config.pools))
        raise ConfigError([f"--target: there is no target or pool {arguments.to!r}; there is {there}"])
    stage = Stage(config, mappers, prompters)
    try:
        asked, backend = _played(project, stage)
        told = explained(stage, asked, backend)
    finally:
        stage.close()
    if arguments.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        print("\n".join(_lines(told, sys.stdout.isatty())))
    return 1 if told["error"] or told["reply"]["status"] >= 400 else 0


def _played(project: Project, stage: Stage) -> tuple[Asked, BaseAdapter | None]:
    """The request, and who answers it: a cassette, the demo in the backend's place, or for None the backend."""
    arguments = project.arguments
    if arguments.cassette:
        told = cassettes.load(Path(arguments.cassette))
        asked = asked_of(told)
        return asked, None if arguments.live else Script(answers_of(told))
    asked = _asked(arguments, arguments.to)
    if arguments.live or urlsplit(_target_url(stage, arguments.to)).scheme == "demo":
        return asked, None
    return asked, _stand_in(stage, asked)


def _target_url(stage: Stage, name: str | None) -> str:
    members = stage.config.members(name or stage.config.default)
    return stage.config.targets[members[0]].url


def _asked(arguments: Any, target: str | None) -> Asked:
    parts = urlsplit(arguments.path)
    front = dialects.front(arguments.method, parts.path, {})
    headers = {"content-type": "application/json"}
    if arguments.body:
        try:
            body = sys.stdin.buffer.read() if arguments.body == "-" else Path(arguments.body).read_bytes()
        except OSError as fault:
            raise ConfigError([f"--body: cannot read {arguments.body}: {fault.strerror}"]) from None
        return Asked(arguments.method, parts.path, body, parts.query, headers, target)
    if arguments.method != "POST":
        return Asked(arguments.method, parts.path, b"", parts.query, headers, target)
    if not dialects.route_of(front, arguments.method, parts.path):
        raise ConfigError([f"--path: no API known here has {parts.path}: --body brings what is sent to such a path"])
    names = offered(front)
    name = arguments.example or (names[0] if names else "chat")
    if name not in EXAMPLES:
        raise ConfigError([f"--example: there is no {name!r}; clients of {front} send {', '.join(names)}"])
    path, body = example(front, name, parts.path)
    return Asked("POST", path, body, parts.query, headers, target)


def _stand_in(stage: Stage, asked: Asked) -> BaseAdapter:
    """Plays the backend, if its API is one that this program knows; else nothing answers, and that is told."""
    place = stage.places[stage.config.members(asked.target or stage.config.default)[0]]
    front = dialects.front(asked.method, asked.path, {})
    found = stage.find(place, front, asked.method, asked.path)
    api = api_of(found[0]) if found else None
    return Demo(api) if api and dialects.load(api).routes else Script((), UNKNOWN)


# --- for a terminal


def _lines(told: Json, colours: bool) -> Iterator[str]:
    bold, dim, red, reset = (BOLD, DIM, RED, RESET) if colours else ("", "", "", "")
    client, reply = told["client"], told["reply"]
    member = f", the first member of pool {told['pool']}; a call goes to the one whose turn it is" if "pool" in told else ""
    yield f"{bold}1. The client sends{reset} ({told['front']}, to target {told['target']}{member})"
    yield f"{client['method']} {client['path']}"
    yield from _body(client["body"])
    for step in told["inward"]:
        yield f"\n{bold}{step['step']}{reset} makes"
        yield from _body(step["body"])
    for number, exchange in enumerate(told["upstream"]):
        yield f"\n{bold}2. Upstream goes{reset}" + (" a first call" if exchange is not told["upstream"][-1] else "")
        yield f"{exchange['method']} {exchange['url']}"
        yield from (f"{name}: {header_safe(value)}" for name, value in exchange["headers"].items())
        yield from _body(exchange["body"])
        if number == len(told["upstream"]) - 1:
            yield from _sources(told, "upstream", dim, reset)
        if exchange["status"]:
            yield f"\n{bold}3. The backend answers{reset} {exchange['status']} {exchange['kind']}"
        if not (told["events"] and exchange is told["upstream"][-1]):
            yield from _body(exchange["answer"])
    yield from _events(told["events"], dim, reset)
    for step in told["outward"]:
        yield f"\n{bold}{step['step']}{reset} makes"
        yield from _body(step["body"])
    if not told["upstream"] or told["upstream"][-1]["status"]:
        yield f"\n{bold}4. The client gets{reset} {reply['status']} {reply['headers'].get('content-type', '')}"
        yield from _reply(reply["body"], told["events"])
        yield from _sources(told, "reply", dim, reset)
    if told["lost"]:
        yield f"\n{bold}Lost on the way in:{reset} {', '.join(told['lost'])}"
    if told.get("unused"):
        yield f"\n{bold}Of the answer nobody hears:{reset} {_few(told['unused'], 30)}"
    if told["attempts"]:
        yield f"\n{bold}Tried before:{reset} {', '.join(told['attempts'])}"
    if told["error"]:
        yield f"\n{red}Error: {header_safe(told['error'])}{reset}"


def _body(value: Any) -> Iterator[str]:
    if value is not None:
        text = json.dumps(value, indent=2, ensure_ascii=False)
        yield text if len(text) <= SHOWN else f"{text[:SHOWN]}\n… ({len(text)} characters; --json has all)"


def _line(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDTH else text[:WIDTH] + "…"


def _events(events: list[Json], dim: str, reset: str) -> Iterator[str]:
    """A stream as it passes: each event of the backend, and below it what it became at once."""
    shown = _Changes()
    for event in events:
        line = shown.line(event["from"], event["event"])
        yield f"← {line}" if event["from"] == "backend" else f"   {dim}{event['from']}{reset} → {line}"


def _reply(body: Any, events: list[Json]) -> Iterator[str]:
    """What the client gets; of a stream only what is not what the last mapper gave."""
    made = [event["event"] for event in events if event["from"] == events[-1]["from"]]
    if events and body == made:
        yield f"the {len(made)} events that {events[-1]['from']} gave"
    elif events and isinstance(body, list):
        shown = _Changes()
        yield from (shown.line("client", event) for event in body)
    else:
        yield from _body(body)


class _Changes:
    """Events as lines: of members that stand in each one, such as an id, only what is another one than before."""

    def __init__(self) -> None:
        self._before: dict[str, Any] = {}

    def line(self, where: str, event: Any) -> str:
        before, self._before[where] = self._before.get(where), event
        if not isinstance(event, dict) or not isinstance(before, dict):
            return _line(event)
        new = {name: value for name, value in event.items() if name == "type" or before.get(name, event) != value}
        return _line(event) if len(new) == len(event) else "… " + _line(new)


def _sources(told: Json, part: str, dim: str, reset: str) -> Iterator[str]:
    """Output field ← input fields. What no input changes is the mappers' own, or the configuration's."""
    found: Mapping[str, list[str]] = told.get("provenance", {}).get(part, {})
    own = [name for name, sources in found.items() if not sources]
    if found and told["mapped"]:
        yield f"{dim}where it comes from:{reset}"
        yield from (f"  {name} ← {_few(sources)}" for name, sources in found.items() if sources)
    if own and told["mapped"]:
        yield f"  whatever is asked: {_few(own, 30)}"


def _few(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
