"""What becomes of a node when something happens to its machine: it moved, or it slept. Links lead
nowhere then (docs/spec/links.md), and paths through members that know an old address don't last."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from phantom_tun.errors import WorldError
from phantom_tun.net.links.links import Links
from phantom_tun.net.netdb.own_record import OwnRecord, in_record
from phantom_tun.net.netdb.service import NetdbService
from phantom_tun.net.paths.pools import PathPools
from phantom_tun.net.tunnels.connector import Connector
from phantom_tun.net.tunnels.hub import TunnelHub
from phantom_tun.path.hop import OwnedPath
from phantom_tun.wire.nodes import IpAddress


class MachineEvents:
    """Told by whoever watches the machine."""

    def __init__(
        self,
        links: Links,
        own_record: OwnRecord,
        netdb: NetdbService,
        *,
        hub: TunnelHub,
        connector: Connector,
        paths: PathPools,
    ) -> None:
        self._links = links
        self._own_record = own_record
        self._netdb = netdb
        self._hub = hub
        self._connector = connector
        self._paths = paths

    def moved(self, addresses: Sequence[IpAddress]) -> None:
        """The machine has other addresses than before; at these it is to be dialed now. Members of
        our paths know the old ones, so all paths are replaced."""
        self._own_record.move(in_record(addresses), self._netdb.set_own_record)
        self._links.start_over()
        for path in self._connector.standing():
            self._hub.start(self._replace, path)

    async def _replace(self, path: OwnedPath) -> None:
        with suppress(WorldError):
            await self._paths.replace(path)

    def woke(self) -> None:
        """The machine slept for so long that others have closed its links."""
        self._links.start_over()
