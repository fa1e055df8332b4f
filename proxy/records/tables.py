"""The tables of a call log, for both databases, and what makes them of an earlier version's.

`{number}` is a database's own type of a row's number, `{clustered}` what it says of a table that is only its primary key.
"""

from __future__ import annotations

from proxy.records.search import SPAN

VERSION = 2  # of the tables; a database of a later one is refused
FACTS = (  # of a row, as they stand in `calls`
    *("id", "at", "key_name", "user", "client", "front", "method", "path", "target", "model_asked", "model_served", "status"),
    *("error_source", "error", "total_ms", "first_ms", "tokens_in", "tokens_cached", "tokens_out", "cost", "stream", "cache"),
    *("attempts", "losses", "conversation", "about", "tags", "images"),
)
LISTS = ("attempts", "losses", "tags")
AS_JSON = frozenset((*LISTS, "images"))
OF_CALLS = [f'c."{name}"' for name in FACTS]
INDEXES = (
    'CREATE INDEX calls_by_time ON calls ("at", id)',
    'CREATE INDEX calls_by_key ON calls (key_name, "at", id)',
    'CREATE INDEX calls_by_conversation ON calls (conversation, "at", id)',
    'CREATE INDEX conversations_by_time ON conversations ("at", latest, title) WHERE hidden = 0',
    'CREATE INDEX conversations_by_key ON conversations (key_name, "at", latest, title) WHERE hidden = 0',
    'CREATE INDEX conversations_by_size ON conversations (tokens, "at")',
    'CREATE INDEX conversations_by_key_and_size ON conversations (key_name, tokens, "at")',
)
SLICES = "CREATE TABLE slices (slice BIGINT PRIMARY KEY, first DOUBLE PRECISION NOT NULL, latest DOUBLE PRECISION NOT NULL)"
LATENCY = """CREATE TABLE latency (what TEXT NOT NULL, bucket INTEGER NOT NULL, day TEXT NOT NULL, key_name TEXT NOT NULL,
    target TEXT NOT NULL, model_served TEXT NOT NULL, calls BIGINT NOT NULL,
    PRIMARY KEY (what, bucket, day, key_name, target, model_served)) {clustered}"""
TABLES = (
    """CREATE TABLE calls (n {number} PRIMARY KEY, id TEXT NOT NULL UNIQUE, "at" DOUBLE PRECISION NOT NULL, key_name TEXT,
    "user" TEXT, client TEXT, front TEXT, method TEXT, path TEXT, target TEXT, model_asked TEXT, model_served TEXT,
    status INTEGER NOT NULL, error_source TEXT, error TEXT, total_ms DOUBLE PRECISION, first_ms DOUBLE PRECISION,
    tokens_in BIGINT, tokens_cached BIGINT, tokens_out BIGINT, cost DOUBLE PRECISION, stream SMALLINT, cache TEXT,
    attempts TEXT, losses TEXT, conversation TEXT, about TEXT, tags TEXT, images TEXT, size BIGINT NOT NULL)""",
    "CREATE TABLE bodies (n {number} PRIMARY KEY, request TEXT, response TEXT, bodies TEXT, times TEXT)",
    """CREATE TABLE conversations (id TEXT NOT NULL, key_name TEXT NOT NULL, title TEXT, hidden SMALLINT NOT NULL,
    latest BIGINT NOT NULL, "at" DOUBLE PRECISION NOT NULL, tokens BIGINT NOT NULL DEFAULT 0,
    calls BIGINT NOT NULL DEFAULT 0, errors BIGINT NOT NULL DEFAULT 0, tokens_in BIGINT NOT NULL DEFAULT 0,
    tokens_cached BIGINT NOT NULL DEFAULT 0, tokens_out BIGINT NOT NULL DEFAULT 0,
    cost DOUBLE PRECISION NOT NULL DEFAULT 0, PRIMARY KEY (id, key_name)) {clustered}""",
    'CREATE TABLE turns (mark TEXT PRIMARY KEY, conversation TEXT NOT NULL, "at" DOUBLE PRECISION NOT NULL) {clustered}',
    'CREATE INDEX turns_by_time ON turns ("at")',
    """CREATE TABLE daily (day TEXT NOT NULL, key_name TEXT NOT NULL, target TEXT NOT NULL, model_served TEXT NOT NULL,
    "user" TEXT NOT NULL, calls BIGINT NOT NULL, errors BIGINT NOT NULL, tokens_in BIGINT NOT NULL,
    tokens_cached BIGINT NOT NULL, tokens_out BIGINT NOT NULL, cost DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (day, key_name, target, model_served, "user")) {clustered}""",
    *(LATENCY, SLICES, *INDEXES),
)
SUMS = ("calls", "errors", "tokens_in", "tokens_cached", "tokens_out", "cost")
BY = ("key_name", "model_served", "target", "user", "conversation")
FROM_1 = (  # tables of version 1, which had no slices, and found words in another way
    *(f"DROP INDEX {name}" for name in ("calls_by_time", "calls_by_key", "calls_by_conversation", "conversations_by_time")),
    "DROP TABLE words",
    SLICES,
    f'INSERT INTO slices SELECT n / {SPAN}, min("at"), max("at") FROM calls GROUP BY n / {SPAN}',
    "ALTER TABLE bodies ADD COLUMN times TEXT",
    *(f"ALTER TABLE conversations ADD COLUMN {name} BIGINT NOT NULL DEFAULT 0" for name in ("tokens", *SUMS[:-1])),
    "ALTER TABLE conversations ADD COLUMN cost DOUBLE PRECISION NOT NULL DEFAULT 0",
    *INDEXES,
    """UPDATE conversations SET (calls, errors, tokens_in, tokens_cached, tokens_out, cost) = (SELECT count(*),
    coalesce(sum(CASE WHEN c.status >= 400 THEN 1 ELSE 0 END), 0), coalesce(sum(c.tokens_in), 0),
    coalesce(sum(c.tokens_cached), 0), coalesce(sum(c.tokens_out), 0), coalesce(sum(c.cost), 0) FROM calls c
    WHERE c.conversation = conversations.id AND coalesce(c.key_name, '') = conversations.key_name)""",
    "UPDATE conversations SET tokens = tokens_in + tokens_out",
    "ALTER TABLE latency RENAME TO latency_1",
    LATENCY,
    "INSERT INTO latency SELECT what, bucket, day, key_name, target, model_served, calls FROM latency_1",
    "DROP TABLE latency_1",
)
