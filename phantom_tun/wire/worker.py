"""What a node and its worker processes say to each other (docs/spec/workers.md).

*Control channel*: one msgpack array per datagram of a socket pair, with or without a descriptor.

*Local link*: for every link that a worker has accepted, a stream socket between it and the node
that carries what the link carries. For a bulk link, the node says first what becomes of each use::

    worker  OPEN                               JOINED        DONE      OPEN      DATA … FIN
    node          JOIN (opening, keys, whom)                      …          TAKE     DATA … FIN

Both are between processes of one user on one machine, which were started together: there are no
versions, and what doesn't parse is a mistake of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import msgspec

from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import WireError
from phantom_tun.wire.frames import HEADER_LEN, Frame
from phantom_tun.wire.nodes import NODE_REF_LEN, NodeRef
from phantom_tun.wire.sizes import OPENING_LEN

MAX_MESSAGE_LEN = 131_072
"""Of the control channel."""

STREAM_SECRET_LEN = 64


class _Message(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Base of all messages of the control channel."""


# --- from the node ------------------------------------------------------------------------------


class Setup(_Message, frozen=True, tag=True):
    """First of all: what a worker needs to stand in for the node at the door. The node's identity
    key is not in it."""

    network_id: bytes
    node_id: bytes
    certificate_der: bytes
    certificate_key: bytes
    page: bytes
    """HTML for strangers."""
    limits: dict[str, Any]
    """All fields of LinkLimits."""

    def __repr__(self) -> str:
        return "Setup(…)"


class Greet(_Message, frozen=True, tag=True):
    """With an accepted TCP connection: see who it is."""

    number: int
    address: bytes
    """4 or 16 bytes."""


class Drop(_Message, frozen=True, tag=True):
    """Have no more to do with this stranger; :class:`Left` is the answer."""

    number: int


class Proof(_Message, frozen=True, tag=True):
    """The answer to :class:`Welcome` or :class:`Auth`; ``None``: there is none."""

    number: int
    proof: bytes | None


class Forget(_Message, frozen=True, tag=True):
    """A neighbour is dead or was let go: close the links that lead to it."""

    node_id: bytes


ToWorker = Setup | Greet | Drop | Proof | Forget

# --- from the worker ----------------------------------------------------------------------------


class Ready(_Message, frozen=True, tag=True):
    """Connections may come."""


class Left(_Message, frozen=True, tag=True):
    """The stranger of this :class:`Greet` is gone and has not become a link."""

    number: int


class Arrived(_Message, frozen=True, tag=True):
    """It has become a link; with the node's end of a stream socket that stands for it."""

    number: int
    node_id: bytes
    kind: int


class Welcome(_Message, frozen=True, tag=True):
    """Make the server's proof for a dialer's token."""

    number: int
    token_nonce: bytes


class Auth(_Message, frozen=True, tag=True):
    """Make the dialer's proof for a server."""

    number: int
    server_id: bytes
    cert_hash: bytes
    nonce: bytes
    kind: int


class Report(_Message, frozen=True, tag=True):
    """What happened since the last one."""

    counts: dict[str, int]
    """By how much each counter has grown."""
    idle: dict[bytes, int]
    """Bulk links kept ready, by node id."""


FromWorker = Ready | Left | Arrived | Welcome | Auth | Report

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def pack(message: ToWorker | FromWorker) -> bytes:
    """One datagram."""
    return _encoder.encode(message)


def unpack_to_worker(data: bytes) -> ToWorker:
    """
    :raises WireError: it isn't one of the node's messages.
    """
    try:
        return _to_worker.decode(data)
    except UNREADABLE as error:
        raise WireError("not a message from the node") from error


def unpack_from_worker(data: bytes) -> FromWorker:
    """
    :raises WireError: it isn't one of a worker's messages.
    """
    try:
        return _from_worker.decode(data)
    except UNREADABLE as error:
        raise WireError("not a message from a worker") from error


# --- local links --------------------------------------------------------------------------------


class LocalFrame(IntEnum):
    """Frames of a local bulk link beside those of any bulk link; header as theirs."""

    TAKE = 64
    """node: this use is mine, pass on what comes, both ways"""
    JOIN = 65
    """node: join this use with another one; :class:`Join`"""
    JOINED = 66
    """worker: both stand"""
    REFUSED = 67
    """worker: the other one can't be had from here"""
    DONE = 68
    """worker: FIN went through both ways; the link is idle"""


@dataclass(frozen=True, slots=True)
class Join:
    """A tunnel's way on: everything a relay needs to carry it, and nothing about anything else."""

    onward: NodeRef
    opening: bytes
    """Of the use towards ``onward``."""
    there: bytes = field(repr=False)
    """Stream secret for the bytes towards ``onward``."""
    back: bytes = field(repr=False)
    """The same for those from there."""

    def pack(self) -> bytes:
        """``JOIN_LEN`` bytes."""
        return self.onward.pack() + self.opening + self.there + self.back

    @classmethod
    def unpack(cls, data: bytes) -> Join:
        """Undo :meth:`pack`.

        :raises WireError: a wrong length.
        """
        if len(data) != JOIN_LEN:
            raise WireError(f"a JOIN has {JOIN_LEN} bytes")
        opening_end = NODE_REF_LEN + OPENING_LEN
        there_end = opening_end + STREAM_SECRET_LEN
        return cls(
            NodeRef.unpack(data[:NODE_REF_LEN]),
            data[NODE_REF_LEN:opening_end],
            data[opening_end:there_end],
            data[there_end:],
        )


JOIN_LEN = NODE_REF_LEN + OPENING_LEN + 2 * STREAM_SECRET_LEN


def pack_local(frame: LocalFrame, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return (frame << 24 | len(payload)).to_bytes(HEADER_LEN, "big") + payload


def parse_local(header: bytes) -> LocalFrame | None:
    """The frame that these four bytes begin; ``None`` for RESET. What follows JOIN has ``JOIN_LEN``
    bytes.

    :raises WireError: anything else, or a wrong length.
    """
    kind, length = header[0], int.from_bytes(header[1:], "big")
    if kind == Frame.RESET and not length:
        return None
    try:
        frame = LocalFrame(kind)
    except ValueError as error:
        raise WireError("not a frame of a local link") from error
    if length != (JOIN_LEN if frame is LocalFrame.JOIN else 0):
        raise WireError("a frame of a local link has a wrong length")
    return frame
