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
        tokens = self._tokens(key, now)
        self._buckets.pop(key, None)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - allowed, now)
        if len(self._buckets) > self._size:
            self._buckets.popitem(last=False)
        return allowed

    def left(self, key: Key, now: float) -> float:
        """How much of its burst ``key`` has left: 0 to 1."""
        return self._tokens(key, now) / self._burst

    def has(self, key: Key, now: float) -> bool:
        """Whether :meth:`allow` would."""
        return self._tokens(key, now) >= 1

    def _tokens(self, key: Key, now: float) -> float:
        tokens, refilled = self._buckets.get(key, (self._burst, now))
        # The clock may have been set back.
        return min(self._burst, tokens + max(0.0, now - refilled) * self._rate)
