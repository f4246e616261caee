"""The owner's side of one build (docs/spec/path.md, "Owner")::

    build = Build(ring, owner, network_id, terms, now=now, rng=rng)
    send build.array(1) to build.first; check(1, …) what build.last brings back
    send build.array(2) to build.first; check(2, …) what build.last brings back
    build.x_nodes, build.secrets, … are the path

Every key, id and secret is drawn for one member alone, so that members have nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from phantom_tun.clock import Rng
from phantom_tun.crypto.hashes import equal
from phantom_tun.crypto.packages import lock
from phantom_tun.crypto.sealing import seal
from phantom_tun.crypto.signing import SEED_LEN, SigningKey
from phantom_tun.crypto.work import NONCE_LEN
from phantom_tun.errors import CryptoError, PeerError, ProtocolViolation, UsageError
from phantom_tun.ids import ConnectionId, EntryId, NetworkId, NodeId
from phantom_tun.path.hop import PathKind
from phantom_tun.path.keys import PURPOSE
from phantom_tun.path.layers import ArrayMaker, Cover, hint
from phantom_tun.path.lifetimes import Ends, draw_y_expiry
from phantom_tun.path.member import ROUND2_PURPOSE
from phantom_tun.path.ring import Ring
from phantom_tun.path.work import task
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.setup import (
    ARRAY_LEN,
    CONNECTION_ID_LEN,
    ENTRY_ID_LEN,
    MAX_ROUTE_LEN,
    SECRET_LEN,
    SLOTS,
    InteriorPart,
    Neighbour,
    Part,
    Role,
    Round1Package,
    Round2Package,
    TerminatingPart,
)

RouteFactory = Callable[[NodeRef, EntryId, float], bytes]
"""Makes the signed APRoute of an entry path from its entry node, its entry id and the moment when
its owner stops using it."""


class UnusableKey(PeerError):  # noqa: N818 - reads as what happened
    """A member published something that isn't a path-building key."""

    def __init__(self, node_id: NodeId) -> None:
        super().__init__("not a path-building key")
        self.node_id = node_id


@dataclass(frozen=True, slots=True)
class Invited:
    """One member as the owner knows it before the build."""

    ref: NodeRef
    """How the members beside it reach it."""
    path_key: bytes
    """Its path-building key, 1,216 bytes."""
    work: int = 0
    """Bits of work that it asks for."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is to be built."""

    kind: PathKind
    ends: Ends
    route_factory: RouteFactory | None = None
    """Needed for entry paths."""


@dataclass(frozen=True, slots=True)
class _Member:
    """Everything drawn for one member; ``place`` counts in ring order."""

    invited: Invited
    place: int
    role: Role
    expires: int
    construction: SigningKey
    cover: Cover
    round2_key: bytes = field(repr=False)


class Build:
    """One attempt at one path of at least one hop."""

    def __init__(
        self,
        ring: Ring[Invited],
        owner: NodeRef,
        network_id: NetworkId,
        terms: Terms,
        *,
        now: float,
        rng: Rng,
    ) -> None:
        """``owner``: how others reach this node.

        :raises UsageError: an entry path without a route, or with one that is too long.
        """
        self._ring = ring
        self._owner = owner
        self._network_id = network_id
        self._terms = terms
        self._rng = rng
        order = ring.in_order()
        hops = len(ring.x_nodes)
        # One id for each link of the ring and one for each link of the path, owner's ends included.
        self._ring_ids = [self._draw_connection() for _ in range(len(order) + 1)]
        self._path_ids = [self._draw_connection() for _ in range(hops)]
        self.secrets = [rng.randbytes(SECRET_LEN) for _ in range(hops)]
        """Path secrets from the owner outward."""
        self.entry_id: EntryId | None = None
        self._route: bytes | None = None
        if terms.kind == "entry":
            self.entry_id = EntryId(rng.randbytes(ENTRY_ID_LEN))
            self._route = self._make_route(self.entry_id)
        roles = self._roles()
        self._members = [
            self._draw_member(invited, place, roles.get(place, Role.Y), now)
            for place, invited in enumerate(order)
        ]
        self._arrays: dict[int, bytes] = {}
        self._returned: dict[int, bytes] = {}

    # --- the path -------------------------------------------------------------------------------

    @property
    def first(self) -> Neighbour:
        """Who gets the arrays from the owner, under which connection id."""
        return Neighbour(self._members[0].invited.ref, self._ring_ids[0])

    @property
    def last(self) -> Neighbour:
        """Who brings them back."""
        return Neighbour(self._members[-1].invited.ref, self._ring_ids[-1])

    @property
    def members(self) -> list[NodeRef]:
        """All members in ring order."""
        return [member.invited.ref for member in self._members]

    @property
    def x_nodes(self) -> list[NodeRef]:
        """The path, from the owner outward."""
        return [invited.ref for invited in self._ring.x_nodes]

    @property
    def first_connection(self) -> ConnectionId:
        """Between the owner and the first X-node."""
        return self._path_ids[0]

    @property
    def expires(self) -> float:
        """When the first X-node forgets the path."""
        return min(member.expires for member in self._members if member.role.stays)

    # --- the rounds -----------------------------------------------------------------------------

    def array(self, number: int) -> bytes:
        """The array of round 1 or 2 as it leaves the owner.

        :raises UnusableKey: a member can't be sent anything.
        """
        if number not in self._arrays:
            self._make(number)
        return self._arrays[number]

    @property
    def work(self) -> int:
        """Tries that the first array takes, on average: with more than one for each member it
        should be made in a thread."""
        return sum(2**member.invited.work for member in self._members)

    def check(self, number: int, returned: bytes) -> None:
        """Compare what came back in a round with what has to, bit for bit.

        :raises ProtocolViolation: they differ.
        """
        if not equal(returned, self._returned[number]):
            raise ProtocolViolation("the setup array came back altered")

    def _make(self, number: int) -> None:
        slots = self._rng.sample(range(SLOTS), len(self._members))
        covers = [member.cover for member in self._members]
        maker = ArrayMaker(covers, slots, number, self._rng.randbytes(ARRAY_LEN))
        seal_package = self._seal_first if number == 1 else self._lock_second
        # Each hash covers the slots of later members, so the last package comes first.
        for member in reversed(self._members):
            sealed = seal_package(member, maker.hash_at(member.place))
            incoming = self._ring_ids[member.place]
            maker.put(member.place, hint(incoming, number) + sealed)
        self._arrays[number] = maker.first
        self._returned[number] = maker.returned

    def _seal_first(self, member: _Member, array_hash: bytes) -> bytes:
        package = Round1Package(
            role=member.role,
            expires=member.expires,
            previous=Neighbour(self._ref_at(member.place - 1), self._ring_ids[member.place]),
            next=Neighbour(self._ref_at(member.place + 1), self._ring_ids[member.place + 1]),
            construction_key=member.construction.public,
            layer_secret=member.cover.layer_secret,
            fill_secret=member.cover.fill_secret,
            round2_key=member.round2_key,
            array_hash=array_hash,
        )
        invited = member.invited
        try:
            sealed = seal(package.pack(), invited.path_key, PURPOSE, self._network_id)
        except CryptoError as error:
            raise UnusableKey(invited.ref.node_id) from error
        # The search begins somewhere else each time: its end says nothing about its length.
        start = int.from_bytes(sealed[-NONCE_LEN:], "big")
        return task(invited.ref.node_id, sealed).solve(invited.work, start) + sealed

    def _lock_second(self, member: _Member, array_hash: bytes) -> bytes:
        content = Round2Package(array_hash, self._part(member)).pack()
        signature = member.construction.sign(ROUND2_PURPOSE, self._network_id, content)
        return lock(member.round2_key, content + signature, self._network_id)

    def _part(self, member: _Member) -> Part:
        if member.role is Role.Y:
            return None
        index = next(
            index
            for index in range(len(self._ring.x_nodes))
            if self._ring.place(index) == member.place
        )
        inner = Neighbour(
            self._ring.x_nodes[index - 1].ref if index else self._owner, self._path_ids[index]
        )
        secret = self.secrets[index]
        if member.role is not Role.INTERIOR:
            # Whoever comes earlier in the ring opens the link between two X-nodes.
            dials = not self._ring.forward
            return TerminatingPart(inner, dials, secret, self.entry_id, self._route)
        outer = Neighbour(self._ring.x_nodes[index + 1].ref, self._path_ids[index + 1])
        return InteriorPart((inner, outer) if self._ring.forward else (outer, inner), secret)

    # --- drawing --------------------------------------------------------------------------------

    def _roles(self) -> dict[int, Role]:
        """By place; what isn't in it is a Y-node."""
        hops = len(self._ring.x_nodes)
        roles = {self._ring.place(index): Role.INTERIOR for index in range(hops)}
        terminating = Role.EXIT if self._terms.kind == "exit" else Role.ENTRY
        roles[self._ring.place(hops - 1)] = terminating
        return roles

    def _draw_member(self, invited: Invited, place: int, role: Role, now: float) -> _Member:
        rng = self._rng
        return _Member(
            invited=invited,
            place=place,
            role=role,
            expires=self._terms.ends.draw_expiry(rng) if role.stays else draw_y_expiry(now, rng),
            construction=SigningKey(rng.randbytes(SEED_LEN)),
            cover=Cover(rng.randbytes(SECRET_LEN), rng.randbytes(SECRET_LEN)),
            round2_key=rng.randbytes(SECRET_LEN),
        )

    def _draw_connection(self) -> ConnectionId:
        return ConnectionId(self._rng.randbytes(CONNECTION_ID_LEN))

    def _make_route(self, entry_id: EntryId) -> bytes:
        if self._terms.route_factory is None:
            raise UsageError("an entry path needs a signed route")
        terminating = self._ring.x_nodes[-1].ref
        route = self._terms.route_factory(terminating, entry_id, self._terms.ends.retires)
        if not 0 < len(route) <= MAX_ROUTE_LEN:
            raise UsageError(f"a signed route has 1 to {MAX_ROUTE_LEN} bytes, not {len(route)}")
        return route

    def _ref_at(self, place: int) -> NodeRef:
        if 0 <= place < len(self._members):
            return self._members[place].invited.ref
        return self._owner
