"""How long the call log's questions take on a million rows, and what recording costs a call.

python records.py 1000000 FILE      fills FILE (or postgresql://…) if it is empty, then asks
python records.py cost              the CPU time of one call's row and of its write
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from proxy import wire
from proxy.call import Call
from proxy.config import Calls, Cerbere, Config, System, Target
from proxy.records.rows import Rows, Taken
from proxy.records.store import Page, Query, Row, Store, open_store
from proxy.records.tables import BY

KEYS, TARGETS, MODELS = ("alice", "bob", "carol", "rare"), ("llama", "gpt", "claude"), ("gpt-4o", "llama-3", "claude-4")
WORDS = [
    f"{start}{end}"
    for start in ("sky", "sea", "sun", "rain", "leaf", "road")
    for end in ("", "ly", "ing", "ed", "less", "ward")
]
DAY_S = 86400.0
WITHIN_S = 0.2  # as the console asks
CALL_TEXTS = (None, "sky", "skyly seaing roadless", "rain*", "s*", "needle", "need*", "nothing", "needle sky")
TALK_TEXTS = (*CALL_TEXTS, "eedl")  # a part of a title
NARROWED = (  # text, key, target, model, status, front
    (None, "sky", "rain*"),
    (None, "bob", "rare"),
    (None, "gpt"),
    (None, "gpt-4o", "none"),
    (None, "error", "ok", "429"),
    (None, "openai", "ollama"),
)
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


def questions(store: Store, count: int) -> dict[str, Callable[[], Any]]:
    """What the console's pages ask, and every combination of what narrows its lists."""
    middle = time.time() - 45 * DAY_S
    page = store.calls(Query(until=middle))
    old = Query(before=page.before)
    one = f"{count // 2 - count // 2 % 4:028x}"
    told: dict[str, Callable[[], Any]] = {
        "one call": lambda: store.call(page[0].id),
        "one conversation": lambda: store.conversation(one),
        "a page of 1000": lambda: store.calls(replace(old, limit=1000)),
        "latency, 90 days": lambda: store.latency(Query()),
        "latency of a key, 30 days": lambda: store.latency(Query(key_name="bob", since=time.time() - 30 * DAY_S)),
    }
    for by in BY:
        told[f"usage by {by}, 90 days"] = lambda by=by: store.usage(Query(), by)  # type: ignore[misc]
    told["usage by conversation of a rare key"] = lambda: store.usage(Query(key_name="rare"), "conversation")
    for texts, base in ((CALL_TEXTS, Query()), (TALK_TEXTS, Query()), (CALL_TEXTS, old), (TALK_TEXTS, old)):
        what = "conversations" if texts is TALK_TEXTS else "calls"
        ask = store.conversations if texts is TALK_TEXTS else store.calls
        for text in texts:
            given = replace(base, text=text)
            for key in (None, "bob", "rare", "nobody"):
                name = f"{what}{' before' if base.before else ''}{f', {text!r}' if text else ''}{f' of {key}' if key else ''}"
                told[name] = lambda ask=ask, given=given, key=key: ask(replace(given, key_name=key), WITHIN_S)  # type: ignore[misc]
    for text, key, target, model, status, front in itertools.product(*NARROWED):
        given = replace(old, text=text, key_name=key, target=target, model=model, status=status, front=front)
        name = "combined: " + " ".join(str(each) for each in (text, key, target, model, status, front) if each)
        told[name] = lambda given=given: store.calls(given, WITHIN_S)  # type: ignore[misc]
    return told


def ask(store: Store, count: int) -> None:
    """Each question's best and worst time of five, in ms, and its least CPU time, which says more on a machine that is busy."""
    all_of: list[tuple[float, float, str]] = []
    for name, question in questions(store, count).items():
        times, used = [], []
        for _ in range(5):
            began, cpu = time.monotonic(), time.thread_time()
            found = question()
            times.append((time.monotonic() - began) * 1000)
            used.append((time.thread_time() - cpu) * 1000)
        size = len(found) if hasattr(found, "__len__") else 1
        goes_on = " so far" if isinstance(found, Page) and found.before and len(found) < 50 else ""
        all_of.append((min(times), max(times), name))
        if not name.startswith("combined") or min(times) > 100:
            print(f"{name:<60}{min(times):8.1f} to {max(times):7.1f} ms, CPU {min(used):7.1f} ms   {size} found{goes_on}")
    best = sorted(all_of)
    middle, (worst, _, which) = best[len(best) // 2][0], best[-1]
    print(f"{len(best)} questions, best of five: median {middle:.1f} ms, worst {worst:.1f} ms ({which})")
    print(f"slowest single one: {max(worst for _, worst, _ in all_of):.1f} ms")


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
        where = sys.argv[2] if "://" in sys.argv[2] else f"sqlite:///{sys.argv[2]}"
        place = open_store(where)
        if not place.calls(Query(limit=1)):
            fill(place, int(sys.argv[1]))
        ask(place, int(sys.argv[1]))
