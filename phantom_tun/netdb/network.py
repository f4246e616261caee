"""What the network database needs to know of the network profile."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from phantom_tun.ids import NetworkId


@dataclass(frozen=True, slots=True)
class NetworkParams:
    """The fixed part of a network profile that records depend on."""

    network_id: NetworkId
    pow_bits: int
    """Leading zero bits of a node's proof of work."""
    ap4: ipaddress.IPv4Network
    """Prefix of the AP4 addresses; its first and its last /16 are never leased."""
    ap6: ipaddress.IPv6Network
    """Prefix of the AP6 addresses, a /32; its first /64 is never used."""
