"""openai 0.28: one module with classes, no client object, dicts for answers."""

from __future__ import annotations

import json
from typing import Any

import openai

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def drive(client: str, ask: dict[str, Any]) -> dict[str, Any]:
    where = {"api_base": ask["url"] + "/v1", "api_key": ask["key"]}
    return OPERATIONS[ask["op"]](ask, where)


def chat(ask: dict[str, Any], where: dict[str, Any]) -> dict[str, Any]:
    body = {name: ask[name] for name in ("model", "temperature", "top_p", "stop", "stream", "n") if name in ask}
    body["messages"] = messages(ask)
    if "limit" in ask:
        body["max_tokens"] = ask["limit"]
    if "tools" in ask:
        functions = [{"name": name, "description": "Tells it.", "parameters": CITY} for name in ask["tools"]]
        body["tools"] = [{"type": "function", "function": function} for function in functions]
    if "choice" in ask:
        named = {"type": "function", "function": {"name": ask["choice"]}}
        body["tool_choice"] = ask["choice"] if ask["choice"] in ("auto", "required", "none") else named
    answer = openai.ChatCompletion.create(**body, **where, request_timeout=20)
    if ask.get("stream"):
        return folded(answer)
    message = answer["choices"][0]["message"]
    return {
        "text": message.get("content") or "",
        "texts": [choice["message"].get("content") for choice in answer["choices"]],
        "finish": answer["choices"][0]["finish_reason"],
        "calls": [called(call["id"], call["function"]) for call in message.get("tool_calls") or ()],
        "usage": [answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]],
        "model": answer["model"],
    }


def called(call_id: str, function: Any) -> dict[str, Any]:
    return {"id": call_id, "name": function["name"], "args": json.loads(function["arguments"])}


def messages(ask: dict[str, Any]) -> list[dict[str, Any]]:
    out = [{"role": "system", "content": ask["system"]}] if "system" in ask else []
    for turn in ask["turns"]:
        if turn["role"] == "tool":
            out += [{"role": "tool", "tool_call_id": item["id"], "content": item["text"]} for item in turn["results"]]
        elif turn.get("calls"):
            calls = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(call["args"])},
                }
                for call in turn["calls"]
            ]
            out.append({"role": "assistant", "content": turn.get("text") or None, "tool_calls": calls})
        else:
            out.append({"role": turn["role"], "content": turn["text"]})
    return out


def folded(stream: Any) -> dict[str, Any]:
    said: list[str] = []
    finish = None
    slots: dict[int, dict[str, str]] = {}
    for chunk in stream:
        for choice in chunk["choices"]:
            said.append(choice["delta"].get("content") or "")
            finish = choice["finish_reason"] or finish
            for call in choice["delta"].get("tool_calls") or ():
                slot = slots.setdefault(
                    call["index"], {"id": call.get("id", ""), "name": call["function"].get("name", ""), "arguments": ""}
                )
                slot["arguments"] += call["function"].get("arguments") or ""
    calls = [called(slot["id"], slot) for _, slot in sorted(slots.items())]
    return {"text": "".join(said), "pieces": sum(map(bool, said)), "finish": finish, "calls": calls}


def text(ask: dict[str, Any], where: dict[str, Any]) -> dict[str, Any]:
    body = {name: ask[name] for name in ("model", "prompt", "stream", "stop") if name in ask}
    answer = openai.Completion.create(**body, **where, request_timeout=20)
    if not ask.get("stream"):
        return {"text": answer["choices"][0]["text"], "finish": answer["choices"][0]["finish_reason"]}
    choices = [choice for chunk in answer for choice in chunk["choices"]]
    finish = next((choice["finish_reason"] for choice in choices if choice["finish_reason"]), None)
    return {"text": "".join(choice["text"] for choice in choices), "pieces": len(choices), "finish": finish}


def embed(ask: dict[str, Any], where: dict[str, Any]) -> dict[str, Any]:
    answer = openai.Embedding.create(model=ask["model"], input=ask["input"], **where)
    return {"vectors": [list(item["embedding"]) for item in answer["data"]]}


def models(ask: dict[str, Any], where: dict[str, Any]) -> dict[str, Any]:
    return {"models": [model["id"] for model in openai.Model.list(**where)["data"]]}


OPERATIONS = {"chat": chat, "text": text, "embed": embed, "models": models}
