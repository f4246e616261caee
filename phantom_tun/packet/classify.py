"""What is this packet? The question for scapy, asked for packets that no table knows.

Only called for whole packets that passed the screening by address (so their source is one of our
own AP addresses); what they contain is still whatever a program on this machine cares to send.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import WireError
from phantom_tun.packet.framing import ECHO_REQUEST4, ECHO_REQUEST6
from phantom_tun.packet.header import HEADER4, HEADER6, KEY4, KEY6, FlowKey, flow_key
from phantom_tun.packet.layers import load_layers

_SEEN = 256
"""Scapy is shown this many bytes: all headers, no long payloads."""

_UNREACHABLE4 = 3
_FRAGMENTATION_NEEDED = 4

_DISSECTION_FAILURES = (
    struct.error,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What scapy's dissectors are known to raise on bytes that aren't what they claim to be."""


class Kind(enum.Enum):
    """What a packet asks for."""

    SYN = "syn"
    """A TCP connection."""
    RESET = "reset"
    """The end of a TCP connection that isn't there (or isn't there yet)."""
    SEGMENT = "segment"
    """Anything else of TCP."""
    DATAGRAM = "datagram"
    """A UDP datagram."""
    ECHO = "echo"
    """An ICMP echo request."""
    UNREACHABLE = "unreachable"
    """The local kernel says that nobody takes what the flow delivered."""


@dataclass(frozen=True, slots=True)
class Classified:
    """A packet's kind, and the key of the flow it belongs to (for :attr:`Kind.UNREACHABLE`: the
    key of the packets that the complaining side would send)."""

    kind: Kind
    key: FlowKey


def classify(packet: bytes) -> Classified:
    """Dissect a packet.

    :raises WireError: it is malformed, or nothing the interface carries; ``str()`` says which.
    """
    try:
        return _classify(packet)
    except _DISSECTION_FAILURES as error:
        raise WireError("malformed") from error


def _classify(packet: bytes) -> Classified:
    layers = load_layers()
    is_v4 = packet[0] >> 4 == 4
    ip = (layers.IP if is_v4 else layers.IPv6)(packet[:_SEEN])
    key = FlowKey(packet[KEY4 if is_v4 else KEY6])
    match ip.payload:
        case layers.TCP() as tcp:
            return Classified(_tcp_kind(tcp), key)
        case layers.UDP() as udp:
            if not udp.dport or udp.len != len(packet) - (HEADER4 if is_v4 else HEADER6):
                raise WireError("malformed")
            return Classified(Kind.DATAGRAM, key)
        case layers.ICMP() as icmp if is_v4:
            if icmp.type == ECHO_REQUEST4 and icmp.code == 0:
                return Classified(Kind.ECHO, _echo_key(key, icmp.id))
            if icmp.type == _UNREACHABLE4 and icmp.code != _FRAGMENTATION_NEEDED:
                return Classified(Kind.UNREACHABLE, _key_of_complainer(icmp.payload))
        # To scapy an echo reply is a kind of echo request, hence the look at the type.
        case layers.ICMPv6EchoRequest() as echo if (echo.type, echo.code) == (ECHO_REQUEST6, 0):
            return Classified(Kind.ECHO, _echo_key(key, echo.id))
        case layers.ICMPv6DestUnreach() as unreachable:
            return Classified(Kind.UNREACHABLE, _key_of_complainer(unreachable.payload))
        case layers.Raw() | layers.NoPayload():
            raise WireError("malformed")
    raise WireError("icmp kind")


def _tcp_kind(tcp: Any) -> Kind:
    if tcp.dataofs < 5 or not tcp.dport or not tcp.sport:
        raise WireError("malformed")
    if tcp.flags.R:
        return Kind.RESET
    if tcp.flags.S and not tcp.flags.A and not tcp.flags.F:
        return Kind.SYN
    return Kind.SEGMENT


def _echo_key(key: FlowKey, identifier: int) -> FlowKey:
    return FlowKey(key[:-4] + struct.pack("!HH", identifier, 0))


def _key_of_complainer(quoted: Any) -> FlowKey:
    """The quoted packet went the other way: its target is who complains."""
    layers = load_layers()
    transport = quoted.payload
    if not isinstance(quoted, layers.IP | layers.IPv6) or not isinstance(
        transport, layers.TCP | layers.UDP
    ):
        raise WireError("icmp kind")
    return flow_key(
        Endpoint(ip_address(quoted.dst), transport.dport),
        Endpoint(ip_address(quoted.src), transport.sport),
    )
