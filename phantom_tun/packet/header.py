"""Record layouts of IP packets, and the raw keys by which flows are known.

IPv4 without options (header length 20)::

     0        1        2                 4                 6                 8    9    10
    +--------+--------+-----------------+-----------------+-----------------+----+----+----------+
    |  0x45  |  TOS   |  total length   | identification  | flags, fragment |TTL |prot| checksum |
    +--------+--------+-----------------+-----------------+-----------------+----+----+----------+
     12                16                20            22           24
    +-----------------+-----------------+--------------+--------------+--- TCP: checksum at 36
    |     source      |   destination   |   port from  |   port to    |
    +-----------------+-----------------+--------------+--------------+
    |<------------- flow key, 12 bytes ------------------------------>|

IPv6 without extension headers (header length 40)::

     0                 4                 6     7     8          24            40       42
    +-----------------+-----------------+-----+-----+----------+-------------+--------+--------+---
    | 6, class, label | payload length  |next | hop |  source  | destination |  from  |   to   |
    +-----------------+-----------------+-----+-----+----------+-------------+--------+--------+---
                                                    |<------- flow key, 36 bytes ------------->|
                                                                              TCP: checksum at 56

Keys of both families live in one table: their lengths tell them apart. An echo exchange has the key
source ‖ destination ‖ identifier ‖ 0.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NewType

from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import WireError
from phantom_tun.packet.checksum import Buffer

FlowKey = NewType("FlowKey", bytes)
"""Source address ‖ destination address ‖ source port ‖ destination port, as on the wire."""

KEY4 = slice(12, 24)
"""Where the flow key is in an IPv4 packet without options."""
KEY6 = slice(8, 44)
"""Where the flow key is in an IPv6 packet without extension headers."""

HEADER4 = 20
HEADER6 = 40
MAX_PACKET = 65_535
"""The largest IPv4 packet, and the MTU of the interface."""

IP_DONT_FRAGMENT = 0x4000
FRAGMENT_MASK = 0x3FFF
"""More-fragments flag and fragment offset: both zero in a whole packet."""

_V4 = struct.Struct("!BxHxxHxBxx4s4s")
_V6 = struct.Struct("!B3xHBx16s16s")
_PORTS = struct.Struct("!HH")


class Protocol(enum.IntEnum):
    """IP protocol numbers the interface carries."""

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58


@dataclass(frozen=True, slots=True)
class IpHeader:
    """What the screening of a packet looks at; see :func:`read_ip_header`."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int
    """IPv4 protocol, or the IPv6 next-header value right after the fixed header."""
    has_options: bool
    """IPv4 options are present."""
    is_fragment: bool
    """An IPv4 packet with a fragment offset or with more fragments to come."""


def read_ip_header(packet: Buffer) -> IpHeader:
    """Read the IP header of a packet from the interface.

    :raises WireError: no IP packet, or one whose lengths contradict each other.
    """
    length = len(packet)
    version = packet[0] >> 4 if length else 0
    if version == 4:
        if length < HEADER4:
            raise WireError("IPv4 header cut short")
        first, total, fragment, protocol, source, destination = _V4.unpack_from(packet)
        header_length = (first & 0xF) * 4
        if header_length < HEADER4 or not header_length <= total == length:
            raise WireError("IPv4 lengths don't agree")
        return IpHeader(
            IPv4Address(source),
            IPv4Address(destination),
            protocol,
            header_length > HEADER4,
            bool(fragment & FRAGMENT_MASK),
        )
    if version == 6:
        if length < HEADER6:
            raise WireError("IPv6 header cut short")
        _, payload, protocol, source6, destination6 = _V6.unpack_from(packet)
        if payload + HEADER6 != length:
            raise WireError("IPv6 lengths don't agree")
        return IpHeader(IPv6Address(source6), IPv6Address(destination6), protocol, False, False)
    raise WireError("neither IPv4 nor IPv6")


def flow_key(source: Endpoint, target: Endpoint) -> FlowKey:
    """The key of packets from ``source`` to ``target`` (both of the same IP version)."""
    ports = _PORTS.pack(source.port, target.port)
    return FlowKey(source.address.packed + target.address.packed + ports)


def reverse_key(key: FlowKey) -> FlowKey:
    """The key of packets going the other way."""
    size = (len(key) - 4) // 2
    return FlowKey(key[size : 2 * size] + key[:size] + key[-2:] + key[-4:-2])


def endpoints_of(key: FlowKey) -> tuple[Endpoint, Endpoint]:
    """Source and target of a key."""
    size = (len(key) - 4) // 2
    from_port, to_port = _PORTS.unpack_from(key, 2 * size)
    return (
        Endpoint(ip_address(key[:size]), from_port),
        Endpoint(ip_address(key[size : 2 * size]), to_port),
    )
