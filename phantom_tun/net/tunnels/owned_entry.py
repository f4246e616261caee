"""An entry path at its owner: answering blocks with tunnels and requests with answers
(docs/spec/tunnel.md, "Inbound").

:class:`OwnedEntry` is a path through other nodes; :class:`DirectEntry` one of length zero, whose
entry id this node serves itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from phantom_tun.errors import DeadlineExpired, LinkBroken, PeerError, StreamReset, WorldError
from phantom_tun.ids import TunnelBlock
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.tunnels.entry_node import EntryDesk
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.tunnel import Tunnel
from phantom_tun.path.hop import OwnedPath
from phantom_tun.tunnel.blocks import MAX_BLOCKS, inbound_pairs
from phantom_tun.tunnel.layers import PackageBox, owner_layers
from phantom_tun.wire.tunnel import (
    Body,
    Opening,
    Operation,
    Package,
    Status,
    answer_body,
    failed_body,
    pack_entry_answer,
    pack_opening,
)

MAX_IDLE = 128
"""Inbound tunnels of one path that wait for a request."""

IDLE_LIFE = 600.0
"""Seconds an inbound tunnel may wait for its request; entry nodes recycle theirs much earlier."""

SILENCE_UNTIL_DEAD = 300.0
"""Seconds without any block from the entry node after which the path is given up: more than twice
the longest time after which an entry node recycles a ready tunnel."""

WATCH_EVERY = 0.5
"""Seconds between looks at whether there are tunnels."""

GRACE_AFTER_LOSS = 8.0
"""Seconds without an idle tunnel and without a new block after which the path is given up."""

DOUBT_AFTER_LOSS = 2.0
"""Seconds of the same after which a successor is built: when tunnels are lost and the path still
works, new blocks come within a second."""


class Accept(Protocol):
    """Answers a request."""

    async def __call__(self, answer: bytes, *, hold: bool = False) -> Tunnel:
        """Send the answer and hand over the tunnel that data follows on; with ``hold`` the tunnel
        owes it (:attr:`Tunnel.owed`), so that it can go with the first data."""
        ...


RequestHandler = Callable[[str, bytes, Accept], Awaitable[None]]
"""Called with the identity, a sealed request and what answers it. Returns when the connection has
ended; returning without accepting says that there's no answer."""


class OwnedEntry:
    """An entry path of at least one hop."""

    def __init__(
        self,
        path: OwnedPath,
        hub: TunnelHub,
        handler: RequestHandler,
        on_dead: Callable[[OwnedPath], None],
        on_doubt: Callable[[OwnedPath], None],
    ) -> None:
        self.path = path
        self._hub = hub
        self._handler = handler
        self._on_dead = on_dead
        self._on_doubt = on_doubt
        self._seen: set[TunnelBlock] = set()
        self._idle: dict[Tunnel, trio.CancelScope] = {}
        self._updates: deque[bytes] = deque(maxlen=8)
        self._last_block = 0.0
        self._first = trio.Event()
        self._serving: set[Tunnel] = set()

    @property
    def active(self) -> int:
        """Tunnels that carry something. Who uses one may be done with it, or have lost it, and go
        on over another one before the handler returns."""
        return sum(not tunnel.is_released for tunnel in self._serving)

    @property
    def ready(self) -> int:
        """Tunnels that wait for a request."""
        return len(self._idle)

    @property
    def ends(self) -> float:
        """Until when its hops find it in order. It is the entry node that ends it, before that."""
        return self.path.expires

    def plug_in(self) -> None:
        """Start answering blocks."""
        self._hub.board.plug(self.path.members[0].node_id, self.path.first_connection, self)
        self._hub.start(self._watch)

    def unplug(self) -> None:
        """Stop answering; tunnels in use finish by themselves."""
        self._hub.board.unplug(self.path.members[0].node_id, self.path.first_connection)
        for scope in self._idle.values():
            scope.cancel()

    async def wait_first(self, within: float) -> None:
        """Wait until the entry node's first block came and was answered.

        :raises DeadlineExpired: it didn't come.
        """
        with trio.move_on_after(within):
            await self._first.wait()
            return
        raise DeadlineExpired("the entry node sent no block")

    def queue_update(self, call: bytes) -> None:
        """Have the entry node carry out a netdb call: it rides in the next tunnel's init package,
        which comes when the entry node replaces its oldest ready tunnel. Asking for one, by giving
        up an idle one, would show every hop that this is an entry path, and whose end this is."""
        self._updates.append(call)

    async def _watch(self) -> None:
        await self._first.wait()
        lost_since: float | None = None
        while self._hub.board.plugged(self):
            await trio.sleep(WATCH_EVERY)
            now = trio.current_time()
            if self._idle or self.active:
                lost_since = None
            elif lost_since is None:
                lost_since = now
            without = 0.0 if lost_since is None else now - max(lost_since, self._last_block)
            if without > GRACE_AFTER_LOSS or now - self._last_block > SILENCE_UNTIL_DEAD:
                self._on_dead(self.path)
                return
            if without > DOUBT_AFTER_LOSS:
                self._on_doubt(self.path)

    # --- building -------------------------------------------------------------------------------

    async def tunnel_opened(self, block: TunnelBlock, bulk: Bulk) -> None:
        """Nobody opens bulk links towards the owner of an entry path."""
        self._hub.counts["drop_tunnel_at_owner"] += 1
        bulk.reset()

    def block_arrived(self, block: TunnelBlock) -> None:
        """The entry node announces a tunnel."""
        if block in self._seen or len(self._seen) >= MAX_BLOCKS or len(self._idle) >= MAX_IDLE:
            self._hub.counts["drop_block_at_owner"] += 1
            return
        self._seen.add(block)
        self._last_block = trio.current_time()
        self._hub.start(self._answer_block, block)

    async def _answer_block(self, block: TunnelBlock) -> None:
        first = self.path.members[0]
        opening = pack_opening(Opening.TUNNEL, self.path.first_connection, block, self._hub.rng)
        secrets = self.path.secrets
        pairs = inbound_pairs(secrets, block)
        layers = owner_layers(secrets, pairs, outbound=False)
        box = PackageBox("entry", secrets[-1], pairs[-1])
        update = self._updates.popleft() if self._updates else None
        body = Body(Operation.READY) if update is None else Body(Operation.UPDATE, update)
        try:
            tunnel = await Tunnel.open(
                lambda init: self._hub.links.open_bulk(first, opening, init),
                layers.outgoing,
                layers.incoming,
                box,
                body,
                path_number=self.path.number,
            )
        except WorldError:
            self._hub.counts["inbound_builds_failed"] += 1
            if update is not None:
                self._updates.append(update)
            return
        try:
            self._first.set()
            await self._wait_request(tunnel)
        except (StreamReset, DeadlineExpired, LinkBroken):
            self._hub.counts["inbound_tunnels_unused"] += 1
        except PeerError as error:
            self._hub.counts[f"drop_inbound_{type(error).__name__}"] += 1
        finally:
            await tunnel.aclose()

    async def _wait_request(self, tunnel: Tunnel) -> None:
        idle = trio.CancelScope()
        self._idle[tunnel] = idle
        try:
            with idle, trio.fail_after(IDLE_LIFE):
                await tunnel.wait_readable()
        except trio.TooSlowError:
            return
        finally:
            del self._idle[tunnel]
        if idle.cancelled_caught:
            return
        request = await tunnel.receive_package(Package.REPLY, 10.0)
        self._serving.add(tunnel)
        try:
            await self._serve(tunnel, request.content)
        finally:
            self._serving.discard(tunnel)

    async def _serve(self, tunnel: Tunnel, sealed_request: bytes) -> None:
        accepted = False

        async def accept(answer: bytes, *, hold: bool = False) -> Tunnel:
            nonlocal accepted
            accepted = True
            if hold:
                tunnel.owed = tunnel.lock_package(Package.RESULT, answer_body(answer))
            else:
                await tunnel.send_package(Package.RESULT, answer_body(answer))
            return tunnel

        await self._handler(self.path.identity, sealed_request, accept)
        if not accepted:
            await tunnel.send_package(Package.RESULT, failed_body(Status.NO_TUNNEL))
            await tunnel.finish()


class DirectEntry:
    """An entry path of length zero: requests for its entry id are answered at this node."""

    def __init__(self, path: OwnedPath, desk: EntryDesk, handler: RequestHandler) -> None:
        self.path = path
        self._desk = desk
        self._handler = handler
        self._serving: set[Tunnel] = set()

    @property
    def active(self) -> int:
        """As at :class:`OwnedEntry`."""
        return sum(not tunnel.is_released for tunnel in self._serving)

    @property
    def ready(self) -> int:
        """A direct entry needs no preparation."""
        return 1

    @property
    def waiting(self) -> int:
        """Nobody waits for tunnels."""
        return 0

    def plug_in(self) -> None:
        """Start serving the entry id."""
        if self.path.entry_id is not None:
            self._desk.register(self.path.entry_id, self)

    def unplug(self) -> None:
        """Stop serving the entry id."""
        if self.path.entry_id is not None:
            self._desk.forget(self.path.entry_id, self)

    async def serve(self, sealed_request: bytes, bulk: Bulk, *, hurry: bool = False) -> Status:
        """See :class:`~phantom_tun.net.tunnels.entry_node.EntryTarget`."""
        tunnel = Tunnel(bulk, path_number=self.path.number)
        accepted = False

        async def accept(answer: bytes, *, hold: bool = False) -> Tunnel:
            nonlocal accepted
            accepted = True
            if hold:
                tunnel.owed = pack_entry_answer(answer)
            else:
                await bulk.send_bytes(pack_entry_answer(answer))
            return tunnel

        self._serving.add(tunnel)
        try:
            await self._handler(self.path.identity, sealed_request, accept)
        finally:
            self._serving.discard(tunnel)
        return Status.OK if accepted else Status.NO_TUNNEL
