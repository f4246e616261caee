"""``why``: every place where the way can end has its own words and its own advice."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock
from view_world import FakeEcho, FakeIdentity, FakeStream, World, found_of, resolved_of

from phantom_tun.config import Config
from phantom_tun.control.model import Verdict, WhyStep
from phantom_tun.errors import (
    Filtered,
    NoAnswer,
    PathUnavailable,
    Refused,
    Unreachable,
    WorldError,
)
from phantom_tun.ids import ApAddress, PublicKey
from phantom_tun.net.addresses.identities import LeaseState
from phantom_tun.net.addresses.inquiry import NotPublished
from phantom_tun.net.addresses.pins import PinChanged
from phantom_tun.testing.fake_owner import FakeOwner
from phantom_tun.view.backend import NodeView
from phantom_tun.view.why import FAREWELL, STEP_WITHIN

FAR = FakeOwner()


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)

    async def resolve(_address: ApAddress) -> Any:
        return resolved_of(FAR)

    made.resolve = resolve
    return made


async def why(
    world: World, address: ApAddress = FAR.ap6, port: int | None = None
) -> tuple[Verdict, dict[str, WhyStep]]:
    """The verdict, and how each step ended."""
    ended: dict[str, WhyStep] = {}
    begun: list[str] = []

    async def report(step: WhyStep) -> None:
        if step.outcome == "trying":
            begun.append(step.name)
        else:
            assert step.name not in ended
            assert (step.outcome == "skipped") == (step.name not in begun)
            ended[step.name] = step

    verdict = await NodeView(world.node).why(address, port, report)
    return verdict, ended


def outcomes(steps: dict[str, WhyStep]) -> str:
    return " ".join(f"{name}:{step.outcome}" for name, step in steps.items())


async def test_all_is_well(world: World, autojump_clock: MockClock) -> None:
    echo, stream = FakeEcho(), FakeStream()
    world.echoes, world.streams = [echo], [stream]
    verdict, steps = await why(world, port=80)
    assert verdict == Verdict(True, "It works.", "")
    assert {step.outcome for step in steps.values()} == {"ok"}
    assert [step.detail for step in steps.values()] == [
        "phantom0 is up",
        "linked with 5 other nodes",
        "2 exit paths ready",
        "published, 2 ways in",
        "answers in 12.0 ms",
        "port 80 accepts connections",
    ]
    assert echo.closed
    assert stream.steps == ["end", "close"]


@pytest.mark.parametrize("stream", [FakeStream(endless=True), FakeStream(resets=True)])
async def test_a_service_is_left_in_order_whatever_it_does(
    world: World, autojump_clock: MockClock, stream: FakeStream
) -> None:
    world.echoes, world.streams = [FakeEcho()], [stream]
    verdict, _ = await why(world, port=80)
    assert verdict.reachable
    assert stream.steps == ["end", "close"]
    assert trio.current_time() <= FAREWELL + 0.1


async def test_without_a_port_no_service_is_tried(world: World, autojump_clock: MockClock) -> None:
    world.echoes = [FakeEcho()]
    _, steps = await why(world)
    assert "service" not in steps


async def test_a_node_that_answers_no_pings_can_be_reached(world: World) -> None:
    world.echoes, world.streams = [Filtered("pings are off")], [FakeStream()]
    verdict, steps = await why(world, port=80)
    assert verdict.reachable
    assert steps["handshake"].detail == "reached; it doesn't answer pings"


# --- our own side --------------------------------------------------------------------------------


async def test_a_relay_reaches_nobody(tmp_path: Path) -> None:
    config = Config()
    config = msgspec.structs.replace(
        config, node=msgspec.structs.replace(config.node, relay_only=True)
    )
    world = World(tmp_path, config, identities=[], interface=None)
    verdict, steps = await why(world, port=80)
    assert "only relays" in verdict.summary
    assert verdict.reason == "no_interface"
    assert verdict.fix == "set node.relay_only = false, or run 'phantom-tun why' on another node"
    assert outcomes(steps) == (
        "interface:failed network:skipped path:skipped record:skipped handshake:skipped "
        "service:skipped"
    )


@pytest.mark.parametrize("state", ["starting", "joining"])
async def test_a_node_on_its_way_says_so(world: World, state: str) -> None:
    world.state = state
    verdict, steps = await why(world)
    assert steps["network"].outcome == "failed"
    assert state in steps["network"].detail
    assert "phantom-tun status" in verdict.fix


async def test_a_machine_without_connection(world: World) -> None:
    world.neighbours = 0
    verdict, steps = await why(world)
    assert (steps["network"].outcome, steps["path"].outcome) == ("failed", "skipped")
    assert "this machine's connection" in verdict.fix
    assert "banned" not in verdict.summary
    world.node.profile.override_keys = (bytes(32),)
    assert "or the network has banned this node" in (await why(world))[0].summary


async def test_the_only_node_of_a_network(world: World) -> None:
    world.neighbours, world.known = 0, []
    verdict, _ = await why(world)
    assert verdict.reason == "no_links"
    assert "nobody has joined it yet" in verdict.summary
    assert "network invite" in verdict.fix


async def test_without_exit_paths_it_says_why(world: World) -> None:
    world.exits = 0
    verdict, steps = await why(world)
    assert "none is built" not in verdict.summary
    assert "the first one isn't built yet" in verdict.summary
    world.problems = {("default", "exit"): "too few nodes are known"}
    verdict, steps = await why(world)
    assert steps["path"].outcome == "failed"
    assert verdict.summary == (
        "It doesn't work: no exit path of 'default' stands: too few nodes are known."
    )


async def test_an_exit_path_that_fails_on_the_way_is_our_own_trouble(world: World) -> None:
    world.echoes = [PathUnavailable("the tunnel broke off")]
    verdict, steps = await why(world)
    assert steps["handshake"].detail == "this node's own way out failed (the tunnel broke off)"
    assert "paths rebuild" in verdict.fix


async def test_without_ap4_address_only_ap6_can_be_tried(world: World) -> None:
    world.identities[0].ap4_state = LeaseState.RESERVING
    verdict, _ = await why(world, FAR.ap4)
    assert "holds no IPv4 address yet" in verdict.summary
    assert verdict.reason == "no_ipv4_yet"
    world.echoes = [FakeEcho()]
    assert (await why(world, FAR.ap6))[0].reachable


# --- the address ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "2001:db8::1", "240.0.0.7", "2001:2f::1", "240.3.0.1"]
)
async def test_an_address_of_another_kind_of_network(world: World, address: str) -> None:
    import ipaddress

    verdict, steps = await why(world, ipaddress.ip_address(address))
    assert "can't belong to anybody" in steps["record"].detail
    assert verdict.reason == "not_an_ap_address"
    reserved = {
        "240.0.0.7": "240.0.0.0/16 is reserved for the interface itself",
        "2001:2f::1": "2001:2f::/64 is reserved for the interface itself",
        "240.3.0.1": "240.3.0.0/16 is reserved",
    }
    outside = "the AP addresses of this network are in 240.0.0.0/14 and 2001:2f::/32"
    assert steps["record"].detail.endswith(f": {reserved.get(address, outside)}")
    assert verdict.fix == "check the address"
    assert world.resolved == []


async def test_an_address_that_nobody_has(world: World) -> None:
    world.resolve = NotPublished()
    verdict, steps = await why(world)
    assert steps["record"].detail == f"nobody has published the AP address {FAR.ap6}"
    assert "check the address with its owner" in verdict.fix
    assert verdict.reason == "not_published"


async def test_an_address_without_way_in(world: World) -> None:
    world.resolve = Unreachable("it exists, but no way in to it is published at the moment")
    verdict, _ = await why(world)
    assert "no way in" in verdict.summary
    assert "ask its owner" in verdict.fix


async def test_an_address_whose_owner_has_changed(world: World) -> None:
    world.pins.confirm(FAR.ap4, PublicKey(b"a" * 32), 2)
    with pytest.raises(PinChanged) as changed:
        world.pins.confirm(FAR.ap4, PublicKey(b"b" * 32), 2)
    world.resolve = changed.value
    verdict, steps = await why(world, FAR.ap4)
    assert steps["record"].detail == "its owner isn't the one that is pinned"
    assert verdict.summary == str(changed.value)
    assert f"phantom-tun pins accept {FAR.ap4}" in verdict.fix


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Unreachable("none works"), "2 ways in published, and none of them works"),
        (NoAnswer("nobody answered in time"), "doesn't answer (nobody answered in time)"),
        (FakeEcho(dies=True), "doesn't answer (the tunnel ended)"),
    ],
)
async def test_a_far_node_that_is_gone(
    world: World, outcome: FakeEcho | Exception, said: str
) -> None:
    world.echoes = [outcome]
    verdict, steps = await why(world, port=80)
    assert said in steps["handshake"].detail
    assert steps["service"].outcome == "skipped"
    assert "try again in a minute, then ask its owner" in verdict.fix
    if isinstance(outcome, FakeEcho):
        assert outcome.closed


async def test_a_step_that_takes_for_ever_is_given_up(
    world: World, autojump_clock: MockClock
) -> None:
    echo = FakeEcho(silent=True)
    world.echoes = [echo]
    verdict, steps = await why(world)
    assert steps["handshake"].detail == "no answer in time"
    assert steps["handshake"].took_ms == pytest.approx(STEP_WITHIN * 1000)
    assert not verdict.reachable
    assert echo.closed


# --- the service ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "reason", "said", "advice"),
    [
        (Refused("x"), "refused", "port 80 is exposed, but nothing listens there", "start the"),
        (Filtered("x"), "not_exposed", "port 80 isn't exposed, or not to 2001:", "expose 80'"),
        (NoAnswer("x"), "no_answer", "port 80 doesn't answer", "try again in a minute"),
        (Unreachable("x"), "no_way_in", "port 80 can't be reached (x)", "try again in a minute"),
    ],
)
async def test_a_service_that_isnt_there(
    world: World, autojump_clock: MockClock, outcome: Exception, reason: str, said: str, advice: str
) -> None:
    world.echoes, world.streams = [FakeEcho()], [outcome]
    verdict, steps = await why(world, port=80)
    assert steps["handshake"].outcome == "ok"
    assert steps["service"].detail.startswith(said)
    assert advice in verdict.fix
    assert verdict.reason == reason


# --- our own addresses ---------------------------------------------------------------------------


async def test_an_own_address_that_others_reach(world: World) -> None:
    own = world.identities[0]
    world.asked = [found_of(own.owner)]
    verdict, steps = await why(world, own.ap6)
    assert verdict == Verdict(True, "It is this node's own address, and others can reach it.", "")
    assert steps["path"].detail == "2 entry paths ready"
    assert (steps["handshake"].outcome, world.resolved) == ("skipped", [])


async def test_an_own_address_without_entry_path(world: World) -> None:
    world.entries = 0
    world.problems = {("default", "entry"): "too few nodes are known"}
    verdict, steps = await why(world, world.identities[0].ap6)
    assert steps["path"].outcome == "failed"
    assert "too few nodes" in verdict.summary


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (None, "it isn't published"),
        (found_of(FakeOwner(), routes=0), "no way in is published"),
        (found_of(FakeOwner()), "names another owner"),
        (WorldError("no answer"), "gave no answer (no answer)"),
    ],
)
async def test_an_own_address_that_isnt_published_right(
    world: World, said: Any, detail: str
) -> None:
    world.asked = [said]
    verdict, steps = await why(world, world.identities[0].ap6)
    assert detail in steps["record"].detail
    assert not verdict.reachable


async def test_an_own_service(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    own = FakeIdentity("web")
    world.identities.append(own)
    world.asked = [found_of(own.owner)]
    verdict, _ = await why(world, own.ap6, 80)
    assert verdict.summary == "It doesn't work: port 80 isn't exposed."
    assert "phantom-tun expose 80 --identity web" in verdict.fix

    with socket.create_server(("127.0.0.1", 0)) as service:
        port = service.getsockname()[1]
        _stand_for(monkeypatch, "127.0.0.1")
        world.rules.expose("web", "tcp", 80, to=(str(FAR.ap6),), target_port=port)
        verdict, steps = await why(world, own.ap6, 80)
        assert steps["service"].detail == (
            "port 80 is exposed to 1 address only and accepts connections"
        )
        assert verdict.reachable
    verdict, steps = await why(world, own.ap6, 80)
    assert "but nothing listens there" in steps["service"].detail
    assert "start the service" in verdict.fix


def _stand_for(monkeypatch: pytest.MonkeyPatch, local: str) -> None:
    """No interface has the AP address: connect to ``local`` instead."""
    connect = trio.open_tcp_stream
    monkeypatch.setattr(trio, "open_tcp_stream", lambda _host, port: connect(local, port))
