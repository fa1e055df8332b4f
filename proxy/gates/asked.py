"""What a call asks for, for the gates that decide on it. Its body is read and decoded when one of them wants to know, once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from proxy.config import Key
from proxy.dialects import path_params, route_of
from proxy.routing import Choice

if TYPE_CHECKING:
    from proxy.relay import Relay

FREE = frozenset(  # kinds of operations that take no tokens; what is of no API that is known, may
    ["models", "model", "count", "tokenize", "detokenize", "info", "health", "props", "show", "version", "ps", "stored"]
)
BARE = ("GET", "HEAD", "DELETE", "OPTIONS")
OUT_DEFAULT = 1024  # tokens that are reserved for an answer of which the request does not say how long it may be
OUT_MOST = 10_000_000  # what says more says nothing
MOST_OUT = {  # API → where its requests say it
    "openai": (("max_completion_tokens",), ("max_tokens",)),
    "responses": (("max_output_tokens",),),
    "anthropic": (("max_tokens",),),
    "gemini": (("generationConfig", "maxOutputTokens"), ("generation_config", "max_output_tokens")),
    "ollama": (("options", "num_predict"),),
    "tgi": (("parameters", "max_new_tokens"),),
    "llamacpp": (("n_predict",),),
}
COMMON = frozenset(("messages", "max_tokens", "stream", "stream_options", "temperature", "tools"))  # that name no model
TIMES = (("n",), ("best_of",), ("generationConfig", "candidateCount"))  # so many answers
IN_PATH = re.compile(r"/(?:models?|deployments|engines)/([^/:?]+)", re.I)  # Azure does not mind the case; /model/ is Bedrock's
BASE64 = r"[A-Za-z0-9+/_=-]"
IMAGE = re.compile(f"(?<!{BASE64}){BASE64}{{1024,}}".encode())  # or a sound; without what stands before it it takes forever
IMAGE_TOKENS = 1000  # what one counts


@lru_cache(1024)
def _in_path(front: str, method: str, path: str) -> tuple[str, ...]:
    name = path_params(front, method, path).get("model")
    if name:
        return (name,)
    names, decoded = [unquote(name) for name in IN_PATH.findall(path)], IN_PATH.findall(unquote(unquote(path)))
    return tuple(names + decoded if len(decoded) > len(names) else names)  # %64eployments hides nothing


class Asked:
    """One call's request, and who asks: `key` is None for the master key and for open networks."""

    def __init__(self, relay: Relay, choice: Choice, key: Key | None) -> None:
        self.relay, self.choice, self.key = relay, choice, key
        self.call = relay.call
        route = route_of(self.call.front, self.call.method, self.call.path)
        self.kind = route.kind if route else None
        self.costs = self.call.method not in BARE and self.kind not in FREE  # whether the backend counts tokens for it
        self._body: dict[str, Any] | None = None
        self._models: list[str] | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The decoded body, empty where there is none that is a JSON object. Raises BadRequest."""
        if self._body is None:
            kind = self.relay.request.headers.get("content-type", "application/json")
            found = self.relay.read_json() if "json" in kind.partition(";")[0].lower() else None
            self._body = found if isinstance(found, dict) else {}
        return self._body

    @property
    def models(self) -> list[str]:
        """Every model that the request names, in its path or its body: what a backend may take for the model."""
        if self._models is None:
            self._models = self._named()
        return self._models

    def _named(self) -> list[str]:
        call, body = self.call, self.body
        found: list[Any] = [*_in_path(call.front, call.method, call.path)]
        for field, value in body.items():
            if field in COMMON:
                continue
            name = field.casefold()  # what is written in Go does not mind the case
            if name == "model":
                found.append(value)
            elif name in ("models", "requests") and isinstance(value, list):  # OpenRouter's alternatives, Gemini's batches
                found += [each.get("model") if isinstance(each, dict) else each for each in value]
                params = [each.get("params") for each in value if isinstance(each, dict)]  # Anthropic's batches
                found += [each.get("model") for each in params if isinstance(each, dict)]
        return list(dict.fromkeys([name.removeprefix("models/") for name in found if name and isinstance(name, str)]))

    def kept_beside(self, renamed: str | None) -> list[str]:
        """The models that are still named when the one that the request asks for has been renamed."""
        asked = (self.body.get("model"), path_params(self.call.front, self.call.method, self.call.path).get("model"))
        return [*([renamed] if renamed else []), *(name for name in self.models if not renamed or name not in asked)]

    @property
    def names_several(self) -> bool:
        """Whether a backend has a choice, as far as the models have been looked at."""
        return len(self._models or ()) > 1

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens go up: four bytes are one, and an image is 1,000."""
        if not self.costs:
            return 0
        if not self.body:  # a form, a sound: nobody counts its bytes
            return IMAGE_TOKENS
        data = self.relay.read()
        if len(data) <= 4096:
            return len(data) // 4 + 1
        images = list(map(len, IMAGE.findall(data)))
        return (len(data) - sum(images)) // 4 + IMAGE_TOKENS * len(images) + 1

    @property
    def most_out(self) -> int:
        """How many tokens may come back: what the request allows, for each of its answers."""
        if self.kind == "embed" or not self.costs:
            return 0
        body = self.body
        allowed = self._most(body, MOST_OUT.get(self.call.front, MOST_OUT["openai"]), OUT_DEFAULT)
        return allowed * min(128, self._most(body, TIMES, 1))

    def _most(self, body: dict[str, Any], paths: Iterable[tuple[str, ...]], default: int) -> int:
        most = 0
        for path in paths:
            if path[0] in body:
                most = max(most, self._count(body[path[0]], path[1:]))
        return most or default

    def _count(self, value: Any, path: tuple[str, ...]) -> int:
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= OUT_MOST else 0
