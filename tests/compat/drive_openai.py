"""openai ≥ 1: Chat Completions, Completions, Embeddings, Models, and Responses."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import openai

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FINISH = {"completed": "stop", "max_output_tokens": "length", "content_filter": "content_filter"}


def drive(client: str, ask: dict[str, Any]) -> dict[str, Any]:
    sdk = made(ask["url"], ask["key"])
    if ask["op"] == "chat":
        return responses(sdk, ask) if client.endswith("responses") else chat(sdk, ask)
    return {"text": text, "embed": embed, "models": models, "count": count}[ask["op"]](sdk, ask)


@lru_cache(maxsize=None)
def made(url: str, key: str) -> openai.OpenAI:
    """One SDK object an address: making one reads all certificates of the machine."""
    return openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0, timeout=20)


def common(ask: dict[str, Any]) -> dict[str, Any]:
    return {name: ask[name] for name in ("model", "temperature", "top_p", "stop", "stream") if name in ask}


# --- chat


def chat(sdk: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {**common(ask), "messages": messages(ask)}
    body.update({name: ask[name] for name in ("n", "logprobs") if name in ask})
    if "limit" in ask:
        body["max_completion_tokens"] = ask["limit"]
    if "tools" in ask:
        functions = [{"name": name, "description": "Tells it.", "parameters": CITY} for name in ask["tools"]]
        body["tools"] = [{"type": "function", "function": function} for function in functions]
    if "choice" in ask:
        named = {"type": "function", "function": {"name": ask["choice"]}}
        body["tool_choice"] = ask["choice"] if ask["choice"] in ("auto", "required", "none") else named
    if "schema" in ask:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ask["schema"]}}
    if "effort" in ask:
        body["reasoning_effort"] = ask["effort"]
    if ask.get("stream"):
        return folded(sdk.chat.completions.create(**body, stream_options={"include_usage": True}))
    answer = sdk.chat.completions.create(**body)
    first = answer.choices[0]
    return {
        "text": first.message.content or "",
        "texts": [choice.message.content for choice in answer.choices],
        "finish": first.finish_reason,
        "thinking": getattr(first.message, "reasoning_content", None) or "",
        "calls": [called(call.id, call.function.name, call.function.arguments) for call in first.message.tool_calls or ()],
        "logprobs": [item.logprob for item in (first.logprobs and first.logprobs.content) or ()],
        "usage": answer.usage and [answer.usage.prompt_tokens, answer.usage.completion_tokens],
        "model": answer.model,
    }


def called(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "name": name, "args": json.loads(arguments)}


def messages(ask: dict[str, Any]) -> list[dict[str, Any]]:
    out = [{"role": role, "content": ask[role]} for role in ("system", "developer") if role in ask]
    for turn in ask["turns"]:
        if turn["role"] == "tool":
            out += [{"role": "tool", "tool_call_id": item["id"], "content": item["text"]} for item in turn["results"]]
        elif turn["role"] == "assistant":
            calls = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(call["args"])},
                }
                for call in turn.get("calls", ())
            ]
            out.append({"role": "assistant", "content": turn.get("text") or None, **({"tool_calls": calls} if calls else {})})
        else:
            image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{turn.get('image')}"}}
            content = [{"type": "text", "text": turn["text"]}, image] if "image" in turn else turn["text"]
            out.append({"role": "user", "content": content})
    return out


def folded(stream: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"text": "", "thinking": "", "finish": None, "usage": None, "pieces": 0, "logprobs": []}
    slots: dict[int, dict[str, Any]] = {}
    texts: dict[int, str] = {}
    for chunk in stream:
        if chunk.usage:
            told["usage"] = [chunk.usage.prompt_tokens, chunk.usage.completion_tokens]
        for choice in chunk.choices:
            delta = choice.delta
            texts[choice.index] = texts.get(choice.index, "") + (delta.content or "")
            told["pieces"] += bool(delta.content)
            told["thinking"] += getattr(delta, "reasoning_content", None) or ""
            told["finish"] = choice.finish_reason or told["finish"]
            told["logprobs"] += [item.logprob for item in (choice.logprobs and choice.logprobs.content) or ()]
            for call in delta.tool_calls or ():
                slot = slots.setdefault(call.index, {"id": call.id, "name": call.function.name, "arguments": ""})
                slot["arguments"] += call.function.arguments or ""
    calls = [called(slot["id"], slot["name"], slot["arguments"]) for _, slot in sorted(slots.items())]
    return {**told, "text": texts.get(0, ""), "texts": [said for _, said in sorted(texts.items())], "calls": calls}


# --- the other operations


def text(sdk: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    body = {**common(ask), "prompt": ask["prompt"], **({"max_tokens": ask["limit"]} if "limit" in ask else {})}
    if ask.get("stream"):
        chunks = [chunk for chunk in sdk.completions.create(**body) if chunk.choices]
        finish = next((chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason), None)
        said = [chunk.choices[0].text for chunk in chunks]
        return {"text": "".join(said), "pieces": sum(map(bool, said)), "finish": finish}
    answer = sdk.completions.create(**body)
    usage = answer.usage and [answer.usage.prompt_tokens, answer.usage.completion_tokens]
    return {"text": answer.choices[0].text, "finish": answer.choices[0].finish_reason, "usage": usage}


def embed(sdk: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    answer = sdk.embeddings.create(model=ask["model"], input=ask["input"])  # the SDK asks for base64 by itself
    return {"vectors": [item.embedding for item in answer.data]}


def models(sdk: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    return {"models": [model.id for model in sdk.models.list()]}


def count(sdk: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    return {"count": sdk.responses.input_tokens.count(model=ask["model"], input=items(ask)).input_tokens}


# --- responses


def responses(sdk: openai.OpenAI, ask: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {**common(ask), "input": items(ask)}
    if "system" in ask:
        body["instructions"] = ask["system"]
    if "limit" in ask:
        body["max_output_tokens"] = ask["limit"]
    if "tools" in ask:
        described = {"type": "function", "description": "Tells it.", "parameters": CITY, "strict": False}
        body["tools"] = [{**described, "name": name} for name in ask["tools"]]
    if "choice" in ask:
        named = {"type": "function", "name": ask["choice"]}
        body["tool_choice"] = ask["choice"] if ask["choice"] in ("auto", "required", "none") else named
    if "schema" in ask:
        body["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": ask["schema"]}}
    if "effort" in ask:
        body["reasoning"] = {"effort": ask["effort"], "summary": "auto"}
    if ask.get("logprobs"):
        body["include"] = ["message.output_text.logprobs"]
    if not ask.get("stream"):
        return told_response(sdk.responses.create(**body))
    pieces, last, streamed = 0, None, ""
    for event in sdk.responses.create(**body):
        if event.type == "response.output_text.delta":
            pieces, streamed = pieces + 1, streamed + event.delta
        if event.type in ("response.completed", "response.incomplete", "response.failed"):
            last = event.response
    told = told_response(last)
    assert told["text"] == streamed
    return {**told, "pieces": pieces}


def told_response(answer: Any) -> dict[str, Any]:
    reason = answer.incomplete_details.reason if answer.incomplete_details else answer.status
    calls = [called(item.call_id, item.name, item.arguments) for item in answer.output if item.type == "function_call"]
    parts = [part for item in answer.output if item.type == "message" for part in item.content]
    summaries = [part.text for item in answer.output if item.type == "reasoning" for part in item.summary]
    texts = [part.text for item in answer.output if item.type == "reasoning" for part in getattr(item, "content", None) or ()]
    return {
        "text": answer.output_text,
        "finish": "tool_calls" if calls else FINISH.get(reason, reason),
        "calls": calls,
        "thinking": "".join(summaries or texts),
        "logprobs": [item.logprob for part in parts for item in getattr(part, "logprobs", None) or ()],
        "usage": answer.usage and [answer.usage.input_tokens, answer.usage.output_tokens],
        "model": answer.model,
    }


def items(ask: dict[str, Any]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = [{"role": "developer", "content": ask["developer"]}] if "developer" in ask else []
    for turn in ask["turns"]:
        if turn["role"] == "tool":
            out += [{"type": "function_call_output", "call_id": item["id"], "output": item["text"]} for item in turn["results"]]
        elif turn["role"] == "assistant":
            out += [{"role": "assistant", "content": turn["text"]}] if turn.get("text") else []
            out += [
                {"type": "function_call", "call_id": call["id"], "name": call["name"], "arguments": json.dumps(call["args"])}
                for call in turn.get("calls", ())
            ]
        else:
            image = {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{turn.get('image')}"}
            content = [{"type": "input_text", "text": turn["text"]}, image] if "image" in turn else turn["text"]
            out.append({"role": "user", "content": content})
    return out
