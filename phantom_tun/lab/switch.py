"""The delaying switch as a pure machine: frames in, frames out later.

Each port has an uplink and a downlink of the same rate, and all ports are the same way apart::

    node ──uplink──▶ [queue ≤ limit] ──delay──▶ [queue ≤ limit] ──downlink──▶ node

A frame is serialised on its sender's uplink, travels for the delay, and is serialised again on the
receiver's downlink; where a queue is full it is dropped and counted. Frames of one flow keep their
order. Addresses of all ports are known beforehand, so nothing is learned or flooded except
broadcast and multicast.

A frame here starts with the 10-byte virtio-net header of the TAP device. It may stand for several
Ethernet frames (segmentation offload); they are then counted with the headers each would have.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

VNET_HEADER = 10
_GSO_SIZE = slice(4, 6)
_DESTINATION = slice(VNET_HEADER, VNET_HEADER + 6)
SHORTEST_FRAME = VNET_HEADER + 14
_SEGMENT_HEADERS = 66
"""Ethernet + IPv4 + TCP with timestamps; what each further segment adds on the wire."""

UNLIMITED_QUEUE_BYTES = 64 * 1024 * 1024
"""What may be on its way from one port when no rate, and so no queue, is asked for."""


def queue_bytes(rate: float | None) -> int:
    """How much waits in front of a link of ``rate`` bits/s before it drops: 100 ms of it, and at
    least two frames of the largest size that segmentation offload makes."""
    return UNLIMITED_QUEUE_BYTES if rate is None else max(int(rate / 8 / 10), 128 * 1024)


@dataclass(frozen=True, slots=True)
class SwitchStatistics:
    """What became of the frames so far."""

    delivered: int
    dropped_queue_full: int
    dropped_unknown: int
    """Malformed, or to an address that no port has."""


class _Link:
    """One direction of one cable: serialises at a rate, behind a bounded queue."""

    __slots__ = ("_bytes_per_second", "_free_at", "_limit_seconds")

    def __init__(self, rate: float | None) -> None:
        self._bytes_per_second = rate / 8 if rate is not None else None
        self._limit_seconds = queue_bytes(rate) / (rate / 8) if rate is not None else 0.0
        self._free_at = 0.0

    def send(self, now: float, size: int) -> float | None:
        """When the last byte has left, or ``None`` if the queue is full."""
        if self._bytes_per_second is None:
            return now
        start = max(self._free_at, now)
        if start - now > self._limit_seconds:
            return None
        self._free_at = start + size / self._bytes_per_second
        return self._free_at


@dataclass(frozen=True, slots=True, order=True)
class _Event:
    """Something that happens to a frame at a time; ``number`` keeps equal times in order."""

    at: float
    number: int
    port: int
    frame: bytes
    source: int
    """The port that sent it."""
    arrives: bool
    """It reaches the far end of the delay and goes on the downlink; else it is delivered."""


class DelayingSwitch:
    """Joins ``len(addresses)`` ports; port *i* has the 6-byte Ethernet address ``addresses[i]``.

    :param delay: seconds one way, between any two ports.
    :param rate: bits per second of each cable, each way; ``None``: no limit.
    """

    def __init__(self, addresses: Sequence[bytes], *, delay: float, rate: float | None) -> None:
        self._port_of = {address: port for port, address in enumerate(addresses)}
        self._delay = delay
        self._rate = rate
        self._uplinks = [_Link(rate) for _ in addresses]
        self._downlinks = [_Link(rate) for _ in addresses]
        self._in_flight = [0] * len(addresses)
        self._events: list[_Event] = []
        self._number = 0
        self._delivered = self._dropped_full = self._dropped_unknown = 0

    def receive(self, now: float, port: int, frame: bytes) -> None:
        """Take a frame that ``port`` sent. Not kept from growing stale: call :meth:`due` often."""
        if len(frame) < SHORTEST_FRAME:
            self._dropped_unknown += 1
            return
        sent = self._uplinks[port].send(now, wire_size(frame))
        if sent is None:
            self._dropped_full += 1
            return
        destination = frame[_DESTINATION]
        if destination[0] & 1:
            for other in range(len(self._uplinks)):
                if other != port:
                    self._carry(sent, port, other, frame)
            return
        to = self._port_of.get(destination)
        if to is None or to == port:
            self._dropped_unknown += 1
        else:
            self._carry(sent, port, to, frame)

    def due(self, now: float) -> Iterator[tuple[int, bytes]]:
        """The frames to write by ``now``, with the port to write them to, in order."""
        events = self._events
        while events and events[0].at <= now:
            event = heapq.heappop(events)
            if event.arrives and self._rate is not None:
                done = self._downlinks[event.port].send(event.at, wire_size(event.frame))
                if done is None:
                    self._dropped_full += 1
                    self._in_flight[event.source] -= len(event.frame)
                else:
                    self._schedule(done, event.source, event.port, event.frame, arrives=False)
                continue
            self._in_flight[event.source] -= len(event.frame)
            self._delivered += 1
            yield event.port, event.frame

    def next_due(self) -> float | None:
        """When :meth:`due` will have something to do; ``None``: nothing is on its way."""
        return self._events[0].at if self._events else None

    def statistics(self) -> SwitchStatistics:
        """What became of the frames so far."""
        return SwitchStatistics(self._delivered, self._dropped_full, self._dropped_unknown)

    def _carry(self, sent: float, source: int, to: int, frame: bytes) -> None:
        if self._in_flight[source] + len(frame) > UNLIMITED_QUEUE_BYTES:
            self._dropped_full += 1
            return
        self._in_flight[source] += len(frame)
        self._schedule(sent + self._delay, source, to, frame, arrives=True)

    def _schedule(self, at: float, source: int, to: int, frame: bytes, *, arrives: bool) -> None:
        self._number += 1
        heapq.heappush(self._events, _Event(at, self._number, to, frame, source, arrives))


def wire_size(frame: bytes) -> int:
    """Bytes on the wire of what one frame from a TAP device stands for."""
    size = len(frame) - VNET_HEADER
    segment = int.from_bytes(frame[_GSO_SIZE], "little")
    if segment and size > _SEGMENT_HEADERS:
        further = (size - _SEGMENT_HEADERS - 1) // segment
        size += further * _SEGMENT_HEADERS
    return size
