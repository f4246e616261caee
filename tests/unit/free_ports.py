"""Ports for servers that a test starts in another process."""

from __future__ import annotations

import itertools
import os
import socket

FIRST, LAST = 10_000, 30_000
"""Below those that kernels give to whoever connects from anywhere: what was free stays so."""

_starts = itertools.count(FIRST + os.getpid() * 37 % (LAST - FIRST))


def free_ports(count: int = 1, address: str = "127.0.0.1") -> int:
    """The first of ``count`` ports in a row that nobody has, another one every time.

    :raises OSError: there are none.
    """
    for _ in range(FIRST, LAST):
        first = FIRST + next(_starts) % (LAST - FIRST)
        if all(_is_free(address, port) for port in range(first, first + count)):
            return first
    raise OSError("no port is free")


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
