"""What one part of the Internet may have of this node, and who goes when there is no room
(docs/spec/links.md, "Limits").

Node ids cost next to nothing, and of IPv6 addresses one host has more than anybody counts. So
places are counted per address (IPv6: /64) and per network (/16, IPv6: /32), the same networks that
paths take for one place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from phantom_tun.net.links.limits import LinkLimits
from phantom_tun.net.links.neighbour import Neighbour
from phantom_tun.net.links.peers import origin
from phantom_tun.net.links.shares import Shares
from phantom_tun.path.candidates import prefix
from phantom_tun.wire.nodes import IpAddress


def refusal(address: IpAddress, neighbours: Iterable[Neighbour], limits: LinkLimits) -> str | None:
    """Whether too many neighbours share ``address`` (``"address"``) or its network (``"network"``)
    for one more to come from there of its own accord."""
    place, network = origin(address), prefix(address)
    there = nearby = 0
    for one in neighbours:
        there += one.place == place
        nearby += one.network == network
    if there >= limits.neighbours_per_address:
        return "address"
    return "network" if nearby >= limits.neighbours_per_network else None


def least_needed(neighbours: Collection[Neighbour]) -> Neighbour:
    """Who goes when there are too many: nobody with a use of a bulk link in progress while there
    are others; of the rest, somebody in the network that most neighbours are in; there rather one
    whom we didn't dial, and rather the one that has longest sent and been sent only PINGs."""
    crowds = Counter(one.network for one in neighbours)
    free = [one for one in neighbours if not (one.uses_served or one.in_use)] or neighbours
    most = max(crowds[one.network] for one in free)
    return min(
        (one for one in free if crowds[one.network] == most),
        key=lambda one: (one.wanted, one.used),
    )


class BulkPlaces:
    """Bulk links on which neighbours start uses: in all, per address and per network."""

    def __init__(self, limits: LinkLimits) -> None:
        self._by_address: Shares[bytes] = Shares(limits.bulk_served, limits.bulk_per_address)
        self._by_network: Shares[bytes] = Shares(limits.bulk_served, limits.bulk_per_network)

    def __len__(self) -> int:
        return len(self._by_address)

    def take(self, address: IpAddress) -> bool:
        """Count one link in, if there is room for it."""
        place = origin(address)
        if not self._by_address.take(place):
            return False
        if self._by_network.take(prefix(address)):
            return True
        self._by_address.leave(place)
        return False

    def leave(self, address: IpAddress) -> None:
        """A link that was counted in is closed."""
        self._by_address.leave(origin(address))
        self._by_network.leave(prefix(address))
