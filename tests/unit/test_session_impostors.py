"""Who is at the other end: nothing altered, repeated or in another's name gets a word."""

from __future__ import annotations

import dataclasses
import ipaddress

import pytest
import trio
from session_world import (
    ALICE,
    BOB,
    ENTRY,
    EVE,
    NETWORK,
    START,
    crafted,
    running_world,
    sealed,
    submitted,
)
from trio.testing import MockClock

from phantom_tun.crypto.certificates import caller_context
from phantom_tun.crypto.sealing import SealingKey
from phantom_tun.crypto.x509 import make_certificate
from phantom_tun.errors import Unreachable
from phantom_tun.net.sessions.opening import LOOK_AFRESH_AFTER
from phantom_tun.net.sessions.serving import HANDSHAKE_WITHIN
from phantom_tun.tunnel.channel import CallerHandshake
from phantom_tun.tunnel.request import CLOCK_TOLERANCE, request_time, seal_request
from phantom_tun.wire.session import TIME_STEP, Outcome
from phantom_tun.wire.sizes import ANSWER_LEN, SEALED_REQUEST_LEN

ROUNDS = len(LOOK_AFRESH_AFTER)


# --- who is at the other end ---------------------------------------------------------------------


async def test_a_callee_with_another_certificate_is_not_believed(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        record = dataclasses.replace(
            world.directory.records[BOB.ap6], certificate=EVE.certificate.der
        )
        world.directory.records[BOB.ap6] = record
        with pytest.raises(Unreachable):
            await world.connect()
        assert world.alice.service.statistics()["open_route_failed_CryptoError"] == ROUNDS
        await trio.sleep(60)
        assert world.bob.service.sessions() == []


async def test_a_new_certificate_is_found_by_looking_again(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        good = world.directory.records[BOB.ap6]
        world.directory.records[BOB.ap6] = dataclasses.replace(good, certificate=b"old")
        world.directory.fresh_records[BOB.ap6] = good
        await world.connect()


async def test_an_outdated_request_key_gets_no_answer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        good = world.directory.records[BOB.ap6]
        stale = dataclasses.replace(good, request_key=SealingKey.generate().public)
        world.directory.records[BOB.ap6] = stale
        world.directory.fresh_records[BOB.ap6] = good
        await world.connect()
        assert world.counts()["request_dropped_CryptoError"] == 1


@pytest.mark.parametrize("position", [0, 100, 3000, ANSWER_LEN - 1])
async def test_an_altered_answer_is_no_answer(autojump_clock: MockClock, position: int) -> None:
    def alter(answer: bytes) -> bytes:
        return answer[:position] + bytes([answer[position] ^ 1]) + answer[position + 1 :]

    async with running_world() as world:
        world.way.alter_answer = alter
        with pytest.raises(Unreachable):
            await world.connect()
        await trio.sleep(60)
        assert world.bob.service.sessions() == []


@pytest.mark.parametrize(
    "position", [0, 1087, 1088, 1119, 1120, 1200, 2000, 4000, 4079, 4080, SEALED_REQUEST_LEN - 1]
)
async def test_an_altered_request_gets_no_answer(autojump_clock: MockClock, position: int) -> None:
    def alter(request: bytes) -> bytes:
        return request[:position] + bytes([request[position] ^ 1]) + request[position + 1 :]

    async with running_world() as world:
        world.way.alter_request = alter
        with pytest.raises(Unreachable):
            await world.connect()
        assert world.bob.host.calls == []
        assert world.counts()["request_dropped_CryptoError"] == ROUNDS


async def test_a_repeated_request_gets_no_answer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await world.connect()
        (exchange,) = world.network.exchanges
        with pytest.raises(Unreachable):
            await world.network.carry(*ENTRY, exchange.sealed_request)
        assert len(world.bob.host.calls) == 1
        assert world.counts()["request_dropped_ProtocolViolation"] == 1


async def test_a_request_that_was_refused_cant_be_repeated_either(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        request = crafted(world, port=79)
        data = sealed(request)
        assert await submitted(world, request, data) is Outcome.FILTERED
        world.bob.rules.expose("bob", "tcp", 79)
        assert await submitted(world, request, data) is None


@pytest.mark.parametrize(
    ("shift", "answered"),
    [
        (-CLOCK_TOLERANCE - TIME_STEP, False),
        (-CLOCK_TOLERANCE + TIME_STEP, True),
        (CLOCK_TOLERANCE, True),
        (CLOCK_TOLERANCE + 2 * TIME_STEP, False),
    ],
)
async def test_clocks_may_differ_only_so_much(
    autojump_clock: MockClock, shift: float, answered: bool
) -> None:
    async with running_world() as world:
        await trio.sleep(1000)
        world.alice.clock.shift = shift
        outcome = await submitted(world, crafted(world))
        assert outcome is (Outcome.CONNECTED if answered else None)


async def test_a_request_from_before_the_start_gets_no_answer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        old = request_time(START) - TIME_STEP
        assert await submitted(world, crafted(world, time=old)) is None
        assert world.counts()["request_dropped_ProtocolViolation"] == 1


@pytest.mark.parametrize("destination", [EVE.ap4, EVE.ap6, ALICE.ap6])
async def test_a_request_for_another_address_gets_no_answer(
    autojump_clock: MockClock,
    destination: ipaddress.IPv4Address,
) -> None:
    async with running_world() as world:
        assert await submitted(world, crafted(world, destination=destination)) is None


async def test_a_request_signed_for_another_identity_gets_no_answer(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        request = crafted(world)
        data = seal_request(
            request,
            ALICE.signing,
            EVE.signing.public,
            BOB.request_keys[0].public,
            NETWORK.network_id,
        )
        assert await submitted(world, request, data) is None


async def test_a_request_in_somebody_elses_name_gets_no_answer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        request = crafted(world)
        assert await submitted(world, request, sealed(request, EVE.signing)) is None


@pytest.mark.parametrize(
    "changes", [{"client_hello": b"no hello"}, {"certificate": b"no certificate"}]
)
async def test_a_request_with_useless_tls_touches_no_service(
    autojump_clock: MockClock, changes: dict[str, bytes]
) -> None:
    async with running_world() as world:
        assert await submitted(world, crafted(world, **changes)) is None
        assert world.bob.host.calls == []
        assert world.counts()["request_dropped_CryptoError"] == 1


async def test_a_request_for_an_identity_that_is_gone_gets_no_answer(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        world.way.identity = "nobody"
        assert await submitted(world, crafted(world)) is None


async def test_a_caller_with_another_certificate_than_in_its_request_is_cut_off(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        other = make_certificate("localhost", START)
        handshake = CallerHandshake(caller_context(other))
        request = crafted(world, client_hello=handshake.hello)
        _, tunnel = await world.network.carry(*ENTRY, sealed(request))
        await trio.sleep(HANDSHAKE_WITHIN + 1)
        assert tunnel.outgoing.broken
        (connection,) = world.bob.host.connections
        assert connection.is_aborted


async def test_a_caller_that_never_completes_tls_is_cut_off(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        _, tunnel = await world.network.carry(*ENTRY, sealed(crafted(world)))
        await trio.sleep(HANDSHAKE_WITHIN - 1)
        assert not tunnel.outgoing.broken
        await trio.sleep(10)
        assert tunnel.incoming.broken
        (connection,) = world.bob.host.connections
        assert connection.is_aborted
        assert world.bob.service.sessions() == []
