"""Datagram flows and pings: kept boundaries, bounded queues, ends."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio
from session_world import World, echo_datagrams, running_world
from trio.testing import MockClock

from phantom_tun.endpoints import DatagramStream
from phantom_tun.errors import Filtered, Refused, StreamReset, UsageError
from phantom_tun.net.sessions.datagrams import MAX_QUEUED, SHARES, SessionDatagrams
from phantom_tun.net.sessions.local_services import ECHO_IDLE
from phantom_tun.net.sessions.offers import ONE_CALL
from phantom_tun.net.sessions.secure_tunnel import FRAMES_AT_ONCE
from phantom_tun.testing.fake_tunnel import FakeTunnel
from phantom_tun.tunnel.channel import RECORD
from phantom_tun.wire.session import MAX_DATAGRAM, FrameKind


async def received(flow: DatagramStream) -> bytes:
    with trio.fail_after(10):
        message = await flow.receive()
    assert message is not None
    return message


def tunnels(world: World) -> tuple[FakeTunnel, FakeTunnel]:
    (exchange,) = world.network.exchanges
    assert exchange.caller_tunnel is not None
    assert exchange.callee_tunnel is not None
    return exchange.caller_tunnel, exchange.callee_tunnel


async def wait_gone(world: World) -> None:
    with trio.fail_after(30):
        while world.alice.service.sessions() or world.bob.service.sessions():
            await trio.sleep(0.1)


@pytest.mark.parametrize("over", [4, 6])
async def test_messages_keep_their_boundaries(autojump_clock: MockClock, over: int) -> None:
    rng = random.Random(4)
    lengths = [0, 1, 1200, RECORD - 5, RECORD - 4, RECORD - 3, 60_000, MAX_DATAGRAM]
    async with running_world() as world:
        flow = await world.connect_udp(over=over)
        for length in lengths * 3:
            message = rng.randbytes(length)
            await flow.send(memoryview(message))
            assert await received(flow) == message
        assert flow.bytes_in == flow.bytes_out == 3 * sum(lengths)
        assert flow.dropped == 0


async def test_what_has_queued_up_goes_out_together(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        flow = await world.connect_udp()
        near, _ = tunnels(world)
        await trio.sleep(1)
        before = near.outgoing.writes
        messages = [bytes([n]) * 1200 for n in range(26)]
        for message in messages:
            await flow.send(message)
        assert [await received(flow) for _ in messages] == messages
        assert near.outgoing.writes - before == 2


async def test_a_flow_that_is_refused_or_filtered(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.bob.rules.expose("bob", "udp", 54)
        with pytest.raises(Refused):
            await world.connect_udp(54)
        with pytest.raises(Filtered):
            await world.connect_udp(80)
        assert [target.port for _, target in world.bob.host.calls] == [54]


async def silent(stream: DatagramStream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("length", [1, 1200, MAX_DATAGRAM])
async def test_a_slow_tunnel_loses_the_oldest_messages(
    autojump_clock: MockClock, length: int
) -> None:
    async with running_world() as world:
        world.bob.host.datagrams[53] = silent
        flow = await world.connect_udp()
        started = trio.current_time()
        count = 0
        while not flow.dropped:
            await flow.send(count.to_bytes(4, "big")[:length].ljust(length, b"\0"))
            count += 1
            if count % 50 == 0:
                await trio.sleep(0.001)
            assert len(flow._queue) <= MAX_QUEUED
            assert sum(map(len, flow._queue)) == flow._queued_bytes
            assert flow._queued_bytes <= max(SHARES.each, length)
        if length > 4:
            assert flow._queue[-1][:4] == (count - 1).to_bytes(4, "big"), "the newest is kept"
        assert trio.current_time() - started < 1, "sending never waits"


async def test_a_later_call_replaces_a_flow_that_only_its_caller_knows_to_be_dead(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        await world.connect_udp()
        await trio.sleep(ONE_CALL)
        with pytest.raises(Filtered):  # might be another attempt of the same call
            await world.connect_udp()
        await trio.sleep(ONE_CALL)
        again = await world.connect_udp()
        await again.send(b"still here")
        assert await received(again) == b"still here"
        old, new = world.bob.host.connections
        assert (old.is_aborted, new.is_aborted) == (True, False)
        # When the old one has been cleared away, the new one still has its place.
        world.alice.service.close(world.alice.service.sessions()[0].number)
        await trio.sleep(10)
        with pytest.raises(Filtered):
            await world.connect_udp()


async def test_the_other_end_sees_the_close(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        flow = await world.connect_udp()
        await flow.send(b"x")
        assert await received(flow) == b"x"
        await flow.aclose()
        await flow.aclose()
        with pytest.raises(StreamReset):
            await flow.send(b"late")
        await wait_gone(world)
        for side in (world.alice, world.bob):
            assert side.service._nursery is not None
            assert not side.service._nursery.child_tasks
        assert all(tunnel.is_released for tunnel in tunnels(world))


async def test_the_service_can_close(autojump_clock: MockClock) -> None:
    async def once(stream: DatagramStream) -> None:
        await stream.send(await stream.receive() or b"")
        await trio.sleep(0.1)
        await stream.aclose()

    async with running_world() as world:
        world.bob.host.datagrams[53] = once
        flow = await world.connect_udp()
        await flow.send(b"x")
        assert await received(flow) == b"x"
        assert await flow.receive() is None
        assert await flow.receive() is None
        await flow.aclose()
        await wait_gone(world)
        assert all(tunnel.is_released for tunnel in tunnels(world))


async def test_both_ends_can_close_at_once(autojump_clock: MockClock) -> None:
    async def stop(stream: DatagramStream) -> None:
        await trio.sleep(1)
        await stream.aclose()

    async with running_world() as world:
        world.bob.host.datagrams[53] = stop
        flow = await world.connect_udp()
        await trio.sleep(1)
        await flow.aclose()
        await wait_gone(world)
        assert all(tunnel.is_released for tunnel in tunnels(world))


async def test_a_tunnel_that_dies_ends_the_flow(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        flow = await world.connect_udp()
        near, _ = tunnels(world)
        near.reset()
        with pytest.raises(StreamReset):
            await flow.receive()
        await flow.send(b"not known yet")
        await trio.sleep(0.1)
        with pytest.raises(StreamReset):
            await flow.send(b"x")
        await flow.aclose()
        await wait_gone(world)


async def test_a_flipped_bit_ends_the_flow(autojump_clock: MockClock) -> None:
    def prepare(tunnel: FakeTunnel) -> None:
        tunnel.incoming.flip_at = 100

    async with running_world() as world:
        world.network.prepare = prepare
        flow = await world.connect_udp()
        await flow.send(bytes(500))
        with pytest.raises(StreamReset):
            await flow.receive()
        await flow.aclose()
        await wait_gone(world)


async def test_stream_data_among_datagrams_ends_the_flow(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        far: list[SessionDatagrams] = []

        async def service(stream: DatagramStream) -> None:
            assert isinstance(stream, SessionDatagrams)
            far.append(stream)
            await stream._secure.send(FrameKind.DATA, memoryview(b"odd"))
            await stream._secure.closed.wait()

        world.bob.host.datagrams[53] = service
        flow = await world.connect_udp()
        with pytest.raises(StreamReset, match="stream data"):
            await flow.receive()
        far[0].abort()
        await wait_gone(world)


async def test_a_message_that_is_too_long_is_our_own_mistake(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        flow = await world.connect_udp()
        with pytest.raises(UsageError):
            await flow.send(bytes(MAX_DATAGRAM + 1))
        await flow.send(b"still alive")
        assert await received(flow) == b"still alive"


# --- pings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [4, 6])
async def test_a_ping_comes_back_from_the_node_itself(autojump_clock: MockClock, over: int) -> None:
    async with running_world() as world:
        flow = await world.ping(over=over)
        for length in (4, 60, 65_000):
            await flow.send(bytes(length))
            assert await received(flow) == bytes(length)
        assert world.bob.host.calls == []
        assert world.directory.askers == [], "nobody is asked because of a ping"
        (session,) = world.bob.service.sessions()
        assert session.protocol == "echo"
        await flow.aclose()
        await wait_gone(world)
        assert all(tunnel.is_released for tunnel in tunnels(world))


async def test_pings_need_not_be_answered(autojump_clock: MockClock) -> None:
    async with running_world(answer_echo=False) as world:
        with pytest.raises(Filtered):
            await world.ping()


async def test_a_ping_that_stops_is_forgotten(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        flow = await world.ping()
        for _ in range(3):
            await trio.sleep(ECHO_IDLE - 1)
            await flow.send(b"1234")
            assert await received(flow) == b"1234"
        assert await flow.receive() is None
        await flow.aclose()
        await wait_gone(world)


async def test_two_flows_do_not_mix(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.bob.rules.expose("bob", "udp", 54)
        world.bob.host.datagrams[54] = echo_datagrams
        flows = [await world.connect_udp(53), await world.connect_udp(54), await world.ping()]
        for number, flow in enumerate(flows):
            await flow.send(bytes([number]) * 8)
        for number, flow in enumerate(flows):
            assert await received(flow) == bytes([number]) * 8


async def test_thousands_of_empty_messages_hold_up_nobody(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        turns = 0
        received: Counter[int] = Counter()

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async def take(stream: DatagramStream) -> None:
            while await stream.receive() is not None:
                received[turns] += 1

        world.bob.host.datagrams[53] = take
        flow = await world.connect_udp()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            await flow._secure.send_messages([b""] * 3000)
            while received.total() < 3000:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert max(received.values()) <= 2 * FRAMES_AT_ONCE  # last in one round, first in the next
        flow.abort()
