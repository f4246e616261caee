"""How often Python's garbage collector looks for objects in cycles."""

from __future__ import annotations

import gc

GC_EVERY = 5_000
"""New objects until the garbage collector looks at them; Python's own number is 700."""


def spare_what_stays() -> None:
    """Have the garbage collector look no more at what is there now, which is the program itself,
    and less often at what comes: objects in cycles are rare. 4 % of what connections cost."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_EVERY, 10, 10)
