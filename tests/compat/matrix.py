"""Who meets whom: the real clients, the backends, and what a pair of them cannot do."""

from __future__ import annotations

from dataclasses import dataclass

CHAT = ("text", "turns", "system", "stream", "usage", "usage-stream", "limit", "sampling", "errors")
TOOLS = ("tools", "tools-result", "tools-stream")
CHOICE = ("choice-required", "choice-none", "choice-named")
MORE = ("stop", "schema", "image")
FULL = (*CHAT, *TOOLS, "tools-parallel", *CHOICE, *MORE, "reasoning", "reasoning-stream")


@dataclass(frozen=True)
class Client:
    """A real client, the API that it speaks, and what its users can ask it for."""

    name: str
    front: str
    driver: str
    offers: tuple[str, ...]
    sdk: str | None = None  # a folder of its own, see tests/backends/sdks.py
    prompts: bool = False  # its API has no conversations: a bare prompt is all

    @property
    def id(self) -> str:
        return self.name.replace(" ", "-")


OPENAI = (*FULL, "developer", "n", "logprobs", "completion", "completion-stream", "embed", "models")
RESPONSES = (*(name for name in FULL if name != "stop"), "developer", "logprobs")
ANTHROPIC = (*FULL, "count", "models")
OLLAMA = ("reasoning", "reasoning-stream", "logprobs", "completion", "completion-stream", "embed", "models")
PROMPT = ("text", "stream", "usage", "limit", "sampling", "stop", "logprobs")
AGAIN = ("text", "turns", "system", "stream", "usage", *TOOLS, "tools-parallel", "image", "errors")
BRIEF = ("text", "stream", "tools")  # it takes seconds to start
FEW = (*BRIEF, "tools-result", "tools-stream", "errors")
CLIENTS = (
    Client("openai newest", "openai", "openai", OPENAI),
    Client("openai 1", "openai", "openai", (*AGAIN, "developer", "completion", "embed"), "openai-1"),
    Client(
        "openai 0.28",
        "openai",
        "openai_old",
        (
            *("text", "turns", "system", "stream", "usage", *TOOLS, "tools-parallel", *CHOICE, "stop", "limit", "n", "errors"),
            *("completion", "completion-stream", "embed", "models"),
        ),
        "openai-0.28",
    ),
    Client("huggingface_hub chat", "openai", "hf", (*AGAIN, "stop", "n", "logprobs")),
    Client("langchain-openai", "openai", "langchain", (*AGAIN, "schema", "completion", "embed"), "langchain"),
    Client("litellm-openai", "openai", "litellm", (*BRIEF, "tools-result", "embed"), "litellm"),
    Client("openai newest responses", "responses", "openai", (*RESPONSES, "count")),
    Client("openai 1 responses", "responses", "openai", AGAIN, "openai-1"),
    Client("langchain-openai responses", "responses", "langchain", FEW, "langchain"),
    Client("anthropic newest", "anthropic", "anthropic", ANTHROPIC),
    Client("anthropic 0", "anthropic", "anthropic", (*AGAIN, "reasoning", "count", "models"), "anthropic-0"),
    Client("langchain-anthropic", "anthropic", "langchain", (*AGAIN, "reasoning"), "langchain"),
    Client("litellm-anthropic", "anthropic", "litellm", (*BRIEF, "tools-result"), "litellm"),
    Client("google-genai", "gemini", "gemini", (*FULL, "n", "logprobs", "embed", "count", "models")),
    Client("litellm-gemini", "gemini", "litellm", (*BRIEF, "tools-result"), "litellm"),
    Client("ollama", "ollama", "ollama", (*CHAT, *TOOLS, "tools-parallel", *MORE, *OLLAMA)),
    Client("langchain-ollama", "ollama", "langchain", (*AGAIN, "reasoning", "embed"), "langchain"),
    Client("litellm-ollama", "ollama", "litellm", BRIEF, "litellm"),  # it sends results without ids
    Client("huggingface_hub text_generation", "tgi", "hf", (*PROMPT, "schema", "errors"), prompts=True),
    Client("text-generation", "tgi", "hf", PROMPT, prompts=True),
    Client("llama.cpp over HTTP", "llamacpp", "llamacpp", (*PROMPT, "schema", "errors", "embed"), prompts=True),
)


@dataclass(frozen=True)
class Backend:
    """A target of the proxy under test, and what its double says."""

    name: str
    dialect: str
    model: str
    hello: str
    embedder: str | None = None  # the model of embeddings, where it is another one
    usage: tuple[int, int] | None = None  # what it says it used, where that is always the same
    limit: int = 16  # tokens that are fewer than "run long" has
    stop: str = "STOP"
    stopped: str = "before "
    real: bool = False  # nothing is recorded there


CLAUDE = "us.anthropic.claude-sonnet-4-20250514-v1:0"  # the last generation that takes temperature and top_p at once
BACKENDS = (
    Backend("openai", "openai", "gpt-4.1", "Hello there, friend! ✨", "text-embedding-3-small", (17, 9)),
    Backend("responses", "responses", "gpt-5.2", "Hello there, friend! ✨", "text-embedding-3-small", (17, 9)),
    Backend("anthropic", "anthropic", "claude-sonnet-4-20250514", "Hello there, friend! ✨", None, (20, 9)),
    Backend("gemini", "gemini", "gemini-2.5-flash", "Hello from gemini-2.5-flash!", "gemini-embedding-001", (7, 8)),
    Backend("bedrock", "bedrock", CLAUDE, "Hello there, friend! ✨", "cohere.embed-english-v3", (20, 9)),
    Backend("ollama", "ollama", "tiny", "Hello there, friend!"),
    Backend("tgi", "tgi", "tiny/tgi-double", "Hello there, friend!"),
    Backend("llamacpp", "llamacpp", "double", "Hello world!"),
    Backend("command", "llamacpp", "tiny", "Hello world!", real=True),
    Backend("real llama.cpp", "llamacpp", "tiny", "OK, fine!", None, None, 3, "fi", "OK, ", real=True),
    Backend("real llama.cpp as openai", "openai", "tiny", "OK, fine!", None, None, 3, "fi", "OK, ", real=True),
)


UNTRIED = (*TOOLS, "tools-parallel")  # the tiny model calls none


def cells() -> list[tuple[Client, Backend, str]]:
    """Every pair with every feature that the client offers.

    The clients that take seconds to start stand together, at the beginning and in the middle: pytest's workers begin with a
    half each and take from each other's ends, so that hardly two of them start the same client.
    """
    slow, other = (
        [each for each in _cells() if each[0].sdk == "litellm"],
        [each for each in _cells() if each[0].sdk != "litellm"],
    )
    chain = [each for each in other if each[0].sdk == "langchain"]
    other = [each for each in other if each[0].sdk != "langchain"]
    half = (len(slow) + len(other) + len(chain)) // 2 - len(slow)
    return [*slow, *other[:half], *chain, *other[half:]]


def _cells() -> list[tuple[Client, Backend, str]]:
    return [
        (client, backend, feature)
        for client in CLIENTS
        for backend in BACKENDS
        for feature in client.offers
        if not (backend.name == "real llama.cpp as openai" and feature in UNTRIED)
        # that server's /v1/completions tells log-probabilities in a shape of its own
        if not (client.prompts and backend.name == "real llama.cpp as openai" and feature == "logprobs")
    ]


def name(client: Client, backend: Backend, feature: str) -> str:
    """A cell's test id."""
    return f"{client.id}->{backend.name.replace(' ', '-')}-{feature}"
