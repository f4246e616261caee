"""Bulk links and their exclusive uses (docs/spec/links.md, "Bulk links")."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Any

import trio

from phantom_tun.errors import LinkBroken, PeerError, ProtocolViolation, WireError
from phantom_tun.net.links.buffers import POOL, Buffer
from phantom_tun.net.links.connection import Connection
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.links.turns import BULK, TURNS
from phantom_tun.wire.frames import (
    HEADER_LEN,
    MAX_PAYLOAD,
    REGION_LEN,
    BulkUnframer,
    Frame,
    pack_frame,
    parse_header,
    write_data_headers,
)
from phantom_tun.wire.sizes import OPENING_LEN
from phantom_tun.wire.worker import Join

_FIN = pack_frame(Frame.FIN)
_RESET = pack_frame(Frame.RESET)


class Ending(Enum):
    """How a use of a bulk link ended for this side."""

    CLEAN = auto()
    """FIN went both ways: the link can be used again"""
    HALF = auto()
    """our FIN is sent, the peer's hasn't come yet"""
    BROKEN = auto()
    """anything else: the link is closed"""


OnEnd = Callable[["BulkLink", Ending], None]
"""Told how a use of which link has ended."""


class BulkLink:
    """One connection of the kind that carries one use after the other."""

    __slots__ = ("_received", "connection", "idle_since", "peer", "unframer", "uses")

    def __init__(self, connection: Connection, peer: Peer) -> None:
        self.connection = connection
        self.peer = peer
        self.unframer = BulkUnframer()
        self._received = 0
        self.idle_since = 0.0
        """When it has begun to wait for its next use."""
        self.uses = 0

    def new_use(self, on_end: OnEnd) -> Bulk:
        """The use that the peer has just begun; see :class:`Bulk`."""
        return Bulk(self, on_end)

    def is_quiet(self) -> bool:
        """Whether nothing has arrived since the last use; for the side that starts uses."""
        return not self.unframer.kept and self.connection.is_quiet()

    async def send_opening(self, opening: bytes, first: bytes = b"") -> None:
        """Begin a use, with ``first`` as its first bytes of payload (as many as one frame holds).

        :raises LinkBroken: the connection failed.
        """
        self.unframer.begin()
        frames = pack_frame(Frame.OPEN, opening)
        if first:
            frames += pack_frame(Frame.DATA, first)
        await self.connection.write_all(frames)

    async def receive_opening(self) -> bytes | None:
        """Wait for the peer to begin a use; ``None`` when it closes the link instead.

        :raises LinkBroken: the connection failed.
        :raises WireError: something else than an opening came.
        """
        self.unframer.begin()
        kept = self.unframer.kept
        frame = bytearray(HEADER_LEN + OPENING_LEN)
        filled = min(len(kept), len(frame))
        frame[:filled] = kept[:filled]
        self.unframer.kept = kept[filled:]
        view = memoryview(frame)
        while True:
            if filled >= HEADER_LEN and parse_header(frame).frame is not Frame.OPEN:
                raise WireError("a use of a bulk link begins with OPEN")
            if filled == len(frame):
                return bytes(view[HEADER_LEN:])
            await self.connection.wait_arrival()
            count = self.connection.read_now(view[filled:])
            if count == 0:
                return None
            filled += count or 0

    async def receive_fin(self) -> None:
        """Wait for the FIN of a use that nobody reads any more.

        :raises LinkBroken: the connection failed or ended, or the use was reset.
        :raises ProtocolViolation: DATA came.
        """
        while not self._next_header():
            await self.connection.wait_arrival()
        if self.unframer.remaining:
            raise ProtocolViolation("data for a use that is over")

    def wait_arrival(self) -> Coroutine[Any, Any, None]:
        """Return when there may be something to receive; after at least one turn of the
        scheduler."""
        if self.unframer.has_more or self.unframer.finished:
            return trio.lowlevel.checkpoint()  # noqa: ASYNC105
        return self.connection.wait_arrival()

    async def receive_pooled(self) -> Buffer:
        """See :meth:`Bulk.receive_pooled`."""
        await self.wait_arrival()
        if self.moves_much:
            await self.wait_turn()
        while (buffer := self.take()) is None:
            await self.connection.wait_arrival()
        return buffer

    @property
    def moves_much(self) -> bool:
        """Whether the last receive brought so much that the next one has to wait for its turn."""
        return self._received >= BULK

    def wait_turn(self) -> Coroutine[Any, Any, None]:
        """Wait until others had theirs."""
        return TURNS.wait(id(self))

    def take(self, limit: int = REGION_LEN) -> Buffer | None:
        """What is there, headers included at most ``limit`` bytes; ``None`` if nothing is."""
        buffer = self.receive_now(limit)
        self._received = 0 if buffer is None else buffer.payload_len()
        return buffer

    def receive_now(self, limit: int) -> Buffer | None:
        """What is there, headers included at most ``limit`` bytes; ``None`` if nothing is."""
        unframer = self.unframer
        buffer = POOL.take()
        taken = False
        try:
            view = buffer.view
            end = unframer.lead_in(view)
            if not (unframer.has_more or unframer.finished):
                count = self._read(view[end:limit])
                if count is None:
                    return None
                end += count
            if not unframer.finished:
                buffer.segments = unframer.parse(view, end)
            taken = bool(buffer.segments) or unframer.finished
            self._check_reset()
            return buffer if taken else None
        finally:
            if not taken:
                POOL.give_back(buffer)

    def receive_into(self, view: memoryview) -> int | None:
        """Take up to ``len(view)`` payload bytes that are there, not a byte more from the
        connection; ``None`` if none are, 0 at FIN."""
        unframer = self.unframer
        if not unframer.remaining:
            if not self._next_header():
                return None
            if unframer.finished:
                return 0
        most = min(len(view), unframer.remaining)
        count: int | None
        if unframer.kept:
            count = min(most, len(unframer.kept))
            view[:count], unframer.kept = unframer.kept[:count], unframer.kept[count:]
        else:
            count = self._read(view[:most])
            if count is None:
                return None
        unframer.remaining -= count
        return count

    def _next_header(self) -> bool:
        """Whether a whole header is there, which is parsed then."""
        header = memoryview(bytearray(HEADER_LEN))
        unframer = self.unframer
        while not unframer.parse_header():
            count = self._read(header[len(unframer.kept) :])
            if count is None:
                return False
            unframer.kept += header[len(unframer.kept) :][:count]
        self._check_reset()
        return True

    def _read(self, view: memoryview) -> int | None:
        count = self.connection.read_now(view)
        if count == 0:
            raise LinkBroken("the neighbour closed the link")
        return count

    def _check_reset(self) -> None:
        if self.unframer.broken:
            raise LinkBroken("the neighbour reset the link")


class Bulk:
    """One exclusive use of a bulk link, from its opening to FIN both ways.

    One task may receive and another send at the same time. Anything but FIN both ways ends in the
    link being closed. After :class:`~phantom_tun.errors.PeerError` or
    :class:`~phantom_tun.errors.LinkBroken` only :meth:`reset` and :meth:`aclose` make sense.
    """

    __slots__ = ("_fin_sent", "_link", "_on_end", "kept", "peer")

    at_worker = False
    """Whether the link ends in a worker process, which could carry this use by itself."""

    def __init__(self, link: BulkLink, on_end: OnEnd) -> None:
        """``on_end`` is called exactly once, when the use is over for this side."""
        self.peer = link.peer
        self._link: BulkLink | None = link
        self._on_end = on_end
        self._fin_sent = False
        self.kept = False
        """Whether it stays in use when the handler it was given to has returned, until whoever has
        it then releases it."""

    async def hand_over(self, join: Join, on_joined: Callable[[], None]) -> bool:
        """Have the worker join this use with another, and wait until that is over; ``on_joined`` is
        called when both stand. False if this process has to do it."""
        del join, on_joined
        return False

    async def wait_readable(self) -> None:
        """Return when there may be something to receive, so that idle tunnels need no buffer.

        :raises LinkBroken: the link was closed by this side meanwhile.
        """
        link = self._live()
        if not (link.unframer.has_more or link.unframer.finished):
            await link.connection.wait_readable()

    @property
    def handle(self) -> int | None:
        """See :class:`~phantom_tun.net.links.connection.Connection`.

        :raises LinkBroken: the use is over.
        """
        return self._live().connection.handle

    def is_quiet(self) -> bool:
        """Whether the link is whole and there is nothing to receive."""
        link = self._link
        if link is None or link.unframer.has_more or link.unframer.finished:
            return False
        return link.connection.is_quiet()

    def check_after_fin(self) -> None:
        """Between the neighbour's FIN and ours nothing comes but a reset or the link's end. For
        when no write is under way.

        :raises LinkBroken: either has come, or this side has closed the link.
        """
        connection = self._live().connection
        if not connection.usable:
            raise LinkBroken("the link was closed")
        if not connection.is_quiet() and connection.read_now(memoryview(bytearray(1))) is not None:
            raise LinkBroken("the neighbour reset or closed the link after its FIN")

    async def wait_failure(self) -> None:
        """Between the neighbour's FIN and ours: wait for the only things that can come.

        :raises LinkBroken: always.
        """
        await self._live().connection.wait_readable()
        raise LinkBroken("the neighbour reset or closed the link after its FIN")

    def is_broken(self) -> bool:
        """Whether the use can't go on; for somebody who has all that can come but FIN, and reads no
        more."""
        link = self._link
        if link is None or link.connection.handle == -1:
            return True
        if not link.connection.usable:
            return False  # a write is under way, and will tell
        try:
            if not (link.unframer.finished or self.is_quiet()) and self.receive_now(1):
                return True
            if link.unframer.finished:
                self.check_after_fin()
        except (LinkBroken, PeerError):
            return True
        return False

    def has_room(self) -> bool:
        """Whether a little can be sent without waiting.

        :raises LinkBroken: the use is over.
        """
        return self._live().connection.has_room()

    def wait_arrival(self) -> Coroutine[Any, Any, None]:
        """Return when there may be something for :meth:`take`; after at least one turn of the
        scheduler.

        :raises LinkBroken: the link failed.
        """
        return self._live().wait_arrival()

    async def take(self, limit: int = REGION_LEN) -> Buffer | None:
        """As :meth:`receive_pooled`, at most ``limit`` bytes with their headers; but waits only for
        its turn: ``None`` if nothing is there.

        :raises LinkBroken: reset, or the link failed.
        :raises WireError: the neighbour broke the framing.
        """
        link = self._live()
        if link.moves_much:
            await link.wait_turn()
        return self.take_now(limit)

    def take_now(self, limit: int) -> Buffer | None:
        """The same without waiting for its turn: for those who take little."""
        link = self._live()
        buffer = link.take(limit)
        self._check_kept(link)
        return buffer

    async def receive_pooled(self) -> Buffer:
        """Wait, without memory and for at least one turn of the scheduler, then take all that is
        there: a buffer of the pool, which the caller gives back. It has no segments if FIN came;
        :attr:`at_end` says whether FIN came behind its bytes.

        :raises LinkBroken: reset, or the link failed.
        :raises WireError: the neighbour broke the framing.
        """
        link = self._live()
        buffer = await link.receive_pooled()
        self._check_kept(link)
        return buffer

    def receive_now(self, limit: int) -> bytes:
        """At most ``limit`` payload bytes that are there already; perhaps none.

        :raises LinkBroken: reset, or the link failed.
        :raises WireError: the neighbour broke the framing.
        """
        link = self._live()
        buffer = link.receive_now(HEADER_LEN + limit)
        if buffer is None:
            return b""
        data = b"".join(bytes(buffer.view[start:end]) for start, end in buffer.segments)
        POOL.give_back(buffer)
        self._check_kept(link)
        return data

    @property
    def at_end(self) -> bool:
        """Whether the neighbour's FIN has come."""
        return self._link is None or self._link.unframer.finished

    async def receive_exactly(self, count: int) -> bytes:
        """Exactly ``count`` bytes; later ones stay for the next receive.

        :raises LinkBroken: reset, ended by FIN before that, or the link failed.
        :raises WireError: the neighbour broke the framing.
        """
        data = bytearray(count)
        view = memoryview(data)
        got = 0
        link = self._live()
        while got < count:
            await link.wait_arrival()
            link = self._live()
            read = 0 if link.unframer.finished else link.receive_into(view[got:])
            while read:
                got += read
                read = link.receive_into(view[got:]) if got < count else None
            if read == 0:
                raise LinkBroken("the neighbour ended the use too early")
        return bytes(data)

    async def send(self, buffer: Buffer, *, fin: bool = False) -> None:
        """Send all segments of ``buffer``: headers are written before each one, then the whole
        region goes out at once, with FIN behind it if ``fin``. Segments follow each other with four
        bytes in between. Returns when the kernel has taken all: that is the backpressure.

        :raises LinkBroken: the link failed.
        """
        if buffer.segments:
            link = self._sending()
            await link.connection.write_all(self._frames(buffer, fin))
        elif fin:
            await self.send_fin()

    def begin_send(self, buffer: Buffer, *, fin: bool = False) -> bool:
        """The same for a buffer with segments, as far as the kernel takes it at once; whether that
        was all. If not, :meth:`end_send` comes before anything else, and ``buffer`` may not change.

        :raises LinkBroken: the link failed.
        """
        link = self._sending()
        return link.connection.begin_write(self._frames(buffer, fin))

    async def end_send(self) -> None:
        """Send what :meth:`begin_send`, or a send that was cancelled, has left; perhaps nothing.

        :raises LinkBroken: the link failed.
        """
        await self._live().connection.end_write()

    def _frames(self, buffer: Buffer, fin: bool) -> memoryview:
        region = write_data_headers(buffer.view, buffer.segments)
        if fin:
            self._fin_sent = True
            end = buffer.segments[-1].end
            buffer.view[end : end + HEADER_LEN] = _FIN
            region = buffer.view[buffer.segments[0].start - HEADER_LEN : end + HEADER_LEN]
        return region

    async def send_bytes(self, data: bytes) -> None:
        """Send ``data`` of any length.

        :raises LinkBroken: the link failed.
        """
        for start in range(0, len(data), MAX_PAYLOAD):
            frame = pack_frame(Frame.DATA, data[start : start + MAX_PAYLOAD])
            await self._sending().connection.write_all(frame)

    async def send_fin(self) -> None:
        """Say that nothing more follows. Idempotent.

        :raises LinkBroken: the link failed.
        """
        if not self._fin_sent:
            link = self._sending()
            self._fin_sent = True
            await link.connection.write_all(_FIN)

    def reset(self) -> None:
        """End the use and the link now. Idempotent, never waits, never raises."""
        link, self._link = self._link, None
        if link is not None:
            link.connection.write_now(_RESET)
            link.connection.close()
            self._on_end(link, Ending.BROKEN)

    async def aclose(self) -> None:
        """Release the link: back to the pool after FIN both ways (the neighbour's may still be on
        its way), otherwise :meth:`reset`. Idempotent, doesn't wait."""
        link = self._link
        if link is None:
            return
        if not (self._fin_sent and link.connection.usable and not link.unframer.remaining):
            self.reset()
            return
        self._link = None
        self._on_end(link, Ending.CLEAN if link.unframer.finished else Ending.HALF)

    def _live(self) -> BulkLink:
        if self._link is None:
            raise LinkBroken("this use of the link is over")
        return self._link

    def _sending(self) -> BulkLink:
        if self._fin_sent:
            raise LinkBroken("nothing can follow FIN")
        return self._live()

    def _check_kept(self, link: BulkLink) -> None:
        # The next OPEN can only come once the neighbour has our FIN too.
        unframer = link.unframer
        if unframer.finished and unframer.kept and not self._fin_sent:
            raise ProtocolViolation("bytes after FIN")

    def __repr__(self) -> str:
        return f"Bulk(over={self._link is None})"
