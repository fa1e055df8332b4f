"""`--compat FILE` writes what the compatibility tests saw; a run of all of them without it holds docs/compatibility.md to that.

Reports carry each cell from pytest's workers to the process that started them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("all", deadline=None)  # a busy machine is no fault
settings.register_profile("short", deadline=None, max_examples=25)
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"
FOUND: list[tuple[str, str, str, str, str]] = []
FAULTS: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compat", metavar="FILE", help="write the table of clients and backends to FILE")
    parser.addoption("--screenshots", action="store_true", help="write pictures of the console into docs/console")


def pytest_configure(config: pytest.Config) -> None:
    """What leaves out the long tests tries fewer examples of a property, too."""
    settings.load_profile("short" if config.getoption("markexpr") == "not long" else "all")


def pytest_xdist_auto_num_workers() -> int:
    """More than there are cores: a test waits for the processes it has started about as long as it computes."""
    return max(2, (os.cpu_count() or 1) * 3 // 2)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        FOUND.extend(tuple(value) for name, value in report.user_properties if name == "cell")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not FOUND or hasattr(session.config, "workerinput"):
        return
    wanted: Any = session.config.getoption("compat")
    from tests.compat import matrix, table

    if len(FOUND) < len(matrix.cells()):
        if wanted:
            _fault(session, f"{wanted} is not written: only {len(FOUND)} of {len(matrix.cells())} cells passed")
        return  # not all of them ran, or one failed: that is told already
    page = table.page(FOUND)
    if wanted:
        Path(wanted).write_text(page, encoding="utf-8")
    elif not DOCUMENT.exists() or DOCUMENT.read_text(encoding="utf-8") != page:
        _fault(session, "docs/compatibility.md is not what this run saw: `make compat` writes it anew")


def _fault(session: pytest.Session, message: str) -> None:
    FAULTS.append(message)
    session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for message in FAULTS:
        terminalreporter.write_line(f"FAILED: {message}", red=True)
