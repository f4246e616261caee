"""Worker processes of a relay, over real TLS (docs/spec/workers.md)."""

from __future__ import annotations

import dataclasses
import random
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from fresh_python import printed_by
from links_world import LOOPBACK, TlsNode, listening, receive_all, until, use
from test_links_door import pass_door, read_answer, send_raw, token, upgrade, visit
from workers_world import BACK, HERE, ONWARD, THERE, relay_world

from phantom_tun.config import LogConfig
from phantom_tun.crypto.streams import ChainedStream
from phantom_tun.daemon.workers import WorkerSpawner
from phantom_tun.errors import LinkBroken
from phantom_tun.ids import NodeId
from phantom_tun.net.links import rest as rest_module
from phantom_tun.net.links import workers as workers_module
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.links import LinkLimits
from phantom_tun.net.links.worker_channel import channel_pair
from phantom_tun.net.links.workers import WorkerPlan
from phantom_tun.wire import worker as wire
from phantom_tun.wire.door import LinkKind
from phantom_tun.wire.frames import Frame, pack_frame

DATA = random.Random(7).randbytes(700_000)


def undone(data: bytes, secret: bytes) -> bytes:
    """What the owner of a tunnel makes of what a hop made of ``data``."""
    view = memoryview(bytearray(data + bytes(32)))
    ChainedStream(secret, outer=True).process(view, 0, len(data))
    return bytes(view[: len(data)])


async def through(world, data: bytes = DATA) -> None:
    """A whole tunnel to the sink, which echoes."""
    there = undone(data, THERE)  # a keystream that the hop takes off again
    assert undone(await use(await world.tunnel(), there), BACK) == data


# --- what works as without workers ----------------------------------------------------------------


async def test_tunnels_are_carried_by_workers(nursery):
    async with relay_world() as world:
        for _ in range(6):
            await through(world)
        assert world.joined == 6
        assert set(world.sink.handlers.openings) == {ONWARD}
        # The relay's own process has dialed nothing but signalling.
        assert all(found.pool.ref is None for found in world.relay.links._neighbours.values())


async def test_tunnels_spread_over_the_workers(nursery):
    async with relay_world() as world:
        bulks = [await world.tunnel() for _ in range(8)]
        await until(lambda: world.joined == 8)
        assert all(worker.links >= 4 for worker in world.relay.links._workers._running)
        for bulk in bulks:
            assert len(await use(bulk)) == 4


async def test_uses_for_the_relay_itself_reach_it(nursery):
    async with relay_world() as world:
        for number in range(5):
            bulk = await world.source.links.open_bulk(world.relay.ref, HERE)
            assert await use(bulk, DATA) == DATA
            await through(world, DATA[: 1000 * number + 1])
        assert world.joined == 5
        assert world.count("bulk_broken") == 0


async def test_signals_and_calls_reach_it(nursery):
    async with relay_world() as world:
        await world.source.links.signal(world.relay.ref, b"signal")
        assert (
            await world.source.links.call(world.relay.ref, bytes(range(200)) * 200)
            == ((bytes(range(200)) * 200)[::-1])
        )
        await until(lambda: world.relay.handlers.signals == [b"signal"])
        assert {peer.address for peer in world.relay.handlers.peers} == {LOOPBACK}
        assert await world.relay.links.call(world.source.ref, b"back") == b"kcab"
        assert world.count("signalling_links") == 1


async def test_strangers_see_the_web_page(nursery):
    async with relay_world() as world:
        for _ in range(3):
            connection = await visit(world.relay)
            await connection.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await read_answer(connection)).startswith(b"HTTP/1.1 200 OK\r\n")
            assert world.count("strangers") == 1
            connection.close()
            await until(lambda: world.count("strangers") == 0)


async def test_workers_answer_http_without_tls_in_clear(nursery):
    async with relay_world() as world:
        answer = await send_raw(world.relay, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"<title>400 The plain HTTP request was sent to HTTPS port</title>" in answer
        await until(lambda: world.count("strangers") == 0)


async def test_a_token_works_at_one_worker_only(nursery):
    async with relay_world() as world:
        used = token(world.relay.door)
        answers = []
        for _ in range(3):
            connection = await visit(world.relay)
            await connection.write_all(upgrade(world.relay.door, used))
            answers.append((await read_answer(connection))[:12])
            connection.close()
        assert answers == [b"HTTP/1.1 101", b"HTTP/1.1 404", b"HTTP/1.1 404"]


async def test_strangers_are_limited_over_all_workers(nursery):
    async with relay_world(limits=LinkLimits(strangers_per_address=3)) as world:
        visitors = [await visit(world.relay) for _ in range(3)]
        with pytest.raises(OSError):
            await visit(world.relay)
        assert world.count("drop_stranger_limit") == 1
        for visitor in visitors:
            visitor.close()
        await until(lambda: world.count("strangers") == 0)
        (await visit(world.relay)).close()


async def test_a_stranger_whose_place_is_needed_is_dropped_by_its_worker(nursery):
    async with relay_world(limits=LinkLimits(strangers=2)) as world:
        first = await visit(world.relay)
        others = [await visit(world.relay) for _ in range(2)]
        with trio.fail_after(30):
            with pytest.raises(LinkBroken):
                await first.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                while await read_answer(first):
                    pass
                raise LinkBroken("the end")
        assert world.count("drop_stranger_crowd") == 1
        assert world.count("strangers") == 2
        for other in others:
            await other.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await read_answer(other)).startswith(b"HTTP/1.1 200 OK\r\n")
            other.close()
        first.close()
        await until(lambda: world.count("strangers") == 0)
        await through(world)


async def test_links_of_a_neighbour_are_limited_over_all_workers(nursery):
    limits = LinkLimits(bulk_per_neighbour=2, spares=0)
    async with relay_world(limits=limits) as world:
        bulks = [await world.tunnel() for _ in range(2)]
        await until(lambda: world.joined == 2)
        third = await world.tunnel()
        with pytest.raises(LinkBroken):
            await receive_all(third)
        assert world.count("drop_bulk_limit") == 1
        for bulk in bulks:
            assert len(await use(bulk)) == 4


async def test_tunnels_are_limited_over_all_workers(nursery):
    async with relay_world(limits=LinkLimits(relayed=3, spares=0)) as world:
        bulks = [await world.tunnel() for _ in range(3)]
        await until(lambda: world.joined == 3)
        with pytest.raises(LinkBroken), trio.fail_after(30):
            await receive_all(await world.tunnel())
        assert world.count("drop_relay_limit") == 1
        for bulk in bulks:
            await use(bulk)
        await through(world)


async def test_a_neighbour_that_can_not_be_dialed_is_reached_through_the_relay_itself(nursery):
    async with relay_world(sink_dialable=False) as world:
        await world.sink.links.ensure(world.relay.ref)
        for _ in range(3):
            await through(world)
        assert world.joined == 3


async def test_a_neighbour_whose_port_is_shut_is_asked_to_dial(nursery):
    async with relay_world() as world:
        await world.sink.links.ensure(world.relay.ref)
        with listening() as shut:
            port = shut.getsockname()[1]
        world.onward = dataclasses.replace(world.onward, port=port)
        await through(world)
        assert world.joined == 1


async def test_an_unreachable_neighbour_resets_the_tunnel(nursery):
    async with relay_world() as world:
        world.onward = dataclasses.replace(world.onward, node_id=NodeId(bytes(32)))
        bulk = await world.tunnel()
        with pytest.raises(LinkBroken):
            await receive_all(bulk)
        await until(lambda: world.unreachable == 1)
        assert world.joined == 0


async def test_statistics_are_those_of_all_processes(nursery):
    async with relay_world(limits=LinkLimits(spares=0)) as world:
        bulks = [await world.tunnel() for _ in range(4)]
        await until(lambda: world.joined == 4)
        assert world.count("bulk_in_use") == 4
        assert world.count("bulk_of_neighbours") == 4
        info = {found.node_id: found for found in world.relay.links.neighbours()}
        assert info[world.sink.ref.node_id].bulk_in_use == 4
        assert info[world.source.ref.node_id].bulk_in_use == 4
        for bulk in bulks:
            await use(bulk)
        await until(lambda: world.count("bulk_opened") == 4)
        await until(lambda: world.count("bulk_idle") == 4)
        assert world.count("bulk_in_use") == 0
        info = {found.node_id: found for found in world.relay.links.neighbours()}
        assert info[world.sink.ref.node_id].bulk_idle == 4
        assert world.count("tls_accepted") >= 5


async def test_a_tunnel_at_rest_has_a_task_in_its_worker_and_one_in_the_node(nursery, monkeypatch):
    monkeypatch.setattr(rest_module, "LOOK_EVERY", 0.01)
    async with relay_world(limits=LinkLimits(spares=0)) as world:

        async def keep(bulk: Bulk) -> None:
            bulk.kept = True
            kept.append(bulk)

        async def lay(count: int) -> int:
            bulks.extend([await world.tunnel() for _ in range(count)])
            await until(lambda: len(kept) == world.joined == len(bulks))
            await until(lambda: not rest_module.rest()._restless)
            await until(lambda: len(rest_module.rest()._sleepers) == 3 * len(bulks))
            await trio.testing.wait_all_tasks_blocked(0.05)
            return trio.lowlevel.current_statistics().tasks_living

        kept: list[Bulk] = []
        bulks: list[Bulk] = []
        world.sink.handlers.on_bulk = keep
        before = await lay(2)
        assert await lay(10) == before + 20
        for bulk, far in zip(bulks, kept, strict=True):
            bulk.reset()
            far.reset()
        await until(lambda: not rest_module.rest()._sleepers)


async def test_a_link_counts_as_load_of_its_worker_while_the_node_carries_its_tunnel(nursery):
    async with relay_world(workers=1, sink_dialable=False, limits=LinkLimits(spares=0)) as world:
        await world.sink.links.ensure(world.relay.ref)
        (worker,) = world.relay.links._workers._running
        await until(lambda: worker.load == 0)
        bulk = await world.tunnel()
        await until(lambda: world.joined == 1)
        assert worker.load == 1
        assert world.count("relayed") == 1
        assert len(await use(bulk)) == 4
        await until(lambda: not world.count("relayed"))
        assert worker.load == 1  # for the next use
        bulk = await world.tunnel()
        bulk.reset()
        await until(lambda: worker.load == 0)


# --- ends -----------------------------------------------------------------------------------------


async def test_a_reset_goes_through_a_worker_both_ways(nursery):
    async with relay_world() as world:
        ended = trio.Event()

        async def hold(bulk: Bulk) -> None:
            with pytest.raises(LinkBroken):
                await receive_all(bulk)
            ended.set()

        world.sink.handlers.on_bulk = hold
        bulk = await world.tunnel()
        await until(lambda: world.joined == 1)
        bulk.reset()
        with trio.fail_after(30):
            await ended.wait()

        async def refuse(bulk: Bulk) -> None:
            bulk.reset()

        world.sink.handlers.on_bulk = refuse
        with pytest.raises(LinkBroken), trio.fail_after(30):
            await receive_all(await world.tunnel())
        world.sink.handlers.on_bulk = None
        await through(world)


async def test_a_handler_that_resets_or_leaves_early_is_obeyed(nursery):
    async with relay_world(limits=LinkLimits(fin_deadline=0.2, spares=0)) as world:

        async def reset(bulk: Bulk) -> None:
            bulk.reset()

        async def leave(bulk: Bulk) -> None:
            await bulk.send_fin()

        for handler in (reset, leave):
            world.relay.handlers.on_bulk = handler
            bulk = await world.source.links.open_bulk(world.relay.ref, HERE)
            if handler is leave:
                assert await receive_all(bulk) == b""  # and then no FIN comes from us
            with pytest.raises(LinkBroken), trio.fail_after(30):
                while True:
                    await bulk.send_bytes(b"x")
                    await trio.sleep(0.01)
            bulk.reset()
            await until(lambda: world.count("bulk_of_neighbours") == 0)


async def test_a_broken_framing_closes_the_link_and_is_counted(nursery):
    async with relay_world() as world:
        for bad in (pack_frame(Frame.DATA, b"x"), b"\xff\0\0\0", pack_frame(Frame.PING)):
            connection, nonce = await pass_door(world.relay)
            auth = world.relay.door.auth(world.source.identity, nonce, LinkKind.BULK)
            await connection.write_all(pack_frame(Frame.AUTH, auth))
            await connection.write_all(bad)
            assert await read_answer(connection) == b""
            connection.close()
        await until(lambda: world.count("drop_bulk_violation") == 3)
        await through(world)


async def test_a_dead_neighbours_tunnels_and_links_are_closed(nursery):
    async with relay_world() as world:
        bulk = await world.tunnel()
        await until(lambda: world.joined == 1)
        world.relay.links._neighbours[world.sink.ref.node_id].close()
        with pytest.raises(LinkBroken), trio.fail_after(30):
            await receive_all(bulk)
        for worker in world.workers.started:
            assert not worker.ended


@pytest.mark.parametrize("banned", ["source", "sink"])
async def test_a_banned_node_loses_what_workers_carry_for_it(nursery, banned):
    async with relay_world() as world:
        bulk = await world.tunnel()
        await until(lambda: world.joined == 1)
        node_id = getattr(world, banned).ref.node_id
        world.relay.links.bar(lambda found, _address: found == node_id)
        with pytest.raises(LinkBroken), trio.fail_after(30):
            await receive_all(bulk)
        with pytest.raises(LinkBroken), trio.fail_after(30):
            again = await world.tunnel()
            await receive_all(again)
        assert node_id not in {found.node_id for found in world.relay.links.neighbours()}


async def test_a_killed_worker_resets_its_tunnels_and_is_replaced(nursery, monkeypatch):
    monkeypatch.setattr(workers_module, "FIRST_PAUSE", 0.01)
    async with relay_world(limits=LinkLimits(spares=0)) as world:
        bulks = [await world.tunnel() for _ in range(4)]
        await until(lambda: world.joined == 4)
        world.workers.started[0].kill()
        lost = 0
        for bulk in bulks:
            try:
                with trio.fail_after(30):
                    await bulk.send_fin()
                    assert await receive_all(bulk) == b""
                await bulk.aclose()
            except LinkBroken:
                lost += 1
                bulk.reset()
        assert lost == 2
        await until(lambda: world.count("workers_ended") == 1 and world.count("workers") == 2)
        assert len(world.workers.started) == 3
        await until(lambda: world.count("bulk_in_use") == 0)
        for _ in range(4):
            await through(world)


async def test_without_any_worker_the_node_does_it_all(nursery):
    async def spawn(_end: socket.socket) -> None:
        raise OSError("no processes left")

    with listening() as first, listening() as second:
        async with trio.open_nursery() as own:
            node = TlsNode(first, limits=LinkLimits(), workers=WorkerPlan(2, spawn))
            other = TlsNode(second, limits=LinkLimits())
            for each in (node, other):
                await own.start(each.run)
            assert await use(await other.links.open_bulk(node.ref, HERE), DATA) == DATA
            assert node.links.statistics()["workers"] == 0
            await until(lambda: node.links.statistics().get("workers_ended", 0) >= 2)
            own.cancel_scope.cancel()


class IdleProcess:
    """A worker that does nothing; the test holds its end of the channel."""

    def __init__(self) -> None:
        self.killed = trio.Event()
        self.end: socket.socket | None = None

    async def spawn(self, end: socket.socket) -> IdleProcess:
        if self.end is None:
            self.end = end.dup()
        return self

    def kill(self) -> None:
        self.killed.set()

    async def wait(self) -> int:
        await self.killed.wait()
        return -9


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(workers_module, "END_WITHIN", 0)


@asynccontextmanager
async def idle_process() -> AsyncIterator[tuple[TlsNode, IdleProcess]]:
    """A node that doesn't listen, with such a worker."""
    process = IdleProcess()
    node = TlsNode(None, limits=LinkLimits(), workers=WorkerPlan(1, process.spawn))
    async with trio.open_nursery() as own:
        await own.start(node.run)
        while process.end is None:
            await trio.sleep(0.001)
        with process.end:
            yield node, process
        own.cancel_scope.cancel()


async def test_a_worker_that_hangs_is_ended(autojump_clock):
    async with idle_process() as (node, process):
        began = trio.current_time()
        await process.killed.wait()
        assert trio.current_time() - began >= workers_module.LOOK_EVERY * workers_module.START_LOOKS
        await trio.sleep(0.1)
        assert node.links.statistics()["workers_ended"] == 1


async def test_a_worker_that_hangs_after_its_start_is_ended_sooner(autojump_clock):
    async with idle_process() as (node, process):
        process.end.send(wire.pack(wire.Ready()))
        await until(lambda: node.links.statistics()["workers"] == 1)
        began = trio.current_time()
        await process.killed.wait()
        assert trio.current_time() - began < 50


@pytest.mark.parametrize(
    "nonsense",
    [
        b"garbage",
        wire.pack(wire.Left(5)),
        wire.pack(wire.Arrived(5, bytes(32), 2)),
        wire.pack(wire.Forget(bytes(32))),
        wire.pack(wire.Auth(1, bytes(32), bytes(32), bytes(32), 9)),
    ],
)
async def test_a_worker_that_says_nonsense_is_ended(impatient, nursery, nonsense):
    async with idle_process() as (node, process):
        process.end.send(nonsense)
        with trio.fail_after(30):
            await process.killed.wait()
        assert node.links.statistics()["drop_worker_violation"] == 1


# --- what workers know ----------------------------------------------------------------------------


async def test_the_identity_key_stays_with_the_node(impatient, nursery):
    async with idle_process() as (node, process):
        told = process.end.recv(100_000)
        assert isinstance(wire.unpack_to_worker(told), wire.Setup)
        assert node.certificate.key_der in told
        assert node.identity.seed not in told


# --- real processes -------------------------------------------------------------------------------


async def test_real_processes_carry_tunnels_and_end_with_the_node(nursery, monkeypatch):
    monkeypatch.setattr(workers_module, "FIRST_PAUSE", 0.01)
    processes: list[trio.Process] = []

    async def spawn(end: socket.socket) -> trio.Process:
        processes.append(await WorkerSpawner(LogConfig(level="error"))(end))
        return processes[-1]

    async with relay_world(limits=LinkLimits(spares=0), spawn=spawn) as world:
        await through(world)
        bulks = [await world.tunnel() for _ in range(4)]
        await until(lambda: world.joined == 5)
        statuses = [Path(f"/proc/{process.pid}/status").read_text() for process in processes]
        for status in statuses:
            assert "CapEff:\t0000000000000000\n" in status
            assert "NoNewPrivs:\t1\n" in status
        processes[0].send_signal(signal.SIGTERM)  # is the daemon's business
        processes[0].kill()
        lost = 0
        for bulk in bulks:
            try:
                await bulk.send_fin()
                await receive_all(bulk)
            except LinkBroken:
                lost += 1
            bulk.reset()
        assert lost == 2
        await until(lambda: world.count("workers_ended") == 1 and world.count("workers") == 2)
        await through(world)
    assert len(processes) == 3
    assert all(process.returncode is not None for process in processes)
    assert [process.returncode for process in processes[1:]] == [0, 0]


async def test_a_worker_that_is_told_nothing_ends_with_its_channel(nursery):
    near, far = channel_pair()
    with far:
        process = await WorkerSpawner(LogConfig(level="error"))(far)
    near.close()
    with trio.fail_after(60):
        assert await process.wait() == 0


def test_a_worker_imports_only_what_a_relay_needs():
    program = (
        "import sys, phantom_tun.daemon.worker_start\n"
        "phantom_tun.daemon.worker_start.import_logs_alone()\n"
        "import phantom_tun.daemon.worker_process\n"
        "unwanted = {'scapy', 'typer', 'pyroute2', 'pytun', 'dns', 'asyncio', 'pygments'}\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & unwanted))\n"
        "print(sorted(name for name in sys.modules if name.startswith('phantom_tun.netdb')))\n"
    )
    assert printed_by(program) == "[]\n[]\n"
