"""Who holds what is stored under a key."""

from __future__ import annotations

from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.contact import position
from phantom_tun.netdb.storers import LEASE_STORERS, merged, storer_count, storers_of
from phantom_tun.netdb.table import K
from phantom_tun.testing.record_factory import NETWORK, ApMaker, NodeMaker

KEY = bytes(32)
AP = ApMaker(1).key.public
NODES = sorted(
    (NodeMaker(number).record() for number in range(60)),
    key=lambda record: position(record.node_id),
)


def test_leases_have_more_storers() -> None:
    assert storer_count(ap6_address(NETWORK, AP)) == K
    assert storer_count(ap4_candidate(NETWORK, AP, 0)) == LEASE_STORERS > K


def test_the_closest_and_ourselves_among_them() -> None:
    others = [record for record in NODES if record is not NODES[3]]
    assert storers_of(KEY, others, NODES[3]) == NODES[:K]
    assert storers_of(KEY, others, NODES[3], LEASE_STORERS) == NODES[:LEASE_STORERS]
    assert storers_of(KEY, NODES[:50], NODES[55]) == NODES[:K]


def test_who_can_not_be_dialed_stores_nothing() -> None:
    own = NodeMaker(1, dialable=False).record()
    assert own not in storers_of(KEY, NODES[:5], own)


def test_the_storers_of_several_keys_are_one_list() -> None:
    assert merged([NODES[:3], NODES[1:4], []]) == [NODES[0], NODES[1], NODES[2], NODES[3]]
