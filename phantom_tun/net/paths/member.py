"""Setup arrays over links: taking part in other people's builds (docs/spec/path.md, "On receipt").

Every array is answered by the same FIN before anybody has looked at it, and nothing else ever
travels backwards: whoever brought it can't tell an array that went on from one that was dropped,
nor an owner, whose own array has come round, from a member.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from phantom_tun.clock import MINUTE, Clock, Rng
from phantom_tun.errors import LinkBroken, PeerError, UsageError, WorldError
from phantom_tun.guard import Guard
from phantom_tun.ids import ConnectionId, NodeId
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.peers import NeighbourInfo, Peer
from phantom_tun.net.links.rates import RateTable
from phantom_tun.net.links.shares import Shares
from phantom_tun.path.candidates import prefix
from phantom_tun.path.hop import PathHop
from phantom_tun.path.keys import PathKeys, PublishedPathKey
from phantom_tun.path.member import Accepted, ArrayRefused, Member, Reason
from phantom_tun.tasks import Tasks
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.setup import ARRAY_LEN, Neighbour
from phantom_tun.wire.tunnel import Opening, opening_id, pack_opening

_log = structlog.get_logger(__name__)

DIAL_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds between a hop's attempts to reach its successor; the last one repeats."""


class PathLinks(Protocol):
    """What builds need of the links."""

    node_id: NodeId

    async def open_bulk(self, ref: NodeRef, opening: bytes, *, brief: bool) -> Bulk:
        """
        :raises WorldError: the node can't be reached.
        """
        ...

    async def ensure(self, ref: NodeRef) -> None:
        """
        :raises WorldError: the node can't be reached.
        """
        ...

    def neighbours(self) -> list[NeighbourInfo]:
        """Everyone there is a link with."""
        ...


@dataclass(frozen=True, slots=True)
class ArrayLimits:
    """Rates in arrays per second; an array costs a member about 0.2 ms of work and 37 KB."""

    per_node: float = 10.0
    node_burst: float = 100.0
    per_prefix: float = 20.0
    """Per /16 or /32."""
    prefix_burst: float = 200.0
    receiving: int = 64
    """Arrays that are being received at one time."""
    receiving_per_node: int = 8
    """Of those, from one neighbour: it could send them as slowly as it likes."""
    forwarding: int = 128
    """Arrays on their way to the next member. Their owners choose it, and may want it silent."""
    forwarding_per_node: int = 16
    """Of those, brought by one neighbour."""
    receive_deadline: float = 20.0
    forward_deadline: float = 20.0
    sweep_every: float = 5.0
    check_successor_every: float = MINUTE
    successors_tried: int = 32
    """Hops that look for their successor at one time; an owner may have named a dead address."""
    successor_gone_after: float = 10 * MINUTE
    """A hop whose successor can't be reached for this long is given up."""


class Return:
    """An array of our own on its way round."""

    __slots__ = ("_array", "_came")

    def __init__(self) -> None:
        self._array: bytes | None = None
        self._came = trio.Event()

    def take(self, array: bytes) -> None:
        """It has come round."""
        self._array = array
        self._came.set()

    async def wait(self) -> bytes:
        """The array, as soon as it is here."""
        await self._came.wait()
        return self._array or b""


class PathMember:
    """This node's part in builds, its own arrays coming home included."""

    def __init__(
        self,
        member: Member,
        keys: PathKeys,
        links: PathLinks,
        *,
        on_hop: Callable[[PathHop], None],
        on_hop_lost: Callable[[PathHop], None],
        on_new_key: Callable[[PublishedPathKey], None],
        on_demand: Callable[[int], None] = lambda _bits: None,
        clock: Clock,
        rng: Rng,
        limits: ArrayLimits | None = None,
    ) -> None:
        """``on_hop`` is told of each hop that a build leaves here, ``on_hop_lost`` of each that
        ends before it expires because its successor is gone, ``on_new_key`` of the path-building
        key to publish from now on, whenever ``keys`` rotates, ``on_demand`` of the bits of work to
        ask builders for from now on."""
        self._member = member
        self._keys = keys
        self._links = links
        self._on_hop = on_hop
        self._on_hop_lost = on_hop_lost
        self._on_new_key = on_new_key
        self._on_demand = on_demand
        self._clock = clock
        self._rng = rng
        self._limits = limits = limits or ArrayLimits()
        self._by_node: RateTable[NodeId] = RateTable(limits.per_node, limits.node_burst)
        self._by_prefix: RateTable[bytes] = RateTable(limits.per_prefix, limits.prefix_burst)
        self._receiving: Shares[NodeId] = Shares(limits.receiving, limits.receiving_per_node)
        self._forwarding: Shares[NodeId] = Shares(limits.forwarding, limits.forwarding_per_node)
        self._returns: dict[tuple[NodeId, ConnectionId], Return] = {}
        self._keeping: dict[int, trio.CancelScope] = {}
        self._trying = trio.CapacityLimiter(limits.successors_tried)
        self._counts: Counter[str] = Counter()
        self._guard = Guard(self._counts)
        self._tasks = Tasks(self._guard)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the links of hops to their successors, rotate keys and forget what is over, until
        cancelled."""
        async with self._tasks.open():
            task_status.started()
            await self._guard.forever(self._sweep)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(self._limits.sweep_every)
            now = self._clock.now()
            self._member.sweep(now)
            if self._keys.refresh(now):
                self._on_new_key(self._keys.published)
            if self._member.adjust(now):
                self._on_demand(self._member.asked)

    def _start(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        if not (self._tasks.start(work, *args) or self._tasks.is_over):
            raise UsageError("the path member isn't running")

    def statistics(self) -> dict[str, int]:
        """Counters by name; every array that was dropped is in one of them."""
        return {
            "builds_pending": self._member.pending,
            "hops_standing": self._member.standing,
            "packages_remembered": self._member.remembered,
            "work_asked_bits": self._member.asked,
            "builds_worked_for": self._member.worked,
            **self._counts,
        }

    # --- receiving ------------------------------------------------------------------------------

    async def handle_array(self, peer: Peer, opening: bytes, bulk: Bulk) -> None:
        """A neighbour brings an array. Never raises on account of what is in it."""
        connection = ConnectionId(opening_id(opening))
        if not self._receiving.take(peer.node_id):
            self._counts["drop_array_receiving"] += 1
            bulk.reset()
            return
        try:
            array = await self._read(bulk)
        finally:
            self._receiving.leave(peer.node_id)
        if array is None:
            self._counts["drop_array_broken"] += 1
            return
        returned = self._returns.pop((peer.node_id, connection), None)
        used = self._used(peer, self._clock.now())
        if returned is not None:
            returned.take(array)
        elif used is None:
            self._counts["drop_array_rate"] += 1
        elif not self._forwarding.take(peer.node_id):
            self._counts["drop_array_forwarding"] += 1
        else:
            self._take_part(peer, connection, array, used)

    def _take_part(self, peer: Peer, connection: ConnectionId, array: bytes, used: float) -> None:
        now = self._clock.now()
        try:
            accepted = self._member.receive(peer.node_id, connection, array, now, used=used)
        except ArrayRefused as refused:
            self._counts[f"drop_array_{refused.reason.value}"] += 1
            self._forwarding.leave(peer.node_id)
            # Those who don't work use up nothing that others need who do.
            if refused.reason is not Reason.WORK:
                self._use(peer, now)
            return
        self._use(peer, now)
        self._counts["arrays_accepted"] += 1
        if accepted.hop is not None:
            self._add_hop(accepted.hop, accepted.successor)
        # Not in the task that serves the link: its next use would have to wait, and whoever brought
        # the array could tell by that whether it went on.
        self._start(self._pass_on, accepted, peer.node_id)

    def _used(self, peer: Peer, now: float) -> float | None:
        """Which share a neighbour has used up of what it and its network may bring; ``None`` if
        not a single array is left."""
        network = prefix(peer.address)
        if not (self._by_node.has(peer.node_id, now) and self._by_prefix.has(network, now)):
            return None
        return 1 - min(self._by_node.left(peer.node_id, now), self._by_prefix.left(network, now))

    def _use(self, peer: Peer, now: float) -> None:
        self._by_node.allow(peer.node_id, now)
        self._by_prefix.allow(prefix(peer.address), now)

    async def _read(self, bulk: Bulk) -> bytes | None:
        """One array, acknowledged by FIN; ``None`` if it didn't come whole and in time."""
        try:
            with trio.move_on_after(self._limits.receive_deadline):
                array = await bulk.receive_exactly(ARRAY_LEN)
                await bulk.send_fin()
                await bulk.aclose()
                return array
        except (LinkBroken, PeerError):
            pass
        bulk.reset()
        return None

    async def _pass_on(self, accepted: Accepted, brought_by: NodeId) -> None:
        try:
            with trio.fail_after(self._limits.forward_deadline):
                await self.send_array(accepted.next, accepted.array)
        except (WorldError, trio.TooSlowError):
            self._counts["drop_array_next_unreachable"] += 1
        finally:
            self._forwarding.leave(brought_by)

    async def send_array(self, to: Neighbour, array: bytes) -> None:
        """Bring an array to a node.

        :raises WorldError: it can't be reached, or the link broke.
        """
        opening = pack_opening(Opening.ARRAY, to.connection, b"", self._rng)
        bulk = await self._links.open_bulk(to.node, opening, brief=True)
        try:
            await bulk.send_bytes(array)
            await bulk.send_fin()
        finally:
            with trio.CancelScope(shield=True):
                await bulk.aclose()

    # --- our own arrays -------------------------------------------------------------------------

    @contextmanager
    def expect(self, sender: Neighbour) -> Iterator[Return]:
        """Take the next array that ``sender`` brings for a connection as one of our own."""
        key = (sender.node.node_id, sender.connection)
        returned = self._returns[key] = Return()
        try:
            yield returned
        finally:
            self._returns.pop(key, None)

    # --- hops -----------------------------------------------------------------------------------

    def _add_hop(self, hop: PathHop, successor: NodeRef | None) -> None:
        self._counts[f"hops_{hop.role}"] += 1
        self._on_hop(hop)
        if successor is not None:
            self._start(self._keep_link, hop, successor)

    def hop_ended(self, hop: PathHop) -> None:
        """Somebody else found that a hop is over before its expiry. Idempotent."""
        self._member.release(hop)
        scope = self._keeping.pop(id(hop), None)
        if scope is not None:
            scope.cancel()

    async def _keep_link(self, hop: PathHop, successor: NodeRef) -> None:
        """Whoever comes first in the ring dials; its successor may not have heard of the path yet,
        or restart, so this goes on for as long as the hop stands."""
        with trio.CancelScope() as self._keeping[id(hop)]:
            try:
                lost = await self._wait_lost(hop, successor)
            finally:
                self._keeping.pop(id(hop), None)
            if lost:
                self._counts["hops_lost"] += 1
                self._member.release(hop)
                self._on_hop_lost(hop)

    async def _wait_lost(self, hop: PathHop, successor: NodeRef) -> bool:
        reached_at = trio.current_time()
        failures = 0
        while hop.expires > self._clock.now():
            try:
                async with self._trying:
                    await self._links.ensure(successor)
            except WorldError:
                if trio.current_time() - reached_at > self._limits.successor_gone_after:
                    return True
                pause = DIAL_PAUSES[min(failures, len(DIAL_PAUSES) - 1)]
                failures += 1
            else:
                reached_at = trio.current_time()
                failures = 0
                pause = self._limits.check_successor_every
            await trio.sleep(pause)
        return False
