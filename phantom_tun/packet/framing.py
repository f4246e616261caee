"""UDP datagrams and ICMP echo messages as packets for the local kernel, and out of packets again.

A datagram flow needs no kernel socket of ours: the payload is cut out of the packet that the
application sends, and replies are given a header here, whose constant parts are summed up once.
"""

from __future__ import annotations

import struct
from typing import Protocol as TypingProtocol

from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import WireError
from phantom_tun.packet.checksum import Buffer, checksum, fold, ones_sum, udp_checksum
from phantom_tun.packet.header import (
    FRAGMENT_MASK,
    HEADER4,
    HEADER6,
    IP_DONT_FRAGMENT,
    KEY4,
    KEY6,
    MAX_PACKET,
    FlowKey,
    Protocol,
)

HOP_LIMIT = 64
"""TTL of packets made here."""
UDP_HEADER = 8
ECHO_REST = 4
"""An echo message, as it travels, starts here in the ICMP header: at the identifier."""
MAX_MESSAGE = 65_507
"""What a :class:`~phantom_tun.endpoints.DatagramStream` carries."""

ECHO_REQUEST4, ECHO_REPLY4 = 8, 0
ECHO_REQUEST6, ECHO_REPLY6 = 128, 129

_ECHO4 = int(Protocol.ICMP), ECHO_REQUEST4
_ECHO6 = int(Protocol.ICMPV6), ECHO_REQUEST6
_IP4 = struct.Struct("!BBHHHBBH")
_IP6 = struct.Struct("!IHBB")
_UDP = struct.Struct("!HHHH")
_ICMP = struct.Struct("!BBH")
_WORD = struct.Struct("!H")
_FRAGMENT_AT = 6
_PROTOCOL4_AT = 9
_PROTOCOL6_AT = 6


def datagram_of(packet: Buffer) -> tuple[FlowKey, memoryview] | None:
    """Flow key and message of a UDP datagram or an echo request; ``None`` for anything else,
    including whatever is cut short, optional or fragmented.

    A UDP flow and an echo exchange can't share a key: the key of the latter ends in port 0, to
    which no datagram is sent.
    """
    view = memoryview(packet)
    length = len(view)
    if length < HEADER4 + UDP_HEADER:
        return None
    if view[0] == 0x45:
        if _WORD.unpack_from(view, _FRAGMENT_AT)[0] & FRAGMENT_MASK:
            return None
        if _WORD.unpack_from(view, 2)[0] != length:
            return None
        return _message(view, view[_PROTOCOL4_AT], HEADER4, KEY4, _ECHO4)
    if view[0] >> 4 == 6 and length >= HEADER6 + UDP_HEADER:
        if _WORD.unpack_from(view, 4)[0] + HEADER6 != length:
            return None
        return _message(view, view[_PROTOCOL6_AT], HEADER6, KEY6, _ECHO6)
    return None


def _message(
    view: memoryview, protocol: int, offset: int, key: slice, echo: tuple[int, int]
) -> tuple[FlowKey, memoryview] | None:
    if protocol == Protocol.UDP:
        udp_length = _WORD.unpack_from(view, offset + 4)[0]
        if udp_length != len(view) - offset or not any(view[offset + 2 : offset + 4]):
            return None
        return FlowKey(bytes(view[key])), view[offset + UDP_HEADER :]
    if (protocol, view[offset]) == echo and not view[offset + 1]:
        message = view[offset + ECHO_REST :]
        addresses = bytes(view[key.start : key.stop - 4])
        return FlowKey(addresses + bytes(message[:2]) + b"\0\0"), message
    return None


class Framing(TypingProtocol):
    """Makes the packets of one flow towards the local kernel."""

    def header(self, message: Buffer) -> bytes:
        """IP and transport header of the packet that carries ``message``, which follows it.

        :raises WireError: the message is too long for a packet, or not of this flow.
        """
        ...


class UdpFraming:
    """UDP datagrams from ``source`` to ``target``, both of one IP version."""

    def __init__(self, source: Endpoint, target: Endpoint) -> None:
        self._ip = _IpHeader(source, target, Protocol.UDP)
        self._ports = source.port, target.port
        self._sum = self._ip.pseudo_sum + source.port + target.port

    def header(self, message: Buffer) -> bytes:
        """See :class:`Framing`."""
        length = UDP_HEADER + len(message)
        ip = self._ip.of(length)
        # The length stands in the UDP header and in the pseudo header.
        total = fold(self._sum + 2 * length + ones_sum(message))
        return ip + _UDP.pack(*self._ports, length, udp_checksum(total))


class EchoFraming:
    """Echo replies from ``source`` to ``target`` with one identifier."""

    def __init__(self, source: Endpoint, target: Endpoint, identifier: bytes) -> None:
        is_v4 = source.address.version == 4
        self._ip = _IpHeader(source, target, Protocol.ICMP if is_v4 else Protocol.ICMPV6)
        self._type = ECHO_REPLY4 if is_v4 else ECHO_REPLY6
        self._identifier = identifier
        self._has_pseudo_header = not is_v4

    def header(self, message: Buffer) -> bytes:
        """See :class:`Framing`. Replies with another identifier would reach another program."""
        if len(message) < 4 or message[:2] != self._identifier:
            raise WireError("echo reply of another exchange")
        length = ECHO_REST + len(message)
        ip = self._ip.of(length)
        total = (self._type << 8) + ones_sum(message)
        if self._has_pseudo_header:
            total += self._ip.pseudo_sum + length
        return ip + _ICMP.pack(self._type, 0, checksum(fold(total)))


class _IpHeader:
    """The IP header of every packet of a flow, but for its lengths."""

    def __init__(self, source: Endpoint, target: Endpoint, protocol: Protocol) -> None:
        self._addresses = source.address.packed + target.address.packed
        self._protocol = int(protocol)
        self.pseudo_sum = ones_sum(self._addresses) + protocol
        self._is_v4 = source.address.version == 4
        if self._is_v4:
            fixed = _IP4.pack(0x45, 0, 0, 0, IP_DONT_FRAGMENT, HOP_LIMIT, self._protocol, 0)
            self._sum = ones_sum(fixed + self._addresses)

    def of(self, payload_length: int) -> bytes:
        if self._is_v4:
            total = HEADER4 + payload_length
            if total > MAX_PACKET:
                raise WireError("message too long for an IPv4 packet")
            field = checksum(fold(self._sum + total))
            fixed = _IP4.pack(0x45, 0, total, 0, IP_DONT_FRAGMENT, HOP_LIMIT, self._protocol, field)
            return fixed + self._addresses
        if payload_length > MAX_PACKET:
            raise WireError("message too long for an IPv6 packet")
        fixed = _IP6.pack(6 << 28, payload_length, self._protocol, HOP_LIMIT)
        return fixed + self._addresses
