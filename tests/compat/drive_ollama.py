"""ollama: chat, generate, embed, list."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import ollama

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
OPTIONS = {"temperature": "temperature", "top_p": "top_p", "stop": "stop", "limit": "num_predict"}


def drive(client: str, ask: dict[str, Any]) -> dict[str, Any]:
    return OPERATIONS[ask["op"]](made(ask["url"], ask["key"]), ask)


@lru_cache(maxsize=None)
def made(url: str, key: str) -> ollama.Client:
    """One SDK object an address: making one reads all certificates of the machine."""
    return ollama.Client(host=url, headers={"Authorization": f"Bearer {key}"}, timeout=20)


def options(ask: dict[str, Any]) -> dict[str, Any]:
    return {OPTIONS[name]: ask[name] for name in OPTIONS if name in ask}


def chat(sdk: ollama.Client, ask: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"model": ask["model"], "messages": messages(ask), "options": options(ask)}
    if "tools" in ask:
        functions = [{"name": name, "description": "Tells it.", "parameters": CITY} for name in ask["tools"]]
        body["tools"] = [{"type": "function", "function": function} for function in functions]
    if "schema" in ask:
        body["format"] = ask["schema"]
    if "effort" in ask:
        body["think"] = ask["effort"]
    if "logprobs" in ask:
        body["logprobs"] = True
    chunks = list(sdk.chat(**body, stream=True)) if ask.get("stream") else [sdk.chat(**body, stream=False)]
    told: dict[str, Any] = {"text": "", "thinking": "", "calls": [], "pieces": 0, "logprobs": []}
    for chunk in chunks:
        told["text"] += chunk.message.content or ""
        told["pieces"] += bool(chunk.message.content)
        told["thinking"] += chunk.message.thinking or ""
        told["logprobs"] += [item.logprob for item in getattr(chunk, "logprobs", None) or ()]
        told["calls"] += [
            {"id": "", "name": call.function.name, "args": dict(call.function.arguments)}
            for call in chunk.message.tool_calls or ()
        ]
    return {**told, **ending(chunks[-1], bool(told["calls"]))}


def ending(last: Any, called: bool) -> dict[str, Any]:
    finish = "tool_calls" if called and last.done_reason == "stop" else last.done_reason
    return {"finish": finish if last.done else None, "usage": [last.prompt_eval_count, last.eval_count], "model": last.model}


def messages(ask: dict[str, Any]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = [{"role": "system", "content": ask["system"]}] if "system" in ask else []
    for turn in ask["turns"]:
        if turn["role"] == "tool":
            out += [{"role": "tool", "tool_name": item["name"], "content": item["text"]} for item in turn["results"]]
            continue
        message: dict[str, Any] = {"role": turn["role"], "content": turn.get("text") or ""}
        if turn.get("calls"):
            message["tool_calls"] = [{"function": {"name": call["name"], "arguments": call["args"]}} for call in turn["calls"]]
        if "image" in turn:
            message["images"] = [turn["image"]]
        out.append(message)
    return out


def text(sdk: ollama.Client, ask: dict[str, Any]) -> dict[str, Any]:
    body = {"model": ask["model"], "prompt": ask["prompt"], "options": options(ask)}
    chunks = list(sdk.generate(**body, stream=True)) if ask.get("stream") else [sdk.generate(**body, stream=False)]
    said = [chunk.response for chunk in chunks]
    return {"text": "".join(said), "pieces": sum(map(bool, said)), **ending(chunks[-1], False)}


def embed(sdk: ollama.Client, ask: dict[str, Any]) -> dict[str, Any]:
    return {"vectors": [list(vector) for vector in sdk.embed(model=ask["model"], input=ask["input"]).embeddings]}


def models(sdk: ollama.Client, ask: dict[str, Any]) -> dict[str, Any]:
    return {"models": [model.model for model in sdk.list().models]}


OPERATIONS = {"chat": chat, "text": text, "embed": embed, "models": models}
