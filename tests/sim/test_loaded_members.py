"""Builds through loaded members: who worked is served, who didn't is dropped in silence."""

import random

import pytest
import trio
from test_path_builds import build

from phantom_tun.errors import DeadlineExpired, PathUnavailable
from phantom_tun.ids import ConnectionId
from phantom_tun.net.paths.member import ArrayLimits
from phantom_tun.path.layers import hint
from phantom_tun.path.ring import member_count
from phantom_tun.path.work import HARDEST, LOADED, SETTLED, STEPS, Budget
from phantom_tun.testing.path_nodes import KnownNode, path_world
from phantom_tun.testing.record_factory import NodeMaker
from phantom_tun.wire.setup import ARRAY_LEN, HINT_LEN, Neighbour


def load(node):
    """Half of what a node can do is used up, for as long as the test lasts."""
    node.member._budget = Budget(1e-6, 1000.0)
    for _ in range(501):
        node.member._budget.take(node.clock.now())


def knowing(world, work):
    """All nodes as they are known if they ask for so much work."""
    return [
        KnownNode(
            sign_again(node, work),
            node.keys.published.public,
        )
        for node in world.nodes
    ]


def sign_again(node, work):
    maker = NodeMaker(int(node.record.ips[0].packed[1]), address=node.record.ips[0])
    now, key = node.clock.now(), node.keys.published.public
    return maker.record(now, path_key=key, work=work)


async def test_loaded_nodes_ask_for_work_and_serve_those_who_did_it(autojump_clock):
    async with path_world(24) as world:
        informed, late = world.nodes[:2]
        for node in world.nodes:
            load(node)
        await build(late)  # nobody has asked for anything yet
        await trio.sleep(SETTLED + 3 * ArrayLimits().sweep_every)
        assert all(node.demands == [STEPS[1]] for node in world.nodes)
        informed.known = knowing(world, STEPS[1])
        for _ in range(5):
            await build(informed)
        worked = sum(node.paths.statistics()["builds_worked_for"] for node in world.nodes)
        assert worked == 5 * member_count(3)
        assert informed.builder.statistics()["builds_worked_for"] == 5
        with pytest.raises((DeadlineExpired, PathUnavailable)):
            await build(late)
        dropped = [node.paths.statistics().get("drop_array_work", 0) for node in world.nodes]
        assert sum(dropped) == 1
        late.known = informed.known
        await build(late)


async def test_a_flood_of_builds_without_work_takes_no_room_from_those_who_worked(autojump_clock):
    async with path_world(24) as world:
        owner, victim, hostile = world.nodes[:3]
        victim.member._budget = Budget(1.0, 100.0)
        for node in world.nodes:
            node.member._demand.adjust(1.0, node.clock.now() - SETTLED)
            node.member._demand.adjust(1.0, node.clock.now())
        owner.known = knowing(world, STEPS[1])
        noise = random.Random(1).randbytes(ARRAY_LEN - HINT_LEN)
        for number in range(300):
            connection = ConnectionId(number.to_bytes(16, "big"))
            array = hint(connection, 1) + noise
            await hostile.paths.send_array(Neighbour(victim.ref, connection), array)
            await trio.sleep(0.15)
        statistics = victim.paths.statistics()
        assert statistics["drop_array_work"] > 150
        assert statistics["drop_array_seal"] >= 50
        assert "drop_array_full" not in statistics
        assert victim.member.load(victim.clock.now()) < LOADED + 0.02
        for _ in range(10):
            await build(owner)
        assert owner.builder.statistics()["builds_succeeded"] == 10


async def test_owners_do_not_choose_who_asks_for_too_much(autojump_clock):
    async with path_world(24) as world:
        owner = world.nodes[0]
        greedy = set(range(15, 24))
        owner.known = [
            KnownNode(
                sign_again(node, HARDEST + 1 if number in greedy else 0),
                node.keys.published.public,
            )
            for number, node in enumerate(world.nodes)
        ]
        path = await build(owner)
        assert not {world.nodes[number].node_id for number in greedy} & set(path.node_ids)
