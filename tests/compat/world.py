"""One proxy with a target for every backend, and the clients that are sent through it. One world for each pytest worker."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.backends import engine
from tests.backends.llama_server import LlamaServer
from tests.backends.proxy import KEY, Proxy
from tests.backends.sdks import Child
from tests.compat import child
from tests.compat.features import Json, Refused
from tests.compat.matrix import BACKENDS, Backend, Client
from tests.doubles import aws, gemini
from tests.doubles.anthropic import AnthropicDouble
from tests.doubles.bedrock import BedrockDouble
from tests.doubles.gemini import GeminiDouble
from tests.doubles.llamacpp import LlamaCppDouble
from tests.doubles.ollama import OllamaDouble
from tests.doubles.openai import OpenAIDouble
from tests.doubles.tgi import TGIDouble

DOUBLES: dict[str, Any] = {
    "openai": OpenAIDouble,
    "responses": OpenAIDouble,
    "anthropic": AnthropicDouble,
    "gemini": GeminiDouble,
    "bedrock": BedrockDouble,
    "ollama": OllamaDouble,
    "tgi": TGIDouble,
    "llamacpp": LlamaCppDouble,
}
AWS = {"AWS_ACCESS_KEY_ID": aws.KEY, "AWS_SECRET_ACCESS_KEY": aws.SECRET}
KEYS = {"openai": "sk-double", "responses": "sk-double", "anthropic": "sk-ant-double", "gemini": gemini.KEY}


def slug(backend: Backend) -> str:
    return backend.name.replace(" ", "-")


def config(urls: dict[str, str]) -> str:
    """YAML of a proxy with one target a backend: by the model's name, and by a route for clients that name no model."""
    targets: dict[str, Any] = {"default": slug(BACKENDS[0])}
    models: dict[str, Any] = {}
    for backend in BACKENDS:
        name = slug(backend)
        url = "command://tiny" if backend.name == "command" else urls[backend.name]
        target = {"url": url, "dialect": backend.dialect, "route": f"/to-{name}", "model": backend.model}
        targets[name] = {**target, **({"key": KEYS[backend.name]} if backend.name in KEYS else {})}
        targets[name] |= {"aws": {"region": aws.REGION}} if backend.dialect == "bedrock" else {}
        models[f"any-{name}"] = {"target": name, "model": backend.model}
        if backend.embedder:
            models[f"embed-{name}"] = {"target": name, "model": backend.embedder}
    commands = {"tiny": {"preset": "llama.cpp", "model": "tiny.gguf", "count_tokens": True}}
    return json.dumps({"targets": targets, "models": models, "commands": commands})  # JSON is YAML


class World:
    """`with World(folder) as world:` everything runs; `world.run(client, backend, ask)` is one call of a real client."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._children: dict[tuple[str, str], Child] = {}
        self._drivers: dict[str, Any] = {}
        self.doubles: dict[str, Any] = {}

    def __enter__(self) -> World:
        with ExitStack() as stack:
            self.doubles = {name: stack.enter_context(double()) for name, double in DOUBLES.items()}
            llama = stack.enter_context(LlamaServer())
            urls = {backend.name: llama.url if backend.real else self.doubles[backend.name].url for backend in BACKENDS}
            programs = engine.install(self._folder / "programs")
            env = {**AWS, "PATH": f"{programs}:{os.environ['PATH']}"}
            self.proxy = stack.enter_context(Proxy(self._folder, config(urls), env=env))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._children.values():
            process.close()
        self._stack.close()

    def run(self, client: Client, backend: Backend, ask: Json) -> Json:
        """What the client told. Raises Refused for its API's error, AssertionError when the SDK itself fell over."""
        name = slug(backend)
        model = f"embed-{name}" if ask["op"] == "embed" and backend.embedder else f"any-{name}"
        url = self.proxy.url + (f"/to-{name}" if client.prompts or ask["op"] == "models" else "")
        told = self._drive(client, {"url": url, "key": KEY, "model": model, **ask})
        if "crash" in told:
            raise AssertionError(f"{client.name}: {told['crash']}")
        if "error" in told:
            raise Refused(**told["error"])
        return told

    def _drive(self, client: Client, ask: Json) -> Json:
        if client.sdk is None:
            if client.driver not in self._drivers:
                self._drivers[client.driver] = child.load(client.driver)
            return child.run(self._drivers[client.driver], client.name, ask)
        which = (client.sdk, client.driver)
        if which not in self._children:
            self._children[which] = Child(client.sdk, Path(child.__file__), client.driver)
        return self._children[which].ask({"client": client.name, "ask": ask})
