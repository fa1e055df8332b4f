"""What a pair cannot do, and what the client hears: an error that names it, or an answer without it and a reported loss."""

from __future__ import annotations

from dataclasses import dataclass

from tests.compat.matrix import TOOLS, Backend, Client


@dataclass(frozen=True)
class Refusal:
    """An error of this status, whose words contain these."""

    words: str
    status: int = 400


@dataclass(frozen=True)
class Loss:
    """An answer without it; the loss ledger tells of a path, for this front and backend, that this is found in."""

    words: str


PROMPTED = ("tgi", "llamacpp", "real llama.cpp", "command")  # they complete a text
REAL = ("real llama.cpp", "real llama.cpp as openai")
TOOL_USE = (*TOOLS, "tools-parallel", "choice-required", "choice-named")
THINK = ("reasoning", "reasoning-stream")
NO_EYES = Refusal("image input is not supported", 500)  # llama.cpp's own status and words: the tiny model has no eyes
# (fronts, backends, features) → what happens; an empty tuple is any
RULES: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], Refusal | Loss], ...] = (
    ((), PROMPTED, TOOL_USE, Refusal("takes no tools")),
    ((), ("tgi", "command"), ("image",), Refusal("image_url")),
    (("llamacpp",), ("command",), ("logprobs",), Refusal("takes no n_probs")),  # a program tells no probabilities
    ((), ("command",), ("logprobs",), Loss("robs|top_n_tokens")),
    ((), REAL, ("image",), NO_EYES),
    ((), ("responses",), ("n",), Refusal("n must be 1")),
    ((), ("anthropic", "bedrock"), ("n",), Refusal("n must be 1")),
    ((), ("ollama", "tgi"), ("n",), Refusal("one answer a call")),
    ((), ("anthropic", "tgi"), ("embed",), Refusal("no such operation", 501)),
    (("llamacpp",), ("bedrock",), ("embed",), Refusal("embeds with Titan and Cohere only")),  # they name no model
    ((), ("responses",), ("stop",), Loss("stop")),
    ((), ("anthropic", "bedrock"), ("logprobs",), Loss("robs|top_n_tokens|n_probs")),
    ((), ("ollama",), ("choice-required", "choice-named"), Loss("tool")),
    ((), ("tgi",), THINK, Loss("")),
    (("anthropic", "gemini"), ("openai",), THINK, Loss("hinking")),
    (("anthropic", "gemini"), ("llamacpp",), THINK, Loss("hink")),
    (("tgi", "llamacpp"), ("openai", "real llama.cpp as openai"), ("schema",), Loss("")),  # Completions takes none
)


def limit(client: Client, backend: Backend, feature: str) -> Refusal | Loss | None:
    """What happens to that feature; None: it works."""
    if client.front == backend.dialect and backend.name != "command":
        return NO_EYES if feature == "image" and backend.name in REAL else None
    for fronts, backends, features, each in RULES:
        if (not fronts or client.front in fronts) and backend.name in backends and feature in features:
            return each
    return None
