"""Remembering what must not be accepted twice (docs/spec/session.md, "Repeated requests")."""

from __future__ import annotations

import heapq

from phantom_tun.errors import CapacityExceeded, ProtocolViolation


class ReplayCache:
    """Nonces until they expire. It never forgets one early: when full, it accepts nothing."""

    __slots__ = ("_by_expiry", "_capacity", "_nonces")

    def __init__(self, capacity: int) -> None:
        """``capacity``: nonces kept at the same time."""
        self._capacity = capacity
        self._nonces: set[bytes] = set()
        self._by_expiry: list[tuple[float, bytes]] = []

    def add(self, nonce: bytes, expires: float, now: float) -> None:
        """Accept ``nonce`` for the first time and refuse it until ``expires``.

        :raises ProtocolViolation: it was accepted before.
        :raises CapacityExceeded: too many are remembered.
        """
        self._forget_expired(now)
        if nonce in self._nonces:
            raise ProtocolViolation("the same request came before")
        self.check_room(now)
        self._nonces.add(nonce)
        heapq.heappush(self._by_expiry, (expires, nonce))

    def check_room(self, now: float) -> None:
        """
        :raises CapacityExceeded: too many are remembered.
        """
        self._forget_expired(now)
        if len(self._nonces) >= self._capacity:
            raise CapacityExceeded("too many requests to remember")

    def _forget_expired(self, now: float) -> None:
        while self._by_expiry and self._by_expiry[0][0] <= now:
            self._nonces.discard(heapq.heappop(self._by_expiry)[1])

    def __contains__(self, nonce: bytes) -> bool:
        return nonce in self._nonces

    def __len__(self) -> int:
        return len(self._nonces)
