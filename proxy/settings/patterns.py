"""Regular expressions of the configuration: which of them are refused, and why."""

from __future__ import annotations

import re
import time

PROBED, PROBE_S = (12, 16, 20, 24), 0.02  # characters of a probe, and how long one may take


def fault_of(text: str) -> str | None:
    """What is wrong with a pattern, if anything: it is none, it matches nothing at all, it may take forever."""
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as fault:
        return f"is no regular expression: {fault}"
    if pattern.search(""):
        return "matches the empty text, and so everything"
    for letter in {*text[:200], *"a0 "}:
        for length in PROBED:
            began = time.thread_time()
            pattern.search(letter * length + "\0")
            if time.thread_time() - began > PROBE_S:
                return "takes exponentially long on some texts: do not repeat what is repeated already, as in (a+)+"
    return None
