"""How Python's interpreter runs in a daemon: its garbage collector and its threads."""

from __future__ import annotations

import gc
import sys

GC_EVERY = 5_000
"""New objects until the garbage collector looks at them; Python's own number is 700."""

GC_EVERY_AT_START = 100_000
"""The same while the program is being imported, of which nearly nothing is to be collected."""

SWITCH_AFTER = 0.001
"""Seconds for which a thread may compute while another one waits; Python's own number is 0.005."""


def start_quickly() -> None:
    """Have the garbage collector hardly look at anything until :func:`spare_what_stays`: 7 % of
    what importing the program takes."""
    gc.set_threshold(GC_EVERY_AT_START, 10, 10)


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
