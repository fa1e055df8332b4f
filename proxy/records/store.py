"""What is kept of a call, and what a database of calls can do; `sqlite.py` and `postgres.py` are the two that there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass
class Row:
    """One call. Times are seconds since the epoch (UTC), durations milliseconds, money US dollars; None: not known."""

    id: str  # 28 hexadecimal digits, the x-request-id that the client got
    at: float
    key_name: str | None = None
    user: str | None = None  # the request's `user` or metadata.user_id, or a configured header
    client: str | None = None  # address
    front: str = "openai"  # the client's API
    method: str = "POST"
    path: str = ""
    target: str | None = None  # that served, or was tried last
    model_asked: str | None = None
    model_served: str | None = None
    status: int = 0
    error_source: str | None = None  # client proxy backend
    error: str | None = None
    total_ms: float = 0.0
    first_ms: float | None = None  # to the reply's first byte
    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    cost: float | None = None
    stream: bool = False
    cache: str | None = None  # hit miss off
    attempts: Sequence[str] = ()
    losses: Sequence[str] = ()
    conversation: str | None = None  # a root_id, or the id of the conversation's first call; None: see `follows`
    follows: Sequence[str] = ()  # marks, the best first: whose `leaves` has one of them, that call's conversation goes on
    leaves: Sequence[str] = ()  # marks by which later calls find this one's conversation; none: it is part of none
    about: str | None = None  # the conversation that it sums up, without being part of it
    title: str | None = None  # of the conversation; counts for its first call
    tags: Sequence[str] = ()  # of the key
    images: Mapping[str, Any] | None = None  # an image generation: {"n", "size"}
    request: Any = None  # the client's body in the hub's shape (OpenAI Chat, Completions, Embeddings, …), redacted, capped
    response: Any = None  # the whole answer in the hub's shape: a stream is folded
    times: Sequence[int] = ()  # of a stream: how many ms after the call's beginning what the client got came, piece by piece
    bodies: Mapping[str, str] = field(default_factory=dict)  # asked sent got told: the text that went, redacted, capped. To
    # write: `sent` only where it is not `asked`, `got` where it is not `told`, those where they are not `request`, `response`


@dataclass(frozen=True)
class Query:
    """Which calls. What is None or empty does not narrow.

    `text`: words that all stand in what a call added to its conversation (what was asked last, and the answer), whatever their
    case and accents; `word*` is a beginning.
    """

    key_name: str | None = None  # rows of this key alone: what anybody but the master key is given
    target: str | None = None
    model: str | None = None  # asked or served
    status: str | None = None  # "ok", "error", or a number
    front: str | None = None
    conversation: str | None = None
    since: float | None = None
    until: float | None = None
    text: str | None = None
    before: tuple[float, str] | None = None  # (at, id) of the last row of the page before: newest first
    limit: int = 50


class Page(list[Row]):
    """Rows, and where the next page begins. A page that takes longer than `within_s` ends early, even without a row."""

    before: tuple[float, str] | None = None  # the next page's; None: there is none


class Store(Protocol):
    """A database of calls. Threads may share one: they take turns. All methods raise StoreLost."""

    def write(self, rows: Sequence[Row]) -> None:
        """Keeps rows, all or none, and sets their `conversation`. A row whose id is there already is left as it is."""

    def calls(self, query: Query, within_s: float = math.inf) -> Page:
        """Newest first, without `request`, `response`, `bodies` and `times`."""

    def call(self, id: str, key_name: str | None = None) -> Row | None:
        """All of one call; None when there is none of that key."""

    def conversations(self, query: Query, within_s: float = math.inf) -> Page:
        """The latest call of each conversation that is not hidden, with its title, newest first. Looks at `key_name`, `since`,
        `until`, `before`, and `text`: then it is the latest call that has the words, unless the text is a part of the title."""

    def conversation(self, id: str, key_name: str | None = None) -> Sequence[Row]:
        """All calls of one, oldest first, with request and response."""

    def rename(self, conversation: str, title: str, key_name: str | None = None) -> bool:
        """False when there is none of that key."""

    def hide(self, conversation: str, key_name: str | None = None) -> bool:
        """Out of the lists until it goes on, not out of the database. False when there is none of that key."""

    def usage(self, query: Query, by: str) -> Sequence[Mapping[str, Any]]:
        """Per day (UTC) and `by` (key_name, model_served, target, user): {"day", by, "calls", "errors", "tokens_in",
        "tokens_cached", "tokens_out", "cost"}, days ascending. Looks at `key_name`, `target`, `model` (that served), and the
        days of `since` and `until`; so does `latency`.

        By conversation: `limit` of those whose latest call is between `since` and `until`, with "title" and "key_name", each
        with all its calls, the largest (by tokens) first; "day" is the latest call's. Looks at `key_name` beside."""

    def latency(self, query: Query) -> Mapping[str, float]:
        """Milliseconds of calls without an error, within 5 %: p50 p90 p99 of the total, first_p50 first_p90 first_p99 to the
        first byte."""

    def forget(self, keep_days: float | None, keep_bytes: int | None) -> int:
        """Removes what is too old, and the oldest of what is too much (the texts' bytes), a few thousand calls at a time; how
        many went."""

    def close(self) -> None:
        """Ends the connection."""


class StoreLost(Exception):
    """The database cannot be reached, or cannot write: a full disk, a server that is away."""


class RowRefused(Exception):
    """The database does not take a value."""


def open_store(url: str) -> Store:
    """The database at sqlite:///FILE or postgresql://…, made if it is not there. Raises ConfigError when it is another
    program's, or a later version's; StoreLost when it cannot be had now."""
    if url.startswith("sqlite:///"):
        from proxy.records.sqlite import SqliteStore

        return SqliteStore(url.removeprefix("sqlite:///"))
    from proxy.records.postgres import PostgresStore

    return PostgresStore(url)
