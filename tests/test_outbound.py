"""Through an outbound proxy a backend sees one request as it was meant, and its answer comes back piece by piece."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import trustme

from proxy.adapters.outbound import Outbound
from proxy.errors import BackendError, BackendTimeout
from proxy.wire import read_sse

Handler = Callable[[socket.socket, bytes], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
TOOK_LONG_S = 20.0  # a test that waits so long has failed


def read_head(sock: socket.socket) -> bytes:
    """A header block with its end, b"" when nothing comes."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = sock.recv(1)
        if not data:
            return b""
        head += data
    return head


class Server:
    """Accepts connections and gives each its own thread; `heads` are the header blocks that came."""

    def __init__(self, handle: Handler, context: ssl.SSLContext | None = None) -> None:
        self.heads: list[bytes] = []
        self._handle, self._context = handle, context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                self._open.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._context:
                sock = self._context.wrap_socket(sock, server_side=True)
                self._open.append(sock)
            with sock:
                sock.settimeout(TOOK_LONG_S)
                while head := read_head(sock):
                    self.heads.append(head)
                    self._handle(sock, head)

    def close(self) -> None:
        for sock in (self._socket, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class Backend(Server):
    """Answers every request with `answer`, bytes or a function that speaks to the socket; `bodies` are what came."""

    def __init__(self, answer: bytes | Callable[[socket.socket], None] = OK, context: ssl.SSLContext | None = None) -> None:
        self.bodies: list[bytes] = []
        self.answer = answer
        super().__init__(self._respond, context)

    def _respond(self, sock: socket.socket, head: bytes) -> None:
        fields = fields_of(head)
        if fields.get("transfer-encoding") == "chunked":
            body, line = b"", b""
            while not body.endswith(b"0\r\n\r\n"):
                body += sock.recv(1)
        else:
            wanted, body = int(fields.get("content-length", 0)), b""
            while len(body) < wanted and (line := sock.recv(wanted - len(body))):
                body += line
        self.bodies.append(body)
        if callable(self.answer):
            self.answer(sock)
            sock.close()
        else:
            sock.sendall(self.answer)


class Forwarder(Server):
    """An HTTP proxy: CONNECT makes a tunnel, a whole URI goes on to its host; `refusal` is answered instead, when set."""

    def __init__(self, refusal: bytes = b"") -> None:
        self.refusal = refusal
        super().__init__(self._forward)

    def _forward(self, sock: socket.socket, head: bytes) -> None:
        method, uri, _ = head.split(b" ", 2)
        if self.refusal:
            sock.sendall(self.refusal)
            sock.close()
            return
        parts = urlsplit(b"//" + uri if method == b"CONNECT" else uri)
        with socket.create_connection((parts.hostname, parts.port)) as backend:  # type: ignore[arg-type]
            if method == b"CONNECT":
                sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                path = parts.path + (b"?" + parts.query if parts.query else b"")
                kept = [line for line in head.split(b"\r\n")[1:] if not line.lower().startswith(b"proxy-")]
                backend.sendall(b"\r\n".join([method + b" " + path + b" HTTP/1.1", *kept]))
            back = threading.Thread(target=pump, args=(backend, sock), daemon=True)
            back.start()
            pump(sock, backend)
            back.join(TOOK_LONG_S)


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Bytes as they come, until either side ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def fields_of(head: bytes) -> dict[str, str]:
    lines = [line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:] if line]
    assert len({name.lower() for name, _, _ in lines}) == len(lines)
    return {name.lower(): value.strip() for name, _, value in lines}


@pytest.fixture
def open_server() -> Iterator[Callable[[Any], Any]]:
    servers: list[Server] = []

    def opened(server: Server) -> Server:
        servers.append(server)
        return server

    yield opened
    for server in servers:
        server.close()


@pytest.fixture
def proxied(open_server: Callable[[Any], Any]) -> Forwarder:
    forwarder: Forwarder = open_server(Forwarder())
    return forwarder


def send(adapter: Outbound, url: str, body: Any = None, method: str = "POST", read_s: float = TOOK_LONG_S, **extra: Any) -> Any:
    """A request as the relay makes it: lower-case names, the host among them, no content-length."""
    request = requests.PreparedRequest()
    request.method, request.url, request.body = method, url, body
    request.headers = {"host": urlsplit(url).netloc, "authorization": "Bearer k"}  # type: ignore[assignment]
    request.headers.update(extra.pop("headers", {}))
    for name, value in extra.items():
        setattr(request, name, value)
    before = dict(request.headers)
    answer = adapter.send(request, timeout=(3.0, read_s))
    assert dict(request.headers) == before
    return answer


def adapter_to(proxy: Server, **options: Any) -> Outbound:
    return Outbound(f"http://127.0.0.1:{proxy.port}", **options)


def url_of(server: Server, path: str = "/v1/x", scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.port}{path}"


def whole(answer: Any) -> bytes:
    return b"".join(answer.raw)


# --- the request


def test_the_backend_sees_one_request_as_it_was_meant(proxied: Forwarder, open_server: Any) -> None:
    backend = open_server(Backend())
    answer = send(adapter_to(proxied), url_of(backend, "/v1/x?a=1"), b'{"a":1}', headers={"content-type": "application/json"})
    assert (answer.status_code, answer.reason, whole(answer)) == (200, "OK", b"{}")
    assert proxied.heads[0].startswith(b"POST http://127.0.0.1:%d/v1/x?a=1 HTTP/1.1\r\n" % backend.port)
    assert len(backend.heads) == 1
    assert backend.heads[0].startswith(b"POST /v1/x?a=1 HTTP/1.1\r\n")
    assert fields_of(backend.heads[0]) == {
        "host": f"127.0.0.1:{backend.port}",
        "authorization": "Bearer k",
        "content-type": "application/json",
        "content-length": "7",
    }
    assert backend.bodies == [b'{"a":1}']


def test_a_get_has_no_body_and_an_empty_post_says_so(proxied: Forwarder, open_server: Any) -> None:
    backend, adapter = open_server(Backend()), adapter_to(proxied)
    assert whole(send(adapter, url_of(backend), method="GET")) == b"{}"
    assert whole(send(adapter, url_of(backend), method="POST")) == b"{}"
    assert "content-length" not in fields_of(backend.heads[0])
    assert fields_of(backend.heads[1])["content-length"] == "0"


def test_a_streamed_body_goes_chunked_or_with_its_length(proxied: Forwarder, open_server: Any) -> None:
    backend, adapter = open_server(Backend()), adapter_to(proxied)
    whole(send(adapter, url_of(backend), iter([b"abc", b"", b"de"])))
    whole(send(adapter, url_of(backend), iter([b"abc", b"de"]), headers={"content-length": "5"}))
    assert backend.bodies == [b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"]
    assert "content-length" not in fields_of(backend.heads[0])
    assert "transfer-encoding" not in fields_of(backend.heads[1])


def test_user_and_password_go_to_the_proxy_alone(proxied: Forwarder, open_server: Any) -> None:
    backend = open_server(Backend())
    adapter = Outbound(f"http://me:s%20cret@127.0.0.1:{proxied.port}")
    whole(send(adapter, url_of(backend), b"{}"))
    said = fields_of(proxied.heads[0])["proxy-authorization"].split()
    assert (said[0], base64.b64decode(said[1])) == ("Basic", b"me:s cret")
    assert "proxy-authorization" not in fields_of(backend.heads[0])


def test_connections_are_used_again(proxied: Forwarder, open_server: Any) -> None:
    backend, adapter = open_server(Backend()), adapter_to(proxied)
    for _ in range(3):
        assert whole(send(adapter, url_of(backend), b"{}")) == b"{}"
    assert len(backend.heads) == 3
    assert len(proxied.heads) == 1  # the forwarder reads one header block a connection, the rest is pumped


# --- the answer


def test_header_fields_keep_their_order_and_their_repetitions(proxied: Forwarder, open_server: Any) -> None:
    lines = b"X-B: 1\r\nSet-Cookie: a=1, b; Path=/\r\nSet-Cookie: c=2\r\nX-A: caf\xe9\r\nContent-Length: 0\r\n"
    answer = send(adapter_to(proxied), url_of(open_server(Backend(b"HTTP/1.1 201 Made\r\n" + lines + b"\r\n"))))
    cookies = [value for name, value in answer.raw.fields if name == "set-cookie"]
    assert (answer.status_code, answer.reason) == (201, "Made")
    assert cookies == ["a=1, b; Path=/", "c=2"]
    assert [name for name, _ in answer.raw.fields if name != "set-cookie"] == ["x-b", "x-a", "content-length"]
    assert dict(answer.raw.fields)["x-a"] == "café"
    assert answer.raw.conn is None


@pytest.mark.parametrize("chunked", [True, False])
def test_a_stream_flows_event_by_event(proxied: Forwarder, open_server: Any, chunked: bool) -> None:
    gates = [threading.Event() for _ in range(3)]

    def speak(sock: socket.socket) -> None:
        framing = b"Transfer-Encoding: chunked\r\n" if chunked else b"Connection: close\r\n"
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + framing + b"\r\n")
        for i, gate in enumerate(gates):
            assert gate.wait(TOOK_LONG_S)
            event = b'data: {"i":%d}\n\n' % i
            sock.sendall(b"%x\r\n%s\r\n" % (len(event), event) if chunked else event)
        if chunked:
            sock.sendall(b"0\r\n\r\n")

    answer = send(adapter_to(proxied), url_of(open_server(Backend(speak))), b"{}")
    events = read_sse(answer.raw)
    for i, gate in enumerate(gates):
        gate.set()  # the next event is sent only after the one before was read
        assert next(events) == {"i": i}
    assert next(events, None) is None


def test_a_compressed_body_comes_as_it_is(proxied: Forwarder, open_server: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\n"
    assert whole(send(adapter_to(proxied), url_of(open_server(Backend(head + b"not gzip!"))))) == b"not gzip!"


@pytest.mark.parametrize(("method", "status"), [("HEAD", b"200 OK"), ("POST", b"204 No Content"), ("GET", b"304 Not Modified")])
def test_an_answer_without_a_body_ends_at_once(proxied: Forwarder, open_server: Any, method: str, status: bytes) -> None:
    length = b"" if status.startswith(b"204") else b"Content-Length: 10\r\n"
    backend = open_server(Backend(b"HTTP/1.1 " + status + b"\r\n" + length + b"\r\n"))
    adapter = adapter_to(proxied)
    assert whole(send(adapter, url_of(backend), method=method)) == b""
    assert send(adapter, url_of(backend), method=method).raw.read1() == b""


def test_errors_and_redirects_of_the_backend_are_answers(proxied: Forwarder, open_server: Any) -> None:
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nwait"
    moved = b"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    backend = open_server(Backend(busy))
    answer = send(adapter_to(proxied), url_of(backend), b"{}")
    assert (answer.status_code, answer.headers["retry-after"], whole(answer)) == (503, "7", b"wait")
    backend.answer = moved
    assert send(adapter_to(proxied), url_of(backend), b"{}").status_code == 307
    assert len(backend.heads) == 2


# --- what goes wrong

CUT = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n9\r\nde",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n",
]


@pytest.mark.parametrize("data", CUT)
def test_a_body_that_is_cut_off_is_an_error_after_what_came(proxied: Forwarder, open_server: Any, data: bytes) -> None:
    answer = send(adapter_to(proxied), url_of(open_server(Backend(lambda sock: sock.sendall(data)))), b"{}")
    assert answer.raw.read1() == b"abc"
    with pytest.raises(BackendError, match="broke off") as caught:
        list(answer.raw)
    assert_civil(caught.value, 502)


@pytest.mark.parametrize("data", [b"", b"HTT", b"SSH-2.0-x\r\n\r\n"])
def test_what_is_no_answer_is_an_error(proxied: Forwarder, open_server: Any, data: bytes) -> None:
    backend = open_server(Backend(lambda sock: sock.sendall(data)))
    with pytest.raises(BackendError) as caught:
        send(adapter_to(proxied), url_of(backend), b"{}")
    assert_civil(caught.value, 502)
    assert len(backend.heads) == 1  # sent once


def assert_civil(fault: BackendError, status: int) -> None:
    assert fault.status == status
    assert not any(word in str(fault) for word in ("Pool", "urllib", "127.0.0.1", "Errno", "object at", "Error("))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_down_is_a_backend_error(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(BackendError, match="outbound proxy") as caught:
        send(Outbound(f"http://127.0.0.1:{port}"), f"{scheme}://backend.invalid/v1", b"{}")
    assert_civil(caught.value, 502)


@pytest.mark.parametrize(("scheme", "says"), [("http", "user and a password"), ("https", "outbound proxy")])
def test_a_proxy_that_wants_a_password_is_our_fault_and_not_the_clients(open_server: Any, scheme: str, says: str) -> None:
    proxy = open_server(Forwarder(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"))
    with pytest.raises(BackendError, match=says) as caught:
        send(adapter_to(proxy), f"{scheme}://backend.invalid/v1", b"{}")
    assert_civil(caught.value, 502)


def test_silence_before_the_answer_is_a_timeout(proxied: Forwarder, open_server: Any) -> None:
    over = threading.Event()

    def wait(sock: socket.socket) -> None:
        over.wait(TOOK_LONG_S)

    backend = open_server(Backend(wait))
    each: list[dict[str, Any]] = [{"read_s": 0.2}, {"first_byte_s": 0.2}]
    for limits in each:
        with pytest.raises(BackendTimeout) as caught:
            send(adapter_to(proxied), url_of(backend), b"{}", **limits)
        assert_civil(caught.value, 504)
    over.set()


def test_silence_inside_the_answer_is_a_timeout_by_the_read_limit(proxied: Forwarder, open_server: Any) -> None:
    over = threading.Event()

    def speak(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        over.wait(TOOK_LONG_S)

    adapter = adapter_to(proxied)
    backend = open_server(Backend(speak))
    answer = send(adapter, url_of(backend), b"{}", read_s=0.2)
    assert answer.raw.read1() == b"abc"
    with pytest.raises(BackendTimeout) as caught:
        answer.raw.read1()
    assert_civil(caught.value, 504)
    over.set()


def test_the_limit_for_the_first_byte_does_not_bound_the_rest(proxied: Forwarder, open_server: Any) -> None:
    later = threading.Event()

    def speak(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        later.wait(TOOK_LONG_S)
        sock.sendall(b"def")

    answer = send(adapter_to(proxied), url_of(open_server(Backend(speak))), b"{}", first_byte_s=0.3)
    assert answer.raw.read1() == b"abc"
    threading.Timer(0.8, later.set).start()
    assert answer.raw.read1() == b"def"


@pytest.mark.parametrize(
    "framed",
    [b"Content-Length: 200000\r\n\r\n%s", b"Transfer-Encoding: chunked\r\n\r\n30d40\r\n%s\r\n0\r\n\r\n", b"\r\n%s"],
    ids=["length", "chunked", "until the end"],
)
def test_an_answer_has_not_ended_while_bytes_of_it_are_to_come(proxied: Forwarder, open_server: Any, framed: bytes) -> None:
    def speak(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + framed % (b"x" * 200_000))
        sock.shutdown(socket.SHUT_WR)

    raw = send(adapter_to(proxied), url_of(open_server(Backend(speak))), b"{}").raw
    size = len(raw.read1())
    assert (0 < size < 200_000, raw.ended) == (True, False)  # the relay would hold an answer of any size, were it True
    assert size + len(b"".join(raw)) == 200_000
    assert raw.ended


def test_closing_an_answer_ends_the_backends_connection(proxied: Forwarder, open_server: Any) -> None:
    ended = threading.Event()

    def speak(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        if sock.recv(1) == b"":
            ended.set()

    answer = send(adapter_to(proxied), url_of(open_server(Backend(speak))), b"{}")
    assert answer.raw.read1() == b"abc"
    answer.close()
    assert ended.wait(TOOK_LONG_S)


# --- https


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(ca: trustme.CA, open_server: Any) -> Backend:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    backend: Backend = open_server(Backend(context=context))
    return backend


def test_https_goes_through_a_tunnel(proxied: Forwarder, secure: Backend, ca: trustme.CA, tmp_path: Path) -> None:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    adapter = adapter_to(proxied, verify=str(tmp_path / "ca.pem"))
    body = json.dumps({"secret": "words"}).encode()
    for _ in range(2):
        assert whole(send(adapter, url_of(secure, scheme="https"), body)) == b"{}"
    assert [head.split(b" HTTP")[0] for head in proxied.heads] == [b"CONNECT 127.0.0.1:%d" % secure.port]
    assert b"Bearer" not in proxied.heads[0]
    assert secure.bodies == [body, body]
    assert secure.heads[0].startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert set(fields_of(secure.heads[0])) == {"host", "authorization", "content-length"}


def test_a_certificate_that_nobody_vouches_for_is_an_error_unless_told_so(proxied: Forwarder, secure: Backend) -> None:
    with pytest.raises(BackendError, match="no TLS connection") as caught:
        send(adapter_to(proxied), url_of(secure, scheme="https"), b"{}")
    assert_civil(caught.value, 502)
    assert secure.heads == []
    with pytest.warns(Warning, match="Unverified"):
        assert whole(send(adapter_to(proxied, verify=False), url_of(secure, scheme="https"), b"{}")) == b"{}"


def test_a_missing_ca_file_is_an_error(proxied: Forwarder, secure: Backend) -> None:
    with pytest.raises(BackendError) as caught:
        send(adapter_to(proxied, verify="/no/such/file"), url_of(secure, scheme="https"), b"{}")
    assert_civil(caught.value, 502)


def test_a_client_certificate_is_shown(ca: trustme.CA, proxied: Forwarder, open_server: Any, tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    backend = open_server(Backend(context=context))
    mine = ca.issue_cert("client@example.com")
    mine.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    verify, cert = str(tmp_path / "ca.pem"), (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))
    assert whole(send(adapter_to(proxied, verify=verify, cert=cert), url_of(backend, scheme="https"), b"{}")) == b"{}"
    with pytest.raises(BackendError):
        send(adapter_to(proxied, verify=verify), url_of(backend, scheme="https"), b"{}")
