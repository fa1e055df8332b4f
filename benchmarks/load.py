"""The benchmarks' clients: one thread, one epoll, raw sockets. Reads a job from standard input, writes what it saw as JSON.

`requests`: so many clients, each with one connection that is kept, each asking again as soon as it is answered; with `per_s`
not sooner than so many requests a second allow.
`streams`: so many streams at once. Every answer is held against what the upstream must have sent to this very request: see
upstream.py. Whatever is not right is counted, by what is wrong with it, and is no answer.

A job: {"kind": "requests", "port", "path", "headers", "body" (has {tag} in it), "api", "clients", "seconds", "warm_s",
"per_s"}, or {"kind": "streams", …, "streams", "tokens"}; both may have `patience_s`,
after which what has not come does not come.
"""

from __future__ import annotations

import gc
import json
import resource
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

PIECE = 64 * 1024
PATIENCE_S = 20.0
STREAM_END = b"\r\n0\r\n\r\n"
ENOUGH = 500  # faults after which there is nothing left to measure


class Wrong(Exception):
    """An answer that is not right; its text says what is wrong."""


TEXT: dict[str, Callable[[Any], str]] = {  # an answer's text, by the API of whoever asked
    "openai": lambda answer: str(answer["choices"][0]["message"]["content"]),
    "anthropic": lambda answer: str(answer["content"][0]["text"]),
}


def percentile(values: list[float], percent: float) -> float | None:
    """Of sorted values; None when there are none."""
    return values[min(len(values) - 1, int(len(values) * percent / 100))] if values else None


def prepared(job: dict[str, Any], number: int) -> tuple[bytes, bytes]:
    """The bytes of a client's request, and its tag."""
    tag = f"{number:08d}"
    body = job["body"].replace("{tag}", tag).encode()
    fields = {"host": f"127.0.0.1:{job['port']}", "content-type": "application/json", **job["headers"]}
    lines = [f"{name}: {value}" for name, value in {**fields, "content-length": len(body)}.items()]
    lines.insert(0, f"POST {job['path']} HTTP/1.1")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body, tag.encode()


# --- requests


class Client:
    """One connection, and its one request at a time."""

    def __init__(self, job: dict[str, Any], number: int) -> None:
        self._port: int = job["port"]
        self._api: str = job["api"]
        self._request, self.tag = prepared(job, number)
        self._mark = b"right:" + self.tag
        self._proven = False  # whether an answer was decoded, and was right
        self._sock: socket.socket | None = None
        self._buffer = b""
        self.waits = False
        self.asked_at = 0.0

    def connect(self) -> int:
        """A new connection; its file descriptor."""
        self.close()
        self._sock = socket.create_connection(("127.0.0.1", self._port), PATIENCE_S)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setblocking(False)
        return self._sock.fileno()

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock, self._buffer, self.waits = None, b"", False

    def ask(self) -> None:
        """Sends the request. Raises OSError."""
        assert self._sock is not None
        self.waits = True
        self.asked_at = time.perf_counter()
        if self._sock.send(self._request) < len(self._request):
            raise OSError("the request was not taken whole")

    def answered(self) -> bool:
        """Reads on; whether the answer has come whole. Raises Wrong, OSError."""
        assert self._sock is not None
        data = self._sock.recv(PIECE)
        if not data:
            raise Wrong("the connection was cut off")
        self._buffer = data = self._buffer + data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return False
        head = data[:end].lower()
        at = head.find(b"\r\ncontent-length:") + 17
        if at < 17:
            raise Wrong("an answer without content-length")
        length = int(head[at : head.index(b"\r", at)])
        if len(data) < end + length:
            return False
        self._buffer, self.waits = b"", False
        if not head.startswith(b"http/1.1 200 "):
            raise Wrong(f"status {head[9:12].decode('latin-1')}")
        if len(data) > end + length:
            raise Wrong("something behind the answer")
        if data.find(self._mark, end) < 0 or not (self._proven or self._prove(data[end:])):
            raise Wrong("the content is not what the backend sent")
        return True

    def _prove(self, body: bytes) -> bool:
        """Whether the text stands where the client's API has it: looked at once a client."""
        try:
            self._proven = TEXT[self._api](json.loads(body)).startswith(self._mark.decode())
        except (ValueError, LookupError, TypeError):
            return False
        return self._proven


class ClosedLoop:
    """All clients of a `requests` job."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._epoll = select.epoll()
        self._patience_s: float = job.get("patience_s", PATIENCE_S)
        self._clients: dict[int, Client] = {}
        self.answers: list[tuple[float, float]] = []  # when each had come, and after how long
        self.failures: Counter[str] = Counter()
        self._every_s = 1 / job["per_s"] if job.get("per_s") else 0.0
        self._due = time.perf_counter()  # when the next request may leave
        self._idle: deque[Client] = deque()  # who waits for that
        for number in range(job["clients"]):
            self._open(Client(job, number))

    def _open(self, client: Client) -> None:
        fd = client.connect()
        self._clients[fd] = client
        self._epoll.register(fd, select.EPOLLIN)

    def run(self, until: float) -> None:
        """Asks until then (perf_counter), and waits for what is still to come."""
        self._idle.extend(self._clients.values())
        while time.perf_counter() < until and self.failures.total() < ENOUGH:
            self._ask_who_may()
            self._turn(until)
        patience = time.perf_counter() + self._patience_s
        while self.failures.total() < ENOUGH and (waiting := sum(client.waits for client in self._clients.values())):
            if time.perf_counter() > patience:
                self.failures["no answer in time"] += waiting
                break
            self._turn(0.0)
        for client in self._clients.values():
            client.close()

    def _turn(self, until: float) -> None:
        """What has come; whoever is answered before `until` asks again."""
        wait_s = min(0.1, self._due - time.perf_counter()) if self._idle else 0.1
        for fd, _ in self._epoll.poll(max(0.0, wait_s), 512):
            client = self._clients[fd]
            try:
                if not client.answered():
                    continue
            except BlockingIOError:
                continue
            except (Wrong, OSError, ValueError) as fault:
                if not self._failed(fd, client, fault):
                    continue
            else:
                now = time.perf_counter()
                self.answers.append((now, now - client.asked_at))
            if time.perf_counter() < until and not self._every_s:
                self._ask(client)
            elif self._every_s:
                self._idle.append(client)

    def _ask_who_may(self) -> None:
        """At the start, and with a rate: one for each moment that has come."""
        while self._idle and (not self._every_s or self._due <= time.perf_counter()):
            self._ask(self._idle.popleft())
            self._due += self._every_s

    def _ask(self, client: Client) -> None:
        try:
            client.ask()
        except OSError as fault:
            client.waits = False
            self.failures[_named(fault)] += 1

    def _failed(self, fd: int, client: Client, fault: Exception) -> bool:
        """Counts it, and gives the client a new connection; False when that cannot be had."""
        self.failures[_named(fault)] += 1
        del self._clients[fd]
        self._epoll.unregister(fd)
        try:
            self._open(client)
        except OSError as again:
            self.failures[_named(again)] += 1
            return False
        return True


def _named(fault: Exception) -> str:
    return fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)


def requests(job: dict[str, Any]) -> dict[str, Any]:
    """Right answers a second, and how long they took, of those that came after the warm-up."""
    loop = ClosedLoop(job)
    begin = time.perf_counter() + job.get("warm_s", 0.0)
    end = begin + job["seconds"]
    loop.run(end)
    counted = sorted(took for when, took in loop.answers if begin <= when <= end)
    return {
        "per_s": len(counted) / job["seconds"],
        "right": len(loop.answers),  # warm-up and end included: what the CPU time is to be divided by
        "p50_ms": _ms(percentile(counted, 50)),
        "p99_ms": _ms(percentile(counted, 99)),
        "failures": dict(loop.failures),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


# --- streams


class Reading:
    """Takes a stream's bytes as they came, and gives its text piece by piece. `feed` raises Wrong."""

    def __init__(self, api: str) -> None:
        self._data = b""
        self._body = b""
        self._in_body = False
        self._finds = _find_openai if api == "openai" else _find_anthropic
        self.ended = False  # the chunked coding's end came
        self.marks: set[str] = set()  # what the API says at an answer's end

    def feed(self, data: bytes) -> str:
        """The text in the next bytes."""
        self._data += data
        if not self._in_body:
            head, found, rest = self._data.partition(b"\r\n\r\n")
            if not found:
                return ""
            _check_head(head)
            self._in_body, self._data = True, rest
        self._dechunk()
        *events, self._body = self._body.split(b"\n\n")
        return "".join(self._event(event) for event in events)

    def _dechunk(self) -> None:
        while not self.ended:
            size, found, rest = self._data.partition(b"\r\n")
            if not found:
                return
            try:
                count = int(size, 16)
            except ValueError:
                raise Wrong("the chunked coding is broken") from None
            if len(rest) < count + 2:
                return
            self._body += rest[:count]
            self._data = rest[count + 2 :]
            self.ended = not count

    def _event(self, event: bytes) -> str:
        data = b"".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if not data:
            return ""
        if data == b"[DONE]":
            self.marks.add("[DONE]")
            return ""
        try:
            return self._finds(json.loads(data), self.marks)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise Wrong("an event that the API does not have") from None


def _check_head(head: bytes) -> None:
    if not head.startswith(b"HTTP/1.1 200 "):
        raise Wrong(f"status {head[9:12].decode('latin-1')}")
    if b"\r\ntransfer-encoding: chunked" not in head.lower():
        raise Wrong("a stream that is not chunked")


def _find_openai(event: Any, marks: set[str]) -> str:
    """The text in a chunk; what ends an answer is added to `marks`."""
    text = ""
    for choice in event["choices"]:
        text += choice["delta"].get("content") or ""
        if choice.get("finish_reason"):
            marks.add("finish")
    return text


def _find_anthropic(event: Any, marks: set[str]) -> str:
    if event["type"] in ("message_delta", "message_stop"):
        marks.add(event["type"])
    return str(event["delta"]["text"]) if event["type"] == "content_block_delta" else ""


MARKS = {"openai": {"finish", "[DONE]"}, "anthropic": {"message_delta", "message_stop"}}


class Stream:
    """One stream: a connection, and what came on it when (monotonic, ns). It is looked into when all is over."""

    def __init__(self, job: dict[str, Any], number: int) -> None:
        self._request, self.tag = prepared(job, number)
        self._api: str = job["api"]
        self.pieces: list[tuple[int, bytes]] = []
        self.began = time.monotonic_ns()
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect_ex(("127.0.0.1", job["port"]))
        self.asked = self.over = False

    def move(self) -> None:
        """Sends the request when the connection stands, then reads."""
        try:
            if not self.asked:
                self.sock.send(self._request)
                self.asked = True
                return
            data = self.sock.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.pieces.append((time.monotonic_ns(), data))
        refused = len(self.pieces) == 1 and not data.startswith(b"HTTP/1.1 200 ")
        last = data if len(data) >= len(STREAM_END) else self._tail()
        self.over = not data or refused or last.endswith(STREAM_END)

    def _tail(self) -> bytes:
        return b"".join(data for _, data in self.pieces[-8:])

    def judged(self, tokens: int) -> list[tuple[int, int]]:
        """When each token came, and its clock. Raises Wrong when anything of the stream is not as it was sent."""
        reading, text = Reading(self._api), ""
        found: list[tuple[int, int]] = []
        if not self.pieces:
            raise Wrong("no answer")
        for when, data in self.pieces:
            text += reading.feed(data)
            *whole, text = text.split(";")
            for token in whole:
                found.append((when, self._clock(token, len(found))))
        if not reading.ended:
            raise Wrong("the stream was cut off" if self.over else "the stream did not end in time")
        if len(found) != tokens or text:
            raise Wrong("tokens are missing")
        if reading.marks != MARKS[self._api]:
            raise Wrong("the stream has no end mark")
        return found

    def _clock(self, token: str, number: int) -> int:
        tag, _, rest = token.partition(" ")
        told, _, clock = rest.partition(" ")
        if tag != self.tag.decode():
            raise Wrong("a token of another stream")
        if told != str(number):
            raise Wrong("a token is missing, doubled or out of order")
        return int(clock)


def _gather(job: dict[str, Any]) -> tuple[list[Stream], float]:
    """Opens all streams and reads them to their ends; the streams, and the seconds that it took."""
    epoll, begun = select.epoll(), time.monotonic()
    streams: dict[int, Stream] = {}
    for number in range(job["streams"]):
        stream = Stream(job, number)
        streams[stream.sock.fileno()] = stream
        epoll.register(stream.sock, select.EPOLLOUT)
    live, until = len(streams), begun + job.get("patience_s", PATIENCE_S)
    while live and time.monotonic() < until:
        for fd, _ in epoll.poll(0.1, 1024):
            stream = streams[fd]
            asked = stream.asked
            stream.move()
            if stream.over:
                epoll.unregister(fd)
                live -= 1
            elif asked != stream.asked:
                epoll.modify(fd, select.EPOLLIN)
    wall_s = time.monotonic() - begun
    for stream in streams.values():
        stream.sock.close()
    return list(streams.values()), wall_s


def streams(job: dict[str, Any]) -> dict[str, Any]:
    """How many streams came right, in what time, and how late their tokens were."""
    all_streams, wall_s = _gather(job)
    failures: Counter[str] = Counter()
    delays: list[float] = []
    firsts: list[float] = []
    for stream in all_streams:
        try:
            tokens = stream.judged(job["tokens"])
        except (Wrong, ValueError) as fault:
            failures[str(fault)] += 1
            continue
        firsts.append((tokens[0][0] - stream.began) / 1e6)
        delays += [(when - clock) / 1e6 for when, clock in tokens]
    firsts.sort()
    delays.sort()
    return {
        "asked": len(all_streams),
        "right": len(firsts),
        "tokens": len(delays),
        "wall_s": wall_s,
        "first_p50_ms": percentile(firsts, 50),
        "first_p99_ms": percentile(firsts, 99),
        "delay_p50_ms": percentile(delays, 50),
        "delay_p99_ms": percentile(delays, 99),
        "failures": dict(failures),
    }


def main() -> None:
    """See the module."""
    job = json.load(sys.stdin)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()
    begun = time.perf_counter()
    try:
        seen = {"requests": requests, "streams": streams}[job["kind"]](job)
    except OSError as fault:  # nobody listens, or nobody listens any more
        seen = {"right": 0, "failures": {_named(fault): 1}}
    used = resource.getrusage(resource.RUSAGE_SELF)
    seen["busy"] = (used.ru_utime + used.ru_stime) / (time.perf_counter() - begun)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
