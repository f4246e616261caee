"""Pools of paths: kept up, replaced in time, rebuilt when they die, patient when they must."""

import itertools
import random
from collections import Counter
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import trio

from phantom_tun.clock import HOUR, MINUTE
from phantom_tun.errors import DeadlineExpired, LinkBroken, PathUnavailable, UsageError
from phantom_tun.ids import CertHash, ConnectionId, NodeId
from phantom_tun.net.paths.pool import (
    EARLY_DEATH,
    LINK_FAILURES,
    LONGEST_PAUSE,
    LOOK_EVERY,
    OTHERS_AFTER,
    OTHERS_AT_LATEST,
    OTHERS_AT_MOST,
    Change,
    Goal,
    PathPool,
)
from phantom_tun.path.hop import OwnedPath
from phantom_tun.path.lifetimes import RETIRE_MARGIN
from phantom_tun.path.selection import TooFewNodes
from phantom_tun.testing.path_nodes import TrioClock
from phantom_tun.wire.nodes import NodeRef

BUILD_SECONDS = 0.4


def a_ref():
    node_id = NodeId(random.randbytes(32))
    return NodeRef(node_id, CertHash(bytes(32)), ip_address("10.1.0.1"), 443)


class FakeBuilder:
    """Builds in no network; fails as often as told."""

    def __init__(self, clock, takes=BUILD_SECONDS):
        self.clock = clock
        self.takes = takes
        self.numbers = itertools.count(1)
        self.failures = 0
        self.failure = DeadlineExpired("setup array 1 did not come round in 4.4 s")
        self.started = []
        self.building = self.most_building = 0
        self.dead = []
        self.without_tunnel = []
        self.unreachable = set()
        self.kept = Counter()
        self.guards_checked = 0

    async def build(self, kind, hops, identity, route_factory=None, *, lifetime, apart_from):
        self.apart_from = apart_from
        self.started.append(trio.current_time())
        self.building += 1
        self.most_building = max(self.most_building, self.building)
        await trio.sleep(self.takes)
        self.building -= 1
        if self.failures:
            self.failures -= 1
            raise self.failure
        now = self.clock.now()
        return OwnedPath(
            number=next(self.numbers),
            kind=kind,
            identity=identity,
            members=[a_ref()],
            secrets=[],
            first_connection=ConnectionId(bytes(16)),
            entry_id=None,
            built=now,
            retires=now + lifetime - RETIRE_MARGIN,
            expires=now + lifetime,
            build_seconds=self.takes,
            route=route_factory(None, None, now) if route_factory else None,
        )

    def gave_no_tunnel(self, path):
        self.without_tunnel.append(path)

    def died(self, path):
        self.dead.append(path)

    async def check_guards(self):
        self.guards_checked += 1

    async def keep_link(self, path):
        self.kept[path.number] += 1
        if path.number in self.unreachable:
            raise LinkBroken("the node can't be reached")


class User:
    """What uses the paths: the place of the tunnels."""

    def __init__(self):
        self.in_use = []
        self.refuse = 0
        self.events = []

    async def confirm(self, path):
        await trio.sleep(0.1)
        if self.refuse:
            self.refuse -= 1
            raise DeadlineExpired("the path gave no tunnel")
        self.in_use.append(path)

    def release(self, path):
        self.in_use.remove(path)


@asynccontextmanager
async def pool(
    count=2,
    kind="exit",
    lifetime=HOUR,
    failures=0,
    refuse=0,
    seed=1,
    factory=None,
    takes=BUILD_SECONDS,
):
    clock = TrioClock()
    builder, user = FakeBuilder(clock, takes), User()
    builder.failures, user.refuse = failures, refuse
    made = PathPool(
        builder,
        Goal(kind, "main", 3, count, lifetime, factory),
        confirm=user.confirm,
        release=user.release,
        on_event=user.events.append,
        clock=clock,
        rng=random.Random(seed),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(made.run)
        yield made, builder, user
        nursery.cancel_scope.cancel()
    assert user.in_use == [], "all paths are released at the end"
    assert made.current() == []


async def test_paths_are_built_and_kept(autojump_clock):
    async with pool(count=3) as (made, builder, user):
        assert made.current() == []
        await made.wait_ready(3)
        assert made.current() == user.in_use
        assert [event.change for event in user.events] == [Change.UP] * 3
        assert made.statistics() == {"up": 3, "wanted": 3, "built": 3}
        await trio.sleep(5 * MINUTE)
        assert len(builder.started) == 3


@pytest.mark.parametrize("takes", [BUILD_SECONDS, 25.0])
async def test_the_first_path_is_built_alone_and_the_others_wait_the_longer_the_slower_it_was(
    takes, autojump_clock
):
    async with pool(count=3, takes=takes) as (made, builder, _):
        await made.wait_ready()
        up = trio.current_time()
        assert up == pytest.approx(takes + 0.1)
        assert len(builder.started) == 1
        await made.wait_ready(3)
        pauses = [started - up for started in builder.started[1:]]
        usual = min(OTHERS_AFTER * takes, OTHERS_AT_MOST)
        for number, pause in enumerate(pauses, 1):
            assert 0.7 * usual * number < pause < 1.3 * usual * number


async def test_the_others_do_not_wait_forever_for_the_first(autojump_clock):
    async with pool(count=3, failures=10**6) as (made, builder, _):
        await trio.sleep(OTHERS_AT_LATEST - 1)
        assert builder.most_building == 1
        await trio.sleep(1 + LONGEST_PAUSE)
        assert builder.most_building > 1
        builder.failures = 0
        await made.wait_ready(3)


async def test_replacements_are_built_side_by_side(autojump_clock):
    async with pool(count=3) as (made, builder, _):
        await made.wait_ready(3)
        await trio.sleep(EARLY_DEATH)
        for path in made.current():
            made.report_dead(path)
        started = trio.current_time()
        await made.wait_ready(3)
        assert trio.current_time() - started == pytest.approx(BUILD_SECONDS + 0.1)
        assert builder.most_building == 3


async def test_wait_ready_wants_something_possible(autojump_clock):
    async with pool(count=2) as (made, _, _):
        with pytest.raises(UsageError, match="2"):
            await made.wait_ready(3)
        await made.wait_ready()
        assert len(made.current()) >= 1


async def test_the_route_factory_reaches_the_builder(autojump_clock):
    async with pool(count=1, kind="entry", factory=lambda *_: b"route") as (made, _, _):
        await made.wait_ready()
        assert made.current()[0].route == b"route"


async def test_a_failed_build_is_repeated_ever_more_slowly_and_says_why(autojump_clock):
    async with pool(count=1, failures=9) as (made, builder, _):
        await trio.sleep(60)
        assert made.problem == "setup array 1 did not come round in 4.4 s"
        assert made.current() == []
        await made.wait_ready()
        assert made.problem is None
        pauses = [
            later - earlier - BUILD_SECONDS
            for earlier, later in itertools.pairwise(builder.started)
        ]
        assert 0.3 < pauses[0] < 0.7
        assert pauses[1] > pauses[0]
        assert all(pause <= 1.25 * LONGEST_PAUSE for pause in pauses)
        assert pauses[-1] > 0.7 * LONGEST_PAUSE
        assert made.statistics()["builds_failed"] == 9


async def test_a_shortage_of_nodes_is_looked_at_again_soon(autojump_clock):
    async with pool(count=1, failures=30) as (made, builder, _):
        builder.failure = TooFewNodes("3 hops need 8 members in different /16; 4 known")
        await trio.sleep(20)
        assert "8 members" in made.problem
        await made.wait_ready()
        pauses = [later - earlier for earlier, later in itertools.pairwise(builder.started)]
        assert max(pauses) < 2
        assert "builds_failed" not in made.statistics()


async def test_a_path_without_a_first_tunnel_does_not_count(autojump_clock):
    async with pool(count=1, refuse=2) as (made, builder, user):
        await made.wait_ready()
        assert [path.number for path in builder.without_tunnel] == [1, 2]
        assert [path.number for path in made.current()] == [3]
        assert [event.path.number for event in user.events] == [3]


@pytest.mark.parametrize("kind", ["exit", "entry"])
@pytest.mark.parametrize("seed", range(4))
async def test_there_is_never_a_moment_without_a_path(kind, seed, autojump_clock):
    async with pool(count=1, kind=kind, lifetime=10 * MINUTE, seed=seed) as (made, _, user):
        await made.wait_ready()
        for _ in range(3 * 3600):
            await trio.sleep(1)
            assert 1 <= len(made.current()) <= 2
            assert all(path.retires > made._clock.now() - 1 for path in made.current())
            assert user.in_use == made.current()
        changes = Counter(event.change for event in user.events)
        assert changes[Change.RETIRED] >= 6
        assert changes[Change.UP] - changes[Change.RETIRED] in (1, 2)
        assert not changes[Change.DIED]


async def test_paths_of_one_pool_do_not_end_together(autojump_clock):
    async with pool(count=8) as (made, _, _):
        await made.wait_ready(8)
        ends = sorted(path.retires for path in made.current())
        assert max(ends) - min(ends) > 10 * MINUTE
        assert len(set(ends)) == 8


async def test_a_path_that_cant_be_replaced_ends_all_the_same(autojump_clock):
    async with pool(count=1, lifetime=10 * MINUTE) as (made, builder, _):
        await made.wait_ready()
        (path,) = made.current()
        builder.failures = 10**6
        await trio.sleep(path.retires - made._clock.now() - 0.5)
        assert made.current() == [path]
        await trio.sleep(1)
        assert made.current() == []
        builder.failures = 0
        await made.wait_ready()


async def test_a_dead_path_is_replaced_at_once(autojump_clock):
    async with pool(count=2) as (made, builder, user):
        await made.wait_ready(2)
        await trio.sleep(EARLY_DEATH)
        dead, other = made.current()
        started = trio.current_time()
        made.report_dead(dead)
        made.report_dead(dead)
        assert made.current() == [other]
        assert builder.dead == [dead]
        assert user.in_use == [other]
        await made.wait_ready(2)
        assert trio.current_time() - started == pytest.approx(BUILD_SECONDS + 0.1)
        assert dead not in made.current()
        assert [event.change for event in user.events][2:] == [Change.DIED, Change.UP]


async def test_a_doubted_path_is_used_until_its_successor_is_up(autojump_clock):
    async with pool(count=2) as (made, builder, user):
        await made.wait_ready(2)
        await trio.sleep(EARLY_DEATH)
        doubted, other = made.current()
        for _ in range(2):
            made.report_doubt(doubted)
        await trio.sleep(BUILD_SECONDS)
        assert made.current() == [doubted, other]
        assert builder.apart_from == set(other.node_ids)
        await trio.sleep(0.2)
        assert doubted not in made.current()
        assert len(made.current()) == 2
        assert builder.dead == [doubted]
        assert builder.guards_checked == 1
        assert [event.change for event in user.events][2:] == [Change.UP, Change.RETIRED]


async def test_a_doubted_path_that_dies_is_given_up_at_once(autojump_clock):
    async with pool(count=2) as (made, builder, _):
        await made.wait_ready(2)
        await trio.sleep(EARLY_DEATH)
        doubted, other = made.current()
        made.report_doubt(doubted)
        made.report_dead(doubted)
        assert made.current() == [other]
        assert builder.dead == [doubted]
        await trio.sleep(1)
        assert len(made.current()) == 2
        assert len(builder.started) == 3


async def test_endless_doubts_do_not_make_a_lane_spin(autojump_clock):
    async with pool(count=1) as (made, builder, _):
        await made.wait_ready()
        for _ in range(600):
            made.report_doubt(made.current()[0])
            await trio.sleep(0.2)
        assert len(made.current()) <= 2
        assert len(builder.started) < 20


async def test_builds_are_told_whom_the_other_paths_lead_through(autojump_clock):
    async with pool(count=2) as (made, builder, _):
        await made.wait_ready(2)
        one, other = made.current()
        await made.rebuild(one, within=10)
        assert builder.apart_from == {*one.node_ids, *other.node_ids}


async def test_paths_that_die_young_are_replaced_ever_more_slowly(autojump_clock):
    async with pool(count=1) as (made, builder, _):
        for _ in range(8):
            await made.wait_ready()
            made.report_dead(made.current()[0])
        await made.wait_ready()
        pauses = [later - earlier for earlier, later in itertools.pairwise(builder.started)]
        assert pauses[0] < 1.5
        assert pauses[-1] > 10


async def test_a_path_of_somebody_else_is_none_of_ours(autojump_clock):
    async with pool(count=1) as (made, builder, _), pool(count=1) as (other, _, _):
        await made.wait_ready()
        await other.wait_ready()
        (foreign,) = other.current()
        made.report_dead(foreign)
        assert builder.dead == []
        assert len(made.current()) == 1
        with pytest.raises(PathUnavailable, match="doesn't stand"):
            await made.rebuild(foreign, within=1)


async def test_a_first_hop_that_cant_be_reached_any_more_is_noticed(autojump_clock):
    async with pool(count=1) as (made, builder, _):
        await made.wait_ready()
        await trio.sleep(EARLY_DEATH)
        (path,) = made.current()
        builder.unreachable.add(path.number)
        started = trio.current_time()
        while path in made.current():
            await trio.sleep(0.5)
        assert trio.current_time() - started <= LINK_FAILURES * LOOK_EVERY + 1
        assert builder.dead == [path]
        await made.wait_ready()


async def test_one_failed_look_at_the_first_hop_is_forgiven(autojump_clock):
    async with pool(count=1) as (made, builder, _):
        await made.wait_ready()
        (path,) = made.current()
        await trio.sleep(LOOK_EVERY / 2)
        for _ in range(5):
            builder.unreachable.add(path.number)
            await trio.sleep(LOOK_EVERY)
            builder.unreachable.clear()
            await trio.sleep(LOOK_EVERY)
        assert made.current() == [path]
        assert builder.kept[path.number] >= 10


async def test_rebuilding_replaces_without_a_gap(autojump_clock):
    async with pool(count=2) as (made, _, user):
        await made.wait_ready(2)
        one, other = made.current()
        gaps = []

        async def watch():
            while True:
                gaps.append(len(made.current()))
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            after = await made.rebuild(one, within=10)
            nursery.cancel_scope.cancel()
        assert min(gaps) >= 2
        assert one not in after
        assert other in after
        assert len(after) == 2
        everything = await made.rebuild(within=10)
        assert not set(map(id, after)) & set(map(id, everything))
        assert user.in_use == everything


async def test_rebuilding_a_path_that_was_replaced_already_ends_it(autojump_clock):
    async with pool(count=1, lifetime=10 * MINUTE) as (made, _, _):
        await made.wait_ready()
        (old,) = made.current()
        while len(made.current()) < 2:
            await trio.sleep(1)
        assert old in made.current()
        after = await made.rebuild(old, within=1)
        assert old not in after
        assert len(after) == 1


async def test_rebuilding_that_takes_too_long_says_why(autojump_clock):
    async with pool(count=1) as (made, builder, _):
        await made.wait_ready()
        (path,) = made.current()
        builder.failures = 10**6
        with pytest.raises(DeadlineExpired, match="did not come round"):
            await made.rebuild(within=5)
        assert made.current() == [path]


async def test_a_jump_of_the_clock_retires_paths(autojump_clock):
    """As after a suspend: trio's clock stood still, the world's did not."""
    async with pool(count=1) as (made, builder, _):
        await made.wait_ready()
        (path,) = made.current()
        builder.clock._offset += 5 * HOUR
        await trio.sleep(LOOK_EVERY + 2)
        assert path not in made.current()
        await made.wait_ready()
