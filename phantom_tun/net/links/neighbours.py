"""All neighbours of this node, whatever carries the links (docs/spec/links.md, "Neighbours").

:class:`Neighbours` is given a way to dial and is told of connections that were accepted; TLS
(:mod:`phantom_tun.net.links.links`) and memory (:mod:`phantom_tun.testing.memory_links`) are built
on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import trio

from phantom_tun.errors import LinkBroken, PhantomError, UsageError
from phantom_tun.guard import Guard
from phantom_tun.ids import NodeId
from phantom_tun.net.links.bulk import Bulk, BulkLink
from phantom_tun.net.links.connection import Connection
from phantom_tun.net.links.crowds import least_needed, refusal
from phantom_tun.net.links.joins import Joins
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.loopback import connection_pair
from phantom_tun.net.links.neighbour import Dial, Neighbour
from phantom_tun.net.links.peers import LinkHandlers, NeighbourInfo, Peer
from phantom_tun.net.links.serving import Service
from phantom_tun.net.links.signalling import Quotas, SignalLink
from phantom_tun.net.links.splice import Layer
from phantom_tun.tasks import Tasks
from phantom_tun.wire.door import LinkKind
from phantom_tun.wire.frames import MAX_CALL_LEN, MAX_SIGNAL_LEN, Frame
from phantom_tun.wire.nodes import IpAddress, NodeRef
from phantom_tun.wire.sizes import OPENING_LEN
from phantom_tun.wire.worker import Join

Barred = Callable[[NodeId, IpAddress], bool]
"""Whether there must be no link with a node at an address."""

TIDY_EVERY = 5.0
"""Seconds between two looks at idle links."""


class Neighbours:
    """Links to other nodes by node id: one-way messages, calls, and uses of bulk links."""

    def __init__(
        self, node_id: NodeId, dial: Dial, *, limits: LinkLimits, counts: Counter[str]
    ) -> None:
        self.node_id = node_id
        self._dial_other = dial
        self._limits = limits
        self._counts = counts
        self._guard = Guard(counts)
        self._tasks = Tasks(self._guard)
        self._quotas = Quotas(limits)
        self._neighbours: dict[NodeId, Neighbour] = {}
        self._service = Service(self._tasks.start, limits=limits, counts=counts)
        self._joins = Joins(self._get, self._open, self._tasks.start, limits=limits, counts=counts)
        self._barred: Barred = _nobody

    async def tend(
        self,
        handlers: LinkHandlers,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; then every link is closed."""
        self._service.handlers = handlers
        try:
            async with self._tasks.open():
                task_status.started()
                await self._guard.forever(self._tidy_regularly)
        finally:
            for neighbour in self._neighbours.values():
                neighbour.close()
            self._neighbours.clear()

    # --- what the layers above ask for ----------------------------------------------------------

    async def open_bulk(
        self, ref: NodeRef, opening: bytes, first: bytes = b"", *, brief: bool = False
    ) -> Bulk:
        """Begin an exclusive use of a bulk link to ``ref``; ``opening``: 64 bytes for its handler.
        ``first`` is the first payload, if it is known already: at most one frame, sent at once.
        A ``brief`` use gives the link back as soon as it can, so that no others are dialed ahead.

        :raises LinkBroken: the node can't be reached, or is not the one ``ref`` names.
        :raises DeadlineExpired: it can't be reached in time.
        :raises CapacityExceeded: too many wait already.
        :raises UsageError: ``opening`` hasn't 64 bytes.
        """
        if len(opening) != OPENING_LEN:
            raise UsageError("an opening has 64 bytes")
        return await self._open(ref, opening, first, brief=brief)

    async def _open(
        self, ref: NodeRef, opening: bytes, first: bytes, *, brief: bool = False
    ) -> Bulk:
        neighbour = self._get(ref)
        bulk = await neighbour.pool.open(ref, opening, first, brief=brief)
        if ref.port and neighbour.best_link() is None:
            self._tasks.start(neighbour.keep_signalling, ref)
        return bulk

    def relay(
        self, bulk: Bulk, join: Join, on_joined: Callable[[], None]
    ) -> Coroutine[Any, Any, None]:
        """See :meth:`phantom_tun.net.links.joins.Joins.relay`."""
        return self._joins.relay(bulk, join, on_joined)

    def join(self, a: Bulk, b: Bulk, a_to_b: Layer, b_to_a: Layer) -> None:
        """See :func:`phantom_tun.net.links.splice.join`."""
        self._joins.join(a, b, a_to_b, b_to_a)

    @property
    def relayed(self) -> int:
        """How many uses :meth:`relay` has joined or is about to join."""
        return self._joins.now

    async def ensure(self, ref: NodeRef) -> None:
        """Have a signalling link to ``ref``, and keep it from being ended for idleness.

        :raises LinkBroken: the node can't be reached, or is not the one ``ref`` names.
        :raises DeadlineExpired: it can't be reached in time.
        :raises CapacityExceeded: too many links are being dialed.
        """
        (await self._signal_link(ref)).touch()

    async def signal(self, ref: NodeRef, payload: bytes) -> None:
        """Send a one-way message of 1 to 1,024 bytes; returns when it is queued. It is lost if the
        link breaks before it arrives.

        :raises LinkBroken: the node can't be reached, or is not the one ``ref`` names.
        :raises DeadlineExpired: it can't be reached in time.
        :raises CapacityExceeded: its queue is full.
        :raises UsageError: ``payload`` is empty or too long.
        """
        if not 1 <= len(payload) <= MAX_SIGNAL_LEN:
            raise UsageError(f"a message has 1 to {MAX_SIGNAL_LEN} bytes")
        (await self._signal_link(ref)).send(Frame.SIGNAL, payload)
        self._counts["signals_sent"] += 1

    def signal_now(self, ref: NodeRef, payload: bytes) -> bool:
        """As :meth:`signal`, if there is a link already; false if not.

        :raises LinkBroken: links aren't running.
        :raises CapacityExceeded: its queue is full.
        """
        link = self._get(ref).best_link()
        if link is None:
            return False
        link.send(Frame.SIGNAL, payload)
        self._counts["signals_sent"] += 1
        return True

    async def call(self, ref: NodeRef, payload: bytes) -> bytes:
        """Ask ``ref`` something of at most 64,000 bytes and wait for the answer.

        :raises LinkBroken: the node can't be reached, is not the one ``ref`` names, or the link
            broke before the answer came.
        :raises DeadlineExpired: it can't be reached in time, or gives no answer.
        :raises CapacityExceeded: too many calls to it wait already.
        :raises UsageError: ``payload`` is too long.
        """
        if len(payload) > MAX_CALL_LEN:
            raise UsageError(f"a call has at most {MAX_CALL_LEN} bytes")
        link = await self._signal_link(ref)
        self._counts["calls_sent"] += 1
        return await link.call(payload)

    def bar(self, barred: Barred) -> None:
        """Have no links with some nodes from now on: those that stand are cut at once, and whatever
        uses them breaks. To nodes that dial us we stay the web server that everybody sees."""
        self._barred = barred
        for node_id, neighbour in list(self._neighbours.items()):
            if barred(node_id, neighbour.peer.address):
                self._counts["drop_neighbour_banned"] += 1
                del self._neighbours[node_id]
                neighbour.close()

    def start_over(self) -> None:
        """Close all links, since they lead nowhere any more: whatever uses them makes others."""
        for neighbour in list(self._neighbours.values()):
            neighbour.close()

    def neighbours(self) -> list[NeighbourInfo]:
        """Everyone there is a link with."""
        return [neighbour.info() for neighbour in self._neighbours.values() if not neighbour.empty]

    def statistics(self) -> dict[str, int]:
        """Counters by name; ``drop_…`` counts what was turned away."""
        neighbours = self._neighbours.values()
        return {
            **self._counts,
            "neighbours": len(neighbours),
            "signalling_links": sum(neighbour.signalling_links for neighbour in neighbours),
            "bulk_idle": sum(neighbour.pool.idle for neighbour in neighbours),
            "bulk_in_use": sum(neighbour.in_use for neighbour in neighbours),
            "bulk_of_neighbours": len(self._service.places),
            "relayed": self._joins.now,
        }

    # --- connections ----------------------------------------------------------------------------

    async def accept(
        self,
        connection: Connection,
        peer: Peer,
        kind: LinkKind,
        served_link: Callable[[Connection, Peer], BulkLink] = BulkLink,
    ) -> None:
        """A node has dialed us and proved who it is. Owns the connection; returns when it is closed
        or kept. ``served_link``: what becomes of it if the node starts uses on it."""
        neighbour = self._neighbours.get(peer.node_id)
        if self._barred(peer.node_id, peer.address):
            self._counts["drop_link_of_banned"] += 1
            connection.close()
            return
        if neighbour is None:
            if self._is_crowded(peer):
                connection.close()
                return
            neighbour = self._add(peer)
        self._counts["links_accepted"] += 1
        if kind is LinkKind.SIGNALLING:
            signalling = self._new_link(neighbour, connection, peer, dialed=False)
            await self._run_signalling(neighbour, signalling)
        elif kind is LinkKind.BULK:
            link = served_link(connection, neighbour.shared(peer))
            await self._service.serve(neighbour, link)
        else:
            neighbour.take_bulk(BulkLink(connection, peer))

    async def _dial(self, ref: NodeRef, kind: LinkKind) -> Connection:
        if ref.node_id != self.node_id:
            connection = await self._dial_other(ref, kind)
            if self._barred(ref.node_id, ref.address):
                connection.close()
                raise LinkBroken("the node is banned")
            return connection
        near, far = connection_pair()
        self._tasks.start(self.accept, far, Peer(ref.node_id, ref.address), kind)
        return near

    def _get(self, ref: NodeRef) -> Neighbour:
        if not self._tasks.is_open:
            raise LinkBroken("links are not running")
        if self._barred(ref.node_id, ref.address):
            raise LinkBroken("the node is banned")
        return self._neighbours.get(ref.node_id) or self._add(Peer(ref.node_id, ref.address))

    def _add(self, peer: Peer) -> Neighbour:
        if len(self._neighbours) >= self._limits.neighbours:
            self._let_go(least_needed(self._neighbours.values()))
        neighbour = self._neighbours[peer.node_id] = Neighbour(
            self.node_id,
            peer,
            dial=self._dial,
            adopt=self._adopt,
            on_close=self._closed,
            spawn=self._tasks.start,
            limits=self._limits,
            counts=self._counts,
        )
        return neighbour

    def _closed(self, node_id: NodeId) -> None:
        """All links with this neighbour are closed, for whoever has others still."""

    def _is_crowded(self, peer: Peer) -> bool:
        crowd = refusal(peer.address, self._neighbours.values(), self._limits)
        if crowd is None:
            return False
        self._counts[f"drop_neighbour_{crowd}"] += 1
        return True

    def _let_go(self, victim: Neighbour) -> None:
        self._counts["drop_neighbour_limit"] += 1
        victim.close()
        del self._neighbours[victim.peer.node_id]

    async def _tidy_regularly(self) -> None:
        while True:
            await trio.sleep(TIDY_EVERY)
            self._tidy()

    def _tidy(self) -> None:
        for neighbour in list(self._neighbours.values()):
            neighbour.pool.expire()
            self._service.expire(neighbour)
            ref = neighbour.used_ref
            if ref is not None and neighbour.best_link() is None:
                self._tasks.start(neighbour.keep_signalling, ref)
            if neighbour.empty:
                del self._neighbours[neighbour.peer.node_id]

    # --- signalling -----------------------------------------------------------------------------

    async def _signal_link(self, ref: NodeRef) -> SignalLink:
        return await self._get(ref).signal_link(ref)

    def _adopt(self, neighbour: Neighbour, connection: Connection, peer: Peer) -> None:
        link = self._new_link(neighbour, connection, peer, dialed=True)
        self._tasks.start(self._run_signalling, neighbour, link)

    def _new_link(
        self, neighbour: Neighbour, connection: Connection, peer: Peer, *, dialed: bool
    ) -> SignalLink:
        link = SignalLink(
            connection,
            peer,
            dialed=dialed,
            limits=self._limits,
            quotas=self._quotas,
            events=self,
            counts=self._counts,
        )
        neighbour.add_link(link)
        return link

    async def _run_signalling(self, neighbour: Neighbour, link: SignalLink) -> None:
        try:
            await link.run()
        finally:
            neighbour.remove_link(link)

    def signalled(self, peer: Peer, payload: bytes) -> None:
        """A one-way message came."""
        if self._service.handlers is not None:
            self._service.handlers.signalled(peer, payload)

    async def called(self, peer: Peer, payload: bytes) -> bytes:
        """A call came."""
        if self._service.handlers is None:
            raise LinkBroken("links are not running")
        return await self._service.handlers.called(peer, payload)

    def asked(self, peer: Peer) -> bool:
        """The peer can't dial us; dial a bulk link for it, to where we dialed it before."""
        neighbour = self._neighbours.get(peer.node_id)
        if neighbour is None or neighbour.ref is None:
            return False
        if self._service.is_full(neighbour) or neighbour.dialing >= self._limits.dials_for_other:
            self._counts["drop_ask"] += 1
            return False
        self._tasks.start(self._dial_for_other, neighbour, neighbour.ref)
        return True

    def declined(self, peer: Peer) -> None:
        """The peer won't dial us."""
        neighbour = self._neighbours.get(peer.node_id)
        if neighbour is not None:
            neighbour.declined()

    def is_busy(self, peer: Peer) -> bool:
        """Whether bulk links are in use with this peer."""
        neighbour = self._neighbours.get(peer.node_id)
        return neighbour is not None and neighbour.busy

    # --- bulk links on which the neighbour starts uses -------------------------------------------

    async def _dial_for_other(self, neighbour: Neighbour, ref: NodeRef) -> None:
        neighbour.dialing += 1
        try:
            connection = await self._dial(ref, LinkKind.BULK_FOR_OTHER)
        except PhantomError:
            signalling = neighbour.best_link()
            if signalling is not None:
                signalling.decline()
            return
        finally:
            neighbour.dialing -= 1
        link = BulkLink(connection, Peer(ref.node_id, ref.address))
        await self._service.serve(neighbour, link)


def _nobody(node_id: NodeId, address: IpAddress) -> bool:
    del node_id, address
    return False
