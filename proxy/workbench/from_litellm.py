"""LiteLLM's config.yaml → ours.

Source: docs.litellm.ai, Config.yaml and "All settings" (2026-10).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from proxy.workbench.providers import GEMINI, OPENAI, PROVIDERS, TGI, Provider
from proxy.workbench.takeover import Json, Takeover

THEIRS = {  # provider in front of a model's name → ours
    **{
        name: PROVIDERS[name]
        for name in ("openai", "anthropic", "gemini", "groq", "mistral", "deepseek", "openrouter", "ollama")
    },
    "ollama_chat": PROVIDERS["ollama"],
    "text-completion-openai": OPENAI,
    "openai_like": OPENAI,
    "custom_openai": OPENAI,
    "together_ai": PROVIDERS["together"],
    "hosted_vllm": PROVIDERS["vllm"],
    "vllm": PROVIDERS["vllm"],
    "lm_studio": PROVIDERS["lmstudio"],
    "huggingface": TGI,
    "azure": Provider("openai", "", "AZURE_API_KEY"),
    "bedrock": Provider("bedrock", ""),
    "sagemaker": Provider("sagemaker", ""),
}
UNPREFIXED = ((r"claude", PROVIDERS["anthropic"]), (r"gemini", GEMINI), (r"", OPENAI))
STRATEGIES = {"simple-shuffle": "round-robin", "least-busy": "least-busy", "weighted-pick": "weighted"}
ABLE = {
    "supports_function_calling": "tools",
    "supports_parallel_function_calling": "parallel_tools",
    "supports_vision": "images",
    "supports_response_schema": "json_schema",
    "supports_tool_choice": "tool_choice",
    "max_input_tokens": "context",
}
PRICES = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached",
}


def litellm(taken: Takeover) -> None:
    """Targets and models of model_list, then what the settings say of all of them."""
    rows = range(len(taken.peek("model_list") or ()))
    groups: dict[str, list[int]] = {}
    for i in rows:
        groups.setdefault(str(taken.get("model_list", i, "model_name")), []).append(i)
    names = _served(taken, groups)
    _router(taken, names)
    _general(taken, names)


def _served(taken: Takeover, groups: dict[str, list[int]]) -> dict[str, str]:
    """Model → the name of its target: one of its own where it has several backends or a stand-in, else shared."""
    alone = {name for rule in _fallbacks(taken) for pair in rule.items() for name in (pair[0], *pair[1])}
    names: dict[str, str] = {}
    for model, rows in groups.items():
        made = [(i, found) for i in rows if (found := _target(taken, i))]
        if not made:
            continue
        own = model in alone or len(made) > 1
        placed = [_place(taken, model, i, target, sent, own) for i, (target, sent) in made]
        names[model] = placed[0]
        if len(placed) > 1:
            names[model] = _unused(taken, f"{model}-pool")
            taken.put(("targets", names[model]), {"pool": placed}, "model_list", made[0][0], "model_name")
            taken.put(("models", model), names[model], "model_list", made[0][0], "model_name")
        else:
            sent = made[0][1][1]
            rule: Any = names[model] if own or sent == model else {"target": names[model], "model": sent}
            taken.put(("models", model), rule, "model_list", made[0][0], "model_name")
    return names


def _place(taken: Takeover, model: str, i: int, target: Json, sent: str, own: bool) -> str:
    if own:
        target = {**target, "model": sent}
    for name, other in taken.out["targets"].items():
        if other == target:
            return str(name)
    head = str(taken.peek("model_list", i, "litellm_params", "model")).partition("/")[0]
    shared = head.removesuffix("_chat") if head in THEIRS else target.get("dialect", model)
    name = _unused(taken, model if own else shared)
    taken.put(("targets", name), target, "model_list", i, "litellm_params", "model")
    return name


def _unused(taken: Takeover, wish: str) -> str:
    wish = re.sub(r"[^A-Za-z0-9_.-]+", "-", wish).strip("-") or "any"
    number, name = 1, "any" if wish == "default" else wish
    while name in taken.out["targets"]:
        number, name = number + 1, f"{wish}-{number + 1}"
    return name


def _target(taken: Takeover, i: int) -> tuple[Json, str] | None:
    """One deployment: its target, and what its model is called there; None for a provider that nothing here speaks to."""

    def get(name: str) -> Any:
        return taken.get("model_list", i, "litellm_params", name)

    provider, sent = _provider(str(get("model") or ""), get("custom_llm_provider"))
    url = _text(get("api_base") or get("base_url"))
    version = _text(get("api_version"))
    if provider is None:
        taken.note(
            ("model_list", i, "litellm_params", "model"), f"no dialect for {get('model')!r}: nothing of this entry is here"
        )
        return None
    region = get("aws_region_name")
    if provider.dialect in ("bedrock", "sagemaker") and region:
        host = "bedrock-runtime" if provider.dialect == "bedrock" else "runtime.sagemaker"
        url = url or f"https://{host}.{region}.amazonaws.com"
    target: Json = {"url": url or provider.url, "dialect": provider.dialect}
    if url.startswith("os.environ/") or not target["url"]:
        taken.note(("model_list", i, "litellm_params", "api_base"), "the url must stand in the configuration: write it there")
        target["url"] = "https://example.invalid"
    key = get("api_key")
    if key:
        target["envkey"] = taken.variable(key, provider.envkey or f"{provider.dialect}_API_KEY")
    elif provider.envkey and not url:
        target["envkey"] = provider.envkey
    if version:
        target["azure"] = {"api_version": version}
    target |= _rest(taken, i, sent, get)
    return target, sent


def _rest(taken: Takeover, i: int, sent: str, get: Any) -> Json:
    """What else a deployment says: headers, times, limits, capabilities; and its prices, which go by the model that is sent."""
    organization, headers = get("organization"), get("extra_headers") or {}
    out: Json = {"headers": {**({"openai-organization": _text(organization)} if organization else {}), **headers}}
    out |= {"timeout": get("timeout"), "limits": f"{get('rpm')}/minute" if get("rpm") else None}
    out |= {"concurrency": get("max_parallel_requests")}
    tries = get("num_retries") if get("num_retries") is not None else get("max_retries")
    out["retries"] = {"attempts": tries + 1} if isinstance(tries, int) else None
    info = {name: taken.get("model_list", i, "model_info", name) for name in (*ABLE, *PRICES)}
    info |= {name: get(name) for name in PRICES if get(name) is not None}
    out["capabilities"] = {ours: info[name] for name, ours in ABLE.items() if info[name] is not None}
    prices = {ours: round(float(info[name]) * 1e6, 6) for name, ours in PRICES.items() if info[name] is not None}
    if prices:
        taken.put(("prices", sent), prices, "model_list", i, "model_info")
    return {name: value for name, value in out.items() if value not in (None, {}, "")}


def _provider(model: str, named: Any) -> tuple[Provider | None, str]:
    head, slash, rest = model.partition("/")
    if named:
        return THEIRS.get(str(named)), rest if slash and head == named else model
    if slash and head in THEIRS:
        return THEIRS[head], rest.removeprefix("converse/") if head == "bedrock" else rest
    if slash:
        return None, model
    return next(provider for start, provider in UNPREFIXED if re.match(start, model)), model


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _fallbacks(taken: Takeover) -> Iterator[dict[str, list[str]]]:
    for section in ("router_settings", "litellm_settings"):
        for rule in taken.peek(section, "fallbacks") or ():
            if isinstance(rule, dict):
                yield rule


def _router(taken: Takeover, names: dict[str, str]) -> None:
    """router_settings, and what litellm_settings may say of the same."""
    targets = taken.out["targets"]
    pools = [name for name, target in targets.items() if "pool" in target]
    strategy = taken.peek("router_settings", "routing_strategy")
    if strategy in STRATEGIES:
        taken.get("router_settings", "routing_strategy")
        for name in pools:
            taken.put(("targets", name, "strategy"), STRATEGIES[strategy], "router_settings", "routing_strategy")
    for section in ("litellm_settings", "router_settings"):
        tries = taken.get(section, "num_retries")
        for name in targets:
            if isinstance(tries, int) and name not in pools and "retries" not in targets[name]:
                taken.put(("targets", name, "retries"), {"attempts": tries + 1}, section, "num_retries")
        for at, rule in enumerate(taken.peek(section, "fallbacks") or ()):
            for model, others in (taken.get(section, "fallbacks", at) or rule).items():
                known = [names[other] for other in others if other in names]
                if model in names and known:
                    taken.put(("targets", names[model], "fallback"), known, section, "fallbacks", at)
                else:
                    taken.note(
                        (section, "fallbacks", at), f"{model} → {', '.join(map(str, others))}: not all are models of this file"
                    )
    fails, cool = taken.get("router_settings", "allowed_fails"), taken.get("router_settings", "cooldown_time")
    breaker = {**({"failures": fails + 1} if isinstance(fails, int) else {}), **({"cool_s": cool} if cool else {})}
    for name in targets if breaker else ():
        if name not in pools:
            taken.put(
                ("targets", name, "breaker"),
                breaker,
                "router_settings",
                "allowed_fails" if fails is not None else "cooldown_time",
            )
    for alias, model in (taken.get("router_settings", "model_group_alias") or {}).items():
        if model in taken.out.get("models", {}):
            taken.put(("models", alias), taken.out["models"][model], "router_settings", "model_group_alias")
        else:
            taken.note(("router_settings", "model_group_alias"), f"{alias!r}: there is no model {model!r}")
    host = taken.get("router_settings", "redis_host")
    if host:
        port = taken.get("router_settings", "redis_port") or 6379
        taken.put(("state",), f"redis://{host}:{port}", "router_settings", "redis_host")


def _general(taken: Takeover, names: dict[str, str]) -> None:
    """general_settings and what is left of litellm_settings; the default target."""
    wished = taken.get("general_settings", "completion_model")
    first = names.get(str(wished)) or next(iter(names.values()), "")
    taken.out["targets"] = {"default": first, **taken.out["targets"]}
    master = taken.get("general_settings", "master_key")
    if master and taken.variable(master, "MOOLTIPROXY_KEY") != "MOOLTIPROXY_KEY":
        variable = str(master).removeprefix("os.environ/")
        taken.note(("general_settings", "master_key"), f"the key is called MOOLTIPROXY_KEY here: give it what {variable} holds")
    taken.move(("cerbere", "only"), "general_settings", "allowed_ips")
    taken.move(("system", "limits", "body"), "general_settings", "max_request_size_mb", turn=lambda mb: f"{mb}MiB")
    taken.move(("system", "timeout"), "litellm_settings", "request_timeout")
    taken.move(("system", "timeout"), "router_settings", "timeout")
    taken.move(("system", "debug"), "litellm_settings", "set_verbose")
    taken.move(("system", "log", "format"), "litellm_settings", "json_logs", turn=lambda on: "json" if on else "text")
    drops, cached = taken.get("litellm_settings", "drop_params"), taken.get("litellm_settings", "cache")
    ttl = taken.get("litellm_settings", "cache_params", "ttl") if cached else None
    for name, target in taken.out["targets"].items():
        if isinstance(target, dict) and "pool" not in target:
            if drops is not None:
                taken.put(("targets", name, "on_loss"), "warn" if drops else "reject", "litellm_settings", "drop_params")
            if cached:
                kept = {"default": True, **({"ttl_s": ttl} if ttl else {})}
                taken.put(("targets", name, "cache"), kept, "litellm_settings", "cache")
    if cached and "state" in taken.out and taken.get("litellm_settings", "cache_params", "type") == "redis":
        taken.put(("cache", "store"), "state", "litellm_settings", "cache_params", "type")
    for name, value in (taken.get("environment_variables") or {}).items():
        taken.secrets[str(name)] = str(value)
