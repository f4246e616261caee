"""Which setup packages were used before (docs/spec/path.md, "Replay")."""

from __future__ import annotations

import heapq
from collections import Counter

from phantom_tun.errors import CapacityExceeded, ProtocolViolation
from phantom_tun.ids import NodeId

MAX_REMEMBERED = 131_072
"""Packages remembered at one time, about 20 MB; none is forgotten before it expires."""

SHARE = 8
"""The part that one neighbour may fill is one in so many."""


class ReplayCache:
    """Remembers digests until they expire. It lives as long as the process, which is also how long
    the path-building keys of a node live: nothing sealed before a restart can be opened after."""

    __slots__ = ("_brought", "_by_expiry", "_digests", "_size")

    def __init__(self, size: int = MAX_REMEMBERED) -> None:
        self._size = size
        self._digests: set[bytes] = set()
        self._by_expiry: list[tuple[float, bytes, NodeId]] = []
        self._brought: Counter[NodeId] = Counter()

    def __len__(self) -> int:
        return len(self._digests)

    def check(self, digest: bytes, sender: NodeId, now: float) -> None:
        """Whether ``digest`` is new and there is room for it.

        :raises ProtocolViolation: it was used before.
        :raises CapacityExceeded: too many are remembered, or too many that ``sender`` brought.
        """
        while self._by_expiry and self._by_expiry[0][0] <= now:
            _, expired, brought_by = heapq.heappop(self._by_expiry)
            self._digests.discard(expired)
            self._brought[brought_by] -= 1
            if not self._brought[brought_by]:
                del self._brought[brought_by]
        if digest in self._digests:
            raise ProtocolViolation("a setup package was used before")
        if len(self._digests) >= self._size or self._brought[sender] >= self._size // SHARE:
            raise CapacityExceeded("too many setup packages are remembered")

    def remember(self, digest: bytes, sender: NodeId, expires: float) -> None:
        """Refuse ``digest``, which ``sender`` brought, until ``expires``."""
        self._digests.add(digest)
        self._brought[sender] += 1
        heapq.heappush(self._by_expiry, (expires, digest, sender))
