"""openai-forward's YAML, or its older .env → ours.

Source: openai-forward 0.8, openai_forward/config/settings.py and its example files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from proxy.settings.source import Path
from proxy.workbench.takeover import Json, Takeover, hashed

PLACES: Mapping[str, Path] = {  # variable → where the YAML has it
    "FORWARD_CONFIG": ("forward",),
    "OPENAI_API_KEY": ("api_key", "openai_key"),
    "OPENAI_API_KEY_CONFIG": ("api_key", "openai_key"),
    "FORWARD_KEY": ("api_key", "forward_key"),
    "FORWARD_KEY_CONFIG": ("api_key", "forward_key"),
    "LEVEL_MODELS": ("api_key", "level"),
    "REQ_RATE_LIMIT": ("rate_limit", "req_rate_limit"),
    "TOKEN_RATE_LIMIT": ("rate_limit", "token_rate_limit"),
    "GLOBAL_RATE_LIMIT": ("rate_limit", "global_rate_limit"),
    "RATE_LIMIT_STRATEGY": ("rate_limit", "strategy"),
    "REQ_RATE_LIMIT_BACKEND": ("rate_limit", "req_rate_limit_backend"),
    "ITER_CHUNK_TYPE": ("rate_limit", "iter_chunk"),
    "CACHE_OPENAI": ("cache", "openai"),
    "CACHE_CHAT_COMPLETION": ("cache", "openai"),
    "CACHE_GENERAL": ("cache", "general"),
    "CACHE_BACKEND": ("cache", "backend"),
    "CACHE_ROUTES": ("cache", "routes"),
    "CACHE_ROOT_PATH_OR_URL": ("cache", "root_path_or_url"),
    "DEFAULT_REQUEST_CACHING_VALUE": ("cache", "default_request_caching_value"),
    "LOG_OPENAI": ("log", "openai"),
    "LOG_CHAT": ("log", "openai"),
    "LOG_GENERAL": ("log", "general"),
    **{name.upper(): (name,) for name in ("timeout", "proxy", "ip_whitelist", "ip_blacklist", "benchmark_mode", "tz")},
}
LISTS = ("ip_whitelist", "ip_blacklist")


def as_yaml(values: Mapping[str, str]) -> tuple[Json, dict[Path, str]]:
    """An .env in the YAML's shape, and the variable that each part came from."""
    out: Json = {}
    places: dict[Path, str] = {}
    values = {name: value for name, value in values.items() if value}
    pairs = [("OPENAI_BASE_URL", "OPENAI_ROUTE_PREFIX", "openai"), ("EXTRA_BASE_URL", "EXTRA_ROUTE_PREFIX", "general")]
    for urls, routes, kind in pairs:
        prefixes = _list(values.get(routes, "/"))
        for i, url in enumerate(_list(values.get(urls, ""))):
            item = {"base_url": url, "route": prefixes[i] if i < len(prefixes) else "/", "type": kind}
            out.setdefault("forward", []).append(item)
            places[("forward", len(out["forward"]) - 1)] = urls
    for name, value in values.items():
        if name in ("OPENAI_BASE_URL", "OPENAI_ROUTE_PREFIX", "EXTRA_BASE_URL", "EXTRA_ROUTE_PREFIX"):
            continue
        path = PLACES.get(name, (name,))
        places[path] = name
        at = out
        for step in path[:-1]:
            at = at.setdefault(str(step), {})
        at[str(path[-1])] = _list(value) if path[-1] in LISTS else _value(value)
    return out, places


def _list(value: str) -> list[str]:
    return [item.strip() for item in value.replace("，", ",").split(",") if item.strip()]  # people type either comma


def _value(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return {"true": True, "false": False}.get(value.lower(), value)


def openai_forward(taken: Takeover) -> None:
    """A target for each forward, then keys, limits and the rest."""
    targets = _targets(taken)
    _upstream_keys(taken, targets)
    _keys(taken)
    _limits(taken, targets)
    taken.move(("system", "timeout"), "timeout")
    taken.move(("cerbere", "only"), "ip_whitelist")
    taken.move(("cerbere", "blacklist"), "ip_blacklist")
    proxy = taken.get("proxy")
    for name in targets if proxy else ():
        taken.put(("targets", name, "proxy"), proxy, "proxy")
    if taken.get("benchmark_mode"):
        taken.put(("targets", "benchmark"), {"url": "demo://", "dialect": "openai", "route": "/benchmark"}, "benchmark_mode")
    if taken.get("cache", "openai"):
        rule = {"default": taken.get("cache", "default_request_caching_value") is True}
        for name in targets:
            if "dialect" in taken.out["targets"][name]:
                taken.put(("targets", name, "cache"), rule, "cache", "openai")
    if taken.get("log", "openai"):
        taken.put(("records", "calls", "database"), "sqlite:///calls.db", "log", "openai")


def _targets(taken: Takeover) -> list[str]:
    """Their names; the one at / becomes the default."""
    forwards = taken.peek("forward")
    if not isinstance(forwards, list):
        forwards = []
        taken.put(("targets", "openai"), {"url": "https://api.openai.com", "dialect": "openai"}, "forward")
    names = list(taken.out["targets"])
    default = None
    for i in range(len(forwards)):
        given = {name: taken.get("forward", i, name) for name in ("base_url", "route", "type", "backend", "model_map")}
        url, route, kind = str(given["base_url"] or ""), "/" + str(given["route"] or "").strip("/"), given["type"]
        name = re.sub(r"\W+", "-", route.strip("/")) or (urlsplit(url).hostname or "backend").replace(".", "-")
        name = f"{name}-{i}" if name in names else name
        default = name if route == "/" else default
        target: Json = {"url": re.sub(r"/(messages|chat/completions)/?$", "", url).rstrip("/")}
        if kind == "openai":
            target["dialect"] = "openai"
        elif kind == "custom":
            target["dialect"] = given["backend"]
            for asked, model in (given["model_map"] or {}).items():
                taken.put(("models", asked), {"target": name, "model": model}, "forward", i, "model_map")
        elif route == "/":
            target["mapping"] = {"/*": "/*"}
        target |= {"route": route} if route != "/" else {}
        taken.put(("targets", name), target, "forward", i)
        names.append(name)
    taken.out["targets"] = {"default": default or names[0], **taken.out["targets"]}
    return names


def _upstream_keys(taken: Takeover, targets: list[str]) -> None:
    given = taken.get("api_key", "openai_key")
    keys = [key for key in (_list(given) if isinstance(given, str) else list(given or {})) if key]
    places = [name for name in targets if taken.out["targets"][name].get("dialect") == "openai"]
    if not keys:
        for name in places:
            taken.put(("targets", name, "auth"), "passthrough", "forward")
        taken.note(
            ("forward",), "clients send the backend's own key: the proxy's goes into x-mooltiproxy-key, or see system.open_to"
        )
        return
    names = [
        taken.variable(key, "OPENAI_API_KEY" if len(keys) == 1 else f"OPENAI_API_KEY_{i}") for i, key in enumerate(keys, 1)
    ]
    for name in places:
        field, value = ("envkey", names[0]) if len(names) == 1 else ("envkeys", names)
        taken.put(("targets", name, field), value, "api_key", "openai_key")
    if isinstance(given, dict) and len({str(levels) for levels in given.values()}) > 1:
        taken.note(
            ("api_key", "openai_key"),
            "levels of upstream keys: all keys serve every client here; `targets` of a key divides them",
        )


def _keys(taken: Takeover) -> None:
    """The clients' keys, as hashes; a level's models are its keys' models."""
    given, models = taken.get("api_key", "forward_key"), taken.get("api_key", "level") or {}
    if isinstance(given, str):
        given = dict.fromkeys(_list(given), 0)
    pairs = [
        (key, level) if not isinstance(level, list) else (inner, key)
        for key, level in (given or {}).items()
        for inner in (level if isinstance(level, list) else [None])
    ]
    by_level = {str(level): listed for level, listed in models.items()}
    for n, (key, level) in enumerate(pairs, 1):
        if key:
            allowed = by_level.get(str(level))
            entry = {"sha256": hashed(str(key)), **({"models": allowed} if allowed else {})}
            taken.put(("keys", f"level{level}-{n}"), entry, "api_key", "forward_key")


def _limits(taken: Takeover, targets: list[str]) -> None:
    everywhere = taken.get("rate_limit", "global_rate_limit")
    if everywhere not in (None, "", "inf"):
        taken.put(("limits", "global"), everywhere, "rate_limit", "global_rate_limit")
    for path, rate in _by_level(taken, "req_rate_limit"):
        taken.put(("limits", "paths", path), rate, "rate_limit", "req_rate_limit")
    taken.move(("limits", "strategy"), "rate_limit", "strategy")
    backend = str(taken.get("rate_limit", "req_rate_limit_backend") or taken.get("req_rate_limit_backend") or "")
    if backend.startswith("redis"):
        taken.put(("state",), backend, "rate_limit", "req_rate_limit_backend")
    paces = dict(_by_level(taken, "token_rate_limit"))
    for name in targets if paces else ():
        taken.put(("targets", name, "pace"), next(iter(paces.values())), "rate_limit", "token_rate_limit")
    if len(set(paces.values())) > 1:
        taken.note(("rate_limit", "token_rate_limit"), "a pace for each path: a target has one for all of its paths")


def _by_level(taken: Takeover, name: str) -> list[tuple[str, str]]:
    """(path, rate) of level 0, or of all levels; other levels are told."""
    given = taken.get("rate_limit", name) or []
    pairs = list(given.items()) if isinstance(given, dict) else [(item.get("route"), item.get("value")) for item in given]
    out = []
    for path, rates in pairs:
        rates = [{"level": 0, "limit": rates}] if isinstance(rates, str) else rates or []
        found = {str(item.get("level")): item.get("limit") or item.get("rate_limit") for item in rates}
        if "0" in found:
            out.append((str(path), str(found.pop("0"))))
        if found:
            taken.note(("rate_limit", name), f"{path}: limits by level ({', '.join(found)}); give the `limits` of those keys")
    return out
