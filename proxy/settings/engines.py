"""The configuration of engines on this machine: `commands`, executables that are run once a request, and a target's `start`."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Mapping
from typing import Any

from voluptuous import Invalid

from proxy.config import Command, Start
from proxy.settings.findings import Findings, Given, Rule
from proxy.settings.kinds import (
    ANY_TEXT,
    FILE,
    FLAG,
    SECONDS,
    TEXT,
    VARIABLE,
    Field,
    Kind,
    by_type,
    list_of,
    meant,
    nullable,
    number,
    one_of,
    one_or_list,
    section,
    text,
)
from proxy.settings.presets import LISTED, NODE_RED, OWN, PLACEHOLDER, PLACEHOLDERS, PRESETS
from proxy.settings.source import Path

BARE = (
    "security: a prompt that begins with - is taken for an option where {prompt} stands alone: put its option or -- before it, "
    "--prompt={prompt} in its place, or use {prompt_file}"
)
COUNT = number("a whole number", 1, 10_000_000, whole=True)
WORD = text(r"[^\x00]+", "text")
NAME = text(r"[A-Za-z0-9][A-Za-z0-9_-]*", "a name of letters, digits, - and _")


def _known(part: str) -> str:
    for name in PLACEHOLDER.findall(part):
        if name not in PLACEHOLDERS:
            raise Invalid(f"has {{{name}}}, which is not known{meant(name, PLACEHOLDERS)}")
    return part


def _argument(value: Any) -> str:
    part = _known(WORD.check(value))
    for name in set(PLACEHOLDER.findall(part)) & set(LISTED):
        raise Invalid(f"{{{name}}} is not always there: put it into a list of its own, such as [--option, '{{{name}}}']")
    return part


def _option(value: Any) -> tuple[str, ...]:
    parts = tuple(_known(WORD.check(part)) for part in value)
    named = [name for part in parts for name in PLACEHOLDER.findall(part)]
    if len(set(named) - set(OWN)) != 1:
        raise Invalid("must hold one placeholder of a request, such as [--temp, '{temperature}']: it stands there once a value")
    return parts


ARGUMENT = by_type(
    {str: Kind(_argument, WORD.json), list: Kind(_option, lambda: {"type": "array", "items": WORD.json()})},
    "text (numbers in quotes) or a list of it with one placeholder",
)
ARGUMENTS = list_of(ARGUMENT, "a list: the program, then its arguments")
COMMAND = section(
    {
        "preset": (one_of(lambda: list(PRESETS)), "Ready-made arguments for llama.cpp's programs; what stands beside it wins"),
        "model": (FILE, "File of the model, {model}"),
        "complete": (ARGUMENTS, "The program that continues a text, and its arguments"),
        "embed": (ARGUMENTS, "The program that prints a text's embedding"),
        "tokenize": (ARGUMENTS, "The program that prints a text's tokens"),
        "threads": (COUNT, "{threads}"),
        "context": (COUNT, "{context}: tokens of prompt and answer; max_tokens is capped there"),
        "batch": (COUNT, "{batch}"),
        "count_tokens": (FLAG, "Count tokens with `tokenize`, for usage and finish_reason"),
        "pooling": (one_of(lambda: ["mean", "cls", "last"]), "{pooling}: how `embed` makes one vector of all tokens'"),
        "echo": (FLAG, "Whether `complete` repeats the prompt, which is taken off then"),
        "stop": (one_or_list(ANY_TEXT, "a text or a list of texts"), "Texts that end every answer"),
        "timeout_s": (SECONDS, "Seconds that a program may take"),
    }
)
COMMANDS: Field = (section({}, rest=COMMAND, name=NAME), "Executables for command:// targets")
START: Field = (
    section(
        {
            "command": (list_of(WORD, "a list: the program, then its arguments"), "The server and its arguments"),
            "ready": (nullable(text(r"/[!-~]*", "a path such as /health")), "Path that answers 200 when it is ready"),
            "idle_stop_s": (nullable(SECONDS), "Seconds without a call until it is stopped; null: never"),
            "env": (section({}, rest=ANY_TEXT, name=VARIABLE), "Environment variables that it gets beside the proxy's"),
            "exclusive": (TEXT, "Group of servers of which one runs at a time"),
        }
    ),
    "The server is started by the first call",
)


def is_command(target: Given) -> bool:
    """Whether executables are behind it."""
    return str(target.get("url")).startswith("command:")


RULES: tuple[Rule, ...] = (
    (
        "dialect",
        ("url", "dialect"),
        lambda t: is_command(t) and t.get("dialect", "llamacpp") != "llamacpp",
        "a command:// target speaks llamacpp",
    ),
    (
        "start",
        ("url", "start"),
        lambda t: "start" in t and not str(t.get("url")).startswith("http"),
        "needs an http:// url, which the server listens at",
    ),
    (
        "start",
        ("start",),
        lambda t: "start" in t and not t["start"].get("command"),
        "needs a `command`: a list, the program and its arguments",
    ),
    (
        "start",
        ("start", "proxy"),
        lambda t: "start" in t and "proxy" in t,
        "is a server on this machine, which no outbound proxy leads to: remove `proxy`",
    ),
    (
        "",
        (),
        lambda t: ("start" in t or is_command(t)) and os.name != "posix",
        "starts programs as process groups, which Windows does not have",
    ),
)


def command_of(name: str, given: Mapping[str, Any]) -> Command:
    """One of `commands` over its preset. Raises Invalid when nothing can be run."""
    preset = PRESETS.get(given.get("preset", ""), {})
    ready = {
        key: tuple(tuple(part) if isinstance(part, list) else part for part in value) if isinstance(value, list) else value
        for key, value in preset.items()
    }
    command = Command(name=name, **{**ready, **{key: value for key, value in given.items() if key != "preset"}})
    used = str((command.complete, command.embed, command.tokenize))
    faults = (
        (not (command.complete or command.embed or command.tokenize), "needs a `preset`, or `complete`, `embed` or `tokenize`"),
        (command.model is None and "{model}" in used, "needs a `model`: its arguments have {model}"),
        (command.count_tokens and not command.tokenize, "cannot count tokens without `tokenize`"),
    )
    wrong = next((message for fault, message in faults if fault), None)
    if wrong:
        raise Invalid(wrong)
    return command


def without(command: Command) -> list[str]:
    """What the command needs and this machine does not have, in words."""
    programs = [str(arguments[0]) for arguments in (command.complete, command.embed, command.tokenize) if arguments]
    missing = [f"program {program!r} on the PATH" for program in programs if not shutil.which(program)]
    return missing + ([f"file {command.model!r}"] if command.model and not os.path.isfile(command.model) else [])


def takes_prompts_for_options(arguments: tuple[str | tuple[str, ...], ...]) -> bool:
    """Whether {prompt} begins an argument that no option, and no `--`, stands before."""
    words = [word for part in arguments for word in ((part,) if isinstance(part, str) else part)]
    return any(word.startswith("{prompt}") and not before.startswith("-") for before, word in itertools.pairwise(words))


def read_command(found: Findings, name: str, given: Given) -> Command:
    """One of `commands`; notes its faults, and what this machine lacks for it."""
    try:
        command = command_of(name, given)
        for what in without(command):
            found.warn(("commands", name), f"there is no {what}: calls that need it will fail")
        for verb in ("complete", "embed", "tokenize"):
            if takes_prompts_for_options(getattr(command, verb)):
                found.warn(("commands", name, verb), BARE)
        return command
    except Invalid as fault:
        if not found.is_faulty(("commands", name)):
            found.fault(("commands", name), fault.msg)
        return Command(name)


def with_prompter(found: Findings, path: Path, given: Given) -> Given:
    """What a command:// target says without being told: its API, and the flows' template where it names no prompter."""
    name, written = given["url"].removeprefix("command://"), found.written("commands")
    if name not in written and not found.is_faulty((*path, "url")):
        found.fault((*path, "url"), f"there is no command {name!r}{meant(name, written) or ': write it below `commands`'}")
    ready = {"dialect": "llamacpp", "prompter": "fromTemplate", **given}
    return {"template": NODE_RED, **ready} if ready["prompter"] == "fromTemplate" else ready


def start_of(given: Mapping[str, Any]) -> Start:
    """A target's `start`."""
    return Start(**{"command": (), **given})
