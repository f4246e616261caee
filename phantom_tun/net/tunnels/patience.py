"""How long to wait before silence means something (docs/spec/tunnel.md, "Ready tunnels", and
docs/spec/session.md, "Connecting").

What was measured decides, as for a retransmission in TCP: a fixed time would be too short for long
paths over slow links, or much too long for all others.
"""

from __future__ import annotations

_MEAN_WEIGHT = 1 / 8
_DEVIATION_WEIGHT = 1 / 4
_MEANS, _DEVIATIONS = 2, 4


class Patience:
    """Seconds that are several times as long as something usually takes."""

    __slots__ = ("_deviation", "_longest", "_mean", "_shortest")

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest = shortest
        self._longest = longest
        self._mean: float | None = None
        self._deviation = 0.0

    def took(self, seconds: float) -> None:
        """It happened after that time."""
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
            return
        self._deviation += _DEVIATION_WEIGHT * (abs(seconds - self._mean) - self._deviation)
        self._mean += _MEAN_WEIGHT * (seconds - self._mean)

    def seconds(self) -> float:
        """How long to wait: the longest time, as long as nothing was measured."""
        if self._mean is None:
            return self._longest
        usual = _MEANS * self._mean + _DEVIATIONS * self._deviation
        return min(max(self._shortest, usual), self._longest)
