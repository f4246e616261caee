"""Work for others' puzzles, done in a thread so that the node goes on serving
(docs/spec/tunnel.md, "Puzzles"; docs/spec/path.md, "Work")."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import trio

from phantom_tun.clock import Rng
from phantom_tun.crypto.work import Task

TRIES = 1024
"""In one piece, some milliseconds: who waits for a solution can give up after each."""

T = TypeVar("T")


class Run(Protocol):
    """How a piece of work is run."""

    async def __call__(self, work: Callable[[], T]) -> T:
        """Do it, and return what it gave."""
        ...


async def in_thread(work: Callable[[], T]) -> T:
    """As it is done. What was begun is finished even if nobody waits for it any more."""
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


class Workshop:
    """All such work of one node. Solutions that somebody waits for are searched one piece after the
    other, first come, first served; beside them one long piece of work is done at a time."""

    __slots__ = ("_long", "_places", "_rng", "_run")

    def __init__(self, rng: Rng, run: Run = in_thread) -> None:
        self._rng = rng
        self._run = run
        self._places = trio.CapacityLimiter(1)
        self._long = trio.CapacityLimiter(1)

    async def do(self, work: Callable[[], T]) -> T:
        """A long piece of work, in its turn."""
        async with self._long:
            return await self._run(work)

    async def solve(self, task: Task, bits: int) -> bytes:
        """A nonce that proves ``bits`` for ``task``, piece by piece: others have their turn between
        them."""
        start = self._rng.getrandbits(64)
        while True:
            async with self._places:
                nonce = await self._run(partial(task.search, bits, start, TRIES))
            if nonce is not None:
                return nonce
            start += TRIES
