"""Cassettes as tests: one line in a test file makes a folder of recorded calls pytest's parameters.

from proxy.cassettes import suite

test_cassettes = suite("cassettes")
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy import config as configuration
from proxy.config import find_mapper
from proxy.errors import ConfigError
from proxy.project import Project
from proxy.records import cassettes
from proxy.workbench.rehearsal import Stage
from proxy.workbench.replaying import replayed

Json = dict[str, Any]


def files(folder: str) -> list[Path]:
    """The cassettes in a folder, or the one that is named. Raises ConfigError when there is none."""
    path = Path(folder)
    found = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        raise ConfigError(
            [f"there is no cassette in {folder}: `records: {{cassettes: {{}}}}` records them while the proxy serves"]
        )
    return found


def stage_of(project: Project) -> Stage:
    """The working directory's configuration and functions, ready to replay; no key has to be there."""
    return Stage(project.config_without_keys(), project.functions("mappers"), project.functions("prompters"))


def suite(folder: str = "cassettes", config: str = "config.yaml") -> Callable[..., None]:
    """A test function with each cassette as a parameter. Paths are relative to the directory in which pytest is started."""
    import pytest  # a test's, not the program's

    home = Path(__file__).resolve().parents[1]
    stage = stage_of(Project(argparse.Namespace(config=config, target=None), home))

    @pytest.mark.parametrize("path", files(folder), ids=lambda path: path.stem)
    def test_cassette(path: Path) -> None:
        changed, _ = replayed(stage, cassettes.load(path))
        assert not changed, "\n".join(changed)

    function: Callable[..., None] = test_cassette
    return function


# --- a report


REPORT = '''"""A call through mooltiproxy, as it was recorded and as a test of its mappers. Secrets are masked: ***

{facts}

The call as it came:
{curl}

Run it in a checkout of mooltiproxy: python -m pytest {name}
"""

import json

from proxy.cassettes import check

CASSETTE = json.loads({cassette})
MAPPERS = {mappers}


def test_the_call_is_mapped_as_it_was():
    check(CASSETTE, MAPPERS)
'''


def exported(cassette: Json, project: Project) -> str:
    """One Python file: what was where, the curl line, the four bodies, the configuration, and a test that runs."""
    facts = {name: cassette[name] for name in ("id", "when", "target", "front")} | cassette["versions"]
    return REPORT.format(
        facts="\n".join(f"{name}: {value}" for name, value in facts.items()),
        curl=_curl(cassette["client"]).replace("\\", "\\\\"),
        name=f"report_{cassette['id']}.py",
        cassette=_literal(json.dumps(cassette, ensure_ascii=False, indent=1)),
        mappers=_literal(_own_mappers(cassette, project)),
    )


def _literal(text: str) -> str:
    """Text as Python writes it, line by line, so that it can be read."""
    lines = text.splitlines(keepends=True)
    return "(\n" + "".join(f"    {line!r}\n" for line in lines) + ")" if lines else '""'


def _curl(client: Json) -> str:
    query = f"?{client['query']}" if client["query"] else ""
    headers = "".join(f" -H {shlex.quote(f'{name}: {value}')}" for name, value in client["headers"].items())
    body = client["body"].get("text", "")
    given = f" -d {shlex.quote(body)}" if body else ""
    start = f"curl -X {client['method']} http://127.0.0.1:8000{shlex.quote(client['path'] + query)}"
    return f'{start} -H "Authorization: Bearer $MOOLTIPROXY_KEY"{headers}{given}'


def _own_mappers(cassette: Json, project: Project) -> str:
    """mappers.py, where the call went through a function of it."""
    own = project.functions("mappers")
    told = json.dumps(cassette["config"])
    used = [
        name for name, value in own.items() if callable(value) and f'"{name}"' in told and find_mapper(name, {}) is not value
    ]
    path = Path("mappers.py")
    return path.read_text(encoding="utf-8") if used and path.is_file() else ""


def check(cassette: Json, mappers: str = "") -> None:
    """Raises AssertionError where a call is not mapped as it was, by its own configuration and this text of mappers.py."""
    names: dict[str, Any] = {"__name__": "mappers"}
    exec(compile(mappers, "mappers.py", "exec"), names)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_text(json.dumps(cassette["config"]), encoding="utf-8")  # JSON is YAML
        config = configuration.load(str(file), {"MOOLTIPROXY_KEY": "not-a-key"}, names, {})
    stage = Stage(config, names, {})
    try:
        changed, _ = replayed(stage, cassette)
    finally:
        stage.close()
    assert not changed, "\n".join(changed)
