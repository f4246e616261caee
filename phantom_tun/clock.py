"""The seams for time and chance: pure layers take ``now`` (seconds since the epoch, UTC) and an
``Rng`` as arguments, so that tests can run them in virtual time and from a seed."""

from __future__ import annotations

import random
import time
from typing import Protocol

Rng = random.Random
"""What machines draw from. Production code passes :data:`SYSTEM_RNG`, tests a seeded instance."""

SYSTEM_RNG: Rng = random.SystemRandom()
"""The kernel's CSPRNG behind the ``random.Random`` interface."""

MINUTE = 60.0
HOUR = 3600.0
DAY = 86_400.0


class Clock(Protocol):
    """Source of time for the layers that do have one."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        return time.time()
