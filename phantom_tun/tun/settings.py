"""What can be configured about the interface, with its defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from phantom_tun.errors import ConfigError
from phantom_tun.ids import ApAddress
from phantom_tun.packet.header import MAX_PACKET
from phantom_tun.tun.plan import AddressPlan

DEFAULT_AP4 = IPv4Network("240.0.0.0/4")
DEFAULT_AP6 = IPv6Network("2001:2f::/32")

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_LONGEST_AP4 = 12
_LONGEST_AP6 = 48
_SMALLEST_MTU = 1280


@dataclass(frozen=True, slots=True)
class Timeouts:
    """All in seconds."""

    open: float = 130.0
    """For the overlay to answer a connection attempt; Linux gives up on a SYN after 127."""
    filtered_retry: float = 15.0
    """A flow to a filtered port isn't tried again before this, whatever the application sends."""
    accept: float = 3.0
    """For the local handshake once the far side has accepted; it never leaves the machine."""
    local_connect: float = 15.0
    """For a local service to accept."""
    drain: float = 900.0
    """For an application to take the last bytes of a connection that both sides have ended."""
    linger: float = 65.0
    """Late segments of a closed connection are translated this long: more than Linux' TIME_WAIT."""
    udp_idle: float = 60.0
    """A UDP flow ends when nothing moved either way for this long."""
    echo_idle: float = 30.0
    """The same for an ICMP echo exchange."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of tables and queues. What exceeds them is dropped and counted."""

    pending: int = 1024
    """TCP connections waiting for the overlay's answer."""
    streams: int = 8192
    """Established TCP connections, both directions."""
    datagram_flows: int = 2048
    """UDP flows, both directions."""
    echo_flows: int = 128
    """ICMP echo exchanges."""
    queued_messages: int = 1024
    """Messages of one UDP flow or echo exchange that wait for the overlay."""
    queued_bytes: int = 1 << 20
    """The same in bytes; less when there are many, see ``queued_bytes_all``."""
    queued_bytes_all: int = 32 << 20
    """The same of all of them, shared out evenly, but no share is smaller than one message."""
    socket_buffer: int = 1 << 20
    """Kernel buffer of a bridged connection, each direction, in bytes."""
    spare_buffers: int = 64
    """Copy buffers of 64 KiB kept for reuse."""


@dataclass(frozen=True, slots=True)
class InterfaceConfig:
    """The interface of one node.

    :raises ConfigError: a name, size or prefix that can't work.
    """

    name: str = "phantom0"
    mtu: int = MAX_PACKET
    ap4: IPv4Network = DEFAULT_AP4
    """All IPv4 AP addresses (network profile); its first /16 is the interface's own."""
    ap6: IPv6Network = DEFAULT_AP6
    """All IPv6 AP addresses; its first /64 is the interface's own."""
    require_filter: bool = True
    """Whether not to run where AP addresses can't be kept off other networks."""
    addresses: tuple[ApAddress, ...] = ()
    """Our AP addresses at the start; the first of each family is the default source."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in (".", ".."):
            raise ConfigError(f"{self.name!r} can't be the name of a network interface")
        if not _SMALLEST_MTU <= self.mtu <= MAX_PACKET:
            raise ConfigError(f"the interface's MTU must be {_SMALLEST_MTU} to {MAX_PACKET}")
        if self.ap4.prefixlen > _LONGEST_AP4:
            raise ConfigError(f"the AP4 prefix must be /{_LONGEST_AP4} or shorter")
        if self.ap6.prefixlen > _LONGEST_AP6:
            raise ConfigError(f"the AP6 prefix must be /{_LONGEST_AP6} or shorter")
        plan = AddressPlan(self.ap4, self.ap6)
        for address in self.addresses:
            if not plan.is_ap(address):
                raise ConfigError(f"{address} is no AP address of this network")
