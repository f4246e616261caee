"""What each of many queues may hold, so that all of them together stay within a bound."""

from __future__ import annotations


class QueueShares:
    """Equal parts of one total. Any thread may look or say how many there are."""

    __slots__ = ("_least", "_members", "_most", "_total", "each")

    def __init__(self, total: int, *, most: int, least: int) -> None:
        """In bytes. ``least`` is a member's even if all of those are more than ``total``: the
        longest message should fit. Nobody has more than ``most``."""
        self._total = total
        self._most = most
        self._least = min(least, most)
        self.members = 0

    @property
    def members(self) -> int:
        """Queues that share the total."""
        return self._members

    @members.setter
    def members(self, count: int) -> None:
        self._members = count
        self.each = max(self._least, min(self._most, self._total // max(1, count)))
        """Bytes that one of them may hold now."""
