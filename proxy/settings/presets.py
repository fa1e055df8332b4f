"""Ready-made commands for llama.cpp's programs, and the prompt template that goes with them.

An argument list within the list stands there once for each value of its placeholder: as often as there are stops, not at
all for what a request does not say.
Source: llama.cpp, tools/completion, tools/cli, examples/embedding, tools/tokenize, `--help` (2026-11); the names of 2023:
main's README.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NODE_RED = "NodeRed"
TEMPLATES: Mapping[str, dict[str, str]] = {
    NODE_RED: {
        "system": "{input}\n",
        "user": "### Instruction: {input}\n",
        "assistant": "### Response: {input}\n",
        "suffix": "### Response:",
        "stop": "###",
    }
}  # what a command:// target without a prompter uses


def _option(name: str, placeholder: str) -> list[str]:
    return [name, f"{{{placeholder}}}"]


MODEL = _option("--model", "model")
SAMPLING = [
    _option("--temp", "temperature"),
    _option("--top-p", "top_p"),
    _option("--top-k", "top_k"),
    _option("--seed", "seed"),
    _option("--repeat-penalty", "repeat_penalty"),
    _option("--frequency-penalty", "frequency_penalty"),
    _option("--presence-penalty", "presence_penalty"),
    _option("--reverse-prompt", "stop"),
]
SIZES = [*_option("--threads", "threads"), *_option("--ctx-size", "context"), *_option("--predict", "max_tokens")]
FROM_FILE = ["--no-escape", *_option("--binary-file", "prompt_file")]  # not an argument: others could read it in `ps`
COMPLETE: list[Any] = [
    *MODEL,
    *SIZES,
    *_option("--batch-size", "batch"),
    "--no-conversation",
    "--no-display-prompt",
    "--simple-io",
]
COMPLETE += [*FROM_FILE, *SAMPLING]
CONSTRAINED = [_option("--min-p", "min_p"), _option("--json-schema", "json_schema"), _option("--grammar", "grammar")]
WHOLE_BATCH = [*_option("--batch-size", "context"), *_option("--ubatch-size", "context")]  # a text is one batch there
EMBED: list[Any] = [*MODEL, *_option("--threads", "threads"), *_option("--ctx-size", "context"), *WHOLE_BATCH, *FROM_FILE]
EMBED += ["--embd-output-format", "array", "--embd-separator", "<#one text, whatever is in it#>"]
EMBED += [_option("--pooling", "pooling")]
TOKENIZE = [*MODEL, "--ids", "--no-bos", "--log-disable", "--no-escape", *_option("--file", "prompt_file")]
TODAY = {
    "embed": ["llama-embedding", *EMBED],
    "tokenize": ["llama-tokenize", *TOKENIZE],
    "batch": 512,
    "echo": False,
    "ends": "\n\n",
}
# llama-cli chats. The prompt is its system message, and a chat template of our own is that message alone, so what the model
# sees is the prompt as it is. What it calls the user's message is a mark on its output, which the answer stands behind; as
# such, a prompt could be one of its commands (/read FILE). Its colours tell its own errors from an answer.
MARK = "<#the answer#>"
RAW = "{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}{% endif %}{% endfor %}"
CHAT: list[Any] = [
    *(*MODEL, *SIZES, *_option("--batch-size", "batch"), "--jinja", "--chat-template", RAW, "--skip-chat-parsing"),
    *("--no-escape", *_option("--system-prompt-file", "prompt_text_file"), "--prompt", MARK, "--single-turn"),
    *("--simple-io", "--color", "on", "--no-show-timings", "--no-warmup", *SAMPLING),
]
FRAME = {"begins": f"> {MARK}\n\x1b[0m", "ends": "\n\nExiting...\n", "fault": "\x1b[1m\x1b[31mError: "}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "llama.cpp": {**TODAY, "complete": ["llama-completion", *COMPLETE, *CONSTRAINED]},
    "llama-cli": {**TODAY, **FRAME, "complete": ["llama-cli", *CHAT, *CONSTRAINED]},
    "llama-2023": {
        "complete": [
            *("llama", *MODEL, *_option("--threads", "threads"), *_option("--batch_size", "batch"), *_option("-c", "context")),
            *(*_option("-n", "max_tokens"), *_option("--temp", "temperature"), *_option("--top_p", "top_p")),
            *(*_option("--repeat-penalty", "repeat_penalty"), *_option("--prompt", "prompt"), _option("-r", "stop")),
        ],
        "embed": ["llama-embeddings", *MODEL, *_option("--prompt", "prompt")],
        "tokenize": ["llama-tokens", *MODEL, *_option("--prompt", "prompt")],
    },
}
DEFAULTS: Mapping[str, Any] = {  # what a placeholder says outside of a list of its own when the request says nothing
    "temperature": 1,
    "top_p": 1,
    "top_k": 40,
    "min_p": 0.05,
    "seed": -1,
    "repeat_penalty": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
}
PROMPTS = ("prompt", "prompt_file", "prompt_text_file")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
OWN = (*PROMPTS, "model", "threads", "context", "batch", "max_tokens")  # always known
LISTED = ("stop", "json_schema", "grammar", "pooling")  # several or none: in a list of their own only
PLACEHOLDERS = (*OWN, *DEFAULTS, *LISTED)
