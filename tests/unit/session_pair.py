"""Both ends of one connection in the hands of a test, and what is said to resume it."""

from __future__ import annotations

import dataclasses
import random

import trio
from session_world import World, crafted, receive_exactly

from phantom_tun.endpoints import ByteStream
from phantom_tun.net.sessions.stream import SessionStream
from phantom_tun.testing.fake_tunnel import Exchange, FakeTunnel
from phantom_tun.tunnel.resumption import Resuming
from phantom_tun.wire.session import Request


class Pair:
    """Both ends of one connection, and of the tunnel under it."""

    def __init__(self, world: World, near: SessionStream, far: SessionStream) -> None:
        self.world, self.near, self.far = world, near, far

    @property
    def exchange(self) -> Exchange:
        """The latest request, and its tunnel."""
        return self.world.network.exchanges[-1]

    @property
    def tunnels(self) -> tuple[FakeTunnel, FakeTunnel]:
        """The caller's and the callee's end of the latest tunnel."""
        near, far = self.exchange.caller_tunnel, self.exchange.callee_tunnel
        assert near is not None
        assert far is not None
        return near, far

    @property
    def is_released(self) -> bool:
        """Whether the links of every tunnel it has had can be used again, at both ends."""
        exchanges = self.world.network.exchanges
        tunnels = [end for each in exchanges for end in (each.caller_tunnel, each.callee_tunnel)]
        return all(tunnel is not None and tunnel.is_released for tunnel in tunnels)

    def kill(self) -> None:
        """The tunnel dies, and both ends notice."""
        self.tunnels[0].reset()

    def count(self, name: str) -> tuple[int, int]:
        near, far = self.world.alice.service, self.world.bob.service
        return near.statistics().get(name, 0), far.statistics().get(name, 0)

    async def end(self) -> None:
        """Somebody at each end lets go of it."""
        self.near.abort()
        self.far.abort()
        await self.wait_gone()

    async def wait_gone(self, within: float = 30) -> None:
        """Wait until neither node lists the connection any more, nor keeps anything of it."""
        with trio.fail_after(within):
            while self.world.alice.service.sessions() or self.world.bob.service.sessions():
                await trio.sleep(0.1)
        for side in (self.world.alice, self.world.bob):
            assert side.service._survival.memory.used == 0
        server = self.world.bob.service._server
        assert server is not None
        assert len(server._resumable) == 0


async def connected(world: World) -> Pair:
    """A connection whose far end is in the test's hands until it is over."""
    far: list[SessionStream] = []

    async def service(stream: ByteStream) -> None:
        assert isinstance(stream, SessionStream)
        far.append(stream)
        await stream.wait_closed()

    world.bob.host.streams[80] = service
    near = await world.connect()
    await trio.sleep(0.1)
    return Pair(world, near, far[0])


async def resumable(world: World) -> Pair:
    """The same, and each end has said something: the caller has the secret."""
    pair = await connected(world)
    await exchange_bytes(pair)
    return pair


async def exchange_bytes(pair: Pair, there: bytes = b"ping", back: bytes = b"pong") -> None:
    """One message each way, while both listen."""
    for sender, receiver, data in ((pair.near, pair.far, there), (pair.far, pair.near, back)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_all, memoryview(data))
            assert await receive_exactly(receiver, len(data)) == data


async def send_pieces(stream: ByteStream, data: bytes, rng: random.Random) -> None:
    """All of ``data`` and END, in pieces of any length."""
    view, start = memoryview(data), 0
    while start < len(data):
        length = rng.choice((1, 100, 5_000, 65_536, 200_000))
        await stream.send_all(view[start : start + length])
        start += length
    await stream.send_end()


def resumption(
    pair: Pair,
    epoch: int = 1,
    *,
    secret: bytes | None = None,
    received: int | None = None,
    **changes: object,
) -> Request:
    """What Alice's node would ask to go on over another tunnel, with changes.

    :param secret: what is proved, instead of the session's.
    """
    server = pair.world.bob.service._server
    assert server is not None
    ((_, session_id),) = server._resumable._all
    changes = {"session_id": session_id, "resumes": True, "epoch": epoch, **changes}
    request = crafted(pair.world, **changes)
    proved = pair.near.secret if secret is None else secret
    assert proved is not None
    resuming = Resuming(proved, epoch, pair.near.received if received is None else received)
    return dataclasses.replace(request, early=resuming.say(request.session_id, request.nonce))
