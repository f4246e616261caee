"""What a node with AP addresses has beside what every node has: others' addresses found, its own
published, connections made and taken. A node that only relays never imports it: 1.4 MB.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.config import InterfaceConfig
from phantom_tun.net.addresses.directory import Directory
from phantom_tun.net.addresses.identities import ApIdentity, IdentityStore
from phantom_tun.net.addresses.pins import Pins
from phantom_tun.net.addresses.publishers import Publishers
from phantom_tun.net.sessions.expose import ExposeRules
from phantom_tun.net.sessions.service import SessionService, SessionSettings
from phantom_tun.net.tunnels.connector import Connector
from phantom_tun.netdb.network import NetworkParams

if TYPE_CHECKING:
    from phantom_tun.tun.interface import Interface

_RESERVED4, _RESERVED6 = 16, 64
NAT4_PREFIX, NAT6_PREFIX = 17, 80
"""The part of the reserved blocks that stands for callers without an address."""


class Owner:
    """Directory, publishers and sessions of one node."""

    def __init__(
        self,
        network: NetworkParams,
        identities: IdentityStore,
        *,
        connector: Connector,
        pins: Pins,
        rules: ExposeRules,
        settings: InterfaceConfig,
        on_lease: Callable[[ApIdentity], None],
        clock: Clock,
        rng: Rng,
    ) -> None:
        """``on_lease``: the lease of an identity has changed."""
        self.directory = Directory(connector, identities, pins, clock=clock, rng=rng)
        self.publishers = Publishers(
            identities, connector, connector.routes, on_lease=on_lease, clock=clock, rng=rng
        )
        self.sessions = SessionService(
            network=network,
            identities=identities,
            directory=self.directory,
            connector=connector,
            rules=rules,
            settings=SessionSettings(
                nat4=_last_part4(network.ap4),
                nat6=_last_part6(network.ap6),
                answer_echo=settings.answer_echo,
                early=settings.connect_early,
                keep=settings.keep_sessions,
                resume_memory=settings.resume_memory_mib * 1_048_576,
                ephemeral=frozenset(settings.ephemeral_callers),
            ),
            clock=clock,
            rng=rng,
        )

    async def start(self, nursery: trio.Nursery, interface: Interface) -> None:
        """Run all of it in ``nursery``, and the interface over it.

        :raises PhantomError: the interface can't be set up.
        """
        await nursery.start(self.directory.run)
        await nursery.start(self.publishers.run)
        await nursery.start(self.sessions.run, interface)
        await nursery.start(interface.run, self.sessions)

    def statistics(self) -> dict[str, Mapping[str, int]]:
        """Every counter, by part."""
        return {
            "directory": self.directory.statistics(),
            "publisher": self.publishers.statistics(),
            "sessions": self.sessions.statistics(),
        }


def _last_part4(prefix: ipaddress.IPv4Network) -> ipaddress.IPv4Network:
    block = ipaddress.IPv4Network((prefix.network_address, _RESERVED4))
    return ipaddress.IPv4Network((block.broadcast_address, NAT4_PREFIX), strict=False)


def _last_part6(prefix: ipaddress.IPv6Network) -> ipaddress.IPv6Network:
    block = ipaddress.IPv6Network((prefix.network_address, _RESERVED6))
    return ipaddress.IPv6Network((block.broadcast_address, NAT6_PREFIX), strict=False)
