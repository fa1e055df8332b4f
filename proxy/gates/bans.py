"""Bans that all workers and machines share: wrong keys are counted in the shared state, each exactly once.

While that is away each process counts for itself, as a single one does.
"""

from __future__ import annotations

from proxy.config import Cerbere, Config
from proxy.gates.cerbere import Gate, counted, within
from proxy.state import State
from proxy.state.open import Guarded


def gate(config: Config, state: State) -> Gate:
    """The gate of a configuration whose state may be shared."""
    return SharedGate(config.cerbere, state) if isinstance(state, Guarded) else Gate(config.cerbere)


class SharedGate(Gate):
    """See Gate. An address that nobody has sent a wrong key from costs no round trip."""

    def __init__(self, config: Cerbere, state: Guarded) -> None:
        super().__init__(config)
        self._state = state

    def is_banned(self, client: str) -> bool:
        """See Gate."""
        name = _name(client)
        return bool(self._state.resting((name,))) or super().is_banned(client)

    def wrong_key(self, client: str) -> bool:
        """See Gate."""
        if within(client, self._config.whitelist):
            return False
        config = self._config
        ban_s = self._state.tried(lambda: self._state.engine.fail(_name(client), config.max_tries, config.ban_s), None)
        if ban_s is None:
            return super().wrong_key(client)
        if ban_s:
            self._tell(client)
        return bool(ban_s)

    def right_key(self, client: str) -> None:
        """See Gate."""
        super().right_key(client)
        self._state.forgive(_name(client))


def _name(client: str) -> str:
    return "address " + counted(client)
