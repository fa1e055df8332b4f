"""The databases of calls: SQLite and a real PostgreSQL answer the same to everything that is asked of them."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from proxy.errors import ConfigError
from proxy.records.search import SPAN
from proxy.records.store import Query, Row, RowRefused, Store, StoreLost, open_store
from proxy.records.tables import VERSION
from tests.backends import postgres_server
from tests.backends.postgres_server import PostgresServer

BEGIN = 1_700_000_000.0  # 2023-11-14T22:13:20Z
DAY_S = 86400.0
DATA = Path(__file__).with_name("data")


def row(number: int, **more: Any) -> Row:
    """A call that was `number` seconds after BEGIN."""
    said = more.pop("said", f"question{number}")
    given: dict[str, Any] = {
        "id": f"{number:028x}",
        "at": BEGIN + number,
        "key_name": "alice",
        "target": "llama",
        "model_asked": "m",
        "model_served": "real",
        "status": 200,
        "total_ms": 100.0,
        "request": {"messages": [{"role": "user", "content": said}]},
        "response": {"choices": [{"message": {"role": "assistant", "content": f"answer{number}"}}]},
    }
    return Row(**{**given, **more})


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/calls.db" if request.param == "sqlite" else postgres_server.shared().database()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = open_store(url)
    yield store
    store.close()


def numbers(rows: Any) -> list[int]:
    return [int(each.id, 16) for each in rows]


class TestCalls:
    def test_a_row_comes_back_as_it_went(self, store: Store) -> None:
        kept = row(
            1,
            user="u",
            client="::1",
            front="anthropic",
            path="/v1/messages",
            error_source="backend",
            error="bad\0luck",
            first_ms=12.5,
            tokens_in=2**40,
            tokens_cached=1,
            tokens_out=0,
            cost=0.000001,
            stream=True,
            cache="miss",
            attempts=("a connect",),
            losses=("$.top_k",),
            tags=("x", "y"),
            images={"n": 2, "size": "1024x1024"},
            title="Hello",
            leaves=["mark"],
            bodies={"told": "data: 1\n\n"},
        )
        store.write([kept])
        found = store.call(kept.id)
        assert found is not None
        facts = {name: value for name, value in vars(kept).items() if name not in ("follows", "leaves", "bodies", "error")}
        assert {name: getattr(found, name) for name in facts} == {**facts, "conversation": kept.id}
        assert found.error == "bad\ufffdluck"
        asked = json.dumps(kept.request, separators=(",", ":"))
        assert found.bodies == {"asked": asked, "sent": asked, "got": "data: 1\n\n", "told": "data: 1\n\n"}
        assert store.calls(Query())[0].request is None

    def test_what_is_written_twice_is_there_and_counted_once(self, store: Store) -> None:
        store.write([row(1), row(1)])
        store.write([row(1, status=500), row(2)])
        assert numbers(store.calls(Query())) == [2, 1]
        assert [day["calls"] for day in store.usage(Query(), "target")] == [2]

    def test_any_text_can_be_kept(self, store: Store) -> None:
        said = "null \0, lone \ud800, quote ' \" ; DROP TABLE calls; -- %s ? \U0001f600"
        store.write([row(1, said=said, model_asked=said, path=said, title=said, leaves=["m"])])
        found = store.call(row(1).id)
        assert found is not None
        assert found.request["messages"][0]["content"] == said
        assert found.model_asked == said.replace("\0", "\ufffd").replace("\ud800", "?")

    def test_a_value_that_no_column_takes_is_refused_and_the_others_go_on(self, store: Store) -> None:
        with pytest.raises(RowRefused):
            store.write([row(1), row(2, tokens_in=2**80)])
        assert store.calls(Query()) == []
        store.write([row(1)])
        assert numbers(store.calls(Query())) == [1]

    def test_pages_follow_each_other_without_a_gap(self, store: Store) -> None:
        store.write([row(number, at=BEGIN + number // 3) for number in range(20)])  # several at the same time
        seen: list[int] = []
        query = Query(limit=3)
        while page := store.calls(query):
            seen += numbers(page)
            query = Query(limit=3, before=(page[-1].at, page[-1].id))
        assert seen == list(reversed(range(20)))

    @pytest.mark.parametrize(
        ("query", "wanted"),
        [
            (Query(key_name="bob"), [3]),
            (Query(target="gpt"), [2]),
            (Query(model="m"), [4, 2, 1, 0]),
            (Query(model="real"), [4, 3, 2, 1, 0]),
            (Query(status="ok"), [3, 2, 0]),
            (Query(status="error"), [4, 1]),
            (Query(status="429"), [4]),
            (Query(front="ollama"), [0]),
            (Query(since=BEGIN + 2, until=BEGIN + 4), [3, 2]),
            (Query(key_name="bob", status="error"), []),
        ],
    )
    def test_every_filter_narrows(self, store: Store, query: Query, wanted: list[int]) -> None:
        changes: list[dict[str, Any]] = [
            {"front": "ollama"},
            {"status": 500},
            {"target": "gpt"},
            {"key_name": "bob", "model_asked": "other"},
            {"status": 429},
        ]
        store.write([row(number, **change) for number, change in enumerate(changes)])
        assert numbers(store.calls(query)) == wanted

    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("sky", [1]),
            ("SKY Blue", [1]),
            ("blue", [2, 1]),
            ("sky red", []),
            ("bl*", [2, 1]),
            ("b", []),
            ("Straße", [3]),
            ("天気", [3]),
            ("answer2", [2]),
            ('"sky" OR (red', []),
            ("foo-bar", [2]),
            ("...", []),
            ("earlier", [1]),
        ],
    )
    def test_words_are_found_in_what_a_call_added(self, store: Store, text: str, wanted: list[int]) -> None:
        later = [
            {"role": "user", "content": "earlier"},
            {"role": "assistant", "content": "x"},
            {"role": "user", "content": "blue foo_bar"},
        ]
        store.write(
            [row(1, said="Why is the sky blue? earlier"), row(2, request={"messages": later}), row(3, said="Straße 天気")]
        )
        assert numbers(store.calls(Query(text=text))) == wanted

    def test_a_person_sees_their_own_rows_only(self, store: Store) -> None:
        store.write([row(1, leaves=["a"]), row(2, key_name="bob", leaves=["b"])])
        theirs = Query(key_name="bob")
        assert numbers(store.calls(theirs)) == numbers(store.conversations(theirs)) == [2]
        assert store.call(row(1).id, "bob") is None
        assert store.conversation(row(1).id, "bob") == []
        assert not store.rename(row(1).id, "mine", "bob")
        assert not store.hide(row(1).id, "bob")
        assert {day["key_name"] for day in store.usage(theirs, "key_name")} == {"bob"}


MANY = SPAN + 600  # calls of two slices
WORDS = ("sky", "skylark", "rain", "rainy", "Café", "STRASSE")


def varied(number: int) -> Row:
    """One of many: each fact changes with another rhythm. Every third call begins a second before the one before it."""
    return row(
        number,
        at=BEGIN + number - (2 if number % 3 == 2 else 0),
        key_name=("alice", "bob", None)[number % 3],
        target=("llama", "gpt")[number % 2],
        model_asked=f"m{number % 5}",
        model_served=f"m{number % 7}",
        status=(200, 500, 429)[number % 11 % 3],
        front=("openai", "ollama")[number % 13 % 2],
        conversation=f"talk{number // 4}",
        title=f"Talk {number // 4}",
        said=f"{WORDS[number % 6]} {'needle' if number in (5, MANY - 5) else 'hay'}",
    )


def fits(kept: Row, query: Query) -> bool:
    """What a query means, said once more."""
    words = kept.request["messages"][0]["content"].replace("é", "e").lower().split()
    asked = [word.replace("é", "e").replace("ß", "ss").lower() for word in (query.text or "").split()]
    failed = {"ok": kept.status < 400, "error": kept.status >= 400}
    return (
        all(getattr(query, name) in (None, getattr(kept, name)) for name in ("key_name", "target", "front", "conversation"))
        and query.model in (None, kept.model_asked, kept.model_served)
        and (query.status is None or failed.get(query.status, query.status == str(kept.status)))
        and kept.at >= (query.since or 0)
        and all(any(word == part or (part[-1] == "*" and word.startswith(part[:-1])) for word in words) for part in asked)
    )


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, list[Row]]]:
    """Calls of two slices, and all of them, the newest first."""
    folder = tmp_path_factory.mktemp("many")
    store = open_store(f"sqlite:///{folder}/calls.db" if request.param == "sqlite" else postgres_server.shared().database())
    rows = [varied(number) for number in range(MANY)]
    for begin in range(0, MANY, 1000):
        store.write(rows[begin : begin + 1000])
    yield store, sorted(rows, key=lambda kept: (kept.at, kept.id), reverse=True)
    store.close()


QUERIES = [
    Query(text=text, key_name=key, target=target, model=model, status=status, front=front)
    for text in (None, "sky*", "rain hay", "needle", "straße")
    for key in (None, "bob")
    for target, model, status, front in (
        (None, None, None, None),
        ("gpt", None, "error", None),
        (None, "m3", None, None),
        ("llama", "m3", "429", "ollama"),
        ("gpt", "none", "ok", None),
    )
]


@pytest.mark.long
class TestSearch:
    def test_every_combination_finds_what_is_there_in_its_order(self, many: tuple[Store, list[Row]]) -> None:
        store, rows = many
        for query in [*QUERIES, Query(conversation="talk7", text="sky*"), Query(since=BEGIN + MANY - 9, text="hay")]:
            wanted = [kept.id for kept in rows if fits(kept, query)]
            page = store.calls(replace(query, limit=20))
            assert [kept.id for kept in page] == wanted[:20], query
            assert (page.before is None) is (len(wanted) < 20), query

    @pytest.mark.parametrize("within_s", [0.0, 10.0])
    def test_pages_hold_all_of_it_once_however_little_time_each_has(
        self, many: tuple[Store, list[Row]], within_s: float
    ) -> None:
        store, rows = many
        for query in (Query(text="needle"), Query(text="sky*", key_name="alice", limit=300), Query(model="m3", limit=500)):
            found: list[str] = []
            before: tuple[float, str] | None = None
            while page := store.calls(replace(query, before=before), within_s):
                found += [kept.id for kept in page]
                before = page.before
                if before is None:
                    break
            assert found == [kept.id for kept in rows if fits(kept, query)]

    @pytest.mark.parametrize("within_s", [0.0, 10.0])
    def test_pages_of_conversations_hold_each_once(self, many: tuple[Store, list[Row]], within_s: float) -> None:
        store, rows = many
        for query in (Query(text="skylark", limit=400), Query(text="needle"), Query(text="alk 1001"), Query(limit=900)):
            found: list[Any] = []
            before: tuple[float, str] | None = None
            pages = 0
            while pages == 0 or before is not None:
                page = store.conversations(replace(query, before=before), within_s)
                found += [(kept.conversation, kept.key_name) for kept in page]
                before = page.before
                pages += 1
                assert pages < 100
            hits = [kept for kept in rows if fits(kept, query)] if "alk" not in (query.text or "") else []
            wanted = dict.fromkeys((kept.conversation, kept.key_name) for kept in hits)
            if query.text == "alk 1001":
                wanted = dict.fromkeys(("talk1001", key) for key in ("alice", "bob", None))
            assert len(found) == len(set(found))
            assert set(found) == set(wanted)

    def test_nothing_is_found_where_nothing_is(self, store: Store) -> None:
        assert store.calls(Query(text="sky", status="ok")) == store.conversations(Query(text="sky")) == []


class TestConversations:
    def test_a_call_goes_on_with_the_one_whose_mark_it_follows(self, store: Store) -> None:
        store.write([row(1, leaves=["a"], title="First")])
        store.write([row(2, follows=["none", "a"], leaves=["b"], title="First"), row(3, follows=["b"], leaves=["c"])])
        store.write([row(4, leaves=["z"], title="Other")])
        assert numbers(store.conversation(row(1).id)) == [1, 2, 3]
        assert [(each.id, each.title) for each in store.conversations(Query())] == [(row(4).id, "Other"), (row(3).id, "First")]
        assert numbers(store.calls(Query(conversation=row(1).id))) == [3, 2, 1]

    def test_the_same_request_is_the_same_conversation_for_an_hour(self, store: Store) -> None:
        store.write([row(1, leaves=["again x"])])
        store.write([row(3000, follows=["again x"], leaves=["y"]), row(9000, follows=["again x"], leaves=["z"])])
        assert numbers(store.conversation(row(1).id)) == [1, 3000]
        assert numbers(store.conversation(row(9000).id)) == [9000]

    def test_a_root_id_of_another_key_stays_another_conversation(self, store: Store) -> None:
        store.write([row(1, conversation="root", title="Mine"), row(2, conversation="root", key_name="bob", title="Theirs")])
        assert [each.title for each in store.conversations(Query(key_name="alice"))] == ["Mine"]
        assert store.rename("root", "Changed", "bob")
        assert [each.title for each in store.conversations(Query())] == ["Changed", "Mine"]

    def test_renamed_and_hidden_until_it_goes_on(self, store: Store) -> None:
        store.write([row(1, leaves=["a"], title="First")])
        assert store.rename(row(1).id, "New name")
        assert store.hide(row(1).id)
        assert store.conversations(Query()) == []
        assert numbers(store.calls(Query())) == [1]
        store.write([row(2, follows=["a"], leaves=["b"], title="First")])
        assert [each.title for each in store.conversations(Query())] == ["New name"]
        assert not store.rename("none", "x")

    def test_conversations_are_found_by_words_and_titles(self, store: Store) -> None:
        store.write([row(1, leaves=["a"], title="50% off!", said="cheap"), row(2, leaves=["b"], title="500 off", said="dear")])
        assert numbers(store.conversations(Query(text="50% o"))) == [1]
        assert numbers(store.conversations(Query(text="dear"))) == [2]
        assert numbers(store.conversations(Query(since=BEGIN + 2))) == [2]
        assert numbers(store.conversations(Query(before=(BEGIN + 2, row(2).id)))) == [1]


class TestSums:
    def test_usage_by_day(self, store: Store) -> None:
        day = {"tokens_in": 10, "tokens_out": 5, "cost": 0.5}
        store.write([row(1, **day), row(2, status=500, **day), row(3, key_name="bob", **day)])
        store.write([row(4, at=BEGIN + DAY_S, tokens_cached=3)])
        names = ("day", "key_name", "calls", "errors", "tokens_in", "tokens_cached", "tokens_out", "cost")
        assert store.usage(Query(), "key_name") == [
            dict(zip(names, values, strict=True))
            for values in (
                ("2023-11-14", "alice", 2, 1, 20, 0, 10, 1.0),
                ("2023-11-14", "bob", 1, 0, 10, 0, 5, 0.5),
                ("2023-11-15", "alice", 1, 0, 0, 3, 0, 0.0),
            )
        ]
        assert len(store.usage(Query(since=BEGIN + DAY_S), "model_served")) == 1
        with pytest.raises(ValueError, match="by must be"):
            store.usage(Query(), "key_name; --")

    def test_latency_within_five_per_cent(self, store: Store) -> None:
        store.write([row(number, total_ms=float(number), first_ms=number / 10) for number in range(1, 1001)])
        store.write([row(2000, total_ms=1e9, status=500)])  # of errors nobody wants to know
        found = store.latency(Query())
        for name, wanted in (("p50", 500), ("p90", 900), ("p99", 990), ("first_p50", 50), ("first_p99", 99)):
            assert found[name] == pytest.approx(wanted, rel=0.05), name
        assert store.latency(Query(key_name="nobody")) == {}


class TestLargest:
    def test_conversations_by_what_they_used(self, store: Store) -> None:
        store.write([row(1, leaves=["a"], title="Small", tokens_in=5, tokens_out=5, cost=0.1)])
        store.write([row(2, leaves=["b"], title="Large", tokens_in=50), row(3, key_name="bob", leaves=["c"], tokens_in=20)])
        store.write(
            [row(4, at=BEGIN + DAY_S, follows=["b"], leaves=["d"], status=500, tokens_out=50, tokens_cached=2, cost=1.0)]
        )
        found = store.usage(Query(), "conversation")
        assert [(each["conversation"], each["tokens_in"] + each["tokens_out"]) for each in found] == [
            (row(2).id, 100),
            (row(3).id, 20),
            (row(1).id, 10),
        ]
        facts = {"calls": 2, "errors": 1, "tokens_in": 50, "tokens_cached": 2, "tokens_out": 50, "cost": 1.0}
        assert found[0] == {"day": "2023-11-15", "conversation": row(2).id, "key_name": "alice", "title": "Large", **facts}
        assert [each["title"] for each in store.usage(Query(key_name="alice", limit=1), "conversation")] == ["Large"]
        assert [each["title"] for each in store.usage(Query(since=BEGIN + 9), "conversation")] == ["Large"]


class TestForgetting:
    def test_what_is_too_old_goes_with_all_that_tells_of_it(self, store: Store) -> None:
        now = time.time()
        store.write([row(1, at=now - 91 * DAY_S, leaves=["a"]), row(2, at=now - 89 * DAY_S, leaves=["b"])])
        assert store.forget(90, None) == 1
        assert numbers(store.calls(Query())) == numbers(store.conversations(Query())) == [2]
        assert store.calls(Query(text="question1")) == []
        assert numbers(store.calls(Query(text="question2"))) == [2]
        assert [day["calls"] for day in store.usage(Query(), "target")] == [1]
        assert store.forget(90, None) == 0

    def test_the_oldest_go_when_it_is_too_much(self, store: Store) -> None:
        store.write([row(number, said="x" * 10_000) for number in range(30)])
        assert store.forget(None, 100_000) == 21
        assert numbers(store.calls(Query())) == list(reversed(range(21, 30)))
        assert store.forget(None, 100_000) == 0


@pytest.fixture(params=["sqlite", "postgres"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of version 1, with four calls: one conversation of two calls, one of bob's, and a call without a key."""
    if request.param == "sqlite":
        with closing(sqlite3.connect(tmp_path / "calls.db")) as file:
            file.executescript((DATA / "calls-1.sqlite.sql").read_text())
        return f"sqlite:///{tmp_path}/calls.db"
    url = postgres_server.shared().database()
    with psycopg.connect(url) as conn:
        conn.execute((DATA / "calls-1.postgres.sql").read_text())
    return url


class TestUpgrade:
    def test_an_old_database_keeps_every_row_and_is_searched_like_a_new_one(
        self, old: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(2):  # the second time there is nothing to do
            store = open_store(old)
            assert numbers(store.calls(Query())) == [4, 3, 2, 1]
            assert numbers(store.calls(Query(text="SKY bl*"))) == [1]
            assert numbers(store.calls(Query(text="rain*", key_name="bob", status="error", target="gpt"))) == [3]
            first = store.call(row(1).id)
            assert first is not None
            assert (first.title, first.tokens_in, first.request["messages"][0]["content"]) == (
                "Renamed",
                10,
                "Why is the sky blue?",
            )
            assert [(each["title"], each["calls"], each["tokens_in"]) for each in store.usage(Query(), "conversation")] == [
                ("Renamed", 2, 30),
                ("Other", 1, 0),
            ]
            assert store.latency(Query())["first_p50"] == pytest.approx(20, rel=0.05)
            assert sum(day["calls"] for day in store.usage(Query(), "target")) == 4
            store.close()
        assert caplog.text.count("4 calls are brought up to date") == 1
        store = open_store(old)
        store.write([row(5, follows=["b"], leaves=["e"], said="more sky")])
        assert numbers(store.calls(Query(text="sky"))) == [5, 1]
        assert numbers(store.conversation(row(1).id)) == [1, 2, 5]
        assert store.forget(None, 0) == 5
        assert store.calls(Query()) == store.calls(Query(text="sky")) == []
        store.close()

    def test_several_that_open_it_at_once_upgrade_it_once(self, old: str) -> None:
        with ThreadPoolExecutor(4) as pool:
            stores = list(pool.map(lambda _: open_store(old), range(4)))
        assert [numbers(store.calls(Query(text="sky"))) for store in stores] == [[1]] * 4
        for store in stores:
            store.close()


class TestSharing:
    def test_several_write_at_once_and_all_is_there(self, url: str) -> None:
        def work(worker: int) -> None:
            store = open_store(url)
            for batch in range(10):
                store.write([row(worker * 1000 + batch * 10 + each, leaves=[f"{worker} {batch} {each}"]) for each in range(10)])
            store.close()

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store = open_store(url)
        assert len(store.calls(Query(limit=1000))) == 400
        assert [day["calls"] for day in store.usage(Query(), "target")] == [400]
        store.close()


class TestSqlite:
    def test_a_file_of_a_later_version_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "calls.db"
        open_store(f"sqlite:///{file}").close()
        with sqlite3.connect(file) as conn:
            conn.execute(f"PRAGMA user_version = {VERSION + 1}")
        with pytest.raises(ConfigError, match="a later version wrote it"):
            open_store(f"sqlite:///{file}")

    def test_a_file_of_another_program_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        file = tmp_path / "other.db"
        with sqlite3.connect(file) as conn:
            conn.execute("CREATE TABLE calls (x)")
        with pytest.raises(ConfigError, match="another program"):
            open_store(f"sqlite:///{file}")
        (tmp_path / "text").write_text("no database at all, but a text of some length" * 100)
        with pytest.raises(StoreLost, match="not a database"):
            open_store(f"sqlite:///{tmp_path}/text")

    def test_a_file_that_is_moved_away_is_made_anew(self, tmp_path: Path) -> None:
        store = open_store(f"sqlite:///{tmp_path}/calls.db")
        store.write([row(1)])
        (tmp_path / "calls.db").rename(tmp_path / "old.db")
        store.write([row(2)])
        assert numbers(store.calls(Query())) == [2]
        assert (tmp_path / "calls.db").stat().st_mode & 0o077 == 0
        store.close()


class TestPostgres:
    def test_the_ancestors_views_have_its_columns(self) -> None:
        url = postgres_server.shared().database()
        store = open_store(url)
        chat = row(1, leaves=["a"], title="Hello", user="ann", tokens_in=3, tokens_out=4)
        image = row(2, images={"n": 1, "size": "256x256"}, cost=0.016, request={"prompt": "a cat"}, response={"data": []})
        store.write([chat, image, row(3, about=chat.id, request={"summary": 1})])
        store.rename(chat.id, "Renamed")
        with psycopg.connect(url) as conn:
            found: Callable[[str], Any] = lambda sql: conn.execute(sql).fetchall()  # noqa: E731
            (logged,) = found(
                "SELECT id::text, request->'messages'->0->>'content', usage_info->>'total_tokens', user_name, convo_title,"
                " convo_show, root_gpt_id, extract(epoch FROM response_time)::int, response IS NOT NULL, title"
                " FROM llm_logs.chatgpt_logs"
            )
            told = ("question1", "7", "ann", "Renamed", True, chat.id, int(BEGIN) + 1, True, None)
            assert logged == ("00000000-0000-0000-0000-000000010000", *told)
            assert found("SELECT request->>'prompt', usage_cost, user_name FROM llm_logs.image_logs") == [
                ("a cat", 0.016, "alice")
            ]
            assert found("SELECT orig_summarized_id, request->>'summary' FROM llm_logs.meta_summarizer_log") == [(chat.id, "1")]
        store.close()

    def test_a_schema_of_another_program_or_a_later_version_is_refused(self) -> None:
        url = postgres_server.shared().database()
        with psycopg.connect(url) as conn:
            conn.execute("CREATE SCHEMA llm_logs")
            conn.execute("CREATE TABLE llm_logs.chatgpt_logs (id uuid)")
        with pytest.raises(ConfigError, match="a table chatgpt_logs of another program"):
            open_store(url)
        with psycopg.connect(url) as conn:
            conn.execute("DROP SCHEMA llm_logs CASCADE")
        open_store(url).close()
        with psycopg.connect(url) as conn:
            conn.execute("UPDATE llm_logs.meta SET version = version + 1")
        with pytest.raises(ConfigError, match="a later version"):
            open_store(url)

    def test_away_is_lost_and_back_is_back(self) -> None:
        server = PostgresServer()
        try:
            store = open_store(server.url)
            store.write([row(1)])
            server.stop()
            with pytest.raises(StoreLost):
                store.write([row(2)])
            server.start()
            store.write([row(2)])
            assert numbers(store.calls(Query())) == [2, 1]
            store.close()
        finally:
            server.close()
