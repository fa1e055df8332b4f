"""`records.dataset`: conversations as they happen, in ShareGPT's form: one file a session, one record a conversation.

`<folder>/<session>.json` is an array with a record on each line, and always whole: it is only ever replaced. In between,
conversations are appended to a journal beside it, which is folded in after a second, later when the file is large. Workers and
processes that write the same session take turns by a lock; whoever comes next folds in what a dead one left.

A record is replaced by the conversation of the same key that goes on with it, or tells its end anew: `marks.py` says which that
is. `key` in a record is the name of a person's key; calls with the master key, or without any, have none. So that no journal is
folded in twice, each has a number: the lock's file says which inode the array gets that holds the journals up to that one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from proxy.call import Call
from proxy.config import Config
from proxy.errors import ConfigError
from proxy.records.behind import Behind
from proxy.records.forms import sharegpt
from proxy.records.marks import marks
from proxy.records.store import Row

logger = logging.getLogger(__name__)

Json = dict[str, Any]
FOLD_S = 1.0  # after which the journal is folded in, at the soonest
SHARE = 20  # folding takes at most one part in so many of the time
AGAIN_S = 10.0  # after a fold that failed
MOST = 256 * 1024 * 1024  # bytes of a session, and of a journal that cannot be folded in
NOBODYS = (None, "open", "master")  # keys that are no person's: nothing is said of them in a record
ROLES = {"system": "system", "human": "user", "gpt": "assistant", "tool": "tool"}


class Datasets(Behind):
    """The record of one session; see the module."""

    def __init__(self, config: Config) -> None:
        assert config.records
        assert config.records.dataset
        super().__init__(config, "dataset")
        kept = config.records.dataset
        try:
            self._session = Session(Path(kept.folder), kept.session or _started())
            self._session.fold()
            logger.info("conversations go to %s", self._session.file)
        except (OSError, ValueError) as fault:
            raise ConfigError([f"records.dataset: {_reason(fault)}"]) from None
        self._next_fold: float | None = None  # monotonic; None: we have put nothing into the journal
        self._not_before = 0.0  # monotonic

    def wants(self, call: Call) -> bool:
        """See Behind: answers that came whole."""
        return call.status == 200 and call.error is None and call.method == "POST"

    def wait_s(self) -> float:
        """See Behind."""
        return 0.0 if self._next_fold is None else max(0.001, self._next_fold - time.monotonic())

    def keep(self, rows: Sequence[Row]) -> None:
        """See Behind."""
        lost = sum(1 for row in rows if row.response is None and _is_conversation(row.request))
        if lost:
            self.drop(lost, "too large, or not to be read")
        records = [(row.at, record) for row in rows if (record := record_of(row))]
        try:
            if records:
                self._session.append(records)
                self._next_fold = self._next_fold or max(time.monotonic() + FOLD_S, self._not_before)
        except (OSError, ValueError) as fault:
            self.drop(len(records), _reason(fault))
        if self._next_fold is not None and (self.hurries or time.monotonic() >= self._next_fold):
            self._fold()

    def _fold(self) -> None:
        began = time.monotonic()
        self._next_fold = None
        try:
            self._session.fold()
        except (OSError, ValueError) as fault:
            logger.error("dataset: what came last stays in the journal: %s", _reason(fault))
            self._next_fold = None if self.hurries else time.monotonic() + AGAIN_S
        self._not_before = time.monotonic() + SHARE * (time.monotonic() - began)


@lru_cache(maxsize=1)
def _started() -> str:
    """The session of a process that was given none; reloads go on with it."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def _reason(fault: Exception) -> str:
    return f"{fault.filename}: {fault.strerror}" if isinstance(fault, OSError) and fault.strerror else str(fault)


# --- a call as a record


def _is_conversation(request: Any) -> bool:
    return isinstance(request, dict) and ("messages" in request or "prompt" in request)


def record_of(row: Row) -> Json | None:
    """A chat or a completion as `export` writes it; None for anything else, and for an answer that says nothing."""
    found = sharegpt(row)
    if found is None or not found["conversations"][-1]["value"]:
        return None
    tools = row.request.get("tools")
    whose = {"key": row.key_name} if row.key_name not in NOBODYS else {}
    turns = {"conversations": found["conversations"], **whose}
    return {**turns, "tools": json.dumps(tools, ensure_ascii=False)} if tools else turns


def _marks(record: Json) -> tuple[Sequence[str], Sequence[str]]:
    """What the record goes on with, and what goes on with it."""
    turns = [turn for turn in record.get("conversations") or () if isinstance(turn, dict)]
    messages = [{"role": ROLES.get(str(turn.get("from")), "user"), "content": turn.get("value")} for turn in turns]
    return marks(record.get("key"), {"messages": messages[:-1]}, {"choices": [{"message": messages[-1]}]} if messages else {})


# --- the files


class Table:
    """The records of a session, and which of them a further one takes the place of."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self._left: list[Sequence[str]] = []  # by record: its marks
        self._whose: dict[str, int] = {}
        self._within: set[str] = set()  # marks of what stands in the middle of records

    def add(self, line: bytes) -> None:
        """A record as JSON on one line. Raises ValueError when it is none."""
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("no conversation")
        follows, leaves = _marks(record)
        if leaves and leaves[-1] in self._within:  # another worker was faster with what goes on with it
            return
        number = next((self._whose[mark] for mark in follows if mark in self._whose), len(self.lines))
        for mark in self._left[number] if number < len(self.lines) else ():
            self._whose.pop(mark, None)
        self.lines[number : number + 1] = [line]
        self._left[number : number + 1] = [leaves]
        self._whose.update(dict.fromkeys(leaves, number))
        self._within.update(follows[:-1])


class Session:
    """One session's files: the array, its journals, the lock. Raises OSError, and ValueError for a file that is no array of
    conversations."""

    def __init__(self, folder: Path, name: str) -> None:
        if name != os.path.basename(name) or name.startswith(".") or "\0" in name:
            raise ValueError(f"{name!r} is no name of a file")
        self.file, self._part = folder / f"{name}.json", folder / f".{name}.part"
        self._lock, self._journal_of = folder / f".{name}.lock", f".{name}.journal-{{}}"
        if self.file.is_symlink():
            raise ValueError(f"{self.file} is a symbolic link")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def append(self, records: Sequence[tuple[float, Json]]) -> None:
        """Into the journal, each with the time of its call."""
        data = (
            b"".join(b"\n%020.6f " % at + _line(record) for at, record in records) + b"\n"
        )  # whoever was killed has left half a line
        with self._locked() as lock, _opened(self._journal(self._number(lock)), os.O_WRONLY | os.O_CREAT | os.O_APPEND) as fd:
            size = os.fstat(fd).st_size
            if size + len(data) > MOST:
                raise ValueError(f"the journal of {self.file} is full")
            if os.write(fd, data) < len(data):
                os.ftruncate(fd, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))

    def fold(self) -> None:
        """The journal into the array, which is there from then on."""
        with self._locked() as lock:
            number = self._number(lock)
            self._journal(number - 1).unlink(missing_ok=True)
            new = [line for line in _lines(self._journal(number)) if _is_whole(line)]
            if not new and self.file.exists():
                return
            table = self._table()
            for line in sorted(new):  # by their times: workers do not write in the order in which calls came
                table.add(line[21:])
            self._write(table, number, lock)
            self._journal(number).unlink(missing_ok=True)

    def _write(self, table: Table, number: int, lock: int) -> None:
        data = b"[\n" + b",\n".join(table.lines) + b"\n]\n"
        if len(data) > MOST:
            raise ValueError(f"{self.file} is full: begin another session")
        with _opened(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd, os.fdopen(os.dup(fd), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
            os.lseek(lock, 0, os.SEEK_SET)
            os.write(lock, f"{os.fstat(fd).st_ino:020} {number:010}".encode())
        os.replace(self._part, self.file)

    def _number(self, lock: int) -> int:
        """The number of the journal that is not in the array yet."""
        os.lseek(lock, 0, os.SEEK_SET)
        inode, _, number = os.read(lock, 31).partition(b" ")
        try:
            folded = os.stat(self.file, follow_symlinks=False).st_ino == int(inode or 0)
        except FileNotFoundError:
            folded = False
        return int(number or 0) + folded

    def _journal(self, number: int) -> Path:
        return self.file.with_name(self._journal_of.format(number))

    def _table(self) -> Table:
        """What the array holds; other programs' arrays, and the one object of an older version, are taken too."""
        table, lines = Table(), _lines(self.file)
        try:
            if next(lines, b"") == b"[":
                for line in lines:
                    if line not in (b"", b"]"):
                        table.add(line.removesuffix(b","))
                return table
        except ValueError:  # written by another program
            table = Table()
        data = json.loads(b"\n".join(_lines(self.file)) or b"[]")
        for record in data if isinstance(data, list) else [data]:
            table.add(_line(record))
        return table

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        with _opened(self._lock, os.O_RDWR | os.O_CREAT) as fd:
            with contextlib.suppress(ImportError):  # Windows, where there is one worker
                import fcntl

                fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A file for its owner alone; a symbolic link is not followed."""
    fd = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _lines(path: Path) -> Iterator[bytes]:
    with contextlib.suppress(FileNotFoundError), _opened(path, os.O_RDONLY) as fd, os.fdopen(os.dup(fd), "rb") as file:
        for line in file:
            yield line.strip()


def _line(record: Any) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")


def _is_whole(line: bytes) -> bool:
    """Whether a line of the journal is; the one of a writer that was killed is not."""
    try:
        return isinstance(json.loads(line[21:]), dict)
    except ValueError:
        return False
