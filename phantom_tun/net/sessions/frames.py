"""From tunnel buffers to frames (docs/spec/session.md, "Frames").

A :class:`FrameReader` holds pooled memory only while it has something to give: the buffer a tunnel
was read into until TLS has taken it in, and one for the plaintext until its frames are consumed.
"""

from __future__ import annotations

from typing import NamedTuple

from phantom_tun.net.links.buffers import CHUNK, POOL, Buffer, Segment
from phantom_tun.tunnel.channel import WIRE_RECORD, Channel
from phantom_tun.wire.session import FRAME_HEADER_LEN, FrameKind, parse_frame_header

_PLAIN_LIMIT = CHUNK


class Frame(NamedTuple):
    """A frame; of DATA possibly only a part."""

    kind: FrameKind
    payload: memoryview
    """Valid until the reader is asked for the next frame."""


class FrameReader:
    """Turns what comes out of a tunnel into frames."""

    __slots__ = ("_channel", "_data_left", "_end", "_plain", "_position", "_rest", "_sealed")

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._sealed: Buffer | None = None
        self._plain: Buffer | None = None
        self._position = 0
        self._end = 0
        self._rest = b""
        self._data_left = 0

    def load(self, buffer: Buffer) -> None:
        """Take over ``buffer`` as the tunnel filled it; all frames before it must have been taken
        out with :meth:`next`."""
        for start, end in buffer.segments:
            self._channel.unwrap(buffer.view, start, end)
        self._sealed = buffer

    def next(self) -> Frame | None:
        """The next frame, or ``None`` when the tunnel has to be read again.

        :raises PeerError: altered, or not what the protocol allows.
        """
        while True:
            frame = self._parse()
            if frame is not None:
                return frame
            if not self.fill():
                return None

    def rest(self) -> None:
        """Hold no memory if nothing is left; the last frame's payload is gone with it."""
        if self._position == self._end:
            self._give_plain_back()

    def discard(self) -> None:
        """Drop what is left. Its memory doesn't go back to the pool: somebody may still be busy
        with the last frame."""
        self._sealed = self._plain = None
        self._rest = b""

    def _parse(self) -> Frame | None:
        available = self._end - self._position
        if self._plain is None or not available:
            return None
        view = self._plain.view
        if not self._data_left:
            if available < FRAME_HEADER_LEN:
                return None
            body = self._position + FRAME_HEADER_LEN
            kind, length = parse_frame_header(view[self._position : body])
            if kind is not FrameKind.DATA:
                if available < FRAME_HEADER_LEN + length:
                    return None
                self._position = body + length
                if not length and self._position == self._end:
                    self._give_plain_back()
                return Frame(kind, view[body : body + length])
            self._position = body
            self._data_left = length
            available -= FRAME_HEADER_LEN
            if not available:
                return None
        start = self._position
        self._position += min(available, self._data_left)
        self._data_left -= self._position - start
        return Frame(FrameKind.DATA, view[start : self._position])

    def fill(self) -> bool:
        """Decrypt more behind what isn't parsed yet; whether there was any.

        :raises CryptoError: altered, or the handshake failed.
        """
        kept = self._rest
        if self._plain is not None:
            kept = bytes(self._plain.view[self._position : self._end])
        else:
            self._plain = POOL.take()
        view = self._plain.view
        view[: len(kept)] = kept
        self._position, self._end, self._rest = 0, len(kept), b""
        while self._end < _PLAIN_LIMIT:
            more = self._sealed is not None and bool(self._sealed.segments)
            self._end = self._channel.read(view, self._end, _PLAIN_LIMIT, more_follows=more)
            if not self._feed():
                break
        if self._end > len(kept):
            return True
        self._rest = kept
        self._give_plain_back()
        return False

    def _give_plain_back(self) -> None:
        if self._plain is not None:
            POOL.give_back(self._plain)
            self._plain = None

    def _feed(self) -> bool:
        """Give TLS at most one record more; whether there was anything."""
        buffer = self._sealed
        if buffer is None:
            return False
        if not buffer.segments:
            self._sealed = None
            POOL.give_back(buffer)
            return False
        start, end = buffer.segments[0]
        middle = min(end, start + WIRE_RECORD)
        self._channel.feed(buffer.view, start, middle)
        if middle < end:
            buffer.segments[0] = Segment(middle, end)
        else:
            del buffer.segments[0]
        return True
