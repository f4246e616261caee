"""Whether guards can be reached, and if not, whether that says anything about them
(docs/spec/path.md, "Guards").

A link that can't be opened may be our own fault: we are offline, or somebody keeps us from all
others. So a guard is only blamed if it failed, something came from anybody meanwhile, and it failed
again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import trio

from phantom_tun.clock import Clock
from phantom_tun.errors import WorldError
from phantom_tun.ids import NodeId
from phantom_tun.net.paths.member import PathLinks
from phantom_tun.path.guards import SET_SIZE, GuardSet
from phantom_tun.path.selection import GUARD_PLACES
from phantom_tun.path.suspicion import Suspicion
from phantom_tun.wire.nodes import NodeRef
from phantom_tun.wire.records import NodeRecord

GUARD_DEADLINE = 3.0
"""Seconds for a guard to be reached before it is taken for gone."""
LOOK_FOR_MISSING_EVERY = 5.0
"""Seconds between two looks for guards that are no candidates."""

DOUBT_FOR = 60.0
"""Seconds between two failures after which the first one says nothing about the second."""

WAIT_FOR_SIGN = 10.5
"""Seconds to wait for anything from anybody if too few guards are left: who is silent is pinged
after ten."""
LISTEN_EVERY = 0.25
"""Seconds between two looks for it."""

_SLACK = 0.001
"""Of floating point, in seconds."""


@dataclass(frozen=True, slots=True)
class GuardNews:
    """What is known elsewhere about guards, and what is found out here about them."""

    record: Callable[[NodeId], NodeRecord | None]
    """The valid record of a node, even of one that failed."""
    answered: Callable[[NodeId], None]
    """A guard that was no candidate can be reached."""


class GuardWatch:
    """Tells guards that are gone from an outage of our own."""

    def __init__(
        self,
        links: PathLinks,
        guards: GuardSet,
        suspicion: Suspicion,
        news: GuardNews,
        clock: Clock,
    ) -> None:
        self._links = links
        self._guards = guards
        self._suspicion = suspicion
        self._news = news
        self._clock = clock
        self._doubts: dict[NodeId, float] = {}
        """Guards that failed, and since when; nothing is proven against them yet. In trio's time,
        as all here but for the guards'."""
        self._last_doubt = 0.0
        self._looking = trio.Lock()
        self._looked = -LOOK_FOR_MISSING_EVERY

    @property
    def online(self) -> bool:
        """Whether a link stands to anybody who was heard from since guards last failed."""
        return self._heard_since(self._last_doubt if self._doubts else 0.0)

    async def check(self, candidates: Iterable[NodeId], version: int) -> None:
        """Tell guards that are gone from those that are not, by dialing them. They are our
        neighbours whatever we build, so that dialing them, unlike other members, shows nothing
        new; where a link stands nothing is sent."""
        known = frozenset(candidates)
        await self._try(self._concerned(known), version)
        if self._too_few(known):
            await self._wait_for_sign()
        await self._try([node for node in self._doubts if self._would_prove(node)], version)

    async def find_missing(self, candidates: Iterable[NodeId], version: int) -> None:
        """Try guards that are no candidates and yet nothing is proven against: after an outage
        everybody has failed, and whoever isn't asked doesn't answer."""
        async with self._looking:
            now = self._clock.now()
            known = frozenset(candidates)
            missing = [
                node
                for node in self._concerned(known)
                if node not in known and not self._guards.paused(node, now)
            ]
            if missing and trio.current_time() >= self._looked + LOOK_FOR_MISSING_EVERY:
                self._looked = trio.current_time()
                await self._try(missing, version, self._news.answered)

    def failed(self, node: NodeId) -> None:
        """A link to a node could not be opened."""
        self._failed(node, trio.current_time())

    def worked(self, node: NodeId) -> None:
        """It took part in something that worked."""
        self._doubts.pop(node, None)
        self._guards.reached(node)

    def _concerned(self, candidates: Collection[NodeId]) -> list[NodeId]:
        """Guards that may be in use and those that others stand in for. Who once stood in and was
        left is left alone."""
        now = self._clock.now()
        found, standing = [], 0
        for node in self._guards:
            if self._guards.is_trusted(node) or standing < SET_SIZE or node in self._doubts:
                found.append(node)
            if not self._guards.is_trusted(node) and node in candidates:
                standing += not self._guards.paused(node, now)
        return found

    def _too_few(self, candidates: Collection[NodeId]) -> bool:
        """Whether another build would need guards that just failed."""
        usable = self._guards.usable(self._clock.now())
        sound = [node for node in usable if node in candidates and node not in self._doubts]
        return len(sound) < GUARD_PLACES

    async def _wait_for_sign(self) -> None:
        with trio.move_on_after(WAIT_FOR_SIGN):
            while self._doubts and not self._any_proof():  # noqa: ASYNC110 - no event tells of it
                await trio.sleep(LISTEN_EVERY)

    def _any_proof(self) -> bool:
        return any(self._would_prove(node) for node in self._doubts)

    async def _try(
        self,
        nodes: Iterable[NodeId],
        version: int,
        found: Callable[[NodeId], None] = lambda _node: None,
    ) -> None:
        async with trio.open_nursery() as nursery:
            for node in list(nodes):
                record = self._news.record(node)
                if record is not None:
                    nursery.start_soon(self._try_one, record.ref(version), found)

    async def _try_one(self, guard: NodeRef, found: Callable[[NodeId], None]) -> None:
        node = guard.node_id
        began, proof = trio.current_time(), self._would_prove(node)
        try:
            with trio.fail_after(GUARD_DEADLINE):
                await self._links.ensure(guard)
        except (WorldError, trio.TooSlowError):
            self._failed(node, began)
            if proof and self._doubts.pop(node, None) is not None:
                self._guards.unreachable(node, self._clock.now())
        else:
            self.worked(node)
            self._suspicion.worked([node], self._clock.now())
            found(node)

    def _failed(self, node: NodeId, began: float) -> None:
        now = self._clock.now()
        self._suspicion.unreachable(node, now)
        if node in self._guards and not self._guards.paused(node, now):
            if not self._is_fresh(node):
                self._doubts[node] = began
            self._last_doubt = began

    def _is_fresh(self, node: NodeId) -> bool:
        since = self._doubts.get(node)
        return since is not None and trio.current_time() - since < DOUBT_FOR

    def _would_prove(self, node: NodeId) -> bool:
        """Whether another failure of a guard would be its own."""
        return self._is_fresh(node) and self._heard_since(self._doubts[node])

    def _heard_since(self, moment: float) -> bool:
        allowed = trio.current_time() - moment + _SLACK
        return any(
            found.silent is not None and found.silent <= allowed
            for found in self._links.neighbours()
            if found.node_id != self._links.node_id
        )
