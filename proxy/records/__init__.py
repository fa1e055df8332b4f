"""What is kept of calls: each kind of record is a file here, and one entry of `KINDS`. A record never slows or breaks a call.

A record has three verbs. `begin(relay)`, before the call has a target, lets it listen: `relay.meets` sees what was sent to a
backend and what answers it, `relay.reply.heard` gets the client's bytes as they go. `end(call)` comes after the last byte,
also for calls that were refused before they began. `close()` waits until what has ended is written. `begin` may raise a
ProxyError, which refuses the call; anything else that goes wrong is logged and counted here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from proxy.call import Call
from proxy.config import Config
from proxy.errors import ConfigError, ProxyError

if TYPE_CHECKING:
    from proxy.relay import Relay

logger = logging.getLogger(__name__)

KINDS = (
    ("cassettes", "proxy.records.cassettes", "Cassettes"),
    ("calls", "proxy.records.calls", "CallLog"),
    ("live", "proxy.console.live", "Live"),
    ("metrics", "proxy.records.metrics", "Metrics"),
    ("dataset", "proxy.records.dataset", "Datasets"),
    ("submit", "proxy.records.submit", "Submissions"),
)  # the key below `records`, and the class that it switches on


class Record(Protocol):
    """One kind of record; see the module."""

    def begin(self, relay: Relay) -> None: ...
    def end(self, call: Call) -> None: ...
    def close(self) -> None: ...


class Records:
    """All records of a generation. `began`: the configuration of the start. `failed`: how often one of them failed."""

    def __init__(self, config: Config, began: Config) -> None:
        _require_restart(config, began)
        wanted = [kind for kind in KINDS if getattr(config.records, kind[0]) is not None]
        self.kinds: dict[str, Record] = {key: getattr(import_module(module), name)(config) for key, module, name in wanted}
        self._all = list(self.kinds.values())
        self.failed = 0

    def begin(self, relay: Relay) -> None:
        """A call begins. Raises ProxyError where a record refuses it."""
        for record in self._all:
            self._run(record.begin, relay)

    def end(self, call: Call) -> None:
        """A call has ended, well or not."""
        for record in self._all:
            self._run(record.end, call)

    def dropped(self) -> dict[str, int]:
        """How many calls each kind of record did not keep; `failed` counts as `any`."""
        counts = {key: getattr(record, "dropped", 0) for key, record in self.kinds.items()}
        return {**counts, "any": self.failed} if self.failed else counts

    def close(self) -> None:
        """Waits until everything is written; calls that go on are still recorded."""
        for record in self._all:
            self._run(record.close)

    def _run(self, verb: Callable[..., None], *given: Any) -> None:
        try:
            verb(*given)
        except ProxyError:
            raise
        except Exception:
            self.failed += 1
            logger.exception("a record failed; the call goes on")


def _require_restart(config: Config, began: Config) -> None:
    """Raises ConfigError when a reload switches on what all workers must have had from the start."""
    old, new = began.records, config.records
    if began.system.workers == 1 or new is None:
        return
    if new.metrics and not (old and old.metrics):
        raise ConfigError(["records.metrics: to switch it on takes a restart, as the workers count together"])
    if new.dataset and not new.dataset.session and not (old and old.dataset):
        raise ConfigError(["records.dataset: to switch it on without a `session` takes a restart"])
