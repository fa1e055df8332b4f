"""One request through the proxy's own chain of one front and one backend, and held against what that backend takes.

A refusal that the client can read (BadRequest) is an answer; a crash is none, nor a body that the backend's double refuses.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from proxy.config import Cerbere, Config, System, Target
from proxy.dialects import path_params
from proxy.errors import BadRequest
from proxy.generation import Generation, Place
from proxy.translate import Translation
from tests.doubles import anthropic, bedrock, gemini, llamacpp, ollama, openai, tgi
from tests.fuzz.fronts import MODELS, REFUSALS, Front

Json = dict[str, Any]


def _gemini(body: Json, stream: bool) -> None:
    gemini.check_shape("generateContent", body, by_name=False)
    gemini.check_generate(body, MODELS["gemini"])


BACKENDS: Mapping[str, tuple[str, Callable[[Json, bool], Any]]] = {  # dialect → model, what its double checks
    "openai": (
        MODELS["openai"],
        lambda body, stream: openai.check_chat(body) if "messages" in body else openai._valid(openai.TEXT, body),
    ),
    "responses": (MODELS["responses"], lambda body, stream: openai.check_response(body)),
    "anthropic": (
        MODELS["anthropic"],
        lambda body, stream: anthropic.check(body, {"anthropic-version": "2023-06-01"}, anthropic.CREATE),
    ),
    "gemini": (MODELS["gemini"], _gemini),
    "ollama": (
        "tiny",
        lambda body, stream: ollama.check(body, ollama.ChatRequest if "messages" in body else ollama.GenerateRequest),
    ),
    "tgi": ("tgi", lambda body, stream: tgi.check(body, stream=stream, root=False)),
    "llamacpp": ("double", lambda body, stream: llamacpp.complete(body)),
    "bedrock": ("us.anthropic.claude-opus-4-8-v1:0", lambda body, stream: bedrock.legal(body)),  # botocore's model, and more
    "sagemaker": ("tgi", lambda body, stream: tgi.check(body, stream=stream, root=True)),
}


class Broken(AssertionError):
    """A request that was lost on its way; the message says where."""


@cache
def at(backend: str) -> tuple[Generation, Place]:
    model, _ = BACKENDS[backend]
    target = Target(backend, "http://backend.example", dialect=backend, model=model, on_loss="allow")
    generation = Generation(Config(System(), Cerbere(), {backend: target}, backend), {}, {})
    return generation, generation.places[backend]


def hold(front: Front, backend: str, body: Json) -> str:
    """How it went: "sent", or why it was refused. Raises Broken."""
    generation, place = at(backend)
    found = generation.find(place, front.dialect, front.method, front.path)
    assert found is not None
    endpoint, _ = found
    if endpoint.entry.unsupported or not endpoint.mapped:
        return "unsupported" if endpoint.entry.unsupported else "bytes"
    kept = copy.deepcopy(body)
    translation = Translation(endpoint, "fuzz", front.dialect, front.method, front.path)
    stream = translation.wants_stream(body)
    params = path_params(front.dialect, front.method, front.path)
    try:
        sent = translation.request(body, stream, params, "", BACKENDS[backend][0])
        if endpoint.before:
            asked = translation.before(sent)
            llamacpp.check(asked, llamacpp.TEMPLATE)
            sent = translation.after(sent, {"prompt": llamacpp.template(asked["messages"])})
    except BadRequest as refusal:
        if refusal.code == "mapper_failed":
            raise Broken(f"{backend}: {refusal.message}") from refusal
        return refusal.message
    except REFUSALS as refusal:
        raise Broken(f"{backend} refuses the conversation: {refusal}") from None
    if body != kept:
        raise Broken(f"{backend}: a mapper changed the client's body")
    if isinstance(sent, dict) and "model" in sent:
        sent = {**sent, "model": BACKENDS[backend][0]}
    try:
        BACKENDS[backend][1](json.loads(json.dumps(sent)), stream)
    except REFUSALS as refusal:
        raise Broken(f"{backend} refuses: {refusal}; it got {json.dumps(sent)[:600]}") from None
    return "sent"
