"""proxy/expand.py: what a target's `dialect` is shorthand for, to the clients of one API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from proxy import dialects
from proxy.config import Entry, Target, find_mapper
from proxy.expand import expand

NAMES = dialects.names()


def built_in(name: str) -> bool:
    return find_mapper(name, {}) is not None


def expanded(
    front: str, own: str, *, url: str = "http://h", exists: Callable[[str], bool] = built_in, aliases: bool = False, **more: Any
) -> dict[tuple[str | None, str], Entry]:
    """The entries by method and path."""
    entries = expand(Target("t", url, dialect=own, line=7, **more), front, exists, aliases)
    found = {(entry.method, entry.key): entry for entry in entries}
    assert len(found) == len(entries), "a path stands twice"
    return found


@pytest.mark.parametrize("own", NAMES)
@pytest.mark.parametrize("front", NAMES)
def test_every_path_of_a_client_is_served_answered_or_refused_by_functions_that_exist(front: str, own: str) -> None:
    found = expanded(front, own)
    for route in dialects.load(front).routes:
        assert (route.method, route.path) in found
    for entry in found.values():
        assert (entry.origin, entry.line) == ("dialect", 7)
        named = (*entry.in_, *entry.out, *entry.stream, entry.answer, entry.before_in, entry.before_out)
        assert [name for name in named if name and not built_in(name)] == []
        assert entry.unsupported != (entry.path is not None or entry.answer is not None)
        assert bool(entry.before) == bool(entry.before_in) == bool(entry.before_out)


@pytest.mark.parametrize("name", NAMES)
def test_one_api_on_both_ends_is_relayed_as_bytes(name: str) -> None:
    for entry in expanded(name, name).values():
        assert (entry.in_, entry.out, entry.stream, entry.answer, entry.unsupported) == ((), (), (), None, False)


def test_the_version_of_a_path_gives_way_to_that_of_the_url() -> None:
    found = expanded("openai", "openai")
    assert found["POST", "/v1/chat/completions"].path == "/chat/completions"
    assert found[None, "/v1/*"].path == "/*"
    assert expanded("gemini", "gemini")["POST", "/v1alpha/models/{model}:countTokens"].path == "/models/{model}:countTokens"
    assert expanded("llamacpp", "llamacpp")["POST", "/completion"].path == "/completion"


def test_a_backend_serves_the_paths_of_its_own_api_to_all_but_not_those_that_apis_share() -> None:
    found = expanded("anthropic", "openai")
    assert found["POST", "/v1/embeddings"] == Entry("/v1/embeddings", "POST", "/embeddings", line=7, origin="dialect")
    assert (None, "/v1/*") not in found
    assert found["GET", "/v1/models"].out == ("modelsAnsAliases", "modelsAnsOpenAItoAnthropic")


def test_between_two_apis_the_hub_is_passed() -> None:
    chat = expanded("anthropic", "gemini")["POST", "/v1/messages"]
    assert chat.in_ == ("chatReqAnthropictoOpenAI", "chatReqOpenAItoGemini")
    assert chat.out == ("chatAnsGeminitoOpenAI", "chatAnsOpenAItoAnthropic")
    assert chat.stream == ("chatStreamGeminitoOpenAI", "chatStreamOpenAItoAnthropic")
    assert (chat.path, chat.stream_path) == (
        "/models/{model}:generateContent",
        "/models/{model}:streamGenerateContent?alt=sse",
    )


def test_a_pair_that_somebody_wrote_is_taken_in_the_place_of_the_hub() -> None:
    own = {"chatReqAnthropictoGemini", "chatStreamGeminitoAnthropic"}
    chat = expanded("anthropic", "gemini", exists=lambda name: name in own or built_in(name))["POST", "/v1/messages"]
    assert chat.in_ == ("chatReqAnthropictoGemini",)
    assert chat.out == ("chatAnsGeminitoOpenAI", "chatAnsOpenAItoAnthropic")
    assert chat.stream == ("chatStreamGeminitoAnthropic",)


def test_what_only_the_hub_knows_is_taken_off_before_an_openai_backend() -> None:
    chat = expanded("anthropic", "openai")["POST", "/v1/messages"]
    assert chat.in_ == ("chatReqAnthropictoOpenAI", "chatReqOpenAItoOpenAI")
    assert chat.out == ("chatAnsOpenAItoAnthropic",)


def test_a_bare_prompt_is_a_users_message_where_the_backend_only_chats() -> None:
    text = expanded("tgi", "anthropic")["POST", "/generate"]
    assert text.path == "/messages"
    assert text.in_ == ("textReqTGItoOpenAI", "textReqOpenAItoChat", "chatReqOpenAItoAnthropic")
    assert text.out == ("chatAnsAnthropictoOpenAI", "textAnsChattoOpenAI", "textAnsOpenAItoTGI")
    assert text.stream == ("chatStreamAnthropictoOpenAI", "textStreamChattoOpenAI", "textStreamOpenAItoTGI")
    assert expanded("openai", "anthropic")["POST", "/v1/completions"].in_ == ("textReqOpenAItoChat", "chatReqOpenAItoAnthropic")


def test_tokens_are_estimated_where_the_backend_counts_none_and_what_it_cannot_is_refused() -> None:
    count = expanded("anthropic", "openai")["POST", "/v1/messages/count_tokens"]
    assert (count.answer, count.in_, count.out) == (
        "countEstimate", ("countReqAnthropictoOpenAI",), ("countAnsOpenAItoAnthropic",)
    )  # fmt: skip
    assert expanded("openai", "anthropic")["POST", "/v1/embeddings"].unsupported


def test_a_mapper_that_is_missing_makes_the_operation_one_that_the_backend_lacks() -> None:
    without = expanded("openai", "gemini", exists=lambda name: name != "embedAnsGeminitoOpenAI" and built_in(name))
    assert without["POST", "/v1/embeddings"].unsupported
    assert not expanded("openai", "gemini")["POST", "/v1/embeddings"].unsupported


def test_lists_of_models_name_the_aliases_when_there_are_some() -> None:
    plain, named = (expanded("openai", "openai", aliases=aliases)["GET", "/v1/models"] for aliases in (False, True))
    assert (plain.path, plain.out) == ("/models", ())
    assert (named.path, named.out) == ("/models", ("modelsAnsAliases",))


def test_llama_cpp_writes_the_prompt_unless_the_target_has_a_prompter() -> None:
    chat = expanded("openai", "llamacpp")["POST", "/v1/chat/completions"]
    assert (chat.before, chat.before_in, chat.before_out) == ("/apply-template", "templateReqLlamaCpp", "templateAnsLlamaCpp")
    assert expanded("openai", "llamacpp", prompter="chatml")["POST", "/v1/chat/completions"].before is None


def test_limits_of_programs_are_told_by_the_hubs_names() -> None:
    for front, path in (("openai", "/v1/chat/completions"), ("anthropic", "/v1/messages"), ("tgi", "/generate")):
        server, program = (
            expanded(front, "llamacpp", url=url, prompter="x")["POST", path] for url in ("http://h", "command://h")
        )
        assert program.in_ == (*server.in_[:-1], "limitsReqLlamaCpp", server.in_[-1])
        assert program._replace(in_=server.in_) == server
    embed = expanded("openai", "llamacpp", url="command://h")["POST", "/v1/embeddings"]
    assert "limitsReqLlamaCpp" not in embed.in_
