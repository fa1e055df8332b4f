"""The configuration of the call log: `records.calls`."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from typing import Any

from voluptuous import Invalid

from proxy.config import Calls
from proxy.settings.kinds import BYTES, FLAG, Field, Kind, list_of, must_be, nullable, number, section, text
from proxy.settings.patterns import fault_of

DATABASE = r"sqlite:///[^\x00-\x1f\x7f]+|postgres(?:ql)?://[!-~]+"


def _pattern(value: Any) -> str:
    if not isinstance(value, str):
        raise must_be("a regular expression", value)
    fault = fault_of(value)
    if fault:
        raise Invalid(fault)
    return value


def _database(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(DATABASE, value):  # never shown: it may hold a password
        raise Invalid("must be sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    if not value.startswith("sqlite:") and importlib.util.find_spec("psycopg") is None:
        raise Invalid("needs the package psycopg: pip install 'psycopg[binary]'")
    return value


PATTERN = Kind(_pattern, lambda: {"type": "string", "minLength": 1})
DAYS = number("a number of days, such as 90", 0, 100_000, above=True)
FIELDS: dict[str, Field] = {
    "calls": (
        section(
            {
                "database": (
                    Kind(_database, lambda: {"type": "string", "pattern": f"^(?:{DATABASE})$"}),
                    "sqlite:///FILE or postgresql://…",
                ),
                "bodies": (FLAG, "Keep what was asked and answered, too"),
                "body_limit": (BYTES, "Most that is kept of one body"),
                "redact": (list_of(PATTERN, "a list of regular expressions"), "What they match is not kept"),
                "keep_days": (nullable(DAYS), "Days after which a call is removed; null: never"),
                "keep_bytes": (nullable(BYTES), "Most that is kept in all; the oldest calls go first"),
                "required": (FLAG, "Refuse calls (503) that could not be kept"),
                "user_header": (text(r"[A-Za-z0-9-]+", "a header's name"), "Header that names a call's user"),
            }
        ),
        "Keep every call in a database",
    )
}


def calls_of(records: Mapping[str, Any]) -> Calls | None:
    """What `records:` says of it; None: there is no call log."""
    return Calls(**records["calls"]) if "calls" in records else None
