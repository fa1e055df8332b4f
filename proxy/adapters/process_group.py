"""Programs that the proxy starts: each leads a process group of its own, and a group ends as a whole.

Whatever becomes of the proxy, kill -9 too, its groups end: a small keeper process hears of each group over a pipe, and ends
those that are left when the pipe breaks. (The kernel's own PR_SET_PDEATHSIG would not do: it follows the thread that forked,
which is a connection's, and it spares grandchildren.)
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from proxy.errors import BackendError, BadRequest

logger = logging.getLogger(__name__)

GRACE_S = 2.0  # between SIGTERM and SIGKILL
POLL_S = 0.01
SHOWN_LINES, SHOWN_CHARS = 5, 500  # of what a program said, in an error
SPEECHLESS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\t -~\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
KEEPER = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    groups.add(int(line)) if int(line) > 0 else groups.discard(-int(line))
for number in [signal.SIGTERM] + [0] * 100 + [signal.SIGKILL]:
    for group in list(groups):
        try:
            os.killpg(group, number)
        except OSError:
            groups.discard(group)
    if groups and not number:
        time.sleep(0.02)
"""


class Keeper:
    """The keeper process of this process; started with the first group. Thread-safe: its lock guards the pipe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        command = [sys.executable, "-I", "-S", "-c", KEEPER]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def tell(self, group: int) -> None:
        """A group that is to be kept; its negative: one that has ended."""
        try:
            with self._lock:
                os.write(self._process.stdin.fileno(), b"%d\n" % group)  # type: ignore[union-attr]
        except OSError as fault:
            logger.warning("the keeper has ended, programs may outlive a crash of the proxy: %s", fault)


@cache
def keeper(process_id: int) -> Keeper:
    """This process's keeper: a forked worker has one of its own."""
    return Keeper()


def start(command: Sequence[str], env: Mapping[str, str], what: str, **streams: Any) -> subprocess.Popen[bytes]:
    """Starts a program without a shell. `streams`: Popen's stdin, stdout, stderr and pass_fds.

    Raises BadRequest for an argument that the system cannot pass on, BackendError when there is no such program.
    """
    arguments = [argument.encode("utf-8", "replace") for argument in command]
    if any(b"\0" in argument for argument in arguments):
        raise BadRequest(f"{what} takes the text as an argument, which can hold no NUL")
    try:
        kept = keeper(os.getpid())
        process = subprocess.Popen(arguments, env=dict(env), start_new_session=True, **streams)
    except OSError as fault:
        if fault.errno == 7:  # E2BIG
            raise BadRequest(f"the text is too long for an argument of {what}", status=413) from None
        raise BackendError(f"{what} cannot be started: {fault.strerror}: {command[0]}") from fault
    kept.tell(process.pid)
    return process


def end(process: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> int:
    """Ends the group: SIGTERM, SIGKILL for who is left after `grace_s` or when its leader has gone. The leader's status.

    The leader is reaped last: until then no other group can get its number.
    """
    if process.returncode is not None:
        return process.returncode
    tell(process.pid, signal.SIGTERM)
    until = time.monotonic() + grace_s
    while not has_ended(process) and time.monotonic() < until:
        time.sleep(POLL_S)
    tell(process.pid, signal.SIGKILL)
    status = process.wait()
    keeper(os.getpid()).tell(-process.pid)
    return status


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the leader has ended, which leaves it to be reaped by `end`."""
    if process.returncode is not None:
        return True
    if not hasattr(os, "waitid"):  # macOS
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def tell(group: int, number: signal.Signals) -> None:
    """A signal to a whole group, if there is one."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies alone
        logger.debug("group %d has ended already", group)


def outcome(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with status {status}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was ended by {names.get(-status, f'signal {-status}')}"


def last_lines(said: bytes) -> str:
    """The end of what a program said, fit for a client: few lines, no control characters."""
    lines = [SPEECHLESS.sub("", line).strip() for line in re.split(r"[\r\n]+", said.decode("utf-8", "replace"))]
    return " | ".join([line for line in lines if line][-SHOWN_LINES:])[-SHOWN_CHARS:]
