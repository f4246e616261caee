"""Opening a connection: ways that are dead, silent or slow, and how long is waited."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from session_world import (
    BOB,
    ENTRY,
    SOURCE_PORT,
    START,
    World,
    crafted,
    receive_exactly,
    running_world,
    submitted,
)
from trio.testing import MockClock

from phantom_tun.errors import NoAnswer, Refused, Unreachable
from phantom_tun.ids import EntryId, NodeId
from phantom_tun.net.sessions.opening import (
    FALLBACK_AFTER,
    LOOK_AFRESH_AFTER,
    MAX_EXTRA,
    MAX_ROUTES,
    OPEN_WITHIN,
    SLOW_AFTER,
    SOONEST_FALLBACK,
)
from phantom_tun.net.sessions.routes import SUSPECT_FOR, TRIAL_PAUSE
from phantom_tun.net.sessions.serving import HANDSHAKE_WITHIN
from phantom_tun.testing.fake_host import FakeRecord
from phantom_tun.testing.fake_tunnel import FakeWayOut, Way
from phantom_tun.wire.session import Outcome

# --- routes --------------------------------------------------------------------------------------


ROUNDS = len(LOOK_AFRESH_AFTER)
"""In which one route is tried: not twice at the same moment."""


def route(number: int, expires: float = START + 10_000) -> tuple[NodeId, EntryId, float]:
    return NodeId(bytes([number]) * 32), EntryId(bytes([number]) * 16), expires


def set_routes(world: World, *routes: tuple[NodeId, EntryId, float], fresh: bool = False) -> None:
    records = world.directory.fresh_records if fresh else world.directory.records
    records[BOB.ap6] = FakeRecord.of(BOB, *routes)


async def test_a_dead_route_is_passed_over_at_once(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        set_routes(world, *(route(n) for n in range(3)), (*ENTRY, START + 10_000))
        started = trio.current_time()
        await world.connect()
        assert trio.current_time() == started


async def test_a_silent_route_gets_company(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        set_routes(world, route(1), (*ENTRY, START + 10_000))
        world.network.ways[route(1)[:2]] = Way(
            world.bob.service.handle_request, "bob", is_silent=True
        )
        started = trio.current_time()
        await world.connect()
        assert trio.current_time() - started in (0.0, pytest.approx(FALLBACK_AFTER))


async def test_the_answer_that_comes_second_is_given_up(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        set_routes(world, route(1), (*ENTRY, START + 10_000))
        slow = Way(world.bob.service.handle_request, "bob", delay=FALLBACK_AFTER + 1)
        world.network.ways[route(1)[:2]] = slow
        world.way.delay = FALLBACK_AFTER + 1
        stream = await world.connect()
        await trio.sleep(10)
        assert len(world.network.exchanges) == 2
        assert len(world.alice.service.sessions()) == 1
        assert len(world.bob.service.sessions()) == 1
        await stream.send_all(memoryview(b"x"))
        assert await receive_exactly(stream, 1) == b"x"


@pytest.mark.parametrize("_round", range(8))
async def test_of_two_answers_at_the_same_moment_one_is_taken(
    autojump_clock: MockClock, _round: int
) -> None:
    async with running_world() as world:
        set_routes(world, route(1), (*ENTRY, START + 10_000))
        other = Way(world.bob.service.handle_request, "bob")
        world.network.ways[route(1)[:2]] = other
        world.way.delay = other.delay = FALLBACK_AFTER + 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.connect)
            await trio.sleep(1)
            world.way.delay = other.delay = 1
        await trio.sleep(20)
        assert [exchange.answer is not None for exchange in world.network.exchanges] == [True] * 2
        assert len(world.alice.service.sessions()) == 1
        assert len(world.bob.service.sessions()) == 1


async def test_an_answer_that_got_lost_costs_no_more_than_the_next_attempt(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        set_routes(world, route(1), (*ENTRY, START + 10_000))
        world.network.ways[route(1)[:2]] = Way(
            world.bob.service.handle_request, "bob", loses_answers=True
        )
        for number in range(5):
            started = trio.current_time()
            stream = await world.connect(source_port=SOURCE_PORT + number)
            assert trio.current_time() - started <= FALLBACK_AFTER + 0.1
            await stream.send_all(memoryview(b"x"))
            assert await receive_exactly(stream, 1) == b"x"
        await trio.sleep(HANDSHAKE_WITHIN)
        # The service never met two callers with the same address and port, nor one that was reset.
        assert len(world.bob.host.calls) == 5
        assert not any(connection.is_aborted for connection in world.bob.host.connections)
        assert len(world.bob.service.sessions()) == 5


async def test_attempts_of_one_call_wait_for_the_service_together(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        world.bob.host.delay = 2.0
        outcomes: list[Outcome | None] = []

        async def attempt() -> None:
            outcomes.append(await submitted(world, crafted(world)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt)
            await trio.sleep(1)
            nursery.start_soon(attempt)
        assert outcomes == [Outcome.CONNECTED, Outcome.CONNECTED]
        await trio.sleep(1)
        # Both were let go, so nobody is left who could take the service.
        (connection,) = world.bob.host.connections
        assert connection.is_aborted


async def test_a_call_that_is_connected_is_not_connected_again(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        stream = await world.connect()
        await trio.sleep(1)
        assert await submitted(world, crafted(world)) is Outcome.FILTERED
        await stream.send_all(memoryview(b"x"))
        assert await receive_exactly(stream, 1) == b"x"


async def test_not_all_routes_of_a_long_record_are_tried(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        set_routes(world, *(route(n) for n in range(20)))
        with pytest.raises(Unreachable):
            await world.connect()
        assert len(world.network.exchanges) == (1 + ROUNDS) * MAX_ROUTES


async def test_expired_routes_are_not_tried(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        set_routes(world, (*ENTRY, START + 99))
        with pytest.raises(Unreachable):
            await world.connect()
        assert world.network.exchanges == []


async def test_when_all_routes_fail_the_record_is_looked_up_afresh(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        set_routes(world, route(1))
        set_routes(world, (*ENTRY, START + 10_000), fresh=True)
        await world.connect()
        assert world.directory.lookups == [False, True]


async def test_a_node_that_lost_all_its_ways_in_is_waited_for(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        set_routes(world, route(1), route(2))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.connect)
            await trio.sleep(4)
            set_routes(world, (*ENTRY, START + 10_000), fresh=True)
            with trio.fail_after(3):
                while not world.alice.service.sessions():
                    await trio.sleep(0.1)


async def test_a_crowd_that_waits_for_a_node_asks_rarely_and_gets_on_together(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        await get_used_to(world)
        before = len(world.network.exchanges)
        world.network.ways.clear()
        done: list[float] = []

        async def one(number: int) -> None:
            await world.connect(source_port=SOURCE_PORT + number)
            done.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)
                await trio.sleep(0.02)
            await trio.sleep(5)
            asked = len(world.network.exchanges) - before
            world.network.ways[ENTRY] = world.way
        assert asked <= 7 / TRIAL_PAUSE + 1  # each alone would have asked five times
        # Not everybody's own turn is waited for: who gets through tells the others.
        assert max(done) - min(done) < 0.5


async def test_a_record_that_is_gone_is_not_waited_for(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        set_routes(world, route(1), route(2))
        world.directory.fresh_failure = Unreachable("nobody has published it any more")
        started = trio.current_time()
        with pytest.raises(Unreachable, match="any more"):
            await world.connect()
        assert trio.current_time() == started


async def test_what_the_callee_says_is_final(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        set_routes(world, route(1), (*ENTRY, START + 10_000))
        started = trio.current_time()
        with pytest.raises(Refused):
            world.bob.rules.expose("bob", "tcp", 81)
            await world.connect(81)
        assert trio.current_time() == started


# --- exit paths and patience -------------------------------------------------------------------


async def get_used_to(world: World, count: int = 10) -> None:
    """Let Alice learn how long connections take."""
    for number in range(count):
        await world.connect(source_port=40_000 + number)


async def test_who_is_used_to_quick_answers_does_not_wait_long(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await get_used_to(world)
        set_routes(world, route(1), (*ENTRY, START + 10_000))
        silence(world, 1)
        for number in range(6):
            started = trio.current_time()
            await world.connect(source_port=SOURCE_PORT + number)
            assert trio.current_time() - started <= SOONEST_FALLBACK + 0.1


async def test_who_is_used_to_slow_answers_waits_longer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.way.delay = 3.0
        await get_used_to(world, 20)
        assert len(world.network.exchanges) == 20


async def test_a_crowd_gets_only_so_much_company(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await get_used_to(world)
        before = len(world.network.exchanges)
        set_routes(world, route(1), (*ENTRY, START + 10_000))
        other = Way(world.bob.service.handle_request, "bob", delay=FALLBACK_AFTER - 0.5)
        world.network.ways[route(1)[:2]] = other
        world.way.delay = other.delay
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(partial(world.connect, source_port=SOURCE_PORT + number))
        assert len(world.network.exchanges) - before <= 100 + 2 * MAX_EXTRA


async def test_a_dead_exit_path_is_passed_over_and_the_way_in_is_not_blamed(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        await get_used_to(world)
        alive = world.network.exits[0]
        world.network.exits = [FakeWayOut(world.network, 8, is_dead=True)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.connect)
            await trio.sleep(0.5)
            world.network.exits.append(alive)
            with trio.fail_after(SOONEST_FALLBACK):
                while len(world.alice.service.sessions()) <= 10:
                    await trio.sleep(0.01)
        # Nobody suspects the only way in, so no fresh record is asked for.
        await world.connect(source_port=SOURCE_PORT + 1)
        assert world.directory.lookups.count(True) == 0


def silence(world: World, *numbers: int) -> None:
    """Behind these routes nobody answers."""
    for number in numbers:
        way = Way(world.bob.service.handle_request, "bob", is_silent=True)
        world.network.ways[route(number)[:2]] = way


async def test_when_all_routes_are_silent_the_record_is_looked_up_meanwhile(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        set_routes(world, route(1), route(2))
        set_routes(world, route(2), (*ENTRY, START + 10_000), fresh=True)
        silence(world, 1, 2)
        started = trio.current_time()
        await world.connect()
        assert trio.current_time() - started == pytest.approx(2 * FALLBACK_AFTER)
        assert world.directory.lookups == [False, True]
        # The one that was still being waited for wasn't asked a second time.
        assert len(world.network.exchanges) == 3


async def test_a_route_that_was_silent_is_tried_last(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        set_routes(world, route(1), (*ENTRY, START + 10_000))
        silence(world, 1)
        delays = []
        for number in range(20):
            started = trio.current_time()
            await world.connect(source_port=SOURCE_PORT + number)
            delays.append(trio.current_time() - started)
        assert sum(delay > 0 for delay in delays) == 1
        # Later it gets another chance.
        await trio.sleep(SUSPECT_FOR)
        for number in range(20, 30):
            await world.connect(source_port=SOURCE_PORT + number)
        assert sum(exchange.entry_id == route(1)[1] for exchange in world.network.exchanges) == 2


async def test_applications_that_give_up_early_still_get_on(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        set_routes(world, route(1), route(2))
        set_routes(world, (*ENTRY, START + 10_000), fresh=True)
        silence(world, 1, 2)
        for _ in range(2):
            with trio.move_on_after(SLOW_AFTER):
                await world.connect()
        with trio.fail_after(1):
            await world.connect()


async def test_without_a_fresh_record_the_known_one_is_used(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        set_routes(world, route(1))
        with pytest.raises(Unreachable):
            await world.connect()
        world.network.ways[route(1)[:2]] = world.way
        world.directory.fresh_failure = Unreachable("nobody could be asked")
        await trio.sleep(TRIAL_PAUSE)
        await world.connect()
        assert world.directory.lookups[-2:] == [False, True]


async def test_silence_on_all_routes_is_silence(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.way.is_silent = True
        started = trio.current_time()
        with pytest.raises(NoAnswer):
            await world.connect()
        assert trio.current_time() - started <= OPEN_WITHIN


async def test_connecting_has_a_deadline(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.way.delay = 1000.0
        started = trio.current_time()
        with pytest.raises(NoAnswer):
            await world.connect()
        assert trio.current_time() - started == pytest.approx(OPEN_WITHIN)


async def test_a_connection_given_up_half_way_leaves_nothing(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        for step in range(12):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.connect)
                for _ in range(step):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        await trio.sleep(60)
        assert world.alice.service.sessions() == []
        assert world.bob.service.sessions() == []
        assert world.alice.service.statistics()["opening"] == 0
