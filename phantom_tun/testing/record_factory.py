"""Nodes and AP identities made from numbers, for tests and simulations: the same number always
gives the same keys, and every node sits in a /16 of its own unless told otherwise."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from phantom_tun.clock import DAY, HOUR
from phantom_tun.crypto.hashes import h
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.ids import CertHash, EntryId, NetworkId, NodeId
from phantom_tun.netdb import proof
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.signing import sign_ap_key_record, sign_ap_route, sign_node_record
from phantom_tun.wire.nodes import IpAddress
from phantom_tun.wire.records import (
    PATH_KEY_LEN,
    APKeyRecord,
    APRoute,
    Capability,
    NodeAddress,
    NodeRecord,
)

NETWORK = NetworkParams(
    network_id=NetworkId(h("network", b"tests")),
    pow_bits=2,
    ap4=ipaddress.IPv4Network("240.0.0.0/4"),
    ap6=ipaddress.IPv6Network("2001:2f::/32"),
)
NOW = 1_800_000_000.0
"""Some moment, 08:00 UTC."""


def stretched(label: str, number: int, length: int) -> bytes:
    """``length`` bytes that depend on label and number only; no valid key of any kind."""
    blocks = (h(label, number.to_bytes(8, "big"), bytes([i])) for i in range(length // 32 + 1))
    return b"".join(blocks)[:length]


@dataclass(frozen=True)
class NodeMaker:
    """The keys of node number ``number``, and records signed with them."""

    number: int
    network: NetworkParams = NETWORK
    address: IpAddress | None = None
    """Default: 11.0.0.1 + number × 65,536, a /16 per node."""
    dialable: bool = True
    key: SigningKey = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", SigningKey(h("test node", self.number.to_bytes(8, "big"))))

    @property
    def ip(self) -> IpAddress:
        """Its underlay address."""
        return self.address or ipaddress.IPv4Address(0x0B000001 + (self.number << 16))

    @property
    def path_key(self) -> bytes:
        """1,216 bytes that stand for its path-building key."""
        return stretched("test path key", self.number, PATH_KEY_LEN)

    def record(
        self,
        now: float = NOW,
        *,
        capabilities: Capability | None = None,
        lifetime: float = DAY,
        families: tuple[bytes, ...] = (),
        path_key: bytes | None = None,
        work: int = 0,
    ) -> NodeRecord:
        """Its record, created at ``now``."""
        if capabilities is None:
            dialable = Capability.RELAY | Capability.DIALABLE
            capabilities = dialable if self.dialable else Capability(0)
        return sign_node_record(
            self.key,
            self.network.network_id,
            cert_hash=CertHash(h("test certificate", self.number.to_bytes(8, "big"))),
            addresses=[NodeAddress.of(self.ip, 443)],
            path_key=path_key or self.path_key,
            path_key_until=now + lifetime,
            capabilities=capabilities,
            families=families,
            work=work,
            created=now,
            expires=now + lifetime,
            pow_nonce=proof.solve(self.network.network_id, self.key.public, self.network.pow_bits),
        )


@dataclass(frozen=True)
class ApMaker:
    """The keys of AP identity number ``number``, and records signed with them."""

    number: int
    network: NetworkParams = NETWORK
    key: SigningKey = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", SigningKey(h("test ap", self.number.to_bytes(8, "big"))))

    def record(
        self,
        now: float = NOW,
        *,
        ap4_n: int | None = 0,
        sequence: int = 1,
        lifetime: float = 4 * HOUR,
        certificate: bytes = b"certificate",
    ) -> APKeyRecord:
        """Its key record, created at ``now``."""
        return sign_ap_key_record(
            self.key,
            self.network.network_id,
            ap4_n=ap4_n,
            certificate=certificate,
            request_key=stretched("test request key", self.number, PATH_KEY_LEN),
            created=now,
            expires=now + lifetime,
            sequence=sequence,
        )

    def route(
        self,
        now: float = NOW,
        *,
        entry_node: NodeId,
        entry: int = 0,
        sequence: int = 1,
        lifetime: float = HOUR,
    ) -> APRoute:
        """A route over ``entry_node``."""
        return sign_ap_route(
            self.key,
            self.network.network_id,
            entry_node=entry_node,
            entry_id=EntryId(h("test entry", entry.to_bytes(8, "big"))[:16]),
            sequence=sequence,
            expires=now + lifetime,
        )
