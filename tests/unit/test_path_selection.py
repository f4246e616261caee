"""Who is drawn for a path: diversity, guards, suspects, and what is said when nodes are missing."""

import ipaddress
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import pytest

from phantom_tun.clock import DAY, HOUR
from phantom_tun.errors import PathUnavailable
from phantom_tun.ids import NetworkId, NodeId
from phantom_tun.path.candidates import KEY_MARGIN, family_tag, prefix, serves, traits
from phantom_tun.path.guards import GRACE, MAX_SIZE, SET_SIZE, Guard, GuardSet, Saved
from phantom_tun.path.ring import member_count
from phantom_tun.path.selection import GUARD_PLACES, MANY, Draw, draw_ring
from phantom_tun.path.suspicion import Suspicion
from phantom_tun.wire.records import FAMILY_LEN, Capability, NodeAddress, NodeRecord

NOW = 1_800_000_000.0
BOTH = Capability.RELAY | Capability.DIALABLE


@dataclass(frozen=True)
class Known:
    record: NodeRecord
    path_key: bytes = b"key"
    fair: bool = True


def record(
    number,
    *addresses,
    capabilities=BOTH,
    families=(),
    key_until=NOW + HOUR,
    expires=NOW + HOUR,
    work=0,
):
    """Unsigned: whether it is genuine was decided before."""
    addresses = addresses or (f"11.{number}.0.1",)
    return NodeRecord(
        identity=number.to_bytes(32, "big"),
        cert_hash=bytes(32),
        addresses=tuple(NodeAddress.of(ipaddress.ip_address(one), 443) for one in addresses),
        path_key_digest=bytes(32),
        path_key_until=int(key_until),
        capabilities=int(capabilities),
        families=families,
        work=work,
        created=int(NOW),
        expires=int(expires),
        pow=0,
        signature=bytes(64),
    )


OWN = record(255)


def nodes(count, first=1):
    return [Known(record(number)) for number in range(first, first + count)]


def draw_of(candidates, **changes):
    settings = {
        "own": OWN,
        "relatives": frozenset(),
        "candidates": candidates,
        "guards": GuardSet(frozenset()),
        "suspicion": Suspicion(),
        "now": NOW,
        "rng": random.Random(1),
    }
    return Draw(**{**settings, **changes})


def drawn(hops, candidates, **changes):
    ring, _ = draw_ring(hops, draw_of(candidates, **changes))
    return ring


def ids(members):
    return [member.record.node_id for member in members]


def at_guard_places(ring):
    return [ring.x_nodes[0], ring.near, ring.far[-1]]


# --- diversity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", range(1, 9))
def test_members_are_as_many_as_needed_and_all_different(hops):
    ring = drawn(hops, nodes(40))
    members = ring.outward()
    assert len(members) == member_count(hops)
    assert len(set(ids(members))) == len(members)
    assert len({prefix(member.record.ips[0]) for member in members}) == len(members)


@pytest.mark.parametrize("hops", range(1, 9))
def test_exactly_enough_nodes_are_enough(hops):
    drawn(hops, nodes(member_count(hops)))


@pytest.mark.parametrize(
    ("hops", "sentence"),
    [
        (8, "8 hops need 23 members in different /16; of the known nodes 14 fit"),
        (1, "1 hop needs 3 members in different /16; of the known nodes 2 fit"),
    ],
)
def test_too_few_nodes_are_told_in_one_sentence(hops, sentence):
    known = nodes(14 if hops == 8 else 2)
    with pytest.raises(PathUnavailable) as raised:
        drawn(hops, known)
    assert str(raised.value) == sentence


def test_nodes_of_one_prefix_count_as_one():
    crowd = [Known(record(100 + number, f"12.1.{number}.1")) for number in range(50)]
    with pytest.raises(PathUnavailable, match="; of the known nodes 2 fit"):
        drawn(1, [*nodes(1), *crowd])
    drawn(1, [*nodes(2), *crowd])


def test_a_crowded_prefix_is_drawn_no_more_often_than_another():
    crowd = [Known(record(100 + number, f"12.1.{number}.1")) for number in range(100)]
    known = [*nodes(19), *crowd]
    count = sum(
        any(member.record.ips[0].packed[0] == 12 for member in drawn(1, known, rng=rng).outward())
        for rng in map(random.Random, range(400))
    )
    assert 3 / 20 * 400 * 0.6 < count < 3 / 20 * 400 * 1.5


def test_every_address_of_a_node_counts():
    one = Known(record(1, "12.1.0.1", "2001:db8::1"))
    other = Known(record(2, "12.2.0.1", "2001:db8:ffff::1"))
    with pytest.raises(PathUnavailable, match="; of the known nodes 2 fit"):
        drawn(1, [one, other, *nodes(1, 3)])
    apart = Known(record(2, "12.2.0.1", "2001:db9::1"))
    drawn(1, [one, apart, *nodes(1, 3)])


def test_ipv6_prefixes_are_32_bits_long():
    assert prefix(ipaddress.ip_address("2001:db8:1::1")) == prefix(
        ipaddress.ip_address("2001:db8:2::1")
    )
    assert prefix(ipaddress.ip_address("2001:db8::1")) != prefix(
        ipaddress.ip_address("2001:db9::1")
    )
    assert prefix(ipaddress.ip_address("10.1.0.1")) != prefix(ipaddress.ip_address("10.2.0.1"))


def test_a_name_gives_one_tag_in_one_network():
    here, there = NetworkId(b"h" * 32), NetworkId(b"t" * 32)
    tags = {family_tag(here, "one"), family_tag(here, "two"), family_tag(there, "one")}
    assert len(tags) == 3
    assert {len(tag) for tag in tags} == {FAMILY_LEN}
    assert family_tag(here, "one") in tags


def test_nodes_of_one_family_never_meet():
    family = (b"f" * 16,)
    siblings = [Known(record(number, families=family)) for number in (1, 2)]
    with pytest.raises(PathUnavailable, match="; of the known nodes 2 fit"):
        drawn(1, [*siblings, *nodes(1, 3)])
    for seed in range(30):
        ring = drawn(1, [*siblings, *nodes(4, 3)], rng=random.Random(seed))
        assert sum(bool(member.record.families) for member in ring.outward()) <= 1


@pytest.mark.parametrize(
    ("unfit", "changes"),
    [
        (record(255, "13.1.0.1"), {}),
        (record(1, "11.255.9.9"), {}),
        (record(1, families=(b"o" * 16,)), {"own": record(255, families=(b"o" * 16,))}),
        (record(1), {"relatives": frozenset({record(1).node_id})}),
        (record(1, capabilities=Capability.RELAY), {}),
        (record(1, capabilities=Capability.DIALABLE), {}),
        (record(1, expires=NOW), {}),
        (record(1, key_until=NOW + KEY_MARGIN - 1), {}),
        (record(1, "2001:db8::1"), {}),
    ],
    ids=[
        "ourselves",
        "own prefix",
        "own family",
        "own other node",
        "not dialable",
        "no relay",
        "record expired",
        "key ends too soon",
        "other IP version",
    ],
)
def test_unfit_nodes_are_never_members(unfit, changes):
    with pytest.raises(PathUnavailable, match="; of the known nodes 2 fit"):
        drawn(1, [Known(unfit), *nodes(2, 20)], **changes)
    fit = Known(record(2))
    drawn(1, [fit, *nodes(2, 20)], **changes)


def test_the_last_moment_of_a_key_is_exact():
    known = Known(record(1, key_until=NOW + KEY_MARGIN))
    assert serves(known, 4, NOW)
    assert not serves(known, 4, NOW + 1)
    assert not serves(known, 6, NOW)


def test_a_path_runs_over_the_one_ip_version_that_all_members_have():
    six = [Known(record(number, f"2001:{number:x}::1")) for number in range(1, 4)]
    own = record(255, "11.255.0.1", "2001:ff::1")
    ring, version = draw_ring(1, draw_of([*six, *nodes(2, 20)], own=own))
    assert version == 6
    assert set(ids(ring.outward())) == set(ids(six))
    _, version = draw_ring(1, draw_of([*six, *nodes(3, 20)], own=own))
    assert version == 4


def test_traits_clash_in_anything_they_share():
    one = traits(record(1, families=(b"f" * 16,)), frozenset({NodeId(b"r" * 32)}))
    for other, clash in (
        (record(1, "99.1.0.1"), True),
        (record(2, "11.1.99.99"), True),
        (record(2, families=(b"f" * 16,)), True),
        (record(2), False),
    ):
        assert one.clashes(traits(other)) is clash
        assert one.joined(traits(record(3))).clashes(traits(other)) is clash


# --- direction -----------------------------------------------------------------------------------


def test_the_direction_is_a_toss_of_a_coin():
    tosses = Counter(drawn(1, nodes(9), rng=random.Random(seed)).forward for seed in range(200))
    assert 70 < tosses[True] < 130


def test_a_node_that_cant_be_dialed_always_begins_at_its_own_side():
    own = record(255, capabilities=Capability.RELAY)
    assert all(drawn(1, nodes(9), own=own, rng=random.Random(seed)).forward for seed in range(50))


# --- who came by itself --------------------------------------------------------------------------


def test_who_came_by_itself_is_never_drawn():
    crowd = [Known(record(number), fair=False) for number in range(100, 200)]
    known = [*nodes(12), *crowd]
    guards = GuardSet(frozenset())
    for seed in range(30):
        ring = drawn(3, known, guards=guards, rng=random.Random(seed))
        assert all(member.fair for member in ring.outward())
    assert not any(candidate.record.node_id in guards for candidate in crowd)
    with pytest.raises(PathUnavailable, match="; of the known nodes 2 fit"):
        drawn(1, [*nodes(2), *crowd])


def test_a_guard_keeps_its_place_though_it_came_by_itself():
    guards = GuardSet(frozenset())
    first = drawn(1, nodes(3), guards=guards)
    assert len(first.outward()) == 3
    unfair = [Known(record(number), fair=False) for number in (1, 2, 3)]
    ring = drawn(1, [*unfair, *nodes(40, 20)], guards=guards)
    assert set(ids(ring.outward())) <= set(guards.usable(NOW))
    trusted = GuardSet(frozenset({unfair[0].record.node_id}))
    ring = drawn(1, [*unfair, *nodes(40, 20)], guards=trusted)
    assert unfair[0].record.node_id in ids(ring.outward())
    assert not {unfair[1].record.node_id, unfair[2].record.node_id} & set(ids(ring.outward()))


# --- guards --------------------------------------------------------------------------------------


def test_guards_stand_next_to_the_owner_in_every_path():
    guards = GuardSet(frozenset())
    rng = random.Random(3)
    neighbours = set()
    for hops in (1, 3, 8) * 20:
        ring = drawn(hops, nodes(60), guards=guards, rng=rng)
        neighbours.update(ids(at_guard_places(ring)))
    assert len(guards) == SET_SIZE
    assert neighbours == {node for node in ids(nodes(60)) if node in guards}


def test_guards_keep_out_of_other_places_where_there_are_plenty():
    guards = GuardSet(frozenset())
    rng = random.Random(3)
    elsewhere = 0
    for _ in range(100):
        ring = drawn(3, nodes(60), guards=guards, rng=rng)
        others = set(ids(ring.outward())) - set(ids(at_guard_places(ring)))
        elsewhere += sum(node in guards for node in others)
    assert elsewhere <= 10


def test_a_guard_that_cant_be_reached_is_left_alone():
    guards = GuardSet(frozenset())
    known = nodes(12)
    ring = drawn(3, known, guards=guards)
    gone = ring.near.record.node_id
    guards.unreachable(gone, NOW)
    for seed in range(30):
        ring = drawn(3, known, guards=guards, rng=random.Random(seed))
        assert gone not in ids(at_guard_places(ring))
    assert len(guards) == SET_SIZE


def test_further_guards_are_taken_when_too_few_can_be_reached_but_not_for_ever():
    guards = GuardSet(frozenset())
    known = nodes(60)
    sizes = []
    with pytest.raises(PathUnavailable, match="3 guards that can be reached"):
        for seed in range(50):
            ring = drawn(3, known, guards=guards, rng=random.Random(seed))
            for guard in ids(at_guard_places(ring)):
                guards.unreachable(guard, NOW)
            sizes.append(len(guards))
    assert sizes == sorted(sizes)
    assert sizes[0] == SET_SIZE
    assert len(guards) == MAX_SIZE


def neighbours_of(known, guards, builds=60, **changes):
    """Who stands next to the owner in some paths."""
    found = set()
    for seed in range(builds):
        ring = drawn(3, known, guards=guards, rng=random.Random(seed), **changes)
        found.update(ids(at_guard_places(ring)))
    return found


def test_while_we_are_offline_no_guard_is_taken():
    guards = GuardSet(frozenset())
    known = nodes(60)
    drawn(3, known, guards=guards)
    first = list(guards)
    for node in first[:3]:
        guards.unreachable(node, NOW)
    for number in (3, 4):  # two can be reached; then the netdb, too, has given those up
        candidates = [one for one in known if one.record.node_id not in first[3:number]]
        with pytest.raises(PathUnavailable, match="3 guards that can be reached"):
            drawn(3, candidates, guards=guards, online=False)
    assert list(guards) == first
    drawn(3, known, guards=guards)
    assert len(guards) == SET_SIZE + 1


def test_the_first_guards_are_taken_before_there_is_a_link_to_anybody():
    guards = GuardSet(frozenset())
    drawn(3, nodes(60), guards=guards, online=False)
    assert len(guards) == SET_SIZE


@pytest.mark.parametrize("restarted", [False, True])
def test_who_stands_in_is_left_when_earlier_guards_answer(restarted):
    guards = GuardSet(frozenset())
    known = nodes(60)
    drawn(3, known, guards=guards)
    for _ in range(3):  # each time all fail that can be reached
        for node in guards.usable(NOW):
            guards.unreachable(node, NOW)
        drawn(3, known, guards=guards)
    assert len(guards) == SET_SIZE + 9
    everybody = list(guards)
    assert neighbours_of(known, guards) == set(everybody[-3:])
    if restarted:
        guards = GuardSet(frozenset(), GuardSet.decode(guards.encode()))
    else:
        for node in everybody[:3]:
            guards.reached(node)
        assert neighbours_of(known, guards) == {*everybody[:3], *everybody[-3:-1]}
        for node in everybody[3:]:
            guards.reached(node)
    assert neighbours_of(known, guards) == set(everybody[:SET_SIZE])


def test_of_a_set_saved_by_an_earlier_version_the_first_are_used():
    known = nodes(60)
    entry = '{"node": "%s", "until": %d, "seen": %d}'
    entries = [entry % (node.hex(), NOW + 30 * DAY, NOW) for node in ids(known[:MAX_SIZE])]
    saved = GuardSet.decode(('{"guards": [' + ",".join(entries) + "]}").encode())
    guards = GuardSet(frozenset(), saved)
    assert neighbours_of(known, guards) == set(ids(known[:SET_SIZE]))
    guards.refresh([], NOW + 30 * DAY - 1, online=True)
    assert len(guards) == MAX_SIZE, "how long we were away is told by who was seen last"


def test_when_a_term_ends_who_once_stood_in_moves_up():
    far = NOW + 99 * DAY
    known = [Known(record(number, expires=far, key_until=far)) for number in range(1, 61)]
    saved = [
        Guard(node.hex(), NOW + (30 + place) * DAY, NOW)
        for place, node in enumerate(ids(known[: SET_SIZE + 2]))
    ]
    guards = GuardSet(frozenset(), Saved(saved, NOW, 0.0))
    later = neighbours_of(known, guards, now=NOW + 31 * DAY)
    assert later == set(ids(known[2 : SET_SIZE + 2]))
    assert len(guards) == SET_SIZE


def test_a_guard_that_claims_the_others_families_brings_no_new_ones():
    known = [Known(record(number, families=(bytes([number]) * 16,))) for number in range(1, 41)]
    guards = GuardSet(frozenset())
    drawn(3, known, guards=guards)
    liar, *others = [one for one in known if one.record.node_id in guards]
    claimed = tuple(one.record.families[0] for one in others)
    known[known.index(liar)] = Known(record(int.from_bytes(liar.record.identity), families=claimed))
    assert liar.record.node_id not in neighbours_of(known, guards)
    assert len(guards) == SET_SIZE


def test_who_makes_all_guards_unreachable_meets_few_new_ones():
    """For everybody, so that the netdb gives them up as well: the worst case of docs/threats.md."""
    far = NOW + 99 * DAY
    left = [
        Known(record(number, f"20.{number}.0.1", expires=far, key_until=far))
        for number in range(1, 200)
    ]
    guards, met = GuardSet(frozenset()), set()
    for hours in range(0, 90 * 24, 8):
        with suppress(PathUnavailable):
            drawn(1, left, guards=guards, now=NOW + hours * HOUR, rng=random.Random(hours))
        met.update(guards)
        left = [one for one in left if one.record.node_id not in met]
        assert len(guards) <= MAX_SIZE
    assert MAX_SIZE + 80 <= len(met) <= MAX_SIZE + 90


def test_the_pause_of_a_guard_grows_and_ends_when_it_is_reached():
    guards = GuardSet(frozenset())
    node = record(1).node_id
    guards.add(node, NOW, random.Random(1))
    now = NOW
    for pause in (60, 120, 240):
        guards.unreachable(node, now)
        guards.unreachable(node, now + 1)  # found out twice, but gone once
        assert guards.usable(now + pause - 1) == []
        assert guards.paused(node, now + pause - 1)
        now += pause
        assert guards.usable(now) == [node]
    guards.unreachable(node, now)
    guards.reached(node)
    assert guards.usable(NOW) == [node]
    guards.unreachable(node, NOW)
    assert guards.usable(NOW + 60) == [node]


def test_a_node_that_is_no_guard_has_no_pause():
    guards = GuardSet(frozenset())
    guards.unreachable(record(1).node_id, NOW)
    guards.add(record(1).node_id, NOW, random.Random(1))
    assert guards.usable(NOW) == [record(1).node_id]


def test_a_guard_that_is_gone_is_kept_for_a_while():
    guards = GuardSet(frozenset())
    known = nodes(20)
    drawn(1, known, guards=guards)
    gone = next(one for one in known if one.record.node_id in guards)
    rest = [one for one in known if one is not gone]
    for day in range(1, int(GRACE / DAY) + 1):
        guards.refresh(ids(rest), NOW + day * DAY, online=True)
    assert gone.record.node_id in guards
    guards.refresh(ids(rest), NOW + GRACE + 1, online=False)
    assert gone.record.node_id in guards, "we would not know"
    guards.refresh(ids(rest), NOW + GRACE + 1, online=True)
    assert gone.record.node_id not in guards


def test_guards_that_are_gone_are_let_go_one_a_day():
    guards = GuardSet(frozenset())
    drawn(1, nodes(20), guards=guards)
    sizes = []
    for hours in range(0, 8 * 24, 6):
        guards.refresh([], NOW + hours * HOUR, online=True)
        sizes.append(len(guards))
    assert sizes[12] == SET_SIZE, "after three days"
    assert sizes[13::4] == [4, 3, 2, 1, 0]
    assert sizes[14::4] == [4, 3, 2, 1, 0]


def test_while_we_are_away_nobody_is_gone():
    guards = GuardSet(frozenset())
    drawn(1, nodes(20), guards=guards)
    guards.refresh([], NOW, online=True)
    guards = GuardSet(frozenset(), GuardSet.decode(guards.encode()))
    for days in (10, 20, 27):
        guards.refresh([], NOW + days * DAY, online=False)
    back = NOW + 28 * DAY
    guards.refresh([], back, online=True)
    assert len(guards) == SET_SIZE
    guards.refresh([], back + DAY, online=True)
    guards.refresh([], back + GRACE - DAY, online=True)
    assert len(guards) == SET_SIZE
    guards.refresh([], back + GRACE - DAY + 1, online=True)
    assert len(guards) == SET_SIZE - 1


def test_a_guard_that_is_there_stays_until_its_term_ends():
    guards = GuardSet(frozenset())
    node = record(1).node_id
    guards.add(node, NOW, random.Random(1))
    day = 86_400
    for days in range(30):
        guards.refresh([node], NOW + days * day, online=True)
        assert node in guards
    guards.refresh([node], NOW + 90 * day, online=True)
    assert node not in guards


def test_trusted_nodes_come_first_and_have_no_term():
    known = nodes(40)
    trusted = frozenset(ids(known[:2]))
    guards = GuardSet(trusted)
    for seed in range(20):
        ring = drawn(3, known, guards=guards, rng=random.Random(seed))
        assert ring.x_nodes[0].record.node_id in trusted
        assert trusted <= set(ids(at_guard_places(ring)))
    guards.refresh(ids(known), NOW + 365 * 86_400, online=True)
    assert all(node in guards for node in trusted)


def test_trusted_nodes_that_appear_later_are_taken_too():
    known = nodes(40)
    late = known.pop()
    guards = GuardSet(frozenset({late.record.node_id}))
    drawn(1, known, guards=guards)
    assert late.record.node_id not in guards
    ring = drawn(1, [*known, late], guards=guards)
    assert ring.x_nodes[0] is late


@pytest.mark.parametrize("trusted", [2, MAX_SIZE + 2])
def test_trusted_nodes_take_the_places_of_those_who_came_last(trusted):
    known = nodes(60)
    saved = [Guard(node.hex(), NOW + 30 * DAY, NOW) for node in ids(known[:MAX_SIZE])]
    friends = ids(known[-trusted:])
    guards = GuardSet(frozenset(friends), Saved(saved, NOW))
    drawn(3, known, guards=guards)
    there = set(guards)
    assert len(there) == MAX_SIZE
    kept = max(MAX_SIZE - trusted, 0)
    assert there & set(ids(known[:MAX_SIZE])) == set(ids(known[:kept]))
    assert len(there & set(friends)) == min(trusted, MAX_SIZE)


def test_guards_of_one_prefix_are_not_taken_together():
    crowd = [Known(record(100 + number, f"12.1.{number}.1")) for number in range(50)]
    guards = GuardSet(frozenset())
    for seed in range(20):
        drawn(1, [*nodes(20), *crowd], guards=guards, rng=random.Random(seed))
    assert sum(one.record.node_id in guards for one in crowd) <= 1


def test_no_guards_are_drawn_for_a_path_that_cant_be_built_anyway():
    guards = GuardSet(frozenset())
    with pytest.raises(PathUnavailable):
        drawn(8, nodes(10), guards=guards)
    assert len(guards) == 0


def test_guards_survive_on_disk():
    guards = GuardSet(frozenset())
    assert not guards.changed
    drawn(1, nodes(20), guards=guards)
    assert guards.changed
    again = GuardSet(frozenset(), GuardSet.decode(guards.encode()))
    assert again.usable(NOW) == guards.usable(NOW)
    assert not again.changed
    again.refresh(ids(nodes(20)), NOW + HOUR, online=True)
    assert not again.changed, "nothing worth a write"
    again.refresh(ids(nodes(20)), NOW + HOUR + 1, online=True)
    assert again.changed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"guards": [{"node": "xy", "until": 1, "seen": 1}]}',
        b'{"guards": [{"node": "00", "until": 1, "seen": 1}]}',
        b'{"guards": [{"node": "%s", "until": 1}]}' % (b"00" * 32),
        b'{"guards": [%s]}'
        % b",".join(
            b'{"node": "%s", "until": 1, "seen": 1}' % (b"%02x" % number * 32)
            for number in range(MAX_SIZE + 1)
        ),
    ],
)
def test_a_damaged_list_of_guards_is_refused(data):
    with pytest.raises(Exception, match="not a list of guards"):
        GuardSet.decode(data)


# --- suspects ------------------------------------------------------------------------------------


def test_suspects_are_avoided_but_taken_when_there_is_nobody_else():
    suspicion = Suspicion()
    known = nodes(20)
    gone = known[0].record.node_id
    suspicion.unreachable(gone, NOW)
    drawn_times = sum(
        gone in ids(drawn(3, known, suspicion=suspicion, rng=random.Random(seed)).outward())
        for seed in range(100)
    )
    assert drawn_times < 10
    few = known[:8]
    assert gone in ids(drawn(3, few, suspicion=suspicion).outward())


def test_of_very_many_nodes_all_are_drawn_and_guards_are_never_overlooked():
    known = [Known(record(i, f"{20 + i // 250}.{i % 250}.0.1")) for i in range(1, 3 * MANY)]
    trusted = known[-1].record.node_id
    guards = GuardSet(frozenset({trusted}))
    seen = set()
    for seed in range(30):
        ring = drawn(8, known, guards=guards, rng=random.Random(seed))
        assert trusted in ids(at_guard_places(ring))
        assert all(node in guards for node in ids(at_guard_places(ring)))
        seen.update(ids(ring.outward()))
    assert len(guards) == SET_SIZE
    assert len(seen) > 350


def test_the_guard_places_are_three():
    assert GUARD_PLACES == 3 == member_count(1)


# --- paths for the same purpose ------------------------------------------------------------------


def x_ids(ring):
    return set(ids(ring.x_nodes))


@pytest.mark.parametrize("hops", [1, 2, 3, 5])
def test_two_paths_have_no_x_node_in_common_if_there_are_enough(hops):
    known, guards = nodes(40), GuardSet(frozenset())
    for rng in map(random.Random, range(50)):
        one = x_ids(drawn(hops, known, guards=guards, rng=rng))
        other = drawn(hops, known, guards=guards, rng=rng, apart_from=frozenset(one))
        assert one.isdisjoint(x_ids(other))


def test_with_few_nodes_the_terminating_one_differs_first():
    """Eight nodes are just enough for three hops; the first X-node comes from five guards."""
    known, guards = nodes(8), GuardSet(frozenset())
    for rng in map(random.Random, range(50)):
        one = drawn(3, known, guards=guards, rng=rng)
        other = drawn(3, known, guards=guards, rng=rng, apart_from=frozenset(x_ids(one)))
        assert ids(other.x_nodes)[0] not in x_ids(one)
        assert ids(other.x_nodes)[-1] not in x_ids(one)


def test_trusted_guards_are_taken_even_if_another_path_leads_through_them():
    trusted = record(3).node_id
    guards = GuardSet(frozenset({trusted}))
    for rng in map(random.Random, range(20)):
        ring = drawn(2, nodes(20), guards=guards, rng=rng, apart_from=frozenset({trusted}))
        assert ids(ring.x_nodes)[0] == trusted
