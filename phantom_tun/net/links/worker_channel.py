"""The control channel between a node and one worker process: whole messages with a descriptor now
and then (docs/spec/workers.md, "Control channel")."""

from __future__ import annotations

import socket
from collections import deque
from typing import NamedTuple

import trio

from phantom_tun.errors import CapacityExceeded, LinkBroken, WireError
from phantom_tun.wire.worker import MAX_MESSAGE_LEN, FromWorker, ToWorker, pack

MAX_WAITING = 4096
"""Messages that the other process hasn't taken yet."""


class Received(NamedTuple):
    """One datagram."""

    data: bytes
    attached: socket.socket | None
    """The descriptor that came with it; whoever receives it closes it."""


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends for :class:`WorkerChannel`; neither survives an ``exec`` unless handed on."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class WorkerChannel:
    """One end. One task receives; anybody sends, without waiting."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._waiting: deque[tuple[bytes, socket.socket | None]] = deque()
        self._more = trio.Event()
        self._closed = False

    def send(self, message: ToWorker | FromWorker, attached: socket.socket | None = None) -> None:
        """Send now or as soon as there is room. ``attached`` belongs to the channel, which closes
        it here, whatever comes of it.

        :raises LinkBroken: the other process is gone.
        :raises CapacityExceeded: it doesn't take its messages.
        """
        if self._closed or len(self._waiting) >= MAX_WAITING:
            if attached is not None:
                attached.close()
            if self._closed:
                raise LinkBroken("the other process is gone")
            raise CapacityExceeded("the other process doesn't take its messages")
        self._waiting.append((pack(message), attached))
        self._send_what_fits()
        if self._waiting:
            self._more.set()

    def _send_what_fits(self) -> None:
        while self._waiting:
            data, attached = self._waiting[0]
            try:
                socket.send_fds(self._socket, [data], [attached.fileno()] if attached else [])
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            self._waiting.popleft()
            if attached is not None:
                attached.close()

    async def keep_sending(self) -> None:
        """Send what had to wait, until cancelled or the other process is gone."""
        while not self._closed:
            self._more = trio.Event()
            while self._waiting and not self._closed:
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except (OSError, trio.ClosedResourceError):
                    self.close()
                    return
                self._send_what_fits()
            await self._more.wait()

    async def receive(self) -> Received:
        """The next message.

        :raises LinkBroken: the other process is gone, or this end is closed.
        :raises WireError: a message too long or with too much attached.
        """
        while True:
            try:
                await trio.lowlevel.wait_readable(self._socket)
                data, handles, flags, _ = socket.recv_fds(self._socket, MAX_MESSAGE_LEN, 1)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError) as error:
                raise LinkBroken("the other process is gone") from error
            attached = None
            if handles:
                attached = socket.socket(fileno=handles[0])
                attached.set_inheritable(False)
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                if attached is not None:
                    attached.close()
                raise WireError("a message on the control channel was cut")
            if not data:
                raise LinkBroken("the other process is gone")
            return Received(data, attached)

    def close(self) -> None:
        """End it. Idempotent."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            for _data, attached in self._waiting:
                if attached is not None:
                    attached.close()
            self._waiting.clear()
            self._more.set()
