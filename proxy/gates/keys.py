"""Whose key is it: the proxy's own key, in any of the headers in which clients send one."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from urllib.parse import unquote

from proxy.config import LOOPBACK, Network
from proxy.errors import Refused
from proxy.gates.cerbere import Gate, within

OWN_HEADER = "x-mooltiproxy-key"  # beside an Authorization that is meant for the backend
KEY_HEADERS = ("x-api-key", "x-goog-api-key", "api-key")
ALL_HEADERS = frozenset({OWN_HEADER, "authorization", *KEY_HEADERS})
HOW = "send it as `Authorization: Bearer …`, x-api-key or x-goog-api-key"
LOCAL = re.compile(r"(?:(?:[\w-]+\.)*localhost|127(?:\.[0-9]{1,3}){3}|\[?::1\]?)(?::[0-9]+)?", re.I)  # hosts of this machine
CHALLENGE = (("www-authenticate", 'Bearer realm="mooltiproxy"'),)


def offered(headers: Mapping[str, str]) -> list[str]:
    """Every key that a request carries; a malformed Authorization counts as a wrong one, an empty one as none."""
    if OWN_HEADER in headers:
        return [headers[OWN_HEADER]] if headers[OWN_HEADER] else []
    keys = [headers[name] for name in KEY_HEADERS if headers.get(name)]
    authorization = headers.get("authorization")
    if authorization:
        scheme, _, key = authorization.partition(" ")
        key = key.strip()
        if key or scheme.lower() != "bearer":
            keys.append(key if scheme.lower() == "bearer" else "")
    return keys


class Keys:
    """The master key, and the networks that need none."""

    def __init__(self, master_key: str, open_to: tuple[Network, ...], cerbere: Gate) -> None:
        self._master = master_key.encode("utf-8", "surrogateescape")
        self._as_received = self._master.decode("latin-1")  # as header values are decoded
        self._open_to = open_to
        self._cerbere = cerbere

    def admit(self, headers: Mapping[str, str], client: str) -> str:
        """The name of the key for logs: master, or open. Raises Refused (401); a wrong key counts towards a ban."""
        keys = offered(headers)
        right = bool(keys) and bool(self._master)
        for key in keys:  # all of them are compared, whatever the first one was
            right &= hmac.compare_digest(key.encode("latin-1", "replace"), self._master)
        if right:
            self._cerbere.right_key(client)
            return "master"
        if self._open_to and within(client, self._open_to):
            if within(client, LOOPBACK) and not LOCAL.fullmatch(headers.get("host", "localhost")):  # a page's name led here
                raise Refused("under another name than localhost this machine needs a key, too", code="host_refused")
            return "open"
        if not keys:
            empty = any(name in headers for name in ALL_HEADERS)
            why = "the header is there, but empty; is MOOLTIPROXY_KEY set where you call from?" if empty else HOW
            raise Refused(f"a key is missing: {why}", status=401, headers=CHALLENGE)
        # any web page can make a browser send wrong keys: it must not ban the machine that it runs on
        banned = not ("origin" in headers and within(client, LOOPBACK)) and self._cerbere.wrong_key(client)
        raise Refused("the key is wrong", status=401, code="invalid_api_key", headers=CHALLENGE, close=banned)

    def passed_through(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The client's own credentials for the backend; the proxy's key is never among them."""
        names = ("authorization", *KEY_HEADERS)
        return {name: headers[name] for name in names if name in headers and not self.stands_in(headers[name])}

    def stands_in(self, text: str) -> bool:
        """Whether the master key stands in a text that would leave for a backend, plainly or percent-encoded."""
        key = self._as_received
        return bool(key) and (key in text or ("%" in text and key in unquote(text, "latin-1")))
