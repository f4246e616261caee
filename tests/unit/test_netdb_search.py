"""When a search goes on over other ways: a real searcher among liars and others."""

from __future__ import annotations

import random
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from phantom_tun.ids import NodeId
from phantom_tun.net.netdb.calls import NodeCalls
from phantom_tun.net.netdb.search import Searcher
from phantom_tun.netdb.book import NodeBook
from phantom_tun.netdb.contact import position
from phantom_tun.netdb.density import REMEMBERED
from phantom_tun.netdb.storers import LEASE_STORERS
from phantom_tun.netdb.table import K
from phantom_tun.testing.record_factory import NOW, NodeMaker
from phantom_tun.wire.records import NodeRecord

OWN = NodeMaker(0).record()
HONEST = [NodeMaker(number).record() for number in range(1, 301)]
LIARS = [NodeMaker(number).record() for number in range(5_000, 5_075)]


def closest(records: list[NodeRecord], target: bytes, count: int = K) -> list[NodeRecord]:
    place = position(target)
    return sorted(records, key=lambda record: position(record.node_id) ^ place)[:count]


class FixedClock:
    def now(self) -> float:
        return NOW


class Network:
    """What a searcher sees of other nodes: honest ones know half of all, and all near themselves,
    liars know liars only."""

    def __init__(self) -> None:
        self.book = NodeBook(OWN.node_id, random.Random(1))
        self.clock = FixedClock()
        self.own_id = OWN.node_id
        self.asked: list[NodeId] = []
        self.silent: set[NodeId] = set()

    async def closest_nodes(self, record: NodeRecord, target: bytes) -> list[NodeRecord]:
        self.asked.append(record.node_id)
        await trio.sleep(0.01)
        if record.node_id in self.silent:
            await trio.sleep_forever()
        if record in LIARS:
            return closest(LIARS, target)
        everybody = [*HONEST, *LIARS]
        near = closest(everybody, record.node_id, 40)
        rng = random.Random(record.node_id)
        return closest(list({*near, *rng.sample(everybody, len(everybody) // 2)}), target)


@pytest.fixture
async def network(autojump_clock: MockClock) -> Network:
    return Network()


def searcher_in(network: Network) -> Searcher:
    return Searcher(cast(NodeCalls, network), lambda _: None)


async def experienced(network: Network) -> tuple[Searcher, bytes]:
    """A searcher that has searched before, and a target far from it; from then on it knows liars
    there and others only near itself."""
    for record in HONEST[:100]:
        network.book.met(record, NOW)
    searcher = searcher_in(network)
    rng = random.Random(2)
    for _ in range(REMEMBERED):
        await searcher.find(rng.randbytes(32))
    target = bytes([OWN.node_id[0] ^ 0xFF]) + bytes(31)
    for contact in list(network.book.table):
        if network.book.table.bucket_of(contact.position) >= 253:
            network.book.table.remove(contact)
    for record in LIARS:
        network.book.met(record, NOW)
    network.asked.clear()
    return searcher, target


async def test_what_is_found_as_densely_as_ever_is_enough(network: Network) -> None:
    for record in HONEST[:100]:
        network.book.met(record, NOW)
    searcher = searcher_in(network)
    rng = random.Random(2)
    for _ in range(2 * REMEMBERED):
        target = rng.randbytes(32)
        found = await searcher.find(target)
        assert found.closest() == closest([*HONEST, *LIARS], target)
    assert searcher.statistics()["lookups_sparse"] <= 1


async def test_liars_who_lie_too_thin_are_seen_through(network: Network) -> None:
    searcher, target = await experienced(network)
    deceived = await searcher.search(target)
    assert deceived.closest() == closest(LIARS, target)
    found = await searcher.find(target)
    assert found.closest() == closest([*HONEST, *LIARS], target)
    assert searcher.statistics()["lookups_sparse"] == 1


async def test_a_search_is_widened_without_asking_anybody_twice(network: Network) -> None:
    searcher, target = await experienced(network)
    found = await searcher.search(target)
    await searcher.widen(found, LEASE_STORERS)
    assert found.closest() == closest([*HONEST, *LIARS], target, LEASE_STORERS)
    assert len(network.asked) == len(set(network.asked))
    assert searcher.statistics()["lookups_widened"] == 1


async def test_a_search_that_ran_out_of_time_can_go_on(network: Network) -> None:
    searcher, target = await experienced(network)
    network.silent = {record.node_id for record in LIARS}
    found = await searcher.search(target)
    assert found.closest() == []
    began = trio.current_time()
    network.silent = set()
    await searcher.widen(found, K)
    assert set(closest(HONEST, target, 10)) <= set(found.closest())
    assert trio.current_time() - began < 5
