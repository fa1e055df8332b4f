"""An answer in another form: a stream folded into the whole answer, a whole answer as a stream, either in the hub's shape.

`cfg` is what the client's own mappers would get: `request` is the client's body, with `id` and `now` of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from proxy.dialects import Dialect, Event, mapper
from proxy.dialects.openai import fold, unfold
from proxy.errors import MapperError

Json = dict[str, Any]


def unfolded(front: Dialect, kind: str | None, answer: Any, cfg: Mapping[str, Any]) -> Iterator[Event]:
    """A whole answer in the client's shape → the same as the client's stream. Raises MapperError where its API has none."""
    cfg = {**cfg, "stream": True}
    if front.tag == "OpenAI":
        yield from [answer] if kind == "text" else unfold(answer)
    elif kind == "text":
        whole = _known(f"textAns{front.tag}toOpenAI")(answer, cfg)
        yield from _known(f"textStreamOpenAIto{front.tag}")([whole], cfg)
    else:
        chunks = unfold(_known(f"chatAns{front.tag}toOpenAI")(answer, cfg))
        yield from _known(f"chatStreamOpenAIto{front.tag}")(chunks, cfg)


def folded(front: Dialect, kind: str | None, events: Iterable[Event], cfg: Mapping[str, Any]) -> Any:
    """A client's stream → the whole answer in the client's shape. Raises MapperError, and BackendError for an error event."""
    whole = hub_of_stream(front, kind, events, cfg)
    if front.tag == "OpenAI":
        return whole
    return _known(f"{'text' if kind == 'text' else 'chat'}AnsOpenAIto{front.tag}")(whole, {**cfg, "stream": False})


def hub_of_stream(front: Dialect, kind: str | None, events: Iterable[Event], cfg: Mapping[str, Any]) -> Json:
    """A client's stream → the whole answer in the hub's shape. Raises like `folded`."""
    verb, fold_up = ("text", fold_text) if kind == "text" else ("chat", fold)
    if front.tag != "OpenAI":
        events = _known(f"{verb}Stream{front.tag}toOpenAI")(events, {**cfg, "stream": True})
    return fold_up(events)


def hub_of_answer(front: Dialect, kind: str | None, answer: Any, cfg: Mapping[str, Any]) -> Any:
    """A whole answer in the client's shape → in the hub's; as it is where the hub has no such kind."""
    if front.tag == "OpenAI" or kind not in ("chat", "text", "embed"):
        return answer
    return _known(f"{kind}Ans{front.tag}toOpenAI")(answer, {**cfg, "stream": False})


def hub_of_request(front: Dialect, kind: str | None, body: Any, cfg: Mapping[str, Any]) -> Any:
    """A client's body in the hub's shape; as it is where the hub has no such kind. Raises BadRequest."""
    if front.tag == "OpenAI" or kind not in ("chat", "text", "embed"):
        return body
    return _known(f"{kind}Req{front.tag}toOpenAI")(body, cfg)


def fold_text(chunks: Iterable[Any]) -> Json:
    """The chunks of a streamed completion → the text_completion that the same call would have answered."""
    head: Json = {}
    choices: dict[int, Json] = {}
    for chunk in chunks:
        if not isinstance(chunk, dict):
            continue
        head = {**chunk, **head, **({"usage": chunk["usage"]} if chunk.get("usage") else {})}
        for choice in chunk.get("choices") or ():
            index = choice.get("index", 0)
            held = choices.setdefault(index, {"index": index, "text": [], "finish_reason": None, "logprobs": None})
            held["text"].append(choice.get("text") or "")
            held.update({name: choice[name] for name in ("finish_reason", "logprobs") if choice.get(name) is not None})
    whole = [{**choices[index], "text": "".join(choices[index]["text"])} for index in sorted(choices)]
    return {**head, "object": "text_completion", "choices": whole}


def _known(name: str) -> Callable[..., Any]:
    function = mapper(name)
    if function is None:
        raise MapperError(f"this client's API has no such form of this kind of answer ({name})")
    return function
