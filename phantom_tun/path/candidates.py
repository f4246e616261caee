"""Who may stand in one path together (docs/spec/path.md, "Members")."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from phantom_tun.clock import MINUTE
from phantom_tun.crypto.hashes import h
from phantom_tun.ids import NetworkId, NodeId
from phantom_tun.path.work import HARDEST
from phantom_tun.wire.nodes import IpAddress
from phantom_tun.wire.records import FAMILY_LEN, NodeRecord

KEY_MARGIN = 5 * MINUTE
"""A member's path-building key must be valid for this long, which no build outlasts."""

_PREFIX4 = 2
_PREFIX6 = 4


class Candidate(Protocol):
    """A validated node of the local cache with its path-building key."""

    @property
    def record(self) -> NodeRecord:
        """Its NodeRecord."""
        ...

    @property
    def path_key(self) -> bytes:
        """The 1,216-byte key whose digest the record signs."""
        ...

    @property
    def fair(self) -> bool:
        """Whether it came to be known by our own choice. Another one may only keep a place that it
        has as a guard, or that its owner's trust gives it."""
        ...


@dataclass(frozen=True, slots=True)
class Traits:
    """What two nodes of one path must not have in common."""

    ids: frozenset[NodeId]
    prefixes: frozenset[bytes]
    """/16 of IPv4 and /32 of IPv6, of every address."""
    families: frozenset[bytes]
    """Tags of the records' families."""

    def clashes(self, other: Traits) -> bool:
        """Whether the two share anything."""
        return not (
            self.ids.isdisjoint(other.ids)
            and self.prefixes.isdisjoint(other.prefixes)
            and self.families.isdisjoint(other.families)
        )

    def joined(self, other: Traits) -> Traits:
        """What either has."""
        return Traits(
            self.ids | other.ids, self.prefixes | other.prefixes, self.families | other.families
        )


def prefix(address: IpAddress) -> bytes:
    """The part of the Internet that counts as one place, for private addresses too."""
    return address.packed[: _PREFIX4 if isinstance(address, IPv4Address) else _PREFIX6]


def family_tag(network_id: NetworkId, name: str) -> bytes:
    """What the nodes of a family publish, 16 bytes: the same for one name in one network."""
    return h("family", network_id, name.encode())[:FAMILY_LEN]


def traits(record: NodeRecord, relatives: frozenset[NodeId] = frozenset()) -> Traits:
    """Of a node; ``relatives`` are further nodes that its owner says are his."""
    return Traits(
        relatives | {record.node_id},
        frozenset(prefix(address) for address in record.ips),
        frozenset(record.families),
    )


def serves(candidate: Candidate, version: int, now: float) -> bool:
    """Whether a node can be a member of a path over IP ``version`` at all."""
    record = candidate.record
    return (
        record.relays
        and record.dialable
        and record.work <= HARDEST
        and record.expires > now
        and record.path_key_until >= now + KEY_MARGIN
        and any(address.version == version for address in record.ips)
    )
