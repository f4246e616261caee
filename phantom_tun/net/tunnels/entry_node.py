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

from phantom_tun.clock import SYSTEM_RNG, Clock, Rng
from phantom_tun.errors import (
    CapacityExceeded,
    DeadlineExpired,
    LinkBroken,
    PathUnavailable,
    PeerError,
    StreamReset,
    WireError,
)
from phantom_tun.ids import EntryId, TunnelBlock
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.peers import Peer
from phantom_tun.net.tunnels.announcer import BUILD_TIMEOUT, Announcer
from phantom_tun.net.tunnels.entry_gate import EntryGate
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.tunnel import Tunnel
from phantom_tun.path.hop import PathHop
from phantom_tun.tunnel.blocks import HopBlocks
from phantom_tun.tunnel.layers import PackageBox, hop_layers
from phantom_tun.wire.puzzles import Challenge
from phantom_tun.wire.records import APRoute, decode
from phantom_tun.wire.tunnel import (
    ENTRY_REQUEST_LEN,
    Operation,
    Package,
    Status,
    pack_block,
    pack_entry_answer,
    pack_entry_failure,
    request_body,
    unpack_entry_request,
)

REQUEST_READ_TIMEOUT = 10.0
"""Seconds for the exit node to send the whole sealed request."""

TAKE_TIMEOUT = 10.0
"""Seconds a request may wait for a tunnel to get ready."""

ANSWER_TIMEOUT = 15.0
"""Seconds for the callee to answer."""

SETTLING = (0.3, 0.9)
"""Seconds from the second setup array to the first block, at least and at most: the owner of an
exit path sends none before the array has come round."""


class EntryTarget(Protocol):
    """What stands behind an entry id."""

    @property
    def waiting(self) -> int:
        """Requests that wait for a tunnel."""
        ...

    async def serve(self, sealed_request: bytes, bulk: Bulk, *, hurry: bool = False) -> Status:
        """Take the request to the owner, with ``hurry`` before those that wait, and join its tunnel
        with ``bulk``. Returns OK when it is done or they are joined, another status if nothing was
        sent on ``bulk``."""
        ...


class EntryDesk:
    """All entry ids known at this node."""

    def __init__(self, clock: Clock, rng: Rng = SYSTEM_RNG) -> None:
        self._clock = clock
        self._targets: dict[EntryId, EntryTarget] = {}
        self._counts: Counter[str] = Counter()
        self._gate = EntryGate(rng, self._counts)

    def register(self, entry_id: EntryId, target: EntryTarget) -> None:
        """Requests for ``entry_id`` go to ``target``, unless they go elsewhere already: routes are
        public, and whoever reads one could build a path with the same id."""
        if self._targets.setdefault(entry_id, target) is not target:
            self._counts["drop_entry_id_taken"] += 1

    def forget(self, entry_id: EntryId, target: EntryTarget) -> None:
        """``target`` takes no more requests. Idempotent."""
        if self._targets.get(entry_id) is target:
            del self._targets[entry_id]

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return {"entries": len(self._targets), **self._counts}

    async def handle(self, peer: Peer, entry_id: EntryId, bulk: Bulk) -> None:
        """An exit node brings a request."""
        try:
            status, challenge = await self._handle(peer, entry_id, bulk)
            if status is not Status.OK:
                self._counts[f"entry_{status.name.lower()}"] += 1
                await bulk.send_bytes(pack_entry_failure(status, challenge))
                await bulk.send_fin()
        except (LinkBroken, StreamReset, trio.TooSlowError):
            self._counts["entry_requests_broken"] += 1
            bulk.reset()

    async def _handle(
        self, peer: Peer, entry_id: EntryId, bulk: Bulk
    ) -> tuple[Status, Challenge | None]:
        with trio.fail_after(REQUEST_READ_TIMEOUT):
            brought = await bulk.receive_exactly(ENTRY_REQUEST_LEN)
        sealed_request, solution = unpack_entry_request(brought)
        target = self._targets.get(entry_id)
        if target is None:
            known = self._gate.take_unknown(peer.node_id, self._clock.now())
            return (Status.UNKNOWN_ENTRY if known else Status.BUSY), None
        verdict = self._gate.judge(
            peer.node_id,
            entry_id,
            sealed_request,
            solution,
            waiting=target.waiting,
            now=self._clock.now(),
        )
        if verdict.status is not Status.OK:
            return verdict.status, verdict.challenge
        self._counts["entry_requests"] += 1
        # Popped when it goes on, so that this doesn't keep it for as long as the connection stands,
        # which the owner serves here.
        request = [sealed_request]
        del brought, sealed_request
        return await target.serve(request.pop(), bulk, hurry=verdict.worked), None


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
        # A path that gives no tunnels is its owner's concern.
        self._announcer = Announcer(
            hub,
            draw=self._draw,
            send=self._send,
            on_silence=lambda: None,
            on_doubt=lambda: None,
        )
        self._stands = False
        ((self._neighbour, self._connection),) = hop.neighbours

    def plug_in(self) -> None:
        """Start building ready tunnels."""
        self._hub.board.plug(self._neighbour.node_id, self._connection, self)
        self._hub.start(self._begin)
        self._hub.start(self._retire)

    def unplug(self) -> None:
        """Stop; tunnels that are up finish by themselves."""
        self._hub.board.unplug(self._neighbour.node_id, self._connection)
        self._announcer.stop()

    async def _begin(self) -> None:
        await trio.sleep(self._hub.rng.uniform(*SETTLING))
        self._announcer.start()

    async def _retire(self) -> None:
        """An owner of an exit path sends no more blocks once it has stopped using it."""
        await trio.sleep(max(0.0, _used_until(self.hop) - self._hub.now()))
        self._announcer.stop()

    @property
    def last_used(self) -> float:
        """When the owner last answered with a tunnel."""
        return self._blocks.last_recognised

    @property
    def blocks(self) -> HopBlocks:
        """What it remembers of the path's blocks."""
        return self._blocks

    @property
    def ready(self) -> int:
        """Ready tunnels."""
        return self._announcer.ready

    @property
    def waiting(self) -> int:
        """See :class:`EntryTarget`."""
        return self._announcer.waiting

    def block_arrived(self, block: TunnelBlock) -> None:
        """Blocks never travel towards an entry node."""
        self._hub.counts["drop_block_at_entry"] += 1

    # --- building -------------------------------------------------------------------------------

    def _draw(self) -> TunnelBlock:
        if self._blocks.exhausted:
            raise CapacityExceeded("the path has used up its blocks")
        first = TunnelBlock(self._hub.rng.randbytes(16))
        return self._blocks.pass_on(first, 1, self._hub.now())

    async def _send(self, block: TunnelBlock) -> None:
        await self._hub.links.signal(self._neighbour, pack_block(self._connection, block))

    async def tunnel_opened(self, block: TunnelBlock, bulk: Bulk) -> None:
        """The owner's answer to one of our blocks."""
        pair = self._blocks.recognise(block, 0, self._hub.now())
        announced = self._announcer.expects(block)
        if announced is None:
            self._hub.counts["drop_tunnel_late"] += 1
            bulk.reset()
            return
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
        if not self._stands:
            self._stands = True
            self._on_first_tunnel(self.hop)
        if await self._announcer.keep(tunnel, announced):
            await tunnel.wait_released()
        else:
            tunnel.reset()

    # --- use ------------------------------------------------------------------------------------

    async def serve(self, sealed_request: bytes, bulk: Bulk, *, hurry: bool = False) -> Status:
        """See :class:`EntryTarget`."""
        try:
            tunnel = await self._announcer.take(TAKE_TIMEOUT, hurry=hurry)
        except (DeadlineExpired, PathUnavailable):
            return Status.NO_TUNNEL
        try:
            await tunnel.send_package(Package.REPLY, request_body(sealed_request))
            result = await self._announcer.receive_result(tunnel, ANSWER_TIMEOUT)
            if result.operation is not Operation.ANSWER:
                await tunnel.finish()
                return Status.NO_TUNNEL
            await bulk.send_bytes(pack_entry_answer(result.content) + tunnel.receive_more())
            there, back = tunnel.incoming[0], tunnel.outgoing[0]
            self._hub.links.join(tunnel.part_with(), bulk, there, back)
        except (StreamReset, DeadlineExpired, PeerError, CapacityExceeded):
            tunnel.reset()
            return Status.NO_TUNNEL
        finally:
            await tunnel.aclose()
        return Status.OK


def _used_until(hop: PathHop) -> float:
    """When its owner stops using the path, as its route says."""
    try:
        return min(hop.expires, decode(APRoute, hop.route or b"").expires)
    except WireError:
        return hop.expires
