"""Sessions over whole routing tunnels: caller, hops, exit, entry, callee, links in memory."""

from __future__ import annotations

import dataclasses
import ipaddress
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from test_tunnels import both_paths, world
from trio.testing import MockClock
from whole_network import exchange

from phantom_tun.endpoints import ByteStream, DatagramStream, Endpoint
from phantom_tun.errors import StreamReset
from phantom_tun.ids import NetworkId
from phantom_tun.net.sessions.expose import ExposeRules
from phantom_tun.net.sessions.resuming import RESUME_WITHIN, WAIT_FOR_CALLER
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

NETWORK = NetworkParams(
    NetworkId(b"N" * 32),
    0,
    ipaddress.IPv4Network("240.0.0.0/4"),
    ipaddress.IPv6Network("2001:2f::/32"),
)
SETTINGS = SessionSettings(
    ipaddress.IPv4Network("240.0.128.0/17"), ipaddress.IPv6Network("2001:2f:0:0:8000::/65")
)
START = time.time()
CALLER, CALLEE = (FakeIdentity.make("default", NETWORK, START) for _ in range(2))
MARKER = b"a text that nobody between the two ends may ever see "


class TrioTime:
    def now(self) -> float:
        return START + trio.current_time()


@dataclasses.dataclass
class Ends:
    """The two session services, the nodes under them, and the medium."""

    caller: SessionService
    callee: SessionService
    host: FakeHost
    network: Any
    nodes: list[Any]

    async def connect(self, first: bytes = b"") -> SessionStream:
        source, target = Endpoint(CALLER.ap6, 50_000), Endpoint(CALLEE.ap6, 80)
        return await self.caller.open_stream(source, target, first)

    async def wait_over(self, within: float = 30) -> None:
        with trio.fail_after(within):
            while self.caller.sessions() or self.callee.sessions():
                await trio.sleep(0.1)


@asynccontextmanager
async def sessions(exit_hops: int, entry_hops: int, *, spare: bool = False) -> AsyncIterator[Ends]:
    """``spare``: each end has a second path through other nodes."""
    hops = exit_hops + entry_hops
    async with (
        world(2 + hops * (2 if spare else 1)) as (network, nodes),
        trio.open_nursery() as nursery,
    ):
        directory, host = FakeDirectory(), FakeHost()
        services = []
        for identity, node in ((CALLER, nodes[0]), (CALLEE, nodes[-1])):
            rules = ExposeRules(None)
            rules.expose("default", "tcp", 80)
            rules.expose("default", "udp", 53)
            service = SessionService(
                network=NETWORK,
                identities=FakeIdentities(identity),
                directory=directory,
                connector=node.connector,
                rules=rules,
                settings=SETTINGS,
                clock=TrioTime(),
                rng=random.Random(8),
            )
            await nursery.start(service.run, host)
            node.handler = service.handle_request
            services.append(service)
        _, entry_path, entry_node = await both_paths(nodes, exit_hops, entry_hops)
        routes = [(entry_node, entry_path.entry_id, START + 1e6)]
        if spare:
            others = [nodes[0], *nodes[1 + hops : -1], nodes[-1]]
            _, entry_path, entry_node = await both_paths(others, exit_hops, entry_hops, first=3)
            routes.append((entry_node, entry_path.entry_id, START + 1e6))
        directory.records[CALLEE.ap6] = FakeRecord.of(CALLEE, *routes)
        host.streams[80] = echo
        host.datagrams[53] = echo_datagrams
        await trio.sleep(100)
        yield Ends(services[0], services[1], host, network, nodes)
        nursery.cancel_scope.cancel()


async def echo(stream: ByteStream) -> None:
    try:
        while data := await stream.receive():
            await stream.send_all(memoryview(bytes(data)))
        await stream.send_end()
    except StreamReset:
        stream.abort()
    await stream.aclose()


async def echo_datagrams(stream: DatagramStream) -> None:
    while (message := await stream.receive()) is not None:
        await stream.send(message)
    await stream.aclose()


def bulk_links(ends: Ends) -> int:
    """Bulk links that were ever made between any two nodes."""
    return len({found.link for found in ends.network.recorded if found.kind == "bulk"})


@pytest.mark.parametrize(("exit_hops", "entry_hops"), [(0, 0), (1, 0), (0, 1), (3, 3)])
async def test_bytes_go_through_and_nobody_between_can_read_them(
    autojump_clock: MockClock, exit_hops: int, entry_hops: int
) -> None:
    async with sessions(exit_hops, entry_hops) as ends:
        data = MARKER * 20_000
        assert await exchange(await ends.connect(), data) == data
        await ends.wait_over()
        assert sum(len(found.data) for found in ends.network.recorded) > 2 * len(data)
        for secret in (MARKER, CALLER.certificate.der[40:80], CALLEE.ap6.packed, CALLER.ap6.packed):
            assert not any(secret in found.data for found in ends.network.recorded)


@pytest.mark.parametrize(("exit_hops", "entry_hops"), [(0, 0), (1, 0), (0, 1), (3, 3)])
@pytest.mark.parametrize("pause", [0.0, 1.0])
async def test_first_bytes_go_with_the_request_and_the_service_s_with_the_answer(
    autojump_clock: MockClock, exit_hops: int, entry_hops: int, pause: float
) -> None:
    """Or behind it, if the service takes its time: nothing is lost where they part."""

    async def page(stream: ByteStream) -> None:
        asked = bytes(await stream.receive())
        await trio.sleep(pause)
        for _ in range(3):
            await stream.send_all(memoryview(asked * 3_000))
        await stream.send_end()
        while await stream.receive():
            pass
        await stream.aclose()

    async with sessions(exit_hops, entry_hops) as ends:
        await exchange(await ends.connect(), b"hello")
        await ends.wait_over()
        ends.host.streams[80] = page
        stream = await ends.connect(b"first")
        assert await exchange(stream, b"") == b"first" * 9_000
        await ends.wait_over()
        assert ends.callee.statistics()["early_taken"] == 1
        assert not any(b"first" in found.data for found in ends.network.recorded)


@pytest.mark.parametrize("is_reset", [False, True])
async def test_connections_one_after_the_other_use_the_same_links(
    autojump_clock: MockClock, is_reset: bool
) -> None:
    """Also if each one is reset by the application."""
    async with sessions(2, 2) as ends:
        used = []
        for _ in range(12):
            stream = await ends.connect()
            if is_reset:
                await stream.send_all(memoryview(bytes(1000)))
                stream.abort()
            else:
                assert await exchange(stream, bytes(1000)) == bytes(1000)
            await ends.wait_over()
            await trio.sleep(1)
            used.append(bulk_links(ends))
        assert used[-1] == used[5], "no link was lost"


@pytest.mark.parametrize(("exit_hops", "entry_hops"), [(0, 0), (2, 1)])
async def test_each_end_lists_which_of_its_paths_carries_a_connection(
    autojump_clock: MockClock, exit_hops: int, entry_hops: int
) -> None:
    async with sessions(exit_hops, entry_hops) as ends:
        stream = await ends.connect()
        await trio.sleep(0.1)
        assert [found.path_number for found in ends.caller.sessions()] == [1]
        assert [found.path_number for found in ends.callee.sessions()] == [2]
        stream.abort()
        await ends.wait_over()


async def test_datagrams_and_pings_go_through(autojump_clock: MockClock) -> None:
    async with sessions(3, 3) as ends:
        source, target = Endpoint(CALLER.ap6, 5000), Endpoint(CALLEE.ap6, 53)
        flow = await ends.caller.open_datagrams(source, target)
        ping = await ends.caller.open_echo(Endpoint(source.address, 0), Endpoint(target.address, 0))
        for length in (0, 1, 1200, 65_507):
            await flow.send(bytes(length))
            assert await flow.receive() == bytes(length)
        await ping.send(bytes(60))
        assert await ping.receive() == bytes(60)
        await flow.aclose()
        await ping.aclose()
        await ends.wait_over()


@pytest.mark.parametrize("victim", [1, 3, 4, 6])
async def test_a_killed_hop_costs_no_byte_if_there_is_another_path(
    autojump_clock: MockClock, victim: int
) -> None:
    """In the middle of a transfer both ways, of the path that carries it."""
    async with sessions(3, 3, spare=True) as ends:
        data = random.Random(victim).randbytes(2_000_000)
        passed, killed = 0, False

        def count(item: Any) -> bytes:
            nonlocal passed, killed
            passed += len(item.data) if item.kind == "bulk" else 0
            if passed > 9_000_000 and not killed:
                killed = True
                way, back = ends.caller.sessions()[0].path_number, ends.callee.sessions()[0]
                number = way if victim < 4 else back.path_number
                ends.network.kill(ends.nodes[victim + 6 * (number > 2)].ref.node_id)
            return bytes(item.data)

        stream = await ends.connect()
        ends.network.on_transfer = count
        assert await exchange(stream, data) == data
        assert killed
        assert stream.resumed == 1
        await ends.wait_over()
        assert ends.callee.statistics()["sessions_resumed"] == 1


async def test_a_dead_entry_path_is_missed_though_its_connection_lives_on(
    autojump_clock: MockClock,
) -> None:
    async with sessions(3, 3, spare=True) as ends:
        stream = await ends.connect()
        await stream.send_all(memoryview(b"x"))
        assert bytes(await stream.receive()) == b"x"
        callee = ends.nodes[-1]
        assert callee.connector.entry_count("default") == 2
        number = ends.callee.sessions()[0].path_number
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive)
            ends.network.kill(ends.nodes[5 + 6 * (number > 2)].ref.node_id)
            await trio.sleep(20)
            assert callee.connector.entry_count("default") == 1
            nursery.cancel_scope.cancel()
        assert stream.resumed == 1
        assert ends.callee.sessions()[0].path_number != number
        stream.abort()
        await ends.wait_over()


async def test_a_killed_hop_of_the_only_path_is_a_reset_after_a_minute(
    autojump_clock: MockClock,
) -> None:
    async with sessions(3, 3) as ends:
        stream = await ends.connect()
        await stream.send_all(memoryview(b"x"))
        assert bytes(await stream.receive()) == b"x"
        ends.network.kill(ends.nodes[3].ref.node_id)
        began = trio.current_time()
        with pytest.raises(StreamReset):
            await stream.receive()
        assert trio.current_time() - began == pytest.approx(RESUME_WITHIN, abs=30)
        stream.abort()
        await ends.wait_over(WAIT_FOR_CALLER + 30)


@pytest.mark.parametrize("hop", [1, 4, 7])
async def test_a_bit_flipped_on_the_way_costs_no_byte(autojump_clock: MockClock, hop: int) -> None:
    async with sessions(3, 3) as ends:
        flipped = []

        def flip(item: Any) -> bytes:
            data: bytes = item.data
            here = item.receiver == ends.nodes[hop].ref.node_id
            if item.kind == "bulk" and here and len(data) > 30_000 and not flipped:
                flipped.append(True)
                return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
            return data

        stream = await ends.connect()
        await stream.send_all(memoryview(b"x"))
        assert bytes(await stream.receive()) == b"x"
        ends.network.on_transfer = flip
        assert await exchange(stream, MARKER * 20_000) == MARKER * 20_000
        assert flipped
        assert stream.resumed == 1
        await ends.wait_over()
