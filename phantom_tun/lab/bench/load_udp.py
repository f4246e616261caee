"""Datagrams at a steady rate, and what is left of them at the other end.

A datagram begins with the number of its flow (chosen by the client), the time it was sent
(``CLOCK_MONOTONIC``, which all hosts share) and its own number; the rest is anything. The server
keeps a :class:`Tally` for each flow, for which the client asks over a connection.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable

from phantom_tun.lab.bench.load_wire import Clock

HEADER = struct.Struct("!QdQ")
TALLY = struct.Struct("!QQdd")
MAX_FLOWS = 64
MAX_CATCH_UP_S = 0.02
"""A sender that was held up sends at most this much at once; the rest is never sent."""
RECEIVE_BUFFER = 4 * 1024 * 1024
_SO_RCVBUFFORCE = 33
"""From asm-generic/socket.h; Python doesn't name it."""


class Tally:
    """What arrived of one flow."""

    __slots__ = ("_first", "_last", "_transit", "jitter", "received", "size")

    def __init__(self) -> None:
        self.received = 0
        self.size = 0
        """Bytes."""
        self.jitter = 0.0
        """Seconds, smoothed as in RFC 3550, 6.4.1."""
        self._first: float | None = None
        self._last = 0.0
        self._transit = 0.0

    def add(self, sent: float, arrived: float, size: int) -> None:
        """One datagram."""
        transit = arrived - sent
        if self._first is None:
            self._first = arrived
        else:
            self.jitter += (abs(transit - self._transit) - self.jitter) / 16
        self._transit = transit
        self._last = arrived
        self.received += 1
        self.size += size

    @property
    def seconds(self) -> float:
        """From the first to the last."""
        return 0.0 if self._first is None else self._last - self._first

    def pack(self) -> bytes:
        """For the way to the client."""
        return TALLY.pack(self.received, self.size, self.seconds, self.jitter)


class Tallies:
    """Of the latest flows."""

    def __init__(self) -> None:
        self._flows: OrderedDict[int, Tally] = OrderedDict()

    def of(self, flow: int) -> Tally:
        """The tally of a flow; an empty one if nothing of it has arrived."""
        return self._flows.get(flow) or Tally()

    def add(self, datagram: bytes | memoryview, arrived: float) -> None:
        """Count a datagram; what is none of ours is ignored."""
        if len(datagram) < HEADER.size:
            return
        flow, sent, _ = HEADER.unpack_from(datagram)
        tally = self._flows.get(flow)
        if tally is None:
            tally = self._flows[flow] = Tally()
            if len(self._flows) > MAX_FLOWS:
                self._flows.popitem(last=False)
        tally.add(sent, arrived, len(datagram))


def receive(sock: socket.socket, tallies: Tallies) -> None:
    """Count datagrams for ever."""
    view = memoryview(bytearray(65_536))
    while True:
        length = sock.recv_into(view)
        tallies.add(view[:length], time.monotonic())


def receiver(port: int) -> socket.socket:
    """A socket whose own queue is no bottleneck."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    sock.bind(("::", port))
    return sock


def send_steadily(
    send: Callable[[bytes], object],
    flow: int,
    *,
    seconds: float,
    size: int,
    rate: float,
    now: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Send datagrams of ``size`` bytes at ``rate`` bits per second; returns how many.

    :raises ValueError: a datagram has no room for its header.
    """
    if size < HEADER.size:
        raise ValueError(f"a datagram has at least {HEADER.size} bytes")
    gap = size * 8 / rate
    rest = bytes(size - HEADER.size)
    due = now()
    end = due + seconds
    count = 0
    while due < end:
        at = now()
        if at < due:
            sleep(due - at)
            continue
        due = max(due, at - MAX_CATCH_UP_S)
        send(HEADER.pack(flow, at, count) + rest)
        count += 1
        due += gap
    return count
