"""Kept sessions: which connections share one, what ends it, and what becomes of a connection whose
session is gone."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

import pytest
import trio
from session_world import (
    ALICE,
    BOB,
    NETWORK,
    SOURCE_PORT,
    START,
    World,
    echo,
    ends,
    receive_all,
    receive_exactly,
    running_world,
)
from trio.testing import MockClock

from phantom_tun.errors import Filtered, NoAnswer, Refused, StreamReset, Unreachable
from phantom_tun.net.sessions import serving
from phantom_tun.net.sessions.ending import finish
from phantom_tun.net.sessions.kept import (
    KEPT_AT_MOST,
    KEPT_FOR,
    MAX_KEPT,
    MAX_KEPT_OF_ONE,
    SWEEP_EVERY,
)
from phantom_tun.net.sessions.resuming import WAIT_AFTER_END
from phantom_tun.net.sessions.serving import KEEP_WITHIN, NEXT_BURST
from phantom_tun.net.sessions.stream import SessionStream
from phantom_tun.testing.fake_host import FakeIdentities, FakeIdentity
from phantom_tun.testing.fake_tunnel import Exchange, FakeTunnel, FakeWayOut, Lane
from phantom_tun.tunnel.replay import ReplayCache
from phantom_tun.tunnel.request import request_time
from phantom_tun.wire.session import FRAME_HEADER_LEN, MAX_EARLY, OPENING_LEN, FrameKind, Opening

PARTIES = ALICE.signing.public, ALICE.ap4, BOB.signing.public


async def call(
    world: World, first: bytes = b"", port: int = 80, *, source: int = SOURCE_PORT, over: int = 6
) -> SessionStream:
    mine, theirs = ends(port, over)
    return await world.alice.service.open_stream(
        dataclasses.replace(mine, port=source), theirs, first
    )


async def end(stream: SessionStream) -> bytes:
    """Half-close and take what comes until the other side has, too."""
    await stream.send_end()
    rest = await receive_all(stream)
    await stream.aclose()
    await trio.sleep(0.1)
    return rest


async def talk(world: World, text: bytes = b"hello", **how: int) -> None:
    """A whole connection."""
    assert await end(await call(world, text, **how)) == text


async def acquainted(world: World) -> Exchange:
    """Two connections within a moment: the second one's session is kept."""
    await talk(world)
    await talk(world)
    world.network.exchanges[:-1] = []
    assert waiting(world) == 1
    return world.network.exchanges[0]


def waiting(world: World) -> int:
    return len(world.alice.service._opener._kept)


def further(world: World) -> int:
    return world.alice.service.statistics().get("open_kept", 0)


def tunnels(exchange: Exchange) -> tuple[FakeTunnel, FakeTunnel]:
    assert exchange.caller_tunnel is not None
    assert exchange.callee_tunnel is not None
    return exchange.caller_tunnel, exchange.callee_tunnel


# --- the good case -----------------------------------------------------------------------------


async def test_a_single_connection_ends_with_its_tunnel(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        await talk(world)
        assert waiting(world) == 0
        assert all(tunnel.is_released for tunnel in tunnels(world.network.exchanges[0]))


async def test_who_calls_again_shortly_after_goes_on_in_one_session(
    autojump_clock: MockClock,
) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        for number in range(20):
            await talk(world, b"%d" % number, source=2000 + number)
        assert len(world.network.exchanges) == 1
        assert further(world) == 20
        assert world.counts()["further_answered_connected"] == 20
        callers = [caller.port for caller, _ in world.bob.host.calls[2:]]
        assert callers == [2000 + number for number in range(20)], "the service sees who calls"
        assert {caller.address for caller, _ in world.bob.host.calls} == {ALICE.ap6}
        assert world.alice.service.sessions() == world.bob.service.sessions() == []


async def test_a_further_connection_takes_a_message_each_way(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        mine, theirs = tunnels(await acquainted(world))
        writes = mine.outgoing.writes, theirs.outgoing.writes
        stream = await call(world, b"first")
        assert await receive_exactly(stream, 5) == b"first"
        assert (mine.outgoing.writes, theirs.outgoing.writes) == (writes[0] + 1, writes[1] + 1)
        assert (stream.bytes_in, stream.bytes_out) == (5, 5)
        stream.abort()


@pytest.mark.parametrize("length", [0, 1, MAX_EARLY])
async def test_what_is_asked_for_shows_in_no_length(autojump_clock: MockClock, length: int) -> None:
    async with running_world(keep=True) as world:
        mine, _ = tunnels(await acquainted(world))
        carried = mine.outgoing.carried
        stream = await call(world, bytes(length))
        assert mine.outgoing.carried - carried == OPENING_LEN + FRAME_HEADER_LEN + 22
        assert await end(stream) == bytes(length)


async def test_it_carries_much_in_both_directions_each_time(autojump_clock: MockClock) -> None:
    data = bytes(range(256)) * 4_000
    async with running_world(keep=True) as world:
        await acquainted(world)
        for _ in range(3):
            stream = await call(world, data[:MAX_EARLY])
            async with trio.open_nursery() as nursery:

                async def send(stream: SessionStream = stream) -> None:
                    await stream.send_all(memoryview(data[MAX_EARLY:]))
                    await stream.send_end()

                nursery.start_soon(send)
                assert await receive_all(stream) == data
            await stream.aclose()
            await trio.sleep(0.1)
        assert further(world) == 3


async def test_a_service_may_speak_first_or_end_first(autojump_clock: MockClock) -> None:
    async def daytime(stream: SessionStream) -> None:
        await stream.send_all(memoryview(b"noon"))
        await stream.send_end()
        await receive_all(stream)
        await stream.aclose()

    async with running_world(keep=True) as world:
        world.bob.host.streams[80] = daytime
        for _ in range(5):
            stream = await call(world)
            assert await receive_all(stream) == b"noon"
            assert await end(stream) == b""
        assert further(world) == 3


async def test_every_port_and_both_addresses_of_a_callee_share_it(
    autojump_clock: MockClock,
) -> None:
    async with running_world(keep=True) as world:
        world.bob.rules.expose("bob", "tcp", 81, target_port=8081)
        world.bob.host.streams[8081] = echo
        await acquainted(world)
        await talk(world, port=81)
        await talk(world, over=4)
        assert further(world) == 2
        (_, at_port), (caller, at_ap4) = world.bob.host.calls[2:]
        assert (at_port.address, at_port.port) == (BOB.ap6, 8081)
        assert (caller.address, at_ap4.address) == (ALICE.ap4, BOB.ap4)


async def test_connections_at_the_same_time_have_sessions_of_their_own(
    autojump_clock: MockClock,
) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        streams = [await call(world, b"%d" % n, source=3000 + n) for n in range(5)]
        assert [await end(stream) for stream in streams] == [b"%d" % n for n in range(5)]
        assert (len(world.network.exchanges), further(world)) == (5, 1)
        streams = [await call(world, b"%d" % n, source=3000 + n) for n in range(5)]
        assert [await end(stream) for stream in streams] == [b"%d" % n for n in range(5)]
        assert (len(world.network.exchanges), further(world)) == (5, 6)


async def test_tickets_are_renewed_in_it(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        held = world.alice.service._opener._tickets
        before = held.get(ALICE.signing.public, BOB.signing.public)
        for _ in range(18):
            await trio.sleep(KEPT_FOR - 2)
            await talk(world)
        after = held.get(ALICE.signing.public, BOB.signing.public)
        assert len(world.network.exchanges) == 1
        assert after is not None
        assert after != before


# --- who doesn't ---------------------------------------------------------------------------------


async def test_an_ephemeral_callers_connections_have_nothing_in_common(
    autojump_clock: MockClock,
) -> None:
    async with running_world(keep=True, ephemeral=frozenset({"alice"})) as world:
        for _ in range(4):
            await talk(world)
        assert (len(world.network.exchanges), waiting(world)) == (4, 0)


@pytest.mark.parametrize("first", [b"", b"first"])
async def test_a_caller_with_a_new_ap4_shows_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    """It has to be asked about, and the request of a session kept from before doesn't name it."""
    async with running_world(keep=True) as world:
        world.bob.rules.expose("bob", "tcp", 81, to=[str(ALICE.ap4)], target_port=80)
        with monkeypatch.context() as before:
            before.setattr(ALICE, "ap4", None)
            await acquainted(world)
        await talk(world, first, port=81)
        assert (len(world.network.exchanges), further(world)) == (2, 0)


async def test_it_can_be_switched_off(autojump_clock: MockClock) -> None:
    async with running_world(keep=False) as world:
        for _ in range(4):
            await talk(world)
        assert (len(world.network.exchanges), waiting(world)) == (4, 0)


async def test_datagrams_have_tunnels_of_their_own(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        flow = await world.connect_udp()
        await flow.send(b"question")
        assert await flow.receive() == b"question"
        await flow.aclose()
        assert (waiting(world), len(world.network.exchanges)) == (1, 2)


async def test_a_path_that_is_to_end_takes_no_further_connections(
    autojump_clock: MockClock,
) -> None:
    async with running_world(keep=True) as world:
        exchange = await acquainted(world)
        world.network.exits[0].ended = True
        world.network.exits.append(FakeWayOut(world.network, 9))
        del world.network.exits[0]
        await talk(world)
        assert further(world) == 0
        await trio.sleep(1)
        assert all(tunnel.is_released for tunnel in tunnels(exchange))


# --- its end -------------------------------------------------------------------------------------


async def test_it_ends_when_nobody_calls_any_more(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        exchange = await acquainted(world)
        await trio.sleep(KEPT_FOR - 1)
        assert waiting(world) == 1
        await trio.sleep(1 + SWEEP_EVERY + 1)
        assert waiting(world) == 0
        assert "session_failed_StreamReset" not in world.counts()
        assert all(tunnel.is_released for tunnel in tunnels(exchange)), "its links serve again"
        assert not world.alice.service._opener._kept._is_swept


async def test_it_ends_after_a_while_in_any_case(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        while trio.current_time() < 100 + KEPT_AT_MOST + 60:
            await talk(world)
            await trio.sleep(KEPT_FOR - 1)
        assert len(world.network.exchanges) == 2


async def test_a_reset_ends_it(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        exchange = await acquainted(world)
        stream = await call(world, b"first")
        stream.abort()
        await trio.sleep(1)
        assert waiting(world) == 0
        assert world.bob.host.connections[-1].is_over
        assert all(tunnel.is_released for tunnel in tunnels(exchange))
        await talk(world)
        assert len(world.network.exchanges) == 2


async def test_a_reset_by_the_service_ends_it(autojump_clock: MockClock) -> None:
    async def rude(stream: SessionStream) -> None:
        await stream.receive()
        stream.abort()

    async with running_world(keep=True) as world:
        await acquainted(world)
        world.bob.host.streams[80] = rude
        stream = await call(world, b"first")
        with pytest.raises(StreamReset):
            await stream.receive()
        stream.abort()
        world.bob.host.streams[80] = echo
        await talk(world)
        assert waiting(world) == 1


@pytest.mark.parametrize(("survive", "within"), [(False, 1.2), (True, WAIT_AFTER_END + 1.2)])
async def test_a_reset_after_the_end_is_told_soon(
    autojump_clock: MockClock, survive: bool, within: float
) -> None:
    failed_after: list[float] = []

    async def go_on(stream: SessionStream) -> None:
        await receive_all(stream)
        began = trio.current_time()
        with pytest.raises(StreamReset):
            while True:
                await stream.send_all(memoryview(b"more"))
                await trio.sleep(0.1)
        failed_after.append(trio.current_time() - began)
        stream.abort()

    async with running_world(keep=True, survive=survive) as world:
        await acquainted(world)
        world.bob.host.streams[80] = go_on
        stream = await call(world)
        await stream.send_end()
        await trio.sleep(1)
        stream.abort()
        await trio.sleep(within)
        assert failed_after
        assert failed_after[0] < within


async def test_when_the_node_stops_nothing_is_left(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        exchange = await acquainted(world)
    assert all(tunnel.is_reset or tunnel.is_released for tunnel in tunnels(exchange))
    assert waiting(world) == 0


async def test_what_ends_after_the_node_is_not_kept(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        exchange = await acquainted(world)
        stream = await call(world, b"last")
        await stream.send_end()
        assert await receive_all(stream) == b"last"
        await trio.sleep(2 * SWEEP_EVERY)
        world.alice.service._nursery = None
        await stream.aclose()
        assert waiting(world) == 0
        assert tunnels(exchange)[0].is_reset


# --- no for an answer ----------------------------------------------------------------------------


async def test_a_refusal_leaves_it_as_it_is(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        del world.bob.host.streams[80]
        for _ in range(3):
            with pytest.raises(Refused):
                await call(world, b"first")
        world.bob.host.failure = Unreachable("the machine is on fire")
        with pytest.raises(Unreachable):
            await call(world)
        world.bob.host.failure = None
        world.bob.host.streams[80] = echo
        await talk(world)
        assert (len(world.network.exchanges), further(world)) == (1, 1)
        assert world.counts()["further_answered_refused"] == 3


async def test_a_session_that_waits_holds_no_buffer(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        del world.bob.host.streams[80]
        with pytest.raises(Refused):
            await call(world, b"first")
        [kept] = world.alice.service._opener._kept._waiting[PARTIES]
        reader = kept.secure._reader
        assert (reader._plain, reader._sealed) == (None, None)


async def test_a_rule_that_is_gone_holds_for_it_too(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        calls = len(world.bob.host.calls)
        world.bob.rules.unexpose("bob", "tcp", 80)
        with pytest.raises(Filtered):
            await call(world, b"first")
        assert len(world.bob.host.calls) == calls, "the service was touched"
        world.bob.rules.expose("bob", "tcp", 80, to=[str(BOB.ap6)])
        with pytest.raises(Filtered):
            await call(world, b"first")
        world.bob.rules.unexpose("bob", "tcp", 80)
        world.bob.rules.expose("bob", "tcp", 80, to=[str(ALICE.ap6)])
        await talk(world)
        assert further(world) == 1


async def test_an_identity_that_is_gone_takes_no_further_calls(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        server = world.bob.service._server
        assert server is not None
        new = FakeIdentity.make("bob", NETWORK, START)
        server._admission._identities = FakeIdentities(new)
        calls = len(world.bob.host.calls)
        with pytest.raises((Unreachable, NoAnswer)):
            await call(world, b"first")
        assert len(world.bob.host.calls) == calls
        assert world.counts()["further_dropped_ProtocolViolation"] == 1


# --- when it is gone -----------------------------------------------------------------------------


def cut(world: World, exchange: Exchange) -> None:
    for tunnel in tunnels(exchange):
        tunnel.reset()


def lose(world: World, exchange: Exchange) -> None:
    """What the caller sends goes nowhere."""
    tunnels(exchange)[0].outgoing.is_lossy = True


def lose_answers(world: World, exchange: Exchange) -> None:
    tunnels(exchange)[1].outgoing.is_lossy = True


@pytest.mark.parametrize("harm", [cut, lose])
async def test_a_session_that_died_costs_no_connection(
    autojump_clock: MockClock, harm: Callable[[World, Exchange], None]
) -> None:
    async with running_world(keep=True) as world:
        exchange = await acquainted(world)
        harm(world, exchange)
        calls = len(world.bob.host.calls)
        began = trio.current_time()
        await talk(world)
        assert trio.current_time() - began < 3
        assert len(world.bob.host.calls) == calls + 1
        assert (len(world.network.exchanges), further(world)) == (2, 0)


@pytest.mark.parametrize("first", [b"", b"first"])
async def test_what_was_silent_is_followed_by_another_way_out(
    autojump_clock: MockClock, first: bytes
) -> None:
    for _ in range(8):
        async with running_world(keep=True) as world:
            exchange = await acquainted(world)
            world.network.exits[0].is_dead = True
            world.network.exits.append(FakeWayOut(world.network, 9))
            lose(world, exchange)
            began = trio.current_time()
            await talk(world, first)
            assert trio.current_time() - began < 2


async def test_those_that_go_the_same_way_are_given_up_with_it(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        for stream in [await call(world, source=3000 + n) for n in range(5)]:
            await end(stream)
        assert waiting(world) == 5
        for exchange in world.network.exchanges:
            lose(world, exchange)
        await talk(world)
        assert waiting(world) == 1


@pytest.mark.parametrize("first", [b"", b"first"])
async def test_first_bytes_are_heard_once_if_the_answer_is_lost(
    autojump_clock: MockClock, first: bytes
) -> None:
    """Another attempt may not bring them again; a call without any can be made again."""
    heard: list[bytes] = []

    async def listen(stream: SessionStream) -> None:
        while data := bytes(await stream.receive()):
            heard.append(data)
        await stream.send_end()
        await stream.aclose()

    async with running_world(keep=True) as world:
        exchange = await acquainted(world)
        world.bob.host.streams[80] = listen
        lose_answers(world, exchange)
        world.way.delay = 0.1
        if first:
            with pytest.raises((Filtered, NoAnswer)):
                await call(world, first)
            assert heard == [first]
        else:
            stream = await call(world)
            await stream.send_all(memoryview(b"later"))
            await end(stream)
            assert heard == [b"later"]


@pytest.mark.parametrize("knows_ticket", [True, False])
async def test_first_bytes_are_heard_once_if_they_come_late(
    autojump_clock: MockClock, knows_ticket: bool
) -> None:
    """Somebody on the way holds them back until the connection that was made instead is over."""
    heard: list[bytes] = []

    async def listen(stream: SessionStream) -> None:
        heard.append(await receive_all(stream))
        await stream.send_end()
        await stream.aclose()

    async def nothing() -> None: ...

    async with running_world(keep=True) as world:
        mine, _ = tunnels(await acquainted(world))
        world.bob.host.streams[80] = listen
        server = world.bob.service._server
        assert server is not None
        if not knows_ticket:
            server._tickets._all.clear()
        lane, mine.outgoing = mine.outgoing, Lane()
        mine.reset, mine.send_fin = lambda: None, nothing  # type: ignore[method-assign]
        assert await end(await call(world, b"pay")) == b""
        assert heard == [b"pay"]
        lane.put(bytes(mine.outgoing.waiting))
        await trio.sleep(5)
        assert heard == [b"pay"]
        assert world.counts()["further_answered_filtered"] == 1


async def test_the_callee_may_end_it_while_a_connection_is_asked_for(
    autojump_clock: MockClock,
) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        kept = next(iter(world.alice.service._opener._kept._waiting.values()))[0]
        await trio.sleep(KEPT_FOR - 1)
        kept.since += KEEP_WITHIN  # a clock that is slow
        await trio.sleep(KEEP_WITHIN - KEPT_FOR + 2)
        await talk(world)
        assert (len(world.network.exchanges), further(world)) == (2, 0)
        assert all(tunnel.is_released for tunnel in tunnels(world.network.exchanges[0]))


@pytest.mark.parametrize("first", [b"", b"first"])
async def test_a_service_that_is_slow_to_accept_costs_no_connection(
    autojump_clock: MockClock, first: bytes
) -> None:
    """Another attempt is made meanwhile, and counts if the first was given up."""
    async with running_world(keep=True) as world:
        await acquainted(world)
        world.bob.host.delay = 4.5
        began = trio.current_time()
        await talk(world, first)
        assert trio.current_time() - began < 5
        assert len(world.network.exchanges) == 2
        await trio.sleep(10)
        assert world.bob.service.sessions() == []


# --- bounds --------------------------------------------------------------------------------------


async def test_a_caller_keeps_so_many(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        count = MAX_KEPT_OF_ONE + 10
        streams = [await call(world, source=3000 + n) for n in range(count)]
        for stream in streams:
            await end(stream)
        assert waiting(world) == MAX_KEPT_OF_ONE < MAX_KEPT
        await trio.sleep(1)
        released = [exchange for exchange in world.network.exchanges if exchange.caller_tunnel
                    and exchange.caller_tunnel.is_released]  # fmt: skip
        assert len(released) == count - MAX_KEPT_OF_ONE


async def test_a_callee_lets_so_many_wait(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MAX_IDLE_OF_ONE", 2)
    async with running_world(keep=True) as world:
        await acquainted(world)
        for stream in [await call(world, source=3000 + n) for n in range(4)]:
            await end(stream)
        assert world.counts()["sessions_not_kept"] == 2
        for number in range(4):
            await talk(world, b"%d" % number, source=4000 + number)
        await trio.sleep(KEPT_FOR + 2)
        for exchange in world.network.exchanges:
            assert all(tunnel.is_released for tunnel in tunnels(exchange))


async def test_first_bytes_that_can_not_be_remembered_touch_no_service(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        server = world.bob.service._server
        assert server is not None
        monkeypatch.setitem(server._admission._seen_calls, "bob", ReplayCache(0))
        calls = len(world.bob.host.calls)
        await talk(world, b"first")
        assert len(world.bob.host.calls) == calls + 1
        assert world.counts()["further_dropped_CapacityExceeded"] == 1


async def test_what_a_callee_has_no_room_for_costs_no_other(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MAX_IDLE_OF_ONE", 2)
    async with running_world(keep=True) as world:
        await acquainted(world)
        for stream in [await call(world, source=3000 + n) for n in range(5)]:
            await end(stream)
        assert (len(world.network.exchanges), waiting(world)) == (5, 5)
        await talk(world, b"again")
        assert (len(world.network.exchanges), waiting(world)) == (5, 2)


async def test_a_caller_that_hurries_waits(autojump_clock: MockClock) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        world.bob.host.streams.clear()
        began = trio.current_time()
        for _ in range(int(NEXT_BURST) + 20):
            with pytest.raises(Refused):
                await call(world, b"knock")
        assert trio.current_time() - began >= 20 / serving.NEXT_RATE
        assert len(world.network.exchanges) == 1


async def test_a_caller_that_takes_no_answers_is_let_go(autojump_clock: MockClock) -> None:
    """Nothing counts a session that waits to answer."""
    async with running_world(keep=True) as world:
        world.network.prepare = lambda mine: setattr(mine.incoming, "capacity", 3000)
        exchange = await acquainted(world)
        kept = world.alice.service._opener._kept.take(PARTIES)
        assert kept is not None
        world.bob.host.streams.clear()
        for number in range(150):
            time = request_time(world.alice.clock.now())
            opening = Opening(number.to_bytes(16, "big"), time, BOB.ap6, 80, 1 + number)
            with trio.move_on_after(1):
                await kept.secure.send(FrameKind.OPEN, memoryview(opening.pack()))
        await trio.sleep(10)
        _, theirs = tunnels(exchange)
        assert theirs.is_reset
        assert 50 < world.counts()["further_answered_refused"] < 150


# --- peers that break the rules ------------------------------------------------------------------

Rude = Callable[[SessionStream], Awaitable[None]]


async def say(stream: SessionStream, kind: FrameKind, data: bytes = b"") -> None:
    await stream._secure.send(kind, memoryview(data))


async def open_twice(stream: SessionStream) -> None:
    await say(stream, FrameKind.OPEN, Opening(b"i" * 16, 0, BOB.ap6, 80, 1).pack())


async def answer_itself(stream: SessionStream) -> None:
    await say(stream, FrameKind.OPENED, b"\0")


@pytest.mark.parametrize("rude", [open_twice, answer_itself])
async def test_within_a_connection_none_can_be_opened(
    autojump_clock: MockClock, rude: Rude
) -> None:
    async with running_world(keep=True) as world:
        await acquainted(world)
        stream = await call(world, b"first")
        assert await receive_exactly(stream, 5) == b"first"
        await rude(stream)
        with pytest.raises(StreamReset):
            await stream.receive()
        await trio.sleep(1)
        assert world.bob.host.connections[-1].is_over
        assert world.bob.service.sessions() == []


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (FrameKind.DATA, b"bytes of no connection"),
        (FrameKind.END, b""),
        (FrameKind.OPENED, b"\0"),
        (FrameKind.OPEN, Opening(b"i" * 16, 0, BOB.ap6, 80, 1).pack()),
        (FrameKind.OPEN, Opening(b"i" * 16, 0, ALICE.ap6, 80, 1).pack()),
    ],
    ids=["data", "end", "opened", "old", "elsewhere"],
)
async def test_between_connections_only_an_acceptable_opening_counts(
    autojump_clock: MockClock, kind: FrameKind, data: bytes
) -> None:
    async with running_world(keep=True) as world:
        exchange = await acquainted(world)
        calls = len(world.bob.host.calls)
        kept = world.alice.service._opener._kept.take(PARTIES)
        assert kept is not None
        await kept.secure.send(kind, memoryview(data))
        await trio.sleep(1)
        assert len(world.bob.host.calls) == calls
        _, theirs = tunnels(exchange)
        assert theirs.is_reset or theirs.outgoing.fin
        drops = {"session_failed_StreamReset", "further_dropped_ProtocolViolation"}
        assert sum(world.counts().get(name, 0) for name in drops) == 1
        finish(kept.secure, FrameKind.RESET)
        await talk(world)
