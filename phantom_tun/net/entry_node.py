"""The terminating node of an entry path (docs/spec/tunnel.md, "Entry node").

It keeps ready tunnels to the owner, passes sealed requests down them and joins them with the bulk
links the requests came over. It learns the entry id and the exit node that asks, never the port or
the caller. A path of length zero registers here too; then the owner itself answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from phantom_tun.clock import Clock
from phantom_tun.errors import (
    CapacityExceeded,
    DeadlineExpired,
    LinkBroken,
    PathUnavailable,
    PeerError,
    StreamReset,
    WorldError,
)
from phantom_tun.ids import EntryId, NodeId, TunnelBlock
from phantom_tun.net.bulk import Bulk
from phantom_tun.net.hub import TunnelHub
from phantom_tun.net.peers import Peer
from phantom_tun.net.rates import RateTable
from phantom_tun.net.ready_pool import ReadyPool
from phantom_tun.net.splice import splice
from phantom_tun.net.tunnels import Tunnel
from phantom_tun.path.hop import PathHop
from phantom_tun.tunnel.blocks import HopBlocks
from phantom_tun.tunnel.layers import PackageBox, hop_layers
from phantom_tun.wire.sizes import ANSWER_LEN, SEALED_REQUEST_LEN
from phantom_tun.wire.tunnel import (
    Operation,
    Package,
    Status,
    pack_block,
    request_body,
)

REQUEST_READ_TIMEOUT = 10.0
"""Seconds for the exit node to send the whole sealed request."""

TAKE_TIMEOUT = 10.0
"""Seconds a request may wait for a tunnel to get ready."""

ANSWER_TIMEOUT = 15.0
"""Seconds for the callee to answer."""

BUILD_TIMEOUT = 5.0
"""Seconds from sending a block to the owner's init package."""

BUILD_RETRY_DELAYS = (1.0, 3.0, 0.0)
"""Seconds after each failed attempt at one ready tunnel."""

FIRST_BLOCK_DELAYS = (0.0, 0.15, 0.3, 0.6, 1.2, 2.4, 4.8)
"""Seconds between attempts at the first tunnel: the rest of the path may not stand yet."""

NODE_RATE, NODE_BURST = 100.0, 400.0
ENTRY_RATE, ENTRY_BURST = 200.0, 400.0
"""Requests per second and burst, per dialing node and per entry id."""


class EntryTarget(Protocol):
    """What stands behind an entry id."""

    async def serve(self, sealed_request: bytes, bulk: Bulk) -> Status:
        """Take the request to the owner and join its tunnel with ``bulk``. Returns OK when all is
        done, another status if nothing was sent on ``bulk``."""
        ...


class EntryDesk:
    """All entry ids known at this node."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._targets: dict[EntryId, EntryTarget] = {}
        self._by_node: RateTable[NodeId] = RateTable(NODE_RATE, NODE_BURST)
        self._by_entry: RateTable[EntryId] = RateTable(ENTRY_RATE, ENTRY_BURST)
        self._counts: Counter[str] = Counter()

    def register(self, entry_id: EntryId, target: EntryTarget) -> None:
        """Requests for ``entry_id`` go to ``target``."""
        self._targets[entry_id] = target

    def forget(self, entry_id: EntryId) -> None:
        """Idempotent."""
        self._targets.pop(entry_id, None)

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return {"entries": len(self._targets), **self._counts}

    async def handle(self, peer: Peer, entry_id: EntryId, bulk: Bulk) -> None:
        """An exit node brings a request."""
        try:
            status = await self._handle(peer, entry_id, bulk)
            if status is not Status.OK:
                self._counts[f"entry_{status.name.lower()}"] += 1
                await bulk.send_bytes(bytes([status]) + bytes(ANSWER_LEN))
                await bulk.send_fin()
        except (LinkBroken, StreamReset, trio.TooSlowError):
            self._counts["entry_requests_broken"] += 1
            bulk.reset()

    async def _handle(self, peer: Peer, entry_id: EntryId, bulk: Bulk) -> Status:
        with trio.fail_after(REQUEST_READ_TIMEOUT):
            sealed_request = await bulk.receive_exactly(SEALED_REQUEST_LEN)
        now = self._clock.now()
        if not (self._by_node.allow(peer.node_id, now) and self._by_entry.allow(entry_id, now)):
            return Status.BUSY
        target = self._targets.get(entry_id)
        if target is None:
            return Status.UNKNOWN_ENTRY
        self._counts["entry_requests"] += 1
        return await target.serve(sealed_request, bulk)


async def pass_answer(bulk: Bulk, answer: bytes) -> None:
    """Hand the callee's answer to the exit node; data follows on the same link."""
    await bulk.send_bytes(bytes([Status.OK]) + answer)


class EntryHop:
    """One entry path at its terminating node."""

    def __init__(
        self,
        hop: PathHop,
        hub: TunnelHub,
        update: Callable[[bytes], Awaitable[None]],
        on_first_tunnel: Callable[[PathHop], None],
    ) -> None:
        """``update`` carries out a netdb call that came in an init package."""
        self.hop = hop
        self._hub = hub
        self._update = update
        self._on_first_tunnel = on_first_tunnel
        self._blocks = HopBlocks(hop.path_secret, hub.now())
        self._pool = ReadyPool(hub.limits, self._start_build)
        self._expected: dict[TunnelBlock, trio.Event] = {}
        self._stands = False
        ((self._neighbour, self._connection),) = hop.neighbours

    def plug_in(self) -> None:
        """Start building ready tunnels."""
        self._hub.board.plug(self._neighbour.node_id, self._connection, self)
        self._hub.start(self._knock)

    def unplug(self) -> None:
        """Stop; tunnels that are up finish by themselves."""
        self._hub.board.unplug(self._neighbour.node_id, self._connection)
        self._pool.close()

    @property
    def last_used(self) -> float:
        """When the owner last answered with a tunnel."""
        return self._blocks.last_recognised

    @property
    def ready(self) -> int:
        """Ready tunnels."""
        return self._pool.ready

    def block_arrived(self, block: TunnelBlock) -> None:
        """Blocks never travel towards an entry node."""
        self._hub.counts["drop_block_at_entry"] += 1

    # --- building -------------------------------------------------------------------------------

    async def _knock(self) -> None:
        for delay in FIRST_BLOCK_DELAYS:
            await trio.sleep(delay)
            if self._stands:
                return
            await self._send_block()

    def _start_build(self) -> None:
        self._hub.start(self._build)

    async def _build(self) -> None:
        for pause in BUILD_RETRY_DELAYS:
            block = await self._send_block()
            if block is not None:
                came = self._expected[block] = trio.Event()
                try:
                    with trio.move_on_after(BUILD_TIMEOUT):
                        await came.wait()
                        return
                finally:
                    self._expected.pop(block, None)
            self._hub.counts["entry_builds_unanswered"] += 1
            await trio.sleep(pause)
        self._pool.build_failed()

    async def _send_block(self) -> TunnelBlock | None:
        """Announce one tunnel to the owner; returns the block that will come back."""
        if self._blocks.exhausted:
            return None
        first = TunnelBlock(self._hub.rng.randbytes(16))
        try:
            block = self._blocks.pass_on(first, 1, self._hub.now())
            await self._hub.links.signal(self._neighbour, pack_block(self._connection, block))
        except (WorldError, PeerError):
            return None
        return block

    async def tunnel_opened(self, block: TunnelBlock, bulk: Bulk) -> None:
        """The owner's answer to one of our blocks."""
        pair = self._blocks.recognise(block, 0, self._hub.now())
        secret = self.hop.path_secret
        layers = hop_layers(secret, pair)
        tunnel = Tunnel(
            bulk,
            (layers.with_block,),
            (layers.against_block,),
            PackageBox("entry", secret, pair),
        )
        try:
            init = await tunnel.receive_package(Package.INIT, BUILD_TIMEOUT)
        except (StreamReset, DeadlineExpired):
            self._hub.counts["entry_builds_broken"] += 1
            tunnel.reset()
            return
        if init.operation is Operation.UPDATE:
            self._hub.start(self._update, init.content)
        came = self._expected.pop(block, None)
        if not self._stands:
            self._stands = True
            self._on_first_tunnel(self.hop)
        if came is not None:
            came.set()
        self._pool.adopt(asked_for=came is not None)
        keep = self._hub.rng.uniform(self._hub.limits.recycle_min_s, self._hub.limits.recycle_max_s)
        if await self._pool.offer_and_watch(tunnel, keep):
            await tunnel.wait_released()
        else:
            tunnel.reset()

    # --- use ------------------------------------------------------------------------------------

    async def serve(self, sealed_request: bytes, bulk: Bulk) -> Status:
        """See :class:`EntryTarget`."""
        try:
            tunnel = await self._pool.take(TAKE_TIMEOUT)
        except (DeadlineExpired, PathUnavailable):
            return Status.NO_TUNNEL
        try:
            await tunnel.send_package(Package.REPLY, request_body(sealed_request))
            result = await tunnel.receive_package(Package.RESULT, ANSWER_TIMEOUT)
            if result.operation is not Operation.ANSWER:
                await tunnel.finish()
                return Status.NO_TUNNEL
            await pass_answer(bulk, result.content)
            await splice(tunnel.bulk, bulk, tunnel.incoming[0], tunnel.outgoing[0])
        except (StreamReset, DeadlineExpired, PeerError, CapacityExceeded):
            tunnel.reset()
            return Status.NO_TUNNEL
        finally:
            with trio.CancelScope(shield=True):
                await tunnel.aclose()
        return Status.OK
