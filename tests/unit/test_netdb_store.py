"""What a storer holds, for whom, and for how long."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest

from phantom_tun.clock import HOUR, MINUTE
from phantom_tun.ids import ApAddress, NodeId
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.overrides import NOTHING_IN_FORCE, InForce
from phantom_tun.netdb.rules import Caller, RuleBroken
from phantom_tun.netdb.store import (
    NEW_ENTRIES_PER_NODE,
    NEW_ENTRIES_PER_PREFIX,
    NOTHING,
    ApStore,
    Duty,
)
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker
from phantom_tun.wire.netdb import MAX_ROUTES, Refusal
from phantom_tun.wire.records import APKeyRecord

BOTH, ONLY6, ONLY4, NEITHER = (
    Duty(True, True),
    Duty(True, False),
    Duty(False, True),
    Duty(False, False),
)
ENTRY = NodeId(b"e" * 32)
AP = ApMaker(1)
AP6 = ap6_address(NETWORK, AP.key.public)
AP4 = ap4_candidate(NETWORK, AP.key.public, 0)


def caller(number: int = 1, ip: str = "11.1.0.1") -> Caller:
    return Caller(NodeId(number.to_bytes(32, "big")), ipaddress.ip_address(ip))


def refusal(action: Callable[[], object]) -> Refusal:
    with pytest.raises(RuleBroken) as caught:
        action()
    return caught.value.refusal


@pytest.fixture
def store() -> ApStore:
    return ApStore(NETWORK)


@pytest.fixture
def rival(monkeypatch: pytest.MonkeyPatch) -> ApMaker:
    """Another identity, whose candidate 0 is the AP4 address of ``AP``."""
    other = ApMaker(2)

    def colliding(_: object, public_key: bytes, n: int) -> ipaddress.IPv4Address:
        return AP4 if n == 0 else ap4_candidate(NETWORK, public_key, n)

    monkeypatch.setattr("phantom_tun.netdb.store.ap4_candidate", colliding)
    return other


class TestKeyRecords:
    def test_a_storer_of_both_addresses_answers_for_both(self, store: ApStore) -> None:
        record = AP.record()
        holder = store.put_key_record(record, NOW, duty=BOTH, caller=caller())
        assert holder == AP.key.public
        assert store.holding(AP6, NOW).record == record
        assert store.holding(AP4, NOW).record == record
        assert store.holding(ap6_address(NETWORK, b"x" * 32), NOW) is NOTHING

    def test_a_storer_of_the_ap6_address_says_nothing_about_the_lease(self, store: ApStore) -> None:
        assert store.put_key_record(AP.record(), NOW, duty=ONLY6, caller=caller()) == b""
        assert store.holding(AP6, NOW).record == AP.record()
        assert store.holding(AP4, NOW) is NOTHING

    def test_a_record_without_ap4_holds_no_lease(self, store: ApStore) -> None:
        record = AP.record(ap4_n=None)
        assert store.put_key_record(record, NOW, duty=BOTH, caller=caller()) == b""
        assert store.holding(AP4, NOW) is NOTHING

    def test_who_isn_t_responsible_refuses(self, store: ApStore) -> None:
        assert (
            refusal(lambda: store.put_key_record(AP.record(), NOW, duty=NEITHER, caller=caller()))
            is Refusal.NOT_RESPONSIBLE
        )
        assert len(store) == 0

    def test_a_higher_sequence_replaces_and_a_lower_one_is_refused(self, store: ApStore) -> None:
        newer = AP.record(NOW + 60, sequence=2)
        store.put_key_record(AP.record(), NOW, duty=BOTH, caller=caller())
        store.put_key_record(newer, NOW + 60, duty=BOTH, caller=caller())
        assert (
            refusal(lambda: store.put_key_record(AP.record(), NOW, duty=BOTH, caller=caller()))
            is Refusal.SEQUENCE
        )
        assert store.holding(AP6, NOW + 60).record == newer

    def test_the_same_record_again_is_a_refresh(self, store: ApStore) -> None:
        store.put_key_record(AP.record(), NOW, duty=BOTH, caller=caller())
        later = NOW + HOUR
        assert store.put_key_record(AP.record(), later, duty=BOTH, caller=caller()) == AP.key.public

    def test_an_old_record_needs_vouching(self, store: ApStore) -> None:
        later = NOW + HOUR

        def put(*, vouched: bool = False) -> bytes:
            return store.put_key_record(
                AP.record(), later, duty=BOTH, caller=caller(), vouched=vouched
            )

        assert refusal(put) is Refusal.TOO_OLD
        assert put(vouched=True) == AP.key.public

    def test_nothing_is_shown_after_it_expired(self, store: ApStore) -> None:
        store.put_key_record(AP.record(lifetime=HOUR), NOW, duty=BOTH, caller=caller())
        assert store.holding(AP6, NOW + HOUR - 1).record is not None
        assert store.holding(AP6, NOW + HOUR).record is None
        assert store.holding(AP4, NOW + HOUR) is NOTHING


class TestLeases:
    def test_the_first_key_keeps_the_address(self, store: ApStore, rival: ApMaker) -> None:
        store.put_key_record(AP.record(), NOW, duty=BOTH, caller=caller())
        put = lambda: store.put_key_record(rival.record(), NOW, duty=ONLY4, caller=caller())  # noqa: E731
        assert refusal(put) is Refusal.LEASE_HELD
        earlier = rival.record(NOW - 200)
        put = lambda: store.put_key_record(earlier, NOW, duty=ONLY4, caller=caller())  # noqa: E731
        assert refusal(put) is Refusal.LEASE_HELD
        assert store.lease_holder(AP4, NOW) == AP.key.public

    def test_a_storer_of_the_ap6_address_takes_the_record_without_the_lease(
        self, store: ApStore, rival: ApMaker
    ) -> None:
        store.put_key_record(AP.record(), NOW, duty=BOTH, caller=caller())
        holder = store.put_key_record(rival.record(), NOW, duty=BOTH, caller=caller())
        assert holder == AP.key.public
        assert store.holding(ap6_address(NETWORK, rival.key.public), NOW).record == rival.record()
        assert store.holding(AP4, NOW).record == AP.record()

    def test_an_expired_lease_is_free(self, store: ApStore, rival: ApMaker) -> None:
        store.put_key_record(AP.record(lifetime=HOUR), NOW, duty=BOTH, caller=caller())
        later = NOW + HOUR
        assert store.lease_holder(AP4, later) is None
        record = rival.record(later)
        assert store.put_key_record(record, later, duty=BOTH, caller=caller()) == rival.key.public
        store.expire(later, lambda _: True)
        assert store.holding(AP4, later).record == record

    def test_a_key_that_moves_on_gives_its_lease_back(self, store: ApStore, rival: ApMaker) -> None:
        store.put_key_record(AP.record(), NOW, duty=BOTH, caller=caller())
        store.put_key_record(AP.record(ap4_n=1, sequence=2), NOW, duty=BOTH, caller=caller())
        assert store.lease_holder(AP4, NOW) is None
        assert store.put_key_record(rival.record(), NOW, duty=BOTH, caller=caller()) == (
            rival.key.public
        )

    def test_settling_follows_the_majority(self, store: ApStore, rival: ApMaker) -> None:
        store.put_key_record(AP.record(), NOW, duty=BOTH, caller=caller())
        store.settle_lease(AP4, AP.key.public)
        assert store.lease_holder(AP4, NOW) == AP.key.public
        store.settle_lease(AP4, rival.key.public)
        assert store.lease_holder(AP4, NOW) is None
        assert store.holding(AP6, NOW).record == AP.record()
        assert store.put_key_record(rival.record(), NOW, duty=ONLY4, caller=caller()) == (
            rival.key.public
        )


class TestOverrides:
    def test_a_deleted_key_is_dropped_and_not_taken_again(self, store: ApStore) -> None:
        route = AP.route(entry_node=ENTRY)
        store.put_key_record(AP.record(), NOW, duty=BOTH, caller=caller())
        store.put_route(route, NOW, duty=ONLY6, caller=caller())
        store.obey(InForce(deleted_keys=frozenset({AP.key.public, b"x" * 32})))
        assert len(store) == 0
        assert store.holding(AP4, NOW) is NOTHING
        newer = AP.record(sequence=2)
        assert (
            refusal(lambda: store.put_key_record(newer, NOW, duty=BOTH, caller=caller()))
            is Refusal.BANNED
        )
        assert (
            refusal(lambda: store.put_route(route, NOW, duty=ONLY6, caller=caller()))
            is Refusal.BANNED
        )
        store.obey(NOTHING_IN_FORCE)
        store.put_key_record(newer, NOW, duty=BOTH, caller=caller())

    def test_a_pinned_address_changes_hands(self, store: ApStore, rival: ApMaker) -> None:
        store.put_key_record(AP.record(), NOW, duty=BOTH, caller=caller())
        store.obey(InForce(pinned_keys={AP4: rival.key.public}))
        assert store.lease_holder(AP4, NOW) == rival.key.public
        assert store.holding(AP4, NOW) is NOTHING
        again = AP.record(sequence=2)
        assert (
            refusal(lambda: store.put_key_record(again, NOW, duty=ONLY4, caller=caller()))
            is Refusal.LEASE_HELD
        )
        holder = store.put_key_record(rival.record(), NOW, duty=BOTH, caller=caller())
        assert holder == rival.key.public
        assert store.holding(AP4, NOW).record == rival.record()

    def test_a_pin_doesn_t_give_the_address_to_a_record_that_claims_another(
        self, store: ApStore
    ) -> None:
        store.put_key_record(AP.record(ap4_n=1), NOW, duty=BOTH, caller=caller())
        store.obey(InForce(pinned_keys={AP4: AP.key.public}))
        assert store.holding(AP4, NOW) is NOTHING


class TestRoutes:
    def test_routes_lie_under_the_ap6_address(self, store: ApStore) -> None:
        route = AP.route(entry_node=ENTRY)
        store.put_route(route, NOW, duty=ONLY6, caller=caller())
        assert store.holding(AP6, NOW).routes == (route,)
        assert store.holding(AP6, NOW).record is None

    def test_only_storers_of_the_ap6_address_take_them(self, store: ApStore) -> None:
        route = AP.route(entry_node=ENTRY)
        assert (
            refusal(lambda: store.put_route(route, NOW, duty=ONLY4, caller=caller()))
            is Refusal.NOT_RESPONSIBLE
        )

    def test_a_higher_sequence_replaces_under_the_same_entry_id(self, store: ApStore) -> None:
        old, new = AP.route(entry_node=ENTRY), AP.route(entry_node=ENTRY, sequence=2)
        store.put_route(old, NOW, duty=ONLY6, caller=caller())
        store.put_route(new, NOW, duty=ONLY6, caller=caller())
        assert store.holding(AP6, NOW).routes == (new,)
        assert (
            refusal(lambda: store.put_route(old, NOW, duty=ONLY6, caller=caller()))
            is Refusal.SEQUENCE
        )

    def test_a_withdrawn_route_can_t_be_brought_back(self, store: ApStore) -> None:
        old = AP.route(entry_node=ENTRY, lifetime=HOUR)
        withdrawn = AP.route(entry_node=ENTRY, sequence=2, lifetime=MINUTE)
        store.put_route(old, NOW, duty=ONLY6, caller=caller())
        store.put_route(withdrawn, NOW, duty=ONLY6, caller=caller())
        later = NOW + 2 * MINUTE
        store.expire(later, lambda _: True)
        assert store.holding(AP6, later).routes == ()
        assert (
            refusal(lambda: store.put_route(old, later, duty=ONLY6, caller=caller()))
            is Refusal.SEQUENCE
        )
        store.expire(NOW + HOUR, lambda _: True)
        assert len(store) == 0

    def test_the_newest_sixteen_are_kept(self, store: ApStore) -> None:
        for number in range(MAX_ROUTES):
            route = AP.route(entry_node=ENTRY, entry=number, sequence=10 + number)
            store.put_route(route, NOW, duty=ONLY6, caller=caller())
        stale = AP.route(entry_node=ENTRY, entry=99, sequence=10)
        assert (
            refusal(lambda: store.put_route(stale, NOW, duty=ONLY6, caller=caller()))
            is Refusal.TOO_MANY_ROUTES
        )
        fresh = AP.route(entry_node=ENTRY, entry=99, sequence=99)
        store.put_route(fresh, NOW, duty=ONLY6, caller=caller())
        held = store.holding(AP6, NOW).routes
        assert len(held) == MAX_ROUTES
        assert fresh in held
        assert min(route.sequence for route in held) == 11


class TestBounds:
    def test_one_node_can_bring_only_so_many_new_identities(self, store: ApStore) -> None:
        for number in range(NEW_ENTRIES_PER_NODE):
            store.put_key_record(ApMaker(number).record(), NOW, duty=ONLY6, caller=caller())
        more = ApMaker(999)
        assert (
            refusal(lambda: store.put_key_record(more.record(), NOW, duty=ONLY6, caller=caller()))
            is Refusal.SOURCE_LIMIT
        )
        route = more.route(entry_node=ENTRY)
        assert (
            refusal(lambda: store.put_route(route, NOW, duty=ONLY6, caller=caller()))
            is Refusal.SOURCE_LIMIT
        )
        store.put_key_record(more.record(), NOW, duty=ONLY6, caller=caller(2))
        known = ApMaker(5).record(NOW, sequence=2)
        store.put_key_record(known, NOW, duty=ONLY6, caller=caller())

    def test_one_prefix_can_bring_only_so_many(self, store: ApStore) -> None:
        for number in range(NEW_ENTRIES_PER_PREFIX):
            store.put_route(
                ApMaker(number).route(entry_node=ENTRY),
                NOW,
                duty=ONLY6,
                caller=caller(number, f"11.1.{number // 8}.1"),
            )
        more = ApMaker(999).route(entry_node=ENTRY)

        def put(source: Caller) -> None:
            store.put_route(more, NOW, duty=ONLY6, caller=source)

        assert refusal(lambda: put(caller(9_999, "11.1.200.1"))) is Refusal.SOURCE_LIMIT
        put(caller(9_999, "11.2.0.1"))

    def test_a_full_store_takes_no_new_identity(self) -> None:
        store = ApStore(NETWORK, max_entries=2)
        for number in (1, 2):
            store.put_key_record(ApMaker(number).record(), NOW, duty=ONLY6, caller=None)
        third = ApMaker(3)
        assert (
            refusal(lambda: store.put_key_record(third.record(), NOW, duty=ONLY6, caller=None))
            is Refusal.STORE_FULL
        )
        route = third.route(entry_node=ENTRY)
        assert (
            refusal(lambda: store.put_route(route, NOW, duty=ONLY6, caller=None))
            is Refusal.STORE_FULL
        )
        store.put_key_record(ApMaker(2).record(sequence=2), NOW, duty=ONLY6, caller=None)
        assert len(store) == 2

    def test_expiry_is_not_up_to_the_submitter(self, store: ApStore) -> None:
        store.put_key_record(AP.record(lifetime=HOUR), NOW, duty=BOTH, caller=caller())
        store.put_route(AP.route(entry_node=ENTRY), NOW, duty=ONLY6, caller=caller())
        store.expire(NOW + HOUR - 1, lambda _: True)
        assert len(store) == 1
        store.expire(NOW + HOUR, lambda _: True)
        assert len(store) == 0
        assert store.statistics() == {"held_aps": 0, "held_leases": 0, "held_routes": 0}

    def test_what_is_stored_elsewhere_by_now_is_dropped(self, store: ApStore) -> None:
        store.put_key_record(AP.record(), NOW, duty=BOTH, caller=caller())

        def only_ap4(address: ApAddress) -> bool:
            return address == AP4

        store.expire(NOW, only_ap4)
        assert store.holding(AP4, NOW).record is not None
        store.expire(NOW, lambda _: False)
        assert len(store) == 0
        assert store.holding(AP4, NOW) is NOTHING

    def test_everything_held_can_be_listed(self, store: ApStore) -> None:
        record, route = AP.record(), AP.route(entry_node=ENTRY)
        store.put_key_record(record, NOW, duty=BOTH, caller=caller())
        store.put_route(route, NOW, duty=ONLY6, caller=caller())
        listed: list[tuple[APKeyRecord | None, bool, tuple[object, ...]]] = list(store.records())
        assert listed == [(record, True, (route,))]
