"""Early data end to end: who may, what goes along, what becomes of it when something fails."""

from __future__ import annotations

import dataclasses

import pytest
import trio
from session_world import (
    ALICE,
    BOB,
    ENTRY,
    EVE,
    NETWORK,
    SOURCE_PORT,
    START,
    World,
    crafted,
    echo,
    ends,
    receive_all,
    receive_exactly,
    running_world,
    sealed,
    submitted,
)
from trio.testing import MockClock

from phantom_tun.crypto.signing import SigningKey
from phantom_tun.endpoints import Endpoint
from phantom_tun.errors import CryptoError, Filtered, NoAnswer, Refused, StreamReset
from phantom_tun.net.sessions.ending import CLOSE_WITHIN
from phantom_tun.net.sessions.handshake import ANSWER_WAIT, EARLY_FLIGHT_WAIT
from phantom_tun.net.sessions.serving import HANDSHAKE_WITHIN
from phantom_tun.net.sessions.stream import SessionStream
from phantom_tun.net.sessions.tickets import STEADY_FOR
from phantom_tun.testing.fake_host import FakeIdentity, FakeRecord
from phantom_tun.testing.fake_tunnel import FakeTunnel
from phantom_tun.tunnel.early import lock_early
from phantom_tun.tunnel.replay import ReplayCache
from phantom_tun.tunnel.request import seal_request
from phantom_tun.wire.session import MAX_EARLY, NO_TICKET, Outcome, Request, Ticket


async def call(world: World, first: bytes = b"", port: int = 80, source: int = 0) -> SessionStream:
    mine, theirs = ends(port)
    mine = dataclasses.replace(mine, port=source or SOURCE_PORT)
    return await world.alice.service.open_stream(mine, theirs, first)


async def meet(world: World) -> None:
    """A first connection, with which Alice gets a ticket."""
    stream = await world.connect(source_port=SOURCE_PORT - 1)
    await stream.send_all(memoryview(b"hello"))
    assert await receive_exactly(stream, 5) == b"hello"
    await stream.send_end()
    assert await receive_all(stream) == b""
    await stream.aclose()
    await trio.sleep(1)
    world.network.exchanges.clear()


def taken(world: World) -> int:
    return world.counts().get("early_taken", 0)


def is_steady(world: World, port: int = 80, over: int = 6) -> bool:
    return world.alice.service.is_steady(*ends(port, over))


# --- the good case -------------------------------------------------------------------------------


async def test_the_answer_of_the_service_takes_one_round_trip(autojump_clock: MockClock) -> None:
    """It is there although nothing but the request has gone to the callee."""
    async with running_world() as world:
        await meet(world)
        stream = await call(world, b"first")
        assert await receive_exactly(stream, 5) == b"first"
        (exchange,) = world.network.exchanges
        assert exchange.callee_tunnel is not None
        assert exchange.callee_tunnel.incoming.carried == 0
        assert taken(world) == 1
        assert (stream.bytes_in, stream.bytes_out) == (5, 5)
        await stream.send_all(memoryview(b"second"))
        assert await receive_exactly(stream, 6) == b"second"
        await stream.send_end()
        assert await receive_all(stream) == b""
        await stream.aclose()
        await trio.sleep(1)
        assert exchange.caller_tunnel is not None
        assert exchange.caller_tunnel.is_released
        assert exchange.callee_tunnel.is_released
        assert world.bob.service.sessions() == world.alice.service.sessions() == []


async def test_the_answer_waits_a_moment_for_the_service(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await meet(world)
        for pause, writes in ((0.0, 1), (ANSWER_WAIT / 2, 1), (1.0, 2)):

            async def slow(stream, pause: float = pause) -> None:
                await trio.sleep(pause)
                await stream.send_all(memoryview(b"220 ready"))
                await receive_all(stream)

            world.bob.host.streams[80] = slow
            began = trio.current_time()
            stream = await call(world, source=2000 + writes)
            assert trio.current_time() - began <= ANSWER_WAIT, "the answer waits for nothing else"
            assert await receive_exactly(stream, 9) == b"220 ready"
            exchange = world.network.exchanges[-1]
            assert exchange.callee_tunnel is not None
            assert exchange.callee_tunnel.outgoing.writes == writes
            stream.abort()
            await trio.sleep(1)


async def test_the_rest_of_the_handshake_waits_for_company(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await meet(world)
        stream = await call(world, b"first")
        (exchange,) = world.network.exchanges
        assert exchange.callee_tunnel is not None
        await trio.sleep(EARLY_FLIGHT_WAIT / 2)
        assert exchange.callee_tunnel.incoming.writes == 0
        await trio.sleep(EARLY_FLIGHT_WAIT)
        assert exchange.callee_tunnel.incoming.writes == 1
        stream.abort()


@pytest.mark.parametrize("length", [0, 1, MAX_EARLY])
async def test_first_bytes_of_every_length_arrive_once(
    autojump_clock: MockClock, length: int
) -> None:
    async with running_world() as world:
        await meet(world)
        stream = await call(world, bytes(length))
        await stream.send_end()
        assert await receive_all(stream) == bytes(length)
        assert taken(world) == 1


async def test_a_service_that_speaks_first_is_heard_early(autojump_clock: MockClock) -> None:
    async def banner(stream) -> None:
        await stream.send_all(memoryview(b"220 ready"))
        await receive_all(stream)
        await stream.aclose()

    async with running_world() as world:
        await meet(world)
        world.bob.host.streams[80] = banner
        stream = await call(world)
        assert await receive_exactly(stream, 9) == b"220 ready"
        (exchange,) = world.network.exchanges
        assert exchange.callee_tunnel is not None
        assert exchange.callee_tunnel.incoming.carried == 0


@pytest.mark.parametrize("length", [100_000, 3_000_000])
async def test_a_long_answer_begins_early_and_goes_on(
    autojump_clock: MockClock, length: int
) -> None:
    answer = bytes(range(256)) * (length // 256)

    async def page(stream) -> None:
        assert bytes(await stream.receive()) == b"GET"
        await stream.send_all(memoryview(answer))
        await stream.send_end()
        await receive_all(stream)
        await stream.aclose()

    async with running_world() as world:
        await meet(world)
        world.bob.host.streams[80] = page
        stream = await call(world, b"GET")
        await stream.send_end()
        assert await receive_all(stream) == answer


async def test_many_at_once_share_a_ticket(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await meet(world)

        async def one(number: int) -> None:
            stream = await call(world, b"%d" % number, source=2000 + number)
            await stream.send_end()
            assert await receive_all(stream) == b"%d" % number

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)
        assert taken(world) == 50


# --- when it is not possible ---------------------------------------------------------------------


async def test_first_bytes_without_a_ticket_follow_over_tls(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        stream = await call(world, b"first")
        assert await receive_exactly(stream, 5) == b"first"
        assert taken(world) == 0
        assert stream.bytes_out == 5


async def test_a_callee_that_forgot_the_ticket_gets_them_over_tls(
    autojump_clock: MockClock,
) -> None:
    async with running_world() as world:
        await meet(world)
        world.bob.service._server._tickets._all.clear()  # type: ignore[union-attr]
        stream = await call(world, b"first")
        assert await receive_exactly(stream, 5) == b"first"
        assert taken(world) == 0


async def test_an_ephemeral_caller_has_no_tickets(autojump_clock: MockClock) -> None:
    """They would tie its connections together."""
    async with running_world(ephemeral=frozenset({"alice"})) as world:
        await meet(world)
        stream = await call(world, b"first")
        assert await receive_exactly(stream, 5) == b"first"
        assert taken(world) == 0
        assert not is_steady(world)


async def test_datagrams_and_pings_have_no_tickets(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await meet(world)
        flow = await world.connect_udp()
        await flow.send(b"question")
        assert await flow.receive() == b"question"
        assert taken(world) == 0


async def test_a_refusal_is_a_refusal(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await meet(world)
        assert is_steady(world)
        del world.bob.host.streams[80]
        with pytest.raises(Refused):
            await call(world, b"first")
        assert not is_steady(world), "the next program is told the truth"
        world.bob.host.streams[80] = echo
        await (await call(world)).aclose()
        assert is_steady(world)


async def test_a_rule_that_is_gone_holds_for_early_data_too(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await meet(world)
        calls = len(world.bob.host.calls)
        world.bob.rules.unexpose("bob", "tcp", 80)
        with pytest.raises(Filtered):
            await call(world, b"first")
        assert len(world.bob.host.calls) == calls, "the service was touched"
        assert taken(world) == 0


# --- what is steady ------------------------------------------------------------------------------


async def test_a_service_is_steady_for_a_while(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        assert not is_steady(world)
        await meet(world)
        assert is_steady(world)
        assert not is_steady(world, port=81)
        assert not is_steady(world, over=4), "nobody has asked there"
        await trio.sleep(STEADY_FOR + 1)
        assert not is_steady(world)


async def test_it_can_be_switched_off(autojump_clock: MockClock) -> None:
    async with running_world(early=False) as world:
        await meet(world)
        assert not is_steady(world)
        stream = await call(world)
        assert taken(world) == 1, "a service that speaks first is heard early all the same"
        stream.abort()


# --- failures and attacks ------------------------------------------------------------------------


async def ticket_of_alice(world: World) -> Ticket:
    await meet(world)
    held = world.alice.service._opener._tickets
    ticket = held.get(ALICE.signing.public, BOB.signing.public)
    assert ticket is not None
    return ticket


def early_request(world: World, ticket: Ticket, data: bytes = b"first", **changes: object):
    request = crafted(world, ticket=ticket.number, session_id=world.rng.randbytes(16), **changes)
    early = lock_early(ticket, request.secret, request.nonce, data)
    return dataclasses.replace(request, early=early)


async def test_who_only_knows_a_tickets_number_gets_no_answer(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        ticket = await ticket_of_alice(world)
        calls = len(world.bob.host.calls)
        forged = early_request(world, Ticket(ticket.number, b"F" * 32))
        assert await submitted(world, forged) is None
        assert world.counts()["request_dropped_CryptoError"] == 1
        assert len(world.bob.host.calls) == calls
        assert await submitted(world, early_request(world, ticket)) is Outcome.CONNECTED


async def test_a_ticket_of_somebody_else_counts_for_nothing(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        ticket = await ticket_of_alice(world)
        request = early_request(
            world, ticket, caller=EVE.signing.public, certificate=EVE.certificate.der
        )
        outcome = await submitted(world, request, sealed(request, EVE.signing))
        assert outcome is Outcome.CONNECTED
        assert taken(world) == 0


async def test_a_repeated_early_request_is_not_heard(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        request = sealed(early_request(world, await ticket_of_alice(world)))
        _, tunnel = await world.network.carry(*next(iter(world.network.ways)), request)
        assert taken(world) == 1
        calls = len(world.bob.host.calls)
        assert await submitted(world, crafted(world), request) is None
        assert len(world.bob.host.calls) == calls
        tunnel.reset()


async def test_a_second_attempt_of_an_early_call_acts_only_once(
    autojump_clock: MockClock,
) -> None:
    """Even when the first is gone: its bytes may have done something."""
    heard = []

    async def order(stream) -> None:
        heard.append(bytes(await stream.receive()))
        await receive_all(stream)

    async with running_world() as world:
        ticket = await ticket_of_alice(world)
        world.bob.host.streams[80] = order
        call_id = world.rng.randbytes(16)
        for _ in range(3):
            request = dataclasses.replace(
                early_request(world, ticket, b"order", nonce=world.rng.randbytes(32)),
                session_id=call_id,
            )
            await submitted(world, request)
            await trio.sleep(1)
        assert heard == [b"order"]
        assert world.counts()["request_answered_filtered"] == 2


@pytest.mark.parametrize("what", ["is held back", "finds no ticket"])
async def test_a_second_attempt_acts_only_once_however_late_it_is(
    autojump_clock: MockClock, what: str
) -> None:
    """It is younger than the first one, so it would be let in for longer; and whoever forgets a
    ticket doesn't forget what it was used for."""
    heard = []

    async def order(stream) -> None:
        heard.append(bytes(await stream.receive()))
        await receive_all(stream)

    async with running_world() as world:
        ticket = await ticket_of_alice(world)
        server = world.bob.service._server
        assert server is not None
        world.bob.host.streams[80] = order
        calls = len(world.bob.host.calls)
        call_id = world.rng.randbytes(16)
        first = dataclasses.replace(early_request(world, ticket, b"order"), session_id=call_id)
        await submitted(world, first)
        await trio.sleep(16)
        second = dataclasses.replace(early_request(world, ticket, b"order"), session_id=call_id)
        packed = sealed(second)
        assert second.time > first.time
        if what == "is held back":
            await trio.sleep(first.time + 106 - world.bob.clock.now())
        else:
            server._tickets._all.clear()
        assert await submitted(world, second, packed) is Outcome.FILTERED
        await trio.sleep(1)
        assert heard == [b"order"]
        assert len(world.bob.host.calls) == calls + 1


async def test_a_call_without_first_bytes_gets_another_way(autojump_clock: MockClock) -> None:
    """Nothing can have been done by them."""
    async with running_world() as world:
        await meet(world)
        world.way.loses_answers = True

        async def heal() -> None:
            await trio.sleep(0.5)
            for exchange in world.network.exchanges:
                assert exchange.caller_tunnel is not None
                exchange.caller_tunnel.reset()
            world.way.loses_answers = False

        world.nursery.start_soon(heal)
        stream = await call(world)
        await stream.send_all(memoryview(b"still"))
        assert await receive_exactly(stream, 5) == b"still"


async def test_who_remembers_too_many_calls_takes_no_first_bytes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They follow over TLS then."""
    async with running_world() as world:
        await meet(world)
        server = world.bob.service._server
        assert server is not None
        server._admission._seen_calls["bob"] = ReplayCache(1)
        for number in range(3):
            stream = await call(world, b"first", source=2000 + number)
            await stream.send_end()
            assert await receive_all(stream) == b"first"
        assert taken(world) == 1


async def test_an_answer_that_cannot_be_sent_frees_the_service(autojump_clock: MockClock) -> None:
    async def accept(_answer: bytes, *, hold: bool = False) -> FakeTunnel:
        raise StreamReset("the tunnel is gone")

    async with running_world() as world:
        request = sealed(early_request(world, await ticket_of_alice(world)))
        before = len(world.bob.host.connections)
        await world.bob.service.handle_request("bob", request, accept)
        assert [c.is_over for c in world.bob.host.connections[before:]] == [True]


async def test_a_program_that_goes_while_its_first_bytes_are_sent_leaves_nothing(
    autojump_clock: MockClock,
) -> None:
    def narrow(tunnel: FakeTunnel) -> None:
        tunnel.outgoing.capacity = 1

    async def deaf(_stream) -> None:
        await trio.sleep_forever()

    async with running_world() as world:
        world.network.prepare = narrow
        world.bob.host.streams[80] = deaf
        with trio.move_on_after(1) as program:
            await call(world, bytes(MAX_EARLY))
        assert program.cancelled_caught
        await trio.sleep(2 * CLOSE_WITHIN)
        assert world.alice.service.sessions() == []


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """All that are made, before they are sealed."""
    made: list[Request] = []

    def watched(request: Request, *rest) -> bytes:
        made.append(request)
        return seal_request(request, *rest)

    monkeypatch.setattr("phantom_tun.net.sessions.opening.seal_request", watched)
    return made


async def test_a_new_identity_under_an_old_name_has_no_tickets(
    autojump_clock: MockClock, requests: list[Request]
) -> None:
    """They would tell the callee who it was before."""
    async with running_world() as world:
        await meet(world)
        assert is_steady(world)
        new = FakeIdentity.make("alice", NETWORK, START)
        world.alice.service._identities.all["alice"] = new  # type: ignore[attr-defined]
        source, target = Endpoint(new.ap6, SOURCE_PORT), ends(80)[1]
        assert not world.alice.service.is_steady(source, target)
        (await world.alice.service.open_stream(source, target, b"first")).abort()
        assert requests[-1].caller == new.signing.public
        assert requests[-1].ticket == NO_TICKET


async def test_an_address_that_went_to_somebody_else_gets_no_ticket_of_the_old_owner(
    autojump_clock: MockClock, requests: list[Request]
) -> None:
    async with running_world() as world:
        await meet(world)
        world.way.is_silent = True
        record = FakeRecord.of(EVE, (*ENTRY, START + 10_000))
        world.directory.fresh_records[BOB.ap6] = record
        with pytest.raises(Filtered):
            await call(world, b"first")
        numbers = [request.ticket != NO_TICKET for request in requests[-2:]]
        assert numbers == [True, False]


async def test_a_ticket_that_found_no_company_is_not_thought_to_be_given(
    autojump_clock: MockClock,
) -> None:
    async def mute(stream) -> None:
        await receive_all(stream)
        stream.abort()

    async with running_world() as world:
        world.bob.host.streams[80] = mute
        stream = await call(world, b"first")
        await stream.send_end()
        with pytest.raises(StreamReset):
            await receive_all(stream)
        world.bob.host.streams[80] = echo
        await meet(world)
        assert is_steady(world)


async def test_a_caller_that_never_completes_tls_is_let_go(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        request = sealed(early_request(world, await ticket_of_alice(world)))
        before = len(world.bob.host.connections)
        _, tunnel = await world.network.carry(*next(iter(world.network.ways)), request)
        await trio.sleep(HANDSHAKE_WITHIN - 1)
        assert len(world.bob.service.sessions()) == 1
        await trio.sleep(2 + CLOSE_WITHIN)
        assert world.bob.service.sessions() == []
        assert world.counts()["early_unfinished"] == 1
        (connection,) = world.bob.host.connections[before:]
        assert connection.is_over
        tunnel.reset()


async def test_a_session_that_began_early_is_not_cut_off(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await meet(world)
        stream = await call(world, b"first")
        await receive_exactly(stream, 5)
        await trio.sleep(10 * HANDSHAKE_WITHIN)
        await stream.send_all(memoryview(b"still"))
        assert await receive_exactly(stream, 5) == b"still"


@pytest.mark.parametrize("lane", ["incoming", "outgoing"])
@pytest.mark.parametrize("how", ["flip_at", "cut_at", "end_at"])
async def test_no_altered_or_lost_byte_gets_through(
    autojump_clock: MockClock, lane: str, how: str
) -> None:
    answer = bytes(range(250)) * 20

    async def page(stream) -> None:
        await stream.receive()
        await stream.send_all(memoryview(answer))
        await receive_all(stream)
        await stream.aclose()

    for position in (0, 1, 2, 3, 18, 500, 4_000):

        def spoil(tunnel: FakeTunnel, position: int = position) -> None:
            setattr(getattr(tunnel, lane), how, position)

        async with running_world() as world:
            await meet(world)
            world.bob.host.streams[80] = page
            world.network.prepare = spoil
            stream = await call(world, b"GET")
            found = bytearray()
            # An altered length may make the reader wait for what never comes.
            with trio.move_on_after(60) as waiting, pytest.raises(StreamReset):
                while True:
                    data = await stream.receive()
                    assert data, "an end that nobody said"
                    found += data
                    await stream.send_all(memoryview(bytes(5_000)))
            assert how == "flip_at" or not waiting.cancelled_caught
            assert answer.startswith(bytes(found))


async def test_a_call_given_up_at_once_resets_the_service(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        await meet(world)
        before = len(world.bob.host.connections)
        (await call(world, b"first")).abort()
        await trio.sleep(1)
        assert [c.is_over for c in world.bob.host.connections[before:]] == [True]
        assert world.bob.service.sessions() == world.alice.service.sessions() == []


async def test_a_lost_answer_is_an_error_and_nothing_happens_twice(
    autojump_clock: MockClock,
) -> None:
    heard = []

    async def order(stream) -> None:
        heard.append(bytes(await stream.receive()))
        await receive_all(stream)

    async with running_world() as world:
        await meet(world)
        world.bob.host.streams[80] = order
        world.way.loses_answers = True
        with pytest.raises((Filtered, NoAnswer)):
            await call(world, b"order")
        assert heard == [b"order"]
        assert not is_steady(world)


async def test_an_answer_that_took_what_was_not_sent_is_refused(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_world() as world:
        ticket = Ticket(b"t" * 16, b"T" * 32)
        server = world.bob.service._server
        assert server is not None
        monkeypatch.setattr(server._tickets, "find", lambda _identity, _request: ticket)
        monkeypatch.setattr(
            "phantom_tun.net.sessions.serving.unlock_early", lambda _ticket, _request: b""
        )
        with pytest.raises(Exception, match=r"works|answered|exposed"):
            await world.connect()


async def test_a_callee_whose_tls_is_wrong_is_heard_until_that_is_due(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_tls: object, _expected: bytes) -> None:
        raise CryptoError("another certificate")

    async with running_world() as world:
        await meet(world)
        stream = await call(world, b"first")
        monkeypatch.setattr("phantom_tun.tunnel.channel.check_peer", refuse)
        assert await receive_exactly(stream, 5) == b"first"
        began = trio.current_time()
        with pytest.raises(StreamReset):
            await stream.receive()
        assert trio.current_time() - began <= EARLY_FLIGHT_WAIT


async def test_a_second_ticket_breaks_the_session(autojump_clock: MockClock) -> None:
    async def generous(stream: SessionStream) -> None:
        for _ in range(2):
            stream._secure.ahead.hand_out(lambda: Ticket(b"t" * 16, b"T" * 32))
            await stream.send_all(memoryview(b"."))
        await receive_all(stream)

    async with running_world() as world:
        await meet(world)  # which brought one
        world.bob.host.streams[80] = generous
        stream = await call(world)
        with pytest.raises(StreamReset):
            await receive_all(stream)


async def test_a_ticket_from_the_caller_breaks_the_session(autojump_clock: MockClock) -> None:
    async with running_world() as world:
        stream = await world.connect()
        stream._secure.ahead.hand_out(lambda: Ticket(b"t" * 16, b"T" * 32))
        await stream.send_all(memoryview(b"!"))
        with pytest.raises(StreamReset):
            await receive_exactly(stream, 1)


def test_the_worlds_keys_differ() -> None:
    """Otherwise a test above would say nothing."""
    keys: list[SigningKey] = [ALICE.signing, BOB.signing, EVE.signing]
    assert len({key.public for key in keys}) == 3
