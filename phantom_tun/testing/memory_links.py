"""Links in memory: several nodes in one process, with every plaintext on record.

:class:`MemoryNetwork` connects :class:`MemoryLinks`, which have the interface of
:class:`phantom_tun.net.links.Links`. Uses of bulk links are the real :class:`~phantom_tun.net.
bulk.Bulk` with real frames over :class:`MemoryConnection`. A test can kill, revive, freeze and
delay nodes, alter or drop what passes, and read all of it afterwards.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from phantom_tun.errors import CapacityExceeded, DeadlineExpired, LinkBroken, PhantomError
from phantom_tun.ids import NodeId
from phantom_tun.net.bulk import Bulk, BulkLink, Ending
from phantom_tun.net.peers import LinkHandlers, NeighbourInfo, Peer
from phantom_tun.wire.frames import MAX_CALL_LEN, MAX_SIGNAL_LEN
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.sizes import OPENING_LEN

PIPE_LEN = 262_144
"""Bytes that one direction of a connection holds before its writer waits."""

CALL_DEADLINE = 10.0


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


class _Pipe:
    """One direction of a memory connection."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.ended = False
        self.wakeup: trio.Event = trio.Event()

    def notify(self) -> None:
        self.wakeup.set()
        self.wakeup = trio.Event()


class MemoryConnection:
    """One end of a connection; see :class:`phantom_tun.net.connection.Connection`."""

    def __init__(
        self, incoming: _Pipe, outgoing: _Pipe, on_write: Callable[[bytes], bytes | None]
    ) -> None:
        """``on_write`` sees what is written and returns what arrives; ``None`` breaks the
        connection."""
        self._in = incoming
        self._out = outgoing
        self._on_write = on_write
        self._closed = False
        self._writing = False
        self.frozen: Callable[[], trio.Event | None] = lambda: None
        """Tells what to wait for while this end is stopped."""

    @property
    def usable(self) -> bool:
        """Neither closed nor torn."""
        return not self._closed and not self._writing

    def _arrived(self) -> bool:
        chunks = self._in.chunks
        return bool(chunks) and chunks[0][0] <= trio.current_time() and self.frozen() is None

    async def wait_readable(self) -> None:
        """Return when bytes have arrived or the connection has ended."""
        await trio.lowlevel.checkpoint()
        while not self._closed:
            if (thawed := self.frozen()) is not None:
                await thawed.wait()
            elif self._arrived() or (self._in.ended and not self._in.chunks):
                return
            elif self._in.chunks:
                await trio.sleep_until(self._in.chunks[0][0])
            else:
                await self._in.wakeup.wait()
        raise LinkBroken("the link was closed")

    async def read_some(self, view: memoryview) -> int:
        """Take what has arrived; 0 at the end."""
        while True:
            await self.wait_readable()
            if not self._arrived():
                return 0
            filled = 0
            while filled < len(view) and self._arrived():
                due, chunk = self._in.chunks.popleft()
                part = chunk[: len(view) - filled]
                view[filled : filled + len(part)] = part
                filled += len(part)
                if len(part) < len(chunk):
                    self._in.chunks.appendleft((due, chunk[len(part) :]))
            self._in.size -= filled
            self._in.notify()
            return filled

    async def write_all(self, data: memoryview | bytes) -> None:
        """Put ``data`` into the pipe, waiting for room."""
        if self._writing:
            raise LinkBroken("an earlier write was cut short")
        await trio.lowlevel.checkpoint()
        self._writing = True
        arriving = self._on_write(bytes(data))
        if arriving is None:
            self.close()
        while not self._closed and not self._out.ended and self._out.size >= PIPE_LEN:
            await self._out.wakeup.wait()
        self._writing = False
        if self._closed or self._out.ended or arriving is None:
            raise LinkBroken("the link was closed")
        self._put(arriving)

    def _put(self, data: bytes) -> None:
        self._out.chunks.append((trio.current_time() + self._out.latency, data))
        self._out.size += len(data)
        self._out.notify()

    def write_now(self, data: bytes) -> None:
        """Send if there is room and no write under way."""
        if self.usable and not self._out.ended and self._out.size < PIPE_LEN:
            arriving = self._on_write(data)
            if arriving is not None:
                self._put(arriving)

    def is_quiet(self) -> bool:
        """Nothing arrived, and whole."""
        return self.usable and not self._in.chunks and not self._in.ended

    def close(self) -> None:
        """End both directions."""
        self._closed = True
        for pipe in (self._in, self._out):
            pipe.ended = True
            pipe.notify()


def memory_connection_pair(
    on_write: Callable[[bool, bytes], bytes | None] = lambda _first, data: data,
    latency: float = 0.0,
) -> tuple[MemoryConnection, MemoryConnection]:
    """Two joined ends. ``on_write`` is told whether the first end writes, and what."""
    there, back = _Pipe(latency), _Pipe(latency)
    first = MemoryConnection(back, there, lambda data: on_write(True, data))
    second = MemoryConnection(there, back, lambda data: on_write(False, data))
    return first, second


class MemoryNetwork:
    """The medium between :class:`MemoryLinks`."""

    def __init__(self, *, latency: float = 0.0) -> None:
        """``latency``: seconds for everything to arrive (use trio's autojump clock)."""
        self.latency = latency
        self.recorded: list[Recorded] = []
        self.on_transfer: Callable[[Recorded], bytes | None] = lambda recorded: recorded.data
        """Called for everything that is sent; what it returns arrives. ``None`` loses a signal,
        call or answer, and breaks a bulk link."""
        self._nodes: dict[NodeId, MemoryLinks] = {}
        self._dead: set[NodeId] = set()
        self._frozen: dict[NodeId, trio.Event] = {}
        self._connections: list[tuple[NodeId, NodeId, MemoryConnection, MemoryConnection]] = []
        self._numbers = 0

    def links(self, ref: NodeRef, *, dialable: bool = True) -> MemoryLinks:
        """The links of the node that ``ref`` describes."""
        node = MemoryLinks(self, ref, dialable=dialable)
        self._nodes[ref.node_id] = node
        return node

    def kill(self, node_id: NodeId) -> None:
        """Break all links of a node; it can't be reached until :meth:`revive`."""
        self._dead.add(node_id)
        for one, other, first, second in self._connections:
            if node_id in (one, other):
                first.close()
                second.close()

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

    def between(self, one: NodeId, other: NodeId) -> list[Recorded]:
        """All that went between two nodes, either way."""
        return [item for item in self.recorded if {item.sender, item.receiver} == {one, other}]

    def received_by(self, node_id: NodeId) -> list[Recorded]:
        """All that a node was sent."""
        return [item for item in self.recorded if item.receiver == node_id]

    def transfer(self, recorded: Recorded) -> bytes | None:
        """Record and pass on; for MemoryLinks."""
        self.recorded.append(recorded)
        return self.on_transfer(recorded)

    def reach(self, sender: NodeId, ref: NodeRef) -> MemoryLinks:
        """The node behind ``ref``; for MemoryLinks.

        :raises LinkBroken: dead, unknown, not running, or another certificate than ``ref`` says.
        """
        node = self._nodes.get(ref.node_id)
        if node is None or {sender, ref.node_id} & self._dead or node.handlers is None:
            raise LinkBroken("the node can't be reached")
        if ref.port and node.ref.cert_hash != ref.cert_hash:
            raise LinkBroken("the node has another certificate")
        if not node.dialable and not ref.port and sender not in node.dialed:
            raise LinkBroken("the node can't be dialed and has not dialed us")
        return node

    def frozen(self, node_id: NodeId) -> trio.Event | None:
        """What to wait for if :meth:`freeze` is in force; for MemoryLinks."""
        return self._frozen.get(node_id)

    def connect(self, sender: NodeId, receiver: NodeId) -> tuple[MemoryConnection, ...]:
        """A new connection between two nodes; for MemoryLinks."""
        self._numbers += 1
        number = self._numbers

        def on_write(first: bool, data: bytes) -> bytes | None:
            ends = (sender, receiver) if first else (receiver, sender)
            return self.transfer(Recorded(*ends, "bulk", number, data))

        pair = memory_connection_pair(on_write, self.latency)
        pair[0].frozen = lambda: self.frozen(sender)
        pair[1].frozen = lambda: self.frozen(receiver)
        self._connections.append((sender, receiver, *pair))
        return pair


class MemoryLinks:
    """The interface of :class:`phantom_tun.net.links.Links`, over a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, ref: NodeRef, *, dialable: bool) -> None:
        self.ref = ref
        self.node_id = ref.node_id
        self.dialable = dialable
        self.handlers: LinkHandlers | None = None
        self.dialed: set[NodeId] = set()
        self._network = network
        self._nursery: trio.Nursery | None = None
        self._counts: Counter[str] = Counter()

    async def run(
        self,
        listeners: Sequence[object],
        handlers: LinkHandlers,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.handlers = handlers
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self.handlers = None

    async def open_bulk(self, ref: NodeRef, opening: bytes) -> Bulk:
        """Begin a use of a new connection to ``ref``."""
        if len(opening) != OPENING_LEN:
            raise CapacityExceeded("an opening has 64 bytes")
        node = await self._reach(ref)
        near, far = self._network.connect(self.node_id, ref.node_id)
        link = BulkLink(near, Peer(ref.node_id, node.ref.address))
        await link.send_opening(opening)
        node.spawn(node.serve_bulk, BulkLink(far, self._as_peer()))
        self._counts["bulk_opened"] += 1
        return Bulk(link, lambda _ending: None)

    async def serve_bulk(self, link: BulkLink) -> None:
        """The accepting side of :meth:`open_bulk`."""
        bulk = None
        try:
            opening = await link.receive_opening()
            if opening is not None and self.handlers is not None:
                bulk = Bulk(link, self._ended)
                await self.handlers.bulk_opened(link.peer, opening, bulk)
                await bulk.aclose()
        except PhantomError as error:
            self._counts[f"bulk_{type(error).__name__}"] += 1
            if bulk is not None:
                bulk.reset()
        except trio.Cancelled:
            link.connection.close()
            raise

    def _ended(self, ending: Ending) -> None:
        self._counts[f"bulk_ended_{ending.name.lower()}"] += 1

    async def ensure(self, ref: NodeRef) -> None:
        """Have a signalling link."""
        await self._reach(ref)

    async def signal(self, ref: NodeRef, payload: bytes) -> None:
        """Send a one-way message."""
        if not 1 <= len(payload) <= MAX_SIGNAL_LEN:
            raise CapacityExceeded("a signal has 1 to 1,024 bytes")
        node = await self._reach(ref)
        arriving = self._network.transfer(
            Recorded(self.node_id, ref.node_id, "signal", 0, bytes(payload))
        )
        if arriving is not None:
            node.spawn(node.deliver, self._as_peer(), arriving)

    async def deliver(self, peer: Peer, payload: bytes) -> None:
        """The receiving side of :meth:`signal`."""
        await self._pass_time()
        if self.handlers is not None:
            self.handlers.signalled(peer, payload)

    async def call(self, ref: NodeRef, payload: bytes) -> bytes:
        """Ask and wait for the answer."""
        if len(payload) > MAX_CALL_LEN:
            raise CapacityExceeded("a call has at most 64,000 bytes")
        node = await self._reach(ref)
        recorded = Recorded(self.node_id, ref.node_id, "call", 0, bytes(payload))
        arriving = self._network.transfer(recorded)
        with trio.move_on_after(CALL_DEADLINE):
            if arriving is None:
                await trio.sleep_forever()
            else:
                answer = await node.answer(self._as_peer(), arriving)
                await self._pass_time()
                return answer
        raise DeadlineExpired("the neighbour gave no answer")

    async def answer(self, peer: Peer, payload: bytes) -> bytes:
        """The receiving side of :meth:`call`."""
        await self._pass_time()
        if self.handlers is None:
            raise LinkBroken("the node is gone")
        try:
            answer = await self.handlers.called(peer, payload)
        except PhantomError as error:
            self._counts[f"call_{type(error).__name__}"] += 1
            await trio.sleep_forever()
        arriving = self._network.transfer(Recorded(self.node_id, peer.node_id, "answer", 0, answer))
        if arriving is None:
            await trio.sleep_forever()
        return arriving

    async def _pass_time(self) -> None:
        await trio.sleep(self._network.latency)
        while (thawed := self._network.frozen(self.node_id)) is not None:
            await thawed.wait()

    async def _reach(self, ref: NodeRef) -> MemoryLinks:
        await trio.lowlevel.checkpoint()
        node = self._network.reach(self.node_id, ref)
        self.dialed.add(ref.node_id)
        return node

    def _as_peer(self) -> Peer:
        return Peer(self.node_id, self.ref.address)

    def spawn(self, function: Callable[..., Any], *args: object) -> None:
        """Run a task of this node."""
        if self._nursery is not None:
            self._nursery.start_soon(function, *args)

    def neighbours(self) -> list[NeighbourInfo]:
        """Everyone this node has dialed."""
        return [
            NeighbourInfo(node, self.ref.address, True, True, 0, 0, 0.0) for node in self.dialed
        ]

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return dict(self._counts)
