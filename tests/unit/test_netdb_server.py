"""What a node answers, and to whom it doesn't."""

from __future__ import annotations

import ipaddress
import random

import msgspec
import pytest

from phantom_tun.clock import HOUR
from phantom_tun.errors import ProtocolViolation
from phantom_tun.ids import NodeId
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.book import NodeBook
from phantom_tun.netdb.overrides import InForce
from phantom_tun.netdb.rules import MAX_SKEW, Caller
from phantom_tun.netdb.server import CALLS_AT_ONCE, OwnNode, Server, expect
from phantom_tun.netdb.store import ApStore
from phantom_tun.netdb.table import K
from phantom_tun.netdb.verifier import Verifier
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker, NodeMaker
from phantom_tun.wire.netdb import (
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
from phantom_tun.wire.records import Capability, NodeAddress

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

    def test_we_may_ask_ourselves_as_often_as_we_like(self, world: World) -> None:
        for _ in range(int(CALLS_AT_ONCE) + 1):
            world.server.answer(ResolveAp.of(AP6), NOW, None)


def test_an_answer_of_another_kind_is_refused() -> None:
    with pytest.raises(ProtocolViolation):
        expect(Stored(0, b""), Held)
