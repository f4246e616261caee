"""A relay with worker processes between two nodes, over real TLS on the loopback interface. The
workers are tasks of the test's own process, or real processes."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from links_world import LOOPBACK, TlsNode, echo, listening, until

from phantom_tun.daemon.worker_process import serve
from phantom_tun.errors import WorldError
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.links import LinkLimits
from phantom_tun.net.links.workers import Spawn, WorkerPlan
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.worker import Join

HERE, RELAYED = b"h" * 64, b"r" * 64
"""Openings: for the relay itself, and to be joined with the next node."""
ONWARD = b"o" * 64
"""What the next node sees."""
THERE, BACK = b"t" * 64, b"b" * 64


class TaskProcess:
    """A worker that is a task."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self.ended = False

    async def run(self, end: socket.socket) -> None:
        with self._scope:
            await serve(end)
        end.close()
        self.ended = True
        self._over.set()

    def kill(self) -> None:
        self._scope.cancel()

    async def wait(self) -> int:
        await self._over.wait()
        return 0


@dataclass
class TaskWorkers:
    """Starts them."""

    nursery: trio.Nursery
    started: list[TaskProcess] = field(default_factory=list)

    async def spawn(self, end: socket.socket) -> TaskProcess:
        process = TaskProcess()
        self.started.append(process)
        self.nursery.start_soon(process.run, end.dup())
        return process


@dataclass
class World:
    """``source`` sends through ``relay`` to ``sink``."""

    source: TlsNode
    relay: TlsNode
    sink: TlsNode
    onward: NodeRef
    """Where the relay carries tunnels to."""
    workers: TaskWorkers
    joined: int = 0
    unreachable: int = 0

    async def serve_at_relay(self, bulk: Bulk) -> None:
        """What a use of a link to the relay comes to; the handler notes openings before."""
        if self.relay.handlers.openings[-1] == HERE:
            await echo(bulk)
            return

        def on_joined() -> None:
            self.joined += 1

        try:
            join = Join(self.onward, ONWARD, THERE, BACK)
            await self.relay.links.relay(bulk, join, on_joined)
        except WorldError:
            self.unreachable += 1
            bulk.reset()

    async def tunnel(self) -> Bulk:
        """A use that the relay joins with one towards the sink."""
        return await self.source.links.open_bulk(self.relay.ref, RELAYED)

    def count(self, name: str) -> int:
        return self.relay.links.statistics().get(name, 0)

    async def ready(self, workers: int) -> None:
        await until(lambda: self.count("workers") == workers)


@asynccontextmanager
async def relay_world(
    workers: int = 2,
    limits: LinkLimits | None = None,
    *,
    sink_dialable: bool = True,
    spawn: Spawn | None = None,
) -> AsyncIterator[World]:
    limits = limits or LinkLimits()
    with listening() as first, listening() as second, listening() as third:
        async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
            tasks = TaskWorkers(outer)
            source, sink = TlsNode(first, limits=limits), TlsNode(third, limits=limits)
            plan = WorkerPlan(workers, spawn or tasks.spawn)
            relay = TlsNode(second, limits=limits, workers=plan)
            onward = sink.ref
            if not sink_dialable:
                onward = NodeRef(sink.ref.node_id, sink.ref.cert_hash, LOOPBACK, 0)
            world = World(source, relay, sink, onward, tasks)
            relay.handlers.on_bulk = world.serve_at_relay
            for node in (source, relay, sink):
                await nursery.start(node.run)
            await world.ready(workers)
            yield world
            nursery.cancel_scope.cancel()
