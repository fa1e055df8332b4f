"""What a target's backend can do, as its `capabilities` say, held against what a request needs: refused, not lost.

A need is read in the hub's words, so that one table serves the clients of every API. Only targets that say what they can do
are looked at, and only what they say counts. Needs and capabilities are whole numbers: 1 for yes, 0 for no, tokens for
`context`; a target lacks what it says less of than the request needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from proxy.call import Call
from proxy.config import Target
from proxy.dialects import Dialect, Mapper, load, mapper, route_of
from proxy.dialects.openai import canonical, estimate_tokens, objects, textReqOpenAItoOpenAI
from proxy.errors import BadRequest, ProxyError

Needs = Mapping[str, int]
Json = dict[str, Any]


def _has_image(req: Json) -> bool:
    return any(part.get("type") == "image_url" for turn in req["messages"] for part in objects(turn.get("content")))


CHAT: Mapping[str, Callable[[Json], int]] = {  # of a canonical request
    "stream": lambda req: req.get("stream") is True,
    "tools": lambda req: bool(req.get("tools")),
    "parallel_tools": lambda req: any(len(turn.get("tool_calls") or ()) > 1 for turn in req["messages"]),
    "tool_choice": lambda req: req.get("tool_choice", "auto") not in ("auto", "none"),
    "images": _has_image,
    "json_schema": lambda req: req.get("response_format", {}).get("type") == "json_schema",
    "stop": lambda req: bool(req.get("stop")),
    "n": lambda req: req.get("n", 1) > 1,
    "logprobs": lambda req: req.get("logprobs", False) is not False,
    "context": lambda req: estimate_tokens(req) // 2,  # an estimate: what is not twice too long may fit
}
NAMES = (*CHAT, "embeddings")
WORDS = {
    "parallel_tools": "several tool calls in one turn",
    "json_schema": "answers by a JSON schema",
    "n": "several answers a call",
    "stop": "stop sequences",
    "stream": "streams",
}  # where the name does not say it
FIELDS = 64  # of an object that are tried, each with a reading of the whole body
CONVERSATION = ("messages", "contents", "input", "prompt", "inputs")  # what a request cannot be read without
HUB_OWN: Mapping[str, Mapper] = {"chat": lambda ip, cfg: canonical(ip), "text": textReqOpenAItoOpenAI}


def needs(body: Any, front: str, kind: str = "chat", stream: bool | None = None) -> Needs:
    """What a client's body asks of a backend; nothing where the proxy cannot read it: then its backend judges.

    front: the client's API. kind: the operation, as in `dialects.Route`. stream: what the path says of it,
    None when the body does.
    """
    if kind == "embed":
        return {"embeddings": 1}
    if kind not in ("chat", "text"):
        return {}
    try:
        req = _in_the_hub(body, load(front), kind, stream)
    except ProxyError:  # not legal in the client's API: to say so is the backend's, or the mappers'
        return {}
    found = {name: int(need(req)) for name, need in CHAT.items()}
    return {name: amount for name, amount in found.items() if amount}


def needs_of(call: Call, body: Any) -> Needs:
    """The same for a call, whose path says what it is."""
    route = route_of(call.front, call.method, call.path)
    return needs(body, call.front, route.kind, route.stream) if route else {}


def missing(target: Target, needed: Needs) -> list[str]:
    """Which of the needs the target says it cannot meet."""
    can = target.capabilities
    return [name for name, amount in needed.items() if amount > can.get(name, amount)]


def require(target: Target, call: Call, body: Any) -> None:
    """Raises BadRequest when the target cannot do what the request needs; it names the field that asks for it."""
    lacks = missing(target, needs_of(call, body))
    if not lacks:
        return

    def spares(other: Any) -> bool:
        needed = needs_of(call, other)
        return "context" in needed and lacks[0] not in missing(target, needed)  # every legal request needs a context

    field = None
    if len(body) <= FIELDS:
        field = _field(body, spares) or next((name for name in CONVERSATION if name in body), None)
    what = f"takes no more than {target.capabilities['context']} tokens" if lacks[0] == "context" else _cannot(lacks[0])
    asks = f", which {field} asks for" if field else ""
    raise BadRequest(f"target {target.name!r} {what}{asks}", param=field, code="capability_missing")


def _cannot(name: str) -> str:
    return f"does not support {WORDS.get(name, name.replace('_', ' '))} (capabilities.{name} is false)"


def _in_the_hub(body: Any, client: Dialect, kind: str, stream: bool | None) -> Json:
    tag = client.tag
    if stream is None:
        stream = bool(body.get("stream", client.stream_default)) if isinstance(body, dict) else False
    read = HUB_OWN[kind] if tag == "OpenAI" else mapper(f"{kind}Req{tag}toOpenAI")
    assert read is not None  # every API's chat and text have one
    req: Json = read(body, {"stream": stream, "lost": lambda path, why="": None})
    if kind == "text":
        req = {**req, "messages": [{"role": "user", "content": req.get("prompt")}]}
    return {**req, "stream": True} if stream else req


def _field(body: Any, spares: Callable[[Any], bool]) -> str | None:
    """The one field without which the need is gone, such as `tools` or `generationConfig.responseSchema`."""
    for name, value in islice(body.items(), FIELDS) if isinstance(body, dict) else ():
        if value and spares({key: other for key, other in body.items() if key != name}):
            inner = _field(value, lambda part, name=name: spares({**body, name: part}))  # type: ignore[misc]
            return f"{name}.{inner}" if inner else str(name)
    return None
