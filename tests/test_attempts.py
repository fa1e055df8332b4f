"""Retries, fallback and pools under every fault: what the client gets, and what each backend was asked."""

from __future__ import annotations

import itertools
import json
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from proxy.attempts import retry_after_s
from tests.backends.literal import Asked, Literal, Peer
from tests.backends.proxy import KEY, Proxy
from tests.backends.sockets import Client, Reply

RIGHT = {"authorization": f"Bearer {KEY}"}
NUMBERS = itertools.count()
NONCE = re.compile(rb"nonce-\d+")
BAD_KEY, GOOD_KEY = "key-of-the-bad-one", "key-of-the-good-one"

# --- backends


def chat(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    whole = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps(whole).encode()


def event(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def http(status: int, body: bytes, *fields: str, kind: str = "application/json") -> bytes:
    head = [f"HTTP/1.1 {status} Told", f"content-type: {kind}", f"content-length: {len(body)}", *fields]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def serve(peer: Peer, asked: Asked, text: str = "fine") -> None:
    """A whole answer or a stream, as it was asked for."""
    if b'"stream": true' in asked.body or b'"stream":true' in asked.body:
        data = event({"role": "assistant", "content": ""}) + event({"content": text}) + event({}, "stop") + b"data: [DONE]\n\n"
        peer.send(http(200, data, kind="text/event-stream"))
    else:
        peer.send(http(200, chat(text)))


def begin(peer: Peer, asked: Asked) -> None:
    """The first half of an answer."""
    if b'"stream": true' in asked.body or b'"stream":true' in asked.body:
        data = event({"role": "assistant", "content": ""}) + event({"content": "half"})
        peer.send(http(200, data, kind="text/event-stream").replace(b"content-length: ", b"content-length: 9"))
    else:
        whole = chat("half")
        peer.send(http(200, whole)[: -len(whole) // 2])


def says(status: int, *fields: str) -> Callable[[Peer, Asked], None]:
    error = json.dumps({"error": {"message": f"words of the backend {status}", "type": "t", "param": None, "code": "c"}})
    return lambda peer, asked: peer.send(http(status, error.encode(), *fields))


def reset_before(peer: Peer, asked: Asked) -> None:
    peer.reset()


def reset_after(peer: Peer, asked: Asked) -> None:
    begin(peer, asked)
    peer.reset()


def cut(peer: Peer, asked: Asked) -> None:
    begin(peer, asked)
    peer.sock.close()


def silent(peer: Peer, asked: Asked) -> None:
    peer.left()


def garbage(peer: Peer, asked: Asked) -> None:
    peer.send(b"what is HTTP?\r\n\r\n")
    peer.sock.close()


FAULTS: Mapping[str, tuple[Callable[[Peer, Asked], None], str]] = {  # what the backend does, what it is called
    "reset_before": (reset_before, "connect"),
    "reset_after": (reset_after, "garbage"),
    "429": (says(429, "retry-after: 0"), "429"),
    "500": (says(500), "500"),
    "503": (says(503), "503"),
    "529": (says(529), "529"),
    "400": (says(400), "400"),
    "422": (says(422), "422"),
    "401": (says(401), "401"),
    "404": (says(404), "404"),
    "timeout": (silent, "timeout"),
    "garbage": (garbage, "garbage"),
    "cut": (cut, "garbage"),
}
RETRIED = ("reset_before", "429", "503", "529", "timeout")
OWN_FAULT = ("400", "422")  # the request's


def faulty(fault: Callable[[Peer, Asked], None]) -> Callable[[Peer], None]:
    """A backend that fails each call once, the first time that it hears of it. It keeps no connection: a reset of one that was
    used before would be taken for its end, and tell nothing of retries."""
    seen: set[bytes] = set()

    def script(peer: Peer) -> None:
        asked = peer.request()
        if asked is None:
            return
        (nonce,) = set(NONCE.findall(asked.body))
        answer = serve if nonce in seen else fault
        seen.add(nonce)
        answer(peer, asked)

    return script


def good(peer: Peer) -> None:
    while asked := peer.request():
        serve(peer, asked)


TARGETS = """
  retry-{name}: {{url: "{url}/v1", dialect: openai, envkey: BAD, timeout: 0.3, retries: {{backoff_s: 0.01}}}}
  fall-{name}: {{url: "{url}/v1", dialect: openai, envkey: BAD, timeout: 0.3, fallback: good, breaker: {{failures: 1000}}}}
  member-{name}: {{url: "{url}/v1", dialect: openai, envkey: BAD, timeout: 0.3, breaker: {{failures: 1000}}}}
  pool-{name}: {{pool: {{member-{name}: 1000, good: 1}}}}
"""


class World:
    """A proxy and its backends: one for each fault, and a good one."""

    def __init__(self, proxy: Proxy, backends: Mapping[str, Literal]) -> None:
        self.proxy, self.backends = proxy, backends

    def asked(self, name: str, nonce: str) -> list[Asked]:
        return [asked for asked in self.backends[name].asked if nonce.encode() in asked.body]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        backends = {name: stack.enter_context(Literal(faulty(fault))) for name, (fault, _) in FAULTS.items()}
        backends["good"] = stack.enter_context(Literal(good))
        deaf = stack.enter_context(socket.socket())  # bound, but not listening: refuses
        deaf.bind(("127.0.0.1", 0))
        urls = {name: backend.url for name, backend in backends.items() if name != "good"}
        urls["refused"] = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        config = "targets:\n  default: good\n"
        config += f'  good: {{url: "{backends["good"].url}/v1", dialect: openai, envkey: GOOD, model: good-model}}\n'
        config += "".join(TARGETS.format(name=name, url=url) for name, url in urls.items())
        env = {"BAD": BAD_KEY, "GOOD": GOOD_KEY}
        yield World(stack.enter_context(Proxy(tmp_path_factory.mktemp("attempts"), config, env=env)), backends)


def call(world: World, target: str, mapped: bool, stream: bool) -> tuple[Reply, str, dict[str, Any]]:
    nonce = f"nonce-{next(NUMBERS)}"
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": nonce}], "max_tokens": 9}
    body |= {"stream": True} if stream else {}
    path = "/v1/messages" if mapped else "/v1/chat/completions"
    with Client(world.proxy.url, headers=RIGHT) as client:
        return client.ask("POST", path, body, {"target": target}), nonce, body


def text_of(reply: Reply, mapped: bool, stream: bool) -> str:
    if not stream:
        answer = reply.json()
        return str(answer["content"][0]["text"] if mapped else answer["choices"][0]["message"]["content"])
    if mapped:
        return "".join(each["delta"].get("text", "") for each in reply.events if each.get("type") == "content_block_delta")
    return "".join(each["choices"][0]["delta"].get("content", "") for each in reply.events if each != "[DONE]")


def sent_as(asked: Asked, key: str, model: str, body: Mapping[str, Any], mapped: bool) -> None:
    """What must be right with every request that reaches a backend."""
    assert (asked.head.split(b" ")[0], asked.path) == (b"POST", "/v1/chat/completions")
    assert ("authorization", f"Bearer {key}") in asked.fields
    sent = json.loads(asked.body)
    assert sent["model"] == model
    assert sent["messages"] == body["messages"]
    if not mapped and model == body["model"]:
        assert asked.body == json.dumps(body).encode()


def begun(name: str, mapped: bool, stream: bool) -> bool:
    """Whether something has gone to the client before the fault: a mapped answer is read whole first."""
    return name in ("reset_after", "cut") and (stream or not mapped)


def served_by(reply: Reply, mapped: bool, stream: bool) -> None:
    assert (reply.status, reply.whole) == (200, True)
    assert text_of(reply, mapped, stream) == "fine"


def broken_off(reply: Reply, stream: bool) -> None:
    """Never an invented finish: an error event, or a body that is short."""
    assert reply.status == 200
    if stream:
        assert "error" in json.dumps(reply.events[-1])
        assert "[DONE]" not in reply.events
    else:
        assert not reply.whole


KINDS = [(mapped, stream) for mapped in (False, True) for stream in (False, True)]
ids = [f"{'mapped' if mapped else 'same API'}, {'streamed' if stream else 'whole'}" for mapped, stream in KINDS]
kinds = pytest.mark.parametrize(("mapped", "stream"), KINDS, ids=ids)


@kinds
@pytest.mark.parametrize("name", FAULTS)
def test_a_retry_asks_the_same_backend_the_same_once_more(world: World, name: str, mapped: bool, stream: bool) -> None:
    reply, nonce, body = call(world, f"retry-{name}", mapped, stream)
    asked = world.asked(name, nonce)
    for each in asked:
        sent_as(each, BAD_KEY, "m", body, mapped)
    if begun(name, mapped, stream):
        broken_off(reply, stream)
        assert len(asked) == 1
    elif name in RETRIED:
        served_by(reply, mapped, stream)
        assert len(asked) == 2
        assert asked[0].body == asked[1].body
        assert reply["x-mooltiproxy-attempts"] == f"retry-{name} {FAULTS[name][1]}"
    else:
        assert len(asked) == 1
        assert reply.status == (int(name) if name.isdigit() else 502)
        if name.isdigit() and not mapped:
            assert reply.json()["error"]["message"] == f"words of the backend {name}"


@kinds
@pytest.mark.parametrize("way", ["fall", "pool"])
@pytest.mark.parametrize("name", FAULTS)
def test_another_target_serves_what_one_cannot(world: World, name: str, way: str, mapped: bool, stream: bool) -> None:
    reply, nonce, body = call(world, f"{way}-{name}", mapped, stream)
    first, second = world.asked(name, nonce), world.asked("good", nonce)
    failed = f"{'fall' if way == 'fall' else 'member'}-{name}"
    assert len(first) == 1
    sent_as(first[0], BAD_KEY, "m", body, mapped)
    if begun(name, mapped, stream):
        broken_off(reply, stream)
        assert second == []
    elif name in OWN_FAULT:
        assert second == []
        assert (reply.status, reply["x-mooltiproxy-target"]) == (int(name), failed)
    else:
        served_by(reply, mapped, stream)
        assert len(second) == 1
        sent_as(second[0], GOOD_KEY, "good-model", body, mapped)
        assert reply["x-mooltiproxy-target"] == "good"
        assert reply["x-mooltiproxy-attempts"] == f"{failed} {FAULTS[name][1]}"


@kinds
@pytest.mark.parametrize("way", ["fall", "pool"])
def test_a_backend_that_refuses_connections_is_passed_over(world: World, way: str, mapped: bool, stream: bool) -> None:
    reply, nonce, body = call(world, f"{way}-refused", mapped, stream)
    served_by(reply, mapped, stream)
    (asked,) = world.asked("good", nonce)
    sent_as(asked, GOOD_KEY, "good-model", body, mapped)
    failed = "fall-refused" if way == "fall" else "member-refused"
    assert (reply["x-mooltiproxy-target"], reply["x-mooltiproxy-attempts"]) == ("good", f"{failed} connect")
    world.proxy.wait_for_log(f"target {failed} failed: connect; on to good")


@kinds
def test_retries_end(world: World, mapped: bool, stream: bool) -> None:
    reply, _, _ = call(world, "retry-refused", mapped, stream)
    assert reply.status == 502
    assert reply["x-mooltiproxy-attempts"] == ", ".join(["retry-refused connect"] * 3)
    assert "(tried: retry-refused connect, retry-refused connect, retry-refused connect)" in reply.body.decode()


# --- what the table does not say


def told(status: int, *fields: str) -> Callable[[Peer], None]:
    """A backend that always says this."""

    def script(peer: Peer) -> None:
        while asked := peer.request():
            says(status, *fields)(peer, asked)

    return script


CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_when_all_fail_the_last_error_is_relayed_as_its_backend_wrote_it(tmp_path: Any) -> None:
    with Literal(told(429, "retry-after: 7")) as one, Literal(told(503, "x-mine: kept")) as two:
        config = f"""
targets:
  default: one
  one: {{url: "{one.url}", dialect: openai, fallback: [two]}}
  two: {{url: "{two.url}", dialect: openai}}
"""
        with Proxy(tmp_path, config) as proxy, Client(proxy.url, headers=RIGHT) as client:
            reply = client.ask("POST", "/v1/chat/completions", CHAT)
            assert reply.status == 503
            assert reply["x-mine"] == "kept"
            assert reply.json() == {"error": {"message": "words of the backend 503", "type": "t", "param": None, "code": "c"}}
            assert reply["x-mooltiproxy-attempts"] == "one 429, two 503"
            assert reply["x-mooltiproxy-target"] == "two"


def test_retry_after_is_waited_for_and_a_long_one_is_not(tmp_path: Any) -> None:
    begins: list[float] = []

    def limited(peer: Peer) -> None:
        while asked := peer.request():
            begins.append(time.monotonic())
            if len(begins) == 1:
                says(429, "retry-after: 1")(peer, asked)
            else:
                serve(peer, asked)

    with Literal(limited) as short, Literal(told(429, "retry-after: 600")) as long:
        config = f"""
targets:
  default: short
  short: {{url: "{short.url}", dialect: openai, retries: {{attempts: 2, backoff_s: 0.01}}}}
  long: {{url: "{long.url}", dialect: openai, retries: {{attempts: 2, backoff_s: 0.01}}}}
"""
        with Proxy(tmp_path, config) as proxy, Client(proxy.url, headers=RIGHT) as client:
            assert client.ask("POST", "/v1/chat/completions", CHAT).status == 200
            assert 1.0 <= begins[1] - begins[0] < 5.0
            began = time.monotonic()
            reply = client.ask("POST", "/v1/chat/completions", CHAT, {"target": "long"})
            assert (reply.status, reply["retry-after"], len(long.asked)) == (429, "600", 1)
            assert time.monotonic() - began < 5.0


def test_a_client_that_leaves_ends_the_wait_for_the_next_attempt(tmp_path: Any) -> None:
    with Literal(told(503, "retry-after: 9")) as backend:
        config = f"""
targets:
  default: a
  a: {{url: "{backend.url}", dialect: openai, retries: {{attempts: 2}}}}
"""
        with Proxy(tmp_path, config) as proxy:
            with Client(proxy.url, headers=RIGHT) as client:
                client.request("POST", "/v1/chat/completions", CHAT)
                proxy.wait_for_log("target a failed: 503; on to a in 9")
            proxy.wait_for_log(" 499 ", timeout_s=5)
            assert len(backend.asked) == 1


def test_a_body_that_streams_up_is_sent_once(tmp_path: Any) -> None:
    with Literal(told(503)) as backend, Literal(good) as other:
        config = f"""
targets:
  default: a
  a: {{url: "{backend.url}", route: /a, retries: {{backoff_s: 0.01}}, fallback: b}}
  b: {{url: "{other.url}", route: /b}}
"""
        with Proxy(tmp_path, config) as proxy, Client(proxy.url, headers=RIGHT) as client:
            upload = {"content-type": "application/octet-stream"}
            big = client.ask("POST", "/a/v1/files", b"x" * 400_000, upload)
            assert (big.status, len(backend.asked), len(other.asked)) == (503, 1, 0)
            small = client.ask("POST", "/a/v1/files", b"x" * 1000, upload)
            assert (small.status, len(backend.asked), len(other.asked)) == (200, 4, 1)
            assert {asked.body for asked in (*backend.asked[1:], *other.asked)} == {b"x" * 1000}


def test_a_stream_that_ends_before_its_first_event_leaves_no_trace_of_its_head(tmp_path: Any) -> None:
    def empty(peer: Peer) -> None:
        assert peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-of: one\r\ncontent-length: 99\r\n\r\n")
        peer.reset()

    with Literal(empty) as one, Literal(good) as two:
        config = f"""
targets:
  default: one
  one: {{url: "{one.url}", dialect: openai, model: renamed, fallback: two}}
  two: {{url: "{two.url}", dialect: openai}}
"""
        with Proxy(tmp_path, config) as proxy, Client(proxy.url, headers=RIGHT) as client:
            reply = client.ask("POST", "/v1/chat/completions", {**CHAT, "stream": True})
            served_by(reply, mapped=False, stream=True)
            assert (reply["x-of"], reply["x-mooltiproxy-target"]) == (None, "two")
            assert reply["x-mooltiproxy-attempts"] == "one garbage"


def test_without_retries_there_are_none(tmp_path: Any) -> None:
    with Literal(told(503)) as backend:
        config = f'targets: {{default: a, a: {{url: "{backend.url}", dialect: openai}}}}'
        with Proxy(tmp_path, config) as proxy, Client(proxy.url, headers=RIGHT) as client:
            reply = client.ask("POST", "/v1/chat/completions", CHAT)
            assert (reply.status, len(backend.asked), reply["x-mooltiproxy-attempts"]) == (503, 1, None)


def test_a_target_that_lacks_the_operation_is_passed_over(tmp_path: Any) -> None:
    embedding = {"object": "list", "data": [], "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    with Literal(told(500)) as chats, Literal(http(200, json.dumps(embedding).encode())) as embeds:
        config = f"""
targets:
  default: chats
  chats: {{url: "{chats.url}", dialect: anthropic, fallback: embeds}}
  embeds: {{url: "{embeds.url}", dialect: openai}}
"""
        with Proxy(tmp_path, config) as proxy, Client(proxy.url, headers=RIGHT) as client:
            reply = client.ask("POST", "/v1/embeddings", {"model": "m", "input": "x"})
            assert (reply.status, reply["x-mooltiproxy-target"]) == (200, "embeds")
            assert (chats.asked, len(embeds.asked)) == ([], 1)


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ([("retry-after", "3")], 3.0),
        ([("retry-after", "0.5")], 0.5),
        ([("retry-after", "9"), ("retry-after-ms", "250")], 0.25),
        ([("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT")], 0.0),
        ([("retry-after", "soon")], None),
        ([("retry-after", "nan")], None),
        ([("retry-after", "-1")], None),
        ([("retry-after", "1e999")], None),
        ([], None),
    ],
)
def test_retry_after_is_read_as_a_number_or_a_date(fields: list[tuple[str, str]], seconds: float | None) -> None:
    assert retry_after_s(fields) == seconds
