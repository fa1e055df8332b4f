"""`.env` → environment variables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from proxy.errors import ConfigError

NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
QUOTED = {'"': re.compile(r'"((?:[^"\\]|\\.)*)"(.*)'), "'": re.compile(r"'([^']*)'(.*)")}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def read_text(path: str, missing: str) -> bytes:
    """The bytes of a file. Raises ConfigError when it cannot be read; `missing` says what to do if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file; {missing}"]) from None
    except OSError as fault:
        raise ConfigError([f"{path}: cannot be read: {fault.strerror}"]) from None


def read_env_file(path: str, environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` and, for what it does not have, the KEY=VALUE lines of a file that need not be there.

    Values may be quoted (within "…" a backslash escapes); `export` in front and `# comments` are allowed; nothing is
    expanded. Raises ConfigError naming every line that is none of this, without its text, which may be a secret.
    """
    try:
        raw = read_text(path, "")
    except ConfigError as fault:
        if isinstance(fault.__context__, FileNotFoundError):
            return dict(environ)
        raise
    found: dict[str, str] = {}
    faults = []
    for number, line in enumerate(_env_lines(path, raw), 1):
        wrong = _env_line(line, found)
        if wrong:
            faults.append(f"{path}:{number}: {wrong}")
    if faults:
        raise ConfigError(faults)
    return {**found, **environ}


def _env_lines(path: str, raw: bytes) -> Iterator[str]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = raw.count(b"\n", 0, fault.start) + 1
        raise ConfigError([f"{path}:{line}: is not UTF-8 text"]) from None
    return (line.removesuffix("\r").strip() for line in text.split("\n"))


def _env_line(line: str, found: dict[str, str]) -> str | None:
    """Take one line in, or say what is wrong with it."""
    if not line or line.startswith("#"):
        return None
    name, equals, value = line.removeprefix("export ").partition("=")
    name = name.strip()
    if not equals:
        return "is not of the form NAME=value"
    if not NAME.fullmatch(name):
        return "the name before = must be letters, digits and _, and not begin with a digit"
    if "\0" in value:
        return f"{name} holds a NUL byte"
    quote = value.strip()[:1]
    if quote not in QUOTED:
        found[name] = re.split(r"\s#", value, maxsplit=1)[0].strip()
        return None
    parts = QUOTED[quote].fullmatch(value.strip())
    if not parts:
        return f"the quote of {name} is not closed in this line"
    if parts[2].strip() and not parts[2].strip().startswith("#"):
        return f"there is text behind the closing quote of {name}"
    found[name] = re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[1]), parts[1]) if quote == '"' else parts[1]
    return None
