"""In which order the members of a build stand (docs/spec/path.md, "Ring").

Outward from the owner::

    owner ─ Y ─ X1 ─ Y ─ X2 ─ … ─ Y ─ Xx ─ Y … Y ─ owner
            └ near  └ between        └ terminating  └ max(1, x-1) far Ys

No two X-nodes stand side by side, and neither end of the ring is one. Arrays travel this way round
or the other, by the toss of a coin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
S = TypeVar("S")

MAX_HOPS = 8


def far_count(hops: int) -> int:
    """Y-nodes between the terminating node and the owner."""
    return max(1, hops - 1)


def member_count(hops: int) -> int:
    """Nodes that a path of ``hops`` ≥ 1 X-nodes is built with."""
    return hops + (hops - 1) + 1 + far_count(hops)


@dataclass(frozen=True, slots=True)
class Ring(Generic[T]):
    """Members by their places. All are listed outward, on the far side back to the owner."""

    near: T
    """The one Y-node between the owner and the first X-node."""
    x_nodes: tuple[T, ...]
    between: tuple[T, ...]
    """``between[i]`` stands between X-nodes i and i + 1."""
    far: tuple[T, ...]
    forward: bool
    """Whether arrays start at the near Y-node; otherwise they start at the last far one."""

    def __post_init__(self) -> None:
        hops = len(self.x_nodes)
        if not hops or len(self.between) != hops - 1 or len(self.far) != far_count(hops):
            raise ValueError("a ring has x X-nodes, x-1 Ys between them and max(1, x-1) far Ys")

    def outward(self) -> list[T]:
        """All members from the near Y-node round to the last far one."""
        members = [self.near]
        for index, x_node in enumerate(self.x_nodes):
            members.append(x_node)
            members += self.between[index : index + 1]
        return [*members, *self.far]

    def in_order(self) -> list[T]:
        """All members as arrays pass them."""
        members = self.outward()
        return members if self.forward else members[::-1]

    def place(self, x_index: int) -> int:
        """Where in :meth:`in_order` the ``x_index``-th X-node (0 next to the owner) stands."""
        place = 1 + 2 * x_index
        return place if self.forward else member_count(len(self.x_nodes)) - 1 - place

    def map(self, change: Callable[[T], S]) -> Ring[S]:
        """The same ring of other things."""
        return Ring(
            change(self.near),
            tuple(map(change, self.x_nodes)),
            tuple(map(change, self.between)),
            tuple(map(change, self.far)),
            self.forward,
        )
