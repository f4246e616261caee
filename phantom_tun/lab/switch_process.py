"""The process that moves frames between TAP devices and :class:`DelayingSwitch`.

Run as ``python -m phantom_tun.lab.switch_process SPEC``, SPEC being a :class:`SwitchSpec` in JSON.
It opens ``eth0`` in every node's namespace, goes to live in the switch's, and says so by creating
the ready file. Device offloads stay on: the guests' TCP then hands over up to 64 KiB at a time,
which is why one Python loop is fast enough.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from pathlib import Path

import msgspec

from phantom_tun.lab.namespaces import enter
from phantom_tun.lab.switch import VNET_HEADER, DelayingSwitch

_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 0x01, 0x02, 0x04

_LARGEST_FRAME = VNET_HEADER + 65_536 + 14
_FRAMES_PER_TURN = 64
"""How many frames are read from one port before the others, and what is due, get their turn."""


class SwitchPort(msgspec.Struct, frozen=True):
    """Where one cable ends."""

    namespace: str
    mac: str


class SwitchSpec(msgspec.Struct, frozen=True):
    """Everything the process needs to know."""

    ports: list[SwitchPort]
    home: str
    """The namespace it lives in, so that removing a lab finds it there."""
    interface: str
    delay: float
    """Seconds."""
    rate: float | None
    """Bits per second."""
    ready: str
    """Created when frames are moved."""


def open_tap(name: str) -> int:
    """Make a TAP device in the namespace of this thread; returns its descriptor.

    :raises OSError: no ``/dev/net/tun``, no permission, or the name is taken.
    """
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
    fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
    return fd


def pump(switch: DelayingSwitch, fds: list[int]) -> None:
    """Move frames for ever. A device that is down or full loses the frame, as Ethernet does."""
    port_of = {fd: port for port, fd in enumerate(fds)}
    epoll = select.epoll()
    for fd in fds:
        epoll.register(fd, select.EPOLLIN)
    # epoll waits in whole milliseconds, select on the epoll descriptor in microseconds.
    waiting = [epoll.fileno()]
    while True:
        due = switch.next_due()
        select.select(waiting, (), (), None if due is None else max(0.0, due - time.monotonic()))
        for fd, _ in epoll.poll(0):
            _read(switch, fd, port_of[fd])
        for port, frame in switch.due(time.monotonic()):
            _write(fds[port], frame)


def _read(switch: DelayingSwitch, fd: int, port: int) -> None:
    for _ in range(_FRAMES_PER_TURN):
        try:
            frame = os.read(fd, _LARGEST_FRAME)
        except OSError:
            return
        switch.receive(time.monotonic(), port, frame)


def _write(fd: int, frame: bytes) -> None:
    try:
        os.write(fd, frame)
    except OSError:
        return


def main(argument: str) -> None:
    """Run the switch that ``argument`` (JSON) describes, until killed."""
    spec = msgspec.json.decode(argument, type=SwitchSpec)
    fds = []
    for port in spec.ports:
        enter(Path(port.namespace))
        fds.append(open_tap(spec.interface))
    enter(Path(spec.home))
    addresses = [bytes.fromhex(port.mac.replace(":", "")) for port in spec.ports]
    switch = DelayingSwitch(addresses, delay=spec.delay, rate=spec.rate)
    Path(spec.ready).touch()
    pump(switch, fds)


if __name__ == "__main__":
    main(sys.argv[1])
