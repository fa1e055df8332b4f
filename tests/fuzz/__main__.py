"""`python -m tests.fuzz [--count N] [--pair FRONT-BACKEND]`: random requests through every pair of APIs, by hand and for long,
and a tenth as many answers the way back.

Stops a front, and the way back of a pair, at its first fault, shrinks it, and keeps the smallest body in tests/fuzz/found/.
Exits with 1 if there was any.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import answers
from tests.fuzz.found import keep
from tests.fuzz.fronts import FRONTS
from tests.fuzz.hold import BACKENDS, Broken, hold


def main() -> int:
    """Fuzzes, prints a line for each front and the refusals it met most."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, epilog="example: make fuzz COUNT=10000")
    parser.add_argument("--count", type=int, default=1000, help="requests for each front and backend (default: 1000)")
    parser.add_argument("--pair", metavar="FRONT-BACKEND", help="one pair alone, such as gemini-ollama or openai-text-tgi")
    arguments = parser.parse_args()
    pairs = {f"{front}-{backend}": (front, backend) for front in FRONTS for backend in BACKENDS}
    if arguments.pair and arguments.pair not in pairs:
        parser.error(f"--pair: there is {', '.join(pairs)}")
    chosen = [pairs[arguments.pair]] if arguments.pair else list(pairs.values())
    faults = sum(fuzz(front, [b for f, b in chosen if f == front], arguments.count) for front in dict(chosen))
    faults += sum(
        fuzz_answers(front, name, max(1, arguments.count // 10))
        for front, name in answers.each()
        if (front, name.removesuffix("-text")) in chosen
    )
    print(f"{faults} fault{'s' * (faults != 1)}")
    return 1 if faults else 0


def fuzz(front: str, backends: list[str], count: int) -> int:
    """The number of faults: 0, or 1 as it stops there."""
    met: Counter[str] = Counter()
    last: list[Any] = []

    @settings(max_examples=count, phases=PHASES, report_multiple_bugs=False, **QUIET)
    @given(FRONTS[front].requests())
    def every(body: Any) -> None:
        for backend in backends:
            last[:] = [backend, body]
            met[f"{backend}: {hold(FRONTS[front], backend, body)}"] += 1
        last.clear()

    began = time.monotonic()
    try:
        every()
    except Exception as fault:
        if not isinstance(fault, Broken) and not last:
            raise
        print(
            f"{front}: {fault}\n  kept in {keep(front, last[0], last[1], f'{type(fault).__name__}: {fault}'[:500])}", flush=True
        )
        return 1
    sent = sum(number for said, number in met.items() if said.endswith(": sent"))
    print(
        f"{front}: {count} requests to {len(backends)} backends in {time.monotonic() - began:.0f} s, {sent} sent on", flush=True
    )
    for said, number in met.most_common(60):
        if not said.endswith((": sent", ": bytes", ": unsupported")):
            print(f"  {number:6} {said[:150]}")
    return 0


def fuzz_answers(front: str, name: str, count: int) -> int:
    """The number of faults: 0, or 1 as it stops there."""
    last: list[Any] = []

    @settings(max_examples=count, phases=PHASES, report_multiple_bugs=False, **QUIET)
    @given(answers.ANSWERS[name].whole())
    def every(answer: Any) -> None:
        last[:] = [answer]
        answers.hold_answer(front, name, answer)

    try:
        every()
    except Exception as fault:
        if not last:
            raise
        file = keep(front, name, last[0], f"{type(fault).__name__}: {fault}"[:500], "answers")
        print(f"{name} to {front}: {fault}\n  kept in {file}", flush=True)
        return 1
    print(f"{name} to {front}: {count} answers, whole and streamed", flush=True)
    return 0


QUIET: dict[str, Any] = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
PHASES = (Phase.generate, Phase.shrink)

if __name__ == "__main__":
    sys.exit(main())
