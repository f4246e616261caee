"""A new address waits for what it needs, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock
from view_world import FakeIdentity, World

from phantom_tun.config import Config
from phantom_tun.control.model import Progress
from phantom_tun.control.schema import ControlError
from phantom_tun.net.addresses.identities import LeaseState
from phantom_tun.view import identities
from phantom_tun.view.backend import NodeView


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class Told:
    """What was reported."""

    def __init__(self) -> None:
        self.events: list[Progress] = []

    async def __call__(self, progress: Progress) -> None:
        self.events.append(progress)
        await trio.lowlevel.checkpoint()


def relay_only() -> Config:
    config = Config()
    return msgspec.structs.replace(
        config, node=msgspec.structs.replace(config.node, relay_only=True)
    )


async def test_a_new_address_waits_for_paths_and_its_claim(
    world: World, autojump_clock: MockClock
) -> None:
    told = Told()
    world.exits = world.entries = 0

    async def come_up() -> None:
        await trio.sleep(1)
        world.exits = 1
        world.tell_progress()
        await trio.sleep(1)
        world.tell_progress()
        await trio.sleep(1)
        world.entries = 1
        world.identities[-1].ap4_state = LeaseState.HELD
        world.tell_progress()

    def claiming(identity: FakeIdentity) -> None:
        identity.ap4_state = LeaseState.RESERVING

    world.after_add = claiming
    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_up)
        info = await NodeView(world.node).new_address("web", told)
    ap4 = world.identities[-1].owner.ap4
    assert told.events == [
        Progress(
            f"waiting for an exit path, an entry path and its IPv4 address {ap4} to be claimed",
            0,
            3,
        ),
        Progress(f"waiting for an entry path and its IPv4 address {ap4} to be claimed", 1, 3),
    ]
    assert (info.name, info.ap4, info.ap4_state, info.missing) == ("web", str(ap4), "held", ())
    assert trio.current_time() == pytest.approx(3)


async def test_a_change_during_a_report_isnt_missed(
    world: World, autojump_clock: MockClock
) -> None:
    world.exits = 0

    async def report(_progress: Progress) -> None:
        world.exits = 1
        world.tell_progress()
        await trio.lowlevel.checkpoint()

    await identities.make(world.node, "web", report)
    assert trio.current_time() == 0


async def test_a_new_address_that_doesnt_get_ready_is_a_timeout_and_stays(
    world: World, autojump_clock: MockClock
) -> None:
    world.entries = 0
    with pytest.raises(ControlError, match="still waits for an entry path; it goes on") as failure:
        await identities.make(world.node, "web", Told())
    assert failure.value.code == "timeout"
    assert [identity.name for identity in world.identities] == ["default", "web"]
    (_, listed) = await NodeView(world.node).addresses()
    assert listed.missing == ("an entry path",)


async def test_names_are_unique(world: World) -> None:
    with pytest.raises(ControlError) as failure:
        await identities.make(world.node, "default", Told())
    assert failure.value.code == "conflict"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("starting", "the node is still starting"),
        ("joining", "the node is still joining the network"),
        ("stopping", "the node is stopping"),
    ],
)
async def test_what_needs_the_network_isnt_done_without_it(
    world: World, state: str, said: str
) -> None:
    world.state = state
    view = NodeView(world.node)
    far = world.identities[0].ap6
    attempts: list[Any] = [
        lambda: view.new_address("web", Told()),
        lambda: view.remove_address("default"),
        lambda: view.rebuild_paths(None, Told()),
        lambda: view.netdb_get(far, votes=False),
        lambda: view.ping(
            far, count=1, interval_s=1, timeout_s=1, size=0, report=lambda _reply: None
        ),
    ]
    for attempt in attempts:
        with pytest.raises(ControlError, match=said) as failure:
            await attempt()
        assert failure.value.code == "unavailable"


async def test_a_relay_has_no_addresses(tmp_path: Path) -> None:
    world = World(tmp_path, relay_only(), identities=[], interface=None)
    view = NodeView(world.node)
    assert await view.addresses() == ()
    far = FakeIdentity().ap6
    attempts: list[Any] = [
        lambda: view.new_address("web", Told()),
        lambda: view.expose(None, 80, "tcp", None, 80),
        lambda: view.unexpose(None, 80, "tcp"),
        lambda: view.rebuild_paths(None, Told()),
        lambda: view.netdb_get(far, votes=False),
        lambda: view.ping(
            far, count=1, interval_s=1, timeout_s=1, size=0, report=lambda _reply: None
        ),
    ]
    for attempt in attempts:
        with pytest.raises(ControlError, match="only relays") as failure:
            await attempt()
        assert failure.value.code == "unavailable"


async def test_a_node_without_interface_says_so(tmp_path: Path) -> None:
    world = World(tmp_path, identities=[], interface=None)
    with pytest.raises(ControlError, match="has no interface"):
        await NodeView(world.node).expose(None, 80, "tcp", None, 80)


async def test_an_unknown_name_is_answered_with_those_there_are(world: World) -> None:
    world.identities.append(FakeIdentity("web"))
    with pytest.raises(ControlError, match="there are: default, web") as failure:
        await NodeView(world.node).remove_address("wob")
    assert failure.value.code == "not_found"


async def test_the_last_address_stays(world: World) -> None:
    with pytest.raises(ControlError, match="the only address") as failure:
        await NodeView(world.node).remove_address("default")
    assert failure.value.code == "conflict"


async def test_rules_are_those_of_the_identity_that_is_named(world: World) -> None:
    world.identities.append(FakeIdentity("web"))
    view = NodeView(world.node)
    await view.expose(None, 80, "tcp", None, 80)
    rule = await view.expose("web", 80, "tcp", (world.identities[0].ap6,), 8080)
    assert rule.hint == "" or "local port 8080/tcp" in rule.hint
    assert (rule.identity, rule.to, rule.target_port) == (
        "web",
        (str(world.identities[0].ap6),),
        8080,
    )
    with pytest.raises(ControlError, match="unexpose 80/tcp --identity web' first") as failure:
        await view.expose("web", 80, "tcp", None, 80)
    assert failure.value.code == "conflict"
    default, web = await view.addresses()
    assert [len(default.exposed), len(web.exposed)] == [1, 1]
    await view.unexpose("web", 80, "tcp")
    with pytest.raises(ControlError) as failure:
        await view.unexpose("web", 80, "tcp")
    assert failure.value.code == "not_found"
    with pytest.raises(ControlError, match="can't belong to anybody") as failure:
        await view.expose("web", 80, "tcp", (world.node.network.ap6.network_address + 1,), 80)
    assert failure.value.code == "invalid"
    assert [rule.identity for rule in await view.exposed()] == ["default"]
