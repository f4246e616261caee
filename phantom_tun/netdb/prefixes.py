"""How many nodes of one part of the Internet may stand together (docs/spec/netdb.md, "Prefixes").

Addresses are what an attacker pays for; ids are nearly free. So every set of nodes that decides
something (a bucket, the closest nodes of a lookup) takes only a few per /24 and per /16 (IPv6: /48
and /32).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from phantom_tun.wire.records import NodeRecord


@dataclass(frozen=True, slots=True)
class PrefixLimits:
    """The most nodes of one set that may share a prefix."""

    narrow: int
    """Per /24 or /48."""
    wide: int
    """Per /16 or /32."""


BUCKET_LIMITS = PrefixLimits(narrow=2, wide=4)
"""For a bucket of the routing table."""
LOOKUP_LIMITS = PrefixLimits(narrow=1, wide=2)
"""For the nodes that a lookup takes for the closest, and so for the storers of a key. It costs
nothing to be strict here: everybody skips the same nodes and goes on to the next closest."""


class PrefixCounter:
    """The prefixes of one set of nodes."""

    __slots__ = ("_limits", "_narrow", "_wide")

    def __init__(self, limits: PrefixLimits) -> None:
        self._limits = limits
        self._narrow: dict[bytes, int] = {}
        self._wide: dict[bytes, int] = {}

    def admit(self, record: NodeRecord) -> bool:
        """Count a node in, if the set may take it too; returns whether it may."""
        networks = record.networks
        narrow, wide = self._narrow, self._wide
        for part in networks.narrow:
            if narrow.get(part, 0) >= self._limits.narrow:
                return False
        for part in networks.wide:
            if wide.get(part, 0) >= self._limits.wide:
                return False
        for part in networks.narrow:
            narrow[part] = narrow.get(part, 0) + 1
        for part in networks.wide:
            wide[part] = wide.get(part, 0) + 1
        return True


def fits(record: NodeRecord, members: Iterable[NodeRecord], limits: PrefixLimits) -> bool:
    """Whether a set of nodes that may stand together may take ``record`` too."""
    networks = record.networks
    present = [member.networks for member in members]
    return all(
        sum(part in other.narrow for other in present) < limits.narrow for part in networks.narrow
    ) and all(sum(part in other.wide for other in present) < limits.wide for part in networks.wide)


def closest_allowed(
    ranked: Iterable[NodeRecord], count: int, limits: PrefixLimits = LOOKUP_LIMITS
) -> list[NodeRecord]:
    """The first ``count`` of ``ranked`` (closest first) that may stand together."""
    counter = PrefixCounter(limits)
    allowed: list[NodeRecord] = []
    for record in ranked:
        if len(allowed) == count:
            break
        if counter.admit(record):
            allowed.append(record)
    return allowed
