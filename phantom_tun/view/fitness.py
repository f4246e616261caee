"""Which of the known nodes are of no use for this node's paths, and why (``status``)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from phantom_tun.path.candidates import traits

if TYPE_CHECKING:
    from phantom_tun.node import Node


def unusable(node: Node) -> dict[str, int]:
    """How many of the known nodes can't be members of a path, by reason."""
    own = traits(node.netdb.own_record, node.config.node.family_ids)
    candidates = {each.record.node_id for each in node.netdb.candidates()}
    reasons: Counter[str] = Counter()
    for record in node.netdb.known_records():
        theirs = traits(record)
        if not record.relays:
            reasons["not relaying"] += 1
        elif not record.dialable:
            reasons["not dialable"] += 1
        elif not theirs.prefixes.isdisjoint(own.prefixes):
            reasons["in the same /16 or IPv6 /32 as this node"] += 1
        elif theirs.clashes(own):
            reasons["of the same family as this node"] += 1
        elif record.node_id not in candidates:
            reasons["not answering yet"] += 1
    return dict(reasons)
