"""How long an owner waits for an array to come round (docs/spec/path.md, "Timeouts").

Nobody reports a failed build, so waiting is all an owner can do: long enough for slow links, short
enough that a dead member costs seconds. What was measured decides.
"""

from __future__ import annotations

FLOOR = 2.0
"""Seconds allowed on top of what the measured time suggests."""
FACTOR = 3.0
"""How much slower than usual a round may be."""
LONGEST = 25.0
UNMEASURED = 0.15
"""Seconds per member before anything was measured."""
_WEIGHT = 0.25
_STRETCH = 1.5
_LONGEST_STRETCH = 2.0


class RoundTimer:
    """Seconds allowed for one round."""

    __slots__ = ("_per_member", "_stretch")

    def __init__(self) -> None:
        self._per_member = UNMEASURED
        self._stretch = 1.0

    def allowed(self, members: int, to_first: float = 0.0) -> float:
        """For an array that passes ``members`` members, of whom the first was brought it in
        ``to_first`` seconds: nobody else is likely to be faster."""
        usual = FLOOR + FACTOR * max(self._per_member, to_first) * members
        return min(usual * self._stretch, LONGEST)

    def took(self, members: int, seconds: float) -> None:
        """A round was completed."""
        self._per_member += _WEIGHT * (seconds / members - self._per_member)
        self._stretch = 1.0

    def expired(self) -> None:
        """A round was not completed; perhaps everything has become slower."""
        self._stretch = min(self._stretch * _STRETCH, _LONGEST_STRETCH)
