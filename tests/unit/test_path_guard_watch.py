"""Whether guards are to blame for what fails: only while we are online ourselves."""

import ipaddress
import random
from dataclasses import dataclass

import pytest
import trio

from phantom_tun.errors import LinkBroken
from phantom_tun.ids import NodeId
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.peers import NeighbourInfo
from phantom_tun.net.paths.guard_watch import (
    DOUBT_FOR,
    GUARD_DEADLINE,
    LOOK_FOR_MISSING_EVERY,
    WAIT_FOR_SIGN,
    GuardNews,
    GuardWatch,
)
from phantom_tun.path.guards import SET_SIZE, GuardSet
from phantom_tun.path.suspicion import Suspicion
from phantom_tun.testing.path_nodes import TrioClock
from phantom_tun.testing.record_factory import NodeMaker

RECORDS = {maker.record().node_id: maker.record() for maker in map(NodeMaker, range(SET_SIZE + 2))}
GUARDS = list(RECORDS)[:SET_SIZE]
LATER = list(RECORDS)[SET_SIZE:]


@dataclass
class FakeLinks:
    """Links of a node that is online or not, to guards of which some are gone."""

    node_id = NodeId(b"o" * 32)
    online = True
    heard: float | None = None
    own: bool = False

    def __post_init__(self):
        self.gone = set()
        self.hanging = set()
        self.dialed = []

    async def ensure(self, ref):
        self.dialed.append(ref.node_id)
        await trio.sleep(0.1)
        if not self.online or ref.node_id in self.gone:
            raise LinkBroken("the node can't be reached")
        if ref.node_id in self.hanging:
            await trio.sleep_forever()

    def neighbours(self):
        at = ipaddress.IPv4Address(1)
        found = [NeighbourInfo(NodeId(b"n" * 32), at, False, False, 0, 1, None)]
        if self.heard is not None:
            silent = trio.current_time() - self.heard
            found.append(NeighbourInfo(NodeId(b"s" * 32), at, True, True, 0, 0, silent))
        if self.own:
            found.append(NeighbourInfo(self.node_id, at, True, True, 0, 0, 0.0))
        return found

    def hear(self):
        self.heard = trio.current_time()


class World:
    def __init__(self):
        self.links = FakeLinks()
        self.guards = GuardSet(frozenset())
        self.clock = TrioClock()
        self.answered = []
        for node in GUARDS:
            self.guards.add(node, self.clock.now(), random.Random(1))
        self.watch = GuardWatch(
            self.links,
            self.guards,
            Suspicion(),
            GuardNews(RECORDS.get, self.answered.append),
            self.clock,
        )

    @property
    def usable(self):
        return self.guards.usable(self.clock.now())


async def test_in_an_outage_nobody_is_blamed(autojump_clock):
    world = World()
    world.links.hear()
    assert world.watch.online
    await trio.sleep(1)
    world.links.online = False
    for _ in range(10):
        await world.watch.check(GUARDS, 4)
        assert not world.watch.online, "nobody was heard from since"
        await trio.sleep(15)
    assert world.usable == GUARDS
    world.links.heard = None  # they are given up after half a minute
    assert not world.watch.online
    world.links.online = True
    world.links.hear()
    await world.watch.check(GUARDS, 4)
    assert world.usable == GUARDS
    assert world.watch.online


@pytest.mark.parametrize("how", ["gone", "hanging"])
async def test_a_guard_that_fails_again_after_somebody_was_heard_is_blamed(how, autojump_clock):
    world = World()
    getattr(world.links, how).update(GUARDS[:2])
    await world.watch.check(GUARDS, 4)
    assert world.usable == GUARDS, "once may be our fault"
    world.links.hear()
    await world.watch.check(GUARDS, 4)
    assert world.usable == GUARDS[2:]
    assert world.watch.online, "nothing is in doubt"


async def test_one_check_is_enough_where_somebody_answers_meanwhile(autojump_clock):
    world = World()
    world.links.hanging.update(GUARDS[:3])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.watch.check, GUARDS, 4)
        await trio.sleep(1)
        world.links.hear()
    assert world.usable == GUARDS[3:]
    assert trio.current_time() == pytest.approx(2 * GUARD_DEADLINE)


async def test_if_too_few_guards_are_left_a_sign_is_waited_for(autojump_clock):
    world = World()
    world.links.gone.update(GUARDS[:3])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.watch.check, GUARDS, 4)
        await trio.sleep(8)
        assert world.usable == GUARDS
        world.links.hear()
    assert world.usable == GUARDS[3:]
    assert trio.current_time() < 9


async def test_a_sign_is_not_waited_for_longer_than_it_takes(autojump_clock):
    world = World()
    world.links.gone.update(GUARDS[:3])
    await world.watch.check(GUARDS, 4)
    assert world.usable == GUARDS
    assert trio.current_time() == pytest.approx(WAIT_FOR_SIGN + 0.1, abs=0.01)
    assert LinkLimits().ping_after < WAIT_FOR_SIGN


async def test_a_failure_that_began_before_somebody_was_heard_proves_nothing(autojump_clock):
    world = World()
    world.links.online = False
    world.watch.failed(GUARDS[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.watch.check, GUARDS, 4)
        await trio.sleep(0.05)
        world.links.hear()
        await trio.sleep(0.06)
        world.links.online = True
    assert world.usable == GUARDS


async def test_an_old_failure_proves_nothing(autojump_clock):
    world = World()
    world.links.gone.add(GUARDS[0])
    await world.watch.check(GUARDS, 4)
    world.links.hear()
    await trio.sleep(DOUBT_FOR)
    await world.watch.check(GUARDS, 4)
    assert world.usable == GUARDS


async def test_a_link_to_oneself_is_no_sign(autojump_clock):
    world = World()
    world.links.own = True
    assert not world.watch.online
    world.links.online = False
    for _ in range(3):
        await world.watch.check(GUARDS, 4)
    assert world.usable == GUARDS


async def test_guards_that_are_no_candidates_are_looked_for_now_and_then(autojump_clock):
    world = World()
    world.links.gone.add(GUARDS[0])
    await world.watch.find_missing(GUARDS, 4)
    assert world.links.dialed == []
    await world.watch.find_missing(GUARDS[2:], 4)
    await world.watch.find_missing(GUARDS[2:], 4)
    assert sorted(world.links.dialed) == sorted(GUARDS[:2])
    assert world.answered == [GUARDS[1]]
    await trio.sleep(LOOK_FOR_MISSING_EVERY)
    world.links.hear()
    await world.watch.find_missing(GUARDS[1:], 4)
    assert world.usable == GUARDS[1:]
    world.links.dialed.clear()
    await trio.sleep(LOOK_FOR_MISSING_EVERY)
    await world.watch.find_missing(GUARDS[1:], 4)
    assert world.links.dialed == [], "it is known to be gone"


async def test_who_is_not_needed_to_stand_in_is_not_dialed(autojump_clock):
    world = World()
    for node in LATER:
        world.guards.add(node, world.clock.now(), random.Random(1))
    await world.watch.check([*GUARDS, *LATER], 4)
    assert sorted(world.links.dialed) == sorted(GUARDS)
    world.guards.unreachable(GUARDS[0], world.clock.now())
    world.links.dialed.clear()
    await world.watch.check([*GUARDS[:-1], *LATER], 4)
    assert sorted(world.links.dialed) == sorted([*GUARDS, *LATER]), "of those, five may be used"


async def test_trusted_guards_are_dialed_besides_the_others(autojump_clock):
    world = World()
    guards = world.guards = GuardSet(frozenset(GUARDS))
    for node in RECORDS:
        guards.add(node, world.clock.now(), random.Random(1))
    news = GuardNews(RECORDS.get, world.answered.append)
    watch = GuardWatch(world.links, guards, Suspicion(), news, world.clock)
    await watch.check(RECORDS, 4)
    assert sorted(world.links.dialed) == sorted(RECORDS)


async def test_what_fails_that_is_no_guard_says_nothing_about_guards(autojump_clock):
    world = World()
    world.links.hear()
    await trio.sleep(1)
    world.watch.failed(NodeId(b"x" * 32))
    assert world.watch.online
    world.watch.failed(GUARDS[0])
    assert not world.watch.online
    world.watch.worked(GUARDS[0])
    assert world.watch.online
