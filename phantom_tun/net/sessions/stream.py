"""One TCP-equivalent connection: :class:`~phantom_tun.endpoints.ByteStream` over a secure tunnel
(docs/spec/session.md, "Streams")."""

from __future__ import annotations

import trio

from phantom_tun.errors import StreamReset
from phantom_tun.net.links.turns import BULK, TURNS
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel
from phantom_tun.wire.session import MAX_DATA, FrameKind

_ENDED = memoryview(b"")


class SessionStream:
    """See :class:`~phantom_tun.endpoints.ByteStream`. One task may send and another receive.

    Data is cut into frames of at most ``MAX_DATA`` bytes, as equal as possible; a piece of
    :data:`~phantom_tun.endpoints.STREAM_PIECE` bytes makes one frame and one write to the link.
    """

    __slots__ = ("_secure", "_sent", "bytes_in", "bytes_out")

    def __init__(self, secure: SecureTunnel) -> None:
        self._secure = secure
        self._sent = 0
        self.bytes_in = 0
        self.bytes_out = 0

    async def receive(self) -> memoryview:
        """See :meth:`phantom_tun.endpoints.ByteStream.receive`."""
        if self._secure.got_end:
            await trio.lowlevel.checkpoint()
            return _ENDED
        kind, payload = await self._secure.receive()
        if kind is FrameKind.DATAGRAM:
            self.abort()
            raise StreamReset("a datagram in a stream")
        self.bytes_in += len(payload)
        return payload

    async def send_all(self, data: memoryview) -> None:
        """See :meth:`phantom_tun.endpoints.ByteStream.send_all`."""
        length = len(data)
        if not length:
            return
        pieces = -(-length // MAX_DATA)
        size = -(-length // pieces)
        for start in range(0, length, size):
            if self._sent >= BULK:
                await TURNS.wait()
            piece = data[start : start + size]
            await self._secure.send(FrameKind.DATA, piece)
            self._sent = len(piece)
            self.bytes_out += self._sent

    async def send_first(self, data: bytes) -> None:
        """Send what the application said before there was a connection, unless the request took
        it along.

        :raises StreamReset: as :meth:`send_all`.
        """
        if self._secure.took_first:
            self.bytes_out += len(data)
        else:
            await self.send_all(memoryview(data))

    async def send_end(self) -> None:
        """See :meth:`phantom_tun.endpoints.ByteStream.send_end`."""
        await self._secure.send_end()

    def is_broken(self) -> bool:
        """See :meth:`phantom_tun.endpoints.ByteStream.is_broken`."""
        return self._secure.is_broken()

    def abort(self) -> None:
        """See :meth:`phantom_tun.endpoints.ByteStream.abort`."""
        self._secure.finish(FrameKind.RESET)

    async def aclose(self) -> None:
        """See :meth:`phantom_tun.endpoints.ByteStream.aclose`. The goodbye itself is said in the
        background."""
        has_ended = self._secure.sent_end and self._secure.got_end
        self._secure.finish(None if has_ended else FrameKind.RESET)
        await trio.lowlevel.checkpoint()
