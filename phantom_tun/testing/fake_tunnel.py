"""Routing tunnels in memory: pairs of tunnels, and the network that makes them.

:class:`FakeNetwork` is the :class:`~phantom_tun.net.sessions.ports.Connector` of any number of
session services. Its tunnels cut what they carry into pieces at random places, hold a bounded
number of bytes, and can be told to alter, cut off or end what passes at a given byte.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

import trio

from phantom_tun.clock import Rng
from phantom_tun.errors import DeadlineExpired, PathUnavailable, StreamReset, Unreachable
from phantom_tun.ids import EntryId, NodeId
from phantom_tun.net.links.buffers import CHUNK, HEADER_LEN, POOL, Buffer, Segment
from phantom_tun.net.links.rest import Resting
from phantom_tun.net.sessions.ports import Accept
from phantom_tun.wire.sizes import ANSWER_LEN, SEALED_REQUEST_LEN

CAPACITY = 262_144
"""Bytes on their way in one direction before the sender has to wait."""

CALLER_PATH, CALLEE_PATH = 3, 4
"""Numbers of the exit path that a tunnel left through and of the entry path that it came in by."""

OFTEN = 0.1
"""How likely a tunnel is to say after a chunk that nothing moves."""

SILENT_WAY = 10.0
"""Seconds after which a way that doesn't answer is given up."""

RequestHandler = Callable[[str, bytes, Accept], Awaitable[None]]


@dataclass(slots=True)
class Lane:
    """One direction of a tunnel."""

    capacity: int = CAPACITY
    flip_at: int | None = None
    """The byte with this number arrives with one bit flipped."""
    cut_at: int | None = None
    """The tunnel breaks after this many bytes."""
    end_at: int | None = None
    """A FIN arrives after this many bytes, and nothing else."""
    is_lossy: bool = False
    """Nothing arrives any more."""
    carried: int = 0
    writes: int = 0
    most_waiting: int = 0
    """Bytes on their way at the worst moment."""
    waiting: bytearray = field(default_factory=bytearray)
    fin: bool = False
    broken: bool = False
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def put(self, data: bytes) -> None:
        """Take in bytes and do to them what was asked for."""
        for offset, change in ((self.cut_at, self._cut), (self.end_at, self._end)):
            if offset is not None and self.carried + len(data) >= offset:
                data = data[: max(0, offset - self.carried)]
                self._append(data)
                change()
                return
        self._append(data)

    def _append(self, data: bytes) -> None:
        if self.fin or self.broken or self.is_lossy:
            return
        if self.flip_at is not None and 0 <= self.flip_at - self.carried < len(data):
            altered = bytearray(data)
            altered[self.flip_at - self.carried] ^= 1
            data = bytes(altered)
        self.carried += len(data)
        self.waiting += data
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        self.changed.unpark_all()

    def _cut(self) -> None:
        self.broken = True
        self.changed.unpark_all()

    def _end(self) -> None:
        self.fin = True
        self.changed.unpark_all()


class FakeTunnel:
    """One end of a tunnel; implements :class:`~phantom_tun.net.sessions.ports.Tunnel`."""

    def __init__(self, incoming: Lane, outgoing: Lane, rng: Rng, path_number: int = 0) -> None:
        self.path_number = path_number
        self.owed = b""
        self._unpaid: tuple[bytes, Callable[[], None]] | None = None
        self.incoming = incoming
        self.outgoing = outgoing
        self.is_released = False
        """Given back after FIN both ways, so that its links could be used again."""
        self.is_reset = False
        self._rng = rng
        self._resting: Resting | None = None
        self._unsent = bytearray()
        self._owes_fin = False

    def rest_with(self, other: Resting) -> None:
        """See :class:`~phantom_tun.net.sessions.ports.Tunnel`; it has to rest often."""
        self._resting = other

    def _rest_perhaps(self) -> None:
        if self._resting is not None and self._rng.random() < OFTEN:
            self._resting.rest()

    def owe(self, answer: bytes, on_paid: Callable[[], None]) -> None:
        """``answer`` is to be sent before all else; to the far end it is no part of the stream, but
        ``on_paid`` is called."""
        self.owed, self._unpaid = answer, (answer, on_paid)

    async def receive_pooled(self) -> Buffer:
        """See :class:`~phantom_tun.net.sessions.ports.Tunnel`."""
        lane = self.incoming
        await trio.lowlevel.checkpoint()
        while not (lane.waiting or lane.fin or lane.broken):
            await lane.changed.park()
        if lane.broken and not lane.waiting:
            raise StreamReset("the tunnel ended")
        self._rest_perhaps()
        buffer = POOL.take()
        start, end = HEADER_LEN, HEADER_LEN + CHUNK
        while lane.waiting and start < end and len(buffer.segments) < 4:
            length = min(len(lane.waiting), end - start, self._rng.choice((1, 700, 20_000, CHUNK)))
            buffer.view[start : start + length] = lane.waiting[:length]
            del lane.waiting[:length]
            buffer.segments.append(Segment(start, start + length))
            start += length + HEADER_LEN
        lane.changed.unpark_all()
        return buffer

    async def send(self, buffer: Buffer, *, fin: bool = False) -> None:
        """See :class:`~phantom_tun.net.sessions.ports.Tunnel`."""
        self.outgoing.writes += 1
        for start, end in buffer.segments:
            data = bytes(buffer.view[start:end])
            if self._unpaid is not None:
                answer, on_paid = self._unpaid
                if not data.startswith(answer):
                    raise ValueError("what was owed didn't come first")
                data, self._unpaid = data[len(answer) :], None
                on_paid()
            self._unsent += data
        self._owes_fin = fin
        await trio.lowlevel.checkpoint()
        await self.end_send()
        self._rest_perhaps()

    async def end_send(self) -> None:
        """See :class:`~phantom_tun.net.sessions.ports.Tunnel`."""
        lane = self.outgoing
        while self._unsent:
            if lane.broken:
                raise StreamReset("the tunnel ended")
            if room := lane.capacity - len(lane.waiting):
                lane.put(bytes(self._unsent[:room]))
                del self._unsent[:room]
            else:
                await lane.changed.park()
        if self._owes_fin:
            await self.send_fin()

    async def send_fin(self) -> None:
        """See :class:`~phantom_tun.net.sessions.ports.Tunnel`."""
        await trio.lowlevel.checkpoint()
        if self.outgoing.broken:
            raise StreamReset("the tunnel ended")
        self.outgoing.fin = True
        self.outgoing.changed.unpark_all()

    def is_broken(self) -> bool:
        """See :class:`~phantom_tun.net.sessions.ports.Tunnel`."""
        return self.is_reset or self.incoming.broken or self.outgoing.broken

    def reset(self) -> None:
        """See :class:`~phantom_tun.net.sessions.ports.Tunnel`."""
        if self.is_released or self.is_reset:
            return
        self.is_reset = True
        for lane in (self.incoming, self.outgoing):
            lane.broken = True
            lane.changed.unpark_all()
        self.incoming.waiting.clear()

    async def aclose(self) -> None:
        """See :class:`~phantom_tun.net.sessions.ports.Tunnel`."""
        await trio.lowlevel.checkpoint()
        if self.incoming.fin and self.outgoing.fin and not self.incoming.waiting:
            self.is_released = True
        else:
            self.reset()


def tunnel_pair(rng: Rng, capacity: int = CAPACITY) -> tuple[FakeTunnel, FakeTunnel]:
    """The caller's and the callee's end of one tunnel."""
    there, back = Lane(capacity), Lane(capacity)
    return (
        FakeTunnel(back, there, rng, CALLER_PATH),
        FakeTunnel(there, back, rng, CALLEE_PATH),
    )


@dataclass(slots=True)
class Way:
    """What is behind an entry id."""

    handler: RequestHandler
    identity: str
    is_silent: bool = False
    """Requests get lost there."""
    loses_answers: bool = False
    """Requests arrive, and nothing comes back."""
    delay: float = 0.0
    """Seconds until a request arrives."""
    alter_request: Callable[[bytes], bytes] = bytes
    alter_answer: Callable[[bytes], bytes] = bytes


@dataclass(slots=True)
class Exchange:
    """A request that was carried, and what came of it."""

    entry_id: EntryId
    sealed_request: bytes
    answer: bytes | None = None
    caller_tunnel: FakeTunnel | None = None
    callee_tunnel: FakeTunnel | None = None


@dataclass(slots=True, eq=False)
class FakeWayOut:
    """One exit path; implements :class:`~phantom_tun.net.sessions.ports.WayOut`."""

    network: FakeNetwork
    number: int
    is_dead: bool = False
    """What goes in is lost, and it brings nothing."""
    ended: bool = False
    """It takes no new connections."""

    def heard_since(self, moment: float) -> bool:
        """See :class:`~phantom_tun.net.sessions.ports.WayOut`."""
        return not self.is_dead and moment <= trio.current_time()

    async def connect(
        self, entry_node: NodeId, entry_id: EntryId, sealed_request: bytes
    ) -> tuple[bytes, FakeTunnel]:
        """See :class:`~phantom_tun.net.sessions.ports.WayOut`."""
        if self.is_dead:
            await trio.sleep(SILENT_WAY)
            raise DeadlineExpired("no answer in time")
        return await self.network.carry(entry_node, entry_id, sealed_request)


class FakeNetwork:
    """Carries requests to where they are addressed and makes tunnels of accepted ones."""

    def __init__(self, nursery: trio.Nursery, rng: Rng) -> None:
        self.exits = [FakeWayOut(self, CALLER_PATH)]
        """The exit paths of every identity."""
        self.ways: dict[tuple[NodeId, EntryId], Way] = {}
        self.exchanges: list[Exchange] = []
        self.prepare: Callable[[FakeTunnel], None] = lambda _tunnel: None
        """Called with the caller's end of each new tunnel, to give it a capacity or faults."""
        self._nursery = nursery
        self._rng = rng

    async def way_out(self, identity: str, apart: Collection[int] = ()) -> FakeWayOut:
        """See :class:`~phantom_tun.net.sessions.ports.Connector`."""
        await trio.lowlevel.checkpoint()
        if not self.exits:
            raise PathUnavailable(f"no exit path of {identity} stands")
        fresh = [way for way in self.exits if way.number not in apart]
        return self._rng.choice(fresh or self.exits)

    async def carry(
        self, entry_node: NodeId, entry_id: EntryId, sealed_request: bytes
    ) -> tuple[bytes, FakeTunnel]:
        """Take a request to where it is addressed, and bring the answer back."""
        if len(sealed_request) != SEALED_REQUEST_LEN:
            raise ValueError(f"a request of {len(sealed_request)} bytes")
        exchange = Exchange(entry_id, sealed_request)
        self.exchanges.append(exchange)
        way = self.ways.get((entry_node, entry_id))
        await trio.lowlevel.checkpoint()
        if way is None:
            raise Unreachable("unknown entry id")
        if way.is_silent:
            await trio.sleep(SILENT_WAY)
            raise DeadlineExpired("no answer in time")
        await trio.sleep(way.delay)
        over = trio.Event()
        self._nursery.start_soon(self._deliver, way, exchange, over)
        await over.wait()
        if way.loses_answers:
            await trio.sleep(SILENT_WAY)
            raise DeadlineExpired("no answer in time")
        if exchange.answer is None or exchange.caller_tunnel is None:
            raise Unreachable("no tunnel behind the entry id")
        return way.alter_answer(exchange.answer), exchange.caller_tunnel

    async def _deliver(self, way: Way, exchange: Exchange, over: trio.Event) -> None:
        async def accept(answer: bytes, *, hold: bool = False) -> FakeTunnel:
            if len(answer) != ANSWER_LEN:
                raise ValueError(f"an answer of {len(answer)} bytes")
            await trio.lowlevel.checkpoint()
            exchange.answer = answer
            exchange.caller_tunnel, exchange.callee_tunnel = tunnel_pair(self._rng)
            self.prepare(exchange.caller_tunnel)
            if hold:
                exchange.callee_tunnel.owe(answer, over.set)
            else:
                over.set()
            return exchange.callee_tunnel

        await way.handler(way.identity, way.alter_request(exchange.sealed_request), accept)
        over.set()
        if exchange.callee_tunnel is not None:
            exchange.callee_tunnel.reset()  # whoever returns is done with the link
