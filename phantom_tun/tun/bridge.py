"""Joins a kernel TCP socket to a stream of the overlay: the hot path of TCP, after the pump.

Each direction moves up to 64 KiB at a time and costs one or two trio checkpoints per chunk. A
reader that stops on either side stops the other direction's reading: nothing is queued here but the
chunk in hand. Ends and resets pass both ways::

    kernel socket                          overlay stream
    FIN (recv → nothing)          ──►      send_end
    RST (recv or send fails)      ──►      abort
    shutdown(WR)                  ◄──      receive → nothing
    RST (SO_LINGER 0 and close)   ◄──      StreamReset
"""

from __future__ import annotations

import socket
import struct

import trio

from phantom_tun.endpoints import ByteStream
from phantom_tun.errors import PhantomError
from phantom_tun.tun.flows import CHUNK, BufferPool, Flow

_LINGER_RESET = struct.pack("ii", 1, 0)
_TCP_CLOSE = 7
"""TCP_INFO's state of a socket whose FIN and the other side's have both been acknowledged."""
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
"""From asm-generic/socket.h; Python doesn't name them."""
_CHUNKS_PER_TURN = 4
"""After so many chunks in a row a direction lets other tasks run, even if it never had to wait."""
_RELEASE_TIME = 5.0
"""Seconds the overlay may take to release a stream that was aborted."""
_DRAIN_CHECKS = (0.001, 0.02, 0.1, 0.5, 2.0)
"""Seconds between looks at a socket that has yet to deliver its last bytes; the last repeats."""


def prepare(sock: socket.socket, buffer_size: int) -> None:
    """Non-blocking, no delay, bounded kernel buffers (the kernel's own idea of a bound is tens of
    megabytes per connection)."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for forced, plain in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        # The kernel doubles what it is told.
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, buffer_size // 2)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, buffer_size // 2)


def reset(sock: socket.socket) -> None:
    """Close so that the other side sees RST. Idempotent."""
    if sock.fileno() != -1:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        sock.close()


async def release(stream: ByteStream) -> None:
    """Reset a stream nobody needs any more, even when cancelled."""
    stream.abort()
    with trio.move_on_after(_RELEASE_TIME, shield=True):
        await stream.aclose()


class Bridge:
    """One connection; both of its ends belong to the bridge from now on.

    :param sock: connected, :func:`prepare` d.
    """

    __slots__ = ("_buffers", "_drain_time", "_fd", "_flow", "_has_failed", "_is_unwatched", "_sock",
                 "_stream")  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        stream: ByteStream,
        flow: Flow,
        buffers: BufferPool,
        drain_time: float,
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._stream = stream
        self._flow = flow
        self._buffers = buffers
        self._drain_time = drain_time
        self._has_failed = False
        self._is_unwatched = False

    async def run(self) -> None:
        """Return when the connection is over and the kernel has delivered its last byte."""
        flow = self._flow
        flow.state = "open"
        is_clean = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._downwards, nursery.cancel_scope)
                await self._upwards(nursery.cancel_scope)
            if not self._has_failed:
                flow.state = "draining"
                await self._stream.aclose()
                is_clean = await self._delivered()
        finally:
            self._is_unwatched = False
            if is_clean:
                self._sock.close()
            else:
                reset(self._sock)
                await release(self._stream)

    def end_if_dead(self) -> None:
        """End if the application has reset the connection while nobody looked at its socket: the
        overlay has yet to take a chunk, or the application had half-closed before. Or if the far
        side has, which had half-closed before, and the application says nothing."""
        if self._is_unwatched:
            is_dead = bool(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        else:
            is_dead = self._flow.state == "half-closed there" and self._stream.is_broken()
        if is_dead:
            self._flow.scope.cancel()

    async def _upwards(self, scope: trio.CancelScope) -> None:
        try:
            while await self._move_what_is_there():
                await trio.lowlevel.wait_readable(self._fd)
            self._is_unwatched = True
            self._flow.state = "half-closed here"
            await self._stream.send_end()
        except (OSError, PhantomError):
            self._has_failed = True
            scope.cancel()

    async def _move_what_is_there(self) -> bool:
        """Send on until the socket has nothing more for now; false once it has ended."""
        sock, send_all, flow = self._sock, self._stream.send_all, self._flow
        buffer = self._buffers.take()
        try:
            turns = 0
            while True:
                try:
                    length = sock.recv_into(buffer)
                except BlockingIOError:
                    return True
                if not length:
                    return False
                self._is_unwatched = True
                await send_all(buffer[:length])
                self._is_unwatched = False
                flow.sent += length
                if length < CHUNK:
                    return True
                turns += 1
                if turns == _CHUNKS_PER_TURN:
                    turns = 0
                    await trio.lowlevel.checkpoint()
        finally:
            self._buffers.give(buffer)

    async def _downwards(self, scope: trio.CancelScope) -> None:
        sock, fd, receive, flow = self._sock, self._fd, self._stream.receive, self._flow
        turns = 0
        try:
            while data := await receive():
                length = len(data)
                done = 0
                while done < length:
                    try:
                        done += sock.send(data[done:] if done else data)
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(fd)
                flow.received += length
                turns += 1
                if turns == _CHUNKS_PER_TURN:
                    turns = 0
                    await trio.lowlevel.checkpoint()
            flow.state = "half-closed there"
            sock.shutdown(socket.SHUT_WR)
        except (OSError, PhantomError):
            self._has_failed = True
            scope.cancel()

    async def _delivered(self) -> bool:
        """Wait until the application has taken everything, as a closed socket would go on trying:
        the address table must know the connection until then."""
        checks = iter(_DRAIN_CHECKS)
        pause = 0.0
        with trio.move_on_after(self._drain_time):
            while self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSE:
                pause = next(checks, pause)
                await trio.sleep(pause)
            return True
        return False
