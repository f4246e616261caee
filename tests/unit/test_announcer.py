"""The end of a path that sends blocks: when it sends them, and when it stops."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio
import trio.testing

from phantom_tun.clock import SystemClock
from phantom_tun.errors import CapacityExceeded, DeadlineExpired, LinkBroken
from phantom_tun.guard import COUNTER
from phantom_tun.ids import TunnelBlock
from phantom_tun.net.tunnels.announcer import (
    BUILD_TIMEOUT,
    FAILURES_UNTIL_SILENT,
    KNOCKS,
    REPLACING_PAUSE,
    RETRY_PAUSES,
    SHORTEST_PATIENCE,
    SILENT_PATIENCE,
    Announcer,
)
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.ready_pool import PoolLimits

LIMITS = PoolLimits(low=3, high=6)


class FakeTunnel:
    """Silent until it is reset."""

    def __init__(self):
        self.was_reset = False

    async def wait_readable(self):
        await trio.sleep_forever()

    async def receive_package(self, _package, within):
        await trio.sleep(within)
        raise DeadlineExpired("nothing came")

    def reset(self):
        self.was_reset = True


class Far:
    """The other end of the path."""

    def __init__(self, nursery, hub):
        self.nursery = nursery
        self.sent = []
        self.delay = 0.1
        self.answers = True
        self.failure = None
        self.silences = 0
        self.doubts = []
        self.tunnels = []
        self.late = 0
        self.began = trio.current_time()
        self.announcer = Announcer(
            hub, draw=self.draw, send=self.send, on_silence=self.silent, on_doubt=self.doubt
        )

    def draw(self):
        if self.failure is not None:
            raise self.failure
        return TunnelBlock(random.randbytes(16))

    async def send(self, block):
        self.sent.append(round(trio.current_time() - self.began, 3))
        if self.answers:
            self.nursery.start_soon(self.come, block, self.delay)

    async def come(self, block, delay):
        await trio.sleep(delay)
        announced = self.announcer.expects(block)
        if announced is None:
            self.late += 1
            return
        tunnel = FakeTunnel()
        self.tunnels.append(tunnel)
        if not await self.announcer.keep(tunnel, announced):
            tunnel.reset()

    def silent(self):
        self.silences += 1

    def doubt(self):
        self.doubts.append(round(trio.current_time() - self.began, 3))


@pytest.fixture
async def far(autojump_clock, nursery):
    hub = TunnelHub(None, None, LIMITS, SystemClock(), random.Random(4))
    await nursery.start(hub.run)
    yield Far(nursery, hub)
    assert hub.counts[COUNTER] == 0


async def test_one_block_at_first_then_the_pool_fills(far, autojump_clock):
    far.announcer.start()
    await far.announcer.wait_first(1)
    await trio.testing.wait_all_tasks_blocked()
    assert far.sent == [0.0, 0.1, 0.1]
    assert far.announcer.ready == 1
    await far.announcer.wait_filled(1)
    await trio.sleep(10)
    assert far.announcer.ready == 3
    assert far.sent == [0.0, 0.1, 0.1]


async def test_a_path_that_does_not_stand_yet_is_knocked_at_more_and_more_rarely(
    far, autojump_clock
):
    far.answers = False
    far.announcer.start()
    with pytest.raises(DeadlineExpired):
        await far.announcer.wait_first(8)
    await trio.sleep(60)
    assert far.sent == [round(sum(KNOCKS[: n + 1]), 3) for n in range(len(KNOCKS))]
    assert far.silences == 0


async def test_knocks_count_as_tunnels_on_their_way(far, autojump_clock):
    far.delay = 0.5
    far.announcer.start()
    await trio.sleep(20)
    assert far.sent == [0.0, 0.15, 0.45]
    assert far.announcer.ready == 3


async def test_a_knock_that_was_lost_is_made_up_for(far, autojump_clock):
    far.answers = False
    far.announcer.start()
    await trio.sleep(0.2)
    far.answers = True
    await trio.sleep(1)
    assert far.announcer.ready == 1
    await trio.sleep(BUILD_TIMEOUT)
    assert far.announcer.ready == 3


async def test_what_is_taken_is_replaced_a_little_later_unless_many_are(far, autojump_clock):
    far.announcer.start()
    await trio.sleep(5)
    del far.sent[:]
    far.began = trio.current_time()
    await far.announcer.take(1)
    await trio.testing.wait_all_tasks_blocked()
    assert far.sent == []
    await far.announcer.take(1)
    await trio.testing.wait_all_tasks_blocked()
    assert far.sent == [0.0, 0.0]
    await trio.sleep(1)
    assert far.announcer.ready == 3


async def test_silence_is_noticed_after_three_blocks(far, autojump_clock):
    far.announcer.start()
    await trio.sleep(5)
    far.answers = False
    del far.sent[:]
    far.began = trio.current_time()
    assert await far.announcer.take(1)
    await trio.sleep(30)
    first, second = RETRY_PAUSES
    began = far.sent[0]
    assert REPLACING_PAUSE[0] <= began <= REPLACING_PAUSE[1] + 0.001
    assert [round(sent - began, 2) for sent in far.sent] == [
        0.0,
        BUILD_TIMEOUT + first,
        2 * BUILD_TIMEOUT + first + second,
    ]
    assert len(far.sent) == FAILURES_UNTIL_SILENT
    assert far.silences == 1


async def test_a_block_without_answer_raises_doubt_soon(far, autojump_clock):
    far.announcer.start()
    await trio.sleep(5)
    assert far.doubts == []
    far.answers = False
    far.began = trio.current_time()
    assert await far.announcer.take(1)
    await trio.sleep(4)
    (began,) = far.sent[-1:]
    assert far.doubts == [pytest.approx(began + SHORTEST_PATIENCE, abs=0.002)]


async def test_what_has_always_been_slow_raises_no_doubt(far, autojump_clock):
    far.delay = 3.0
    far.announcer.start()
    await trio.sleep(30)
    assert far.announcer.ready >= 3
    for _ in range(3):
        assert await far.announcer.take(10)
    await trio.sleep(60)
    assert (far.doubts, far.silences) == ([], 0)


async def test_a_path_that_never_gave_a_tunnel_is_not_doubted(far, autojump_clock):
    far.answers = False
    far.announcer.start()
    await trio.sleep(60)
    assert far.doubts == []


async def test_a_request_without_answer_has_the_ready_tunnels_replaced(far, autojump_clock):
    far.announcer.start()
    await trio.sleep(5)
    tunnel = await far.announcer.take(1)
    await trio.sleep(1)
    ready = [one for one in far.tunnels if one is not tunnel]
    far.answers = False
    asked = trio.current_time()
    far.began = asked
    with pytest.raises(DeadlineExpired):
        await far.announcer.receive_result(tunnel, 20)
    assert trio.current_time() - asked == pytest.approx(20)
    assert not far.announcer.heard_since(asked)
    assert all(one.was_reset for one in ready)
    assert far.doubts[0] == SHORTEST_PATIENCE
    assert far.silences


async def test_on_a_silent_path_nobody_waits_long(far, autojump_clock):
    far.announcer.start()
    await trio.sleep(5)
    far.answers = False
    for _ in range(3):
        assert await far.announcer.take(1)
    await trio.sleep(30)
    assert far.silences
    began = trio.current_time()
    with pytest.raises(DeadlineExpired):
        await far.announcer.take(10)
    assert trio.current_time() - began == pytest.approx(SILENT_PATIENCE)
    await trio.sleep(30)
    far.answers = True
    assert await far.announcer.take(10)


async def test_a_slow_answer_on_a_path_that_works_is_waited_for(far, autojump_clock):
    far.announcer.start()
    await trio.sleep(5)
    asked = trio.current_time()
    tunnel = await far.announcer.take(1)
    ready = [one for one in far.tunnels if one is not tunnel]
    with trio.move_on_after(4):
        await far.announcer.receive_result(tunnel, 20)
    assert far.announcer.heard_since(asked)
    assert not any(one.was_reset for one in ready)
    assert far.doubts == []


async def test_a_tunnel_in_between_shows_that_the_path_works(far, autojump_clock):
    far.announcer.start()
    await trio.sleep(5)
    far.answers = False
    taken = [await far.announcer.take(1), await far.announcer.take(1)]
    assert len(taken) == 2
    await trio.sleep(BUILD_TIMEOUT - 0.5)
    far.answers = True
    assert await far.announcer.take(1)
    await trio.sleep(20)
    assert far.silences == 0
    assert far.announcer.ready >= 3


async def test_a_tunnel_that_comes_too_late_is_not_expected(far, autojump_clock):
    far.delay = BUILD_TIMEOUT + 1
    far.announcer.start()
    await trio.sleep(2 * far.delay)
    assert far.late
    assert not far.tunnels
    assert far.announcer.expects(TunnelBlock(bytes(16))) is None


@pytest.mark.parametrize("failure", [LinkBroken("gone"), CapacityExceeded("used up")])
async def test_blocks_that_can_not_be_sent_are_silence_too(far, autojump_clock, failure):
    far.announcer.start()
    await trio.sleep(5)
    far.failure = failure
    assert await far.announcer.take(1)
    await trio.sleep(30)
    assert far.silences == 1


async def test_after_the_end_nothing_is_sent_and_ready_tunnels_are_given_up(far, autojump_clock):
    far.announcer.start()
    await trio.sleep(5)
    far.announcer.stop()
    await trio.sleep(300)
    assert Counter(far.sent) == {0.0: 1, 0.1: 2}
    assert all(tunnel.was_reset for tunnel in far.tunnels)
    assert far.silences == 0


async def test_an_end_before_the_beginning(far, autojump_clock):
    far.announcer.start()
    far.announcer.stop()
    await trio.sleep(60)
    assert far.sent == []


async def test_ready_tunnels_are_replaced_in_time(far, autojump_clock):
    far.announcer.start()
    await trio.sleep(LIMITS.recycle_max_s + 1)
    assert len(far.sent) == 6
    assert [tunnel.was_reset for tunnel in far.tunnels] == [True] * 3 + [False] * 3
    far.announcer.discard_ready()
    await trio.sleep(1)
    assert len(far.sent) == 9
