"""The hot loop's one function: translate a TCP packet of a known flow in place.

Costs about 1 µs a packet whatever its size: one struct read, one dictionary look-up, two struct
writes. The payload is never touched (``scripts/bench_interface`` measures the whole way).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from phantom_tun.packet.checksum import Buffer
from phantom_tun.packet.header import FRAGMENT_MASK, HEADER4, HEADER6, Protocol
from phantom_tun.packet.nat import Rewrite, Witness

TCP_HEADER = 20
SHORTEST_BUFFER = HEADER6 + TCP_HEADER
"""Room a translator needs, however short the packet in it."""

# fragment field, protocol, header checksum, flow key, TCP checksum
_READ4 = struct.Struct("!6xHxBH12s12xH").unpack_from
_WRITE4 = struct.Struct("!H12s").pack_into
# next header, flow key, TCP checksum
_READ6 = struct.Struct("!6xBx36s12xH").unpack_from
_WRITE_SUM = struct.Struct("!H").pack_into

_SUM4_AT = 10
_TCP_SUM4_AT = HEADER4 + 16
_KEY6_AT = 8
_TCP_SUM6_AT = HEADER6 + 16
_FLAGS4_AT = HEADER4 + 13
_FLAGS6_AT = HEADER6 + 13
_SYN_ACK_RST_FIN = 0x17
_SYN, _RST = 0x02, 0x04

Translator = Callable[[bytearray, int], Witness | bool]
"""Takes a buffer and the length of the packet at its start; true if the packet was rewritten, or
who has to see it then."""


def make_translator(rewrites: Mapping[bytes, Rewrite]) -> Translator:
    """A function that rewrites TCP packets whose flow is in ``rewrites``, which may change
    meanwhile; every other packet is left alone. Never raises, whatever is in the buffer, which must
    have room for :data:`SHORTEST_BUFFER` bytes.
    """
    find = rewrites.get
    tcp = int(Protocol.TCP)
    read4, write4, read6, write_sum = _READ4, _WRITE4, _READ6, _WRITE_SUM
    shortest4, shortest6 = HEADER4 + TCP_HEADER, HEADER6 + TCP_HEADER

    def translate(buffer: bytearray, length: int) -> Witness | bool:
        first = buffer[0]
        if first == 0x45:
            fragment, protocol, ip_sum, key, tcp_sum = read4(buffer)
            if protocol != tcp or fragment & FRAGMENT_MASK or length < shortest4:
                return False
            entry = find(key)
            if entry is None:
                return False
            new, tcp_delta, ip_delta, outcome = entry
            # checksum.updated(), written out: a call would cost as much as the rest.
            total = (ip_sum ^ 0xFFFF) + ip_delta
            write4(buffer, _SUM4_AT, ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF, new)
            total = (tcp_sum ^ 0xFFFF) + tcp_delta
            write_sum(buffer, _TCP_SUM4_AT, ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF)
            return outcome
        if first >> 4 == 6:
            protocol, key, tcp_sum = read6(buffer)
            if protocol != tcp or length < shortest6:
                return False
            entry = find(key)
            if entry is None:
                return False
            new, tcp_delta, _, outcome = entry
            buffer[_KEY6_AT : _KEY6_AT + 36] = new
            total = (tcp_sum ^ 0xFFFF) + tcp_delta
            write_sum(buffer, _TCP_SUM6_AT, ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF)
            return outcome
        return False

    return translate


def is_syn(packet: Buffer) -> bool:
    """Whether a packet that a translator rewrote asks for a new connection."""
    return _flags(packet) & _SYN_ACK_RST_FIN == _SYN


def is_reset(packet: Buffer) -> bool:
    """Whether a packet that a translator rewrote ends its connection at once."""
    return _flags(packet) & _RST != 0


def _flags(packet: Buffer) -> int:
    return packet[_FLAGS4_AT if packet[0] >> 4 == 4 else _FLAGS6_AT]
