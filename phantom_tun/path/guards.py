"""The few nodes that may stand next to the owner (docs/spec/path.md, "Guards").

Whoever stands next to an owner sees its address, and only has to guess that it is an owner. Drawing
these neighbours anew for each path would sooner or later put an attacker there; so they come from a
small set that changes slowly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import msgspec

from phantom_tun.clock import DAY, HOUR, MINUTE, Rng
from phantom_tun.decoding import UNREADABLE
from phantom_tun.errors import ConfigError
from phantom_tun.ids import NodeId

SET_SIZE = 5
"""Guards that a node aims at."""
MAX_SIZE = 15
"""The most it ever has at one time, when many of them fail."""
SHORTEST_TERM = 30 * DAY
LONGEST_TERM = 90 * DAY
"""A guard is replaced after a time drawn between these."""
GRACE = 3 * DAY
"""A guard that is gone is replaced after this."""
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


class _File(msgspec.Struct, frozen=True):
    guards: list[Guard]


@dataclass(frozen=True, slots=True)
class _Pause:
    until: float
    length: float


class GuardSet:
    """Who the guards are. Trusted nodes come first and have no term."""

    __slots__ = ("_guards", "_pauses", "_trusted", "changed")

    def __init__(self, trusted: frozenset[NodeId], guards: Iterable[Guard] = ()) -> None:
        self._trusted = trusted
        self._guards = {guard.node_id: guard for guard in guards}
        self._pauses: dict[NodeId, _Pause] = {}
        self.changed = False
        """Whether the set differs from what was last saved."""

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

    def refresh(self, present: Collection[NodeId], now: float) -> None:
        """Let guards go whose term is over or that have been gone for too long. ``present`` are
        the nodes that could be guards now."""
        kept = {}
        for node, guard in self._guards.items():
            current = guard
            if node in present:
                # Minutes of difference aren't worth a write.
                if now - guard.seen > HOUR:
                    current = msgspec.structs.replace(guard, seen=now)
            elif now - guard.seen > GRACE:
                continue
            if now < guard.until or self.is_trusted(node):
                kept[node] = current
        self.changed |= kept != self._guards
        self._guards = kept

    def usable(self, now: float) -> list[NodeId]:
        """Guards that nothing is known against, trusted ones first."""
        found = [
            node
            for node in self._guards
            if node not in self._pauses or self._pauses[node].until <= now
        ]
        return sorted(found, key=lambda node: not self.is_trusted(node))

    def add(self, node: NodeId, now: float, rng: Rng) -> None:
        """Take a node into the set."""
        term = rng.uniform(SHORTEST_TERM, LONGEST_TERM)
        self._guards[node] = Guard(node.hex(), now + term, now)
        self.changed = True

    def unreachable(self, node: NodeId, now: float) -> None:
        """No link to it could be opened; it isn't used for a while."""
        if node in self._guards:
            before = self._pauses.get(node)
            length = min(2 * before.length, LONGEST_PAUSE) if before else FIRST_PAUSE
            self._pauses[node] = _Pause(now + length, length)

    def reached(self, node: NodeId) -> None:
        """It took part in something that worked."""
        self._pauses.pop(node, None)

    def encode(self) -> bytes:
        """For the disk, JSON."""
        content = _File(list(self._guards.values()))
        return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"

    @staticmethod
    def decode(data: bytes) -> list[Guard]:
        """Undo :meth:`encode`.

        :raises ConfigError: not what :meth:`encode` writes.
        """
        try:
            guards = msgspec.json.decode(data, type=_File).guards
            lengths = {len(guard.node_id) for guard in guards}
        except UNREADABLE as error:
            raise ConfigError(f"not a list of guards: {error}") from error
        if lengths - {32} or len(guards) > MAX_SIZE:
            raise ConfigError("not a list of guards: wrong ids, or too many")
        return guards
