"""Going on with a session over another tunnel: what the caller has to prove, and what an end keeps
until the other one has it (docs/spec/session.md, "Sessions that survive").

Positions count the bytes of one direction of a stream from its beginning; END is one byte more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from phantom_tun.crypto.hashes import equal, mac
from phantom_tun.errors import ProtocolViolation
from phantom_tun.wire.session import Request, Resumption

MOST_OF_ONE = 33_554_432
"""Bytes that are kept of one stream: what a fast one has on its way through slow links."""

SMALL = 16_384
"""Pieces are kept together up to so many bytes."""


@dataclass(frozen=True, slots=True)
class Resuming:
    """What the caller resumes a session with."""

    secret: bytes = field(repr=False)
    epoch: int
    """Higher than any before."""
    received: int
    """What has arrived."""

    def say(self, session_id: bytes, nonce: bytes) -> bytes:
        """What the request with this ``nonce`` says, packed."""
        proof = _proof(self.secret, session_id, self.epoch, nonce, self.received)
        return Resumption(proof, self.received).pack()


def check_resumption(request: Request, secret: bytes) -> int:
    """What has arrived at the caller, who has to know ``secret``.

    :raises PeerError: it doesn't.
    """
    said = Resumption.unpack(request.early)
    proof = _proof(secret, request.session_id, request.epoch, request.nonce, said.received)
    if not equal(proof, said.proof):
        raise ProtocolViolation("the caller doesn't know the session's secret")
    return said.received


def _proof(secret: bytes, session_id: bytes, epoch: int, nonce: bytes, received: int) -> bytes:
    numbers = epoch.to_bytes(4, "big"), received.to_bytes(8, "big")
    return mac(secret, "resume", session_id, nonce, *numbers)


class Memory:
    """What all streams of a node keep together, bounded."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        """``limit`` in bytes; 0: nothing is kept."""
        self.limit = limit
        self.used = 0

    def take(self, count: int) -> bool:
        """Take ``count`` bytes, if there are so many."""
        if self.used + count > self.limit:
            return False
        self.used += count
        return True

    def give_back(self, count: int) -> None:
        """They aren't kept any more."""
        self.used -= count


class Unacknowledged:
    """What was sent in one direction of a stream, from what the other end has confirmed on. When
    there is no room for more, all is forgotten: until what comes now is confirmed, too, the stream
    can't be resumed."""

    __slots__ = ("_begin", "_memory", "_pieces", "_tail", "confirmed", "end")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._pieces: list[bytes | bytearray] = []
        self._tail: bytearray | None = None
        """The last piece, if it may grow."""
        self._begin = 0
        """Position of the first piece."""
        self.confirmed = 0
        """What the other end has, as far as it said so."""
        self.end = 0
        """Position behind the last byte."""

    def __len__(self) -> int:
        """Bytes that are kept."""
        return self.end - self._begin

    def add(self, data: memoryview | bytes) -> bool:
        """``data`` is about to be sent; whether it could be kept."""
        count = len(data)
        kept = len(self) + count <= MOST_OF_ONE and self._memory.take(count)
        self.end += count
        if not kept:
            self._drop_all(self.end - count)
            return False
        if count >= SMALL:
            self._pieces.append(bytes(data))
            self._tail = None
        elif self._tail is not None and len(self._tail) + count <= SMALL:
            self._tail += data
        else:
            self._tail = bytearray(data)
            self._pieces.append(self._tail)
        return True

    def confirm(self, position: int) -> None:
        """The other end has everything before ``position``.

        :raises ProtocolViolation: that was never sent, or it had more already.
        """
        if not self.confirmed <= position <= self.end:
            raise ProtocolViolation("an acknowledgement of what wasn't sent")
        self.confirmed = position
        while self._pieces and self._begin + len(self._pieces[0]) <= position:
            piece = self._pieces.pop(0)
            self._begin += len(piece)
            self._memory.give_back(len(piece))
        if not self._pieces:
            self._tail = None

    def has(self, position: int) -> bool:
        """Whether everything from ``position`` on is there, and not less than was confirmed."""
        return max(self._begin, self.confirmed) <= position <= self.end

    def read(self, position: int, limit: int) -> bytes:
        """At most ``limit`` bytes from ``position`` on, which :meth:`has` to be there; none at the
        end."""
        begin = self._begin
        for piece in self._pieces:
            offset = position - begin
            if offset < len(piece):
                return bytes(piece[offset : offset + limit])
            begin += len(piece)
        return b""

    def discard(self) -> None:
        """The stream is over."""
        self._drop_all(self.end)

    def _drop_all(self, end: int) -> None:
        self._memory.give_back(end - self._begin)
        self._pieces.clear()
        self._tail = None
        self._begin = self.end
