"""The console's requests: who may ask, whose rows they see, what is masked, what cannot be changed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest

from proxy.console import ROUTES
from proxy.console.config import FIXED
from proxy.settings.schema import json_schema
from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Backend, Client, Exchange, Reply, ask
from tests.configs import Load, faults, with_target
from tests.configs import load as load

ANN, BOB, EVE = "ann-key-0123456789", "bob-key-0123456789", "eve-key-0123456789"
CONFIG = """
cerbere: {{max_tries: 1000}}
targets:
  default: main
  main:
    url: "{url}"
    dialect: openai
    key: sk-upstream-secret-000001
    headers: {{x-api-token: header-secret, x-plain: shown}}
  other: {{url: "{url}/other", dialect: openai}}
keys:
  ann: {{key: {ann}, console: true, limits: 1000/minute, tokens: 100000/day}}
  bob: {{sha256: "{bob}", console: true, targets: [main]}}
  eve: {{key: {eve}}}
records: {{calls: {{database: "sqlite:///calls.db"}}, metrics: true}}
console: {{enabled: true, edit: true, presets: {{Coder: You write code.}}}}
"""
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def answer(exchange: Exchange) -> None:
    """The last message again; as a stream that waits in its middle when it says `wait`."""
    body = exchange.asked.json()
    said = body["messages"][-1]["content"]
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    if not body.get("stream"):
        message = {"role": "assistant", "content": f"you said {said}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        exchange.reply(200, {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})
        return
    exchange.start()
    for piece in ("you ", "said "):
        exchange.event({"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
    if said == "wait":
        exchange.wait_until_gone()
        return
    exchange.event({"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": said}, "finish_reason": "stop"}]})
    exchange.event(b"[DONE]")
    exchange.end()


def config_for(backend: Backend) -> str:
    bob = hashlib.sha256(BOB.encode()).hexdigest()
    return CONFIG.format(url=backend.url, ann=ANN, bob=bob, eve=EVE)


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with Backend() as made:
        made.on("/v1/chat/completions", answer)
        made.on("/other/chat/completions", answer)
        yield made


@pytest.fixture(scope="module")
def proxy(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("console"), config_for(backend)) as running:
        yield running


class Visitor:
    """A browser as far as requests go: it keeps its cookie, and sends its token and its origin with what it changes."""

    def __init__(self, proxy: Proxy, key: str) -> None:
        self.url, self.cookie, self.csrf = proxy.url, "", ""
        reply = self.send("login", {"key": key})
        assert reply.status == 200, reply.body
        self.set_cookie = reply["set-cookie"] or ""
        self.cookie = next(f"{name}={crumb.value}" for name, crumb in SimpleCookie(self.set_cookie).items())
        self.csrf = self.get("session")["csrf"]

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> Reply:
        own = {"cookie": self.cookie, "origin": self.url, "sec-fetch-site": "same-origin", "x-mooltiproxy-csrf": self.csrf}
        given = {name: value for name, value in {**own, **headers}.items() if value}
        return ask(self.url, method, f"/console/api/{path}", body, given)

    def get(self, path: str) -> Any:
        reply = self.request("GET", path)
        assert reply.status == 200, reply.body
        return reply.json()

    def send(self, path: str, body: Any, headers: Mapping[str, str] = {}) -> Reply:
        return self.request("POST", path, body, headers)

    def chat(self, content: str, **more: Any) -> Reply:
        return self.send(
            "relay/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": content}], **more}
        )


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def eventually(look: Callable[[], Any]) -> Any:
    """What `look` gives once it gives something."""
    until = time.monotonic() + 10
    while not (found := look()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
    return found


def live(visitor: Visitor, wanted: Callable[[Any], bool], query: str = "") -> list[Any]:
    """The calls of the first live event that is as wanted."""
    with Client(visitor.url) as client:
        client.request("GET", f"/console/api/live{query}", headers={"cookie": visitor.cookie})
        assert client.reply_head().status == 200
        for chunk in client.chunks():
            if chunk.startswith(b"data: ") and wanted(calls := json.loads(chunk[6:])["calls"]):
                return list(calls)
    raise AssertionError("the stream ended")


# --- who


def test_the_console_is_off_unless_it_is_configured(tmp_path: Path) -> None:
    with Proxy(tmp_path, 'targets: {default: d, d: {url: "demo://"}}') as proxy:
        for path in ("/console", "/console/", "/console/app.js", "/console/api/session"):
            assert ask(proxy.url, "GET", path, headers=proxy.headers).status == 404
            assert ask(proxy.url, "GET", path).status == 401


@pytest.mark.parametrize("where", ["mapping: {/console: }", "mapping: {'/console/*': '/x/*'}", "route: /console"])
def test_a_target_cannot_have_the_consoles_paths(load: Load, where: str) -> None:
    text = with_target(f"url: http://h:1\n{where}", "console: {enabled: true}\n")
    assert "belongs to the console" in faults(load, text)[0]
    load(with_target(f"url: http://h:1\n{where}", "console: {enabled: false}\n"))


def test_every_page_is_fenced_in_and_whole(proxy: Proxy) -> None:
    index = ask(proxy.url, "GET", "/console/")
    assert ask(proxy.url, "GET", "/console")["location"] == "/console/"
    assert index.status == 200
    for name in re.findall(r'(?:src|href)="/console/([\w.]+)"', index.body.decode()):
        reply = ask(proxy.url, "GET", f"/console/{name}", headers={"origin": "http://elsewhere"})
        assert reply.status == 200
        policy = reply["content-security-policy"] or ""
        assert policy.startswith(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"
        )
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert (reply["x-content-type-options"], reply["referrer-policy"], reply["cache-control"]) == (
            "nosniff",
            "no-referrer",
            "no-store",
        )
        assert reply["access-control-allow-origin"] is None
    assert not re.search(rb"<script(?![^>]*\ssrc=)|<style|\son\w+=|style=", index.body)


@pytest.mark.parametrize(
    "path", ["/console/__init__.py", "/console/../config.yaml", "/console/%2e%2e/config.yaml", "/console/api.py"]
)
def test_only_the_pages_files_are_served(proxy: Proxy, path: str) -> None:
    assert ask(proxy.url, "GET", path).status in (400, 401, 404)


@pytest.mark.parametrize("route", [route for route in ROUTES if route.who != "anyone"], ids=lambda route: route.path)
def test_nothing_is_told_without_a_login(proxy: Proxy, route: Any) -> None:
    path = "/console" + route.path
    assert (
        ask(proxy.url, route.method, path, {} if route.method == "POST" else None).json()["error"]["code"] == "login_required"
    )
    forged = {"cookie": f"mooltiproxy_console=bWFzdGVy.9999999999.{'0' * 32}.{'0' * 64}"}
    assert ask(proxy.url, route.method, path, {} if route.method == "POST" else None, forged).status == 401
    assert ask(proxy.url, route.method, path, {} if route.method == "POST" else None, bearer(EVE)).status == 403


def test_a_login_gives_a_cookie_that_scripts_and_other_sites_cannot_use(proxy: Proxy) -> None:
    visitor = Visitor(proxy, KEY)
    assert visitor.set_cookie.endswith("Path=/console; Max-Age=28800; HttpOnly; SameSite=Strict")
    assert visitor.get("session")["name"] == "master"
    assert Visitor(proxy, ANN).get("session")["name"] == "ann"


def test_a_cookie_is_secure_where_tls_ends_before_the_proxy(tmp_path: Path) -> None:
    config = 'targets: {default: d, d: {url: "demo://"}}\nconsole: {enabled: true}\ncerbere: {trusted_proxies: [127.0.0.1]}\n'
    with Proxy(tmp_path, config) as proxy:
        reply = ask(proxy.url, "POST", "/console/api/login", {"key": KEY}, {"x-forwarded-proto": "https"})
        assert (reply["set-cookie"] or "").endswith("; Secure")


def test_a_key_without_console_cannot_log_in(proxy: Proxy) -> None:
    assert ask(proxy.url, "POST", "/console/api/login", {"key": EVE}).json()["error"]["code"] == "no_console"


def test_wrong_keys_bring_a_ban_also_where_no_key_is_needed(tmp_path: Path) -> None:
    config = 'targets: {default: d, d: {url: "demo://"}}\nconsole: {enabled: true}\nsystem: {open_to: [127.0.0.1]}\n'
    with Proxy(tmp_path, config) as proxy:
        for _ in range(3):
            assert ask(proxy.url, "POST", "/console/api/login", {"key": "wrong"}).status == 401
        banned = ask(proxy.url, "POST", "/console/api/login", {"key": KEY})
        assert (banned.status, banned.json()["error"]["code"]) == (403, "address_banned")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-mooltiproxy-csrf": ""},
        {"x-mooltiproxy-csrf": "0" * 64},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_change_needs_its_token_and_this_origin(proxy: Proxy, headers: Mapping[str, str]) -> None:
    visitor = Visitor(proxy, KEY)
    for path, body in (
        ("stop", {"id": "x"}),
        ("keep", {"id": "x"}),
        ("config/apply", {"text": ""}),
        ("relay/v1/chat/completions", CHAT),
        ("logout", {}),
    ):
        assert visitor.send(path, body, headers).status == 403
    assert visitor.get("session")["name"] == "master"


def test_another_page_of_this_host_cannot_even_look(proxy: Proxy) -> None:
    visitor = Visitor(proxy, KEY)
    assert visitor.request("GET", "calls", headers={"sec-fetch-site": "same-site", "origin": ""}).status == 403


@pytest.mark.parametrize("origin", ["http://[", "null", "://", "http://a@b"])
def test_an_origin_that_is_none_is_foreign(proxy: Proxy, origin: str) -> None:
    reply = ask(proxy.url, "POST", "/console/api/login", {"key": KEY}, {"origin": origin})
    assert (reply.status, reply.json()["error"]["code"]) == (403, "origin_refused")


def test_a_key_that_is_no_text_is_the_clients_fault(proxy: Proxy) -> None:
    assert ask(proxy.url, "POST", "/console/api/login", {"key": "\ud800"}).status == 400


def test_a_cookie_of_60_kb_costs_nothing(proxy: Proxy) -> None:
    """http.cookies takes seconds for what is escaped all over, in Python 3.11.9 and before."""
    began = time.monotonic()
    reply = ask(proxy.url, "GET", "/console/api/session", headers={"cookie": 'a="' + '\\"' * 30_000 + '"'})
    assert reply.status == 401
    assert time.monotonic() - began < 2


def test_other_cookies_of_this_host_stand_beside_ours(proxy: Proxy) -> None:
    master = Visitor(proxy, KEY)
    master.cookie = f'other={{"a": 1}}; {master.cookie};not-{master.cookie}'
    assert master.get("session")["name"] == "master"


def test_a_form_of_another_page_cannot_log_somebody_in(proxy: Proxy) -> None:
    plain = {"content-type": "text/plain"}
    assert ask(proxy.url, "POST", "/console/api/login", json.dumps({"key": KEY}).encode(), plain).status == 415
    assert ask(proxy.url, "POST", "/console/api/login", {"key": KEY}, {"origin": "http://evil.example"}).status == 403


def test_a_logout_ends_the_session_not_only_the_cookie(proxy: Proxy) -> None:
    visitor, other = Visitor(proxy, KEY), Visitor(proxy, KEY)
    assert visitor.send("logout", {}).status == 200
    assert visitor.request("GET", "session").status == 401
    assert other.get("session")["name"] == "master"


def test_a_session_ends_with_its_time(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, config_for(backend).replace("edit: true", "session_s: 2")) as proxy:
        visitor = Visitor(proxy, KEY)
        eventually(lambda: visitor.request("GET", "session").status == 401)


def test_a_session_ends_with_a_restart_so_that_who_has_logged_out_stays_out(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, config_for(backend)) as proxy:
        left, stayed = Visitor(proxy, KEY), Visitor(proxy, KEY)
        assert left.send("logout", {}).status == 200
    with Proxy(tmp_path, config_for(backend)) as proxy:
        for visitor in (left, stayed):
            visitor.url = proxy.url
            assert visitor.request("GET", "session").status == 401


def test_every_worker_knows_a_session(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, config_for(backend) + "system: {workers: 3}\n") as proxy:
        visitor = Visitor(proxy, KEY)
        assert {visitor.request("GET", "session").status for _ in range(20)} == {200}


def test_a_session_ends_with_its_key(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, config_for(backend)) as proxy:
        visitor = Visitor(proxy, ANN)
        changed = config_for(backend).replace(ANN, "another-key-of-anns")
        (tmp_path / "config.yaml").write_text(changed)
        assert ask(proxy.url, "POST", "/mooltiproxy/reload", headers=proxy.headers).status == 200
        assert visitor.request("GET", "session").status == 401


# --- whose rows


@pytest.fixture(scope="module")
def talked(proxy: Proxy) -> dict[str, Visitor]:
    """Visitors who have each said something, when it is in the log."""
    visitors = {name: Visitor(proxy, key) for name, key in (("master", KEY), ("ann", ANN), ("bob", BOB))}
    for name, visitor in visitors.items():
        assert visitor.chat(f"secret of {name}").json()["choices"][0]["message"]["content"] == f"you said secret of {name}"
    eventually(lambda: {call["key_name"] for call in visitors["master"].get("calls")["calls"]} >= {"master", "ann", "bob"})
    return visitors


@pytest.mark.parametrize("name", ["ann", "bob"])
def test_a_person_sees_its_own_rows_alone(talked: dict[str, Visitor], name: str) -> None:
    visitor, master, other = talked[name], talked["master"], {"ann": "bob", "bob": "ann"}[name]
    for path, rows in (("calls", "calls"), ("conversations", "conversations"), ("calls?text=secret", "calls")):
        assert {row["key_name"] for row in visitor.get(path)[rows]} == {name}
        assert visitor.get(f"{path}{'&' if '?' in path else '?'}key_name={other}")[rows] == visitor.get(path)[rows]
    assert {day["key_name"] for day in visitor.get("usage?by=key_name")["days"]} == {name}
    assert {row["key_name"] for row in visitor.get("limits")["limits"]} <= {name}
    assert visitor.get("latency")["p50"] > 0
    found = next(call for call in master.get("calls")["calls"] if call["key_name"] == other)
    for reply in (
        visitor.request("GET", f"call?id={found['id']}"),
        visitor.request("GET", f"conversation?id={found['conversation']}"),
        visitor.send("rename", {"id": found["conversation"], "title": "mine"}),
        visitor.send("hide", {"id": found["conversation"]}),
    ):
        assert reply.status == 404
    assert master.get(f"call?id={found['id']}")["request"]["messages"][0]["content"] == f"secret of {other}"
    assert {row["key_name"] for row in csv.DictReader(io.StringIO(visitor.request("GET", "calls.csv").body.decode()))} == {name}


@pytest.mark.parametrize("path", ["config", "config/check", "config/apply", "config/undo"])
def test_the_configuration_is_the_masters(talked: dict[str, Visitor], path: str) -> None:
    method = "GET" if path == "config" else "POST"
    assert talked["ann"].request(method, path, {} if method == "POST" else None).json()["error"]["code"] == "master_only"


def test_a_call_from_the_page_has_the_visitors_rights(talked: dict[str, Visitor]) -> None:
    refused = talked["bob"].send("relay/v1/chat/completions", CHAT, {"target": "other"})
    assert (refused.status, refused.json()["error"]["code"]) == (403, "target_not_allowed")
    assert talked["bob"].get("session")["targets"] == ["main"]
    assert talked["ann"].send("relay/v1/chat/completions", CHAT, {"target": "other"}).status == 200


def test_a_call_from_the_page_takes_neither_cookie_nor_token_along(proxy: Proxy, backend: Backend) -> None:
    Visitor(proxy, ANN).chat("what leaves")
    sent = next(asked for asked in reversed(backend.asked) if b"what leaves" in asked.body)
    names = {name for name, _ in sent.fields}
    assert not {name for name in names if "cookie" in name or "csrf" in name or name in ("origin", "referer")}
    assert sent["authorization"] == "Bearer sk-upstream-secret-000001"


def test_a_title_and_a_hidden_conversation_stay_so(talked: dict[str, Visitor]) -> None:
    visitor = talked["ann"]
    visitor.chat("to be renamed")

    def find(title: str) -> str | None:
        found = visitor.get("conversations")["conversations"]
        return next((each["conversation"] for each in found if each["title"] == title), None)

    found = eventually(lambda: find("to be renamed"))
    assert visitor.send("rename", {"id": found, "title": "renamed"}).status == 200
    assert find("renamed") == found
    assert visitor.send("hide", {"id": found}).status == 200
    assert find("renamed") is None


def test_limits_are_what_the_gates_count(talked: dict[str, Visitor]) -> None:
    before = {row["what"]: row for row in talked["ann"].get("limits")["limits"]}
    assert talked["ann"].get("limits")["limits"][0]["left"] == before["requests"]["left"]  # looking takes nothing
    talked["ann"].chat("counted")
    after = {row["what"]: row for row in talked["ann"].get("limits")["limits"]}
    assert after["requests"]["left"] == before["requests"]["left"] - 1
    assert after["tokens"]["left"] == before["tokens"]["left"] - 8


def test_a_page_goes_on_where_the_one_before_ended(talked: dict[str, Visitor]) -> None:
    master = talked["master"]
    whole = [call["id"] for call in master.get("calls?limit=500")["calls"]]
    first = master.get("calls?limit=2")
    last = first["calls"][-1]
    second = master.get(f"calls?limit=500&before={last['at']}%20{last['id']}")
    assert first["more"]
    assert [call["id"] for call in (*first["calls"], *second["calls"])] == whole


@pytest.mark.parametrize(
    "query", ["calls?since=x", "calls?since=nan", "calls?limit=x", "calls?status=1;2", "calls?before=x", "usage?by=password"]
)
def test_a_query_that_cannot_be_read_is_the_clients_fault(talked: dict[str, Visitor], query: str) -> None:
    assert talked["master"].request("GET", query).status == 400


def test_a_cell_is_no_formula(proxy: Proxy) -> None:
    visitor = Visitor(proxy, ANN)
    visitor.send("relay/v1/chat/completions", {**CHAT, "user": "=cmd|'/c calc'!A1"})
    eventually(lambda: any((call["user"] or "").startswith("=") for call in visitor.get("calls")["calls"]))
    for table in ("calls.csv", "usage.csv?by=user"):
        reply = visitor.request("GET", table)
        assert (reply["content-disposition"] or "").startswith("attachment")
        cells = [cell for row in csv.reader(io.StringIO(reply.body.decode())) for cell in row]
        assert "'=cmd|'/c calc'!A1" in cells
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t")]


def test_without_a_call_log_the_pages_say_what_is_missing(tmp_path: Path) -> None:
    with Proxy(tmp_path, 'targets: {default: d, d: {url: "demo://"}}\nconsole: {enabled: true}') as proxy:
        visitor = Visitor(proxy, KEY)
        assert not visitor.get("session")["records"]
        assert visitor.request("GET", "calls").json()["error"]["code"] == "no_call_log"
        assert visitor.get("limits") == {"limits": []}


# --- calls in flight


def stream(proxy: Proxy, key: str, content: str = "wait") -> tuple[threading.Thread, list[Reply]]:
    replies: list[Reply] = []
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": content}]}
    thread = threading.Thread(target=lambda: replies.append(ask(proxy.url, "POST", "/v1/chat/completions", body, bearer(key))))
    thread.start()
    return thread, replies


def half_told(calls: list[Any]) -> list[Any]:
    return [call for call in calls if call["state"] == "streaming" and call["text"] == "you said "]


def test_a_call_in_flight_shows_its_text_and_can_be_stopped_by_its_owner(proxy: Proxy) -> None:
    ann, bob = Visitor(proxy, ANN), Visitor(proxy, BOB)
    thread, replies = stream(proxy, ANN)
    (call,) = half_told(live(ann, lambda calls: len(half_told(calls)) == 1))
    assert (call["key_name"], call["target"], call["model"], call["stream"]) == ("ann", "main", "m", True)
    assert call["id"] not in {each["id"] for each in live(bob, lambda calls: True)}
    assert bob.send("stop", {"id": call["id"]}).status == 404
    assert ann.send("stop", {"id": call["id"]}).status == 200
    thread.join(10)
    assert not replies[0].whole
    live(ann, lambda calls: any(each["id"] == call["id"] and each["state"] == "ended" for each in calls))


def test_a_call_in_flight_can_be_stopped_in_whatever_worker_it_runs(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, "system: {workers: 3}\n" + config_for(backend)) as proxy:
        master = Visitor(proxy, KEY)
        streams = [stream(proxy, ANN) for _ in range(6)]
        for _ in range(6):  # whichever worker answers
            calls = half_told(live(master, lambda calls: len(half_told(calls)) == 6))
        for call in calls:
            assert master.send("stop", {"id": call["id"]}).status == 200
        for thread, _ in streams:
            thread.join(10)
        assert all(not replies[0].whole for _, replies in streams)
        assert master.send("logout", {}).status == 200
        assert {master.request("GET", "session").status for _ in range(12)} == {401}  # all workers know


def test_the_stream_of_calls_ends_with_its_session(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, config_for(backend)) as proxy, Client(proxy.url) as client:
        visitor = Visitor(proxy, ANN)
        client.request("GET", "/console/api/live", headers={"cookie": visitor.cookie})
        chunks = client.chunks() if client.reply_head().status == 200 else iter(())
        assert next(chunks)
        visitor.send("logout", {})
        assert list(chunks) is not None  # it comes to its end
        assert visitor.request("GET", "live").status == 401


# --- the configuration


@pytest.fixture
def editing(tmp_path: Path, backend: Backend) -> Iterator[tuple[Proxy, Visitor]]:
    with Proxy(tmp_path, config_for(backend)) as proxy:
        yield proxy, Visitor(proxy, KEY)


def test_secrets_are_masked_wherever_they_stand(editing: tuple[Proxy, Visitor]) -> None:
    _, master = editing
    raw = master.request("GET", "config").body.decode()
    for secret in ("sk-upstream-secret-000001", "header-secret", ANN, EVE, KEY, hashlib.sha256(BOB.encode()).hexdigest()):
        assert secret not in raw
    told = json.loads(raw)
    rows = {row["path"]: row for row in told["rows"]}
    assert rows["targets.main.key"] == {"path": "targets.main.key", "value": "***", "line": 8}
    assert rows["targets.main.headers.x-plain"]["value"] == "shown"
    assert rows["system.workers"] == {"path": "system.workers", "value": 1, "line": None}
    assert rows["cerbere.max_tries"]["line"] == 2
    assert any("chat/completions" in line for line in told["served"])


def test_a_change_is_checked_applied_with_a_backup_and_undone(editing: tuple[Proxy, Visitor]) -> None:
    proxy, master = editing
    file = proxy.folder / "config.yaml"
    file.chmod(0o640)
    before, told = file.read_text(), master.get("config")
    text = told["text"].replace("You write code.", "You write prose.")
    assert master.send("config/check", {"text": text}).json() == {"faults": []}
    assert master.send("config/apply", {"text": text, "base": told["base"]}).status == 200
    assert file.read_text() == before.replace("You write code.", "You write prose.")  # with its secrets
    assert master.get("session")["presets"] == {"Coder": "You write prose."}
    (backup,) = proxy.folder.glob("config.yaml.20*.bak")
    assert backup.read_text() == before
    assert file.stat().st_mode & 0o777 == backup.stat().st_mode & 0o777 == 0o640
    assert master.send("config/undo", {}).status == 200
    assert file.read_text() == before
    assert master.get("session")["presets"] == {"Coder": "You write code."}
    assert master.send("config/undo", {}).status == 404


def test_faults_come_with_their_lines_and_change_nothing(editing: tuple[Proxy, Visitor]) -> None:
    proxy, master = editing
    before, told = (proxy.folder / "config.yaml").read_text(), master.get("config")
    text = told["text"].replace("max_tries: 1000", "max_tries: many")
    (fault,) = master.send("config/check", {"text": text}).json()["faults"]
    assert (fault["line"], fault["message"][:19]) == (2, "cerbere.max_tries: ")
    assert master.send("config/apply", {"text": text}).json()["faults"] == [fault]
    assert master.send("config/check", {"text": "a: [\n"}).json()["faults"][0]["line"] == 2
    assert (proxy.folder / "config.yaml").read_text() == before
    assert not list(proxy.folder.glob("*.bak"))


def test_a_text_whose_aliases_stand_for_billions_is_a_fault(editing: tuple[Proxy, Visitor]) -> None:
    _, master = editing
    lines = [f"n{n}: &n{n} [{', '.join([f'*n{n - 1}'] * 9)}]" for n in range(1, 20)]
    for path in ("config/check", "config/apply"):
        (fault,) = master.send(path, {"text": "\n".join(["n0: &n0 [x]", *lines])}).json()["faults"]
        assert "parts" in fault["message"]


REFUSED = [
    ('url: "{url}"', 'url: "http://127.0.0.1:9"', "targets.main.url"),
    ("key: ***K", "key_command: [sh]", "targets.main.key_command"),
    ("key: ***K", "envkey: HOME", "targets.main.envkey"),
    ("key: ***K", "verify: /etc/passwd", "targets.main.verify"),
    ("key: ***K", "cert: [a, b]", "targets.main.cert"),
    ("key: ***K", "proxy: http://h:1", "targets.main.proxy"),
    ("key: ***K", "start: {command: [sh]}", "targets.main.start"),
    ("key: ***K", "mapping: {/x: ':1/x'}", "targets.main.mapping"),
    ("key: ***K", "mapping: {/x: {path: ':1/x'}}", "targets.main.mapping"),
    ("key: ***K", "mapping: {'/*': }", "targets.main.mapping"),
    ("key: ***K", "route: /all", "targets.main.route"),
    ("keys:", "commands: {x: {complete: [sh]}}\nkeys:", "commands"),
    ("keys:", "system: {log: {file: /tmp/x}}\nkeys:", "system.log.file"),
    ("keys:", "state: redis://h\nkeys:", "state"),
    ("calls.db", "other.db", "records"),
    ("edit: true", "edit: false", "console.edit"),
    ("keys:", "  more: {url: demo://}\nkeys:", "targets.more.url"),
]


@pytest.mark.long
@pytest.mark.parametrize(("old", "new", "path"), REFUSED, ids=[path for _, _, path in REFUSED])
def test_what_names_a_program_a_file_or_a_url_cannot_be_changed(
    editing: tuple[Proxy, Visitor], backend: Backend, old: str, new: str, path: str
) -> None:
    _, master = editing
    told = master.get("config")
    find = old.replace("{url}", backend.url).replace("***K", '"***"')
    assert find in told["text"]
    reply = master.send("config/apply", {"text": told["text"].replace(find, new, 1), "base": told["base"]})
    assert reply.status == 422
    assert f"{path}: cannot be changed here, only in the file itself" in {fault["message"] for fault in reply.json()["faults"]}


def test_the_table_of_what_is_fixed_holds_everything_that_names_such_a_thing() -> None:
    named = re.compile(
        r"\b(url|urls|file|folder|database|program|command|PEM|certificate|backend's path|environment variable)\b", re.I
    )
    known = {  # that speak of such a thing without naming one
        *(
            "system.masterkey",
            "targets.*.key_ttl_s",
            "system.watch",
            "records",
            "targets.*.dialect",
            "targets.*.aws",
            "targets.*.azure",
            "targets.*.on_loss",
        ),
    }
    missing = []

    def walk(option: dict[str, Any], path: tuple[str, ...]) -> None:
        for inner in (option, *option.get("anyOf", ())):
            for name, below in inner.get("properties", {}).items():
                place = (*path, name)
                if any(
                    len(fixed) <= len(place) and all(a in ("*", b) for a, b in zip(fixed, place, strict=False))
                    for fixed in FIXED
                ):
                    continue
                if named.search(below.get("description", "")) and ".".join(place) not in known:
                    missing.append(".".join(place))
                walk(below, place)
            if isinstance(inner.get("additionalProperties"), dict):
                walk(inner["additionalProperties"], (*path, "*"))

    walk(json_schema(), ())
    assert not missing


def test_a_mask_of_nothing_is_refused(editing: tuple[Proxy, Visitor]) -> None:
    _, master = editing
    told = master.get("config")
    text = told["text"].replace("You write code.", "'***'")
    assert "stands for no secret" in master.send("config/apply", {"text": text}).json()["error"]["message"]


def test_a_file_that_has_changed_meanwhile_is_not_overwritten(editing: tuple[Proxy, Visitor]) -> None:
    proxy, master = editing
    told, file = master.get("config"), proxy.folder / "config.yaml"
    file.write_text(file.read_text() + "# mine\n")
    assert master.send("config/apply", {"text": told["text"], "base": told["base"]}).status == 409


def test_without_edit_nothing_of_the_file_is_told_or_changed(tmp_path: Path, backend: Backend) -> None:
    with Proxy(tmp_path, config_for(backend).replace("edit: true, ", "")) as proxy:
        master = Visitor(proxy, KEY)
        assert "text" not in master.get("config")
        for path in ("check", "apply", "undo"):
            assert master.send(f"config/{path}", {"text": ""}).status in (403, 404)


# --- the document


def test_the_document_names_every_route(talked: dict[str, Visitor]) -> None:
    told = talked["ann"].get("openapi.json")
    assert told["openapi"] == "3.1.0"
    for route in ROUTES:
        assert route.method.lower() in told["paths"]["/console" + route.path]
    own = {"/healthz", "/metrics", "/mooltiproxy/reload", "/v1/chat/completions", "/v1/messages", "/console/api/relay/{path}"}
    assert own <= told["paths"].keys()
    assert talked["ann"].get("session")["name"] == "ann"
