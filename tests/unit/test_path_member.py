"""What a member refuses: a negative test for every check, in both rounds."""

import ipaddress
from dataclasses import replace

import pytest
from path_ring import NETWORK, NOW, OWNER, RingOfMembers, foreign_key, ref_of

from phantom_tun.crypto.hashes import h
from phantom_tun.crypto.sealing import seal
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import CapacityExceeded
from phantom_tun.ids import ConnectionId, NetworkId
from phantom_tun.path.hop import PathHop
from phantom_tun.path.keys import OVERLAP, PURPOSE, ROTATE_EVERY
from phantom_tun.path.layers import find_slot
from phantom_tun.path.lifetimes import EXPIRY_STEP, FURTHEST, Y_FURTHEST
from phantom_tun.path.member import (
    PENDING_LIFE,
    ROUND2_PURPOSE,
    ArrayRefused,
    Member,
    MemberLimits,
    Reason,
)
from phantom_tun.path.replay import SHARE, ReplayCache
from phantom_tun.wire.setup import ARRAY_LEN, Neighbour, slot_range, split_signature


def refused(ring, passage, reason, now=NOW):
    """``passage`` is refused for ``reason`` and leaves nothing."""
    member = ring.members[passage.receiver]
    before = (member.standing, member.remembered)
    with pytest.raises(ArrayRefused) as raised:
        ring.deliver(passage, now)
    assert raised.value.reason is reason
    assert (member.standing, member.remembered) == before
    assert not member.pending


PLACES = [0, 3, 7]
"""First, some X-node or Y-node on the way, last member of a 3-hop build."""


# --- round 1 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_in_any_slot_is_noticed(place):
    ring = RingOfMembers(3)
    passage = ring.carry(1, until=place)
    own = find_slot(passage.array, passage.connection, 1)
    for slot in range(24):
        for offset, in_own in ((0, Reason.NO_SLOT), (15, Reason.NO_SLOT), (24, Reason.SEAL)):
            at = slot_range(slot).start + offset
            array = bytearray(passage.array)
            array[at] ^= 1
            reason = in_own if slot == own else Reason.ALTERED
            refused(ring, replace(passage, array=bytes(array)), reason)


def test_a_flipped_last_bit_is_noticed():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    array = bytearray(passage.array)
    array[-1] ^= 0x80
    own_is_last = find_slot(passage.array, passage.connection, 1) == 23
    reason = Reason.SEAL if own_is_last else Reason.ALTERED
    refused(ring, replace(passage, array=bytes(array)), reason)


@pytest.mark.parametrize("array", [b"", bytes(ARRAY_LEN - 1), bytes(ARRAY_LEN + 1)])
def test_other_lengths_are_refused(array):
    ring = RingOfMembers(1)
    refused(ring, replace(ring.start(1), array=array), Reason.LENGTH)


def test_two_swapped_slots_are_noticed():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    own = find_slot(passage.array, passage.connection, 1)
    one, other = (slot_range(slot) for slot in [s for s in range(24) if s != own][:2])
    array = bytearray(passage.array)
    array[one], array[other] = array[other], array[one]
    refused(ring, replace(passage, array=bytes(array)), Reason.ALTERED)


def test_the_own_slot_moved_elsewhere_is_noticed():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    own = find_slot(passage.array, passage.connection, 1)
    here, there = slot_range(own), slot_range((own + 1) % 24)
    array = bytearray(passage.array)
    array[here], array[there] = array[there], array[here]
    refused(ring, replace(passage, array=bytes(array)), Reason.ALTERED)


@pytest.mark.parametrize("place", PLACES)
def test_another_sender_is_refused(place):
    ring = RingOfMembers(3)
    passage = ring.carry(1, until=place)
    refused(ring, replace(passage, sender=ref_of(99).node_id), Reason.SENDER)


def test_another_connection_id_is_refused():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    other = ConnectionId(b"o" * 16)
    refused(ring, replace(passage, connection=other), Reason.NO_SLOT)


def test_a_package_that_names_another_connection_id_is_refused():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    previous = Neighbour(ring.owner, ConnectionId(b"o" * 16))
    refused(ring, ring.with_first(passage, previous=previous), Reason.CONNECTION)


def test_a_package_for_another_network_is_refused():
    ring = RingOfMembers(3, network_id=NetworkId(h("network", b"another")))
    refused(ring, ring.start(1), Reason.SEAL)


def test_a_package_sealed_to_another_key_is_refused():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    plaintext = ring.first_package(passage).pack()
    sealed = seal(plaintext, foreign_key(), PURPOSE, NETWORK)
    refused(ring, ring.with_sealed(passage, sealed), Reason.SEAL)


def test_a_package_sealed_for_another_purpose_is_refused():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    plaintext = ring.first_package(passage).pack()
    public = ring.keys[passage.receiver].published.public
    sealed = seal(plaintext, public, "request", NETWORK)
    refused(ring, ring.with_sealed(passage, sealed), Reason.SEAL)


def test_a_malformed_package_is_refused():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    plaintext = ring.first_package(passage).pack()
    spoilt = ring.with_first_plaintext(passage, plaintext[:-1] + b"\x01")
    refused(ring, spoilt, Reason.MALFORMED)


def test_an_expired_package_is_refused():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    expires = ring.first_package(passage).expires
    refused(ring, passage, Reason.EXPIRED, now=float(expires))
    early = RingOfMembers(3)
    early.deliver(early.start(1), now=NOW)


def test_an_expiry_too_far_ahead_or_not_rounded_is_refused():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    step = int(EXPIRY_STEP)
    furthest = int(NOW + FURTHEST) // step * step
    for expires in (furthest + step, 2**63 // step * step, furthest + 1, furthest - 1):
        refused(ring, ring.with_first(passage, expires=expires), Reason.EXPIRY)


def test_the_furthest_expiry_is_accepted():
    ring = RingOfMembers(3)
    passage = next(
        passage
        for passage in (ring.carry(1, until=place) for place in range(8))
        if ring.first_package(passage).role.stays
    )
    step = int(EXPIRY_STEP)
    furthest = int(NOW + FURTHEST) // step * step
    ring.deliver(ring.with_first(passage, expires=furthest))


def test_a_member_is_not_its_own_successor():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    myself = Neighbour(ring.build.first.node, ConnectionId(b"o" * 16))
    refused(ring, ring.with_first(passage, next=myself), Reason.NAMES_US)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "0.0.0.0", "224.0.0.1", "169.254.1.1", "::1", "::", "fe80::1"],  # noqa: S104
)
def test_a_member_dials_no_address_that_is_no_host_elsewhere(address):
    ring = RingOfMembers(3)
    passage = ring.start(1)
    ref = replace(ref_of(9), address=ipaddress.ip_address(address))
    spoilt = ring.with_first(passage, next=Neighbour(ref, ConnectionId(b"o" * 16)))
    refused(ring, spoilt, Reason.ADDRESS)


def test_loopback_is_dialed_by_those_who_live_there():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    node = passage.receiver
    ring.members[node] = Member(node, NETWORK, ring.keys[node], MemberLimits(), allow_loopback=True)
    ref = replace(ref_of(9), address=ipaddress.ip_address("127.5.0.1"))
    ring.deliver(ring.with_first(passage, next=Neighbour(ref, ConnectionId(b"o" * 16))))


# --- replay --------------------------------------------------------------------------------------


def test_a_replayed_array_is_refused_even_after_the_build():
    ring = RingOfMembers(3)
    replayed = ring.start(1)
    ring.run()
    refused(ring, replayed, Reason.REPLAYED)


def test_a_package_is_not_accepted_again_in_another_array():
    """The same package, sealed anew, in a new build over the same connection id."""
    ring = RingOfMembers(3)
    passage = ring.start(1)
    plaintext = ring.first_package(passage).pack()
    ring.deliver(passage)
    member = ring.members[passage.receiver]
    member.sweep(NOW + PENDING_LIFE)
    again = ring.with_first_plaintext(passage, plaintext)
    assert again.array != passage.array
    refused(ring, again, Reason.REPLAYED, now=NOW + PENDING_LIFE)


def test_a_replay_during_the_build_ends_it():
    ring = RingOfMembers(3)
    passage = ring.start(1)
    ring.deliver(passage)
    with pytest.raises(ArrayRefused) as raised:
        ring.deliver(passage)
    assert raised.value.reason is Reason.NO_SLOT
    with pytest.raises(ArrayRefused):
        ring.deliver(ring.start(2))


ONE, OTHER = ref_of(1).node_id, ref_of(2).node_id


def test_the_replay_cache_forgets_at_expiry_and_not_before():
    cache = ReplayCache()
    cache.remember(b"one", ONE, 100.0)
    cache.remember(b"two", ONE, 200.0)
    for now, known in ((99.9, [b"one", b"two"]), (100.0, [b"two"]), (200.0, [])):
        for digest in (b"one", b"two"):
            if digest in known:
                with pytest.raises(Exception, match="before"):
                    cache.check(digest, ONE, now)
            else:
                cache.check(digest, ONE, now)
        assert len(cache) == len(known)


def test_a_full_replay_cache_refuses_rather_than_forgets():
    cache = ReplayCache(size=16)
    for number in range(16):
        cache.remember(bytes([number]), ref_of(number).node_id, 100.0 + number)
    with pytest.raises(CapacityExceeded):
        cache.check(b"new", OTHER, 50.0)
    cache.check(b"new", OTHER, 100.0)


def test_one_neighbour_can_not_fill_the_replay_cache():
    cache = ReplayCache(size=2 * SHARE)
    cache.remember(b"one", ONE, 100.0)
    cache.remember(b"two", ONE, 200.0)
    with pytest.raises(CapacityExceeded):
        cache.check(b"three", ONE, 50.0)
    cache.check(b"three", OTHER, 50.0)
    cache.check(b"three", ONE, 100.0)


def test_a_y_node_remembers_nothing_for_long():
    """Or one owner could fill its memory for a day, with builds that leave nothing else."""
    ring = RingOfMembers(3)
    passage = ring.start(1)
    assert not ring.first_package(passage).role.stays
    step = int(EXPIRY_STEP)
    furthest = int(NOW + Y_FURTHEST) // step * step
    refused(ring, ring.with_first(passage, expires=furthest + step), Reason.EXPIRY)
    ring.deliver(ring.with_first(ring.start(1), expires=furthest))


def test_a_member_whose_memory_is_full_is_silent():
    ring = RingOfMembers(1)
    passage = ring.start(1)
    ring.members[passage.receiver]._replays = ReplayCache(size=0)
    refused(ring, passage, Reason.FULL)


# --- capacity ------------------------------------------------------------------------------------


def builds_by_one_ring(limits, owners):
    """One build for each owner, all with the same members; the first of them is a Y-node that all
    owners are neighbours of."""
    builds = [RingOfMembers(1, limits=limits, owner=ref_of(owners[0]))]
    for seed, owner in enumerate(owners[1:], 2):
        builds.append(RingOfMembers(1, seed=seed, owner=ref_of(owner), among=builds[0]))
    return builds


def test_builds_between_rounds_are_limited():
    builds = builds_by_one_ring(MemberLimits(pending=2), [OWNER] * 3)
    for ring in builds[:2]:
        ring.deliver(ring.start(1))
    with pytest.raises(ArrayRefused) as raised:
        builds[2].deliver(builds[2].start(1))
    assert raised.value.reason is Reason.FULL


def test_builds_between_rounds_are_limited_per_neighbour():
    builds = builds_by_one_ring(
        MemberLimits(pending_per_neighbour=2), [OWNER, OWNER, OWNER, OWNER + 1]
    )
    for ring in builds[:2]:
        ring.deliver(ring.start(1))
    with pytest.raises(ArrayRefused) as raised:
        builds[2].deliver(builds[2].start(1))
    assert raised.value.reason is Reason.FULL_FOR_NEIGHBOUR
    builds[3].deliver(builds[3].start(1))


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (MemberLimits(hops=2), Reason.FULL),
        (MemberLimits(hops_per_neighbour=2), Reason.FULL_FOR_NEIGHBOUR),
    ],
)
def test_hops_are_limited_whether_they_stand_or_are_being_built(limits, reason):
    builds = builds_by_one_ring(limits, [OWNER] * 3)
    builds[0].run()
    builds[1].carry(1)
    passage = builds[2].carry(1, until=1)
    with pytest.raises(ArrayRefused) as raised:
        builds[2].deliver(passage)
    assert raised.value.reason is reason
    node = passage.receiver
    member = builds[2].members[node]
    assert (member.standing, member.pending) == (1, 1)
    member.release(builds[0].hops[node])
    assert member.standing == 0
    builds[2].deliver(passage)


def test_a_y_node_that_is_full_of_hops_still_helps_to_build():
    ring = RingOfMembers(1, limits=MemberLimits(hops=0))
    passage = ring.deliver(ring.start(1))
    refused(ring, passage, Reason.FULL)


def test_what_is_over_is_forgotten():
    ring = RingOfMembers(1)
    ring.run()
    x_node = ring.build.x_nodes[0].node_id
    member, hop = ring.members[x_node], ring.hops[x_node]
    assert isinstance(hop, PathHop)
    member.sweep(hop.expires - 1)
    assert member.standing == 1
    member.sweep(hop.expires)
    assert member.standing == 0


def test_a_build_without_a_second_round_is_forgotten():
    ring = RingOfMembers(1)
    ring.carry(1)
    second = ring.start(2)
    member = ring.members[second.receiver]
    member.sweep(NOW + PENDING_LIFE - 1)
    assert member.pending == 1
    member.sweep(NOW + PENDING_LIFE)
    assert member.pending == 0
    refused(ring, second, Reason.NO_SLOT)


def test_a_second_array_that_is_late_is_refused_without_a_sweep_too():
    ring = RingOfMembers(1)
    ring.carry(1)
    refused(ring, ring.start(2), Reason.NO_SLOT, now=NOW + PENDING_LIFE)


# --- round 2 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_bit_in_any_slot_is_noticed_in_round_2(place):
    for slot in range(24):
        ring = RingOfMembers(3)
        ring.carry(1)
        passage = ring.carry(2, until=place)
        own = find_slot(passage.array, passage.connection, 2)
        array = bytearray(passage.array)
        array[slot_range(slot).start + 16 + slot] ^= 4
        reason = Reason.SEAL if slot == own else Reason.ALTERED
        refused(ring, replace(passage, array=bytes(array)), reason)
        refused(ring, passage, Reason.NO_SLOT)


def test_round_2_before_round_1_is_refused():
    ring = RingOfMembers(3)
    refused(ring, ring.start(2), Reason.NO_SLOT)


def test_round_2_from_another_sender_is_refused_and_does_no_harm():
    ring = RingOfMembers(3)
    ring.carry(1)
    passage = ring.start(2)
    with pytest.raises(ArrayRefused) as raised:
        ring.deliver(replace(passage, sender=ref_of(99).node_id))
    assert raised.value.reason is Reason.NO_SLOT
    ring.deliver(passage)


def test_round_2_for_another_connection_is_refused():
    ring = RingOfMembers(3)
    ring.carry(1)
    passage = ring.start(2)
    with pytest.raises(ArrayRefused) as raised:
        ring.deliver(replace(passage, connection=ConnectionId(b"o" * 16)))
    assert raised.value.reason is Reason.NO_SLOT


def test_a_finished_build_has_no_third_round():
    ring = RingOfMembers(3)
    ring.run()
    refused(ring, ring.start(2), Reason.NO_SLOT)


def second_round(place=1):
    """A 3-hop build as its second array reaches the member at ``place`` (by default the first
    X-node), and what that member needs to read it."""
    ring = RingOfMembers(3)
    first = ring.carry(1, until=place)
    package = ring.first_package(first)
    for _ in range(place, len(ring.build.members)):
        first = ring.deliver(first)
    passage = ring.carry(2, until=place)
    return ring, passage, package


def test_a_package_under_another_key_is_refused():
    ring, passage, package = second_round()
    plaintext = ring.second_plaintext(passage, package.round2_key)
    refused(ring, ring.with_second_plaintext(passage, b"o" * 32, plaintext), Reason.SEAL)


def test_an_altered_signature_is_refused():
    ring, passage, package = second_round()
    plaintext = bytearray(ring.second_plaintext(passage, package.round2_key))
    plaintext[-1] ^= 1
    spoilt = ring.with_second_plaintext(passage, package.round2_key, bytes(plaintext))
    refused(ring, spoilt, Reason.SIGNATURE)


def test_altered_content_under_the_old_signature_is_refused():
    ring, passage, package = second_round()
    plaintext = bytearray(ring.second_plaintext(passage, package.round2_key))
    plaintext[40] ^= 1
    spoilt = ring.with_second_plaintext(passage, package.round2_key, bytes(plaintext))
    refused(ring, spoilt, Reason.SIGNATURE)


def signed_by_its_construction_key(ring, passage, package, content, network_id=NETWORK):
    construction = next(
        member.construction
        for member in ring.build._members
        if member.construction.public == package.construction_key
    )
    signature = construction.sign(ROUND2_PURPOSE, network_id, content)
    return ring.with_second_plaintext(passage, package.round2_key, content + signature)


def test_a_signature_by_another_construction_key_is_refused():
    ring, passage, package = second_round()
    content, _ = split_signature(ring.second_plaintext(passage, package.round2_key))
    signature = SigningKey.generate().sign(ROUND2_PURPOSE, NETWORK, content)
    spoilt = ring.with_second_plaintext(passage, package.round2_key, content + signature)
    refused(ring, spoilt, Reason.SIGNATURE)


def test_a_signature_for_another_network_is_refused():
    ring, passage, package = second_round()
    content, _ = split_signature(ring.second_plaintext(passage, package.round2_key))
    other = NetworkId(h("network", b"another"))
    spoilt = signed_by_its_construction_key(ring, passage, package, content, other)
    refused(ring, spoilt, Reason.SIGNATURE)


@pytest.mark.parametrize("change", [b"\x00", b"\x02"])
def test_a_validly_signed_package_without_success_is_refused(change):
    ring, passage, package = second_round()
    content, _ = split_signature(ring.second_plaintext(passage, package.round2_key))
    spoilt = signed_by_its_construction_key(ring, passage, package, change + content[1:])
    refused(ring, spoilt, Reason.MALFORMED)


def test_a_validly_signed_package_with_another_hash_is_refused():
    ring, passage, package = second_round()
    content, _ = split_signature(ring.second_plaintext(passage, package.round2_key))
    other = content[:1] + b"h" * 32 + content[33:]
    spoilt = signed_by_its_construction_key(ring, passage, package, other)
    refused(ring, spoilt, Reason.ALTERED)


def test_a_validly_signed_package_is_accepted_as_it_is():
    ring, passage, package = second_round()
    content, _ = split_signature(ring.second_plaintext(passage, package.round2_key))
    ring.deliver(signed_by_its_construction_key(ring, passage, package, content))
    assert ring.hops[passage.receiver].role == "interior"


def test_a_final_neighbour_that_is_ourselves_or_no_host_is_refused():
    for ref, reason in (
        (None, Reason.NAMES_US),
        (replace(ref_of(9), address=ipaddress.ip_address("127.0.0.1")), Reason.ADDRESS),
    ):
        ring, passage, package = second_round()
        content, _ = split_signature(ring.second_plaintext(passage, package.round2_key))
        wrong = ref or ring.build.x_nodes[0]
        assert wrong.node_id == passage.receiver or ref
        other = content[:33] + wrong.pack() + content[33 + 82 :]
        spoilt = signed_by_its_construction_key(ring, passage, package, other)
        refused(ring, spoilt, reason)


# --- keys ----------------------------------------------------------------------------------------


def test_packages_for_the_former_key_open_until_it_is_destroyed():
    for later, reason in (
        (ROTATE_EVERY + OVERLAP - 1, None),
        (ROTATE_EVERY + OVERLAP, Reason.SEAL),
    ):
        ring = RingOfMembers(1, lifetime=ROTATE_EVERY + 2 * OVERLAP)
        passage = ring.start(1)
        ring.keys[passage.receiver].refresh(NOW + ROTATE_EVERY)
        expires = int((NOW + later) // EXPIRY_STEP + 2) * int(EXPIRY_STEP)
        former = replace(ring.first_package(passage), expires=expires)
        sealed = seal(former.pack(), ring.ring.near.path_key, PURPOSE, NETWORK)
        passage = ring.with_sealed(passage, sealed)
        if reason is None:
            ring.deliver(passage, now=NOW + later)
        else:
            refused(ring, passage, reason, now=NOW + later)


def test_keys_rotate_daily_and_destroy_the_old_one():
    ring = RingOfMembers(1)
    keys = ring.keys[ring.build.first.node.node_id]
    first = keys.published
    assert first.until == NOW + ROTATE_EVERY + OVERLAP
    assert not keys.refresh(NOW + ROTATE_EVERY - 1)
    assert keys.published == first
    assert keys.refresh(NOW + ROTATE_EVERY)
    second = keys.published
    assert second.public != first.public
    assert second.until == NOW + 2 * ROTATE_EVERY + OVERLAP
    assert len(keys._held) == 2
    assert not keys.refresh(NOW + ROTATE_EVERY + OVERLAP)
    assert [held.key.public for held in keys._held] == [second.public]
