"""A target that serves few calls at once: never more, in their order, and nobody keeps a place that he does not need."""

from __future__ import annotations

import itertools
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.call import Call, Waiting
from proxy.config import Line
from proxy.errors import ClientGone
from proxy.gates.queue import join
from proxy.state.memory import Memory
from tests.backends.engines import ENGINES, Machines
from tests.backends.literal import Asked, Literal, Peer, tcp_pair
from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Client, Reply, ask
from tests.test_attempts import NONCE, begin, good, reset_before, says, serve

RIGHT = {"authorization": f"Bearer {KEY}"}
WAITS = "waits for a place at target"


class Slot:
    """A backend that answers one request for each `release`, and remembers how many it had at once."""

    def __init__(self) -> None:
        self.release = threading.Semaphore(0)
        self.order: list[str] = []
        self.most = self._now = 0
        self.arrived = threading.Condition()

    def __call__(self, peer: Peer) -> None:
        while asked := peer.request():
            with self.arrived:
                self._now += 1
                self.most = max(self.most, self._now)
                self.order += [NONCE.findall(asked.body)[0].decode()]
                self.arrived.notify_all()
            assert self.release.acquire(timeout=20)
            with self.arrived:
                self._now -= 1
            serve(peer, asked)

    def wait_for(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.order) >= count, 20), self.order


def chat(number: int, stream: bool = False) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": f"nonce-{number}"}], **({"stream": True} if stream else {})}


def config(url: str, queue: str = "{}", more: str = "") -> str:
    return SYSTEM + targets(url, queue, more)


SYSTEM = "system: {log: {level: debug}}\n"


def targets(url: str, queue: str = "{}", more: str = "") -> str:
    return f"""
targets:
  default: a
  a: {{url: "{url}", dialect: openai, concurrency: 1, queue: {queue}{more}}}
"""


@contextmanager
def queued(proxy: Proxy | Machines, slot: Slot, count: int) -> Iterator[list[Client]]:
    """So many clients, of whom the first has the slot and the others wait, in this order; of the machines in turn."""
    urls = itertools.cycle(proxy.urls if isinstance(proxy, Machines) else [proxy.url])
    clients = [Client(next(urls), headers=RIGHT) for _ in range(count)]
    try:
        for number, client in enumerate(clients):
            client.request("POST", "/v1/chat/completions", chat(number))
            if number:
                proxy.wait_for_log(WAITS, number)
            else:
                slot.wait_for(1)
        yield clients
    finally:
        for client in clients:
            client.sock.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_clients_of_one_slot_are_served_one_by_one_in_their_order(tmp_path: Path, engine: str) -> None:
    slot = Slot()
    with Literal(slot) as backend, Machines(tmp_path, engine, targets(backend.url), log="level: debug") as machines:
        machines.another()
        with queued(machines, slot, 20) as clients:
            assert slot.order == ["nonce-0"]
            for _ in clients:
                slot.release.release()
            assert [client.reply().status for client in clients] == [200] * 20
        assert slot.order == [f"nonce-{number}" for number in range(20)]
        assert slot.most == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_who_leaves_the_queue_frees_the_place_and_never_reaches_the_backend(tmp_path: Path, engine: str) -> None:
    slot = Slot()
    with (
        Literal(slot) as backend,
        Machines(tmp_path, engine, targets(backend.url, "{size: 3}"), log="level: debug") as machines,
    ):
        proxy = machines.another()
        with queued(machines, slot, 4) as clients:
            assert ask(proxy.url, "POST", "/v1/chat/completions", chat(7), RIGHT).status == 503  # it is full
            clients[2].sock.close()
            machines.wait_for_log(" 499 ", 1)
            with Client(proxy.url, headers=RIGHT) as late:
                late.request("POST", "/v1/chat/completions", chat(8))
                machines.wait_for_log(WAITS, 4)
                for _ in range(4):
                    slot.release.release()
                replies = [client.reply().status for client in (clients[0], clients[1], clients[3], late)]
        assert replies == [200] * 4
        assert slot.order == ["nonce-0", "nonce-1", "nonce-3", "nonce-8"]


def test_a_full_queue_and_a_long_wait_are_refused(tmp_path: Path) -> None:
    slot = Slot()
    with (
        Literal(slot) as backend,
        Proxy(tmp_path, config(backend.url, "{size: 1, timeout_s: 0.5}")) as proxy,
        queued(proxy, slot, 2) as clients,
    ):
        full = ask(proxy.url, "POST", "/v1/chat/completions", chat(7), RIGHT)
        assert (full.status, full["retry-after"]) == (503, "5")
        assert "target 'a' is busy, and 1 calls are waiting for it already" in full.json()["error"]["message"]
        late = clients[1].reply()
        assert (late.status, late["retry-after"]) == (503, "5")
        assert "target 'a' was busy for 0.5 s" in late.json()["error"]["message"]
        slot.release.release()
        assert clients[0].reply().status == 200


def test_who_finds_no_place_is_served_by_the_fallback(tmp_path: Path) -> None:
    slot = Slot()
    with Literal(slot) as backend, Literal(good) as other:
        text = config(backend.url, "{size: 0}", more=", fallback: b")
        text += f'  b: {{url: "{other.url}", dialect: openai}}\n'
        with Proxy(tmp_path, text) as proxy, queued(proxy, slot, 1) as (first,):
            reply = ask(proxy.url, "POST", "/v1/chat/completions", chat(1), RIGHT)
            assert (reply.status, reply["x-mooltiproxy-attempts"], reply["x-mooltiproxy-target"]) == (200, "a busy", "b")
            slot.release.release()
            assert first.reply().status == 200


def test_the_slot_comes_back_whatever_happens(tmp_path: Path) -> None:
    """With no place to wait, a slot that is kept would refuse the next call."""

    def stalls(peer: Peer, asked: Asked) -> None:
        begin(peer, asked)
        assert peer.left()

    faults = iter([says(500), reset_before, says(400), stalls, serve])

    def script(peer: Peer) -> None:
        if asked := peer.request():
            next(faults)(peer, asked)

    with Literal(script) as backend, Proxy(tmp_path, config(backend.url, "{size: 0}")) as proxy:

        def again(number: int) -> Reply:
            return ask(proxy.url, "POST", "/v1/chat/completions", chat(number), RIGHT)

        assert [again(number).status for number in range(3)] == [500, 502, 400]
        with Client(proxy.url, headers=RIGHT) as leaver:
            leaver.request("POST", "/v1/chat/completions", chat(3, stream=True))
            assert leaver.reply_head().status == 200
            assert again(4).status == 503
        proxy.wait_for_log("the client left", timeout_s=10)
        assert again(5).status == 200


def test_a_streaming_client_that_waits_long_hears_from_us() -> None:
    far, near = tcp_pair()
    with far, near:
        state, line = Memory(), Line(1)
        call = Call("POST", "/", "", "127.0.0.1", waits=Waiting(near))
        first = join(state, "a", line, call)
        assert call.waits is not None
        ticks: list[float] = []
        call.waits.tick_s, call.waits.tick = 0.02, lambda: first.leave() if len(ticks) > 2 else ticks.append(time.monotonic())
        second = join(state, "a", line, call)
        assert len(ticks) == 3
        second.leave()
        assert state.queue("target a", 1, 0, "x") is not None


def test_a_place_is_left_with_its_client() -> None:
    far, near = tcp_pair()
    with near:
        state, line = Memory(), Line(1, size=1)
        holder = join(state, "a", line, Call("POST", "/", "", "127.0.0.1", waits=Waiting(None)))
        far.close()
        assert select.select([near], [], [], 5)[0]
        with pytest.raises(ClientGone):
            join(state, "a", line, Call("POST", "/", "", "127.0.0.1", waits=Waiting(near)))
        waiting = state.queue("target a", 1, 1, "next")  # the place is free again
        assert waiting is not None
        holder.leave()
        assert waiting.wait(0)
