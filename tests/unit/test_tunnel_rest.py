"""Both ends of a tunnel let go of keystreams while nothing moves."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio
from links_world import loopback_pair, until
from test_links_bulk import End

from phantom_tun.crypto.streams import ChainedStream
from phantom_tun.net.links import rest as rest_module
from phantom_tun.net.links.buffers import POOL
from phantom_tun.net.links.rest import rest
from phantom_tun.net.tunnels.tunnel import Tunnel

SECRETS = [bytes([number]) * 64 for number in range(3)]


class Sleepy:
    """Something that rests together with a tunnel."""

    def __init__(self) -> None:
        self.rests = 0

    def rest(self) -> None:
        self.rests += 1


class Ends:
    """An owner with three layers each way, and whoever takes them off at the other end."""

    def __init__(self, near: End, far: End) -> None:
        self.ends = near, far
        self.owner = Tunnel(near.bulk, layers(outer=True), layers(outer=True)[::-1])
        self.far = Tunnel(far.bulk, layers(outer=False), layers(outer=False)[::-1])
        self.sleepy = Sleepy()
        self.owner.rest_with(self.sleepy)

    async def carry(self, data: bytes, *, back: bool = False) -> bytes:
        """What comes out at the other end."""
        source, sink = (self.far, self.owner) if back else (self.owner, self.far)
        buffer = POOL.take()
        buffer.fill(data)
        await source.send(buffer)
        POOL.give_back(buffer)
        found = b""
        while len(found) < len(data):
            buffer = await sink.receive_pooled()
            found += b"".join(bytes(buffer.view[start:end]) for start, end in buffer.segments)
            POOL.give_back(buffer)
        return found

    def keystreams(self) -> int:
        """How many there are at both ends."""
        tunnels = self.owner, self.far
        found = [layer for one in tunnels for layer in (*one.outgoing, *one.incoming)]
        return sum(layer._update is not None for layer in found)


def layers(*, outer: bool) -> tuple[ChainedStream, ...]:
    return tuple(ChainedStream(secret, outer=outer) for secret in SECRETS)


@pytest.fixture
async def ends(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ends]:
    monkeypatch.setattr(rest_module, "LOOK_EVERY", 0.01)
    async with loopback_pair() as (near, far):
        yield Ends(End(near), End(far))


async def test_what_a_tunnel_brings_is_the_same_whether_it_rested(ends: Ends) -> None:
    rng = random.Random(2)
    with trio.fail_after(30):
        for number in range(12):
            data = rng.randbytes(rng.choice([1, 100, 9_000, 70_000]))
            assert await ends.carry(data, back=bool(number % 2)) == data
            if number % 3:
                assert ends.keystreams()
                await until(lambda: not ends.keystreams())


async def test_what_rests_with_it_does_once_for_each_rest(ends: Ends) -> None:
    with trio.fail_after(30):
        for count in (1, 2):
            await ends.carry(b"x")
            await until(lambda: not ends.keystreams())
            await trio.sleep(0.1)
            assert ends.sleepy.rests == count


async def test_a_tunnel_that_moves_keeps_its_keys(ends: Ends) -> None:
    with trio.fail_after(30):
        await ends.carry(b"x")
        update = ends.owner.outgoing[0]._update
        for _ in range(20):
            await ends.carry(b"x")
            await trio.sleep(0.004)
        assert ends.owner.outgoing[0]._update is update is not None


@pytest.mark.parametrize("end", ["reset", "close"])
async def test_nobody_looks_at_a_released_tunnel(ends: Ends, end: str) -> None:
    await ends.carry(b"x")
    assert rest()._restless == {ends.owner, ends.far}
    for one in (ends.owner, ends.far):
        if end == "reset":
            one.reset()
        else:
            await one.aclose()
    assert not rest()._restless
    await trio.sleep(0.1)
    assert not ends.sleepy.rests


async def test_nobody_is_woken_while_all_tunnels_rest(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(30):
        await ends.carry(b"x")
        await until(lambda: not rest()._restless)
        await trio.sleep(0.05)
        sleeps: list[float] = []
        monkeypatch.setattr(trio, "sleep", sleeps.append)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert not sleeps
