"""What a loaded member asks of those who build paths (docs/spec/path.md, "Work").

Nothing travels backwards in a build, so what is asked for stands in the member's record, and what
is shown stands beside the sealed package, where it can be checked before that is opened.
"""

from __future__ import annotations

from collections import deque

from phantom_tun.clock import MINUTE
from phantom_tun.crypto.work import WORK_LEN, Task
from phantom_tun.ids import NodeId

STEPS = (0, 8, 11, 14, 16)
"""Bits that a member asks for, one step after the other: 256 to 65,536 tries."""
HARDEST = STEPS[-1]
"""Owners choose no members that ask for more."""

LOADED = 0.5
"""Share of the scarcest of its means in use, from which on a member asks for work, and takes part
in no build that doesn't show it."""
STRAINED = 0.75
"""Share from which on it asks for more: it isn't those without work who use so much."""
IDLE = 0.25
"""Share below which it asks for less."""

SETTLED = 10.0
"""Seconds that it has to be loaded before it asks for anything."""
RISE_EVERY = MINUTE
FALL_EVERY = 3 * MINUTE
"""Seconds from one step to the next."""
HONOURED_FOR = 15 * MINUTE
"""Seconds for which the work is taken that it has asked for: records spread slowly."""


def task(node_id: NodeId, sealed: bytes) -> Task:
    """The work that belongs to one sealed package for one member."""
    return Task("setup work", (node_id, sealed.ljust(WORK_LEN, b"\0")))


class Demand:
    """What one member asks for; its load is a share, 0 to 1."""

    __slots__ = ("_asked", "_changed", "_idle_since", "_loaded_since", "_step")

    def __init__(self) -> None:
        self._step = 0
        self._changed = float("-inf")
        self._loaded_since: float | None = None
        self._idle_since: float | None = None
        self._asked: deque[tuple[float, int]] = deque(maxlen=16)
        """(Until when it is taken, bits) of what was asked for earlier."""

    @property
    def bits(self) -> int:
        """What stands in the record."""
        return STEPS[self._step]

    def least(self, now: float) -> int:
        """What has to be shown at least; 0 if nothing is asked for."""
        earlier = (bits for until, bits in self._asked if now < until)
        return min([self.bits, *earlier]) if self._step else 0

    def adjust(self, load: float, now: float) -> bool:
        """To be called every few seconds; whether something else is asked for from now on."""
        self._loaded_since = (self._loaded_since or now) if load >= LOADED else None
        self._idle_since = (self._idle_since or now) if load < IDLE else None
        since = abs(now - self._changed)  # the clock may have been set back
        if self._loaded_since is not None:
            settled = now - self._loaded_since >= SETTLED
            more = load >= STRAINED if self._step else settled
            if more and since >= RISE_EVERY and self._step < len(STEPS) - 1:
                return self._go_to(self._step + 1, now)
        if self._idle_since is not None and self._step:
            rested = min(since, now - self._idle_since) >= FALL_EVERY
            return rested and self._go_to(self._step - 1, now)
        return False

    def _go_to(self, step: int, now: float) -> bool:
        if self._step:
            self._asked.append((now + HONOURED_FOR, self.bits))
        self._step = step
        self._changed = now
        return True


class Budget:
    """First arrays that a member takes on in all."""

    __slots__ = ("_burst", "_filled", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled: float | None = None

    def used(self, now: float) -> float:
        """Share that is used up."""
        if self._filled is not None:
            gained = max(0.0, now - self._filled) * self._rate
            self._tokens = min(self._burst, self._tokens + gained)
        self._filled = now
        return 1 - self._tokens / self._burst

    def take(self, now: float) -> bool:
        """One array, if there is room for it."""
        self.used(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
