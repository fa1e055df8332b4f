"""A log line is one line whatever a client sent, and no fault of the log is a fault of a call."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.call import Call
from proxy.config import Log
from proxy.logs import CallRecord, JsonFormatter, Sink, TextFormatter, escaped, set_up

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
GLOBALS = ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """What `set_up` changes is for the whole process: it is put back."""
    root = logging.getLogger("proxy")
    before = [getattr(logging, name) for name in GLOBALS], list(root.handlers), root.propagate, root.level
    yield
    for name, value in zip(GLOBALS, before[0], strict=True):
        setattr(logging, name, value)
    root.handlers[:], root.propagate = before[1], before[2]
    root.setLevel(before[3])


def record(
    message: str, *arguments: object, level: int = logging.INFO, fault: BaseException | None = None
) -> logging.LogRecord:
    info = (type(fault), fault, fault.__traceback__) if fault else None
    return logging.LogRecord("proxy.x", level, "", 0, message, arguments, info)


def raised(message: str) -> ValueError:
    try:
        raise ValueError(message)
    except ValueError as fault:
        return fault


def call(**facts: object) -> Call:
    made = Call("POST", "/v1/chat", "key=secret", "10.0.0.1", id="abc", started=time.monotonic() - 1.5)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


# --- lines


def test_a_line_says_when_how_bad_and_what() -> None:
    one = record("%s is %d", "it", 5, level=logging.WARNING)
    wanted = time.strftime("%H:%M:%S", time.localtime(one.created))
    assert TextFormatter(False).format(one) == f"{wanted} WARNING it is 5"


def test_each_line_has_its_own_time() -> None:
    formatter = TextFormatter(False)
    for created in (1e9, 1e9 + 0.9, 1e9 + 1, 1e9 + 3600, 1e9):
        one = record("x")
        one.created = created
        assert formatter.format(one).startswith(time.strftime("%H:%M:%S ", time.localtime(created)))


@pytest.mark.parametrize("char", [*map(chr, [*range(9), *range(11, 32), *range(127, 160)]), "\u2028", "\u2029"])
def test_a_control_byte_is_shown_and_not_sent(char: str) -> None:
    assert escaped(f"a{char}b") == f"a\\x{ord(char):02x}b"


@given(st.text() | st.text("\r\n\x1b[31mé\x85\u2028\x9b"))
def test_a_message_is_one_line_of_text_whatever_stands_in_it(message: str) -> None:
    line = TextFormatter(False).format(record("%s", message))
    assert "\n" not in line
    assert not CONTROL.search(line)


@given(st.text() | st.text("\r\n\x1b\ud800\u2028"))
def test_a_json_line_is_one_object_of_plain_ascii(message: str) -> None:
    line = JsonFormatter().format(record("%s", message))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["message"] == message


def test_a_traceback_cannot_write_a_line_of_its_own() -> None:
    text = TextFormatter(False).format(record("failed", fault=raised("x\n12:00:00 INFO forged\r\x1b[2J")))
    first, *rest = text.split("\n")
    assert first.endswith("INFO failed")
    assert any("Traceback" in line for line in rest)
    assert any("forged" in line for line in rest)
    assert all(line.startswith("    ") for line in rest)
    assert not CONTROL.search(text)


def test_json_has_the_traceback_in_a_field() -> None:
    facts = json.loads(JsonFormatter().format(record("failed", fault=raised("x\ny"))))
    assert "ValueError: x\ny" in facts["traceback"]


def test_colours_show_what_is_bad_and_end_with_the_line() -> None:
    assert TextFormatter(True).format(record("x", level=logging.ERROR)).startswith("\x1b[31m")
    assert TextFormatter(True).format(record("x", level=logging.ERROR)).endswith("x\x1b[0m")
    assert "\x1b" not in TextFormatter(True).format(record("x"))
    assert "\x1b" not in TextFormatter(False).format(record("x", level=logging.ERROR))


# --- calls


def test_a_call_s_line_tells_what_became_of_it() -> None:
    done = call(key_name="master", target="local", status=200, tokens_in=3, tokens_out=4)
    assert re.fullmatch(
        r"abc POST /v1/chat master → local 200 15\d\d\.\d ms 3\+4 tokens", CallRecord(logging.INFO, done).getMessage()
    )
    failed = call(status=502, error="the backend\nbroke", error_source="backend")
    line = TextFormatter(False).format(CallRecord(logging.WARNING, failed))
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING abc POST /v1/chat - → - 502 15\d\d\.\d ms: the backend\\nbroke", line)


def test_a_call_s_json_line_has_its_facts_and_neither_query_nor_key() -> None:
    done = call(key_name="master", target="local", status=200, model_asked="a", model_served="b", streams=True, tokens_out=4)
    facts = json.loads(JsonFormatter().format(CallRecord(logging.INFO, done)))
    wanted = {"id": "abc", "method": "POST", "path": "/v1/chat", "client": "10.0.0.1", "key_name": "master", "front": "openai"}
    wanted |= {"target": "local", "model_asked": "a", "model_served": "b", "status": 200, "streams": True, "level": "info"}
    assert wanted.items() <= facts.items()
    assert 1500 <= facts["ms"] < 60_000
    assert (facts["tokens_in"], facts["tokens_out"]) == (None, 4)
    assert "error" not in facts
    assert "secret" not in json.dumps(facts)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", facts["time"])


def test_a_failed_call_s_json_line_says_whose_fault_it_was() -> None:
    failed = call(status=502, error="it broke", error_source="backend")
    facts = json.loads(JsonFormatter().format(CallRecord(logging.WARNING, failed)))
    assert (facts["error"], facts["error_source"], facts["level"]) == ("it broke", "backend", "warning")


# --- where it goes


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_the_log_goes_to_its_file_which_is_the_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "proxy.log"
    set_up(Log(file=str(path)), debug=False)
    logging.getLogger("proxy.some.part").info("one %s", "two")
    logging.getLogger("proxy.call").handle(CallRecord(logging.INFO, call(status=200)))
    lines = lines_of(path)
    assert [line[9:] for line in lines[:1]] == ["INFO one two"]
    assert "abc POST /v1/chat" in lines[1]
    assert path.stat().st_mode & 0o777 == 0o600


def test_setting_up_again_writes_each_line_once_behind_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "proxy.log"
    path.write_text("before\n")
    for log_format in ("text", "json"):
        set_up(Log(file=str(path), format=log_format), debug=False)
    logging.getLogger("proxy").warning("x")
    lines = lines_of(path)
    assert lines[0] == "before"
    assert [json.loads(line)["message"] for line in lines[1:]] == ["x"]


@pytest.mark.parametrize(
    ("level", "debug", "wanted"),
    [("info", False, ["info", "error"]), ("error", False, ["error"]), ("error", True, ["debug", "info", "error"])],
)
def test_the_level_says_what_is_written(tmp_path: Path, level: str, debug: bool, wanted: list[str]) -> None:
    path = tmp_path / "proxy.log"
    set_up(Log(file=str(path), level=level), debug=debug)
    for each in ("debug", "info", "error"):
        getattr(logging.getLogger("proxy.x"), each)(each)
    assert [line.split(" ")[-1] for line in lines_of(path)] == wanted


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        set_up(Log(file=str(tmp_path / "nowhere" / "proxy.log")), debug=False)


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "proxy.log"
    set_up(Log(file=str(path)), debug=False)

    def write(name: int) -> None:
        for number in range(100):
            logging.getLogger("proxy.x").info("<%d %d %s>", name, number, "x" * 500)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [re.fullmatch(r"[\d:]{8} INFO <(\d) (\d+) x{500}>", line) for line in lines_of(path)]
    assert {(int(match[1]), int(match[2])) for match in found if match} == {(a, b) for a in range(8) for b in range(100)}
    assert len(found) == 800


# --- faults of the log


def test_a_full_disk_fails_nobody() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    set_up(Log(file="/dev/full"), debug=False)
    logging.getLogger("proxy.x").error("lost")


def test_a_reader_that_left_and_a_closed_file_fail_nobody() -> None:
    reading, writing = os.pipe()
    sink = Sink(writing)
    sink.setFormatter(TextFormatter(False))
    sink.handle(record("first"))
    assert os.read(reading, 1000).endswith(b"INFO first\n")
    os.close(reading)
    sink.handle(record("lost"))
    os.close(writing)
    sink.handle(record("lost"))


def test_what_no_encoding_has_is_written_all_the_same() -> None:
    reading, writing = os.pipe()
    sink = Sink(writing)
    sink.setFormatter(TextFormatter(False))
    sink.handle(record("%s", "a\ud800é"))
    assert os.read(reading, 1000).endswith("INFO a\\ud800é\n".encode())
    os.close(reading)
    os.close(writing)


def test_a_filter_keeps_a_line_out() -> None:
    reading, writing = os.pipe()
    sink = Sink(writing)
    sink.setFormatter(TextFormatter(False))
    sink.addFilter(lambda each: each.getMessage() != "no")
    sink.handle(record("no"))
    sink.handle(record("yes"))
    assert os.read(reading, 1000).endswith(b"INFO yes\n")
    os.close(reading)
    os.close(writing)
