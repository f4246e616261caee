"""Token buckets per source: what one node, or one part of the Internet, may ask of us."""

from __future__ import annotations

from collections.abc import Hashable

SOURCES_REMEMBERED = 4_096


class SourceLimits:
    """``burst`` at once and ``rate`` per second for every source; the sources that were quiet
    longest are forgotten first, which gives them no more than a full bucket again."""

    __slots__ = ("_buckets", "_burst", "_rate")

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: dict[Hashable, tuple[float, float]] = {}
        """Source → (tokens left, at which moment), least recently used first."""

    def would_allow(self, source: Hashable, now: float) -> bool:
        """Whether ``source`` has a token left; takes none."""
        return self._tokens(source, now) >= 1.0

    def allows(self, source: Hashable, now: float) -> bool:
        """Take one token of ``source``; False if it has none left."""
        tokens = self._tokens(source, now)
        self._buckets.pop(source, None)
        allowed = tokens >= 1.0
        if len(self._buckets) >= SOURCES_REMEMBERED:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[source] = (tokens - 1.0 if allowed else tokens, now)
        return allowed

    def _tokens(self, source: Hashable, now: float) -> float:
        tokens, since = self._buckets.get(source, (self._burst, now))
        return min(self._burst, tokens + max(now - since, 0.0) * self._rate)
