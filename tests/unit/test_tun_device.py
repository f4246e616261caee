"""One conformance test for the kernel's TUN device and the fake that stands for it.

Both have two ends: the device, and the programs of the machine. For the kernel's device the
programs use sockets, in a network namespace of the test's own thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

import pytest
import pytun

from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import UsageError, WorldError
from phantom_tun.packet.framing import UdpFraming, datagram_of
from phantom_tun.packet.header import MAX_PACKET, flow_key
from phantom_tun.testing.fake_tun import FakeTun
from phantom_tun.tun.device import TunDevice, open_tun, writer

PROGRAM = Endpoint(ip_address("241.0.0.1"), 5000)
FAR = Endpoint(ip_address("242.0.0.2"), 6000)
CLONE_NEWNET = 0x4000_0000


class Programs(Protocol):
    """The other end."""

    def send(self, payload: bytes) -> None: ...

    def receive(self) -> bytes: ...

    def close(self) -> None: ...


class FakePrograms:
    """Packets by hand."""

    def __init__(self, tun: FakeTun) -> None:
        self._tun = tun

    def send(self, payload: bytes) -> None:
        self._tun.outer.send(UdpFraming(PROGRAM, FAR).header(payload) + payload)

    def receive(self) -> bytes:
        found = datagram_of(self._tun.outer.recv(MAX_PACKET))
        assert found is not None
        assert found[0] == flow_key(FAR, PROGRAM)
        return bytes(found[1])

    def close(self) -> None:
        self._tun.hang_up()


class KernelPrograms:
    """A socket."""

    def __init__(self, name: str) -> None:
        for command in (
            f"link set {name} mtu 65535 addrgenmode none",
            f"link set {name} up",
            f"addr add {PROGRAM.address}/32 dev {name}",
            f"route add 240.0.0.0/4 dev {name}",
        ):
            subprocess.run(["ip", *command.split()], check=True)
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._socket.settimeout(10)
        self._socket.bind((str(PROGRAM.address), PROGRAM.port))

    def send(self, payload: bytes) -> None:
        self._socket.sendto(payload, (str(FAR.address), FAR.port))

    def receive(self) -> bytes:
        return self._socket.recv(MAX_PACKET)

    def close(self) -> None:
        self._socket.close()


def conform(device: TunDevice, programs: Programs) -> None:
    fd, write = device.fileno(), writer(device)
    buffer = bytearray(MAX_PACKET + 1)

    def read() -> bytes:
        assert select.select([fd], [], [], 10)[0]
        return bytes(buffer[: os.readv(fd, [buffer])])

    with pytest.raises(BlockingIOError):
        os.readv(fd, [buffer])
    payloads = [b"one", b"", b"two", bytes(MAX_PACKET - 28)]
    for payload in payloads:
        programs.send(payload)
    for payload in payloads:
        packet = read()
        found = datagram_of(packet)
        assert found is not None
        assert found[0] == flow_key(PROGRAM, FAR)
        assert found[1] == payload
    framing = UdpFraming(FAR, PROGRAM)
    for payload in payloads:
        assert write(framing.header(payload), payload)
        assert programs.receive() == payload
    with socket.socket() as sock:
        device.confine(sock)
    programs.close()
    device.close()
    device.close()
    assert not write(b"too late")


def test_the_fake() -> None:
    tun = FakeTun()
    tun.outer.settimeout(10)
    conform(tun, FakePrograms(tun))


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes a network interface")
@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun")
def test_the_kernels() -> None:
    def inside() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        device = open_tun("conform0")
        with pytest.raises(UsageError, match="conform0 already"):
            open_tun("conform0")
        conform(device, KernelPrograms("conform0"))
        assert "conform0" not in subprocess.check_output(["ip", "link"], text=True)

    with ThreadPoolExecutor(1) as executor:
        executor.submit(inside).result()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOENT, "/dev/net/tun is missing"),
        (errno.ENODEV, "no TUN support"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
        (errno.EBUSY, "interface t0 already"),
    ],
)
def test_refusals_say_what_to_do(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    monkeypatch.setattr(pytun, "TunTapDevice", failing_with(number))
    with pytest.raises(UsageError, match=words):
        open_tun("t0")


def test_other_failures_are_the_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytun, "TunTapDevice", failing_with(errno.EMFILE))
    with pytest.raises(WorldError, match="t0"):
        open_tun("t0")


def failing_with(number: int) -> Callable[..., None]:
    def fail(**_: object) -> None:
        raise pytun.Error(number, os.strerror(number))

    return fail
