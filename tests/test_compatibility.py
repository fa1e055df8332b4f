"""Any client, any backend: each real client sends every backend what its API can say, through one running proxy.

A cell is one feature of one client before one backend. It works, or it is refused with the status and the field that
`compat/limits.py` names, or it is lost and the loss ledger says so. What comes out is docs/compatibility.md (see conftest.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import anthropic.types.message_create_params as message_params
import openai.types.chat.completion_create_params as chat_params
import openai.types.responses.response_create_params as response_params
import pytest
from huggingface_hub import TextGenerationInputGenerateParameters
from ollama._types import ChatRequest, Options

from tests.compat import losses, matrix, maximal
from tests.compat.features import FEATURES, Json, Refused
from tests.compat.limits import Loss, Refusal, limit
from tests.compat.world import World

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("compat")) as made:
        yield made


class Cell:
    """One client before one backend, in one test."""

    def __init__(self, world: World, client: matrix.Client, backend: matrix.Backend) -> None:
        self.world, self.client, self.backend = world, client, backend
        self._before = len(self._requests())

    def _requests(self) -> list[Any]:
        return [] if self.backend.real else self.world.doubles[self.backend.name].requests

    def run(self, **ask: Any) -> Json:
        return self.world.run(self.client, self.backend, ask)

    def sent(self) -> list[Json]:
        return [request[3] for request in self._requests()[self._before :] if request[0] == "POST"]


CELLS = matrix.cells()


@pytest.mark.parametrize(("client", "backend", "feature"), CELLS, ids=[matrix.name(*cell) for cell in CELLS])
def test_cell(
    world: World, client: matrix.Client, backend: matrix.Backend, feature: str, record_property: Callable[[str, object], None]
) -> None:
    expected = limit(client, backend, feature)
    met = meet(Cell(world, client, backend), feature, expected)
    record_property("cell", [client.name, client.front, backend.name, feature, met])


def meet(cell: Cell, feature: str, expected: Refusal | Loss | None) -> str:
    """ok, refused or lost; whatever else happens is a failure."""
    if isinstance(expected, Refusal):
        with pytest.raises(Refused) as caught:
            FEATURES[feature](cell)
        assert (caught.value.status, expected.words in caught.value.message) == (expected.status, True), caught.value
        return "refused"
    if isinstance(expected, Loss):
        lost = losses.lost(cell.client.front, cell.backend.name)
        assert any(re.search(expected.words, path) for path in lost), lost
        with pytest.raises(AssertionError):
            FEATURES[feature](cell)
        return "lost"
    FEATURES[feature](cell)
    return "ok"


def _names(front: str) -> set[str]:
    """The fields of the base request and of those that are added."""
    bodies = [maximal.BASE[front], *maximal.FIELDS[front].values()]
    inner = [body[name] for body in bodies for name in ("options", "parameters") if isinstance(body.get(name), dict)]
    return {name for body in (*bodies, *inner) for name in body}


OWN_WAY = {"stream", "stream_options", "user_profile_id", "workspace_id"}  # how it is sent, or headers
OLD = {"functions", "function_call", "max_tokens"}  # of OpenAI's, that other fields took the place of


@pytest.mark.parametrize(
    ("front", "documented"),
    [
        ("openai", set(chat_params.CompletionCreateParamsBase.__annotations__) - OLD),
        ("responses", set(response_params.ResponseCreateParamsBase.__annotations__)),
        ("anthropic", set(message_params.MessageCreateParamsBase.__annotations__)),
        ("ollama", set(ChatRequest.model_fields) | set(Options.model_fields)),
        ("tgi", {field.name for field in fields(TextGenerationInputGenerateParameters)}),
    ],
)
def test_maximal_requests_know_every_field(front: str, documented: set[str]) -> None:
    assert documented - OWN_WAY - _names(front) == set()
