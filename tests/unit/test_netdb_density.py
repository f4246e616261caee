"""Telling by how thin they lie that the nodes a lookup found aren't the closest ones."""

from __future__ import annotations

import random
import statistics

import pytest

from phantom_tun.netdb.contact import position
from phantom_tun.netdb.density import REMEMBERED, Density, median
from phantom_tun.netdb.table import K
from phantom_tun.testing.record_factory import NodeMaker
from phantom_tun.wire.records import NodeRecord

POPULATION = [NodeMaker(number).record() for number in range(400)]
LIARS = POPULATION[:80]


def closest(records: list[NodeRecord], target: bytes, count: int = K) -> list[NodeRecord]:
    place = position(target)
    return sorted(records, key=lambda record: position(record.node_id) ^ place)[:count]


def targets(seed: int, count: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(32) for _ in range(count)]


@pytest.fixture
def density() -> Density:
    made = Density()
    for target in targets(1, REMEMBERED):
        made.saw(target, closest(POPULATION, target))
    return made


def test_the_size_of_the_network_is_about_right(density: Density) -> None:
    assert 300 < density.size < 520


def test_what_lookups_find_is_hardly_ever_suspicious(density: Density) -> None:
    found = [density.sparse(t, closest(POPULATION, t)) for t in targets(2, 200)]
    assert sum(found) <= 2


def test_a_fifth_of_the_nodes_is_suspicious(density: Density) -> None:
    found = [density.sparse(t, closest(LIARS, t)) for t in targets(3, 200)]
    assert sum(found) >= 198


def test_a_few_ids_near_the_target_do_not_hide_it(density: Density) -> None:
    found = []
    for target in targets(4, 100):
        near = closest(POPULATION, target, 5)
        found.append(density.sparse(target, closest([*near, *LIARS], target)))
    assert sum(found) >= 90


def test_fewer_than_k_are_all_there_are(density: Density) -> None:
    target = bytes(32)
    assert density.sparse(target, closest(POPULATION, target, K - 1))
    assert density.sparse(target, [])


def test_more_than_k_are_judged_by_the_first_k(density: Density) -> None:
    target = targets(5, 1)[0]
    one, other = Density(), Density()
    one.saw(target, closest(POPULATION, target))
    other.saw(target, closest(POPULATION, target, K + 10))
    assert one.size == other.size


def test_without_experience_nothing_is_suspicious() -> None:
    assert Density().size == 0
    assert not Density().sparse(bytes(32), closest(LIARS, bytes(32)))
    assert not Density().sparse(bytes(32), [])


def test_one_lookup_that_was_led_astray_spoils_nothing(density: Density) -> None:
    for target in targets(6, 2):
        density.saw(target, closest(LIARS, target))
    assert density.sparse(bytes(32), closest(LIARS, bytes(32)))


def test_a_network_that_has_shrunk_is_usual_soon(density: Density) -> None:
    for target in targets(7, REMEMBERED):
        density.saw(target, closest(LIARS, target))
    assert 55 < density.size < 105
    assert not density.sparse(bytes(32), closest(LIARS, bytes(32)))


@pytest.mark.parametrize("values", [[3.0], [2.0, 1.0], [5.0, 1.0, 2.5], [4.0, 1.0, 3.0, 2.0]])
def test_the_median_is_the_one_of_the_statistics_library(values: list[float]) -> None:
    assert median(values) == statistics.median(values)
