"""The call log in PostgreSQL, schema `llm_logs`, with views that have the tables and columns of LLM-Gateway's own log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from proxy.errors import ConfigError
from proxy.records.reader import Values
from proxy.records.sql import SqlStore
from proxy.records.store import RowRefused, StoreLost
from proxy.records.tables import FROM_1, TABLES, VERSION

CONNECT_S = 5
LOCK = 0x6D6F6F6C  # of who makes the tables
WORDS = (
    "CREATE TABLE words (rowid BIGINT PRIMARY KEY REFERENCES calls ON DELETE CASCADE, said TSVECTOR NOT NULL)",
    "CREATE INDEX words_by_word ON words USING gin (said) WITH (gin_pending_list_limit = 256)",  # KB: searches read it whole
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

    searched = "words w JOIN calls c ON c.n = w.rowid {} WHERE w.said @@ CAST(? AS tsquery)"

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        with self._begin():
            pass

    @contextlib.contextmanager
    def _begin(self, writes: bool = True) -> Iterator[None]:
        import psycopg

        with self._lock:
            try:
                with self._ready().transaction():
                    yield
            except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError) as fault:
                self.close()
                raise StoreLost(f"PostgreSQL: {str(fault).strip()}") from fault
            except (psycopg.Error, UnicodeEncodeError) as fault:
                raise RowRefused(type(fault).__name__) from fault

    # --- what SqlStore wants
    def _connect(self) -> Any:
        import psycopg

        return psycopg.connect(self._url, autocommit=True, connect_timeout=CONNECT_S)

    def _is_there(self) -> bool:
        return not self._conn.closed

    def _prepare(self) -> None:
        with self._conn.transaction():
            self._run("SELECT pg_advisory_xact_lock(?)", (LOCK,))
            self._run("CREATE SCHEMA IF NOT EXISTS llm_logs")
            self._run("SET search_path TO llm_logs")
            self._check()

    def _check(self) -> None:
        """See `_prepare`."""
        self._run("CREATE TABLE IF NOT EXISTS meta (version INTEGER NOT NULL)")
        (version,) = self._run("SELECT coalesce(max(version), 0) FROM meta").fetchone()
        if version > VERSION:
            raise ConfigError([f"schema llm_logs: a later version made it (tables {version}, here {VERSION}): use that"])
        if version == VERSION:
            return
        others = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'llm_logs' AND table_name <> 'meta'"
        other = None if version else self._run(others).fetchone()
        if other is not None:
            whose = f"schema llm_logs: has a table {other[0]} of another program"
            raise ConfigError([f"{whose}: rename the schema (ALTER SCHEMA), or use another database"])
        if version:
            self._tell_of_upgrade()
        for statement in (*(FROM_1 if version else (*TABLES, "CREATE SEQUENCE numbers", *VIEWS)), *WORDS):
            self._run(statement.replace("{number}", "BIGINT").replace("{clustered}", ""))
        if version:
            self._upgrade()
        self._run("DELETE FROM meta")
        self._run("INSERT INTO meta VALUES (?)", (VERSION,))

    def _run(self, sql: str, values: Values = ()) -> Any:
        return self._conn.execute(sql.replace("?", "%s"), values)

    def _many(self, sql: str, rows: Sequence[Values]) -> None:
        with self._conn.cursor() as cursor:
            cursor.executemany(sql.replace("?", "%s"), rows)

    def _numbers(self, count: int) -> Sequence[int]:
        found = self._run("SELECT nextval('numbers') FROM generate_series(1, ?)", (count,)).fetchall()
        return [number for (number,) in found]

    def _index(self, numbered: Sequence[tuple[int, str]]) -> None:
        self._many("INSERT INTO words VALUES (?, array_to_tsvector(string_to_array(?, ' ')))", numbered)

    def _unindex(self, numbered: Sequence[tuple[int, str]]) -> None:
        """The terms go with their calls."""

    def _match(self, terms: Sequence[str]) -> str:
        return " & ".join(f"'{term[:-1]}':*" if term.endswith("*") else f"'{term}'" for term in terms)
