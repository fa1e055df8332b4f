"""One key per person or app, beside the master key: who it is, what it may use, and which models a list shows it.

Only digests of keys are held. What a call was let in with is known to its thread until the next one, so that it never leaves
for a backend, in whatever header or query it stands.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from proxy import wire
from proxy.config import Key, Network
from proxy.errors import BackendError, Refused
from proxy.gates.cerbere import Gate
from proxy.gates.keys import CHALLENGE, Keys, offered
from proxy.gates.names import ByName

if TYPE_CHECKING:
    from proxy.gates.asked import Asked
    from proxy.http1 import Fields
    from proxy.reply import Reply

LISTS = ("models",)  # operations whose answer is a list of models


def digest(received: str) -> bytes:
    """SHA-256 of a key as a header carries it. Looking a digest up tells nothing by its time that helps to guess a key."""
    return hashlib.sha256(received.encode("latin-1", "replace")).digest()


class People(Keys):
    """The keys of `keys:`, and what Keys knows. Thread-safe."""

    def __init__(
        self,
        master_key: str,
        open_to: tuple[Network, ...],
        cerbere: Gate,
        people: Mapping[str, Key],
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(master_key, open_to, cerbere)
        self._by_digest = {key.digest: key for key in people.values()}
        self._models = {key.name: ByName(dict.fromkeys(key.models, True)) for key in people.values() if key.models}
        self._clock = clock
        self._master_alone = (self._as_received,) if self._as_received else ()
        self._own = threading.local()  # .hidden: what the thread's call was let in with, and the master key

    def admit(self, headers: Mapping[str, str], client: str) -> str:
        """The name of the person's key, else what Keys says. Raises Refused (401); an expired key says so, and does not count
        towards a ban."""
        keys = offered(headers)
        self._own.hidden = self._master_alone
        key = self._by_digest.get(digest(keys[0])) if keys and keys.count(keys[0]) == len(keys) else None
        if key is None:
            return super().admit(headers, client)
        self._own.hidden = (keys[0], *self._master_alone)
        if key.expires is not None and self._clock() >= key.expires:
            when = datetime.fromtimestamp(key.expires, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
            raise Refused(f"the key {key.name!r} expired on {when}", status=401, code="key_expired", headers=CHALLENGE)
        self._cerbere.right_key(client)
        return key.name

    def stands_in(self, text: str) -> bool:
        """Whether the master key, or the key that this thread's call came with, stands in a text."""
        hidden = getattr(self._own, "hidden", self._master_alone)
        for key in hidden:
            if key in text:
                return True
        return "%" in text and any(key in unquote(text, "latin-1") for key in hidden)

    def passed_through(self, headers: Mapping[str, str]) -> dict[str, str]:
        """See Keys; no key of anybody's is among them."""
        given = super().passed_through(headers)
        return {name: value for name, value in given.items() if digest(value.rpartition(" ")[2]) not in self._by_digest}

    def check(self, key: Key, asked: Asked) -> None:
        """Raises Refused (403) for a target or a model that the key may not use, and where no model can be read."""
        asked.call.tags = key.tags
        target = asked.choice.target
        if key.targets and target not in key.targets:
            raise Refused(f"the key {key.name!r} may not use the target {target!r}", code="target_not_allowed", param="target")
        allowed = self._models.get(key.name)
        if allowed is None:
            return
        if asked.kind in LISTS:
            asked.relay.reply = Shown(asked.relay.reply, allowed)  # type: ignore[assignment]
            asked.relay.request.headers["accept-encoding"] = "identity"
            return
        for model in asked.models or ("",):
            if model not in allowed:
                what = f"the model {model[:200]!r}" if model else "what names no model that the proxy can read"
                raise Refused(f"the key {key.name!r} may not use {what}", code="model_not_allowed", param="model")


class Shown:
    """A reply whose list of models is held until it is whole, and shows those that a key may use. All else is the Reply's."""

    def __init__(self, reply: Reply, allowed: ByName[bool]) -> None:
        self.__dict__.update(_reply=reply, _allowed=allowed, _parts=[], _head=(200, []))
        self.personal = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reply, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._reply, name, value)

    def json(self, status: int, value: Any, fields: Fields | None = None) -> None:
        """See Reply."""
        self._reply.json(status, self._shown(value) if status == 200 else value, fields)

    def whole(self, status: int, fields: Fields, body: bytes) -> None:
        """See Reply. Raises BackendError for a list that cannot be read, and so not be shortened."""
        if status == 200:
            try:
                body = wire.dumps(self._shown(wire.loads(body)))
            except ValueError:
                raise BackendError("the backend's list of models cannot be read") from None
        self._reply.whole(status, [field for field in fields if field[0] != "content-length"], body)

    def start(self, status: int, fields: Fields, length: int | None) -> None:
        """See Reply."""
        self.__dict__["_head"] = (status, fields)

    def piece(self, data: bytes) -> None:
        """See Reply."""
        self._parts.append(data)

    def pump(self, body: Any) -> bool:
        """See Reply."""
        return False

    def end(self) -> None:
        """See Reply."""
        status, fields = self._head
        self.whole(status, fields, b"".join(self._parts))

    def _shown(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise BackendError("the backend's list of models cannot be read")
        return {
            name: [item for item in items if self._is_allowed(item)] if isinstance(items, list) else items
            for name, items in value.items()
        }

    def _is_allowed(self, item: Any) -> bool:
        name = item.get("id") or item.get("name") or item.get("model") if isinstance(item, dict) else item
        return isinstance(name, str) and name.removeprefix("models/") in self._allowed
