"""Sessions that survive, under attack and in the worst order: liars, and who is slow or late."""

from __future__ import annotations

import random

import pytest
import trio
from session_pair import Pair, exchange_bytes, resumable, resumption
from session_world import (
    BOB,
    CONTEXT,
    ENTRY,
    receive_all,
    receive_exactly,
    running_world,
    sealed,
)
from trio.testing import MockClock

from phantom_tun.crypto.certificates import certificate_hash
from phantom_tun.endpoints import ByteStream
from phantom_tun.errors import StreamReset, Unreachable
from phantom_tun.net.links.buffers import CHUNK, Buffer
from phantom_tun.net.links.turns import TURNS
from phantom_tun.net.sessions.acknowledging import ACK_LEAST
from phantom_tun.net.sessions.ending import abandon
from phantom_tun.net.sessions.handshake import SECRET_WAIT
from phantom_tun.net.sessions.resuming import MAX_ATTEMPTS, WAIT_FOR_CALLER
from phantom_tun.net.sessions.secure_tunnel import SecureTunnel
from phantom_tun.net.sessions.stream import READER_WITHIN, SessionStream
from phantom_tun.net.sessions.unacknowledged import (
    MOST_OF_ONE,
    SMALL,
    Memory,
    Unacknowledged,
)
from phantom_tun.testing.fake_tunnel import FakeTunnel
from phantom_tun.tunnel.answer import caller_wrap, unlock_answer
from phantom_tun.tunnel.channel import CallerHandshake
from phantom_tun.wire.session import Answer, FrameKind, Outcome, pack_ack


async def by_hand(pair: Pair, epoch: int) -> tuple[SecureTunnel, Answer]:
    """What a caller has who knows its session and resumes it when it likes."""
    world, handshake = pair.world, CallerHandshake(CONTEXT)
    request = resumption(pair, epoch, client_hello=handshake.hello)
    locked, tunnel = await world.network.carry(*ENTRY, sealed(request))
    answer = unlock_answer(locked, request)
    assert answer.outcome is Outcome.CONNECTED
    pin = certificate_hash(BOB.certificate.der)
    channel = handshake.finish(answer.flight, pin, caller_wrap(request, answer))
    return SecureTunnel(channel, tunnel, world.alice.service._spawn), answer


async def read_on(stream: SessionStream) -> None:
    while await stream.receive():
        pass


# --- acknowledgements ----------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["alice", "bob"])
async def test_who_keeps_nothing_is_told_nothing(autojump_clock: MockClock, who: str) -> None:
    async with running_world() as world:
        getattr(world, who).service._survival.memory.limit = 0
        pair = await resumable(world)
        for _ in range(3):
            await exchange_bytes(pair)
        await pair.end()


async def test_acknowledgements_never_go_back(autojump_clock: MockClock) -> None:
    """Small pieces both ways over tunnels that are always full."""
    async with running_world() as world:
        pair = await resumable(world)
        for tunnel in pair.tunnels:
            tunnel.outgoing.capacity = 20_000

        async def say(stream: SessionStream) -> None:
            for _ in range(8_000):
                await stream.send_all(memoryview(bytes(2_000)))
            await stream.send_end()

        async def read(stream: SessionStream) -> None:
            while await stream.receive():
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for stream in (pair.near, pair.far):
                nursery.start_soon(say, stream)
                nursery.start_soon(read, stream)
        assert pair.near.resumed == 0
        await pair.near.aclose()
        await pair.far.aclose()
        await pair.wait_gone()


async def test_what_arrives_while_an_acknowledgement_waits_is_acknowledged_too(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        slow, send_at_once = pair.tunnels[0], FakeTunnel.send

        async def send(tunnel: FakeTunnel, buffer: Buffer, *, fin: bool = False) -> None:
            if tunnel is slow:
                await trio.sleep(3)
            await send_at_once(tunnel, buffer, fin=fin)

        monkeypatch.setattr(FakeTunnel, "send", send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on, pair.far)
            nursery.start_soon(read_on, pair.near)
            for _ in range(20):
                await pair.far.send_all(memoryview(bytes(100_000)))
                await trio.sleep(0.1)
            await trio.sleep(30)
            assert len(pair.far._unacked) < CHUNK
            assert pair.far._unacked.end - pair.far._unacked.confirmed <= ACK_LEAST
            nursery.cancel_scope.cancel()
        await pair.end()


async def test_who_confirms_what_is_only_being_repeated_ends_it(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        for tunnel in pair.tunnels:
            tunnel.outgoing.is_lossy = True
        await pair.far.send_all(memoryview(bytes(200_000)))

        def prepare(tunnel: FakeTunnel) -> None:
            tunnel.incoming.capacity = 1_000

        world.network.prepare = prepare
        secure, _ = await by_hand(pair, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                secure.send, FrameKind.DATA, memoryview(b"x"), lambda: pack_ack(200_004)
            )
            with pytest.raises(StreamReset), trio.fail_after(5):
                await read_on(pair.far)
        assert pair.far._secure.pipe.tunnel.outgoing.writes < 10  # type: ignore[attr-defined]
        abandon(secure)
        await pair.end()


# --- in the worst order --------------------------------------------------------------------------


async def test_who_repeated_for_a_tunnel_before_does_not_let_others_go(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that takes longer than the next tunnel needs to come and be lost."""
    data = random.Random(1).randbytes(230_884)
    found, turns = bytearray(), list[trio.Event]()

    async def slow(_turns: object, _name: int | None = None) -> None:
        turns.append(trio.Event())
        await turns[-1].wait()

    async def wait_turns(count: int) -> None:
        while len(turns) < count:
            await trio.sleep(0.01)

    async with running_world() as world:
        pair = await resumable(world)
        for tunnel in pair.tunnels:
            tunnel.outgoing.is_lossy = True
        await pair.far.send_all(memoryview(data))

        def prepare(tunnel: FakeTunnel) -> None:
            tunnel.incoming.is_lossy = len(world.network.exchanges) == 2

        async def read() -> None:
            while len(found) < len(data) + 9:
                found.extend(await pair.near.receive())

        world.network.prepare = prepare
        monkeypatch.setattr(type(TURNS), "wait", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.far.receive)
            pair.kill()
            nursery.start_soon(read)
            await wait_turns(1)
            turns[0].set()
            await wait_turns(2)  # behind the last piece for the first tunnel
            pair.kill()
            await wait_turns(3)  # in the middle for the second one
            nursery.start_soon(pair.far.send_all, memoryview(b"afterward"))
            await trio.sleep(0.01)
            turns[1].set()
            await trio.sleep(1)
            with trio.fail_after(10):
                while len(found) < len(data) + 9:
                    for turn in turns:
                        turn.set()
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert bytes(found) == data + b"afterward"
        await pair.end()


async def test_an_attempt_that_the_caller_has_left_does_not_count(
    autojump_clock: MockClock,
) -> None:
    """Its flight arrives after the next attempt's request."""
    async with running_world() as world:
        pair = await resumable(world)
        first, _ = await by_hand(pair, 1)
        second, answer = await by_hand(pair, 2)
        assert answer.received == 4
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.send, FrameKind.DATA, memoryview(b"said once"))
            await trio.sleep(1)
            nursery.start_soon(second.send, FrameKind.DATA, memoryview(b"said once"))
            assert await receive_exactly(pair.far, 9) == b"said once"
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert pair.far.received == 4 + 9
        assert world.counts()["sessions_resumed"] == 1
        abandon(first)
        abandon(second)
        await pair.end()


async def test_attempts_at_a_time_are_few(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        attempts = [(await by_hand(pair, epoch))[0] for epoch in range(1, MAX_ATTEMPTS + 1)]
        with pytest.raises(Unreachable):
            await by_hand(pair, MAX_ATTEMPTS + 1)
        for attempt in attempts:
            abandon(attempt)
        await pair.end()


async def test_a_reset_right_after_a_resumption_is_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before our end of TLS was sent."""
    go_on = SessionStream.go_on

    def go_on_and_give_up(stream: SessionStream, secure: SecureTunnel, received: int) -> None:
        go_on(stream, secure, received)
        if stream is pair.near:
            stream.abort()

    async with running_world() as world:
        pair = await resumable(world)
        monkeypatch.setattr(SessionStream, "go_on", go_on_and_give_up)
        pair.kill()
        assert not pair.near.is_broken()
        with pytest.raises(StreamReset), trio.fail_after(3):
            await pair.far.receive()
        await pair.end()


async def test_a_secret_that_was_never_said_is_none(autojump_clock: MockClock) -> None:
    async def listen(stream: ByteStream) -> None:
        await stream.receive()

    async with running_world() as world:
        world.bob.host.streams[80] = listen
        stream = await world.connect()
        await trio.sleep(SECRET_WAIT / 2)
        tunnel = world.network.exchanges[0].caller_tunnel
        assert tunnel is not None
        tunnel.reset()
        with pytest.raises(StreamReset), trio.fail_after(1):
            await stream.receive()
        stream.abort()
        await trio.sleep(1)
        assert world.bob.service.sessions() == []


async def test_a_call_whose_answer_was_lost_is_made_again(autojump_clock: MockClock) -> None:
    """In a kept session, which its callee could resume: the caller doesn't know that it stands."""

    async def call(source_port: int) -> None:
        stream = await world.connect(source_port=source_port)
        await stream.send_all(memoryview(b"x"))
        assert await receive_exactly(stream, 1) == b"x"
        await stream.send_end()
        assert await receive_all(stream) == b""
        await stream.aclose()

    async with running_world(keep=True) as world:
        for port in (1000, 1001, 1002):
            await call(port)
        await trio.sleep(0.1)
        assert world.alice.service.statistics()["open_kept"]
        tunnel = world.network.exchanges[-1].callee_tunnel
        assert tunnel is not None
        tunnel.outgoing.cut_at = tunnel.outgoing.carried + 5
        with trio.fail_after(5):
            await call(2000)
        assert world.counts()["sessions_never_known"] == 1


async def test_who_asks_again_and_again_behind_an_end_is_waited_for(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        await pair.near.send_end()
        assert await receive_all(pair.far) == b""
        until = trio.current_time() + 40

        def prepare(tunnel: FakeTunnel) -> None:
            if trio.current_time() < until:
                tunnel.outgoing.cut_at = 20

        world.network.prepare = prepare
        pair.kill()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.far.send_all, memoryview(b"an answer"))
            assert await receive_exactly(pair.near, 9) == b"an answer"
        await pair.end()


async def test_a_session_that_cannot_go_on_is_over_at_once_at_both_ends(
    autojump_clock: MockClock,
) -> None:
    async with running_world(resume_memory=300_000) as world:
        pair = await resumable(world)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.far.send_all, memoryview(bytes(400_000)))
            await receive_exactly(pair.near, 200_000)
            while pair.far._unacked.is_whole:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        pair.far._is_torn = False
        pair.kill()
        began = trio.current_time()
        for stream in (pair.near, pair.far):
            with pytest.raises(StreamReset), trio.fail_after(WAIT_FOR_CALLER / 2):
                await read_on(stream)
        assert trio.current_time() - began < 2
        await pair.end()


# --- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["near", "far"])
async def test_sending_on_what_is_over_keeps_nothing(autojump_clock: MockClock, who: str) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        mine, other = (pair.near, pair.far) if who == "near" else (pair.far, pair.near)

        async def say() -> None:
            with pytest.raises(StreamReset):
                while True:
                    await mine.send_all(memoryview(bytes(100_000)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            await trio.sleep(1)
            other.abort()
            with pytest.raises(StreamReset):
                await mine.receive()
            mine.abort()
        with pytest.raises(StreamReset):
            await mine.send_all(memoryview(bytes(100_000)))
        await pair.end()


async def test_a_slow_reader_is_not_sent_more_than_can_be_kept(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        pair = await resumable(world)
        for tunnel in pair.tunnels:
            tunnel.outgoing.capacity = 100_000_000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on, pair.far)  # who reads hears what is confirmed
            nursery.start_soon(pair.far.send_all, memoryview(bytes(MOST_OF_ONE + 5_000_000)))
            await trio.sleep(1000)
            assert MOST_OF_ONE - CHUNK <= pair.far.bytes_out <= MOST_OF_ONE
            pair.kill()
            await receive_exactly(pair.near, MOST_OF_ONE + 5_000_000)
            nursery.cancel_scope.cancel()
        assert pair.count("streams_unprotected") == (0, 0)
        await pair.end()


async def test_who_does_not_read_is_not_stopped_from_sending(autojump_clock: MockClock) -> None:
    """Its node doesn't hear what is confirmed: what waits before that isn't taken."""
    async with running_world() as world:
        pair = await resumable(world)
        await pair.far.send_all(memoryview(b"never read"))
        amount = MOST_OF_ONE + 5_000_000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.near.send_all, memoryview(bytes(amount)))
            await receive_exactly(pair.far, amount)
            assert trio.current_time() < 200 + 2 * READER_WITHIN
        assert pair.count("streams_unprotected") == (1, 0)
        await pair.end()


def test_who_has_most_makes_room() -> None:
    memory = Memory(10 * CHUNK)
    hog, others = Unacknowledged(memory), [Unacknowledged(memory) for _ in range(3)]
    for _ in range(8):
        assert hog.add(memoryview(bytes(CHUNK)))
    for other in others:
        assert other.add(memoryview(bytes(CHUNK)))
    assert not hog.is_whole
    assert all(other.is_whole for other in others)
    assert memory.used == 3 * CHUNK


def test_memory_is_counted_as_it_is_used() -> None:
    memory = Memory(10 * CHUNK)
    kept = [Unacknowledged(memory) for _ in range(30)]
    assert sum(each.add(memoryview(bytes(SMALL + 1))) for each in kept) == 10
    assert memory.used == 10 * CHUNK
