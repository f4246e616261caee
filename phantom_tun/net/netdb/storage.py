"""Reading and writing AP records across the network (docs/spec/netdb.md, "Reading" and "Writing").

All storers of an address are asked or told: the nodes closest to each of its storage keys,
ourselves among them if we belong there.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from phantom_tun.clock import MINUTE
from phantom_tun.errors import PeerError, ProtocolViolation, RecordRefused, WireError, WorldError
from phantom_tun.ids import ApAddress, NodeId, StorageKey
from phantom_tun.net.netdb.calls import NodeCalls
from phantom_tun.net.netdb.search import SEEDS, Searcher
from phantom_tun.netdb.addresses import ap6_address, keys_to_read, keys_to_write
from phantom_tun.netdb.limits import SourceLimits
from phantom_tun.netdb.lookup import Lookup
from phantom_tun.netdb.rules import Caller
from phantom_tun.netdb.server import Server, expect
from phantom_tun.netdb.store import ApStore
from phantom_tun.netdb.storers import LEASE_STORERS, merged, storer_count, storers_of
from phantom_tun.netdb.table import K
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.netdb.votes import Standing, Tally
from phantom_tun.wire.netdb import (
    ExtendApLease,
    Held,
    Refusal,
    ReserveAp,
    Resolution,
    ResolveAp,
    Stored,
    UpdateApRoutes,
    WriteReport,
)
from phantom_tun.wire.records import APKeyRecord, NodeRecord

FULL_ANSWERS = 6
"""Storers that are asked for whole records at once; the others give the digest that is a vote."""
AT_ONCE = 24
"""Storers asked at a time for one address."""
PATIENCE = 0.7
"""Seconds that the last quarter of the storers gets after the first three."""
POLL_DEADLINE = 8.0
SURVEYS_PER_MINUTE = 30.0
SURVEYS_AT_ONCE = 8
MOST = 0.5
"""A record counts as vouched for if more than this part of its storers hold it."""

_T = TypeVar("_T")

KeyWrite = ReserveAp | ExtendApLease
Write = KeyWrite | UpdateApRoutes


@dataclass(slots=True)
class _Place:
    """A storage key, and who holds what is stored there."""

    key: StorageKey
    lookup: Lookup | None
    """None if we know everybody."""
    storers: list[NodeRecord]


@dataclass(frozen=True, slots=True)
class _Vote:
    """What the storers of an address say."""

    tally: Tally
    asked: int
    decided: bool


class StorageClient:
    """One node's access to what the network stores."""

    def __init__(
        self,
        calls: NodeCalls,
        searcher: Searcher,
        server: Server,
        store: ApStore,
        verifier: Verifier,
        *,
        knows_everybody: Callable[[], bool],
    ) -> None:
        self._calls = calls
        self._searcher = searcher
        self._server = server
        self._store = store
        self._verifier = verifier
        self._knows_everybody = knows_everybody
        self._survey_limits = SourceLimits(rate=SURVEYS_PER_MINUTE / MINUTE, burst=SURVEYS_AT_ONCE)
        self._counts: Counter[str] = Counter()

    async def resolve(self, address: ApAddress) -> Resolution:
        """What the network holds for ``address``. An AP4 address leads to a key, and the routes
        come from where the AP6 address of that key is stored. Votes but no record: the storers
        are divided."""
        self._counts["resolutions"] += 1
        now = self._calls.clock.now()
        vote = await self._vote(address)
        resolution = vote.tally.resolution(vote.asked, decided=vote.decided)
        winner = vote.tally.winner()
        if not vote.decided:
            self._counts["undecided"] += 1
            return resolution
        if isinstance(address, ipaddress.IPv6Address) or winner is None:
            return resolution
        if resolution.routes and self._knows_everybody():
            return resolution
        ap6 = ap6_address(self._verifier.network, winner.public_key)
        by_key = (await self._vote(ap6)).tally
        newest = by_key.winner()
        if newest is not None and newest.sequence > winner.sequence and newest.expires > now:
            winner = newest
        moved = self._server.claimed(winner) != address
        return Resolution(
            key_record=b"" if moved else winner.encoded,
            routes=by_key.resolution(0).routes,
            asked=resolution.asked,
            answered=resolution.answered,
            votes=() if moved else resolution.votes,
        )

    async def write(self, call: Write) -> WriteReport:
        """Bring the records of ``call`` to all their storers."""
        self._counts["writes"] += 1
        try:
            addresses = self._addresses(call)
        except (WireError, RecordRefused):
            return WriteReport(0, 0, int(Refusal.MALFORMED), b"")
        now = self._calls.clock.now()
        network_id = self._verifier.network.network_id
        counts = {
            key: storer_count(address)
            for address in addresses
            for key in keys_to_write(network_id, address, now)
        }
        storers = merged([place.storers for place in await self._places(counts)])
        answers: list[Stored] = []

        async def tell(record: NodeRecord) -> None:
            if record.node_id == self._calls.own_id:
                own = Caller(record.node_id, record.ips[0])
                stored = self._server.answer(call, self._calls.clock.now(), own)
                answers.append(expect(stored, Stored))
            else:
                answers.append(await self._calls.ask(self._calls.ref(record), call, Stored))

        await self._poll(storers, tell)
        refusals = Counter(answer.refusal for answer in answers if answer.refusal)
        holders = Counter(answer.lease_holder for answer in answers if answer.lease_holder)
        return WriteReport(
            asked=len(storers),
            stored=len(answers) - refusals.total(),
            refusal=_most_frequent(refusals, int(Refusal.NONE)),
            lease_holder=_most_frequent(holders, b""),
        )

    def contested(self, call: KeyWrite, answer: Stored) -> APKeyRecord | None:
        """The record of a call that we refused and might have to take after asking others: it is
        older than newcomers may be, or claims an AP4 address that we hold for another key."""
        try:
            record = self._verifier.key_record(call.record)
        except (WireError, RecordRefused):
            return None
        contested = answer.refusal in {Refusal.TOO_OLD, Refusal.LEASE_HELD} or (
            answer.lease_holder not in {b"", record.public_key}
        )
        return record if contested else None

    async def reconsider(self, call: KeyWrite, record: APKeyRecord, caller: Caller) -> None:
        """Ask the other storers about a contested ``record``, and follow most of them."""
        now = self._calls.clock.now()
        claimed = self._server.claimed(record)
        address = claimed or ap6_address(self._verifier.network, record.public_key)
        if not self._survey_limits.allows("all", now):
            self._counts["surveys_dropped"] += 1
            return
        self._counts["surveys"] += 1
        tally = await self._survey(address)
        tally.know(record)
        vouched = tally.share_of(record) > MOST
        if claimed is not None and tally.leading_key() == record.public_key:
            self._store.settle_lease(claimed, record.public_key)
        elif not vouched:
            return
        answer = self._server.answer(call, self._calls.clock.now(), caller, vouched=vouched)
        self._counts["surveys_followed"] += not expect(answer, Stored).refusal

    def statistics(self) -> dict[str, int]:
        """Counts for people."""
        return dict(self._counts)

    def _addresses(self, call: Write) -> list[ApAddress]:
        if isinstance(call, UpdateApRoutes):
            keys = {self._verifier.route(encoded).public_key for encoded in call.routes}
            if len(keys) != 1:
                raise WireError("the routes of one call belong to one AP identity")
            return [ap6_address(self._verifier.network, keys.pop())]
        record = self._verifier.key_record(call.record)
        claimed = self._server.claimed(record)
        ap6 = ap6_address(self._verifier.network, record.public_key)
        return [ap6] if claimed is None else [ap6, claimed]

    async def _vote(self, address: ApAddress) -> _Vote:
        """All votes on an address. If no key has a clear majority, a second look makes sure that
        the right storers were asked, and more of them."""
        now = self._calls.clock.now()
        keys = keys_to_read(self._verifier.network.network_id, address, now)
        places = await self._places(dict.fromkeys(keys, K))
        storers = merged([place.storers for place in places])
        full = {record.node_id for record in storers[:FULL_ANSWERS]}
        tally = self._tally(address, now)
        asked: dict[NodeId, NodeRecord] = {}
        asked_again: set[NodeId] = set()

        async def ask(record: NodeRecord) -> None:
            whole = record.node_id in full
            await self._ask(tally, record, ResolveAp.of(address, full=whole))

        async def count(storers: list[NodeRecord], *, every_key: bool) -> Standing:
            new = [record for record in storers if record.node_id not in asked]
            asked.update((record.node_id, record) for record in new)
            await self._poll(new, ask)
            tally.keep({record.node_id for record in storers})
            with trio.move_on_after(POLL_DEADLINE):
                while wanted := tally.wanted(every_key=every_key):
                    full.update(wanted)
                    for node_id in wanted:
                        tally.retract(node_id)  # counts again if it can show what it named
                    # Once: a liar could name something else every time.
                    again = [node_id for node_id in wanted if node_id not in asked_again]
                    asked_again.update(again)
                    await self._poll([asked[node_id] for node_id in again], ask)
            return tally.standing(
                [{record.node_id for record in place.storers} for place in places]
            )

        standing = await count(storers, every_key=False)
        if standing is not Standing.CLEAR and storer_count(address) > K:
            self._counts["second_looks"] += 1
            await self._look_again(places)
            storers = merged([place.storers for place in places])
            standing = await count(storers, every_key=True)
        return _Vote(tally, len(asked), decided=standing is not Standing.NONE)

    async def _look_again(self, places: list[_Place]) -> None:
        """Find more storers of a lease, over other ways."""

        async def widen(place: _Place) -> None:
            if place.lookup is None:
                nodes = self._nearest(place.key)
            else:
                await self._searcher.widen(place.lookup, LEASE_STORERS)
                nodes = place.lookup.closest()
            place.storers = storers_of(place.key, nodes, self._server.own.record, LEASE_STORERS)

        async with trio.open_nursery() as nursery:
            for place in places:
                nursery.start_soon(widen, place)

    def _tally(self, address: ApAddress, now: float) -> Tally:
        return Tally(self._verifier, address, now, self._server.view)

    async def _survey(self, address: ApAddress) -> Tally:
        now = self._calls.clock.now()
        keys = keys_to_read(self._verifier.network.network_id, address, now)
        tally = self._tally(address, now)
        held = self._store.holding(address, now).record
        if held is not None:
            tally.know(held)

        async def ask(record: NodeRecord) -> None:
            await self._ask(tally, record, ResolveAp.of(address, full=False))

        places = await self._places(dict.fromkeys(keys, storer_count(address)))
        await self._poll(merged([place.storers for place in places]), ask)
        return tally

    async def _ask(self, tally: Tally, record: NodeRecord, call: ResolveAp) -> None:
        if record.node_id == self._calls.own_id:
            answer = self._server.answer(call, self._calls.clock.now(), None)
            tally.add(record.node_id, expect(answer, Held))
            return
        held = await self._calls.ask(self._calls.ref(record), call, Held)
        try:
            tally.add(record.node_id, held)
        except (WireError, RecordRefused, ProtocolViolation):
            self._counts["false_answers"] += 1
            self._calls.distrust(self._calls.ref(record))

    async def _places(self, counts: dict[StorageKey, int]) -> list[_Place]:
        """Who holds what is stored under some keys, so many nodes each."""
        found: dict[StorageKey, _Place] = {}

        async def find(key: StorageKey, count: int) -> None:
            lookup = None
            if self._knows_everybody():
                nodes = self._nearest(key)
            else:
                lookup = await self._searcher.find(key, count)
                nodes = lookup.closest()
            storers = storers_of(key, nodes, self._server.own.record, count)
            found[key] = _Place(key, lookup, storers)

        async with trio.open_nursery() as nursery:
            for key, count in counts.items():
                nursery.start_soon(find, key, count)
        return [found[key] for key in counts]

    def _nearest(self, key: StorageKey) -> list[NodeRecord]:
        return self._calls.book.closest(key, SEEDS, self._calls.clock.now())

    async def _poll(
        self, storers: list[NodeRecord], ask: Callable[[NodeRecord], Awaitable[None]]
    ) -> None:
        """``ask`` each of them. The slowest quarter is waited for only briefly."""
        limiter = trio.CapacityLimiter(AT_ONCE)
        done = 0

        async def one(record: NodeRecord) -> None:
            nonlocal done
            async with limiter:
                try:
                    await ask(record)
                except (WorldError, PeerError):
                    self._counts["storers_silent"] += 1
            done += 1
            if done >= 0.75 * len(storers):
                scope.deadline = min(scope.deadline, trio.current_time() + PATIENCE)

        with trio.move_on_after(POLL_DEADLINE) as scope:
            async with trio.open_nursery() as nursery:
                for record in storers:
                    nursery.start_soon(one, record)


def _most_frequent(counts: Counter[_T], default: _T) -> _T:
    return counts.most_common(1)[0][0] if counts else default
