"""`command://NAME`: llama.cpp's native API, answered by executables that are run once a request.

What they are called with stands under `commands` of the configuration. A stream is told as they write, and whoever leaves ends
them. Prompts of one request run one after the other.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter

from proxy.adapters.engine import Run, Said
from proxy.adapters.exchange import Answer, waiting_of
from proxy.adapters.made import Pieces, whole
from proxy.adapters.process_group import last_lines
from proxy.call import Waiting
from proxy.config import Command
from proxy.dialects import Event
from proxy.dialects._llamacpp_limits import within_limits
from proxy.dialects.openai import Json
from proxy.errors import BackendError, BadRequest
from proxy.settings.presets import DEFAULTS
from proxy.wire import CONTENT_TYPES, loads_request, write

TOKEN_LINE = re.compile(r"(?m)^ *([0-9]+) -> '")  # llama-tokenize without --ids; a token can be a line's end
CONSTRAINTS = ("json_schema", "grammar")  # what must not be lost in silence
RUNS = 128  # of programs for one request, one after the other
TRIES = 6  # when a program's output is cut off
T = TypeVar("T")


class CutOff(BackendError):
    """A program has ended well, and yet not all of its output is there.

    llama.cpp's programs write in a thread of their own, which their end does not wait for (its issue 22142).
    """


class Streamed(Pieces):
    """The payload of a stream; closing it ends what makes the events."""

    def __init__(self, events: Iterator[Event]) -> None:
        super().__init__([("content-type", CONTENT_TYPES["sse"])], write("sse", events))
        self._events: Any = events

    def close(self) -> None:
        """Ends the process that is at work, if there is one."""
        super().close()
        self._events.close()


class CommandAdapter(BaseAdapter):
    """The adapter of one `command://` target; it keeps nothing between requests.

    secrets: names of environment variables that are not for the programs.
    """

    def __init__(self, config: Command, secrets: Iterable[str]) -> None:
        super().__init__()
        self._config, self._secrets = config, frozenset(secrets)

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """The answer. Raises BadRequest for what the programs cannot do, BackendError, BackendTimeout, ClientGone.

        `request.waiting` (a `Waiting`) watches the client. How long it may take is the command's `timeout_s` alone.
        """
        waiting = waiting_of(request)
        path = urlsplit(request.url or "").path
        answer = ANSWERS.get(path)
        if answer is None:
            raise BadRequest(f"the command {self._config.name!r} has no {path}", status=404, code="path_not_mapped")
        body: Any = request.body
        payload = body if isinstance(body, (bytes, type(None))) else b"".join(body)
        asked = loads_request(payload) if payload else {}
        if not isinstance(asked, dict):
            raise BadRequest("the body must be an object")
        found = answer(self, asked, waiting)
        if isinstance(found, Iterator):
            return Answer(200, "OK", Streamed(found), request)
        return whole(request, found)

    def close(self) -> None:
        """Nothing is open."""

    def _run(self, what: str, text: str, values: Json, waiting: Waiting) -> Run:
        """Raises BadRequest (501) when the command has no such program."""
        config = self._config
        if not getattr(config, what):
            raise BadRequest(f"the command {config.name!r} has no `{what}`", status=501, code="not_supported")
        sizes: Json = {"model": config.model, "threads": config.threads, "context": config.context, "batch": config.batch}
        sizes["pooling"] = config.pooling
        env = {name: value for name, value in os.environ.items() if name not in self._secrets}
        return Run(config, what, text, {"max_tokens": config.context, **sizes, **values}, waiting, env)

    # --- text
    def complete(self, body: Json, waiting: Waiting) -> Any:
        """POST /completion: an object, a list of them for several prompts or n_cmpl, or the events of a stream."""
        texts = _texts(body.get("prompt"), "prompt")
        values = self._values(body)
        runs = list(enumerate(text for text in texts for _ in range(int(body.get("n_cmpl") or 1))))
        if len(runs) > RUNS:
            raise BadRequest(f"a request can have at most {RUNS} answers, prompts times n", param="prompt")
        if body.get("stream"):
            return (event for i, text in runs for event in self._events(i, text, values, body, waiting))
        results = []
        for i, text in runs:
            *events, last = _whole(partial(self._said, i, text, values, body, waiting))
            results.append({**last, "content": "".join(event["content"] for event in events)})
        return results if len(results) > 1 or isinstance(body["prompt"], list) else results[0]

    def _values(self, body: Json) -> Json:
        """What a request says, by the names of the placeholders. Raises BadRequest."""
        within_limits({**body, "max_tokens": body.get("n_predict")}, stops=None)
        stops = [body["stop"]] if isinstance(body.get("stop"), str) else list(body.get("stop") or ())
        values = {name: body[name] for name in (*DEFAULTS, *CONSTRAINTS) if body.get(name) is not None}
        for name in values.keys() & DEFAULTS.keys():
            if isinstance(values[name], bool) or not isinstance(values[name], (int, float)):
                raise BadRequest(f"{name} must be a number", param=name)
        if not isinstance(values.get("grammar", ""), str) or not isinstance(values.get("json_schema", {}), dict):
            raise BadRequest("grammar must be a string, and json_schema an object")
        if "json_schema" in values:
            values["json_schema"] = json.dumps(values["json_schema"])
        known = str(self._config.complete)
        lost = [name for name in CONSTRAINTS if name in values and f"{{{name}}}" not in known]
        lost += ["n_probs"] if body.get("n_probs") else []
        if lost:
            raise BadRequest(f"the command {self._config.name!r} takes no {lost[0]}", param=lost[0])
        values["stop"] = list(dict.fromkeys(stop for stop in (*stops, *self._config.stop) if stop))
        wanted = int(-1 if body.get("n_predict") is None else body["n_predict"])
        values["max_tokens"] = min(wanted, self._config.context) if wanted >= 0 else self._config.context
        return values

    def _events(self, index: int, prompt: str, values: Json, body: Json, waiting: Waiting) -> Iterator[Json]:
        """What the server's stream would say: events of text, then one that tells how it ended."""
        head = {"index": index, "tokens": [], "id_slot": 0}
        config = self._config
        said = Said(prompt if config.echo else "", values["stop"], config.begins, config.ends, config.fault)
        with self._run("complete", prompt, values, waiting) as run:
            while not said.word:
                data = run.read1()
                text = said.feed(data, final=not data)
                if text:
                    yield {**head, "content": text, "stop": False}
                if not data:
                    break
        if said.failed:
            raise BackendError(f"the complete program of command {config.name!r} failed: {last_lines(said.failure().encode())}")
        if said.is_cut():
            raise CutOff(f"the complete program of command {config.name!r} ended before all of its answer was written")
        spent = [self._count(text, waiting) for text in (prompt, said.spoken())] if config.count_tokens else [0, 0]
        limits = spent[1] >= values["max_tokens"] or sum(spent) >= config.context
        yield {
            **head,
            "content": "",
            "stop": True,
            "model": body.get("model") or config.name,
            "prompt": prompt,
            "truncated": False,
            "stop_type": "word" if said.word else "limit" if limits and not said.ended else "eos",
            "stopping_word": said.word,
            "tokens_evaluated": spent[0],
            "tokens_predicted": spent[1],
            "tokens_cached": sum(spent),
        }

    def _said(self, *asked: Any) -> list[Json]:
        return list(self._events(*asked))

    # --- the rest
    def embed(self, body: Json, waiting: Waiting) -> list[Json]:
        """POST /embedding: [{"index", "embedding": [[…]]}]."""
        texts = _texts(body.get("content", body.get("input")), "input")
        if len(texts) > RUNS:
            raise BadRequest(f"input can hold at most {RUNS} texts here: each is a run of a program", param="input")
        vectors = [_whole(partial(self._vector, text, waiting)) for text in texts]
        return [{"index": i, "embedding": [vector]} for i, vector in enumerate(vectors)]

    def _vector(self, text: str, waiting: Waiting) -> list[float]:
        with self._run("embed", text, {}, waiting) as run:
            vectors = _vectors(run.output())
        if len(vectors) != 1 or not vectors[0]:
            raise BackendError(
                f"the embed program of command {self._config.name!r} gave {len(vectors)} vectors for a text"
                + (": `pooling: mean` makes one of each token's" if len(vectors) > 1 else "")
            )
        return vectors[0]

    def tokenize(self, body: Json, waiting: Waiting) -> Json:
        """POST /tokenize: {"tokens": […]}."""
        (text,) = _texts(body.get("content"), "content")
        return {"tokens": self._tokens(text, waiting)}

    def _count(self, text: str, waiting: Waiting) -> int:
        return len(self._tokens(text, waiting)) if text else 0

    def _tokens(self, text: str, waiting: Waiting) -> list[Any]:
        with self._run("tokenize", text, {}, waiting) as run:
            return _tokens(run.output())

    def props(self, body: Any, waiting: Waiting) -> Json:
        """GET /props."""
        name, context = self._config.name, self._config.context
        return {
            "default_generation_settings": {"params": {}, "n_ctx": context},
            "total_slots": 1,
            "model_alias": name,
            "model_path": name,
            "modalities": {"vision": False, "audio": False},
            "chat_template": "",
        }

    def models(self, body: Any, waiting: Waiting) -> Json:
        """GET /v1/models."""
        return {"object": "list", "data": [{"id": self._config.name, "object": "model", "created": 0}]}

    def health(self, body: Any, waiting: Waiting) -> Json:
        """GET /health."""
        return {"status": "ok"}


ANSWERS: Mapping[str, Callable[[CommandAdapter, Any, Waiting], Any]] = {
    "/completion": CommandAdapter.complete,
    "/embedding": CommandAdapter.embed,
    "/embeddings": CommandAdapter.embed,
    "/tokenize": CommandAdapter.tokenize,
    "/props": CommandAdapter.props,
    "/v1/models": CommandAdapter.models,
    "/health": CommandAdapter.health,
}


def _whole(ask: Callable[[], T]) -> T:
    """What a program gives; asked again when its output was cut off. Raises CutOff when it is each time."""
    for _ in range(TRIES - 1):
        with suppress(CutOff):
            return ask()
    return ask()


def _texts(given: Any, name: str) -> list[str]:
    texts = given if isinstance(given, list) else [given]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"{name} must be a string or an array of strings", param=name)
    return texts


def _vectors(output: str) -> list[list[float]]:
    """JSON, as lists or in OpenAI's shape, or numbers with space between them. Raises BackendError."""
    try:
        if not output.lstrip().startswith(("[", "{")):
            return [[float(number) for number in output.split()]]
        found = json.loads(output)
        found = [item["embedding"] for item in found["data"]] if isinstance(found, dict) else found
        vectors = found if not found or isinstance(found[0], list) else [found]
        return [[float(number) for number in vector] for vector in vectors]
    except (ValueError, TypeError, KeyError) as fault:
        raise CutOff("the embed program's output is no list of numbers") from fault


def _tokens(output: str) -> list[Any]:
    """A JSON list, llama-tokenize's lines, or a token a line."""
    if output.lstrip().startswith("["):
        try:
            found = json.loads(output)
        except ValueError as fault:
            raise BackendError("the tokenize program's output is no list of tokens") from fault
        return list(found)
    return [int(token) for token in TOKEN_LINE.findall(output)] or [line for line in output.splitlines() if line.strip()]
