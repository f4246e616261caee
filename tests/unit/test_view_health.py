"""The warnings of ``status``: each of them comes when it should, and not otherwise."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from view_world import NOW, OWN_ID, FakeIdentity, World

from phantom_tun.clock import DAY, MINUTE
from phantom_tun.config import Config
from phantom_tun.crypto.signing import SigningKey
from phantom_tun.ids import PublicKey
from phantom_tun.net.addresses.pins import PinChanged
from phantom_tun.netdb.banned import pack_prefix
from phantom_tun.netdb.overrides import Standing
from phantom_tun.netdb.signing import sign_override
from phantom_tun.testing.fake_owner import FakeOwner
from phantom_tun.testing.record_factory import NETWORK, NodeMaker
from phantom_tun.view.health import (
    BUILT_WITHIN,
    DEATHS_WITHIN,
    DIALED_WITHIN,
    JOINED_WITHIN,
    TRIED_SHOWN,
    PathDeaths,
    warnings,
)
from phantom_tun.wire.records import OverrideAction, OverrideRecord


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_healthy_node_has_nothing_to_say(world: World) -> None:
    assert warnings(world.node) == []


def test_files_that_could_not_be_written_are_told(world: World) -> None:
    world.node.netdb.unwritten = {Path("nodes.cache"): "can't write nodes.cache"}
    world.node.guard_file.problem = "can't write guards.json"
    world.node.pins.problem = "can't write pins"
    first, second, third = warnings(world.node)
    assert first.startswith("can't write nodes.cache; ")
    assert second.startswith("can't write guards.json; ")
    assert third.startswith("can't write pins; ")


def test_deaths_count_within_their_time() -> None:
    deaths = PathDeaths()
    for time in (0.0, 300.0, 599.0):
        deaths.note(time)
    assert deaths.recent(599.0) == 3
    assert deaths.recent(600.0) == 2
    assert deaths.recent(599.0 + DEATHS_WITHIN) == 0


@pytest.mark.parametrize(("count", "warned"), [(0, False), (2, False), (3, True), (9, True)])
def test_repeated_deaths_of_paths_are_told(world: World, count: int, *, warned: bool) -> None:
    for _ in range(count):
        world.deaths.note(NOW - MINUTE)
    said = warnings(world.node)
    assert bool(said) == warned
    assert all(f"{count} paths died before their time within 10 minutes" in line for line in said)


@pytest.mark.parametrize(("count", "warned"), [(0, False), (2, False), (3, True)])
def test_tunnels_that_die_again_and_again_are_told(
    world: World, count: int, *, warned: bool
) -> None:
    world.repeated = count
    said = warnings(world.node)
    assert bool(said) == warned
    assert all(
        "3 times within ten minutes a connection lost a tunnel again" in line for line in said
    )


def test_old_deaths_are_not_told(world: World) -> None:
    for _ in range(9):
        world.deaths.note(NOW - DEATHS_WITHIN)
    assert warnings(world.node) == []


def test_an_identity_without_paths_says_why(world: World) -> None:
    world.identities.append(FakeIdentity("web"))
    world.entries = 0
    world.problems = {("web", "entry"): "the first member can't be reached"}
    assert warnings(world.node) == [
        "no entry path for 'default', so nobody can reach it: none is built yet",
        "no entry path for 'web', so nobody can reach it: the first member can't be reached",
    ]
    world.exits = 0
    assert "it can't reach anybody" in warnings(world.node)[0]


def test_a_problem_is_no_news_while_a_path_stands(world: World) -> None:
    world.problems = {("default", "exit"): "too few nodes"}
    assert warnings(world.node) == []


def test_a_node_that_just_started_isnt_warned_of_the_paths_it_builds(world: World) -> None:
    world.exits = 0
    world.up_for = BUILT_WITHIN - 1
    assert warnings(world.node) == []
    world.problems = {("default", "exit"): "too few nodes"}
    assert "too few nodes" in warnings(world.node)[0]


@pytest.mark.parametrize("state", ["starting", "joining", "stopping"])
def test_nothing_is_expected_of_a_node_that_isnt_there(world: World, state: str) -> None:
    world.exits, world.state, world.up_for = 0, state, JOINED_WITHIN - 1
    assert warnings(world.node) == []


def test_a_node_that_nobody_lets_in_is_told_where_to_look(world: World) -> None:
    world.state, world.up_for = "joining", JOINED_WITHIN
    (line,) = warnings(world.node)
    assert line.startswith("none of the nodes that the profile names has answered for 10 s: is")


def test_where_nodes_of_the_profile_were_looked_for_is_told(world: World) -> None:
    world.state, world.up_for = "joining", JOINED_WITHIN
    known = NodeMaker(1).record().ref()
    four = replace(known, address=ipaddress.ip_address("192.0.2.2"))
    six = replace(known, address=ipaddress.ip_address("fd00::2"), port=8443)
    world.unanswered = [(four, "the node did not answer in time"), (six, "no route")]
    (line,) = warnings(world.node)
    assert (
        "for 10 s (192.0.2.2:443: the node did not answer in time; [fd00::2]:8443: no route): is"
    ) in line
    world.unanswered = [(four, "no")] * (TRIED_SHOWN + 2)
    assert "; and 2 other addresses)" in warnings(world.node)[0]


def test_a_node_whose_links_are_all_gone_may_be_banned(tmp_path: Path) -> None:
    world = World(tmp_path, neighbours=0, silent_neighbours=3)
    (said,) = warnings(world.node)
    assert said.startswith("no link to any other node stands")
    assert "banned" not in said
    world = World(tmp_path, neighbours=0, silent_neighbours=3, override_keys=(bytes(32),))
    (said,) = warnings(world.node)
    assert "or the network has banned this node" in said
    for _ in range(3):
        world.deaths.note(NOW)
    assert [each.count("the network has banned this node") for each in warnings(world.node)] == [
        1,
        1,
    ]
    world.neighbours = 1
    (said,) = warnings(world.node)
    assert "banned" not in said
    world.neighbours, world.deaths = 0, PathDeaths()
    world.state = "joining"
    (said,) = warnings(world.node)
    assert "or the network has banned this node" in said


def test_the_first_node_of_a_network_has_nobody_to_miss(tmp_path: Path) -> None:
    world = World(tmp_path, neighbours=0, known=[], override_keys=(bytes(32),))
    assert warnings(world.node) == []
    world.bootstrap.append(SimpleNamespace(node_id=OWN_ID))
    assert warnings(world.node) == []
    world.bootstrap.append(SimpleNamespace(node_id=bytes(32)))
    assert "no link to any other node" in warnings(world.node)[0]


def test_a_node_that_nobody_dials_is_told_of_firewalls(world: World) -> None:
    world.dialable, world.up_for = None, DIALED_WITHIN - 1
    assert warnings(world.node) == []
    world.up_for = DIALED_WITHIN
    (line,) = warnings(world.node)
    assert "no other node has reached port 443" in line


def test_a_node_that_cant_be_dialed_is_told_what_that_means(tmp_path: Path) -> None:
    config = Config()
    config = msgspec.structs.replace(
        config, node=msgspec.structs.replace(config.node, dialable=False)
    )
    world = World(tmp_path, config, dialable=False)
    (line,) = warnings(world.node)
    assert "guards.trusted" in line


def test_paths_without_hops_are_told_to_hide_nobody(tmp_path: Path) -> None:
    assert "exit paths have no hops" in warnings(World(tmp_path, exit_hops=0).node)[0]
    assert "entry paths have no hops" in warnings(World(tmp_path, entry_hops=0).node)[0]
    for line in warnings(World(tmp_path, exit_hops=0, entry_hops=0).node):
        assert "interface.ephemeral_callers" not in line, "there is nothing that it would undo"
    (line,) = warnings(World(tmp_path, exit_hops=0, entry_hops=3).node)
    assert "where the address is that you connect from, which your entry paths hide" in line
    (line,) = warnings(World(tmp_path, exit_hops=3, entry_hops=0).node)
    assert "also those you connect to from them over exit paths with hops" in line
    relay = World(tmp_path, exit_hops=0, entry_hops=0, identities=[], interface=None)
    assert warnings(relay.node) == []


def test_a_changed_owner_comes_first(world: World) -> None:
    address = FakeOwner().ap4
    world.pins.confirm(address, PublicKey(b"a" * 32), 2)
    with pytest.raises(PinChanged):
        world.pins.confirm(address, PublicKey(b"b" * 32), 2)
    world.publisher_warnings = ["the AP4 address had to change"]
    first, second = warnings(world.node)
    assert f"phantom-tun pins accept {address}" in first
    assert second == "the AP4 address had to change"


def override(action: OverrideAction, subject: bytes) -> OverrideRecord:
    return sign_override(
        SigningKey(b"o" * 32),
        NETWORK.network_id,
        number=1,
        action=action,
        subject=subject,
        created=NOW,
        expires=NOW + DAY,
    )


def test_a_ban_of_this_node_is_told(world: World) -> None:
    own = NodeMaker(1).record()
    place = pack_prefix(ipaddress.ip_network(f"{own.ips[0]}/32"))
    for action, subject in (
        (OverrideAction.BAN_NODE, own.node_id),
        (OverrideAction.BAN_PREFIX, place),
    ):
        for standing in Standing:
            world.commands = [(override(action, subject), standing)]
            said = warnings(world.node)
            if standing in {Standing.REPLACED, Standing.OVER_BUDGET}:
                assert not said
            else:
                assert "an override command bans this node" in said[0]


def test_other_override_commands_are_none_of_its_business(world: World) -> None:
    elsewhere = pack_prefix(ipaddress.ip_network("192.0.2.0/24"))
    world.commands = [
        (override(action, subject), Standing.IN_FORCE)
        for action, subject in (
            (OverrideAction.BAN_NODE, bytes(32)),
            (OverrideAction.BAN_PREFIX, elsewhere),
            (OverrideAction.UNBAN_NODE, NodeMaker(1).record().node_id),
            (OverrideAction.DELETE_RECORD, bytes(32)),
        )
    ]
    assert warnings(world.node) == []


def test_what_is_missing_of_the_leak_guard_comes_first(world: World) -> None:
    world.interface_warnings = ["others can find out which AP addresses this machine has"]
    world.publisher_warnings = ["nobody stores them"]
    assert warnings(world.node) == [*world.interface_warnings, *world.publisher_warnings]
