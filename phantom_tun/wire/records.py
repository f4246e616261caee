"""The records of the network database as bytes (docs/spec/netdb.md, "Records").

A record is a msgpack array whose last element is its 64-byte Ed25519 signature; what is signed is
everything before it, together with the network id and a purpose of its own. Encodings are
canonical: a record that doesn't encode to the very bytes it came in is refused, so the digest of
those bytes names it. Whether a record may be *believed* is decided in ``netdb``: signatures in
``netdb.signing``, storage rules in ``netdb.rules``.

Times are whole seconds since the epoch, UTC.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, TypeVar, cast

import msgspec

from phantom_tun.crypto.hashes import h
from phantom_tun.crypto.signing import SIGNATURE_LEN, node_id_of
from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import WireError
from phantom_tun.ids import CertHash, NodeId
from phantom_tun.wire.nodes import IpAddress, NodeRef

MAX_NODE_RECORD_LEN = 512
MAX_AP_KEY_RECORD_LEN = 2_560
MAX_AP_ROUTE_LEN = 300
MAX_OVERRIDE_LEN = 2_816

MAX_WORK = 24
"""Bits that a record can ask builders for; owners are willing to do less."""
MAX_ADDRESSES = 4
MAX_FAMILIES = 4
FAMILY_LEN = 16
PATH_KEY_LEN = 1_216
"""Length of an HPKE public key on the wire, the path-building and the request key alike."""
MAX_AP_CERTIFICATE_LEN = 1_024

_SIGNATURE_HEADER = b"\xc4\x40"
_SIGNATURE_TAIL = len(_SIGNATURE_HEADER) + SIGNATURE_LEN

Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_LEN, max_length=SIGNATURE_LEN)]
Seconds = Annotated[int, msgspec.Meta(ge=0, lt=2**40)]
Counter = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class Capability(enum.IntFlag):
    """What a node offers to others."""

    RELAY = 1
    """Takes part in paths of others."""
    DIALABLE = 2
    """Can be dialed at the addresses of its record."""


KNOWN_CAPABILITIES = Capability.RELAY | Capability.DIALABLE
_RELAY = int(Capability.RELAY)
_DIALABLE = int(Capability.DIALABLE)


class NodeAddress(msgspec.Struct, frozen=True, array_like=True):
    """One underlay address of a node. ``port`` is 0 if it can't be dialed there."""

    packed: Annotated[bytes, msgspec.Meta(min_length=4, max_length=16)]
    """4 or 16 bytes, network order."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)]

    def __post_init__(self) -> None:
        if len(self.packed) not in {4, 16}:
            raise ValueError("an address has 4 or 16 bytes")

    @property
    def ip(self) -> IpAddress:
        """The address."""
        return ipaddress.ip_address(self.packed)

    @classmethod
    def of(cls, address: IpAddress, port: int) -> NodeAddress:
        """The wire form of an address and a port."""
        return cls(address.packed, port)


@dataclass(frozen=True, slots=True)
class Networks:
    """Which parts of the Internet a node sits in. Private and loopback addresses stand for
    themselves, port included: where they are in use a prefix says nothing about who pays."""

    narrow: frozenset[bytes]
    """/24 of IPv4, /48 of IPv6."""
    wide: frozenset[bytes]
    """/16 of IPv4, /32 of IPv6."""

    @classmethod
    def of(cls, addresses: Iterable[NodeAddress]) -> Networks:
        """The networks of some addresses."""
        narrow, wide = set(), set()
        for address in addresses:
            packed = address.packed
            if address.ip.is_private:
                whole = packed + address.port.to_bytes(2, "big")
                narrow.add(whole)
                wide.add(whole)
            else:
                four = len(packed) == 4
                narrow.add(packed[: 3 if four else 6])
                wide.add(packed[: 2 if four else 4])
        return cls(frozenset(narrow), frozenset(wide))


class Record(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """What all records share. ``encode`` gives the canonical bytes."""

    KIND: ClassVar[str]
    """Purpose of the signature and domain of the digest."""
    MAX_LEN: ClassVar[int]

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes, signature included."""
        return _ENCODER.encode(self)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that name exactly this record."""
        return h(self.KIND, self.encoded)

    @property
    def author(self) -> bytes:
        """The Ed25519 key that must have signed it."""
        raise NotImplementedError

    @property
    def signed_part(self) -> bytes:
        """The bytes under the signature: all fields but the signature itself."""
        return self.encoded[:-_SIGNATURE_TAIL]


class NodeRecord(Record, frozen=True, array_like=True, dict=True):
    """How to reach a node and what proves that it is that node.

    The 1,216-byte path-building key travels beside the record, so that routing answers stay small;
    the signature covers its digest.
    """

    KIND = "node record"
    MAX_LEN = MAX_NODE_RECORD_LEN

    identity: Bytes32
    """Ed25519 public key; the node id is its hash."""
    cert_hash: Bytes32
    """Pin of the communication certificate."""
    addresses: Annotated[
        tuple[NodeAddress, ...], msgspec.Meta(min_length=1, max_length=MAX_ADDRESSES)
    ]
    """In the node's order of preference."""
    path_key_digest: Bytes32
    """:func:`path_key_digest` of the current path-building key."""
    path_key_until: Seconds
    """When the node destroys the private half."""
    capabilities: Annotated[int, msgspec.Meta(ge=0, le=int(KNOWN_CAPABILITIES))]
    families: Annotated[tuple[Bytes16, ...], msgspec.Meta(max_length=MAX_FAMILIES)]
    """Tags of groups of nodes that say they are under one control: owners never choose two of one
    family for one path."""
    work: Annotated[int, msgspec.Meta(ge=0, le=MAX_WORK)]
    """Bits of work that whoever builds a path through it should prove: 0 unless it is loaded."""
    created: Seconds
    expires: Seconds
    pow: Counter
    """Nonce of the proof of work that the identity needs."""
    signature: Signature

    @property
    def author(self) -> bytes:
        """The node itself."""
        return self.identity

    @cached_property
    def node_id(self) -> NodeId:
        """H('node', identity)."""
        return node_id_of(self.identity)

    @property
    def dialable(self) -> bool:
        """Whether strangers can open links to it."""
        return bool(self.capabilities & _DIALABLE)

    @property
    def relays(self) -> bool:
        """Whether it takes part in paths of others."""
        return bool(self.capabilities & _RELAY)

    @cached_property
    def ips(self) -> tuple[IpAddress, ...]:
        """Its addresses without ports, in order of preference."""
        return tuple(address.ip for address in self.addresses)

    @cached_property
    def public(self) -> bool:
        """Whether one of its addresses can be reached from all of the Internet."""
        return any(ip.is_global for ip in self.ips)

    @cached_property
    def networks(self) -> Networks:
        """The networks its addresses are in, for rules about diversity."""
        return Networks.of(self.addresses)

    def ref(self, version: int | None = None) -> NodeRef:
        """How to dial it: at its first address of IP ``version``, else at its first address."""
        return self.refs(version)[0]

    def refs(self, version: int | None = None) -> tuple[NodeRef, ...]:
        """All ways to dial it, those at addresses of IP ``version`` first."""
        certificate = CertHash(self.cert_hash)
        found = sorted(self.addresses, key=lambda address: address.ip.version != version)
        if not self.dialable:
            return (NodeRef(self.node_id, certificate, found[0].ip, 0),)
        return tuple(NodeRef(self.node_id, certificate, each.ip, each.port) for each in found)


class APKeyRecord(Record, frozen=True, array_like=True, dict=True):
    """What a caller needs to know about an AP identity, and its lease of an AP4 address."""

    KIND = "ap key record"
    MAX_LEN = MAX_AP_KEY_RECORD_LEN

    public_key: Bytes32
    """Ed25519 key of the AP identity; both addresses follow from it."""
    ap4_n: Annotated[int, msgspec.Meta(ge=0, le=255)] | None
    """Which candidate of ``netdb.addresses.ap4_candidate`` is claimed; None claims no AP4."""
    certificate: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_AP_CERTIFICATE_LEN)]
    """End-to-end TLS certificate, DER."""
    request_key: Annotated[bytes, msgspec.Meta(min_length=PATH_KEY_LEN, max_length=PATH_KEY_LEN)]
    """HPKE public key that connection requests are sealed to."""
    created: Seconds
    expires: Seconds
    sequence: Counter
    signature: Signature

    @property
    def author(self) -> bytes:
        """The AP identity."""
        return self.public_key


class APRoute(Record, frozen=True, array_like=True, dict=True):
    """One entry path of an AP identity: where requests for it can be left."""

    KIND = "ap route"
    MAX_LEN = MAX_AP_ROUTE_LEN

    public_key: Bytes32
    """The AP identity."""
    entry_node: Bytes32
    """Node id of the entry node."""
    entry_id: Bytes16
    """By which the entry node knows the path."""
    sequence: Counter
    expires: Seconds
    signature: Signature

    @property
    def author(self) -> bytes:
        """The AP identity."""
        return self.public_key


class OverrideAction(enum.IntEnum):
    """What an override command does to the network's view of itself; never more than that."""

    BAN_PREFIX = 1
    """``subject``: address (4 or 16) ‖ prefix length u8."""
    UNBAN_PREFIX = 2
    BAN_NODE = 3
    """``subject``: node id."""
    UNBAN_NODE = 4
    DELETE_RECORD = 5
    """``subject``: AP public key: its key record and routes are dropped and not taken again."""
    PIN_RECORD = 6
    """``record``: an AP key record that its owner validly signed; it is held and preferred."""


class OverrideRecord(Record, frozen=True, array_like=True, dict=True):
    """A command signed by a holder of an override key of the network profile."""

    KIND = "override"
    MAX_LEN = MAX_OVERRIDE_LEN

    signer: Bytes32
    """Override verification key."""
    number: Counter
    """Names the command; strictly rising per signer."""
    action: Annotated[int, msgspec.Meta(ge=1, le=int(max(OverrideAction)))]
    subject: Annotated[bytes, msgspec.Meta(max_length=32)]
    record: Annotated[bytes, msgspec.Meta(max_length=MAX_AP_KEY_RECORD_LEN)]
    created: Seconds
    expires: Seconds
    signature: Signature

    @property
    def author(self) -> bytes:
        """The holder of the override key."""
        return self.signer


_ENCODER = msgspec.msgpack.Encoder()
_R = TypeVar("_R", bound=Record)
_DECODERS: dict[type[Record], msgspec.msgpack.Decoder[Record]] = {
    kind: msgspec.msgpack.Decoder(kind)
    for kind in (NodeRecord, APKeyRecord, APRoute, OverrideRecord)
}


def decode(kind: type[_R], data: bytes) -> _R:
    """Parse a record of ``kind``. Its signature is *not* checked here.

    :raises WireError: too long, malformed, a field out of range, or not the canonical encoding.
    """
    if len(data) > kind.MAX_LEN:
        raise WireError(f"{kind.KIND} is longer than {kind.MAX_LEN} bytes")
    try:
        record = _DECODERS[kind].decode(data)
    except UNREADABLE as error:
        raise WireError(f"{kind.KIND} does not parse") from error
    if record.encoded != data:
        raise WireError(f"{kind.KIND} is not in canonical form")
    return cast("_R", record)


def path_key_digest(public: bytes) -> bytes:
    """H('path key', public): what a NodeRecord says about its path-building key."""
    return h("path key", public)
