"""Every storage rule fires, and names itself; nothing that satisfies them is refused."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from phantom_tun.clock import DAY, HOUR
from phantom_tun.errors import WireError
from phantom_tun.ids import NetworkId, NodeId
from phantom_tun.netdb import proof, signing
from phantom_tun.netdb.rules import (
    KEY_RECORD_TABLE,
    MAX_KEY_RECORD_LIFETIME,
    MAX_NODE_LIFETIME,
    MAX_ROUTE_LIFETIME,
    MAX_SKEW,
    NODE_TABLE,
    REGISTRATION_TABLE,
    ROUTE_TABLE,
    Caller,
    Circumstances,
    RuleBroken,
    Table,
)
from phantom_tun.netdb.verifier import AP_RECORDS_REMEMBERED, Verifier
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker, NodeMaker
from phantom_tun.wire.netdb import Refusal
from phantom_tun.wire.records import Capability, NodeAddress, NodeRecord, Record

NODE = NodeMaker(1)
AP = ApMaker(1)
CALLER = Caller(NODE.record().node_id, NODE.ip)


def resigned(record: Record, key: Any, **changes: object) -> Any:
    """``record`` with other fields, properly signed again."""
    changed: Any = msgspec.structs.replace(record, **changes)
    signature = key.sign(changed.KIND, NETWORK.network_id, changed.signed_part)
    return msgspec.structs.replace(changed, signature=signature)


def node(**changes: object) -> NodeRecord:
    made: NodeRecord = resigned(NODE.record(), NODE.key, **changes)
    return made


def when(now: float, **more: Any) -> Circumstances[Any]:
    return Circumstances(now, **more)


def broken(table: Table[Any], record: Record) -> Refusal:
    with pytest.raises(RuleBroken) as caught:
        table.check_lasting(record, NETWORK)
    return caught.value.refusal


def refused(table: Table[Any], record: Record, circumstances: Circumstances[Any]) -> Refusal:
    with pytest.raises(RuleBroken) as caught:
        table.check_acceptance(record, circumstances)
    return caught.value.refusal


class TestLastingRulesOfNodeRecords:
    def test_a_good_record_passes(self) -> None:
        NODE_TABLE.check_lasting(NODE.record(), NETWORK)
        NODE_TABLE.check_lasting(NODE.record(lifetime=MAX_NODE_LIFETIME), NETWORK)

    @pytest.mark.parametrize("lifetime", [0, -60, MAX_NODE_LIFETIME + 1])
    def test_lifetime(self, lifetime: float) -> None:
        assert broken(NODE_TABLE, NODE.record(lifetime=lifetime)) is Refusal.LIFETIME

    @pytest.mark.parametrize(
        ("text", "port"),
        [
            ("0.0.0.0", 443),  # noqa: S104 - no host has it
            ("::", 443),
            ("224.0.0.1", 443),
            ("ff02::1", 443),
            ("240.1.2.3", 443),
            ("2001:2f:1::1", 443),
            ("::ffff:11.0.0.1", 443),
            ("11.0.0.1", 0),
        ],
    )
    def test_addresses(self, text: str, port: int) -> None:
        bad = NodeAddress.of(ipaddress.ip_address(text), port)
        good = NodeAddress.of(NODE.ip, 443)
        assert broken(NODE_TABLE, node(addresses=(bad,))) is Refusal.ADDRESS
        assert broken(NODE_TABLE, node(addresses=(good, bad))) is Refusal.ADDRESS

    def test_a_node_that_can_t_be_dialed_needs_no_port(self) -> None:
        hidden = NodeAddress.of(NODE.ip, 0)
        NODE_TABLE.check_lasting(node(addresses=(hidden,), capabilities=1), NETWORK)

    def test_proof_of_work(self) -> None:
        demanding = dataclasses.replace(NETWORK, pow_bits=12)
        nonce = proof.solve(NETWORK.network_id, NODE.key.public, 12)
        NODE_TABLE.check_lasting(node(pow=nonce), demanding)
        with pytest.raises(RuleBroken) as caught:
            NODE_TABLE.check_lasting(node(pow=nonce + 1), demanding)
        assert caught.value.refusal is Refusal.PROOF_OF_WORK

    def test_signature(self) -> None:
        forged = msgspec.structs.replace(NODE.record(), signature=bytes(64))
        assert broken(NODE_TABLE, forged) is Refusal.SIGNATURE
        foreign = signing.sign_node_record(
            NODE.key,
            NetworkId(bytes(32)),
            cert_hash=NODE.record().ref().cert_hash,
            addresses=NODE.record().addresses,
            path_key=NODE.path_key,
            path_key_until=NOW,
            capabilities=Capability.RELAY,
            created=NOW,
            expires=NOW + HOUR,
            pow_nonce=NODE.record().pow,
        )
        assert broken(NODE_TABLE, foreign) is Refusal.SIGNATURE


class TestAcceptingNodeRecords:
    def test_heard_from_anybody(self) -> None:
        NODE_TABLE.check_acceptance(NODE.record(), when(NOW))

    def test_expired(self) -> None:
        assert refused(NODE_TABLE, NODE.record(), when(NOW + DAY)) is Refusal.EXPIRED

    def test_from_the_future(self) -> None:
        early = when(NOW - MAX_SKEW - 1)
        assert refused(NODE_TABLE, NODE.record(), early) is Refusal.FROM_THE_FUTURE
        NODE_TABLE.check_acceptance(NODE.record(), when(NOW - MAX_SKEW))

    def test_private_addresses_are_for_private_networks(self) -> None:
        private = NodeMaker(1, address=ipaddress.IPv4Address("192.168.1.1")).record()
        outside = when(NOW, public=True)
        assert refused(NODE_TABLE, private, outside) is Refusal.ADDRESS
        NODE_TABLE.check_acceptance(private, when(NOW, public=False))
        NODE_TABLE.check_acceptance(NODE.record(), outside)

    def test_registration(self) -> None:
        good = when(NOW, caller=CALLER, path_key=NODE.path_key)
        REGISTRATION_TABLE.check_acceptance(NODE.record(), good)

    def test_registration_by_somebody_else(self) -> None:
        stranger = Caller(NodeId(bytes(32)), NODE.ip)
        for caller in (stranger, None):
            circumstances = when(NOW, caller=caller, path_key=NODE.path_key)
            assert refused(REGISTRATION_TABLE, NODE.record(), circumstances) is (
                Refusal.NOT_THE_OWNER
            )

    @pytest.mark.parametrize("text", ["12.0.0.1", "11.1.1.1", "2a00::1"])
    def test_registration_from_another_network(self, text: str) -> None:
        elsewhere = Caller(CALLER.node_id, ipaddress.ip_address(text))
        circumstances = when(NOW, caller=elsewhere, path_key=NODE.path_key)
        assert refused(REGISTRATION_TABLE, NODE.record(), circumstances) is Refusal.ADDRESS
        hidden = NODE.record(capabilities=Capability.RELAY)
        REGISTRATION_TABLE.check_acceptance(hidden, circumstances)

    def test_registration_from_the_same_network(self) -> None:
        near = Caller(CALLER.node_id, ipaddress.ip_address("11.1.0.77"))
        circumstances = when(NOW, caller=near, path_key=NODE.path_key)
        REGISTRATION_TABLE.check_acceptance(NODE.record(), circumstances)

    def test_registration_of_a_banned_node(self) -> None:
        circumstances = when(NOW, caller=CALLER, path_key=NODE.path_key, banned=True)
        assert refused(REGISTRATION_TABLE, NODE.record(), circumstances) is Refusal.BANNED

    @pytest.mark.parametrize("path_key", [None, bytes(1_216)])
    def test_registration_with_another_path_key(self, path_key: bytes | None) -> None:
        circumstances = when(NOW, caller=CALLER, path_key=path_key)
        assert refused(REGISTRATION_TABLE, NODE.record(), circumstances) is Refusal.PATH_KEY


class TestKeyRecords:
    def test_a_good_record_passes(self) -> None:
        KEY_RECORD_TABLE.check_lasting(AP.record(lifetime=MAX_KEY_RECORD_LIFETIME), NETWORK)
        KEY_RECORD_TABLE.check_acceptance(AP.record(), when(NOW))

    @pytest.mark.parametrize("lifetime", [0, -60, MAX_KEY_RECORD_LIFETIME + 1])
    def test_lifetime(self, lifetime: float) -> None:
        assert broken(KEY_RECORD_TABLE, AP.record(lifetime=lifetime)) is Refusal.LIFETIME

    def test_signature(self) -> None:
        stolen = msgspec.structs.replace(AP.record(), public_key=ApMaker(2).key.public)
        assert broken(KEY_RECORD_TABLE, stolen) is Refusal.SIGNATURE

    def test_expired(self) -> None:
        late = when(NOW + 5 * HOUR, vouched=True)
        assert refused(KEY_RECORD_TABLE, AP.record(), late) is Refusal.EXPIRED

    def test_from_the_future(self) -> None:
        early = when(NOW - MAX_SKEW - 1)
        assert refused(KEY_RECORD_TABLE, AP.record(), early) is Refusal.FROM_THE_FUTURE

    def test_too_old_at_first_acceptance(self) -> None:
        late = NOW + MAX_SKEW + 1
        assert refused(KEY_RECORD_TABLE, AP.record(), when(late)) is Refusal.TOO_OLD
        other = when(late, held=AP.record(NOW - 600, sequence=0))
        assert refused(KEY_RECORD_TABLE, AP.record(), other) is Refusal.TOO_OLD

    def test_old_but_held_or_vouched_for(self) -> None:
        late = NOW + HOUR
        KEY_RECORD_TABLE.check_acceptance(AP.record(), when(late, held=AP.record()))
        KEY_RECORD_TABLE.check_acceptance(AP.record(), when(late, vouched=True))

    def test_deleted(self) -> None:
        assert refused(KEY_RECORD_TABLE, AP.record(), when(NOW, banned=True)) is Refusal.BANNED

    @pytest.mark.parametrize("sequence", [4, 5])
    def test_sequence_must_rise(self, sequence: int) -> None:
        held = AP.record(sequence=5)
        rival = AP.record(sequence=sequence, certificate=b"another")
        circumstances = when(NOW, held=held)
        assert refused(KEY_RECORD_TABLE, rival, circumstances) is Refusal.SEQUENCE
        KEY_RECORD_TABLE.check_acceptance(AP.record(sequence=6), circumstances)
        KEY_RECORD_TABLE.check_acceptance(held, circumstances)

    @pytest.mark.parametrize(
        ("flag", "refusal"),
        [
            ("responsible", Refusal.NOT_RESPONSIBLE),
            ("lease_free", Refusal.LEASE_HELD),
            ("within_source_limits", Refusal.SOURCE_LIMIT),
            ("room", Refusal.STORE_FULL),
        ],
    )
    def test_what_the_store_finds_out(self, flag: str, refusal: Refusal) -> None:
        circumstances = when(NOW, **{flag: False})
        assert refused(KEY_RECORD_TABLE, AP.record(), circumstances) is refusal


class TestRoutes:
    ROUTE = AP.route(entry_node=CALLER.node_id)

    def test_a_good_route_passes(self) -> None:
        ROUTE_TABLE.check_lasting(self.ROUTE, NETWORK)
        ROUTE_TABLE.check_acceptance(self.ROUTE, when(NOW))

    def test_signature(self) -> None:
        moved = msgspec.structs.replace(self.ROUTE, entry_node=bytes(32))
        assert broken(ROUTE_TABLE, moved) is Refusal.SIGNATURE

    def test_expired(self) -> None:
        assert refused(ROUTE_TABLE, self.ROUTE, when(NOW + HOUR)) is Refusal.EXPIRED

    def test_lifetime(self) -> None:
        long = AP.route(entry_node=CALLER.node_id, lifetime=MAX_ROUTE_LIFETIME + 1)
        assert refused(ROUTE_TABLE, long, when(NOW)) is Refusal.LIFETIME

    def test_deleted(self) -> None:
        assert refused(ROUTE_TABLE, self.ROUTE, when(NOW, banned=True)) is Refusal.BANNED

    def test_sequence_must_rise(self) -> None:
        rival = AP.route(entry_node=NodeId(bytes(32)))
        held = when(NOW, held=self.ROUTE)
        assert refused(ROUTE_TABLE, rival, held) is Refusal.SEQUENCE
        ROUTE_TABLE.check_acceptance(self.ROUTE, held)

    @pytest.mark.parametrize(
        ("flag", "refusal"),
        [
            ("responsible", Refusal.NOT_RESPONSIBLE),
            ("among_newest", Refusal.TOO_MANY_ROUTES),
            ("within_source_limits", Refusal.SOURCE_LIMIT),
            ("room", Refusal.STORE_FULL),
        ],
    )
    def test_what_the_store_finds_out(self, flag: str, refusal: Refusal) -> None:
        circumstances = when(NOW, **{flag: False})
        assert refused(ROUTE_TABLE, self.ROUTE, circumstances) is refusal


class TestVerifier:
    def test_genuine_records_come_back_as_the_same_object(self) -> None:
        verifier = Verifier(NETWORK)
        encoded = NODE.record().encoded
        assert verifier.node(encoded) is verifier.node(bytes(bytearray(encoded)))

    def test_a_bad_record_is_never_remembered(self) -> None:
        verifier = Verifier(NETWORK)
        forged = msgspec.structs.replace(NODE.record(), signature=bytes(64)).encoded
        for _ in range(2):
            with pytest.raises(RuleBroken):
                verifier.node(forged)
        with pytest.raises(WireError):
            verifier.node(b"noise")

    def test_one_bad_record_spoils_an_answer(self) -> None:
        verifier = Verifier(NETWORK)
        good = NODE.record().encoded
        assert len(verifier.nodes([good, good])) == 2
        forged = msgspec.structs.replace(NODE.record(), signature=bytes(64)).encoded
        with pytest.raises(RuleBroken):
            verifier.nodes([good, forged])

    def test_memory_is_bounded(self) -> None:
        verifier = Verifier(NETWORK)
        first = AP.route(entry_node=CALLER.node_id, entry=0).encoded
        kept = verifier.route(first)
        for entry in range(1, AP_RECORDS_REMEMBERED + 1):
            verifier.route(AP.route(entry_node=CALLER.node_id, entry=entry).encoded)
        assert verifier.route(first) is not kept

    def test_other_kinds(self) -> None:
        verifier = Verifier(NETWORK)
        assert verifier.key_record(AP.record().encoded) == AP.record()
        with pytest.raises(WireError):
            verifier.key_record(NODE.record().encoded)
        with pytest.raises(WireError):
            verifier.route(AP.record().encoded)


def test_the_specification_has_the_rules_in_the_same_words() -> None:
    page = " ".join((Path(__file__).parents[2] / "docs/spec/netdb.md").read_text().split())
    tables: tuple[Table[Any], ...] = (REGISTRATION_TABLE, KEY_RECORD_TABLE, ROUTE_TABLE)
    for table in tables:
        rules = [(rule.refusal, rule.says) for rule in table.lasting]
        rules += [(rule.refusal, rule.says) for rule in table.acceptance]
        for refusal, says in rules:
            assert says in page
            assert refusal.name.lower() in page
