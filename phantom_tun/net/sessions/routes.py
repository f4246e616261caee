"""Which ways in to an AP address to try first (docs/spec/session.md, "Connecting").

A route whose path has died says nothing or no until its owner has withdrawn it, which takes a
while. Whoever met that remembers it for the next connection, also if its application gave up
before another route was tried.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from phantom_tun.clock import Clock, Rng
from phantom_tun.ids import EntryId, NodeId

MAX_TRIALS = 2
"""Attempts at one time over a route that is a suspect, of all connections of an identity together:
many that wait for the same node shall not all find out that it isn't there yet."""
TRIAL_PAUSE = 0.25
"""Seconds after a failure without trials."""
SUSPECT_FOR = 120.0
"""Seconds that a route is tried last after it failed."""
MAX_SUSPECTS = 1024

Route = tuple[NodeId, EntryId]


class Suspects:
    """Routes that failed or were slow. Kept apart by identity, as everything about routes is."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: OrderedDict[tuple[str, Route], float] = OrderedDict()
        self._trials: Counter[tuple[str, Route]] = Counter()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, identity: str, route: Route) -> None:
        """``route`` failed, or has said nothing for long."""
        self._until[identity, route] = self._clock.now() + SUSPECT_FOR
        self._until.move_to_end((identity, route))
        if len(self._until) > MAX_SUSPECTS:
            self._until.popitem(last=False)

    def clear(self, identity: str, route: Route) -> None:
        """It works."""
        self._until.pop((identity, route), None)

    def suspects(self, identity: str, route: Route) -> bool:
        """Whether it failed lately."""
        return self._until.get((identity, route), 0.0) > self._clock.now()

    def may_be_tried(self, identity: str, route: Route) -> bool:
        """Whether there's no suspicion, or it's time and there's room for one more trial."""
        until, now = self._until.get((identity, route), 0.0), self._clock.now()
        if until <= now:
            return True
        return until - now <= SUSPECT_FOR - TRIAL_PAUSE and (
            self._trials[identity, route] < MAX_TRIALS
        )

    @contextmanager
    def trying(self, identity: str, route: Route) -> Iterator[None]:
        """While this is open, an attempt is under way."""
        self._trials[identity, route] += 1
        try:
            yield
        finally:
            self._trials[identity, route] -= 1
            if not self._trials[identity, route]:
                del self._trials[identity, route]

    def in_order(self, identity: str, routes: Iterable[Route], rng: Rng) -> list[Route]:
        """``routes`` in random order, suspects last."""
        shuffled = list(routes)
        rng.shuffle(shuffled)
        return sorted(shuffled, key=lambda route: self.suspects(identity, route))
