"""Who gets in at an entry node: everybody while there is room, then those who work
(docs/spec/tunnel.md, "Puzzles").

Half of every budget is kept for requests with a solution. A crowd without solutions can use up only
the other half, and what it leaves of the rest is enough for everyone who worked; a crowd that works
makes the work harder.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from phantom_tun.clock import Rng
from phantom_tun.crypto.work import zero_bits
from phantom_tun.ids import EntryId, NodeId
from phantom_tun.net.links.rates import RateTable
from phantom_tun.tunnel.puzzles import EASIEST, SLACK, Difficulty, Salts, Spent, task
from phantom_tun.wire.puzzles import NO_SOLUTION, Challenge, Solution
from phantom_tun.wire.tunnel import Status

NODE_RATE, NODE_BURST = 100.0, 400.0
ENTRY_RATE, ENTRY_BURST = 200.0, 400.0
"""Requests per second and burst, per dialing node and per entry id."""

RESERVED = 0.5
"""Share of a burst that only those get who solved a puzzle."""
CROWD = 100
"""Requests that wait for a tunnel of the same entry path when half of what it can give counts as
used up."""

_TABLE = 4096

Key = TypeVar("Key", bound=Hashable)


class _Budget(Generic[Key]):
    """Requests of one kind of key, and how hard it is made for each key."""

    __slots__ = ("_difficulties", "rates")

    def __init__(self, rate: float, burst: float) -> None:
        self.rates: RateTable[Key] = RateTable(rate, burst, _TABLE)
        self._difficulties: OrderedDict[Key, Difficulty] = OrderedDict()

    def bits(self, key: Key, room: float, now: float) -> int:
        """What is asked for while there is so much room."""
        difficulty = self._difficulties.get(key)
        if difficulty is None:
            if room >= RESERVED:
                return EASIEST
            difficulty = self._difficulties[key] = Difficulty(now)
            if len(self._difficulties) > _TABLE:
                self._difficulties.popitem(last=False)
        self._difficulties.move_to_end(key)
        bits = difficulty.bits(room, RESERVED, now)
        if bits == EASIEST and room >= RESERVED:
            del self._difficulties[key]
        return bits


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a request."""

    status: Status
    """OK, BUSY or PUZZLE."""
    challenge: Challenge | None = None
    worked: bool = False
    """It comes before those that didn't."""


class EntryGate:
    """Of one entry node."""

    def __init__(self, rng: Rng, counts: Counter[str]) -> None:
        self._by_node: _Budget[NodeId] = _Budget(NODE_RATE, NODE_BURST)
        self._by_entry: _Budget[EntryId] = _Budget(ENTRY_RATE, ENTRY_BURST)
        self._salts = Salts(rng)
        self._spent = Spent()
        self._counts = counts

    def judge(
        self,
        node_id: NodeId,
        entry_id: EntryId,
        sealed_request: bytes,
        solution: Solution,
        *,
        waiting: int,
        now: float,
    ) -> Verdict:
        """What becomes of a request that ``node_id`` brings.

        :param waiting: requests that wait for a tunnel to the same owner.
        """
        by_node, by_entry = self._by_node.rates, self._by_entry.rates
        of_node = by_node.left(node_id, now)
        of_entry = min(by_entry.left(entry_id, now), 1 - RESERVED * waiting / CROWD)
        room = min(of_node, of_entry)
        if solution == NO_SOLUTION and room >= RESERVED:
            return self._take(node_id, entry_id, now)
        bits = max(
            self._by_node.bits(node_id, of_node, now),
            self._by_entry.bits(entry_id, of_entry, now),
        )
        digest = self._solved(solution, entry_id, sealed_request, bits, now)
        if not (by_node.has(node_id, now) and by_entry.has(entry_id, now)):
            return Verdict(Status.BUSY)
        if digest is not None:
            self._spent.add(digest, now)
            self._counts["entry_requests_solved"] += 1
        elif room < RESERVED:
            challenge = Challenge(self._salts.current(entry_id, now), bits)
            return Verdict(Status.PUZZLE, challenge)
        return self._take(node_id, entry_id, now, worked=digest is not None)

    def take_unknown(self, node_id: NodeId, now: float) -> bool:
        """Whether ``node_id`` may still be told that an entry id is unknown, which uses up as much
        of its budget as any request. The entry id has none."""
        return self._by_node.rates.allow(node_id, now)

    def _take(
        self, node_id: NodeId, entry_id: EntryId, now: float, *, worked: bool = False
    ) -> Verdict:
        self._by_node.rates.allow(node_id, now)
        self._by_entry.rates.allow(entry_id, now)
        return Verdict(Status.OK, worked=worked)

    def _solved(
        self, solution: Solution, entry_id: EntryId, sealed_request: bytes, bits: int, now: float
    ) -> bytes | None:
        """What names the solution, if it is one and good enough."""
        if solution == NO_SOLUTION:
            return None
        if not self._salts.accepts(solution.salt, entry_id, now):
            self._counts["drop_solution_salt"] += 1
            return None
        puzzle = task(solution.salt, entry_id, sealed_request)
        digest = puzzle.digest(solution.nonce)
        if zero_bits(digest) < bits - SLACK:
            self._counts["drop_solution_work"] += 1
        elif digest in self._spent:
            self._counts["drop_solution_repeated"] += 1
        else:
            return digest
        return None
