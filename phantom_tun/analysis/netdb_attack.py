"""Colluding liars in a simulated network database.

They name only one another in routing answers, take records and withhold them or show the first
edition for ever, claim AP4 addresses with identities ground so that they have the same candidate,
place ids near the storage keys of their victims, introduce themselves to everybody, and answer for
random nodes with one of themselves. They can't forge signatures; everything else is theirs.
"""

from __future__ import annotations

import ipaddress
import itertools
from bisect import bisect_left

from phantom_tun.analysis.netdb_world import SimNode, World
from phantom_tun.clock import HOUR, Rng
from phantom_tun.crypto.hashes import h
from phantom_tun.crypto.signing import SigningKey, node_id_of
from phantom_tun.ids import ApAddress
from phantom_tun.netdb.addresses import ap4_candidate
from phantom_tun.netdb.contact import position
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.rules import Caller
from phantom_tun.netdb.signing import sign_ap_key_record
from phantom_tun.netdb.table import K
from phantom_tun.testing.record_factory import NodeMaker, stretched
from phantom_tun.wire.netdb import Held, ReserveAp, ResolveAp, Stored
from phantom_tun.wire.records import PATH_KEY_LEN, APKeyRecord, NodeRecord, decode

_NOTHING = Held(b"", 0, b"", b"", ())


class Cabal:
    """What all liars know and want together."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.members: list[Liar] = []
        self._sorted: list[tuple[int, NodeRecord]] = []
        self.first_editions: dict[ApAddress, APKeyRecord] = {}
        self.rivals: dict[ApAddress, APKeyRecord] = {}
        """Own claims to the addresses of others."""

    def add(self, maker: NodeMaker) -> Liar:
        """A new member; it is in the network at once, and everybody has heard of it."""
        liar = Liar(self, maker)
        self.world.nodes[liar.node_id] = liar
        self.members.append(liar)
        return liar

    def spread(self, liar: Liar) -> None:
        """Introduce a member to every honest node there is."""
        for node in self.world.honest():
            self.world.meet(liar, node)

    def nearest(self, target: bytes) -> list[NodeRecord]:
        """The k members closest to a target."""
        if len(self._sorted) != len(self.members):
            self._sorted = sorted(
                ((position(member.node_id), member.record) for member in self.members),
                key=_place,
            )
        found: list[NodeRecord] = []
        _collect(self._sorted, position(target), 255, found)
        return found[:K]


def _place(entry: tuple[int, NodeRecord]) -> int:
    return entry[0]


def _collect(
    entries: list[tuple[int, NodeRecord]], target: int, bit: int, found: list[NodeRecord]
) -> None:
    """Append ``entries`` (sorted, equal above ``bit``), closest to ``target`` first, until there
    are k."""
    if len(found) >= K or not entries:
        return
    if len(entries) <= K:
        found += [record for _, record in sorted(entries, key=lambda entry: entry[0] ^ target)]
        return
    middle = bisect_left(entries, (entries[0][0] >> bit | 1) << bit, key=_place)
    near, far = entries[middle:], entries[:middle]
    if not target >> bit & 1:
        near, far = far, near
    _collect(near, target, bit - 1, found)
    _collect(far, target, bit - 1, found)


class Liar(SimNode):
    """A member of the cabal."""

    __slots__ = ("_cabal", "_withholds")
    liar = True

    def __init__(self, cabal: Cabal, maker: NodeMaker) -> None:
        super().__init__(cabal.world, maker)
        self._cabal = cabal
        self._withholds = bool(self.record.node_id[-1] & 1)

    def closest(self, target: bytes, now: float) -> list[NodeRecord]:
        """Only members."""
        return self._cabal.nearest(target)

    def held(self, call: ResolveAp, now: float) -> Held:
        """The cabal's own claim if it has one; else nothing, or what was true once."""
        record = self._cabal.rivals.get(call.ip)
        if record is None and not self._withholds:
            record = self._cabal.first_editions.get(call.ip)
        if record is None:
            return _NOTHING
        return Held(record.public_key, record.sequence, record.digest, record.encoded, ())

    def stored(self, call: ReserveAp, now: float, caller: Caller) -> Stored:
        """Says yes, and remembers the first edition."""
        record = decode(APKeyRecord, call.record)
        for address in self._cabal.world.addresses_of(record):
            self._cabal.first_editions.setdefault(address, record)
        return Stored(0, record.public_key)

    def named(self, near: bytes, now: float) -> NodeRecord:
        """The member closest to what was asked for."""
        return self._cabal.nearest(near)[0]

    def chosen(self, now: float, rng: Rng) -> NodeRecord:
        """A member."""
        return rng.choice(self._cabal.members).record


def ground_maker(
    world: World, target: bytes, nearness: float, address: ipaddress.IPv4Address, start: int
) -> NodeMaker:
    """Node keys whose id lies within the ``nearness``-th part of the id space around ``target``;
    found by trying one after the other, as an attacker would."""
    limit = int(nearness * 2**256)
    place = position(target)
    for number in itertools.count(start):
        key = SigningKey(h("test node", number.to_bytes(8, "big")))
        if position(node_id_of(key.public)) ^ place < limit:
            return NodeMaker(number, world.network, address)
    raise AssertionError("unreachable")


def rival_claim(network: NetworkParams, address: ipaddress.IPv4Address, now: float) -> APKeyRecord:
    """A key record of another identity that validly claims ``address``. In a /4 this takes 2²⁰
    keys; simulations use a smaller prefix."""
    for number in itertools.count():
        key = SigningKey(h("rival", address.packed, number.to_bytes(8, "big")))
        for n in range(256):
            if ap4_candidate(network, key.public, n) == address:
                return sign_ap_key_record(
                    key,
                    network.network_id,
                    ap4_n=n,
                    certificate=b"rival",
                    request_key=stretched("rival", number, PATH_KEY_LEN),
                    created=now,
                    expires=now + 12 * HOUR,
                    sequence=1,
                )
    raise AssertionError("unreachable")
