"""Who is at the other end of a link, and what links ask of the layers above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from phantom_tun.ids import NodeId
from phantom_tun.wire.nodes import IpAddress

if TYPE_CHECKING:
    from phantom_tun.net.links.bulk import Bulk


def origin(address: IpAddress) -> bytes:
    """What counts as one place: an IPv4 address, an IPv6 /64."""
    return address.packed if address.version == 4 else address.packed[:8]


@dataclass(frozen=True, slots=True)
class Peer:
    """An authenticated neighbour."""

    node_id: NodeId
    address: IpAddress
    """Its address as seen by us."""


@dataclass(frozen=True, slots=True)
class NeighbourInfo:
    """One neighbour as shown to the node's owner."""

    node_id: NodeId
    address: IpAddress
    signalling: bool
    """Whether a signalling link stands."""
    dialed: bool
    """Whether we dialed the signalling link."""
    bulk_in_use: int
    """Bulk links that carry something for somebody."""
    bulk_idle: int
    """Bulk links that wait, for us or for the neighbour to use them."""
    silent: float | None
    """Seconds since something last came over signalling; None without a link."""


class LinkHandlers(Protocol):
    """What the node does with what neighbours start."""

    async def bulk_opened(self, peer: Peer, opening: bytes, bulk: Bulk) -> None:
        """``peer`` began a use of a bulk link with the 64 bytes ``opening``. Runs in a task of its
        own. When it returns the use is released as by :meth:`Bulk.aclose`, unless it is
        :attr:`Bulk.kept`; a :class:`~phantom_tun.errors.PhantomError` resets it and is counted."""
        ...

    def signalled(self, peer: Peer, payload: bytes) -> None:
        """A one-way message came. Must not block."""
        ...

    async def called(self, peer: Peer, payload: bytes) -> bytes:
        """Answer a call with at most 64,000 bytes. A :class:`~phantom_tun.errors.PhantomError` is
        counted and gives no answer."""
        ...
