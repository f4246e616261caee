"""The lookup machine against a network of honest and lying nodes, without any time at all."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable

import pytest

from phantom_tun.ids import NodeId
from phantom_tun.netdb.contact import position
from phantom_tun.netdb.lookup import ALPHA, MAX_HEARD, WAYS, Lookup
from phantom_tun.netdb.prefixes import PrefixLimits
from phantom_tun.netdb.table import K
from phantom_tun.testing.record_factory import NodeMaker
from phantom_tun.wire.records import Capability, NodeRecord

OWN = NodeId(b"\xff" * 32)
TARGET = bytes(32)
POPULATION = [NodeMaker(number).record() for number in range(200)]
LIARS = [NodeMaker(number).record() for number in range(5_000, 5_040)]

Answering = Callable[[NodeRecord], list[NodeRecord] | None]


def closest(records: list[NodeRecord], target: bytes, count: int) -> list[NodeRecord]:
    place = position(target)
    return sorted(records, key=lambda record: position(record.node_id) ^ place)[:count]


def neighbours_of(record: NodeRecord, target: bytes = TARGET) -> list[NodeRecord]:
    """An honest node's answer from a table of 40 nodes it happens to know."""
    rng = random.Random(record.node_id)
    known = rng.sample(POPULATION, 30) + closest(POPULATION, record.node_id, 10)
    return closest(known, target, K)


def drive(lookup: Lookup, answer: Answering = neighbours_of, seed: int = 1) -> None:
    """Answer queries in random order until the lookup is finished."""
    rng = random.Random(seed)
    pending: list[NodeRecord] = []
    while not lookup.finished:
        pending += lookup.next_queries()
        assert pending, "unfinished, yet nobody to ask"
        record = pending.pop(rng.randrange(len(pending)))
        nodes = answer(record)
        if nodes is None:
            lookup.failed(record.node_id)
        else:
            lookup.answered(record, nodes)


def fresh(seeds: list[NodeRecord] | None = None, **options: int) -> Lookup:
    chosen = seeds if seeds is not None else closest(POPULATION[:30], TARGET, K)
    return Lookup(TARGET, chosen, own_id=OWN, ways=options.get("ways", WAYS))


@pytest.mark.parametrize("seed", range(5))
def test_an_honest_network_gives_the_closest(seed: int) -> None:
    lookup = fresh()
    drive(lookup, seed=seed)
    assert lookup.closest() == closest(POPULATION, TARGET, K)
    assert lookup.hops >= 1


def test_a_lookup_without_seeds_is_finished() -> None:
    lookup = fresh([])
    assert lookup.finished
    assert lookup.next_queries() == []
    assert lookup.closest() == []
    assert lookup.hops == 0


def test_nobody_is_asked_twice_and_ways_don_t_share() -> None:
    asked: list[NodeId] = []

    def answer(record: NodeRecord) -> list[NodeRecord]:
        asked.append(record.node_id)
        return neighbours_of(record)

    lookup = fresh()
    drive(lookup, answer)
    assert len(asked) == len(set(asked)) == lookup.asked


def test_no_more_than_alpha_per_way_are_asked_at_once() -> None:
    lookup = fresh()
    first = lookup.next_queries()
    assert len(first) == ALPHA * WAYS
    assert lookup.next_queries() == []
    assert len(fresh(ways=1).next_queries()) == ALPHA


def test_a_slow_node_gives_up_its_turn_but_may_still_answer() -> None:
    lookup = fresh()
    slow = lookup.next_queries()[0]
    lookup.slow(slow.node_id)
    assert len(lookup.next_queries()) == 1
    assert not lookup.finished
    lookup.answered(slow, [])
    assert slow in lookup.closest()


def test_only_who_answered_is_found() -> None:
    silent = set(closest(POPULATION, TARGET, 3))
    lookup = fresh()
    drive(lookup, lambda record: None if record in silent else neighbours_of(record))
    assert lookup.closest() == [r for r in closest(POPULATION, TARGET, K + 3) if r not in silent]


def test_one_lying_seed_spoils_only_its_own_way() -> None:
    seeds = closest(POPULATION[:30], TARGET, K)

    def answer(record: NodeRecord) -> list[NodeRecord]:
        if record == seeds[0] or record in LIARS:
            return closest(LIARS, TARGET, K)
        return neighbours_of(record)

    lookup = fresh(seeds)
    drive(lookup, answer)
    found = lookup.closest()
    honest = closest([*POPULATION, *LIARS], TARGET, K)
    assert found == honest


def test_what_only_one_way_heard_of_is_found_too() -> None:
    seeds = closest(POPULATION[:100], TARGET, 6)
    hidden = closest(POPULATION[100:], TARGET, 5)
    lookup = fresh(seeds)
    drive(lookup, lambda record: hidden if record == seeds[5] else [])
    assert set(hidden) <= set(lookup.closest())


def test_an_answer_longer_than_k_is_cut() -> None:
    lookup = fresh(POPULATION[:1])
    query = lookup.next_queries()[0]
    lookup.answered(query, POPULATION[1 : K + 10])
    heard = sum(lookup.find(record.node_id) is not None for record in POPULATION[: K + 10])
    assert heard == K + 1


def test_memory_is_bounded() -> None:
    lookup = fresh(POPULATION[:1], ways=1)
    more = (NodeMaker(number).record() for number in range(1_000, 1_000 + MAX_HEARD + 60))
    everybody = list(more)
    while everybody:
        for query in lookup.next_queries():
            batch, everybody = everybody[:K], everybody[K:]
            lookup.answered(query, batch)
    assert (
        sum(
            lookup.find(NodeMaker(n).record().node_id) is not None
            for n in range(1_000, 1_000 + MAX_HEARD + 60)
        )
        <= MAX_HEARD
    )


def test_few_of_one_prefix_are_among_the_closest() -> None:
    near = [
        NodeMaker(number, address=ipaddress.IPv4Address(f"11.200.0.{number % 250 + 1}")).record()
        for number in range(9_000, 9_400)
    ]
    crowd = closest(near, TARGET, 10)
    everybody = [*POPULATION, *crowd]
    lookup = Lookup(TARGET, everybody, own_id=OWN, limits=PrefixLimits(narrow=2, wide=4))
    drive(lookup, lambda _: closest(everybody, TARGET, K))
    found = lookup.closest()
    assert len(found) == K
    assert [record for record in found if record in crowd] == crowd[:2]


def test_we_are_never_asked_or_found() -> None:
    own = POPULATION[7]
    lookup = Lookup(TARGET, [own, *POPULATION[:3]], own_id=own.node_id)
    drive(lookup, lambda _: [own])
    assert own not in lookup.closest()
    assert lookup.find(own.node_id) is None


def test_nodes_that_can_t_be_dialed_are_not_asked() -> None:
    hidden = NodeMaker(7).record(capabilities=Capability.RELAY)
    lookup = fresh([hidden])
    assert lookup.finished


def test_find_gives_the_newest_record_that_was_named() -> None:
    old, new = NodeMaker(300).record(), NodeMaker(300).record(1_800_000_100.0)
    lookup = fresh(POPULATION[:2])
    first, second = lookup.next_queries()
    lookup.answered(first, [old])
    assert lookup.find(old.node_id) == old
    lookup.answered(second, [new])
    assert lookup.find(old.node_id) == new
    assert lookup.find(NodeId(bytes(32))) is None


class TestReopening:
    """A lookup that goes on over other ways."""

    def answer(self, record: NodeRecord) -> list[NodeRecord]:
        """Liars know liars only."""
        return closest(LIARS, TARGET, K) if record in LIARS else neighbours_of(record)

    def captured(self) -> Lookup:
        lookup = fresh(LIARS[:12])
        drive(lookup, self.answer)
        assert lookup.closest() == closest(LIARS, TARGET, K)
        return lookup

    def test_other_beginnings_lead_out_of_a_trap(self) -> None:
        lookup = self.captured()
        lookup.reopen(closest(POPULATION, OWN, 12), count=K)
        assert not lookup.finished
        drive(lookup, self.answer)
        assert lookup.closest() == closest([*POPULATION, *LIARS], TARGET, K)

    def test_one_honest_beginning_is_enough(self) -> None:
        lookup = self.captured()
        lookup.reopen([*LIARS[12:20], POPULATION[7]], count=K)
        drive(lookup, self.answer)
        assert lookup.closest() == closest([*POPULATION, *LIARS], TARGET, K)

    def test_more_can_be_found(self) -> None:
        lookup = fresh()
        drive(lookup)
        before = lookup.asked
        lookup.reopen([], count=K + 10)
        drive(lookup)
        assert lookup.closest() == closest(POPULATION, TARGET, K + 10)
        assert lookup.asked <= before + 20
        lookup.reopen([], count=1)
        assert lookup.finished
        assert len(lookup.closest()) == K + 10

    def test_nobody_is_asked_again(self) -> None:
        lookup = fresh()
        asked: list[NodeId] = []

        def answer(record: NodeRecord) -> list[NodeRecord]:
            asked.append(record.node_id)
            return neighbours_of(record)

        drive(lookup, answer)
        lookup.reopen(closest(POPULATION, OWN, 12), count=K)
        drive(lookup, answer)
        assert len(asked) == len(set(asked)) == lookup.asked

    def test_who_has_not_answered_by_then_has_failed(self) -> None:
        lookup = fresh()
        waiting = lookup.next_queries()
        lookup.reopen(closest(POPULATION, OWN, 12), count=K)
        drive(lookup)
        assert lookup.finished
        assert not set(waiting) & set(lookup.closest())
