"""proxy/translate.py: which request an answer's mapper is told about, and what that became."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.config import Entry, Target
from proxy.translate import Endpoint, Step, Translation


def translation(inward: list[str], outward: list[str], seen: dict[str, Any]) -> Translation:
    """Chains that mark the request on its way in, and note in `seen` what each outward step gets as request and made."""

    def marks(name: str) -> Step:
        return Step(name, lambda ip, cfg: {"through": [*ip["through"], name]})

    def notes(name: str) -> Step:
        def note(ip: Any, cfg: Mapping[str, Any]) -> Any:
            seen[name] = (cfg["request"]["through"], cfg["made"]["through"])
            return ip

        return Step(name, note)

    target = Target(name="t", url="http://h", dialect="openai")
    steps = tuple(map(marks, inward)), tuple(map(notes, outward))
    endpoint = Endpoint(target, Entry("/v1/messages"), "", "", *steps, tuple(map(notes, outward)))
    return Translation(endpoint, "id", "anthropic", "POST", "/v1/messages")


def told(inward: list[str], outward: list[str]) -> dict[str, Any]:
    """What each outward step is told: (the request that its opposite got, what that made of it)."""
    seen: dict[str, Any] = {}
    made = translation(inward, outward, seen)
    made.request({"through": []}, stream=False, params={}, query="", model=None)
    made.answer({})
    whole = dict(seen)
    seen.clear()
    list(made.events([]))
    assert seen == whole, "a stream's mappers are told the same"
    return whole


def test_the_mapper_of_an_answer_is_told_of_the_one_with_the_opposite_name() -> None:
    inward = ["chatReqAnthropictoOpenAI", "chatReqOpenAItoOpenAI"]  # longer than the way back
    assert told(inward, ["chatAnsOpenAItoAnthropic"]) == {"chatAnsOpenAItoAnthropic": ([], inward[:1])}


def test_in_chains_of_one_length_each_mapper_is_told_of_its_opposite() -> None:
    inward, outward = ["chatReqAnthropictoOpenAI", "chatReqOpenAItoTGI"], ["chatAnsTGItoOpenAI", "chatAnsOpenAItoAnthropic"]
    assert told(inward, outward) == {outward[0]: (inward[:1], inward), outward[1]: ([], inward[:1])}


def test_a_chain_of_one_is_told_what_was_sent() -> None:
    assert told(["chatReqOpenAItoTGI"], ["chatAnsTGItoOpenAI"]) == {"chatAnsTGItoOpenAI": ([], ["chatReqOpenAItoTGI"])}


def test_mappers_with_names_of_their_own_are_opposite_by_their_place() -> None:
    inward = ["myIn", "myNextIn"]
    assert told(inward, ["myOut", "myNextOut"]) == {"myOut": (inward[:1], inward), "myNextOut": ([], inward[:1])}
