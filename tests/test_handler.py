"""The life of a request, as clients see it: who is let in, what is read, how a refusal looks in each API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Backend, Client, Reply, ask, value_of

RIGHT = {"authorization": f"Bearer {KEY}"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
CONFIG = """
system: {{limits: {{body: 1MiB}}, deadlines: {{header: 1, body: 2}}}}
cerbere: {{max_tries: 3, whitelist: [127.0.0.1, 127.0.9.0/24], trusted_proxies: [127.0.0.1], blacklist: [198.51.100.0/24]}}
targets:
  default: main
  main:
    url: {url}
    envkey: UPSTREAM_KEY
    mapping:
      /echo:
      /v1/chat/completions: /echo
      /v1/messages: /echo
      /v1beta/models/{{model}}:generateContent: /echo
      /api/chat: /echo
      /generate: /echo
      /api/*: /api/*
      GET /only-get: /echo
  demo: {{url: "demo://", dialect: openai}}
  all: {{url: "{url}", route: /all, envkey: UPSTREAM_KEY}}
"""


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


@pytest.fixture(scope="module")
def proxy(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    config = CONFIG.format(url=backend.url)
    with Proxy(tmp_path_factory.mktemp("handler"), config, env={"UPSTREAM_KEY": "upstream-secret"}) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    with Client(proxy.url, headers=RIGHT) as client:
        yield client


@pytest.fixture
def stranger(proxy: Proxy) -> Iterator[Client]:
    """A client without a key."""
    with Client(proxy.url) as client:
        yield client


def raw(proxy: Proxy, data: bytes) -> Reply:
    with Client(proxy.url) as client:
        client.send(data)
        return client.reply()


def seen(reply: Reply) -> dict[str, Any]:
    """What the echoing backend saw."""
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json()
    return found


# --- the error shape of the client's API
SHAPES = [  # front, path, where the message stands
    ("openai", "/v1/chat/completions", lambda body: body["error"]["message"]),
    ("openai", "/no-api-has-this-path", lambda body: body["error"]["message"]),
    ("responses", "/v1/responses", lambda body: body["error"]["message"]),
    ("anthropic", "/v1/messages", lambda body: body["error"]["message"]),
    ("gemini", "/v1beta/models/g:generateContent", lambda body: body["error"]["message"]),
    ("ollama", "/api/chat", lambda body: body["error"]),
    ("tgi", "/generate", lambda body: body["error"]),
]


@pytest.mark.parametrize(("front", "path", "message"), SHAPES, ids=[f"{front} {path}" for front, path, _ in SHAPES])
class TestErrorShapes:
    def test_a_missing_key_is_401_in_the_clients_own_shape(self, proxy, front, path, message):
        reply = ask(proxy.url, "POST", path, CHAT)
        assert reply.status == 401
        assert (reply["www-authenticate"] or "").startswith("Bearer")
        assert reply["content-type"] == "application/json"
        assert "key" in message(reply.json())

    def test_an_unknown_target_is_404_and_named(self, client, front, path, message):
        reply = client.ask("POST", path, CHAT, {"target": "nowhere"})
        assert reply.status == 404
        assert "nowhere" in message(reply.json())


class TestShapesInDetail:
    def test_anthropics_has_a_type_and_a_request_id(self, stranger):
        reply = stranger.ask("POST", "/v1/messages", CHAT)
        body = reply.json()
        assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")
        assert body["request_id"] == reply["x-request-id"]

    def test_geminis_has_code_and_status(self, stranger):
        body = stranger.ask("POST", "/v1beta/models/g:generateContent", CHAT).json()
        assert (body["error"]["code"], body["error"]["status"]) == (401, "UNAUTHENTICATED")

    def test_openais_has_type_param_and_code(self, client):
        body = client.ask("POST", "/v1/chat/completions", CHAT, {"authorization": "Bearer wrong"} | {}).json()
        assert set(body["error"]) == {"message", "type", "param", "code"}

    def test_tgis_has_an_error_type(self, stranger):
        assert set(stranger.ask("POST", "/generate", {"inputs": "x"}).json()) == {"error", "error_type"}

    @pytest.mark.parametrize(
        ("headers", "where"),
        [({"anthropic-version": "2023-06-01"}, "type"), ({"x-goog-api-key": "wrong"}, "error"), ({}, "error")],
    )
    def test_a_shared_path_takes_the_shape_from_the_headers(self, stranger, headers, where):
        body = stranger.ask("GET", "/v1/models", headers=headers).json()
        assert where in body
        assert ("status" in body["error"]) == ("x-goog-api-key" in headers)


# --- keys
class TestKeys:
    @pytest.mark.parametrize(
        "headers",
        [
            {"authorization": f"Bearer {KEY}"},
            {"authorization": f"bearer {KEY}"},
            {"Authorization": f"Bearer {KEY}"},
            {"x-api-key": KEY},
            {"x-goog-api-key": KEY},
            {"api-key": KEY},
            {"x-mooltiproxy-key": KEY},
            {"x-api-key": KEY, "authorization": f"Bearer {KEY}"},
        ],
        ids=lambda headers: "+".join(headers),
    )
    def test_it_is_taken_wherever_clients_send_it_and_never_forwarded(self, stranger, backend, headers):
        found = seen(stranger.ask("POST", "/echo", CHAT, headers))
        assert KEY not in json.dumps(found)
        assert value_of(found["fields"], "authorization") == "Bearer upstream-secret"
        assert not {"x-api-key", "x-goog-api-key", "api-key", "x-mooltiproxy-key", "target"} & dict(found["fields"]).keys()

    @pytest.mark.parametrize(
        "headers",
        [
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": f"Bearer {KEY[:-1]}"},
            {"authorization": "Bearer "},
            {"authorization": "Bearer"},
            {"authorization": KEY},
            {"authorization": f"Basic {KEY}"},
            {"authorization": "Bearer \xff\xfe"},
            {"x-api-key": ""},
            {"x-api-key": KEY, "authorization": "Bearer wrong"},
            {"x-api-key": "wrong", "authorization": f"Bearer {KEY}"},
            {"x-api-key": KEY, "x-goog-api-key": "wrong"},
            {"x-mooltiproxy-key": "wrong", "authorization": f"Bearer {KEY}"},
        ],
        ids=str,
    )
    def test_one_wrong_key_is_401_whatever_stands_beside_it(self, stranger, backend, headers):
        before = len(backend.asked)
        reply = stranger.ask("POST", "/echo", CHAT, headers)
        assert reply.status == 401
        assert reply["www-authenticate"]
        assert len(backend.asked) == before

    def test_it_leaves_in_no_header_and_no_query(self, client):
        path = f"/echo?key={KEY}&a=1"
        found = seen(client.ask("GET", path, headers={"x-custom": f"my {KEY}", "cookie": f"k={KEY}", "referer": f"/?{KEY}"}))
        assert KEY not in json.dumps(found)
        assert found["path"] == "/echo?a=1"

    def test_a_percent_encoded_one_does_not_leave_in_the_query(self, client):
        encoded = "".join(f"%{byte:02x}" for byte in KEY.encode())
        assert encoded not in seen(client.ask("GET", f"/echo?key={encoded}"))["path"]

    def test_no_key_is_in_an_error_or_in_the_log(self, proxy, client):
        assert KEY not in client.ask("GET", "/nowhere").body.decode()
        assert client.ask("POST", "/echo", CHAT, {"x-api-key": "a-wrong-key"}).status == 401
        assert KEY not in proxy.log
        assert "a-wrong-key" not in proxy.log


# --- bans: addresses of their own, through the trusted proxy 127.0.0.1
def come_from(proxy: Proxy, address: str, key: str | None) -> Reply:
    headers = {"x-forwarded-for": address} | ({"authorization": f"Bearer {key}"} if key else {})
    return ask(proxy.url, "GET", "/echo", headers=headers)


class TestCerbere:
    def test_an_address_is_banned_after_max_tries_wrong_keys(self, proxy):
        statuses = [come_from(proxy, "203.0.113.1", "wrong").status for _ in range(3)]
        assert statuses == [401, 401, 401]
        banned = come_from(proxy, "203.0.113.1", KEY)
        assert banned.status == 403
        assert banned.json()["error"]["code"] == "address_banned"
        assert come_from(proxy, "203.0.113.2", KEY).status == 200

    def test_a_right_key_clears_the_count(self, proxy):
        for _ in range(3):
            assert come_from(proxy, "203.0.113.3", "wrong").status == 401
            assert come_from(proxy, "203.0.113.3", KEY).status == 200

    def test_a_missing_key_does_not_count(self, proxy):
        assert {come_from(proxy, "203.0.113.4", None).status for _ in range(5)} == {401}
        assert come_from(proxy, "203.0.113.4", KEY).status == 200

    def test_the_blacklist_is_refused_with_a_civil_403(self, proxy):
        refused = come_from(proxy, "198.51.100.7", KEY)
        assert refused.status == 403
        assert refused.json()["error"]["message"]

    def test_the_whitelist_is_never_banned(self, proxy):
        for _ in range(5):
            assert come_from(proxy, "127.0.9.9", "wrong").status == 401
        assert come_from(proxy, "127.0.9.9", KEY).status == 200

    def test_only_the_nearest_untrusted_address_counts(self, proxy):
        forged = "198.51.100.7, 203.0.113.5"  # a client wrote the first one itself
        assert come_from(proxy, forged, KEY).status == 200
        assert come_from(proxy, "203.0.113.5, 198.51.100.7", KEY).status == 403

    def test_an_ipv4_address_mapped_into_ipv6_is_the_same_one(self, proxy):
        assert come_from(proxy, "::ffff:198.51.100.7", KEY).status == 403


def test_only_lets_its_networks_in_and_the_blacklist_beats_the_whitelist(tmp_path):
    config = """
cerbere: {only: [127.0.0.0/8], blacklist: [127.0.0.3], whitelist: [127.0.0.3], trusted_proxies: [127.0.0.1]}
targets: {default: demo, demo: {url: "demo://", dialect: openai}}
"""
    with Proxy(tmp_path, config) as proxy:
        path = "/v1/models"
        statuses = [
            ask(proxy.url, "GET", path, headers={**RIGHT, "x-forwarded-for": address}).status
            for address in ("127.0.0.2", "127.0.0.3", "192.0.2.1")
        ]
    assert statuses == [200, 403, 403]


def test_a_ban_ends_after_ban_s_and_forwarded_addresses_of_strangers_are_not_believed(tmp_path):
    config = 'cerbere: {max_tries: 1, ban_s: 0.2}\ntargets: {default: demo, demo: {url: "demo://", dialect: openai}}'
    with Proxy(tmp_path, config) as proxy:
        wrong = {"authorization": "Bearer wrong", "x-forwarded-for": "203.0.113.9"}
        assert ask(proxy.url, "GET", "/v1/models", headers=wrong).status == 401
        assert ask(proxy.url, "GET", "/v1/models", headers=RIGHT).status == 403  # by the socket's address
        while (reply := ask(proxy.url, "GET", "/v1/models", headers=RIGHT)).status == 403:
            pass
        assert reply.status == 200


def test_networks_in_open_to_need_no_key(tmp_path):
    config = """
system: {open_to: [127.0.0.1/32]}
cerbere: {trusted_proxies: [127.0.0.1]}
targets: {default: demo, demo: {url: "demo://", dialect: openai}}
"""
    with Proxy(tmp_path, config) as proxy:
        assert ask(proxy.url, "GET", "/v1/models").status == 200
        assert ask(proxy.url, "GET", "/v1/models", headers={"authorization": "Bearer ollama"}).status == 200
        assert ask(proxy.url, "GET", "/v1/models", headers={"x-forwarded-for": "203.0.113.1"}).status == 401


def test_a_page_whose_name_leads_to_this_machine_is_not_let_in_for_that(tmp_path):
    """DNS rebinding: a GET to the page's own name has no Origin that would tell."""
    config = 'system: {open_to: [127.0.0.1]}\ntargets: {default: demo, demo: {url: "demo://", dialect: openai}}\n'
    with Proxy(tmp_path, config) as proxy, Client(proxy.url) as client:
        for client.host in ("page.example:8000", "localhost.page.example", "127.0.0.1.page.example", ""):
            refused = client.ask("GET", "/v1/models")
            assert (refused.status, refused.json()["error"]["code"]) == (403, "host_refused"), client.host
            assert client.ask("GET", "/v1/models", headers=RIGHT).status == 200
        for client.host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "app.localhost"):
            assert client.ask("GET", "/v1/models").status == 200, client.host


# --- what needs no key
class TestWithoutAKey:
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize("path", ["/", "/healthz"])
    def test_a_look_at_the_root_and_at_health_is_200(self, stranger, method, path):
        reply = stranger.ask(method, path)
        assert reply.status == 200
        assert int(reply["content-length"] or 0) > 0
        if method == "GET":
            assert reply.json()["status"] == "ok"

    def test_a_post_to_the_root_is_not_free(self, stranger):
        assert stranger.ask("POST", "/", {"inputs": "hi"}).status == 401

    def test_options_is_answered_and_echoes_what_was_asked(self, stranger):
        asked = {
            "origin": "https://page.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, x-stainless-os",
        }
        reply = stranger.ask("OPTIONS", "/v1/chat/completions", headers=asked)
        assert reply.status == 200
        assert reply["access-control-allow-origin"] == "https://page.example"
        assert reply["access-control-allow-methods"] == "POST"
        assert reply["access-control-allow-headers"] == "authorization, x-stainless-os"

    def test_options_without_an_origin_allows_all(self, stranger):
        reply = stranger.ask("OPTIONS", "/whatever")
        allowed = [reply[f"access-control-allow-{what}"] for what in ("origin", "methods", "headers")]
        assert (reply.status, allowed) == (200, ["*", "*", "*"])

    def test_refusals_and_errors_carry_allow_origin_too(self, proxy):
        page = {"origin": "https://page.example"}
        for headers, status in (({}, 401), (RIGHT, 404)):
            reply = ask(proxy.url, "GET", "/nowhere", headers={**page, **headers})
            assert reply.status == status
            assert reply["access-control-allow-origin"] == "https://page.example"
            assert reply["vary"] == "Origin"

    def test_a_header_cannot_be_split_by_what_is_echoed(self, stranger):
        stranger.send(b"OPTIONS / HTTP/1.1\r\nhost: x\r\norigin: https://a\rset-cookie: b=c\r\n\r\n")
        reply = stranger.reply()
        assert reply.status == 400
        assert reply["set-cookie"] is None


# --- targets and paths
class TestWhereItGoes:
    def test_target_default_means_the_default(self, client):
        assert seen(client.ask("GET", "/echo", headers={"target": "default"}))["path"] == "/echo"

    def test_the_target_header_wins_over_the_default(self, client):
        reply = client.ask("POST", "/v1/chat/completions", CHAT, {"target": "demo"})
        assert "demo" in reply.json()["choices"][0]["message"]["content"]

    def test_an_unmapped_path_is_404_and_named(self, client):
        reply = client.ask("GET", "/v1/unheard-of")
        assert reply.status == 404
        assert "/v1/unheard-of" in reply.json()["error"]["message"]

    def test_a_path_mapped_for_another_method_only_is_404(self, client):
        assert client.ask("GET", "/only-get").status == 200
        assert client.ask("POST", "/only-get", CHAT).status == 404

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "QUERY"])
    def test_every_method_is_served(self, client, backend, method):
        reply = client.ask(method, "/echo", CHAT if method not in ("GET", "HEAD", "DELETE") else None)
        assert reply.status == 200
        assert backend.asked[-1].method == method

    def test_a_query_does_not_make_a_path_unmapped(self, client):
        assert seen(client.ask("POST", "/v1/chat/completions?beta=true", CHAT))["path"] == "/echo?beta=true"

    @pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions"])
    def test_a_key_serves_with_and_without_v1(self, client, path):
        assert client.ask("POST", path, CHAT).status == 200

    @pytest.mark.parametrize(
        "path", ["/api/../echo", "/api/%2e%2e/echo", "/api/%252e%252e/x", "/api//x", "/api/x;y", "/api/a\\b"]
    )
    def test_no_way_of_writing_a_path_leaves_its_pattern(self, client, backend, path):
        before = len(backend.asked)
        assert client.ask("GET", path).status == 404
        assert len(backend.asked) == before

    def test_an_absolute_url_keeps_its_path_only(self, client, backend):
        assert seen(client.ask("GET", "http://169.254.169.254/echo?x=1"))["path"] == "/echo?x=1"


# --- connections
class TestConnections:
    def test_they_serve_one_request_after_the_other(self, client):
        for _ in range(3):
            reply = client.ask("POST", "/echo", CHAT)
            assert (reply.status, reply["connection"]) == (200, None)

    def test_they_outlive_refusals_whose_body_was_read(self, client):
        assert client.ask("POST", "/nowhere", CHAT).status == 404
        assert client.ask("POST", "/echo", {"model": "m"}, {"x-api-key": "wrong"}).status == 401
        assert client.ask("POST", "/echo", CHAT).status == 200

    def test_pipelined_requests_are_answered_in_order(self, client):
        for number in range(5):
            client.request("POST", f"/echo?n={number}", {"n": number})
        answers = [seen(client.reply()) for _ in range(5)]
        assert [json.loads(answer["body"])["n"] for answer in answers] == list(range(5))
        assert [answer["path"] for answer in answers] == [f"/echo?n={number}" for number in range(5)]

    def test_connection_close_is_kept(self, client):
        reply = client.ask("GET", "/echo", headers={"connection": "keep-alive, Close"})
        assert reply["connection"] == "close"
        assert client.ended()

    def test_http_1_0_is_served_without_chunks_and_closed(self, proxy, backend):
        backend.on("/stream10", lambda exchange: (exchange.start(), exchange.event({"n": 1}), exchange.end()))
        head = f"HTTP/1.0\r\nauthorization: Bearer {KEY}\r\n\r\n"
        with Client(proxy.url) as client:
            client.send(f"GET /all/stream10 {head}".encode())
            reply = client.reply()
        assert (reply.status, reply["transfer-encoding"], reply["connection"]) == (200, None, "close")
        assert reply.body == b'data: {"n": 1}\n\n'

    def test_expect_100_continue_is_told_when_the_body_is_wanted(self, client):
        client.request(
            "POST", "/echo", headers={"expect": "100-continue", "content-length": "2", "content-type": "application/json"}
        )
        assert client.reply().status == 100
        client.send(b"{}")
        assert seen(client.reply())["body"] == "{}"

    def test_expect_100_continue_is_refused_before_the_body(self, stranger):
        stranger.request("POST", "/echo", headers={"expect": "100-continue", "content-length": "1000000"})
        assert stranger.reply().status == 401
        assert stranger.ended()

    def test_another_expectation_is_417(self, client):
        assert client.ask("GET", "/echo", headers={"expect": "tea"}).status == 417

    def test_head_has_the_headers_and_no_body(self, client, backend):
        client.request("HEAD", "/echo")
        reply = client.reply(bodiless=True)
        assert (reply.status, int(reply["content-length"] or 0) > 0) == (200, True)
        assert client.ask("GET", "/echo").status == 200  # nothing of a body stood in the way

    def test_head_of_a_refusal_has_no_body_either(self, stranger):
        stranger.request("HEAD", "/echo")
        assert stranger.reply(bodiless=True).status == 401
        assert stranger.ask("GET", "/healthz").status == 200

    def test_every_reply_has_an_id_of_its_own(self, client):
        ids = {client.ask("GET", path)["x-request-id"] for path in ("/echo", "/nowhere", "/healthz")}
        assert len(ids) == 3
        assert None not in ids


# --- bodies
class TestBodies:
    def test_a_chunked_one_is_read(self, client):
        client.request("POST", "/echo", headers={"transfer-encoding": "chunked", "content-type": "application/json"})
        client.send(b'3\r\n{"a\r\n4;ext=1\r\n": 1\r\n1\r\n}\r\n0\r\ntrailer: x\r\n\r\n')
        assert seen(client.reply())["body"] == '{"a": 1}'
        assert client.ask("GET", "/echo").status == 200

    def test_one_that_is_announced_too_large_is_413(self, client, backend):
        before = len(backend.asked)
        client.request("POST", "/echo", headers={"content-length": str(2**20 + 1), "content-type": "application/json"})
        assert client.reply().status == 413
        assert client.ended()
        assert len(backend.asked) == before

    def test_a_chunked_one_that_grows_too_large_is_413(self, client):
        client.request("POST", "/echo", headers={"transfer-encoding": "chunked", "content-type": "application/json"})
        piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        client.send(piece * 17)
        assert client.reply().status == 413

    def test_a_refusal_reaches_a_client_that_is_still_sending(self, stranger):
        stranger.request("POST", "/echo", headers={"content-length": "1000000"})
        stranger.send(b"x" * 30_000)
        assert stranger.reply().status == 401

    def test_one_that_comes_short_is_never_forwarded(self, client, backend):
        before = len(backend.asked)
        client.request("POST", "/echo", headers={"content-length": "10", "content-type": "application/json"})
        client.send(b"{}")
        client.sock.shutdown(1)
        assert client.reply().status == 400
        assert len(backend.asked) == before

    def test_a_name_that_stands_twice_in_a_mapped_body_is_400(self, client):
        body = b'{"model": "a", "messages": [], "model": "b"}'
        reply = client.ask("POST", "/v1/chat/completions", body, {"target": "demo"})
        assert reply.status == 400
        assert "'model'" in reply.json()["error"]["message"]

    @pytest.mark.parametrize(
        "body",
        [b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"n": ' + b"9" * 6000 + b"}", b'{"n": NaN}'],
        ids=["cut", "not UTF-8", "deep", "digits", "NaN"],
    )
    def test_bad_json_is_a_400_that_says_so(self, client, body):
        reply = client.ask("POST", "/v1/chat/completions", body, {"target": "demo"})
        assert reply.status == 400
        assert "JSON" in reply.json()["error"]["message"]

    def test_a_charset_is_no_reason_not_to_map(self, client):
        kind = {"content-type": "application/json; charset=utf-8", "target": "demo"}
        assert client.ask("POST", "/v1/chat/completions", CHAT, kind).status == 200


# --- strict reading
GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"
REFUSED = {
    "no version": (b"GET /\r\n\r\n", 400),
    "http/2": (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505),
    "two spaces": (b"GET  / HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    "two hosts": (GET + b"Host: y\r\n\r\n", 400),
    "bare LF": (b"GET /healthz HTTP/1.1\nhost: x\n\n", 400),
    "bare CR in a value": (GET + b"a: b\rc: d\r\n\r\n", 400),
    "NUL": (GET + b"a: b\0c\r\n\r\n", 400),
    "space before the colon": (GET + b"a : b\r\n\r\n", 400),
    "folded line": (GET + b"a: b\r\n c\r\n\r\n", 400),
    "no colon": (GET + b"abc\r\n\r\n", 400),
    "name that is no token": (GET + b"a(b): c\r\n\r\n", 400),
    "length +5": (POST + b"content-length: +5\r\n\r\n{}   ", 400),
    "length 5_0": (POST + b"content-length: 5_0\r\n\r\n{}", 400),
    "length twice": (POST + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}", 400),
    "length and chunked": (POST + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "gzip, chunked": (POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "chunked twice": (POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked on 1.0": (POST.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunk size 0x2": (POST + b"transfer-encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n", 400),
    "chunk without CRLF": (POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n", 400),
    "authorization twice": (POST + b"authorization: Bearer x\r\n\r\n", 400),
    "target twice": (POST + b"target: a\r\ntarget: b\r\n\r\n", 400),
    "content-type twice": (POST + b"content-type: a/b\r\ncontent-type: c/d\r\n\r\n", 400),
    "long line": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414),
    "101 fields": (GET + b"a: b\r\n" * 101 + b"\r\n", 431),
    "64 KiB of fields": (GET + b"a: " + b"b" * 70_000 + b"\r\n\r\n", 431),
}


class TestStrictReading:
    @pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED.keys())
    def test_what_two_parsers_could_read_in_two_ways_is_refused_and_the_connection_closed(self, proxy, backend, data, status):
        before = len(backend.asked)
        with Client(proxy.url) as client:
            client.send(data)
            reply = client.reply()
            assert (reply.status, reply["connection"]) == (status, "close")
            assert reply.json()["error"]["message"]
            assert client.ended()
        assert len(backend.asked) == before

    def test_an_empty_line_before_a_request_is_tolerated(self, proxy):
        assert raw(proxy, b"\r\n" + GET + b"\r\n").status == 200

    def test_a_header_that_does_not_come_is_given_up(self, proxy):
        assert raw(proxy, GET).status == 408  # after deadlines.header, 1 s here

    def test_a_connection_on_which_nothing_comes_is_closed_without_a_word(self, proxy):
        with Client(proxy.url) as client:
            assert client.ended()

    def test_a_body_that_does_not_come_is_given_up(self, proxy):
        reply = raw(proxy, POST + b"content-type: application/json\r\ncontent-length: 10\r\n\r\n{")
        assert reply.status == 408
