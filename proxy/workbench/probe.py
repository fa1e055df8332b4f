"""What a backend speaks and what it honours, found out by asking it: small requests, through the proxy's own translation.

The questions are the hub's, so that one set of them serves every API: they are relayed to that one target as a client's would
be. What translation would lose counts as not honoured.
"""

from __future__ import annotations

import json
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from proxy import wire
from proxy.answers import decoded, kind_of
from proxy.config import Cerbere, Command, Config, System, Target
from proxy.dialects import load
from proxy.dialects.openai import estimate_tokens, objects, text
from proxy.errors import ProxyError
from proxy.routing import VERSION
from proxy.workbench.rehearsal import Asked, Stage, rehearse

Json = dict[str, Any]
SILENCE_S = 120.0  # a local server may have to load its model first
QUESTIONS = 14  # that cost tokens, at most
STYLES: tuple[Json, ...] = (  # of asking for a short answer: the first that gives one is kept
    {"temperature": 0, "max_tokens": 64},
    {"temperature": 0, "max_tokens": 1024},  # a model that thinks first
    {"max_completion_tokens": 1024},  # OpenAI's that think
)


@dataclass
class Answer:
    """What came back. `status` 502 and 504: nobody answered, or nothing that is an answer."""

    status: int
    body: Any = None  # decoded JSON, else text
    events: list[Any] = field(default_factory=list)
    error: str = ""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def choices(self) -> list[Json]:
        return objects(self.body.get("choices")) if isinstance(self.body, dict) else []

    @property
    def message(self) -> Json:
        message = self.choices[0].get("message") if self.choices else None
        return message if isinstance(message, dict) else {}

    @property
    def text(self) -> str:
        return text(self.message.get("content"))

    @property
    def calls(self) -> list[str]:
        """The names of the tools that it calls."""
        return [text((call.get("function") or {}).get("name")) for call in objects(self.message.get("tool_calls"))]


class Backend:
    """One target, asked as OpenAI's clients would. `asked` counts the requests; `style`: one of STYLES."""

    def __init__(self, target: Target, commands: Mapping[str, Command] = {}) -> None:
        target = replace(target, on_loss="allow", capabilities={}, timeout=SILENCE_S, route=None)
        self._stage = Stage(Config(System(), Cerbere(), {target.name: target}, target.name, commands=commands), {}, {})
        self.asked, self.style = 0, STYLES[0]

    def close(self) -> None:
        """Ends the connections."""
        self._stage.close()

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """One request and its answer; a failure is an answer too."""
        self.asked += 1
        sent = b"" if body is None else wire.dumps(body)
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        played = rehearse(self._stage, Asked(method, path, sent, headers=headers, now=int(time.time())))
        kind = kind_of(played.head[1])
        if kind == "text/event-stream":
            return Answer(played.call.status, events=list(wire.reader(kind)([played.body])), error=played.call.error or "")
        answer = Answer(played.call.status, decoded(played.body))
        if not answer.ok:
            answer.error = load("openai").parse_error(answer.status, answer.body).message or f"it answered {answer.status}"
        return answer

    def chat(self, model: str, said: Any, **more: Any) -> Answer:
        """A chat with one user message, or with all of `said` when it is a list of messages."""
        messages = said if isinstance(said, list) else [{"role": "user", "content": said}]
        body = {"model": model, "messages": messages, **self.style, **more}
        return self.ask("POST", "/v1/chat/completions", body)

    def first_chat(self, model: str) -> Answer:
        """A plain chat, in the first style that gives an answer."""
        for self.style in STYLES:
            answer = self.chat(model, HELLO)
            if answer.text or answer.status in (401, 403, 404, 502, 504):
                break
        return answer


# --- what it speaks

HOSTS = (
    ("api.anthropic.com", "anthropic"),
    ("generativelanguage.googleapis.com", "gemini"),
    ("bedrock-runtime.", "bedrock"),
    ("runtime.sagemaker.", "sagemaker"),
    ("api.openai.com", "openai"),
    (".openai.azure.com", "openai"),
)
SIGNS: tuple[tuple[str, Callable[[Json], bool], str], ...] = (  # path, what its answer has, the dialect
    ("/api/version", lambda body: isinstance(body.get("version"), str) and len(body) == 1, "ollama"),
    ("/props", lambda body: "default_generation_settings" in body, "llamacpp"),
    ("/info", lambda body: "model_id" in body and "max_best_of" in body, "tgi"),
    ("/v1/models", lambda body: "has_more" in body or body.get("type") == "error", "anthropic"),
    ("/v1/models", lambda body: _is_google(body), "gemini"),
    ("/v1/models", lambda body: "data" in body or "error" in body, "openai"),
    ("/v1beta/models", lambda body: _is_google(body), "gemini"),
)
LAST_VERSION = re.compile(rf"(?:{VERSION.pattern}|/api)\Z")
BASES = {"/api": "ollama", "/v1beta": "gemini"}  # versions that only one API has


def _is_google(body: Json) -> bool:
    error = body.get("error")
    names = [text(item.get("name")) for item in objects(body.get("models"))]
    return (isinstance(error, dict) and "status" in error) or any(name.startswith("models/") for name in names)


def dialect_of(url: str, key: str | None) -> tuple[str, str]:
    """What the backend at a url speaks: (dialect, how that is known). Raises ProxyError when nothing tells."""
    parts = urlsplit(url)
    if parts.scheme in ("demo", "command"):
        return ("openai" if parts.scheme == "demo" else "llamacpp"), "its url"
    known = next((dialect for host, dialect in HOSTS if host in f"{parts.hostname}"), None)
    known = known or next((dialect for end, dialect in BASES.items() if parts.path.rstrip("/").endswith(end)), None)
    if known:
        return known, "its url"
    backend = _bare(_root(url), key)
    try:
        return _by_signs(backend, "" if _root(url) == url.rstrip("/") else "/v1/models")
    finally:
        backend.close()


def _root(url: str) -> str:
    """A url without the version that it may end in."""
    return LAST_VERSION.sub("", url.rstrip("/"))


def _bare(url: str, key: str | None) -> Backend:
    """To be asked without knowing its API: the key goes in the headers of all of them."""
    keys = {"authorization": f"Bearer {key}", "x-api-key": key, "x-goog-api-key": key} if key else {}
    return Backend(
        Target(
            "backend",
            url,
            auth="none",
            headers={"anthropic-version": "2023-06-01", **keys},
            route="/x",
            secrets={key} if key else set(),
        )
    )


def _by_signs(backend: Backend, only: str) -> tuple[str, str]:
    seen: dict[str, Answer] = {}
    for path, has, dialect in SIGNS:
        if only and path != only:
            continue
        if path not in seen:
            seen[path] = backend.ask("GET", path)
        answer = seen[path]
        if answer.status in (502, 504):
            raise ProxyError(f"{answer.error}: is it running, and is the url right?")
        if (answer.ok or answer.status in (400, 401, 403)) and isinstance(answer.body, dict) and has(answer.body):
            return dialect, path
    raise ProxyError("nothing tells which API it speaks: say --dialect")


NO_CHAT = re.compile(r"embed|whisper|tts|dall-e|moderation|rerank|image|audio|realtime|transcribe|davinci|babbage", re.I)


def models_of(backend: Backend) -> tuple[list[str], Answer]:
    """The names of its models, and the answer that has them."""
    answer = backend.ask("GET", "/v1/models")
    listed = objects(answer.body.get("data")) if isinstance(answer.body, dict) else []
    return [text(item.get("id")).removeprefix("models/") for item in listed], answer


def model_among(names: Iterable[str], embedder: bool = False) -> str | None:
    """One that chats, or one that makes embeddings."""
    return next((name for name in names if ("embed" in name.lower() if embedder else not NO_CHAT.search(name))), None)


# --- what it honours


@dataclass(frozen=True)
class Finding:
    """`honoured`: True, False, a number, or None when the answer does not tell; `why` is for a person."""

    name: str
    honoured: int | None
    why: str = ""


def _png() -> str:
    """A red square of 64 × 64 pixels, as a data URI: some backends refuse smaller ones."""
    import base64

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\xff\0\0" * 64) * 64
    head = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(image).decode()


HELLO = "Say hello in five words."
WEATHER = "What is the weather in Paris? Please call tool get_weather."
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": what, "parameters": CITY}}
    for name, what in (("get_weather", "The weather of a city"), ("get_time", "The time in a city"))
]
NAMED = {"type": "function", "function": {"name": "get_time"}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": CITY}}


def _turns() -> list[Json]:
    """A conversation with two tool calls in one turn, and their results."""
    calls = [
        {
            "id": f"call{city}00",
            "type": "function",
            "function": {"name": "get_weather", "arguments": json.dumps({"city": city})},
        }
        for city in ("Roma", "Oslo")
    ]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in calls]
    asked = {"role": "user", "content": "What is the weather in Roma and in Oslo?"}
    return [asked, {"role": "assistant", "content": None, "tool_calls": calls}, *results]


def findings(backend: Backend, model: str, embedder: str | None) -> Iterator[Finding]:
    """One after the other, as they are found out. Nothing but the first one when it does not chat at all."""
    plain = backend.first_chat(model)
    yield Finding("chat", bool(plain.choices), plain.error)
    if plain.choices:
        yield from _streams(backend.chat(model, HELLO, stream=True, stream_options={"include_usage": True}))
        yield from _tools(backend, model)
        yield _images(backend.chat(model, [{"role": "user", "content": _picture()}]))
        formed = backend.chat(model, "Which city is the capital of France?", response_format=FORMAT)
        yield _judged("json_schema", formed, _fits(formed.text), "the answer does not keep to it")
        yield _stop(backend, model, plain.text)
        two = backend.chat(model, HELLO, n=2)
        yield _judged("n", two, len(two.choices) == 2, "one answer came")
        logged = backend.chat(model, HELLO, logprobs=True, top_logprobs=1)
        yield _judged("logprobs", logged, _has_logprobs(logged), "none came")
    vector = backend.ask("POST", "/v1/embeddings", {"model": embedder or model, "input": "hello"})
    yield _judged("embeddings", vector, isinstance(vector.body, dict) and bool(vector.body.get("data")), "none came")


def _judged(name: str, answer: Answer, seen: bool, otherwise: str) -> Finding:
    return Finding(name, True) if answer.ok and seen else Finding(name, False, answer.error or f"taken, but {otherwise}")


def _images(answer: Answer) -> Finding:
    if not answer.ok:
        return Finding("images", False, answer.error)
    return Finding("images", True) if "red" in answer.text.lower() else Finding("images", None, "taken, but not described")


def _has_logprobs(answer: Answer) -> bool:
    logprobs = answer.choices[0].get("logprobs") if answer.choices else None
    return isinstance(logprobs, dict) and bool(logprobs.get("content"))


def _picture() -> list[Json]:
    ask = {"type": "text", "text": "Which colour is this? Answer in one word."}
    return [ask, {"type": "image_url", "image_url": {"url": _png()}}]


def _streams(answer: Answer) -> Iterator[Finding]:
    events = [event for event in answer.events if isinstance(event, dict)]
    finished = any(choice.get("finish_reason") for event in events for choice in objects(event.get("choices")))
    yield _judged("stream", answer, finished, "no stream came")
    if finished:
        yield _judged("usage", answer, any(event.get("usage") for event in events), "not told")


def _tools(backend: Backend, model: str) -> Iterator[Finding]:
    forced = backend.chat(model, "Hello!", tools=TOOLS, tool_choice=NAMED)
    asked = forced if forced.calls else backend.chat(model, WEATHER, tools=TOOLS)
    yield _judged("tools", asked, bool(asked.calls), "nothing was called")
    if asked.calls:
        yield _judged("tool_choice", forced, "get_time" in forced.calls, "the tool was not called")
        several = backend.chat(model, _turns(), tools=TOOLS)
        yield _judged("parallel_tools", several, bool(several.choices), "no answer came")


def _stop(backend: Backend, model: str, said: str) -> Finding:
    """The same question again, to be cut before a piece of the first answer."""
    words = re.findall(r"\w{2,}", said)
    if len(words) < 2:
        return Finding("stop", None, "its answer was too short to be cut")
    stop = words[-1]
    cut = backend.chat(model, HELLO, stop=[stop])
    if not cut.choices or stop in cut.text:
        return _judged("stop", cut, False, "the answer was not cut")
    return Finding("stop", True) if said.startswith(cut.text.rstrip()) else Finding("stop", None, "it said something else")


def _fits(said: str) -> bool:
    try:
        value = json.loads(said)
    except ValueError:
        return False
    return isinstance(value, dict) and isinstance(value.get("city"), str)


CONTEXTS = ("max_model_len", "context_length", "max_input_tokens", "inputTokenLimit", "max_total_tokens", "n_ctx")
TOLD: Mapping[str, tuple[str, str]] = {  # dialect → where it tells of a model
    "llamacpp": ("GET", "/props"),
    "tgi": ("GET", "/info"),
    "ollama": ("POST", "/api/show"),
    "anthropic": ("GET", "/v1/models/{model}"),
    "gemini": ("GET", "/v1beta/models/{model}"),
}


def context_of(target: Target, model: str, listing: Answer) -> int | None:
    """The tokens that a prompt may have, where the backend tells: in its list of models, else where TOLD says."""
    entries = objects(listing.body.get("data")) if isinstance(listing.body, dict) else []
    found = _number([entry for entry in entries if entry.get("id") == model])
    if found or (target.dialect or "") not in TOLD:
        return found
    method, path = TOLD[target.dialect or ""]
    backend = _bare(_root(target.url), target.key)
    try:
        return _number(backend.ask(method, path.format(model=model), {"model": model} if method == "POST" else None).body)
    finally:
        backend.close()


def _number(value: Any) -> int | None:
    """The first of the known fields, at any depth."""
    if isinstance(value, Mapping):
        here = [found for name, found in value.items() if name.rpartition(".")[2] in CONTEXTS and isinstance(found, int)]
        return next((found for found in here if found > 0), None) or next(
            (found for inner in value.values() if (found := _number(inner))), None
        )
    return next((found for inner in value if (found := _number(inner))), None) if isinstance(value, list) else None


def cost() -> int:
    """About how many tokens the questions and their answers have, for a model that does not think first."""
    return QUESTIONS * (64 + estimate_tokens({"messages": [{"content": HELLO}]})) + 3 * estimate_tokens({"tools": TOOLS})
