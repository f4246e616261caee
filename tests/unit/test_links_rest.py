"""Tunnels at rest at a relay, over real TLS: no task while they are, nothing left of them after."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from links_world import TlsNode, listening, receive_all, tls_nodes, until, use
from test_links_bulk import OPENING

from phantom_tun.errors import LinkBroken
from phantom_tun.net.links import rest as rest_module
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.links import LinkLimits
from phantom_tun.net.links.rest import rest
from phantom_tun.wire.worker import Join

SECRET = bytes(64)
MANY = 200
LIMITS = LinkLimits(spares=0, strangers_per_address=512)


class World:
    """``source`` sends through ``relay`` to ``sink``, where nobody reads before a test does."""

    def __init__(self, source: TlsNode, relay: TlsNode, sink: TlsNode) -> None:
        self.source = source
        self.relay = relay
        self.sink = sink
        self.near: list[Bulk] = []
        self.far: list[Bulk] = []
        self.relay.handlers.on_bulk = self._relay
        self.sink.handlers.on_bulk = self._keep

    async def _relay(self, bulk: Bulk) -> None:
        join = Join(self.sink.ref, OPENING, SECRET, SECRET)
        await self.relay.links.relay(bulk, join, lambda: None)

    async def _keep(self, bulk: Bulk) -> None:
        bulk.kept = True
        self.far.append(bulk)

    async def lay(self, count: int = 1) -> None:
        """Tunnels, and have them come to rest."""
        for _ in range(count):
            self.near.append(await self.source.links.open_bulk(self.relay.ref, OPENING))
            await until(lambda: len(self.far) == len(self.near))
        await until(self.at_rest)

    def at_rest(self) -> bool:
        return not rest()._restless and len(rest()._sleepers) == 2 * self.count("relayed") > 0

    def count(self, name: str) -> int:
        return self.relay.links.statistics().get(name, 0)

    def nothing_left(self) -> bool:
        """At the relay."""
        names = "relayed", "bulk_of_neighbours", "bulk_in_use", "internal_errors"
        return not any(map(self.count, names)) and not rest()._sleepers

    async def to_and_fro(self) -> None:
        """A byte each way through the newest tunnel."""
        await self.near[-1].send_bytes(b"x")
        await self.far[-1].receive_exactly(1)
        await self.far[-1].send_bytes(b"y")
        await self.near[-1].receive_exactly(1)


@pytest.fixture(autouse=True)
def soon_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_module, "LOOK_EVERY", 0.01)


@asynccontextmanager
async def relay_world() -> AsyncIterator[World]:
    with trio.fail_after(60):
        async with tls_nodes(3, LIMITS) as (source, relay, sink):
            yield World(source, relay, sink)


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def test_tunnels_at_rest_have_no_tasks() -> None:
    async with relay_world() as world:
        await world.lay()
        await world.to_and_fro()
        before = tasks()
        await world.lay(MANY)
        await until(lambda: tasks() <= before)
        assert world.count("relayed") == world.count("bulk_of_neighbours") == MANY + 1
        for info in world.relay.links.neighbours():
            assert (info.bulk_in_use, info.bulk_idle) == (MANY + 1, 0)


async def test_whoever_closes_its_links_takes_tunnels_at_rest_along() -> None:
    async with relay_world() as world:
        await world.lay(3)
        world.source.links.start_over()
        await until(world.nothing_left)
        for far in world.far:
            with pytest.raises(LinkBroken):
                await receive_all(far)


@pytest.mark.parametrize("end", ["near", "far"])
async def test_a_reset_wakes_a_tunnel_at_rest(end: str) -> None:
    async with relay_world() as world:
        await world.lay()
        one, other = (world.near, world.far) if end == "near" else (world.far, world.near)
        one[0].reset()
        with pytest.raises(LinkBroken):
            await receive_all(other[0])
        await until(world.nothing_left)


@pytest.mark.parametrize("victim", ["source", "sink"])
async def test_a_neighbour_that_is_cut_off_takes_its_tunnels_along(victim: str) -> None:
    async with relay_world() as world:
        await world.lay(3)
        node_id = getattr(world, victim).ref.node_id
        world.relay.links.bar(lambda found, _address: found == node_id)
        assert world.nothing_left()
        for one in (*world.near, *world.far):
            with pytest.raises(LinkBroken):
                await receive_all(one)


@asynccontextmanager
async def stopping_relay() -> AsyncIterator[World]:
    """Three tunnels at rest at a relay that stops when the block ends, and must leave nothing."""
    with listening() as first, trio.fail_after(60):
        relay = TlsNode(first, limits=LIMITS)
        async with tls_nodes(2, LIMITS) as (source, sink), trio.open_nursery() as nursery:
            await nursery.start(relay.run)
            world = World(source, relay, sink)
            await world.lay(3)
            yield world
            nursery.cancel_scope.cancel()
        assert world.nothing_left()


async def test_a_relay_that_stops_closes_tunnels_at_rest() -> None:
    async with stopping_relay() as world:
        assert world.at_rest()


async def test_a_relay_that_stops_closes_tunnels_that_just_woke() -> None:
    async with stopping_relay() as world:
        for number, near in enumerate(world.near):
            await near.send_bytes(bytes(60_000 * number + 1))


async def test_links_of_a_tunnel_that_ended_at_rest_are_used_again() -> None:
    async with relay_world() as world:
        for number in range(3):
            await world.lay()
            await world.near[-1].send_fin()
            assert await receive_all(world.far[-1]) == b""
            await trio.sleep(0.05)
            assert world.count("relayed") == 1
            await world.far[-1].send_fin()
            await world.far[-1].aclose()
            assert await receive_all(world.near[-1]) == b""
            await world.near[-1].aclose()
            await until(lambda: not world.count("relayed"))
            assert world.count("bulk_of_neighbours") == world.count("bulk_idle") == 1, number
        assert world.count("bulk_opened") == 3
        # A link for signalling and one for all tunnels.
        assert world.count("links_accepted") <= 2


async def test_a_link_whose_tunnel_was_reset_is_not_used_again() -> None:
    async with relay_world() as world:
        await world.lay()
        world.near[0].reset()
        await until(world.nothing_left)
        await world.lay()
        await world.to_and_fro()


async def test_a_byte_that_comes_while_a_tunnel_comes_to_rest_goes_on() -> None:
    rng = random.Random(4)
    async with relay_world() as world:
        await world.lay()
        for _ in range(100):
            await world.to_and_fro()
            await trio.sleep(rng.uniform(0, 0.03))


async def test_what_is_kept_and_then_fails_is_reset() -> None:
    async with relay_world() as world:

        async def fail(bulk: Bulk) -> None:
            await world._relay(bulk)
            raise KeyError("a mistake of ours")

        world.relay.handlers.on_bulk = fail
        near = await world.source.links.open_bulk(world.relay.ref, OPENING)
        with pytest.raises(LinkBroken):
            await receive_all(near)
        assert world.count("internal_errors") == 1
        names = "relayed", "bulk_in_use", "bulk_of_neighbours"
        await until(lambda: not any(map(world.count, names)))


async def test_a_use_that_is_kept_is_served_until_it_is_released() -> None:
    async with relay_world() as world:
        near = await world.source.links.open_bulk(world.sink.ref, OPENING)
        await until(lambda: world.far)
        assert world.sink.links.statistics()["bulk_of_neighbours"] == 1
        await near.send_fin()
        await world.far[0].send_fin()
        assert await receive_all(near) == b""
        await near.aclose()
        assert world.sink.links.statistics()["bulk_of_neighbours"] == 1
        await world.far[0].aclose()  # our FIN was sent, the other one hasn't been read
        world.sink.handlers.on_bulk = None
        again = await world.source.links.open_bulk(world.sink.ref, OPENING)
        assert await use(again, b"echo") == b"echo"
        assert world.sink.links.statistics()["links_accepted"] <= 2
