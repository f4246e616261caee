"""Drawing a random node (docs/spec/netdb.md, "Random nodes")."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from phantom_tun.clock import Rng
from phantom_tun.ids import NodeId
from phantom_tun.netdb.contact import position
from phantom_tun.wire.records import NodeRecord


@dataclass(frozen=True, slots=True)
class Drawn:
    """A node, and who can be asked for its record and path key."""

    node: NodeRecord
    answerers: list[NodeRecord]
    """Other nodes near it, those first that were not asked lately."""


def draw(nodes: Sequence[NodeRecord], asked: Container[NodeId], rng: Rng) -> Drawn | None:
    """Draw one of ``nodes``, the closest to a random id; None if there aren't enough.

    Uniformly among them, not the very closest: ids with wide gaps around them, which can be sought,
    gain nothing.
    """
    eligible = [record for record in nodes if record.relays]
    if len(nodes) < 2 or not eligible:
        return None
    node = rng.choice(eligible)
    place = position(node.node_id)
    others = [record for record in nodes if record.node_id != node.node_id]
    others.sort(key=lambda record: (record.node_id in asked, position(record.node_id) ^ place))
    return Drawn(node, others)
