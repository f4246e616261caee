"""Looking at a node's interfaces, and sending packets that no honest program would."""

from __future__ import annotations

import ipaddress
import select
import socket
from types import TracebackType

from labs import Node
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6

_ALL_PROTOCOLS = 3
_PORT = 9
_IPV4, _IPV6 = 0x0800, 0x86DD
_ETHERNET_LEN = 14


class Watch:
    """Records whom packets on one interface of a node are addressed to, in a ``with`` block."""

    def __init__(self, node: Node, interface: str) -> None:
        def open_socket() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
            sock.bind((interface, 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            return sock

        self._socket = node.inside(open_socket)
        self._seen: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._socket.close()

    def seen(self) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        """Whom all packets so far were for."""
        found = self._seen
        while select.select([self._socket], [], [], 0)[0]:
            frame = self._socket.recv(128)
            kind, packet = int.from_bytes(frame[12:14], "big"), frame[_ETHERNET_LEN:]
            if kind == _IPV4:
                found.add(ipaddress.ip_address(packet[16:20]))
            elif kind == _IPV6:
                found.add(ipaddress.ip_address(packet[24:40]))
        return found


def send_raw(node: Node, source: str, destination: str, port: int, payload: bytes) -> None:
    """One UDP datagram with any source address, out of a raw socket of ``node``."""
    is_ipv4 = ipaddress.ip_address(source).version == 4
    ip = IP if is_ipv4 else IPv6
    packet = bytes(ip(src=source, dst=destination) / UDP(sport=_PORT, dport=port) / payload)
    family = socket.AF_INET if is_ipv4 else socket.AF_INET6
    with node.inside(lambda: socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)) as sock:
        sock.sendto(packet, (destination, 0))
