"""Routing table, prefix limits, contacts and source limits."""

from __future__ import annotations

import ipaddress
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.clock import DAY
from phantom_tun.ids import NodeId
from phantom_tun.netdb.contact import FIRST_RETRY, LAST_RETRY, Contact, position
from phantom_tun.netdb.limits import SOURCES_REMEMBERED, SourceLimits
from phantom_tun.netdb.prefixes import BUCKET_LIMITS, PrefixCounter, PrefixLimits
from phantom_tun.netdb.table import DISPLACEABLE_AFTER, K, RoutingTable
from phantom_tun.testing.record_factory import NOW, NodeMaker

OWN = NodeId(bytes(32))
SALT = b"salt"


def contact(number: int, address: str | None = None) -> Contact:
    ip = ipaddress.IPv4Address(address) if address else None
    record = NodeMaker(number, address=ip).record()
    return Contact(record, position(record.node_id), NOW)


def far(count: int, address: str | None = None, start: int = 0) -> list[Contact]:
    """Contacts in the far half of the network as seen from OWN."""
    found: list[Contact] = []
    number = start
    while len(found) < count:
        made = contact(number, address)
        if made.position >> 255:
            found.append(made)
        number += 1
    return found


class TestRoutingTable:
    def test_a_contact_lies_in_the_bucket_of_its_distance(self) -> None:
        table = RoutingTable(OWN, SALT)
        assert table.bucket_of(1) == 0
        assert table.bucket_of(2**255) == 255
        assert table.bucket_of(0) == -1
        assert table.used_classes() == []
        table.insert(far(1)[0])
        assert table.used_classes() == [255]

    def test_classes_that_are_worth_a_lookup(self) -> None:
        table = RoutingTable(OWN, SALT)
        assert table.thin_classes() == []
        members = [contact(number) for number in range(200)]
        for member in members:
            table.insert(member)
        sizes = {
            index: sum(table.bucket_of(member.position) == index for member in table)
            for index in range(256)
        }
        neighbours = sorted(table, key=lambda member: member.position)[:K]
        reach = table.bucket_of(neighbours[-1].position)
        assert table.thin_classes() == [
            index for index in range(255, reach, -1) if sizes[index] < K
        ]
        assert table.used_classes() == [index for index in range(256) if sizes[index]]

    def test_our_own_id_never_comes_in(self) -> None:
        made = contact(1)
        table = RoutingTable(made.node_id, SALT)
        assert table.insert(made) is made
        assert len(table) == 0

    def test_a_full_bucket_keeps_the_lowest_ranks_in_any_order(self) -> None:
        members = far(3 * K)
        kept: list[set[NodeId]] = []
        for seed in range(4):
            table = RoutingTable(OWN, SALT)
            random.Random(seed).shuffle(members)
            for member in members:
                expected = table.would_take(member.record)
                assert (table.insert(member) is not member) is expected
            assert table.crowded
            assert len(table) == K
            kept.append({member.node_id for member in table})
        assert all(ids == kept[0] for ids in kept)

    def test_which_ones_depends_on_a_secret_salt(self) -> None:
        members = far(3 * K)
        kept: list[set[NodeId]] = []
        for salt in (b"one", b"two"):
            table = RoutingTable(OWN, salt)
            for member in members:
                table.insert(member)
            kept.append({member.node_id for member in table})
        assert kept[0] != kept[1]

    def test_new_ids_in_the_same_network_are_no_new_chances(self) -> None:
        table = RoutingTable(OWN, SALT)
        for member in far(3 * K):
            table.insert(member)
        outsider = next(m for m in far(K, start=5_000) if not table.would_take(m.record))
        for number, member in enumerate(far(30, str(outsider.record.ips[0]), start=7_000)):
            assert not table.would_take(member.record), number

    def test_more_addresses_are_no_more_chances(self) -> None:
        table = RoutingTable(OWN, SALT)
        for member in far(3 * K):
            table.insert(member)
        chances = [m.record for m in far(K, start=5_000) if table.would_take(m.record)]
        hopeless = [m.record for m in far(K, start=5_000) if not table.would_take(m.record)]
        both = msgspec.structs.replace(
            chances[0], addresses=chances[0].addresses + hopeless[0].addresses
        )
        assert not table.would_take(both)

    def test_inserting_twice_changes_nothing(self) -> None:
        table = RoutingTable(OWN, SALT)
        member = contact(1)
        assert table.insert(member) is None
        assert table.insert(member) is None
        assert len(table) == 1

    def test_a_dead_contact_makes_place(self) -> None:
        table = RoutingTable(OWN, SALT)
        members = far(K + 1)
        for member in members[:K]:
            table.insert(member)
        members[3].failures = DISPLACEABLE_AFTER
        assert table.insert(members[K]) is members[3]
        assert members[K] in table
        assert members[3] not in table
        assert len(table) == K

    def test_few_of_one_24_share_a_bucket(self) -> None:
        table = RoutingTable(OWN, SALT)
        limits = BUCKET_LIMITS
        same = far(limits.narrow + 1, "11.7.7.7")
        for member in same[: limits.narrow]:
            assert table.insert(member) is None
        assert table.insert(same[-1]) is same[-1]

    def test_few_of_one_16_share_a_bucket(self) -> None:
        table = RoutingTable(OWN, SALT)
        limits = BUCKET_LIMITS
        members = [far(1, f"11.7.{n}.1", start=100 * n)[0] for n in range(limits.wide + 1)]
        for member in members[: limits.wide]:
            assert table.insert(member) is None
        assert table.insert(members[-1]) is members[-1]

    def test_who_is_displaced_doesn_t_count_against_the_newcomer(self) -> None:
        table = RoutingTable(OWN, SALT, PrefixLimits(narrow=1, wide=1))
        old, new = far(2, "11.7.7.7")
        others = far(K - 1, start=10_000)
        for member in [old, *others]:
            assert table.insert(member) is None
        old.failures = DISPLACEABLE_AFTER
        assert table.insert(new) is old

    @given(st.integers(0, 2**256 - 1), st.integers(1, 30))
    def test_closest_is_what_sorting_everybody_gives(self, target: int, count: int) -> None:
        members = [contact(number) for number in range(40)]
        table = RoutingTable(OWN, SALT)
        inside = [member for member in members if table.insert(member) is None]
        wanted = sorted(inside, key=lambda member: member.position ^ target)[:count]
        assert table.closest(target, count, NOW) == wanted

    def test_failed_and_expired_contacts_are_named_to_nobody(self) -> None:
        table = RoutingTable(OWN, SALT)
        good, failed = contact(1), contact(2)
        table.insert(good)
        table.insert(failed)
        failed.failed(NOW)
        assert table.closest(0, 5, NOW) == [good]
        assert table.closest(0, 5, NOW + 2 * DAY) == []

    def test_counting_who_is_closer(self) -> None:
        table = RoutingTable(OWN, SALT)
        members = [contact(number) for number in range(10)]
        for member in members:
            table.insert(member)
        target = 2**255
        expected = [member for member in members if member.position ^ target < target]
        expected.sort(key=lambda member: member.position ^ target)
        assert table.closer_than_us(target, NOW) == expected

    def test_removing(self) -> None:
        table = RoutingTable(OWN, SALT)
        member = contact(1)
        table.remove(member)
        table.insert(member)
        table.remove(member)
        assert len(table) == 0
        assert list(table) == []


class TestPrefixCounter:
    def test_v6_prefixes(self) -> None:
        counter = PrefixCounter(PrefixLimits(narrow=1, wide=2))
        v6 = [
            NodeMaker(n, address=ipaddress.IPv6Address(text)).record()
            for n, text in enumerate(["2a00:1:1::1", "2a00:1:1::2", "2a00:1:2::1", "2a00:1:3::1"])
        ]
        assert [counter.admit(record) for record in v6] == [True, False, True, False]

    def test_private_networks_are_not_limited(self) -> None:
        counter = PrefixCounter(PrefixLimits(narrow=1, wide=1))
        records = [
            NodeMaker(n, address=ipaddress.IPv4Address(f"10.0.0.{n}")).record() for n in range(1, 9)
        ]
        assert all(counter.admit(record) for record in records)

    def test_a_refused_node_leaves_no_trace(self) -> None:
        counter = PrefixCounter(PrefixLimits(narrow=1, wide=2))
        first = NodeMaker(1, address=ipaddress.IPv4Address("11.1.1.1")).record()
        refused = NodeMaker(2, address=ipaddress.IPv4Address("11.1.1.2")).record()
        second = NodeMaker(3, address=ipaddress.IPv4Address("11.1.2.1")).record()
        assert counter.admit(first)
        assert not counter.admit(refused)
        assert counter.admit(second)


class TestContact:
    def test_pauses_grow_to_a_limit(self) -> None:
        made = contact(1)
        pauses = []
        for _ in range(12):
            made.failed(NOW)
            pauses.append(made.retry_at - NOW)
        assert pauses[0] == FIRST_RETRY
        assert pauses[1] == 3 * FIRST_RETRY
        assert pauses[-1] == LAST_RETRY
        assert pauses == sorted(pauses)

    def test_success_forgives(self) -> None:
        made = contact(1)
        made.failed(NOW)
        assert not made.usable(NOW)
        made.succeeded(NOW + 1)
        assert made.usable(NOW + 1)
        assert made.last_ok == NOW + 1

    def test_a_newer_record_earns_a_second_chance_but_no_trust(self) -> None:
        made = contact(1)
        made.failed(NOW)
        newer = NodeMaker(1).record(NOW + 1)
        assert not made.renew(newer)
        assert made.record is newer
        assert made.retry_at == 0
        assert not made.usable(NOW)

    def test_an_older_record_changes_nothing(self) -> None:
        made = contact(1)
        kept = made.record
        made.failed(NOW)
        made.renew(NodeMaker(1).record(NOW - 1))
        assert made.record is kept
        assert made.retry_at > NOW

    def test_the_key_of_an_older_record_doesn_t_replace_a_newer_one(self) -> None:
        made = contact(1)
        newer = NodeMaker(1).record(NOW + 5, path_key=b"n" * 1_216)
        made.renew(newer)
        made.give_key(newer, b"n" * 1_216)
        made.give_key(NodeMaker(1).record(), NodeMaker(1).path_key)
        assert made.path_key == b"n" * 1_216
        assert made.key_is_current


class TestSourceLimits:
    def test_a_burst_and_then_the_rate(self) -> None:
        limits = SourceLimits(rate=2.0, burst=3.0)
        assert [limits.allows("a", 0.0) for _ in range(4)] == [True, True, True, False]
        assert limits.allows("a", 0.5)
        assert not limits.allows("a", 0.5)
        assert [limits.allows("a", 100.0) for _ in range(4)] == [True, True, True, False]

    def test_sources_don_t_share(self) -> None:
        limits = SourceLimits(rate=0.0, burst=1.0)
        assert limits.allows("a", 0.0)
        assert not limits.allows("a", 0.0)
        assert limits.allows("b", 0.0)

    def test_a_clock_that_goes_back_gives_nothing(self) -> None:
        limits = SourceLimits(rate=1.0, burst=1.0)
        assert limits.allows("a", 100.0)
        assert not limits.allows("a", 50.0)

    def test_memory_is_bounded_and_forgets_the_quietest(self) -> None:
        limits = SourceLimits(rate=0.0, burst=1.0)
        for number in range(SOURCES_REMEMBERED):
            limits.allows(number, 0.0)
        limits.allows(0, 0.0)
        limits.allows("new", 0.0)
        assert not limits.allows(0, 0.0)
        assert limits.allows(1, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_a_table_under_random_use_keeps_its_promises(seed: int) -> None:
    rng = random.Random(seed)
    table = RoutingTable(OWN, SALT)
    members = [contact(number) for number in range(60)]
    for _ in range(600):
        member = rng.choice(members)
        match rng.randrange(4):
            case 0 | 1:
                table.insert(member)
            case 2:
                table.remove(member)
            case _:
                member.failed(NOW) if rng.random() < 0.5 else member.succeeded(NOW)
        assert len(table) == len(list(table))
        assert len({m.node_id for m in table}) == len(table)
