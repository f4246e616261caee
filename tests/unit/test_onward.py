"""The links that a worker dials, in memory."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from links_world import LOOPBACK
from trio.testing import wait_all_tasks_blocked

from phantom_tun.errors import CapacityExceeded, LinkBroken
from phantom_tun.ids import CertHash, NodeId
from phantom_tun.net.links.bulk import BulkLink
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.loopback import LoopbackConnection, connection_pair
from phantom_tun.net.links.onward import TIDY_EVERY, OnwardLinks
from phantom_tun.net.links.peers import Peer
from phantom_tun.wire.nodes import NodeRef

OPENING = b"o" * 64


def ref(number: int) -> NodeRef:
    return NodeRef(NodeId(bytes([number]) * 32), CertHash(bytes(32)), LOOPBACK, 443)


class Far:
    """Whoever is dialed."""

    def __init__(self) -> None:
        self.connections: list[tuple[LoopbackConnection, LoopbackConnection]] = []
        self.answering = trio.Event()

    async def dial(self, _ref: NodeRef, _kind: object) -> LoopbackConnection:
        await self.answering.wait()
        self.connections.append(connection_pair())
        return self.connections[-1][0]


@pytest.fixture
async def world(nursery):
    far = Far()
    limits = LinkLimits(spares=0, neighbours=2)
    links = OnwardLinks(far.dial, nursery.start_soon, limits, Counter())
    yield far, links
    links.close()


async def test_links_are_counted_by_neighbour_and_expire(world, nursery, autojump_clock):
    far, links = world
    far.answering.set()
    nursery.start_soon(links.tend)
    bulk = await links.open(ref(1), OPENING, b"first")
    assert links.idle() == {}
    view = memoryview(bytearray(1000))
    near, other = far.connections[0]
    assert OPENING in bytes(view[: await other.read_some(view)])
    bulk.reset()
    assert not near.usable
    await trio.sleep(2 * TIDY_EVERY)
    await links.open(ref(2), OPENING, b"")
    await links.open(ref(3), OPENING, b"")  # there is room again


async def test_neighbours_are_limited(world):
    far, links = world
    far.answering.set()
    for number in (1, 2, 2):
        await links.open(ref(number), OPENING, b"")
    with pytest.raises(CapacityExceeded):
        await links.open(ref(3), OPENING, b"")


async def test_who_is_forgotten_loses_all_links(world):
    far, links = world
    far.answering.set()
    bulk = await links.open(ref(1), OPENING, b"")
    await links.open(ref(2), OPENING, b"")
    links.forget(ref(1).node_id)
    assert [near.usable for near, _ in far.connections] == [False, True]
    with pytest.raises(LinkBroken):
        await bulk.send_bytes(b"x")


async def test_a_link_that_is_being_dialed_to_who_is_forgotten_is_closed(world, nursery):
    far, links = world
    failed = trio.Event()

    async def open_one() -> None:
        with pytest.raises(LinkBroken):
            await links.open(ref(1), OPENING, b"")
        failed.set()

    nursery.start_soon(open_one)
    await wait_all_tasks_blocked()
    links.forget(ref(1).node_id)
    far.answering.set()
    await failed.wait()
    assert [near.usable for near, _ in far.connections] == [False]


async def test_a_link_that_comes_back_for_who_is_forgotten_is_closed(
    world, nursery, autojump_clock
):
    far, links = world
    far.answering.set()
    nursery.start_soon(links.tend)
    (await links.open(ref(1), OPENING, b"")).reset()
    pool = links._pools[ref(1).node_id]
    links.forget(ref(1).node_id)
    near, _far = connection_pair()
    pool.offer(BulkLink(near, Peer(ref(1).node_id, LOOPBACK)))
    assert near.usable
    await trio.sleep(2 * TIDY_EVERY)
    assert not near.usable
    assert links._forgotten == []
