"""Connections without TLS: between processes of this node, over stream socket pairs of the kernel
(docs/spec/workers.md), and of strangers that don't begin it (docs/spec/links.md, "The door")."""

from __future__ import annotations

import socket
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from trio.lowlevel import checkpoint

from phantom_tun.errors import LinkBroken
from phantom_tun.net.links.socket_connection import SocketConnection
from phantom_tun.net.links.tls import linger


class PlainConnection(SocketConnection):
    """A :class:`~phantom_tun.net.links.connection.Connection` over a stream socket as it is."""

    __slots__ = ()

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        super().__init__(stream)

    def wait_readable(self) -> Coroutine[Any, Any, None]:
        """Return when a read gives something; after at least one turn of the scheduler."""
        return self._wait()

    def wait_arrival(self) -> Coroutine[Any, Any, None]:
        """As :meth:`wait_readable`."""
        return self._wait()

    def read_now(self, view: memoryview) -> int | None:
        """Take what is there; ``None`` if nothing is, 0 at the end."""
        if self._closed:
            raise LinkBroken("the link was closed")
        try:
            return self._socket.recv_into(view)
        except BlockingIOError:
            return None
        except OSError as error:
            raise LinkBroken("the link failed") from error

    async def read_some(self, view: memoryview) -> int:
        """Take what has arrived, waiting for it; 0 at the end."""
        await checkpoint()
        while (count := self.read_now(view)) is None:
            await self._wait()
        return count

    def _put(self, view: memoryview) -> memoryview:
        try:
            while view:
                view = view[self._socket.send(view) :]
        except BlockingIOError:
            pass
        except OSError as error:
            raise LinkBroken("the link failed") from error
        return view

    def write_now(self, data: bytes) -> None:
        """Send ``data`` if there is room for it and no write under way."""
        if self.usable:
            try:
                self._torn = self._socket.send(data) < len(data)
            except OSError:
                self._torn = True

    def is_quiet(self) -> bool:
        """Whole, and nothing has arrived, not even the end."""
        if not self.usable:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def close_gently(self) -> None:
        """:meth:`close` so that what was sent arrives although the peer goes on sending."""
        if self.usable:
            await linger(self._socket)
        self.close()

    def close(self) -> None:
        """End it; what was written still arrives."""
        if not self._closed:
            self._begin_close()
            with suppress(OSError):
                self._socket.close()


def socket_pair(send_buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Both ends of a new one; ``send_buffer``: bytes that wait in each direction, the kernel's
    default unless given.

    :raises OSError: no descriptors left.
    """
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if send_buffer is not None:
        for end in pair:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    return pair
