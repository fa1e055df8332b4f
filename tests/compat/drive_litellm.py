"""LiteLLM as a client: one function that speaks OpenAI's, Anthropic's, Gemini's and Ollama's API by the model's prefix."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch a list of prices

import litellm

litellm.suppress_debug_info = True
litellm.telemetry = False
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
PREFIX = {
    "litellm-openai": "openai",
    "litellm-anthropic": "anthropic",
    "litellm-gemini": "gemini",
    "litellm-ollama": "ollama_chat",
}


def where(client: str, ask: dict[str, Any]) -> dict[str, Any]:
    base = {"litellm-openai": "/v1", "litellm-gemini": "/v1beta"}.get(client, "")
    found = {"model": f"{PREFIX[client]}/{ask['model']}", "api_base": ask["url"] + base, "api_key": ask["key"]}
    if client == "litellm-ollama":
        found["extra_headers"] = {"Authorization": f"Bearer {ask['key']}"}
    return {**found, "num_retries": 0, "timeout": 20}


def drive(client: str, ask: dict[str, Any]) -> dict[str, Any]:
    if ask["op"] == "embed":
        answer = litellm.embedding(input=ask["input"], **where(client, ask))
        return {"vectors": [item["embedding"] for item in answer.data]}
    body: dict[str, Any] = {name: ask[name] for name in ("temperature", "top_p", "stop", "n", "logprobs") if name in ask}
    body["messages"] = messages(ask)
    if "limit" in ask:
        body["max_tokens"] = ask["limit"]
    if "tools" in ask:
        functions = [{"name": name, "description": "Tells it.", "parameters": CITY} for name in ask["tools"]]
        body["tools"] = [{"type": "function", "function": function} for function in functions]
    if "choice" in ask:
        named = {"type": "function", "function": {"name": ask["choice"]}}
        body["tool_choice"] = ask["choice"] if ask["choice"] in ("auto", "required", "none") else named
    if "schema" in ask:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ask["schema"]}}
    if ask.get("stream"):
        chunks = list(litellm.completion(**body, **where(client, ask), stream=True, stream_options={"include_usage": True}))
        pieces = sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks)
        return {**told(litellm.stream_chunk_builder(chunks)), "pieces": pieces}
    return told(litellm.completion(**body, **where(client, ask)))


def told(answer: Any) -> dict[str, Any]:
    first = answer.choices[0]
    return {
        "text": first.message.content or "",
        "texts": [choice.message.content for choice in answer.choices],
        "finish": first.finish_reason,
        "thinking": getattr(first.message, "reasoning_content", None) or "",
        "calls": [
            {"id": call.id, "name": call.function.name, "args": json.loads(call.function.arguments)}
            for call in first.message.tool_calls or ()
        ],
        "logprobs": [item.logprob for item in (getattr(first, "logprobs", None) and first.logprobs.content) or ()],
        "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
    }


def messages(ask: dict[str, Any]) -> list[dict[str, Any]]:
    out = [{"role": "system", "content": ask["system"]}] if "system" in ask else []
    for turn in ask["turns"]:
        if turn["role"] == "tool":
            out += [{"role": "tool", "tool_call_id": item["id"], "content": item["text"]} for item in turn["results"]]
            continue
        message: dict[str, Any] = {"role": turn["role"], "content": turn.get("text") or None}
        if turn.get("calls"):
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(call["args"])},
                }
                for call in turn["calls"]
            ]
        if "image" in turn:
            image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{turn['image']}"}}
            message["content"] = [{"type": "text", "text": turn["text"]}, image]
        out.append(message)
    return out
