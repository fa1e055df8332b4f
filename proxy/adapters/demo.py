"""`demo://`: OpenAI's API answered by this program itself, so that a newcomer's first request works without any model.

The same request always gets the same answer, streamed or not: no clock, no random, no waiting. What clients rely on is real:
streams, usage, max_tokens, stop, n, tool calls, JSON that fits its schema, embeddings, errors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from requests.adapters import BaseAdapter

from proxy.adapters.exchange import Answer
from proxy.adapters.made import Pieces, whole
from proxy.adapters.sample import sample
from proxy.dialects import Event, route_of
from proxy.dialects.openai import (
    DIALECT,
    Json,
    assistant,
    canonical,
    compact,
    completion,
    embed_answer,
    embedReqOpenAItoOpenAI,
    estimate_tokens,
    made_id,
    pick_model,
    text_of,
    textAnsChattoOpenAI,
    textReqOpenAItoChat,
    textStreamChattoOpenAI,
    tool_call,
    tool_delta,
    unfold,
    usage,
)
from proxy.errors import BadRequest, ProxyError
from proxy.wire import CONTENT_TYPES, loads_request, write

NAME = "demo"  # of the one model; others are taken by their name too, so that any client's settings do
CREATED_UNIX = 1_700_000_000  # of everything: an answer does not depend on when it was asked for
TOKEN = re.compile(r"\s*\w{1,10}|\s*\S|\s+")  # what counts as one token: about a word; joined, they are the text again
QUOTED = 100  # characters of the client's words in an answer
BOUNDS = {"n": (1, 128), "max_completion_tokens": (1, 10**9), "temperature": (0, 2), "top_p": (0, 1)}
DIMENSIONS = 8  # of an embedding, unless the request says; at most 4096
TEXT = (
    "Hello! This is mooltiproxy's demo: no model is behind it, yet your request came all the way through. {said} "
    "To get real answers, put a backend's url into a target of config.yaml. Until then, try a stream, several choices with n, "
    "stop, max_tokens, a JSON response_format, or tools and a message that asks for a tool by its name."
)
TOOL_TEXT = (
    "The tool has answered: {said} A model would now go on from there; this is mooltiproxy's demo, "
    "and your tool calls work from end to end."
)


class Demo(BaseAdapter):
    """The adapter of `demo://` targets; it keeps nothing between requests."""

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """The answer, whatever is asked; a request that OpenAI would refuse gets an error in its shape."""
        try:
            status, reason, given = 200, "OK", _answered(request)
            headers: tuple[tuple[str, str], ...] = ()
        except ProxyError as error:
            status, reason, given, headers = error.status, "Refused", DIALECT.error_body(error, ""), error.headers
        if isinstance(given, Iterator):
            fields = [("content-type", CONTENT_TYPES["sse"])]
            return Answer(status, reason, Pieces(fields, write("sse", given, DIALECT.done)), request)
        return whole(request, given, status, reason, headers)

    def close(self) -> None:
        """Nothing is open."""


def _answered(request: requests.PreparedRequest) -> Json | Iterator[Event]:
    """A decoded answer, or the events of a stream. Raises BadRequest."""
    path = unquote(urlsplit(request.url or "").path)
    path = path[max(0, path.find("/v1/")) :]  # a base path before the version is as good as none
    method = "GET" if request.method == "HEAD" else request.method or ""
    route = route_of("openai", method, path)
    if route is not None and route.kind in ANSWERS:
        return ANSWERS[route.kind](loads_request(_payload(request.body)))
    if route is not None:
        return _models(path)
    allowed = next((other for other in ("GET", "POST") if route_of("openai", other, path)), None)
    if allowed:
        raise BadRequest(f"{path} takes {allowed} only", status=405, code="method_not_allowed", headers=[("allow", allowed)])
    raise BadRequest(f"the demo has no {method} {path}", status=404, param="path", code="unknown_url")


def _payload(body: Any) -> bytes:
    if body is None or isinstance(body, (bytes, str)):
        return (body or b"") if not isinstance(body, str) else body.encode()
    return b"".join(body)


def _models(path: str) -> Json:
    listed = [{"id": NAME, "object": "model", "created": CREATED_UNIX, "owned_by": "mooltiproxy"}]
    _, one, name = path.partition("/models/")
    models = {"object": "list", "data": listed}
    return pick_model(models, {"params": {"model": name}}) if one else models


# --- chat, and text as a chat of one message


def _chat(body: Any) -> Json | Iterator[Event]:
    req = canonical(body)
    answer = _chat_answer(req, body)
    return _events(answer, req) if req.get("stream") else answer


def _text(body: Any) -> Json | Iterator[Event]:
    req = canonical(textReqOpenAItoChat(body))
    answer = _chat_answer(req, body)
    if not req.get("stream"):
        return textAnsChattoOpenAI(answer, {"request": body})
    return textStreamChattoOpenAI(_events(answer, req), {"request": body})


def _chat_answer(req: Json, body: Json) -> Json:
    for name, (low, high) in BOUNDS.items():
        if not low <= req.get(name, low) <= high:
            named = "max_tokens" if name == "max_completion_tokens" and name not in body else name
            raise BadRequest(f"{named} must be between {low} and {high}", param=named)
    meant = {name: value for name, value in req.items() if name not in ("stream", "stream_options")}
    cfg = {"id": _digest(meant), "now": CREATED_UNIX, "request": req}
    choices = [_choice(req, cfg, index) for index in range(req.get("n", 1))]
    spent = usage(estimate_tokens(req), sum(tokens for _, tokens in choices))
    return completion(cfg, NAME, [choice for choice, _ in choices], spent)


def _digest(value: Any) -> str:
    return hashlib.sha256(compact(value).encode("utf-8", "surrogatepass")).hexdigest()[:28]


def _choice(req: Json, cfg: Mapping[str, Any], index: int) -> tuple[Json, int]:
    """One choice and its tokens."""
    function = _function(req)
    if function is not None:
        call = tool_call(made_id(cfg, index), function["name"], sample(function.get("parameters") or {"type": "object"}))
        message, finish, tokens = assistant(tool_calls=[call]), "tool_calls", _tokens(call["function"]["arguments"])
    else:
        said = _reply(req, index)
        ends = [at for at in (said.find(stop) for stop in req.get("stop", ())) if at >= 0]
        tokens = _tokens(said[: min(ends)] if ends else said)
        limit = req.get("max_completion_tokens", len(tokens))
        finish = "length" if len(tokens) > limit else "stop"
        tokens = tokens[:limit]
        message = assistant("".join(tokens))
    return {"index": index, "message": message, "finish_reason": finish}, len(tokens)


def _tokens(said: str) -> list[str]:
    return TOKEN.findall(said)


def _function(req: Json) -> Json | None:
    """The function to call: the one that tool_choice names, else one that the user's last message asks for; None: answer.

    A result is always answered with words: whoever insists on tools would be sent around for ever.
    """
    functions: list[Json] = [tool["function"] for tool in req.get("tools", ())]
    choice, last = req.get("tool_choice", "auto"), req["messages"][-1]
    if not functions or choice == "none" or last["role"] == "tool":
        return None
    if isinstance(choice, dict):
        return next(function for function in functions if function["name"] == choice["function"]["name"])
    said = text_of(last["content"]) if last["role"] == "user" else ""
    asked = [function for function in functions if re.search(rf"\b{re.escape(function['name'])}\b", said, re.I)]
    if asked or choice == "required" or re.search(r"\btools?\b", said, re.I):
        return (asked or functions)[0]
    return None


def _reply(req: Json, index: int) -> str:
    """What a choice says: JSON where the request wants it, else words for the person who sent it."""
    last = req["messages"][-1]
    users = [text_of(message["content"]) for message in req["messages"] if message["role"] == "user"]
    quoted = _quoted(text_of(last["content"]) if last["role"] == "tool" else next(reversed(users), ""))
    form = req.get("response_format", {})
    if form.get("type") == "json_schema":
        return compact(sample(form["json_schema"].get("schema") or {"type": "object"}))
    if form.get("type") == "json_object":
        return compact({"demo": True, "you_said": quoted, "choice": index})
    if last["role"] == "tool":
        return TOOL_TEXT.format(said=f"“{quoted}”." if quoted else "nothing.")
    again = f"(Choice {index + 1}.) " if index else ""
    return again + TEXT.format(said=f"You said: “{quoted}”." if quoted else "You said nothing in words.")


def _quoted(said: str) -> str:
    line = " ".join(said.split())
    return line if len(line) <= QUOTED else line[:QUOTED] + "…"


def _events(answer: Json, req: Json) -> Iterator[Event]:
    """An answer as a stream, one token an event; usage only where it was asked for."""
    shows_usage = req.get("stream_options", {}).get("include_usage") is True
    for event in unfold(answer):
        if not event["choices"]:
            yield from (event,) if shows_usage else ()
            continue
        choice = event["choices"][0]
        for delta in _split(choice["delta"]):
            yield {**event, "choices": [{**choice, "delta": delta}]}


def _split(delta: Json) -> Iterator[Json]:
    if delta.get("content"):
        yield from ({"content": piece} for piece in _tokens(delta["content"]))
    elif delta.get("tool_calls"):
        call = delta["tool_calls"][0]
        yield tool_delta(call["index"], call["id"], call["function"]["name"])
        yield from (tool_delta(call["index"], arguments=piece) for piece in _tokens(call["function"]["arguments"]))
    else:
        yield delta


# --- embeddings


def _embed(body: Any) -> Json:
    req = embedReqOpenAItoOpenAI(body)
    given = req["input"]
    items = [given] if isinstance(given, str) or _is_tokens(given) else given
    for i, item in enumerate(items):
        if not item or not (isinstance(item, str) or _is_tokens(item)):
            raise BadRequest(f"input[{i}] must be a string or an array of token ids, and not empty", param=f"input[{i}]")
    dimensions = req.get("dimensions", DIMENSIONS)
    if not 1 <= dimensions <= 4096:
        raise BadRequest("dimensions must be between 1 and 4096", param="dimensions")
    if req.get("encoding_format", "float") not in ("float", "base64"):
        raise BadRequest("encoding_format must be float or base64", param="encoding_format")
    tokens = sum(len(_tokens(item) if isinstance(item, str) else item) for item in items)
    return embed_answer({"request": req}, [_vector(item, dimensions) for item in items], tokens, NAME)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _vector(item: Any, dimensions: int) -> list[float]:
    """A unit vector that only this text has."""
    digest = hashlib.shake_256(compact(item).encode("utf-8", "surrogatepass")).digest(dimensions)
    numbers = [byte - 127.5 for byte in digest]  # none is 0
    length = sum(number * number for number in numbers) ** 0.5
    return [number / length for number in numbers]


ANSWERS: dict[str, Callable[[Any], Json | Iterator[Event]]] = {"chat": _chat, "text": _text, "embed": _embed}
