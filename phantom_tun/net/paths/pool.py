"""Keeping paths up: built side by side, confirmed, replaced before they end, rebuilt when they die
(docs/spec/path.md, "Pool").

A pool has one *lane* for each path that it is to keep. A lane builds until a path is up, sleeps
until that path needs a successor, and begins again; the path itself stays in use until it retires.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Protocol

import structlog
import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.errors import DeadlineExpired, PathUnavailable, UsageError, WorldError
from phantom_tun.ids import NodeId
from phantom_tun.path.build import RouteFactory
from phantom_tun.path.hop import OwnedPath, PathKind
from phantom_tun.path.lifetimes import draw_lead, draw_lifetime
from phantom_tun.path.selection import TooFewNodes

_log = structlog.get_logger(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
"""Seconds between failed builds of one lane: the first, doubled with each failure, at most."""

SHORTAGE_PAUSE = 1.0
"""Seconds between builds while too few nodes are known: as soon as there are enough, paths are
wanted, and looking costs nothing."""

OTHERS_AFTER = 5.0
OTHERS_AT_MOST = 30.0
"""How long a pool's second path is begun after its first one is up, the third after the second, and
so on, about: so many times as long as the first one took to build; and seconds at most. One path is
enough to begin with, and a slow build says that many start at the same time: what the processor,
the line and the members can do is for their first paths, too."""
OTHERS_AT_LATEST = 60.0
"""Seconds after which they are begun if the first one isn't up."""

EARLY_DEATH = 30.0
"""A path that dies sooner than this counts as a failed build, so that a lane doesn't spin."""

LOOK_EVERY = 10.0
"""Seconds between looks at the clock and at the link to the first X-node."""

LINK_FAILURES = 2
"""Looks in a row at which the first X-node can't be reached until the path is given up."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a pool keeps up."""

    kind: PathKind
    identity: str
    hops: int
    count: int
    lifetime: float
    """About how many seconds a path is used; see ``path.lifetimes``."""
    route_factory: RouteFactory | None = None
    """Needed for entry paths."""
    aside: bool = False
    """See :class:`~phantom_tun.path.hop.OwnedPath`."""


class Change(Enum):
    """What can happen to a path."""

    UP = auto()
    RETIRED = auto()
    DIED = auto()


@dataclass(frozen=True, slots=True)
class PathEvent:
    """Something happened to one of our paths."""

    change: Change
    path: OwnedPath


class Builder(Protocol):
    """What a pool needs of :class:`~phantom_tun.net.paths.builder.PathBuilder`."""

    async def build(
        self,
        kind: PathKind,
        hops: int,
        identity: str,
        route_factory: RouteFactory | None = None,
        *,
        lifetime: float,
        apart_from: frozenset[NodeId],
    ) -> OwnedPath:
        """See there."""
        ...

    def gave_no_tunnel(self, path: OwnedPath) -> None:
        """See there."""
        ...

    def died(self, path: OwnedPath) -> None:
        """See there."""
        ...

    async def keep_link(self, path: OwnedPath) -> None:
        """See there."""
        ...

    async def check_guards(self) -> None:
        """See there."""
        ...


class _Standing:
    """A path that is up."""

    __slots__ = (
        "doubted",
        "ended",
        "lead",
        "path",
        "rebuild",
        "replaced",
        "successor_wanted",
        "up_since",
    )

    def __init__(self, path: OwnedPath, lead: float) -> None:
        self.path = path
        self.lead = lead
        self.up_since = trio.current_time()
        self.successor_wanted = trio.Event()
        self.replaced = trio.Event()
        self.ended = trio.Event()
        self.doubted = False
        """Whether it gave no tunnels for a while."""
        self.rebuild = False
        """Whether it ends as soon as it is replaced."""


class PathPool:
    """Keeps ``goal.count`` paths up."""

    def __init__(
        self,
        builder: Builder,
        goal: Goal,
        *,
        confirm: Callable[[OwnedPath], Awaitable[None]],
        release: Callable[[OwnedPath], None],
        on_event: Callable[[PathEvent], None],
        clock: Clock,
        rng: Rng,
    ) -> None:
        """
        :param confirm: takes a freshly built path into use and returns when its first tunnel
            answered; raises :class:`~phantom_tun.errors.WorldError` if it doesn't.
        :param release: takes it out of use; tunnels in it may finish.
        """
        self._builder = builder
        self.goal = goal
        self._confirm = confirm
        self._release = release
        self._on_event = on_event
        self._clock = clock
        self._rng = rng
        self._standing: list[_Standing] = []
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._counts: Counter[str] = Counter()
        self.problem: str | None = None
        self.shortage = ""
        """Why the last build failed, for people; ``None`` once one succeeded again."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep paths up until cancelled; then release them all."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for number in range(self.goal.count):
                    nursery.start_soon(self._lane, number)
                task_status.started()
        finally:
            self._nursery = None
            for standing in self._standing[:]:
                self._end(standing, Change.RETIRED)

    def current(self) -> list[OwnedPath]:
        """The paths that can be used for new tunnels."""
        return [standing.path for standing in self._standing]

    async def wait_ready(self, count: int = 1) -> None:
        """Wait until ``count`` paths are up.

        :raises UsageError: the pool never has so many.
        """
        if count > self.goal.count:
            raise UsageError(f"this pool keeps only {self.goal.count} paths")
        while len(self._standing) < count:
            await self._changed.wait()

    def report_dead(self, path: OwnedPath) -> None:
        """A path gives no tunnels any more: build another one now. Idempotent."""
        for standing in self._find(path):
            if not standing.doubted:
                self._builder.died(path)
            self._end(standing, Change.DIED)

    def report_doubt(self, path: OwnedPath) -> None:
        """A path gives no tunnels at the moment: build another one now, and let this one go when
        that is up, unless it is found dead earlier. Idempotent."""
        for standing in self._find(path):
            if not standing.doubted:
                standing.doubted = True
                self._counts["doubted"] += 1
                self._builder.died(path)
                standing.successor_wanted.set()
                if standing.replaced.is_set():
                    self._end(standing, Change.RETIRED)

    async def rebuild(self, path: OwnedPath | None = None, *, within: float) -> list[OwnedPath]:
        """Replace ``path``, or all; returns those in use afterwards. A path that is being replaced
        works until its successor is up.

        :raises PathUnavailable: it isn't one of this pool's.
        :raises DeadlineExpired: not done in ``within`` seconds; it goes on in the background.
        """
        chosen = self._find(path) if path is not None else self._standing[:]
        if path is not None and not chosen:
            raise PathUnavailable("that path doesn't stand any more")
        for standing in chosen:
            standing.rebuild = True
            standing.successor_wanted.set()
            if standing.replaced.is_set():
                self._end(standing, Change.RETIRED)
        with trio.move_on_after(within):
            for standing in chosen:
                await standing.replaced.wait()
            return self.current()
        raise DeadlineExpired(self.problem or "the paths are not replaced yet")

    def statistics(self) -> dict[str, int]:
        """Counters by name."""
        return {"up": len(self._standing), "wanted": self.goal.count, **self._counts}

    # --- lanes ----------------------------------------------------------------------------------

    async def _lane(self, number: int) -> None:
        if number:
            await self._let_first_go(number)
        failures = 0
        standing = await self._build_until_up(failures)
        while True:
            await standing.successor_wanted.wait()
            failed = standing.ended.is_set() or standing.doubted
            early = trio.current_time() - standing.up_since < EARLY_DEATH
            failures = failures + 1 if failed and early else 0
            if failed:
                await self._builder.check_guards()
            successor = await self._build_until_up(failures)
            standing.replaced.set()
            if standing.rebuild or standing.doubted:
                self._end(standing, Change.RETIRED)
            standing = successor

    async def _let_first_go(self, number: int) -> None:
        with trio.move_on_after(OTHERS_AT_LATEST):
            await self.wait_ready()
        if self._standing:
            took = self._standing[0].path.build_seconds
            await self._pause(min(OTHERS_AFTER * took, OTHERS_AT_MOST) * number)

    async def _build_until_up(self, failures: int) -> _Standing:
        while True:
            if failures:
                await self._pause(min(FIRST_PAUSE * 2.0 ** (failures - 1), LONGEST_PAUSE))
            try:
                return await self._build()
            except TooFewNodes as error:
                self.problem = self.shortage = str(error)
                await self._pause(SHORTAGE_PAUSE)
            except (WorldError, UsageError) as error:  # a full disk, for instance
                self._note(error)
                self.shortage = ""
                failures += 1

    async def _pause(self, seconds: float) -> None:
        await trio.sleep(seconds * self._rng.uniform(0.75, 1.25))

    def _note(self, error: WorldError | UsageError) -> None:
        self._counts["builds_failed"] += 1
        self.problem = str(error)
        _log.debug("path build failed", kind=self.goal.kind, reason=self.problem)

    async def _build(self) -> _Standing:
        goal = self.goal
        lifetime = draw_lifetime(goal.lifetime, self._rng)
        others = (standing.path for standing in self._standing if not standing.doubted)
        path = await self._builder.build(
            goal.kind,
            goal.hops,
            goal.identity,
            goal.route_factory,
            lifetime=lifetime,
            apart_from=frozenset(node for path in others for node in path.node_ids),
        )
        path = replace(path, aside=goal.aside)
        try:
            await self._confirm(path)
        except WorldError:
            self._builder.gave_no_tunnel(path)
            raise
        standing = _Standing(path, draw_lead(lifetime, self._rng))
        self._standing.append(standing)
        self._counts["built"] += 1
        self.problem = None
        self.shortage = ""
        self._announce(PathEvent(Change.UP, path))
        if self._nursery is not None:
            self._nursery.start_soon(self._watch, standing)
        return standing

    # --- the end of a path ----------------------------------------------------------------------

    async def _watch(self, standing: _Standing) -> None:
        """Ask for a successor in time, retire the path in time, and notice a lost first hop. The
        clock is looked at again and again: it may jump, as after a suspend."""
        path = standing.path
        link_failures = 0
        while not standing.ended.is_set():
            left = path.retires - self._clock.now()
            if left <= 0:
                self._end(standing, Change.RETIRED)
                return
            if left <= standing.lead:
                standing.successor_wanted.set()
            with trio.move_on_after(min(left, LOOK_EVERY)):
                await standing.ended.wait()
                return
            link_failures = 0 if await self._reaches(path) else link_failures + 1
            if link_failures >= LINK_FAILURES:
                self.report_dead(path)

    async def _reaches(self, path: OwnedPath) -> bool:
        try:
            await self._builder.keep_link(path)
        except WorldError:
            return False
        return True

    def _end(self, standing: _Standing, change: Change) -> None:
        if standing in self._standing:
            self._standing.remove(standing)
            self._release(standing.path)
            self._counts[change.name.lower()] += 1
            standing.ended.set()
            standing.successor_wanted.set()
            self._announce(PathEvent(change, standing.path))

    def _find(self, path: OwnedPath) -> list[_Standing]:
        return [standing for standing in self._standing if standing.path is path]

    def _announce(self, event: PathEvent) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self._on_event(event)
