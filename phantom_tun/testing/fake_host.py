"""What a session service stands on, in memory: identities, their directory, and a host with
services that are coroutines."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from phantom_tun.crypto.certificates import Certificate
from phantom_tun.crypto.sealing import SealingKey
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.crypto.x509 import make_certificate
from phantom_tun.endpoints import ByteStream, DatagramStream, Endpoint
from phantom_tun.errors import ConnectFailed, Filtered, Refused, Unreachable, UsageError
from phantom_tun.ids import ApAddress, EntryId, NodeId, PublicKey
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.network import NetworkParams

StreamService = Callable[[ByteStream], Awaitable[None]]
DatagramService = Callable[[DatagramStream], Awaitable[None]]


@dataclass(slots=True)
class FakeIdentity:
    """An AP identity without files; see :class:`phantom_tun.net.sessions.ports.Identity`."""

    name: str
    signing: SigningKey
    certificate: Certificate
    request_keys: tuple[SealingKey, ...]
    ap4: ipaddress.IPv4Address | None
    ap6: ipaddress.IPv6Address

    @classmethod
    def make(cls, name: str, network: NetworkParams, now: float) -> FakeIdentity:
        """Fresh keys and the addresses that belong to them."""
        signing = SigningKey.generate()
        return cls(
            name,
            signing,
            make_certificate("localhost", now),
            (SealingKey.generate(),),
            ap4_candidate(network, signing.public, 0),
            ap6_address(network, signing.public),
        )


class FakeIdentities:
    """See :class:`phantom_tun.net.sessions.ports.Identities`."""

    def __init__(self, *identities: FakeIdentity) -> None:
        self.all = {identity.name: identity for identity in identities}

    def get(self, name: str) -> FakeIdentity:
        """The identity called ``name``."""
        if name not in self.all:
            raise UsageError(f"there is no AP identity {name!r}")
        return self.all[name]

    def owner_of(self, address: ApAddress) -> FakeIdentity | None:
        """The identity that has ``address``."""
        for identity in self.all.values():
            if address in (identity.ap4, identity.ap6):
                return identity
        return None


@dataclass(slots=True)
class FakeRecord:
    """See :class:`phantom_tun.net.sessions.ports.ResolvedAp`."""

    public_key: PublicKey
    certificate: bytes
    request_key: bytes
    routes: list[tuple[NodeId, EntryId, float]]

    @classmethod
    def of(cls, identity: FakeIdentity, *routes: tuple[NodeId, EntryId, float]) -> FakeRecord:
        """What ``identity`` would publish."""
        return cls(
            identity.signing.public,
            identity.certificate.der,
            identity.request_keys[0].public,
            list(routes),
        )


@dataclass(slots=True)
class FakeDirectory:
    """See :class:`phantom_tun.net.sessions.ports.Directory`."""

    records: dict[ApAddress, FakeRecord] = field(default_factory=dict)
    fresh_records: dict[ApAddress, FakeRecord] = field(default_factory=dict)
    """What only a fresh lookup finds."""
    leases: dict[ApAddress, PublicKey] = field(default_factory=dict)
    failure: Exception | None = None
    """What any lookup ends in."""
    fresh_failure: Exception | None = None
    """What a fresh one ends in."""
    confirm_delay: float = 0.0
    lookups: list[bool] = field(default_factory=list)
    """Whether each one was to be fresh."""
    askers: list[str] = field(default_factory=list)
    """Who had a caller confirmed."""

    async def resolve(
        self, identity: str, address: ApAddress, *, fresh: bool = False
    ) -> FakeRecord:
        """The record of ``address``."""
        await trio.lowlevel.checkpoint()
        self.lookups.append(fresh)
        if self.failure is not None:
            raise self.failure
        if fresh and self.fresh_failure is not None:
            raise self.fresh_failure
        record = self.fresh_records.get(address) if fresh else None
        record = record or self.records.get(address)
        if record is None:
            raise Unreachable(f"{identity} looked for {address}: no such AP address")
        return record

    async def confirm(self, identity: str, address: ApAddress, public_key: PublicKey) -> bool:
        """Whether ``public_key`` has the lease of ``address``."""
        self.askers.append(identity)
        await trio.sleep(self.confirm_delay)
        if self.failure is not None:
            raise self.failure
        return self.leases.get(address) == public_key


@dataclass(slots=True)
class FakeConnection:
    """A local connection whose service is a coroutine."""

    service: StreamService
    ends: tuple[Endpoint, Endpoint]
    is_aborted: bool = False
    is_over: bool = False

    async def carry(self, stream: ByteStream) -> None:
        """See :class:`phantom_tun.endpoints.LocalConnection`."""
        try:
            await self.service(stream)
        finally:
            self.is_over = True

    def abort(self) -> None:
        """See :class:`phantom_tun.endpoints.LocalConnection`."""
        self.is_aborted = self.is_over = True


@dataclass(slots=True)
class FakeAssociation:
    """The same for datagrams."""

    service: DatagramService
    ends: tuple[Endpoint, Endpoint]
    is_aborted: bool = False
    is_over: bool = False

    async def carry(self, stream: DatagramStream) -> None:
        """See :class:`phantom_tun.endpoints.LocalDatagrams`."""
        try:
            await self.service(stream)
        finally:
            self.is_over = True

    def abort(self) -> None:
        """See :class:`phantom_tun.endpoints.LocalDatagrams`."""
        self.is_aborted = self.is_over = True


@dataclass(slots=True)
class FakeHost:
    """Local services by port; see :class:`phantom_tun.endpoints.LocalHost`."""

    streams: dict[int, StreamService] = field(default_factory=dict)
    datagrams: dict[int, DatagramService] = field(default_factory=dict)
    failure: ConnectFailed | None = None
    """What any connection ends in."""
    delay: float = 0.0
    calls: list[tuple[Endpoint, Endpoint]] = field(default_factory=list)
    """Caller and target of each one."""
    connections: list[FakeConnection | FakeAssociation] = field(default_factory=list)

    async def connect_stream(self, caller: Endpoint, target: Endpoint) -> FakeConnection:
        """See :class:`phantom_tun.endpoints.LocalHost`."""
        await self._called(caller, target)
        if target.port not in self.streams:
            raise Refused("nothing listens")
        connection = FakeConnection(self.streams[target.port], (caller, target))
        self.connections.append(connection)
        return connection

    async def open_datagrams(self, caller: Endpoint, target: Endpoint) -> FakeAssociation:
        """See :class:`phantom_tun.endpoints.LocalHost`."""
        await self._called(caller, target)
        if target.port not in self.datagrams:
            raise Refused("nothing listens")
        association = FakeAssociation(self.datagrams[target.port], (caller, target))
        self.connections.append(association)
        return association

    async def _called(self, caller: Endpoint, target: Endpoint) -> None:
        self.calls.append((caller, target))
        await trio.sleep(self.delay)
        if self.failure is not None:
            raise self.failure
        if any(c.ends == (caller, target) and not c.is_over for c in self.connections):
            raise Filtered("a connection with these ends exists already")
