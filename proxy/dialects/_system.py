"""System messages in mid-conversation, which some backends and most chat templates refuse: a target's policy for them."""

from __future__ import annotations

from typing import Any

SYSTEM = ("system", "developer")


def policed(request: Any, policy: str) -> Any:
    """A hub chat request with its later system messages joined to the first ones (hoist) or as the user's (user).

    In, out: a chat request; `inline`, and whatever is no list of messages, stays as it is.
    """
    messages = request.get("messages") if isinstance(request, dict) else None
    if policy == "inline" or not isinstance(messages, list):
        return request
    first = next((place for place, message in enumerate(messages) if not _is_system(message)), len(messages))
    later = [message for message in messages[first:] if _is_system(message)]
    if not later:
        return request
    if policy == "hoist":
        turns = [message for message in messages[first:] if not _is_system(message)]
        return {**request, "messages": [*messages[:first], *later, *turns]}
    asked = [{**message, "role": "user"} if _is_system(message) else message for message in messages[first:]]
    return {**request, "messages": [*messages[:first], *asked]}


def _is_system(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in SYSTEM
