"""Whose key is it: every header that can carry one counts, and the proxy's own never leaves for a backend."""

from __future__ import annotations

import ipaddress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import Cerbere
from proxy.errors import Refused
from proxy.gates.cerbere import Gate
from proxy.gates.keys import ALL_HEADERS, KEY_HEADERS, Keys, offered

MASTER = "sk-master-Ü/+1"
RECEIVED = MASTER.encode().decode("latin-1")  # UTF-8 on the wire, as header values are decoded
OPEN = (ipaddress.ip_network("10.0.0.0/8"),)


def keys(master: str = MASTER, max_tries: int = 3) -> Keys:
    return Keys(master, OPEN, Gate(Cerbere(max_tries=max_tries)))


@pytest.mark.parametrize("name", [*KEY_HEADERS, "x-mooltiproxy-key"])
def test_the_key_is_right_in_every_header_that_clients_use(name: str) -> None:
    assert keys().admit({name: RECEIVED}, "9.9.9.9") == "master"


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
def test_the_bearer_scheme_has_no_case(scheme: str) -> None:
    assert keys().admit({"authorization": scheme + RECEIVED}, "9.9.9.9") == "master"


WRONG = [
    {"authorization": "Bearer wrong"},
    {"authorization": RECEIVED},
    {"authorization": "Basic " + RECEIVED},
    {"authorization": f"Bearer {RECEIVED} x"},
    {"x-api-key": RECEIVED[:-1]},
    {"x-api-key": RECEIVED + "x"},
    {"x-api-key": RECEIVED.upper()},
    {"x-api-key": MASTER},
    {"x-api-key": "\xff\xfe€"},
    {"x-api-key": f"{RECEIVED}, {RECEIVED}"},
]


@pytest.mark.parametrize("headers", WRONG)
def test_a_wrong_key_is_a_401_that_counts(headers: dict[str, str]) -> None:
    gate = keys(max_tries=2)
    closes = []
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            gate.admit(headers, "9.9.9.9")
        assert caught.value.status == 401
        assert caught.value.code == "invalid_api_key"
        assert dict(caught.value.headers)["www-authenticate"].startswith("Bearer")
        closes.append(caught.value.close)
    assert closes == [False, True]


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer"}, {"authorization": "Bearer "}, {"authorization": ""}, {"x-api-key": ""}]
)
def test_a_missing_key_is_a_401_that_does_not_count(headers: dict[str, str]) -> None:
    gate = keys(max_tries=1)
    for _ in range(5):
        with pytest.raises(Refused, match="missing") as caught:
            gate.admit(headers, "9.9.9.9")
        assert caught.value.status == 401
        assert not caught.value.close
    assert gate.admit({"x-api-key": RECEIVED}, "9.9.9.9") == "master"


@pytest.mark.parametrize(
    "wrong", [{"x-api-key": "w"}, {"authorization": "Bearer w"}, {"authorization": "Basic w"}, {"api-key": "w"}]
)
def test_of_several_keys_all_must_be_right(wrong: dict[str, str]) -> None:
    right = {"x-goog-api-key": RECEIVED}
    assert keys().admit({**right, "x-api-key": RECEIVED, "authorization": f"Bearer {RECEIVED}"}, "9.9.9.9") == "master"
    with pytest.raises(Refused):
        keys().admit({**right, **wrong}, "9.9.9.9")


def test_the_proxy_s_own_header_leaves_the_others_to_the_backend() -> None:
    headers = {"x-mooltiproxy-key": RECEIVED, "authorization": "Bearer for-the-backend", "x-api-key": "other"}
    assert offered(headers) == [RECEIVED]
    assert keys().admit(headers, "9.9.9.9") == "master"
    assert keys().passed_through(headers) == {"authorization": "Bearer for-the-backend", "x-api-key": "other"}


def test_a_wrong_own_key_is_not_made_right_by_others() -> None:
    with pytest.raises(Refused):
        keys().admit({"x-mooltiproxy-key": "w", "x-api-key": RECEIVED}, "9.9.9.9")


def test_an_open_network_needs_no_key_and_may_bring_another_one() -> None:
    for headers in ({}, {"authorization": "Bearer for-the-backend"}):
        for client in ("10.1.2.3", "::ffff:10.1.2.3"):
            assert keys(max_tries=1).admit(headers, client) == "open"
    assert keys().admit({"x-api-key": RECEIVED}, "10.1.2.3") == "master"


@pytest.mark.parametrize("headers", [{}, {"x-api-key": ""}, {"authorization": "Bearer "}, {"authorization": "Bearer"}])
def test_without_a_master_key_no_key_is_right(headers: dict[str, str]) -> None:
    with pytest.raises(Refused):
        keys(master="").admit(headers, "9.9.9.9")


def test_a_right_key_forgives_the_wrong_ones_before() -> None:
    gate = keys(max_tries=2)
    for _ in range(3):
        with pytest.raises(Refused) as caught:
            gate.admit({"x-api-key": "w"}, "9.9.9.9")
        assert not caught.value.close
        gate.admit({"x-api-key": RECEIVED}, "9.9.9.9")


def test_a_master_key_that_the_environment_gave_as_bytes_works() -> None:
    gate = keys(master=b"k\xff\xfe".decode("utf-8", "surrogateescape"))
    assert gate.admit({"x-api-key": "k\xff\xfe"}, "9.9.9.9") == "master"
    assert gate.stands_in("=k\xff\xfe=")


# --- what leaves


def test_credentials_with_the_master_key_in_them_do_not_pass() -> None:
    headers = {
        "authorization": f"Bearer {RECEIVED}",
        "x-api-key": f"a{RECEIVED}b",
        "api-key": "mine",
        "x-goog-api-key": "other",
    }
    assert keys().passed_through(headers) == {"api-key": "mine", "x-goog-api-key": "other"}


def test_nothing_but_credentials_passes() -> None:
    assert keys().passed_through({"cookie": "a", "x-mooltiproxy-key": "b", "x-other": "c"}) == {}
    assert set(KEY_HEADERS) < ALL_HEADERS


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=6), st.booleans())
def test_the_master_key_is_seen_in_a_text_plain_or_percent_encoded(around: str, hard: bool) -> None:
    quoted = "".join(f"%{byte:02x}" for byte in MASTER.encode()) if hard else quote(MASTER, safe="")
    for written in (RECEIVED, quoted):
        assert keys().stands_in(f"key={written}&{around}")
    assert not keys().stands_in(around)


def test_without_a_master_key_it_stands_nowhere() -> None:
    assert not keys(master="").stands_in("anything")
    assert not keys(master="").stands_in("")
