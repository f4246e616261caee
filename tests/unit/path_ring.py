"""A ring of members as pure machines, and ways to spoil what goes round it; for the path tests."""

import ipaddress
import random
from dataclasses import dataclass, replace

from phantom_tun.crypto.hashes import h
from phantom_tun.crypto.packages import lock, unlock, xor_layer
from phantom_tun.crypto.sealing import SealingKey, seal
from phantom_tun.crypto.work import NONCE_LEN
from phantom_tun.ids import CertHash, NetworkId, NodeId
from phantom_tun.path.build import Build, Invited, Terms
from phantom_tun.path.keys import PURPOSE, PathKeys
from phantom_tun.path.layers import find_slot
from phantom_tun.path.lifetimes import Ends
from phantom_tun.path.member import Member, MemberLimits
from phantom_tun.path.ring import Ring, member_count
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.setup import HINT_LEN, Round1Package, slot_range

NOW = 1_800_000_000.0
NETWORK = NetworkId(h("network", b"path tests"))
OWNER = 250
ROUTE = b"route " * 40


def ref_of(number, port=443):
    """A node in a /16 of its own."""
    return NodeRef(
        NodeId(h("test id", bytes([number]))),
        CertHash(h("test cert", bytes([number]))),
        ipaddress.IPv4Address(f"11.{number}.0.1"),
        port,
    )


@dataclass(frozen=True)
class Passage:
    """One array on its way from one place of the ring to the next."""

    sender: NodeId
    receiver: NodeId
    connection: bytes
    array: bytes
    number: int


class RingOfMembers:
    """An owner, its build, and all members."""

    def __init__(
        self,
        hops=3,
        *,
        forward=True,
        kind="exit",
        seed=1,
        limits=None,
        network_id=NETWORK,
        owner=None,
        lifetime=3600.0,
        among=None,
        work=0,
    ):
        """``among``: another ring of this length, to be built with the same members."""
        self.rng = random.Random(seed)
        self.owner = owner or ref_of(OWNER)
        count = member_count(hops)
        nodes = [ref_of(number).node_id for number in range(count)]
        self.keys = among.keys if among else {node: PathKeys(NOW) for node in nodes}
        self.members = (
            among.members
            if among
            else {
                node: Member(node, NETWORK, keys, limits or MemberLimits())
                for node, keys in self.keys.items()
            }
        )
        invited = [
            Invited(ref_of(i), self.keys[ref_of(i).node_id].published.public, work)
            for i in range(count)
        ]
        self.ring = Ring(
            near=invited[0],
            x_nodes=tuple(invited[1 : 1 + hops]),
            between=tuple(invited[1 + hops : 2 * hops]),
            far=tuple(invited[2 * hops :]),
            forward=forward,
        )
        self.terms = Terms(kind, Ends(NOW + lifetime), lambda *_: ROUTE)
        self.build = Build(self.ring, self.owner, network_id, self.terms, now=NOW, rng=self.rng)
        self.passages = []
        self.hops = {}
        self.successors = {}

    def deliver(self, passage, now=NOW):
        """Hand one array over; returns the next passage and notes what it left."""
        member = self.members[passage.receiver]
        accepted = member.receive(passage.sender, passage.connection, passage.array, now)
        if accepted.hop is not None:
            self.hops[passage.receiver] = accepted.hop
            self.successors[passage.receiver] = accepted.successor
        following = Passage(
            passage.receiver,
            accepted.next.node.node_id,
            accepted.next.connection,
            accepted.array,
            passage.number,
        )
        self.passages.append(following)
        return following

    def start(self, number):
        """The array as it leaves the owner."""
        passage = Passage(
            self.owner.node_id,
            self.build.first.node.node_id,
            self.build.first.connection,
            self.build.array(number),
            number,
        )
        self.passages.append(passage)
        return passage

    def carry(self, number, until=None):
        """Take a round as far as the member at place ``until``, or all the way to the owner;
        returns the passage that is to be delivered there."""
        passage = self.start(number)
        for _ in range(len(self.build.members) if until is None else until):
            passage = self.deliver(passage)
        return passage

    def run(self):
        """Both rounds, checked."""
        for number in (1, 2):
            self.build.check(number, self.carry(number).array)

    # --- spoiling -------------------------------------------------------------------------------

    def first_package(self, passage):
        """What the receiver will find in its slot in round 1."""
        return Round1Package.unpack(self._opened(passage))

    def _opened(self, passage):
        sealed = passage.array[self._sealed(passage)]
        return self.keys[passage.receiver].open(sealed, NETWORK, NOW)

    def _sealed(self, passage):
        place = slot_range(find_slot(passage.array, passage.connection, passage.number))
        before = HINT_LEN + (NONCE_LEN if passage.number == 1 else 0)
        return slice(place.start + before, place.stop)

    def nonce(self, passage):
        """What the receiver will find beside its sealed package in round 1."""
        place = self._sealed(passage).start
        return passage.array[place - NONCE_LEN : place]

    def with_nonce(self, passage, nonce):
        """The same passage with another one."""
        place, array = self._sealed(passage).start, bytearray(passage.array)
        array[place - NONCE_LEN : place] = nonce
        return replace(passage, array=bytes(array))

    def sealed(self, passage):
        """The package for the receiver."""
        return passage.array[self._sealed(passage)]

    def with_sealed(self, passage, sealed):
        """The same passage with other bytes in the receiver's slot."""
        array = bytearray(passage.array)
        array[self._sealed(passage)] = sealed
        return replace(passage, array=bytes(array))

    def with_first_plaintext(self, passage, plaintext, network_id=NETWORK):
        """The same passage with another round-1 package for its receiver."""
        public = self.keys[passage.receiver].published.public
        return self.with_sealed(passage, seal(plaintext, public, PURPOSE, network_id))

    def with_first(self, passage, **changes):
        """The same passage with some fields of the round-1 package changed."""
        package = replace(self.first_package(passage), **changes)
        return self.with_first_plaintext(passage, package.pack())

    def second_plaintext(self, passage, round2_key):
        """What the receiver will find in its slot in round 2."""
        return unlock(round2_key, passage.array[self._sealed(passage)], NETWORK)

    def with_second_plaintext(self, passage, round2_key, plaintext):
        """The same passage with another round-2 package for its receiver."""
        return self.with_sealed(passage, lock(round2_key, plaintext, NETWORK))


def foreign_key():
    """A path-building key that belongs to nobody here."""
    return SealingKey.generate().public


def uncover(array, secret, number):
    """Take a member's layer off again."""
    return xor_layer(array, secret, "layer", bytes([number]))
