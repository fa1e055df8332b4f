"""Waits that a client may leave: a pause, and the queue for a target that serves few calls at once.

The queue is in the shared state: one line per target, first come first served. A place in it is looked after by its own call's
thread, which sleeps until its turn comes and looks at the client in between.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time

from proxy.call import Call, Waiting
from proxy.config import Line
from proxy.errors import BackendTimeout, ProxyError
from proxy.state import State, Ticket

logger = logging.getLogger(__name__)

LOOK_S = 0.1  # how often a waiting call looks at its client
RETRY_S = 5  # what a client is told for whom there is no place: nobody knows how long the others take


def pause(waits: Waiting, seconds: float) -> None:
    """Lets that time go by, with keep-alives; the call's turn at computing is another's meanwhile. Raises ClientGone."""
    silent, other = socket.socketpair()
    with silent, other, contextlib.suppress(BackendTimeout):
        waits.wait(silent, False, time.monotonic() + seconds)


def busy(message: str) -> ProxyError:
    """The target has no place for one more call."""
    return ProxyError(message, status=503, code="busy", headers=(("retry-after", str(RETRY_S)),))


def line_name(target: str) -> str:
    """What a target's queue is called in the state."""
    return f"target {target}"


def join(state: State, name: str, line: Line, call: Call) -> Ticket:
    """Waits for one of the slots of the target of that name. Raises ProxyError (503) when the queue is full or it takes too
    long, ClientGone. Whoever gets a ticket leaves it."""
    ticket = state.queue(line_name(name), line.concurrency, line.size, call.id)
    if ticket is None:
        raise busy(f"target {name!r} is busy, and {line.size} calls are waiting for it already")
    try:
        if not ticket.wait(0.0):
            _queue_up(ticket, name, line, call)
    except BaseException:
        ticket.leave()
        raise
    return ticket


def _queue_up(ticket: Ticket, name: str, line: Line, call: Call) -> None:
    assert call.waits is not None
    call.waits.queued(name, 1)
    try:
        _wait(ticket, name, line, call)
    finally:
        call.waits.queued(name, -1)


def _wait(ticket: Ticket, name: str, line: Line, call: Call) -> None:
    waits, began = call.waits, time.monotonic()
    assert waits is not None
    logger.debug("%s waits for a place at target %s", call.id, name)
    ticks = began + waits.tick_s
    granted = False
    while not granted:
        left = began + line.timeout_s - time.monotonic()
        if left <= 0:
            raise busy(f"target {name!r} was busy for {line.timeout_s:g} s")
        with waits.pausing():
            granted = ticket.wait(min(LOOK_S, left))
        waits.look()  # also with a slot: nobody computes for a client that has gone
        if waits.tick and time.monotonic() >= ticks:
            waits.tick()
            ticks += waits.tick_s
