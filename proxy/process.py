"""What the operating system gives this process: file descriptors, and a place for memory that is no longer needed."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable
from functools import cache

logger = logging.getLogger(__name__)

SPARE_FILES = 32  # file descriptors that are not for clients
FILES_A_CALL = 2  # one to the client, one to the backend


def file_limit() -> int:
    """How many clients the file descriptors are enough for; the soft limit is raised to the hard one."""
    try:
        import resource
    except ImportError:  # Windows
        return 100_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            logger.debug("the limit of open files stays at %d", soft)
    return max(8, (soft - SPARE_FILES) // FILES_A_CALL) if soft != resource.RLIM_INFINITY else 100_000


@cache
def start_secret() -> bytes:
    """Random bytes of this start of the proxy, the same in all workers: the supervisor asks for them before it forks."""
    return os.urandom(32)


def load_requests() -> None:
    """Imports requests without what guesses the encoding of a text: nothing here asks it, and it takes 3 MiB and a part of the
    start. requests itself does without where neither is installed: a text of unknown encoding is UTF-8 then."""
    if "requests" in sys.modules:
        return
    guessers = [name for name in ("charset_normalizer", "chardet") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(guessers))  # type: ignore[arg-type]  # what Python takes for "cannot be imported"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it misses them
            importlib.import_module("requests")
    finally:
        for name in guessers:
            del sys.modules[name]


def settle_memory() -> None:
    """After loading: what it made is here to stay, so the garbage collector need not look at it again, and what it freed goes
    back to the system, where the C library can do that (glibc)."""
    gc.freeze()
    gc.enable()
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, OSError, AttributeError, TypeError):
        logger.debug("this C library keeps what was freed")


def stamps(names: Iterable[str]) -> dict[str, tuple[int, int] | None]:
    """When each file was written (in ns), and its size in bytes; None for one that is not there."""
    found: dict[str, tuple[int, int] | None] = {}
    for name in names:
        try:
            state = os.stat(name)
        except OSError:
            found[name] = None
        else:
            found[name] = (state.st_mtime_ns, state.st_size)
    return found
