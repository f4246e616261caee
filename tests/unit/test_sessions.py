"""Connecting and being connected to: outcomes, what is listed, limits."""

from __future__ import annotations

import contextlib

import pytest
import trio
from session_world import (
    ALICE,
    BOB,
    EVE,
    NAT4,
    NAT6,
    SOURCE_PORT,
    World,
    crafted,
    ends,
    receive_exactly,
    running_world,
    sealed,
    submitted,
)
from trio.testing import MockClock

from phantom_tun.crypto.certificates import caller_context
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
from phantom_tun.net.sessions import admission
from phantom_tun.net.sessions.handshake import FLIGHT_WAIT
from phantom_tun.net.sessions.local_services import LOCAL_WITHIN
from phantom_tun.net.sessions.service import SessionSettings
from phantom_tun.testing.fake_tunnel import FakeTunnel
from phantom_tun.tunnel.channel import CallerHandshake
from phantom_tun.wire.session import RESUMPTION_LEN, Outcome
from phantom_tun.wire.sizes import ANSWER_LEN, SEALED_REQUEST_LEN

SETTINGS = SessionSettings(nat4=NAT4, nat6=NAT6)


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


async def test_a_session_that_there_never_was_is_gone(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        resumed = crafted(world, epoch=1, resumes=True, early=bytes(RESUMPTION_LEN))
        assert await submitted(world, resumed) is Outcome.GONE
        assert world.bob.host.calls == []


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
    monkeypatch.setattr(admission, "MAX_PENDING", 1)
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

        async def accept(answer: bytes, *, hold: bool = False) -> FakeTunnel:
            answered.append(answer)
            raise StreamReset("never")

        await handle("bob", request, accept)
        assert answered == []
        nursery.cancel_scope.cancel()


async def test_a_tunnel_that_dies_before_the_answer_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:

        async def accept(answer: bytes, *, hold: bool = False) -> FakeTunnel:
            raise StreamReset("the tunnel ended")

        for port in (80, 79):
            await world.bob.service.handle_request("bob", sealed(crafted(world, port=port)), accept)
        (connection,) = world.bob.host.connections
        assert connection.is_aborted
        assert world.counts()["session_failed_StreamReset"] == 2


async def test_stopping_the_services_ends_what_there_is(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await world.connect()
        await world.connect_udp()
        await trio.sleep(1)
    for exchange in world.network.exchanges:
        for tunnel in (exchange.caller_tunnel, exchange.callee_tunnel):
            assert tunnel is not None
            assert tunnel.is_reset or tunnel.is_released


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
