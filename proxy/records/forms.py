"""Calls of the log in the forms that other programs read: ShareGPT, OpenAI's fine-tuning, Alpaca, openai-forward's chat log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from proxy.records.marks import text_of
from proxy.records.store import Row

Json = dict[str, Any]
FROM = {"system": "system", "developer": "system", "user": "human", "assistant": "gpt", "tool": "tool", "function": "tool"}


def turns_of(row: Row) -> list[Json]:
    """The messages of a chat or a completion with its first answer behind them; empty where there is none."""
    request, response = row.request, row.response
    choices = response.get("choices") if isinstance(response, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    if not isinstance(request, dict):
        return []
    if isinstance(choice.get("text"), str):
        prompt = request.get("prompt")
        prompt = prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": choice["text"]}]
    answer, messages = choice.get("message"), request.get("messages")
    if not isinstance(answer, dict) or not isinstance(messages, list):
        return []
    return [message for message in (*messages, answer) if isinstance(message, dict)]


def sharegpt(row: Row) -> Json | None:
    """{"id", "conversations": [{"from": system human gpt tool, "value"}]}; calls of tools are JSON."""
    turns = [{"from": FROM.get(str(turn.get("role")), "human"), "value": _said(turn)} for turn in turns_of(row)]
    return {"id": row.conversation or row.id, "conversations": turns} if turns else None


def openai(row: Row) -> Json | None:
    """A line of OpenAI's fine-tuning files: {"messages", "tools"}. Source: OpenAI API reference, Fine-tuning (2026-11)."""
    turns = turns_of(row)
    if not turns:
        return None
    kept = ("role", "content", "name", "tool_calls", "tool_call_id")
    messages = [{name: turn[name] for name in kept if turn.get(name) is not None} for turn in turns]
    tools = row.request.get("tools")
    return {"messages": messages, **({"tools": tools} if tools else {})}


def alpaca(row: Row) -> Json | None:
    """{"instruction": the last thing asked, "input": "", "output", "system", "history": [[asked, answered]]}."""
    turns = turns_of(row)
    if not turns:
        return None
    system = "\n".join(_said(turn) for turn in turns if FROM.get(str(turn.get("role"))) == "system")
    said: list[tuple[str, str]] = []  # who, and what; neighbours of one side as one
    for turn in turns:
        who = FROM.get(str(turn.get("role")), "human")
        if who == "system":
            continue
        side = "gpt" if who == "gpt" else "human"
        if said and said[-1][0] == side:
            said[-1] = (side, f"{said[-1][1]}\n{_said(turn)}")
        else:
            said.append((side, _said(turn)))
    said = said if said[0][0] == "human" else [("human", ""), *said]
    pairs = [[said[at][1], said[at + 1][1]] for at in range(0, len(said) - 1, 2)]
    (instruction, output), history = pairs[-1], pairs[:-1]
    out = {"instruction": instruction, "input": "", "output": output}
    return {**out, **({"system": system} if system else {}), **({"history": history} if history else {})}


def chatlog(row: Row) -> Json | None:
    """openai-forward's: datetime (UTC), ip, model, temperature, messages ({role: content}), tools, is_tool_calls, assistant.

    Of a stream `event_ms`, too: when its events went, in ms after the call's beginning."""
    turns = turns_of(row)
    if not turns:
        return None
    calls = turns[-1].get("tool_calls")
    timed = {"event_ms": list(row.times)} if row.times else {}
    return {
        "datetime": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(row.at)),
        "ip": row.client,
        "model": row.model_asked or row.model_served,
        "temperature": row.request.get("temperature", 1),
        "messages": [{str(turn.get("role")): turn.get("content")} for turn in turns[:-1]],
        "tools": row.request.get("tools"),
        "is_tool_calls": bool(calls),
        "assistant": calls or turns[-1].get("content"),
        **timed,
    }


FORMS: Mapping[str, tuple[Callable[[Row], Json | None], bool, bool]] = {  # whether a conversation is one record; a line each
    "sharegpt": (sharegpt, True, False),
    "openai": (openai, True, True),
    "alpaca": (alpaca, True, False),
    "chatlog": (chatlog, False, False),
}


def _said(turn: Json) -> str:
    """A turn's text, and the tools that it calls."""
    content = turn.get("content")
    parts = [content if isinstance(content, str) else text_of(content)] if content else []
    for call in turn.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            called = {"name": function.get("name"), "arguments": function.get("arguments")}
            parts.append(json.dumps(called, ensure_ascii=False))
    return "\n".join(parts)
