"""One run of an executable: its arguments, its two outputs as they come, and the answer's text in what it writes.

Both outputs and the end of the process are waited for together with the client: an engine that fills stderr does not hang,
one whose client leaves ends, and a grandchild that keeps an output open does not keep the call.
"""

from __future__ import annotations

import codecs
import logging
import os
import selectors
import shlex
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from proxy.adapters import process_group
from proxy.call import Waiting
from proxy.config import Command
from proxy.errors import BackendError, BackendTimeout, map_errors
from proxy.settings.presets import DEFAULTS, OWN, PLACEHOLDER, PROMPTS

logger = logging.getLogger(__name__)

SHOWN = 16 * 1024  # characters of a command in the debug log
PIECE = 64 * 1024  # bytes read at once
TAIL = 4096  # bytes of stderr that are kept
LAST_WORDS = 16  # pieces of stderr that are read when the process has ended
OUTPUT_LIMIT = 64 * 1024 * 1024  # bytes of an output that is held whole
END_OF_TEXT = "[end of text]"  # what llama.cpp's programs write when the model itself has ended


def arguments(command: Sequence[str | tuple[str, ...]], values: Mapping[str, Any]) -> list[str]:
    """A command with its placeholders filled in, each once: what a value holds is never looked through.

    A list within it stands there once for each value of its placeholder, not at all where `values` has none.
    """
    out = []
    for part in command:
        if isinstance(part, str):
            out.append(_filled(part, {**DEFAULTS, **values}))
            continue
        name = next(name for name in PLACEHOLDER.findall(" ".join(part)) if name not in OWN)
        given = values.get(name)
        for value in given if isinstance(given, list) else [] if given is None else [given]:
            out += [_filled(each, {**values, name: value}) for each in part]
    return out


def _filled(part: str, values: Mapping[str, Any]) -> str:
    return PLACEHOLDER.sub(lambda match: str(values[match[1]]), part)


class Run:
    """A process at work on one text; `with` it ends, whatever happens.

    The text goes where the command asks for it: as an argument ({prompt}), as a file without a name on any disk ({prompt_file},
    or {prompt_text_file} with a line end behind it, for programs that take one off), else as standard input.
    """

    def __init__(
        self, config: Command, what: str, text: str, values: Mapping[str, Any], waiting: Waiting, env: Mapping[str, str]
    ) -> None:
        self._what = f"the {what} program of command {config.name!r}"
        self._waiting, self._timeout_s = waiting, config.timeout_s
        self._until = time.monotonic() + config.timeout_s
        self._tail = b""
        self._selector = selectors.DefaultSelector()
        command: Sequence[str | tuple[str, ...]] = getattr(config, what)
        used = set(PLACEHOLDER.findall(str(command))) & set(PROMPTS)
        with map_errors({OSError: BackendError}, f"{self._what} cannot be started"), tempfile.TemporaryFile() as file:
            file.write(text.encode("utf-8", "replace") + b"\n" * ("prompt_text_file" in used))
            file.seek(0)
            filled = arguments(command, {**values, **dict.fromkeys(PROMPTS, f"/dev/fd/{file.fileno()}"), "prompt": text})
            logger.debug("%s: %s", self._what, shlex.join(filled)[:SHOWN])
            self._process = process_group.start(
                filled,
                env,
                self._what,
                stdin=subprocess.DEVNULL if used else file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(file.fileno(),) if used - {"prompt"} else (),
            )
        self._pipes = [pipe for pipe in (self._process.stdout, self._process.stderr) if pipe is not None]
        self._pidfd: int | None = None  # without one, a grandchild that holds the outputs is waited for
        with suppress(AttributeError, OSError):
            self._pidfd = os.pidfd_open(self._process.pid)
        for pipe in self._pipes:
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ)
        if self._pidfd is not None:
            self._selector.register(self._pidfd, selectors.EVENT_READ)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process group, if it has not ended."""
        self._selector.close()
        with self._waiting.pausing():
            process_group.end(self._process)
        if self._pidfd is not None:
            os.close(self._pidfd)
        for pipe in self._pipes:
            pipe.close()

    def read1(self) -> bytes:
        """The next bytes of stdout, b"" when the process has ended well.

        Raises BackendError with what it said last when it has not, BackendTimeout, ClientGone.
        """
        stdout = self._pipes[0]
        while True:
            ready = {key.fileobj for key, _ in self._ready()}
            for pipe in self._pipes:  # both, before it is found to have ended
                data = self._read(pipe) if pipe in ready or self._pidfd in ready else None
                if pipe is stdout and data:
                    return data
                if data == b"" and pipe in ready:
                    self._selector.unregister(pipe)
            if self._pidfd in ready or (self._pidfd is None and not self._selector.get_map()):
                self._check()
                return b""

    def output(self) -> str:
        """All that it writes. Raises like `read1`."""
        parts, size = [], 0
        while data := self.read1():
            parts.append(data)
            size += len(data)
            if size > OUTPUT_LIMIT:
                raise BackendError(f"{self._what} wrote more than {OUTPUT_LIMIT} bytes")
        return b"".join(parts).decode("utf-8", "replace")

    def _ready(self) -> list[tuple[selectors.SelectorKey, int]]:
        found = self._selector.select(0)
        if not found:
            backend: Any = self._selector  # it has a file descriptor, which is all that a wait needs
            try:
                self._waiting.wait(backend, False, self._until)
            except BackendTimeout:
                raise BackendTimeout(f"{self._what} did not end within {self._timeout_s:g} s") from None
            found = self._selector.select(0)
        elif time.monotonic() > self._until:
            raise BackendTimeout(f"{self._what} did not end within {self._timeout_s:g} s")
        return found

    def _read(self, pipe: Any) -> bytes | None:
        """The next bytes, b"" at the end, None when there is nothing at the moment. Of stderr the end is kept."""
        with suppress(BlockingIOError):
            data = os.read(pipe.fileno(), PIECE)
            if pipe is not self._pipes[0]:
                self._tail = (self._tail + data)[-TAIL:]
            return data
        return None

    def _check(self) -> None:
        while not process_group.has_ended(self._process):  # where only its outputs could be waited for
            if time.monotonic() > self._until:
                raise BackendTimeout(f"{self._what} did not end within {self._timeout_s:g} s")
            time.sleep(process_group.POLL_S)
        status = process_group.end(self._process)
        for _ in range(LAST_WORDS):
            if not self._read(self._pipes[1]):
                break
        logger.debug("%s %s: %s", self._what, process_group.outcome(status), self._tail.decode("utf-8", "replace"))
        if status:
            said = process_group.last_lines(self._tail)
            raise BackendError(f"{self._what} {process_group.outcome(status)}{': ' + said if said else ''}")


class Said:
    """The bytes that an engine writes → the answer's text, as soon as it is certain.

    Characters are whole, bytes that are none are replaced. Off come everything up to `begins`, a repetition of the prompt at
    the beginning (`echo`), white space at both ends, everything from the first of the stops on, and the engine's own last
    words, wherever pieces are cut. See `Command` for begins, ends and fault.
    """

    def __init__(self, echo: str, stops: Sequence[str], begins: str = "", ends: str = "", fault: str = "") -> None:
        self._begins, self._ends, self._fault = begins, ends, fault
        self._banner: str | None = "" if begins else None  # None: it is behind us, as below
        self._last_words = ends.strip() or END_OF_TEXT
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._echo: str | None = echo.strip() or None
        self._seen = 0  # characters of the echo that have come
        self._stops, self._held = (*stops, fault) if fault else stops, ""
        self._begun = False
        self._pieces: list[str] = []  # all that came behind the echo
        self.word = ""  # the stop that was found: nothing follows it
        self.ended = False  # the engine said that the model has ended
        self.failed = False  # the engine said that it cannot go on

    def feed(self, data: bytes, final: bool = False) -> str:
        """What is certain to be the next text; `final`: there are no more bytes."""
        if self.word:
            return ""
        piece = self._past_echo(self._past_banner(self._decoder.decode(data, final)), final)
        self._pieces.append(piece)
        if self.failed:
            return ""
        self._held += piece
        if not self._begun:
            self._held = self._held.lstrip()
            self._begun = bool(self._held)
        found = min(((at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0), default=None)
        if found:
            certain, self._held = self._held[: found[0]], ""
            self.failed = found[1] == self._fault
            self.word = "" if self.failed else found[1]
        elif final:
            certain, self._held = self._held.rstrip(), ""
            if certain.endswith(self._last_words):
                certain, self.ended = certain.removesuffix(self._last_words), self._last_words == END_OF_TEXT
        else:
            certain = self._held[: len(self._held) - self._uncertain()]
        certain = certain.rstrip()
        self._held = self._held[len(certain) :]
        return certain

    def is_cut(self) -> bool:
        """Whether the engine has ended before all of its output was written."""
        return not (self.word or self.ended or "".join(self._pieces).endswith(self._ends))

    def failure(self) -> str:
        """What it said when it could not go on."""
        return "".join(self._pieces).partition(self._fault)[2].partition("\n")[0]

    def spoken(self) -> str:
        """All that the model said up to its end, white space too, but for the engine's own last words and line ends."""
        whole = "".join(self._pieces)
        if self.word:
            return whole[: whole.find(self.word)]
        if self.ended:
            return whole.rstrip().removesuffix(END_OF_TEXT).removesuffix(" ")
        for end in (self._ends, "\n") if self._begins else ("\n", "\n"):  # in a frame, an answer has a line of its own
            whole = whole.removesuffix(end)
        return whole

    def _past_banner(self, piece: str) -> str:
        if self._banner is None:
            return piece
        self._banner += piece
        _, begun, rest = self._banner.partition(self._begins)
        self._banner = None if begun else self._banner[-len(self._begins) :]
        return rest

    def _past_echo(self, piece: str, final: bool) -> str:
        if self._echo is None:
            return piece
        piece = piece if self._seen else piece.lstrip()
        part = self._echo[self._seen : self._seen + len(piece)]
        before, rest = self._echo[: self._seen], piece[len(part) :]
        self._seen += len(part)
        if piece.startswith(part) and self._seen < len(self._echo) and not final:
            return ""
        whole = piece.startswith(part) and self._seen == len(self._echo)
        self._echo = None
        return rest if whole else before + piece

    def _uncertain(self) -> int:
        """How many characters at the end may be the beginning of a stop, or of the engine's last words."""
        held, bare = self._held, self._held.rstrip()
        longest = max((_overlap(held, stop) for stop in self._stops), default=0)
        words = self._last_words
        last_words = len(words) if bare.endswith(words) else _overlap(bare, words)
        return max(longest, len(held) - len(bare) + last_words if last_words else 0)


def _overlap(text: str, word: str) -> int:
    """How many characters of the text's end are the word's beginning."""
    return next((size for size in range(min(len(word) - 1, len(text)), 0, -1) if text.endswith(word[:size])), 0)
