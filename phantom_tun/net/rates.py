"""Token buckets per peer, bounded in number."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class RateTable(Generic[Key]):
    """One token bucket per key; the least recently used key is forgotten first, which gives it a
    full bucket again: ``size`` bounds what a crowd of keys can gain."""

    __slots__ = ("_buckets", "_burst", "_rate", "_size")

    def __init__(self, rate: float, burst: float, size: int = 4096) -> None:
        """``rate`` in tokens per second, ``burst`` in tokens."""
        self._rate = rate
        self._burst = burst
        self._size = size
        self._buckets: OrderedDict[Key, tuple[float, float]] = OrderedDict()

    def allow(self, key: Key, now: float) -> bool:
        """Take one token for ``key`` if there is one."""
        tokens, refilled = self._buckets.pop(key, (self._burst, now))
        # The clock may have been set back.
        tokens = min(self._burst, tokens + max(0.0, now - refilled) * self._rate)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - allowed, now)
        if len(self._buckets) > self._size:
            self._buckets.popitem(last=False)
        return allowed
