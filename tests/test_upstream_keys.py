"""Several keys for one backend, and keys that a program prints."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.call import Waiting
from proxy.config import Target
from proxy.upstream_keys import FAULT_S, Printed
from tests import configs
from tests.backends.engines import Machines
from tests.backends.literal import Asked, Literal, Peer
from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Reply, ask
from tests.configs import KEYED, Load, faults, with_target
from tests.test_attempts import CHAT, says, serve

load = configs.load  # the fixture
RIGHT = {"authorization": f"Bearer {KEY}"}


def key_of(asked: Asked) -> str:
    return dict(asked.fields).get("authorization", "").removeprefix("Bearer ")


def by_key(answers: dict[str, Callable[[Peer, Asked], None]]) -> Callable[[Peer], None]:
    """A backend that answers each key in its own way; without one, well."""

    def script(peer: Peer) -> None:
        while asked := peer.request():
            answers.get(key_of(asked), serve)(peer, asked)

    return script


def chat(proxy: Proxy) -> Reply:
    return ask(proxy.url, "POST", "/v1/chat/completions", CHAT, RIGHT)


def config(url: str, names: list[str], more: str = "") -> str:
    return f'targets: {{default: a, a: {{url: "{url}", dialect: openai, envkeys: [{", ".join(names)}]{more}}}}}'


def keys(count: int) -> dict[str, str]:
    return {f"KEY_{number}": f"upstream-secret-{number}" for number in range(count)}


def test_keys_are_used_in_turn_two_hundred_of_them(tmp_path: Path) -> None:
    env = keys(200)
    with Literal(by_key({})) as backend, Proxy(tmp_path, config(backend.url, list(env)), env=env) as proxy:
        for _ in range(201):
            assert chat(proxy).status == 200
        assert [key_of(asked) for asked in backend.asked] == [*env.values(), "upstream-secret-0"]


@pytest.mark.parametrize("status", [401, 402, 429])
def test_a_refused_key_rests_and_the_call_goes_on_with_the_next_at_once(tmp_path: Path, status: int) -> None:
    env = keys(3)
    backend = Literal(by_key({"upstream-secret-0": says(status), "upstream-secret-1": says(status)}))
    with backend, Proxy(tmp_path, config(backend.url, list(env)), env=env) as proxy:
        reply = chat(proxy)
        assert (reply.status, reply["x-mooltiproxy-attempts"]) == (200, f"a {status}, a {status}")
        assert {chat(proxy)["x-mooltiproxy-attempts"] for _ in range(4)} == {None}
        assert [key_of(asked)[-1] for asked in backend.asked] == ["0", "1", "2", "2", "2", "2", "2"]
        assert len({asked.body for asked in backend.asked}) == 1
        proxy.wait_for_log(f"target a answered {status} to the key KEY_0: it rests for 30 s")
    assert "upstream-secret" not in proxy.log


@pytest.mark.parametrize("engine", ["workers", "redis"])
def test_a_key_that_was_refused_to_one_process_is_used_by_no_other(tmp_path: Path, engine: str) -> None:
    env = keys(3)
    backend = Literal(by_key({"upstream-secret-0": says(429, "retry-after: 600")}))
    with backend, Machines(tmp_path, engine, config(backend.url, list(env)), env=env) as machines:
        assert chat(machines.proxies[0])["x-mooltiproxy-attempts"] == "a 429"
        other = machines.another()
        assert {chat(other)["x-mooltiproxy-attempts"] for _ in range(24)} == {None}
        used = [key_of(asked)[-1] for asked in backend.asked]
        assert (used[0], set(used[1:])) == ("0", {"1", "2"})


def test_a_key_comes_back_after_its_retry_after(tmp_path: Path) -> None:
    env, seen = keys(2), []

    def limited(peer: Peer, asked: Asked) -> None:
        seen.append(asked)
        answer = says(429, "retry-after: 1") if len(seen) == 1 else serve
        answer(peer, asked)

    backend = Literal(by_key({"upstream-secret-0": limited}))
    with backend, Proxy(tmp_path, config(backend.url, list(env)), env=env) as proxy:
        began = time.monotonic()
        while len(seen) < 2:
            assert chat(proxy).status == 200
            assert time.monotonic() < began + 10
        assert time.monotonic() - began >= 1.0


def test_when_all_keys_rest_the_client_hears_until_when(tmp_path: Path) -> None:
    env = keys(2)
    for status, told in ((429, 429), (401, 503)):
        answers = {secret: says(status, "retry-after: 50") for secret in env.values()}
        with Literal(by_key(answers)) as backend, Proxy(tmp_path, config(backend.url, list(env)), env=env) as proxy:
            first = chat(proxy)
            assert (first.status, first["retry-after"]) == (status, "50")  # as the backend wrote it
            assert first.json()["error"]["message"] == f"words of the backend {status}"
            second = chat(proxy)
            assert (second.status, second["retry-after"]) == (told, "50")
            assert "all keys of target 'a' rest; the first is back in 50 s" in second.json()["error"]["message"]
            assert len(backend.asked) == 2


def test_a_403_is_no_matter_of_the_key(tmp_path: Path) -> None:
    env = keys(3)
    with (
        Literal(by_key({secret: says(403) for secret in env.values()})) as backend,
        Proxy(tmp_path, config(backend.url, list(env)), env=env) as proxy,
    ):
        assert (chat(proxy).status, len(backend.asked)) == (403, 1)


def test_keys_are_taken_out_of_errors_that_quote_them(tmp_path: Path) -> None:
    def quotes(peer: Peer, asked: Asked) -> None:
        body = f'{{"error": {{"message": "wrong key {key_of(asked)}"}}}}'.encode()
        peer.send(b"HTTP/1.1 400 Bad\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    env = keys(1)
    with (
        Literal(by_key({"upstream-secret-0": quotes})) as backend,
        Proxy(tmp_path, config(backend.url, list(env)), env=env) as proxy,
    ):
        assert chat(proxy).json()["error"]["message"] == "wrong key ***"


# --- keys that a program prints

PROGRAM = """
import pathlib, sys, time
runs = pathlib.Path("runs")
with runs.open("a") as file:
    file.write("x")
number = len(runs.read_text())
behaviour = pathlib.Path("behaviour").read_text()
if behaviour == "fails":
    print("printed-secret-but-failed")
    sys.exit(3)
if behaviour == "slow":
    time.sleep(0.5)
print("" if behaviour == "empty" else f"printed-secret-{number}")
print("second line")
"""


def printing(tmp_path: Path, url: str, behaviour: str = "works", more: str = "", key: str | None = KEY) -> Proxy:
    command = f'["{sys.executable}", -S, program.py]'
    text = f'targets: {{default: a, a: {{url: "{url}", dialect: openai, key_command: {command}{more}}}}}'
    return Proxy(tmp_path, text, files={"program.py": PROGRAM, "behaviour": behaviour})


def runs(proxy: Proxy) -> int:
    file = proxy.folder / "runs"
    return len(file.read_text()) if file.exists() else 0


def test_a_printed_key_is_kept(tmp_path: Path) -> None:
    with Literal(by_key({})) as backend, printing(tmp_path, backend.url, "slow") as proxy:
        together = [threading.Thread(target=chat, args=(proxy,)) for _ in range(4)]
        for each in together:
            each.start()
        for each in together:
            each.join()
        assert {key_of(asked) for asked in backend.asked} == {"printed-secret-1"}
        assert (len(backend.asked), runs(proxy)) == (4, 1)
    assert "printed-secret" not in proxy.log


def test_a_printed_key_is_renewed_after_its_time(tmp_path: Path) -> None:
    with Literal(by_key({})) as backend, printing(tmp_path, backend.url, more=", key_ttl_s: 0.001") as proxy:
        chat(proxy)
        chat(proxy)
        assert [key_of(asked) for asked in backend.asked] == ["printed-secret-1", "printed-secret-2"]


def test_a_refused_printed_key_is_not_renewed_while_it_is_new(tmp_path: Path) -> None:
    refused = {f"printed-secret-{number}": says(401) for number in range(9)}
    with Literal(by_key(refused)) as backend, printing(tmp_path, backend.url) as proxy:
        assert [chat(proxy).status for _ in range(2)] == [401, 401]
        assert (len(backend.asked), runs(proxy)) == (2, 1)
    assert "printed-secret" not in proxy.log


def test_a_refused_printed_key_is_renewed_when_it_is_older(tmp_path: Path) -> None:
    now = [100.0]
    count = f"import pathlib; p = pathlib.Path({str(tmp_path / 'n')!r}); p.open('a').write('x'); print(p.stat().st_size)"
    target = Target("a", "http://h", key_command=(sys.executable, "-S", "-c", count), key_ttl_s=60)
    printed, waits = Printed(target, set(), lambda: now[0]), Waiting(None)
    assert printed.key(waits) == "1"
    assert not printed.is_renewable("1")
    assert printed.key(waits, refused="1") == "1"
    now[0] += FAULT_S
    assert printed.is_renewable("1")
    assert printed.key(waits, refused="1") == "2"
    assert printed.is_renewable("1")  # another call has renewed it
    assert printed.key(waits, refused="1") == "2"
    now[0] += 60
    assert printed.key(waits) == "3"
    assert target.secrets == {"1", "2", "3"}


def test_a_refused_printed_key_is_replaced_within_the_call(tmp_path: Path) -> None:
    renewed = threading.Event()

    def first(peer: Peer, asked: Asked) -> None:
        says(401)(peer, asked) if renewed.is_set() else serve(peer, asked)

    with Literal(by_key({"printed-secret-1": first})) as backend, printing(tmp_path, backend.url) as proxy:
        assert chat(proxy).status == 200
        renewed.set()
        until = time.monotonic() + 15
        while chat(proxy).status == 401:  # as long as it is new
            assert time.monotonic() < until
        assert (key_of(backend.asked[-2]), key_of(backend.asked[-1])) == ("printed-secret-1", "printed-secret-2")
        assert runs(proxy) == 2


def test_the_program_sees_no_key_of_ours(tmp_path: Path) -> None:
    command = "import os; print(sorted(name for name in os.environ if name in ('MOOLTIPROXY_KEY', 'OTHER')))"
    target = Target("a", "http://h", key_command=(sys.executable, "-S", "-c", command))
    os.environ["OTHER"] = "x"
    try:
        assert Printed(target, {"MOOLTIPROXY_KEY"}).key(Waiting(None)) == "['OTHER']"
    finally:
        del os.environ["OTHER"]


@pytest.mark.parametrize(
    ("behaviour", "reason"), [("fails", "it ended with status 3"), ("empty", "it printed no key on its first line")]
)
def test_a_program_that_fails_is_told_and_not_run_at_once_again(tmp_path: Path, behaviour: str, reason: str) -> None:
    with Literal(by_key({})) as backend, printing(tmp_path, backend.url, behaviour) as proxy:
        for _ in range(3):
            reply = chat(proxy)
            assert (reply.status, reply["retry-after"]) == (503, "2")
            assert "there is no key for target 'a': its key_command failed" in reply.json()["error"]["message"]
        assert (runs(proxy), backend.asked) == (1, [])
        proxy.wait_for_log(reason)
    assert "printed-secret" not in proxy.log


def test_there_is_one_kind_of_key(load: Load) -> None:
    environ = {**KEYED, "A": "x", "B": "y"}
    found = faults(load, with_target("url: http://h\ndialect: openai\nenvkey: A\nenvkeys: [B]\n"), environ)
    assert found == ["config.yaml:3: targets.a: has several of `envkey`, `envkeys` and `key_command`: keep one"]
    found = faults(load, with_target("url: http://h\ndialect: openai\nenvkeys: [A, C]\n"), environ)
    assert found == ["config.yaml:6: targets.a.envkeys: the environment variable C is not set: export it, or put it into .env"]
    found = faults(load, with_target("url: http://h\ndialect: openai\nauth: none\nkey_command: [x]\n"), environ)
    assert "targets.a.auth: sends no key of ours" in found[0]
    assert load(with_target("url: http://h\ndialect: openai\nenvkeys: [A, B]\n"), environ).targets["a"].secrets == {"x", "y"}
