"""What all kinds of flows share: their record for people, their counters, the queue between the
pump's thread and trio, and the copy buffers."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

import trio

from phantom_tun.endpoints import STREAM_PIECE, Endpoint
from phantom_tun.queues import QueueShares

DatagramTransport = Literal["udp", "echo"]
Transport = Literal["tcp", "udp", "echo"]
Direction = Literal["out", "in"]

CHUNK = STREAM_PIECE
"""Bytes a bridge moves at a time."""


@dataclass(frozen=True, slots=True)
class FlowInfo:
    """One line of the flow listing."""

    transport: Transport
    direction: Direction
    """``out``: a local program called; ``in``: a remote one did."""
    source: Endpoint
    """Who called."""
    target: Endpoint
    state: str
    age: float
    """Seconds since the first packet."""
    sent: int
    """Payload bytes from here into the overlay."""
    received: int
    """Payload bytes from the overlay."""


class Flow:
    """A flow while it lasts.

    :param now: trio's clock when it began.
    """

    __slots__ = (
        "direction", "received", "scope", "sent", "since", "source", "state", "target", "transport",
    )  # fmt: skip

    def __init__(
        self,
        transport: Transport,
        direction: Direction,
        source: Endpoint,
        target: Endpoint,
        now: float,
    ) -> None:
        self.transport: Transport = transport
        self.direction: Direction = direction
        self.source = source
        self.target = target
        self.since = now
        self.state = "opening"
        self.sent = 0
        self.received = 0
        self.scope = trio.CancelScope()
        """Cancelled to end the flow at once, with a reset where there is such a thing."""

    def info(self, now: float) -> FlowInfo:
        """What the listing shows."""
        return FlowInfo(
            self.transport,
            self.direction,
            self.source,
            self.target,
            self.state,
            now - self.since,
            self.sent,
            self.received,
        )

    def is_of(self, address: object) -> bool:
        """One of its ends has this address."""
        return address in (self.source.address, self.target.address)


class Counters:
    """Named event counts. Each instance is written by one thread only."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, name: str, count: int = 1) -> None:
        """Count ``count`` more of ``name``."""
        self.counts[name] += count

    def snapshot(self) -> dict[str, int]:
        """All counts so far."""
        return dict(self.counts)


class MessageQueue:
    """Messages from any one thread to one trio task, bounded in number and bytes.

    :param shares: say how many bytes.
    :param token: of the loop the reading task runs in.
    """

    __slots__ = (
        "_event", "_is_shut", "_is_waited_for", "_max_messages", "_messages", "_offered", "_shares",
        "_taken", "_token",
    )  # fmt: skip

    def __init__(
        self, max_messages: int, shares: QueueShares, token: trio.lowlevel.TrioToken
    ) -> None:
        self._messages: deque[bytes] = deque()
        self._max_messages = max_messages
        self._shares = shares
        # Two counters that only grow, because each has one writer; their difference is in the queue
        self._offered = 0
        self._taken = 0
        self._token = token
        self._event = trio.Event()
        self._is_waited_for = False
        self._is_shut = False

    def offer(self, message: bytes) -> bool:
        """Append a message; false if there is no room. Called by the one thread that writes."""
        if self._is_shut:
            return True
        if (
            len(self._messages) >= self._max_messages
            or self._offered - self._taken + len(message) > self._shares.each
        ):
            return False
        self._messages.append(message)
        self._offered += len(message)
        if self._is_waited_for:
            # One wake-up for however many messages come before the task runs.
            self._is_waited_for = False
            self._token.run_sync_soon(self._wake)
        return True

    async def wait(self) -> None:
        """Wait until there is a message."""
        while not self._messages:
            self._event = trio.Event()
            self._is_waited_for = True
            # Whatever was offered before the flag was up woke nobody.
            if not self._messages:
                await self._event.wait()
            self._is_waited_for = False

    def take_all(self) -> list[bytes]:
        """The messages that are there now."""
        messages = [self._messages.popleft() for _ in range(len(self._messages))]
        self._taken += sum(map(len, messages))
        return messages

    def shut(self) -> None:
        """Forget what is there and whatever will be offered."""
        self._is_shut = True
        self.take_all()

    def _wake(self) -> None:
        self._event.set()


class BufferPool:
    """Copy buffers of :data:`CHUNK` bytes. A flow holds one only while it has bytes to move, so
    thousands of idle flows cost none."""

    def __init__(self, spare: int) -> None:
        self._spare: list[memoryview] = []
        self._max_spare = spare

    def take(self) -> memoryview:
        """A buffer with unspecified content."""
        return self._spare.pop() if self._spare else memoryview(bytearray(CHUNK))

    def give(self, buffer: memoryview) -> None:
        """Return a buffer nobody looks at any more."""
        if len(self._spare) < self._max_spare:
            self._spare.append(buffer)
