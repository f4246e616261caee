"""What an owner does when it is asked to solve a puzzle (docs/spec/tunnel.md, "Puzzles")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from phantom_tun.errors import Unreachable
from phantom_tun.ids import EntryId
from phantom_tun.net.tunnels.workshop import Workshop
from phantom_tun.tunnel.puzzles import HARDEST, task
from phantom_tun.wire.puzzles import NO_SOLUTION, Challenge, Solution

MAX_PUZZLES = 3
"""For one request. More may be asked for while we work; then it's an entry node that wants no
request, or an exit node that wants us to work for nothing."""

SHOWN_IN_STEPS = 0.25
"""Seconds: solutions are shown a whole multiple of this after they were asked for. How long one
took says something about the machine."""

T = TypeVar("T")


class PuzzleDemanded(Unreachable):
    """The entry node is loaded and wants to see work."""

    def __init__(self, challenge: Challenge) -> None:
        super().__init__("the far side wants a puzzle solved")
        self.challenge = challenge


class Puzzler:
    """Takes requests to entry nodes, with a solution if need be."""

    def __init__(self, workshop: Workshop, counts: Counter[str]) -> None:
        self._workshop = workshop
        self._counts = counts

    async def ask(
        self,
        entry_id: EntryId,
        sealed_request: bytes,
        attempt: Callable[[Solution], Awaitable[T]],
    ) -> T:
        """``attempt`` takes the request to the entry node; what it returns.

        :raises Unreachable: as ``attempt``, or too much work is wanted.
        """
        solution = NO_SOLUTION
        for left in range(MAX_PUZZLES, -1, -1):
            try:
                return await attempt(solution)
            except PuzzleDemanded as demanded:
                if not left:
                    self._counts["drop_puzzle_again"] += 1
                    raise
                if demanded.challenge.bits > HARDEST:
                    self._counts["drop_puzzle_too_hard"] += 1
                    raise
                solution = await self._solve(demanded.challenge, entry_id, sealed_request)
        raise AssertionError  # the last attempt returned or raised

    async def _solve(
        self, challenge: Challenge, entry_id: EntryId, sealed_request: bytes
    ) -> Solution:
        asked = trio.current_time()
        work = task(challenge.salt, entry_id, sealed_request)
        nonce = await self._workshop.solve(work, challenge.bits)
        self._counts["puzzles_solved"] += 1
        taken = trio.current_time() - asked
        await trio.sleep(SHOWN_IN_STEPS - taken % SHOWN_IN_STEPS)
        return Solution(challenge.salt, nonce)
