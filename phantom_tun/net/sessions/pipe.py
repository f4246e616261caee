"""A routing tunnel and its channel as one: what is written goes out whole, one thing at a time, and
what comes in goes to a reader of frames. What the frames mean is for others.

As soon as a part of something may be missing, in either direction, the pipe is torn and carries
nothing more.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from phantom_tun.errors import LinkBroken, PeerError, StreamReset
from phantom_tun.net.links.buffers import HEADER_LEN, POOL, Buffer, Segment
from phantom_tun.net.sessions.frames import FrameReader
from phantom_tun.net.sessions.ports import Tunnel
from phantom_tun.tunnel.channel import Channel

Encode = Callable[[memoryview, int], int]
"""Writes something to a region, from a position on; returns its end."""


class Pipe:
    """Carries one connection; a further one of the same session has its own."""

    __slots__ = (
        "_receiving",
        "channel",
        "closed",
        "got_fin",
        "holds_flight",
        "is_cut",
        "is_stopped",
        "is_torn",
        "reader",
        "receive_lock",
        "send_lock",
        "tunnel",
    )

    def __init__(self, channel: Channel, tunnel: Tunnel, reader: FrameReader) -> None:
        self.channel = channel
        self.tunnel = tunnel
        tunnel.rest_with(channel)
        self.reader = reader
        self.send_lock = trio.Lock()
        self.receive_lock = trio.Lock()
        self._receiving: trio.CancelScope | None = None
        self.holds_flight = False
        """What completes the TLS handshake waits for something to go with."""
        self.got_fin = False
        self.is_cut = False
        """A send was cancelled half-way: the rest goes before anything else."""
        self.is_torn = False
        self.is_stopped = False
        """Nothing more is sent or received, for these two reasons or another one."""
        self.closed = trio.Event()
        """Set when nothing of the tunnel is in use any more."""

    def check(self) -> None:
        """
        :raises StreamReset: it is stopped.
        """
        if self.is_stopped:
            raise StreamReset("the connection is over")

    def tear(self, reason: str) -> StreamReset:
        """It can't be used any more; what to raise for ``reason``."""
        self.is_torn = self.is_stopped = True
        return StreamReset(reason)

    def stop(self) -> None:
        """Let nobody send or receive any more. What is being sent is."""
        self.is_stopped = True
        if self._receiving is not None:
            self._receiving.cancel()

    def tear_down(self) -> None:
        """Nothing of it is needed any more. Idempotent."""
        if self.closed.is_set():
            return
        # A released tunnel doesn't notice.
        self.tunnel.reset()
        self.reader.discard()
        self.closed.set()

    # --- out ------------------------------------------------------------------------------------

    async def write(self, encode: Encode, *, fin: bool = False) -> None:
        """Send what ``encode`` gives, after what the tunnel owes; with ``fin``, as the last.

        :raises StreamReset: it is stopped, or couldn't be sent.
        """
        await _acquire(self.send_lock)
        try:
            self.check()
            await self.write_locked(encode, fin=fin)
        finally:
            self.send_lock.release()

    async def write_locked(self, encode: Encode, *, fin: bool = False) -> None:
        """The same for somebody who has ``send_lock``, even if it is stopped."""
        if self.is_cut:
            await self._end_cut()
        self.holds_flight = False  # whatever TLS sends next begins with it
        owed, self.tunnel.owed = self.tunnel.owed, b""
        buffer = POOL.take()
        try:
            start = HEADER_LEN + len(owed)
            buffer.view[HEADER_LEN:start] = owed
            end = encode(buffer.view, start)
            if end > HEADER_LEN:
                buffer.segments = [Segment(HEADER_LEN, end)]
                await self.tunnel.send(buffer, fin=fin)
            elif fin:
                await self.tunnel.send_fin()
        except trio.Cancelled:
            self.is_cut = True
            raise
        except BaseException as error:
            # What TLS has encrypted must go out whole: a part of it may be missing now.
            self.is_torn = self.is_stopped = True
            if isinstance(error, PeerError):
                raise StreamReset("the secure channel failed") from error
            raise
        finally:
            if not self.is_cut:  # else the rest is in it
                POOL.give_back(buffer)

    async def _end_cut(self) -> None:
        try:
            await self.tunnel.end_send()
        except StreamReset:
            self.is_torn = self.is_stopped = True
            raise
        self.is_cut = False

    # --- in -------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Wait for bytes from the tunnel and hand them to the reader; no memory is held while
        waiting.

        :raises StreamReset: it is stopped, by the end of what comes, too, or the tunnel died.
        """
        await _acquire(self.receive_lock)
        try:
            self.check()
            with trio.CancelScope() as self._receiving:
                try:
                    buffer = await self.tunnel.receive_pooled()
                except StreamReset:
                    self.is_torn = self.is_stopped = True
                    raise
                except (PeerError, LinkBroken) as error:
                    raise self.tear("the tunnel broke") from error
                self._take(buffer)
            self._receiving = None
            if not self.got_fin:
                self.check()  # whoever stops it may still have something to say
        finally:
            self.receive_lock.release()
        if self.got_fin:
            raise StreamReset("the tunnel ended in the middle of the stream")

    def _take(self, buffer: Buffer) -> None:
        if buffer.segments:
            self.reader.load(buffer)
            return
        self.got_fin = self.is_stopped = True
        POOL.give_back(buffer)


async def _acquire(lock: trio.Lock) -> None:
    try:
        lock.acquire_nowait()  # saves a checkpoint, which costs more than the lock
    except trio.WouldBlock:
        await lock.acquire()
