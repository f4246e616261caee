"""Sessions that survive their tunnel: nothing is lost, doubled or mixed up, whoever dies when."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from session_pair import Pair, exchange_bytes, resumable, resumption, send_pieces
from session_world import (
    ALICE,
    BOB,
    ENTRY,
    EVE,
    SOURCE_PORT,
    START,
    receive_all,
    receive_exactly,
    running_world,
    sealed,
    submitted,
)
from trio.testing import MockClock

from phantom_tun.endpoints import ByteStream
from phantom_tun.errors import ProtocolViolation, StreamReset
from phantom_tun.ids import EntryId, NodeId
from phantom_tun.net.links.buffers import POOL
from phantom_tun.net.sessions.acknowledging import ACK_EVERY, ACK_LEAST, LATE
from phantom_tun.net.sessions.handshake import SECRET_WAIT
from phantom_tun.net.sessions.resuming import (
    AGAIN_WITHIN,
    AT_ONCE,
    RESUME_WITHIN,
    WAIT_AFTER_END,
    WAIT_FOR_CALLER,
)
from phantom_tun.net.sessions.service import LAST_WORDS_WITHIN
from phantom_tun.net.sessions.stream import SessionStream
from phantom_tun.net.sessions.unacknowledged import SMALL, Memory, Unacknowledged
from phantom_tun.testing.fake_host import FakeRecord
from phantom_tun.testing.fake_tunnel import CAPACITY, FakeTunnel, FakeWayOut
from phantom_tun.tunnel.channel import RECORD
from phantom_tun.wire.session import MAX_DATA, RESUMPTION_LEN, FrameKind, Outcome, pack_ack

# --- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_not_a_byte_is_lost_while_tunnels_die(autojump_clock: MockClock, seed: int) -> None:
    """Ten megabytes both ways at once; tunnels die at any byte in one of three ways."""
    rng = random.Random(seed)
    there, back = rng.randbytes(4_000_000), rng.randbytes(3_000_000)
    found: dict[str, bytes] = {}

    def prepare(tunnel: FakeTunnel) -> None:
        for lane in (tunnel.incoming, tunnel.outgoing):
            attribute = rng.choice(("flip_at", "cut_at", "end_at", "carried"))
            if attribute != "carried":
                setattr(lane, attribute, rng.choice((0, 3, 20, 3_000, 300_000, 2_000_000)))

    async def collect(name: str, stream: SessionStream) -> None:
        found[name] = await receive_all(stream)

    async with running_world() as world:
        pair = await resumable(world)
        world.network.prepare = prepare
        first = pair.tunnels[seed % 2].outgoing
        first.cut_at = first.carried + 500_000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_pieces, pair.near, there, random.Random(2))
            nursery.start_soon(send_pieces, pair.far, back, random.Random(3))
            nursery.start_soon(collect, "far", pair.far)
            nursery.start_soon(collect, "near", pair.near)
        assert found == {"far": there, "near": back}
        assert pair.near.bytes_out == pair.far.bytes_in == len(there) + 4
        assert pair.near.resumed >= pair.far.resumed > 0
        await pair.near.aclose()
        await pair.far.aclose()
        await pair.wait_gone()


async def test_an_idle_connection_that_loses_its_tunnel_goes_on(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.network.exits.append(FakeWayOut(world.network, 7))
        pair = await resumable(world)
        async with trio.open_nursery() as nursery:
            for stream in (pair.near, pair.far):  # as those who carry it do
                nursery.start_soon(stream.receive)
            await trio.sleep(1000)
            pair.kill()
            await trio.sleep(AT_ONCE + 0.1)
            nursery.cancel_scope.cancel()
        assert len(world.network.exchanges) == 2
        assert pair.count("sessions_resumed") == (1, 1)
        await exchange_bytes(pair)
        await pair.end()


async def test_the_other_path_is_taken(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.network.exits.append(FakeWayOut(world.network, 7))
        used: list[int] = []
        way_out = world.network.way_out

        async def watched(identity: str, apart: object = ()) -> FakeWayOut:
            way = await way_out(identity, apart)  # type: ignore[arg-type]
            assert way.number not in apart  # type: ignore[operator]
            used.append(way.number)
            return way

        world.network.way_out = watched  # type: ignore[method-assign, assignment]
        pair = await resumable(world)
        lost = pair.near.path_number
        pair.kill()
        await exchange_bytes(pair)
        assert used[-1] != lost or len(set(used)) == 2
        await pair.end()


async def test_the_other_way_in_is_taken(autojump_clock: MockClock) -> None:
    """Nobody knows on which side the tunnel broke."""
    other = NodeId(b"F" * 32), EntryId(b"f" * 16)
    async with running_world() as world:
        record = FakeRecord.of(BOB, (*ENTRY, START + 10_000), (*other, START + 10_000))
        world.directory.records[BOB.ap6] = record
        world.network.ways[other] = world.way
        pair = await resumable(world)
        for _ in range(6):
            lost = pair.exchange.entry_id
            pair.kill()
            await exchange_bytes(pair)
            assert pair.exchange.entry_id != lost
        await pair.end()


@pytest.mark.parametrize("who", ["near", "far"])
async def test_one_end_may_notice_long_before_the_other(
    autojump_clock: MockClock, who: str
) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        near, far = pair.tunnels
        for lane in (near.outgoing, far.outgoing):
            lane.is_lossy = True
        sender = pair.near if who == "near" else pair.far
        await sender.send_all(memoryview(b"into the void"))
        await trio.sleep(3)
        (near if who == "near" else far).incoming.broken = True
        (near if who == "near" else far).incoming.changed.unpark_all()
        receiver = pair.far if who == "near" else pair.near
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.receive)
            with trio.fail_after(5):
                assert await receive_exactly(receiver, 13) == b"into the void"
            nursery.cancel_scope.cancel()
        await exchange_bytes(pair)
        await pair.end()


async def test_ends_are_not_lost_either(autojump_clock: MockClock) -> None:
    for first in (0, 1):
        async with running_world() as world:
            pair = await resumable(world)
            ending, other = (pair.near, pair.far) if first == 0 else (pair.far, pair.near)
            for tunnel in pair.tunnels:
                tunnel.outgoing.is_lossy = True
            await ending.send_all(memoryview(b"the last"))
            await ending.send_end()
            pair.kill()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive_exactly, ending, 9)
                assert await receive_all(other) == b"the last"
                pair.kill()
                await other.send_all(memoryview(b"an answer"))
            await other.send_end()
            assert await receive_all(ending) == b""
            await ending.aclose()
            await other.aclose()
            await pair.wait_gone()


async def test_a_service_that_is_slow_to_read_is_not_hurried(autojump_clock: MockClock) -> None:
    data = random.Random(4).randbytes(3_000_000)
    async with running_world() as world:
        pair = await resumable(world)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.near.send_all, memoryview(data))
            await trio.sleep(10)
            pair.kill()
            await trio.sleep(10)
            assert pair.near.bytes_out < 2 * CAPACITY + 200_000
            assert await receive_exactly(pair.far, len(data)) == data
        await pair.end()


# --- whose fault ---------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["near", "far"])
async def test_a_reset_is_a_reset(autojump_clock: MockClock, who: str) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        mine, other = (pair.near, pair.far) if who == "near" else (pair.far, pair.near)
        mine.abort()
        with pytest.raises(StreamReset), trio.fail_after(1):
            await other.receive()
        other.abort()
        await pair.wait_gone()
        assert len(world.network.exchanges) == 1


async def _reads_until_reset(stream: SessionStream) -> None:
    with pytest.raises(StreamReset):
        await stream.receive()


@pytest.mark.parametrize("who", ["near", "far"])
async def test_a_reset_is_said_though_somebody_is_reading(
    autojump_clock: MockClock, who: str
) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        mine, other = (pair.near, pair.far) if who == "near" else (pair.far, pair.near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_reads_until_reset, mine)
            await trio.sleep(1)
            mine.abort()
            with pytest.raises(StreamReset), trio.fail_after(1):
                await other.receive()
        other.abort()
        await pair.wait_gone(1)
        assert pair.is_released


async def _holds(lock: trio.Lock, seconds: float) -> None:
    async with lock:
        await trio.sleep(seconds)


@pytest.mark.parametrize("keep", [False, True])
async def test_an_end_that_was_given_up_was_not_said(autojump_clock: MockClock, keep: bool) -> None:
    """Its sender had to wait for another one, and then resets instead."""
    async with running_world(keep=keep) as world:
        pair = await resumable(world)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_holds, pair.near._secure.pipe.send_lock, 2)
            await trio.sleep(1)
            with trio.move_on_after(0.5) as scope:
                await pair.near.send_end()
            assert scope.cancelled_caught
        pair.near.abort()
        with pytest.raises(StreamReset), trio.fail_after(1):
            await pair.far.receive()
        pair.far.abort()
        await pair.wait_gone(1)
        assert pair.is_released


@pytest.mark.parametrize("who", ["caller", "callee"])
async def test_a_node_that_stops_says_so(autojump_clock: MockClock, who: str) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        side, other = (world.alice, pair.far) if who == "caller" else (world.bob, pair.near)
        side.scope.cancel()
        with pytest.raises(StreamReset), trio.fail_after(1):
            await other.receive()
        other.abort()
        await trio.sleep(1)
        assert pair.is_released
        assert not world.alice.service.sessions()
        assert not world.bob.service.sessions()


@pytest.mark.parametrize("who", ["caller", "callee"])
async def test_a_node_that_stops_waits_for_nobody(autojump_clock: MockClock, who: str) -> None:
    """The peer takes nothing: there is no room for a last word."""
    async with running_world() as world:
        pair = await resumable(world)
        near, far = pair.tunnels
        mine = near if who == "caller" else far
        side = world.alice if who == "caller" else world.bob
        stream = pair.near if who == "caller" else pair.far
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_sends_until_reset, stream)
            await trio.sleep(5)
            began = trio.current_time()
            side.scope.cancel()
        assert mine.is_reset
        assert trio.current_time() - began < LAST_WORDS_WITHIN + 0.1
        pair.near.abort()
        pair.far.abort()
        await trio.sleep(1)


async def _sends_until_reset(stream: SessionStream) -> None:
    with pytest.raises(StreamReset):
        while True:
            await stream.send_all(memoryview(bytes(MAX_DATA)))


async def test_only_the_callee_gives_a_secret(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.bob.service._survival.memory.limit = 0
        pair = await resumable(world)
        assert pair.far.secret is None
        await pair.near._secure.send(FrameKind.SECRET, memoryview(bytes(32)))
        with pytest.raises(StreamReset), trio.fail_after(1):
            await pair.far.receive()
        assert pair.far.secret is None
        await pair.end()


@pytest.mark.parametrize("kind", [FrameKind.DATAGRAM, FrameKind.OPEN, FrameKind.OPENED])
async def test_who_breaks_the_protocol_is_not_waited_for(
    autojump_clock: MockClock, kind: FrameKind
) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        payload = memoryview(bytes(1))
        await pair.near._secure.send(kind, payload)
        with pytest.raises(StreamReset), trio.fail_after(1):
            await pair.far.receive()
        pair.far.abort()
        await pair.end()
        assert len(world.network.exchanges) == 1


@pytest.mark.parametrize("wrong", [10_000, 2**64 - 1])
async def test_an_acknowledgement_of_what_was_never_sent_ends_it(
    autojump_clock: MockClock, wrong: int
) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        await pair.near._secure.send(FrameKind.DATA, memoryview(b"x"), lambda: pack_ack(wrong))
        with pytest.raises(StreamReset), trio.fail_after(1):
            await pair.far.receive()
        await pair.end()


async def test_without_the_secret_it_is_over_with_its_tunnel(autojump_clock: MockClock) -> None:
    """A service that hasn't said anything yet, within the first second."""
    async with running_world() as world:
        seen = trio.Event()

        async def listen(stream: ByteStream) -> None:
            seen.set()
            await stream.receive()

        world.bob.host.streams[80] = listen
        stream = await world.connect()
        await seen.wait()
        tunnel = world.network.exchanges[0].caller_tunnel
        assert tunnel is not None
        tunnel.reset()
        with pytest.raises(StreamReset), trio.fail_after(1):
            await stream.receive()
        stream.abort()


async def test_a_silent_service_hands_out_the_secret_after_a_moment(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        stream = await world.connect()  # the echo waits
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive)
            await trio.sleep(SECRET_WAIT + 0.1)
            tunnel = world.network.exchanges[0].caller_tunnel
            assert tunnel is not None
            tunnel.reset()
            await trio.sleep(AT_ONCE + 0.1)
            nursery.cancel_scope.cancel()
        await stream.send_all(memoryview(b"still there"))
        assert await receive_exactly(stream, 11) == b"still there"
        stream.abort()


@pytest.mark.parametrize("setting", ["caller", "callee"])
async def test_it_can_be_turned_off(autojump_clock: MockClock, setting: str) -> None:
    async with running_world() as world:
        side = world.alice if setting == "caller" else world.bob
        side.service._survival.memory.limit = 0
        if setting == "caller":
            side.service._opener._survives = False
        pair = await resumable(world)
        pair.kill()
        for stream in (pair.near, pair.far):
            with pytest.raises(StreamReset), trio.fail_after(1):
                await stream.receive()
            stream.abort()
        await pair.wait_gone()
        assert len(world.network.exchanges) == 1


# --- how long ------------------------------------------------------------------------------------


async def test_when_no_way_works_it_is_over_after_a_minute(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        world.network.ways.clear()
        pair.kill()
        ended: dict[str, float] = {}

        async def wait(name: str, stream: SessionStream) -> None:
            began = trio.current_time()
            with pytest.raises(StreamReset):
                await stream.receive()
            ended[name] = trio.current_time() - began
            stream.abort()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, "near", pair.near)
            nursery.start_soon(wait, "far", pair.far)
        assert ended["near"] == pytest.approx(RESUME_WITHIN, abs=0.5)
        assert ended["far"] == pytest.approx(WAIT_FOR_CALLER, abs=0.5)
        await pair.wait_gone()
        assert pair.count("sessions_lost") == (1, 1)


async def test_a_way_that_is_back_after_half_a_minute_is_found(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        ways = dict(world.network.ways)
        world.network.ways.clear()
        pair.kill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.near.receive)
            nursery.start_soon(pair.far.receive)
            await trio.sleep(30)
            world.network.ways.update(ways)
            await trio.sleep(15)
            nursery.cancel_scope.cancel()
        await exchange_bytes(pair)
        await pair.end()


async def test_a_callee_that_was_restarted_says_that_it_is_gone(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        server = world.bob.service._server
        assert server is not None
        server._resumable.find = lambda *_: None  # type: ignore[method-assign]
        pair.kill()
        with pytest.raises(StreamReset), trio.fail_after(1):
            await pair.near.receive()
        await pair.end()


async def test_an_application_that_gives_up_meanwhile_ends_the_search(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        world.network.ways.clear()
        pair.kill()
        await trio.sleep(0)
        with trio.move_on_after(5):
            await pair.near.receive()
        pair.near.abort()
        tried = len(world.network.exchanges)
        await trio.sleep(30)
        assert len(world.network.exchanges) <= tried + 1
        pair.far.abort()
        await pair.wait_gone()


async def test_the_callee_waits_less_behind_an_end(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        await pair.near.send_end()
        assert await receive_all(pair.far) == b""
        pair.near.abort()
        began = trio.current_time()
        await trio.sleep(1)
        assert not pair.far.is_broken()
        while not pair.far.is_broken():
            await trio.sleep(0.5)
        assert trio.current_time() - began == pytest.approx(WAIT_AFTER_END, abs=2)
        pair.far.abort()
        await pair.wait_gone()


async def test_deaths_are_counted_if_they_are_repeated(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        for expected in (0, 1, 2):
            pair.kill()
            await exchange_bytes(pair)
            for side in (world.alice, world.bob):
                assert side.service.repeated_deaths() == expected
        await trio.sleep(AGAIN_WITHIN + 1)
        assert world.alice.service.repeated_deaths() == 0
        pair.kill()
        await exchange_bytes(pair)
        assert world.alice.service.repeated_deaths() == 0
        await pair.end()


# --- who may -------------------------------------------------------------------------------------


async def answer_to(pair: Pair, **changes: Any) -> Outcome | None:
    """What Bob says to a resumption that differs from what Alice would ask; None: nothing."""
    request = resumption(pair, **changes)
    signing = EVE.signing if request.caller == EVE.signing.public else ALICE.signing
    return await submitted(pair.world, request, sealed(request, signing))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Outcome.CONNECTED),
        ({"epoch": 7}, Outcome.CONNECTED),
        ({"secret": b"x" * 32}, None),
        ({"session_id": b"x" * 16}, Outcome.GONE),
        ({"received": 3}, Outcome.GONE),
        ({"received": 5}, Outcome.GONE),
        ({"received": 2**64 - 1}, Outcome.GONE),
        (
            {"caller": EVE.signing.public, "certificate": EVE.certificate.der},
            Outcome.GONE,
        ),
    ],
)
async def test_only_the_caller_may_and_only_from_where_it_is(
    autojump_clock: MockClock, changes: dict[str, Any], expected: Outcome | None
) -> None:
    """The far end has said four bytes, all of which were acknowledged."""
    async with running_world() as world:
        pair = await resumable(world)
        await exchange_bytes(pair, there=b"", back=b"")
        await pair.near.send_all(memoryview(b"!"))  # takes an acknowledgement along
        await receive_exactly(pair.far, 1)
        assert await answer_to(pair, **changes) is expected
        if "received" in changes:  # nobody else knows the secret
            with pytest.raises(StreamReset), trio.fail_after(1):
                await pair.far.receive()
        elif expected is not Outcome.CONNECTED:
            await exchange_bytes(pair)  # it goes on as if nothing had been
            assert len(world.network.exchanges) == 2
        await pair.end()


async def test_lower_epochs_are_refused(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        for _ in range(3):
            pair.kill()
            await exchange_bytes(pair)
        for epoch in (1, 2, 3):
            assert await answer_to(pair, epoch=epoch) is Outcome.GONE
        await exchange_bytes(pair)
        await pair.end()


async def test_somebody_who_asks_and_never_completes_does_not_keep_the_caller_out(
    autojump_clock: MockClock,
) -> None:
    """A request that a node on the way held back until now, say."""
    async with running_world() as world:
        pair = await resumable(world)
        assert await answer_to(pair, epoch=1) is Outcome.CONNECTED
        await exchange_bytes(pair)
        assert pair.near.resumed == 1
        await pair.end()


async def test_a_resumption_that_is_repeated_gets_no_answer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        pair.kill()
        await exchange_bytes(pair)
        repeated = world.network.exchanges[-1].sealed_request
        exchanges = len(world.network.exchanges)
        with pytest.raises(Exception, match="no tunnel behind"):
            await world.network.carry(*next(iter(world.network.ways)), repeated)
        assert len(world.network.exchanges) == exchanges + 1
        await exchange_bytes(pair)
        await pair.end()


async def test_an_ephemeral_caller_resumes_as_the_same_nobody(autojump_clock: MockClock) -> None:
    async with running_world(ephemeral=frozenset({"alice"})) as world:
        pair = await resumable(world)
        pair.kill()
        await exchange_bytes(pair)
        assert pair.near.resumed == 1
        await pair.end()


# --- what is kept --------------------------------------------------------------------------------


async def test_without_memory_for_it_a_stream_is_as_fast_and_dies_with_its_tunnel(
    autojump_clock: MockClock,
) -> None:
    async with running_world(resume_memory=100_000) as world:
        pair = await resumable(world)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.near.send_all, memoryview(bytes(150_000)))
        assert pair.count("streams_unprotected") == (1, 0)
        pair.kill()
        with pytest.raises(StreamReset), trio.fail_after(RESUME_WITHIN):
            await pair.near.receive()
        await pair.end()


async def test_once_all_is_acknowledged_it_may_be_resumed_again(autojump_clock: MockClock) -> None:
    async with running_world(resume_memory=100_000) as world:
        pair = await resumable(world)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.near.send_all, memoryview(bytes(150_000)))
            await receive_exactly(pair.far, 150_000)
        await exchange_bytes(pair)
        pair.kill()
        await exchange_bytes(pair)
        assert pair.near.resumed == 1
        await pair.end()


async def test_what_is_kept_is_bounded_and_let_go_of(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        memory = world.alice.service._survival.memory
        most = 0

        async def read() -> None:
            nonlocal most
            left = 20_000_000
            while left:
                left -= len(await pair.far.receive())
                most = max(most, memory.used)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.near.receive)
            async with trio.open_nursery() as moving:
                moving.start_soon(read)
                for _ in range(20):
                    await pair.near.send_all(memoryview(bytes(1_000_000)))
            assert ACK_EVERY < most < ACK_EVERY + 4 * CAPACITY + 1_000_000
            await trio.sleep(2 * LATE)
            assert memory.used <= ACK_LEAST
            nursery.cancel_scope.cancel()
        await pair.end()


async def test_nothing_is_kept_that_nobody_will_confirm(autojump_clock: MockClock) -> None:
    """Behind END no acknowledgement comes."""
    async with running_world(resume_memory=500_000) as world:
        pair = await resumable(world)
        await pair.near.send_end()
        assert await receive_all(pair.far) == b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.far.send_all, memoryview(bytes(2_000_000)))
            await receive_exactly(pair.near, 2_000_000)
        assert world.bob.service._survival.memory.used == 0
        assert pair.count("streams_unprotected") == (0, 1)
        await pair.end()


async def test_little_is_acknowledged_with_what_goes_the_other_way(
    autojump_clock: MockClock,
) -> None:
    """Keystrokes cost no message of their own, however long they take."""
    async with running_world() as world:
        pair = await resumable(world)
        near, far = pair.tunnels
        before = near.outgoing.writes, far.outgoing.writes
        for _ in range(50):
            await exchange_bytes(pair, b"k", b"k")
            await trio.sleep(LATE)
        assert (near.outgoing.writes, far.outgoing.writes) == (before[0] + 50, before[1] + 50)
        assert len(pair.near._unacked) <= 1
        assert len(pair.far._unacked) <= 1
        await exchange_bytes(pair, bytes(RECORD + 1), b"")
        await pair.end()


def test_pieces_come_back_as_they_were_sent() -> None:
    rng = random.Random(8)
    memory = Memory(300_000)
    kept = Unacknowledged(memory)
    data, dropped = b"", 0
    for _ in range(3_000):
        piece = rng.randbytes(rng.choice((1, 10, 3_000, SMALL, SMALL + 1, MAX_DATA)))
        if kept.add(memoryview(piece)):
            data += piece
        else:
            data, dropped = b"", dropped + 1
        if rng.random() < 0.3:
            least = max(kept.confirmed, kept.end - len(data))
            position = rng.randrange(least, kept.end + 1)
            kept.confirm(position)
            data = data[len(data) - (kept.end - position) :]
        begin = kept.end - len(data)
        assert kept.has(begin) == (begin >= kept.confirmed)
        got, at = [], begin
        while found := kept.read(at, rng.choice((1_000, 100_000, MAX_DATA))):
            got.append(found)
            at += len(found)
        assert b"".join(got) == data
        assert not kept.has(kept.end + 1)
        assert len(kept) <= memory.used == kept.held <= memory.limit
    assert dropped > 5
    for wrong in (kept.end + 1, kept.confirmed - 1):
        with pytest.raises(ProtocolViolation):
            kept.confirm(wrong)
    kept.confirm(kept.end)
    assert memory.used == 0 == len(kept)


def test_buffers_go_back_to_the_pool() -> None:
    kept, before = Unacknowledged(Memory(10_000_000)), len(POOL)
    for _ in range(10):
        kept.add(memoryview(bytes(MAX_DATA)))
    kept.confirm(kept.end)
    assert len(POOL) == max(before, 10)
    kept.add(memoryview(bytes(MAX_DATA)))
    assert len(POOL) == max(before, 10) - 1
    kept.discard()
    assert len(POOL) == max(before, 10)


# --- wired as it should be -----------------------------------------------------------------------


async def test_the_request_says_so(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        pair.kill()
        await exchange_bytes(pair)
        ((server_key, _),) = world.bob.service._server._resumable._all.items()  # type: ignore[union-attr]
        assert server_key[0] == "bob"
        assert world.bob.host.calls[0][0].port == SOURCE_PORT
        assert len(world.bob.host.calls) == 1, "the service saw one connection"
        assert RESUMPTION_LEN == 40
        await pair.end()
