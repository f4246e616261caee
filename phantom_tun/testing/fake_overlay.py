"""An overlay in memory, whose far side is a test."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import trio

from phantom_tun.endpoints import ByteStream, DatagramStream, Endpoint
from phantom_tun.errors import StreamReset

Kind = Literal["stream", "datagrams", "echo"]

_CAPACITY = 4


class _Direction:
    """Chunks from one end of a pair to the other; ``None`` is the end of them."""

    def __init__(self) -> None:
        self.chunks: deque[bytes | None] = deque()
        self.changed = trio.lowlevel.ParkingLot()
        self.is_reset = False

    async def put(self, chunk: bytes | None) -> None:
        await trio.lowlevel.checkpoint()
        while len(self.chunks) >= _CAPACITY and not self.is_reset:
            await self.changed.park()
        if self.is_reset:
            raise StreamReset("reset by the other end")
        self.chunks.append(chunk)
        self.changed.unpark_all()

    async def get(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        while not self.chunks and not self.is_reset:
            await self.changed.park()
        if self.is_reset:
            raise StreamReset("reset by the other end")
        chunk = self.chunks.popleft()
        self.changed.unpark_all()
        return chunk

    def reset(self) -> None:
        self.is_reset = True
        self.changed.unpark_all()


class MemoryStream:
    """One end of :func:`memory_streams`; implements :class:`phantom_tun.endpoints.ByteStream`."""

    def __init__(self, out: _Direction, back: _Direction) -> None:
        self._out = out
        self._back = back
        self._ends = 0
        self.is_closed = False

    async def receive(self) -> memoryview:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        chunk = await self._back.get()
        if chunk is None:
            self._ends += 1
        return memoryview(chunk or b"")

    async def send_all(self, data: memoryview) -> None:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        await self._out.put(bytes(data))

    async def send_end(self) -> None:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        await self._out.put(None)
        self._ends += 1

    def is_broken(self) -> bool:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        return self._back.is_reset

    def abort(self) -> None:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        self._out.reset()
        self._back.reset()

    async def aclose(self) -> None:
        """See :class:`~phantom_tun.endpoints.ByteStream`."""
        self.is_closed = True
        if self._ends < 2:
            self.abort()
        await trio.lowlevel.checkpoint()


class MemoryDatagrams:
    """One end of a pair; implements :class:`phantom_tun.endpoints.DatagramStream`."""

    def __init__(self, out: _Direction, back: _Direction) -> None:
        self._out = out
        self._back = back
        self.is_closed = False

    async def receive(self) -> bytes | None:
        """See :class:`~phantom_tun.endpoints.DatagramStream`."""
        return await self._back.get()

    async def send(self, message: bytes | memoryview) -> None:
        """See :class:`~phantom_tun.endpoints.DatagramStream`."""
        await self._out.put(bytes(message))

    def break_down(self) -> None:
        """The tunnel dies."""
        self._out.reset()
        self._back.reset()

    async def aclose(self) -> None:
        """See :class:`~phantom_tun.endpoints.DatagramStream`."""
        if not self.is_closed:
            self.is_closed = True
            self._out.chunks.append(None)
            self._out.changed.unpark_all()
        await trio.lowlevel.checkpoint()


def memory_streams() -> tuple[MemoryStream, MemoryStream]:
    """Two ends of a stream that holds a few chunks per direction."""
    there, back = _Direction(), _Direction()
    return MemoryStream(there, back), MemoryStream(back, there)


def memory_datagrams() -> tuple[MemoryDatagrams, MemoryDatagrams]:
    """Two ends of a datagram stream that holds a few messages per direction."""
    there, back = _Direction(), _Direction()
    return MemoryDatagrams(there, back), MemoryDatagrams(back, there)


@dataclass(slots=True)
class Call:
    """What the interface asked of a :class:`MemoryOverlay`; the test answers."""

    kind: Kind
    source: Endpoint
    target: Endpoint
    first: bytes = b""
    """The application's first bytes."""
    _answered: trio.Event = field(default_factory=trio.Event)
    _failure: Exception | None = None
    _near: MemoryStream | MemoryDatagrams | None = None
    is_cancelled: bool = False

    def accept_stream(self) -> MemoryStream:
        """Let it succeed; returns the far end."""
        self._near, far = memory_streams()
        self._answered.set()
        return far

    def accept_datagrams(self) -> MemoryDatagrams:
        """The same for datagrams and echo."""
        self._near, far = memory_datagrams()
        self._answered.set()
        return far

    def fail(self, failure: Exception) -> None:
        """Let it fail."""
        self._failure = failure
        self._answered.set()

    async def wait_answer(self) -> MemoryStream | MemoryDatagrams:
        """For the overlay: the near end."""
        try:
            await self._answered.wait()
        except trio.Cancelled:
            self.is_cancelled = True
            raise
        if self._failure is not None:
            raise self._failure
        if self._near is None:
            raise StreamReset("answered with nothing")
        return self._near


class MemoryOverlay:
    """Implements :class:`phantom_tun.endpoints.Overlay`: a test takes the calls and answers."""

    def __init__(self) -> None:
        self._send, self._calls = trio.open_memory_channel[Call](1000)
        self.steady: set[Endpoint] = set()
        """Services that connections to are taken to come to be."""

    async def wait_call(self) -> Call:
        """What the interface asks next."""
        return await self._calls.receive()

    def calls_waiting(self) -> int:
        """How many calls nobody has taken yet."""
        return self._calls.statistics().current_buffer_used

    def is_steady(self, source: Endpoint, target: Endpoint) -> bool:
        """See :class:`~phantom_tun.endpoints.Overlay`."""
        del source
        return target in self.steady

    async def open_stream(
        self, source: Endpoint, target: Endpoint, first: bytes = b""
    ) -> ByteStream:
        """See :class:`~phantom_tun.endpoints.Overlay`."""
        near = await self._call("stream", source, target, first)
        if not isinstance(near, MemoryStream):
            raise StreamReset("answered with datagrams")
        return near

    async def open_datagrams(self, source: Endpoint, target: Endpoint) -> DatagramStream:
        """See :class:`~phantom_tun.endpoints.Overlay`."""
        return await self._open_datagrams("datagrams", source, target)

    async def open_echo(self, source: Endpoint, target: Endpoint) -> DatagramStream:
        """See :class:`~phantom_tun.endpoints.Overlay`."""
        return await self._open_datagrams("echo", source, target)

    async def _open_datagrams(
        self, kind: Kind, source: Endpoint, target: Endpoint
    ) -> MemoryDatagrams:
        near = await self._call(kind, source, target)
        if not isinstance(near, MemoryDatagrams):
            raise StreamReset("answered with a stream")
        return near

    async def _call(
        self, kind: Kind, source: Endpoint, target: Endpoint, first: bytes = b""
    ) -> MemoryStream | MemoryDatagrams:
        call = Call(kind, source, target, first)
        self._send.send_nowait(call)
        return await call.wait_answer()
