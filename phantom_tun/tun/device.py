"""The TUN device. It is opened while there is privilege; everything else about it can be set later
with CAP_NET_ADMIN alone (:mod:`phantom_tun.tun.host`)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Protocol

import pytun

from phantom_tun.errors import UsageError, WorldError

_REASONS = {
    errno.ENOENT: "/dev/net/tun is missing: load the tun module, or give the container the device",
    errno.ENODEV: "this kernel has no TUN support: load the tun module",
    errno.ENXIO: "this kernel has no TUN support: load the tun module",
    errno.EACCES: "no permission to open /dev/net/tun: start as root",
    errno.EPERM: "no permission to make a network interface: start as root, or with CAP_NET_ADMIN",
    errno.EBUSY: "there is a network interface {name} already: is another phantom-tun running?",
}


class TunDevice(Protocol):
    """One end of an interface: what is read was sent by a local program, what is written is
    received by one. One ``read`` or ``write`` is one IP packet, without any header before it."""

    @property
    def name(self) -> str:
        """The interface's name."""
        ...

    def fileno(self) -> int:
        """A non-blocking file descriptor; -1 once closed."""
        ...

    def confine(self, sock: socket.socket) -> None:
        """Let ``sock`` take packets from this interface only."""
        ...

    def close(self) -> None:
        """Remove the interface. Idempotent."""
        ...


class KernelTun:
    """A TUN device of the kernel, made by :func:`open_tun`. It exists until it is closed."""

    def __init__(self, device: pytun.TunTapDevice) -> None:
        self._device = device
        self._name: str = device.name
        self._fd: int = device.fileno()
        os.set_blocking(self._fd, False)

    @property
    def name(self) -> str:
        """See :class:`TunDevice`."""
        return self._name

    def fileno(self) -> int:
        """See :class:`TunDevice`."""
        return self._fd

    def confine(self, sock: socket.socket) -> None:
        """See :class:`TunDevice`."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._name.encode())

    def close(self) -> None:
        """See :class:`TunDevice`."""
        if self._fd != -1:
            self._fd = -1
            self._device.close()


def open_tun(name: str) -> KernelTun:
    """Make the interface ``name``; it is down and has no addresses yet.

    :raises UsageError: another one exists, there is no permission, or no TUN support; the message
        says what to do.
    :raises WorldError: anything else the kernel may say.
    """
    flags = pytun.IFF_TUN | pytun.IFF_NO_PI | pytun.IFF_TUN_EXCL
    try:
        return KernelTun(pytun.TunTapDevice(name=name, flags=flags))
    except OSError as error:
        reason = _REASONS.get(error.errno or 0)
        if reason is not None:
            raise UsageError(reason.format(name=name)) from error
        raise WorldError(f"can't make the network interface {name}: {error}") from error


def writer(device: TunDevice) -> Callable[..., bool]:
    """A function that hands the kernel one packet, given in parts, and says whether it took it. May
    be called from any thread."""

    def write(*parts: bytes | bytearray | memoryview) -> bool:
        try:
            # Asked for each time: a number kept here could be another file's after the close.
            os.writev(device.fileno(), parts)
        except OSError:
            return False
        return True

    return write
