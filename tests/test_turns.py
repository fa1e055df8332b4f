"""Turns: how many compute at once, who is next, and that nothing that blocks keeps one."""

from __future__ import annotations

import threading

from proxy.turns import Turn, Turns


def test_no_more_than_that_many_have_a_turn_and_the_next_gets_it_when_one_is_given_back() -> None:
    turns = Turns(2)
    first, second, third = Turn(turns), Turn(turns), Turn(turns)
    first.take()
    second.take()
    got = threading.Event()
    waiting = threading.Thread(target=lambda: (third.take(), got.set()), daemon=True)
    waiting.start()
    assert not got.wait(0.05)
    first.give()
    assert got.wait(5)
    waiting.join(5)
    assert third.taken
    assert not first.taken


def test_a_turn_is_free_for_others_around_what_may_block_and_is_taken_again_behind_it() -> None:
    turns = Turns(1)
    mine, other = Turn(turns), Turn(turns)
    mine.take()
    with mine:
        other.take()
        other.give()
    assert mine.taken


def test_who_had_no_turn_has_none_behind_what_may_block() -> None:
    mine = Turn(Turns(1))
    with mine:
        pass
    assert not mine.taken


def test_taking_twice_and_giving_twice_count_once() -> None:
    turns = Turns(1)
    mine, other = Turn(turns), Turn(turns)
    mine.take()
    mine.take()
    mine.give()
    mine.give()
    other.take()
    late = threading.Event()
    threading.Thread(target=lambda: (mine.take(), late.set()), daemon=True).start()
    assert not late.wait(0.05)  # the second give made no second turn
    other.give()
    assert late.wait(5)
