"""A reader that stops, and what the network between it and the sender then holds."""

from __future__ import annotations

import hashlib
import random
import select
import socket
import time
from dataclasses import dataclass

from labs import Lab

MOST_UNDER_WAY = 96 << 20
"""Bytes that a chain of seven links may hold, mostly in the kernel's buffers."""
MOST_GROWTH = 32 << 20
"""Bytes that a daemon may grow by."""

_PIECE = 1 << 16


@dataclass(frozen=True)
class Stall:
    """What was seen while nobody read."""

    accepted: int
    """Bytes that the sender got rid of: all that kernels and daemons between the two hold."""
    accepted_late: int
    """How many of them in the second half of the time."""
    growth: dict[str, int]
    """By how many resident bytes each daemon grew at most."""

    def __str__(self) -> str:
        node, most = max(self.growth.items(), key=lambda item: item[1])
        return (
            f"{self.accepted / 1e6:.1f} MB under way, daemons grew by at most {most / 1e6:.1f} MB "
            f"({node}), all together by {sum(self.growth.values()) / 1e6:.1f} MB"
        )


def stall(lab: Lab, sender: socket.socket, reader: socket.socket, seconds: float) -> Stall:
    """Send for ``seconds`` without anybody reading, look at memory meanwhile; then read all, send
    some more, and compare."""
    rng, sent = random.Random(1), hashlib.sha256()
    before = lab.memory()
    growth = dict.fromkeys(before, 0)
    began = time.monotonic()
    accepted = accepted_early = 0
    piece = rng.randbytes(_PIECE)
    sender.setblocking(False)
    while (passed := time.monotonic() - began) < seconds:
        if select.select([], [sender], [], 0.5)[1]:
            count = sender.send(piece)
            sent.update(piece[:count])
            piece = piece[count:] or rng.randbytes(_PIECE)
            accepted += count
            if passed < seconds / 2:
                accepted_early = accepted
        else:
            growth = {n: max(growth[n], now - before[n]) for n, now in lab.memory().items()}

    received, left = hashlib.sha256(), accepted
    while left:
        data = reader.recv(min(left, 1 << 20))
        assert data, f"{left} bytes were lost"
        received.update(data)
        left -= len(data)
    sender.settimeout(reader.gettimeout())
    sender.sendall(b"and on it goes")
    sender.shutdown(socket.SHUT_WR)
    rest = reader.makefile("rb").read()
    assert rest == b"and on it goes"
    assert received.digest() == sent.digest()
    return Stall(accepted, accepted - accepted_early, growth)
