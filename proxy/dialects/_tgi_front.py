"""text-generation-inference as a front: what InferenceClient and the text-generation package send and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Event
from proxy.dialects.openai import Json, canonical_answer, canonical_chunks, count, expect, text
from proxy.errors import BadRequest

NO_MODEL = "tgi"  # what TGI's clients say where a model must be named: a TGI serves one; the target's `model` replaces it
STOPS = 4  # TGI's --max-stop-sequences unless it is started with more


def asked(cfg: Mapping[str, Any]) -> Json:
    """The request that an answer or a stream belongs to, {} when it is not known."""
    request = cfg.get("request")
    return request if isinstance(request, dict) else {}


PARAMETERS = {
    **dict.fromkeys(("temperature", "top_p", "typical_p", "repetition_penalty", "frequency_penalty"), "number"),
    **dict.fromkeys(("max_new_tokens", "top_k", "top_n_tokens", "best_of", "seed", "truncate"), "int"),
    **dict.fromkeys(("do_sample", "details", "decoder_input_details", "return_full_text", "watermark"), "bool"),
    **dict.fromkeys(("stop",), "list"),
    **dict.fromkeys(("grammar",), "dict"),
}
SAME = ("temperature", "top_p", "typical_p", "top_k", "repetition_penalty", "frequency_penalty", "best_of", "seed")
RENAMED = {"max_new_tokens": "max_tokens", "top_n_tokens": "logprobs"}


def textReqTGItoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """{"inputs", "parameters"} → Completions request.

    Out: greedy (temperature 0) unless a sampling parameter says otherwise, as TGI is. return_full_text and seed are answered
    from the request. Not carried: truncate, watermark, adapter_id, decoder_input_details (prefill stays empty).
    Raises: BadRequest for a field of the wrong type, and for a regex grammar, which the hub cannot say.
    """
    if not isinstance(ip, dict):
        raise BadRequest("the body must be a JSON object")
    given = _parameters(ip)
    req: Json = {"model": text(ip.get("model")) or NO_MODEL, "prompt": expect(ip.get("inputs"), "str", "inputs")}
    req |= {name: given[name] for name in SAME if name in given}
    req |= {theirs: given[ours] for ours, theirs in RENAMED.items() if ours in given}
    sampled = given.get("do_sample", ip.get("parameters") is None)
    if not sampled and not any(name in given for name in ("temperature", "top_k", "top_p", "typical_p")):
        req["temperature"] = 0
    if stops := [expect(stop, "str", f"parameters.stop[{i}]") for i, stop in enumerate(given.get("stop", ()))]:
        req["stop"] = stops
    if "grammar" in given:
        req["response_format"] = _response_format(given["grammar"])
    if cfg.get("stream", ip.get("stream")):
        req |= {"stream": True, "stream_options": {"include_usage": given.get("details", False)}}
    return req


def _parameters(ip: Json) -> Json:
    given = ip.get("parameters")
    fields = expect({} if given is None else given, "dict", "parameters")
    known = {name: value for name, value in fields.items() if value is not None and name in PARAMETERS}
    return {name: expect(value, PARAMETERS[name], f"parameters.{name}") for name, value in known.items()}


def _response_format(grammar: Json) -> Json:
    kind, where = grammar.get("type"), "parameters.grammar"
    if kind not in ("json", "json_schema"):
        raise BadRequest("only a grammar of type json or json_schema can be served here", param=f"{where}.type")
    value = expect(grammar.get("value"), "dict", f"{where}.value")
    named = value if kind == "json_schema" else {"name": "grammar", "schema": value}
    expect(named.get("schema"), "dict", f"{where}.value.schema")
    return {"type": "json_schema", "json_schema": named}


def textAnsOpenAItoTGI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """text_completion → {"generated_text", "details"?}, in a list where the path is /.

    Out: the text with the stop that ended it, where the backend told it; tokens and top_tokens from logprobs, whose ids are
    not known (0). Raises: BackendError for an error or no choices. Source: TGI 3.3, GenerateResponse.
    """
    answer = canonical_answer(ip)
    choice, given = answer["choices"][0], _asked_parameters(cfg)
    stop = text(choice.get("stop_sequence"))
    out: Json = {"generated_text": _lead(cfg, given) + text(choice.get("text")) + stop}
    if given.get("details") or given.get("decoder_input_details"):
        tokens, tops = _tokens(choice)
        told = _details(given, choice["finish_reason"], stop, answer.get("usage", {}), len(tokens))
        out["details"] = {**told, "prefill": [], "tokens": tokens, **({"top_tokens": tops} if any(tops) else {})}
    return [out] if _at_root(cfg) else out


def _details(given: Json, finish: Any, stop: str, spent: Json, seen: int) -> Json:
    reason = "stop_sequence" if stop else "length" if finish == "length" else "eos_token"
    return {
        "finish_reason": reason,
        "generated_tokens": count(spent.get("completion_tokens")) or seen,
        "seed": given.get("seed"),
    }


def _at_root(cfg: Mapping[str, Any]) -> bool:
    """Whether the client called /: by the endpoint's key, else by the `stream` that only a body for / has."""
    return bool(cfg["key"] == "/") if "key" in cfg else "stream" in asked(cfg)


def _asked_parameters(cfg: Mapping[str, Any]) -> Json:
    given = asked(cfg).get("parameters")
    return given if isinstance(given, dict) else {}


def _lead(cfg: Mapping[str, Any], given: Json) -> str:
    return text(asked(cfg).get("inputs")) if given.get("return_full_text") else ""


def _tokens(choice: Json) -> tuple[list[Json], list[list[Json]]]:
    """A text choice's logprobs → tokens, and the most likely ones in the place of each."""
    told = choice.get("logprobs")
    said, values, tops = (
        told.get(name) if isinstance(told, dict) else None for name in ("tokens", "token_logprobs", "top_logprobs")
    )
    if not isinstance(said, list) or not isinstance(values, list):
        return [], []
    listed = tops if isinstance(tops, list) else []
    tokens = [_token(text(word), value) for word, value in zip(said, values, strict=False)]
    likely = [[_token(word, value) for word, value in top.items()] if isinstance(top, dict) else [] for top in listed]
    return tokens, [*likely, *[[] for _ in tokens[len(likely) :]]]


def _token(said: str, logprob: Any = None, special: bool = False) -> Json:
    return {"id": 0, "text": said, "logprob": logprob if isinstance(logprob, int | float) else 0.0, "special": special}


def textStreamOpenAItoTGI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """text_completion chunks → frames: one a token where there are logprobs, else one a chunk, then one with the whole text.

    The last frame's token is the stop string, where the backend told it, else an empty special one, as an end token is.
    """
    given, whole, index = _asked_parameters(cfg), "", 0
    finish, stop = "", ""
    spent: Json = {}
    for event in canonical_chunks(events):
        spent = event.get("usage") or spent
        for choice in event["choices"][:1]:
            said, (tokens, tops) = text(choice.get("text")), _tokens(choice)
            if "".join(token["text"] for token in tokens) != said:
                tokens, tops = [_token(said)] if said else [], []
            for i, token in enumerate(tokens):
                index += 1
                yield {"index": index, "token": token, "generated_text": None, "details": None, **_top_tokens(tops[i : i + 1])}
            whole += said
            finish, stop = choice["finish_reason"] or finish, text(choice.get("stop_sequence")) or stop
    if finish:
        told = {**_details(given, finish, stop, spent, index), "input_length": count(spent.get("prompt_tokens"))}
        yield {
            "index": index + 1,
            "token": _token(stop, special=not stop),
            "generated_text": _lead(cfg, given) + whole + stop,
            "details": told if given.get("details") else None,
        }


def _top_tokens(tops: list[list[Json]]) -> Json:
    return {"top_tokens": tops[0]} if tops and tops[0] else {}


def infoAnsTGI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """GET /info without a TGI behind: what clients look at."""
    names = [name for name in cfg.get("aliases") or () if isinstance(name, str) and "*" not in name]
    return {
        "model_id": names[0] if names else "mooltiproxy",
        **dict.fromkeys(("model_sha", "sha", "docker_label", "model_dtype", "model_device_type"), None),
        "model_pipeline_tag": "text-generation",
        "max_stop_sequences": STOPS,
        "version": "3.3.4",
    }


def healthAnsTGI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """GET /health: the proxy answers, so it is well."""
    return {}
