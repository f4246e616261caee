"""A crowd overloads an entry id; who solves puzzles still connects."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio
from test_tunnels import RNG, both_paths, connected, world
from test_tunnels import exchange as swap
from whole_network import IDENTITY, Owner, WholeNetwork, WholeNode, echo, exchange, whole_network

from phantom_tun.errors import Unreachable, WorldError
from phantom_tun.net.tunnels import entry_gate, puzzles
from phantom_tun.net.tunnels.exit_node import share_of_lookups
from phantom_tun.net.tunnels.puzzles import MAX_PUZZLES
from phantom_tun.net.tunnels.workshop import Workshop
from phantom_tun.testing.path_nodes import at_once
from phantom_tun.tunnel.puzzles import HARDEST
from phantom_tun.wire.puzzles import NO_CHALLENGE, Challenge
from phantom_tun.wire.sizes import SEALED_REQUEST_LEN
from phantom_tun.wire.tunnel import ConnectRequest, Status

NODES, CALLER, CALLEE = 20, 0, 1
ENTRY_RATE, ENTRY_BURST = 20.0, 40.0
"""A tenth of what is real, so that the crowd can be small."""
RATE = 80
"""Requests of the crowd per second, four times what an entry id takes."""
PORT = 80


class Crowd:
    """Nodes that ask for one entry id and solve nothing."""

    def __init__(self, net: WholeNetwork, callee: WholeNode) -> None:
        (self.entry,) = callee.connector.routes(IDENTITY)
        self.desk = net[self.entry[0]].desk
        self.nodes = [node for node in net.nodes[2:] if node.node_id != self.entry[0]]
        self.answers: Counter[Status] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until cancelled."""
        number = 0
        async with trio.open_nursery() as nursery:
            while True:
                number += 1
                nursery.start_soon(self._ask, self.nodes[number % len(self.nodes)], number)
                await trio.sleep(1 / RATE)
                if number == 2 * RATE:
                    task_status.started()

    async def _ask(self, node: WholeNode, number: int) -> None:
        sealed = number.to_bytes(8, "big").ljust(SEALED_REQUEST_LEN, b"x")
        request = ConnectRequest(*self.entry[:2], sealed)
        with node.viewing():
            status, said, _ = await node.dialer.ask(request, share_of_lookups())
        assert (said != NO_CHALLENGE) == (status is Status.PUZZLE)
        self.answers[status] += 1


@asynccontextmanager
async def besieged() -> AsyncIterator[tuple[WholeNode, WholeNode, Crowd]]:
    """Caller, callee, and a crowd that asks."""
    owners = {CALLER: Owner(publish=False), CALLEE: Owner()}
    async with whole_network(NODES, owners) as net:
        caller, callee = net.nodes[CALLER], net.nodes[CALLEE]
        for owner in (callee, caller):
            await owner.bring_up()
        callee.rules.expose(IDENTITY, "tcp", PORT)
        callee.host.streams[PORT] = echo
        crowd = Crowd(net, callee)
        async with trio.open_nursery() as nursery:
            await nursery.start(crowd.run)
            yield caller, callee, crowd
            nursery.cancel_scope.cancel()


async def connects(caller: WholeNode, callee: WholeNode, count: int) -> list[float]:
    """Seconds that each of ``count`` connections took, one after the other, each a second after the
    last one; those that failed are left out."""
    taken = []
    for number in range(count):
        began = trio.current_time()
        try:
            stream = await caller.connect(callee.identity.ap6, PORT, 5_000 + number)
        except WorldError:
            continue
        taken.append(trio.current_time() - began)
        with caller.viewing():
            assert await exchange(stream, b"hello") == bytes(byte ^ 0xFF for byte in b"hello")
        await trio.sleep(1)
    return taken


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch):
    monkeypatch.setattr(entry_gate, "ENTRY_RATE", ENTRY_RATE)
    monkeypatch.setattr(entry_gate, "ENTRY_BURST", ENTRY_BURST)


async def test_an_honest_caller_gets_through_a_crowd(autojump_clock):
    async with besieged() as (caller, callee, crowd):
        taken = await connects(caller, callee, 5)
        assert len(taken) == 5
        assert max(taken) < 1.5
        solved = caller.hub.counts["puzzles_solved"]
        assert solved
        statistics = crowd.desk.statistics()
        assert statistics["entry_requests_solved"] == solved
        # Of the crowd only as many get in as without puzzles: the owner answers them nothing.
        assert set(crowd.answers) == {Status.PUZZLE, Status.NO_TUNNEL}
        assert crowd.answers[Status.PUZZLE] > 2 * crowd.answers[Status.NO_TUNNEL]


async def test_one_who_does_not_work_waits_long(autojump_clock, monkeypatch):
    """What the caller gains by working."""
    monkeypatch.setattr(puzzles, "MAX_PUZZLES", 0)
    async with besieged() as (caller, callee, _):
        taken = await connects(caller, callee, 3)
        assert len(taken) < 3 or max(taken) > 3
        assert caller.hub.counts["drop_puzzle_again"] > 3


@pytest.mark.parametrize(("exit_hops", "entry_hops"), [(0, 0), (1, 0), (0, 1), (2, 2)])
async def test_paths_of_any_length_know_puzzles(autojump_clock, monkeypatch, exit_hops, entry_hops):
    monkeypatch.setattr(entry_gate, "ENTRY_RATE", 1e-6)
    monkeypatch.setattr(entry_gate, "ENTRY_BURST", 10.0)
    async with world(2 + exit_hops + entry_hops) as (_, nodes):
        caller = nodes[0]
        caller.hub.workshop = Workshop(RNG, at_once)
        _, entry_path, entry_node = await both_paths(nodes, exit_hops, entry_hops)
        for number in range(10):
            _, tunnel = await connected(caller, entry_node, entry_path.entry_id)
            assert await swap(tunnel, b"hello") == b"hello"
            assert caller.hub.counts["puzzles_solved"] == max(0, number - 5)
        with pytest.raises(Unreachable, match="busy"):
            await connected(caller, entry_node, entry_path.entry_id)


@pytest.mark.parametrize(
    ("bits", "solved", "counter"),
    [(HARDEST + 1, 0, "drop_puzzle_too_hard"), (1, MAX_PUZZLES, "drop_puzzle_again")],
)
async def test_an_exit_node_that_asks_for_work_for_nothing_gets_little(
    autojump_clock, bits, solved, counter
):
    async with world(3) as (_, nodes):
        caller = nodes[0]
        caller.hub.workshop = Workshop(RNG, at_once)
        _, entry_path, entry_node = await both_paths(nodes, 1, 0)

        async def ask(*_):
            return Status.PUZZLE, Challenge(b"s" * 16, bits).pack(), None

        for hop in nodes[1].hops._hops.values():
            hop._dialer = SimpleNamespace(ask=ask)
        with pytest.raises(Unreachable):
            await connected(caller, entry_node, entry_path.entry_id)
        assert caller.hub.counts["puzzles_solved"] == solved
        assert caller.hub.counts[counter] == 1
