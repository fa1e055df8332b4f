"""The configuration of the console."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proxy.config import Console, RecordsConfig, Target
from proxy.settings.kinds import ANY_TEXT, FLAG, SECONDS, Field, section

PREFIX = "/console"
SECTIONS: dict[str, Field] = {
    "console": (
        section(
            {
                "enabled": (FLAG, "Serve the console at /console"),
                "edit": (FLAG, "Whether the master key may change the configuration there"),
                "session_s": (SECONDS, "Seconds after which somebody has to log in again"),
                "presets": (section({}, rest=ANY_TEXT), "Name, and system prompt that the chat page offers"),
            }
        ),
        "The web pages of the proxy",
    )
}


def console_of(given: Mapping[str, Any]) -> Console | None:
    """What `console:` says; None unless it is enabled."""
    told = {name: value for name, value in given.items() if name != "enabled"}
    return Console(**told) if given.get("enabled") else None


def watched(records: RecordsConfig | None, console: Console | None) -> RecordsConfig | None:
    """The records of a configuration; the console brings one of its own, of the calls in flight."""
    return (records or RecordsConfig())._replace(live=True) if console else records


def mapped_too(targets: Mapping[str, Target], fault: Callable[[tuple[str, ...], str], None]) -> None:
    """Tells of every target that has a path of the console's."""
    for name, target in targets.items():
        paths: dict[tuple[str, ...], str] = {("targets", name, "mapping", entry.key): entry.key for entry in target.mapping}
        paths[("targets", name, "route")] = target.route or ""
        for place, path in paths.items():
            if f"{path}/".startswith(PREFIX + "/"):
                fault(place, "belongs to the console, which is enabled")
