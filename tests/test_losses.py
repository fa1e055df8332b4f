"""proxy/losses.py: what a translation loses, found out once for each shape of request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from proxy.errors import BadRequest
from proxy.losses import WAITING, Ledger, lost_paths, shape

Json = dict[str, Any]
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi", "name": "me"}], "seed": 7, "stop": None, "n": 1}


def keeps(*names: str) -> Callable[[Json], Json]:
    """A mapper that carries these fields on."""
    return lambda body: {name: body[name] for name in names if name in body}


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "losses"]


def work_off() -> None:
    for thread in threads():
        thread.join(10)
    assert not threads()


def test_a_field_is_lost_when_nothing_that_is_sent_changes_without_it() -> None:
    def mapper(body: Json) -> Json:
        return {"said": [message.get("content") for message in body["messages"]]}

    with pytest.raises(KeyError):  # a mapper's own fault; behind `Translation.pure` it is a ProxyError
        list(lost_paths(BODY, mapper))
    assert list(lost_paths(BODY, lambda body: mapper({"messages": [], **body}))) == ["$.seed", "$.messages[*].name"]
    assert list(lost_paths(BODY, keeps("messages", "seed"))) == []


def test_what_a_mapper_cannot_do_without_is_not_lost() -> None:
    def refuses(body: Json) -> Json:
        if "seed" not in body:
            raise BadRequest("no seed")
        return keeps("messages")(body)

    assert list(lost_paths(BODY, refuses)) == []


def test_what_is_no_json_is_for_the_relay_to_refuse() -> None:
    assert list(lost_paths(BODY, lambda body: {"set": {1, 2}})) == []
    assert list(lost_paths(BODY, lambda body: {1: "int", "1": "str"})) == []


def test_requests_have_one_shape_that_differ_in_what_they_say_only() -> None:
    other = {**BODY, "seed": 8, "messages": [{"role": "user", "content": "ho", "name": "you"}] * 2}
    assert shape(BODY) == shape(other)
    assert shape(BODY) != shape({**BODY, "top_k": 1})
    assert shape(BODY) != shape({**BODY, "messages": [{"role": "system", "content": "hi", "name": "me"}]})


def test_the_second_call_of_a_shape_is_told_and_the_first_one_if_it_waits() -> None:
    ledger, endpoint = Ledger(), object()
    assert ledger.lost(endpoint, "t", BODY, keeps("messages")) == ()
    work_off()
    assert ledger.lost(endpoint, "t", BODY, keeps("messages")) == ("$.seed",)
    assert ledger.lost(object(), "t", BODY, keeps("seed"), now=True) == ("$.messages",)


def test_it_is_found_out_once_in_a_thread_that_ends_when_nothing_waits() -> None:
    ledger, endpoint, runs = Ledger(), object(), []

    def mapper(body: Json) -> Json:
        runs.append(body)
        return body

    ledger.lost(endpoint, "t", BODY, mapper)
    work_off()
    once = len(runs)
    assert once > 0
    ledger.lost(endpoint, "t", BODY, mapper)
    assert (len(runs), threads()) == (once, [])
    ledger.lost(endpoint, "t", {**BODY, "user": "u"}, mapper)  # another shape: it works again
    work_off()
    assert len(runs) > once


def test_a_fault_in_it_costs_its_shape_alone() -> None:
    ledger, endpoint = Ledger(), object()
    ledger.lost(endpoint, "t", BODY, lambda body: 1 / 0)
    work_off()
    assert ledger.lost(endpoint, "t", BODY, keeps("messages")) == ()
    ledger.lost(endpoint, "t", {**BODY, "user": "u"}, keeps("messages"))
    work_off()
    assert ledger.lost(endpoint, "t", {**BODY, "user": "u"}, keeps("messages")) == ("$.seed", "$.user")


def test_the_queue_is_bounded_and_what_finds_it_full_may_come_again() -> None:
    ledger, endpoint = Ledger(), object()
    begun, go_on = threading.Event(), threading.Event()

    def waits(body: Json) -> Json:
        begun.set()
        assert go_on.wait(10)
        return body

    ledger.lost(endpoint, "t", BODY, waits)
    assert begun.wait(10)
    bodies = [{**BODY, f"field_{i}": 1} for i in range(WAITING + 1)]
    for body in bodies:
        ledger.lost(endpoint, "t", body, keeps("messages"))
    go_on.set()
    work_off()
    assert ledger.lost(endpoint, "t", bodies[-2], keeps("messages")) != ()
    assert ledger.lost(endpoint, "t", bodies[-1], keeps("messages")) == ()  # asked only now
    work_off()
    assert ledger.lost(endpoint, "t", bodies[-1], keeps("messages")) != ()
