"""What the command line works on: the configuration file, the environment and the user's functions, read when asked for."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy import config as configuration
from proxy.config import Config
from proxy.errors import ConfigError
from proxy.process import stamps

if TYPE_CHECKING:
    from proxy.generation import Generation

ENV_FILE = ".env"
FILES = ("mappers.py", "prompters.py", ENV_FILE)  # what a generation is read from, beside its configuration
_loads = itertools.count()


class Project:
    """`arguments`: the command's own; `home`: whose mappers.py and prompters.py serve where the working directory has none.

    Everything raises ConfigError with all that is wrong.
    """

    def __init__(self, arguments: argparse.Namespace, home: Path) -> None:
        self.arguments = arguments
        self._home = home

    def environment(self) -> dict[str, str]:
        """The environment, with what `.env` of the working directory adds to it."""
        return configuration.read_env_file(ENV_FILE, os.environ)

    def functions(self, name: str) -> Mapping[str, Any]:
        """The names in mappers.py or prompters.py. Loaded anew each time: a reload sees a new file, and an old call keeps its
        functions."""
        path = next((folder / f"{name}.py" for folder in (Path.cwd(), self._home) if (folder / f"{name}.py").is_file()), None)
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

    def config(self) -> Config:
        """The checked configuration as its file says, without what the command line overrides."""
        return configuration.load(
            self.arguments.config, self.environment(), self.functions("mappers"), self.functions("prompters")
        )

    def overridden(self, config: Config) -> Config:
        """A configuration with --host, --port and --debug in it."""
        given = {name: getattr(self.arguments, name, None) or None for name in ("host", "debug")}
        given["port"] = getattr(self.arguments, "port", None)
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return replace(config, system=replace(config.system, **changes)) if changes else config

    def generation(self, before: Generation | None = None) -> Generation:
        """All of it loaded and ready to serve; `before`: the one that serves until then."""
        from proxy import logs
        from proxy.generation import Generation

        read = stamps((*FILES, *([] if self.arguments.target else [self.arguments.config])))
        mappers, prompters = self.functions("mappers"), self.functions("prompters")
        config = self.overridden(self._config_to_serve(mappers, prompters))
        if before is None or (before.config.system.log, before.config.system.debug) != (config.system.log, config.system.debug):
            try:
                logs.set_up(config.system.log, config.system.debug)
            except OSError as fault:
                raise ConfigError([f"system.log.file: cannot write {config.system.log.file}: {fault.strerror}"]) from None
        for warning in config.warnings:
            logging.getLogger("proxy").warning("%s", warning)
        generation = Generation(config, mappers, prompters, before)
        generation.stamps = read
        return generation

    def _config_to_serve(self, mappers: Mapping[str, Any], prompters: Mapping[str, Any]) -> Config:
        if self.arguments.target:
            return configuration.for_target_url(self.arguments.target, self.environment())
        return configuration.load(self.arguments.config, self.environment(), mappers, prompters)


def _line_in(path: Path, fault: Exception) -> str:
    if isinstance(fault, SyntaxError):
        return f":{fault.lineno}:{fault.offset}"
    lines, trace = [], fault.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f":{lines[-1]}" if lines else ""
