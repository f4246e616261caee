"""Connecting and being connected to: outcomes, who is let in, what is refused without a word."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
from functools import partial

import pytest
import trio
from session_world import (
    ALICE,
    BOB,
    ENTRY,
    EVE,
    NAT4,
    NAT6,
    NETWORK,
    SOURCE_PORT,
    START,
    World,
    ends,
    receive_exactly,
    running_world,
)
from trio.testing import MockClock

from phantom_tun.crypto.certificates import caller_context, make_certificate
from phantom_tun.crypto.sealing import SealingKey
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import (
    CapacityExceeded,
    Filtered,
    NoAnswer,
    PathUnavailable,
    Refused,
    StreamReset,
    Unreachable,
    UsageError,
    WorldError,
)
from phantom_tun.ids import EntryId, NodeId
from phantom_tun.net.sessions import serving as session_serving
from phantom_tun.net.sessions.callers import CONFIRM_WITHIN, MAX_ASKING, UNCONFIRMED_FOR
from phantom_tun.net.sessions.opening import (
    FALLBACK_AFTER,
    LOOK_AFRESH_AFTER,
    MAX_EARLY,
    MAX_ROUTES,
    OPEN_WITHIN,
    SLOW_AFTER,
    SOONEST_FALLBACK,
)
from phantom_tun.net.sessions.routes import SUSPECT_FOR, TRIAL_PAUSE
from phantom_tun.net.sessions.secure_tunnel import FLIGHT_WAIT
from phantom_tun.net.sessions.service import SessionSettings
from phantom_tun.net.sessions.serving import HANDSHAKE_WITHIN, LOCAL_WITHIN
from phantom_tun.testing.fake_host import FakeRecord
from phantom_tun.testing.fake_tunnel import FakeTunnel, FakeWayOut, Way
from phantom_tun.tunnel.answer import unlock_answer
from phantom_tun.tunnel.channel import CallerHandshake
from phantom_tun.tunnel.request import CLOCK_TOLERANCE, request_time, seal_request
from phantom_tun.wire.session import TIME_STEP, Outcome, Protocol, Request
from phantom_tun.wire.sizes import ANSWER_LEN, SEALED_REQUEST_LEN

SETTINGS = SessionSettings(nat4=NAT4, nat6=NAT6)
CONTEXT = caller_context(ALICE.certificate)


def crafted(world: World, **changes: object) -> Request:
    """A request as Alice's node would make it, with changes."""
    request = Request(
        protocol=Protocol.TCP,
        destination=BOB.ap6,
        port=80,
        caller=ALICE.signing.public,
        certificate=ALICE.certificate.der,
        client_hello=CallerHandshake(CONTEXT).hello,
        time=request_time(world.alice.clock.now()),
        nonce=world.rng.randbytes(32),
        secret=b"s" * 32,
        session_id=b"i" * 16,
        source_ap4=ALICE.ap4,
        source_port=SOURCE_PORT,
    )
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def sealed(request: Request, signing: SigningKey = ALICE.signing) -> bytes:
    return seal_request(
        request, signing, BOB.signing.public, BOB.request_keys[0].public, NETWORK.network_id
    )


async def submitted(world: World, request: Request, data: bytes | None = None) -> Outcome | None:
    """What Bob answers; None: nothing."""
    try:
        locked, tunnel = await world.network.carry(*ENTRY, data or sealed(request))
    except Unreachable:
        return None
    tunnel.reset()
    return unlock_answer(locked, request).outcome


# --- the good case -------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [4, 6])
async def test_a_connection_carries_bytes_both_ways(autojump_clock: MockClock, over: int) -> None:
    async with running_world() as world:
        stream = await world.connect(over=over)
        await stream.send_all(memoryview(b"hello"))
        assert await receive_exactly(stream, 5) == b"hello"
        assert (stream.bytes_in, stream.bytes_out) == (5, 5)


async def test_connecting_takes_one_round_trip(autojump_clock: MockClock) -> None:
    """When the caller has its connection, only the answer has come back from the callee."""
    async with running_world() as world:
        stream = await world.connect()
        (exchange,) = world.network.exchanges
        assert exchange.callee_tunnel is not None
        assert exchange.callee_tunnel.outgoing.carried == 0
        assert exchange.callee_tunnel.incoming.writes == 0
        assert world.directory.lookups == [False]
        await trio.sleep(2 * FLIGHT_WAIT)
        assert exchange.callee_tunnel.incoming.writes == 1, "the rest of the handshake follows"
        stream.abort()


@pytest.mark.parametrize(("length", "writes"), [(1, 1), (16_000, 1), (70_000, 2)])
async def test_the_rest_of_the_handshake_goes_with_the_first_bytes(
    autojump_clock: MockClock, length: int, writes: int
) -> None:
    """If there is room for both."""
    async with running_world() as world:
        stream = await world.connect()
        await stream.send_all(memoryview(bytes(length)))
        (exchange,) = world.network.exchanges
        assert exchange.callee_tunnel is not None
        assert exchange.callee_tunnel.incoming.writes == writes
        assert await receive_exactly(stream, length) == bytes(length)
        await trio.sleep(1)
        assert exchange.callee_tunnel.incoming.writes == writes
        stream.abort()


async def test_a_call_given_up_at_once_resets_the_service(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        (await world.connect()).abort()
        await trio.sleep(1)
        assert [connection.is_aborted for connection in world.bob.host.connections] == [True]
        assert not world.bob.service.sessions()
        assert not world.alice.service.sessions()


async def test_a_service_can_speak_first(autojump_clock: MockClock) -> None:
    async def banner(stream) -> None:
        await stream.send_all(memoryview(b"220 ready"))
        await stream.aclose()

    async with running_world() as world:
        world.bob.host.streams[80] = banner
        assert await receive_exactly(await world.connect(), 9) == b"220 ready"


async def test_requests_and_answers_have_one_size_whatever_happens(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        sizes = set()
        for port in (80, 81):
            world.bob.rules.expose("bob", "tcp", 1000 + port, target_port=port)
            for opener in (world.connect, world.connect_udp):
                with contextlib.suppress(WorldError):
                    (await opener(1000 + port, over=4 if port == 80 else 6)).abort()
        (await world.ping()).abort()
        for exchange in world.network.exchanges:
            assert exchange.answer is not None
            sizes.add((len(exchange.sealed_request), len(exchange.answer)))
        assert sizes == {(SEALED_REQUEST_LEN, ANSWER_LEN)}
        outcomes = {name for name in world.counts() if name.startswith("request_answered_")}
        assert len(outcomes) == 3, "connected, refused and filtered were all seen"


# --- outcomes ------------------------------------------------------------------------------------


async def is_released(world: World) -> bool:
    """Whether the only tunnel goes back for reuse at both ends."""
    await trio.sleep(1)
    (exchange,) = world.network.exchanges
    assert exchange.caller_tunnel is not None
    assert exchange.callee_tunnel is not None
    return exchange.caller_tunnel.is_released and exchange.callee_tunnel.is_released


async def test_a_closed_port_that_is_exposed_is_refused(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        del world.bob.host.streams[80]
        with pytest.raises(Refused):
            await world.connect()
        assert await is_released(world)
        assert world.counts()["request_answered_refused"] == 1


@pytest.mark.parametrize("port", [79, 53, 65_535])
async def test_a_port_that_is_not_exposed_is_filtered_and_not_touched(
    autojump_clock: MockClock, port: int
) -> None:
    async with running_world() as world:
        world.bob.host.streams[port] = world.bob.host.streams[80]
        with pytest.raises(Filtered) as filtered:
            await world.connect(port)
        assert not isinstance(filtered.value, NoAnswer), "it was told so"
        assert world.bob.host.calls == []
        assert await is_released(world)
        assert len(world.network.exchanges) == 1, "a clear answer is not asked for twice"


async def test_a_local_service_that_does_not_answer_is_filtered(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.bob.host.delay = 1000.0
        started = trio.current_time()
        with pytest.raises(Filtered):
            await world.connect()
        assert trio.current_time() - started == pytest.approx(LOCAL_WITHIN)


@pytest.mark.parametrize(
    ("failure", "expected"), [(Filtered("no"), Filtered), (Unreachable("no"), Unreachable)]
)
async def test_what_the_local_host_says_is_passed_on(
    autojump_clock: MockClock, failure: Filtered | Unreachable, expected: type[Exception]
) -> None:
    async with running_world() as world:
        world.bob.host.failure = failure
        with pytest.raises(expected):
            await world.connect()


async def test_an_unknown_address_is_unreachable(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.directory.records.clear()
        with pytest.raises(Unreachable):
            await world.connect()
        assert world.network.exchanges == []


async def test_a_source_that_is_not_ours_is_unreachable(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        _, target = ends(80)
        with pytest.raises(Unreachable, match="source"):
            await world.alice.service.open_stream(Endpoint(EVE.ap6, 1), target)


async def test_without_a_way_out_nothing_is_known(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.directory.failure = PathUnavailable("no exit path")
        with pytest.raises(PathUnavailable):
            await world.connect()


async def test_an_unsupported_epoch_is_refused_clearly(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        assert await submitted(world, crafted(world, epoch=1)) is Outcome.UNSUPPORTED
        assert world.bob.host.calls == []


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
        assert len(world.network.exchanges) - before <= 100 + 2 * MAX_EARLY


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


# --- who is at the other end ---------------------------------------------------------------------


async def test_a_callee_with_another_certificate_is_not_believed(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        record = dataclasses.replace(
            world.directory.records[BOB.ap6], certificate=EVE.certificate.der
        )
        world.directory.records[BOB.ap6] = record
        with pytest.raises(Unreachable):
            await world.connect()
        assert world.alice.service.statistics()["open_route_failed_CryptoError"] == ROUNDS
        await trio.sleep(60)
        assert world.bob.service.sessions() == []


async def test_a_new_certificate_is_found_by_looking_again(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        good = world.directory.records[BOB.ap6]
        world.directory.records[BOB.ap6] = dataclasses.replace(good, certificate=b"old")
        world.directory.fresh_records[BOB.ap6] = good
        await world.connect()


async def test_an_outdated_request_key_gets_no_answer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        good = world.directory.records[BOB.ap6]
        stale = dataclasses.replace(good, request_key=SealingKey.generate().public)
        world.directory.records[BOB.ap6] = stale
        world.directory.fresh_records[BOB.ap6] = good
        await world.connect()
        assert world.counts()["request_dropped_CryptoError"] == 1


@pytest.mark.parametrize("position", [0, 100, 3000, ANSWER_LEN - 1])
async def test_an_altered_answer_is_no_answer(autojump_clock: MockClock, position: int) -> None:
    def alter(answer: bytes) -> bytes:
        return answer[:position] + bytes([answer[position] ^ 1]) + answer[position + 1 :]

    async with running_world() as world:
        world.way.alter_answer = alter
        with pytest.raises(Unreachable):
            await world.connect()
        await trio.sleep(60)
        assert world.bob.service.sessions() == []


@pytest.mark.parametrize(
    "position", [0, 1087, 1088, 1119, 1120, 1200, 2000, 4000, 4079, 4080, SEALED_REQUEST_LEN - 1]
)
async def test_an_altered_request_gets_no_answer(autojump_clock: MockClock, position: int) -> None:
    def alter(request: bytes) -> bytes:
        return request[:position] + bytes([request[position] ^ 1]) + request[position + 1 :]

    async with running_world() as world:
        world.way.alter_request = alter
        with pytest.raises(Unreachable):
            await world.connect()
        assert world.bob.host.calls == []
        assert world.counts()["request_dropped_CryptoError"] == ROUNDS


async def test_a_repeated_request_gets_no_answer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await world.connect()
        (exchange,) = world.network.exchanges
        with pytest.raises(Unreachable):
            await world.network.carry(*ENTRY, exchange.sealed_request)
        assert len(world.bob.host.calls) == 1
        assert world.counts()["request_dropped_ProtocolViolation"] == 1


async def test_a_request_that_was_refused_cant_be_repeated_either(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        request = crafted(world, port=79)
        data = sealed(request)
        assert await submitted(world, request, data) is Outcome.FILTERED
        world.bob.rules.expose("bob", "tcp", 79)
        assert await submitted(world, request, data) is None


@pytest.mark.parametrize(
    ("shift", "answered"),
    [
        (-CLOCK_TOLERANCE - TIME_STEP, False),
        (-CLOCK_TOLERANCE + TIME_STEP, True),
        (CLOCK_TOLERANCE, True),
        (CLOCK_TOLERANCE + 2 * TIME_STEP, False),
    ],
)
async def test_clocks_may_differ_only_so_much(
    autojump_clock: MockClock, shift: float, answered: bool
) -> None:
    async with running_world() as world:
        await trio.sleep(1000)
        world.alice.clock.shift = shift
        outcome = await submitted(world, crafted(world))
        assert outcome is (Outcome.CONNECTED if answered else None)


async def test_a_request_from_before_the_start_gets_no_answer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        old = request_time(START) - TIME_STEP
        assert await submitted(world, crafted(world, time=old)) is None
        assert world.counts()["request_dropped_ProtocolViolation"] == 1


@pytest.mark.parametrize("destination", [EVE.ap4, EVE.ap6, ALICE.ap6])
async def test_a_request_for_another_address_gets_no_answer(
    autojump_clock: MockClock,
    destination: ipaddress.IPv4Address,
) -> None:
    async with running_world() as world:
        assert await submitted(world, crafted(world, destination=destination)) is None


async def test_a_request_signed_for_another_identity_gets_no_answer(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        request = crafted(world)
        data = seal_request(
            request,
            ALICE.signing,
            EVE.signing.public,
            BOB.request_keys[0].public,
            NETWORK.network_id,
        )
        assert await submitted(world, request, data) is None


async def test_a_request_in_somebody_elses_name_gets_no_answer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        request = crafted(world)
        assert await submitted(world, request, sealed(request, EVE.signing)) is None


@pytest.mark.parametrize(
    "changes", [{"client_hello": b"no hello"}, {"certificate": b"no certificate"}]
)
async def test_a_request_with_useless_tls_touches_no_service(
    autojump_clock: MockClock, changes: dict[str, bytes]
) -> None:
    async with running_world() as world:
        assert await submitted(world, crafted(world, **changes)) is None
        assert world.bob.host.calls == []
        assert world.counts()["request_dropped_CryptoError"] == 1


async def test_a_request_for_an_identity_that_is_gone_gets_no_answer(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        world.way.identity = "nobody"
        assert await submitted(world, crafted(world)) is None


async def test_a_caller_with_another_certificate_than_in_its_request_is_cut_off(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        other = make_certificate("localhost", START)
        handshake = CallerHandshake(caller_context(other))
        request = crafted(world, client_hello=handshake.hello)
        _, tunnel = await world.network.carry(*ENTRY, sealed(request))
        await trio.sleep(HANDSHAKE_WITHIN + 1)
        assert tunnel.outgoing.broken
        (connection,) = world.bob.host.connections
        assert connection.is_aborted


async def test_a_caller_that_never_completes_tls_is_cut_off(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        _, tunnel = await world.network.carry(*ENTRY, sealed(crafted(world)))
        await trio.sleep(HANDSHAKE_WITHIN - 1)
        assert not tunnel.outgoing.broken
        await trio.sleep(10)
        assert tunnel.incoming.broken
        (connection,) = world.bob.host.connections
        assert connection.is_aborted
        assert world.bob.service.sessions() == []


# --- whom the service sees -----------------------------------------------------------------------


async def caller_seen(world: World, over: int) -> Endpoint:
    stream = await world.connect(over=over)
    stream.abort()
    await trio.sleep(10)
    return world.bob.host.calls[-1][0]


async def test_the_service_sees_the_callers_ap6(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        assert await caller_seen(world, 6) == Endpoint(ALICE.ap6, SOURCE_PORT)
        assert world.directory.askers == [], "an AP6 address needs no confirmation"


async def test_the_service_sees_the_callers_ap4_once_it_is_confirmed(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        assert await caller_seen(world, 4) == Endpoint(ALICE.ap4, SOURCE_PORT)
        assert world.directory.askers == ["bob"]


async def test_a_caller_without_a_port_gets_one(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        _, target = ends(80)
        await world.alice.service.open_stream(Endpoint(ALICE.ap6, 0), target)
        assert world.bob.host.calls[-1][0].port >= 1024


async def test_an_unconfirmed_caller_appears_as_a_nat_peer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.directory.leases.clear()
        seen = await caller_seen(world, 4)
        assert seen.address in NAT4
        assert seen.port == SOURCE_PORT
        assert await caller_seen(world, 4) == seen, "the same one as long as nobody needs it"


async def test_a_claim_on_somebody_elses_ap4_is_not_believed(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        assert EVE.ap4 is not None
        world.directory.leases[EVE.ap4] = EVE.signing.public
        request = crafted(world, destination=BOB.ap4, source_ap4=EVE.ap4)
        assert await submitted(world, request) is Outcome.CONNECTED
        assert world.bob.host.calls[-1][0].address in NAT4


async def test_waiting_for_a_confirmation_is_bounded_and_not_repeated(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        world.directory.confirm_delay = 100.0
        started = trio.current_time()
        (await world.connect(over=4)).abort()
        assert trio.current_time() - started == pytest.approx(CONFIRM_WITHIN)
        started = trio.current_time()
        (await world.connect(over=4)).abort()
        assert trio.current_time() == started
        world.directory.confirm_delay = 0.0
        await trio.sleep(UNCONFIRMED_FOR)
        assert (await caller_seen(world, 4)).address == ALICE.ap4


async def test_a_crowd_of_callers_has_only_so_many_questions_asked(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        world.directory.confirm_delay = 100.0
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(MAX_ASKING + 8):

                async def call(port: int = 2000 + number) -> None:
                    (await world.connect(over=4, source_port=port)).abort()

                nursery.start_soon(call)
        assert len(world.directory.askers) == MAX_ASKING
        assert trio.current_time() - started == pytest.approx(CONFIRM_WITHIN)


async def test_a_netdb_that_fails_confirms_nothing(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        request = crafted(world, destination=BOB.ap4)
        world.directory.failure = PathUnavailable("no path")
        assert await submitted(world, request) is Outcome.CONNECTED
        assert world.bob.host.calls[-1][0].address in NAT4


@pytest.mark.parametrize(("over", "block"), [(4, NAT4), (6, NAT6)])
async def test_an_ephemeral_caller_shows_nothing_of_itself(
    autojump_clock: MockClock, over: int, block: ipaddress.IPv4Network
) -> None:
    async with running_world(ephemeral=frozenset({"alice"})) as world:
        seen = []
        for _ in range(3):
            stream = await world.connect(over=over)
            await stream.send_all(memoryview(b"x"))
            assert await receive_exactly(stream, 1) == b"x"
            seen.append(world.bob.host.calls[-1][0])
        assert all(end.address in block for end in seen)
        assert len({end.address for end in seen}) == 3, "two connections have nothing in common"
        assert not world.bob.service._contexts._callee, "never needed again"
        assert SOURCE_PORT not in {end.port for end in seen}
        assert world.directory.askers == []


# --- who may -------------------------------------------------------------------------------------


async def test_a_rule_for_one_caller_lets_nobody_else_in(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.bob.rules.unexpose("bob", "tcp", 80)
        world.bob.rules.expose("bob", "tcp", 80, to=(str(EVE.ap6),))
        with pytest.raises(Filtered):
            await world.connect()
        assert world.bob.host.calls == []


@pytest.mark.parametrize("over", [4, 6])
@pytest.mark.parametrize("named", [4, 6])
async def test_a_rule_for_a_caller_lets_it_in_over_both_addresses(
    autojump_clock: MockClock, over: int, named: int
) -> None:
    async with running_world() as world:
        world.bob.rules.unexpose("bob", "tcp", 80)
        address = ALICE.ap4 if named == 4 else ALICE.ap6
        world.bob.rules.expose("bob", "tcp", 80, to=(str(EVE.ap6), str(address)))
        await world.connect(over=over)


async def test_an_unconfirmed_ap4_opens_no_door(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.directory.leases.clear()
        world.bob.rules.unexpose("bob", "tcp", 80)
        world.bob.rules.expose("bob", "tcp", 80, to=(str(ALICE.ap4),))
        with pytest.raises(Filtered):
            await world.connect()


async def test_an_ephemeral_caller_passes_no_rule_with_names(autojump_clock: MockClock) -> None:
    async with running_world(ephemeral=frozenset({"alice"})) as world:
        world.bob.rules.unexpose("bob", "tcp", 80)
        world.bob.rules.expose("bob", "tcp", 80, to=(str(ALICE.ap6),))
        with pytest.raises(Filtered):
            await world.connect()


async def test_another_target_port_is_connected_to(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.bob.rules.expose("bob", "tcp", 443, target_port=80)
        await world.connect(443)
        assert world.bob.host.calls[-1][1] == Endpoint(BOB.ap6, 80)


# --- listing, limits -----------------------------------------------------------------------------


async def test_connections_are_listed_at_both_ends_until_they_are_over(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        stream = await world.connect()
        await stream.send_all(memoryview(b"12345"))
        await receive_exactly(stream, 5)
        await trio.sleep(7)
        (mine,) = world.alice.service.sessions()
        (theirs,) = world.bob.service.sessions()
        assert (mine.identity, mine.direction, mine.protocol) == ("alice", "out", "tcp")
        assert mine.remote == Endpoint(BOB.ap6, 80)
        assert mine.port == SOURCE_PORT
        assert (mine.bytes_in, mine.bytes_out) == (5, 5)
        assert (theirs.identity, theirs.direction) == ("bob", "in")
        assert theirs.remote == Endpoint(ALICE.ap6, SOURCE_PORT)
        assert theirs.port == 80
        assert mine.age == pytest.approx(7)
        stream.abort()
        await trio.sleep(10)
        assert world.alice.service.sessions() == []
        assert world.bob.service.sessions() == []


async def test_a_connection_can_be_closed_by_its_number(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        stream = await world.connect()
        await trio.sleep(1)
        (session,) = world.bob.service.sessions()
        world.bob.service.close(session.number)
        with pytest.raises(StreamReset):
            await stream.receive()
        with pytest.raises(UsageError, match="no connection"):
            world.bob.service.close(session.number + 1)


async def test_the_number_of_connections_is_bounded(autojump_clock: MockClock) -> None:
    async with running_world(max_sessions=2) as world:
        for number in range(2):
            await world.connect(source_port=SOURCE_PORT + number)
        await trio.sleep(1)
        with pytest.raises(CapacityExceeded):
            await world.connect()
        assert len(world.bob.service.sessions()) == 2


async def test_a_full_callee_says_nothing(autojump_clock: MockClock) -> None:
    async with running_world(max_sessions_per_caller=1) as world:
        await world.connect()
        await trio.sleep(1)
        assert await submitted(world, crafted(world)) is None
        other = crafted(
            world,
            caller=EVE.signing.public,
            certificate=EVE.certificate.der,
            client_hello=CallerHandshake(caller_context(EVE.certificate)).hello,
        )
        assert await submitted(world, other, sealed(other, EVE.signing)) is Outcome.CONNECTED
        assert world.counts()["request_dropped_CapacityExceeded"] == 1


async def test_requests_that_are_being_decided_are_bounded(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_serving, "MAX_PENDING", 1)
    async with running_world() as world:
        world.bob.host.delay = 2.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.connect)
            await trio.sleep(1)
            assert await submitted(world, crafted(world)) is None
        world.bob.host.delay = 0.0
        other = crafted(world, source_port=SOURCE_PORT + 1)
        assert await submitted(world, other) is Outcome.CONNECTED


async def test_a_service_that_does_not_run_answers_nothing(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        async with running_world() as running:
            request = sealed(crafted(running))
            handle = running.bob.service.handle_request
        answered = []

        async def accept(answer: bytes) -> FakeTunnel:
            answered.append(answer)
            raise StreamReset("never")

        await handle("bob", request, accept)
        assert answered == []
        nursery.cancel_scope.cancel()


async def test_a_tunnel_that_dies_before_the_answer_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:

        async def accept(answer: bytes) -> FakeTunnel:
            raise StreamReset("the tunnel ended")

        for port in (80, 79):
            await world.bob.service.handle_request("bob", sealed(crafted(world, port=port)), accept)
        (connection,) = world.bob.host.connections
        assert connection.is_aborted
        assert world.counts()["session_failed_StreamReset"] == 2


async def test_stopping_the_services_resets_what_there_is(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await world.connect()
        await world.connect_udp()
        await trio.sleep(1)
    for exchange in world.network.exchanges:
        for tunnel in (exchange.caller_tunnel, exchange.callee_tunnel):
            assert tunnel is not None
            assert tunnel.is_reset


async def test_a_stopped_interface_of_the_callee_ends_its_connections(
    autojump_clock: MockClock,
) -> None:
    """Only the callee's service stops; what carries the request goes on."""
    async with running_world() as world, trio.open_nursery() as nursery:
        other = World(world.nursery, SETTINGS)
        other.bob.rules.expose("bob", "tcp", 80)
        other.bob.host.streams[80] = world.bob.host.streams[80]
        await world.nursery.start(other.alice.service.run, other.alice.host)
        await nursery.start(other.bob.service.run, other.bob.host)
        await trio.sleep(100)
        stream = await other.connect()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), pytest.raises(StreamReset):
            await stream.receive()
