"""What the daemon tells its node when the machine slept or moved."""

from __future__ import annotations

import ipaddress

import pytest
import trio
from trio.testing import MockClock

from phantom_tun.config import Address, NodeConfig
from phantom_tun.daemon import underlay, whereabouts
from phantom_tun.daemon.whereabouts import LONG_SLEEP, LOOK_EVERY, Whereabouts
from phantom_tun.testing.fake_node import FakeNode

HOME, OFFICE, TEMPORARY = map(ipaddress.ip_address, ("192.0.2.7", "198.51.100.7", "2001:db8::7"))


class Machine:
    """Has addresses, and sleeps."""

    def __init__(self, *addresses: Address, settings: NodeConfig | None = None) -> None:
        self.slept = 1000.0
        self.routed: tuple[Address, ...] = addresses
        """Those that the default routes use."""
        self.kept: tuple[Address, ...] = ()
        """Others."""
        self.node = FakeNode()
        self.whereabouts = Whereabouts(
            settings or NodeConfig(advertise=(str(OFFICE),)),
            asleep=lambda: self.slept,
            find=lambda: self.routed,
            has=lambda address: address in self.routed + self.kept,
        )

    def look(self) -> tuple[tuple[Address, ...] | None, int]:
        """What the node was told after another look."""
        self.node.moved_to, self.node.wakings = None, 0
        self.whereabouts.look(self.node)
        return self.node.moved_to, self.node.wakings


QUIET = (None, 0)


def test_nothing_happens_on_a_machine_that_stays() -> None:
    machine = Machine(HOME)
    assert machine.look() == QUIET


def test_a_long_sleep_is_told_once() -> None:
    machine = Machine(HOME)
    machine.slept += LONG_SLEEP
    assert machine.look() == (None, 1)
    assert machine.look() == QUIET


def test_short_sleeps_do_no_harm() -> None:
    machine = Machine(HOME)
    for _ in range(10):
        machine.slept += LONG_SLEEP / 2
        assert machine.look() == QUIET


def test_another_address_is_told_once() -> None:
    machine = Machine(HOME)
    machine.routed = (OFFICE,)
    assert machine.look() == ((OFFICE,), 0)
    assert machine.look() == QUIET
    machine.routed = (HOME,)
    assert machine.look() == ((OFFICE,), 0)  # that is what the user wants published


def test_without_any_address_the_next_one_is_waited_for() -> None:
    machine = Machine(HOME)
    machine.routed = ()
    assert machine.look() == QUIET
    machine.routed = (OFFICE,)
    assert machine.look() == ((OFFICE,), 0)


def test_the_same_address_after_a_pause_is_no_move() -> None:
    machine = Machine(HOME)
    machine.routed = ()
    assert machine.look() == QUIET
    machine.routed = (HOME,)
    assert machine.look() == QUIET


def test_an_address_that_is_only_not_the_first_choice_any_more_is_no_move() -> None:
    machine = Machine(HOME, TEMPORARY)
    machine.routed, machine.kept = (HOME, OFFICE), (TEMPORARY,)
    assert machine.look() == QUIET
    machine.kept = ()
    assert machine.look() == ((OFFICE,), 0)


def test_a_family_that_was_gone_for_a_while_is_told_when_it_is_back() -> None:
    machine = Machine(HOME, TEMPORARY)
    machine.routed = (TEMPORARY,)
    assert machine.look() == ((OFFICE,), 0)
    assert machine.look() == QUIET
    machine.routed = (HOME, TEMPORARY)
    assert machine.look() == ((OFFICE,), 0)
    assert machine.look() == QUIET


def test_an_address_at_which_others_can_not_dial_us_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(underlay, "addresses_of_default_routes", lambda: (TEMPORARY,))
    machine = Machine(HOME, settings=NodeConfig(listen=("0.0.0.0",)))  # noqa: S104
    machine.routed = (TEMPORARY,)
    assert machine.look() == QUIET
    monkeypatch.setattr(underlay, "addresses_of_default_routes", lambda: (TEMPORARY, OFFICE))
    machine.routed = (TEMPORARY, OFFICE)
    assert machine.look() == ((OFFICE,), 0)


async def test_it_looks_again_and_again(autojump_clock: MockClock) -> None:
    machine = Machine(HOME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(machine.whereabouts.watch, machine.node)
        await trio.sleep(1.5 * LOOK_EVERY)
        machine.routed = (OFFICE,)
        await trio.sleep(LOOK_EVERY)
        assert machine.node.moved_to == (OFFICE,)
        nursery.cancel_scope.cancel()


def test_what_the_kernel_says() -> None:
    assert whereabouts.is_own(ipaddress.ip_address("127.0.0.1"))
    assert not whereabouts.is_own(HOME)
    assert not whereabouts.is_own(TEMPORARY)
    assert whereabouts.seconds_asleep() >= 0
