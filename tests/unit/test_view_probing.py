"""``ping``: what is worth another try and what isn't."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock
from view_world import FakeEcho, World

from phantom_tun.control.model import PingReply, PingSummary
from phantom_tun.control.schema import ControlError
from phantom_tun.errors import (
    CapacityExceeded,
    Filtered,
    NoAnswer,
    PathUnavailable,
    PhantomError,
    Unreachable,
)
from phantom_tun.ids import ApAddress, PublicKey
from phantom_tun.net.addresses.identities import LeaseState
from phantom_tun.net.addresses.inquiry import NotPublished
from phantom_tun.net.addresses.pins import PinChange, PinChanged
from phantom_tun.testing.fake_owner import FakeOwner
from phantom_tun.view.backend import NodeView

FAR = FakeOwner()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def ping(
    world: World, count: int, address: ApAddress = FAR.ap6, timeout_s: float = 2.0
) -> tuple[PingSummary, list[PingReply]]:
    replies: list[PingReply] = []

    async def report(reply: PingReply) -> None:
        replies.append(reply)
        await trio.lowlevel.checkpoint()

    summary = await NodeView(world.node).ping(
        address, count=count, interval_s=1.0, timeout_s=timeout_s, size=56, report=report
    )
    return summary, replies


async def test_one_exchange_serves_all_pings(world: World, autojump_clock: MockClock) -> None:
    echo = FakeEcho()
    world.echoes = [echo]
    summary, replies = await ping(world, 3)
    assert [(reply.sequence, reply.size, reply.error) for reply in replies] == [
        (1, 64, None),
        (2, 64, None),
        (3, 64, None),
    ]
    assert (summary.sent, summary.received) == (3, 3)
    assert summary.mean_ms == pytest.approx(12.0)
    assert echo.closed
    assert trio.current_time() == pytest.approx(2.036)


async def test_a_silent_ping_is_lost_and_the_next_is_sent(
    world: World, autojump_clock: MockClock
) -> None:
    world.echoes = [FakeEcho(silent=True)]
    summary, replies = await ping(world, 2)
    assert replies == [PingReply(1, 0, None), PingReply(2, 0, None)]
    assert summary.received == 0
    assert trio.current_time() == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (FakeEcho(dies=True), "the tunnel ended"),
        (Unreachable("none of the ways in works"), "none of the ways in works"),
        (NoAnswer("nobody answered"), "nobody answered"),
        (CapacityExceeded("too many connections"), "too many connections"),
    ],
)
async def test_a_connection_that_fails_is_made_again(
    world: World, autojump_clock: MockClock, failure: FakeEcho | PhantomError, said: str
) -> None:
    world.echoes = [failure, FakeEcho()]
    summary, replies = await ping(world, 2)
    assert replies[0] == PingReply(1, 0, None, said)
    assert replies[1].error is None
    assert (summary.sent, summary.received) == (2, 1)
    if isinstance(failure, FakeEcho):
        assert failure.closed


@pytest.mark.parametrize("fails", [False, True])
async def test_a_slow_connection_takes_the_time_of_several_pings(
    world: World, autojump_clock: MockClock, *, fails: bool
) -> None:
    echoes: list[FakeEcho] = []

    async def slow(*_: object) -> FakeEcho:
        echoes.append(FakeEcho())
        await trio.sleep(7.5)
        if fails and len(echoes) == 1:
            raise Unreachable("no way works")
        return echoes[-1]

    world.node.sessions.open_echo = slow
    _, replies = await ping(world, 3, timeout_s=3.0)
    assert [reply.rtt_ms is None for reply in replies[:2]] == [True, True]
    # 3 + 1 + 3 s are over: it comes, or fails, before the third ping is sent.
    assert trio.current_time() == pytest.approx(8.0 if fails else 8.012)
    assert (replies[2].rtt_ms is None, replies[2].error) == (
        (True, "no way works") if fails else (False, None)
    )
    assert len(echoes) == 1
    assert echoes[0].closed != fails


async def test_a_connection_is_made_once_more_after_it_has_failed(
    world: World, autojump_clock: MockClock
) -> None:
    world.echoes = [FakeEcho(dies=True), Unreachable("still away"), FakeEcho()]
    _, replies = await ping(world, 4)
    assert [reply.error for reply in replies] == ["the tunnel ended", "still away", None, None]


async def test_giving_up_ends_a_connection_that_is_being_made(
    world: World, autojump_clock: MockClock
) -> None:
    ended = False

    async def endless(*_: object) -> FakeEcho:
        nonlocal ended
        try:
            await trio.sleep_forever()
        finally:
            ended = True
        raise AssertionError

    world.node.sessions.open_echo = endless
    await ping(world, 1)
    assert ended


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (NotPublished(), "not_found", "nobody has published the AP address"),
        (Filtered("off"), "timeout", "doesn't answer pings"),
    ],
)
async def test_what_wont_change_ends_it(
    world: World, failure: PhantomError, code: str, said: str
) -> None:
    world.echoes = [failure]
    with pytest.raises(ControlError, match=said) as refusal:
        await ping(world, 5)
    assert refusal.value.code == code


async def test_a_changed_owner_ends_it_with_the_explanation(world: World) -> None:
    pin = world.pins.confirm(FAR.ap4, PublicKey(b"a" * 32), 2)
    world.echoes = [PinChanged(PinChange(pin, PublicKey(b"b" * 32), 2, 0.0))]
    with pytest.raises(ControlError, match=f"phantom-tun pins accept {FAR.ap4}") as refusal:
        await ping(world, 5, FAR.ap4)
    assert refusal.value.code == "conflict"


async def test_without_way_out_it_ends(world: World) -> None:
    world.echoes = [PathUnavailable("the tunnel broke off")]
    with pytest.raises(PathUnavailable, match="broke off"):
        await ping(world, 5)
    world.exits, world.problems = 0, {("default", "exit"): "too few nodes are known"}
    with pytest.raises(PathUnavailable, match="of 'default' stands: too few nodes are known"):
        await ping(world, 5)
    # Without any path its IPv6 address is of no use either.
    world.identities[0].ap4_state = LeaseState.RESERVING
    with pytest.raises(PathUnavailable, match="of 'default' stands"):
        await ping(world, 5, FAR.ap4)
    world.exits = 1
    with pytest.raises(ControlError, match="its IPv6 address works already"):
        await ping(world, 5, FAR.ap4)


async def test_own_and_impossible_addresses_are_not_pinged(world: World) -> None:
    with pytest.raises(ControlError, match=r"own address.*phantom-tun why") as refusal:
        await ping(world, 1, world.identities[0].ap6)
    assert refusal.value.code == "invalid"
    with pytest.raises(ControlError, match="can't belong to anybody") as refusal:
        await ping(world, 1, ipaddress.ip_address("10.0.0.1"))
    assert refusal.value.code == "not_found"
