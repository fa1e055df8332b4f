"""What translating costs by itself: no socket, no thread, the chains that a call would run, from bytes to bytes.

    python micro.py 1.0        so many seconds for each; prints JSON

Each value is the mean CPU time of a batch of runs; there are as many batches as fit into the time.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agent

from proxy import config, wire
from proxy.generation import Generation
from proxy.losses import shape
from proxy.translate import Endpoint, Translation

KEYED = {"MOOLTIPROXY_KEY": "k" * 32}
BATCH_S = 0.02
WORDS = ("The", " sky", " is", " blue", " because", " air", " scatters", " short", " waves", ".")
ARGUMENTS = ('{"path"', ': "/home/dev', '/project"', ', "lines"', ": [1,", " 400]", "}")
PROMPT = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Why is the sky blue? " * 20}]


class Case:
    """One kind of call: an endpoint of a target of this dialect, for the clients of one API."""

    def __init__(self, folder: Path, dialect: str, front: str) -> None:
        self.front, self.path = front, {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}[front]
        file = folder / f"{dialect}.yaml"
        file.write_text(json.dumps({"targets": {"default": "a", "a": {"url": "http://127.0.0.1:1/v1", "dialect": dialect}}}))
        generation = Generation(config.load(str(file), KEYED, {}, {}), {}, {})
        found = generation.find(generation.places["a"], front, "POST", self.path)
        assert found is not None
        self.endpoint: Endpoint = found[0]

    def asked(self, body: Any) -> tuple[Translation, Any]:
        """A call's translation, and what its backend is sent."""
        translation = Translation(self.endpoint, "c" * 28, self.front, "POST", self.path)
        return translation, translation.request(body, translation.wants_stream(body), {}, "", body.get("model"))

    def request(self, data: bytes) -> bytes:
        """A client's bytes → the backend's."""
        return wire.dumps(self.asked(wire.loads_request(data))[1])

    def stream(self, translation: Translation, pieces: list[bytes]) -> int:
        """A backend's pieces → the client's; how many bytes those are."""
        events = translation.checked(translation.events(wire.read_sse(iter(pieces))))
        front = translation.front
        return sum(len(piece) for piece in wire.write(front.framing(""), events, front.done))


def anthropic_events() -> Iterator[dict[str, Any]]:
    """A Messages stream: some thinking, a text, a tool call."""
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": None, "stop_sequence": None}
    yield {"type": "message_start", "message": {**head, "content": [], "usage": {"input_tokens": 900, "output_tokens": 1}}}
    tool = {"type": "tool_use", "id": "toolu_1", "name": "tool_1", "input": {}}
    thoughts: list[dict[str, Any]] = [{"type": "thinking_delta", "thinking": word} for word in WORDS * 5]
    thoughts.append({"type": "signature_delta", "signature": "c2ln" * 40})
    blocks: tuple[tuple[dict[str, Any], list[dict[str, Any]]], ...] = (
        ({"type": "thinking", "thinking": "", "signature": ""}, thoughts),
        ({"type": "text", "text": ""}, [{"type": "text_delta", "text": word} for word in WORDS * 30]),
        (tool, [{"type": "input_json_delta", "partial_json": piece} for piece in ARGUMENTS]),
    )
    for index, (block, deltas) in enumerate(blocks):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    ended = {"stop_reason": "tool_use", "stop_sequence": None}
    yield {"type": "message_delta", "delta": ended, "usage": {"output_tokens": 360}}
    yield {"type": "message_stop"}


def openai_events() -> Iterator[dict[str, Any]]:
    """The same as chunks."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "m"}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "content": ""})
    yield from (chunk({"reasoning_content": word}) for word in WORDS * 5)
    yield from (chunk({"content": word}) for word in WORDS * 30)
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "tool_1", "arguments": ""}}
    yield chunk({"tool_calls": [call]})
    yield from (chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in ARGUMENTS)
    yield chunk({}, "tool_calls")
    yield {**head, "choices": [], "usage": {"prompt_tokens": 900, "completion_tokens": 360, "total_tokens": 1260}}


def pieces_of(events: Iterator[dict[str, Any]]) -> list[bytes]:
    """Events as a backend sends them, each by itself."""
    return [wire.frame("named-sse" if "type" in event else "sse", event) for event in events]


def timed(run: Callable[[], object], seconds: float) -> list[float]:
    """CPU seconds a run, the mean of each batch."""
    run()  # what is imported and remembered at the first call
    begun = time.process_time()
    run()
    runs = max(1, int(BATCH_S / max(time.process_time() - begun, 1e-7)))
    found: list[float] = []
    until = time.perf_counter() + seconds
    while not found or time.perf_counter() < until:
        begun = time.process_time()
        for _ in range(runs):
            run()
        found.append((time.process_time() - begun) / runs)
    return found


def measured(seconds: float, folder: Path) -> Iterator[dict[str, Any]]:
    """Every measurement."""

    def one(what: str, unit: str, scale: float, run: Callable[[], object]) -> dict[str, Any]:
        return {"what": what, "unit": unit, "values": [value * scale for value in timed(run, seconds)]}

    to_openai, to_anthropic = Case(folder, "openai", "anthropic"), Case(folder, "anthropic", "openai")
    plain = {"model": "m", "stream": True, "messages": PROMPT[1:], "max_tokens": 64}
    for what, case, events in (
        ("stream, Anthropic → OpenAI, wire and grammar included", to_anthropic, anthropic_events()),
        ("stream, OpenAI → Anthropic, wire and grammar included", to_openai, openai_events()),
    ):
        translation, pieces = case.asked(plain)[0], pieces_of(events)
        run = _streaming(case, translation, pieces)
        yield one(what, "µs/event", 1e6 / len(pieces), run)
    body = agent.request()
    data = json.dumps(body).encode()
    size = f"agent request of {len(data) / 1000:.0f} KB with {agent.TOOLS} tools"
    yield one(f"{size}, Anthropic → OpenAI, bytes to bytes", "ms", 1e3, lambda: to_openai.request(data))
    yield one(f"{size}, mappers alone", "ms", 1e3, lambda: to_openai.asked(body))
    yield one(f"{size}, read and written alone", "ms", 1e3, lambda: wire.dumps(wire.loads_request(data)))
    yield one(f"{size}, its shape for the loss ledger", "ms", 1e3, lambda: shape(body))
    begun = _streaming(to_openai, to_openai.asked(body)[0], pieces_of(openai_events()))
    yield one(f"{size}, the whole answering stream", "ms", 1e3, begun)
    tgi, chat = Case(folder, "tgi", "openai"), json.dumps({"model": "m", "messages": PROMPT, "max_tokens": 64}).encode()
    yield one("chat request, OpenAI → TGI, bytes to bytes", "µs", 1e6, lambda: tgi.request(chat))


def _streaming(case: Case, translation: Translation, pieces: list[bytes]) -> Callable[[], object]:
    return lambda: case.stream(translation, pieces)


def main() -> None:
    """See the module."""
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(list(measured(float(sys.argv[1]), Path(folder)))))


if __name__ == "__main__":
    main()
