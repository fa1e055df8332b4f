"""A cassette keeps one mapped call whole: the four bodies byte for byte, and all that its mappers knew. Secrets never.

A call is overheard while it runs, which costs a list of the pieces that pass; one thread writes the file after its end. What
cannot be cleaned of secrets, or is larger than LIMIT, is not kept, and the log says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import threading
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import requests

from proxy import wire
from proxy.answers import field_of, kind_of, overhear
from proxy.call import Call
from proxy.config import Config
from proxy.errors import ConfigError
from proxy.http1 import Fields
from proxy.records.secrets import Cleaner, Unfit, cut_at
from proxy.translate import Endpoint

if TYPE_CHECKING:
    from proxy.relay import Relay

logger = logging.getLogger(__name__)

Json = dict[str, Any]
FORM = 1  # of the file; a reader refuses others
LIMIT = 1024 * 1024  # bytes of a call's four bodies; more is not kept
WAITING = 64  # calls that have ended and are not written yet, at most
MOST = 1000  # files in the folder; then it is full
CLOSING_S = 5.0  # the longest wait for what is not written yet
KEPT_UP = ("content-type", "target", "anthropic-version", "anthropic-beta")  # of the client's headers
KEPT_BACK = ("content-type", "content-encoding", "x-request-id", "request-id", "retry-after", "x-should-retry")
SLICE = (  # of a target: what its mappers, urls and headers depend on
    *("url", "dialect", "auth", "model", "route", "prompter", "template", "mapping"),
    *("on_loss", "system_policy", "azure", "aws"),
)


@dataclass
class Met:
    """One request to a backend, and what it answered so far."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    status: int
    fields: Fields
    pieces: list[bytes] = field(default_factory=list)


class Tape:
    """What passes in one call. `full`: it was more than `limit` bytes, and nothing is left of it."""

    def __init__(self, relay: Relay, targets: tuple[str, ...] = (), limit: int = LIMIT) -> None:
        self.relay, self._targets = relay, targets
        self.endpoint: Endpoint | None = None  # the last one that was asked
        self.met: list[Met] = []
        self.told: list[bytes] = []  # to the client
        self.full, self._left = False, limit
        relay.meets = (*relay.meets, self.meet)

    def meet(self, endpoint: Endpoint, asked: requests.PreparedRequest, answer: requests.Response) -> None:
        """A backend answers. What an earlier attempt met is forgotten."""
        wanted = not self._targets or endpoint.target.name in self._targets
        if not endpoint.mapped or not wanted or self.relay.reply.personal:  # a replay has nobody's key
            return
        raw = cast(Any, answer.raw)
        first = bool(endpoint.before_url) and asked.url == endpoint.before_url
        if first or not (self.met and self.met[-1].url == endpoint.before_url):
            self.met.clear()
        if self.endpoint is None:
            self.relay.reply.heard = (*self.relay.reply.heard, self._kept(self.told))
        self.endpoint = endpoint
        body = asked.body or b""
        sent = body.encode() if isinstance(body, str) else body
        made = Met(asked.method or "", asked.url or "", dict(asked.headers or {}), sent, answer.status_code, list(raw.fields))
        self.met.append(made)
        self._count(len(sent))
        overhear(raw, self._kept(made.pieces))

    def _kept(self, pieces: list[bytes]) -> Callable[[bytes], None]:
        def hear(piece: bytes) -> None:
            if self._count(len(piece)):
                pieces.append(bytes(piece))

        return hear

    def _count(self, size: int) -> bool:
        self._left -= size
        if self._left < 0:
            self.full = True
            self.met, self.told = [], []
        return not self.full


# --- bodies in a file


def packed(pieces: Iterable[bytes]) -> Json:
    """A body as JSON: its text, or base64, and the places in its bytes where one piece ended and the next began."""
    parts = list(pieces)
    body, cuts, at = b"".join(parts), [], 0
    for part in parts[:-1]:
        at += len(part)
        cuts.append(at)
    try:
        told: Json = {"text": body.decode()}
    except UnicodeDecodeError:
        told = {"base64": b64encode(body).decode()}
    return {**told, "cuts": cuts} if cuts else told


def unpacked(told: Json) -> list[bytes]:
    """The pieces of a body that was packed."""
    return cut_at(told["text"].encode() if "text" in told else b64decode(told["base64"]), told.get("cuts", []))


# --- the file


def made(tape: Tape, call: Call, cleaner: Cleaner, config: Json) -> Json:
    """The cassette of a call that has ended. Raises Unfit."""
    if tape.full:
        raise Unfit(f"its bodies are larger than {LIMIT} bytes")
    request = tape.relay.request
    patterns = cleaner.patterns(request.headers)
    if any(field_of(met.fields, "content-encoding") not in (None, "identity") for met in tape.met):
        raise Unfit("the backend's answer is compressed: nobody can look for secrets in it")
    sent_up = cleaner.headers([(name, request.headers[name]) for name in KEPT_UP if name in request.headers], patterns)
    return {
        "cassette": FORM,
        "id": call.id,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(call.now)),
        "now": call.now,
        "target": call.target,
        "front": call.front,
        "client": {
            "method": call.method,
            "path": call.path,
            "query": cleaner.line("?" + call.query, patterns)[1:],
            "headers": sent_up,
            "body": packed(cleaner.body([tape.relay.read()], "", patterns)),
        },
        "backend": [_exchange(met, cleaner, patterns) for met in tape.met],
        "reply": {"status": call.status, "body": _reply(tape, call, cleaner, patterns)},
        "config": config,
        "versions": versions(),
    }


def _exchange(met: Met, cleaner: Cleaner, patterns: list[re.Pattern[str]]) -> Json:
    kept = [(name, value) for name, value in met.fields if name in KEPT_BACK or name.startswith("x-ratelimit-")]
    return {
        "method": met.method,
        "url": cleaner.line(met.url, patterns),
        "headers": cleaner.headers(sorted(met.headers.items()), patterns),
        "body": packed(cleaner.body([met.body], "", patterns)),
        "status": met.status,
        "fields": cleaner.headers(kept, patterns),
        "answer": packed(cleaner.body(met.pieces, kind_of(met.fields), patterns)),
    }


def _reply(tape: Tape, call: Call, cleaner: Cleaner, patterns: list[re.Pattern[str]]) -> Json:
    from proxy.dialects import load

    framing = load(call.front).framing(call.query)
    kind = wire.CONTENT_TYPES[framing].partition(";")[0] if call.streams and call.status < 400 else ""
    return packed(cleaner.body(tape.told, kind, patterns))


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """What the program was: a digest of its own files, as it may be any commit, and what it runs on."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].glob("**/*.py")):
        digest.update(file.read_bytes())
    own = {"proxy": digest.hexdigest()[:12], "python": platform.python_version(), "requests": requests.__version__}
    return {**own, "system": platform.system()}


def load(path: Path) -> Json:
    """A cassette from its file. Raises ConfigError when it is none."""
    try:
        told = json.loads(path.read_bytes())
    except (ValueError, OSError) as fault:
        raise ConfigError([f"{path} is no cassette: {getattr(fault, 'strerror', None) or fault}"]) from None
    if not isinstance(told, dict) or told.get("cassette") != FORM:
        raise ConfigError([f"{path} is no cassette of form {FORM}"])
    return told


def keep(path: Path, cassette: Json) -> None:
    """A new file. Raises Unfit when its folder is full, OSError."""
    if path.parent.is_dir() and not path.exists() and sum(1 for _ in path.parent.iterdir()) >= MOST:
        raise Unfit(f"{path.parent} holds {MOST} files already")
    write(path, cassette)


def write(path: Path, cassette: Json) -> None:
    """The file, whole or not at all, for its owner only. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(cassette, file, ensure_ascii=False, indent=1)
        file.write("\n")
    os.replace(part, path)


def slices(config: Config) -> dict[str, Json]:
    """For each target the part of the configuration that its mappers depend on, as a configuration of its own, without keys."""
    from proxy.settings.source import read_yaml

    data = read_yaml(config.file).data if config.file else {}
    return {name: _slice(data, name, config) for name in config.targets}


def _slice(data: Json, name: str, config: Config) -> Json:
    told = data.get("targets", {}).get(name) or {}
    target = {key: told[key] for key in SLICE if key in told}
    rules = {rule.pattern: data["models"][rule.pattern] for rule in config.models if rule.target == name}
    out: Json = {"targets": {"default": name, name: target}}
    out |= {"models": {pattern: rule if isinstance(rule, dict) else name for pattern, rule in rules.items()}} if rules else {}
    return {**out, **({"templates": data["templates"]} if data.get("templates") else {})}


class Cassettes:
    """`records.cassettes`. The lock guards the queue, and who works on it; `dropped` counts what was not kept.

    The thread ends when nothing waits, so that a generation of before a reload leaves none behind.
    """

    def __init__(self, config: Config) -> None:
        assert config.records
        assert config.records.cassettes
        self._kept = config.records.cassettes
        self._cleaner = Cleaner(config, self._kept.redact)
        self._slices = slices(config)
        self._running: dict[str, Tape] = {}  # by call; each is put in and taken out by its own thread
        self._queue: deque[tuple[Tape, Call]] = deque()
        self._works = False
        self._idle = threading.Condition()
        self.dropped = 0

    def begin(self, relay: Relay) -> None:
        """Listens to a call."""
        self._running[relay.call.id] = Tape(relay, self._kept.targets)

    def end(self, call: Call) -> None:
        """Has a call written that went through mappers to a backend. One whose client left is half a call, and is not kept."""
        tape = self._running.pop(call.id, None)
        if tape is None or tape.endpoint is None or call.error_source == "client":
            return
        with self._idle:
            if len(self._queue) >= WAITING:
                self.dropped += 1
                return
            self._queue.append((tape, call))
            if self._works:
                return
            self._works = True
        threading.Thread(target=self._work, name="cassettes", daemon=True).start()

    def close(self) -> None:
        """Waits until what has ended is written."""
        with self._idle:
            self._idle.wait_for(lambda: not self._works, CLOSING_S)

    def _work(self) -> None:
        while True:
            with self._idle:
                if not self._queue:
                    self._works = False
                    self._idle.notify_all()
                    return
                tape, call = self._queue.popleft()
            try:
                self._write(tape, call)
            except (Unfit, OSError) as why:
                self.dropped += 1
                logger.warning("%s: no cassette: %s (%d were not kept)", call.id, why, self.dropped)
            except Exception:
                self.dropped += 1
                logger.exception("%s: no cassette", call.id)

    def _write(self, tape: Tape, call: Call) -> None:
        cassette = made(tape, call, self._cleaner, self._slices[call.target or ""])
        keep(Path(self._kept.folder, f"{call.id}.json"), cassette)
