"""How long the call log's questions take on a million rows, and what recording costs a call.

python records.py 1000000 FILE      fills FILE (made if it is not there), then asks
python records.py cost              the CPU time of one call's row and of its write
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proxy import wire
from proxy.call import Call
from proxy.config import Calls, Cerbere, Config, System, Target
from proxy.records.rows import Rows, Taken
from proxy.records.store import Query, Row, Store, open_store

KEYS, TARGETS, MODELS = ("alice", "bob", "carol", "rare"), ("llama", "gpt", "claude"), ("gpt-4o", "llama-3", "claude-4")
WORDS = [
    f"{start}{end}"
    for start in ("sky", "sea", "sun", "rain", "leaf", "road")
    for end in ("", "ly", "ing", "ed", "less", "ward")
]
DAY_S = 86400.0
BATCH = 1000


def rows(count: int, chance: random.Random) -> Any:
    """Calls of 90 days: conversations of four turns, a few errors, one key and one word that are rare."""
    begin = time.time() - 90 * DAY_S
    for number in range(count):
        said = " ".join(chance.choices(WORDS, k=30)) + (" needle" if number % 100_000 == 7 else "")
        messages = [{"role": "user", "content": said}]
        answer = {"choices": [{"message": {"role": "assistant", "content": " ".join(chance.choices(WORDS, k=40))}}]}
        first = number - number % 4
        yield Row(
            id=f"{number:028x}",
            at=begin + number * 90 * DAY_S / count,
            key_name="rare" if number % 10_000 == 3 else KEYS[number // 4 % 3],
            client="127.0.0.1",
            path="/v1/chat/completions",
            target=chance.choice(TARGETS),
            model_asked="default",
            model_served=chance.choice(MODELS),
            status=500 if number % 50 == 0 else 200,
            total_ms=chance.lognormvariate(6, 1),
            first_ms=chance.lognormvariate(4, 1),
            tokens_in=300,
            tokens_out=200,
            cost=0.001,
            stream=bool(number % 2),
            conversation=f"{first:028x}",
            leaves=[f"{number:032x}"],
            title=said[:50],
            request={"model": "default", "messages": messages},
            response=answer,
        )


def fill(store: Store, count: int) -> None:
    """Writes so many rows."""
    batch: list[Row] = []
    began = time.monotonic()
    for row in rows(count, random.Random(1)):
        batch.append(row)
        if len(batch) == BATCH:
            store.write(batch)
            batch = []
    store.write(batch)
    print(f"{count} rows in {time.monotonic() - began:.0f} s")


def ask(store: Store, count: int) -> None:
    """Each question's best and worst time of five, in ms, and its least CPU time, which says more on a machine that is busy."""
    middle = time.time() - 45 * DAY_S
    page = store.calls(Query(until=middle))[-1]
    before = (page.at, page.id)
    questions: dict[str, Callable[[], Any]] = {
        "newest calls": lambda: store.calls(Query()),
        "a page in the middle": lambda: store.calls(Query(before=before)),
        "of a key": lambda: store.calls(Query(key_name="bob")),
        "of a rare key": lambda: store.calls(Query(key_name="rare", limit=200)),
        "of a key that has none": lambda: store.calls(Query(key_name="nobody")),
        "errors of a target and model": lambda: store.calls(Query(target="gpt", model="gpt-4o", status="error")),
        "of a model that nobody asked for": lambda: store.calls(Query(model="none")),
        "one call": lambda: store.call(page.id),
        "search: a frequent word": lambda: store.calls(Query(text="sky")),
        "search: three words": lambda: store.calls(Query(text="skyly seaing roadless")),
        "search: a beginning": lambda: store.calls(Query(text="rain*")),
        "search: a rare word": lambda: store.calls(Query(text="needle")),
        "search: a frequent word of a rare key": lambda: store.calls(Query(text="sky", key_name="rare")),
        "conversations": lambda: store.conversations(Query()),
        "conversations of a rare key": lambda: store.conversations(Query(key_name="rare")),
        "conversations: a word": lambda: store.conversations(Query(text="sky")),
        "conversations: a rare word": lambda: store.conversations(Query(text="needle")),
        "one conversation": lambda: store.conversation(f"{count // 2 - count // 2 % 4:028x}"),
        "usage by key, 90 days": lambda: store.usage(Query(), "key_name"),
        "usage by user, 90 days": lambda: store.usage(Query(), "user"),
        "latency, 90 days": lambda: store.latency(Query()),
    }
    for name, question in questions.items():
        times, used = [], []
        for _ in range(5):
            began, cpu = time.monotonic(), time.thread_time()
            found = question()
            times.append((time.monotonic() - began) * 1000)
            used.append((time.thread_time() - cpu) * 1000)
        size = len(found) if hasattr(found, "__len__") else 1
        print(f"{name:<40}{min(times):8.1f} to {max(times):7.1f} ms, CPU {min(used):7.1f} ms   {size} found")


def cost() -> None:
    """What one call of pass-through costs behind its end: making the row, and its share of a write of 100."""
    config = Config(System(), Cerbere(), {"a": Target("a", "http://a", key="k" * 40)}, "a", master_key="m" * 40)
    asked = wire.dumps({"model": "m", "messages": [{"role": "user", "content": "Why is the sky blue? " * 20}]})
    message = {"role": "assistant", "content": "It scatters. " * 30}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    counts = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
    told = wire.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": counts})
    delta = {"index": 0, "delta": {"content": " word"}, "finish_reason": None}
    event = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [delta]}
    chunk = b"data: " + wire.dumps(event) + b"\n\n"
    headers = {"authorization": "Bearer " + "c" * 40, "content-type": "application/json", "user-agent": "x", "accept": "*/*"}
    made = Rows(config, Calls())
    for name, body, answer in (
        ("whole", asked, told),
        ("a stream of 100 events", asked.replace(b"{", b'{"stream":true,', 1), chunk * 100),
    ):
        taken = []
        for _ in range(2000):
            call = Call("POST", "/v1/chat/completions", "", "127.0.0.1", status=200, target="a", key_name="master")
            taken.append(Taken(call, time.time(), 1.0, headers, body, body, answer, answer, reached=True))
        began = time.process_time()
        found = [made.of(each) for each in taken]
        middle = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(f"sqlite:///{folder}/calls.db")
            start = time.process_time()
            for at in range(0, len(found), 100):
                store.write(found[at : at + 100])
            end = time.process_time()
            store.close()
        share = 1e6 / len(taken)
        print(f"{name}: row {(middle - began) * share:.0f} µs, write {(end - start) * share:.0f} µs of CPU")


if __name__ == "__main__":
    if sys.argv[1] == "cost":
        cost()
    else:
        fresh = not os.path.exists(sys.argv[2])
        place = open_store(f"sqlite:///{sys.argv[2]}")
        if fresh:
            fill(place, int(sys.argv[1]))
        ask(place, int(sys.argv[1]))
