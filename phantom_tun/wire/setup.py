"""Setup arrays and the packages in them (docs/spec/path.md, "Array" and "Packages").

An array is 24 slots of hint (16) ‖ content (1,536), in both rounds and whatever it builds. In the
first round the content is work nonce (8) ‖ sealed package (1,528), in the second a locked package.
Plaintexts have one fixed length per round and one strict layout per role; what a layout leaves
over is zero, and is checked.

Round 1, 392 bytes, the same for every role::

    role u8 ‖ expires u64 ‖ previous node (82) ‖ incoming id (16) ‖ next node (82) ‖
    outgoing id (16) ‖ construction key (32) ‖ layer secret (32) ‖ fill secret (32) ‖
    round-2 key (32) ‖ array hash (32) ‖ zeros

Round 2, 1,520 bytes::

    success u8 = 1 ‖ array hash (32) ‖ by role ‖ zeros ‖ signature (64)

    Y            nothing
    interior X   2 × neighbour (98) ‖ path secret (32)
    exit         dials u8 ‖ neighbour (98) ‖ path secret (32)
    entry        dials u8 ‖ neighbour (98) ‖ path secret (32) ‖ entry id (16) ‖
                 route length u16 ‖ signed APRoute

A neighbour is a NodeRef (82) ‖ connection id (16).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from phantom_tun.crypto.hashes import HASH_LEN
from phantom_tun.crypto.packages import TAG_LEN
from phantom_tun.crypto.sealing import SEAL_OVERHEAD
from phantom_tun.crypto.signing import SIGNATURE_LEN
from phantom_tun.crypto.work import NONCE_LEN
from phantom_tun.errors import WireError
from phantom_tun.ids import ConnectionId, EntryId, PublicKey
from phantom_tun.wire.nodes import NODE_REF_LEN, NodeRef

SLOTS = 24
HINT_LEN = 16
SLOT_CONTENT_LEN = 1536
SLOT_LEN = HINT_LEN + SLOT_CONTENT_LEN
ARRAY_LEN = SLOTS * SLOT_LEN

ROUND1_LEN = SLOT_CONTENT_LEN - NONCE_LEN - SEAL_OVERHEAD
ROUND2_LEN = SLOT_CONTENT_LEN - TAG_LEN

SECRET_LEN = 32
CONNECTION_ID_LEN = 16
ENTRY_ID_LEN = 16
MAX_ROUTE_LEN = 300

_SUCCESS = 1


class Role(IntEnum):
    """What a member of a build is there for. Only a terminating node is told which kind it is."""

    Y = 1
    INTERIOR = 2
    EXIT = 3
    ENTRY = 4

    @property
    def stays(self) -> bool:
        """Whether the member is part of the finished path: an X-node."""
        return self is not Role.Y


class Neighbour(NamedTuple):
    """A node next to this one, and the connection id that both know."""

    node: NodeRef
    connection: ConnectionId

    def pack(self) -> bytes:
        """98 bytes."""
        return self.node.pack() + self.connection


@dataclass(frozen=True, slots=True)
class Round1Package:
    """What every member is told in the first round."""

    role: Role
    expires: int
    """Seconds since the epoch, a whole multiple of ten minutes."""
    previous: Neighbour
    """Who must bring the arrays, under which connection id."""
    next: Neighbour
    """Where they go on to."""
    construction_key: PublicKey
    """Verifies the round-2 package of this member."""
    layer_secret: bytes = field(repr=False)
    fill_secret: bytes = field(repr=False)
    round2_key: bytes = field(repr=False)
    array_hash: bytes
    """Of the array as this member receives it, its own slot zeroed."""

    def pack(self) -> bytes:
        """``ROUND1_LEN`` bytes."""
        used = b"".join(
            (
                bytes([self.role]),
                self.expires.to_bytes(8, "big"),
                self.previous.pack(),
                self.next.pack(),
                self.construction_key,
                self.layer_secret,
                self.fill_secret,
                self.round2_key,
                self.array_hash,
            )
        )
        return used.ljust(ROUND1_LEN, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Round1Package:
        """Undo :meth:`pack`.

        :raises WireError: wrong length, unknown role, or bytes left over that aren't zero.
        """
        fields = _Fields(data, ROUND1_LEN)
        package = cls(
            role=fields.role(),
            expires=fields.number(8),
            previous=fields.neighbour(),
            next=fields.neighbour(),
            construction_key=PublicKey(fields.take(HASH_LEN)),
            layer_secret=fields.take(SECRET_LEN),
            fill_secret=fields.take(SECRET_LEN),
            round2_key=fields.take(SECRET_LEN),
            array_hash=fields.take(HASH_LEN),
        )
        fields.check_rest()
        return package


@dataclass(frozen=True, slots=True)
class InteriorPart:
    """What an interior X-node is told in the second round."""

    neighbours: tuple[Neighbour, Neighbour]
    """In ring order."""
    path_secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TerminatingPart:
    """What an exit or entry node is told in the second round."""

    neighbour: Neighbour
    dials: bool
    """Whether it is this node that opens the link to its neighbour."""
    path_secret: bytes = field(repr=False)
    entry_id: EntryId | None = None
    """Entry node only."""
    route: bytes | None = None
    """A signed APRoute; entry node only."""


Part = InteriorPart | TerminatingPart | None
"""What the second round adds, by role; None for Y-nodes."""


@dataclass(frozen=True, slots=True)
class Round2Package:
    """What every member is told in the second round. The signature travels beside it."""

    array_hash: bytes
    """Of the second array as this member receives it, its own slot zeroed."""
    part: Part

    def pack(self) -> bytes:
        """The bytes that the construction key signs: all but the signature."""
        used = bytes([_SUCCESS]) + self.array_hash + _pack_part(self.part)
        return used.ljust(ROUND2_LEN - SIGNATURE_LEN, b"\0")

    @classmethod
    def unpack(cls, content: bytes, role: Role) -> Round2Package:
        """Undo :meth:`pack`.

        :raises WireError: wrong length, not a success, or bytes that ``role`` doesn't use and that
            aren't zero.
        """
        fields = _Fields(content, ROUND2_LEN - SIGNATURE_LEN)
        if fields.number(1) != _SUCCESS:
            raise WireError("the build did not succeed")
        package = cls(fields.take(HASH_LEN), fields.part(role))
        fields.check_rest()
        return package


def split_work(content: bytes) -> tuple[bytes, bytes]:
    """Work nonce and sealed package of a slot's content in round 1."""
    return content[:NONCE_LEN], content[NONCE_LEN:]


def split_signature(plaintext: bytes) -> tuple[bytes, bytes]:
    """Content and signature of a round-2 plaintext."""
    return plaintext[:-SIGNATURE_LEN], plaintext[-SIGNATURE_LEN:]


def slot_range(slot: int) -> slice:
    """Where slot number ``slot`` lies in an array."""
    return slice(slot * SLOT_LEN, (slot + 1) * SLOT_LEN)


def _pack_part(part: Part) -> bytes:
    if part is None:
        return b""
    if isinstance(part, InteriorPart):
        first, second = part.neighbours
        return first.pack() + second.pack() + part.path_secret
    packed = bytes([part.dials]) + part.neighbour.pack() + part.path_secret
    if part.entry_id is not None:
        route = part.route or b""
        packed += part.entry_id + len(route).to_bytes(2, "big") + route
    return packed


class _Fields:
    """Reads fields one after the other from a plaintext of known length."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes, length: int) -> None:
        if len(data) != length:
            raise WireError(f"a setup package of this round has {length} bytes")
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        return self._data[start : self._at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def role(self) -> Role:
        try:
            return Role(self.number(1))
        except ValueError as error:
            raise WireError("unknown role in a setup package") from error

    def flag(self) -> bool:
        value = self.number(1)
        if value > 1:
            raise WireError("a flag in a setup package is neither 0 nor 1")
        return bool(value)

    def neighbour(self) -> Neighbour:
        node = NodeRef.unpack(self.take(NODE_REF_LEN))
        return Neighbour(node, ConnectionId(self.take(CONNECTION_ID_LEN)))

    def part(self, role: Role) -> Part:
        if role is Role.Y:
            return None
        if role is Role.INTERIOR:
            return InteriorPart((self.neighbour(), self.neighbour()), self.take(SECRET_LEN))
        dials = self.flag()
        neighbour = self.neighbour()
        secret = self.take(SECRET_LEN)
        if role is Role.EXIT:
            return TerminatingPart(neighbour, dials, secret)
        entry_id = EntryId(self.take(ENTRY_ID_LEN))
        length = self.number(2)
        if not 0 < length <= MAX_ROUTE_LEN:
            raise WireError("the route in a setup package has an impossible length")
        return TerminatingPart(neighbour, dials, secret, entry_id, self.take(length))

    def check_rest(self) -> None:
        if any(self._data[self._at :]):
            raise WireError("unused bytes of a setup package are not zero")
