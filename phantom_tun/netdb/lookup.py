"""Finding the nodes closest to a target (docs/spec/netdb.md, "Lookup").

One lookup walks several disjoint ways at once: no node is asked by two of them, so a liar spoils at
most the way that asks it. Only nodes that answered count as found, and only a few per prefix.
A pure machine: the driver asks whom :meth:`Lookup.next_queries` names and reports what happened.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from phantom_tun.ids import NodeId
from phantom_tun.netdb.contact import position
from phantom_tun.netdb.prefixes import LOOKUP_LIMITS, PrefixLimits, closest_allowed
from phantom_tun.netdb.table import K
from phantom_tun.wire.records import NodeRecord

ALPHA = 3
"""Queries under way per disjoint way."""
WAYS = 3
"""Disjoint ways."""
MAX_HEARD = 400
"""Nodes that one way keeps in mind."""


@dataclass(slots=True)
class _Way:
    """One of the disjoint ways: what it heard of, closest first."""

    heard: list[tuple[int, NodeRecord]] = field(default_factory=list)
    known: set[NodeId] = field(default_factory=set)
    asking: set[NodeId] = field(default_factory=set)
    """Queries that count against :data:`ALPHA`."""
    frontier: list[NodeRecord] | None = None
    """The closest ones that may be alive; None if it has to be worked out again."""


class Lookup:
    """One search for the ``count`` nodes closest to ``target``."""

    def __init__(
        self,
        target: bytes,
        seeds: Sequence[NodeRecord],
        *,
        own_id: NodeId,
        limits: PrefixLimits = LOOKUP_LIMITS,
        count: int = K,
        ways: int = WAYS,
    ) -> None:
        """``seeds``: the closest nodes we know, closest first."""
        self.target = target
        """What is searched."""
        self._position = position(target)
        self._own_id = own_id
        self._limits = limits
        self._count = count
        self._width = ways
        self._ways: list[_Way] = []
        self._way_of: dict[NodeId, int] = {}
        """Which way asked a node."""
        self._pending: set[NodeId] = set()
        self._failed: set[NodeId] = set()
        self._answered: list[tuple[int, NodeRecord]] = []
        self._depth: dict[NodeId, int] = {}
        self._begin(seeds)

    @property
    def finished(self) -> bool:
        """Whether nothing is under way and nobody is left to ask."""
        return not self._pending and not any(self._unasked(way) for way in self._ways)

    @property
    def asked(self) -> int:
        """How many nodes were asked."""
        return len(self._way_of)

    @property
    def hops(self) -> int:
        """How many answers had to follow one another to find the closest node."""
        return self._depth[self._answered[0][1].node_id] if self._answered else 0

    def next_queries(self) -> list[NodeRecord]:
        """Whom to ask now; each is under way from here on."""
        queries = []
        for index, way in enumerate(self._ways):
            room = ALPHA - len(way.asking)
            for record in self._unasked(way)[: max(room, 0)]:
                node_id = record.node_id
                if node_id in self._way_of:
                    continue
                self._way_of[node_id] = index
                self._pending.add(node_id)
                way.asking.add(node_id)
                queries.append(record)
        return queries

    def answered(self, asked: NodeRecord, nodes: Iterable[NodeRecord]) -> None:
        """``asked`` named ``nodes`` (verified records; at most ``count`` are heard)."""
        node_id = asked.node_id
        way = self._done(node_id)
        insort(self._answered, (self._position ^ position(node_id), asked), key=_distance)
        depth = self._depth[node_id] + 1
        for number, record in enumerate(nodes):
            if number >= self._count:
                break
            self._hear(way, record, depth)

    def failed(self, asked: NodeId) -> None:
        """``asked`` didn't answer, or not sensibly."""
        self._failed.add(asked)
        self._done(asked)
        for way in self._ways:
            if asked in way.known:
                way.frontier = None

    def slow(self, asked: NodeId) -> None:
        """``asked`` keeps us waiting: somebody else may be asked meanwhile."""
        self._ways[self._way_of[asked]].asking.discard(asked)

    def reopen(self, seeds: Sequence[NodeRecord], *, count: int) -> None:
        """Go on over as many other ways, which begin at ``seeds``, and find ``count`` nodes, if
        that is more than before. Nobody is asked again; who has not answered yet has failed."""
        for node_id in list(self._pending):
            self.failed(node_id)
        self._count = max(self._count, count)
        for way in self._ways:
            way.frontier = None
        self._begin(seeds)

    def closest(self) -> list[NodeRecord]:
        """Those that answered, closest first, at most ``count`` and a few per prefix."""
        ranked = (record for _, record in self._answered)
        return closest_allowed(ranked, self._count, self._limits)

    def find(self, node_id: NodeId) -> NodeRecord | None:
        """The newest record of one node that anybody named, if it was named at all."""
        found = [
            record for way in self._ways for _, record in way.heard if record.node_id == node_id
        ]
        return max(found, key=lambda record: record.created, default=None)

    def _begin(self, seeds: Sequence[NodeRecord]) -> None:
        ways = [_Way() for _ in range(self._width)]
        self._ways += ways
        for index, seed in enumerate(seeds):
            self._hear(ways[index % self._width], seed, 0)

    def _hear(self, way: _Way, record: NodeRecord, depth: int) -> None:
        node_id = record.node_id
        if node_id in way.known or node_id == self._own_id or not record.dialable:
            return
        way.known.add(node_id)
        self._depth.setdefault(node_id, depth)
        insort(way.heard, (self._position ^ position(node_id), record), key=_distance)
        if len(way.heard) > MAX_HEARD:
            way.heard.pop()
        if self._reaches_frontier(way, record):
            way.frontier = None

    def _reaches_frontier(self, way: _Way, record: NodeRecord) -> bool:
        if way.frontier is None or len(way.frontier) < self._count:
            return True
        last = position(way.frontier[-1].node_id) ^ self._position
        return position(record.node_id) ^ self._position < last

    def _done(self, node_id: NodeId) -> _Way:
        self._pending.discard(node_id)
        way = self._ways[self._way_of[node_id]]
        way.asking.discard(node_id)
        return way

    def _unasked(self, way: _Way) -> list[NodeRecord]:
        """Of the closest ``count`` nodes this way heard of and that may still be alive, those that
        no way asked yet."""
        if way.frontier is None:
            alive = (record for _, record in way.heard if record.node_id not in self._failed)
            way.frontier = closest_allowed(alive, self._count, self._limits)
        return [record for record in way.frontier if record.node_id not in self._way_of]


def _distance(entry: tuple[int, NodeRecord]) -> int:
    return entry[0]
