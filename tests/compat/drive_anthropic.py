"""anthropic, old and new: Messages, count_tokens, Models."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import anthropic

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}


def drive(client: str, ask: dict[str, Any]) -> dict[str, Any]:
    sdk = made(ask["url"], ask["key"])
    if ask["op"] == "models":
        return {"models": [model.id for model in sdk.models.list()]}
    if ask["op"] == "count":
        return {"count": sdk.messages.count_tokens(model=ask["model"], messages=messages(ask)).input_tokens}
    return chat(sdk, ask)


@lru_cache(maxsize=None)
def made(url: str, key: str) -> Any:
    """One SDK object an address: making one reads all certificates of the machine."""
    return anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=20)


def chat(sdk: Any, ask: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"model": ask["model"], "max_tokens": ask.get("limit", 2048), "messages": messages(ask)}
    extra = {name: ask[name] for name in ("temperature", "top_p") if name in ask}  # the newest SDK no longer knows them
    if "system" in ask:
        body["system"] = ask["system"]
    if "stop" in ask:
        body["stop_sequences"] = ask["stop"]
    if "tools" in ask:
        body["tools"] = [{"name": name, "description": "Tells it.", "input_schema": CITY} for name in ask["tools"]]
    if "choice" in ask:
        kinds = {"auto": "auto", "required": "any", "none": "none"}
        body["tool_choice"] = (
            {"type": kinds[ask["choice"]]} if ask["choice"] in kinds else {"type": "tool", "name": ask["choice"]}
        )
    if "effort" in ask:
        body["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    if "schema" in ask:
        extra["output_config"] = {"format": {"type": "json_schema", "schema": ask["schema"]}}
    if extra:
        body["extra_body"] = extra
    if not ask.get("stream"):
        return told(sdk.messages.create(**body), {})
    with sdk.messages.stream(**body) as stream:
        pieces = sum(event.type == "content_block_delta" and event.delta.type == "text_delta" for event in stream)
        return told(stream.get_final_message(), {"pieces": pieces})


def told(answer: Any, more: dict[str, Any]) -> dict[str, Any]:
    used = answer.usage
    cached = (used.cache_read_input_tokens or 0) + (used.cache_creation_input_tokens or 0)
    return {
        "text": "".join(block.text for block in answer.content if block.type == "text"),
        "thinking": "".join(block.thinking for block in answer.content if block.type == "thinking"),
        "calls": [
            {"id": block.id, "name": block.name, "args": block.input} for block in answer.content if block.type == "tool_use"
        ],
        "finish": FINISH.get(answer.stop_reason, answer.stop_reason),
        "usage": [used.input_tokens + cached, used.output_tokens],
        "model": answer.model,
        **more,
    }


def messages(ask: dict[str, Any]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for turn in ask["turns"]:
        if turn["role"] == "tool":
            content: Any = [
                {"type": "tool_result", "tool_use_id": item["id"], "content": item["text"]} for item in turn["results"]
            ]
        elif turn["role"] == "assistant":
            calls = [
                {"type": "tool_use", "id": call["id"], "name": call["name"], "input": call["args"]}
                for call in turn.get("calls", ())
            ]
            content = [*([{"type": "text", "text": turn["text"]}] if turn.get("text") else []), *calls]
        else:
            source = {"type": "base64", "media_type": "image/png", "data": turn.get("image")}
            image = [{"type": "image", "source": source}] if "image" in turn else []
            content = [*image, {"type": "text", "text": turn["text"]}]
        out.append({"role": "assistant" if turn["role"] == "assistant" else "user", "content": content})
    return out
