"""The tools of the Responses API as functions of the hub, and the calls of those functions as items that the client knows.

What a client runs itself becomes a function: custom tools, members of a namespace, local_shell, shell, apply_patch. What
OpenAI runs (web_search, mcp, …) has no counterpart and is left out. A hub function is named after tool and namespace, and
`registry` finds the way back from that name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.dialects._hub import Json, canonical_tool, compact, expect, parse_arguments, tool_id
from proxy.errors import BadRequest

STRINGS = {"type": "array", "items": {"type": "string"}}
EXEC = {
    "command": STRINGS,
    "env": {"type": "object", "additionalProperties": {"type": "string"}},
    "working_directory": {"type": "string"},
    "timeout_ms": {"type": "integer"},
}
PATCH = {
    "type": {"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
    "path": {"type": "string"},
    "diff": {"type": "string"},
}
LIMITS = {"timeout_ms": {"type": "integer"}, "max_output_length": {"type": "integer"}}


@dataclass(frozen=True)
class Local:
    """A built-in tool that the client runs: the call item's field with what to do, and that field as a function's schema."""

    field: str
    description: str
    properties: Json
    required: tuple[str, ...]
    fixed: tuple[tuple[str, Any], ...] = ()  # what the call item must have there too


LOCAL = {
    "local_shell": Local(
        "action", "Runs a command on the user's machine.", EXEC, ("command",), (("type", "exec"), ("env", {}))
    ),
    "shell": Local("action", "Runs shell commands on the user's machine.", {"commands": STRINGS, **LIMITS}, ("commands",)),
    "apply_patch": Local("operation", "Creates, updates or deletes a file with a V4A diff.", PATCH, ("type", "path")),
}
CALL_TYPES = {"function_call": "function", "custom_tool_call": "custom", **{f"{kind}_call": kind for kind in LOCAL}}
OUTPUT_TYPES = frozenset(f"{name}_output" for name in CALL_TYPES)


@dataclass(frozen=True)
class Tool:
    """A tool as the client knows it."""

    kind: str  # function, custom, or a key of LOCAL
    name: str
    namespace: str | None = None


def hub_name(name: str, namespace: str | None = None) -> str:
    """The function name of a tool: what every API accepts, and never the same for two tools."""
    joint = "" if not namespace or namespace.endswith("__") else "__"
    return tool_id(f"{namespace or ''}{joint}{name}")


def declared(request: Mapping[str, Any]) -> Iterator[tuple[str, Any, str | None]]:
    """(path, tool, namespace) of every tool, also those in namespaces and in `additional_tools` items."""
    lists = [("tools", request.get("tools"))]
    items = request.get("input")
    for i, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict) and item.get("type") == "additional_tools":
            lists.append((f"input[{i}].tools", item.get("tools")))
    for where, tools in lists:
        for i, tool in enumerate(tools if isinstance(tools, list) else ()):
            members = tool.get("tools") if isinstance(tool, dict) and tool.get("type") == "namespace" else None
            if not isinstance(members, list):
                yield f"{where}[{i}]", tool, None
                continue
            for j, member in enumerate(members):
                yield f"{where}[{i}].tools[{j}]", member, tool.get("name")


def registry(request: Any) -> dict[str, Tool]:
    """Hub function name → the client's tool. A namespaced tool answers to its bare name too, where only one has it."""
    found: dict[str, Tool] = {}
    for _, tool, namespace in declared(request) if isinstance(request, Mapping) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        name = kind if kind in LOCAL else tool.get("name") if kind in ("function", "custom") else None
        if isinstance(name, str) and isinstance(kind, str):
            found[hub_name(name, namespace)] = Tool(kind, name, namespace)
    spaced = [tool for tool in found.values() if tool.namespace]
    bare = Counter(tool.name for tool in spaced)
    for tool in spaced:
        if bare[tool.name] == 1:
            found.setdefault(tool_id(tool.name), tool)
    return found


def hub_tools(request: Mapping[str, Any], lost: Callable[[str, str], Any] | None = None) -> list[Json]:
    """The request's tools as hub functions; what only OpenAI runs is left out. Raises BadRequest."""
    tools: dict[str, Json] = {}
    for path, tool, namespace in declared(request):
        kind = expect(tool, "dict", path).get("type")
        if isinstance(kind, str) and kind in LOCAL:
            tools[kind] = _local_function(kind, LOCAL[kind])
        elif kind in ("function", "custom"):
            hub = canonical_tool(tool, path)
            known = {name: hub["function"][name] for name in ("description", "parameters", "strict") if name in hub["function"]}
            name = hub_name(hub["function"]["name"], namespace)
            tools[name] = {"type": "function", "function": {"name": name, **known}}
        elif not isinstance(kind, str):
            raise BadRequest(f"{path}.type must be a string", param=f"{path}.type")
        elif lost is not None:
            lost(path, f"{kind} is run by OpenAI; this backend has none")
    return list(tools.values())


def _local_function(name: str, local: Local) -> Json:
    schema = {"type": "object", "properties": local.properties, "required": list(local.required)}
    return {"type": "function", "function": {"name": name, "description": local.description, "parameters": schema}}


def hub_choice(choice: Any, tools: list[Json]) -> Any:
    """tool_choice → the hub's. Raises BadRequest where it demands a tool that was left out."""
    names = [tool["function"]["name"] for tool in tools]
    if choice in ("auto", "none") or (choice == "required" and tools):
        return choice
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "allowed_tools":
        allowed = [{"name": _chosen(item)} for item in expect(choice.get("tools"), "list", "tool_choice.tools")]
        if any(item["name"] in names for item in allowed):
            return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": allowed}}
    elif kind is not None and _chosen(choice) in names:
        return {"type": "function", "function": {"name": _chosen(choice)}}
    raise BadRequest("tool_choice demands a tool that this backend cannot be given", param="tool_choice")


def _chosen(choice: Any) -> str | None:
    """The hub name that one tool choice means."""
    if not isinstance(choice, dict) or not isinstance(choice.get("type"), str):
        return None
    name = choice["type"] if choice["type"] in LOCAL else choice.get("name")
    namespace = choice.get("namespace")
    return hub_name(name, namespace if isinstance(namespace, str) else None) if isinstance(name, str) else None


def hub_call(item: Json, param: str) -> Json:
    """A call item of the history → a tool call of the hub. Raises BadRequest."""
    kind = CALL_TYPES[item["type"]]
    call_id = expect(item.get("call_id"), "str", f"{param}.call_id")
    if kind in LOCAL:
        payload = expect(item.get(LOCAL[kind].field), "dict", f"{param}.{LOCAL[kind].field}")
        name, arguments = kind, compact(payload)
    else:
        namespace = item.get("namespace")
        name = hub_name(expect(item.get("name"), "str", f"{param}.name"), namespace if isinstance(namespace, str) else None)
        field = "arguments" if kind == "function" else "input"
        arguments = expect(item.get(field), "str", f"{param}.{field}")
        arguments = arguments if kind == "function" else compact({"input": arguments})
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def call_item(tool: Tool, item_id: str, call_id: str, arguments: str, status: str = "completed") -> Json:
    """A call of the hub → the item that the client expects for this tool. Raises BackendError for arguments that do not fit."""
    named = {"name": tool.name, **({"namespace": tool.namespace} if tool.namespace else {})}
    head = {"id": item_id, "type": f"{tool.kind}_call", "status": status, "call_id": call_id}
    if tool.kind == "function":
        return {**head, **named, "arguments": arguments}
    value = parse_arguments(arguments)
    if tool.kind == "custom":
        written = value.get("input", "")
        return {**head, "type": "custom_tool_call", **named, "input": written if isinstance(written, str) else compact(written)}
    return {**head, LOCAL[tool.kind].field: {**dict(LOCAL[tool.kind].fixed), **value}}
