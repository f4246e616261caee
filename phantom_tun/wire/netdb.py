"""Calls and answers of the network database (docs/spec/netdb.md, "Calls").

Seven calls exist and nothing else is accepted: the six of the strict interface, and the step of a
lookup; override commands are passed on and asked for in the same way. Each is a msgpack array
headed by its method number, in canonical form. Records inside are opaque bytes here; whoever
receives them decodes and verifies each one.

The same call means two things. Between nodes it asks what *the callee itself* holds; inside a
tunnel (``NetdbService.perform``) it asks the terminating node what *the network* holds.
"""

from __future__ import annotations

import enum
import ipaddress
from typing import Annotated

import msgspec

from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import WireError
from phantom_tun.ids import ApAddress
from phantom_tun.wire.records import (
    MAX_AP_KEY_RECORD_LEN,
    MAX_AP_ROUTE_LEN,
    MAX_NODE_RECORD_LEN,
    MAX_OVERRIDE_LEN,
    PATH_KEY_LEN,
    Bytes32,
    Counter,
)

MAX_NODES = 20
"""Records in one routing answer: the k of the network."""
MAX_ROUTES = 16
"""Routes that a storer keeps for one AP identity, and the most in one call or answer."""
MAX_VOTES = 8
"""Different answers that a resolution reports."""
MAX_COMMANDS_IN_ANSWER = 64
MAX_CALL_LEN = 6_144
MAX_ANSWER_LEN = 16_384


class Method(enum.IntEnum):
    """What can be asked for."""

    REGISTER_NODE = 1
    RESERVE_AP = 2
    EXTEND_AP_LEASE = 3
    UPDATE_AP_ROUTES = 4
    RANDOM_NODES = 5
    RESOLVE_AP = 6
    CLOSEST_NODES = 7
    OVERRIDE = 8
    """Not a call of the interface: a command on its way from node to node."""
    MISSED_OVERRIDES = 9
    """Likewise: a node asks another one for the commands that it may have missed."""


class Refusal(enum.IntEnum):
    """Which storage rule a record broke; docs/spec/netdb.md says what each one means."""

    NONE = 0
    MALFORMED = 1
    SIGNATURE = 2
    PROOF_OF_WORK = 3
    ADDRESS = 4
    LIFETIME = 5
    EXPIRED = 6
    FROM_THE_FUTURE = 7
    TOO_OLD = 8
    NOT_THE_OWNER = 9
    PATH_KEY = 10
    SEQUENCE = 11
    NOT_RESPONSIBLE = 12
    LEASE_HELD = 13
    TOO_MANY_ROUTES = 14
    SOURCE_LIMIT = 15
    STORE_FULL = 16
    BANNED = 17


NodeBytes = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_NODE_RECORD_LEN)]
KeyRecordBytes = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_AP_KEY_RECORD_LEN)]
RouteBytes = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_AP_ROUTE_LEN)]
CommandBytes = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_OVERRIDE_LEN)]
PathKey = Annotated[bytes, msgspec.Meta(min_length=PATH_KEY_LEN, max_length=PATH_KEY_LEN)]
Routes = Annotated[tuple[RouteBytes, ...], msgspec.Meta(max_length=MAX_ROUTES)]
Nodes = Annotated[tuple[NodeBytes, ...], msgspec.Meta(max_length=MAX_NODES)]
PackedAddress = Annotated[bytes, msgspec.Meta(min_length=4, max_length=16)]
MaybeBytes32 = Annotated[bytes, msgspec.Meta(max_length=32)]
"""32 bytes or none."""
SmallCount = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


def _check_maybe(value: bytes) -> None:
    if len(value) not in {0, 32}:
        raise ValueError("must have 32 bytes or none")


class Message(msgspec.Struct, frozen=True, array_like=True):
    """What calls and answers share."""

    def encode(self) -> bytes:
        """The canonical bytes."""
        return _ENCODER.encode(self)


# --- calls -----------------------------------------------------------------------------------


class RegisterNode(Message, frozen=True, array_like=True, tag=int(Method.REGISTER_NODE)):
    """ "Here I am": the caller's own record. Answered by :class:`Registered`."""

    record: NodeBytes
    path_key: PathKey
    commands: MaybeBytes32 = b""
    """Digest of the override commands that the caller knows; empty if it knows or takes none."""

    def __post_init__(self) -> None:
        _check_maybe(self.commands)


class ReserveAp(Message, frozen=True, array_like=True, tag=int(Method.RESERVE_AP)):
    """Store a key record that may claim an AP4 address for the first time. Answered by
    :class:`Stored`, in a tunnel by :class:`WriteReport`."""

    record: KeyRecordBytes


class ExtendApLease(Message, frozen=True, array_like=True, tag=int(Method.EXTEND_AP_LEASE)):
    """Store the next edition of a key record. Answered as :class:`ReserveAp`."""

    record: KeyRecordBytes


class UpdateApRoutes(Message, frozen=True, array_like=True, tag=int(Method.UPDATE_AP_ROUTES)):
    """Store routes of one AP identity. Answered as :class:`ReserveAp`."""

    routes: Annotated[tuple[RouteBytes, ...], msgspec.Meta(min_length=1, max_length=MAX_ROUTES)]


class RandomNodes(Message, frozen=True, array_like=True, tag=int(Method.RANDOM_NODES)):
    """The node closest to an id, with its path key: one record per answering node. The asker draws
    the id; an answerer that could choose would be believed as often as it lies. Answered by
    :class:`KeyedNode`."""

    near: Bytes32


class ResolveAp(Message, frozen=True, array_like=True, tag=int(Method.RESOLVE_AP)):
    """What is stored for an AP address. Answered by :class:`Held`, in a tunnel by
    :class:`Resolution`."""

    address: PackedAddress
    full: bool
    """False asks for the digest only, which is enough for a vote."""

    def __post_init__(self) -> None:
        if len(self.address) not in {4, 16}:
            raise ValueError("an address has 4 or 16 bytes")

    @property
    def ip(self) -> ApAddress:
        """The address."""
        return ipaddress.ip_address(self.address)

    @classmethod
    def of(cls, address: ApAddress, *, full: bool = True) -> ResolveAp:
        """The call for ``address``."""
        return cls(address.packed, full)


class ClosestNodes(Message, frozen=True, array_like=True, tag=int(Method.CLOSEST_NODES)):
    """The step of a lookup. Answered by :class:`CloserNodes`."""

    target: Bytes32


class Override(Message, frozen=True, array_like=True, tag=int(Method.OVERRIDE)):
    """An override command is passed on. Answered by :class:`Stored`."""

    command: CommandBytes


class MissedOverrides(Message, frozen=True, array_like=True, tag=int(Method.MISSED_OVERRIDES)):
    """The override commands that the callee knows, those that come after a place in their order.
    Answered by :class:`OverrideList`."""

    number: Counter
    signer: MaybeBytes32
    """Empty: of this number, all."""

    def __post_init__(self) -> None:
        _check_maybe(self.signer)


Call = (
    RegisterNode
    | ReserveAp
    | ExtendApLease
    | UpdateApRoutes
    | RandomNodes
    | ResolveAp
    | ClosestNodes
    | Override
    | MissedOverrides
)


# --- answers ---------------------------------------------------------------------------------


class Registered(Message, frozen=True, array_like=True, tag=101):
    """The callee introduces itself in return and names nodes close to the caller."""

    refusal: Annotated[int, msgspec.Meta(ge=0, le=int(max(Refusal)))]
    record: NodeBytes
    path_key: PathKey
    nodes: Nodes
    commands: MaybeBytes32 = b""
    """As in :class:`RegisterNode`, of the callee."""

    def __post_init__(self) -> None:
        _check_maybe(self.commands)


class Stored(Message, frozen=True, array_like=True, tag=102):
    """What a storer did with the records of a call."""

    refusal: Annotated[int, msgspec.Meta(ge=0, le=int(max(Refusal)))]
    """:attr:`Refusal.NONE` if it holds them now."""
    lease_holder: MaybeBytes32
    """AP key for which it holds the claimed AP4 address; empty if it isn't a storer of it."""

    def __post_init__(self) -> None:
        _check_maybe(self.lease_holder)


class KeyedNode(Message, frozen=True, array_like=True, tag=103):
    """A node with its path-building key."""

    record: NodeBytes
    path_key: PathKey


class Held(Message, frozen=True, array_like=True, tag=104):
    """What a storer holds for an address; all empty if nothing."""

    public_key: MaybeBytes32
    sequence: Counter
    digest: MaybeBytes32
    """Of the key record; empty if only routes are held."""
    key_record: Annotated[bytes, msgspec.Meta(max_length=MAX_AP_KEY_RECORD_LEN)]
    """Empty if only the digest was asked for."""
    routes: Routes

    def __post_init__(self) -> None:
        _check_maybe(self.public_key)
        _check_maybe(self.digest)
        if not self.public_key and (self.digest or self.key_record or self.routes):
            raise ValueError("records are held for a key")
        if self.key_record and not self.digest:
            raise ValueError("a key record has a digest")


class CloserNodes(Message, frozen=True, array_like=True, tag=105):
    """Nodes close to a target, closest first."""

    nodes: Nodes


class Vote(Message, frozen=True, array_like=True):
    """How many storers hold one edition of a key record."""

    public_key: Bytes32
    sequence: Counter
    digest: Bytes32
    storers: SmallCount


class Resolution(Message, frozen=True, array_like=True, tag=106):
    """What the network holds for an address, as one node found it out."""

    key_record: Annotated[bytes, msgspec.Meta(max_length=MAX_AP_KEY_RECORD_LEN)]
    """The winning one; empty if there is none."""
    routes: Routes
    asked: SmallCount
    answered: SmallCount
    votes: Annotated[tuple[Vote, ...], msgspec.Meta(max_length=MAX_VOTES)]
    """Winner first; anything behind it is dissent."""


class WriteReport(Message, frozen=True, array_like=True, tag=107):
    """How a write to the network went."""

    asked: SmallCount
    stored: SmallCount
    refusal: Annotated[int, msgspec.Meta(ge=0, le=int(max(Refusal)))]
    """The most frequent reason of those that refused."""
    lease_holder: MaybeBytes32
    """AP key for which most storers hold the claimed AP4 address; empty if none was claimed or
    nobody answered. Another key than one's own: the claim is lost."""

    def __post_init__(self) -> None:
        _check_maybe(self.lease_holder)


class OverrideList(Message, frozen=True, array_like=True, tag=108):
    """Override commands, lowest number first; none: there are no more."""

    commands: Annotated[tuple[CommandBytes, ...], msgspec.Meta(max_length=MAX_COMMANDS_IN_ANSWER)]


Answer = (
    Registered | Stored | KeyedNode | Held | CloserNodes | Resolution | WriteReport | OverrideList
)

_ENCODER = msgspec.msgpack.Encoder()
_CALLS: msgspec.msgpack.Decoder[Call] = msgspec.msgpack.Decoder(Call)
_ANSWERS: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_METHODS: dict[type[Message], Method] = {
    RegisterNode: Method.REGISTER_NODE,
    ReserveAp: Method.RESERVE_AP,
    ExtendApLease: Method.EXTEND_AP_LEASE,
    UpdateApRoutes: Method.UPDATE_AP_ROUTES,
    RandomNodes: Method.RANDOM_NODES,
    ResolveAp: Method.RESOLVE_AP,
    ClosestNodes: Method.CLOSEST_NODES,
    Override: Method.OVERRIDE,
    MissedOverrides: Method.MISSED_OVERRIDES,
}


def method_of(call: Call) -> Method:
    """Which call this is."""
    return _METHODS[type(call)]


def decode_call(data: bytes) -> Call:
    """Parse a call.

    :raises WireError: too long, unknown method, malformed or not canonical.
    """
    if len(data) > MAX_CALL_LEN:
        raise WireError(f"a netdb call has at most {MAX_CALL_LEN} bytes")
    try:
        call = _CALLS.decode(data)
    except UNREADABLE as error:
        raise WireError("netdb call does not parse") from error
    if call.encode() != data:
        raise WireError("netdb call is not in canonical form")
    return call


def decode_answer(data: bytes) -> Answer:
    """Parse an answer.

    :raises WireError: too long, malformed or not canonical.
    """
    if len(data) > MAX_ANSWER_LEN:
        raise WireError(f"a netdb answer has at most {MAX_ANSWER_LEN} bytes")
    try:
        answer = _ANSWERS.decode(data)
    except UNREADABLE as error:
        raise WireError("netdb answer does not parse") from error
    if answer.encode() != data:
        raise WireError("netdb answer is not in canonical form")
    return answer
