"""A bounded number of places of which nobody can have all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Shares(Generic[Key]):
    """Counts who has how many places: addresses, neighbours, paths."""

    __slots__ = ("_limit", "_limit_each", "_taken", "_total")

    def __init__(self, limit: int, limit_each: int) -> None:
        """``limit`` places in all, ``limit_each`` for one key."""
        self._limit = limit
        self._limit_each = limit_each
        self._total = 0
        self._taken: Counter[Key] = Counter()

    def __len__(self) -> int:
        return self._total

    def take(self, key: Key, count: int = 1) -> bool:
        """Give ``key`` places, if there are so many for it."""
        if self._total + count > self._limit or self._taken[key] + count > self._limit_each:
            return False
        self._total += count
        self._taken[key] += count
        return True

    def leave(self, key: Key, count: int = 1) -> None:
        """``key`` gives some of its places back."""
        self._total -= count
        self._taken[key] -= count
        if not self._taken[key]:
            del self._taken[key]
