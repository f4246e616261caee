"""All path pools of this node: one for exits and one for entries of each AP identity
(docs/spec/path.md, "Pool")."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

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
from phantom_tun.tasks import Tasks
from phantom_tun.wire.nodes import NodeRef

REPLACE_TIMEOUT = 60.0
"""Seconds that `paths rebuild` waits for one path."""

THROWAWAY_ATTEMPTS = 3
"""Builds of a path that is used once, before its user is told that there's none."""


@dataclass(frozen=True, slots=True)
class PathWishes:
    """What the user configured."""

    exit_hops: int
    entry_hops: int
    exit_paths: int
    entry_paths: int
    lifetime: float
    """About how long a path is used, in seconds."""


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
        self._pools: dict[tuple[str, PathKind], PathPool] = {}
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
        kinds: tuple[PathKind, ...] = ("exit", "entry")
        pools = [
            PathPool(
                self._builder,
                self._goal(kind, identity),
                confirm=self._connector.adopt,
                release=self._connector.drop,
                on_event=self._on_event,
                clock=self._clock,
                rng=self._rng,
            )
            for kind in kinds
        ]
        for pool in pools:
            self._pools[identity.name, pool.goal.kind] = pool
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
        self._pools.pop((name, "exit"), None)
        self._pools.pop((name, "entry"), None)

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
        pool = self._pools.get((path.identity, path.kind))
        if pool is not None:
            pool.report_dead(path)

    def doubted(self, path: OwnedPath) -> None:
        """A standing path gives no tunnels at the moment: have another one beside it soon."""
        pool = self._pools.get((path.identity, path.kind))
        if pool is not None:
            pool.report_doubt(path)

    async def replace(self, path: OwnedPath) -> None:
        """Replace one path; returns when its successor is up.

        :raises WorldError: it doesn't stand any more, or no build succeeded in time.
        """
        pool = self._pools.get((path.identity, path.kind))
        if pool is not None:
            await pool.rebuild(path, within=REPLACE_TIMEOUT)

    async def throwaway_exit(self, identity: str) -> OwnedPath:
        """An exit path that will be used once.

        :raises WorldError: none could be built.
        """
        for _ in range(THROWAWAY_ATTEMPTS - 1):
            with contextlib.suppress(WorldError):
                return await self._builder.build("exit", self.wishes.exit_hops, identity)
        return await self._builder.build("exit", self.wishes.exit_hops, identity)

    def problem(self, identity: str, kind: PathKind) -> str | None:
        """Why the last build of a kind of path for an identity failed, for people; ``None`` if it
        didn't, or there was none."""
        pool = self._pools.get((identity, kind))
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
