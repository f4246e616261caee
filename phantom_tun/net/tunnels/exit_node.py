"""The terminating node of an exit path (docs/spec/tunnel.md, "Exit node").

It answers each block with a tunnel, reads the owner's one request and either carries out a netdb
call or joins the tunnel with a bulk link to an entry node. It learns the entry node and entry id,
never the AP address, the port or who asks.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

import trio

from phantom_tun.errors import (
    CapacityExceeded,
    DeadlineExpired,
    LinkBroken,
    PeerError,
    StreamReset,
    WireError,
    WorldError,
)
from phantom_tun.ids import NodeId, TunnelBlock
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.tunnel import MORE, Tunnel
from phantom_tun.path.hop import PathHop
from phantom_tun.tunnel.blocks import BlockPair, HopBlocks
from phantom_tun.tunnel.layers import PackageBox, hop_layers
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.puzzles import NO_CHALLENGE
from phantom_tun.wire.tunnel import (
    ENTRY_ANSWER_LEN,
    Body,
    ConnectRequest,
    Opening,
    Operation,
    Package,
    Status,
    answer_body,
    failed_body,
    netdb_body,
    pack_opening,
    unpack_entry_answer,
)

READY_LIFE = 600.0
"""Seconds that a ready tunnel may wait for its request; owners recycle theirs much earlier."""

REQUEST_TIMEOUT = 20.0
"""Seconds for an entry node to bring the callee's answer."""

MAX_FINDING, MAX_FINDING_FOR_ONE = 8, 2
"""Entry nodes looked up for others at one time, in all and for one path. Owners can name nodes that
don't exist, and nobody else's lookups shall wait for those."""

FIND_TIMEOUT = 5.0
"""Seconds for one such lookup. An entry node that anybody uses is found sooner, or known."""

MAX_READY = 256
"""Ready tunnels per path at the exit node."""


class ExitDatabase(Protocol):
    """What terminating nodes ask of the netdb."""

    def known_ref(self, node_id: NodeId) -> NodeRef | None:
        """A node that nobody has to be asked about."""
        ...

    async def find_ref(self, node_id: NodeId) -> NodeRef:
        """
        :raises WorldError: the node isn't in the netdb.
        """
        ...

    async def perform_for_exit(self, call: bytes) -> bytes:
        """Carry out one strict-API call for an anonymized node.

        :raises PeerError: not a call that exits carry out.
        :raises WorldError: no usable answer.
        """
        ...

    async def perform_for_entry(self, call: bytes) -> None:
        """Carry out one strict-API call that came down an entry path.

        :raises PeerError: not a call that entries carry out.
        :raises WorldError: nobody stored it.
        """
        ...


class EntryDialer:
    """Takes a sealed request to an entry node; used by exit nodes, and by owners whose exit path
    has length zero."""

    def __init__(self, hub: TunnelHub, database: ExitDatabase) -> None:
        self._hub = hub
        self._database = database
        self._finding = trio.CapacityLimiter(MAX_FINDING)

    async def ask(
        self, request: ConnectRequest, share: trio.CapacityLimiter
    ) -> tuple[Status, bytes, Bulk | None]:
        """Returns the status and, if it is OK, the answer and the link on which data follows;
        otherwise a packed challenge. ``share``: the path's, of all lookups; see
        :func:`share_of_lookups`."""
        bulk = None
        try:
            with trio.fail_after(REQUEST_TIMEOUT):
                ref = await self._find(request.entry_node, share)
                opening = pack_opening(Opening.ENTRY, request.entry_id, b"", self._hub.rng)
                bulk = await self._hub.links.open_bulk(ref, opening, request.entry_request)
                reply = await bulk.receive_exactly(ENTRY_ANSWER_LEN)
                status, said = unpack_entry_answer(reply)
                if status is Status.OK:
                    found, bulk = bulk, None
                    return status, said, found
                await bulk.send_fin()
                return status, said, None
        except (WorldError, WireError, trio.TooSlowError):
            if bulk is not None:
                bulk.reset()
            return Status.ENTRY_DOWN, NO_CHALLENGE, None
        finally:
            if bulk is not None:
                await bulk.aclose()

    async def _find(self, node_id: NodeId, share: trio.CapacityLimiter) -> NodeRef:
        known = self._database.known_ref(node_id)
        if known is not None:
            return known
        async with share, self._finding:
            with trio.fail_after(FIND_TIMEOUT):
                return await self._database.find_ref(node_id)


def share_of_lookups() -> trio.CapacityLimiter:
    """What one path may have looked up at a time."""
    return trio.CapacityLimiter(MAX_FINDING_FOR_ONE)


class ExitHop:
    """One exit path at its terminating node."""

    def __init__(
        self,
        hop: PathHop,
        hub: TunnelHub,
        database: ExitDatabase,
        dialer: EntryDialer,
    ) -> None:
        self.hop = hop
        self._hub = hub
        self._database = database
        self._dialer = dialer
        self._lookups = share_of_lookups()
        self._blocks = HopBlocks(hop.path_secret, hub.now())
        self._waiting = 0
        ((self._neighbour, self._connection),) = hop.neighbours

    def plug_in(self) -> None:
        """Start receiving blocks."""
        self._hub.board.plug(self._neighbour.node_id, self._connection, self)

    def unplug(self) -> None:
        """Stop; tunnels that are up finish by themselves."""
        self._hub.board.unplug(self._neighbour.node_id, self._connection)

    @property
    def last_used(self) -> float:
        """When the owner last wanted a tunnel."""
        return self._blocks.last_recognised

    @property
    def blocks(self) -> HopBlocks:
        """What it remembers of the path's blocks."""
        return self._blocks

    def block_arrived(self, block: TunnelBlock) -> None:
        """The owner wants a tunnel."""
        if self._waiting >= MAX_READY or self._blocks.exhausted:
            self._hub.counts["drop_block_exit_full"] += 1
            return
        now = self._hub.now()
        try:
            after = self._blocks.pass_on(block, 0, now)
        except CapacityExceeded:
            self._hub.counts["drop_block_rate"] += 1
            return
        self._hub.start(self._serve, self._blocks.recognise(after, 1, now))

    async def tunnel_opened(self, block: TunnelBlock, bulk: Bulk) -> None:
        """Nobody opens bulk links towards an exit node."""
        self._hub.counts["drop_tunnel_at_exit"] += 1
        bulk.reset()

    async def _serve(self, pair: BlockPair) -> None:
        secret = self.hop.path_secret
        opening = pack_opening(Opening.TUNNEL, self._connection, pair.before, self._hub.rng)
        layers = hop_layers(secret, pair)
        ends = (layers.against_block,), (layers.with_block,), PackageBox("exit", secret, pair)
        try:
            tunnel = await Tunnel.open(
                lambda init: self._hub.links.open_bulk(self._neighbour, opening, init),
                *ends,
                Body(Operation.READY),
            )
        except WorldError:
            self._hub.counts["drop_tunnel_neighbour_gone"] += 1
            return
        try:
            self._waiting += 1
            try:
                request = await tunnel.receive_package(Package.REPLY, READY_LIFE)
            finally:
                self._waiting -= 1
            if request.operation is Operation.NETDB:
                await self._carry_out(tunnel, request.content)
            else:
                await self._connect(tunnel, ConnectRequest.unpack(request.content))
        except PeerError as error:
            self._hub.counts[f"drop_exit_{type(error).__name__}"] += 1
            tunnel.reset()
        except (StreamReset, DeadlineExpired):
            self._hub.counts["exit_tunnels_unused"] += 1
            tunnel.reset()
        finally:
            await tunnel.aclose()

    async def _carry_out(self, tunnel: Tunnel, call: bytes) -> None:
        try:
            result = netdb_body(await self._database.perform_for_exit(call))
        except PeerError:
            result = failed_body(Status.REFUSED_CALL)
        except WorldError:
            result = failed_body(Status.CALL_FAILED)
        self._hub.counts["exit_netdb_calls"] += 1
        await tunnel.send_package(Package.RESULT, result)
        await tunnel.finish()

    async def _connect(self, tunnel: Tunnel, request: ConnectRequest) -> None:
        status, answer, onward = await self._dialer.ask(request, self._lookups)
        if onward is None:
            self._hub.counts["exit_connects_failed"] += 1
            await tunnel.send_package(Package.RESULT, failed_body(status, answer))
            await tunnel.finish()
            return
        self._hub.counts["exit_connects"] += 1
        joined = False
        try:
            more = b""
            with suppress(LinkBroken):  # joining them will say so again
                more = onward.receive_now(MORE)
            await tunnel.send_package(Package.RESULT, answer_body(answer), more)
            there, back = tunnel.incoming[0], tunnel.outgoing[0]
            self._hub.links.join(tunnel.part_with(), onward, there, back)
            joined = True
        finally:
            if not joined:
                onward.reset()
