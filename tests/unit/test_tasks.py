"""Background tasks of one part of the node, and what happens to them when it stops."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from phantom_tun.guard import Guard
from phantom_tun.tasks import Tasks


class Log:
    """What tasks did."""

    def __init__(self) -> None:
        self.done = []

    async def work(self, *args):
        self.done.append(args)
        await trio.lowlevel.checkpoint()


@pytest.fixture
def counts():
    return Counter()


@pytest.fixture
def tasks(counts):
    return Tasks(Guard(counts))


async def test_nothing_starts_before_they_are_open(tasks):
    log = Log()
    assert not tasks.is_open
    assert not tasks.is_over
    assert not tasks.start(log.work)
    await trio.testing.wait_all_tasks_blocked()
    assert log.done == []


async def test_what_was_started_has_ended_after_the_block(tasks):
    log = Log()
    async with tasks.open():
        assert tasks.is_open
        assert tasks.start(log.work, 1, "two")
        assert tasks.start(log.work)
        assert log.done == []
    assert sorted(log.done) == [(), (1, "two")]


async def test_a_failure_ends_nothing_else_and_is_counted(tasks, counts):
    log = Log()

    async def fail():
        raise KeyError("a mistake of ours")

    async with tasks.open():
        tasks.start(fail)
        await trio.testing.wait_all_tasks_blocked()
        tasks.start(log.work)
    assert log.done == [()]
    assert counts == {"internal_errors": 1}


async def test_what_uses_the_nursery_has_no_guard(tasks, counts):
    async def fail():
        raise KeyError("for whoever opened them")

    with pytest.RaisesGroup(KeyError):
        async with tasks.open() as nursery:
            nursery.start_soon(fail)
    assert tasks.is_over
    assert not counts


async def test_nothing_starts_while_they_close(tasks, counts):
    log = Log()
    answers = []
    stopping = trio.Event()

    async def last_words():
        await stopping.wait()
        answers.append(tasks.start(log.work))

    async with tasks.open():
        tasks.start(last_words)
        await trio.testing.wait_all_tasks_blocked()
        stopping.set()
    assert answers == [False]
    assert log.done == []
    assert tasks.is_over
    assert not counts


async def test_nothing_starts_while_cancelled_tasks_clean_up(tasks, counts):
    log = Log()
    answers = []

    async def clean_up():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            answers.append((tasks.is_open, tasks.start(log.work)))

    async with trio.open_nursery() as nursery:
        await nursery.start(tasks.run)
        tasks.start(clean_up)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert answers == [(False, False)]
    assert log.done == []
    assert not counts


async def test_nothing_starts_after_they_have_closed(tasks):
    async with tasks.open():
        pass
    assert not tasks.is_open
    assert tasks.is_over
    assert not tasks.start(Log().work)


async def test_they_close_when_the_block_fails(tasks):
    with pytest.RaisesGroup(KeyError):
        async with tasks.open():
            raise KeyError
    assert tasks.is_over
    assert not tasks.start(Log().work)


async def test_they_can_be_opened_again(tasks):
    log = Log()
    async with tasks.open():
        pass
    async with tasks.open():
        assert tasks.is_open
        assert not tasks.is_over
        assert tasks.start(log.work)
    assert log.done == [()]


async def test_running_starts_tasks_until_cancelled(tasks):
    log = Log()
    async with trio.open_nursery() as nursery:
        await nursery.start(tasks.run)
        assert tasks.start(log.work, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert log.done == [(1,)]
        assert tasks.is_open
        nursery.cancel_scope.cancel()
    assert tasks.is_over
