"""One call from end to end: what reaches the backend, what comes back, and what happens when either side fails."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy.call import Waiting
from proxy.errors import BackendTimeout
from tests.backends.proxy import CHECKOUT, KEY, Proxy
from tests.backends.sockets import PATIENCE_S, Backend, Client, Exchange, Reply, value_of
from tests.backends.tls import Tls

SECRET = "upstream-secret-key"
RIGHT = {"authorization": f"Bearer {KEY}"}
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "m", "messages": MESSAGES}
STREAMED = {**CHAT, "stream": True}
NUMBERS = itertools.count()
FREED_S = 2.0  # until a client that left has freed the backend

MAPPERS = (
    (CHECKOUT / "mappers.py").read_text()
    + """

def reqBare(ip, cfg={}):
    return {"q": ip["messages"][-1]["content"], "model": ip.get("model")}

def ansBare(ip, cfg={}):
    message = {"role": "assistant", "content": ip["said"]}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": cfg["now"], "model": cfg["request"]["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

def reqRaises(ip, cfg={}):
    return {"q": ip["temperatur"]}

def ansRaises(ip, cfg={}):
    return 1 / 0

def streamInverse(events, cfg={}):
    for event in events:
        yield {"n": 1 / event["n"]}

def streamRaises(events, cfg={}):
    for event in events:
        yield 1 / 0
"""
)
CONFIG = """
system: {{timeout: 20}}
targets:
  default: main
  main: {{url: "{url}", envkey: SECRET, dialect: openai}}
  all: {{url: "{url}", route: /all, envkey: SECRET, headers: {{x-project: blue}}}}
  keeps: {{url: "{url}", route: /keeps, envkey: SECRET, preserveMethod: true}}
  slow: {{url: "{url}", route: /slow, envkey: SECRET, timeout: 0.3}}
  versioned: {{url: "{url}/base/v1", route: /versioned}}
  refused: {{url: "http://127.0.0.1:{closed}", route: /refused}}
  tls: {{url: "{tls_url}", route: /tls, verify: certificates/ca.pem}}
  untrusted: {{url: "{tls_url}", route: /untrusted}}
  x-api-key: {{url: "{url}", route: /x-api-key, envkey: SECRET, auth: x-api-key}}
  api-key: {{url: "{url}", route: /api-key, envkey: SECRET, auth: api-key}}
  x-goog-api-key: {{url: "{url}", route: /x-goog-api-key, envkey: SECRET, auth: x-goog-api-key}}
  none: {{url: "{url}", route: /none, auth: none}}
  passthrough: {{url: "{url}", route: /passthrough, auth: passthrough}}
  fixed: {{url: "{url}", dialect: openai, envkey: SECRET, model: fixed-model}}
  tgi: {{url: "{url}/tgi", dialect: tgi, prompter: chatml, envkey: SECRET}}
  tgi-slow: {{url: "{url}/tgi", dialect: tgi, prompter: chatml, timeout: 0.3}}
  bare:
    url: "{url}"
    envkey: SECRET
    mapping: {{/chat/completions: {{path: /bare, in: reqBare, out: ansBare}}}}
  raises-in: {{url: "{url}", mapping: {{/chat/completions: {{path: /bare, in: reqRaises, out: ansBare}}}}}}
  raises-out: {{url: "{url}", mapping: {{/chat/completions: {{path: /bare, in: reqBare, out: ansRaises}}}}}}
  raises-stream:
    url: "{url}"
    mapping: {{/chat/completions: {{path: /sse, in: reqBare, out: ansBare, stream: streamRaises}}}}
  own:
    url: "{url}"
    mapping:
      /own-raises: {{path: /sse-own, in: identity, out: identity, stream: streamInverse}}
      /own-cut: {{path: /sse-cut, in: identity, out: identity, stream: streamInverse}}
models:
  exact: {{target: main}}
  renamed: {{target: main, model: real-name}}
  "wild-*": {{target: main, model: wild-real}}
  tgi-name: {{target: tgi, model: served-by-tgi}}
"""


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


@pytest.fixture(scope="module")
def tls_backend(tls: Tls) -> Iterator[Backend]:
    with Backend(tls.server) as backend:
        yield backend


@pytest.fixture(scope="module")
def tls() -> Tls:
    return Tls()


@pytest.fixture(scope="module")
def proxy(backend: Backend, tls_backend: Backend, tls: Tls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    config = CONFIG.format(url=backend.url, tls_url=tls_backend.url, closed=closed)
    files = {"mappers.py": MAPPERS, **tls.files}
    with Proxy(tmp_path_factory.mktemp("relay"), config, files=files, env={"SECRET": SECRET}) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def tls_proxy(backend: Backend, tls: Tls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    config = f"""
system: {{ssl: true}}
targets:
  default: all
  all: {{url: "{backend.url}", route: /all}}
  tgi: {{url: "{backend.url}/tgi", dialect: tgi, prompter: chatml}}
"""
    with Proxy(tmp_path_factory.mktemp("relay-tls"), config, files=tls.files) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    with Client(proxy.url, headers=RIGHT) as client:
        yield client


@pytest.fixture
def path() -> str:
    """A backend path of the test's own."""
    return f"/own/{next(NUMBERS)}"


def seen(reply: Reply) -> dict[str, Any]:
    """What the echoing backend saw."""
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json()
    return found


def chunk(text: str | None, finish: str | None = None) -> dict[str, Any]:
    delta = {"content": text} if text is not None else {}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "real-name", "choices": [choice]}


def token(text: str, last: bool = False) -> dict[str, Any]:
    """An event of TGI's."""
    details = {"finish_reason": "eos_token", "generated_tokens": 2, "seed": None, "input_length": 1} if last else None
    shown = {"id": 1, "text": text, "logprob": -0.1, "special": last}
    return {"index": 1, "token": shown, "generated_text": "said" if last else None, "details": details}


# --- up
class TestUp:
    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    @pytest.mark.parametrize(
        "kind", ["application/octet-stream", "application/json", "text/plain", "multipart/form-data; boundary=x", None]
    )
    def test_all_methods_and_content_types_go_through_byte_by_byte(self, client, method, kind):
        body = bytes(range(256)) * 3
        found = seen(client.ask(method, "/all/echo", body, {"content-type": kind} if kind else [("content-type", "")]))
        assert (found["method"], found["body"].encode("latin-1")) == (method, body)
        assert (value_of(found["fields"], "content-type") or None) == kind

    @pytest.mark.parametrize("size", [0, 100, 3_000_000])
    def test_a_chunked_upload_arrives_whole(self, client, backend, path, size):
        body = os.urandom(size)
        client.request("POST", f"/all{path}", headers={"transfer-encoding": "chunked", "content-type": "audio/wav"})
        for at in range(0, size, 50_000):
            piece = body[at : at + 50_000]
            client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        client.send(b"0\r\n\r\n")
        assert client.reply().status == 200
        assert backend.asked_for(path)[0].body == body

    def test_a_large_upload_streams(self, client, backend, path):
        """The backend sees its beginning before the client has sent its end."""
        begun = threading.Event()

        def answer(exchange: Exchange) -> None:
            exchange.exactly(100_000)
            begun.set()
            exchange.reply(200, {"rest": len(exchange.exactly(500_000))})

        backend.on(path, answer, reads=False)
        client.request("PUT", f"/all{path}", headers={"content-length": "600000", "content-type": "video/mp4"})
        client.send(b"x" * 500_000)
        assert begun.wait(PATIENCE_S)
        client.send(b"x" * 100_000)
        assert seen(client.reply()) == {"rest": 500_000}
        assert backend.asked_for(path)[0]["content-length"] == "600000"

    def test_the_query_is_kept(self, client):
        assert seen(client.ask("GET", "/all/echo?a=1&b=%20&c"))["path"] == "/echo?a=1&b=%20&c"

    def test_the_path_is_kept_as_it_was_written(self, client):
        assert seen(client.ask("GET", "/all/files/a%2Fb/%C3%A9"))["path"] == "/files/a%2Fb/%C3%A9"

    def test_a_route_takes_its_version_once(self, client):
        assert seen(client.ask("GET", "/versioned/v1/models/x"))["path"] == "/base/v1/models/x"
        assert seen(client.ask("GET", "/versioned/models/x"))["path"] == "/base/v1/models/x"

    def test_a_route_matches_whole_segments(self, client):
        assert seen(client.ask("GET", "/allele"))["path"] == "/v1/allele"  # the default target's

    def test_headers_go_on_but_for_the_proxys_own_and_those_of_the_connection(self, client, backend):
        given = {
            "x-stainless-os": "Linux",
            "openai-beta": "a=b",
            "x-once": "1",
            "connection": "x-once",
            "cookie": "a=b",
            "te": "trailers",
        }
        fields = dict(
            seen(client.ask("GET", "/all/echo", headers={**given, "accept": "text/*", "x-forwarded-for": "1.2.3.4"}))["fields"]
        )
        assert (fields["x-stainless-os"], fields["openai-beta"], fields["accept"]) == ("Linux", "a=b", "text/*")
        assert not {"x-once", "connection", "cookie", "te", "x-forwarded-for", "x-mooltiproxy-key"} & fields.keys()
        assert fields["host"] == f"127.0.0.1:{backend.port}"

    @pytest.mark.parametrize(
        "name", ["X-HTTP-Method-Override", "x-http-method", "X-Method-Override", "X-Original-URL", "x-rewrite-url"]
    )
    def test_no_header_makes_another_request_of_it_than_was_judged_here(self, client, name):
        fields = dict(seen(client.ask("GET", "/all/echo", headers={name: "/other", "x-kept": "1"}))["fields"])
        assert "x-kept" in fields
        assert name.lower() not in fields

    def test_extra_headers_are_added(self, client):
        assert dict(seen(client.ask("GET", "/all/echo", headers={"x-project": "red"}))["fields"])["x-project"] == "blue"


class TestAuth:
    @pytest.mark.parametrize("style", ["x-api-key", "api-key", "x-goog-api-key"])
    def test_the_targets_key_goes_in_the_header_it_wants(self, client, style):
        fields = seen(client.ask("GET", f"/{style}/echo"))["fields"]
        assert value_of(fields, style) == SECRET
        assert value_of(fields, "authorization") is None

    def test_bearer_is_the_rule(self, client):
        assert value_of(seen(client.ask("GET", "/all/echo"))["fields"], "authorization") == f"Bearer {SECRET}"

    def test_none_sends_none(self, client):
        fields = seen(client.ask("GET", "/none/echo"))["fields"]
        assert not {"authorization", "x-api-key", "api-key"} & dict(fields).keys()

    def test_passthrough_sends_the_clients_own_beside_our_key(self, proxy):
        with Client(proxy.url, headers={"x-mooltiproxy-key": KEY, "authorization": "Bearer own"}) as client:
            fields = seen(client.ask("GET", "/passthrough/echo"))["fields"]
        assert value_of(fields, "authorization") == "Bearer own"
        assert KEY not in json.dumps(fields)

    def test_passthrough_never_sends_our_own_key(self, client):
        assert KEY not in json.dumps(seen(client.ask("GET", "/passthrough/echo"))["fields"])


# --- down
class TestDown:
    @pytest.mark.parametrize("framing", ["length", "chunked", "close"])
    def test_a_binary_answer_comes_byte_by_byte(self, client, backend, path, framing):
        body = os.urandom(2_000_000)

        def answer(exchange: Exchange) -> None:
            if framing == "length":
                exchange.reply(200, body, kind="audio/mpeg")
            elif framing == "chunked":
                exchange.start("audio/mpeg")
                for at in range(0, len(body), 70_000):
                    exchange.chunk(body[at : at + 70_000])
                exchange.end()
            else:
                exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\n\r\n" + body)
                exchange.cut()

        backend.on(path, answer)
        reply = client.ask("GET", f"/all{path}")
        assert (reply.status, reply["content-type"], reply.whole) == (200, "audio/mpeg", True)
        assert reply.body == body

    def test_a_compressed_answer_is_relayed_raw(self, client, backend, path):
        squeezed = gzip.compress(b"{}" * 1000)
        backend.on(path, lambda exchange: exchange.reply(200, squeezed, [("content-encoding", "gzip")]))
        reply = client.ask("GET", f"/all{path}", headers={"accept-encoding": "gzip"})
        assert (reply["content-encoding"], reply.body) == ("gzip", squeezed)

    def test_several_set_cookies_stay_several(self, client, backend, path):
        cookies = ["a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT", "b=2"]
        backend.on(path, lambda exchange: exchange.reply(200, {}, [("set-cookie", cookie) for cookie in cookies]))
        reply = client.ask("GET", f"/all{path}")
        assert [value for name, value in reply.fields if name == "set-cookie"] == cookies

    @pytest.mark.parametrize("status", [201, 202, 206, 400, 401, 404, 409, 422, 429, 500, 503, 529])
    def test_status_headers_and_body_are_kept(self, client, backend, path, status):
        fields = [("retry-after", "7"), ("x-ratelimit-remaining-tokens", "0"), ("x-request-id", "req_1"), ("x-own", "2")]
        backend.on(path, lambda exchange: exchange.reply(status, {"error": {"message": "no", "odd": 1}}, fields))
        reply = client.ask("POST", f"/all{path}", CHAT)
        assert (reply.status, reply.json()) == (status, {"error": {"message": "no", "odd": 1}})
        assert [reply[name] for name, _ in fields[:2]] == ["7", "0"]
        assert (reply["x-upstream-request-id"], reply["x-own"]) == ("req_1", "2")
        assert reply["x-request-id"] not in (None, "req_1")

    @pytest.mark.parametrize("status", [204, 304])
    def test_answers_without_a_body_have_none(self, client, backend, path, status):
        backend.on(path, lambda exchange: exchange.send(f"HTTP/1.1 {status} x\r\netag: 1\r\n\r\n".encode()))
        reply = client.ask("GET", f"/all{path}")
        assert (reply.status, reply["etag"], reply["transfer-encoding"]) == (status, "1", None)
        assert client.ask("GET", "/all/echo").status == 200  # the connection is in step

    def test_an_interim_answer_is_not_the_final_one(self, client, backend, path):
        backend.on(
            path,
            lambda exchange: (exchange.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"), exchange.reply(200, {"a": 1})),
        )
        assert client.ask("GET", f"/all{path}").json() == {"a": 1}

    def test_hop_by_hop_headers_stay_on_their_hop(self, client, backend, path):
        fields = [
            ("connection", "x-hop, keep-alive"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("access-control-allow-origin", "x"),
        ]
        backend.on(path, lambda exchange: exchange.reply(200, {}, fields))
        reply = client.ask("GET", f"/all{path}")
        assert [reply[name] for name, _ in fields] == [None] * 4

    def test_a_mapped_error_keeps_status_retry_after_and_message_in_the_clients_shape(self, client, backend):
        error = {"error": "Model is overloaded", "error_type": "overloaded"}
        backend.on("/tgi/generate", lambda exchange: exchange.reply(429, error, [("retry-after", "9")]))
        reply = client.ask("POST", "/v1/messages", {**CHAT, "max_tokens": 9}, {"target": "tgi"})
        assert (reply.status, reply["retry-after"]) == (429, "9")
        assert reply.json()["error"] == {"type": "rate_limit_error", "message": "Model is overloaded"}


# --- redirects
def redirects(location: str | Callable[[], str], status: int = 302) -> Callable[[Exchange], None]:
    def answer(exchange: Exchange) -> None:
        exchange.reply(status, b"", [("location", location if isinstance(location, str) else location())])

    return answer


class TestRedirects:
    @pytest.mark.parametrize(
        ("status", "method", "then"),
        [
            (301, "POST", "GET"),
            (302, "POST", "GET"),
            (303, "PUT", "GET"),
            (307, "POST", "POST"),
            (308, "PUT", "PUT"),
            (302, "GET", "GET"),
        ],
    )
    def test_within_the_host_they_are_followed_with_the_usual_method_change(self, client, backend, path, status, method, then):
        backend.on(path, redirects("/echo?to=1", status))
        found = seen(client.ask(method, f"/all{path}", {"a": 1} if method != "GET" else None))
        assert (found["method"], found["path"]) == (then, "/echo?to=1")
        assert (found["body"] != "") == (then not in ("GET",))
        assert value_of(found["fields"], "authorization") == f"Bearer {SECRET}"

    def test_preserve_method_sends_method_and_body_again(self, client, backend, path):
        backend.on(path, redirects("echo", 302))
        found = seen(client.ask("POST", f"/keeps{path}", {"a": 1}))
        assert (found["method"], json.loads(found["body"])) == ("POST", {"a": 1})

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("target", ["all", "keeps"])
    def test_to_another_host_they_are_502_and_nothing_goes_there(self, client, backend, path, status, target):
        with Backend(host="127.0.0.2") as catcher:
            backend.on(path, redirects(catcher.url + "/echo", status))
            reply = client.ask("POST", f"/{target}{path}", CHAT)
            assert reply.status == 502
            assert catcher.asked == []
        assert SECRET not in reply.body.decode()

    @pytest.mark.parametrize(
        "location",
        ["//evil.example/x", "https://127.0.0.1:1/", "http://127.0.0.1:1/", "http://[", "ftp://x/", "http://user@127.0.0.1/"],
    )
    def test_another_port_scheme_or_user_is_another_host(self, client, backend, path, location):
        backend.on(path, redirects(location))
        assert client.ask("GET", f"/all{path}").status == 502

    def test_they_are_bounded(self, client, backend, path):
        backend.on(path, redirects(path))
        assert client.ask("GET", f"/all{path}").status == 502
        assert 2 <= len(backend.asked_for(path)) <= 10

    def test_a_body_that_streamed_is_left_behind_where_the_method_changes(self, client, backend, path):
        backend.on(path, redirects("/echo", 303))
        body = b"x" * 600_000
        found = seen(client.ask("POST", f"/all{path}", body, {"content-type": "video/mp4"}))
        assert (found["method"], found["body"], value_of(found["fields"], "content-length")) == ("GET", "", None)

    def test_a_body_that_streamed_cannot_be_sent_again(self, client, backend, path):
        backend.on(path, redirects("/echo", 307))
        client.request("POST", f"/all{path}", headers={"transfer-encoding": "chunked", "content-type": "audio/wav"})
        client.send(b"2\r\nab\r\n0\r\n\r\n")
        assert client.reply().status == 502


# --- models
def answers_model(exchange: Exchange) -> None:
    """A chat answer with the model's real name, streamed where that is asked."""
    asked = exchange.asked.json()
    if asked.get("stream"):
        exchange.start()
        for event in (chunk("a"), chunk('"model":"x"'), chunk(None, "stop"), b"[DONE]"):
            exchange.event(event)
        exchange.end()
    else:
        message = {"role": "assistant", "content": 'say "model": "x"'}
        exchange.reply(200, {"id": "c", "model": asked["model"], "choices": [{"index": 0, "message": message}]})


class TestModels:
    @pytest.mark.parametrize(
        ("asked", "sent"),
        [("exact", "exact"), ("renamed", "real-name"), ("wild-2.0", "wild-real"), ("unheard-of", "unheard-of")],
    )
    def test_a_rename_goes_up_and_the_name_that_was_asked_for_comes_back(self, client, backend, asked, sent):
        backend.on("/v1/chat/completions", answers_model)
        reply = client.ask("POST", "/v1/chat/completions", {**CHAT, "model": asked})
        assert backend.asked_for("/v1/chat/completions")[-1].json() == {**CHAT, "model": sent}
        assert reply.json()["model"] == asked
        assert reply["x-mooltiproxy-model"] == (sent if sent != asked else None)
        assert reply.json()["choices"][0]["message"]["content"] == 'say "model": "x"'

    def test_it_comes_back_in_every_event_of_a_stream(self, client, backend):
        backend.on("/v1/chat/completions", answers_model)
        reply = client.ask("POST", "/v1/chat/completions", {**STREAMED, "model": "renamed"})
        assert [event if event == "[DONE]" else event["model"] for event in reply.events] == ["renamed"] * 3 + ["[DONE]"]
        assert reply["x-mooltiproxy-model"] == "real-name"
        assert reply.events[1]["choices"][0]["delta"]["content"] == '"model":"x"'

    def test_a_name_inside_the_messages_is_left_alone(self, client, backend):
        backend.on("/v1/chat/completions", answers_model)
        body = {"messages": [{"role": "user", "content": "hi", "model": "renamed"}], "model": "renamed"}
        client.ask("POST", "/v1/chat/completions", body)
        assert backend.asked_for("/v1/chat/completions")[-1].json() == {**body, "model": "real-name"}

    def test_a_mapped_answer_says_both_names_too(self, client, backend):
        backend.on("/tgi/generate", lambda exchange: exchange.reply(200, {"generated_text": "said"}))
        reply = client.ask("POST", "/v1/chat/completions", {**CHAT, "model": "tgi-name"})
        assert reply.json()["model"] == "tgi-name"
        assert reply["x-mooltiproxy-model"] == "served-by-tgi"

    def test_it_comes_back_from_a_backend_that_likes_to_compress(self, client, backend):
        def squeezes(exchange: Exchange) -> None:
            if "gzip" in (exchange.asked["accept-encoding"] or ""):
                exchange.reply(200, gzip.compress(b'{"model": "real-name"}'), [("content-encoding", "gzip")])
            else:
                exchange.reply(200, {"model": "real-name"})

        backend.on("/v1/chat/completions", squeezes)
        asked = {"accept-encoding": "gzip, deflate"}
        assert client.ask("POST", "/v1/chat/completions", {**CHAT, "model": "renamed"}, asked).json()["model"] == "renamed"
        assert client.ask("POST", "/v1/chat/completions", CHAT, asked)["content-encoding"] == "gzip"  # nothing to rename

    def test_a_targets_model_is_sent_instead_of_any(self, client, backend):
        backend.on("/v1/chat/completions", answers_model)
        reply = client.ask("POST", "/v1/chat/completions", {**CHAT, "model": "renamed"}, {"target": "fixed"})
        assert backend.asked_for("/v1/chat/completions")[-1].json()["model"] == "fixed-model"
        assert (reply.json()["model"], reply["x-mooltiproxy-model"]) == ("renamed", "fixed-model")

    def test_the_list_of_models_names_the_aliases(self, client, backend):
        listed = {"object": "list", "data": [{"id": "real-name", "object": "model", "created": 1, "owned_by": "x"}]}
        backend.on("/v1/models", lambda exchange: exchange.reply(200, listed))
        names = {model["id"] for model in client.ask("GET", "/v1/models").json()["data"]}
        assert {"exact", "renamed", "real-name"} <= names
        assert not any("*" in name for name in names)


# --- faults of the backend
class TestBackendFaults:
    def test_a_refused_connection_is_502(self, client):
        reply = client.ask("POST", "/refused/x", CHAT)
        assert reply.status == 502
        assert "connect" in reply.json()["error"]["message"]

    @pytest.mark.parametrize("where", ["/slow/silent", "/tgi"])
    def test_a_targets_timeout_is_504(self, client, backend, where):
        backend.on("/silent", lambda exchange: exchange.wait_until_gone())
        backend.on("/tgi/generate", lambda exchange: exchange.wait_until_gone())
        if where == "/tgi":
            reply = client.ask("POST", "/v1/chat/completions", CHAT, {"target": "tgi-slow"})
        else:
            reply = client.ask("POST", where, CHAT)
        assert reply.status == 504
        assert client.ask("GET", "/healthz").status == 200

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"HTTP/1.1 200 OK\r\ncontent-le",
            b"HTTP/1.1 200 OK\r\nconte\0nt: 1\r\n\r\n",
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        ],
        ids=["nothing", "half a header", "control byte", "no HTTP", "two lengths"],
    )
    def test_what_is_no_answer_is_502(self, client, backend, path, answer):
        backend.on(path, lambda exchange: (exchange.send(answer), exchange.cut()))
        reply = client.ask("POST", f"/all{path}", CHAT)
        assert reply.status == 502
        assert reply.json()["error"]["message"]

    def test_a_cut_body_never_looks_whole(self, client, backend, path):
        backend.on(path, lambda exchange: (exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc"), exchange.cut()))
        reply = client.ask("GET", f"/all{path}")
        assert reply.status == 502 or not reply.whole

    def test_a_cut_body_of_a_mapped_answer_is_502(self, client, backend):
        backend.on(
            "/bare", lambda exchange: (exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"), exchange.cut())
        )
        assert client.ask("POST", "/v1/chat/completions", CHAT, {"target": "bare"}).status == 502

    @pytest.mark.parametrize("body", [b"<html>", b"", b"{", b"\xff"])
    def test_a_mapped_answer_that_is_not_json_is_502(self, client, backend, body):
        backend.on("/bare", lambda exchange: exchange.reply(200, body))
        reply = client.ask("POST", "/v1/chat/completions", CHAT, {"target": "bare"})
        assert reply.status == 502
        assert "JSON" in reply.json()["error"]["message"]

    def test_a_compressed_bomb_is_not_unpacked(self, client, backend):
        bomb = gzip.compress(b"[" + b"0," * 50_000_000 + b"0]", 1)
        backend.on("/bare", lambda exchange: exchange.reply(200, bomb, [("content-encoding", "gzip")]))
        assert client.ask("POST", "/v1/chat/completions", CHAT, {"target": "bare"}).status == 502

    def test_a_connection_that_went_stale_is_replaced_unseen(self, client, backend, path):
        def once(exchange: Exchange) -> None:
            exchange.reply(200, {})
            exchange.cut()

        backend.on(path, once)
        assert [client.ask("POST", f"/all{path}", CHAT).status for _ in range(5)] == [200] * 5

    def test_the_targets_key_is_scrubbed_from_errors(self, client, backend, path):
        quoted = {"error": {"message": f"Incorrect API key provided: {SECRET}"}}
        backend.on(path, lambda exchange: exchange.reply(401, quoted, [("x-why", SECRET)]))
        reply = client.ask("POST", f"/all{path}", CHAT)
        assert (reply.status, SECRET in reply.body.decode(), reply["x-why"]) == (401, False, "***")

    def test_it_is_scrubbed_from_mapped_errors(self, client, backend):
        backend.on("/tgi/generate", lambda exchange: exchange.reply(403, {"error": f"bad {SECRET}", "error_type": "x"}))
        reply = client.ask("POST", "/v1/chat/completions", CHAT, {"target": "tgi"})
        assert reply.status == 403
        assert SECRET not in reply.body.decode()

    def test_it_is_scrubbed_from_an_error_in_a_stream(self, client, backend):
        def answer(exchange: Exchange) -> None:
            exchange.start()
            exchange.event(token("a"))
            exchange.event({"error": f"bad {SECRET}", "error_type": "x"})
            exchange.end()

        backend.on("/tgi/generate_stream", answer)
        reply = client.ask("POST", "/v1/chat/completions", STREAMED, {"target": "tgi"})
        assert any("error" in event for event in reply.events)
        assert SECRET not in reply.body.decode()

    def test_a_certificate_that_is_not_trusted_is_502_and_one_that_is_serves(self, client):
        assert client.ask("GET", "/tls/echo").status == 200
        reply = client.ask("GET", "/untrusted/echo")
        assert reply.status == 502
        assert "certificate" in reply.json()["error"]["message"]

    def test_an_early_failure_of_a_stream_is_a_status(self, client, backend):
        backend.on(
            "/tgi/generate_stream",
            lambda exchange: (
                exchange.start(),
                exchange.event({"error": "overloaded", "error_type": "overloaded"}),
                exchange.end(),
            ),
        )
        reply = client.ask("POST", "/v1/chat/completions", STREAMED, {"target": "tgi"})
        assert reply.status in (429, 502, 503)
        assert "overloaded" in reply.json()["error"]["message"]


# --- streams
WAYS = {  # id → (proxy path, target header, backend path, event)
    "pumped": ("/all/sse", "all", "/sse", chunk("piece")),
    "renamed": ("/v1/chat/completions", None, "/v1/chat/completions", chunk("piece")),
    "mapped": ("/v1/chat/completions", "tgi", "/tgi/generate_stream", token("piece")),
    "TLS backend": ("/tls/sse", "tls", "/sse", chunk("piece")),
}
TLS_WAYS = {"TLS client": WAYS["pumped"], "TLS client, mapped": WAYS["mapped"]}


class Streaming:
    """A backend's answer that goes on one step at a time; `times` are when an event was sent."""

    def __init__(self, event: Any) -> None:
        self.times: list[float] = []
        self.allowed = threading.Semaphore(0)
        self.gone: float = 0.0
        self.left = threading.Event()
        self.begun = threading.Event()
        self._event = event

    def gated(self, exchange: Exchange) -> None:
        """Five events, each when it is allowed."""
        exchange.start()
        for _ in range(5):
            assert self.allowed.acquire(timeout=PATIENCE_S)
            self.times.append(time.monotonic())
            exchange.event(self._event)
        exchange.end()

    def one_then_waits(self, exchange: Exchange) -> None:
        exchange.start()
        exchange.event(self._event)
        self.waits(exchange)

    def waits(self, exchange: Exchange) -> None:
        """Nothing more, until the proxy leaves."""
        self.begun.set()
        self.gone = exchange.wait_until_gone()
        self.left.set()


def opened(proxy: Proxy, way: tuple[str, str | None, str, Any], tls: Tls | None) -> Client:
    """A client that has asked for that stream."""
    client = Client(proxy.url, tls.client if tls else None, RIGHT)
    target = {"target": way[1]} if way[1] in ("tgi",) else {}
    client.request("POST", way[0], {**STREAMED, "model": "renamed"}, target)
    return client


@pytest.fixture(params=[*WAYS, *TLS_WAYS])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(way: str, request: pytest.FixtureRequest, backend: Backend, tls_backend: Backend, tls: Tls) -> Iterator[Any]:
    """Makes the backend answer as a `Streaming` says, and asks for it."""
    path, target, behind, event = {**WAYS, **TLS_WAYS}[way]
    clients: list[Client] = []

    def ask(answer: Callable[[Streaming], Callable[[Exchange], None]]) -> tuple[Client, Streaming]:
        streaming = Streaming(event)
        (tls_backend if way == "TLS backend" else backend).on(behind, answer(streaming))
        proxy = request.getfixturevalue("tls_proxy" if way in TLS_WAYS else "proxy")
        clients.append(opened(proxy, (path, target, behind, event), tls if way in TLS_WAYS else None))
        return clients[-1], streaming

    yield ask
    for client in clients:
        client.sock.close()


def first_piece(client: Client) -> None:
    """Reads on until something of an event's text has come."""
    while b"piece" not in client.buffer:
        assert client.more()
    client.buffer = client.buffer.rpartition(b"piece")[2]


class TestStreams:
    def test_an_event_arrives_before_the_next_one_is_sent(self, start):
        client, streaming = start(lambda streaming: streaming.gated)
        arrived = []
        for _ in range(5):
            streaming.allowed.release()
            first_piece(client)
            arrived.append(time.monotonic())
        assert all(came < sent for came, sent in zip(arrived, streaming.times[1:], strict=False))
        assert max(came - sent for came, sent in zip(arrived, streaming.times, strict=True)) < 1.0

    def test_a_client_that_leaves_in_the_middle_frees_the_backend(self, start):
        client, streaming = start(lambda streaming: streaming.one_then_waits)
        first_piece(client)
        left = time.monotonic()
        client.sock.close()
        assert streaming.left.wait(PATIENCE_S)
        assert streaming.gone - left < FREED_S

    def test_a_client_that_leaves_before_the_first_byte_frees_the_backend(self, start):
        client, streaming = start(lambda streaming: streaming.waits)
        assert streaming.begun.wait(PATIENCE_S)
        left = time.monotonic()
        client.sock.close()
        assert streaming.left.wait(PATIENCE_S)
        assert streaming.gone - left < FREED_S

    def test_a_client_that_leaves_without_having_asked_for_a_stream_frees_it_too(self, proxy, backend, path):
        streaming = Streaming(None)
        backend.on(path, streaming.waits)
        with Client(proxy.url, headers=RIGHT) as client:
            client.request("POST", f"/all{path}", CHAT)
            assert streaming.begun.wait(PATIENCE_S)
        left = time.monotonic()
        assert streaming.left.wait(PATIENCE_S)
        assert streaming.gone - left < FREED_S

    def test_a_pipelined_request_is_not_taken_for_leaving(self, client, backend, path):
        streaming = Streaming(chunk("piece"))
        backend.on(path, streaming.gated)
        client.request("POST", f"/all{path}", STREAMED)
        client.request("GET", "/healthz")
        for _ in range(5):
            streaming.allowed.release()
        assert len(client.reply().events) == 5
        assert client.reply().json() == {"status": "ok"}


FLOOD = 96  # pieces of 1 MiB: more than all buffers on the way can hold


class TestBackpressure:
    @pytest.mark.parametrize("where", ["sse", "octets", "mapped"])
    def test_a_client_that_does_not_read_stalls_its_backend_and_loses_nothing(self, proxy, backend, path, where):
        stalled = threading.Event()
        sent = []
        text = "x" * 2**20
        piece = b"data: %s\n\n" % json.dumps(token(text) if where == "mapped" else chunk(text)).encode()

        def answer(exchange: Exchange) -> None:
            exchange.start("text/event-stream" if where != "octets" else "application/octet-stream")
            for number in range(FLOOD):
                if not select.select([], [exchange.sock], [], 0.5)[1]:
                    stalled.set()
                exchange.chunk(piece)
                sent.append(number)
            if where == "mapped":
                exchange.event(token("", last=True))
            exchange.end()
            stalled.set()

        backend.on("/tgi/generate_stream" if where == "mapped" else path, answer)
        with Client(proxy.url, headers=RIGHT) as client:
            if where == "mapped":
                client.request("POST", "/v1/chat/completions", STREAMED, {"target": "tgi"})
            else:
                client.request("POST", f"/all{path}", STREAMED)
            assert stalled.wait(2 * PATIENCE_S)
            assert len(sent) < FLOOD
            assert client.reply_head().status == 200
            assert sum(data.count(b"x" * 1024) for data in client.chunks()) >= FLOOD * 1000


# --- streams that break
FRONTS = {  # front → (path, body, what its error event looks like)
    "openai": ("/v1/chat/completions", STREAMED, lambda event: "message" in event.get("error", ())),
    "openai text": (
        "/v1/completions",
        {"model": "m", "prompt": "hi", "stream": True},
        lambda event: "message" in event.get("error", ()),
    ),
    "responses": (
        "/v1/responses",
        {"model": "m", "input": "hi", "stream": True},
        lambda event: event["type"] in ("error", "response.failed"),
    ),
    "anthropic": ("/v1/messages", {**STREAMED, "max_tokens": 9}, lambda event: event["type"] == "error"),
    "gemini": (
        "/v1beta/models/m:streamGenerateContent?alt=sse",
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
        lambda event: "error" in event,
    ),
    "tgi": ("/generate_stream", {"inputs": "hi"}, lambda event: "error" in event),
}


@pytest.mark.parametrize(("where", "body", "is_error"), FRONTS.values(), ids=FRONTS.keys())
class TestBrokenStreams:
    def test_a_mapped_one_ends_with_one_error_event_of_the_clients_api(self, client, backend, where, body, is_error):
        backend.on("/tgi/generate_stream", lambda exchange: (exchange.start(), exchange.event(token("piece")), exchange.cut()))
        reply = client.ask("POST", where, body, {"target": "tgi"})
        assert reply.status == 200
        errors = [event for event in reply.events if event != "[DONE]" and is_error(event)]
        assert len(errors) == 1
        assert "[DONE]" not in reply.events
        assert '"stop"' not in reply.body.decode()

    def test_a_relayed_one_ends_with_one_error_event_of_the_clients_api(self, client, backend, path, where, body, is_error):
        plain = where.partition("?")[0]
        backend.on(plain, lambda exchange: (exchange.start(), exchange.event({"type": "x", "piece": 1}), exchange.cut()))
        reply = client.ask("POST", f"/all{where}", body)
        assert reply.status == 200
        errors = [event for event in reply.events[1:] if is_error(event)]
        assert len(errors) == 1
        assert reply.events[0]["piece"] == 1


@pytest.mark.parametrize("path", ["/own-raises", "/own-cut"])
def test_under_a_path_of_ones_own_a_break_is_told_too(client, backend, path):
    def begins(exchange):
        exchange.start()
        exchange.event({"n": 1})

    backend.on("/sse-own", lambda exchange: (begins(exchange), exchange.event({"n": 0}), exchange.end()))
    backend.on("/sse-cut", lambda exchange: (begins(exchange), exchange.cut()))
    reply = client.ask("POST", path, STREAMED, {"target": "own"})
    assert reply.status == 200
    assert reply.events[0] == {"n": 1.0}
    assert [event["error"]["type"] for event in reply.events[1:]] == ["api_error"]


class TestBrokenBytes:
    """A relayed stream whose break is not between two events."""

    def test_the_error_event_stands_alone_behind_half_an_event(self, client, backend, path):
        backend.on(path, lambda exchange: (exchange.start(), exchange.chunk(b'data: {"a": 1}\n\ndata: {"b": '), exchange.cut()))
        last = client.ask("POST", f"/all{path}", STREAMED).body.rstrip().rpartition(b"\n\n")[2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["message"]

    def test_it_is_whole_where_the_backend_had_announced_a_length(self, client, backend, path):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 100\r\n\r\n"
        backend.on(path, lambda exchange: (exchange.send(head + b'data: {"a": 1}\n\n'), exchange.cut()))
        reply = client.ask("POST", f"/all{path}", STREAMED)
        assert reply["content-length"] is None
        assert "message" in reply.events[-1]["error"]

    def test_a_compressed_one_is_not_asked_for_and_ends_without_an_end(self, client, backend, path):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
        head += b"transfer-encoding: chunked\r\n\r\n"
        squeezed = gzip.compress(b'data: {"a": 1}\n\n')
        backend.on(path, lambda exchange: (exchange.send(head), exchange.chunk(squeezed), exchange.cut()))
        reply = client.ask("POST", f"/all{path}", STREAMED, {"accept-encoding": "gzip"})
        assert backend.asked_for(path)[0]["accept-encoding"] == "identity"
        assert (reply.body, reply.whole) == (squeezed, False)


def test_ollamas_stream_ends_with_an_error_line(client, backend):
    backend.on("/tgi/generate_stream", lambda exchange: (exchange.start(), exchange.event(token("piece")), exchange.cut()))
    reply = client.ask("POST", "/api/chat", CHAT, {"target": "tgi"})
    lines = [json.loads(line) for line in reply.body.splitlines()]
    assert [list(line) for line in lines if "error" in line] == [["error"]]
    assert not any(line.get("done") for line in lines)


def test_a_backend_that_falls_silent_in_a_stream_ends_it_visibly(client, backend, path):
    streaming = Streaming(chunk("piece"))
    backend.on(path, streaming.one_then_waits)
    reply = client.ask("POST", f"/slow{path}", STREAMED)  # 0.3 s of silence
    assert "error" in reply.events[-1]
    assert streaming.left.wait(PATIENCE_S)


# --- mappers
class TestMappers:
    def test_one_without_a_stream_serves_streaming_clients(self, client, backend):
        backend.on("/bare", lambda exchange: exchange.reply(200, {"said": "Hello"}))
        reply = client.ask("POST", "/v1/chat/completions", STREAMED, {"target": "bare"})
        assert (reply["content-type"] or "").startswith("text/event-stream")
        deltas = [event["choices"][0] for event in reply.events if event != "[DONE]" and event["choices"]]
        assert "".join(choice["delta"].get("content") or "" for choice in deltas) == "Hello"
        assert deltas[-1]["finish_reason"] == "stop"
        assert reply.events[-1] == "[DONE]"
        assert backend.asked_for("/bare")[-1].json() == {"q": "hi", "model": "m"}

    def test_one_that_fails_on_a_request_names_itself_the_field_and_the_target(self, client):
        reply = client.ask("POST", "/v1/chat/completions", CHAT, {"target": "raises-in"})
        error = reply.json()["error"]
        assert reply.status == 400
        assert all(word in error["message"] for word in ("reqRaises", "'temperatur'", "raises-in"))
        assert error["param"] == "temperatur"

    def test_one_that_fails_on_an_answer_names_itself_and_the_target(self, client, backend):
        backend.on("/bare", lambda exchange: exchange.reply(200, {"said": "Hello"}))
        reply = client.ask("POST", "/v1/chat/completions", CHAT, {"target": "raises-out"})
        assert reply.status == 502
        assert all(word in reply.json()["error"]["message"] for word in ("ansRaises", "raises-out", "division by zero"))
        assert "Traceback" not in reply.body.decode()

    def test_one_that_fails_in_a_stream_names_itself(self, client, backend):
        backend.on("/sse", lambda exchange: (exchange.start(), exchange.event({}), exchange.end()))
        reply = client.ask("POST", "/v1/chat/completions", STREAMED, {"target": "raises-stream"})
        assert "streamRaises" in reply.body.decode()
        assert "[DONE]" not in reply.body.decode()

    def test_an_empty_body_is_a_clear_400(self, client):
        reply = client.ask("POST", "/v1/chat/completions", b"", {"target": "bare"})
        assert reply.status == 400
        assert "empty" in reply.json()["error"]["message"]


# --- waiting
class TestWaiting:
    def test_it_ticks_while_the_backend_thinks_and_not_before(self):
        ours, backend = socket.socketpair()
        with ours, backend:
            ticks: list[float] = []

            def tick() -> None:
                ticks.append(time.monotonic())
                if len(ticks) == 3:
                    backend.send(b"x")

            waiting = Waiting(None)
            waiting.tick, waiting.tick_s = tick, 0.05
            began = time.monotonic()
            waiting.wait(ours, False, began + PATIENCE_S)
            assert len(ticks) == 3
            assert ticks[0] - began >= 0.05
            assert all(after - before >= 0.05 for before, after in itertools.pairwise(ticks))

    def test_it_is_ten_seconds_between_ticks_and_none_without_a_stream(self):
        waiting = Waiting(None)
        assert waiting.tick_s == 10.0
        assert waiting.tick is None

    def test_a_deadline_ends_it_whatever_ticks(self):
        ours, backend = socket.socketpair()
        with ours, backend:
            waiting = Waiting(None)
            waiting.tick, waiting.tick_s = (lambda: None), 0.01
            with pytest.raises(BackendTimeout):
                waiting.wait(ours, False, time.monotonic() + 0.05)
