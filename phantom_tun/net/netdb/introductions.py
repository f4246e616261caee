"""Getting to know nodes: the first ones, those that others name, and those from before a split
(docs/spec/netdb.md, "Joining").

An introduction is one register_node: both sides give their record and path key, and the callee
names nodes near the caller. In a small network everybody is introduced to everybody; in a large one
a node stops at :data:`ENOUGH` and at its own neighbourhood, and lookups and samples do the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from phantom_tun.clock import MINUTE, Rng
from phantom_tun.errors import PeerError, WorldError
from phantom_tun.ids import NodeId
from phantom_tun.net.netdb.calls import NodeCalls
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.records import MAX_ADDRESSES, NodeRecord

_log = structlog.get_logger()

ENOUGH = 64
"""Nodes with a path key that are wanted by way of introductions."""
AT_ONCE = 8
FIRST_PAUSE = 0.15
LAST_PAUSE = 30.0
"""Seconds before a node that couldn't be reached is tried again: half as much again every time."""
ATTEMPTS = 6
"""Tries to reach a node that others named; nodes of the profile are tried for ever."""
MAX_STRANGERS = 1_024
MAX_WAYS = 2 * MAX_ADDRESSES
"""Addresses at which one node is tried: those of its record, and as many of the profile."""
REPRIME_EVERY = 5 * MINUTE
"""How often a node of the profile or a trusted one is visited again, so that a network that was
split finds together as soon as one pair of them can talk."""
GIVEN_UP_FOR = 5 * MINUTE
"""How long a node that couldn't be reached is ignored, unless a newer record of it is heard of."""
_PAUSE_FACTOR = 1.5


@dataclass(slots=True)
class _Stranger:
    refs: Sequence[NodeRef]
    """All ways to it; they are tried one after the other."""
    lasting: bool
    """Tried until it answers."""
    created: int = 0
    """Of the record that named it; 0 if only the profile does."""
    attempts: int = 0
    not_before: float = 0.0
    """trio time."""
    busy: bool = False
    failures: dict[NodeRef, str] = field(default_factory=dict)
    """Why each way failed the last time."""


class Introductions:
    """Whom we still have to introduce ourselves to."""

    def __init__(self, calls: NodeCalls, rng: Rng) -> None:
        self._calls = calls
        self._book = calls.book
        self._rng = rng
        self._strangers: dict[NodeId, _Stranger] = {}
        self._unreachable: dict[NodeId, tuple[int, float]] = {}
        """Nodes that were given up → (creation of their record, until when)."""
        self._wake = trio.Event()
        self._busy = 0
        self._counts: Counter[str] = Counter()
        self.joined = trio.Event()
        """Set once one node has taken note of us."""
        self.news = 0
        """Counts the nodes that were heard of and are wanted; whoever waits for quiet compares."""

    @property
    def pending(self) -> bool:
        """Whether somebody new is still to be met."""
        return any(stranger.attempts < 2 for stranger in self._strangers.values())

    def heard(self, record: NodeRecord) -> None:
        """Somebody named a node (``record`` is genuine)."""
        if not self._book.heard(record) or not record.dialable or self._given_up(record):
            return
        if self.wanted(record.node_id) or self._book.table.would_take(record):
            self._want(self._calls.refs(record), lasting=False, created=record.created)

    def wanted(self, node_id: NodeId) -> bool:
        """Whether we would introduce ourselves to a node: while we know few, or if it is one of
        our own neighbours."""
        few = self._book.keyed < ENOUGH
        return few or self._book.is_neighbour(node_id, self._calls.clock.now())

    def heard_all(self, records: Iterable[NodeRecord]) -> None:
        """:meth:`heard` for several."""
        for record in records:
            self.heard(record)

    async def run(self, seeds: list[NodeRef], cached: list[NodeRecord]) -> None:
        """Introduce us to ``seeds`` (the profile's nodes, for ever), to some ``cached`` nodes,
        those first whose record is still valid, and to whoever is heard of."""
        nodes = self._by_node(seeds)
        for refs in nodes:
            self._want(refs, lasting=True)
        now = self._calls.clock.now()
        shuffled = self._rng.sample(cached, len(cached))
        shuffled.sort(key=lambda record: record.expires <= now)
        for record in shuffled[:ENOUGH]:
            self._want(self._calls.refs(record), lasting=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._reprime, nodes)
            while True:
                self._wake = trio.Event()
                for stranger in self._due():
                    stranger.busy = True
                    self._busy += 1
                    nursery.start_soon(self._introduce, stranger)
                with trio.move_on_at(self._next_time()):
                    await self._wake.wait()

    async def announce(self) -> None:
        """Our record is new: tell the nodes of the routing table."""
        limiter = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for contact in list(self._book.table):
                nursery.start_soon(self._tell, self._calls.refs(contact.record), limiter)

    def unanswered(self) -> list[tuple[NodeRef, str]]:
        """Which addresses of nodes of the profile were tried, and how each failed the last time."""
        lasting = (stranger for stranger in self._strangers.values() if stranger.lasting)
        return [failure for stranger in lasting for failure in stranger.failures.items()]

    def statistics(self) -> dict[str, int]:
        """Counts for people."""
        return {"nodes_to_meet": len(self._strangers), **self._counts}

    def _given_up(self, record: NodeRecord) -> bool:
        created, until = self._unreachable.get(record.node_id, (0, 0.0))
        return record.created <= created and trio.current_time() < until

    def _give_up(self, stranger: _Stranger) -> None:
        node_id = stranger.refs[0].node_id
        del self._strangers[node_id]
        if len(self._unreachable) >= MAX_STRANGERS:
            del self._unreachable[next(iter(self._unreachable))]
        self._unreachable[node_id] = (stranger.created, trio.current_time() + GIVEN_UP_FOR)

    def _by_node(self, seeds: Iterable[NodeRef]) -> list[Sequence[NodeRef]]:
        """The ways to each node of the profile, those at addresses as our own first."""
        version = self._calls.ip_version
        nodes: dict[NodeId, list[NodeRef]] = {}
        for ref in sorted(seeds, key=lambda ref: ref.address.version != version):
            ways = nodes.setdefault(ref.node_id, [])
            if ref not in ways and len(ways) < MAX_ADDRESSES:
                ways.append(ref)
        return list(nodes.values())

    def _want(self, refs: Sequence[NodeRef], *, lasting: bool, created: int = 0) -> None:
        node_id = refs[0].node_id
        known = self._strangers.get(node_id)
        if node_id == self._calls.own_id or (known is not None and set(refs) <= set(known.refs)):
            return
        if known is None and len(self._strangers) >= MAX_STRANGERS:
            self._counts["strangers_dropped"] += 1
            return
        if known is None:
            self._strangers[node_id] = _Stranger(refs, lasting, created)
        else:
            # It moved, or has a new certificate. What the profile says may be true all the same.
            others = [ref for ref in known.refs if ref not in refs] if known.lasting else []
            known.refs = [*refs, *others][:MAX_WAYS]
            known.created = created
        self.news += 1
        self._wake.set()

    def _due(self) -> list[_Stranger]:
        now = trio.current_time()
        due = [s for s in self._strangers.values() if not s.busy and s.not_before <= now]
        self._rng.shuffle(due)  # a crowd that starts at once must not fall upon the same node
        due.sort(key=lambda stranger: stranger.attempts)
        return due[: AT_ONCE - self._busy]

    def _next_time(self) -> float:
        if self._busy >= AT_ONCE:
            return trio.current_time() + LAST_PAUSE
        waiting = (s.not_before for s in self._strangers.values() if not s.busy)
        return min(waiting, default=trio.current_time() + LAST_PAUSE)

    async def _introduce(self, stranger: _Stranger) -> None:
        node_id = stranger.refs[0].node_id
        try:
            nodes = await self._calls.register(stranger.refs, partial(self._note, stranger))
        except (WorldError, PeerError):
            stranger.attempts += 1
            pause = min(FIRST_PAUSE * _PAUSE_FACTOR**stranger.attempts, LAST_PAUSE)
            stranger.not_before = trio.current_time() + pause * self._rng.uniform(0.5, 1.5)
            if stranger.attempts >= ATTEMPTS and not stranger.lasting:
                self._give_up(stranger)
        else:
            del self._strangers[node_id]
            self._counts["nodes_met"] += 1
            self.joined.set()
            self.heard_all(nodes)
        finally:
            stranger.busy = False
            self._busy -= 1
            self._wake.set()

    def _note(self, stranger: _Stranger, ref: NodeRef, reason: str) -> None:
        if not stranger.lasting:
            return
        known = {**stranger.failures, ref: reason}
        stranger.failures = {each: known[each] for each in stranger.refs if each in known}
        _log.debug(
            "a node of the profile can't be reached",
            address=str(ref.address),
            port=ref.port,
            reason=reason,
        )

    async def _tell(self, refs: Sequence[NodeRef], limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            try:
                self.heard_all(await self._calls.register(refs))
            except (WorldError, PeerError):
                return

    async def _reprime(self, nodes: list[Sequence[NodeRef]]) -> None:
        while True:
            await trio.sleep(REPRIME_EVERY * self._rng.uniform(0.5, 1.5))
            trusted = self._book.trusted_contacts()
            known = [*nodes, *(self._calls.refs(contact.record) for contact in trusted)]
            if known:
                self._want(self._rng.choice(known), lasting=True)
