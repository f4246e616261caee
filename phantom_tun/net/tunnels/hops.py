"""The hops this node is for other people's paths: interior, exit and entry
(docs/spec/tunnel.md, "Hops")."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from phantom_tun.errors import PeerError, WorldError
from phantom_tun.net.tunnels.entry_node import EntryDesk, EntryHop
from phantom_tun.net.tunnels.exit_node import EntryDialer, ExitDatabase, ExitHop
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.net.tunnels.relay import InteriorHop
from phantom_tun.path.hop import PathHop

IDLE_LIFE = 900.0
"""Seconds without any tunnel after which a hop is forgotten: its owner is gone."""

SWEEP_EVERY = 5.0
"""Seconds between looks for expired hops."""


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
        """Forget hops that have expired or that nobody uses, until cancelled."""
        while True:
            await trio.sleep(SWEEP_EVERY)
            now = self._hub.now()
            for host in list(self._hops.values()):
                if host.hop.expires <= now or host.last_used <= now - IDLE_LIFE:
                    self.remove(host.hop)

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
