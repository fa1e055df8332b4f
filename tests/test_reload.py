"""A reload: by command, by signal, by itself; with faults; under load; a thousand times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Backend, Client, Exchange, ask

RIGHT = {"authorization": f"Bearer {KEY}"}
DEMO = 'targets: {{default: {name}, {name}: {{url: "demo://", dialect: openai}}}}\n'
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts what /proc tells")


def targets_of(proxy: Proxy) -> str:
    """The error that names what a made-up target is not: which configuration is at work."""
    return str(ask(proxy.url, "GET", "/v1/models", headers={**RIGHT, "target": "first"}).status)


def reload(proxy: Proxy, *arguments: str) -> subprocess.CompletedProcess[str]:
    port = proxy.url.rpartition(":")[2]
    command = [sys.executable, "-m", "main", "reload", "--port", port, *arguments]
    return subprocess.run(command, cwd=proxy.folder, env=proxy.env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as running:
        yield running


class TestCommand:
    def test_the_running_proxy_takes_the_new_configuration(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, DEMO.format(name="first")) as proxy:
            assert targets_of(proxy) == "200"
            (tmp_path / "config.yaml").write_text(DEMO.format(name="second"))
            done = reload(proxy)
            assert (done.returncode, done.stdout) == (0, f"reloaded: {proxy.url}\n"), done.stderr
            assert targets_of(proxy) == "404"

    def test_all_workers_follow(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, "system: {workers: 3}\n" + DEMO.format(name="first")) as proxy:
            (tmp_path / "config.yaml").write_text("system: {workers: 3}\n" + DEMO.format(name="second"))
            assert reload(proxy).returncode == 0
            proxy.wait_for_log("reloaded", times=4)  # the one that was asked, and once more with all of them
            assert {targets_of(proxy) for _ in range(24)} == {"404"}

    @pytest.mark.parametrize(
        ("file", "text", "where"),
        [
            ("config.yaml", DEMO.format(name="first") + "sistem: {}\n", "config.yaml:2"),
            ("mappers.py", "def x(:\n", "mappers.py:1:7"),
        ],
    )
    def test_a_fault_is_told_with_its_line_and_the_old_one_goes_on(
        self, tmp_path: Path, file: str, text: str, where: str
    ) -> None:
        with Proxy(tmp_path, DEMO.format(name="first")) as proxy:
            (tmp_path / file).write_text(text)
            done = reload(proxy)
            assert done.returncode == 1
            assert done.stderr.startswith(f"not reloaded, the old configuration goes on\n{where}")
            assert targets_of(proxy) == "200"

    def test_a_fault_that_only_the_proxy_sees_is_told_too(self, tmp_path: Path) -> None:
        config = 'targets: {default: a, a: {url: "demo://", dialect: openai, envkey: NAME}}\n'
        with Proxy(tmp_path, DEMO.format(name="first")) as proxy:  # it has no such variable, whoever asks has
            (tmp_path / "config.yaml").write_text(config)
            proxy.env["NAME"] = "secret-of-the-caller"
            done = reload(proxy)
            assert (done.returncode, "NAME" in done.stderr) == (1, True), done.stderr
            assert targets_of(proxy) == "200"

    def test_without_a_proxy_it_says_so(self, tmp_path: Path) -> None:
        proxy = Proxy(tmp_path, DEMO.format(name="first"))
        proxy.url = "http://127.0.0.1:1"
        done = reload(proxy)
        assert done.returncode == 1
        assert "no proxy answers at http://127.0.0.1:1" in done.stderr


class TestPage:
    def test_it_needs_the_master_key_and_post(self, tmp_path: Path) -> None:
        config = "system: {open_to: [127.0.0.1]}\n" + DEMO.format(name="first")
        with Proxy(tmp_path, config) as proxy:
            page = "/mooltiproxy/reload"
            assert ask(proxy.url, "POST", page).status == 403
            assert ask(proxy.url, "POST", page, headers={"authorization": "Bearer wrong"}).status in (401, 403)
            assert ask(proxy.url, "GET", page, headers=RIGHT).status == 405
            assert ask(proxy.url, "POST", page, headers=RIGHT).json() == {"reloaded": True}

    def test_whoever_started_the_only_worker_hears_nothing_of_it(self, tmp_path: Path) -> None:
        """Also once the file asks for more workers, which takes a restart: its parent is no supervisor then."""
        heard: list[int] = []
        before = signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
        try:
            with Proxy(tmp_path, DEMO.format(name="first")) as proxy:
                (tmp_path / "config.yaml").write_text("system: {workers: 2}\n" + DEMO.format(name="first"))
                for _ in range(2):
                    assert ask(proxy.url, "POST", "/mooltiproxy/reload", headers=RIGHT).json() == {"reloaded": True}
        finally:
            signal.signal(signal.SIGHUP, before)
        assert not heard

    def test_other_paths_below_it_are_not_there(self, tmp_path: Path) -> None:
        with Proxy(tmp_path, DEMO.format(name="first")) as proxy:
            assert ask(proxy.url, "GET", "/mooltiproxy/x").status == 401
            assert ask(proxy.url, "GET", "/mooltiproxy/x", headers=RIGHT).status == 404


def test_a_watched_file_that_changes_is_reason_enough(tmp_path: Path) -> None:
    watch = "system: {watch: true}\n"
    with Proxy(tmp_path, watch + DEMO.format(name="first")) as proxy:
        (tmp_path / "config.yaml").write_text("sistem: {}\n")
        proxy.wait_for_log("not reloaded")
        assert targets_of(proxy) == "200"
        (tmp_path / "config.yaml").write_text(DEMO.format(name="second"))
        proxy.wait_for_log("reloaded", times=2)
        assert targets_of(proxy) == "404"


MAPPER = """
def ask(ip, cfg={{}}):
    return {{"text": ip["text"], "length": {length}}}


def tell(ip, cfg={{}}):
    return ip
"""


def test_mappers_that_would_change_a_recorded_call_wait_until_that_is_accepted(tmp_path: Path, backend: Backend) -> None:
    config = f'targets: {{default: up, up: {{url: "{backend.url}", mapping: {{/ask: {{in: ask, out: tell}}}}}}}}\n'
    files = {"mappers.py": MAPPER.format(length=1)}
    with Proxy(tmp_path, config + "records: {cassettes: {folder: kept}}\n", files=files) as proxy:
        assert ask(proxy.url, "POST", "/ask", {"text": "hi"}, RIGHT).status == 200
        assert reload(proxy).returncode == 0  # the cassette is written by now
        assert len(list((tmp_path / "kept").glob("*.json"))) == 1
        (tmp_path / "mappers.py").write_text(MAPPER.format(length=2))
        refused = reload(proxy)
        assert (refused.returncode, "$.length: 1 → 2" in refused.stderr) == (1, True), refused.stderr
        assert ask(proxy.url, "POST", "/ask", {"text": "hi"}, RIGHT).status == 200
        assert json.loads(backend.asked[-1].body)["length"] == 1
        command = [sys.executable, "-m", "main", "replay", "kept", "--accept"]
        subprocess.run(command, cwd=tmp_path, env=proxy.env, capture_output=True, timeout=60, check=True)
        assert reload(proxy).returncode == 0
        assert ask(proxy.url, "POST", "/ask", {"text": "hi"}, RIGHT).status == 200
        assert json.loads(backend.asked[-1].body)["length"] == 2


# --- under load


@LINUX
def test_reloads_under_load_fail_no_call_and_cut_no_stream(backend: Backend, tmp_path: Path) -> None:
    streams, reloads = 60, 25
    begun, allowed = threading.Semaphore(0), threading.Event()

    def stream(exchange: Exchange) -> None:
        exchange.start()
        exchange.event({"n": 1})
        begun.release()
        assert allowed.wait(60)
        exchange.event({"n": 2})
        exchange.end()

    backend.on("/stream", stream)
    backend.on("/v1/whole", lambda exchange: exchange.reply(200, {"ok": True}))
    failed: list[object] = []

    def hold(client: Client) -> None:
        reply = client.reply()
        if [event.get("n") for event in reply.events] != [1, 2]:
            failed.append(reply)

    def ask_on(url: str) -> None:
        with Client(url, headers=RIGHT) as client:
            while not allowed.is_set():
                status = client.ask("GET", "/up/v1/whole").status
                if status != 200:
                    failed.append(status)

    with Proxy(tmp_path, f'targets: {{default: up, up: {{url: "{backend.url}", route: /up}}}}\n') as proxy:
        clients = [Client(proxy.url, headers=RIGHT) for _ in range(streams)]
        for client in clients:
            client.request("POST", "/up/stream", {"stream": True})
        for _ in clients:
            assert begun.acquire(timeout=60)
        threads = [threading.Thread(target=hold, args=(client,)) for client in clients]
        threads += [threading.Thread(target=ask_on, args=(proxy.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(reloads):
            assert ask(proxy.url, "POST", "/mooltiproxy/reload", headers=RIGHT).status == 200
        allowed.set()
        for thread in threads:
            thread.join(60)
        assert not failed
        for client in clients:
            client.sock.close()


@LINUX
def test_many_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    with Proxy(tmp_path, DEMO.format(name="first")) as proxy, Client(proxy.url, headers=RIGHT) as client:
        folder = Path(f"/proc/{proxy.process.pid}")

        def held() -> tuple[int, int]:
            """The least of some looks: an old generation may be on its way out."""
            return min(looked() for _ in range(20) if client.ask("GET", "/healthz").status == 200)

        def looked() -> tuple[int, int]:
            pages = int((folder / "statm").read_text().split()[1])
            return len(os.listdir(folder / "fd")) + len(os.listdir(folder / "task")), pages * os.sysconf("SC_PAGE_SIZE")

        for _ in range(40):  # what fills up once is full now
            assert client.ask("POST", "/mooltiproxy/reload").status == 200
        before = held()
        for _ in range(160):
            assert client.ask("POST", "/mooltiproxy/reload").status == 200
            assert client.ask("GET", "/v1/models").status == 200
        after = held()
        assert after[0] == before[0]
        assert after[1] - before[1] < 160 * 8 * 1024  # a generation that stays is some hundred KiB
        proxy.signal(signal.SIGTERM)
