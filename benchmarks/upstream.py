"""The benchmarks' backend: one thread, one epoll, answers that were built before anybody asks.

    python upstream.py '{"ports": {"fast": {}, "slow": {"latency_ms": 50}, "paced": {"delay_ms": 100}}, "tokens": 50}'

prints the ports that it listens on, as JSON, and serves until its standard input ends: it never outlives who started it.
A port may have `latency_ms` (before an answer), `delay_ms` (between two tokens of a stream) and `certificate` (a PEM file with
its key: TLS). `wrong` and `every` make every so many-th answer wrong, to try whether somebody notices: see WRONG.

A request brings a tag, `tag=` and eight characters somewhere in its body. The answer's text is "right:" and that tag; a
stream's tokens are "tag number clock;", the clock being CLOCK_MONOTONIC in ns when the token was sent.
"""

from __future__ import annotations

import gc
import heapq
import json
import re
import resource
import select
import socket
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TAG = b"TTTTTTTT"  # where a prebuilt answer holds the request's tag
HOLE = "TOKEN"  # where a prebuilt event holds its token
WORDS = " The sky is blue because air scatters short waves of light more than long ones." * 4
LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)")
WRONG = ("text", "status", "cut", "order", "end")  # another tag; a 500; a connection cut off; tokens out of order; no end mark
ERROR = b"HTTP/1.1 500 Wrong\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
KNOWN_HEADS = 1000  # request heads remembered
PIECE = 64 * 1024


@dataclass(frozen=True)
class Api:
    """One API's answers. `streams`: True or False when its path says so, None when the body's `stream` does."""

    whole: tuple[bytes, bytes]  # what stands before and behind the tag
    opening: bytes
    token: tuple[bytes, bytes]  # what stands before and behind a token
    finish: bytes
    end: bytes
    streams: bool | None = None


def _whole(answer: dict[str, Any]) -> tuple[bytes, bytes]:
    body = json.dumps(answer, separators=(",", ":")).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    before, _, behind = (head.encode() + body).partition(TAG)
    return before, behind


def _sse(*events: dict[str, Any]) -> bytes:
    """Events as server-sent ones; one that has a `type` is named after it, as Anthropic does."""
    return b"".join(_named(event) for event in events)


def _named(event: dict[str, Any]) -> bytes:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return (name + f"data: {json.dumps(event, separators=(',', ':'))}\n\n").encode()


def _token(event: dict[str, Any]) -> tuple[bytes, bytes]:
    before, _, behind = _sse(event).partition(HOLE.encode())
    return before, behind


def _openai() -> Api:
    text = f"right:{TAG.decode()}{WORDS}"
    head = {"id": "chatcmpl-bench", "created": 1700000000, "model": "mock"}
    usage = {"prompt_tokens": 40, "completion_tokens": 70, "total_tokens": 110}
    message = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": "stop"}

    def chunk(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**head, "object": "chat.completion.chunk", "choices": [choice]}

    return Api(
        whole=_whole({**head, "object": "chat.completion", "choices": [message], "usage": usage}),
        opening=_sse(chunk({"role": "assistant", "content": ""})),
        token=_token(chunk({"content": HOLE})),
        finish=_sse(chunk({}, "stop")),
        end=b"data: [DONE]\n\n",
    )


def _anthropic() -> Api:
    text = f"right:{TAG.decode()}{WORDS}"
    head = {"id": "msg_bench", "type": "message", "role": "assistant", "model": "mock"}
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    begun = {"stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 40, "output_tokens": 1}}
    start = {"type": "message_start", "message": {**head, "content": [], **begun}}
    block = {"type": "text", "text": ""}
    delta = {"type": "text_delta", "text": HOLE}
    usage = {"input_tokens": 40, "output_tokens": 70}
    return Api(
        whole=_whole({**head, "content": [{"type": "text", "text": text}], **ended, "usage": usage}),
        opening=_sse(start, {"type": "content_block_start", "index": 0, "content_block": block}),
        token=_token({"type": "content_block_delta", "index": 0, "delta": delta}),
        finish=_sse(
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": ended, "usage": {"output_tokens": 70}},
        ),
        end=_sse({"type": "message_stop"}),
    )


def _tgi(streams: bool) -> Api:
    token = {"id": 7, "text": "a", "logprob": -0.5, "special": False}
    details = {"finish_reason": "eos_token", "generated_tokens": 70, "seed": None}
    last = {"index": 51, "token": {**token, "text": "</s>", "special": True}, "generated_text": "all of it", "details": details}
    told = {**details, "prefill": [], "tokens": [token]}
    return Api(
        whole=_whole({"generated_text": f"right:{TAG.decode()}{WORDS}", "details": told}),
        opening=b"",
        token=_token({"index": 1, "token": {**token, "text": HOLE}, "generated_text": None, "details": None}),
        finish=b"",
        end=_sse(last),
        streams=streams,
    )


APIS = {
    "/v1/chat/completions": _openai(),
    "/v1/messages": _anthropic(),
    "/generate": _tgi(False),
    "/generate_stream": _tgi(True),
}


@dataclass(frozen=True)
class Port:
    """One listening socket, and how its answers are timed."""

    sock: socket.socket
    latency_s: float
    delay_s: float
    tls: ssl.SSLContext | None


class Connection:
    """A client's socket, what was read and not yet understood, what it has not taken yet."""

    __slots__ = ("buffer", "open", "port", "sock", "unsent")

    def __init__(self, sock: socket.socket, port: Port) -> None:
        self.sock, self.port, self.open = sock, port, True
        self.buffer = self.unsent = b""


class Stream:
    """A stream under way; `at` is the number of its next token."""

    __slots__ = ("api", "at", "conn", "fault", "tag")

    def __init__(self, conn: Connection, api: Api, tag: bytes, fault: str) -> None:
        self.conn, self.api, self.tag, self.fault, self.at = conn, api, tag, fault, 0


class Upstream:
    """The server; `run` serves until standard input ends."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._tokens: int = job.get("tokens", 50)
        self._wrong, self._every = job.get("wrong", ""), job.get("every", 0)
        self._asked = 0
        self._epoll = select.epoll()
        self._conns: dict[int, Connection] = {}
        self._heads: dict[bytes, tuple[Api | None, int]] = {}  # a request's head → what it asks for, its body's bytes
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []  # a heap: when, in which order, what
        self._order = 0
        self.ports = {name: _listen(settings) for name, settings in job["ports"].items()}
        self._listening = {port.sock.fileno(): port for port in self.ports.values()}

    def run(self) -> None:
        """Until standard input ends."""
        for fd in (*self._listening, sys.stdin.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        while True:
            timeout_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for fd, events in self._epoll.poll(timeout_s, 512):
                conn = self._conns.get(fd)
                if conn is not None:
                    if events & select.EPOLLOUT:
                        self._send(conn, b"")
                    if events & ~select.EPOLLOUT:
                        self._read(conn)
                elif fd in self._listening:
                    self._accept(self._listening[fd])
                else:
                    return
            self._do_what_is_due()

    def _at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        self._order += 1
        heapq.heappush(self._due, (when, self._order, action, arguments))

    def _do_what_is_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            when, _, action, arguments = heapq.heappop(self._due)
            action(when, *arguments)

    # --- connections
    def _accept(self, port: Port) -> None:
        try:
            sock, _ = port.sock.accept()
        except OSError:
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        if port.tls:
            sock = port.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._conns[sock.fileno()] = Connection(sock, port)
        self._epoll.register(sock, select.EPOLLIN)

    def _close(self, conn: Connection) -> None:
        if conn.open:
            conn.open = False
            del self._conns[conn.sock.fileno()]
            conn.sock.close()

    def _read(self, conn: Connection) -> None:
        try:
            data = conn.sock.recv(PIECE)
            while conn.port.tls and conn.sock.pending():  # type: ignore[attr-defined]
                data += conn.sock.recv(PIECE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            data = b""
        if not data:
            self._close(conn)
            return
        data = conn.buffer + data
        while data and conn.open:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                break
            head = data[:end]
            api, length = self._heads.get(head) or self._understand(head)
            if len(data) < end + length:
                break
            self._answer(conn, api, data[end : end + length])
            data = data[end + length :]
        conn.buffer = data

    def _understand(self, head: bytes) -> tuple[Api | None, int]:
        path = head.split(b" ", 2)[1].partition(b"?")[0].decode("latin-1")
        length = LENGTH.search(head)
        found = APIS.get(path), int(length[1]) if length else 0
        if len(self._heads) < KNOWN_HEADS:
            self._heads[head] = found
        return found

    def _send(self, conn: Connection, data: bytes) -> None:
        """As much as the client takes; the rest when it takes more."""
        waited, data = bool(conn.unsent), conn.unsent + data
        if not conn.open:
            return
        try:
            data = data[conn.sock.send(data) :] if data else data
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError:
            self._close(conn)
            return
        conn.unsent = data
        if waited != bool(data):
            self._epoll.modify(conn.sock, select.EPOLLIN | (select.EPOLLOUT if data else 0))

    # --- answers
    def _answer(self, conn: Connection, api: Api | None, body: bytes) -> None:
        self._asked += 1
        fault = self._wrong if self._every and self._asked % self._every == 0 else ""
        at = body.find(b"tag=") + 4
        tag = body[at : at + len(TAG)] if at >= 4 and fault != "text" else b"nobody's"
        if api is None or fault == "status":
            self._send(conn, ERROR)
            return
        if api.streams or (api.streams is None and (b'"stream":true' in body or b'"stream": true' in body)):
            start, arguments = self._start, (Stream(conn, api, tag, fault),)
        elif fault == "cut":
            start, arguments = self._cut, (conn, tag.join(api.whole)[:-50])  # type: ignore[assignment]
        elif not conn.port.latency_s:
            self._send(conn, tag.join(api.whole))
            return
        else:
            start, arguments = self._later, (conn, tag.join(api.whole))  # type: ignore[assignment]
        self._at(time.monotonic() + conn.port.latency_s, start, *arguments)

    def _later(self, when: float, conn: Connection, data: bytes) -> None:
        self._send(conn, data)

    def _cut(self, when: float, conn: Connection, data: bytes) -> None:
        self._send(conn, data)
        self._close(conn)

    def _start(self, when: float, stream: Stream) -> None:
        self._send(stream.conn, STREAM_HEAD + _chunk(stream.api.opening))
        self._next(when, stream)

    def _next(self, when: float, stream: Stream) -> None:
        """A stream's next token, or as many as may come without a delay; after the last one the end."""
        conn, delay_s = stream.conn, stream.conn.port.delay_s
        out = b""
        while conn.open and stream.at < self._tokens:
            out += self._one(stream)
            if stream.fault == "cut" and stream.at > self._tokens // 2:
                self._cut(when, conn, out)
            if delay_s:
                break
        if stream.at == self._tokens:
            out += _chunk(stream.api.finish) + (_chunk(stream.api.end) if stream.fault != "end" else b"") + LAST_CHUNK
        self._send(conn, out)
        if conn.open and stream.at < self._tokens:
            self._at(when + delay_s, self._next, stream)

    def _one(self, stream: Stream) -> bytes:
        number = stream.at ^ 1 if stream.fault == "order" else stream.at
        stream.at += 1
        before, behind = stream.api.token
        return _chunk(b"%s%s %d %d;%s" % (before, stream.tag, number, time.monotonic_ns(), behind))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


def _listen(settings: dict[str, Any]) -> Port:
    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    sock.setblocking(False)
    tls = None
    if settings.get("certificate"):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(settings["certificate"])
    return Port(sock, settings.get("latency_ms", 0) / 1000, settings.get("delay_ms", 0) / 1000, tls)


def main() -> None:
    """See the module."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()
    server = Upstream(json.loads(sys.argv[1]))
    print(json.dumps({name: port.sock.getsockname()[1] for name, port in server.ports.items()}), flush=True)
    server.run()


if __name__ == "__main__":
    main()
