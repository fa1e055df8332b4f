"""All four hops of one request as one JSON value: each mapper's work, where each field comes from, what is lost on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from requests.adapters import BaseAdapter

from proxy import dialects, wire
from proxy.answers import STREAMS, kind_of
from proxy.records.cassettes import Met
from proxy.records.secrets import Cleaner, events_of
from proxy.translate import OF_ANSWER, Endpoint, Step
from proxy.workbench.provenance import Path, leaves, provenance, shown
from proxy.workbench.rehearsal import Asked, Demo, Played, Script, Stage, rehearse

Json = dict[str, Any]
ANY_PLACE = re.compile(r"\[\d+\]")
FRAMINGS = {"text/event-stream": "sse", "application/x-ndjson": "ndjson", "application/json": "array"}


def api_of(endpoint: Endpoint) -> str | None:
    """The API that a backend is known to speak, by its dialect or by the mappers of its answers."""
    if endpoint.target.dialect:
        return endpoint.target.dialect
    named = [OF_ANSWER.match(step.name) for step in (*endpoint.outward[:1], *endpoint.stream[:1])]
    return next((match[1].lower() for match in named if match and match[1].lower() in dialects.names()), None)


def explained(stage: Stage, asked: Asked, backend: BaseAdapter | None) -> Json:
    """See the module. `backend` answers instead of the target's; None asks that one, once."""
    log: list[tuple[str, str, Any]] = []  # hop, mapper, what it gave
    found: list[Endpoint] = []

    def watch(endpoint: Endpoint) -> Endpoint:
        found.append(endpoint)
        target = endpoint.target if endpoint.target.on_loss == "reject" else replace(endpoint.target, on_loss="warn")
        return _watched(replace(endpoint, target=target), lambda *what: None if stage.losses.looks else log.append(what))

    stage.watch = watch
    played = rehearse(stage, asked, backend)
    stage.watch = lambda endpoint: replace(endpoint, target=replace(endpoint.target, on_loss="allow"))
    told = _told(played, asked, found[0] if found else None, log)
    if played.tape.met:
        told["provenance"] = _provenance(stage, asked, played, backend)
        told["unused"] = _unused(told["provenance"]["reply"], _value(played.tape.met[-1].pieces, played.tape.met[-1].fields))
    return _clean(told, Cleaner(stage.config), asked)


def _watched(endpoint: Endpoint, note: Callable[[str, str, Any], None]) -> Endpoint:
    """The endpoint, whose mappers write down what they give."""

    def whole(hop: str, step: Step) -> Step:
        def run(ip: Any, cfg: Mapping[str, Any]) -> Any:
            out = step.function(ip, cfg)
            note(hop, step.name, out)
            return out

        return step._replace(function=run)

    def streamed(step: Step, first: bool) -> Step:
        def noted(events: Iterable[Any], name: str) -> Iterator[Any]:
            for event in events:
                note("events", name, event)
                yield event

        def run(events: Iterable[Any], cfg: Mapping[str, Any]) -> Iterator[Any]:
            return noted(step.function(noted(events, "backend") if first else events, cfg), step.name)

        return step._replace(function=run)

    return replace(
        endpoint,
        inward=tuple(whole("inward", step) for step in endpoint.inward),
        before=tuple(whole("before", step) for step in endpoint.before),
        outward=tuple(whole("outward", step) for step in endpoint.outward),
        stream=tuple(streamed(step, place == 0) for place, step in enumerate(endpoint.stream)),
        answer=whole("outward", endpoint.answer) if endpoint.answer else None,
    )


def _told(played: Played, asked: Asked, endpoint: Endpoint | None, log: list[tuple[str, str, Any]]) -> Json:
    call, (line, fields) = played.call, played.head
    body = _json(asked.body)
    steps: Json = {hop: [{"step": name, "body": out} for at, name, out in log if at == hop] for hop in ("inward", "outward")}
    asked_first = [{"step": name, "body": out} for at, name, out in log if at == "before"]
    return {
        "target": call.target,
        **({"pool": played.pool} if played.pool else {}),
        "front": call.front,
        "endpoint": endpoint.entry.key if endpoint else None,
        "mapped": bool(endpoint and endpoint.mapped),
        "client": {"method": call.method, "path": call.path, "headers": dict(asked.headers), "body": body},
        **steps,
        **({"before": asked_first} if asked_first else {}),
        "upstream": [_exchange(met) for met in played.tape.met],
        "events": [{"from": name, "event": out} for at, name, out in log if at == "events"],
        "reply": {
            "status": call.status,
            "line": line,
            "headers": {name: value for name, value in fields if name != "x-request-id"},
            "body": _value(played.pieces, fields),
        },
        "attempts": list(call.attempts),
        "lost": list(call.lost),
        "error": call.error,
    }


def _exchange(met: Met) -> Json:
    asked = {"method": met.method, "url": met.url, "headers": dict(sorted(met.headers.items())), "body": _json(met.body)}
    return {**asked, "status": met.status, "kind": kind_of(met.fields), "answer": _value(met.pieces, met.fields)}


def _json(body: bytes) -> Any:
    try:
        return wire.loads(body) if body else None
    except ValueError:
        return body.decode("utf-8", "replace")


def _value(pieces: list[bytes], fields: list[tuple[str, str]]) -> Any:
    """A body decoded: a stream as the list of its events."""
    body, kind = b"".join(pieces), kind_of(fields)
    return events_of(body, kind) if kind in STREAMS else _json(body)


# --- where it comes from


def _provenance(stage: Stage, asked: Asked, played: Played, backend: BaseAdapter | None) -> Json:
    met = played.tape.met
    params = dialects.path_params(played.call.front, asked.method, asked.path)
    given = {"body": _json(asked.body), "path": dict(params)}
    answers = [(each.status, each.fields, each.pieces) for each in met]

    def changed(value: Json) -> Asked:
        path = asked.path
        for name, now in value["path"].items():
            path = path.replace(quote(params[name], safe="/:@-._~"), quote(now, safe="/:@-._~"), 1)
        return replace(asked, path=path, body=wire.dumps(value["body"]))

    def sent(value: Json) -> Any:
        """What goes up for another request. Where a first call makes the body, somebody has to answer that."""
        plays = backend if isinstance(backend, Demo) and len(met) > 1 else Script(answers)
        now = rehearse(stage, changed(value), plays).tape.met
        made = [{"url": each.url, "body": _json(each.body)} for each in now]
        return {"body": made[-1], **({"before": made[0]} if made[1:] else {})} if len(now) == len(met) else None

    def got(value: Json) -> Any:
        """What comes down for another answer, or for the same one to another request."""
        last = (met[-1].status, met[-1].fields, [_written(value["answer"], met[-1], played)])
        now = rehearse(stage, changed({"body": value["request"], "path": value["path"]}), Script([*answers[:-1], last]))
        return _value(now.pieces, now.head[1]) if now.call.error == played.call.error else None

    whole: Json = {"answer": _value(met[-1].pieces, met[-1].fields), "request": given["body"], "path": given["path"]}
    up = provenance(given, sent, _decides)
    down = provenance(whole, got, _decides) if kind_of(met[-1].fields) in FRAMINGS else {}
    return {
        "upstream": {
            _name(path[1:]) if path[0] == "body" else f"before: {_name(path[1:])}": from_ for path, from_ in _named(up)
        },
        "reply": {shown(path): sources for path, sources in _named(down)},
    }


def _decides(path: Path) -> bool:
    """Whether a leaf decides what kind of answer there is, so that no other value of it can be compared."""
    return len(path) == 1 or path in (("body", "stream"), ("request", "stream"))


def _written(answer: Any, met: Met, played: Played) -> bytes:
    kind = kind_of(met.fields)
    if kind not in STREAMS:
        return wire.dumps(answer)
    api = api_of(played.tape.endpoint) if played.tape.endpoint else None
    return b"".join(wire.write(FRAMINGS[kind], answer, dialects.load(api).done if api else b""))


def _named(found: dict[Path, list[Path]]) -> Iterator[tuple[Path, list[str]]]:
    return ((path, [_name(each) for each in sources]) for path, sources in found.items())


def _name(path: Path) -> str:
    """Paths as people write them: a request's body is `$`, a placeholder of its path `path.model`, the answer `answer`."""
    first, rest = str(path[0]), shown(path[1:])
    return rest if first in ("body", "request") else first + rest[1:]


def _unused(down: Mapping[str, list[str]], answer: Any) -> list[str]:
    """Fields of the backend's answer that reach nobody, wherever in a list or a stream they stand."""
    used = {ANY_PLACE.sub("[*]", source) for sources in down.values() for source in sources}
    names = dict.fromkeys(ANY_PLACE.sub("[*]", f"answer{shown(path)[1:]}") for path in leaves(answer))
    return [name for name in names if name not in used] if down else []


def _clean(told: Json, cleaner: Cleaner, asked: Asked) -> Json:
    """All of it without secrets: it is printed, and pasted into reports."""
    patterns = cleaner.patterns(asked.headers)
    for holder in (told["client"], told["reply"], *told["upstream"]):
        holder["headers"] = cleaner.headers(holder["headers"].items(), patterns)

    def scrubbed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: scrubbed(member) for name, member in value.items()}
        if isinstance(value, list):
            return [scrubbed(member) for member in value]
        return cleaner.line(value, patterns) if isinstance(value, str) else value

    return {name: scrubbed(value) for name, value in told.items()}
