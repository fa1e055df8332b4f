"""What a translation loses: a field is lost when removing it changes nothing that is sent. Mappers are pure, so this is exact.

It costs as many runs of the mappers as a request has fields. So it is done once per request shape (which fields there are,
not what they hold), in a thread of its own, and the answer of the next call of that shape tells it; with `on_loss: reject`
it is done before anything is sent.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

from proxy.errors import BadRequest, ProxyError

logger = logging.getLogger(__name__)

Mapped = Callable[[Any], Any]  # the request chain of one endpoint
Path = tuple[str | int, ...]
# what says what something is, and what the proxy itself sees to
NAMING = frozenset({"type", "role", "object", "model", "stream", "stream_options"})
NEUTRAL = {"n": 1, "temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "candidateCount": 1}
OPAQUE = frozenset({"parameters", "input_schema", "schema", "input", "args", "parametersJsonSchema", "responseSchema"})
NESTS = (dict, list)
DEPTH = 6  # deeper than this a value counts as one
SHAPES = 2000  # remembered at most
LOOKED_S = 2.0  # a body that takes longer to look through has more fields than any client's
WAITING = 64  # shapes in the queue at most: a shape that finds it full is looked at when it comes again


class Ledger:
    """What each shape of request loses at each endpoint. Thread-safe: the lock guards all of it.

    The thread ends when nothing waits, so that a ledger of before a reload leaves none behind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[int, int], tuple[str, ...] | None] = OrderedDict()  # None: being looked at
        self._queue: deque[tuple[tuple[int, int], Any, Mapped, str]] = deque()
        self._works = False

    def lost(self, endpoint: object, name: str, body: Any, mapped: Mapped, now: bool = False) -> tuple[str, ...]:
        """The lost paths, as far as they are known; `now` waits for the truth. `name` is for the log."""
        key = (id(endpoint), shape(body))
        with self._lock:
            seen = key in self._known
            known = self._known.get(key)
        if known is not None:
            return known
        if now:
            return self._learn(key, body, mapped, name)
        if not seen:
            self._ask(key, body, mapped, name)
        return ()

    def _ask(self, key: tuple[int, int], body: Any, mapped: Mapped, name: str) -> None:
        with self._lock:
            if len(self._queue) >= WAITING:
                return
            self._queue.append((key, body, mapped, name))
            self._known[key] = None
            if self._works:
                return
            self._works = True
        threading.Thread(target=self._work, name="losses", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._works = False
                    return
                key, body, mapped, name = self._queue.popleft()
            try:
                self._learn(key, body, mapped, name)
            except BadRequest as fault:
                logger.warning("%s: %s", name, fault)
            except Exception:
                logger.exception("what %s loses could not be found out", name)

    def _learn(self, key: tuple[int, int], body: Any, mapped: Mapped, name: str) -> tuple[str, ...]:
        lost = tuple(lost_paths(body, mapped))
        with self._lock:
            self._known[key] = lost
            while len(self._known) > SHAPES:
                self._known.popitem(last=False)
        if lost:
            logger.warning("%s loses %s", name, listed(lost))
        return lost


def listed(lost: tuple[str, ...]) -> str:
    """The first of the paths, for a log line or a header."""
    return ", ".join(path[:100] for path in lost[:30]) + (", …" if len(lost) > 30 else "")


def lost_paths(body: Any, mapped: Mapped) -> Iterator[str]:
    """The outermost paths whose removal changes nothing that `mapped` gives: `$.logit_bias`, `$.messages[*].name`."""
    until = time.monotonic() + LOOKED_S
    whole = _sent(mapped, body)
    if whole is None:
        return
    told: set[str] = set()
    stack: list[Path] = [(name,) for name in body] if isinstance(body, dict) else []
    while stack:
        if time.monotonic() > until:
            raise BadRequest("the request has too many fields to find out which of them are lost")
        path = stack.pop(0)
        value = _at(body, path)
        name = _shown(path)
        if path[-1] in NAMING or value in (None, "", False, [], {}) or NEUTRAL.get(str(path[-1])) == value or name in told:
            continue
        if _sent(mapped, _without(body, path)) == whole:
            told.add(name)
            yield name
        elif len(path) < DEPTH:
            stack += [(*path, step) for step in _members(value)]


def _sent(mapped: Mapped, body: Any) -> str | None:
    """What would be sent, None when the mappers refuse, or give no JSON: what they cannot do without is not lost."""
    try:
        return json.dumps(mapped(body), sort_keys=True)
    except (ProxyError, TypeError, ValueError, RecursionError):
        return None


def _members(value: Any) -> list[str | int]:
    """A dict's names; of a list's members the first of each shape."""
    if isinstance(value, dict):
        return list(value)
    if not isinstance(value, list):
        return []
    firsts: dict[int, int] = {}
    for place, member in enumerate(value):
        if isinstance(member, dict | list):
            firsts.setdefault(shape(member), place)
    return list(firsts.values())


def _at(body: Any, path: Path) -> Any:
    for step in path:
        body = body[step]
    return body


def _without(body: Any, path: Path) -> Any:
    """A copy with one path gone; what does not lie on the path is shared."""
    step, rest = path[0], path[1:]
    if isinstance(body, list):
        assert isinstance(step, int)
        return [*body[:step], *([_without(body[step], rest)] if rest else []), *body[step + 1 :]]
    return {name: _without(value, rest) if name == step else value for name, value in body.items() if rest or name != step}


def _shown(path: Path) -> str:
    return "$" + "".join("[*]" if isinstance(step, int) else f".{step}" for step in path)


def shape(value: Any, depth: int = DEPTH) -> int:
    """Which fields there are, as a number: equal for requests that differ in what they say only. A schema counts as one."""
    if not depth or not isinstance(value, NESTS):
        return 0
    if isinstance(value, list):
        return hash(frozenset([shape(member, depth - 1) for member in value]))
    kind = value.get("type") or value.get("role")
    inner: list[Any] = [(None, kind if isinstance(kind, str) else "")]
    for name, member in value.items():
        if isinstance(member, NESTS) and name not in OPAQUE:
            inner.append((name, shape(member, depth - 1)))
        else:
            inner.append(name if member else (name, None))  # what is empty is not looked at: see `lost_paths`
    return hash(frozenset(inner))
