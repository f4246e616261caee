"""Drawing the members of a path (docs/spec/path.md, "Members").

Prefixes are drawn, then a node in each: a thousand nodes in one /16 are drawn no more often than
one. The three places next to the owner (both ends of the ring and the first X-node) are drawn from
the guards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from phantom_tun.clock import Rng
from phantom_tun.errors import PathUnavailable
from phantom_tun.ids import NodeId
from phantom_tun.path.candidates import Candidate, Traits, prefix, serves, traits
from phantom_tun.path.guards import SET_SIZE, GuardSet
from phantom_tun.path.ring import Ring, member_count
from phantom_tun.path.suspicion import Suspicion
from phantom_tun.wire.records import NodeRecord

GUARD_PLACES = 3
"""Near Y-node, first X-node and last far Y-node."""

GUARD_ELSEWHERE = 0.02
"""Weight of a guard for a place that is no guard's, relative to another node."""
PLENTY = 2
"""With this many times as many other nodes as places, guards are kept out of them."""

MANY = 256
"""Prefixes looked at in one draw; chosen by chance when more are known, to bound the work."""

ATTEMPTS = 8
"""Draws before it is taken for granted that there are too few fitting nodes."""


class TooFewNodes(PathUnavailable):
    """Not enough fitting nodes are known; nothing was sent, so it costs nothing to try again."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Everything a draw depends on."""

    own: NodeRecord
    relatives: frozenset[NodeId]
    """Other nodes of the same owner."""
    candidates: Sequence[Candidate]
    guards: GuardSet
    suspicion: Suspicion
    now: float
    rng: Rng
    online: bool = True
    """Whether somebody was heard from since a link last failed. If not, it may be us whom nobody
    can reach, and no guard is replaced."""
    apart_from: frozenset[NodeId] = frozenset()
    """X-nodes of the other paths that serve the same purpose: if there are others, one node's end
    shall not be the end of all of them."""


def draw_ring(hops: int, draw: Draw) -> tuple[Ring[Candidate], int]:
    """Members for a path of ``hops`` X-nodes, and the IP version in which they reach each other.

    Guards are taken into the set if too few can be reached.

    :raises TooFewNodes: says how many are missing.
    """
    shortage: TooFewNodes | None = None
    for version in sorted({address.version for address in draw.own.ips}):
        try:
            return _Drawing(hops, draw, version).ring(), version
        except TooFewNodes as error:
            shortage = shortage or error
    raise shortage or TooFewNodes("this node has no address of its own yet")


class _Drawing:
    """One draw over one IP version."""

    def __init__(self, hops: int, draw: Draw, version: int) -> None:
        self._hops = hops
        self._draw = draw
        self._own = traits(draw.own, draw.relatives)
        self._fitting: dict[NodeId, Candidate] = {}
        self._traits: dict[NodeId, Traits] = {}
        for candidate in self._sample():
            if serves(candidate, version, draw.now):
                node = candidate.record.node_id
                self._traits[node] = traits(candidate.record)
                if not self._traits[node].clashes(self._own):
                    self._fitting[node] = candidate
        self._needed = member_count(hops)
        others = sum(node not in draw.guards for node in self._fitting)
        plenty = others >= PLENTY * (self._needed - GUARD_PLACES)
        self._guard_elsewhere = GUARD_ELSEWHERE if plenty else 1.0

    def _sample(self) -> list[Candidate]:
        """All that may be chosen, of as many prefixes as are looked at; guards and trusted nodes
        always."""
        draw = self._draw
        known = [
            candidate
            for candidate in draw.candidates
            if candidate.fair
            or candidate.record.node_id in draw.guards
            or draw.guards.is_trusted(candidate.record.node_id)
        ]
        by_prefix: dict[bytes, list[Candidate]] = {}
        for candidate in known:
            by_prefix.setdefault(prefix(candidate.record.ips[0]), []).append(candidate)
        if len(by_prefix) <= MANY:
            return known
        chosen = set(draw.rng.sample(list(by_prefix), MANY))
        return [
            candidate
            for place, candidates in by_prefix.items()
            for candidate in candidates
            if place in chosen
            or candidate.record.node_id in draw.guards
            or draw.guards.is_trusted(candidate.record.node_id)
        ]

    def ring(self) -> Ring[Candidate]:
        draw = self._draw
        draw.guards.refresh(self._fitting, draw.now, online=draw.online)
        most = self._most_members()
        if most < self._needed:
            raise TooFewNodes(self._shortage(most))
        for _ in range(ATTEMPTS):
            guards = self._draw_guards()
            members = self._fill(guards)
            if len(members) == self._needed and len(guards) == GUARD_PLACES:
                return self._arrange(members)
        raise TooFewNodes(self._shortage(most))

    def _most_members(self) -> int:
        most = 0
        for _ in range(ATTEMPTS):
            most = max(most, len(self._fill([])))
            if most == self._needed:
                break
        return most

    def _shortage(self, most: int) -> str:
        needed = self._needed
        hops = f"{self._hops} hop{'s' if self._hops > 1 else ''}"
        if most < needed:
            return (
                f"{hops} need{'' if self._hops > 1 else 's'} {needed} members in different /16; "
                f"of the known nodes {most} fit"
            )
        return (
            f"{hops} need{'' if self._hops > 1 else 's'} {GUARD_PLACES} guards that can be "
            f"reached; {len(self._draw_guards())} of {len(self._draw.guards)} can"
        )

    # --- guards ---------------------------------------------------------------------------------

    def _draw_guards(self) -> list[NodeId]:
        guards = self._draw.guards
        self._fill_guard_set()
        used, standing_in = self._guard_order()
        # Whichever comes first, its traits may exclude others.
        orders = ([used[place], *used] for place in range(len(used)))
        found = max(
            (self._compatible(order, GUARD_PLACES) for order in orders), key=len, default=[]
        )
        found = self._compatible(standing_in, GUARD_PLACES, found)
        while len(found) < GUARD_PLACES and self._draw.online and not guards.full:
            more = self._compatible(self._no_guards_yet(), len(found) + 1, found)[len(found) :]
            if not more:
                break
            guards.add(more[0], self._draw.now, self._draw.rng)
            found += more
        return found

    def _fill_guard_set(self) -> None:
        draw = self._draw
        for node in self._fitting:
            if draw.guards.is_trusted(node) and node not in draw.guards:
                draw.guards.make_room()
                if not draw.guards.full:
                    draw.guards.add(node, draw.now, draw.rng)
        if len(draw.guards) and not draw.online:
            return
        present = [node for node in self._fitting if node in draw.guards]
        room = SET_SIZE - len(draw.guards)
        known = self._no_guards_yet()
        for node in self._compatible(known, len(present) + room, present)[len(present) :]:
            draw.guards.add(node, draw.now, draw.rng)

    def _no_guards_yet(self) -> list[NodeId]:
        return [node for node in self._one_per_prefix() if node not in self._draw.guards]

    def _guard_order(self) -> tuple[list[NodeId], list[NodeId]]:
        """Guards for use in random order, and those that only stand in for them in theirs."""
        draw = self._draw
        usable = [node for node in draw.guards.usable(draw.now) if node in self._fitting]
        trusted = [node for node in usable if draw.guards.is_trusted(node)]
        others = usable[len(trusted) :]
        count = max(SET_SIZE - len(trusted), 0)
        used = [
            *self._apart(self._shuffled(trusted)),
            *self._apart(self._shuffled(others[:count])),
        ]
        return used, others[count:]

    # --- drawing --------------------------------------------------------------------------------

    def _fill(self, guards: list[NodeId]) -> list[NodeId]:
        return self._compatible(self._one_per_prefix(), self._needed, guards)

    def _apart(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        """In the same order, but X-nodes of the other paths last."""
        return sorted(nodes, key=lambda node: node in self._draw.apart_from)

    def _one_per_prefix(self) -> list[NodeId]:
        by_prefix: dict[bytes, list[NodeId]] = {}
        for node, candidate in self._fitting.items():
            by_prefix.setdefault(prefix(candidate.record.ips[0]), []).append(node)
        return self._shuffled(self._shuffled(nodes)[0] for nodes in by_prefix.values())

    def _shuffled(self, nodes: Iterable[NodeId]) -> list[NodeId]:
        """In random order, those of great weight rather at the front."""
        rng = self._draw.rng
        return sorted(nodes, key=lambda node: rng.expovariate(1.0) / self._weight(node))

    def _weight(self, node: NodeId) -> float:
        weight = self._draw.suspicion.weight(node, self._draw.now)
        return weight * self._guard_elsewhere if node in self._draw.guards else weight

    def _compatible(
        self, nodes: Iterable[NodeId], count: int, chosen: Sequence[NodeId] = ()
    ) -> list[NodeId]:
        """``chosen`` and as many of ``nodes`` as go together with them, up to ``count`` in all."""
        found = list(chosen)
        taken = self._own
        for node in found:
            taken = taken.joined(self._traits[node])
        for node in nodes:
            if len(found) >= count:
                break
            if not self._traits[node].clashes(taken):
                found.append(node)
                taken = taken.joined(self._traits[node])
        return found

    def _arrange(self, members: list[NodeId]) -> Ring[Candidate]:
        """The first three are guards: the best of them becomes the first X-node."""
        guards, rest = members[:GUARD_PLACES], self._apart(members[GUARD_PLACES:])
        first_x, near, last, *others = (self._fitting[node] for node in (*guards, *rest))
        hops = self._hops
        # Backwards: of X-nodes of other paths, the terminating one is the last to be taken.
        x_nodes = (first_x, *reversed(others[: hops - 1]))
        between = tuple(others[hops - 1 : 2 * (hops - 1)])
        far = (*others[2 * (hops - 1) :], last)
        # Without a port of its own this node can only be the side that dials.
        forward = not self._draw.own.dialable or self._draw.rng.random() < 0.5
        return Ring(near, x_nodes, between, far, forward)
