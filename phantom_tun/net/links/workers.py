"""The worker processes of this node, as it sees them (docs/spec/workers.md): who meets the next
stranger, what they ask, and what is to be done when one ends.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import structlog
import trio

from phantom_tun.errors import LinkBroken, ProtocolViolation, WireError, WorldError
from phantom_tun.guard import Guard
from phantom_tun.ids import CertHash, NodeId
from phantom_tun.net.links.bulk import BulkLink
from phantom_tun.net.links.connection import Connection
from phantom_tun.net.links.credentials import Credentials
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.links.plain import PlainConnection
from phantom_tun.net.links.worker_channel import Received, WorkerChannel, channel_pair
from phantom_tun.net.links.worker_links import WorkerLink
from phantom_tun.wire import worker as wire
from phantom_tun.wire.door import Door, LinkKind
from phantom_tun.wire.nodes import IpAddress

LOOK_EVERY = 10.0
SILENT_LOOKS = 3
"""A worker from which nothing came for so many looks hangs, and is ended."""
START_LOOKS = 12
"""The same while it starts, which takes its time on a busy machine."""
END_WITHIN = 2.0
"""Seconds for a worker to end after its channel has."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a worker that has ended is replaced; doubled each time it ends early."""

_log = structlog.get_logger(__name__)


class WorkerProcess(Protocol):
    """A process that serves a channel."""

    def kill(self) -> None:
        """End it now. Idempotent."""
        ...

    async def wait(self) -> int:
        """Wait for its end; returns its exit code."""
        ...


Spawn = Callable[[socket.socket], Awaitable[WorkerProcess]]
"""Starts a process that serves this end of a channel; OSError if there can't be one. The caller
closes its copy."""

Accept = Callable[
    [Connection, Peer, LinkKind, Callable[[Connection, Peer], BulkLink]], Awaitable[None]
]


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How many worker processes, and where they come from."""

    count: int
    spawn: Spawn


class _Stranger:
    """A connection that a worker is finding out about."""

    __slots__ = ("address", "dropped", "over")

    def __init__(self, address: IpAddress) -> None:
        self.address = address
        self.dropped = False
        """Nobody waits for it any more, but the worker may not know that yet."""
        self.over = trio.Event()


class _Worker:
    """One running process."""

    def __init__(
        self,
        channel: WorkerChannel,
        network_id: bytes,
        credentials: Credentials,
        accept: Accept,
        counts: Counter[str],
    ) -> None:
        self.ready = False
        self.links = 0
        """On which neighbours start uses."""
        self.idle: dict[bytes, int] = {}
        """Bulk links it keeps ready, by node id."""
        self.channel = channel
        self._network_id = network_id
        self._credentials = credentials
        self._accept = accept
        self._counts = counts
        self._guard = Guard(counts)
        self._numbers = count()
        self._strangers: dict[int, _Stranger] = {}

    @property
    def load(self) -> int:
        """What it has to do, roughly. Signalling hardly counts."""
        return self.links + len(self._strangers)

    async def greet(self, tcp: socket.socket, address: IpAddress) -> None:
        """Let it see who has connected; returns when that is known."""
        number, stranger = next(self._numbers), _Stranger(address)
        self._strangers[number] = stranger
        try:
            self.channel.send(wire.Greet(number, address.packed), tcp)
        except WorldError:
            self._counts["drop_worker_busy"] += 1
            del self._strangers[number]
            return
        try:
            await stranger.over.wait()
        finally:
            if not stranger.over.is_set():
                stranger.dropped = True
                with suppress(WorldError):
                    self.channel.send(wire.Drop(number))

    async def run(self) -> None:
        """Serve it until it ends, says what makes no sense, or hangs."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.channel.keep_sending)
                await self._listen(nursery)
                nursery.cancel_scope.cancel()
        finally:
            self.ready = False
            for stranger in self._strangers.values():
                stranger.over.set()

    async def _listen(self, nursery: trio.Nursery) -> None:
        silent = 0
        while silent < (SILENT_LOOKS if self.ready else START_LOOKS):
            silent += 1
            try:
                with trio.move_on_after(LOOK_EVERY):
                    received = await self.channel.receive()
                    silent = 0
            except LinkBroken:
                return
            if not silent:
                try:
                    await self._take(received, nursery)
                except WireError:
                    self._counts["drop_worker_violation"] += 1
                    if received.attached is not None:
                        received.attached.close()
                    return
        _log.warning("a relay worker hangs")

    async def _take(self, received: Received, nursery: trio.Nursery) -> None:
        message = wire.unpack_from_worker(received.data)
        match message:
            case wire.Ready():
                self.ready = True
            case wire.Left():
                self._take_stranger(message.number)
            case wire.Arrived():
                self._arrived(message, received.attached, nursery)
            case wire.Welcome() | wire.Auth():
                with suppress(WorldError):
                    self.channel.send(wire.Proof(message.number, await self._prove(message)))
            case wire.Report():
                self._counts.update(message.counts)
                self.idle = message.idle

    def _arrived(
        self, message: wire.Arrived, attached: socket.socket | None, nursery: trio.Nursery
    ) -> None:
        stranger, kind = self._take_stranger(message.number), _kind(message.kind)
        if attached is None:
            raise WireError("a worker tells of a link and doesn't give it")
        if stranger.dropped:
            attached.close()
            return
        peer = Peer(NodeId(message.node_id), stranger.address)
        is_bulk = kind is LinkKind.BULK
        connection = _Counted(attached, self) if is_bulk else PlainConnection(attached)
        nursery.start_soon(self._guard.once, self._accept, connection, peer, kind, WorkerLink)

    def _take_stranger(self, number: int) -> _Stranger:
        """The stranger of this number, who is none any more."""
        stranger = self._strangers.pop(number, None)
        if stranger is None:
            raise WireError("a worker tells of somebody it was never given")
        stranger.over.set()
        return stranger

    async def _prove(self, message: wire.Welcome | wire.Auth) -> bytes | None:
        try:
            if isinstance(message, wire.Welcome):
                return await self._credentials.welcome(message.token_nonce)
            door = Door(self._network_id, NodeId(message.server_id), CertHash(message.cert_hash))
            return await self._credentials.auth(door, message.nonce, _kind(message.kind))
        except ProtocolViolation:
            return None


class _Counted(PlainConnection):
    """A link that counts as one of its worker's until it is closed."""

    __slots__ = ("_worker",)

    def __init__(self, stream: socket.socket, worker: _Worker) -> None:
        super().__init__(stream)
        self._worker = worker
        worker.links += 1

    def close(self) -> None:
        """See :class:`PlainConnection`."""
        self._worker.links -= not self._closed
        super().close()


def _kind(value: int) -> LinkKind:
    try:
        return LinkKind(value)
    except ValueError as error:
        raise WireError("unknown kind of link") from error


class Workers:
    """All of them. As long as none is ready, the node does everything itself."""

    def __init__(
        self,
        plan: WorkerPlan,
        setup: wire.Setup,
        credentials: Credentials,
        accept: Accept,
        counts: Counter[str],
    ) -> None:
        """``accept`` as :meth:`phantom_tun.net.links.neighbours.Neighbours.accept`."""
        self._plan = plan
        self._setup = setup
        self._credentials = credentials
        self._accept = accept
        self._counts = counts
        self._guard = Guard(counts)
        self._running: list[_Worker] = []
        self._turn = 0

    @property
    def ready(self) -> int:
        """How many can be given something to do."""
        return sum(worker.ready for worker in self._running)

    async def run(self) -> None:
        """Have them until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._plan.count):
                nursery.start_soon(self._keep_one)

    async def greet(self, tcp: socket.socket, address: IpAddress) -> bool:
        """Give a connection to the worker with the least to do; returns when it is no stranger any
        more, or at once and false if there is no worker."""
        ready = [worker for worker in self._running if worker.ready]
        if not ready:
            return False
        self._turn += 1
        turn = self._turn % len(ready)
        await min(ready[turn:] + ready[:turn], key=lambda worker: worker.load).greet(tcp, address)
        return True

    def forget(self, node_id: NodeId) -> None:
        """Have all links to a neighbour closed."""
        for worker in self._running:
            with suppress(WorldError):
                worker.channel.send(wire.Forget(node_id))

    def idle(self, node_id: NodeId) -> int:
        """Bulk links to a neighbour that wait in workers to be used."""
        return sum(worker.idle.get(node_id, 0) for worker in self._running)

    def statistics(self) -> dict[str, int]:
        """What isn't counted, but is."""
        return {
            "workers": self.ready,
            "workers_bulk_idle": sum(sum(worker.idle.values()) for worker in self._running),
        }

    async def _keep_one(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = trio.current_time()
            await self._guard.once(self._run_one)
            self._counts["workers_ended"] += 1
            lived = trio.current_time() - began
            pause = FIRST_PAUSE if lived > LONGEST_PAUSE else pause
            _log.warning("a relay worker ended; its tunnels are reset", again_in_s=pause)
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _run_one(self) -> None:
        here, there = channel_pair()
        channel = WorkerChannel(here)
        try:
            with there:
                process = await self._plan.spawn(there)
        except OSError as error:
            channel.close()
            _log.warning("a relay worker can't be started", reason=error.strerror)
            return
        worker = _Worker(
            channel, self._setup.network_id, self._credentials, self._accept, self._counts
        )
        self._running.append(worker)
        try:
            channel.send(self._setup)
            await worker.run()
        finally:
            self._running.remove(worker)
            channel.close()
            with trio.CancelScope(shield=True):
                with trio.move_on_after(END_WITHIN):
                    await process.wait()
                process.kill()
                await process.wait()
