"""The configuration of what else is made of calls: metrics, datasets, submissions, and the endpoints of LLM-Gateway."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from proxy.config import SESSION, SESSION_IS, Calls, Dataset, Gateway, RecordsConfig, Submit, Target
from proxy.settings.kinds import FILE, FLAG, SECONDS, TEXT, Field, Kind, by_type, meant, must_be, nullable, section, web_address

GATEWAY = section(
    {
        "chat_sg": (TEXT, "Target of /chat_sg; without it: the first one with `dialect: sagemaker`"),
        "chat_br": (TEXT, "Target of /chat_br; without it: the first one with `dialect: bedrock`"),
        "image_gen": (TEXT, "Target of /image_gen; without it: the default target"),
    }
)


def session_of(value: Any) -> str:
    """A session's ID, which is a file's name. Raises Invalid."""
    if not isinstance(value, str) or not re.fullmatch(SESSION, value):
        raise must_be(SESSION_IS, value)
    return value


FIELDS: dict[str, Field] = {
    "metrics": (FLAG, "Serve Prometheus' metrics at /metrics"),
    "dataset": (
        section(
            {
                "folder": (FILE, "Folder that the sessions' files are in"),
                "session": (
                    nullable(Kind(session_of, lambda: {"type": "string", "pattern": f"^{SESSION}$"})),
                    "Name of the file; null: the time of the start",
                ),
            }
        ),
        "Keep conversations in ShareGPT's form",
    ),
    "submit": (
        section(
            {
                "url": (web_address(), "Where each call is posted"),
                "timeout_s": (SECONDS, "Seconds that one attempt may take"),
            },
            required=("url",),
        ),
        "Post each call to a url",
    ),
    "gateway_api": (by_type({bool: FLAG, dict: GATEWAY}, "true, false, or a section"), "Serve LLM-Gateway's endpoints"),
}
NEEDS_CALLS = "needs the call log with its bodies: configure `records: {calls: {}}`"


def reports_of(records: Mapping[str, Any]) -> dict[str, Any]:
    """What `records:` says of them, as fields of RecordsConfig."""
    gateway = records.get("gateway_api")
    return {
        "metrics": records.get("metrics") or None,
        "dataset": Dataset(**records["dataset"]) if "dataset" in records else None,
        "submit": Submit(**records["submit"]) if "submit" in records else None,
        "gateway": Gateway(**(gateway if isinstance(gateway, dict) else {})) if gateway not in (None, False) else None,
    }


def faults(
    records: RecordsConfig | None, targets: Mapping[str, Target], names: Iterable[str]
) -> Iterable[tuple[tuple[str, ...], str]]:
    """What cannot be, and where it stands. names: of targets and pools."""
    if records is None:
        return
    calls: Calls | None = records.calls
    if records.gateway and not (calls and calls.bodies):
        yield ("records", "gateway_api"), NEEDS_CALLS
    for key, name in records.gateway._asdict().items() if records.gateway else ():
        if name is not None and name not in names:
            yield ("records", "gateway_api", key), f"there is no target {name!r}{meant(name, names)}"
    for target in targets.values():
        for entry in target.mapping:
            if entry.key in records.pages:
                yield ("targets", target.name, "mapping", entry.key), "is answered by the proxy itself (`records`)"
        if target.route in records.pages:
            yield ("targets", target.name, "route"), f"{target.route} is answered by the proxy itself (`records`)"
