"""What an end keeps of a stream until the other one has it (docs/spec/session.md, "Sessions that
survive").

Positions count the bytes of one direction from the beginning; END is one more.
"""

from __future__ import annotations

from phantom_tun.errors import ProtocolViolation
from phantom_tun.net.links.buffers import CHUNK, POOL, Buffer

MOST_OF_ONE = 33_554_432
"""Bytes that are kept of one stream: what a fast one has on its way through slow links."""

SMALL = 16_384
"""Bytes up to which no buffer is taken for what is kept: most streams say little."""


class Memory:
    """What all streams of a node keep together, bounded."""

    __slots__ = ("_holders", "limit", "used")

    def __init__(self, limit: int) -> None:
        """``limit`` in bytes; 0: nothing is kept."""
        self.limit = limit
        self.used = 0
        self._holders: set[Unacknowledged] = set()

    def take(self, taker: Unacknowledged, count: int) -> bool:
        """Let ``taker`` have ``count`` bytes, if need be of the one that has most."""
        while self.used + count > self.limit:
            most = max(self._holders, key=_held, default=None)
            if most is None or most.held <= taker.held + count:
                return False
            most.discard()
        self.used += count
        taker.held += count
        self._holders.add(taker)
        return True

    def give_back(self, taker: Unacknowledged, count: int) -> None:
        """They aren't kept any more."""
        self.used -= count
        taker.held -= count
        if not taker.held:
            self._holders.discard(taker)


def _held(taker: Unacknowledged) -> int:
    return taker.held


class _Piece:
    """Bytes that follow each other, at most ``SMALL`` or, in a buffer of the pool, ``CHUNK``."""

    __slots__ = ("_buffer", "_store", "length")

    def __init__(self, *, is_small: bool) -> None:
        self._buffer: Buffer | None = None if is_small else POOL.take()
        self._store: bytearray | memoryview
        self._store = bytearray() if self._buffer is None else self._buffer.view[:CHUNK]
        self.length = 0

    @property
    def cost(self) -> int:
        """Bytes of memory."""
        return len(self._store)

    def growth(self, count: int) -> tuple[int, int]:
        """How much of ``count`` bytes there is room for, and what more they would cost."""
        if isinstance(self._store, bytearray):
            taken = min(count, SMALL - self.length)
            return taken, taken
        return min(count, CHUNK - self.length), 0

    def append(self, data: memoryview) -> int:
        """How much of ``data`` there was room for."""
        count, _ = self.growth(len(data))
        if isinstance(self._store, bytearray):
            self._store += data[:count]
        else:
            self._store[self.length : self.length + count] = data[:count]
        self.length += count
        return count

    def read(self, start: int, limit: int) -> bytes:
        """A copy of at most ``limit`` bytes."""
        return bytes(self._store[start : min(self.length, start + limit)])

    def release(self) -> None:
        """Nobody needs it any more."""
        if self._buffer is not None:
            POOL.give_back(self._buffer)


class Unacknowledged:
    """What was sent in one direction of a stream, from what the other end has confirmed on. When
    there is no room for more, all is forgotten: until what comes now is confirmed, too, the stream
    can't be resumed."""

    __slots__ = ("_begin", "_memory", "_pieces", "confirmed", "end", "held")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._pieces: list[_Piece] = []
        self._begin = 0
        """Position of the first piece."""
        self.confirmed = 0
        """What the other end has, as far as it said so."""
        self.end = 0
        """Position behind the last byte."""
        self.held = 0
        """Of the memory."""

    def __len__(self) -> int:
        """Bytes that are kept."""
        return self.end - self._begin

    def add(self, data: memoryview) -> bool:
        """``data``, at most ``CHUNK`` bytes, is about to be sent; whether it could be kept."""
        count = len(data)
        room, cost = self._pieces[-1].growth(count) if self._pieces else (0, 0)
        rest = count - room
        if rest:
            cost += rest if rest <= SMALL else CHUNK
        if len(self) + count > MOST_OF_ONE or not self._memory.take(self, cost):
            self.skip(count)
            return False
        if room:
            self._pieces[-1].append(data)
        if rest:
            piece = _Piece(is_small=rest <= SMALL)
            piece.append(data[room:])
            self._pieces.append(piece)
        self.end += count
        return True

    def skip(self, count: int) -> None:
        """So much is about to be sent and isn't kept, nor is what was sent before."""
        self.discard()
        self.end += count
        self._begin = self.end

    def confirm(self, position: int) -> None:
        """The other end has everything before ``position``.

        :raises ProtocolViolation: that was never sent, or it had more already.
        """
        if not self.confirmed <= position <= self.end:
            raise ProtocolViolation("an acknowledgement of what wasn't sent")
        self.confirmed = position
        while self._pieces and self._begin + self._pieces[0].length <= position:
            piece = self._pieces.pop(0)
            self._begin += piece.length
            self._release(piece)

    @property
    def is_whole(self) -> bool:
        """Whether everything is there that isn't confirmed."""
        return self._begin <= self.confirmed

    def has(self, position: int) -> bool:
        """Whether everything from ``position`` on is there, and not less than was confirmed."""
        return max(self._begin, self.confirmed) <= position <= self.end

    def read(self, position: int, limit: int) -> bytes:
        """At most ``limit`` bytes from ``position`` on, which :meth:`has` to be there; none at the
        end."""
        begin = self._begin
        for piece in self._pieces:
            offset = position - begin
            if offset < piece.length:
                return piece.read(offset, limit)
            begin += piece.length
        return b""

    def discard(self) -> None:
        """Keep nothing of what was sent until now."""
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            self._release(piece)
        self._begin = self.end

    def _release(self, piece: _Piece) -> None:
        self._memory.give_back(self, piece.cost)
        piece.release()
