"""Records tests/cassettes: for each front and each backend of another API a plain call and a stream, answered by the doubles.

Run by `make cassettes`. The doubles' addresses become names, so that a recording does not depend on the ports of the day.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from proxy import dialects  # noqa: E402
from proxy.workbench.examples import WEATHER, routes, written  # noqa: E402
from tests.backends.proxy import Proxy  # noqa: E402
from tests.backends.sockets import ask  # noqa: E402
from tests.compat.matrix import BACKENDS  # noqa: E402
from tests.compat.world import AWS, DOUBLES, KEYS  # noqa: E402
from tests.doubles import aws  # noqa: E402

FOLDER = ROOT / "tests" / "cassettes"
MODELS = {backend.name: backend.model for backend in BACKENDS}
FRONTS = [name for name in dialects.names() if routes(name, "chat", False) or routes(name, "text", False)]
PROMPTED = ("tgi", "llamacpp")  # backends without tools
PAIRS = [(front, backend) for front in FRONTS for backend in DOUBLES if front != backend]


def config(urls: dict[str, str], keys: bool = True) -> dict[str, Any]:
    """A target for each backend, as `default` the first."""
    targets: dict[str, Any] = {"default": next(iter(urls))}
    for name, url in urls.items():
        secret = {"key": KEYS[name]} if keys and name in KEYS else {}
        region = {"aws": {"region": aws.REGION}} if dialects.load(name).aws else {}
        targets[name] = {"url": url, "dialect": name, "model": MODELS[name], **region, **secret}
    return {"targets": targets}


def request(front: str, backend: str, streams: bool) -> tuple[str, bytes]:
    """What a client of that front asks such a backend: for a tool, in a stream, where both ends know tools."""
    if not routes(front, "chat", streams):
        return written(front, "text", streams, {"model": "any", "prompt": "say hello", "max_tokens": 64})
    tools = streams and backend not in PROMPTED
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "call tool" if tools else "say hello"}]
    hub = {"model": "any", "messages": messages, "max_completion_tokens": 64, **({"tools": [WEATHER]} if tools else {})}
    return written(front, "chat", streams, hub)


def main() -> int:
    """Writes the folder anew."""
    FOLDER.mkdir(exist_ok=True)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        doubles = {name: stack.enter_context(double()) for name, double in DOUBLES.items()}
        urls = {name: double.url for name, double in doubles.items()}
        places = {re.sub("^https?://", "", url): f"{name}.test" for name, url in urls.items()}
        told = {**config(urls), "records": {"cassettes": {}}}
        with Proxy(Path(folder), json.dumps(told), env=AWS) as proxy:
            calls = {}
            for front, backend in PAIRS:
                for streams in (False, True):
                    path, body = request(front, backend, streams)
                    headers = {**proxy.headers, "target": backend}
                    reply = ask(proxy.url, "POST", path, body, headers)
                    assert reply.status == 200, (front, backend, streams, reply)
                    calls[f"{front}-to-{backend}-{'stream' if streams else 'plain'}"] = reply["x-request-id"]
        for name, call in calls.items():
            text = (Path(folder) / "cassettes" / f"{call}.json").read_text()
            for place, double in places.items():
                text = text.replace(place, double)
            (FOLDER / f"{name}.json").write_text(json.dumps(json.loads(text), ensure_ascii=False) + "\n")
    (FOLDER / "config.yaml").write_text(json.dumps(config({name: f"http://{name}.test" for name in urls}, keys=False)) + "\n")
    print(f"{len(calls)} cassettes, {sum(file.stat().st_size for file in FOLDER.iterdir()) // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
