"""Connections inside this process: the links of a node with itself (an exit node may be the entry
node of the same connection), and of the nodes of a test."""

from __future__ import annotations

from collections import deque

import trio

from phantom_tun.errors import LinkBroken

CAPACITY = 262_144
"""Bytes that one direction holds before its writer waits."""


class Pipe:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self.ended = False
        self.changed = trio.Event()

    def put(self, data: bytes) -> None:
        """Append ``data`` and wake whoever waits."""
        if data:
            self.chunks.append(data)
            self.size += len(data)
            self.notify()

    def take(self, view: memoryview) -> int:
        """Move what has arrived into ``view``; returns how much."""
        filled = 0
        while filled < len(view) and self.has_arrived():
            chunk = self.chunks.popleft()
            part = chunk[: len(view) - filled]
            view[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(chunk):
                self.chunks.appendleft(chunk[len(part) :])
        self.size -= filled
        self.notify()
        return filled

    def end(self) -> None:
        """Nothing more will be put in."""
        self.ended = True
        self.notify()

    def has_arrived(self) -> bool:
        """Whether :meth:`take` gives something."""
        return bool(self.chunks)

    def has_ended(self) -> bool:
        """Whether all was taken and nothing follows."""
        return self.ended and not self.chunks

    def notify(self) -> None:
        """Wake whoever is in :meth:`wait_change`."""
        self.changed.set()
        self.changed = trio.Event()

    async def wait_change(self) -> None:
        """Return when something was put in, taken or ended."""
        await self.changed.wait()


class LoopbackConnection:
    """One end; see :class:`phantom_tun.net.links.connection.Connection`."""

    handle = None

    def __init__(self, incoming: Pipe, outgoing: Pipe) -> None:
        self._in = incoming
        self._out = outgoing
        self._closed = False
        self._torn = False
        self._left: bytes | None = None

    @property
    def usable(self) -> bool:
        """Neither closed nor in the middle of a write."""
        return not self._closed and not self._torn

    async def wait_readable(self) -> None:
        """Return when a read gives something."""
        await trio.lowlevel.checkpoint()
        while not self._closed:
            if self._in.has_arrived() or self._in.has_ended():
                return
            await self._in.wait_change()
        raise LinkBroken("the link was closed")

    async def wait_arrival(self) -> None:
        """See :meth:`wait_readable`."""
        await self.wait_readable()

    def read_now(self, view: memoryview) -> int | None:
        """Take what has arrived; ``None`` if nothing has."""
        if self._closed:
            raise LinkBroken("the link was closed")
        if self._in.has_arrived() or self._in.has_ended():
            return self._in.take(view)
        return None

    def has_room(self) -> bool:
        """Whether :meth:`write_all` wouldn't wait."""
        return not self._alive() or self._out.size < CAPACITY

    async def read_some(self, view: memoryview) -> int:
        """Take what has arrived, waiting for it; 0 at the end."""
        await self.wait_readable()
        return self._in.take(view)

    async def write_all(self, data: memoryview | bytes) -> None:
        """Put ``data`` in, waiting for room."""
        self._keep(data)
        await trio.lowlevel.checkpoint()
        await self.end_write()

    def begin_write(self, data: memoryview | bytes) -> bool:
        """All of ``data`` if there is room, else nothing of it."""
        self._keep(data)
        if self.has_room():
            self._put()
        return self._left is None

    async def end_write(self) -> None:
        """Wait for room for what is left."""
        if self._left is not None:
            while not self.has_room():
                await self._out.wait_change()
            self._put()

    def _keep(self, data: memoryview | bytes) -> None:
        if self._torn:
            raise LinkBroken("an earlier write was cut short")
        self._torn = True
        self._left = bytes(data)

    def _put(self) -> None:
        left, self._left = self._left, None
        if left is None or not self._alive():
            raise LinkBroken("the link was closed")
        self._out.put(left)
        if not self._alive():
            raise LinkBroken("the link broke")
        self._torn = False

    def write_now(self, data: bytes) -> None:
        """Put ``data`` in if there is room and no write under way."""
        if self.usable and self._alive() and self._out.size < CAPACITY:
            self._out.put(data)

    def is_quiet(self) -> bool:
        """Whole, and nothing has arrived."""
        return self.usable and not self._in.chunks and not self._in.ended

    def close(self) -> None:
        """End both directions; what was written can still be read at the other end."""
        self._closed = True
        self._in.end()
        self._out.end()

    def _alive(self) -> bool:
        return not self._closed and not self._out.ended


def connection_pair() -> tuple[LoopbackConnection, LoopbackConnection]:
    """Two joined ends."""
    there, back = Pipe(), Pipe()
    return LoopbackConnection(back, there), LoopbackConnection(there, back)
