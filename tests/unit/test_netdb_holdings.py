"""The file of stored records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.clock import HOUR
from phantom_tun.crypto.hashes import h
from phantom_tun.errors import WireError
from phantom_tun.ids import NetworkId, NodeId
from phantom_tun.netdb import holdings
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.store import ApStore, Duty
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker

AP, OTHER = ApMaker(1), ApMaker(2)
AP6 = ap6_address(NETWORK, AP.key.public)
AP4 = ap4_candidate(NETWORK, AP.key.public, 0)
ROUTE = AP.route(entry_node=NodeId(bytes(32)))


def filled() -> ApStore:
    store = ApStore(NETWORK)
    store.put_key_record(AP.record(), NOW, duty=Duty(ap6=True, ap4=True), caller=None)
    store.put_route(ROUTE, NOW, duty=Duty(ap6=True, ap4=False), caller=None)
    store.put_key_record(OTHER.record(), NOW, duty=Duty(ap6=True, ap4=False), caller=None)
    return store


def reloaded(data: bytes, now: float = NOW + 1_800) -> ApStore:
    store = ApStore(NETWORK)
    holdings.load(data, Verifier(NETWORK), store, now)
    return store


def test_it_makes_the_round_trip() -> None:
    data = holdings.dump(NETWORK.network_id, filled())
    again = reloaded(data)
    assert again.holding(AP6, NOW).record == AP.record()
    assert again.holding(AP6, NOW).routes == (ROUTE,)
    assert again.holding(AP4, NOW).record == AP.record()
    other4 = ap4_candidate(NETWORK, OTHER.key.public, 0)
    assert again.holding(other4, NOW).record is None
    assert holdings.dump(NETWORK.network_id, again) == data


def test_what_expired_meanwhile_is_left_behind() -> None:
    data = holdings.dump(NETWORK.network_id, filled())
    assert len(reloaded(data, NOW + 5 * HOUR)) == 0


def test_a_forged_record_is_left_behind() -> None:
    body = holdings.dump(NETWORK.network_id, filled())[:-32]
    genuine = AP.record().encoded
    forged = body.replace(genuine, genuine[:-1] + bytes([genuine[-1] ^ 1]))
    again = reloaded(forged + h("holdings", forged))
    assert again.holding(AP6, NOW).record is None
    assert len(again) == 1


def test_another_network_s_file_is_refused() -> None:
    with pytest.raises(WireError, match="another network"):
        reloaded(holdings.dump(NetworkId(bytes(32)), filled()))


def test_changes_are_counted_once() -> None:
    store = filled()
    before = store.changes
    store.put_key_record(AP.record(), NOW, duty=Duty(ap6=True, ap4=True), caller=None)
    store.put_route(ROUTE, NOW, duty=Duty(ap6=True, ap4=False), caller=None)
    assert store.changes == before
    store.put_key_record(AP.record(sequence=2), NOW, duty=Duty(True, True), caller=None)
    assert store.changes == before + 1


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_damage_is_noticed(place: int, flip: int) -> None:
    data = bytearray(holdings.dump(NETWORK.network_id, filled()))
    data[place % len(data)] ^= flip
    with pytest.raises(WireError):
        reloaded(bytes(data))


@given(st.binary(max_size=200))
def test_noise_raises_the_one_exception(noise: bytes) -> None:
    nested = b"\x91" * 100_000
    for data in (noise, noise + h("holdings", noise), nested + h("holdings", nested)):
        with pytest.raises(WireError):
            reloaded(data)
