"""An interface without a kernel behind it: packets go to and come from a test."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import trio

from phantom_tun.ids import ApAddress

_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_BUFFER = 1 << 20
_ROOM = 1 << 17


class FakeTun:
    """Implements :class:`phantom_tun.tun.device.TunDevice`. The test plays the programs (and the
    kernel) of the machine: it sends what they would send and receives what they would get.
    """

    name = "fake0"

    def __init__(self) -> None:
        self._inner, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._inner.setblocking(False)
        for end in (self._inner, outer):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        self.outer = outer
        """The end of the programs: one packet per message."""

    def fileno(self) -> int:
        """See :class:`~phantom_tun.tun.device.TunDevice`."""
        return self._inner.fileno()

    def confine(self, sock: socket.socket) -> None:
        """Let the socket have an address that no interface has, since there is none."""
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)

    def close(self) -> None:
        """See :class:`~phantom_tun.tun.device.TunDevice`."""
        self._inner.close()

    def hang_up(self) -> None:
        """The test's end goes away."""
        self.outer.close()

    async def send(self, packet: bytes) -> None:
        """A program sends a packet."""
        await trio.lowlevel.wait_writable(self.outer)
        self.outer.send(packet)

    async def receive(self) -> bytes:
        """The next packet for a program; waits for it."""
        await trio.lowlevel.wait_readable(self.outer)
        return self.outer.recv(_ROOM)


class FakeHost:
    """Implements :class:`phantom_tun.tun.host.Host`: remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        """What happened, in order."""
        self.addresses: tuple[ApAddress, ...] = ()
        self.missing: list[str] = []
        """What :meth:`warnings` says."""
        self.failure: Exception | None = None
        """Raised by the next :meth:`set_addresses`."""

    async def guard(self) -> None:
        """See :class:`~phantom_tun.tun.host.Host`."""
        self.steps.append("guard")
        await trio.lowlevel.checkpoint()

    async def keep_guard(self) -> None:
        """See :class:`~phantom_tun.tun.host.Host`."""
        self.steps.append("guard kept")
        await trio.sleep_forever()

    def warnings(self) -> list[str]:
        """See :class:`~phantom_tun.tun.host.Host`."""
        return self.missing

    async def bring_up(self) -> None:
        """See :class:`~phantom_tun.tun.host.Host`."""
        self.steps.append("up")
        await trio.lowlevel.checkpoint()

    async def set_addresses(self, addresses: Sequence[ApAddress]) -> None:
        """See :class:`~phantom_tun.tun.host.Host`."""
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        self.steps.append("addresses")
        self.addresses = tuple(addresses)

    async def open_firewall(self) -> None:
        """See :class:`~phantom_tun.tun.host.Host`."""
        self.steps.append("firewall open")
        await trio.lowlevel.checkpoint()

    async def close_firewall(self) -> None:
        """See :class:`~phantom_tun.tun.host.Host`."""
        self.steps.append("firewall closed")
        await trio.lowlevel.checkpoint()
