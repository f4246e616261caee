"""Links in memory: several nodes in one process, with every plaintext on record.

:class:`MemoryNetwork` connects :class:`MemoryLinks`, which have the interface of
:class:`phantom_tun.net.links.links.Links` and share all its code but TLS and the door. A test can
kill, revive and freeze nodes, delay, alter or drop what passes, and read all of it afterwards. With
``trio.testing.MockClock(autojump_threshold=0)`` (pytest-trio's ``autojump_clock``) all of it takes
no time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from phantom_tun.errors import DeadlineExpired, LinkBroken
from phantom_tun.ids import NodeId
from phantom_tun.net.links.connection import Connection
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.loopback import LoopbackConnection, Pipe
from phantom_tun.net.links.neighbours import Neighbours
from phantom_tun.net.links.peers import LinkHandlers, Peer
from phantom_tun.wire.door import LinkKind
from phantom_tun.wire.nodes import NodeRef


@dataclass(frozen=True, slots=True)
class Recorded:
    """Something that went from one node to another."""

    sender: NodeId
    receiver: NodeId
    kind: str
    """``bulk`` (bytes as written, frames included), ``signal``, ``call`` or ``answer``."""
    link: int
    """Number of the connection, for ``bulk``; 0 otherwise."""
    data: bytes


class MemoryNetwork:
    """The medium between :class:`MemoryLinks`."""

    def __init__(self, *, latency: float = 0.0, dial_round_trips: int = 0) -> None:
        """``latency``: seconds one way, of connections made from now on; ``dial_round_trips``: what
        a new connection costs (3 over TLS: TCP, TLS, the door)."""
        self.latency = latency
        self.dial_round_trips = dial_round_trips
        self.recorded: list[Recorded] = []
        self.on_transfer: Callable[[Recorded], bytes | None] = lambda recorded: recorded.data
        """Called for everything that is sent; what it returns arrives. ``None`` loses a signal,
        call or answer, and breaks a bulk link."""
        self.nodes: dict[NodeId, MemoryLinks] = {}
        self._dead: set[NodeId] = set()
        self._frozen: dict[NodeId, trio.Event] = {}
        self._pipes: list[_MemoryPipe] = []
        self._numbers = 0

    def links(
        self, ref: NodeRef, *, limits: LinkLimits | None = None, dialable: bool = True
    ) -> MemoryLinks:
        """The links of the node that ``ref`` describes. A node that isn't ``dialable`` is in other
        nodes' hands as a NodeRef with port 0."""
        node = MemoryLinks(self, ref, limits or LinkLimits(), dialable=dialable)
        self.nodes[ref.node_id] = node
        return node

    def kill(self, node_id: NodeId) -> None:
        """Break all links of a node; it can't be reached until :meth:`revive`."""
        self._dead.add(node_id)
        for pipe in self._pipes:
            if node_id in (pipe.sender, pipe.receiver):
                pipe.cut()

    def revive(self, node_id: NodeId) -> None:
        """Undo :meth:`kill`; broken links stay broken."""
        self._dead.discard(node_id)

    def freeze(self, node_id: NodeId) -> None:
        """Like SIGSTOP: links stay up, nothing is read or answered until :meth:`thaw`."""
        self._frozen.setdefault(node_id, trio.Event())

    def thaw(self, node_id: NodeId) -> None:
        """Undo :meth:`freeze`."""
        thawed = self._frozen.pop(node_id, None)
        if thawed is not None:
            thawed.set()
            for pipe in self._pipes:
                pipe.notify()

    def between(self, one: NodeId, other: NodeId) -> list[Recorded]:
        """All that went between two nodes, either way."""
        return [item for item in self.recorded if {item.sender, item.receiver} == {one, other}]

    def received_by(self, node_id: NodeId) -> list[Recorded]:
        """All that a node was sent."""
        return [item for item in self.recorded if item.receiver == node_id]

    # --- for MemoryLinks ------------------------------------------------------------------------

    def transfer(self, recorded: Recorded) -> bytes | None:
        """Record something and say what of it arrives."""
        self.recorded.append(recorded)
        return self.on_transfer(recorded)

    def frozen(self, node_id: NodeId) -> bool:
        """Whether :meth:`freeze` is in force."""
        return node_id in self._frozen

    async def wait_thawed(self, node_id: NodeId) -> None:
        """Return when :meth:`freeze` isn't in force."""
        while node_id in self._frozen:
            await self._frozen[node_id].wait()

    def reach(self, sender: NodeId, ref: NodeRef) -> MemoryLinks:
        """The node that ``sender`` dials with ``ref``.

        :raises LinkBroken: dead, unknown, not running, not dialable, or another certificate.
        """
        node = self.nodes.get(ref.node_id)
        if node is None or not node.running or {sender, ref.node_id} & self._dead:
            raise LinkBroken("the node can't be reached")
        if not node.dialable or node.ref != ref:
            raise LinkBroken("the node can't be dialed like that")
        return node

    def connect(
        self, sender: NodeId, receiver: NodeId, kind: LinkKind
    ) -> tuple[LoopbackConnection, LoopbackConnection]:
        """The two ends of a new connection."""
        self._numbers += 1
        number = 0 if kind is LinkKind.SIGNALLING else self._numbers
        there = _MemoryPipe(self, sender, receiver, number)
        back = _MemoryPipe(self, receiver, sender, number)
        self._pipes = [pipe for pipe in self._pipes if not pipe.has_ended()] + [there, back]
        return LoopbackConnection(back, there), LoopbackConnection(there, back)


class _MemoryPipe(Pipe):
    """A pipe through a :class:`MemoryNetwork`; ``number`` is 0 for signalling, whose messages are
    recorded as such."""

    def __init__(
        self, network: MemoryNetwork, sender: NodeId, receiver: NodeId, number: int
    ) -> None:
        super().__init__()
        self.sender = sender
        self.receiver = receiver
        self._network = network
        self._number = number
        self._latency = network.latency
        self._in_flight: deque[tuple[float, bytes]] = deque()

    def put(self, data: bytes) -> None:
        """Send ``data`` on its way."""
        arriving: bytes | None = data
        if self._number:
            arriving = self._network.transfer(
                Recorded(self.sender, self.receiver, "bulk", self._number, data)
            )
        if arriving is None:
            self.cut()
        elif arriving:
            self._in_flight.append((trio.current_time() + self._latency, arriving))
            self.size += len(arriving)
            self.notify()

    def has_arrived(self) -> bool:
        """Whether a read gives something now."""
        while self._in_flight and self._in_flight[0][0] <= trio.current_time():
            self.chunks.append(self._in_flight.popleft()[1])
        return bool(self.chunks) and not self._is_held()

    def has_ended(self) -> bool:
        """Whether the end has been reached."""
        return super().has_ended() and not self._in_flight and not self._is_held()

    def _is_held(self) -> bool:
        """Whether either end is frozen."""
        return any(self._network.frozen(end) for end in (self.sender, self.receiver))

    def cut(self) -> None:
        """Break: what is in flight is lost."""
        self.chunks.clear()
        self._in_flight.clear()
        self.end()

    async def wait_change(self) -> None:
        """Return when it is worth looking again."""
        if self._in_flight and not self._is_held():
            with trio.move_on_at(self._in_flight[0][0]):
                await super().wait_change()
        else:
            await super().wait_change()


class MemoryLinks(Neighbours):
    """The interface of :class:`phantom_tun.net.links.links.Links` over a :class:`MemoryNetwork`."""

    def __init__(
        self, network: MemoryNetwork, ref: NodeRef, limits: LinkLimits, *, dialable: bool
    ) -> None:
        super().__init__(ref.node_id, self._dial_in_memory, limits=limits, counts=Counter())
        self.ref = ref
        self.dialable = dialable
        self.running = False
        self._network = network
        self._deadlines = limits

    async def run(
        self,
        listeners: Sequence[object],
        handlers: LinkHandlers,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; ``listeners`` are not used."""
        self.running = True
        try:
            await self.tend(handlers, task_status=task_status)
        finally:
            self.running = False

    async def _dial_in_memory(self, ref: NodeRef, kind: LinkKind) -> Connection:
        with trio.move_on_after(self._deadlines.dial_deadline):
            await trio.sleep(2 * self._network.dial_round_trips * self._network.latency)
            node = self._network.reach(self.node_id, ref)
            await self._network.wait_thawed(ref.node_id)
            near, far = self._network.connect(self.node_id, ref.node_id, kind)
            node.spawn_accept(far, Peer(self.node_id, self.ref.address), kind)
            return near
        raise DeadlineExpired("the node didn't answer in time")

    def spawn_accept(self, connection: Connection, peer: Peer, kind: LinkKind) -> None:
        """Another node has dialed this one."""
        self._tasks.start(self.accept, connection, peer, kind)

    def _transfer(self, receiver: NodeId, kind: str, data: bytes) -> bytes | None:
        return self._network.transfer(Recorded(self.node_id, receiver, kind, 0, data))

    async def signal(self, ref: NodeRef, payload: bytes) -> None:
        """Send a one-way message."""
        arriving = self._transfer(ref.node_id, "signal", bytes(payload))
        if arriving is not None:
            await super().signal(ref, arriving)

    def signal_now(self, ref: NodeRef, payload: bytes) -> bool:
        """Send a one-way message, if there is a link."""
        if self._get(ref).best_link() is None:
            return False
        arriving = self._transfer(ref.node_id, "signal", bytes(payload))
        return arriving is None or super().signal_now(ref, arriving)

    async def call(self, ref: NodeRef, payload: bytes) -> bytes:
        """Ask and wait for the answer."""
        arriving = self._transfer(ref.node_id, "call", bytes(payload))
        if arriving is None:
            await trio.sleep(self._deadlines.call_deadline)
            raise DeadlineExpired("the neighbour gave no answer")
        return await super().call(ref, arriving)

    async def called(self, peer: Peer, payload: bytes) -> bytes:
        """A call came."""
        arriving = self._transfer(peer.node_id, "answer", await super().called(peer, payload))
        if arriving is None:
            raise LinkBroken("the answer was lost")
        return arriving
