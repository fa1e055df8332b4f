"""A request as a coding agent sends it: a long system prompt in three blocks, two dozen tools, a conversation of tool calls.

It is made up, of about 100 KB, and the same every time.
"""

from __future__ import annotations

import json
from typing import Any

TOOLS = 24
TURNS = 14
BYTES = 100_000  # about
CLOSED = {"additionalProperties": False}
SENTENCE = "Read the file before you change it, keep to the style around the change, and say in a sentence what was done. "
CACHED = {"cache_control": {"type": "ephemeral"}}
LINE = '{:6}\tdef handle_{}(request: Request, *, retries: int = 3) -> Response:  # "quoted", tabbed, and back\\slashed\n'


def request() -> dict[str, Any]:
    """The body of POST /v1/messages."""
    body: dict[str, Any] = {
        "model": "claude-agent",
        "max_tokens": 32000,
        "stream": True,
        "thinking": {"type": "enabled", "budget_tokens": 8000},
        "metadata": {"user_id": "user_" + "0123456789abcdef" * 8},
        "system": [
            {"type": "text", "text": "You are an agent that works in a terminal."},
            {"type": "text", "text": SENTENCE * 90, **CACHED},
            {"type": "text", "text": "Working directory: /home/dev/project\nPlatform: linux\n" + SENTENCE * 10, **CACHED},
        ],
        "tools": [_tool(number) for number in range(TOOLS)],
        "messages": [message for number in range(TURNS) for message in _turn(number)],
    }
    body["messages"].append({"role": "user", "content": [{"type": "text", "text": "Now make the tests pass.", **CACHED}]})
    lines = max(0, BYTES - len(json.dumps(body))) // (len(LINE) + 20)
    body["messages"][2]["content"][0]["content"] += "".join(LINE.format(at, at) for at in range(lines))
    return body


def _tool(number: int) -> dict[str, Any]:
    texts = {name: {"type": "string", "description": "As it stands in the file"} for name in ("old", "new")}
    edit = {"type": "object", "properties": {**texts, "all": {"type": "boolean"}}, "required": ["old", "new"], **CLOSED}
    fields = {
        "path": {"type": "string", "description": "Absolute path of the file to work on"},
        "lines": {"type": "array", "items": {"type": "integer", "minimum": 1}, "description": "First and last line"},
        "mode": {"type": "string", "enum": ["read", "write", "append"], "default": "read"},
        "edits": {"type": "array", "items": edit},
    }
    schema = {"type": "object", "properties": fields, "required": ["path"], **CLOSED}
    named = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
    return {"name": f"tool_{number}", "description": SENTENCE * 8, "input_schema": named}


def _turn(number: int) -> list[dict[str, Any]]:
    """Thinking, a text and a tool call, and the call's result."""
    call_id = f"toolu_{number:024d}"
    given = {"path": f"/home/dev/project/src/module_{number}.py", "lines": [1, 400], "mode": "read"}
    said = [
        {"type": "thinking", "thinking": SENTENCE * 3, "signature": "c2lnbmF0dXJl" * 30},
        {"type": "text", "text": f"I look at module {number} first."},
        {"type": "tool_use", "id": call_id, "name": f"tool_{number}", "input": given},
    ]
    result = {"type": "tool_result", "tool_use_id": call_id, "content": "".join(LINE.format(at, at) for at in range(16))}
    asked = [{"role": "user", "content": "Find out why the tests fail."}] if not number else []
    return [*asked, {"role": "assistant", "content": said}, {"role": "user", "content": [result]}]
