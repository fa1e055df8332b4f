"""What a call passes between the choice of its target and the backend: keys' rights, limits, guard, cache, attempts.

It exists only where the configuration names one of them (`Config.traffic`); a plain call goes straight to `Relay.once`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.generation import Generation
    from proxy.relay import Relay
    from proxy.routing import Choice


class Traffic:
    """The stations, in the order in which a call passes them. One per generation."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def run(self, relay: Relay, choice: Choice) -> None:
        """Answers the request. Raises ProxyError while a status can still be sent."""
        relay.once(choice)
