"""Who holds what is stored under a key (docs/spec/netdb.md, "Storage keys")."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from itertools import zip_longest

from phantom_tun.ids import ApAddress, NodeId
from phantom_tun.netdb.contact import position
from phantom_tun.netdb.prefixes import closest_allowed
from phantom_tun.netdb.table import K
from phantom_tun.wire.records import NodeRecord

LEASE_STORERS = K + K // 2
"""Nodes that hold an AP4 lease under each of its keys. Whose an AP4 address is only their number
tells; ids that somebody places near a key count for less among more of them."""


def storer_count(address: ApAddress) -> int:
    """How many nodes hold what is stored for ``address``, per storage key."""
    return LEASE_STORERS if isinstance(address, ipaddress.IPv4Address) else K


def storers_of(
    key: bytes, nodes: Sequence[NodeRecord], own: NodeRecord, count: int = K
) -> list[NodeRecord]:
    """The ``count`` nodes that hold what lies under ``key``, closest first: those of ``nodes`` (the
    closest that are known), and ``own`` if that can be dialed and belongs among them."""
    target = position(key)
    candidates = [*nodes, own] if own.dialable else list(nodes)
    candidates.sort(key=lambda record: position(record.node_id) ^ target)
    return closest_allowed(candidates, count)


def merged(by_key: Sequence[Sequence[NodeRecord]]) -> list[NodeRecord]:
    """The storers of several keys, each node once: the closest of every key first."""
    storers: dict[NodeId, NodeRecord] = {}
    for rank in zip_longest(*by_key):
        for record in rank:
            if record is not None:
                storers.setdefault(record.node_id, record)
    return list(storers.values())
