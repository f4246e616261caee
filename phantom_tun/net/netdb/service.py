"""The network database as one node runs it (docs/spec/netdb.md).

Put together here: what we know (``netdb.book``), what we hold (``netdb.store``), what we answer
(``netdb.server``), and the background work that keeps it all true. The service needs nothing but a
transport for calls, a clock and randomness, so a simulated network runs it unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Protocol

import trio

from phantom_tun.clock import MINUTE, Clock, Rng
from phantom_tun.errors import (
    CapacityExceeded,
    ProtocolViolation,
    Unreachable,
)
from phantom_tun.guard import Guard
from phantom_tun.ids import ApAddress, NodeId
from phantom_tun.net.netdb.calls import NodeCalls, Transport
from phantom_tun.net.netdb.files import Keeper, NetdbFiles
from phantom_tun.net.netdb.introductions import Introductions
from phantom_tun.net.netdb.overrides import OverrideFlood
from phantom_tun.net.netdb.sampling import Sampler
from phantom_tun.net.netdb.search import Searcher
from phantom_tun.net.netdb.storage import SURVEYS_AT_ONCE, KeyWrite, StorageClient, Write
from phantom_tun.net.netdb.upkeep import Upkeep
from phantom_tun.net.netdb.witnesses import Witness, ask_witnesses
from phantom_tun.netdb.book import Candidate, NodeBook
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.overrides import InForce, Overrides, Standing
from phantom_tun.netdb.rules import Caller
from phantom_tun.netdb.server import OwnNode, Server
from phantom_tun.netdb.store import ApStore
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.tasks import Tasks
from phantom_tun.wire.netdb import (
    ExtendApLease,
    Method,
    Override,
    ReserveAp,
    Resolution,
    ResolveAp,
    Stored,
    UpdateApRoutes,
    decode_call,
    method_of,
)
from phantom_tun.wire.nodes import IpAddress, NodeRef
from phantom_tun.wire.records import APKeyRecord, NodeRecord, OverrideRecord

EXPIRE_EVERY = MINUTE
FRESH = 10 * MINUTE
"""A node that gave a sign of life so recently is dialed from memory, without a lookup."""
PERFORMED_AT_ONCE = 64
"""Calls carried out for anonymized nodes at a time; what exceeds them fails at once."""


class PeerLike(Protocol):
    """The part of ``net.links.Peer`` that is used here."""

    @property
    def node_id(self) -> NodeId:
        """Authenticated id."""
        ...

    @property
    def address(self) -> IpAddress:
        """Where its link comes from."""
        ...


class NetdbService:
    """One node's part in the network database."""

    def __init__(
        self,
        network: NetworkParams,
        record: NodeRecord,
        path_key: bytes,
        transport: Transport,
        *,
        clock: Clock,
        rng: Rng,
        files: NetdbFiles = NetdbFiles(),  # noqa: B008 - frozen
        overrides: Overrides | None = None,
        on_override: Callable[[InForce], None] = lambda _: None,
        neighbours: Callable[[], Iterable[NodeRef]] = lambda: (),
        trusted: frozenset[NodeId] = frozenset(),
        kept: Container[NodeId] = (),
    ) -> None:
        """``record``: our own, with the 1,216-byte public ``path_key`` that it names;
        ``transport``: ``Links.call``; ``overrides``: None obeys none and passes none on;
        ``on_override`` is told what override commands are in force whenever that changes;
        ``neighbours``: everybody there is a signalling link with; ``trusted``: nodes that are
        visited again and again, like those of the profile; ``kept``: nodes that aren't forgotten
        for others' sake."""
        self._network = network
        self._clock = clock
        self._rng = rng
        self._book = NodeBook(record.node_id, rng, trusted=trusted, kept=kept)
        self._store = ApStore(network)
        self._verifier = Verifier(network)
        if overrides is None:
            overrides = Overrides(network, (), ())
        self._server = Server(
            network,
            OwnNode(record, path_key),
            self._book,
            self._store,
            self._verifier,
            overrides=overrides,
        )
        self._calls = NodeCalls(
            transport, self._server, self._book, self._verifier, clock, overrides=overrides
        )
        self._introductions = Introductions(self._calls, rng)
        self._searcher = Searcher(self._calls, self._introductions.heard)
        self._upkeep = Upkeep(self._calls, self._introductions, self._searcher, rng)
        self._sampler = Sampler(self._calls, self._searcher, rng, self._upkeep)
        self._storage = StorageClient(
            self._calls,
            self._searcher,
            self._server,
            self._store,
            self._verifier,
            knows_everybody=lambda: self._upkeep.complete,
        )
        self._keeper = Keeper(
            files, network.network_id, self._book, self._store, overrides=overrides, rng=rng
        )
        self._flood = OverrideFlood(
            overrides,
            self._calls,
            self._server,
            neighbours=neighbours,
            on_change=on_override,
            on_freed=self._introductions.heard_all,
        )
        self._surveys_running = 0
        self._performing = 0
        self._counts: Counter[str] = Counter()
        self._guard = Guard(self._counts)
        self._tasks = Tasks(self._guard)

    async def run(
        self,
        bootstrap: list[NodeRef],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Join the network and take part in it until cancelled.

        Reports as started once another node took note of us; at once if we are a bootstrap node
        ourselves or there is none. What earlier runs left on disk is read first and written at
        the end.
        """
        own_id = self._server.own.record.node_id
        cached = self._keeper.load(self._verifier, self._clock.now())
        self._flood.restore(self._keeper.load_overrides())
        self._flood.review()
        cached = [record for record in cached if not self.in_force.bans(record)]
        seeds = [ref for ref in bootstrap if ref.node_id != own_id]
        if len(seeds) < len(bootstrap) or not seeds:
            self._introductions.joined.set()
        try:
            async with self._tasks.open() as nursery:
                forever = self._guard.forever
                nursery.start_soon(forever, self._introductions.run, seeds, cached)
                nursery.start_soon(forever, self._upkeep.gossip)
                nursery.start_soon(forever, self._upkeep.recheck)
                nursery.start_soon(forever, self._upkeep.refresh)
                nursery.start_soon(forever, self._sampler.run)
                nursery.start_soon(forever, self._expire)
                nursery.start_soon(forever, self._flood.flood)
                nursery.start_soon(forever, self._flood.review_regularly)
                nursery.start_soon(forever, self._flood.catch_up)
                nursery.start_soon(forever, self._keeper.save_nodes)
                nursery.start_soon(forever, self._keeper.save_holdings)
                await self._introductions.joined.wait()
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._keeper.save()

    @property
    def joined(self) -> bool:
        """Whether another node took note of us (or none needs to)."""
        return self._introductions.joined.is_set()

    def unanswered(self) -> list[tuple[NodeRef, str]]:
        """See :meth:`Introductions.unanswered`."""
        return self._introductions.unanswered()

    @property
    def own_record(self) -> NodeRecord:
        """What we tell others about us."""
        return self._server.own.record

    def set_own_record(self, record: NodeRecord, path_key: bytes) -> None:
        """Replace what we tell others about us, and tell them. Others keep the record with the
        later ``created``.

        :raises ValueError: it is another node's record, or names another path key.
        """
        if record.node_id != self.own_record.node_id:
            raise ValueError("a node's record can't be replaced by another node's")
        self._server.own = OwnNode(record, path_key)
        self._tasks.start(self._introductions.announce)

    async def handle_call(self, peer: PeerLike, payload: bytes) -> bytes:
        """Answer a call that came over a link.

        :raises PeerError: not a call that gets an answer.
        """
        call = decode_call(payload)
        caller = Caller(peer.node_id, peer.address)
        if isinstance(call, Override):
            return self._flood.receive(call, caller).encode()
        answer = self._server.answer(call, self._clock.now(), caller)
        if isinstance(call, ReserveAp | ExtendApLease) and isinstance(answer, Stored):
            record = self._storage.contested(call, answer)
            if record is not None:
                self._reconsider(call, record, caller)
        return answer.encode()

    async def perform(self, call: bytes, allowed: frozenset[Method]) -> bytes:
        """Carry out a call on the whole network for an anonymized node; see ``wire.netdb`` for
        calls and their answers (:class:`Resolution`, :class:`WriteReport`).

        :raises PeerError: malformed, or not one of the ``allowed`` calls.
        :raises CapacityExceeded: too many at once.
        """
        decoded = decode_call(call)
        if method_of(decoded) not in allowed:
            raise ProtocolViolation("a netdb call that isn't allowed here")
        if self._performing >= PERFORMED_AT_ONCE:
            raise CapacityExceeded("too many netdb calls for others at once")
        self._performing += 1
        try:
            match decoded:
                case ResolveAp():
                    return (await self._storage.resolve(decoded.ip)).encode()
                case ReserveAp() | ExtendApLease() | UpdateApRoutes():
                    return (await self._storage.write(decoded)).encode()
                case _:
                    raise ProtocolViolation("a netdb call that nobody carries out for others")
        finally:
            self._performing -= 1

    async def resolve(self, address: ApAddress) -> Resolution:
        """What the network holds for an AP address, with all votes. The question goes out under
        our own name: anonymized nodes send it through an exit path to :meth:`perform`."""
        return await self._storage.resolve(address)

    async def write(self, call: Write) -> bytes:
        """As :meth:`resolve`, for a write; returns an encoded :class:`WriteReport`."""
        return (await self._storage.write(call)).encode()

    def known_node(self, node_id: NodeId) -> NodeRecord | None:
        """The record of a node, if it was heard of lately."""
        if node_id == self.own_record.node_id:
            return self.own_record
        now = self._clock.now()
        contact = self._book.get(node_id)
        if contact is not None and contact.usable(now) and contact.last_ok > now - FRESH:
            return contact.record
        return None

    def record_of(self, node_id: NodeId) -> NodeRecord | None:
        """The valid record of a node that we know, even if it failed."""
        contact = self._book.get(node_id)
        if contact is None or contact.record.expires <= self._clock.now():
            return None
        return contact.record

    async def find_node(self, node_id: NodeId) -> NodeRecord:
        """The record of a node, from memory if it was heard of lately.

        :raises Unreachable: nobody knows it.
        """
        known = self.known_node(node_id)
        if known is not None:
            return known
        now = self._clock.now()
        contact = self._book.get(node_id)
        lookup = await self._searcher.search(
            node_id, stop=lambda lookup: lookup.find(node_id) is not None
        )
        found = [contact.record] if contact is not None else []
        named = lookup.find(node_id)
        if named is not None:
            found.append(named)
        alive = [
            record for record in found if record.expires > now and not self.in_force.bans(record)
        ]
        if not alive:
            raise Unreachable("the node isn't in the network database")
        return max(alive, key=lambda record: record.created)

    async def witnesses(self, node_id: NodeId) -> list[Witness]:
        """What other nodes say about one node, for people."""
        return await ask_witnesses(node_id, self._calls, self._searcher)

    async def random_nodes(self, count: int) -> list[Candidate]:
        """Draw nodes from the whole network, each named by another node."""
        return await self._sampler.random_nodes(count)

    def candidates(self) -> list[Candidate]:
        """All nodes that path members can be chosen from; ourselves never among them."""
        return self._book.candidates(self._clock.now())

    def known_records(self) -> list[NodeRecord]:
        """The newest record of every node we know."""
        return [contact.record for contact in self._book]

    def all_records(self) -> list[NodeRecord]:
        """As :meth:`known_records`, with banned nodes: what the budget for bans is reckoned by."""
        return self._book.known_records()

    def command(self, encoded: bytes) -> bool:
        """An override command that a person gives here; it is obeyed and passed on. Returns whether
        it is new.

        :raises WireError: it does not parse.
        :raises RecordRefused: see :meth:`Overrides.receive`.
        """
        return self._flood.give(encoded)

    def commands(self) -> list[tuple[OverrideRecord, Standing]]:
        """All override commands known and what they amount to here, lowest number first."""
        return self._flood.standings()

    @property
    def in_force(self) -> InForce:
        """The override commands that this node obeys at the moment."""
        return self._server.view

    def report_failure(self, node_id: NodeId) -> None:
        """A node didn't do what it should (a link to it failed, it refused): it is no candidate
        until it proves that it is there, which it is asked to do a second later."""
        self._book.failed(node_id, self._clock.now())

    def report_success(self, node_id: NodeId) -> None:
        """A node did what it should."""
        self._book.succeeded(node_id, self._clock.now())

    @property
    def unwritten(self) -> dict[Path, str]:
        """Files that couldn't be written the last time, and why."""
        return self._keeper.unwritten

    def statistics(self) -> dict[str, int]:
        """Counts for people."""
        parts = (
            self._book.statistics(self._clock.now()),
            self._store.statistics(),
            self._server.statistics(),
            self._calls.statistics(),
            self._introductions.statistics(),
            self._searcher.statistics(),
            self._sampler.statistics(),
            self._storage.statistics(),
            self._flood.statistics(),
            self._counts,
        )
        return {name: count for part in parts for name, count in part.items()}

    def _reconsider(self, call: KeyWrite, record: APKeyRecord, caller: Caller) -> None:
        if self._surveys_running >= SURVEYS_AT_ONCE:
            return
        if self._tasks.start(self._survey, call, record, caller):
            self._surveys_running += 1

    async def _survey(self, call: KeyWrite, record: APKeyRecord, caller: Caller) -> None:
        try:
            await self._storage.reconsider(call, record, caller)
        except ProtocolViolation:
            return  # its caller has used up what it may ask
        finally:
            self._surveys_running -= 1

    async def _expire(self) -> None:
        while True:
            await trio.sleep(EXPIRE_EVERY * self._rng.uniform(0.75, 1.25))
            self._drop_expired(self._clock.now())

    def _drop_expired(self, now: float) -> None:
        self._book.expire(now)
        self._store.expire(now, lambda address: self._server.duty(address, now))
