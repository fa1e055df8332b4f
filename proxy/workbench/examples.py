"""Example requests: one of each kind in the hub's form, written for any front by the front's own mappers."""

from __future__ import annotations

from typing import Any

from proxy.dialects import Route, load, mapper
from proxy.errors import ConfigError
from proxy.wire import dumps

Json = dict[str, Any]
MODEL = "example-model"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLED = {"id": "call_paris01", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
CHAT: Json = {
    "model": MODEL,
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
    "max_completion_tokens": 6,
    "temperature": 0.5,
}
TOOLS: Json = {
    "model": MODEL,
    "messages": [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "call_paris01", "content": "Sunny, 25 degrees."},
        {"role": "user", "content": "And in Rome? Ask the tool again."},
    ],
    "tools": [WEATHER],
}
IMAGE: Json = {
    "model": MODEL,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is in this picture?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            ],
        }
    ],
}
PROMPT: Json = {"model": MODEL, "prompt": "The sky is", "max_tokens": 6}
EMBED: Json = {"model": MODEL, "input": ["The sky is blue.", "Grass is green."]}
STREAMED = ("chat", "text")
EXAMPLES: dict[str, tuple[str, bool, Json]] = {  # name → kind, whether it streams, the hub's body
    "chat": ("chat", False, CHAT),
    "chat-stream": ("chat", True, CHAT),
    "tools": ("chat", False, TOOLS),
    "tools-stream": ("chat", True, TOOLS),
    "image": ("chat", False, IMAGE),
    "completions": ("text", False, PROMPT),
    "completions-stream": ("text", True, PROMPT),
    "embeddings": ("embed", False, EMBED),
}


def offered(front: str) -> list[str]:
    """The examples that the clients of an API can send, the plainest first."""
    return [name for name, (kind, streams, _) in EXAMPLES.items() if routes(front, kind, streams)]


def example(front: str, name: str, path: str | None = None) -> tuple[str, bytes]:
    """(path, body) of an example as a client of that front sends it; see `written`."""
    return written(front, *EXAMPLES[name], path)


def written(front: str, kind: str, streams: bool, hub: Json, path: str | None = None) -> tuple[str, bytes]:
    """A request of the hub as a client of that front sends it: (path, body). `path`: there, if it is for this kind of work.

    Raises ConfigError where such clients send none of that kind.
    """
    found = routes(front, kind, streams)
    if not found:
        raise ConfigError([f"clients of {front} send no such request; there is {', '.join(offered(front)) or 'no example'}"])
    route = next((route for route in found if route.path == path), found[0])
    body = {**hub, "stream": streams} if kind in STREAMED else hub
    write = mapper(f"{kind}ReqOpenAIto{load(front).tag}") if front != "openai" else None
    if write:
        body = write(body, {"model": hub["model"], "stream": streams, "id": "", "now": 0})
    return route.path.replace("{model}", hub["model"]), dumps(body)


def routes(front: str, kind: str, streams: bool) -> list[Route]:
    """Where the clients of a front send requests of a kind, if there is a mapper to write them with."""
    api = load(front)
    if front != "openai" and not mapper(f"{kind}ReqOpenAIto{api.tag}"):
        return []
    fitting = (None, streams) if kind in STREAMED else (None, True, False)
    return [route for route in api.routes if route.kind == kind and route.stream in fitting]
