"""Whom people put behind: what each is called, speaks, and where it usually is. For `init`, which suggests it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Provider:
    """`envkey`: the environment variable in which its users keep the key, None where it wants none."""

    dialect: str
    url: str
    envkey: str | None = None


OPENAI = Provider("openai", "https://api.openai.com/v1", "OPENAI_API_KEY")
GEMINI = Provider("gemini", "https://generativelanguage.googleapis.com", "GEMINI_API_KEY")
LLAMACPP = Provider("llamacpp", "http://127.0.0.1:8080")
TGI = Provider("tgi", "http://127.0.0.1:8080")
PROVIDERS: Mapping[str, Provider] = {
    "ollama": Provider("ollama", "http://127.0.0.1:11434"),
    "llama.cpp": LLAMACPP,
    "llamacpp": LLAMACPP,
    "vllm": Provider("openai", "http://127.0.0.1:8000/v1"),
    "lmstudio": Provider("openai", "http://127.0.0.1:1234/v1"),
    "tgi": TGI,
    "openai": OPENAI,
    "responses": Provider("responses", OPENAI.url, OPENAI.envkey),
    "anthropic": Provider("anthropic", "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
    "gemini": GEMINI,
    "groq": Provider("openai", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": Provider("openai", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "deepseek": Provider("openai", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "openrouter": Provider("openai", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "together": Provider("openai", "https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "demo": Provider("openai", "demo://"),
}
