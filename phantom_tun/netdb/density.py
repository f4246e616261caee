"""How densely nodes lie in the id space, and so whether a lookup was led astray
(docs/spec/netdb.md, "Density").

Ids are hashes, so nodes lie evenly, and the k closest to any target take up about the same part of
the id space. Liars can name only one another, but where a fifth of a network lies, the k closest
liars are spread five times as wide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from phantom_tun.netdb.contact import position
from phantom_tun.netdb.table import K
from phantom_tun.wire.records import NodeRecord

REMEMBERED = 9
"""Lookups whose findings are compared with the next one's."""
SPARSE = 1.75
"""So many times fewer nodes than usual are suspicious: by chance that happens to three lookups of a
thousand."""

_IDS = 2**256


class Density:
    """What one node's latest lookups found."""

    __slots__ = ("_sizes",)

    def __init__(self) -> None:
        self._sizes: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def size(self) -> float:
        """How many nodes the network seems to have; 0 if nothing was found yet."""
        return median(self._sizes) if self._sizes else 0.0

    def saw(self, target: bytes, found: Sequence[NodeRecord]) -> None:
        """A lookup of ``target`` found these nodes, closest first."""
        self._sizes.append(_size(target, found))

    def sparse(self, target: bytes, found: Sequence[NodeRecord]) -> bool:
        """Whether a lookup of ``target`` found far fewer nodes than others did."""
        return _size(target, found) * SPARSE < self.size


def median(values: Iterable[float]) -> float:
    """Of at least one value. Python's own comes with modules of 200 KB, for other kinds of
    numbers."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _size(target: bytes, found: Sequence[NodeRecord]) -> float:
    """How many nodes there are in all, if everywhere is as it is around ``target``."""
    if len(found) < K:
        return float(len(found))
    nearest = found[:K]
    return K * _IDS / ((position(nearest[-1].node_id) ^ position(target)) + 1)
