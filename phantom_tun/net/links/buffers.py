"""Pooled buffers for everything that moves tunnel bytes.

A :class:`Buffer` holds one contiguous region made of *segments*: payload runs, each preceded by
four bytes that belong to a frame header. What a link received can be ciphered in place, its
headers rewritten and the whole sent on by one write: a relay copies nothing.
"""

from __future__ import annotations

from phantom_tun.wire.frames import HEADER_LEN, Segment

__all__ = ["CHUNK", "HEADER_LEN", "POOL", "SLACK", "Buffer", "BufferPool", "Segment"]

CHUNK = 131_072
SLACK = 32


class Buffer:
    """One reusable chunk: at most 131,068 payload bytes, room for headers and cipher slack."""

    __slots__ = ("segments", "view")

    def __init__(self) -> None:
        self.view = memoryview(bytearray(HEADER_LEN + CHUNK + SLACK))
        self.segments: list[Segment] = []

    def fill(self, data: bytes | memoryview) -> None:
        """Copy at most 131,068 bytes in as one segment."""
        end = HEADER_LEN + len(data)
        self.view[HEADER_LEN:end] = data
        self.segments = [Segment(HEADER_LEN, end)]

    def payload_len(self) -> int:
        """Payload bytes over all segments."""
        return sum(end - start for start, end in self.segments)


class BufferPool:
    """Keeps up to ``keep`` idle buffers, as long as they are needed; idle tunnels hold none."""

    __slots__ = ("_free", "_has_dropped", "_keep", "_unused")

    def __init__(self, keep: int = 64) -> None:
        self._free: list[Buffer] = []
        self._keep = keep
        self._has_dropped = False
        """Whether there were too many since the last :meth:`shrink`."""
        self._unused = 0
        """The fewest idle buffers there were since the last :meth:`shrink`."""

    def __len__(self) -> int:
        """Idle buffers."""
        return len(self._free)

    def take(self) -> Buffer:
        """A buffer with stale contents and no segments."""
        free = self._free
        if not free:
            self._unused = 0
            return Buffer()
        buffer = free.pop()
        self._unused = min(self._unused, len(free))
        return buffer

    def shrink(self) -> bool:
        """Let go of the buffers that nobody has needed since the last call, but for one; whether
        any were let go of since then."""
        surplus = self._unused - 1
        if surplus > 0:
            del self._free[:surplus]
        self._unused = len(self._free)
        has_dropped, self._has_dropped = self._has_dropped, False
        return has_dropped or surplus > 0

    def give_back(self, buffer: Buffer) -> None:
        """Return a buffer; its views must no longer be used."""
        if len(self._free) < self._keep:
            buffer.segments = []
            self._free.append(buffer)
        else:
            self._has_dropped = True


POOL = BufferPool()
"""Shared by all links of the process (one thread uses it)."""
