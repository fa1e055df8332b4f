"""Hugging Face's clients of TGI: InferenceClient (chat as OpenAI's API, text_generation as TGI's own), and text-generation."""

from __future__ import annotations

import json
from typing import Any

from huggingface_hub import InferenceClient
from text_generation import Client

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FINISH = {"eos_token": "stop", "stop_sequence": "stop"}


def drive(client: str, ask: dict[str, Any]) -> dict[str, Any]:
    if client == "text-generation":
        return old(Client(ask["url"], headers={"Authorization": f"Bearer {ask['key']}"}, timeout=20), ask)
    sdk = InferenceClient(base_url=ask["url"], api_key=ask["key"], timeout=20)
    return {"chat": chat, "text": text}[ask["op"]](sdk, ask)


def chat(sdk: InferenceClient, ask: dict[str, Any]) -> dict[str, Any]:
    body = {name: ask[name] for name in ("model", "temperature", "top_p", "stop", "n", "logprobs") if name in ask}
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
        return folded(sdk.chat_completion(**body, stream=True, stream_options={"include_usage": True}))
    answer = sdk.chat_completion(**body)
    first = answer.choices[0]
    return {
        "text": first.message.content or "",
        "texts": [choice.message.content for choice in answer.choices],
        "finish": first.finish_reason,
        "calls": [called(call.id, call.function) for call in first.message.tool_calls or ()],
        "logprobs": [item.logprob for item in (first.logprobs and first.logprobs.content) or ()],
        "usage": answer.usage and [answer.usage.prompt_tokens, answer.usage.completion_tokens],
        "model": answer.model,
    }


def called(call_id: str, function: Any) -> dict[str, Any]:
    return {"id": call_id, "name": function.name, "args": json.loads(function.arguments)}


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


def folded(stream: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"text": "", "finish": None, "usage": None, "pieces": 0, "calls": []}
    slots: dict[int, list[str]] = {}
    for chunk in stream:
        if chunk.usage:
            told["usage"] = [chunk.usage.prompt_tokens, chunk.usage.completion_tokens]
        for choice in chunk.choices:
            told["text"] += choice.delta.content or ""
            told["pieces"] += bool(choice.delta.content)
            told["finish"] = choice.finish_reason or told["finish"]
            for call in choice.delta.tool_calls or ():
                slot = slots.setdefault(call.index, [call.id, call.function.name, ""])
                slot[2] += call.function.arguments or ""
    calls = [{"id": slot[0], "name": slot[1], "args": json.loads(slot[2])} for _, slot in sorted(slots.items())]
    return {**told, "calls": calls}


def parameters(ask: dict[str, Any]) -> dict[str, Any]:
    given = {name: ask[name] for name in ("temperature", "top_p") if name in ask}
    return {**given, "max_new_tokens": ask.get("limit", 200), **({"top_n_tokens": 1} if ask.get("logprobs") else {})}


def text(sdk: InferenceClient, ask: dict[str, Any]) -> dict[str, Any]:
    body = {**parameters(ask), **({"stop": ask["stop"]} if "stop" in ask else {})}
    if "schema" in ask:
        body["grammar"] = {"type": "json", "value": ask["schema"]}
    if ask.get("stream"):
        return frames(list(sdk.text_generation(ask["prompt"], details=True, stream=True, **body)))
    answer = sdk.text_generation(ask["prompt"], details=True, **body)
    return {
        "text": answer.generated_text,
        "finish": FINISH.get(answer.details.finish_reason, answer.details.finish_reason),
        "logprobs": [token.logprob for token in answer.details.tokens],
        "usage": [None, answer.details.generated_tokens],
    }


def old(sdk: Client, ask: dict[str, Any]) -> dict[str, Any]:
    body = {**parameters(ask), **({"stop_sequences": ask["stop"]} if "stop" in ask else {})}
    if ask.get("stream"):
        return frames(list(sdk.generate_stream(ask["prompt"], **body)))
    answer = sdk.generate(ask["prompt"], **body)
    reason = answer.details.finish_reason.value
    return {
        "text": answer.generated_text,
        "finish": FINISH.get(reason, reason),
        "usage": [None, answer.details.generated_tokens],
        "logprobs": [token.logprob for token in answer.details.tokens],
    }


def frames(found: list[Any]) -> dict[str, Any]:
    said = [frame.token.text for frame in found if not frame.token.special]
    details = found[-1].details
    reason = getattr(details.finish_reason, "value", details.finish_reason) if details else None
    assert found[-1].generated_text is not None
    finish = FINISH.get(str(reason), reason)
    return {"text": found[-1].generated_text, "pieces": len(said), "finish": finish}
