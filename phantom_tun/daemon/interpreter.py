"""How Python's interpreter runs in a daemon: its garbage collector and its threads."""

from __future__ import annotations

import gc
import sys

GC_EVERY = 5_000
"""New objects until the garbage collector looks at them; Python's own number is 700."""

SWITCH_AFTER = 0.001
"""Seconds for which a thread may compute while another one waits; Python's own number is 0.005."""


def spare_what_stays() -> None:
    """Have the garbage collector look no more at what is there now, which is the program itself,
    and less often at what comes: objects in cycles are rare. 4 % of what connections cost."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_EVERY, 10, 10)


def share_the_processor() -> None:
    """Have threads wait less for each other. The packet pump is one: while connections are begun,
    the rest of the node computes nearly all the time, and every packet of theirs would wait."""
    sys.setswitchinterval(SWITCH_AFTER)
