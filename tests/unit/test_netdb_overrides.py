"""Override commands: who may give them, what they may do, and that order and repetition don't
matter."""

from __future__ import annotations

import ipaddress
import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_tun.clock import DAY, HOUR
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import RecordRefused, WireError
from phantom_tun.ids import NetworkId, NodeId
from phantom_tun.netdb import overrides as module
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.overrides import (
    COMMANDS_AT_ONCE,
    MAX_COMMAND_LIFETIME,
    NOTHING_IN_FORCE,
    Overrides,
    pack_prefix,
    parse_prefix,
)
from phantom_tun.netdb.rules import MAX_SKEW
from phantom_tun.netdb.signing import sign_override
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker, NodeMaker
from phantom_tun.wire.records import OverrideAction, OverrideRecord

KEY = SigningKey(b"o" * 32)
KNOWN = [NodeMaker(number).record() for number in range(60)]
TRUSTED = KNOWN[0].node_id
VICTIM, OTHER = KNOWN[1], KNOWN[2]
AP = ApMaker(1)
PEER = NodeId(b"p" * 32)


def command(
    number: int,
    action: OverrideAction = OverrideAction.BAN_NODE,
    subject: bytes = VICTIM.node_id,
    *,
    record: bytes = b"",
    key: SigningKey = KEY,
    created: float = NOW,
    lifetime: float = DAY,
) -> OverrideRecord:
    return sign_override(
        key,
        NETWORK.network_id,
        number=number,
        action=action,
        subject=subject,
        record=record,
        created=created,
        expires=created + lifetime,
    )


def ban(number: int, text: str) -> OverrideRecord:
    return command(number, OverrideAction.BAN_PREFIX, pack_prefix(ipaddress.ip_network(text)))


def fresh(*, enabled: bool = True) -> Overrides:
    return Overrides(NETWORK, [KEY.public], [TRUSTED], enabled=enabled)


def given_commands(*commands: OverrideRecord) -> Overrides:
    overrides = fresh()
    for each in commands:
        assert overrides.receive(each.encoded, PEER, NOW) == each
    return overrides


class TestWhoMayCommand:
    def refused(self, record: OverrideRecord, now: float = NOW) -> str:
        overrides = fresh()
        with pytest.raises(RecordRefused) as caught:
            overrides.receive(record.encoded, PEER, now)
        assert len(overrides) == 0
        return str(caught.value)

    def test_only_keys_of_the_profile(self) -> None:
        assert "override key" in self.refused(command(1, key=SigningKey(b"x" * 32)))

    def test_only_with_a_signature(self) -> None:
        forged = msgspec.structs.replace(command(1), subject=OTHER.node_id)
        assert "signed" in self.refused(forged)
        foreign = sign_override(
            KEY,
            NetworkId(bytes(32)),
            number=1,
            action=OverrideAction.BAN_NODE,
            subject=VICTIM.node_id,
            created=NOW,
            expires=NOW + DAY,
        )
        assert "signed" in self.refused(foreign)

    def test_only_in_time(self) -> None:
        assert "no longer" in self.refused(command(1), NOW + DAY)
        assert "not valid yet" in self.refused(command(1), NOW - MAX_SKEW - 1)
        assert "90 days" in self.refused(command(1, lifetime=MAX_COMMAND_LIFETIME + 1))

    def test_a_command_that_expires_before_it_was_created(self) -> None:
        backwards = command(1, created=NOW + 200, lifetime=-100)
        assert "90 days" in self.refused(backwards)

    @given(st.binary(max_size=300))
    def test_noise_raises_the_one_exception(self, noise: bytes) -> None:
        with pytest.raises(WireError):
            fresh().receive(noise, PEER, NOW)


class TestNumbers:
    def test_a_repeated_command_is_not_passed_on_again(self) -> None:
        overrides = given_commands(command(1))
        assert overrides.receive(command(1).encoded, PEER, NOW) is None
        assert len(overrides) == 1

    def test_a_number_names_one_command(self) -> None:
        overrides = given_commands(command(1))
        with pytest.raises(RecordRefused, match="number"):
            overrides.receive(command(1, subject=OTHER.node_id).encoded, PEER, NOW)

    def test_the_highest_number_about_a_subject_counts(self) -> None:
        unban = command(2, OverrideAction.UNBAN_NODE)
        again = command(3)
        overrides = given_commands(command(1), unban)
        assert not overrides.in_force(KNOWN, NOW).bans(VICTIM)
        overrides.receive(again.encoded, PEER, NOW)
        assert overrides.in_force(KNOWN, NOW).bans(VICTIM)

    def test_the_order_of_arrival_changes_nothing(self) -> None:
        commands = [
            command(1),
            command(2, OverrideAction.UNBAN_NODE),
            ban(3, "11.2.0.0/16"),
            command(4, subject=OTHER.node_id),
        ]
        outcomes = {
            repr(given_commands(*order).in_force(KNOWN, NOW))
            for order in itertools.permutations(commands)
        }
        assert len(outcomes) == 1

    def test_new_neighbours_are_told_all_in_order(self) -> None:
        commands = [command(number, subject=bytes([number]) * 32) for number in (3, 1, 2)]
        assert [c.number for c in given_commands(*commands).commands()] == [1, 2, 3]


class TestBans:
    def test_a_node(self) -> None:
        view = given_commands(command(1)).in_force(KNOWN, NOW)
        assert view.bans(VICTIM)
        assert not view.bans(OTHER)

    def test_a_prefix(self) -> None:
        view = given_commands(ban(1, "11.1.0.0/16"), ban(2, "2a00:1::/32")).in_force(KNOWN, NOW)
        assert view.bans(VICTIM)
        assert not view.bans(OTHER)
        assert view.bans_address(ipaddress.ip_address("2a00:1::5"))
        assert not view.bans_address(ipaddress.ip_address("2a00:2::5"))

    def test_it_ends_with_the_command(self) -> None:
        overrides = given_commands(command(1, lifetime=HOUR))
        assert overrides.in_force(KNOWN, NOW + HOUR) == NOTHING_IN_FORCE
        overrides.expire(NOW + HOUR)
        assert len(overrides) == 0

    def test_trusted_nodes_are_never_banned(self) -> None:
        by_id = command(1, subject=TRUSTED)
        by_prefix = ban(2, str(ipaddress.ip_network(f"{KNOWN[0].ips[0]}/32")))
        view = given_commands(by_id, by_prefix).in_force(KNOWN, NOW)
        assert not view.bans(KNOWN[0])
        assert view.over_budget == (by_id, by_prefix)

    def test_all_bans_together_have_a_budget(self) -> None:
        commands = [command(n, subject=KNOWN[n].node_id) for n in range(1, 6)]
        view = given_commands(*commands).in_force(KNOWN, NOW)
        assert [record for record in KNOWN if view.bans(record)] == KNOWN[1:4]
        assert view.over_budget == tuple(commands[3:])

    def test_a_prefix_over_budget_is_not_in_force_at_all(self) -> None:
        wide = ban(1, "11.0.0.0/8")
        view = given_commands(wide, command(2)).in_force(KNOWN, NOW)
        assert view.over_budget == (wide,)
        assert view.bans(VICTIM)
        assert not view.bans(OTHER)

    def test_in_a_small_network_one_node_may_be_banned(self) -> None:
        commands = [command(n, subject=KNOWN[n].node_id) for n in (1, 2)]
        view = given_commands(*commands).in_force(KNOWN[:12], NOW)
        assert view.bans(KNOWN[1])
        assert not view.bans(KNOWN[2])

    def test_a_node_counts_once(self) -> None:
        view = given_commands(command(1), ban(2, "11.1.0.0/16")).in_force(KNOWN[:10], NOW)
        assert view.over_budget == ()

    @pytest.mark.parametrize(
        "subject",
        [
            b"",
            bytes(4),
            bytes(32),
            bytes([10, 0, 0, 1, 8]),
            bytes([10, 0, 0, 0, 33]),
            bytes([0, 0, 0, 0, 0]),
            bytes([10, 0, 0, 0, 7]),
            bytes(16) + b"\x0f",
        ],
    )
    def test_impossible_prefixes_are_refused(self, subject: bytes) -> None:
        with pytest.raises(WireError):
            parse_prefix(subject)
        record = command(1, OverrideAction.BAN_PREFIX, subject)
        with pytest.raises(WireError):
            fresh().receive(record.encoded, PEER, NOW)

    @pytest.mark.parametrize("action", [OverrideAction.BAN_NODE, OverrideAction.DELETE_RECORD])
    def test_a_subject_must_be_an_id(self, action: OverrideAction) -> None:
        with pytest.raises(RecordRefused, match="names no"):
            fresh().receive(command(1, action, b"short").encoded, PEER, NOW)

    def test_prefixes_make_the_round_trip(self) -> None:
        for text in ("11.1.0.0/16", "192.0.2.7/32", "2a00:1::/32"):
            network = ipaddress.ip_network(text)
            assert parse_prefix(pack_prefix(network)) == network


class TestRecords:
    def pin(self, number: int, maker: ApMaker, n: int | None = 0) -> OverrideRecord:
        record = maker.record(ap4_n=n)
        return command(number, OverrideAction.PIN_RECORD, maker.key.public, record=record.encoded)

    def test_deleting(self) -> None:
        delete = command(1, OverrideAction.DELETE_RECORD, AP.key.public)
        view = given_commands(delete).in_force(KNOWN, NOW)
        assert view.deleted_keys == {AP.key.public}

    def test_pinning(self) -> None:
        view = given_commands(self.pin(1, AP)).in_force(KNOWN, NOW)
        assert view.pinned_keys == {
            ap6_address(NETWORK, AP.key.public): AP.key.public,
            ap4_candidate(NETWORK, AP.key.public, 0): AP.key.public,
        }
        only6 = given_commands(self.pin(1, AP, None)).in_force(KNOWN, NOW)
        assert list(only6.pinned_keys) == [ap6_address(NETWORK, AP.key.public)]

    def test_pinning_replaces_deleting_and_the_other_way_round(self) -> None:
        delete = command(2, OverrideAction.DELETE_RECORD, AP.key.public)
        view = given_commands(self.pin(1, AP), delete).in_force(KNOWN, NOW)
        assert not view.pinned_keys
        view = given_commands(delete, self.pin(3, AP)).in_force(KNOWN, NOW)
        assert view.pinned_keys
        assert not view.deleted_keys

    def test_of_two_pins_of_one_address_the_later_counts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        address = ap4_candidate(NETWORK, AP.key.public, 0)
        monkeypatch.setattr(module, "ap4_candidate", lambda *_: address)
        pins = [self.pin(1, AP), self.pin(2, ApMaker(2))]
        for order in (pins, pins[::-1]):
            view = given_commands(*order).in_force(KNOWN, NOW)
            assert view.pinned_keys[address] == ApMaker(2).key.public

    def test_only_what_its_owner_signed_can_be_pinned(self) -> None:
        forged = msgspec.structs.replace(AP.record(), certificate=b"mine").encoded
        bad = command(1, OverrideAction.PIN_RECORD, AP.key.public, record=forged)
        with pytest.raises(RecordRefused, match="owner"):
            fresh().receive(bad.encoded, PEER, NOW)
        noise = command(1, OverrideAction.PIN_RECORD, AP.key.public, record=b"noise")
        with pytest.raises(WireError):
            fresh().receive(noise.encoded, PEER, NOW)

    def test_the_key_that_is_named_must_be_the_record_s(self) -> None:
        other = command(
            1, OverrideAction.PIN_RECORD, ApMaker(2).key.public, record=AP.record().encoded
        )
        with pytest.raises(RecordRefused, match="named"):
            fresh().receive(other.encoded, PEER, NOW)

    def test_no_other_command_carries_a_record(self) -> None:
        smuggled = command(1, record=AP.record().encoded)
        with pytest.raises(RecordRefused, match="only pinning"):
            fresh().receive(smuggled.encoded, PEER, NOW)


class TestBounds:
    def test_a_neighbour_can_send_only_so_many(self) -> None:
        overrides = fresh()
        for _ in range(int(COMMANDS_AT_ONCE)):
            overrides.receive(command(1).encoded, PEER, NOW)
        assert overrides.receive(command(2).encoded, PEER, NOW) is None
        assert len(overrides) == 1
        assert overrides.receive(command(2).encoded, NodeId(bytes(32)), NOW) is not None
        assert overrides.receive(command(3).encoded, None, NOW) is not None

    def test_memory_is_bounded_by_what_is_in_force(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_COMMANDS", 3)
        short = [command(n, subject=bytes([n]) * 32, lifetime=HOUR) for n in (1, 2)]
        overrides = given_commands(*short, command(3))
        with pytest.raises(RecordRefused, match="too many"):
            overrides.receive(command(4, subject=OTHER.node_id).encoded, PEER, NOW)
        later = command(5, subject=OTHER.node_id, created=NOW + HOUR)
        assert overrides.receive(later.encoded, PEER, NOW + HOUR) == later
        assert len(overrides) == 2


def test_a_node_with_overrides_off_passes_them_on_but_obeys_none() -> None:
    overrides = fresh(enabled=False)
    assert overrides.receive(command(1).encoded, PEER, NOW) is not None
    assert overrides.in_force(KNOWN, NOW) == NOTHING_IN_FORCE
