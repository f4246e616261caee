"""What the interface itself says to an application: TCP resets and ICMP errors, built by scapy.

Resets follow RFC 9293 §3.10.7.1, errors RFC 792 and RFC 1812 §4.3.2.3 (quote as much of the packet
as fits into 576 bytes) and RFC 4443 §2.4 (as much as fits into 1,280).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

from phantom_tun.packet.header import HEADER4, HEADER6
from phantom_tun.packet.layers import load_layers

_ICMP_HEADER = 8
QUOTE4 = 576 - HEADER4 - _ICMP_HEADER
"""Bytes of the offending packet that an ICMP error quotes."""
QUOTE6 = 1280 - HEADER6 - _ICMP_HEADER
"""The same for ICMPv6."""
QUOTE = max(QUOTE4, QUOTE6)
"""Nobody needs to keep more of a packet than this to answer it."""

_UNREACHABLE4, _HOST4, _PORT4 = 3, 1, 3
_ADDRESS6, _PORT6 = 3, 4
_SEQUENCE_MASK = 0xFFFF_FFFF


def reset_for(packet: bytes) -> bytes:
    """The RST that a host without such a connection sends for ``packet``, a TCP segment that
    :func:`~phantom_tun.packet.classify.classify` accepted (and that isn't a RST itself)."""
    layers = load_layers()
    ip = _dissect(packet)
    tcp = ip.payload
    answer = layers.TCP(sport=tcp.dport, dport=tcp.sport, window=0)
    if tcp.flags.A:
        answer.flags, answer.seq = "R", tcp.ack
    else:
        data = len(packet) - (HEADER4 if _is_v4(packet) else HEADER6) - tcp.dataofs * 4
        taken = max(data, 0) + bool(tcp.flags.S) + bool(tcp.flags.F)
        answer.flags, answer.seq, answer.ack = "RA", 0, (tcp.seq + taken) & _SEQUENCE_MASK
    return bytes(_ip(packet, src=ip.dst, dst=ip.src) / answer)


def host_unreachable(packet: bytes, gateway: IPv4Address | IPv6Address) -> bytes:
    """What a router says when nobody has the packet's destination address.

    :param packet: the offending packet, or at least its first :data:`QUOTE` bytes.
    :param gateway: who seems to say it.
    """
    return _unreachable(packet, str(gateway), _HOST4, _ADDRESS6)


def port_unreachable(packet: bytes) -> bytes:
    """What the packet's destination says when nobody has the UDP port; ``packet`` as above."""
    return _unreachable(packet, _dissect(packet).dst, _PORT4, _PORT6)


def _unreachable(packet: bytes, source: str, code4: int, code6: int) -> bytes:
    layers = load_layers()
    to = _dissect(packet).src
    if _is_v4(packet):
        error = layers.ICMP(type=_UNREACHABLE4, code=code4) / layers.Raw(packet[:QUOTE4])
    else:
        error = layers.ICMPv6DestUnreach(code=code6) / layers.Raw(packet[:QUOTE6])
    return bytes(_ip(packet, src=source, dst=to) / error)


def _is_v4(packet: bytes) -> bool:
    return packet[0] >> 4 == 4


def _ip(packet: bytes, **fields: str) -> Any:
    layers = load_layers()
    return layers.IP(**fields, id=0, flags="DF") if _is_v4(packet) else layers.IPv6(**fields)


def _dissect(packet: bytes) -> Any:
    layers = load_layers()
    return (layers.IP if _is_v4(packet) else layers.IPv6)(packet)
