"""The few nodes that may stand next to the owner (docs/spec/path.md, "Guards").

Whoever stands next to an owner sees its address, and only has to guess that it is an owner. Drawing
these neighbours anew for each path would sooner or later put an attacker there; so they come from a
small set that changes slowly. It has an order, that in which they were taken: later ones stand in
for earlier ones while those can't be reached, and no longer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import msgspec

from phantom_tun.clock import DAY, HOUR, MINUTE, Rng
from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import ConfigError
from phantom_tun.ids import NodeId

SET_SIZE = 5
"""Guards that a node uses: the first of those that can be reached."""
MAX_SIZE = 15
"""The most it knows at one time, those included that stood in for others once."""
SHORTEST_TERM = 30 * DAY
LONGEST_TERM = 90 * DAY
"""A guard is replaced after a time drawn between these."""
GRACE = 3 * DAY
"""A guard that is gone is let go after this."""
LET_GO_EVERY = DAY
"""No two are let go within this: whoever takes guards away one by one has to be patient."""
LONGEST_LOOK = DAY
"""More time than this between two looks doesn't count: it is us who were away."""
FIRST_PAUSE = MINUTE
LONGEST_PAUSE = HOUR
"""A guard that can't be reached is left alone for a minute, then twice as long each time."""


class Guard(msgspec.Struct, frozen=True):
    """One guard, as it is kept on disk. Times are seconds since the epoch."""

    node: str
    """Node id, hexadecimal."""
    until: float
    """When its term ends."""
    seen: float
    """When it was last among the known nodes."""

    @property
    def node_id(self) -> NodeId:
        """The node's id."""
        return NodeId(bytes.fromhex(self.node))


class Saved(msgspec.Struct, frozen=True):
    """What is kept of a guard set. Times are seconds since the epoch, 0 for never."""

    guards: list[Guard]
    """In the order in which they were taken."""
    looked: float = 0.0
    """When it was last seen who is there, by a node that was online."""
    let_go: float = 0.0
    """When one was last let go because it was gone."""


@dataclass(frozen=True, slots=True)
class _Pause:
    until: float
    length: float


class GuardSet:
    """Who the guards are. Trusted nodes come first and have no term."""

    __slots__ = ("_guards", "_let_go", "_looked", "_pauses", "_trusted", "changed")

    def __init__(self, trusted: frozenset[NodeId], saved: Saved | None = None) -> None:
        saved = saved or Saved([])
        self._trusted = trusted
        self._guards = {guard.node_id: guard for guard in saved.guards}
        self._looked = saved.looked or max((guard.seen for guard in saved.guards), default=0.0)
        self._let_go = saved.let_go
        self._pauses: dict[NodeId, _Pause] = {}
        self.changed = False
        """Whether the set differs from what was last saved."""

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._guards)

    def __len__(self) -> int:
        return len(self._guards)

    def __contains__(self, node: object) -> bool:
        return node in self._guards

    @property
    def full(self) -> bool:
        """Whether no further guard is taken even if those there are don't suffice."""
        return len(self._guards) >= MAX_SIZE

    def is_trusted(self, node: NodeId) -> bool:
        """Whether the user named it."""
        return node in self._trusted

    def refresh(self, present: Collection[NodeId], now: float, *, online: bool) -> None:
        """Let guards go whose term is over or that have been gone for too long. ``present`` are
        the nodes that could be guards now; ``online``: whether we would know of them."""
        away = max(now - self._looked - LONGEST_LOOK, 0.0) if online and self._looked else 0.0
        kept = {}
        for node, guard in self._guards.items():
            seen = min(guard.seen + away, max(guard.seen, now))
            # Minutes of difference aren't worth a write.
            if node in present and now - seen > HOUR:
                seen = now
            if now < guard.until or self.is_trusted(node):
                kept[node] = msgspec.structs.replace(guard, seen=seen)
        if online:
            self._let_one_go(kept, present, now)
            if now - self._looked > HOUR:
                self._looked = now
                self.changed |= bool(kept)
        self.changed |= kept != self._guards
        self._guards = kept

    def _let_one_go(
        self, kept: dict[NodeId, Guard], present: Collection[NodeId], now: float
    ) -> None:
        gone = [
            node for node, guard in kept.items() if node not in present and now - guard.seen > GRACE
        ]
        if gone and now - self._let_go >= LET_GO_EVERY:
            del kept[min(gone, key=lambda node: kept[node].seen)]
            self._let_go = now

    def usable(self, now: float) -> list[NodeId]:
        """Guards that nothing is known against: trusted ones first, then in the order of the
        set."""
        found = [node for node in self._guards if not self.paused(node, now)]
        return sorted(found, key=lambda node: not self.is_trusted(node))

    def add(self, node: NodeId, now: float, rng: Rng) -> None:
        """Take a node into the set."""
        term = rng.uniform(SHORTEST_TERM, LONGEST_TERM)
        self._guards[node] = Guard(node.hex(), now + term, now)
        self.changed = True

    def make_room(self) -> None:
        """If the set is full, let the last one go that isn't trusted."""
        others = [node for node in self._guards if not self.is_trusted(node)]
        if self.full and others:
            del self._guards[others[-1]]
            self.changed = True

    def paused(self, node: NodeId, now: float) -> bool:
        """Whether it is left alone."""
        return node in self._pauses and self._pauses[node].until > now

    def unreachable(self, node: NodeId, now: float) -> None:
        """No link to it could be opened, and that is not because we are offline; it isn't used for
        a while."""
        if node in self._guards and not self.paused(node, now):
            before = self._pauses.get(node)
            length = min(2 * before.length, LONGEST_PAUSE) if before else FIRST_PAUSE
            self._pauses[node] = _Pause(now + length, length)

    def reached(self, node: NodeId) -> None:
        """It took part in something that worked."""
        self._pauses.pop(node, None)

    def encode(self) -> bytes:
        """For the disk, JSON."""
        content = Saved(list(self._guards.values()), self._looked, self._let_go)
        return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"

    @staticmethod
    def decode(data: bytes) -> Saved:
        """Undo :meth:`encode`.

        :raises ConfigError: not what :meth:`encode` writes.
        """
        try:
            saved = msgspec.json.decode(data, type=Saved)
            lengths = {len(guard.node_id) for guard in saved.guards}
        except UNREADABLE as error:
            raise ConfigError(f"not a list of guards: {error}") from error
        if lengths - {32} or len(saved.guards) > MAX_SIZE:
            raise ConfigError("not a list of guards: wrong ids, or too many")
        return saved
