"""Hugging Face text-generation-inference (/generate): one prompt in, tokens out.

Its text keeps the stop string that ended it; the hub's does not. It takes four stops and has no tools, no images and one
answer a call: further stops are applied here, the rest is refused by the field's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from proxy.dialects import Dialect, Event, Route, Upstream
from proxy.dialects import openai as hub
from proxy.dialects._answer import parse_error as openai_error
from proxy.dialects._tgi_front import (
    STOPS,
    asked,
    healthAnsTGI,
    infoAnsTGI,
    textAnsOpenAItoTGI,
    textReqTGItoOpenAI,
    textStreamOpenAItoTGI,
)
from proxy.dialects.openai import Json, expect, text
from proxy.errors import BackendError, BadRequest, MapperError, ProxyError
from proxy.prompts import chatml, prompt_of

__all__ = ["healthAnsTGI", "infoAnsTGI", "textAnsOpenAItoTGI", "textReqTGItoOpenAI", "textStreamOpenAItoTGI"]

FINISH = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}
SEEDS = 2**64
TOP = 5  # tokens that it tells beside each one, unless it was started with more

# --- requests to TGI


def chatReqOpenAItoTGI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """Chat request → {"inputs", "parameters"}; the prompt is what cfg["prompter"] makes of the messages, chatml by default.

    In: a Chat body. Out: the body of /generate and /generate_stream, or of / when that is the endpoint's path.
    Raises: BadRequest for tools that may be called, n > 1, json_object, and what the prompter has no place for (images).
    Source: TGI 3.3 router, GenerateParameters and its validation.
    """
    req = hub.canonical(ip)
    if req.get("tools") and req.get("tool_choice") != "none":
        raise BadRequest("this backend completes text: it takes no tools", param="tools")
    prompt, own = _prompt(req, cfg)
    wanted = req.get("stop", [])
    # the prompter's first stop ends the turn; the client's are known to it; further ones of the prompter are a precaution
    return _request(prompt, [*own[:1], *wanted, *own[1:]], req, cfg, req.get("top_logprobs") or bool(req.get("logprobs")))


def textReqOpenAItoTGI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """Completions request → {"inputs", "parameters"}.

    Raises: BadRequest for n > 1, several prompts or token arrays, a suffix, json_object. Source: as chatReqOpenAItoTGI.
    """
    req = hub.checked(ip, {**hub.TEXT_FIELDS, "response_format": "dict"})
    if req.get("suffix"):
        raise BadRequest("this backend cannot fill in before a suffix", param="suffix")
    asked = req.get("logprobs")
    body = _request(hub.one_prompt(req), _stops(req), req, cfg, 0 if asked is None else max(asked, 1))
    if req.get("best_of", 1) > 1 and body["parameters"].get("do_sample"):  # without sampling all are the same
        body["parameters"] = {**_without_seed(body["parameters"]), "best_of": req["best_of"]}
    if req.get("echo"):
        body["parameters"]["return_full_text"] = True
    return body


def _without_seed(parameters: Json) -> Json:
    """TGI refuses a seed for several answers to choose from."""
    return {name: value for name, value in parameters.items() if name != "seed"}


def _stops(req: Json) -> list[str]:
    stop = req.get("stop", [])
    stops = [stop] if isinstance(stop, str) else expect(stop, "list", "stop")
    return [expect(item, "str", f"stop[{i}]") for i, item in enumerate(stops)]


def _prompt(req: Json, cfg: Mapping[str, Any]) -> tuple[str, list[str]]:
    messages = [_flat(message) for message in req["messages"]]
    return prompt_of(messages, cfg if cfg.get("prompter") else {**cfg, "prompter": chatml})


def _flat(message: Json) -> Json:
    """Text parts become a str, which every prompter can read; a list with anything else in it is the prompter's to judge."""
    content = message.get("content")
    if isinstance(content, str):
        return message
    if isinstance(content, list) and any(part.get("type") != "text" for part in content):
        return message
    return {**message, "content": hub.text_of(content)}


def _request(prompt: str, stops: Sequence[str], req: Json, cfg: Mapping[str, Any], top: int) -> Json:
    if req.get("n", 1) > 1:
        raise BadRequest("this backend gives one answer a call", param="n")
    streams = bool(req.get("stream") or cfg.get("stream"))
    # only who asks for the prompt's tokens learns how many there are; a stream may not ask, and tells input_length instead
    parameters: Json = {"details": True} if streams else {"details": True, "decoder_input_details": True}
    parameters |= _sampling(req)
    parameters |= {name: req[name] for name in ("frequency_penalty", "repetition_penalty") if req.get(name)}
    limit = req.get("max_completion_tokens", req.get("max_tokens"))
    if limit is not None and limit >= 0:  # -1: some clients' "no limit"
        parameters["max_new_tokens"] = limit
    if sent := list(dict.fromkeys(filter(None, stops)))[:STOPS]:
        parameters["stop"] = sent
    if "seed" in req:
        parameters["seed"] = req["seed"] % SEEDS  # unsigned there
    if top:
        parameters["top_n_tokens"] = min(int(top), TOP)
        if top > TOP and "lost" in cfg:
            cfg["lost"]("top_logprobs", f"TGI tells {TOP} at most")
    if "response_format" in req:
        parameters["grammar"] = _grammar(req["response_format"])
    at_root = cfg.get("path") == "/"  # one path for both there: the body says which
    return {"inputs": prompt, "parameters": parameters, **({"stream": True} if streams and at_root else {})}


def _sampling(req: Json) -> Json:
    """TGI wants temperature > 0 and 0 < top_p < 1, samples as soon as any of them is there, and is greedy without do_sample."""
    temperature, top_p = req.get("temperature"), req.get("top_p", 1)
    if temperature is not None and temperature < 0:
        raise BadRequest("temperature must not be negative", param="temperature")
    if temperature == 0 or top_p <= 0:
        return {"do_sample": False}
    out: Json = {"do_sample": True} if temperature is None else {"do_sample": True, "temperature": temperature}
    out |= {name: req[name] for name in ("top_p", "typical_p") if 0 < req.get(name, 1) < 1}
    return {**out, "top_k": req["top_k"]} if req.get("top_k", 0) > 0 else out


def _grammar(form: Json) -> Json:
    schema = (form.get("json_schema") or {}).get("schema")
    if schema is None:
        raise BadRequest("this backend needs a JSON schema: use json_schema", param="response_format")
    return {"type": "json", "value": schema}


# --- answers of TGI


def chatAnsTGItoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """/generate answer → chat.completion, cut at the first stop of the client or the prompter.

    In: {"generated_text": str, "details": {…}}, or a list of one such. Out: a chat.completion; prompt_tokens is the length
    of the prefill, an estimate where the server does not tell it (TGI 3 without --enable-prefill-logprobs).
    Raises: BackendError when there is no text. Source: TGI 3.3 API reference, /generate.
    """
    request = asked(cfg)
    logprobs = bool(request.get("logprobs"))
    piece = _ended(*_generated(ip), _chat_stops(request, cfg), partial(_estimate, request), logprobs)
    return _answer(cfg, piece, logprobs)


def textAnsTGItoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """/generate answer → text_completion, cut at the first of the client's stops, after its prompt where it asked for echo.

    Raises: BackendError when there is no text. Source: as chatAnsTGItoOpenAI.
    """
    request = asked(cfg)
    generated, details = _generated(ip)
    if request.get("echo"):
        generated = generated.removeprefix(hub.one_prompt(request))
    logprobs = request.get("logprobs") is not None
    piece = _ended(generated, details, _listed(request.get("stop")), partial(_estimate, request), logprobs)
    return hub.textAnsChattoOpenAI(_answer(cfg, piece, logprobs), cfg)


def chatStreamTGItoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """/generate_stream frames → chunks. Raises: BackendError on an error event, which TGI sends with status 200."""
    request = asked(cfg)
    pieces = _pieces(events, _chat_stops(request, cfg), partial(_estimate, request))
    return _chunks(cfg, pieces, bool(request.get("logprobs")))


def textStreamTGItoOpenAI(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """/generate_stream frames → text_completion chunks. Raises: BackendError on an error event."""
    request = asked(cfg)
    pieces = _pieces(events, _listed(request.get("stop")), partial(_estimate, request))
    return hub.textStreamChattoOpenAI(_chunks(cfg, pieces, request.get("logprobs") is not None), cfg)


def _answer(cfg: Mapping[str, Any], piece: _Piece, logprobs: bool) -> Json:
    message = {"role": "assistant", "content": piece.text}
    return hub.chat_answer(cfg, message, piece.finish, piece.usage, **_extra(cfg, piece), logprobs=_logprobs(piece, logprobs))


def _chunks(cfg: Mapping[str, Any], pieces: Iterable[_Piece], logprobs: bool) -> Iterator[Event]:
    delta: Json = {"role": "assistant"}
    for piece in pieces:
        if piece.text or delta:
            yield hub.chunk(cfg, {**delta, "content": piece.text}, logprobs=_logprobs(piece, logprobs and bool(piece.tokens)))
        delta = {}
        if piece.finish:
            yield hub.chunk(cfg, {}, piece.finish, **_extra(cfg, piece))
            yield hub.usage_chunk(cfg, piece.usage or hub.usage(0, 0))


def _extra(cfg: Mapping[str, Any], piece: _Piece) -> Json:
    """The stop that the client asked for; one of the prompter's is nothing it knows of."""
    return {"stop_sequence": piece.stop} if piece.stop and piece.stop in _listed(asked(cfg).get("stop")) else {}


Token = tuple[Json, Any]  # a token, and the most likely ones in its place


class _Piece(NamedTuple):
    """Text that is sure to be in the answer, its tokens, and how the answer ended, if it did."""

    text: str
    tokens: list[Token]
    finish: str | None = None
    stop: str | None = None
    usage: Any = None


def _pieces(events: Iterable[Event], stops: Sequence[str], estimate: Callable[[], int]) -> Iterator[_Piece]:
    """Frames → pieces, cut at the stop that is complete first. Text that may begin a stop waits until it is known not to."""
    held, sent, made, number = "", 0, 0, 0  # text that waits; characters sent, characters made; tokens
    waiting: list[tuple[int, Token]] = []  # tokens whose text was not sent, and where it begins
    for event in events:
        if not isinstance(event, dict):
            continue
        if event.get("error"):
            raise parse_error(502, event)
        token = event.get("token")
        fresh = text(token.get("text")) if isinstance(token, dict) and not token.get("special") else ""
        last, number = isinstance(event.get("generated_text"), str), number + isinstance(token, dict)
        if fresh:
            waiting.append((made, (token or {}, event.get("top_tokens"))))
        held, made = held + fresh, made + len(fresh)
        found = _found(held, stops)
        out = held[: found[0]] if found else held if last else held[: len(held) - _overlap(held, stops)]
        held, sent = held[len(out) :], sent + len(out)
        told = [token for at, token in waiting if at < sent]
        waiting = waiting[len(told) :]
        if found or last:
            details = event.get("details")
            yield _end(out, told, details if isinstance(details, dict) else {}, found, number, estimate)
            return  # a stop that TGI was not told: nothing after it is read
        if out:
            yield _Piece(out, told)


def _ended(generated: str, details: Json, stops: Sequence[str], estimate: Callable[[], int], logprobs: bool) -> _Piece:
    """A whole answer as one piece; its tokens only where somebody asks for them."""
    found = _found(generated, stops)
    kept = generated[: found[0]] if found else generated
    listed = details.get("tokens")
    tokens: list[Any] = listed if isinstance(listed, list) else []
    return _end(kept, _within(kept, tokens, details) if logprobs else [], details, found, len(tokens), estimate)


def _within(kept: str, tokens: Sequence[Any], details: Json) -> list[Token]:
    """Those of an answer's tokens that begin inside the text that is kept."""
    out: list[Token] = []
    at, tops = 0, details.get("top_tokens")
    for i, token in enumerate(tokens):
        fresh = text(token.get("text")) if isinstance(token, dict) and not token.get("special") else ""
        if fresh and at < len(kept):
            out.append((token, tops[i] if isinstance(tops, list) and i < len(tops) else None))
        at += len(fresh)
    return out


def _end(
    out: str, tokens: list[Token], details: Json, found: tuple[int, str] | None, number: int, estimate: Callable[[], int]
) -> _Piece:
    finish = "stop" if found else FINISH.get(text(details.get("finish_reason")), "stop")
    prefill = details.get("prefill")
    prompt = len(prefill) if isinstance(prefill, list) else 0
    known = details or number
    spent = (
        hub.usage(prompt or details.get("input_length") or estimate(), details.get("generated_tokens") or number)
        if known
        else None
    )
    return _Piece(out, tokens, finish, found[1] if found else None, spent)


def _found(said: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Where the stop that is complete first begins, and which it is."""
    hits = [(said.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in said]
    if not hits:
        return None
    end, _, stop = min(hits)
    return end - len(stop), stop


def _overlap(said: str, stops: Sequence[str]) -> int:
    """How many characters at the end may be the beginning of a stop."""
    longest = min(len(said), max(map(len, stops), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(stop.startswith(said[-n:]) for stop in stops)), 0)


def _generated(ip: Any) -> tuple[str, Json]:
    answer = ip[0] if isinstance(ip, list) and ip else ip
    if not isinstance(answer, dict) or not isinstance(answer.get("generated_text"), str):
        if isinstance(answer, dict) and answer.get("error"):
            raise parse_error(502, answer)
        raise BackendError("the backend's answer has no generated_text")
    details = answer.get("details")
    return answer["generated_text"], details if isinstance(details, dict) else {}


def _listed(stop: Any) -> list[str]:
    return [item for item in ([stop] if isinstance(stop, str) else stop or ()) if isinstance(item, str) and item]


ANY_MESSAGES = [{"role": "user", "content": ""}]  # a prompter's stops hardly ever depend on what was said


def _chat_stops(request: Json, cfg: Mapping[str, Any]) -> list[str]:
    """All stops, the prompter's too: as they were sent, unless there were more than can be."""
    made = cfg.get("made")
    parameters = made.get("parameters") if isinstance(made, dict) else None
    if isinstance(parameters, dict) and len(sent := _listed(parameters.get("stop"))) < STOPS:
        return sent
    own = _prompt(hub.canonical(request) if request.get("messages") else {"messages": ANY_MESSAGES}, cfg)[1]
    return [*own, *_listed(request.get("stop"))]


def _estimate(request: Json) -> int:
    """Tokens of the prompt where the backend does not count them."""
    if "prompt" in request:
        return hub.estimate_tokens({"messages": [{"content": text(request["prompt"])}]})
    return hub.estimate_tokens(request) if request.get("messages") else 0


def _logprobs(piece: _Piece, wanted: bool) -> Json | None:
    return {"content": [{**_logprob(token), "top_logprobs": _tops(tops)} for token, tops in piece.tokens]} if wanted else None


def _tops(tops: Any) -> list[Json]:
    return [_logprob(top) for top in tops if isinstance(top, dict)] if isinstance(tops, list) else []


def _logprob(token: Json) -> Json:
    said = text(token.get("text"))
    return {"token": said, "logprob": token.get("logprob"), "bytes": list(said.encode("utf-8", "replace"))}


# --- counting tokens, models


def countReqOpenAItoTGI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """Chat request → the body of /tokenize: the same prompt. Raises: BadRequest as chatReqOpenAItoTGI."""
    return {"inputs": chatReqOpenAItoTGI(ip, cfg)["inputs"]}


def countAnsTGItoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """/tokenize answer, a list of tokens → {"input_tokens": n}. Raises: BackendError when it is no list."""
    if not isinstance(ip, list):
        raise BackendError("the backend's answer is not a list of tokens")
    return {"input_tokens": len(ip)}


def modelsAnsTGItoOpenAI(ip: Any, cfg: Mapping[str, Any] = {}) -> Any:
    """/info → a list of the one model it serves."""
    name = text(ip.get("model_id")) if isinstance(ip, dict) else ""
    model = {"id": name, "object": "model", "created": cfg.get("now", 0), "owned_by": "tgi"}
    return {"object": "list", "data": [model] if name else []}


# --- errors and the grammar of streams

STATUS = {"validation": 422, "overloaded": 429, "generation": 424, "incomplete_generation": 500}
ERROR_TYPE = {400: "validation", 413: "validation", 422: "validation", 429: "overloaded", 503: "overloaded", 529: "overloaded"}
KINDS = {"generation": "api_error", "incomplete_generation": "api_error"}  # 424 is the server's fault


def error_body(error: ProxyError, request_id: str) -> Any:
    """{"error": str, "error_type": str}, a type that HF's clients know; also the event that ends a broken stream."""
    known = error.code if error.code in STATUS else ERROR_TYPE.get(error.status)
    return {"error": error.message, "error_type": known or ("generation" if error.status >= 500 else error.kind)}


def parse_error(status: int, body: Any) -> BackendError:
    """TGI's error body, or the plain text that it says of a body it cannot read → the facts; never raises.

    Its error_type, where there is one, tells the status too: in a stream that has begun the reply's own is 200.
    """
    kind = text(body.get("error_type")) if isinstance(body, dict) else ""
    facts = openai_error(STATUS.get(kind, status), body)
    return BackendError(facts.message, status=facts.status, code=kind or facts.code, kind=KINDS.get(kind) or facts.kind)


# A stream is frames, each with one token. The last one, and only it, has generated_text; nothing comes after it. An error event
# ends a stream too: it is passed on and raised. So there is one state, whether the last frame was seen.
TOKEN: dict[str, tuple[type, ...]] = {"id": (int,), "text": (str,), "logprob": (int, float, type(None)), "special": (bool,)}


def grammar(events: Iterable[Event], cfg: Mapping[str, Any] = {}) -> Iterator[Event]:
    """The last station of every stream to a TGI client. Raises, after one error event: MapperError for a frame that the API
    does not allow, BackendError for an early end or an error event, or the ProxyError that the input raised."""
    ended = False
    try:
        for event in events:
            if isinstance(event, dict) and isinstance(event.get("error"), str):
                raise parse_error(502, event)
            fault = "a frame comes after the last one" if ended else _fault(event)
            if fault:
                raise MapperError(f"{cfg.get('chain', 'stream mapper')}: {fault}")
            ended = event.get("generated_text") is not None
            yield event
        if not ended:
            raise BackendError("the backend's stream ended before its last token")
    except ProxyError as error:
        yield error_body(error, cfg.get("id", ""))
        raise


def _fault(event: Any) -> str | None:
    token = event.get("token") if isinstance(event, dict) else None
    if not isinstance(token, dict):
        return "a frame has no token"
    for name, types in TOKEN.items():
        if not isinstance(token.get(name), types):
            return f"a token's {name} is missing or of the wrong type"
    whole, details = event.get("generated_text"), event.get("details")
    if not isinstance(whole, (str, type(None))) or not isinstance(event.get("index", 0), int):
        return "a frame's index or generated_text is of the wrong type"
    if details is None:
        return None
    known = isinstance(details, dict) and text(details.get("finish_reason")) in FINISH
    if whole is None or not known or not isinstance(details.get("generated_tokens"), int):
        return "a frame's details are not those of a last frame"
    return None


DIALECT = Dialect(
    name="tgi",
    tag="TGI",
    routes=(
        Route("POST", "/generate", "text", stream=False),
        Route("POST", "/generate_stream", "text", stream=True),
        Route("POST", "/", "text"),
        Route("POST", "/tokenize", "tokenize"),
        Route("POST", "/chat_tokenize", "tokenize"),
        Route("GET", "/info", "info", answer="infoAnsTGI"),
        Route("GET", "/health", "health", answer="healthAnsTGI"),
    ),
    backend={
        "chat": Upstream("/generate", "/generate_stream"),
        "text": Upstream("/generate", "/generate_stream"),
        "count": Upstream("/tokenize"),
        "models": Upstream("/info", method="GET"),
    },
    version="",
    error_body=error_body,
    parse_error=parse_error,
    grammar=grammar,
    statuses={400: 422, 529: 429},
    keepalive=b":\n\n",
)
