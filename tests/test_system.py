"""System messages in mid-conversation: a target's policy for them."""

from __future__ import annotations

import copy

import pytest

from proxy.dialects._system import policed

SAID = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "first"},
        {"role": "user", "content": "hello"},
        {"role": "developer", "content": "later"},
        {"role": "user", "content": "go on"},
    ],
}


@pytest.mark.parametrize(
    ("policy", "roles"),
    [
        ("inline", ["system", "user", "developer", "user"]),
        ("hoist", ["system", "developer", "user", "user"]),
        ("user", ["system", "user", "user", "user"]),
    ],
)
def test_a_policy_moves_or_renames_later_ones_and_changes_nothing_else(policy: str, roles: list[str]) -> None:
    before = copy.deepcopy(SAID)
    after = policed(SAID, policy)
    assert [message["role"] for message in after["messages"]] == roles
    assert sorted(message["content"] for message in after["messages"]) == ["first", "go on", "hello", "later"]
    assert after["model"] == "m"
    assert before == SAID


@pytest.mark.parametrize("odd", [None, [], {"messages": None}, {"messages": [1, None]}, {"messages": [{"role": ["x"]}]}])
@pytest.mark.parametrize("policy", ["hoist", "user"])
def test_what_is_no_conversation_stays_as_it_is(odd: object, policy: str) -> None:
    assert policed(odd, policy) == odd
