"""Your mappers: plain functions that turn one API's JSON into another's. The configuration names them.

    def name(ip: Any, cfg: dict = {}) -> Any

`ip` is a decoded JSON body: a request under `in`, an answer under `out`. Under `stream`, the function takes an iterator of
events (decoded JSON objects) and yields events. `cfg` holds the endpoint's own YAML keys and `template`, `prompter`, `id`,
`now`, `aliases`, and, for an answer or a stream, `request` (what the request mapper got) and `made` (what it made of it). Be
pure: change neither `ip` nor `cfg`.
A name here overrides a built-in one. The working directory's mappers.py is used before this one: with yours in a folder of its
own, an upgrade does not touch it (docs/deployment.md, Upgrading). docs/mappers.md walks through writing one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from proxy.dialects.openai import text_of
from proxy.dialects.tgi import (
    chatAnsTGItoOpenAI,
    chatReqOpenAItoTGI,
    chatStreamTGItoOpenAI,
    textAnsTGItoOpenAI,
    textReqOpenAItoTGI,
    textStreamTGItoOpenAI,
)

__all__ = [
    "chatAnsTGItoOpenAI",
    "chatReqOpenAItoTGI",
    "chatStreamTGItoOpenAI",
    "identity",
    "textAnsTGItoOpenAI",
    "textReqOpenAItoTGI",
    "textStreamTGItoOpenAI",
]


def identity(ip: Any, cfg: dict[str, Any] = {}) -> Any:
    """The body as it is. It still has to be JSON, and is written anew."""
    return ip


# --- an example, whole: an imaginary API that takes {"question"} and answers {"reply", "words"}; streamed {"piece"}, {"end"}.
#
#     targets:
#       parrot:
#         url: http://127.0.0.1:9000
#         mapping:
#           /chat/completions: {path: /ask, in: chatReqOpenAItoParrot, out: chatAnsParrottoOpenAI,
#                               stream: chatStreamParrottoOpenAI, stream_path: /ask/stream}


def chatReqOpenAItoParrot(ip: Any, cfg: dict[str, Any] = {}) -> Any:
    """Chat request → {"question": str}: the last message, for the parrot has no memory."""
    return {"question": text_of(ip["messages"][-1]["content"])}


def chatAnsParrottoOpenAI(ip: Any, cfg: dict[str, Any] = {}) -> Any:
    """{"reply": str, "words": int} → chat.completion."""
    return {
        "id": "chatcmpl-" + cfg.get("id", ""),
        "object": "chat.completion",
        "created": cfg.get("now", 0),
        "model": cfg.get("request", {}).get("model", "parrot"),
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ip["reply"]}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": ip["words"], "total_tokens": ip["words"]},
    }


def chatStreamParrottoOpenAI(events: Iterable[Any], cfg: dict[str, Any] = {}) -> Iterator[Any]:
    """{"piece": str}…, {"end": true} → chat.completion.chunk…"""
    chunk = {
        "id": "chatcmpl-" + cfg.get("id", ""),
        "object": "chat.completion.chunk",
        "created": cfg.get("now", 0),
        "model": cfg.get("request", {}).get("model", "parrot"),
    }
    for event in events:
        if event.get("end"):
            yield {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        else:
            yield {**chunk, "choices": [{"index": 0, "delta": {"content": event["piece"]}, "finish_reason": None}]}
