"""`python -m main check`: validates the configuration and exits."""

from __future__ import annotations

import json
import sys

from proxy import config as configuration
from proxy.project import Project


def run(project: Project) -> int:
    """Prints that it is sound, or what it expands to (--show), or its JSON Schema (--schema)."""
    arguments = project.arguments
    if arguments.schema:
        print(json.dumps(configuration.json_schema(), indent=2))
        return 0
    config = project.config()
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if config.system.ssl:
        from proxy.server import tls_context

        tls_context(config)
    if arguments.show:
        from proxy.workbench.show import shown

        print(shown(config, project.functions("mappers"), project.functions("prompters")))
        return 0
    print(f"{arguments.config} is sound: {len(config.targets)} target(s), default {config.default!r}")
    return 0
