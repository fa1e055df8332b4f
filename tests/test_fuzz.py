"""The fuzzing of tests/fuzz, bounded: some random requests of each front to every backend, some answers back, and all that was
ever found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxy.errors import BadRequest
from tests.fuzz import answers, found, hold
from tests.fuzz.__main__ import fuzz, fuzz_answers
from tests.fuzz.fronts import FRONTS, REFUSALS
from tests.fuzz.hold import BACKENDS, Broken
from tests.fuzz.values import values

ANSWERS = 12  # of each backend to each front
COUNT = 60  # for each front and backend; `make fuzz COUNT=10000` is for long
KEPT, KEPT_ANSWERS = list(found.kept()), list(found.kept("answers"))
WAYS = list(answers.each())


@pytest.mark.parametrize("front", FRONTS)
def test_every_valid_request_is_served_or_refused_with_a_reason(front):
    sent = [0]

    @settings(max_examples=COUNT, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(FRONTS[front].requests())
    def every(body: Any) -> None:
        sent[0] += sum(hold.hold(FRONTS[front], backend, body) == "sent" for backend in BACKENDS)

    every()
    assert sent[0] > COUNT  # most go on


@pytest.mark.parametrize(("front", "backend", "body"), [pytest.param(*kept[1:], id=kept[0]) for kept in KEPT])
def test_what_was_found_once_is_held(front, backend, body):
    FRONTS[front].check(body)
    hold.hold(FRONTS[front], backend, body)


@pytest.mark.parametrize("name", answers.ANSWERS)
def test_every_valid_answer_becomes_one_of_the_clients_api_whole_and_streamed(name):
    @settings(max_examples=ANSWERS, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(answers.ANSWERS[name].whole())
    def every(answer: Any) -> None:
        for front in fronts:
            answers.hold_answer(front, name, answer)

    fronts = [front for front, other in WAYS if other == name]
    assert fronts
    every()


@pytest.mark.parametrize(("front", "name", "answer"), [pytest.param(*kept[1:], id=kept[0]) for kept in KEPT_ANSWERS])
def test_an_answer_that_was_found_once_is_held(front, name, answer):
    answers.hold_answer(front, name, answer)


class TestTheFuzzer:
    def test_a_fault_is_shrunk_and_kept(self, monkeypatch, tmp_path, capsys):
        def breaks(front: Any, backend: str, body: Any) -> str:
            if body.get("stream") and backend == "tgi":
                raise Broken("as asked")
            return "sent"

        monkeypatch.setattr("tests.fuzz.__main__.hold", breaks)
        monkeypatch.setattr(found, "FOLDER", tmp_path)
        assert fuzz("llamacpp", ["openai", "tgi"], 200) == 1
        kept = list(found.kept())
        assert [entry[1:3] for entry in kept] == [("llamacpp", "tgi")]
        assert set(kept[0][3]) <= {"prompt", "stream"}  # the smallest
        assert "as asked" in capsys.readouterr().out

    def test_a_wrong_answer_is_shrunk_and_kept(self, monkeypatch, tmp_path, capsys):
        def breaks(front: str, name: str, answer: Any) -> None:
            if answer["message"].get("tool_calls"):
                raise Broken("as asked")

        monkeypatch.setattr(answers, "hold_answer", breaks)
        monkeypatch.setattr(found, "FOLDER", tmp_path)
        assert fuzz_answers("openai", "ollama", 200) == 1
        ((_, *where, answer),) = found.kept("answers")
        assert (where, len(answer["message"]["tool_calls"])) == (["openai", "ollama"], 1)
        assert "as asked" in capsys.readouterr().out

    def test_an_answer_that_a_mapper_breaks_is_a_fault(self, monkeypatch):
        said = {"message": {"role": "assistant", "content": "hello"}, "created_at": "2026-11-21T12:00:00Z"}
        answer = {"model": "m", "done": True, "done_reason": "stop", **said}
        answers.hold_answer("openai", "ollama", answer)
        monkeypatch.setattr("proxy.translate.Translation.answer", lambda call, ip: {"choices": []})
        with pytest.raises(Broken, match="none of its API"):
            answers.hold_answer("openai", "ollama", answer)

    def test_a_crash_of_a_mapper_and_a_body_that_is_refused_are_faults(self, monkeypatch):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        assert hold.hold(FRONTS["ollama"], "openai", body) == "sent"
        refuses = {**BACKENDS, "openai": ("gpt-4.1", lambda sent, stream: (_ for _ in ()).throw(REFUSALS[0](400, "no")))}
        monkeypatch.setattr(hold, "BACKENDS", refuses)
        with pytest.raises(Broken, match="refuses"):
            hold.hold(FRONTS["ollama"], "openai", body)

        def crashes(*_: Any) -> None:
            raise BadRequest("x", code="mapper_failed")

        monkeypatch.setattr("proxy.translate.Translation.request", crashes)
        with pytest.raises(Broken):
            hold.hold(FRONTS["ollama"], "openai", body)

    @settings(max_examples=50, phases=(Phase.generate,))
    @given(st.data())
    def test_values_keep_to_their_schema(self, data):
        import jsonschema

        schema = {
            "$defs": {"t": {"type": "object", "properties": {"t": {"$ref": "#/$defs/t"}}, "additionalProperties": False}},
            "type": "object",
            "properties": {
                "a": {"anyOf": [{"type": "integer"}, {"type": "null"}, {"$ref": "#/$defs/t"}]},
                "b": {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 1},
                "c": {"const": 5},
                "d": {"type": "object", "additionalProperties": True},
            },
            "required": ["a", "b"],
            "additionalProperties": False,
        }
        jsonschema.validate(data.draw(values(schema, {})), schema)
