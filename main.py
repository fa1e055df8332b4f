"""The command line: `python -m main` serves; `check`, `connect`, `key` and the others are in proxy/commands/."""

from __future__ import annotations

import gc

gc.disable()  # nothing that is loaded becomes garbage, and looking for it costs a tenth of the start

import importlib  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from proxy.arguments import parser  # noqa: E402
from proxy.errors import ConfigError  # noqa: E402
from proxy.project import Project  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = parser().parse_args(argv)
    project = Project(arguments, Path(__file__).resolve().parent)
    try:
        if arguments.command == "serve":
            from proxy import banner, server

            return server.run(project.generation, banner.announce)
        gc.enable()
        status: int = importlib.import_module(f"proxy.commands.{arguments.command}").run(project)
        sys.stdout.flush()
        return status
    except ConfigError as fault:
        print("\n".join(fault.faults), file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
