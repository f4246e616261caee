"""NAT peers: bounded, stable while needed, reused when not."""

from __future__ import annotations

import ipaddress
from contextlib import ExitStack

import pytest

from phantom_tun.errors import CapacityExceeded
from phantom_tun.ids import PublicKey
from phantom_tun.net.sessions.callers import MAX_NAT_PEERS, NatPeers

SMALL4 = ipaddress.IPv4Network("240.0.128.0/29")
SMALL6 = ipaddress.IPv6Network("2001:2f:0:0:8000::/65")


def key(number: int) -> PublicKey:
    return PublicKey(number.to_bytes(32, "big"))


def test_one_caller_has_one_address_of_each_kind() -> None:
    peers = NatPeers(SMALL4, SMALL6)
    with peers.lease(key(1), 4) as first, peers.lease(key(1), 4) as again:
        assert first == again
        assert first in SMALL4
        assert first not in {SMALL4.network_address, SMALL4.broadcast_address}
    with peers.lease(key(1), 6) as other:
        assert other in SMALL6
    with peers.lease(key(1), 4) as later:
        assert later == first, "nobody needed it meanwhile"


def test_callers_at_the_same_time_have_different_addresses() -> None:
    peers = NatPeers(SMALL4, SMALL6)
    with ExitStack() as stack:
        leased = {stack.enter_context(peers.lease(key(n), 4)) for n in range(6)}
        assert len(leased) == 6
        with pytest.raises(CapacityExceeded), peers.lease(key(6), 4):
            pass
        assert stack.enter_context(peers.lease(key(3), 4)) in leased


def test_the_address_that_is_idle_for_longest_is_reused() -> None:
    peers = NatPeers(SMALL4, SMALL6)
    addresses = []
    for number in range(6):
        with peers.lease(key(number), 4) as address:
            addresses.append(address)
    with (
        peers.lease(key(0), 4),
        peers.lease(key(6), 4) as reused,
        peers.lease(key(7), 4) as next_one,
    ):
        assert reused == addresses[1], "the first is in use"
        assert next_one == addresses[2]
    with peers.lease(key(1), 4) as moved:
        assert moved == addresses[3]


def test_large_blocks_are_not_used_up() -> None:
    peers = NatPeers(ipaddress.IPv4Network("240.0.128.0/17"), SMALL6)
    with ExitStack() as stack:
        for number in range(MAX_NAT_PEERS):
            stack.enter_context(peers.lease(key(number), 6))
        with pytest.raises(CapacityExceeded), peers.lease(key(MAX_NAT_PEERS), 6):
            pass
