"""What other nodes say about one node, for people who want to see it (docs/spec/netdb.md,
"Lookup").

A node's record proves itself: nobody can forge one, but who is asked may know an older edition, or
none. The question goes out under our own name.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from phantom_tun.errors import PeerError, WorldError
from phantom_tun.ids import NodeId
from phantom_tun.net.netdb.calls import NodeCalls
from phantom_tun.net.netdb.search import Searcher
from phantom_tun.wire.records import NodeRecord

MOST_WITNESSES = 8
"""Nodes that are asked: those closest to the id."""


@dataclass(frozen=True, slots=True)
class Witness:
    """What one node says."""

    node_id: NodeId
    """Who was asked."""
    record: NodeRecord | None
    """What it knows; verified."""
    failure: str = ""
    """Why it gave no answer."""


async def ask_witnesses(node_id: NodeId, calls: NodeCalls, searcher: Searcher) -> list[Witness]:
    """Ask the nodes closest to an id about the node that has it; the closest first."""
    lookup = await searcher.search(node_id)
    asked = [record for record in lookup.closest() if record.node_id != node_id][:MOST_WITNESSES]
    answers: dict[NodeId, Witness] = {}

    async def ask(other: NodeRecord) -> None:
        try:
            named = await calls.closest_nodes(other, node_id)
        except (WorldError, PeerError) as error:
            answers[other.node_id] = Witness(other.node_id, None, str(error))
            return
        known = [record for record in named if record.node_id == node_id]
        newest = max(known, key=lambda record: record.created, default=None)
        answers[other.node_id] = Witness(other.node_id, newest)

    async with trio.open_nursery() as nursery:
        for other in asked:
            nursery.start_soon(ask, other)
    return [answers[other.node_id] for other in asked]
