"""Publishing an AP identity: leases claimed, kept, lost; routes refreshed and withdrawn; and never
a word to the network but through the identity's own paths."""

from __future__ import annotations

import ast
import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import phantom_tun.net.addresses
from phantom_tun.clock import DAY, HOUR, MINUTE
from phantom_tun.errors import ConfigError, DeadlineExpired, LinkBroken, PathUnavailable
from phantom_tun.ids import EntryId, NodeId
from phantom_tun.net.addresses import identities as identities_module
from phantom_tun.net.addresses.ap_database import Route
from phantom_tun.net.addresses.identities import (
    DEFAULT_NAME,
    KEY_RECORD_LIFE,
    ApIdentity,
    IdentityStore,
    Lease,
    LeaseState,
)
from phantom_tun.net.addresses.publisher import (
    ARRIVAL,
    CALL_WITHIN,
    LAST_RETRY,
    PATIENCE,
    REFRESH,
    ROUTE_CHECK,
    SECOND_CHANCE,
    WITHDRAWN_FOR,
    Publisher,
)
from phantom_tun.netdb.addresses import OVERLAP
from phantom_tun.testing.fake_netdb import Asked, FakeNetdb, FakePaths
from phantom_tun.testing.fake_owner import ENTRY_NODE, FakeOwner
from phantom_tun.testing.fake_owner import SMALL_NETWORK as NETWORK
from phantom_tun.wire.netdb import (
    Call,
    ExtendApLease,
    Refusal,
    ReserveAp,
    Resolution,
    ResolveAp,
    UpdateApRoutes,
    WriteReport,
)
from phantom_tun.wire.records import APRoute, decode

START = 1_800_000_000.0


@dataclass
class TrioTime:
    """Seconds since the epoch in virtual time."""

    ahead: float = 0.0

    def now(self) -> float:
        return START + self.ahead + trio.current_time()


@dataclass
class World:
    """A publisher, its identity on disk, and the network."""

    state: Path
    nursery: trio.Nursery
    clock: TrioTime = field(default_factory=TrioTime)
    standing: list[Route] = field(default_factory=list)
    changes: list[tuple[LeaseState, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.netdb = FakeNetdb(NETWORK, TrioTime())
        self.paths = FakePaths(self.netdb, self.clock)
        self.claimed = trio.Event()
        self.load()

    def load(self) -> None:
        self.identities = IdentityStore(self.state, NETWORK, self.clock)
        self.identities.load()
        self.identity = self.identities.get(DEFAULT_NAME)
        self.publisher = self.make()

    def make(self, start_delay: float = 0.0) -> Publisher:
        def changed(identity: ApIdentity) -> None:
            self.changes.append((identity.lease.state, identity.lease.n))
            if identity.lease.state is LeaseState.HELD:
                self.claimed.set()

        return Publisher(
            self.identity,
            self.identities,
            self.paths,
            lambda _name: self.standing,
            on_lease=changed,
            clock=self.clock,
            rng=random.Random(7),
            start_delay=start_delay,
        )

    async def start(self) -> None:
        await self.nursery.start(self.publisher.run)

    def restart(self) -> None:
        """As after a crash: everything in memory is gone, entry paths are new."""
        self.nursery.cancel_scope.cancel()
        self.standing = []
        self.load()

    def stand(self, number: int, life: float = DAY) -> Route:
        """An entry path comes up; its entry node publishes the route."""
        entry_id = EntryId(number.to_bytes(16, "big"))
        route = Route(ENTRY_NODE, entry_id, self.clock.now() + life)
        signed = self.identities.make_route(self.identity, *route)
        self.netdb.perform(UpdateApRoutes((signed,)))
        self.standing.append(route)
        return route

    def rival(self) -> FakeOwner:
        """Somebody else with an AP4 candidate in common, which we are set to ask for."""
        me = FakeOwner(key=self.identity.signing)
        rival = me.rival()
        self.identities.set_lease(self.identity, Lease(me.n))
        assert self.identity.candidate == rival.ap4
        return rival

    def writes(self, kind: type[Call]) -> list[Asked]:
        return self.paths.asked(kind)

    def held_routes(self) -> set[bytes]:
        """Entry ids that a resolver would get."""
        return {route.entry_id for route in self.netdb.holding(self.identity.ap6).routes}

    @property
    def lease(self) -> Lease:
        return self.identity.lease


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> World:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    return World(state, nursery)


# --- claiming ------------------------------------------------------------------------------------


async def test_a_new_identity_is_published_in_one_round_trip(
    autojump_clock: MockClock, world: World
) -> None:
    before = trio.current_time()
    await world.start()
    await world.claimed.wait()
    assert trio.current_time() - before == pytest.approx(world.paths.round_trip)
    (asked,) = world.paths.log
    assert isinstance(asked.call, ReserveAp)
    assert asked.private
    assert world.identity.ap4 == world.identity.candidate
    assert world.lease.until == int(START) + KEY_RECORD_LIFE
    assert world.changes == [(LeaseState.RESERVING, 0), (LeaseState.HELD, 0)]
    assert world.publisher.warnings() == []
    for address in (world.identity.ap6, world.identity.candidate):
        record = world.netdb.holding(address).record
        assert record is not None
        assert record.public_key == world.identity.public_key


async def test_identities_can_start_apart(autojump_clock: MockClock, world: World) -> None:
    world.publisher = world.make(start_delay=20.0)
    await world.start()
    await world.claimed.wait()
    assert trio.current_time() >= 20.0


async def test_an_address_that_another_holds_is_passed_over(
    autojump_clock: MockClock, world: World
) -> None:
    rival = world.rival()
    rival.publish(world.netdb, START)
    taken = world.lease.n
    await world.start()
    await trio.sleep(1.5 * world.paths.round_trip)
    assert world.netdb.holding(world.identity.ap6).record is not None
    assert world.identity.ap4 is None
    await world.claimed.wait()
    assert world.lease.n == (taken + 1) % 256
    assert world.changes == [
        (LeaseState.RESERVING, taken),
        (LeaseState.LOST, taken),
        (LeaseState.RESERVING, world.lease.n),
        (LeaseState.HELD, world.lease.n),
    ]
    assert trio.current_time() == pytest.approx(3 * world.paths.round_trip)
    (warning,) = world.publisher.warnings()
    assert str(world.identity.ap4) in warning
    holder = world.netdb.holding(rival.ap4).record
    assert holder is not None
    assert holder.public_key == rival.key.public


async def test_one_lying_exit_can_not_drive_us_from_our_address(
    autojump_clock: MockClock, world: World
) -> None:
    def lie(call: Call, answer: bytes) -> bytes:
        if isinstance(call, ReserveAp):
            return WriteReport(20, 20, int(Refusal.LEASE_HELD), b"x" * 32).encode()
        return answer

    world.paths.liars[None] = lie
    await world.start()
    await trio.sleep(10 * MINUTE)
    assert world.lease == Lease(0, LeaseState.RESERVING)
    assert world.publisher.statistics()["conflicts"] > 3
    assert world.publisher.statistics()["losses"] == 0
    assert "disagree" in world.publisher.warnings()[0]
    del world.paths.liars[None]
    await trio.sleep(2 * LAST_RETRY)
    assert world.lease.state is LeaseState.HELD
    assert world.publisher.warnings() == []


async def test_many_losses_in_a_row_slow_it_down(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if all addresses were held by somebody."""
    holder = FakeOwner()

    def lie(call: Call, answer: bytes) -> bytes:
        if isinstance(call, ReserveAp):
            return WriteReport(20, 0, int(Refusal.LEASE_HELD), holder.key.public).encode()
        return Resolution(holder.record(world.clock.now()).encoded, (), 20, 20, ()).encode()

    monkeypatch.setattr(
        "phantom_tun.net.addresses.ap_database.claimed_ap4", lambda *_: world.identity.candidate
    )
    world.paths.liars[None] = lie
    await world.start()
    await trio.sleep(10 * MINUTE)
    assert PATIENCE < world.publisher.statistics()["losses"] < 40


@pytest.mark.parametrize(
    "error", [LinkBroken("gone"), DeadlineExpired("late"), PathUnavailable("none")]
)
async def test_it_tries_again_until_the_network_answers(
    autojump_clock: MockClock, world: World, error: LinkBroken
) -> None:
    world.paths.failures = [error] * 6
    await world.start()
    await trio.sleep(2)
    assert world.identity.ap4 is None
    assert str(error) in world.publisher.warnings()[0]
    await world.claimed.wait()
    moments = [asked.at for asked in world.writes(ReserveAp)]
    gaps = [later - sooner for sooner, later in itertools.pairwise(moments)]
    assert len(gaps) == 6
    assert gaps[-1] > 4 * gaps[0]
    assert len(set(gaps)) == 6


@pytest.mark.parametrize("answer", [b"", b"\xc1", Resolution(b"", (), 0, 0, ()).encode()])
async def test_an_answer_that_is_none_is_a_failure(
    autojump_clock: MockClock, world: World, answer: bytes
) -> None:
    world.paths.liars[None] = lambda _call, _answer: answer
    await world.start()
    await trio.sleep(MINUTE)
    assert world.identity.ap4 is None
    assert world.publisher.statistics()["failures"] > 3


async def test_a_report_that_nobody_stored_it_is_a_failure(
    autojump_clock: MockClock, world: World
) -> None:
    own = world.identity.public_key
    report = WriteReport(20, 0, int(Refusal.STORE_FULL), own).encode()
    world.paths.liars[None] = lambda _call, _answer: report
    await world.start()
    await trio.sleep(MINUTE)
    assert world.identity.ap4 is None
    assert "no room" in world.publisher.warnings()[0]


async def test_a_path_that_swallows_the_question_is_given_up(
    autojump_clock: MockClock, world: World
) -> None:
    world.paths.round_trip = 10 * CALL_WITHIN
    await world.start()
    await trio.sleep(CALL_WITHIN + 0.1)
    assert "in time" in world.publisher.warnings()[0]
    world.paths.round_trip = 0.1
    await world.claimed.wait()


@pytest.mark.parametrize(("ahead", "says"), [(HOUR, "fast"), (-HOUR, "slow")])
async def test_a_wrong_clock_is_named(
    autojump_clock: MockClock, world: World, ahead: float, says: str
) -> None:
    world.clock.ahead = ahead
    await world.start()
    await trio.sleep(MINUTE)
    assert world.identity.ap4 is None
    assert says in world.publisher.warnings()[0]


async def test_a_disk_that_is_full_is_named_and_survived(
    autojump_clock: MockClock, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()
    await world.claimed.wait()
    world.stand(1)

    def full(path: Path, data: bytes) -> None:
        raise ConfigError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(identities_module, "atomic_write", full)
        await trio.sleep(2 * HOUR)
        assert any("no space left" in line for line in world.publisher.warnings())
    await trio.sleep(2 * LAST_RETRY)
    assert world.publisher.warnings() == []
    assert world.identity.ap4 is not None


# --- keeping -------------------------------------------------------------------------------------


async def test_a_lease_is_kept_for_days_and_keys_rotate(
    autojump_clock: MockClock, world: World
) -> None:
    await world.start()
    await world.claimed.wait()
    first = world.identity.request_keys[0].public
    published = set()
    for _ in range(3 * 24 + 2):
        await trio.sleep(HOUR)
        record = world.netdb.holding(world.identity.candidate).record
        assert record is not None
        assert record.expires - world.clock.now() > KEY_RECORD_LIFE - OVERLAP
        assert record.request_key in {key.public for key in world.identity.request_keys}
        published.add(record.request_key)
    assert len(published) == 4
    assert first not in {key.public for key in world.identity.request_keys}
    assert world.changes[-1] == (LeaseState.HELD, 0)
    assert len(world.changes) == 2
    assert world.lease.until > world.clock.now() + KEY_RECORD_LIFE - OVERLAP
    moments = [asked.at for asked in world.writes(ExtendApLease)]
    gaps = [later - sooner for sooner, later in itertools.pairwise(moments)]
    assert max(gaps) < OVERLAP - MINUTE
    assert min(gaps) > REFRESH / 2
    assert not world.netdb.refused


async def test_lost_updates_are_noticed_and_go_another_way(
    autojump_clock: MockClock, world: World
) -> None:
    await world.start()
    await world.claimed.wait()
    world.paths.lose_updates = True
    until = world.lease.until
    await trio.sleep(REFRESH + PATIENCE * (ARRIVAL + 10))
    assert len(world.writes(ExtendApLease)) == PATIENCE
    assert len(world.writes(ReserveAp)) == 2
    assert world.lease.until > until
    assert world.publisher.warnings() == []


async def test_without_entry_paths_it_goes_another_way(
    autojump_clock: MockClock, world: World
) -> None:
    await world.start()
    await world.claimed.wait()
    world.paths.entries = 0
    await trio.sleep(REFRESH + 10)
    assert len(world.writes(ReserveAp)) == 2
    assert world.identity.ap4 is not None


async def test_a_lost_lease_moves_to_the_next_address(
    autojump_clock: MockClock, world: World
) -> None:
    rival = world.rival()
    await world.start()
    await world.claimed.wait()
    old = world.identity.ap4

    def merged(call: Call, answer: bytes) -> bytes:
        """The other half of a split network held it for somebody else."""
        if isinstance(call, ResolveAp) and call.ip == rival.ap4:
            return Resolution(rival.record(world.clock.now()).encoded, (), 20, 20, ()).encode()
        return answer

    world.paths.liars[None] = merged
    await trio.sleep(REFRESH + MINUTE)
    assert world.identity.ap4 not in {None, old}
    assert LeaseState.LOST in {state for state, _ in world.changes}
    assert "had to change" in world.publisher.warnings()[0]


async def test_a_lease_that_could_not_be_extended_lapses(
    autojump_clock: MockClock, world: World
) -> None:
    await world.start()
    await world.claimed.wait()
    world.paths.entries = 0
    world.paths.failures = [LinkBroken("gone")] * 100_000
    await trio.sleep(KEY_RECORD_LIFE / 2)
    assert world.identity.ap4 is not None
    assert "could not be published again" in world.publisher.warnings()[0]
    await trio.sleep(KEY_RECORD_LIFE / 2 + 2 * LAST_RETRY)
    assert world.identity.ap4 is None
    assert (LeaseState.NONE, 0) in world.changes
    world.paths.failures.clear()
    await trio.sleep(2 * LAST_RETRY)
    assert world.identity.ap4 == world.identity.candidate


async def test_after_a_restart_the_lease_is_resumed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with trio.open_nursery() as first:
        world = World(state, first)
        await world.start()
        await world.claimed.wait()
        until = world.lease.until
        await trio.sleep(MINUTE)
        world.restart()
    async with trio.open_nursery() as second:
        world.nursery = second
        assert world.identity.ap4_state is LeaseState.HELD
        world.changes.clear()
        await world.start()
        await trio.sleep(ARRIVAL + MINUTE)
        assert world.lease.until > until
        assert world.changes == []
        assert len(world.writes(ReserveAp)) == 1
        assert len(world.writes(ExtendApLease)) == 1
        assert not world.netdb.refused
        second.cancel_scope.cancel()


# --- routes --------------------------------------------------------------------------------------


async def test_routes_get_a_second_chance_and_are_refreshed(
    autojump_clock: MockClock, world: World
) -> None:
    await world.start()
    world.stand(1)
    world.publisher.routes_changed()
    await trio.sleep(SECOND_CHANCE - ROUTE_CHECK)
    assert world.writes(UpdateApRoutes) == []
    await trio.sleep(2 * ROUTE_CHECK + 1)
    assert len(world.writes(UpdateApRoutes)) == 1
    await trio.sleep(6 * HOUR)
    moments = [asked.at for asked in world.writes(UpdateApRoutes)]
    gaps = [later - sooner for sooner, later in itertools.pairwise(moments)]
    assert max(gaps) < OVERLAP - MINUTE
    assert min(gaps) > REFRESH / 2
    assert world.held_routes() == {world.standing[0].entry_id}
    assert not world.netdb.refused


async def test_the_route_of_a_path_that_went_is_withdrawn(
    autojump_clock: MockClock, world: World
) -> None:
    await world.start()
    gone, kept = world.stand(1), world.stand(2)
    world.publisher.routes_changed()
    await trio.sleep(1)
    world.standing.remove(gone)
    world.publisher.routes_changed()
    await trio.sleep(1)
    (withdrawn,) = [
        route
        for route in world.netdb.holding(world.identity.ap6).routes
        if route.entry_id == gone.entry_id
    ]
    assert withdrawn.expires <= world.clock.now() + WITHDRAWN_FOR
    await trio.sleep(WITHDRAWN_FOR)
    assert world.held_routes() == {kept.entry_id}
    assert world.publisher.statistics()["routes"] == 1
    assert world.publisher.statistics()["routes_withdrawn"] == 1


async def test_changes_are_noticed_without_being_told(
    autojump_clock: MockClock, world: World
) -> None:
    await world.start()
    world.stand(1)
    await trio.sleep(ROUTE_CHECK + 1)
    world.standing.clear()
    await trio.sleep(ROUTE_CHECK + WITHDRAWN_FOR)
    assert world.held_routes() == set()


async def test_expired_routes_are_forgotten(autojump_clock: MockClock, world: World) -> None:
    await world.start()
    world.stand(1, life=5 * MINUTE)
    world.publisher.routes_changed()
    await trio.sleep(MINUTE)
    assert world.publisher.statistics()["routes"] == 1
    world.standing.clear()
    world.paths.entries = 0
    await trio.sleep(5 * MINUTE)
    assert world.publisher.statistics()["routes"] == 0
    assert world.publisher.statistics()["routes_waiting"] > 0


async def test_a_route_that_the_network_lost_is_published_again(
    autojump_clock: MockClock, world: World
) -> None:
    await world.start()
    world.stand(1)
    await world.claimed.wait()
    await trio.sleep(REFRESH / 2)
    before = len(world.writes(UpdateApRoutes))

    def lost(call: Call, answer: bytes) -> bytes:
        if isinstance(call, ResolveAp):
            record = world.netdb.holding(world.identity.ap6).record
            assert record is not None
            return Resolution(record.encoded, (), 20, 20, ()).encode()
        return answer

    world.paths.liars[None] = lost
    extended = len(world.writes(ExtendApLease))
    while len(world.writes(ExtendApLease)) == extended:
        await trio.sleep(1)
    await trio.sleep(ARRIVAL + 1)
    assert len(world.writes(UpdateApRoutes)) > before
    assert world.publisher.statistics()["routes_missing"] == 1


@pytest.mark.parametrize("entries", [0, 1])
async def test_routes_of_the_run_before_are_withdrawn(
    autojump_clock: MockClock, tmp_path: Path, entries: int
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    async with trio.open_nursery() as first:
        world = World(state, first)
        await world.start()
        await world.claimed.wait()
        world.stand(1)
        await trio.sleep(10)
        world.restart()
    async with trio.open_nursery() as second:
        world.nursery = second
        world.paths.entries = entries
        await world.start()
        await trio.sleep(5)
        world.paths.entries = 1
        new = world.stand(2)
        await trio.sleep(WITHDRAWN_FOR + 2 * ROUTE_CHECK)
        assert world.held_routes() == {new.entry_id}
        second.cancel_scope.cancel()


async def test_a_route_of_this_run_that_came_just_now_is_not_withdrawn(
    autojump_clock: MockClock, world: World
) -> None:
    """An entry node publishes a route a moment before the path counts as standing."""
    await world.start()
    await world.claimed.wait()
    await trio.sleep(REFRESH * 0.7)
    coming = world.stand(1)
    world.standing.clear()
    await trio.sleep(REFRESH * 0.3 + MINUTE)
    assert len(world.writes(ExtendApLease)) == 1
    assert world.held_routes() == {coming.entry_id}


async def test_nothing_is_signed_for_routes_of_others(
    autojump_clock: MockClock, world: World
) -> None:
    rival = world.rival()
    held = Lease(world.lease.n, LeaseState.HELD, world.clock.now() + HOUR)
    world.identities.set_lease(world.identity, held)
    world.publisher = world.make()
    theirs = rival.route(world.clock.now(), 77)

    def lie(call: Call, answer: bytes) -> bytes:
        if not isinstance(call, ResolveAp):
            return answer
        record = rival.record(world.clock.now())
        return Resolution(record.encoded, (theirs.encoded,), 20, 20, ()).encode()

    world.paths.liars[None] = lie
    world.paths.entries = 0
    await world.start()
    await trio.sleep(MINUTE)
    assert len(world.writes(ReserveAp)) == 1
    assert len(world.writes(ResolveAp)) == 2, "at the start and when the record is out"
    assert world.publisher.statistics()["routes"] == 0


async def test_routes_are_signed_for_their_path(autojump_clock: MockClock, world: World) -> None:
    await world.start()
    standing = world.stand(1)
    await trio.sleep(SECOND_CHANCE + 2 * ROUTE_CHECK)
    (asked,) = world.writes(UpdateApRoutes)
    assert isinstance(asked.call, UpdateApRoutes)
    route = decode(APRoute, asked.call.routes[0])
    assert (NodeId(route.entry_node), route.entry_id) == standing[:2]
    assert route.expires == int(standing.expires)


# --- who sees what -------------------------------------------------------------------------------


async def test_questions_about_oneself_never_use_a_standing_path(
    autojump_clock: MockClock, world: World
) -> None:
    await world.start()
    world.stand(1)
    await trio.sleep(6 * HOUR)
    asked = [one for one in world.paths.log if isinstance(one.call, ReserveAp | ResolveAp)]
    assert len(asked) > 5
    assert all(one.private for one in asked)
    assert {one.identity for one in world.paths.log} == {DEFAULT_NAME}


@pytest.mark.parametrize("module", ["ap_database", "directory", "inquiry", "publisher"])
def test_nothing_here_can_reach_the_network_by_itself(module: str) -> None:
    """What these modules import of ``net``, and what of the outside world: nothing that sends."""
    allowed = {"ap_database", "identities", "inquiry", "pins", "directory"}
    source = Path(phantom_tun.net.addresses.__file__).parent / f"{module}.py"
    for node in ast.walk(ast.parse(source.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            assert parts[0] not in {"socket", "ssl", "subprocess"}
            if parts[:2] == ["phantom_tun", "net"]:
                assert parts[2] == "addresses" and parts[3] in allowed
