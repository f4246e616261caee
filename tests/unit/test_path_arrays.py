"""Arrays as they go round: what every member and every link sees of them."""

import ipaddress
import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from path_ring import NETWORK, NOW, OWNER, ROUTE, RingOfMembers, ref_of, uncover

from phantom_tun.errors import ProtocolViolation, UsageError
from phantom_tun.path.build import Build, Terms, UnusableKey
from phantom_tun.path.layers import ArrayMaker, Cover, find_slot, hash_without, hint, xor
from phantom_tun.path.lifetimes import Ends
from phantom_tun.path.ring import MAX_HOPS, Ring, member_count
from phantom_tun.wire.setup import ARRAY_LEN, HINT_LEN, SLOT_LEN, SLOTS, Role, slot_range

WAYS = [(hops, forward) for hops in range(1, MAX_HOPS + 1) for forward in (True, False)]
RUN = 16
"""Bytes in common that would be no coincidence: half a hint, one AES block."""


def runs(data):
    return {data[at : at + RUN] for at in range(0, len(data) - RUN + 1)}


@pytest.mark.parametrize(("hops", "forward"), WAYS)
@pytest.mark.parametrize("kind", ["exit", "entry"])
def test_a_build_of_any_length_in_any_direction_comes_round(hops, forward, kind):
    ring = RingOfMembers(hops, forward=forward, kind=kind, seed=hops)
    ring.run()
    x_nodes = [ref.node_id for ref in ring.build.x_nodes]
    assert set(ring.hops) == set(x_nodes)
    inner, outer = ring.owner.node_id, None
    inner_connection = ring.build.first_connection
    for index, node in enumerate(x_nodes):
        hop = ring.hops[node]
        assert hop.path_secret == ring.build.secrets[index]
        last = index == hops - 1
        assert hop.role == (kind if last else "interior")
        outward = list(hop.neighbours) if forward or last else list(hop.neighbours)[::-1]
        assert (outward[0][0].node_id, outward[0][1]) == (inner, inner_connection)
        if not last:
            outer, outer_connection = outward[1]
            assert outer.node_id == x_nodes[index + 1]
            inner, inner_connection = node, outer_connection
        assert hop.entry_id == (ring.build.entry_id if last else None)
        assert hop.route == (ROUTE if last and kind == "entry" else None)


@pytest.mark.parametrize(("hops", "forward"), WAYS)
def test_each_link_of_the_path_is_opened_by_the_end_that_comes_first_in_the_ring(hops, forward):
    ring = RingOfMembers(hops, forward=forward)
    ring.run()
    path = [ring.owner.node_id, *(ref.node_id for ref in ring.build.x_nodes)]
    opened = {
        (node, successor.node_id)
        for node, successor in ring.successors.items()
        if successor is not None
    }
    pairs = list(itertools.pairwise(path))
    if forward:
        assert opened == set(pairs[1:]), "the owner opens the first one"
    else:
        assert opened == {(outer, inner) for inner, outer in pairs}


@pytest.mark.parametrize(("hops", "forward"), WAYS)
def test_the_order_keeps_x_nodes_apart_and_off_the_ends(hops, forward):
    ring = RingOfMembers(hops, forward=forward)
    x_nodes = {ref.node_id for ref in ring.build.x_nodes}
    members = [ref.node_id for ref in ring.build.members]
    assert len(members) == len(set(members)) == member_count(hops)
    kinds = [member in x_nodes for member in members]
    assert not kinds[0]
    assert not kinds[-1]
    assert not any(one and other for one, other in itertools.pairwise(kinds))
    ends = [len(list(group)) for _, group in itertools.groupby(kinds)]
    near, far = (ends[0], ends[-1]) if forward else (ends[-1], ends[0])
    assert (near, far) == (1, max(1, hops - 1))


def test_a_ring_of_impossible_shape_is_refused():
    for near, x_nodes, between, far in (
        (0, (), (), (1,)),
        (0, (1,), (2,), (3,)),
        (0, (1, 2), (), (3,)),
        (0, (1, 2, 3), (4, 5), (6,)),
    ):
        with pytest.raises(ValueError, match="ring"):
            Ring(near, x_nodes, between, far, forward=True)


@pytest.mark.parametrize("hops", [1, 3, 8])
def test_arrays_have_one_length_whatever_they_build(hops):
    for kind in ("exit", "entry"):
        ring = RingOfMembers(hops, kind=kind)
        ring.run()
        assert {len(passage.array) for passage in ring.passages} == {ARRAY_LEN}


@pytest.mark.parametrize("hops", [1, 3, 8])
def test_arrays_on_different_links_and_rounds_have_nothing_in_common(hops):
    ring = RingOfMembers(hops)
    ring.run()
    seen = Counter()
    for passage in ring.passages:
        seen.update(runs(passage.array))
    assert max(seen.values()) == 1


def test_arrays_of_two_builds_by_the_same_members_have_nothing_in_common():
    one, other = RingOfMembers(3, seed=1), RingOfMembers(3, seed=2)
    one.run()
    other.run()
    first = set().union(*(runs(passage.array) for passage in one.passages))
    second = set().union(*(runs(passage.array) for passage in other.passages))
    assert not first & second


def test_what_two_colluding_members_take_off_does_not_meet():
    """Members 2 and 4 stand on both sides of the honest member 3: neither what they see, nor what
    they get when they remove or add their own layers, nor the difference of the two is the same."""
    ring = RingOfMembers(3)
    ring.carry(1)
    before, after = ring.passages[2], ring.passages[4]
    secrets = [ring.first_package(passage).layer_secret for passage in ring.passages[:5]]
    views_before = [before.array, uncover(before.array, secrets[2], 1)]
    views_after = [after.array, uncover(after.array, secrets[4], 1)]
    for one in views_before:
        for other in views_after:
            assert not runs(one) & runs(other)


def test_every_slot_looks_random_on_the_way():
    """ML-KEM ciphertexts have structure that AES-CTR hides; a crude check for skew per bit."""
    ring = RingOfMembers(3)
    ring.carry(1)
    for passage in ring.passages[:-1]:
        own = find_slot(passage.array, passage.connection, 1)
        for slot in range(SLOTS):
            if slot != own:
                ones = int.from_bytes(passage.array[slot_range(slot)]).bit_count()
                assert abs(ones / (8 * SLOT_LEN) - 0.5) < 0.03


def test_used_and_unused_slots_are_in_random_order():
    places = set()
    for seed in range(20):
        ring = RingOfMembers(1, seed=seed)
        passage = ring.start(1)
        places.add(find_slot(passage.array, passage.connection, 1))
    assert len(places) > 8


def test_the_slots_of_the_two_rounds_are_drawn_anew():
    moved = 0
    for seed in range(5):
        ring = RingOfMembers(1, seed=seed)
        one = ring.start(1)
        other = ring.start(2)
        moved += find_slot(one.array, one.connection, 1) != find_slot(
            other.array, other.connection, 2
        )
    assert moved


def test_nothing_is_drawn_twice():
    """Equal keys, ids, secrets or expiries would let colluding members find that they share a path;
    16 bytes or more are never the same."""
    ring = RingOfMembers(8)
    ring.carry(1)
    packages = [ring.first_package(passage) for passage in ring.passages[:-1]]
    values = []
    for package in packages:
        values += [
            package.construction_key,
            package.layer_secret,
            package.fill_secret,
            package.round2_key,
            package.array_hash,
            package.previous.connection,
        ]
    assert len(set(values)) == len(values)
    assert len({package.expires for package in packages}) > 1


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("place", [0, ARRAY_LEN // 2, ARRAY_LEN - 1])
def test_the_owner_notices_a_single_bit(number, place):
    ring = RingOfMembers(1)
    if number == 2:
        ring.carry(1)
    returned = bytearray(ring.carry(number).array)
    returned[place] ^= 0x40
    with pytest.raises(ProtocolViolation, match="altered"):
        ring.build.check(number, bytes(returned))


def test_the_owner_refuses_the_array_of_the_other_round_and_other_lengths():
    ring = RingOfMembers(1)
    first, second = ring.carry(1).array, ring.carry(2).array
    for number, wrong in ((1, second), (2, first), (1, first[:-1]), (2, second + b"\0")):
        with pytest.raises(ProtocolViolation, match="altered"):
            ring.build.check(number, wrong)


def test_an_entry_path_needs_a_route_of_possible_length():
    ring = RingOfMembers(1)
    for factory in (None, lambda *_: b"", lambda *_: b"r" * 301):
        terms = Terms("entry", Ends(NOW + 3600), factory)
        with pytest.raises(UsageError, match="route"):
            Build(ring.ring, ring.owner, NETWORK, terms, now=NOW, rng=random.Random(1))


def test_the_route_is_made_for_the_terminating_node_and_ends_when_the_owner_stops():
    ring = RingOfMembers(3)
    asked = []
    ends = Ends(NOW + 3600)
    terms = Terms("entry", ends, lambda *args: asked.append(args) or ROUTE)
    build = Build(ring.ring, ring.owner, NETWORK, terms, now=NOW, rng=random.Random(1))
    assert asked == [(build.x_nodes[-1], build.entry_id, ends.retires)]
    assert ends.retires < build.expires


@pytest.mark.parametrize("key", [b"", bytes(1216), b"\xff" * 1216])
def test_a_member_with_an_unusable_key_is_named_to_the_owner(key):
    ring = RingOfMembers(1)
    bad = ring.ring.x_nodes[0]
    spoilt = ring.ring.map(lambda one: type(one)(one.ref, key) if one is bad else one)
    build = Build(spoilt, ring.owner, NETWORK, ring.terms, now=NOW, rng=random.Random(1))
    with pytest.raises(UnusableKey) as raised:
        build.array(1)
    assert raised.value.node_id == bad.ref.node_id


# --- what each role learns ------------------------------------------------------------------------


def everything_told(ring):
    """By member: role and all plaintexts that it can open."""
    told = {}
    packages = {}
    first = ring.start(1)
    for _ in ring.build.members:
        package = ring.first_package(first)
        packages[first.receiver] = package
        told[first.receiver] = (package.role, [package.pack()])
        first = ring.deliver(first)
    second = ring.start(2)
    for _ in ring.build.members:
        plaintext = ring.second_plaintext(second, packages[second.receiver].round2_key)
        told[second.receiver][1].append(plaintext)
        second = ring.deliver(second)
    return told


@pytest.mark.parametrize(("hops", "forward"), WAYS)
def test_the_owner_is_known_to_its_neighbours_only_and_to_them_as_a_neighbour(hops, forward):
    # The four bytes of an IPv4 address would sooner or later stand in a hash by chance.
    owner = replace(ref_of(OWNER), address=ipaddress.IPv6Address("2001:db8::11:250:0:1"))
    ring = RingOfMembers(hops, forward=forward, kind="entry", owner=owner)
    told = everything_told(ring)
    traces = [
        ring.owner.node_id,
        ring.owner.cert_hash,
        ring.owner.address.packed,
        ring.owner.pack(),
    ]
    ends = {ring.build.members[0].node_id, ring.build.members[-1].node_id}
    first_x = ring.build.x_nodes[0].node_id
    terminating = ring.build.x_nodes[-1].node_id
    for node, (role, (plain1, plain2)) in told.items():
        for trace in traces:
            assert (trace in plain1) == (node in ends)
            assert (trace in plain2) == (node == first_x)
        if node == terminating and hops > 1:
            assert role is Role.ENTRY
            assert not any(trace in plain1 + plain2 for trace in traces)


@pytest.mark.parametrize(("hops", "forward"), WAYS)
def test_a_member_is_told_of_its_neighbours_and_of_nobody_else(hops, forward):
    ring = RingOfMembers(hops, forward=forward)
    told = everything_told(ring)
    order = [ring.owner, *ring.build.members, ring.owner]
    path = [ring.owner, *ring.build.x_nodes]
    everyone = {ref.node_id for ref in order}
    for place, (node, (role, plaintexts)) in enumerate(told.items(), 1):
        expected = {order[place - 1].node_id, order[place + 1].node_id}
        if role is not Role.Y:
            index = next(i for i, ref in enumerate(path) if ref.node_id == node)
            expected |= {ref.node_id for ref in path[index - 1 : index + 2] if ref.node_id != node}
        named = {other for other in everyone if any(other in plain for plain in plaintexts)}
        assert named == expected


def test_only_the_terminating_node_is_told_the_kind():
    for hops in (1, 3, 8):
        exit_ring, entry_ring = (RingOfMembers(hops, kind=kind) for kind in ("exit", "entry"))
        exit_roles = [role for role, _ in everything_told(exit_ring).values()]
        entry_roles = [role for role, _ in everything_told(entry_ring).values()]
        assert exit_roles.count(Role.EXIT) == entry_roles.count(Role.ENTRY) == 1
        assert [role for role in exit_roles if role is not Role.EXIT] == [
            role for role in entry_roles if role is not Role.ENTRY
        ]


def test_y_nodes_are_told_nothing_in_round_2_but_the_hash():
    ring = RingOfMembers(3, kind="entry")
    for role, (_, plain2) in everything_told(ring).values():
        if role is Role.Y:
            assert not any(plain2[33:-64])


def test_an_unreachable_owner_is_named_with_port_0():
    ring = RingOfMembers(3, owner=ref_of(OWNER, port=0))
    told = everything_told(ring)
    assert ring.owner.pack().endswith(b"\0\0")
    assert sum(ring.owner.pack() in b"".join(plain) for _, plain in told.values()) == 3


# --- layers --------------------------------------------------------------------------------------


def test_the_maker_foresees_what_members_do():
    rng = random.Random(5)
    covers = [Cover(rng.randbytes(32), rng.randbytes(32)) for _ in range(4)]
    slots = [7, 0, 23, 11]
    contents = [rng.randbytes(SLOT_LEN) for _ in covers]
    maker = ArrayMaker(covers, slots, 1, rng.randbytes(ARRAY_LEN))
    hashes = {}
    for index in reversed(range(4)):
        hashes[index] = maker.hash_at(index)
        maker.put(index, contents[index])
    array = maker.first
    for index, cover in enumerate(covers):
        assert array[slot_range(slots[index])] == contents[index]
        assert hash_without(array, slots[index]) == hashes[index]
        array = cover.apply(array, slots[index], 1)
    assert array == maker.returned


def test_layers_and_fills_differ_by_round():
    cover = Cover(b"l" * 32, b"f" * 32)
    assert cover.layer(1) != cover.layer(2)
    assert cover.fill(1) != cover.fill(2)
    assert cover.fill(1) != cover.layer(1)[:SLOT_LEN]
    assert repr(b"l" * 32) not in repr(cover)


def test_two_slots_with_the_hint_are_none():
    array = bytearray(random.Random(1).randbytes(ARRAY_LEN))
    mark = hint(b"c" * 16, 1)
    array[slot_range(3)] = mark + bytes(SLOT_LEN - HINT_LEN)
    assert find_slot(bytes(array), b"c" * 16, 1) == 3
    array[slot_range(9)] = mark + bytes(SLOT_LEN - HINT_LEN)
    with pytest.raises(ProtocolViolation):
        find_slot(bytes(array), b"c" * 16, 1)


def test_equal_slots_do_not_cancel_in_the_hash():
    array = bytearray(ARRAY_LEN)
    plain = hash_without(bytes(array), 0)
    array[slot_range(1)] = array[slot_range(2)] = b"x" * SLOT_LEN
    assert hash_without(bytes(array), 0) != plain


def test_xor_undoes_itself():
    one, other = random.Random(1).randbytes(99), bytes(40) + random.Random(2).randbytes(59)
    assert xor(xor(one, other), other) == one
    assert len(xor(bytes(99), bytes(99))) == 99
