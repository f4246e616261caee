"""How many nodes of one part of the Internet may stand together (docs/spec/netdb.md, "Prefixes").

Addresses are what an attacker pays for; ids are nearly free. So every set of nodes that decides
something (a bucket, the closest nodes of a lookup) takes only a few per /24 and per /16 (IPv6: /48
and /32).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from phantom_tun.wire.records import NodeRecord


@dataclass(frozen=True, slots=True)
class PrefixLimits:
    """The most nodes of one set that may share a prefix."""

    narrow: int = 2
    """Per /24 or /48."""
    wide: int = 4
    """Per /16 or /32."""


class PrefixCounter:
    """The prefixes of one set of nodes."""

    __slots__ = ("_limits", "_narrow", "_wide")

    def __init__(self, limits: PrefixLimits) -> None:
        self._limits = limits
        self._narrow: Counter[bytes] = Counter()
        self._wide: Counter[bytes] = Counter()

    def allows(self, record: NodeRecord) -> bool:
        """Whether the set may take ``record`` too."""
        networks = record.networks
        return all(self._narrow[part] < self._limits.narrow for part in networks.narrow) and all(
            self._wide[part] < self._limits.wide for part in networks.wide
        )

    def add(self, record: NodeRecord) -> None:
        """Count a node that joined the set."""
        self._narrow.update(record.networks.narrow)
        self._wide.update(record.networks.wide)
