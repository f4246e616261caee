"""Identifier types. All are plain ``bytes`` at run time; the names keep them apart for readers
and for the type checker. Lengths are enforced where bytes come in, in ``wire``."""

from __future__ import annotations

import ipaddress
from typing import NewType

NodeId = NewType("NodeId", bytes)
"""32 bytes: H('node', identity key)."""

NetworkId = NewType("NetworkId", bytes)
"""32 bytes: hash of the immutable part of the network profile."""

ConnectionId = NewType("ConnectionId", bytes)
"""16 random bytes naming the connection between two neighbours in a build or in a path."""

EntryId = NewType("EntryId", bytes)
"""16 random bytes by which an entry node knows one entry path; published in an APRoute."""

PublicKey = NewType("PublicKey", bytes)
"""32 bytes: an Ed25519 public key (node identity, AP identity, construction key, override key)."""

CertHash = NewType("CertHash", bytes)
"""32 bytes: H('certificate', DER) of a communication or end-to-end certificate."""

TunnelBlock = NewType("TunnelBlock", bytes)
"""16 bytes: N_i of a routing tunnel between hop i and hop i+1."""

StorageKey = NewType("StorageKey", bytes)
"""32 bytes: where a record lives in the network database."""

ApAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
"""An AP address as applications see it."""


def short(identifier: bytes) -> str:
    """The first 8 hex digits, for people. Never log it for anyone else's node at info level."""
    return identifier[:4].hex()
