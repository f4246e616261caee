"""Uses of bulk links that are joined with others: all that a relay does for a tunnel once its hop
knows it (docs/spec/links.md, "Splice"; docs/spec/workers.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from phantom_tun.crypto.streams import ChainedStream
from phantom_tun.errors import CapacityExceeded
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.neighbour import Neighbour
from phantom_tun.net.links.splice import process_bytes, splice
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.sizes import PACKAGE_LEN
from phantom_tun.wire.worker import Join


class Joins:
    """All of one node."""

    def __init__(
        self,
        find: Callable[[NodeRef], Neighbour],
        open_bulk: Callable[[NodeRef, bytes, bytes], Awaitable[Bulk]],
        spawn: Callable[..., Any],
        *,
        limits: LinkLimits,
        counts: Counter[str],
    ) -> None:
        """``find`` and ``open_bulk`` raise WorldError; ``spawn`` starts a task."""
        self._find = find
        self._open_bulk = open_bulk
        self._spawn = spawn
        self._limits = limits
        self._counts = counts
        self._now = 0

    async def relay(self, bulk: Bulk, join: Join, on_joined: Callable[[], None]) -> None:
        """Join ``bulk`` with a use towards ``join.onward`` until FIN went through both ways or
        either has failed; ``on_joined`` is called when both stand. If ``bulk`` ends in a worker
        process, that does it, unless only this process can reach the other node.

        :raises LinkBroken: the other node can't be reached, or is not the one that ``join`` names.
        :raises DeadlineExpired: it can't be reached in time.
        :raises CapacityExceeded: too many wait already, or are joined.
        """
        if self._now >= self._limits.relayed:
            self._counts["drop_relay_limit"] += 1
            raise CapacityExceeded("too many tunnels run through this node")
        self._now += 1
        try:
            if not await self._hand_over(bulk, join, on_joined):
                await self._carry(bulk, join, on_joined)
        finally:
            self._now -= 1

    async def _carry(self, bulk: Bulk, join: Join, on_joined: Callable[[], None]) -> None:
        there = ChainedStream(join.there, outer=False)
        back = ChainedStream(join.back, outer=False)
        # What came with the opening goes on with it. A name for it would keep it for as long as the
        # tunnel stands.
        onward = await self._open_bulk(
            join.onward, join.opening, process_bytes(there, bulk.receive_now(PACKAGE_LEN))
        )
        on_joined()
        try:
            await splice(bulk, onward, there, back)
        finally:
            await onward.aclose()

    async def _hand_over(self, bulk: Bulk, join: Join, on_joined: Callable[[], None]) -> bool:
        neighbour = self._find(join.onward)
        if not (bulk.at_worker and join.onward.port) or neighbour.is_self:
            return False
        neighbour.handed_over[bulk] = join.onward
        if neighbour.best_link() is None:
            self._spawn(neighbour.keep_signalling, join.onward)
        try:
            return await bulk.hand_over(join, on_joined)
        finally:
            del neighbour.handed_over[bulk]
