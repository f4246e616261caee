"""Which address means what: the AP prefixes, and the interface's own block inside each of them.

====================  ==============================================================  ==========
in the block          role                                                            assigned?
====================  ==============================================================  ==========
``::1`` / ``.0.1``    L, listener: the daemon's sockets                               yes
``::2`` / ``.0.2``    N: whom the listener sees as peer; also the gateway in errors   never
``::3`` / ``.0.3``    M: whom the daemon connects to instead of a local service       never
the rest              callers without a confirmed AP address (NAT peers)              no
====================  ==============================================================  ==========
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from phantom_tun.ids import ApAddress
from phantom_tun.packet.header import IpHeader, Protocol

_RESERVED4 = 16
_RESERVED6 = 64
_UNUSED4 = IPv4Network("255.255.0.0/16")

_ICMP = (Protocol.ICMP, Protocol.ICMPV6)
_CARRIED = {
    4: frozenset({Protocol.ICMP, Protocol.TCP, Protocol.UDP}),
    6: frozenset({Protocol.ICMPV6, Protocol.TCP, Protocol.UDP}),
}


@dataclass(frozen=True, slots=True)
class Roles:
    """The interface's own addresses of one IP version."""

    listener: ApAddress
    peer: ApAddress
    service: ApAddress


def roles_of(prefix: IPv4Network | IPv6Network) -> Roles:
    """L, N and M of an AP prefix."""
    return Roles(prefix[1], prefix[2], prefix[3])


class AddressPlan:
    """Judges addresses. :attr:`own` is replaced as a whole, so that another thread may look.

    :param ap4: the IPv4 AP prefix.
    :param ap6: the IPv6 AP prefix.
    """

    def __init__(self, ap4: IPv4Network, ap6: IPv6Network) -> None:
        self.prefixes: dict[int, IPv4Network | IPv6Network] = {4: ap4, 6: ap6}
        self.roles = {4: roles_of(ap4), 6: roles_of(ap6)}
        self.own: frozenset[ApAddress] = frozenset()
        """Our AP addresses at the moment."""
        self._block4 = IPv4Network((ap4.network_address, _RESERVED4))
        self._block6 = IPv6Network((ap6.network_address, _RESERVED6))
        self._listeners = {self.roles[4].listener, self.roles[6].listener}
        self._internal = {
            address
            for roles in self.roles.values()
            for address in (roles.listener, roles.peer, roles.service)
        }

    def is_ap(self, address: ApAddress) -> bool:
        """An address that an AP identity can own."""
        return address in self.prefixes[address.version] and not self._is_reserved(address)

    def can_be_caller(self, address: ApAddress) -> bool:
        """An address that a local service may see as its peer: somebody else's AP address or a NAT
        peer of the reserved block."""
        return (
            address in self.prefixes[address.version]
            and address not in self._internal
            and address not in self.own
            and (address.version == 6 or address not in _UNUSED4)
        )

    def why_drop(self, header: IpHeader) -> str | None:
        """Why a packet of an unknown flow, sent by a program on this machine, goes no further;
        ``None`` if it may be looked at. The words are names of counters."""
        if header.destination.is_multicast or header.destination == IPv4Address(2**32 - 1):
            return "multicast"
        if header.source in self._listeners:
            return "no_flow"
        if header.source not in self.own:
            return "source_not_ours"
        if header.destination not in self.prefixes[header.destination.version]:
            return "destination_outside"
        # The kernel's complaints about what a NAT peer sent go back to that NAT peer.
        if header.protocol not in _ICMP and not self.is_ap(header.destination):
            return "destination_reserved"
        if header.is_fragment:
            return "fragment"
        if header.has_options:
            return "ip_options"
        if header.protocol not in _CARRIED[header.source.version]:
            return "protocol"
        return None

    def _is_reserved(self, address: ApAddress) -> bool:
        if isinstance(address, IPv6Address):
            return address in self._block6
        return address in self._block4 or address in _UNUSED4
