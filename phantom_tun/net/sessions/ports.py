"""What the end-to-end layer needs from its neighbours in ``net``, and no more.

Fakes of these are in :mod:`phantom_tun.testing.fake_tunnel`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from typing import Protocol

from phantom_tun.crypto.certificates import Certificate
from phantom_tun.crypto.sealing import SealingKey
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.ids import ApAddress, EntryId, NodeId, PublicKey
from phantom_tun.net.links.buffers import Buffer
from phantom_tun.net.links.rest import Resting


class Tunnel(Protocol):
    """One routing tunnel after set-up; see :class:`phantom_tun.net.tunnels.tunnel.Tunnel`."""

    owed: bytes
    """What has to be sent before all else."""

    @property
    def path_number(self) -> int:
        """The path of ours that it belongs to."""
        ...

    def rest_with(self, other: Resting) -> None:
        """When nothing moves for a while, ``other`` lets go of what it can make again."""
        ...

    async def receive_pooled(self) -> Buffer:
        """Wait for bytes: a buffer of the pool, which the caller gives back; without segments once
        the other end sent FIN. Nothing is lost if this is cancelled.

        :raises StreamReset: the tunnel died.
        """
        ...

    async def send(self, buffer: Buffer, *, fin: bool = False) -> None:
        """Send the segments of ``buffer``, which are changed in place; with ``fin``, as the last.

        :raises StreamReset: the tunnel died.
        """
        ...

    async def end_send(self) -> None:
        """Send what a :meth:`send` that was cancelled has left, from the same buffer.

        :raises StreamReset: the tunnel died.
        """
        ...

    async def send_fin(self) -> None:
        """No more bytes from this end.

        :raises StreamReset: the tunnel died.
        """
        ...

    def is_broken(self) -> bool:
        """Whether it died; for somebody who has all that can come but FIN, and reads no more."""
        ...

    def reset(self) -> None:
        """Tear the tunnel down now. Idempotent."""
        ...

    async def aclose(self) -> None:
        """Release it: for reuse if both ends sent FIN. Idempotent."""
        ...


class Accept(Protocol):
    """Answers a request; see :class:`phantom_tun.net.tunnels.owned_entry.Accept`."""

    async def __call__(self, answer: bytes, *, hold: bool = False) -> Tunnel:
        """Send the answer and hand over the tunnel that data follows on; with ``hold`` the tunnel
        owes it."""
        ...


class WayOut(Protocol):
    """One exit path; see :class:`phantom_tun.net.tunnels.owned_exit.Exit`."""

    @property
    def number(self) -> int:
        """Of the path."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the path takes no new connections any more."""
        ...

    def heard_since(self, moment: float) -> bool:
        """Whether the path itself has brought anything since then, in trio's time."""
        ...

    async def connect(
        self, entry_node: NodeId, entry_id: EntryId, sealed_request: bytes
    ) -> tuple[bytes, Tunnel]:
        """The callee's answer and the tunnel.

        :raises Unreachable: the entry node, or what is behind it, can't be reached.
        :raises PathUnavailable: this path failed.
        :raises DeadlineExpired: no answer in time.
        """
        ...


class Connector(Protocol):
    """Takes sealed requests to the other end; see
    :class:`phantom_tun.net.tunnels.connector.Connector`."""

    async def way_out(self, identity: str, apart: Collection[int] = ()) -> WayOut:
        """One of the identity's exit paths, if possible none with a number in ``apart``.

        :raises PathUnavailable: none stands.
        """
        ...


class Identity(Protocol):
    """One of this node's AP identities."""

    @property
    def name(self) -> str: ...
    @property
    def signing(self) -> SigningKey: ...
    @property
    def certificate(self) -> Certificate: ...
    @property
    def request_keys(self) -> Sequence[SealingKey]: ...
    @property
    def ap4(self) -> ipaddress.IPv4Address | None: ...
    @property
    def ap6(self) -> ipaddress.IPv6Address: ...


class Identities(Protocol):
    """All of this node's AP identities; see
    :class:`phantom_tun.net.addresses.identities.IdentityStore`."""

    def get(self, name: str) -> Identity:
        """The identity called ``name``.

        :raises UsageError: there is none.
        """
        ...

    def owner_of(self, address: ApAddress) -> Identity | None:
        """The identity that has ``address``."""
        ...


class ResolvedAp(Protocol):
    """What the network database says about an AP address."""

    @property
    def public_key(self) -> PublicKey: ...
    @property
    def certificate(self) -> bytes: ...
    @property
    def request_key(self) -> bytes: ...
    @property
    def routes(self) -> Sequence[tuple[NodeId, EntryId, float]]: ...


class Directory(Protocol):
    """Looks AP addresses up; see :class:`phantom_tun.net.addresses.directory.Directory`."""

    async def resolve(
        self, identity: str, address: ApAddress, *, fresh: bool = False
    ) -> ResolvedAp:
        """Who owns ``address``, asked as ``identity``; ``fresh`` asks again even if the answer is
        known, because its routes failed.

        :raises Unreachable: there is no such address, it has no way in, or nobody could be asked.
        """
        ...

    async def confirm(self, identity: str, address: ApAddress, public_key: PublicKey) -> bool:
        """Whether ``public_key`` owns ``address``, asked as ``identity``."""
        ...
