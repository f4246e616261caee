"""What a node answers to each of the seven calls, from what it holds itself
(docs/spec/netdb.md, "Calls")."""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import TypeVar

from phantom_tun.crypto.hashes import equal
from phantom_tun.errors import ProtocolViolation, WireError
from phantom_tun.ids import ApAddress
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address, keys_to_read, keys_to_write
from phantom_tun.netdb.book import NodeBook
from phantom_tun.netdb.limits import SourceLimits
from phantom_tun.netdb.network import NetworkParams
from phantom_tun.netdb.overrides import NOTHING_IN_FORCE, InForce, Overrides
from phantom_tun.netdb.rules import (
    MAX_SKEW,
    REGISTRATION_TABLE,
    Caller,
    Circumstances,
    RuleBroken,
)
from phantom_tun.netdb.store import ApStore, Duty
from phantom_tun.netdb.storers import storer_count
from phantom_tun.netdb.table import K
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.wire.netdb import (
    Answer,
    Call,
    CloserNodes,
    ClosestNodes,
    ExtendApLease,
    Held,
    KeyedNode,
    MissedOverrides,
    Override,
    RandomNodes,
    Refusal,
    Registered,
    RegisterNode,
    ReserveAp,
    ResolveAp,
    Stored,
    UpdateApRoutes,
)
from phantom_tun.wire.records import APKeyRecord, NodeRecord, path_key_digest

CALLS_PER_SECOND = 50.0
CALLS_AT_ONCE = 300.0
"""Of one node; what exceeds them is not answered."""
NETWORK_TIMES = 8
"""How many times as many all nodes in one IPv4 /16 or IPv6 /32 may make."""


@dataclass(frozen=True, slots=True)
class OwnNode:
    """What this node says about itself."""

    record: NodeRecord
    path_key: bytes

    def __post_init__(self) -> None:
        if not equal(path_key_digest(self.path_key), self.record.path_key_digest):
            raise ValueError("the path key isn't the one that the own record names")

    @property
    def ip_version(self) -> int | None:
        """By which IP version it reaches others, if it has addresses of one only."""
        versions = {ip.version for ip in self.record.ips}
        return versions.pop() if len(versions) == 1 else None


class Server:
    """Answers calls; holds no state of its own but limits and counts."""

    def __init__(
        self,
        network: NetworkParams,
        own: OwnNode,
        book: NodeBook,
        store: ApStore,
        verifier: Verifier,
        *,
        overrides: Overrides | None = None,
    ) -> None:
        """``overrides``: the commands known; None knows and takes none."""
        self.own = own
        self.view = NOTHING_IN_FORCE
        """What override commands are in force."""
        self._network = network
        self._book = book
        self._store = store
        self._verifier = verifier
        self._overrides = Overrides(network, (), ()) if overrides is None else overrides
        self._limits = SourceLimits(rate=CALLS_PER_SECOND, burst=CALLS_AT_ONCE)
        self._network_limits = SourceLimits(
            rate=NETWORK_TIMES * CALLS_PER_SECOND, burst=NETWORK_TIMES * CALLS_AT_ONCE
        )
        self._counts: Counter[str] = Counter()

    def answer(
        self, call: Call, now: float, caller: Caller | None, *, vouched: bool = False
    ) -> Answer:
        """Answer a call. ``caller`` None: this node asks itself. ``vouched``: the record in the
        call is held by most of those that should hold it.

        :raises ProtocolViolation: the caller asks too often, or is banned.
        """
        if caller is not None:
            self.admit(caller, now)
        match call:
            case ClosestNodes(target=target):
                return CloserNodes(self._closest(target, now))
            case RegisterNode():
                return self._register(call, now, caller)
            case RandomNodes(near=near):
                return self._random(near, now)
            case ResolveAp():
                return self._resolve(call.ip, now, full=call.full)
            case ReserveAp(record=encoded) | ExtendApLease(record=encoded):
                return self._store_key_record(encoded, now, caller, vouched=vouched)
            case UpdateApRoutes(routes=routes):
                return self._store_routes(routes, now, caller)
            case MissedOverrides(number=number, signer=signer):
                return self._overrides.page(number, signer)
            case Override():
                raise ProtocolViolation("override commands are taken elsewhere")

    def admit(self, caller: Caller, now: float) -> None:
        """Count a call of ``caller``, which shows that it is there.

        :raises ProtocolViolation: it asks too often, or all in its network do, or it is banned.
        """
        if not self._limits.allows(caller.node_id, now):
            self._counts["calls_over_limit"] += 1
            raise ProtocolViolation("a node asks more often than it may")
        if not all(self._network_limits.allows(part, now) for part in caller.wide):
            self._counts["calls_over_network_limit"] += 1
            raise ProtocolViolation("the nodes of a network ask more often than they may")
        if self.view.bans_peer(caller.node_id, caller.address):
            self._counts["calls_of_banned_nodes"] += 1
            raise ProtocolViolation("a banned node calls")
        self._book.succeeded(caller.node_id, now)

    def obey(self, view: InForce) -> list[NodeRecord]:
        """Follow the override commands that are in force from now on, in everything. Returns nodes
        that are no longer banned."""
        self.view = view
        self._store.obey(view)
        return self._book.obey(view)

    def duty(self, address: ApAddress, now: float) -> bool:
        """Whether this node is one of the storers of ``address``, by its own clock or by one that
        differs as much as clocks may."""
        network_id = self._network.network_id
        keys = {
            *keys_to_write(network_id, address, now + MAX_SKEW),
            *keys_to_read(network_id, address, now - MAX_SKEW),
        }
        return any(self._book.is_storer(key, now, storer_count(address)) for key in keys)

    def claimed(self, record: APKeyRecord) -> ipaddress.IPv4Address | None:
        """The AP4 address that a key record claims."""
        if record.ap4_n is None:
            return None
        return ap4_candidate(self._network, record.public_key, record.ap4_n)

    def statistics(self) -> dict[str, int]:
        """Counts for people: calls over the limit, and refused records by rule."""
        return dict(self._counts)

    def _closest(self, target: bytes, now: float) -> tuple[bytes, ...]:
        return tuple(record.encoded for record in self._book.closest(target, K, now))

    def _register(self, call: RegisterNode, now: float, caller: Caller | None) -> Registered:
        refusal = Refusal.NONE
        nodes: tuple[bytes, ...] = ()
        try:
            record = self._verifier.node(call.record)
            REGISTRATION_TABLE.check_acceptance(
                record,
                Circumstances(
                    now,
                    banned=self.view.bans(record),
                    caller=caller,
                    path_key=call.path_key,
                    public=self.own.record.public,
                ),
            )
            nodes = self._closest(record.node_id, now)
            if record.dialable:
                self._book.met(record, now, call.path_key)
            self._overrides.compare(record.ref(self.own.ip_version), call.commands, now)
        except (WireError, RuleBroken) as error:
            refusal = self._refused(error)
        return Registered(
            int(refusal),
            self.own.record.encoded,
            self.own.path_key,
            nodes,
            self._overrides.digest(now),
        )

    def _random(self, near: bytes, now: float) -> KeyedNode:
        found = self._book.keyed_closest(near, now)
        if found is None:
            return KeyedNode(self.own.record.encoded, self.own.path_key)
        return KeyedNode(found.record.encoded, found.path_key)

    def _resolve(self, address: ApAddress, now: float, *, full: bool) -> Held:
        holding = self._store.holding(address, now)
        record = holding.record
        if record is None:
            key = holding.routes[0].public_key if holding.routes and full else b""
            routes = tuple(route.encoded for route in holding.routes) if full else ()
            return Held(key, 0, b"", b"", routes)
        return Held(
            record.public_key,
            record.sequence,
            record.digest,
            record.encoded if full else b"",
            tuple(route.encoded for route in holding.routes) if full else (),
        )

    def _store_key_record(
        self, encoded: bytes, now: float, caller: Caller | None, *, vouched: bool
    ) -> Stored:
        holder = b""
        try:
            record = self._verifier.key_record(encoded)
            claimed = self.claimed(record)
            duty = Duty(
                ap6=self.duty(ap6_address(self._network, record.public_key), now),
                ap4=claimed is not None and self.duty(claimed, now),
            )
            if claimed is not None and duty.ap4:
                holder = self._store.lease_holder(claimed, now) or b""
            holder = self._store.put_key_record(
                record, now, duty=duty, caller=caller, vouched=vouched
            )
        except (WireError, RuleBroken) as error:
            return Stored(int(self._refused(error)), holder)
        return Stored(int(Refusal.NONE), holder)

    def _store_routes(
        self, encoded: tuple[bytes, ...], now: float, caller: Caller | None
    ) -> Stored:
        first = Refusal.NONE
        for item in encoded:
            try:
                route = self._verifier.route(item)
                duty = Duty(self.duty(ap6_address(self._network, route.public_key), now), ap4=False)
                self._store.put_route(route, now, duty=duty, caller=caller)
            except (WireError, RuleBroken) as error:
                first = first or self._refused(error)
        return Stored(int(first), b"")

    def _refused(self, error: WireError | RuleBroken) -> Refusal:
        refusal = error.refusal if isinstance(error, RuleBroken) else Refusal.MALFORMED
        self._counts[f"refused_{refusal.name.lower()}"] += 1
        return refusal


_A = TypeVar("_A", bound=Answer)


def expect(answer: Answer, kind: type[_A]) -> _A:
    """``answer``, if it is of the ``kind`` that the call asks for.

    :raises ProtocolViolation: it is of another kind.
    """
    if not isinstance(answer, kind):
        raise ProtocolViolation("a netdb answer is of another kind than the call asks for")
    return answer
