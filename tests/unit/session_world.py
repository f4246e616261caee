"""Two nodes' session services, joined by tunnels in memory: what the session tests start from."""

from __future__ import annotations

import dataclasses
import ipaddress
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from phantom_tun.crypto.certificates import caller_context
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.endpoints import ByteStream, DatagramStream, Endpoint
from phantom_tun.errors import Unreachable
from phantom_tun.ids import EntryId, NetworkId, NodeId
from phantom_tun.net.sessions.datagrams import SessionDatagrams
from phantom_tun.net.sessions.expose import ExposeRules
from phantom_tun.net.sessions.service import SessionService, SessionSettings
from phantom_tun.net.sessions.stream import SessionStream
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.testing.fake_host import (
    FakeDirectory,
    FakeHost,
    FakeIdentities,
    FakeIdentity,
    FakeRecord,
)
from phantom_tun.testing.fake_tunnel import FakeNetwork, Way
from phantom_tun.tunnel.answer import unlock_answer
from phantom_tun.tunnel.channel import CallerHandshake
from phantom_tun.tunnel.request import request_time, seal_request
from phantom_tun.wire.session import Outcome, Protocol, Request

NETWORK = NetworkParams(
    NetworkId(b"N" * 32),
    0,
    ipaddress.IPv4Network("240.0.0.0/4"),
    ipaddress.IPv6Network("2001:2f::/32"),
)
NAT4 = ipaddress.IPv4Network("240.0.128.0/17")
NAT6 = ipaddress.IPv6Network("2001:2f:0:0:8000::/65")
START = time.time()
"""TLS looks at the real clock when it checks a certificate."""

ALICE = FakeIdentity.make("alice", NETWORK, START)
BOB = FakeIdentity.make("bob", NETWORK, START)
EVE = FakeIdentity.make("eve", NETWORK, START)

ENTRY = NodeId(b"E" * 32), EntryId(b"e" * 16)
SOURCE_PORT = 51_234


class TrioTime:
    """Seconds since the epoch in virtual time; :attr:`shift` makes the clock wrong."""

    def __init__(self) -> None:
        self.shift = 0.0

    def now(self) -> float:
        return START + trio.current_time() + self.shift


@dataclass
class Side:
    """One node."""

    identity: FakeIdentity
    host: FakeHost
    rules: ExposeRules
    clock: TrioTime
    service: SessionService
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Of the service: who cancels it stops the node."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            await self.service.run(self.host, task_status=task_status)


class World:
    """Alice and Bob. Bob's way in is :data:`ENTRY`; tests change what they like."""

    def __init__(self, nursery: trio.Nursery, settings: SessionSettings) -> None:
        self.nursery = nursery
        self.rng = random.Random(11)
        self.network = FakeNetwork(nursery, self.rng)
        self.directory = FakeDirectory()
        self.alice = self._side(ALICE, settings)
        self.bob = self._side(BOB, settings)
        self.way = Way(self.bob.service.handle_request, "bob")
        self.network.ways[ENTRY] = self.way
        assert BOB.ap4 is not None
        assert ALICE.ap4 is not None
        record = FakeRecord.of(BOB, (*ENTRY, START + 10_000))
        self.directory.records = {BOB.ap4: record, BOB.ap6: record}
        self.directory.leases = {ALICE.ap4: ALICE.signing.public}

    def _side(self, identity: FakeIdentity, settings: SessionSettings) -> Side:
        clock, rules = TrioTime(), ExposeRules(None)
        service = SessionService(
            network=NETWORK,
            identities=FakeIdentities(identity),
            directory=self.directory,
            connector=self.network,
            rules=rules,
            settings=settings,
            clock=clock,
            rng=self.rng,
        )
        return Side(identity, FakeHost(), rules, clock, service)

    async def start(self) -> None:
        for side in (self.alice, self.bob):
            await self.nursery.start(side.run)
        # Requests that are as old as the service itself are refused.
        await trio.sleep(100)

    async def connect(
        self, port: int = 80, *, over: int = 6, source_port: int = SOURCE_PORT
    ) -> SessionStream:
        source, target = ends(port, over)
        return await self.alice.service.open_stream(
            dataclasses.replace(source, port=source_port), target
        )

    async def connect_udp(self, port: int = 53, *, over: int = 6) -> SessionDatagrams:
        return await self.alice.service.open_datagrams(*ends(port, over))

    async def ping(self, *, over: int = 6) -> SessionDatagrams:
        source, target = ends(0, over)
        return await self.alice.service.open_echo(Endpoint(source.address, 0), target)

    def counts(self) -> dict[str, int]:
        """Bob's counters."""
        return self.bob.service.statistics()


def ends(port: int, over: int = 6) -> tuple[Endpoint, Endpoint]:
    """Alice's and Bob's end of a connection over IPv4 or IPv6."""
    source, target = (ALICE.ap6, BOB.ap6) if over == 6 else (ALICE.ap4, BOB.ap4)
    assert source is not None
    assert target is not None
    return Endpoint(source, SOURCE_PORT), Endpoint(target, port)


@asynccontextmanager
async def running_world(
    *,
    answer_echo: bool = True,
    keep: bool = False,
    survive: bool = True,
    ephemeral: frozenset[str] = frozenset(),
    **limits: int,
) -> AsyncIterator[World]:
    """Both services run; port 80 echoes a stream, UDP port 53 datagrams; both are exposed."""
    if not survive:
        limits["resume_memory"] = 0
    settings = SessionSettings(
        nat4=NAT4, nat6=NAT6, answer_echo=answer_echo, keep=keep, ephemeral=ephemeral, **limits
    )
    async with trio.open_nursery() as nursery:
        world = World(nursery, settings)
        world.bob.rules.expose("bob", "tcp", 80)
        world.bob.rules.expose("bob", "udp", 53)
        world.bob.host.streams[80] = echo
        world.bob.host.datagrams[53] = echo_datagrams
        await world.start()
        yield world
        nursery.cancel_scope.cancel()


async def echo(stream: ByteStream) -> None:
    """A service that sends back what it gets and ends when the other side does."""
    while data := bytes(await stream.receive()):
        await stream.send_all(memoryview(data))
    await stream.send_end()
    await stream.aclose()


async def echo_datagrams(stream: DatagramStream) -> None:
    """The same for datagrams."""
    while (message := await stream.receive()) is not None:
        await stream.send(message)
    await stream.aclose()


async def receive_all(stream: ByteStream) -> bytes:
    """Everything up to END."""
    found = bytearray()
    while data := await stream.receive():
        found += data
    return bytes(found)


async def receive_exactly(stream: ByteStream, length: int) -> bytes:
    """So many bytes and no more."""
    found = bytearray()
    while len(found) < length:
        data = await stream.receive()
        assert data, "the stream ended"
        found += data
    assert len(found) == length
    return bytes(found)


# --- requests by hand ----------------------------------------------------------------------------

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
