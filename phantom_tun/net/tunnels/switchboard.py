"""Where what comes over links finds its receiver (docs/spec/tunnel.md, "Switchboard").

A path connection is known by the neighbour's authenticated node id together with the connection
id: a connection id that leaks is of no use to anyone else. Whatever names nothing here is dropped
in silence and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Protocol

from phantom_tun.errors import PeerError
from phantom_tun.ids import ConnectionId, EntryId, NodeId, TunnelBlock
from phantom_tun.net.links.bulk import Bulk
from phantom_tun.net.links.peers import Peer
from phantom_tun.wire.tunnel import (
    Opening,
    opening_block,
    opening_id,
    opening_kind,
    unpack_block,
)


class Receiver(Protocol):
    """One end of a path connection: a hop's side, or the owner's end."""

    def block_arrived(self, block: TunnelBlock) -> None:
        """A tunnel block came over signalling. Never blocks.

        :raises PeerError: not acceptable: counted and dropped.
        """
        ...

    async def tunnel_opened(self, block: TunnelBlock, bulk: Bulk) -> None:
        """A bulk link was opened for ``block``; the link is released when this returns.

        :raises PeerError: not acceptable: counted, the link is closed.
        """
        ...


class Switchboard:
    """Implements :class:`~phantom_tun.net.links.peers.LinkHandlers`."""

    def __init__(
        self,
        arrays: Callable[[Peer, bytes, Bulk], Awaitable[None]],
        entries: Callable[[Peer, EntryId, Bulk], Awaitable[None]],
        calls: Callable[[Peer, bytes], Awaitable[bytes]],
    ) -> None:
        """Who takes setup arrays, entry requests and netdb calls."""
        self._arrays = arrays
        self._entries = entries
        self._calls = calls
        self._receivers: dict[tuple[NodeId, ConnectionId], Receiver] = {}
        self._counts: Counter[str] = Counter()

    def plug(self, neighbour: NodeId, connection: ConnectionId, receiver: Receiver) -> None:
        """Deliver what ``neighbour`` sends for ``connection`` to ``receiver``."""
        self._receivers[neighbour, connection] = receiver

    def unplug(self, neighbour: NodeId, connection: ConnectionId) -> None:
        """Stop delivering; idempotent."""
        self._receivers.pop((neighbour, connection), None)

    def plugged(self, receiver: Receiver) -> bool:
        """Whether ``receiver`` still gets anything."""
        return receiver in self._receivers.values()

    def statistics(self) -> dict[str, int]:
        """Counters by name; every drop has one."""
        return {"path_connections": len(self._receivers), **self._counts}

    # --- LinkHandlers ---------------------------------------------------------------------------

    def signalled(self, peer: Peer, payload: bytes) -> None:
        """A one-way message."""
        try:
            connection, block = unpack_block(payload)
            receiver = self._receivers.get((peer.node_id, connection))
            if receiver is None:
                self._counts["drop_block_unknown_connection"] += 1
                return
            receiver.block_arrived(block)
        except PeerError as error:
            self._counts[f"drop_signal_{type(error).__name__}"] += 1

    async def bulk_opened(self, peer: Peer, opening: bytes, bulk: Bulk) -> None:
        """A neighbour starts a use of a bulk link."""
        try:
            kind = opening_kind(opening)
            if kind is Opening.ARRAY:
                await self._arrays(peer, opening, bulk)
            elif kind is Opening.ENTRY:
                await self._entries(peer, EntryId(opening_id(opening)), bulk)
            else:
                connection = ConnectionId(opening_id(opening))
                receiver = self._receivers.get((peer.node_id, connection))
                if receiver is None:
                    self._counts["drop_tunnel_unknown_connection"] += 1
                    bulk.reset()
                    return
                await receiver.tunnel_opened(opening_block(opening), bulk)
        except PeerError as error:
            self._counts[f"drop_opening_{type(error).__name__}"] += 1
            bulk.reset()

    async def called(self, peer: Peer, payload: bytes) -> bytes:
        """A netdb call."""
        return await self._calls(peer, payload)
