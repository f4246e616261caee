"""The netdb as terminating nodes use it for owners they don't know (docs/spec/tunnel.md)."""

from __future__ import annotations

from phantom_tun.ids import NodeId
from phantom_tun.net.netdb.service import NetdbService
from phantom_tun.wire.netdb import Method
from phantom_tun.wire.nodes import NodeRef

EXIT_CALLS = frozenset({Method.RESOLVE_AP, Method.RESERVE_AP})
"""What an exit node carries out."""

ENTRY_CALLS = frozenset({Method.EXTEND_AP_LEASE, Method.UPDATE_AP_ROUTES})
"""What an entry node carries out."""


class NodeDatabase:
    """Implements :class:`~phantom_tun.net.tunnels.exit_node.ExitDatabase`."""

    def __init__(self, netdb: NetdbService, ip_version: int) -> None:
        """``ip_version``: which addresses of other nodes this node dials."""
        self._netdb = netdb
        self._ip_version = ip_version

    def known_ref(self, node_id: NodeId) -> NodeRef | None:
        """See :class:`~phantom_tun.net.tunnels.exit_node.ExitDatabase`."""
        record = self._netdb.known_node(node_id)
        return None if record is None else record.ref(self._ip_version)

    async def find_ref(self, node_id: NodeId) -> NodeRef:
        """See :class:`~phantom_tun.net.tunnels.exit_node.ExitDatabase`."""
        return (await self._netdb.find_node(node_id)).ref(self._ip_version)

    async def perform_for_exit(self, call: bytes) -> bytes:
        """See :class:`~phantom_tun.net.tunnels.exit_node.ExitDatabase`."""
        return await self._netdb.perform(call, EXIT_CALLS)

    async def perform_for_entry(self, call: bytes) -> None:
        """See :class:`~phantom_tun.net.tunnels.exit_node.ExitDatabase`."""
        await self._netdb.perform(call, ENTRY_CALLS)
