"""Messages with kept boundaries: :class:`~phantom_tun.endpoints.DatagramStream` over a secure
tunnel (docs/spec/session.md, "Datagrams").

A tunnel is reliable, so what can't be sent in time is dropped here, before it gets in: the oldest
first, for what is new is worth more.
"""

from __future__ import annotations

from collections import deque

import trio

from phantom_tun.errors import StreamReset, UsageError
from phantom_tun.net.sessions.ending import finish
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel
from phantom_tun.queues import QueueShares
from phantom_tun.tunnel.channel import RECORD
from phantom_tun.wire.session import FRAME_HEADER_LEN, MAX_DATAGRAM, FrameKind

MAX_QUEUED = 1024
"""Messages that wait for the tunnel."""
SHARES = QueueShares(32 << 20, most=1 << 20, least=64 << 10)
"""Their bytes, of all flows of the process; one message is always taken."""


class SessionDatagrams:
    """See :class:`~phantom_tun.endpoints.DatagramStream`. :meth:`run` does the sending: what has
    queued up goes out in one write."""

    __slots__ = (
        "_has_failed",
        "_queue",
        "_queued_bytes",
        "_secure",
        "_waiting",
        "bytes_in",
        "bytes_out",
        "dropped",
    )

    resumed, is_lost = 0, False
    """A flow ends with its tunnel; the next datagram begins another one."""

    def __init__(self, secure: SecureTunnel) -> None:
        self._secure = secure
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()
        self._has_failed = False
        self.bytes_in = 0
        self.bytes_out = 0
        self.dropped = 0
        """Messages that came faster than the tunnel takes them."""

    @property
    def path_number(self) -> int:
        """The path of ours that carries it."""
        return self._secure.path_number

    async def wait_closed(self) -> None:
        """Wait until nothing of its tunnel is in use any more."""
        await self._secure.closed.wait()

    async def receive(self) -> bytes | None:
        """See :meth:`phantom_tun.endpoints.DatagramStream.receive`."""
        if self._secure.got_end:
            await trio.lowlevel.checkpoint()
            return None
        kind, payload = await self._secure.receive()
        if kind is FrameKind.END:
            return None
        if kind is FrameKind.DATA:
            self.abort()
            raise StreamReset("stream data among datagrams")
        self.bytes_in += len(payload)
        return bytes(payload)

    async def send(self, message: bytes | memoryview) -> None:
        """See :meth:`phantom_tun.endpoints.DatagramStream.send`. Never waits for the tunnel.

        :raises UsageError: longer than a datagram can be.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if len(message) > MAX_DATAGRAM:
            raise UsageError("a datagram has at most 65,507 bytes")
        if self._has_failed or self._secure.is_ending:
            raise StreamReset("the flow is over")
        self._queue.append(bytes(message))
        self._queued_bytes += len(message)
        while len(self._queue) > MAX_QUEUED or (
            self._queued_bytes > SHARES.each and len(self._queue) > 1
        ):
            self._queued_bytes -= len(self._queue.popleft())
            self.dropped += 1
        self._waiting.unpark()

    def abort(self) -> None:
        """End now. Idempotent, never waits, never raises."""
        finish(self._secure, FrameKind.END)
        self._waiting.unpark()

    async def aclose(self) -> None:
        """See :meth:`phantom_tun.endpoints.DatagramStream.aclose`."""
        self.abort()
        await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        """Send what is queued until the flow is over."""
        SHARES.members += 1
        try:
            while not self._secure.is_ending:
                if self._queue:
                    await self._send_batch()
                else:
                    await self._waiting.park()
        except StreamReset:
            self._has_failed = True
        finally:
            SHARES.members -= 1
            self._queue.clear()
            self._queued_bytes = 0

    async def _send_batch(self) -> None:
        batch = [self._queue.popleft()]
        length = FRAME_HEADER_LEN + len(batch[0])
        while self._queue and length + FRAME_HEADER_LEN + len(self._queue[0]) <= RECORD:
            message = self._queue.popleft()
            length += FRAME_HEADER_LEN + len(message)
            batch.append(message)
        payload = length - FRAME_HEADER_LEN * len(batch)
        self._queued_bytes -= payload
        if length > RECORD:
            await self._secure.send(FrameKind.DATAGRAM, memoryview(batch[0]))
        else:
            await self._secure.send_messages(batch)
        self.bytes_out += payload
