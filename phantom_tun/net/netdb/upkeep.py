"""Keeping what is known true: gossip, second chances for nodes that failed, and refreshing the
routing table (docs/spec/netdb.md, "Joining" and "Upkeep")."""

from __future__ import annotations

import trio

from phantom_tun.clock import Rng
from phantom_tun.errors import PeerError, WorldError
from phantom_tun.net.netdb.calls import NodeCalls
from phantom_tun.net.netdb.introductions import Introductions
from phantom_tun.net.netdb.search import Searcher
from phantom_tun.netdb.contact import Contact, position

GOSSIP_FAST = 0.2
GOSSIP_SLOW = 5.0
"""Seconds between two questions who is there: fast while the answers bring news, then slower and
slower. In steady state it is the sign of life that each contact gives in turn."""
QUIET_ROUNDS = 3
"""Rounds without news after which the view counts as settled."""
RECHECK_EVERY = 1.0
RECHECKS_AT_ONCE = 4
REFRESH_EVERY = 60.0
"""Seconds between refreshing one distance class and the next, in a network that isn't small."""
_SLOWDOWN = 1.5


class Upkeep:
    """The background work on one node's view of the network."""

    def __init__(
        self,
        calls: NodeCalls,
        introductions: Introductions,
        searcher: Searcher,
        rng: Rng,
    ) -> None:
        self._calls = calls
        self._book = calls.book
        self._introductions = introductions
        self._searcher = searcher
        self._rng = rng
        self._quiet = 0

    @property
    def settled(self) -> bool:
        """Whether asking around brings nothing new at the moment."""
        introductions = self._introductions
        quiet = self._quiet >= QUIET_ROUNDS and not introductions.pending
        return quiet and introductions.joined.is_set()

    @property
    def small(self) -> bool:
        """Whether the network seems so small that everybody can know everybody."""
        return not self._book.table.crowded

    @property
    def complete(self) -> bool:
        """Whether we know everybody: the network is small and nothing new is heard."""
        return self.small and self.settled

    async def gossip(self) -> None:
        """Ask one contact after the other whom it knows, for ever."""
        pause = GOSSIP_FAST
        while True:
            seen = self._introductions.news
            contact = self._book.stalest(self._calls.clock.now())
            if contact is not None:
                await self._visit(contact, self._rng.randbytes(32))
            if self._introductions.news != seen:
                self._quiet = 0
                pause = GOSSIP_FAST
            else:
                self._quiet += 1
                pause = min(pause * _SLOWDOWN, GOSSIP_SLOW)
            await trio.sleep(pause * self._rng.uniform(0.75, 1.25))

    async def recheck(self) -> None:
        """Give nodes that failed another chance when it is time, for ever."""
        while True:
            await trio.sleep(RECHECK_EVERY * self._rng.uniform(0.75, 1.25))
            async with trio.open_nursery() as nursery:
                for contact in self._book.due(self._calls.clock.now(), RECHECKS_AT_ONCE):
                    nursery.start_soon(self._meet_again, contact)

    async def refresh(self) -> None:
        """Fill the routing table by lookups, and keep it filled, for ever."""
        table = self._book.table
        filled = False
        while True:
            if self.small:
                filled = False
                await trio.sleep(GOSSIP_SLOW)
                continue
            if not filled:
                await self._searcher.find(self._calls.own_id)
                for index in table.thin_classes():
                    await self._searcher.find(self._within(index))
                filled = True
            await trio.sleep(REFRESH_EVERY * self._rng.uniform(0.5, 1.5))
            classes = table.used_classes()
            if classes:
                await self._searcher.find(self._within(self._rng.choice(classes)))

    async def _meet_again(self, contact: Contact) -> None:
        # An introduction, not just a question: while it was gone it may have forgotten us.
        try:
            nodes = await self._calls.register(self._calls.refs(contact.record))
        except (WorldError, PeerError):
            return
        self._introductions.heard_all(nodes)

    async def _visit(self, contact: Contact, target: bytes) -> None:
        record = contact.record
        try:
            if contact.key_is_current or not self._introductions.wanted(contact.node_id):
                nodes = await self._calls.closest_nodes(record, target)
            else:
                nodes = await self._calls.register(self._calls.refs(record))
        except (WorldError, PeerError):
            return
        self._introductions.heard_all(nodes)

    def _within(self, index: int) -> bytes:
        """A random id in a distance class."""
        place = position(self._calls.own_id) ^ (1 << index) ^ self._rng.getrandbits(index)
        return place.to_bytes(32, "big")
