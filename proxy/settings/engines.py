"""The configuration of engines on this machine: `commands`, executables that are run once a request, and a target's `start`."""

from __future__ import annotations

import os.path
import shutil
from collections.abc import Mapping
from typing import Any

from voluptuous import Invalid

from proxy.config import Command, Start
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
from proxy.settings.presets import LISTED, OWN, PLACEHOLDER, PLACEHOLDERS, PRESETS

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


def start_of(given: Mapping[str, Any]) -> Start:
    """A target's `start`."""
    return Start(**{"command": (), **given})
