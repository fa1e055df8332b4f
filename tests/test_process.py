"""proxy/process.py: what the operating system gives a process. What changes a process runs in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from proxy.process import FILES_A_CALL, SPARE_FILES, file_limit, stamps

CHECKOUT = Path(__file__).resolve().parents[1]


def told(code: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_soft_limit_of_files_is_raised_and_each_client_counts_with_its_backend() -> None:
    code = """
import resource
from proxy.process import file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 232))
print(file_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
print(file_limit())
"""
    assert told(code) == f"{(232 - SPARE_FILES) // FILES_A_CALL} 232 232\n8"


def test_the_limit_is_enough_for_somebody_wherever_it_stands() -> None:
    assert file_limit() >= 8


def test_requests_comes_without_what_guesses_encodings_and_others_can_still_have_it() -> None:
    code = """
import sys
from proxy.process import load_requests
load_requests()
import requests
print("charset_normalizer" in sys.modules, "chardet" in sys.modules, hasattr(requests, "Session"))
import charset_normalizer
print(charset_normalizer.__name__)
load_requests()
print(sys.modules["requests"] is requests)
"""
    assert told(code) == "False False True\ncharset_normalizer\nTrue"


def test_what_was_loaded_is_frozen_and_what_comes_is_collected() -> None:
    code = """
import gc
gc.disable()
from proxy.process import settle_memory
settle_memory()
print(gc.isenabled(), gc.get_freeze_count() > 1000)
"""
    assert told(code) == "True True"


def test_a_file_that_was_written_again_or_has_gone_has_another_stamp(tmp_path: Path) -> None:
    kept, changed, gone = (str(tmp_path / name) for name in ("kept", "changed", "gone"))
    for name in (kept, changed, gone):
        Path(name).write_text("one")
    before = stamps([kept, changed, gone, str(tmp_path / "never")])
    Path(changed).write_text("other")
    os.unlink(gone)
    after = stamps([kept, changed, gone, str(tmp_path / "never")])
    assert after[kept] == before[kept] is not None
    assert after[changed] != before[changed]
    assert (after[gone], after[str(tmp_path / "never")]) == (None, None)
    os.utime(kept, ns=(1, 1))
    assert stamps([kept]) == {kept: (1, 3)}
