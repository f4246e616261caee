"""A side that has sent FIN and fails then: what is left of the tunnel ends, though nobody reads."""

from __future__ import annotations

import pytest
import trio
from links_world import receive_all, until
from test_links_rest import World, relay_world, soon_at_rest
from workers_world import HERE
from workers_world import relay_world as worker_world

from phantom_tun.net.links.bulk import Bulk

__all__ = ["soon_at_rest"]

STATES = pytest.mark.parametrize("state", ["flowing", "resting"])


async def half_closed(world: World, end: str, state: str) -> tuple[Bulk, Bulk]:
    """A tunnel whose one end, the first one of the result, has sent FIN."""
    await world.lay()
    if state == "flowing":
        for _ in range(6):
            await world.to_and_fro()
    near, far = world.near[0], world.far[0]
    one, other = (near, far) if end == "near" else (far, near)
    await one.send_fin()
    assert await receive_all(other) == b""
    if state == "resting":
        await until(world.at_rest)
    return one, other


@STATES
@pytest.mark.parametrize("end", ["near", "far"])
@pytest.mark.parametrize("way", ["reset", "end"])
async def test_a_side_that_fails_after_its_fin_takes_the_other_along(
    end: str, state: str, way: str
) -> None:
    async with relay_world() as world:
        one, other = await half_closed(world, end, state)
        if way == "reset":
            one.reset()
        else:
            assert one._link is not None
            one._link.connection.close()
        await until(other.is_broken)
        await until(world.nothing_left)


@STATES
@pytest.mark.parametrize("victim", ["source", "sink"])
async def test_a_neighbour_that_is_cut_off_after_its_fin(victim: str, state: str) -> None:
    async with relay_world() as world:
        _, other = await half_closed(world, "near" if victim == "source" else "far", state)
        node_id = getattr(world, victim).ref.node_id
        world.relay.links.bar(lambda found, _address: found == node_id)
        await until(other.is_broken)
        await until(world.nothing_left)


@STATES
@pytest.mark.parametrize("end", ["near", "far"])
async def test_a_half_closed_tunnel_goes_on(end: str, state: str) -> None:
    async with relay_world() as world:
        one, other = await half_closed(world, end, state)
        for _ in range(5):
            await trio.sleep(0.03)
            assert not other.is_broken()
            await other.send_bytes(b"y")
            await one.receive_exactly(1)
        await other.send_fin()
        assert await receive_all(one) == b""
        await until(lambda: not world.count("relayed"))


async def test_a_use_in_a_worker_that_is_reset_after_its_fin() -> None:
    kept: list[Bulk] = []

    async def keep(bulk: Bulk) -> None:
        bulk.kept = True
        kept.append(bulk)

    with trio.fail_after(60):
        async with worker_world(1) as world:
            world.relay.handlers.on_bulk = keep
            bulk = await world.source.links.open_bulk(world.relay.ref, HERE)
            await bulk.send_fin()
            await until(lambda: kept)
            assert await receive_all(kept[0]) == b""
            await trio.sleep(0.05)
            assert not kept[0].is_broken()
            bulk.reset()
            await until(kept[0].is_broken)
            kept[0].reset()
