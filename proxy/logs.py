"""The log: one line per call, coloured on a terminal, JSON for machines. It never fails a call and holds no control bytes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from typing import Any

from proxy.call import Call
from proxy.config import Log

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
COLOURS = {logging.DEBUG: "\x1b[2m", logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31m"}
RESET = "\x1b[0m"
CALL_FACTS = (
    "id",
    "method",
    "path",
    "client",
    "key_name",
    "front",
    "target",
    "model_asked",
    "model_served",
    "status",
    "streams",
    "attempts",
)


USAGE, OWN_COUNTS = b'"usage', (b'"prompt_eval_count', b'"tokens_predicted')  # where the APIs' counts stand
TOKENS_IN = re.compile(
    rb'"(?:prompt_tokens|input_tokens|promptTokenCount|prompt_eval_count|tokens_evaluated)"\s*:\s*([0-9]{1,12})'
)
TOKENS_OUT = re.compile(
    rb'"(?:completion_tokens|output_tokens|candidatesTokenCount|eval_count|tokens_predicted)"\s*:\s*([0-9]{1,12})'
)


def usage_in(body: bytes) -> tuple[int | None, int | None]:
    """Tokens in and out as the end of a body tells them, in whatever API's words; for the log, without decoding anything."""
    at = body.rfind(USAGE)
    if at < 0:
        at = max(body.rfind(word) for word in OWN_COUNTS)
        if at < 0:
            return None, None
        at = max(0, at - 200)  # the counts of one API stand in any order
    tokens_in, tokens_out = TOKENS_IN.search(body, at), TOKENS_OUT.search(body, at)
    return int(tokens_in[1]) if tokens_in else None, int(tokens_out[1]) if tokens_out else None


class CallRecord(logging.LogRecord):
    """The line that the log has for a call. Made by hand: what logging gathers for a record costs more than the key check."""

    name, exc_info, exc_text, stack_info, args, msg = "proxy.call", None, None, None, (), ""

    def __init__(self, level: int, call: Call) -> None:
        self.levelno, self.levelname = level, logging.getLevelName(level)
        self.created = time.time()
        self.call = call

    def getMessage(self) -> str:
        """id, method, path, key's name → target, status, time; tokens and the error where there are any."""
        call = self.call
        line = f"{call.id} {call.method} {call.path} {call.key_name or '-'} → {call.target or '-'} {call.status}"
        line += f" {call.elapsed_s() * 1000:.1f} ms"
        if call.tokens_in is not None or call.tokens_out is not None:
            line += f" {call.tokens_in or 0}+{call.tokens_out or 0} tokens"
        if call.status in (401, 403):
            line += f" from {call.client}"
        return f"{line}: {call.error}" if call.error else line


def escaped(text: str) -> str:
    """Control bytes as \\xNN: what a client sent cannot write lines or move a terminal's cursor."""
    return text if text.isprintable() else CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class TextFormatter(logging.Formatter):
    """`12:00:00 INFO message`, with a traceback's lines behind it, indented: no line of a message can pass for one of ours."""

    def __init__(self, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured
        self._second = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second[0]:  # the clock's text is made once a second
            self._second = (second, time.strftime("%H:%M:%S", time.localtime(second)))
        line = f"{self._second[1]} {record.levelname} {escaped(record.getMessage())}".replace("\n", "\\n")
        if record.exc_info:
            line += "\n    " + escaped(self.formatException(record.exc_info)).replace("\n", "\n    ")
        colour = COLOURS.get(record.levelno) if self._coloured else None
        return f"{colour}{line}{RESET}" if colour else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line; the facts of a call as fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        call = getattr(record, "call", None)
        if call is not None:
            facts.update(
                {name: value[:1000] if isinstance(value := getattr(call, name), str) else value for name in CALL_FACTS}
            )
            facts["ms"] = round(call.elapsed_s() * 1000, 1)
            facts.update(tokens_in=call.tokens_in, tokens_out=call.tokens_out)
            told = {"tokens_cached": call.tokens_cached, "cost_usd": call.cost, "tags": list(call.tags) or None}
            facts.update({name: value for name, value in told.items() if value is not None})
            if call.error:
                facts.update(error=call.error, error_source=call.error_source)
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts)


class Sink(logging.Handler):
    """Writes whole lines to a file descriptor, one system call each, without a lock. A fault is no reason to fail a call."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def createLock(self) -> None:  # logging's name
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the lock that logging (3.13 and later: unconditionally) takes around `emit`."""
        if not self.filter(record):
            return False
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):  # a full disk, a closed terminal
            os.write(self._fd, line)


def set_up(log: Log, debug: bool) -> None:
    """Sends the log where the configuration says. Raises OSError when its file cannot be opened."""
    # what nobody reads is not gathered: see "Optimization" in the documentation of logging
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    fd = os.open(log.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if log.file else 2
    handler = Sink(fd)
    handler.setFormatter(JsonFormatter() if log.format == "json" else TextFormatter(log.file is None and os.isatty(fd)))
    root = logging.getLogger("proxy")
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.propagate = False
    root.setLevel(logging.DEBUG if debug else log.level.upper())
