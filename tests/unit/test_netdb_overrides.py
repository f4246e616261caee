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
from phantom_tun.crypto.hashes import h
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import RecordRefused, WireError
from phantom_tun.ids import NetworkId, NodeId
from phantom_tun.netdb import override_file
from phantom_tun.netdb import overrides as module
from phantom_tun.netdb.addresses import ap4_candidate, ap6_address
from phantom_tun.netdb.banned import Places, PrefixSet, pack_prefix, parse_prefix
from phantom_tun.netdb.overrides import (
    COMMANDS_AT_ONCE,
    ENOUGH_KNOWN,
    LAG_PAUSE,
    MAX_AHEAD,
    MAX_COMMAND_LIFETIME,
    NOTHING_IN_FORCE,
    NumberTaken,
    Overrides,
    Standing,
    TooFast,
    TooManyCommands,
    digest_of,
)
from phantom_tun.netdb.rules import MAX_SKEW
from phantom_tun.netdb.signing import sign_override
from phantom_tun.testing.record_factory import NETWORK, NOW, ApMaker, NodeMaker
from phantom_tun.wire.netdb import MAX_ANSWER_LEN
from phantom_tun.wire.records import OverrideAction, OverrideRecord, decode

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
        with pytest.raises(NumberTaken, match="number"):
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
        assert view.bans_peer(PEER, ipaddress.ip_address("2a00:1::5"))
        assert not view.bans_peer(PEER, ipaddress.ip_address("2a00:2::5"))

    def test_it_ends_with_the_command(self) -> None:
        overrides = given_commands(command(1, lifetime=HOUR))
        assert overrides.in_force(KNOWN, NOW + HOUR) == NOTHING_IN_FORCE
        overrides.expire(NOW + HOUR)
        assert len(overrides) == 0

    def test_trusted_nodes_are_never_banned(self) -> None:
        by_id = command(1, subject=TRUSTED)
        by_prefix = ban(2, str(ipaddress.ip_network(f"{KNOWN[0].ips[0]}/32")))
        overrides = given_commands(by_id, by_prefix)
        view = overrides.in_force(KNOWN, NOW)
        assert not view.bans(KNOWN[0])
        assert view.bans_peer(PEER, KNOWN[0].ips[0])
        assert overrides.standings(view, NOW) == [
            (by_id, Standing.TRUSTED),
            (by_prefix, Standing.IN_FORCE),
        ]

    def test_a_trusted_node_is_not_banned_before_it_is_known(self) -> None:
        by_prefix = ban(2, str(ipaddress.ip_network(f"{KNOWN[0].ips[0]}/32")))
        assert not given_commands(by_prefix).in_force(KNOWN[1:], NOW).bans(KNOWN[0])

    def test_all_bans_together_have_a_budget(self) -> None:
        commands = [command(n, subject=KNOWN[n].node_id) for n in range(1, 6)]
        view = given_commands(*commands).in_force(KNOWN, NOW)
        assert [record for record in KNOWN if view.bans(record)] == KNOWN[1:4]
        assert view.not_obeyed == dict.fromkeys(commands[3:], Standing.OVER_BUDGET)

    def test_a_prefix_over_budget_is_not_in_force_at_all(self) -> None:
        wide = ban(1, "11.0.0.0/8")
        view = given_commands(wide, command(2)).in_force(KNOWN, NOW)
        assert view.not_obeyed == {wide: Standing.OVER_BUDGET}
        assert view.bans(VICTIM)
        assert not view.bans(OTHER)

    def test_in_a_small_network_one_node_may_be_banned(self) -> None:
        commands = [command(n, subject=KNOWN[n].node_id) for n in (1, 2)]
        view = given_commands(*commands).in_force(KNOWN[:12], NOW)
        assert view.bans(KNOWN[1])
        assert not view.bans(KNOWN[2])

    def test_a_node_counts_once(self) -> None:
        wide = given_commands(command(1), *(ban(n, "11.1.0.0/16") for n in (2, 3, 4)))
        assert not wide.in_force(KNOWN, NOW).not_obeyed
        address = ban(2, f"{VICTIM.ips[0]}/32")
        assert not given_commands(command(1), address).in_force(KNOWN[:10], NOW).not_obeyed

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


class TestBansWhereNobodyIsKnown:
    """A ban of a place in which no node is known must not be free."""

    def test_who_knows_few_obeys_no_ban_of_a_prefix(self) -> None:
        bans = given_commands(*(ban(n, f"{100 + n}.0.0.0/8") for n in range(99)))
        for known in ([], KNOWN[:20], KNOWN[: ENOUGH_KNOWN - 1]):
            view = bans.in_force(known, NOW)
            assert not view.banned_prefixes
            assert set(view.not_obeyed.values()) == {Standing.TOO_FEW_KNOWN}

    def test_where_nobody_is_known_a_ban_counts_as_one_node(self) -> None:
        bans = given_commands(*(ban(n, f"12.0.0.{n}/32") for n in range(1, 6)))
        assert len(bans.in_force([], NOW).banned_prefixes) == 1
        assert len(bans.in_force(KNOWN[:40], NOW).banned_prefixes) == 2
        assert len(bans.in_force(KNOWN, NOW).banned_prefixes) == 3
        networks = given_commands(*(ban(n, f"12.{n}.0.0/16") for n in range(1, 6)))
        assert len(networks.in_force(KNOWN, NOW).banned_prefixes) == 3
        places = given_commands(ban(1, "2a01::/64"), ban(2, "2a02::/63"))
        assert list(places.in_force([], NOW).not_obeyed.values()) == [Standing.TOO_FEW_KNOWN]

    def test_who_is_heard_of_counts_against_the_budget_but_does_not_raise_it(self) -> None:
        place = ban(1, "12.0.0.0/8")
        bans = given_commands(place)
        unmet = [
            NodeMaker(n, address=ipaddress.ip_address(f"12.{n}.0.1")).record()
            for n in range(100, 200)
        ]
        assert not bans.in_force(KNOWN, NOW, unmet=unmet[:3]).not_obeyed
        view = bans.in_force(KNOWN, NOW, unmet=unmet[:4])
        assert view.not_obeyed == {place: Standing.OVER_BUDGET}
        others = given_commands(*(command(n, subject=KNOWN[n].node_id) for n in range(1, 10)))
        assert len(others.in_force(KNOWN, NOW, unmet=unmet).banned_nodes) == 3


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
        forged = command(1, key=SigningKey(b"x" * 32)).encoded
        for _ in range(int(COMMANDS_AT_ONCE)):
            with pytest.raises(RecordRefused, match="override key"):
                overrides.receive(forged, PEER, NOW)
        with pytest.raises(TooFast):
            overrides.receive(command(2).encoded, PEER, NOW)
        assert len(overrides) == 0
        assert overrides.receive(command(2).encoded, NodeId(bytes(32)), NOW) is not None
        assert overrides.receive(command(3).encoded, None, NOW) is not None

    def test_repetitions_cost_nothing(self) -> None:
        overrides = given_commands(command(1))
        for _ in range(2 * int(COMMANDS_AT_ONCE)):
            assert overrides.receive(command(1).encoded, PEER, NOW) is None
        assert overrides.receive(command(2).encoded, PEER, NOW) is not None

    def test_memory_is_bounded_by_what_is_in_force(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_COMMANDS", 3)
        short = [command(n, subject=bytes([n]) * 32, lifetime=HOUR) for n in (1, 2)]
        overrides = given_commands(*short, command(3))
        with pytest.raises(TooManyCommands):
            overrides.receive(command(4, subject=OTHER.node_id).encoded, PEER, NOW)
        later = command(5, subject=OTHER.node_id, created=NOW + HOUR)
        assert overrides.receive(later.encoded, PEER, NOW + HOUR) == later
        assert len(overrides) == 2


def test_a_node_with_overrides_off_passes_them_on_but_obeys_none() -> None:
    overrides = fresh(enabled=False)
    assert overrides.receive(command(1).encoded, PEER, NOW) is not None
    assert overrides.in_force(KNOWN, NOW) == NOTHING_IN_FORCE
    standings = overrides.standings(NOTHING_IN_FORCE, NOW)
    assert standings == [(command(1), Standing.OFF)]


def test_what_a_later_command_replaced_is_shown_as_such() -> None:
    unban = command(2, OverrideAction.UNBAN_NODE)
    overrides = given_commands(command(1), unban)
    view = overrides.in_force(KNOWN, NOW)
    assert overrides.standings(view, NOW) == [
        (command(1), Standing.REPLACED),
        (unban, Standing.IN_FORCE),
    ]


class TestCatchingUp:
    """Nodes compare what they know, and ask for what they lack."""

    REF = VICTIM.ref()
    OTHER_REF = OTHER.ref()

    def test_the_digest_names_the_set(self) -> None:
        one, two = command(1), command(2, subject=OTHER.node_id, lifetime=HOUR)
        assert fresh().digest(NOW) == b""
        both = given_commands(one, two)
        assert both.digest(NOW) == given_commands(two, one).digest(NOW) == digest_of([one, two])
        assert both.digest(NOW + HOUR) == given_commands(one).digest(NOW)

    def test_a_node_that_knows_others_is_asked_once(self) -> None:
        overrides = given_commands(command(1))
        theirs = given_commands(command(2)).digest(NOW)
        overrides.compare(self.REF, theirs, NOW)
        assert overrides.next_to_ask(NOW) == (self.REF, theirs)
        assert overrides.next_to_ask(NOW) is None

    def test_nobody_is_asked_for_what_is_known(self) -> None:
        overrides = given_commands(command(1))
        overrides.compare(self.REF, b"", NOW)
        overrides.compare(self.REF, overrides.digest(NOW), NOW)
        assert overrides.next_to_ask(NOW) is None
        theirs = given_commands(command(1), command(2)).digest(NOW)
        overrides.compare(self.REF, theirs, NOW)
        overrides.receive(command(2).encoded, None, NOW)
        assert overrides.next_to_ask(NOW) is None

    def test_the_same_set_isn_t_asked_for_again(self) -> None:
        overrides = given_commands(command(1))
        theirs = given_commands(command(2)).digest(NOW)
        for ref in (self.REF, self.OTHER_REF):
            overrides.compare(ref, theirs, NOW)
        assert overrides.next_to_ask(NOW) == (self.REF, theirs)
        overrides.got(theirs)
        assert overrides.next_to_ask(NOW) is None
        overrides.compare(self.OTHER_REF, theirs, NOW)
        assert overrides.next_to_ask(NOW) is None

    def test_who_brought_too_many_is_asked_for_the_rest_now_and_then(self) -> None:
        overrides = fresh()
        for _ in range(3):
            overrides.lag(self.REF, NOW)
        assert overrides.next_to_ask(NOW) == (self.REF, b"")
        overrides.lag(self.REF, NOW + 1)
        assert overrides.next_to_ask(NOW + 1) is None
        overrides.lag(self.REF, NOW + LAG_PAUSE)
        assert overrides.next_to_ask(NOW + LAG_PAUSE) == (self.REF, b"")

    def test_a_network_without_override_keys_asks_nobody(self) -> None:
        overrides = Overrides(NETWORK, (), ())
        overrides.compare(self.REF, given_commands(command(2)).digest(NOW), NOW)
        assert overrides.next_to_ask(NOW) is None

    def test_what_is_remembered_is_bounded(self) -> None:
        overrides = given_commands(command(1))
        for number in range(MAX_AHEAD + 10):
            digest = number.to_bytes(32, "big")
            overrides.compare(KNOWN[number % len(KNOWN)].ref(), digest, NOW)
            overrides.got(digest)
            assert len(overrides._asked) <= MAX_AHEAD
        for number in range(MAX_AHEAD + 10):
            ref = msgspec.structs.replace(KNOWN[1], cert_hash=number.to_bytes(32, "big")).ref()
            overrides.compare(ref, b"d" * 32, NOW)
        assert len(overrides._ahead) == MAX_AHEAD

    def test_pages_hold_everything_once_in_order(self) -> None:
        maker = ApMaker(3)
        record = maker.record().encoded
        commands = [command(n, subject=bytes([n]) * 32) for n in range(1, 201)]
        commands += [
            command(n, OverrideAction.PIN_RECORD, maker.key.public, record=record)
            for n in range(201, 212)
        ]
        overrides = fresh()
        for each in commands:
            overrides.receive(each.encoded, None, NOW)
        found: list[bytes] = []
        number, signer = 0, b""
        while page := overrides.page(number, signer):
            assert len(page.encode()) <= MAX_ANSWER_LEN
            if not page.commands:
                break
            found += page.commands
            last = decode(OverrideRecord, page.commands[-1])
            number, signer = last.number, last.signer
        assert found == [each.encoded for each in commands]


class TestTheFile:
    def test_it_brings_commands_back(self) -> None:
        overrides = given_commands(command(1), command(2, subject=OTHER.node_id))
        data = override_file.dump(NETWORK.network_id, overrides)
        again = fresh()
        for encoded in override_file.load(data, NETWORK.network_id):
            again.receive(encoded, None, NOW)
        assert again.commands() == overrides.commands()

    def test_a_damaged_or_foreign_one_is_refused(self) -> None:
        data = override_file.dump(NETWORK.network_id, given_commands(command(1)))
        for bad in (b"", b"noise" * 40, data[:-1], bytes([data[0] ^ 1]) + data[1:]):
            with pytest.raises(WireError, match="damaged"):
                override_file.load(bad, NETWORK.network_id)
        with pytest.raises(WireError, match="another network"):
            override_file.load(data, NetworkId(bytes(32)))
        body = b"\x93\xa1x"
        with pytest.raises(WireError, match="damaged"):
            override_file.load(body + h("overrides file", body), NETWORK.network_id)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 32)), max_size=20), st.data())
def test_sets_of_prefixes_say_what_the_prefixes_say(
    parts: list[tuple[int, int]], data: st.DataObject
) -> None:
    prefixes = [ipaddress.IPv4Network((bits, length), strict=False) for bits, length in parts]
    near = [int(prefix.network_address) + offset for prefix in prefixes for offset in (-1, 0, 1)]
    candidates = [bits % 2**32 for bits in (*near, 0, 2**32 - 1)]
    address = ipaddress.IPv4Address(data.draw(st.sampled_from(candidates)))
    found = PrefixSet([*prefixes, ipaddress.ip_network("2a00::/16")])
    assert (address in found) == any(address in prefix for prefix in prefixes)
    places = Places(KNOWN)
    for prefix in (
        *prefixes,
        ipaddress.IPv4Network("11.1.0.0/16"),
        ipaddress.IPv4Network("0.0.0.0/8"),
    ):
        named = {each.node_id for each in KNOWN if any(ip in prefix for ip in each.ips)}
        assert places.within(prefix) == named
