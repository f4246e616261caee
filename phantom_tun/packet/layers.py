"""Scapy's packet classes, imported when the first packet needs them: the import takes half a second
and 18 MB, which relays and commands never pay. ``scapy.all`` would cost three times that."""

from __future__ import annotations

import functools
import importlib
from types import SimpleNamespace


@functools.cache
def load_layers() -> SimpleNamespace:
    """Scapy's IP, IPv6, TCP, UDP, ICMP and ICMPv6 classes, by their scapy names."""
    inet = importlib.import_module("scapy.layers.inet")
    inet6 = importlib.import_module("scapy.layers.inet6")
    packet = importlib.import_module("scapy.packet")
    return SimpleNamespace(
        IP=inet.IP,
        TCP=inet.TCP,
        UDP=inet.UDP,
        ICMP=inet.ICMP,
        IPv6=inet6.IPv6,
        ICMPv6EchoRequest=inet6.ICMPv6EchoRequest,
        ICMPv6DestUnreach=inet6.ICMPv6DestUnreach,
        Raw=packet.Raw,
        NoPayload=packet.NoPayload,
    )
