"""Which of this machine's addresses others dial, when the configuration doesn't say."""

from __future__ import annotations

import ipaddress
import socket

from phantom_tun.config import Address, NodeConfig
from phantom_tun.errors import ConfigError

# Documentation addresses: routed like any other, and connecting a UDP socket sends nothing.
_FAR = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def advertised_addresses(config: NodeConfig) -> tuple[Address, ...]:
    """What to publish: ``advertise``, else the specific addresses we listen on, else those that
    the default routes use.

    :raises ConfigError: the node can be dialed, but where can't be told.
    """
    if config.advertise:
        return config.advertised_addresses
    listening = config.listen_addresses
    specific = tuple(address for address in listening if not address.is_unspecified)
    found = specific or tuple(
        address
        for address in addresses_of_default_routes()
        if any(address.version == each.version for each in listening)
    )
    if not found and config.dialable:
        raise ConfigError(
            "can't tell which address others reach this node at, since there is no default route: "
            "set node.advertise, or node.dialable = false"
        )
    return found


def addresses_of_default_routes() -> tuple[Address, ...]:
    """The source addresses this machine uses towards the internet, at most one for each family."""
    found: list[Address] = []
    for family, far in _FAR:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, 443))
                address = ipaddress.ip_address(probe.getsockname()[0])
        except OSError:
            continue
        if not (address.is_loopback or address.is_link_local):
            found.append(address)
    return tuple(found)
