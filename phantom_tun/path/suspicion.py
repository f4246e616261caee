"""Whom to avoid after failures (docs/spec/path.md, "Suspicion").

Nothing tells an owner which member made a build fail. So each known node has a probability of being
gone, which Bayes' rule raises for all members of a failed build and which falls when one succeeds
and with time. Suspects are drawn less often; nobody is drawn *more* often than a node we know
nothing about, because a preference for proven nodes is what an attacker would like to earn.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable

from phantom_tun.clock import MINUTE
from phantom_tun.ids import NodeId

PRIOR = 0.05
"""Probability that a node we know nothing about is gone."""
WORKED = 0.01
"""The same right after it took part in something that worked."""
UNREACHABLE = 0.9
"""The same right after a link to it could not be opened."""
HIGHEST = 0.97
HALF_LIFE = 5 * MINUTE
"""In which what was learnt loses half of its weight."""
MAX_REMEMBERED = 4096


class Suspicion:
    """Probabilities that nodes are gone."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[NodeId, tuple[float, float]] = OrderedDict()

    def of(self, node: NodeId, now: float) -> float:
        """The probability that ``node`` is gone."""
        probability, since = self._known.get(node, (PRIOR, now))
        weight = math.exp2(-max(now - since, 0.0) / HALF_LIFE)
        return PRIOR + (probability - PRIOR) * weight

    def weight(self, node: NodeId, now: float) -> float:
        """How likely it should be drawn, relative to an unknown node; at most 1."""
        return min(1.0, (PRIOR / self.of(node, now)) ** 2)

    def failed(self, members: Iterable[NodeId], now: float) -> None:
        """Something failed that works if all ``members`` are there."""
        probabilities = {member: self.of(member, now) for member in members}
        all_there = 1.0
        for probability in probabilities.values():
            all_there *= 1.0 - probability
        for member, probability in probabilities.items():
            self._set(member, probability / (1.0 - all_there), now)

    def worked(self, members: Iterable[NodeId], now: float) -> None:
        """Something worked that needs all ``members``."""
        for member in members:
            self._set(member, WORKED, now)

    def unreachable(self, node: NodeId, now: float) -> None:
        """We ourselves could not open a link to it."""
        self._set(node, UNREACHABLE, now)

    def _set(self, node: NodeId, probability: float, now: float) -> None:
        self._known[node] = (min(probability, HIGHEST), now)
        self._known.move_to_end(node)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
