"""What the load generator's two ends say to each other, and what its client is told and tells."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Literal

import msgspec

CHUNK_LEN = 65_536
MORE, LAST = 0, 1
SECONDS, LENGTH = struct.Struct("!d"), struct.Struct("!Q")
MAX_TRANSFER_S = 120.0

Clock = Callable[[], float]


class Target(msgspec.Struct, frozen=True):
    """How the client reaches the server."""

    host: str
    port: int
    tls: bool = False
    socks_port: int | None = None
    """Through the SOCKS5 proxy on this port of the client's own host."""
    isolated: bool = False
    """Connections made at the same time use SOCKS credentials of their own each."""


class Job(msgspec.Struct, frozen=True):
    """What a client does."""

    kind: Literal["reach", "connect", "burst", "echo", "down", "up", "hold", "udp"]
    target: Target
    seconds: float
    """The longest it may take; of ``burst``, ``down``, ``up`` and ``udp``: how long it takes."""
    count: int = 1
    """Connections, echoes, or streams at the same time."""
    size: int = 0
    """Bytes of each datagram of ``udp``."""
    rate: float = 0.0
    """Bits per second that ``udp`` sends, datagram headers not counted."""


class Outcome(msgspec.Struct):
    """What came of it."""

    milliseconds: list[float] = msgspec.field(default_factory=list)
    """Each connection (to the first byte that came back) or echo."""
    established: list[float] = msgspec.field(default_factory=list)
    """Milliseconds that each connection took until it could be written to."""
    transferred: int = 0
    """Bytes that arrived."""
    seconds: float = 0.0
    """From the first to the end of the last."""
    sent: int = 0
    """Datagrams."""
    received: int = 0
    """Datagrams that the server got."""
    jitter_ms: float = 0.0
    """Of those (RFC 3550, 6.4.1)."""
    failed: int = 0
    errors: list[str] = msgspec.field(default_factory=list)

    def note(self, error: OSError) -> None:
        """Count a failure; each kind is described once."""
        self.failed += 1
        if (text := str(error) or type(error).__name__) not in self.errors:
            self.errors.append(text)


def receive_exactly(connection: socket.socket, buffer: memoryview) -> bool:
    """Fill ``buffer``; ``False``: the other side ended before its first byte.

    :raises ConnectionError: it ended within.
    """
    at = 0
    while at < len(buffer):
        count = connection.recv_into(buffer[at:])
        if not count:
            if at:
                raise ConnectionError("the connection ended too early")
            return False
        at += count
    return True


def take(connection: socket.socket, length: int) -> bytes:
    """Receive so many bytes.

    :raises ConnectionError: the connection ended before.
    """
    buffer = bytearray(length)
    if not receive_exactly(connection, memoryview(buffer)):
        raise ConnectionError("the connection was closed instead of an answer")
    return bytes(buffer)


def send_chunks(connection: socket.socket, seconds: float, now: Clock = time.monotonic) -> int:
    """Send chunks until the time is over; at least one. Returns the bytes."""
    chunk = bytearray(os.urandom(CHUNK_LEN))
    chunk[0] = MORE
    end, sent = now() + seconds, 0
    while chunk[0] == MORE:
        if now() >= end:
            chunk[0] = LAST
        connection.sendall(chunk)
        sent += CHUNK_LEN
    return sent


def receive_chunks(connection: socket.socket) -> int:
    """Receive chunks up to the last one; returns the bytes.

    :raises ConnectionError: the connection ended before.
    """
    view = memoryview(bytearray(CHUNK_LEN))
    received = 0
    while True:
        if not receive_exactly(connection, view):
            raise ConnectionError("the connection ended before the last chunk")
        received += CHUNK_LEN
        if view[0] == LAST:
            return received


def echo(connection: socket.socket) -> None:
    """One byte there and back.

    :raises OSError: it doesn't come.
    """
    connection.sendall(b"Ex")
    if take(connection, 1) != b"x":
        raise ConnectionError("another byte came back")
