"""Reading and writing AP records across the network (docs/spec/netdb.md, "Reading" and "Writing").

All storers of an address are asked or told: the k nodes closest to each of its storage keys,
ourselves among them if we belong there.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from phantom_tun.clock import MINUTE
from phantom_tun.errors import PeerError, ProtocolViolation, RecordRefused, WireError, WorldError
from phantom_tun.ids import ApAddress, NodeId, StorageKey
from phantom_tun.net.netdb_calls import NodeCalls
from phantom_tun.net.netdb_search import Searcher
from phantom_tun.netdb.addresses import ap6_address, keys_to_read, keys_to_write
from phantom_tun.netdb.limits import SourceLimits
from phantom_tun.netdb.rules import Caller
from phantom_tun.netdb.server import Server, expect
from phantom_tun.netdb.store import ApStore
from phantom_tun.netdb.storers import merged, storers_of
from phantom_tun.netdb.table import K
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.netdb.votes import Tally
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
        come from where the AP6 address of that key is stored."""
        self._counts["resolutions"] += 1
        now = self._calls.clock.now()
        tally, asked = await self._vote(address)
        resolution = tally.resolution(asked)
        winner = tally.winner()
        if isinstance(address, ipaddress.IPv6Address) or winner is None:
            return resolution
        if resolution.routes and self._knows_everybody():
            return resolution
        ap6 = ap6_address(self._verifier.network, winner.public_key)
        by_key, _ = await self._vote(ap6)
        newest = by_key.winner()
        if newest is not None and newest.sequence > winner.sequence and newest.expires > now:
            winner = newest
        return Resolution(
            key_record=winner.encoded if self._server.claimed(winner) == address else b"",
            routes=by_key.resolution(0).routes,
            asked=resolution.asked,
            answered=resolution.answered,
            votes=resolution.votes,
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
        keys = [key for address in addresses for key in keys_to_write(network_id, address, now)]
        storers = await self._storers(keys)
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

    async def _vote(self, address: ApAddress) -> tuple[Tally, int]:
        """All votes on an address, and how many storers were asked."""
        now = self._calls.clock.now()
        storers = await self._storers(
            list(keys_to_read(self._verifier.network.network_id, address, now))
        )
        by_id = {record.node_id: record for record in storers}
        full = {record.node_id for record in storers[:FULL_ANSWERS]}
        tally = self._tally(address, now)

        async def ask(record: NodeRecord) -> None:
            whole = record.node_id in full
            await self._ask(tally, record, ResolveAp.of(address, full=whole))

        await self._poll(storers, ask)
        asked_again: set[NodeId] = set()
        with trio.move_on_after(POLL_DEADLINE):
            while wanted := tally.wanted():
                full.update(wanted)
                for node_id in wanted:
                    tally.retract(node_id)  # counts again if it can show what it named
                # Once: a liar could name something else every time.
                again = [node_id for node_id in wanted if node_id not in asked_again]
                asked_again.update(again)
                await self._poll([by_id[node_id] for node_id in again], ask)
        return tally, len(storers)

    def _tally(self, address: ApAddress, now: float) -> Tally:
        return Tally(self._verifier, address, now, self._server.view)

    async def _survey(self, address: ApAddress) -> Tally:
        now = self._calls.clock.now()
        keys = list(keys_to_read(self._verifier.network.network_id, address, now))
        tally = self._tally(address, now)
        held = self._store.holding(address, now).record
        if held is not None:
            tally.know(held)

        async def ask(record: NodeRecord) -> None:
            await self._ask(tally, record, ResolveAp.of(address, full=False))

        await self._poll(await self._storers(keys), ask)
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

    async def _storers(self, keys: list[StorageKey]) -> list[NodeRecord]:
        """Everybody who should hold something under one of ``keys``, the closest of each first."""
        found: dict[StorageKey, list[NodeRecord]] = {}

        async def find(key: StorageKey) -> None:
            if self._knows_everybody():
                nodes = self._calls.book.closest(key, 2 * K, self._calls.clock.now())
            else:
                nodes = (await self._searcher.search(key)).closest()
            found[key] = storers_of(key, nodes, self._server.own.record)

        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(find, key)
        return merged([found[key] for key in keys])

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
