"""An interface between a fake device and an overlay in memory, for the ``test_tun_*`` modules.

The IPv4 AP prefix is 127.0.0.0/8, so that a test can play the kernel: when the interface lets a SYN
through, as N:n → L:l, the test connects a real socket from N:n to L:l.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address
from typing import Any

import pytest
import trio
from free_ports import free_ports
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6

from phantom_tun.endpoints import Endpoint
from phantom_tun.testing.fake_overlay import MemoryOverlay
from phantom_tun.testing.fake_tun import FakeHost, FakeTun
from phantom_tun.tun.interface import Interface
from phantom_tun.tun.settings import InterfaceConfig

OWN = {4: "127.1.0.1", 6: "2001:2f:1::1"}
FAR = {4: "127.2.0.2", 6: "2001:2f:2::2"}
LISTENER, PEER = "127.0.0.1", "127.0.0.2"
PORTS = 16
"""More than one test has connections."""
GATEWAY = {4: PEER, 6: "2001:2f::2"}

CONFIG = InterfaceConfig(
    ap4=IPv4Network("127.0.0.0/8"), addresses=tuple(map(ip_address, OWN.values()))
)


def end(address: str, port: int) -> Endpoint:
    return Endpoint(ip_address(address), port)


def ip(version: int, source: str | None = None, target: str | None = None) -> Any:
    """An IP header from a local program to the far side, unless said otherwise."""
    layer = IP if version == 4 else IPv6
    return layer(src=source or OWN[version], dst=target or FAR[version])


def syn(version: int, sport: int = 5000, dport: int = 80, seq: int = 1) -> bytes:
    return bytes(ip(version) / TCP(sport=sport, dport=dport, flags="S", seq=seq))


def datagram(version: int, payload: bytes, sport: int = 5000, dport: int = 53) -> bytes:
    return bytes(ip(version) / UDP(sport=sport, dport=dport) / payload)


def echo(version: int, identifier: int = 7, sequence: int = 1, data: bytes = b"ping") -> bytes:
    if version == 4:
        return bytes(ip(4) / ICMP(id=identifier, seq=sequence) / data)
    return bytes(ip(6) / ICMPv6EchoRequest(id=identifier, seq=sequence, data=data))


@dataclass
class World:
    """What a test holds."""

    tun: FakeTun
    host: FakeHost
    overlay: MemoryOverlay
    interface: Interface
    clock: trio.testing.MockClock
    sockets: ExitStack

    async def send(self, *packets: bytes) -> None:
        for packet in packets:
            await self.tun.send(packet)

    async def receive(self) -> Any:
        """The next packet for a program, dissected."""
        packet = await self.tun.receive()
        return (IP if packet[0] >> 4 == 4 else IPv6)(packet)

    async def all_decided(self) -> None:
        """Everything sent so far has been dealt with, and nothing came back: the next packet is the
        answer to a stray segment sent now."""
        await self.send(bytes(ip(4) / TCP(sport=1, dport=1, flags="A", ack=77)))
        answer = await self.receive()
        assert answer[TCP].sport == 1, f"unexpected {answer.summary()}"
        await trio.testing.wait_all_tasks_blocked()

    async def pass_time(self, seconds: float) -> None:
        """Jump second by second, so that periodic tasks run each time."""
        while seconds > 0:
            self.clock.jump(min(seconds, 1.0))
            seconds -= 1.0
            await trio.testing.wait_all_tasks_blocked()

    def count(self, name: str) -> int:
        return self.interface.statistics().get(name, 0)

    def flows(self) -> list[tuple[str, str, str]]:
        return [(f.transport, f.direction, f.state) for f in self.interface.flows()]

    async def handshake(self, sport: int = 5000) -> socket.socket:
        """The kernel's part after the SYN was let through: an application's socket, connected."""
        injected = await self.receive()
        assert (injected.src, injected.dst) == (PEER, LISTENER)
        sock = self.sockets.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((PEER, injected[TCP].sport))
        sock.connect((LISTENER, injected[TCP].dport))
        sock.settimeout(10)
        return sock


@asynccontextmanager
async def world(
    clock: trio.testing.MockClock, config: InterfaceConfig = CONFIG
) -> AsyncIterator[World]:
    tun, host, overlay = FakeTun(), FakeHost(), MemoryOverlay()
    interface = Interface(config, tun, host)
    with ExitStack() as sockets, pytest.MonkeyPatch.context() as patch:
        # The test will play the kernel at ports of this machine, which must be free.
        first = free_ports(PORTS, PEER)
        for name in ("FIRST_PORT", "LAST_PORT"):
            patch.setattr(f"phantom_tun.tun.interface.{name}", first)
        sockets.callback(tun.hang_up)
        async with trio.open_nursery() as nursery:
            await nursery.start(interface.run, overlay)
            try:
                yield World(tun, host, overlay, interface, clock, sockets)
            finally:
                nursery.cancel_scope.cancel()
                # The interface takes a moment to say farewell, in virtual time.
                clock.rate = 1000
