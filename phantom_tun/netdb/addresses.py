"""Which addresses belong to an AP key, and where an address is stored
(docs/spec/netdb.md, "Addresses" and "Storage keys").

Everything here is a function of the network, the key and the day: whoever has an AP key can
compute its addresses, and whoever has an address can compute where to ask for it.
"""

from __future__ import annotations

import ipaddress

from phantom_tun.clock import DAY, HOUR
from phantom_tun.crypto.hashes import h
from phantom_tun.ids import ApAddress, NetworkId, StorageKey
from phantom_tun.netdb.network import NetworkParams

AP4_CANDIDATES = 256
STORAGE_KEYS = 3
"""Every address has this many storage keys at any time."""
SHIFT = DAY / STORAGE_KEYS
"""Storage key r changes r × 8 hours before midnight UTC, so that never two change at once: an AP4
lease always has two thirds of its storers left to defend it while one third is being replaced."""
OVERLAP = HOUR
"""Before a storage key changes, writers write to its successor too for this long."""

_RESERVED4_BITS = 16
_AP6_HASH_LEN = 12
_RESERVED6_LEN = 4


def ap6_address(network: NetworkParams, public_key: bytes) -> ipaddress.IPv6Address:
    """The self-certifying address: the /32 prefix ‖ 96 bits of H('ap6', network id, key).

    A hash that would land in the reserved first /64 is hashed once more.
    """
    digest = h("ap6", network.network_id, public_key)
    while digest.startswith(bytes(_RESERVED6_LEN)):
        digest = h("ap6", digest)
    prefix = network.ap6.network_address.packed[:_RESERVED6_LEN]
    return ipaddress.IPv6Address(prefix + digest[:_AP6_HASH_LEN])


def ap4_candidate(network: NetworkParams, public_key: bytes, n: int) -> ipaddress.IPv4Address:
    """Candidate ``n`` (0…255) for the AP4 lease of a key: the prefix ‖ as many bits of
    H('ap4', network id, key, n) as are left.

    A hash that would land in the first or the last /16 of the prefix is hashed once more.
    """
    digest = h("ap4", network.network_id, public_key, bytes([n]))
    blocks = 1 << (_RESERVED4_BITS - network.ap4.prefixlen)
    while True:
        host = int.from_bytes(digest[:4], "big") & int(network.ap4.hostmask)
        if (host >> _RESERVED4_BITS) not in {0, blocks - 1}:
            return network.ap4.network_address + host
        digest = h("ap4", digest)


def is_ap_address(network: NetworkParams, address: ApAddress) -> bool:
    """Whether an AP identity can own ``address``: inside a prefix, outside the reserved blocks."""
    if isinstance(address, ipaddress.IPv4Address):
        block = int(address) >> _RESERVED4_BITS
        first = int(network.ap4.network_address) >> _RESERVED4_BITS
        last = int(network.ap4.broadcast_address) >> _RESERVED4_BITS
        return first < block < last
    return address in network.ap6 and any(address.packed[4:8])


def storage_key(network_id: NetworkId, address: ApAddress, day: int, r: int) -> StorageKey:
    """H('ap', network id, address, day, r)."""
    return StorageKey(h("ap", network_id, address.packed, day.to_bytes(4, "big"), bytes([r])))


def day_of(now: float, r: int) -> int:
    """The day number that counts for storage key ``r`` at the moment ``now``."""
    return int((now + r * SHIFT) // DAY)


def keys_to_read(network_id: NetworkId, address: ApAddress, now: float) -> tuple[StorageKey, ...]:
    """The three storage keys of ``address`` at ``now``, r = 0, 1, 2."""
    return tuple(storage_key(network_id, address, day_of(now, r), r) for r in range(STORAGE_KEYS))


def keys_to_write(network_id: NetworkId, address: ApAddress, now: float) -> tuple[StorageKey, ...]:
    """:func:`keys_to_read`, and the successor of the one that changes within :data:`OVERLAP`."""
    current = keys_to_read(network_id, address, now)
    coming = keys_to_read(network_id, address, now + OVERLAP)
    return current + tuple(key for key in coming if key not in current)
