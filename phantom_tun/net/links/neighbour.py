"""Everything this node shares with one other node: signalling links, bulk links of both sides
(docs/spec/links.md, "Neighbours")."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio

from phantom_tun.errors import LinkBroken, WorldError
from phantom_tun.ids import NodeId
from phantom_tun.net.links.bulk import Bulk, BulkLink
from phantom_tun.net.links.connection import Connection
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.peers import NeighbourInfo, Peer, origin
from phantom_tun.net.links.pool import BulkPool, Waiter
from phantom_tun.net.links.signalling import SignalLink
from phantom_tun.path.candidates import prefix
from phantom_tun.wire.door import LinkKind
from phantom_tun.wire.frames import Frame
from phantom_tun.wire.nodes import NodeRef

Dial = Callable[[NodeRef, LinkKind], Awaitable[Connection]]
"""Connects, authenticates both sides and says what for; raises WorldError."""


class _Attempt:
    """A signalling link being dialed."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: WorldError | None = None


class Neighbour:
    """One other node (or this one itself, as its own neighbour)."""

    def __init__(
        self,
        own_id: NodeId,
        peer: Peer,
        *,
        dial: Dial,
        adopt: Callable[[Neighbour, Connection, Peer], None],
        on_close: Callable[[NodeId], None],
        spawn: Callable[..., Any],
        limits: LinkLimits,
        counts: Counter[str],
    ) -> None:
        """``adopt`` makes a connection that was dialed this neighbour's signalling link and runs
        it; ``on_close`` is told when all links are closed; ``spawn`` starts a task."""
        self._seen_at(peer)
        self.served: set[BulkLink] = set()
        """Links on which the peer starts uses."""
        self.uses_served = 0
        """Uses in progress that the peer started."""
        self.dialing = 0
        """Links that are being dialed because the peer asked for them."""
        self.handed_over: dict[Bulk, NodeRef] = {}
        """Uses of other neighbours that workers join with links to the peer."""
        self.pool = BulkPool(self._bring_bulk, spawn, limits, counts)
        self._own_id = own_id
        self._dial = dial
        self._adopt = adopt
        self._on_close = on_close
        self._spawn = spawn
        self._limits = limits
        self._counts = counts
        self._since = trio.current_time()
        self._signalling: list[SignalLink] = []
        self._attempts: dict[NodeRef, _Attempt] = {}
        self._asked: deque[Waiter] = deque()
        self.ref: NodeRef | None = None
        """With which signalling was dialed last; where to dial when the peer asks."""

    def _seen_at(self, peer: Peer) -> None:
        self.peer = peer
        # All neighbours are asked for these whenever a new one comes.
        self.place = origin(peer.address)
        self.network = prefix(peer.address)

    def shared(self, peer: Peer) -> Peer:
        """The same one for all its links, if it is the same."""
        return self.peer if self.peer == peer else peer

    # --- signalling -----------------------------------------------------------------------------

    def best_link(self) -> SignalLink | None:
        """The link to send over. If both nodes dialed each other, both choose the one that the
        smaller node id dialed; of several like that, the newest."""
        links = [link for link in self._signalling if link.open]
        prefer_dialed = self._own_id <= self.peer.node_id
        return max(reversed(links), key=lambda link: link.dialed == prefer_dialed, default=None)

    def add_link(self, link: SignalLink) -> None:
        """A new signalling link stands."""
        self._signalling.append(link)
        self._seen_at(link.peer)
        for attempt in self._attempts.values():
            attempt.done.set()
        if self.peer.node_id != self._own_id:
            best = self.best_link()
            for other in self._signalling:
                if other.dialed and other is not best:
                    other.retire()
        theirs = [other for other in self._signalling if not other.dialed]
        for other in theirs[: -self._limits.signalling_per_neighbour]:
            self._counts["drop_signalling_surplus"] += 1
            other.close()

    def remove_link(self, link: SignalLink) -> None:
        """A signalling link has ended. If its peer is dead, all other links are of no use."""
        self._signalling.remove(link)
        if link.dead:
            self.close()
        if not self._signalling:
            self._fail_asked("the neighbour's signalling link ended")

    async def signal_link(self, ref: NodeRef) -> SignalLink:
        """The link to send over, dialed with ``ref`` if there is none.

        :raises LinkBroken: it can't be reached.
        :raises DeadlineExpired: no answer.
        """
        while (link := self.best_link()) is None:
            if not ref.port:
                raise LinkBroken("the node can't be dialed and has no link to us")
            attempt = self._attempts.get(ref)
            if attempt is None:
                attempt = self._attempts[ref] = _Attempt()
                self._spawn(self._dial_signalling, ref, attempt)
            await attempt.done.wait()
            if attempt.error is not None and self.best_link() is None:
                raise attempt.error
        return link

    async def _dial_signalling(self, ref: NodeRef, attempt: _Attempt) -> None:
        try:
            connection = await self._dial(ref, LinkKind.SIGNALLING)
        except WorldError as error:
            attempt.error = error
        else:
            self.ref = ref
            self._adopt(self, connection, Peer(ref.node_id, ref.address))
        finally:
            del self._attempts[ref]
            attempt.done.set()

    async def keep_signalling(self, ref: NodeRef) -> None:
        """Have a signalling link beside bulk links: it tells when the peer is dead."""
        with suppress(WorldError):
            await self.signal_link(ref)

    # --- bulk -----------------------------------------------------------------------------------

    async def _bring_bulk(self, ref: NodeRef) -> BulkLink:
        """Dial a bulk link; if that is impossible, have the peer dial it."""
        if not ref.port:
            return await self._ask_for_bulk()
        try:
            connection = await self._dial(ref, LinkKind.BULK)
        except WorldError:
            with suppress(WorldError):
                return await self._ask_for_bulk()
            raise
        return BulkLink(connection, self.shared(Peer(ref.node_id, ref.address)))

    async def _ask_for_bulk(self) -> BulkLink:
        link = self.best_link()
        if link is None:
            raise LinkBroken("the node can't be dialed and has no link to us")
        link.send(Frame.ASK)
        waiter = Waiter()
        self._asked.append(waiter)
        try:
            with trio.move_on_after(self._limits.open_deadline):
                return await waiter.wait()
        finally:
            if waiter in self._asked:
                self._asked.remove(waiter)
        raise LinkBroken("the node can't be dialed and didn't dial us")

    def take_bulk(self, link: BulkLink) -> None:
        """The peer has dialed a link on which we start uses."""
        if self._asked:
            self._asked.popleft().give(link)
        else:
            self._counts["drop_bulk_not_asked_for"] += 1
            link.connection.close()

    def declined(self) -> None:
        """The peer won't dial."""
        if self._asked:
            self._asked.popleft().fail(LinkBroken("the node can't be dialed and won't dial us"))

    def _fail_asked(self, reason: str) -> None:
        while self._asked:
            self._asked.popleft().fail(LinkBroken(reason))

    # --- all together ---------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether bulk links are in use (or kept by the peer)."""
        return bool(self.in_use or self.served)

    @property
    def is_self(self) -> bool:
        """Whether it is this node, which no other process can dial."""
        return self.peer.node_id == self._own_id

    @property
    def in_use(self) -> int:
        """Bulk links to the peer in use, those of workers included."""
        return self.pool.in_use + len(self.handed_over)

    @property
    def used_ref(self) -> NodeRef | None:
        """With which one that is in use was dialed."""
        if self.pool.in_use:
            return self.pool.ref
        return next(iter(self.handed_over.values()), None)

    @property
    def empty(self) -> bool:
        """Whether there is nothing left to remember."""
        return self.pool.empty and not (
            self._signalling or self._attempts or self.served or self.handed_over
        )

    @property
    def wanted(self) -> bool:
        """Whether there is a signalling link that we dialed, or anything being dialed for us."""
        return bool(
            self._attempts or self.pool.waiting or any(link.dialed for link in self._signalling)
        )

    @property
    def used(self) -> float:
        """When a message last went or came over signalling, PING and PONG apart, in trio's time."""
        return max((link.used for link in self._signalling), default=self._since)

    @property
    def heard(self) -> float:
        """When something last came over signalling, in trio's time; 0 without a link."""
        return max((link.heard for link in self._signalling), default=0.0)

    @property
    def signalling_links(self) -> int:
        """Signalling links, ending ones included."""
        return len(self._signalling)

    def info(self) -> NeighbourInfo:
        """For the node's owner."""
        link = self.best_link()
        return NeighbourInfo(
            node_id=self.peer.node_id,
            address=self.peer.address,
            signalling=link is not None,
            dialed=link is not None and link.dialed,
            bulk_in_use=self.in_use + self.uses_served,
            bulk_idle=self.pool.idle + max(0, len(self.served) - self.uses_served),
            silent=trio.current_time() - self.heard if self._signalling else None,
        )

    def close(self) -> None:
        """Close every link; what uses them learns of it."""
        self.pool.close()
        for use in list(self.handed_over):
            use.reset()
        for bulk in list(self.served):
            bulk.connection.close()
        for link in self._signalling:
            link.close()
        self._on_close(self.peer.node_id)
