"""A real llama.cpp server (from the wheel `xllamacpp`) with a model so small that it is written on the spot.

The model knows no language, it is a table: its embeddings are one-hot, its only layer adds nothing, and the output matrix
has for each token the one that follows it. So what the server says is known beforehand, at any temperature:
  after a newline, as a chat's prompt ends     "OK, fine!", and the end
  after "~"                                    "é" without end, two tokens each: every token is half of a code point
  after "$"                                    "😀" of four tokens, and the end
  after any other text                         any bytes
Each byte is a token; so are `<|endoftext|>`, `<|im_start|>`, `<|im_end|>` (the end) and "he".
"""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

CHILD = Path(__file__).with_name("llama_child.py")
CONTEXT = 512  # tokens a slot; two slots
WIDTH = 288  # of an embedding; no less than there are tokens
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END = 256 + 1 + SPECIAL.index("<|im_end|>")
SAYS = {"\n": ("OK, fine!", END), "~": ("é", "é".encode()[0]), "$": ("😀", END)}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
START_S = 20.0  # it takes about 0.2


def byte_names() -> list[str]:
    """GPT-2's printable name of each byte, which its kind of vocabulary is written in."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]


def write_model(path: Path) -> None:
    """The table as a GGUF file of about two megabytes."""
    import gguf
    import numpy as np

    names = byte_names()
    tokens = [*names, "he", *SPECIAL]
    ones = np.ones(WIDTH, np.float32)
    embeddings = np.eye(len(tokens), WIDTH, dtype=np.float32)
    follows = np.zeros((len(tokens), WIDTH), np.float32)
    for start, (text, after) in SAYS.items():
        said = [*start.encode(), *text.encode(), after]
        follows[said[1:], said[:-1]] = 2  # times the normed one-hot, about 17: e^34 times as likely as any other

    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "block_count": 1,
        "feed_forward_length": 32,
        "head_count": 2,
        "head_count_kv": 2,
        "layer_norm_rms_eps": 1e-5,
        "rope_dimension_count": WIDTH // 2,
        "vocab_size": len(tokens),
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "gpt-2",
        "token_list": tokens,
        "token_types": [1] * 257 + [3] * len(SPECIAL),  # normal, control
        "token_merges": ["h e"],
        "bos_token_id": 257,
        "eos_token_id": END,
        "add_bos_token": False,
        "chat_template": TEMPLATE,
    }.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output.weight", follows)
    writer.add_tensor("output_norm.weight", ones)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", ones)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((WIDTH, WIDTH), np.float32))
    for name, shape in {"ffn_gate": (32, WIDTH), "ffn_up": (32, WIDTH), "ffn_down": (WIDTH, 32)}.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaServer:
    """`with LlamaServer() as server:` a server that is ready at `server.url`; its model is called "tiny"."""

    def __enter__(self) -> LlamaServer:
        self._folder = tempfile.TemporaryDirectory(prefix="llama-server-")
        model, self._log = Path(self._folder.name, "tiny.gguf"), Path(self._folder.name, "log")
        write_model(model)
        with self._log.open("wb") as log:
            command = [sys.executable, str(CHILD), str(model), str(CONTEXT)]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            self.url = self._address()
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._folder.cleanup()

    def _address(self) -> str:
        assert self._child.stdout is not None
        readable, _, _ = select.select([self._child.stdout], [], [], START_S)
        line = self._child.stdout.readline().strip() if readable else ""
        if not line.startswith("http://"):
            raise RuntimeError(f"the llama.cpp server did not start:\n{self._log.read_text(errors='replace')[-2000:]}")
        return line

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + START_S
        while requests.get(f"{self.url}/health", timeout=START_S).status_code != 200:  # 503 while the model is loading
            if time.monotonic() > until:
                raise RuntimeError("the llama.cpp server did not become ready")
            time.sleep(0.02)


@pytest.fixture(scope="session")
def llama_server() -> Iterator[LlamaServer]:
    """One server for each pytest worker."""
    pytest.importorskip("xllamacpp")
    with LlamaServer() as server:
        yield server
