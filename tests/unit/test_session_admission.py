"""Callers of a service: whom it sees, and who is let in."""

from __future__ import annotations

import ipaddress

import pytest
import trio
from session_world import (
    ALICE,
    BOB,
    EVE,
    NAT4,
    NAT6,
    SOURCE_PORT,
    World,
    crafted,
    ends,
    receive_exactly,
    running_world,
    submitted,
)
from trio.testing import MockClock

from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import Filtered, PathUnavailable
from phantom_tun.net.sessions.callers import CONFIRM_WITHIN, MAX_ASKING, UNCONFIRMED_FOR
from phantom_tun.wire.session import Outcome

# --- whom the service sees -----------------------------------------------------------------------


async def caller_seen(world: World, over: int) -> Endpoint:
    stream = await world.connect(over=over)
    stream.abort()
    await trio.sleep(10)
    return world.bob.host.calls[-1][0]


async def test_the_service_sees_the_callers_ap6(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        assert await caller_seen(world, 6) == Endpoint(ALICE.ap6, SOURCE_PORT)
        assert world.directory.askers == [], "an AP6 address needs no confirmation"


async def test_the_service_sees_the_callers_ap4_once_it_is_confirmed(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        assert await caller_seen(world, 4) == Endpoint(ALICE.ap4, SOURCE_PORT)
        assert world.directory.askers == ["bob"]


async def test_a_caller_without_a_port_gets_one(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        _, target = ends(80)
        await world.alice.service.open_stream(Endpoint(ALICE.ap6, 0), target)
        assert world.bob.host.calls[-1][0].port >= 1024


async def test_an_unconfirmed_caller_appears_as_a_nat_peer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.directory.leases.clear()
        seen = await caller_seen(world, 4)
        assert seen.address in NAT4
        assert seen.port == SOURCE_PORT
        assert await caller_seen(world, 4) == seen, "the same one as long as nobody needs it"


async def test_a_claim_on_somebody_elses_ap4_is_not_believed(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        assert EVE.ap4 is not None
        world.directory.leases[EVE.ap4] = EVE.signing.public
        request = crafted(world, destination=BOB.ap4, source_ap4=EVE.ap4)
        assert await submitted(world, request) is Outcome.CONNECTED
        assert world.bob.host.calls[-1][0].address in NAT4


async def test_waiting_for_a_confirmation_is_bounded_and_not_repeated(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        world.directory.confirm_delay = 100.0
        started = trio.current_time()
        (await world.connect(over=4)).abort()
        assert trio.current_time() - started == pytest.approx(CONFIRM_WITHIN)
        started = trio.current_time()
        (await world.connect(over=4)).abort()
        assert trio.current_time() == started
        world.directory.confirm_delay = 0.0
        await trio.sleep(UNCONFIRMED_FOR)
        assert (await caller_seen(world, 4)).address == ALICE.ap4


async def test_a_crowd_of_callers_has_only_so_many_questions_asked(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        world.directory.confirm_delay = 100.0
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(MAX_ASKING + 8):

                async def call(port: int = 2000 + number) -> None:
                    (await world.connect(over=4, source_port=port)).abort()

                nursery.start_soon(call)
        assert len(world.directory.askers) == MAX_ASKING
        assert trio.current_time() - started == pytest.approx(CONFIRM_WITHIN)


async def test_a_netdb_that_fails_confirms_nothing(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        request = crafted(world, destination=BOB.ap4)
        world.directory.failure = PathUnavailable("no path")
        assert await submitted(world, request) is Outcome.CONNECTED
        assert world.bob.host.calls[-1][0].address in NAT4


@pytest.mark.parametrize(("over", "block"), [(4, NAT4), (6, NAT6)])
async def test_an_ephemeral_caller_shows_nothing_of_itself(
    autojump_clock: MockClock, over: int, block: ipaddress.IPv4Network
) -> None:
    async with running_world(ephemeral=frozenset({"alice"})) as world:
        seen = []
        for _ in range(3):
            stream = await world.connect(over=over)
            await stream.send_all(memoryview(b"x"))
            assert await receive_exactly(stream, 1) == b"x"
            seen.append(world.bob.host.calls[-1][0])
        assert all(end.address in block for end in seen)
        assert len({end.address for end in seen}) == 3, "two connections have nothing in common"
        assert not world.bob.service._contexts._callee, "never needed again"
        assert SOURCE_PORT not in {end.port for end in seen}
        assert world.directory.askers == []


# --- who may -------------------------------------------------------------------------------------


async def test_a_rule_for_one_caller_lets_nobody_else_in(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.bob.rules.unexpose("bob", "tcp", 80)
        world.bob.rules.expose("bob", "tcp", 80, to=(str(EVE.ap6),))
        with pytest.raises(Filtered):
            await world.connect()
        assert world.bob.host.calls == []


@pytest.mark.parametrize("over", [4, 6])
@pytest.mark.parametrize("named", [4, 6])
async def test_a_rule_for_a_caller_lets_it_in_over_both_addresses(
    autojump_clock: MockClock, over: int, named: int
) -> None:
    async with running_world() as world:
        world.bob.rules.unexpose("bob", "tcp", 80)
        address = ALICE.ap4 if named == 4 else ALICE.ap6
        world.bob.rules.expose("bob", "tcp", 80, to=(str(EVE.ap6), str(address)))
        await world.connect(over=over)


async def test_an_unconfirmed_ap4_opens_no_door(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.directory.leases.clear()
        world.bob.rules.unexpose("bob", "tcp", 80)
        world.bob.rules.expose("bob", "tcp", 80, to=(str(ALICE.ap4),))
        with pytest.raises(Filtered):
            await world.connect()


async def test_an_ephemeral_caller_passes_no_rule_with_names(autojump_clock: MockClock) -> None:
    async with running_world(ephemeral=frozenset({"alice"})) as world:
        world.bob.rules.unexpose("bob", "tcp", 80)
        world.bob.rules.expose("bob", "tcp", 80, to=(str(ALICE.ap6),))
        with pytest.raises(Filtered):
            await world.connect()


async def test_another_target_port_is_connected_to(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        world.bob.rules.expose("bob", "tcp", 443, target_port=80)
        await world.connect(443)
        assert world.bob.host.calls[-1][1] == Endpoint(BOB.ap6, 80)
