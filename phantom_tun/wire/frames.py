"""Frames of links (docs/spec/links.md, "Frames")::

     0        1                 4
    +--------+-----------------+----------------------+
    | type   | length (24 bit) | payload (length)     |
    +--------+-----------------+----------------------+

A bulk link carries OPEN, DATA, FIN and RESET; a signalling link the others (and FIN). What doesn't
fit :data:`LENGTHS` closes the link.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from phantom_tun.errors import WireError
from phantom_tun.wire.sizes import OPENING_LEN

HEADER_LEN = 4
MAX_PAYLOAD = 131_068
REGION_LEN = HEADER_LEN + MAX_PAYLOAD
"""The most that is read or written at once: one largest frame, or several smaller ones."""

MAX_SIGNAL_LEN = 1024
MAX_CALL_LEN = 64_000
"""A netdb call or its answer, all chunks together."""
CHUNK_LEN = 2048
"""A call or an answer travels in chunks of at most this size."""
CHUNK_HEAD_LEN = 5

AUTH_LEN = 1 + 32 + 64


class Frame(IntEnum):
    """First byte of a frame."""

    AUTH = 1
    """dialer's first frame on every link: who it is and what the link is for"""
    OPEN = 2
    """a use of a bulk link begins"""
    DATA = 3
    """bytes of the use"""
    FIN = 4
    """no more from this side: ends this direction of the use; on a signalling link nothing new
    follows, and it closes when both sides said so"""
    RESET = 5
    """the use has failed; the link is closed"""
    SIGNAL = 16
    """a one-way message"""
    CALL = 17
    """call number u32 ‖ flags u8 (1 first, 2 last) ‖ chunk of a call"""
    ANSWER = 18
    """the same, of its answer"""
    PING = 19
    """asks for a PONG"""
    PONG = 20
    """shows that this side is alive"""
    ASK = 21
    """dial me a bulk link on which I start uses"""
    DECLINE = 22
    """an ASK that won't be followed"""


LENGTHS: dict[int, tuple[int, int]] = {
    Frame.AUTH: (AUTH_LEN, AUTH_LEN),
    Frame.OPEN: (OPENING_LEN, OPENING_LEN),
    Frame.DATA: (1, MAX_PAYLOAD),
    Frame.FIN: (0, 0),
    Frame.RESET: (0, 0),
    Frame.SIGNAL: (1, MAX_SIGNAL_LEN),
    Frame.CALL: (CHUNK_HEAD_LEN, CHUNK_HEAD_LEN + CHUNK_LEN),
    Frame.ANSWER: (CHUNK_HEAD_LEN, CHUNK_HEAD_LEN + CHUNK_LEN),
    Frame.PING: (0, 0),
    Frame.PONG: (0, 0),
    Frame.ASK: (0, 0),
    Frame.DECLINE: (0, 0),
}
"""Allowed payload lengths, smallest and largest, by frame type."""

_HEADER = Struct(">I")
_DATA_BITS = Frame.DATA << 24


class Segment(NamedTuple):
    """Payload bytes ``view[start:end]``; a frame header fits in ``view[start-4:start]``."""

    start: int
    end: int


class Header(NamedTuple):
    """A frame header that was found allowed."""

    frame: Frame
    length: int


def pack_frame(frame: Frame, payload: bytes = b"") -> bytes:
    """A whole frame.

    :raises WireError: this frame can't have so long or so short a payload.
    """
    smallest, largest = LENGTHS[frame]
    if not smallest <= len(payload) <= largest:
        raise WireError(f"a {frame.name} frame can't have {len(payload)} bytes")
    return _HEADER.pack(frame << 24 | len(payload)) + payload


def parse_header(data: bytes | bytearray | memoryview, position: int = 0) -> Header:
    """The header in ``data[position:position + 4]``.

    :raises WireError: unknown type, or a length that this type can't have.
    """
    (word,) = _HEADER.unpack_from(data, position)
    length = word & 0xFFFFFF
    smallest, largest = LENGTHS.get(word >> 24, (1, 0))
    if not smallest <= length <= largest:
        raise WireError("unknown frame type or bad length")
    return Header(Frame(word >> 24), length)


def write_data_headers(view: memoryview, segments: list[Segment]) -> memoryview:
    """Put a DATA header before each segment and return the region to be sent.

    Segments follow each other with exactly four bytes between them.
    """
    for start, end in segments:
        _HEADER.pack_into(view, start - HEADER_LEN, _DATA_BITS | end - start)
    return view[segments[0].start - HEADER_LEN : segments[-1].end]


class BulkUnframer:
    """Finds the payload of one bulk link's incoming frames where it lies in the read buffer.

    Usage: ``start = lead_in(view)``, read into ``view[start:REGION_LEN]`` up to ``end`` (needless
    if :attr:`has_more`), ``segments = parse(view, end)``. A frame needn't be complete: what is
    there of it is a segment, the rest will be the first segment of a later read. After FIN,
    :attr:`finished` is true and what followed is kept for the next use.
    """

    __slots__ = ("broken", "finished", "kept", "remaining")

    def __init__(self) -> None:
        self.kept = b""
        """Bytes that were read and not parsed: part of a header, or what came after FIN."""
        self.remaining = 0
        """Payload bytes of the current DATA frame that were not read yet."""
        self.finished = False
        """FIN came."""
        self.broken = False
        """RESET came."""

    def begin(self) -> None:
        """The next use of the link begins."""
        self.finished = False

    @property
    def has_more(self) -> bool:
        """Whether kept bytes give something without another read."""
        return len(self.kept) >= (1 if self.remaining else HEADER_LEN)

    def lead_in(self, view: memoryview) -> int:
        """Put kept bytes at the start of ``view``; returns where to read to."""
        start = HEADER_LEN if self.remaining else 0
        end = start + len(self.kept)
        view[start:end] = self.kept
        return end

    def parse(self, view: memoryview, end: int) -> list[Segment]:
        """Payload in ``view[:end]``, which :meth:`lead_in` prepared: one segment, or none. Payload
        of several frames is moved together, so that it can be sent on as one.

        :raises WireError: a frame that has no business here, or a bad length.
        """
        remaining = self.remaining
        position = HEADER_LEN if remaining else 0
        filled = HEADER_LEN
        while position < end and not (self.finished or self.broken):
            if remaining:
                stop = min(end, position + remaining)
                length = stop - position
                if filled != position:
                    view[filled : filled + length] = view[position:stop]
                filled += length
                remaining -= length
                position = stop
            elif end - position < HEADER_LEN:
                break
            else:
                remaining = self._accept(parse_header(view, position))
                position += HEADER_LEN
        self.kept = bytes(view[position:end])
        self.remaining = remaining
        return [Segment(HEADER_LEN, filled)] if filled > HEADER_LEN else []

    def parse_header(self) -> bool:
        """Parse one header from :attr:`kept`; false if that is too short.

        :raises WireError: as :meth:`parse`.
        """
        if len(self.kept) < HEADER_LEN:
            return False
        header, self.kept = self.kept[:HEADER_LEN], self.kept[HEADER_LEN:]
        self.remaining = self._accept(parse_header(header))
        return True

    def _accept(self, header: Header) -> int:
        """Payload length of a DATA frame; 0 when the use ended."""
        if header.frame is Frame.DATA:
            return header.length
        if header.frame is Frame.FIN:
            self.finished = True
        elif header.frame is Frame.RESET:
            self.broken = True
        else:
            raise WireError(f"{header.frame.name} in the middle of a use of a bulk link")
        return 0
