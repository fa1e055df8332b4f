"""Who may knock: an address is one however it is written, and wrong keys are counted against it alone."""

from __future__ import annotations

import ipaddress
import threading

import pytest

from proxy.config import Cerbere, Network
from proxy.errors import Refused
from proxy.gates.cerbere import TRACKED, Gate, address, within


class Clock:
    """Time as the test wants it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def nets(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def refused(gate: Gate, client: str) -> str | None:
    """The code of a refusal, None when the client is let in."""
    try:
        gate.admit(client)
    except Refused as refusal:
        return refusal.code if (refusal.status, refusal.close) == (403, True) else "no proper refusal"
    return None


# --- addresses


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("10.0.0.1", "10.0.0.1"),
        (" 10.0.0.1\t", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:0a00:0001", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
    ],
)
def test_an_address_is_one_however_it_is_written(text: str, wanted: str) -> None:
    assert str(address(text)) == wanted


@pytest.mark.parametrize("text", ["", "unknown", "10.0.0", "010.0.0.1", "1.2.3.4, 5.6.7.8", "_hidden", "999.1.1.1"])
def test_what_is_no_address_is_none(text: str) -> None:
    assert address(text) is None
    assert not within(text, nets("0.0.0.0/0", "::/0"))


def test_a_network_holds_an_address_of_its_kind_mapped_or_not() -> None:
    assert within("::ffff:10.1.2.3", nets("::/128", "10.0.0.0/8"))
    assert not within("10.1.2.3", nets("::/0"))
    assert not within("::1", nets("0.0.0.0/0"))
    assert not within("10.1.2.3", ())


# --- whose address counts


@pytest.mark.parametrize(
    ("peer", "forwarded", "wanted"),
    [
        ("9.9.9.9", None, "9.9.9.9"),
        ("9.9.9.9", "1.1.1.1", "9.9.9.9"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", "6.6.6.6, 1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", "1.1.1.1, 10.0.0.2", "1.1.1.1"),
        ("10.0.0.1", "10.0.0.3 ,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "6.6.6.6, 1.1.1.1,10.0.0.3,10.0.0.2", "1.1.1.1"),
        ("::ffff:10.0.0.1", "1.1.1.1", "1.1.1.1"),
        ("10.0.0.1", "1.1.1.1, nonsense", "10.0.0.1"),
        ("10.0.0.1", "1.1.1.1,", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
    ],
)
def test_the_nearest_address_that_no_trusted_proxy_has_counts(peer: str, forwarded: str | None, wanted: str) -> None:
    assert Gate(Cerbere(trusted_proxies=nets("10.0.0.0/8"))).client_of(peer, forwarded) == wanted


def test_without_trusted_proxies_nobody_can_name_another_address() -> None:
    assert Gate(Cerbere()).client_of("127.0.0.1", "1.1.1.1") == "127.0.0.1"


# --- lists


def test_the_blacklist_is_kept_out_and_only_lets_only_its_own_in() -> None:
    gate = Gate(Cerbere(blacklist=nets("10.0.0.0/24"), only=nets("10.0.0.0/8", "::1")))
    clients = ["10.0.0.1", "::ffff:10.0.0.1", "10.1.0.1", "::1", "9.9.9.9", "nonsense"]
    wanted = ["address_refused", "address_refused", None, None, "address_refused", "address_refused"]
    assert [refused(gate, client) for client in clients] == wanted


# --- bans


def test_the_last_try_brings_the_ban_and_says_so() -> None:
    gate = Gate(Cerbere(max_tries=3))
    assert [gate.wrong_key("9.9.9.9") for _ in range(5)] == [False, False, True, False, False]
    assert refused(gate, "9.9.9.9") == "address_banned"
    assert refused(gate, "9.9.9.8") is None


def test_before_the_last_try_nobody_is_banned() -> None:
    gate = Gate(Cerbere(max_tries=2))
    gate.wrong_key("9.9.9.9")
    assert refused(gate, "9.9.9.9") is None


def test_a_right_key_clears_the_count() -> None:
    gate = Gate(Cerbere(max_tries=2))
    gate.wrong_key("9.9.9.9")
    gate.right_key("::ffff:9.9.9.9")
    assert not gate.wrong_key("9.9.9.9")
    assert refused(gate, "9.9.9.9") is None


def test_a_ban_without_a_length_stays() -> None:
    clock = Clock()
    gate = Gate(Cerbere(max_tries=1), clock)
    gate.wrong_key("9.9.9.9")
    clock.now += 1e9
    assert refused(gate, "9.9.9.9") == "address_banned"


def test_a_ban_ends_after_its_time_and_the_count_begins_anew() -> None:
    clock = Clock()
    gate = Gate(Cerbere(max_tries=2, ban_s=60), clock)
    for _ in range(2):
        gate.wrong_key("9.9.9.9")
        gate.wrong_key("9.9.9.9")
        clock.now += 59.9
        assert refused(gate, "9.9.9.9") == "address_banned"
        clock.now += 0.2
        assert refused(gate, "9.9.9.9") is None


def test_one_address_cannot_change_how_it_is_written_to_escape() -> None:
    gate = Gate(Cerbere(max_tries=2))
    gate.wrong_key("9.9.9.9")
    assert gate.wrong_key("::ffff:9.9.9.9")
    assert refused(gate, " 9.9.9.9") == refused(gate, "::ffff:909:909") == "address_banned"


def test_an_ipv6_client_counts_by_its_network() -> None:
    gate = Gate(Cerbere(max_tries=2))
    gate.wrong_key("2001:db8:0:1::1")
    assert gate.wrong_key("2001:db8:0:1:ffff::2%eth0")
    assert refused(gate, "2001:db8:0:1::3") == "address_banned"
    assert refused(gate, "2001:db8:0:2::1") is None


def test_the_whitelist_is_never_banned() -> None:
    gate = Gate(Cerbere(max_tries=1, whitelist=nets("9.9.9.0/24", "2001:db8::1")))
    assert not gate.wrong_key("9.9.9.9")
    assert refused(gate, "9.9.9.9") is None
    gate.wrong_key("2001:db8::2")
    assert refused(gate, "2001:db8::2") == "address_banned"
    assert refused(gate, "2001:db8::1") is None


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first() -> None:
    gate = Gate(Cerbere(max_tries=1))
    addresses = [str(ipaddress.ip_address(0x0B000000 + number)) for number in range(TRACKED + 2)]
    for each in addresses[:TRACKED]:
        gate.wrong_key(each)
    gate.wrong_key(addresses[0])
    for each in addresses[TRACKED:]:
        gate.wrong_key(each)
    assert [refused(gate, each) is None for each in addresses[:4]] == [False, True, True, False]
    assert refused(gate, addresses[-1]) == "address_banned"


def test_no_try_is_lost_between_threads() -> None:
    gate = Gate(Cerbere(max_tries=800))
    bans: list[bool] = []
    start = threading.Barrier(8)

    def knock() -> None:
        start.wait()
        bans.extend([gate.wrong_key("9.9.9.9") for _ in range(100)])

    threads = [threading.Thread(target=knock) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bans.count(True) == 1
    assert refused(gate, "9.9.9.9") == "address_banned"


@pytest.mark.parametrize(("text", "found"), [("1.2.3.4:80", "1.2.3.4"), ("[::1]", "::1"), ("[2001:db8::1]:443", "2001:db8::1")])
def test_an_address_may_stand_with_a_port_as_some_proxies_write_it(text: str, found: str) -> None:
    assert str(address(text)) == found
