"""`python -m main export`: what comes out of a call log, in each form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.records.store import Row, open_store
from tests.backends.proxy import CHECKOUT

Json = dict[str, Any]
CONFIG = "records: {calls: {}}\ntargets: {default: demo, demo: {url: 'demo://', envkey: NOT_SET}}\n"
BEGIN = 1_790_000_000.0  # 2026-09-21T14:13:20Z
SYSTEM, FIRST, SECOND = (
    {"role": role, "content": text}
    for role, text in (("system", "Be brief."), ("user", "Why?"), ("user", "Wörk it out \ud800"))
)
CALL = {"id": "c", "type": "function", "function": {"name": "sum", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "4"}


def answered(text: str) -> Json:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def row(number: int, messages: list[Any], response: Json | None, **more: Any) -> Row:
    given: Json = {"key_name": "alice", "client": "10.0.0.1", "target": "demo", "model_asked": "m", "status": 200, **more}
    request = {"model": "m", "messages": messages, "temperature": 0.5}
    return Row(f"{number:028x}", BEGIN + number, request=request, response=response, leaves=[f"{number}"], **given)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of one conversation, its second answer asked for again, and calls beside it."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    said = {"role": "assistant", "content": "Because."}
    store = open_store(f"sqlite:///{tmp_path}/calls.db")
    store.write(
        [
            row(1, [SYSTEM, FIRST], answered("Because.")),
            row(2, [SYSTEM, FIRST, said, SECOND], answered("Wrong"), follows=["1"]),
            row(3, [SYSTEM, FIRST, said, SECOND, CALLED, RESULT], answered("Right"), follows=["1"]),
            row(4, [SYSTEM, FIRST, said, SECOND], None, follows=["1"], status=500),
            row(5, [FIRST], answered("Bob's"), key_name="bob", model_served="other", target="two"),
            Row(f"{6:028x}", BEGIN + 6, request={"prompt": "Once"}, response={"choices": [{"text": " upon"}]}, status=200),
            Row(f"{7:028x}", BEGIN + 7, request={"input": "x"}, response={"data": []}, status=200),
        ]
    )
    store.close()
    return tmp_path


def export(folder: Path, *words: str, status: int = 0) -> str:
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    program = [sys.executable, "-m", "main", "export", *words]
    done = subprocess.run(program, cwd=folder, env=environ, capture_output=True, timeout=60)
    assert done.returncode == status, done.stderr
    return (done.stdout if status == 0 else done.stdout + done.stderr).decode()


def test_sharegpt_has_a_record_for_each_conversation_with_its_last_answer(folder: Path) -> None:
    once, bobs, long = json.loads(export(folder, "--format", "sharegpt"))
    assert [(turn["from"], turn["value"]) for turn in long["conversations"]] == [
        ("system", "Be brief."),
        ("human", "Why?"),
        ("gpt", "Because."),
        ("human", "Wörk it out \ud800"),
        ("gpt", '{"name": "sum", "arguments": "{}"}'),
        ("tool", "4"),
        ("gpt", "Right"),
    ]
    assert long["id"] == f"{1:028x}"
    assert [turn["value"] for turn in bobs["conversations"]] == ["Why?", "Bob's"]
    assert [turn["value"] for turn in once["conversations"]] == ["Once", " upon"]


def test_openai_has_a_line_for_each(folder: Path) -> None:
    lines = export(folder, "--format", "openai", "--key", "alice").splitlines()
    (record,) = map(json.loads, lines)
    assert record["messages"][4]["tool_calls"] == CALLED["tool_calls"]
    assert record["messages"][-1] == {"role": "assistant", "content": "Right"}


def test_alpaca_has_the_last_question_and_the_history(folder: Path) -> None:
    record = json.loads(export(folder, "--format", "alpaca", "--key", "alice"))[0]
    assert record == {
        "instruction": "4",
        "input": "",
        "output": "Right",
        "system": "Be brief.",
        "history": [["Why?", "Because."], ["Wörk it out \ud800", '{"name": "sum", "arguments": "{}"}']],
    }


def test_chatlog_is_openai_forwards_array(folder: Path) -> None:
    found = json.loads(export(folder, "--format", "chatlog", "--target", "demo"))
    assert len(found) == 3
    assert found[-1] == {
        "datetime": "2026-09-21 14:13:21",
        "ip": "10.0.0.1",
        "model": "m",
        "temperature": 0.5,
        "messages": [{"system": "Be brief."}, {"user": "Why?"}],
        "tools": None,
        "is_tool_calls": False,
        "assistant": "Because.",
    }


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--since", "2026-09-21T14:13:24Z"), 2),
        (("--until", "2026-09-21T14:13:22"), 1),
        (("--since", "2026-09-21", "--until", "2026-09-22"), 5),
        (("--model", "other"), 1),
        (("--target", "two"), 1),
        (("--key", "bob", "--model", "m"), 1),
    ],
)
def test_what_fits_is_written(folder: Path, words: tuple[str, ...], count: int) -> None:
    assert len(json.loads(export(folder, "--format", "chatlog", *words))) == count


def test_a_file_is_there_when_it_is_whole_and_for_its_owner_only(folder: Path) -> None:
    assert export(folder, "--format", "sharegpt", "--out", "out.json") == "wrote 3 conversations into out.json\n"
    assert len(json.loads((folder / "out.json").read_text())) == 3
    assert (folder / "out.json").stat().st_mode & 0o077 == 0
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--key", "nobody"), "0 conversations"),
        (("--since", "yesterday"), "--since: must be a date such as 2026-11-21"),
        (("--out", "none/out.json"), "--out: cannot write none/out.json: No such file or directory"),
        (("--config", "none.yaml"), "none.yaml"),
    ],
)
def test_nothing_to_write_is_told(folder: Path, words: tuple[str, ...], told: str) -> None:
    assert told in export(folder, "--format", "sharegpt", *words, status=1)


def test_a_log_that_is_not_there_is_told(folder: Path) -> None:
    (folder / "calls.db").unlink()
    assert "there is no file calls.db yet" in export(folder, "--format", "openai", status=1)
    (folder / "config.yaml").write_text(CONFIG.replace("records: {calls: {}}", ""))
    assert "there is no call log to export" in export(folder, "--format", "openai", status=1)
