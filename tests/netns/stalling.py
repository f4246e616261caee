"""Transfers that come to a stop: a reader that stops, and what the network between it and the
sender then holds; a transfer that is watched while something happens to it."""

from __future__ import annotations

import hashlib
import random
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from labs import Lab

from phantom_tun.net.sessions.unacknowledged import MOST_OF_ONE

CONNECTIONS = 9
"""Of a chain with three hops on either side: seven links, and both programs' own."""
MOST_GROWTH = 16 << 20
"""Bytes that a daemon may grow by, half of them since it has just been started."""
MOST_KEPT = MOST_OF_ONE + MOST_GROWTH
"""And the sender's: it keeps what isn't confirmed, to send it again if a node on the way dies."""

_PIECE = 1 << 16


def most_under_way() -> int:
    """Bytes that the chain may hold: what this kernel lets buffers grow to, half of which it needs
    for itself where it receives. Daemons hold next to nothing (:data:`MOST_GROWTH`), and the
    sender's only a copy of what is under way (:data:`MOST_KEPT`)."""
    receive, send = (
        int(Path(f"/proc/sys/net/ipv4/tcp_{which}mem").read_text().split()[2]) for which in "rw"
    )
    return CONNECTIONS * (receive // 2 + send)


@dataclass(frozen=True)
class Stall:
    """What was seen while nobody read."""

    accepted: int
    """Bytes that the sender got rid of: all that kernels and daemons between the two hold."""
    accepted_late: int
    """How many of them in the second half of the time."""
    growth: dict[str, int]
    """By how many resident bytes each daemon grew at most."""

    def check_memory(self) -> None:
        """One daemon keeps what is unconfirmed, the others nothing."""
        *others, most = sorted(self.growth.values())
        assert most < MOST_KEPT, self.growth
        assert max(others) < MOST_GROWTH, self.growth

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


class Transfer:
    """Sends as much as goes through, in a ``with`` block, and reads it at the other end."""

    def __init__(self, sender: socket.socket, reader: socket.socket) -> None:
        self._sender = sender
        self._reader = reader
        self._enough = threading.Event()
        self._threads = [
            threading.Thread(target=self._until_over, args=("sender", self._send)),
            threading.Thread(target=self._until_over, args=("reader", self._read)),
        ]
        self.sent = hashlib.sha256()
        self.got = hashlib.sha256()
        self.received = 0
        self.errors: dict[str, OSError] = {}
        self.over: dict[str, float] = {}
        """When each end had nothing more to do, in ``time.monotonic``."""

    def __enter__(self) -> Transfer:
        for thread in self._threads:
            thread.start()
        while self.received < 1 << 20 and not self.over:
            time.sleep(0.05)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.finish()

    def finish(self) -> None:
        """Send no more; returns when all has been read or both ends have failed."""
        self._enough.set()
        self.wait_over(None)

    def wait_over(self, seconds: float | None) -> None:
        """Wait until both ends have nothing more to do."""
        for thread in self._threads:
            thread.join(seconds)

    def _until_over(self, who: str, function: Callable[[], None]) -> None:
        try:
            function()
        except OSError as error:
            self.errors[who] = error
        self.over[who] = time.monotonic()

    def _send(self) -> None:
        rng = random.Random(1)
        while not self._enough.is_set():
            piece = rng.randbytes(_PIECE)
            self._sender.sendall(piece)
            self.sent.update(piece)
        self._sender.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        while piece := self._reader.recv(1 << 20):
            self.got.update(piece)
            self.received += len(piece)
