"""Uses of bulk links that are joined with others: all that a relay does for a tunnel once its hop
knows it (docs/spec/links.md, "Splice"; docs/spec/workers.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

from phantom_tun.crypto.streams import ChainedStream
from phantom_tun.errors import CapacityExceeded
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.neighbour import Neighbour
from phantom_tun.net.links.splice import Layer, Spawn, ignore, join, process_bytes
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.sizes import PACKAGE_LEN
from phantom_tun.wire.worker import Join


class Joins:
    """All of one node."""

    def __init__(
        self,
        find: Callable[[NodeRef], Neighbour],
        open_bulk: Callable[[NodeRef, bytes, bytes], Awaitable[Bulk]],
        spawn: Spawn,
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

    @property
    def now(self) -> int:
        """How many there are, those on their way included."""
        return self._now

    def join(
        self,
        a: Bulk,
        b: Bulk,
        a_to_b: Layer,
        b_to_a: Layer,
        on_over: Callable[[], None] = ignore,
    ) -> None:
        """See :func:`phantom_tun.net.links.splice.join`."""
        join(a, b, a_to_b, b_to_a, spawn=self._spawn, on_over=on_over)

    async def relay(self, bulk: Bulk, wanted: Join, on_joined: Callable[[], None]) -> None:
        """Join ``bulk`` with a use towards ``wanted.onward``, until FIN went through both ways or
        either has failed; ``on_joined`` is called when both stand, and then this returns. If
        ``bulk`` ends in a worker process, that does it, unless only this process can reach the
        other node; this returns when it is over then.

        :raises LinkBroken: the other node can't be reached, or is not the one that ``wanted``
            names.
        :raises DeadlineExpired: it can't be reached in time.
        :raises CapacityExceeded: too many wait already, or are joined.
        """
        if self._now >= self._limits.relayed:
            self._counts["drop_relay_limit"] += 1
            raise CapacityExceeded("too many tunnels run through this node")
        self._now += 1
        joined = False
        try:
            if not await self._hand_over(bulk, wanted, on_joined):
                there = ChainedStream(wanted.there, outer=False)
                back = ChainedStream(wanted.back, outer=False)
                # What came with the opening goes on with it.
                first = process_bytes(there, bulk.receive_now(PACKAGE_LEN))
                onward = await self._open_bulk(wanted.onward, wanted.opening, first)
                joined = True
                on_joined()
                self.join(bulk, onward, there, back, self._part)
        finally:
            if not joined:
                self._part()

    def _part(self) -> None:
        self._now -= 1

    async def _hand_over(self, bulk: Bulk, wanted: Join, on_joined: Callable[[], None]) -> bool:
        neighbour = self._find(wanted.onward)
        if not (bulk.at_worker and wanted.onward.port) or neighbour.is_self:
            return False
        neighbour.handed_over[bulk] = wanted.onward
        if neighbour.best_link() is None:
            self._spawn(neighbour.keep_signalling, wanted.onward)
        try:
            return await bulk.hand_over(wanted, on_joined)
        finally:
            del neighbour.handed_over[bulk]
