"""llama.cpp server's native API as a front: what its clients send and read, its errors, and the grammar of its streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Event
from proxy.dialects._answer import status_of
from proxy.dialects.openai import Json, checked, count, model_of, text, vectors_of
from proxy.errors import BackendError, BadRequest, MapperError, ProxyError

# --- text

SAME = ("model", "stream", "temperature", "top_p", "top_k", "min_p", "typical_p", "presence_penalty", "frequency_penalty")
CLIENT_FIELDS = {
    **dict.fromkeys(("stream", "cache_prompt"), "bool"),
    **dict.fromkeys(("n_predict", "n_cmpl", "n_probs", "seed", "top_k"), "int"),
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p"), "number"),
    **dict.fromkeys(("repeat_penalty", "presence_penalty", "frequency_penalty"), "number"),
    **dict.fromkeys(("model", "grammar"), "str"),
    "json_schema": "dict",
}
ANY_SEED = 2**32 - 1  # as -1, the server's word for any
FINISH = {"eos": "stop", "word": "stop", "limit": "length", "none": "stop"}  # none: an empty prompt, answered with nothing
RENAMED = {"repeat_penalty": "repetition_penalty", "n_cmpl": "n", "n_probs": "logprobs"}


def prompts_of(req: Mapping[str, Any]) -> list[Any]:
    """The prompts of a text request: one string or one array of tokens is one prompt."""
    prompts = listed(req.get("prompt"))
    return [prompts] if prompts and isinstance(prompts[0], int) else prompts


def listed(value: Any) -> list[Any]:
    """One or many, as a list; None is none."""
    return value if isinstance(value, list) else [] if value is None else [value]


def told_events(events: Iterable[Any]) -> Iterator[Json]:
    """The events that say something: between two prompts the server sends `data: null`."""
    for event in events:
        if isinstance(event, dict):
            if event.get("error"):
                raise fault_of(event)
            yield event


def textReqLlamaCpptoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """/completion body → Completions request; n_predict and seed of -1 mean no limit and any seed, as there.

    Raises: BadRequest without a prompt, and for a prompt that mixes text with tokens or has images.
    Source: README, POST /completion.
    """
    body = checked(ip, CLIENT_FIELDS)
    req = {name: body[name] for name in (*SAME, "seed", "stop") if name in body}
    req |= {ours: body[theirs] for theirs, ours in RENAMED.items() if body.get(theirs)}
    req["prompt"] = _client_prompt(body.get("prompt"))
    if not 0 <= req.get("seed", 0) < ANY_SEED:
        del req["seed"]
    if body.get("n_predict") == 0:
        raise BadRequest(
            "n_predict: 0 only fills llama.cpp's own cache; other backends give at least one token", param="n_predict"
        )
    if body.get("n_predict", -1) > 0:
        req["max_tokens"] = body["n_predict"]
    if "json_schema" in body:
        schema = {"name": "output", "schema": body["json_schema"]}
        req["response_format"] = {"type": "json_schema", "json_schema": schema}
    if "logit_bias" in body:
        req["logit_bias"] = _client_bias(body["logit_bias"])
    return {**req, "stream_options": {"include_usage": True}} if req.get("stream") else req


def _client_prompt(prompt: Any) -> Any:
    if isinstance(prompt, dict) and not prompt.get("multimodal_data"):
        prompt = prompt.get("prompt_string")
    given = prompt if isinstance(prompt, list) else [prompt]
    if not given or not (all(isinstance(item, str) for item in given) or all(isinstance(item, int) for item in given)):
        raise BadRequest("prompt must be a string, an array of strings or one of tokens", param="prompt")
    return prompt


def _client_bias(bias: Any) -> Json:
    """[[token, bias or false], …], or an object as OpenAI has it; texts in the place of tokens are not translatable."""
    pairs = list(bias.items()) if isinstance(bias, dict) else bias
    if not isinstance(pairs, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise BadRequest("logit_bias must be an array of [token, bias]", param="logit_bias")
    return {str(token): -100 if value is False else value for token, value in pairs if str(token).isdecimal()}


def textAnsOpenAItoLlamaCpp(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """text_completion → /completion answer; several choices are an array, as several prompts are there.

    Raises: BackendError when there are no choices.
    """
    choices = ip.get("choices") if isinstance(ip, dict) else None
    kept = [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    if not kept:
        raise BackendError("the backend's answer has no choices")
    spent = _spent(ip.get("usage"), len(kept))
    results = [_result(choice, i, text(choice.get("text")), ip, cfg, spent[i]) for i, choice in enumerate(kept)]
    request = cfg.get("request")
    many = isinstance(request, Mapping) and (isinstance(request.get("prompt"), list) or count(request.get("n_cmpl")) > 1)
    return results if many or len(results) > 1 else results[0]


def textStreamOpenAItoLlamaCpp(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """text_completion chunks → /completion events; the last ones wait for the usage that they tell.

    Raises: BackendError on an error event. Ends without a last event when no finish_reason came.
    """
    finished: dict[int, tuple[Json, Json]] = {}  # choice index → its last choice, and the chunk that had it
    told: Any = None
    for event in told_events(events):
        told = event.get("usage") or told
        for choice in listed(event.get("choices")):
            if not isinstance(choice, dict):
                continue
            index = count(choice.get("index"))
            if text(choice.get("text")):
                yield {"index": index, "content": choice["text"], "tokens": [], "stop": False, **_probabilities(choice)}
            if choice.get("finish_reason"):
                finished[index] = (choice, event)
    spent = _spent(told, len(finished))
    for i, (index, (choice, event)) in enumerate(sorted(finished.items())):
        yield _result(choice, index, "", event, cfg, spent[i])


def _spent(told: Any, choices: int) -> list[Json]:
    """Usage for each choice. It is only known for all of them: the last one tells it."""
    counts = told if isinstance(told, dict) else {}
    details = counts.get("prompt_tokens_details")
    cached = count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    prompt, made = count(counts.get("prompt_tokens")), count(counts.get("completion_tokens"))
    last: Json = {
        "tokens_predicted": made,
        "tokens_evaluated": prompt,
        "tokens_cached": prompt + made,
        "timings": {"cache_n": cached, "prompt_n": prompt - cached, "predicted_n": made},
    }
    none = {**last, "tokens_predicted": 0, "tokens_evaluated": 0, "tokens_cached": 0}
    return [{**none, "timings": dict.fromkeys(last["timings"], 0)}] * (choices - 1) + [last]


def _result(choice: Json, index: int, said: str, answer: Json, cfg: Mapping[str, Any], spent: Json) -> Json:
    request = cfg.get("request")
    prompts = prompts_of(request) if isinstance(request, Mapping) else []
    stop = text(choice.get("stop_sequence"))
    kind = "limit" if choice.get("finish_reason") == "length" else "word" if stop else "eos"
    return {
        "index": index,
        "content": said,
        "tokens": [],
        "id_slot": 0,
        "stop": True,
        "model": model_of(cfg, answer.get("model")),
        "generation_settings": {},
        "prompt": text(prompts[index]) if index < len(prompts) else "",
        "has_new_line": "\n" in said,
        "truncated": False,
        "stop_type": kind,
        "stopping_word": stop if kind == "word" else "",
        **spent,
        **(_probabilities(choice) if said else {}),
    }


def _probabilities(choice: Json) -> Json:
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return {}
    tokens, chosen, tops = (listed(logprobs.get(name)) for name in ("tokens", "token_logprobs", "top_logprobs"))
    items = []
    for token, logprob, top in zip(tokens, chosen, [*tops, *[None] * len(tokens)]):  # noqa: B905 (as short as the shortest)
        others = [_probability(*pair) for pair in top.items()] if isinstance(top, dict) else []
        items.append({**_probability(token, logprob), "top_logprobs": others})
    return {"completion_probabilities": items}


def _probability(token: Any, logprob: Any) -> Json:
    return {"token": text(token), "bytes": list(text(token).encode("utf-8", "replace")), "logprob": logprob}


# --- embeddings


def embedReqLlamaCpptoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """/embedding body, with `content` or `input` → embeddings request. Raises: BadRequest without either."""
    body = checked(ip, {"model": "str"})
    given = body.get("input", body.get("content"))
    if not isinstance(given, (str, list)) or not given:
        raise BadRequest('"input" or "content" must be provided', param="content")
    return {**{name: body[name] for name in ("model",) if name in body}, "input": given, "encoding_format": "float"}


def embedAnsOpenAItoLlamaCpp(ip: Any, cfg: Mapping[str, Any] = {}) -> list[Json]:
    """Embeddings → /embedding answer. Raises: BackendError when there are none."""
    return [{"index": i, "embedding": [vector]} for i, vector in enumerate(vectors_of(ip))]


# --- what is answered here when the backend is another API


def healthAnsLlamaCpp(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """GET /health."""
    return {"status": "ok"}


def propsAnsLlamaCpp(ip: Any, cfg: Mapping[str, Any] = {}) -> Json:
    """GET /props: what is known of a backend of another API; a context of 0 is one that is not known."""
    name = next(iter(cfg.get("aliases") or ()), "")
    return {
        "default_generation_settings": {"params": {}, "n_ctx": 0},
        "total_slots": 1,
        "model_alias": name,
        "model_path": name,
        "modalities": {"vision": False, "audio": False},
        "chat_template": "",
        "build_info": "mooltiproxy",
        "is_sleeping": False,
    }


# --- errors and the grammar of streams

KINDS = {  # llama.cpp's error type → OpenAI's
    "server_error": "api_error",
    "unavailable_error": "overloaded_error",
    "not_supported_error": "not_implemented_error",
    "exceed_context_size_error": "invalid_request_error",
}
TYPES = {  # and back
    "api_error": "server_error",
    "timeout_error": "server_error",
    "overloaded_error": "unavailable_error",
    "not_implemented_error": "not_supported_error",
}


def error_body(error: ProxyError, request_id: str) -> Json:
    """{"error": {code, message, type}}, code being the status; also the event that ends a broken stream."""
    kind = "exceed_context_size_error" if error.code == "context_length_exceeded" else TYPES.get(error.kind, error.kind)
    return {"error": {"code": error.status, "message": error.message, "type": kind}}


def parse_error(status: int, body: Any) -> BackendError:
    """An error body of llama.cpp → its facts; never raises. A prompt too long gets OpenAI's code for it."""
    fault = body.get("error") if isinstance(body, dict) else body
    facts = fault if isinstance(fault, dict) else {"message": fault}
    kind = text(facts.get("type"))
    code = "context_length_exceeded" if kind == "exceed_context_size_error" else None
    message = text(facts.get("message")).strip() or f"the backend answered {status}"
    return BackendError(message, status=status, kind=KINDS.get(kind, kind) or None, code=code)


def fault_of(event: Json) -> BackendError:
    """The error that came as an event, or inside a 200: its own status, else 502."""
    return parse_error(status_of(event), event)


# A choice is open from its first event to its one event with `stop: true`; after it nothing of that choice may come. The
# stream is whole when at least one choice was seen and none is open.
PARTIAL = {"content": str, "stop": bool}
LAST = {"stop_type": str, "stopping_word": str, "tokens_predicted": int, "tokens_evaluated": int, "truncated": bool}


def grammar(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """The last station of every stream to a /completion client.

    Raises, after one error event: MapperError for an event that the API does not allow, BackendError for an early end, or
    the ProxyError that the input raised.
    """
    open_: dict[int, bool] = {}
    try:
        for event in events:
            if isinstance(event, dict) and event.get("error"):
                raise fault_of(event)
            fault = _event_fault(event, open_)
            if fault:
                raise MapperError(f"{cfg.get('chain', 'stream mapper')}: {fault}")
            yield event
        if not open_ or any(open_.values()):
            raise BackendError("the backend's stream ended before its answer did")
    except ProxyError as error:
        yield error_body(error, cfg.get("id", ""))
        raise


def _event_fault(event: Any, open_: dict[int, bool]) -> str | None:
    if not isinstance(event, dict):
        return "an event is not an object"
    index = event.get("index", 0)
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        return "an event's index is not a number of a choice"
    fields = {**PARTIAL, **LAST} if event.get("stop") is True else PARTIAL
    wrong = next((name for name, kind in fields.items() if not isinstance(event.get(name), kind)), None)
    if wrong:
        return f"an event's {wrong!r} is missing or of the wrong type"
    if open_.get(index) is False:
        return f"something follows the last event of choice {index}"
    if event["stop"] and event["stop_type"] not in FINISH:
        return "stop_type is none that the API has"
    open_[index] = not event["stop"]
    return None
