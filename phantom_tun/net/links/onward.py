"""The bulk links that a worker process has dialed, by neighbour (docs/spec/workers.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import trio

from phantom_tun.errors import CapacityExceeded, LinkBroken
from phantom_tun.ids import NodeId
from phantom_tun.net.links.bulk import Bulk, BulkLink
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.neighbour import Dial
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.links.pool import BulkPool
from phantom_tun.wire.door import LinkKind
from phantom_tun.wire.nodes import NodeRef

TIDY_EVERY = 5.0
"""Seconds between two looks at idle links."""


class OnwardLinks:
    """A pool for each neighbour that tunnels lead to."""

    def __init__(
        self, dial: Dial, spawn: Callable[..., Any], limits: LinkLimits, counts: Counter[str]
    ) -> None:
        self._dial = dial
        self._spawn = spawn
        self._limits = limits
        self._counts = counts
        self._pools: dict[NodeId, BulkPool] = {}
        self._forgotten: list[BulkPool] = []
        """Pools that stragglers may still come back to."""

    async def open(self, ref: NodeRef, opening: bytes, first: bytes) -> Bulk:
        """Begin a use of a link to ``ref``, with ``first`` as its first payload.

        :raises WorldError: it can't be reached from here.
        """
        pool = self._pools.get(ref.node_id)
        if pool is None:
            if len(self._pools) >= self._limits.neighbours:
                raise CapacityExceeded("too many neighbours")
            pool = BulkPool(self._bring, self._spawn, self._limits, self._counts)
            self._pools[ref.node_id] = pool
        return await pool.open(ref, opening, first)

    async def _bring(self, ref: NodeRef) -> BulkLink:
        pool = self._pools.get(ref.node_id)
        connection = await self._dial(ref, LinkKind.BULK)
        if self._pools.get(ref.node_id) is not pool:
            connection.close()
            raise LinkBroken("the neighbour was let go")
        return BulkLink(connection, Peer(ref.node_id, ref.address))

    def forget(self, node_id: NodeId) -> None:
        """Close all links to a neighbour, used or not."""
        pool = self._pools.pop(node_id, None)
        if pool is not None:
            pool.close()
            self._forgotten.append(pool)

    def close(self) -> None:
        """Close all links."""
        for pool in [*self._pools.values(), *self._forgotten]:
            pool.close()

    def idle(self) -> dict[bytes, int]:
        """How many links wait to be used, by neighbour."""
        return {node_id: pool.idle for node_id, pool in self._pools.items() if pool.idle}

    async def tend(self) -> None:
        """Keep up spares and close what isn't needed any more, until cancelled."""
        while True:
            await trio.sleep(TIDY_EVERY)
            for pool in self._forgotten:
                pool.close()
            self._forgotten = [pool for pool in self._forgotten if not pool.empty]
            for node_id, pool in list(self._pools.items()):
                pool.expire()
                if pool.empty:
                    del self._pools[node_id]
