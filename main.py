"""The command line: `python -m main`, `check` and `connect`. It hands the user's mappers.py and prompters.py to the proxy."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxy import config as configuration
from proxy.arguments import parser
from proxy.config import Config
from proxy.errors import ConfigError

HERE = Path(__file__).resolve().parent
ENV_FILE = ".env"
_loads = itertools.count()


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = parser().parse_args(argv)
    command = COMMANDS[arguments.command]
    try:
        return command(arguments)
    except ConfigError as fault:
        print("\n".join(fault.faults), file=sys.stderr)
        return 1


# --- commands
def serve(arguments: argparse.Namespace) -> int:
    """`python -m main`: loads everything, then serves until SIGTERM or Ctrl-C."""
    from proxy import banner, logs, server
    from proxy.generation import Generation

    def load(before: Generation | None) -> Generation:
        mappers, prompters = functions("mappers"), functions("prompters")
        config = _overridden(_config(arguments, mappers, prompters), arguments)
        if before is None or (before.config.system.log, before.config.system.debug) != (config.system.log, config.system.debug):
            try:
                logs.set_up(config.system.log, config.system.debug)
            except OSError as fault:
                raise ConfigError([f"system.log.file: cannot write {config.system.log.file}: {fault.strerror}"]) from None
        for warning in config.warnings:
            logging.getLogger("proxy").warning("%s", warning)
        return Generation(config, mappers, prompters, before)

    return server.run(load, banner.announce)


def check(arguments: argparse.Namespace) -> int:
    """`python -m main check`."""
    if arguments.schema:
        print(json.dumps(configuration.json_schema(), indent=2))
        return 0
    mappers, prompters = functions("mappers"), functions("prompters")
    config = configuration.load(arguments.config, environment(), mappers, prompters)
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if config.system.ssl:
        from proxy.server import tls_context

        tls_context(config)
    if arguments.show:
        from proxy.show import shown

        print(shown(config, mappers, prompters))
        return 0
    print(f"{arguments.config} is sound: {len(config.targets)} target(s), default {config.default!r}")
    return 0


def connect(arguments: argparse.Namespace) -> int:
    """`python -m main connect`."""
    from proxy import banner
    from proxy import connect as clients

    if arguments.name is None:
        print(clients.listing())
        return 0
    loaded = configuration.load(arguments.config, environment(), functions("mappers"), functions("prompters"))
    config = _overridden(loaded, arguments)
    url = banner.address(config, config.system.host, config.system.port)
    print(clients.lines(arguments.name, config, url, banner.key(config), arguments.target, arguments.model))
    return 0


def key(arguments: argparse.Namespace) -> int:
    """`python -m main key`."""
    config = configuration.load(arguments.config, environment(), functions("mappers"), functions("prompters"))
    print(config.master_key)
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {"serve": serve, "check": check, "connect": connect, "key": key}


# --- what the commands share
def environment() -> dict[str, str]:
    """The environment, with what `.env` of the working directory adds to it."""
    return configuration.read_env_file(ENV_FILE, os.environ)


def functions(name: str) -> Mapping[str, Any]:
    """The names in mappers.py or prompters.py: of the working directory, else of the proxy's own folder.

    Loaded under a fresh name each time, so that a reload sees a new file and an old call keeps its functions.
    """
    path = next((folder / f"{name}.py" for folder in (Path.cwd(), HERE) if (folder / f"{name}.py").is_file()), None)
    if path is None:
        return {}
    spec = importlib.util.spec_from_file_location(f"_user_{name}_{next(_loads)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as fault:
        line = _line_in(path, fault)
        raise ConfigError([f"{path.name}{line}: {type(fault).__name__}: {fault}"]) from fault
    return vars(module)


def _line_in(path: Path, fault: Exception) -> str:
    if isinstance(fault, SyntaxError):
        return f":{fault.lineno}:{fault.offset}"
    lines, trace = [], fault.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f":{lines[-1]}" if lines else ""


def _config(arguments: argparse.Namespace, mappers: Mapping[str, Any], prompters: Mapping[str, Any]) -> Config:
    if arguments.target:
        return configuration.for_target_url(arguments.target, environment())
    return configuration.load(arguments.config, environment(), mappers, prompters)


def _overridden(config: Config, arguments: argparse.Namespace) -> Config:
    given = {"host": arguments.host, "port": arguments.port, "debug": arguments.debug or None}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(config, system=replace(config.system, **changes)) if changes else config


if __name__ == "__main__":
    sys.exit(main())
