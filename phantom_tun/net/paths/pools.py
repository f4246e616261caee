"""All path pools of this node: one for exits and one for entries of each AP identity, and one for
questions where exits are shorter than entries (docs/spec/path.md, "Pool")."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.errors import UsageError, WorldError
from phantom_tun.guard import Guard
from phantom_tun.ids import EntryId
from phantom_tun.net.addresses.identities import ApIdentity, IdentityStore
from phantom_tun.net.paths.builder import PathBuilder
from phantom_tun.net.paths.pool import Goal, PathEvent, PathPool
from phantom_tun.net.tunnels.connector import Connector
from phantom_tun.path.hop import OwnedPath, PathKind
from phantom_tun.path.lifetimes import draw_lifetime
from phantom_tun.tasks import Tasks
from phantom_tun.wire.nodes import NodeRef

REPLACE_TIMEOUT = 60.0
"""Seconds that `paths rebuild` waits for one path."""

PRIVATE_ATTEMPTS = 3
"""Builds of a path for a question, before its asker is told that there's none."""


@dataclass(frozen=True, slots=True)
class PathWishes:
    """What the user configured."""

    exit_hops: int
    entry_hops: int
    exit_paths: int
    entry_paths: int
    lifetime: float
    """About how long a path is used, in seconds."""

    @property
    def private_hops(self) -> int:
        """Of exit paths that serve an identity's own affairs: what is asked or said over a shorter
        one than its entry paths would undo what those hide."""
        return max(self.exit_hops, self.entry_hops)


@dataclass(frozen=True, slots=True)
class BuildTotals:
    """Builds since the start."""

    tried: int
    succeeded: int
    median_s: float | None


class PathPools:
    """Keeps every identity's paths up."""

    def __init__(
        self,
        builder: PathBuilder,
        connector: Connector,
        identities: IdentityStore,
        wishes: PathWishes,
        *,
        on_event: Callable[[PathEvent], None],
        guard: Guard,
        clock: Clock,
        rng: Rng,
    ) -> None:
        self._builder = builder
        self._connector = connector
        self._identities = identities
        self.wishes = wishes
        self._on_event = on_event
        self._guard = guard
        self._clock = clock
        self._rng = rng
        self._pools: dict[tuple[str, PathKind, bool], PathPool] = {}
        """By identity, kind, and whether they are aside (:class:`OwnedPath`)."""
        self._scopes: dict[str, trio.CancelScope] = {}
        self._tasks = Tasks(guard)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the pools until cancelled."""
        await self._tasks.run(task_status)

    def add(self, identity: ApIdentity) -> None:
        """Begin to keep paths up for an identity.

        :raises UsageError: :meth:`run` isn't running.
        """
        if not self._tasks.is_open:
            raise UsageError("the path pools aren't running")
        goals = [self._goal("exit", identity), self._goal("entry", identity)]
        if goals[0].hops < self.wishes.private_hops:
            goals.append(replace(goals[0], hops=self.wishes.private_hops, aside=True))
        pools = [
            PathPool(
                self._builder,
                goal,
                confirm=self._connector.adopt,
                release=self._connector.drop,
                on_event=self._on_event,
                clock=self._clock,
                rng=self._rng,
            )
            for goal in goals
        ]
        for pool in pools:
            self._pools[identity.name, pool.goal.kind, pool.goal.aside] = pool
        self._tasks.start(self._run_pools, identity.name, pools)

    async def _run_pools(self, name: str, pools: list[PathPool]) -> None:
        with trio.CancelScope() as self._scopes[name]:
            async with trio.open_nursery() as nursery:
                for pool in pools:
                    nursery.start_soon(self._guard.forever, pool.run)

    def remove(self, name: str) -> None:
        """Give up all paths of an identity. Idempotent."""
        scope = self._scopes.pop(name, None)
        if scope is not None:
            scope.cancel()
        for purpose in [purpose for purpose in self._pools if purpose[0] == name]:
            del self._pools[purpose]

    def _goal(self, kind: PathKind, identity: ApIdentity) -> Goal:
        wishes = self.wishes

        def route(entry_node: NodeRef, entry_id: EntryId, expires: float) -> bytes:
            return self._identities.make_route(identity, entry_node.node_id, entry_id, expires)

        return Goal(
            kind=kind,
            identity=identity.name,
            hops=wishes.exit_hops if kind == "exit" else wishes.entry_hops,
            count=wishes.exit_paths if kind == "exit" else wishes.entry_paths,
            lifetime=wishes.lifetime,
            route_factory=route if kind == "entry" else None,
        )

    def died(self, path: OwnedPath) -> None:
        """A standing path gives no tunnels any more: replace it now."""
        pool = self._pool_of(path)
        if pool is not None:
            pool.report_dead(path)

    def doubted(self, path: OwnedPath) -> None:
        """A standing path gives no tunnels at the moment: have another one beside it soon."""
        pool = self._pool_of(path)
        if pool is not None:
            pool.report_doubt(path)

    async def replace(self, path: OwnedPath) -> None:
        """Replace one path; returns when its successor is up.

        :raises WorldError: it doesn't stand any more, or no build succeeded in time.
        """
        pool = self._pool_of(path)
        if pool is not None:
            await pool.rebuild(path, within=REPLACE_TIMEOUT)

    def _pool_of(self, path: OwnedPath) -> PathPool | None:
        return self._pools.get((path.identity, path.kind, path.aside))

    async def private_exit(self, identity: str) -> OwnedPath:
        """An exit path for a question about an identity itself. It lives as long as any other.

        :raises WorldError: none could be built.
        """
        for _ in range(PRIVATE_ATTEMPTS - 1):
            with contextlib.suppress(WorldError):
                return await self._build_private(identity)
        return await self._build_private(identity)

    async def _build_private(self, identity: str) -> OwnedPath:
        lifetime = draw_lifetime(self.wishes.lifetime, self._rng)
        path = await self._builder.build(
            "exit", self.wishes.private_hops, identity, lifetime=lifetime
        )
        return replace(path, aside=True)

    def problem(self, identity: str, kind: PathKind) -> str | None:
        """Why the last build of a kind of path for an identity failed, for people; ``None`` if it
        didn't, or there was none."""
        pool = self._pools.get((identity, kind, False))
        return None if pool is None else pool.problem

    def shortage(self) -> str:
        """What the network lacks for paths of the length wished, for people; empty if nothing."""
        return next((pool.shortage for pool in self._pools.values() if pool.shortage), "")

    def statistics(self) -> BuildTotals:
        """Totals over all pools."""
        found = self._builder.statistics()
        median = found.get("build_median_ms")
        return BuildTotals(
            found.get("builds_tried", 0),
            found.get("builds_succeeded", 0),
            None if median is None else median / 1000,
        )
