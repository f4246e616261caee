"""What routing tunnels are made of on the wire (docs/spec/tunnel.md).

======== ============================== =====================================================
opening  first byte of 64               then
======== ============================== =====================================================
1 ARRAY  a setup array follows          connection id (16)
2 TUNNEL a routing tunnel of a path     path connection id (16), tunnel block (16)
3 ENTRY  a request for an entry path    entry id (16)
======== ============================== =====================================================

The rest of an opening is random. A tunnel block travels alone on the signalling link as
kind (1) ‖ path connection id (16) ‖ block (16).

A *package* is ``PACKAGE_LEN`` bytes: an AES-GCM-locked body of ``BODY_LEN``, which is
operation u8 ‖ length u16 ‖ content ‖ zero bytes. Which operations are allowed depends on the
package (init, reply, result) and on the kind of path.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from phantom_tun.clock import Rng
from phantom_tun.errors import WireError
from phantom_tun.ids import ConnectionId, EntryId, NodeId, TunnelBlock
from phantom_tun.wire.puzzles import (
    CHALLENGE_LEN,
    NO_CHALLENGE,
    NO_SOLUTION,
    SOLUTION_LEN,
    Challenge,
    Solution,
)
from phantom_tun.wire.sizes import (
    ANSWER_LEN,
    NETDB_BODY_LEN,
    OPENING_LEN,
    PACKAGE_LEN,
    SEALED_REQUEST_LEN,
)

BODY_LEN = PACKAGE_LEN - 16
CONTENT_LEN = BODY_LEN - 3

ENTRY_REQUEST_LEN = SEALED_REQUEST_LEN + SOLUTION_LEN
"""Exit node → entry node: sealed request ‖ solution (zero bytes if there is none)."""

ENTRY_ANSWER_LEN = 1 + ANSWER_LEN
"""Entry node → exit node: status u8 ‖ answer, if the status is OK; challenge ‖ zero bytes, if it is
PUZZLE; otherwise zero bytes."""


class Opening(IntEnum):
    """First byte of what opens a use of a bulk link."""

    ARRAY = 1
    TUNNEL = 2
    ENTRY = 3


class Signal(IntEnum):
    """First byte of a one-way message on a signalling link."""

    BLOCK = 1


class Package(IntEnum):
    """The three packages of every tunnel, and their numbers in key derivation."""

    INIT = 0
    REPLY = 1
    RESULT = 2


class Operation(IntEnum):
    """What a package asks or answers."""

    READY = 0
    """init: the tunnel stands; nothing else to say."""
    UPDATE = 1
    """init of an inbound tunnel: one netdb call for the entry node to carry out."""
    CONNECT = 2
    """reply of an outbound tunnel: entry node id (32) ‖ entry id (16) ‖ sealed request ‖
    solution."""
    NETDB = 3
    """reply of an outbound tunnel: one netdb call; result: its answer."""
    REQUEST = 4
    """reply of an inbound tunnel: a sealed request."""
    ANSWER = 5
    """result: the callee's answer."""
    FAILED = 6
    """result: :class:`Status` u8 ‖ challenge."""


class Status(IntEnum):
    """Why there is no answer; also the first byte of what an entry node says to an exit node."""

    OK = 0
    UNKNOWN_ENTRY = 1
    """The entry node doesn't know the entry id (any more)."""
    NO_TUNNEL = 2
    """The path behind the entry id gives no tunnel at the moment."""
    ENTRY_DOWN = 3
    """The entry node is not in the netdb, can't be dialed, or broke off."""
    BUSY = 4
    """Over a limit; try again later or elsewhere."""
    REFUSED_CALL = 5
    """The netdb call is malformed or not one that this role carries out."""
    CALL_FAILED = 6
    """The netdb call got no usable answer."""
    PUZZLE = 7
    """The entry node is loaded: who solves its challenge gets in."""


def pack_opening(kind: Opening, identifier: bytes, block: bytes, rng: Rng) -> bytes:
    """The 64 bytes of an opening; ``block`` is empty except for tunnels."""
    used = bytes([kind]) + identifier + block
    return used + rng.randbytes(OPENING_LEN - len(used))


def opening_kind(opening: bytes) -> Opening:
    """
    :raises WireError: wrong length or unknown kind.
    """
    if len(opening) != OPENING_LEN:
        raise WireError("an opening has 64 bytes")
    try:
        return Opening(opening[0])
    except ValueError as error:
        raise WireError("unknown kind of opening") from error


def opening_id(opening: bytes) -> bytes:
    """The connection id or entry id an opening names."""
    return opening[1:17]


def opening_block(opening: bytes) -> TunnelBlock:
    """The tunnel block of a TUNNEL opening."""
    return TunnelBlock(opening[17:33])


BLOCK_SIGNAL_LEN = 33


def pack_block(connection: ConnectionId, block: TunnelBlock) -> bytes:
    """A tunnel block as a signalling message."""
    return bytes([Signal.BLOCK]) + connection + block


def unpack_block(payload: bytes) -> tuple[ConnectionId, TunnelBlock]:
    """Undo :func:`pack_block`.

    :raises WireError: not a block message.
    """
    if len(payload) != BLOCK_SIGNAL_LEN or payload[0] != Signal.BLOCK:
        raise WireError("not a tunnel block message")
    return ConnectionId(payload[1:17]), TunnelBlock(payload[17:])


@dataclass(frozen=True, slots=True)
class Body:
    """The content of a package."""

    operation: Operation
    content: bytes = b""

    def pack(self) -> bytes:
        """Always ``BODY_LEN`` bytes.

        :raises WireError: the content is too long.
        """
        if len(self.content) > CONTENT_LEN:
            raise WireError("package content is too long")
        head = bytes([self.operation]) + len(self.content).to_bytes(2, "big")
        return (head + self.content).ljust(BODY_LEN, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Body:
        """Undo :meth:`pack`.

        :raises WireError: unknown operation, wrong length, or padding that isn't zero.
        """
        if len(data) != BODY_LEN:
            raise WireError("a package body has a fixed length")
        try:
            operation = Operation(data[0])
        except ValueError as error:
            raise WireError("unknown operation") from error
        end = 3 + int.from_bytes(data[1:3], "big")
        if end > BODY_LEN or data[end:].strip(b"\0"):
            raise WireError("package content and padding don't fit")
        return cls(operation, data[3:end])


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """Content of a CONNECT: where to take a sealed request."""

    entry_node: NodeId
    entry_id: EntryId
    sealed_request: bytes
    solution: Solution = NO_SOLUTION

    @property
    def entry_request(self) -> bytes:
        """What the entry node gets: ``ENTRY_REQUEST_LEN`` bytes."""
        return self.sealed_request + self.solution.pack()

    def body(self) -> Body:
        """As a package body."""
        return Body(Operation.CONNECT, self.entry_node + self.entry_id + self.entry_request)

    @classmethod
    def unpack(cls, content: bytes) -> ConnectRequest:
        """
        :raises WireError: wrong length.
        """
        if len(content) != 48 + ENTRY_REQUEST_LEN:
            raise WireError("a CONNECT has a fixed length")
        sealed_request, solution = unpack_entry_request(content[48:])
        return cls(NodeId(content[:32]), EntryId(content[32:48]), sealed_request, solution)


def unpack_entry_request(data: bytes) -> tuple[bytes, Solution]:
    """Sealed request and solution, as the entry node reads them.

    :raises WireError: wrong length.
    """
    return data[:SEALED_REQUEST_LEN], Solution.unpack(data[SEALED_REQUEST_LEN:])


def pack_entry_answer(answer: bytes) -> bytes:
    """What an entry node says if there is one; data follows."""
    return bytes([Status.OK]) + answer


def pack_entry_failure(status: Status, challenge: Challenge | None = None) -> bytes:
    """``ENTRY_ANSWER_LEN`` bytes that say why there is no answer."""
    said = NO_CHALLENGE if challenge is None else challenge.pack()
    return (bytes([status]) + said).ljust(ENTRY_ANSWER_LEN, b"\0")


def unpack_entry_answer(reply: bytes) -> tuple[Status, bytes]:
    """What an entry node says: the answer beside OK, a packed challenge beside PUZZLE, otherwise
    nothing.

    :raises WireError: unknown status, no challenge where there has to be one, or more than that.
    """
    status, rest = unpack_status(reply[:1]), reply[1:]
    if status is Status.OK:
        return status, rest
    said, padding = rest[:CHALLENGE_LEN], rest[CHALLENGE_LEN:]
    if padding.strip(b"\0"):
        raise WireError("an answer that is none has more to it than a challenge")
    _challenge_beside(status, said)
    return status, said


def request_body(sealed_request: bytes) -> Body:
    """The reply package of an inbound tunnel."""
    return Body(Operation.REQUEST, sealed_request)


def answer_body(answer: bytes) -> Body:
    """
    :raises WireError: ``answer`` hasn't its fixed length.
    """
    if len(answer) != ANSWER_LEN:
        raise WireError("an answer has a fixed length")
    return Body(Operation.ANSWER, answer)


def failed_body(status: Status, challenge: bytes = NO_CHALLENGE) -> Body:
    """A result that says why there is no answer; ``challenge`` is packed."""
    return Body(Operation.FAILED, bytes([status]) + challenge)


def unpack_failed(content: bytes) -> tuple[Status, Challenge | None]:
    """Undo :func:`failed_body`.

    :raises WireError: wrong length, unknown status, or no challenge where there has to be one.
    """
    status = unpack_status(content[:1])
    return status, _challenge_beside(status, content[1:])


def _challenge_beside(status: Status, said: bytes) -> Challenge | None:
    if status is Status.PUZZLE:
        return Challenge.unpack(said)
    if said != NO_CHALLENGE:
        raise WireError("a challenge where there is no puzzle")
    return None


def unpack_status(content: bytes) -> Status:
    """
    :raises WireError: not one known status.
    """
    try:
        (value,) = content
        return Status(value)
    except ValueError as error:
        raise WireError("unknown status") from error


def netdb_body(encoded: bytes) -> Body:
    """A netdb call or answer as a package body.

    :raises WireError: longer than fits.
    """
    if len(encoded) > NETDB_BODY_LEN:
        raise WireError("netdb message is too long for a package")
    return Body(Operation.NETDB, encoded)
