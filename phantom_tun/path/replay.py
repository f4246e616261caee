"""Which setup packages were used before (docs/spec/path.md, "Replay")."""

from __future__ import annotations

import heapq

from phantom_tun.errors import CapacityExceeded, ProtocolViolation

MAX_REMEMBERED = 131_072
"""Packages remembered at one time, about 20 MB; none is forgotten before it expires."""


class ReplayCache:
    """Remembers digests until they expire. It lives as long as the process, which is also how long
    the path-building keys of a node live: nothing sealed before a restart can be opened after."""

    __slots__ = ("_by_expiry", "_digests", "_size")

    def __init__(self, size: int = MAX_REMEMBERED) -> None:
        self._size = size
        self._digests: set[bytes] = set()
        self._by_expiry: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._digests)

    def check(self, digest: bytes, now: float) -> None:
        """Whether ``digest`` is new and there is room for it.

        :raises ProtocolViolation: it was used before.
        :raises CapacityExceeded: too many are remembered.
        """
        while self._by_expiry and self._by_expiry[0][0] <= now:
            self._digests.discard(heapq.heappop(self._by_expiry)[1])
        if digest in self._digests:
            raise ProtocolViolation("a setup package was used before")
        if len(self._digests) >= self._size:
            raise CapacityExceeded("too many setup packages are remembered")

    def remember(self, digest: bytes, expires: float) -> None:
        """Refuse ``digest`` until ``expires``."""
        self._digests.add(digest)
        heapq.heappush(self._by_expiry, (expires, digest))
