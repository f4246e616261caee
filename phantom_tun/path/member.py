"""What a node does with the setup arrays it is brought (docs/spec/path.md, "On receipt").

Everything that is wrong with an array ends in :class:`ArrayRefused`, which stays inside the node:
whoever brought the array learns nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from phantom_tun.clock import MINUTE
from phantom_tun.crypto.hashes import equal, h
from phantom_tun.crypto.packages import unlock
from phantom_tun.crypto.signing import verify
from phantom_tun.errors import (
    CapacityExceeded,
    CryptoError,
    PeerError,
    ProtocolViolation,
    WireError,
)
from phantom_tun.ids import ConnectionId, NetworkId, NodeId
from phantom_tun.path.hop import HopRole, PathHop
from phantom_tun.path.keys import PathKeys
from phantom_tun.path.layers import Cover, find_slot, hash_without
from phantom_tun.path.lifetimes import EXPIRY_STEP, FURTHEST, Y_FURTHEST
from phantom_tun.path.replay import ReplayCache
from phantom_tun.path.work import LOADED, Budget, Demand, task
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.setup import (
    ARRAY_LEN,
    HINT_LEN,
    InteriorPart,
    Neighbour,
    Role,
    Round1Package,
    Round2Package,
    TerminatingPart,
    slot_range,
    split_signature,
    split_work,
)

PENDING_LIFE = 2 * MINUTE
"""How long a member waits for the second array."""

ROUND2_PURPOSE = "setup round 2"
"""Of construction signatures."""


class Reason(Enum):
    """Why an array was refused; shown in the node's own statistics and nowhere else."""

    LENGTH = "length"
    NO_SLOT = "no_slot"
    WORK = "work"
    SEAL = "seal"
    MALFORMED = "malformed"
    SENDER = "sender"
    CONNECTION = "connection"
    ALTERED = "altered"
    EXPIRED = "expired"
    EXPIRY = "expiry"
    REPLAYED = "replayed"
    SIGNATURE = "signature"
    NAMES_US = "names_us"
    ADDRESS = "address"
    FULL = "full"
    FULL_FOR_NEIGHBOUR = "full_for_neighbour"


class ArrayRefused(PeerError):  # noqa: N818 - reads as what happened
    """An array is dropped in silence."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"setup array refused: {reason.value}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class MemberLimits:
    """What a node takes on for others."""

    hops: int = 2000
    """Paths that run through it, those being built included."""
    hops_per_neighbour: int = 500
    """Of those, brought by one neighbour."""
    pending: int = 512
    """Builds between their two rounds."""
    pending_per_neighbour: int = 64
    builds_rate: float = 200.0
    builds_burst: float = 1000.0
    """First arrays per second, and at once."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What to do after an array was accepted."""

    array: bytes = field(repr=False)
    """To send on."""
    next: Neighbour
    """Where to, under which connection id."""
    hop: PathHop | None = None
    """After the second round, at an X-node: a hop of a finished path."""
    successor: NodeRef | None = None
    """Whom the hop has to open its link to."""


@dataclass(frozen=True, slots=True)
class _Pending:
    package: Round1Package = field(repr=False)
    until: float


@dataclass(frozen=True, slots=True)
class _Standing:
    hop: PathHop
    brought_by: NodeId


class Member:
    """The builds a node takes part in, and the hops that came of them."""

    def __init__(
        self,
        node_id: NodeId,
        network_id: NetworkId,
        keys: PathKeys,
        limits: MemberLimits,
        *,
        allow_loopback: bool = False,
    ) -> None:
        """``allow_loopback``: this node itself has a loopback address, so others may have too."""
        self._node_id = node_id
        self._network_id = network_id
        self._keys = keys
        self._limits = limits
        self._allow_loopback = allow_loopback
        self._replays = ReplayCache()
        self._pending: dict[tuple[NodeId, ConnectionId], _Pending] = {}
        self._standing: list[_Standing] = []
        self._budget = Budget(limits.builds_rate, limits.builds_burst)
        self._demand = Demand()
        self._worked = 0

    # --- arrays ---------------------------------------------------------------------------------

    def receive(
        self,
        sender: NodeId,
        connection: ConnectionId,
        array: bytes,
        now: float,
        *,
        used: float = 0.0,
    ) -> Accepted:
        """Take an array that the authenticated node ``sender`` brought for ``connection``.

        :param used: the share that ``sender`` has used up of what it may bring.
        :raises ArrayRefused: it isn't as it has to be. A build whose second array is refused is
            over.
        """
        if len(array) != ARRAY_LEN:
            raise ArrayRefused(Reason.LENGTH)
        pending = self._pending.pop((sender, connection), None)
        if pending is None or pending.until <= now:
            return self._receive_first(sender, connection, array, now, used)
        return self._receive_second(sender, connection, array, pending.package)

    def _receive_first(
        self, sender: NodeId, connection: ConnectionId, array: bytes, now: float, used: float
    ) -> Accepted:
        slot = _find(array, connection, 1)
        nonce, sealed = split_work(array[_content_range(slot)])
        self._check_work(nonce, sealed, used, now)
        plaintext = self._open(sealed, now)
        package = _parse_first(plaintext)
        self._check_first(package, sender, connection, now)
        if not equal(hash_without(array, slot), package.array_hash):
            raise ArrayRefused(Reason.ALTERED)
        digest = h("setup replay", plaintext)
        self._check_replay(digest, sender, now)
        self._check_capacity(package.role, sender)
        self._replays.remember(digest, sender, package.expires)
        self._pending[sender, connection] = _Pending(package, now + PENDING_LIFE)
        return Accepted(_cover(package).apply(array, slot, 1), package.next)

    def _receive_second(
        self, sender: NodeId, connection: ConnectionId, array: bytes, first: Round1Package
    ) -> Accepted:
        slot = _find(array, connection, 2)
        package = self._open_second(array[_content_range(slot)], first)
        if not equal(hash_without(array, slot), package.array_hash):
            raise ArrayRefused(Reason.ALTERED)
        onward = _cover(first).apply(array, slot, 2)
        if package.part is None:
            return Accepted(onward, first.next)
        hop, successor = _finished(package.part, first)
        for neighbour in hop.neighbours:
            self._check_node(neighbour[0])
        self._standing.append(_Standing(hop, sender))
        return Accepted(onward, first.next, hop, successor)

    # --- checks ---------------------------------------------------------------------------------

    def _check_work(self, nonce: bytes, sealed: bytes, used: float, now: float) -> None:
        """While half of everything is free everybody is served, then those who worked."""
        asked = self._demand.least(now)
        if asked and max(used, self.load(now)) >= LOADED:
            if task(self._node_id, sealed).proven(nonce) < asked:
                raise ArrayRefused(Reason.WORK)
            self._worked += 1
        if not self._budget.take(now):
            raise ArrayRefused(Reason.FULL)

    def _open(self, sealed: bytes, now: float) -> bytes:
        try:
            return self._keys.open(sealed, self._network_id, now)
        except CryptoError as error:
            raise ArrayRefused(Reason.SEAL) from error

    def _open_second(self, locked: bytes, first: Round1Package) -> Round2Package:
        try:
            plaintext = unlock(first.round2_key, locked, self._network_id)
        except CryptoError as error:
            raise ArrayRefused(Reason.SEAL) from error
        content, signature = split_signature(plaintext)
        try:
            verify(first.construction_key, signature, ROUND2_PURPOSE, self._network_id, content)
        except CryptoError as error:
            raise ArrayRefused(Reason.SIGNATURE) from error
        try:
            return Round2Package.unpack(content, first.role)
        except WireError as error:
            raise ArrayRefused(Reason.MALFORMED) from error

    def _check_first(
        self, package: Round1Package, sender: NodeId, connection: ConnectionId, now: float
    ) -> None:
        if not equal(package.previous.node.node_id, sender):
            raise ArrayRefused(Reason.SENDER)
        if not equal(package.previous.connection, connection):
            raise ArrayRefused(Reason.CONNECTION)
        if package.expires <= now:
            raise ArrayRefused(Reason.EXPIRED)
        furthest = FURTHEST if package.role.stays else Y_FURTHEST
        if package.expires > now + furthest or package.expires % int(EXPIRY_STEP):
            raise ArrayRefused(Reason.EXPIRY)
        self._check_node(package.next.node)

    def _check_node(self, node: NodeRef) -> None:
        if node.node_id == self._node_id:
            raise ArrayRefused(Reason.NAMES_US)
        address = node.address
        impossible = address.is_multicast or address.is_unspecified or address.is_link_local
        if impossible or (address.is_loopback and not self._allow_loopback):
            raise ArrayRefused(Reason.ADDRESS)

    def _check_replay(self, digest: bytes, sender: NodeId, now: float) -> None:
        try:
            self._replays.check(digest, sender, now)
        except ProtocolViolation as error:
            raise ArrayRefused(Reason.REPLAYED) from error
        except CapacityExceeded as error:
            raise ArrayRefused(Reason.FULL) from error

    def _check_capacity(self, role: Role, sender: NodeId) -> None:
        limits = self._limits
        waiting = [(key[0], pending.package.role) for key, pending in self._pending.items()]
        if len(waiting) >= limits.pending:
            raise ArrayRefused(Reason.FULL)
        if sum(neighbour == sender for neighbour, _ in waiting) >= limits.pending_per_neighbour:
            raise ArrayRefused(Reason.FULL_FOR_NEIGHBOUR)
        if not role.stays:
            return
        hops = [neighbour for neighbour, other in waiting if other.stays]
        hops += [standing.brought_by for standing in self._standing]
        if len(hops) >= limits.hops:
            raise ArrayRefused(Reason.FULL)
        if hops.count(sender) >= limits.hops_per_neighbour:
            raise ArrayRefused(Reason.FULL_FOR_NEIGHBOUR)

    # --- what is kept ---------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Builds between their rounds."""
        return len(self._pending)

    @property
    def standing(self) -> int:
        """Hops of finished paths."""
        return len(self._standing)

    @property
    def remembered(self) -> int:
        """Packages in the replay cache."""
        return len(self._replays)

    @property
    def asked(self) -> int:
        """Bits of work that builders are to prove from now on."""
        return self._demand.bits

    @property
    def worked(self) -> int:
        """Builds that were let in because their owners had worked."""
        return self._worked

    def load(self, now: float) -> float:
        """Share in use of what is scarcest."""
        pending = len(self._pending)
        waiting = sum(found.package.role.stays for found in self._pending.values())
        return max(
            self._budget.used(now),
            pending / max(1, self._limits.pending),
            (waiting + len(self._standing)) / max(1, self._limits.hops),
        )

    def adjust(self, now: float) -> bool:
        """Ask for more work, or for less; to be called every few seconds. Returns whether
        :attr:`asked` has changed."""
        return self._demand.adjust(self.load(now), now)

    def release(self, hop: PathHop) -> None:
        """A hop ended before its expiry. Idempotent."""
        self._standing = [kept for kept in self._standing if kept.hop is not hop]

    def sweep(self, now: float) -> None:
        """Forget builds that never got their second array, and expired hops."""
        self._pending = {
            key: pending for key, pending in self._pending.items() if pending.until > now
        }
        self._standing = [kept for kept in self._standing if kept.hop.expires > now]


def _find(array: bytes, connection: ConnectionId, number: int) -> int:
    try:
        return find_slot(array, connection, number)
    except ProtocolViolation as error:
        raise ArrayRefused(Reason.NO_SLOT) from error


def _content_range(slot: int) -> slice:
    place = slot_range(slot)
    return slice(place.start + HINT_LEN, place.stop)


def _parse_first(plaintext: bytes) -> Round1Package:
    try:
        return Round1Package.unpack(plaintext)
    except WireError as error:
        raise ArrayRefused(Reason.MALFORMED) from error


def _cover(package: Round1Package) -> Cover:
    return Cover(package.layer_secret, package.fill_secret)


_HOP_ROLES: dict[Role, HopRole] = {
    Role.INTERIOR: "interior",
    Role.EXIT: "exit",
    Role.ENTRY: "entry",
}


def _finished(
    part: InteriorPart | TerminatingPart, first: Round1Package
) -> tuple[PathHop, NodeRef | None]:
    role = _HOP_ROLES[first.role]
    if isinstance(part, InteriorPart):
        hop = PathHop(role, part.neighbours, part.path_secret, first.expires)
        return hop, part.neighbours[1].node
    hop = PathHop(
        role, (part.neighbour,), part.path_secret, first.expires, part.entry_id, part.route
    )
    return hop, part.neighbour.node if part.dials else None
