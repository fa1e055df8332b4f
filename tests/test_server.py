"""The process: TLS, signals, workers, and what it costs to have it running."""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.backends.proxy import CHECKOUT, KEY, Proxy
from tests.backends.sockets import PATIENCE_S, Backend, Client, Exchange, ask
from tests.backends.tls import Tls

RIGHT = {"authorization": f"Bearer {KEY}"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
DEMO = 'targets: {default: demo, demo: {url: "demo://", dialect: openai}}\n'
RSS_MIB = 35

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and workers of POSIX")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


def eventually(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Asks again until it is so."""
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, "it did not become so"
        select.select([], [], [], 0.01)


def passing(backend: Backend, system: str = "{}") -> str:
    return f'system: {system}\ntargets: {{default: up, up: {{url: "{backend.url}", route: /up}}}}\n'


class Gate:
    """A backend's answer that waits for the test: `begun` when it was asked, on when it is `allowed`."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.allowed = threading.Event()

    def whole(self, exchange: Exchange) -> None:
        self._wait()
        exchange.reply(200, {"all": "of it"})

    def stream(self, exchange: Exchange) -> None:
        exchange.start()
        exchange.event({"n": 1})
        self._wait()
        exchange.event({"n": 2})
        exchange.end()

    def _wait(self) -> None:
        self.begun.set()
        self.allowed.wait(PATIENCE_S)


# --- TLS
@pytest.fixture(scope="module")
def tls() -> Tls:
    return Tls()


@pytest.fixture(scope="module")
def tls_proxy(tls: Tls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("tls")
    with Proxy(folder, "system: {ssl: true, deadlines: {header: 5}}\n" + DEMO, files=tls.files) as proxy:
        yield proxy


class TestTls:
    def test_it_serves_1_2_and_1_3(self, tls_proxy, tls):
        assert tls_proxy.url.startswith("https://")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = tls.trusting()
            context.minimum_version = context.maximum_version = version
            with Client(tls_proxy.url, context, RIGHT) as client:
                assert client.ask("POST", "/v1/chat/completions", CHAT).status == 200
                assert client.ask("GET", "/v1/models").status == 200

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_nothing_older(self, tls_proxy, tls):
        context = tls.trusting()
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError, match=r"(?i)alert|version|reset"):
            Client(tls_proxy.url, context)

    def test_clients_that_say_nothing_or_no_tls_do_not_block_others(self, tls_proxy, tls):
        with Client(tls_proxy.url) as silent, Client(tls_proxy.url) as plain:
            plain.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            with Client(tls_proxy.url, tls.client, RIGHT) as client:
                assert client.ask("GET", "/v1/models").status == 200
            assert plain.reply().status == 0
            assert not select.select([silent.sock], [], [], 0)[0]  # it may still begin

    def test_a_long_stream_and_a_long_upload_go_through(self, tls_proxy, tls):
        long = {**CHAT, "messages": [{"role": "user", "content": "x" * 300_000}], "stream": True}
        with Client(tls_proxy.url, tls.client, RIGHT) as client:
            assert client.ask("POST", "/v1/chat/completions", long).events[-1] == "[DONE]"

    def test_client_ca_asks_clients_for_certificates(self, tls, tmp_path):
        config = "system: {ssl: true, client_ca: certificates/ca.pem}\n" + DEMO
        with Proxy(tmp_path, config, files=tls.files) as proxy:
            assert "client certificates" in proxy.banner
            with Client(proxy.url, tls.known(), RIGHT) as client:
                assert client.ask("GET", "/v1/models").status == 200
            without, another = tls.trusting(), tls.trusting()
            Tls().authority.issue_cert("stranger@example.org").configure_cert(another)
            assert not let_in(proxy, without)
            assert not let_in(proxy, another)

    def test_a_missing_certificate_is_a_fault_of_the_start(self, tmp_path):
        with pytest.raises(RuntimeError, match=r"certificates/cert\.pem"), Proxy(tmp_path, "system: {ssl: true}\n" + DEMO):
            pass


def let_in(proxy: Proxy, context: ssl.SSLContext) -> bool:
    try:
        with Client(proxy.url, context, RIGHT) as client:
            return client.ask("GET", "/v1/models").status != 0
    except OSError:
        return False


# --- signals
class TestSignals:
    def test_sigterm_lets_calls_and_streams_end_and_exits_0(self, backend, tmp_path):
        whole, stream = Gate(), Gate()
        backend.on("/whole", whole.whole)
        backend.on("/stream", stream.stream)
        with Proxy(tmp_path, passing(backend)) as proxy, Client(proxy.url, headers=RIGHT) as idle:
            assert idle.ask("GET", "/healthz").status == 200
            with Client(proxy.url, headers=RIGHT) as one, Client(proxy.url, headers=RIGHT) as two:
                one.request("POST", "/up/whole", CHAT)
                two.request("POST", "/up/stream", {**CHAT, "stream": True})
                assert whole.begun.wait(PATIENCE_S)
                assert stream.begun.wait(PATIENCE_S)
                proxy.signal(signal.SIGTERM)
                assert idle.ended()
                eventually(lambda: refuses(proxy.url))
                whole.allowed.set()
                stream.allowed.set()
                assert one.reply().json() == {"all": "of it"}
                answer = two.reply()
                assert ([event["n"] for event in answer.events], answer.whole) == ([1, 2], True)
                assert one.ended()
            assert proxy.process.wait(PATIENCE_S) == 0

    def test_sigint_ends_it_too(self, tmp_path):
        with Proxy(tmp_path, DEMO) as proxy:
            proxy.signal(signal.SIGINT)
            assert proxy.process.wait(PATIENCE_S) == 0
        assert "Traceback" not in proxy.log

    def test_sighup_takes_a_new_configuration_and_calls_in_flight_keep_theirs(self, backend, tmp_path):
        gate = Gate()
        backend.on("/stream", gate.stream)
        with Backend() as other, Proxy(tmp_path, passing(backend)) as proxy, Client(proxy.url, headers=RIGHT) as client:
            client.request("POST", "/up/stream", {**CHAT, "stream": True})
            assert gate.begun.wait(PATIENCE_S)
            (tmp_path / "config.yaml").write_text(passing(other))
            proxy.signal(signal.SIGHUP)
            proxy.wait_for_log("reloaded")
            assert ask(proxy.url, "GET", "/up/x", headers=RIGHT).status == 200
            assert [asked.path for asked in other.asked] == ["/x"]
            gate.allowed.set()
            assert [event["n"] for event in client.reply().events] == [1, 2]
            assert client.ask("GET", "/up/y").status == 200  # the connection of before goes to the new one as well
            assert [asked.path for asked in other.asked] == ["/x", "/y"]

    @linux
    def test_reloads_leave_no_thread_and_no_connection_behind(self, backend, tmp_path):
        backend.on("/v1/chat/completions", lambda exchange: exchange.reply(200, ANSWER))
        config = f'targets: {{default: up, up: {{url: "{backend.url}", dialect: openai}}}}\n'
        with Proxy(tmp_path, config) as proxy:
            for number in range(1, 4):
                asked = {**CHAT, "max_tokens": 9, "metadata": {"user_id": "u"}}
                assert ask(proxy.url, "POST", "/v1/messages", asked, RIGHT).status == 200
                proxy.signal(signal.SIGHUP)
                proxy.wait_for_log("reloaded", number)
            eventually(lambda: len(os.listdir(f"/proc/{proxy.process.pid}/task")) == 1)
            eventually(lambda: backend.connections == 0)

    def test_sighup_takes_new_functions(self, backend, tmp_path):
        config = f'targets: {{default: up, up: {{url: "{backend.url}", mapping: {{/ask: {{out: said}}}}}}}}\n'
        text = "def said(ip, cfg=None):\n    return dict(name=__name__, version={version})\n"
        with Proxy(tmp_path, config, files={"mappers.py": text.format(version=1)}) as proxy:
            first = ask(proxy.url, "GET", "/ask", headers=RIGHT).json()
            (tmp_path / "mappers.py").write_text(text.format(version=22))
            proxy.signal(signal.SIGHUP)
            proxy.wait_for_log("reloaded")
            second = ask(proxy.url, "GET", "/ask", headers=RIGHT).json()
        assert (first["version"], second["version"]) == (1, 22)
        assert first["name"] != second["name"]

    @pytest.mark.parametrize(
        ("name", "text", "where"),
        [
            ("config.yaml", DEMO + "sistem: {}\n", "config.yaml:2"),
            ("config.yaml", "targets: [", "config.yaml:"),
            ("mappers.py", "import os\nraise OSError('no')\n", "mappers.py:2"),
            ("mappers.py", "def x(:\n", "mappers.py:1"),
        ],
    )
    def test_sighup_keeps_the_old_generation_on_a_fault_and_says_where(self, tmp_path, name, text, where):
        with Proxy(tmp_path, DEMO) as proxy:
            (tmp_path / name).write_text(text)
            proxy.signal(signal.SIGHUP)
            proxy.wait_for_log(where)
            assert ask(proxy.url, "GET", "/v1/models", headers=RIGHT).status == 200
        assert "not reloaded" in proxy.log

    def test_bans_outlive_a_reload(self, tmp_path):
        with Proxy(tmp_path, "cerbere: {max_tries: 1}\n" + DEMO) as proxy:
            assert ask(proxy.url, "GET", "/v1/models", headers={"authorization": "Bearer x"}).status == 401
            proxy.signal(signal.SIGHUP)
            proxy.wait_for_log("reloaded")
            assert ask(proxy.url, "GET", "/v1/models", headers=RIGHT).status == 403


def refuses(url: str) -> bool:
    try:
        Client(url).sock.close()
    except ConnectionRefusedError:
        return True
    return False


def test_connections_are_bounded_and_the_next_one_waits(tmp_path):
    with Proxy(tmp_path, "system: {limits: {connections: 3}}\n" + DEMO) as proxy:
        kept = [Client(proxy.url, headers=RIGHT) for _ in range(3)]
        for client in kept:
            assert client.ask("GET", "/v1/models").status == 200
        with Client(proxy.url, headers=RIGHT) as late:
            late.request("GET", "/healthz")
            assert not select.select([late.sock], [], [], 0.2)[0]
            kept.pop().sock.close()
            assert late.reply().status == 200
        for client in kept:
            client.sock.close()


# --- workers
def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def serves(proxy: Proxy) -> bool:
    try:
        return ask(proxy.url, "GET", "/v1/models", headers=RIGHT).status == 200
    except ConnectionError:
        return False


@linux
class TestWorkers:
    def test_both_serve_a_killed_one_is_replaced_and_sigterm_ends_all(self, tmp_path):
        with Proxy(tmp_path, "system: {workers: 2}\n" + DEMO) as proxy:
            eventually(lambda: len(children(proxy.process.pid)) == 2)
            one, two = children(proxy.process.pid)
            for stopped in (one, two):  # what a stopped one does not do, the other does
                os.kill(stopped, signal.SIGSTOP)
                try:
                    assert [serves(proxy) for _ in range(10)] == [True] * 10
                finally:
                    os.kill(stopped, signal.SIGCONT)
            os.kill(one, signal.SIGKILL)
            eventually(lambda: len(children(proxy.process.pid)) == 2 and one not in children(proxy.process.pid))
            third = next(pid for pid in children(proxy.process.pid) if pid != two)
            os.kill(two, signal.SIGSTOP)
            try:
                assert serves(proxy)
            finally:
                os.kill(two, signal.SIGCONT)
            assert proxy.stop() == 0
            assert not any(alive(pid) for pid in (two, third))

    def test_sighup_reloads_all_of_them(self, backend, tmp_path):
        with Backend() as other, Proxy(tmp_path, passing(backend, "{workers: 2}")) as proxy:
            eventually(lambda: ask(proxy.url, "GET", "/up/old", headers=RIGHT).status == 200)
            eventually(lambda: len(children(proxy.process.pid)) == 2)
            eventually(lambda: all(handles(pid, signal.SIGHUP) for pid in children(proxy.process.pid)))
            (tmp_path / "config.yaml").write_text(passing(other, "{workers: 2}"))
            proxy.signal(signal.SIGHUP)
            proxy.wait_for_log("reloaded", times=2)
            before = len(backend.asked)
            for stopped in children(proxy.process.pid):
                os.kill(stopped, signal.SIGSTOP)
                try:
                    assert ask(proxy.url, "GET", "/up/new", headers=RIGHT).status == 200
                finally:
                    os.kill(stopped, signal.SIGCONT)
            assert len(backend.asked) == before

    def test_one_that_replaces_another_after_a_reload_has_the_new_configuration(self, backend, tmp_path):
        with Backend() as other, Proxy(tmp_path, passing(backend, "{workers: 2}")) as proxy:
            eventually(lambda: len(children(proxy.process.pid)) == 2)
            eventually(lambda: all(handles(pid, signal.SIGHUP) for pid in children(proxy.process.pid)))
            (tmp_path / "config.yaml").write_text(passing(other, "{workers: 2}"))
            proxy.signal(signal.SIGHUP)
            proxy.wait_for_log("reloaded", times=2)
            one, two = children(proxy.process.pid)
            os.kill(one, signal.SIGKILL)
            eventually(lambda: len(children(proxy.process.pid)) == 2 and one not in children(proxy.process.pid))
            os.kill(two, signal.SIGSTOP)
            try:
                assert ask(proxy.url, "GET", "/up/new", headers=RIGHT).status == 200
            finally:
                os.kill(two, signal.SIGCONT)
            assert [asked.path for asked in other.asked] == ["/new"]

    def test_a_killed_supervisor_leaves_no_orphan(self, tmp_path):
        with Proxy(tmp_path, "system: {workers: 2}\n" + DEMO) as proxy:
            eventually(lambda: len(children(proxy.process.pid)) == 2)
            pids = children(proxy.process.pid)
            eventually(lambda: serves(proxy))
            proxy.process.kill()
            proxy.process.wait(PATIENCE_S)
            eventually(lambda: not any(alive(pid) for pid in pids))

    def test_a_call_in_flight_at_sigterm_ends_whole_and_nobody_new_is_kept_waiting(self, backend, tmp_path):
        gate = Gate()
        backend.on("/whole", gate.whole)
        with Proxy(tmp_path, passing(backend, "{workers: 2}")) as proxy, Client(proxy.url, headers=RIGHT) as client:
            client.request("POST", "/up/whole", CHAT)
            assert gate.begun.wait(PATIENCE_S)
            proxy.signal(signal.SIGTERM)
            try:
                eventually(lambda: refuses(proxy.url), 1)
            finally:
                gate.allowed.set()
                assert client.reply().status == 200
            assert proxy.process.wait(PATIENCE_S) == 0


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


# --- what it costs
DUMP = """

def outModules(ip, cfg={}):
    import sys
    return {"modules": sorted(sys.modules)}
"""
ALLOWED = {"openai", "tgi"}  # the hub, and what mappers.py shows
UNUSED = {"adapters.demo", "adapters.outbound", "adapters.sample", "workers", "show"}


class TestSmallByDefault:
    def test_a_plain_configuration_imports_no_room_that_it_does_not_use(self, backend, tmp_path):
        config = f"""
targets:
  default: up
  up: {{url: "{backend.url}", mapping: {{/chat/completions: {{path: /x, in: identity, out: outModules}}, /models: }}}}
"""
        files = {"mappers.py": (CHECKOUT / "mappers.py").read_text() + DUMP}
        with Proxy(tmp_path, config, files=files) as proxy, Client(proxy.url, headers=RIGHT) as client:
            assert client.ask("GET", "/models").status == 200
            assert client.ask("POST", "/v1/chat/completions", CHAT).status == 200
            modules = set(client.ask("POST", "/v1/chat/completions", CHAT).json()["modules"])
        ours = {name.removeprefix("proxy.") for name in modules if name.startswith("proxy.")}
        dialects = {name.removeprefix("dialects.") for name in ours if name.startswith("dialects.")}
        assert {name for name in dialects if not name.startswith("_")} <= ALLOWED
        assert not ours & UNUSED
        assert not {name for name in ours if name.startswith(("records", "console", "state"))}
        assert not {"sqlite3", "asyncio", "psycopg", "redis", "boto3", "botocore"} & modules

    @linux
    def test_it_starts_fast_and_idles_small(self, backend, tmp_path, capsys):
        config = f'targets: {{default: up, up: {{url: "{backend.url}", mapping: {{/v1/chat/completions: }}}}}}\n'
        began = time.monotonic()
        with Proxy(tmp_path, config) as proxy:
            start_s = time.monotonic() - began
            assert ask(proxy.url, "POST", "/v1/chat/completions", CHAT, RIGHT).status == 200

            def held(what: str) -> int:
                return int(Path(f"/proc/{proxy.process.pid}/status").read_text().split(f"{what}:")[1].split()[0])

            eventually(lambda: held("Threads") <= 2)  # the accept loop, and at most a connection that is about to end
            rss_mib = held("VmRSS") / 1024
        with capsys.disabled():
            print(f"\ncold start {start_s:.2f} s, idle {rss_mib:.1f} MiB")
        assert rss_mib <= RSS_MIB


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(RuntimeError, match=rf"cannot listen on 127\.0\.0\.1:{port}"),
            Proxy(tmp_path, DEMO, "--port", str(port)),
        ):
            pass
