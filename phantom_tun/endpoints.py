"""What the interface and the overlay are to each other.

``tun`` (the interface) and ``net`` (the overlay) never import one another; they meet in these
protocols. The interface calls an :class:`Overlay` when a local application wants to reach an AP
address; the overlay calls a :class:`LocalHost` when a remote caller was let in by the ``expose``
rules. Either side can be replaced by a fake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from phantom_tun.ids import ApAddress

STREAM_PIECE = 130_880
"""Bytes to hand to :meth:`ByteStream.send_all` at a time, if there are so many: what is made of
them just fits into one frame of a link. Longer pieces are cut."""


MAX_FIRST = 2008
"""Bytes that :meth:`Overlay.open_stream` can take along at most."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a transport flow. ``port`` is 0 for ICMP echo."""

    address: ApAddress
    port: int


class ByteStream(Protocol):
    """A TCP-equivalent connection through the overlay; either direction can end on its own."""

    async def receive(self) -> memoryview:
        """Wait for bytes. Returns at least one byte, or an empty view once after the far side's
        END. The view is valid until the next call.

        :raises StreamReset: the far side reset, or the tunnel died and none took its place.
        """
        ...

    async def send_all(self, data: memoryview) -> None:
        """Send all of ``data``; returns when it is handed to the transport (backpressure).

        :raises StreamReset: the far side reset, or the tunnel died and none took its place.
        """
        ...

    async def send_end(self) -> None:
        """Half-close: no more bytes will be sent. ``receive`` goes on working."""
        ...

    def is_broken(self) -> bool:
        """Whether the far side has reset, or the tunnel died for good, after the far side's END,
        while nobody receives; never blocks, never raises."""
        ...

    def abort(self) -> None:
        """Reset now; what is in flight may be lost. Idempotent, never blocks, never raises."""
        ...

    async def aclose(self) -> None:
        """Release everything. After END both ways this is a clean close, otherwise a reset."""
        ...


class DatagramStream(Protocol):
    """Messages with kept boundaries through the overlay: UDP datagrams of one 5-tuple, or the ICMP
    echo messages (identifier ‖ sequence ‖ data, from byte 4 of the ICMP header on) of one ping."""

    async def receive(self) -> bytes | None:
        """Wait for one message; ``None`` when the far side closed.

        :raises StreamReset: the tunnel died.
        """
        ...

    async def send(self, message: bytes | memoryview) -> None:
        """Send one message of at most 65,507 bytes.

        :raises StreamReset: the tunnel died.
        """
        ...

    async def aclose(self) -> None:
        """Close; pending messages may be lost."""
        ...


class Overlay(Protocol):
    """The anonymous network as the interface sees it."""

    def is_steady(self, source: Endpoint, target: Endpoint) -> bool:
        """Whether a connection to ``target`` is sure enough to come to be that a program may be
        told that it has: its first bytes then go along with the request, which saves a round
        trip."""
        ...

    async def open_stream(
        self, source: Endpoint, target: Endpoint, first: bytes = b""
    ) -> ByteStream:
        """Connect from one of our AP addresses to ``target`` and send ``first``, at most
        ``MAX_FIRST`` bytes; returns when the far service has accepted.

        :raises Refused: exposed there, but closed: answer RST.
        :raises Filtered: not exposed, not allowed or no answer in time: stay silent.
        :raises Unreachable: no such AP address: answer ICMP host unreachable.
        """
        ...

    async def open_datagrams(self, source: Endpoint, target: Endpoint) -> DatagramStream:
        """A UDP flow; raises as :meth:`open_stream`."""
        ...

    async def open_echo(self, source: Endpoint, target: Endpoint) -> DatagramStream:
        """An ICMP echo exchange (ports 0); each message sent comes back; raises as above."""
        ...


class LocalConnection(Protocol):
    """An established kernel connection to a local service, waiting for its remote side."""

    async def carry(self, stream: ByteStream) -> None:
        """Move bytes both ways until both directions ended or one was reset; closes both."""
        ...

    def abort(self) -> None:
        """Give up before :meth:`carry`: the service sees a reset. Idempotent."""
        ...


class LocalDatagrams(Protocol):
    """A UDP association with a local service."""

    async def carry(self, stream: DatagramStream) -> None:
        """Move datagrams both ways until the stream ends or nothing moved for the idle time."""
        ...

    def abort(self) -> None:
        """Give up before :meth:`carry`. Idempotent."""
        ...


class LocalHost(Protocol):
    """This machine's services as the overlay sees them."""

    async def connect_stream(self, caller: Endpoint, target: Endpoint) -> LocalConnection:
        """Connect to the local service at ``target`` (one of our AP addresses) so that the service
        sees ``caller`` as its peer.

        :raises Refused: nothing listens there.
        :raises Filtered: the local host didn't answer in time.
        """
        ...

    async def open_datagrams(self, caller: Endpoint, target: Endpoint) -> LocalDatagrams:
        """The same for UDP."""
        ...
