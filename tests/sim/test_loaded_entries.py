"""A crowd overloads an entry id; who solves puzzles still connects."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from whole_network import IDENTITY, Owner, WholeNetwork, WholeNode, echo, exchange, whole_network

from phantom_tun.errors import WorldError
from phantom_tun.net import puzzles
from phantom_tun.wire.puzzles import NO_CHALLENGE
from phantom_tun.wire.sizes import SEALED_REQUEST_LEN
from phantom_tun.wire.tunnel import ConnectRequest, Status

NODES, CALLER, CALLEE = 20, 0, 1
RATE = 800
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
                if number == RATE:
                    task_status.started()

    async def _ask(self, node: WholeNode, number: int) -> None:
        sealed = number.to_bytes(8, "big").ljust(SEALED_REQUEST_LEN, b"x")
        request = ConnectRequest(*self.entry[:2], sealed)
        with node.viewing():
            status, said, _ = await node.dialer.ask(request)
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


async def test_an_honest_caller_gets_through_a_crowd(autojump_clock):
    async with besieged() as (caller, callee, crowd):
        before = callee.sessions.statistics()
        taken = await connects(caller, callee, 8)
        print(
            "with",
            [round(one, 2) for one in taken],
            crowd.answers,
            crowd.desk.statistics(),
            caller.hub.counts,
            before,
        )
        assert len(taken) == 8


async def test_without_work_it_rarely_does(autojump_clock, monkeypatch):
    monkeypatch.setattr(puzzles, "MAX_PUZZLES", 0)
    async with besieged() as (caller, callee, crowd):
        taken = await connects(caller, callee, 8)
        print(
            "without",
            [round(one, 2) for one in taken],
            crowd.answers,
            crowd.desk.statistics(),
            caller.hub.counts,
        )
