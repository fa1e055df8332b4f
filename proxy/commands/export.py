"""`python -m main export`: conversations and calls out of the call log, for training and for reports."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

from proxy.errors import ConfigError
from proxy.project import Project
from proxy.records.forms import FORMS
from proxy.records.store import Query, Row, Store, StoreLost, open_store

PAGE = 1000  # calls that are read at once


def run(project: Project) -> int:
    """Writes what fits, the newest first; the exit status is 1 if there is none."""
    arguments = project.arguments
    query = Query(
        key_name=arguments.key,
        target=arguments.of,
        model=arguments.model,
        since=_moment("--since", arguments.since),
        until=_moment("--until", arguments.until),
        status="ok",
        limit=PAGE,
    )
    try:
        store = _store(project)
        try:
            with _out(arguments.out) as out:
                count = _write(out, _records(store, query, arguments.format), FORMS[arguments.format][2])
        finally:
            store.close()
    except StoreLost as fault:
        raise ConfigError([f"records.calls.database: {fault}"]) from None
    except BrokenPipeError:  # whoever read it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    told = f"{count} {'conversations' if FORMS[arguments.format][1] else 'calls'}"
    if arguments.out in (None, "-"):
        print(told, file=sys.stderr)
    else:
        print(f"wrote {told} into {arguments.out}")
    return 0 if count else 1


def _store(project: Project) -> Store:
    config = project.config_without_keys()
    kept = config.records.calls if config.records else None
    if kept is None:
        raise ConfigError([f"{config.file}: there is no call log to export: `records: {{calls: {{}}}}` keeps one"])
    file = kept.database.removeprefix("sqlite:///")
    if file != kept.database and not os.path.exists(file):
        raise ConfigError([f"records.calls.database: there is no file {file} yet: no call was kept"])
    return open_store(kept.database)


def _records(store: Store, query: Query, form: str) -> Iterator[Any]:
    """A conversation's last answered call holds all of it: earlier ones, and answers that were asked for anew, are left out."""
    made, whole, _ = FORMS[form]
    seen: set[tuple[str | None, str]] = set()
    for row in _newest(store, query):
        conversation = (row.key_name, row.conversation or row.id)
        if whole and conversation in seen:
            continue
        full = store.call(row.id)
        record = made(full) if full else None
        if record is not None:
            seen.add(conversation)
            yield record


def _newest(store: Store, query: Query) -> Iterator[Row]:
    while page := store.calls(query):
        yield from page
        query = replace(query, before=(page[-1].at, page[-1].id))


def _write(out: TextIO, records: Iterator[Any], lines: bool) -> int:
    count = 0
    out.write("" if lines else "[")
    for record in records:
        out.write("" if lines else ",\n" if count else "\n")
        out.write(json.dumps(record, ensure_ascii=False))
        out.write("\n" if lines else "")
        count += 1
    out.write("" if lines else "\n]\n")
    out.flush()
    return count


@contextlib.contextmanager
def _out(name: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that is there when it is whole, for its owner only."""
    if name is None or name == "-":
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        yield sys.stdout
        return
    part = Path(f"{name}.part")
    try:
        number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        os.replace(part, name)
    except OSError as fault:
        raise ConfigError([f"--out: cannot write {name}: {fault.strerror}"]) from None
    finally:
        part.unlink(missing_ok=True)


def _moment(flag: str, text: str | None) -> float | None:
    """Seconds since the epoch; a date is its beginning, and what says no zone is in UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise ConfigError(
            [f"{flag}: must be a date such as 2026-11-21, or a time such as 2026-11-21T18:00, not {text!r}"]
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
