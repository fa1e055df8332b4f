"""The configuration of the cache: `cache:` itself, and what a target says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.config import CacheRule, CacheStore
from proxy.settings.kinds import BYTES, FLAG, SECONDS, Field, section, text

STORE = r"memory|state|sqlite:[^\x00-\x1f\x7f]+"
OF_TARGET: dict[str, Field] = {
    "cache": (
        section(
            {
                "default": (FLAG, "Whether a request is cached that does not say `caching`"),
                "ttl_s": (SECONDS, "Seconds that an answer is given again"),
            }
        ),
        "Answers that are given again",
    )
}
SECTIONS: dict[str, Field] = {
    "cache": (
        section(
            {
                "store": (text(STORE, "memory, state or sqlite:FILE"), "Where answers are kept"),
                "max_bytes": (BYTES, "All of them together; the least recently used go first"),
            }
        ),
        "Where the targets' caches are",
    )
}


def store_of(given: Mapping[str, Any]) -> CacheStore:
    """What `cache:` says."""
    return CacheStore(**given)


def rule_of(target: Mapping[str, Any]) -> CacheRule | None:
    """What a target says of it; None: it has no cache."""
    return CacheRule(**target["cache"]) if "cache" in target else None
