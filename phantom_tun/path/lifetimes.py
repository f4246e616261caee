"""How long paths live, and when what about them ends (docs/spec/path.md, "Lifetimes")."""

from __future__ import annotations

import math
from dataclasses import dataclass

from phantom_tun.clock import DAY, MINUTE, Rng

SHORTEST = 10 * MINUTE
LONGEST = DAY

EXPIRY_STEP = 10 * MINUTE
"""Expiries in packages are whole multiples of this."""

JITTER = 20 * MINUTE
"""Each member's expiry is later than the path's by up to this, before rounding up."""

Y_LIFE = 10 * MINUTE
"""Base of a Y-node's expiry: it is only needed while the path is built."""

FURTHEST = LONGEST + JITTER + EXPIRY_STEP + 5 * MINUTE
"""Members refuse expiries further ahead than this; the last part is for clocks that differ."""

Y_FURTHEST = Y_LIFE + JITTER + EXPIRY_STEP + 5 * MINUTE
"""The same for Y-nodes: what is only needed for a moment shall not be remembered for a day."""

RETIRE_MARGIN = MINUTE
"""An owner stops using a path this long before the first member may forget it."""

_SPREAD = 0.5
_LEAD_SHARE = 0.15
_LONGEST_LEAD = 5 * MINUTE


def draw_lifetime(about: float, rng: Rng) -> float:
    """Seconds that a new path lives. What it is for must play no part: its members are told when
    it ends.

    :param about: the configured length of life.
    """
    shortest = max(SHORTEST, (1 - _SPREAD) * about)
    return rng.uniform(shortest, max(shortest, min(LONGEST, (1 + _SPREAD) * about)))


def draw_lead(lifetime: float, rng: Rng) -> float:
    """Seconds before a path retires at which its replacement is begun."""
    longest = min(_LEAD_SHARE * lifetime, _LONGEST_LEAD)
    return rng.uniform(0.5, 1.0) * longest


@dataclass(frozen=True, slots=True)
class Ends:
    """When a path that is built now ends."""

    base: float
    """No X-node forgets the path before this."""

    @property
    def retires(self) -> float:
        """When the owner stops using it for new tunnels. Whole seconds, as in the route by which an
        entry node knows it: the fraction at the end would tell an exit path from an entry path."""
        return float(math.floor(self.base - RETIRE_MARGIN))

    def draw_expiry(self, rng: Rng) -> int:
        """One X-node's expiry; equal ones in one path would link its members."""
        return rounded_up(self.base + rng.uniform(0, JITTER))


def draw_y_expiry(now: float, rng: Rng) -> int:
    """One Y-node's expiry."""
    return rounded_up(now + Y_LIFE + rng.uniform(0, JITTER))


def rounded_up(moment: float) -> int:
    """The next multiple of ``EXPIRY_STEP``."""
    return math.ceil(moment / EXPIRY_STEP) * int(EXPIRY_STEP)
