"""Who may knock: addresses that are let in, kept out, and banned after too many wrong keys.

Addresses are the socket's, or X-Forwarded-For's last untrusted one when the socket is a trusted proxy's. An IPv6 client counts
by its /64, which is one customer's network.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

from proxy.config import Cerbere, Network
from proxy.errors import Refused

logger = logging.getLogger(__name__)

WITH_PORT = re.compile(r"(?:([0-9.]+)|\[([^\]]+)\])(?::[0-9]+)?")
TRACKED = 10_000  # addresses remembered at most; the one longest without a wrong key is forgotten first


@lru_cache(maxsize=4096)
def address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address as the socket or a header names it, with or without a port; IPv4 mapped into IPv6 becomes IPv4.

    None when it is none.
    """
    match = WITH_PORT.fullmatch(text.strip())
    try:
        found = ipaddress.ip_address((match[1] or match[2] if match else text).partition("%")[0].strip())
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def within(text: str, networks: tuple[Network, ...]) -> bool:
    """Whether an address lies in one of the networks."""
    found = address(text) if networks else None
    return found is not None and any(found.version == net.version and found in net for net in networks)


class Gate:
    """Thread-safe; the lock guards the counts."""

    bans = 0  # that this process has brought; its gates come one after the other

    def __init__(self, config: Cerbere, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._tries: OrderedDict[str, tuple[int, float]] = OrderedDict()  # → wrong keys, when the last one came

    def client_of(self, peer: str, forwarded: str | None) -> str:
        """The address that counts: the nearest one that is not a trusted proxy's."""
        hops = [hop.strip() for hop in forwarded.split(",")] if forwarded else []
        while hops and within(peer, self._config.trusted_proxies) and address(hops[-1]):
            peer = hops.pop()
        return peer

    def admit(self, client: str) -> None:
        """Raises Refused (403) for an address that is banned, blacklisted, or not among `only`."""
        config = self._config
        if within(client, config.blacklist) or (config.only and not within(client, config.only)):
            raise Refused("this address may not connect", code="address_refused", close=True)
        if self.is_banned(client) and not within(client, config.whitelist):
            until = "until the proxy is restarted" if config.ban_s is None else f"for {config.ban_s:.0f} s"
            raise Refused(f"this address is banned {until}: too many wrong keys", code="address_banned", close=True)

    def is_banned(self, client: str) -> bool:
        """Whether that address has sent too many wrong keys."""
        if not self._tries:  # the common case costs no lock
            return False
        config, who = self._config, counted(client)
        with self._lock:
            count, last = self._tries.get(who, (0, 0.0))
            if count >= config.max_tries and config.ban_s is not None and self._clock() - last >= config.ban_s:
                del self._tries[who]
                count = 0
        return count >= config.max_tries

    def wrong_key(self, client: str) -> bool:
        """Counts; True when this one brought the ban."""
        if within(client, self._config.whitelist):
            return False
        who = counted(client)
        with self._lock:
            count = self._tries.pop(who, (0, 0.0))[0] + 1
            self._tries[who] = (count, self._clock())
            while len(self._tries) > TRACKED:
                self._tries.popitem(last=False)
        if count == self._config.max_tries:
            self._tell(client)
        return count == self._config.max_tries

    def _tell(self, client: str) -> None:
        with self._lock:
            Gate.bans += 1
        tries, ban_s = self._config.max_tries, self._config.ban_s
        until = "until restart" if ban_s is None else f"for {ban_s:.0f} s"
        logger.warning("%s is banned %s: %d wrong keys (cerbere.ban_s, cerbere.whitelist)", client, until, tries)

    def right_key(self, client: str) -> None:
        """A right key clears the count."""
        if self._tries:
            with self._lock:
                self._tries.pop(counted(client), None)


@lru_cache(maxsize=4096)
def counted(client: str) -> str:
    """What an address counts as: an IPv6 one as its /64."""
    found = address(client)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found or client)
