"""proxy/generation.py: what is built of a configuration, when, and what a reload takes over."""

from __future__ import annotations

from proxy.generation import Generation
from tests.configs import PLAIN, Load, load, with_target

__all__ = ["load"]  # a fixture
BOTH = with_target(
    """url: http://h:1
dialect: openai
mapping: {/v1/embeddings: /mine, /own: /theirs}"""
)


def made(load: Load, text: str = PLAIN, before: Generation | None = None) -> Generation:
    return Generation(load(text), {}, {}, before)


def url_of(generation: Generation, path: str, front: str = "openai", method: str = "POST") -> str | None:
    found = generation.find(generation.places["a"], front, method, path)
    return found[0].url if found else None


def test_a_mapping_wins_over_a_dialect(load: Load) -> None:
    generation = made(load, BOTH)
    assert url_of(generation, "/v1/embeddings") == "http://h:1/mine"
    assert url_of(generation, "/own") == "http://h:1/theirs"
    assert url_of(generation, "/v1/chat/completions") == "http://h:1/v1/chat/completions"
    assert url_of(generation, "/v1/messages", "anthropic") == "http://h:1/v1/chat/completions"
    assert url_of(generation, "/nowhere", "anthropic") is None


def test_a_target_with_a_route_alone_passes_what_is_safe(load: Load) -> None:
    generation = made(load, with_target("url: http://h:1/base\nroute: /a"))
    assert url_of(generation, "/any/path") == "http://h:1/base/any/path"
    assert url_of(generation, "/../up") is None
    assert generation.serves_root("GET")
    assert not made(load, PLAIN).serves_root("GET")
    assert made(load, with_target("url: http://h:1\nmapping: {/: }")).serves_root("GET")


def test_placeholders_of_a_path_are_told(load: Load) -> None:
    generation = made(load, with_target("url: http://h:1\ndialect: gemini"))
    found = generation.find(generation.places["a"], "gemini", "POST", "/v1beta/models/org/big:generateContent")
    assert found is not None
    assert found[1] == {"model": "org/big"}


def test_what_a_dialect_stands_for_is_built_once_for_each_api_that_asks(load: Load) -> None:
    generation = made(load, BOTH)
    place = generation.places["a"]
    assert place.expanded == {}
    url_of(generation, "/v1/embeddings")
    assert place.expanded == {}, "the mapping has answered"
    url_of(generation, "/v1/chat/completions")
    url_of(generation, "/v1/messages", "anthropic")
    assert list(place.expanded) == ["openai", "anthropic"]
    first = place.expanded["openai"]
    url_of(generation, "/v1/chat/completions")
    assert place.expanded["openai"] is first


def test_an_adapter_is_made_when_it_is_asked_for_and_only_those_are_closed(load: Load) -> None:
    generation = made(load, PLAIN)
    place = generation.places["a"]
    generation.close()
    assert "adapter" not in vars(place)
    adapter = place.adapter
    assert place.adapter is adapter
    closed: list[bool] = []
    adapter.close = lambda: closed.append(True)  # type: ignore[method-assign]
    generation.close()
    assert closed == [True]


def test_bans_outlive_a_reload_that_leaves_their_rules_alone(load: Load) -> None:
    first = made(load, PLAIN)
    same = made(load, PLAIN + "system: {timeout: 7}\n", first)
    assert same.cerbere is first.cerbere
    other = made(load, PLAIN + "cerbere: {max_tries: 5}\n", same)
    assert other.cerbere is not first.cerbere


def test_what_takes_a_restart_stays_as_it_began(load: Load) -> None:
    first = made(load, PLAIN + "system: {workers: 1}\n")
    second = made(load, PLAIN + "system: {workers: 2}\n", first)
    assert (second.config.system.workers, second.workers) == (2, 1)
    assert made(load, PLAIN, second).workers == 1


def test_a_plain_configuration_has_no_traffic_no_records_and_no_state(load: Load) -> None:
    generation = made(load, PLAIN)
    assert (generation.traffic, generation.records, generation._state, generation._ledger) == (None, None, None, None)
    limited = made(load, PLAIN + "limits: {global: 60/minute}\n")
    assert limited.traffic is not None
    assert limited.state is limited.state
    limited.end()
