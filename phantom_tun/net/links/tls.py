"""TLS over TCP without layers in between: a non-blocking ``ssl.SSLSocket``, trio only waits
(docs/spec/links.md, "Connections").

One thread uses a socket, so a reader and a writer task never touch it at the same moment. Several
times faster than ``trio.SSLStream`` or a ``MemoryBIO`` loop.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint,
    wait_readable,
    wait_writable,
)

from phantom_tun.crypto.openssl import forget_errors
from phantom_tun.errors import LinkBroken
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.socket_connection import SocketConnection
from phantom_tun.wire.door import LinkKind
from phantom_tun.wire.nodes import IpAddress

FULL_RECORD = 16_384
"""Bytes of the longest TLS record; a sender that has more begins another."""

LOOK_AGAIN = 8
"""After so many reads that took one short record each, the next one looks for a second."""

LINGER = 2.0
"""Seconds for a refused stranger to read why before the socket is closed."""

_ONE_BYTE = memoryview(bytearray(1))
"""What was read is taken out before anybody else gets a turn."""


class TlsConnection(SocketConnection):
    """A :class:`~phantom_tun.net.links.connection.Connection` over an ``SSLSocket`` that has shaken
    hands."""

    __slots__ = ("_ahead", "_lone")

    _socket: ssl.SSLSocket

    def __init__(self, tls: ssl.SSLSocket) -> None:
        super().__init__(tls)
        self._ahead = b""
        """The next byte, if it was read already."""
        self._lone = 0
        """Reads since we last looked behind a short record in vain."""

    async def wait_readable(self) -> None:
        """Return when a read gives something, after exactly one turn of the scheduler or more. To
        know, one byte is read: a socket can be readable and yet hold only a part of a TLS record,
        and who waits for the rest of that shouldn't need a buffer."""
        waited = False
        while not self._ahead:
            count = self._read_now(_ONE_BYTE)
            if count == 0:
                break
            if count is None:
                await self._wait()
                waited = True
            else:
                self._ahead = bytes(_ONE_BYTE)
        if not waited:
            await checkpoint()

    def wait_arrival(self) -> Coroutine[Any, Any, None]:
        """Return when the kernel has something, though it may be only a part of a TLS record; after
        at least one turn of the scheduler.

        Whoever only passes a wait on, here and above, hands over the coroutine: idle tunnels are
        many, and each frame of theirs is 300 bytes."""
        if self._ahead or (not self._closed and self._socket.pending()):
            return checkpoint()  # noqa: ASYNC105
        return self._wait()

    def read_now(self, view: memoryview) -> int | None:
        """Take what has arrived, at most ``len(view)``; ``None`` if there is no whole record.

        A TLS record has at most 16 KiB, so this takes several reads. To find out that there isn't
        another record costs as much as to read one. A record that isn't full is usually the last
        one; so behind that it is tried only now and then, or if it helped the last time.
        """
        if self._ahead:
            view[:1], self._ahead = self._ahead, b""
            with suppress(LinkBroken):  # the next read will say so again
                return 1 + (self._read_now(view[1:]) or 0)
            return 1
        return self._read_now(view)

    async def read_some(self, view: memoryview) -> int:
        """Wait for bytes and take them as :meth:`read_now` does; 0 at the end."""
        if not self._ahead:
            await checkpoint()
        while (count := self.read_now(view)) is None:
            await self._wait()
        return count

    def _read_now(self, view: memoryview) -> int | None:
        """Bytes read; 0 at the end; ``None`` if nothing has arrived."""
        if self._closed:
            raise LinkBroken("the link was closed")
        read = self._socket.read
        limit = len(view)
        filled = 0
        looking = False
        try:
            while filled < limit:
                count: int = read(limit - filled, view[filled:] if filled else view)  # type: ignore[assignment]
                if not count:
                    break
                filled += count
                if looking:
                    self._lone = LOOK_AGAIN
                elif count < FULL_RECORD - 1:  # its first byte may have been read before
                    if self._lone < LOOK_AGAIN:
                        self._lone += 1
                        break
                    looking = True
                    self._lone = 0
        except ssl.SSLWantReadError:
            return filled or None
        except (OSError, ValueError) as error:
            forget_errors()
            if not filled:
                raise LinkBroken("the link failed") from error
        return filled

    def _put(self, view: memoryview) -> memoryview:
        # OpenSSL wants to be given the same bytes again after it had to wait.
        write = self._socket.write
        try:
            while view:
                view = view[write(view) :]
        except ssl.SSLWantWriteError:
            pass
        except (OSError, ValueError) as error:
            forget_errors()
            raise LinkBroken("the link failed") from error
        return view

    def write_now(self, data: bytes) -> None:
        """Send ``data`` if there is room for it and no write under way."""
        if self.usable:
            try:
                self._socket.write(data)
            except OSError:
                forget_errors()
                self._torn = True

    def is_quiet(self) -> bool:
        """Whole, and nothing has arrived, not even the end."""
        if not self.usable or self._ahead or self._socket.pending():
            return False
        try:
            socket.socket.recv(self._socket, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def become_link(self, kind: LinkKind, limits: LinkLimits) -> None:
        """Set what depends on the kind of link: how much the kernel takes beyond what it has in
        flight. What is written later doesn't wait behind a full send buffer, and a reader that
        stops leaves little in the sender's memory."""
        unsent = limits.unsent_signalling if kind is LinkKind.SIGNALLING else limits.unsent
        with suppress(OSError):  # the next read or write will tell
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent)

    async def close_gently(self) -> None:
        """:meth:`close` so that what was sent arrives although the peer goes on sending."""
        if self.usable:
            self._say_goodbye()
            await linger(self._socket)
        self.close()

    def close(self) -> None:
        """Say goodbye if that is possible at once, and close."""
        if self._closed:
            return
        self._begin_close()
        if not self._torn:
            self._say_goodbye()
        self._socket.close()

    def _say_goodbye(self) -> None:
        try:
            self._socket.unwrap()
        except (OSError, ValueError):
            pass  # most of the time since the peer's goodbye is still to come
        finally:
            forget_errors()


async def linger(stream: socket.socket) -> None:
    """Let an alert or a last answer arrive before the caller closes ``stream``: closing with unread
    bytes would destroy it."""
    with suppress(OSError), trio.move_on_after(LINGER):
        stream.shutdown(socket.SHUT_WR)
        for _ in range(64):
            await wait_readable(stream)
            if not socket.socket.recv(stream, 4096):
                return


class HandshakeSteps:
    """Shares the processor between handshakes and everything else: between two turns of the
    scheduler at most ``limit`` steps of 1 to 2 ms are computed. A handshake that waits for its
    peer holds no place."""

    __slots__ = ("_limiter",)

    def __init__(self, limit: int) -> None:
        self._limiter = trio.CapacityLimiter(limit)

    async def shake(self, tls: ssl.SSLSocket) -> None:
        """Shake hands. The caller sets the deadline.

        :raises OSError: it failed; the alert is sent.
        """
        while True:
            wait = wait_readable
            async with self._limiter:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLWantWriteError:
                    wait = wait_writable
                except OSError:
                    forget_errors()
                    raise
                else:
                    return
                finally:
                    await cancel_shielded_checkpoint()
            await wait(tls)


def prepare_socket(tcp: socket.socket, limits: LinkLimits) -> None:
    """Options of a link's socket that are known before it is connected or accepted."""
    tcp.setblocking(False)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(limits.keepalive)))
    if limits.send_buffer is not None:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.send_buffer)
    if limits.receive_buffer is not None:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limits.receive_buffer)
    if limits.congestion_control is not None:
        with suppress(OSError):  # not in this kernel: its default will do
            tcp.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_CONGESTION, limits.congestion_control.encode()
            )


async def connect_tcp(address: IpAddress, port: int, limits: LinkLimits) -> socket.socket:
    """A connected non-blocking socket. The caller sets the deadline.

    :raises OSError: refused or unreachable.
    """
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    tcp = socket.socket(family, socket.SOCK_STREAM)
    connected = False
    try:
        prepare_socket(tcp, limits)
        code = tcp.connect_ex((str(address), port))
        if code == errno.EINPROGRESS:
            await wait_writable(tcp)
            code = tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        connected = not code
    finally:
        if not connected:
            tcp.close()
    if code:
        raise OSError(code, os.strerror(code))
    return tcp
