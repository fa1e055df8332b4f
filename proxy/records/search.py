"""What can be looked for in the call log: the words that a call added to its conversation, and what narrows a list.

Both are terms of one index. The calls are numbered as they are written, and each SPAN of numbers is a slice: a term begins
with its slice's number, so that a search looks into one slice after the other, the newest first, until its page is full. What a
page costs then depends on a slice, not on how many calls there are, be the word frequent, a beginning, or in no call at all.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from proxy.records.store import Query, Row, RowRefused

SPAN = 8192  # calls of one slice
SEARCHED = 8000  # characters of what was asked, and of what was answered
LONGEST = 64  # characters of a word; of a longer one the beginning
MOST = 32  # words of a search; further ones do not narrow it
LETTERS = re.compile(r"[^\W_]+")
WORD = re.compile(r"[^\W_]+\*?")
MARKS = re.compile("[\u0300-\u036f]")  # accents, once a letter stands apart from them
SAID = ("content", "text", "input", "prompt", "output", "arguments", "reasoning_content", "message", "query")
UNSAID = ("embedding", "logprobs")
NARROWING = ("key_name", "target", "model", "status", "front", "conversation")  # of a query: terms of a call


def terms_of(row: Row, number: int) -> list[str]:
    """All that the call of that number is found by."""
    begin = str(number // SPAN)
    words = set(LETTERS.findall(_folded(said_in(row.request, row.response))))
    outcome = "error" if row.status >= 400 else "ok"
    facts = {("status", outcome), ("status", str(row.status)), ("model", row.model_asked), ("model", row.model_served)}
    facts |= {(name, getattr(row, name)) for name in ("key_name", "target", "front", "conversation")}
    facets = [f"{begin}{_facet(name, value)}" for name, value in facts if value is not None]
    return facets + [f"{begin}_{word[:LONGEST]}" for word in words]


def sought(query: Query) -> list[str] | None:
    """The terms that a call must have, without their slice; one that ends in * is a beginning. None: no call can have them.

    Raises RowRefused, UnicodeEncodeError for what no call can hold."""
    words = WORD.findall(_folded(query.text)) if query.text else []
    if query.text and not words:
        return None
    narrowed = [(name, value) for name in NARROWING if (value := getattr(query, name)) is not None]
    if not all(isinstance(value, str) for _, value in narrowed):
        raise RowRefused("no text")
    facets = [_facet(name, value) for name, value in narrowed]
    return [*facets, *dict.fromkeys(f"_{word if len(word) <= LONGEST else word[:LONGEST]}" for word in words[:MOST])]


def said_in(request: Any, response: Any) -> str:
    """What a call added to its conversation: what was asked since the last answer, and the answer."""
    messages = request.get("messages") if isinstance(request, dict) else None
    new: Any = messages if isinstance(messages, list) else request
    if isinstance(messages, list):
        answered = [at for at, each in enumerate(messages) if isinstance(each, dict) and each.get("role") == "assistant"]
        new = messages[answered[-1] + 1 :] if answered else messages
    return "\n".join(said[:SEARCHED] for said in ("\n".join(_texts(new)), "\n".join(_texts(response))))


def _texts(value: Any, name: str = "") -> Iterable[str]:
    if isinstance(value, str):
        if name in SAID:
            yield value[:SEARCHED]
    elif isinstance(value, dict):
        for key, member in value.items():
            if key not in UNSAID:
                yield from _texts(member, key)
    elif isinstance(value, list):
        for member in value:
            yield from _texts(member, name)


def _folded(text: str) -> str:
    """Without accents, upper and lower case alike."""
    return text.lower() if text.isascii() else MARKS.sub("", unicodedata.normalize("NFKD", text)).casefold()


@lru_cache(maxsize=4096)
def _facet(name: str, value: str) -> str:
    """A value of any length and kind as a term; whoever finds a call by it looks at the value itself, too."""
    return f":{name[0]}{hashlib.blake2b(value.encode(), digest_size=8).hexdigest()}"
