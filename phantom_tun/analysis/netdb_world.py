"""A network database of thousands of nodes in one process, in virtual time.

The machines are the real ones (``phantom_tun.netdb``); what is simulated is the transport, which is
a method call, and the driver, which does what ``phantom_tun.net.netdb`` does with trio. There is
no latency: what is counted are messages, hops and failures.
"""

from __future__ import annotations

import heapq
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from phantom_tun.clock import Rng
from phantom_tun.errors import CryptoError, ProtocolViolation, RecordRefused
from phantom_tun.ids import ApAddress, NodeId
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address, keys_to_read, keys_to_write
from phantom_tun.netdb.book import NodeBook
from phantom_tun.netdb.contact import Contact, position
from phantom_tun.netdb.density import Density
from phantom_tun.netdb.lookup import WAYS, Lookup
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.prefixes import BUCKET_LIMITS, LOOKUP_LIMITS, PrefixLimits
from phantom_tun.netdb.rules import Caller
from phantom_tun.netdb.sampling import draw
from phantom_tun.netdb.server import OwnNode, Server, expect
from phantom_tun.netdb.store import ApStore
from phantom_tun.netdb.storers import LEASE_STORERS, merged, storer_count, storers_of
from phantom_tun.netdb.table import DISPLACEABLE_AFTER, K, RoutingTable
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.netdb.votes import Standing, Tally
from phantom_tun.testing.record_factory import NOW, NodeMaker
from phantom_tun.wire.netdb import Held, ReserveAp, ResolveAp, Stored
from phantom_tun.wire.records import APKeyRecord, NodeRecord

INTRODUCTIONS = 64
FRESH_SEEDS = K
_UNLIMITED = PrefixLimits(narrow=10**9, wide=10**9)


@dataclass(frozen=True, slots=True)
class Defences:
    """What stands between a liar and a wrong answer; :data:`PLAIN` is Kademlia without it."""

    ways: int = WAYS
    storage_keys: int = 3
    bucket_limits: PrefixLimits = BUCKET_LIMITS
    lookup_limits: PrefixLimits = LOOKUP_LIMITS
    votes: bool = True
    """False: the first storer that shows a record is believed."""
    askers_draw: bool = True
    """False: whoever is asked for a random node chooses it."""
    fair_buckets: bool = True
    """False: who came first keeps its place as long as it lives."""
    second_looks: bool = True
    """False: whatever a lookup finds counts, and leases have no more storers than other records."""


DEFENDED = Defences()
PLAIN = Defences(
    ways=1,
    storage_keys=1,
    bucket_limits=_UNLIMITED,
    lookup_limits=_UNLIMITED,
    votes=False,
    askers_draw=False,
    fair_buckets=False,
    second_looks=False,
)


class FirstComeTable(RoutingTable):
    """The buckets of ordinary Kademlia."""

    __slots__ = ()

    def _loser(self, bucket: list[Contact], newcomer: NodeRecord) -> Contact | None:
        if len(bucket) < K:
            return None
        return next((c for c in bucket if c.failures >= DISPLACEABLE_AFTER), None)


class SimNode:
    """An honest node."""

    __slots__ = ("alive", "book", "density", "path_key", "record", "server", "store")
    liar = False

    def __init__(self, world: World, maker: NodeMaker) -> None:
        self.record = maker.record(world.now)
        self.path_key = maker.path_key
        self.alive = True
        self.book = NodeBook(self.record.node_id, world.rng, limits=world.defences.bucket_limits)
        if not world.defences.fair_buckets:
            self.book.table = FirstComeTable(self.node_id, b"", world.defences.bucket_limits)
        self.density = Density()
        self.store = ApStore(world.network)
        own = OwnNode(self.record, self.path_key)
        self.server = Server(world.network, own, self.book, self.store, world.verifier)

    @property
    def node_id(self) -> NodeId:
        """Its id."""
        return self.record.node_id

    def closest(self, target: bytes, now: float) -> list[NodeRecord]:
        """Its answer to closest_nodes."""
        return self.book.closest(target, K, now)

    def held(self, call: ResolveAp, now: float) -> Held:
        """Its answer to resolve_ap."""
        return expect(self.server.answer(call, now, None), Held)

    def stored(self, call: ReserveAp, now: float, caller: Caller) -> Stored:
        """Its answer to reserve_ap."""
        return expect(self.server.answer(call, now, caller), Stored)

    def named(self, near: bytes, now: float) -> NodeRecord:
        """Its answer to random_nodes."""
        found = self.book.keyed_closest(near, now)
        return found.record if found is not None else self.record

    def chosen(self, now: float, rng: Rng) -> NodeRecord:
        """A random node of its own choice, as a database without our defences would ask for."""
        candidates = self.book.candidates(now)
        return rng.choice(candidates).record if candidates else self.record


@dataclass(slots=True)
class Cost:
    """What was sent so far."""

    messages: int = 0
    failures: int = 0
    lookups: int = 0
    hops: list[int] = field(default_factory=list)
    sparse: int = 0
    """Lookups that were continued because what they found lay too thin."""
    second_looks: int = 0
    """Addresses for which storers were asked again."""


class World:
    """All nodes, and what they do."""

    def __init__(self, rng: Rng, network: NetworkParams, defences: Defences = DEFENDED) -> None:
        self.rng = rng
        self.network = network
        self.defences = defences
        self.now = NOW + 100.0
        self.verifier = Verifier(network)
        self.nodes: dict[NodeId, SimNode] = {}
        self.cost = Cost()

    def address(self) -> ipaddress.IPv4Address:
        """A random public address, 22,784 /16s to choose from."""
        return ipaddress.IPv4Address((self.rng.randrange(11, 100) << 24) | self.rng.getrandbits(24))

    def addresses_of(self, record: APKeyRecord) -> list[ApAddress]:
        """The addresses that a key record is stored for."""
        addresses: list[ApAddress] = [ap6_address(self.network, record.public_key)]
        if record.ap4_n is not None:
            addresses.append(ap4_candidate(self.network, record.public_key, record.ap4_n))
        return addresses

    def honest(self) -> list[SimNode]:
        """Living nodes that aren't liars."""
        return [node for node in self.nodes.values() if node.alive and not node.liar]

    def add(self, number: int) -> SimNode:
        """Make node ``number``; it isn't part of the network before :meth:`join`."""
        node = SimNode(self, NodeMaker(number, self.network, self.address()))
        self.nodes[node.node_id] = node
        return node

    def remove(self, node: SimNode) -> None:
        """A node dies and is never seen again."""
        node.alive = False
        del self.nodes[node.node_id]

    # --- what nodes do --------------------------------------------------------------------------

    def join(self, node: SimNode, bootstrap: Sequence[SimNode]) -> None:
        """Introductions, a lookup of the own id, lookups of the classes that leaves thin."""
        heard = [record for peer in bootstrap for record in self.introduce(node, peer)]
        heard += self.lookup(node, node.node_id).closest()
        for record in dict.fromkeys(heard):
            if node.book.keyed >= INTRODUCTIONS:
                break
            peer = self.nodes.get(record.node_id)
            if peer is not None and peer.alive and peer is not node:
                self.meet(node, peer)
        for index in node.book.table.thin_classes():
            self.lookup(node, self.within(node, index))

    def introduce(self, node: SimNode, peer: SimNode) -> list[NodeRecord]:
        """register_node: both sides get to know one another, and ``peer`` names nodes near
        ``node``."""
        nodes = peer.closest(node.node_id, self.now)
        self.meet(node, peer)
        return nodes

    def meet(self, node: SimNode, peer: SimNode) -> None:
        """:meth:`introduce`, whatever ``peer`` names."""
        self.cost.messages += 1
        node.book.met(peer.record, self.now, peer.path_key)
        peer.book.met(node.record, self.now, node.path_key)

    def lookup(self, node: SimNode, target: bytes, count: int = K) -> Lookup:
        """The nodes closest to ``target``, as ``node`` finds them."""
        defences = self.defences
        lookup = Lookup(
            target,
            node.book.closest(target, 2 * K, self.now),
            own_id=node.node_id,
            limits=defences.lookup_limits,
            count=count,
            ways=defences.ways,
        )
        self._run(node, lookup)
        self.cost.lookups += 1
        self.cost.hops.append(lookup.hops)
        if defences.second_looks:
            if node.density.sparse(target, lookup.closest()):
                self.cost.sparse += 1
                self.widen(node, lookup, count)
            node.density.saw(target, lookup.closest())
        return lookup

    def widen(self, node: SimNode, lookup: Lookup, count: int) -> None:
        """Continue a lookup over other ways."""
        lookup.reopen(node.book.neighbourhood(FRESH_SEEDS, self.now), count=count)
        self._run(node, lookup)

    def _run(self, node: SimNode, lookup: Lookup) -> None:
        while not lookup.finished:
            for record in lookup.next_queries():
                self.cost.messages += 1
                peer = self.nodes.get(record.node_id)
                if peer is None or not peer.alive:
                    self.cost.failures += 1
                    lookup.failed(record.node_id)
                    node.book.failed(record.node_id, self.now)
                    continue
                node.book.met(record, self.now)
                peer.book.succeeded(node.node_id, self.now)
                named = peer.closest(lookup.target, self.now)
                lookup.answered(record, named)
                self.hear(node, named)

    def hear(self, node: SimNode, records: Iterable[NodeRecord]) -> None:
        """``node`` introduces itself to those among ``records`` that its table has a place for."""
        for record in records:
            if node.book.heard(record) and node.book.table.would_take(record):
                peer = self.nodes.get(record.node_id)
                if peer is not None and peer.alive:
                    self.meet(node, peer)

    def write(self, node: SimNode, record: APKeyRecord, addresses: Iterable[ApAddress]) -> int:
        """reserve_ap through ``node``; returns how many storers took the record."""
        by_key = []
        for address in addresses:
            count = storer_count(address) if self.defences.second_looks else K
            keys = keys_to_write(self.network.network_id, address, self.now)
            for key in keys[: self.defences.storage_keys]:
                found = self.lookup(node, key, count).closest()
                by_key.append(storers_of(key, found, node.record, count))
        caller = Caller(node.node_id, node.record.ips[0])
        call = ReserveAp(record.encoded)
        taken = 0
        for storer in merged(by_key):
            self.cost.messages += 1
            peer = self.nodes.get(storer.node_id)
            if peer is not None and peer.alive:
                taken += not peer.stored(call, self.now, caller).refusal
        return taken

    def resolve(self, node: SimNode, address: ApAddress) -> APKeyRecord | None:
        """What ``node`` believes is stored for ``address``."""
        keys = keys_to_read(self.network.network_id, address, self.now)
        lookups = [self.lookup(node, key) for key in keys[: self.defences.storage_keys]]
        tally = Tally(self.verifier, address, self.now)
        standing = self._vote(node, lookups, tally, K)
        if not self.defences.second_looks:
            return tally.winner()
        if standing is not Standing.CLEAR and storer_count(address) > K:
            self.cost.second_looks += 1
            for lookup in lookups:
                self.widen(node, lookup, LEASE_STORERS)
            standing = self._vote(node, lookups, tally, LEASE_STORERS)
        return None if standing is Standing.NONE else tally.winner()

    def _vote(self, node: SimNode, lookups: Sequence[Lookup], tally: Tally, count: int) -> Standing:
        by_key = [
            storers_of(lookup.target, lookup.closest(), node.record, count) for lookup in lookups
        ]
        call = ResolveAp.of(tally.address)
        for storer in merged(by_key):
            peer = self.nodes.get(storer.node_id)
            if tally.has(storer.node_id):
                continue
            self.cost.messages += 1
            if peer is None or not peer.alive:
                continue
            try:
                tally.add(storer.node_id, peer.held(call, self.now))
            except (RecordRefused, ProtocolViolation, CryptoError):
                continue
            if not self.defences.votes and tally.winner() is not None:
                break
        groups = [{record.node_id for record in storers} for storers in by_key]
        tally.keep(set[NodeId]().union(*groups))
        return tally.standing(groups)

    def sample(self, node: SimNode, asked: set[NodeId]) -> NodeRecord | None:
        """random_nodes(1), as ``node`` believes."""
        if not self.defences.askers_draw:
            contact = self.rng.choice([c for c in node.book.table if c.usable(self.now)])
            peer = self.nodes.get(contact.node_id)
            self.cost.messages += 1
            return peer.chosen(self.now, self.rng) if peer is not None else None
        lookup = self.lookup(node, self.rng.randbytes(32))
        for record in lookup.closest():
            node.book.vouched(record, self.now)
        drawn = draw(lookup.closest(), asked, self.rng)
        if drawn is None:
            return None
        for answerer in drawn.answerers[:2]:
            self.cost.messages += 1
            asked.add(answerer.node_id)
            peer = self.nodes.get(answerer.node_id)
            if peer is not None and peer.alive:
                named = peer.named(drawn.node.node_id, self.now)
                if named.node_id == drawn.node.node_id:
                    key = self.nodes[named.node_id].path_key
                    node.book.vouched(named, self.now, key, drawn=True)
                    return named
        return None

    def visit(self, node: SimNode) -> None:
        """The regular sign of life: ask the contact that was silent longest whom it knows."""
        contact = node.book.stalest(self.now)
        if contact is not None:
            peer = self._probe(node, contact.record)
            if peer is not None:
                self.hear(node, peer.closest(self.rng.randbytes(32), self.now))

    def recheck(self, node: SimNode, count: int) -> None:
        """Try again those that failed, if it is time."""
        for contact in node.book.due(self.now, count):
            self._probe(node, contact.record)

    def refresh(self, node: SimNode) -> None:
        """Look up a random id in one distance class."""
        classes = node.book.table.used_classes()
        if classes:
            self.lookup(node, self.within(node, self.rng.choice(classes)))

    def within(self, node: SimNode, index: int) -> bytes:
        """A random id in a distance class of ``node``."""
        place = position(node.node_id) ^ (1 << index) ^ self.rng.getrandbits(index)
        return place.to_bytes(32, "big")

    def truly_closest(self, target: bytes) -> set[NodeId]:
        """The k closest living nodes, known to nobody but the simulator."""
        place = position(target)
        living = (node.node_id for node in self.nodes.values() if node.alive)
        return set(heapq.nsmallest(K, living, key=lambda node_id: position(node_id) ^ place))

    def _probe(self, node: SimNode, record: NodeRecord) -> SimNode | None:
        self.cost.messages += 1
        peer = self.nodes.get(record.node_id)
        if peer is None or not peer.alive:
            self.cost.failures += 1
            node.book.failed(record.node_id, self.now)
            return None
        node.book.met(peer.record, self.now)
        peer.book.succeeded(node.node_id, self.now)
        return peer
