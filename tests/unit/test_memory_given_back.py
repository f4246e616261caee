"""Buffers that nobody needs any more, and what the C library keeps."""

from __future__ import annotations

import ctypes

import pytest
import trio

from phantom_tun.daemon import memory
from phantom_tun.net.links.buffers import BufferPool


def filled(count: int) -> BufferPool:
    """A pool with idle buffers, just after it was looked at."""
    pool = BufferPool()
    taken = [pool.take() for _ in range(count)]
    for buffer in taken:
        pool.give_back(buffer)
    pool.shrink()
    assert len(pool) == count
    return pool


def test_buffers_that_were_not_needed_go_but_for_one() -> None:
    pool = filled(5)
    assert pool.shrink()
    assert len(pool) == 1
    assert not pool.shrink()
    assert len(pool) == 1


def test_buffers_that_were_needed_for_a_moment_stay() -> None:
    pool = filled(5)
    for buffer in [pool.take() for _ in range(3)]:
        pool.give_back(buffer)
    assert pool.shrink()
    assert len(pool) == 4  # three, and one


def test_a_pool_that_was_empty_once_keeps_everything() -> None:
    pool = filled(2)
    for buffer in [pool.take() for _ in range(3)]:
        pool.give_back(buffer)
    assert not pool.shrink()
    assert len(pool) == 3


@pytest.fixture
def trimmed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When memory was given back to the system."""
    moments: list[float] = []
    monkeypatch.setattr(memory, "_trim", lambda: lambda: moments.append(trio.current_time()))
    return moments


async def test_memory_is_given_back_when_buffers_have_become_needless(
    trimmed: list[float], monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    pool = filled(4)
    monkeypatch.setattr(memory, "POOL", pool)
    began = trio.current_time()
    with trio.move_on_after(memory.SHRINK_EVERY * 10.5):
        await memory.give_memory_back()
    assert [moment - began for moment in trimmed] == [memory.SHRINK_EVERY]
    assert len(pool) == 1


async def test_memory_is_given_back_now_and_then_without(
    trimmed: list[float], monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    monkeypatch.setattr(memory, "POOL", BufferPool())
    every = memory.SHRINK_EVERY * memory.TRIM_AFTER
    with trio.move_on_after(2.5 * every):
        await memory.give_memory_back()
    assert trimmed[1] - trimmed[0] == pytest.approx(every)
    assert len(trimmed) == 2


def test_a_library_that_cannot_give_back_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._trim()()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    memory._trim()()
