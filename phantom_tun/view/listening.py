"""Whether a service is there that others are to reach (``expose``), from the kernel's tables."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Collection
from pathlib import Path

from phantom_tun.control.model import Protocol
from phantom_tun.ids import ApAddress

_TABLES = Path("/proc/self/net")
_WAITING: dict[Protocol, str] = {"tcp": "0A", "udp": "07"}
"""State of a socket that listens, or that is connected with nobody."""


def hint(
    protocol: Protocol, port: int, addresses: Collection[ApAddress], *, tables: Path = _TABLES
) -> str:
    """What is missing for connections to local port ``port`` of ``addresses``; empty if nothing is,
    or if the kernel doesn't tell."""
    found = _listeners(protocol, port, tables)
    if found is None or any(each.is_unspecified or each in addresses for each in found):
        return ""
    if not found:
        return f"nothing listens on local port {port}/{protocol} at the moment"
    where = " and ".join(sorted(map(str, found)))
    wanted = " or ".join(map(str, addresses))
    return (
        f"what listens on local port {port}/{protocol} does so at {where} only: let it listen at "
        f"{wanted}, or at all addresses"
    )


def _listeners(protocol: Protocol, port: int, tables: Path) -> set[ApAddress] | None:
    """The addresses at which somebody listens on a port; ``None`` if that can't be read."""
    found: set[ApAddress] = set()
    try:
        for name in (protocol, f"{protocol}6"):
            if not (tables / name).exists():  # no IPv6 here
                continue
            for line in (tables / name).read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                address, number = local.split(":")
                if state == _WAITING[protocol] and int(number, 16) == port:
                    found.add(_address(address))
        return found if (tables / protocol).exists() else None
    except (OSError, ValueError):
        return None


def _address(text: str) -> ApAddress:
    """An address as the kernel writes it: words of four bytes in this machine's order."""
    words = bytes.fromhex(text)
    packed = b"".join(
        words[at : at + 4][:: -1 if sys.byteorder == "little" else 1]
        for at in range(0, len(words), 4)
    )
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
