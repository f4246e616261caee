"""Tunnel blocks (docs/spec/tunnel.md, "Blocks").

A block enters a path at one end and is passed through AES under each hop's path secret; the hop
that later sees the outcome come back as the opening of a bulk link knows which block it was::

    outbound   owner ──N0──▶ X1 ──N1──▶ X2 ──N2──▶ exit (computes N3 for its own keys)
               owner ◀─N0─── X1 ◀─N1─── X2 ◀─N2─── exit            bulk links, opened backwards
    inbound    owner ◀─N3─── X1 ◀─N2─── X2 ◀─N1─── entry (drew N0)
               owner ──N3──▶ X1 ──N2──▶ X2 ──N1──▶ entry           bulk links, opened backwards

Interior hops can't tell the two apart.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass

from phantom_tun.crypto.streams import block_key, next_block, previous_block
from phantom_tun.errors import CapacityExceeded, ProtocolViolation
from phantom_tun.ids import TunnelBlock

MAX_BLOCKS = 1 << 16
"""Blocks a hop passes on in a path's life; then it closes the path."""

BLOCK_RATE = 256.0
BLOCK_BURST = 256.0
"""Token bucket of each hop and side, in blocks per second and blocks."""

MAX_PENDING = 1024
"""Blocks passed on whose bulk link has not come back yet, per side."""

PENDING_LIFE = 30.0
"""Seconds after which a block that nobody came back for is forgotten (but stays refused)."""

SEEN_BYTES = 8
"""Memory that a block takes for the path's life: its second half. A block that agrees in that with
one seen is taken for it; of blocks drawn at random one in 2^47 does, when a path is used up."""

PENDING_BYTES = 224
"""Memory that a block takes while it is pending."""


@dataclass(frozen=True, slots=True)
class BlockPair:
    """What one hop derives its keys from: N_{i-1} and N_i."""

    before: TunnelBlock
    after: TunnelBlock


class HopBlocks:
    """What one hop remembers of the blocks of one path.

    Both sides of a hop share the memory of used blocks: a block that was seen in either role, as
    one received or as one sent, is never accepted again. Only those received are remembered; a
    block is one sent if what it comes from is one received.
    """

    __slots__ = ("_came", "_key", "_pending", "_refilled", "_seen", "_tokens", "last_recognised")

    def __init__(self, path_secret: bytes, now: float) -> None:
        self._key = block_key(path_secret)
        self._seen = array("Q")
        """Sorted: eight bytes a block, and looking one up takes no time even of 2^16."""
        self._came = [0, 0]
        """How many of them from each side."""
        self._pending: tuple[dict[bytes, tuple[TunnelBlock, float]], ...] = ({}, {})
        self._tokens = BLOCK_BURST
        self._refilled = now
        self.last_recognised = now
        """When a tunnel last came of a block: a path in use has one every two minutes at least."""

    def pass_on(self, block: TunnelBlock, from_side: int, now: float) -> TunnelBlock:
        """Take a block that came from neighbour ``from_side`` (0 or 1); returns what goes to the
        other.

        :raises ProtocolViolation: the block was seen before.
        :raises CapacityExceeded: over the rate, or too many pending: drop this one.
        """
        place = self._place(block)
        if self._is_at(place, block):
            raise ProtocolViolation("a tunnel block came twice")
        # The clock may have been set back.
        passed = max(0.0, now - self._refilled)
        self._tokens = min(BLOCK_BURST, self._tokens + passed * BLOCK_RATE)
        self._refilled = now
        pending = self._pending[from_side]
        self._forget(pending, now)
        if self._tokens < 1 or len(pending) >= MAX_PENDING:
            raise CapacityExceeded("tunnel blocks come faster than allowed")
        self._tokens -= 1
        before = previous_block(self._key, block)
        if self._is_at(self._place(before), before):
            raise ProtocolViolation("a tunnel block came as it was sent before")
        after = next_block(self._key, block)
        self._seen.insert(place, _half(block))
        self._came[from_side] += 1
        pending[after] = (block, now + PENDING_LIFE)
        return after

    @property
    def exhausted(self) -> bool:
        """Whether the path has used up its blocks and must close."""
        return len(self._seen) >= MAX_BLOCKS

    def held(self) -> tuple[int, int]:
        """Bytes of memory that the blocks from each side take, about."""
        one, other = (
            SEEN_BYTES * came + PENDING_BYTES * len(pending)
            for came, pending in zip(self._came, self._pending, strict=True)
        )
        return one, other

    def tidy(self, now: float) -> None:
        """Forget what has been pending for too long, though no block comes any more."""
        for pending in self._pending:
            self._forget(pending, now)

    def recognise(self, block: TunnelBlock, from_side: int, now: float) -> BlockPair:
        """A bulk link came from neighbour ``from_side`` naming ``block``: which tunnel is it?
        Each block is recognised once.

        :raises ProtocolViolation: no such block is expected from there.
        """
        before = self._pending[1 - from_side].pop(block, None)
        if before is None:
            raise ProtocolViolation("a bulk link names an unknown tunnel block")
        self.last_recognised = now
        return BlockPair(before[0], block)

    def _place(self, block: bytes) -> int:
        return bisect_left(self._seen, _half(block))

    def _is_at(self, place: int, block: bytes) -> bool:
        return place < len(self._seen) and self._seen[place] == _half(block)

    @staticmethod
    def _forget(pending: dict[bytes, tuple[TunnelBlock, float]], now: float) -> None:
        # Insertion order is age order.
        while pending:
            oldest = next(iter(pending))
            if pending[oldest][1] > now:
                return
            del pending[oldest]


def _half(block: bytes) -> int:
    return int.from_bytes(block[-SEEN_BYTES:], "big")


def outbound_pairs(secrets: list[bytes], first: TunnelBlock) -> list[BlockPair]:
    """The owner's view of an outbound tunnel that began with ``first``: one pair per hop, from the
    owner outward; ``secrets`` in the same order."""
    pairs = []
    for secret in secrets:
        after = next_block(block_key(secret), first)
        pairs.append(BlockPair(first, after))
        first = after
    return pairs


def inbound_pairs(secrets: list[bytes], last: TunnelBlock) -> list[BlockPair]:
    """The owner's view of an inbound tunnel announced by block ``last``: one pair per hop, from the
    owner outward."""
    pairs = []
    for secret in secrets:
        before = previous_block(block_key(secret), last)
        pairs.append(BlockPair(before, last))
        last = before
    return pairs
