"""The keys of a target that has more than one: some that are used in turn (`envkeys`), or those that a program prints, one
after the other (`key_command`).

A key that the backend refuses rests, for all workers and machines. The log names keys by their environment variable, clients
hear of no name.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from proxy.adapters.process_group import tell
from proxy.call import Waiting
from proxy.config import Target
from proxy.errors import ProxyError
from proxy.settings.kinds import TRIMMED
from proxy.state import State

logger = logging.getLogger(__name__)

REFUSALS = frozenset((401, 402, 429))  # what is the key's matter: wrong, not paid for, used up
COMMAND_S = 30.0  # for a program that prints a key
FAULT_S = 2.0  # a program that has failed, or whose new key is refused, is not run again before that


class Ring:
    """Keys in turn. Thread-safe: `next` of a count is atomic, and the rest is in the shared state."""

    def __init__(self, target: Target, state: State) -> None:
        self._target, self._state = target, state
        self._names = list(target.keys)
        self._stored = {f"key {name} of {target.name}": name for name in target.keys}  # in the state → in the configuration
        self._all = list(self._stored)
        self._turns = itertools.count()
        self._refused: dict[str, int] = {}  # the status that a key was last refused with

    def awake(self) -> list[str]:
        """The names of the keys that do not rest; first the one whose turn it is. Raises ProxyError when all rest: 429 when
        all have been used up, else 503."""
        at = next(self._turns) % len(self._names)
        awake = self._names[at:] + self._names[:at]
        resting = self._state.resting(self._all)
        if resting:
            rest = {self._stored[name] for name in resting}
            awake = [name for name in awake if name not in rest]
        if awake:
            return awake
        used_up = all(self._refused.get(name, 429) == 429 for name in self._target.keys)
        back_s = math.ceil(min(resting.values()))
        raise ProxyError(
            f"all keys of target {self._target.name!r} rest; the first is back in {back_s} s",
            status=429 if used_up else 503,
            code="keys_rest",
            headers=(("retry-after", str(back_s)),),
        )

    def rests(self, name: str, status: int, rest_s: float) -> None:
        """The backend has refused that key."""
        self._refused[name] = status
        self._state.rest(f"key {name} of {self._target.name}", rest_s)
        logger.warning("target %s answered %d to the key %s: it rests for %g s", self._target.name, status, name, rest_s)


class Printed:
    """The key that a program prints, kept for a while. Thread-safe: the lock is held while the program runs, so that it runs
    once at a time; whoever waits for it has given its turn at computing back."""

    def __init__(self, target: Target, hidden: set[str], clock: Callable[[], float] = time.monotonic) -> None:
        """hidden: environment variables that are not the program's business."""
        self._target, self._clock = target, clock
        self._env = {name: value for name, value in os.environ.items() if name not in hidden}
        self._lock = threading.Lock()
        self._key = ""
        self._since = self._failed = -math.inf  # when it was printed, when it could not be; monotonic
        self._fault = ""

    def key(self, waits: Waiting, refused: str = "") -> str:
        """The key. refused: the one that the backend has refused, which a new one replaces, unless it is new itself.
        Raises ProxyError (503) when there is none."""
        if self._is_good(refused):
            return self._key
        with waits.pausing(), self._lock:
            if not self._is_good(refused):
                self._renew()
            return self._key

    def _is_good(self, refused: str) -> bool:
        """Whether there is a key that need not be renewed: not even when it was refused, if it is new."""
        age_s = self._clock() - self._since
        return age_s < (FAULT_S if refused and refused == self._key else self._target.key_ttl_s)

    def is_renewable(self, refused: str) -> bool:
        """Whether `key` would give another one than that."""
        return self._key != refused or not self._is_good(refused)

    def _renew(self) -> None:
        if self._clock() - self._failed >= FAULT_S:
            try:
                key = self._printed()
                self._target.secrets.add(key)
                self._key, self._since = key, self._clock()
                return
            except (OSError, ValueError) as fault:
                self._fault, self._failed = _reason(fault), self._clock()
                logger.error("target %s: key_command %s: %s", self._target.name, self._target.key_command[0], self._fault)
        raise ProxyError(
            f"there is no key for target {self._target.name!r}: its key_command failed; the log says why",
            status=503,
            code="key_command_failed",
            headers=(("retry-after", str(math.ceil(FAULT_S))),),
        )

    def _printed(self) -> str:
        """Runs the program, without a shell. Raises OSError, ValueError; neither holds what it printed."""
        none = subprocess.DEVNULL
        argv = self._target.key_command
        with subprocess.Popen(
            argv, stdin=none, stdout=subprocess.PIPE, stderr=none, env=self._env, start_new_session=True
        ) as process:
            try:
                out, _ = process.communicate(timeout=COMMAND_S)
            except subprocess.TimeoutExpired:
                if os.name == "posix":
                    tell(process.pid, signal.SIGKILL)  # what it has started, too
                process.kill()
                raise ValueError(f"it did not end within {COMMAND_S:g} s") from None
        if process.returncode:
            raise ValueError(f"it ended with status {process.returncode}")
        line = out.partition(b"\n")[0].decode("latin-1").strip()
        if not re.fullmatch(TRIMMED, line):
            raise ValueError("it printed no key on its first line")
        return line


def _reason(fault: Exception) -> str:
    return (isinstance(fault, OSError) and fault.strerror) or str(fault)
