"""Streams: bytes, ends, resets and backpressure, over tunnels that cut, break and lie."""

from __future__ import annotations

import gc
import random

import pytest
import trio
from session_pair import Pair, connected, resumable, send_pieces
from session_world import receive_all, receive_exactly, running_world
from trio.testing import MockClock

from phantom_tun.errors import StreamReset
from phantom_tun.net.links.buffers import POOL, Buffer
from phantom_tun.net.sessions.acknowledging import LATE
from phantom_tun.net.sessions.ending import CLOSE_WITHIN, LAST_WORD_WITHIN
from phantom_tun.net.sessions.handshake import SECRET_WAIT
from phantom_tun.net.sessions.stream import SessionStream
from phantom_tun.testing.fake_tunnel import CAPACITY, FakeTunnel
from phantom_tun.wire.session import MAX_DATA, FrameKind


def both_ways(pair: Pair) -> list[tuple[SessionStream, SessionStream]]:
    return [(pair.near, pair.far), (pair.far, pair.near)]


# --- bytes ---------------------------------------------------------------------------------------


async def test_ten_megabytes_arrive_unharmed_both_ways_at_once(autojump_clock: MockClock) -> None:
    rng = random.Random(1)
    there, back = rng.randbytes(5_000_000), rng.randbytes(5_000_000)
    found: dict[str, bytes] = {}

    async def collect(name: str, stream: SessionStream) -> None:
        found[name] = await receive_all(stream)

    async with running_world() as world:
        pair = await connected(world)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_pieces, pair.near, there, random.Random(2))
            nursery.start_soon(send_pieces, pair.far, back, random.Random(3))
            nursery.start_soon(collect, "far", pair.far)
            nursery.start_soon(collect, "near", pair.near)
        assert found == {"far": there, "near": back}
        assert pair.near.bytes_out == pair.far.bytes_in == 5_000_000
        await pair.near.aclose()
        await pair.far.aclose()
        await pair.wait_gone()
        assert pair.is_released


async def test_large_pieces_are_cut_evenly(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)
        before = pair.tunnels[0].outgoing.writes
        for length, writes in ((MAX_DATA + 1, 2), (MAX_DATA, 3), (0, 3)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.near.send_all, memoryview(bytes(length)))
                assert len(await receive_exactly(pair.far, length)) == length
            assert pair.tunnels[0].outgoing.writes - before == writes


async def test_an_idle_connection_says_nothing_and_lives(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)
        await trio.sleep(SECRET_WAIT + 0.1)
        sent = pair.tunnels[0].outgoing.carried, pair.tunnels[1].outgoing.carried
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive_exactly, pair.near, 4)
            await trio.sleep(3 * 3600)
            assert sent == (pair.tunnels[0].outgoing.carried, pair.tunnels[1].outgoing.carried)
            await pair.far.send_all(memoryview(b"late"))


async def test_an_idle_connection_holds_no_buffer(autojump_clock: MockClock) -> None:
    def held() -> int:
        gc.collect()
        return sum(isinstance(thing, Buffer) for thing in gc.get_objects()) - len(POOL._free)

    async with running_world() as world:
        pair = await connected(world)
        before = held()
        await pair.near.send_all(memoryview(bytes(100_000)))
        await receive_exactly(pair.far, 100_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.far.receive)
            nursery.start_soon(pair.near.receive)
            await trio.sleep(2 * LATE + 0.1)  # until it is confirmed
            assert held() == before
            nursery.cancel_scope.cancel()
        pair.near.abort()
        with pytest.raises(StreamReset):
            await pair.near.send_all(memoryview(b"x"))


async def test_a_reader_that_stops_stops_the_sender(autojump_clock: MockClock) -> None:
    data = random.Random(5).randbytes(3_000_000)

    async with running_world() as world:
        pair = await connected(world)
        for sender, receiver in both_ways(pair):
            done = trio.Event()

            async def send(stream: SessionStream = sender, done: trio.Event = done) -> None:
                await stream.send_all(memoryview(data))
                done.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.sleep(60)
                assert not done.is_set()
                assert sender.bytes_out <= CAPACITY + 65_536
                assert await receive_exactly(receiver, len(data)) == data
        for tunnel in pair.tunnels:
            assert tunnel.outgoing.most_waiting <= CAPACITY


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
async def test_one_direction_can_end_before_the_other(
    autojump_clock: MockClock, first: int
) -> None:
    async with running_world() as world:
        pair = await connected(world)
        ending, other = both_ways(pair)[first]
        await ending.send_all(memoryview(b"request"))
        await ending.send_end()
        assert await receive_all(other) == b"request"
        assert len(await other.receive()) == 0, "it stays ended"
        await trio.sleep(600)
        await other.send_all(memoryview(b"response"))
        await other.send_end()
        assert await receive_all(ending) == b"response"
        await ending.aclose()
        await other.aclose()
        await pair.wait_gone()
        assert pair.is_released


async def test_both_directions_can_end_at_once(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)

        async def end(stream: SessionStream) -> None:
            await stream.send_end()
            assert await receive_all(stream) == b""
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end, pair.near)
            nursery.start_soon(end, pair.far)
        await pair.wait_gone()
        assert pair.is_released


async def test_close_notify_follows_only_both_ends(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)
        await pair.near.send_end()
        await receive_all(pair.far)
        assert not pair.far._secure._channel.is_closed
        await pair.far.send_end()
        await receive_all(pair.near)
        assert pair.near._secure._reader.next() is None
        assert pair.near._secure._channel.is_closed
        await pair.near.aclose()
        await pair.far.aclose()
        await pair.wait_gone()
        assert pair.is_released


async def test_an_end_takes_one_message_each_way(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)
        lanes = [tunnel.outgoing for tunnel in pair.tunnels]
        before = [lane.writes for lane in lanes]
        await pair.near.send_end()
        await receive_all(pair.far)
        await pair.far.send_end()
        await receive_all(pair.near)
        for stream in (pair.near, pair.far):
            await stream.aclose()
        await pair.wait_gone()
        assert [lane.writes for lane in lanes] == [count + 1 for count in before]
        assert pair.is_released


async def test_closing_without_an_end_is_a_reset(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)
        await pair.near.aclose()
        with pytest.raises(StreamReset):
            await pair.far.receive()
        await pair.far.aclose()
        await pair.wait_gone()


# --- resets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
async def test_a_reset_arrives_and_costs_no_link(autojump_clock: MockClock, first: int) -> None:
    async with running_world() as world:
        pair = await connected(world)
        resetting, other = both_ways(pair)[first]
        await resetting.send_all(memoryview(b"last"))
        resetting.abort()
        resetting.abort()
        assert await receive_exactly(other, 4) == b"last"
        with pytest.raises(StreamReset, match="far side"):
            await other.receive()
        for use in (other.receive, other.send_end):
            with pytest.raises(StreamReset):
                await use()
        with pytest.raises(StreamReset):
            await resetting.receive()
        with pytest.raises(StreamReset):
            await resetting.send_all(memoryview(b"x"))
        other.abort()
        await pair.wait_gone()
        assert pair.is_released


@pytest.mark.parametrize("first", [0, 1])
async def test_a_reset_after_an_end_arrives(autojump_clock: MockClock, first: int) -> None:
    async with running_world() as world:
        pair = await connected(world)
        resetting, other = both_ways(pair)[first]
        await other.send_end()
        assert await receive_all(resetting) == b""
        resetting.abort()
        with pytest.raises(StreamReset):
            await other.receive()
        other.abort()
        await pair.wait_gone()
        assert pair.is_released


@pytest.mark.parametrize("first", [0, 1])
async def test_a_reset_after_ones_own_end_arrives(autojump_clock: MockClock, first: int) -> None:
    """It takes the tunnel along, since nothing can be said any more."""
    async with running_world() as world:
        pair = await connected(world)
        resetting, other = both_ways(pair)[first]
        await resetting.send_end()
        assert await receive_all(other) == b""
        resetting.abort()
        with pytest.raises(StreamReset):
            while True:
                await other.send_all(memoryview(bytes(1000)))
        other.abort()
        await pair.wait_gone()
        assert not pair.is_released


async def test_both_ends_can_reset_at_once(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)
        pair.near.abort()
        pair.far.abort()
        await pair.wait_gone()
        assert pair.is_released


@pytest.mark.parametrize("first", [0, 1])
async def test_a_reset_ends_a_receive_that_waits_at_the_same_end(
    autojump_clock: MockClock, first: int
) -> None:
    async with running_world() as world:
        pair = await connected(world)
        stream, _ = both_ways(pair)[first]
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(StreamReset):
                    await stream.receive()

            nursery.start_soon(receive)
            await trio.sleep(1)
            stream.abort()
            aborted = trio.current_time()
        assert trio.current_time() == aborted


async def test_a_reset_does_not_wait_for_a_reader_that_stopped(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)
        started = trio.current_time()

        async def send() -> None:
            with pytest.raises(StreamReset):
                await pair.near.send_all(memoryview(bytes(1_000_000)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(1)
            pair.near.abort()
        assert trio.current_time() - started <= 1 + LAST_WORD_WITHIN + 0.1
        with pytest.raises(StreamReset):
            await receive_all(pair.far)
        pair.far.abort()
        await pair.wait_gone()


async def test_a_reset_reaches_a_sender_that_is_held_up(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)

        async def send() -> None:
            with pytest.raises(StreamReset):
                while True:
                    await pair.far.send_all(memoryview(bytes(100_000)))

        async def receive() -> None:
            with pytest.raises(StreamReset):
                await pair.far.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(receive)
            await trio.sleep(1)
            pair.near.abort()
            await trio.sleep(CLOSE_WITHIN / 2)
            pair.far.abort()
        await pair.wait_gone()
        assert pair.is_released, "the resetting end took in what was on its way"


async def test_a_far_end_that_says_nothing_is_not_waited_for_long(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        pair = await connected(world)
        pair.near.abort()
        await trio.sleep(CLOSE_WITHIN + 0.1)
        assert pair.tunnels[0].is_reset
        assert world.alice.service.sessions() == []
        pair.far.abort()
        await pair.wait_gone()


async def _cut_short(pair: Pair) -> None:
    with trio.move_on_after(1) as scope:
        await pair.near.send_all(memoryview(b"a" * 1_000_000))
    assert scope.cancelled_caught


async def test_the_rest_of_a_cancelled_send_goes_before_the_next_one(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        pair = await connected(world)
        await _cut_short(pair)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.near.send_all, memoryview(b"b"))
            found = bytearray()
            while not found.endswith(b"b"):
                found += await pair.far.receive()
        length = len(found) - 1
        assert found == b"a" * length + b"b"
        assert 0 < length < 1_000_000
        await pair.end()
        assert pair.is_released


@pytest.mark.parametrize("survive", [True, False])
async def test_a_cancelled_send_is_completed_before_the_reset(
    autojump_clock: MockClock, survive: bool
) -> None:
    async with running_world(survive=survive) as world:
        pair = await resumable(world)
        await _cut_short(pair)
        pair.near.abort()
        with pytest.raises(StreamReset), trio.fail_after(0.5):
            while True:
                await pair.far.receive()
        pair.far.abort()
        await pair.wait_gone(1)
        assert pair.is_released


async def test_a_cancelled_send_that_never_finds_room_is_torn_down(
    autojump_clock: MockClock,
) -> None:
    async with running_world(survive=False) as world:
        pair = await connected(world)
        await _cut_short(pair)
        pair.near.abort()
        await trio.sleep(1.5)
        assert pair.tunnels[0].is_reset
        pair.far.abort()
        await pair.wait_gone()


# --- tunnels that break and lie ------------------------------------------------------------------


def broken(attribute: str, at: int, *, outgoing: bool) -> object:
    def prepare(tunnel: FakeTunnel) -> None:
        lane = tunnel.outgoing if outgoing else tunnel.incoming
        setattr(lane, attribute, at)

    return prepare


@pytest.mark.parametrize("outgoing", [True, False])
@pytest.mark.parametrize("attribute", ["flip_at", "cut_at", "end_at"])
@pytest.mark.parametrize("at", [0, 3, 20, 3_000, 30_000])
async def test_whatever_happens_to_the_bytes_it_is_a_reset(
    autojump_clock: MockClock, attribute: str, at: int, outgoing: bool
) -> None:
    """Never wrong bytes, never a clean end."""
    data = random.Random(9).randbytes(60_000)
    async with running_world(survive=False) as world:
        world.network.prepare = broken(attribute, at, outgoing=outgoing)  # type: ignore[assignment]
        resets = 0
        found = bytearray()
        try:
            stream = await world.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, memoryview(data))
                while len(found) < len(data):
                    piece = await stream.receive()
                    assert piece, "a clean end"
                    found += piece
        except* StreamReset:
            resets += 1
        assert resets == 1
        assert data.startswith(found)
        stream.abort()
        await trio.sleep(60)
        assert world.alice.service.sessions() == []
        assert world.bob.service.sessions() == []


async def test_frames_after_the_end_are_a_reset(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)
        await pair.near.send_end()
        await pair.near._secure.send(FrameKind.DATA, memoryview(b"more"))
        assert len(await pair.far.receive()) == 0
        with pytest.raises(StreamReset):
            await pair.far._secure.receive()
        pair.far.abort()
        pair.near.abort()
        await pair.wait_gone()


async def test_a_datagram_in_a_stream_is_a_reset(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)
        await pair.near._secure.send(FrameKind.DATAGRAM, memoryview(b"odd"))
        with pytest.raises(StreamReset, match="datagram"):
            await pair.far.receive()
        pair.near.abort()
        await pair.wait_gone()


async def test_close_notify_without_an_end_is_a_reset(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await connected(world)
        await pair.near._secure._write(pair.near._secure._channel.encode_close)
        with pytest.raises(StreamReset, match="broke"):
            await pair.far.receive()
        pair.far.abort()
        pair.near.abort()
        await pair.wait_gone()
