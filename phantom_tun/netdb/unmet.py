"""Nodes that were heard of while a ban kept them away (docs/spec/netdb.md, "Override commands").

They count against the budget for bans, or else a ban of a part of the Internet in which nobody is
known would never cost anything. Nothing about them is proven but their signature and their work, so
they don't count among the known nodes, which the budget is a part of; and of one network only few
do, so that who is banned can't make up nodes until the ban is over budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from phantom_tun.ids import NodeId
from phantom_tun.netdb.prefixes import BUCKET_LIMITS
from phantom_tun.wire.records import NodeRecord

MAX_UNMET = 1_024
"""Nodes remembered, at about 1 KB each; the oldest make room."""


class Unmet:
    """A bounded memory of such nodes."""

    __slots__ = ("_narrow", "_records", "_wide")

    def __init__(self) -> None:
        self._records: dict[NodeId, tuple[NodeRecord, float]] = {}
        """With the moment until which each counts, oldest first."""
        self._narrow: Counter[bytes] = Counter()
        self._wide: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> list[NodeRecord]:
        """All of them."""
        return [record for record, _ in self._records.values()]

    def add(self, record: NodeRecord, until: float = 0.0, *, proven: bool = False) -> None:
        """Remember a node, or what it newly says, for as long as its record is valid and ``until``
        then. ``proven``: it was known once, so it counts however many of its network do."""
        known = self._records.get(record.node_id)
        if known is not None and known[0].created >= record.created:
            return
        self.discard(record.node_id)
        networks = record.networks
        if not proven and (
            any(self._narrow[part] >= BUCKET_LIMITS.narrow for part in networks.narrow)
            or any(self._wide[part] >= BUCKET_LIMITS.wide for part in networks.wide)
        ):
            return
        if len(self._records) >= MAX_UNMET:
            self.discard(next(iter(self._records)))
        self._records[record.node_id] = (record, max(until, record.expires))
        self._narrow.update(networks.narrow)
        self._wide.update(networks.wide)

    def discard(self, node_id: NodeId) -> None:
        """Forget a node: it was met, or is gone."""
        found = self._records.pop(node_id, None)
        if found is None:
            return
        networks = found[0].networks
        for counter, parts in ((self._narrow, networks.narrow), (self._wide, networks.wide)):
            counter.subtract(parts)
            for part in parts:
                if not counter[part]:
                    del counter[part]

    def expire(self, now: float, banned: Callable[[NodeRecord], bool]) -> None:
        """Forget those whose time is over, unless they are ``banned`` still: nobody would name them
        again."""
        for record, until in list(self._records.values()):
            if until <= now and not banned(record):
                self.discard(record.node_id)
