"""What is left of a build when it is done: at an X-node, and at the owner
(docs/spec/path.md, "Outcome")."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from phantom_tun.ids import ConnectionId, EntryId, NodeId
from phantom_tun.wire.nodes import NodeRef

PathKind = Literal["exit", "entry"]
HopRole = Literal["interior", "exit", "entry"]

Neighbour = tuple[NodeRef, ConnectionId]
"""A neighbour on the finished path and the connection id both ends know."""


@dataclass(frozen=True, slots=True)
class PathHop:
    """What an X-node keeps of a path."""

    role: HopRole
    neighbours: tuple[Neighbour, ...]
    """Two in ring order for an interior hop, one for a terminating one."""
    path_secret: bytes = field(repr=False)
    """K, 32 bytes."""
    expires: float
    entry_id: EntryId | None = None
    """Terminating node of an entry path only."""
    route: bytes | None = None
    """The signed APRoute to publish when the first tunnel answers; entry paths only."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnedPath:
    """A path of ours. ``members`` and ``secrets`` are ordered from the owner outward; both are
    empty for a path of length zero."""

    number: int
    kind: PathKind
    identity: str
    members: list[NodeRef]
    secrets: list[bytes] = field(repr=False)
    first_connection: ConnectionId
    """Between the owner and ``members[0]``."""
    entry_id: EntryId | None
    """Entry paths only."""
    built: float
    retires: float
    """When the owner stops using it for new tunnels."""
    expires: float
    """When the first member forgets it."""
    build_seconds: float
    route: bytes | None = None
    """The signed APRoute that this node publishes itself: entry paths of length zero only."""
    aside: bool = False
    """An exit path for questions about the owner's own affairs, that no connection is made over."""

    @property
    def node_ids(self) -> list[NodeId]:
        """Ordered node ids, from the owner outward."""
        return [member.node_id for member in self.members]

    @property
    def hops(self) -> int:
        """Number of X-nodes."""
        return len(self.members)
