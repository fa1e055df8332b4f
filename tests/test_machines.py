"""Several machines, as deploy/ has them: nginx in front of two proxies with two workers each, and one Redis behind them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import pytest
import yaml

from tests.backends.nginx import Nginx
from tests.backends.parts import needs
from tests.backends.proxy import CHECKOUT, KEY, Proxy
from tests.backends.redis_server import RedisServer
from tests.backends.sockets import Backend, Client, Exchange, ask

pytestmark = needs("nginx")

RIGHT = {"authorization": f"Bearer {KEY}"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    try:
        yield server
    finally:
        server.stop()


class Machines:
    """Two proxies of two workers behind nginx. `config` of each has `{name}` where its own name belongs."""

    def __init__(self, folder: Path, config: str) -> None:
        self._folder, self._config = folder, config

    def __enter__(self) -> Machines:
        with ExitStack() as stack:
            self.proxies = [
                stack.enter_context(Proxy(self._folder / name, self._config.replace("{name}", name))) for name in ("one", "two")
            ]
            self.url = stack.enter_context(Nginx(self._folder / "nginx", [proxy.url for proxy in self.proxies])).url
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def kill(self, proxy: Proxy) -> None:
        """Supervisor and workers at once, as when a machine loses its power."""
        pid = proxy.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            os.kill(each, signal.SIGKILL)


def config(redis: RedisServer, target: str, extra: str = "") -> str:
    return f"system: {{workers: 2}}\nstate: {redis.url}\n{extra}targets: {{default: up, up: {target}}}\n"


def test_a_hundred_a_minute_are_a_hundred_whoever_answers(tmp_path: Path, redis: RedisServer) -> None:
    text = config(redis, '{url: "demo://", dialect: openai}', 'limits: {global: "100/minute"}\n')
    seen: Counter[int] = Counter()
    lock, start = threading.Lock(), threading.Barrier(40)
    with Machines(tmp_path, text) as machines:

        def attack() -> None:
            start.wait()
            with Client(machines.url, headers=RIGHT) as client:
                for _ in range(5):
                    reply = client.ask("POST", "/v1/chat/completions", CHAT)
                    with lock:
                        seen[reply.status] += 1
                    assert reply.status == 200 or reply["retry-after"]

        crowd = [threading.Thread(target=attack) for _ in range(40)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(60)
    assert seen == {200: 100, 429: 100}


def test_a_wrong_key_at_one_machine_bans_at_the_other(tmp_path: Path, redis: RedisServer) -> None:
    text = config(redis, '{url: "demo://", dialect: openai}', "cerbere: {max_tries: 3}\n")
    with Machines(tmp_path, text) as machines:
        one, two = (proxy.url for proxy in machines.proxies)
        wrong = {"authorization": "Bearer wrong"}
        assert [ask(url, "GET", "/v1/models", headers=wrong).status for url in (one, two, one)] == [401, 401, 401]
        assert [ask(url, "GET", "/v1/models", headers=RIGHT).status for url in (one, two)] == [403, 403]


def test_a_machine_that_dies_loses_its_own_calls_alone(tmp_path: Path, redis: RedisServer) -> None:
    streams = 24
    begun, allowed = threading.Semaphore(0), threading.Event()

    def stream(exchange: Exchange) -> None:
        exchange.start()
        exchange.event({"by": dict(exchange.asked.fields)["x-machine"]})
        begun.release()
        allowed.wait(60)
        exchange.event({"end": True})
        exchange.end()

    got: list[list[object]] = []

    def follow(client: Client) -> None:
        try:
            got.append(client.reply().events)
        except OSError:
            got.append([])

    with Backend() as backend:
        backend.on("/stream", stream)
        target = f'{{url: "{backend.url}", route: /up, headers: {{x-machine: "{{name}}"}}}}'
        with Machines(tmp_path, config(redis, target, 'limits: {global: "1000/minute"}\n')) as machines:
            clients = [Client(machines.url, headers=RIGHT) for _ in range(streams)]
            for client in clients:
                client.request("POST", "/up/stream", {"stream": True})
            for _ in clients:
                assert begun.acquire(timeout=60)
            machines.kill(machines.proxies[0])
            after = [ask(machines.url, "GET", "/healthz").status for _ in range(20)]
            allowed.set()
            threads = [threading.Thread(target=follow, args=(client,)) for client in clients]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            for client in clients:
                client.sock.close()
    ended = Counter(events[0]["by"] for events in got if {"end": True} in events)  # type: ignore[index]
    asked = Counter(dict(asked.fields)["x-machine"] for asked in backend.asked)
    assert after == [200] * 20
    assert asked["one"] > 0
    assert ended == {"two": asked["two"]}
    assert asked["one"] + asked["two"] == streams  # nothing was sent twice


class TestFiles:
    def test_the_configuration_of_the_containers_is_sound(self) -> None:
        command = [sys.executable, "-m", "main", "check", "--config", "deploy/config.yaml"]
        environ = {**os.environ, "MOOLTIPROXY_KEY": KEY}
        done = subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    def test_the_containers_are_those_of_the_test(self) -> None:
        services = yaml.safe_load((CHECKOUT / "deploy/compose.yaml").read_text())["services"]
        assert {"proxy1", "proxy2", "nginx", "redis"} <= set(services)
        text = (CHECKOUT / "deploy/nginx.conf").read_text()
        assert all(f"server {name}:8000" in text for name in ("proxy1", "proxy2"))

    def test_the_image_holds_all_that_runs(self) -> None:
        copied = " ".join(line for line in (CHECKOUT / "deploy/Dockerfile").read_text().splitlines() if line.startswith("COPY"))
        for name in ("main.py", "proxy", "mappers.py", "prompters.py", "requirements.txt", "config.template.yaml"):
            assert name in copied.split()
