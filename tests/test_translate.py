"""proxy/translate.py: which request an answer's mapper is told about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.config import Entry, Target
from proxy.translate import Endpoint, Step, Translation


def translation(inward: list[str], outward: list[str], seen: dict[str, Any]) -> Translation:
    """Chains that mark the request on its way in, and note in `seen` what each of the outward steps gets as the request."""

    def marks(name: str) -> Step:
        return Step(name, lambda ip, cfg: {"through": [*ip["through"], name]})

    def notes(name: str) -> Step:
        def note(ip: Any, cfg: Mapping[str, Any]) -> Any:
            seen[name] = cfg["request"]
            return ip

        return Step(name, note)

    target = Target(name="t", url="http://h", dialect="openai")
    steps = tuple(map(marks, inward)), tuple(map(notes, outward))
    endpoint = Endpoint(target, Entry("/v1/messages"), "", "", *steps, tuple(map(notes, outward)))
    return Translation(endpoint, "id", "anthropic", "POST", "/v1/messages")


def requests_seen(inward: list[str], outward: list[str]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    made = translation(inward, outward, seen)
    made.request({"through": []}, stream=False, params={}, query="", model=None)
    made.answer({})
    whole = dict(seen)
    seen.clear()
    list(made.events([]))
    assert seen == whole, "a stream's mappers are told the same"
    return {name: request["through"] for name, request in whole.items()}


def test_the_mapper_of_an_answer_gets_what_the_one_with_the_opposite_name_got() -> None:
    inward = ["chatReqAnthropictoOpenAI", "chatReqOpenAItoOpenAI"]  # longer than the way back
    assert requests_seen(inward, ["chatAnsOpenAItoAnthropic"]) == {"chatAnsOpenAItoAnthropic": []}


def test_in_chains_of_one_length_each_mapper_gets_what_its_opposite_got() -> None:
    inward, outward = ["chatReqAnthropictoOpenAI", "chatReqOpenAItoTGI"], ["chatAnsTGItoOpenAI", "chatAnsOpenAItoAnthropic"]
    assert requests_seen(inward, outward) == {outward[0]: inward[:1], outward[1]: []}


def test_mappers_with_names_of_their_own_are_opposite_by_their_place() -> None:
    assert requests_seen(["myIn", "myNextIn"], ["myOut", "myNextOut"]) == {"myOut": ["myIn"], "myNextOut": []}
