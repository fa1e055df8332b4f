"""LangChain's chat models and embeddings: ChatOpenAI (Chat and Responses), ChatAnthropic, ChatOllama."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_ollama import ChatOllama, OllamaEmbeddings
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FINISH = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls", "completed": "stop"}


def drive(client: str, ask: dict[str, Any]) -> dict[str, Any]:
    kind = client.removeprefix("langchain-")
    if ask["op"] == "embed":
        return {"vectors": embeddings(kind, ask).embed_documents(ask["input"])}
    if ask["op"] == "text":
        model = OpenAI(base_url=ask["url"] + "/v1", api_key=ask["key"], model=ask["model"], max_retries=0, timeout=20)
        if ask.get("stream"):
            said = list(model.stream(ask["prompt"]))
            return {"text": "".join(said), "pieces": sum(map(bool, said))}
        return {"text": model.invoke(ask["prompt"])}
    return chat(kind, ask)


def embeddings(kind: str, ask: dict[str, Any]) -> Any:
    if kind == "ollama":
        return OllamaEmbeddings(base_url=ask["url"], model=ask["model"], client_kwargs={"headers": bearer(ask)})
    where = {"base_url": ask["url"] + "/v1", "api_key": ask["key"]}
    return OpenAIEmbeddings(model=ask["model"], check_embedding_ctx_length=False, **where)


def bearer(ask: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {ask['key']}"}


def model_of(kind: str, ask: dict[str, Any]) -> Any:
    names = ("model", "temperature", "top_p", "limit", "effort", "n", "logprobs", "url", "key")
    return made(kind, json.dumps({name: ask[name] for name in names if name in ask}))


@lru_cache(maxsize=None)
def made(kind: str, settings: str) -> Any:
    """One model object for the same settings: making one reads all certificates of the machine."""
    ask = json.loads(settings)
    given: dict[str, Any] = {name: ask[name] for name in ("model", "temperature", "top_p") if name in ask}
    if kind == "ollama":
        limit = {"num_predict": ask["limit"]} if "limit" in ask else {}
        think = {"reasoning": True} if "effort" in ask else {}
        return ChatOllama(base_url=ask["url"], client_kwargs={"headers": bearer(ask), "timeout": 20}, **given, **limit, **think)
    if kind == "anthropic":
        think = {"thinking": {"type": "enabled", "budget_tokens": 1024}} if "effort" in ask else {}
        limit = {"max_tokens": ask.get("limit", 2048)}
        return ChatAnthropic(base_url=ask["url"], api_key=ask["key"], max_retries=0, timeout=20, **given, **limit, **think)
    more = {name: ask[name] for name in ("n", "logprobs") if name in ask}
    more |= {"max_tokens": ask["limit"]} if "limit" in ask else {}
    more |= {"use_responses_api": True} if kind == "openai responses" else {}
    return ChatOpenAI(
        base_url=ask["url"] + "/v1", api_key=ask["key"], max_retries=0, timeout=20, stream_usage=True, **given, **more
    )


def chat(kind: str, ask: dict[str, Any]) -> dict[str, Any]:
    model = model_of(kind, ask)
    if "tools" in ask:
        functions = [{"name": name, "description": "Tells it.", "parameters": CITY} for name in ask["tools"]]
        tools = [{"type": "function", "function": function} for function in functions]
        choice = {"required": "any"}.get(ask.get("choice", ""), ask.get("choice"))
        model = model.bind_tools(tools, **({"tool_choice": choice} if choice and kind != "ollama" else {}))
    if "schema" in ask:
        shaped = model.with_structured_output({"title": "answer", **ask["schema"]}, method="json_schema", include_raw=True)
        return {"text": str(shaped.invoke(messages(ask))["raw"].text)}
    given = {"stop": ask["stop"]} if "stop" in ask else {}
    if not ask.get("stream"):
        return told(model.invoke(messages(ask), **given), {})
    whole, pieces = None, 0
    for chunk in model.stream(messages(ask), **given):
        pieces += bool(chunk.text)
        whole = chunk if whole is None else whole + chunk
    return told(whole, {"pieces": pieces})


def told(answer: Any, more: dict[str, Any]) -> dict[str, Any]:
    facts = answer.response_metadata
    finish = facts.get("finish_reason") or facts.get("stop_reason") or facts.get("done_reason") or facts.get("status")
    blocks = answer.content if isinstance(answer.content, list) else []
    thinking = "".join(block.get("thinking", "") for block in blocks if isinstance(block, dict))
    used = answer.usage_metadata
    calls = [{"id": call["id"], "name": call["name"], "args": call["args"]} for call in answer.tool_calls]
    return {
        "text": answer.text if isinstance(answer.text, str) else answer.text(),
        "finish": "tool_calls" if calls else FINISH.get(finish, finish),
        "calls": calls,
        "thinking": thinking or answer.additional_kwargs.get("reasoning_content", ""),
        "logprobs": [item["logprob"] for item in (facts.get("logprobs") or {}).get("content") or ()],
        "usage": used and [used["input_tokens"], used["output_tokens"]],
        **more,
    }


def messages(ask: dict[str, Any]) -> list[Any]:
    out: list[Any] = [SystemMessage(ask["system"])] if "system" in ask else []
    for turn in ask["turns"]:
        if turn["role"] == "tool":
            out += [ToolMessage(item["text"], tool_call_id=item["id"], name=item["name"]) for item in turn["results"]]
        elif turn["role"] == "assistant":
            out.append(
                AIMessage(turn.get("text") or "", tool_calls=[{**call, "type": "tool_call"} for call in turn.get("calls", ())])
            )
        elif "image" in turn:
            image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{turn['image']}"}}
            out.append(HumanMessage([{"type": "text", "text": turn["text"]}, image]))
        else:
            out.append(HumanMessage(turn["text"]))
    return out
