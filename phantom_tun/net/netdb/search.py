"""Driving lookups over links (docs/spec/netdb.md, "Lookup")."""

from __future__ import annotations

from collections.abc import Callable

import trio

from phantom_tun.errors import PeerError, WorldError
from phantom_tun.ids import NodeId
from phantom_tun.net.netdb.calls import NodeCalls
from phantom_tun.netdb.density import Density
from phantom_tun.netdb.lookup import Lookup
from phantom_tun.netdb.table import K
from phantom_tun.wire.records import NodeRecord

SLOW_AFTER = 1.0
"""Seconds after which somebody else is asked besides a node that hasn't answered yet."""
LOOKUP_DEADLINE = 20.0
"""Seconds that a whole lookup may take; what it found by then counts."""
SEEDS = 2 * K
FRESH_SEEDS = K
"""Nodes near ourselves at which a lookup begins that has to be repeated."""
MAX_LOOKUPS = 16
"""Lookups under way at once; more have to wait."""


class Searcher:
    """Runs lookups; whoever is named on the way is told to ``on_heard``."""

    def __init__(self, calls: NodeCalls, on_heard: Callable[[NodeRecord], None]) -> None:
        self._calls = calls
        self._on_heard = on_heard
        self._running = trio.CapacityLimiter(MAX_LOOKUPS)
        self._density = Density()
        self._lookups = 0
        self._hops = 0
        self._sparse = 0
        self._widened = 0

    async def search(
        self,
        target: bytes,
        stop: Callable[[Lookup], bool] = lambda _: False,
        *,
        count: int = K,
    ) -> Lookup:
        """Look up the ``count`` nodes closest to ``target``; ends early when ``stop`` says so.

        Never raises for want of answers: what answered is in the result.
        """
        seeds = self._calls.book.closest(target, SEEDS, self._calls.clock.now())
        lookup = Lookup(target, seeds, own_id=self._calls.own_id, count=count)
        await self._run(lookup, stop)
        self._lookups += 1
        self._hops += lookup.hops
        return lookup

    async def find(self, target: bytes, count: int = K) -> Lookup:
        """As :meth:`search`, and over other ways too if what that found lies suspiciously thin."""
        lookup = await self.search(target, count=count)
        if self._density.sparse(target, lookup.closest()):
            self._sparse += 1
            await self.widen(lookup, count)
        self._density.saw(target, lookup.closest())
        return lookup

    async def widen(self, lookup: Lookup, count: int) -> None:
        """Continue a lookup over other ways, for the ``count`` closest nodes."""
        self._widened += 1
        now = self._calls.clock.now()
        lookup.reopen(self._calls.book.neighbourhood(FRESH_SEEDS, now), count=count)
        await self._run(lookup)

    def statistics(self) -> dict[str, int]:
        """Counts for people."""
        return {
            "lookups": self._lookups,
            "lookup_hops": self._hops,
            "lookups_sparse": self._sparse,
            "lookups_widened": self._widened,
        }

    async def ask(self, lookup: Lookup, record: NodeRecord, target: bytes) -> None:
        """One query of a lookup."""
        try:
            nodes = await self._calls.closest_nodes(record, target)
        except (WorldError, PeerError):
            lookup.failed(record.node_id)
            return
        lookup.answered(record, nodes)
        for node in nodes:
            self._on_heard(node)

    async def _run(self, lookup: Lookup, stop: Callable[[Lookup], bool] = lambda _: False) -> None:
        async with self._running:
            with trio.move_on_after(LOOKUP_DEADLINE):
                await _Run(self, lookup, stop).run()


class _Run:
    """One lookup while it is under way."""

    def __init__(self, searcher: Searcher, lookup: Lookup, stop: Callable[[Lookup], bool]) -> None:
        self.lookup = lookup
        self._searcher = searcher
        self._stop = stop
        self._started: dict[NodeId, float] = {}
        self._progress = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while not self.lookup.finished and not self._stop(self.lookup):
                for record in self.lookup.next_queries():
                    self._started[record.node_id] = trio.current_time()
                    nursery.start_soon(self._query, record)
                self._progress = trio.Event()
                with trio.move_on_at(self._next_slow()):
                    await self._progress.wait()
                self._let_slow_ones_go()
            nursery.cancel_scope.cancel()

    async def _query(self, record: NodeRecord) -> None:
        await self._searcher.ask(self.lookup, record, self.lookup.target)
        self._started.pop(record.node_id, None)
        self._progress.set()

    def _next_slow(self) -> float:
        return min(self._started.values(), default=trio.current_time()) + SLOW_AFTER

    def _let_slow_ones_go(self) -> None:
        now = trio.current_time()
        for node_id, since in list(self._started.items()):
            if now >= since + SLOW_AFTER:  # as _next_slow() says, to the last bit
                self.lookup.slow(node_id)
                del self._started[node_id]
