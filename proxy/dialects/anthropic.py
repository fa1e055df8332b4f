"""Anthropic's Messages API: a turn is a list of typed blocks, and a stream opens and closes them one at a time.

What Messages has and no other API has a place for is left out on the way to the hub: server tools (web_search,
code_execution, …) with their blocks and results, which `cfg["lost"]` is told of, citations, and the order of text and tool
calls within a turn. Between two ends that both speak Messages nothing is, as no mapper runs. Decisions:
- `max_tokens` must be given: a request without a limit gets 32,000, or more where its thinking budget needs it.
- `temperature` ends at 1, not 2: what is above is sent as 1 and reported.
- `system_policy` of the endpoint says what a system message in mid-conversation becomes: `inline` (the default) stays a
  system message, which Claude takes since Opus 4.8; `hoist` goes to the top-level `system`; `user` is a user's text.
- Gemini's signatures travel in redacted_thinking blocks (`_seal.py`), which no Messages backend gets.
- What a Claude refuses depends on its generation (`_anthropic_claude.py`): newer ones sampling parameters and budgets of
  thinking, most of them temperature beside top_p. It is left out and reported. A schema for the answer is closed.
- Version 2026-10-21 of the API refuses temperature, top_p and top_k, so a backend is asked in version 2023-06-01.
Requests are in `_anthropic_request.py`, answers and streams in `_anthropic_answer.py`, errors and the grammar of streams in
`_anthropic_grammar.py`.
Source: anthropic SDK 2.12; platform.claude.com/docs (2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from proxy.dialects import Dialect, Route, Upstream
from proxy.dialects._answer import parse_error as hub_error
from proxy.dialects._answer import unix_of
from proxy.dialects._anthropic_answer import (
    chatAnsAnthropictoOpenAI,
    chatAnsOpenAItoAnthropic,
    chatStreamAnthropictoOpenAI,
    chatStreamOpenAItoAnthropic,
)
from proxy.dialects._anthropic_claude import fitted
from proxy.dialects._anthropic_grammar import error_body, grammar
from proxy.dialects._anthropic_request import chatReqAnthropictoOpenAI, ledger, messages_request
from proxy.dialects._seal import is_sealed
from proxy.dialects.openai import Json, canonical, count, pick_model, text
from proxy.errors import BackendError
from proxy.wire import frame

__all__ = [
    "DIALECT",
    "chatAnsAnthropictoOpenAI",
    "chatAnsOpenAItoAnthropic",
    "chatReqAnthropictoOpenAI",
    "chatReqOpenAItoAnthropic",
    "chatStreamAnthropictoOpenAI",
    "chatStreamOpenAItoAnthropic",
    "error_body",
    "grammar",
]

COUNTED = frozenset(("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config"))


def chatReqOpenAItoAnthropic(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """The hub's chat request → a Messages request that the model's generation takes.

    In: any Chat body. Out: a new dict; n, seed, penalties, logprobs, json_object and what else Messages lacks are left out.
    Raises: BadRequest for n > 1, audio, arguments that are no JSON object. Source: anthropic SDK 2.12, MessageCreateParams.
    """
    req = canonical(ip)
    return messages_request(fitted(req, text(cfg.get("model")) or text(req.get("model")), ledger(cfg)), cfg)


countReqAnthropictoOpenAI = chatReqAnthropictoOpenAI  # what is counted is a request like any other, only without a limit


def countReqOpenAItoAnthropic(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """The hub's chat request → a count_tokens request, which takes fewer fields."""
    return {name: value for name, value in chatReqOpenAItoAnthropic(ip, cfg).items() if name in COUNTED}


def countAnsAnthropictoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """{"input_tokens": n}, without what else a backend says. Raises: BackendError when there is no number."""
    if not isinstance(ip, dict) or not isinstance(ip.get("input_tokens"), int):
        raise BackendError("the backend's answer has no input_tokens")
    return {"input_tokens": count(ip["input_tokens"])}


countAnsOpenAItoAnthropic = countAnsAnthropictoOpenAI  # the hub's count is Anthropic's


def modelsAnsAnthropictoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """A page of ModelInfo → the hub's list. Raises: BackendError when there is none."""
    hub = [
        {"id": model["id"], "object": "model", "created": unix_of(model.get("created_at")), "owned_by": "anthropic"}
        for model in _listed(ip)
    ]
    return {"object": "list", "data": hub}


def modelsAnsOpenAItoAnthropic(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """The hub's list of models → one page of ModelInfo. Raises: BackendError when there is none."""
    data = [_model_out(model) for model in _listed(ip)]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": first, "last_id": last}


def modelAnsOpenAItoAnthropic(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """The hub's list of models → the one that the path names. Raises: BadRequest, 404, when it is not among them."""
    return _model_out(pick_model(ip, cfg))


def _listed(ip: Any) -> list[Json]:
    data = ip.get("data") if isinstance(ip, dict) else None
    if not isinstance(data, list):
        raise BackendError("the backend's answer has no list of models")
    return [model for model in data if isinstance(model, dict) and text(model.get("id"))]


def _model_out(model: Json) -> Json:
    shown = {"type": "model", "id": model["id"], "display_name": model["id"], "created_at": _iso(count(model.get("created")))}
    return {**shown, "lifecycle": "active"}


def _iso(unix: int) -> str:
    """RFC 3339; Anthropic gives the epoch where the date is not known."""
    try:
        return datetime.fromtimestamp(unix, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01T00:00:00Z"


def parse_error(status: int, body: Any) -> BackendError:
    """Anthropic's error body → its facts; 529 is everybody else's 503."""
    return hub_error(503 if status == 529 else status, body)


def without_sealed(ip: Any) -> Any:
    """A Messages body as Anthropic may get it: without blocks that this proxy wrote for another API's backend."""
    messages = ip.get("messages") if isinstance(ip, dict) else None
    if not isinstance(messages, list):
        return ip
    kept = [_unsealed(message) for message in messages]
    return {**ip, "messages": [message for message in kept if not isinstance(message, dict) or message.get("content") != []]}


def _unsealed(message: Any) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list):
        return message
    return {**message, "content": [block for block in content if not isinstance(block, dict) or not is_sealed(block)]}


DIALECT = Dialect(
    name="anthropic",
    tag="Anthropic",
    routes=(
        Route("POST", "/v1/messages", "chat"),
        Route("POST", "/v1/messages/count_tokens", "count"),
        Route("GET", "/v1/models", "models"),
        Route("GET", "/v1/models/{model}", "model"),
    ),
    backend={
        "chat": Upstream("/messages"),
        "count": Upstream("/messages/count_tokens"),
        "models": Upstream("/models?limit=1000", method="GET"),  # the most that a page may have; 20 else
    },
    version="/v1",
    error_body=error_body,
    parse_error=parse_error,
    grammar=grammar,
    statuses={503: 529},
    auth="x-api-key",
    id_header="request-id",
    headers={"anthropic-version": "2023-06-01"},
    forward=frozenset(("anthropic-version", "anthropic-beta")),
    prefixes=("/v1",),
    framing=lambda query: "named-sse",
    keepalive=frame("named-sse", {"type": "ping"}),
    unsealed=without_sealed,
    tuning=frozenset(
        (
            *("temperature", "top_p", "top_k", "metadata", "user_profile_id", "service_tier", "inference_geo", "speed"),
            *("cache_control", "context_management", "diagnostics"),
        )
    ),
)
