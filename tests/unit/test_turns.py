"""Turns: order, one for each look at the sockets, and what is left after a cancellation."""

from __future__ import annotations

import itertools

import trio
from trio.testing import wait_all_tasks_blocked

from phantom_tun.net.links.turns import Turns


class Looks(trio.abc.Instrument):
    """Counts how often the scheduler looked at the sockets."""

    def __init__(self) -> None:
        self.count = 0

    def after_io_wait(self, timeout: float) -> None:
        self.count += 1


async def test_turns_come_in_the_order_of_asking_and_one_for_each_look_at_the_sockets() -> None:
    turns, looks = Turns(), Looks()
    happened: list[tuple[str, int]] = []

    async def move(name: str) -> None:
        for _ in range(3):
            await turns.wait()
            happened.append((name, looks.count))

    trio.lowlevel.add_instrument(looks)
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(move, name)
    trio.lowlevel.remove_instrument(looks)
    order = [name for name, _ in happened]
    assert sorted(order[:3]) == list("abc")
    assert order == order[:3] * 3
    seen = [look for _, look in happened]
    assert all(later > earlier for earlier, later in itertools.pairwise(seen))


async def test_a_single_one_waits_for_the_scheduler_only() -> None:
    turns = Turns()
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            await trio.lowlevel.checkpoint()
            others += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(5):
            await turns.wait()
        assert 3 <= others <= 7
        nursery.cancel_scope.cancel()


async def test_who_moves_alone_has_its_turns_at_once_until_somebody_else_had_one() -> None:
    turns, looks = Turns(), Looks()
    trio.lowlevel.add_instrument(looks)

    async def passes(name: int | None) -> int:
        await trio.lowlevel.checkpoint()  # for what is to be moved
        before = looks.count
        await turns.wait(name)
        return looks.count - before

    assert [await passes(1) for _ in range(4)] == [1, 0, 0, 0]
    assert [await passes(name) for name in (2, 1, 1, None, None, 1)] == [1, 1, 0, 1, 1, 1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(passes, 2)
        for _ in range(2):
            await trio.lowlevel.checkpoint()  # now it is the other's turn, or will be
        await passes(1)
    assert await passes(2) == 1
    trio.lowlevel.remove_instrument(looks)


async def test_who_is_cancelled_takes_no_turn_and_gives_none_back() -> None:
    turns = Turns()
    happened: list[str] = []

    async def move(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await turns.wait()
            happened.append(name)

    scopes = [trio.CancelScope() for _ in range(4)]
    scopes[0].cancel()  # holds the turn when it is cancelled
    async with trio.open_nursery() as nursery:
        for name, scope in zip("abcd", scopes, strict=True):
            nursery.start_soon(move, name, scope)
        await trio.lowlevel.checkpoint()
        scopes[2].cancel()
    assert "a" not in happened
    assert "b" in happened
    assert "d" in happened
    await wait_all_tasks_blocked()
    with trio.fail_after(1):
        await turns.wait()
