"""Memory that a daemon gives back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import trio

from phantom_tun.net.links.buffers import POOL

SHRINK_EVERY = 1.0
"""Seconds for which a buffer has to be unneeded."""

TRIM_AFTER = 60
"""So many of these without surplus buffers, and memory is given back nevertheless."""


async def give_memory_back() -> None:
    """Give the system what load has left behind, until cancelled: buffers when they weren't needed
    for a moment, and with them, or else now and then, what the C library keeps of memory that was
    freed. After many connections at once that was 100 of 230 MB, in 10 ms."""
    trim = _trim()
    looks = 0
    while True:
        await trio.sleep(SHRINK_EVERY)
        looks += 1
        if POOL.shrink() or looks >= TRIM_AFTER:
            looks = 0
            trim()


def _trim() -> Callable[[], object]:
    """What has the C library give back what it can; not all have such a thing."""
    try:
        found = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return lambda: None
    found.argtypes = [ctypes.c_size_t]
    found.restype = ctypes.c_int
    return lambda: found(0)
