"""Background tasks of tunnels, before the node runs, while it does and when it stops."""

from __future__ import annotations

import random

import pytest
import trio

from phantom_tun.clock import SystemClock
from phantom_tun.errors import UsageError
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.ready_pool import PoolLimits


class Calls:
    """What was done."""

    def __init__(self) -> None:
        self.made = []

    async def work(self, *args):
        self.made.append(args)

    def otherwise(self):
        self.made.append("otherwise")


@pytest.fixture
def hub():
    return TunnelHub(None, None, PoolLimits(), SystemClock(), random.Random(4))


async def test_it_has_to_run_first(hub):
    calls = Calls()
    with pytest.raises(UsageError, match="isn't running"):
        hub.start(calls.work)
    hub.start_or(calls.work, calls.otherwise)
    assert calls.made == ["otherwise"]


async def test_work_is_done_while_it_runs(hub, nursery):
    calls = Calls()
    await nursery.start(hub.run)
    hub.start(calls.work, 1)
    await trio.testing.wait_all_tasks_blocked()
    hub.start_or(calls.work, calls.otherwise, 2)
    await trio.testing.wait_all_tasks_blocked()
    assert calls.made == [(1,), (2,)]


async def test_a_node_that_stops_starts_nothing_and_nobody_fails_by_that(hub):
    calls = Calls()

    async def start_more_when_cancelled():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):  # until the hub itself has noticed
                await trio.testing.wait_all_tasks_blocked()
            hub.start(calls.work)
            hub.start_or(calls.work, calls.otherwise)

    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        hub.start(start_more_when_cancelled)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    hub.start(calls.work)
    hub.start_or(calls.work, calls.otherwise)
    assert calls.made == ["otherwise"] * 2
    assert hub.counts == {}
