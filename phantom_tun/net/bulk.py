"""Bulk links and their exclusive uses (docs/spec/links.md, "Bulk links")."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from phantom_tun.errors import LinkBroken, ProtocolViolation, WireError
from phantom_tun.net.buffers import Buffer
from phantom_tun.net.connection import Connection
from phantom_tun.net.peers import Peer
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


class BulkLink:
    """One connection of the kind that carries one use after the other."""

    __slots__ = ("connection", "idle_since", "peer", "unframer", "uses")

    def __init__(self, connection: Connection, peer: Peer) -> None:
        self.connection = connection
        self.peer = peer
        self.unframer = BulkUnframer()
        self.idle_since = 0.0
        self.uses = 0

    def is_quiet(self) -> bool:
        """Whether nothing has arrived since the last use; for the side that starts uses."""
        return not self.unframer.kept and self.connection.is_quiet()

    async def send_opening(self, opening: bytes) -> None:
        """Begin a use.

        :raises LinkBroken: the connection failed.
        """
        self.unframer.begin()
        await self.connection.write_all(pack_frame(Frame.OPEN, opening))

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
            count = await self.connection.read_some(view[filled:])
            if not count:
                return None
            filled += count

    async def receive_fin(self) -> None:
        """Wait for the FIN of a use that nobody reads any more.

        :raises LinkBroken: the connection failed or ended, or the use was reset.
        :raises ProtocolViolation: DATA came.
        """
        await self._next_header()
        if self.unframer.remaining:
            raise ProtocolViolation("data for a use that is over")

    async def receive(self, buffer: Buffer) -> None:
        """See :meth:`Bulk.receive`; leaves ``buffer.segments`` empty at FIN."""
        unframer = self.unframer
        view = buffer.view
        while True:
            end = unframer.lead_in(view)
            if not unframer.has_more:
                count = await self.connection.read_some(view[end:REGION_LEN])
                if not count:
                    raise LinkBroken("the neighbour closed the link")
                end += count
            buffer.segments = unframer.parse(view, end)
            if buffer.segments or unframer.finished:
                return
            self._check_reset()

    async def receive_into(self, view: memoryview) -> int:
        """Read up to ``len(view)`` payload bytes, not a byte more from the connection; 0 at FIN."""
        unframer = self.unframer
        if not unframer.remaining:
            await self._next_header()
            if unframer.finished:
                return 0
        most = min(len(view), unframer.remaining)
        if unframer.kept:
            count = min(most, len(unframer.kept))
            view[:count], unframer.kept = unframer.kept[:count], unframer.kept[count:]
        else:
            count = await self.connection.read_some(view[:most])
            if not count:
                raise LinkBroken("the neighbour closed the link")
        unframer.remaining -= count
        return count

    async def _next_header(self) -> None:
        header = memoryview(bytearray(HEADER_LEN))
        unframer = self.unframer
        while not unframer.parse_header():
            count = await self.connection.read_some(header[len(unframer.kept) :])
            if not count:
                raise LinkBroken("the neighbour closed the link")
            unframer.kept += header[len(unframer.kept) :][:count]
        self._check_reset()

    def _check_reset(self) -> None:
        if self.unframer.broken:
            raise LinkBroken("the neighbour reset the link")


class Bulk:
    """One exclusive use of a bulk link, from its opening to FIN both ways.

    One task may receive and another send at the same time. Anything but FIN both ways ends in the
    link being closed. After :class:`~phantom_tun.errors.PeerError` or
    :class:`~phantom_tun.errors.LinkBroken` only :meth:`reset` and :meth:`aclose` make sense.
    """

    __slots__ = ("_fin_sent", "_link", "_on_end", "peer")

    def __init__(self, link: BulkLink, on_end: Callable[[Ending], None]) -> None:
        """``on_end`` is called exactly once, when the use is over for this side."""
        self.peer = link.peer
        self._link: BulkLink | None = link
        self._on_end = on_end
        self._fin_sent = False

    async def wait_readable(self) -> None:
        """Return when :meth:`receive` may have something, so that idle tunnels need no buffer.

        :raises LinkBroken: the link was closed by this side meanwhile.
        """
        link = self._live()
        if not (link.unframer.has_more or link.unframer.finished):
            await link.connection.wait_readable()

    async def receive(self, buffer: Buffer) -> bool:
        """Wait for bytes and take all that is there: at least one byte in ``buffer.segments``, or
        false (and no segments) at FIN.

        :raises LinkBroken: reset, or the link failed.
        :raises WireError: the neighbour broke the framing.
        """
        link = self._live()
        buffer.segments = []
        if not link.unframer.finished:
            await link.receive(buffer)
            self._check_kept(link)
        return bool(buffer.segments)

    async def receive_exactly(self, count: int) -> bytes:
        """Exactly ``count`` bytes; later ones stay for the next receive.

        :raises LinkBroken: reset, ended by FIN before that, or the link failed.
        :raises WireError: the neighbour broke the framing.
        """
        data = bytearray(count)
        view = memoryview(data)
        got = 0
        while got < count:
            link = self._live()
            read = 0 if link.unframer.finished else await link.receive_into(view[got:])
            if not read:
                raise LinkBroken("the neighbour ended the use too early")
            got += read
        return bytes(data)

    async def send(self, buffer: Buffer) -> None:
        """Send all segments of ``buffer``: headers are written before each one, then the whole
        region goes out at once. Segments follow each other with four bytes in between. Returns
        when the kernel has taken all: that is the backpressure.

        :raises LinkBroken: the link failed.
        """
        if buffer.segments:
            region = write_data_headers(buffer.view, buffer.segments)
            await self._sending().connection.write_all(region)

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
            self._on_end(Ending.BROKEN)

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
        self._on_end(Ending.CLEAN if link.unframer.finished else Ending.HALF)

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
