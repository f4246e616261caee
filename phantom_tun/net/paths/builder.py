"""Building paths: one attempt from drawing members to the second array's return
(docs/spec/path.md, "Owner")."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import trio

from phantom_tun.clock import Clock, Rng
from phantom_tun.errors import (
    DeadlineExpired,
    PathUnavailable,
    ProtocolViolation,
    UsageError,
    WorldError,
)
from phantom_tun.ids import ConnectionId, EntryId, NetworkId, NodeId
from phantom_tun.net.paths.guard_watch import GuardNews, GuardWatch
from phantom_tun.net.paths.member import PathLinks, PathMember
from phantom_tun.net.tunnels.workshop import Workshop
from phantom_tun.netdb.density import median
from phantom_tun.path.build import Build, Invited, RouteFactory, Terms, UnusableKey
from phantom_tun.path.candidates import Candidate
from phantom_tun.path.guards import GuardSet
from phantom_tun.path.hop import OwnedPath, PathKind
from phantom_tun.path.lifetimes import LONGEST, SHORTEST, Ends
from phantom_tun.path.ring import MAX_HOPS
from phantom_tun.path.selection import Draw, TooFewNodes, draw_ring
from phantom_tun.path.suspicion import Suspicion
from phantom_tun.path.timing import RoundTimer
from phantom_tun.wire.records import NodeRecord
from phantom_tun.wire.setup import CONNECTION_ID_LEN, ENTRY_ID_LEN

MAX_BUILDS = 8
"""Builds that one node has on their way at one time."""

_REMEMBERED_TIMES = 100


class Stage(Enum):
    """Where a build ended."""

    MEMBERS = "members"
    """Too few nodes are known."""
    LINK = "link"
    """The first member, or one that has to reach an owner who can't be dialed, isn't there."""
    ROUND1 = "round1"
    ROUND1_ALTERED = "round1_altered"
    ROUND2 = "round2"
    ROUND2_ALTERED = "round2_altered"
    FIRST_TUNNEL = "first_tunnel"
    """The path was built but gave no tunnel."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the builder asks the rest of the node."""

    own_record: Callable[[], NodeRecord]
    """How others know this node; asked at each build."""
    candidates: Callable[[float], Sequence[Candidate]]
    """Validated nodes of the local cache with their keys, at a given time."""
    relatives: frozenset[NodeId]
    """Other nodes of the same person: never members."""
    save_guards: Callable[[GuardSet], None]
    """Called when the set may have changed."""
    guard_news: GuardNews


class PathBuilder:
    """Builds exit and entry paths for this node's identities."""

    def __init__(
        self,
        links: PathLinks,
        member: PathMember,
        network_id: NetworkId,
        guards: GuardSet,
        surroundings: Surroundings,
        *,
        clock: Clock,
        rng: Rng,
        workshop: Workshop | None = None,
    ) -> None:
        self._links = links
        self._member = member
        self._network_id = network_id
        self._guards = guards
        self._around = surroundings
        self._clock = clock
        self._rng = rng
        self._workshop = workshop or Workshop(rng)
        self._suspicion = Suspicion()
        self._watch = GuardWatch(links, guards, self._suspicion, surroundings.guard_news, clock)
        self._timer = RoundTimer()
        self._limiter = trio.CapacityLimiter(MAX_BUILDS)
        self._under_way: dict[tuple[PathKind, str], Counter[NodeId]] = {}
        """X-nodes of builds that go round."""
        self._numbers = itertools.count(1)
        self._counts: Counter[str] = Counter()
        self._times: deque[float] = deque(maxlen=_REMEMBERED_TIMES)

    async def build(
        self,
        kind: PathKind,
        hops: int,
        identity: str,
        route_factory: RouteFactory | None = None,
        *,
        lifetime: float,
        apart_from: frozenset[NodeId] = frozenset(),
    ) -> OwnedPath:
        """One attempt at a path of ``hops`` X-nodes that lives for ``lifetime`` seconds.

        With 0 hops nothing is built: this node is the exit or entry node itself.

        :param route_factory: makes the signed APRoute; needed for entry paths.
        :param apart_from: X-nodes of this identity's other paths of this kind: taken for it only if
            there are no others, as those of builds that are under way for it.
        :raises TooFewNodes: too few fitting nodes are known.
        :raises PathUnavailable: a link that can't be opened, or an altered array.
        :raises DeadlineExpired: an array did not come round in time.
        :raises UsageError: impossible hops or lifetime, or an entry path without a route.
        """
        if not 0 <= hops <= MAX_HOPS or not SHORTEST <= lifetime <= LONGEST:
            raise UsageError(
                f"a path has 0 to {MAX_HOPS} hops and lives {SHORTEST:.0f} to {LONGEST:.0f} s"
            )
        if hops == 0:
            return self._direct(kind, identity, route_factory, lifetime)
        async with self._limiter:
            started = trio.current_time()
            terms = Terms(kind, Ends(self._clock.now() + lifetime), route_factory)
            await self._watch.find_missing(*self._candidates_now())
            under_way = self._under_way.setdefault((kind, identity), Counter())
            build, guards = self._prepare(hops, terms, apart_from.union(under_way))
            x_nodes = [member.node_id for member in build.x_nodes]
            under_way.update(x_nodes)
            try:
                await self._make_first(build)
                self._counts["builds_tried"] += 1
                await self._go_round(build)
            finally:
                self._no_longer_under_way((kind, identity), x_nodes)
            seconds = trio.current_time() - started
        self._succeeded(build, guards, seconds)
        return OwnedPath(
            number=next(self._numbers),
            kind=kind,
            identity=identity,
            members=build.x_nodes,
            secrets=build.secrets,
            first_connection=build.first_connection,
            entry_id=build.entry_id,
            built=self._clock.now(),
            retires=terms.ends.retires,
            expires=build.expires,
            build_seconds=seconds,
        )

    def gave_no_tunnel(self, path: OwnedPath) -> None:
        """A freshly built path turned out not to work."""
        self._counts[f"builds_failed_{Stage.FIRST_TUNNEL.value}"] += 1
        self.died(path)

    def died(self, path: OwnedPath) -> None:
        """A path stopped working: one of its members may be gone."""
        self._suspicion.failed(path.node_ids, self._clock.now())

    async def keep_link(self, path: OwnedPath) -> None:
        """Have a link to the first X-node: it may not be able to open one to us.

        :raises WorldError: it can't be reached.
        """
        if path.members:
            await self._links.ensure(path.members[0])

    async def check_guards(self) -> None:
        """After a failure, tell guards that are gone from those that are not."""
        await self._watch.check(*self._candidates_now())

    def statistics(self) -> dict[str, int]:
        """Counters by name; times in milliseconds."""
        found = {**self._counts, "guards": len(self._guards)}
        if self._times:
            found["build_median_ms"] = round(1000 * median(self._times))
        return found

    # --- one attempt ----------------------------------------------------------------------------

    def _candidates_now(self) -> tuple[list[NodeId], int]:
        """Their ids, and the IP version in which to dial them."""
        candidates = self._around.candidates(self._clock.now())
        version = min(address.version for address in self._around.own_record().ips)
        return [candidate.record.node_id for candidate in candidates], version

    def _direct(
        self,
        kind: PathKind,
        identity: str,
        route_factory: RouteFactory | None,
        lifetime: float,
    ) -> OwnedPath:
        now = self._clock.now()
        ends = Ends(now + lifetime)
        entry_id = route = None
        if kind == "entry":
            if route_factory is None:
                raise UsageError("an entry path needs a signed route")
            entry_id = EntryId(self._rng.randbytes(ENTRY_ID_LEN))
            route = route_factory(self._around.own_record().ref(), entry_id, ends.retires)
        return OwnedPath(
            number=next(self._numbers),
            kind=kind,
            identity=identity,
            members=[],
            secrets=[],
            first_connection=ConnectionId(self._rng.randbytes(CONNECTION_ID_LEN)),
            entry_id=entry_id,
            built=now,
            retires=ends.retires,
            expires=ends.base,
            build_seconds=0.0,
            route=route,
        )

    def _no_longer_under_way(self, purpose: tuple[PathKind, str], x_nodes: list[NodeId]) -> None:
        left = self._under_way[purpose] - Counter(x_nodes)
        if left:
            self._under_way[purpose] = left
        else:
            del self._under_way[purpose]

    def _prepare(
        self, hops: int, terms: Terms, apart_from: frozenset[NodeId]
    ) -> tuple[Build, list[NodeId]]:
        """Draw members; also returns those that are guards here."""
        now = self._clock.now()
        own = self._around.own_record()
        draw = Draw(
            own=own,
            relatives=self._around.relatives,
            candidates=self._around.candidates(now),
            guards=self._guards,
            suspicion=self._suspicion,
            now=now,
            rng=self._rng,
            online=self._watch.online,
            apart_from=apart_from,
        )
        try:
            ring, version = draw_ring(hops, draw)
        except TooFewNodes:
            self._failed(Stage.MEMBERS)
            raise
        finally:
            self._around.save_guards(self._guards)
        invited = ring.map(
            lambda candidate: Invited(
                candidate.record.ref(version), candidate.path_key, candidate.record.work
            )
        )
        guards = [
            guard.ref.node_id for guard in (invited.near, invited.x_nodes[0], invited.far[-1])
        ]
        build = Build(invited, own.ref(version), self._network_id, terms, now=now, rng=self._rng)
        return build, guards

    async def _make_first(self, build: Build) -> None:
        """The first array, with the work that members ask for."""
        make = partial(build.array, 1)
        try:
            if build.work > len(build.members):
                self._counts["builds_worked_for"] += 1
                await self._workshop.do(make)
            else:
                make()
        except UnusableKey as error:
            self._suspicion.unreachable(error.node_id, self._clock.now())
            self._failed(Stage.MEMBERS)
            raise PathUnavailable("a member published a path-building key that is none") from error

    async def _go_round(self, build: Build) -> None:
        try:
            if not self._around.own_record().dialable:
                await self._reach_last(build)
            await self._round(build, 1, Stage.ROUND1, Stage.ROUND1_ALTERED)
            await self._round(build, 2, Stage.ROUND2, Stage.ROUND2_ALTERED)
        except WorldError:
            await self.check_guards()
            raise

    async def _reach_last(self, build: Build) -> None:
        """Nobody can dial us, so the last member needs a link that we opened."""
        last = build.last.node
        try:
            await self._links.ensure(last)
        except WorldError as error:
            self._unreachable(last.node_id)
            raise PathUnavailable("the last member of a build can't be reached") from error

    async def _round(self, build: Build, number: int, late: Stage, altered: Stage) -> None:
        allowed = self._timer.allowed(len(build.members))
        members = [member.node_id for member in build.members]
        array = build.array(number)
        started = trio.current_time()
        with self._member.expect(build.last) as coming:
            with trio.move_on_after(allowed) as deadline:
                try:
                    await self._member.send_array(build.first, array)
                except WorldError as error:
                    self._unreachable(members[0])
                    raise PathUnavailable("the first member can't be reached") from error
                to_first = trio.current_time() - started
                allowed = self._timer.allowed(len(members), to_first)
                deadline.deadline = started + allowed
                returned = await coming.wait()
            if deadline.cancelled_caught:
                self._timer.expired()
                self._suspicion.failed(members, self._clock.now())
                self._failed(late)
                raise DeadlineExpired(f"setup array {number} did not come round in {allowed:.1f} s")
        try:
            build.check(number, returned)
        except ProtocolViolation as error:
            self._suspicion.failed(members, self._clock.now())
            self._failed(altered)
            raise PathUnavailable(f"setup array {number} came back altered") from error
        self._timer.took(len(members), trio.current_time() - started)

    # --- bookkeeping ----------------------------------------------------------------------------

    def _unreachable(self, node: NodeId) -> None:
        self._watch.failed(node)
        self._failed(Stage.LINK)

    def _failed(self, stage: Stage) -> None:
        self._counts[f"builds_failed_{stage.value}"] += 1

    def _succeeded(self, build: Build, guards: list[NodeId], seconds: float) -> None:
        self._counts["builds_succeeded"] += 1
        self._times.append(seconds)
        self._suspicion.worked((member.node_id for member in build.members), self._clock.now())
        for guard in guards:
            self._watch.worked(guard)
