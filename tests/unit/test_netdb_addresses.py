"""What follows from a key and from an address."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.clock import DAY, HOUR
from phantom_tun.crypto.hashes import h
from phantom_tun.errors import RecordRefused
from phantom_tun.ids import NetworkId
from phantom_tun.netdb import addresses, proof
from phantom_tun.netdb.addresses import (
    ap4_candidate,
    ap6_address,
    day_of,
    is_ap_address,
    keys_to_read,
    keys_to_write,
    storage_key,
)
from phantom_tun.testing.record_factory import NETWORK

KEY = b"k" * 32
MIDNIGHT = 20_000 * DAY
SMALL = dataclasses.replace(NETWORK, ap4=ipaddress.IPv4Network("240.0.0.0/12"))
ADDRESS = ap6_address(NETWORK, KEY)
keys = st.binary(min_size=32, max_size=32)


@given(keys)
def test_ap6_is_the_prefix_and_96_bits_of_the_hash(key: bytes) -> None:
    address = ap6_address(NETWORK, key)
    assert address in NETWORK.ap6
    assert address.packed[4:] == h("ap6", NETWORK.network_id, key)[:12]
    assert is_ap_address(NETWORK, address)


def test_ap6_avoids_the_reserved_block(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = bytes(4) + b"x" * 28
    usable = b"y" * 32
    answers = iter([reserved, reserved, usable])
    monkeypatch.setattr(addresses, "h", lambda *_: next(answers))
    assert ap6_address(NETWORK, KEY).packed[4:] == usable[:12]


def test_addresses_differ_between_networks_and_keys() -> None:
    other = dataclasses.replace(NETWORK, network_id=NetworkId(bytes(32)))
    assert ap6_address(NETWORK, KEY) != ap6_address(other, KEY)
    assert ap6_address(NETWORK, KEY) != ap6_address(NETWORK, b"l" * 32)
    assert ap4_candidate(NETWORK, KEY, 0) != ap4_candidate(other, KEY, 0)
    assert ap4_candidate(NETWORK, KEY, 0) != ap4_candidate(NETWORK, KEY, 1)


def test_ap4_candidates_avoid_the_reserved_blocks() -> None:
    first, last = 240 << 24, (240 << 24) + (15 << 16)
    drawn = {ap4_candidate(SMALL, KEY, n) for n in range(256)}
    blocks = {int(address) >> 16 << 16 for address in drawn}
    assert all(address in SMALL.ap4 for address in drawn)
    assert blocks == {first + (n << 16) for n in range(1, 15)}
    assert last not in blocks
    assert all(is_ap_address(SMALL, address) for address in drawn)


@pytest.mark.parametrize(
    ("text", "owned"),
    [
        ("240.0.0.1", False),
        ("240.0.255.255", False),
        ("240.1.0.0", True),
        ("255.254.255.255", True),
        ("255.255.0.0", False),
        ("239.255.255.255", False),
        ("11.0.0.1", False),
        ("2001:2f::", False),
        ("2001:2f:0:0:ffff:ffff:ffff:ffff", False),
        ("2001:2f:0:1::", True),
        ("2001:2f:ffff:ffff::1", True),
        ("2001:30::1", False),
    ],
)
def test_which_addresses_identities_can_own(text: str, owned: bool) -> None:
    assert is_ap_address(NETWORK, ipaddress.ip_address(text)) is owned


def test_the_three_storage_keys_change_eight_hours_apart() -> None:
    changes: list[tuple[int, int]] = []
    previous = keys_to_read(NETWORK.network_id, ADDRESS, MIDNIGHT - 1)
    for hour in range(24):
        current = keys_to_read(NETWORK.network_id, ADDRESS, MIDNIGHT + hour * HOUR)
        changes += [(hour, r) for r in range(3) if current[r] != previous[r]]
        previous = current
    assert changes == [(0, 0), (8, 2), (16, 1)]


def test_storage_keys_are_all_different() -> None:
    seen = {storage_key(NETWORK.network_id, ADDRESS, day, r) for day in (1, 2) for r in range(3)}
    seen.add(storage_key(NetworkId(bytes(32)), ADDRESS, 1, 0))
    seen.add(storage_key(NETWORK.network_id, ap4_candidate(NETWORK, KEY, 0), 1, 0))
    assert len(seen) == 8


def test_writers_write_to_the_coming_key_too() -> None:
    network_id = NETWORK.network_id
    assert len(keys_to_write(network_id, ADDRESS, MIDNIGHT - 2 * HOUR)) == 3
    before = keys_to_write(network_id, ADDRESS, MIDNIGHT - HOUR / 2)
    after = keys_to_read(network_id, ADDRESS, MIDNIGHT + 1)
    assert len(before) == 4
    assert set(after) <= set(before)


@given(st.floats(0, 2**33), st.integers(0, 2))
def test_days_never_go_back(now: float, r: int) -> None:
    assert day_of(now + DAY, r) in {day_of(now, r) + 1, day_of(now, r) + 2}
    assert day_of(now + 1, r) >= day_of(now, r)


class TestProofOfWork:
    @given(keys, st.integers(0, 6))
    def test_what_is_solved_checks(self, identity: bytes, bits: int) -> None:
        nonce = proof.solve(NETWORK.network_id, identity, bits)
        proof.check(NETWORK.network_id, identity, bits, nonce)

    def test_no_bits_ask_for_no_work(self) -> None:
        assert proof.solve(NETWORK.network_id, KEY, 0) == 0
        proof.check(NETWORK.network_id, KEY, 0, 12345)

    def test_a_wrong_nonce_is_refused(self) -> None:
        nonce = proof.solve(NETWORK.network_id, KEY, 10)
        assert nonce > 0
        with pytest.raises(RecordRefused, match="proof of work"):
            proof.check(NETWORK.network_id, KEY, 10, nonce - 1)

    def test_work_is_bound_to_network_and_identity(self) -> None:
        nonce = proof.solve(NETWORK.network_id, KEY, 10)
        assert not proof.proves(NetworkId(bytes(32)), KEY, 10, nonce)
        assert not proof.proves(NETWORK.network_id, b"l" * 32, 10, nonce)

    def test_the_difficulty_counts_leading_zero_bits(self) -> None:
        nonce = proof.solve(NETWORK.network_id, KEY, 9)
        digest = h("node pow", NETWORK.network_id, KEY, nonce.to_bytes(8, "big"))
        assert int.from_bytes(digest, "big").bit_length() <= 256 - 9
