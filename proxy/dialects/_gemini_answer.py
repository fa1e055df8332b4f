"""Gemini's answers and streams ⇄ the hub's, its errors, and the grammar of its streams.

A whole answer and an event of a stream have one shape, so the same functions read and write both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Event
from proxy.dialects._answer import parse_error as parse_any_error
from proxy.dialects._answer import status_of
from proxy.dialects._gemini_parts import deltas_of, get, seal, turn_parts
from proxy.dialects._seal import signature_of, signed
from proxy.dialects.openai import (
    Json,
    canonical_answer,
    canonical_chunks,
    chunk,
    count,
    fold,
    made_id,
    model_of,
    objects,
    text,
    usage,
    usage_chunk,
)
from proxy.errors import BackendError, MapperError, ProxyError

FINISH_IN = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    **dict.fromkeys(("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "OTHER"), "content_filter"),
    **dict.fromkeys(("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "IMAGE_OTHER"), "content_filter"),
    **dict.fromkeys(("ESCALATION", "PUP_LIMITED_DISABLED", "MODEL_ARMOR"), "content_filter"),
}  # any other is a stop
FAILED = {  # the model failed, and what it said is no answer
    "MALFORMED_FUNCTION_CALL": "the model's function call cannot be parsed",
    "UNEXPECTED_TOOL_CALL": "the model called a function that it was not given",
    "TOO_MANY_TOOL_CALLS": "the model made too many tool calls",
    "MISSING_THOUGHT_SIGNATURE": "a function call in the request has lost its thought signature",
    "MALFORMED_RESPONSE": "the model's answer cannot be parsed",
    "NO_IMAGE": "the model made no image",
}
FINISH_OUT = {"stop": "STOP", "tool_calls": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}


def chatAnsGeminitoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """GenerateContentResponse, or an array of such → chat.completion.

    Raises: BackendError without candidates, for an error body, and where the finishReason says that the model failed. A blocked
    prompt is a finish of content_filter. Source: ai.google.dev/api/generate-content.
    """
    answer = fold(chatStreamGeminitoOpenAI(ip if isinstance(ip, list) else [ip], cfg))
    if not answer["choices"]:
        raise BackendError("the backend's answer has no candidates")
    return answer


def chatStreamGeminitoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """GenerateContentResponses → chunks. Raises: BackendError for an error event or a failed finish.

    A finish is told at the end: some models repeat STOP in every event.
    """
    calls: dict[int, int] = {}  # candidate → its tool calls so far
    finishes: dict[int, Json] = {}  # candidate → the event in which it finished
    spent, model = None, None
    for event in events:
        if not isinstance(event, dict):
            continue
        if event.get("error"):
            raise parse_error(status_of(event), event)
        spent, model = usage_in(event) or spent, event.get("modelVersion") or model
        for candidate in _candidates(event):
            index = count(candidate.get("index"))
            if index not in calls:
                calls[index] = 0
                yield chunk(cfg, {"role": "assistant", "content": ""}, index=index, model=model)
            deltas = _candidate_deltas(candidate, index, calls[index], cfg)
            calls[index] += sum("tool_calls" in delta for delta in deltas)
            logprobs = _logprobs_in(candidate.get("logprobsResult"))
            for delta in deltas or ([{}] if logprobs else []):
                yield chunk(cfg, delta, index=index, model=model, logprobs=logprobs)
                logprobs = None
            if text(candidate.get("finishReason")):
                finishes[index] = candidate
    for index, last in sorted(finishes.items()):
        yield chunk(cfg, {}, _finish_in(last, calls[index]), index, model=model)
    if spent is not None:
        yield usage_chunk(cfg, spent, model=model)


def _candidates(event: Event) -> list[Json]:
    found = event.get("candidates")
    feedback = event.get("promptFeedback")
    if not found and isinstance(feedback, dict) and feedback.get("blockReason"):
        return [{"finishReason": "SAFETY"}]
    return objects(found)


def _candidate_deltas(candidate: Json, index: int, calls: int, cfg: Mapping[str, Any]) -> list[Json]:
    content, lost = candidate.get("content"), cfg.get("lost")
    parts = objects(content.get("parts")) if isinstance(content, dict) else []
    if callable(lost) and any(get(part, "inlineData") for part in parts):
        lost(f"candidates[{index}].content.parts", "a chat answer has no place for media")
    return list(deltas_of(parts, lambda n: made_id(cfg, index * 1000 + n), calls))


def _finish_in(candidate: Json, calls: int) -> str:
    reason = candidate["finishReason"]
    if calls and reason in ("STOP", *FAILED):
        return "tool_calls"
    if reason in FAILED:
        said = text(candidate.get("finishMessage"))
        raise BackendError(f"{FAILED[reason]}: {said}" if said else FAILED[reason], code=reason)
    return FINISH_IN.get(reason, "stop")


def usage_in(event: Event) -> Json | None:
    """usageMetadata → the hub's usage: thoughts are completion, what Google's tools read is prompt."""
    given = event.get("usageMetadata")
    if not isinstance(given, dict):
        return None
    tokens = {name: count(given.get(f"{name}TokenCount")) for name in ("prompt", "toolUsePrompt", "candidates", "thoughts")}
    prompt, completion = tokens["prompt"] + tokens["toolUsePrompt"], tokens["candidates"] + tokens["thoughts"]
    return usage(prompt, completion, given.get("cachedContentTokenCount"), reasoning=tokens["thoughts"])


def _usage_out(spent: Json) -> Json:
    thoughts = spent["completion_tokens_details"]["reasoning_tokens"]
    cached = spent["prompt_tokens_details"]["cached_tokens"]
    return {
        "promptTokenCount": spent["prompt_tokens"],
        "candidatesTokenCount": max(spent["completion_tokens"] - thoughts, 0),
        "totalTokenCount": spent["total_tokens"],
        **({"thoughtsTokenCount": thoughts} if thoughts else {}),
        **({"cachedContentTokenCount": cached} if cached else {}),
    }


def _logprobs_in(result: Any) -> Json | None:
    chosen, tops = (get(result, name) if isinstance(result, dict) else None for name in ("chosenCandidates", "topCandidates"))
    ranked = [objects(get(top, "candidates")) for top in objects(tops)]
    content = [
        {**_token_in(item), "top_logprobs": [_token_in(top) for top in (ranked[i] if i < len(ranked) else ())]}
        for i, item in enumerate(objects(chosen))
    ]
    return {"content": content} if content else None


def _token_in(item: Json) -> Json:
    token = text(item.get("token"))
    return {"token": token, "logprob": item.get("logProbability"), "bytes": list(token.encode("utf-8", "surrogatepass"))}


def _logprobs_out(choice: Json) -> Json:
    logprobs = choice.get("logprobs")
    items = objects(logprobs.get("content")) if isinstance(logprobs, dict) else []
    tops = [{"candidates": [_token_out(top) for top in objects(item.get("top_logprobs"))]} for item in items]
    chosen = [_token_out(item) for item in items]
    return {"logprobsResult": {"chosenCandidates": chosen, "topCandidates": tops}} if chosen else {}


def _token_out(item: Json) -> Json:
    return {"token": item.get("token"), "logProbability": item.get("logprob")}


def chatAnsOpenAItoGemini(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """chat.completion → GenerateContentResponse; thoughts only for a client that asked for them.

    Raises: BackendError for an error, no choices, or tool arguments that are no object.
    """
    answer, thoughts = canonical_answer(ip), _wants_thoughts(cfg)
    candidates = []
    for choice in answer["choices"]:
        parts = turn_parts(choice["message"], BackendError, wrap=seal, thoughts=thoughts, finish=choice["finish_reason"])
        candidates.append(_candidate(choice["index"], parts, choice["finish_reason"]) | _logprobs_out(choice))
    return _response(cfg, answer, candidates, answer.get("usage"))


def chatStreamOpenAItoGemini(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """Chunks → GenerateContentResponses. The last one has what comes whole: calls, finishes, usage.

    Raises: BackendError on an error event, and for tool arguments that are no object.
    """
    thoughts = _wants_thoughts(cfg)
    head: Json = {}
    held: list[Event] = []  # the fragments of tool calls
    finishes: dict[int, str] = {}
    for event in canonical_chunks(events):
        head = {**event, "usage": event.get("usage") or head.get("usage")}
        for choice in event["choices"]:
            index, delta = choice["index"], choice["delta"]
            if "tool_calls" in delta:
                held.append({"choices": [{"index": index, "delta": {"tool_calls": delta["tool_calls"]}}]})
            parts, logprobs = list(_delta_parts(delta, thoughts)), _logprobs_out(choice)
            if parts or logprobs:
                yield _response(cfg, event, [_candidate(index, parts) | logprobs])
            if choice["finish_reason"]:
                finishes[index] = choice["finish_reason"]
    if finishes:
        calls = {choice["index"]: choice["message"] for choice in fold(held)["choices"]}
        whole = {
            index: turn_parts(calls.get(index, {}), BackendError, wrap=seal, finish=finish)
            for index, finish in finishes.items()
        }
        candidates = [_candidate(index, whole[index], finish) for index, finish in sorted(finishes.items())]
        yield _response(cfg, head, candidates, head["usage"])


def _delta_parts(delta: Json, thoughts: bool) -> Iterator[Json]:
    """One delta, without its tool calls, as the parts of an event."""
    signature, redacted = delta.get("reasoning_signature"), delta.get("redacted_thinking")
    blocks = [{"type": "thinking", "thinking": "", "signature": signature}] if text(signature) else []
    blocks += [{"type": "redacted_thinking", "data": redacted}] if text(redacted) else []
    plain = {name: text(delta.get(name)) for name in ("content", "refusal", "reasoning_content")}
    whole = {**plain, **signed(signature_of(delta)), "thinking_blocks": blocks}
    if blocks and thoughts:
        yield from turn_parts({"reasoning_content": whole.pop("reasoning_content")}, BackendError)
    yield from turn_parts(whole, BackendError, wrap=seal, thoughts=thoughts)


def _candidate(index: int, parts: list[Json], finish: str | None = None) -> Json:
    """SDKs throw a whole turn away when one of its events has no part: an empty text stands for nothing, as at Google."""
    out: Json = {"content": {"role": "model", "parts": parts or [{"text": ""}]}, "index": index}
    return {**out, "finishReason": FINISH_OUT.get(finish, "OTHER")} if finish else out


def _response(cfg: Mapping[str, Any], source: Json, candidates: list[Json], spent: Json | None = None) -> Json:
    out: Json = {"candidates": candidates}
    if spent:
        out["usageMetadata"] = _usage_out(spent)
    return {
        **out,
        "modelVersion": model_of(cfg, source.get("model")),
        "responseId": text(source.get("id")) or text(cfg.get("id")),
    }


def _wants_thoughts(cfg: Mapping[str, Any]) -> bool:
    """A client that did not ask would take a thought for the answer: `text` of the first part is what many read."""
    request = cfg.get("request")
    if not isinstance(request, Mapping):
        return True
    config = get(request, "generationConfig") or {}
    return bool(get(get(config, "thinkingConfig") or {}, "includeThoughts"))


# --- errors and the grammar of streams

CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
STATUSES = {529: 503}
RPC = "type.googleapis.com/google.rpc."


def error_body(error: ProxyError, request_id: str) -> Json:
    """{"error": {code, message, status, details}}; also the event that ends a broken stream. Source: google.rpc.Status."""
    status = STATUSES.get(error.status, error.status)
    details: list[Json] = []
    if error.param:
        details.append({"@type": f"{RPC}BadRequest", "fieldViolations": [{"field": error.param, "description": error.message}]})
    if error.code:
        details.append({"@type": f"{RPC}ErrorInfo", "reason": error.code, "domain": "mooltiproxy"})
    wait = next((value for name, value in error.headers if name.lower() == "retry-after"), "")
    if wait.isdecimal():
        details.append({"@type": f"{RPC}RetryInfo", "retryDelay": f"{wait}s"})
    if request_id:
        details.append({"@type": f"{RPC}RequestInfo", "requestId": request_id})
    code = CODES.get(status) or ("INVALID_ARGUMENT" if status < 500 else "INTERNAL")
    fault = {"code": status, "message": error.message, "status": code}
    return {"error": {**fault, "details": details} if details else fault}


def parse_error(status: int, body: Any) -> BackendError:
    """Google's error body, alone or in an array → its facts: ErrorInfo's reason, the violated field, RetryInfo's seconds."""
    body = body[0] if isinstance(body, list) and body else body
    fault = body.get("error") if isinstance(body, dict) else None
    if not isinstance(fault, dict):
        return parse_any_error(status, body)
    details = objects(fault.get("details"))
    violations = [item for detail in details for item in objects(detail.get("fieldViolations"))]
    reason = next((text(detail.get("reason")) for detail in details if text(detail.get("reason"))), text(fault.get("status")))
    delay = next((text(detail.get("retryDelay")) for detail in details if text(detail.get("retryDelay"))), "")
    seconds, _, rest = delay.removesuffix("s").partition(".")
    return BackendError(
        text(fault.get("message")) or f"the backend answered {status}",
        status=status,
        code=reason or None,
        param=text(violations[0].get("field")) or None if violations else None,
        headers=[("retry-after", str(int(seconds) + bool(rest.strip("0"))))] if seconds.isdecimal() else (),
    )


# A candidate is open from its first event to its finishReason, which comes once; after it nothing of that candidate may come.
# The stream is whole when at least one candidate was seen and none is open, or when promptFeedback says that the prompt was
# blocked. Nothing has to be closed: the error event alone ends a stream that breaks.
PART_TYPES = {"text": str, "thought": bool, "thoughtSignature": str, "functionCall": dict, "inlineData": dict, "fileData": dict}


def grammar(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """The last station of every stream to a Gemini client.

    Raises, after one error event: MapperError for an event that the API does not allow, BackendError for an early end or an
    error in disguise, or the ProxyError that the input raised.
    """
    finished: dict[int, bool] = {}
    blocked = False
    try:
        for event in events:
            if isinstance(event, dict) and event.get("error"):
                raise parse_error(status_of(event), event)
            fault = _event_fault(event, finished)
            if fault:
                raise MapperError(f"{cfg.get('chain', 'stream mapper')}: {fault}")
            blocked = blocked or bool(event.get("promptFeedback", {}).get("blockReason"))
            yield event
        if not blocked and not (finished and all(finished.values())):
            raise BackendError("the backend's stream ended before its answer did")
    except ProxyError as error:
        yield error_body(error, text(cfg.get("id")))
        raise


def _event_fault(event: Any, finished: dict[int, bool]) -> str | None:
    if not isinstance(event, dict):
        return "an event is not an object"
    if not event.keys() & {"candidates", "promptFeedback", "usageMetadata"}:
        return "an event has no candidates"
    for name in ("promptFeedback", "usageMetadata"):
        if not isinstance(event.get(name, {}), dict):
            return f"an event's {name} is not an object"
    candidates = event.get("candidates", [])
    if not isinstance(candidates, list):
        return "an event's candidates are not an array"
    return next((fault for candidate in candidates if (fault := _candidate_fault(candidate, finished))), None)


def _candidate_fault(candidate: Any, finished: dict[int, bool]) -> str | None:
    index = candidate.get("index", 0) if isinstance(candidate, dict) else None
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        return "a candidate has no index"
    if finished.get(index):
        return f"candidate {index}: something follows its finishReason"
    content, reason = candidate.get("content", {}), candidate.get("finishReason")
    parts = content.get("parts", []) if isinstance(content, dict) else None
    if not isinstance(parts, list) or content.get("role", "model") != "model":
        return f"candidate {index}: its content is not a model's parts"
    if not isinstance(reason, (str, type(None))):
        return f"candidate {index}: its finishReason is not a string"
    finished[index] = bool(reason)
    return next((f"candidate {index}: {fault}" for part in parts if (fault := _part_fault(part))), None)


def _part_fault(part: Any) -> str | None:
    if not isinstance(part, dict) or not part:
        return "a part is not an object, or empty"
    for name, kind in PART_TYPES.items():
        if name in part and not isinstance(part[name], kind):
            return f"a part's {name} has the wrong type"
    call = part.get("functionCall", {"name": "f"})
    if not isinstance(call.get("name"), str) or not call["name"] or not isinstance(call.get("args", {}), dict):
        return "a functionCall has no name, or args that are no object"
    return None
