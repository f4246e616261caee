"""What this node holds for AP addresses (docs/spec/netdb.md, "Storage").

An entry per AP key: its key record, its routes and, if this node stores the AP4 address, the lease.
Nothing stays longer than its table allows, whatever its submitter wrote into it, and nobody can
fill the store alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from phantom_tun.clock import HOUR
from phantom_tun.ids import ApAddress
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.limits import SourceLimits
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.overrides import NOTHING_IN_FORCE, InForce
from phantom_tun.netdb.rules import (
    KEY_RECORD_TABLE,
    ROUTE_TABLE,
    Caller,
    Circumstances,
)
from phantom_tun.wire.netdb import MAX_ROUTES
from phantom_tun.wire.records import APKeyRecord, APRoute

MAX_ENTRIES = 4_096
"""At about 4 KB each."""
NEW_ENTRIES_PER_NODE = 64
"""Entries that one node may bring per hour; it also carries those of the owners it serves."""
NEW_ENTRIES_PER_PREFIX = 256
"""Entries that the nodes of one /16 (IPv6 /32) may bring per hour."""


@dataclass(frozen=True, slots=True)
class Duty:
    """For which addresses of an AP key this node is one of the storers."""

    ap6: bool
    ap4: bool


@dataclass(slots=True)
class _HeldRoute:
    route: APRoute
    until: float
    """Kept as long as any route that it replaced could be brought again."""


@dataclass(slots=True)
class _Entry:
    ap6: ipaddress.IPv6Address
    record: APKeyRecord | None = None
    lease: ipaddress.IPv4Address | None = None
    routes: dict[bytes, _HeldRoute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Holding:
    """What is held for one address."""

    record: APKeyRecord | None
    routes: tuple[APRoute, ...]


NOTHING = Holding(None, ())


class ApStore:
    """The AP records that this node holds."""

    def __init__(self, network: NetworkParams, *, max_entries: int = MAX_ENTRIES) -> None:
        self._network = network
        self._max_entries = max_entries
        self._entries: dict[bytes, _Entry] = {}
        self._by_ap6: dict[ipaddress.IPv6Address, bytes] = {}
        self._leases: dict[ipaddress.IPv4Address, bytes] = {}
        self._per_node = SourceLimits(rate=NEW_ENTRIES_PER_NODE / HOUR, burst=NEW_ENTRIES_PER_NODE)
        self._per_prefix = SourceLimits(
            rate=NEW_ENTRIES_PER_PREFIX / HOUR, burst=NEW_ENTRIES_PER_PREFIX
        )
        self._view = NOTHING_IN_FORCE
        self.changes = 0
        """Counts what was taken in; whoever writes the store to disk compares."""

    def __len__(self) -> int:
        return len(self._entries)

    def holding(self, address: ApAddress, now: float) -> Holding:
        """What is held for ``address`` and still valid."""
        if isinstance(address, ipaddress.IPv4Address):
            public_key = self.lease_holder(address, now)
        else:
            public_key = self._by_ap6.get(address)
        entry = self._entries.get(public_key) if public_key else None
        if entry is None or address not in {entry.ap6, entry.lease}:
            return NOTHING
        record = entry.record if entry.record and entry.record.expires > now else None
        routes = (held.route for held in entry.routes.values() if held.route.expires > now)
        return Holding(record, tuple(routes))

    def put_key_record(
        self,
        record: APKeyRecord,
        now: float,
        *,
        duty: Duty,
        caller: Caller | None,
        vouched: bool = False,
    ) -> bytes:
        """Take a genuine key record in. ``caller`` None: it is our own, or was held before.

        Returns the AP key that holds the AP4 address the record claims; empty if it claims none or
        that is not for this node to say.

        :raises RuleBroken: which rule forbids it.
        """
        entry = self._entries.get(record.public_key)
        claimed = holder = None
        if duty.ap4 and record.ap4_n is not None:
            claimed = ap4_candidate(self._network, record.public_key, record.ap4_n)
            holder = self.lease_holder(claimed, now)
        free = holder in {None, record.public_key}
        circumstances = Circumstances(
            now,
            held=entry.record if entry is not None else None,
            vouched=vouched,
            banned=record.public_key in self._view.deleted_keys,
            responsible=duty.ap6 or duty.ap4,
            lease_free=free or duty.ap6,
            within_source_limits=entry is not None or self._may_bring(caller, now),
            room=entry is not None or len(self._entries) < self._max_entries,
        )
        KEY_RECORD_TABLE.check_acceptance(record, circumstances)
        entry = entry or self._new_entry(record.public_key, caller, now)
        if entry.record != record or (free and entry.lease != claimed):
            self.changes += 1
        entry.record = record
        self._release(entry)
        if claimed is None:
            return b""
        if free:
            self.settle_lease(claimed, record.public_key)
            entry.lease = claimed
            self._leases[claimed] = record.public_key
        return holder if holder is not None else record.public_key

    def put_route(self, route: APRoute, now: float, *, duty: Duty, caller: Caller | None) -> None:
        """Take a genuine route in; ``caller`` as for :meth:`put_key_record`.

        :raises RuleBroken: which rule forbids it.
        """
        entry = self._entries.get(route.public_key)
        held = entry.routes.get(route.entry_id) if entry is not None else None
        oldest = _oldest(entry) if entry is not None and held is None else None
        circumstances = Circumstances(
            now,
            held=held.route if held is not None else None,
            banned=route.public_key in self._view.deleted_keys,
            responsible=duty.ap6,
            among_newest=oldest is None or oldest.sequence < route.sequence,
            within_source_limits=entry is not None or self._may_bring(caller, now),
            room=entry is not None or len(self._entries) < self._max_entries,
        )
        ROUTE_TABLE.check_acceptance(route, circumstances)
        entry = entry or self._new_entry(route.public_key, caller, now)
        if oldest is not None:
            del entry.routes[oldest.entry_id]
        self.changes += held is None or held.route != route
        until = max(route.expires, held.until if held else 0.0)
        entry.routes[route.entry_id] = _HeldRoute(route, until)

    def lease_holder(self, address: ipaddress.IPv4Address, now: float) -> bytes | None:
        """The AP key with an unexpired lease of ``address``, as far as this node knows, or the one
        that an override command pins it to."""
        pinned = self._view.pinned_keys.get(address)
        if pinned is not None:
            return pinned
        public_key = self._leases.get(address)
        if public_key is None:
            return None
        record = self._entries[public_key].record
        return public_key if record is not None and record.expires > now else None

    def settle_lease(self, address: ipaddress.IPv4Address, winner: bytes) -> None:
        """``address`` belongs to ``winner``: give up a lease of any other key."""
        holder = self._leases.get(address)
        if holder is not None and holder != winner:
            self._release(self._entries[holder])

    def obey(self, view: InForce) -> None:
        """Follow the override commands that are in force from now on."""
        self._view = view
        for address, public_key in view.pinned_keys.items():
            if isinstance(address, ipaddress.IPv4Address):
                self.settle_lease(address, public_key)
        for public_key in view.deleted_keys & self._entries.keys():
            self._drop(public_key)

    def expire(self, now: float, duty_for: Callable[[ApAddress], bool]) -> None:
        """Drop what has run out, and what is stored elsewhere by now."""
        for public_key, entry in list(self._entries.items()):
            if entry.record is not None and entry.record.expires <= now:
                self._release(entry)
                entry.record = None
            if entry.lease is not None and not duty_for(entry.lease):
                self._release(entry)
            entry.routes = {
                entry_id: held for entry_id, held in entry.routes.items() if held.until > now
            }
            useful = entry.lease is not None or (
                (entry.record is not None or entry.routes) and duty_for(entry.ap6)
            )
            if not useful:
                self._drop(public_key)

    def records(self) -> Iterable[tuple[APKeyRecord | None, bool, tuple[APRoute, ...]]]:
        """Everything held, for the file that survives a restart: key record, whether its AP4 lease
        is held here, and the routes."""
        for entry in self._entries.values():
            routes = tuple(held.route for held in entry.routes.values())
            yield entry.record, entry.lease is not None, routes

    def statistics(self) -> dict[str, int]:
        """Counts for people."""
        return {
            "held_aps": len(self._entries),
            "held_leases": len(self._leases),
            "held_routes": sum(len(entry.routes) for entry in self._entries.values()),
        }

    def _drop(self, public_key: bytes) -> None:
        entry = self._entries.pop(public_key)
        self._release(entry)
        del self._by_ap6[entry.ap6]
        self.changes += 1

    def _release(self, entry: _Entry) -> None:
        if entry.lease is not None:
            del self._leases[entry.lease]
            entry.lease = None

    def _new_entry(self, public_key: bytes, caller: Caller | None, now: float) -> _Entry:
        if caller is not None:
            self._per_node.allows(caller.node_id, now)
            for part in caller.wide:
                self._per_prefix.allows(part, now)
        entry = _Entry(ap6_address(self._network, public_key))
        self._entries[public_key] = entry
        self._by_ap6[entry.ap6] = public_key
        return entry

    def _may_bring(self, caller: Caller | None, now: float) -> bool:
        if caller is None:
            return True
        return self._per_node.would_allow(caller.node_id, now) and all(
            self._per_prefix.would_allow(part, now) for part in caller.wide
        )


def _oldest(entry: _Entry) -> APRoute | None:
    """Which route has to make place for one more, if any has."""
    if len(entry.routes) < MAX_ROUTES:
        return None
    return min((held.route for held in entry.routes.values()), key=lambda route: route.sequence)
