"""A killed X-node leads to another path without anybody's help: pools over whole builds."""

import random

import pytest
import trio

from phantom_tun.clock import HOUR
from phantom_tun.errors import DeadlineExpired
from phantom_tun.net.paths.pool import Change, Goal, PathPool
from phantom_tun.testing.path_nodes import path_world


class Tunnels:
    """Stands for the tunnels of an owner: finds out, after some seconds, what is dead."""

    def __init__(self, world, owner):
        self.world = world
        self.dead = set()
        self.events = []
        self.pool = PathPool(
            owner.builder,
            Goal("exit", "main", 3, 2, HOUR),
            confirm=self.confirm,
            release=lambda path: None,
            on_event=self.events.append,
            clock=owner.clock,
            rng=random.Random(5),
        )

    def kill(self, node_id):
        self.dead.add(node_id)
        self.world.network.kill(node_id)

    async def confirm(self, path):
        await trio.sleep(0.1)
        if self.dead & set(path.node_ids):
            await trio.sleep(5)
            raise DeadlineExpired("the path gave no tunnel")

    async def watch(self):
        while True:
            await trio.sleep(1)
            for path in self.pool.current():
                if self.dead & set(path.node_ids):
                    self.pool.report_dead(path)


@pytest.mark.parametrize("count", [12, 16, 40])
@pytest.mark.parametrize("undialable", [False, True])
async def test_paths_come_back_after_x_nodes_die(count, undialable, autojump_clock):
    async with (
        path_world(count, latency=0.02, undialable=(0,) if undialable else ()) as world,
        trio.open_nursery() as nursery,
    ):
        tunnels = Tunnels(world, world.nodes[0])
        await nursery.start(tunnels.pool.run)
        nursery.start_soon(tunnels.watch)
        await tunnels.pool.wait_ready(2)
        assert trio.current_time() < 5
        times = []
        # A ring of 8 can do without three of eleven nodes, but not quickly.
        for _ in range(2 if count < 16 else 3):
            await trio.sleep(60)
            victim = tunnels.pool.current()[0].members[1].node_id
            tunnels.kill(victim)
            started = trio.current_time()
            await trio.sleep(2)
            await tunnels.pool.wait_ready(2)
            times.append(trio.current_time() - started)
            for path in tunnels.pool.current():
                assert not tunnels.dead & set(path.node_ids)
        print(f"{count} nodes: two paths again after", *(f"{t:.1f} s" for t in times))
        assert min(times) < 20
        assert max(times) < 120
        assert Change.DIED in [event.change for event in tunnels.events]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["dead", "frozen"])
async def test_lost_guards_are_made_up_for(how, autojump_clock):
    """As long as somebody else is heard from, if only every ten seconds."""
    async with path_world(24, latency=0.02) as world, trio.open_nursery() as nursery:
        owner = world.nodes[0]
        tunnels = Tunnels(world, owner)
        await nursery.start(tunnels.pool.run)
        nursery.start_soon(tunnels.watch)
        await tunnels.pool.wait_ready(2)
        others = [node for node in world.nodes[1:] if node.node_id not in owner.guards]
        await others[0].links.ensure(owner.ref)
        lost = list(owner.guards)[:4]
        for node in lost:
            tunnels.kill(node)
            if how == "frozen":
                world.network.revive(node)
                world.network.freeze(node)
        started = trio.current_time()
        await trio.sleep(2)
        await tunnels.pool.wait_ready(2)
        print(f"four guards {how}: two paths again after {trio.current_time() - started:.1f} s")
        assert trio.current_time() - started < 60
        assert not {path.members[0].node_id for path in tunnels.pool.current()} & set(lost)
        nursery.cancel_scope.cancel()
