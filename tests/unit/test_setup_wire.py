"""Setup packages and arrays as bytes: one length for all, strict layouts."""

import ipaddress
import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun import profile
from phantom_tun.errors import WireError
from phantom_tun.ids import CertHash, ConnectionId, EntryId, NodeId, PublicKey
from phantom_tun.path.ring import MAX_HOPS, member_count
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.setup import (
    ARRAY_LEN,
    MAX_ROUTE_LEN,
    ROUND1_LEN,
    ROUND2_LEN,
    SLOT_CONTENT_LEN,
    SLOT_LEN,
    SLOTS,
    InteriorPart,
    Neighbour,
    Role,
    Round1Package,
    Round2Package,
    TerminatingPart,
    slot_range,
    split_signature,
)

CONTENT_LEN = ROUND2_LEN - 64


def neighbour(number):
    address = ipaddress.ip_address(f"11.{number}.0.1" if number % 2 else f"2001:db8:{number}::1")
    ref = NodeRef(NodeId(bytes([number]) * 32), CertHash(bytes([number + 1]) * 32), address, 443)
    return Neighbour(ref, ConnectionId(bytes([number + 2]) * 16))


def first(role):
    return Round1Package(
        role,
        1_800_000_600,
        neighbour(1),
        neighbour(2),
        PublicKey(b"c" * 32),
        b"l" * 32,
        b"f" * 32,
        b"k" * 32,
        b"h" * 32,
    )


PARTS = {
    Role.Y: None,
    Role.INTERIOR: InteriorPart((neighbour(3), neighbour(4)), b"K" * 32),
    Role.EXIT: TerminatingPart(neighbour(5), True, b"K" * 32),
    Role.ENTRY: TerminatingPart(
        neighbour(6), False, b"K" * 32, EntryId(b"e" * 16), b"r" * MAX_ROUTE_LEN
    ),
}


def second(role):
    return Round2Package(b"h" * 32, PARTS[role])


def test_the_sizes_are_those_of_the_network_profile():
    assert (SLOTS, SLOT_CONTENT_LEN) == (profile.ARRAY_SLOTS, profile.PACKAGE_SIZE)
    assert MAX_HOPS == profile.MAX_HOPS
    assert ARRAY_LEN == 24 * (16 + 1536)
    assert ROUND1_LEN == 392


def test_the_longest_path_leaves_a_slot_unused():
    assert member_count(MAX_HOPS) == 23 < SLOTS


def test_slots_cover_the_array_without_overlap():
    ranges = [slot_range(slot) for slot in range(SLOTS)]
    assert ranges[0].start == 0
    assert ranges[-1].stop == ARRAY_LEN
    assert all(
        one.stop == other.start and one.stop - one.start == SLOT_LEN
        for one, other in itertools.pairwise(ranges)
    )


@pytest.mark.parametrize("role", Role)
def test_round_1_packages_come_back_and_have_one_length(role):
    packed = first(role).pack()
    assert len(packed) == ROUND1_LEN
    assert Round1Package.unpack(packed) == first(role)


@pytest.mark.parametrize("role", Role)
def test_round_2_packages_come_back_and_have_one_length(role):
    packed = second(role).pack()
    assert len(packed) == CONTENT_LEN
    assert Round2Package.unpack(packed, role) == second(role)


@pytest.mark.parametrize("change", [-1, 1])
def test_other_lengths_are_refused(change):
    for data, unpack in (
        (first(Role.Y).pack(), Round1Package.unpack),
        (second(Role.Y).pack(), lambda data: Round2Package.unpack(data, Role.Y)),
    ):
        with pytest.raises(WireError, match="bytes"):
            unpack(data[:change] if change < 0 else data + b"\0")


def test_an_unknown_role_is_refused():
    for value in (0, 5, 255):
        with pytest.raises(WireError, match="role"):
            Round1Package.unpack(bytes([value]) + first(Role.Y).pack()[1:])


@pytest.mark.parametrize("role", Role)
def test_every_unused_byte_is_checked_in_round_1(role):
    packed = first(role).pack()
    used = len(packed.rstrip(b"\0"))
    assert used < ROUND1_LEN
    for place in range(used, ROUND1_LEN):
        spoilt = packed[:place] + b"\x01" + packed[place + 1 :]
        with pytest.raises(WireError, match="unused"):
            Round1Package.unpack(spoilt)


@pytest.mark.parametrize("role", Role)
def test_every_unused_byte_is_checked_in_round_2(role):
    packed = second(role).pack()
    used = len(packed.rstrip(b"\0"))
    for place in range(used, CONTENT_LEN):
        spoilt = packed[:place] + b"\x01" + packed[place + 1 :]
        with pytest.raises(WireError, match="unused"):
            Round2Package.unpack(spoilt, role)


@pytest.mark.parametrize(
    ("role", "other"),
    [
        (Role.INTERIOR, Role.Y),
        (Role.EXIT, Role.Y),
        (Role.ENTRY, Role.Y),
        (Role.INTERIOR, Role.EXIT),
        (Role.ENTRY, Role.EXIT),
        (Role.EXIT, Role.ENTRY),
        (Role.Y, Role.ENTRY),
    ],
)
def test_a_package_for_one_role_is_none_for_another(role, other):
    with pytest.raises(WireError):
        Round2Package.unpack(second(role).pack(), other)


def test_a_build_that_did_not_succeed_is_refused():
    for flag in (0, 2):
        with pytest.raises(WireError, match="succeed"):
            Round2Package.unpack(bytes([flag]) + second(Role.Y).pack()[1:], Role.Y)


def test_a_flag_is_0_or_1():
    packed = second(Role.EXIT).pack()
    assert packed[33] == 1
    with pytest.raises(WireError, match="flag"):
        Round2Package.unpack(packed[:33] + b"\x02" + packed[34:], Role.EXIT)


@pytest.mark.parametrize("length", [0, MAX_ROUTE_LEN + 1, 65535])
def test_a_route_has_a_possible_length(length):
    packed = second(Role.ENTRY).pack()
    at = 33 + 1 + 98 + 32 + 16
    assert packed[at : at + 2] == MAX_ROUTE_LEN.to_bytes(2, "big")
    with pytest.raises(WireError, match="route"):
        Round2Package.unpack(packed[:at] + length.to_bytes(2, "big") + packed[at + 2 :], Role.ENTRY)


def test_the_signature_is_the_end_of_the_plaintext():
    assert split_signature(b"c" * CONTENT_LEN + b"s" * 64) == (b"c" * CONTENT_LEN, b"s" * 64)


def test_secrets_are_not_in_reprs():
    for shown in (repr(first(Role.EXIT)), repr(PARTS[Role.INTERIOR]), repr(PARTS[Role.EXIT])):
        for secret in (b"l" * 32, b"f" * 32, b"k" * 32, b"K" * 32):
            assert repr(secret) not in shown


@given(st.binary(min_size=ROUND1_LEN, max_size=ROUND1_LEN))
def test_any_bytes_parse_or_are_refused_in_round_1(data):
    try:
        package = Round1Package.unpack(data)
    except WireError:
        return
    assert package.pack() == data


@given(st.data(), st.sampled_from(Role))
def test_altered_packages_parse_to_what_they_say_or_are_refused(data, role):
    for packed, unpack in (
        (first(role).pack(), Round1Package.unpack),
        (second(role).pack(), lambda altered: Round2Package.unpack(altered, role)),
    ):
        place = data.draw(st.integers(0, len(packed) - 1))
        value = data.draw(st.integers(0, 255))
        altered = packed[:place] + bytes([value]) + packed[place + 1 :]
        try:
            found = unpack(altered)
        except WireError:
            continue
        assert found.pack() == altered


def test_a_round_1_package_says_nothing_that_depends_on_the_kind_but_the_role():
    plain = first(Role.Y).pack()
    for role in Role:
        assert replace(first(Role.Y), role=role).pack()[1:] == plain[1:]
