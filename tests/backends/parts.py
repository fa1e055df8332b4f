"""Programs that some tests need and no package brings: where one is missing, its tests are left out, but never in CI."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(program: str) -> pytest.MarkDecorator:
    """For `pytestmark`. In CI (`.ci/run` installs them) a missing program fails its tests."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    missing = shutil.which(program, path=path) is None
    return pytest.mark.skipif(missing and "CI" not in os.environ, reason=f"needs {program}")
