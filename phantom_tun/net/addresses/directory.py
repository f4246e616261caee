"""From an AP address to the key that owns it and the ways in (docs/spec/addresses.md, "Resolving";
protocol sections 4 and 7).

Answers come through the exit paths of the identity that asks and are kept apart by identity: one
entry id, shown to one identity only and then used by another, would tell that the two are one.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog
import trio

from phantom_tun.clock import MINUTE, Clock, Rng
from phantom_tun.errors import Unreachable
from phantom_tun.guard import Guard
from phantom_tun.ids import ApAddress, EntryId, NodeId, PublicKey
from phantom_tun.net.addresses.ap_database import ApDatabase, Found, Route, claimed_ap4
from phantom_tun.net.addresses.identities import ApIdentity, IdentityStore
from phantom_tun.net.addresses.inquiry import Inquiry, NotPublished, Question
from phantom_tun.net.addresses.pins import PinChanged, Pins
from phantom_tun.netdb.addresses import ap6_address, is_ap_address
from phantom_tun.tasks import Tasks

FETCH_WITHIN = 25.0
"""Seconds for all attempts together."""

REFRESH_AFTER = 5 * MINUTE
"""An answer older than this is still used, but asked for again in the background."""
MARGIN = MINUTE
"""Records and routes count as expired this much earlier."""
NEGATIVE_FOR = 5.0
"""Seconds that a failure is remembered."""
FRESH_AGE = 1.0
"""An answer younger than this is as good as a fresh one: many connections may fail at once."""
MAX_ENTRIES = 2_048
MAX_FETCHES = 128

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ResolvedAp:
    """Who owns an AP address and how to reach it; verified."""

    public_key: PublicKey
    ap4: ipaddress.IPv4Address | None
    """If an AP6 address was asked for, this is what its owner claims, nothing more."""
    ap6: ipaddress.IPv6Address
    certificate: bytes
    """End-to-end certificate, DER."""
    request_key: bytes
    """HPKE public key that requests are sealed to."""
    routes: Sequence[tuple[NodeId, EntryId, float]]
    """Entry node, entry id, expiry. Empty for an identity of our own: no way there is needed."""
    sequence: int
    expires: float
    confirmations: int | None
    """AP4: over how many different exit paths the owner was confirmed at first contact. None where
    the address itself proves the key."""


@dataclass(slots=True)
class _Entry:
    """What is known about one address by one identity."""

    resolved: ResolvedAp | None = None
    fetched: float = 0.0
    failure: Callable[[], Unreachable] | None = None
    failed: float = 0.0
    key: bytes = b""
    sequence: int = 0
    """Of the newest record of :attr:`key`: an older one isn't believed again."""
    done: trio.Event | None = None
    """Set while somebody is asking."""

    def usable(self, now: float) -> ResolvedAp | None:
        """The cached answer with the routes that are still valid, if there are any."""
        if self.resolved is None or self.resolved.expires - MARGIN <= now:
            return None
        routes = [route for route in self.resolved.routes if route[2] - MARGIN > now]
        return replace(self.resolved, routes=tuple(routes)) if routes else None


class Directory:
    """Resolves AP addresses for all identities of this node, with a cache."""

    def __init__(
        self,
        database: ApDatabase,
        identities: IdentityStore,
        pins: Pins,
        *,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._identities = identities
        self._network = identities.network
        self._clock = clock
        self._entries: OrderedDict[tuple[str, ApAddress], _Entry] = OrderedDict()
        self._fetches = 0
        self._counts: Counter[str] = Counter()
        self._tasks = Tasks(Guard(self._counts))
        self._inquiry = Inquiry(
            database, identities.network, pins, clock=clock, rng=rng, counts=self._counts
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry the questions of :meth:`resolve`; never returns."""
        await self._tasks.run(task_status)

    async def resolve(
        self, identity: str, address: ApAddress, *, fresh: bool = False, hidden: bool = False
    ) -> ResolvedAp:
        """Who owns ``address``, asked as ``identity``; ``fresh`` asks again even if the answer is
        known, because its routes failed; ``hidden``: see :class:`ApDatabase`.

        :raises PinChanged: (an Unreachable) the AP4 address belonged to another key before.
        :raises NotPublished: (an Unreachable) there is no such address.
        :raises Unreachable: it has no way in, or nobody could be asked.
        """
        own = self._identities.owner_of(address)
        if own is not None:
            return _own(own)
        if not is_ap_address(self._network, address):
            raise NotPublished(f"{address} can't belong to anybody in this network")
        entry = self._entry(identity, address)
        now = self._clock.now()
        known = entry.usable(now)
        if known is not None and (not fresh or now - entry.fetched < FRESH_AGE):
            if now - entry.fetched >= REFRESH_AFTER and entry.done is None:
                self._start(identity, address, entry, hidden=hidden)
            return known
        if entry.failure is None or now - entry.failed >= NEGATIVE_FOR:
            if entry.done is None:
                self._start(identity, address, entry, hidden=hidden)
            if entry.done is None:
                raise Unreachable("too many addresses are being looked up at the same time")
            await entry.done.wait()
        if entry.failure is not None:
            raise entry.failure()
        known = entry.usable(self._clock.now())
        if known is None:
            raise Unreachable(f"{address} exists, but no way in to it is published at the moment")
        return known

    async def confirm(self, identity: str, address: ApAddress, public_key: PublicKey) -> bool:
        """Whether ``public_key`` owns ``address``, asked as ``identity`` (the one that is being
        called: asking through another one's paths would tell that they belong together; and not
        less hidden than it is when called, since the caller knows whom he called when)."""
        if isinstance(address, ipaddress.IPv6Address):
            return address == ap6_address(self._network, public_key)
        try:
            resolved = await self.resolve(identity, address, hidden=True)
        except Unreachable:
            return False
        return resolved.public_key == public_key

    async def ask(
        self, identity: str, address: ApAddress, *, path_index: int | None = None
    ) -> Found | None:
        """One question over one exit path, past the cache and the pins; None if the answer is that
        there is nothing. For people who want to see the votes. About an address of our own it goes
        over a path built for it.

        :raises PeerError: the answer is not valid.
        :raises WorldError: no path, or no answer.
        """
        own = self._identities.owner_of(address)
        if own is not None:
            return await self._inquiry.ask(own.name, address, private=True)
        return await self._inquiry.ask(identity, address, path_index=path_index)

    def forget(self, identity: str, address: ApAddress) -> None:
        """Ask anew at the next :meth:`resolve`. An older record still isn't believed."""
        entry = self._entries.get((identity, address))
        if entry is not None:
            entry.resolved = entry.failure = None

    def forget_identity(self, identity: str) -> None:
        """Drop everything that a removed identity had asked for."""
        for key in [key for key in self._entries if key[0] == identity]:
            del self._entries[key]

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return {"entries": len(self._entries), "fetches": self._fetches, **self._counts}

    # --- cache ----------------------------------------------------------------------------------

    def _entry(self, identity: str, address: ApAddress) -> _Entry:
        key = (identity, address)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry()
            if len(self._entries) > MAX_ENTRIES:
                self._entries.popitem(last=False)
                self._counts["entries_evicted"] += 1
        self._entries.move_to_end(key)
        return entry

    def _start(self, identity: str, address: ApAddress, entry: _Entry, *, hidden: bool) -> None:
        """Ask in a task of its own, if there's room for one more: whoever gives up waiting takes
        nothing from the others."""
        if not self._tasks.is_open:
            raise Unreachable("the node is still starting, or stopping")
        if self._fetches >= MAX_FETCHES:
            self._counts["fetches_refused"] += 1
            return
        self._fetches += 1
        entry.done = trio.Event()
        question = Question(identity, address, entry.key, entry.sequence, hidden)
        self._tasks.start(self._fetch, question, entry, entry.done)

    async def _fetch(self, question: Question, entry: _Entry, done: trio.Event) -> None:
        failure: Callable[[], Unreachable] | None
        failure = partial(Unreachable, "the network database didn't answer in time")
        try:
            with trio.move_on_after(FETCH_WITHIN):
                found, confirmations = await self._inquiry.find(question)
                entry.resolved = self._resolved(found, confirmations)
                entry.key, entry.sequence = found.record.public_key, found.record.sequence
                entry.fetched = self._clock.now()
                failure = None
        except PinChanged as error:
            self._counts["pin_changed"] += 1
            _log.warning("a pinned AP4 address has another owner now; see: phantom-tun pins list")
            entry.resolved = None
            failure = partial(PinChanged, error.change)
        except NotPublished as error:
            failure = partial(NotPublished, str(error))
        except Unreachable as error:
            failure = partial(Unreachable, str(error))
        finally:
            self._fetches -= 1
            self._counts["unresolved" if failure else "resolved"] += 1
            entry.failure, entry.failed = failure, self._clock.now()
            entry.done = None
            done.set()

    def _resolved(self, found: Found, confirmations: int | None) -> ResolvedAp:
        record = found.record
        return ResolvedAp(
            public_key=PublicKey(record.public_key),
            ap4=claimed_ap4(record, self._network),
            ap6=ap6_address(self._network, record.public_key),
            certificate=record.certificate,
            request_key=record.request_key,
            routes=tuple(
                Route(NodeId(route.entry_node), EntryId(route.entry_id), route.expires)
                for route in found.routes
            ),
            sequence=record.sequence,
            expires=record.expires,
            confirmations=confirmations,
        )


def _own(identity: ApIdentity) -> ResolvedAp:
    return ResolvedAp(
        public_key=identity.public_key,
        ap4=identity.ap4,
        ap6=identity.ap6,
        certificate=identity.certificate.der,
        request_key=identity.request_keys[0].public,
        routes=(),
        sequence=identity.sequence,
        expires=float("inf"),
        confirmations=None,
    )
