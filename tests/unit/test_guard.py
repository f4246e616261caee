"""What keeps the trouble of one task from ending all the others."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from phantom_tun.guard import RESTART_AFTER, Guard


async def fail(*_):
    raise KeyError("a mistake of ours")


async def test_a_failing_task_is_counted_and_ends_alone():
    counts = Counter()
    done = []

    async def work(number):
        await trio.lowlevel.checkpoint()
        done.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Guard(counts).once, fail, 1)
        nursery.start_soon(Guard(counts).once, work, 2)
    assert done == [2]
    assert counts == {"internal_errors": 1}


async def test_a_failure_in_a_nursery_of_the_task_is_caught_too():
    counts = Counter()

    async def work():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()

    await Guard(counts).once(work)
    assert counts["internal_errors"] == 1


async def test_a_failure_beside_a_cancellation_is_caught_and_the_cancellation_is_not():
    counts = Counter()

    async def fail_when_cancelled():
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("while cleaning up")

    async def work():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)
            await trio.sleep_forever()

    with trio.CancelScope() as scope:
        scope.cancel()
        await Guard(counts).once(work)
    assert scope.cancelled_caught
    assert counts["internal_errors"] == 1


async def test_what_is_meant_for_the_whole_program_passes():
    async def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await Guard(Counter()).once(interrupt)


async def test_work_that_must_go_on_is_begun_again(autojump_clock):
    counts = Counter()
    begun = []

    async def work(name):
        begun.append((name, trio.current_time()))
        await trio.sleep(1)
        await fail()

    with trio.move_on_after(2.5 * (RESTART_AFTER + 1)):
        await Guard(counts).forever(work, "x")
    assert [name for name, _ in begun] == ["x"] * 3
    first, second, _ = (moment for _, moment in begun)
    assert second - first == RESTART_AFTER + 1
    assert counts["internal_errors"] == 3
