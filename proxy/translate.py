"""Running the chains: a client's JSON through the request mappers, a backend's through the answer or stream mappers.

A mapper is pure and gets `(ip, cfg)`. A fault in one names the mapper and the target; nothing of Python reaches a client.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from proxy.config import Entry, Target
from proxy.dialects import Event, load, names, route_of
from proxy.errors import BackendError, BadRequest, MapperError, ProxyError

OF_ANSWER = re.compile(r"[a-z]+(?:Ans|Stream)(\w+?)to")  # the mapper of an answer, and the API that it reads


class Step(NamedTuple):
    """A function of a chain, and the name it has in the configuration."""

    name: str
    function: Callable[..., Any]


@dataclass(frozen=True)
class Endpoint:
    """An entry with its names looked up: what a call runs. `cfg` is what its functions get whatever the call."""

    target: Target
    entry: Entry
    url: str  # the backend's, may hold {placeholders} and a final *
    stream_url: str
    inward: tuple[Step, ...] = ()
    outward: tuple[Step, ...] = ()
    stream: tuple[Step, ...] = ()
    answer: Step | None = None
    before_url: str = ""  # of a call that comes first
    before: tuple[Step, ...] = ()  # what is asked there, and what its answer makes of the body
    cfg: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False  # a function of the user's is among them: nobody knows how long it takes

    @cached_property
    def mapped(self) -> bool:
        """Whether anything but bytes is relayed."""
        return bool(self.inward or self.outward or self.stream or self.answer)

    @property
    def api(self) -> str:
        """The API that the backend speaks: its dialect, else what the first mapper of its answers is named after."""
        if self.target.dialect:
            return self.target.dialect
        for step in (*self.outward[:1], *self.stream[:1]):
            match = OF_ANSWER.match(step.name)
            if match and match[1].lower() in names():
                return match[1].lower()
        return "openai"


class Translation:
    """One call's way through its endpoint's chains. It remembers what each request mapper got, for its mirror image."""

    def __init__(self, endpoint: Endpoint, call_id: str, front: str, method: str, path: str, now: int | None = None) -> None:
        route = route_of(front, method, path)
        self.endpoint = endpoint
        self.front = load(front)
        self.kind = route.kind if route else None
        self._path_streams = route.stream if route else None
        self._got: list[Any] = []  # by the inward steps
        self._sent: Any = None  # what the last one made
        self._cfg: dict[str, Any] = {**endpoint.cfg, "id": call_id, "now": int(time.time()) if now is None else now}
        self._cfg.update(kind=self.kind, stream=False, lost=self._tell_loss)
        self.told: list[str] = []  # losses that mappers told by themselves

    def wants_stream(self, body: Any) -> bool:
        """Whether the client asks for a stream: its path says so, else its body, else what its API takes for granted."""
        if self.kind not in ("chat", "text", None) or self._path_streams is not None:
            return bool(self._path_streams)
        asked = body.get("stream") if isinstance(body, dict) else None
        return self.front.stream_default if asked is None else asked is True

    @property
    def unfolds(self) -> bool:
        """A streaming client behind mappers without a stream: the backend is asked for the whole answer."""
        return bool(self.endpoint.outward) and not self.endpoint.stream

    def request(self, body: Any, stream: bool, params: Mapping[str, str], query: str, model: str | None) -> Any:
        """A client's body → the backend's. `model`: what it is called there. Raises BadRequest for what cannot be mapped."""
        self._cfg.update(stream=stream and not self.unfolds, params=dict(params), query=query)
        if model:
            self._cfg["model"] = model
        if stream and self.unfolds and isinstance(body, dict):
            body = {**body, "stream": False}
        self._got = []
        self._sent = self._through(body, self._cfg, self._got)
        return self._sent

    def pure(self, body: Any) -> Any:
        """What the request mappers make of another body, in this call's circumstances; nothing is remembered."""
        return self._through(body, {**self._cfg, "lost": _unheard}, [])

    def _through(self, body: Any, cfg: Mapping[str, Any], got: list[Any]) -> Any:
        """The chain inward; `got` takes what each step is given."""
        policy, model = self.endpoint.target.system_policy, cfg.get("model")
        for step in self.endpoint.inward:
            if policy != "inline" and step.name.startswith("chatReqOpenAIto"):  # the hub's request goes on to the backend's API
                from proxy.dialects._system import policed

                body = policed(body, policy)
            got.append(body)
            body = self._run(step, body, cfg, asked=True)
            if model and isinstance(body, dict) and "model" not in body and step.name.endswith("toOpenAI"):
                body = {"model": model, **body}  # clients of TGI and llama.cpp name none, where most backends want one
        return body

    def _tell_loss(self, path: str, why: str = "") -> None:
        path = "$." + re.sub(r"\[\d+\]", "[*]", path.removeprefix("$."))
        if path not in self.told:
            self.told.append(path)

    def before(self, body: Any) -> Any:
        """What the endpoint's first call asks, for a body whose prompt the backend writes itself."""
        return self._run(self.endpoint.before[0], body, self._cfg, asked=True)

    def after(self, body: Any, answer: Any) -> Any:
        """The first call's answer → the body that is sent at last."""
        return self._run(self.endpoint.before[1], answer, {**self._cfg, "request": body}, asked=False)

    def answer(self, ip: Any) -> Any:
        """A backend's answer → the client's. Raises MapperError, BackendError."""
        steps = self.endpoint.outward
        for place, step in enumerate(steps):
            ip = self._run(step, ip, self._cfg_back(place, len(steps)), asked=False)
        return ip

    def at_once(self, body: Any) -> Any:
        """The answer to a body that asks no backend for anything, None for any other."""
        return self.front.at_once(body, self._cfg) if self.front.at_once else None

    def own_answer(self, body: Any) -> Any:
        """What the endpoint's `answer` function says without a backend, through the chain outward."""
        assert self.endpoint.answer
        return self.answer(self._run(self.endpoint.answer, body, self._cfg_front(), asked=True))

    def events(self, events: Iterable[Event]) -> Iterator[Event]:
        """A backend's events → the client's, still unchecked."""
        for place, step in enumerate(self.endpoint.stream):
            events = self._guarded(step, events, self._cfg_back(place, len(self.endpoint.stream)))
        return iter(events)

    @property
    def has_grammar(self) -> bool:
        """Whether the stream is one of the front's API; under a path of the user's own it may be anything."""
        return self.kind in ("chat", "text")

    def checked(self, events: Iterable[Event]) -> Iterator[Event]:
        """The front's grammar, where the stream has one; it ends a broken stream with that API's error event."""
        chain = " → ".join([step.name for step in self.endpoint.stream])
        return self.front.grammar(events, {**self._cfg_front(), "chain": chain}) if self.has_grammar else iter(events)

    def unfolded(self, answer: Any) -> Iterator[Event]:
        """A whole answer in the front's shape → the same as the front's stream."""
        from proxy.folding import unfolded

        return unfolded(self.front, self.kind, answer, self._cfg_front())

    def _cfg_back(self, place: int, length: int) -> dict[str, Any]:
        """cfg of step `place` of `length` outward: `request` is what its mirror image got, `made` what that made of it.

        The last step is the client's API's, whose mirror image is the first step inward.
        """
        if not self._got:
            return {**self._cfg, "request": {}}
        mirror = min(length - 1 - place, len(self._got) - 1)
        made = self._got[mirror + 1] if mirror + 1 < len(self._got) else self._sent
        return {**self._cfg, "request": self._got[mirror], "made": made}

    def _cfg_front(self) -> dict[str, Any]:
        """cfg of what belongs to the client's API: `request` is the client's body."""
        return self._cfg_back(0, 1)

    def _run(self, step: Step, ip: Any, cfg: Mapping[str, Any], asked: bool) -> Any:
        try:
            return step.function(ip, cfg)
        except ProxyError:
            raise
        except Exception as fault:
            raise self.fault([step], fault, asked) from fault

    def _guarded(self, step: Step, events: Iterable[Event], cfg: Mapping[str, Any]) -> Iterator[Event]:
        try:
            yield from step.function(events, cfg)
        except ProxyError:
            raise
        except Exception as fault:
            raise self.fault([step], fault, asked=False) from fault

    def fault(self, steps: Sequence[Step], fault: Exception, asked: bool) -> ProxyError:
        """A mapper's fault as ours, naming the last of `steps`; `asked`: on the way in."""
        mapper = f"mapper {steps[-1].name!r}" if steps else "the translation"
        where = f"{mapper} of target {self.endpoint.target.name!r}"
        missing = fault.args[0] if isinstance(fault, KeyError) and fault.args and isinstance(fault.args[0], str) else None
        what = f"the field {missing!r} is missing" if missing else f"{type(fault).__name__}: {fault}"
        if asked:
            return BadRequest(f"{where} cannot map the request: {what}", param=missing, code="mapper_failed")
        return MapperError(f"{where} cannot map the backend's answer: {what}", code="mapper_failed")


def _unheard(path: str, why: str = "") -> None:
    """A loss that was told already."""


def facts_of(status: int, body: Any, api: str) -> BackendError:
    """A backend's error answer as facts, through its own dialect."""
    error = load(api).parse_error(status, body)
    if not error.message:
        error.message = f"the backend answered {status}"
    return error
