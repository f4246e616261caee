"""Random nodes (docs/spec/netdb.md, "Random nodes").

The asker draws a random id, looks up who is closest to it over disjoint ways, draws one of those
nodes and asks *another* one for its record and path key. So no answerer has a say in who is drawn,
the drawn node doesn't learn that it was, and each answerer contributes at most one record.
"""

from __future__ import annotations

from collections import Counter

import trio

from phantom_tun.clock import HOUR, MINUTE, Rng
from phantom_tun.errors import PeerError, WorldError
from phantom_tun.ids import NodeId
from phantom_tun.net.netdb.calls import NodeCalls
from phantom_tun.net.netdb.search import Searcher
from phantom_tun.net.netdb.upkeep import Upkeep
from phantom_tun.netdb.book import Candidate
from phantom_tun.netdb.sampling import Drawn, draw
from phantom_tun.wire.records import NodeRecord

SAMPLES_WANTED = 1_024
"""Nodes that a node in a large network draws; choosing from many hides which ones."""
FASTEST = 2.0
SLOWEST = 90.0
"""Seconds between samples; at the slowest, 1,024 candidates are drawn anew within a day."""
RENEW_BEFORE = HOUR
"""A path key that ends within this time is fetched anew."""
RECENT_ANSWERERS = 256
"""Nodes that are not asked again as long as there are others."""
SETTLED_AFTER = MINUTE
"""The first nodes are drawn when asking around brings nothing new, or after this, lest somebody who
always has news keeps us from drawing."""
_TRIES = 2
_REGION = 8
"""Leading bytes of an id that say which region it lies in, in a network of any size."""
_SPEEDUP = 1.5


class Sampler:
    """Feeds the book with candidates."""

    def __init__(self, calls: NodeCalls, searcher: Searcher, rng: Rng, upkeep: Upkeep) -> None:
        self._calls = calls
        self._book = calls.book
        self._searcher = searcher
        self._rng = rng
        self._upkeep = upkeep
        self._asked: dict[NodeId, None] = {}
        """Answerers, those asked last at the end."""
        self._counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Sample for ever, as long as the network is too large to know everybody anyway: fast while
        the samples bring unknown nodes, then slower and slower."""
        pause = FASTEST
        begun = trio.current_time()
        while True:
            await trio.sleep(pause * self._rng.uniform(0.5, 1.5))
            settled = self._upkeep.settled or trio.current_time() - begun > SETTLED_AFTER
            if self._upkeep.small or not settled:
                continue
            await self.renew()
            before = self._drawn()
            await self.sample()
            if before < self._drawn() < SAMPLES_WANTED:
                pause = max(pause / _SPEEDUP, FASTEST)
            else:
                pause = min(pause * _SPEEDUP, SLOWEST)

    async def renew(self) -> None:
        """Ask for the path key of one node whose key we lack or that rotates soon; a node near it
        is asked, as for a sample."""
        now = self._calls.clock.now()
        lacking = self._book.lacking_key(now, now + RENEW_BEFORE)
        if not lacking:
            return
        node_id = self._rng.choice(lacking).node_id
        beside = node_id[:_REGION] + self._rng.randbytes(32 - _REGION)
        nodes = (await self._searcher.find(beside)).closest()
        others = [record for record in nodes if record.node_id != node_id]
        await self._fetch(node_id, self._rng.sample(others, len(others)), drawn=False)

    async def random_nodes(self, count: int) -> list[Candidate]:
        """Up to ``count`` different nodes, each drawn uniformly and named by another answerer."""
        found: dict[NodeId, Candidate] = {}
        for _ in range(2 * count):
            candidate = await self.sample()
            if candidate is not None:
                found.setdefault(candidate.record.node_id, candidate)
            if len(found) == count:
                break
        return list(found.values())

    def _drawn(self) -> int:
        return self._book.drawn(self._calls.clock.now())

    async def sample(self) -> Candidate | None:
        """One random node, remembered as a candidate; None if nobody could tell."""
        drawn = await self._draw()
        if drawn is None:
            return None
        return await self._fetch(drawn.node.node_id, drawn.answerers, drawn=True)

    def statistics(self) -> dict[str, int]:
        """Counts for people."""
        return dict(self._counts)

    async def _fetch(
        self, node_id: NodeId, answerers: list[NodeRecord], *, drawn: bool
    ) -> Candidate | None:
        """Record and path key of a node, as the first of ``answerers`` says that knows it."""
        for answerer in answerers[:_TRIES]:
            self._remember(answerer.node_id)
            try:
                record, path_key = await self._calls.random_node(self._calls.ref(answerer), node_id)
            except (WorldError, PeerError):
                continue
            if record.node_id == node_id:
                self._counts["samples"] += 1
                self._book.vouched(record, self._calls.clock.now(), path_key, drawn=drawn)
                return Candidate(record, path_key)
            # Not necessarily a lie: it may lack the key, or know of the node's death before us.
            self._counts["samples_contradicted"] += 1
        return None

    async def _draw(self) -> Drawn | None:
        lookup = await self._searcher.find(self._rng.randbytes(32))
        nodes = lookup.closest()
        now = self._calls.clock.now()
        for record in nodes:
            self._book.vouched(record, now)
        return draw(nodes, self._asked, self._rng)

    def _remember(self, node_id: NodeId) -> None:
        self._asked.pop(node_id, None)
        self._asked[node_id] = None
        if len(self._asked) > RECENT_ANSWERERS:
            del self._asked[next(iter(self._asked))]
