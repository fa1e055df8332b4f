"""Which conversation a call belongs to: told by what it repeats.

A client sends the whole conversation again with each turn. So the digest of a request's messages and its answer is left as a
mark, and a later request of the same key whose messages begin with just those goes on with it. System messages do not count
there, as clients put the time of day into them. The same request again is the same conversation told once more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from proxy import wire
from proxy.records.sql import AGAIN

LOOKED_BACK = 8  # answers in a request that may be the one that was given, the last ones
TITLE = 50  # characters


def marks(key_name: str | None, request: Any, response: Any) -> tuple[Sequence[str], Sequence[str]]:
    """`follows` and `leaves` of a chat's row; none where it has no messages."""
    messages = request.get("messages") if isinstance(request, dict) else None
    messages = [message for message in messages or () if isinstance(message, dict)] if isinstance(messages, list) else []
    if not messages:
        return (), ()
    chain = hashlib.sha256(f"{key_name}\0".encode())
    whole = chain.copy()
    answered: list[str] = []
    for message in messages:
        said = _said(message)
        whole.update(said)
        if message.get("role") not in ("system", "developer"):
            chain.update(said)
        if message.get("role") == "assistant":
            answered.append(chain.hexdigest()[:32])
    again = AGAIN + whole.hexdigest()[:32]
    leaves = [again]
    for choice in response.get("choices") or () if isinstance(response, dict) else ():
        if isinstance(choice, dict) and isinstance(choice.get("message"), dict):
            given = chain.copy()
            given.update(_said({**choice["message"], "role": "assistant"}))
            leaves.append(given.hexdigest()[:32])
    return (*reversed(answered[-LOOKED_BACK:]), again), leaves


def _said(message: dict[str, Any]) -> bytes:
    """What a message says, however its client writes that: role, text, calls of tools."""
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            calls.append([function.get("name"), _arguments(function.get("arguments"))])
    return wire.dumps([message.get("role"), text_of(message.get("content")), calls])


def _arguments(text: Any) -> str:
    """However a client writes its JSON."""
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return str(text)


def text_of(content: Any) -> str:
    """A message's content as text; what is no text in it, as JSON."""
    if not isinstance(content, list):
        return content.strip() if isinstance(content, str) else ""
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) else part
        parts.append(text if isinstance(text, str) else json.dumps(part, sort_keys=True, default=str))
    return "\n".join(parts).strip()


def title_of(request: Any) -> str | None:
    """The beginning of the first thing that the user said."""
    messages = request.get("messages") if isinstance(request, dict) else None
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.get("role") == "user":
            return " ".join(text_of(message.get("content"))[: 4 * TITLE].split())[:TITLE].strip() or None
    return None
