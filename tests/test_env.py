"""`.env`: what its lines mean, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import ConfigError
from proxy.settings.env import read_env_file


def env(tmp_path: Path, text: str | bytes, environ: Mapping[str, str] = {}) -> dict[str, str]:
    path = tmp_path / ".env"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_env_file(str(path), environ)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("A = b c ", "b c"),
        ("export A=b", "b"),
        ("  A=b  # comment", "b"),
        ("A=b#c", "b#c"),
        ("A=#c", "#c"),
        ("A= # comment", ""),
        ("A=", ""),
        ("A='b # \"c\\n' # d", 'b # "c\\n'),
        ('A="b \\"c\\" \\\\ \\n$D"', 'b "c" \\ \n$D'),
        ("A=it's", "it's"),
        ("A=b=c==", "b=c=="),
        ("A=ü", "ü"),
    ],
)
def test_a_line_of_env(tmp_path: Path, line: str, value: str) -> None:
    assert env(tmp_path, line) == {"A": value}
    assert env(tmp_path, b"\xef\xbb\xbf# x\r\n\r\n" + line.encode() + b"\r\n") == {"A": value}


def test_the_real_environment_wins(tmp_path: Path) -> None:
    assert env(tmp_path, "A=file\nB=file", {"A": "real", "C": ""}) == {"A": "real", "B": "file", "C": ""}


def test_env_needs_not_be_there(tmp_path: Path) -> None:
    assert read_env_file(str(tmp_path / "none"), {"A": "b"}) == {"A": "b"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("hunter2", "is not of the form NAME=value"),
        ("=hunter2", "the name before = must be"),
        ("1A=hunter2", "the name before = must be"),
        ("A B=hunter2", "the name before = must be"),
        ('A="hunter2', "the quote of A is not closed in this line"),
        ("A='hunter2", "the quote of A is not closed in this line"),
        ('A="hunter2" x', "there is text behind the closing quote of A"),
        ("A=hunter2\0", "A holds a NUL byte"),
    ],
)
def test_every_bad_line_of_env_is_named_but_not_shown(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        env(tmp_path, f"X=y\n{line}\n\n{line}\n")
    assert [found.split(".env")[1].split(": ")[0] for found in caught.value.faults] == [":2", ":4"]
    assert all(said in found and "hunter2" not in found for found in caught.value.faults)


def test_an_env_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.env:2: is not UTF-8 text"):
        env(tmp_path, b"A=b\nC=\xff\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_env_file(str(tmp_path), {})


PLAIN_TEXT = st.text(st.characters(codec="utf-8", exclude_characters='\0\r\n\\"'), max_size=20)


@settings(max_examples=50)
@given(values=st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True), PLAIN_TEXT, max_size=3))
def test_what_is_written_in_quotes_is_read_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]) -> None:
    text = "\n".join(f'{name}="{value}"' for name, value in values.items())
    assert env(tmp_path_factory.mktemp("env"), text) == values
