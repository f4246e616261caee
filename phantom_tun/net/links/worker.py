"""What a worker process does for its node (docs/spec/workers.md): meets whoever connects, carries
the tunnels it is told to carry, and passes everything else on to the node as it comes.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import TypeVar

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.crypto.certificates import Certificate
from phantom_tun.crypto.streams import ChainedStream
from phantom_tun.errors import LinkBroken, PeerError, PhantomError, ProtocolViolation, WorldError
from phantom_tun.guard import Guard
from phantom_tun.ids import NodeId
from phantom_tun.net.links.buffers import POOL
from phantom_tun.net.links.bulk import Bulk, BulkLink, Ending
from phantom_tun.net.links.connection import Connection
from phantom_tun.net.links.dialer import Dialer
from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.listener import Greeter
from phantom_tun.net.links.onward import OnwardLinks
from phantom_tun.net.links.plain import PlainConnection, socket_pair
from phantom_tun.net.links.rest import watching
from phantom_tun.net.links.splice import Layer, Way, process_bytes, splice
from phantom_tun.net.links.tls import HandshakeSteps
from phantom_tun.net.links.web import Site
from phantom_tun.net.links.worker_channel import Received, WorkerChannel
from phantom_tun.net.links.worker_links import read_exactly
from phantom_tun.tasks import Tasks
from phantom_tun.wire import worker as wire
from phantom_tun.wire.door import Door, LinkKind
from phantom_tun.wire.frames import HEADER_LEN, REGION_LEN
from phantom_tun.wire.nodes import IpAddress
from phantom_tun.wire.sizes import PACKAGE_LEN
from phantom_tun.wire.worker import JOIN_LEN, Join, LocalFrame, pack_local, parse_local

REPORT_EVERY = 1.0
"""Seconds between two reports, if there is something new."""
ALIVE_EVERY = 5.0
"""The same if there isn't."""

_T = TypeVar("_T")


class AskedCredentials:
    """:class:`~phantom_tun.net.links.credentials.Credentials` that the node is asked for."""

    def __init__(self, channel: WorkerChannel) -> None:
        self._channel = channel
        self._numbers = count()
        self._answers: dict[int, bytes | None] = {}
        self._waiting: dict[int, trio.Event] = {}

    async def welcome(self, token_nonce: bytes) -> bytes:
        """See :class:`~phantom_tun.net.links.credentials.Credentials`."""
        return await self._ask(lambda number: wire.Welcome(number, token_nonce))

    async def auth(self, door: Door, nonce: bytes, kind: LinkKind) -> bytes:
        """See :class:`~phantom_tun.net.links.credentials.Credentials`."""
        return await self._ask(
            lambda number: wire.Auth(number, door.server_id, door.cert_hash, nonce, kind)
        )

    async def _ask(self, question: Callable[[int], wire.Welcome | wire.Auth]) -> bytes:
        number = next(self._numbers)
        answered = self._waiting[number] = trio.Event()
        try:
            self._channel.send(question(number))
            await answered.wait()
        finally:
            del self._waiting[number]
            proof = self._answers.pop(number, None)
        if proof is None:
            raise ProtocolViolation("the node gives no proof for this")
        return proof

    def answered(self, message: wire.Proof) -> None:
        """The node has said something."""
        if message.number in self._waiting:
            self._answers[message.number] = message.proof
            self._waiting[message.number].set()


class _AsItIs:
    """No layer: between the network and the node nothing changes."""

    def rest(self) -> None:
        """Has nothing to let go of."""

    def process(self, view: memoryview, start: int, end: int) -> None:
        """Leave it."""


_AS_IT_IS = _AsItIs()


class RelayWorker:
    """One worker, from its :class:`~phantom_tun.wire.worker.Setup` to the end of the channel."""

    def __init__(
        self, channel: WorkerChannel, setup: wire.Setup, *, clock: Clock, rng: Rng
    ) -> None:
        limits = LinkLimits(**setup.limits)
        counts: Counter[str] = Counter()
        steps = HandshakeSteps(limits.handshake_steps)
        certificate = Certificate(setup.certificate_der, setup.certificate_key)
        self._credentials = AskedCredentials(channel)
        self._greeter = Greeter(
            certificate,
            Door(setup.network_id, NodeId(setup.node_id), certificate.hash),
            Site(setup.page),
            self._credentials,
            limits=limits,
            steps=steps,
            clock=clock,
            counts=counts,
        )
        dialer = Dialer(
            self._credentials,
            setup.network_id,
            limits=limits,
            steps=steps,
            clock=clock,
            rng=rng,
            counts=counts,
        )
        self._guard = Guard(counts)
        self._tasks = Tasks(self._guard)
        self._onward = OnwardLinks(dialer.dial, self._tasks.start, limits, counts)
        self._channel = channel
        self._limits = limits
        self._counts = counts
        self._meetings: dict[int, trio.CancelScope] = {}
        """With strangers, by their numbers."""

    async def run(self) -> None:
        """Work until the node ends the channel; then every link is closed."""
        try:
            async with self._tasks.open() as nursery:
                nursery.start_soon(self._channel.keep_sending)
                nursery.start_soon(self._guard.forever, self._report)
                nursery.start_soon(self._guard.forever, self._onward.tend)
                with suppress(LinkBroken):
                    self._channel.send(wire.Ready())
                    while True:
                        self._obey(await self._channel.receive())
                nursery.cancel_scope.cancel()
        finally:
            self._onward.close()

    def _obey(self, received: Received) -> None:
        message, attached = wire.unpack_to_worker(received.data), received.attached
        if isinstance(message, wire.Greet) and attached is not None:
            address = ipaddress.ip_address(message.address)
            self._tasks.start(self._meet, message.number, attached, address)
        elif isinstance(message, wire.Drop):
            if message.number in self._meetings:
                self._meetings[message.number].cancel()
        elif isinstance(message, wire.Proof):
            self._credentials.answered(message)
        elif isinstance(message, wire.Forget):
            self._onward.forget(NodeId(message.node_id))

    async def _report(self) -> None:
        told: Counter[str] = Counter()
        idle: dict[bytes, int] = {}
        told_at = trio.current_time()
        while True:
            await trio.sleep(REPORT_EVERY)
            now, counts, idle_now = trio.current_time(), self._counts.copy(), self._onward.idle()
            if counts != told or idle_now != idle or now - told_at >= ALIVE_EVERY:
                with suppress(WorldError):
                    self._channel.send(wire.Report(dict(counts - told), idle_now))
                    told, idle, told_at = counts, idle_now, now

    # --- who connects ---------------------------------------------------------------------------

    async def _meet(self, number: int, tcp: socket.socket, address: IpAddress) -> None:
        found = None
        try:
            with trio.CancelScope() as self._meetings[number]:
                found = await self._greeter.greet(tcp, address)
        finally:
            del self._meetings[number]
            if found is None:
                self._tell_left(number)
        if found is None:
            return
        connection, peer, kind = found
        try:
            local = self._tell_arrived(number, peer.node_id, kind)
        except (OSError, WorldError):
            self._counts["accept_failed"] += 1
            self._tell_left(number)
            connection.close()
            return
        try:
            if kind is LinkKind.BULK:
                await self._serve(BulkLink(connection, peer), BulkLink(local, peer))
            else:
                await _shuttle(connection, local)
        finally:
            connection.close()
            local.close()

    def _tell_left(self, number: int) -> None:
        with suppress(WorldError):
            self._channel.send(wire.Left(number))

    def _tell_arrived(self, number: int, node_id: NodeId, kind: LinkKind) -> PlainConnection:
        # What signalling has to wait for is the smaller the less the pair holds.
        signalling = kind is LinkKind.SIGNALLING
        here, there = socket_pair(self._limits.unsent_signalling if signalling else None)
        local = PlainConnection(here)
        try:
            self._channel.send(wire.Arrived(number, node_id, kind), there)
        except WorldError:
            local.close()
            raise
        return local

    # --- bulk links on which the neighbour starts uses --------------------------------------------

    async def _serve(self, link: BulkLink, local: BulkLink) -> None:
        try:
            while await self._serve_use(link, local):
                pass
        except LinkBroken:
            pass  # the node sees it, and counts
        except PeerError:
            self._counts["drop_bulk_violation"] += 1

    async def _serve_use(self, link: BulkLink, local: BulkLink) -> bool:
        """One use; whether the link is good for another."""
        opening = await _while_quiet(local.connection, link.receive_opening)
        if opening is None:
            return False
        await local.send_opening(opening)
        endings: list[Ending] = []
        bulk = Bulk(link, lambda _link, ending: endings.append(ending))
        try:
            await self._do_as_told(bulk, endings, local)
        finally:
            bulk.reset()
        return endings == [Ending.CLEAN] and local.connection.usable

    async def _do_as_told(self, bulk: Bulk, endings: list[Ending], local: BulkLink) -> None:
        node = local.connection
        first = b""
        frame = parse_local(await read_exactly(node, HEADER_LEN))
        if frame is LocalFrame.JOIN:
            join = Join.unpack(await read_exactly(node, JOIN_LEN))
            there, back = (ChainedStream(one, outer=False) for one in (join.there, join.back))
            # What came with the opening goes on with it.
            first = bulk.receive_now(PACKAGE_LEN)
            opening = join.opening, process_bytes(there, first)
            try:
                onward = await _while_quiet(node, self._onward.open, join.onward, *opening)
            except WorldError:
                await node.write_all(pack_local(LocalFrame.REFUSED))
                frame = parse_local(await read_exactly(node, HEADER_LEN))
            else:
                del join, first, opening  # they would stay for as long as the tunnel stands
                if onward is not None:
                    await self._carry(bulk, onward, there, back, node)
                if endings == [Ending.CLEAN]:
                    await node.write_all(pack_local(LocalFrame.DONE))
                return
        if frame is LocalFrame.TAKE:
            await self._pass_on(bulk, first, local)
        elif frame is not None:
            raise ProtocolViolation("the node said something out of turn")

    async def _pass_on(self, bulk: Bulk, first: bytes, local: BulkLink) -> None:
        """Have the node see this use as if the link ended there; ``first`` was read already."""
        node = Bulk(local, lambda _link, _ending: None)
        inward_over, outward_over = trio.CancelScope(), trio.CancelScope()

        async def outward() -> None:
            await Way(node, bulk, _AS_IT_IS).pump()
            outward_over.cancel()
            with inward_over:
                await local.connection.wait_readable()
                raise LinkBroken("the node waits no longer")

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outward)
                await node.send_bytes(first)
                await Way(bulk, node, _AS_IT_IS).pump()
                inward_over.cancel()
                with outward_over:
                    await bulk.wait_failure()
            await bulk.aclose()
            await node.aclose()
        except* (LinkBroken, PeerError):
            bulk.reset()
        finally:
            node.reset()

    async def _carry(
        self, bulk: Bulk, onward: Bulk, there: Layer, back: Layer, node: Connection
    ) -> None:
        """Join both until that is over, or the node says that it has to end. At rest this is the
        only task of the tunnel."""
        try:
            await node.write_all(pack_local(LocalFrame.JOINED))
            with watching(node.handle, bulk.reset):
                if node.is_quiet():
                    await splice(bulk, onward, there, back, spawn=self._tasks.start)
        finally:
            onward.reset()


async def _while_quiet(
    node: Connection, work: Callable[..., Awaitable[_T]], *args: object
) -> _T | None:
    """Do ``work`` as long as the node says nothing: what it says is that the link has to end, and
    then this is ``None``."""
    result: _T | None = None
    failure: PhantomError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when_readable, node, nursery.cancel_scope)
        try:
            result = await work(*args)
        except PhantomError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result


async def _cancel_when_readable(node: Connection, scope: trio.CancelScope) -> None:
    with suppress(LinkBroken):
        await node.wait_readable()
    scope.cancel()


async def _shuttle(one: Connection, other: Connection) -> None:
    """Pass bytes between two connections until either ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_pump, one, other, nursery.cancel_scope)
        nursery.start_soon(_pump, other, one, nursery.cancel_scope)


async def _pump(source: Connection, sink: Connection, scope: trio.CancelScope) -> None:
    with suppress(LinkBroken):
        while True:
            await source.wait_readable()
            buffer = POOL.take()
            try:
                length = await source.read_some(buffer.view[:REGION_LEN])
                if not length:
                    break
                await sink.write_all(buffer.view[:length])
            finally:
                POOL.give_back(buffer)
    scope.cancel()
