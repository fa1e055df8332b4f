"""What leaves for a backend: nothing that is denied, nothing that is to be redacted, and all else byte for byte."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import ProxyError, Refused
from proxy.gates.guard import OVERLAP, WINDOW, Guard
from proxy.settings.patterns import fault_of
from tests.backends.proxy import CHECKOUT, KEY, Proxy
from tests.backends.sockets import Backend, Client, ask

JSON = "application/json"


def guard(deny: list[str] | None = None, redact: list[str] | None = None, **functions: Any) -> Guard:
    return Guard(deny or [], redact or [], functions.get)


def passed(body: Any, kind: str = JSON, deny: list[str] | None = None, redact: list[str] | None = None) -> bytes:
    return guard(deny, redact).passed(body if isinstance(body, bytes) else json.dumps(body).encode(), kind)


def denied(body: bytes, *deny: str, kind: str = JSON) -> bool:
    try:
        return guard(list(deny)).passed(body, kind) != body
    except Refused as refusal:
        return (refusal.status, refusal.code) == (403, "guard_denied")


SECRET = r"AKIA[0-9A-Z]{4}"


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[{"role":"user","content":"my AKIA1234 key"}]}',
        b'{"messages":[{"role":"user","content":"my \\u0041KIA1234 key"}]}',
        b'{"messages":[{"role":"user","content":"my \\u0041\\u004b\\u0049\\u0041\\u0031\\u0032\\u0033\\u0034"}]}',
        b'{"messages":[{"role":"user","content":"a\\nAKIA1234\\n\\"b\\\\"}]}',
        b'{"AKIA1234":1}',
        b'{"\\u0041KIA1234":{}}',
        b'[["x",["AKIA1234"]]]',
        b'"AKIA1234"',
        b'   \r\n\t{"a":"AKIA1234"}',
        b'\xef\xbb\xbf{"a":"\\u0041KIA1234"}',
        b" " * 500 + b'{"a":"\\u0041KIA1234"}',
        '{"a":"AKIA1234"}'.encode("utf-16"),
        '{"a":"\\u0041KIA1234"}'.encode("utf-16-le"),
        '{"a":"\\u0041KIA1234"}'.encode("utf-32-be"),
        b'{"a":"\xff\\u0041KIA1234"}',
        b'{"a": tru, "b":"\\u0041KIA1234"}',  # no JSON, but somebody's parser may take it
        b"{'a': '\\u0041KIA1234'}",
        b"{AKIA1234}",
        b'{"a":"\\u0041KIA1234',
        b'{"a":"' + b"x" * (3 * WINDOW) + b'AKIA1234"}',
        b'{"a":"' + b"\\n" * (WINDOW - 3) + b'AKIA1234"}',
        b'{"image":"data:image/png;base64,' + b"A" * 9000 + b'AKIA1234"}',
        json.dumps({"arguments": '{"a":"\\u0041KIA1234"}'}).encode(),
        json.dumps({"arguments": json.dumps({"a": '["\\u0041KIA1234"]'})}).encode(),
    ],
)
def test_no_way_of_writing_json_evades_a_denial(body: bytes) -> None:
    for kind in (JSON, "text/plain", ""):
        assert denied(body, SECRET, kind=kind), kind
    assert denied(body, f"(?<!z){SECRET}"), "patterns that look around see the same"


@pytest.mark.parametrize("number", [b"4111111111111111", b"[4111111111111111,2]", b'{"a" : 4111111111111111 }'])
def test_numbers_are_searched_too(number: bytes) -> None:
    assert denied(number if number[:1] in b"[{" else b"[" + number + b"]", r"\b4[0-9]{15}\b")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/plain", b"my AKIA1234 key"),
        ("application/octet-stream", b"\0\xff\xfeAKIA1234\0"),
        ("application/x-www-form-urlencoded", b"prompt=%41KIA1234"),
        ("application/x-www-form-urlencoded", b"prompt=%2541KIA1234"),
        ("application/x-ndjson", b'x\n{"a":"\\u0041KIA1234"}\n'),
        ("multipart/form-data; boundary=XX", b'--XX\r\nContent-Disposition: form-data; name="a"\r\n\r\nAKIA1234\r\n--XX--\r\n'),
        (
            "multipart/form-data; boundary=XX",
            b'--XX\r\nContent-Disposition: form-data; name="f"; filename="a.txt"\r\n\r\n'
            + "my AKIA1234 key".encode("utf-16")
            + b"\r\n--XX--\r\n",
        ),
        (
            "multipart/form-data; boundary=XX",
            b'--XX\r\nContent-Disposition: form-data; name="f"; filename="b.jsonl"\r\n\r\n{"a":"\\u0041KIA1234"}\n--XX--\r\n',
        ),
    ],
)
def test_other_bodies_are_searched_as_what_they_are(kind: str, body: bytes) -> None:
    assert denied(body, SECRET, kind=kind)
    assert not denied(body, "AKIA9999", kind=kind)


def test_strings_are_searched_one_by_one() -> None:
    body = b'{"a":"first","b":"second\\n"}'
    assert denied(body, "^second")
    assert not denied(body, "first.*second")
    assert not denied(body, '"b"')
    assert not denied(b'{"a":"first","b":"second"}', "first.{1,9}second")
    assert denied(b'{"a":"first second"}', "^first second$")


def test_in_a_tools_arguments_a_line_end_is_no_letter() -> None:
    told = {"function": {"name": "save", "arguments": json.dumps({"text": "key:\nAKIA1234\t"})}}
    assert denied(json.dumps(told).encode(), rf"\b{SECRET}\b")
    kept = json.loads(passed(told, redact=[rf"\b{SECRET}\b"]))
    assert json.loads(kept["function"]["arguments"]) == {"text": "key:\n[redacted]\t"}


def test_a_denial_names_the_rule_and_not_the_text() -> None:
    with pytest.raises(Refused) as caught:
        guard(["nothing", SECRET]).passed(b'{"a":"AKIA1234"}', JSON)
    assert "guard.deny[1]" in caught.value.message
    assert "AKIA" not in caught.value.message


@pytest.mark.long
@pytest.mark.parametrize("part", ['"ab",', "12,", '"\\n",'])
def test_a_body_of_many_small_parts_takes_no_more_memory_than_it_has_bytes(part: str) -> None:
    body = f'{{"a":["\\n",{part * 200_000}1]}}'.encode()
    own = guard([SECRET], ["555-1234"])
    tracemalloc.start()
    try:
        own.passed(body, JSON)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * len(body)


def test_nothing_of_a_form_is_kept() -> None:
    own = guard([SECRET])
    own.passed(b"a=first", "application/x-www-form-urlencoded")
    tracemalloc.start()
    try:
        for number in range(20):
            own.passed(b"a=%d&b=" % number + b"x" * 500_000, "application/x-www-form-urlencoded")
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 500_000


# --- redaction


def test_a_redaction_leaves_sound_json_and_all_else_as_it_was() -> None:
    body = b'{ "a" : "call 555-1234 now" ,"n": 1.50,\t"b":"\\u00e9\\/ \xc3\xa9","555-1234":[5, 555.5, "x"] }'
    out = passed(body, redact=[r"555-1234", r"^555\.5$"])
    assert json.loads(out) == {
        "a": "call [redacted] now",
        "n": 1.5,
        "b": "é/ é",
        "[redacted]": [5, "[redacted]", "x"],
    }
    assert out == body.replace(b"555-1234", b"[redacted]").replace(b"555.5", b'"[redacted]"')


@pytest.mark.parametrize(
    "written", ["555-1234", "\\u0035\\u0035\\u0035-1234", "555\\u002d1234", '\\n555-1234\\"\\ud83d\\ude00é']
)
def test_escapes_hide_nothing_from_a_redaction(written: str) -> None:
    body = f'{{"a":"{written}","b":"é\\ud800"}}'.encode()
    out = json.loads(passed(body, redact=["555-1234"]))
    assert out["a"] == json.loads(f'"{written}"').replace("555-1234", "[redacted]")
    assert out["b"] == "é\ud800"


def test_what_matches_nothing_is_the_very_same_bytes() -> None:
    for body in (b'{"a":"\\u0041\\/ \\n \xff", "b" :1e5}', b"\xff\xfe{\x00}\x00", b'{"a":1,"a":2}', b"", b"{"):
        assert guard(["zzz"], ["yyy"]).passed(body, JSON) is body or not body


def test_images_are_not_redacted_by_accident() -> None:
    image = "data:image/png;base64," + "5551234A" * 2000 + "=="
    body = {"messages": [{"content": [{"image_url": {"url": image}}, {"text": "5551234 \n"}]}]}
    out = json.loads(passed(body, redact=["5551234"]))["messages"][0]["content"]
    assert out == [{"image_url": {"url": image}}, {"text": "[redacted] \n"}]


@pytest.mark.parametrize("boundary", ["boundary=B", "Boundary=B", 'charset=x; BOUNDARY="B"', "boundary=B ; charset=x"])
def test_of_a_multipart_body_the_text_is_redacted_and_the_sound_is_not(boundary: str) -> None:
    sound = b"RIFF\xff\x00555-1234\xfe"
    body = (
        b'--B\r\nContent-Disposition: form-data; name="prompt"\r\n\r\ncall 555-1234\r\n'
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + sound + b"\r\n--B--\r\n"
    )
    out = passed(body, f"multipart/form-data; {boundary}", redact=["555-1234"])
    assert out == body.replace(b"call 555-1234", b"call [redacted]")


def test_matches_beyond_a_window_are_found_wherever_they_lie() -> None:
    for at in (WINDOW - 4, WINDOW, 2 * WINDOW - OVERLAP - 3, 2 * WINDOW - OVERLAP + 5):
        text = "é" * at + "555-1234" + "z" * WINDOW
        assert json.loads(passed({"a": text}, redact=["555-1234"]))["a"] == text.replace("555-1234", "[redacted]")


# --- patterns and functions


@pytest.mark.parametrize("text", ["(", "[a", "a{99999999999}", "(a+)+$", "(a|a)*b", "([a-z]+)*!", "(.*)*x", "", "a*", "x?"])
def test_a_pattern_that_cannot_work_is_refused_at_once(text: str) -> None:
    began = time.thread_time()
    assert fault_of(text)
    assert time.thread_time() - began < 5


@pytest.mark.parametrize(
    "text", [SECRET, r"\b\d{3}-\d{4}\b", r"[\w.+-]+@[\w-]+\.[\w.-]+", r"(?i)password\s*[:=]\s*\S+", r"sk-[A-Za-z0-9]{20,}"]
)
def test_a_pattern_as_people_write_them_is_taken(text: str) -> None:
    assert fault_of(text) is None


def test_a_function_gets_the_body_and_who_asks() -> None:
    seen = []

    def noCode(ip: Any, cfg: Any) -> bool:
        seen.append((ip, cfg))
        return "def " in json.dumps(ip)

    own = guard(["noCode"], noCode=noCode)
    assert own.passed(b'{"a":"x"}', JSON, {"key_name": "alice"}) == b'{"a":"x"}'
    assert seen == [({"a": "x"}, {"key_name": "alice"})]
    with pytest.raises(Refused, match=r"guard\.deny: noCode"):
        own.passed(b'{"a":"\\u0064ef f()"}', JSON)


def test_a_function_that_fails_lets_nothing_through() -> None:
    def broken(ip: Any, cfg: Any) -> bool:
        return bool(1 / 0)

    with pytest.raises(ProxyError) as caught:
        guard(["broken"], broken=broken).passed(b"{}", JSON)
    assert (caught.value.status, caught.value.code) == (500, "guard_failed")


# --- through the proxy

CONFIG = """
targets:
  default: main
  main: {{url: "{url}", dialect: openai, envkey: SECRET}}
  tgi: {{url: "{url}/tgi", dialect: tgi, prompter: chatml}}
  all: {{url: "{url}", route: /all}}
  gemini: {{url: "{url}", dialect: gemini}}
guard: {{deny: ['AKIA[0-9A-Z]{{4}}', noWar], redact: ['555-[0-9]{{4}}']}}
"""
MAPPERS = (CHECKOUT / "mappers.py").read_text() + "\n\ndef noWar(ip, cfg={}):\n    return 'war plans' in str(ip)\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with (
        Backend() as backend,
        Proxy(
            tmp_path_factory.mktemp("guard"),
            CONFIG.format(url=backend.url),
            files={"mappers.py": MAPPERS},
            env={"SECRET": "s" * 20},
        ) as proxy,
    ):
        yield proxy, backend


RIGHT = {"authorization": f"Bearer {KEY}"}


def chat(text: str) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": text}]}


def test_a_same_api_relay_is_denied_and_redacted(running: Any) -> None:
    proxy, backend = running
    sent = len(backend.asked)
    for text in ("my AKIA1234", "war plans"):
        reply = ask(proxy.url, "POST", "/v1/chat/completions", chat(text), RIGHT)
        assert reply.status == 403
        assert reply.json()["error"]["code"] == "guard_denied"
        assert text not in reply.body.decode()
    assert len(backend.asked) == sent
    reply = ask(
        proxy.url,
        "POST",
        "/v1/chat/completions",
        b'{"model":"m", "messages":[{"content":"\\u0035\\u0035\\u0035-1234"}]}',
        RIGHT,
    )
    assert json.loads(reply.json()["body"])["messages"] == [{"content": "[redacted]"}]


@pytest.mark.parametrize(("path", "shape"), [("/v1/messages", ("error", "type")), ("/generate", ("error_type",))])
def test_a_mapped_call_is_denied_in_its_clients_shape(running: Any, path: str, shape: tuple[str, ...]) -> None:
    proxy, backend = running
    sent = len(backend.asked)
    body = {**chat("a \u0041KIA1234"), "inputs": "AKIA1234"}
    reply = ask(proxy.url, "POST", path, body, {**RIGHT, "target": "tgi"})
    assert reply.status == 403
    found = reply.json()
    for name in shape:
        found = found[name]
    assert len(backend.asked) == sent


def test_a_mapped_body_is_redacted_as_it_leaves(running: Any) -> None:
    proxy, backend = running
    ask(proxy.url, "POST", "/v1/chat/completions", chat("call 555-1234"), {**RIGHT, "target": "tgi"})
    assert "call [redacted]" in backend.asked[-1].json()["inputs"]


def test_a_chunked_body_is_held_until_it_is_whole(running: Any) -> None:
    proxy, backend = running
    for kind in ("application/octet-stream", "application/json"):
        sent = len(backend.asked)
        with Client(proxy.url, headers=RIGHT) as client:
            client.send(
                f"POST /all/x HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {KEY}\r\ncontent-type: {kind}\r\n"
                "transfer-encoding: chunked\r\n\r\n".encode()
            )
            for piece in (b'{"a":"A', b"KI", b"A12", b'34"}'):
                client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n")
            assert client.reply().status == 403
        assert len(backend.asked) == sent


def test_a_body_that_grows_or_shrinks_is_framed_anew(running: Any) -> None:
    proxy, backend = running
    reply = ask(proxy.url, "POST", "/all/x", b"call 555-1234, 555-4321", {**RIGHT, "content-type": "text/plain"})
    assert reply.status == 200
    assert backend.asked[-1].body == b"call [redacted], [redacted]"
    assert [value for name, value in backend.asked[-1].fields if name == "content-length"] == [str(len(backend.asked[-1].body))]


@pytest.mark.parametrize("path", ["/all/AKIA1234", "/all/%41KIA1234", "/all/x?q=%2541KIA1234", "/all/x?q=555-1234"])
def test_a_path_and_a_query_are_searched(running: Any, path: str) -> None:
    proxy, backend = running
    sent = len(backend.asked)
    assert ask(proxy.url, "GET", path, headers=RIGHT).status == 403
    assert len(backend.asked) == sent


@pytest.mark.parametrize("model", ["AKIA1234", "my-555-1234"])
def test_a_model_that_stands_in_the_backends_path_is_searched(running: Any, model: str) -> None:
    proxy, backend = running
    sent = len(backend.asked)
    reply = ask(proxy.url, "POST", "/v1/chat/completions", {**chat("hi"), "model": model}, {**RIGHT, "target": "gemini"})
    assert (reply.status, reply.json()["error"]["code"]) == (403, "guard_denied")
    assert len(backend.asked) == sent


def test_a_compressed_body_is_refused(running: Any) -> None:
    proxy, _ = running
    reply = ask(proxy.url, "POST", "/all/x", b"\x1f\x8b", {**RIGHT, "content-encoding": "gzip"})
    assert (reply.status, reply.json()["error"]["code"]) == (415, "guard_cannot_look")


def test_the_banner_says_that_the_guard_is_on(running: Any) -> None:
    assert re.search(r"gates .*guard", running[0].banner)


def test_a_faulty_pattern_is_told_with_its_line(tmp_path: Path) -> None:
    config = 'targets:\n  default: a\n  a: {url: "demo://"}\nguard:\n  deny:\n    - "ok"\n    - "(a+)+$"\n    - noWarr\n'
    with pytest.raises(RuntimeError) as caught, Proxy(tmp_path, config, files={"mappers.py": MAPPERS}):
        pass
    assert "config.yaml:7: guard.deny[1]: takes exponentially long" in str(caught.value)
    assert "config.yaml:8: guard.deny[2]: is no function of mappers.py; did you mean 'noWar'?" in str(caught.value)
