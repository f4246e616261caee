"""Parts of the Internet that override commands ban: their form in a command, and finding the
addresses in them (docs/spec/netdb.md, "Override commands").

There can be a thousand bans and thousands of known nodes, and every record that is heard of is
looked up: neither may cost a walk over the other.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_left
from collections.abc import Iterable

from phantom_tun.errors import WireError
from phantom_tun.ids import NodeId
from phantom_tun.wire.nodes import IpAddress
from phantom_tun.wire.records import NodeRecord

SHORTEST_PREFIX = {4: 8, 6: 16}

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def pack_prefix(prefix: IpNetwork) -> bytes:
    """The subject of a command about a prefix: address ‖ length u8."""
    return prefix.network_address.packed + bytes([prefix.prefixlen])


def parse_prefix(subject: bytes) -> IpNetwork:
    """Undo :func:`pack_prefix`.

    :raises WireError: no prefix, bits beyond its length, or so short that it covers a good part of
        the Internet.
    """
    if len(subject) not in {5, 17}:
        raise WireError("the override command names no prefix")
    try:
        prefix = ipaddress.ip_network((subject[:-1], subject[-1]))
    except ValueError as error:
        raise WireError("the override command names no prefix") from error
    if prefix.prefixlen < SHORTEST_PREFIX[prefix.version]:
        raise WireError("the override command names too large a part of the Internet")
    return prefix


class PrefixSet:
    """Says whether an address is in one of many prefixes."""

    __slots__ = ("_by_length",)

    def __init__(self, prefixes: Iterable[IpNetwork]) -> None:
        self._by_length: dict[tuple[int, int], set[int]] = {}
        """(IP version, bits behind the prefix) → the bits of the prefixes."""
        for prefix in prefixes:
            rest = prefix.max_prefixlen - prefix.prefixlen
            found = self._by_length.setdefault((prefix.version, rest), set())
            found.add(int(prefix.network_address) >> rest)

    def __contains__(self, address: IpAddress) -> bool:
        bits, version = int(address), address.version
        return any(
            of == version and bits >> rest in found for (of, rest), found in self._by_length.items()
        )


class Places:
    """Known nodes in the order of their addresses."""

    __slots__ = ("_sorted",)

    def __init__(self, known: Iterable[NodeRecord]) -> None:
        self._sorted: dict[int, list[tuple[int, NodeId]]] = {4: [], 6: []}
        for record in known:
            for ip in record.ips:
                self._sorted[ip.version].append((int(ip), record.node_id))
        for nodes in self._sorted.values():
            nodes.sort()

    def within(self, prefix: IpNetwork) -> set[NodeId]:
        """The nodes with an address in ``prefix``."""
        nodes = self._sorted[prefix.version]
        first = bisect_left(nodes, (int(prefix.network_address),))
        last = bisect_left(nodes, (int(prefix.broadcast_address) + 1,))
        return {node_id for _, node_id in nodes[first:last]}
