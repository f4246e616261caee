"""An interior X-node's part in routing tunnels (docs/spec/tunnel.md, "Interior hops").

A hop passes blocks from one neighbour to the other, and joins the bulk links that come back the
other way. It can't tell outbound from inbound, nor which neighbour is nearer the owner.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from phantom_tun.crypto.streams import AGAINST, WITH, stream_secret
from phantom_tun.errors import CapacityExceeded, WorldError
from phantom_tun.ids import TunnelBlock
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.path.hop import PathHop
from phantom_tun.tunnel.blocks import HopBlocks
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.tunnel import Opening, pack_block, pack_opening
from phantom_tun.wire.worker import Join


class InteriorHop:
    """One path at one of its interior nodes."""

    def __init__(
        self,
        hop: PathHop,
        hub: TunnelHub,
        on_exhausted: Callable[[PathHop], None],
    ) -> None:
        self.hop = hop
        self._hub = hub
        self._on_exhausted = on_exhausted
        self._blocks = HopBlocks(hop.path_secret, hub.now())

    def plug_in(self) -> None:
        """Start receiving from both neighbours."""
        for side, (node, connection) in enumerate(self.hop.neighbours):
            self._hub.board.plug(node.node_id, connection, _Side(self, side))

    def unplug(self) -> None:
        """Stop; tunnels that are up finish by themselves."""
        for node, connection in self.hop.neighbours:
            self._hub.board.unplug(node.node_id, connection)

    @property
    def last_used(self) -> float:
        """When a tunnel last came through."""
        return self._blocks.last_recognised

    @property
    def blocks(self) -> HopBlocks:
        """What it remembers of the path's blocks."""
        return self._blocks

    def block_arrived(self, block: TunnelBlock, side: int) -> None:
        """Pass a block on to the other neighbour."""
        try:
            after = self._blocks.pass_on(block, side, self._hub.now())
        except CapacityExceeded:
            self._hub.counts["drop_block_rate"] += 1
            return
        self._forward(after, 1 - side)
        if self._blocks.exhausted:
            self._hub.counts["paths_exhausted"] += 1
            self._on_exhausted(self.hop)

    def _forward(self, block: TunnelBlock, side: int) -> None:
        node, connection = self.hop.neighbours[side]
        payload = pack_block(connection, block)
        try:
            if not self._hub.links.signal_now(node, payload):
                self._hub.start(self._dial_and_forward, node, payload)
        except WorldError:
            self._hub.counts["drop_block_neighbour_gone"] += 1

    async def _dial_and_forward(self, node: NodeRef, payload: bytes) -> None:
        try:
            await self._hub.links.signal(node, payload)
        except WorldError:
            self._hub.counts["drop_block_neighbour_gone"] += 1

    async def tunnel_opened(self, block: TunnelBlock, bulk: Bulk, side: int) -> None:
        """Join a bulk link that came back for ``block`` with one towards the other neighbour."""
        pair = self._blocks.recognise(block, side, self._hub.now())
        node, connection = self.hop.neighbours[1 - side]
        secret = self.hop.path_secret
        # The other neighbour is where the block came from, so bytes towards it travel against it.
        join = Join(
            node,
            pack_opening(Opening.TUNNEL, connection, pair.before, self._hub.rng),
            stream_secret(secret, pair.before, pair.after, AGAINST),
            stream_secret(secret, pair.before, pair.after, WITH),
        )
        try:
            await self._hub.links.relay(bulk, join, self._joined)
        except CapacityExceeded:  # counted by the links
            bulk.reset()
        except WorldError:
            self._hub.counts["drop_tunnel_neighbour_gone"] += 1
            bulk.reset()

    def _joined(self) -> None:
        self._hub.counts["tunnels_relayed"] += 1


class _Side:
    """One neighbour of an interior hop, as the switchboard sees it."""

    __slots__ = ("_hop", "_side")

    def __init__(self, hop: InteriorHop, side: int) -> None:
        self._hop = hop
        self._side = side

    def block_arrived(self, block: TunnelBlock) -> None:
        self._hop.block_arrived(block, self._side)

    def tunnel_opened(self, block: TunnelBlock, bulk: Bulk) -> Coroutine[Any, Any, None]:
        return self._hop.tunnel_opened(block, bulk, self._side)
