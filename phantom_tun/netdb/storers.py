"""Who holds what is stored under a key (docs/spec/netdb.md, "Storage keys")."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from phantom_tun.ids import NodeId
from phantom_tun.netdb.contact import position
from phantom_tun.netdb.prefixes import closest_allowed
from phantom_tun.netdb.table import K
from phantom_tun.wire.records import NodeRecord


def storers_of(key: bytes, nodes: Sequence[NodeRecord], own: NodeRecord) -> list[NodeRecord]:
    """The k nodes that hold what lies under ``key``, closest first: those of ``nodes`` (the closest
    that are known), and ``own`` if that can be dialed and belongs among them."""
    target = position(key)
    candidates = [*nodes, own] if own.dialable else list(nodes)
    candidates.sort(key=lambda record: position(record.node_id) ^ target)
    return closest_allowed(candidates, K)


def merged(by_key: Sequence[Sequence[NodeRecord]]) -> list[NodeRecord]:
    """The storers of several keys, each node once: the closest of every key first."""
    storers: dict[NodeId, NodeRecord] = {}
    for rank in zip_longest(*by_key):
        for record in rank:
            if record is not None:
                storers.setdefault(record.node_id, record)
    return list(storers.values())
