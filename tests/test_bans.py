"""Bans that workers and machines share: so many tries count, whoever they reach, and then nobody answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.fleet import until
from tests.backends.proxy import CHECKOUT, KEY, Proxy
from tests.backends.redis_server import RedisServer
from tests.backends.sockets import Client, ask

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")

RIGHT = {"authorization": f"Bearer {KEY}"}
DEMO = 'targets: {default: demo, demo: {url: "demo://", dialect: openai}}\n'
TRIES = 6


def config(workers: int, more: str = "", ban_s: str = "null") -> str:
    banning = f"cerbere: {{max_tries: {TRIES}, ban_s: {ban_s}, trusted_proxies: [127.0.0.1]}}\n"
    return f"system: {{workers: {workers}}}\n{banning}{more}{DEMO}"


def workers_of(proxy: Proxy, count: int) -> list[int]:
    pid = proxy.process.pid
    return until(lambda: len(_children(pid)) == count and _children(pid))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def connect_each(proxy: Proxy, pids: list[int]) -> list[Client]:
    """A connection to each of the workers: the others stand still meanwhile."""
    clients = []
    for chosen in pids:
        for pid in pids:
            os.kill(pid, signal.SIGCONT if pid == chosen else signal.SIGSTOP)
        clients.append(Client(proxy.url))
        assert clients[-1].ask("GET", "/healthz").status == 200
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return clients


def status(client: Client, key: str, address: str) -> int:
    headers = {"authorization": f"Bearer {key}", "x-forwarded-for": address}
    return client.ask("GET", "/v1/models", headers=headers).status


def closed(clients: list[Client]) -> None:
    for client in clients:
        client.sock.close()


def test_so_many_tries_count_over_four_workers_and_then_all_of_them_refuse(tmp_path: Path) -> None:
    with Proxy(tmp_path, config(4)) as proxy:
        pids = workers_of(proxy, 4)
        tried, later = connect_each(proxy, pids), connect_each(proxy, pids)
        for client in later:
            assert status(client, KEY, "198.51.100.7") == 200
        assert [status(tried[at % 4], "wrong", "198.51.100.7") for at in range(TRIES)] == [401] * TRIES
        assert [status(client, KEY, "198.51.100.8") for client in later] == [200] * 4
        assert [status(client, KEY, "198.51.100.7") for client in later] == [403] * 4
        assert proxy.log.count("is banned until restart") == 1
        closed(tried + later)


def test_a_right_key_at_one_worker_clears_the_count_of_all(tmp_path: Path) -> None:
    with Proxy(tmp_path, config(2)) as proxy:
        one, other = connect_each(proxy, workers_of(proxy, 2))
        for _ in range(3):
            for at in range(TRIES - 1):
                assert status((one, other)[at % 2], "wrong", "2001:db8::1") == 401
            assert status(other, KEY, "2001:db8::ffff") == 200
        closed([one, other])


def test_a_ban_ends_after_its_time_and_outlives_a_worker(tmp_path: Path) -> None:
    with Proxy(tmp_path, config(2, ban_s="1.5")) as proxy:
        pids = workers_of(proxy, 2)
        client = Client(proxy.url)
        assert [status(client, "wrong", "198.51.100.7") for _ in range(TRIES)] == [401] * TRIES
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        proxy.wait_for_log("another one takes its place", 2)
        with Client(proxy.url) as again:
            assert status(again, KEY, "198.51.100.7") == 403
        headers = {**RIGHT, "x-forwarded-for": "198.51.100.7"}
        until(lambda: ask(proxy.url, "GET", "/v1/models", headers=headers).status == 200)
        with Client(proxy.url) as again:  # the count begins anew
            assert status(again, "wrong", "198.51.100.7") == 401
            assert status(again, KEY, "198.51.100.7") == 200
        client.sock.close()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.stop()


def test_two_machines_with_a_redis_count_together_and_alone_while_it_is_away(tmp_path: Path, redis_server: RedisServer) -> None:
    text = config(1, f"state: {redis_server.url}\n")
    with Proxy(tmp_path / "a", text) as a, Proxy(tmp_path / "b", text) as b:
        with Client(a.url) as one, Client(b.url) as other:
            tries = [status((one, other)[at % 2], "wrong", "198.51.100.7") for at in range(TRIES)]
            assert tries == [401] * TRIES
        for proxy in (a, b):
            headers = {**RIGHT, "x-forwarded-for": "198.51.100.7"}
            until(lambda proxy=proxy, headers=headers: ask(proxy.url, "GET", "/v1/models", headers=headers).status == 403)
        redis_server.stop()
        with Client(a.url) as one:
            assert [status(one, "wrong", "198.51.100.9") for _ in range(TRIES)] == [401] * TRIES
        with Client(a.url) as one:
            assert status(one, KEY, "198.51.100.9") == 403
        assert a.log.count("the shared state is lost") == 1
        with Client(b.url) as other:
            assert status(other, KEY, "198.51.100.9") == 200


def test_a_call_is_refused_while_redis_is_away_where_the_configuration_says_so(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with Proxy(tmp_path, config(2, f"state: {redis_server.url}\non_state_loss: refuse\n")) as proxy:
        redis_server.stop()
        reply = until(lambda: (got := ask(proxy.url, "GET", "/v1/models", headers=RIGHT)).status == 503 and got)
        assert (reply["retry-after"], reply.json()["error"]["code"]) == ("2", "state_lost")
        redis_server.start()
        until(lambda: ask(proxy.url, "GET", "/v1/models", headers=RIGHT).status == 200)


def test_a_plain_configuration_knows_nothing_of_the_shared_state(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(CHECKOUT)!r})
from proxy import config
from proxy.generation import Generation
Generation(config.load("config.yaml", {{"MOOLTIPROXY_KEY": "k"}}, {{}}, {{}}), {{}}, {{}})
print([name for name in sys.modules if name.startswith(("proxy.state", "proxy.gates.bans", "sqlite3", "redis"))])
"""
    (tmp_path / "config.yaml").write_text(DEMO)
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
