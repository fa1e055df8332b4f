"""Who looks: a login with a key gives a signed cookie, which every worker can check.

The cookie names the key, the end of its time and a random id, signed with what is derived from the master key and with random
bytes of this start; the person's own key is signed in, too. So another master key, another person's key, a removed one or a
restart ends it at once. A logout makes all workers refuse its id, which is then never good again. What changes anything needs
the token that belongs to the cookie, and this origin.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from proxy import wire
from proxy.config import Console
from proxy.console.live import board_of
from proxy.errors import BadRequest, Refused
from proxy.gates.cerbere import within
from proxy.gates.keys import offered
from proxy.process import start_secret

if TYPE_CHECKING:
    from proxy.pages import Visit

COOKIE = "mooltiproxy_console"
PROOF = "x-mooltiproxy-csrf"  # never forwarded: it begins like all of our headers
ROUNDS = 200_000  # PBKDF2: a cookie must not be a quick way to try master keys
COOKIES = re.compile(rf"(?:^|;)[ \t]*{COOKIE}=([^;\s]*)")  # http.cookies takes seconds for one that is all backslashes
SESSION = re.compile(r"([\w-]+)\.([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")


@dataclass(frozen=True)
class Visitor:
    """Who asks. `csrf`: what their changes must carry; `id`, `expires` (Unix time): of the session."""

    name: str
    csrf: str = ""
    id: str = ""
    expires: float = 0.0

    @property
    def is_master(self) -> bool:
        """Whether all rows are theirs to see."""
        return self.name == "master"

    @property
    def viewer(self) -> str | None:
        """The key whose rows they see; None: all."""
        return None if self.is_master else self.name


NOBODY = Visitor("")


def settings(visit: Visit) -> Console:
    """The console's configuration, which is there when a page is."""
    console = visit.generation.config.console
    if console is None:
        raise Refused("the console is off", status=404, code="page_not_found")
    return console


def body_of(visit: Visit) -> dict[str, Any]:
    """The JSON object of a request. Raises BadRequest."""
    if "json" not in visit.request.headers.get("content-type", ""):  # which no form of another page can send
        raise BadRequest("the body must be application/json", status=415)
    try:
        body = wire.loads(visit.request.body.read())
    except ValueError as fault:
        raise BadRequest(f"the body is not JSON: {fault}") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def login(visit: Visit, _: Visitor) -> None:
    """POST /console/api/login {key}. A wrong key counts for cerbere."""
    _same_origin(visit)
    console, key = settings(visit), body_of(visit).get("key")
    if not isinstance(key, str) or not key.strip():
        raise BadRequest("`key` is missing")
    if any("\ud800" <= letter <= "\udfff" for letter in key):
        raise BadRequest("`key` holds half a character")
    visit.call.key_name = name = _admitted(visit, key.strip())
    expires, session = str(int(time.time() + console.session_s)), secrets.token_hex(16)
    coded = base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")
    value = f"{coded}.{expires}.{session}.{_sign(visit, 'session', name, expires, session, _of_person(visit, name))}"
    visit.reply.json(200, {"name": name}, [("set-cookie", _cookie(visit, value, int(console.session_s)))])


def _admitted(visit: Visit, key: str) -> str:
    generation, client = visit.generation, visit.call.client
    name = generation.keys.admit({"authorization": f"Bearer {key.encode().decode('latin-1')}"}, client)
    if name == "open":  # the address needs no key elsewhere, and this one is wrong
        raise Refused("the key is wrong", status=401, code="invalid_api_key", close=generation.cerbere.wrong_key(client))
    if name != "master" and not generation.config.keys[name].console:
        raise Refused(f"the key {name!r} does not open the console: it has no `console: true`", code="no_console")
    return name


def logout(visit: Visit, visitor: Visitor) -> None:
    """POST /console/api/logout"""
    if visitor.id:
        board_of(visit.handler.server).forget(visitor.id, visitor.expires)
    visit.reply.json(200, {}, [("set-cookie", _cookie(visit, "", 0))])


def visitor(visit: Visit) -> Visitor:
    """Whose session, or whose key, a request comes with. Raises Refused: 401, 403 for a change without its token."""
    if offered(visit.request.headers):  # a program; a browser sends no key by itself
        name = visit.key()
        if name == "open" or (name != "master" and not visit.generation.config.keys[name].console):
            raise Refused("this key does not open the console", code="no_console")
        return Visitor(name)
    board = board_of(visit.handler.server)
    board.listen()
    found = _of_cookie(visit)
    if found is None or found.id in board.forgotten:
        raise Refused("log in: the session has ended, or there was none", status=401, code="login_required")
    visit.call.key_name = found.name
    _same_origin(visit)
    proven = hmac.compare_digest(visit.request.headers.get(PROOF, "").encode(), found.csrf.encode())
    if visit.request.method not in ("GET", "HEAD") and not proven:
        raise Refused(f"the header {PROOF} is missing or wrong", code="csrf")
    return found


def _of_cookie(visit: Visit) -> Visitor | None:
    sent = COOKIES.search(visit.request.headers.get("cookie", ""))
    value = sent[1] if sent else ""
    parts = SESSION.fullmatch(value)
    if not parts:
        return None
    coded, expires, session, signed = parts.groups()
    try:
        name = base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    right = hmac.compare_digest(signed, _sign(visit, "session", name, expires, session, _of_person(visit, name)))
    if not right or time.time() >= int(expires) or not _still_may(visit, name):
        return None
    return Visitor(name, _sign(visit, "csrf", value), session, float(expires))


def _still_may(visit: Visit, name: str) -> bool:
    key = visit.generation.config.keys.get(name)
    return name == "master" or (key is not None and key.console and (key.expires is None or time.time() < key.expires))


def _of_person(visit: Visit, name: str) -> str:
    key = visit.generation.config.keys.get(name)
    return key.digest.hex() if key else ""


def _sign(visit: Visit, *parts: str) -> str:
    secret = _secret(visit.generation.config.master_key)
    return hmac.new(secret, "\n".join(parts).encode(), hashlib.sha256).hexdigest()


@lru_cache(maxsize=4)
def _secret(master_key: str) -> bytes:
    salt = b"mooltiproxy console" + start_secret()
    return hashlib.pbkdf2_hmac("sha256", master_key.encode("utf-8", "surrogateescape"), salt, ROUNDS)


def _cookie(visit: Visit, value: str, seconds: int) -> str:
    headers, config = visit.request.headers, visit.generation.config
    before = within(visit.handler.client_address[0], config.cerbere.trusted_proxies)  # TLS ends there
    secure = visit.handler.encrypted or (before and headers.get("x-forwarded-proto") == "https")
    return f"{COOKIE}={value}; Path=/console; Max-Age={seconds}; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"


def _same_origin(visit: Visit) -> None:
    """Raises Refused when another page asks, also one of this host at another port. Programs say nothing of it; `none` is what
    somebody typed."""
    headers, read_only = visit.request.headers, visit.request.method in ("GET", "HEAD")
    origin = headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()
    if foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none" if read_only else ""):
        raise Refused("another web page cannot ask for this", code="origin_refused")
