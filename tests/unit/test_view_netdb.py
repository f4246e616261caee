"""``netdb get`` and ``pins``: who says what about an address, and which key is believed."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from view_world import NOW, World, found_of, resolved_of

from phantom_tun.clock import DAY
from phantom_tun.control.schema import ControlError
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.errors import ConfigError, ProtocolViolation, Unreachable, WorldError
from phantom_tun.ids import ApAddress, NodeId, PublicKey
from phantom_tun.net.addresses.pins import PinChange, PinChanged, fingerprint
from phantom_tun.net.netdb.witnesses import Witness
from phantom_tun.netdb.banned import pack_prefix
from phantom_tun.netdb.overrides import Standing
from phantom_tun.netdb.signing import sign_override
from phantom_tun.testing.fake_owner import FakeOwner
from phantom_tun.testing.record_factory import NETWORK
from phantom_tun.view.backend import NodeView
from phantom_tun.view.netdb import MOST_PATHS
from phantom_tun.wire.records import OverrideAction

FAR = FakeOwner()
KEY, OTHER_KEY = PublicKey(FAR.key.public), PublicKey(b"x" * 32)
NODE = NodeId(b"n" * 32)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def get(world: World, address: ApAddress = FAR.ap6, *, votes: bool = False) -> Any:
    return await NodeView(world.node).netdb_get(address, votes=votes)


# --- addresses -----------------------------------------------------------------------------------


async def test_records_come_with_their_votes(world: World) -> None:
    world.asked = [found_of(FAR, dissent=2)]
    answer = await get(world)
    key, first, second = answer.records
    assert (key.table, key.votes, key.dissent, key.expires_in_s) == ("ap_key", 6, 2, 3550.0)
    assert key.fields["key"] == FAR.key.public.hex()
    assert (key.fields["ap4"], key.fields["ap6"]) == (str(FAR.ap4), str(FAR.ap6))
    assert {record.table for record in (first, second)} == {"ap_route"}
    assert (answer.asked, answer.polls, answer.warning) == (8, (), "")


async def test_the_next_path_is_asked_if_one_gives_nothing(world: World) -> None:
    world.exits = 3
    world.asked = [None, ProtocolViolation("nonsense"), found_of(FAR)]
    assert (await get(world)).records
    world.exits = 2
    with pytest.raises(ControlError, match="nobody has published") as refusal:
        await get(world)
    assert refusal.value.code == "not_found"


async def test_if_all_paths_die_the_next_that_stands_is_asked(world: World) -> None:
    world.exits = 2
    world.asked = [WorldError("the path was closed")] * 2 + [found_of(FAR)]
    assert (await get(world)).records
    world.asked = [WorldError("the path was closed")] * 2 + [WorldError("no path stands")]
    with pytest.raises(WorldError, match="no path stands"):
        await get(world)


async def test_votes_show_what_every_path_said(world: World) -> None:
    world.exits = 4
    world.asked = [found_of(FAR, dissent=1), None, WorldError("no answer"), found_of(FAR, routes=1)]
    answer = await get(world, votes=True)
    assert [(poll.path_id, poll.outcome, poll.routes) for poll in answer.polls] == [
        ("0", "found", 2),
        ("1", "nothing", 0),
        ("2", "failed", 0),
        ("3", "found", 1),
    ]
    first = answer.polls[0]
    assert first.answerer == bytes(32).hex()
    assert (first.asked, first.answered) == (8, 7)
    assert [vote.storers for vote in first.votes] == [6, 1]
    assert answer.polls[2].detail == "no answer"
    assert answer.warning == ""


@pytest.mark.parametrize("votes", [False, True])
async def test_an_own_address_is_asked_about_once_over_a_path_built_for_it(
    world: World, votes: bool
) -> None:
    world.exits = 4
    world.asked = [found_of(FAR)]
    own = world.identities[0]
    answer = await get(world, own.ap6, votes=votes)
    assert [(poll.path_id, poll.answerer) for poll in answer.polls] == [("private", "")] * votes


async def test_votes_are_asked_of_so_many_paths_and_no_more(world: World) -> None:
    world.exits = MOST_PATHS + 3
    world.asked = [found_of(FAR)] * world.exits
    assert len((await get(world, votes=True)).polls) == MOST_PATHS


async def test_what_most_paths_say_is_shown_and_disagreement_is_told(world: World) -> None:
    liar = FakeOwner()
    world.exits = 3
    world.asked = [found_of(liar), found_of(FAR), found_of(FAR)]
    answer = await get(world, votes=True)
    assert answer.records[0].fields["key"] == FAR.key.public.hex()
    assert "don't agree" in answer.warning


async def test_without_any_path_any_that_comes_is_asked(world: World) -> None:
    world.exits = 0
    world.asked = [found_of(FAR)]
    assert (await get(world)).records
    world.asked = [WorldError("no exit path stands yet")]
    with pytest.raises(WorldError, match="no exit path stands yet"):
        await get(world)


async def test_nothing_but_nonsense_is_a_failure(world: World) -> None:
    world.asked = [ProtocolViolation("of another kind")] * 3
    with pytest.raises(ControlError, match="not valid") as refusal:
        await get(world)
    assert refusal.value.code == "failed"


async def test_addresses_outside_the_network_are_not_asked_for(world: World) -> None:
    with pytest.raises(ControlError, match="can't belong to anybody") as refusal:
        await get(world, ipaddress.ip_address("10.0.0.1"))
    assert refusal.value.code == "not_found"


# --- pins ----------------------------------------------------------------------------------------


async def test_a_changed_owner_is_told_with_what_was_found(world: World) -> None:
    pin = world.pins.confirm(FAR.ap4, OTHER_KEY, 2)
    world.resolve = PinChanged(PinChange(pin, KEY, 2, NOW))
    world.asked = [found_of(FAR)]
    answer = await get(world, FAR.ap4)
    assert answer.records
    assert f"phantom-tun pins accept {FAR.ap4}" in answer.warning


async def test_one_exit_node_that_lies_doesnt_raise_the_alarm(world: World) -> None:
    async def resolve(_address: ApAddress) -> Any:
        return resolved_of(FAR)

    world.pins.confirm(FAR.ap4, OTHER_KEY, 2)
    world.resolve = resolve
    world.asked = [found_of(FAR)]
    answer = await get(world, FAR.ap4)
    assert "it lied" in answer.warning
    world.resolve = Unreachable("the exit paths don't agree")
    assert "don't agree" in (await get(world, FAR.ap4)).warning


async def test_the_pinned_owner_needs_no_further_questions(world: World) -> None:
    world.pins.confirm(FAR.ap4, KEY, 2)
    world.asked = [found_of(FAR)]
    assert (await get(world, FAR.ap4)).warning == ""
    assert world.resolved == []


def changed(world: World) -> None:
    world.pins.confirm(FAR.ap4, OTHER_KEY, 2)
    with pytest.raises(PinChanged):
        world.pins.confirm(FAR.ap4, KEY, 3)


async def test_pins_are_listed_with_what_was_offered_first(world: World) -> None:
    view = NodeView(world.node)
    assert await view.pins() == ()
    other = FakeOwner().ap4
    world.pins.confirm(other, KEY, 1)
    changed(world)
    first, second = await view.pins()
    assert (first.address, second.address, second.change) == (str(FAR.ap4), str(other), None)
    assert first.fingerprint == fingerprint(OTHER_KEY)
    assert first.change is not None
    assert (first.change.fingerprint, first.change.confirmations) == (fingerprint(KEY), 3)
    assert "somebody is posing as its owner" in first.change.explanation


async def test_an_accepted_key_counts_from_the_next_question_on(world: World) -> None:
    changed(world)
    pin = await NodeView(world.node).accept_pin(FAR.ap4)
    assert (pin.fingerprint, pin.change) == (fingerprint(KEY), None)
    assert world.forgotten == [("default", FAR.ap4)]
    assert (await NodeView(world.node).pins())[0].change is None


async def test_a_removed_pin_is_forgotten_everywhere(world: World) -> None:
    changed(world)
    await NodeView(world.node).remove_pin(FAR.ap4)
    assert world.forgotten == [("default", FAR.ap4)]
    assert await NodeView(world.node).pins() == ()


async def test_nothing_to_accept_or_remove(world: World) -> None:
    world.pins.confirm(FAR.ap4, KEY, 2)
    view = NodeView(world.node)
    for attempt in (view.accept_pin(FAR.ap4), view.remove_pin(FakeOwner().ap4)):
        with pytest.raises(ControlError) as refusal:
            await attempt
        assert refusal.value.code == "not_found"
    assert world.forgotten == []


async def test_pins_that_cant_be_written_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(world)

    def full(*_: object) -> None:
        raise ConfigError("can't write pins: no space left")

    monkeypatch.setattr("phantom_tun.net.addresses.pins.atomic_write", full)
    view = NodeView(world.node)
    for attempt in (view.accept_pin(FAR.ap4), view.remove_pin(FAR.ap4)):
        with pytest.raises(ControlError, match="no space left") as refusal:
            await attempt
        assert refusal.value.code == "failed"
    assert (await view.pins())[0].change is not None


# --- nodes ---------------------------------------------------------------------------------------


def record(created: float) -> Any:
    return SimpleNamespace(
        node_id=NODE,
        identity=b"i" * 32,
        ips=[ipaddress.ip_address("192.0.2.1")],
        relays=True,
        dialable=True,
        cert_hash=bytes(32),
        created=created,
        expires=NOW + 100,
    )


async def get_node(world: World, *, votes: bool) -> Any:
    return await NodeView(world.node).netdb_get(NODE, votes=votes)


async def test_a_node_is_shown_as_it_is_known(world: World) -> None:
    world.node_record = record(NOW)
    answer = await get_node(world, votes=False)
    assert (answer.asked, answer.polls) == (1, ())
    assert answer.records[0].fields["addresses"] == "192.0.2.1"


async def test_votes_about_a_node_are_editions_of_its_record(world: World) -> None:
    world.node_record = record(NOW - 50)
    world.witnesses = [
        Witness(NodeId(b"1" * 32), record(NOW)),
        Witness(NodeId(b"2" * 32), record(NOW)),
        Witness(NodeId(b"3" * 32), record(NOW - 50)),
        Witness(NodeId(b"4" * 32), None),
        Witness(NodeId(b"5" * 32), None, "no answer"),
    ]
    answer = await get_node(world, votes=True)
    assert (answer.records[0].votes, answer.records[0].dissent, answer.asked) == (2, 1, 4)
    assert [poll.outcome for poll in answer.polls] == ["found"] * 3 + ["nothing", "failed"]
    assert [poll.votes[0].sequence for poll in answer.polls[:3]] == [int(NOW)] * 2 + [int(NOW) - 50]


@pytest.mark.parametrize("by_address", [False, True])
async def test_a_banned_node_is_said_to_be_banned(world: World, *, by_address: bool) -> None:
    world.node_record = Unreachable("nobody knows it")
    world.known = [record(NOW)]
    place = pack_prefix(ipaddress.ip_network("192.0.2.0/24"))
    command = sign_override(
        SigningKey(b"o" * 32),
        NETWORK.network_id,
        number=7,
        action=OverrideAction.BAN_PREFIX if by_address else OverrideAction.BAN_NODE,
        subject=place if by_address else NODE,
        created=NOW,
        expires=NOW + DAY,
    )
    for standing in Standing:
        world.commands = [(command, standing)]
        with pytest.raises(ControlError) as refusal:
            await get_node(world, votes=False)
        assert refusal.value.code == "not_found"
        banned = "is banned here by override command 7 until 2027-01-16 08:00 UTC"
        assert (banned in str(refusal.value)) is (standing is Standing.IN_FORCE)


async def test_an_unknown_node(world: World) -> None:
    world.node_record = Unreachable("nobody knows it")
    with pytest.raises(ControlError) as refusal:
        await get_node(world, votes=True)
    assert refusal.value.code == "not_found"
