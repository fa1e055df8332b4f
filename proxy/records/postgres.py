"""The call log in PostgreSQL, schema `llm_logs`, with views that have the tables and columns of LLM-Gateway's own log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from proxy.errors import ConfigError
from proxy.records.sql import MATCHES, TABLES, VERSION, SqlStore, Values
from proxy.records.store import RowRefused, StoreLost

CONNECT_S = 5
LOCK = 0x6D6F6F6C  # of who makes the tables
SEARCH = (
    "CREATE TABLE words (n BIGINT PRIMARY KEY REFERENCES bodies ON DELETE CASCADE, said TSVECTOR NOT NULL)",
    "CREATE INDEX words_by_word ON words USING gin (said)",
    "CREATE SEQUENCE numbers",
)
USAGE = """json_build_object('prompt_tokens', c.tokens_in, 'completion_tokens', c.tokens_out,
'total_tokens', c.tokens_in + c.tokens_out)"""
WHO = """coalesce(c."user", c.key_name) AS user_name, c.tags AS title,
to_timestamp(c."at") AT TIME ZONE 'UTC' AS response_time"""
UUID = "rpad(c.id, 32, '0')::uuid"
BODIES = "b.request::json AS request, b.response::json AS response"
VIEWS = (  # source: backend/tables.sql of LLM-Gateway
    f"""CREATE VIEW chatgpt_logs AS SELECT {UUID} AS id, {BODIES}, {USAGE} AS usage_info, {WHO}, v.title AS convo_title,
    v.hidden = 0 AS convo_show, c.conversation AS root_gpt_id FROM calls c JOIN bodies b ON b.n = c.n JOIN conversations v
    ON v.id = c.conversation AND v.key_name = coalesce(c.key_name, '') WHERE c.about IS NULL""",
    f"""CREATE VIEW image_logs AS SELECT {UUID} AS id, {BODIES}, c.cost AS usage_cost, {WHO}
    FROM calls c JOIN bodies b ON b.n = c.n WHERE c.images IS NOT NULL""",
    f"""CREATE VIEW meta_summarizer_log AS SELECT {UUID} AS id, {BODIES}, {USAGE} AS usage_info, {WHO},
    c.about AS orig_summarized_id FROM calls c JOIN bodies b ON b.n = c.n WHERE c.about IS NOT NULL""",
)


class PostgresStore(SqlStore):
    """See `store.Store`. A connection that breaks is made anew by the next call."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._conn: Any = None
        with self._begin():
            pass

    def close(self) -> None:
        """See Store."""
        with self._lock:
            if self._conn is not None:
                self._conn.close()
                self._conn = None

    @contextlib.contextmanager
    def _begin(self, writes: bool = True) -> Iterator[None]:
        import psycopg

        with self._lock:
            try:
                if self._conn is None or self._conn.closed:
                    self._conn = self._open()
                with self._conn.transaction():
                    yield
            except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as fault:
                self.close()
                raise StoreLost(f"PostgreSQL: {str(fault).strip()}") from fault
            except (psycopg.Error, UnicodeEncodeError) as fault:
                raise RowRefused(type(fault).__name__) from fault

    def _open(self) -> Any:
        import psycopg

        conn = psycopg.connect(self._url, autocommit=True, connect_timeout=CONNECT_S)
        try:
            with conn.transaction():
                conn.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
                conn.execute("CREATE SCHEMA IF NOT EXISTS llm_logs")
                conn.execute("SET search_path TO llm_logs")
                self._check(conn)
        except BaseException:
            conn.close()
            raise
        return conn

    def _check(self, conn: Any) -> None:
        """Makes the tables in a schema that has none. Raises ConfigError for one that is not ours, or of a later version."""
        conn.execute("CREATE TABLE IF NOT EXISTS meta (version INTEGER NOT NULL)")
        found = conn.execute("SELECT version FROM meta").fetchone()
        if found is not None and found[0] > VERSION:
            raise ConfigError([f"schema llm_logs: a later version made it (tables {found[0]}, here {VERSION}): use that"])
        if found is not None:
            return
        others = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'llm_logs' AND table_name <> 'meta'"
        other = conn.execute(others).fetchone()
        if other is not None:
            whose = f"schema llm_logs: has a table {other[0]} of another program"
            raise ConfigError([f"{whose}: rename the schema (ALTER SCHEMA), or use another database"])
        for statement in (*TABLES, *SEARCH, *VIEWS):
            conn.execute(statement.replace("{number}", "BIGINT").replace("{clustered}", ""))
        conn.execute("INSERT INTO meta VALUES (%s)", (VERSION,))

    # --- what SqlStore wants
    def _run(self, sql: str, values: Values = ()) -> Any:
        return self._conn.execute(sql.replace("?", "%s"), values)

    def _many(self, sql: str, rows: Sequence[Values]) -> None:
        with self._conn.cursor() as cursor:
            cursor.executemany(sql.replace("?", "%s"), rows)

    def _numbers(self, count: int) -> Sequence[int]:
        found = self._run("SELECT nextval('numbers') FROM generate_series(1, ?)", (count,)).fetchall()
        return [number for (number,) in found]

    def _index(self, numbered: Sequence[tuple[int, str]]) -> None:
        self._many("INSERT INTO words VALUES (?, to_tsvector('simple', ?))", numbered)

    def _unindex(self, numbers: Sequence[int]) -> None:
        """The words go with their bodies."""

    def _matching(self, words: Sequence[str]) -> tuple[str, Values]:
        sought = " & ".join(f"{word[:-1]}:*" if word.endswith("*") else word for word in words)
        sql = f"c.n IN (SELECT n FROM words WHERE said @@ to_tsquery('simple', ?) ORDER BY n DESC LIMIT {MATCHES})"
        return sql, (sought,)
