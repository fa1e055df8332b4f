"""`python -m main connect`: the lines that point a client at this proxy."""

from __future__ import annotations

from proxy import banner
from proxy.project import Project
from proxy.workbench import connect


def run(project: Project) -> int:
    """Prints them, or the names of the clients that are known."""
    arguments = project.arguments
    if arguments.name is None:
        print(connect.listing())
        return 0
    config = project.overridden(project.config())
    url = banner.address(config, config.system.host, config.system.port)
    print(connect.lines(arguments.name, config, url, banner.key(config), arguments.target, arguments.model))
    return 0
