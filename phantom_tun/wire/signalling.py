"""Messages of signalling links: finding frames, cutting calls into chunks, in which order to send
and how to join them again (docs/spec/links.md, "Signalling")."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from phantom_tun.errors import CapacityExceeded, ProtocolViolation, WireError
from phantom_tun.wire.frames import (
    CHUNK_HEAD_LEN,
    CHUNK_LEN,
    HEADER_LEN,
    MAX_CALL_LEN,
    Frame,
    pack_frame,
    parse_header,
)

FIRST = 1
LAST = 2

SIGNALLING_FRAMES = frozenset(
    {
        Frame.SIGNAL,
        Frame.CALL,
        Frame.ANSWER,
        Frame.PING,
        Frame.PONG,
        Frame.ASK,
        Frame.DECLINE,
        Frame.FIN,
    }
)


class Message(NamedTuple):
    """One frame of a signalling link."""

    frame: Frame
    payload: bytes


class SignalUnframer:
    """Cuts a signalling link's bytes into frames; keeps at most one incomplete frame."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes | memoryview) -> list[Message]:
        """All frames that are complete now.

        :raises WireError: a frame that has no business on a signalling link, or a bad length. It is
            raised as soon as the header is there.
        """
        kept = self._kept
        kept += data
        messages = []
        position = 0
        while len(kept) - position >= HEADER_LEN:
            header = parse_header(kept, position)
            if header.frame not in SIGNALLING_FRAMES:
                raise WireError(f"{header.frame.name} on a signalling link")
            end = position + HEADER_LEN + header.length
            if len(kept) < end:
                break
            messages.append(Message(header.frame, bytes(kept[position + HEADER_LEN : end])))
            position = end
        del kept[:position]
        return messages


def call_frames(frame: Frame, number: int, body: bytes) -> Iterator[bytes]:
    """The CALL or ANSWER frames that carry ``body``, made as they are needed.

    :raises WireError: ``body`` is longer than ``MAX_CALL_LEN``.
    """
    if len(body) > MAX_CALL_LEN:
        raise WireError(f"a call or answer has at most {MAX_CALL_LEN} bytes")
    return (
        _chunk_frame(frame, number, body, start) for start in range(0, max(len(body), 1), CHUNK_LEN)
    )


def _chunk_frame(frame: Frame, number: int, body: bytes, start: int) -> bytes:
    end = start + CHUNK_LEN
    flags = (FIRST if start == 0 else 0) | (LAST if end >= len(body) else 0)
    return pack_frame(frame, number.to_bytes(4, "big") + bytes([flags]) + body[start:end])


@dataclass(frozen=True, slots=True)
class Chunk:
    """The payload of a CALL or ANSWER frame."""

    number: int
    first: bool
    last: bool
    data: bytes

    @classmethod
    def unpack(cls, payload: bytes) -> Chunk:
        """Call number u32 ‖ flags u8 (1 first, 2 last) ‖ data.

        :raises WireError: unknown flags. (Frame lengths were checked before.)
        """
        flags = payload[4]
        if flags & ~(FIRST | LAST):
            raise WireError("unknown chunk flags")
        number = int.from_bytes(payload[:4], "big")
        return cls(number, bool(flags & FIRST), bool(flags & LAST), payload[CHUNK_HEAD_LEN:])


class Outbox:
    """What waits to be sent over one signalling link. Small messages go first; of calls and
    answers one chunk at a time, in turn, so that nothing waits behind a large one."""

    __slots__ = ("_bodies", "_limit", "_small")

    def __init__(self, limit: int) -> None:
        """``limit``: small messages that may wait."""
        self._small: deque[bytes] = deque()
        self._bodies: deque[Iterator[bytes]] = deque()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._small) + len(self._bodies)

    def add(self, frame: Frame, payload: bytes = b"") -> None:
        """Queue a small message.

        :raises CapacityExceeded: too many wait already.
        """
        if len(self._small) >= self._limit:
            raise CapacityExceeded("the neighbour doesn't take messages fast enough")
        self._small.append(pack_frame(frame, payload))

    def add_body(self, frames: Iterator[bytes]) -> None:
        """Queue the frames of a call or an answer. The caller limits how many there are."""
        self._bodies.append(frames)

    def next_batch(self) -> bytes:
        """What to write next: all small messages and one chunk; ``b""`` if nothing waits."""
        batch = list(self._small)
        self._small.clear()
        while self._bodies:
            body = self._bodies.popleft()
            frame = next(body, None)
            if frame is not None:
                batch.append(frame)
                self._bodies.append(body)
                break
        return b"".join(batch)


class Assembler:
    """Joins chunks of several bodies that arrive interleaved. The caller limits how many."""

    __slots__ = ("_bodies",)

    def __init__(self) -> None:
        self._bodies: dict[int, bytearray] = {}

    def __len__(self) -> int:
        return len(self._bodies)

    def __contains__(self, number: int) -> bool:
        return number in self._bodies

    def add(self, chunk: Chunk) -> bytes | None:
        """The whole body once its last chunk came. Chunks of a body whose first one was refused or
        never came are ignored.

        :raises ProtocolViolation: two first chunks, or more than ``MAX_CALL_LEN`` bytes.
        """
        if chunk.first:
            if chunk.number in self._bodies:
                raise ProtocolViolation("a call number is used twice")
            self._bodies[chunk.number] = bytearray()
        body = self._bodies.get(chunk.number)
        if body is None:
            return None
        body += chunk.data
        if len(body) > MAX_CALL_LEN:
            raise ProtocolViolation("a call or answer is too long")
        if not chunk.last:
            return None
        del self._bodies[chunk.number]
        return bytes(body)

    def forget(self, number: int) -> int:
        """Drop what came of a body that nobody waits for any more; returns how many bytes."""
        return len(self._bodies.pop(number, b""))
