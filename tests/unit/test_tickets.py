"""Tickets at both ends: for how long, for whom, how many."""

from __future__ import annotations

import ipaddress
import random

import pytest

from phantom_tun.endpoints import Endpoint
from phantom_tun.ids import PublicKey
from phantom_tun.net.sessions import tickets
from phantom_tun.net.sessions.tickets import (
    LIFETIME,
    RENEW_AFTER,
    STEADY_FOR,
    HeldTickets,
    IssuedTickets,
)
from phantom_tun.wire.session import NO_TICKET, Protocol, Request, Ticket

ALICE, EVE, SHOP, MAIL, ME, OTHER = (
    PublicKey(letter * 32) for letter in (b"a", b"e", b"s", b"l", b"m", b"o")
)
WEB = Endpoint(ipaddress.IPv4Address("241.2.3.4"), 80)
TICKET = Ticket(b"t" * 16, b"T" * 32)


class HandClock:
    """Set by hand."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def issued(clock: HandClock) -> IssuedTickets:
    return IssuedTickets(clock, random.Random(3))


@pytest.fixture
def held(clock: HandClock) -> HeldTickets:
    return HeldTickets(clock)


def request(number: bytes, caller: PublicKey = ALICE) -> Request:
    return Request(
        protocol=Protocol.TCP,
        destination=WEB.address,
        port=80,
        caller=caller,
        certificate=b"",
        client_hello=b"",
        time=0,
        nonce=bytes(32),
        secret=bytes(32),
        session_id=bytes(16),
        ticket=number,
    )


def issue(issued: IssuedTickets, caller: PublicKey = ALICE) -> Ticket:
    ticket = issued.issue(SHOP, caller)
    assert ticket is not None
    return ticket


def test_a_ticket_serves_its_caller_at_its_identity(issued: IssuedTickets) -> None:
    ticket = issue(issued)
    assert issued.find(SHOP, request(ticket.number)) == ticket
    assert issued.find(SHOP, request(ticket.number)) == ticket, "more than once"
    assert issued.find(SHOP, request(ticket.number, EVE)) is None
    assert issued.find(MAIL, request(ticket.number)) is None
    assert issued.find(SHOP, request(NO_TICKET)) is None
    assert issued.find(SHOP, request(b"x" * 16)) is None


def test_a_ticket_serves_for_some_minutes(clock: HandClock, issued: IssuedTickets) -> None:
    ticket = issue(issued)
    clock.time += LIFETIME - 1
    assert issued.find(SHOP, request(ticket.number)) == ticket
    clock.time += 2
    assert issued.find(SHOP, request(ticket.number)) is None
    assert len(issued) == 0, "its secret is gone"


def test_a_caller_gets_another_one_after_a_while(clock: HandClock, issued: IssuedTickets) -> None:
    first = issue(issued)
    assert issued.issue(SHOP, ALICE) is None
    other = issue(issued, EVE)
    clock.time += RENEW_AFTER + 1
    second = issue(issued)
    assert len({first.secret, other.secret, second.secret}) == 3
    for ticket in (first, second):
        assert issued.find(SHOP, request(ticket.number)) == ticket


def test_a_clock_that_is_set_back_makes_no_ticket_eternal(
    clock: HandClock, issued: IssuedTickets, held: HeldTickets
) -> None:
    ticket = issue(issued)
    held.keep(ME, EVE, TICKET)
    clock.time -= 10 * LIFETIME
    assert issued.find(SHOP, request(ticket.number)) is None
    assert held.get(ME, EVE) is None
    assert issue(issued)


def test_few_are_remembered(
    issued: IssuedTickets, held: HeldTickets, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MAX_ISSUED", "MAX_HELD", "MAX_STEADY"):
        monkeypatch.setattr(tickets, name, 3)
    callers = [PublicKey(bytes([number]) * 32) for number in range(4)]
    numbers = [issue(issued, caller).number for caller in callers]
    found = [issued.find(SHOP, request(n, c)) for n, c in zip(numbers, callers, strict=True)]
    assert [ticket is not None for ticket in found] == [False, True, True, True]
    assert issue(issued, callers[0]), "who was forgotten gets a new one"
    for callee in callers:
        held.keep(ME, callee, TICKET)
        held.worked(ME, Endpoint(WEB.address, callee[0] + 1), callee)
    assert [held.get(ME, callee) for callee in callers] == [None, TICKET, TICKET, TICKET]
    steady = [held.is_steady(ME, Endpoint(WEB.address, c[0] + 1)) for c in callers]
    assert steady == [False, True, True, True]


def test_a_service_is_steady_if_it_was_there_lately(clock: HandClock, held: HeldTickets) -> None:
    assert not held.is_steady(ME, WEB)
    held.worked(ME, WEB, EVE)
    assert not held.is_steady(ME, WEB), "without a ticket nothing is saved"
    held.keep(ME, EVE, TICKET)
    assert held.is_steady(ME, WEB)
    assert not held.is_steady(OTHER, WEB)
    assert not held.is_steady(ME, Endpoint(WEB.address, 81))
    clock.time += STEADY_FOR + 1
    assert not held.is_steady(ME, WEB)
    assert held.get(ME, EVE) == TICKET, "which serves longer"
    held.worked(ME, WEB, EVE)
    assert held.is_steady(ME, WEB)
    held.failed(ME, WEB)
    assert not held.is_steady(ME, WEB)
