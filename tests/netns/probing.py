"""Connections or datagrams made all the time, to see what an application notices of a fault."""

from __future__ import annotations

import contextlib
import itertools
import socket
import statistics
import threading
import time
from dataclasses import dataclass
from types import TracebackType

from labs import Node

EVERY = 0.25
"""Seconds between two connections."""
GIVEN_UP_AFTER = 30.0
SLOW = 1.0


@dataclass(frozen=True)
class Attempt:
    """One connection up to its first byte."""

    began: float
    """In ``time.monotonic``."""
    took: float
    works: bool


class Prober:
    """Connects to an echo service again and again, in a ``with`` block; the slow ones go on beside
    each other."""

    def __init__(self, client: Node, server: Node, port: int) -> None:
        self._client = client
        self._server = server
        self._port = port
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.attempts: list[Attempt] = []

    def __enter__(self) -> Prober:
        self._start(self._go_on)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _start(self, function: object) -> None:
        thread = threading.Thread(target=function)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _go_on(self) -> None:
        while not self._over.wait(EVERY):
            self._start(self._connect)

    def _connect(self) -> None:
        began = time.monotonic()
        works = connects(self._client, self._server, self._port, GIVEN_UP_AFTER)
        self.attempts.append(Attempt(began, time.monotonic() - began, works))

    def story(self, since: float) -> str:
        """What was noticed of what happened at that time."""
        after = [attempt for attempt in self.attempts if attempt.began >= since]
        took = [attempt.took for attempt in after]
        slow = [attempt for attempt in after if attempt.took > SLOW]
        over = max((attempt.began + attempt.took - since for attempt in slow), default=0.0)
        return (
            f"of {len(after)} connections {len(self.failed(since))} failed and {len(slow)} took "
            f"longer than {SLOW:.0f} s, the slowest {max(took):.1f} s, "
            f"median {statistics.median(took) * 1e3:.0f} ms; all was well after {over:.1f} s"
        )

    def failed(self, since: float) -> list[Attempt]:
        """Connections begun since then that came to nothing."""
        return [a for a in self.attempts if a.began >= since and not a.works]


def connects(client: Node, server: Node, port: int, timeout: float) -> bool:
    """Whether a new connection works, in both directions."""
    try:
        with client.dial(4, server.ap(4), port, timeout) as sock:
            sock.settimeout(timeout)
            return sock.recv(100).endswith(b"\n")
    except OSError:
        return False


class DatagramProber:
    """Sends datagrams to an echo service from one socket, in a ``with`` block."""

    def __init__(self, client: Node, server: Node, port: int) -> None:
        self.socket = client.socket(4, socket.SOCK_DGRAM)
        self.socket.settimeout(EVERY)
        self.socket.connect((server.ap(4), port))
        self._over = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]
        self.came: list[float] = []
        """When answers came, in ``time.monotonic``."""

    def __enter__(self) -> DatagramProber:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.socket.close()

    def _send(self) -> None:
        while not self._over.wait(EVERY):
            with contextlib.suppress(OSError):
                self.socket.send(b"anybody there?")

    def _receive(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                self.socket.recv(100)
                self.came.append(time.monotonic())

    def longest_silence(self, since: float) -> float:
        """Seconds, up to now."""
        times = [since, *(when for when in self.came if when > since), time.monotonic()]
        return max(after - before for before, after in itertools.pairwise(times))
