"""Kept sessions in a storm: hundreds of short connections that end in every way there is, over
tunnels that take their time and die. Nothing is heard twice or by somebody else, and nothing is
left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections import Counter

import pytest
import trio
from session_world import World, ends, running_world
from trio.testing import MockClock

from phantom_tun.endpoints import ByteStream
from phantom_tun.errors import ConnectFailed, StreamReset
from phantom_tun.net.links.buffers import Buffer
from phantom_tun.net.sessions.resuming import WAIT_FOR_CALLER
from phantom_tun.net.sessions.stream import SessionStream
from phantom_tun.testing.fake_tunnel import FakeTunnel, FakeWayOut
from phantom_tun.wire.session import MAX_EARLY

NAME_LEN = 16
HEADER_LEN = NAME_LEN + 1 + 4
LENGTHS = (0, 1, MAX_EARLY - HEADER_LEN, MAX_EARLY, 60_000, 200_000)
MANNERS = (
    "client ends first",
    "service ends first",
    "client resets",
    "service resets",
    "service resets at once",
    "both end at once",
    "client gives up",
)


class Storm:
    """Who says what, and what was heard."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.heard: Counter[bytes] = Counter()
        self.results: Counter[str] = Counter()

    async def serve(self, stream: ByteStream) -> None:
        try:
            await self._serve(stream)
        except StreamReset:
            stream.abort()

    async def _serve(self, stream: ByteStream) -> None:
        got = await receive(stream, HEADER_LEN)
        if len(got) < HEADER_LEN:
            stream.abort()
            return
        name, manner = bytes(got[:NAME_LEN]), MANNERS[got[NAME_LEN]]
        self.heard[name] += 1
        if manner != "service resets at once":
            length = int.from_bytes(got[NAME_LEN + 1 : HEADER_LEN], "big")
            got += await receive(stream, HEADER_LEN + length - len(got))
            await stream.send_all(memoryview(hashlib.sha256(got).digest() + got))
            await trio.sleep(self.rng.random() * 0.1)
        if manner.startswith("service resets"):
            stream.abort()
            return
        if manner in ("service ends first", "both end at once"):
            await stream.send_end()
        assert not await receive(stream, 1), "more than was sent"
        await stream.send_end()
        await stream.aclose()

    async def call(self, source_port: int) -> None:
        choice = self.rng.randrange(len(MANNERS))
        length = self.rng.choice(LENGTHS)
        name = self.rng.randbytes(NAME_LEN)
        said = name + bytes((choice,)) + length.to_bytes(4, "big") + self.rng.randbytes(length)
        given_up = MANNERS[choice] == "client gives up"
        with trio.move_on_after(self.rng.random() if given_up else 100) as patience:
            self.results[await self._call(source_port, said, MANNERS[choice])] += 1
        assert given_up or not patience.cancelled_caught, "it hangs"

    async def _call(self, source_port: int, said: bytes, manner: str) -> str:
        first = said[: self.rng.choice((0, MAX_EARLY))]
        source, target = ends(80, self.rng.choice((4, 6)))
        source = dataclasses.replace(source, port=source_port)
        try:
            stream = await self.world.alice.service.open_stream(source, target, first)
        except ConnectFailed:
            return "failed"
        try:
            await self._talk(stream, said, len(first), manner)
        except StreamReset:
            return "reset"
        finally:
            stream.abort()  # unless it has ended
        return "done"

    async def _talk(self, stream: SessionStream, said: bytes, begun: int, manner: str) -> None:
        await stream.send_all(memoryview(said)[begun:])
        if manner == "client resets":
            await trio.sleep(self.rng.random() * 0.1)
            return
        if manner == "client ends first":
            await stream.send_end()
        expected = hashlib.sha256(said).digest() + said
        got = await receive(stream, len(expected))
        assert got == expected
        if manner == "both end at once":
            await stream.send_end()
        if manner in ("client ends first", "service ends first", "both end at once"):
            assert not await receive(stream, 1), "more than was sent"
        await stream.send_end()
        await stream.aclose()

    async def harm(self) -> None:
        """Break tunnels: what is on its way is lost, cut, changed, or held up for a while."""
        while True:
            await trio.sleep(self.rng.random())
            exchanges = [one for one in self.world.network.exchanges[-20:] if one.caller_tunnel]
            if not exchanges:
                continue
            exchange = self.rng.choice(exchanges)
            tunnel = self.rng.choice((exchange.caller_tunnel, exchange.callee_tunnel))
            assert tunnel is not None
            lane, offset = tunnel.outgoing, tunnel.outgoing.carried + self.rng.randrange(3_000)
            match self.rng.randrange(4):
                case 0:
                    tunnel.reset()
                case 1:
                    lane.cut_at = offset
                case 2:
                    lane.flip_at = offset
                case 3:
                    lane.end_at = offset


async def receive(stream: ByteStream, length: int) -> bytes:
    """So many bytes, or fewer if the stream ends before."""
    found = bytearray()
    while len(found) < length and (data := await stream.receive()):
        found += data
    return bytes(found)


def slow_down(monkeypatch: pytest.MonkeyPatch, rng: random.Random, delay: float) -> None:
    receive_at_once = FakeTunnel.receive_pooled

    async def receive_later(tunnel: FakeTunnel) -> Buffer:
        lane = tunnel.incoming
        while not (lane.waiting or lane.fin or lane.broken):
            await lane.changed.park()
        await trio.sleep(delay * rng.random())
        return await receive_at_once(tunnel)

    monkeypatch.setattr(FakeTunnel, "receive_pooled", receive_later)


@pytest.mark.parametrize("survive", [False, True])
@pytest.mark.parametrize("is_harmed", [False, True])
@pytest.mark.parametrize("delay", [0.0, 0.003, 0.08])
async def test_nothing_is_mixed_up_and_nothing_is_left(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    delay: float,
    is_harmed: bool,
    survive: bool,
) -> None:
    rng = random.Random(f"{delay} {is_harmed}")
    slow_down(monkeypatch, rng, delay)
    async with running_world(keep=True, survive=survive) as world:
        storm = Storm(world, rng)
        world.bob.host.streams[80] = storm.serve
        world.network.exits = [FakeWayOut(world.network, number) for number in (3, 7)]
        async with trio.open_nursery() as harming:
            if is_harmed:
                harming.start_soon(storm.harm)
            async with trio.open_nursery() as nursery:
                for worker in range(3):

                    async def work(first_port: int = 1 + 1000 * worker) -> None:
                        for number in range(50):
                            await storm.call(first_port + number)

                    nursery.start_soon(work)
            harming.cancel_scope.cancel()
        await trio.sleep(WAIT_FOR_CALLER + 30)
        assert set(storm.heard.values()) == {1}
        assert storm.results["done"] > 30
        assert world.alice.service.statistics()["open_kept"] > 15
        assert left_behind(world) == Counter()


def left_behind(world: World) -> Counter[str]:
    """What should be gone when nobody calls any more."""
    server, opener = world.bob.service._server, world.alice.service._opener
    assert server is not None
    left = {
        "sessions": len(world.alice.service.sessions()) + len(world.bob.service.sessions()),
        "that wait, at the caller": len(opener._kept) + len(opener._kept._waiting),
        "that wait, at the callee": len(server._idle),
        "being decided": server._admission._pending,
        "offers": len(server._admission._offers._calls),
        "addresses in use": len(server._admission._callers._nat_peers._in_use),
        "callers in the table": len(world.bob.service._table._per_caller),
        "sessions that can be resumed": len(server._resumable),
        "bytes kept": sum(one.service._survival.memory.used for one in (world.alice, world.bob)),
        "services": sum(not connection.is_over for connection in world.bob.host.connections),
    }
    return Counter({name: count for name, count in left.items() if count})
