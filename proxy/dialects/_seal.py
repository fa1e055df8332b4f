"""What goes to a client in an opaque field of its API, so that it comes back for the backend that it is of.

Gemini signs its tool calls and refuses the next turn when a signature is gone. Messages and Responses have no place for that
but fields that their clients hand back unread: `data` of a redacted_thinking block, `encrypted_content` of a reasoning item.
What stands there in the proxy's name begins with `SEAL`. A backend of these APIs must never get it: it would refuse it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from proxy import wire
from proxy.dialects import load
from proxy.dialects._hub import Json, compact

SEAL = "mooltiproxy-1."  # a new number when what is sealed changes its shape
SEALED = SEAL.encode()
SIGNED = "thought_signature"  # the type of a sealed signature
TEXT = ""  # stands for the turn's text where a call's id would be


def seal(value: Json) -> str:
    """An object as opaque text: a prefix and base64url of its JSON."""
    return SEAL + base64.urlsafe_b64encode(compact(value).encode("utf-8", "surrogatepass")).decode()


def unseal(sealed: Any) -> Json | None:
    """What `seal` wrote; None for anything else."""
    if not isinstance(sealed, str) or not sealed.startswith(SEAL):
        return None
    try:
        value = json.loads(base64.urlsafe_b64decode(sealed[len(SEAL) :]).decode("utf-8", "surrogatepass"))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def is_sealed(item: Mapping[str, Any]) -> bool:
    """Whether a thinking block or a reasoning item holds what only this proxy can read."""
    found = (item.get(name) for name in ("signature", "data", "encrypted_content"))
    return any(isinstance(value, str) and value.startswith(SEAL) for value in found)


def unsealed(front: str, raw: bytes) -> bytes:
    """A client's body for a backend of its own API, which refuses what was sealed for another's. Raises BadRequest."""
    without = load(front).unsealed
    return wire.dumps(without(wire.loads_request(raw))) if without else raw


# --- Gemini's signatures: in the hub they stand where Google's own OpenAI endpoint has them


def signature_of(item: Mapping[str, Any]) -> str:
    """The signature of a tool call, a message or a delta; empty without one."""
    extra = item.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) else ""


def signed(signature: str) -> Json:
    """The field with that signature, none without one."""
    return {"extra_content": {"google": {"thought_signature": signature}}} if signature else {}


def seal_signature(signature: str, of: str = TEXT) -> str:
    """The signature `of` a call, by the id that the client knows it by, or of the turn's text."""
    return seal({"type": SIGNED, "of": of, "signature": signature})


def unseal_signature(sealed: Any) -> dict[str, str]:
    """What `seal_signature` wrote, as {of: signature}; empty for anything else."""
    value = unseal(sealed) or {}
    of, signature = value.get("of"), value.get("signature")
    return {of: signature} if value.get("type") == SIGNED and isinstance(of, str) and isinstance(signature, str) else {}


def with_signatures(message: Json, signatures: Mapping[str, str]) -> Json:
    """An assistant's message with its own among the signatures that a client handed back: a call's goes by its id."""
    out = {**message, **signed(signatures.get(TEXT, ""))}
    if "tool_calls" in out:
        out["tool_calls"] = [{**call, **signed(signatures.get(call["id"], ""))} for call in out["tool_calls"]]
    return out


def signatures_before(call: Json, call_id: str, held: str) -> list[str]:
    """What is sealed before a call that the client knows as `call_id`: its own signature, behind `held`, that of the text.

    The text's goes with the call that follows it. Alone it would end the turn, where clients look for the answer, and Gemini
    wants back only those of calls.
    """
    told = ((held, TEXT), (signature_of(call), call_id))
    return [seal_signature(signature, of) for signature, of in told if signature]
