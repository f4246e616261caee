"""What connections over a non-blocking socket have in common: whether they are usable, and waiting
for what arrives."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio
from trio.lowlevel import notify_closing, wait_readable, wait_writable

from phantom_tun.errors import LinkBroken
from phantom_tun.net.links.rest import forget, has_room

BROKEN = (OSError, trio.ClosedResourceError)
"""What a socket raises when the connection is no more; ssl.SSLError is an OSError."""


Wait = Callable[[socket.socket], Awaitable[None]]
"""Trio's ways of waiting for a socket."""


class SocketConnection:
    """The part of a :class:`~phantom_tun.net.links.connection.Connection` that is the same whatever
    lies between it and the kernel."""

    __slots__ = ("_closed", "_left", "_socket", "_torn")

    _socket: socket.socket

    def __init__(self, stream: socket.socket) -> None:
        self._socket = stream
        self._closed = False
        self._torn = False
        self._left: memoryview | None = None
        """Of a write that was begun."""

    @property
    def usable(self) -> bool:
        """Neither closed nor in the middle of a write."""
        return not self._closed and not self._torn

    @property
    def handle(self) -> int:
        """See :class:`~phantom_tun.net.links.connection.Connection`."""
        return self._socket.fileno()

    def has_room(self) -> bool:
        """Whether the kernel would take bytes at once."""
        return self._closed or has_room(self._socket.fileno())

    async def write_all(self, data: memoryview | bytes) -> None:
        """See :class:`~phantom_tun.net.links.connection.Connection`."""
        if not self.begin_write(data):
            await self.end_write()

    def begin_write(self, data: memoryview | bytes) -> bool:
        """See :class:`~phantom_tun.net.links.connection.Connection`."""
        if self._closed or self._torn:
            raise LinkBroken("the link was closed or an earlier write cut short")
        self._torn = True
        left = self._put(memoryview(data))
        if left:
            self._left = left
            return False
        self._torn = False
        return True

    async def end_write(self) -> None:
        """See :class:`~phantom_tun.net.links.connection.Connection`."""
        left = self._left
        if left is None:
            return
        while left:
            await self._wait(wait_writable)
            self._left = left = self._put(left)
        self._left = None
        self._torn = False

    def _put(self, view: memoryview) -> memoryview:
        """Hand over what the kernel takes at once; what is left."""
        raise NotImplementedError

    def _begin_close(self) -> None:
        """Whoever waits on this learns that it is closed."""
        self._closed = True
        notify_closing(self._socket)
        forget(self._socket.fileno())

    async def _wait(self, until: Wait = wait_readable) -> None:
        """Return when the kernel has something, or takes something; after at least one turn of the
        scheduler."""
        if self._closed:
            raise LinkBroken("the link was closed")
        try:
            await until(self._socket)
        except BROKEN as error:
            raise LinkBroken("the link was closed") from error
