"""Where a call goes: no way of writing a path reaches what is not mapped, and names find their target."""

from __future__ import annotations

import itertools
import time
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.config import Cerbere, Config, Entry, ModelRule, System, Target
from proxy.errors import Refused
from proxy.routing import Paths, Router, fill, is_safe, joined, model_in, split_target, with_version


def config(targets: list[Target], default: str = "one", models: tuple[ModelRule, ...] = ()) -> Config:
    return Config(System(), Cerbere(), {target.name: target for target in targets}, default, models)


def target(name: str, **more: Any) -> Target:
    return Target(name, f"http://{name}.test", **more)


# --- paths that are safe


@pytest.mark.parametrize(
    "path", ["/", "/a", "/a/b.c/d", "/a...b/..c/d..", "/v1/models/org%2Fname", "/a%20b", "/é", "/a:b@c,d=e"]
)
def test_a_plain_path_is_safe(path: str) -> None:
    assert is_safe(path)


ENCODED_DOTS = [
    "".join(pair) for pair in itertools.product([".", "%2e", "%2E", "%252e", "%252E", "%25252e", "%%32%65"], repeat=2)
]


@pytest.mark.parametrize("dots", [*ENCODED_DOTS, ".", "%2e", "%252e"])
def test_no_way_of_writing_dots_is_safe(dots: str) -> None:
    for around in ("/a/{}/b", "/{}/b", "/a/{}", "/{}", "/a%2f{}%2fb", "/a%2F{}", "/a%252f{}", "/a%5c{}", "/a\\{}"):
        assert not is_safe(around.format(dots)), around


@pytest.mark.parametrize(
    "bad", ["//", "/%2f", "%2f%2f", "%252f/", ";", "%3b", "%253B", "\\", "%5c", "%255C", "%00", "%2500", "\0"]
)
def test_no_way_of_writing_what_servers_read_differently_is_safe(bad: str) -> None:
    assert not is_safe(f"/a{bad}b")


@pytest.mark.parametrize("path", ["", "*", "a", "../a", "@host/a", ".", "%2fa"])
def test_what_is_no_absolute_path_is_not_safe(path: str) -> None:
    assert not is_safe(path)


@settings(max_examples=300)
@given(st.text("/.%25eEfF2;\\abc3bB5cC0", max_size=14), st.integers(0, 4))
def test_decoding_a_safe_path_never_climbs(tail: str, times: int) -> None:
    path = "/" + tail
    if is_safe(path):
        for _ in range(times):
            path = unquote(path)
        assert not {".", ".."} & set(path.split("/"))
        assert not any(bad in path for bad in ("//", ";", "\\", "\0"))


@given(st.sampled_from(["..", ".", "../..", "a/../b", "..;", "a//b"]), st.integers(0, 5))
def test_a_path_that_climbs_is_never_safe_however_often_it_is_encoded(climbing: str, times: int) -> None:
    for _ in range(times):
        climbing = quote(climbing, safe="").replace(".", "%2e")
    assert not is_safe(f"/files/{climbing}")


# --- request targets


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("/", ("/", "")),
        ("/a?b=c", ("/a", "b=c")),
        ("/a?b?c", ("/a", "b?c")),
        ("/a?", ("/a", "")),
        ("//host/a", ("//host/a", "")),
        ("/a://b", ("/a://b", "")),
        ("http://elsewhere.test/a?b", ("/a", "b")),
        ("http://elsewhere.test", ("/", "")),
        ("http://elsewhere.test?b=/c", ("/", "b=/c")),
        ("https://user:pw@elsewhere.test:1/a//b", ("/a//b", "")),
        ("http://[::1/a", ("/a", "")),
        ("http://[/", ("/", "")),
        ("http://h:port/a", ("/a", "")),
        ("http:///a", ("/a", "")),
    ],
)
def test_a_request_s_target_is_its_path_and_query_and_never_a_host(raw: str, wanted: tuple[str, str]) -> None:
    assert split_target(raw) == wanted


@given(
    st.sampled_from(["/", "http://", "https://"]), st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)
)
def test_a_path_of_any_target_begins_with_a_slash(start: str, rest: str) -> None:
    path, query = split_target(start + rest)
    assert path.startswith("/")
    assert "?" not in path
    assert start != "/" or path + ("?" + query if "?" in rest else "") == "/" + rest


# --- upstream urls


@pytest.mark.parametrize(
    ("url", "dialect", "wanted"),
    [
        ("http://h", "openai", "http://h/v1"),
        ("http://h/", "openai", "http://h/v1"),
        ("http://h/v1/", "openai", "http://h/v1"),
        ("http://h/openai", "openai", "http://h/openai"),
        ("http://h", "anthropic", "http://h/v1"),
        ("http://h/v1", "anthropic", "http://h/v1"),
        ("http://h/proxy", "anthropic", "http://h/proxy/v1"),
    ],
)
def test_a_dialect_s_version_is_there_once(url: str, dialect: str, wanted: str) -> None:
    assert with_version(url, dialect) == wanted


@pytest.mark.parametrize(
    ("url", "path", "wanted"),
    [
        ("http://h", "/v1/chat", "http://h/v1/chat"),
        ("http://h/v1", "/v1/chat", "http://h/v1/chat"),
        ("http://h/v1/", "/chat", "http://h/v1/chat"),
        ("http://h/v1beta", "/v1beta/models", "http://h/v1beta/models"),
        ("http://h/v1", "/v1", "http://h/v1"),
        ("http://h/v1", "/v1x/a", "http://h/v1/v1x/a"),
        ("http://v1", "/v1/a", "http://v1/v1/a"),
        ("http://h/v1/x", "/v1/a", "http://h/v1/x/v1/a"),
    ],
)
def test_a_version_that_both_have_is_not_doubled(url: str, path: str, wanted: str) -> None:
    assert joined(url, path) == wanted


def test_placeholders_are_filled_in_and_cannot_leave_their_place() -> None:
    assert fill("/models/{model}:go", {"model": "a"}, "org/b c") == "/models/org/b%20c:go"
    assert fill("/files/{id}/x", {"id": "a?b#c{model}"}, "m") == "/files/a%3Fb%23c%7Bmodel%7D/x"
    assert fill("/files/*", {"rest": "a/b%20c"}, None) == "/files/a/b%20c"
    assert fill("http://h/openai/*?api-version=1", {"rest": "files/a"}, None) == "http://h/openai/files/a?api-version=1"
    assert fill("/{a}{b}", {"a": "{b}", "b": "1"}, None) == "/%7Bb%7D1"
    assert fill("/plain", {}, None) == "/plain"


# --- endpoints by path


def paths(*keys: str) -> Paths[str]:
    """Keys as in `mapping`, with a method before them or none; the endpoint is the key itself."""
    found = []
    for key in keys:
        method, _, path = key.rpartition(" ")
        found.append((Entry(path, method=method or None), key))
    return Paths.of(found)


@pytest.mark.parametrize(
    ("keys", "asked", "wanted"),
    [
        (["/chat"], "POST /chat", "/chat"),
        (["/chat"], "POST /v1/chat", "/chat"),
        (["/v1/chat"], "GET /chat", "/v1/chat"),
        (["/chat", "/v1/chat"], "GET /chat", "/chat"),
        (["/chat", "/v1/chat"], "GET /v1/chat", "/v1/chat"),
        (["/chat"], "GET /v1/v1/chat", None),
        (["/chat"], "GET /chat/", None),
        (["/chat"], "GET /Chat", None),
        (["/"], "GET /", "/"),
        (["/"], "GET /v1", None),
        (["POST /a", "GET /a"], "GET /a", "GET /a"),
        (["POST /a", "/a"], "GET /a", "/a"),
        (["/a", "POST /a"], "POST /a", "POST /a"),
        (["POST /a"], "GET /a", None),
        (["POST /v1/a", "/a"], "POST /a", "/a"),
        (["POST /v1/a", "/a"], "POST /v1/a", "POST /v1/a"),
        (["POST /v1/a", "GET /a"], "POST /a", "POST /v1/a"),
        (["/files/*", "/files/x"], "GET /files/x", "/files/x"),
        (["/files/*", "/files/special/*"], "GET /files/special/a", "/files/special/*"),
        (["/{a}", "/files/{a}"], "GET /files/1", "/files/{a}"),
        (["/files/*"], "GET /v1/files/a/b", "/files/*"),
        (["/*"], "GET /anything/at/all", "/*"),
        (["/{a}/end"], "GET /x/y/end", None),
        (["POST /m/{a}", "/m/*"], "GET /m/1", "/m/*"),
    ],
)
def test_a_path_finds_its_key(keys: list[str], asked: str, wanted: str | None) -> None:
    method, path = asked.split(" ")
    found = paths(*keys).find(method, path)
    assert (found and found[0]) == wanted


@pytest.mark.parametrize(
    ("key", "path", "wanted"),
    [
        ("/files/*", "/files/a/b%20c", {"rest": "a/b%20c"}),
        ("/files/*", "/files/", {"rest": ""}),
        ("/files/{id}", "/files/a%20b", {"id": "a b"}),
        ("/files/{id}/content", "/v1/files/7/content", {"id": "7"}),
        ("/models/{model}", "/models/org/name", {"model": "org/name"}),
        ("/models/{model}", "/models/org%2Fname", {"model": "org/name"}),
        ("/models/{model}:generate", "/models/a:b:generate", {"model": "a:b"}),
        ("/a/{x}/{y}", "/a/1/2", {"x": "1", "y": "2"}),
        ("/a.b/{x}", "/a.b/1", {"x": "1"}),
    ],
)
def test_placeholders_stand_for_what_the_path_has_there(key: str, path: str, wanted: dict[str, str]) -> None:
    found = paths(key).find("GET", path)
    assert found is not None
    assert found[1] == wanted


@pytest.mark.parametrize(
    "path", ["/aXb/1", "/files/a/../../admin", "/files/%2e%2e/admin", "/files//a", "/files/a;b", "/files/x%00"]
)
def test_a_path_that_is_not_safe_matches_no_pattern(path: str) -> None:
    assert paths("/files/*", "/a.b/{x}").find("GET", path) is None


# --- targets


def test_the_header_wins_over_the_route_the_route_over_the_models_those_over_the_default() -> None:
    rules = (ModelRule("m*", "three", "real"),)
    router = Router(config([target("one", model="o"), target("two", route="/two"), target("three", model="t")], models=rules))
    assert router.choose("three", "two", "m1").target == "three"
    assert router.choose(None, "two", "m1").target == "two"
    assert (choice := router.choose(None, None, "m1")).target == "three"
    assert choice.model == "real"
    assert (choice := router.choose(None, None, "x")).target == "one"
    assert choice.model == "o"
    assert router.choose("default", None, None).target == "one"


def test_a_target_that_is_not_there_is_a_404_that_names_it() -> None:
    router = Router(config([target("one")]))
    for name in ("nope", "", "One"):
        with pytest.raises(Refused) as caught:
            router.choose(name, None, None)
        assert caught.value.status == 404
        assert repr(name) in caught.value.message


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/a", ("short", "/")),
        ("/a/", ("short", "/")),
        ("/a/x", ("short", "/x")),
        ("/ab", (None, "/ab")),
        ("/a/b/x", ("long", "/x")),
        ("/a/b", ("long", "/")),
        ("/a/bc", ("short", "/bc")),
        ("/x", (None, "/x")),
    ],
)
def test_the_longest_route_that_a_path_begins_with_takes_it(path: str, wanted: tuple[str | None, str]) -> None:
    router = Router(config([target("one"), target("short", route="/a/"), target("long", route="/a/b")]))
    assert router.by_route(path) == wanted


@pytest.mark.parametrize(
    ("pattern", "fits", "not_"),
    [
        ("gpt-4", ["gpt-4"], ["gpt-4o", "GPT-4", ""]),
        ("gpt-*", ["gpt-", "gpt-4", "gpt-4\nx"], ["gpt", "xgpt-4"]),
        ("*", ["", "anything"], []),
        ("*-mini", ["-mini", "gpt-mini"], ["gpt-mini2"]),
        ("a*b*c", ["abc", "axbyc", "abbcc"], ["acb", "ab", "ac", "xabc"]),
        ("a*a", ["aa", "aba"], ["a"]),
        ("*ab*ba*", ["abba", "xabxbax"], ["aba", "bab"]),
        ("a**b", ["ab", "axb"], ["a"]),
        ("a.b*", ["a.b", "a.bc"], ["axb"]),
        ("[x]*", ["[x]1"], ["x1"]),
    ],
)
def test_a_pattern_of_models(pattern: str, fits: list[str], not_: list[str]) -> None:
    router = Router(config([target("one")], models=(ModelRule(pattern, "one"),)))
    assert [name for name in fits if router.rule(name) is None] == []
    assert [name for name in not_ if router.rule(name) is not None] == []


@given(st.lists(st.text("ab*", max_size=3), min_size=1, max_size=4), st.lists(st.text("ab", max_size=3), max_size=12))
def test_a_name_made_from_a_pattern_fits_it(parts: list[str], fillings: list[str]) -> None:
    pattern = "*".join(parts) + "*"
    stars = iter(fillings + [""] * 20)
    name = "".join(next(stars) if char == "*" else char for char in pattern)
    assert Router(config([target("one")], models=(ModelRule(pattern, "one"),))).rule(name) is not None


def test_a_long_name_against_many_stars_costs_little() -> None:
    router = Router(config([target("one")], models=(ModelRule("*a" * 12 + "*b", "one"),)))
    began = time.process_time()
    assert router.rule("a" * 1_000_000) is None
    assert time.process_time() - began < 1.0


def test_the_exact_name_wins_then_the_first_pattern() -> None:
    rules = (ModelRule("m*", "one", "first"), ModelRule("mm*", "one", "second"), ModelRule("mmm", "one", "exact"))
    router = Router(config([target("one")], models=rules))
    found = {name: rule.model for name in ("m", "mm", "mmm") if (rule := router.rule(name))}
    assert found == {"m": "first", "mm": "first", "mmm": "exact"}


def test_a_target_s_aliases_are_its_exact_names() -> None:
    rules = (ModelRule("a", "one"), ModelRule("b*", "one"), ModelRule("c", "two"), ModelRule("d", "default"))
    router = Router(config([target("one"), target("two")], models=rules))
    assert router.aliases("one") == ["a", "d"]
    assert router.aliases("two") == ["c"]


@pytest.mark.parametrize(
    ("body", "params", "wanted"),
    [
        ({"model": "a"}, {}, "a"),
        ({"model": "a"}, {"model": "b"}, "b"),
        ({"model": 3}, {}, None),
        ({"model": None}, {}, None),
        ([{"model": "a"}], {}, None),
        (None, {}, None),
        ({}, {}, None),
    ],
)
def test_the_model_is_the_path_s_else_the_body_s(body: Any, params: dict[str, str], wanted: str | None) -> None:
    assert model_in(body, params) == wanted
