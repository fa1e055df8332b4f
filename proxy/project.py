"""What the command line works on: the configuration file, the environment and the user's functions, read when asked for."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import logging
import os
import types
import zipimport
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

    def shipped(self, name: str) -> bytes:
        """A file that comes with the program, also when that is one packed file."""
        if self._home.is_file():
            return zipimport.zipimporter(str(self._home)).get_data(str(self._home / name))
        return (self._home / name).read_bytes()

    def environment(self) -> dict[str, str]:
        """The environment, with what `.env` of the working directory adds to it."""
        return configuration.read_env_file(ENV_FILE, os.environ)

    def functions(self, name: str) -> Mapping[str, Any]:
        """The names in mappers.py or prompters.py. Loaded anew each time: a reload sees a new file, and an old call keeps its
        functions."""
        path = next((folder / f"{name}.py" for folder in (Path.cwd(), self._home) if (folder / f"{name}.py").is_file()), None)
        if path is None:
            return self._packed(name)
        spec = importlib.util.spec_from_file_location(f"_user_{name}_{next(_loads)}", path)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        try:
            # without cached bytecode, which is not told from a file that is as long and was written in the same second
            exec(compile(path.read_bytes(), path, "exec"), vars(module))
        except Exception as fault:
            line = _line_in(path, fault)
            raise ConfigError([f"{path.name}{line}: {type(fault).__name__}: {fault}"]) from fault
        return vars(module)

    def _packed(self, name: str) -> Mapping[str, Any]:
        """The same of the module that is packed into the program's one file, if it is one."""
        if not self._home.is_file():
            return {}
        module = types.ModuleType(f"_user_{name}_{next(_loads)}")
        exec(zipimport.zipimporter(str(self._home)).get_code(name), vars(module))
        return vars(module)

    def config(self) -> Config:
        """The checked configuration as its file says, without what the command line overrides."""
        return configuration.load(
            self.arguments.config, self.environment(), self.functions("mappers"), self.functions("prompters")
        )

    def config_without_keys(self) -> Config:
        """The same for what calls nobody: keys that are not in the environment are not missed."""
        environ = _Anything(self.environment())
        return configuration.load(self.arguments.config, environ, self.functions("mappers"), self.functions("prompters"))

    def overridden(self, config: Config) -> Config:
        """A configuration with --host, --port, --debug and --session in it."""
        given = {name: getattr(self.arguments, name, None) or None for name in ("host", "debug")}
        given["port"] = getattr(self.arguments, "port", None)
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        config = replace(config, system=replace(config.system, **changes)) if changes else config
        session = getattr(self.arguments, "session", None)
        return config if session is None else configuration.with_session(config, session or None)

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


class _Anything(dict[str, str]):
    """An environment in which every variable is set."""

    def get(self, name: str, default: Any = None) -> str:
        """What is set, else something that is no key."""
        return super().get(name, "not-a-key")


def _line_in(path: Path, fault: Exception) -> str:
    if isinstance(fault, SyntaxError):
        return f":{fault.lineno}:{fault.offset}"
    lines, trace = [], fault.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f":{lines[-1]}" if lines else ""
