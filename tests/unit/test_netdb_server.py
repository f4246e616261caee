"""What a node answers, and to whom it doesn't."""

from __future__ import annotations

import ipaddress
import random
from typing import Any

import msgspec
import pytest

from phantom_tun.clock import HOUR
from phantom_tun.errors import ProtocolViolation
from phantom_tun.ids import NodeId
from phantom_tun.netdb import proof
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.book import NodeBook
from phantom_tun.netdb.overrides import NOTHING_IN_FORCE, InForce
from phantom_tun.netdb.rules import (
    KEY_RECORD_TABLE,
    MAX_SKEW,
    REGISTRATION_TABLE,
    ROUTE_TABLE,
    Caller,
    Table,
)
from phantom_tun.netdb.server import CALLS_AT_ONCE, NETWORK_TIMES, OwnNode, Server, expect
from phantom_tun.netdb.store import NEW_ENTRIES_PER_NODE, ApStore
from phantom_tun.netdb.table import K
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker, NodeMaker
from phantom_tun.wire.netdb import (
    MAX_ROUTES,
    CloserNodes,
    ClosestNodes,
    ExtendApLease,
    Held,
    KeyedNode,
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
from phantom_tun.wire.records import (
    APKeyRecord,
    APRoute,
    Capability,
    NodeAddress,
    NodeRecord,
)

ME = NodeMaker(0)
PEER = NodeMaker(1)
AP = ApMaker(1)
AP6 = ap6_address(NETWORK, AP.key.public)
AP4 = ap4_candidate(NETWORK, AP.key.public, 0)


class World:
    """One node and everything it knows."""

    def __init__(self) -> None:
        self.book = NodeBook(ME.record().node_id, random.Random(1))
        self.store = ApStore(NETWORK)
        own = OwnNode(ME.record(), ME.path_key)
        self.server = Server(NETWORK, own, self.book, self.store, Verifier(NETWORK))

    def knows(self, count: int) -> None:
        for number in range(100, 100 + count):
            maker = NodeMaker(number)
            self.book.met(maker.record(), NOW, maker.path_key)


@pytest.fixture
def world() -> World:
    return World()


def caller(maker: NodeMaker = PEER) -> Caller:
    return Caller(maker.record().node_id, maker.ip)


def register(maker: NodeMaker = PEER) -> RegisterNode:
    return RegisterNode(maker.record().encoded, maker.path_key)


class TestRegistering:
    def test_both_sides_get_to_know_one_another(self, world: World) -> None:
        world.knows(5)
        answer = expect(world.server.answer(register(), NOW, caller()), Registered)
        assert answer.refusal == Refusal.NONE
        assert (answer.record, answer.path_key) == (ME.record().encoded, ME.path_key)
        assert len(answer.nodes) == 5
        assert PEER.record().encoded not in answer.nodes
        assert PEER.record() in [candidate.record for candidate in world.book.candidates(NOW)]

    def test_nobody_registers_another_node(self, world: World) -> None:
        answer = expect(world.server.answer(register(), NOW, caller(NodeMaker(2))), Registered)
        assert answer.refusal == Refusal.NOT_THE_OWNER
        assert answer.nodes == ()
        assert len(world.book) == 0
        assert world.server.statistics() == {"refused_not_the_owner": 1}

    def test_a_wrong_path_key_is_refused(self, world: World) -> None:
        call = RegisterNode(PEER.record().encoded, NodeMaker(2).path_key)
        answer = expect(world.server.answer(call, NOW, caller()), Registered)
        assert answer.refusal == Refusal.PATH_KEY

    def test_noise_and_forgeries_are_refused(self, world: World) -> None:
        noise = RegisterNode(b"noise", PEER.path_key)
        assert expect(world.server.answer(noise, NOW, caller()), Registered).refusal == (
            Refusal.MALFORMED
        )
        forged = msgspec.structs.replace(PEER.record(), expires=int(NOW + HOUR)).encoded
        answer = world.server.answer(RegisterNode(forged, PEER.path_key), NOW, caller())
        assert expect(answer, Registered).refusal == Refusal.SIGNATURE

    def test_a_node_that_can_t_be_dialed_is_answered_but_not_named(self, world: World) -> None:
        hidden = PEER.record(capabilities=Capability.RELAY)
        call = RegisterNode(hidden.encoded, PEER.path_key)
        answer = expect(world.server.answer(call, NOW, caller()), Registered)
        assert answer.refusal == Refusal.NONE
        assert len(world.book) == 0

    def test_the_own_path_key_must_be_the_one_of_the_own_record(self) -> None:
        with pytest.raises(ValueError, match="path key"):
            OwnNode(ME.record(), PEER.path_key)


class TestOwnNode:
    def test_the_ip_version_follows_from_the_addresses(self) -> None:
        four = NodeAddress.of(ipaddress.IPv4Address("11.0.0.1"), 443)
        six = NodeAddress.of(ipaddress.IPv6Address("2a00::1"), 443)
        versions = [
            OwnNode(
                msgspec.structs.replace(ME.record(), addresses=addresses), ME.path_key
            ).ip_version
            for addresses in ((four,), (six,), (four, six))
        ]
        assert versions == [4, 6, None]


class TestNaming:
    def test_closest_nodes(self, world: World) -> None:
        world.knows(60)
        answer = expect(world.server.answer(ClosestNodes(bytes(32)), NOW, caller()), CloserNodes)
        wanted = world.book.closest(bytes(32), K, NOW)
        assert list(answer.nodes) == [record.encoded for record in wanted]
        assert len(answer.nodes) == K

    def test_random_nodes_names_the_keyed_node_closest_to_the_id(self, world: World) -> None:
        world.knows(5)
        drawn = NodeMaker(102)
        call = RandomNodes(drawn.record().node_id)
        answer = expect(world.server.answer(call, NOW, caller()), KeyedNode)
        assert (answer.record, answer.path_key) == (drawn.record().encoded, drawn.path_key)

    def test_a_node_that_knows_nobody_names_itself(self, world: World) -> None:
        answer = expect(world.server.answer(RandomNodes(bytes(32)), NOW, caller()), KeyedNode)
        assert answer.record == ME.record().encoded

    def test_a_call_is_a_sign_of_life(self, world: World) -> None:
        world.server.answer(register(), NOW, caller())
        world.book.failed(PEER.record().node_id, NOW)
        world.server.answer(ClosestNodes(bytes(32)), NOW + 1, caller())
        assert len(world.book.candidates(NOW + 1)) == 1


class TestStoring:
    def test_a_key_record_is_stored_and_found(self, world: World) -> None:
        for call in (ReserveAp(AP.record().encoded), ExtendApLease(AP.record().encoded)):
            stored = expect(world.server.answer(call, NOW, caller()), Stored)
            assert stored == Stored(Refusal.NONE, AP.key.public)
        for address in (AP6, AP4):
            held = expect(world.server.answer(ResolveAp.of(address), NOW, caller()), Held)
            assert held.key_record == AP.record().encoded
            digest = expect(
                world.server.answer(ResolveAp.of(address, full=False), NOW, caller()), Held
            )
            assert digest == Held(AP.key.public, 1, AP.record().digest, b"", ())

    def test_nothing_is_held_for_an_unknown_address(self, world: World) -> None:
        answer = world.server.answer(ResolveAp.of(AP6), NOW, caller())
        assert answer == Held(b"", 0, b"", b"", ())

    def test_routes_are_stored_and_found(self, world: World) -> None:
        routes = tuple(AP.route(entry_node=NodeId(bytes(32)), entry=n).encoded for n in (1, 2))
        assert world.server.answer(UpdateApRoutes(routes), NOW, caller()) == Stored(0, b"")
        held = expect(world.server.answer(ResolveAp.of(AP6), NOW, caller()), Held)
        assert set(held.routes) == set(routes)
        assert held.digest == b""
        digest = world.server.answer(ResolveAp.of(AP6, full=False), NOW, caller())
        assert digest == Held(b"", 0, b"", b"", ())

    def test_the_first_refusal_of_several_routes_is_told(self, world: World) -> None:
        good = AP.route(entry_node=NodeId(bytes(32)), entry=1)
        old = AP.route(NOW - HOUR, entry_node=NodeId(bytes(32)), entry=2)
        call = UpdateApRoutes((old.encoded, b"noise", good.encoded))
        assert world.server.answer(call, NOW, caller()) == Stored(Refusal.EXPIRED, b"")
        assert len(world.store.holding(AP6, NOW).routes) == 1

    def test_noise_and_forgeries_are_refused(self, world: World) -> None:
        noise = world.server.answer(ReserveAp(b"noise"), NOW, caller())
        assert noise == Stored(Refusal.MALFORMED, b"")
        forged = msgspec.structs.replace(AP.record(), ap4_n=7).encoded
        assert world.server.answer(ReserveAp(forged), NOW, caller()) == (
            Stored(Refusal.SIGNATURE, b"")
        )

    def test_an_old_record_is_refused_unless_vouched_for(self, world: World) -> None:
        late = NOW + MAX_SKEW + 1
        call = ReserveAp(AP.record().encoded)
        assert world.server.answer(call, late, caller()) == Stored(Refusal.TOO_OLD, b"")
        assert world.server.answer(call, late, caller(), vouched=True) == (
            Stored(Refusal.NONE, AP.key.public)
        )

    def test_a_refusal_tells_who_holds_the_address(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in ("store", "server"):
            monkeypatch.setattr(f"phantom_tun.netdb.{module}.ap4_candidate", lambda *_: AP4)
        world.server.answer(ReserveAp(AP.record().encoded), NOW, caller())
        rival = ReserveAp(ApMaker(2).record().encoded)
        stored = expect(world.server.answer(rival, NOW, caller()), Stored)
        assert stored == Stored(Refusal.NONE, AP.key.public)
        old = ReserveAp(ApMaker(3).record(NOW - HOUR).encoded)
        refused = expect(world.server.answer(old, NOW, caller()), Stored)
        assert refused == Stored(Refusal.TOO_OLD, AP.key.public)

    def test_far_away_records_are_refused(self, world: World) -> None:
        world.knows(300)
        refusals = set()
        for number in range(40):
            call = ReserveAp(ApMaker(number).record(ap4_n=None).encoded)
            refusals.add(expect(world.server.answer(call, NOW, caller()), Stored).refusal)
        assert refusals == {Refusal.NONE, Refusal.NOT_RESPONSIBLE}


class TestEveryRule:
    """Each rule of the tables refuses something that a real call can bring, and the refusal that
    the caller is told is its own."""

    def test_registrations(self, world: World) -> None:
        told = set()

        def refused(
            wanted: Refusal,
            record: NodeRecord,
            *,
            now: float = NOW,
            by: Caller | None = None,
            key: bytes = PEER.path_key,
        ) -> None:
            call = RegisterNode(record.encoded, key)
            answer = expect(world.server.answer(call, now, by or caller()), Registered)
            assert answer.refusal == wanted
            assert answer.nodes == ()
            told.add(wanted)

        good = PEER.record()
        private = NodeMaker(1, address=ipaddress.IPv4Address("192.168.1.1"))
        elsewhere = Caller(good.node_id, ipaddress.IPv4Address("99.1.0.1"))
        refused(Refusal.LIFETIME, PEER.record(lifetime=27 * HOUR))
        refused(Refusal.ADDRESS, NodeMaker(1, address=NETWORK.ap4[70_000]).record())
        refused(Refusal.ADDRESS, private.record(), by=caller(private))
        refused(Refusal.ADDRESS, good, by=elsewhere)
        refused(Refusal.PROOF_OF_WORK, unworked(PEER))
        refused(
            Refusal.SIGNATURE, msgspec.structs.replace(good, pow=good.pow, families=(bytes(16),))
        )
        refused(Refusal.EXPIRED, good, now=NOW + 30 * HOUR)
        refused(Refusal.FROM_THE_FUTURE, good, now=NOW - MAX_SKEW - 1)
        refused(Refusal.NOT_THE_OWNER, good, by=caller(NodeMaker(2)))
        refused(Refusal.PATH_KEY, good, key=ME.path_key)
        world.server.obey(InForce(banned_prefixes=(ipaddress.IPv4Network("11.1.0.1/32"),)))
        near = Caller(good.node_id, ipaddress.IPv4Address("11.1.0.9"))
        refused(Refusal.BANNED, good, by=near)
        assert len(world.book) == 0
        assert told == refusals_of(REGISTRATION_TABLE)

    def test_key_records(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        told = set()

        def refused(wanted: Refusal, record: APKeyRecord, *, now: float = NOW) -> None:
            held = len(world.store)
            for call in (ReserveAp(record.encoded), ExtendApLease(record.encoded)):
                stored = expect(world.server.answer(call, now, caller()), Stored)
                assert stored.refusal == wanted
            assert len(world.store) == held
            told.add(wanted)

        world.server.answer(ReserveAp(AP.record(sequence=5).encoded), NOW, caller())
        other = ApMaker(2)
        refused(Refusal.LIFETIME, other.record(lifetime=25 * HOUR))
        refused(Refusal.SIGNATURE, msgspec.structs.replace(other.record(), sequence=9))
        refused(Refusal.EXPIRED, other.record(lifetime=HOUR), now=NOW + HOUR)
        refused(Refusal.FROM_THE_FUTURE, other.record(NOW + MAX_SKEW + 1))
        refused(Refusal.SEQUENCE, AP.record(sequence=4))
        refused(Refusal.SEQUENCE, AP.record(NOW + 1, sequence=5))
        refused(Refusal.TOO_OLD, other.record(NOW - MAX_SKEW - 1))
        world.server.obey(InForce(deleted_keys=frozenset({other.key.public})))
        refused(Refusal.BANNED, other.record())
        world.server.obey(NOTHING_IN_FORCE)
        with monkeypatch.context() as only_ap4:
            only_ap4.setattr(
                world.server, "duty", lambda ip, _now: isinstance(ip, ipaddress.IPv4Address)
            )
            for module in ("store", "server"):
                only_ap4.setattr(f"phantom_tun.netdb.{module}.ap4_candidate", lambda *_: AP4)
            refused(Refusal.LEASE_HELD, other.record())
        with monkeypatch.context() as nowhere:
            nowhere.setattr(world.server, "duty", lambda _ip, _now: False)
            refused(Refusal.NOT_RESPONSIBLE, other.record())
        number = 100
        while (
            expect(
                world.server.answer(
                    ReserveAp(ApMaker(number).record(ap4_n=None).encoded), NOW, caller()
                ),
                Stored,
            ).refusal
            == Refusal.NONE
        ):
            number += 1
        assert number == 100 + NEW_ENTRIES_PER_NODE - 1, "what was refused doesn't count"
        refused(Refusal.SOURCE_LIMIT, other.record())
        monkeypatch.setattr(world.store, "_max_entries", len(world.store))
        refusal = world.server.answer(ReserveAp(other.record().encoded), NOW, caller(NodeMaker(2)))
        assert refusal == Stored(Refusal.STORE_FULL, b"")
        told.add(Refusal.STORE_FULL)
        assert told == refusals_of(KEY_RECORD_TABLE)

    def test_routes(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        told = set()
        entry = NodeId(bytes(32))

        def refused(wanted: Refusal, *routes: APRoute, now: float = NOW) -> None:
            held = world.store.statistics()
            call = UpdateApRoutes(tuple(route.encoded for route in routes))
            assert world.server.answer(call, now, caller()) == Stored(wanted, b"")
            assert world.store.statistics() == held
            told.add(wanted)

        def route(maker: ApMaker = AP, **more: Any) -> APRoute:
            return maker.route(entry_node=entry, **more)

        world.server.answer(UpdateApRoutes((route(sequence=5).encoded,)), NOW, caller())
        refused(Refusal.SIGNATURE, msgspec.structs.replace(route(entry=1), sequence=9))
        refused(Refusal.EXPIRED, route(entry=1, lifetime=HOUR), now=NOW + HOUR)
        refused(Refusal.LIFETIME, route(entry=1, lifetime=26 * HOUR))
        refused(Refusal.SEQUENCE, route(sequence=4))
        refused(Refusal.SEQUENCE, route(sequence=5, lifetime=HOUR - 60))
        world.server.obey(InForce(deleted_keys=frozenset({ApMaker(2).key.public})))
        refused(Refusal.BANNED, route(ApMaker(2)))
        world.server.obey(NOTHING_IN_FORCE)
        with monkeypatch.context() as nowhere:
            nowhere.setattr(world.server, "duty", lambda _ip, _now: False)
            refused(Refusal.NOT_RESPONSIBLE, route(entry=1))
        more = tuple(route(entry=n, sequence=9).encoded for n in range(1, MAX_ROUTES + 1))
        world.server.answer(UpdateApRoutes(more), NOW, caller())
        refused(Refusal.TOO_MANY_ROUTES, route(entry=99, sequence=3))
        for number in range(100, 100 + NEW_ENTRIES_PER_NODE - 1):
            world.server.answer(UpdateApRoutes((route(ApMaker(number)).encoded,)), NOW, caller())
        refused(Refusal.SOURCE_LIMIT, route(ApMaker(2)))
        monkeypatch.setattr(world.store, "_max_entries", len(world.store))
        call = UpdateApRoutes((route(ApMaker(2)).encoded,))
        refusal = world.server.answer(call, NOW, caller(NodeMaker(2)))
        assert refusal == Stored(Refusal.STORE_FULL, b"")
        told.add(Refusal.STORE_FULL)
        assert told == refusals_of(ROUTE_TABLE)


def refusals_of(table: Table[Any]) -> set[Refusal]:
    """Everything that a table may answer."""
    return {rule.refusal for rule in table.lasting} | {rule.refusal for rule in table.acceptance}


def unworked(maker: NodeMaker) -> NodeRecord:
    """A properly signed record without the work that an identity costs."""
    nonce = 0
    while proof.proves(NETWORK.network_id, maker.key.public, NETWORK.pow_bits, nonce):
        nonce += 1
    record = msgspec.structs.replace(maker.record(), pow=nonce)
    signature = maker.key.sign(record.KIND, NETWORK.network_id, record.signed_part)
    return msgspec.structs.replace(record, signature=signature)


class TestBans:
    def test_a_banned_node_gets_no_answer(self, world: World) -> None:
        node_id = PEER.record().node_id
        for view in (
            InForce(banned_nodes=frozenset({node_id})),
            InForce(banned_prefixes=(ipaddress.IPv4Network("11.1.0.0/16"),)),
        ):
            world.server.obey(view)
            with pytest.raises(ProtocolViolation, match="banned"):
                world.server.answer(ClosestNodes(bytes(32)), NOW, caller())
        assert world.server.statistics() == {"calls_of_banned_nodes": 2}
        world.server.answer(ClosestNodes(bytes(32)), NOW, caller(NodeMaker(2)))

    def test_a_banned_node_at_another_address_can_t_register(self, world: World) -> None:
        world.server.obey(InForce(banned_prefixes=(ipaddress.IPv4Network("11.1.0.1/32"),)))
        near = Caller(PEER.record().node_id, ipaddress.IPv4Address("11.1.0.9"))
        answer = expect(world.server.answer(register(), NOW, near), Registered)
        assert answer.refusal == Refusal.BANNED

    def test_override_commands_are_not_for_the_server(self, world: World) -> None:
        with pytest.raises(ProtocolViolation):
            world.server.answer(Override(b"o"), NOW, caller())


class TestLimits:
    def test_a_node_that_asks_too_often_gets_no_answer(self, world: World) -> None:
        call = ClosestNodes(bytes(32))
        for _ in range(int(CALLS_AT_ONCE)):
            world.server.answer(call, NOW, caller())
        with pytest.raises(ProtocolViolation):
            world.server.answer(call, NOW, caller())
        assert world.server.statistics() == {"calls_over_limit": 1}
        world.server.answer(call, NOW, caller(NodeMaker(2)))
        world.server.answer(call, NOW + 1, caller())

    def test_a_network_that_asks_too_often_gets_no_answer(self, world: World) -> None:
        call = ClosestNodes(bytes(32))

        def ask(number: int, address: str) -> None:
            there = Caller(NodeId(number.to_bytes(32, "big")), ipaddress.ip_address(address))
            world.server.answer(call, NOW, there)

        for number in range(NETWORK_TIMES * int(CALLS_AT_ONCE)):
            ask(number, f"12.1.{number % 250}.1")
            ask(number, f"2a00:1:{number % 250}::1")
        for place in ("12.1.251.1", "2a00:1:251::1"):
            with pytest.raises(ProtocolViolation, match="network"):
                ask(9999, place)
        assert world.server.statistics() == {"calls_over_network_limit": 2}
        ask(9999, "12.2.0.1")
        ask(9999, "2a00:2::1")

    def test_private_addresses_are_networks_of_their_own(self, world: World) -> None:
        call = ClosestNodes(bytes(32))
        for number in range(NETWORK_TIMES * int(CALLS_AT_ONCE) + 1):
            address = ipaddress.ip_address(f"10.1.{number % 2}.1")
            there = Caller(NodeId(number.to_bytes(32, "big")), address)
            world.server.answer(call, NOW, there)
        assert not world.server.statistics()

    def test_we_may_ask_ourselves_as_often_as_we_like(self, world: World) -> None:
        for _ in range(int(CALLS_AT_ONCE) + 1):
            world.server.answer(ResolveAp.of(AP6), NOW, None)


def test_an_answer_of_another_kind_is_refused() -> None:
    with pytest.raises(ProtocolViolation):
        expect(Stored(0, b""), Held)
