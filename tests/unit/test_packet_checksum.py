"""One's complement arithmetic against scapy's and against its own definition."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import checksum as scapy_checksum

from phantom_tun.packet.checksum import (
    checksum,
    difference,
    fold,
    ones_sum,
    udp_checksum,
    updated,
)


def word_by_word(data: bytes) -> int:
    """RFC 1071 as it is written."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=300))
def test_sum_is_that_of_the_definition(data: bytes) -> None:
    assert ones_sum(data) == word_by_word(data)
    assert ones_sum(memoryview(data)) == ones_sum(bytearray(data)) == ones_sum(data)


@given(st.binary(max_size=300))
def test_checksum_equals_scapys(data: bytes) -> None:
    assert checksum(ones_sum(data)) == scapy_checksum(data)


def test_zero_and_minus_zero_are_told_apart() -> None:
    assert ones_sum(bytes(10)) == 0
    assert ones_sum(b"\xff\xff" * 3) == 0xFFFF
    assert checksum(0) == 0xFFFF
    assert checksum(0xFFFF) == 0
    assert udp_checksum(0xFFFF) == 0xFFFF
    assert udp_checksum(0x1234) == 0xEDCB


@given(st.lists(st.binary(max_size=40).filter(lambda part: len(part) % 2 == 0)))
def test_sums_of_parts_fold_to_the_sum_of_the_whole(parts: list[bytes]) -> None:
    assert fold(sum(map(ones_sum, parts))) == ones_sum(b"".join(parts))


@given(st.binary(min_size=12, max_size=12), st.binary(min_size=12, max_size=12), st.binary())
def test_incremental_update_verifies(old: bytes, new: bytes, rest: bytes) -> None:
    field = checksum(ones_sum(old + rest))
    changed = updated(field, difference(new, old))
    if any(new + rest):
        assert fold(ones_sum(new + rest) + changed) == 0xFFFF
    assert 0 <= changed <= 0xFFFF
