"""google-genai: generateContent streamed and not, embedContent, countTokens, models."""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import Any

from google import genai
from google.genai import types

FINISH = {"STOP": "stop", "MAX_TOKENS": "length", "SAFETY": "content_filter"}
EFFORT = {"low": 1024, "medium": 4096, "high": 8192}


def drive(client: str, ask: dict[str, Any]) -> dict[str, Any]:
    return OPERATIONS[ask["op"]](made(ask["url"], ask["key"]), ask)


@lru_cache(maxsize=None)
def made(url: str, key: str) -> genai.Client:
    """One SDK object an address: making one reads all certificates of the machine."""
    return genai.Client(api_key=key, vertexai=False, http_options=types.HttpOptions(base_url=url, timeout=20_000))


def chat(sdk: genai.Client, ask: dict[str, Any]) -> dict[str, Any]:
    body = {"model": ask["model"], "contents": contents(ask), "config": config(ask)}
    if ask.get("stream"):
        chunks = list(sdk.models.generate_content_stream(**body))
    else:
        chunks = [sdk.models.generate_content(**body)]
    told: dict[str, Any] = {"text": "", "thinking": "", "calls": [], "finish": None, "pieces": 0, "usage": None, "logprobs": []}
    texts: dict[int, str] = {}
    for chunk in chunks:
        used = chunk.usage_metadata
        if used is not None and used.candidates_token_count is not None:
            told["usage"] = [used.prompt_token_count, used.candidates_token_count + (used.thoughts_token_count or 0)]
        for candidate in chunk.candidates or ():
            index = candidate.index or 0
            read(candidate, told, texts, index)
    return {
        **told,
        "text": texts.get(0, ""),
        "texts": [said for _, said in sorted(texts.items())],
        "model": chunks[-1].model_version,
    }


def read(candidate: Any, told: dict[str, Any], texts: dict[int, str], index: int) -> None:
    for part in (candidate.content and candidate.content.parts) or ():
        if part.function_call:
            told["calls"].append(
                {"id": part.function_call.id or "", "name": part.function_call.name, "args": part.function_call.args}
            )
        elif part.thought:
            told["thinking"] += part.text or ""
        elif part.text:
            texts[index] = texts.get(index, "") + part.text
            told["pieces"] += 1
    if candidate.finish_reason:
        reason = candidate.finish_reason.value
        told["finish"] = "tool_calls" if told["calls"] else FINISH.get(reason, reason)
    if candidate.logprobs_result:
        told["logprobs"] += [item.log_probability for item in candidate.logprobs_result.chosen_candidates or ()]


def config(ask: dict[str, Any]) -> types.GenerateContentConfig:
    given: dict[str, Any] = {name: ask[name] for name in ("temperature", "top_p") if name in ask}
    names = {"system": "system_instruction", "stop": "stop_sequences", "limit": "max_output_tokens", "n": "candidate_count"}
    given.update({names[name]: ask[name] for name in names if name in ask})
    if "tools" in ask:
        city = types.Schema(type=types.Type.OBJECT, properties={"city": types.Schema(type=types.Type.STRING)})
        declared = [types.FunctionDeclaration(name=name, description="Tells it.", parameters=city) for name in ask["tools"]]
        given["tools"] = [types.Tool(function_declarations=declared)]
    if "choice" in ask:
        modes = {"auto": {"mode": "AUTO"}, "required": {"mode": "ANY"}, "none": {"mode": "NONE"}}
        calling = modes.get(ask["choice"], {"mode": "ANY", "allowed_function_names": [ask["choice"]]})
        given["tool_config"] = types.ToolConfig(function_calling_config=types.FunctionCallingConfig(**calling))
    if "schema" in ask:
        given |= {"response_mime_type": "application/json", "response_json_schema": ask["schema"]}
    if "effort" in ask:
        given["thinking_config"] = types.ThinkingConfig(include_thoughts=True, thinking_budget=EFFORT[ask["effort"]])
    if ask.get("logprobs"):
        given |= {"response_logprobs": True}
    return types.GenerateContentConfig(**given)


def contents(ask: dict[str, Any]) -> list[types.Content]:
    out = []
    for turn in ask["turns"]:
        parts = [types.Part(text=turn["text"])] if turn.get("text") else []
        if "image" in turn:
            parts.append(types.Part.from_bytes(data=base64.b64decode(turn["image"]), mime_type="image/png"))
        called = [
            types.FunctionCall(name=call["name"], args=call["args"], id=call["id"] or None) for call in turn.get("calls", ())
        ]
        parts += [types.Part(function_call=call) for call in called]
        for item in turn.get("results", ()):
            response = types.FunctionResponse(name=item["name"], response={"result": item["text"]}, id=item["id"] or None)
            parts.append(types.Part(function_response=response))
        out.append(types.Content(role="model" if turn["role"] == "assistant" else "user", parts=parts))
    return out


def embed(sdk: genai.Client, ask: dict[str, Any]) -> dict[str, Any]:
    inputs = [types.Content(parts=[types.Part(text=text)]) for text in ask["input"]]  # bare strings would be parts of one
    answer = sdk.models.embed_content(model=ask["model"], contents=inputs)
    return {"vectors": [item.values for item in answer.embeddings]}


def count(sdk: genai.Client, ask: dict[str, Any]) -> dict[str, Any]:
    return {"count": sdk.models.count_tokens(model=ask["model"], contents=contents(ask)).total_tokens}


def models(sdk: genai.Client, ask: dict[str, Any]) -> dict[str, Any]:
    return {"models": [model.name.removeprefix("models/") for model in sdk.models.list()]}


OPERATIONS = {"chat": chat, "embed": embed, "count": count, "models": models}
