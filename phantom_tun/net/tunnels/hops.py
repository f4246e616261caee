"""The hops this node is for other people's paths: interior, exit and entry
(docs/spec/tunnel.md, "Hops")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from phantom_tun.errors import PeerError, WorldError
from phantom_tun.ids import NodeId
from phantom_tun.net.tunnels.entry_node import EntryDesk, EntryHop
from phantom_tun.net.tunnels.exit_node import EntryDialer, ExitDatabase, ExitHop
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.relay import InteriorHop
from phantom_tun.path.hop import PathHop

IDLE_LIFE = 900.0
"""Seconds without any tunnel after which a hop is forgotten: its owner is gone."""

SWEEP_EVERY = 5.0
"""Seconds between looks for expired hops, and for those that remember too many blocks."""

BLOCK_MEMORY = 64 << 20
"""Bytes of blocks that all hops together remember: 4,000 for each of 2,000 hops, where an idle path
of a day needs 3,000."""

BLOCK_MEMORY_EACH = BLOCK_MEMORY // 4
"""Of those, for blocks that one neighbour brought."""


class HopHost:
    """All hops of this node, from the end of their build to their expiry."""

    def __init__(
        self,
        hub: TunnelHub,
        desk: EntryDesk,
        database: ExitDatabase,
        dialer: EntryDialer,
        *,
        publish: Callable[[bytes], Awaitable[None]],
        on_end: Callable[[PathHop], None],
    ) -> None:
        """``publish`` stores a signed APRoute; it may raise :class:`PeerError` or
        :class:`WorldError`. ``on_end`` is told of every hop that is forgotten."""
        self._hub = hub
        self._desk = desk
        self._database = database
        self._dialer = dialer
        self._publish = publish
        self._on_end = on_end
        self._hops: dict[int, InteriorHop | ExitHop | EntryHop] = {}

    async def run(self) -> None:
        """Forget hops that have expired, that nobody uses, or for whose blocks there is no room,
        until cancelled."""
        while True:
            await trio.sleep(SWEEP_EVERY)
            now = self._hub.now()
            for host in list(self._hops.values()):
                if host.hop.expires <= now or host.last_used <= now - IDLE_LIFE:
                    self.remove(host.hop)
                else:
                    host.blocks.tidy(now)
            self._make_room()

    def add(self, hop: PathHop) -> None:
        """A build is complete at this node."""
        host: InteriorHop | ExitHop | EntryHop
        if hop.role == "interior":
            host = InteriorHop(hop, self._hub, self.remove)
        elif hop.role == "exit":
            host = ExitHop(hop, self._hub, self._database, self._dialer)
        else:
            host = EntryHop(hop, self._hub, self._carry_out, self._first_tunnel)
            if hop.entry_id is not None:
                self._desk.register(hop.entry_id, host)
        self._hops[id(hop)] = host
        self._hub.counts[f"hops_{hop.role}"] += 1
        host.plug_in()

    def remove(self, hop: PathHop) -> None:
        """Forget a hop; tunnels that are up finish by themselves. Idempotent."""
        host = self._hops.pop(id(hop), None)
        if host is None:
            return
        host.unplug()
        self._on_end(hop)
        if isinstance(host, EntryHop) and hop.entry_id is not None:
            self._desk.forget(hop.entry_id, host)

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return {"hops": len(self._hops)}

    def _make_room(self) -> None:
        """Close the hops with most blocks of a neighbour that has more than its share, and while
        there are too many in all, of the one that has most."""
        by_hop = {number: _held(host) for number, host in self._hops.items()}
        held: Counter[NodeId] = Counter()
        for counts in by_hop.values():
            held.update(counts)
        total = held.total()
        while by_hop:
            ((node_id, most),) = held.most_common(1)
            if most <= BLOCK_MEMORY_EACH and total <= BLOCK_MEMORY:
                return
            fullest = max(by_hop, key=lambda number: by_hop[number][node_id])
            freed = by_hop.pop(fullest)
            held.subtract(freed)
            total -= freed.total()
            self._hub.counts["drop_hop_block_memory"] += 1
            self.remove(self._hops[fullest].hop)

    def _first_tunnel(self, hop: PathHop) -> None:
        if hop.route is not None:
            self._hub.start(self._publish_route, hop.route)

    async def _publish_route(self, route: bytes) -> None:
        try:
            await self._publish(route)
        except (PeerError, WorldError):
            self._hub.counts["route_publications_failed"] += 1

    async def _carry_out(self, call: bytes) -> None:
        try:
            await self._database.perform_for_entry(call)
            self._hub.counts["entry_netdb_calls"] += 1
        except (PeerError, WorldError):
            self._hub.counts["entry_netdb_calls_failed"] += 1


def _held(host: InteriorHop | ExitHop | EntryHop) -> Counter[NodeId]:
    """Who brought blocks to a hop, and how much memory they take. What a terminating node draws
    itself counts as its one neighbour's."""
    held: Counter[NodeId] = Counter()
    for side, count in enumerate(host.blocks.held()):
        node, _ = host.hop.neighbours[side % len(host.hop.neighbours)]
        held[node.node_id] += count
    return held
