"""Keeping an AP identity reachable: its key record, its AP4 lease and its routes in the network
database (docs/spec/addresses.md, "Publishing"; protocol section 4).

::

             reserve_ap                stored, lease ours
    NONE ──────────────▶ RESERVING ──────────────────────▶ HELD ─┐ extended and seen
     ▲                    ▲     │ somebody else's lease,    │ ▲  │ every REFRESH
     │                    │     ▼ seen over two paths       │ └──┘
     │                    └── LOST ◀────────────────────────┤
     └──────────────────────────────────────────────────────┘ lease ran out

What claims or checks goes through exit paths made for that one question; what extends goes through
the identity's own entry paths, whose entry nodes know the AP address anyway. No storer ever sees
the node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog
import trio

from phantom_tun.clock import MINUTE, Clock, Rng
from phantom_tun.errors import ConfigError, PathUnavailable, PeerError, WorldError
from phantom_tun.ids import EntryId, NodeId, PublicKey
from phantom_tun.net.addresses.ap_database import (
    ApDatabase,
    Found,
    Route,
    check_resolution,
    check_write,
)
from phantom_tun.net.addresses.identities import (
    ApIdentity,
    IdentityStore,
    Lease,
    LeaseState,
    next_candidate,
)
from phantom_tun.wire.netdb import (
    MAX_ROUTES,
    ExtendApLease,
    Refusal,
    ReserveAp,
    ResolveAp,
    UpdateApRoutes,
)
from phantom_tun.wire.records import APKeyRecord

REFRESH = 40 * MINUTE
"""Records are published again about this often. Storage keys change every 8 hours, and in the hour
before (``netdb.addresses.OVERLAP``) writes reach the coming storers too: one must fall into it."""
SECOND_CHANCE = 30.0
"""The entry node publishes the route of a new path; after this we do it again."""
ROUTE_CHECK = 15.0
"""Seconds between looks at which entry paths stand, if nobody says that they changed."""
ARRIVAL = 130.0
"""Seconds for a queued update to travel: it waits until the entry node replaces a ready tunnel.
Then we look whether it arrived."""
WITHDRAWN_FOR = ARRIVAL + 20.0
"""A withdrawn route is replaced by one that expires as soon as it may have arrived."""
PATIENCE = 3
"""Extensions that may fail in a row before the record goes through an exit path instead."""
CALL_WITHIN = 45.0
"""Seconds for one question, the building of its path included."""
FIRST_RETRY, LAST_RETRY = 0.5, 60.0
"""Seconds between attempts, doubled each time."""

_JITTER = (0.8, 1.0)
_RETRY_JITTER = (0.5, 1.5)
_PROBLEMS = {
    Refusal.TOO_OLD: "the others say that our clock is slow; set this computer's time",
    Refusal.FROM_THE_FUTURE: "the others say that our clock is fast; set this computer's time",
    Refusal.EXPIRED: "the others say that our clock is slow; set this computer's time",
    Refusal.SEQUENCE: "the network still has a record from a time when our clock was ahead",
    Refusal.BANNED: "the administrators of the network have banned this AP address",
    Refusal.STORE_FULL: "the nodes that should store it have no room",
    Refusal.SOURCE_LIMIT: "the exit node has brought too many new identities lately",
}

_log = structlog.get_logger()


@dataclass(slots=True)
class _Published:
    """A route of ours that the network holds, or will."""

    route: Route
    due: float
    """When to publish it again."""


class Publisher:
    """Publishes one AP identity for as long as it runs."""

    def __init__(
        self,
        identity: ApIdentity,
        identities: IdentityStore,
        database: ApDatabase,
        entry_routes: Callable[[str], Sequence[Route]],
        *,
        on_lease: Callable[[ApIdentity], None],
        clock: Clock,
        rng: Rng,
        start_delay: float = 0.0,
    ) -> None:
        """
        :param entry_routes: the ways in that stand at the moment, by name of the identity.
        :param on_lease: called whenever the AP4 address or its state has changed.
        :param start_delay: seconds to wait at first. Identities of one node that all appear in the
            same second could be told to be one.
        """
        self._identity = identity
        self._identities = identities
        self._database = database
        self._entry_routes = entry_routes
        self._on_lease = on_lease
        self._clock = clock
        self._rng = rng
        self._start_delay = start_delay
        self._routes: dict[EntryId, _Published] = {}
        self._routes_changed = trio.Event()
        self._resumed = identity.lease.state is LeaseState.HELD
        """Whether the network may still have routes of an earlier run."""
        self._first_sequence = 0
        self._failures = 0
        self._losses = 0
        self._problem = ""
        self._counts: Counter[str] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Publish and keep published; never returns."""
        self._first_sequence = self._identities.next_sequence(self._identity)
        task_status.started()
        await trio.sleep(self._start_delay)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_key_record)
            nursery.start_soon(self._keep_routes)

    def routes_changed(self) -> None:
        """An entry path came up or went: look at once."""
        self._routes_changed.set()

    def warnings(self) -> list[str]:
        """What the owner should know, as sentences."""
        identity, lines = self._identity, []
        if self._losses:
            now = identity.ap4 or f"{identity.candidate} (being claimed)"
            lines.append(
                f"the AP4 address of {identity.name!r} had to change, because another identity "
                f"holds the lease of the former one; now it is {now}"
            )
        if self._problem and identity.ap4 is None:
            lines.append(f"the AP4 address of {identity.name!r} isn't claimed: {self._problem}")
        elif self._problem and self._failures >= PATIENCE:
            lines.append(f"{identity.name!r} could not be published again: {self._problem}")
        return lines

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return {"routes": len(self._routes), "losses": self._losses, **self._counts}

    # --- key record and lease -------------------------------------------------------------------

    async def _keep_key_record(self) -> None:
        await self._tidy()
        while True:
            lease = self._identity.lease
            done = False
            try:
                done = await self._publish_key_record()
            except (WorldError, PeerError, ConfigError) as error:
                self._problem = str(error)
            except trio.TooSlowError:
                self._problem = "the network database didn't answer in time"
            if done:
                self._failures, self._problem = 0, ""
                await self._tidy()
                await trio.sleep(REFRESH * self._rng.uniform(*_JITTER))
                continue
            self._failures += 1
            self._counts["failures"] += 1
            if self._identity.lease.n != lease.n and self._losses < PATIENCE:
                continue  # the next candidate is very likely free
            pause = min(LAST_RETRY, FIRST_RETRY * 2 ** min(self._failures - 1, 16))
            await trio.sleep(pause * self._rng.uniform(*_RETRY_JITTER))

    async def _publish_key_record(self) -> bool:
        """One attempt; returns whether the network holds the record and the lease is ours."""
        identity = self._identity
        self._identities.renew(identity)
        held = identity.lease.state is LeaseState.HELD
        if held and identity.lease.until <= self._clock.now():
            self._set_lease(replace(identity.lease, state=LeaseState.NONE, until=0.0))
            held = False
        if held and self._failures < PATIENCE:
            return await self._extend()
        return await self._reserve()

    async def _reserve(self) -> bool:
        identity = self._identity
        if identity.lease.state is not LeaseState.HELD:
            self._set_lease(replace(identity.lease, state=LeaseState.RESERVING))
        record = self._identities.make_key_record(identity, identity.lease.n)
        self._counts["reservations"] += 1
        report = check_write(await self._call(ReserveAp(record.encoded).encode()))
        if report.lease_holder not in {b"", identity.public_key}:
            return await self._contest(PublicKey(report.lease_holder))
        if report.stored and report.lease_holder:
            self._hold_until(record)
            return True
        refusal = Refusal(report.refusal)
        self._problem = _PROBLEMS.get(
            refusal, f"no node took the record ({refusal.name.lower().replace('_', ' ')})"
        )
        return False

    async def _extend(self) -> bool:
        identity = self._identity
        record = self._identities.make_key_record(identity, identity.lease.n)
        self._counts["extensions"] += 1
        self._database.queue_update(identity.name, ExtendApLease(record.encoded).encode())
        await trio.sleep(ARRIVAL)
        found = await self._look()
        if found is None:
            self._problem = "the network database has lost the key record"
            return False
        if found.record.public_key != identity.public_key:
            return await self._contest(PublicKey(found.record.public_key))
        self._compare_routes(found)
        if found.record.sequence < record.sequence:
            self._problem = "an entry node didn't pass an update on"
            return False
        self._hold_until(record)
        return True

    async def _contest(self, holder: PublicKey) -> bool:
        """Somebody said that another key holds our address. One liar shall not drive us from one
        address to the next, so another path has to say so, too."""
        self._counts["conflicts"] += 1
        found = await self._look()
        if found is None or found.record.public_key != holder:
            self._problem = "two paths disagree about who holds the AP4 address"
            return False
        self._losses += 1
        _log.warning("the AP4 address of an identity is another one's", name=self._identity.name)
        lease = self._identity.lease
        self._set_lease(replace(lease, state=LeaseState.LOST, until=0.0))
        self._set_lease(next_candidate(lease))
        return False

    async def _look(self) -> Found | None:
        """What the network says about our AP4 address, asked as if by a stranger."""
        address = self._identity.candidate
        answer = await self._call(ResolveAp.of(address).encode())
        return check_resolution(answer, address, self._identities.network, self._clock.now())

    async def _call(self, call: bytes) -> bytes:
        with trio.fail_after(CALL_WITHIN):
            return await self._database.netdb_call(self._identity.name, call, private=True)

    def _hold_until(self, record: APKeyRecord) -> None:
        lease = self._identity.lease
        self._set_lease(Lease(lease.n, LeaseState.HELD, record.expires))

    def _set_lease(self, lease: Lease) -> None:
        before = self._identity.lease
        self._identities.set_lease(self._identity, lease)
        if (before.n, before.state) != (lease.n, lease.state):
            self._on_lease(self._identity)

    # --- routes ---------------------------------------------------------------------------------

    async def _keep_routes(self) -> None:
        while True:
            try:
                self._publish_routes()
            except PathUnavailable:
                self._counts["routes_waiting"] += 1
            except ConfigError as error:
                self._problem = str(error)
            with trio.move_on_after(ROUTE_CHECK):
                await self._routes_changed.wait()
            self._routes_changed = trio.Event()

    def _publish_routes(self) -> None:
        now = self._clock.now()
        standing = {route.entry_id: route for route in self._entry_routes(self._identity.name)}
        for entry_id, route in standing.items():
            if entry_id not in self._routes:
                self._routes[entry_id] = _Published(route, now + SECOND_CHANCE)
        for entry_id, published in list(self._routes.items()):
            if published.route.expires <= now:
                del self._routes[entry_id]
        gone = [entry_id for entry_id in self._routes if entry_id not in standing]
        due = [
            entry_id
            for entry_id, published in self._routes.items()
            if entry_id in standing and published.due <= now
        ]
        if not gone and not due:
            return
        chosen = (gone + due)[:MAX_ROUTES]
        signed = []
        for entry_id in chosen:
            route = self._routes[entry_id].route
            expires = route.expires
            if entry_id in gone:
                expires = min(expires, now + WITHDRAWN_FOR)
            signed.append(
                self._identities.make_route(self._identity, route.entry_node, entry_id, expires)
            )
        call = UpdateApRoutes(tuple(signed)).encode()
        self._database.queue_update(self._identity.name, call)
        self._counts["routes_published"] += len(signed)
        for entry_id in chosen:
            if entry_id in gone:
                del self._routes[entry_id]
                self._counts["routes_withdrawn"] += 1
            else:
                self._routes[entry_id].due = now + REFRESH * self._rng.uniform(*_JITTER)

    async def _tidy(self) -> None:
        """After a restart: have callers no longer try the entry paths of the run before."""
        with suppress(WorldError, PeerError, trio.TooSlowError):
            found = await self._look() if self._resumed else None
            if found is not None and found.record.public_key == self._identity.public_key:
                self._compare_routes(found)

    def _compare_routes(self, found: Found) -> None:
        """Publish at once what the network lacks, and withdraw what an earlier run left there."""
        known = {route.entry_id for route in found.routes}
        missing = [entry_id for entry_id in self._routes if entry_id not in known]
        for entry_id in missing:
            self._routes[entry_id].due = 0.0
        left = [route for route in found.routes if route.sequence < self._first_sequence]
        for old in left:
            route = Route(NodeId(old.entry_node), EntryId(old.entry_id), old.expires)
            self._routes.setdefault(route.entry_id, _Published(route, 0.0))
        self._resumed = False
        self._counts["routes_missing"] += len(missing)
        if missing or left:
            self.routes_changed()
