"""The pool of ready tunnels, and token buckets."""

import pytest
import trio

from phantom_tun.errors import DeadlineExpired, PathUnavailable, StreamReset
from phantom_tun.net.links.rates import RateTable
from phantom_tun.net.tunnels.ready_pool import (
    REPLACED_BURST,
    REPLACED_RATE,
    REPLACING_PAUSE,
    SHRINK_EVERY,
    PoolLimits,
    ReadyPool,
)


class FakeTunnel:
    """Readable when told so."""

    def __init__(self):
        self.event = trio.Event()
        self.broken = False
        self.was_reset = False

    async def wait_readable(self):
        await self.event.wait()
        if self.broken:
            raise StreamReset("gone")

    def reset(self):
        self.was_reset = True


class Owner:
    """Builds when asked, like a path's owner."""

    def __init__(self, nursery, limits):
        self.nursery = nursery
        self.asked = 0
        self.fail = False
        self.made = []
        self.lost = []
        self.pool = ReadyPool(limits, self.build)

    async def take(self, within, patience=1000.0, **options):
        return await self.pool.take(within, lambda: patience, **options)

    def build(self):
        self.asked += 1
        self.nursery.start_soon(self.make)

    async def make(self):
        await trio.sleep(0.1)
        if self.fail:
            self.pool.build_failed()
            return
        tunnel = FakeTunnel()
        self.made.append(tunnel)
        if not await self.pool.offer_and_watch(tunnel, keep=100.0):
            self.lost.append(tunnel)


LIMITS = PoolLimits(low=2, high=8, max_building=4)


@pytest.fixture
async def owner(autojump_clock):
    async with trio.open_nursery() as nursery:
        yield Owner(nursery, LIMITS)
        nursery.cancel_scope.cancel()


async def test_it_fills_to_its_aim_and_gives_the_oldest_first(owner, autojump_clock):
    owner.pool.refill()
    await trio.sleep(1)
    assert owner.pool.ready == 2
    first = await owner.take(1)
    assert first is owner.made[0]
    await trio.sleep(1)
    assert owner.pool.ready == 2


async def test_running_dry_doubles_the_aim_and_quiet_times_shrink_it(owner, autojump_clock):
    owner.pool.refill()
    await trio.sleep(1)
    for _ in range(2):
        await owner.take(1)
    await trio.sleep(1)
    assert owner.pool.ready == 4
    for _ in range(3):
        await trio.sleep(SHRINK_EVERY + 1)
        await owner.take(1)
    await trio.sleep(1)
    assert owner.pool.ready == 2


async def test_whoever_waits_gets_the_next_one_and_builds_are_bounded(owner, autojump_clock):
    got = []

    async def taker():
        got.append(await owner.take(5))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(taker)
        await trio.sleep(0.05)
        assert owner.asked == LIMITS.max_building
    assert len(set(got)) == 10


async def test_who_is_in_a_hurry_waits_before_the_others(owner, autojump_clock):
    got = []

    async def taker(name, hurry):
        await owner.take(5, hurry=hurry)
        got.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(taker, number, number in {5, 8})
            await trio.sleep(0.001)
        assert owner.pool.waiting == 10
    assert {5, 8} <= set(got[: LIMITS.max_building])
    assert owner.pool.waiting == 0


async def test_waiting_ends_in_time_or_when_the_path_closes(owner, autojump_clock):
    owner.fail = True
    with pytest.raises(DeadlineExpired):
        await owner.take(1)

    async def taker():
        with pytest.raises(PathUnavailable):
            await owner.take(60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(taker)
        await trio.sleep(0.05)
        owner.pool.close()
    with pytest.raises(PathUnavailable):
        await owner.take(1)


async def test_nobody_waits_long_for_what_nobody_gets(owner, autojump_clock):
    owner.fail = True
    began = trio.current_time()
    with pytest.raises(DeadlineExpired):
        await owner.take(10, patience=2.0)
    assert trio.current_time() - began == pytest.approx(2.0)


async def test_in_a_crowd_it_is_worth_waiting(owner, autojump_clock):
    """Four builds at a time, each of 0.1 s: the last of forty waits for a second."""
    got = []

    async def taker():
        got.append(await owner.take(10, patience=0.2))

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(taker)
    assert len(set(got)) == 40


async def test_a_tunnel_that_dies_speaks_or_gets_old_is_replaced(owner, autojump_clock):
    owner.pool.refill()
    await trio.sleep(1)
    owner.made[0].broken = True
    owner.made[0].event.set()
    await trio.sleep(1)
    assert owner.lost == owner.made[:1]
    assert owner.pool.ready == 2
    await trio.sleep(101)
    assert len(owner.lost) == 3
    assert owner.pool.ready == 2


async def test_an_other_end_that_ends_every_tunnel_has_few_built(owner, autojump_clock):
    def end_all():
        for tunnel in owner.made:
            tunnel.event.set()

    owner.pool.refill()
    for _ in range(1000):
        await trio.sleep(0.1)
        end_all()
    # Two at a time for 100 s would have been 2,000.
    assert len(owner.lost) <= REPLACED_BURST + 100 * REPLACED_RATE + 100 / REPLACING_PAUSE * 2
    assert all(tunnel.was_reset for tunnel in owner.lost)
    await trio.sleep(REPLACING_PAUSE + 1)
    assert owner.pool.ready == 2


async def test_a_tunnel_for_somebody_who_gave_up_is_not_lost_from_the_books(owner, autojump_clock):
    with trio.move_on_after(0.05):
        await owner.take(5)
    await trio.sleep(1)
    assert owner.pool.ready >= 1


async def test_closing_drops_what_is_ready(owner, autojump_clock):
    owner.pool.refill()
    await trio.sleep(1)
    owner.pool.close()
    await trio.sleep(1)
    assert set(owner.lost) == set(owner.made)
    assert owner.pool.ready == 0


def test_a_bucket_empties_refills_and_is_its_owners_alone():
    rates = RateTable(rate=1.0, burst=2.0, size=2)
    assert [rates.allow("a", 0.0) for _ in range(3)] == [True, True, False]
    assert rates.allow("b", 0.0)
    assert rates.allow("a", 1.0)
    assert not rates.allow("a", 1.0)


def test_the_table_is_bounded_and_forgets_the_least_recent():
    rates = RateTable(rate=0.0, burst=1.0, size=2)
    for key in ("a", "b", "c"):
        assert rates.allow(key, 0.0)
    assert rates.allow("a", 0.0)
    assert not rates.allow("c", 0.0)


def test_a_bucket_can_be_looked_at():
    rates = RateTable(rate=1.0, burst=4.0)
    assert rates.left("a", 0.0) == 1.0
    assert rates.has("a", 0.0)
    for _ in range(4):
        assert rates.allow("a", 0.0)
    assert not rates.has("a", 0.5)
    assert rates.left("a", 0.5) == 0.125
    assert rates.left("a", 1.0) == 0.25
    assert rates.allow("a", 1.0)
    assert rates.left("a", 100.0) == 1.0
