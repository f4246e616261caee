"""The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

Sums are one's complement sums of big-endian 16-bit words, folded to 0…0xFFFF. Zero means "all words
are zero"; any other multiple of 0xFFFF is written 0xFFFF, so results equal those of a word-by-word
implementation bit for bit.
"""

from __future__ import annotations

Buffer = bytes | bytearray | memoryview


def ones_sum(data: Buffer) -> int:
    """Folded sum of ``data``; an odd last byte counts as the high half of a word.

    2^16 = 1 modulo 0xFFFF, so one division of the whole integer replaces the loop over words.
    """
    value = int.from_bytes(data, "big")
    if not value:
        return 0
    if len(data) & 1:
        value <<= 8
    return value % 0xFFFF or 0xFFFF


def fold(total: int) -> int:
    """Fold a sum of any number of folded sums (or lengths) to 16 bits."""
    if not total:
        return 0
    return total % 0xFFFF or 0xFFFF


def difference(new: Buffer, old: Buffer) -> int:
    """What replacing ``old`` by ``new`` adds to the sum of the data around them."""
    return fold(ones_sum(new) + (ones_sum(old) ^ 0xFFFF))


def checksum(total: int) -> int:
    """The checksum field for data of folded sum ``total``."""
    return total ^ 0xFFFF


def udp_checksum(total: int) -> int:
    """The same for UDP, where a field of zero would mean "no checksum" (RFC 768)."""
    return (total ^ 0xFFFF) or 0xFFFF


def updated(field: int, delta: int) -> int:
    """A checksum field after its data changed by ``delta`` (RFC 1624, equation 3)."""
    total = (field ^ 0xFFFF) + delta
    return ((total & 0xFFFF) + (total >> 16)) ^ 0xFFFF
